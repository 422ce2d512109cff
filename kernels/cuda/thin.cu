/* thin.cu - products with the few columns of adapters: h = xd A^T, dh = dy sB, dx += mask (dh A), dA, dB; dbias. Those of float32
 * are here, those of bfloat16 and half in thin_mma.cu.
 *
 * One kernel does them all: tiles of 64 x 32 results, factors through shared memory, a thread has 4 x 4 sums. Each result is one
 * chain of FMAs in the order of the contraction, whatever the number of rows is. Sums over tokens are cut in chunks of CHUNK rows
 * that are added in order. */
#include "kernels/cuda/mask.cuh"
#include "kernels/cuda/thin.h"

enum { THREADS = 128, TILE_M = 64, TILE_N = 32, TILE_K = 16, CHUNK = 512 };

/* Element (i, k) of a factor lies at row i, column k, or by_k: row k, column i. */
struct factor {
    gr_view x;
    bool by_k;
};

enum becomes { ROWS, PARTS, DROPPED };

struct result {
    float *out;      /* ROWS: [m, n]; PARTS: [chunks, m, n] */
    gr_view rows;    /* ROWS: spare columns, or absent; DROPPED: += under the mask */
    int64_t columns; /* spare ones */
    int ones;
};

/* Results (i, j..j+4). */
template <becomes WHAT>
static __device__ __forceinline__ void finish(const result &to, const gr_mask &mask, int64_t i, int64_t j, int64_t m, int64_t n,
                                              const float sum[4]) {
    if (i >= m) return;
    uint4 word = make_uint4(0, 0, 0, 0);
    if (WHAT == DROPPED && j < n)
        word = gr_philox_device(mask.seed, GR_PURPOSE_DROPOUT, mask.row_key[i], (uint64_t)mask.site << 32 | (uint64_t)(j / 4));
    const uint32_t words[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
    for (int e = 0; e < 4; e++, j++) {
        if (WHAT == PARTS && j < n) to.out[((int64_t)blockIdx.z * m + i) * n + j] = sum[e];
        if (WHAT == DROPPED && j < n && words[e] >= mask.threshold)
            gr_store(to.rows, i, j, gr_load(to.rows, i, j) + mask.scale * sum[e]);
        if (WHAT == ROWS && j < n) to.out[i * n + j] = sum[e];
        if (WHAT == ROWS && to.rows.data && j < to.columns) gr_store(to.rows, i, j, j < n ? sum[e] : j < n + to.ones ? 1.0f : 0.0f);
    }
}

/* The mask is a's: of its row and column as they lie in memory. */
template <becomes WHAT>
static __global__ void __launch_bounds__(THREADS, 4)
    multiply(factor a, factor b, gr_mask mask, int64_t m, int64_t n, int64_t k, int64_t chunk, result to) {
    __shared__ __align__(16) float as[TILE_K][TILE_M + 4], bs[TILE_K][TILE_N + 4];
    const int64_t i0 = (int64_t)blockIdx.x * TILE_M, j0 = (int64_t)blockIdx.y * TILE_N, first = (int64_t)blockIdx.z * chunk;
    const int64_t end = k - first < chunk ? k : first + chunk;
    const int t = threadIdx.x, ti = t / 8 * 4, tj = t % 8 * 4;
    const bool masked = mask.row_key && WHAT != DROPPED;
    float sum[4][4] = {};
    for (int64_t k0 = first; k0 < end; k0 += TILE_K) {
#pragma unroll
        for (int e = 0; e < TILE_M * TILE_K / THREADS; e++) {
            int at = t + e * THREADS, p = a.by_k ? at / TILE_M : at % TILE_K, i = a.by_k ? at % TILE_M : at / TILE_K;
            int64_t row = a.by_k ? k0 + p : i0 + i, col = a.by_k ? i0 + i : k0 + p;
            bool inside = i0 + i < m && k0 + p < end;
            float x = inside ? gr_load(a.x, row, col) : 0.0f;
            as[p][i] = inside && masked ? x * gr_mask_at(mask, row, col) : x;
        }
#pragma unroll
        for (int e = 0; e < TILE_N * TILE_K / THREADS; e++) {
            int at = t + e * THREADS, p = b.by_k ? at / TILE_N : at % TILE_K, j = b.by_k ? at % TILE_N : at / TILE_K;
            bool inside = j0 + j < n && k0 + p < end;
            bs[p][j] = !inside ? 0.0f : b.by_k ? gr_load(b.x, k0 + p, j0 + j) : gr_load(b.x, j0 + j, k0 + p);
        }
        __syncthreads();
#pragma unroll
        for (int p = 0; p < TILE_K; p++) {
            float4 x = *(const float4 *)&as[p][ti], y = *(const float4 *)&bs[p][tj];
            const float u[4] = {x.x, x.y, x.z, x.w}, v[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(u[i], v[j], sum[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) finish<WHAT>(to, mask, i0 + ti + i, j0 + tj, m, n, sum[i]);
}

static gr_view floats(const float *x, int64_t ld) { return gr_view_of(gr_rows{(void *)(uintptr_t)x, ld, GR_DTYPE_F32}); }

void gr_thin_down(gr_device *d, const gr_thin_rows *to, gr_rows x, const gr_dropout *mask, gr_rows w, int64_t n, int64_t C,
                  int64_t rank) {
    if (w.type != GR_DTYPE_F32) {
        gr_thin_down_mma(d, to, x, mask, w, n, C, rank);
        return;
    }
    result r = {to->h, gr_view_of(to->spare), to->R, to->ones};
    int64_t columns = to->spare.data && to->R > rank ? to->R : rank;
    dim3 grid(gr_blocks(n, TILE_M), gr_blocks(columns, TILE_N));
    GR_LAUNCH(d, multiply<ROWS>, grid, THREADS, 0, factor{gr_view_of(x), false}, factor{gr_view_of(w), false}, gr_mask_of(mask), n,
              rank, C, C, r);
}

void gr_thin_dropped(gr_device *d, gr_rows dx, const gr_dropout *mask, const float *dh, gr_rows A, int64_t n, int64_t K,
                     int64_t rank) {
    result r = {NULL, gr_view_of(dx), 0, 0};
    dim3 grid(gr_blocks(n, TILE_M), gr_blocks(K, TILE_N));
    GR_LAUNCH(d, multiply<DROPPED>, grid, THREADS, 0, factor{floats(dh, rank), false}, factor{gr_view_of(A), true},
              gr_mask_of(mask), n, K, rank, rank, r);
}

/* ---- gradients: sums over tokens ---- */

/* dB and dA of every LoRA += what the chunks of [N, rank] and [K, rank] have in order; NULL: not of these. */
static __global__ void add_chunks(const __grid_constant__ gr_thin t, const float *of_B, const float *of_A, int64_t chunks,
                                  int64_t N, int64_t K) {
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, first = of_B ? N * t.rank : 0;
    const bool B = at < first;
    const int64_t C = B ? N : K;
    if (!B) at -= first;
    if (at >= C * t.rank || (!B && !of_A)) return;
    const float *parts = (B ? of_B : of_A) + at;
    const int64_t c = at / t.rank;
    const int32_t r = (int32_t)(at % t.rank);
    for (int i = 0; i < t.n; i++) {
        int32_t column = r - t.lora[i].first;
        int64_t row = c - t.lora[i].row;
        bool inside = column >= 0 && column < t.lora[i].rank && (!B || (row >= 0 && row < t.lora[i].rows));
        if (!inside || !(B ? t.lora[i].dB : t.lora[i].dA)) continue;
        float sum = 0;
        for (int64_t z = 0; z < chunks; z++) sum += parts[z * C * t.rank];
        if (B) t.lora[i].dB[row * t.lora[i].rank + column] += t.lora[i].scale * sum;
        else t.lora[i].dA[column * C + c] += sum;
    }
}

/* Parts of both gradients, where their rows are given. */
static void make_parts(gr_device *d, const gr_thin_job job[2], gr_dtype type, int64_t n, int64_t rank) {
    if (type != GR_DTYPE_F32) gr_thin_parts_mma(d, job, n, CHUNK, rank);
    for (int i = 0; i < 2 && type == GR_DTYPE_F32; i++) {
        if (!job[i].x.data) continue;
        dim3 grid(gr_blocks(job[i].C, TILE_M), gr_blocks(rank, TILE_N), gr_blocks(n, CHUNK));
        GR_LAUNCH(d, multiply<PARTS>, grid, THREADS, 0, factor{gr_view_of(job[i].x), true}, factor{floats(job[i].g, rank), true},
                  gr_mask_of(job[i].mask), job[i].C, rank, n, CHUNK, result{job[i].parts, gr_view{}, 0, 0});
    }
}

void gr_thin_backward(gr_device *d, const gr_thin *t, const gr_thin_backward_args *p, int64_t n, int64_t K) {
    const int64_t N = gr_thin_outputs(t), chunks = (n + CHUNK - 1) / CHUNK;
    const int64_t of_B = p->wants_B ? chunks * N * t->rank : 0, of_A = p->x.data ? chunks * K * t->rank : 0;
    const int64_t of_dh = p->wants_B && p->wants_dh && p->across.type != GR_DTYPE_F32 ? gr_thin_dy_floats(t, n) : 0;
    float *parts = (float *)gr_cuda_scratch(d, GR_CUDA_PARTS, (of_B + of_A + of_dh) * 4);
    if (!parts) return;
    if (of_dh) gr_thin_dy(d, t, &p->to, p->dy, p->across, p->h, parts, parts + of_B + of_A, n, CHUNK);
    else if (p->wants_dh) gr_thin_down(d, &p->to, p->dy, NULL, p->across, n, N, t->rank);
    const bool read_again = of_B && !of_dh;
    const gr_thin_job job[2] = {{read_again ? p->taken : gr_rows{NULL, 0, GR_DTYPE_F32}, N, p->h, NULL, parts},
                                {p->x, K, p->to.h, p->mask, parts + of_B}};
    if (read_again || of_A) make_parts(d, job, p->across.type, n, t->rank);
    const int64_t sums = ((of_B ? N : 0) + (of_A ? K : 0)) * t->rank;
    GR_LAUNCH(d, add_chunks, gr_blocks(sums, 256), 256, 0, *t, of_B ? job[0].parts : NULL, of_A ? job[1].parts : NULL, chunks, N,
              K);
}

/* ---- gradients of biases ---- */

/* parts[chunk, N]: a thread per column, rows of the chunk in order. */
static __global__ void sum_columns(float *parts, gr_view dy, int64_t n, int64_t N) {
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, begin = (int64_t)blockIdx.y * CHUNK;
    if (c >= N) return;
    float sum = 0;
    for (int64_t r = begin; r < n && r < begin + CHUNK; r++) sum += gr_load(dy, r, c);
    parts[blockIdx.y * N + c] = sum;
}

static __global__ void add_columns(const __grid_constant__ gr_thin t, const float *parts, int64_t chunks, int64_t N) {
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= N) return;
    float sum = 0;
    for (int64_t z = 0; z < chunks; z++) sum += parts[z * N + c];
    for (int i = 0; i < t.members; i++) {
        int64_t row = c - t.member[i].row;
        if (t.member[i].dbias && row >= 0 && row < t.member[i].rows) t.member[i].dbias[row] += sum;
    }
}

void gr_thin_bias(gr_device *d, const gr_thin *t, gr_rows dy, int64_t n) {
    int64_t N = gr_thin_outputs(t), chunks = (n + CHUNK - 1) / CHUNK;
    float *parts = (float *)gr_cuda_scratch(d, GR_CUDA_PARTS, chunks * N * 4);
    GR_LAUNCH(d, sum_columns, dim3(gr_blocks(N, 128), (unsigned)chunks), 128, 0, parts, gr_view_of(dy), n, N);
    GR_LAUNCH(d, add_columns, gr_blocks(N, 128), 128, 0, *t, parts, chunks, N);
}
