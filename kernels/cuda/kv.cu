/* kv.cu - KV caches: rows of keys and values side by side, all layers in one piece of memory; no other form of them. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/rows.cuh"

/* What stands behind gr_kv.form of every layer. */
struct kv_cache {
    int64_t n_layers;
};

/* Bytes of one layer, whole rows; false when those of all overflow. */
static bool layer_bytes(gr_device *d, const gr_kv_shape *s, int64_t *bytes) {
    const int64_t row = 2 * s->K * s->D * (d->act_type(d, s->compute) == GR_DTYPE_F32 ? 4 : 2);
    int64_t all;
    return !__builtin_mul_overflow(row, s->n_slots, bytes) && !__builtin_mul_overflow(*bytes, s->max_len, bytes) &&
           !__builtin_mul_overflow(*bytes, s->n_layers, &all);
}

int64_t gr_cuda_kv_bytes(gr_device *d, const gr_kv_shape *s) {
    int64_t bytes;
    return layer_bytes(d, s, &bytes) ? d->footprint(d, bytes * s->n_layers) : INT64_MAX / 2;
}

bool gr_cuda_kv_open(gr_device *d, gr_kv *layers, const gr_kv_shape *s) {
    int64_t bytes;
    memset(layers, 0, (size_t)s->n_layers * sizeof *layers);
    if (!layer_bytes(d, s, &bytes)) return false;
    kv_cache *cache = (kv_cache *)malloc(sizeof *cache);
    char *rows = cache ? (char *)d->alloc(d, bytes * s->n_layers) : NULL;
    if (!rows) {
        free(cache);
        return false;
    }
    cache->n_layers = s->n_layers;
    for (int64_t i = 0; i < s->n_layers; i++)
        layers[i] = gr_kv{{rows + i * bytes, 2 * s->K * s->D, d->act_type(d, s->compute)}, cache};
    return true;
}

void gr_cuda_kv_close(gr_device *d, gr_kv *layers) {
    kv_cache *cache = layers ? (kv_cache *)layers[0].form : NULL;
    if (!cache) return;
    d->free(d, layers[0].rows.data);
    memset(layers, 0, (size_t)cache->n_layers * sizeof *layers);
    free(cache);
}

/* Attention reads the rows themselves: nothing else is to be kept in step. */
void gr_kv_append_cuda(gr_device *d, const gr_kv *kv, gr_rows x, const int32_t *rows, int64_t n) {
    gr_scatter_rows_cuda(d, kv->rows, x, rows, n, kv->rows.ld);
}
