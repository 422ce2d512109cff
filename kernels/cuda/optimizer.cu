/* optimizer.cu - updates of trained values: AdamW, the same with moments in 8 bits, Adafactor.
 *
 * All are bound by memory. Bytes an element, in float32: AdamW 28 (w, m, v read and written, g read), with moments in 8 bits 16,
 * Adafactor 20 (g read three times). A thread takes groups of 4 elements, 16 bytes of each array. AdamW's roundings are those of
 * the CPU, one by one, never fused: what the form of a value keeps (gr_trained) changes no bit of its update.
 * Elements are updated one by one; Adafactor's sums are of fixed tiles, added in order: they depend on the shape alone. */
#include "kernels/cuda/rows.cuh"
#include "kernels/dynamic8.h"
#include "kernels/philox.h"

/* ---- trained values ---- */

static bool is_aligned(const void *p, int bytes) { return (uintptr_t)p % (uintptr_t)bytes == 0; } /* NULL is */

static bool values_aligned(const gr_trained *w) {
    return is_aligned(w->f32, 16) && is_aligned(w->bf16, 8) && is_aligned(w->low, 8);
}

/* Four halves from i on of p[n]; those from n on are 0. */
static __device__ __forceinline__ void load_halves(uint32_t x[4], const uint16_t *p, int64_t i, int64_t n, bool wide) {
    if (wide && i + 4 <= n) {
        uint2 a = *(const uint2 *)(p + i);
        x[0] = a.x & 0xffff, x[1] = a.x >> 16, x[2] = a.y & 0xffff, x[3] = a.y >> 16;
        return;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) x[k] = i + k < n ? p[i + k] : 0;
}

static __device__ __forceinline__ void store_halves(uint16_t *p, int64_t i, int64_t n, bool wide, const uint32_t x[4]) {
    if (wide && i + 4 <= n) {
        *(uint2 *)(p + i) = make_uint2((x[0] & 0xffff) | x[1] << 16, (x[2] & 0xffff) | x[3] << 16);
        return;
    }
#pragma unroll
    for (int k = 0; k < 4; k++)
        if (i + k < n) p[i + k] = (uint16_t)x[k];
}

/* Values i..i+4 of w[n] (i a multiple of 4) as floats; those from n on are 0. */
static __device__ __forceinline__ void open4(float x[4], const gr_trained &w, int64_t i, int64_t n, bool wide) {
    if (w.f32) {
        gr_load4(x, w.f32, i, n, wide, 0);
        return;
    }
    uint32_t high[4], low[4] = {0, 0, 0, 0};
    load_halves(high, w.bf16, i, n, wide);
    if (w.low) load_halves(low, w.low, i, n, wide);
#pragma unroll
    for (int k = 0; k < 4; k++) x[k] = __uint_as_float((high[k] - (low[k] >> 15)) << 16 | low[k]);
}

/* The random halves of elements e..e+4, the first in the lowest bits: those of counter e / 8 from half e % 8 on, where they end
 * those of the next. */
static __device__ __forceinline__ uint64_t four_halves(uint64_t seed, uint64_t e, uint64_t step) {
    uint32_t word[4];
    gr_philox(word, seed, GR_PURPOSE_ROUND, step, e / 8);
    const uint64_t a = (uint64_t)word[1] << 32 | word[0], b = (uint64_t)word[3] << 32 | word[2];
    uint64_t from = a, then = b;
    if (e % 8 >= 4) {
        from = b, then = 0;
        if (e % 4 != 0) {
            gr_philox(word, seed, GR_PURPOSE_ROUND, step, e / 8 + 1);
            then = (uint64_t)word[1] << 32 | word[0];
        }
    }
    const int bits = (int)(e % 4) * 16;
    return bits ? from >> bits | then << (64 - bits) : from;
}

static __device__ __forceinline__ void close4(const gr_trained &w, int64_t i, int64_t n, bool wide, const float x[4],
                                              uint64_t step) {
    if (w.f32) {
        gr_store4(w.f32, i, n, wide, x);
        return;
    }
    uint32_t high[4], low[4];
    const uint64_t random = w.low ? 0 : four_halves(w.seed, w.first + (uint64_t)i, step);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        low[k] = __float_as_uint(x[k]);
        high[k] = (low[k] + (w.low ? 0x8000 : (uint32_t)(random >> 16 * k) & 0xffff)) >> 16;
    }
    store_halves(w.bf16, i, n, wide, high);
    if (w.low) store_halves(w.low, i, n, wide, low);
}

