/* linear.c - a linear with its slots as a list of products; no instruction set, the level's products are passed in. The low-rank
 * ones are made in passes of their own (thin.c) where the level and the ranks allow it, else they are matrix products like the
 * others. */
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/impl.h"

/* C[m,n] (+)= A[m,k] W^T with W stored [n,k]. */
static gr_gemm by_weight_t(float *c, int64_t ldc, const float *a, int64_t lda, int64_t m, const gr_weight *w) {
    return (gr_gemm){.m = m,
                     .n = w->rows,
                     .k = w->cols,
                     .a = a,
                     .a_row = lda,
                     .a_col = 1,
                     .b_type = w->dtype,
                     .b = w->data,
                     .b_ld = w->cols,
                     .b_transposed = true,
                     .alpha = 1,
                     .c = c,
                     .ldc = ldc};
}

/* C[m,n] (+)= A[m,k] W with W stored [k,n]. */
static gr_gemm by_weight(float *c, int64_t ldc, const float *a, int64_t lda, int64_t m, const gr_weight *w) {
    return (gr_gemm){.m = m,
                     .n = w->cols,
                     .k = w->rows,
                     .a = a,
                     .a_row = lda,
                     .a_col = 1,
                     .b_type = w->dtype,
                     .b = w->data,
                     .b_ld = w->cols,
                     .alpha = 1,
                     .c = c,
                     .ldc = ldc};
}

