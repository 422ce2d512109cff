/* attention_backward.h - the backward of attention_tmpl.h. A task is a range of a sequence's keys and a key/value head: it keeps a
 * few blocks of keys and their gradients, and packs each block of queries once for all of them. Scores are of keys by queries, so
 * that p^T and ds^T are left factors as they come: dv += p^T dout, dk += ds^T q, and dq^T += K^T ds^T. */
#ifndef GR_CPU_ATTENTION_BACKWARD_H
#define GR_CPU_ATTENTION_BACKWARD_H

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

/* p = exp(scale s - lse) and ds = scale p (dp - delta) of one key and VL queries from i on; of capped scores ds is that of what
 * they were before. */
INLINE void weigh(const attention *t, const float *scratch, int64_t key, int64_t i, vf *p, vf *ds) {
    const backward_parts *at = &t->backward;
    vf s = v_load(scratch + at->scores + key * QUERIES + i), dp = v_load(scratch + at->ds + key * QUERIES + i);
    *p = v_exp2(v_fma(s, v_set(log2_scale(t)), v_load(scratch + at->lse + i)));
    *ds = v_mul(v_mul(*p, v_set(t->scale)), v_sub(dp, v_load(scratch + at->delta + i)));
    if (t->softcap == 0) return;
    vf share = v_mul(s, v_set(t->scale / t->softcap)); /* the tanh: its slope is 1 - tanh^2 */
    *ds = v_mul(*ds, v_sub(v_set(1), v_mul(share, share)));
}

/* Lanes from..to of v, zeros in the others. */
static inline vf v_between(vf v, int64_t from, int64_t to) {
    const vf zero = v_set(0);
    v = v_first(v, zero, to < 0 ? 0 : least(to, VL));
    return v_first(zero, v, from < 0 ? 0 : least(from, VL));
}

/* A block of keys and a block of query rows that see some of it. */
typedef struct meeting {
    int64_t block, keys; /* its number in the task, its keys */
    int64_t rows, ahead; /* positions of the first key before the first query */
    bool first;          /* of those of the key block */
    bool first_of_rows;  /* of those of the queries in this task */
} meeting;

/* Scores of keys and their gradients become p^T and ds^T, rows and panels. */
static void probabilities(const attention *t, float *scratch, const meeting *b) {
    const backward_parts *at = &t->backward;
    const int64_t keys = b->keys, rows = b->rows, ahead = b->ahead;
    const bool leaves = t->window > 0 && ahead + QUERIES > t->window; /* some queries are beyond the window of some keys */
    const bool masked = ahead < KEYS || rows < QUERIES || keys < KEYS || leaves;
    float *p_rows = scratch + at->p_rows, *ds_rows = scratch + at->ds_rows, *panels = scratch + at->ds_panels;
    for (int64_t j = 0; j < padded(keys, UNIT); j += 2)
        for (int64_t i = 0; i < padded(rows, UNIT); i += 2 * VL) {
            vf p[2][2], ds[2][2];
            UNROLL(int n = 0; n < 4; n++) {
                int64_t key = j + n / 2, query = i + n % 2 * VL;
                weigh(t, scratch, key, query, &p[n / 2][n % 2], &ds[n / 2][n % 2]);
                if (!masked) continue;
                int64_t from = key < keys ? key - ahead - query : VL, to = rows - query;
                if (leaves) to = least(to, key - ahead - query + t->window);
                p[n / 2][n % 2] = v_between(p[n / 2][n % 2], from, to), ds[n / 2][n % 2] = v_between(ds[n / 2][n % 2], from, to);
            }
            put_values(p_rows + j * distance(QUERIES), i, p[0]), put_values(p_rows + (j + 1) * distance(QUERIES), i, p[1]);
            put_values(ds_rows + j * distance(QUERIES), i, ds[0]), put_values(ds_rows + (j + 1) * distance(QUERIES), i, ds[1]);
            put_panel_rows(panels + i * places(padded(keys, UNIT)), j, ds[0], ds[1]);
        }
}

