/* thin_mma.cu - products with the few columns of adapters by mma.sync m16n8k16: factors of bfloat16 or half, float32 sums.
 *
 * All of them are bound by memory: at rank 8 there are 8 FLOPs for a byte of x or dy, which is read once, in pieces of 16 bytes.
 * down: 32 rows a block, whose 8 warps take pieces of 32 columns in turn; A comes from the cache. Fragments are loaded as they lie:
 * a thread's 8 columns in a row are k = 2t, 2t+1, 2t+8, 2t+9 of two products, in both factors alike. The warps' sums are added in
 * order: the order behind a result is a function of the number of columns alone.
 * gradients: 128 columns and CHUNK rows a block, 64 rows at a time through shared memory, where they are transposed by ldmatrix.
 * Chunks are added in order by add_chunks (thin.cu). */
#include "kernels/cuda/thin.cuh"

enum { THREADS = 256, WARPS = 8, DOWN_ROWS = 32, DOWN_COLS = 32, GROUP = 64 };

/* ---- h = x w^T ---- */

struct down_args {
    gr_view x;
    const uint16_t *w; /* [rank.. filled up to GROUP, ld], C columns filled up to a multiple of 64 with zeros */
    int64_t ld, n, C, filled_C, rank;
    gr_mask mask;
    float *h;
    gr_view spare;
    int64_t R;
    int ones;
    uint16_t *copy; /* x as the products have it, rows of copy_ld; NULL: it is so already */
    int64_t copy_ld;
};

/* Of a thread: rows g, g + 8, g + 16, g + 24 of x, row g of each 8 of w. */
template <int NT> struct down_piece { uint4 x[4], w[NT]; };

template <int NT, class T, bool CAST>
static __device__ __forceinline__ void load_down(down_piece<NT> &p, const down_args &a, int64_t row, int64_t column0, int64_t col,
                                                 int g) {
#pragma unroll
    for (int i = 0; i < 4; i++) p.x[i] = gr_view_piece<T, CAST>(a.x, row + 8 * i, col, a.n, a.C);
#pragma unroll
    for (int j = 0; j < NT; j++) p.w[j] = *(const uint4 *)(a.w + (column0 + 8 * j + g) * a.ld + col);
}

template <int NT, class T> static __device__ __forceinline__ void multiply_down(float sum[2][NT][4], const down_piece<NT> &p) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint4 low = p.x[2 * i], high = p.x[2 * i + 1];
        const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
        for (int j = 0; j < NT; j++) {
            gr_mma(T(), sum[i][j], first, p.w[j].x, p.w[j].y);
            gr_mma(T(), sum[i][j], second, p.w[j].z, p.w[j].w);
        }
    }
}

template <int NT, class T, bool CAST>
static __global__ void __launch_bounds__(THREADS, NT == 8 ? 1 : 2) down(const __grid_constant__ down_args a) {
    __shared__ float all[DOWN_ROWS][NT * 8 + 1];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int64_t row0 = (int64_t)blockIdx.x * DOWN_ROWS, row = row0 + g, column0 = (int64_t)blockIdx.y * GROUP;
    float sum[2][NT][4] = {};
    down_piece<NT> now, next;
    int64_t col = warp * DOWN_COLS + 8 * t;
    const int64_t step = WARPS * DOWN_COLS, end = column0 < a.rank || (a.copy && column0 == 0) ? a.filled_C : 0;
    if (col < end) load_down<NT, T, CAST>(now, a, row, column0, col, g);
    for (; col < end; col += step) {
        if (col + step < end) load_down<NT, T, CAST>(next, a, row, column0, col + step, g);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (CAST && a.copy && blockIdx.y == 0 && row + 8 * i < a.n)
                *(uint4 *)(a.copy + (row + 8 * i) * a.copy_ld + col) = now.x[i];
            if (a.mask.row_key && row + 8 * i < a.n) now.x[i] = gr_masked(now.x[i], a.mask, row + 8 * i, col);
        }
        multiply_down<NT, T>(sum, now);
        now = next;
    }
    for (int w = 0; w < WARPS; w++) {
        if (warp == w)
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < NT; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        float *at = &all[16 * i + g + e / 2 * 8][8 * j + 2 * t + e % 2];
                        *at = w == 0 ? sum[i][j][e] : *at + sum[i][j][e];
                    }
        __syncthreads();
    }
    for (int at = threadIdx.x; at < DOWN_ROWS * GROUP; at += THREADS) {
        int64_t r = row0 + at / GROUP, column = column0 + at % GROUP;
        if (r >= a.n) break;
        float value = column < a.rank ? all[at / GROUP][at % GROUP] * a.mask.scale : column < a.rank + a.ones ? 1.0f : 0.0f;
        if (column < a.rank) a.h[r * a.rank + column] = value;
        if (a.spare.data && column < a.R) gr_store(a.spare, r, column, value);
    }
}

