/* test_ops.c - every operation of ops.def, for every level this CPU has: against the reference on odd sizes with
 * unaligned, guarded buffers; one thread against three; a row alone against the same row among others. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/kernels.h"
#include "kernels/philox.h"
#include "kernels/threads.h"

enum { GUARD = 16, OUTPUTS = 16, BUFFERS = 64 };

typedef struct output {
    const float *x;
    int64_t rows, cols; /* rows == 0: a sum over rows, cols elements */
} output;

/* One call of an operation: rows row0..row0+n of a virtual batch, sizes of variant v. Owns its buffers. */
typedef struct call {
    gr_device *d;
    int64_t row0, n;
    int variant;
    float *buffers[BUFFERS];
    int64_t sizes[BUFFERS];
    int n_buffers, n_outputs;
    output outputs[OUTPUTS];
    double tolerance;
} call;

/* n floats one float off alignment, guarded on both sides. */
static float *buffer(call *c, int64_t n) {
    float *p = aligned_alloc(64, (size_t)((n + 2 * GUARD + 1 + 15) / 16 * 16) * 4);
    assert_non_null(p);
    assert_true(c->n_buffers < BUFFERS);
    for (int64_t i = 0; i < n + 2 * GUARD + 1; i++) p[i] = 12345.0f;
    c->sizes[c->n_buffers] = n;
    c->buffers[c->n_buffers++] = p;
    return p + GUARD + 1;
}

/* Rows row0..row0+n of a virtual matrix of values in [-1,1). */
static float *filled(call *c, int tag, int64_t row0, int64_t n, int64_t cols) {
    float *x = buffer(c, n * cols);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < cols; j += 4) {
            uint32_t word[4];
            gr_philox(word, 7, (uint32_t)tag, (uint64_t)(row0 + i), (uint64_t)j);
            for (int64_t k = 0; k < 4 && j + k < cols; k++) x[i * cols + j + k] = (float)(word[k] >> 8) * 0x1p-23f - 1;
        }
    return x;
}

static float *rows(call *c, int tag, int64_t cols) { return filled(c, tag, c->row0, c->n, cols); }
static float *fixed(call *c, int tag, int64_t n, int64_t cols) { return filled(c, tag, 0, n, cols); }

static void out_rows(call *c, const float *x, int64_t cols) { c->outputs[c->n_outputs++] = (output){x, c->n, cols}; }

static void out_sum(call *c, const float *x, int64_t n) { c->outputs[c->n_outputs++] = (output){x, 0, n}; }

static void release(call *c) {
    for (int i = 0; i < c->n_buffers; i++) {
        const float *p = c->buffers[i];
        for (int64_t j = 0; j < GUARD + 1; j++) assert_true(p[j] == 12345.0f);
        for (int64_t j = 0; j < GUARD; j++) assert_true(p[GUARD + 1 + c->sizes[i] + j] == 12345.0f);
        free(c->buffers[i]);
    }
}

static const int64_t widths[] = {64, 1, 17, 100, 576, 1031}; /* by variant */
static int64_t width(const call *c) { return widths[c->variant % 6]; }

/* A weight of random blocks; scales are kept small and finite. */
static gr_weight weight(call *c, gr_dtype dtype, int tag, int64_t n_rows, int64_t n_cols) {
    const gr_dtype_info *type = gr_dtype_get(dtype);
    n_cols = (n_cols + type->block - 1) / type->block * type->block;
    int64_t bytes = gr_dtype_bytes(dtype, n_rows * n_cols);
    uint8_t *data = (uint8_t *)buffer(c, (bytes + 3) / 4);
    float *values = fixed(c, tag, n_rows, n_cols);
    if (type->from_f32) {
        type->from_f32(data, values, n_rows * n_cols);
    } else {
        for (int64_t i = 0; i < bytes; i++) data[i] = (uint8_t)gr_random_u32(9, (uint32_t)tag, 1, (uint64_t)i);
        for (int64_t b = 0; b < bytes; b += type->block_bytes) {
            int64_t halves = dtype == GR_DTYPE_Q6_K ? b + 208 : b;
            int count = dtype == GR_DTYPE_Q4_0 || dtype == GR_DTYPE_Q5_0 || dtype == GR_DTYPE_Q6_K ? 1 : 2;
            for (int i = 0; i < count; i++) {
                uint16_t h = gr_f32_to_f16(0.01f * values[(b + i) % (n_rows * n_cols)]);
                memcpy(data + halves + 2 * i, &h, 2);
            }
        }
    }
    return (gr_weight){.dtype = dtype, .rows = n_rows, .cols = n_cols, .data = data};
}

