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

/* The lowest value of a block becomes 0, the highest 31. */
void gr_quantize_q5_1(void *dst, const float *src, int64_t n) {
    uint8_t *out = dst;
    for (int64_t b = 0; b < n / 32; b++, out += 24, src += 32) {
        float lowest = src[0], highest = src[0];
        uint32_t high = 0;
        memset(out, 0, 24);
        for (int j = 1; j < 32; j++) lowest = fminf(lowest, src[j]), highest = fmaxf(highest, src[j]);
        float d = (highest - lowest) / 31, inverse = d != 0 ? 1.0f / d : 0.0f;
        store_half(out, d), store_half(out + 2, lowest);
        for (int j = 0; j < 32; j++) {
            int q = code_of(truncf((src[j] - lowest) * inverse + 0.5f), 0, 31);
            out[8 + j % 16] |= (uint8_t)((q & 15) << j / 16 * 4);
            high |= (uint32_t)(q >> 4) << j;
        }
        memcpy(out + 4, &high, 4);
    }
}

/* ---- Q4_K and Q5_K ---- */

enum { GROUP = 32, GROUPS = 8, BLOCK = GROUP * GROUPS };

/* A group of a block as q * scale - min with q of 0 to the top code. */
typedef struct affine {
    float scale, min;
} affine;

/* How a type's groups are searched: the top code; trial i has a step for a top of top + first + i/10. */
typedef struct search {
    float top, first;
    int trials;
} search;

static const search q4_k_search = {15, -1.0f, 21}, q5_k_search = {31, -0.5f, 16};

