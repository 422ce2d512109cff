/* dequant.h - rows of a weight to float, the types of GGUF bit for bit as ggml's dequantize_row_*. Private to kernels/: plain C,
 * included by dtype.c and by the instruction-set levels, where the compiler vectorises the same loops. */
#ifndef GR_DEQUANT_H
#define GR_DEQUANT_H

#include <string.h>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "kernels/dtype.h"
#include "kernels/nf4.h"

static inline float gr_bits_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t gr_float_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

/* Half to float: one instruction where the level has it, else without a branch per case: normal numbers by rescaling the exponent
 * with a product, subnormal ones by subtracting the implicit bit of a float that holds the mantissa at its end. */
static inline float gr_half_float(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#else
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = (uint32_t)(h & 0x7fff);
    float normal = gr_bits_float((magnitude << 13) + (0xE0u << 23)) * 0x1p-112f;
    float subnormal = gr_bits_float(magnitude | (126u << 23)) - 0.5f;
    /* 126 << 23 is 0.5, whose last mantissa bit is worth 2^-24: exactly the unit of a subnormal half */
    return gr_bits_float(sign | gr_float_bits(magnitude < 0x400 ? subnormal : normal));
#endif
}

static inline uint16_t gr_load_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static inline float gr_load_half(const uint8_t *p) { return gr_half_float(gr_load_u16(p)); }
static inline float gr_bf16_float(uint16_t h) { return gr_bits_float((uint32_t)h << 16); }

static inline uint16_t gr_float_bf16(float f) {
    uint32_t bits = gr_float_bits(f);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : rounded);
}

static inline void gr_dequant_f32(float *y, const void *src, int64_t n) { memcpy(y, src, (size_t)n * 4); }

static inline void gr_dequant_f16(float *restrict y, const void *src, int64_t n) {
    const uint8_t *s = src;
    for (int64_t i = 0; i < n; i++) y[i] = gr_load_half(s + 2 * i);
}

static inline void gr_dequant_bf16(float *restrict y, const void *src, int64_t n) {
    const uint8_t *s = src;
    for (int64_t i = 0; i < n; i++) y[i] = gr_bf16_float(gr_load_u16(s + 2 * i));
}

/* Blocks of 32: y = q * d (+ m). Low nibbles are elements 0..15, high nibbles 16..31. */
static inline void gr_dequant_q4_0(float *restrict y, const void *src, int64_t n) {
    const uint8_t *s = src;
    for (int64_t b = 0; b < n / 32; b++, s += 18, y += 32) {
        float d = gr_load_half(s);
        for (int j = 0; j < 16; j++) y[j] = (float)((s[2 + j] & 15) - 8) * d;
        for (int j = 0; j < 16; j++) y[j + 16] = (float)((s[2 + j] >> 4) - 8) * d;
    }
}

static inline void gr_dequant_q4_1(float *restrict y, const void *src, int64_t n) {
    const uint8_t *s = src;
    for (int64_t b = 0; b < n / 32; b++, s += 20, y += 32) {
        float d = gr_load_half(s), m = gr_load_half(s + 2);
        for (int j = 0; j < 16; j++) y[j] = (float)(s[4 + j] & 15) * d + m;
        for (int j = 0; j < 16; j++) y[j + 16] = (float)(s[4 + j] >> 4) * d + m;
    }
}

/* The fifth bits of the 32 elements follow the scales as one little-endian word. */
static inline void gr_dequant_q5(float *restrict y, const uint8_t *s, float d, float m, int offset) {
    uint32_t high;
    memcpy(&high, s, 4);
    for (int j = 0; j < 16; j++) {
        int low = (s[4 + j] & 15) | (int)(high >> j & 1) << 4;
        y[j] = (float)(low - offset) * d + m;
    }
    for (int j = 0; j < 16; j++) {
        int low = (s[4 + j] >> 4) | (int)(high >> (j + 16) & 1) << 4;
        y[j + 16] = (float)(low - offset) * d + m;
    }
}

static inline void gr_dequant_q5_0(float *restrict y, const void *src, int64_t n) {
    const uint8_t *s = src;
    /* adding -0 changes no bit of a product */
    for (int64_t b = 0; b < n / 32; b++, s += 22, y += 32) gr_dequant_q5(y, s + 2, gr_load_half(s), -0.0f, 16);
}

static inline void gr_dequant_q5_1(float *restrict y, const void *src, int64_t n) {
    const uint8_t *s = src;
    for (int64_t b = 0; b < n / 32; b++, s += 24, y += 32) gr_dequant_q5(y, s + 4, gr_load_half(s), gr_load_half(s + 2), 0);
}