static gr_dtype variant_dtype(const call *c) { return (gr_dtype)(c->variant % GR_DTYPE_COUNT); }

static int32_t *indices(call *c, int64_t below) {
    int32_t *ids = (int32_t *)buffer(c, c->n);
    for (int64_t i = 0; i < c->n; i++) ids[i] = (int32_t)((c->row0 + i) * 7 % below);
    return ids;
}

static void call_embed_forward(call *c) {
    gr_weight table = weight(c, variant_dtype(c), 1, 50, width(c));
    float *x = rows(c, 2, table.cols);
    c->d->ops->embed_forward(c->d, x, &table, indices(c, 50), c->n, c->variant & 1 ? 3.5f : 1);
    out_rows(c, x, table.cols);
}

static void call_embed_backward(call *c) {
    int64_t C = width(c);
    float *dtable = fixed(c, 1, 5, C), *dx = rows(c, 2, C);
    c->d->ops->embed_backward(c->d, dtable, dx, indices(c, 5), c->n, C, 1.5f);
    out_sum(c, dtable, 5 * C);
}

static void call_rmsnorm_forward(call *c) {
    int64_t C = width(c);
    float *out = rows(c, 1, C), *rstd = rows(c, 2, 1), *x = rows(c, 3, C), *add = rows(c, 4, C), *w = fixed(c, 5, 1, C);
    c->d->ops->rmsnorm_forward(c->d, out, c->variant & 2 ? NULL : rstd, x, c->variant & 1 ? NULL : add, w, c->n, C, 1e-5f);
    out_rows(c, out, C), out_rows(c, rstd, 1), out_rows(c, x, C);
}

static void call_rmsnorm_backward(call *c) {
    int64_t C = width(c);
    float *dx = rows(c, 1, C), *dw = fixed(c, 2, 1, C), *dout = rows(c, 3, C), *x = rows(c, 4, C);
    float *rstd = rows(c, 5, 1), *w = fixed(c, 6, 1, C);
    c->d->ops->rmsnorm_backward(c->d, dx, c->variant & 1 ? NULL : dw, dout, x, rstd, w, c->n, C);
    out_rows(c, dx, C), out_sum(c, dw, C);
}

/* Two linears that share x: one plain with bias, one with two LoRAs. */
typedef struct linears {
    gr_linear l[2];
    gr_lora lora[2];
    const gr_linear *group[2];
    int64_t K, ldy, ldh;
} linears;

static void make_linears(call *c, linears *g, bool trained) {
    static const int64_t sizes[][3] = {{64, 64, 8}, {33, 7, 1}, {100, 65, 5}, {576, 192, 16}, {300, 331, 40}};
    const int64_t *s = sizes[c->variant / GR_DTYPE_COUNT % 5];
    gr_dtype dtype = variant_dtype(c);
    memset(g, 0, sizeof *g);
    g->l[0].w = weight(c, dtype, 20, s[1], s[0]);
    g->K = g->l[0].w.cols;
    g->l[1].w = weight(c, dtype, 21, s[1] + 9, g->K);
    g->l[0].bias = fixed(c, 22, 1, s[1]);
    for (int j = 0; j < 2; j++) {
        int64_t rank = s[2] + j;
        g->lora[j] = (gr_lora){
            .rank = rank, .scale = 0.5f + (float)j, .A = fixed(c, 23 + j, rank, g->K), .B = fixed(c, 25 + j, s[1] + 9, rank)};
        if (trained) g->lora[j].dA = fixed(c, 27 + j, rank, g->K), g->lora[j].dB = fixed(c, 29 + j, s[1] + 9, rank);
    }
    g->l[1].lora = g->lora, g->l[1].n_lora = 2;
    g->ldh = 2 * s[2] + 1, g->ldy = 2 * s[1] + 9 + 3; /* and 3 columns of someone else */
    for (int i = 0; i < 2; i++) {
        g->group[i] = &g->l[i];
        g->l[i].compute = c->variant % 7 == 5 ? GR_DTYPE_BF16 : c->variant % 7 == 6 ? GR_DTYPE_F16 : GR_DTYPE_F32;
    }
    c->tolerance = g->l[0].compute == GR_DTYPE_F32 ? 2e-5 : 1e-4;
}

static void call_linear_forward(call *c) {
    linears g;
    make_linears(c, &g, false);
    float *y = rows(c, 1, g.ldy), *h = rows(c, 2, g.ldh), *x = rows(c, 3, g.K), *xd = rows(c, 4, g.K);
    c->d->ops->linear_forward(c->d, y, g.ldy, h, x, xd, g.group, 2, c->n);
    out_rows(c, y, g.ldy), out_rows(c, h, g.ldh);
}

