/* ops_linear.c - products: linears with LoRAs and dropout, int8 forms, many rows and few, long contractions. */
#include <math.h>

#include "ops.h"

/* Inputs, outputs of the first, how many more of the second, rank. With the last two, rows of a card's own layout are whole pieces
 * of 64 columns, with room for what the ranks add behind them, and without. */
static const int64_t linear_sizes[FEW_SIZES][4] = {{64, 64, 9, 8},    {33, 7, 9, 1},    {100, 65, 9, 5},   {576, 192, 9, 16},
                                                   {300, 331, 9, 40}, {256, 128, 0, 8}, {256, 64, 64, 63}, {3300, 20, 9, 3}};

/* A card's products are of the type of its activations. */
static gr_dtype linear_compute(const call *c) {
    if (card_type != GR_DTYPE_F32) return card_type;
    return c->variant % 7 == 5 ? GR_DTYPE_BF16 : c->variant % 7 == 6 ? GR_DTYPE_F16 : GR_DTYPE_F32;
}

void make_linears(call *c, linears *g, bool trained) {
    const int64_t *s = linear_sizes[c->variant / GR_DTYPE_COUNT % FEW_SIZES], more = s[1] + s[2];
    gr_dtype dtype = variant_dtype(c);
    memset(g, 0, sizeof *g);
    g->l[0].w = weight(c, dtype, 20, s[1], s[0]);
    g->K = g->l[0].w.cols;
    g->l[1].w = weight(c, dtype, 21, more, g->K);
    g->l[0].bias = fixed(c, 22, 1, s[1]);
    if (c->variant & 4) g->l[1].bias = fixed(c, 33, 1, more);
    for (int j = 0; j < 2; j++) {
        int64_t rank = s[3] + j;
        g->lora[j] =
            (gr_lora){.rank = rank, .scale = 0.5f + (float)j, .A = fixed(c, 23 + j, rank, g->K), .B = fixed(c, 25 + j, more, rank)};
        if (trained) g->lora[j].dA = fixed(c, 27 + j, rank, g->K), g->lora[j].dB = fixed(c, 29 + j, more, rank);
    }
    g->l[1].lora = g->lora, g->l[1].n_lora = 2;
    g->group = (gr_group){.member = {&g->l[0], &g->l[1]}, .n = 2, .compute = linear_compute(c)};
    g->N = gr_group_outputs(&g->group), g->rank = gr_group_rank(&g->group);
    g->dropout = (gr_dropout){.p = 0.3f, .seed = 42, .row_key = row_keys(c), .site = 17};
    c->tolerance = g->group.compute == GR_DTYPE_F32 ? 2e-5 : 1e-4;
}

gr_product product_of(call *c, const linears *g) {
    return (gr_product){.group = &g->group,
                        .x = rows(c, 3, g->K),
                        .y = rows(c, 1, g->N),
                        .h = numbers(c, 2, g->rank),
                        .dropout = c->variant & 2 ? NULL : &g->dropout,
                        .xd = rows(c, 4, g->K),
                        .dxd = rows(c, 5, g->K),
                        .dh = numbers(c, 6, g->rank)};
}

void call_linear_forward(call *c) {
    linears g;
    make_linears(c, &g, false);
    gr_product p = product_of(c, &g);
    c->d->ops->linear_forward(c->d, &p, c->n);
    out_rows(c, p.y, g.N), out_numbers(c, p.h, g.rank);
    gr_group plain = {.member = {&g.l[0]}, .n = 1}; /* without LoRA nothing is dropped */
    gr_product q = {.group = &plain, .x = p.x, .y = rows(c, 7, g.l[0].w.rows), .dropout = &g.dropout};
    c->d->ops->linear_forward(c->d, &q, c->n);
    out_rows(c, q.y, g.l[0].w.rows);
}

