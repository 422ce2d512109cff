/* attention_backward.cu - FlashAttention's backward (arXiv 2307.08691) on tensor cores for rows of bfloat16 or half; all else
 * goes the plain way.
 *
 * Two kernels without atomics and without sums in memory; scores are made in both: 7 products of tiles instead of 5, bound by the
 * tensor cores at long sequences (14 H D FLOPs a pair of tokens, half of them below the diagonal) and by bytes at short ones (24
 * H D a token). First dq, a block for 64 queries of a head, which also makes delta = dout . out. Then dk and dv, a block for 64
 * keys of a key/value head: its warps have 16 keys each, whose scores are made transposed, so that weights and gradients of
 * scores are the left factor of the second product where they are, in registers. Where rope turned queries and keys, their
 * gradients are turned back on the way out, from shared memory: a pass of its own would read and write them once more.
 *
 * Sums have one order: dq of a row over its tiles of keys, which begin at the sequence's first; dk and dv of a key over the group's
 * heads one after the other, each over its tiles of queries, which begin at the sequence's first. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/mma.cuh"

enum { THREADS = 128, ROWS = 64 };

/* c[j] = 16 rows, which x begins with, times rows 8 j.. of y, both of a tile. Rows of zeros, which stand for those that are not
 * there, make scores, gradients and sums of zero. */
template <class T, int D, int N> static __device__ __forceinline__ void multiply(float c[N / 8][4], uint32_t x, uint32_t y) {
#pragma unroll
    for (int j = 0; j < N / 8; j++) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[4];
        gr_tile_a<D>(a, x, 0, k);
#pragma unroll
        for (int j = 0; j < N / 8; j += 2) {
            uint32_t b[4];
            gr_tile_b_of_rows<D>(b, y, 8 * j, k);
            gr_mma(T(), c[j], a, b[0], b[1]), gr_mma(T(), c[j + 1], a, b[2], b[3]);
        }
    }
}

/* sums += w times columns from.. of the N rows of a tile. */
template <class T, int D, int N, int WIDTH>
static __device__ __forceinline__ void add(float sums[WIDTH / 8][4], const float w[N / 8][4], uint32_t y, int from) {
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        uint32_t a[4];
        gr_weights_a<T>(a, w + 2 * k);
#pragma unroll
        for (int n = 0; n < WIDTH / 16; n++) {
            uint32_t b[4];
            gr_tile_b<D>(b, y + (uint32_t)(from * 2), 16 * k, n);
            gr_mma(T(), sums[2 * n], a, b[0], b[1]), gr_mma(T(), sums[2 * n + 1], a, b[2], b[3]);
        }
    }
}

/* A score after scale and cap, dp the gradient of it less delta and through the cap. */
static __device__ __forceinline__ void bend(const gr_attend &a, float *s, float *dp, float delta) {
    *dp -= delta;
    if (a.softcap > 0) {
        *s = gr_capped(a, *s);
        float part = __fdividef(*s, a.softcap);
        *dp *= 1 - part * part;
    }
}

/* Its weight, and the gradient of the score but for a factor `scale`. lse2: in base 2. -INFINITY: not seen. */
static __device__ __forceinline__ void weigh(float *s, float *dp, float by, float lse2) {
    *s = gr_exp2(*s * by - lse2);
    *dp *= *s;
}

/* dout . out of the lane's row, which is one of `rows`; the 4 lanes of a row share it. */
static __device__ float dot(const gr_view &x, const gr_view &y, int64_t row, bool have, int D) {
    float sum = 0;
    for (int col = threadIdx.x % 4 * 8; have && col < D; col += 32) {
        float a[8], b[8];
        gr_load8(a, x, row, col, D), gr_load8(b, y, row, col, D);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += a[i] * b[i];
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    return sum + __shfl_xor_sync(0xffffffffu, sum, 2);
}

/* Gradients of what rope turned, rows row..row+16 of a tile that S warps have put there, go to rows `to`.. of x turned back: 4
 * pairs a lane, as the type has them, by the table's numbers from the cache. */
template <class T, int D, int S>
static __device__ __forceinline__ void store_turned(const gr_attend &a, const gr_view &x, int64_t to, int rows, uint32_t tile,
                                                    int row) {
    const int lane = threadIdx.x % 32 + threadIdx.x / THREADS * 32, half = a.D / 2;
#pragma unroll 2
    for (int i = lane; i < 2 * D; i += 32 * S) {
        const int r = i / (D / 8), col = i % (D / 8) * 4;
        if (r >= rows || col >= half) continue;
        const float *angles = a.turns + (int64_t)a.pos[to + r] * a.D + col;
        const float4 c = *(const float4 *)angles, s = *(const float4 *)(angles + half);
        const float cosine[4] = {c.x, c.y, c.z, c.w}, sine[4] = {s.x, s.y, s.z, s.w};
        float2 pair[2][2];
#pragma unroll
        for (int side = 0; side < 2; side++) {
            uint32_t low, high;
            const int at = side * half + col;
            asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];"
                         : "=r"(low), "=r"(high)
                         : "r"(gr_tile_at<D>(tile, row + r, at / 8) + at % 8 * 2)
                         : "memory");
            pair[side][0] = gr_unpair(T(), low), pair[side][1] = gr_unpair(T(), high);
        }
#pragma unroll
        for (int j = 0; j < 2; j++) {
            gr_turn(&pair[0][j].x, &pair[1][j].x, cosine[2 * j], -sine[2 * j]);
            gr_turn(&pair[0][j].y, &pair[1][j].y, cosine[2 * j + 1], -sine[2 * j + 1]);
        }
#pragma unroll
        for (int side = 0; side < 2; side++)
            *(uint2 *)((uint16_t *)x.data + (to + r) * x.ld + side * half + col) =
                make_uint2(gr_pair(T(), pair[side][0].x, pair[side][0].y), gr_pair(T(), pair[side][1].x, pair[side][1].y));
    }
}

