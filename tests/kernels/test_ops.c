/* test_ops.c - every operation of ops.def, for every level this CPU has: against the reference on odd sizes with
 * unaligned, guarded buffers whose rows lie apart; one thread against three; a row alone against the same row among others. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cpu/impl.h"
#include "kernels/dynamic8.h"
#include "kernels/philox.h"
#include "mirror.h"

enum { GUARD = 16, OUTPUTS = 16, BUFFERS = 64, FEW_ROWS = 8 };
static const float guard = 12345.0f;

typedef struct output {
    gr_rows x;
    int64_t rows, cols;
    bool whole; /* no function of the batch's rows one by one */
} output;

typedef struct guarded {
    float *p;
    int64_t size, cols, ld; /* of the size, columns from cols to ld are guards too */
} guarded;

/* One call of an operation: rows row0..row0+n of a virtual batch, sizes of variant v. Owns its buffers. */
typedef struct call {
    gr_device *d;
    int64_t row0, n;
    int variant;
    int64_t columns; /* instead of the variant's; 0: those */
    guarded buffers[BUFFERS];
    int n_buffers, n_outputs;
    output outputs[OUTPUTS];
    double tolerance;
    int off; /* of buffers from 64-byte alignment: 1 */
} call;

static call *running;      /* the one whose operation is being called */
static bool on_card;       /* the level under test is a card's: */
static gr_dtype card_type; /* some rows are of this type there, */
static bool few_digits;    /* and values have no more digits than bfloat16 */

/* n rows of ld floats, the first off alignment, guarded on both sides and after their first cols. */
static float *guarded_rows(call *c, int64_t n, int64_t cols, int64_t ld) {
    int64_t all = n * ld + 2 * GUARD + 1;
    float *p = aligned_alloc(64, (size_t)((all + 15) / 16 * 16) * 4);
    assert_non_null(p);
    assert_true(c->n_buffers < BUFFERS);
    for (int64_t i = 0; i < all; i++) p[i] = guard;
    c->buffers[c->n_buffers++] = (guarded){p, n * ld, cols, ld};
    return p + GUARD + c->off;
}

static float *buffer(call *c, int64_t n) { return guarded_rows(c, n, 1, 1); }

/* Rows row0..row0+n of a virtual matrix of values in [-1,1), ld apart. */
static gr_rows filled_rows(call *c, int tag, int64_t row0, int64_t n, int64_t cols, int64_t ld) {
    float *x = guarded_rows(c, n, cols, ld);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < cols; j += 4) {
            uint32_t word[4];
            gr_philox(word, 7, (uint32_t)tag, (uint64_t)(row0 + i), (uint64_t)j);
            for (int64_t k = 0; k < 4 && j + k < cols; k++) {
                float value = (float)(word[k] >> 8) * 0x1p-23f - 1;
                x[i * ld + j + k] = few_digits ? gr_bf16_to_f32(gr_f32_to_bf16(value)) : value;
            }
        }
    return (gr_rows){x, ld, GR_DTYPE_F32};
}

/* Two variants of three have rows apart, each matrix by another distance. */
static int64_t apart(const call *c, int tag, int64_t cols) {
    return cols + ((c->variant + c->variant / GR_DTYPE_COUNT) % 3 ? 1 + tag % 7 : 0);
}

static gr_rows rows(call *c, int tag, int64_t cols) { return filled_rows(c, tag, c->row0, c->n, cols, apart(c, tag, cols)); }
static float *numbers(call *c, int tag, int64_t each) { return gr_f32(filled_rows(c, tag, c->row0, c->n, each, each)); }
static float *fixed(call *c, int tag, int64_t n, int64_t cols) { return gr_f32(filled_rows(c, tag, 0, n, cols, cols)); }

/* Rows that stand close. */
static gr_rows closed(float *x, int64_t cols) { return (gr_rows){x, cols, GR_DTYPE_F32}; }

static void out_rows(call *c, gr_rows x, int64_t cols) { c->outputs[c->n_outputs++] = (output){x, c->n, cols, false}; }
static void out_numbers(call *c, float *x, int64_t each) { out_rows(c, closed(x, each), each); }
static void out_whole(call *c, gr_rows x, int64_t n, int64_t cols) { c->outputs[c->n_outputs++] = (output){x, n, cols, true}; }
static void out_sum(call *c, float *x, int64_t n) { out_whole(c, closed(x, n), 1, n); }

static void release(call *c) {
    for (const guarded *b = c->buffers; b < c->buffers + c->n_buffers; b++) {
        for (int64_t j = 0; j < GUARD + c->off; j++) assert_true(b->p[j] == guard);
        const float *x = b->p + GUARD + c->off;
        for (int64_t i = 0; i < b->size; i += b->ld)
            for (int64_t j = b->cols; j < b->ld; j++)
                if (x[i + j] != guard) fail_msg("written between rows: row %d", (int)(i / b->ld));
        for (int64_t j = 0; j < GUARD; j++) assert_true(x[b->size + j] == guard);
        free(b->p);
    }
}

static const int64_t widths[] = {64, 1, 17, 100, 576, 1031}; /* by variant */
static int64_t width(const call *c) { return c->columns ? c->columns : widths[c->variant % 6]; }

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
    gr_rows x = rows(c, 2, table.cols);
    c->d->ops->embed_forward(c->d, x, &table, indices(c, 50), c->n, c->variant & 1 ? 3.5f : 1);
    out_rows(c, x, table.cols);
}

/* The sums are those of a loop, to the last bit: their order is that of rows. */
static void call_embed_backward(call *c) {
    const int64_t C = width(c), V = c->n > 1000 ? 701 : 5;
    float *dtable = fixed(c, 1, V, C), *exact = fixed(c, 1, V, C);
    const int32_t *ids = indices(c, V);
    const gr_rows dx = rows(c, 2, C);
    c->d->ops->embed_backward(c->d, dtable, dx, ids, c->n, C, 1.5f);
    for (int64_t r = 0; r < c->n; r++)
        for (int64_t j = 0; j < C; j++) exact[ids[r] * C + j] += 1.5f * gr_f32_row(dx, r)[j];
    assert_memory_equal(dtable, exact, (size_t)(V * C) * sizeof(float));
    out_sum(c, dtable, V * C);
}

/* Heads of a row, or one. */
static int64_t norm_parts(const call *c) { return c->variant & 4 ? 3 : 1; }

static void call_rmsnorm_forward(call *c) {
    int64_t parts = norm_parts(c), C = parts * width(c);
    gr_rows out = rows(c, 1, C), x = rows(c, 3, C), add = rows(c, 4, C);
    float *rstd = numbers(c, 2, parts);
    gr_norm p = {.w = fixed(c, 5, 1, width(c)), .eps = 1e-5f, .parts = parts, .width = width(c)};
    if (c->variant & 1) add.data = NULL;
    c->d->ops->rmsnorm_forward(c->d, out, c->variant & 2 ? NULL : rstd, x, add, &p, c->n);
    out_rows(c, out, C), out_numbers(c, rstd, parts), out_rows(c, x, C);
}

static void call_rmsnorm_backward(call *c) {
    int64_t parts = norm_parts(c), C = parts * width(c);
    gr_rows dx = rows(c, 1, C), dout = rows(c, 3, C), x = rows(c, 4, C);
    float *dw = fixed(c, 2, 1, width(c)), *rstd = numbers(c, 5, parts);
    gr_norm p = {.w = fixed(c, 6, 1, width(c)), .dw = c->variant & 1 ? NULL : dw, .parts = parts, .width = width(c)};
    c->d->ops->rmsnorm_backward(c->d, c->variant & 2 ? dout : dx, !(c->variant & 2), dout, x, rstd, &p, c->n); /* in place, or += */
    out_rows(c, c->variant & 2 ? dout : dx, C), out_sum(c, dw, width(c));
}

static uint64_t *row_keys(call *c) {
    uint64_t *key = (uint64_t *)((char *)buffer(c, 2 * c->n + 2) + 4 * c->off); /* aligned to 8 bytes */
    for (int64_t i = 0; i < c->n; i++) key[i] = (uint64_t)(c->row0 + i) << 33 | 5;
    return key;
}

/* Two linears that share x: one plain with bias, one with two LoRAs. */
typedef struct linears {
    gr_linear l[2];
    gr_lora lora[2];
    gr_group group;
    gr_dropout dropout;
    int64_t K, N, rank;
} linears;

/* Inputs, outputs of the first, how many more of the second, rank. With the last two, rows of a card's own layout are whole pieces
 * of 64 columns, with room for what the ranks add behind them, and without. */
static const int64_t linear_sizes[][4] = {{64, 64, 9, 8},    {33, 7, 9, 1},    {100, 65, 9, 5},   {576, 192, 9, 16},
                                          {300, 331, 9, 40}, {256, 128, 0, 8}, {256, 64, 64, 63}, {3300, 20, 9, 3}};
enum { FEW_SIZES = sizeof linear_sizes / sizeof *linear_sizes, LINEAR_SIZES = FEW_SIZES - 1 }; /* the last one for few rows alone */

/* A card's products are of the type of its activations. */
static gr_dtype linear_compute(const call *c) {
    if (card_type != GR_DTYPE_F32) return card_type;
    return c->variant % 7 == 5 ? GR_DTYPE_BF16 : c->variant % 7 == 6 ? GR_DTYPE_F16 : GR_DTYPE_F32;
}

static void make_linears(call *c, linears *g, bool trained) {
    const int64_t *s = linear_sizes[c->variant / GR_DTYPE_COUNT % FEW_SIZES], more = s[1] + s[2];
    gr_dtype dtype = variant_dtype(c);
    memset(g, 0, sizeof *g);
    g->l[0].w = weight(c, dtype, 20, s[1], s[0]);
    g->K = g->l[0].w.cols;
    g->l[1].w = weight(c, dtype, 21, more, g->K);
    g->l[0].bias = fixed(c, 22, 1, s[1]);
    if (c->variant & 4) g->l[1].bias = fixed(c, 33, 1, more);
    for (int j = 0; j < 2; j++) {
        int64_t rank = s[3] + j;
        g->lora[j] =
            (gr_lora){.rank = rank, .scale = 0.5f + (float)j, .A = fixed(c, 23 + j, rank, g->K), .B = fixed(c, 25 + j, more, rank)};
        if (trained) g->lora[j].dA = fixed(c, 27 + j, rank, g->K), g->lora[j].dB = fixed(c, 29 + j, more, rank);
    }
    g->l[1].lora = g->lora, g->l[1].n_lora = 2;
    g->group = (gr_group){.member = {&g->l[0], &g->l[1]}, .n = 2, .compute = linear_compute(c)};
    g->N = gr_group_outputs(&g->group), g->rank = gr_group_rank(&g->group);
    g->dropout = (gr_dropout){.p = 0.3f, .seed = 42, .row_key = row_keys(c), .site = 17};
    c->tolerance = g->group.compute == GR_DTYPE_F32 ? 2e-5 : 1e-4;
}

/* Half of the variants drop nothing. */
static gr_product product_of(call *c, const linears *g) {
    return (gr_product){.group = &g->group,
                        .x = rows(c, 3, g->K),
                        .y = rows(c, 1, g->N),
                        .h = numbers(c, 2, g->rank),
                        .dropout = c->variant & 2 ? NULL : &g->dropout,
                        .xd = rows(c, 4, g->K),
                        .dxd = rows(c, 5, g->K),
                        .dh = numbers(c, 6, g->rank)};
}

static void call_linear_forward(call *c) {
    linears g;
    make_linears(c, &g, false);
    gr_product p = product_of(c, &g);
    c->d->ops->linear_forward(c->d, &p, c->n);
    out_rows(c, p.y, g.N), out_numbers(c, p.h, g.rank);
    gr_group plain = {.member = {&g.l[0]}, .n = 1}; /* without LoRA nothing is dropped */
    gr_product q = {.group = &plain, .x = p.x, .y = rows(c, 7, g.l[0].w.rows), .dropout = &g.dropout};
    c->d->ops->linear_forward(c->d, &q, c->n);
    out_rows(c, q.y, g.l[0].w.rows);
}

