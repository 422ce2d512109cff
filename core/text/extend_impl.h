/* extend_impl.h - the pieces and merges that are put after a tokenizer's own. Inside of core/text. */
#ifndef GR_TEXT_EXTEND_IMPL_H
#define GR_TEXT_EXTEND_IMPL_H

#include "core/text/extend.h"
#include "core/text/impl.h"

typedef struct gr_new_piece {
    const char *raw; /* as gr_piece.raw of the base's kind; in the arena */
    int32_t len;
    bool asked; /* the other vocabulary has it */
} gr_new_piece;

typedef struct gr_new_merge {
    int32_t left, right, id;
} gr_new_merge;

typedef struct gr_growth {
    const gr_tokenizer *t; /* the base */
    int64_t first_new;     /* id of pieces[0] */
    gr_arena arena;
    gr_new_piece *pieces; /* [n] */
    int64_t n, capacity;
    gr_new_merge *merges; /* [n_merges], byte-level; SentencePiece's are every way to make a piece of two */
    int64_t n_merges, merge_capacity;
    gr_table by_raw;     /* pieces */
    gr_pair_table pairs; /* merges */
    int64_t table_room, pair_room;
    gr_table wanted; /* the pieces that the other vocabulary asks for, by their raw form */
} gr_growth;

/* Put raw[len] after the pieces, with what merges need besides; at most max pieces in all. *fate: TAKEN, UNREACHABLE or LEFT.
 * False when out of memory. */
bool gr_growth_add(gr_growth *g, const char *raw, int64_t len, int64_t max, gr_vocab_fate *fate);
/* The same by the merge that the other vocabulary has, of the ids of two halves; nothing when these merge already. */
bool gr_growth_add_merge(gr_growth *g, const char *raw, int64_t len, int32_t left, int32_t right);
int32_t gr_growth_find(const gr_growth *g, const char *raw, int64_t len); /* id of the base's or a new piece, -1 */
void gr_growth_release(gr_growth *g);

/* BAD_INPUT where an added token that t leaves out has an id that new pieces would get: the base's files would still say so. */
graft_status gr_vocab_check_ids(const gr_tokenizer *t, graft_error *err);
/* The score of the next new piece: below the one before, as a float too. */
double gr_next_score(double score);
/* write_extended.c: tokenizer.json and tokenizer.model of the folder of x's base, with x's new pieces, into folder. */
graft_status gr_write_extended(const gr_tokenizer *x, const char *folder, graft_error *err);

#endif
