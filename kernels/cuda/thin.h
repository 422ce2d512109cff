/* thin.h - the parts of a group of linears that are as narrow as the rank of its adapters, and what else goes along rows.
 * Private to linear.cu and thin.cu. */
#ifndef GR_CUDA_THIN_H
#define GR_CUDA_THIN_H

#include "kernels/cuda/cuda.h"

enum { GR_THIN_LORAS = 24 }; /* of a group */

/* The LoRAs and biases of a group by where they are in its matrix: as a kernel takes them. */
typedef struct gr_thin {
    int n, members;
    bool biased;  /* some member has a bias: two columns of h behind the ranks are 1 */
    int64_t rank; /* of all together */
    struct {
        const float *A, *B;
        float *dA, *dB;
        float scale;
        int32_t rank, first; /* its columns of h */
        int64_t row, rows;   /* its rows of the matrix: outputs of the group */
    } lora[GR_THIN_LORAS];
    struct {
        const float *bias;
        float *dbias;
        int64_t row, rows;
    } member[GR_GROUP_MAX];
} gr_thin;

static inline int64_t gr_thin_outputs(const gr_thin *t) { return t->member[t->members - 1].row + t->member[t->members - 1].rows; }

/* What becomes of a product of rank columns. */
typedef struct gr_thin_rows {
    float *h;      /* [n, rank], close */
    gr_rows spare; /* [n, R] of the type of products, data NULL: none. Columns of h, then `ones` times 1, then 0 */
    int64_t R;
    int ones;
    gr_rows copy; /* of x, with zeros up to a multiple of GR_CUDA_PAD columns: of the type of products, which is not float32; data
                     NULL: none */
} gr_thin_rows;

/* to->h[n,rank] = x[n,C] under the mask (NULL: none) times w^T. w[rank,C], filled up to GR_CUDA_PAD rows and columns with zeros,
 * is of the type of products. rank 0: the spare columns alone, and the copy. */
void gr_thin_down(gr_device *d, const gr_thin_rows *to, gr_rows x, const gr_dropout *mask, gr_rows w, int64_t n, int64_t C,
                  int64_t rank);
/* What backward makes of the adapters of t. */
typedef struct gr_thin_backward_args {
    gr_rows dy;             /* [n,N] as it came */
    gr_rows taken;          /* the same as products take it: to.copy where that is given */
    gr_rows across;         /* (sB)^T [R, N], filled up */
    gr_thin_rows to;        /* dh */
    gr_rows x;              /* [n,K] as products take it; absent: no gradients of the As */
    const gr_dropout *mask; /* of x */
    const float *h;
    bool wants_dh, wants_B;
} gr_thin_backward_args;

/* dh = dy sB; dB += scale dy^T h, dA += dh^T x under the mask, of all LoRAs that want them. */
void gr_thin_backward(gr_device *d, const gr_thin *t, const gr_thin_backward_args *p, int64_t n, int64_t K);
/* dx[n,K] += mask * (dh[n,rank] A), A[rank,K]. */
void gr_thin_dropped(gr_device *d, gr_rows dx, const gr_dropout *mask, const float *dh, gr_rows A, int64_t n, int64_t K,
                     int64_t rank);
/* dbias of each member that wants it += the sums of its columns of dy. */
void gr_thin_bias(gr_device *d, const gr_thin *t, gr_rows dy, int64_t n);

/* ---- thin_mma.cu: the same for products of bfloat16 and half ---- */

/* parts[chunks, C, rank] = x[rows, C]^T g[rows, rank] of each chunk of rows, under the mask of x. x is aligned to 16 bytes in every
 * row, with zeros from C to a multiple of 8; absent: nothing. */
typedef struct gr_thin_job {
    gr_rows x;
    int64_t C;
    const float *g;
    const gr_dropout *mask;
    float *parts;
} gr_thin_job;

void gr_thin_down_mma(gr_device *d, const gr_thin_rows *to, gr_rows x, const gr_dropout *mask, gr_rows w, int64_t n, int64_t C,
                      int64_t rank);
void gr_thin_parts_mma(gr_device *d, const gr_thin_job job[2], int64_t n, int64_t chunk, int64_t rank);

/* ---- thin_dy.cu: dh and the parts of dB, [chunks, N, rank], in one read of dy ---- */

/* Floats of of_dh; 0: the adapters are too wide for it. */
int64_t gr_thin_dy_floats(const gr_thin *t, int64_t n);
void gr_thin_dy(gr_device *d, const gr_thin *t, const gr_thin_rows *to, gr_rows dy, gr_rows across, const float *h, float *of_B,
                float *of_dh, int64_t n, int64_t chunk);

#endif
