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

void gr_linear_forward_by(gr_gemm_fn *gemm, gr_device *d, float *y, int64_t ldy, float *h, const float *x,
                          const float *xd, const gr_linear *const *group, int n_group, int64_t n) {
    int64_t ldh = group_rank(group, n_group);
    for (int i = 0; i < n_group; y += group[i]->w.rows, i++) {
        const gr_linear *l = group[i];
        gr_gemm base = by_weight_t(y, ldy, x, l->w.cols, n, &l->w);
        base.compute = l->compute, base.bias = l->bias;
        gemm(d, &base);
        for (int j = 0; j < l->n_lora; h += l->lora[j].rank, j++) {
            gr_weight A = f32_weight(l->lora[j].A, l->lora[j].rank, l->w.cols);
            gr_weight B = f32_weight(l->lora[j].B, l->w.rows, l->lora[j].rank);
            gr_gemm down = by_weight_t(h, ldh, xd, l->w.cols, n, &A); /* h = xd A^T */
            gr_gemm up = by_weight_t(y, ldy, h, ldh, n, &B);          /* y += scale h B^T */
            up.alpha = l->lora[j].scale, up.accumulate = true;
            gemm(d, &down);
            gemm(d, &up);
        }
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

void gr_linear_backward_by(gr_gemm_fn *gemm, gr_device *d, float *dx, bool accumulate, float *dxd, float *dh,
                           const float *dy, int64_t ldy, const float *x, const float *xd, const float *h,
                           const gr_linear *const *group, int n_group, int64_t n) {
    int64_t ldh = group_rank(group, n_group);
    float *lora_dx = dxd ? dxd : dx;
    bool lora_accumulate = lora_dx == dx; /* dxd is overwritten by its first term */
    if (dxd && ldh == 0 && n_group > 0) memset(dxd, 0, (size_t)(n * group[0]->w.cols) * sizeof *dxd);
    for (int i = 0; i < n_group; dy += group[i]->w.rows, i++) {
        const gr_linear *l = group[i];
        if (dx) {
            gr_gemm base = by_weight(dx, l->w.cols, dy, ldy, n, &l->w);
            base.compute = l->compute, base.accumulate = accumulate || i > 0;
            gemm(d, &base);
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
            gr_weight A = f32_weight(lora->A, lora->rank, l->w.cols), B = f32_weight(lora->B, l->w.rows, lora->rank);
            if (lora->dB) {
                gr_gemm g = by_rows(lora->dB, dy, ldy, l->w.rows, h, ldh, lora->rank, n, lora->scale);
                gemm(d, &g);
            }
            if (lora->dA || lora_dx) {
                gr_gemm g = by_weight(dh, ldh, dy, ldy, n, &B); /* dh = scale dy B */
                g.alpha = lora->scale;
                gemm(d, &g);
            }
            if (lora->dA) {
                gr_gemm g = by_rows(lora->dA, dh, ldh, lora->rank, xd, l->w.cols, l->w.cols, n, 1);
                gemm(d, &g);
            }
            if (lora_dx) {
                gr_gemm g = by_weight(lora_dx, l->w.cols, dh, ldh, n, &A);
                g.accumulate = lora_accumulate;
                lora_accumulate = true;
                gemm(d, &g);
            }
        }
    }
}
