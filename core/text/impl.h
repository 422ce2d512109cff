/* impl.h - inside of core/text: the tokenizer's data and the stages of encoding.
 *
 * text -> repair UTF-8 -> split at added tokens -> normalise -> split at normalised added tokens ->
 * pre-tokenise -> model -> ids
 *
 * A piece has two forms: text (as stored in the vocabulary) and raw (the bytes that it stands for in the
 * model: byte-level BPE undoes GPT-2's printable alphabet, the others keep the text). Encoding looks raw
 * forms up, decoding writes them. */
#ifndef GR_TEXT_IMPL_H
#define GR_TEXT_IMPL_H

#include <stdatomic.h>

#include "core/text/tokenizer.h"
#include "core/text/utf8.h"
#include "core/text/word_cache.h"

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

/* ---- vocab.c ---- */

/* Bytes to id; keys are borrowed. */
typedef struct gr_table {
    struct gr_table_slot *slots;
    uint64_t mask;
} gr_table;
typedef struct gr_table_slot {
    const char *key;
    int32_t len, id; /* len -1: empty */
} gr_table_slot;
bool gr_table_init(gr_table *t, int64_t n_keys);
void gr_table_add(gr_table *t, const char *key, int32_t len, int32_t id); /* the first of equal keys stays */
int32_t gr_table_find(const gr_table *t, const char *key, int64_t len);   /* -1 when absent */

/* A sorted set of byte strings, walked byte by byte from a place in a text. */
typedef struct gr_prefix_key {
    const char *text;
    int32_t len, value;
} gr_prefix_key;
typedef struct gr_prefix_set {
    gr_prefix_key *keys;
    int32_t n, first[257]; /* keys[first[b] .. first[b+1]) start with byte b */
    int only;              /* the byte that all keys start with; -1 when they differ */
} gr_prefix_set;
typedef struct gr_prefix_walk {
    int32_t low, high, depth;
} gr_prefix_walk;
void gr_prefix_sort(gr_prefix_set *s); /* after keys and n were filled; no empty keys */
/* Start with a zeroed walk. False when no key goes on with byte; *value is that of the key ending here, -1
 * when none does. */
bool gr_prefix_step(const gr_prefix_set *s, gr_prefix_walk *w, uint8_t byte, int32_t *value);

/* Pair of adjacent ids to the rank of its merge and the merged id. */
enum { GR_NO_RANK = INT32_MAX };
typedef struct gr_pair {
    uint64_t key; /* left << 32 | right; UINT64_MAX: empty */
    int32_t rank, id;
} gr_pair;
typedef struct gr_pair_table {
    gr_pair *slots;
    uint64_t mask;
} gr_pair_table;
bool gr_pairs_init(gr_pair_table *t, int64_t n_pairs);
void gr_pairs_add(gr_pair_table *t, int32_t left, int32_t right, int32_t rank, int32_t id); /* the later of equal pairs wins */
/* An empty slot, of GR_NO_RANK and id -1, where a pair (or an id of -1) is unknown. Whether it is known no
 * branch can foresee, so this has none for it. */
static inline const gr_pair *gr_pairs_find(const gr_pair_table *t, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right, h = key * 0x9E3779B97F4A7C15u;
    uint64_t i = (h ^ h >> 32) & t->mask;
    while ((t->slots[i].key != UINT64_MAX) & (t->slots[i].key != key)) i = (i + 1) & t->mask;
    return &t->slots[i];
}

/* What stands side by side in some piece: two characters, or a part of one and the next, or two parts.
 * Between others no merge ever joins anything. Bits of hashes: where two pairs share one, something seems
 * joined that is not, which changes no id. */
enum { GR_PART = 0x110000 }; /* + a byte, in a character's place: the byte of a part at the border */
typedef struct gr_joints {
    uint64_t *pairs;
    int shift;            /* a hash's high bits are the place */
    uint64_t parts[1024]; /* [last byte << 8 | first byte] at the border: there are pairs with a part here */
} gr_joints;
static inline uint64_t gr_joint_place(const gr_joints *j, int32_t left, int32_t right) {
    return ((uint64_t)left << 21 | (uint64_t)right) * 0x9E3779B97F4A7C15u >> j->shift;
}
static inline bool gr_has_joint(const gr_joints *j, int32_t left, int32_t right) {
    uint64_t place = gr_joint_place(j, left, right);
    return j->pairs[place / 64] >> place % 64 & 1;
}
/* Has a piece a part of one of these characters (-1: invalid) and something of the other? last and first: the
 * bytes at the border. */