/* The gradients that the packed query rows and a key block of a task give each other. */
static void backward_block(const attention *t, float *scratch, const meeting *b) {
    const backward_parts *at = &t->backward;
    int64_t D = t->D, keys = b->keys, wide = padded(b->rows, UNIT);
    float *of_keys = scratch + b->block * at->key_floats;
    product(keys, wide, D, of_keys + at->k, distance(D), scratch + at->q_turned, scratch + at->scores, QUERIES, 0);
    product(keys, wide, D, of_keys + at->v, distance(D), scratch + at->dout_turned, scratch + at->ds, QUERIES, 0);
    cap_scores(t, scratch + at->scores, keys, wide, QUERIES);
    probabilities(t, scratch, b);
    product(keys, D, wide, scratch + at->p_rows, distance(QUERIES), scratch + at->dout, of_keys + at->dv, D, !b->first);
    product(keys, D, wide, scratch + at->ds_rows, distance(QUERIES), scratch + at->q, of_keys + at->dk, D, !b->first);
    product(D, wide, padded(keys, UNIT), of_keys + at->k_turned, distance(KEYS), scratch + at->ds_panels, scratch + at->dq, QUERIES,
            !b->first_of_rows);
}

/* dq[rows, D] (+)= the transpose of x[D, QUERIES]. */
static void turn_back(float *dq, int64_t ldq, const float *x, int64_t rows, int64_t D, bool accumulate) {
    for (int64_t i = 0; i < rows; i += VL)
        for (int64_t j = 0; j < D; j += VL) {
            int64_t n = least(rows - i, VL), count = least(D - j, VL);
            vf r[VL];
            UNROLL(int c = 0; c < VL; c++) r[c] = c < count ? v_load(x + (j + c) * QUERIES + i) : v_set(0);
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
        scratch[at->lse + i] = i < rows ? -log2_e * t->lse[(row + i) * t->H + h] : 0;
        scratch[at->delta + i] = i < rows ? t->delta[(row + i) * t->H + h] : 0;
    }
}

/* The keys of a sequence are split in ranges, tasks of about equal work, since there may be few sequences and heads. The first
 * range sums dq in place, each of the others in rows of `partial`, from its first key's query to the last that sees one of its
 * keys. The ranges depend on the shapes and the window alone. */
enum { RANGE_KEYS = 512, RANGES = 12 /* of all heads of a sequence */ };
static const int64_t partial_max = GR_CPU_SHARED / (int64_t)sizeof(float);

/* The window, where it leaves something of a sequence out; else 0. */
static int64_t window_of(const attention *t, const gr_seq *s) { return t->window < s->kv_len ? t->window : 0; }

/* The first key of range r of n: about r/n of all pairs of blocks come before. */
static int64_t range_start(const attention *t, const gr_seq *s, int64_t r, int64_t n) {
    int64_t blocks = (s->kv_len + KEYS - 1) / KEYS, block = 0,
            seen = window_of(t, s) ? least(t->window / KEYS + 2, blocks) : blocks;
    int64_t all =
        seen * (seen + 1) / 2 + (blocks - seen) * seen; /* a block of keys is seen by so many of queries, or what is left */
    for (int64_t before = 0; before * n < all * r; block++) before += least(blocks - block, seen);
    return least(block * KEYS, s->kv_len);
}

/* Queries before this one alone see keys before `end`. */
static int64_t seen_until(const attention *t, const gr_seq *s, int64_t end) {
    return window_of(t, s) ? least(s->kv_len, end - 1 + t->window) : s->kv_len;
}

/* Rows of partial that range r of n takes, and floats that ranges 1..r take. */
static int64_t partial_rows(const attention *t, const gr_seq *s, int64_t r, int64_t n) {
    return seen_until(t, s, range_start(t, s, r + 1, n)) - range_start(t, s, r, n);
}

static int64_t partial_floats(const attention *t, const gr_seq *s, int64_t r, int64_t n) {
    int64_t rows = 0;
    for (int64_t i = 1; i < r; i++) rows += partial_rows(t, s, i, n);
    return rows * t->H * t->D;
}

static int64_t ranges(const attention *t, const gr_seq *s) {
    int64_t n = least(s->kv_len / RANGE_KEYS, (RANGES + t->K - 1) / t->K);
    while (n > 1 && partial_floats(t, s, n, n) > partial_max) n--;
    return n > 1 ? n : 1;
}

/* The gradients of keys begin..end of head `head`, and what they add to those of the queries, in rows of dq from the first of the
 * range. */
