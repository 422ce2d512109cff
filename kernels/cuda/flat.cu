/* flat.cu - operations on elements one by one, and moves of rows and columns.
 *
 * All are bound by bytes: what an operation reads and writes, once each, at the rate of the memory. So a thread takes a piece of 8
 * columns, 16 bytes of bfloat16 or 32 of float32, and neighbours take neighbouring pieces. Nothing is summed over threads. Bytes an
 * element, of a stream in float32 (4) and branches in bfloat16 (2): add 4 + 4 + 2; rope 2 + 2 (the table's row comes from the
 * cache, once a block); glu_forward 4 + 2, glu_backward 2 + 4 + 4; dropout 2 + 2 (about 30 integer instructions for it are hidden
 * behind them). */
#include "kernels/cuda/mask.cuh"

enum { THREADS = 256 };

/* Two pieces under way together. */
static __device__ __forceinline__ void load_two(float a[8], const gr_view &x, float b[8], const gr_view &y, gr_place at,
                                                int64_t C) {
    gr_raw8 of_x = gr_fetch8(x, at.row, at.col, C), of_y = gr_fetch8(y, at.row, at.col, C);
    gr_take8(a, of_x, x.type), gr_take8(b, of_y, y.type);
}

static __device__ __forceinline__ int64_t my_number() { return (int64_t)blockIdx.x * THREADS + threadIdx.x; }
static __host__ __device__ inline int64_t pieces_of(int64_t C) { return (C + 7) / 8; }

/* ---- sums of rows, dropout, caps ---- */

static __global__ void add_pieces(gr_view x, gr_view y, int64_t n, int64_t C) {
    int64_t pieces = pieces_of(C), i = my_number();
    if (i >= n * pieces) return;
    gr_place at = gr_place_of(i, pieces);
    float a[8], b[8];
    load_two(a, x, b, y, at, C);
#pragma unroll
    for (int j = 0; j < 8; j++) a[j] += b[j];
    gr_store8(x, at.row, at.col, C, a);
}

void gr_add_cuda(gr_device *d, gr_rows x, gr_rows y, int64_t n, int64_t C) {
    GR_LAUNCH(d, add_pieces, gr_blocks(n * pieces_of(C), THREADS), THREADS, 0, gr_view_of(x), gr_view_of(y), n, C);
}

/* Parts are read at the rate of the memory: n_parts + 1 times 4 bytes an element. */
static __global__ void sum_parts_pieces(float *out, const float *parts, int64_t n_parts, int64_t stride, int64_t n) {
    const int64_t i = my_number();
    if (i >= n) return;
    float sum = parts[i];
    for (int64_t k = 1; k < n_parts; k++) sum += parts[k * stride + i];
    out[i] = sum;
}

void gr_sum_parts_cuda(gr_device *d, float *out, const float *parts, int64_t n_parts, int64_t stride, int64_t n) {
    GR_LAUNCH(d, sum_parts_pieces, gr_blocks(n, THREADS), THREADS, 0, out, parts, n_parts, stride, n);
}

static __global__ void dropout_pieces(gr_view out, gr_view x, gr_mask mask, int64_t n, int64_t C, bool accumulate) {
    int64_t pieces = pieces_of(C), i = my_number();
    if (i >= n * pieces) return;
    gr_place at = gr_place_of(i, pieces);
    float v[8], sum[8];
    gr_raw8 raw = gr_fetch8(x, at.row, at.col, C), before = gr_fetch8(out, at.row, at.col, accumulate ? C : 0);
    gr_take8(v, raw, x.type), gr_take8(sum, before, out.type);
    const uint32_t kept = gr_mask_bits8(mask, at.row, at.col);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = (kept >> j & 1 ? v[j] * mask.scale : 0.0f) + sum[j];
    gr_store8(out, at.row, at.col, C, v);
}

void gr_dropout_cuda(gr_device *d, gr_rows out, gr_rows x, int64_t n, int64_t C, const gr_dropout *p, bool accumulate) {
    GR_LAUNCH(d, dropout_pieces, gr_blocks(n * pieces_of(C), THREADS), THREADS, 0, gr_view_of(out), gr_view_of(x), gr_mask_of(p), n,
              C, accumulate);
}

