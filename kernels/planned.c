/* planned.c - cards for `graft plan` alone: what they have, and how the CUDA backend would lay things out on them. They compute
 * nothing and hold no weights. */
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/cuda/shape.h"

typedef struct card {
    const char *name;
    int64_t mib;                        /* of memory, as the driver tells it */
    double flops, flops_f32, bandwidth; /* of dense bfloat16 products, of float32 ones without TF32; bytes; a second, by NVIDIA's
                                           data sheets */
    double link;                        /* bytes a second to other cards by NVLink, one way */
    bool fp8;
} card;

static const card cards[] = {
    {"a100-40gb", 40354, 312e12, 19.5e12, 1.555e12, 300e9, false},
    {"a100-80gb", 81050, 312e12, 19.5e12, 2.039e12, 300e9, false},
    {"h100", 81079, 989e12, 67e12, 3.35e12, 450e9, true},
    {"h200", 143156, 989e12, 67e12, 4.8e12, 450e9, true},
};

typedef struct planned {
    gr_device device; /* first */
    const card *card;
} planned;

static bool planned_memory(gr_device *d, int64_t *total, int64_t *available) {
    *total = *available = ((planned *)d)->card->mib << 20;
    return true;
}

static int64_t planned_footprint(gr_device *d, int64_t bytes) {
    (void)d;
    return gr_cuda_pages(bytes);
}

static gr_dtype planned_act_type(gr_device *d, gr_dtype compute) {
    (void)d;
    return compute;
}

static int64_t planned_row_stride(gr_device *d, int64_t width, gr_dtype type) {
    (void)d, (void)type;
    return gr_cuda_stride(width);
}

static int64_t planned_group_bytes(gr_device *d, const gr_group *g) {
    (void)d;
    return gr_cuda_resident(g) ? gr_cuda_pages(gr_cuda_sizes_of(g).bytes) : 0;
}

static int64_t planned_scratch_bytes(gr_device *d, const gr_group *g, int64_t rows) {
    (void)d;
    return gr_cuda_scratch_of(g, rows);
}

static int64_t planned_kv_bytes(gr_device *d, const gr_kv_shape *s) {
    int64_t row = 2 * s->K * s->D * (s->compute == GR_DTYPE_F32 ? 4 : 2);
    (void)d;
    if (__builtin_mul_overflow(row, s->n_slots, &row) || __builtin_mul_overflow(row, s->max_len, &row) ||
        __builtin_mul_overflow(row, s->n_layers, &row))
        return INT64_MAX / 2;
    return gr_cuda_pages(row);
}

/* A plan attaches rows of tokens, whose ids are a device's: small, and in the host's memory here. */
static void *planned_alloc(gr_device *d, int64_t bytes) {
    (void)d;
    return bytes < 0 ? NULL : malloc(bytes > 0 ? (size_t)bytes : 1);
}

static void planned_free(gr_device *d, void *p) {
    (void)d;
    free(p);
}

static void planned_upload(gr_device *d, void *to, const void *host, int64_t bytes) {
    (void)d;
    if (bytes > 0) memcpy(to, host, (size_t)bytes);
}

static void release_nothing(gr_device *d, gr_group *g) { (void)d, (void)g; }
static void unmap_nothing(gr_device *d, const void *p) { (void)d, (void)p; }
static void planned_close(gr_device *d) { free(d); }

bool gr_planned_is_name(const char *name) {
    for (size_t i = 0; i < sizeof cards / sizeof *cards; i++)
        if (strcmp(cards[i].name, name) == 0) return true;
    return false;
}

gr_device *gr_planned_device_new(const char *name, const char **why) {
    planned *p = calloc(1, sizeof *p);
    *why = "out of memory";
    for (size_t i = 0; p && i < sizeof cards / sizeof *cards; i++)
        if (strcmp(cards[i].name, name) == 0) p->card = &cards[i];
    if (!p) return NULL;
    p->device = (gr_device){.level = p->card->name,
                            .fast_bf16 = true,
                            .fp8 = p->card->fp8,
                            .queues = true,
                            .shared_bytes = GR_CUDA_WORKSPACE,
                            .flops = p->card->flops,
                            .flops_f32 = p->card->flops_f32,
                            .bandwidth = p->card->bandwidth,
                            .link = p->card->link,
                            .alloc = planned_alloc,
                            .free = planned_free,
                            .upload = planned_upload,
                            .unmap = unmap_nothing,
                            .release = release_nothing,
                            .memory = planned_memory,
                            .footprint = planned_footprint,
                            .act_type = planned_act_type,
                            .row_stride = planned_row_stride,
                            .group_bytes = planned_group_bytes,
                            .scratch_bytes = planned_scratch_bytes,
                            .kv_bytes = planned_kv_bytes,
                            .close = planned_close};
    return &p->device;
}
