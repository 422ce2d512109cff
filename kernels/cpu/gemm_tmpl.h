/* gemm_tmpl.h - GEMM and linears of a vectorised level. A task owns a block of C: for each piece of k it packs the piece
 * of B (dequantised, scaled, rounded) into panels of its thread's scratch, which then stay in the second-level cache,
 * and multiplies with A read in place. The pieces depend on k and the dtype alone: their sums are added in order. */
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/impl.h"
#include "kernels/cpu/tile.h"
#include "kernels/dequant.h"
#if defined(GR_BF16)
#include "kernels/cpu/bf16.h"
#endif

enum {
    LINE = 64,       /* bytes of a cache line */
    ROWS_AHEAD = 16, /* storage rows fetched before they are converted */
    K_PIECE = 256,   /* rows of a packed block: the sliver of A and a panel share the first-level cache */
    N_BLOCK = 256,   /* columns of a packed block at most */
    K_BLOCK = 256,   /* the largest block of a dtype */
    TAIL_K = 32,     /* of a product that continues the sums of another at most */
    LONG_K = 16384,  /* of a contraction of bfloat16 that is made in slabs of LONG_PIECES pieces */
    LONG_PIECES = 4,
    ROWS_LARGE = 64, /* above: packing is amortised, rows may be split among threads */
#if defined(GR_AMX)
    ROW_UNIT = BF16_ROWS,
#else
    ROW_UNIT = TILE_ROWS,
#endif
};

/* Scratch of a task: packed B of a tail, packed B, then a buffer of storage rows, then copied rows of A. */
enum {
    TAIL = 0,
    PACKED = TAIL + TAIL_K * N_BLOCK,
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
    const int64_t row_bytes = g->b_ld / type->block * type->block_bytes, bytes = (last - first) * type->block_bytes;
    const char *src = (const char *)g->b + row * row_bytes + first * type->block_bytes;
    for (int64_t i = 0; i < bytes + LINE - 1; i += LINE) _mm_prefetch(src + ROWS_AHEAD * row_bytes + i, _MM_HINT_T0);
    dequant_row(buffer, g->b_type, src, (last - first) * type->block);
    float *x = buffer + begin - first * type->block;
    if (g->alpha != 1)
        for (int64_t i = 0; i < n; i++) x[i] *= g->alpha;
    if (g->compute != GR_DTYPE_F32) round_values(x, n, g->compute);
    return x;
}

