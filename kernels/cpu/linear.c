/* linear.c - a linear with its slots as a list of GEMMs; no instruction set, the level's GEMM is passed in. */
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/impl.h"

/* C[m,n] (+)= A[m,k] W^T with W stored [n,k]. */
static gr_gemm by_weight_t(float *c, int64_t ldc, const float *a, int64_t lda, int64_t m, const gr_weight *w) {
    return (gr_gemm){.m = m, .n = w->rows, .k = w->cols, .a = a, .a_row = lda, .a_col = 1, .b_type = w->dtype,
                     .b = w->data, .b_ld = w->cols, .b_transposed = true, .alpha = 1, .c = c, .ldc = ldc};
}

/* C[m,n] (+)= A[m,k] W with W stored [k,n]. */
static gr_gemm by_weight(float *c, int64_t ldc, const float *a, int64_t lda, int64_t m, const gr_weight *w) {
    return (gr_gemm){.m = m, .n = w->cols, .k = w->rows, .a = a, .a_row = lda, .a_col = 1, .b_type = w->dtype,
                     .b = w->data, .b_ld = w->cols, .alpha = 1, .c = c, .ldc = ldc};
}

/* C[m,n] += alpha A^T B with A stored [rows,m] and B stored [rows,n]: a weight gradient, summed in row order. */
static gr_gemm by_rows(float *c, const float *a, int64_t lda, int64_t m, const float *b, int64_t ldb, int64_t n,
                       int64_t rows, float alpha) {
    return (gr_gemm){.m = m, .n = n, .k = rows, .a = a, .a_row = 1, .a_col = lda, .b_type = GR_DTYPE_F32, .b = b,
                     .b_ld = ldb, .alpha = alpha, .c = c, .ldc = n, .accumulate = true};
}

static gr_weight f32_weight(const float *data, int64_t rows, int64_t cols) {
    return (gr_weight){.dtype = GR_DTYPE_F32, .rows = rows, .cols = cols, .data = data};
}

static int64_t group_rank(const gr_linear *const *group, int n_group) {
    int64_t rank = 0;
    for (int i = 0; i < n_group; i++)
        for (int j = 0; j < group[i]->n_lora; j++) rank += group[i]->lora[j].rank;
    return rank;
}

/* Products that are added to another one's C block by block; more of them than there is room for make passes of their own. */
enum { FUSED_MAX = 4 };

typedef struct fused {
    gr_gemm terms[1 + FUSED_MAX];
    int n;
} fused;

static void fused_add(fused *f, gr_gemm_fn *gemm, gr_device *d, const gr_gemm *g) {
    if (f->n == 1 + FUSED_MAX) { /* full: what there is goes first */
        gemm(d, &f->terms[0]);
        f->n = 0;
    }
    f->terms[f->n] = *g;
    if (f->n > 0) f->terms[f->n - 1].next = &f->terms[f->n];
    f->n++;
}

/* The int8 products of a forward group; all share x, which is rounded once. */
static void int8_forward(gr_int8_fn *int8, gr_device *d, float *y, int64_t ldy, const float *x, const gr_linear *const *group,
                         int n_group, int64_t n) {
    gr_int8_product products[4];
    int count = 0;
    for (int i = 0; i < n_group; y += group[i]->w.rows, i++) {
        if (group[i]->int8_forward)
            products[count++] = (gr_int8_product){.packed = group[i]->int8_forward, .c = y, .ldc = ldy, .bias = group[i]->bias};
        if (count == 0 || (count < 4 && i + 1 < n_group)) continue;
        int8(d, x, group[0]->w.cols, n, products, count);
        count = 0;
    }
}

void gr_linear_forward_by(gr_gemm_fn *gemm, gr_int8_fn *int8, gr_device *d, float *y, int64_t ldy, float *h, const float *x,
                          const float *xd, const gr_linear *const *group, int n_group, int64_t n) {
    int64_t ldh = group_rank(group, n_group);
    int8_forward(int8, d, y, ldy, x, group, n_group, n);
    for (int i = 0; i < n_group; y += group[i]->w.rows, i++) {
        const gr_linear *l = group[i];
        fused sum = {0};
        if (!l->int8_forward) {
            gr_gemm base = by_weight_t(y, ldy, x, l->w.cols, n, &l->w);
            base.compute = l->compute, base.bias = l->bias;
            fused_add(&sum, gemm, d, &base);
        }
        for (int j = 0; j < l->n_lora; h += l->lora[j].rank, j++) {
            gr_weight A = f32_weight(l->lora[j].A, l->lora[j].rank, l->w.cols);
            gr_weight B = f32_weight(l->lora[j].B, l->w.rows, l->lora[j].rank);
            gr_gemm down = by_weight_t(h, ldh, xd, l->w.cols, n, &A); /* h = xd A^T */
            gr_gemm up = by_weight_t(y, ldy, h, ldh, n, &B);          /* y += scale h B^T */
            up.alpha = l->lora[j].scale, up.accumulate = true;
            gemm(d, &down);
            fused_add(&sum, gemm, d, &up);
        }
        if (sum.n) gemm(d, &sum.terms[0]);
    }
}

