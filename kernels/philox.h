/* philox.h - randomness as a function: Philox4x32-10 (Salmon et al., SC 2011), keyed by (seed, purpose).
 * The same (key, counter) gives the same numbers on any thread, rank or backend. */
#ifndef GR_PHILOX_H
#define GR_PHILOX_H

#include <stdint.h>

/* Before a function that CUDA's compiler makes for the card too. */
#ifdef __CUDACC__
#define GR_HOST_DEVICE __host__ __device__
#else
#define GR_HOST_DEVICE
#endif

enum gr_purpose { /* the second half of the key: what the numbers are for */
                  GR_PURPOSE_DROPOUT = 1,
                  GR_PURPOSE_SHUFFLE = 2,
                  GR_PURPOSE_INIT = 3,
                  GR_PURPOSE_SAMPLE = 4, /* sampling of generated tokens */
                  GR_PURPOSE_SPLIT = 5,  /* train/eval split, data set weights */
                  GR_PURPOSE_MAKER = 6,  /* made data */
                  GR_PURPOSE_ROUND = 7   /* rounding of trained values to bfloat16 */
};

GR_HOST_DEVICE static inline void gr_philox(uint32_t out[4], uint64_t seed, uint32_t purpose, uint64_t counter_hi,
                                            uint64_t counter_lo) {
    uint32_t c0 = (uint32_t)counter_lo, c1 = (uint32_t)(counter_lo >> 32);
    uint32_t c2 = (uint32_t)counter_hi, c3 = (uint32_t)(counter_hi >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32) ^ (purpose * 0x9E3779B1u);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c0 = n0, c1 = (uint32_t)p1, c2 = n2, c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* One 32-bit number; hi and lo are free-form counters. */
static inline uint32_t gr_random_u32(uint64_t seed, uint32_t purpose, uint64_t hi, uint64_t lo) {
    uint32_t out[4];
    gr_philox(out, seed, purpose, hi, lo);
    return out[0];
}

/* Uniform in [0, 1), 24 bits. */
static inline float gr_random_uniform(uint64_t seed, uint32_t purpose, uint64_t hi, uint64_t lo) {
    return (float)(gr_random_u32(seed, purpose, hi, lo) >> 8) * (1.0f / 16777216.0f);
}

#endif
