/* embed.cu - the gradient of an embedding: rows of gradients are added to the table's rows that their tokens took.
 *
 * The sum of a table's row is in the order of the batch's rows, without atomics: rows are sorted by (id, row) first, then a thread
 * per row of the batch and piece of 8 columns looks whether its row is the first of its id; if so, it adds them all. Each element
 * of dx is read once (2 or 4 bytes), each row of the table that occurs is read and written once (8). Sorting is counting: a row's
 * place is how many rows come before it, n^2 comparisons of 2 instructions, about 30 us for 16,384 rows. */
#include "kernels/cuda/rows.cuh"

enum { THREADS = 256, SORT = 128, TILE = 1024, AHEAD = 4 }; /* TILE: a multiple of SORT */

struct sorted_row {
    int32_t id, row;
};

/* A thread finds the place of its row. */
static __global__ void sort_rows(sorted_row *sorted, const int32_t *ids, int64_t n) {
    __shared__ int4 tile[TILE / 4];
    const int64_t first = (int64_t)blockIdx.x * SORT, row = first + threadIdx.x;
    const int32_t id = row < n ? ids[row] : 0;
    int64_t place = 0;
    for (int64_t begin = 0; begin < n; begin += TILE) {
        __syncthreads();
        for (int i = threadIdx.x; i < TILE; i += SORT) ((int32_t *)tile)[i] = begin + i < n ? ids[begin + i] : INT32_MAX;
        __syncthreads();
        int before = 0;
        if (begin / TILE != first / TILE) {
            const int32_t below = id + (begin < first); /* equal ids of earlier rows come before, those of later rows do not */
#pragma unroll 4
            for (int i = 0; i < TILE / 4; i++) {
                const int4 x = tile[i];
                before += (x.x < below) + (x.y < below) + (x.z < below) + (x.w < below);
            }
        } else {
            for (int i = 0; i < TILE; i++) before += ((const int32_t *)tile)[i] < id + (begin + i < row);
        }
        place += before;
    }
    if (row < n) sorted[place] = sorted_row{id, (int32_t)row};
}

static __global__ void add_sorted_rows(gr_view dtable, gr_view dx, const sorted_row *sorted, int64_t n, int64_t C, float scale) {
    const int64_t pieces = (C + 7) / 8, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n * pieces) return;
    const gr_place at = gr_place_of(i, pieces); /* its row is a place among the sorted */
    const int32_t id = sorted[at.row].id;
    if (at.row > 0 && sorted[at.row - 1].id == id) return;
    float sum[8];
    gr_load8(sum, dtable, id, at.col, C);
    bool more = true;
    for (int64_t next = at.row; more; next += AHEAD) {
        gr_raw8 raw[AHEAD];
        bool own[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const sorted_row r = next + k < n ? sorted[next + k] : sorted_row{-1, 0};
            own[k] = r.id == id;
            raw[k] = gr_fetch8(dx, r.row, at.col, own[k] ? C : 0);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            float v[8];
            gr_take8(v, raw[k], dx.type);
#pragma unroll
            for (int j = 0; j < 8; j++)
                if (own[k]) sum[j] = __fadd_rn(sum[j], __fmul_rn(scale, v[j])); /* rounded twice, as the CPU's */
        }
        more = own[AHEAD - 1];
    }
    gr_store8(dtable, id, at.col, C, sum);
}

void gr_embed_backward_cuda(gr_device *d, float *dtable, gr_rows dx, const int32_t *ids, int64_t n, int64_t C, float scale) {
    sorted_row *sorted = (sorted_row *)gr_cuda_scratch(d, GR_CUDA_PARTS, n * (int64_t)sizeof *sorted);
    const gr_view table = gr_view_of(gr_rows{dtable, C, GR_DTYPE_F32});
    GR_LAUNCH(d, sort_rows, gr_blocks(n, SORT), SORT, 0, sorted, ids, n);
    GR_LAUNCH(d, add_sorted_rows, gr_blocks(n * ((C + 7) / 8), THREADS), THREADS, 0, table, gr_view_of(dx), sorted, n, C, scale);
}