typedef struct column_sums {
    float *out;
    const float *x;
    int64_t ldx, n;
} column_sums;

static void sum_columns(const void *args, int64_t begin, int64_t end) {
    const column_sums *s = args;
    for (int64_t row = 0; row < s->n; row++)
        for (int64_t j = begin; j < end; j++) s->out[j] += s->x[row * s->ldx + j];
}

/* The gradients of one LoRA, and dh = scale dy B for that of its input. */
static void lora_backward(gr_gemm_fn *gemm, gr_device *d, const gr_linear *l, const gr_lora *lora, float *dh, const float *dy,
                          int64_t ldy, const float *xd, const float *h, int64_t ldh, bool wants_dh, int64_t n) {
    if (lora->dB) {
        gr_gemm g = by_rows(lora->dB, dy, ldy, l->w.rows, h, ldh, lora->rank, n, lora->scale);
        gemm(d, &g);
    }
    if (lora->dA || wants_dh) {
        gr_weight B = f32_weight(lora->B, l->w.rows, lora->rank);
        gr_gemm g = by_weight(dh, ldh, dy, ldy, n, &B);
        g.alpha = lora->scale;
        gemm(d, &g);
    }
    if (lora->dA) {
        gr_gemm g = by_rows(lora->dA, dh, ldh, lora->rank, xd, l->w.cols, l->w.cols, n, 1);
        gemm(d, &g);
    }
}

void gr_linear_backward_by(gr_gemm_fn *gemm, gr_int8_fn *int8, gr_device *d, float *dx, bool accumulate, float *dxd, float *dh,
                           const float *dy, int64_t ldy, const float *x, const float *xd, const float *h,
                           const gr_linear *const *group, int n_group, int64_t n) {
    int64_t ldh = group_rank(group, n_group);
    bool dxd_started = false; /* dxd is overwritten by its first term */
    if (dxd && ldh == 0 && n_group > 0) memset(dxd, 0, (size_t)(n * group[0]->w.cols) * sizeof *dxd);
    for (int i = 0; i < n_group; dy += group[i]->w.rows, i++) {
        const gr_linear *l = group[i];
        fused sum = {0};
        if (dx && l->int8_backward) {
            gr_int8_product base = {.packed = l->int8_backward, .c = dx, .ldc = l->w.cols, .accumulate = accumulate || i > 0};
            int8(d, dy, ldy, n, &base, 1);
        } else if (dx) {
            gr_gemm base = by_weight(dx, l->w.cols, dy, ldy, n, &l->w);
            base.compute = l->compute, base.accumulate = accumulate || i > 0;
            fused_add(&sum, gemm, d, &base);
        }
        if (l->dw) {
            gr_gemm g = by_rows(l->dw, dy, ldy, l->w.rows, x, l->w.cols, l->w.cols, n, 1);
            g.compute = l->compute;
            gemm(d, &g);
        }
        if (l->dbias) {
            column_sums sums = {l->dbias, dy, ldy, n};
            gr_cpu_for(d, l->w.rows, 64, sum_columns, &sums);
        }
        for (int j = 0; j < l->n_lora; h += l->lora[j].rank, dh += l->lora[j].rank, j++) {
            const gr_lora *lora = &l->lora[j];
            gr_weight A = f32_weight(lora->A, lora->rank, l->w.cols);
            lora_backward(gemm, d, l, lora, dh, dy, ldy, xd, h, ldh, dx || dxd, n);
            if (dxd) {
                gr_gemm g = by_weight(dxd, l->w.cols, dh, ldh, n, &A);
                g.accumulate = dxd_started;
                dxd_started = true;
                gemm(d, &g);
            } else if (dx) {
                gr_gemm g = by_weight(dx, l->w.cols, dh, ldh, n, &A);
                g.accumulate = true;
                fused_add(&sum, gemm, d, &g);
            }
        }
        if (sum.n) gemm(d, &sum.terms[0]);
    }
}
