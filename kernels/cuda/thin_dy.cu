/* thin_dy.cu - dh = dy sB and the sums of dB in one read of dy, for adapters of at most 24 ranks a linear, by mma.sync.
 *
 * dy is the largest thing that a group's backward reads; at rank 8 both products have 32 FLOPs for its 2 bytes, and what goes
 * beside it is an eighth of it. A block has 128 columns of dy and CHUNK rows, 64 at a time in shared memory: transposed they make
 * dB, as they are the columns' part of dh. A tile of columns knows the ranks of its own linears alone (width of them from `first`
 * on). Parts of dh are added over tiles in order: a row's sum is a function of the columns alone. */
#include "kernels/cuda/thin.cuh"

enum { THREADS = 256 };

/* The first column of h that belongs to a tile of dy's columns. */
static __host__ __device__ __forceinline__ int32_t first_of(const gr_thin &t, int64_t tile) {
    int32_t first = (int32_t)t.rank;
    for (int i = 0; i < t.n; i++)
        if (t.lora[i].row < (tile + 1) * TILE_COLS && t.lora[i].row + t.lora[i].rows > tile * TILE_COLS && t.lora[i].first < first)
            first = t.lora[i].first;
    return first;
}

/* How many columns of h tiles have at most. */
static int64_t width_of(const gr_thin *t, int64_t tiles) {
    int64_t width = 0;
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int i = 0; i < t->n; i++)
            if (t->lora[i].row < (tile + 1) * TILE_COLS && t->lora[i].row + t->lora[i].rows > tile * TILE_COLS) {
                int64_t end = t->lora[i].first + t->lora[i].rank - first_of(*t, tile);
                width = end > width ? end : width;
            }
    return width;
}

struct both_args {
    gr_view dy;
    int64_t n, N, filled_N, chunk;
    const float *h;         /* [n, rank] */
    const uint16_t *across; /* (sB)^T [R, filled_N] */
    int64_t R;
    uint16_t *copy; /* dy as the products have it; NULL: it is so already */
    int64_t copy_ld;
    float *of_B;  /* [chunks, N, rank]: the ranks of a tile alone are written */
    float *of_dh; /* [tiles, n, 8 NT] */
};

template <int NT, class T, bool CAST>
static __global__ void __launch_bounds__(THREADS, 2)
    both(const __grid_constant__ both_args a, const __grid_constant__ gr_thin thin) {
    constexpr int X_PIECES = TILE_ROWS * TILE_COLS / 8 / THREADS, G_PAIRS = TILE_ROWS * NT * 4 / THREADS, WIDE = NT * 8;
    static_assert(NT % 2 == 1, "rows of gs are an odd number of 16 bytes, in different banks");
    __shared__ __align__(16) uint16_t xs[TILE_ROWS][PADDED];
    __shared__ __align__(16) uint16_t gs[TILE_ROWS][WIDE];
    __shared__ float half[TILE_ROWS][WIDE + 1];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, strip = warp % 4, side = warp / 4;
    const int64_t tile = blockIdx.x, c0 = tile * TILE_COLS, rank = thin.rank;
    const int64_t begin = blockIdx.y * a.chunk, end = a.n - begin < a.chunk ? a.n : begin + a.chunk;
    const int32_t first = first_of(thin, tile);
    if (first == rank && !a.copy) return; /* no adapter here */
    uint32_t b[4][NT][2];                 /* sB of this warp's 64 columns */
#pragma unroll
    for (int s = 0; s < 4; s++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int64_t r = first + 8 * j + g, c = c0 + side * 64 + s * 16 + 2 * t + 8 * e;
                b[s][j][e] = r < a.R && c < a.filled_N ? *(const uint32_t *)(a.across + r * a.filled_N + c) : 0;
            }
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
                *(uint4 *)&xs[r][c] = x[i];
                if (CAST && a.copy && row0 + r < end && c0 + c < a.filled_N)
                    *(uint4 *)(a.copy + (row0 + r) * a.copy_ld + c0 + c) = x[i];
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
                x[i] = gr_view_piece<T, CAST>(a.dy, ahead + r, c0 + c, end, a.N);
            }
#pragma unroll
            for (int i = 0; i < G_PAIRS; i++) {
                int at = threadIdx.x + i * THREADS;
                int64_t r = ahead + at / (NT * 4), c = first + at % (NT * 4) * 2;
                float low = r < end && c < rank ? a.h[r * rank + c] : 0.0f;
                float high = r < end && c + 1 < rank ? a.h[r * rank + c + 1] : 0.0f;
                pairs[i] = gr_pair(T(), low, high);
            }
        }
        if (row0 < begin) continue;