/* Shared memory: [64][D] queries, [64][D] gradients, [N][D] values, 2 [N][D] keys. */
template <class T, int D, int N> static __global__ void __launch_bounds__(THREADS, 2) attention_dq_tiles(gr_attend a) {
    extern __shared__ __align__(1024) uint4 shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t q = gr_shared_address(shared), dout = q + ROWS * D * 2, values = dout + ROWS * D * 2, keys = values + N * D * 2,
                   mine = (uint32_t)(16 * warp * D * 2);
    const float by = a.softcap > 0 ? GR_LOG2_E : a.scale * GR_LOG2_E;
    gr_work work = gr_work_of(a, ROWS, a.H, false);
    gr_query_piece p;
    while (gr_work_next(&work, &p)) {
        const int at = p.head / (a.H / a.K) * a.D, first = p.kv_len - p.q_len + p.first, last = first + p.rows - 1;
        const gr_view k = gr_columns(a.k, at), v = gr_columns(a.v, at), up = gr_columns(a.dout, p.head * a.D);
        const int64_t row = p.q_start + p.first;
        const int top = first + 16 * warp; /* position of the warp's rows */
        int key = gr_first_seen(a, first) / N * N, turn = 0;
        __syncthreads(); /* nobody reads what the last piece left */
        gr_tile_copy<ROWS, D, THREADS>(q, gr_columns(a.q, p.head * a.D), row, p.rows, a.D);
        gr_tile_copy<ROWS, D, THREADS>(dout, up, row, p.rows, a.D);
        gr_tile_copy<N, D, THREADS>(keys, k, p.kv_start + key, p.kv_len - key, a.D);
        gr_tile_copy<N, D, THREADS>(values, v, p.kv_start + key, p.kv_len - key, a.D);
        gr_copies();
        float lse2[2], delta[2], sums[D / 8][4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = 16 * warp + lane / 4 + 8 * h;
            const int64_t number = (row + r) * a.H + p.head;
            delta[h] = dot(up, gr_columns(a.out, p.head * a.D), row + r, r < p.rows, a.D);
            lse2[h] = r < p.rows ? a.lse[number] * GR_LOG2_E : 0;
            if (r < p.rows && lane % 4 == 0) a.delta[number] = delta[h];
        }
#pragma unroll
        for (int j = 0; j < D / 8; j++) sums[j][0] = sums[j][1] = sums[j][2] = sums[j][3] = 0;
        for (; key <= last; key += N, turn ^= 1) {
            float s[N / 8][4], dp[N / 8][4];
            const bool more = key + N <= last;
            const uint32_t now = keys + (uint32_t)(turn * N * D * 2), next = keys + (uint32_t)((turn ^ 1) * N * D * 2);
            gr_copies_wait<0>();
            __syncthreads(); /* keys and values are there for all; nobody reads the keys before */
            if (more) gr_tile_copy<N, D, THREADS>(next, k, p.kv_start + key + N, p.kv_len - key - N, a.D);
            gr_copies();
            multiply<T, D, N>(s, q + mine, now);
            multiply<T, D, N>(dp, dout + mine, values);
            __syncthreads(); /* the values are read */
            if (more) gr_tile_copy<N, D, THREADS>(values, v, p.kv_start + key + N, p.kv_len - key - N, a.D);
            gr_copies();
#pragma unroll
            for (int i = 0; i < N / 2; i++) bend(a, &s[i / 4][i % 4], &dp[i / 4][i % 4], delta[i % 4 / 2]);
            if (key + N - 1 > top || key <= top + 15 - a.window)
#pragma unroll
                for (int i = 0; i < N / 2; i++)
                    if (!gr_sees(a, top + lane / 4 + i % 4 / 2 * 8, key + i / 4 * 8 + lane % 4 * 2 + i % 2))
                        s[i / 4][i % 4] = -INFINITY;
#pragma unroll
            for (int i = 0; i < N / 2; i++) weigh(&s[i / 4][i % 4], &dp[i / 4][i % 4], by, lse2[i % 4 / 2]);
            add<T, D, N, D>(sums, dp, now, 0);
        }
        const float scale[2] = {a.scale, a.scale};
        const gr_view dq = gr_columns(a.dq, p.head * a.D);
        if (!a.turns) gr_tile_store<T, D>(dq, row + 16 * warp, p.rows - 16 * warp, a.D, q, 16 * warp, sums, scale);
        else {
            gr_tile_put<T, D, D>(q, 16 * warp, 0, sums, scale);
            __syncwarp();
            store_turned<T, D, 1>(a, dq, row + 16 * warp, p.rows - 16 * warp, q, 16 * warp);
        }
    }
}

