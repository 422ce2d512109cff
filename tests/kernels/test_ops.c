/* test_ops.c - every operation of ops.def, for every level this CPU has: against the reference on odd sizes with
 * unaligned, guarded buffers whose rows lie apart; one thread against three; a row alone against the same row among others. */
#include <stdio.h>

#include "kernels/philox.h"
#include "ops.h"

static const operation operations[] = {
#define GR_OP(name, params, args) {#name, call_##name},
#include "kernels/ops.def"
#undef GR_OP
    {"int8", call_int8}, {"int8 error", call_int8_error}};

/* Linears take every size in every dtype, embeddings every dtype in every type of rows. */
static int variants(const operation *op) {
    if (strcmp(op->name, "embed_forward") == 0) return 3 * GR_DTYPE_COUNT;
    bool linear = strncmp(op->name, "linear", 6) == 0 || strncmp(op->name, "int8", 4) == 0;
    if (strncmp(op->name, "attention", 9) == 0) return ATTENTIONS;
    return linear ? LINEAR_SIZES * GR_DTYPE_COUNT : GR_DTYPE_COUNT;
}

/* Level number *state against the reference, and itself with other threads and fewer rows. */
static void test_level(void **state) {
    const char *level = levels[*(int *)*state];
    if (!available(level)) skip();
    gr_device *reference = device("generic", 1), *one = device(level, 1), *three = device(level, 3);
    on_card = is_card(level);
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        for (int variant = 0; chosen(&operations[i]) && variant < variants(&operations[i]); variant++) {
            static const gr_dtype types[] = {GR_DTYPE_F32, GR_DTYPE_BF16, GR_DTYPE_F16};
            const operation *op = &operations[i];
            call a, b, c;
            if (on_card) card_type = types[(variant / 2 + variant / GR_DTYPE_COUNT) % 3], few_digits = card_type != GR_DTYPE_F32;
            make_call(&a, op, three, variant, 0, 37 + variant % 3 * 32);
            make_call(&b, op, reference, variant, 0, a.n);
            compare(&a, &b, op, level);
            if (strcmp(op->name, "embed_forward") == 0 && card_type == GR_DTYPE_F32) compare_bits(&a, &b, op, "reference");
            make_call(&c, op, one, variant, 0, a.n);
            compare_bits(&a, &c, op, "one thread");
            release(&b), release(&c);
            for (int64_t row = 0; row < a.n; row += 18) {
                make_call(&b, op, one, variant, row, row % 4 ? 1 : 1 + (a.n - row) / 2);
                compare_bits(&a, &b, op, "fewer rows");
                release(&b);
            }
            if (strncmp(op->name, "attention", 9) != 0 && strcmp(op->name, "sum_squares") != 0) {
                make_call(&b, op, one, variant, 0, 0);
                release(&b);
            }
            release(&a);
        }
    close_device(reference), close_device(one), close_device(three);
    on_card = few_digits = false, card_type = GR_DTYPE_F32;
}

/* Rows, and numbers of them, beyond what is done at once: held in registers, sorted or summed in one go. */
static void test_large(void **state) {
    const char *level = levels[*(int *)*state];
    if (!available(level)) skip();
    static const struct {
        operation op;
        int variant;
        int64_t n, columns;
    } cases[] = {
        {{"rmsnorm_forward", call_rmsnorm_forward}, 0, 5, 4096},     {{"rmsnorm_forward", call_rmsnorm_forward}, 0, 3, 16395},
        {{"rmsnorm_forward", call_rmsnorm_forward}, 1, 3, 16448},    {{"rmsnorm_forward", call_rmsnorm_forward}, 4, 2, 256},
        {{"rmsnorm_backward", call_rmsnorm_backward}, 0, 20, 4096},  {{"rmsnorm_backward", call_rmsnorm_backward}, 0, 19, 8301},
        {{"rmsnorm_backward", call_rmsnorm_backward}, 2, 11, 16448}, {{"rmsnorm_backward", call_rmsnorm_backward}, 3, 3, 8256},
        {{"rmsnorm_backward", call_rmsnorm_backward}, 0, 1100, 40},  {{"rmsnorm_backward", call_rmsnorm_backward}, 4, 1100, 64},
        {{"embed_backward", call_embed_backward}, 0, 3000, 24},      {{"embed_backward", call_embed_backward}, 0, 1025, 1}};
    static const gr_dtype types[] = {GR_DTYPE_F32, GR_DTYPE_BF16, GR_DTYPE_F16};
    gr_device *reference = device("generic", 1), *one = device(level, 1), *three = device(level, 3);
    on_card = is_card(level);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const operation *op = &cases[i].op;
        if (!chosen(op)) continue;
        call a, b;
        if (on_card) card_type = types[i % 3], few_digits = card_type != GR_DTYPE_F32;
        make_wide_call(&a, op, three, cases[i].variant, 0, cases[i].n, cases[i].columns);
        make_wide_call(&b, op, reference, cases[i].variant, 0, cases[i].n, cases[i].columns);
        compare(&a, &b, op, level);
        release(&b);
        make_wide_call(&b, op, one, cases[i].variant, 0, cases[i].n, cases[i].columns);
        compare_bits(&a, &b, op, "one thread");
        release(&b);
        make_wide_call(&b, op, one, cases[i].variant, a.n - 1, 1, cases[i].columns);
        compare_bits(&a, &b, op, "the last row");
        release(&b), release(&a);
    }
    close_device(reference), close_device(one), close_device(three);
    on_card = few_digits = false, card_type = GR_DTYPE_F32;
}