template <int NT, bool CAST> static void launch_down(gr_device *d, bool half, dim3 grid, const down_args &a) {
    if (half) GR_LAUNCH(d, (down<NT, __half, CAST>), grid, THREADS, 0, a);
    else GR_LAUNCH(d, (down<NT, __nv_bfloat16, CAST>), grid, THREADS, 0, a);
}

template <int NT> static void launch_down(gr_device *d, bool half, bool cast, dim3 grid, const down_args &a) {
    if (cast) launch_down<NT, true>(d, half, grid, a);
    else launch_down<NT, false>(d, half, grid, a);
}

void gr_thin_down_mma(gr_device *d, const gr_thin_rows *to, gr_rows x, const gr_dropout *mask, gr_rows w, int64_t n, int64_t C,
                      int64_t rank) {
    bool cast = to->copy.data || !gr_as_it_is(x, w.type, C), half = w.type == GR_DTYPE_F16;
    int64_t columns = to->spare.data && to->R > rank ? to->R : rank;
    dim3 grid(gr_blocks(n, DOWN_ROWS), gr_blocks(columns, GROUP));
    down_args a = {};
    a.x = gr_view_of(x), a.w = (const uint16_t *)w.data, a.ld = w.ld;
    a.n = n, a.C = C, a.filled_C = gr_cuda_fill(C), a.rank = rank;
    a.mask = gr_mask_of(mask), a.h = to->h;
    a.spare = gr_view_of(to->spare), a.R = to->R, a.ones = to->ones;
    a.copy = (uint16_t *)to->copy.data, a.copy_ld = to->copy.ld;
    if (rank <= 8) launch_down<1>(d, half, cast, grid, a);
    else if (rank <= 24) launch_down<3>(d, half, cast, grid, a);
    else launch_down<8>(d, half, cast, grid, a);
}

/* ---- sums over tokens ---- */

/* parts[chunk, C, rank] = x^T g of the chunk's rows, under the mask of x. */
struct gradient_job {
    gr_view x;
    int64_t C;
    const float *g; /* [n, rank] */
    gr_mask mask;
    float *parts;
};

struct gradient_args {
    gradient_job job[2];
    int tiles; /* blocks of the first job */
    int64_t n, chunk, rank;
};

