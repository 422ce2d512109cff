/* flat_tmpl.h - operations element by element, rope and dropout: one plain C text, compiled for every level; the
 * compiler's vectoriser does the rest and all levels agree bit for bit. LEVEL(name) is name with the level's suffix. */
#include <math.h>
#include <stddef.h>

#include "kernels/cpu/impl.h"
#include "kernels/philox.h"

enum { PIECE = 16384, LANES = 16, DRAWS = 48 }; /* elements of a task; partial sums; random draws at a time */

typedef struct flat_args {
    float *x, *m, *v;
    const float *y;
    const gr_adamw *p;
    double *sums;
} flat_args;

static void add_range(const void *args, int64_t begin, int64_t end) {
    const flat_args *a = args;
    float *restrict x = a->x;
    const float *restrict y = a->y;
    for (int64_t i = begin; i < end; i++) x[i] += y[i];
}

void LEVEL(gr_add)(gr_device *d, float *x, const float *y, int64_t n) {
    flat_args a = {.x = x, .y = y};
    gr_cpu_for(d, n, PIECE, add_range, &a);
}

static void adamw_range(const void *args, int64_t begin, int64_t end) {
    const flat_args *a = args;
    float *restrict w = a->x, *restrict m = a->m, *restrict v = a->v;
    const float *restrict g = a->y;
    const gr_adamw p = *a->p;
    float step = (float)(p.lr / (1 - pow(p.beta1, (double)p.step)));
    float v_scale = (float)(1 / sqrt(1 - pow(p.beta2, (double)p.step))), decay = 1 - p.lr * p.weight_decay;
    for (int64_t i = begin; i < end; i++) {
        float grad = g[i] * p.grad_scale;
        m[i] = p.beta1 * m[i] + (1 - p.beta1) * grad;
        v[i] = p.beta2 * v[i] + (1 - p.beta2) * grad * grad;
        w[i] = w[i] * decay - step * m[i] / (sqrtf(v[i]) * v_scale + p.epsilon);
    }
}

void LEVEL(gr_adamw)(gr_device *d, float *w, float *m, float *v, const float *g, int64_t n, const gr_adamw *p) {
    flat_args a = {.x = w, .m = m, .v = v, .y = g, .p = p};
    gr_cpu_for(d, n, PIECE, adamw_range, &a);
}

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

void LEVEL(gr_sum_squares)(gr_device *d, double *out, const float *x, int64_t n) {
    double sums[GROUP], total = 0;
    for (int64_t at = 0; at < n; at += GROUP * PIECE) {
        int64_t count = n - at < GROUP * PIECE ? n - at : GROUP * PIECE;
        flat_args a = {.y = x + at, .sums = sums};
        gr_cpu_for(d, count, PIECE, squares_range, &a);
        for (int64_t i = 0; i < (count + PIECE - 1) / PIECE; i++) total += sums[i];
    }
    *out = total;
}

typedef struct dropout_args {
    float *out;
    const float *x;
    int64_t C;
    uint64_t seed;
    const uint64_t *row_key;
    uint32_t site, threshold; /* a word below it drops its element */
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
        float *out = a->out + r * a->C;
        const float *x = a->x + r * a->C;
        for (int64_t j = 0; j < a->C; j += 4 * DRAWS) {
            uint32_t word[DRAWS][4];
            float mask[4 * DRAWS];
            int64_t count = a->C - j < 4 * DRAWS ? a->C - j : 4 * DRAWS;
            draw(word, a->seed, a->row_key[r], (uint64_t)a->site << 32 | (uint64_t)(j / 4));
            for (int i = 0; i < 4 * DRAWS; i++) mask[i] = (&word[0][0])[i] >= a->threshold ? a->scale : 0;
            if (a->accumulate)
                for (int64_t i = 0; i < count; i++) out[j + i] += x[j + i] * mask[i];
            else
                for (int64_t i = 0; i < count; i++) out[j + i] = x[j + i] * mask[i];
        }
    }
}

void LEVEL(gr_dropout)(gr_device *d, float *out, const float *x, int64_t n, int64_t C, float p, uint64_t seed,
                       const uint64_t *row_key, uint32_t site, bool accumulate) {
    dropout_args a = {out, x, C, seed, row_key, site, (uint32_t)((double)p * 4294967296.0), 1 / (1 - p), accumulate};
    gr_cpu_for(d, n, gr_cpu_row_grain(C), dropout_rows, &a);
}

typedef struct rope_args {
    float *x;
    const int32_t *pos;
    const float *table;
    int64_t ldx, heads, D;
    float sign;
} rope_args;

static void rope_rows(const void *args, int64_t begin, int64_t end) {
    const rope_args *a = args;
    int64_t half = a->D / 2;
    for (int64_t r = begin; r < end; r++) {
        const float *restrict cosine = a->table + a->pos[r] * a->D, *restrict sine = cosine + half;
        for (int64_t h = 0; h < a->heads; h++) {
            float *restrict u = a->x + r * a->ldx + h * a->D, *restrict v = u + half;
            for (int64_t i = 0; i < half; i++) {
                float s = a->sign * sine[i], ui = u[i], vi = v[i];
                u[i] = ui * cosine[i] - vi * s;
                v[i] = vi * cosine[i] + ui * s;
            }
        }
    }
}

void LEVEL(gr_rope)(gr_device *d, float *x, int64_t ldx, const int32_t *pos, const float *table, int64_t n, int64_t n_heads,
                    int64_t D, bool inverse) {
    rope_args a = {x, pos, table, ldx, n_heads, D, inverse ? -1.0f : 1.0f};
    gr_cpu_for(d, n, gr_cpu_row_grain(n_heads * D), rope_rows, &a);
}
