/* impl.h - inside of core/text: a tokenizer's data, which the readers (read.h) fill, build.c completes, and the stages of encoding
 * (encode.h), decoding and the writers use.
 *
 * A piece has two forms: text (as stored in the vocabulary) and raw (the bytes that it stands for in the model: byte-level BPE
 * undoes GPT-2's printable alphabet, the others keep the text). Encoding looks raw forms up, decoding writes them. */
#ifndef GR_TEXT_IMPL_H
#define GR_TEXT_IMPL_H

#include <stdatomic.h>
#include <stdio.h>

#include "core/text/tables.h"
#include "core/text/tokenizer.h"
#include "core/text/utf8.h"

#define GR_META_SPACE "\xe2\x96\x81" /* U+2581, SentencePiece's visible space */

/* ---- utf8.c: classes of characters ---- */

enum {
    GR_CLASS_LETTER = 1,
    GR_CLASS_NUMBER = 2,
    GR_CLASS_SPACE = 4,
    GR_CLASS_MARK = 8,
    GR_CLASS_WORD_EXTRA = 16, /* connectors such as '_' */
    GR_CLASS_PUNCT = 32
};
uint8_t gr_char_class_compute(uint32_t point); /* slow; gr_char_class looks up */

/* ---- the tokenizer ---- */

typedef struct gr_piece {
    const char *text, *raw;
    int32_t len, raw_len;
    double score;
    gr_piece_type type;
    bool in_text; /* what plain text may become */
} gr_piece;

typedef struct gr_merge {
    const char *text; /* "left right" */
    int32_t len, left_len;
} gr_merge;

typedef struct gr_added {
    const char *text;
    int32_t len, id;
    bool special, normalized, lstrip, rstrip, single_word;
} gr_added;

typedef enum gr_norm_kind {
    GR_NORM_NFC,
    GR_NORM_NFD,
    GR_NORM_NFKC,
    GR_NORM_NFKD,
    GR_NORM_PREPEND,    /* to, when the text is not empty */
    GR_NORM_REPLACE,    /* from -> to */
    GR_NORM_SPACE_RUNS, /* two or more spaces -> to */
    GR_NORM_STRIP_LEFT,
    GR_NORM_STRIP_RIGHT,
    GR_NORM_CHARSMAP,     /* HF Precompiled: by grapheme, shortest match */
    GR_NORM_CHARSMAP_SPM, /* SentencePiece: longest match */
    GR_NORM_SPM_SPACES    /* drop spaces at both ends, runs become one */
} gr_norm_kind;

typedef struct gr_norm_step {
    gr_norm_kind kind;
    const char *from, *to;
} gr_norm_step;

typedef enum gr_word_rule {
    GR_WORDS_NONE,
    GR_WORDS_GPT2,
    GR_WORDS_LLAMA3,
    GR_WORDS_QWEN2,
    GR_WORDS_DEFAULT /* llama.cpp's, for a GGUF that names no pre-tokenizer */
} gr_word_rule;
typedef enum gr_prepend { GR_PREPEND_NEVER, GR_PREPEND_FIRST, GR_PREPEND_ALWAYS } gr_prepend;
typedef enum gr_lead { GR_LEAD_KEEP, GR_LEAD_DROP_ONE, GR_LEAD_DROP_FIRST_PIECE } gr_lead; /* leading space when decoding */

struct gr_tokenizer {
    gr_tokenizer_info info;
    const char *carried; /* gr_tokenizer_carry: what files get instead of info.chat_template and info.eos; NULL: nothing */
    int32_t carried_end, carried_eos;
    const gr_tokenizer
        *extends;         /* the tokenizer that this one has more pieces than (extend.h), whose strings it shares; else NULL */
    int64_t first_new;    /* of those */
    const char *left_out; /* of the added tokens that the vocabulary lacks the one with the highest id; NULL: none */
    int64_t left_out_id;
    atomic_bool *told_drops; /* in the arena: bytes without a piece were spoken of */
    gr_arena arena;          /* every string and array below, unless said otherwise */

