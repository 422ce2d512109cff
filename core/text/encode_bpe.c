/* Byte-pair encoding: symbols merge by rank, the leftmost first among equals, until no pair is known. A pair's rank comes from the
 * list of merges, or (SentencePiece models) from the score of the piece that both make. */
#include <stdlib.h>
#include <string.h>

#include "core/text/encode.h"

typedef struct gr_symbol {
    int32_t start, end;   /* bytes in the segment; start == end: merged away */
    int32_t prev, next;   /* -1 at the ends */
    int32_t id;           /* -1: not in the vocabulary */
    int32_t rank, merged; /* of the pair with the next symbol (few symbols) */
} gr_symbol;

typedef struct gr_heap_item {
    uint64_t order; /* rank << 32 | place of the left symbol */
    int32_t merged;
} gr_heap_item;

enum { FEW_SYMBOLS = 40, SEGMENT = 0x80 /* tag */ };

/* pair_rank by the text that both make, where scores decide. */
static int32_t text_rank(const gr_tokenizer *t, gr_word_cache *cache, const char *word, const gr_symbol *a, const gr_symbol *b,
                         int32_t *merged) {
    const bool known = cache && (a->id | b->id) >= 0; /* then their ids are their text */
    const uint64_t key = ((uint64_t)(uint32_t)a->id << 32 | (uint32_t)b->id) + 1;
    gr_cached_pair *pair = known ? gr_cache_pair_of(cache, key) : NULL;
    if (pair && pair->key == key) return *merged = pair->id, pair->rank;
    *merged = gr_table_find(&t->by_raw, word + a->start, b->end - a->start);
    const int32_t rank = *merged < 0 ? GR_NO_RANK : t->ranks[*merged];
    if (pair) *pair = (gr_cached_pair){key, rank, *merged};
    return rank;
}

/* Rank of the pair a b, GR_NO_RANK when it does not merge. */
static inline int32_t pair_rank(const gr_tokenizer *t, gr_word_cache *cache, const char *word, const gr_symbol *a,
                                const gr_symbol *b, int32_t *merged) {
    if (t->ranks) return text_rank(t, cache, word, a, b, merged);
    const gr_pair *pair = gr_pairs_find(&t->pairs, a->id, b->id);
    *merged = pair->id;
    return pair->rank;
}

static void add_symbol(gr_symbol *symbols, int32_t n, int32_t start, int32_t end, int32_t id) {
    symbols[n] = (gr_symbol){.start = start, .end = end, .prev = n - 1, .next = n + 1, .id = id};
}

/* Byte-level symbols: characters that are sure to become one piece, else bytes. */
static int32_t split_bytes(const gr_tokenizer *t, const char *text, int64_t len, gr_symbol *symbols) {
    const uint8_t *s = (const uint8_t *)text;
    int32_t n = 0;
    int size, next_size = 0;
    int32_t point = gr_utf8_read(text, len, &size), next;
    bool whole = true, next_whole; /* no piece has a part of the character and something before it */
    for (int32_t i = 0, end; i < len; i = end, point = next, size = next_size, whole = next_whole) {
        end = i + size;
        next = end < len ? gr_utf8_read(text + end, len - end, &next_size) : -1;
        next_whole = end == len || !gr_parts_joined(&t->joints, point, next, s[end - 1], s[end]);
        int32_t id = whole && next_whole && point >= 0x80 && point < 65536 ? t->characters[point] : -1;
        if (id >= 0) {
            add_symbol(symbols, n++, i, end, id);
            continue;
        }
        for (int32_t k = i; k < end; k++) add_symbol(symbols, n++, k, k + 1, t->byte_ids[s[k]]);
    }
    return n;
}

static int32_t split_characters(const gr_tokenizer *t, const char *text, int64_t len, gr_symbol *symbols) {
    int32_t n = 0;
    for (int32_t i = 0, size; i < len; i += size) {
        const int32_t point = gr_utf8_read(text + i, len - i, &size);
        const bool listed = t->characters && point >= 0 && point < 65536;
        add_symbol(symbols, n++, i, i + size, listed ? t->characters[point] : gr_table_find(&t->by_raw, text + i, size));
    }
    return n;
}

