/* decoder.h - the decoder's forward and backward over flat batches, and its step scratch (planned once, allocated once).
 * One code path for training, evaluation, prefill and decoding: the slots of the model and the arguments say what happens. */
#ifndef GR_DECODER_H
#define GR_DECODER_H

#include "core/model/batch.h"
#include "core/model/model.h"

typedef struct gr_decoder gr_decoder;

typedef enum gr_recompute {                         /* what backward computes again instead of keeping */
                            GR_RECOMPUTE_NONE,      /* keep everything */
                            GR_RECOMPUTE_SELECTIVE, /* norms and activations of gated units are computed again */
                            GR_RECOMPUTE_FULL       /* only the layer inputs are kept */
} gr_recompute;

/* Told of a layer before its first and after its last operation of a direction, and when its gradients are whole: where weights are
 * elsewhere, or gradients leave, it happens there. Layer n_layers is the head with the last norm, -1 the embedding. */
typedef struct gr_layer_hooks {
    void (*enter)(void *context, int64_t layer);
    void (*leave)(void *context, int64_t layer);
    void (*gradient_ready)(void *context, int64_t layer);
    void *context;
} gr_layer_hooks;

typedef struct gr_decoder_options {
    int64_t max_tokens;  /* rows of the largest batch */
    int64_t max_targets; /* of them with a target, in the batch that has most; 0: all */
    int64_t listings;    /* of rows at most by gr_decoder_step_list, at most gr_decoder_head_rows */
    bool training;       /* plan for backward */
    gr_recompute recompute;
    float dropout;               /* LoRA input dropout; 0 = none */
    uint64_t seed;               /* of the dropout masks */
    const gr_layer_hooks *hooks; /* NULL: none. Borrowed */
} gr_decoder_options;

/* The model is placed (gr_model_place) and must not change its slots while the decoder is used. */
graft_status gr_decoder_new(gr_decoder **out, gr_model *m, const gr_decoder_options *o, graft_error *err);
void gr_decoder_free(gr_decoder *d);
/* Bytes of step scratch that a decoder with these options would allocate: the plan, without running. */
int64_t gr_decoder_plan_bytes(const gr_model *m, const gr_decoder_options *o);
/* Rows of logits that it holds at once. */
int64_t gr_decoder_head_rows(const gr_model *m, const gr_decoder_options *o);

/* Evaluation: nll[n] (natural log; 0 on rows without a target) of each row's target. */
graft_status gr_decoder_eval(gr_decoder *d, const gr_batch *b, float *nll, graft_error *err);

/* What a training batch adds to. */
typedef struct gr_loss {
    float scale;          /* of the loss: gradients are those of sum over rows of scale * weight * (nll + z_loss * logsumexp^2) */
    float z_loss;         /* see gr_loss_terms; in the gradients alone, not in nll */
    gr_step_stats *stats; /* device memory: nll and bad_row; NULL: not wanted */
    bool scaled;          /* gradients are those of the loss times stats->loss_scale */
    int64_t first_row;    /* of the batch among the rows of its step, for bad_row */
    float *nll;           /* [n] on the host, as gr_decoder_eval; NULL: not wanted, and nothing is waited for */
} gr_loss;
/* Training: every gradient that the slots want += ; with dropout on. */
graft_status gr_decoder_train(gr_decoder *d, const gr_batch *b, const gr_loss *loss, graft_error *err);
/* Hooks and the model's `elsewhere` are told what they are told in gr_decoder_train, in the same order, and nothing is computed:
 * what a rank does that has no batch when others have. */
void gr_decoder_join(const gr_decoder *d);
/* logits[n_rows, V] of the given rows of the batch (no gradient). */
graft_status gr_decoder_logits(gr_decoder *d, const gr_batch *b, const int32_t *rows, int64_t n_rows, float *logits,
                               graft_error *err);

/* KV cache for generation: n_slots sequences of up to max_len positions. */
typedef struct gr_kv_cache {
    gr_kv *layers; /* [L] */
    int64_t *len;  /* [n_slots] positions filled */
    int64_t n_slots, max_len;
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
/* The same, but best[n_seqs] is what the device finds in these rows (best_column of kernels/ops.def): no logits are moved. */
graft_status gr_decoder_step_best(gr_decoder *d, const gr_batch *b, gr_kv_cache *c, const int32_t *slots, int32_t *best,
                                  graft_error *err);
/* The same, but list[n_seqs] is what the device lists of these rows for a temperature (list_columns of kernels/ops.def). */
graft_status gr_decoder_step_list(gr_decoder *d, const gr_batch *b, gr_kv_cache *c, const int32_t *slots, float temperature,
                                  gr_listing *list, graft_error *err);
/* logits[V] of sequence s of the last gr_decoder_step_list. */
graft_status gr_decoder_step_row(gr_decoder *d, int64_t s, float *logits, graft_error *err);

#endif
