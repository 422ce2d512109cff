/* immintrin.h - found before the compiler's own by the emulated kernels (see CMakeLists.txt): AVX-512, its VNNI and BF16, and AMX
 * in portable C, so that these levels are tested on CPUs that lack them. SIMDe has most intrinsics; what its Debian version lacks
 * follows. */
#ifndef GR_EMULATE_IMMINTRIN_H
#define GR_EMULATE_IMMINTRIN_H

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define __AVX512F__ 1 /* after SIMDe, which would take it for the CPU's */

typedef union emulated {
    float f[16];
    int32_t i[16];
} emulated;

static inline __m512 emulated_ps(const emulated *e) { return simde_mm512_loadu_ps(e->f); }
static inline emulated of_ps(__m512 v) {
    emulated e;
    simde_mm512_storeu_ps(e.f, v);
    return e;
}
static inline emulated of_si512(__m512i v) {
    emulated e;
    simde_mm512_storeu_si512(e.i, v);
    return e;
}

static inline __m512 emulated_maskz_loadu_ps(__mmask16 mask, const void *p) {
    emulated e;
    for (int i = 0; i < 16; i++) e.f[i] = mask >> i & 1 ? ((const float *)p)[i] : 0;
    return emulated_ps(&e);
}
static inline __m512 emulated_maskz_scalef_ps(__mmask16 mask, __m512 a, __m512 b) {
    emulated x = of_ps(a), n = of_ps(b);
    for (int i = 0; i < 16; i++) x.f[i] = mask >> i & 1 ? x.f[i] * exp2f(floorf(n.f[i])) : 0;
    return emulated_ps(&x);
}
static inline void emulated_mask_storeu_ps(void *p, __mmask16 mask, __m512 v) {
    emulated e = of_ps(v);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) ((float *)p)[i] = e.f[i];
}
static inline __m512i emulated_cvtps_epi32(__m512 v) {
    emulated e = of_ps(v);
    for (int i = 0; i < 16; i++) e.i[i] = (int32_t)lrintf(e.f[i]);
    return simde_mm512_loadu_si512(e.i);
}
static inline __m512 emulated_cvtepi32_ps(__m512i v) {
    emulated e = of_si512(v);
    for (int i = 0; i < 16; i++) e.f[i] = (float)e.i[i];
    return emulated_ps(&e);
}
static inline __m512 emulated_cvtph_ps(__m256i v) {
    emulated e;
    _mm256_storeu_ps(e.f, _mm256_cvtph_ps(_mm256_castsi256_si128(v)));
    _mm256_storeu_ps(e.f + 8, _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1)));
    return emulated_ps(&e);
}
static inline __m256i emulated_cvtps_ph(__m512 v) {
    emulated e = of_ps(v);
    return _mm256_set_m128i(_mm256_cvtps_ph(_mm256_loadu_ps(e.f + 8), _MM_FROUND_TO_NEAREST_INT),
                            _mm256_cvtps_ph(_mm256_loadu_ps(e.f), _MM_FROUND_TO_NEAREST_INT));
}
static inline __m256i emulated_cvtepi32_epi16(__m512i v) {
    emulated e = of_si512(v);
    int16_t h[16];
    for (int i = 0; i < 16; i++) h[i] = (int16_t)e.i[i];
    return _mm256_loadu_si256((const void *)h);
}
static inline __m128i emulated_cvtepi32_epi8(__m512i v) {
    emulated e = of_si512(v);
    int8_t h[16];
    for (int i = 0; i < 16; i++) h[i] = (int8_t)e.i[i];
    return _mm_loadu_si128((const void *)h);
}
static inline __m512i emulated_cvtepi8_epi32(__m128i v) {
    emulated e;
    int8_t h[16];
    _mm_storeu_si128((void *)h, v);
    for (int i = 0; i < 16; i++) e.i[i] = h[i];
    return simde_mm512_loadu_si512(e.i);
}
static inline __m512i emulated_inserti64x4(__m512i a, __m256i b, int upper) {
    emulated e = of_si512(a);
    _mm256_storeu_si256((void *)(e.i + 8 * upper), b);
    return simde_mm512_loadu_si512(e.i);
}
static inline __m512 emulated_shuffle_f32x4(__m512 a, __m512 b, int control) {
    emulated x = of_ps(a), y = of_ps(b), e;
    for (int lane = 0; lane < 4; lane++)
        for (int j = 0; j < 4; j++) e.f[4 * lane + j] = (lane < 2 ? x : y).f[4 * (control >> 2 * lane & 3) + j];
    return emulated_ps(&e);
}

