/* cuda.h - what the files of the CUDA backend share: the device, its streams and errors, scratch, and the forms of groups.
 * Private to kernels/cuda; all of it is compiled into libgraft_cuda.so. Usable from C and from CUDA C. */
#ifndef GR_CUDA_H
#define GR_CUDA_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels/cuda/shape.h"
#include "kernels/kernels.h"

enum {
    GR_CUDA_QUEUES = 3,
    GR_CUDA_MARKS = 128,     /* of a queue that are told apart; an older one is waited for as a newer */
    GR_CUDA_UPLOADS = 64,    /* that are under way at once */
    GR_CUDA_PIECE = 8 << 20, /* bytes that are copied at once, either way */
    GR_CUDA_RING = 64 << 20  /* bytes of pinned memory that uploads go through */
};

/* What scratch is for; each use has memory of its own, so that none overwrites another within an operation. */
typedef enum gr_cuda_use {
    GR_CUDA_OPERAND, /* the left factor of a product, where it is not as the product wants it */
    GR_CUDA_FACTOR,  /* the other one, where neither is */
    GR_CUDA_MATRIX,  /* a group's matrix, where it has no form */
    GR_CUDA_PARTS,   /* partial sums */
    GR_CUDA_RESULT,  /* of a product that goes elsewhere */
    GR_CUDA_EIGHT,   /* the left factor in e4m3 */
    GR_CUDA_MAPS,    /* of moments in 8 bits: what it holds stays */
    GR_CUDA_USES
} gr_cuda_use;

typedef struct gr_cuda_gemm gr_cuda_gemm;     /* gemm.c: the algorithms that were chosen */
typedef struct gr_cuda_graphs gr_cuda_graphs; /* graphs.c: work that was recorded */
typedef struct gr_cuda_ranks gr_cuda_ranks;   /* ranks.c: the cards of other ranks */

/* Bytes of pinned memory that an upload reads until `done`. */
typedef struct gr_cuda_upload {
    int64_t begin, end;
    cudaEvent_t done;
} gr_cuda_upload;

typedef struct gr_cuda {
    gr_device device; /* first: a pointer to it is one to all */
    int index;        /* of the card */
    int cc;           /* compute capability: 80, 90 */
    int sms;          /* multiprocessors */
    int64_t memory;   /* bytes of all of it */
    char level[48];   /* "cuda:0" */
    char id[40];      /* its UUID */
    char about[256];
    cudaStream_t stream[GR_CUDA_QUEUES];
    cudaStream_t down_stream; /* downloads wait for no upload */
    cudaEvent_t event[GR_CUDA_QUEUES][GR_CUDA_MARKS];
    int64_t marks[GR_CUDA_QUEUES];          /* made so far */
    gr_cuda_upload upload[GR_CUDA_UPLOADS]; /* number i is at i % GR_CUDA_UPLOADS */
    int64_t uploads, oldest;                /* begun so far; the first that may be under way */
    char *ring;                             /* pinned, [GR_CUDA_RING] */
    int64_t ring_at;
    char *down; /* pinned, [GR_CUDA_PIECE]: downloads */
    cublasLtHandle_t lt;
    void *workspace;
    gr_cuda_gemm *gemm;
    gr_cuda_graphs *graphs;
    gr_cuda_ranks *ranks; /* NULL: this one is alone */
    void *scratch[GR_CUDA_USES];
    int64_t scratch_bytes[GR_CUDA_USES];
    bool rehearsing; /* operations are noted alone */
    int64_t wanted[GR_CUDA_USES];
    char wrong[512]; /* the first thing that failed; empty: nothing */
} gr_cuda;

static inline gr_cuda *gr_cuda_of(gr_device *d) { return (gr_cuda *)d; }
static inline cudaStream_t gr_cuda_stream(gr_device *d) { return gr_cuda_of(d)->stream[GR_QUEUE_COMPUTE]; }

/* ---- device.c: errors, memory ---- */

/* Whether something failed since the device was opened. From then on nothing is launched or copied any more: no weight changes
 * after a failure, and sync says what it was. */