static void call_linear_backward(call *c) {
    linears g;
    make_linears(c, &g, true);
    gr_product p = product_of(c, &g);
    gr_rows dx = rows(c, 7, g.K);
    g.l[0].dw = fixed(c, 8, g.l[0].w.rows, g.K), g.l[0].dbias = fixed(c, 9, 1, g.l[0].w.rows);
    if (c->variant & 4) g.l[1].dw = fixed(c, 10, g.l[1].w.rows, g.K); /* beside its LoRAs */
    if (c->variant % 11 == 10) dx.data = NULL;
    c->d->ops->linear_backward(c->d, &p, dx, c->variant & 1, c->n);
    if (dx.data) out_rows(c, dx, g.K);
    if (g.l[1].dw) out_sum(c, g.l[1].dw, g.l[1].w.rows * g.K);
    out_numbers(c, p.dh, g.rank);
    out_sum(c, g.l[0].dw, g.l[0].w.rows * g.K), out_sum(c, g.l[0].dbias, g.l[0].w.rows);
    for (int j = 0; j < 2; j++) {
        out_sum(c, g.lora[j].dA, g.lora[j].rank * g.K);
        out_sum(c, g.lora[j].dB, g.l[1].w.rows * g.lora[j].rank);
    }
}

static void place(call *c, gr_group *g) {
    g->base = GR_BASE_INT8, g->backward = true;
    assert_true(c->d->place(c->d, g));
    assert_non_null(g->form);
}

/* The group of linears with int8 forms, forward and backward; what packing made is seen through the products. */
static void call_int8(call *c) {
    linears g;
    make_linears(c, &g, true);
    gr_product p = product_of(c, &g);
    gr_rows dx = rows(c, 7, g.K), y = p.y;
    place(c, &g.group);
    c->d->ops->linear_forward(c->d, &p, c->n);
    p.y = rows(c, 8, g.N);
    c->d->ops->linear_backward(c->d, &p, dx, c->variant & 1, c->n);
    c->d->release(c->d, &g.group);
    out_rows(c, y, g.N), out_numbers(c, p.h, g.rank), out_rows(c, dx, g.K);
}

/* The integers' own error against exact products: half a step of either factor in each of K terms, at random. */
static void call_int8_error(call *c) {
    linears g;
    make_linears(c, &g, true);
    gr_linear one = {.w = g.l[0].w};
    gr_group group = {.member = {&one}, .n = 1};
    int64_t N = one.w.rows, K = one.w.cols;
    gr_rows y[2] = {rows(c, 2, N), rows(c, 3, N)}, dx[2] = {rows(c, 5, K), rows(c, 6, K)}, dy = rows(c, 4, N);
    gr_product p = {.group = &group, .x = rows(c, 1, K)};
    for (int i = 0; i < 2; i++) {
        if (i) place(c, &group);
        p.y = y[i];
        c->d->ops->linear_forward(c->d, &p, c->n);
        p.y = dy;
        c->d->ops->linear_backward(c->d, &p, dx[i], false, c->n);
    }
    c->d->release(c->d, &group);
    double error[2] = {0}, size[2] = {0};
    for (int64_t r = 0; r < c->n; r++)
        for (int i = 0; i < 2; i++) {
            const float *exact = gr_f32_row(i ? dx[0] : y[0], r), *rounded = gr_f32_row(i ? dx[1] : y[1], r);
            for (int64_t j = 0; j < (i ? K : N); j++)
                error[i] += (exact[j] - rounded[j]) * (exact[j] - rounded[j]), size[i] += exact[j] * exact[j];
        }
    for (int i = 0; i < 2; i++)
        if (c->n > 1 && error[i] > size[i] * 0.02 * 0.02) fail_msg("int8: relative error %g", sqrt(error[i] / size[i]));
    out_rows(c, y[1], N), out_rows(c, dx[1], K);
}

static void call_rope(call *c) {
    static const int64_t sizes[] = {64, 2, 10, 128, 80, 24};
    int64_t D = sizes[c->variant % 6], heads = 3;
    gr_rows x = rows(c, 1, heads * D);
    c->d->ops->rope(c->d, x, indices(c, 64), fixed(c, 2, 64, D), c->n, heads, D, c->variant & 1);
    out_rows(c, x, heads * D);
}

/* The last rows of a cache first; what it held elsewhere stays. */
static void call_kv_append(call *c) {
    int64_t KD2 = 2 * width(c), all = c->row0 + c->n + 10;
    gr_kv kv = {.rows = closed(fixed(c, 1, all, KD2), KD2)};
    int32_t *to = (int32_t *)buffer(c, c->n);
    for (int64_t i = 0; i < c->n; i++) to[i] = (int32_t)(all - 1 - c->row0 - i);
    gr_rows x = rows(c, 2, KD2);
    c->d->ops->kv_append(c->d, &kv, x, to, c->n);
    for (int64_t i = 0; i < c->n; i++)
        assert_memory_equal(gr_f32_row(kv.rows, to[i]), gr_f32_row(x, i), (size_t)KD2 * sizeof(float));
    out_whole(c, kv.rows, all, KD2);
}

static const int64_t heads[][3] = {{9, 3, 64},  {2, 2, 7},   {4, 1, 40}, {1, 1, 256},
                                   {10, 1, 33}, {3, 3, 128}, {1, 1, 1},  {4, 1, 256}};
enum { HEADS = sizeof heads / sizeof *heads, ATTENTIONS = 4 * 2 * HEADS };

/* Variants take all heads in float32 and in bfloat16 (the reference stays exact), each plain, with a window, a cap, both. */
static void set_attention(call *c, gr_attention *a) {
    static const int64_t windows[] = {5, 64, 65, 2, 40, 90};
    bool bf16 = c->variant / HEADS % 2;
    c->tolerance = bf16 ? 1e-2 : 2e-5;
    a->compute = bf16 ? GR_DTYPE_BF16 : GR_DTYPE_F32;
    if (c->variant / (2 * HEADS) & 1) a->window = windows[c->variant % 6];
    if (c->variant / (2 * HEADS) & 2) a->softcap = 0.5f;
}

/* n_q rows of queries from row q0 of the virtual batch on, n rows of keys and values. */
static gr_attention attention_of(call *c, int64_t q0, int64_t n_q, int64_t n, int64_t H, int64_t K, int64_t D) {
    return (gr_attention){.q = filled_rows(c, 1, q0, n_q, H * D, H * D + 3),
                          .k = filled_rows(c, 2, 0, n, K * D, K * D + 1),
                          .v = filled_rows(c, 3, 0, n, K * D, K * D + 1),
                          .out = filled_rows(c, 4, q0, n_q, H * D, H * D + 2),
                          .lse = gr_f32(filled_rows(c, 5, q0, n_q, H, H)),
                          .H = H,
                          .K = K,
                          .D = D,
                          .scale = 1.0f / sqrtf((float)D)};
}

/* What the backward needs too; q, k and v are of the same rows. */
static void add_gradients(call *c, gr_attention *a, int64_t n) {
    a->delta = fixed(c, 6, n, a->H);
    a->dout = filled_rows(c, 7, 0, n, a->H * a->D, a->out.ld);
    a->dq = filled_rows(c, 8, 0, n, a->H * a->D, a->q.ld);
    a->dk = filled_rows(c, 9, 0, n, a->K * a->D, a->k.ld);
    a->dv = filled_rows(c, 10, 0, n, a->K * a->D, a->v.ld);
}

/* The rows under test are positions row0.. of the first sequence, whose keys begin at 0; a second one follows when all
 * of the batch is run. */
static void call_attention_forward(call *c) {
    const int64_t *s = heads[c->variant % HEADS], other = c->row0 == 0 ? 70 : 0, keys = c->row0 + c->n, n = c->n;
    gr_attention a = attention_of(c, c->row0, n + other, keys + other, s[0], s[1], s[2]);
    gr_seq seqs[2] = {{0, n, 0, keys}, {n, other, keys, other}};
    a.seqs = seqs, a.n_seqs = other ? 2 : 1, a.scale *= 1.7f;
    set_attention(c, &a);
    c->d->ops->attention_forward(c->d, &a);
    out_rows(c, a.out, a.H * a.D), out_numbers(c, a.lse, a.H);
    if (other) out_whole(c, gr_rows_at(a.out, n, 0), other, a.H * a.D);
}

static void call_attention_backward(call *c) {
    const int64_t *s = heads[c->variant % HEADS], n = c->row0 + c->n, other = 3, all = n + other;
    gr_attention a = attention_of(c, 0, all, all, s[0], s[1], s[2]);
    gr_seq seqs[2] = {{0, n, 0, n}, {n, other, n, other}};
    add_gradients(c, &a, all);
    a.seqs = seqs, a.n_seqs = 2;
    set_attention(c, &a);
    c->d->ops->attention_forward(c->d, &a);
    c->d->ops->attention_backward(c->d, &a);
    out_whole(c, a.dq, all, a.H * a.D), out_whole(c, a.dk, all, a.K * a.D), out_whole(c, a.dv, all, a.K * a.D);
}

static gr_activation activation(const call *c) { return c->variant & 2 ? GR_ACTIVATION_GELU_TANH : GR_ACTIVATION_SILU; }

static void call_glu_forward(call *c) {
    int64_t F = width(c);
    gr_rows out = rows(c, 1, F), gu = rows(c, 2, 2 * F);
    for (int64_t r = 0; r < c->n; r++)
        for (int64_t j = 0; j < 2 * F; j++) gr_f32_row(gu, r)[j] *= 20;
    c->d->ops->glu_forward(c->d, out, gu, c->n, F, activation(c));
    out_rows(c, out, F);
}

static void call_glu_backward(call *c) {
    int64_t F = width(c);
    gr_rows gu = rows(c, 2, 2 * F), dgu = c->variant & 1 ? gu : rows(c, 1, 2 * F);
    c->d->ops->glu_backward(c->d, dgu, rows(c, 3, F), gu, c->n, F, activation(c));
    out_rows(c, dgu, 2 * F);
}

static void call_cross_entropy(call *c) {
    const bool close = c->variant == 4; /* to each other: aligned on a card */
    int64_t V = c->variant == 5 ? 4999 : close ? 9024 : width(c);
    gr_rows logits = close ? filled_rows(c, 2, c->row0, c->n, V, V) : rows(c, 2, V);
    float *nll = numbers(c, 1, 1), *w = numbers(c, 3, 1);
    for (int64_t r = 0; r < c->n; r++)
        for (int64_t j = 0; j < V; j++) gr_f32_row(logits, r)[j] *= 30;
    float *scale = buffer(c, 1);
    *scale = 1024;
    const gr_loss_terms terms = {
        .softcap = c->variant & 2 ? 20 : 0, .z_loss = c->variant & 4 ? 1e-2f : 0, .scale = c->variant % 3 ? NULL : scale};
    c->d->ops->cross_entropy(c->d, nll, logits, indices(c, V), c->variant & 1 ? NULL : w, c->n, V, &terms);
    out_numbers(c, nll, 1);
    if (!(c->variant & 1)) out_rows(c, logits, V);
}

/* Against tanh in double: each value within 4 units of its last place, whichever branch of a level it takes. */
static void call_softcap(call *c) {
    const float cap = c->variant & 1 ? 30 : 0.75f;
    int64_t C = width(c);
    gr_rows x = rows(c, 1, C), was = rows(c, 1, C);
    for (int64_t r = 0; r < c->n; r++)
        for (int64_t j = 0; j < C; j++) gr_f32_row(x, r)[j] = gr_f32_row(was, r)[j] *= c->variant & 2 ? 200 : 0.5f;
    c->d->ops->softcap(c->d, x, c->n, C, cap);
    for (int64_t r = 0; r < c->n; r++)
        for (int64_t j = 0; j < C; j++) {
            double exact = (double)cap * tanh((double)gr_f32_row(was, r)[j] / cap), found = gr_f32_row(x, r)[j];
            if (fabs(found - exact) > fabs(exact) * 4 * 0x1p-23) fail_msg("cap of %g: %.9g", exact, found);
        }
    out_rows(c, x, C);
}