static void call_linear_backward(call *c) {
    linears g;
    make_linears(c, &g, true);
    float *dx = rows(c, 1, g.K), *dxd = rows(c, 2, g.K), *dh = rows(c, 3, g.ldh), *dy = rows(c, 4, g.ldy);
    float *x = rows(c, 5, g.K), *xd = rows(c, 6, g.K), *h = rows(c, 7, g.ldh);
    g.l[0].dw = fixed(c, 8, g.l[0].w.rows, g.K), g.l[0].dbias = fixed(c, 9, 1, g.l[0].w.rows);
    c->d->ops->linear_backward(c->d, dx, c->variant & 1, c->variant & 2 ? NULL : dxd, dh, dy, g.ldy, x, xd, h, g.group, 2, c->n);
    out_rows(c, dx, g.K), out_rows(c, dxd, g.K), out_rows(c, dh, g.ldh);
    out_sum(c, g.l[0].dw, g.l[0].w.rows * g.K), out_sum(c, g.l[0].dbias, g.l[0].w.rows);
    for (int j = 0; j < 2; j++) {
        out_sum(c, g.lora[j].dA, g.lora[j].rank * g.K);
        out_sum(c, g.lora[j].dB, g.l[1].w.rows * g.lora[j].rank);
    }
}

/* Sizes and forms of the matrices that linears with int8 products use. */
static void *int8_form(call *c, const gr_weight *w, bool transposed) {
    int64_t bytes = 0;
    c->d->ops->int8_size(c->d, &bytes, w, transposed);
    assert_true(bytes > 0);
    char *p = (char *)buffer(c, bytes / 4 + 32); /* at the next line: 64-byte aligned */
    p += (64 - (uintptr_t)p % 64) % 64;
    c->d->ops->int8_pack(c->d, p, w, transposed);
    return p;
}

/* The group of linears with int8 forms, forward and backward; what packing made is seen through the products. */
static void call_int8_pack(call *c) {
    linears g;
    make_linears(c, &g, true);
    float *y = rows(c, 1, g.ldy), *h = rows(c, 2, g.ldh), *x = rows(c, 3, g.K), *dy = rows(c, 4, g.ldy), *dx = rows(c, 5, g.K);
    float *dh = rows(c, 6, g.ldh);
    for (int i = 0; i < 2; i++) {
        g.l[i].int8_forward = int8_form(c, &g.l[i].w, false);
        g.l[i].int8_backward = int8_form(c, &g.l[i].w, true);
    }
    c->d->ops->linear_forward(c->d, y, g.ldy, h, x, x, g.group, 2, c->n);
    c->d->ops->linear_backward(c->d, dx, c->variant & 1, NULL, dh, dy, g.ldy, x, x, h, g.group, 2, c->n);
    out_rows(c, y, g.ldy), out_rows(c, h, g.ldh), out_rows(c, dx, g.K);
}

/* The integers' own error against exact products: half a step of either factor in each of K terms, at random. */
static void call_int8_size(call *c) {
    linears g;
    make_linears(c, &g, true);
    gr_linear exact = {.w = g.l[0].w}, rounded = exact;
    const gr_linear *one[] = {&exact}, *two[] = {&rounded};
    int64_t N = exact.w.rows, K = exact.w.cols;
    float *x = rows(c, 1, K), *y = rows(c, 2, N), *z = rows(c, 3, N), *dy = rows(c, 4, N), *dx = rows(c, 5, K), *dz = rows(c, 6, K);
    rounded.int8_forward = int8_form(c, &exact.w, false), rounded.int8_backward = int8_form(c, &exact.w, true);
    c->d->ops->linear_forward(c->d, y, N, NULL, x, x, one, 1, c->n);
    c->d->ops->linear_forward(c->d, z, N, NULL, x, x, two, 1, c->n);
    c->d->ops->linear_backward(c->d, dx, false, NULL, NULL, dy, N, x, x, NULL, one, 1, c->n);
    c->d->ops->linear_backward(c->d, dz, false, NULL, NULL, dy, N, x, x, NULL, two, 1, c->n);
    double error[2] = {0}, size[2] = {0};
    for (int64_t i = 0; i < c->n * N; i++) error[0] += (y[i] - z[i]) * (y[i] - z[i]), size[0] += y[i] * y[i];
    for (int64_t i = 0; i < c->n * K; i++) error[1] += (dx[i] - dz[i]) * (dx[i] - dz[i]), size[1] += dx[i] * dx[i];
    for (int i = 0; i < 2; i++)
        if (c->n > 1 && error[i] > size[i] * 0.02 * 0.02) fail_msg("int8: relative error %g", sqrt(error[i] / size[i]));
    out_rows(c, z, N), out_rows(c, dz, K);
}

