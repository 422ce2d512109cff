/* rows_tmpl.h - norm, activation and loss of a vectorised level. A row is summed in VL lanes that are added in a fixed
 * tree, so its bits depend on the row alone. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/impl.h"
#include "kernels/cpu/vec.h"

enum { COLUMNS = 64, LOSS_BLOCK = 1024 };

/* for each vector of a row of C floats: j, and count = its lanes in the row */
#define EACH_VECTOR(C) for (int64_t j = 0, count; count = (C)-j < VL ? (C)-j : VL, j < (C); j += VL)

typedef struct row_args {
    gr_rows out, sum, x, dout, add;
    float *f32;
    const float *w, *rstd;
    const gr_norm *norm;
    const gr_loss_terms *loss;
    const int32_t *target;
    int64_t n, C;
    gr_activation act;
    float cap;
    bool accumulate;
} row_args;

/* Part i of all: its place in rows, NULL of none. */
INLINE float *part_of(gr_rows x, const row_args *a, int64_t i) {
    return x.data ? gr_f32_row(x, i / a->norm->parts) + i % a->norm->parts * a->C : NULL;
}

static void rmsnorm_parts(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *x = part_of(a->x, a, r), *add = part_of(a->add, a, r);
        float *out = part_of(a->out, a, r), *sum = part_of(a->sum, a, r);
        vf squares = v_set(0);
        EACH_VECTOR(a->C) {
            vf v = v_load_n(x + j, count);
            if (add) {
                v = v_add(v, v_load_n(add + j, count));
                v_store_n(sum + j, v, count);
            }
            squares = v_fma(v, v, squares);
        }
        if (add) x = sum;
        float rstd = 1.0f / sqrtf(v_sum(squares) / (float)a->C + a->norm->eps);
        EACH_VECTOR(a->C)
        v_store_n(out + j, v_mul(v_mul(v_load_n(x + j, count), v_set(rstd)), v_load_n(a->norm->w + j, count)), count);
        if (a->f32) a->f32[r] = rstd;
    }
}

void LEVEL(gr_rmsnorm_forward)(gr_device *d, gr_rows out, float *rstd, gr_rows sum, gr_rows x, gr_rows add, const gr_norm *p,
                               int64_t n) {
    row_args a = {.out = out, .sum = sum, .x = x, .f32 = rstd, .add = add, .norm = p, .C = p->width};
    gr_cpu_for(d, n * p->parts, gr_cpu_row_grain(p->width), rmsnorm_parts, &a);
}

/* With x^ = x rstd: dx (+)= rstd (dout w - x^ mean(dout w x^)). */
static void rmsnorm_backward_parts(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *dout = part_of(a->dout, a, r), *x = part_of(a->x, a, r), *w = a->norm->w;
        float *dx = part_of(a->out, a, r), *also = part_of(a->sum, a, r), rstd = a->rstd[r];
        vf sum = v_set(0);
        EACH_VECTOR(a->C) {
            vf g = v_mul(v_load_n(dout + j, count), v_load_n(w + j, count));
            sum = v_fma(g, v_load_n(x + j, count), sum);
        }
        vf pull = v_set(-rstd * rstd * v_sum(sum) / (float)a->C);
        EACH_VECTOR(a->C) {
            vf g = v_mul(v_load_n(dout + j, count), v_load_n(w + j, count));
            g = v_mul(v_set(rstd), v_fma(pull, v_load_n(x + j, count), g));
            v_store_n(dx + j, a->accumulate ? v_add(v_load_n(dx + j, count), g) : g, count);
        }
        if (also) memcpy(also, dx, (size_t)a->C * sizeof *dx);
    }
}

static void rmsnorm_weight_columns(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    for (int64_t r = 0; r < a->n * a->norm->parts; r++) {
        const float *dout = part_of(a->dout, a, r), *x = part_of(a->x, a, r);
        for (int64_t j = begin; j < end; j++) a->norm->dw[j] += dout[j] * x[j] * a->rstd[r];
    }
}