static __device__ bool forbidden(const gr_step_stats *s) { return s->nonfinite || s->halt; }

/* ---- AdamW ---- */

enum { THREADS = 256, GROUPS = 4, BLOCK_VALUES = 4 * THREADS * GROUPS };

/* What all values of a step share. */
struct adamw_step {
    float clip, step, v_scale;
};

/* What the host can make of it. */
struct adamw_how {
    float lr, beta1, beta2, rest1, rest2, epsilon, decay; /* rest: 1 - beta */
};

static adamw_how how_of(const gr_adamw *p) {
    return adamw_how{p->lr, p->beta1, p->beta2, 1 - p->beta1, 1 - p->beta2, p->epsilon, 1 - p->lr * p->weight_decay};
}

/* Powers in double are long: one thread of a block makes them. All threads take part. */
static __device__ __forceinline__ adamw_step step_of(const adamw_how &p, const gr_step_stats *s) {
    __shared__ adamw_step shared;
    if (threadIdx.x == 0) {
        const double t = (double)s->optimizer_step;
        shared.clip = s->clip;
        shared.step = (float)(p.lr / (1 - pow((double)p.beta1, t)));
        shared.v_scale = (float)(1 / sqrt(1 - pow((double)p.beta2, t)));
    }
    __syncthreads();
    return shared;
}

static __device__ __forceinline__ void adamw4(float w[4], float m[4], float v[4], const float g[4], const adamw_how &p,
                                              const adamw_step &a) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const float grad = __fmul_rn(g[k], a.clip);
        m[k] = __fadd_rn(__fmul_rn(p.beta1, m[k]), __fmul_rn(p.rest1, grad));
        v[k] = __fadd_rn(__fmul_rn(p.beta2, v[k]), __fmul_rn(__fmul_rn(p.rest2, grad), grad));
        const float size = __fadd_rn(__fmul_rn(__fsqrt_rn(v[k]), a.v_scale), p.epsilon);
        w[k] = __fsub_rn(__fmul_rn(w[k], p.decay), __fdiv_rn(__fmul_rn(a.step, m[k]), size));
    }
}

static __global__ void __launch_bounds__(THREADS)
    adamw_groups(gr_trained w, float *m, float *v, const float *g, int64_t n, adamw_how p, const gr_step_stats *s, bool wide) {
    if (forbidden(s)) return;
    const adamw_step a = step_of(p, s);
    const uint64_t step = (uint64_t)s->optimizer_step;
#pragma unroll 1
    for (int j = 0; j < GROUPS; j++) {
        const int64_t i = (int64_t)blockIdx.x * BLOCK_VALUES + 4 * (j * THREADS + (int)threadIdx.x);
        if (i >= n) return;
        float x[4], m4[4], v4[4], g4[4];
        open4(x, w, i, n, wide);
        gr_load4(m4, m, i, n, wide, 0), gr_load4(v4, v, i, n, wide, 0), gr_load4(g4, g, i, n, wide, 0);
        adamw4(x, m4, v4, g4, p, a);
        gr_store4(m, i, n, wide, m4), gr_store4(v, i, n, wide, v4);
        close4(w, i, n, wide, x, step);
    }
}

void gr_adamw_cuda(gr_device *d, const gr_trained *w, float *m, float *v, const float *g, int64_t n, const gr_adamw *p,
                   const gr_step_stats *s) {
    const bool wide = values_aligned(w) && is_aligned(m, 16) && is_aligned(v, 16) && is_aligned(g, 16);
    GR_LAUNCH(d, adamw_groups, gr_blocks(n, BLOCK_VALUES), THREADS, 0, *w, m, v, g, n, how_of(p), s, wide);
}

/* ---- AdamW with moments in 8 bits ---- */

enum { HALF_BLOCK = GR_MOMENTS_BLOCK / 2, WARPS = THREADS / 32, BLOCKS_PER_SM = 4 }; /* a warp takes half a block at a time */

