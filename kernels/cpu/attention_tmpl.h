/* attention_tmpl.h - causal attention of a vectorised level, forward and backward, as products of small blocks (FlashAttention,
 * arXiv 2205.14135). Key blocks start at position 0 of their sequence and are padded with zeros to KEYS, masked scores
 * weigh exactly 0: a row's bits depend on nothing but its own keys. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/impl.h"
#include "kernels/cpu/tile.h"

enum { KEYS = GR_KV_BLOCK, QUERIES = 64, D_MAX = 256 };

typedef struct attention {
    float *out, *lse, *dq, *dk, *dv, *delta;
    const float *q, *k, *v, *dout, *lse_in;
    int64_t ldo, ldq, ldkv, H, K, D;
    const gr_seq *seqs;
    int64_t n_seqs;
    float scale;
    gr_device *d;
    const gr_kv_panels *panels;
} attention;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t padded(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* Column j of panels [k, n] of floats or pairs. */
static inline void put_column(float *panels, const float *x, int64_t k, int64_t j) {
    for (int64_t p = 0; p < k; p++) panels[j / PANEL * PANEL * k + p * PANEL + j % PANEL] = x[p];
}

/* Which calls a level takes itself, and whom it leaves the others to. */
#if defined(GR_BF16)
#define ATTENDS(compute) ((compute) == GR_DTYPE_BF16)
#define EXACT(name) name##_avx512
#else
#define ATTENDS(compute) true
#define EXACT(name) name##_generic
#endif

/* What is multiplied how: packing and the products of blocks, over the scratch of a task. */
#if defined(GR_BF16)
#include "kernels/cpu/attention_bf16.h"
#else
#include "kernels/cpu/attention_f32.h"
#endif
_Static_assert((int)F_END <= (int)GR_CPU_SCRATCH && (int)B_END <= (int)GR_CPU_SCRATCH, "scratch");

/* Scores are multiplied by this, so that powers of 2 take the place of those of e. */
static inline float log2_scale(const attention *t) { return t->scale * 1.44269504f; }

/* One row of scores of a key block becomes 2^(scale s - m); the first `visible` (<= 0: none) of KEYS keys count. sum[VL]: what was summed
 * before, in lanes. Returns the factor by which all that was summed before shrinks. */
static float softmax_step(float *s, int64_t visible, float scale, float *m, float *sum) {
    const vf none = v_set(-INFINITY);
    if (visible <= 0) {
        memset(s, 0, KEYS * sizeof *s);
        return 1;
    }
    vf largest = v_set(*m), total = v_load(sum), p[KEYS / VL];
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
        v_store(s + j * VL, p[j]);
    }
    v_store(sum, total);
    *m = now;
    return shrink;
}

static void scale_row(float *x, int64_t n, float factor) {
    for (int64_t j = 0; j < n; j++) x[j] *= factor;
}

/* The packed block of keys from `key` on of a sequence's key/value head: in scratch, or kept for the next token when a single query is decoded. */
static const float *packed_block(const attention *t, float *scratch, const gr_seq *s, int64_t key, int64_t head) {
    int64_t keys = least(KEYS, s->kv_len - key), at = (s->kv_start + key) * t->ldkv + head * t->D;
    if (!t->panels || s->q_len != 1 || t->H / t->K > GROUP) { /* a head's task must be the only one to keep blocks of it */
        pack_forward(t, scratch + F_KEYS, at, keys);
        return scratch + F_KEYS;
    }
    int64_t place = s->kv_start / t->panels->max_len * t->K + head;
    int32_t *packed = &t->panels->packed[place];
    float *kept = t->panels->data + (place * t->panels->blocks + key / KEYS) * packed_floats(t->D);
    if (*packed >= key + keys) return kept;
    if (keys > 1 && *packed == key + keys - 1) pack_forward_last(t, kept, at, keys);
    else pack_forward(t, kept, at, keys);
    *packed = (int32_t)(key + keys);
    return kept;
}

