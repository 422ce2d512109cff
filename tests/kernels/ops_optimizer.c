/* ops_optimizer.c - the step's end: norms, clipping and loss scales, and every optimizer against float32 or double. */
#include <math.h>

#include "kernels/dynamic8.h"
#include "kernels/philox.h"
#include "ops.h"

void call_sum_squares(call *c) {
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

void call_step_begin(call *c) {
    gr_step_stats s = {.nll = NAN, .squares = 4, .bad_row = 3, .optimizer_step = 6, .clip = 0.5f, .nonfinite = 1, .halt = 1};
    c->d->ops->step_begin(c->d, &s);
    assert_true(s.nll == 0 && s.squares == 0 && s.bad_row == -1 && !s.nonfinite);
    assert_true(s.optimizer_step == 6 && s.halt);
}

void call_step_prepare(call *c) {
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
void call_adamw(call *c) {
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
void call_adamw_8bit(call *c) {
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
void call_adafactor(call *c) {
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

void call_step_check(call *c) {
    gr_step_stats s = {.nll = 3, .squares = 16, .optimizer_step = 6, .clip = 1};
    c->d->ops->step_check(c->d, &s, true);
    assert_true(!s.nonfinite && !s.halt && s.optimizer_step == 6);
    s.squares = NAN;
    c->d->ops->step_check(c->d, &s, false);
    assert_true(s.nonfinite && !s.halt);
    c->d->ops->step_check(c->d, &s, true);
    assert_true(s.nonfinite && s.halt && s.optimizer_step == 6);
}