/* Both maps, that of m first, on the device; made at the first call. NULL where that failed. */
static const gr_dynamic8 *maps_of(gr_device *d) {
    const bool made = gr_cuda_of(d)->scratch[GR_CUDA_MAPS] != NULL;
    gr_dynamic8 map[2], *there = (gr_dynamic8 *)gr_cuda_scratch(d, GR_CUDA_MAPS, sizeof map);
    if (made || !there) return there;
    gr_dynamic8_make(&map[0], true), gr_dynamic8_make(&map[1], false);
    d->upload(d, there, map, sizeof map);
    return there;
}

static __device__ __forceinline__ void open_codes(float x[4], const uint8_t *code, float scale, int64_t i, int64_t n, bool wide,
                                                  const gr_dynamic8 *map) {
    uint32_t four = 0;
    if (wide && i + 4 <= n) four = *(const uint32_t *)(code + i);
    else
#pragma unroll
        for (int k = 0; k < 4; k++) four |= i + k < n ? (uint32_t)code[i + k] << 8 * k : 0;
#pragma unroll
    for (int k = 0; k < 4; k++) x[k] = i + k < n ? __fmul_rn(map->value[four >> 8 * k & 0xff], scale) : 0.0f;
}

/* Codes of a block of moments, of which a lane has groups at i and at i + HALF_BLOCK; the scale, in all lanes. */
static __device__ __forceinline__ float close_codes(uint8_t *code, const float x[2][4], int64_t i, int64_t n, bool wide,
                                                    const gr_dynamic8 *map) {
    uint32_t top = 0; /* sizes rise with their bits */
#pragma unroll
    for (int k = 0; k < 8; k++) top = max(top, __float_as_uint(x[k / 4][k % 4]) & 0x7fffffff);
    float largest = __uint_as_float(__reduce_max_sync(0xffffffffu, top));
    if (largest < 0x1p-126f) largest = 0; /* no number to divide by */
    const float inverse = largest > 0 ? __frcp_rn(largest) : 0.0f;
#pragma unroll
    for (int h = 0; h < 2; h++, i += HALF_BLOCK) {
        uint32_t four = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) four |= (uint32_t)gr_dynamic8_code(map, __fmul_rn(x[h][k], inverse)) << 8 * k;
        if (wide && i + 4 <= n) *(uint32_t *)(code + i) = four;
        else
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (i + k < n) code[i + k] = (uint8_t)(four >> 8 * k);
    }
    return largest;
}

/* A warp takes a block of moments after the other, with the maps in shared memory. */
static __global__ void __launch_bounds__(THREADS, BLOCKS_PER_SM)
    adamw_8bit_blocks(gr_trained w, gr_moments8 c, const float *g, int64_t n, adamw_how p, const gr_step_stats *s,
                      const gr_dynamic8 *maps, bool wide) {
    __shared__ gr_dynamic8 map[2];
    if (forbidden(s)) return;
    for (unsigned i = threadIdx.x; i < sizeof map / 4; i += THREADS) ((uint32_t *)map)[i] = ((const uint32_t *)maps)[i];
    const adamw_step a = step_of(p, s); /* a barrier */
    const uint64_t step = (uint64_t)s->optimizer_step;
    const int lane = threadIdx.x % 32;
    for (int64_t b = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; b * GR_MOMENTS_BLOCK < n; b += (int64_t)gridDim.x * WARPS) {
        const int64_t i = b * GR_MOMENTS_BLOCK + 4 * lane;
        const float m_scale = c.m_scale[b], v_scale = c.v_scale[b];
        float m[2][4], v[2][4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int64_t at = i + h * HALF_BLOCK;
            float x[4], g4[4];
            open4(x, w, at, n, wide), gr_load4(g4, g, at, n, wide, 0);
            open_codes(m[h], c.m, m_scale, at, n, wide, &map[0]), open_codes(v[h], c.v, v_scale, at, n, wide, &map[1]);
            adamw4(x, m[h], v[h], g4, p, a);
            if (at < n) close4(w, at, n, wide, x, step);
        }
        const float m_top = close_codes(c.m, m, i, n, wide, &map[0]), v_top = close_codes(c.v, v, i, n, wide, &map[1]);
        if (lane == 0) c.m_scale[b] = m_top, c.v_scale[b] = v_top;
    }
}

