/* evaluate.h - what a model is worth on a data set: loss, and exact match of generated answers. */
#ifndef GR_EVALUATE_H
#define GR_EVALUATE_H

#include "core/data/dataset.h"
#include "core/dist/comm.h"
#include "core/model/generate.h"

enum { GR_EXACT_MATCH_TOKENS = 256 }; /* new tokens of an answer at most, during a run */

/* Tokens of the longest sample, at least 1. */
int64_t gr_longest_sample(const gr_dataset *d);
/* Rows of the largest batch of gr_evaluate, and the most targets of one. */
int64_t gr_evaluate_rows(const gr_dataset *d, int64_t batch_tokens);
int64_t gr_evaluate_targets(const gr_dataset *d, int64_t batch_tokens);
/* Targets of samples idx[n]: a sequence's first id is never predicted. */
int64_t gr_count_targets(const gr_dataset *d, const int64_t *idx, int64_t n);
/* Exact match: the last number after "####" (commas and $ stripped) in both texts when the reference has one, else equality of
 * the trimmed texts. */
bool gr_exact_match(const char *prediction, const char *reference);
/* Tokens before the last answer of a sample, the most of them, at least 1. Reads the whole set. */
graft_status gr_longest_prompt(const gr_dataset *d, int64_t *longest, graft_error *err);
/* Memory that gr_evaluate_exact_match takes during a run besides model and data, at most: answers that go on to their last
 * token. ranks: that share the samples. */
int64_t gr_exact_match_bytes(const gr_model *m, const gr_dataset *d, int64_t longest_prompt, int64_t ranks);
/* Mean nll (nats) per target token over d, batches of up to batch_tokens rows (<= 0: auto). nll[n_samples], targets[n_samples]: per
 * sample sums and counts, or NULL. Shows progress for long sets when label is not NULL. Ranks (comm; NULL: this one alone) take
 * batches in turn and all get the mean; nll and targets are then NULL. */
/* INTERRUPTED once gr_interrupt was called, here or on another rank; the same holds below. FAILED: a loss is not finite. */
graft_status gr_evaluate(gr_model *m, const gr_dataset *d, int64_t batch_tokens, gr_comm *comm, const char *label, double *mean_nll,
                         double *nll, int64_t *targets, graft_error *err);

typedef struct gr_match_options {
    int32_t end_id;             /* as in gr_prompts */
    int64_t max_tokens;         /* of an answer */
    const char *label;          /* of the progress shown, NULL: none */
    gr_completion *completions; /* [n_samples] the texts (gr_completions_release frees), or NULL */
    uint8_t *matches;           /* [n_samples] 1 or 0, or NULL */
    gr_comm *comm;              /* ranks that all come here, NULL: this one alone; completions and matches are then NULL */
} gr_match_options;

/* Share (0..1) of samples whose greedy completion of everything before the last answer matches that answer (gr_exact_match). Ranks
 * share the samples where each has all weights; all get the score. */
graft_status gr_evaluate_exact_match(gr_model *m, const gr_tokenizer *t, const gr_dataset *d, const gr_match_options *o,
                                     double *score, graft_error *err);

#endif