/* The tiles of queries that a tile of keys is seen by: those of all heads of the group in turn. */
struct queries {
    int begin, end, j, head; /* the first of each head, the end; the next */
};

static __device__ __forceinline__ void next_queries(queries *w, int n) {
    w->j += n;
    if (w->j >= w->end) w->j = w->begin, w->head++;
}

/* Starts copying a tile of N queries, their gradients, lse and delta (floats [2][N]). */
template <int D, int N, int ALL>
static __device__ __forceinline__ void copy_queries(const gr_attend &a, const gr_query_piece &p, const queries &w, uint32_t q,
                                                    uint32_t dout, uint32_t numbers) {
    const int i = threadIdx.x;
    gr_tile_copy<N, D, ALL>(q, gr_columns(a.q, w.head * a.D), p.q_start + w.j, p.q_len - w.j, a.D);
    gr_tile_copy<N, D, ALL>(dout, gr_columns(a.dout, w.head * a.D), p.q_start + w.j, p.q_len - w.j, a.D);
    if (i < 2 * N) {
        const bool have = w.j + i % N < p.q_len;
        const float *from = i < N ? a.lse : a.delta;
        gr_copy4(numbers + 4 * i, have ? from + (p.q_start + w.j + i % N) * a.H + w.head : from, have);
    }
}

/* S warps share 16 keys and have D / S columns of their gradients each.
 * Shared memory: [64][D] keys, [64][D] values, twice {[N][D] queries, [N][D] gradients}, twice {lse [N], delta [N]}. */
