/* optimizer_tmpl.h - updates of trained values: plain C, one text for all levels, which agree bit for bit; part of flat_tmpl.h. An
 * update is made in float32, of a block of values that are opened and closed again where they are kept as something else. */
#ifndef GR_CPU_OPTIMIZER_TMPL_H
#define GR_CPU_OPTIMIZER_TMPL_H

#include <string.h>

#include "kernels/dynamic8.h"

enum { VALUES = GR_MOMENTS_BLOCK }; /* opened at a time */
_Static_assert(GR_FACTORS_MOST *(int64_t)sizeof(float) <= GR_CPU_SHARED, "row_sums are two floats long");
_Static_assert((int)PIECE % (int)VALUES == 0, "whole blocks");

/* Values at..at+n (n <= VALUES) as floats: in place, or in room. */
static float *open_values(const gr_trained *w, int64_t at, int64_t n, float *restrict room) {
    if (w->f32) return w->f32 + at;
    for (int64_t i = 0; i < n; i++) {
        uint32_t low = w->low ? w->low[at + i] : 0, bits = ((uint32_t)w->bf16[at + i] - (low >> 15)) << 16 | low;
        memcpy(&room[i], &bits, sizeof bits);
    }
    return room;
}

/* Room for half words of whole counters, which begin up to 7 elements before. */
enum { ROUND_DRAWS = VALUES / 8 + 1 };

static void round_at_random(const gr_trained *w, int64_t at, int64_t n, const uint32_t *restrict bits, uint64_t step) {
    uint32_t word[ROUND_DRAWS][4];
    uint64_t e = w->first + (uint64_t)at, before = e % 8;
    for (int j = 0; j < ROUND_DRAWS; j++) gr_philox(word[j], w->seed, GR_PURPOSE_ROUND, step, e / 8 + (uint64_t)j);
    for (int64_t i = 0; i < n; i++) {
        uint64_t half = before + (uint64_t)i;
        w->bf16[at + i] = (uint16_t)((bits[i] + (word[half / 8][half % 8 / 2] >> half % 2 * 16 & 0xffff)) >> 16);
    }
}

static void close_values(const gr_trained *w, int64_t at, int64_t n, const float *room, const gr_step_stats *s) {
    uint32_t bits[VALUES];
    if (w->f32) return;
    memcpy(bits, room, (size_t)n * sizeof *bits);
    if (!w->low) {
        round_at_random(w, at, n, bits, (uint64_t)s->optimizer_step);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        w->low[at + i] = (uint16_t)bits[i];
        w->bf16[at + i] = (uint16_t)((bits[i] + 0x8000) >> 16);
    }
}

/* ---- AdamW ---- */

typedef struct adamw_args {
    const gr_trained *w;
    float *m, *v;
    const gr_moments8 *bits8;
    const gr_dynamic8 *m_map, *v_map;
    const float *g;
    const gr_adamw *p;
    const gr_step_stats *s;
    int64_t n;
} adamw_args;

typedef struct adamw_step {
    gr_adamw p;
    float clip, step, v_scale, decay;
} adamw_step;

static adamw_step adamw_step_of(const gr_adamw *p, const gr_step_stats *s) {
    const double t = (double)s->optimizer_step;
    return (adamw_step){.p = *p,
                        .clip = s->clip,
                        .step = (float)(p->lr / (1 - pow(p->beta1, t))),
                        .v_scale = (float)(1 / sqrt(1 - pow(p->beta2, t))),
                        .decay = 1 - p->lr * p->weight_decay};
}

static void adamw_values(float *restrict w, float *restrict m, float *restrict v, const float *restrict g, int64_t n,
                         const adamw_step *a) {
    const gr_adamw p = a->p;
    const float clip = a->clip, step = a->step, v_scale = a->v_scale, decay = a->decay;
    for (int64_t i = 0; i < n; i++) {
        float grad = g[i] * clip;
        m[i] = p.beta1 * m[i] + (1 - p.beta1) * grad;
        v[i] = p.beta2 * v[i] + (1 - p.beta2) * grad * grad;
        w[i] = w[i] * decay - step * m[i] / (sqrtf(v[i]) * v_scale + p.epsilon);
    }
}

static void adamw_range(const void *args, int64_t begin, int64_t end) {
    const adamw_args *a = args;
    const adamw_step step = adamw_step_of(a->p, a->s);
    float room[VALUES];
    int64_t most = a->w->f32 ? end - begin : VALUES;
    for (int64_t i = begin; i < end; i += most) {
        int64_t n = end - i < most ? end - i : most;
        float *w = open_values(a->w, i, n, room);
        adamw_values(w, a->m + i, a->v + i, a->g + i, n, &step);
        close_values(a->w, i, n, room, a->s);
    }
}

