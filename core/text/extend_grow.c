/* How a new piece comes to be made: what the base and the new pieces so far spell it with, and merges that join that. */
#include <stdlib.h>
#include <string.h>

#include "core/text/encode.h"
#include "core/text/extend_impl.h"

enum { MAX_BYTES = 256, MAX_SYMBOLS = 48 };        /* of a piece that merges are looked for */
static const int64_t OLD_RANKS = (int64_t)1 << 32; /* all of the base's are below, all new ones are not */

typedef struct symbol {
    int32_t start, end, id; /* id -1: a character without a piece */
} symbol;

/* What would be put after the pieces and merges that there are. */
typedef struct plan {
    gr_new_piece pieces[2 * MAX_SYMBOLS];
    gr_new_merge merges[MAX_SYMBOLS];
    int n, n_merges;
} plan;

/* ---- lookups ---- */

static int32_t find_new(const gr_growth *g, const plan *p, const char *raw, int64_t len) {
    int32_t id = g->n > 0 ? gr_table_find(&g->by_raw, raw, len) : -1;
    for (int k = 0; id < 0 && p && k < p->n; k++)
        if (p->pieces[k].len == len && memcmp(p->pieces[k].raw, raw, (size_t)len) == 0) id = (int32_t)(g->first_new + g->n + k);
    return id;
}

int32_t gr_growth_find(const gr_growth *g, const char *raw, int64_t len) {
    int32_t id = gr_table_find(&g->t->by_raw, raw, len);
    return id >= 0 && id < g->first_new ? id : find_new(g, NULL, raw, len);
}

/* The order in which two neighbours merge, and into what; INT64_MAX: they do not. */
static int64_t pair_order(const gr_growth *g, const plan *p, const char *raw, const symbol *a, const symbol *b, int32_t *id) {
    const gr_tokenizer *t = g->t;
    if (a->id < 0 || b->id < 0) return INT64_MAX;
    if (t->ranks) {
        *id = gr_table_find(&t->by_raw, raw + a->start, b->end - a->start);
        if (*id >= 0 && *id < g->first_new) return t->ranks[*id];
    } else if (a->id < g->first_new && b->id < g->first_new) {
        const gr_pair *pair = gr_pairs_find(&t->pairs, a->id, b->id);
        *id = pair->id;
        if (*id >= 0) return pair->rank;
    }
    if (!t->byte_level) { /* a new piece is made of any two */
        *id = find_new(g, p, raw + a->start, b->end - a->start);
        return *id < 0 ? INT64_MAX : OLD_RANKS + *id;
    }
    const gr_pair *pair = g->n_merges > 0 ? gr_pairs_find(&g->pairs, a->id, b->id) : NULL;
    if (pair && pair->id >= 0) return *id = pair->id, OLD_RANKS + pair->rank;
    for (int k = 0; p && k < p->n_merges; k++)
        if (p->merges[k].left == a->id && p->merges[k].right == b->id) return *id = p->merges[k].id, OLD_RANKS + g->n_merges + k;
    return INT64_MAX;
}

/* ---- spelling ---- */

/* A byte-level base's own ids first: no merge of new ones comes before them, and none makes an old piece. */
static bool start_bytes(const gr_growth *g, const char *raw, int64_t len, symbol *s, int *n) {
    gr_scratch scratch = {0};
    gr_ids ids = {0};
    int32_t at = 0;
    *n = 0;
    for (int64_t i = 0; i < len; i++)
        if (g->t->byte_ids[(uint8_t)raw[i]] < 0) return true;
    bool ok = gr_bpe_merge(g->t, &scratch, raw, len, &ids);
    for (int64_t i = 0; ok && i < ids.n && at <= len; i++) {
        int32_t end = at + g->t->pieces[ids.data[i]].raw_len;
        if (*n < MAX_BYTES) s[(*n)++] = (symbol){at, end, ids.data[i]};
        at = end;
    }
    if (at != len) *n = 0; /* merges that lose bytes */
    gr_ids_release(&ids);
    free(scratch.symbols);
    free(scratch.heap);
    return ok;
}

static void start_characters(const gr_growth *g, const plan *p, const char *raw, int64_t len, symbol *s, int *n) {
    *n = 0;
    for (int32_t i = 0, size; i < len; i += size) {
        gr_utf8_read(raw + i, len - i, &size);
        int32_t id = gr_table_find(&g->t->by_raw, raw + i, size);
        s[(*n)++] = (symbol){i, i + size, id >= 0 && id < g->first_new ? id : find_new(g, p, raw + i, size)};
    }
}