/* Rows k0..k0+k, columns n0..n0+n of B into panels. */
static void pack_block(float *panels, float *scratch, const gr_gemm *g, int64_t k0, int64_t k, int64_t n0, int64_t n) {
    float *rows = scratch + ROWS;
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

static void fetch_row(const float *x, int64_t n) {
    for (int64_t j = 0; j < n; j += 16) _mm_prefetch((const char *)(x + j), _MM_HINT_T1);
}

/* The product of a block with tile rows of A copied first: rounded to the compute type, or because they stand where they would
 * crowd one set of a cache. */
static void copied_product(float *scratch, const gr_gemm *g, int64_t m, int64_t n, int64_t k, const float *a, const tail *more,
                           float *c, int64_t ldc, int accumulate) {
    float *rows = scratch + A_ROWS;
    for (int64_t row = 0; row < m; row += TILE_ROWS) {
        const tail here = tail_at(more, row, 0);
        int64_t mr = m - row < TILE_ROWS ? m - row : TILE_ROWS;
        for (int64_t i = 0; i < mr; i++) {
            const float *from = a + (row + i) * g->a_row;
            if (g->a_col == 1) memcpy(rows + i * k, from, (size_t)k * sizeof *rows);
            for (int64_t p = 0; p < k && g->a_col != 1; p++) rows[i * k + p] = from[p * g->a_col];
        }
        if (g->compute != GR_DTYPE_F32) round_values(rows, mr * k, g->compute);
        for (int64_t i = row + TILE_ROWS; i < m && i < row + 2 * TILE_ROWS; i++) { /* they come while this one is multiplied */
            fetch_row(a + i * g->a_row, g->a_col == 1 ? k : 0);
            fetch_row(c + i * ldc, n);
        }
        block_product(mr, n, k, rows, k, 1, scratch + PACKED, &here, c + row * ldc, ldc, accumulate);
    }
}

/* Rows a multiple of 4 KiB apart share a set of the first-level cache, which holds fewer lines than a tile has rows. */
static bool rows_collide(const gr_gemm *g) { return g->a_col == 1 && g->a_row % 1024 == 0; }

/* Rows of an A rounded to pairs of bfloat16, [m filled up, ld]. */
typedef struct rounded_a {
    const float *a;
    int64_t a_row, a_col, k;
    float *pairs;
    int64_t ld;
} rounded_a;

/* How C of a product is cut into tasks: rows [first, first+m) in blocks. */
typedef struct blocks {
    int64_t first, m, m_block, n_block, m_blocks, count;
} blocks;

typedef struct gemm_job {
    gr_device *d;
    const gr_gemm *products;
    blocks blocks[GR_GEMM_PRODUCTS]; /* of each product */
    rounded_a rounded[GR_GEMM_TERMS];
    int n_rounded;
    int64_t piece; /* of k, where the product is a part of a longer one; 0: of its own */
} gemm_job;

static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/* k in equal pieces of whole dtype blocks: a function of the product alone. */
static int64_t piece_of(const gr_gemm *g) {
    int64_t block = gr_dtype_get(g->b_type)->block, pieces = (g->k + K_PIECE - 1) / K_PIECE;
    return pieces ? round_up((g->k + pieces - 1) / pieces, block > VL ? block : VL) : VL;
}

/* The product after g in its chain as a tail of g for a block of C, if it may be one; else none. */
static tail tail_of(float *scratch, const gr_gemm *g, int64_t m0, int64_t n0, int64_t n) {
    const gr_gemm *t = g->next;
    if (!t || t->compute != GR_DTYPE_F32 || t->k > TAIL_K || t->a_col != 1) return (tail){0};
    pack_block(scratch + TAIL, scratch, t, 0, t->k, n0, n);
    return (tail){t->k, t->a_row, t->a + m0 * t->a_row, scratch + TAIL};
}

/* One product of a task, piece by piece, and its tail with the last one, into its block of C at row m0, column n0. */
static void add_product(float *scratch, const gr_gemm *g, int64_t m0, int64_t n0, int64_t m, int64_t n, tail more, float *c,
                        int64_t ldc, int accumulate) {
    int64_t piece = piece_of(g);
    for (int64_t k0 = 0; k0 < g->k || k0 == 0; k0 += piece, accumulate = 1) {
        int64_t k = g->k - k0 < piece ? g->k - k0 : piece;
        const float *a = g->a + m0 * g->a_row + k0 * g->a_col;
        const tail with = k0 + k < g->k ? (tail){0} : more;
        pack_block(scratch + PACKED, scratch, g, k0, k, n0, n);
        if (g->compute == GR_DTYPE_F32 && !rows_collide(g))
            block_product(m, n, k, a, g->a_row, g->a_col, scratch + PACKED, &with, c, ldc, accumulate);
        else copied_product(scratch, g, m, n, k, a, &with, c, ldc, accumulate);
    }
}

#if defined(GR_BF16)
#include "kernels/cpu/gemm_bf16.h"
#else
static void add_bf16_product(const gemm_job *job, float *scratch, const gr_gemm *g, int64_t first, int64_t m0, int64_t n0,
                             int64_t m, int64_t n, tail more, float *c, int64_t ldc, int accumulate) {
    (void)job, (void)first;
    add_product(scratch, g, m0, n0, m, n, more, c, ldc, accumulate);
}
#endif

/* A block of C: the product, what is added to it, the bias. */
static void gemm_task(void *context, int64_t chunk, int worker) {
    const gemm_job *job = context;
    float *scratch = gr_cpu_scratch(job->d, worker);
    int which = 0;
    for (; chunk >= job->blocks[which].count; which++) chunk -= job->blocks[which].count;
    const gr_gemm *g = &job->products[which];
    const blocks *b = &job->blocks[which];
    int64_t at = chunk % b->m_blocks * b->m_block, m0 = b->first + at, n0 = chunk / b->m_blocks * b->n_block;
    int64_t m = b->m - at < b->m_block ? b->m - at : b->m_block, n = g->n - n0 < b->n_block ? g->n - n0 : b->n_block;
    float *c = g->c + m0 * g->ldc + n0;
    int accumulate = g->accumulate;
    for (const gr_gemm *t = g; t; t = t->next, accumulate = 1) {
        tail more = tail_of(scratch, t, m0, n0, n);
        if (t->compute == GR_DTYPE_BF16) add_bf16_product(job, scratch, t, b->first, m0, n0, m, n, more, c, g->ldc, accumulate);
        else add_product(scratch, t, m0, n0, m, n, more, c, g->ldc, accumulate);
        if (more.k > 0) t = t->next;
    }
    if (g->bias)
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) c[i * g->ldc + j] += g->bias[n0 + j];
}

/* Share of the threads' time that is work when blocks of n columns are dealt to them. */
static double balance(int64_t n, int64_t block, int64_t threads) {
    int64_t count = (n + block - 1) / block, rounds = (count + threads - 1) / threads, load = rounds * block;
    if ((count - 1) % threads == 0) load -= count * block - n; /* the last, narrower one runs alone */
    return (double)n / (double)(threads * load);
}