    gr_piece *pieces;         /* [info.n_vocab] */
    gr_table by_text, by_raw; /* by_raw: pieces that plain text may become */
    gr_merge *merges;
    int64_t n_merges;
    gr_pair_table pairs;
    int32_t *ranks;        /* SentencePiece BPE without merges: rank of a piece by its score; NULL: pairs decide */
    int32_t byte_ids[256]; /* byte-level: a byte's piece; else the byte-fallback pieces; -1 when absent */
    gr_joints joints;
    int32_t *characters;          /* [65536]: the piece of a character; byte-level: that a character of several bytes always becomes
                               where no piece has a part of it and something else; -1: none */
    struct gr_cache_pool *caches; /* of encodings' words; BPE alone */
    gr_prefix_set prefixes;       /* unigram: every piece of by_raw */
    double min_score;
    bool first_merge_wins; /* of a pair listed twice: llama.cpp's way; HF takes the last */
    bool bytes_match;      /* HF's unigram: the text "<0x41>" is the byte piece of that name */
    bool byte_level, byte_fallback, fuse_unk;
    int32_t model_unk; /* what the model gives for characters that it lacks; -1: nothing */

    gr_added *added;
    int32_t n_added;
    gr_prefix_set added_raw, added_normalized;
    bool normalize_added; /* HF: normalised added tokens are to be normalised; SentencePiece has them so */

    gr_norm_step norm[8];
    int n_norm;
    const uint32_t *charsmap_trie; /* double array */
    int64_t charsmap_n;            /* its units */
    const char *charsmap_text;     /* NUL-separated replacements */
    int64_t charsmap_len;
    const char *charsmap_blob; /* as in the file, for saving */
    int64_t charsmap_blob_len;

    bool split_digits, prefix_space, split_whitespace, meta_spaces, meta_split;
    gr_prepend meta_prepend;
    gr_word_rule words;
    gr_lead lead;
    uint8_t classes[65536]; /* of the basic plane */
};

static inline uint8_t gr_char_class(const gr_tokenizer *t, uint32_t point) {
    return point < 65536 ? t->classes[point] : gr_char_class_compute(point);
}

/* Class of the character that s[0..n) starts with, n > 0, and its size. */
static inline uint8_t gr_class_at(const gr_tokenizer *t, const char *s, int64_t n, int *size) {
    *size = 1;
    if ((uint8_t)s[0] < 0x80) return t->classes[(uint8_t)s[0]];
    return gr_char_class(t, (uint32_t)gr_utf8_read(s, n, size));
}

/* What a row of a GGUF's embedding without a token is called; its type is GR_PIECE_UNUSED. Returns the length. */
enum { GR_PADDING_LEN = 32 };
static inline int gr_padding_name(char name[GR_PADDING_LEN], int64_t id) {
    return snprintf(name, GR_PADDING_LEN, "[PAD%lld]", (long long)id);
}

/* ---- building (build.c, build_bpe.c) ---- */

gr_tokenizer *gr_tokenizer_new(int64_t n_vocab); /* NULL when out of memory */
void *gr_text_alloc(gr_tokenizer *t, int64_t n, int64_t size);
bool gr_is_byte_name(const char *s, int64_t n); /* "<0x41>" */
/* Copies text; a later call with the same id replaces the piece. */
bool gr_piece_set(gr_tokenizer *t, int64_t id, const char *text, int64_t len, double score, gr_piece_type type);
/* Once pieces, merges' texts, added tokens and settings are there: builds the tables. path is for messages. */
graft_status gr_tokenizer_finish(gr_tokenizer *t, const char *path, graft_error *err);
/* Merge i is not outdone by another of the same pair. */
bool gr_merge_counts(const gr_tokenizer *t, int64_t i);
/* build_bpe.c: joints and characters, once pieces and merges are there. */
bool gr_bpe_tables(gr_tokenizer *t);
/* write_gguf.c: scores[n] for a BPE given by merges, which has none. */
void gr_scores_from_merges(const gr_tokenizer *t, int64_t n, float *scores);
/* GPT-2's printable alphabet for bytes. */
void gr_byte_alphabet(uint16_t to_point[256]);

#endif
