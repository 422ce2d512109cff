/* attention_tmpl.h - causal attention of a vectorised level, forward and backward, as products of small blocks (FlashAttention,
 * arXiv 2205.14135). Key blocks start at position 0 of their sequence and are padded with zeros to KEYS, masked scores
 * weigh exactly 0: a row's bits depend on nothing but its own keys. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/attention_operands.h"
#include "kernels/cpu/impl.h"

enum {
    KEYS = GR_KV_BLOCK,
    QUERIES = 64,
    D_MAX = 256,
    GROUP = 8,  /* query heads of a key/value head that share its packed key blocks */
    BLOCKS = 4, /* blocks of queries that share them; in the backward, blocks of keys that share packed queries */
};

/* Where the parts of a task's scratch begin, in floats. */
typedef struct forward_parts {
    int64_t packed, q, scores, p, m, sum, out, end;
} forward_parts;

typedef struct backward_parts {
    int64_t k, v, k_turned, dk, dv, key_floats; /* those of one key block, key_floats apart */
    int64_t q, dout, q_turned, dout_turned, lse, delta, scores, ds, p_rows, ds_rows, ds_panels, dq, end;
} backward_parts;

typedef struct attention {
    float *out, *lse, *dq, *dk, *dv, *delta, *partial;
    const float *q, *k, *v, *dout, *lse_in;
    int64_t ldo, ldq, ldkv, H, K, D;
    const gr_seq *seqs;
    int64_t n_seqs;
    float scale;
    gr_device *d;
    const gr_kv_panels *panels;
    int64_t blocks; /* of a task, BLOCKS at most */
    forward_parts forward;
    backward_parts backward;
} attention;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t padded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* Make room for more floats behind end; returns where. */
static int64_t part(int64_t *end, int64_t floats) {
    int64_t at = *end;
    *end += padded(floats, 16);
    return at;
}

/* Scores are multiplied by this, so that powers of 2 take the place of those of e. */
static inline float log2_scale(const attention *t) { return t->scale * 1.44269504f; }

/* Packed blocks of keys: K^T panels, then V panels. */
static int64_t packed_keys(int64_t D) { return KEYS * places(D); }
static int64_t packed_floats(int64_t D) { return packed_keys(D) + places(KEYS) * padded(D, PANEL); }

static forward_parts forward_parts_of(int64_t D, int64_t heads, int64_t blocks) {
    int64_t rows = heads * blocks * QUERIES;
    forward_parts at = {0};
    at.packed = part(&at.end, packed_floats(D));
    at.q = part(&at.end, rows * distance(D));
    at.scores = part(&at.end, QUERIES * KEYS);
    at.p = part(&at.end, QUERIES * distance(KEYS));
    at.m = part(&at.end, rows);
    at.sum = part(&at.end, rows * VL);
    at.out = part(&at.end, rows * padded(D, VL));
    return at;
}

static void pack_keys(const attention *t, float *packed, int64_t at, int64_t keys) {
    put_panels_transposed(packed, t->k + at, t->ldkv, keys, t->D, KEYS);
    put_panels(packed + packed_keys(t->D), t->v + at, t->ldkv, keys, t->D, KEYS);
}

/* The last of `keys` keys, beside those that are packed. */
static void pack_last_key(const attention *t, float *packed, int64_t at, int64_t keys) {
    int64_t k = places(t->D), j = keys - 1, p = places(UNIT) * j / UNIT;
    float key[D_MAX], *values = packed + packed_keys(t->D);
    put_row(key, t->k + at + j * t->ldkv, t->D);
    for (int64_t i = 0; i < k; i++) packed[j / PANEL * PANEL * k + i * PANEL + j % PANEL] = key[i];
    for (int64_t i = 0; i < t->D; i += VL)
        v_store(values + i / PANEL * PANEL * places(KEYS) + p * PANEL + i % PANEL, at_place(t->v + at, t->ldkv, keys, t->D, p, i));
}

