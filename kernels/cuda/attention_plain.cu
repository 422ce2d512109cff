/* attention_plain.cu - attention without tensor cores: rows of any type and alignment, heads of any size up to GR_PLAIN_HEAD, exact
 * in float32. What trains in 16 bits goes another way (attention_forward.cu) where it can.
 *
 * A block has ROWS rows of one side (queries, or for dk and dv keys) and walks those of the other side, COLS at a time; products go
 * through shared memory in pieces of COLUMNS columns. A warp has 4 of the rows: its lanes are the other side's rows where scores
 * are made, and columns of the head where they are used. Bound by shared memory: 5 reads of 16 bytes for 16 multiplications and
 * additions a lane in the first, 2 reads for 4 in the second.
 *
 * Sums have one order: tiles of keys begin at multiples of COLS from the sequence's first key, and a row of queries meets them in
 * order, whatever rows are beside it; tiles of queries likewise, the heads of a group one after the other. */
#include "kernels/cuda/attention.cuh"

enum {
    THREADS = 128,
    EACH = 4, /* rows of a warp */
    ROWS = THREADS / 32 * EACH,
    COLS = 32,            /* rows of the other side, one for each lane */
    COLUMNS = 32,         /* of a head, at a time */
    STRIDE = COLUMNS + 4, /* lanes read 16 bytes of 8 rows: all banks */
    FACTORS = (ROWS + COLS) * STRIDE,
    WEIGHTS = THREADS * EACH,
};

/* Shared memory: both factors' columns, weights as [warp][other row][row], sums of rows [ROWS][columns]. */
struct plain {
    float *a, *b, *weights, *other, *sums, *more;
    int columns; /* of a head, in whole pieces */
};

static __device__ plain plain_of(float *shared, int D) {
    plain t;
    t.columns = (D + COLUMNS - 1) / COLUMNS * COLUMNS;
    t.a = shared, t.b = t.a + ROWS * STRIDE;
    t.weights = shared + FACTORS, t.other = t.weights + WEIGHTS;
    t.sums = t.other + WEIGHTS, t.more = t.sums + ROWS * t.columns;
    return t;
}

static size_t plain_bytes(int64_t D, int sums) {
    int64_t columns = (D + COLUMNS - 1) / COLUMNS * COLUMNS;
    return (size_t)(FACTORS + 2 * WEIGHTS + sums * ROWS * columns) * sizeof(float);
}

/* to[n][STRIDE] = columns col.. of rows from `row` on, zeros after `rows` of them. */
static __device__ void load_rows(float *to, int n, const gr_view &x, int64_t row, int rows, int col, int D) {
    for (int i = threadIdx.x; i < n * (COLUMNS / 8); i += THREADS) {
        int r = i / (COLUMNS / 8), c = i % (COLUMNS / 8) * 8;
        float v[8] = {};
        if (r < rows) gr_load8(v, x, row + r, col + c, D);
        float4 *p = (float4 *)(to + r * STRIDE + c);
        p[0] = make_float4(v[0], v[1], v[2], v[3]), p[1] = make_float4(v[4], v[5], v[6], v[7]);
    }
}

/* sums[i] = row i of the warp's of x times the lane's row of y. */
static __device__ void products(float sums[EACH], const plain &t, const gr_view &x, int64_t x_row, int x_rows, const gr_view &y,
                                int64_t y_row, int y_rows, int D) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < EACH; i++) sums[i] = 0;
    for (int col = 0; col < D; col += COLUMNS) {
        __syncthreads();
        load_rows(t.a, ROWS, x, x_row, x_rows, col, D), load_rows(t.b, COLS, y, y_row, y_rows, col, D);
        __syncthreads();
#pragma unroll
        for (int c = 0; c < COLUMNS; c += 4) {
            float4 b = *(const float4 *)(t.b + lane * STRIDE + c);
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                float4 a = *(const float4 *)(t.a + (warp * EACH + i) * STRIDE + c);
                sums[i] += a.x * b.x, sums[i] += a.y * b.y, sums[i] += a.z * b.z, sums[i] += a.w * b.w;
            }
        }
    }
}