static __global__ void softcap_pieces(gr_view x, int64_t n, int64_t C, float cap) {
    int64_t pieces = pieces_of(C), i = my_number();
    if (i >= n * pieces) return;
    gr_place at = gr_place_of(i, pieces);
    float v[8];
    gr_load8(v, x, at.row, at.col, C);
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = cap * tanhf(v[j] / cap);
    gr_store8(x, at.row, at.col, C, v);
}

void gr_softcap_cuda(gr_device *d, gr_rows x, int64_t n, int64_t C, float cap) {
    GR_LAUNCH(d, softcap_pieces, gr_blocks(n * pieces_of(C), THREADS), THREADS, 0, gr_view_of(x), n, C, cap);
}

/* ---- rope ---- */

/* A thread turns 8 pairs of a head. */
static __global__ void rope_pieces(gr_view x, const int32_t *pos, gr_view table, int64_t n, int64_t n_heads, int64_t D,
                                   float sign) {
    int64_t half = D / 2, pieces = pieces_of(half), i = my_number();
    if (i >= n * n_heads * pieces) return;
    gr_place in_head = gr_place_of(i, pieces);
    int64_t row = in_head.row / n_heads, head = (in_head.row - row * n_heads) * D, col = in_head.col, p = pos[row];
    float u[8], v[8], c[8], s[8];
    gr_raw8 first = gr_fetch8(x, row, head + col, head + half), second = gr_fetch8(x, row, head + half + col, head + D);
    gr_load8(c, table, p, col, half), gr_load8(s, table, p, half + col, D);
    gr_take8(u, first, x.type), gr_take8(v, second, x.type);
#pragma unroll
    for (int j = 0; j < 8; j++) gr_turn(&u[j], &v[j], c[j], sign * s[j]);
    gr_store8(x, row, head + col, head + half, u), gr_store8(x, row, head + half + col, head + D, v);
}

void gr_rope_cuda(gr_device *d, gr_rows x, const int32_t *pos, const float *table, int64_t n, int64_t n_heads, int64_t D,
                  bool inverse) {
    gr_view rows = gr_view_of(x), turns = gr_view_of(gr_rows{(void *)(uintptr_t)table, D, GR_DTYPE_F32});
    if (D % 16 != 0) rows.wide = turns.wide = false; /* halves begin within a piece */
    GR_LAUNCH(d, rope_pieces, gr_blocks(n * n_heads * pieces_of(D / 2), THREADS), THREADS, 0, rows, pos, turns, n, n_heads, D,
              inverse ? -1.0f : 1.0f);
}

/* ---- gated units ---- */

/* Both activations are x sigmoid(z): z is x, or twice what GELU has in its tanh. *slope = dz/dx. */
static __device__ __forceinline__ float gate_of(bool gelu, float x, float *slope) {
    const float a = 1.5957691216f, b = 0.0713548163f; /* 2 sqrt(2/pi), and that times 0.044715 */
    *slope = gelu ? a + 3 * b * x * x : 1.0f;
    return gelu ? x * (a + b * x * x) : x;
}

/* Within 1e-6 of itself where it matters: float32's tolerance is 2e-5. */
static __device__ __forceinline__ float sigmoid_of(float z) { return __fdividef(1.0f, 1.0f + __expf(-z)); }

static __global__ void glu_pieces(gr_view out, gr_view gate, gr_view up, int64_t n, int64_t F, bool gelu) {
    int64_t pieces = pieces_of(F), i = my_number();
    if (i >= n * pieces) return;
    gr_place at = gr_place_of(i, pieces);
    float g[8], u[8], slope;
    load_two(g, gate, u, up, at, F);
#pragma unroll
    for (int j = 0; j < 8; j++) g[j] = g[j] * sigmoid_of(gate_of(gelu, g[j], &slope)) * u[j];
    gr_store8(out, at.row, at.col, F, g);
}

void gr_glu_forward_cuda(gr_device *d, gr_rows out, gr_rows gu, int64_t n, int64_t F, gr_activation act) {
    GR_LAUNCH(d, glu_pieces, gr_blocks(n * pieces_of(F), THREADS), THREADS, 0, gr_view_of(out), gr_view_of(gu),
              gr_view_of(gr_rows_at(gu, 0, F)), n, F, act == GR_ACTIVATION_GELU_TANH);
}