/* The packed block of keys from `key` on of a sequence's key/value head: in scratch, or kept for the next token when a single query is decoded. */
static const float *packed_block(const attention *t, float *scratch, const gr_seq *s, int64_t key, int64_t head) {
    int64_t keys = least(KEYS, s->kv_len - key), at = (s->kv_start + key) * t->ldkv + head * t->D;
    if (!t->panels || s->q_len != 1 || t->H / t->K > GROUP) { /* a head's task must be the only one to keep blocks of it */
        pack_keys(t, scratch, at, keys);
        return scratch;
    }
    int64_t place = s->kv_start / t->panels->max_len * t->K + head;
    int32_t *packed = &t->panels->packed[place];
    float *kept = t->panels->data + (place * t->panels->blocks + key / KEYS) * packed_floats(t->D);
    if (*packed >= key + keys) return kept;
    if (keys > 1 && *packed == key + keys - 1) pack_last_key(t, kept, at, keys);
    else pack_keys(t, kept, at, keys);
    *packed = (int32_t)(key + keys);
    return kept;
}

/* One row of scores of a key block becomes weights 2^(scale s - m); the first `visible` (<= 0: none) of KEYS keys count. sum[VL]: what was
 * summed before, in lanes. Returns the factor by which all that was summed before shrinks. */
static float softmax_step(float *weights, const float *s, int64_t visible, float scale, float *m, float *sum) {
    const vf none = v_set(-INFINITY);
    vf largest = v_set(*m), total = v_load(sum), p[KEYS / VL];
    if (visible <= 0) {
        memset(weights, 0, (size_t)places(KEYS) * sizeof *weights);
        return 1;
    }
    UNROLL for (int j = 0; j < KEYS / VL; j++) {
        p[j] = v_mul(v_load(s + j * VL), v_set(scale));
        if (visible < KEYS) p[j] = v_first(p[j], none, visible < j * VL ? 0 : least(visible - j * VL, VL));
        largest = v_max(largest, p[j]);
    }
    float now = v_largest(largest), shrink = *m == now ? 1 : exp2f(*m - now);
    if (shrink != 1) total = v_mul(total, v_set(shrink));
    UNROLL for (int j = 0; j < KEYS / VL; j++) {
        p[j] = v_exp2(v_sub(p[j], v_set(now)));
        total = v_add(total, p[j]);
    }
    UNROLL for (int j = 0; j < KEYS / VL; j += 2) put_values(weights, j * VL, p + j);
    v_store(sum, total);
    *m = now;
    return shrink;
}

static void scale_row(float *x, int64_t n, float factor) {
    for (int64_t j = 0; j < n; j += VL) v_store(x + j, v_mul(v_load(x + j), v_set(factor)));
}

/* n rows of queries, the first at position `first`, see a packed key block; m, sum and out hold what they saw before. A single query's heads
 * are rows at the same position. */
static void see_block(const attention *t, float *scratch, const float *packed, int64_t key, int64_t first, int64_t n, bool single, int64_t r0) {
    const forward_parts *at = &t->forward;
    int64_t D = t->D, ld = padded(D, VL);
    float *scores = scratch + at->scores, *p = scratch + at->p, *out = scratch + at->out + r0 * ld;
    product(n, KEYS, D, scratch + at->q + r0 * distance(D), distance(D), packed, scores, KEYS, 0);
    for (int64_t i = 0; i < n; i++) {
        int64_t visible = least(first + (single ? 0 : i) + 1 - key, KEYS);
        float shrink = softmax_step(p + i * distance(KEYS), scores + i * KEYS, visible, log2_scale(t), scratch + at->m + r0 + i,
                                    scratch + at->sum + (r0 + i) * VL);
        if (shrink != 1) scale_row(out + i * ld, ld, shrink);
    }
    product(n, D, KEYS, p, distance(KEYS), packed + packed_keys(D), out, ld, 1);
}

/* Rows of queries from j0 of sequence s, heads h0..h0+heads of one key/value head: row i of head h stands at (h blocks QUERIES + i) of the
 * parts of scratch, a single query's heads one after the other. */