/* Weights of the lane's row of the other side, where add finds them. */
static __device__ void put_weights(float *weights, const float w[EACH]) {
    *(float4 *)(weights + threadIdx.x * EACH) = make_float4(w[0], w[1], w[2], w[3]);
    __syncwarp();
}

/* Row i of the warp's sums = keep[i] times itself + its weights times the rows of y. */
static __device__ void add(float *sums, const float keep[EACH], const float *weights, const plain &t, const gr_view &y,
                           int64_t y_row, int y_rows, int D) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int col = 0; col < D; col += COLUMNS) {
        float s[EACH] = {};
        __syncthreads();
        load_rows(t.b, COLS, y, y_row, y_rows, col, D);
        __syncthreads();
#pragma unroll 8
        for (int j = 0; j < COLS; j++) {
            float b = t.b[j * STRIDE + lane];
            float4 w = *(const float4 *)(weights + (warp * 32 + j) * EACH);
            s[0] += w.x * b, s[1] += w.y * b, s[2] += w.z * b, s[3] += w.w * b;
        }
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            float *sum = sums + (warp * EACH + i) * t.columns + col + lane;
            *sum = *sum * keep[i] + s[i];
        }
    }
}

static __device__ void clear(float *sums, const plain &t) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int i = 0; i < EACH; i++)
        for (int col = lane; col < t.columns; col += 32) sums[(warp * EACH + i) * t.columns + col] = 0;
}

/* The warp's rows of x, from row `first` on, = sums / total. */
static __device__ void store(const gr_view &x, int64_t first, int rows, const float *sums, const float total[EACH], const plain &t,
                             int D) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int r = warp * EACH + i;
        for (int col = lane; r < rows && col < D; col += 32) gr_store(x, first + r, col, sums[r * t.columns + col] / total[i]);
    }
}

/* The same of gradients, = sums, turned back where rope turned what they are of. */
static __device__ void store_turned(const gr_attend &a, const gr_view &x, int64_t first, int rows, const float *sums,
                                    const plain &t) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, half = a.turns ? a.D / 2 : 0;
    __syncwarp(); /* a pair's columns are of two lanes */
    for (int r = warp * EACH; r < min(rows, (warp + 1) * EACH); r++) {
        const float *row = sums + r * t.columns, *angles = half ? a.turns + (int64_t)a.pos[first + r] * a.D : NULL;
        for (int col = lane; col < half; col += 32) {
            float u = gr_rounded(row[col], x.type), v = gr_rounded(row[half + col], x.type);
            gr_turn(&u, &v, angles[col], -angles[half + col]);
            gr_store(x, first + r, col, u), gr_store(x, first + r, half + col, v);
        }
        for (int col = 2 * half + lane; col < a.D; col += 32) gr_store(x, first + r, col, row[col]);
    }
    __syncwarp(); /* the next piece clears them */
}

static __device__ float capped(const gr_attend &a, float score) {
    score *= a.scale;
    return a.softcap > 0 ? a.softcap * tanhf(score / a.softcap) : score;
}

/* The gradient of a score before scale and cap: s after them, its weight p, dp the gradient of that. */
static __device__ float score_gradient(const gr_attend &a, float s, float p, float dp, float delta) {
    float bent = a.softcap > 0 ? s / a.softcap : 0;
    return a.scale * p * (dp - delta) * (1 - bent * bent);
}

