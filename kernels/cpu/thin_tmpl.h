/* thin_tmpl.h - thin.h's pass at a vectorised level, 8 lanes wide at all of them. */
#include "kernels/cpu/thin.h"
#include "kernels/cpu/vec.h"

enum {
    THIN_PIECE = 256,             /* columns whose sums are a chain */
    THIN_ROWS = VL == 16 ? 8 : 4, /* twice as many registers of sums and factors */
};

typedef __m256i lanes;
INLINE lanes first_lanes(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
INLINE __m256 load_lanes(const float *p, lanes l) { return _mm256_maskload_ps(p, l); }
INLINE void store_lanes(float *p, __m256 v, lanes l) { _mm256_maskstore_ps(p, l, v); }

/* mr rows at once, mr a constant; rows of y are reached as in tile.h. */
INLINE void thin_rows(const int mr, const bool inner, const bool outer, const gr_thin *t, int64_t row, int64_t n, const float *y,
                      int64_t ldy) {
    const lanes used = first_lanes(t->ranks);
    const float *from[(THIN_ROWS + 2) / 3];
    __m256 s[THIN_ROWS], sum[THIN_ROWS];
    UNROLL(int q = 0; q < mr; q++) {
        if (q % 3 == 0) from[q / 3] = y + (row + q) * ldy;
        s[q] = outer ? load_lanes(t->s + (row + q) * t->ld, used) : _mm256_setzero_ps();
    }
    for (int64_t j = 0; j < n;) {
        const int64_t end = j + THIN_PIECE < n ? j + THIN_PIECE : n;
        const bool first = j == 0;
        UNROLL(int q = 0; q < mr; q++) sum[q] = _mm256_setzero_ps();
        for (; j < end; j++) {
            __m256 b = inner ? _mm256_loadu_ps(t->b + j * THIN) : s[0], part = outer ? _mm256_loadu_ps(t->part + j * THIN) : s[0];
            UNROLL(int q = 0; q < mr; q++) {
                __m256 x = _mm256_set1_ps(from[q / 3][q % 3 * ldy + j]);
                if (inner) sum[q] = _mm256_fmadd_ps(x, b, sum[q]);
                if (outer) part = _mm256_fmadd_ps(x, s[q], part);
            }
            if (outer) _mm256_storeu_ps(t->part + j * THIN, part);
        }
        UNROLL(int q = 0; inner && q < mr; q++) {
            float *to = t->to + (row + q) * t->ld;
            store_lanes(to, first ? sum[q] : _mm256_add_ps(load_lanes(to, used), sum[q]), used);
        }
    }
}

/* Inner alone for one row from column j on: np pieces of so many columns side by side, as one chain would wait for itself. */
INLINE void thin_pieces(const int np, const gr_thin *t, int64_t row, int64_t j, int64_t columns, const float *y) {
    const lanes used = first_lanes(t->ranks);
    float *to = t->to + row * t->ld;
    __m256 sum[4], all = j == 0 ? _mm256_setzero_ps() : load_lanes(to, used);
    UNROLL(int p = 0; p < np; p++) sum[p] = _mm256_setzero_ps();
    for (int64_t end = j + columns, k = j; k < end; k++)
        UNROLL(int p = 0; p < np; p++) {
            const int64_t at = k + p * THIN_PIECE;
            sum[p] = _mm256_fmadd_ps(_mm256_set1_ps(y[at]), _mm256_loadu_ps(t->b + at * THIN), sum[p]);
        }
    UNROLL(int p = 0; p < np; p++) all = j == 0 && p == 0 ? sum[0] : _mm256_add_ps(all, sum[p]);
    store_lanes(to, all, used);
}

static void thin_one_row(const gr_thin *t, int64_t row, int64_t n, const float *y) {
    int64_t j = 0;
    for (; j + 4 * THIN_PIECE <= n; j += 4 * THIN_PIECE) thin_pieces(4, t, row, j, THIN_PIECE, y);
    for (; j + 2 * THIN_PIECE <= n; j += 2 * THIN_PIECE) thin_pieces(2, t, row, j, THIN_PIECE, y);
    for (; j < n; j += THIN_PIECE) thin_pieces(1, t, row, j, n - j < THIN_PIECE ? n - j : THIN_PIECE, y);
}

INLINE void thin_all(const bool inner, const bool outer, const gr_thin *t, int64_t rows, int64_t n, const float *y, int64_t ldy) {
    int64_t row = 0;
    for (; row + THIN_ROWS <= rows; row += THIN_ROWS) thin_rows(THIN_ROWS, inner, outer, t, row, n, y, ldy);
    for (; row < rows; row++) {
        if (outer) thin_rows(1, inner, outer, t, row, n, y, ldy);
        else thin_one_row(t, row, n, y + row * ldy);
    }
}

static void thin_pass(const gr_thin *t, int64_t rows, int64_t n, const float *y, int64_t ldy) {
    if (t->b && t->s) thin_all(true, true, t, rows, n, y, ldy);
    else if (t->b) thin_all(true, false, t, rows, n, y, ldy);
    else if (t->s) thin_all(false, true, t, rows, n, y, ldy);
}

static void thin_slice(float *to, const float *const rows[THIN], int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k += THIN) {
        const lanes used = first_lanes(end - k < THIN ? (int)(end - k) : THIN);
        __m256 r[THIN];
        UNROLL(int i = 0; i < THIN; i++) r[i] = rows[i] ? load_lanes(rows[i] + k, used) : _mm256_setzero_ps();
        v_transpose8(r);
        for (int i = 0; i < THIN && k + i < end; i++) _mm256_storeu_ps(to + (k + i) * THIN, r[i]);
    }
}

const gr_thin_level LEVEL(gr_thin) = {thin_pass, thin_slice};
