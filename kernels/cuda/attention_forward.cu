/* attention_forward.cu - FlashAttention (arXiv 2307.08691) on tensor cores for rows of bfloat16 or half; all else goes the plain
 * way.
 *
 * A block of 4 warps has 64 M rows of queries of a head and walks their keys, 64 at a time. A warp has 16 rows of each 64, so that
 * all warps have as much to do below the diagonal; its part of the scores and of the sums stays in registers. The next keys are
 * copied while the values are used, the next values while the keys are. Bound by the tensor cores where sequences are long
 * (4 H D FLOPs a pair of tokens); at 256 tokens as much by bytes (8 H D a token at least), and by starting a piece, which is hidden
 * by the other blocks of the multiprocessor.
 *
 * Sums have one order: tiles of keys begin at multiples of 64 from the sequence's first key, a row meets those it sees in order;
 * one that it does not see, met because of other rows, changes no bit. Which rows share its tile does not matter. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/mma.cuh"

enum { THREADS = 128 };

/* The rows of a warp: [M][..][4] are c of gr_mma. */
template <int D, int M> struct rows {
    float out[M][D / 8][4];
    float largest[M][2], total[M][2]; /* of row g and g + 8; totals are of the lane's own columns */
};

/* s[i] = scores of the 64 keys of a tile and rows 64 i + 16 warp... of queries. */
template <class T, int D, int M, int N, int FROM, int TO>
static __device__ __forceinline__ void make_scores(float s[M][N / 8][4], uint32_t q, uint32_t k) {
    q += (uint32_t)(threadIdx.x / 32 * 16 * (2 * D));
#pragma unroll
    for (int i = FROM; i < TO; i++)
#pragma unroll
        for (int j = 0; j < N / 8; j++) s[i][j][0] = s[i][j][1] = s[i][j][2] = s[i][j][3] = 0;
#pragma unroll
    for (int c = 0; c < D / 16; c++) {
        uint32_t a[M][4];
#pragma unroll
        for (int i = FROM; i < TO; i++) gr_tile_a<D>(a[i], q, 64 * i, c);
#pragma unroll
        for (int j = 0; j < N / 8; j += 2) {
            uint32_t b[4];
            gr_tile_b_of_rows<D>(b, k, 8 * j, c);
#pragma unroll
            for (int i = FROM; i < TO; i++) gr_mma(T(), s[i][j], a[i], b[0], b[1]), gr_mma(T(), s[i][j + 1], a[i], b[2], b[3]);
        }
    }
}

/* Scores become weights 2^(s by - largest), what was summed before shrinks. position: of the lane's first row. */
template <int D, int M, int N, int FROM, int TO>
static __device__ __forceinline__ void soften(const gr_attend &a, float s[M][N / 8][4], rows<D, M> *r, int position, int key) {
    const int t = threadIdx.x % 4;
    const float by = a.softcap > 0 ? GR_LOG2_E : a.scale * GR_LOG2_E;
#pragma unroll
    for (int i = FROM; i < TO; i++) {
        const int top = position - threadIdx.x % 32 / 4 + 64 * i; /* of the warp's rows, which are 16 */
        if (a.softcap > 0)
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) s[i][j][e] = gr_capped(a, s[i][j][e]);
        if (key + N - 1 > top || key <= top + 15 - a.window)
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (!gr_sees(a, position + 64 * i + e / 2 * 8, key + 8 * j + 2 * t + e % 2)) s[i][j][e] = -INFINITY;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float m = r->largest[i][h];
#pragma unroll
            for (int j = 0; j < N / 8; j++) m = fmaxf(m, fmaxf(s[i][j][2 * h], s[i][j][2 * h + 1]));
            m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1)), m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
            const float from = m == -INFINITY ? 0 : m * by, shrink = gr_exp2(r->largest[i][h] * by - from);
            float sum = 0;
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                s[i][j][2 * h] = gr_exp2(s[i][j][2 * h] * by - from), s[i][j][2 * h + 1] = gr_exp2(s[i][j][2 * h + 1] * by - from);
                sum += s[i][j][2 * h] + s[i][j][2 * h + 1];
            }
            r->largest[i][h] = m, r->total[i][h] = r->total[i][h] * shrink + sum;
            if (__any_sync(0xffffffffu, shrink != 1))
#pragma unroll
                for (int j = 0; j < D / 8; j++) r->out[i][j][2 * h] *= shrink, r->out[i][j][2 * h + 1] *= shrink;
        }
    }
}

/* out += weights times the values of a tile. */
template <class T, int D, int M, int N, int FROM, int TO>
static __device__ __forceinline__ void add_values(rows<D, M> *r, const float p[M][N / 8][4], uint32_t v) {
#pragma unroll
    for (int c = 0; c < N / 16; c++) {
        uint32_t a[M][4];
#pragma unroll
        for (int i = FROM; i < TO; i++) gr_weights_a<T>(a[i], p[i] + 2 * c);
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t b[4];
            gr_tile_b<D>(b, v, 16 * c, n);
#pragma unroll
            for (int i = FROM; i < TO; i++)
                gr_mma(T(), r->out[i][2 * n], a[i], b[0], b[1]), gr_mma(T(), r->out[i][2 * n + 1], a[i], b[2], b[3]);
        }
    }
}

/* The tiles that a block walks, and where it stands. */
struct walk {
    gr_view k, v;
    int64_t kv_start;
    int kv_len, last, key; /* the last that the block's rows see; the tile's first */
    uint32_t q, keys, values;
};

