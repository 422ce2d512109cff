/* decoder.h - the decoder's forward and backward over flat batches, and its step scratch (planned once, allocated once).
 * One code path for training, evaluation, prefill and decoding: the slots of the model and the arguments say what happens. */
#ifndef GR_DECODER_H
#define GR_DECODER_H

#include "core/model/batch.h"
#include "core/model/model.h"

typedef struct gr_decoder gr_decoder;

typedef enum gr_recompute {                         /* what backward computes again instead of keeping */
                            GR_RECOMPUTE_NONE,      /* keep everything */
                            GR_RECOMPUTE_SELECTIVE, /* norms and SwiGLU outputs are computed again */
                            GR_RECOMPUTE_FULL       /* only the layer inputs are kept */
} gr_recompute;

typedef struct gr_decoder_options {
    int64_t max_tokens;  /* rows of the largest batch */
    int64_t max_targets; /* of them with a target, in the batch that has most; 0: all. More only take more turns of the head */
    bool training;       /* plan for backward */
    gr_recompute recompute;
    float dropout; /* LoRA input dropout; 0 = none */
    uint64_t seed; /* of the dropout masks */
} gr_decoder_options;

graft_status gr_decoder_new(gr_decoder **out, gr_model *m, const gr_decoder_options *o, graft_error *err);
void gr_decoder_free(gr_decoder *d);
/* Bytes of step scratch that a decoder with these options would allocate: the plan, without running. */
int64_t gr_decoder_plan_bytes(const gr_model *m, const gr_decoder_options *o);
/* Rows of logits that it holds at once. */
int64_t gr_decoder_head_rows(const gr_model *m, const gr_decoder_options *o);

/* Evaluation: nll[n] (natural log; 0 on rows without a target) of each row's target. */
graft_status gr_decoder_eval(gr_decoder *d, const gr_batch *b, float *nll, graft_error *err);
/* Training: the same, and every gradient the slots want += d(sum over rows of scale * weight * nll). With dropout on. */
graft_status gr_decoder_train(gr_decoder *d, const gr_batch *b, float scale, float *nll, graft_error *err);
/* logits[n_rows, V] of the given rows of the batch (no gradient). */
graft_status gr_decoder_logits(gr_decoder *d, const gr_batch *b, const int32_t *rows, int64_t n_rows, float *logits,
                               graft_error *err);

/* KV cache for generation: n_slots sequences of up to max_len positions. */
typedef struct gr_kv_cache {
    float *kv;       /* [L][n_slots*max_len][2*K*D]: k then v */
    float *panels;   /* [L] of gr_kv_panels.data, panel_floats apart */
    int32_t *packed; /* [L, n_slots, K] */
    int64_t *len;    /* [n_slots] positions filled */
    int64_t n_slots, max_len, blocks, panel_floats;
    gr_device *device;
} gr_kv_cache;
graft_status gr_kv_cache_init(gr_kv_cache *c, const gr_model *m, int64_t n_slots, int64_t max_len, graft_error *err);
void gr_kv_cache_release(gr_kv_cache *c);
/* Memory of such a cache once every position was filled. */
int64_t gr_kv_cache_bytes(const gr_model *m, int64_t n_slots, int64_t max_len);
/* Run new tokens: sequence s of the batch continues slot slots[s] (b->positions must continue its length). logits[n_seqs, V] of
 * each sequence's last row. */
graft_status gr_decoder_step(gr_decoder *d, const gr_batch *b, gr_kv_cache *c, const int32_t *slots, float *logits,
                             graft_error *err);

#endif
