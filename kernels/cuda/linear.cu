/* linear.cu - groups of linears: their matrices (gr_cuda_form, cuda.h), and a forward and a backward in one large product each.
 *
 * The columns that adapters add to x and dy are written into the spare columns of its rows, where it has such; else (other type,
 * odd width, a wide adapter) it is copied with them into scratch. Everything here moves along rows at the speed of memory. */
#include <stdlib.h>

#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/thin.h"

enum { THREADS = 256, ALIGNED = 16 };

static int64_t size_of(gr_dtype type) { return type == GR_DTYPE_F32 ? 4 : 2; }
static gr_rows none() { return gr_rows{NULL, 0, GR_DTYPE_F32}; }
static bool aligned(gr_rows x) { return (uintptr_t)x.data % ALIGNED == 0 && x.ld * size_of(x.type) % ALIGNED == 0; }

int64_t gr_cuda_row_stride(gr_device *d, int64_t width, gr_dtype type) { return gr_cuda_stride(width); }

/* ---- what a group is made of ---- */

static bool describe(gr_device *d, gr_thin *t, const gr_group *g) {
    *t = gr_thin{};
    t->members = g->n, t->rank = gr_group_rank(g);
    int64_t row = 0;
    int32_t first = 0;
    for (int i = 0; i < g->n; row += g->member[i]->w.rows, i++) {
        const gr_linear *l = g->member[i];
        t->member[i].bias = l->bias, t->member[i].dbias = l->dbias;
        t->member[i].row = row, t->member[i].rows = l->w.rows;
        t->biased |= l->bias != NULL;
        for (int j = 0; j < l->n_lora; first += (int32_t)l->lora[j++].rank) {
            if (t->n == GR_THIN_LORAS) {
                gr_cuda_refuse(d, "more than %d adapters on linears that share an input", GR_THIN_LORAS);
                return false;
            }
            t->lora[t->n].A = l->lora[j].A, t->lora[t->n].B = l->lora[j].B;
            t->lora[t->n].dA = l->lora[j].dA, t->lora[t->n].dB = l->lora[j].dB;
            t->lora[t->n].scale = l->lora[j].scale;
            t->lora[t->n].rank = (int32_t)l->lora[j].rank, t->lora[t->n].first = first;
            t->lora[t->n].row = row, t->lora[t->n++].rows = l->w.rows;
        }
    }
    return true;
}

static gr_cuda_form shape_of(const gr_group *g) {
    const gr_cuda_sizes s = gr_cuda_sizes_of(g);
    return gr_cuda_form{g->compute, s.N, s.K, s.R, s.K + s.R, NULL, false, NULL};
}

/* The form's matrix is this memory. */
static void put_matrix(gr_cuda_form *f, const gr_group *g, void *memory) {
    const int64_t eight = gr_cuda_sizes_of(g).eight;
    f->matrix = memory;
    f->eight = memory && eight ? (uint8_t *)memory + eight : NULL;
}

static gr_rows matrix_at(const gr_cuda_form *f, int64_t row, int64_t col) {
    return gr_rows_at(gr_rows{f->matrix, f->ld, f->type}, row, col);
}

static float *scales_of(const gr_cuda_form *f) { return (float *)(f->eight + f->K * f->N); }

/* The transposed sB. */
static gr_rows across_of(const gr_cuda_form *f) { return gr_rows{matrix_at(f, f->N + f->R, 0).data, f->N, f->type}; }

/* Column j behind the weights of a row of outputs: of sB, of the bias, or 0. */
static __device__ float beside(const gr_thin &t, int32_t type, int64_t row, int64_t j) {
    for (int i = 0; i < t.n; i++) {
        int64_t column = j - t.lora[i].first, r = row - t.lora[i].row;
        if (column >= 0 && column < t.lora[i].rank)
            return r >= 0 && r < t.lora[i].rows ? t.lora[i].scale * t.lora[i].B[r * t.lora[i].rank + column] : 0.0f;
    }
    for (int i = 0; i < t.members && t.biased && j < t.rank + 2; i++) {
        int64_t r = row - t.member[i].row;
        if (r < 0 || r >= t.member[i].rows || !t.member[i].bias) continue;
        float bias = t.member[i].bias[r], high = gr_rounded(bias, type);
        return j == t.rank ? high : bias - high;
    }
    return 0;
}

