/* test_dtype.c - conversions of every element type, bit for bit against values made by the gguf package. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/dtype.h"
#include "kernels/philox.h"
#include "tests/golden/dtypes.h"

static void check_to_f32(gr_dtype dtype, const void *bytes, int64_t size, const uint32_t *values, int64_t n) {
    float out[512];
    assert_int_equal(gr_dtype_bytes(dtype, n), size);
    gr_dtype_get(dtype)->to_f32(out, bytes, n);
    assert_memory_equal(out, values, (size_t)n * 4);
}

static void test_quantised(void **state) {
    (void)state;
#define CHECK(type, name) check_to_f32(type, name##_bytes, sizeof name##_bytes, name##_values, sizeof name##_values / 4)
    CHECK(GR_DTYPE_Q4_0, q4_0);
    CHECK(GR_DTYPE_Q4_1, q4_1);
    CHECK(GR_DTYPE_Q5_0, q5_0);
    CHECK(GR_DTYPE_Q5_1, q5_1);
    CHECK(GR_DTYPE_Q8_0, q8_0);
    CHECK(GR_DTYPE_Q4_K, q4_k);
    CHECK(GR_DTYPE_Q5_K, q5_k);
    CHECK(GR_DTYPE_Q6_K, q6_k);
    check_to_f32(GR_DTYPE_NF4, weight_nf4_bytes, sizeof weight_nf4_bytes, nf4_values, sizeof nf4_values / 4);
}

static void check_from_f32(gr_dtype dtype, const uint32_t *values, int64_t n, const uint8_t *bytes, int64_t size) {
    float in[512];
    uint8_t out[2048];
    memcpy(in, values, (size_t)n * 4);
    gr_dtype_get(dtype)->from_f32(out, in, n);
    assert_int_equal(gr_dtype_bytes(dtype, n), size);
    for (int64_t i = 0; i < size; i++)
        if (out[i] != bytes[i]) fail_msg("%s: byte %d is %d, expected %d", gr_dtype_get(dtype)->name, (int)i, out[i], bytes[i]);
}

static void test_from_f32(void **state) {
    (void)state;
#define CHECK_FROM(type, values, bytes) check_from_f32(type, values, sizeof values / 4, (const uint8_t *)(bytes), sizeof bytes)
    CHECK_FROM(GR_DTYPE_F32, float_values, float_values);
    CHECK_FROM(GR_DTYPE_F16, float_values, f16_bytes);
    CHECK_FROM(GR_DTYPE_BF16, float_values, bf16_bytes);
    CHECK_FROM(GR_DTYPE_Q4_0, weight_values, weight_q4_0_bytes);
    CHECK_FROM(GR_DTYPE_Q5_0, weight_values, weight_q5_0_bytes);
    CHECK_FROM(GR_DTYPE_Q5_1, weight_values, weight_q5_1_bytes);
    CHECK_FROM(GR_DTYPE_Q8_0, weight_values, weight_q8_0_bytes);
    CHECK_FROM(GR_DTYPE_Q4_K, weight_values, weight_q4_k_bytes);
    CHECK_FROM(GR_DTYPE_Q5_K, weight_values, weight_q5_k_bytes);
    CHECK_FROM(GR_DTYPE_Q6_K, weight_values, weight_q6_k_bytes);
    CHECK_FROM(GR_DTYPE_NF4, weight_values, weight_nf4_bytes);
}

/* Quantised and back: root mean square error over that of the values, for normal weights. A bound is a few per cent above what
 * the type gives, so that a worse code or scale is seen. */
static void test_quantisation_error(void **state) {
    (void)state;
    enum { N = 1 << 14 };
    static const struct {
        gr_dtype dtype;
        double bound;
    } cases[] = {{GR_DTYPE_Q8_0, 0.0060}, {GR_DTYPE_Q5_0, 0.045}, {GR_DTYPE_Q4_0, 0.090}, {GR_DTYPE_Q5_1, 0.040},
                 {GR_DTYPE_Q4_K, 0.075},  {GR_DTYPE_Q5_K, 0.038}, {GR_DTYPE_Q6_K, 0.019}, {GR_DTYPE_NF4, 0.096}};
    float *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    uint8_t *bytes = malloc(N * 2);
    assert_true(x && y && bytes);
    for (int i = 0; i < N; i++) { /* Box-Muller */
        double u = gr_random_uniform(1, 1, 0, (uint64_t)i), v = gr_random_uniform(1, 2, 0, (uint64_t)i);
        x[i] = (float)(0.02 * sqrt(-2 * log(u + 1e-9)) * cos(6.283185307179586 * v));
    }
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        const gr_dtype_info *type = gr_dtype_get(cases[k].dtype);
        double error = 0, norm = 0;
        type->from_f32(bytes, x, N);
        type->to_f32(y, bytes, N);
        for (int i = 0; i < N; i++) error += pow((double)x[i] - y[i], 2), norm += pow(x[i], 2);
        double relative = sqrt(error / norm);
        if (!(relative < cases[k].bound && relative > cases[k].bound / 1.3))
            fail_msg("%s: relative error %g, expected about %g", type->name, relative, cases[k].bound);
    }
    for (int b = 0; b < N; b += 64) { /* NF4 is the last: the largest weight of a block is kept to the precision of a half */
        int at = b;
        for (int i = b; i < b + 64; i++) at = fabsf(x[i]) > fabsf(x[at]) ? i : at;
        assert_true(fabsf(y[at] - x[at]) <= 0x1p-11f * fabsf(x[at]));
    }
    free(x), free(y), free(bytes);
}

