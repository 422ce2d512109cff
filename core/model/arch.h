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
    GR_SLOT_Q,
    GR_SLOT_K,
    GR_SLOT_V,
    GR_SLOT_O,
    GR_SLOT_Q_NORM, /* of each head, before the rotation */
    GR_SLOT_K_NORM,
    GR_SLOT_ATTENTION_NORM, /* of what attention adds to the stream */
    GR_SLOT_POST_NORM,
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
    const gr_module_names *modules; /* [GR_SLOT_COUNT] */
    gr_activation activation;
    /* what transformers takes for keys that a config.json leaves out */
    int64_t max_positions; /* max_position_embeddings */
    int64_t n_kv_heads;    /* num_key_value_heads; 0: as many as heads */
    int64_t window;        /* sliding_window; 0: the key is ignored */
    /* what transformers' class has */
    bool window_switch;  /* use_sliding_window and max_window_layers say which layers slide; without it all do */
    bool qkv_bias;       /* q, k and v always have biases, o never */
    bool attention_bias; /* the key attention_bias says whether q, k, v and o have biases */
    bool mlp_bias;       /* the key mlp_bias says whether gate, up and down have biases */
    /* what llama.cpp makes of it */
    bool gguf_interleaved; /* rows of q and k take turns between the halves of a head: gr_gguf_row */
    bool gguf_65b;         /* of 80 layers those without grouped queries are no "70B" */
    bool gguf_square_q;    /* loaded only where heads x head size is the hidden size */
} gr_arch;

/* All of them, GR_N_ARCHS; those with one name in a GGUF are neighbours: the first is a GGUF's without a sliding window. */
extern const gr_arch gr_archs[];
enum { GR_N_ARCHS = 3 };

/* The first of this name: its model_type or, with gguf, GGUF's. BAD_INPUT "FILE: KEY "NAME": graft runs ...". */
graft_status gr_arch_find(const gr_arch **out, const char *file, const char *key, const char *name, bool gguf, graft_error *err);

#endif
