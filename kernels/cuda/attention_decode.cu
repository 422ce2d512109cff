/* attention_decode.cu - attention of single queries on a cache: of a token that is generated.
 *
 * Bound by reading keys and values once (2 K D elements a position). A block has a piece of a sequence's positions and a key/value
 * head, for the heads of its group HEADS at a time: pieces of PIECE positions, or of as many times PIECE as make PIECES of them at
 * most, by the number of positions alone. A lane has 8 columns, its neighbours the next. Pieces, each with its own largest score,
 * are added up in their order by a second kernel: what other sequences there are changes no bit. */
#include "kernels/cuda/attention.cuh"

enum { THREADS = 128, WARPS = THREADS / 32, PIECE = 256, PIECES = 32, HEADS = WARPS };

/* Where a piece of a sequence begins, and how many of its positions are seen; 0 or less: none. */
static __device__ __forceinline__ int piece_of(const gr_attend &a, const gr_seq &s, int number, int *from) {
    const int len = (int)s.kv_len, size = (len + PIECE * PIECES - 1) / (PIECE * PIECES) * PIECE;
    *from = max(number * size, gr_first_seen(a, len - 1));
    return min((number + 1) * size, len) - *from;
}

/* Of (sequence, head, piece): D sums, the largest score, the total. */
static __device__ __forceinline__ float *part_of(const gr_attend &a, float *parts, int s, int head, int number) {
    return parts + (((int64_t)s * a.H + head) * PIECES + number) * (a.D + 2);
}

/* What a block keeps in shared memory. */
struct kept {
    float score[HEADS][PIECE];
    float largest[HEADS], shrink[HEADS], total[HEADS];
};

/* Scores of `heads` queries x and n keys from a row on; `lanes` neighbours share a key. */
static __device__ __forceinline__ void make_scores(const gr_attend &a, kept *t, const float x[HEADS][8], int heads,
                                                   const gr_view &k, int64_t row, int n, int lanes) {
    const int lane = threadIdx.x % lanes, stripe = threadIdx.x / lanes, stripes = THREADS / lanes;
#pragma unroll 4
    for (int j = stripe; j - stripe < n; j += stripes) { /* all lanes take part in sums */
        float y[8] = {};
        if (j < n && lane * 8 < a.D) gr_load8(y, k, row + j, lane * 8, a.D);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float sum = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) sum += x[h][i] * y[i];
            for (int i = lanes / 2; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
            sum *= a.scale;
            if (a.softcap > 0) sum = a.softcap * tanhf(sum / a.softcap);
            if (lane == 0 && j < n && h < heads) t->score[h][j] = sum;
        }
    }
}

/* Scores become weights e^(score - largest), a warp for each head. */
static __device__ __forceinline__ void soften(kept *t, int heads, int n) {
    const int lane = threadIdx.x % 32, h = threadIdx.x / 32;
    if (h >= heads) return;
    const float before = t->largest[h];
    float m = before, sum = 0;
    for (int j = lane; j < n; j += 32) m = fmaxf(m, t->score[h][j]);
    m = gr_warp_max(m);
    for (int j = lane; j < n; j += 32) sum += t->score[h][j] = expf(t->score[h][j] - m);
    sum = gr_warp_sum(sum);
    __syncwarp(); /* all have read the largest */
    if (lane == 0) {
        const float shrink = expf(before - m);
        t->largest[h] = m, t->shrink[h] = shrink, t->total[h] = t->total[h] * shrink + sum;
    }
    __syncwarp();
}

/* sums = shrunken + weights times n values from a row on, of the lane's stripe. */
static __device__ __forceinline__ void add_values(const gr_attend &a, const kept *t, float sums[HEADS][8], int heads,
                                                  const gr_view &v, int64_t row, int n, int lanes) {
    const int lane = threadIdx.x % lanes, stripe = threadIdx.x / lanes, stripes = THREADS / lanes;
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int i = 0; i < 8; i++) sums[h][i] *= h < heads ? t->shrink[h] : 0;
#pragma unroll 4
    for (int j = stripe; j < n && lane * 8 < a.D; j += stripes) {
        float y[8];
        gr_load8(y, v, row + j, lane * 8, a.D);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float w = h < heads ? t->score[h][j] : 0;
#pragma unroll
            for (int i = 0; i < 8; i++) sums[h][i] += w * y[i];
        }
    }
}

