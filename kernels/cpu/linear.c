/* linear.c - a linear with its slots as a list of products; no instruction set, the level's products are passed in. The low-rank
 * ones are made in passes of their own (thin.c) where the level and the ranks allow it, else they are matrix products like the
 * others. */
#include <stddef.h>
#include <string.h>

#include "kernels/cpu/impl.h"

/* Rows of sums that stand close: h, dh. */
static gr_rows close_rows(float *data, int64_t ld) { return (gr_rows){data, ld, GR_DTYPE_F32}; }

/* C[m,n] (+)= A[m,k] W with W stored [k,n]. */
static gr_gemm by_weight(gr_rows c, gr_rows a, int64_t m, const gr_weight *w) {
    return (gr_gemm){.m = m,
                     .n = w->cols,
                     .k = w->rows,
                     .a = gr_f32(a),
                     .a_row = a.ld,
                     .a_col = 1,
                     .b_type = w->dtype,
                     .b = w->data,
                     .b_ld = w->cols,
                     .alpha = 1,
                     .c = gr_f32(c),
                     .ldc = c.ld};
}

/* C[m,n] (+)= A[m,k] W^T with W stored [n,k]. */
static gr_gemm by_weight_t(gr_rows c, gr_rows a, int64_t m, const gr_weight *w) {
    gr_gemm g = by_weight(c, a, m, w);
    g.n = w->rows, g.k = w->cols, g.b_transposed = true;
    return g;
}

/* C[m,n] += alpha A^T B with A stored [rows,m] and B stored [rows,n]: a weight gradient, summed in row order. */
static gr_gemm by_rows(float *c, gr_rows a, int64_t m, gr_rows b, int64_t n, int64_t rows, float alpha) {
    return (gr_gemm){.m = m,
                     .n = n,
                     .k = rows,
                     .a = gr_f32(a),
                     .a_row = 1,
                     .a_col = a.ld,
                     .b_type = GR_DTYPE_F32,
                     .b = gr_f32(b),
                     .b_ld = b.ld,
                     .alpha = alpha,
                     .c = c,
                     .ldc = n,
                     .accumulate = true};
}

static gr_weight f32_weight(const float *data, int64_t rows, int64_t cols) {
    return (gr_weight){.dtype = GR_DTYPE_F32, .rows = rows, .cols = cols, .data = data};
}

/* Columns from col on. */
static gr_rows from(gr_rows x, int64_t col) { return gr_rows_at(x, 0, col); }

static const void *int8_of(const gr_group *g, int member, bool backward) {
    const gr_cpu_form *form = g->form;
    return !form ? NULL : backward ? form->backward[member] : form->forward[member];
}

/* The LoRA input: x, or x after dropout. */
static gr_rows lora_input(gr_device *d, const gr_product *p, int64_t n) {
    if (!p->dropout || gr_group_rank(p->group) == 0) return p->x;
    d->ops->dropout(d, p->xd, p->x, n, gr_group_inputs(p->group), p->dropout, false);
    return p->xd;
}

/* Products that wait to be run together; those added to another one's C follow it, block by block. */
typedef struct batch {
    gr_gemm_fn *gemm;
    gr_device *d;
    gr_gemm products[GR_GEMM_PRODUCTS], added[GR_GEMM_TERMS];
    gr_gemm *last; /* of the newest product's chain */
    int n, n_added;
} batch;

static void run(batch *b) {
    if (b->n) b->gemm(b->d, b->products, b->n);
    b->n = b->n_added = 0;
    b->last = NULL;
}

/* A product independent of the others that wait. */
static void put(batch *b, gr_gemm g) {
    if (b->n == GR_GEMM_PRODUCTS || b->n + b->n_added == GR_GEMM_TERMS) run(b);
    b->products[b->n] = g;
    b->last = &b->products[b->n++];
}

/* A product of the same C as the newest, or the first of one. */
static void put_added(batch *b, gr_gemm g) {
    if (b->n + b->n_added == GR_GEMM_TERMS) run(b); /* full: what there is goes first */
    if (!b->last) {
        put(b, g);
        return;
    }
    b->added[b->n_added] = g;
    b->last->next = &b->added[b->n_added];
    b->last = &b->added[b->n_added++];
}

