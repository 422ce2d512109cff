/* Byte-pair encoding: symbols merge by rank, the leftmost first among equals, until no pair is known.
 * A pair's rank comes from the list of merges, or (SentencePiece models) from the score of the piece that
 * both make. */
#include <stdlib.h>
#include <string.h>

#include "core/text/impl.h"

typedef struct gr_symbol {
    int64_t start, end;   /* bytes in the word; start == end: merged away */
    int64_t prev, next;   /* -1 at the ends */
    int32_t id;           /* -1: not in the vocabulary */
    int32_t rank, merged; /* of the pair with the next symbol (short words) */
} gr_symbol;

typedef struct gr_heap_item {
    int64_t at;
    int32_t rank, merged;
} gr_heap_item;

enum { SHORT_WORD = 40, NO_RANK = INT32_MAX };

/* Rank of the pair a b, NO_RANK when it does not merge. */
static int32_t pair_rank(const gr_tokenizer *t, const char *word, const gr_symbol *a, const gr_symbol *b,
                         int32_t *merged) {
    if (t->ranks) {
        *merged = gr_table_find(&t->by_raw, word + a->start, b->end - a->start);
        return *merged < 0 ? NO_RANK : t->ranks[*merged];
    }
    const gr_pair *pair = gr_pairs_find(&t->pairs, a->id, b->id);
    *merged = pair ? pair->id : -1;
    return pair ? pair->rank : NO_RANK;
}

/* Symbols of a word: bytes (byte-level) or characters. */
static int64_t split_symbols(const gr_tokenizer *t, const char *word, int64_t len, gr_symbol *symbols) {
    int64_t n = 0;
    for (int64_t i = 0; i < len; n++) {
        int size = 1;
        int32_t id;
        if (t->byte_level) {
            id = t->byte_ids[(uint8_t)word[i]];
        } else {
            gr_utf8_decode(word + i, len - i, &size, NULL);
            id = gr_table_find(&t->by_raw, word + i, size);
        }
        symbols[n] = (gr_symbol){.start = i, .end = i + size, .prev = n - 1, .next = n + 1, .id = id};
        i += size;
    }
    symbols[n - 1].next = -1;
    return n;
}

/* Short words: the ranks of all pairs in an array, the least searched for. */
static int64_t merge_short(const gr_tokenizer *t, const char *word, gr_symbol *symbols, int64_t n) {
    for (int64_t i = 0; i + 1 < n; i++)
        symbols[i].rank = pair_rank(t, word, &symbols[i], &symbols[i + 1], &symbols[i].merged);
    while (n > 1) {
        int64_t best = 0;
        for (int64_t i = 1; i + 1 < n; i++)
            if (symbols[i].rank < symbols[best].rank) best = i;
        if (symbols[best].rank == NO_RANK) break;
        symbols[best].id = symbols[best].merged;
        symbols[best].end = symbols[best + 1].end;
        n--;
        memmove(&symbols[best + 1], &symbols[best + 2], (size_t)(n - best - 1) * sizeof *symbols);
        if (best + 1 < n)
            symbols[best].rank =
                pair_rank(t, word, &symbols[best], &symbols[best + 1], &symbols[best].merged);
        if (best > 0)
            symbols[best - 1].rank =
                pair_rank(t, word, &symbols[best - 1], &symbols[best], &symbols[best - 1].merged);
    }
    return n;
}

static bool before(const gr_heap_item *a, const gr_heap_item *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(gr_heap_item *heap, int64_t n, gr_heap_item item) {
    int64_t i = n;
    for (; i > 0 && before(&item, &heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = item;
}

static gr_heap_item heap_pop(gr_heap_item *heap, int64_t n) { /* n: size after */
    gr_heap_item top = heap[0], last = heap[n];
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(&heap[child + 1], &heap[child])) child++;
        if (!before(&heap[child], &last)) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* Long words: a linked list of symbols and a heap of pairs; stale pairs are told by what they would make now.
 */
static int64_t merge_long(const gr_tokenizer *t, const char *word, gr_symbol *symbols, int64_t n,
                          gr_heap_item *heap) {
    int64_t in_heap = 0;
    int32_t merged, rank;
    for (int64_t i = 0; i + 1 < n; i++)
        if ((rank = pair_rank(t, word, &symbols[i], &symbols[i + 1], &merged)) != NO_RANK)
            heap_push(heap, in_heap++, (gr_heap_item){i, rank, merged});
    while (in_heap > 0) {
        gr_heap_item top = heap_pop(heap, --in_heap);
        gr_symbol *left = &symbols[top.at];
        if (left->start == left->end || left->next < 0) continue;
        gr_symbol *right = &symbols[left->next];
        pair_rank(t, word, left, right, &merged);
        if (merged != top.merged) continue;
        left->id = merged;
        left->end = right->end;
        right->start = right->end;
        left->next = right->next;
        if (left->next >= 0) symbols[left->next].prev = top.at;
        if (left->next >= 0 && (rank = pair_rank(t, word, left, &symbols[left->next], &merged)) != NO_RANK)
            heap_push(heap, in_heap++, (gr_heap_item){top.at, rank, merged});
        if (left->prev >= 0 && (rank = pair_rank(t, word, &symbols[left->prev], left, &merged)) != NO_RANK)
            heap_push(heap, in_heap++, (gr_heap_item){left->prev, rank, merged});
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++)
        if (symbols[i].start != symbols[i].end) symbols[kept++] = symbols[i];
    return kept;
}

static bool encode_word(const gr_tokenizer *t, gr_scratch *s, const char *word, int64_t len, gr_ids *ids) {
    if (!gr_grow(&s->symbols, &s->symbols_capacity, len, sizeof *s->symbols)) return false;
    int64_t n = split_symbols(t, word, len, s->symbols);
    if (n <= SHORT_WORD) {
        n = merge_short(t, word, s->symbols, n);
    } else {
        /* each merge pushes at most two pairs, and there are at most n merges */
        if (!gr_grow(&s->heap, &s->heap_capacity, 3 * n, sizeof *s->heap)) return false;
        n = merge_long(t, word, s->symbols, n, s->heap);
    }
    bool unknown = false;
    for (int64_t i = 0; i < n; i++) {
        const gr_symbol *x = &s->symbols[i];
        bool ok = x->id >= 0 ? gr_ids_push(ids, x->id)
                             : gr_push_unknown(t, word + x->start, x->end - x->start, unknown, ids);
        if (!ok) return false;
        unknown = x->id < 0;
    }
    return true;
}

bool gr_bpe_encode(const gr_tokenizer *t, gr_scratch *s, const char *word, int64_t len, gr_ids *ids) {
    if (!t->byte_level) return encode_word(t, s, word, len, ids);
    int32_t id = gr_table_find(&t->by_raw, word, len);
    if (id < 0) return encode_word(t, s, word, len, ids);
    if (t->info.ignore_merges) return gr_ids_push(ids, id);
    unsigned char whole = atomic_load_explicit(&t->whole[id], memory_order_relaxed);
    if (whole == 1) return gr_ids_push(ids, id);
    int64_t n_before = ids->n;
    if (!encode_word(t, s, word, len, ids)) return false;
    if (whole == 0)
        atomic_store_explicit(&t->whole[id], ids->n == n_before + 1 && ids->data[n_before] == id ? 1 : 2,
                              memory_order_relaxed);
    return true;
}