/* Column j of row r below the weights: of A, or 0. */
static __device__ float below(const gr_thin &t, int64_t r, int64_t j, int64_t K) {
    for (int i = 0; i < t.n && j < K; i++)
        if (r >= t.lora[i].first && r < t.lora[i].first + t.lora[i].rank) return t.lora[i].A[(r - t.lora[i].first) * K + j];
    return 0;
}

/* All of a matrix but the weights: R columns beside them, the rows from N to filled_N + R below, what lies across. */
static __global__ void fill_around(const __grid_constant__ gr_thin t, gr_view matrix, gr_view across, int64_t N, int64_t filled_N,
                                   int64_t K, int64_t filled_K, int64_t R) {
    int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x, ld = filled_K + R;
    if (at < N * R) {
        gr_store(matrix, at / R, filled_K + at % R, beside(t, matrix.type, at / R, at % R));
        return;
    }
    at -= N * R;
    if (at < R * filled_N) {
        int64_t j = at / filled_N, row = at % filled_N;
        gr_store(across, j, row, j < t.rank && row < N ? beside(t, matrix.type, row, j) : 0.0f);
        return;
    }
    at -= R * filled_N;
    int64_t row = N + at / ld;
    if (row < filled_N + R) gr_store(matrix, row, at % ld, row < filled_N ? 0.0f : below(t, row - filled_N, at % ld, K));
}

/* f->matrix = that of the group; weights: those too. */
static void fill(gr_device *d, const gr_cuda_form *f, const gr_group *g, const gr_thin *t, bool all_weights) {
    int64_t N = gr_group_outputs(g), K = gr_group_inputs(g), row = 0;
    for (int i = 0; i < g->n; row += g->member[i++]->w.rows)
        if (all_weights || g->member[i]->dw) gr_cuda_expand(d, matrix_at(f, row, 0).data, f->ld, f->type, &g->member[i]->w, f->K);
    GR_LAUNCH(d, fill_around, gr_blocks(N * f->R + f->R * f->N + (f->N - N + f->R) * f->ld, THREADS), THREADS, 0, *t,
              gr_view_of(matrix_at(f, 0, 0)), gr_view_of(across_of(f)), N, f->N, K, f->K, f->R);
}

/* ---- forms ---- */

int64_t gr_cuda_group_bytes(gr_device *d, const gr_group *g) {
    return gr_cuda_resident(g) ? gr_cuda_pages(gr_cuda_sizes_of(g).bytes) : 0;
}

bool gr_cuda_place(gr_device *d, gr_group *g) {
    gr_thin t;
    if (g->n == 0) return true;
    gr_cuda_graphs_forget(d);
    if (g->base == GR_BASE_INT8) {
        gr_cuda_refuse(d, "model.compute: int8 is of the CPU");
        return false;
    }
    if (g->base == GR_BASE_FP8 && !d->fp8) {
        gr_cuda_refuse(d, "model.compute: fp8 is of compute capability 9.0");
        return false;
    }
    if (!describe(d, &t, g)) return false;
    gr_cuda_form *f = (gr_cuda_form *)malloc(sizeof *f);
    if (!f) return false;
    *f = shape_of(g);
    if (gr_cuda_resident(g)) put_matrix(f, g, d->alloc(d, gr_cuda_sizes_of(g).bytes));
    if (gr_cuda_resident(g) && !f->matrix) {
        free(f);
        return false;
    }
    if (f->matrix) fill(d, f, g, &t, true);
    if (gr_cuda_in_place(g)) f->matrix = (void *)g->member[0]->w.data, f->borrowed = true;
    if (f->eight) gr_cuda_eight_columns(d, f->eight, scales_of(f), matrix_at(f, 0, 0), f->N, f->K);
    g->form = f;
    return true;
}