static void call_rope(call *c) {
    static const int64_t sizes[] = {64, 2, 10, 128, 80};
    int64_t D = sizes[c->variant % 5], heads = 3, ldx = heads * D + 5;
    float *x = rows(c, 1, ldx), *table = fixed(c, 2, 64, D);
    c->d->ops->rope(c->d, x, ldx, indices(c, 64), table, c->n, heads, D, c->variant & 1);
    out_rows(c, x, ldx);
}

static const int64_t heads[][3] = {{9, 3, 64}, {2, 2, 7}, {4, 1, 40}, {1, 1, 256}, {10, 1, 33}, {3, 3, 128}, {1, 1, 1}};
static gr_dtype attention_compute(call *c) { /* the reference stays exact */
    c->tolerance = c->variant < 7 ? 2e-5 : 1e-2;
    return c->variant < 7 ? GR_DTYPE_F32 : GR_DTYPE_BF16;
}

/* The rows under test are positions row0.. of the first sequence, whose keys begin at 0; a second one follows when all
 * of the batch is run. */
static void call_attention_forward(call *c) {
    const int64_t *s = heads[c->variant % 7], H = s[0], K = s[1], D = s[2], other = c->row0 == 0 ? 70 : 0;
    int64_t ldq = H * D + 3, ldkv = K * D + 1, ldo = H * D + 2, keys = c->row0 + c->n, n = c->n;
    float *q = filled(c, 1, c->row0, n + other, ldq), *out = filled(c, 4, c->row0, n + other, ldo);
    float *k = filled(c, 2, 0, keys + other, ldkv), *v = filled(c, 3, 0, keys + other, ldkv);
    float *lse = filled(c, 5, c->row0, n + other, H);
    gr_seq seqs[2] = {{0, n, 0, keys}, {n, other, keys, other}};
    c->d->ops->attention_forward(c->d, out, ldo, lse, q, ldq, k, v, ldkv, seqs, other ? 2 : 1, H, K, D, 1.7f / sqrtf((float)D),
                                 attention_compute(c), NULL);
    out_rows(c, out, ldo), out_rows(c, lse, H);
    if (other) out_sum(c, out, (n + other) * ldo);
}

static void call_attention_backward(call *c) {
    const int64_t *s = heads[c->variant % 7], H = s[0], K = s[1], D = s[2], n = c->row0 + c->n, other = 3, all = n + other;
    int64_t ldq = H * D + 3, ldkv = K * D + 1, ldo = H * D + 2;
    float scale = 1.0f / sqrtf((float)D), *q = fixed(c, 1, all, ldq), *k = fixed(c, 2, all, ldkv), *v = fixed(c, 3, all, ldkv);
    float *out = fixed(c, 4, all, ldo), *lse = fixed(c, 5, all, H), *delta = fixed(c, 6, all, H), *dout = fixed(c, 7, all, ldo);
    float *dq = fixed(c, 8, all, ldq), *dk = fixed(c, 9, all, ldkv), *dv = fixed(c, 10, all, ldkv);
    gr_seq seqs[2] = {{0, n, 0, n}, {n, other, n, other}};
    gr_dtype compute = attention_compute(c);
    c->d->ops->attention_forward(c->d, out, ldo, lse, q, ldq, k, v, ldkv, seqs, 2, H, K, D, scale, compute, NULL);
    c->d->ops->attention_backward(c->d, dq, dk, dv, delta, dout, ldo, q, ldq, k, v, ldkv, out, lse, seqs, 2, H, K, D, scale,
                                  compute);
    out_sum(c, dq, all * ldq), out_sum(c, dk, all * ldkv), out_sum(c, dv, all * ldkv);
}

static void call_swiglu_forward(call *c) {
    int64_t F = width(c);
    float *out = rows(c, 1, F), *gu = rows(c, 2, 2 * F);
    for (int64_t i = 0; i < c->n * 2 * F; i++) gu[i] *= 20;
    c->d->ops->swiglu_forward(c->d, out, gu, c->n, F);
    out_rows(c, out, F);
}

static void call_swiglu_backward(call *c) {
    int64_t F = width(c);
    float *dgu = rows(c, 1, 2 * F), *gu = rows(c, 2, 2 * F), *dout = rows(c, 3, F);
    c->d->ops->swiglu_backward(c->d, c->variant & 1 ? gu : dgu, dout, gu, c->n, F);
    out_rows(c, c->variant & 1 ? gu : dgu, 2 * F);
}

