/* ops_fp8.c - dx in e4m3, against products of rounded factors in double. */
#include <math.h>

#include "ops.h"

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
    if (mirrored(d)) ((mirror *)d)->variant = 2 * variant + how, ((mirror *)d)->activations = card_type;
    make_linears(c, &g, true);
    g.group.compute = few_type(variant), g.group.base = GR_BASE_FP8, g.group.backward = true;
    gr_product p = product_of(c, &g);
    gr_rows dx = rows(c, 7, g.K);
    d->ops->linear_backward(d, &p, dx, variant & 1, n);
    if (!mirrored(d)) {
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
static void make_plain(call *c, gr_device *d, gr_base_products base, int64_t N, bool trained,
                       void (*change)(gr_rows dy, uint16_t *w, int64_t N)) {
    *c = (call){.d = d, .n = PLAIN_ROWS, .variant = 1, .tolerance = 8e-3};
    running = c;
    gr_linear l = {.w = weight(c, GR_DTYPE_BF16, 1, N, PLAIN_K), .dw = trained ? fixed(c, 4, N, PLAIN_K) : NULL};
    const gr_group group = {.member = {&l}, .n = 1, .compute = GR_DTYPE_BF16, .base = base, .backward = true};
    gr_rows dx = rows(c, 2, PLAIN_K), dy = rows(c, 3, N);
    double error;
    if (change) change(dy, (uint16_t *)(uintptr_t)l.w.data, N);
    gr_product p = {.group = &group, .x = rows(c, 5, PLAIN_K), .y = dy};
    d->ops->linear_backward(d, &p, dx, false, PLAIN_ROWS);
    if (!mirrored(d)) (void)add_rounding(dx, &group, dy, PLAIN_ROWS, &error);
    out_rows(c, dx, PLAIN_K);
}

/* Rows 1, 2: something that is not finite; 3: all zero, 4: as good as; 5: large. */
static void spoil(gr_rows dy, uint16_t *w, int64_t N) {
    (void)w, (void)N;
    gr_f32_row(dy, 1)[40] = NAN, gr_f32_row(dy, 2)[PLAIN_N - 1] = -INFINITY;
    for (int j = 0; j < PLAIN_N; j++) {
        gr_f32_row(dy, 3)[j] = 0, gr_f32_row(dy, 4)[j] *= 0x1p-120f;
        gr_f32_row(dy, 5)[j] *= 0x1p100f;
    }
}

/* The largest of each row and column is far from the others, and in another part of it. */
static void raise_peaks(gr_rows dy, uint16_t *w, int64_t N) {
    for (int64_t r = 0; r < PLAIN_ROWS; r++) gr_f32_row(dy, r)[(2 * r + 1) * N / (2 * PLAIN_ROWS)] = 16;
    for (int64_t k = 0; k < PLAIN_K; k++) w[(2 * k + 1) * N / (2 * PLAIN_K) * PLAIN_K + k] = gr_f32_to_bf16(16);
}

void test_fp8(void **state) {
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
        make_plain(&a, d, GR_BASE_FP8, wide[i / 2], false, raise_peaks);
        make_plain(&b, reference, GR_BASE_FP8, wide[i / 2], false, raise_peaks);
        compare(&a, &b, &op, "wide rows");
        release(&a), release(&b);
    }
    close_device(reference), close_device(d);
    on_card = few_digits = false, card_type = GR_DTYPE_F32;
}
