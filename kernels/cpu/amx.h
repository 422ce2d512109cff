/* amx.h - products of bfloat16 on tiles (Intel AMX), for gemm_tmpl.h at the level amx. C[32,32] is four tiles; a step takes 32 of k.
 *
 * A is rounded once for all tasks: [rows, k of a slab], row-major, both filled up with zeros to multiples of 32. A task packs its piece of B into panels
 * of 32 columns: [k / 32][2 halves][16 pairs of k][16 columns][2]. As at the other levels an element is a sum of pieces of k in ascending order;
 * the pieces depend on k alone. */
#ifndef GR_CPU_AMX_H
#define GR_CPU_AMX_H

enum {
    AMX_K = 32,                        /* of a step */
    AMX_N = 32,                        /* columns of a panel, rows of a block */
    AMX_PIECE = 512,                   /* a panel of 32 KiB stays in the first-level cache */
    AMX_ROWS = 1024,                   /* rows of A rounded at once */
    AMX_STEP_VALUES = AMX_K * AMX_N,   /* of a panel */
    AMX_BLOCK = A_ROWS,                /* scratch, in floats: a block of C; rows of B as floats lie at ROWS */
};
_Static_assert(AMX_PIECE * N_BLOCK / 2 <= ROWS - PACKED, "packed B");
_Static_assert(VL * N_BLOCK <= A_ROWS - ROWS && 2 * AMX_PIECE <= A_ROWS - ROWS, "rows of B");
_Static_assert((int)AMX_BLOCK + AMX_N * AMX_N <= (int)GR_CPU_SCRATCH, "scratch");

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* Static: the intrinsic reads more of it than the compiler believes. */
static const tile_config amx_tiles = {
    .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

/* 16 rounded floats (bits in the upper halves) as 16 bfloat16. */
static inline __m256i amx_halves(vf v) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(v_round_bf16(v)), 16));
}

typedef struct amx_rows {
    uint16_t *data; /* [round_up(m, 32), k] */
    int64_t m, k;   /* k: of the slab, a multiple of 32 */
    const gr_gemm *g;
    int64_t m0, k0, count; /* the slab's first row and k; k that exist */
} amx_rows;

/* Rows [begin,end) of the slab in groups of 16; A may lie either way round. */
static void amx_round_rows(const void *args, int64_t begin, int64_t end) {
    const amx_rows *r = args;
    const gr_gemm *g = r->g;
    for (int64_t i0 = begin * VL; i0 < end * VL; i0 += VL) {
        int64_t rows = r->m - i0 < VL ? r->m - i0 : VL;
        const float *a = g->a + (r->m0 + i0) * g->a_row + r->k0 * g->a_col;
        for (int64_t p = 0; p < r->k; p += VL) {
            int64_t count = r->count - p < VL ? r->count - p : VL;
            vf v[VL];
            for (int i = 0; i < VL; i++) v[i] = v_set(0);
            if (g->a_col == 1) {
                for (int64_t i = 0; i < rows && count > 0; i++) v[i] = v_load_n(a + i * g->a_row + p, count);
            } else if (rows > 0) {
                for (int64_t i = 0; i < count; i++) v[i] = v_load_n(a + (p + i) * g->a_col, rows);
                v_transpose(v);
            }
            for (int64_t i = 0; i < VL; i++) _mm256_storeu_si256((void *)(r->data + (i0 + i) * r->k + p), amx_halves(v[i]));
        }
    }
}

/* Rows k0..k0+k, columns n0..n0+n of B into panels. */
static void amx_pack(float *scratch, const gr_gemm *g, int64_t k0, int64_t k, int64_t n0, int64_t n) {
    uint16_t *packed = (uint16_t *)(scratch + PACKED);
    float *rows = scratch + ROWS;
    int64_t steps = (k + AMX_K - 1) / AMX_K;
    for (int64_t j = 0; j < round_up(n, AMX_N); j += VL) { /* half a panel */
        uint16_t *half = packed + j / AMX_N * steps * AMX_STEP_VALUES + j % AMX_N * AMX_K;
        int64_t columns = n - j < VL ? n - j : VL;
        for (int64_t s = 0; s < steps && g->b_transposed; s++) {
            /* a column's 16 pairs are 16 lanes of 32 bits: transposed, they are the tile */
            int64_t count = k - s * AMX_K < AMX_K ? k - s * AMX_K : AMX_K;
            vf v[VL];
            for (int64_t i = 0; i < VL; i++) {
                v[i] = v_set(0);
                if (i >= columns) continue;
                const float *x = storage_row(rows, g, n0 + j + i, k0 + s * AMX_K, count);
                __m256i low = amx_halves(v_load_n(x, count < VL ? count : VL));
                __m256i high = count > VL ? amx_halves(v_load_n(x + VL, count - VL)) : _mm256_setzero_si256();
                v[i] = _mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
            }
            v_transpose(v);
            for (int i = 0; i < VL; i++) v_store((float *)(half + s * AMX_STEP_VALUES) + i * VL, v[i]);
        }
    }
    if (g->b_transposed) return;
    for (int64_t p = 0; p < steps * AMX_K; p += 2) { /* two rows at a time, interleaved */
        const float *x = p < k ? storage_row(rows, g, k0 + p, n0, n) : NULL;
        const float *y = p + 1 < k ? storage_row(rows + N_BLOCK + 2 * K_BLOCK, g, k0 + p + 1, n0, n) : NULL;
        for (int64_t j = 0; j < round_up(n, AMX_N); j += VL) {
            int64_t columns = n - j < VL ? n - j : VL;
            uint16_t *to = packed + (j / AMX_N * steps + p / AMX_K) * AMX_STEP_VALUES + j % AMX_N * AMX_K + p % AMX_K / 2 * 2 * VL;
            __m512i even = x && columns > 0 ? _mm512_castps_si512(v_round_bf16(v_load_n(x + j, columns))) : _mm512_setzero_si512();
            __m512i odd = y && columns > 0 ? _mm512_castps_si512(v_round_bf16(v_load_n(y + j, columns))) : _mm512_setzero_si512();
            odd = _mm512_and_si512(odd, _mm512_set1_epi32((int)0xffff0000));
            _mm512_storeu_si512(to, _mm512_or_si512(odd, _mm512_srli_epi32(even, 16)));
        }
    }
}