void gr_cuda_renew(gr_device *d, gr_group *g) {
    gr_thin t;
    const gr_cuda_form *f = (const gr_cuda_form *)g->form;
    bool trained = false;
    for (int i = 0; i < g->n; i++) {
        trained |= g->member[i]->dw || g->member[i]->dbias;
        for (int j = 0; j < g->member[i]->n_lora; j++) trained |= g->member[i]->lora[j].dA || g->member[i]->lora[j].dB;
    }
    if (f && f->matrix && !f->borrowed && trained && describe(d, &t, g)) fill(d, f, g, &t, false);
}

void gr_cuda_release(gr_device *d, gr_group *g) {
    gr_cuda_form *f = (gr_cuda_form *)g->form;
    if (f) gr_cuda_graphs_forget(d), d->free(d, f->borrowed ? NULL : f->matrix);
    free(f);
    g->form = NULL;
}

/* The group's matrix for one use: its form's, else made in scratch; there for dx in e4m3, where that is wanted, in that too. */
static bool matrix_of(gr_device *d, gr_cuda_form *f, const gr_group *g, const gr_thin *t, bool wants_dx) {
    const gr_cuda_form *form = (const gr_cuda_form *)g->form;
    if (form && form->matrix) {
        *f = *form;
        return true;
    }
    *f = shape_of(g);
    put_matrix(f, g, gr_cuda_scratch(d, GR_CUDA_MATRIX, gr_cuda_sizes_of(g).bytes));
    if (f->matrix) fill(d, f, g, t, true);
    if (f->eight && wants_dx) gr_cuda_eight_columns(d, f->eight, scales_of(f), matrix_at(f, 0, 0), f->N, f->K);
    return f->matrix != NULL;
}

/* ---- rows that a product can take ---- */

/* to = or += from, a thread per piece of 8 columns; columns of `to` from C to `fill` become 0. */
static __global__ void move_pieces(gr_view to, gr_view from, int64_t n, int64_t C, int64_t fill, bool add) {
    int64_t pieces = (fill + 7) / 8, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= n * pieces) return;
    float v[8], was[8];
    int64_t row = i / pieces, col = i % pieces * 8;
    gr_load8(v, from, row, col, C);
    if (add) {
        gr_load8(was, to, row, col, C);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] += was[j];
    }
    gr_store8(to, row, col, fill, v);
}

static void move(gr_device *d, gr_rows to, gr_rows from, int64_t n, int64_t C, int64_t fill, bool add) {
    GR_LAUNCH(d, move_pieces, gr_blocks(n * ((fill + 7) / 8), THREADS), THREADS, 0, gr_view_of(to), gr_view_of(from), n, C, fill,
              add);
}

/* x[n,C] of the type of products, with zeros up to `wide` columns and R more behind them that can be written: itself, or memory
 * for a copy, which is made here unless `later`. */
static gr_rows operand(gr_device *d, gr_cuda_use use, gr_rows x, gr_dtype type, int64_t n, int64_t C, int64_t wide, int64_t R,
                       bool later) {
    if (x.type == type && C == wide && x.ld >= C + R && aligned(x)) return x;
    gr_rows to = {NULL, wide + R, type};
    to.data = gr_cuda_scratch(d, use, n * to.ld * size_of(type));
    if (to.data && !later) move(d, to, x, n, C, wide, false);
    return to;
}

/* Where thin products of x make the copy as they go: x is it itself, or they are of float32. */
static gr_rows copy_of(gr_rows operand, gr_rows x) {
    return operand.data == x.data || operand.type == GR_DTYPE_F32 ? none() : operand;
}

/* c[m, b's columns] (+)= a b through a result of its own where cuBLASLt cannot write c. */
static void multiply(gr_device *d, gr_cuda_product *p, gr_rows c, bool accumulate) {
    const int64_t columns = p->n;
    bool direct = aligned(c) && (c.type == GR_DTYPE_F32 || c.type == p->type) && (!p->a_scale || columns % ALIGNED == 0);
    gr_rows to = direct ? c : gr_rows{NULL, gr_cuda_fill(columns), GR_DTYPE_F32};
    if (!direct && !(to.data = gr_cuda_scratch(d, GR_CUDA_RESULT, p->m * to.ld * 4))) return;
    if (!direct && p->a_scale) p->n = to.ld;
    p->d = to.data, p->ldd = to.ld, p->d_type = to.type;
    p->alpha = 1, p->beta = direct && accumulate ? 1.0f : 0.0f;
    gr_cuda_multiply(d, p);
    if (!direct) move(d, c, to, p->m, columns, columns, accumulate);
}