static void test_philox(void **state) {
    (void)state; /* Random123 kat_vectors, philox4x32 10: the key's second half is purpose * 0x9E3779B1 */
    uint32_t out[4];
    gr_philox(out, 0, 0, 0, 0);
    assert_int_equal(out[0], 0x6627e8d5), assert_int_equal(out[1], 0xe169c58d);
    assert_int_equal(out[2], 0xbc57ac4c), assert_int_equal(out[3], 0x9b00dbd8);
    gr_philox(out, UINT64_MAX, 0, UINT64_MAX, UINT64_MAX);
    assert_int_equal(out[0], 0x408f276d), assert_int_equal(out[1], 0x41c83b0e);
    assert_int_equal(out[2], 0xa20bc7c6), assert_int_equal(out[3], 0x6d5451fd);
    gr_philox(out, 0x299f31d0a4093822, 0, 0x0370734413198a2e, 0x85a308d3243f6a88);
    assert_int_equal(out[0], 0xd16cfe09), assert_int_equal(out[1], 0x94fdcceb);
    assert_int_equal(out[2], 0x5001e420), assert_int_equal(out[3], 0x24126ea1);
}

static void test_unknown_level(void **state) {
    (void)state;
    const char *why = NULL;
    gr_threads *threads = gr_threads_new(1);
    setenv("GRAFT_CPU", "mmx", 1);
    assert_null(gr_device_open("cpu", threads, &why));
    assert_non_null(strstr(why, "generic, avx2, avx512, avx512bf16 or amx"));
    assert_null(gr_cpu_ops("mmx"));
    gr_threads_free(threads);
}

typedef struct counter {
    int64_t seen[1000];
} counter;

static void count(void *context, int64_t chunk, int worker) {
    (void)worker;
    ((counter *)context)->seen[chunk]++;
}

static void test_pool(void **state) {
    (void)state;
    gr_threads *t = gr_threads_new(4);
    counter c = {{0}};
    for (int job = 0; job < 2000; job++) gr_threads_run(t, job % 1000, count, &c);
    for (int i = 0; i < 1000; i++) assert_int_equal(c.seen[i], 2 * (999 - i));
    gr_threads_free(t);
    gr_threads_free(NULL);
}

int main(void) {
    static int level[] = {0, 1, 2, 3, 4, 5};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox),
        cmocka_unit_test(test_pool),
        cmocka_unit_test(test_unknown_level),
        cmocka_unit_test(test_forgotten_panels),
        {"generic", test_level, NULL, NULL, &level[0]},
        {"avx2", test_level, NULL, NULL, &level[1]},
        {"avx512", test_level, NULL, NULL, &level[2]},
        {"avx512bf16", test_level, NULL, NULL, &level[3]},
        {"amx", test_level, NULL, NULL, &level[4]},
        {"cuda", test_level, NULL, NULL, &level[5]},
        {"cuda, many rows", test_many_rows, NULL, NULL, NULL},
        {"cuda, packed attention", test_packed_attention, NULL, NULL, &level[5]},
        {"generic, large", test_large, NULL, NULL, &level[0]},
        {"avx2, large", test_large, NULL, NULL, &level[1]},
        {"avx512, large", test_large, NULL, NULL, &level[2]},
        {"cuda, large", test_large, NULL, NULL, &level[5]},
        {"cuda, cache", test_card_cache, NULL, NULL, &level[5]},
        {"cuda, cached attention", test_cached_attention, NULL, NULL, &level[5]},
        {"cuda, few rows", test_few_rows, NULL, NULL, &level[5]},
        {"cuda, fp8", test_fp8, NULL, NULL, NULL},
        {"generic, kept panels", test_kept_panels, NULL, NULL, &level[0]},
        {"avx2, kept panels", test_kept_panels, NULL, NULL, &level[1]},
        {"avx512, kept panels", test_kept_panels, NULL, NULL, &level[2]},
        {"avx512bf16, kept panels", test_kept_panels, NULL, NULL, &level[3]},
        {"amx, kept panels", test_kept_panels, NULL, NULL, &level[4]},
        {"generic, window", test_window, NULL, NULL, &level[0]},
        {"avx2, window", test_window, NULL, NULL, &level[1]},
        {"avx512, window", test_window, NULL, NULL, &level[2]},
        {"avx512bf16, window", test_window, NULL, NULL, &level[3]},
        {"amx, window", test_window, NULL, NULL, &level[4]},
        {"avx2, long contraction", test_long_contraction, NULL, NULL, &level[1]},
        {"avx512, long contraction", test_long_contraction, NULL, NULL, &level[2]},
        {"avx512bf16, long contraction", test_long_contraction, NULL, NULL, &level[3]},
        {"amx, long contraction", test_long_contraction, NULL, NULL, &level[4]},
        {"avx2, long attention", test_long_attention, NULL, NULL, &level[1]},
        {"avx512, long attention", test_long_attention, NULL, NULL, &level[2]},
        {"avx512bf16, long attention", test_long_attention, NULL, NULL, &level[3]},
        {"amx, long attention", test_long_attention, NULL, NULL, &level[4]},
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
