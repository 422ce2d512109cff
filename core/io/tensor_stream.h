/* tensor_stream.h - what the tensor formats share: sizes from shapes, streaming tensors to a file, comparing
 * what was written with what reads back. Internal to core/io. */
#ifndef GR_TENSOR_STREAM_H
#define GR_TENSOR_STREAM_H

#include "core/io/safetensors.h"

enum { GR_GGUF_ALIGNMENT = 32 };

/* Sets n_elements and n_bytes from dtype and shape; BAD_INPUT naming t->file on overflow, a negative size or
 * a row that is no whole number of blocks. */
graft_status gr_tensor_measure(gr_tensor *t, graft_error *err);

/* Owned copy of tensors[0..n) with sizes measured, file set to path (borrowed) and checked for writing. */
graft_status gr_tensors_prepare(gr_tensor **out, const gr_tensor *tensors, int64_t n, const char *path, graft_error *err);

/* Produces and writes each tensor, zero-padded to a multiple of alignment; hashes[i] is its XXH3. A failed
 * write sticks to the stream. */
graft_status gr_tensors_stream(FILE *stream, const gr_tensor *tensors, int64_t n, int64_t alignment, gr_tensor_producer *produce,
                               void *context, uint64_t *hashes, graft_error *err);

/* FAILED unless back (NULL: it is not there) has the type, the shape and the bytes that were written. */
graft_status gr_tensor_compare(const gr_tensor *written, uint64_t hash, const gr_tensor *back, graft_error *err);

#endif