static void forward_rows(const attention *t, float *scratch, const gr_seq *s, int64_t j0, int64_t rows, int64_t h0, int64_t heads) {
    const forward_parts *at = &t->forward;
    int64_t D = t->D, ld = padded(D, VL), head = h0 / (t->H / t->K), first = s->kv_len - s->q_len + j0;
    int64_t per_head = rows == 1 ? 1 : t->blocks * QUERIES, row = s->q_start + j0;
    float *m = scratch + at->m, *sum = scratch + at->sum, *out = scratch + at->out;
    for (int64_t h = 0; h < heads; h++) {
        int64_t r = h * per_head;
        put_rows(scratch + at->q + r * distance(D), t->q + row * t->ldq + (h0 + h) * D, t->ldq, rows, D);
        for (int64_t i = r; i < r + rows; i++) m[i] = -INFINITY;
        memset(sum + r * VL, 0, (size_t)(rows * VL) * sizeof *sum);
        memset(out + r * ld, 0, (size_t)(rows * ld) * sizeof *out);
    }
    for (int64_t key = 0; key < first + rows; key += KEYS) {
        const float *packed = packed_block(t, scratch + at->packed, s, key, head);
        if (rows == 1) see_block(t, scratch, packed, key, first, heads, true, 0);
        for (int64_t h = 0; rows > 1 && h < heads; h++)
            for (int64_t i = key > first ? (key - first) / QUERIES * QUERIES : 0; i < rows; i += QUERIES)
                see_block(t, scratch, packed, key, first + i, least(QUERIES, rows - i), false, h * per_head + i);
    }
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < rows; i++) {
            int64_t r = h * per_head + i;
            float *to = t->out + (row + i) * t->ldo + (h0 + h) * D, all = v_sum(v_load(sum + r * VL));
            for (int64_t j = 0; j < D; j++) to[j] = out[r * ld + j] / all + 0.0f; /* + 0: one sign of zero */
            if (t->lse) t->lse[(row + i) * t->H + h0 + h] = m[r] * 0.693147181f + logf(all);
        }
}

static int64_t head_groups(const attention *t) { return (t->H / t->K + GROUP - 1) / GROUP; }

/* Tasks of a sequence and a group of heads: pieces of its queries. */
static int64_t pieces(const attention *t, const gr_seq *s) { return (s->q_len + t->blocks * QUERIES - 1) / (t->blocks * QUERIES); }

/* Tasks are (sequence, piece of queries, key/value head, group of its heads), found by walking the sequences. */
static void forward_task(void *context, int64_t chunk, int worker) {
    const attention *t = context;
    int64_t groups = head_groups(t), per_piece = t->K * groups, piece = chunk / per_piece;
    const gr_seq *s = t->seqs;
    for (; piece >= pieces(t, s); s++) piece -= pieces(t, s);
    int64_t rows = t->blocks * QUERIES, j0 = (pieces(t, s) - 1 - piece) * rows; /* the long ones first */
    int64_t per_head = t->H / t->K, head = chunk % per_piece / groups, in_head = chunk % groups * GROUP;
    forward_rows(t, gr_cpu_scratch(t->d, worker), s, j0, least(rows, s->q_len - j0), head * per_head + in_head, least(GROUP, per_head - in_head));
}

static int64_t forward_tasks(const attention *t) {
    int64_t n = 0;
    for (int64_t s = 0; s < t->n_seqs; s++) n += pieces(t, &t->seqs[s]);
    return n * t->K * head_groups(t);
}

void LEVEL(gr_attention_forward)(gr_device *d, float *out, int64_t ldo, float *lse, const float *q, int64_t ldq,
                                 const float *k, const float *v, int64_t ldkv, const gr_seq *seqs, int64_t n_seqs,
                                 int64_t H, int64_t K, int64_t D, float scale, gr_dtype compute, const gr_kv_panels *panels) {
    if (D > D_MAX || !ATTENDS(compute)) {
        EXACT(gr_attention_forward)(d, out, ldo, lse, q, ldq, k, v, ldkv, seqs, n_seqs, H, K, D, scale, compute, panels);
        return;
    }
    attention t = {.out = out, .lse = lse, .q = q, .k = k, .v = v, .ldo = ldo, .ldq = ldq, .ldkv = ldkv, .H = H, .K = K,
                   .D = D, .seqs = seqs, .n_seqs = n_seqs, .scale = scale, .d = d, .panels = panels, .blocks = BLOCKS};
    enum { TASKS_EACH = 6 }; /* for each thread, before tasks grow: they differ in length */
    for (; t.blocks > 1; t.blocks--) { /* no row's bits depend on it */
        t.forward = forward_parts_of(D, least(GROUP, H / K), t.blocks);
        if (t.forward.end <= GR_CPU_SCRATCH && forward_tasks(&t) >= TASKS_EACH * gr_threads_count(d->threads)) break;
    }
    t.forward = forward_parts_of(D, least(GROUP, H / K), t.blocks);
    gr_threads_run(d->threads, forward_tasks(&t), forward_task, &t);
}

