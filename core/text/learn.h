/* learn.h - learning a vocabulary from text: byte-pair encoding (Sennrich et al. 2016) over the tokens of a tokenizer, which may
 * know bytes alone. What is learned is put after the tokenizer's own merges: those keep their priority, text without the new pieces
 * keeps its ids, and every new piece is reached, since it was learned from what the tokenizer makes of text.
 *
 * The next piece is the pair of neighbours that occurs most often; among equals the one whose piece has the fewest bytes, then the
 * lowest bytes, then the shorter left part. Words are counted, sums are whole numbers: neither threads nor the order of texts
 * change a piece. */
#ifndef GR_LEARN_H
#define GR_LEARN_H

#include "core/text/tokenizer.h"

struct gr_threads;

typedef struct gr_learn_options {
    int64_t size;       /* new pieces, characters among them */
    int64_t there;      /* pieces of the base that the asker's --size counts as well: for messages */
    double coverage;    /* SentencePiece: the share of all characters that have pieces; the others stay bytes */
    uint64_t only;      /* bits of scripts (scripts.h): no piece has other characters; 0: all */
    int64_t max_length; /* of a piece in characters */
    int64_t min_count;  /* how often a piece must come up to be made */
    bool split_digits;  /* a digit stays alone */
} gr_learn_options;

/* A new piece, as it is written in the vocabulary. Its id is that of the first piece plus its index. */
typedef struct gr_learned_piece {
    const char *text;
    int32_t len;
    int32_t left, right; /* ids of what it joins; -1: a character */
} gr_learned_piece;

typedef struct gr_learned {
    gr_learned_piece *pieces; /* [n] characters, the most frequent first, then merges in order */
    int64_t n, n_characters, first_id;
    int64_t before, after; /* tokens of the text that was learned from, without and with the new pieces */
    gr_arena arena;        /* owns the texts */
} gr_learned;
void gr_learned_release(gr_learned *l);

typedef struct gr_learner gr_learner;
/* base stays the caller's and must outlive the learner. A unigram tokenizer has no merges to go on from: BAD_INPUT. */
graft_status gr_learner_new(gr_learner **out, const gr_tokenizer *base, const gr_learn_options *o, int n_workers, graft_error *err);
/* Count a text; for SentencePiece each line is one. Safe from threads of different numbers (0 .. n_workers-1). */
graft_status gr_learner_add(gr_learner *l, int worker, const char *text, int64_t len, graft_error *err);
/* Learn from what was counted, once; shows progress. BAD_INPUT where the text has fewer pieces than asked for (it says how many),
 * BAD_USAGE where it has more characters. */
graft_status gr_learner_run(gr_learner *l, struct gr_threads *threads, gr_learned *out, graft_error *err);
void gr_learner_free(gr_learner *l);

/* ---- the tokenizer to start from, and the file that holds both (learn_write.c) ---- */

typedef struct gr_vocab {
    gr_tokenizer *tokenizer; /* owned where it was made here */
    bool owned, spm;         /* a SentencePiece model; else a tokenizer.json */
    char *bytes;             /* owned: the file that the tokenizer comes from */
    int64_t n;
} gr_vocab;
void gr_vocab_release(gr_vocab *v);

typedef struct gr_vocab_start {
    bool spm, split_digits, nfkc;
    const char *const *special; /* control tokens beside SentencePiece's <unk> <s> </s> or <|endoftext|> */
    int n_special;
} gr_vocab_start;
/* A vocabulary of bytes alone. */
graft_status gr_vocab_start_new(gr_vocab *v, const gr_vocab_start *o, graft_error *err);
/* A model's tokenizer, which stays the caller's. BAD_INPUT where it has added tokens that no vocabulary file has. */
graft_status gr_vocab_of(gr_vocab *v, gr_tokenizer *t, graft_error *err);
/* The bytes of v's file with the new pieces, *out owned: a tokenizer.json with vocabulary and merges added, or a .model with pieces
 * of falling scores. */
graft_status gr_vocab_with(const gr_vocab *v, const gr_learned *learned, char **out, int64_t *n, graft_error *err);

#endif