/* Rows of every kind of tie, edge and value that is not finite. What is expected is put there. */
static int32_t put_best(float *x, int64_t C, int64_t kind) {
    const int64_t third = C / 3;
    for (int64_t j = 0; j < C && kind > 5; j++) x[j] = kind == 6 ? NAN : kind == 7 ? -INFINITY : j % 2 ? NAN : INFINITY;
    if (kind > 8) return x[C - 1] = -FLT_MAX, x[0] = C > 1 ? -INFINITY : x[0], (int32_t)(C - 1);
    if (kind > 5) return -1;
    switch (kind) {
    case 0: return x[C - 1] = 3, (int32_t)(C - 1);
    case 1: return x[third] = x[C / 2] = x[C - 1] = 3, (int32_t)third; /* the first of equals */
    case 2: x[0] = NAN; return x[third] = 3, x[C - 1] = C - 1 > third ? INFINITY : 3, (int32_t)third;
    case 3: return x[0] = 3, 0;
    case 4:
        for (int64_t j = 0; j < C; j++) x[j] = j < third ? -1 : j % 2 ? 0.0f : -0.0f; /* equals */
        return (int32_t)third;
    default:
        for (int64_t j = 0; j < C; j++) x[j] = j < third ? -INFINITY : j % 3 ? -2 : NAN;
        for (int64_t j = third; j < C; j++)
            if (j % 3) return (int32_t)j;
        return -1;
    }
}

static void call_best_column(call *c) {
    const bool close = c->variant == 4; /* to each other: aligned on a card; more than a block reads at once */
    const int64_t V = c->variant == 5 ? 4999 : close ? 24004 : width(c);
    gr_rows logits = close ? filled_rows(c, 2, c->row0, c->n, V, V) : rows(c, 2, V);
    float *found = numbers(c, 1, 1);
    int32_t *best = (int32_t *)buffer(c, c->n), *expected = calloc((size_t)c->n + 1, sizeof *expected);
    assert_non_null(expected);
    for (int64_t r = 0; r < c->n; r++) expected[r] = put_best(gr_f32_row(logits, r), V, (c->row0 + r) % 10);
    c->d->ops->best_column(c->d, best, logits, c->n, V);
    for (int64_t r = 0; r < c->n; r++) {
        if (best[r] != expected[r]) fail_msg("row %d of %d: %d, not %d", (int)r, (int)V, best[r], expected[r]);
        found[r] = (float)best[r];
    }
    free(expected);
    out_numbers(c, found, 1);
}

/* In two parts, added to what was there; odd variants meet a NaN and an infinity, of which the first one counts. */
static void call_loss_sum(call *c) {
    enum { EACH = 45 };
    gr_step_stats s = {.nll = 0.5, .bad_row = -1};
    float *nll = numbers(c, 1, EACH), *w = numbers(c, 2, EACH), *sum = buffer(c, 1);
    int32_t *row = (int32_t *)buffer(c, c->n * EACH);
    const int64_t n = c->n * EACH, part = n / 4;
    const int64_t bad = c->n > 20 && c->variant & 1 ? (c->variant & 2 ? n - 5 : 19) : -1;
    double expected = 0.5;
    for (int64_t i = 0; i < n; i++) row[i] = (int32_t)(i * 7 % 1000), expected += (double)nll[i] * w[i];
    if (bad >= 0) nll[bad] = NAN, nll[bad + 1] = INFINITY;
    c->d->ops->loss_sum(c->d, &s, nll, w, row, part, 5000);
    c->d->ops->loss_sum(c->d, &s, nll + part, w + part, row + part, n - part, 5000);
    assert_int_equal(s.bad_row, bad < 0 ? -1 : 5000 + row[bad]);
    assert_true(bad < 0 ? s.nll == expected : isnan(s.nll));
    *sum = bad < 0 ? (float)s.nll : 0;
    out_sum(c, sum, 1);
}

static void call_gather_rows(call *c) {
    int64_t C = width(c);
    gr_rows out = rows(c, 1, C), x = filled_rows(c, 2, 0, 50, C, apart(c, 2, C));
    c->d->ops->gather_rows(c->d, out, x, indices(c, 50), c->n, C);
    out_rows(c, out, C);
}

static void call_scatter_rows(call *c) {
    int64_t C = width(c), all = 1 + 7 * (c->row0 + c->n);
    gr_rows x = filled_rows(c, 1, 0, all, C, apart(c, 1, C));
    c->d->ops->scatter_rows(c->d, x, rows(c, 2, C), indices(c, all), c->n, C);
    out_whole(c, x, all, C);
}

/* Every third column, and the last. */
static int32_t *some_columns(call *c, int64_t all, int64_t *n) {
    int32_t *ids = (int32_t *)buffer(c, all / 3 + 2);
    *n = 0;
    for (int64_t j = 0; j + 1 < all; j += 3) ids[(*n)++] = (int32_t)j;
    ids[(*n)++] = (int32_t)(all - 1);
    return ids;
}

static void call_scatter_columns(call *c) {
    int64_t all = width(c), n;
    int32_t *ids = some_columns(c, all, &n);
    gr_rows x = rows(c, 1, all), before = rows(c, 1, all), src = rows(c, 2, n);
    c->d->ops->scatter_columns(c->d, x, src, ids, c->n, n);
    for (int64_t r = 0; r < c->n; r++)
        for (int64_t j = 0, k = 0; j < all; j++)
            assert_true(gr_f32_row(x, r)[j] == (ids[k] == j ? gr_f32_row(src, r)[k++] : gr_f32_row(before, r)[j]));
    out_rows(c, x, all);
}

static void call_take_columns(call *c) {
    int64_t all = width(c), n;
    int32_t *ids = some_columns(c, all, &n);
    gr_rows x = rows(c, 1, all), before = rows(c, 1, all), out = rows(c, 2, n);
    c->d->ops->take_columns(c->d, out, x, ids, c->n, n);
    for (int64_t r = 0; r < c->n; r++)
        for (int64_t j = 0, k = 0; j < all; j++) {
            float was = gr_f32_row(before, r)[j];
            bool taken = ids[k] == j;
            assert_true(gr_f32_row(x, r)[j] == (taken ? 0 : was));
            if (taken) assert_true(gr_f32_row(out, r)[k++] == was);
        }
    out_rows(c, x, all), out_rows(c, out, n);
}

static void call_dropout(call *c) {
    int64_t C = width(c);
    gr_rows out = rows(c, 1, C), x = rows(c, 2, C);
    gr_dropout p = {.p = 0.3f, .seed = 42, .row_key = row_keys(c), .site = 17};
    c->d->ops->dropout(c->d, out, x, c->n, C, &p, c->variant & 1);
    for (int64_t i = 0; !(c->variant & 1) && i < c->n; i++)
        for (int64_t j = 0; j < C; j++) {
            uint32_t word[4];
            gr_philox(word, 42, GR_PURPOSE_DROPOUT, p.row_key[i], (uint64_t)17 << 32 | (uint64_t)(j / 4));
            float kept = gr_f32_row(x, i)[j] * (1 / (1 - 0.3f));
            float expected = word[j % 4] >= (double)0.3f * 4294967296.0 ? kept : 0, off = gr_f32_row(out, i)[j] - expected;
            assert_true(fabsf(off) <= (few_digits ? fabsf(expected) / 256 : 0));
        }
    out_rows(c, out, C);
}

static void call_add(call *c) {
    int64_t C = width(c);
    gr_rows x = rows(c, 1, C), y = rows(c, 2, C);
    c->d->ops->add(c->d, x, y, c->n, C);
    out_rows(c, x, C);
}

static void call_sum_squares(call *c) {
    int64_t C = width(c) * 97;
    float *x = numbers(c, 1, C), *out = buffer(c, 1);
    gr_step_stats s = {0}, more = {.squares = 2};
    c->d->ops->sum_squares(c->d, &s, x, c->n * C);
    c->d->ops->sum_squares(c->d, &more, x, c->n * C);
    assert_true(more.squares == 2 + s.squares);
    *out = (float)s.squares;
    out_sum(c, out, 1);
    x[c->n * C - 1] = NAN;
    c->d->ops->sum_squares(c->d, &s, x, c->n * C);
    assert_true(isnan(s.squares));
}

static void call_step_begin(call *c) {
    gr_step_stats s = {.nll = NAN, .squares = 4, .bad_row = 3, .optimizer_step = 6, .clip = 0.5f, .nonfinite = 1, .halt = 1};
    c->d->ops->step_begin(c->d, &s);
    assert_true(s.nll == 0 && s.squares == 0 && s.bad_row == -1 && !s.nonfinite);
    assert_true(s.optimizer_step == 6 && s.halt);
}

static void call_step_prepare(call *c) {
    gr_step_stats s = {.nll = 3, .squares = 16, .optimizer_step = 6};
    c->d->ops->step_prepare(c->d, &s, 1.0, true); /* a norm of 4 */
    assert_true(s.clip == (float)(1.0 / (4 + 1e-6)) && s.optimizer_step == 7 && !s.nonfinite && !s.halt);
    c->d->ops->step_prepare(c->d, &s, 5.0, true);
    assert_true(s.clip == 1 && s.optimizer_step == 8);
    c->d->ops->step_prepare(c->d, &s, 0, true);
    assert_true(s.clip == 1 && s.optimizer_step == 9);
    const double bad[][2] = {{NAN, 16}, {3, INFINITY}, {3, NAN}, {-INFINITY, 0}};
    for (int i = 0; i < 4; i++) {
        s = (gr_step_stats){.nll = bad[i][0], .squares = bad[i][1], .optimizer_step = 6};
        c->d->ops->step_prepare(c->d, &s, 1.0, false);
        assert_true(s.nonfinite && !s.halt && s.optimizer_step == 6);
        c->d->ops->step_prepare(c->d, &s, 1.0, true);
        assert_true(s.nonfinite && s.halt && s.optimizer_step == 6);
    }
    s.nll = 3, s.squares = 16; /* what halted stays so */
    c->d->ops->step_prepare(c->d, &s, 1.0, true);
    assert_true(!s.nonfinite && s.halt && s.optimizer_step == 6);
    /* a loss scale of 4: a norm of 4 was 16; what overflows halves it, at 1 it is an error; many good steps double it */
    s = (gr_step_stats){.nll = 3, .squares = 256, .loss_scale = 4, .good_steps = GR_LOSS_SCALE_STEPS - 2};
    c->d->ops->step_prepare(c->d, &s, 1.0, true);
    assert_true(s.squares == 16 && s.clip == (float)(1.0 / (4 + 1e-6)) / 4 && s.loss_scale == 4 && s.optimizer_step == 1);
    s.squares = 256;
    c->d->ops->step_prepare(c->d, &s, 0, true);
    assert_true(s.clip == 0.25f && s.loss_scale == 8 && s.good_steps == 0 && s.optimizer_step == 2);
    for (float scale = 4; scale >= 1; scale /= 2) {
        s.squares = INFINITY;
        c->d->ops->step_prepare(c->d, &s, 1.0, true);
        assert_true(s.nonfinite && !s.halt && s.loss_scale == scale && s.good_steps == 0 && s.optimizer_step == 2);
    }
    c->d->ops->step_prepare(c->d, &s, 1.0, true);
    assert_true(s.nonfinite && s.halt && s.loss_scale == 1);
    s = (gr_step_stats){.nll = NAN, .squares = 16, .loss_scale = 4};
    c->d->ops->step_prepare(c->d, &s, 1.0, true);
    assert_true(s.nonfinite && s.halt);
    c->d->ops->step_begin(c->d, &s);
    assert_true(s.loss_scale == 2 && s.good_steps == 0);
}

static float of_halves(const gr_trained *w, int64_t i) {
    uint32_t low = w->low ? w->low[i] : 0, bits = ((uint32_t)w->bf16[i] - (low >> 15)) << 16 | low;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The values of x[n] as bfloat16 and what float32 has more; from an element on that need not begin a counter. */
static gr_trained halves(call *c, const float *x, int64_t n) {
    uint16_t *half = (uint16_t *)buffer(c, n + 1);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        half[i] = (uint16_t)((bits + 0x8000) >> 16), half[n + i] = (uint16_t)bits;
    }
    return (gr_trained){.bf16 = half, .low = half + n, .seed = 5, .first = 8 * 77 + 3 * (uint64_t)c->variant};
}

static void assert_same_values(const gr_trained *w, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) assert_true(of_halves(w, i) == x[i]);
}

/* The update of x from `before` again with values of bfloat16: with the other half of float32 the same bits; alone, of values that
 * it has, one of the two around what float32 has, and right on average. */