/* The int8 products of a forward group; all share x, which is rounded once. */
static void int8_forward(gr_int8_fn *int8, gr_device *d, const gr_product *p, int64_t n) {
    gr_int8_product products[GR_GROUP_MAX];
    gr_rows y = p->y;
    int count = 0;
    for (int i = 0; i < p->group->n; y = from(y, p->group->member[i]->w.rows), i++) {
        const void *packed = int8_of(p->group, i, false);
        if (packed)
            products[count++] = (gr_int8_product){.packed = packed, .c = gr_f32(y), .ldc = y.ld, .bias = p->group->member[i]->bias};
    }
    if (count) int8(d, gr_f32(p->x), p->x.ld, n, products, count);
}

void gr_linear_forward_by(const gr_products *by, gr_device *d, const gr_product *p, int64_t n) {
    const gr_group *g = p->group;
    gr_rows y = p->y, h = close_rows(p->h, gr_group_rank(g)), to = h, xd = lora_input(d, p, n);
    batch b = {.gemm = by->gemm, .d = d};
    bool thin = gr_thin_forward(by->thin, d, p, xd, n);
    for (int i = 0; i < g->n && !thin; i++)
        for (int j = 0; j < g->member[i]->n_lora; to = from(to, g->member[i]->lora[j++].rank)) {
            gr_weight A = f32_weight(g->member[i]->lora[j].A, g->member[i]->lora[j].rank, g->member[i]->w.cols);
            put(&b, by_weight_t(to, xd, n, &A)); /* h = xd A^T */
        }
    run(&b);
    int8_forward(by->int8, d, p, n);
    for (int i = 0; i < g->n; y = from(y, g->member[i]->w.rows), i++) {
        const gr_linear *l = g->member[i];
        const void *int8 = int8_of(g, i, false);
        gr_gemm base = by_weight_t(y, p->x, n, &l->w);
        base.compute = g->compute, base.bias = l->bias;
        if (!int8) put(&b, base);
        for (int j = 0; j < l->n_lora; h = from(h, l->lora[j].rank), j++) {
            gr_weight B = f32_weight(l->lora[j].B, l->w.rows, l->lora[j].rank);
            gr_gemm up = by_weight_t(y, h, n, &B); /* y += scale h B^T */
            up.alpha = l->lora[j].scale, up.accumulate = true;
            if (int8 && j == 0) put(&b, up);
            else put_added(&b, up);
        }
    }
    run(&b);
}

typedef struct column_sums {
    float *out;
    gr_rows x;
    int64_t n;
} column_sums;

static void sum_columns(const void *args, int64_t begin, int64_t end) {
    const column_sums *s = args;
    for (int64_t row = 0; row < s->n; row++) {
        const float *x = gr_f32_row(s->x, row);
        for (int64_t j = begin; j < end; j++) s->out[j] += x[j];
    }
}

/* dh = scale dy B for the gradients of A and of the LoRA input; dB += scale dy^T h. */
static void lora_backward_b(batch *b, const gr_product *p, bool wants_dh, int64_t n) {
    const gr_group *g = p->group;
    gr_rows dy = p->y, h = close_rows(p->h, gr_group_rank(g)), dh = close_rows(p->dh, h.ld);
    for (int i = 0; i < g->n; dy = from(dy, g->member[i]->w.rows), i++)
        for (int j = 0; j < g->member[i]->n_lora; j++) {
            const gr_lora *lora = &g->member[i]->lora[j];
            gr_weight B = f32_weight(lora->B, g->member[i]->w.rows, lora->rank);
            if (lora->dB) put(b, by_rows(lora->dB, dy, B.rows, h, lora->rank, n, lora->scale));
            gr_gemm product = by_weight(dh, dy, n, &B);
            product.alpha = lora->scale;
            if (lora->dA || wants_dh) put(b, product);
            h = from(h, lora->rank), dh = from(dh, lora->rank);
        }
}