void LEVEL(gr_adamw)(gr_device *d, const gr_trained *w, float *m, float *v, const float *g, int64_t n, const gr_adamw *p,
                     const gr_step_stats *s) {
    adamw_args a = {.w = w, .m = m, .v = v, .g = g, .p = p, .s = s};
    if (!s->nonfinite && !s->halt) gr_cpu_for(d, n, PIECE, adamw_range, &a);
}

static void open_codes(float *restrict x, const uint8_t *restrict code, float scale, int64_t n, const gr_dynamic8 *map) {
    for (int64_t i = 0; i < n; i++) x[i] = map->value[code[i]] * scale;
}

/* The codes of x[n], and their scale. */
static float close_codes(uint8_t *restrict code, const float *restrict x, int64_t n, const gr_dynamic8 *map) {
    int32_t wide[VALUES], top = 0;
    float largest;
    memcpy(wide, x, (size_t)n * sizeof *wide);
    for (int64_t i = 0; i < n; i++)
        top = (wide[i] & 0x7fffffff) > top ? wide[i] & 0x7fffffff : top; /* sizes rise with their bits */
    memcpy(&largest, &top, sizeof largest);
    if (largest < 0x1p-126f) largest = 0; /* no number to divide by */
    float inverse = largest > 0 ? 1 / largest : 0;
    for (int64_t i = 0; i < n; i++) wide[i] = gr_dynamic8_code(map, x[i] * inverse);
    for (int64_t i = 0; i < n; i++) code[i] = (uint8_t)wide[i];
    return largest;
}

static void adamw_8bit_range(const void *args, int64_t begin, int64_t end) {
    const adamw_args *a = args;
    const gr_moments8 *b = a->bits8;
    const adamw_step step = adamw_step_of(a->p, a->s);
    float room[VALUES], m[VALUES], v[VALUES];
    for (int64_t i = begin; i < end; i += VALUES) {
        int64_t n = end - i < VALUES ? end - i : VALUES, block = i / VALUES;
        float *w = open_values(a->w, i, n, room);
        open_codes(m, b->m + i, b->m_scale[block], n, a->m_map);
        open_codes(v, b->v + i, b->v_scale[block], n, a->v_map);
        adamw_values(w, m, v, a->g + i, n, &step);
        b->m_scale[block] = close_codes(b->m + i, m, n, a->m_map);
        b->v_scale[block] = close_codes(b->v + i, v, n, a->v_map);
        close_values(a->w, i, n, room, a->s);
    }
}

void LEVEL(gr_adamw_8bit)(gr_device *d, const gr_trained *w, const gr_moments8 *m, const float *g, int64_t n, const gr_adamw *p,
                          const gr_step_stats *s) {
    gr_dynamic8 m_map, v_map;
    adamw_args a = {.w = w, .bits8 = m, .g = g, .p = p, .s = s, .m_map = &m_map, .v_map = &v_map};
    if (s->nonfinite || s->halt) return;
    gr_dynamic8_make(&m_map, true), gr_dynamic8_make(&v_map, false);
    gr_cpu_for(d, n, PIECE, adamw_8bit_range, &a);
}

/* ---- Adafactor ---- */

typedef struct adafactor_args {
    const gr_trained *w;
    const gr_factors *f;
    const float *g;
    int64_t rows, cols;
    const gr_step_stats *s;
    float keep; /* of what was there */
    double *row_sums;
    float *col_factor;              /* 1 / sqrt(col) */
    float mean, lr, decay, shorten; /* mean of the rows; shorten: what updates are multiplied with */
} adafactor_args;

static double square_of(const adafactor_args *a, int64_t i) {
    double g = (double)(a->g[i] * a->s->clip);
    return g * g + 1e-30;
}

static void adafactor_row_means(const void *args, int64_t begin, int64_t end) {
    const adafactor_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        double sum = 0;
        for (int64_t j = 0; j < a->cols; j++) sum += square_of(a, r * a->cols + j);
        a->f->row[r] = a->keep * a->f->row[r] + (1 - a->keep) * (float)(sum / (double)a->cols);
    }
}

enum { FACTOR_COLUMNS = 64 };

