/* vec.h - the one vector type of a vectorised level: VL floats, and exp. Included only by *_avx2.c and *_avx512.c, which
 * thereby get the shared templates at their width. LEVEL(name) is name with the level's suffix. */
#ifndef GR_CPU_VEC_H
#define GR_CPU_VEC_H

#include <immintrin.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))
/* A loop whose length the compiler knows. */
#if defined(__clang__)
#define UNROLL(...) _Pragma("clang loop unroll(full)") for (__VA_ARGS__)
#else
#define UNROLL(...) _Pragma("GCC unroll 16") for (__VA_ARGS__)
#endif

#if defined(GR_PAIRS) || defined(GR_AMX)
#define GR_BF16 /* the level multiplies bfloat16 */
#endif

#if defined(__AVX512F__)

#if defined(GR_AMX)
#define LEVEL(name) name##_amx
#elif defined(GR_PAIRS)
#define LEVEL(name) name##_avx512bf16
#else
#define LEVEL(name) name##_avx512
#endif
enum { VL = 16 };
typedef __m512 vf;
static inline vf v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
static inline vf v_set(float f) { return _mm512_set1_ps(f); }
static inline vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf v_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* 2^n for integral n in [-127,127]; -127 gives 0. */
static inline vf v_pow2(vf n) {
    __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}
