/* device.c - the CPU device: its level, memory, scratch, and the forms of groups and KV caches. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/backend.h"
#include "kernels/cpu/impl.h"

/* The operations that the vectorised levels bring; the others are copies and stay with the reference. */
#define VECTOR_OPS(level)                                                                                                          \
    .rmsnorm_forward = gr_rmsnorm_forward_##level, .rmsnorm_backward = gr_rmsnorm_backward_##level,                                \
    .linear_forward = gr_linear_forward_##level, .linear_backward = gr_linear_backward_##level, .rope = gr_rope_##level,           \
    .attention_forward = gr_attention_forward_##level, .attention_backward = gr_attention_backward_##level,                        \
    .glu_forward = gr_glu_forward_##level, .glu_backward = gr_glu_backward_##level, .cross_entropy = gr_cross_entropy_##level,     \
    .softcap = gr_softcap_##level, .dropout = gr_dropout_##level, .add = gr_add_##level, .sum_parts = gr_sum_parts_##level,        \
    .sum_squares = gr_sum_squares_##level, .adamw = gr_adamw_##level, .adamw_8bit = gr_adamw_8bit_##level,                         \
    .adafactor = gr_adafactor_##level
/* Those that multiply bfloat16 where the level can. */
#define MATRIX_OPS(level)                                                                                                          \
    .linear_forward = gr_linear_forward_##level, .linear_backward = gr_linear_backward_##level,                                    \
    .attention_forward = gr_attention_forward_##level, .attention_backward = gr_attention_backward_##level

#define GR_OP(name, params, args) .name = gr_##name##_generic,
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

static int64_t cpu_footprint(gr_device *d, int64_t bytes) {
    (void)d;
    const int64_t page = 2 << 20, size = bytes + (int64_t)sizeof(header);
    return bytes < LARGE ? size : (size + page - 1) / page * page;
}

static void *cpu_alloc(gr_device *d, int64_t bytes) {
    (void)d;
    if (bytes < 0 || bytes > INT64_MAX / 2) return NULL;
    size_t size = ((size_t)bytes + 63) / 64 * 64 + sizeof(header);
    header *h = bytes < LARGE ? aligned_alloc(64, size) : map_large(size);
    if (h && bytes < LARGE) h->mapped = 0;
    return h ? h + 1 : NULL;
}

static void cpu_free(gr_device *d, void *p) {
    (void)d;
    header *h = p ? (header *)p - 1 : NULL;
    if (h && h->mapped) munmap(h, h->mapped);
    else free(h);
}

/* The device's memory is the host's, and work is done when a call returns. */
static void cpu_zero(gr_device *d, void *p, int64_t bytes) {
    (void)d;
    if (bytes > 0) memset(p, 0, (size_t)bytes);
}

static void cpu_copy(gr_device *d, void *to, const void *from, int64_t bytes) {
    (void)d;
    if (bytes > 0) memcpy(to, from, (size_t)bytes);
}

static void cpu_download(gr_device *d, void *host, const void *from, int64_t bytes, gr_mark after) {
    (void)after;
    cpu_copy(d, host, from, bytes);
}

static gr_mark cpu_upload_beside(gr_device *d, void *to, const void *host, int64_t bytes, gr_mark after) {
    (void)after;
    cpu_copy(d, to, host, bytes);
    return 0;
}

static const void *cpu_map(gr_device *d, const void *host, int64_t bytes) {
    (void)d, (void)bytes;
    return host;
}

static void cpu_unmap(gr_device *d, const void *p) { (void)d, (void)p; }

static gr_mark cpu_mark(gr_device *d, gr_queue queue) {
    (void)d, (void)queue;
    return 0;
}

static void cpu_wait(gr_device *d, gr_queue queue, gr_mark mark) { (void)d, (void)queue, (void)mark; }

static const char *cpu_sync(gr_device *d) {
    (void)d;
    return NULL;
}

static bool cpu_memory(gr_device *d, int64_t *total, int64_t *available) {
    (void)d, (void)total, (void)available;
    return false;
}

static gr_dtype cpu_act_type(gr_device *d, gr_dtype compute) {
    (void)d, (void)compute;
    return GR_DTYPE_F32;
}

static int64_t cpu_row_stride(gr_device *d, int64_t width, gr_dtype type) {
    (void)d, (void)type;
    return width;
}

/* ---- groups: int8 forms ---- */

static bool takes_int8(const gr_group *g, const gr_linear *l) {
    return !l->dw && !l->exact &&
           (g->base == GR_BASE_INT8 || (g->base == GR_BASE_INT8_QUANTISED && gr_dtype_get(l->w.dtype)->block > 1));
}