/* Pairs of bfloat16 (AVX512_BF16): the odd term is added first. */
static inline float emulated_bf16(uint32_t h) {
    uint32_t bits = h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline uint32_t emulated_to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if ((bits & 0x7f800000) == 0) return bits >> 16 & 0x8000;
    return f != f ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static inline __m512 v_pairs(__m512 low, __m512 high) {
    emulated x = of_ps(low), y = of_ps(high), e;
    for (int i = 0; i < 8; i++) {
        e.i[i] = (int32_t)(emulated_to_bf16(x.f[2 * i]) | emulated_to_bf16(x.f[2 * i + 1]) << 16);
        e.i[8 + i] = (int32_t)(emulated_to_bf16(y.f[2 * i]) | emulated_to_bf16(y.f[2 * i + 1]) << 16);
    }
    return emulated_ps(&e);
}
static inline __m512 v_pair_fma(__m512 a, __m512 b, __m512 c) {
    emulated x = of_ps(a), y = of_ps(b), e = of_ps(c);
    for (int i = 0; i < 16; i++) {
        uint32_t p = (uint32_t)x.i[i], q = (uint32_t)y.i[i];
        e.f[i] = fmaf(emulated_bf16(p >> 16), emulated_bf16(q >> 16), e.f[i]);
        e.f[i] = fmaf(emulated_bf16(p & 0xffff), emulated_bf16(q & 0xffff), e.f[i]);
    }
    return emulated_ps(&e);
}

/* AMX with tiles of 16 rows of 64 bytes, as bf16.h configures them. A product adds pairs of k as the manual says: even and odd
 * terms in chains of their own from zero, their sum to C. */
static _Thread_local union {
    float f[16][16];
    uint16_t h[16][32];
    uint8_t b[16][64];
} emulated_tile[8];
static inline void emulated_tile_zero(int t) { memset(&emulated_tile[t], 0, sizeof emulated_tile[t]); }
static inline void emulated_tile_loadd(int t, const void *from, int64_t stride) {
    for (int i = 0; i < 16; i++) memcpy(emulated_tile[t].b[i], (const char *)from + i * stride, 64);
}
static inline void emulated_tile_stored(int t, void *to, int64_t stride) {
    for (int i = 0; i < 16; i++) memcpy((char *)to + i * stride, emulated_tile[t].b[i], 64);
}
static inline void emulated_tile_dpbf16ps(int c, int a, int b) {
    for (int i = 0; i < 16; i++) {
        float even[16] = {0}, odd[16] = {0};
        for (int p = 0; p < 16; p++) {
            float x = emulated_bf16(emulated_tile[a].h[i][2 * p]), y = emulated_bf16(emulated_tile[a].h[i][2 * p + 1]);
            for (int j = 0; j < 16; j++) {
                even[j] = fmaf(x, emulated_bf16(emulated_tile[b].h[p][2 * j]), even[j]);
                odd[j] = fmaf(y, emulated_bf16(emulated_tile[b].h[p][2 * j + 1]), odd[j]);
            }
        }
        for (int j = 0; j < 16; j++) emulated_tile[c].f[i][j] += even[j] + odd[j];
    }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) ((void)(config))
#define _tile_release()          ((void)0)
#define _tile_zero               emulated_tile_zero
#define _tile_loadd              emulated_tile_loadd
#define _tile_stream_loadd       emulated_tile_loadd
#define _tile_stored             emulated_tile_stored
#define _tile_dpbf16ps           emulated_tile_dpbf16ps

#define _mm512_maskz_loadu_ps        emulated_maskz_loadu_ps
#define _mm512_maskz_scalef_ps       emulated_maskz_scalef_ps
#define _mm512_mask_storeu_ps        emulated_mask_storeu_ps
#define _mm512_cvtps_epi32           emulated_cvtps_epi32
#define _mm512_cvtepi32_ps           emulated_cvtepi32_ps
#define _mm512_cvtepi32_epi16        emulated_cvtepi32_epi16
#define _mm512_cvtepi32_epi8         emulated_cvtepi32_epi8
#define _mm512_cvtepi8_epi32         emulated_cvtepi8_epi32
#define _mm512_inserti64x4           emulated_inserti64x4
#define _mm512_cvtph_ps              emulated_cvtph_ps
#define _mm512_cvtps_ph(v, rounding) emulated_cvtps_ph(v) /* always to nearest */
#define _mm512_shuffle_f32x4         emulated_shuffle_f32x4

#endif
