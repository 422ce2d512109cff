/* merge.h - a base, the adapters on it and what was trained of it, written as one model, read back and checked. */
#ifndef GR_MERGE_H
#define GR_MERGE_H

#include "adapters/adapter.h"
#include "adapters/export.h"

/* What is merged: W + sum_j scales[j] * B_j A_j. No adapters: a conversion. */
typedef struct gr_merge_parts {
    gr_model *model; /* the opened base with the adapters attached: the logits to be found again come from it */
    const gr_tokenizer *tokenizer;
    gr_adapter *const *adapters; /* [n_adapters] */
    const double *scales;
    int n_adapters;
    const gr_params *trained; /* replaces weights by name (method: full); may be NULL */
} gr_merge_parts;

typedef struct gr_merge_options {
    gr_model_format format;
    int dtype; /* as in gr_export; -1: the base's own (bf16 for a quantised base) */
    bool overwrite;
    int64_t shard_bytes; /* as in gr_export */
} gr_merge_options;

typedef struct gr_merge_report {
    gr_dtype dtype;              /* that was written */
    double max_logit_difference; /* base + adapter against the merged files as read back, on probe texts */
    double largest_logit;        /* magnitude, of base + adapter: the yardstick of the difference */
    double relative_error;       /* root mean square of the differences over that of the logits (each row without its mean) */
    double mean_kl;              /* nats */
    int64_t n_probed, n_changed; /* tokens of the probe; those whose likeliest next token is another one */
    int64_t n_tensors, n_merged, n_bytes;
} gr_merge_report;

/* Sums are float32, rounded once. A tied head that an adapter targets is untied: lm_head is written and tie_word_embeddings =
 * false; likewise an embedding. report may be NULL. */
graft_status gr_merge(const gr_merge_parts *parts, const gr_merge_options *o, const char *out_path, gr_merge_report *report,
                      graft_error *err);

/* An adapter with rows of tokens as others serve it: the base with the rows put in, written to base_path as gr_merge writes, and
 * what is left, a plain LoRA for it, in *plain (a's matrices and strings, borrowed; it names base_path as its base). m is the
 * opened base; a is attached to it, whole, afterwards as well. BAD_USAGE where a has no rows, or nothing else. */
graft_status gr_merge_rows(gr_adapter *plain, gr_adapter *a, gr_model *m, const gr_tokenizer *t, const gr_merge_options *o,
                           const char *base_path, graft_error *err);

/* Memory that gr_merge of m without adapters takes besides the model, at most: one tensor, the written files as they are read back,
 * and the logits of the probe. dtype: F32, F16 or BF16. */
int64_t gr_merge_bytes(const gr_model *m, gr_dtype dtype);

/* The read-back: the configuration at path is x's, rows of every tensor are the source's within what their type rounds away, and
 * the logits are those of m, in float32, on a few fixed texts. FAILED, naming what is wrong, when they are not. */
graft_status gr_merge_probe(const gr_export *x, gr_model *m, const char *path, gr_merge_report *report, graft_error *err);
/* Memory of the probe besides both models' weights. */
int64_t gr_merge_probe_bytes(const gr_model *m);

#endif
