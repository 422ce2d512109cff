/* Merging: pairs of neighbours with their counts and the words that they are in, the best taken from a heap again and again. Counts
 * of pairs that are there only fall, and a new pair has a piece that was never there before, so what is below a limit once can be
 * left out: only pairs above it are held, and all are counted again with a lower limit should they not suffice. */
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "kernels/threads.h"
#include "core/text/learn_impl.h"

enum { LIMIT_SHARE = 8, AHEAD = 12 }; /* of the count of the last pair that would do; words fetched beforehand */

typedef struct pair {
    int64_t count;           /* neighbours; 0: merged, or refused */
    int64_t apart, apart_at; /* of a pair of equals: how often it can be merged ("aaa": once) at a count of apart_at */
    int32_t left, right;
    uint32_t *words, n_words; /* where it may be */
} pair;

typedef struct heap_item {
    int64_t count; /* what the pair's was when this was put here: no less than what it is */
    uint64_t tie;  /* bytes << 56 | the first of them */
    uint32_t pair;
} heap_item;

typedef struct neighbour { /* of the pair that is being merged, on one side */
    int64_t made, lost;
    uint32_t n_words, last_word, *words;
    bool seen;
} neighbour;

typedef struct counted { /* a pair while pairs are counted */
    uint64_t key;        /* left << 32 | right; UINT64_MAX: empty */
    int64_t count;
    uint32_t n_words, last_word, *words;
} counted;

typedef struct part {
    counted *slots;
    uint64_t mask;
    int64_t n;
    gr_arena words;
    bool failed;
} part;

typedef struct merger {
    gr_learner *l;
    gr_learned *out;
    int64_t limit; /* pairs that occur less often are not held */
    part parts[GR_LEARN_PARTS];
    pair *pairs;
    int64_t n_pairs, pairs_capacity;
    uint32_t *slots; /* by left and right: index + 1 */
    uint64_t mask;
    heap_item *heap;
    int64_t n_heap, heap_capacity;
    gr_table known;   /* bytes of the new pieces */
    neighbour *at[2]; /* [symbols] left and right of the pair */
    int32_t *seen[2]; /* those with something in it */
    int64_t n_seen[2], n_symbols;
    struct made { /* in the order of their finding */
        int32_t symbol;
        uint32_t word;
        int side;
    } * made;
    int64_t n_made, made_capacity;
    gr_arena words; /* of pairs that merging made */
    gr_str text;    /* scratch */
} merger;

static uint64_t mix(uint64_t key) {
    key *= 0x9E3779B97F4A7C15u;
    return key ^ key >> 32;
}

static uint64_t key_of(int32_t left, int32_t right) { return (uint64_t)(uint32_t)left << 32 | (uint32_t)right; }

/* ---- counting all pairs ---- */

static bool grow_counted(part *c) {
    uint64_t size = c->slots ? (c->mask + 1) * 2 : 4096, old = c->slots ? c->mask + 1 : 0;
    counted *slots = gr_calloc((int64_t)size, sizeof *slots);
    if (!slots) return false;
    for (uint64_t i = 0; i < size; i++) slots[i].key = UINT64_MAX;
    for (uint64_t k = 0; k < old; k++) {
        if (c->slots[k].key == UINT64_MAX) continue;
        uint64_t i = mix(c->slots[k].key) & (size - 1);
        while (slots[i].key != UINT64_MAX) i = (i + 1) & (size - 1);
        slots[i] = c->slots[k];
    }
    free(c->slots);
    c->slots = slots;
    c->mask = size - 1;
    return true;
}

static counted *find_counted(part *c, uint64_t key, uint64_t hash) {
    uint64_t i = hash & c->mask;
    while (c->slots[i].key != UINT64_MAX && c->slots[i].key != key) i = (i + 1) & c->mask;
    return &c->slots[i];
}

