/* mma.cuh - tensor cores by hand: products of 16 x 8 x 16 of bfloat16 or half with float32 sums, tiles in shared memory, copies to
 * them that run beside the work. PTX ISA 8: "mma.sync", "ldmatrix", "cp.async"; sm_80 and later. */
#ifndef GR_CUDA_MMA_CUH
#define GR_CUDA_MMA_CUH

#include "kernels/cuda/rows.cuh"

/* c += a b. Lane 4g + t holds of
 *   a [16,16]: a[0] row g, a[1] row g + 8, columns 2t, 2t+1; a[2], a[3] the same 8 columns further;
 *   b [16,8]:  b0 rows 2t, 2t+1, b1 8 further, of column g;
 *   c [16,8]:  c[0], c[1] row g, columns 2t, 2t+1; c[2], c[3] row g + 8. */
static __device__ __forceinline__ void gr_mma(__nv_bfloat16, float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
static __device__ __forceinline__ void gr_mma(__half, float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Two values side by side, rounded to the type: the lower column in the lower half. */
static __device__ __forceinline__ uint32_t gr_pair(__nv_bfloat16, float low, float high) {
    __nv_bfloat162 x = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&x;
}
static __device__ __forceinline__ uint32_t gr_pair(__half, float low, float high) {
    __half2 x = __floats2half2_rn(low, high);
    return *(uint32_t *)&x;
}

static __device__ __forceinline__ float2 gr_unpair(__nv_bfloat16, uint32_t pair) {
    return __bfloat1622float2(*(__nv_bfloat162 *)&pair);
}
static __device__ __forceinline__ float2 gr_unpair(__half, uint32_t pair) { return __half22float2(*(__half2 *)&pair); }

/* Two neighbours of c, 16 columns, rounded to be a of a product. */
template <class T> static __device__ __forceinline__ void gr_weights_a(uint32_t a[4], const float c[2][4]) {
    a[0] = gr_pair(T(), c[0][0], c[0][1]), a[1] = gr_pair(T(), c[0][2], c[0][3]);
    a[2] = gr_pair(T(), c[1][0], c[1][1]), a[3] = gr_pair(T(), c[1][2], c[1][3]);
}

/* Four 8 x 8 matrices, one after the other in r[0..4); lanes 8i..8i+7 say where the rows of matrix i are. Lane 4g + t gets columns
 * 2t, 2t+1 of row g; transposed: rows 2t, 2t+1 of column g. */
static __device__ __forceinline__ void gr_ldmatrix(uint32_t r[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
static __device__ __forceinline__ void gr_ldmatrix_transposed(uint32_t r[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* 16 bytes, or 4, from global to shared memory beside the work; !have: zeros, and nothing is read. _first: the first `bytes` of
 * them, the rest zeros. */
static __device__ __forceinline__ void gr_copy16_first(uint32_t to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
static __device__ __forceinline__ void gr_copy16(uint32_t to, const void *from, bool have) {
    gr_copy16_first(to, from, have ? 16 : 0);
}
static __device__ __forceinline__ void gr_copy4(uint32_t to, const void *from, bool have) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(have ? 4 : 0) : "memory");
}
/* What was copied since the last gathers in a group; the wait is for all groups but the last `beside`, of this thread's copies. */
static __device__ __forceinline__ void gr_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int beside> static __device__ __forceinline__ void gr_copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(beside) : "memory");
}

static __device__ __forceinline__ uint32_t gr_shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* A tile: rows of D values of 2 bytes in shared memory (D a multiple of 64) at an address that is a multiple of 512. The piece of 8
 * columns number i of row r stands where i ^ r % 8 would: 8 rows of a matrix, or 8 pieces of a row, use all banks. */
template <int D> static __device__ __forceinline__ uint32_t gr_tile_at(uint32_t tile, int row, int piece) {
    return tile + (uint32_t)(row * (2 * D) + ((piece ^ (row & 7)) << 4));
}

/* Matrices of a tile for gr_ldmatrix: where the lane's row is, of rows row.. and columns 16 k... With row a multiple of 8 and k
 * known when compiled, one register serves all: k turns bits that the tile's address (a multiple of 512) has clear, rows are
 * offsets. */
template <int D> static __device__ __forceinline__ uint32_t gr_tile_lane(uint32_t tile, int lane_row, int half, int row, int k) {
    return (gr_tile_at<D>(tile, lane_row, half) ^ (uint32_t)(k << 5)) + (uint32_t)(row * (2 * D));
}
/* The left factor's rows row..row+16, columns 16 k..: a of gr_mma. */
template <int D> static __device__ __forceinline__ void gr_tile_a(uint32_t a[4], uint32_t tile, int row, int k) {
    const int lane = threadIdx.x % 32;
    gr_ldmatrix(a, gr_tile_lane<D>(tile, lane % 16, lane / 16, row, k));
}
/* The right factor where a tile's rows are its columns: rows row..row+16, columns 16 k..; b[0], b[1] of the first 8 rows. */
template <int D> static __device__ __forceinline__ void gr_tile_b_of_rows(uint32_t b[4], uint32_t tile, int row, int k) {
    const int lane = threadIdx.x % 32;
    gr_ldmatrix(b, gr_tile_lane<D>(tile, lane / 16 * 8 + lane % 8, lane / 8 % 2, row, k));
}
/* The right factor itself: rows row..row+16, columns 16 k..; b[0], b[1] of the first 8 columns. */
template <int D> static __device__ __forceinline__ void gr_tile_b(uint32_t b[4], uint32_t tile, int row, int k) {
    const int lane = threadIdx.x % 32;
    gr_ldmatrix_transposed(b, gr_tile_lane<D>(tile, lane % 16, lane / 16, row, k));
}

/* Starts copying a tile of N rows by THREADS threads: rows row..row+rows of x, whose first `columns` (a multiple of 8) count; zeros
 * elsewhere. x is wide, of 2 bytes. */
template <int N, int D, int THREADS>
static __device__ __forceinline__ void gr_tile_copy(uint32_t tile, const gr_view &x, int64_t row, int rows, int columns) {
    constexpr int PIECES = D / 8, AT_ONCE = THREADS / PIECES;
    static_assert(N % AT_ONCE == 0 && (AT_ONCE % 8 == 0 || AT_ONCE == 4),
                  "whole turns, of rows that are swizzled alike or by halves");
    const int r0 = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    const uint16_t *from = (const uint16_t *)x.data + (row + r0) * x.ld + piece * 8;
    const uint32_t to = gr_tile_at<D>(tile, r0, piece);
    if (piece * 8 >= columns) rows = 0;
#pragma unroll
    for (int i = 0; i < N / AT_ONCE; i++) {
        const int down = i * AT_ONCE;
        bool have = r0 + down < rows;
        gr_copy16((to ^ (uint32_t)((down & 7) << 4)) + (uint32_t)(down * (2 * D)), have ? from : (const uint16_t *)x.data, have);
        from += AT_ONCE * x.ld;
    }
}

/* Rows row..row+16 of a tile, from piece `first` on, = c of WIDTH / 8 gr_mma times by[0] for row g and by[1] for row g + 8. */
template <class T, int D, int WIDTH>
static __device__ __forceinline__ void gr_tile_put(uint32_t tile, int row, int first, const float c[][4], const float by[2]) {
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < WIDTH / 8; j++) {
        uint32_t upper = gr_pair(T(), c[j][0] * by[0], c[j][1] * by[0]), lower = gr_pair(T(), c[j][2] * by[1], c[j][3] * by[1]);
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(gr_tile_at<D>(tile, row + g, first + j) + 4 * t), "r"(upper) : "memory");
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(gr_tile_at<D>(tile, row + g + 8, first + j) + 4 * t), "r"(lower) : "memory");
    }
}

/* 16 rows of a warp go to rows `to`.. of x through rows row.. of a tile, which no other warp uses there; the first `rows` of them
 * count. */
template <class T, int D>
static __device__ __forceinline__ void gr_tile_store(const gr_view &x, int64_t to, int rows, int columns, uint32_t tile, int row,
                                                     const float c[][4], const float by[2]) {
    const int lane = threadIdx.x % 32;
    gr_tile_put<T, D, D>(tile, row, 0, c, by);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        int at = i * 32 + lane, r = at / (D / 8), piece = at % (D / 8);
        uint4 v;
        asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "r"(gr_tile_at<D>(tile, row + r, piece))
                     : "memory");
        if (r < rows && piece * 8 < columns) *(uint4 *)((uint16_t *)x.data + (to + r) * x.ld + piece * 8) = v;
    }
    __syncwarp();
}

/* 2^x, to 2 units of the last place; what is below 2^-126 becomes 0. */
static __device__ __forceinline__ float gr_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

#endif