static void call_cross_entropy(call *c) {
    int64_t V = c->variant == 5 ? 4999 : width(c);
    float *nll = rows(c, 1, 1), *logits = rows(c, 2, V), *w = rows(c, 3, 1);
    for (int64_t i = 0; i < c->n * V; i++) logits[i] *= 30;
    c->d->ops->cross_entropy(c->d, nll, logits, indices(c, V), c->variant & 1 ? NULL : w, c->n, V);
    out_rows(c, nll, 1), out_rows(c, logits, V);
}

static void call_gather_rows(call *c) {
    int64_t C = width(c);
    float *out = rows(c, 1, C), *x = fixed(c, 2, 50, C);
    c->d->ops->gather_rows(c->d, out, x, indices(c, 50), c->n, C);
    out_rows(c, out, C);
}

static void call_scatter_rows(call *c) {
    int64_t C = width(c), all = 1 + 7 * (c->row0 + c->n);
    float *x = fixed(c, 1, all, C), *src = rows(c, 2, C);
    c->d->ops->scatter_rows(c->d, x, src, indices(c, all), c->n, C);
    out_sum(c, x, all * C);
}

static void call_dropout(call *c) {
    int64_t C = width(c);
    float *out = rows(c, 1, C), *x = rows(c, 2, C);
    uint64_t *key = (uint64_t *)((char *)buffer(c, 2 * c->n + 2) + 4);
    for (int64_t i = 0; i < c->n; i++) key[i] = (uint64_t)(c->row0 + i) << 33 | 5;
    c->d->ops->dropout(c->d, out, x, c->n, C, 0.3f, 42, key, 17, c->variant & 1);
    for (int64_t i = 0; !(c->variant & 1) && i < c->n; i++)
        for (int64_t j = 0; j < C; j++) {
            uint32_t word[4];
            gr_philox(word, 42, GR_PURPOSE_DROPOUT, key[i], (uint64_t)17 << 32 | (uint64_t)(j / 4));
            float kept = x[i * C + j] * (1 / (1 - 0.3f));
            assert_true(out[i * C + j] == (word[j % 4] >= (double)0.3f * 4294967296.0 ? kept : 0));
        }
    out_rows(c, out, C);
}

static void call_add(call *c) {
    int64_t C = width(c);
    float *x = rows(c, 1, C), *y = rows(c, 2, C);
    c->d->ops->add(c->d, x, y, c->n * C);
    out_rows(c, x, C);
}

static void call_sum_squares(call *c) {
    int64_t C = width(c) * 97;
    float *x = rows(c, 1, C), *out = buffer(c, 1);
    double sum = -1;
    c->d->ops->sum_squares(c->d, &sum, x, c->n * C);
    *out = (float)sum;
    out_sum(c, out, 1);
    x[c->n * C - 1] = NAN;
    c->d->ops->sum_squares(c->d, &sum, x, c->n * C);
    assert_true(isnan(sum));
}

static void call_adamw(call *c) {
    int64_t C = width(c);
    float *w = rows(c, 1, C), *m = rows(c, 2, C), *v = rows(c, 3, C), *g = rows(c, 4, C);
    for (int64_t i = 0; i < c->n * C; i++) v[i] = fabsf(v[i]);
    gr_adamw p = {.lr = 1e-2f,
                  .beta1 = 0.9f,
                  .beta2 = 0.99f,
                  .epsilon = 1e-6f,
                  .weight_decay = 0.1f,
                  .grad_scale = 0.7f,
                  .step = c->variant + 1};
    c->d->ops->adamw(c->d, w, m, v, g, c->n * C, &p);
    out_rows(c, w, C), out_rows(c, m, C), out_rows(c, v, C);
}

typedef struct operation {
    const char *name;
    void (*run)(call *c);
} operation;

static const operation operations[] = {
#define GR_OP(name, params) {#name, call_##name},
#include "kernels/ops.def"
#undef GR_OP
};

/* Linears take every size in every dtype. */
static int variants(const operation *op) { return op->name[0] == 'l' || op->name[0] == 'i' ? 5 * GR_DTYPE_COUNT : GR_DTYPE_COUNT; }

static const char *const levels[] = {"generic", "avx2", "avx512", "avx512bf16", "amx"};

static gr_device *device(const char *level, int threads) {
    const char *why = NULL;
    setenv("GRAFT_CPU", level, 1);
    gr_device *d = gr_cpu_device_new(threads, &why);
    if (!d) fail_msg("%s", why);
    assert_int_equal(gr_threads_count(d->threads), threads);
    return d;
}