static void check_halves(call *c, float *const before[3], float *const after[3], const float *g, int64_t n, const gr_adamw *p,
                         const gr_step_stats *s) {
    for (int alone = 0; alone < 2; alone++) {
        gr_trained w = halves(c, before[0], n);
        float *m = buffer(c, n), *v = buffer(c, n), *exact = buffer(c, n), *em = buffer(c, n), *ev = buffer(c, n);
        double off = 0;
        if (!alone) assert_same_values(&w, before[0], n);
        else w.low = NULL;
        for (int64_t i = 0; i < n; i++) {
            exact[i] = of_halves(&w, i);
            m[i] = em[i] = before[1][i], v[i] = ev[i] = before[2][i];
        }
        c->d->ops->adamw(c->d, &w, m, v, g, n, p, s);
        if (!alone) {
            assert_same_values(&w, after[0], n);
            continue;
        }
        c->d->ops->adamw(c->d, &(gr_trained){.f32 = exact}, em, ev, g, n, p, s);
        for (int64_t i = 0; i < n; i++) {
            const float x = of_halves(&w, i), up = gr_bf16_to_f32((uint16_t)(w.bf16[i] + 1)),
                        down = gr_bf16_to_f32((uint16_t)(w.bf16[i] - 1));
            if (exact[i] != x && !(fabsf(exact[i] - x) < fmaxf(fabsf(up - x), fabsf(x - down))))
                fail_msg("%g was rounded to %g", exact[i], x);
            off += exact[i] != x ? (double)(x - exact[i]) / fabs((double)(up - x)) : 0;
            exact[i] = x;
        }
        if (n > 1000 && fabs(off) > 3 * sqrt((double)n)) fail_msg("%g units off in %d values", off, (int)n);
        out_sum(c, exact, n); /* by the numbers of the reference */
    }
}

/* Two variants of four have something that forbids the update. */
static void call_adamw(call *c) {
    int64_t C = width(c);
    float *x[] = {numbers(c, 1, C), numbers(c, 2, C), numbers(c, 3, C)}, *g = numbers(c, 4, C);
    float *before[] = {numbers(c, 1, C), numbers(c, 2, C), numbers(c, 3, C)};
    for (int64_t i = 0; i < c->n * C; i++) x[2][i] = before[2][i] = fabsf(x[2][i]);
    gr_adamw p = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.99f, .epsilon = 1e-6f, .weight_decay = 0.1f};
    gr_step_stats s = {
        .clip = 0.7f, .optimizer_step = c->variant + 1, .nonfinite = c->variant % 4 == 2, .halt = c->variant % 4 == 3};
    c->d->ops->adamw(c->d, &(gr_trained){.f32 = x[0]}, x[1], x[2], g, c->n * C, &p, &s);
    for (int i = 0; i < 3; i++) {
        bool same = memcmp(x[i], before[i], (size_t)(c->n * C) * sizeof(float)) == 0;
        assert_true(same == (s.nonfinite || s.halt || c->n == 0));
        out_numbers(c, x[i], C);
    }
    if (c->row0 == 0 && c->variant < 6) check_halves(c, before, x, g, c->n * C, &p, &s);
}

/* Codes of made-up moments, those after an update, and that each is the nearest to what AdamW has in float32. */
static void call_adamw_8bit(call *c) {
    const int64_t n = c->n * width(c), blocks = n / GR_MOMENTS_BLOCK + 1;
    float *w = numbers(c, 1, width(c)), *g = numbers(c, 4, width(c)), *scale = buffer(c, 2 * blocks), *out[2];
    float *exact[] = {numbers(c, 1, width(c)), buffer(c, n), buffer(c, n)};
    uint8_t *code = (uint8_t *)buffer(c, (2 * n + 3) / 4 + 1);
    const gr_moments8 m = {code, code + n, scale, scale + blocks};
    uint8_t *codes_too = (uint8_t *)buffer(c, (2 * n + 3) / 4 + 1);
    float *scale_too = buffer(c, 2 * blocks);
    const gr_trained w_too = halves(c, w, n);
    const gr_adamw p = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.99f, .epsilon = 1e-6f, .weight_decay = 0.1f};
    const gr_step_stats s = {.clip = 0.7f, .optimizer_step = c->variant + 1};
    gr_dynamic8 map[2];
    for (int i = 0; i < 2; i++) {
        gr_dynamic8_make(&map[i], i == 0);
        out[i] = numbers(c, 5 + i, width(c));
        for (int64_t k = 0; k < n; k++) {
            (i ? m.v : m.m)[k] = (uint8_t)gr_random_u32(3, (uint32_t)i, 0, (uint64_t)(c->row0 * width(c) + k));
            (i ? m.v_scale : m.m_scale)[k / GR_MOMENTS_BLOCK] = i ? 1e-3f : 0.1f;
            exact[1 + i][k] = map[i].value[(i ? m.v : m.m)[k]] * (i ? 1e-3f : 0.1f);
        }
    }
    memcpy(codes_too, code, 2 * (size_t)n), memcpy(scale_too, scale, 2 * (size_t)blocks * sizeof *scale);
    c->d->ops->adamw_8bit(c->d, &(gr_trained){.f32 = w}, &m, g, n, &p, &s);
    c->d->ops->adamw_8bit(c->d, &w_too, &(gr_moments8){codes_too, codes_too + n, scale_too, scale_too + blocks}, g, n, &p, &s);
    assert_memory_equal(codes_too, code, 2 * (size_t)n);
    assert_same_values(&w_too, w, n);
    c->d->ops->adamw(c->d, &(gr_trained){.f32 = exact[0]}, exact[1], exact[2], g, n, &p, &s);
    assert_memory_equal(w, exact[0], (size_t)n * sizeof *w);
    for (int i = 0; i < 2; i++)
        for (int64_t k = 0; k < n; k++) {
            const double by = (i ? m.v_scale : m.m_scale)[k / GR_MOMENTS_BLOCK], x = exact[1 + i][k];
            const int at = (i ? m.v : m.m)[k];
            out[i][k] = (float)(map[i].value[at] * by);
            for (int other = at - 1; other <= at + 1; other += 2)
                if (other >= 0 && other < 256 &&
                    fabs(map[i].value[other] * by - x) < fabs(out[i][k] - x) * (1 - 1e-4)) /* of float32 */
                    fail_msg("%g became %g, code %d", x, out[i][k], at);
        }
    out_whole(c, closed(w, width(c)), c->n, width(c)); /* blocks are not rows */
    for (int i = 0; i < 2; i++) out_whole(c, closed(out[i], width(c)), c->n, width(c));
}

/* Two updates of a matrix, or of a vector, against doubles. */
static void call_adafactor(call *c) {
    const int64_t R = c->variant & 1 ? 1 : 3 * c->n, C = c->variant & 1 ? c->n * width(c) : width(c), n = R * C;
    float *w = fixed(c, 1, R, C), *g = fixed(c, 2, R, C), *row = buffer(c, 2 * R), *col = buffer(c, 2 * C), *all = buffer(c, 2 * n);
    const gr_trained w_too = halves(c, w, n);
    double *x = calloc((size_t)(3 * n + R + C + 1), sizeof *x), *u = x + n, *sq = u + n, *rows_mean = sq + n,
           *cols_mean = rows_mean + R;
    const gr_factors f = c->variant & 1 ? (gr_factors){.all = all} : (gr_factors){.row = row, .col = col},
                     f_too = f.all ? (gr_factors){.all = all + n} : (gr_factors){.row = row + R, .col = col + C};
    const gr_adamw p = {.lr = 1e-2f, .weight_decay = 0.1f};
    assert_non_null(x);
    memset(row, 0, (size_t)R * 8), memset(col, 0, (size_t)C * 8), memset(all, 0, (size_t)n * 8);
    for (int64_t i = 0; i < n; i++) x[i] = w[i];
    for (int step = 1; step <= 2; step++) {
        const gr_step_stats s = {.clip = 0.7f, .optimizer_step = step};
        const double keep = 1 - pow(step, -0.8);
        double mean = 0, sum = 0;
        c->d->ops->adafactor(c->d, &(gr_trained){.f32 = w}, &f, g, R, C, &p, &s);
        c->d->ops->adafactor(c->d, &w_too, &f_too, g, R, C, &p, &s);
        assert_same_values(&w_too, w, n);
        for (int64_t i = 0; i < R; i++) rows_mean[i] *= keep;
        for (int64_t j = 0; j < C; j++) cols_mean[j] *= keep;
        for (int64_t i = 0; i < n; i++) {
            const double square = 0.49 * g[i] * g[i] + 1e-30;
            sq[i] = keep * sq[i] + (1 - keep) * square;
            rows_mean[i / C] += (1 - keep) * square / (double)C, cols_mean[i % C] += (1 - keep) * square / (double)R;
        }
        for (int64_t i = 0; i < R; i++) mean += rows_mean[i] / (double)R;
        for (int64_t i = 0; i < n; i++) {
            u[i] = 0.7 * g[i] / sqrt(f.all ? sq[i] : rows_mean[i / C] / mean * cols_mean[i % C]);
            sum += u[i] * u[i];
        }
        for (int64_t i = 0; i < n; i++) x[i] = x[i] * (1 - 1e-3) - 1e-2 * u[i] / fmax(1, sqrt(sum / (double)n));
    }
    for (int64_t i = 0; i < n; i++)
        if (fabs(w[i] - x[i]) > 1e-6) fail_msg("adafactor %d x %d: %g, expected %g", (int)R, (int)C, w[i], x[i]);
    free(x);
    out_whole(c, closed(w, C), R, C);
}

static void call_step_check(call *c) {
    gr_step_stats s = {.nll = 3, .squares = 16, .optimizer_step = 6, .clip = 1};
    c->d->ops->step_check(c->d, &s, true);
    assert_true(!s.nonfinite && !s.halt && s.optimizer_step == 6);
    s.squares = NAN;
    c->d->ops->step_check(c->d, &s, false);
    assert_true(s.nonfinite && !s.halt);
    c->d->ops->step_check(c->d, &s, true);
    assert_true(s.nonfinite && s.halt && s.optimizer_step == 6);
}

typedef struct operation {
    const char *name;
    void (*run)(call *c);
} operation;

static const operation operations[] = {
#define GR_OP(name, params, args) {#name, call_##name},
#include "kernels/ops.def"
#undef GR_OP
    {"int8", call_int8}, {"int8 error", call_int8_error}};

/* Linears take every size in every dtype, embeddings every dtype in every type of rows. */
static int variants(const operation *op) {
    if (strcmp(op->name, "embed_forward") == 0) return 3 * GR_DTYPE_COUNT;
    bool linear = strncmp(op->name, "linear", 6) == 0 || strncmp(op->name, "int8", 4) == 0;
    if (strncmp(op->name, "attention", 9) == 0) return ATTENTIONS;
    return linear ? LINEAR_SIZES * GR_DTYPE_COUNT : GR_DTYPE_COUNT;
}

static const char *const levels[] = {"generic", "avx2", "avx512", "avx512bf16", "amx", "cuda"};

static bool is_card(const char *level) { return strcmp(level, "cuda") == 0; }

/* A card is tested where GRAFT_DEVICE names it, and nothing else then. */
static bool available(const char *level) {
    const char *named = getenv("GRAFT_DEVICE");
    bool card = named && strncmp(named, "cuda", 4) == 0;
    return card ? is_card(level) : !is_card(level) && gr_cpu_ops(level);
}

static bool find_buffer(void *context, const void *p, mirror_buffer *b) {
    (void)context;
    for (const guarded *g = running->buffers; g < running->buffers + running->n_buffers; g++) {
        const float *begin = g->p, *end = g->p + GUARD + running->off + g->size + GUARD;
        if ((const char *)p < (const char *)begin || (const char *)p > (const char *)end) continue;
        *b = (mirror_buffer){g->p + GUARD + running->off, g->ld ? g->size / g->ld : 0, g->cols, g->ld, GUARD + running->off};
        return true;
    }
    return false;
}

