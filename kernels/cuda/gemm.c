/* gemm.c - products by cuBLASLt, with algorithms that are a function of what is multiplied.
 *
 * cuBLASLt is column-major: what it is told is D^T = op(B)^T op(A)^T, so that its columns are our rows, the tokens.
 * The order in which a product is summed depends on ALGO_ID, STAGES and INNER_SHAPE and not on tile or cluster, as long as nothing
 * is split along the contraction (measured: 224 of 224 questions on Hopper). So the algorithm for RECIPE_ROWS rows is the recipe
 * of a kind of product; for another number of rows another tile is taken only if it is of the same recipe. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"

enum { RECIPE_ROWS = 4096, OFFERS = 8, ALIGNED = 16, E4M3 = GR_DTYPE_COUNT };

/* What an algorithm is chosen by: leading dimensions and pointers are aligned to 16 bytes in all. */
typedef struct kind {
    int32_t type, d_type; /* gr_dtype, or E4M3 */
    int32_t a_transposed, b_transposed;
    int64_t m, n, k; /* m, and where the contraction is over tokens k: rounded up to a power of two */
} kind;

typedef struct choice {
    kind of;
    cublasLtMatmulAlgo_t algo;
} choice;

struct gr_cuda_gemm {
    choice *choices; /* [n], in the order in which they were asked for */
    int n, room;
};

bool gr_cuda_gemm_open(gr_device *d) {
    gr_cuda *c = gr_cuda_of(d);
    c->gemm = calloc(1, sizeof *c->gemm);
    if (!c->gemm) gr_cuda_refuse(d, "out of memory");
    return c->gemm != NULL;
}

void gr_cuda_gemm_close(gr_device *d) {
    gr_cuda *c = gr_cuda_of(d);
    if (c->gemm) free(c->gemm->choices);
    free(c->gemm);
    c->gemm = NULL;
}

/* ---- a product as cuBLASLt wants it told ---- */

typedef struct problem {
    cublasLtMatmulDescOpaque_t operation;
    cublasLtMatrixLayoutOpaque_t a, b, d; /* its own A and B: our b and a */
} problem;

static int32_t type_of(const gr_cuda_product *p) { return p->a_scale ? (int32_t)E4M3 : (int32_t)p->type; }

