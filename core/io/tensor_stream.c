#include "core/io/tensor_stream.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

graft_status gr_tensor_measure(gr_tensor *t, graft_error *err) {
    const gr_dtype_info *dtype = gr_dtype_get(t->dtype);
    int64_t n = 1;
    for (int d = 0; d < t->n_dims; d++)
        if (!gr_mul_ok(&n, n, t->shape[d]))
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s: its shape is negative or overflows", t->file, t->name);
    int64_t row = t->n_dims > 0 ? t->shape[t->n_dims - 1] : 1;
    int64_t bytes = row % dtype->block == 0 ? gr_dtype_bytes(t->dtype, n) : -1;
    if (bytes < 0)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s: rows of %lld elements do not make whole %s blocks of %lld", t->file,
                       t->name, (long long)row, dtype->name, (long long)dtype->block);
    t->n_elements = n;
    t->n_bytes = bytes;
    return GRAFT_OK;
}

graft_status gr_tensors_prepare(gr_tensor **out, const gr_tensor *tensors, int64_t n, const char *path, graft_error *err) {
    gr_tensor *copy = gr_calloc(n, sizeof *copy);
    if (!copy) return gr_fail_memory(err, path);
    if (n > 0) memcpy(copy, tensors, (size_t)n * sizeof *copy);
    for (int64_t i = 0; i < n; i++) {
        GR_ASSERT(copy[i].n_dims >= 0 && copy[i].n_dims <= GR_MAX_DIMS);
        copy[i].file = path;
        graft_status st = gr_tensor_measure(&copy[i], err);
        if (st != GRAFT_OK) {
            free(copy);
            return st;
        }
    }
    *out = copy;
    return GRAFT_OK;
}

graft_status gr_tensors_stream(FILE *stream, const gr_tensor *tensors, int64_t n, int64_t alignment, gr_tensor_producer *produce,
                               void *context, uint64_t *hashes, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t largest = 0;
    for (int64_t i = 0; i < n; i++) largest = GR_MAX(largest, tensors[i].n_bytes);
    char *buffer = gr_alloc_aligned(largest);
    if (!buffer) GR_TRY(gr_fail_memory(err, "a tensor to write"));
    for (int64_t i = 0; i < n && !ferror(stream); i++) {
        int64_t bytes = tensors[i].n_bytes, padding = (alignment - bytes % alignment) % alignment;
        GR_TRY(produce(context, i, buffer, err));
        hashes[i] = XXH3_64bits(buffer, (size_t)bytes);
        fwrite(buffer, 1, (size_t)bytes, stream);
        for (int64_t j = 0; j < padding; j++) putc(0, stream);
    }
done:
    free(buffer);
    return st;
}

graft_status gr_tensor_compare(const gr_tensor *written, uint64_t hash, const gr_tensor *back, graft_error *err) {
    const char *what = NULL;
    if (!back) what = "is missing";
    else if (back->dtype != written->dtype || back->n_dims != written->n_dims ||
             memcmp(back->shape, written->shape, (size_t)written->n_dims * sizeof written->shape[0]) != 0)
        what = "has another type or shape";
    else if (XXH3_64bits(back->data, (size_t)back->n_bytes) != hash) what = "holds other bytes";
    if (!what) return GRAFT_OK;
    return gr_fail(err, GRAFT_FAILED, "writing %s: read back, tensor %s %s; is the disk sound?", written->file, written->name,
                   what);
}
