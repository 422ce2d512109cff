/* attention_forward.h - the forward of attention_tmpl.h. A task is a piece of a sequence's queries and a group of heads that share
 * their keys: it packs each block of keys once, and every block of its queries sees it. */
#ifndef GR_CPU_ATTENTION_FORWARD_H
#define GR_CPU_ATTENTION_FORWARD_H

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
    float key[D_MAX];
    put_row(key, t->k + at + j * t->ldkv, t->D);
    for (int64_t i = 0; i < k; i++) packed[j / PANEL * PANEL * k + i * PANEL + j % PANEL] = key[i];
    put_place(packed + packed_keys(t->D), t->v + at, t->ldkv, keys, t->D, KEYS, p);
}

/* The packed block of keys from `key` on of a sequence's key/value head: in scratch, or kept for the next token when a single query
 * is decoded. */
static const float *packed_block(const attention *t, float *scratch, const gr_seq *s, int64_t key, int64_t head) {
    int64_t keys = least(KEYS, s->kv_len - key), at = (s->kv_start + key) * t->ldkv + head * t->D;
    if (!t->panels || s->q_len != 1 || t->H / t->K > GROUP) { /* a head's task must be the only one to keep blocks of it */
        pack_keys(t, scratch, at, keys);
        return scratch;
    }
    int64_t place = s->kv_start / t->panels->max_len * t->K + head;
    int32_t *packed = &t->panels->packed[place], *from = &t->panels->from[place];
    float *kept = t->panels->panels + (place * t->panels->blocks + key / KEYS) * packed_floats(t->D);
    if (key < *from || key > *packed) *from = *packed = (int32_t)key; /* what a window left, or comes back to */
    if (*packed >= key + keys) return kept;
    if (keys > 1 && *packed == key + keys - 1) pack_last_key(t, kept, at, keys);
    else pack_keys(t, kept, at, keys);
    *packed = (int32_t)(key + keys);
    return kept;
}

/* One row of scores of a key block becomes weights 2^(scale s - m); keys from..visible of KEYS count. sum[VL]: what was summed
 * before, in lanes. Returns the factor by which all that was summed before shrinks. */
static float softmax_step(float *weights, const float *s, int64_t from, int64_t visible, float scale, float *m, float *sum) {
    const vf none = v_set(-INFINITY);
    vf largest = v_set(*m), total = v_load(sum), p[KEYS / VL];
    if (visible <= 0 || from >= KEYS) {
        memset(weights, 0, (size_t)places(KEYS) * sizeof *weights);
        return 1;
    }
    UNROLL(int j = 0; j < KEYS / VL; j++) {
        p[j] = v_mul(v_load(s + j * VL), v_set(scale));
        if (visible < KEYS) p[j] = v_first(p[j], none, visible < j * VL ? 0 : least(visible - j * VL, VL));
        if (from > 0) p[j] = v_first(none, p[j], from < j * VL ? 0 : least(from - j * VL, VL));
        largest = v_max(largest, p[j]);
    }
    float now = v_largest(largest), shrink = *m == now ? 1 : exp2f(*m - now);
    if (shrink != 1) total = v_mul(total, v_set(shrink));
    UNROLL(int j = 0; j < KEYS / VL; j++) {
        p[j] = v_exp2(v_sub(p[j], v_set(now)));
        total = v_add(total, p[j]);
    }
    UNROLL(int j = 0; j < KEYS / VL; j += 2) put_values(weights, j * VL, p + j);
    v_store(sum, total);
    *m = now;
    return shrink;
}

static void scale_row(float *x, int64_t n, float factor) {
    for (int64_t j = 0; j < n; j += VL) v_store(x + j, v_mul(v_load(x + j), v_set(factor)));
}

/* n rows of queries, the first at position `first`, see a packed key block; m, sum and out hold what they saw before. A single
 * query's heads are rows at the same position. */
