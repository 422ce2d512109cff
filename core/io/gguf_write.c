#include "core/io/gguf.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/io/tensor_stream.h"

static void add_u32(gr_str *s, uint32_t v) { gr_str_add(s, (const char *)&v, sizeof v); }

static void add_u64(gr_str *s, uint64_t v) { gr_str_add(s, (const char *)&v, sizeof v); }

static void add_string(gr_str *s, const char *bytes, int64_t len) {
    add_u64(s, (uint64_t)len);
    gr_str_add(s, bytes, len);
}

/* ---- metadata ---- */

static void add_key(gr_gguf_builder *b, const char *key, gr_gguf_type type) {
    add_string(&b->meta, key, (int64_t)strlen(key));
    add_u32(&b->meta, type);
    b->n_keys++;
}

static void add_array(gr_gguf_builder *b, const char *key, gr_gguf_type element, int64_t n) {
    add_key(b, key, GR_GGUF_ARRAY);
    add_u32(&b->meta, element);
    add_u64(&b->meta, (uint64_t)n);
}

void gr_gguf_put_string(gr_gguf_builder *b, const char *key, const char *value) {
    add_key(b, key, GR_GGUF_STRING);
    add_string(&b->meta, value, (int64_t)strlen(value));
}

void gr_gguf_put_u32(gr_gguf_builder *b, const char *key, uint32_t value) {
    add_key(b, key, GR_GGUF_U32);
    add_u32(&b->meta, value);
}

void gr_gguf_put_f32(gr_gguf_builder *b, const char *key, float value) {
    add_key(b, key, GR_GGUF_F32);
    gr_str_add(&b->meta, (const char *)&value, sizeof value);
}

void gr_gguf_put_bool(gr_gguf_builder *b, const char *key, bool value) {
    add_key(b, key, GR_GGUF_BOOL);
    gr_str_putc(&b->meta, value ? 1 : 0);
}

void gr_gguf_put_strings(gr_gguf_builder *b, const char *key, const char *const *values, const int64_t *lens, int64_t n) {
    add_array(b, key, GR_GGUF_STRING, n);
    for (int64_t i = 0; i < n; i++) add_string(&b->meta, values[i], lens ? lens[i] : (int64_t)strlen(values[i]));
}

void gr_gguf_put_f32s(gr_gguf_builder *b, const char *key, const float *values, int64_t n) {
    add_array(b, key, GR_GGUF_F32, n);
    gr_str_add(&b->meta, (const char *)values, n * (int64_t)sizeof *values);
}

void gr_gguf_put_i32s(gr_gguf_builder *b, const char *key, const int32_t *values, int64_t n) {
    add_array(b, key, GR_GGUF_I32, n);
    gr_str_add(&b->meta, (const char *)values, n * (int64_t)sizeof *values);
}

void gr_gguf_put_u8s(gr_gguf_builder *b, const char *key, const uint8_t *values, int64_t n) {
    add_array(b, key, GR_GGUF_U8, n);
    gr_str_add(&b->meta, (const char *)values, n);
}

void gr_gguf_append(gr_gguf_builder *b, const gr_gguf_builder *more) {
    gr_str_add(&b->meta, more->meta.data, more->meta.len);
    if (more->meta.failed) b->meta.failed = true;
    b->n_keys += more->n_keys;
}

void gr_gguf_builder_release(gr_gguf_builder *b) {
    gr_str_release(&b->meta);
    b->n_keys = 0;
}

/* ---- the file ---- */

