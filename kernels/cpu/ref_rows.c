/* ref_rows.c - the reference of the operations on rows: copies, norm, activation, loss. Sums are double. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/impl.h"

enum { COLUMNS = 64 }; /* of a task that walks down all rows */

typedef struct row_args {
    gr_rows out, x, y;
    float *f32, *sums;
    const float *w, *s;
    const gr_weight *table;
    const int32_t *ids;
    const gr_norm *norm;
    int64_t n, C;
    float f;
    bool accumulate;
} row_args;

static void embed_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    const gr_dtype_info *type = gr_dtype_get(a->table->dtype);
    int64_t row_bytes = a->table->cols / type->block * type->block_bytes;
    for (int64_t r = begin; r < end; r++) {
        float *out = gr_f32_row(a->out, r);
        type->to_f32(out, (const char *)a->table->data + a->ids[r] * row_bytes, a->table->cols);
        for (int64_t j = 0; a->f != 1 && j < a->table->cols; j++) out[j] *= a->f;
    }
}

void gr_embed_forward_generic(gr_device *d, gr_rows x, const gr_weight *table, const int32_t *ids, int64_t n, float scale) {
    row_args a = {.out = x, .table = table, .ids = ids, .f = scale};
    gr_cpu_for(d, n, gr_cpu_row_grain(table->cols), embed_rows, &a);
}

static void embed_backward_columns(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = 0; r < a->n; r++) {
        float *sums = a->sums + a->ids[r] * a->C;
        const float *dx = gr_f32_row(a->x, r);
        for (int64_t j = begin; j < end; j++) sums[j] += a->f * dx[j];
    }
}

void gr_embed_backward_generic(gr_device *d, float *dtable, gr_rows dx, const int32_t *ids, int64_t n, int64_t C, float scale) {
    row_args a = {.sums = dtable, .x = dx, .ids = ids, .n = n, .C = C, .f = scale};
    gr_cpu_for(d, C, COLUMNS, embed_backward_columns, &a);
}

/* Part i of all: its place in rows, NULL of none. */
static float *part_of(gr_rows x, const row_args *a, int64_t i) {
    return x.data ? gr_f32_row(x, i / a->norm->parts) + i % a->norm->parts * a->C : NULL;
}

static void rmsnorm_parts(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        float *x = part_of(a->x, a, r), *out = part_of(a->out, a, r);
        const float *add = part_of(a->y, a, r);
        double squares = 0;
        for (int64_t j = 0; add && j < a->C; j++) x[j] += add[j];
        for (int64_t j = 0; j < a->C; j++) squares += (double)x[j] * x[j];
        float rstd = (float)(1 / sqrt(squares / (double)a->C + a->norm->eps));
        for (int64_t j = 0; j < a->C; j++) out[j] = x[j] * rstd * a->norm->w[j];
        if (a->f32) a->f32[r] = rstd;
    }
}

void gr_rmsnorm_forward_generic(gr_device *d, gr_rows out, float *rstd, gr_rows x, gr_rows add, const gr_norm *p, int64_t n) {
    row_args a = {.out = out, .x = x, .y = add, .f32 = rstd, .norm = p, .C = p->width};
    gr_cpu_for(d, n * p->parts, gr_cpu_row_grain(p->width), rmsnorm_parts, &a);
}

/* With x^ = x rstd: dx (+)= rstd (dout w - x^ mean(dout w x^)). */
static void rmsnorm_backward_parts(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *dout = part_of(a->y, a, r), *x = part_of(a->x, a, r), *w = a->norm->w;
        float *dx = part_of(a->out, a, r), rstd = a->s[r];
        double sum = 0;
        for (int64_t j = 0; j < a->C; j++) sum += (double)dout[j] * w[j] * x[j];
        float mean = (float)(sum * rstd / (double)a->C);
        for (int64_t j = 0; j < a->C; j++) dx[j] = (a->accumulate ? dx[j] : 0) + rstd * (dout[j] * w[j] - x[j] * rstd * mean);
    }
}

static void rmsnorm_weight_columns(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = 0; r < a->n * a->norm->parts; r++) {
        const float *dout = part_of(a->y, a, r), *x = part_of(a->x, a, r);
        for (int64_t j = begin; j < end; j++) a->norm->dw[j] += dout[j] * x[j] * a->s[r];
    }
}

void gr_rmsnorm_backward_generic(gr_device *d, gr_rows dx, bool accumulate, gr_rows dout, gr_rows x, const float *rstd,
                                 const gr_norm *p, int64_t n) {
    row_args a = {.out = dx, .y = dout, .x = x, .s = rstd, .norm = p, .n = n, .C = p->width, .accumulate = accumulate};
    if (p->dw) gr_cpu_for(d, p->width, COLUMNS, rmsnorm_weight_columns, &a);
    gr_cpu_for(d, n * p->parts, gr_cpu_row_grain(p->width), rmsnorm_backward_parts, &a);
}

