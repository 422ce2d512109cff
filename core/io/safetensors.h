/* safetensors.h - the safetensors format, single file and sharded index, read by mmap and written atomically.
 * Every length in the file is hostile: nothing is dereferenced before it was checked. */
#ifndef GR_SAFETENSORS_H
#define GR_SAFETENSORS_H

#include "core/base/file.h"
#include "kernels/dtype.h"

enum { GR_MAX_DIMS = 4 };

/* A named tensor of any file: borrowed view, lives as long as its file. */
typedef struct gr_tensor {
    const char *name;
    gr_dtype dtype;
    int n_dims;
    int64_t shape[GR_MAX_DIMS]; /* row-major, outermost first (GGUF's reversed order is turned round on reading) */
    int64_t n_elements, n_bytes;
    const void *data;
    const char *file; /* the path it came from, for messages */
} gr_tensor;

/* Tensors of one or several safetensors files, sorted by name. Tensors of types that graft does not compute with (I64,
 * U8, F8 ...: buffers such as position ids) are left out of the list; gr_safetensors_skipped tells. */
typedef struct gr_safetensors gr_safetensors;

/* path: a .safetensors file, a *.safetensors.index.json, or a folder holding model.safetensors (which counts where it has an index
 * as well, as in transformers: a warning says so), model.safetensors.index.json or adapter_model.safetensors. */
graft_status gr_safetensors_open(gr_safetensors **out, const char *path, graft_error *err);
void gr_safetensors_close(gr_safetensors *st);
int64_t gr_safetensors_count(const gr_safetensors *st);
const gr_tensor *gr_safetensors_get(const gr_safetensors *st, int64_t i);
const gr_tensor *gr_safetensors_find(const gr_safetensors *st, const char *name); /* NULL when absent */
/* The type ("I64") of a tensor left out because of it, for the message of a caller that needs it; else NULL. */
const char *gr_safetensors_skipped(const gr_safetensors *st, const char *name);
/* The name of tensor i of those left out, NULL beyond the last. */
const char *gr_safetensors_skipped_at(const gr_safetensors *st, int64_t i);
/* Tensor i of those left out, NULL beyond the last: its data as it lies in the file, perhaps unaligned, its shape (n_dims -1: more
 * dimensions than GR_MAX_DIMS) and the name of its type; dtype says nothing. */
const gr_tensor *gr_safetensors_odd(const gr_safetensors *st, int64_t i, const char **type);
/* Value of a key of "__metadata__" of the first file, NULL when absent. */
const char *gr_safetensors_metadata(const gr_safetensors *st, const char *key);

/* Writing: tensors are produced one at a time, so a model is never whole in memory.
 * produce fills dst (n_bytes of tensor i, as described) and returns a status. */
typedef graft_status gr_tensor_producer(void *context, int64_t i, void *dst, graft_error *err);
/* Write n tensors (name, dtype, shape used; offsets computed) to path; metadata {"format": "pt"}. Atomic; read back and checked. */
graft_status gr_safetensors_write(const char *path, const gr_tensor *tensors, int64_t n, gr_tensor_producer *produce, void *context,
                                  graft_error *err);

#endif