/* The pairs of one part by their hash, over all words. */
static void count_part(void *context, int64_t p, int worker) {
    merger *m = context;
    part *c = &m->parts[p];
    (void)worker;
    for (int64_t w = 0; w < m->l->n_words; w++) {
        const gr_learn_word *word = &m->l->words[w];
        for (int32_t i = 0; i + 1 < word->n; i++) {
            uint64_t key = key_of(word->tokens[i], word->tokens[i + 1]), hash = mix(key);
            if (hash >> 60 != (uint64_t)p) continue;
            if ((!c->slots || (uint64_t)c->n * 2 > c->mask) && !grow_counted(c)) {
                c->failed = true;
                return;
            }
            counted *s = find_counted(c, key, hash);
            if (s->key == UINT64_MAX) {
                *s = (counted){.key = key, .last_word = UINT32_MAX};
                c->n++;
            }
            s->count += word->count;
            s->n_words += s->last_word != (uint32_t)w;
            s->last_word = (uint32_t)w;
        }
    }
}

/* The words of the pairs that are held. */
static void list_part(void *context, int64_t p, int worker) {
    merger *m = context;
    part *c = &m->parts[p];
    (void)worker;
    if (!c->slots) return;
    for (uint64_t i = 0; i <= c->mask; i++) {
        counted *s = &c->slots[i];
        if (s->key == UINT64_MAX || s->count < m->limit) continue;
        s->words = gr_arena_alloc(&c->words, (int64_t)s->n_words * (int64_t)sizeof *s->words);
        if (!s->words) {
            c->failed = true;
            return;
        }
        s->n_words = 0;
        s->last_word = UINT32_MAX;
    }
    for (int64_t w = 0; w < m->l->n_words; w++) {
        const gr_learn_word *word = &m->l->words[w];
        for (int32_t i = 0; i + 1 < word->n; i++) {
            uint64_t key = key_of(word->tokens[i], word->tokens[i + 1]), hash = mix(key);
            if (hash >> 60 != (uint64_t)p) continue;
            counted *s = find_counted(c, key, hash);
            if (!s->words || s->last_word == (uint32_t)w) continue;
            s->words[s->n_words++] = s->last_word = (uint32_t)w;
        }
    }
}

/* A limit that most likely leaves enough pairs: a share of the count of the pair of rank `wanted`, to an eighth. */
static int64_t find_limit(const merger *m, int64_t wanted) {
    int64_t ranks[64 * 8] = {0};
    for (int p = 0; p < GR_LEARN_PARTS; p++)
        for (uint64_t i = 0; m->parts[p].slots && i <= m->parts[p].mask; i++) {
            int64_t c = m->parts[p].slots[i].key == UINT64_MAX ? 0 : m->parts[p].slots[i].count;
            int top = c > 0 ? 63 - __builtin_clzll((uint64_t)c) : -1;
            if (top >= 0) ranks[top * 8 + (int)((top >= 3 ? c >> (top - 3) : c << (3 - top)) & 7)]++;
        }
    int k = GR_LEN(ranks) - 1;
    for (int64_t above = 0; k > 0 && (above += ranks[k]) < wanted;) k--;
    int64_t least = k / 8 >= 3 ? (int64_t)(8 + k % 8) << (k / 8 - 3) : 1;
    return GR_MAX(least / LIMIT_SHARE, m->l->o.min_count);
}

/* ---- the pairs that are held, and the heap ---- */

static bool grow_index(merger *m) {
    uint64_t size = m->slots ? (m->mask + 1) * 2 : 65536;
    while (size < (uint64_t)m->n_pairs * 4) size *= 2;
    uint32_t *slots = gr_calloc((int64_t)size, sizeof *slots);
    if (!slots) return false;
    free(m->slots);
    m->slots = slots;
    m->mask = size - 1;
    for (int64_t k = 0; k < m->n_pairs; k++) {
        uint64_t i = mix(key_of(m->pairs[k].left, m->pairs[k].right)) & m->mask;
        while (slots[i]) i = (i + 1) & m->mask;
        slots[i] = (uint32_t)k + 1;
    }
    return true;
}