#pragma unroll
        for (int k = 0; k < TILE_ROWS; k += 32) { /* dB: 16 columns a warp */
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
        float part[NT][4] = {}; /* dh: 16 rows and 64 columns a warp */
#pragma unroll
        for (int s = 0; s < 4; s++) {
            uint32_t u[4];
            gr_ldmatrix(u, gr_shared_address(&xs[strip * 16 + lane % 16][side * 64 + s * 16 + lane / 16 * 8]));
#pragma unroll
            for (int j = 0; j < NT; j++) gr_mma(T(), part[j], u, b[s][j][0], b[s][j][1]);
        }
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                if (side) half[strip * 16 + g + e / 2 * 8][8 * j + 2 * t + e % 2] = part[j][e];
        __syncthreads();
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int r = strip * 16 + g + e / 2 * 8, c = 8 * j + 2 * t + e % 2;
                if (!side && row0 + r < end) a.of_dh[(tile * a.n + row0 + r) * WIDE + c] = part[j][e] + half[r][c];
            }
    }
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int64_t c = c0 + warp * 16 + g + e / 2 * 8, r = first + j * 8 + t * 2 + e % 2;
            if (c < a.N && r < rank) a.of_B[(blockIdx.y * a.N + c) * rank + r] = sum[j][e];
        }
}

/* dh[n, rank] and its spare columns [n, R] from the tiles' parts. A thread per result. */
static __global__ void __launch_bounds__(THREADS)
    collect(const __grid_constant__ gr_thin thin, float *dh, gr_view spare, int64_t R, const float *parts, int64_t n, int width) {
    const int64_t columns = R > thin.rank ? R : thin.rank, at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= n * columns) return;
    const int64_t row = at / columns, r = at % columns;
    float sum = 0;
    for (int i = 0; i < thin.n; i++) {
        if (r < thin.lora[i].first || r >= thin.lora[i].first + thin.lora[i].rank) continue;
        const int64_t last = (thin.lora[i].row + thin.lora[i].rows - 1) / TILE_COLS;
        for (int64_t tile = thin.lora[i].row / TILE_COLS; tile <= last; tile++)
            sum += parts[(tile * n + row) * width + r - first_of(thin, tile)];
    }
    if (r < thin.rank) dh[row * thin.rank + r] = sum;
    if (spare.data && r < R) gr_store(spare, row, r, sum);
}

template <int NT, bool CAST> static void launch_both(gr_device *d, bool of_half, dim3 grid, const both_args &a, const gr_thin &t) {
    if (of_half) GR_LAUNCH(d, (both<NT, __half, CAST>), grid, THREADS, 0, a, t);
    else GR_LAUNCH(d, (both<NT, __nv_bfloat16, CAST>), grid, THREADS, 0, a, t);
}

template <int NT> static void launch_both(gr_device *d, bool of_half, bool cast, dim3 grid, const both_args &a, const gr_thin &t) {
    if (cast) launch_both<NT, true>(d, of_half, grid, a, t);
    else launch_both<NT, false>(d, of_half, grid, a, t);
}

int64_t gr_thin_dy_floats(const gr_thin *t, int64_t n) {
    const int64_t N = gr_thin_outputs(t), tiles = (N + TILE_COLS - 1) / TILE_COLS, width = width_of(t, tiles);
    return width > 24 ? 0 : tiles * n * (width <= 8 ? 8 : 24);
}

void gr_thin_dy(gr_device *d, const gr_thin *t, const gr_thin_rows *to, gr_rows dy, gr_rows across, const float *h, float *of_B,
                float *of_dh, int64_t n, int64_t chunk) {
    both_args a = {};
    const int64_t N = gr_thin_outputs(t), tiles = (N + TILE_COLS - 1) / TILE_COLS, columns = to->R > t->rank ? to->R : t->rank;
    const bool cast = to->copy.data || !gr_as_it_is(dy, across.type, N), of_half = across.type == GR_DTYPE_F16;
    const int width = gr_thin_dy_floats(t, n) == tiles * n * 8 ? 8 : 24;
    a.dy = gr_view_of(dy), a.n = n, a.N = N, a.filled_N = across.ld, a.chunk = chunk;
    a.h = h, a.across = (const uint16_t *)across.data, a.R = gr_cuda_fill(t->rank);
    a.copy = (uint16_t *)to->copy.data, a.copy_ld = to->copy.ld;
    a.of_B = of_B, a.of_dh = of_dh;
    dim3 grid((unsigned)tiles, gr_blocks(n, chunk));
    if (width == 8) launch_both<1>(d, of_half, cast, grid, a, *t);
    else launch_both<3>(d, of_half, cast, grid, a, *t);
    GR_LAUNCH(d, collect, gr_blocks(n * columns, THREADS), THREADS, 0, *t, to->h, gr_view_of(to->spare), to->R, of_dh, n, width);
}
