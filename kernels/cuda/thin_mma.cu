/* thin_mma.cu - products with the few columns of adapters by mma.sync m16n8k16: factors of bfloat16 or half, float32 sums.
 *
 * All of them are bound by memory: at rank 8 there are 8 FLOPs for a byte of x or dy, which is read once, in pieces of 16 bytes.
 * down: 32 rows a block, whose 8 warps take pieces of 32 columns in turn; A comes from the cache. Fragments are loaded as they lie:
 * a thread's 8 columns in a row are k = 2t, 2t+1, 2t+8, 2t+9 of two products, in both factors alike. The warps' sums are added in
 * order: the order behind a result is a function of the number of columns alone.
 * gradients: 128 columns and CHUNK rows a block, 64 rows at a time through shared memory, where they are transposed by ldmatrix.
 * Chunks are added in order by add_chunks (thin.cu). */
#include "kernels/cuda/mask.cuh"
#include "kernels/cuda/thin.h"

enum { THREADS = 256, WARPS = 8, DOWN_ROWS = 32, DOWN_COLS = 32, GROUP = 64 };
enum { TILE_ROWS = 64, TILE_COLS = 128, PADDED = TILE_COLS + 8 };

/* ---- fragments ---- */

template <bool HALF> static __device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    if (HALF)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <bool HALF> static __device__ __forceinline__ uint32_t pair_of(float low, float high) {
    union {
        uint32_t bits;
        __nv_bfloat162 bf16;
        __half2 f16;
    } u;
    if (HALF) u.f16 = __floats2half2_rn(low, high);
    else u.bf16 = __floats2bfloat162_rn(low, high);
    return u.bits;
}

/* Columns col..col+8 of a row as the products have them. CAST: of any type and alignment; else they are there as they are. Rows from
 * n and columns from C on are 0. */
template <bool HALF, bool CAST>
static __device__ __forceinline__ uint4 piece_of(const gr_view &x, int64_t row, int64_t col, int64_t n, int64_t C) {
    uint4 piece = make_uint4(0, 0, 0, 0);
    if (row >= n || col >= C) return piece;
    if (!CAST) return *(const uint4 *)((const uint16_t *)x.data + row * x.ld + col);
    float v[8];
    gr_load8(v, x, row, col, C);
    return make_uint4(pair_of<HALF>(v[0], v[1]), pair_of<HALF>(v[2], v[3]), pair_of<HALF>(v[4], v[5]), pair_of<HALF>(v[6], v[7]));
}

static __device__ __forceinline__ uint32_t kept(uint32_t pair, uint32_t bits) {
    return pair & ((bits & 1 ? 0xffffu : 0) | (bits & 2 ? 0xffff0000u : 0));
}

/* Without what the mask drops; what is kept is not scaled yet. */
static __device__ __forceinline__ uint4 masked(uint4 piece, const gr_mask &mask, int64_t row, int64_t col) {
    uint32_t bits = gr_mask_bits8(mask, row, col);
    return make_uint4(kept(piece.x, bits), kept(piece.y, bits >> 2), kept(piece.z, bits >> 4), kept(piece.w, bits >> 6));
}

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

template <int NT, bool HALF, bool CAST>
static __device__ __forceinline__ void load_down(down_piece<NT> &p, const down_args &a, int64_t row, int64_t column0, int64_t col,
                                                 int g) {
#pragma unroll
    for (int i = 0; i < 4; i++) p.x[i] = piece_of<HALF, CAST>(a.x, row + 8 * i, col, a.n, a.C);
#pragma unroll
    for (int j = 0; j < NT; j++) p.w[j] = *(const uint4 *)(a.w + (column0 + 8 * j + g) * a.ld + col);
}

template <int NT, bool HALF> static __device__ __forceinline__ void multiply_down(float sum[2][NT][4], const down_piece<NT> &p) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint4 low = p.x[2 * i], high = p.x[2 * i + 1];
        const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
        for (int j = 0; j < NT; j++) {
            mma<HALF>(sum[i][j], first, p.w[j].x, p.w[j].y);
            mma<HALF>(sum[i][j], second, p.w[j].z, p.w[j].w);
        }
    }
}

