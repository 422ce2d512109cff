/* device.c - the CPU device: its level, memory, pool and scratch. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/cpu/impl.h"

/* The operations that the vectorised levels bring; the others are copies and stay with the reference. */
#define VECTOR_OPS(level)                                                                                                          \
    .rmsnorm_forward = gr_rmsnorm_forward_##level, .rmsnorm_backward = gr_rmsnorm_backward_##level,                                \
    .linear_forward = gr_linear_forward_##level, .linear_backward = gr_linear_backward_##level, .rope = gr_rope_##level,           \
    .attention_forward = gr_attention_forward_##level, .attention_backward = gr_attention_backward_##level,                        \
    .swiglu_forward = gr_swiglu_forward_##level, .swiglu_backward = gr_swiglu_backward_##level,                                    \
    .cross_entropy = gr_cross_entropy_##level, .dropout = gr_dropout_##level, .add = gr_add_##level,                               \
    .sum_squares = gr_sum_squares_##level, .adamw = gr_adamw_##level
/* Those that multiply bfloat16 where the level can. */
#define MATRIX_OPS(level)                                                                                                          \
    .linear_forward = gr_linear_forward_##level, .linear_backward = gr_linear_backward_##level,                                    \
    .attention_forward = gr_attention_forward_##level, .attention_backward = gr_attention_backward_##level

#define GR_OP(name, params) .name = gr_##name##_generic,
static const gr_ops generic_ops = {
#include "kernels/ops.def"
};
#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init" /* the reference fills every slot, a level then takes its own */
static const gr_ops avx2_ops = {
#include "kernels/ops.def"
    VECTOR_OPS(avx2)};
static const gr_ops avx512_ops = {
#include "kernels/ops.def"
    VECTOR_OPS(avx512)};
static const gr_ops avx512bf16_ops = {
#include "kernels/ops.def"
    VECTOR_OPS(avx512), MATRIX_OPS(avx512bf16)};
static const gr_ops amx_ops = {
#include "kernels/ops.def"
    VECTOR_OPS(avx512), MATRIX_OPS(amx)};
#pragma GCC diagnostic pop
#endif
#undef GR_OP

static const char *const level_names[] = {"cpu-amx", "cpu-avx512bf16", "cpu-avx512", "cpu-avx2", "cpu-generic"}; /* best first */

#if defined(__x86_64__)
/* An emulator of AMX and AVX512_BF16, which cannot always change what CPUID says, tells so. */
static bool emulated(void) { return getenv("AMXEMU") != NULL; }

/* CPUID and the kernel's word, which a process must ask for once: tiles are big, so Linux gives them on request. */
static bool has_amx(void) {
#if defined(GRAFT_EMULATED)
    return true;
#else
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
    unsigned a, b, c, d = 0;
    bool said = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_BF16) && (d & AMX_TILE);
    return (said || emulated()) && syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#endif
}
#endif

const gr_ops *gr_cpu_ops(const char *level) {
    if (strcmp(level, "generic") == 0) return &generic_ops;
#if defined(__x86_64__)
    /* half conversions (F16C) are older than AVX2; clang has no name for them here */
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx2 && strcmp(level, "avx2") == 0) return &avx2_ops;
    if (avx512 && strcmp(level, "avx512") == 0) return &avx512_ops;
    bool bf16 = avx512 && (__builtin_cpu_supports("avx512bf16") || emulated());
    if (bf16 && strcmp(level, "avx512bf16") == 0) return &avx512bf16_ops;
    if (bf16 && strcmp(level, "amx") == 0 && has_amx()) return &amx_ops;
#endif
    return NULL;
}

/* In front of what the device allocates: the size of its mapping, 0 for memory of the heap. */
typedef union header {
    size_t mapped;
    _Alignas(64) char line[64];
} header;

/* What is large is mapped by itself, in large pages where the system has them: reading in order does not stop at every 4 KiB, and
 * what is never touched takes no memory. */
static header *map_large(size_t bytes) {
    const size_t page = 2 << 20;
    size_t size = (bytes + page - 1) / page * page;
    char *p = mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    size_t before = (page - (uintptr_t)p % page) % page;
    if (before) munmap(p, before);
    munmap(p + before + size, page - before);
#if defined(MADV_HUGEPAGE)
    (void)madvise(p + before, size, MADV_HUGEPAGE);
#endif
    header *h = (header *)(p + before);
    h->mapped = size;
    return h;
}

enum { LARGE = 4 << 20 };

