/* test_dtype.c - conversions of every element type, bit for bit against values made by the gguf package. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/dtype.h"
#include "tests/golden/dtypes.h"

static void check_to_f32(gr_dtype dtype, const void *bytes, int64_t size, const uint32_t *values, int64_t n) {
    float out[512];
    assert_int_equal(gr_dtype_bytes(dtype, n), size);
    gr_dtype_get(dtype)->to_f32(out, bytes, n);
    assert_memory_equal(out, values, (size_t)n * 4);
}

static void test_quantised(void **state) {
    (void)state;
#define CHECK(type, name)                                                                                    \
    check_to_f32(type, name##_bytes, sizeof name##_bytes, name##_values, sizeof name##_values / 4)
    CHECK(GR_DTYPE_Q4_0, q4_0);
    CHECK(GR_DTYPE_Q4_1, q4_1);
    CHECK(GR_DTYPE_Q5_0, q5_0);
    CHECK(GR_DTYPE_Q5_1, q5_1);
    CHECK(GR_DTYPE_Q8_0, q8_0);
    CHECK(GR_DTYPE_Q4_K, q4_k);
    CHECK(GR_DTYPE_Q5_K, q5_k);
    CHECK(GR_DTYPE_Q6_K, q6_k);
}

static void check_from_f32(gr_dtype dtype, const uint32_t *values, const void *bytes, int64_t size) {
    float in[64];
    uint8_t out[256];
    memcpy(in, values, sizeof in);
    gr_dtype_get(dtype)->from_f32(out, in, 64);
    assert_int_equal(gr_dtype_bytes(dtype, 64), size);
    assert_memory_equal(out, bytes, (size_t)size);
}

static void test_from_f32(void **state) {
    (void)state;
    check_from_f32(GR_DTYPE_F32, float_values, float_values, sizeof float_values);
    check_from_f32(GR_DTYPE_F16, float_values, f16_bytes, sizeof f16_bytes);
    check_from_f32(GR_DTYPE_BF16, float_values, bf16_bytes, sizeof bf16_bytes);
    check_from_f32(GR_DTYPE_Q8_0, plain_values, plain_q8_0_bytes, sizeof plain_q8_0_bytes);
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
        if (isnan(b))
            assert_true(isnan(gr_bf16_to_f32(gr_f32_to_bf16(b))));
        else
            assert_int_equal(gr_f32_to_bf16(b), h);
    }
}

static void test_table(void **state) {
    (void)state;
    for (int i = 0; i < GR_DTYPE_COUNT; i++) {
        const gr_dtype_info *type = gr_dtype_get((gr_dtype)i);
        assert_int_equal(gr_dtype_from_name(type->name), i);
        assert_int_equal(gr_dtype_from_gguf(type->gguf_type), i);
        if (type->safetensors_name) assert_int_equal(gr_dtype_from_safetensors(type->safetensors_name), i);
        assert_int_equal(gr_dtype_bytes((gr_dtype)i, 4 * type->block), 4 * type->block_bytes);
        assert_int_equal(gr_dtype_bytes((gr_dtype)i, type->block > 1 ? 1 : -1), -1);
    }
    assert_int_equal(gr_dtype_from_name("q3_k"), -1);
    assert_int_equal(gr_dtype_from_gguf(99), -1);
    assert_int_equal(gr_dtype_from_safetensors("I64"), -1);
    assert_int_equal(gr_dtype_bytes(GR_DTYPE_F32, INT64_MAX), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_quantised), cmocka_unit_test(test_from_f32),
                                       cmocka_unit_test(test_halves), cmocka_unit_test(test_table)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