/* One tile of keys, whose copy has begun, for parts FROM..TO of the rows. */
template <class T, int D, int M, int N, int FROM, int TO>
static __device__ __forceinline__ void see_tile(const gr_attend &a, rows<D, M> *r, const walk &w, int position) {
    float s[M][N / 8][4];
    gr_copies_wait<0>();
    __syncthreads(); /* the keys are there for all, and nobody reads the last values any more */
    gr_tile_copy<N, D, THREADS>(w.values, w.v, w.kv_start + w.key, w.kv_len - w.key, a.D);
    gr_copies();
    make_scores<T, D, M, N, FROM, TO>(s, w.q, w.keys);
    soften<D, M, N, FROM, TO>(a, s, r, position, w.key);
    gr_copies_wait<0>();
    __syncthreads();
    if (w.key + N <= w.last) gr_tile_copy<N, D, THREADS>(w.keys, w.k, w.kv_start + w.key + N, w.kv_len - w.key - N, a.D);
    gr_copies();
    add_values<T, D, M, N, FROM, TO>(r, s, w.values);
}

/* out and lse of the warp's rows from `from` of the piece on. */
template <class T, int D>
static __device__ __forceinline__ void finish(const gr_attend &a, const gr_query_piece &p, uint32_t q, int from,
                                              const float out[][4], const float largest[2], const float total[2]) {
    const int lane = threadIdx.x % 32, number = from + threadIdx.x / 32 * 16;
    const int64_t row = p.q_start + p.first + number;
    float by[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float all = total[h];
        all += __shfl_xor_sync(0xffffffffu, all, 1), all += __shfl_xor_sync(0xffffffffu, all, 2);
        by[h] = 1 / all;
        if (a.lse && lane % 4 == 0 && number + lane / 4 + 8 * h < p.rows)
            a.lse[(row + lane / 4 + 8 * h) * a.H + p.head] = largest[h] * (a.softcap > 0 ? 1 : a.scale) + logf(all);
    }
    gr_tile_store<T, D>(gr_columns(a.out, p.head * a.D), row, p.rows - number, a.D, q, number, out, by);
}

/* Shared memory: [64 M][D] queries, [64][D] keys, [64][D] values. */
template <class T, int D, int M, int N> static __global__ void __launch_bounds__(THREADS, 2) attention_forward_tiles(gr_attend a) {
    extern __shared__ __align__(1024) uint4 shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    gr_work work = gr_work_of(a, 64 * M, a.H, false);
    gr_query_piece p;
    while (gr_work_next(&work, &p)) {
        const int at = p.head / (a.H / a.K) * a.D, first = p.kv_len - p.q_len + p.first, position = first + 16 * warp + lane / 4;
        const int64_t row = p.q_start + p.first;
        walk w = {gr_columns(a.k, at), gr_columns(a.v, at), p.kv_start, p.kv_len};
        w.q = gr_shared_address(shared), w.keys = w.q + 64 * M * D * 2, w.values = w.keys + N * D * 2;
        w.key = gr_first_seen(a, first) / N * N, w.last = first + p.rows - 1;
        rows<D, M> r;
#pragma unroll
        for (int i = 0; i < M; i++) {
            r.largest[i][0] = r.largest[i][1] = -INFINITY, r.total[i][0] = r.total[i][1] = 0;
#pragma unroll
            for (int j = 0; j < D / 8; j++) r.out[i][j][0] = r.out[i][j][1] = r.out[i][j][2] = r.out[i][j][3] = 0;
        }
        __syncthreads(); /* nobody reads what the last piece left */
        gr_tile_copy<64 * M, D, THREADS>(w.q, gr_columns(a.q, p.head * a.D), row, p.rows, a.D);
        gr_tile_copy<N, D, THREADS>(w.keys, w.k, p.kv_start + w.key, p.kv_len - w.key, a.D);
        gr_copies();
        for (; w.key <= w.last; w.key += N) {
            if (M == 2 && p.rows <= 64) see_tile<T, D, M, N, 0, 1>(a, &r, w, position);
            else if (M == 2 && w.key > first + 63) see_tile<T, D, M, N, M - 1, M>(a, &r, w, position);
            else see_tile<T, D, M, N, 0, M>(a, &r, w, position);
        }
        finish<T, D>(a, p, w.q, 0, r.out[0], r.largest[0], r.total[0]);
        if (M == 2) finish<T, D>(a, p, w.q, 64, r.out[M - 1], r.largest[M - 1], r.total[M - 1]);
    }
}

/* M rows of queries for each of a warp's lanes' rows, N keys at a time: what the registers hold. */
template <class T> static void launch(gr_device *d, const gr_attention *a) {
    const int n = 2 * gr_cuda_of(d)->sms;
    if (a->D <= 64) GR_ATTEND(d, a, (attention_forward_tiles<T, 64, 2, 64>), n, THREADS, (128 + 2 * 64) * 64 * 2);
    else if (a->D <= 128) GR_ATTEND(d, a, (attention_forward_tiles<T, 128, 2, 32>), n, THREADS, (128 + 2 * 32) * 128 * 2);
    else GR_ATTEND(d, a, (attention_forward_tiles<T, 256, 1, 32>), n, THREADS, (64 + 2 * 32) * 256 * 2);
}

void gr_attention_forward_cuda(gr_device *d, const gr_attention *a) {
    const gr_rows all[] = {a->q, a->k, a->v, a->out};
    if (gr_attention_decodes(a)) gr_attention_decode(d, a);
    if (gr_attention_decodes(a) && a->single) return; /* nothing is left */
    if (!gr_attention_in_tiles(a, all, 4)) gr_attention_forward_plain(d, a);
    else if (a->q.type == GR_DTYPE_BF16) launch<__nv_bfloat16>(d, a);
    else launch<__half>(d, a);
}