static __global__ void __launch_bounds__(THREADS, 4) attention_forward_plain(gr_attend a) {
    extern __shared__ float shared[];
    const plain t = plain_of(shared, a.D);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    gr_work work = gr_work_of(a, ROWS, a.H, false);
    gr_query_piece p;
    while (gr_work_next(&work, &p)) {
        const int at = p.head / (a.H / a.K) * a.D, first = p.kv_len - p.q_len + p.first, last = first + p.rows - 1;
        const gr_view q = gr_columns(a.q, p.head * a.D), k = gr_columns(a.k, at), v = gr_columns(a.v, at);
        const int64_t row = p.q_start + p.first;
        float largest[EACH], total[EACH];
#pragma unroll
        for (int i = 0; i < EACH; i++) largest[i] = -INFINITY, total[i] = 0;
        clear(t.sums, t);
        for (int key = gr_first_seen(a, first) / COLS * COLS; key <= last; key += COLS) {
            float w[EACH], keep[EACH];
            int keys = min(COLS, p.kv_len - key);
            products(w, t, q, row, p.rows, k, p.kv_start + key, keys, a.D);
#pragma unroll
            for (int i = 0; i < EACH; i++) { /* online softmax: what was summed shrinks when a larger score comes */
                bool seen = gr_sees(a, first + warp * EACH + i, key + lane);
                float s = seen ? capped(a, w[i]) : -INFINITY, m = fmaxf(largest[i], gr_warp_max(s));
                keep[i] = m == largest[i] ? 1 : expf(largest[i] - m);
                w[i] = seen ? expf(s - m) : 0;
                total[i] = total[i] * keep[i] + gr_warp_sum(w[i]);
                largest[i] = m;
            }
            put_weights(t.weights, w);
            add(t.sums, keep, t.weights, t, v, p.kv_start + key, keys, a.D);
        }
        store(gr_columns(a.out, p.head * a.D), row, p.rows, t.sums, total, t, a.D);
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (a.lse && lane == 0 && warp * EACH + i < p.rows)
                a.lse[(row + warp * EACH + i) * a.H + p.head] = largest[i] + logf(total[i]);
    }
}

/* delta[i] = dout . out of the warp's rows, kept for dk and dv. */
static __device__ void make_delta(float delta[EACH], const gr_attend &a, int64_t row, int rows, int head) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const gr_view out = gr_columns(a.out, head * a.D), dout = gr_columns(a.dout, head * a.D);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int r = warp * EACH + i;
        float sum = 0;
        for (int col = lane; r < rows && col < a.D; col += 32) sum += gr_load(dout, row + r, col) * gr_load(out, row + r, col);
        delta[i] = gr_warp_sum(sum);
        if (r < rows && lane == 0) a.delta[(row + r) * a.H + head] = delta[i];
    }
}

static __global__ void __launch_bounds__(THREADS, 4) attention_dq_plain(gr_attend a) {
    extern __shared__ float shared[];
    const plain t = plain_of(shared, a.D);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float one[EACH] = {1, 1, 1, 1};
    gr_work work = gr_work_of(a, ROWS, a.H, false);
    gr_query_piece p;
    while (gr_work_next(&work, &p)) {
        const int at = p.head / (a.H / a.K) * a.D, first = p.kv_len - p.q_len + p.first, last = first + p.rows - 1;
        const gr_view q = gr_columns(a.q, p.head * a.D), k = gr_columns(a.k, at), v = gr_columns(a.v, at),
                      dout = gr_columns(a.dout, p.head * a.D);
        const int64_t row = p.q_start + p.first;
        float lse[EACH], delta[EACH];
        make_delta(delta, a, row, p.rows, p.head);
#pragma unroll
        for (int i = 0; i < EACH; i++) lse[i] = warp * EACH + i < p.rows ? a.lse[(row + warp * EACH + i) * a.H + p.head] : 0;
        clear(t.sums, t);
        for (int key = gr_first_seen(a, first) / COLS * COLS; key <= last; key += COLS) {
            float s[EACH], dp[EACH];
            int keys = min(COLS, p.kv_len - key);
            products(s, t, q, row, p.rows, k, p.kv_start + key, keys, a.D);
            products(dp, t, dout, row, p.rows, v, p.kv_start + key, keys, a.D);
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                bool seen = warp * EACH + i < p.rows && gr_sees(a, first + warp * EACH + i, key + lane);
                float score = capped(a, s[i]);
                s[i] = seen ? score_gradient(a, score, expf(score - lse[i]), dp[i], delta[i]) : 0;
            }
            put_weights(t.weights, s);
            add(t.sums, one, t.weights, t, k, p.kv_start + key, keys, a.D);
        }
        store_turned(a, gr_columns(a.dq, p.head * a.D), row, p.rows, t.sums, t);
    }
}

