/* extend.h - a model with more rows in its embedding and head: the base of an extended tokenizer (core/text/extend.h), written as a
 * base model, read back and checked. */
#ifndef GR_EXTEND_H
#define GR_EXTEND_H

#include "adapters/merge.h"

typedef enum gr_extend_init {
    GR_EXTEND_PIECES, /* a new row is the mean of the rows of the old tokens that its piece was spelt with */
    GR_EXTEND_MEAN,   /* ... of all tokens' rows */
} gr_extend_init;

typedef struct gr_extend_options {
    gr_merge_options file; /* bf16 for a quantised base, unless a type is named */
    gr_extend_init init;
    int64_t multiple; /* rows are padded to a multiple of it; 0: not */
} gr_extend_options;

typedef struct gr_extend_report {
    gr_merge_report written;          /* its logits: those of the base's tokens after the base's tokens */
    int64_t base_rows, rows, padding; /* rows of the embedding before and after; those without a token among the latter */
    double spelling;                  /* old tokens that a new piece was spelt with, on average */
} gr_extend_report;

/* m with the tokenizer x that extends its own: rows of old tokens stay, a new piece's row is as `init` says, in the embedding and,
 * where it is not tied, in the head. Rows that never had a token serve first (x's ids begin after the base's last token, not after
 * its last row). Padding rows that are new, and rows of old tokens that had none, are the mean of all tokens' rows: their logit is
 * the mean of all logits and thus never the largest, which that of a row of zeros can be. The model written says where its new ids
 * begin (gr_model_config.base_vocab). report may be NULL. */
graft_status gr_extend(gr_model *m, const gr_tokenizer *x, const gr_extend_options *o, const char *out_path,
                       gr_extend_report *report, graft_error *err);

#endif