/* Of one member; whole cache lines. */
static int64_t form_bytes(const gr_group *g, const gr_linear *l, bool transposed) {
    if (!takes_int8(g, l) || (transposed && !g->backward)) return 0;
    return (gr_int8_size(&l->w, transposed) + 63) / 64 * 64;
}

static int64_t forms_bytes(const gr_group *g) {
    int64_t sum = 0;
    for (int i = 0; i < g->n; i++) sum += form_bytes(g, g->member[i], false) + form_bytes(g, g->member[i], true);
    return sum;
}

static int64_t cpu_group_bytes(gr_device *d, const gr_group *g) {
    (void)d;
    return forms_bytes(g);
}

/* Forms of a model follow each other in slabs, large enough for large pages: decoding reads all of them for every token. */
struct gr_cpu_slab {
    int64_t bytes, used;
    int n_forms;
    _Alignas(64) char data[];
};

enum { SLAB = 64 << 20 };

static char *slab_take(gr_device *d, gr_cpu_slab **slab, int64_t bytes) {
    gr_cpu *cpu = d->impl;
    if (!cpu->slab || cpu->slab->bytes - cpu->slab->used < bytes) {
        int64_t size = bytes > SLAB ? bytes : SLAB;
        gr_cpu_slab *made = cpu_alloc(d, (int64_t)sizeof *made + size);
        if (!made) return NULL;
        *made = (gr_cpu_slab){.bytes = size};
        cpu->slab = made;
    }
    char *at = cpu->slab->data + cpu->slab->used;
    cpu->slab->used += bytes;
    cpu->slab->n_forms++;
    *slab = cpu->slab;
    return at;
}

static bool cpu_place(gr_device *d, gr_group *g) {
    int64_t bytes = forms_bytes(g);
    g->form = NULL;
    if (bytes == 0) return true;
    gr_cpu_form *form = calloc(1, sizeof *form);
    char *at = form ? slab_take(d, &form->slab, bytes) : NULL;
    if (!at) {
        free(form);
        return false;
    }
    for (int i = 0; i < g->n; i++)
        for (int transposed = 0; transposed < 2; transposed++) {
            int64_t size = form_bytes(g, g->member[i], transposed);
            if (size == 0) continue;
            gr_int8_pack(d, at, &g->member[i]->w, transposed);
            (transposed ? form->backward : form->forward)[i] = at;
            at += size;
        }
    g->form = form;
    return true;
}

/* Nothing is made of what is trained. */
static void cpu_renew(gr_device *d, gr_group *g) { (void)d, (void)g; }

/* The weights are the files' pages, which the system may take back. */
static bool cpu_holds(gr_device *d, const gr_group *g) {
    (void)d, (void)g;
    return false;
}

static void cpu_release(gr_device *d, gr_group *g) {
    gr_cpu *cpu = d->impl;
    gr_cpu_form *form = g->form;
    if (form && --form->slab->n_forms == 0) {
        if (cpu->slab == form->slab) cpu->slab = NULL;
        cpu_free(d, form->slab);
    }
    free(form);
    g->form = NULL;
}

/* ---- KV caches: rows as the device's memory, panels of the CPU's own ---- */

typedef struct kv_cache {
    int64_t n_layers;
    gr_cpu_kv layer[]; /* the first one owns the memory of all */
} kv_cache;

/* Bytes of one layer's rows and panels, numbers of its `packed`; false when that overflows. */
static bool kv_sizes(const gr_kv_shape *s, int64_t *rows, int64_t *panels, int64_t *packed) {
    int64_t blocks = s->max_len / GR_KV_BLOCK + (s->max_len % GR_KV_BLOCK != 0), wide = (s->D + 31) / 32 * 32, all;
    *rows = 2 * s->K * s->D * (int64_t)sizeof(float);
    *panels = 2 * GR_KV_BLOCK * wide * s->K * (int64_t)sizeof(float);
    *packed = s->K * s->n_slots;
    return !__builtin_mul_overflow(*rows, s->n_slots, rows) && !__builtin_mul_overflow(*rows, s->max_len, rows) &&
           !__builtin_mul_overflow(*panels, s->n_slots, panels) && !__builtin_mul_overflow(*panels, blocks, panels) &&
           !__builtin_mul_overflow(*rows, s->n_layers, &all) && !__builtin_mul_overflow(*panels, s->n_layers, &all);
}

static int64_t cpu_kv_bytes(gr_device *d, const gr_kv_shape *s) {
    int64_t rows, panels, packed;
    if (!kv_sizes(s, &rows, &panels, &packed)) return INT64_MAX / 2;
    return d->footprint(d, rows * s->n_layers) + cpu_footprint(d, panels * s->n_layers);
}