static int64_t cpu_footprint(int64_t bytes) {
    const int64_t page = 2 << 20, size = bytes + (int64_t)sizeof(header);
    return bytes < LARGE ? size : (size + page - 1) / page * page;
}

static void *aligned_zeros(int64_t bytes) {
    if (bytes < 0 || bytes > INT64_MAX / 2) return NULL;
    size_t size = ((size_t)bytes + 63) / 64 * 64 + sizeof(header);
    header *h = bytes < LARGE ? aligned_alloc(64, size) : map_large(size);
    if (h && bytes < LARGE) memset(h, 0, size);
    return h ? h + 1 : NULL;
}

static void aligned_free(void *p) {
    header *h = p ? (header *)p - 1 : NULL;
    if (h && h->mapped) munmap(h, h->mapped);
    else free(h);
}

static void *cpu_alloc(gr_device *d, int64_t bytes) {
    (void)d;
    return aligned_zeros(bytes);
}

static void cpu_free(gr_device *d, void *p) {
    (void)d;
    aligned_free(p);
}

/* Intel's CPUs have dot products of bfloat16 too, but run them at half the rate of float32. */
static bool worth_it(const char *level) {
#if defined(__x86_64__)
    return strcmp(level, "avx512bf16") != 0 || __builtin_cpu_is("amd");
#else
    (void)level;
    return true;
#endif
}

static bool choose_level(gr_device *d, const char **why) {
    const char *wanted = getenv("GRAFT_CPU");
    for (size_t i = 0; i < sizeof level_names / sizeof *level_names; i++) {
        const char *name = level_names[i] + strlen("cpu-");
        if (wanted && strcmp(wanted, name) != 0) continue;
        d->ops = wanted || worth_it(name) ? gr_cpu_ops(name) : NULL;
        d->level = level_names[i];
        d->fast_bf16 = strcmp(name, "amx") == 0 || strcmp(name, "avx512bf16") == 0;
        if (d->ops) return true;
        *why = "this CPU lacks the instruction set that GRAFT_CPU names; unset it, or use GRAFT_CPU=generic";
        if (wanted) return false;
    }
    *why = "GRAFT_CPU must be generic, avx2, avx512, avx512bf16 or amx";
    return false;
}

gr_device *gr_cpu_device_new(int n_threads, const char **why) {
    gr_device *d = calloc(1, sizeof *d);
    gr_cpu *cpu = calloc(1, sizeof *cpu);
    *why = "out of memory for the CPU device";
    if (!d || !cpu) goto failed;
    d->impl = cpu;
    d->alloc = cpu_alloc, d->free = cpu_free;
    d->footprint = cpu_footprint, d->shared_bytes = GR_CPU_SHARED;
    if (!choose_level(d, why)) goto failed;
    d->threads = gr_threads_new(n_threads);
    *why = "cannot start the threads; ask for fewer (threads: 1)";
    if (!d->threads) goto failed;
    cpu->scratch = aligned_zeros((int64_t)gr_threads_count(d->threads) * GR_CPU_SCRATCH * (int64_t)sizeof(float));
    cpu->shared = aligned_zeros(GR_CPU_SHARED);
    *why = "out of memory for the CPU device";
    if (!cpu->scratch || !cpu->shared) goto failed;
    *why = NULL;
    return d;
failed:
    if (d) gr_threads_free(d->threads);
    if (cpu) aligned_free(cpu->scratch), aligned_free(cpu->shared);
    free(cpu);
    free(d);
    return NULL;
}

void gr_device_free(gr_device *d) {
    if (!d) return;
    gr_cpu *cpu = d->impl;
    gr_threads_free(d->threads);
    aligned_free(cpu->scratch);
    aligned_free(cpu->shared);
    free(cpu);
    free(d);
}

typedef struct range_job {
    int64_t n, grain;
    gr_range_fn *fn;
    const void *args;
} range_job;

static void run_range(void *context, int64_t chunk, int worker) {
    (void)worker;
    const range_job *job = context;
    int64_t begin = chunk * job->grain, end = begin + job->grain;
    job->fn(job->args, begin, end < job->n ? end : job->n);
}

void gr_cpu_for(gr_device *d, int64_t n, int64_t grain, gr_range_fn *fn, const void *args) {
    range_job job = {n, grain, fn, args};
    gr_threads_run(d->threads, (n + grain - 1) / grain, run_range, &job);
}

int64_t gr_cpu_row_grain(int64_t C) {
    int64_t rows = 8192 / (C > 0 ? C : 1);
    return rows > 0 ? rows : 1;
}
