/* params_copy.h - what tests see of parameters: copies, for the buffers are a device's memory. */
#ifndef GR_TESTS_PARAMS_COPY_H
#define GR_TESTS_PARAMS_COPY_H

#include <stdlib.h>

#include "core/model/params.h"

/* A whole buffer, items where they lie in it, zeros between. Owned by the caller. */
static inline float *read_all(const gr_params *p, gr_params_buffer which) {
    float *copy = calloc((size_t)p->n_floats, sizeof *copy);
    for (int64_t i = 0; copy && i < p->n_items; i++) gr_params_read(p, which, i, copy + p->items[i].offset);
    return copy;
}

static inline void write_all(gr_params *p, gr_params_buffer which, const float *from) {
    for (int64_t i = 0; i < p->n_items; i++) gr_params_write(p, which, i, from + p->items[i].offset);
}

#endif