static void cpu_kv_close(gr_device *d, gr_kv *layers) {
    if (!layers || !layers[0].form) return;
    kv_cache *cache = (kv_cache *)((char *)layers[0].form - offsetof(kv_cache, layer));
    d->free(d, layers[0].rows.data);
    cpu_free(d, cache->layer[0].panels);
    free(cache->layer[0].packed);
    free(cache->layer[0].from);
    memset(layers, 0, (size_t)cache->n_layers * sizeof *layers);
    free(cache);
}

static bool cpu_kv_open(gr_device *d, gr_kv *layers, const gr_kv_shape *s) {
    int64_t row_bytes, panel_bytes, packed;
    memset(layers, 0, (size_t)s->n_layers * sizeof *layers);
    if (!kv_sizes(s, &row_bytes, &panel_bytes, &packed)) return false;
    kv_cache *cache = calloc(1, sizeof *cache + (size_t)s->n_layers * sizeof cache->layer[0]);
    if (!cache) return false;
    cache->n_layers = s->n_layers;
    gr_cpu_kv *first = cache->layer;
    char *rows = d->alloc(d, row_bytes * s->n_layers);
    first->panels = cpu_alloc(d, panel_bytes * s->n_layers);
    first->packed = calloc((size_t)(packed * s->n_layers), sizeof *first->packed);
    first->from = calloc((size_t)(packed * s->n_layers), sizeof *first->from);
    for (int64_t i = 0; i < s->n_layers; i++) {
        cache->layer[i] = (gr_cpu_kv){.panels = first->panels ? first->panels + i * (panel_bytes / (int64_t)sizeof(float)) : NULL,
                                      .packed = first->packed ? first->packed + i * packed : NULL,
                                      .from = first->from ? first->from + i * packed : NULL,
                                      .max_len = s->max_len,
                                      .blocks = (s->max_len + GR_KV_BLOCK - 1) / GR_KV_BLOCK,
                                      .K = s->K};
        layers[i] = (gr_kv){{rows ? rows + i * row_bytes : NULL, 2 * s->K * s->D, GR_DTYPE_F32}, &cache->layer[i]};
    }
    if (rows && first->panels && first->packed && first->from) return true;
    cpu_kv_close(d, layers);
    return false;
}

/* ---- opening ---- */

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

static void cpu_close(gr_device *d) {
    gr_cpu *cpu = d->impl;
    if (cpu) cpu_free(d, cpu->scratch), cpu_free(d, cpu->shared);
    free(cpu);
    free(d);
}

gr_device *gr_cpu_device_new(gr_threads *threads, const char **why) {
    gr_device *d = calloc(1, sizeof *d);
    *why = "out of memory for the CPU device";
    if (!d) return NULL;
    *d = (gr_device){.in_host = true,
                     .int8 = true,
                     .shared_bytes = GR_CPU_SHARED,
                     .alloc = cpu_alloc,
                     .free = cpu_free,
                     .zero = cpu_zero,
                     .copy = cpu_copy,
                     .upload = cpu_copy,
                     .upload_beside = cpu_upload_beside,
                     .download = cpu_download,
                     .map = cpu_map,
                     .unmap = cpu_unmap,
                     .mark = cpu_mark,
                     .wait = cpu_wait,
                     .sync = cpu_sync,
                     .memory = cpu_memory,
                     .footprint = cpu_footprint,
                     .act_type = cpu_act_type,
                     .row_stride = cpu_row_stride,
                     .group_bytes = cpu_group_bytes,
                     .place = cpu_place,
                     .renew = cpu_renew,
                     .release = cpu_release,
                     .holds = cpu_holds,
                     .kv_bytes = cpu_kv_bytes,
                     .kv_open = cpu_kv_open,
                     .kv_close = cpu_kv_close,
                     .close = cpu_close,
                     .impl = calloc(1, sizeof(gr_cpu))};
    gr_cpu *cpu = d->impl;
    if (!cpu) goto failed;
    cpu->threads = threads;
    cpu->scratch = cpu_alloc(d, (int64_t)gr_threads_count(threads) * GR_CPU_SCRATCH * (int64_t)sizeof(float));
    cpu->shared = cpu_alloc(d, GR_CPU_SHARED);
    if (!cpu->scratch || !cpu->shared || !choose_level(d, why)) goto failed;
    *why = NULL;
    return d;
failed:
    cpu_close(d);
    return NULL;
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
    gr_threads_run(gr_cpu_threads(d), (n + grain - 1) / grain, run_range, &job);
}

int64_t gr_cpu_row_grain(int64_t C) {
    int64_t rows = 8192 / (C > 0 ? C : 1);
    return rows > 0 ? rows : 1;
}
