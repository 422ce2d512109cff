/* quantize.c - quantisers; the layouts are told by the dequantisers in dequant.h. */
#include "kernels/quantize.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/dequant.h"

static void store_half(uint8_t *p, float f) {
    uint16_t h = gr_f32_to_f16(f);
    p[0] = (uint8_t)h, p[1] = (uint8_t)(h >> 8);
}

/* A rounded value as a code from low to high; a NaN is low. */
static int code_of(float rounded, int low, int high) {
    return rounded >= (float)low ? rounded <= (float)high ? (int)rounded : high : low;
}

static float largest_magnitude(const float *x, int n) {
    float largest = 0;
    for (int j = 0; j < n; j++) largest = fmaxf(largest, fabsf(x[j]));
    return largest;
}

/* The largest magnitude of a block becomes 127; halves round away from zero. */
void gr_quantize_q8_0(void *dst, const float *src, int64_t n) {
    uint8_t *out = dst;
    for (int64_t b = 0; b < n / 32; b++, out += 34, src += 32) {
        float d = largest_magnitude(src, 32) / 127.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
        store_half(out, d);
        for (int j = 0; j < 32; j++) {
            float q = roundf(src[j] * inverse);
            out[2 + j] = (uint8_t)(int8_t)(q >= -127 && q <= 127 ? q : 0); /* a NaN has no integer */
        }
    }
}

/* Codes of a block of 32 without a minimum: the value of the largest magnitude becomes -half, codes are stored + half. Returns
 * the scale. */
static float symmetric_codes(uint8_t *codes, const float *src, int half) {
    float extreme = 0;
    for (int j = 0; j < 32; j++)
        if (fabsf(src[j]) > fabsf(extreme)) extreme = src[j];
    float d = extreme / (float)-half, inverse = d != 0 ? 1.0f / d : 0.0f;
    for (int j = 0; j < 32; j++) codes[j] = (uint8_t)code_of(truncf(src[j] * inverse + ((float)half + 0.5f)), 0, 2 * half - 1);
    return d;
}

void gr_quantize_q4_0(void *dst, const float *src, int64_t n) {
    uint8_t *out = dst, codes[32];
    for (int64_t b = 0; b < n / 32; b++, out += 18, src += 32) {
        store_half(out, symmetric_codes(codes, src, 8));
        for (int j = 0; j < 16; j++) out[2 + j] = (uint8_t)(codes[j] | codes[j + 16] << 4);
    }
}

void gr_quantize_q5_0(void *dst, const float *src, int64_t n) {
    uint8_t *out = dst, codes[32];
    for (int64_t b = 0; b < n / 32; b++, out += 22, src += 32) {
        uint32_t high = 0;
        store_half(out, symmetric_codes(codes, src, 16));
        for (int j = 0; j < 32; j++) high |= (uint32_t)(codes[j] >> 4) << j;
        memcpy(out + 2, &high, 4);
        for (int j = 0; j < 16; j++) out[6 + j] = (uint8_t)((codes[j] & 15) | (codes[j + 16] & 15) << 4);
    }
}

/* ---- Q4_K ---- */

enum { GROUP = 32, GROUPS = 8 };

/* A group of a Q4_K block as q * scale - min with q of 0..15. */
typedef struct affine {
    float scale, min;
} affine;

