/* Flat tables: bytes to id, pair of ids to merge, sorted prefixes. */
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/text/tables.h"

static uint64_t table_size(int64_t n) { /* at most half full */
    uint64_t size = 16;
    while (size < (uint64_t)n * 2) size *= 2;
    return size;
}

bool gr_table_init(gr_table *t, int64_t n_keys) {
    uint64_t size = table_size(n_keys);
    t->slots = gr_calloc((int64_t)size, sizeof *t->slots);
    if (!t->slots) return false;
    for (uint64_t i = 0; i < size; i++) t->slots[i].len = -1;
    t->mask = size - 1;
    return true;
}

static gr_table_slot *table_slot(const gr_table *t, const char *key, int64_t len) {
    uint64_t i = XXH3_64bits(key, (size_t)len) & t->mask;
    while (t->slots[i].len >= 0 && (t->slots[i].len != len || memcmp(t->slots[i].key, key, (size_t)len) != 0))
        i = (i + 1) & t->mask;
    return &t->slots[i];
}

void gr_table_add(gr_table *t, const char *key, int32_t len, int32_t id) {
    gr_table_slot *slot = table_slot(t, key, len);
    if (slot->len < 0) *slot = (gr_table_slot){key, len, id};
}

int32_t gr_table_find(const gr_table *t, const char *key, int64_t len) {
    const gr_table_slot *slot = table_slot(t, key, len);
    return slot->len < 0 ? -1 : slot->id;
}

static int compare_keys(const void *a, const void *b) {
    const gr_prefix_key *x = a, *y = b;
    int order = memcmp(x->text, y->text, (size_t)GR_MIN(x->len, y->len));
    return order ? order : (x->len > y->len) - (x->len < y->len);
}

void gr_prefix_sort(gr_prefix_set *s) {
    if (s->n > 0) qsort(s->keys, (size_t)s->n, sizeof *s->keys, compare_keys);
    int32_t at = 0;
    for (int b = 0; b <= 256; b++) {
        while (at < s->n && (uint8_t)s->keys[at].text[0] < b) at++;
        s->first[b] = at;
    }
    s->only = s->n > 0 && s->keys[0].text[0] == s->keys[s->n - 1].text[0] ? (uint8_t)s->keys[0].text[0] : -1;
}

/* First key of [low, high) whose byte at depth is at least b; keys that end before it come first. */
static int32_t lower_bound(const gr_prefix_set *s, int32_t low, int32_t high, int32_t depth, int b) {
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        const gr_prefix_key *k = &s->keys[middle];
        if (k->len <= depth || (uint8_t)k->text[depth] < b) low = middle + 1;
        else high = middle;
    }
    return low;
}

bool gr_prefix_step(const gr_prefix_set *s, gr_prefix_walk *w, uint8_t byte, int32_t *value) {
    if (w->depth == 0) {
        w->low = s->first[byte];
        w->high = s->first[byte + 1];
    } else {
        w->low = lower_bound(s, w->low, w->high, w->depth, byte);
        w->high = lower_bound(s, w->low, w->high, w->depth, byte + 1);
    }
    if (w->low == w->high) return false;
    w->depth++;
    *value = s->keys[w->low].len == w->depth ? s->keys[w->low].value : -1;
    return true;
}

bool gr_pairs_init(gr_pair_table *t, int64_t n_pairs) {
    uint64_t size = table_size(n_pairs);
    t->slots = gr_calloc((int64_t)size, sizeof *t->slots);
    if (!t->slots) return false;
    for (uint64_t i = 0; i < size; i++) t->slots[i] = (gr_pair){.key = UINT64_MAX, .rank = GR_NO_RANK, .id = -1};
    t->mask = size - 1;
    return true;
}

void gr_pairs_add(gr_pair_table *t, int32_t left, int32_t right, int32_t rank, int32_t id) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    t->slots[gr_pairs_find(t, left, right) - t->slots] = (gr_pair){key, rank, id};
}
