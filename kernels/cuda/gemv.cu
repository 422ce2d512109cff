/* gemv.cu - linears of few rows: tokens that are decoded. The weights are read once, as the file has them.
 *
 * Bound by memory: the bytes of W, of which each weight makes 2n FLOPs. Cores alone would be too slow for that from 4-bit weights
 * on (33 elements a clock and multiprocessor, each some instructions to unpack), so tensor cores multiply: 16 rows of W by up to
 * 8 rows of x cost what one does, and each row of x has columns of its own there: its bits depend neither on n nor on the other
 * rows.
 *
 * A block makes 16 outputs of all rows. Pieces of 1,024 columns of its 16 rows of W come into shared memory as they lie in
 * memory, 16 bytes a thread at a time, one or two pieces ahead of the work. Each of 8 warps takes 128 columns of a piece: a lane
 * unpacks 8 consecutive elements of two rows and rounds them to the type of the products. So the sum of an output is 8 sums, one
 * a warp, each in the order of its columns; they are added in order. That order depends on K alone, not on how W is stored: a
 * weight that is expanded has the same bits.
 *
 * LoRA: h = x A^T in a launch before, a block for each row of A, its threads' columns fixed; scale B h is added to an output by the
 * thread that stores it, in the order of ranks. */
#include "kernels/cuda/dequant.cuh"
#include "kernels/cuda/mma.cuh"

enum {
    MOST = 8, /* rows */
    TILE = 16,
    WARPS = 8,
    THREADS = WARPS * 32,
    STEP = 128, /* columns that a warp takes */
    LORAS = 8
};

typedef struct few_member {
    gr_matrix w;
    const float *bias;
    int32_t rows, tile, col; /* its first tile among all, its first column of y */
    int32_t lora, n_lora;    /* its first */
} few_member;

typedef struct few_lora {
    const float *A, *B;
    float scale;
    int32_t rank, first; /* column of h */
} few_lora;

typedef struct few_args {
    few_member member[GR_GROUP_MAX];
    few_lora lora[LORAS];
    gr_view x, y;
    float *h;
    int32_t n, members, loras, tiles, rank;
    int64_t K;
} few_args;

/* ---- pieces of W in shared memory ---- */

/* Rows lie apart so that lanes which read 4, 8 or 16 bytes at once, 4 of each of 8 rows, meet no bank twice. A row starts where it
 * does among 16 bytes of memory, and has some bytes to spare behind. */
template <int TYPE> struct few_piece {
    static constexpr int columns = TYPE == GR_DTYPE_F32 ? WARPS * STEP / 2 : WARPS * STEP;
    static constexpr int steps = columns / STEP;
    static constexpr int bytes = columns / gr_block<TYPE>::n * gr_block<TYPE>::bytes;
    static constexpr int chunks = (bytes + 30) / 16; /* of 16 bytes that hold them */
    static constexpr int apart = gr_block<TYPE>::plain ? 64 : gr_block<TYPE>::align == 16 ? 32 : 16;
    static constexpr int stride = (chunks * 16 + 16 - apart + 127) / 128 * 128 + apart;
    static constexpr int slots = TILE * stride > 20 << 10 ? 2 : 3;
};

/* The smallest address of a row's piece, its place among 16 bytes. */
static __device__ __forceinline__ uint32_t start_of(const uint8_t *p) { return (uint32_t)(uintptr_t)p & 15; }

/* Starts to copy a piece of 16 rows from row0 on; what is beyond the end of a row becomes 0. */
template <int TYPE>
static __device__ __forceinline__ void fetch(uint8_t *slot, const gr_matrix &w, int64_t row0, int64_t rows, int64_t piece) {
    typedef few_piece<TYPE> P;
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < TILE * P::chunks; i += THREADS) {
        int r = i / P::chunks, chunk = i % P::chunks;
        int64_t row = row0 + r < rows ? row0 + r : rows - 1;
        const uint8_t *begin = w.data + row * w.row_bytes, *end = begin + w.row_bytes;
        begin += piece * P::bytes;
        const uint8_t *from = begin - start_of(begin) + chunk * 16;
        int64_t left = end - from;
        if (from >= begin + P::bytes) continue;
        int size = left >= 16 ? 16 : left > 0 ? (int)left : 0;
        gr_copy16_first(gr_shared_address(slot + r * P::stride + chunk * 16), size > 0 ? from : w.data - start_of(w.data), size);
    }
}

