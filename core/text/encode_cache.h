/* encode_cache.h - short words and the ids that they became. A cache serves one encoding at a time; between two it waits in its
 * tokenizer's pool, so that threads share nothing that one of them writes. A word's place follows from its hash and the newest word
 * keeps it: the size is fixed, and what was forgotten is merged again. So do pairs of pieces whose text must be looked up to know
 * what they make. */
#ifndef GR_ENCODE_CACHE_H
#define GR_ENCODE_CACHE_H

#include "core/text/utf8.h"

enum { GR_CACHED_BYTES = 16, GR_CACHED_IDS = 3, GR_CACHE_BITS = 14, GR_CACHE_PAIR_BITS = 14 };

typedef struct gr_word_key {
    uint64_t low, high;
    uint8_t tag; /* its length, and whose ids they are; never 0 */
} gr_word_key;

typedef struct gr_cached_word {
    uint64_t low, high;
    int32_t ids[GR_CACHED_IDS];
    uint8_t tag, n; /* tag 0: empty */
} gr_cached_word;

typedef struct gr_cache_line { /* the newest first */
    gr_cached_word words[2];
} gr_cache_line;
_Static_assert(sizeof(gr_cache_line) == 64, "one line of the CPU's cache");

typedef struct gr_cached_pair {
    uint64_t key; /* left << 32 | right, and 1 more: 0 is none */
    int32_t rank, id;
} gr_cached_pair;

typedef struct gr_word_cache {
    gr_cache_line lines[1 << GR_CACHE_BITS];
    gr_cached_pair pairs[1 << GR_CACHE_PAIR_BITS];
} gr_word_cache;

typedef struct gr_cache_pool gr_cache_pool;
gr_cache_pool *gr_cache_pool_new(void);
void gr_cache_pool_free(gr_cache_pool *pool);
gr_word_cache *gr_cache_take(gr_cache_pool *pool); /* NULL when out of memory */
void gr_cache_give(gr_cache_pool *pool, gr_word_cache *cache);

static inline uint32_t gr_read4(const char *s) {
    uint32_t v;
    memcpy(&v, s, 4);
    return v;
}

/* word[0..len), 0 < len <= GR_CACHED_BYTES, as numbers: parts that overlap, so that nothing beyond the word
 * is read. With the length they are the word. */
static inline gr_word_key gr_word_key_of(const char *word, int64_t len, uint8_t tag) {
    if (len >= 8) return (gr_word_key){gr_read8(word), gr_read8(word + len - 8), tag};
    if (len >= 4) return (gr_word_key){gr_read4(word) | (uint64_t)gr_read4(word + len - 4) << 32, 0, tag};
    const uint8_t *s = (const uint8_t *)word;
    return (gr_word_key){s[0] | (uint64_t)s[len / 2] << 8 | (uint64_t)s[len - 1] << 16, 0, tag};
}

static inline gr_cache_line *gr_cache_line_of(gr_word_cache *cache, const gr_word_key *k) {
    uint64_t h = (k->low + k->tag) * 0x9E3779B97F4A7C15u ^ k->high * 0xC2B2AE3D27D4EB4Fu;
    return &cache->lines[(h ^ h >> 32) * 0x9E3779B97F4A7C15u >> (64 - GR_CACHE_BITS)];
}

static inline const gr_cached_word *gr_cache_find(const gr_cache_line *line, const gr_word_key *k) {
    for (int i = 0; i < GR_LEN(line->words); i++) {
        const gr_cached_word *w = &line->words[i];
        if (w->low == k->low && w->high == k->high && w->tag == k->tag) return w;
    }
    return NULL;
}

static inline gr_cached_pair *gr_cache_pair_of(gr_word_cache *cache, uint64_t key) {
    return &cache->pairs[key * 0x9E3779B97F4A7C15u >> (64 - GR_CACHE_PAIR_BITS)];
}

/* n <= GR_CACHED_IDS */
static inline void gr_cache_add(gr_cache_line *line, const gr_word_key *k, const int32_t *ids, int64_t n) {
    line->words[1] = line->words[0];
    line->words[0] = (gr_cached_word){.low = k->low, .high = k->high, .tag = k->tag, .n = (uint8_t)n};
    memcpy(line->words[0].ids, ids, (size_t)n * sizeof *ids);
}

#endif