/* To the nearest integer, even when between two: below 2^22 the float adder rounds to units. Larger values stay large. */
static inline float nearest(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

/* q[j] = nearest((x[j] - lowest) * inverse) within 0..top. */
static void codes_of_group(float *q, const float *x, float lowest, float inverse, float top) {
    for (int j = 0; j < GROUP; j++) {
        float v = nearest(inverse * (x[j] - lowest)), above = v > 0 ? v : 0; /* a NaN is 0 */
        q[j] = above < top ? above : top;
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

/* The best of the plain range and of trials with steps around it, each from the best minimum so far; larger values weigh more. */
static inline affine fit_group(const float *x, const search *s) {
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
    float inverse = s->top / (highest - lowest);
    affine best = {1 / inverse, -lowest}, trial;
    codes_of_group(q, x, lowest, inverse, s->top);
    float least = squared_error(q, x, weight, best);
    for (int i = 0; i < s->trials; i++) {
        lowest = -best.min;
        codes_of_group(q, x, lowest, (s->first + 0.1f * (float)i + s->top) / (highest - lowest), s->top);
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

/* The 16 bytes before the codes of a block, and the codes. Those of a group whose scale is zero mean nothing and are zero. */
static inline void code_groups(uint8_t *head, uint8_t codes[BLOCK], const float *src, const search *s) {
    affine groups[GROUPS];
    float scale = 0, min = 0; /* the largest */
    for (int g = 0; g < GROUPS; g++) {
        groups[g] = fit_group(src + g * GROUP, s);
        scale = fmaxf(scale, groups[g].scale), min = fmaxf(min, groups[g].min);
    }
    float to_scale = scale > 0 ? 63 / scale : 0, to_min = min > 0 ? 63 / min : 0;
    memset(head, 0, 16);
    store_half(head, scale / 63), store_half(head + 2, min / 63);
    for (int g = 0; g < GROUPS; g++)
        put_k_scale(head + 4, g, code_of(nearest(to_scale * groups[g].scale), 0, 63),
                    code_of(nearest(to_min * groups[g].min), 0, 63));
    for (int g = 0; g < GROUPS; g++) {
        float d, m;
        gr_k_scale(&d, &m, head + 4, g, gr_load_half(head), gr_load_half(head + 2));
        for (int j = g * GROUP; j < (g + 1) * GROUP; j++)
            codes[j] = d != 0 ? (uint8_t)code_of(nearest((src[j] + m) / d), 0, (int)s->top) : 0;
    }
}

void gr_quantize_q4_k(void *dst, const float *src, int64_t n) {
    uint8_t *out = dst, codes[BLOCK];
    for (int64_t b = 0; b < n / BLOCK; b++, out += 144, src += BLOCK) {
        code_groups(out, codes, src, &q4_k_search);
        for (int i = 0; i < BLOCK / 2; i++) {
            const uint8_t *pair = codes + i / GROUP * 2 * GROUP + i % GROUP;
            out[16 + i] = (uint8_t)(pair[0] | pair[GROUP] << 4);
        }
    }
}

void gr_quantize_q5_k(void *dst, const float *src, int64_t n) {
    uint8_t *out = dst, codes[BLOCK];
    for (int64_t b = 0; b < n / BLOCK; b++, out += 176, src += BLOCK) {
        code_groups(out, codes, src, &q5_k_search);
        memset(out + 16, 0, GROUP);
        for (int j = 0; j < BLOCK; j++) out[16 + j % GROUP] |= (uint8_t)(codes[j] >> 4 << j / GROUP);
        for (int i = 0; i < BLOCK / 2; i++) {
            const uint8_t *pair = codes + i / GROUP * 2 * GROUP + i % GROUP;
            out[48 + i] = (uint8_t)((pair[0] & 15) | (pair[GROUP] & 15) << 4);
        }
    }
}

/* ---- Q6_K ---- */

enum { SMALL_GROUP = 16 };

/* The scale of a group as q * scale, q of -32..31: the best of steps around the one that makes the largest magnitude -32, in
 * squares weighted by the values' own. 0 for a group of nothing. */
static float fit_symmetric(const float *x) {
    float extreme = 0, scale = 0, best = 0;
    for (int j = 0; j < SMALL_GROUP; j++)
        if (fabsf(x[j]) > fabsf(extreme)) extreme = x[j];
    if (fabsf(extreme) < 1e-15f) return 0;
    for (int i = 0; i < 19; i++) { /* the plain step, then 0.9 below to 0.9 above */
        int offset = i == 0 ? 0 : i <= 9 ? i - 10 : i - 9;
        float inverse = -(32 + 0.1f * (float)offset) / extreme, sum_xq = 0, sum_qq = 0;
        for (int j = 0; j < SMALL_GROUP; j++) {
            float q = (float)code_of(nearest(inverse * x[j]), -32, 31), w = x[j] * x[j];
            sum_xq += w * x[j] * q;
            sum_qq += w * q * q;
        }
        if (!(sum_qq > 0) || (i > 0 && !(sum_xq * sum_xq > best * sum_qq))) continue;
        scale = sum_xq / sum_qq, best = scale * sum_xq;
    }
    return scale;
}

/* Of the block of 210 bytes: 128 of low bits, 64 of high bits, 16 scales, a half. */
static void put_q6(uint8_t *out, const uint8_t *codes) {
    memset(out, 0, 192);
    for (int j = 0; j < BLOCK; j++) {
        int g = j / GROUP, at = j % GROUP;
        out[g / 4 * 64 + g % 2 * 32 + at] |= (uint8_t)((codes[j] & 15) << g % 4 / 2 * 4);
        out[128 + g / 4 * 32 + at] |= (uint8_t)(codes[j] >> 4 << g % 4 * 2);
    }
}

void gr_quantize_q6_k(void *dst, const float *src, int64_t n) {
    uint8_t *out = dst, codes[BLOCK];
    for (int64_t b = 0; b < n / BLOCK; b++, out += 210, src += BLOCK) {
        float scales[BLOCK / SMALL_GROUP], largest = 0;
        for (int g = 0; g < BLOCK / SMALL_GROUP; g++) {
            scales[g] = fit_symmetric(src + g * SMALL_GROUP);
            if (fabsf(scales[g]) > fabsf(largest)) largest = scales[g];
        }
        memset(out, 0, 210);
        if (!(fabsf(largest) >= 1e-15f)) continue;
        float to_scale = -128 / largest;
        store_half(out + 208, 1 / to_scale);
        for (int g = 0; g < BLOCK / SMALL_GROUP; g++) {
            int scale = code_of(nearest(to_scale * scales[g]), -128, 127);
            float d = gr_load_half(out + 208) * (float)scale;
            out[192 + g] = (uint8_t)(int8_t)scale;
            for (int j = g * SMALL_GROUP; j < (g + 1) * SMALL_GROUP; j++)
                codes[j] = d != 0 ? (uint8_t)(code_of(nearest(src[j] / d), -32, 31) + 32) : 0;
        }
        put_q6(out, codes);
    }
}

/* ---- NF4 ---- */

/* The nearest of the 16 values: how many of the 15 middles between them lie below x. */
static uint8_t nf4_code(float x) {
    int code = 0;
    for (int step = 8; step; step /= 2) code += x > 0.5f * (gr_nf4_values[code + step - 1] + gr_nf4_values[code + step]) ? step : 0;
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
