/* limits.h - what the CPU at hand can do, for benches: float32 FMAs of all threads, reading from memory. */
#ifndef GR_BENCH_LIMITS_H
#define GR_BENCH_LIMITS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/kernels.h"
#include "kernels/threads.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#if defined(__x86_64__)
/* 10 independent chains of FMAs: enough to hide the latency of two units. Returns floating-point operations done. */
#define CHAINS(suffix, isa, type, set, fma, lanes)                                                                                 \
    __attribute__((target(isa))) static double peak_##suffix(int64_t steps) {                                                      \
        type x = set(0.999f), y = set(1e-3f), a0 = x, a1 = x, a2 = x, a3 = x, a4 = x, a5 = x, a6 = x, a7 = x;                      \
        type a8 = x, a9 = x;                                                                                                       \
        for (int64_t s = 0; s < steps; s++) {                                                                                      \
            a0 = fma(a0, x, y), a1 = fma(a1, x, y), a2 = fma(a2, x, y), a3 = fma(a3, x, y);                                        \
            a4 = fma(a4, x, y), a5 = fma(a5, x, y), a6 = fma(a6, x, y), a7 = fma(a7, x, y);                                        \
            a8 = fma(a8, x, y), a9 = fma(a9, x, y);                                                                                \
            /* the compiler may not see through the chains */                                                                      \
            __asm__ volatile(""                                                                                                    \
                             : "+v"(a0), "+v"(a1), "+v"(a2), "+v"(a3), "+v"(a4), "+v"(a5), "+v"(a6), "+v"(a7), "+v"(a8),           \
                               "+v"(a9));                                                                                          \
        }                                                                                                                          \
        return (double)steps * 10 * 2 * lanes;                                                                                     \
    }
#include <immintrin.h>
CHAINS(avx512, "avx512f", __m512, _mm512_set1_ps, _mm512_fmadd_ps, 16)
CHAINS(avx2, "avx2,fma", __m256, _mm256_set1_ps, _mm256_fmadd_ps, 8)
#endif

typedef struct peak_job {
    double flops[64];
    bool wide;
} peak_job;

static void peak_chunk(void *context, int64_t chunk, int worker) {
    peak_job *job = context;
    (void)worker;
#if defined(__x86_64__)
    job->flops[chunk] = job->wide ? peak_avx512(1000000) : peak_avx2(1000000);
#else
    job->flops[chunk] = 0;
#endif
}

/* FMA peak of the device's threads in GFLOP/s; the generic level is measured against AVX2. */
static double peak(gr_threads *pool, const gr_device *d) {
    int threads = gr_threads_count(pool) < 64 ? gr_threads_count(pool) : 64;
    double best = 0;
    for (int i = 0; i < 100; i++) {
        peak_job job = {.wide = strcmp(d->level, "cpu-avx512") == 0};
        double start = now(), flops = 0;
        gr_threads_run(pool, threads, peak_chunk, &job);
        for (int j = 0; j < threads; j++) flops += job.flops[j];
        if (flops / (now() - start) > best) best = flops / (now() - start);
    }
    return best / 1e9;
}

enum { STREAM = 64 << 20 }; /* bytes a thread reads: far more than any cache */

typedef uint64_t cache_line __attribute__((vector_size(64)));

typedef struct read_job {
    const cache_line *data;
    uint64_t sums[64];
} read_job;

static void read_chunk(void *context, int64_t chunk, int worker) {
    read_job *job = context;
    enum { LINES = STREAM / sizeof(cache_line), AT_ONCE = 8 };
    const cache_line *x = job->data + chunk * (int64_t)LINES;
    cache_line sum[AT_ONCE] = {{0}};
    (void)worker;
    for (int64_t i = 0; i < LINES; i += AT_ONCE)
        for (int j = 0; j < AT_ONCE; j++) sum[j] |= x[i + j];
    for (int j = 0; j < AT_ONCE; j++) job->sums[chunk] |= sum[j][0];
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Reading from memory with all threads in GB/s: the median, as neighbours on other cores read from it too. */
static double bandwidth(gr_threads *pool, gr_device *d) {
    enum { RUNS = 41 };
    int threads = gr_threads_count(pool) < 64 ? gr_threads_count(pool) : 64;
    double rates[RUNS];
    read_job job = {.data = d->alloc(d, (int64_t)threads * STREAM)};
    if (!job.data) abort();
    memset((void *)(uintptr_t)job.data, 0, (size_t)threads * STREAM); /* pages that were never written are all one */
    for (int i = 0; i < RUNS; i++) {
        double start = now();
        gr_threads_run(pool, threads, read_chunk, &job);
        rates[i] = (double)threads * STREAM / (now() - start) / 1e9;
    }
    if (job.sums[0] != 0) abort(); /* the sums are used */
    d->free(d, (void *)(uintptr_t)job.data);
    qsort(rates, RUNS, sizeof *rates, ascending);
    fprintf(stderr, "min %.1f p25 %.1f med %.1f p75 %.1f max %.1f\n", rates[0], rates[10], rates[20], rates[30], rates[40]);
    return rates[RUNS / 2];
}

#endif