static pair *find_pair(const merger *m, int32_t left, int32_t right) {
    uint64_t i = mix(key_of(left, right)) & m->mask;
    for (; m->slots[i]; i = (i + 1) & m->mask) {
        pair *p = &m->pairs[m->slots[i] - 1];
        if (p->left == left && p->right == right) return p;
    }
    return NULL;
}

static uint64_t tie_of(const gr_symbols *s, int32_t left, int32_t right) {
    int32_t n = s->len[left] + s->len[right];
    uint64_t tie = (uint64_t)GR_MIN(n, 255);
    for (int32_t i = 0; i < 7; i++) {
        uint8_t b = i < s->len[left] ? (uint8_t)s->text[left][i] : i < n ? (uint8_t)s->text[right][i - s->len[left]] : 0;
        tie = tie << 8 | b;
    }
    return tie;
}

/* Which piece goes first where counts and beginnings are equal? */
static bool text_before(const merger *m, const pair *a, const pair *b) {
    const gr_symbols *s = &m->l->symbols;
    int32_t na = s->len[a->left], nb = s->len[b->left], n = na + s->len[a->right], other = nb + s->len[b->right];
    if (n != other) return n < other;
    for (int32_t i = 0; i < n; i++) {
        uint8_t x = (uint8_t)(i < na ? s->text[a->left][i] : s->text[a->right][i - na]);
        uint8_t y = (uint8_t)(i < nb ? s->text[b->left][i] : s->text[b->right][i - nb]);
        if (x != y) return x < y;
    }
    return na != nb ? na < nb : a->left != b->left ? a->left < b->left : a->right < b->right;
}

static bool goes_before(const merger *m, const heap_item *a, const heap_item *b) {
    if (a->count != b->count) return a->count > b->count;
    if (a->tie != b->tie) return a->tie < b->tie;
    return a->pair != b->pair && text_before(m, &m->pairs[a->pair], &m->pairs[b->pair]);
}

static void sift_down(merger *m, int64_t i) {
    heap_item item = m->heap[i];
    for (int64_t child; (child = 2 * i + 1) < m->n_heap; i = child) {
        if (child + 1 < m->n_heap && goes_before(m, &m->heap[child + 1], &m->heap[child])) child++;
        if (!goes_before(m, &m->heap[child], &item)) break;
        m->heap[i] = m->heap[child];
    }
    m->heap[i] = item;
}

static void sift_up(merger *m, int64_t i) {
    heap_item item = m->heap[i];
    for (; i > 0 && goes_before(m, &item, &m->heap[(i - 1) / 2]); i = (i - 1) / 2) m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = item;
}

/* The pair, and its place at the heap's end. */
static bool add_pair(merger *m, pair p) {
    if (m->n_pairs >= UINT32_MAX - 1 || !gr_grow(&m->pairs, &m->pairs_capacity, m->n_pairs + 1, sizeof *m->pairs) ||
        !gr_grow(&m->heap, &m->heap_capacity, m->n_heap + 1, sizeof *m->heap))
        return false;
    m->heap[m->n_heap++] = (heap_item){p.count, tie_of(&m->l->symbols, p.left, p.right), (uint32_t)m->n_pairs};
    m->pairs[m->n_pairs++] = p;
    return true;
}

static void drop_pairs(merger *m) {
    for (int p = 0; p < GR_LEARN_PARTS; p++) {
        free(m->parts[p].slots);
        gr_arena_release(&m->parts[p].words);
        m->parts[p] = (part){0};
    }
    gr_arena_release(&m->words);
    free(m->slots);
    m->slots = NULL;
    m->n_pairs = m->n_heap = 0;
}

static bool parts_failed(const merger *m) {
    for (int p = 0; p < GR_LEARN_PARTS; p++)
        if (m->parts[p].failed) return true;
    return false;
}

