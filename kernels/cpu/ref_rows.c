/* ref_rows.c - the reference of the operations on rows: copies, norm, activation, loss. Sums are double. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/impl.h"

enum { COLUMNS = 64 }; /* of a task that walks down all rows */

typedef struct row_args {
    float *out, *out2, *out3;
    const float *x, *y, *w, *s;
    const gr_weight *table;
    const int32_t *ids;
    int64_t n, C;
    float f;
} row_args;

static void embed_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    const gr_dtype_info *type = gr_dtype_get(a->table->dtype);
    int64_t row_bytes = a->table->cols / type->block * type->block_bytes;
    for (int64_t r = begin; r < end; r++) {
        float *out = a->out + r * a->table->cols;
        type->to_f32(out, (const char *)a->table->data + a->ids[r] * row_bytes, a->table->cols);
        for (int64_t j = 0; a->f != 1 && j < a->table->cols; j++) out[j] *= a->f;
    }
}

void gr_embed_forward_generic(gr_device *d, float *x, const gr_weight *table, const int32_t *ids, int64_t n, float scale) {
    row_args a = {.out = x, .table = table, .ids = ids, .f = scale};
    gr_cpu_for(d, n, gr_cpu_row_grain(table->cols), embed_rows, &a);
}

static void embed_backward_columns(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = 0; r < a->n; r++)
        for (int64_t j = begin; j < end; j++) a->out[a->ids[r] * a->C + j] += a->f * a->x[r * a->C + j];
}

void gr_embed_backward_generic(gr_device *d, float *dtable, const float *dx, const int32_t *ids, int64_t n, int64_t C,
                               float scale) {
    row_args a = {.out = dtable, .x = dx, .ids = ids, .n = n, .C = C, .f = scale};
    gr_cpu_for(d, C, COLUMNS, embed_backward_columns, &a);
}

static void rmsnorm_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        float *x = a->out2 + r * a->C, *out = a->out + r * a->C;
        double squares = 0;
        for (int64_t j = 0; a->y && j < a->C; j++) x[j] += a->y[r * a->C + j];
        for (int64_t j = 0; j < a->C; j++) squares += (double)x[j] * x[j];
        float rstd = (float)(1 / sqrt(squares / (double)a->C + a->f));
        for (int64_t j = 0; j < a->C; j++) out[j] = x[j] * rstd * a->w[j];
        if (a->out3) a->out3[r] = rstd;
    }
}

void gr_rmsnorm_forward_generic(gr_device *d, float *out, float *rstd, float *x, const float *add, const float *w, int64_t n,
                                int64_t C, float eps) {
    row_args a = {.out = out, .out2 = x, .out3 = rstd, .y = add, .w = w, .C = C, .f = eps};
    gr_cpu_for(d, n, gr_cpu_row_grain(C), rmsnorm_rows, &a);
}

/* With x^ = x rstd: dx += rstd (dout w - x^ mean(dout w x^)). */
static void rmsnorm_backward_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *dout = a->y + r * a->C, *x = a->x + r * a->C;
        float *dx = a->out + r * a->C, rstd = a->s[r];
        double sum = 0;
        for (int64_t j = 0; j < a->C; j++) sum += (double)dout[j] * a->w[j] * x[j];
        float mean = (float)(sum * rstd / (double)a->C);
        for (int64_t j = 0; j < a->C; j++) dx[j] += rstd * (dout[j] * a->w[j] - x[j] * rstd * mean);
    }
}

static void rmsnorm_weight_columns(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = 0; r < a->n; r++)
        for (int64_t j = begin; j < end; j++) a->out2[j] += a->y[r * a->C + j] * a->x[r * a->C + j] * a->s[r];
}

void gr_rmsnorm_backward_generic(gr_device *d, float *dx, float *dw, const float *dout, const float *x, const float *rstd,
                                 const float *w, int64_t n, int64_t C) {
    row_args a = {.out = dx, .out2 = dw, .y = dout, .x = x, .s = rstd, .w = w, .n = n, .C = C};
    gr_cpu_for(d, n, gr_cpu_row_grain(C), rmsnorm_backward_rows, &a);
    if (dw) gr_cpu_for(d, C, COLUMNS, rmsnorm_weight_columns, &a);
}

static void swiglu_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++)
        for (int64_t j = 0; j < a->C; j++) {
            float g = a->x[r * 2 * a->C + j], u = a->x[r * 2 * a->C + a->C + j];
            a->out[r * a->C + j] = g / (1 + expf(-g)) * u;
        }
}

void gr_swiglu_forward_generic(gr_device *d, float *out, const float *gu, int64_t n, int64_t F) {
    row_args a = {.out = out, .x = gu, .C = F};
    gr_cpu_for(d, n, gr_cpu_row_grain(F), swiglu_rows, &a);
}

static void swiglu_backward_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++)
        for (int64_t j = 0; j < a->C; j++) {
            int64_t at = r * 2 * a->C + j;
            float g = a->x[at], u = a->x[at + a->C], dout = a->y[r * a->C + j], s = 1 / (1 + expf(-g));
            a->out[at] = dout * u * s * (1 + g * (1 - s));
            a->out[at + a->C] = dout * g * s;
        }
}

void gr_swiglu_backward_generic(gr_device *d, float *dgu, const float *dout, const float *gu, int64_t n, int64_t F) {
    row_args a = {.out = dgu, .x = gu, .y = dout, .C = F};
    gr_cpu_for(d, n, gr_cpu_row_grain(F), swiglu_backward_rows, &a);
}

static void cross_entropy_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        float *logits = a->out + r * a->C, largest = logits[0];
        double sum = 0;
        for (int64_t j = 1; j < a->C; j++) largest = fmaxf(largest, logits[j]);
        for (int64_t j = 0; j < a->C; j++) sum += exp((double)logits[j] - largest);
        a->out2[r] = (float)(log(sum) + largest - logits[a->ids[r]]);
        if (!a->w) continue;
        for (int64_t j = 0; j < a->C; j++)
            logits[j] = (float)(a->w[r] * (exp((double)logits[j] - largest) / sum - (j == a->ids[r])));
    }
}

void gr_cross_entropy_generic(gr_device *d, float *nll, float *logits, const int32_t *target, const float *weight, int64_t n,
                              int64_t V) {
    row_args a = {.out = logits, .out2 = nll, .ids = target, .w = weight, .C = V};
    gr_cpu_for(d, n, gr_cpu_row_grain(V), cross_entropy_rows, &a);
}

static void gather(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) memcpy(a->out + r * a->C, a->x + a->ids[r] * a->C, (size_t)a->C * sizeof(float));
}

static void scatter(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) memcpy(a->out + a->ids[r] * a->C, a->x + r * a->C, (size_t)a->C * sizeof(float));
}

void gr_gather_rows_generic(gr_device *d, float *out, const float *x, const int32_t *idx, int64_t n, int64_t C) {
    row_args a = {.out = out, .x = x, .ids = idx, .C = C};
    gr_cpu_for(d, n, gr_cpu_row_grain(C), gather, &a);
}

void gr_scatter_rows_generic(gr_device *d, float *x, const float *src, const int32_t *idx, int64_t n, int64_t C) {
    row_args a = {.out = x, .x = src, .ids = idx, .C = C};
    gr_cpu_for(d, n, gr_cpu_row_grain(C), scatter, &a);
}
