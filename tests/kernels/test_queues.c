/* test_queues.c - queues beside each other, and work that comes again, on the device that GRAFT_DEVICE names; without one on the
 * far device. A wait that is missing shows where the device works late: the emulator's --delay. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/kernels.h"

enum { N = 5000 };

static gr_threads *pool;
static gr_device *d;
static bool card; /* which records work */

static int setup(void **state) {
    const char *why = "?";
    (void)state;
    setenv("GRAFT_DEVICE", "far", 0);
    pool = gr_threads_new(1);
    d = gr_device_open("auto", pool, &why);
    if (!d) print_error("%s\n", why);
    card = d && strncmp(d->level, "cuda", 4) == 0;
    return d ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    gr_device_close(d);
    gr_threads_free(pool);
    return 0;
}

static float *floats(int64_t n) {
    float *p = d->alloc(d, n * (int64_t)sizeof *p);
    assert_non_null(p);
    d->zero(d, p, n * (int64_t)sizeof *p);
    return p;
}

static void fill(float *host, int64_t n, float x) {
    for (int64_t i = 0; i < n; i++) host[i] = x + (float)(i % 7);
}

static void check(const float *there, int64_t n, float x, float slope) {
    float *host = malloc((size_t)n * sizeof *host);
    d->download(d, host, there, n * (int64_t)sizeof *host, 0);
    for (int64_t i = 0; i < n; i++)
        if (host[i] != x + slope * (float)(i % 7))
            fail_msg("element %d: %g, expected %g", (int)i, host[i], x + slope * (float)(i % 7));
    free(host);
}

static void add(float *to, const float *x, int64_t n) {
    d->ops->add(d, (gr_rows){to, n, GR_DTYPE_F32}, (gr_rows){(void *)(uintptr_t)x, n, GR_DTYPE_F32}, 1, n);
}

/* Two buffers take turns: each is written while the other is read, and never while it is read itself. */
static void uploads_beside_the_work(void **state) {
    (void)state;
    static float host[N];
    float *sum = floats(N), *buffer[2] = {floats(N), floats(N)};
    gr_mark read[2] = {d->mark(d, GR_QUEUE_COMPUTE)};
    read[1] = read[0];
    float all = 0;
    for (int i = 0; i < 30; i++) {
        fill(host, N, (float)i);
        all += (float)i;
        d->wait(d, GR_QUEUE_COMPUTE, d->upload_beside(d, buffer[i % 2], host, sizeof host, read[i % 2]));
        add(sum, buffer[i % 2], N);
        read[i % 2] = d->mark(d, GR_QUEUE_COMPUTE);
    }
    check(sum, N, all, 30);
    assert_null(d->sync(d));
    d->free(d, sum), d->free(d, buffer[0]), d->free(d, buffer[1]);
}

/* More at once than a device may have room for on its way, in number and in bytes. */
static void many_uploads(void **state) {
    (void)state;
    const int64_t each[] = {300, 3 << 20};
    const int times[] = {200, 14};
    for (int k = 0; k < 2; k++) {
        float *host = malloc((size_t)each[k] * sizeof *host), *there = floats(each[k] * times[k]);
        for (int i = 0; i < times[k]; i++) {
            fill(host, each[k], (float)i);
            d->upload(d, there + i * each[k], host, each[k] * (int64_t)sizeof *host);
        }
        for (int i = 0; i < times[k]; i++) check(there + i * each[k], each[k], (float)i, 1);
        d->free(d, there);
        free(host);
    }
}

/* ---- work that comes again ---- */

static bool again(const gr_repeat *key, bool *given) {
    if (d->repeat) return d->repeat(d, key);
    return *given ? false : (*given = true);
}

/* sum += x twice, as work of this name; how often it was given. */
static int add_twice(int64_t name, float *sum, const float *x) {
    const gr_repeat key = {{name}};
    int n = 0;
    for (bool given = false; again(&key, &given); n++) add(sum, x, N), add(sum, x, N);
    return n;
}

static void same_work_on_other_numbers(void **state) {
    (void)state;
    static float host[N];
    float *sum = floats(N), *x = floats(N), *other = floats(N), all = 0;
    int given = 0;
    for (int i = 0; i < 12; i++) {
        if (i == 8) d->free(d, other); /* what was recorded may have pointed there */
        fill(host, N, (float)i);
        all += 2 * (float)i;
        d->upload(d, x, host, sizeof host);
        given += add_twice(1, sum, x);
    }
    check(sum, N, all, 24);
    assert_int_equal(given, card ? 2 + 2 : 12);
    d->free(d, sum), d->free(d, x);
}

/* More works than a device keeps: the sums are right, whichever it drops. */
static void many_works(void **state) {
    enum { WORKS = 90 };
    (void)state;
    static float host[N];
    float *sum[WORKS], *x = floats(N);
    for (int w = 0; w < WORKS; w++) sum[w] = floats(N);
    for (int round = 0; round < 4; round++) {
        int works = round < 3 ? 20 : WORKS;
        for (int w = 0; w < works; w++) {
            fill(host, N, (float)(round + w));
            d->upload(d, x, host, sizeof host);
            (void)add_twice(w, sum[w], x);
        }
    }
    for (int w = 0; w < 20; w++) check(sum[w], N, (float)(2 * (4 * w + 6)), 8);
    check(sum[50], N, 106, 2);
    for (int w = 0; w < WORKS; w++) d->free(d, sum[w]);
    d->free(d, x);
}

/* table += rows, by scratch that grows with their number; how often the work was given. */
static int embed(int64_t name, float *table, const float *rows, const int32_t *ids, int64_t n) {
    const gr_repeat key = {{name}};
    int times = 0;
    for (bool given = false; again(&key, &given); times++)
        d->ops->embed_backward(d, table, (gr_rows){(void *)(uintptr_t)rows, 1, GR_DTYPE_F32}, ids, n, 1, 1.0f);
    return times;
}

/* Scratch moves when it grows: what was recorded is of the old place. Where it must grow while work is recorded, that is given
 * again. */
static void scratch_grows(void **state) {
    enum { FEW = 9, MORE = 3000 };
    (void)state;
    float *table = floats(1), *rows = floats(MORE), ones[FEW];
    int32_t *ids = (int32_t *)floats(MORE); /* all 0 */
    for (int i = 0; i < FEW; i++) ones[i] = 1;
    d->upload(d, rows, ones, sizeof ones);
    int given = 0;
    for (int i = 0; i < 4; i++) given += embed(1, table, rows, ids, FEW);
    given += embed(2, table, rows, ids, FEW);
    given += embed(card ? 2 : 3, table, rows, ids, MORE); /* not allowed, but what scratch that grows elsewhere looks like */
    check(table, 1, 6 * FEW, 0);
    if (card) assert_int_equal(given, 2 + 1 + 2);
    for (int i = 0; i < 3; i++) (void)embed(1, table, rows, ids, FEW);
    check(table, 1, 9 * FEW, 0);
    d->free(d, table), d->free(d, rows), d->free(d, ids);
    assert_null(d->sync(d));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uploads_beside_the_work),
        cmocka_unit_test(many_uploads),
        cmocka_unit_test(same_work_on_other_numbers),
        cmocka_unit_test(many_works),
        cmocka_unit_test(scratch_grows),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