void call_linear_backward(call *c) {
    linears g;
    make_linears(c, &g, true);
    gr_product p = product_of(c, &g);
    gr_rows dx = rows(c, 7, g.K);
    g.l[0].dw = fixed(c, 8, g.l[0].w.rows, g.K), g.l[0].dbias = fixed(c, 9, 1, g.l[0].w.rows);
    if (c->variant & 4) g.l[1].dw = fixed(c, 10, g.l[1].w.rows, g.K); /* beside its LoRAs */
    if (c->variant % 11 == 10) dx.data = NULL;
    c->d->ops->linear_backward(c->d, &p, dx, c->variant & 1, c->n);
    if (dx.data) out_rows(c, dx, g.K);
    if (g.l[1].dw) out_sum(c, g.l[1].dw, g.l[1].w.rows * g.K);
    out_numbers(c, p.dh, g.rank);
    out_sum(c, g.l[0].dw, g.l[0].w.rows * g.K), out_sum(c, g.l[0].dbias, g.l[0].w.rows);
    for (int j = 0; j < 2; j++) {
        out_sum(c, g.lora[j].dA, g.lora[j].rank * g.K);
        out_sum(c, g.lora[j].dB, g.l[1].w.rows * g.lora[j].rank);
    }
}

static void place(call *c, gr_group *g) {
    g->base = GR_BASE_INT8, g->backward = true;
    assert_true(c->d->place(c->d, g));
    assert_non_null(g->form);
}

/* The group of linears with int8 forms, forward and backward; what packing made is seen through the products. */
void call_int8(call *c) {
    linears g;
    make_linears(c, &g, true);
    gr_product p = product_of(c, &g);
    gr_rows dx = rows(c, 7, g.K), y = p.y;
    place(c, &g.group);
    c->d->ops->linear_forward(c->d, &p, c->n);
    p.y = rows(c, 8, g.N);
    c->d->ops->linear_backward(c->d, &p, dx, c->variant & 1, c->n);
    c->d->release(c->d, &g.group);
    out_rows(c, y, g.N), out_numbers(c, p.h, g.rank), out_rows(c, dx, g.K);
}

/* The integers' own error against exact products: half a step of either factor in each of K terms, at random. */
void call_int8_error(call *c) {
    linears g;
    make_linears(c, &g, true);
    gr_linear one = {.w = g.l[0].w};
    gr_group group = {.member = {&one}, .n = 1};
    int64_t N = one.w.rows, K = one.w.cols;
    gr_rows y[2] = {rows(c, 2, N), rows(c, 3, N)}, dx[2] = {rows(c, 5, K), rows(c, 6, K)}, dy = rows(c, 4, N);
    gr_product p = {.group = &group, .x = rows(c, 1, K)};
    for (int i = 0; i < 2; i++) {
        if (i) place(c, &group);
        p.y = y[i];
        c->d->ops->linear_forward(c->d, &p, c->n);
        p.y = dy;
        c->d->ops->linear_backward(c->d, &p, dx[i], false, c->n);
    }
    c->d->release(c->d, &group);
    double error[2] = {0}, size[2] = {0};
    for (int64_t r = 0; r < c->n; r++)
        for (int i = 0; i < 2; i++) {
            const float *exact = gr_f32_row(i ? dx[0] : y[0], r), *rounded = gr_f32_row(i ? dx[1] : y[1], r);
            for (int64_t j = 0; j < (i ? K : N); j++)
                error[i] += (exact[j] - rounded[j]) * (exact[j] - rounded[j]), size[i] += exact[j] * exact[j];
        }
    for (int i = 0; i < 2; i++)
        if (c->n > 1 && error[i] > size[i] * 0.02 * 0.02) fail_msg("int8: relative error %g", sqrt(error[i] / size[i]));
    out_rows(c, y[1], N), out_rows(c, dx[1], K);
}

/* More rows than a card sums at once, against the reference; and its bits among fewer. */
void test_many_rows(void **state) {
    enum { ROWS = 1100 };
    static const gr_dtype types[] = {GR_DTYPE_F32, GR_DTYPE_BF16, GR_DTYPE_F16};
    static const int64_t fewer[] = {1, 7, 100, 512};
    static const operation ops[] = {{"linear_forward", call_linear_forward}, {"linear_backward", call_linear_backward}};
    (void)state;
    if (!available("cuda")) skip();
    gr_device *reference = device("generic", 1), *card = device("cuda", 1);
    on_card = true;
    for (int i = 0; i < 12; i++) {
        const operation *op = &ops[i % 2];
        const int variant = 5 * GR_DTYPE_COUNT + i; /* whole pieces of 64 columns */
        call a, b;
        if (!chosen(op)) continue;
        card_type = types[i / 4], few_digits = card_type != GR_DTYPE_F32;
        make_call(&a, op, card, variant, 0, ROWS);
        make_call(&b, op, reference, variant, 0, ROWS);
        compare(&a, &b, op, "many rows");
        release(&b);
        for (int j = 0; j < 4; j++) {
            make_call(&b, op, card, variant, 0, fewer[j]);
            compare_bits(&a, &b, op, "fewer rows");
            release(&b);
        }
        release(&a);
    }
    close_device(reference), close_device(card);
    on_card = few_digits = false, card_type = GR_DTYPE_F32;
}

