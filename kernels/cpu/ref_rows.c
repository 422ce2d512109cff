/* ref_rows.c - the reference of the operations on rows: copies, norm, activation, loss. Sums are double. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/impl.h"

enum { COLUMNS = 64 }; /* of a task that walks down all rows */

typedef struct row_args {
    gr_rows out, sum, x, y;
    float *f32, *sums;
    const float *w, *s;
    const gr_weight *table;
    const int32_t *ids;
    int32_t *best;
    gr_listing *list;
    const gr_norm *norm;
    const gr_loss_terms *loss;
    int64_t n, C;
    gr_activation act;
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
        const float *x = part_of(a->x, a, r), *add = part_of(a->y, a, r);
        float *out = part_of(a->out, a, r), *sum = part_of(a->sum, a, r);
        double squares = 0;
        for (int64_t j = 0; add && j < a->C; j++) sum[j] = x[j] + add[j];
        if (add) x = sum;
        for (int64_t j = 0; j < a->C; j++) squares += (double)x[j] * x[j];
        float rstd = (float)(1 / sqrt(squares / (double)a->C + a->norm->eps));
        for (int64_t j = 0; j < a->C; j++) out[j] = x[j] * rstd * a->norm->w[j];
        if (a->f32) a->f32[r] = rstd;
    }
}

void gr_rmsnorm_forward_generic(gr_device *d, gr_rows out, float *rstd, gr_rows sum, gr_rows x, gr_rows add, const gr_norm *p,
                                int64_t n) {
    row_args a = {.out = out, .sum = sum, .x = x, .y = add, .f32 = rstd, .norm = p, .C = p->width};
    gr_cpu_for(d, n * p->parts, gr_cpu_row_grain(p->width), rmsnorm_parts, &a);
}

/* With x^ = x rstd: dx (+)= rstd (dout w - x^ mean(dout w x^)). */
static void rmsnorm_backward_parts(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *dout = part_of(a->y, a, r), *x = part_of(a->x, a, r), *w = a->norm->w;
        float *dx = part_of(a->out, a, r), *also = part_of(a->sum, a, r), rstd = a->s[r];
        double sum = 0;
        for (int64_t j = 0; j < a->C; j++) sum += (double)dout[j] * w[j] * x[j];
        float mean = (float)(sum * rstd / (double)a->C);
        for (int64_t j = 0; j < a->C; j++) dx[j] = (a->accumulate ? dx[j] : 0) + rstd * (dout[j] * w[j] - x[j] * rstd * mean);
        if (also) memcpy(also, dx, (size_t)a->C * sizeof *dx);
    }
}

static void rmsnorm_weight_columns(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = 0; r < a->n * a->norm->parts; r++) {
        const float *dout = part_of(a->y, a, r), *x = part_of(a->x, a, r);
        for (int64_t j = begin; j < end; j++) a->norm->dw[j] += dout[j] * x[j] * a->s[r];
    }
}

void gr_rmsnorm_backward_generic(gr_device *d, gr_rows dx, gr_rows also, bool accumulate, gr_rows dout, gr_rows x,
                                 const float *rstd, const gr_norm *p, int64_t n) {
    row_args a = {.out = dx, .sum = also, .y = dout, .x = x, .s = rstd, .norm = p, .n = n, .C = p->width, .accumulate = accumulate};
    if (p->dw) gr_cpu_for(d, p->width, COLUMNS, rmsnorm_weight_columns, &a);
    gr_cpu_for(d, n * p->parts, gr_cpu_row_grain(p->width), rmsnorm_backward_parts, &a);
}

/* Both activations are x sigmoid(z): z is x, or twice what GELU has in its tanh, since (1 + tanh(z/2)) / 2 = sigmoid(z). Returns z,
 * and in *slope dz/dx. */
static float gate_of(gr_activation act, float x, float *slope) {
    const float a = 1.5957691216f, b = 0.0713548163f; /* 2 sqrt(2/pi), and that times 0.044715 */
    *slope = act == GR_ACTIVATION_SILU ? 1 : a + 3 * b * x * x;
    return act == GR_ACTIVATION_SILU ? x : x * (a + b * x * x);
}