static void make_call(call *c, const operation *op, gr_device *d, int variant, int64_t row0, int64_t n) {
    *c = (call){.d = d, .variant = variant, .row0 = row0, .n = n, .tolerance = 2e-5};
    op->run(c);
}

/* Norm of the difference over norm, each output. */
static void compare(const call *a, const call *b, const operation *op, const char *level) {
    assert_int_equal(a->n_outputs, b->n_outputs);
    for (int i = 0; i < a->n_outputs; i++) {
        int64_t n = a->outputs[i].cols * (a->outputs[i].rows ? a->outputs[i].rows : 1);
        double difference = 0, norm = 1e-30;
        for (int64_t j = 0; j < n; j++) {
            double x = a->outputs[i].x[j], y = b->outputs[i].x[j];
            if (isnan(x) || isnan(y)) fail_msg("%s %s variant %d output %d: NaN", op->name, level, a->variant, i);
            difference += (x - y) * (x - y), norm += y * y;
        }
        if (sqrt(difference / norm) > a->tolerance)
            fail_msg("%s %s variant %d output %d: relative difference %g", op->name, level, a->variant, i, sqrt(difference / norm));
    }
}

static void compare_bits(const call *a, const call *b, const operation *op, const char *what) {
    for (int i = 0; i < a->n_outputs && i < b->n_outputs; i++) {
        const output *x = &a->outputs[i], *y = &b->outputs[i];
        bool whole = a->row0 == b->row0 && a->n == b->n;
        if (!whole && !x->rows) continue;
        int64_t skip = (b->row0 - a->row0) * x->cols, n = y->cols * (y->rows ? y->rows : 1);
        if (memcmp(x->x + skip, y->x, (size_t)n * sizeof(float)) != 0)
            fail_msg("%s %s variant %d output %d: bits differ", op->name, what, a->variant, i);
    }
}

/* Level number *state against the reference, and itself with other threads and fewer rows. */
static void test_level(void **state) {
    const char *level = levels[*(int *)*state];
    if (!gr_cpu_ops(level)) skip();
    gr_device *reference = device("generic", 1), *one = device(level, 1), *three = device(level, 3);
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        for (int variant = 0; variant < variants(&operations[i]); variant++) {
            const operation *op = &operations[i];
            call a, b, c;
            make_call(&a, op, three, variant, 0, 37 + variant % 3 * 32);
            make_call(&b, op, reference, variant, 0, a.n);
            compare(&a, &b, op, level);
            make_call(&c, op, one, variant, 0, a.n);
            compare_bits(&a, &c, op, "one thread");
            release(&b), release(&c);
            for (int64_t row = 0; row < a.n; row += 18) {
                make_call(&b, op, one, variant, row, row % 4 ? 1 : 1 + (a.n - row) / 2);
                compare_bits(&a, &b, op, "fewer rows");
                release(&b);
            }
            if (strncmp(op->name, "attention", 9) != 0 && strcmp(op->name, "sum_squares") != 0) {
                make_call(&b, op, one, variant, 0, 0);
                release(&b);
            }
            release(&a);
        }
    gr_device_free(reference), gr_device_free(one), gr_device_free(three);
}

/* Tokens decoded one by one with the packed keys and values kept beside the cache, half-way set back: the bits of attention without
 * them. */
static void test_kept_panels(void **state) {
    const char *level = levels[*(int *)*state];
    if (!gr_cpu_ops(level)) skip();
    enum { H = 4, K = 2, D = 40, ROWS = 200, SLOTS = 2, BLOCKS = 4, LD = 2 * K * D, SET_BACK = 150, TO = 100 };
    gr_device *d = device(level, 2);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        call c = {.d = d, .n = SLOTS};
        int32_t packed[SLOTS * K] = {0};
        float *panels = buffer(&c, SLOTS * K * BLOCKS * 2 * GR_KV_BLOCK * 64);
        gr_kv_panels kept = {panels, packed, ROWS, BLOCKS};
        float *kv = fixed(&c, 1, SLOTS * ROWS, LD), *q = fixed(&c, 2, SLOTS, H * D), *out = rows(&c, 3, H * D),
              *expected = rows(&c, 4, H * D);
        bool set_back = false;
        for (int len = 1; len <= ROWS; len++) {
            gr_seq seqs[SLOTS] = {{0, 1, 0, len}, {1, 1, ROWS, (len + 1) / 2}};
            for (int i = 0; i < 2; i++)
                d->ops->attention_forward(d, i ? out : expected, H * D, NULL, q, H * D, kv, kv + K * D, LD, seqs, SLOTS, H, K, D,
                                          0.2f, bf16 ? GR_DTYPE_BF16 : GR_DTYPE_F32, i ? &kept : NULL);
            if (memcmp(out, expected, SLOTS * H * D * sizeof *out) != 0) fail_msg("%s: %d keys, bits differ", level, len);
            if (len != SET_BACK || set_back) continue;
            set_back = true;
            for (int i = TO * LD; i < ROWS * LD; i++) kv[i] = -kv[i]; /* another text from there on */
            packed[0] = packed[1] = TO / GR_KV_BLOCK * GR_KV_BLOCK;
            len = TO;
        }
        if (strcmp(level, "generic") != 0) assert_int_equal(packed[0], ROWS);
        release(&c);
    }
    gr_device_free(d);
}