/* To the nearest integer, even when between two: below 2^22 the float adder rounds to units. Larger values stay large. */
static inline float nearest(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

/* q[j] = nearest((x[j] - lowest) * inverse) within 0..15. */
static void codes_of_group(float *q, const float *x, float lowest, float inverse) {
    for (int j = 0; j < GROUP; j++) {
        float v = nearest(inverse * (x[j] - lowest)), above = v > 0 ? v : 0; /* a NaN is 0 */
        q[j] = above < 15 ? above : 15;
    }
}

/* Sum of weight * (q * scale - min - x)^2. */
static float squared_error(const float *q, const float *x, const float *weight, affine a) {
    float error = 0;
    for (int j = 0; j < GROUP; j++) {
        float difference = a.scale * q[j] - a.min - x[j];
        error += weight[j] * (difference * difference);
    }
    return error;
}

/* For given codes, the scale and minimum of least weighted squares. False when all codes are one. */
static bool least_squares(affine *out, const float *q, const float *x, const float *weight, float sum_w, float sum_x) {
    float sum_q = 0, sum_qq = 0, sum_xq = 0;
    for (int j = 0; j < GROUP; j++) {
        float w = weight[j] * q[j];
        sum_q += w;
        sum_qq += w * q[j];
        sum_xq += w * x[j];
    }
    float determinant = sum_w * sum_qq - sum_q * sum_q;
    if (!(determinant > 0)) return false;
    out->scale = (sum_w * sum_xq - sum_x * sum_q) / determinant;
    out->min = -((sum_qq * sum_x - sum_q * sum_xq) / determinant);
    if (out->min < 0) out->min = 0, out->scale = sum_xq / sum_qq; /* the format has no negative minimum */
    return true;
}

/* The best of the plain range and of 21 trials with steps around it, each from the best minimum so far; larger values weigh more. */
static affine fit_group(const float *x) {
    float weight[GROUP], q[GROUP], squares = 0, sum_w = 0, sum_x = 0, lowest = x[0], highest = x[0];
    for (int j = 0; j < GROUP; j++) squares += x[j] * x[j];
    float rms = sqrtf(squares / GROUP);
    for (int j = 0; j < GROUP; j++) {
        weight[j] = rms + fabsf(x[j]);
        sum_w += weight[j];
        sum_x += weight[j] * x[j];
        lowest = fminf(lowest, x[j]), highest = fmaxf(highest, x[j]);
    }
    lowest = fminf(lowest, 0);
    if (!(highest > lowest)) return (affine){0, -lowest};
    float inverse = 15 / (highest - lowest);
    affine best = {1 / inverse, -lowest}, trial;
    codes_of_group(q, x, lowest, inverse);
    float least = squared_error(q, x, weight, best);
    for (int i = 0; i <= 20; i++) {
        lowest = -best.min;
        codes_of_group(q, x, lowest, (-1.0f + 0.1f * (float)i + 15) / (highest - lowest));
        if (!least_squares(&trial, q, x, weight, sum_w, sum_x)) continue;
        float error = squared_error(q, x, weight, trial);
        if (error < least) least = error, best = trial;
    }
    return best;
}

/* Scale and minimum number g of 8, 6 bits each, into the 12 bytes that gr_k_scale reads (zeroed before). */
static void put_k_scale(uint8_t *s, int g, int scale, int min) {
    if (g < 4) {
        s[g] |= (uint8_t)scale;
        s[g + 4] |= (uint8_t)min;
    } else {
        s[g + 4] = (uint8_t)((scale & 15) | (min & 15) << 4);
        s[g - 4] |= (uint8_t)(scale >> 4 << 6);
        s[g] |= (uint8_t)(min >> 4 << 6);
    }
}

/* Codes of a group whose scale is zero mean nothing and are zero. */
void gr_quantize_q4_k(void *dst, const float *src, int64_t n) {
    uint8_t *out = dst;
    for (int64_t b = 0; b < n / (GROUPS * GROUP); b++, out += 144) {
        affine groups[GROUPS];
        float scale = 0, min = 0; /* the largest */
        for (int g = 0; g < GROUPS; g++) {
            groups[g] = fit_group(src + g * GROUP);
            scale = fmaxf(scale, groups[g].scale), min = fmaxf(min, groups[g].min);
        }
        float to_scale = scale > 0 ? 63 / scale : 0, to_min = min > 0 ? 63 / min : 0;
        memset(out, 0, 144);
        store_half(out, scale / 63), store_half(out + 2, min / 63);
        for (int g = 0; g < GROUPS; g++)
            put_k_scale(out + 4, g, code_of(nearest(to_scale * groups[g].scale), 0, 63), code_of(nearest(to_min * groups[g].min), 0, 63));
        for (int g = 0; g < GROUPS; g++, src += GROUP) {
            float d, m;
            gr_k_scale(&d, &m, out + 4, g, gr_load_half(out), gr_load_half(out + 2));
            for (int j = 0; j < GROUP; j++) {
                int q = d != 0 ? code_of(nearest((src[j] + m) / d), 0, 15) : 0;
                out[16 + g / 2 * GROUP + j] |= (uint8_t)(q << g % 2 * 4);
            }
        }
    }
}

/* ---- NF4 ---- */

/* The nearest of the 16 values: how many of the 15 middles between them lie below x. */
static uint8_t nf4_code(float x) {
    int code = 0;
    for (int step = 8; step; step /= 2)
        code += x > 0.5f * (gr_nf4_values[code + step - 1] + gr_nf4_values[code + step]) ? step : 0;
    return (uint8_t)code;
}

void gr_quantize_nf4(void *dst, const float *src, int64_t n) {
    uint8_t *out = dst;
    for (int64_t b = 0; b < n / 64; b++, out += 34, src += 64) {
        store_half(out, fminf(largest_magnitude(src, 64), 65504)); /* the largest half */
        float scale = gr_load_half(out), inverse = scale > 0 ? 1 / scale : 0;
        for (int j = 0; j < 32; j++) out[2 + j] = (uint8_t)(nf4_code(src[j] * inverse) | nf4_code(src[j + 32] * inverse) << 4);
    }
}