/* `rows` queries from j0 of sequence s, heads h0..h0+heads of one key/value head. A single query's heads are multiplied together, as rows. */
static void forward_block(const attention *t, float *scratch, const gr_seq *s, int64_t j0, int64_t rows, int64_t h0,
                          int64_t heads) {
    int64_t D = t->D, ld = padded(D, VL), head = h0 / (t->H / t->K), first = s->kv_len - s->q_len + j0;
    int64_t together = rows == 1 ? heads : 1, ldq = rows == 1 ? D : t->ldq;
    float *scores = scratch + F_SCORES, *m = scratch + F_SUMS, *sum = m + GROUP * QUERIES, *out = scratch + F_OUT;
    for (int64_t i = 0; i < heads * rows; i++) m[i] = -INFINITY;
    memset(sum, 0, (size_t)(heads * rows * VL) * sizeof *sum);
    memset(out, 0, (size_t)(heads * rows * ld) * sizeof *out);
    for (int64_t key = 0; key < first + rows; key += KEYS) {
        const float *packed = packed_block(t, scratch, s, key, head);
        for (int64_t h = 0; h < heads; h += together) {
            const float *q = t->q + (s->q_start + j0) * t->ldq + (h0 + h) * D;
            score_product(t, scratch, packed, q, ldq, rows * together);
            for (int64_t i = 0; i < rows * together; i++) {
                int64_t r = h * rows + i, visible = first + i % rows + 1 - key;
                float shrink = softmax_step(scores + i * KEYS, least(visible, KEYS), log2_scale(t), &m[r], &sum[r * VL]);
                if (shrink != 1) scale_row(out + r * ld, ld, shrink);
            }
            value_product(t, scratch, packed, out + h * rows * ld, ld, rows * together);
        }
    }
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < rows; i++) {
            int64_t r = h * rows + i, row = s->q_start + j0 + i;
            float *to = t->out + row * t->ldo + (h0 + h) * D;
            float all = v_sum(v_load(sum + r * VL));
            for (int64_t j = 0; j < D; j++) to[j] = out[r * ld + j] / all + 0.0f; /* + 0: one sign of zero */
            if (t->lse) t->lse[row * t->H + h0 + h] = m[r] * 0.693147181f + logf(all);
        }
}

static int64_t head_groups(const attention *t) { return (t->H / t->K + GROUP - 1) / GROUP; }

/* Tasks are (sequence, block of queries, key/value head, group of its heads), found by walking the sequences. */
static void forward_task(void *context, int64_t chunk, int worker) {
    const attention *t = context;
    int64_t groups = head_groups(t), per_block = t->K * groups, block = chunk / per_block, s = 0;
    for (; block >= (t->seqs[s].q_len + QUERIES - 1) / QUERIES; s++) block -= (t->seqs[s].q_len + QUERIES - 1) / QUERIES;
    const gr_seq *seq = &t->seqs[s];
    int64_t j0 = ((seq->q_len + QUERIES - 1) / QUERIES - 1 - block) * QUERIES; /* the long ones first */
    int64_t per_head = t->H / t->K, head = chunk % per_block / groups, in_head = chunk % groups * GROUP;
    forward_block(t, gr_cpu_scratch(t->d, worker), seq, j0, least(QUERIES, seq->q_len - j0), head * per_head + in_head,
                  least(GROUP, per_head - in_head));
}

void LEVEL(gr_attention_forward)(gr_device *d, float *out, int64_t ldo, float *lse, const float *q, int64_t ldq,
                                 const float *k, const float *v, int64_t ldkv, const gr_seq *seqs, int64_t n_seqs,
                                 int64_t H, int64_t K, int64_t D, float scale, gr_dtype compute, const gr_kv_panels *panels) {
    if (D > D_MAX || !ATTENDS(compute)) {
        EXACT(gr_attention_forward)(d, out, ldo, lse, q, ldq, k, v, ldkv, seqs, n_seqs, H, K, D, scale, compute, panels);
        return;
    }
    attention t = {.out = out, .lse = lse, .q = q, .k = k, .v = v, .ldo = ldo, .ldq = ldq, .ldkv = ldkv, .H = H, .K = K,
                   .D = D, .seqs = seqs, .n_seqs = n_seqs, .scale = scale, .d = d, .panels = panels};
    int64_t blocks = 0;
    for (int64_t s = 0; s < n_seqs; s++) blocks += (seqs[s].q_len + QUERIES - 1) / QUERIES;
    gr_threads_run(d->threads, blocks * K * head_groups(&t), forward_task, &t);
}

