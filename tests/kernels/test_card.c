/* test_card.c - what only a card that GRAFT_DEVICE names is asked, on its own memory: finer than the tolerances that its products
 * have beside the reference (test_ops.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/kernels.h"

static gr_device *d;

static int open_card(void **state) {
    const char *named = getenv("GRAFT_DEVICE"), *why = NULL;
    (void)state;
    if (!named || strncmp(named, "cuda", 4) != 0) return 0;
    d = gr_device_open(named, NULL, &why);
    if (!d) print_error("%s\n", why);
    return d ? 0 : -1;
}

static int close_card(void **state) {
    (void)state;
    gr_device_close(d);
    return 0;
}

static void *sent(const void *host, int64_t bytes) {
    void *p = d->alloc(d, bytes);
    assert_non_null(p);
    if (host) d->upload(d, p, host, bytes);
    else d->zero(d, p, bytes);
    return p;
}

/* Products are of 16 bits, biases are not: they are added as two numbers of that type, to 2^-16 of themselves at least. So many
 * rows go the way of a form, a few another one. */
static void test_biases_keep_their_digits(void **state) {
    enum { K = 40, N = 70, ROWS = 12 };
    (void)state;
    if (!d) skip();
    for (gr_dtype type = GR_DTYPE_F16; type <= GR_DTYPE_BF16; type++)
        for (int backward = 0; backward < 2; backward++) {
            float bias[N], w[N * K] = {0}, y[N];
            for (int i = 0; i < N; i++) bias[i] = (float)(i - 30) * 0.0123456789f;
            for (int i = 0; i < N * K; i++) w[i] = (float)(i % 7);
            gr_linear linear = {.w = {.data = sent(w, sizeof w), .dtype = GR_DTYPE_F32, .rows = N, .cols = K},
                                .bias = sent(bias, sizeof bias)};
            gr_group group = {.member = {&linear}, .n = 1, .compute = type, .backward = backward};
            assert_true(d->place(d, &group));
            const int64_t x_ld = d->row_stride(d, K, type), y_ld = d->row_stride(d, N, GR_DTYPE_F32);
            gr_product p = {.group = &group,
                            .x = {sent(NULL, ROWS * x_ld * 2), x_ld, type},
                            .y = {sent(NULL, ROWS * y_ld * 4), y_ld, GR_DTYPE_F32}};
            for (int64_t n = ROWS; n > 0; n -= ROWS - 3) {
                d->ops->linear_forward(d, &p, n);
                for (int64_t r = 0; r < n; r++) {
                    d->download(d, y, (float *)p.y.data + r * y_ld, sizeof y, 0);
                    for (int i = 0; i < N; i++)
                        if (!(y[i] - bias[i] <= 2e-5f && bias[i] - y[i] <= 2e-5f))
                            fail_msg("type %d, row %d of %d, output %d: %.9g, expected %.9g", (int)type, (int)r, (int)n, i, y[i],
                                     bias[i]);
                }
            }
            assert_null(d->sync(d));
            d->release(d, &group);
            d->free(d, p.x.data), d->free(d, p.y.data), d->free(d, (void *)(uintptr_t)linear.w.data);
            d->free(d, (void *)(uintptr_t)linear.bias);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_biases_keep_their_digits),
    };
    return cmocka_run_group_tests(tests, open_card, close_card);
}
