/* extend.h - a tokenizer with more pieces than it had: those of another vocabulary, after all that were there.
 *
 * The base keeps what it does: its pieces have their ids, its merges (its scores) come before all new ones, so a text becomes other
 * ids only where a new piece stands. New ids begin after the last token of the base, added tokens included
 * (gr_tokenizer_n_tokens): rows of the embedding that had no token are used first, and ids have no gap, as HF tokenizers and
 * llama.cpp want it.
 *
 * A piece of the other vocabulary is taken in the order in which that one uses it (merges: by rank; scores: the highest first). A
 * base with merges can only make a piece from what it spells it with, so merges are derived: the tokens that the base (with the new
 * pieces so far) makes of the piece, joined by a tree with as few further pieces as possible. Such intermediate pieces are new
 * pieces, too. */
#ifndef GR_TEXT_EXTEND_H
#define GR_TEXT_EXTEND_H

#include "core/text/tokenizer.h"

/* What became of the pieces of the other vocabulary. */
typedef enum gr_vocab_fate {
    GR_VOCAB_TAKEN,       /* new */
    GR_VOCAB_HAD,         /* the base has it */
    GR_VOCAB_CONTROL,     /* control, unknown, user-defined and unused pieces: no text of their own, or the other model's */
    GR_VOCAB_BYTE,        /* byte pieces: the base spells what it lacks in its own way */
    GR_VOCAB_PART,        /* a part of a character, of which a SentencePiece base has none */
    GR_VOCAB_NORMALIZED,  /* the base's normalizer makes another text of it, so that it never stands there */
    GR_VOCAB_CUT,         /* the base cuts words within it */
    GR_VOCAB_UNREACHABLE, /* no merges make it of what the base spells it with */
    GR_VOCAB_LEFT,        /* beyond the number of pieces asked for */
    GR_VOCAB_N_FATES
} gr_vocab_fate;

/* A word for each fate: "new", "already there" ... */
const char *gr_vocab_fate_name(gr_vocab_fate fate);

typedef struct gr_vocab_report {
    int64_t n_pieces; /* of the other vocabulary */
    int64_t fates[GR_VOCAB_N_FATES];
    char examples[GR_VOCAB_N_FATES][96]; /* the first few of each, quoted; "" where there is none */
    int64_t first_new;                   /* id */
    int64_t n_new;                       /* pieces appended: those taken and the intermediate ones */
    int64_t n_intermediate;              /* that the other vocabulary does not have, but merges need */
    int64_t n_merges;                    /* appended; 0 where scores decide */
    int64_t n_unproved;                  /* new pieces that encoding does not give for their own text: they are spelt otherwise */
    char unproved[96];                   /* examples */
} gr_vocab_report;

/* The vocabulary at path: a tokenizer.json, a SentencePiece .model, or whatever gr_tokenizer_open takes. */
graft_status gr_vocab_open(gr_tokenizer **out, const char *path, graft_error *err);

/* base with at most max_pieces (0: all) of more's pieces. *out borrows from base, which must outlive it; its files are base's with
 * the pieces in them (gr_tokenizer_save_hf, gr_tokenizer_save_gguf). BAD_INPUT for a unigram base, one with added tokens that
 * no vocabulary file has, and where nothing is new.
 * *report (not NULL) is filled in any case but for lack of memory. */
graft_status gr_vocab_extend(gr_tokenizer **out, const gr_tokenizer *base, const gr_tokenizer *more, int64_t max_pieces,
                             gr_vocab_report *report, graft_error *err);

int64_t gr_vocab_first_new(const gr_tokenizer *x); /* id */

/* Append the base's ids of the text of piece id (one of x's new ones) as the base spells it within a word. */
graft_status gr_vocab_spelling(const gr_tokenizer *x, int32_t id, gr_ids *ids, graft_error *err);

/* Does x, the extended base, keep what the base did? Each text's ids are the base's where none of them is new, and give the base's
 * text back where one is. FAILED with the text otherwise. The first takes one text and adds to the numbers of ids of both (may be
 * NULL), the second several hundred hard texts, the base's pieces and the added tokens. */
graft_status gr_vocab_check_text(const gr_tokenizer *x, const char *text, int64_t len, int64_t n_ids[2], graft_error *err);
graft_status gr_vocab_check(const gr_tokenizer *x, graft_error *err);

#endif