/* C[m,n] += alpha A^T B with A stored [rows,m] and B stored [rows,n]: a weight gradient, summed in row order. */
static gr_gemm by_rows(float *c, const float *a, int64_t lda, int64_t m, const float *b, int64_t ldb, int64_t n, int64_t rows,
                       float alpha) {
    return (gr_gemm){.m = m,
                     .n = n,
                     .k = rows,
                     .a = a,
                     .a_row = 1,
                     .a_col = lda,
                     .b_type = GR_DTYPE_F32,
                     .b = b,
                     .b_ld = ldb,
                     .alpha = alpha,
                     .c = c,
                     .ldc = n,
                     .accumulate = true};
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

/* Products that wait to be run together; those added to another one's C follow it, block by block. */
typedef struct batch {
    gr_gemm_fn *gemm;
    gr_device *d;
    gr_gemm products[GR_GEMM_PRODUCTS], added[GR_GEMM_TERMS];
    gr_gemm *last; /* of the newest product's chain */
    int n, n_added;
} batch;

static void run(batch *b) {
    if (b->n) b->gemm(b->d, b->products, b->n);
    b->n = b->n_added = 0;
    b->last = NULL;
}

/* A product independent of the others that wait. */
static void put(batch *b, gr_gemm g) {
    if (b->n == GR_GEMM_PRODUCTS || b->n + b->n_added == GR_GEMM_TERMS) run(b);
    b->products[b->n] = g;
    b->last = &b->products[b->n++];
}

/* A product of the same C as the newest, or the first of one. */
static void put_added(batch *b, gr_gemm g) {
    if (b->n + b->n_added == GR_GEMM_TERMS) run(b); /* full: what there is goes first */
    if (!b->last) {
        put(b, g);
        return;
    }
    b->added[b->n_added] = g;
    b->last->next = &b->added[b->n_added];
    b->last = &b->added[b->n_added++];
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

void gr_linear_forward_by(const gr_products *by, gr_device *d, float *y, int64_t ldy, float *h, const float *x, const float *xd,
                          const gr_linear *const *group, int n_group, int64_t n) {
    int64_t ldh = group_rank(group, n_group);
    batch b = {.gemm = by->gemm, .d = d};
    float *to = h;
    bool thin = gr_thin_forward(by->thin, d, h, xd, group, n_group, n);
    for (int i = 0; i < n_group && !thin; i++)
        for (int j = 0; j < group[i]->n_lora; to += group[i]->lora[j++].rank) {
            gr_weight A = f32_weight(group[i]->lora[j].A, group[i]->lora[j].rank, group[i]->w.cols);
            put(&b, by_weight_t(to, ldh, xd, group[i]->w.cols, n, &A)); /* h = xd A^T */
        }
    run(&b);
    int8_forward(by->int8, d, y, ldy, x, group, n_group, n);
    for (int i = 0; i < n_group; y += group[i]->w.rows, i++) {
        const gr_linear *l = group[i];
        gr_gemm base = by_weight_t(y, ldy, x, l->w.cols, n, &l->w);
        base.compute = l->compute, base.bias = l->bias;
        if (!l->int8_forward) put(&b, base);
        for (int j = 0; j < l->n_lora; h += l->lora[j].rank, j++) {
            gr_weight B = f32_weight(l->lora[j].B, l->w.rows, l->lora[j].rank);
            gr_gemm up = by_weight_t(y, ldy, h, ldh, n, &B); /* y += scale h B^T */
            up.alpha = l->lora[j].scale, up.accumulate = true;
            if (l->int8_forward && j == 0) put(&b, up);
            else put_added(&b, up);
        }
    }
    run(&b);
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

/* dh = scale dy B for the gradients of A and of the LoRA input; dB += scale dy^T h. dy is the linear's own columns. */
static void lora_backward_b(batch *b, const gr_linear *l, const gr_lora *lora, float *dh, const float *dy, int64_t ldy,
                            const float *h, int64_t ldh, bool wants_dh, int64_t n) {
    if (lora->dB) put(b, by_rows(lora->dB, dy, ldy, l->w.rows, h, ldh, lora->rank, n, lora->scale));
    if (!lora->dA && !wants_dh) return;
    gr_weight B = f32_weight(lora->B, l->w.rows, lora->rank);
    gr_gemm g = by_weight(dh, ldh, dy, ldy, n, &B);
    g.alpha = lora->scale;
    put(b, g);
}

/* dx (+)= dy W, then, unless dxd takes them, the LoRA terms dh A; all linears of the group into the same blocks. */
static void input_gradient(batch *b, gr_int8_fn *int8, float *dx, bool accumulate, const float *dh, int64_t ldh, const float *dy,
                           int64_t ldy, const gr_linear *const *group, int n_group, bool with_lora, int64_t n) {
    for (int pass = 0; pass < 2; pass++) { /* those of int8 come first: they are not blocks of a chain */
        const float *dyi = dy, *dhi = dh;
        for (int i = 0; i < n_group; dyi += group[i]->w.rows, i++) {
            const gr_linear *l = group[i];
            if (pass == 0 && l->int8_backward) {
                gr_int8_product base = {.packed = l->int8_backward, .c = dx, .ldc = l->w.cols, .accumulate = accumulate};
                int8(b->d, dyi, ldy, n, &base, 1);
                accumulate = true;
            }
            if (pass == 0) continue;
            gr_gemm base = by_weight(dx, l->w.cols, dyi, ldy, n, &l->w);
            base.compute = l->compute, base.accumulate = accumulate;
            if (!l->int8_backward) put_added(b, base), accumulate = true;
            for (int j = 0; j < l->n_lora; dhi += l->lora[j++].rank) {
                gr_weight A = f32_weight(l->lora[j].A, l->lora[j].rank, l->w.cols);
                gr_gemm term = by_weight(dx, l->w.cols, dhi, ldh, n, &A);
                term.accumulate = true;
                if (with_lora) put_added(b, term);
            }
        }
    }
}

void gr_linear_backward_by(const gr_products *by, gr_device *d, float *dx, bool accumulate, float *dxd, float *dh, const float *dy,
                           int64_t ldy, const float *x, const float *xd, const float *h, const gr_linear *const *group, int n_group,
                           int64_t n) {
    int64_t ldh = group_rank(group, n_group), K = n_group > 0 ? group[0]->w.cols : 0;
    batch b = {.gemm = by->gemm, .d = d};
    const float *dyi = dy, *hi = h;
    float *dhi = dh;
    bool thin = gr_thin_backward(by->thin, d, dh, dy, ldy, xd, h, dx || dxd, group, n_group, n);
    for (int i = 0; i < n_group && !thin; dyi += group[i]->w.rows, i++)
        for (int j = 0; j < group[i]->n_lora; hi += group[i]->lora[j].rank, dhi += group[i]->lora[j].rank, j++)
            lora_backward_b(&b, group[i], &group[i]->lora[j], dhi, dyi, ldy, hi, ldh, dx || dxd, n);
    run(&b);
    if (dx) input_gradient(&b, by->int8, dx, accumulate, dh, ldh, dy, ldy, group, n_group, !dxd, n);
    run(&b);
    bool dxd_started = false; /* dxd is overwritten by its first term */
    if (dxd && ldh == 0) memset(dxd, 0, (size_t)(n * K) * sizeof *dxd);
    for (int i = 0; i < n_group; dy += group[i]->w.rows, i++) {
        const gr_linear *l = group[i];
        gr_gemm dw = by_rows(l->dw, dy, ldy, l->w.rows, x, K, K, n, 1);
        dw.compute = l->compute;
        if (l->dw) put(&b, dw);
        if (l->dbias) {
            column_sums sums = {l->dbias, dy, ldy, n};
            gr_cpu_for(d, l->w.rows, 64, sum_columns, &sums);
        }
        for (int j = 0; j < l->n_lora; dh += l->lora[j].rank, j++) {
            gr_weight A = f32_weight(l->lora[j].A, l->lora[j].rank, K);
            gr_gemm term = by_weight(dxd, K, dh, ldh, n, &A);
            term.accumulate = dxd_started;
            if (l->lora[j].dA && !thin) put(&b, by_rows(l->lora[j].dA, dh, ldh, l->lora[j].rank, xd, K, K, n, 1));
            if (!dxd) continue;
            run(&b); /* each adds to what the one before made */
            put(&b, term);
            run(&b);
            dxd_started = true;
        }
    }
    run(&b);
}