static void glu_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *gate = gr_f32_row(a->x, r), *up = gate + a->C;
        float *out = gr_f32_row(a->out, r), slope;
        for (int64_t j = 0; j < a->C; j++) out[j] = gate[j] / (1 + expf(-gate_of(a->act, gate[j], &slope))) * up[j];
    }
}

void gr_glu_forward_generic(gr_device *d, gr_rows out, gr_rows gu, int64_t n, int64_t F, gr_activation act) {
    row_args a = {.out = out, .x = gu, .C = F, .act = act};
    gr_cpu_for(d, n, gr_cpu_row_grain(F), glu_rows, &a);
}

static void glu_backward_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *gate = gr_f32_row(a->x, r), *up = gate + a->C, *dout = gr_f32_row(a->y, r);
        float *dgate = gr_f32_row(a->out, r), *dup = dgate + a->C;
        for (int64_t j = 0; j < a->C; j++) {
            float g = gate[j], u = up[j], slope, s = 1 / (1 + expf(-gate_of(a->act, g, &slope)));
            dgate[j] = dout[j] * u * s * (1 + g * slope * (1 - s));
            dup[j] = dout[j] * g * s;
        }
    }
}

void gr_glu_backward_generic(gr_device *d, gr_rows dgu, gr_rows dout, gr_rows gu, int64_t n, int64_t F, gr_activation act) {
    row_args a = {.out = dgu, .x = gu, .y = dout, .C = F, .act = act};
    gr_cpu_for(d, n, gr_cpu_row_grain(F), glu_backward_rows, &a);
}

static void cap_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        float *x = gr_f32_row(a->x, r);
        for (int64_t j = 0; j < a->C; j++) x[j] = a->f * tanhf(x[j] / a->f);
    }
}

void gr_softcap_generic(gr_device *d, gr_rows x, int64_t n, int64_t C, float cap) {
    row_args a = {.x = x, .C = C, .f = cap};
    gr_cpu_for(d, n, gr_cpu_row_grain(C), cap_rows, &a);
}

static void best_of_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *x = gr_f32_row(a->x, r);
        int64_t best = -1;
        for (int64_t j = 0; j < a->C; j++)
            if (isfinite(x[j]) && (best < 0 || x[j] > x[best])) best = j;
        a->best[r] = (int32_t)best;
    }
}

void gr_best_column_generic(gr_device *d, int32_t *best, gr_rows logits, int64_t n, int64_t V) {
    row_args a = {.x = logits, .best = best, .C = V};
    gr_cpu_for(d, n, gr_cpu_row_grain(V), best_of_rows, &a);
}

/* The order of a listing. */
static bool listed_before(gr_listed a, gr_listed b) { return a.value > b.value || (a.value == b.value && a.column < b.column); }

/* entry[n] is a heap but for entry i, which sinks: the last of the order is on top. */
static void sink(gr_listed *entry, int64_t n, int64_t i) {
    const gr_listed sinks = entry[i];
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && listed_before(entry[child], entry[child + 1])) child++;
        if (!listed_before(sinks, entry[child])) break;
        entry[i] = entry[child];
    }
    entry[i] = sinks;
}

/* What a row has of finite logits: the first GR_LISTED of their order. */
static void list_row(gr_listing *l, const float *x, int64_t C) {
    l->n = l->finite = 0;
    for (int64_t j = 0; j < C; j++) {
        const gr_listed now = {x[j] + 0.0f, (int32_t)j}; /* -0 is 0 */
        if (!isfinite(x[j])) continue;
        l->finite++;
        if (l->n < GR_LISTED) {
            l->entry[l->n++] = now;
            for (int64_t i = l->n / 2 - 1; l->n == GR_LISTED && i >= 0; i--) sink(l->entry, l->n, i);
        } else if (listed_before(now, l->entry[0])) {
            l->entry[0] = now;
            sink(l->entry, l->n, 0);
        }
    }
    for (int64_t i = l->n / 2 - 1; l->n < GR_LISTED && i >= 0; i--) sink(l->entry, l->n, i);
    for (int64_t left = l->n; left > 1;) {
        const gr_listed last = l->entry[0];
        l->entry[0] = l->entry[--left], l->entry[left] = last;
        sink(l->entry, left, 0);
    }
}