static backward_parts backward_parts_of(int64_t D, int64_t blocks) {
    backward_parts at = {0};
    at.k = part(&at.end, KEYS * distance(D)); /* rows */
    at.v = part(&at.end, KEYS * distance(D));
    at.k_turned = part(&at.end, padded(D, UNIT) * distance(KEYS));
    at.dk = part(&at.end, KEYS * D);
    at.dv = part(&at.end, KEYS * D);
    at.key_floats = at.end;
    at.end *= blocks;
    at.q = part(&at.end, places(QUERIES) * padded(D, PANEL)); /* panels */
    at.dout = part(&at.end, places(QUERIES) * padded(D, PANEL));
    at.q_turned = part(&at.end, places(D) * QUERIES);
    at.dout_turned = part(&at.end, places(D) * QUERIES);
    at.lse = part(&at.end, QUERIES);
    at.delta = part(&at.end, QUERIES);
    at.scores = part(&at.end, KEYS * QUERIES); /* of keys by queries, as what follows */
    at.ds = part(&at.end, KEYS * QUERIES);
    at.p_rows = part(&at.end, KEYS * distance(QUERIES));
    at.ds_rows = part(&at.end, KEYS * distance(QUERIES));
    at.ds_panels = part(&at.end, places(KEYS) * QUERIES);
    at.dq = part(&at.end, D * QUERIES); /* transposed */
    return at;
}

/* p = exp(scale s - lse) and ds = scale p (dp - delta) of rows s and dp of two keys, VL queries from i on. */
INLINE void weigh(const attention *t, const float *scratch, int64_t key, int64_t i, vf *p, vf *ds) {
    const backward_parts *at = &t->backward;
    vf s = v_load(scratch + at->scores + key * QUERIES + i), dp = v_load(scratch + at->ds + key * QUERIES + i);
    *p = v_exp2(v_fma(s, v_set(log2_scale(t)), v_load(scratch + at->lse + i)));
    *ds = v_mul(v_mul(*p, v_set(t->scale)), v_sub(dp, v_load(scratch + at->delta + i)));
}

/* Lanes from..to of v, zeros in the others. */
static inline vf v_between(vf v, int64_t from, int64_t to) {
    const vf zero = v_set(0);
    v = v_first(v, zero, to < 0 ? 0 : least(to, VL));
    return v_first(zero, v, from < 0 ? 0 : least(from, VL));
}

/* Scores of `keys` keys and their gradients become p^T and ds^T, rows and panels. ahead: positions of the first key before the first query. */
static void probabilities(const attention *t, float *scratch, int64_t keys, int64_t rows, int64_t ahead) {
    const backward_parts *at = &t->backward;
    const bool masked = ahead < KEYS || rows < QUERIES || keys < KEYS;
    float *p_rows = scratch + at->p_rows, *ds_rows = scratch + at->ds_rows, *panels = scratch + at->ds_panels;
    for (int64_t j = 0; j < padded(keys, UNIT); j += 2)
        for (int64_t i = 0; i < padded(rows, UNIT); i += 2 * VL) {
            vf p[2][2], ds[2][2];
            UNROLL for (int n = 0; n < 4; n++) {
                int64_t key = j + n / 2, query = i + n % 2 * VL;
                weigh(t, scratch, key, query, &p[n / 2][n % 2], &ds[n / 2][n % 2]);
                if (!masked) continue;
                int64_t from = key < keys ? key - ahead - query : VL, to = rows - query;
                p[n / 2][n % 2] = v_between(p[n / 2][n % 2], from, to), ds[n / 2][n % 2] = v_between(ds[n / 2][n % 2], from, to);
            }
            put_values(p_rows + j * distance(QUERIES), i, p[0]), put_values(p_rows + (j + 1) * distance(QUERIES), i, p[1]);
            put_values(ds_rows + j * distance(QUERIES), i, ds[0]), put_values(ds_rows + (j + 1) * distance(QUERIES), i, ds[1]);
            put_panel_rows(panels + i * places(padded(keys, UNIT)), j, ds[0], ds[1]);
        }
}