static inline void gr_dequant_q8_0(float *restrict y, const void *src, int64_t n) {
    const uint8_t *s = src;
    for (int64_t b = 0; b < n / 32; b++, s += 34, y += 32) {
        float d = gr_load_half(s);
        for (int j = 0; j < 32; j++) y[j] = (float)(int8_t)s[2 + j] * d;
    }
}

/* Six-bit scale and minimum number j of 8, packed in 12 bytes (Q4_K, Q5_K). */
static inline void gr_k_scale(float *scale, float *min, const uint8_t *s, int j, float d, float dmin) {
    int sc = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    int mn = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4;
    *scale = d * (float)sc, *min = dmin * (float)mn;
}

/* Blocks of 256 = 8 groups of 32, y = q * scale - min. Two groups share 32 bytes: low nibbles, then high nibbles. */
static inline void gr_dequant_q4_k(float *restrict y, const void *src, int64_t n) {
    const uint8_t *s = src;
    for (int64_t b = 0; b < n / 256; b++, s += 144) {
        float d = gr_load_half(s), dmin = gr_load_half(s + 2);
        for (int g = 0; g < 8; g++, y += 32) {
            const uint8_t *q = s + 16 + g / 2 * 32;
            int shift = g % 2 * 4;
            float scale, min;
            gr_k_scale(&scale, &min, s + 4, g, d, dmin);
            for (int j = 0; j < 32; j++) y[j] = scale * (float)(q[j] >> shift & 15) - min;
        }
    }
}

static inline void gr_dequant_q5_k(float *restrict y, const void *src, int64_t n) {
    const uint8_t *s = src;
    for (int64_t b = 0; b < n / 256; b++, s += 176) {
        float d = gr_load_half(s), dmin = gr_load_half(s + 2);
        for (int g = 0; g < 8; g++, y += 32) {
            const uint8_t *high = s + 16, *q = s + 48 + g / 2 * 32;
            int shift = g % 2 * 4;
            float scale, min;
            gr_k_scale(&scale, &min, s + 4, g, d, dmin);
            for (int j = 0; j < 32; j++) y[j] = scale * (float)((q[j] >> shift & 15) | (high[j] >> g & 1) << 4) - min;
        }
    }
}

/* Blocks of 256 = two halves of 4 groups of 32; a scale for 16 elements; 4 low bits and 2 high bits apart. */
static inline void gr_dequant_q6_k(float *restrict y, const void *src, int64_t n) {
    const uint8_t *s = src;
    for (int64_t b = 0; b < n / 256; b++, s += 210) {
        float d = gr_load_half(s + 208);
        for (int g = 0; g < 8; g++, y += 32) {
            const uint8_t *low = s + g / 4 * 64 + g % 2 * 32, *high = s + 128 + g / 4 * 32;
            const int8_t *scale = (const int8_t *)s + 192 + g * 2;
            int low_shift = g % 4 / 2 * 4, high_shift = g % 4 * 2;
            float d0 = d * (float)scale[0], d1 = d * (float)scale[1];
            for (int j = 0; j < 32; j++) {
                int q = (low[j] >> low_shift & 15) | (high[j] >> high_shift & 3) << 4;
                y[j] = (j < 16 ? d0 : d1) * (float)(q - 32);
            }
        }
    }
}

static const float gr_nf4_values[16] = {GR_NF4_VALUES};

/* Blocks of 64 = a half as scale (the largest magnitude), then 32 bytes of codes: low nibbles are elements 0..31, high nibbles
 * 32..63. 34 bytes, 4.25 bits a weight.
 *
 * QLoRA's double quantisation brings float32 scales down to 8 bits, 256 of them under a float and a mean of their own: 4.127
 * bits. A block here stands alone, so that any row of a multiple of 64 has whole blocks and any piece of a row can be read; a
 * half takes most of that saving (float32 scales: 4.5 bits) and none of the accuracy. Eight bits alone, without neighbours, would
 * be too few: models depend on the largest weight of a block being exact. Loss of SmolLM2-135M on school math: 1.577
 * unquantised, 1.600 with halves, 1.604 with scales in QLoRA's way, 1.644 and 1.906 with scales of 4 and 3 bits of mantissa. */
static inline void gr_dequant_nf4(float *restrict y, const void *src, int64_t n) {
    const uint8_t *s = src;
    for (int64_t b = 0; b < n / 64; b++, s += 34, y += 64) {
        float scale = gr_load_half(s);
        for (int j = 0; j < 32; j++) y[j] = gr_nf4_values[s[2 + j] & 15] * scale;
        for (int j = 0; j < 32; j++) y[j + 32] = gr_nf4_values[s[2 + j] >> 4] * scale;
    }
}

#endif