static cudaDataType_t data_type(int32_t type) {
    if (type == E4M3) return CUDA_R_8F_E4M3;
    return type == GR_DTYPE_F32 ? CUDA_R_32F : type == GR_DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

static cublasStatus_t layout(cublasLtMatrixLayout_t l, int32_t type, int64_t rows, int64_t cols, int64_t ld) {
    return cublasLtMatrixLayoutInit(l, data_type(type), (uint64_t)cols, (uint64_t)rows, ld);
}

/* A scale for each row of either: its own A is our b. */
static cublasStatus_t put_scales(cublasLtMatmulDesc_t operation, const float *a_scale, const float *b_scale) {
    const int32_t each = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    const struct {
        cublasLtMatmulDescAttributes_t attribute;
        const void *value;
        size_t size;
    } all[] = {{CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &each, sizeof each},
               {CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &each, sizeof each},
               {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &b_scale, sizeof b_scale},
               {CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &a_scale, sizeof a_scale}};
    cublasStatus_t e = CUBLAS_STATUS_SUCCESS;
    for (size_t i = 0; i < sizeof all / sizeof *all && !e; i++)
        e = cublasLtMatmulDescSetAttribute(operation, all[i].attribute, all[i].value, all[i].size);
    return e;
}

/* A row-major [rows, cols] matrix is a column-major [cols, rows] one. */
static cublasStatus_t pose(problem *q, const gr_cuda_product *p) {
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasStatus_t e = cublasLtMatmulDescInit(&q->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!e && p->b_transposed)
        e = cublasLtMatmulDescSetAttribute(&q->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    if (!e && p->a_transposed)
        e = cublasLtMatmulDescSetAttribute(&q->operation, CUBLASLT_MATMUL_DESC_TRANSB, &transposed, sizeof transposed);
    if (!e && p->a_scale) e = put_scales(&q->operation, p->a_scale, p->b_scale);
    if (!e) e = layout(&q->a, type_of(p), p->b_transposed ? p->n : p->k, p->b_transposed ? p->k : p->n, p->ldb);
    if (!e) e = layout(&q->b, type_of(p), p->a_transposed ? p->k : p->m, p->a_transposed ? p->m : p->k, p->lda);
    if (!e) e = layout(&q->d, (int32_t)p->d_type, p->m, p->n, p->ldd);
    return e;
}

/* ---- choosing ---- */

/* The product that stands for a kind when the library is asked: it sees neither pointers nor distances of rows of one call. */
static gr_cuda_product example(gr_device *d, const kind *k, int64_t m) {
    const float *scale = k->type == E4M3 ? gr_cuda_of(d)->workspace : NULL; /* whatever: nobody looks there */
    return (gr_cuda_product){.m = m,
                             .n = k->n,
                             .k = k->k,
                             .lda = gr_cuda_fill(k->a_transposed ? m : k->k),
                             .ldb = gr_cuda_fill(k->b_transposed ? k->k : k->n),
                             .ldd = gr_cuda_fill(k->n),
                             .a_transposed = k->a_transposed,
                             .b_transposed = k->b_transposed,
                             .type = k->type == E4M3 ? (gr_dtype)k->d_type : (gr_dtype)k->type,
                             .d_type = (gr_dtype)k->d_type,
                             .a_scale = scale,
                             .b_scale = scale};
}

/* What the library offers for m rows, best first; how many. */
static int ask(gr_device *d, const kind *k, int64_t m, cublasLtMatmulHeuristicResult_t offers[OFFERS]) {
    const uint32_t none = CUBLASLT_REDUCTION_SCHEME_NONE, aligned = ALIGNED;
    const size_t space = GR_CUDA_WORKSPACE;
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasLtMatmulPreferenceOpaque_t wish;
    gr_cuda_product p = example(d, k, m);
    problem q;
    int n = 0;
    cublasStatus_t e = pose(&q, &p);
    if (!e) e = cublasLtMatmulPreferenceInit(&wish);
    if (!e) e = cublasLtMatmulPreferenceSetAttribute(&wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none, sizeof none);
    if (!e) e = cublasLtMatmulPreferenceSetAttribute(&wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &space, sizeof space);
    for (int i = 0; i < 4 && !e; i++) e = cublasLtMatmulPreferenceSetAttribute(&wish, alignments[i], &aligned, sizeof aligned);
    if (!gr_cuda_check_blas(d, e, "a product")) return 0;
    e = cublasLtMatmulAlgoGetHeuristic(gr_cuda_of(d)->lt, &q.operation, &q.a, &q.b, &q.d, &q.d, &wish, OFFERS, offers, &n);
    return e ? 0 : n;
}

static uint32_t config(const cublasLtMatmulAlgo_t *a, cublasLtMatmulAlgoConfigAttributes_t attribute) {
    uint32_t wide = 0;
    uint16_t narrow = 0;
    size_t written;
    if (attribute == CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID) {
        (void)cublasLtMatmulAlgoConfigGetAttribute(a, attribute, &narrow, sizeof narrow, &written);
        return narrow;
    }
    (void)cublasLtMatmulAlgoConfigGetAttribute(a, attribute, &wide, sizeof wide, &written);
    return wide;
}

static bool whole(const cublasLtMatmulHeuristicResult_t *r) {
    return r->state == CUBLAS_STATUS_SUCCESS && config(&r->algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) <= 1;
}

static bool same_recipe(const cublasLtMatmulAlgo_t *a, const cublasLtMatmulAlgo_t *b) {
    static const cublasLtMatmulAlgoConfigAttributes_t recipe[] = {CUBLASLT_ALGO_CONFIG_ID, CUBLASLT_ALGO_CONFIG_STAGES_ID,
                                                                  CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID};
    for (size_t i = 0; i < sizeof recipe / sizeof *recipe; i++)
        if (config(a, recipe[i]) != config(b, recipe[i])) return false;
    return true;
}

/* Sums over tokens have no rows that others are compared with: the first offer. Else the best tile for k->m rows that is of the
 * recipe; where few rows are offered none of it (all of them split), the one for twice as many rows, and so on. */
static bool choose(gr_device *d, const kind *k, cublasLtMatmulAlgo_t *algo) {
    cublasLtMatmulHeuristicResult_t offers[OFFERS];
    int64_t recipe_rows = k->a_transposed ? k->m : RECIPE_ROWS;
    int n = ask(d, k, recipe_rows, offers), first = 0;
    while (first < n && !whole(&offers[first])) first++;
    if (first == n) {
        gr_cuda_refuse(d, "cuBLASLt offers no product of %lld x %lld without splitting it", (long long)k->n, (long long)k->k);
        return false;
    }
    *algo = offers[first].algo;
    if (k->m == recipe_rows) return true;
    const cublasLtMatmulAlgo_t recipe = *algo;
    for (int64_t m = k->m; m != recipe_rows; m = m < recipe_rows ? 2 * m : recipe_rows) {
        n = ask(d, k, m, offers);
        for (int i = 0; i < n; i++)
            if (whole(&offers[i]) && same_recipe(&offers[i].algo, &recipe)) {
                *algo = offers[i].algo;
                return true;
            }
    }
    return true;
}

static int64_t power_of_two(int64_t n) {
    int64_t p = 1;
    while (p < n) p *= 2;
    return p;
}

static const cublasLtMatmulAlgo_t *algorithm(gr_device *d, const gr_cuda_product *p) {
    gr_cuda_gemm *g = gr_cuda_of(d)->gemm;
    const kind k = {.type = type_of(p),
                    .d_type = p->d_type,
                    .a_transposed = p->a_transposed,
                    .b_transposed = p->b_transposed,
                    .m = p->a_transposed ? p->m : power_of_two(p->m),
                    .n = p->n,
                    .k = p->a_transposed ? power_of_two(p->k) : p->k};
    for (int i = 0; i < g->n; i++)
        if (memcmp(&g->choices[i].of, &k, sizeof k) == 0) return &g->choices[i].algo;
    if (g->n == g->room) {
        int room = g->room ? 2 * g->room : 64;
        choice *more = realloc(g->choices, (size_t)room * sizeof *more);
        if (!more) {
            gr_cuda_refuse(d, "out of memory");
            return NULL;
        }
        g->choices = more, g->room = room;
    }
    choice *c = &g->choices[g->n];
    c->of = k;
    if (!choose(d, &k, &c->algo)) return NULL;
    g->n++;
    return &c->algo;
}

static bool aligned(const void *p, int64_t ld, int32_t type) {
    int64_t size = type == E4M3 ? 1 : gr_dtype_get((gr_dtype)type)->block_bytes;
    return (uintptr_t)p % ALIGNED == 0 && ld * size % ALIGNED == 0;
}

void gr_cuda_multiply(gr_device *d, const gr_cuda_product *p) {
    gr_cuda *c = gr_cuda_of(d);
    problem q;
    if (gr_cuda_failed(d) || p->m == 0 || p->n == 0) return;
    if (!aligned(p->a, p->lda, type_of(p)) || !aligned(p->b, p->ldb, type_of(p)) || !aligned(p->d, p->ldd, (int32_t)p->d_type)) {
        gr_cuda_refuse(d, "a product of matrices that are not aligned");
        return;
    }
    const cublasLtMatmulAlgo_t *algo = algorithm(d, p);
    if (!algo || c->rehearsing || !gr_cuda_check_blas(d, pose(&q, p), "a product")) return;
    gr_cuda_check_blas(d,
                       cublasLtMatmul(c->lt, &q.operation, &p->alpha, p->b, &q.a, p->a, &q.b, &p->beta, p->d, &q.d, p->d, &q.d,
                                      algo, c->workspace, GR_CUDA_WORKSPACE, gr_cuda_stream(d)),
                       "a product");
}
