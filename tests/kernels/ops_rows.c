/* ops_rows.c - operations row by row: embeddings, norms, rope, gates, rows and columns moved, dropout, sums. */
#include <math.h>

#include "kernels/philox.h"
#include "ops.h"

void call_embed_forward(call *c) {
    gr_weight table = weight(c, variant_dtype(c), 1, 50, width(c));
    gr_rows x = rows(c, 2, table.cols);
    c->d->ops->embed_forward(c->d, x, &table, indices(c, 50), c->n, c->variant & 1 ? 3.5f : 1);
    out_rows(c, x, table.cols);
}

/* The sums are those of a loop, to the last bit: their order is that of rows. */
void call_embed_backward(call *c) {
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

void call_rmsnorm_forward(call *c) {
    int64_t parts = norm_parts(c), C = parts * width(c);
    gr_rows out = rows(c, 1, C), x = rows(c, 3, C), add = rows(c, 4, C);
    float *rstd = numbers(c, 2, parts);
    gr_norm p = {.w = fixed(c, 5, 1, width(c)), .eps = 1e-5f, .parts = parts, .width = width(c)};
    gr_rows sum = c->variant % 3 == 0 ? x : c->variant % 3 == 1 ? add : rows(c, 6, C);
    if (c->variant & 1) add.data = NULL;
    c->d->ops->rmsnorm_forward(c->d, out, c->variant & 2 ? NULL : rstd, sum, x, add, &p, c->n);
    out_rows(c, out, C), out_numbers(c, rstd, parts), out_rows(c, x, C), out_rows(c, sum, C);
}

void call_rmsnorm_backward(call *c) {
    int64_t parts = norm_parts(c), C = parts * width(c);
    gr_rows dx = rows(c, 1, C), dout = rows(c, 3, C), x = rows(c, 4, C);
    float *dw = fixed(c, 2, 1, width(c)), *rstd = numbers(c, 5, parts);
    gr_norm p = {.w = fixed(c, 6, 1, width(c)), .dw = c->variant & 1 ? NULL : dw, .parts = parts, .width = width(c)};
    gr_rows also = rows(c, 7, C), to = c->variant & 2 ? dout : dx; /* in place, or += */
    if (c->variant % 3 == 1) also.data = NULL;
    c->d->ops->rmsnorm_backward(c->d, to, also, !(c->variant & 2), dout, x, rstd, &p, c->n);
    out_rows(c, to, C), out_sum(c, dw, width(c));
    if (also.data) out_rows(c, also, C);
}

void call_rope(call *c) {
    static const int64_t sizes[] = {64, 2, 10, 128, 80, 24};
    int64_t D = sizes[c->variant % 6], heads = 3;
    gr_rows x = rows(c, 1, heads * D);
    c->d->ops->rope(c->d, x, indices(c, 64), fixed(c, 2, 64, D), c->n, heads, D, c->variant & 1);
    out_rows(c, x, heads * D);
}

static gr_activation activation(const call *c) { return c->variant & 2 ? GR_ACTIVATION_GELU_TANH : GR_ACTIVATION_SILU; }

void call_glu_forward(call *c) {
    int64_t F = width(c);
    gr_rows out = rows(c, 1, F), gu = rows(c, 2, 2 * F);
    for (int64_t r = 0; r < c->n; r++)
        for (int64_t j = 0; j < 2 * F; j++) gr_f32_row(gu, r)[j] *= 20;
    c->d->ops->glu_forward(c->d, out, gu, c->n, F, activation(c));
    out_rows(c, out, F);
}

void call_glu_backward(call *c) {
    int64_t F = width(c);
    gr_rows gu = rows(c, 2, 2 * F), dgu = c->variant & 1 ? gu : rows(c, 1, 2 * F);
    c->d->ops->glu_backward(c->d, dgu, rows(c, 3, F), gu, c->n, F, activation(c));
    out_rows(c, dgu, 2 * F);
}

void call_gather_rows(call *c) {
    int64_t C = width(c);
    gr_rows out = rows(c, 1, C), x = filled_rows(c, 2, 0, 50, C, apart(c, 2, C));
    c->d->ops->gather_rows(c->d, out, x, indices(c, 50), c->n, C);
    out_rows(c, out, C);
}

void call_scatter_rows(call *c) {
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

void call_scatter_columns(call *c) {
    int64_t all = width(c), n;
    int32_t *ids = some_columns(c, all, &n);
    gr_rows x = rows(c, 1, all), before = rows(c, 1, all), src = rows(c, 2, n);
    c->d->ops->scatter_columns(c->d, x, src, ids, c->n, n);
    for (int64_t r = 0; r < c->n; r++)
        for (int64_t j = 0, k = 0; j < all; j++)
            assert_true(gr_f32_row(x, r)[j] == (ids[k] == j ? gr_f32_row(src, r)[k++] : gr_f32_row(before, r)[j]));
    out_rows(c, x, all);
}

void call_take_columns(call *c) {
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

void call_dropout(call *c) {
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

void call_add(call *c) {
    int64_t C = width(c);
    gr_rows x = rows(c, 1, C), y = rows(c, 2, C);
    c->d->ops->add(c->d, x, y, c->n, C);
    out_rows(c, x, C);
}

void call_sum_parts(call *c) {
    enum { PARTS = 3 };
    const int64_t C = width(c), n = c->n * C, stride = n + c->variant % 3 * 16;
    float *out = numbers(c, 1, C), *parts = buffer(c, PARTS * stride);
    for (int64_t k = 0; k < PARTS && n > 0; k++) memcpy(parts + k * stride, numbers(c, 2 + (int)k, C), (size_t)n * sizeof *parts);
    c->d->ops->sum_parts(c->d, out, parts, PARTS, stride, n);
    for (int64_t i = 0; i < n; i++) assert_true(out[i] == (parts[i] + parts[stride + i]) + parts[2 * stride + i]);
    out_numbers(c, out, C);
}
