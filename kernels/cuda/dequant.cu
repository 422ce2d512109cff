/* dequant.cu - rows of matrices of any type to rows of activations, or of a matrix of the products' type: embeddings, expanded
 * weights.
 *
 * Bound by memory: of an element 0.5 to 4 bytes are read and 2 (float32: 4) written. A thread makes 8 columns and writes them at
 * once; its neighbours read what lies beside. Nothing is summed. */
#include "kernels/cuda/dequant.cuh"

enum { THREADS = 256 };

/* Rows are those of ids, or all; columns from w.cols to end become 0. */
static __global__ void __launch_bounds__(THREADS)
    expand_pieces(gr_view to, gr_matrix w, const int32_t *ids, int64_t n, int64_t end, float scale) {
    int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y, col = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * 8;
    if (row >= n || col >= end) return;
    float v[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (col < w.cols) gr_matrix_load8(v, w, ids ? ids[row] : row, col);
    if (scale != 1) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] *= scale;
    }
    gr_store8(to, row, col, end, v);
}

/* A block is as wide as a row, where that is narrow, and has as many rows as fit. */
static void expand(gr_device *d, gr_rows to, const gr_weight *w, const int32_t *ids, int64_t n, int64_t end, float scale) {
    gr_matrix m;
    if (!gr_matrix_of(d, &m, w->dtype, w->data, w->cols)) return;
    const unsigned pieces = gr_blocks(end, 8), most = THREADS;
    const unsigned wide = pieces >= most ? most : pieces ? gr_blocks(pieces, 32) * 32 : 32, high = most / wide;
    GR_LAUNCH(d, expand_pieces, dim3(gr_blocks(n, high), gr_blocks(pieces, wide)), dim3(wide, high), 0, gr_view_of(to), m, ids, n,
              end, scale);
}

void gr_cuda_expand(gr_device *d, void *to, int64_t ld, gr_dtype type, const gr_weight *w, int64_t fill_cols) {
    expand(d, gr_rows{to, ld, type}, w, NULL, w->rows, fill_cols > w->cols ? fill_cols : w->cols, 1);
}

void gr_embed_forward_cuda(gr_device *d, gr_rows x, const gr_weight *table, const int32_t *ids, int64_t n, float scale) {
    expand(d, x, table, ids, n, table->cols, scale);
}
