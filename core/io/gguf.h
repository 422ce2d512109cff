/* gguf.h - GGUF v2/v3: reader (mmap) and writer. Format: ggml docs/gguf.md. Every length is hostile. */
#ifndef GR_GGUF_H
#define GR_GGUF_H

#include "core/io/safetensors.h" /* gr_tensor, gr_tensor_producer */

typedef enum gr_gguf_type { /* value types, numbers as in the file */
                            GR_GGUF_U8 = 0,
                            GR_GGUF_I8,
                            GR_GGUF_U16,
                            GR_GGUF_I16,
                            GR_GGUF_U32,
                            GR_GGUF_I32,
                            GR_GGUF_F32,
                            GR_GGUF_BOOL,
                            GR_GGUF_STRING,
                            GR_GGUF_ARRAY,
                            GR_GGUF_U64,
                            GR_GGUF_I64,
                            GR_GGUF_F64
} gr_gguf_type;

typedef struct gr_gguf gr_gguf;

graft_status gr_gguf_open(gr_gguf **out, const char *path, graft_error *err);
void gr_gguf_close(gr_gguf *g);
const char *gr_gguf_path(const gr_gguf *g);

int64_t gr_gguf_n_tensors(const gr_gguf *g);
const gr_tensor *gr_gguf_tensor(const gr_gguf *g, int64_t i);
const gr_tensor *gr_gguf_find(const gr_gguf *g, const char *name); /* NULL when absent */

/* Metadata. get_*: BAD_INPUT naming file and key when missing or of another type (any integer type fits get_int, any
 * float or integer get_float). The *_or forms take a default for a missing key, still failing on a wrong type. */
int64_t gr_gguf_n_keys(const gr_gguf *g);
const char *gr_gguf_key(const gr_gguf *g, int64_t i, gr_gguf_type *type);
bool gr_gguf_has(const gr_gguf *g, const char *key);
gr_gguf_type gr_gguf_type_of(const gr_gguf *g, const char *key); /* of a key that is there */
graft_status gr_gguf_get_int(const gr_gguf *g, const char *key, int64_t *out, graft_error *err);
graft_status gr_gguf_get_float(const gr_gguf *g, const char *key, double *out, graft_error *err);
graft_status gr_gguf_get_bool(const gr_gguf *g, const char *key, bool *out, graft_error *err);
/* A string is not NUL-terminated in the file: *out is an arena-owned copy living as long as g; *len its bytes (may be NULL). */
graft_status gr_gguf_get_string(const gr_gguf *g, const char *key, const char **out, int64_t *len, graft_error *err);
graft_status gr_gguf_int_or(const gr_gguf *g, const char *key, int64_t fallback, int64_t *out, graft_error *err);
graft_status gr_gguf_float_or(const gr_gguf *g, const char *key, double fallback, double *out, graft_error *err);
graft_status gr_gguf_bool_or(const gr_gguf *g, const char *key, bool fallback, bool *out, graft_error *err);
/* Arrays: length and element type; string elements borrowed from the map (not NUL-terminated); flags are integers, 0 or 1. */
graft_status gr_gguf_get_array(const gr_gguf *g, const char *key, gr_gguf_type *element, int64_t *n, graft_error *err);
graft_status gr_gguf_array_string(const gr_gguf *g, const char *key, int64_t i, const char **s, int64_t *len, graft_error *err);
graft_status gr_gguf_array_int(const gr_gguf *g, const char *key, int64_t i, int64_t *out, graft_error *err);
graft_status gr_gguf_array_float(const gr_gguf *g, const char *key, int64_t i, double *out, graft_error *err);

/* Writing: collect metadata, then write with a tensor list. Zero-initialise; a failed allocation sticks until write. */
typedef struct gr_gguf_builder {
    gr_str meta;
    int64_t n_keys;
} gr_gguf_builder;

void gr_gguf_put_string(gr_gguf_builder *b, const char *key, const char *value);
void gr_gguf_put_u32(gr_gguf_builder *b, const char *key, uint32_t value);
void gr_gguf_put_f32(gr_gguf_builder *b, const char *key, float value);
void gr_gguf_put_bool(gr_gguf_builder *b, const char *key, bool value);
/* lens may be NULL: the values are NUL-terminated. */
void gr_gguf_put_strings(gr_gguf_builder *b, const char *key, const char *const *values, const int64_t *lens, int64_t n);
void gr_gguf_put_f32s(gr_gguf_builder *b, const char *key, const float *values, int64_t n);
void gr_gguf_put_i32s(gr_gguf_builder *b, const char *key, const int32_t *values, int64_t n);
void gr_gguf_put_u8s(gr_gguf_builder *b, const char *key, const uint8_t *values, int64_t n);
void gr_gguf_append(gr_gguf_builder *b, const gr_gguf_builder *more); /* no key of more is in b */
/* Key and value of a file as they stand there; nothing when it lacks the key. */
void gr_gguf_put_copy(gr_gguf_builder *b, const gr_gguf *g, const char *key);
void gr_gguf_builder_release(gr_gguf_builder *b);
/* What a reader will find of the keys, before any file is written. */
graft_status gr_gguf_preview(gr_gguf **out, const gr_gguf_builder *b, graft_error *err);
/* Version 3, alignment 32; tensors as for gr_safetensors_write (shape outermost first). Atomic; read back and checked. */
graft_status gr_gguf_write(const char *path, const gr_gguf_builder *b, const gr_tensor *tensors, int64_t n,
                           gr_tensor_producer *produce, void *context, graft_error *err);

#endif
