/* test_bits.c - a row's bits do not depend on how many rows there are, on the run, or on whether the matrix of a group is kept or
 * made before each product, of weights of any type: products of 1 to 4,096 rows, forward and backward, on the device that
 * GRAFT_DEVICE names. GRAFT_LARGE takes the shapes of LLaMA-7B and SmolLM2-135M, for a card. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/kernels.h"

enum { PIECE = 1048573, RANK = 8, FEW = 8 }; /* a prime: no two rows of values are alike */

typedef struct shape {
    const char *name;
    int64_t N[GR_GROUP_MAX]; /* of the members, 0: no more */
    int64_t K;
} shape;

static const shape small[] = {{"qkv", {128, 64, 64}, 128}, {"down", {128, 0, 0}, 192}, {"odd", {100, 37, 0}, 72}};
static const shape large[] = {{"7B qkv", {4096, 4096, 4096}, 4096},
                              {"7B o", {4096, 0, 0}, 4096},
                              {"7B gate and up", {11008, 11008, 0}, 4096},
                              {"7B down", {4096, 0, 0}, 11008},
                              {"7B head", {32000, 0, 0}, 4096},
                              {"SmolLM2 qkv", {576, 192, 192}, 576},
                              {"SmolLM2 o", {576, 0, 0}, 576},
                              {"SmolLM2 gate and up", {1536, 1536, 0}, 576},
                              {"SmolLM2 down", {576, 0, 0}, 1536},
                              {"SmolLM2 head", {49152, 0, 0}, 576}};

static gr_device *d;

/* n elements of the device, from -0.5 to 0.5 times scale. */
static void *filled(int64_t n, gr_dtype type, float scale) {
    static float piece[PIECE];
    static uint16_t halves[PIECE];
    static float made; /* the scale of what they hold */
    const int64_t size = type == GR_DTYPE_F32 ? 4 : 2;
    uint32_t state = 12345;
    for (int i = 0; i < PIECE && made != scale; i++) {
        state = state * 1664525 + 1013904223;
        piece[i] = scale * ((float)(state >> 8) * 0x1p-24f - 0.5f), halves[i] = gr_f32_to_bf16(piece[i]);
    }
    made = scale;
    char *p = d->alloc(d, n * size);
    assert_non_null(p);
    for (int64_t at = 0; at < n; at += PIECE)
        d->upload(d, p + at * size, size == 4 ? (void *)piece : (void *)halves, (n - at < PIECE ? n - at : PIECE) * size);
    return p;
}

/* Rows of blocks of any type: no byte makes a scale that is not finite. */
static void *blocks(gr_dtype type, int64_t n) {
    const int64_t bytes = gr_dtype_bytes(type, n);
    uint8_t *made = malloc((size_t)bytes), *p = d->alloc(d, bytes);
    uint32_t state = 54321;
    assert_true(made && p);
    for (int64_t i = 0; i < bytes; i++) made[i] = (uint8_t)((state = state * 1664525 + 1013904223) >> 24) % 0x3c;
    d->upload(d, p, made, bytes);
    free(made);
    return p;
}

static gr_rows rows(int64_t n, int64_t cols, gr_dtype compute) {
    gr_dtype type = d->act_type(d, compute);
    int64_t ld = d->row_stride(d, cols, type);
    return (gr_rows){filled(n * ld, type, 1), ld, type};
}

typedef struct world {
    gr_linear member[GR_GROUP_MAX];
    gr_lora lora[GR_GROUP_MAX];
    gr_group group;
    gr_product product;
    gr_rows dx;
    int64_t N, K;
} world;

static void make(world *w, const shape *s, gr_dtype type, int64_t n, gr_dtype compute, bool trained) {
    *w = (world){.K = s->K};
    const int64_t rank = trained ? 0 : RANK;
    for (int i = 0; i < GR_GROUP_MAX && s->N[i]; i++) {
        const int64_t N = s->N[i];
        w->lora[i] = (gr_lora){rank,
                               2,
                               filled(rank * s->K, GR_DTYPE_F32, 1),
                               filled(N * rank, GR_DTYPE_F32, 0.1f),
                               filled(rank * s->K, GR_DTYPE_F32, 1),
                               filled(N * rank, GR_DTYPE_F32, 1)};
        w->member[i] =
            (gr_linear){.w = {type, N, s->K, type == GR_DTYPE_BF16 ? filled(N * s->K, type, 0.1f) : blocks(type, N * s->K)},
                        .lora = &w->lora[i],
                        .n_lora = trained ? 0 : 1,
                        .dw = trained ? filled(N * s->K, GR_DTYPE_F32, 1) : NULL};
        w->group.member[w->group.n++] = &w->member[i];
        w->N += N;
    }
    w->group.compute = compute, w->group.backward = true;
    w->product = (gr_product){.group = &w->group,
                              .x = rows(n, s->K, compute),
                              .y = rows(n, w->N, compute),
                              .h = filled(n * rank * w->group.n, GR_DTYPE_F32, 1),
                              .dh = filled(n * rank * w->group.n, GR_DTYPE_F32, 1)};
    w->dx = rows(n, s->K, compute);
}

static void release(world *w) {
    for (int i = 0; i < w->group.n; i++) {
        d->free(d, (void *)(uintptr_t)w->member[i].w.data), d->free(d, w->member[i].dw);
        d->free(d, (void *)(uintptr_t)w->lora[i].A), d->free(d, (void *)(uintptr_t)w->lora[i].B);
        d->free(d, w->lora[i].dA), d->free(d, w->lora[i].dB);
    }
    d->free(d, w->product.x.data), d->free(d, w->product.y.data), d->free(d, w->dx.data);
    d->free(d, w->product.h), d->free(d, w->product.dh);
}