static gr_device *device(const char *level, int n_threads) {
    const char *why = NULL;
    if (is_card(level)) {
        gr_device *card = gr_device_open(getenv("GRAFT_DEVICE"), NULL, &why);
        if (!card) fail_msg("%s", why);
        return &mirror_new(card, find_buffer, NULL)->device;
    }
    gr_threads *threads = gr_threads_new(n_threads);
    assert_int_equal(gr_threads_count(threads), n_threads);
    setenv("GRAFT_CPU", level, 1);
    gr_device *d = gr_device_open("cpu", threads, &why);
    if (!d) fail_msg("%s", why);
    return d;
}

static void close_device(gr_device *d) {
    if (d->close == mirror_close) {
        gr_device_close(d);
        return;
    }
    gr_threads *threads = gr_cpu_threads(d);
    gr_device_close(d);
    gr_threads_free(threads);
}

static void make_wide_call(call *c, const operation *op, gr_device *d, int variant, int64_t row0, int64_t n, int64_t columns) {
    *c = (call){.d = d, .variant = variant, .row0 = row0, .n = n, .columns = columns, .tolerance = 2e-5, .off = 1};
    if (on_card && variant % 4 == 0) c->off = 0; /* whole vectors are moved there where all arrays are aligned */
    running = c;
    if (d->close == mirror_close) {
        bool floats = strcmp(op->name, "cross_entropy") == 0 || strcmp(op->name, "softcap") == 0 ||
                      strcmp(op->name, "best_column") == 0; /* logits always are */
        ((mirror *)d)->variant = variant, ((mirror *)d)->activations = floats ? GR_DTYPE_F32 : card_type;
    }
    op->run(c);
    /* a card's products have factors of bfloat16 or half; rows of these types are rounded once more */
    bool linear = strncmp(op->name, "linear", 6) == 0, attention = strncmp(op->name, "attention", 9) == 0;
    double of_type = card_type == GR_DTYPE_BF16 ? 4e-3 : card_type == GR_DTYPE_F16 ? 1e-3 : 0;
    if (on_card && (linear || attention) && c->tolerance > 2e-5) of_type = fmax(of_type, 4e-3);
    if (on_card && attention) of_type *= 2.5;
    if (on_card) c->tolerance = fmax(c->tolerance, of_type);
}

static void make_call(call *c, const operation *op, gr_device *d, int variant, int64_t row0, int64_t n) {
    make_wide_call(c, op, d, variant, row0, n, 0);
}

/* GRAFT_OPS="rope,add": these alone, while one works on them; "packed attention", "cached attention" and "few rows" too. */
static bool chosen(const operation *op) {
    const char *some = getenv("GRAFT_OPS"), *at = some ? strstr(some, op->name) : op->name;
    char after = at ? at[strlen(op->name)] : 'x';
    return (!on_card || strncmp(op->name, "int8", 4) != 0) && at && (after == '\0' || after == ',');
}

/* Norm of the difference over norm, each output; b may be of some of a's rows. */
static void compare(const call *a, const call *b, const operation *op, const char *level) {
    assert_int_equal(a->n_outputs, b->n_outputs);
    for (int i = 0; i < a->n_outputs; i++) {
        const output *out = &b->outputs[i];
        int64_t skip = out->whole ? 0 : b->row0 - a->row0;
        double difference = 0, norm = 1e-30;
        for (int64_t r = 0; r < out->rows; r++)
            for (int64_t j = 0; j < out->cols; j++) {
                double x = gr_f32_row(a->outputs[i].x, skip + r)[j], y = gr_f32_row(out->x, r)[j];
                if (isnan(x) || isnan(y)) fail_msg("%s %s variant %d output %d: NaN", op->name, level, a->variant, i);
                difference += (x - y) * (x - y), norm += y * y;
            }
        if (sqrt(difference / norm) > a->tolerance)
            fail_msg("%s %s variant %d output %d: relative difference %g", op->name, level, a->variant, i, sqrt(difference / norm));
    }
}

static void compare_bits(const call *a, const call *b, const operation *op, const char *what) {
    bool same_rows = a->row0 == b->row0 && a->n == b->n;
    /* a card's few rows go another way than many, where its products are not exact: theirs are other bits, and both err */
    if (on_card && strcmp(op->name, "linear_forward") == 0 && a->tolerance > 2e-5 && (a->n <= FEW_ROWS) != (b->n <= FEW_ROWS)) {
        call both = *a;
        both.tolerance *= 2;
        compare(&both, b, op, what);
        return;
    }
    for (int i = 0; i < a->n_outputs && i < b->n_outputs; i++) {
        const output *x = &a->outputs[i], *y = &b->outputs[i];
        if (!same_rows && x->whole) continue;
        int64_t skip = x->whole ? 0 : b->row0 - a->row0;
        for (int64_t r = 0; r < y->rows; r++)
            if (memcmp(gr_f32_row(x->x, skip + r), gr_f32_row(y->x, r), (size_t)y->cols * sizeof(float)) != 0)
                fail_msg("%s %s variant %d output %d: bits differ", op->name, what, a->variant, i);
    }
}

/* Level number *state against the reference, and itself with other threads and fewer rows. */
static void test_level(void **state) {
    const char *level = levels[*(int *)*state];
    if (!available(level)) skip();
    gr_device *reference = device("generic", 1), *one = device(level, 1), *three = device(level, 3);
    on_card = is_card(level);
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        for (int variant = 0; chosen(&operations[i]) && variant < variants(&operations[i]); variant++) {
            static const gr_dtype types[] = {GR_DTYPE_F32, GR_DTYPE_BF16, GR_DTYPE_F16};
            const operation *op = &operations[i];
            call a, b, c;
            if (on_card) card_type = types[(variant / 2 + variant / GR_DTYPE_COUNT) % 3], few_digits = card_type != GR_DTYPE_F32;
            make_call(&a, op, three, variant, 0, 37 + variant % 3 * 32);
            make_call(&b, op, reference, variant, 0, a.n);
            compare(&a, &b, op, level);
            if (strcmp(op->name, "embed_forward") == 0 && card_type == GR_DTYPE_F32) compare_bits(&a, &b, op, "reference");
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
    close_device(reference), close_device(one), close_device(three);
    on_card = few_digits = false, card_type = GR_DTYPE_F32;
}

/* Rows, and numbers of them, beyond what is done at once: held in registers, sorted or summed in one go. */
static void test_large(void **state) {
    const char *level = levels[*(int *)*state];
    if (!available(level)) skip();
    static const struct {
        operation op;
        int variant;
        int64_t n, columns;
    } cases[] = {
        {{"rmsnorm_forward", call_rmsnorm_forward}, 0, 5, 4096},     {{"rmsnorm_forward", call_rmsnorm_forward}, 0, 3, 16395},
        {{"rmsnorm_forward", call_rmsnorm_forward}, 1, 3, 16448},    {{"rmsnorm_forward", call_rmsnorm_forward}, 4, 2, 256},
        {{"rmsnorm_backward", call_rmsnorm_backward}, 0, 20, 4096},  {{"rmsnorm_backward", call_rmsnorm_backward}, 0, 19, 8301},
        {{"rmsnorm_backward", call_rmsnorm_backward}, 2, 11, 16448}, {{"rmsnorm_backward", call_rmsnorm_backward}, 3, 3, 8256},
        {{"rmsnorm_backward", call_rmsnorm_backward}, 0, 1100, 40},  {{"rmsnorm_backward", call_rmsnorm_backward}, 4, 1100, 64},
        {{"embed_backward", call_embed_backward}, 0, 3000, 24},      {{"embed_backward", call_embed_backward}, 0, 1025, 1}};
    static const gr_dtype types[] = {GR_DTYPE_F32, GR_DTYPE_BF16, GR_DTYPE_F16};
    gr_device *reference = device("generic", 1), *one = device(level, 1), *three = device(level, 3);
    on_card = is_card(level);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const operation *op = &cases[i].op;
        if (!chosen(op)) continue;
        call a, b;
        if (on_card) card_type = types[i % 3], few_digits = card_type != GR_DTYPE_F32;
        make_wide_call(&a, op, three, cases[i].variant, 0, cases[i].n, cases[i].columns);
        make_wide_call(&b, op, reference, cases[i].variant, 0, cases[i].n, cases[i].columns);
        compare(&a, &b, op, level);
        release(&b);
        make_wide_call(&b, op, one, cases[i].variant, 0, cases[i].n, cases[i].columns);
        compare_bits(&a, &b, op, "one thread");
        release(&b);
        make_wide_call(&b, op, one, cases[i].variant, a.n - 1, 1, cases[i].columns);
        compare_bits(&a, &b, op, "the last row");
        release(&b), release(&a);
    }
    close_device(reference), close_device(one), close_device(three);
    on_card = few_digits = false, card_type = GR_DTYPE_F32;
}

/* More rows than a card sums at once, against the reference; and its bits among fewer. */
static void test_many_rows(void **state) {
    enum { ROWS = 1100 };
    static const gr_dtype types[] = {GR_DTYPE_F32, GR_DTYPE_BF16, GR_DTYPE_F16};
    static const int64_t fewer[] = {1, 7, 100, 512};
    static const operation ops[] = {{"linear_forward", call_linear_forward}, {"linear_backward", call_linear_backward}};
    (void)state;
    if (!available("cuda")) skip();
    gr_device *reference = device("generic", 1), *card = device("cuda", 1);
    on_card = true;
    for (int i = 0; i < 12; i++) {
        const operation *op = &ops[i % 2];
        const int variant = 5 * GR_DTYPE_COUNT + i; /* whole pieces of 64 columns */
        call a, b;
        if (!chosen(op)) continue;
        card_type = types[i / 4], few_digits = card_type != GR_DTYPE_F32;
        make_call(&a, op, card, variant, 0, ROWS);
        make_call(&b, op, reference, variant, 0, ROWS);
        compare(&a, &b, op, "many rows");
        release(&b);
        for (int j = 0; j < 4; j++) {
            make_call(&b, op, card, variant, 0, fewer[j]);
            compare_bits(&a, &b, op, "fewer rows");
            release(&b);
        }
        release(&a);
    }
    close_device(reference), close_device(card);
    on_card = few_digits = false, card_type = GR_DTYPE_F32;
}

/* A card's own KV cache: layers apart, of the type of activations; what is appended lies there, as what is asked for. */
static void test_card_cache(void **state) {
    const char *level = levels[*(int *)*state], *why = NULL;
    if (!available(level)) skip();
    enum { LAYERS = 3, SLOTS = 2, LEN = 7, K = 2, D = 5, WIDE = 2 * K * D, N = 4 };
    const int32_t at[N] = {0, LEN + 6, 3, LEN};
    gr_device *d = gr_device_open(getenv("GRAFT_DEVICE"), NULL, &why);
    if (!d) fail_msg("%s", why);
    for (gr_dtype type = GR_DTYPE_F32; type <= GR_DTYPE_BF16; type++) {
        const gr_kv_shape shape = {LAYERS, SLOTS, LEN, K, D, type};
        const int64_t size = type == GR_DTYPE_F32 ? 4 : 2;
        gr_kv kv[LAYERS] = {0};
        float x[LAYERS][N * WIDE];
        d->kv_close(d, kv);
        assert_true(d->kv_open(d, kv, &shape));
        assert_true(d->kv_bytes(d, &shape) >= LAYERS * SLOTS * LEN * WIDE * size);
        float *there = d->alloc(d, sizeof x[0]);
        int32_t *rows_there = d->alloc(d, sizeof at);
        d->upload(d, rows_there, at, sizeof at);
        for (int i = 0; i < LAYERS; i++) {
            assert_true(kv[i].rows.data && kv[i].rows.ld == WIDE && kv[i].rows.type == d->act_type(d, type));
            d->zero(d, kv[i].rows.data, SLOTS * LEN * WIDE * size);
        }
        for (int i = 0; i < LAYERS; i++) {
            for (int j = 0; j < N * WIDE; j++) x[i][j] = (float)(j + 1 - i * 50); /* of few digits */
            d->upload(d, there, x[i], sizeof x[i]);
            d->ops->kv_append(d, &kv[i], (gr_rows){there, WIDE, GR_DTYPE_F32}, rows_there, N);
        }
        for (int i = 0; i < LAYERS; i++) {
            uint8_t back[SLOTS * LEN * WIDE * 4];
            float row[WIDE], zero[WIDE] = {0};
            d->download(d, back, kv[i].rows.data, SLOTS * LEN * WIDE * size, 0);
            for (int r = 0; r < SLOTS * LEN; r++) {
                const float *expected = zero;
                gr_dtype_get(type)->to_f32(row, back + r * WIDE * size, WIDE);
                for (int k = 0; k < N; k++)
                    if (at[k] == r) expected = x[i] + k * WIDE;
                assert_memory_equal(row, expected, sizeof row);
            }
        }
        assert_null(d->sync(d));
        d->kv_close(d, kv);
        for (int i = 0; i < LAYERS; i++) assert_true(!kv[i].rows.data && !kv[i].form);
        d->free(d, there), d->free(d, rows_there);
    }
    gr_kv layer;
    assert_false(d->kv_open(d, &layer, &(gr_kv_shape){1, 1 << 20, INT64_C(1) << 40, 8, 128, GR_DTYPE_BF16})); /* overflows */
    d->kv_close(d, &layer);
    assert_false(d->kv_open(d, &layer, &(gr_kv_shape){1, 1 << 10, 1 << 20, 8, 128, GR_DTYPE_BF16})); /* 4 TiB */
    d->kv_close(d, &layer);
    assert_null(d->sync(d));
    gr_device_close(d);
}

