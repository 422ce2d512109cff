/* learn_impl.h - inside of core/text: a learner on its way from texts to pieces: words counted (learn_words.c) -> words of tokens
 * (learn_corpus.c) -> pairs merged (learn_pairs.c). */
#ifndef GR_LEARN_IMPL_H
#define GR_LEARN_IMPL_H

#include "core/text/encode.h"
#include "core/text/learn.h"
#include "core/text/scripts.h"

enum { GR_LEARN_PARTS = 16 }; /* words and pairs lie in so many parts by their hash, whatever the threads */

/* ---- learn_words.c ---- */

typedef struct gr_bag_word {
    int64_t start, count; /* in the bag's text */
    uint64_t hash;
    int32_t len;
} gr_bag_word;
typedef struct gr_bag { /* words with their counts */
    gr_str text;
    gr_bag_word *words;
    int64_t n, capacity;
    uint32_t *slots; /* index + 1, 0: empty */
    uint64_t mask;
} gr_bag;
bool gr_bag_add(gr_bag *b, const char *word, int32_t len, uint64_t hash, int64_t count);
void gr_bag_release(gr_bag *b);

typedef struct gr_learn_worker {
    gr_learner *l;
    gr_bag bags[GR_LEARN_PARTS];
    uint8_t *flags;
    int64_t flags_capacity;
    gr_scratch scratch;
} gr_learn_worker;

/* Per byte of a word. */
enum { GR_LEARN_IN = 1, GR_LEARN_CUT = 2 }; /* of a character that pieces may have; no piece has both this byte and the last */
/* Sets flags[0 .. len) of word, valid UTF-8; false when out of memory. */
bool gr_learn_flags(gr_learn_worker *w, const char *word, int64_t len);

/* ---- learn_corpus.c ---- */

typedef struct gr_learn_word {
    int32_t *tokens;
    int64_t count;
    int32_t n;
} gr_learn_word;

typedef struct gr_symbols { /* the bytes of all tokens, old and new */
    const char **text;
    int32_t *len;
    int64_t n, capacity;
} gr_symbols;

struct gr_learner {
    const gr_tokenizer *base;
    gr_learn_options o;
    bool spm;
    gr_learn_worker *workers;
    int n_workers;
    uint8_t scripts[65536];

    int32_t *character_ids; /* [0x110000] SentencePiece: id of a character's new piece, 0: none */
    gr_arena arena;         /* texts of symbols */
    gr_symbols symbols;
    struct gr_corpus_part {
        int32_t *tokens;
        gr_learn_word *words;
        int64_t n_tokens, tokens_capacity, n_words, words_capacity;
        int64_t total, alone; /* tokens, each as often as it occurs; those that are a word */
        bool failed;
    } parts[GR_LEARN_PARTS];
    gr_learn_word *words; /* [n_words] of all parts; two tokens at least */
    int64_t n_words;
};

/* The alphabet, then words of tokens. */
graft_status gr_learn_corpus(gr_learner *l, struct gr_threads *threads, gr_learned *out, graft_error *err);
bool gr_symbols_add(gr_symbols *s, const char *text, int32_t len);
/* Appends a piece to out, with its text as the vocabulary has it. */
bool gr_learned_add(gr_learned *out, const gr_learner *l, const char *raw, int32_t len, int32_t left, int32_t right);

/* ---- learn_pairs.c ---- */

graft_status gr_learn_pairs(gr_learner *l, struct gr_threads *threads, gr_learned *out, graft_error *err);

#endif
