/* flat.cu - operations on elements one by one. */
#include "kernels/cuda/rows.cuh"

enum { THREADS = 256 };

/* A thread per piece of 8 columns. */
static __global__ void add_pieces(gr_view x, gr_view y, int64_t n, int64_t C) {
    int64_t pieces = (C + 7) / 8, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n * pieces) return;
    float a[8], b[8];
    int64_t row = i / pieces, col = i % pieces * 8;
    gr_load8(a, x, row, col, C), gr_load8(b, y, row, col, C);
#pragma unroll
    for (int j = 0; j < 8; j++) a[j] += b[j];
    gr_store8(x, row, col, C, a);
}

void gr_add_cuda(gr_device *d, gr_rows x, gr_rows y, int64_t n, int64_t C) {
    GR_LAUNCH(d, add_pieces, gr_blocks(n * ((C + 7) / 8), THREADS), THREADS, 0, gr_view_of(x), gr_view_of(y), n, C);
}