/* A contraction and a number of rows beyond what is rounded at once (bfloat16 on tiles, int8), against the reference. */
static void test_long_contraction(void **state) {
    const char *level = levels[*(int *)*state];
    if (!gr_cpu_ops(level)) skip();
    enum { N = 40000, K = 33, ROWS = 450 };
    gr_device *devices[2] = {device("generic", 1), device(level, 3)};
    for (int int8 = 0; int8 < 2; int8++) {
        call c[2] = {0};
        for (int i = 0; i < 2; i++) {
            c[i].d = devices[i], c[i].n = ROWS, c[i].tolerance = 1e-4;
            gr_linear l = {.w = weight(&c[i], GR_DTYPE_F32, 1, N, K), .compute = GR_DTYPE_BF16};
            const gr_linear *group = &l;
            if (int8) l.int8_backward = int8_form(&c[i], &l.w, true);
            float *dx = rows(&c[i], 2, K), *dy = rows(&c[i], 3, N);
            c[i].d->ops->linear_backward(c[i].d, dx, true, NULL, NULL, dy, N, dx, dx, NULL, &group, 1, ROWS);
            out_rows(&c[i], dx, K);
        }
        compare(&c[1], &c[0], &(operation){.name = "long contraction"}, level);
        release(&c[0]), release(&c[1]);
    }
    gr_device_free(devices[0]), gr_device_free(devices[1]);
}

/* Sequences whose keys are split among tasks, against the reference; and each alone has the bits it has in the batch. */
static void attend(call *c, int64_t first, int64_t n_seqs, gr_dtype compute) {
    enum { H = 2, K = 1, D = 17, LDQ = H * D + 3, LDKV = K * D + 1, ALL = 3300 };
    static const gr_seq seqs[] = {{0, 1600, 0, 1600}, {1600, 100, 1600, 100}, {1700, 1100, 1700, 1100}, {2800, 500, 2800, 500}};
    int64_t begin = seqs[first].q_start, end = seqs[first + n_seqs - 1].q_start + seqs[first + n_seqs - 1].q_len;
    float *q = fixed(c, 1, ALL, LDQ), *k = fixed(c, 2, ALL, LDKV), *v = fixed(c, 3, ALL, LDKV), *dout = fixed(c, 7, ALL, LDQ);
    float *out = fixed(c, 4, ALL, LDQ), *lse = fixed(c, 5, ALL, H), *delta = fixed(c, 6, ALL, H);
    float *dq = fixed(c, 8, ALL, LDQ), *dk = fixed(c, 9, ALL, LDKV), *dv = fixed(c, 10, ALL, LDKV);
    c->d->ops->attention_forward(c->d, out, LDQ, lse, q, LDQ, k, v, LDKV, seqs + first, n_seqs, H, K, D, 0.25f, compute, NULL);
    c->d->ops->attention_backward(c->d, dq, dk, dv, delta, dout, LDQ, q, LDQ, k, v, LDKV, out, lse, seqs + first, n_seqs, H, K, D,
                                  0.25f, compute);
    c->row0 = begin, c->n = end - begin, c->tolerance = compute == GR_DTYPE_F32 ? 2e-5 : 1e-2;
    out_rows(c, out + begin * LDQ, LDQ), out_rows(c, dq + begin * LDQ, LDQ);
    out_rows(c, dk + begin * LDKV, LDKV), out_rows(c, dv + begin * LDKV, LDKV);
}