static gr_dtype few_type(int variant) { return (variant + variant / GR_DTYPE_COUNT) % 2 ? GR_DTYPE_F16 : GR_DTYPE_BF16; }

/* A linear of a card as it decodes with it: products of bfloat16 or half, nothing dropped; with the device's form of the group or
 * without. */
static void make_few(call *c, gr_device *d, int variant, bool form, int64_t row0, int64_t n) {
    linears g;
    *c = (call){.d = d, .variant = variant, .row0 = row0, .n = n};
    running = c;
    if (d->close == mirror_close) ((mirror *)d)->variant = 2 * variant + form, ((mirror *)d)->activations = card_type;
    make_linears(c, &g, false);
    g.group.compute = few_type(variant);
    gr_product p = product_of(c, &g);
    p.dropout = NULL;
    d->ops->linear_forward(d, &p, n);
    out_rows(c, p.y, g.N), out_numbers(c, p.h, g.rank);
    c->tolerance = card_type == GR_DTYPE_F32 ? 2e-5 : 4e-3;
}

/* Up to 8 rows: against the reference, and a row has the same bits alone, among others, and from the file's blocks or a form. */
static void test_few_rows(void **state) {
    const char *level = levels[*(int *)*state];
    const operation op = {.name = "few rows"};
    if (!available(level) || !chosen(&op)) skip();
    gr_device *reference = device("generic", 2), *d = device(level, 1);
    few_digits = true;
    for (int variant = 0; variant < FEW_SIZES * GR_DTYPE_COUNT; variant++) {
        const bool floats = (variant / 2 + variant / (2 * GR_DTYPE_COUNT)) % 2;
        static const int some[][2] = {{0, 1}, {7, 1}, {0, 7}, {3, 2}};
        call a, b;
        card_type = floats ? GR_DTYPE_F32 : few_type(variant);
        make_few(&a, d, variant, false, 0, FEW_ROWS);
        make_few(&b, reference, variant, false, 0, FEW_ROWS);
        compare(&a, &b, &op, level);
        release(&b);
        for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
            make_few(&b, d, variant, false, some[i][0], some[i][1]);
            compare_bits(&a, &b, &op, "fewer rows");
            release(&b);
        }
        make_few(&b, d, variant, true, 0, FEW_ROWS);
        if (floats) compare_bits(&a, &b, &op, "with a form"); /* else other rows than before may be of the type */
        release(&b), release(&a);
    }
    close_device(reference), close_device(d);
    few_digits = false, card_type = GR_DTYPE_F32;
}

/* ---- dx in e4m3 ---- */

/* The nearest value of e4m3, halves to even; beyond 448 it is 448. */
static float e4m3(float x) {
    int exponent;
    if (x == 0) return 0;
    (void)frexpf(x, &exponent);
    float step = ldexpf(1, exponent > -5 ? exponent - 4 : -9), near = nearbyintf(fabsf(x) / step) * step;
    return copysignf(fminf(near, 448), x);
}

/* x[n], `apart` from one to the next, as it is by one scale; its scale. */
static float e4m3_values(float *to, const float *x, int64_t n, int64_t apart) {
    float largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(x[i * apart]));
    const float scale = largest > 0 ? largest / 448 : 1, inverse = 1 / scale;
    for (int64_t i = 0; i < n; i++) to[i * apart] = e4m3(x[i * apart] * inverse);
    return scale;
}

/* What e4m3 changes in dx[n,K]: the product of rounded factors less the product of what they are, in double. Returns the larger one
 * of both's norms, squared; *of_error that of what is added. */
static double add_rounding(gr_rows dx, const gr_group *g, gr_rows dy, int64_t n, double *of_error) {
    const int64_t N = gr_group_outputs(g), K = gr_group_inputs(g);
    float *w = malloc((size_t)(2 * N * K + 2 * N) * sizeof *w), *q = w + N * K, *row = q + N * K,
          *by = malloc((size_t)K * sizeof *by);
    double norm = 0;
    uint16_t half;
    assert_true(w && by);
    for (int64_t i = 0, at = 0; i < g->n; at += g->member[i++]->w.rows * K)
        gr_dtype_get(g->member[i]->w.dtype)->to_f32(w + at, g->member[i]->w.data, g->member[i]->w.rows * K);
    for (int64_t i = 0; i < N * K; i++) {
        gr_dtype_get(g->compute)->from_f32(&half, &w[i], 1);
        gr_dtype_get(g->compute)->to_f32(&w[i], &half, 1);
    }
    for (int64_t k = 0; k < K; k++) by[k] = e4m3_values(q + k, w + k, N, K);
    *of_error = 0;
    for (int64_t r = 0; r < n; r++) {
        const float *x = gr_f32_row(dy, r);
        const double scale = e4m3_values(row, x, N, 1);
        for (int64_t k = 0; k < K; k++) {
            double rounded = 0, exact = 0;
            for (int64_t i = 0; i < N; i++) rounded += (double)row[i] * q[i * K + k], exact += (double)x[i] * w[i * K + k];
            rounded *= scale * by[k];
            norm += exact * exact, *of_error += (rounded - exact) * (rounded - exact);
            gr_f32_row(dx, r)[k] += (float)(rounded - exact);
        }
    }
    free(w), free(by);
    return norm;
}

/* Rows row0..row0 + n of a group's backward with dx in e4m3; the reference has the rounding in double. Odd `how`: with a form. */
static void make_fp8(call *c, gr_device *d, int variant, int how, int64_t row0, int64_t n) {
    linears g;
    *c = (call){.d = d, .variant = variant, .row0 = row0, .n = n};
    running = c;
    if (d->close == mirror_close) ((mirror *)d)->variant = 2 * variant + how, ((mirror *)d)->activations = card_type;
    make_linears(c, &g, true);
    g.group.compute = few_type(variant), g.group.base = GR_BASE_FP8, g.group.backward = true;
    gr_product p = product_of(c, &g);
    gr_rows dx = rows(c, 7, g.K);
    d->ops->linear_backward(d, &p, dx, variant & 1, n);
    if (d->close != mirror_close) {
        double error, norm = add_rounding(dx, &g.group, p.y, n, &error);
        if (n > 1 && (error > norm * 0.05 * 0.05 || error < norm * 0.01 * 0.01)) /* 3 bits of either factor */
            fail_msg("fp8: relative error %g", sqrt(error / norm));
    }
    out_rows(c, dx, g.K), out_numbers(c, p.dh, g.rank);
    for (int j = 0; j < 2; j++)
        out_sum(c, g.lora[j].dA, g.lora[j].rank * g.K), out_sum(c, g.lora[j].dB, g.l[1].w.rows * g.lora[j].rank);
    c->tolerance = 8e-3; /* sums of products of e4m3 keep 14 bits on a card */
}

/* Against double, and bits: a row alone and among others, weights as a form and as they are in the file. */
static void check_fp8(gr_device *d, gr_device *reference, int variant, int64_t n) {
    static const int64_t some[][2] = {{0, 1}, {20, 1}, {0, 7}, {7, 14}};
    const operation op = {.name = "fp8"};
    call a, b;
    ((mirror *)d)->as_decoder = variant / 2 % 2;
    card_type = variant % 3 ? few_type(variant) : GR_DTYPE_F32;
    make_fp8(&a, d, variant, 1, 0, n);
    make_fp8(&b, reference, variant, 1, 0, n);
    compare(&a, &b, &op, "card");
    release(&b);
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        make_fp8(&b, d, variant, 1, some[i][0], some[i][1]);
        compare_bits(&a, &b, &op, "fewer rows");
        release(&b);
    }
    for (int how = 0; how < 2; how++) {
        make_fp8(&b, d, variant, how, 0, n);
        if (how || ((mirror *)d)->as_decoder) compare_bits(&a, &b, &op, how ? "again" : "without a form");
        release(&b);
    }
    release(&a);
}

/* One linear without an adapter: dx of dy[n,N] by K columns, which are rounded to e4m3 or not; a member that is trained keeps it
 * exact. The reference has the rounding in double. */
enum { PLAIN_N = 96, PLAIN_K = 80, PLAIN_ROWS = 12 };
static void make_plain(call *c, gr_device *d, gr_base_products base, int64_t N, bool trained, void (*change)(gr_rows dy)) {
    *c = (call){.d = d, .n = PLAIN_ROWS, .variant = 1, .tolerance = 8e-3};
    running = c;
    gr_linear l = {.w = weight(c, GR_DTYPE_BF16, 1, N, PLAIN_K), .dw = trained ? fixed(c, 4, N, PLAIN_K) : NULL};
    const gr_group group = {.member = {&l}, .n = 1, .compute = GR_DTYPE_BF16, .base = base, .backward = true};
    gr_rows dx = rows(c, 2, PLAIN_K), dy = rows(c, 3, N);
    double error;
    if (change) change(dy);
    gr_product p = {.group = &group, .x = rows(c, 5, PLAIN_K), .y = dy};
    d->ops->linear_backward(d, &p, dx, false, PLAIN_ROWS);
    if (d->close != mirror_close) (void)add_rounding(dx, &group, dy, PLAIN_ROWS, &error);
    out_rows(c, dx, PLAIN_K);
}

/* Rows 1, 2: something that is not finite; 3: all zero, 4: as good as; 5: large. */
static void spoil(gr_rows dy) {
    gr_f32_row(dy, 1)[40] = NAN, gr_f32_row(dy, 2)[PLAIN_N - 1] = -INFINITY;
    for (int j = 0; j < PLAIN_N; j++) {
        gr_f32_row(dy, 3)[j] = 0, gr_f32_row(dy, 4)[j] *= 0x1p-120f;
        gr_f32_row(dy, 5)[j] *= 0x1p100f;
    }
}

