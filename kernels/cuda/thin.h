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

/* What becomes of a product of rank columns. */
typedef struct gr_thin_rows {
    float *h;      /* [n, rank], close */
    gr_rows spare; /* [n, R] of the type of products, data NULL: none. Columns of h, then `ones` times 1, then 0 */
    int64_t R;
    int ones;
    gr_rows copy; /* of x, with zeros up to a multiple of GR_CUDA_PAD columns: of the type of products, which is not float32; data
                     NULL: none */
} gr_thin_rows;

/* to->h[n,rank] = x[n,C] under the mask (NULL: none) times w^T. w[rank,C], filled up to GR_CUDA_PAD rows and columns with zeros, is of
 * the type of products. rank 0: the spare columns alone, and the copy. */
void gr_thin_down(gr_device *d, const gr_thin_rows *to, gr_rows x, const gr_dropout *mask, gr_rows w, int64_t n, int64_t C,
                  int64_t rank);
/* Gradients of all LoRAs of t: dB += scale dy^T h, dA += dh^T x under the mask, where they want it. dy NULL: not of the Bs; x: not of
 * the As. */
void gr_thin_gradients(gr_device *d, const gr_thin *t, gr_dtype type, gr_rows dy, const float *h, gr_rows x, const gr_dropout *mask,
                       const float *dh, int64_t n, int64_t K);
/* dx[n,K] += mask * (dh[n,rank] A), A[rank,K]. */
void gr_thin_dropped(gr_device *d, gr_rows dx, const gr_dropout *mask, const float *dh, gr_rows A, int64_t n, int64_t K,
                     int64_t rank);
/* dbias of each member that wants it += the sums of its columns of dy. */
void gr_thin_bias(gr_device *d, const gr_thin *t, gr_rows dy, int64_t n);

/* ---- thin_mma.cu: the same for products of bfloat16 and half ---- */

/* parts[chunks, C, rank] = x[rows, C]^T g[rows, rank] of each chunk of rows, under the mask of x. x absent: nothing. */
typedef struct gr_thin_job {
    gr_rows x;
    int64_t C;
    const float *g;
    const gr_dropout *mask;
    float *parts;
} gr_thin_job;

void gr_thin_down_mma(gr_device *d, const gr_thin_rows *to, gr_rows x, const gr_dropout *mask, gr_rows w, int64_t n, int64_t C,
                      int64_t rank);
void gr_thin_parts_mma(gr_device *d, const gr_thin_job job[2], gr_dtype type, int64_t n, int64_t chunk, int64_t rank);

#endif
