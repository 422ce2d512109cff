/* batch.h - the flat batch: whole samples one after the other, no padding; attention is block-diagonal by offsets. */
#ifndef GR_BATCH_H
#define GR_BATCH_H

#include "core/data/dataset.h"

typedef struct gr_batch {
    int64_t n;          /* tokens (rows) */
    int32_t *tokens;    /* [n] input ids */
    int32_t *targets;   /* [n] the id that row should predict (the next token), valid where weight != 0 */
    float *weight;      /* [n] 0: not trained; else the weight of the row's target in the loss */
    int32_t *positions; /* [n] from 0 in each sequence */
    uint64_t *row_key;  /* [n] randomness key of the row: a hash of (sample, position, epoch), for dropout */
    int64_t n_seqs;
    int64_t *offset;                /* [n_seqs+1] */
    int64_t n_targets;              /* rows with weight != 0 */
    int64_t capacity, seq_capacity; /* internal, as the next */
    gr_tokens tokens_read;
} gr_batch;

/* Fill a zeroed or used batch from samples idx[0..n_samples) of d (memory grows as needed and is reused). A sample is one sequence,
 * and one more for each GR_TARGET_START in it. */
graft_status gr_batch_fill(gr_batch *b, const gr_dataset *d, const int64_t *idx, int64_t n_samples, int64_t epoch,
                           graft_error *err);
/* Append one sequence of given ids; target[i] is a gr_target: LEARNED is predicted by row i-1. target may be NULL. */
graft_status gr_batch_append(gr_batch *b, const int32_t *ids, const uint8_t *target, int64_t n, uint64_t key, graft_error *err);
void gr_batch_clear(gr_batch *b);
void gr_batch_release(gr_batch *b);

#endif