/* Counts all pairs as the words now are, and holds those from a new, lower limit on. */
static bool hold_pairs(merger *m, struct gr_threads *threads) {
    drop_pairs(m);
    gr_threads_run(threads, GR_LEARN_PARTS, count_part, m);
    if (parts_failed(m)) return false;
    int64_t limit = find_limit(m, 2 * (m->l->o.size - m->out->n)), half = m->limit / LIMIT_SHARE;
    m->limit = m->limit ? GR_MAX(m->l->o.min_count, GR_MIN(limit, half)) : limit;
    gr_threads_run(threads, GR_LEARN_PARTS, list_part, m);
    if (parts_failed(m)) return false;
    for (int p = 0; p < GR_LEARN_PARTS; p++) {
        part *c = &m->parts[p];
        for (uint64_t i = 0; c->slots && i <= c->mask; i++) {
            const counted *s = &c->slots[i];
            if (!s->words) continue;
            pair made = {.count = s->count,
                         .apart_at = -1,
                         .left = (int32_t)(s->key >> 32),
                         .right = (int32_t)(uint32_t)s->key,
                         .words = s->words,
                         .n_words = s->n_words};
            if (!add_pair(m, made)) return false;
        }
        free(c->slots);
        c->slots = NULL;
    }
    if (!grow_index(m)) return false;
    for (int64_t i = m->n_heap / 2; i-- > 0;) sift_down(m, i);
    return true;
}

/* ---- one merge ---- */

static void count_neighbour(merger *m, int side, int32_t symbol, uint32_t word, int64_t made, int64_t lost) {
    neighbour *x = &m->at[side][symbol];
    if (!x->seen) {
        *x = (neighbour){.seen = true, .last_word = UINT32_MAX};
        m->seen[side][m->n_seen[side]++] = symbol;
    }
    x->made += made;
    x->lost += lost;
    if (made <= 0 || x->last_word == word) return;
    x->last_word = word;
    x->n_words++;
    m->made[m->n_made++] = (struct made){symbol, word, side};
}

/* left right -> merged in a word; what that does to its pairs is noted. */
static bool merge_word(merger *m, uint32_t index, int32_t left, int32_t right, int32_t merged) {
    gr_learn_word *w = &m->l->words[index];
    int32_t *t = w->tokens, n = 0;
    if (!gr_grow(&m->made, &m->made_capacity, m->n_made + 2 * w->n, sizeof *m->made)) return false;
    for (int32_t i = 0; i < w->n; i++) {
        if (i + 1 >= w->n || t[i] != left || t[i + 1] != right) {
            t[n++] = t[i];
            continue;
        }
        if (n > 0 && t[n - 1] == merged) { /* merged just before: merged left was counted there */
            count_neighbour(m, 1, left, index, -w->count, 0);
            count_neighbour(m, 0, merged, index, w->count, 0);
        } else if (n > 0) {
            count_neighbour(m, 0, t[n - 1], index, w->count, w->count);
        }
        if (i + 2 < w->n) count_neighbour(m, 1, t[i + 2], index, w->count, w->count);
        t[n++] = merged;
        i++;
    }
    w->n = n;
    return true;
}

/* Pairs with what was merged come to be, those with its parts become fewer. */
static bool settle_side(merger *m, int side, const pair *old, int32_t merged) {
    for (int64_t k = 0; k < m->n_seen[side]; k++) {
        int32_t symbol = m->seen[side][k];
        neighbour *x = &m->at[side][symbol];
        if (x->lost > 0) {
            pair *p = side ? find_pair(m, old->right, symbol) : find_pair(m, symbol, old->left);
            if (p) p->count = GR_MAX(0, p->count - x->lost); /* the pair itself, of equals, is 0 already */
        }
        if (x->made < m->limit) continue;
        x->words = gr_arena_alloc(&m->words, (int64_t)x->n_words * (int64_t)sizeof *x->words);
        if (!x->words) return false;
        pair made = {.count = x->made,
                     .apart_at = -1,
                     .left = side ? merged : symbol,
                     .right = side ? symbol : merged,
                     .words = x->words,
                     .n_words = x->n_words};
        x->n_words = 0;
        if (!add_pair(m, made)) return false;
        sift_up(m, m->n_heap - 1);
        if ((uint64_t)m->n_pairs * 2 > m->mask) {
            if (!grow_index(m)) return false;
            continue;
        }
        uint64_t i = mix(key_of(made.left, made.right)) & m->mask;
        while (m->slots[i]) i = (i + 1) & m->mask;
        m->slots[i] = (uint32_t)m->n_pairs;
    }
    return true;
}