/* The widest blocks of rows [first, first+m) that keep all threads busy; rows are split too where columns alone do not. */
static blocks plan_blocks(gr_device *d, const gr_gemm *g, int64_t first, int64_t m) {
    const double good = 0.97;
    int64_t type_block = gr_dtype_get(g->b_type)->block, threads = gr_threads_count(gr_cpu_threads(d));
    int64_t unit = !g->b_transposed && type_block > PANEL ? type_block : PANEL;
    blocks b = {.first = first, .m = m, .m_block = m, .n_block = N_BLOCK, .m_blocks = 1};
    for (int64_t block = N_BLOCK - unit; block >= unit && balance(g->n, b.n_block, threads) < good; block -= unit)
        if (balance(g->n, block, threads) > balance(g->n, b.n_block, threads)) b.n_block = block;
    int64_t n_blocks = (g->n + b.n_block - 1) / b.n_block;
    bool balanced = balance(g->n, b.n_block, threads) >= good;
    while (!balanced && b.m_block > ROWS_LARGE && n_blocks * b.m_blocks < 3 * threads) {
        b.m_block = round_up((b.m_block + 1) / 2, ROW_UNIT);
        b.m_blocks = (m + b.m_block - 1) / b.m_block;
    }
    b.count = n_blocks * b.m_blocks;
    return b;
}

#if defined(GR_BF16)
static void gemm_of_rows(gemm_job *job, const gr_gemm *g, int64_t first, int64_t m) {
    job->products = g;
    job->n_rounded = 0;
    place_rounded(job, g, m, 0);
    round_placed(job, first, m, 0);
    job->blocks[0] = plan_blocks(job->d, g, first, m);
    gr_threads_run(gr_cpu_threads(job->d), job->blocks[0].count, gemm_task, job);
}

/* A contraction so long that neither factor stays in a cache, while C does. */
static bool is_long(const gr_gemm *g) {
    const int64_t floats = round_up(g->m, BF16_ROWS) * (LONG_PIECES * BF16_PIECE + BF16_STEP) / 2; /* of A's rows in a slab */
    return g->compute == GR_DTYPE_BF16 && !g->next && g->k >= LONG_K && g->k / 64 >= g->m && floats <= rounded_floats;
}

/* It is made in slabs of k, of whole pieces: the tasks of a slab share its part of B while it is near, and go on with the sums
 * in C. */
static void gemm_in_slabs_of_k(gemm_job *job, const gr_gemm *g) {
    const gr_dtype_info *type = gr_dtype_get(g->b_type);
    job->piece = bf16_piece_of(job, g);
    const int64_t slab = LONG_PIECES * job->piece;
    for (int64_t k0 = 0; k0 < g->k; k0 += slab) {
        bool last = g->k - k0 <= slab;
        gr_gemm part = *g;
        part.k = last ? g->k - k0 : slab;
        part.a += k0 * g->a_col;
        part.b = (const char *)g->b + (g->b_transposed ? k0 : k0 * g->b_ld) / type->block * type->block_bytes;
        part.accumulate = g->accumulate || k0 > 0;
        if (!last) part.bias = NULL;
        gemm_of_rows(job, &part, 0, g->m);
    }
    job->piece = 0;
}

/* A product whose rounded rows do not all fit at once. */
static void gemm_in_slabs(gemm_job *job, const gr_gemm *g) {
    int64_t rows = rounded_floats / place_rounded(job, g, BF16_ROWS, 0) * BF16_ROWS;
    job->n_rounded = 0;
    for (int64_t first = 0; first < g->m && g->n; first += rows)
        gemm_of_rows(job, g, first, g->m - first < rows ? g->m - first : rows);
}
#endif

void LEVEL(gr_gemm)(gr_device *d, const gr_gemm *products, int n) {
    gemm_job job = {.d = d, .products = products};
    int64_t chunks = 0;
#if defined(GR_BF16)
    if (n == 1 && is_long(products)) {
        gemm_in_slabs_of_k(&job, products);
        return;
    }
    if (!round_all(&job, n)) {
        for (int i = 0; i < n; i++) gemm_in_slabs(&job, &products[i]);
        return;
    }
#endif
    for (int i = 0; i < n; i++) {
        const gr_gemm *g = &products[i];
        if (g->m == 0 || g->n == 0) continue;
        job.blocks[i] = plan_blocks(d, g, 0, g->m);
        chunks += job.blocks[i].count;
    }
    gr_threads_run(gr_cpu_threads(d), chunks, gemm_task, &job);
}

static const gr_products products_here = {LEVEL(gr_gemm), LEVEL(gr_int8), &LEVEL(gr_thin)};

void LEVEL(gr_linear_forward)(gr_device *d, const gr_product *p, int64_t n) { gr_linear_forward_by(&products_here, d, p, n); }

void LEVEL(gr_linear_backward)(gr_device *d, const gr_product *p, gr_rows dx, bool accumulate, int64_t n) {
    gr_linear_backward_by(&products_here, d, p, dx, accumulate, n);
}
