/* bench_kernels.c - speed of the operations on the shapes of SmolLM2-135M, as GFLOP/s and as a share of the FMA peak
 * that the same run measures. Usage: bench_kernels [threads [PART]]; GRAFT_CPU chooses the level. PART: only operations whose line
 * contains it; "limits": only the machine's. */
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

static float *values(gr_device *d, int64_t n) {
    float *x = d->alloc(d, n * 4);
    if (!x) abort();
    for (int64_t i = 0; i < n; i++) x[i] = (float)(i * 7919 % 1009) / 1009 - 0.5f;
    return x;
}

static gr_rows rows_of(float *x, int64_t cols) { return (gr_rows){x, cols, GR_DTYPE_F32}; }

static double fma_peak;
static const char *wanted = ""; /* a part of the labels to be measured */

/* Best of repeated runs of the statement for 0.5 s or so. */
#define TIME(label, flops, statement)                                                                                              \
    do {                                                                                                                           \
        double best = 1e9, until = now() + 0.5;                                                                                    \
        if (!strstr(label, wanted)) break;                                                                                         \
        for (int run_ = 0; run_ < 3 || now() < until; run_++) {                                                                    \
            double start = now();                                                                                                  \
            statement;                                                                                                             \
            if (now() - start < best) best = now() - start;                                                                        \
        }                                                                                                                          \
        printf("%-44s %9.3f ms %8.1f GFLOP/s %5.1f %%\n", label, best * 1e3, (flops) / best / 1e9,                                 \
               (flops) / best / 1e9 / fma_peak * 100);                                                                             \
    } while (0)

static gr_weight make_weight(gr_device *d, gr_dtype dtype, int64_t N, int64_t K) {
    int64_t bytes = gr_dtype_bytes(dtype, N * K);
    unsigned char *data = d->alloc(d, bytes);
    if (!data) abort();
    if (dtype == GR_DTYPE_F32) {
        float *x = values(d, N * K);
        memcpy(data, x, (size_t)bytes);
        d->free(d, x);
    } else {
        for (int64_t i = 0; i < bytes; i++) data[i] = (unsigned char)(i * 31 % 48); /* halves stay small */
    }
    return (gr_weight){.dtype = dtype, .rows = N, .cols = K, .data = data};
}

static void bench_linear(gr_device *d, int64_t n, int64_t N, int64_t K, gr_dtype dtype, int64_t rank, gr_dtype compute) {
    static const char *const what[] = {"fwd", "bwd", "dw "};
    char line[3][96];
    bool any = false;
    for (int i = 0; i < 3; i++) {
        snprintf(line[i], sizeof *line, "linear %s n=%d %dx%d %s in %s r=%d", what[i], (int)n, (int)N, (int)K,
                 gr_dtype_get(dtype)->name, gr_dtype_get(compute)->name, (int)rank);
        any |= strstr(line[i], wanted) != NULL;
    }
    if (!any) return;
    gr_lora lora = {.rank = rank,
                    .scale = 1,
                    .A = values(d, rank * K),
                    .B = values(d, N * rank),
                    .dA = values(d, rank * K),
                    .dB = values(d, N * rank)};
    gr_linear l = {.w = make_weight(d, dtype, N, K), .lora = &lora, .n_lora = rank ? 1 : 0};
    gr_group group = {.member = {&l}, .n = 1, .compute = compute};
    float *x = values(d, n * K), *y = values(d, n * N), *h = values(d, n * rank), *dh = values(d, n * rank);
    float *dx = values(d, n * K);
    const gr_product p = {.group = &group, .x = rows_of(x, K), .y = rows_of(y, N), .h = h, .dh = dh};
    double flops = 2.0 * (double)n * (double)(N * K + rank * (N + K));
    TIME(line[0], flops, d->ops->linear_forward(d, &p, n));
    if (n > 16) {
        TIME(line[1], 2.0 * (double)n * (double)(N * K + 2 * rank * (N + K)),
             d->ops->linear_backward(d, &p, rows_of(dx, K), false, n));
    }
    if (n > 16 && rank == 0 && dtype == GR_DTYPE_F32) { /* a trained weight's gradient alone */
        l.dw = values(d, N * K);
        TIME(line[2], flops, d->ops->linear_backward(d, &p, (gr_rows){0}, false, n));
        d->free(d, l.dw);
    }
    d->free(d, x), d->free(d, y), d->free(d, h), d->free(d, dh), d->free(d, dx);
    d->free(d, (void *)l.w.data), d->free(d, (void *)lora.A), d->free(d, (void *)lora.B);
    d->free(d, lora.dA), d->free(d, lora.dB);
}