/* The symbols that raw[len <= MAX_BYTES] ends up as; none where bytes of it have no piece. */
static bool spell(const gr_growth *g, const plan *p, const char *raw, int64_t len, symbol *s, int *n) {
    if (!g->t->byte_level) start_characters(g, p, raw, len, s, n);
    else if (!start_bytes(g, raw, len, s, n)) return false;
    for (;;) {
        int64_t least = INT64_MAX;
        int32_t at = -1, id, merged = -1;
        for (int32_t i = 0; i + 1 < *n; i++) {
            int64_t order = pair_order(g, p, raw, &s[i], &s[i + 1], &id);
            if (order < least) least = order, at = i, merged = id;
        }
        if (at < 0) return true;
        s[at].end = s[at + 1].end, s[at].id = merged;
        memmove(s + at + 1, s + at + 2, (size_t)(*n - at - 2) * sizeof *s);
        --*n;
    }
}

/* ---- a tree over the symbols ---- */

/* What an inner node of the tree costs: nothing where the other vocabulary has the piece, little for a whole character, which many
 * pieces share. */
enum { FREE = 0, CHARACTER = 1, FURTHER = 4, RAGGED = 6, THERE = 8, NEVER = 1 << 20 };

static int node_cost(const gr_growth *g, const plan *p, const char *s, int64_t len) {
    const gr_tokenizer *t = g->t;
    int32_t old = gr_table_find(&t->by_raw, s, len);
    int size;
    if (old >= 0 && old < g->first_new) return NEVER; /* a new way to an old piece would change texts of old pieces */
    if (find_new(g, NULL, s, len) >= 0) return t->byte_level ? THERE : FREE;
    if (find_new(g, p, s, len) >= 0) return FREE;
    if (gr_table_find(&g->wanted, s, len) >= 0) return FREE;
    int32_t point = gr_utf8_decode(s, len, &size, NULL);
    if (point >= 0 && size == len) return CHARACTER;
    return gr_utf8_valid(s, len) || len < 4 ? FURTHER : RAGGED;
}

typedef struct tree {
    const gr_growth *g;
    const char *raw;
    const symbol *s;
    plan *p;
    int32_t cost[MAX_SYMBOLS][MAX_SYMBOLS]; /* of what symbols i..j become */
    uint8_t cut[MAX_SYMBOLS][MAX_SYMBOLS];  /* last symbol of the left half */
} tree;

static void measure(tree *x, int n) {
    for (int i = 0; i < n; i++) x->cost[i][i] = x->s[i].id >= 0 ? FREE : CHARACTER;
    for (int width = 1; width < n; width++)
        for (int i = 0; i + width < n; i++) {
            int j = i + width, best = NEVER;
            for (int k = i; k < j; k++) { /* of equals the last: prefixes are shared by more pieces */
                int cost = x->cost[i][k] + x->cost[k + 1][j];
                if (cost <= best) best = cost, x->cut[i][j] = (uint8_t)k;
            }
            int own = width + 1 == n ? FREE : node_cost(x->g, x->p, x->raw + x->s[i].start, x->s[j].end - x->s[i].start);
            x->cost[i][j] = GR_MIN(best + own, NEVER);
        }
}

/* Into the plan: what makes symbols i..j one. */
static void put_node(tree *x, int i, int j) {
    plan *p = x->p;
    const char *text = x->raw + x->s[i].start;
    int32_t len = x->s[j].end - x->s[i].start, id = find_new(x->g, p, text, len);
    if (id < 0) {
        id = (int32_t)(x->g->first_new + x->g->n + p->n);
        p->pieces[p->n++] = (gr_new_piece){text, len, gr_table_find(&x->g->wanted, text, len) >= 0};
    }
    if (i < j && x->g->t->byte_level) p->merges[p->n_merges++] = (gr_new_merge){x->s[i].id, x->s[j].id, id};
}

/* The first thing that the tree over symbols 0..n-1 needs: a piece for a character, or for two neighbours. What that does elsewhere
 * in the text ("aa" in "aaaa") the next tree sees. */
