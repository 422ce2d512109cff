/* gemm_tmpl.h - GEMM and linears of a vectorised level. A task owns a block of C: for each piece of k it packs the piece
 * of B (dequantised, scaled, rounded) into panels of its thread's scratch, which then stay in the second-level cache,
 * and multiplies with A read in place. The pieces depend on k and the dtype alone: their sums are added in order. */
#include <stddef.h>

#include "kernels/cpu/impl.h"
#include "kernels/cpu/tile.h"
#include "kernels/dequant.h"

enum {
    K_PIECE = 256,   /* rows of a packed block: the sliver of A and a panel share the first-level cache */
    N_BLOCK = 256,   /* columns of a packed block at most */
    K_BLOCK = 256,   /* the largest block of a dtype */
    ROWS_LARGE = 64, /* above: packing is amortised, rows may be split among threads */
};

/* Scratch of a task: packed B, then a buffer of storage rows, then rounded rows of A. */
enum {
    PACKED = 0,
    ROWS = PACKED + K_PIECE * N_BLOCK,
    A_ROWS = ROWS + VL * (K_PIECE + K_BLOCK),
    GEMM_SCRATCH = A_ROWS + TILE_ROWS * K_PIECE
};
_Static_assert((int)GEMM_SCRATCH <= (int)GR_CPU_SCRATCH, "scratch");

static void dequant_row(float *y, gr_dtype type, const void *src, int64_t n) {
    switch (type) {
    case GR_DTYPE_F32: gr_dequant_f32(y, src, n); break;
    case GR_DTYPE_F16: gr_dequant_f16(y, src, n); break;
    case GR_DTYPE_BF16: gr_dequant_bf16(y, src, n); break;
    case GR_DTYPE_Q4_0: gr_dequant_q4_0(y, src, n); break;
    case GR_DTYPE_Q4_1: gr_dequant_q4_1(y, src, n); break;
    case GR_DTYPE_Q5_0: gr_dequant_q5_0(y, src, n); break;
    case GR_DTYPE_Q5_1: gr_dequant_q5_1(y, src, n); break;
    case GR_DTYPE_Q8_0: gr_dequant_q8_0(y, src, n); break;
    case GR_DTYPE_Q4_K: gr_dequant_q4_k(y, src, n); break;
    case GR_DTYPE_Q5_K: gr_dequant_q5_k(y, src, n); break;
    case GR_DTYPE_Q6_K: gr_dequant_q6_k(y, src, n); break;
    case GR_DTYPE_NF4: gr_dequant_nf4(y, src, n); break;
    case GR_DTYPE_COUNT: break;
    }
}

static void round_values(float *x, int64_t n, gr_dtype compute) {
    for (int64_t i = 0; i < n; i += VL) {
        int64_t count = n - i < VL ? n - i : VL;
        vf v = v_load_n(x + i, count);
        v_store_n(x + i, compute == GR_DTYPE_BF16 ? v_round_bf16(v) : v_round_f16(v), count);
    }
}

/* Elements [begin, begin+n) of a storage row as floats with alpha and rounding applied. The result lies in buffer (room
 * for n + two dtype blocks) or, when nothing is to be done, in the weight itself. */
static const float *storage_row(float *buffer, const gr_gemm *g, int64_t row, int64_t begin, int64_t n) {
    if (g->b_type == GR_DTYPE_F32 && g->alpha == 1 && g->compute == GR_DTYPE_F32)
        return (const float *)g->b + row * g->b_ld + begin;
    const gr_dtype_info *type = gr_dtype_get(g->b_type);
    int64_t first = begin / type->block, last = (begin + n + type->block - 1) / type->block;
    const char *src = (const char *)g->b + (row * (g->b_ld / type->block) + first) * type->block_bytes;
    dequant_row(buffer, g->b_type, src, (last - first) * type->block);
    float *x = buffer + begin - first * type->block;
    if (g->alpha != 1)
        for (int64_t i = 0; i < n; i++) x[i] *= g->alpha;
    if (g->compute != GR_DTYPE_F32) round_values(x, n, g->compute);
    return x;
}