/* p 2^n, 0 where t < -126.5 */
static inline vf v_times_pow2(vf p, vf n, vf t) {
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(t, _mm512_set1_ps(-126.5f), _CMP_NLT_UQ), p, n);
}
static inline __mmask16 v_mask(int64_t n) { return (__mmask16)((1u << n) - 1); }
/* The first n (1..VL) lanes; the others are 0 and untouched in memory. */
static inline vf v_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(v_mask(n), p); }
static inline void v_store_n(float *p, vf v, int64_t n) { _mm512_mask_storeu_ps(p, v_mask(n), v); }
/* v with lanes n.. replaced by other's. */
static inline vf v_first(vf v, vf other, int64_t n) { return _mm512_mask_blend_ps(v_mask(n), other, v); }
static inline vf v_round_f16(vf v) { return _mm512_cvtph_ps(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
static inline vf v_round_bf16(vf v) { /* nearest even; a NaN stays one */
    __m512i i = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(i, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(i, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    r = _mm512_and_si512(r, _mm512_set1_epi32((int)0xffff0000));
    return _mm512_mask_mov_ps(_mm512_castsi512_ps(r), _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), v);
}
#if defined(GR_BF16)
/* Lanes of two bfloat16 each. Rounding is to nearest even; numbers below 2^-126 become 0. */
#if !defined(GRAFT_EMULATED)
static inline vf v_pairs(vf low, vf high) { return (vf)_mm512_cvtne2ps_pbh(high, low); } /* consecutive values */
static inline vf v_pair_fma(vf a, vf b, vf c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
#endif
static inline vf v_interleave(vf low, vf high) { /* lane i: low[i], high[i] */
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                           19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, _mm512_castps_si512(v_pairs(low, high))));
}
#endif

#else

#define LEVEL(name) name##_avx2
enum { VL = 8 };
typedef __m256 vf;
static inline vf v_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void v_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
static inline vf v_set(float f) { return _mm256_set1_ps(f); }
static inline vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf v_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf v_pow2(vf n) {
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
static inline vf v_times_pow2(vf p, vf n, vf t) {
    return _mm256_and_ps(_mm256_mul_ps(p, v_pow2(n)), _mm256_cmp_ps(t, _mm256_set1_ps(-126.5f), _CMP_NLT_UQ));
}
static inline __m256i v_mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vf v_load_n(const float *p, int64_t n) { return _mm256_maskload_ps(p, v_mask(n)); }
static inline void v_store_n(float *p, vf v, int64_t n) { _mm256_maskstore_ps(p, v_mask(n), v); }
static inline vf v_first(vf v, vf other, int64_t n) { return _mm256_blendv_ps(other, v, _mm256_castsi256_ps(v_mask(n))); }
static inline vf v_round_f16(vf v) { return _mm256_cvtph_ps(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
static inline vf v_round_bf16(vf v) {
    __m256i i = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(i, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(i, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    r = _mm256_and_si256(r, _mm256_set1_epi32((int)0xffff0000));
    return _mm256_blendv_ps(_mm256_castsi256_ps(r), v, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}

#endif

/* The first n lanes, or all, or none. */
static inline vf v_load_up_to(const float *x, int64_t n) { return n >= VL ? v_load(x) : n > 0 ? v_load_n(x, n) : v_set(0); }

/* 8 x 8 transposed: pairs, quads, then 128-bit halves. */
static inline void v_transpose8(__m256 r[8]) {
    __m256 t[8];
    UNROLL(int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLL(int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    UNROLL(int i = 0; i < 4; i++) {
        __m256 low = r[i], high = r[i + 4];
        r[i] = _mm256_permute2f128_ps(low, high, 0x20);
        r[i + 4] = _mm256_permute2f128_ps(low, high, 0x31);
    }
}

/* Lanes added in a fixed tree: the two halves, then their halves. */
static inline float v_sum8(__m256 v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
static inline float v_largest8(__m256 v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
#if defined(__AVX512F__)
static inline __m256 v_half(vf v, const int upper) {
    __m512i i = _mm512_castps_si512(v);
    return _mm256_castsi256_ps(upper ? _mm512_extracti64x4_epi64(i, 1) : _mm512_castsi512_si256(i));
}
static inline float v_sum(vf v) { return v_sum8(_mm256_add_ps(v_half(v, 0), v_half(v, 1))); }
static inline float v_largest(vf v) { return v_largest8(_mm256_max_ps(v_half(v, 0), v_half(v, 1))); }
#else
static inline float v_sum(vf v) { return v_sum8(v); }
static inline float v_largest(vf v) { return v_largest8(v); }
#endif

/* e^x within 1.5 ulp: x = n ln 2 + r, a polynomial (coefficients of Cephes) for e^r on |r| <= ln2/2, times 2^n.
 * exp(0) = 1 exactly; below -87.7, -infinity included, exactly 0; above 88.37 the value there; a NaN stays one. */
static inline vf v_exp(vf x) {
    x = v_max(v_set(-88.0f), v_min(v_set(88.37f), x));
    vf n = v_round(v_mul(x, v_set(1.44269504f)));
    vf r = v_fma(n, v_set(2.12194440e-4f), v_fma(n, v_set(-0.693359375f), x));
    vf p = v_fma(v_set(1.9875691500e-4f), r, v_set(1.3981999507e-3f));
    p = v_fma(p, r, v_set(8.3334519073e-3f));
    p = v_fma(p, r, v_set(4.1665795894e-2f));
    p = v_fma(p, r, v_set(1.6666665459e-1f));
    p = v_fma(p, r, v_set(5.0000001201e-1f));
    p = v_add(v_fma(p, v_mul(r, r), r), v_set(1.0f));
    return v_mul(p, v_pow2(n));
}

/* Lanes of a where x < limit, of b elsewhere. */
#if defined(__AVX512F__)
static inline vf v_where_below(vf x, vf limit, vf a, vf b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), b, a);
}
#else
static inline vf v_where_below(vf x, vf limit, vf a, vf b) { return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, limit, _CMP_LT_OQ)); }
#endif

/* tanh within 3 ulp: near 0 a polynomial (Cephes), else (e^2x - 1) / (e^2x + 1). A NaN stays one. */
static inline vf v_tanh(vf x) {
    const vf one = v_set(1), z = v_mul(x, x), e = v_exp(v_add(x, x));
    vf p = v_fma(v_set(-5.70498872745e-3f), z, v_set(2.06390887954e-2f));
    p = v_fma(p, z, v_set(-5.37397155531e-2f));
    p = v_fma(p, z, v_set(1.33314422036e-1f));
    p = v_fma(p, z, v_set(-3.33332819422e-1f));
    return v_where_below(z, v_set(0.625f * 0.625f), v_fma(v_mul(p, z), x, x), v_div(v_sub(e, one), v_add(e, one)));
}

/* 2^t for t <= 0, within 2 ulp: t = n + r, a polynomial (Cephes' exp2f) for 2^r on |r| <= 1/2. 2^0 is 1 exactly; below -126.5,
 * -infinity included, exactly 0; a NaN stays one. */
static inline vf v_exp2(vf t) {
    vf n = v_round(t), r = v_sub(t, n);
    vf p = v_fma(v_set(1.535336188319500e-4f), r, v_set(1.339887440266574e-3f));
    p = v_fma(p, r, v_set(9.618437357674640e-3f));
    p = v_fma(p, r, v_set(5.550332471162809e-2f));
    p = v_fma(p, r, v_set(2.402264791363012e-1f));
    p = v_fma(p, r, v_set(6.931472028550421e-1f));
    p = v_fma(p, r, v_set(1.0f));
    return v_times_pow2(p, n, t);
}

#endif
