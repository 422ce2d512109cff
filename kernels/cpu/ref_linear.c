/* ref_linear.c - the reference GEMM: plain loops over 256 elements of a storage row of B at a time. */
#include <stddef.h>

#include "kernels/cpu/impl.h"

enum { PIECE = 256 }; /* a multiple of every dtype block */

static float rounded(float x, gr_dtype compute) {
    if (compute == GR_DTYPE_BF16) return gr_bf16_to_f32(gr_f32_to_bf16(x));
    if (compute == GR_DTYPE_F16) return gr_f16_to_f32(gr_f32_to_f16(x));
    return x;
}

/* Elements [begin, begin+n) of a storage row; begin is a multiple of PIECE, n is its rest of the row or PIECE. */
static void storage_piece(float *out, const gr_gemm *g, int64_t row, int64_t begin, int64_t n) {
    const gr_dtype_info *type = gr_dtype_get(g->b_type);
    const char *src = (const char *)g->b + (row * (g->b_ld / type->block) + begin / type->block) * type->block_bytes;
    type->to_f32(out, src, n);
    for (int64_t i = 0; i < n; i++) out[i] = rounded(out[i] * g->alpha, g->compute);
}

static float a_at(const gr_gemm *g, int64_t i, int64_t p) { return rounded(g->a[i * g->a_row + p * g->a_col], g->compute); }

/* Columns [begin,end) of C, each a storage row of B. */
static void columns_by_weight_t(const void *args, int64_t begin, int64_t end) {
    const gr_gemm *g = args;
    float piece[PIECE];
    for (int64_t j = begin; j < end; j++) {
        for (int64_t i = 0; !g->accumulate && i < g->m; i++) g->c[i * g->ldc + j] = 0;
        for (int64_t p0 = 0; p0 < g->k; p0 += PIECE) {
            int64_t k = g->k - p0 < PIECE ? g->k - p0 : PIECE;
            storage_piece(piece, g, j, p0, k);
            for (int64_t i = 0; i < g->m; i++) {
                float sum = 0; /* pieces are summed by themselves: less is lost to rounding */
                for (int64_t p = 0; p < k; p++) sum += a_at(g, i, p0 + p) * piece[p];
                g->c[i * g->ldc + j] += sum;
            }
        }
    }
}

/* Pieces [begin,end) of PIECE columns of C. */
static void columns_by_weight(const void *args, int64_t begin, int64_t end) {
    const gr_gemm *g = args;
    float piece[PIECE];
    for (int64_t j0 = begin * PIECE; j0 < end * PIECE && j0 < g->n; j0 += PIECE) {
        int64_t n = g->n - j0 < PIECE ? g->n - j0 : PIECE;
        for (int64_t i = 0; !g->accumulate && i < g->m; i++)
            for (int64_t j = 0; j < n; j++) g->c[i * g->ldc + j0 + j] = 0;
        for (int64_t p = 0; p < g->k; p++) {
            storage_piece(piece, g, p, j0, n);
            for (int64_t i = 0; i < g->m; i++) {
                float a = a_at(g, i, p), *c = g->c + i * g->ldc + j0;
                for (int64_t j = 0; j < n; j++) c[j] += a * piece[j];
            }
        }
    }
}

static void gemm(gr_device *d, const gr_gemm *g) {
    for (const gr_gemm *t = g; t; t = t->next) {
        gr_gemm term = *t;
        term.m = g->m, term.n = g->n, term.c = g->c, term.ldc = g->ldc;
        term.accumulate = t != g || g->accumulate;
        if (term.b_transposed) gr_cpu_for(d, term.n, 8, columns_by_weight_t, &term);
        else gr_cpu_for(d, (term.n + PIECE - 1) / PIECE, 1, columns_by_weight, &term);
    }
    for (int64_t i = 0; g->bias && i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++) g->c[i * g->ldc + j] += g->bias[j];
}

void gr_gemm_generic(gr_device *d, const gr_gemm *products, int n) {
    for (int i = 0; i < n; i++) gemm(d, &products[i]);
}

static const gr_products products_here = {gr_gemm_generic, gr_int8_generic, NULL};

void gr_linear_forward_generic(gr_device *d, const gr_product *p, int64_t n) { gr_linear_forward_by(&products_here, d, p, n); }

void gr_linear_backward_generic(gr_device *d, const gr_product *p, gr_rows dx, bool accumulate, int64_t n) {
    gr_linear_backward_by(&products_here, d, p, dx, accumulate, n);
}
