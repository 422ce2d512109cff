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
} gr_thin_rows;

/* to->h[n,rank] = x[n,C] under the mask (NULL: none) times w^T, w[rank,C] (w_by_rows) or w, w[C,rank]; rank 0: the spare columns
 * alone. */
void gr_thin_down(gr_device *d, const gr_thin_rows *to, gr_rows x, const gr_dropout *mask, gr_rows w, bool w_by_rows, int64_t n,
                  int64_t C, int64_t rank);
/* Gradients of all LoRAs of t that want them: dB += scale dy^T h, dA += dh^T x under the mask. dy NULL: not of the Bs; x: not of the
 * As. */
void gr_thin_gradients(gr_device *d, const gr_thin *t, gr_rows dy, const float *h, gr_rows x, const gr_dropout *mask,
                       const float *dh, int64_t n, int64_t K);
/* dx[n,K] += mask * (dh[n,rank] A), A[rank,K]. */
void gr_thin_dropped(gr_device *d, gr_rows dx, const gr_dropout *mask, const float *dh, gr_rows A, int64_t n, int64_t K,
                     int64_t rank);
/* dbias of each member that wants it += the sums of its columns of dy. */
void gr_thin_bias(gr_device *d, const gr_thin *t, gr_rows dy, int64_t n);

#endif