/* The gradients that the packed query rows and key block number `block` of a task give each other; ahead: see probabilities. */
static void backward_block(const attention *t, float *scratch, int64_t block, int64_t keys, int64_t rows, int64_t ahead, bool first) {
    const backward_parts *at = &t->backward;
    int64_t D = t->D, wide = padded(rows, UNIT);
    float *of_keys = scratch + block * at->key_floats;
    product(keys, wide, D, of_keys + at->k, distance(D), scratch + at->q_turned, scratch + at->scores, QUERIES, 0);
    product(keys, wide, D, of_keys + at->v, distance(D), scratch + at->dout_turned, scratch + at->ds, QUERIES, 0);
    probabilities(t, scratch, keys, rows, ahead);
    product(keys, D, wide, scratch + at->p_rows, distance(QUERIES), scratch + at->dout, of_keys + at->dv, D, !first);
    product(keys, D, wide, scratch + at->ds_rows, distance(QUERIES), scratch + at->q, of_keys + at->dk, D, !first);
    product(D, wide, padded(keys, UNIT), of_keys + at->k_turned, distance(KEYS), scratch + at->ds_panels, scratch + at->dq, QUERIES, block > 0);
}

/* dq[rows, D] (+)= the transpose of x[D, QUERIES]. */
static void turn_back(float *dq, int64_t ldq, const float *x, int64_t rows, int64_t D, bool accumulate) {
    for (int64_t i = 0; i < rows; i += VL)
        for (int64_t j = 0; j < D; j += VL) {
            int64_t n = least(rows - i, VL), count = least(D - j, VL);
            vf r[VL];
            UNROLL for (int c = 0; c < VL; c++) r[c] = c < count ? v_load(x + (j + c) * QUERIES + i) : v_set(0);
            v_transpose(r);
            for (int64_t c = 0; c < n; c++) {
                float *to = dq + (i + c) * ldq + j;
                v_store_n(to, accumulate ? v_add(v_load_n(to, count), r[c]) : r[c], count);
            }
        }
}

static void pack_queries(const attention *t, float *scratch, int64_t row, int64_t rows, int64_t h) {
    const backward_parts *at = &t->backward;
    const float *q = t->q + row * t->ldq + h * t->D, *dout = t->dout + row * t->ldo + h * t->D;
    int64_t wide = padded(rows, UNIT);
    put_panels_transposed(scratch + at->q_turned, q, t->ldq, rows, t->D, wide);
    put_panels_transposed(scratch + at->dout_turned, dout, t->ldo, rows, t->D, wide);
    put_panels(scratch + at->q, q, t->ldq, rows, t->D, wide);
    put_panels(scratch + at->dout, dout, t->ldo, rows, t->D, wide);
    for (int64_t i = 0; i < wide; i++) {
        scratch[at->lse + i] = i < rows ? -1.44269504f * t->lse_in[(row + i) * t->H + h] : 0;
        scratch[at->delta + i] = i < rows ? t->delta[(row + i) * t->H + h] : 0;
    }
}

/* The keys of a sequence are split in ranges, tasks of about equal work, since there may be few sequences and heads. The first range sums dq in
 * place, each of the others in rows of `partial`, from its first key's query on. The ranges depend on the shapes alone. */
enum { RANGE_KEYS = 512, RANGES = 12 /* of all heads of a sequence */ };
static const int64_t partial_max = GR_CPU_SHARED / (int64_t)sizeof(float);

