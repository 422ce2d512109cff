/* rows.h - the second segment of an embedding or a head: rows of some tokens that stand in place of the file's, as float, and may
 * be trained while all others are frozen. The model has the slots, the decoder does what they say. A tied head has the embedding's.
 * An embedding takes a row from one segment or the other. A head whose segment is a range of tokens is a product of up to three
 * members (file | segment | file); of other tokens, the segment is a product of its own, whose columns are written over those of
 * the whole. */
#ifndef GR_ROWS_H
#define GR_ROWS_H

#include "core/base/base.h"
#include "kernels/kernels.h"

typedef struct gr_segment {
    int64_t n;          /* rows, 0: there is no segment */
    const int32_t *ids; /* [n] their tokens, ascending; on the host, borrowed */
    int32_t *place;     /* of the embedding: [V] a token's row here, -1: it has the file's; on the host */
    int32_t *columns;   /* of a head whose tokens are no range: [n] ids, device memory */
    gr_linear linear;   /* w [n,C] float (data NULL: planned alone), dw */
} gr_segment;

typedef struct gr_rows_values { /* [n,C] device memory; value NULL: the shape alone; grad NULL: frozen */
    const int32_t *ids;
    int64_t n;
    float *value, *grad;
} gr_rows_values;

struct gr_model;
/* Rows of the embedding (with a tied head: of both), or of an untied head. The values stay the caller's and must outlive the
 * attachment. BAD_USAGE where there are such rows already. Forms are given up, as in gr_model_unplace. */
graft_status gr_model_attach_rows(struct gr_model *m, bool head, const gr_rows_values *rows, graft_error *err);
void gr_model_detach_rows(struct gr_model *m);
/* The head's products over its segments. For model.c, when the weights came to the device. */
void gr_model_split_head(struct gr_model *m);

#endif