void LEVEL(gr_rmsnorm_backward)(gr_device *d, gr_rows dx, gr_rows also, bool accumulate, gr_rows dout, gr_rows x, const float *rstd,
                                const gr_norm *p, int64_t n) {
    row_args a = {
        .out = dx, .sum = also, .dout = dout, .x = x, .rstd = rstd, .norm = p, .n = n, .C = p->width, .accumulate = accumulate};
    if (p->dw) gr_cpu_for(d, p->width, COLUMNS, rmsnorm_weight_columns, &a);
    gr_cpu_for(d, n * p->parts, gr_cpu_row_grain(p->width), rmsnorm_backward_parts, &a);
}

static inline vf v_sigmoid(vf x) { return v_div(v_set(1), v_add(v_set(1), v_exp(v_sub(v_set(0), x)))); }

/* Both activations are x sigmoid(z): z is x, or twice what GELU has in its tanh, since (1 + tanh(z/2)) / 2 = sigmoid(z). */
static const float gelu_a = 1.5957691216f, gelu_b = 0.0713548163f; /* 2 sqrt(2/pi), and that times 0.044715 */
INLINE vf v_gate(const gr_activation act, vf x) {
    return act == GR_ACTIVATION_SILU ? x : v_mul(x, v_fma(v_mul(x, x), v_set(gelu_b), v_set(gelu_a)));
}
/* x dz/dx */
INLINE vf v_gate_slope(const gr_activation act, vf x) {
    return act == GR_ACTIVATION_SILU ? x : v_mul(x, v_fma(v_mul(x, x), v_set(3 * gelu_b), v_set(gelu_a)));
}

INLINE void glu_rows_of(const gr_activation act, const row_args *a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float *gate = gr_f32_row(a->x, r), *up = gate + a->C;
        float *out = gr_f32_row(a->out, r);
        EACH_VECTOR(a->C) {
            vf g = v_load_n(gate + j, count), u = v_load_n(up + j, count);
            v_store_n(out + j, v_mul(v_mul(g, v_sigmoid(v_gate(act, g))), u), count);
        }
    }
}

static void glu_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    if (a->act == GR_ACTIVATION_SILU) glu_rows_of(GR_ACTIVATION_SILU, a, begin, end);
    else glu_rows_of(GR_ACTIVATION_GELU_TANH, a, begin, end);
}

void LEVEL(gr_glu_forward)(gr_device *d, gr_rows out, gr_rows gu, int64_t n, int64_t F, gr_activation act) {
    row_args a = {.out = out, .x = gu, .C = F, .act = act};
    gr_cpu_for(d, n, gr_cpu_row_grain(F), glu_rows, &a);
}

INLINE void glu_backward_rows_of(const gr_activation act, const row_args *a, int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; r++) {
        const float *gate = gr_f32_row(a->x, r), *up = gate + a->C, *dy = gr_f32_row(a->dout, r);
        float *dgate = gr_f32_row(a->out, r), *dup = dgate + a->C;
        EACH_VECTOR(a->C) {
            vf g = v_load_n(gate + j, count), u = v_load_n(up + j, count), s = v_sigmoid(v_gate(act, g));
            vf dout = v_load_n(dy + j, count);
            vf slope = v_mul(s, v_fma(v_gate_slope(act, g), v_sub(v_set(1), s), v_set(1)));
            v_store_n(dgate + j, v_mul(v_mul(dout, u), slope), count);
            v_store_n(dup + j, v_mul(v_mul(dout, g), s), count);
        }
    }
}

static void glu_backward_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    if (a->act == GR_ACTIVATION_SILU) glu_backward_rows_of(GR_ACTIVATION_SILU, a, begin, end);
    else glu_backward_rows_of(GR_ACTIVATION_GELU_TANH, a, begin, end);
}

void LEVEL(gr_glu_backward)(gr_device *d, gr_rows dgu, gr_rows dout, gr_rows gu, int64_t n, int64_t F, gr_activation act) {
    row_args a = {.out = dgu, .x = gu, .dout = dout, .C = F, .act = act};
    gr_cpu_for(d, n, gr_cpu_row_grain(F), glu_backward_rows, &a);
}