static void test_fp8(void **state) {
    const operation op = {.name = "fp8"};
    (void)state;
    if (!available("cuda") || !chosen(&op)) skip();
    gr_device *reference = device("generic", 1), *d = device("cuda", 1), *real = ((mirror *)d)->real;
    call a, b, c;
    on_card = few_digits = true;
    if (!real->fp8) {
        gr_linear l = {.w = {GR_DTYPE_BF16, 64, 64, NULL}};
        gr_group g = {.member = {&l}, .n = 1, .compute = GR_DTYPE_BF16, .base = GR_BASE_FP8, .backward = true};
        assert_false(real->place(real, &g));
        assert_non_null(strstr(real->sync(real), "fp8 is of"));
        close_device(reference), close_device(d);
        on_card = few_digits = false;
        return;
    }
    for (int variant = 0; variant < FEW_SIZES * GR_DTYPE_COUNT; variant += 5) check_fp8(d, reference, variant, 21);
    check_fp8(d, reference, 5 * GR_DTYPE_COUNT + 2, 1100);
    ((mirror *)d)->as_decoder = true, ((mirror *)d)->variant = 1, ((mirror *)d)->activations = GR_DTYPE_BF16;
    make_plain(&a, d, GR_BASE_FP8, PLAIN_N, false, NULL);
    make_plain(&b, d, GR_BASE_FP8, PLAIN_N, false, spoil);
    for (int r = 0; r < PLAIN_ROWS; r++)
        for (int k = 0; k < PLAIN_K; k++) {
            const float x = gr_f32_row(a.outputs[0].x, r)[k], y = gr_f32_row(b.outputs[0].x, r)[k];
            const bool good = r == 1 || r == 2 ? isnan(y) : r == 3 || r == 4 ? y == 0 : r == 5 ? y == x * 0x1p100f : y == x;
            if (!good) fail_msg("fp8: row %d, column %d: %g, was %g", r, k, y, x);
        }
    release(&a), release(&b);
    make_plain(&a, d, GR_BASE_EXACT, PLAIN_N, true, NULL), make_plain(&b, d, GR_BASE_FP8, PLAIN_N, true, NULL);
    compare_bits(&a, &b, &op, "a trained weight");
    make_plain(&c, d, GR_BASE_FP8, PLAIN_N, false, NULL);
    assert_memory_not_equal(gr_f32(a.outputs[0].x), gr_f32(c.outputs[0].x), PLAIN_K * sizeof(float));
    release(&a), release(&b), release(&c);
    for (int i = 0; i < 6; i++) { /* rows that a block reads in several pieces, and twice */
        static const int64_t wide[] = {4200, 13000, 25000};
        ((mirror *)d)->activations = i % 2 ? GR_DTYPE_F32 : GR_DTYPE_BF16;
        make_plain(&a, d, GR_BASE_FP8, wide[i / 2], false, NULL), make_plain(&b, reference, GR_BASE_FP8, wide[i / 2], false, NULL);
        compare(&a, &b, &op, "wide rows");
        release(&a), release(&b);
    }
    close_device(reference), close_device(d);
    on_card = few_digits = false, card_type = GR_DTYPE_F32;
}

/* Tokens decoded one by one with the packed keys and values kept beside the cache, half-way set back: the bits of attention without
 * them. */
static void test_kept_panels(void **state) {
    const char *level = levels[*(int *)*state];
    if (!available(level)) skip();
    enum { H = 4, K = 2, D = 40, ROWS = 200, SLOTS = 2, WIDE = 2 * K * D, SET_BACK = 150, TO = 100 };
    gr_device *d = device(level, 2);
    for (int variant = 0; variant < 4; variant++) {
        const bool bf16 = variant & 1;
        const int64_t window = variant & 2 ? 50 : 0;
        call c = {.d = d, .n = SLOTS};
        gr_kv kv;
        assert_true(d->kv_open(d, &kv, &(gr_kv_shape){1, SLOTS, ROWS, K, D, GR_DTYPE_F32}));
        const int32_t *packed = gr_cpu_kv_of(&kv)->packed;
        gr_rows text = filled_rows(&c, 1, 0, SLOTS * ROWS, WIDE, WIDE + 5), out = filled_rows(&c, 3, 0, SLOTS, H * D, H * D);
        gr_attention a = {.q = filled_rows(&c, 2, 0, SLOTS, H * D, H * D),
                          .k = kv.rows,
                          .v = gr_rows_at(kv.rows, 0, K * D),
                          .n_seqs = SLOTS,
                          .H = H,
                          .K = K,
                          .D = D,
                          .scale = 0.2f,
                          .window = window,
                          .compute = bf16 ? GR_DTYPE_BF16 : GR_DTYPE_F32};
        gr_rows expected = filled_rows(&c, 4, 0, SLOTS, H * D, H * D);
        bool set_back = false;
        for (int len = 1; len <= ROWS; len++) {
            const int half = (len + 1) / 2, at[SLOTS] = {len - 1, ROWS + half - 1};
            gr_seq seqs[SLOTS] = {{0, 1, 0, len}, {1, 1, ROWS, half}};
            a.seqs = seqs;
            for (int s = 0; s < SLOTS; s++) d->ops->kv_append(d, &kv, gr_rows_at(text, at[s], 0), &(int32_t){at[s]}, 1);
            for (int i = 0; i < 2; i++) {
                a.out = i ? out : expected, a.kv = i ? &kv : NULL;
                d->ops->attention_forward(d, &a);
            }
            if (memcmp(out.data, expected.data, SLOTS * H * D * sizeof(float)) != 0)
                fail_msg("%s: %d keys, window %d, bits differ", level, len, (int)window);
            if (len != SET_BACK || set_back) continue;
            set_back = true;
            for (int r = TO; r < ROWS; r++) /* another text from there on */
                for (int j = 0; j < WIDE; j++) gr_f32_row(text, r)[j] *= -1;
            len = TO;
        }
        if (strcmp(level, "generic") != 0) {
            assert_int_equal(packed[0], ROWS);
            assert_int_equal(gr_cpu_kv_of(&kv)->from[0], 0);
        }
        d->kv_close(d, &kv);
        release(&c);
    }
    close_device(d);
}

/* A slot whose window went on without single queries, then is set back: what was not packed is not taken for packed. And blocks of
 * keys before the window are not read at all: they are NaN. */
static void test_window(void **state) {
    const char *level = levels[*(int *)*state];
    if (!available(level)) skip();
    enum { H = 2, K = 1, D = 33, ROWS = 700, WIDE = 2 * K * D, WINDOW = 100 };
    static const int positions[] = {600, 601, 639, 640, 650, 400, 401, 20, 21, 64, 300, 370, 390};
    gr_device *d = device(level, 2);
    for (int variant = 0; variant < 4; variant++) {
        const bool blank = variant & 2;
        call c = {.d = d, .n = 1};
        gr_kv kv;
        assert_true(d->kv_open(d, &kv, &(gr_kv_shape){1, 1, ROWS, K, D, GR_DTYPE_F32}));
        gr_rows text = filled_rows(&c, 1, 0, ROWS, WIDE, WIDE), out = rows(&c, 3, H * D), expected = rows(&c, 4, H * D);
        gr_seq seq = {.q_len = 1};
        gr_attention a = {.q = rows(&c, 2, H * D),
                          .k = kv.rows,
                          .v = gr_rows_at(kv.rows, 0, K * D),
                          .seqs = &seq,
                          .n_seqs = 1,
                          .H = H,
                          .K = K,
                          .D = D,
                          .scale = 0.3f,
                          .window = WINDOW,
                          .compute = variant & 1 ? GR_DTYPE_BF16 : GR_DTYPE_F32};
        int32_t all[ROWS];
        for (int r = 0; r < ROWS; r++) all[r] = r;
        d->ops->kv_append(d, &kv, text, all, ROWS);
        for (size_t i = 0; i < sizeof positions / sizeof *positions; i++) {
            const int at = positions[i];
            const int64_t before = gr_first_key(WINDOW, at) / GR_KV_BLOCK * GR_KV_BLOCK;
            for (int j = 0; j < WIDE; j++) gr_f32_row(text, at)[j] *= -1;
            d->ops->kv_append(d, &kv, gr_rows_at(text, at, 0), &all[at], 1);
            if (blank) memset(gr_f32_row(kv.rows, 0), 0xFF, (size_t)(before * WIDE) * sizeof(float));
            seq.kv_len = at + 1;
            a.out = out, a.kv = &kv;
            d->ops->attention_forward(d, &a);
            if (blank) memcpy(gr_f32_row(kv.rows, 0), text.data, (size_t)(before * WIDE) * sizeof(float));
            a.out = expected, a.kv = NULL;
            d->ops->attention_forward(d, &a);
            if (memcmp(out.data, expected.data, H * D * sizeof(float)) != 0) fail_msg("%s: position %d, bits differ", level, at);
            assert_false(isnan(gr_f32(out)[0]));
        }
        d->kv_close(d, &kv);
        release(&c);
    }
    close_device(d);
}

/* Rows written again leave the whole blocks before them packed, in all heads of their slot alone. */
static void test_forgotten_panels(void **state) {
    enum { K = 2, D = 5, SLOTS = 3, ROWS = 300, SLOT = 1 };
    static const struct {
        int32_t packed, first, left;
    } cases[] = {{200, 200, 200}, {200, 199, 192}, {200, 130, 128}, {200, 128, 128}, {200, 127, 64}, {200, 3, 0}, {30, 100, 30}};
    (void)state;
    gr_device *d = device("generic", 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        call c = {.d = d, .n = 20};
        gr_kv kv[2];
        assert_true(d->kv_open(d, kv, &(gr_kv_shape){2, SLOTS, ROWS, K, D, GR_DTYPE_F32}));
        for (int j = 0; j < 2 * SLOTS * K; j++) gr_cpu_kv_of(&kv[j / (SLOTS * K)])->packed[j % (SLOTS * K)] = cases[i].packed;
        int32_t at[20];
        for (int j = 0; j < 20; j++) at[j] = SLOT * ROWS + cases[i].first + j;
        d->ops->kv_append(d, &kv[1], rows(&c, 1, 2 * K * D), at, c.n);
        for (int j = 0; j < 2 * SLOTS * K; j++)
            assert_int_equal(gr_cpu_kv_of(&kv[j / (SLOTS * K)])->packed[j % (SLOTS * K)],
                             j / K == SLOTS + SLOT ? cases[i].left : cases[i].packed);
        d->kv_close(d, kv);
        release(&c);
    }
    close_device(d);
}

/* dx += dy W where all of dy is more than is rounded at once (bfloat16 on tiles, int8). */
static void contract(call *c, gr_device *d, bool int8, int64_t row0, int64_t n) {
    enum { N = 40000, K = 33 };
    *c = (call){.d = d, .row0 = row0, .n = n, .tolerance = 1e-4};
    gr_linear l = {.w = weight(c, int8 ? GR_DTYPE_F32 : GR_DTYPE_Q8_0, 1, N, K)};
    gr_group group = {.member = {&l}, .n = 1, .compute = GR_DTYPE_BF16};
    gr_rows dx = rows(c, 2, l.w.cols);
    gr_product p = {.group = &group, .x = dx, .y = rows(c, 3, N)};
    if (int8) place(c, &group);
    d->ops->linear_backward(d, &p, dx, true, n);
    d->release(d, &group);
    out_rows(c, dx, l.w.cols);
}

/* Against the reference, and the bits of rows that are few. */
static void test_long_contraction(void **state) {
    const char *level = levels[*(int *)*state];
    const operation op = {.name = "long contraction"};
    if (!available(level)) skip();
    gr_device *reference = device("generic", 1), *three = device(level, 3);
    for (int int8 = 0; int8 < 2; int8++) {
        call all, exact, last;
        contract(&all, three, int8, 0, 450);
        contract(&exact, reference, int8, 0, 450);
        compare(&all, &exact, &op, level);
        contract(&last, three, int8, 445, 5);
        compare_bits(&all, &last, &op, "few rows");
        release(&all), release(&exact), release(&last);
    }
    close_device(reference), close_device(three);
}

/* Sequences whose keys are split among tasks, against the reference; and each alone has the bits it has in the batch. */
static void attend(call *c, int64_t first, int64_t n_seqs, gr_dtype compute, int64_t window) {
    enum { H = 2, K = 1, D = 17, ALL = 3300 };
    static const gr_seq seqs[] = {{0, 1600, 0, 1600}, {1600, 100, 1600, 100}, {1700, 1100, 1700, 1100}, {2800, 500, 2800, 500}};
    int64_t begin = seqs[first].q_start, end = seqs[first + n_seqs - 1].q_start + seqs[first + n_seqs - 1].q_len;
    gr_attention a = attention_of(c, 0, ALL, ALL, H, K, D);
    add_gradients(c, &a, ALL);
    a.seqs = seqs + first, a.n_seqs = n_seqs, a.compute = compute, a.window = window, a.softcap = window == 300 ? 2 : 0;
    c->d->ops->attention_forward(c->d, &a);
    c->d->ops->attention_backward(c->d, &a);
    c->row0 = begin, c->n = end - begin, c->tolerance = compute == GR_DTYPE_F32 ? 2e-5 : 1e-2;
    out_rows(c, gr_rows_at(a.out, begin, 0), H * D), out_rows(c, gr_rows_at(a.dq, begin, 0), H * D);
    out_rows(c, gr_rows_at(a.dk, begin, 0), K * D), out_rows(c, gr_rows_at(a.dv, begin, 0), K * D);
}