/* ---- factors of the tensor cores: 8 elements in 4 words ---- */

template <class T> static __device__ __forceinline__ uint4 packed(const float v[8]) {
    return make_uint4(gr_pair(T(), v[0], v[1]), gr_pair(T(), v[2], v[3]), gr_pair(T(), v[4], v[5]), gr_pair(T(), v[6], v[7]));
}

template <class T> struct few_type;
template <> struct few_type<__nv_bfloat16> { static constexpr int dtype = GR_DTYPE_BF16; };
template <> struct few_type<__half> { static constexpr int dtype = GR_DTYPE_F16; };

template <class T> static __device__ __forceinline__ uint4 x_at(const few_args &a, int row, int64_t col) {
    if (row >= a.n) return make_uint4(0, 0, 0, 0);
    if (a.x.type == few_type<T>::dtype && a.x.wide && col + 8 <= a.K)
        return *(const uint4 *)((const T *)a.x.data + row * a.x.ld + col);
    float v[8];
    gr_load8(v, a.x, row, col, a.K);
    return packed<T>(v);
}

/* Elements col.. of the row that starts at `row` in shared memory. */
template <class T, int TYPE> static __device__ __forceinline__ uint4 w_at(const uint8_t *row, uint32_t col, bool wide) {
    float v[8];
    if (TYPE == few_type<T>::dtype && wide) return *(const uint4 *)(row + col * 2);
    if (TYPE == GR_DTYPE_F32) {
        const float *p = (const float *)row + col;
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = p[i];
    } else if (gr_block<TYPE>::plain) {
        const uint16_t *p = (const uint16_t *)row + col;
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = TYPE == GR_DTYPE_F16 ? gr_half_of(p[i]) : __uint_as_float((uint32_t)p[i] << 16);
    } else {
        gr_decode8<TYPE, true>(v, row, col);
    }
    return packed<T>(v);
}

/* c += w x: 16 rows of W by 8 of x, of which a lane g * 4 + t holds rows g and g + 8 (two words of each), and row g. Which two
 * columns of the contraction a word holds is the same for both. */
template <class T>
static __device__ __forceinline__ void multiply(float c[4], uint32_t w0, uint32_t w8, uint32_t w1, uint32_t w9, uint32_t x0,
                                                uint32_t x1) {
    const uint32_t w[4] = {w0, w8, w1, w9};
    gr_mma(T(), c, w, x0, x1);
}

/* ---- the product ---- */