static __global__ void glu_backward_pieces(gr_view dgate, gr_view dup, gr_view dout, gr_view gate, gr_view up, int64_t n, int64_t F,
                                           bool gelu) {
    int64_t pieces = pieces_of(F), i = my_number();
    if (i >= n * pieces) return;
    gr_place at = gr_place_of(i, pieces);
    float g[8], u[8], dy[8];
    gr_raw8 raw = gr_fetch8(dout, at.row, at.col, F);
    load_two(g, gate, u, up, at, F);
    gr_take8(dy, raw, dout.type);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float slope, s = sigmoid_of(gate_of(gelu, g[j], &slope)), dg = dy[j] * u[j] * s * (1 + g[j] * slope * (1 - s));
        u[j] = dy[j] * g[j] * s;
        g[j] = dg;
    }
    gr_store8(dgate, at.row, at.col, F, g), gr_store8(dup, at.row, at.col, F, u);
}

void gr_glu_backward_cuda(gr_device *d, gr_rows dgu, gr_rows dout, gr_rows gu, int64_t n, int64_t F, gr_activation act) {
    GR_LAUNCH(d, glu_backward_pieces, gr_blocks(n * pieces_of(F), THREADS), THREADS, 0, gr_view_of(dgu),
              gr_view_of(gr_rows_at(dgu, 0, F)), gr_view_of(dout), gr_view_of(gu), gr_view_of(gr_rows_at(gu, 0, F)), n, F,
              act == GR_ACTIVATION_GELU_TANH);
}

/* ---- moves ---- */

/* Row to[r] = row from[r], or r itself where there is no list. */
static __global__ void copy_pieces(gr_view out, const int32_t *to, gr_view x, const int32_t *from, int64_t n, int64_t C) {
    int64_t pieces = pieces_of(C), i = my_number();
    if (i >= n * pieces) return;
    gr_place at = gr_place_of(i, pieces);
    float v[8];
    gr_load8(v, x, from ? from[at.row] : at.row, at.col, C);
    gr_store8(out, to ? to[at.row] : at.row, at.col, C, v);
}

void gr_gather_rows_cuda(gr_device *d, gr_rows out, gr_rows x, const int32_t *idx, int64_t n, int64_t C) {
    GR_LAUNCH(d, copy_pieces, gr_blocks(n * pieces_of(C), THREADS), THREADS, 0, gr_view_of(out), NULL, gr_view_of(x), idx, n, C);
}

void gr_scatter_rows_cuda(gr_device *d, gr_rows x, gr_rows src, const int32_t *idx, int64_t n, int64_t C) {
    GR_LAUNCH(d, copy_pieces, gr_blocks(n * pieces_of(C), THREADS), THREADS, 0, gr_view_of(x), idx, gr_view_of(src), NULL, n, C);
}

/* A thread per element: columns of a list lie anywhere. */
static __global__ void scatter_elements(gr_view x, gr_view src, const int32_t *idx, int64_t n, int64_t C) {
    int64_t i = my_number(), row = i / C, j = i - row * C;
    if (row < n) gr_store(x, row, idx[j], gr_load(src, row, j));
}

void gr_scatter_columns_cuda(gr_device *d, gr_rows x, gr_rows src, const int32_t *idx, int64_t n, int64_t C) {
    GR_LAUNCH(d, scatter_elements, gr_blocks(n * C, THREADS), THREADS, 0, gr_view_of(x), gr_view_of(src), idx, n, C);
}

static __global__ void take_elements(gr_view out, gr_view x, const int32_t *idx, int64_t n, int64_t C) {
    int64_t i = my_number(), row = i / C, j = i - row * C;
    if (row >= n) return;
    gr_store(out, row, j, gr_load(x, row, idx[j]));
    gr_store(x, row, idx[j], 0);
}

void gr_take_columns_cuda(gr_device *d, gr_rows out, gr_rows x, const int32_t *idx, int64_t n, int64_t C) {
    GR_LAUNCH(d, take_elements, gr_blocks(n * C, THREADS), THREADS, 0, gr_view_of(out), gr_view_of(x), idx, n, C);
}
