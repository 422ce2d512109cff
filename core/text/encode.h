/* encode.h - the stages from text to ids: normalise, pre-tokenise, model, and what is common to them. Inside of core/text. */
#ifndef GR_TEXT_ENCODE_H
#define GR_TEXT_ENCODE_H

#include "core/text/encode_cache.h"
#include "core/text/impl.h"

/* Memory of one encode call. */
typedef struct gr_scratch {
    gr_word_cache *cache; /* of the tokenizer's pool */
    gr_str repaired, normal[2], words;
    struct gr_symbol *symbols;
    int64_t symbols_capacity;
    struct gr_heap_item *heap;
    int64_t heap_capacity;
    struct gr_lattice_node *nodes;
    int64_t nodes_capacity;
    struct gr_merged *merged;
    int64_t merged_capacity;
} gr_scratch;

/* encode_normalize.c: the steps over text; *out points into scratch (or at text when there is nothing to do). */
bool gr_normalize(const gr_tokenizer *t, gr_scratch *s, const char *text, int64_t len, const char **out, int64_t *out_len);
/* charsmap_build.c: SentencePiece's normalisation nmt_nfkc as a character map, appended to out; false when out of memory. */
bool gr_charsmap_nfkc(gr_str *out);
graft_status gr_charsmap_set(gr_tokenizer *t, const char *blob, int64_t len, const char *path, graft_error *err);

/* encode_pretokenize.c: bytes of the word that text[0..len) starts with, len > 0. */
int64_t gr_word_length(const gr_tokenizer *t, const char *text, int64_t len);
/* A regular expression of a tokenizer.json's Split; GR_WORDS_NONE when unknown. */
gr_word_rule gr_word_rule_from_regex(const char *regex);
const char *gr_word_rule_regex(gr_word_rule rule);
#define GR_PRETOK_DEFAULT "default" /* GGUF's name for files that name none */
/* GGUF's tokenizer.ggml.pre: sets words, split_digits, the NFC step, ignore_merges, what llama.cpp takes for
 * add_bos_token, and info.pre; false when unknown. */
bool gr_pretok_from_name(gr_tokenizer *t, const char *name);
/* The name that GGUF has for t's settings; "" when there is none. */
const char *gr_pretok_name(const gr_tokenizer *t);
char *gr_pretok_known(void); /* every name, for messages; owned, NULL when out of memory */

/* The models, encode_bpe.c and encode_unigram.c: append the ids of a word (valid UTF-8, not empty). False when out of memory. */
bool gr_bpe_encode(const gr_tokenizer *t, gr_scratch *s, const char *word, int64_t len, gr_ids *ids);
bool gr_unigram_encode(const gr_tokenizer *t, gr_scratch *s, const char *word, int64_t len, gr_ids *ids);
/* By merges alone: one segment, no cache. */
bool gr_bpe_merge(const gr_tokenizer *t, gr_scratch *s, const char *text, int64_t len, gr_ids *ids);
/* What the model gives for text[len] that it has no piece for: bytes, the unknown token, or nothing. */
bool gr_push_unknown(const gr_tokenizer *t, const char *text, int64_t len, bool after_unknown, gr_ids *ids);

/* encode.c: added tokens, and all stages in order. */
typedef struct gr_match {
    int64_t start, end; /* in bytes, stripped whitespace included */
    int64_t at;         /* where the token's own text starts */
    int32_t id;
    bool special;
} gr_match;
/* The next added token in text[from..len), leftmost and longest; false when there is none. */
bool gr_added_next(const gr_tokenizer *t, const gr_prefix_set *set, const char *text, int64_t len, int64_t from, bool special,
                   gr_match *m);
/* gr_tokenizer_encode with control tokens as ids where they lie wholly within a trusted range (in order, [n_trusted]; NULL:
 * everywhere). text is valid UTF-8. layout (may be NULL) is appended to: which stretch of text became which ids. */
typedef struct gr_range {
    int64_t start, end;
} gr_range;
typedef struct gr_stretch {
    int64_t start, end; /* of the text, in bytes */
    int64_t id;         /* index of its first id; the next stretch's is the end */
    bool added;         /* one added token, with the white space that it takes */
} gr_stretch;
typedef struct gr_layout {
    gr_stretch *items;
    int64_t n, capacity;
    int64_t n_plain; /* control tokens that lay outside the trusted ranges and became plain text; added to */
} gr_layout;
graft_status gr_tokenizer_encode_trusted(const gr_tokenizer *t, const char *text, int64_t len, const gr_range *trusted,
                                         int64_t n_trusted, gr_ids *ids, gr_layout *layout, graft_error *err);

/* The words of a text as they come to the model: normalised, cut by the pre-tokenizer, valid UTF-8, never empty. Control tokens are
 * text; other added tokens are left out. word returns false when out of memory. */
typedef bool gr_word_fn(void *context, const char *word, int64_t len);
graft_status gr_tokenizer_words(const gr_tokenizer *t, const char *text, int64_t len, gr_word_fn *word, void *context,
                                graft_error *err);
/* What merging makes of a part of a word, as bytes and ids (-1: not in the vocabulary), before byte fallback. *out [returned n] is
 * valid until s is used again; -1 when out of memory. */
typedef struct gr_merged {
    int32_t start, end, id;
} gr_merged;
int64_t gr_bpe_split(const gr_tokenizer *t, gr_scratch *s, const char *text, int64_t len, const gr_merged **out);

#endif