/* ---- the operations ---- */

void gr_linear_forward_cuda(gr_device *d, const gr_product *p, int64_t n) {
    const gr_group *g = p->group;
    gr_cuda_form f;
    gr_thin t;
    if (n == 0 || g->n == 0) return;
    if (gr_cuda_few_rows(d, p, n)) {
        gr_cuda_linear_few(d, p, n);
        return;
    }
    if (!describe(d, &t, g) || !matrix_of(d, &f, g, &t, false)) return;
    int64_t K = gr_group_inputs(g);
    gr_rows x = operand(d, GR_CUDA_OPERAND, p->x, f.type, n, K, f.K, f.R, f.R > 0 && f.type != GR_DTYPE_F32);
    if (!x.data) return;
    if (f.R > 0) {
        gr_thin_rows to = {p->h, gr_rows_at(x, 0, f.K), f.R, t.biased ? 2 : 0, copy_of(x, p->x)};
        gr_thin_down(d, &to, p->x, t.rank ? p->dropout : NULL, matrix_at(&f, f.N, 0), n, K, t.rank);
    }
    gr_cuda_product y = {};
    y.m = n, y.n = gr_group_outputs(g), y.k = f.K + f.R;
    y.a = x.data, y.lda = x.ld, y.b = f.matrix, y.ldb = f.ld, y.b_transposed = true, y.type = f.type;
    multiply(d, &y, p->y, false);
}

/* dw of every member that wants it += dy^T x: sums over tokens. Where one cannot be written, or read, by itself, through the
 * product of all. */
static void weight_gradients(gr_device *d, const gr_group *g, const gr_thin *t, gr_rows dy, gr_rows x, int64_t n) {
    bool wanted = false, direct = true;
    int64_t N = gr_group_outputs(g), K = gr_group_inputs(g);
    for (int i = 0; i < g->n; i++) {
        gr_rows dw = {g->member[i]->dw, K, GR_DTYPE_F32};
        if (!dw.data) continue;
        wanted = true, direct &= aligned(dw) && aligned(gr_rows_at(dy, 0, t->member[i].row));
    }
    if (!wanted) return;
    gr_cuda_product p = {};
    p.n = K, p.k = n, p.a_transposed = true, p.type = x.type, p.b = x.data, p.ldb = x.ld, p.lda = dy.ld;
    if (!direct) {
        gr_rows all = {gr_cuda_scratch(d, GR_CUDA_RESULT, N * gr_cuda_fill(K) * 4), gr_cuda_fill(K), GR_DTYPE_F32};
        if (!all.data) return;
        p.m = N, p.a = dy.data;
        multiply(d, &p, all, false);
        for (int i = 0; i < g->n; i++)
            if (g->member[i]->dw)
                move(d, gr_rows{g->member[i]->dw, K, GR_DTYPE_F32}, gr_rows_at(all, t->member[i].row, 0), g->member[i]->w.rows, K,
                     K, true);
        return;
    }
    for (int i = 0; i < g->n; i++)
        if (g->member[i]->dw) {
            p.m = g->member[i]->w.rows, p.a = gr_rows_at(dy, 0, t->member[i].row).data;
            multiply(d, &p, gr_rows{g->member[i]->dw, K, GR_DTYPE_F32}, true);
        }
}

/* dx (+)= [dy|dh] [W;A], of the first `beside` of dh's columns. */
static void input_gradient(gr_device *d, const gr_cuda_form *f, gr_rows dx, bool accumulate, gr_rows dy, int64_t beside, int64_t n,
                           int64_t K) {
    gr_cuda_product p = {};
    p.m = n, p.n = K, p.k = f->N + beside;
    p.a = dy.data, p.lda = dy.ld, p.b = f->matrix, p.ldb = f->ld, p.type = f->type;
    multiply(d, &p, dx, accumulate);
}