/* A copy of rows, without what lies between them. */
static char *bits_of(gr_rows x, int64_t n, int64_t cols) {
    const int64_t size = x.type == GR_DTYPE_F32 ? 4 : 2;
    char *all = malloc((size_t)(n * x.ld * size)), *bits = malloc((size_t)(n * cols * size));
    assert_true(all && bits);
    d->download(d, all, x.data, n * x.ld * size, 0);
    for (int64_t r = 0; r < n; r++) memcpy(bits + r * cols * size, all + r * x.ld * size, (size_t)(cols * size));
    free(all);
    const char *wrong = d->sync(d);
    if (wrong) fail_msg("%s", wrong);
    return bits;
}

/* The same rows of a result, of which nothing is left from before. */
static char *forward(world *w, int64_t n) {
    d->zero(d, w->product.y.data, n * w->product.y.ld * (w->product.y.type == GR_DTYPE_F32 ? 4 : 2));
    d->ops->linear_forward(d, &w->product, n);
    return bits_of(w->product.y, n, w->N);
}

/* dx of dy that are the values of x's piece: y is filled with them again. */
static char *backward(world *w, int64_t n) {
    gr_product p = w->product;
    p.y = rows(n, w->N, w->group.compute);
    d->zero(d, w->dx.data, n * w->dx.ld * (w->dx.type == GR_DTYPE_F32 ? 4 : 2));
    d->ops->linear_backward(d, &p, w->dx, false, n);
    char *bits = bits_of(w->dx, n, w->K);
    d->free(d, p.y.data);
    return bits;
}

static void expect(const char *a, const char *b, int64_t n, int64_t cols, gr_dtype type, const char *name, const char *what) {
    if (memcmp(a, b, (size_t)(n * cols * (type == GR_DTYPE_F32 ? 4 : 2))) != 0)
        fail_msg("%s: %s changes the bits of %lld rows", name, what, (long long)n);
}

/* Forward and backward of a group: numbers of rows, once more, expanded before each product, without a form. On a card, few rows
 * that are not trained go another way forward (cuda.h: gr_cuda_few_rows): they are alike among themselves. */
static void check(const shape *s, gr_dtype weights, int64_t most, gr_dtype compute, bool trained) {
    static const int64_t fewer[] = {1, 7, 100, 512};
    world w;
    make(&w, s, weights, most, compute, trained);
    assert_true(d->place(d, &w.group));
    char *y = forward(&w, most), *dx = backward(&w, most), *few = forward(&w, FEW);
    const gr_dtype type = w.product.y.type;
    for (int i = 0; i < 4 && fewer[i] < most; i++) {
        const int64_t n = fewer[i];
        char *some = forward(&w, n), *back = backward(&w, n);
        expect(some, n <= FEW ? few : y, n, w.N, type, s->name, "the number of rows, forward,");
        if (trained || d->in_host) expect(some, y, n, w.N, type, s->name, "the number of rows, forward,");
        expect(back, dx, n, w.K, type, s->name, "the number of rows, backward,");
        free(some), free(back);
    }
    for (int way = 0; way < 3; way++) {
        static const char *const what[][2] = {{"another run, forward,", "another run, backward,"},
                                              {"an expanded matrix, forward,", "an expanded matrix, backward,"},
                                              {"a matrix that is not kept, forward,", "a matrix that is not kept, backward,"}};
        char *again = forward(&w, most), *back = backward(&w, most);
        expect(again, y, most, w.N, type, s->name, what[way][0]);
        expect(back, dx, most, w.K, type, s->name, what[way][1]);
        free(again), free(back);
        if (way < 2) d->release(d, &w.group);
        w.group.expand = true;
        if (way < 1) assert_true(d->place(d, &w.group));
    }
    free(y), free(dx), free(few);
    release(&w);
}

static void test_bits(void **state) {
    (void)state;
    const char *wanted = getenv("GRAFT_LARGE");
    const bool all = wanted && *wanted;
    const shape *shapes = all ? large : small;
    const int n = (int)(all ? sizeof large / sizeof *large : sizeof small / sizeof *small);
    for (int i = 0; i < n; i++)
        for (int trained = 0; trained < 2; trained++) {
            check(&shapes[i], GR_DTYPE_BF16, all ? 4096 : 520, GR_DTYPE_BF16, trained);
            if (!all) check(&shapes[i], GR_DTYPE_BF16, 520, GR_DTYPE_F32, trained);
        }
}

/* Weights of every quantised type, as they are in the file: resident as a matrix or expanded, the same bits. */
static void test_types(void **state) {
    (void)state;
    static char names[GR_DTYPE_COUNT][32];
    for (int type = 0; type < GR_DTYPE_COUNT; type++) {
        if (gr_dtype_get((gr_dtype)type)->block == 1) continue;
        snprintf(names[type], sizeof names[type], "a group of type %s", gr_dtype_get((gr_dtype)type)->name);
        const shape s = {names[type], {72, 40, 0}, 256};
        check(&s, (gr_dtype)type, 40, GR_DTYPE_BF16, false);
        check(&s, (gr_dtype)type, 40, GR_DTYPE_F32, false);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bits), cmocka_unit_test(test_types)};
    const char *why = NULL;
    gr_threads *threads = gr_threads_new(0);
    d = threads ? gr_device_open(getenv("GRAFT_DEVICE") ? "auto" : "cpu", threads, &why) : NULL;
    if (!d) {
        fprintf(stderr, "%s\n", why ? why : "out of memory");
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gr_device_close(d);
    gr_threads_free(threads);
    return failed;
}