/* The first key of range r of n: about r/n of all pairs of blocks come before. */
static int64_t range_start(const gr_seq *s, int64_t r, int64_t n) {
    int64_t blocks = (s->kv_len + KEYS - 1) / KEYS, block = 0;
    for (int64_t before = 0; before * n < blocks * (blocks + 1) / 2 * r; block++) before += blocks - block;
    return least(block * KEYS, s->kv_len);
}

/* Floats of partial that ranges 1..r of n take. */
static int64_t partial_floats(const attention *t, const gr_seq *s, int64_t r, int64_t n) {
    int64_t rows = 0;
    for (int64_t i = 1; i < r; i++) rows += s->kv_len - range_start(s, i, n);
    return rows * t->H * t->D;
}

static int64_t ranges(const attention *t, const gr_seq *s) {
    int64_t n = least(s->kv_len / RANGE_KEYS, (RANGES + t->K - 1) / t->K);
    while (n > 1 && partial_floats(t, s, n, n) > partial_max) n--;
    return n > 1 ? n : 1;
}

/* The gradients of keys begin..end of head `head`, and what they add to those of the queries, in rows of dq from the first of the range. */
static void backward_keys(const attention *t, float *scratch, const gr_seq *s, int64_t head, int64_t begin, int64_t end, float *dq, int64_t ldq) {
    const backward_parts *at = &t->backward;
    int64_t D = t->D, per_head = t->H / t->K, step = t->blocks * KEYS;
    for (int64_t key = begin; key < end; key += step) {
        int64_t keys = least(step, end - key), row = (s->kv_start + key) * t->ldkv + head * D;
        for (int64_t j = 0; j < keys; j += KEYS) {
            float *of_keys = scratch + j / KEYS * at->key_floats;
            int64_t n = least(KEYS, keys - j), from = row + j * t->ldkv;
            put_rows(of_keys + at->k, t->k + from, t->ldkv, n, D);
            put_rows(of_keys + at->v, t->v + from, t->ldkv, n, D);
            put_rows_transposed(of_keys + at->k_turned, t->k + from, t->ldkv, n, D, KEYS);
        }
        for (int64_t h = head * per_head; h < (head + 1) * per_head; h++)
            for (int64_t i = key; i < s->q_len; i += QUERIES) {
                int64_t rows = least(QUERIES, s->q_len - i);
                pack_queries(t, scratch, s->q_start + i, rows, h);
                for (int64_t j = 0; j < keys && key + j <= i; j += KEYS)
                    backward_block(t, scratch, j / KEYS, least(KEYS, keys - j), rows, i - key - j, h == head * per_head && i == key + j);
                turn_back(dq + (i - begin) * ldq + h * D, ldq, scratch + at->dq, rows, D, key > begin);
            }
        for (int64_t j = 0; j < keys; j++) {
            const float *of_keys = scratch + j / KEYS * at->key_floats + j % KEYS * D;
            memcpy(t->dk + row + j * t->ldkv, of_keys + at->dk, (size_t)D * sizeof(float));
            memcpy(t->dv + row + j * t->ldkv, of_keys + at->dv, (size_t)D * sizeof(float));
        }
    }
}

/* A task is a key/value head of a sequence and a range of its keys: their blocks in order, for each the queries in order, so every sum has
 * one order. */
static void backward_task(void *context, int64_t chunk, int worker) {
    const attention *t = context;
    const gr_seq *s = t->seqs;
    float *partial = t->partial;
    int64_t n;
    for (; chunk >= (n = ranges(t, s)) * t->K; s++) chunk -= n * t->K, partial += partial_floats(t, s, n, n);
    int64_t r = chunk % n, begin = range_start(s, r, n), end = range_start(s, r + 1, n);
    float *dq = r ? partial + partial_floats(t, s, r, n) : t->dq + s->q_start * t->ldq;
    backward_keys(t, gr_cpu_scratch(t->d, worker), s, chunk / n, begin, end, dq, r ? t->H * t->D : t->ldq);
}

typedef struct partial_sums {
    float *to;
    const float *from;
    int64_t ld, n;
} partial_sums;