/* Everything before the data section, padding included. */
static graft_status make_header(gr_str *out, const gr_gguf_builder *b, const gr_tensor *tensors, int64_t n, graft_error *err) {
    int64_t offset = 0;
    gr_str_puts(out, "GGUF");
    add_u32(out, 3);
    add_u64(out, (uint64_t)n);
    add_u64(out, (uint64_t)b->n_keys);
    gr_str_add(out, b->meta.data, b->meta.len);
    for (int64_t i = 0; i < n; i++) {
        const gr_tensor *t = &tensors[i];
        add_string(out, t->name, (int64_t)strlen(t->name));
        add_u32(out, (uint32_t)t->n_dims);
        for (int d = t->n_dims - 1; d >= 0; d--) add_u64(out, (uint64_t)t->shape[d]);
        add_u32(out, (uint32_t)gr_dtype_get(t->dtype)->gguf_type);
        add_u64(out, (uint64_t)offset);
        if (!gr_add_ok(&offset, offset, t->n_bytes) || !gr_add_ok(&offset, offset, GR_GGUF_ALIGNMENT - 1))
            return gr_fail(err, GRAFT_FAILED, "writing %s: tensor %s is too large", t->file, t->name);
        offset = offset / GR_GGUF_ALIGNMENT * GR_GGUF_ALIGNMENT;
    }
    while (!out->failed && out->len % GR_GGUF_ALIGNMENT != 0) gr_str_putc(out, 0);
    return out->failed || b->meta.failed ? gr_fail_memory(err, "the GGUF header") : GRAFT_OK;
}

static graft_status read_back(const char *file, const gr_str *header, const gr_tensor *tensors, const uint64_t *hashes, int64_t n,
                              graft_error *err) {
    gr_gguf *back = NULL;
    gr_map map = {0};
    graft_status st = gr_gguf_open(&back, file, err);
    if (st != GRAFT_OK) return gr_fail_context(err, GRAFT_FAILED, "reading back what was written");
    GR_TRY(gr_map_open(&map, file, err));
    if (map.size < header->len || memcmp(map.data, header->data, (size_t)header->len) != 0)
        GR_TRY(gr_fail(err, GRAFT_FAILED, "writing %s: the header reads back otherwise; is the disk sound?", file));
    for (int64_t i = 0; i < n; i++) GR_TRY(gr_tensor_compare(&tensors[i], hashes[i], gr_gguf_find(back, tensors[i].name), err));
done:
    gr_map_close(&map);
    gr_gguf_close(back);
    return st;
}

graft_status gr_gguf_preview(gr_gguf **out, const gr_gguf_builder *b, graft_error *err) {
    gr_str header = {0};
    char path[32];
    int fd = memfd_create("graft-gguf", MFD_CLOEXEC);
    graft_status st = GRAFT_OK;
    FILE *f = fd < 0 ? NULL : fdopen(fd, "wb");
    if (!f) {
        if (fd >= 0) close(fd);
        return gr_fail_errno(err, GRAFT_FAILED, "a file in memory");
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    GR_TRY(make_header(&header, b, NULL, 0, err));
    if (fwrite(header.data, 1, (size_t)header.len, f) != (size_t)header.len || fflush(f) != 0)
        GR_TRY(gr_fail_errno(err, GRAFT_FAILED, "a file in memory"));
    GR_TRY(gr_gguf_open(out, path, err));
done:
    fclose(f);
    gr_str_release(&header);
    return st;
}

graft_status gr_gguf_write(const char *path, const gr_gguf_builder *b, const gr_tensor *tensors, int64_t n,
                           gr_tensor_producer *produce, void *context, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_tensor *list = NULL;
    gr_str header = {0};
    gr_writer w = {0};
    uint64_t *hashes = gr_calloc(n, sizeof *hashes);
    if (!hashes) GR_TRY(gr_fail_memory(err, path));
    GR_TRY(gr_tensors_prepare(&list, tensors, n, path, err));
    GR_TRY(make_header(&header, b, list, n, err));
    GR_TRY(gr_writer_open(&w, path, err));
    fwrite(header.data, 1, (size_t)header.len, w.stream);
    GR_TRY(gr_tensors_stream(w.stream, list, n, GR_GGUF_ALIGNMENT, produce, context, hashes, err));
    if (w.tmp_path && fflush(w.stream) == 0 && !ferror(w.stream)) GR_TRY(read_back(w.tmp_path, &header, list, hashes, n, err));
    GR_TRY(gr_writer_commit(&w, err));
done:
    gr_writer_abort(&w);
    gr_str_release(&header);
    free(list);
    free(hashes);
    return st;
}
