/* thin.h - products with the low-rank factors of LoRA. They do little work for what they read, so each pass over rows of
 * activations or of their gradients does all that these rows are needed for: 8 ranks stand in one register, a value of the row is
 * broadcast once. Factors stand in slices [N, 8] of 8 ranks, filled up with zeros. Private to kernels/cpu. */
#ifndef GR_CPU_THIN_H
#define GR_CPU_THIN_H

#include "kernels/cpu/impl.h"

enum { THIN = 8 };

/* One slice with `rows` rows of y[rows, n]:
 *   inner: to[rows, ranks] = y b; pieces of n are summed by themselves, then added in order
 *   outer: part[n, 8] += y^T s, in row order */
typedef struct gr_thin {
    const float *b; /* [n, 8]; NULL: no inner */
    float *to;
    const float *s; /* [rows, ranks]; NULL: no outer */
    float *part;    /* [n, 8] */
    int64_t ld;     /* floats between rows of to, and of s */
    int ranks;      /* 1..8 */
} gr_thin;

/* What a level brings. */
struct gr_thin_level {
    void (*pass)(const gr_thin *t, int64_t rows, int64_t n, const float *y, int64_t ldy);
    /* to[begin..end, 8]: elements [begin, end) of 8 rows side by side; NULL: zeros */
    void (*slice)(float *to, const float *const rows[THIN], int64_t begin, int64_t end);
};

#endif