static __global__ void __launch_bounds__(THREADS, 4) attention_dkv_plain(gr_attend a) {
    extern __shared__ float shared[];
    const plain t = plain_of(shared, a.D);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = a.H / a.K;
    const float one[EACH] = {1, 1, 1, 1};
    gr_work work = gr_work_of(a, ROWS, a.K, true);
    gr_query_piece p;
    while (gr_work_next(&work, &p)) {
        const int at = p.head * a.D, before = p.kv_len - p.q_len, last = p.first + p.rows - 1; /* positions before the queries */
        const gr_view k = gr_columns(a.k, at), v = gr_columns(a.v, at);
        const int64_t row = p.kv_start + p.first;
        clear(t.sums, t), clear(t.more, t);
        for (int head = p.head * group; head < (p.head + 1) * group; head++) {
            const gr_view q = gr_columns(a.q, head * a.D), dout = gr_columns(a.dout, head * a.D);
            for (int j = max(0, p.first - before) / COLS * COLS; j < p.q_len && before + j - a.window < last; j += COLS) {
                const int queries = min(COLS, p.q_len - j);
                const int64_t query = p.q_start + j, number = (query + lane) * a.H + head;
                float s[EACH], dp[EACH], w[EACH], lse = lane < queries ? a.lse[number] : 0,
                                                  delta = lane < queries ? a.delta[number] : 0;
                products(s, t, k, row, p.rows, q, query, queries, a.D);
                products(dp, t, v, row, p.rows, dout, query, queries, a.D);
#pragma unroll
                for (int i = 0; i < EACH; i++) {
                    bool seen = lane < queries && gr_sees(a, before + j + lane, p.first + warp * EACH + i);
                    float score = capped(a, s[i]);
                    w[i] = seen ? expf(score - lse) : 0;
                    s[i] = seen ? score_gradient(a, score, w[i], dp[i], delta) : 0;
                }
                put_weights(t.weights, w), put_weights(t.other, s);
                add(t.more, one, t.weights, t, dout, query, queries, a.D);
                add(t.sums, one, t.other, t, q, query, queries, a.D);
            }
        }
        store_turned(a, gr_columns(a.dk, at), row, p.rows, t.sums, t);
        store(gr_columns(a.dv, at), row, p.rows, t.more, one, t, a.D);
    }
}

static bool refused(gr_device *d, const gr_attention *a) {
    if (a->D <= GR_PLAIN_HEAD) return false;
    gr_cuda_refuse(d, "attention with heads of %lld columns: at most %d", (long long)a->D, GR_PLAIN_HEAD);
    return true;
}

void gr_attention_forward_plain(gr_device *d, const gr_attention *a) {
    if (!refused(d, a)) GR_ATTEND(d, a, attention_forward_plain, 4 * gr_cuda_of(d)->sms, THREADS, plain_bytes(a->D, 1));
}

void gr_attention_backward_plain(gr_device *d, const gr_attention *a) {
    if (refused(d, a)) return;
    GR_ATTEND(d, a, attention_dq_plain, 4 * gr_cuda_of(d)->sms, THREADS, plain_bytes(a->D, 1));
    GR_ATTEND(d, a, attention_dkv_plain, 4 * gr_cuda_of(d)->sms, THREADS, plain_bytes(a->D, 2));
}