static inline bool gr_parts_joined(const gr_joints *j, int32_t left, int32_t right, uint8_t last, uint8_t first) {
    if ((left | right) < 0) return true;
    if (!(j->parts[last * 4 + first / 64] >> first % 64 & 1)) return false;
    return gr_has_joint(j, left, GR_PART + first) || gr_has_joint(j, GR_PART + last, right) ||
           gr_has_joint(j, GR_PART + last, GR_PART + first);
}
static inline bool gr_joined(const gr_joints *j, int32_t left, int32_t right, uint8_t last, uint8_t first) {
    return gr_parts_joined(j, left, right, last, first) || gr_has_joint(j, left, right);
}

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
    int32_t *characters;    /* [65536], byte-level: the piece that a character of several bytes always becomes
                               where no piece has a part of it and something else; -1: none */
    gr_cache_pool *caches;  /* of encodings' words; BPE alone */
    gr_prefix_set prefixes; /* unigram: every piece of by_raw */
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
} gr_scratch;

/* ---- building (tokenizer.c) ---- */

gr_tokenizer *gr_tokenizer_new(int64_t n_vocab); /* NULL when out of memory */
void *gr_text_alloc(gr_tokenizer *t, int64_t n, int64_t size);
bool gr_is_byte_name(const char *s, int64_t n); /* "<0x41>" */
/* Copies text; a later call with the same id replaces the piece. */
bool gr_piece_set(gr_tokenizer *t, int64_t id, const char *text, int64_t len, double score, gr_piece_type type);
/* Once pieces, merges' texts, added tokens and settings are there: builds the tables. path is for
 * messages. */
graft_status gr_tokenizer_finish(gr_tokenizer *t, const char *path, graft_error *err);

graft_status gr_tokenizer_from_json(gr_tokenizer **out, const char *folder, graft_error *err); /* tokenizer.json */
graft_status gr_tokenizer_from_spm(gr_tokenizer **out, const char *folder, graft_error *err);  /* tokenizer.model */
/* bytes of a ModelProto; path is for messages. */
graft_status gr_tokenizer_parse_spm(gr_tokenizer **out, const void *bytes, int64_t n, const char *path, graft_error *err);
/* text of a tokenizer.json. */
graft_status gr_tokenizer_parse_json(gr_tokenizer **out, const char *text, int64_t n, const char *path, graft_error *err);
/* bos, eos, chat template ... from tokenizer_config.json, special_tokens_map.json and chat_template.jinja,
 * where they are. */
graft_status gr_tokenizer_read_config(gr_tokenizer *t, const char *folder, graft_error *err);

/* ---- stages ---- */

/* normalize.c: the steps over text; *out points into scratch (or at text when there is nothing to do). */
bool gr_normalize(const gr_tokenizer *t, gr_scratch *s, const char *text, int64_t len, const char **out, int64_t *out_len);
graft_status gr_charsmap_set(gr_tokenizer *t, const char *blob, int64_t len, const char *path, graft_error *err);

/* pretok.c: bytes of the word that text[0..len) starts with, len > 0. */
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

/* The models: append the ids of a word (valid UTF-8, not empty). False when out of memory. */
bool gr_bpe_encode(const gr_tokenizer *t, gr_scratch *s, const char *word, int64_t len, gr_ids *ids);     /* bpe.c */
bool gr_unigram_encode(const gr_tokenizer *t, gr_scratch *s, const char *word, int64_t len, gr_ids *ids); /* unigram.c */
/* Merge i is not outdone by another of the same pair. */
bool gr_merge_counts(const gr_tokenizer *t, int64_t i);
/* By merges alone: one segment, no cache. */
bool gr_bpe_merge(const gr_tokenizer *t, gr_scratch *s, const char *text, int64_t len, gr_ids *ids);
/* bpe_tables.c: joints and characters, once pieces and merges are there. */
bool gr_bpe_tables(gr_tokenizer *t);
bool gr_push_unknown(const gr_tokenizer *t, const char *text, int64_t len, bool after_unknown, gr_ids *ids);

/* encode.c */
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

/* GPT-2's printable alphabet for bytes. */
void gr_byte_alphabet(uint16_t to_point[256]);

#endif