static bool merge_pair(merger *m, uint32_t index, int32_t merged) {
    const pair old = m->pairs[index];
    gr_learn_word *words = m->l->words;
    m->pairs[index].count = 0;
    m->n_made = 0;
    for (uint32_t k = 0; k < old.n_words; k++) {
        if (k + 2 * AHEAD < old.n_words) __builtin_prefetch(&words[old.words[k + 2 * AHEAD]]);
        if (k + AHEAD < old.n_words) __builtin_prefetch(words[old.words[k + AHEAD]].tokens);
        if (!merge_word(m, old.words[k], old.left, old.right, merged)) return false;
    }
    bool ok = settle_side(m, 0, &old, merged) && settle_side(m, 1, &old, merged);
    for (int64_t k = 0; k < m->n_made && ok; k++) {
        neighbour *x = &m->at[m->made[k].side][m->made[k].symbol];
        if (x->words) x->words[x->n_words++] = m->made[k].word;
    }
    for (int side = 0; side < 2; side++) {
        for (int64_t k = 0; k < m->n_seen[side]; k++) m->at[side][m->seen[side][k]].seen = false;
        m->n_seen[side] = 0;
    }
    return ok;
}

/* How often a pair of equals can be merged: runs of them, from the left. */
static int64_t count_apart(const merger *m, const pair *p) {
    int64_t count = 0;
    for (uint32_t k = 0; k < p->n_words; k++) {
        const gr_learn_word *w = &m->l->words[p->words[k]];
        for (int32_t i = 0; i + 1 < w->n; i++)
            if (w->tokens[i] == p->left && w->tokens[i + 1] == p->right) count += w->count, i++;
    }
    return count;
}

/* ---- choosing ---- */

/* May this be a piece? The bytes are whole characters, or lie within one; no piece has them; they are not too long. */
static bool is_piece(merger *m, const pair *p) {
    const gr_learner *l = m->l;
    const gr_symbols *s = &l->symbols;
    gr_str *text = &m->text;
    int64_t n = 0, i = 0;
    int size;
    bool cut;
    gr_str_clear(text);
    gr_str_add(text, s->text[p->left], s->len[p->left]);
    gr_str_add(text, s->text[p->right], s->len[p->right]);
    if (text->failed) return false;
    for (; i < text->len; i += size, n++)
        if (gr_utf8_decode(text->data + i, text->len - i, &size, &cut) < 0) break;
    if (i < text->len && i > 0) return false;           /* whole characters and a part of one */
    if (i < text->len && !(cut && size == text->len)) { /* no beginning of a character: the rest of one? */
        if (text->len > 3) return false;
        for (i = 0; i < text->len; i++)
            if (((uint8_t)text->data[i] & 0xC0) != 0x80) return false;
    }
    if (n > l->o.max_length || gr_table_find(&m->known, text->data, text->len) >= 0) return false;
    if (gr_table_find(&l->base->by_raw, text->data, text->len) >= 0) return false;
    if (!l->spm) { /* a control token of that name */
        uint16_t to_point[256];
        char name[4 * 256];
        int64_t len = 0;
        if (text->len > 256) return false;
        gr_byte_alphabet(to_point);
        for (i = 0; i < text->len; i++) len += gr_utf8_encode(to_point[(uint8_t)text->data[i]], name + len);
        return gr_table_find(&l->base->by_text, name, len) < 0;
    }
    return gr_table_find(&l->base->by_text, text->data, text->len) < 0;
}