void gr_adamw_8bit_cuda(gr_device *d, const gr_trained *w, const gr_moments8 *m, const float *g, int64_t n, const gr_adamw *p,
                        const gr_step_stats *s) {
    const bool wide = values_aligned(w) && is_aligned(g, 16) && is_aligned(m->m, 4) && is_aligned(m->v, 4);
    const unsigned all = gr_blocks(n, WARPS * GR_MOMENTS_BLOCK), most = (unsigned)gr_cuda_of(d)->sms * BLOCKS_PER_SM;
    const gr_dynamic8 *maps = maps_of(d);
    GR_LAUNCH(d, adamw_8bit_blocks, all < most ? all : most, THREADS, 0, *w, *m, g, n, how_of(p), s, maps, wide);
}

/* ---- Adafactor ---- */

/* Tiles of a matrix: a block has one, its warps take rows in turn, a lane 4 columns at 4 * lane and 4 beyond TILE_COLS / 2. */
enum { TILE_ROWS = 128, TILE_COLS = 256, ONE_BLOCK = 1024 };

struct factor_args {
    gr_trained w;
    gr_factors f;
    const float *g;
    int64_t rows, cols, row_tiles, col_tiles;
    const gr_step_stats *s;
    float lr, decay;
    double *squares;  /* [row_tiles, col_tiles] of updates */
    float *row_parts; /* [col_tiles, rows] sums of g^2 */
    float *col_parts; /* [row_tiles, cols] */
    float *mean;      /* of the rows */
    float *shorten;   /* what updates are multiplied with */
    bool wide;
};

static __device__ __forceinline__ float square_of(float g, float clip) {
    const float x = g * clip;
    return x * x + 1e-30f;
}

/* What stays of what was there. All threads take part. */
static __device__ __forceinline__ float kept(const gr_step_stats *s) {
    __shared__ float keep;
    if (threadIdx.x == 0) keep = (float)(1 - pow((double)s->optimizer_step, -0.8));
    __syncthreads();
    return keep;
}

/* From the sum of squares of n updates. */
static __device__ float shortened(double sum, int64_t n) {
    const double rms = sqrt(sum / (double)n);
    return rms > 1 ? (float)(1 / rms) : 1.0f;
}

/* Where a thread is in its block's tile. */
struct tile_place {
    int64_t row, last, col; /* its first row, the first that is no row of the tile, its first column */
};

static __device__ __forceinline__ tile_place place_of(const factor_args &a) {
    const int64_t first = blockIdx.x / a.col_tiles * TILE_ROWS, last = first + TILE_ROWS;
    return tile_place{first + threadIdx.x / 32, last < a.rows ? last : a.rows,
                      blockIdx.x % a.col_tiles * TILE_COLS + 4 * (int)(threadIdx.x % 32)};
}

static __global__ void __launch_bounds__(THREADS) factor_sums(factor_args a) {
    __shared__ float sums[WARPS][TILE_COLS];
    if (forbidden(a.s)) return;
    const tile_place t = place_of(a);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float clip = a.s->clip;
    float col_sum[2][4] = {{0}};
#pragma unroll 4
    for (int64_t r = t.row; r < t.last; r += WARPS) {
        const float *g = a.g + r * a.cols;
        float x[2][4], row_sum = 0;
#pragma unroll
        for (int h = 0; h < 2; h++) gr_load4(x[h], g, t.col + h * (TILE_COLS / 2), a.cols, a.wide, 0);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float square = t.col + k / 4 * (TILE_COLS / 2) + k % 4 < a.cols ? square_of(x[k / 4][k % 4], clip) : 0.0f;
            col_sum[k / 4][k % 4] += square, row_sum += square;
        }
        row_sum = gr_warp_sum(row_sum);
        if (lane == 0) a.row_parts[blockIdx.x % a.col_tiles * a.rows + r] = row_sum;
    }