/* The same with int8 forms, as a share of the float peak too. */
static void bench_int8(gr_device *d, int64_t n, int64_t N, int64_t K, gr_dtype dtype) {
    char line[2][96];
    for (int i = 0; i < 2; i++)
        snprintf(line[i], sizeof *line, "int8 %s n=%d %dx%d %s", i ? "bwd" : "fwd", (int)n, (int)N, (int)K,
                 gr_dtype_get(dtype)->name);
    if (!strstr(line[0], wanted) && !strstr(line[1], wanted)) return;
    gr_linear l = {.w = make_weight(d, dtype, N, K)};
    gr_group group = {.member = {&l}, .n = 1, .base = GR_BASE_INT8, .backward = true};
    double flops = 2.0 * (double)n * (double)N * (double)K;
    float *x = values(d, n * K), *y = values(d, n * N);
    const gr_product p = {.group = &group, .x = rows_of(x, K), .y = rows_of(y, N)};
    if (!d->place(d, &group)) abort();
    TIME(line[0], flops, d->ops->linear_forward(d, &p, n));
    if (n > 16) TIME(line[1], flops, d->ops->linear_backward(d, &p, p.x, false, n));
    d->release(d, &group);
    d->free(d, x), d->free(d, y), d->free(d, (void *)l.w.data);
}

static void bench_attention(gr_device *d, int64_t length, int64_t n_seqs, gr_dtype compute) {
    enum { H = 9, K = 3, D = 64 };
    int64_t n = length * n_seqs;
    float *q = values(d, n * H * D), *k = values(d, n * K * D), *v = values(d, n * K * D), *out = values(d, n * H * D);
    float *lse = values(d, n * H), *delta = values(d, n * H), *dout = values(d, n * H * D), *dq = values(d, n * H * D);
    float *dk = values(d, n * K * D), *dv = values(d, n * K * D);
    gr_seq *seqs = d->alloc(d, n_seqs * (int64_t)sizeof *seqs);
    if (!seqs) abort();
    for (int64_t s = 0; s < n_seqs; s++) seqs[s] = (gr_seq){s * length, length, s * length, length};
    double flops = 2.0 * (double)n_seqs * (double)(length * length) * H * D; /* two products, half of them masked */
    char label[96];
    snprintf(label, sizeof label, "attention fwd %d x %d %s", (int)n_seqs, (int)length, gr_dtype_get(compute)->name);
    const gr_attention a = {.q = rows_of(q, H * D),
                            .k = rows_of(k, K * D),
                            .v = rows_of(v, K * D),
                            .out = rows_of(out, H * D),
                            .lse = lse,
                            .dq = rows_of(dq, H * D),
                            .dk = rows_of(dk, K * D),
                            .dv = rows_of(dv, K * D),
                            .dout = rows_of(dout, H * D),
                            .delta = delta,
                            .seqs = seqs,
                            .n_seqs = n_seqs,
                            .H = H,
                            .K = K,
                            .D = D,
                            .scale = 0.125f,
                            .compute = compute};
    TIME(label, flops, d->ops->attention_forward(d, &a));
    snprintf(label, sizeof label, "attention bwd %d x %d %s", (int)n_seqs, (int)length, gr_dtype_get(compute)->name);
    TIME(label, 2.5 * flops, d->ops->attention_backward(d, &a));
    float *all[] = {q, k, v, out, lse, delta, dout, dq, dk, dv, (float *)seqs};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) d->free(d, all[i]);
}