/* p = exp(scale s - lse), ds = scale p (dp - delta) for the visible keys of a row, 0 for the others. */
static void probabilities(float *p, float *ds, int64_t visible, float scale, float lse, float delta) {
    const vf to_log2 = v_set(scale * 1.44269504f), from = v_set(-lse * 1.44269504f);
    for (int64_t j = 0; j < KEYS; j += VL) {
        vf e = v_exp2(v_fma(v_load(p + j), to_log2, from));
        vf g = v_mul(v_mul(e, v_set(scale)), v_sub(v_load(ds + j), v_set(delta)));
        if (visible < KEYS) {
            int64_t count = visible - j < 0 ? 0 : least(visible - j, VL);
            e = v_first(e, v_set(0), count), g = v_first(g, v_set(0), count);
        }
        v_store(p + j, e);
        v_store(ds + j, g);
    }
}

/* The gradients that query rows j0..j0+rows of head h and a packed key block give each other. */
static void backward_block(const attention *t, float *scratch, const gr_seq *s, int64_t key, int64_t keys, int64_t j0,
                           int64_t rows, int64_t h) {
    int64_t D = t->D, row = s->q_start + j0;
    float *p = scratch + B_P, *ds = scratch + B_DS;
    score_products(t, scratch, t->q + row * t->ldq + h * D, t->dout + row * t->ldo + h * D, rows);
    for (int64_t i = 0; i < rows; i++)
        probabilities(p + i * KEYS, ds + i * KEYS, least(j0 + i + 1 - key, KEYS), t->scale,
                      t->lse_in[(row + i) * t->H + h], t->delta[(row + i) * t->H + h]);
    gradient_products(t, scratch, t->dq + row * t->ldq + h * D, rows, keys, key > 0);
}

/* A task is a sequence's key/value head: its keys in order, for each its queries in order, so every sum has one order. */
static void backward_task(void *context, int64_t chunk, int worker) {
    const attention *t = context;
    const gr_seq *s = &t->seqs[chunk / t->K];
    float *scratch = gr_cpu_scratch(t->d, worker), *dk = scratch + B_DK, *dv = scratch + B_DV;
    int64_t D = t->D, head = chunk % t->K, per_head = t->H / t->K;
    for (int64_t key = 0; key < s->kv_len; key += KEYS) {
        int64_t keys = least(KEYS, s->kv_len - key), at = (s->kv_start + key) * t->ldkv + head * D;
        pack_backward(t, scratch, at, keys);
        memset(dk, 0, (size_t)(KEYS * D) * sizeof *dk);
        memset(dv, 0, (size_t)(KEYS * D) * sizeof *dv);
        for (int64_t h = head * per_head; h < (head + 1) * per_head; h++)
            for (int64_t j0 = key / QUERIES * QUERIES; j0 < s->q_len; j0 += QUERIES)
                backward_block(t, scratch, s, key, keys, j0, least(QUERIES, s->q_len - j0), h);
        for (int64_t j = 0; j < keys; j++) {
            memcpy(t->dk + at + j * t->ldkv, dk + j * D, (size_t)D * sizeof *dk);
            memcpy(t->dv + at + j * t->ldkv, dv + j * D, (size_t)D * sizeof *dv);
        }
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
                   .ldo = ldo, .ldq = ldq, .ldkv = ldkv, .H = H, .K = K, .D = D, .seqs = seqs, .n_seqs = n_seqs,
                   .scale = scale, .d = d};
    for (int64_t s = 0; s < n_seqs; s++) {
        delta_args a = {delta, out, dout, ldo, seqs[s].q_start, H, D};
        gr_cpu_for(d, seqs[s].q_len, gr_cpu_row_grain(H * D), delta_rows, &a);
    }
    gr_threads_run(d->threads, n_seqs * K, backward_task, &t);
}
