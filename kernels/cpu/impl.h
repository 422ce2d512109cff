/* impl.h - what the files of the CPU backend share: scratch, parallel loops, the GEMM every linear is made of, and the
 * prototypes of all levels. Private to kernels/cpu. */
#ifndef GR_CPU_IMPL_H
#define GR_CPU_IMPL_H

#include <assert.h>

#include "kernels/kernels.h"

/* Floats of scratch a thread owns for the time of one chunk; the largest user is attention_forward. */
enum { GR_CPU_SCRATCH = 320 * 1024 };

typedef struct gr_cpu_slab gr_cpu_slab; /* device.c */
typedef struct gr_cpu {
    gr_threads *threads; /* borrowed */
    float *scratch;      /* [threads, GR_CPU_SCRATCH], 64-byte aligned */
    void *shared;      /* [GR_CPU_SHARED] bytes an operation's threads share: rounded rows, partial sums; pages come when touched */
    gr_cpu_slab *slab; /* where the next form of a group goes, NULL: into a new one */
} gr_cpu;

enum { GR_CPU_SHARED = 32 << 20 };

static inline gr_threads *gr_cpu_threads(const gr_device *d) { return ((const gr_cpu *)d->impl)->threads; }
static inline void *gr_cpu_shared(const gr_device *d) { return ((const gr_cpu *)d->impl)->shared; }
static inline float *gr_cpu_scratch(const gr_device *d, int worker) {
    return ((const gr_cpu *)d->impl)->scratch + (int64_t)worker * GR_CPU_SCRATCH;
}

/* The CPU's activations are float32. NULL stays NULL. */
static inline float *gr_f32(gr_rows x) {
    assert(!x.data || x.type == GR_DTYPE_F32);
    return x.data;
}
static inline float *gr_f32_row(gr_rows x, int64_t row) { return x.data ? gr_f32(x) + row * x.ld : NULL; }

/* gr_group.form: int8 forms of each member's weight (gr_int8_pack), NULL: its products are exact. */
typedef struct gr_cpu_form {
    gr_cpu_slab *slab; /* that they lie in */
    const void *forward[GR_GROUP_MAX], *backward[GR_GROUP_MAX];
} gr_cpu_form;

/* gr_kv.form: keys and values in the form that attention multiplies, in blocks of GR_KV_BLOCK positions. attention_forward fills it
 * while single queries are decoded, and reads from it what it filled; kv_append lowers both ends. Changes no bit. */
enum { GR_KV_BLOCK = 64 };
typedef struct gr_cpu_kv {
    float *panels;   /* [slots, K, blocks, 2 * GR_KV_BLOCK * (D rounded up to 32)] at most */
    int32_t *packed; /* [slots, K] positions from..packed are there */
    int32_t *from;   /* [slots, K] a multiple of GR_KV_BLOCK; 0 without a window */
    int64_t max_len; /* rows of a slot: kv_start = slot * max_len */
    int64_t blocks;  /* of a slot: ceil(max_len / GR_KV_BLOCK) */
    int64_t K;
} gr_cpu_kv;

static inline gr_cpu_kv *gr_cpu_kv_of(const gr_kv *kv) { return kv ? kv->form : NULL; }

/* What kernels here take for granted. */
static inline void gr_check_attention(const gr_attention *a) {
    assert(a->window >= 0 && a->softcap >= 0);
    assert(a->k.ld == a->v.ld);
}

/* The end of backward: dq and dk are turned back where rope turned q and k; sequences that follow each other together. */
static inline void gr_turn_back(gr_device *d, const gr_attention *a) {
    const gr_seq *end = a->seqs + a->n_seqs;
    for (const gr_seq *s = a->seqs, *next; a->turns && s < end; s = next) {
        int64_t n = s->q_len, keys = s->kv_len;
        for (next = s + 1; next < end && next->q_start == s->q_start + n && next->kv_start == s->kv_start + keys; next++)
            n += next->q_len, keys += next->kv_len;
        d->ops->rope(d, gr_rows_at(a->dq, s->q_start, 0), a->pos + s->q_start, a->turns, n, a->H, a->D, true);
        d->ops->rope(d, gr_rows_at(a->dk, s->kv_start, 0), a->pos + s->kv_start, a->turns, keys, a->K, a->D, true);
    }
}

/* The first key that a query at this position sees. */
static inline int64_t gr_first_key(int64_t window, int64_t position) {
    return window > 0 && position >= window ? position - window + 1 : 0;
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

/* The form of a frozen w for such products (transposed: those of the backward): the bytes it takes, and the form itself into
 * packed[bytes], 64-byte aligned. It holds integers of 8 or 4 bits with a scale (4 bits: and a minimum) for every 32 of the
 * contraction: those of the file where its format has them along the contraction (Q4_0, Q4_1, Q8_0; Q4_K with scales rounded to
 * half), else the nearest of 255 values. */
int64_t gr_int8_size(const gr_weight *w, bool transposed);
void gr_int8_pack(gr_device *d, void *packed, const gr_weight *w, bool transposed);

/* The low-rank products of a group's adapters at a level (NULL: none) for p, whose LoRA input is xd; false: not of these shapes.
 * Forward: h = xd A^T. Backward: dh = scale dy B where something needs it (want_dx: the LoRA input's gradient does), and every dA
 * and dB. */
typedef struct gr_thin_level gr_thin_level;
extern const gr_thin_level gr_thin_avx2, gr_thin_avx512;
#define gr_thin_amx        gr_thin_avx512
#define gr_thin_avx512bf16 gr_thin_avx512
bool gr_thin_forward(const gr_thin_level *level, gr_device *d, const gr_product *p, gr_rows xd, int64_t n);
bool gr_thin_backward(const gr_thin_level *level, gr_device *d, const gr_product *p, gr_rows xd, bool want_dx, int64_t n);

/* linear_forward and linear_backward over a level's products. */
typedef struct gr_products {
    gr_gemm_fn *gemm;
    gr_int8_fn *int8;
    const gr_thin_level *thin;
} gr_products;
void gr_linear_forward_by(const gr_products *by, gr_device *d, const gr_product *p, int64_t n);
void gr_linear_backward_by(const gr_products *by, gr_device *d, const gr_product *p, gr_rows dx, bool accumulate, int64_t n);

#define GR_OP(name, params, args) void gr_##name##_generic params;
#include "kernels/ops.def"
#undef GR_OP
#define GR_OP(name, params, args) void gr_##name##_avx2 params;
#include "kernels/ops.def"
#undef GR_OP
#define GR_OP(name, params, args) void gr_##name##_avx512 params;
#include "kernels/ops.def"
#undef GR_OP
/* of these two only what multiplies matrices */
#define GR_OP(name, params, args) void gr_##name##_avx512bf16 params;
#include "kernels/ops.def"
#undef GR_OP
#define GR_OP(name, params, args) void gr_##name##_amx params;
#include "kernels/ops.def"
#undef GR_OP

#endif