template <int NT, class T> static __global__ void __launch_bounds__(THREADS) gradients(const __grid_constant__ gradient_args a) {
    constexpr int WIDE = NT % 2 ? NT * 8 : NT * 8 + 8; /* an odd number of 16 bytes: rows lie in different banks */
    constexpr int X_PIECES = TILE_ROWS * TILE_COLS / 8 / THREADS, G_PAIRS = TILE_ROWS * NT * 4 / THREADS;
    __shared__ __align__(16) uint16_t xs[TILE_ROWS][PADDED];
    __shared__ __align__(16) uint16_t gs[TILE_ROWS][WIDE];
    const bool first = blockIdx.x < (unsigned)a.tiles;
    const gradient_job &job = a.job[first ? 0 : 1];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t c0 = (int64_t)(first ? blockIdx.x : blockIdx.x - a.tiles) * TILE_COLS, r0 = (int64_t)blockIdx.y * GROUP;
    const int64_t begin = blockIdx.z * a.chunk, end = a.n - begin < a.chunk ? a.n : begin + a.chunk;
    float sum[NT][4] = {};
    uint4 x[X_PIECES];
    uint32_t pairs[G_PAIRS];
    for (int64_t row0 = begin - TILE_ROWS; row0 < end; row0 += TILE_ROWS) {
        const int64_t ahead = row0 + TILE_ROWS;
        if (row0 >= begin) { /* what was loaded last time */
            __syncthreads();
#pragma unroll
            for (int i = 0; i < X_PIECES; i++) {
                int at = threadIdx.x + i * THREADS, r = at / (TILE_COLS / 8), c = at % (TILE_COLS / 8) * 8;
                if (job.mask.row_key && row0 + r < end) x[i] = gr_masked(x[i], job.mask, row0 + r, c0 + c);
                *(uint4 *)&xs[r][c] = x[i];
            }
#pragma unroll
            for (int i = 0; i < G_PAIRS; i++) {
                int at = threadIdx.x + i * THREADS;
                *(uint32_t *)&gs[at / (NT * 4)][at % (NT * 4) * 2] = pairs[i];
            }
            __syncthreads();
        }
        if (ahead < end) {
#pragma unroll
            for (int i = 0; i < X_PIECES; i++) {
                int at = threadIdx.x + i * THREADS, r = at / (TILE_COLS / 8), c = at % (TILE_COLS / 8) * 8;
                x[i] = gr_view_piece<T, false>(job.x, ahead + r, c0 + c, end, job.C);
            }
#pragma unroll
            for (int i = 0; i < G_PAIRS; i++) {
                int at = threadIdx.x + i * THREADS;
                int64_t r = ahead + at / (NT * 4), c = r0 + at % (NT * 4) * 2;
                float low = r < end && c < a.rank ? job.g[r * a.rank + c] : 0.0f;
                float high = r < end && c + 1 < a.rank ? job.g[r * a.rank + c + 1] : 0.0f;
                pairs[i] = gr_pair(T(), low, high);
            }
        }
        if (row0 < begin) continue;
#pragma unroll
        for (int k = 0; k < TILE_ROWS; k += 32) {
            uint32_t u[2][4], v[4];
#pragma unroll
            for (int i = 0; i < 2; i++)
                gr_ldmatrix_transposed(u[i],
                                       gr_shared_address(&xs[k + 16 * i + lane % 8 + lane / 16 * 8][warp * 16 + lane / 8 % 2 * 8]));
#pragma unroll
            for (int j = 0; j < NT; j++) {
                gr_ldmatrix_transposed(v, gr_shared_address(&gs[k + lane][j * 8]));
                gr_mma(T(), sum[j], u[0], v[0], v[1]), gr_mma(T(), sum[j], u[1], v[2], v[3]);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int64_t c = c0 + warp * 16 + lane / 4 + e / 2 * 8, r = r0 + j * 8 + lane % 4 * 2 + e % 2;
            if (c < job.C && r < a.rank) job.parts[(blockIdx.z * job.C + c) * a.rank + r] = sum[j][e] * job.mask.scale;
        }
}

template <int NT> static void launch_gradients(gr_device *d, bool half, dim3 grid, const gradient_args &a) {
    if (half) GR_LAUNCH(d, (gradients<NT, __half>), grid, THREADS, 0, a);
    else GR_LAUNCH(d, (gradients<NT, __nv_bfloat16>), grid, THREADS, 0, a);
}

void gr_thin_parts_mma(gr_device *d, const gr_thin_job job[2], int64_t n, int64_t chunk, int64_t rank) {
    gradient_args a = {};
    int64_t tiles[2];
    bool half = false;
    for (int i = 0; i < 2; i++) {
        a.job[i] = {gr_view_of(job[i].x), job[i].C, job[i].g, gr_mask_of(job[i].mask), job[i].parts};
        tiles[i] = job[i].x.data ? (job[i].C + TILE_COLS - 1) / TILE_COLS : 0;
        half |= job[i].x.data && job[i].x.type == GR_DTYPE_F16;
    }
    a.tiles = (int)tiles[0], a.n = n, a.chunk = chunk, a.rank = rank;
    dim3 grid((unsigned)(tiles[0] + tiles[1]), gr_blocks(rank, GROUP), gr_blocks(n, chunk));
    if (rank <= 8) launch_gradients<1>(d, half, grid, a);
    else if (rank <= 24) launch_gradients<3>(d, half, grid, a);
    else launch_gradients<8>(d, half, grid, a);
}
