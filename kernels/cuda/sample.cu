/* sample.cu - the next token where its logits are: an id is moved to the host, or 8 KiB of a listing, instead of a row of the
 * vocabulary.
 *
 * best_column is bound by reading V floats a row, which the head has just written and the cache mostly still has: a block a row, 16
 * bytes a load, 64 KiB under way. A multiprocessor takes 64 bytes a clock at most: a row of 150,000 is some 6 us of one, beside the
 * head's product, that reads C values a logit.
 *
 * list_columns reads a row twice, a block a row too. First the largest of each of 4,096 groups of columns (every 4,096th): the
 * 1,024th of these is a floor that at least 1,024 logits reach, and rarely more than 1,200. Then what reaches it is collected, and
 * of the rest exponentials are summed; what was collected is sorted. Of a row of 150,000: 6 us, the floor 2 (32 counts, a bit
 * each), 9 for the second way (instructions, not bytes, some 12 a logit), sorting 3. All rows of a batch run at once. Where
 * more than 4,096 reach the floor (equal logits, mostly), the exact one is found by a read of the row for each bit of it that is
 * open: 50 at most.
 * The rest's sum: a term has the relative error of its exponent's three roundings, 3 * 2^-24 |a|, and of exp2f, 2^-22; the mean of
 * |a| over terms exp(a) that sum up to R is at most ln V - ln R, and 47 for V = 2^18 and R = 1e-15. With the sum of four, 2^-23,
 * 9e-6 of R, and at most 9e-21 where R is smaller. That is within GR_LISTING_ERROR and GR_LISTING_LEAST. */
#include <float.h>

#include "kernels/cuda/rows.cuh"

enum { ROW_THREADS = 1024, AHEAD = 4, STRIDE = 4 * ROW_THREADS }; /* groups of 4 columns that are loaded at once */

/* The largest so far and its column; minus infinity: none was finite. */
struct best_value {
    float value;
    int32_t column;
};

/* Columns come in order: the first of equals stays. */
static __device__ __forceinline__ void take_group(best_value *best, const float x[4], int64_t col) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (x[i] > best->value && x[i] < INFINITY) *best = best_value{x[i], (int32_t)col + i};
}

/* The best of a warp, in all its lanes. */
static __device__ __forceinline__ best_value best_of_warp(best_value best) {
#pragma unroll
    for (int i = 16; i > 0; i /= 2) {
        const float value = __shfl_xor_sync(0xffffffffu, best.value, i);
        const int32_t column = __shfl_xor_sync(0xffffffffu, best.column, i);
        if (value > best.value || (value == best.value && column < best.column)) best = best_value{value, column};
    }
    return best;
}

static __global__ void __launch_bounds__(ROW_THREADS)
    best_columns(int32_t *to, const float *logits, int64_t ld, int64_t V, bool wide) {
    __shared__ best_value warps[ROW_THREADS / 32];
    const float *row = logits + blockIdx.x * ld;
    const int64_t in_steps = wide ? V / (AHEAD * STRIDE) * (AHEAD * STRIDE) : 0;
    best_value best = {-INFINITY, INT32_MAX};
    int64_t col = 4 * (int64_t)threadIdx.x;
    float x[AHEAD][4];
    for (; col < in_steps; col += AHEAD * STRIDE) {
#pragma unroll
        for (int j = 0; j < AHEAD; j++) gr_load4(x[j], row, col + j * STRIDE, INT64_MAX, true, -INFINITY);
#pragma unroll
        for (int j = 0; j < AHEAD; j++) take_group(&best, x[j], col + j * STRIDE);
    }
    for (; col < V; col += STRIDE) {
        gr_load4(x[0], row, col, V, wide, -INFINITY);
        take_group(&best, x[0], col);
    }
    best = best_of_warp(best);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    best = best_of_warp(warps[threadIdx.x]);
    if (threadIdx.x == 0) to[blockIdx.x] = best.value > -INFINITY ? best.column : -1;
}

void gr_best_column_cuda(gr_device *d, int32_t *best, gr_rows logits, int64_t n, int64_t V) {
    if (logits.type != GR_DTYPE_F32) gr_cuda_refuse(d, "best_column: logits are not float32");
    GR_LAUNCH(d, best_columns, (unsigned)n, ROW_THREADS, 0, best, (const float *)logits.data, logits.ld, V,
              gr_view_of(logits).wide);
}

/* ---- listings ---- */

enum { ROOM = 4096 }; /* for what reaches the floor */