#pragma unroll
    for (int k = 0; k < 8; k++) sums[warp][k / 4 * (TILE_COLS / 2) + 4 * lane + k % 4] = col_sum[k / 4][k % 4];
    __syncthreads();
    const int64_t col = blockIdx.x % a.col_tiles * TILE_COLS + threadIdx.x;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) sum += sums[i][threadIdx.x];
    if (col < a.cols) a.col_parts[blockIdx.x / a.col_tiles * a.cols + col] = sum;
}

/* A thread per row, then per column: its tiles in order. */
static __global__ void __launch_bounds__(THREADS) factor_means(factor_args a) {
    if (forbidden(a.s)) return;
    const float keep = kept(a.s);
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= a.rows + a.cols) return;
    const bool of_row = i < a.rows;
    const int64_t at = of_row ? i : i - a.rows, stride = of_row ? a.rows : a.cols, tiles = of_row ? a.col_tiles : a.row_tiles;
    const float *parts = (of_row ? a.row_parts : a.col_parts) + at;
    float *mean = (of_row ? a.f.row : a.f.col) + at;
    double sum = 0;
#pragma unroll 8
    for (int64_t t = 0; t < tiles; t++) sum += (double)parts[t * stride];
    *mean = keep * *mean + (1 - keep) * (float)(sum / (double)(of_row ? a.cols : a.rows));
}

static __global__ void __launch_bounds__(ONE_BLOCK) mean_of_rows(factor_args a) {
    __shared__ double warps[32];
    if (forbidden(a.s)) return;
    double sum = 0;
    for (int64_t r = threadIdx.x; r < a.rows; r += ONE_BLOCK) sum += (double)a.f.row[r];
    sum = gr_block_sum(sum, warps);
    if (threadIdx.x == 0) *a.mean = (float)(sum / (double)a.rows);
}

/* What g of a column is multiplied with, beside the factor of its row; 0 beyond the last. */
static __device__ __forceinline__ void col_factors(float by[2][4], const factor_args &a, const tile_place &t) {
#pragma unroll
    for (int k = 0; k < 8; k++) {
        const int64_t col = t.col + k / 4 * (TILE_COLS / 2) + k % 4;
        by[k / 4][k % 4] = col < a.cols ? 1 / sqrtf(a.f.col[col]) : 0.0f;
    }
}

static __device__ __forceinline__ float row_factor(const factor_args &a, int64_t r, float mean, float clip) {
    return clip / sqrtf(a.f.row[r] / mean);
}

static __global__ void __launch_bounds__(THREADS) factor_squares(factor_args a) {
    __shared__ double warps[32];
    if (forbidden(a.s)) return;
    const tile_place t = place_of(a);
    const float clip = a.s->clip, mean = *a.mean;
    float by_col[2][4], sum = 0;
    col_factors(by_col, a, t);
#pragma unroll 4
    for (int64_t r = t.row; r < t.last; r += WARPS) {
        const float *g = a.g + r * a.cols, by = row_factor(a, r, mean, clip);
        float x[2][4];
#pragma unroll
        for (int h = 0; h < 2; h++) gr_load4(x[h], g, t.col + h * (TILE_COLS / 2), a.cols, a.wide, 0);
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float u = by * by_col[k / 4][k % 4] * x[k / 4][k % 4];
            sum += u * u;
        }
    }
    const double all = gr_block_sum((double)sum, warps);
    if (threadIdx.x == 0) a.squares[blockIdx.x] = all;
}

static __global__ void __launch_bounds__(ONE_BLOCK) factor_shorten(factor_args a) {
    __shared__ double warps[32];
    if (forbidden(a.s)) return;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < a.row_tiles * a.col_tiles; i += ONE_BLOCK) sum += a.squares[i];
    sum = gr_block_sum(sum, warps);
    if (threadIdx.x == 0) *a.shorten = shortened(sum, a.rows * a.cols);
}