static void adafactor_col_means(const void *args, int64_t begin, int64_t end) {
    const adafactor_args *a = args;
    double sum[FACTOR_COLUMNS] = {0};
    for (int64_t r = 0; r < a->rows; r++)
        for (int64_t j = begin; j < end; j++) sum[j - begin] += square_of(a, r * a->cols + j);
    for (int64_t j = begin; j < end; j++) {
        a->f->col[j] = a->keep * a->f->col[j] + (1 - a->keep) * (float)(sum[j - begin] / (double)a->rows);
        a->col_factor[j] = 1 / sqrtf(a->f->col[j]);
    }
}

/* What g of a row is multiplied with, beside the factor of its column. */
static float row_factor(const adafactor_args *a, int64_t r) { return a->s->clip / sqrtf(a->f->row[r] / a->mean); }

static void adafactor_row_updates(const void *args, int64_t begin, int64_t end) {
    const adafactor_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *g = a->g + r * a->cols, by = row_factor(a, r);
        double sum = 0;
        for (int64_t j = 0; j < a->cols; j++) {
            double u = (double)(by * a->col_factor[j] * g[j]);
            sum += u * u;
        }
        a->row_sums[r] = sum;
    }
}

static void adafactor_row_values(const void *args, int64_t begin, int64_t end) {
    const adafactor_args *a = args;
    float room[VALUES];
    for (int64_t r = begin; r < end; r++) {
        const float *g = a->g + r * a->cols, by = row_factor(a, r);
        for (int64_t j = 0; j < a->cols; j += VALUES) {
            int64_t n = a->cols - j < VALUES ? a->cols - j : VALUES, at = r * a->cols + j;
            float *w = open_values(a->w, at, n, room);
            for (int64_t i = 0; i < n; i++) w[i] = w[i] * a->decay - a->lr * (by * a->col_factor[j + i] * g[j + i] * a->shorten);
            close_values(a->w, at, n, room, a->s);
        }
    }
}

/* From the sum of squares of n updates. */
static float shortened(double sum, int64_t n) {
    double rms = sqrt(sum / (double)n);
    return rms > 1 ? (float)(1 / rms) : 1;
}

/* A vector is short: one thread. */
static void adafactor_vector(adafactor_args *a) {
    float *all = a->f->all, room[VALUES];
    const int64_t count = a->rows * a->cols;
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        all[i] = a->keep * all[i] + (1 - a->keep) * (float)square_of(a, i);
        double u = (double)(a->g[i] * a->s->clip / sqrtf(all[i]));
        sum += u * u;
    }
    a->shorten = shortened(sum, count);
    for (int64_t at = 0; at < count; at += VALUES) {
        int64_t n = count - at < VALUES ? count - at : VALUES;
        float *w = open_values(a->w, at, n, room);
        for (int64_t i = 0; i < n; i++)
            w[i] = w[i] * a->decay - a->lr * (a->g[at + i] * a->s->clip / sqrtf(all[at + i]) * a->shorten);
        close_values(a->w, at, n, room, a->s);
    }
}

void LEVEL(gr_adafactor)(gr_device *d, const gr_trained *w, const gr_factors *f, const float *g, int64_t rows, int64_t cols,
                         const gr_adamw *p, const gr_step_stats *s) {
    adafactor_args a = {.w = w, .f = f, .g = g, .rows = rows, .cols = cols, .s = s, .lr = p->lr};
    double sum = 0, mean = 0;
    if (s->nonfinite || s->halt || rows * cols == 0) return;
    a.keep = (float)(1 - pow((double)s->optimizer_step, -0.8)), a.decay = 1 - p->lr * p->weight_decay;
    if (f->all) {
        adafactor_vector(&a);
        return;
    }
    assert(2 * rows + cols <= GR_FACTORS_MOST);
    a.row_sums = gr_cpu_shared(d), a.col_factor = (float *)(a.row_sums + rows);
    gr_cpu_for(d, rows, gr_cpu_row_grain(cols), adafactor_row_means, &a);
    gr_cpu_for(d, cols, FACTOR_COLUMNS, adafactor_col_means, &a);
    for (int64_t r = 0; r < rows; r++) mean += (double)f->row[r];
    a.mean = (float)(mean / (double)rows);
    gr_cpu_for(d, rows, gr_cpu_row_grain(cols), adafactor_row_updates, &a);
    for (int64_t r = 0; r < rows; r++) sum += a.row_sums[r];
    a.shorten = shortened(sum, rows * cols);
    gr_cpu_for(d, rows, gr_cpu_row_grain(cols), adafactor_row_values, &a);
}

#endif