static void test_long_attention(void **state) {
    const char *level = levels[*(int *)*state];
    if (!available(level)) skip();
    const operation op = {.name = "long attention"};
    gr_device *reference = device("generic", 2), *one = device(level, 1), *three = device(level, 3);
    static const int64_t windows[] = {0, 300, 1090};
    for (int i = 0; i < 3; i++) {
        call exact = {.d = reference};
        attend(&exact, 0, 4, GR_DTYPE_F32, windows[i]);
        for (int bf16 = 0; bf16 < 2; bf16++) {
            gr_dtype compute = bf16 ? GR_DTYPE_BF16 : GR_DTYPE_F32;
            call a = {.d = three}, b = {.d = one};
            attend(&a, 0, 4, compute, windows[i]);
            compare(&a, &exact, &op, level);
            attend(&b, 0, 4, compute, windows[i]);
            compare_bits(&a, &b, &op, "one thread");
            release(&b);
            b = (call){.d = three};
            attend(&b, 2, 1, compute, windows[i]);
            compare_bits(&a, &b, &op, "alone");
            release(&b);
            if (windows[i] == 0) { /* a window as long as the longest */
                b = (call){.d = three};
                attend(&b, 0, 4, compute, 1600);
                compare_bits(&a, &b, &op, "within the window");
                release(&b);
            }
            release(&a);
        }
        release(&exact);
    }
    close_device(reference), close_device(one), close_device(three);
}

/* Sequences of mixed lengths in rows as the decoder has them on a card: of one type, laid out, q, k and v side by side. */
typedef struct packed_case {
    int64_t H, K, D, window;
    float softcap;
    gr_dtype type;
} packed_case;

static const packed_case packed_cases[] = {
    {3, 3, 64, 0, 0, GR_DTYPE_BF16},    {4, 2, 128, 0, 0, GR_DTYPE_BF16},  {2, 1, 256, 0, 0, GR_DTYPE_BF16},
    {3, 1, 64, 0, 0, GR_DTYPE_F16},     {2, 2, 128, 90, 0, GR_DTYPE_F16},  {2, 1, 256, 70, 2, GR_DTYPE_F16},
    {2, 1, 80, 0, 1.5f, GR_DTYPE_BF16}, {2, 2, 40, 33, 0, GR_DTYPE_BF16},  {2, 1, 200, 5, 0, GR_DTYPE_BF16},
    {4, 1, 128, 64, 2, GR_DTYPE_BF16},  {1, 1, 64, 150, 3, GR_DTYPE_BF16}, {1, 1, 36, 0, 0, GR_DTYPE_BF16},
    {2, 1, 64, 34, 0, GR_DTYPE_BF16},
};
static const gr_seq packed_seqs[] = {
    {0, 200, 0, 200}, {200, 1, 200, 1}, {201, 300, 201, 300}, {501, 64, 501, 64}, {585, 50, 565, 70}};
enum { PACKED_SEQS = sizeof packed_seqs / sizeof *packed_seqs, PACKED_ROWS = 635 };

/* Outputs are those of rows row0..row0 + n. */
static void attend_packed(call *c, const packed_case *s, const gr_seq *seqs, int64_t n_seqs, int64_t row0, int64_t n,
                          bool backward) {
    const int64_t HD = s->H * s->D, KD = s->K * s->D, all = HD + 2 * KD;
    running = c;
    c->row0 = row0, c->n = n, c->tolerance = 1e-2;
    gr_rows qkv = filled_rows(c, 1, 0, PACKED_ROWS, all, all), dqkv = filled_rows(c, 2, 0, PACKED_ROWS, all, all);
    gr_attention a = {.q = qkv,
                      .k = gr_rows_at(qkv, 0, HD),
                      .v = gr_rows_at(qkv, 0, HD + KD),
                      .out = filled_rows(c, 3, 0, PACKED_ROWS, HD, HD),
                      .lse = fixed(c, 4, PACKED_ROWS, s->H),
                      .dq = dqkv,
                      .dk = gr_rows_at(dqkv, 0, HD),
                      .dv = gr_rows_at(dqkv, 0, HD + KD),
                      .dout = filled_rows(c, 5, 0, PACKED_ROWS, HD, HD),
                      .delta = fixed(c, 6, PACKED_ROWS, s->H),
                      .seqs = seqs,
                      .n_seqs = n_seqs,
                      .H = s->H,
                      .K = s->K,
                      .D = s->D,
                      .scale = 1.7f / sqrtf((float)s->D),
                      .window = s->window,
                      .softcap = s->softcap,
                      .compute = s->type};
    c->d->ops->attention_forward(c->d, &a);
    if (backward) c->d->ops->attention_backward(c->d, &a);
    out_rows(c, gr_rows_at(a.out, row0, 0), HD), out_rows(c, gr_rows_at(closed(a.lse, s->H), row0, 0), s->H);
    for (int i = 0; backward && i < 3; i++) out_rows(c, gr_rows_at(i == 0 ? a.dq : i == 1 ? a.dk : a.dv, row0, 0), i ? KD : HD);
}

/* Against the reference; the bits of a sequence alone and of a query alone are those it has among others. */
static void test_packed_attention(void **state) {
    const char *level = levels[*(int *)*state];
    const operation op = {.name = "packed attention"};
    if (!available(level) || !chosen(&op)) skip();
    gr_device *reference = device("generic", 1), *d = device(level, 1);
    for (size_t i = 0; i < sizeof packed_cases / sizeof *packed_cases; i++) {
        const packed_case *s = &packed_cases[i];
        call exact = {.d = reference, .variant = (int)i}, a = {.d = d, .variant = (int)i};
        few_digits = true;
        ((mirror *)d)->activations = s->type, ((mirror *)d)->as_decoder = true;
        attend_packed(&exact, s, packed_seqs, PACKED_SEQS, 0, PACKED_ROWS, true);
        attend_packed(&a, s, packed_seqs, PACKED_SEQS, 0, PACKED_ROWS, true);
        compare(&a, &exact, &op, level);
        release(&exact);
        for (int j = 0; j < PACKED_SEQS; j++) {
            const gr_seq *one = &packed_seqs[j];
            call b = {.d = d};
            attend_packed(&b, s, one, 1, one->q_start, one->q_len, true);
            compare_bits(&a, &b, &op, "a sequence alone");
            release(&b);
            for (int64_t at = one->q_len - 1; at > 0; at = at * 2 / 5) {
                const gr_seq row = {one->q_start + at, 1, one->kv_start, one->kv_len - one->q_len + at + 1};
                b = (call){.d = d};
                attend_packed(&b, s, &row, 1, row.q_start, 1, false);
                compare_bits(&a, &b, &op, "a query alone");
                release(&b);
            }
        }
        release(&a);
    }
    few_digits = false;
    close_device(reference), close_device(d);
}

/* Single queries, and three of a prompt, on a cache whose slots are filled as far as kv_len says. */
static void attend_cached(call *c, const packed_case *s, const gr_seq *seqs, int64_t n_seqs, int64_t row0) {
    enum { QUERIES = 8, POSITIONS = 8700 };
    const int64_t HD = s->H * s->D, KD = s->K * s->D;
    running = c;
    c->row0 = row0, c->n = n_seqs == 1 ? 1 : QUERIES, c->tolerance = 1e-2;
    const gr_kv kv = {.rows = filled_rows(c, 1, 0, POSITIONS, 2 * KD, 2 * KD)};
    gr_attention a = {.q = filled_rows(c, 2, 0, QUERIES, HD, HD),
                      .k = kv.rows,
                      .v = gr_rows_at(kv.rows, 0, KD),
                      .out = filled_rows(c, 3, 0, QUERIES, HD, HD),
                      .lse = fixed(c, 4, QUERIES, s->H),
                      .seqs = seqs,
                      .n_seqs = n_seqs,
                      .H = s->H,
                      .K = s->K,
                      .D = s->D,
                      .scale = 4 / sqrtf((float)s->D),
                      .window = s->window,
                      .softcap = s->softcap,
                      .compute = s->type,
                      .kv = &kv};
    c->d->ops->attention_forward(c->d, &a);
    out_rows(c, gr_rows_at(a.out, row0, 0), HD), out_rows(c, gr_rows_at(closed(a.lse, s->H), row0, 0), s->H);
}

/* More positions than there are pieces of them in one step, pieces that are just full, one position. */
static void test_cached_attention(void **state) {
    static const packed_case cases[] = {{2, 1, 64, 0, 0, GR_DTYPE_BF16},
                                        {5, 1, 128, 0, 2, GR_DTYPE_F16},
                                        {2, 2, 256, 300, 0, GR_DTYPE_BF16},
                                        {3, 3, 19, 200, 0, GR_DTYPE_F32}};
    static const gr_seq seqs[] = {{0, 1, 8200, 256}, {1, 1, 0, 8200},  {2, 1, 8456, 1},
                                  {3, 3, 8457, 100}, {6, 1, 8557, 90}, {7, 1, 100, 700}};
    const operation op = {.name = "cached attention"};
    const char *level = levels[*(int *)*state];
    if (!available(level) || !chosen(&op)) skip();
    gr_device *reference = device("generic", 1), *d = device(level, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        call exact = {.d = reference, .variant = (int)i}, a = {.d = d, .variant = (int)i};
        few_digits = true;
        ((mirror *)d)->activations = cases[i].type, ((mirror *)d)->as_decoder = true;
        attend_cached(&exact, &cases[i], seqs, 6, 0);
        attend_cached(&a, &cases[i], seqs, 6, 0);
        if (cases[i].type == GR_DTYPE_F32) a.tolerance = 2e-5;
        compare(&a, &exact, &op, level);
        for (int j = 0; j < 6; j++) {
            call b = {.d = d};
            if (seqs[j].q_len > 1) continue;
            attend_cached(&b, &cases[i], &seqs[j], 1, seqs[j].q_start);
            compare_bits(&a, &b, &op, "a query alone");
            release(&b);
        }
        release(&exact), release(&a);
    }
    few_digits = false;
    close_device(reference), close_device(d);
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
    gr_threads *threads = gr_threads_new(1);
    setenv("GRAFT_CPU", "mmx", 1);
    assert_null(gr_device_open("cpu", threads, &why));
    assert_non_null(strstr(why, "generic, avx2, avx512, avx512bf16 or amx"));
    assert_null(gr_cpu_ops("mmx"));
    gr_threads_free(threads);
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
    static int level[] = {0, 1, 2, 3, 4, 5};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox),
        cmocka_unit_test(test_pool),
        cmocka_unit_test(test_unknown_level),
        cmocka_unit_test(test_forgotten_panels),
        {"generic", test_level, NULL, NULL, &level[0]},
        {"avx2", test_level, NULL, NULL, &level[1]},
        {"avx512", test_level, NULL, NULL, &level[2]},
        {"avx512bf16", test_level, NULL, NULL, &level[3]},
        {"amx", test_level, NULL, NULL, &level[4]},
        {"cuda", test_level, NULL, NULL, &level[5]},
        {"cuda, many rows", test_many_rows, NULL, NULL, NULL},
        {"cuda, packed attention", test_packed_attention, NULL, NULL, &level[5]},
        {"generic, large", test_large, NULL, NULL, &level[0]},
        {"avx2, large", test_large, NULL, NULL, &level[1]},
        {"avx512, large", test_large, NULL, NULL, &level[2]},
        {"cuda, large", test_large, NULL, NULL, &level[5]},
        {"cuda, cache", test_card_cache, NULL, NULL, &level[5]},
        {"cuda, cached attention", test_cached_attention, NULL, NULL, &level[5]},
        {"cuda, few rows", test_few_rows, NULL, NULL, &level[5]},
        {"cuda, fp8", test_fp8, NULL, NULL, NULL},
        {"generic, kept panels", test_kept_panels, NULL, NULL, &level[0]},
        {"avx2, kept panels", test_kept_panels, NULL, NULL, &level[1]},
        {"avx512, kept panels", test_kept_panels, NULL, NULL, &level[2]},
        {"avx512bf16, kept panels", test_kept_panels, NULL, NULL, &level[3]},
        {"amx, kept panels", test_kept_panels, NULL, NULL, &level[4]},
        {"generic, window", test_window, NULL, NULL, &level[0]},
        {"avx2, window", test_window, NULL, NULL, &level[1]},
        {"avx512, window", test_window, NULL, NULL, &level[2]},
        {"avx512bf16, window", test_window, NULL, NULL, &level[3]},
        {"amx, window", test_window, NULL, NULL, &level[4]},
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