static void list_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        gr_listing *l = &a->list[r];
        const float *x = gr_f32_row(a->x, r);
        list_row(l, x, a->C);
        l->listed = l->rest = 0;
        if (l->n == 0) continue;
        const double top = l->entry[0].value;
        for (int64_t i = 0; i < l->n; i++) l->listed += exp((l->entry[i].value - top) / a->f);
        for (int64_t j = 0; j < a->C && l->n < l->finite; j++)
            if (isfinite(x[j]) && listed_before(l->entry[l->n - 1], (gr_listed){x[j], (int32_t)j}))
                l->rest += exp((x[j] - top) / a->f);
    }
}

void gr_list_columns_generic(gr_device *d, gr_listing *list, gr_rows logits, int64_t n, int64_t V, float temperature) {
    row_args a = {.x = logits, .list = list, .C = V, .f = temperature};
    gr_cpu_for(d, n, gr_cpu_row_grain(V), list_rows, &a);
}

static void cross_entropy_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    const double cap = a->loss->softcap;
    if (cap > 0) cap_rows(args, begin, end);
    for (int64_t r = begin; r < end; r++) {
        float *logits = gr_f32_row(a->x, r), largest = logits[0];
        double sum = 0;
        for (int64_t j = 1; j < a->C; j++) largest = fmaxf(largest, logits[j]);
        for (int64_t j = 0; j < a->C; j++) sum += exp((double)logits[j] - largest);
        const double lse = log(sum) + largest, pull = 1 + 2 * (double)a->loss->z_loss * lse; /* of a softmax's share */
        const float w = a->w ? a->w[r] * (a->loss->scale ? *a->loss->scale : 1) : 0;
        a->f32[r] = (float)(lse - logits[a->ids[r]]);
        for (int64_t j = 0; a->w && j < a->C; j++) {
            double x = logits[j], slope = cap > 0 ? 1 - x / cap * (x / cap) : 1;
            logits[j] = (float)(w * (pull * exp(x - largest) / sum - (j == a->ids[r])) * slope);
        }
    }
}

void gr_cross_entropy_generic(gr_device *d, float *nll, gr_rows logits, const int32_t *target, const float *weight, int64_t n,
                              int64_t V, const gr_loss_terms *p) {
    row_args a = {.x = logits, .f32 = nll, .ids = target, .w = weight, .C = V, .loss = p, .f = p->softcap};
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

static void scatter_row(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        float *out = gr_f32_row(a->out, r);
        const float *x = gr_f32_row(a->x, r);
        for (int64_t j = 0; j < a->C; j++) out[a->ids[j]] = x[j];
    }
}

static void take_from_row(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        float *out = gr_f32_row(a->out, r), *x = gr_f32_row(a->x, r);
        for (int64_t j = 0; j < a->C; j++) out[j] = x[a->ids[j]], x[a->ids[j]] = 0;
    }
}

void gr_scatter_columns_generic(gr_device *d, gr_rows x, gr_rows src, const int32_t *idx, int64_t n, int64_t C) {
    row_args a = {.out = x, .x = src, .ids = idx, .C = C};
    gr_cpu_for(d, n, gr_cpu_row_grain(C), scatter_row, &a);
}

void gr_take_columns_generic(gr_device *d, gr_rows out, gr_rows x, const int32_t *idx, int64_t n, int64_t C) {
    row_args a = {.out = out, .x = x, .ids = idx, .C = C};
    gr_cpu_for(d, n, gr_cpu_row_grain(C), take_from_row, &a);
}

/* The panels of a slot whose rows change hold nothing from there on but whole blocks before. */
static void forget_panels(gr_cpu_kv *form, int64_t row) {
    int64_t slot = row / form->max_len, position = row % form->max_len;
    for (int64_t i = slot * form->K; i < (slot + 1) * form->K; i++) {
        if (form->packed[i] > position) form->packed[i] = (int32_t)(position / GR_KV_BLOCK * GR_KV_BLOCK);
        if (form->from[i] > form->packed[i]) form->from[i] = form->packed[i];
    }
}

void gr_kv_append_generic(gr_device *d, const gr_kv *kv, gr_rows x, const int32_t *rows, int64_t n) {
    gr_cpu_kv *form = gr_cpu_kv_of(kv);
    gr_scatter_rows_generic(d, kv->rows, x, rows, n, kv->rows.ld); /* those of a cache stand close: 2KD */
    for (int64_t r = 0; form && r < n; r++) forget_panels(form, rows[r]);
}