/* What a block knows of its row. */
struct listed_row {
    const float *x;
    int32_t V;
    bool wide;
};

/* The order of logits in numbers above 0; 0: it is not finite. 0 and -0 are equal. */
static __device__ __forceinline__ uint32_t rank_of(float x) {
    const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
    return fabsf(x) < INFINITY ? bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u) : 0;
}

static __device__ __forceinline__ float of_rank(uint32_t rank) {
    return __uint_as_float(rank & 0x80000000u ? rank ^ 0x80000000u : ~rank);
}

/* Columns col..col+4 of AHEAD strides; those from V on become minus infinity. */
static __device__ __forceinline__ void load_turn(float x[AHEAD][4], const listed_row &r, int32_t col) {
    if (r.wide && col - 4 * (int32_t)threadIdx.x + AHEAD * STRIDE <= r.V) { /* the same for all threads */
#pragma unroll
        for (int j = 0; j < AHEAD; j++) gr_load4(x[j], r.x, col + j * STRIDE, INT64_MAX, true, -INFINITY);
        return;
    }
#pragma unroll
    for (int j = 0; j < AHEAD; j++) gr_load4(x[j], r.x, col + j * STRIDE, r.V, r.wide, -INFINITY);
}

/* Sum over the threads of a block, in all of them; counts[2][32] is shared memory of these sums alone, `turn` is not that of the
 * call before. */
static __device__ __forceinline__ int32_t block_count(int32_t n, int32_t counts[2][ROW_THREADS / 32], int turn) {
    n = __reduce_add_sync(0xffffffffu, n);
    if (threadIdx.x % 32 == 0) counts[turn][threadIdx.x / 32] = n;
    __syncthreads();
    return __reduce_add_sync(0xffffffffu, counts[turn][threadIdx.x % 32]);
}

/* How many logits of the thread are above `rank`, or have it and stand before column `before`. */
static __device__ int32_t count_row(const listed_row &r, uint32_t rank, int32_t before) {
    int32_t n = 0;
    float x[AHEAD][4];
    for (int32_t col = 4 * (int32_t)threadIdx.x; col < r.V; col += AHEAD * STRIDE) {
        load_turn(x, r, col);
#pragma unroll
        for (int i = 0; i < AHEAD * 4; i++) {
            const uint32_t own = rank_of(x[i / 4][i % 4]);
            n += own > rank || (own == rank && col + i / 4 * STRIDE + i % 4 < before);
        }
    }
    return n;
}

/* What is listed: logits above the floor, and of those that equal it those up to a column. */
struct list_floor {
    uint32_t rank;
    int32_t last;
};

/* The floor that exactly GR_LISTED logits of the row reach, its rank within low..high: a bit at a time, first of its rank, then of
 * its column. */
static __device__ __forceinline__ list_floor exact_floor(const listed_row &r, uint32_t low, uint32_t high,
                                                         int32_t counts[2][ROW_THREADS / 32]) {
    int bit = low == high ? -1 : 31 - __clz((int)(low ^ high)), turn = 0;
    list_floor cut = {bit < 0 ? low : low >> bit >> 1 << bit << 1, 0};
    for (; bit >= 0; bit--) {
        const uint32_t higher = cut.rank | 1u << bit;
        if (block_count(count_row(r, higher - 1, 0), counts, turn ^= 1) >= GR_LISTED) cut.rank = higher;
    }
    for (bit = 31 - __clz(r.V); bit >= 0; bit--) { /* the last column before which there are too few */
        const int32_t later = cut.last | 1 << bit;
        if (block_count(count_row(r, cut.rank, later), counts, turn ^= 1) < GR_LISTED) cut.last = later;
    }
    return cut;
}

/* What reaches the floor goes to found[ROOM], in any order: *n of them, also where that is more. Gives the thread's sum of
 * 2^((x - top) * scale) of the other finite ones. */
static __device__ double collect(uint64_t *found, int32_t *n, const listed_row &r, list_floor cut, float top, float scale) {
    const float least = of_rank(cut.rank);
    double sum = 0;
    float x[AHEAD][4];
    for (int32_t col = 4 * (int32_t)threadIdx.x; col < r.V; col += AHEAD * STRIDE) {
        load_turn(x, r, col);
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            float term[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int32_t at = col + j * STRIDE + i;
                const float now = x[j][i];
                const bool finite = fabsf(now) < INFINITY;
                term[i] = finite ? exp2f(__fmul_rn(__fsub_rn(now, top), scale)) : 0.0f;
                if (!finite || now < least || (now == least && at > cut.last)) continue;
                term[i] = 0;
                const int32_t place = atomicAdd(n, 1);
                if (place < ROOM) found[place] = (uint64_t)rank_of(now) << 32 | ~(uint32_t)at;
            }
            sum += __fadd_rn(__fadd_rn(term[0], term[1]), __fadd_rn(term[2], term[3]));
        }
    }
    return sum;
}