static inline bool gr_cuda_failed(gr_device *d) { return gr_cuda_of(d)->wrong[0] != '\0'; }
/* Whether nothing is to be launched: after a failure, and in a rehearsal. */
static inline bool gr_cuda_idle(gr_device *d) { return gr_cuda_failed(d) || gr_cuda_of(d)->rehearsing; }
/* Notes a failure of `what` ("rmsnorm_forward", "cuBLASLt: ..."); success is fine. false where it failed, now or before. */
bool gr_cuda_check(gr_device *d, cudaError_t e, const char *what);
bool gr_cuda_check_blas(gr_device *d, cublasStatus_t e, const char *what);
/* Notes a refusal in words. */
void gr_cuda_refuse(gr_device *d, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Memory of at least so many bytes for a use, 256-byte aligned, until the next call for that use; grows when it must (which waits
 * for the device). NULL when out of memory, which is noted. */
void *gr_cuda_scratch(gr_device *d, gr_cuda_use use, int64_t bytes);

/* ---- linear.cu: forms of groups ---- */

/* gr_group.form: one matrix of the type of the products, rows of ld elements:
 *     [ W  sB b ]   N rows: the members' one after the other, filled up to a multiple of GR_CUDA_PAD with zeros
 *     [ A  0  0 ]   R rows: those of all LoRAs in order, filled up likewise; W and A have K columns, filled up likewise
 * so that y = [x|h|1 1] [W|sB|b]^T and dx = [dy|dh] [W;A] are single products. b, where a member has a bias, are two columns: the
 * bias as the type has it, and what is left of it. Behind them lies the transposed sB [R, N] for dh = dy sB, which reads it along
 * rows. */
typedef struct gr_cuda_form {
    gr_dtype type;
    int64_t N, K, R; /* filled up */
    int64_t ld;      /* K + R */
    void *matrix;  /* [N + R, ld], then [R, N]; NULL: the weights stay as the file has them, and are expanded before each product */
    bool borrowed; /* the matrix is the members' own (gr_cuda_in_place): N rows alone */
    uint8_t *eight; /* behind it: W^T in e4m3, [K, N], and [K] scales; NULL: dx is made of the matrix */
} gr_cuda_form;

int64_t gr_cuda_group_bytes(gr_device *d, const gr_group *g);
bool gr_cuda_place(gr_device *d, gr_group *g);
void gr_cuda_renew(gr_device *d, gr_group *g);
void gr_cuda_release(gr_device *d, gr_group *g);
/* Elements from a row of activations to the next: whole multiples of GR_CUDA_PAD, and as many spare for h. What linear_forward and
 * linear_backward are given as x and y has all of its row to itself: of rows that are laid out so the spare columns are written. */
int64_t gr_cuda_row_stride(gr_device *d, int64_t width, gr_dtype type);

/* ---- gemm.c: products by cuBLASLt ---- */

/* D[m,n] = alpha * op(A) op(B) + beta * D with row-major matrices: a is [m,k] (a_transposed: [k,m]), b is [k,n] (b_transposed:
 * [n,k]); ld: elements from a row to the next. Sums are float32. The algorithm depends on what is product of what (types, layout,
 * n, k), never on m's size alone: a row's bits are the same among any number of rows, and never by split-K. */
typedef struct gr_cuda_product {
    int64_t m, n, k;
    const void *a, *b;
    void *d;
    int64_t lda, ldb, ldd;
    bool a_transposed, b_transposed;
    gr_dtype type;   /* of a and b */
    gr_dtype d_type; /* F32 or `type` */
    float alpha, beta;
    const float *a_scale, *b_scale; /* [m], [n]; given: a and b are of e4m3 times these (then a is not transposed, b is, n and k are
                                       multiples of 16, and sums are exact, not fast: no FAST_ACCUM); NULL: of `type` */
} gr_cuda_product;

bool gr_cuda_gemm_open(gr_device *d);
void gr_cuda_gemm_close(gr_device *d);
void gr_cuda_multiply(gr_device *d, const gr_cuda_product *p);

/* ---- graphs.c: work that comes again ---- */

bool gr_cuda_graphs_open(gr_device *d);
void gr_cuda_graphs_close(gr_device *d);
bool gr_cuda_repeat(gr_device *d, const gr_repeat *key);
/* Memory or forms go: what was recorded may point there. */
void gr_cuda_graphs_forget(gr_device *d);
/* Is what is launched recorded? Then nothing can be allocated: the record is spoilt, and the work is given again. */
bool gr_cuda_graphs_spoil(gr_device *d);

/* ---- ranks.c: cards of several ranks ---- */

/* Waits for what the stream was given, or for the event where it is not NULL. With an eye on the other ranks, where there are some:
 * when one of them is lost, nothing is waited for any more and the device has failed. false: it has. */
bool gr_cuda_await(gr_device *d, cudaStream_t stream, cudaEvent_t event, const char *what);
bool gr_cuda_ranks_name(gr_device *d, char *name, const char **about);
bool gr_cuda_ranks_join(gr_device *d, const char *name, int rank, int size, const gr_watch *watch);
void gr_cuda_exchange(gr_device *d, const gr_piece *out, const gr_piece *in);
void gr_cuda_ranks_leave(gr_device *d);
void gr_cuda_ranks_close(gr_device *d);

/* ---- dequant.cu ---- */

/* to[rows, cols] of type F32, BF16 or F16, ld elements from a row to the next, = w; columns from cols to fill_cols become 0. */
void gr_cuda_expand(gr_device *d, void *to, int64_t ld, gr_dtype type, const gr_weight *w, int64_t fill_cols);

/* ---- fp8.cu: factors in e4m3 ---- */

/* to[n, ld] = x[n,C] in e4m3, zeros from C on; x = to * scale of the row: its largest magnitude becomes 448. What is 0, or below
 * 2^-100, has the scale 1 and is 0; a row with something that is not finite is NaN, and its scale too. ld is a multiple of 64. */
void gr_cuda_eight_rows(gr_device *d, uint8_t *to, int64_t ld, float *scale, gr_rows x, int64_t n, int64_t C);
/* to[K,N] = the transposed w[N,K] likewise, by a scale for each of its columns: [K], and as many behind them to work with. N and K
 * are multiples of 64. */
void gr_cuda_eight_columns(gr_device *d, uint8_t *to, float *scale, gr_rows w, int64_t N, int64_t K);

/* ---- gemv.cu: few rows ---- */

/* Whether linear_forward of n rows goes the way of few rows: for a group that is not trained. */
bool gr_cuda_few_rows(gr_device *d, const gr_product *p, int64_t n);
void gr_cuda_linear_few(gr_device *d, const gr_product *p, int64_t n);

/* ---- kv.cu: KV caches ---- */

int64_t gr_cuda_kv_bytes(gr_device *d, const gr_kv_shape *shape);
bool gr_cuda_kv_open(gr_device *d, gr_kv *layers, const gr_kv_shape *shape);
void gr_cuda_kv_close(gr_device *d, gr_kv *layers);

/* ---- the operations ---- */

#define GR_OP(name, params, args) void gr_##name##_cuda params;
#include "kernels/ops.def"
#undef GR_OP

#ifdef __cplusplus
}
#endif

#endif
