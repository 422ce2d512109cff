/* arch.h - an architecture is a row: all that differs between the kinds of models that graft runs. What depends on the kind is
 * asked of a field here, never of its name. */
#ifndef GR_ARCH_H
#define GR_ARCH_H

#include "core/base/base.h"
#include "kernels/kernels.h"

/* Where a module stands in the decoder, in the order in which weights are listed; INPUT_NORM to MLP_NORM are each layer's. */
typedef enum gr_slot {
    GR_SLOT_EMBED,
    GR_SLOT_INPUT_NORM,
    GR_SLOT_QKV, /* q, k and v as one matrix, in place of the three */
    GR_SLOT_Q,
    GR_SLOT_K,
    GR_SLOT_V,
    GR_SLOT_O,
    GR_SLOT_Q_NORM, /* of each head, before the rotation */
    GR_SLOT_K_NORM,
    GR_SLOT_ATTENTION_NORM, /* of what attention adds to the stream */
    GR_SLOT_POST_NORM,
    GR_SLOT_GATE_UP, /* likewise gate and up */
    GR_SLOT_GATE,
    GR_SLOT_UP,
    GR_SLOT_DOWN,
    GR_SLOT_MLP_NORM, /* of what the MLP adds to the stream */
    GR_SLOT_NORM,
    GR_SLOT_HEAD,
    GR_SLOT_COUNT
} gr_slot;

/* A module's name in Hugging Face's files and in a GGUF: without model.layers.N. or blk.N. of a layer, and .weight or .bias. */
typedef struct gr_module_names {
    const char *hf, *gguf; /* NULL: the architecture has nothing in this slot */
} gr_module_names;

typedef struct gr_arch {
    const char *hf_type;            /* model_type */
    const char *hf_class;           /* architectures */
    const char *gguf;               /* general.architecture */
    const char *hf_whole;           /* model_type of a model of text and pictures whose text_config is one of these; NULL: none */
    const gr_module_names *modules; /* [GR_SLOT_COUNT] */
    gr_activation activation;
    /* what transformers takes for keys that a config.json leaves out */
    int64_t max_positions;   /* max_position_embeddings */
    int64_t n_heads, vocab;  /* num_attention_heads, vocab_size; 0: a file must say it */
    int64_t n_kv_heads;      /* num_key_value_heads; 0: as many as heads */
    int64_t head_dim;        /* head_dim; 0: hidden size / heads */
    int64_t window;          /* sliding_window; 0: none */
    int64_t window_period;   /* of so many layers the last does not slide; 0: all slide, or what window_switch says */
    int64_t score_divisor;   /* query_pre_attn_scalar; 0: the head size */
    float norm_eps;          /* rms_norm_eps; 0: 1e-6 */
    float attention_softcap; /* attn_logit_softcapping */
    float head_softcap;      /* final_logit_softcapping */
    double rope_theta;       /* rope_theta; 0: 10000 */
    double rope_local;       /* rope_local_base_freq: theta of the layers that slide; 0: one rotation for all */
    bool tied;               /* tie_word_embeddings */
    /* what transformers' class has */
    bool slides;            /* sliding_window counts */
    bool layer_types;       /* layer_types says which layers slide; without it all do */
    bool window_switch;     /* without layer_types use_sliding_window and max_window_layers say so */
    bool window_period_key; /* the key sliding_window_pattern is window_period */
    bool score_keys;        /* query_pre_attn_scalar and final_logit_softcapping count */
    bool score_cap_key;     /* attn_logit_softcapping counts */
    bool qkv_bias;          /* q, k and v always have biases, o never */
    bool attention_bias;    /* the key attention_bias says whether q, k, v and o have biases */
    bool mlp_bias;          /* the key mlp_bias says whether gate, up and down have biases */
    bool embed_scaled;      /* rows of the embedding are multiplied by the root of their width */
    float norm_offset;      /* what the weight of a norm is above that of its files: 1 + w. A GGUF holds the sum */
    /* what llama.cpp makes of it */
    bool gguf_interleaved; /* rows of q and k take turns between the halves of a head: gr_gguf_row */
    bool gguf_65b;         /* of 80 layers those without grouped queries are no "70B" */
    bool gguf_square;      /* loaded only where heads x head size is the hidden size */
    bool gguf_slides;      /* its graph has the sliding window */
    bool gguf_tied;        /* its graph has no head beside the embedding */
    int64_t gguf_window;   /* attention.sliding_window where a file leaves it out */
    int64_t gguf_27b;      /* with so many layers scores are divided by the root of hidden size / heads, not of the head size */
} gr_arch;

/* All of them, GR_N_ARCHS; those with one name in a GGUF are neighbours: the first is a GGUF's without a sliding window. */
extern const gr_arch gr_archs[];
enum { GR_N_ARCHS = 7 };

/* The first of this name: its model_type or, with gguf, GGUF's. BAD_INPUT "FILE: KEY "NAME": graft runs ...". */
graft_status gr_arch_find(const gr_arch **out, const char *file, const char *key, const char *name, bool gguf, graft_error *err);

#endif