static void test_long_attention(void **state) {
    const char *level = levels[*(int *)*state];
    if (!gr_cpu_ops(level)) skip();
    const operation op = {.name = "long attention"};
    gr_device *reference = device("generic", 2), *one = device(level, 1), *three = device(level, 3);
    call exact = {.d = reference};
    attend(&exact, 0, 4, GR_DTYPE_F32);
    for (int bf16 = 0; bf16 < 2; bf16++) {
        gr_dtype compute = bf16 ? GR_DTYPE_BF16 : GR_DTYPE_F32;
        call a = {.d = three}, b = {.d = one};
        attend(&a, 0, 4, compute);
        compare(&a, &exact, &op, level);
        attend(&b, 0, 4, compute);
        compare_bits(&a, &b, &op, "one thread");
        release(&b);
        b = (call){.d = three};
        attend(&b, 2, 1, compute);
        compare_bits(&a, &b, &op, "alone");
        release(&a), release(&b);
    }
    release(&exact);
    gr_device_free(reference), gr_device_free(one), gr_device_free(three);
}

static void test_philox(void **state) {
    (void)state; /* Random123 kat_vectors, philox4x32 10: the key's second half is purpose * 0x9E3779B1 */
    uint32_t out[4];
    gr_philox(out, 0, 0, 0, 0);
    assert_int_equal(out[0], 0x6627e8d5), assert_int_equal(out[1], 0xe169c58d);
    assert_int_equal(out[2], 0xbc57ac4c), assert_int_equal(out[3], 0x9b00dbd8);
    gr_philox(out, UINT64_MAX, 0, UINT64_MAX, UINT64_MAX);
    assert_int_equal(out[0], 0x408f276d), assert_int_equal(out[1], 0x41c83b0e);
    assert_int_equal(out[2], 0xa20bc7c6), assert_int_equal(out[3], 0x6d5451fd);
    gr_philox(out, 0x299f31d0a4093822, 0, 0x0370734413198a2e, 0x85a308d3243f6a88);
    assert_int_equal(out[0], 0xd16cfe09), assert_int_equal(out[1], 0x94fdcceb);
    assert_int_equal(out[2], 0x5001e420), assert_int_equal(out[3], 0x24126ea1);
}

static void test_unknown_level(void **state) {
    (void)state;
    const char *why = NULL;
    setenv("GRAFT_CPU", "mmx", 1);
    assert_null(gr_cpu_device_new(1, &why));
    assert_non_null(strstr(why, "generic, avx2, avx512, avx512bf16 or amx"));
    assert_null(gr_cpu_ops("mmx"));
}

typedef struct counter {
    int64_t seen[1000];
} counter;

static void count(void *context, int64_t chunk, int worker) {
    (void)worker;
    ((counter *)context)->seen[chunk]++;
}

static void test_pool(void **state) {
    (void)state;
    gr_threads *t = gr_threads_new(4);
    counter c = {{0}};
    for (int job = 0; job < 2000; job++) gr_threads_run(t, job % 1000, count, &c);
    for (int i = 0; i < 1000; i++) assert_int_equal(c.seen[i], 2 * (999 - i));
    gr_threads_free(t);
    gr_threads_free(NULL);
}

int main(void) {
    static int level[] = {0, 1, 2, 3, 4};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox),
        cmocka_unit_test(test_pool),
        cmocka_unit_test(test_unknown_level),
        {"generic", test_level, NULL, NULL, &level[0]},
        {"avx2", test_level, NULL, NULL, &level[1]},
        {"avx512", test_level, NULL, NULL, &level[2]},
        {"avx512bf16", test_level, NULL, NULL, &level[3]},
        {"amx", test_level, NULL, NULL, &level[4]},
        {"generic, kept panels", test_kept_panels, NULL, NULL, &level[0]},
        {"avx2, kept panels", test_kept_panels, NULL, NULL, &level[1]},
        {"avx512, kept panels", test_kept_panels, NULL, NULL, &level[2]},
        {"avx512bf16, kept panels", test_kept_panels, NULL, NULL, &level[3]},
        {"amx, kept panels", test_kept_panels, NULL, NULL, &level[4]},
        {"avx2, long contraction", test_long_contraction, NULL, NULL, &level[1]},
        {"avx512, long contraction", test_long_contraction, NULL, NULL, &level[2]},
        {"avx512bf16, long contraction", test_long_contraction, NULL, NULL, &level[3]},
        {"amx, long contraction", test_long_contraction, NULL, NULL, &level[4]},
        {"avx2, long attention", test_long_attention, NULL, NULL, &level[1]},
        {"avx512, long attention", test_long_attention, NULL, NULL, &level[2]},
        {"avx512bf16, long attention", test_long_attention, NULL, NULL, &level[3]},
        {"amx, long attention", test_long_attention, NULL, NULL, &level[4]},
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