/* C[m <= 32, n <= 32] (+)= A panel, over steps of 32. */
static void amx_block(float *block, const uint16_t *a, int64_t lda, const uint16_t *panel, int64_t steps, float *c, int64_t ldc, int64_t m,
                      int64_t n, int accumulate) {
    const int64_t stride = lda * 2;
    __asm__ volatile("" ::: "memory"); /* tile loads do not tell the compiler what they read */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; s++, a += AMX_K, panel += AMX_STEP_VALUES) {
        _tile_stream_loadd(4, a, stride); /* streamed: the panel keeps the first-level cache */
        _tile_stream_loadd(5, a + 16 * lda, stride);
        _tile_loadd(6, panel, 64);
        _tile_loadd(7, panel + AMX_STEP_VALUES / 2, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, block, 4 * AMX_N);
    _tile_stored(1, block + VL, 4 * AMX_N);
    _tile_stored(2, block + 16 * AMX_N, 4 * AMX_N);
    _tile_stored(3, block + 16 * AMX_N + VL, 4 * AMX_N);
    __asm__ volatile("" ::: "memory");
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j += VL) {
            int64_t count = n - j < VL ? n - j : VL;
            float *to = c + i * ldc + j;
            vf v = v_load_n(block + i * AMX_N + j, count);
            v_store_n(to, accumulate ? v_add(v_load_n(to, count), v) : v, count);
        }
}

typedef struct amx_job {
    gemm_job blocks; /* of the rows of this slab */
    amx_rows rows;
    bool last;       /* slab: further products and the bias follow */
} amx_job;

static void amx_task(void *context, int64_t chunk, int worker) {
    const amx_job *job = context;
    const gr_gemm *g = job->rows.g;
    float *scratch = gr_cpu_scratch(job->blocks.d, worker);
    int64_t m0 = chunk % job->blocks.m_blocks * job->blocks.m_block, n0 = chunk / job->blocks.m_blocks * job->blocks.n_block;
    int64_t m = job->rows.m - m0 < job->blocks.m_block ? job->rows.m - m0 : job->blocks.m_block;
    int64_t n = g->n - n0 < job->blocks.n_block ? g->n - n0 : job->blocks.n_block;
    float *c = g->c + (job->rows.m0 + m0) * g->ldc + n0;
    int accumulate = g->accumulate || job->rows.k0 > 0;
    _tile_loadconfig(&amx_tiles);
    for (int64_t k0 = 0; k0 < job->rows.count || k0 == 0; k0 += AMX_PIECE, accumulate = 1) {
        int64_t k = job->rows.count - k0 < AMX_PIECE ? job->rows.count - k0 : AMX_PIECE, steps = (k + AMX_K - 1) / AMX_K;
        amx_pack(scratch, g, job->rows.k0 + k0, k, n0, n);
        for (int64_t j = 0; j < n; j += AMX_N)
            for (int64_t i = 0; i < m; i += AMX_N)
                amx_block(scratch + AMX_BLOCK, job->rows.data + (m0 + i) * job->rows.k + k0, job->rows.k,
                          (const uint16_t *)(scratch + PACKED) + j / AMX_N * steps * AMX_STEP_VALUES, steps, c + i * g->ldc + j, g->ldc,
                          m - i < AMX_N ? m - i : AMX_N, n - j < AMX_N ? n - j : AMX_N, accumulate);
    }
    _tile_release();
    if (job->last) finish_block(scratch, g, job->rows.m0 + m0, n0, m, n);
}

static void amx_gemm(gr_device *d, const gr_gemm *g) {
    amx_job job = {.rows = {.data = ((const gr_cpu *)d->impl)->rounded, .g = g}};
    for (job.rows.m0 = 0; job.rows.m0 < g->m; job.rows.m0 += AMX_ROWS) {
        job.rows.m = g->m - job.rows.m0 < AMX_ROWS ? g->m - job.rows.m0 : AMX_ROWS;
        int64_t rows = round_up(job.rows.m, AMX_N), slab = GR_CPU_ROUNDED / (2 * rows) / AMX_PIECE * AMX_PIECE;
        job.blocks = plan_blocks(d, g, job.rows.m, AMX_N);
        for (job.rows.k0 = 0; job.rows.k0 < g->k || job.rows.k0 == 0; job.rows.k0 += slab) {
            job.rows.count = g->k - job.rows.k0 < slab ? g->k - job.rows.k0 : slab;
            job.rows.k = round_up(job.rows.count, AMX_K);
            job.last = job.rows.k0 + slab >= g->k;
            gr_cpu_for(d, rows / VL, 1, amx_round_rows, &job.rows);
            gr_threads_run(d->threads, chunks_of(g, &job.blocks), amx_task, &job);
        }
    }
}

#endif