/* Rows k0..k0+k, columns n0..n0+n of B into panels. */
static void pack_block(float *scratch, const gr_gemm *g, int64_t k0, int64_t k, int64_t n0, int64_t n) {
    float *panels = scratch + PACKED, *rows = scratch + ROWS;
    if (!g->b_transposed) {
        for (int64_t p = 0; p < k; p++) pack_row(panels, storage_row(rows, g, k0 + p, n0, n), n, k, p);
        return;
    }
    for (int64_t j = 0; j < n; j += VL) {
        float *panel = panels + j / PANEL * PANEL * k + j % PANEL;
        int64_t count = n - j < VL ? n - j : VL, ld = g->b_ld;
        const float *x = storage_row(rows, g, n0 + j, k0, k);
        if (x == rows) { /* converted (k0 starts a dtype block): one line of the buffer for each row */
            ld = K_PIECE + K_BLOCK;
            for (int64_t i = 1; i < count; i++) storage_row(rows + i * ld, g, n0 + j + i, k0, k);
        }
        pack_columns(panel, x, ld, count, k);
    }
}

/* The product of a block with A rounded to the compute type: tile rows of A are copied and rounded first. */
static void rounded_product(float *scratch, const gr_gemm *g, int64_t m, int64_t n, int64_t k, const float *a, float *c,
                            int64_t ldc, int accumulate) {
    float *rounded = scratch + A_ROWS;
    for (int64_t row = 0; row < m; row += TILE_ROWS) {
        int64_t mr = m - row < TILE_ROWS ? m - row : TILE_ROWS;
        for (int64_t i = 0; i < mr; i++)
            for (int64_t p = 0; p < k; p++) rounded[i * k + p] = a[(row + i) * g->a_row + p * g->a_col];
        round_values(rounded, mr * k, g->compute);
        block_product(mr, n, k, rounded, k, 1, scratch + PACKED, c + row * ldc, ldc, accumulate);
    }
}

typedef struct gemm_job {
    gr_device *d;
    const gr_gemm *g;
    int64_t m_block, n_block, m_blocks;
} gemm_job;

static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* k in equal pieces of whole dtype blocks: a function of the product alone. */
static int64_t piece_of(const gr_gemm *g) {
    int64_t block = gr_dtype_get(g->b_type)->block, pieces = (g->k + K_PIECE - 1) / K_PIECE;
    return pieces ? round_up((g->k + pieces - 1) / pieces, block > VL ? block : VL) : VL;
}

/* One product of a task, piece by piece, into its block of C at row m0, column n0. */
static void add_product(float *scratch, const gr_gemm *g, int64_t m0, int64_t n0, int64_t m, int64_t n, float *c,
                        int64_t ldc, int accumulate) {
    int64_t piece = piece_of(g);
    for (int64_t k0 = 0; k0 < g->k || k0 == 0; k0 += piece, accumulate = 1) {
        int64_t k = g->k - k0 < piece ? g->k - k0 : piece;
        const float *a = g->a + m0 * g->a_row + k0 * g->a_col;
        pack_block(scratch, g, k0, k, n0, n);
        if (g->compute == GR_DTYPE_F32)
            block_product(m, n, k, a, g->a_row, g->a_col, scratch + PACKED, c, ldc, accumulate);
        else
            rounded_product(scratch, g, m, n, k, a, c, ldc, accumulate);
    }
}

/* What follows the first product of a block of C at row m0, column n0: the further products and the bias. */
static void finish_block(float *scratch, const gr_gemm *g, int64_t m0, int64_t n0, int64_t m, int64_t n) {
    float *c = g->c + m0 * g->ldc + n0;
    for (const gr_gemm *t = g->next; t; t = t->next) add_product(scratch, t, m0, n0, m, n, c, g->ldc, 1);
    if (g->bias)
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) c[i * g->ldc + j] += g->bias[n0 + j];
}