/* The same with dy[n,N] and W in e4m3. dh A is made first, of the type, so that what is left to move is read and written where the
 * large product's own work hides it: of 3 ways over dx, which bound both parts of it, one is its own. */
static void input_gradient_fp8(gr_device *d, const gr_cuda_form *f, gr_rows dx, bool accumulate, gr_rows dy, int64_t beside,
                               int64_t n, int64_t N, int64_t K) {
    uint8_t *eight = (uint8_t *)gr_cuda_scratch(d, GR_CUDA_EIGHT, gr_cuda_eight_bytes(n, f->N));
    if (!eight) return;
    float *scale = (float *)(eight + n * f->N);
    if (beside) {
        gr_cuda_product term = {};
        const gr_rows A = matrix_at(f, f->N, 0);
        term.m = n, term.n = K, term.k = beside;
        term.a = gr_rows_at(dy, 0, f->N).data, term.lda = dy.ld, term.b = A.data, term.ldb = A.ld, term.type = f->type;
        multiply(d, &term, dx, accumulate);
    }
    gr_cuda_eight_rows(d, eight, f->N, scale, dy, n, N);
    gr_cuda_product p = {};
    p.m = n, p.n = K, p.k = f->N;
    p.a = eight, p.lda = f->N, p.a_scale = scale;
    p.b = f->eight, p.ldb = f->N, p.b_transposed = true, p.b_scale = scales_of(f), p.type = f->type;
    multiply(d, &p, dx, accumulate || beside);
}

void gr_linear_backward_cuda(gr_device *d, const gr_product *p, gr_rows dx, bool accumulate, int64_t n) {
    const gr_group *g = p->group;
    gr_cuda_form f;
    gr_thin t;
    bool wants_A = false, wants_B = false, wants_w = false, wants_bias = false, wants_dx = dx.data != NULL;
    if (n == 0 || g->n == 0 || !describe(d, &t, g) || !matrix_of(d, &f, g, &t, wants_dx)) return;
    const gr_dropout *dropout = t.rank ? p->dropout : NULL;
    const int64_t N = gr_group_outputs(g), K = gr_group_inputs(g), beside = t.rank && wants_dx && !dropout ? f.R : 0;
    for (int i = 0; i < t.n; i++) wants_A |= t.lora[i].dA != NULL, wants_B |= t.lora[i].dB != NULL;
    for (int i = 0; i < g->n; i++) wants_w |= g->member[i]->dw != NULL, wants_bias |= g->member[i]->dbias != NULL;
    const bool wants_dh = t.rank && (wants_A || wants_dx);
    gr_rows dy = p->y;
    if (!f.eight || t.rank) dy = operand(d, GR_CUDA_OPERAND, dy, f.type, n, N, f.N, beside, wants_dh && f.type != GR_DTYPE_F32);
    if (!dy.data) return;
    gr_rows x = none();
    if (wants_A || wants_w) {
        x = operand(d, GR_CUDA_FACTOR, p->x, f.type, n, K, f.K, 0, false);
        if (!x.data) return;
    }
    if (wants_dh || wants_B) {
        const gr_thin_rows to = {p->dh, beside ? gr_rows_at(dy, 0, f.N) : none(), beside, 0, wants_dh ? copy_of(dy, p->y) : none()};
        const gr_thin_backward_args args = {p->y, dy, across_of(&f), to, wants_A ? x : none(), dropout, p->h, wants_dh, wants_B};
        gr_thin_backward(d, &t, &args, n, K);
    }
    if (wants_dx) {
        if (f.eight) input_gradient_fp8(d, &f, dx, accumulate, dy, beside, n, N, K);
        else input_gradient(d, &f, dx, accumulate, dy, beside, n, K);
        if (dropout) gr_thin_dropped(d, dx, dropout, p->dh, matrix_at(&f, f.N, 0), n, K, t.rank);
    }
    if (wants_w) weight_gradients(d, g, &t, dy, x, n);
    if (wants_bias) gr_thin_bias(d, &t, p->y, n);
}
