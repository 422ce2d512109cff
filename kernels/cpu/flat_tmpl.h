/* flat_tmpl.h - operations element by element, rope and dropout: one plain C text, compiled for every level; the
 * compiler's vectoriser does the rest and all levels agree bit for bit. LEVEL(name) is name with the level's suffix. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/impl.h"
#include "kernels/philox.h"

enum { PIECE = 16384, LANES = 16, DRAWS = 48 }; /* elements of a task; partial sums; random draws at a time */

typedef struct flat_args {
    float *x;
    const float *y;
    double *sums;
} flat_args;

static void add_range(const void *args, int64_t begin, int64_t end) {
    const flat_args *a = args;
    float *restrict x = a->x;
    const float *restrict y = a->y;
    for (int64_t i = begin; i < end; i++) x[i] += y[i];
}

typedef struct add_args {
    gr_rows x, y;
    int64_t C;
} add_args;

static void add_rows(const void *args, int64_t begin, int64_t end) {
    const add_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        flat_args row = {.x = gr_f32_row(a->x, r), .y = gr_f32_row(a->y, r)};
        add_range(&row, 0, a->C);
    }
}

void LEVEL(gr_add)(gr_device *d, gr_rows x, gr_rows y, int64_t n, int64_t C) {
    flat_args flat = {.x = gr_f32(x), .y = gr_f32(y)};
    add_args rows = {x, y, C};
    if (x.ld == C && y.ld == C) gr_cpu_for(d, n * C, PIECE, add_range, &flat);
    else gr_cpu_for(d, n, gr_cpu_row_grain(C), add_rows, &rows);
}

typedef struct parts_args {
    float *out;
    const float *parts;
    int64_t n_parts, stride;
} parts_args;

static void sum_parts_range(const void *args, int64_t begin, int64_t end) {
    const parts_args *a = args;
    float *restrict out = a->out;
    memcpy(out + begin, a->parts + begin, (size_t)(end - begin) * sizeof *out);
    for (int64_t k = 1; k < a->n_parts; k++) {
        const float *restrict part = a->parts + k * a->stride;
        for (int64_t i = begin; i < end; i++) out[i] += part[i];
    }
}

void LEVEL(gr_sum_parts)(gr_device *d, float *out, const float *parts, int64_t n_parts, int64_t stride, int64_t n) {
    parts_args a = {out, parts, n_parts, stride};
    gr_cpu_for(d, n, PIECE, sum_parts_range, &a);
}

#include "kernels/cpu/optimizer_tmpl.h"

static double squares(const float *x, int64_t n) {
    double lane[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) lane[j] += (double)x[i + j] * x[i + j];
    for (; i < n; i++) sum += (double)x[i] * x[i];
    for (int j = 0; j < LANES; j++) sum += lane[j];
    return sum;
}

enum { GROUP = 64 }; /* pieces whose sums are kept at a time: the partial sums need no allocation */

static void squares_range(const void *args, int64_t begin, int64_t end) {
    const flat_args *a = args;
    a->sums[begin / PIECE] = squares(a->y + begin, end - begin);
}

void LEVEL(gr_sum_squares)(gr_device *d, gr_step_stats *s, const float *x, int64_t n) {
    double sums[GROUP], total = 0;
    for (int64_t at = 0; at < n; at += GROUP * PIECE) {
        int64_t count = n - at < GROUP * PIECE ? n - at : GROUP * PIECE;
        flat_args a = {.y = x + at, .sums = sums};
        gr_cpu_for(d, count, PIECE, squares_range, &a);
        for (int64_t i = 0; i < (count + PIECE - 1) / PIECE; i++) total += sums[i];
    }
    s->squares += total;
}

typedef struct dropout_args {
    gr_rows out, x;
    int64_t C;
    const gr_dropout *p;
    uint32_t threshold; /* a word below it drops its element */
    float scale;
    bool accumulate;
} dropout_args;

/* DRAWS consecutive counters: a loop that the compiler vectorises over the counters. */
static void draw(uint32_t word[DRAWS][4], uint64_t seed, uint64_t hi, uint64_t lo) {
    for (int j = 0; j < DRAWS; j++) gr_philox(word[j], seed, GR_PURPOSE_DROPOUT, hi, lo + (uint64_t)j);
}

static void dropout_rows(const void *args, int64_t begin, int64_t end) {
    const dropout_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        float *out = gr_f32_row(a->out, r);
        const float *x = gr_f32_row(a->x, r);
        for (int64_t j = 0; j < a->C; j += 4 * DRAWS) {
            uint32_t word[DRAWS][4];
            float mask[4 * DRAWS];
            int64_t count = a->C - j < 4 * DRAWS ? a->C - j : 4 * DRAWS;
            draw(word, a->p->seed, a->p->row_key[r], (uint64_t)a->p->site << 32 | (uint64_t)(j / 4));
            for (int i = 0; i < 4 * DRAWS; i++) mask[i] = (&word[0][0])[i] >= a->threshold ? a->scale : 0;
            if (a->accumulate)
                for (int64_t i = 0; i < count; i++) out[j + i] += x[j + i] * mask[i];
            else
                for (int64_t i = 0; i < count; i++) out[j + i] = x[j + i] * mask[i];
        }
    }
}

void LEVEL(gr_dropout)(gr_device *d, gr_rows out, gr_rows x, int64_t n, int64_t C, const gr_dropout *p, bool accumulate) {
    dropout_args a = {out, x, C, p, (uint32_t)((double)p->p * 4294967296.0), 1 / (1 - p->p), accumulate};
    gr_cpu_for(d, n, gr_cpu_row_grain(C), dropout_rows, &a);
}

typedef struct rope_args {
    gr_rows x;
    const int32_t *pos;
    const float *table;
    int64_t heads, D;
    float sign;
} rope_args;

static void rope_rows(const void *args, int64_t begin, int64_t end) {
    const rope_args *a = args;
    int64_t half = a->D / 2;
    for (int64_t r = begin; r < end; r++) {
        const float *restrict cosine = a->table + a->pos[r] * a->D, *restrict sine = cosine + half;
        for (int64_t h = 0; h < a->heads; h++) {
            float *restrict u = gr_f32_row(a->x, r) + h * a->D, *restrict v = u + half;
            for (int64_t i = 0; i < half; i++) {
                float s = a->sign * sine[i], ui = u[i], vi = v[i];
                u[i] = ui * cosine[i] - vi * s;
                v[i] = vi * cosine[i] + ui * s;
            }
        }
    }
}

void LEVEL(gr_rope)(gr_device *d, gr_rows x, const int32_t *pos, const float *table, int64_t n, int64_t n_heads, int64_t D,
                    bool inverse) {
    rope_args a = {x, pos, table, n_heads, D, inverse ? -1.0f : 1.0f};
    gr_cpu_for(d, n, gr_cpu_row_grain(n_heads * D), rope_rows, &a);
}