/* Few symbols: the ranks of all pairs in an array, the least searched for. */
static int64_t merge_few(const gr_tokenizer *t, gr_word_cache *cache, const char *text, gr_symbol *symbols, int64_t n) {
    for (int64_t i = 0; i + 1 < n; i++)
        symbols[i].rank = pair_rank(t, cache, text, &symbols[i], &symbols[i + 1], &symbols[i].merged);
    while (n > 1) {
        uint64_t least = UINT64_MAX; /* rank << 32 | place */
        for (int64_t i = 0; i + 1 < n; i++) {
            uint64_t order = (uint64_t)symbols[i].rank << 32 | (uint64_t)i;
            least = GR_MIN(least, order);
        }
        if (least >> 32 == GR_NO_RANK) break;
        int64_t best = (int64_t)(uint32_t)least;
        symbols[best].id = symbols[best].merged;
        symbols[best].end = symbols[best + 1].end;
        n--;
        for (int64_t i = best + 1; i < n; i++) symbols[i] = symbols[i + 1];
        if (best + 1 < n) symbols[best].rank = pair_rank(t, cache, text, &symbols[best], &symbols[best + 1], &symbols[best].merged);
        if (best > 0)
            symbols[best - 1].rank = pair_rank(t, cache, text, &symbols[best - 1], &symbols[best], &symbols[best - 1].merged);
    }
    return n;
}

static void heap_push(gr_heap_item *heap, int64_t n, gr_heap_item item) {
    int64_t i = n;
    for (; i > 0 && item.order < heap[(i - 1) / 2].order; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = item;
}

static gr_heap_item heap_pop(gr_heap_item *heap, int64_t n) { /* n: size after */
    gr_heap_item top = heap[0], last = heap[n];
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1].order < heap[child].order) child++;
        if (heap[child].order >= last.order) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* The pair of symbol at and the next one, where they merge; the size of the heap after. */
static int64_t push_pair(const gr_tokenizer *t, gr_word_cache *cache, const char *text, const gr_symbol *symbols, int32_t at,
                         gr_heap_item *heap, int64_t n) {
    if (at < 0 || symbols[at].next < 0) return n;
    int32_t merged, rank = pair_rank(t, cache, text, &symbols[at], &symbols[symbols[at].next], &merged);
    if (rank == GR_NO_RANK) return n;
    heap_push(heap, n, (gr_heap_item){(uint64_t)rank << 32 | (uint32_t)at, merged});
    return n + 1;
}

/* Many symbols: a linked list of symbols and a heap of pairs; stale pairs are told by what they would make now. */
static int64_t merge_many(const gr_tokenizer *t, gr_word_cache *cache, const char *text, gr_symbol *symbols, int64_t n,
                          gr_heap_item *heap) {
    int64_t in_heap = 0;
    for (int32_t i = 0; i < n; i++) in_heap = push_pair(t, cache, text, symbols, i, heap, in_heap);
    while (in_heap > 0) {
        gr_heap_item top = heap_pop(heap, --in_heap);
        int32_t at = (int32_t)(uint32_t)top.order, merged;
        gr_symbol *left = &symbols[at];
        if (left->start == left->end || left->next < 0) continue;
        gr_symbol *right = &symbols[left->next];
        pair_rank(t, cache, text, left, right, &merged);
        if (merged != top.merged) continue;
        left->id = merged;
        left->end = right->end;
        right->start = right->end;
        left->next = right->next;
        if (left->next >= 0) symbols[left->next].prev = at;
        in_heap = push_pair(t, cache, text, symbols, at, heap, in_heap);
        in_heap = push_pair(t, cache, text, symbols, left->prev, heap, in_heap);
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++)
        if (symbols[i].start != symbols[i].end) symbols[kept++] = symbols[i];
    return kept;
}

/* A word on its way. */
typedef struct word_job {
    const gr_tokenizer *t;
    gr_scratch *s;
    gr_ids *ids;
    int64_t n_unknown;  /* symbols so far that are not in the vocabulary */
    bool after_unknown; /* the last one was such */
} word_job;

/* The symbols of text, merged: s->symbols[returned n]; -1 when out of memory. */
static int64_t merge_text(const gr_tokenizer *t, gr_scratch *s, const char *text, int64_t len) {
    if (!gr_grow(&s->symbols, &s->symbols_capacity, len, sizeof *s->symbols)) return -1;
    int64_t n = t->byte_level ? split_bytes(t, text, len, s->symbols) : split_characters(t, text, len, s->symbols);
    s->symbols[n - 1].next = -1;
    if (n <= FEW_SYMBOLS) return merge_few(t, s->cache, text, s->symbols, n);
    /* each merge pushes at most two pairs, and there are at most n merges */
    if (!gr_grow(&s->heap, &s->heap_capacity, 3 * n, sizeof *s->heap)) return -1;
    return merge_many(t, s->cache, text, s->symbols, n, s->heap);
}