static __global__ void __launch_bounds__(THREADS) factor_values(factor_args a) {
    if (forbidden(a.s)) return;
    const tile_place t = place_of(a);
    const float clip = a.s->clip, mean = *a.mean, shorten = *a.shorten;
    const uint64_t step = (uint64_t)a.s->optimizer_step;
    float by_col[2][4];
    col_factors(by_col, a, t);
#pragma unroll 1
    for (int64_t r = t.row; r < t.last; r += WARPS) {
        const float by = row_factor(a, r, mean, clip);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int64_t col = t.col + h * (TILE_COLS / 2), at = r * a.cols + col, end = (r + 1) * a.cols;
            float x[4], g[4];
            if (col >= a.cols) break;
            open4(x, a.w, at, end, a.wide), gr_load4(g, a.g, at, end, a.wide, 0);
#pragma unroll
            for (int k = 0; k < 4; k++) x[k] = x[k] * a.decay - a.lr * (by * by_col[h][k] * g[k] * shorten);
            close4(a.w, at, end, a.wide, x, step);
        }
    }
}

/* A vector is short: one block. */
static __global__ void __launch_bounds__(ONE_BLOCK) factor_vector(factor_args a) {
    __shared__ double warps[32];
    if (forbidden(a.s)) return;
    const float keep = kept(a.s), clip = a.s->clip;
    const int64_t n = a.rows * a.cols;
    const uint64_t step = (uint64_t)a.s->optimizer_step;
    double sum = 0;
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < n; i += 4 * ONE_BLOCK) {
        float g[4], all[4];
        gr_load4(g, a.g, i, n, a.wide, 0), gr_load4(all, a.f.all, i, n, a.wide, 0);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            all[k] = keep * all[k] + (1 - keep) * square_of(g[k], clip);
            const double u = (double)(g[k] * clip / sqrtf(all[k])); /* beyond n: 0 */
            sum += u * u;
        }
        gr_store4(a.f.all, i, n, a.wide, all);
    }
    const float shorten = shortened(gr_block_sum(sum, warps), n);
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < n; i += 4 * ONE_BLOCK) {
        float x[4], g[4], all[4];
        open4(x, a.w, i, n, a.wide), gr_load4(g, a.g, i, n, a.wide, 0), gr_load4(all, a.f.all, i, n, a.wide, 1);
#pragma unroll
        for (int k = 0; k < 4; k++) x[k] = x[k] * a.decay - a.lr * (g[k] * clip / sqrtf(all[k]) * shorten);
        close4(a.w, i, n, a.wide, x, step);
    }
}

void gr_adafactor_cuda(gr_device *d, const gr_trained *w, const gr_factors *f, const float *g, int64_t rows, int64_t cols,
                       const gr_adamw *p, const gr_step_stats *s) {
    factor_args a = {};
    a.w = *w, a.f = *f, a.g = g, a.rows = rows, a.cols = cols;
    a.row_tiles = gr_blocks(rows, TILE_ROWS), a.col_tiles = gr_blocks(cols, TILE_COLS);
    a.s = s, a.lr = p->lr, a.decay = 1 - p->lr * p->weight_decay;
    a.wide = values_aligned(w) && is_aligned(g, 16) && is_aligned(f->all, 16) && (f->all || cols % 4 == 0);
    if (rows * cols == 0) return;
    if (f->all) {
        GR_LAUNCH(d, factor_vector, 1, ONE_BLOCK, 0, a);
        return;
    }
    const int64_t tiles = a.row_tiles * a.col_tiles, parts = a.col_tiles * rows + a.row_tiles * cols;
    a.squares = (double *)gr_cuda_scratch(d, GR_CUDA_PARTS, tiles * (int64_t)sizeof(double) + (parts + 2) * (int64_t)sizeof(float));
    a.row_parts = (float *)(a.squares + tiles), a.col_parts = a.row_parts + a.col_tiles * rows;
    a.mean = a.col_parts + a.row_tiles * cols, a.shorten = a.mean + 1;
    GR_LAUNCH(d, factor_sums, (unsigned)tiles, THREADS, 0, a);
    GR_LAUNCH(d, factor_means, gr_blocks(rows + cols, THREADS), THREADS, 0, a);
    GR_LAUNCH(d, mean_of_rows, 1, ONE_BLOCK, 0, a);
    GR_LAUNCH(d, factor_squares, (unsigned)tiles, THREADS, 0, a);
    GR_LAUNCH(d, factor_shorten, 1, ONE_BLOCK, 0, a);
    GR_LAUNCH(d, factor_values, (unsigned)tiles, THREADS, 0, a);
}
