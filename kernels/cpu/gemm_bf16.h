/* gemm_bf16.h - gemm_tmpl.h's products of bfloat16: A is rounded once for all tasks, B while a task packs its piece. As with floats
 * an element is a sum of pieces of k in ascending order, and the pieces depend on k and the dtype alone. */
#ifndef GR_CPU_GEMM_BF16_H
#define GR_CPU_GEMM_BF16_H

enum { BF16_PIECE = 640 }; /* values of k in a packed block at most */

/* Scratch of a task: packed B behind that of a tail, then two storage rows, then rows of pairs. */
enum {
    BF16_VALUES = PACKED + BF16_PIECE / 2 * N_BLOCK,
    BF16_LINE = BF16_PIECE + 2 * K_BLOCK,
    BF16_LINES = BF16_VALUES + 2 * BF16_LINE,
    BF16_SCRATCH = BF16_LINES + VL * BF16_PIECE / 2
};
_Static_assert((int)BF16_SCRATCH <= (int)GR_CPU_SCRATCH, "scratch");

/* ---- A ---- */

typedef struct rounding {
    const rounded_a *to;
    int64_t first, m; /* rows of A */
} rounding;

/* Groups of VL rows; A may lie either way round. */
static void round_rows(const void *args, int64_t begin, int64_t end) {
    const rounding *r = args;
    const rounded_a *to = r->to;
    int64_t pairs = bf16_pairs(to->k);
    for (int64_t i0 = begin * VL; i0 < end * VL && i0 < r->m; i0 += VL) {
        int64_t rows = r->m - i0 < VL ? r->m - i0 : VL;
        const float *a = to->a + (r->first + i0) * to->a_row;
        if (to->a_col == 1) {
            for (int64_t i = 0; i < rows; i++) bf16_row(to->pairs + (i0 + i) * to->ld, a + i * to->a_row, to->k, pairs);
            continue;
        }
        for (int64_t p = 0; p < 2 * pairs; p += 2 * VL) {
            vf low[VL], high[VL];
            for (int64_t i = 0; i < VL; i++) {
                low[i] = p + i < to->k ? v_load_n(a + (p + i) * to->a_col, rows) : v_set(0);
                high[i] = p + VL + i < to->k ? v_load_n(a + (p + VL + i) * to->a_col, rows) : v_set(0);
            }
            v_transpose(low);
            v_transpose(high);
            for (int64_t i = 0; i < rows; i++) v_store(to->pairs + (i0 + i) * to->ld + p / 2, v_pairs(low[i], high[i]));
        }
    }
}

static const rounded_a *find_rounded(const gemm_job *job, const gr_gemm *g) {
    for (int i = 0; i < job->n_rounded; i++) {
        const rounded_a *r = &job->rounded[i];
        if (r->a == g->a && r->a_row == g->a_row && r->a_col == g->a_col && r->k == g->k) return r;
    }
    return NULL;
}

/* Places for the rows of a product's factors behind those of the job already there; the floats taken, with m rows each. */
static int64_t place_rounded(gemm_job *job, const gr_gemm *g, int64_t m, int64_t taken) {
    float *buffer = gr_cpu_shared(job->d);
    for (const gr_gemm *t = g; t; t = t->next) {
        if (t->compute != GR_DTYPE_BF16 || find_rounded(job, t)) continue;
        int64_t ld = bf16_pairs(t->k) + BF16_STEP / 2; /* never a power of two apart, which would crowd one set of a cache */
        job->rounded[job->n_rounded++] =
            (rounded_a){.a = t->a, .a_row = t->a_row, .a_col = t->a_col, .k = t->k, .pairs = buffer + taken, .ld = ld};
        taken += round_up(m, BF16_ROWS) * ld;
    }
    return taken;
}

static void round_placed(const gemm_job *job, int64_t first, int64_t m, int from) {
    for (int i = from; i < job->n_rounded; i++) {
        rounding r = {&job->rounded[i], first, m};
        gr_cpu_for(job->d, (m + VL - 1) / VL, 1, round_rows, &r);
    }
}

static const int64_t rounded_floats = GR_CPU_SHARED / (int64_t)sizeof(float);

/* Rounds the factors of n products; false, with nothing done, when they do not all fit. */
static bool round_all(gemm_job *job, int n) {
    int64_t taken = 0;
    for (int i = 0; i < n; i++) taken = place_rounded(job, &job->products[i], job->products[i].m, taken);
    job->n_rounded = 0;
    if (taken > rounded_floats) return false;
    taken = 0;
    for (int i = 0; i < n; i++) {
        int before = job->n_rounded;
        taken = place_rounded(job, &job->products[i], job->products[i].m, taken);
        round_placed(job, 0, job->products[i].m, before);
    }
    return true;
}

/* ---- B ---- */

/* Rows k0..k0+k, columns n0..n0+n of B into panels. */
static void pack_bf16(float *scratch, const gr_gemm *g, int64_t k0, int64_t k, int64_t n0, int64_t n) {
    float *panels = scratch + PACKED, *values = scratch + BF16_VALUES, *lines = scratch + BF16_LINES;
    const int64_t pairs = bf16_pairs(k);
    gr_gemm exact = *g; /* pairs are rounded when they are made */
    exact.compute = GR_DTYPE_F32;
    for (int64_t j = 0; g->b_transposed && j < n; j += VL) {
        int64_t count = n - j < VL ? n - j : VL;
        for (int64_t i = 0; i < count; i++)
            bf16_row(lines + i * (BF16_PIECE / 2), storage_row(values, &exact, n0 + j + i, k0, k), k, pairs);
        pack_columns(panels + j / PANEL * PANEL * pairs + j % PANEL, lines, BF16_PIECE / 2, count, pairs);
    }
    for (int64_t p = 0; !g->b_transposed && p < pairs; p++) {
        const float *x = 2 * p < k ? storage_row(values, &exact, k0 + 2 * p, n0, n) : NULL;
        const float *y = 2 * p + 1 < k ? storage_row(values + BF16_LINE, &exact, k0 + 2 * p + 1, n0, n) : NULL;
        pack_bf16_row(panels, x, y, n, pairs, p);
    }
}

static int64_t bf16_piece_of(const gemm_job *job, const gr_gemm *g) {
    if (job->piece) return job->piece;
    int64_t block = gr_dtype_get(g->b_type)->block, unit = block > BF16_STEP ? block : BF16_STEP, most = BF16_PIECE / unit * unit;
    int64_t pieces = (g->k + most - 1) / most;
    return pieces ? round_up((g->k + pieces - 1) / pieces, unit) : unit;
}

/* As add_product; `first` is the row of A where the rounded rows begin. */
static void add_bf16_product(const gemm_job *job, float *scratch, const gr_gemm *g, int64_t first, int64_t m0, int64_t n0,
                             int64_t m, int64_t n, tail more, float *c, int64_t ldc, int accumulate) {
    const rounded_a *a = find_rounded(job, g);
    int64_t piece = bf16_piece_of(job, g);
    for (int64_t k0 = 0; k0 < g->k || k0 == 0; k0 += piece, accumulate = 1) {
        int64_t k = g->k - k0 < piece ? g->k - k0 : piece;
        pack_bf16(scratch, g, k0, k, n0, n);
        const tail with = k0 + k < g->k ? (tail){0} : more;
        bf16_product(m, n, bf16_pairs(k), a->pairs + (m0 - first) * a->ld + k0 / 2, a->ld, scratch + PACKED, &with, c, ldc,
                     accumulate);
    }
}

#endif