static void put_first(tree *x, int n) {
    int i = 0, j = n - 1;
    while (j > i + 1 || (j > i && (x->s[i].id < 0 || x->s[j].id < 0))) {
        int k = x->cut[i][j];
        bool left = k > i || x->s[i].id < 0;
        if (left) j = k;
        else i = k + 1;
    }
    put_node(x, i, j);
}

/* ---- adding ---- */

/* Tables of twice what there is, filled anew. */
static bool make_room(gr_growth *g, int64_t pieces, int64_t merges) {
    if (g->n + pieces > g->table_room) {
        free(g->by_raw.slots);
        g->table_room = 2 * (g->n + pieces) + 1024;
        if (!gr_table_init(&g->by_raw, g->table_room)) return false;
        for (int64_t i = 0; i < g->n; i++)
            gr_table_add(&g->by_raw, g->pieces[i].raw, g->pieces[i].len, (int32_t)(g->first_new + i));
    }
    if (g->n_merges + merges > g->pair_room) {
        free(g->pairs.slots);
        g->pair_room = 2 * (g->n_merges + merges) + 1024;
        if (!gr_pairs_init(&g->pairs, g->pair_room)) return false;
        for (int64_t i = 0; i < g->n_merges; i++)
            gr_pairs_add(&g->pairs, g->merges[i].left, g->merges[i].right, (int32_t)i, g->merges[i].id);
    }
    return gr_grow(&g->pieces, &g->capacity, g->n + pieces, sizeof *g->pieces) &&
           gr_grow(&g->merges, &g->merge_capacity, g->n_merges + merges, sizeof *g->merges);
}

static bool commit(gr_growth *g, const plan *p) {
    if (!make_room(g, p->n, p->n_merges)) return false;
    for (int k = 0; k < p->n; k++) {
        const gr_new_piece *from = &p->pieces[k];
        char *copy = gr_arena_alloc(&g->arena, from->len + 1);
        if (!copy) return false;
        memcpy(copy, from->raw, (size_t)from->len);
        gr_table_add(&g->by_raw, copy, from->len, (int32_t)(g->first_new + g->n));
        g->pieces[g->n++] = (gr_new_piece){copy, from->len, from->asked};
    }
    for (int k = 0; k < p->n_merges; k++) {
        gr_pairs_add(&g->pairs, p->merges[k].left, p->merges[k].right, (int32_t)g->n_merges, p->merges[k].id);
        g->merges[g->n_merges++] = p->merges[k];
    }
    return true;
}

bool gr_growth_add(gr_growth *g, const char *raw, int64_t len, int64_t max, gr_vocab_fate *fate) {
    symbol s[MAX_BYTES];
    int n;
    plan p = {.n = 0};
    tree x = {.g = g, .raw = raw, .s = s, .p = &p};
    *fate = GR_VOCAB_UNREACHABLE;
    if (len > MAX_BYTES) return true;
    if (!spell(g, NULL, raw, len, s, &n)) return false;
    if (n < 1 || n > MAX_SYMBOLS) return true;
    if (n == 1 && s[0].id >= 0) return true; /* of another spelling: the base makes an old piece of it */
    while (n > 1 || s[0].id < 0) {
        measure(&x, n);
        if (x.cost[0][n - 1] >= NEVER) return true;
        put_first(&x, n);
        if (!spell(g, &p, raw, len, s, &n)) return false;
    }
    *fate = g->n + p.n > max ? GR_VOCAB_LEFT : GR_VOCAB_TAKEN;
    return *fate == GR_VOCAB_LEFT || commit(g, &p);
}

bool gr_growth_add_merge(gr_growth *g, const char *raw, int64_t len, int32_t left, int32_t right) {
    plan p = {.n = 0};
    symbol a = {0, 0, left}, b = {0, (int32_t)len, right};
    int32_t id = find_new(g, NULL, raw, len), made;
    if (pair_order(g, NULL, raw, &a, &b, &made) != INT64_MAX) return true;
    if (id < 0) {
        id = (int32_t)(g->first_new + g->n);
        p.pieces[p.n++] = (gr_new_piece){raw, (int32_t)len, true};
    }
    p.merges[p.n_merges++] = (gr_new_merge){left, right, id};
    return commit(g, &p);
}

void gr_growth_release(gr_growth *g) {
    free(g->pieces);
    free(g->merges);
    free(g->by_raw.slots);
    free(g->pairs.slots);
    free(g->wanted.slots);
    gr_arena_release(&g->arena);
    *g = (gr_growth){0};
}