/* Adds up the stripes' sums, those of a warp as a tree, then the warps in order through shared memory, to the part of the head. */
static __device__ __forceinline__ void store_sums(const gr_attend &a, kept *t, const float sums[8], float *part, int lanes) {
    float *all = &t->score[0][0]; /* [WARPS][8 lanes]: 4 times 256 at most */
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float sum = sums[i];
        for (int other = lanes; other < 32; other *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
        if (threadIdx.x % 32 < (unsigned)lanes) all[(threadIdx.x / 32 * lanes + threadIdx.x % 32) * 8 + i] = sum;
    }
    __syncthreads();
    for (int column = threadIdx.x; column < a.D; column += THREADS) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += all[w * lanes * 8 + column];
        part[column] = sum;
    }
    __syncthreads();
}

/* Blocks are (sequence, piece) and key/value head. */
static __global__ void __launch_bounds__(THREADS, 4) attention_decode_pieces(gr_attend a, float *parts, int lanes) {
    __shared__ kept t;
    const int s = blockIdx.x / PIECES, number = blockIdx.x % PIECES, group = a.H / a.K, col = threadIdx.x % lanes * 8;
    const gr_seq seq = a.seqs[s];
    int from;
    const int all = seq.q_len == 1 ? piece_of(a, seq, number, &from) : 0;
    const gr_view k = gr_columns(a.k, blockIdx.y * a.D), v = gr_columns(a.v, blockIdx.y * a.D);
    for (int h0 = 0; h0 < group && all > 0; h0 += HEADS) {
        const int head = blockIdx.y * group + h0, heads = min((int)HEADS, group - h0);
        float x[HEADS][8], sums[HEADS][8] = {};
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int i = 0; i < 8; i++)
                x[h][i] = h < heads && col + i < a.D ? gr_load(a.q, seq.q_start, (head + h) * a.D + col + i) : 0;
        if (threadIdx.x < HEADS) t.largest[threadIdx.x] = -INFINITY, t.total[threadIdx.x] = 0;
        for (int at = 0; at < all; at += PIECE) {
            const int n = min((int)PIECE, all - at);
            const int64_t row = seq.kv_start + from + at;
            make_scores(a, &t, x, heads, k, row, n, lanes);
            __syncthreads();
            soften(&t, heads, n);
            __syncthreads();
            add_values(a, &t, sums, heads, v, row, n, lanes);
            __syncthreads();
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float *part = part_of(a, parts, s, head + h, number);
            if (h >= heads) break;
            if (threadIdx.x == 0) part[a.D] = t.largest[h], part[a.D + 1] = t.total[h];
            store_sums(a, &t, sums[h], part, lanes);
        }
    }
}

/* A block for each sequence and head. */
static __global__ void __launch_bounds__(THREADS) attention_decode_sum(gr_attend a, float *parts) {
    const int s = blockIdx.x, head = blockIdx.y;
    const gr_seq seq = a.seqs[s];
    if (seq.q_len != 1) return;
    float m = -INFINITY;
    int from;
    for (int i = 0; i < PIECES; i++)
        if (piece_of(a, seq, i, &from) > 0) m = fmaxf(m, part_of(a, parts, s, head, i)[a.D]);
    for (int column = threadIdx.x; column < a.D; column += THREADS) {
        float sum = 0, total = 0;
        for (int i = 0; i < PIECES; i++) {
            if (piece_of(a, seq, i, &from) <= 0) continue;
            const float *part = part_of(a, parts, s, head, i), by = expf(part[a.D] - m);
            sum += part[column] * by, total += part[a.D + 1] * by;
        }
        gr_store(a.out, seq.q_start, head * a.D + column, sum / total);
        if (a.lse && column == 0) a.lse[seq.q_start * a.H + head] = m + logf(total);
    }
}

void gr_attention_decode(gr_device *d, const gr_attention *a) {
    int lanes = 1;
    while (lanes * 8 < a->D) lanes *= 2;
    float *parts = (float *)gr_cuda_scratch(d, GR_CUDA_PARTS, a->n_seqs * a->H * PIECES * (a->D + 2) * (int64_t)sizeof(float));
    GR_LAUNCH(d, attention_decode_pieces, dim3((unsigned)(a->n_seqs * PIECES), (unsigned)a->K), THREADS, 0, gr_attend_of(a), parts,
              lanes);
    GR_LAUNCH(d, attention_decode_sum, dim3((unsigned)a->n_seqs, (unsigned)a->H), THREADS, 0, gr_attend_of(a), parts);
}