static bool merge_segment(word_job *j, const char *text, int64_t len) {
    gr_scratch *s = j->s;
    const gr_tokenizer *t = j->t;
    int64_t n = merge_text(t, s, text, len);
    if (n < 0) return false;
    for (int64_t i = 0; i < n; i++) {
        const gr_symbol *x = &s->symbols[i];
        bool ok = x->id >= 0 ? gr_ids_push(j->ids, x->id)
                             : gr_push_unknown(t, text + x->start, x->end - x->start, j->after_unknown, j->ids);
        if (!ok) return false;
        j->after_unknown = x->id < 0;
        j->n_unknown += x->id < 0;
    }
    return true;
}

/* Where the cache has, or will have, the ids of a text. */
typedef struct place {
    gr_cache_line *line; /* NULL: the text is too long */
    gr_word_key key;
    int64_t n_ids, n_unknown; /* of the job before the text */
} place;

/* The ids of text from the cache; false when it has none, and the place for them. */
static inline bool recall(word_job *j, const char *text, int64_t len, uint8_t kind, place *p) {
    p->line = NULL;
    gr_ids *ids = j->ids;
    if (len > GR_CACHED_BYTES) return false;
    if (ids->n + GR_CACHED_IDS > ids->capacity && !gr_grow(&ids->data, &ids->capacity, ids->n + GR_CACHED_IDS, sizeof *ids->data))
        return false;
    p->key = gr_word_key_of(text, len, (uint8_t)len | kind);
    p->line = gr_cache_line_of(j->s->cache, &p->key);
    const gr_cached_word *found = gr_cache_find(p->line, &p->key);
    if (!found) {
        p->n_ids = ids->n;
        p->n_unknown = j->n_unknown;
        return false;
    }
    memcpy(ids->data + ids->n, found->ids, sizeof found->ids);
    ids->n += found->n;
    j->after_unknown = false;
    return true;
}

/* What unknown symbols leave depends on what is before them: such texts are not kept. */
static void remember(const word_job *j, const place *p) {
    int64_t n = j->ids->n - p->n_ids;
    if (!p->line || n > GR_CACHED_IDS || j->n_unknown > p->n_unknown) return;
    gr_cache_add(p->line, &p->key, j->ids->data + p->n_ids, n);
}

static bool encode_segment(word_job *j, const char *text, int64_t len) {
    place p;
    if (recall(j, text, len, j->t->info.ignore_merges ? SEGMENT : 0, &p)) return true;
    if (!merge_segment(j, text, len)) return false;
    remember(j, &p);
    return true;
}

/* Cuts the word wherever no merge can join anything. */
static bool encode_segments(word_job *j, const char *word, int64_t len) {
    int size;
    int32_t left = gr_utf8_read(word, len, &size), right;
    int64_t start = 0;
    for (int64_t i = size; i < len; i += size, left = right) {
        right = gr_utf8_read(word + i, len - i, &size);
        if (gr_joined(&j->t->joints, left, right, (uint8_t)word[i - 1], (uint8_t)word[i])) continue;
        if (!encode_segment(j, word + start, i - start)) return false;
        start = i;
    }
    return start == 0 ? merge_segment(j, word, len) : encode_segment(j, word + start, len - start);
}

bool gr_bpe_merge(const gr_tokenizer *t, gr_scratch *s, const char *text, int64_t len, gr_ids *ids) {
    word_job j = {.t = t, .s = s, .ids = ids};
    return merge_segment(&j, text, len);
}

int64_t gr_bpe_split(const gr_tokenizer *t, gr_scratch *s, const char *text, int64_t len, const gr_merged **out) {
    int32_t id = t->info.ignore_merges ? gr_table_find(&t->by_raw, text, len) : -1;
    int64_t n = id >= 0 ? 1 : merge_text(t, s, text, len);
    if (n < 0 || !gr_grow(&s->merged, &s->merged_capacity, n, sizeof *s->merged)) return -1;
    for (int64_t i = 0; id < 0 && i < n; i++) s->merged[i] = (gr_merged){s->symbols[i].start, s->symbols[i].end, s->symbols[i].id};
    if (id >= 0) s->merged[0] = (gr_merged){0, (int32_t)len, id};
    *out = s->merged;
    return n;
}

bool gr_bpe_encode(const gr_tokenizer *t, gr_scratch *s, const char *word, int64_t len, gr_ids *ids) {
    word_job j = {.t = t, .s = s, .ids = ids};
    place p;
    if (recall(&j, word, len, 0, &p)) return true;
    int32_t id = t->info.ignore_merges ? gr_table_find(&t->by_raw, word, len) : -1;
    if (!(id >= 0 ? gr_ids_push(ids, id) : encode_segments(&j, word, len))) return false;
    remember(&j, &p);
    return true;
}