static void bench_rows(gr_device *d) {
    enum { N = 1024, C = 576, F = 1536, V = 49152, ROWS = 64 };
    float *x = values(d, (int64_t)N * 2 * F), *y = values(d, (int64_t)N * 2 * F), *w = values(d, F), *rstd = values(d, N);
    float *logits = values(d, (int64_t)ROWS * V), *m = values(d, N * C), *v = values(d, N * C), *table = values(d, 64 * 64);
    int32_t *ids = d->alloc(d, N * 4);
    uint64_t *key = d->alloc(d, N * 8);
    const gr_adamw p = {1e-3f, 0.9f, 0.99f, 1e-8f, 0.01f};
    gr_step_stats stats = {.clip = 1, .optimizer_step = 1};
    if (!ids || !key) abort();
    memset(v, 0, (size_t)N * C * 4);
    memset(ids, 0, N * 4), memset(key, 0, N * 8);
    const gr_trained f32 = {.f32 = m}, bf16 = {.bf16 = (uint16_t *)m};
    const gr_moments8 codes = {(uint8_t *)x, (uint8_t *)x + N * C, v, v + N};
    const gr_factors factors = {.row = rstd, .col = w};
    const gr_loss_terms plain = {0}, capped = {.softcap = 30};
    const gr_dropout drop = {.p = 0.1f, .seed = 1, .row_key = key, .site = 3};
    const gr_rows xc = rows_of(x, C), yc = rows_of(y, C), gu = rows_of(x, 2 * F);
    gr_norm norm = {.w = w, .eps = 1e-5f, .parts = 1, .width = C};
    TIME("rmsnorm fwd 1024x576", 4.0 * N * C, d->ops->rmsnorm_forward(d, yc, rstd, xc, (gr_rows){0}, &norm, N));
    TIME("rmsnorm bwd 1024x576", 8.0 * N * C, d->ops->rmsnorm_backward(d, yc, true, xc, xc, rstd, &norm, N));
    TIME("rope 1024x9x64", 3.0 * N * C, d->ops->rope(d, rows_of(m, C), ids, table, N, 9, 64, false));
    for (int act = GR_ACTIVATION_SILU; act <= GR_ACTIVATION_GELU_TANH; act++) {
        const char *const names[][2] = {{"glu fwd 1024x1536", "glu bwd 1024x1536"}, {"geglu fwd 1024x1536", "geglu bwd 1024x1536"}};
        TIME(names[act][0], 20.0 * N * F, d->ops->glu_forward(d, rows_of(y, F), gu, N, F, (gr_activation)act));
        TIME(names[act][1], 25.0 * N * F, d->ops->glu_backward(d, rows_of(y, 2 * F), rows_of(y, F), gu, N, F, (gr_activation)act));
    }
    TIME("cross_entropy 64x49152", 20.0 * ROWS * V, d->ops->cross_entropy(d, rstd, rows_of(logits, V), ids, rstd, ROWS, V, &plain));
    TIME("cross_entropy 64x49152 capped", 40.0 * ROWS * V,
         d->ops->cross_entropy(d, rstd, rows_of(logits, V), ids, rstd, ROWS, V, &capped));
    TIME("dropout 1024x576", 1.0 * N * C, d->ops->dropout(d, yc, xc, N, C, &drop, false));
    TIME("add 1024x576", 1.0 * N * C, d->ops->add(d, yc, xc, N, C));
    TIME("sum_squares 589824", 2.0 * N * C, d->ops->sum_squares(d, &stats, x, N * C));
    TIME("adamw 589824", 12.0 * N * C, d->ops->adamw(d, &f32, x, v, y, N * C, &p, &stats));
    TIME("adamw_8bit 589824", 12.0 * N * C, d->ops->adamw_8bit(d, &f32, &codes, y, N * C, &p, &stats));
    TIME("adamw_8bit 589824 at random", 12.0 * N * C, d->ops->adamw_8bit(d, &bf16, &codes, y, N * C, &p, &stats));
    TIME("adafactor 1024x576", 12.0 * N * C, d->ops->adafactor(d, &f32, &factors, y, N, C, &p, &stats));
    float *all[] = {x, y, w, rstd, logits, m, v, table, (float *)ids, (float *)key};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) d->free(d, all[i]);
}

int main(int argc, char **argv) {
    const char *why = "cannot start the threads";
    gr_threads *pool = gr_threads_new(argc > 1 ? atoi(argv[1]) : 0);
    gr_device *d = pool ? gr_device_open("cpu", pool, &why) : NULL;
    if (!d) {
        fprintf(stderr, "%s\n", why);
        return 1;
    }
    fma_peak = peak(pool, d);
    printf("%s, %d threads, FMA peak %.1f GFLOP/s, memory %.1f GB/s\n", d->level, gr_threads_count(pool), fma_peak,
           bandwidth(pool, d));
    if (argc > 2) wanted = argv[2];
    if (strcmp(wanted, "limits") == 0) {
        gr_device_close(d);
        gr_threads_free(pool);
        return 0;
    }
    /* SmolLM2's, its head, LLaMA-7B's */
    static const int64_t shapes[][2] = {{576, 576},   {192, 576},   {1536, 576},  {576, 1536},
                                        {49152, 576}, {4096, 4096}, {4096, 11008}};
    static const gr_dtype dtypes[] = {GR_DTYPE_F32, GR_DTYPE_Q4_1}, computes[] = {GR_DTYPE_F32, GR_DTYPE_BF16};
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < 7; s++)
            for (int c = 0; c < (d->fast_bf16 ? 2 : 1); c++) {
                bench_linear(d, s == 4 ? 256 : 1024, shapes[s][0], shapes[s][1], dtypes[t], s == 4 ? 0 : 8, computes[c]);
                bench_linear(d, s == 4 ? 256 : 1024, shapes[s][0], shapes[s][1], dtypes[t], 0, computes[c]);
                bench_linear(d, 1, shapes[s][0], shapes[s][1], dtypes[t], 0, computes[c]);
            }
    static const gr_dtype packed[] = {GR_DTYPE_Q4_1, GR_DTYPE_Q8_0};
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < 5; s++)
            for (int n = 1; n <= 1024; n *= s == 4 ? 256 : 32) bench_int8(d, n, shapes[s][0], shapes[s][1], packed[t]);
    for (int t = 0; t < 2; t++) bench_int8(d, 1, 262144, 1024, packed[t]); /* beyond all caches */
    for (int i = 0; i < (d->fast_bf16 ? 2 : 1); i++) {
        bench_attention(d, 256, 4, i ? GR_DTYPE_BF16 : GR_DTYPE_F32);
        bench_attention(d, 1024, 1, i ? GR_DTYPE_BF16 : GR_DTYPE_F32);
        bench_attention(d, 4096, 1, i ? GR_DTYPE_BF16 : GR_DTYPE_F32);
    }
    bench_rows(d);
    gr_device_close(d);
    gr_threads_free(pool);
    return 0;
}
