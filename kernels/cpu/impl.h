/* impl.h - what the files of the CPU backend share: scratch, parallel loops, the GEMM every linear is made of, and the
 * prototypes of all levels. Private to kernels/cpu. */
#ifndef GR_CPU_IMPL_H
#define GR_CPU_IMPL_H

#include "kernels/kernels.h"
#include "kernels/threads.h"

/* Floats of scratch a thread owns for the time of one chunk; the largest user is attention_forward. */
enum { GR_CPU_SCRATCH = 320 * 1024 };

typedef struct gr_cpu {
    float *scratch; /* [threads, GR_CPU_SCRATCH], 64-byte aligned */
    void *shared;   /* [GR_CPU_SHARED] bytes an operation's threads share: rounded rows, partial sums; pages come when touched */
} gr_cpu;

enum { GR_CPU_SHARED = 32 << 20 };

static inline float *gr_cpu_scratch(const gr_device *d, int worker) {
    return ((const gr_cpu *)d->impl)->scratch + (int64_t)worker * GR_CPU_SCRATCH;
}

/* Run fn over [0,n) in fixed pieces of grain, on the pool. */
typedef void gr_range_fn(const void *args, int64_t begin, int64_t end);
void gr_cpu_for(gr_device *d, int64_t n, int64_t grain, gr_range_fn *fn, const void *args);
/* The grain for rows of C floats: about 32 KiB of work. */
int64_t gr_cpu_row_grain(int64_t C);

/* C[m,n] (= or +=) A[m,k] B[k,n], then + bias[n]. Each element is a sum of pieces of k in ascending order, each piece a
 * chain of its own, whatever m. B comes in any dtype, by rows of its storage:
 *   b_transposed: storage row j is column j of B (a weight [n,k] in the forward direction);
 *   otherwise:    storage row p is row p of B (the same weight in the backward direction, or an activation). */
typedef struct gr_gemm {
    int64_t m, n, k;
    const float *a;
    int64_t a_row, a_col; /* A[i][p] = a[i * a_row + p * a_col]; one of them is 1 */
    gr_dtype b_type;
    const void *b;
    int64_t b_ld; /* elements between storage rows */
    bool b_transposed;
    float alpha; /* B is multiplied by it */
    float *c;
    int64_t ldc;
    bool accumulate;
    const float *bias;          /* or NULL */
    gr_dtype compute;           /* BF16, F16: A and B are rounded to it */
    const struct gr_gemm *next; /* NULL, or a further product that is added to the same block of C while that is in the cache (its
                                   own m, n, c, ldc, bias are not read); one of few k goes on with the
                                   chain of the last piece: so LoRA costs no pass over C of its own */
} gr_gemm;

enum { GR_GEMM_PRODUCTS = 4, GR_GEMM_TERMS = 12 };

/* n <= GR_GEMM_PRODUCTS products, independent of each other, in one run of the pool; GR_GEMM_TERMS at most with what is added to
 * them. */
typedef void gr_gemm_fn(gr_device *d, const gr_gemm *products, int n);

gr_gemm_fn gr_gemm_generic, gr_gemm_avx2, gr_gemm_avx512, gr_gemm_avx512bf16, gr_gemm_amx;

/* Products of the same A[m,k] (rows lda floats apart) with int8 forms: c[m,n] (= or +=) A W + bias each. */
typedef struct gr_int8_product {
    const void *packed;
    float *c;
    int64_t ldc;
    bool accumulate;
    const float *bias; /* [n] or NULL */
} gr_int8_product;

typedef void gr_int8_fn(gr_device *d, const float *a, int64_t lda, int64_t m, const gr_int8_product *products, int n_products);

gr_int8_fn gr_int8_generic, gr_int8_avx2, gr_int8_avx512;
#define gr_int8_amx        gr_int8_avx512
#define gr_int8_avx512bf16 gr_int8_avx512

/* The low-rank products of a group's adapters at a level (NULL: none); false: not of these shapes. Forward: h = xd A^T. Backward:
 * dh = scale dy B where something needs it, and every dA and dB. */
typedef struct gr_thin_level gr_thin_level;
extern const gr_thin_level gr_thin_avx2, gr_thin_avx512;
#define gr_thin_amx        gr_thin_avx512
#define gr_thin_avx512bf16 gr_thin_avx512
bool gr_thin_forward(const gr_thin_level *level, gr_device *d, float *h, const float *xd, const gr_linear *const *group,
                     int n_group, int64_t n);
bool gr_thin_backward(const gr_thin_level *level, gr_device *d, float *dh, const float *dy, int64_t ldy, const float *xd,
                      const float *h, bool want_dx, const gr_linear *const *group, int n_group, int64_t n);

/* linear_forward and linear_backward over a level's products: parameters of ops.def after them. */
typedef struct gr_products {
    gr_gemm_fn *gemm;
    gr_int8_fn *int8;
    const gr_thin_level *thin;
} gr_products;
void gr_linear_forward_by(const gr_products *by, gr_device *d, float *y, int64_t ldy, float *h, const float *x, const float *xd,
                          const gr_linear *const *group, int n_group, int64_t n);
void gr_linear_backward_by(const gr_products *by, gr_device *d, float *dx, bool accumulate, float *dxd, float *dh, const float *dy,
                           int64_t ldy, const float *x, const float *xd, const float *h, const gr_linear *const *group, int n_group,
                           int64_t n);

#define GR_OP(name, params) void gr_##name##_generic params;
#include "kernels/ops.def"
#undef GR_OP
#define GR_OP(name, params) void gr_##name##_avx2 params;
#include "kernels/ops.def"
#undef GR_OP
#define GR_OP(name, params) void gr_##name##_avx512 params;
#include "kernels/ops.def"
#undef GR_OP
/* of these two only what multiplies matrices */
#define GR_OP(name, params) void gr_##name##_avx512bf16 params;
#include "kernels/ops.def"
#undef GR_OP
#define GR_OP(name, params) void gr_##name##_amx params;
#include "kernels/ops.def"
#undef GR_OP

#endif