static void glu_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *gate = gr_f32_row(a->x, r), *up = gate + a->C;
        float *out = gr_f32_row(a->out, r);
        for (int64_t j = 0; j < a->C; j++) out[j] = gate[j] / (1 + expf(-gate[j])) * up[j];
    }
}

void gr_glu_forward_generic(gr_device *d, gr_rows out, gr_rows gu, int64_t n, int64_t F, gr_activation act) {
    row_args a = {.out = out, .x = gu, .C = F};
    assert(act == GR_ACTIVATION_SILU);
    gr_cpu_for(d, n, gr_cpu_row_grain(F), glu_rows, &a);
}

static void glu_backward_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *gate = gr_f32_row(a->x, r), *up = gate + a->C, *dout = gr_f32_row(a->y, r);
        float *dgate = gr_f32_row(a->out, r), *dup = dgate + a->C;
        for (int64_t j = 0; j < a->C; j++) {
            float g = gate[j], u = up[j], s = 1 / (1 + expf(-g));
            dgate[j] = dout[j] * u * s * (1 + g * (1 - s));
            dup[j] = dout[j] * g * s;
        }
    }
}

void gr_glu_backward_generic(gr_device *d, gr_rows dgu, gr_rows dout, gr_rows gu, int64_t n, int64_t F, gr_activation act) {
    row_args a = {.out = dgu, .x = gu, .y = dout, .C = F};
    assert(act == GR_ACTIVATION_SILU);
    gr_cpu_for(d, n, gr_cpu_row_grain(F), glu_backward_rows, &a);
}

static void cross_entropy_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        float *logits = gr_f32_row(a->x, r), largest = logits[0];
        double sum = 0;
        for (int64_t j = 1; j < a->C; j++) largest = fmaxf(largest, logits[j]);
        for (int64_t j = 0; j < a->C; j++) sum += exp((double)logits[j] - largest);
        a->f32[r] = (float)(log(sum) + largest - logits[a->ids[r]]);
        if (!a->w) continue;
        for (int64_t j = 0; j < a->C; j++)
            logits[j] = (float)(a->w[r] * (exp((double)logits[j] - largest) / sum - (j == a->ids[r])));
    }
}

void gr_cross_entropy_generic(gr_device *d, float *nll, gr_rows logits, const int32_t *target, const float *weight, int64_t n,
                              int64_t V) {
    row_args a = {.x = logits, .f32 = nll, .ids = target, .w = weight, .C = V};
    gr_cpu_for(d, n, gr_cpu_row_grain(V), cross_entropy_rows, &a);
}

static void gather(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) memcpy(gr_f32_row(a->out, r), gr_f32_row(a->x, a->ids[r]), (size_t)a->C * sizeof(float));
}

static void scatter(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) memcpy(gr_f32_row(a->out, a->ids[r]), gr_f32_row(a->x, r), (size_t)a->C * sizeof(float));
}

void gr_gather_rows_generic(gr_device *d, gr_rows out, gr_rows x, const int32_t *idx, int64_t n, int64_t C) {
    row_args a = {.out = out, .x = x, .ids = idx, .C = C};
    gr_cpu_for(d, n, gr_cpu_row_grain(C), gather, &a);
}

void gr_scatter_rows_generic(gr_device *d, gr_rows x, gr_rows src, const int32_t *idx, int64_t n, int64_t C) {
    row_args a = {.out = x, .x = src, .ids = idx, .C = C};
    gr_cpu_for(d, n, gr_cpu_row_grain(C), scatter, &a);
}

/* The panels of a slot whose rows change hold nothing from there on but whole blocks before. */
static void forget_panels(gr_cpu_kv *form, int64_t row) {
    int64_t slot = row / form->max_len, position = row % form->max_len;
    for (int32_t *packed = form->packed + slot * form->K, *end = packed + form->K; packed < end; packed++)
        if (*packed > position) *packed = (int32_t)(position / GR_KV_BLOCK * GR_KV_BLOCK);
}

void gr_kv_append_generic(gr_device *d, const gr_kv *kv, gr_rows x, const int32_t *rows, int64_t n) {
    gr_cpu_kv *form = gr_cpu_kv_of(kv);
    gr_scatter_rows_generic(d, kv->rows, x, rows, n, kv->rows.ld); /* those of a cache stand close: 2KD */
    for (int64_t r = 0; form && r < n; r++) forget_panels(form, rows[r]);
}