static void backward_keys(const attention *t, float *scratch, const gr_seq *s, int64_t head, int64_t begin, int64_t end, float *dq,
                          int64_t ldq) {
    const backward_parts *at = &t->backward;
    int64_t D = t->D, per_head = t->H / t->K, step = t->blocks * KEYS, window = window_of(t, s);
    const int64_t last = begin ? seen_until(t, s, end) : s->q_len; /* rows of dq end there: what follows is another task's */
    if (window) {                                                  /* not every query of the range sees its first keys */
        for (int64_t i = 0; i < last - begin; i++)
            memset(dq + i * ldq + head * per_head * D, 0, (size_t)(per_head * D) * sizeof *dq);
    }
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
            for (int64_t i = key; i < seen_until(t, s, key + keys); i += QUERIES) {
                int64_t rows = least(QUERIES, last - i);
                bool first_of_rows = true;
                pack_queries(t, scratch, s->q_start + i, rows, h);
                for (int64_t j = 0; j < keys && key + j <= i; j += KEYS) {
                    meeting b = {j / KEYS,     least(KEYS, keys - j), rows, i - key - j, h == head * per_head && i == key + j,
                                 first_of_rows};
                    if (gr_first_key(window, i) >= key + j + b.keys) continue;
                    backward_block(t, scratch, &b);
                    first_of_rows = false;
                }
                turn_back(dq + (i - begin) * ldq + h * D, ldq, scratch + at->dq, rows, D, key > begin || window);
            }
        for (int64_t j = 0; j < keys; j++) {
            const float *of_keys = scratch + j / KEYS * at->key_floats + j % KEYS * D;
            memcpy(t->dk + row + j * t->ldkv, of_keys + at->dk, (size_t)D * sizeof(float));
            memcpy(t->dv + row + j * t->ldkv, of_keys + at->dv, (size_t)D * sizeof(float));
        }
    }
}

/* A task is a key/value head of a sequence and a range of its keys: their blocks in order, for each the queries in order, so every
 * sum has one order. */
static void backward_task(void *context, int64_t chunk, int worker) {
    const attention *t = context;
    const gr_seq *s = t->seqs;
    float *partial = t->partial;
    int64_t n;
    for (; chunk >= (n = ranges(t, s)) * t->K; s++) chunk -= n * t->K, partial += partial_floats(t, s, n, n);
    int64_t r = chunk % n, begin = range_start(t, s, r, n), end = range_start(t, s, r + 1, n);
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
            int64_t first = range_start(t, s, r, n), rows = partial_rows(t, s, r, n);
            partial_sums a = {t->dq + (s->q_start + first) * t->ldq, partial, t->ldq, t->H * t->D};
            gr_cpu_for(t->d, rows, gr_cpu_row_grain(a.n), add_partial, &a);
            partial += rows * a.n;
        }
}

/* delta[row,h] = dout . out: the mean of dp under p. */
static void delta_rows(const void *args, int64_t begin, int64_t end) {
    const attention *t = args;
    for (int64_t row = t->seqs->q_start + begin; row < t->seqs->q_start + end; row++)
        for (int64_t h = 0; h < t->H; h++) {
            const float *x = t->out + row * t->ldo + h * t->D, *y = t->dout + row * t->ldo + h * t->D;
            vf sum = v_set(0);
            for (int64_t j = 0; j < t->D; j += VL) {
                int64_t count = least(t->D - j, VL);
                sum = v_fma(v_load_n(x + j, count), v_load_n(y + j, count), sum);
            }
            t->delta[row * t->H + h] = v_sum(sum);
        }
}

void LEVEL(gr_attention_backward)(gr_device *d, const gr_attention *a) {
    if (a->D > D_MAX || !ATTENDS(a->compute)) {
        EXACT(gr_attention_backward)(d, a);
        return;
    }
    attention t = attention_of(d, a);
    t.partial = gr_cpu_shared(d), t.blocks = BLOCKS + 1;
    do t.backward = backward_parts_of(t.D, --t.blocks);
    while (t.blocks > 1 && t.backward.end > GR_CPU_SCRATCH);
    for (; t.seqs < a->seqs + a->n_seqs; t.seqs++) gr_cpu_for(d, t.seqs->q_len, gr_cpu_row_grain(t.H * t.D), delta_rows, &t);
    for (int64_t done = 0; done < a->n_seqs; done += t.n_seqs) { /* as many sequences as have room in partial */
        int64_t tasks = 0, taken = 0;
        t.seqs = a->seqs + done, t.n_seqs = 0;
        for (const gr_seq *s = t.seqs; done + t.n_seqs < a->n_seqs; s++, t.n_seqs++) {
            int64_t n = ranges(&t, s);
            taken += partial_floats(&t, s, n, n);
            if (taken > partial_max) break;
            tasks += n * t.K;
        }
        gr_threads_run(gr_cpu_threads(d), tasks, backward_task, &t);
        add_partials(&t);
    }
    gr_turn_back(d, a);
}

#endif