/* dx (+)= dy W, then, with_lora, the LoRA terms dh A; all linears of the group into the same blocks. */
static void input_gradient(batch *b, gr_int8_fn *int8, const gr_product *p, gr_rows dx, bool accumulate, bool with_lora,
                           int64_t n) {
    const gr_group *g = p->group;
    for (int pass = 0; pass < 2; pass++) { /* those of int8 come first: they are not blocks of a chain */
        gr_rows dy = p->y, dh = close_rows(p->dh, gr_group_rank(g));
        for (int i = 0; i < g->n; dy = from(dy, g->member[i]->w.rows), i++) {
            const gr_linear *l = g->member[i];
            const void *packed = int8_of(g, i, true);
            if (pass == 0 && packed) {
                gr_int8_product base = {.packed = packed, .c = gr_f32(dx), .ldc = dx.ld, .accumulate = accumulate};
                int8(b->d, gr_f32(dy), dy.ld, n, &base, 1);
                accumulate = true;
            }
            if (pass == 0) continue;
            gr_gemm base = by_weight(dx, dy, n, &l->w);
            base.compute = g->compute, base.accumulate = accumulate;
            if (!packed) put_added(b, base), accumulate = true;
            for (int j = 0; with_lora && j < l->n_lora; dh = from(dh, l->lora[j++].rank)) {
                gr_weight A = f32_weight(l->lora[j].A, l->lora[j].rank, l->w.cols);
                gr_gemm term = by_weight(dx, dh, n, &A);
                term.accumulate = true;
                put_added(b, term);
            }
        }
    }
}

/* Gradients of weights and biases, and, with_A, of the As. */
static void weight_gradients(batch *b, const gr_product *p, gr_rows xd, bool with_A, int64_t n) {
    const gr_group *g = p->group;
    int64_t K = gr_group_inputs(g);
    gr_rows dy = p->y, dh = close_rows(p->dh, gr_group_rank(g));
    for (int i = 0; i < g->n; dy = from(dy, g->member[i]->w.rows), i++) {
        const gr_linear *l = g->member[i];
        gr_gemm dw = by_rows(l->dw, dy, l->w.rows, p->x, K, n, 1);
        dw.compute = g->compute;
        if (l->dw) put(b, dw);
        if (l->dbias) {
            column_sums sums = {l->dbias, dy, n};
            gr_cpu_for(b->d, l->w.rows, 64, sum_columns, &sums);
        }
        for (int j = 0; with_A && j < l->n_lora; dh = from(dh, l->lora[j++].rank))
            if (l->lora[j].dA) put(b, by_rows(l->lora[j].dA, dh, l->lora[j].rank, xd, K, n, 1));
    }
    run(b);
}

/* dx += through dropout the gradient of the LoRA input, which is made apart: dxd = the sum of all dh A. */
static void dropped_gradient(batch *b, const gr_product *p, gr_rows dx, int64_t n) {
    const gr_group *g = p->group;
    gr_rows dh = close_rows(p->dh, gr_group_rank(g));
    bool started = false;
    for (int i = 0; i < g->n; i++)
        for (int j = 0; j < g->member[i]->n_lora; dh = from(dh, g->member[i]->lora[j++].rank), started = true) {
            gr_weight A = f32_weight(g->member[i]->lora[j].A, g->member[i]->lora[j].rank, g->member[i]->w.cols);
            gr_gemm term = by_weight(p->dxd, dh, n, &A);
            term.accumulate = started;
            put(b, term);
            run(b); /* each adds to what the one before made */
        }
    b->d->ops->dropout(b->d, dx, p->dxd, n, gr_group_inputs(g), p->dropout, true);
}

void gr_linear_backward_by(const gr_products *by, gr_device *d, const gr_product *p, gr_rows dx, bool accumulate, int64_t n) {
    batch b = {.gemm = by->gemm, .d = d};
    gr_rows xd = lora_input(d, p, n);
    bool wants_dx = dx.data != NULL, dropped = p->dropout && gr_group_rank(p->group) > 0;
    bool thin = gr_thin_backward(by->thin, d, p, xd, wants_dx, n);
    if (!thin) lora_backward_b(&b, p, wants_dx, n);
    run(&b);
    if (wants_dx) input_gradient(&b, by->int8, p, dx, accumulate, !dropped, n);
    run(&b);
    weight_gradients(&b, p, xd, !thin, n);
    if (wants_dx && dropped) dropped_gradient(&b, p, dx, n);
}