/* The best pair that is held; false where none reaches the limit. */
static bool choose(merger *m, uint32_t *index) {
    while (m->n_heap > 0) {
        heap_item *top = &m->heap[0];
        pair *p = &m->pairs[top->pair];
        bool equals = p->left == p->right;
        int64_t count = equals && p->apart_at == p->count ? p->apart : p->count;
        if (count == top->count && equals && p->apart_at != p->count) {
            p->apart = count_apart(m, p);
            p->apart_at = p->count;
            count = p->apart;
        }
        if (count == top->count && count >= m->limit && is_piece(m, p)) {
            *index = top->pair;
            return true;
        }
        if (count == top->count || count < m->limit) { /* refused, or too few */
            *top = m->heap[--m->n_heap];
        } else {
            top->count = count;
        }
        if (m->n_heap > 0) sift_down(m, 0);
    }
    return false;
}

static bool open_merger(merger *m) {
    int64_t n = m->l->symbols.n + m->l->o.size + 1;
    for (int side = 0; side < 2; side++) {
        m->at[side] = gr_calloc(n, sizeof *m->at[side]);
        m->seen[side] = gr_calloc(n, sizeof *m->seen[side]);
        if (!m->at[side] || !m->seen[side]) return false;
    }
    if (!gr_table_init(&m->known, m->l->o.size)) return false;
    for (int64_t i = m->out->first_id; i < m->l->symbols.n; i++) /* the alphabet */
        gr_table_add(&m->known, m->l->symbols.text[i], m->l->symbols.len[i], (int32_t)i);
    return true;
}

static void close_merger(merger *m) {
    drop_pairs(m);
    free(m->pairs);
    free(m->heap);
    free(m->known.slots);
    free(m->made);
    for (int side = 0; side < 2; side++) {
        free(m->at[side]);
        free(m->seen[side]);
    }
    gr_str_release(&m->text);
}

static bool add_piece(merger *m, uint32_t index) {
    gr_learner *l = m->l;
    const pair *p = &m->pairs[index];
    int32_t id = (int32_t)l->symbols.n, len = (int32_t)m->text.len;
    char *copy = gr_arena_alloc(&l->arena, len);
    if (!copy) return false;
    memcpy(copy, m->text.data, (size_t)len);
    gr_table_add(&m->known, copy, len, id);
    return gr_symbols_add(&l->symbols, copy, len) && gr_learned_add(m->out, l, copy, len, p->left, p->right) &&
           merge_pair(m, index, id);
}

graft_status gr_learn_pairs(gr_learner *l, struct gr_threads *threads, gr_learned *out, graft_error *err) {
    graft_status st = GRAFT_OK;
    merger m = {.l = l, .out = out};
    gr_progress progress;
    gr_progress_start(&progress, "learning", l->o.size);
    if (!open_merger(&m) || !hold_pairs(&m, threads)) GR_TRY(gr_fail_memory(err, "pairs"));
    while (out->n < l->o.size) {
        uint32_t index;
        if (choose(&m, &index)) {
            if (!add_piece(&m, index)) GR_TRY(gr_fail_memory(err, "pairs"));
            if (out->n % 64 == 0) gr_progress_update(&progress, out->n, "pieces");
        } else if (m.limit > l->o.min_count) {
            if (!hold_pairs(&m, threads)) GR_TRY(gr_fail_memory(err, "pairs"));
        } else {
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "--size %lld: the text has no more than %lld pieces: take that, more text%s",
                           (long long)(l->o.size + l->o.there), (long long)(out->n + l->o.there),
                           l->o.min_count > 1 ? ", or a lower --min-count" : ""));
        }
    }
done:
    gr_progress_end(&progress);
    close_merger(&m);
    return st;
}