gr_dtype few_type(int variant) { return (variant + variant / GR_DTYPE_COUNT) % 2 ? GR_DTYPE_F16 : GR_DTYPE_BF16; }

/* A linear of a card as it decodes with it: products of bfloat16 or half, nothing dropped; with the device's form of the group or
 * without. */
static void make_few(call *c, gr_device *d, int variant, bool form, int64_t row0, int64_t n) {
    linears g;
    *c = (call){.d = d, .variant = variant, .row0 = row0, .n = n};
    running = c;
    if (mirrored(d)) ((mirror *)d)->variant = 2 * variant + form, ((mirror *)d)->activations = card_type;
    make_linears(c, &g, false);
    g.group.compute = few_type(variant);
    gr_product p = product_of(c, &g);
    p.dropout = NULL;
    d->ops->linear_forward(d, &p, n);
    out_rows(c, p.y, g.N), out_numbers(c, p.h, g.rank);
    c->tolerance = card_type == GR_DTYPE_F32 ? 2e-5 : 4e-3;
}

/* Up to 8 rows: against the reference, and a row has the same bits alone, among others, and from the file's blocks or a form. */
void test_few_rows(void **state) {
    const char *level = levels[*(int *)*state];
    const operation op = {.name = "few rows"};
    if (!available(level) || !chosen(&op)) skip();
    gr_device *reference = device("generic", 2), *d = device(level, 1);
    few_digits = true;
    for (int variant = 0; variant < FEW_SIZES * GR_DTYPE_COUNT; variant++) {
        const bool floats = (variant / 2 + variant / (2 * GR_DTYPE_COUNT)) % 2;
        static const int some[][2] = {{0, 1}, {7, 1}, {0, 7}, {3, 2}};
        call a, b;
        card_type = floats ? GR_DTYPE_F32 : few_type(variant);
        make_few(&a, d, variant, false, 0, FEW_ROWS);
        make_few(&b, reference, variant, false, 0, FEW_ROWS);
        compare(&a, &b, &op, level);
        release(&b);
        for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
            make_few(&b, d, variant, false, some[i][0], some[i][1]);
            compare_bits(&a, &b, &op, "fewer rows");
            release(&b);
        }
        make_few(&b, d, variant, true, 0, FEW_ROWS);
        if (floats) compare_bits(&a, &b, &op, "with a form"); /* else other rows than before may be of the type */
        release(&b), release(&a);
    }
    close_device(reference), close_device(d);
    few_digits = false, card_type = GR_DTYPE_F32;
}

/* dx += dy W where all of dy is more than is rounded at once (bfloat16 on tiles, int8). */
static void contract(call *c, gr_device *d, bool int8, int64_t row0, int64_t n) {
    enum { N = 40000, K = 33 };
    *c = (call){.d = d, .row0 = row0, .n = n, .tolerance = 1e-4};
    gr_linear l = {.w = weight(c, int8 ? GR_DTYPE_F32 : GR_DTYPE_Q8_0, 1, N, K)};
    gr_group group = {.member = {&l}, .n = 1, .compute = GR_DTYPE_BF16};
    gr_rows dx = rows(c, 2, l.w.cols);
    gr_product p = {.group = &group, .x = dx, .y = rows(c, 3, N)};
    if (int8) place(c, &group);
    d->ops->linear_backward(d, &p, dx, true, n);
    d->release(d, &group);
    out_rows(c, dx, l.w.cols);
}

/* Against the reference, and the bits of rows that are few. */
void test_long_contraction(void **state) {
    const char *level = levels[*(int *)*state];
    const operation op = {.name = "long contraction"};
    if (!available(level)) skip();
    gr_device *reference = device("generic", 1), *three = device(level, 3);
    for (int int8 = 0; int8 < 2; int8++) {
        call all, exact, last;
        contract(&all, three, int8, 0, 450);
        contract(&exact, reference, int8, 0, 450);
        compare(&all, &exact, &op, level);
        contract(&last, three, int8, 445, 5);
        compare_bits(&all, &last, &op, "few rows");
        release(&all), release(&exact), release(&last);
    }
    close_device(reference), close_device(three);
}