static void see_block(const attention *t, float *scratch, const float *packed, int64_t key, int64_t first, int64_t n, bool single,
                      int64_t r0) {
    const forward_parts *at = &t->forward;
    int64_t D = t->D, ld = padded(D, VL);
    float *scores = scratch + at->scores, *p = scratch + at->p, *out = scratch + at->out + r0 * ld;
    product(n, KEYS, D, scratch + at->q + r0 * distance(D), distance(D), packed, scores, KEYS, 0);
    cap_scores(t, scores, n, KEYS, KEYS);
    for (int64_t i = 0; i < n; i++) {
        int64_t position = first + (single ? 0 : i), visible = least(position + 1 - key, KEYS);
        float shrink = softmax_step(p + i * distance(KEYS), scores + i * KEYS, gr_first_key(t->window, position) - key, visible,
                                    log2_scale(t), scratch + at->m + r0 + i, scratch + at->sum + (r0 + i) * VL);
        if (shrink != 1) scale_row(out + i * ld, ld, shrink);
    }
    product(n, D, KEYS, p, distance(KEYS), packed + packed_keys(D), out, ld, 1);
}

/* Rows of queries from j0 of sequence s, heads h0..h0+heads of one key/value head: row i of head h stands at (h blocks QUERIES + i)
 * of the parts of scratch, a single query's heads one after the other. */
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
    for (int64_t key = gr_first_key(t->window, first) / KEYS * KEYS; key < first + rows; key += KEYS) {
        const float *packed = packed_block(t, scratch + at->packed, s, key, head);
        if (rows == 1) see_block(t, scratch, packed, key, first, heads, true, 0);
        for (int64_t h = 0; rows > 1 && h < heads; h++)
            for (int64_t i = key > first ? (key - first) / QUERIES * QUERIES : 0;
                 i < rows && gr_first_key(t->window, first + i) < key + KEYS; i += QUERIES)
                see_block(t, scratch, packed, key, first + i, least(QUERIES, rows - i), false, h * per_head + i);
    }
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < rows; i++) {
            int64_t r = h * per_head + i;
            float *to = t->out + (row + i) * t->ldo + (h0 + h) * D, all = v_sum(v_load(sum + r * VL));
            for (int64_t j = 0; j < D; j++) to[j] = out[r * ld + j] / all + 0.0f; /* + 0: one sign of zero */
            if (t->lse) t->lse[(row + i) * t->H + h0 + h] = m[r] * ln_2 + logf(all);
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
    forward_rows(t, gr_cpu_scratch(t->d, worker), s, j0, least(rows, s->q_len - j0), head * per_head + in_head,
                 least(GROUP, per_head - in_head));
}

static int64_t forward_tasks(const attention *t) {
    int64_t n = 0;
    for (int64_t s = 0; s < t->n_seqs; s++) n += pieces(t, &t->seqs[s]);
    return n * t->K * head_groups(t);
}

void LEVEL(gr_attention_forward)(gr_device *d, const gr_attention *a) {
    if (a->D > D_MAX || !ATTENDS(a->compute)) {
        EXACT(gr_attention_forward)(d, a);
        return;
    }
    attention t = attention_of(d, a);
    enum { TASKS_EACH = 6 };                            /* for each thread, before tasks grow: they differ in length */
    for (t.blocks = BLOCKS; t.blocks > 1; t.blocks--) { /* no row's bits depend on it */
        t.forward = forward_parts_of(a->D, least(GROUP, a->H / a->K), t.blocks);
        if (t.forward.end <= GR_CPU_SCRATCH && forward_tasks(&t) >= TASKS_EACH * gr_threads_count(gr_cpu_threads(d))) break;
    }
    t.forward = forward_parts_of(a->D, least(GROUP, a->H / a->K), t.blocks);
    gr_threads_run(gr_cpu_threads(d), forward_tasks(&t), forward_task, &t);
}

#endif
