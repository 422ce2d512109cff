/* kernels.h - the leaf maths: a backend is one table of operations plus memory. Pointers and dimensions in; no
 * I/O, no knowledge of models. The operations themselves are documented in ops.def. */
#ifndef GR_KERNELS_H
#define GR_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/dtype.h"

typedef struct gr_device gr_device;

/* A matrix that knows its format: rows x cols, row-major; a row is a whole number of dtype blocks. Borrowed data. */
typedef struct gr_weight {
    gr_dtype dtype;
    int64_t rows, cols;
    const void *data;
} gr_weight;

/* One low-rank adapter of a linear. All pointers borrowed; a NULL gradient means frozen. */
typedef struct gr_lora {
    int64_t rank;
    float scale;    /* alpha/rank, or alpha/sqrt(rank) for rsLoRA, times a user scale */
    const float *A; /* [R,K] */
    const float *B; /* [N,R] */
    float *dA, *dB; /* += or NULL */
} gr_lora;

/* A linear is its slots: y = x W^T + bias + LoRAs. */
typedef struct gr_linear {
    gr_weight w;       /* [N,K] */
    const float *bias; /* [N] or NULL */
    gr_lora *lora;     /* [n_lora] */
    int n_lora;
    float *dw;        /* [N,K] += or NULL: frozen */
    float *dbias;     /* [N] += or NULL */
    gr_dtype compute; /* GR_DTYPE_F32: exact; BF16/F16: both inputs of W's products are rounded to it, sums stay float32.
                          LoRA products are always float32. */
    /* forms of w made by int8_pack, or NULL: exact. With them y (forward) and dx (backward) of W are products of int8: the other
       factor is rounded to blocks of 32 along the contraction, each with a scale; sums over blocks are float32. */
    const void *int8_forward, *int8_backward;
} gr_linear;

typedef struct gr_seq { /* one sequence of a flat batch, see attention_forward */
    int64_t q_start, q_len, kv_start, kv_len;
} gr_seq;

/* Keys and values of a KV cache in the form that attention multiplies, for one layer, in blocks of GR_KV_BLOCK positions.
 * attention_forward fills it while single queries are decoded, and reads from it what it filled; a backend without use for it
 * leaves it alone. */
enum { GR_KV_BLOCK = 64 };
typedef struct gr_kv_panels {
    float *data;     /* [slots, K, blocks, 2 * GR_KV_BLOCK * (D rounded up to 32)] at most */
    int32_t *packed; /* [slots, K] leading positions that are there; whoever changes rows of the cache lowers it, to whole blocks */
    int64_t max_len; /* rows of a slot: kv_start = slot * max_len */
    int64_t blocks;  /* of a slot: ceil(max_len / GR_KV_BLOCK) */
} gr_kv_panels;

typedef enum gr_activation { GR_ACTIVATION_SILU } gr_activation; /* of a gated unit: SwiGLU, arXiv 2002.05202 */

typedef struct gr_adamw {
    float lr, beta1, beta2, epsilon, weight_decay;
    float grad_scale; /* clip factor */
    int64_t step;     /* from 1: bias correction */
} gr_adamw;

typedef struct gr_ops {
#define GR_OP(name, params) void(*name) params;
#include "kernels/ops.def"
#undef GR_OP
} gr_ops;

struct gr_device {
    const gr_ops *ops;
    const char *level;                           /* "cpu-generic", "cpu-avx2", "cpu-avx512", "cpu-avx512bf16", "cpu-amx" */
    bool fast_bf16;                              /* multiplies bfloat16 faster than float32 */
    void *(*alloc)(gr_device *d, int64_t bytes); /* 64-byte aligned, zeroed; NULL when out of memory */
    void (*free)(gr_device *d, void *p);
    int64_t (*footprint)(int64_t bytes); /* memory that alloc of so many bytes takes once all of it was touched */
    int64_t shared_bytes;                /* that operations share as scratch, at most; what is never touched takes no memory */
    struct gr_threads *threads;          /* CPU: the pool, also for core's own parallel work */
    void *impl;                          /* the backend's own */
};

/* The CPU device with n_threads (<= 0: all usable CPUs). The level is the best the CPU has, or the one named by the
 * environment variable GRAFT_CPU (generic | avx2 | avx512 | avx512bf16 | amx; one the CPU lacks is an error). NULL and *why on
 * failure. */
gr_device *gr_cpu_device_new(int n_threads, const char **why);
void gr_device_free(gr_device *d); /* NULL is fine */

/* For tests and benches: the table of a level, NULL when this CPU lacks it. levels: "generic", "avx2", "avx512", "avx512bf16",
 * "amx". */
const gr_ops *gr_cpu_ops(const char *level);

#endif
