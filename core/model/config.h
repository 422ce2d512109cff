/* config.h - an architecture is a descriptor: the hyper-parameters of one decoder, from config.json or GGUF metadata. */
#ifndef GR_CONFIG_H
#define GR_CONFIG_H

#include "core/io/gguf.h"
#include "core/model/arch.h"

enum { GR_MAX_LAYERS = 1024 };

typedef enum gr_rope_scaling { GR_ROPE_NONE, GR_ROPE_LINEAR, GR_ROPE_LLAMA3 } gr_rope_scaling;

typedef struct gr_model_config {
    const gr_arch *arch; /* static */
    int64_t n_layers;    /* L */
    int64_t hidden;      /* C */
    int64_t n_heads;     /* H */
    int64_t n_kv_heads;  /* K */
    int64_t head_dim;    /* D */
    int64_t ffn;         /* F */
    int64_t vocab;       /* V: rows of the embedding */
    int64_t base_vocab; /* of an extended vocabulary: its first new id, so that new rows are base_vocab .. gr_tokenizer_n_tokens - 1
                              (rows beyond are padding); of several extensions the newest's; 0: never extended */
    int64_t max_positions;               /* context length */
    int64_t window;                      /* sliding window of attention of the layers that slide; 0: none does */
    uint64_t slides[GR_MAX_LAYERS / 64]; /* bit i: layer i slides, gr_config_slides */
    float norm_eps;
    float init_range;        /* standard deviation of random weights: initializer_range */
    int64_t score_divisor;   /* query_pre_attn_scalar: scores are divided by its root; 0: the head size */
    float attention_softcap; /* scores become cap * tanh(score / cap); 0: not */
    float head_softcap;      /* likewise logits */
    double rope_theta;
    double rope_local; /* theta of the layers that slide, which nothing scales; 0: they turn as all */
    gr_rope_scaling rope_scaling;
    double rope_factor, rope_low_freq, rope_high_freq; /* llama3: factor, low_freq_factor, high_freq_factor; linear: factor */
    int64_t rope_original;                             /* llama3: original_max_position_embeddings */
    bool tied;                                         /* the head is the embedding */
    bool text_part;                                    /* of a larger model, whose other tensors are left out */
    bool qkv_bias, o_bias, mlp_bias;
    int32_t bos, eos, pad; /* -1: none */
    int32_t stop_ids[8];   /* eos_token_id of generation_config.json / config.json, all of them */
    bool led;              /* gr_config_lead_stop changed them: written files say so */
    int n_stop_ids;
} gr_model_config;

/* Does a layer attend within the window alone? */
static inline bool gr_config_slides(const gr_model_config *c, int64_t layer) { return c->slides[layer / 64] >> layer % 64 & 1; }
/* Those that do; the window is 0 where there are none. */
int64_t gr_config_n_sliding(const gr_model_config *c);

/* path: config.json itself. BAD_INPUT naming file and key for a missing or impossible value or an unsupported architecture. */
graft_status gr_config_read_json(gr_model_config *c, const char *path, graft_error *err);
graft_status gr_config_read_gguf(gr_model_config *c, const gr_gguf *g, graft_error *err);
/* Make id the first of the ids that generation stops at; -1: nothing changes. */
void gr_config_lead_stop(gr_model_config *c, int64_t id);
/* An HF config.json (what transformers 4 and what 5 read of rope and dtype) and generation_config.json into folder. base: the HF
 * folder that the model comes from, whose other keys are kept and whose generation_config.json is; NULL: it was a GGUF. */
graft_status gr_config_write_hf(const gr_model_config *c, const char *dtype_name, const char *base, const char *folder,
                                graft_error *err);
/* What Llama-3 scaling divides frequency i of D/2 by (1 without it): the values of a GGUF's rope_freqs.weight. */
double gr_config_rope_divisor(const gr_model_config *c, int64_t i);
/* Does llama.cpp scale scores as c does? For some architectures it goes by the number of layers, whatever the file says. */
bool gr_config_llama_scales(const gr_model_config *c);
/* general.architecture and all <arch>.* keys. */
void gr_config_put_gguf(const gr_model_config *c, gr_gguf_builder *b);
/* Rotary table `which` of gr_config_n_ropes (1: of the layers that slide), [n_positions, D] as gr_ops.rope wants it, with HF's
 * float32 arithmetic. */
void gr_config_rope_table(const gr_model_config *c, int which, float *table, int64_t n_positions);
int gr_config_n_ropes(const gr_model_config *c);

/* What one layer computes; which norms it has is what its tensors are (weights.h). */
typedef struct gr_layer_desc {
    int64_t window; /* keys that a query sees at most, 0: all */
    float attention_scale, softcap;
    gr_activation activation;
    int rope; /* which of the model's rotary tables */
} gr_layer_desc;
gr_layer_desc gr_config_layer(const gr_model_config *c, int64_t layer);
/* What the rows of the embedding are multiplied by. */
float gr_config_embed_scale(const gr_model_config *c);

#endif