template <int NT, bool HALF, bool CAST>
static __global__ void __launch_bounds__(THREADS, NT == 8 ? 1 : 2) down(const __grid_constant__ down_args a) {
    __shared__ float all[DOWN_ROWS][NT * 8 + 1];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int64_t row0 = (int64_t)blockIdx.x * DOWN_ROWS, row = row0 + g, column0 = (int64_t)blockIdx.y * GROUP;
    float sum[2][NT][4] = {};
    down_piece<NT> now, next;
    int64_t col = warp * DOWN_COLS + 8 * t;
    const int64_t step = WARPS * DOWN_COLS, end = column0 < a.rank || (a.copy && column0 == 0) ? a.filled_C : 0;
    if (col < end) load_down<NT, HALF, CAST>(now, a, row, column0, col, g);
    for (; col < end; col += step) {
        if (col + step < end) load_down<NT, HALF, CAST>(next, a, row, column0, col + step, g);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (CAST && a.copy && blockIdx.y == 0 && row + 8 * i < a.n)
                *(uint4 *)(a.copy + (row + 8 * i) * a.copy_ld + col) = now.x[i];
            if (a.mask.row_key && row + 8 * i < a.n) now.x[i] = masked(now.x[i], a.mask, row + 8 * i, col);
        }
        multiply_down<NT, HALF>(sum, now);
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

/* The widths that kernels are made for: as many pieces of 8 columns. */
static int pieces_of(int64_t rank) { return rank <= 8 ? 1 : rank <= 24 ? 3 : 8; }

#define LAUNCH_OF(NT, kernel, cast, half, ...)                                                                                     \
    do {                                                                                                                           \
        if (cast && half) GR_LAUNCH(d, (kernel<NT, true, true>), __VA_ARGS__);                                                     \
        else if (cast) GR_LAUNCH(d, (kernel<NT, false, true>), __VA_ARGS__);                                                       \
        else if (half) GR_LAUNCH(d, (kernel<NT, true, false>), __VA_ARGS__);                                                       \
        else GR_LAUNCH(d, (kernel<NT, false, false>), __VA_ARGS__);                                                                \
    } while (0)
#define LAUNCH(pieces, ...)                                                                                                        \
    do {                                                                                                                           \
        if (pieces == 1) LAUNCH_OF(1, __VA_ARGS__);                                                                                \
        else if (pieces == 3) LAUNCH_OF(3, __VA_ARGS__);                                                                           \
        else LAUNCH_OF(8, __VA_ARGS__);                                                                                            \
    } while (0)

/* Whether rows of C columns are there as products of the type take them. */
static bool as_they_are(gr_rows x, gr_dtype type, int64_t C) { return x.type == type && C % 8 == 0 && gr_view_of(x).wide; }

void gr_thin_down_mma(gr_device *d, const gr_thin_rows *to, gr_rows x, const gr_dropout *mask, gr_rows w, int64_t n, int64_t C,
                      int64_t rank) {
    bool cast = to->copy.data || !as_they_are(x, w.type, C), half = w.type == GR_DTYPE_F16;
    int64_t columns = to->spare.data && to->R > rank ? to->R : rank, filled = (C + GR_CUDA_PAD - 1) / GR_CUDA_PAD * GR_CUDA_PAD;
    down_args a = {gr_view_of(x),
                   (const uint16_t *)w.data,
                   w.ld,
                   n,
                   C,
                   filled,
                   rank,
                   gr_mask_of(mask),
                   to->h,
                   gr_view_of(to->spare),
                   to->R,
                   to->ones,
                   (uint16_t *)to->copy.data,
                   to->copy.ld};
    dim3 grid(gr_blocks(n, DOWN_ROWS), gr_blocks(columns, GROUP));
    LAUNCH(pieces_of(rank), down, cast, half, grid, THREADS, 0, a);
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

static __device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

static __device__ __forceinline__ void transposed4(uint32_t r[4], const void *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(p)));
}

static __device__ __forceinline__ void transposed2(uint32_t r[2], const void *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(p)));
}

template <int NT, bool HALF, bool CAST>
static __global__ void __launch_bounds__(THREADS) gradients(const __grid_constant__ gradient_args a) {
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
                if (job.mask.row_key && row0 + r < end) x[i] = masked(x[i], job.mask, row0 + r, c0 + c);
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
                x[i] = piece_of<HALF, CAST>(job.x, ahead + r, c0 + c, end, job.C);
            }
#pragma unroll
            for (int i = 0; i < G_PAIRS; i++) {
                int at = threadIdx.x + i * THREADS;
                int64_t r = ahead + at / (NT * 4), c = r0 + at % (NT * 4) * 2;
                float low = r < end && c < a.rank ? job.g[r * a.rank + c] : 0.0f;
                float high = r < end && c + 1 < a.rank ? job.g[r * a.rank + c + 1] : 0.0f;
                pairs[i] = pair_of<HALF>(low, high);
            }
        }
        if (row0 < begin) continue;
#pragma unroll
        for (int k = 0; k < TILE_ROWS; k += 16) {
            uint32_t u[4], v[2];
            transposed4(u, &xs[k + lane % 8 + lane / 16 * 8][warp * 16 + lane / 8 % 2 * 8]);
#pragma unroll
            for (int j = 0; j < NT; j++) {
                transposed2(v, &gs[k + lane % 16][j * 8]);
                mma<HALF>(sum[j], u, v[0], v[1]);
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

void gr_thin_parts_mma(gr_device *d, const gr_thin_job job[2], gr_dtype type, int64_t n, int64_t chunk, int64_t rank) {
    gradient_args a = {};
    bool cast = false;
    int64_t tiles[2];
    for (int i = 0; i < 2; i++) {
        a.job[i] = {gr_view_of(job[i].x), job[i].C, job[i].g, gr_mask_of(job[i].mask), job[i].parts};
        cast |= job[i].x.data && !as_they_are(job[i].x, type, job[i].C);
        tiles[i] = job[i].x.data ? (job[i].C + TILE_COLS - 1) / TILE_COLS : 0;
    }
    a.tiles = (int)tiles[0], a.n = n, a.chunk = chunk, a.rank = rank;
    dim3 grid((unsigned)(tiles[0] + tiles[1]), gr_blocks(rank, GROUP), gr_blocks(n, chunk));
    LAUNCH(pieces_of(rank), gradients, cast, type == GR_DTYPE_F16, grid, THREADS, 0, a);
}
