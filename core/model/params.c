#include "core/model/params.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN_FLOATS = 16 }; /* 64 bytes: a vector register, a cache line */

graft_status gr_params_add(gr_params *p, const char *name, int64_t rows, int64_t cols, bool decay, int64_t *index,
                           graft_error *err) {
    int64_t n, end;
    GR_ASSERT(!p->value);
    if (!gr_mul_ok(&n, rows, cols) || !gr_add_ok(&end, p->n_floats, n) || end > INT64_MAX / 64)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %lld x %lld is too large", name, (long long)rows, (long long)cols);
    if (!gr_grow(&p->items, &p->items_capacity, p->n_items + 1, sizeof *p->items)) return gr_fail_memory(err, "parameters");
    char *copy = gr_strdup(name);
    if (!copy) return gr_fail_memory(err, "parameters");
    p->items[p->n_items] =
        (gr_param){.name = copy, .rows = rows, .cols = cols, .offset = p->n_floats, .n = n, .decay = decay, .lr_scale = 1};
    *index = p->n_items++;
    p->n_parameters += n;
    p->n_floats = (end + ALIGN_FLOATS - 1) / ALIGN_FLOATS * ALIGN_FLOATS;
    return GRAFT_OK;
}

graft_status gr_params_allocate(gr_params *p, gr_device *device, bool training, graft_error *err) {
    int64_t bytes = p->n_floats * (int64_t)sizeof(float);
    float **buffers[] = {&p->value, &p->grad, &p->m, &p->v};
    p->device = device;
    p->begin = 0, p->end = p->n_floats;
    for (int i = 0; i < (training ? GR_LEN(buffers) : 1); i++) {
        *buffers[i] = device->alloc(device, bytes);
        if (!*buffers[i]) return gr_fail_memory(err, "trained parameters and optimizer states");
        device->zero(device, *buffers[i], bytes);
    }
    return GRAFT_OK;
}

int64_t gr_params_find(const gr_params *p, const char *name) {
    for (int64_t i = 0; i < p->n_items; i++)
        if (strcmp(p->items[i].name, name) == 0) return i;
    return -1;
}

int64_t gr_params_largest(const gr_params *p) {
    int64_t largest = 0;
    for (int64_t i = 0; i < p->n_items; i++) largest = GR_MAX(largest, p->items[i].n);
    return largest;
}

static float *place_of(const gr_params *p, gr_params_buffer which, int64_t item) {
    float *const buffers[] = {p->value, p->grad, p->m, p->v};
    GR_ASSERT(buffers[which]);
    return buffers[which] + p->items[item].offset;
}

void gr_params_read_part(const gr_params *p, gr_params_buffer which, int64_t item, int64_t first, int64_t n, float *dst) {
    GR_ASSERT(first >= 0 && n >= 0 && first + n <= p->items[item].n);
    p->device->download(p->device, dst, place_of(p, which, item) + first, n * (int64_t)sizeof *dst, 0);
}

void gr_params_read(const gr_params *p, gr_params_buffer which, int64_t item, float *dst) {
    gr_params_read_part(p, which, item, 0, p->items[item].n, dst);
}

void gr_params_write(gr_params *p, gr_params_buffer which, int64_t item, const float *src) {
    p->device->upload(p->device, place_of(p, which, item), src, p->items[item].n * (int64_t)sizeof *src);
}

void gr_params_release(gr_params *p) {
    for (int64_t i = 0; i < p->n_items; i++) free(p->items[i].name);
    free(p->items);
    float *buffers[] = {p->value, p->grad, p->m, p->v};
    for (int i = 0; i < GR_LEN(buffers); i++)
        if (buffers[i]) p->device->free(p->device, buffers[i]);
    *p = (gr_params){0};
}
