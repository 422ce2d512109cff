/* dtype.c - the table of element types and their conversions. */
#include "kernels/dtype.h"

#include <stddef.h>
#include <string.h>
#include <strings.h>

#include "kernels/dequant.h"
#include "kernels/quantize.h"

float gr_bf16_to_f32(uint16_t h) { return gr_bf16_float(h); }
uint16_t gr_f32_to_bf16(float f) { return gr_float_bf16(f); }
float gr_f16_to_f32(uint16_t h) { return gr_half_float(h); }

uint16_t gr_f32_to_f16(float f) {
    uint32_t bits = gr_float_bits(f), magnitude = bits & 0x7fffffff;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x477ff000) return sign | 0x7c00; /* 65520 and above round to infinity */
    if (magnitude < 0x38800000)                        /* subnormal: the float adder rounds to units of 2^-24 */
        return sign | (uint16_t)(gr_float_bits(gr_bits_float(magnitude) + 0.5f) - (126u << 23));
    return sign | (uint16_t)((magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

static void f32_from_f32(void *dst, const float *src, int64_t n) { memcpy(dst, src, (size_t)n * 4); }

static void f16_from_f32(void *dst, const float *src, int64_t n) {
    uint8_t *out = dst;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = gr_f32_to_f16(src[i]);
        out[2 * i] = (uint8_t)h, out[2 * i + 1] = (uint8_t)(h >> 8);
    }
}

static void bf16_from_f32(void *dst, const float *src, int64_t n) {
    uint8_t *out = dst;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = gr_float_bf16(src[i]);
        out[2 * i] = (uint8_t)h, out[2 * i + 1] = (uint8_t)(h >> 8);
    }
}

#define TO_F32(type)                                                                                                               \
    static void type##_to_f32(float *dst, const void *src, int64_t n) { gr_dequant_##type(dst, src, n); }
TO_F32(f32)
TO_F32(f16)
TO_F32(bf16)
TO_F32(q4_0)
TO_F32(q4_1)
TO_F32(q5_0)
TO_F32(q5_1)
TO_F32(q8_0)
TO_F32(q4_k)
TO_F32(q5_k)
TO_F32(q6_k)
TO_F32(nf4)

static const gr_dtype_info table[GR_DTYPE_COUNT] = {
    [GR_DTYPE_F32] = {"f32", "F32", 0, 1, 4, f32_to_f32, f32_from_f32},
    [GR_DTYPE_F16] = {"f16", "F16", 1, 1, 2, f16_to_f32, f16_from_f32},
    [GR_DTYPE_BF16] = {"bf16", "BF16", 30, 1, 2, bf16_to_f32, bf16_from_f32},
    [GR_DTYPE_Q4_0] = {"q4_0", NULL, 2, 32, 18, q4_0_to_f32, gr_quantize_q4_0},
    [GR_DTYPE_Q4_1] = {"q4_1", NULL, 3, 32, 20, q4_1_to_f32, NULL},
    [GR_DTYPE_Q5_0] = {"q5_0", NULL, 6, 32, 22, q5_0_to_f32, gr_quantize_q5_0},
    [GR_DTYPE_Q5_1] = {"q5_1", NULL, 7, 32, 24, q5_1_to_f32, gr_quantize_q5_1},
    [GR_DTYPE_Q8_0] = {"q8_0", NULL, 8, 32, 34, q8_0_to_f32, gr_quantize_q8_0},
    [GR_DTYPE_Q4_K] = {"q4_k", NULL, 12, 256, 144, q4_k_to_f32, gr_quantize_q4_k},
    [GR_DTYPE_Q5_K] = {"q5_k", NULL, 13, 256, 176, q5_k_to_f32, gr_quantize_q5_k},
    [GR_DTYPE_Q6_K] = {"q6_k", NULL, 14, 256, 210, q6_k_to_f32, gr_quantize_q6_k},
    [GR_DTYPE_NF4] = {"nf4", NULL, -1, 64, 34, nf4_to_f32, gr_quantize_nf4},
};

const gr_dtype_info *gr_dtype_get(gr_dtype dtype) { return &table[dtype]; }

int gr_dtype_from_name(const char *name) {
    for (int i = 0; i < GR_DTYPE_COUNT; i++)
        if (strcasecmp(name, table[i].name) == 0) return i;
    return -1;
}

int gr_dtype_from_gguf(int gguf_type) {
    for (int i = 0; i < GR_DTYPE_COUNT; i++)
        if (gguf_type >= 0 && table[i].gguf_type == gguf_type) return i;
    return -1;
}

int gr_dtype_from_safetensors(const char *name) {
    for (int i = 0; i < GR_DTYPE_COUNT; i++)
        if (table[i].safetensors_name && strcmp(name, table[i].safetensors_name) == 0) return i;
    return -1;
}

int64_t gr_dtype_bytes(gr_dtype dtype, int64_t n) {
    int64_t bytes;
    if (n < 0 || n % table[dtype].block != 0) return -1;
    if (__builtin_mul_overflow(n / table[dtype].block, table[dtype].block_bytes, &bytes)) return -1;
    return bytes;
}