template <class T, int D, int N, int S>
static __global__ void __launch_bounds__(THREADS *S, 2 / S) attention_dkv_tiles(gr_attend a) {
    extern __shared__ __align__(1024) uint4 shared[];
    constexpr int WIDTH = D / S, TILE = N * D * 2;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, part = threadIdx.x / THREADS * WIDTH;
    const uint32_t keys = gr_shared_address(shared), values = keys + ROWS * D * 2, tiles = values + ROWS * D * 2,
                   numbers = tiles + 4 * TILE, mine = (uint32_t)(16 * warp * D * 2);
    const float by = a.softcap > 0 ? GR_LOG2_E : a.scale * GR_LOG2_E;
    gr_work work = gr_work_of(a, ROWS, a.K, true);
    gr_query_piece p;
    while (gr_work_next(&work, &p)) {
        const int at = p.head * a.D, group = a.H / a.K, before = p.kv_len - p.q_len; /* positions before the queries */
        const int64_t row = p.kv_start + p.first;
        const int64_t end = (int64_t)p.first + p.rows - 1 + a.window - before; /* the last key is seen by those before it */
        queries w = {max(0, p.first - before) / N * N, (int)(end < p.q_len ? end : p.q_len)};
        w.j = w.begin, w.head = w.begin < w.end ? p.head * group : (p.head + 1) * group;
        float dk[WIDTH / 8][4], dv[WIDTH / 8][4];
#pragma unroll
        for (int j = 0; j < WIDTH / 8; j++)
            dk[j][0] = dk[j][1] = dk[j][2] = dk[j][3] = dv[j][0] = dv[j][1] = dv[j][2] = dv[j][3] = 0;
        __syncthreads(); /* nobody reads what the last piece left */
        gr_tile_copy<ROWS, D, THREADS * S>(keys, gr_columns(a.k, at), row, p.rows, a.D);
        gr_tile_copy<ROWS, D, THREADS * S>(values, gr_columns(a.v, at), row, p.rows, a.D);
        if (w.begin < w.end) copy_queries<D, N, THREADS * S>(a, p, w, tiles, tiles + TILE, numbers);
        gr_copies();
        for (uint32_t turn = 0; w.head < (p.head + 1) * group; turn ^= 1) {
            const uint32_t q = tiles + turn * 2 * TILE, dout = q + TILE;
            const float *lse = (const float *)((const char *)shared + (numbers - keys)) + turn * 2 * N, *delta = lse + N;
            const int j0 = w.j;
            next_queries(&w, N);
            gr_copies_wait<0>();
            __syncthreads(); /* the tile is there for all, and nobody reads the one before */
            if (w.head < (p.head + 1) * group)
                copy_queries<D, N, THREADS * S>(a, p, w, tiles + (turn ^ 1) * 2 * TILE, tiles + (turn ^ 1) * 2 * TILE + TILE,
                                                numbers + (turn ^ 1) * 8 * N);
            gr_copies();
            if (p.first + 16 * warp > before + j0 + N - 1) continue; /* the warp's keys come after all of these */
            float s[N / 8][4], dp[N / 8][4];
            multiply<T, D, N>(s, keys + mine, q);
            multiply<T, D, N>(dp, values + mine, dout);
            const int top = p.first + 16 * warp, query = before + j0;
#pragma unroll
            for (int i = 0; i < N / 2; i++) bend(a, &s[i / 4][i % 4], &dp[i / 4][i % 4], delta[i / 4 * 8 + lane % 4 * 2 + i % 2]);
            if (top + 15 > query || top <= query + N - 1 - a.window)
#pragma unroll
                for (int i = 0; i < N / 2; i++)
                    if (!gr_sees(a, query + i / 4 * 8 + lane % 4 * 2 + i % 2, top + lane / 4 + i % 4 / 2 * 8))
                        s[i / 4][i % 4] = -INFINITY;
#pragma unroll
            for (int i = 0; i < N / 2; i++)
                weigh(&s[i / 4][i % 4], &dp[i / 4][i % 4], by, lse[i / 4 * 8 + lane % 4 * 2 + i % 2] * GR_LOG2_E);
            add<T, D, N, WIDTH>(dv, s, dout, part);
            add<T, D, N, WIDTH>(dk, dp, q, part);
        }
        gr_copies_wait<0>(); /* where nobody sees the keys, they may still be on their way */
        __syncthreads();     /* warps that share keys have read them */
        const float one[2] = {1, 1}, scale[2] = {a.scale, a.scale};
        const int rows = p.rows - 16 * warp, columns = a.D - part;
        gr_tile_store<T, WIDTH>(gr_columns(a.dv, at + part), row + 16 * warp, rows, columns, values + mine + 32 * part, 0, dv, one);
        if (!a.turns)
            gr_tile_store<T, WIDTH>(gr_columns(a.dk, at + part), row + 16 * warp, rows, columns, keys + mine + 32 * part, 0, dk,
                                    scale);
        else {
            gr_tile_put<T, D, WIDTH>(keys, 16 * warp, part / 8, dk, scale);
            if (S == 1) __syncwarp();
            else __syncthreads(); /* halves of a head are different warps' */
            store_turned<T, D, S>(a, gr_columns(a.dk, at), row + 16 * warp, rows, keys, 16 * warp);
        }
    }
}

template <class T, int D, int N, int QUERIES, int S> static void launch(gr_device *d, const gr_attention *a) {
    const int sms = gr_cuda_of(d)->sms;
    GR_ATTEND(d, a, (attention_dq_tiles<T, D, N>), 2 * sms, THREADS, (2 * ROWS + 3 * N) * D * 2);
    GR_ATTEND(d, a, (attention_dkv_tiles<T, D, QUERIES, S>), 2 / S * sms, THREADS * S,
              (2 * ROWS + 4 * QUERIES) * D * 2 + 4 * QUERIES * 4);
}

template <class T> static void launch_for(gr_device *d, const gr_attention *a) {
    if (a->D <= 64) launch<T, 64, 64, 32, 1>(d, a);
    else if (a->D <= 128) launch<T, 128, 64, 32, 1>(d, a);
    else launch<T, 256, 32, 32, 2>(d, a);
}

void gr_attention_backward_cuda(gr_device *d, const gr_attention *a) {
    const gr_rows all[] = {a->q, a->k, a->v, a->out, a->dq, a->dk, a->dv, a->dout};
    const bool aligned = (uintptr_t)a->turns % 16 == 0; /* rope's table is read 4 numbers at a time */
    if (!aligned || !gr_attention_in_tiles(a, all, 8)) gr_attention_backward_plain(d, a);
    else if (a->q.type == GR_DTYPE_BF16) launch_for<__nv_bfloat16>(d, a);
    else launch_for<__half>(d, a);
}
