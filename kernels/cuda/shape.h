/* shape.h - how the CUDA backend lays things out, as far as a plan must know it: plain C, for machines without a card too. */
#ifndef GR_CUDA_SHAPE_H
#define GR_CUDA_SHAPE_H

#include "kernels/kernels.h"

enum {
    GR_CUDA_PAD = 64,            /* contractions are multiples of it; rows of activations have as many spare columns */
    GR_CUDA_WORKSPACE = 32 << 20 /* of cuBLASLt: constant, so that it never chooses by it */
};

static inline int64_t gr_cuda_fill(int64_t n) { return (n + GR_CUDA_PAD - 1) / GR_CUDA_PAD * GR_CUDA_PAD; }

/* Elements from a row of activations to the next: whole multiples of GR_CUDA_PAD, and as many spare for a product's h. */
static inline int64_t gr_cuda_stride(int64_t width) { return gr_cuda_fill(width) + GR_CUDA_PAD; }

/* cudaMalloc gives out whole pages of 2 MiB; what is small shares one. */
static inline int64_t gr_cuda_pages(int64_t bytes) {
    const int64_t page = 2 << 20;
    return bytes < page / 2 ? (bytes + 511) / 512 * 512 : (bytes + page - 1) / page * page;
}

/* Is the group's dx a product of e4m3? What is trained stays exact, and so does the whole group, which is one product. */
static inline bool gr_cuda_is_fp8(const gr_group *g) {
    for (int i = 0; i < g->n; i++)
        if (g->member[i]->dw || g->member[i]->exact) return false;
    return g->base == GR_BASE_FP8 && g->backward && g->compute != GR_DTYPE_F32 && g->n > 0;
}

/* A group's matrix (gr_cuda_form): N + R rows of K + R elements of its compute type, each filled up; two of the R columns are the
 * bias, high and low part. Behind it what lies across: R rows of N; then what dx is made of in e4m3: K rows of N bytes, the weights
 * transposed, and two arrays of K of 4 bytes, their scales and what those are made from. */
typedef struct gr_cuda_sizes {
    int64_t N, K, R, eight, bytes; /* eight: where e4m3 begins; 0: nowhere */
} gr_cuda_sizes;

static inline gr_cuda_sizes gr_cuda_sizes_of(const gr_group *g) {
    bool biased = false;
    for (int i = 0; i < g->n; i++) biased |= g->member[i]->bias != NULL;
    gr_cuda_sizes s = {gr_cuda_fill(gr_group_outputs(g)), gr_cuda_fill(gr_group_inputs(g)),
                       gr_cuda_fill(gr_group_rank(g) + (biased ? 2 : 0)), 0, 0};
    s.bytes = ((s.N + s.R) * (s.K + s.R) + s.R * s.N) * (g->compute == GR_DTYPE_F32 ? 4 : 2);
    if (gr_cuda_is_fp8(g)) s.eight = s.bytes, s.bytes += s.K * (s.N + 8);
    return s;
}

/* Are the members as they lie the group's matrix? */
static inline bool gr_cuda_in_place(const gr_group *g) {
    const gr_cuda_sizes s = gr_cuda_sizes_of(g);
    return g->joined && s.R == 0 && s.N == gr_group_outputs(g) && s.K == gr_group_inputs(g);
}

/* Rows of dy in e4m3 with their scales. */
static inline int64_t gr_cuda_eight_bytes(int64_t rows, int64_t N) { return rows * (N + 4); }

/* Scratch of products of a group with so many rows, forward and backward: a copy of either factor, partial sums of gradients, its
 * matrix where none is kept, dy in e4m3. */
static inline int64_t gr_cuda_scratch_of(const gr_group *g, int64_t rows) {
    gr_cuda_sizes s = gr_cuda_sizes_of(g);
    int64_t size = g->compute == GR_DTYPE_F32 ? 4 : 2, rank = gr_group_rank(g), chunks = (rows + 511) / 512;
    int64_t parts = chunks * (s.N + s.K) * rank + (rank > 0 ? (s.N + 127) / 128 * rows * (rank <= 8 ? 8 : 24) : 0);
    return gr_cuda_pages(rows * ((s.N > s.K ? s.N : s.K) + s.R) * size) + gr_cuda_pages(rows * s.K * size) +
           gr_cuda_pages(parts * 4) + (g->expand && !gr_cuda_in_place(g) ? gr_cuda_pages(s.bytes) : 0) +
           (s.eight ? gr_cuda_pages(gr_cuda_eight_bytes(rows, s.N)) : 0);
}

/* Is a matrix made once, or before each product? */
static inline bool gr_cuda_resident(const gr_group *g) { return g->n > 0 && !g->expand && !gr_cuda_in_place(g); }

#endif