/* Sum of exp(x - largest) of a row; the terms replace x when keep. A block of lanes at a time is added in double. */
static double exp_sum(float *x, int64_t C, float largest, bool keep) {
    double total = 0;
    for (int64_t begin = 0; begin < C; begin += LOSS_BLOCK) {
        float *block = x + begin;
        int64_t length = C - begin < LOSS_BLOCK ? C - begin : LOSS_BLOCK;
        vf sum = v_set(0), none = v_set(0);
        EACH_VECTOR(length) {
            vf e = v_exp(v_sub(v_load_n(block + j, count), v_set(largest)));
            sum = v_add(sum, v_first(e, none, count));
            if (keep) v_store_n(block + j, e, count);
        }
        total += (double)v_sum(sum);
    }
    return total;
}

static void cap_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    const vf cap = v_set(a->cap), share = v_set(1 / a->cap);
    for (int64_t r = begin; r < end; r++) {
        float *x = gr_f32_row(a->x, r);
        EACH_VECTOR(a->C) v_store_n(x + j, v_mul(cap, v_tanh(v_mul(v_load_n(x + j, count), share))), count);
    }
}

void LEVEL(gr_softcap)(gr_device *d, gr_rows x, int64_t n, int64_t C, float cap) {
    row_args a = {.x = x, .C = C, .cap = cap};
    gr_cpu_for(d, n, gr_cpu_row_grain(C), cap_rows, &a);
}

/* Through the cap: logits[C], which are capped, become scale exp(logit - largest) times the slope 1 - (logit / cap)^2. */
static void capped_gradient(float *logits, int64_t C, float largest, float scale, float cap) {
    EACH_VECTOR(C) {
        vf x = v_load_n(logits + j, count), share = v_mul(x, v_set(1 / cap));
        vf slope = v_mul(v_set(scale), v_sub(v_set(1), v_mul(share, share)));
        v_store_n(logits + j, v_mul(v_exp(v_sub(x, v_set(largest))), slope), count);
    }
}

static void cross_entropy_rows(const void *args, int64_t begin, int64_t end) {
    const row_args *a = args;
    const float cap = a->loss->softcap;
    if (cap > 0) cap_rows(args, begin, end);
    for (int64_t r = begin; r < end; r++) {
        float *logits = gr_f32_row(a->x, r), target_logit = logits[a->target[r]];
        vf m = v_set(-INFINITY);
        EACH_VECTOR(a->C) m = v_max(m, v_first(v_load_n(logits + j, count), m, count));
        float largest = v_largest(m);
        double sum = exp_sum(logits, a->C, largest, a->w != NULL && cap == 0), lse = log(sum) + (double)largest;
        a->f32[r] = (float)(lse - (double)target_logit);
        if (!a->w) continue;
        const float w = a->w[r] * (a->loss->scale ? *a->loss->scale : 1);
        double pull = 1 + 2 * (double)a->loss->z_loss * lse, share = cap > 0 ? (double)target_logit / (double)cap : 0;
        float scale = (float)(w * pull / sum);
        if (cap > 0) capped_gradient(logits, a->C, largest, scale, cap);
        else EACH_VECTOR(a->C) v_store_n(logits + j, v_mul(v_load_n(logits + j, count), v_set(scale)), count);
        /* softmax - 1 of the target from its logit, rounded once */
        logits[a->target[r]] = (float)(w * (pull * exp((double)target_logit - (double)largest) / sum - 1) * (1 - share * share));
    }
}

void LEVEL(gr_cross_entropy)(gr_device *d, float *nll, gr_rows logits, const int32_t *target, const float *weight, int64_t n,
                             int64_t V, const gr_loss_terms *p) {
    row_args a = {.f32 = nll, .x = logits, .target = target, .w = weight, .C = V, .loss = p, .cap = p->softcap};
    gr_cpu_for(d, n, gr_cpu_row_grain(V), cross_entropy_rows, &a);
}