/* found[n] (a power of two) in descending order: Batcher's bitonic sort. */
static __device__ __forceinline__ void sort_found(uint64_t *found, int32_t n) {
    for (int32_t run = 2; run <= n; run *= 2)
        for (int32_t apart = run / 2; apart > 0; apart /= 2) {
            for (int32_t p = (int32_t)threadIdx.x; p < n / 2; p += ROW_THREADS) {
                const int32_t i = 2 * p - (p & (apart - 1));
                const uint64_t a = found[i], b = found[i + apart];
                if ((a < b) == ((i & run) == 0)) found[i] = b, found[i + apart] = a;
            }
            __syncthreads();
        }
}

static __global__ void __launch_bounds__(ROW_THREADS)
    list_rows(gr_listing *list, const float *logits, int64_t ld, int64_t V, bool wide, float temperature, float scale) {
    __shared__ uint64_t found[ROOM];
    __shared__ double sums[2][32];
    __shared__ float tops[32];
    __shared__ int32_t counts[2][ROW_THREADS / 32], n_found;
    const listed_row r = {logits + blockIdx.x * ld, (int32_t)V, wide};
    gr_listing *to = list + blockIdx.x;
    float x[AHEAD][4], most[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    int32_t finite = 0;
    for (int32_t col = 4 * (int32_t)threadIdx.x; col < r.V; col += AHEAD * STRIDE) {
        load_turn(x, r, col);
#pragma unroll
        for (int i = 0; i < AHEAD * 4; i++)
            if (fabsf(x[i / 4][i % 4]) < INFINITY) finite++, most[i % 4] = fmaxf(most[i % 4], x[i / 4][i % 4]);
    }
    float top = gr_warp_max(fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3])));
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
    if (threadIdx.x == 0) n_found = 0;
    finite = block_count(finite, counts, 0);
    top = gr_warp_max(tops[threadIdx.x % 32]);

    list_floor cut = {0, INT32_MAX};
    for (int bit = 31; bit >= 0; bit--) {
        const uint32_t higher = cut.rank | 1u << bit;
        int32_t n = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) n += rank_of(most[i]) >= higher;
        if (block_count(n, counts, bit & 1) >= GR_LISTED) cut.rank = higher;
    }
    if (cut.rank == 0) cut.rank = rank_of(-FLT_MAX); /* all that are finite */
    double rest;
    for (;;) { /* once, or twice */
        rest = collect(found, &n_found, r, cut, top, scale);
        __syncthreads();
        if (n_found <= ROOM) break;
        cut = exact_floor(r, cut.rank, rank_of(top), counts);
        if (threadIdx.x == 0) n_found = 0;
        __syncthreads();
    }

    const int32_t n = n_found;
    int32_t room = 2;
    while (room < n) room *= 2;
    for (int32_t i = n + (int32_t)threadIdx.x; i < room; i += ROW_THREADS) found[i] = 0;
    __syncthreads();
    sort_found(found, room);
    double listed = 0;
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += ROW_THREADS) {
        const gr_listed entry = {of_rank((uint32_t)(found[i] >> 32)), (int32_t) ~(uint32_t)found[i]};
        const double weight = exp(((double)entry.value - (double)top) / (double)temperature);
        if (i < GR_LISTED) to->entry[i] = entry, listed += weight;
        else rest += weight;
    }
    listed = gr_block_sum(listed, sums[0]), rest = gr_block_sum(rest, sums[1]);
    if (threadIdx.x == 0) to->n = min(n, (int32_t)GR_LISTED), to->finite = finite, to->listed = listed, to->rest = rest;
}

void gr_list_columns_cuda(gr_device *d, gr_listing *list, gr_rows logits, int64_t n, int64_t V, float temperature) {
    if (logits.type != GR_DTYPE_F32) gr_cuda_refuse(d, "list_columns: logits are not float32");
    GR_LAUNCH(d, list_rows, (unsigned)n, ROW_THREADS, 0, list, (const float *)logits.data, logits.ld, V, gr_view_of(logits).wide,
              temperature, (float)(1.4426950408889634 / temperature));
}