static void add_partial(const void *args, int64_t begin, int64_t end) {
    const partial_sums *a = args;
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < a->n; j += VL) {
            int64_t count = least(a->n - j, VL);
            float *to = a->to + i * a->ld + j;
            v_store_n(to, v_add(v_load_n(to, count), v_load_n(a->from + i * a->n + j, count)), count);
        }
}

/* dq of t's sequences += what all their ranges but the first summed apart, in order. */
static void add_partials(const attention *t) {
    const float *partial = t->partial;
    for (const gr_seq *s = t->seqs; s < t->seqs + t->n_seqs; s++)
        for (int64_t r = 1, n = ranges(t, s); r < n; r++) {
            int64_t first = range_start(s, r, n), rows = s->q_len - first;
            partial_sums a = {t->dq + (s->q_start + first) * t->ldq, partial, t->ldq, t->H * t->D};
            gr_cpu_for(t->d, rows, gr_cpu_row_grain(a.n), add_partial, &a);
            partial += rows * a.n;
        }
}

typedef struct delta_args {
    float *delta;
    const float *out, *dout;
    int64_t ldo, q_start, H, D;
} delta_args;

/* delta[row,h] = dout . out: the mean of dp under p. */
static void delta_rows(const void *args, int64_t begin, int64_t end) {
    const delta_args *a = args;
    for (int64_t row = a->q_start + begin; row < a->q_start + end; row++)
        for (int64_t h = 0; h < a->H; h++) {
            const float *x = a->out + row * a->ldo + h * a->D, *y = a->dout + row * a->ldo + h * a->D;
            vf sum = v_set(0);
            for (int64_t j = 0; j < a->D; j += VL) {
                int64_t count = least(a->D - j, VL);
                sum = v_fma(v_load_n(x + j, count), v_load_n(y + j, count), sum);
            }
            a->delta[row * a->H + h] = v_sum(sum);
        }
}

void LEVEL(gr_attention_backward)(gr_device *d, float *dq, float *dk, float *dv, float *delta, const float *dout,
                                  int64_t ldo, const float *q, int64_t ldq, const float *k, const float *v,
                                  int64_t ldkv, const float *out, const float *lse, const gr_seq *seqs, int64_t n_seqs,
                                  int64_t H, int64_t K, int64_t D, float scale, gr_dtype compute) {
    if (D > D_MAX || !ATTENDS(compute)) {
        EXACT(gr_attention_backward)(d, dq, dk, dv, delta, dout, ldo, q, ldq, k, v, ldkv, out, lse, seqs, n_seqs, H, K, D, scale, compute);
        return;
    }
    attention t = {.dq = dq, .dk = dk, .dv = dv, .delta = delta, .q = q, .k = k, .v = v, .dout = dout, .lse_in = lse,
                   .ldo = ldo, .ldq = ldq, .ldkv = ldkv, .H = H, .K = K, .D = D, .scale = scale, .d = d,
                   .partial = ((const gr_cpu *)d->impl)->shared, .blocks = BLOCKS + 1};
    do t.backward = backward_parts_of(D, --t.blocks);
    while (t.blocks > 1 && t.backward.end > GR_CPU_SCRATCH);
    for (int64_t s = 0; s < n_seqs; s++) {
        delta_args a = {delta, out, dout, ldo, seqs[s].q_start, H, D};
        gr_cpu_for(d, seqs[s].q_len, gr_cpu_row_grain(H * D), delta_rows, &a);
    }
    for (int64_t done = 0; done < n_seqs; done += t.n_seqs) { /* as many sequences as have room in partial */
        int64_t tasks = 0, taken = 0;
        t.seqs = seqs + done, t.n_seqs = 0;
        for (const gr_seq *s = t.seqs; done + t.n_seqs < n_seqs; s++, t.n_seqs++) {
            int64_t n = ranges(&t, s);
            taken += partial_floats(&t, s, n, n);
            if (taken > partial_max) break;
            tasks += n * K;
        }
        gr_threads_run(d->threads, tasks, backward_task, &t);
        add_partials(&t);
    }
}