static void gemm_task(void *context, int64_t chunk, int worker) {
    const gemm_job *job = context;
    const gr_gemm *g = job->g;
    float *scratch = gr_cpu_scratch(job->d, worker);
    int64_t m0 = chunk % job->m_blocks * job->m_block, n0 = chunk / job->m_blocks * job->n_block;
    int64_t m = g->m - m0 < job->m_block ? g->m - m0 : job->m_block;
    int64_t n = g->n - n0 < job->n_block ? g->n - n0 : job->n_block;
    add_product(scratch, g, m0, n0, m, n, g->c + m0 * g->ldc + n0, g->ldc, g->accumulate);
    finish_block(scratch, g, m0, n0, m, n);
}

/* Share of the threads' time that is work when blocks of n columns are dealt to them. */
static double balance(int64_t n, int64_t block, int64_t threads) {
    int64_t blocks = (n + block - 1) / block, rounds = (blocks + threads - 1) / threads, load = rounds * block;
    if ((blocks - 1) % threads == 0) load -= blocks * block - n; /* the last, narrower one runs alone */
    return (double)n / (double)(threads * load);
}

/* Blocks of m rows of C: the widest that keep all threads busy; rows are split too, in units, where columns alone do not. */
static gemm_job plan_blocks(gr_device *d, const gr_gemm *g, int64_t m, int64_t row_unit) {
    const double good = 0.97;
    int64_t type_block = gr_dtype_get(g->b_type)->block, threads = gr_threads_count(d->threads);
    int64_t unit = !g->b_transposed && type_block > PANEL ? type_block : PANEL;
    gemm_job job = {.d = d, .g = g, .m_block = m, .n_block = N_BLOCK, .m_blocks = 1};
    for (int64_t block = N_BLOCK - unit; block >= unit && balance(g->n, job.n_block, threads) < good; block -= unit)
        if (balance(g->n, block, threads) > balance(g->n, job.n_block, threads)) job.n_block = block;
    int64_t n_blocks = (g->n + job.n_block - 1) / job.n_block;
    bool balanced = balance(g->n, job.n_block, threads) >= good;
    while (!balanced && job.m_block > ROWS_LARGE && n_blocks * job.m_blocks < 3 * threads) {
        job.m_block = round_up((job.m_block + 1) / 2, row_unit);
        job.m_blocks = (m + job.m_block - 1) / job.m_block;
    }
    return job;
}

static int64_t chunks_of(const gr_gemm *g, const gemm_job *job) { return (g->n + job->n_block - 1) / job->n_block * job->m_blocks; }

#if defined(GR_AMX)
#include "kernels/cpu/amx.h"
#endif

void LEVEL(gr_gemm)(gr_device *d, const gr_gemm *g) {
    if (g->m == 0 || g->n == 0) return;
#if defined(GR_AMX)
    if (g->compute == GR_DTYPE_BF16) {
        amx_gemm(d, g);
        return;
    }
#endif
    gemm_job job = plan_blocks(d, g, g->m, TILE_ROWS);
    gr_threads_run(d->threads, chunks_of(g, &job), gemm_task, &job);
}

void LEVEL(gr_linear_forward)(gr_device *d, float *y, int64_t ldy, float *h, const float *x, const float *xd,
                              const gr_linear *const *group, int n_group, int64_t n) {
    gr_linear_forward_by(LEVEL(gr_gemm), LEVEL(gr_int8), d, y, ldy, h, x, xd, group, n_group, n);
}

void LEVEL(gr_linear_backward)(gr_device *d, float *dx, bool accumulate, float *dxd, float *dh, const float *dy,
                               int64_t ldy, const float *x, const float *xd, const float *h,
                               const gr_linear *const *group, int n_group, int64_t n) {
    gr_linear_backward_by(LEVEL(gr_gemm), LEVEL(gr_int8), d, dx, accumulate, dxd, dh, dy, ldy, x, xd, h, group, n_group, n);
}