/* c = the warp's share of the sums of rows row0.. of W; a lane g * 4 + t gets columns 2t, 2t+1 of rows g and g + 8. */
template <class T, int TYPE>
static __device__ __forceinline__ void sums(float c[4], uint8_t *slots, const few_args &a, const gr_matrix &w, int64_t row0,
                                            int64_t rows) {
    typedef few_piece<TYPE> P;
    const int warp = (int)threadIdx.x / 32, g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    const int pieces = (int)((a.K + P::columns - 1) / P::columns);
    const uint8_t *row[2];
#pragma unroll
    for (int i = 0; i < 2; i++) row[i] = w.data + (row0 + g + 8 * i < rows ? row0 + g + 8 * i : rows - 1) * w.row_bytes;
#pragma unroll 1
    for (int piece = 0; piece < P::slots - 1; piece++) {
        if (piece < pieces) fetch<TYPE>(slots + piece * TILE * P::stride, w, row0, rows, piece);
        gr_copies();
    }
#pragma unroll 1
    for (int piece = 0; piece < pieces; piece++) {
        const int step = (warp - piece * P::steps) & (WARPS - 1); /* of this piece; steps of all pieces go round the warps */
        const int64_t begin = (int64_t)piece * P::columns + step * STEP;
        const bool mine = step < P::steps && begin < a.K;
        uint4 x[STEP / 32];
#pragma unroll
        for (int j = 0; j < STEP / 32; j++) x[j] = mine ? x_at<T>(a, g, begin + j * 32 + t * 8) : make_uint4(0, 0, 0, 0);
        gr_copies_wait<P::slots - 2>();
        __syncthreads(); /* the piece is there, for all; the one before is no longer read */
        const int next = piece + P::slots - 1;
        if (next < pieces) fetch<TYPE>(slots + next % P::slots * TILE * P::stride, w, row0, rows, next);
        gr_copies();
        if (!mine) continue;
        const uint8_t *here = slots + piece % P::slots * TILE * P::stride + g * P::stride;
        const uint8_t *w0 = here + start_of(row[0] + (int64_t)piece * P::bytes);
        const uint8_t *w8 = here + 8 * P::stride + start_of(row[1] + (int64_t)piece * P::bytes);
#pragma unroll
        for (int j = 0; j < STEP / 32; j++) {
            if (begin + j * 32 >= a.K) break;
            uint32_t col = (uint32_t)(step * STEP + j * 32 + t * 8);
            uint4 u = w_at<T, TYPE>(w0, col, w.wide), v = w_at<T, TYPE>(w8, col, w.wide);
            multiply<T>(c, u.x, v.x, u.y, v.y, x[j].x, x[j].y);
            multiply<T>(c, u.z, v.z, u.w, v.w, x[j].z, x[j].w);
        }
    }
}

/* + bias + scale B h, to y. */
static __device__ __forceinline__ void store(const few_args &a, const few_member &m, int64_t row, int r, float sum) {
    if (m.bias) sum += m.bias[row];
    for (int j = m.lora; j < m.lora + m.n_lora; j++) {
        const few_lora &l = a.lora[j];
        const float *h = a.h + r * a.rank + l.first, *b = l.B + row * l.rank;
        float up = 0;
        for (int i = 0; i < l.rank; i++) up += h[i] * b[i];
        sum += l.scale * up;
    }
    gr_store(a.y, r, m.col + row, sum);
}

template <class T> static __global__ void __launch_bounds__(THREADS, 2) few_outputs(const __grid_constant__ few_args a) {
    extern __shared__ uint4 memory[];
    __shared__ float parts[WARPS][TILE * MOST];
    int i = 0;
    while (i + 1 < a.members && (int)blockIdx.x >= a.member[i + 1].tile) i++;
    const few_member &m = a.member[i];
    const int64_t row0 = ((int64_t)blockIdx.x - m.tile) * TILE;
    float c[4] = {0, 0, 0, 0};
    switch (m.w.type) {
#define CASE(TYPE)                                                                                                                 \
    case TYPE: sums<T, TYPE>(c, (uint8_t *)memory, a, m.w, row0, m.rows); break;
        GR_EACH_DTYPE(CASE)
#undef CASE
    }
    const int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
    float *part = parts[threadIdx.x / 32];
#pragma unroll
    for (int k = 0; k < 4; k++) part[(2 * t + k % 2) * TILE + g + k / 2 * 8] = c[k];
    __syncthreads();
    const int r = (int)threadIdx.x / TILE;
    const int64_t row = row0 + threadIdx.x % TILE;
    if (r >= a.n || row >= m.rows) return;
    float sum = parts[0][threadIdx.x];
#pragma unroll
    for (int w = 1; w < WARPS; w++) sum += parts[w][threadIdx.x];
    store(a, m, row, r, sum);
}

/* h[n,rank] = x A^T: a block for each row of all As. */
static __global__ void __launch_bounds__(THREADS) few_h(const __grid_constant__ few_args a) {
    __shared__ float parts[WARPS][MOST];
    int j = 0;
    while (j + 1 < a.loras && (int)blockIdx.x >= a.lora[j + 1].first) j++;
    const gr_view A = {(void *)a.lora[j].A, a.K, GR_DTYPE_F32, (uintptr_t)a.lora[j].A % 16 == 0 && a.K % 4 == 0};
    const int64_t row = (int)blockIdx.x - a.lora[j].first;
    float sum[MOST] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (int64_t col = threadIdx.x * 8; col < a.K; col += THREADS * 8) {
        float w[8], x[8];
        gr_load8(w, A, row, col, a.K);
#pragma unroll
        for (int r = 0; r < MOST; r++) {
            if (r >= a.n) break;
            gr_load8(x, a.x, r, col, a.K);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[r] += x[i] * w[i];
        }
    }
#pragma unroll
    for (int r = 0; r < MOST; r++) {
        float all = gr_warp_sum(sum[r]);
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32][r] = all;
    }
    __syncthreads();
    if ((int)threadIdx.x >= a.n) return;
    float all = parts[0][threadIdx.x];