/* Values that no weight should have give bytes and no trap; NF4 keeps the largest floats finite. */
static void test_odd_values(void **state) {
    (void)state;
    static const gr_dtype types[] = {GR_DTYPE_Q8_0, GR_DTYPE_Q5_0, GR_DTYPE_Q5_1, GR_DTYPE_Q4_0,
                                     GR_DTYPE_Q4_K, GR_DTYPE_Q5_K, GR_DTYPE_Q6_K, GR_DTYPE_NF4};
    static const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-40f, 0.0f, -0.0f};
    float x[256], y[256];
    uint8_t bytes[512];
    for (size_t k = 0; k < sizeof types / sizeof *types; k++)
        for (int odds = 1; odds <= 8; odds++) {
            for (int i = 0; i < 256; i++) x[i] = odd[i % odds];
            gr_dtype_get(types[k])->from_f32(bytes, x, 256);
            gr_dtype_get(types[k])->to_f32(y, bytes, 256);
        }
    for (int i = 0; i < 64; i++) x[i] = i % 2 ? 1e30f : -1e-30f;
    gr_dtype_get(GR_DTYPE_NF4)->from_f32(bytes, x, 64);
    gr_dtype_get(GR_DTYPE_NF4)->to_f32(y, bytes, 64);
    assert_true(y[0] == 0 && y[1] == 65504);
}

/* Every half survives the way to float and back; a NaN stays a NaN. */
static void test_halves(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = gr_f16_to_f32((uint16_t)h), b = gr_bf16_to_f32((uint16_t)h);
        int exponent = (int)(h >> 10 & 31), mantissa = (int)(h & 1023);
        double exact = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
        if (exponent == 31) exact = INFINITY;
        if (exponent == 31 && mantissa) {
            assert_true(isnan(f) && isnan(gr_f16_to_f32(gr_f32_to_f16(f))));
        } else {
            assert_true(fabs((double)f) == exact && !signbit(f) == !(h >> 15));
            assert_int_equal(gr_f32_to_f16(f), h);
        }
        if (isnan(b)) assert_true(isnan(gr_bf16_to_f32(gr_f32_to_bf16(b))));
        else assert_int_equal(gr_f32_to_bf16(b), h);
    }
}

static void test_table(void **state) {
    (void)state;
    for (int i = 0; i < GR_DTYPE_COUNT; i++) {
        const gr_dtype_info *type = gr_dtype_get((gr_dtype)i);
        assert_int_equal(gr_dtype_from_name(type->name), i);
        if (type->gguf_type >= 0) assert_int_equal(gr_dtype_from_gguf(type->gguf_type), i);
        if (type->safetensors_name) assert_int_equal(gr_dtype_from_safetensors(type->safetensors_name), i);
        assert_int_equal(gr_dtype_bytes((gr_dtype)i, 4 * type->block), 4 * type->block_bytes);
        assert_int_equal(gr_dtype_bytes((gr_dtype)i, type->block > 1 ? 1 : -1), -1);
    }
    assert_int_equal(gr_dtype_from_name("q3_k"), -1);
    assert_int_equal(gr_dtype_from_gguf(99), -1);
    assert_int_equal(gr_dtype_from_gguf(-1), -1);
    assert_int_equal(gr_dtype_from_safetensors("I64"), -1);
    assert_int_equal(gr_dtype_bytes(GR_DTYPE_F32, INT64_MAX), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantised),  cmocka_unit_test(test_from_f32), cmocka_unit_test(test_quantisation_error),
        cmocka_unit_test(test_odd_values), cmocka_unit_test(test_halves),   cmocka_unit_test(test_table)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
