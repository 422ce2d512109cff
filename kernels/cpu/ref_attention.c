/* ref_attention.c - the reference of causal attention: one query row after the other, scores recomputed. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/impl.h"

typedef struct attention {
    float *out, *lse, *dq, *dk, *dv;
    const float *dout, *q, *k, *v;
    int64_t ldo, ldq, ldkv, H, K, D;
    const gr_seq *seqs;
    float scale, softcap;
    int64_t window;
} attention;

static attention attention_of(const gr_attention *a) {
    gr_check_attention(a);
    return (attention){.out = gr_f32(a->out),
                       .lse = a->lse,
                       .dq = gr_f32(a->dq),
                       .dk = gr_f32(a->dk),
                       .dv = gr_f32(a->dv),
                       .dout = gr_f32(a->dout),
                       .q = gr_f32(a->q),
                       .k = gr_f32(a->k),
                       .v = gr_f32(a->v),
                       .ldo = a->out.ld,
                       .ldq = a->q.ld,
                       .ldkv = a->k.ld,
                       .H = a->H,
                       .K = a->K,
                       .D = a->D,
                       .seqs = a->seqs,
                       .scale = a->scale,
                       .softcap = a->softcap,
                       .window = a->window};
}

static float dot(const float *a, const float *b, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void add_scaled(float *y, float a, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

static float capped(const attention *t, float score) { return t->softcap > 0 ? t->softcap * tanhf(score / t->softcap) : score; }

/* Online softmax: out holds sum exp(s - m) v for the largest score m so far. */
static void forward_row(const attention *t, int64_t row, int64_t kv_start, int64_t keys, int64_t h) {
    const float *q = t->q + row * t->ldq + h * t->D;
    float *out = t->out + row * t->ldo + h * t->D, largest = -INFINITY, total = 0;
    int64_t at = h / (t->H / t->K) * t->D;
    memset(out, 0, (size_t)t->D * sizeof *out);
    for (int64_t j = kv_start + gr_first_key(t->window, keys - 1); j < kv_start + keys; j++) {
        float s = capped(t, t->scale * dot(q, t->k + j * t->ldkv + at, t->D)), m = fmaxf(largest, s);
        float shrink = expf(largest - m), p = expf(s - m);
        for (int64_t i = 0; i < t->D; i++) out[i] *= shrink;
        total = total * shrink + p;
        largest = m;
        add_scaled(out, p, t->v + j * t->ldkv + at, t->D);
    }
    for (int64_t i = 0; i < t->D; i++) out[i] /= total;
    if (t->lse) t->lse[row * t->H + h] = largest + logf(total);
}

/* Sequence and head number task. */
static void forward_tasks(const void *args, int64_t begin, int64_t end) {
    const attention *t = args;
    for (int64_t task = begin; task < end; task++) {
        const gr_seq *s = &t->seqs[task / t->H];
        for (int64_t j = 0; j < s->q_len; j++)
            forward_row(t, s->q_start + j, s->kv_start, s->kv_len - s->q_len + j + 1, task % t->H);
    }
}

void gr_attention_forward_generic(gr_device *d, const gr_attention *a) {
    attention t = attention_of(a);
    gr_cpu_for(d, a->n_seqs * a->H, 1, forward_tasks, &t);
}

/* p = softmax row; ds = p (dout v^T - delta), delta = dout . out (the sum over keys of p dp). */
static void backward_row(const attention *t, int64_t row, int64_t kv_start, int64_t keys, int64_t h) {
    int64_t at = h / (t->H / t->K) * t->D;
    const float *q = t->q + row * t->ldq + h * t->D, *dout = t->dout + row * t->ldo + h * t->D;
    float *dq = t->dq + row * t->ldq + h * t->D, delta = dot(dout, t->out + row * t->ldo + h * t->D, t->D);
    memset(dq, 0, (size_t)t->D * sizeof *dq);
    for (int64_t j = kv_start + gr_first_key(t->window, keys - 1); j < kv_start + keys; j++) {
        const float *k = t->k + j * t->ldkv + at, *v = t->v + j * t->ldkv + at;
        float s = capped(t, t->scale * dot(q, k, t->D)), p = expf(s - t->lse[row * t->H + h]);
        float ds = t->scale * p * (dot(dout, v, t->D) - delta);
        if (t->softcap > 0) ds *= 1 - s / t->softcap * (s / t->softcap);
        add_scaled(dq, ds, k, t->D);
        add_scaled(t->dk + j * t->ldkv + at, ds, q, t->D);
        add_scaled(t->dv + j * t->ldkv + at, p, dout, t->D);
    }
}

/* Sequence and key/value head number task: all query heads that add to its dk and dv. */
static void backward_tasks(const void *args, int64_t begin, int64_t end) {
    const attention *t = args;
    for (int64_t task = begin; task < end; task++) {
        const gr_seq *s = &t->seqs[task / t->K];
        int64_t head = task % t->K, per_head = t->H / t->K;
        for (int64_t j = s->kv_start; j < s->kv_start + s->kv_len; j++) {
            memset(t->dk + j * t->ldkv + head * t->D, 0, (size_t)t->D * sizeof(float));
            memset(t->dv + j * t->ldkv + head * t->D, 0, (size_t)t->D * sizeof(float));
        }
        for (int64_t h = head * per_head; h < (head + 1) * per_head; h++)
            for (int64_t j = 0; j < s->q_len; j++) backward_row(t, s->q_start + j, s->kv_start, s->kv_len - s->q_len + j + 1, h);
    }
}

void gr_attention_backward_generic(gr_device *d, const gr_attention *a) {
    attention t = attention_of(a);
    gr_cpu_for(d, a->n_seqs * a->K, 1, backward_tasks, &t);
    gr_turn_back(d, a);
}