#pragma unroll
    for (int w = 1; w < WARPS; w++) all += parts[w][threadIdx.x];
    a.h[threadIdx.x * a.rank + blockIdx.x] = all;
}

/* ---- what the host does ---- */

static int shared_bytes(gr_dtype type) {
    static const int bytes[] = {
#define BYTES(TYPE) few_piece<TYPE>::slots *TILE *few_piece<TYPE>::stride,
        GR_EACH_DTYPE(BYTES)
#undef BYTES
    };
    return bytes[type];
}

bool gr_cuda_few_rows(gr_device *d, const gr_product *p, int64_t n) {
    const gr_group *g = p->group;
    int loras = 0;
    if (n < 1 || n > MOST || g->compute == GR_DTYPE_F32 || (p->dropout && gr_group_rank(g) > 0)) return false;
    for (int i = 0; i < g->n; loras += g->member[i++]->n_lora)
        if (g->member[i]->dw) return false;
    return loras <= LORAS;
}

/* W of member i, whose first row is `row` of the group's: as the file has it, or of the form where that is all there is or less. */
static bool weight_of(gr_device *d, gr_matrix *m, const gr_group *g, int i, int64_t row) {
    const gr_weight *w = &g->member[i]->w;
    const gr_cuda_form *f = (const gr_cuda_form *)g->form;
    if (!f || !f->matrix || (w->data && w->dtype != GR_DTYPE_F32)) return gr_matrix_of(d, m, w->dtype, w->data, w->cols);
    return gr_matrix_of(d, m, f->type, (const char *)f->matrix + row * f->ld * 2, f->ld);
}

void gr_cuda_linear_few(gr_device *d, const gr_product *p, int64_t n) {
    const gr_group *g = p->group;
    few_args a = {};
    int shared = 0;
    a.x = gr_view_of(p->x), a.y = gr_view_of(p->y), a.h = p->h;
    a.n = (int32_t)n, a.members = g->n, a.rank = (int32_t)gr_group_rank(g), a.K = gr_group_inputs(g);
    for (int32_t i = 0, col = 0, first = 0; i < g->n; i++) {
        const gr_linear *l = g->member[i];
        few_member *m = &a.member[i];
        if (!weight_of(d, &m->w, g, i, col)) return;
        m->bias = l->bias, m->rows = (int32_t)l->w.rows, m->tile = a.tiles, m->col = col, m->lora = a.loras, m->n_lora = l->n_lora;
        for (int j = 0; j < l->n_lora; first += (int32_t)l->lora[j++].rank)
            a.lora[a.loras++] = few_lora{l->lora[j].A, l->lora[j].B, l->lora[j].scale, (int32_t)l->lora[j].rank, first};
        col += m->rows, a.tiles += (int32_t)gr_blocks(m->rows, TILE);
        if (shared_bytes((gr_dtype)m->w.type) > shared) shared = shared_bytes((gr_dtype)m->w.type);
    }
    const void *kernel = g->compute == GR_DTYPE_BF16 ? (const void *)few_outputs<__nv_bfloat16> : (const void *)few_outputs<__half>;
    if (!gr_cuda_check(d, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "few_outputs")) return;
    GR_LAUNCH(d, few_h, a.rank, THREADS, 0, a);
    if (g->compute == GR_DTYPE_BF16) GR_LAUNCH(d, few_outputs<__nv_bfloat16>, a.tiles, THREADS, shared, a);
    else GR_LAUNCH(d, few_outputs<__half>, a.tiles, THREADS, shared, a);
}
