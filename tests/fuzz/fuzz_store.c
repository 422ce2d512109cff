/* A token cache with right seals and wrong contents: the input is a list of changes to the index and the shards of a whole one, of
 * 10 bytes each: which array, where (of 256 parts), and by what to xor it. Opened, read and gone on with, it may be refused or made
 * again, and nothing that is not there is read. */
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/data/store.h"
#include "core/io/h5.h"
#include "tests/fuzz/fuzz_file.h"

enum { SHARDS = 3, BLOCKS = 40, LENGTH = 500, VOCABULARY = 900, SOURCES = 2, CHANGE = 10 };

static char whole[64], parts[64]; /* folders: a store whose index is changed, and a making whose second shard is */

/* An array of a file, as it was written. */
typedef struct array {
    const char *file, *name;
    gr_h5_type type;
    int n_dims;
    int64_t shape[2], n, bytes;
    void *good;
} array;

/* An attribute likewise. */
typedef struct attribute {
    const char *file, *name;
    int64_t good;
} attribute;

static const char *const files[] = {"index.h5", "shard-000001.h5"};
static array arrays[32];
static attribute attributes[32];
static int n_arrays, n_attributes;

static const char *path_of(const char *folder, const char *file) {
    static char paths[2][128];
    static int next;
    char *path = paths[next++ % 2];
    snprintf(path, sizeof paths[0], "%s/%s", folder, file);
    return path;
}

static graft_status keep(void *context, gr_h5 *h, const char *name, bool is_attribute, graft_error *err) {
    const char *file = context;
    if (is_attribute) {
        attribute *a = &attributes[n_attributes++];
        *a = (attribute){file, gr_strdup(name), 0};
        return gr_h5_get_int(h, name, &a->good, err);
    }
    static const struct {
        gr_h5_type type;
        int64_t bytes;
    } types[] = {{GR_H5_I32, 4}, {GR_H5_I64, 8}, {GR_H5_U8, 1}};
    array *a = &arrays[n_arrays++];
    for (int i = 0; i < GR_LEN(types); i++)
        for (int n_dims = 1; n_dims <= 2; n_dims++) {
            int64_t shape[2] = {0, 1};
            if (gr_h5_shape(h, name, types[i].type, n_dims, shape, NULL) != GRAFT_OK) continue;
            *a = (array){file, gr_strdup(name), types[i].type, n_dims, {shape[0], shape[1]}, shape[0] * shape[1], types[i].bytes,
                         NULL};
            a->good = gr_calloc(a->n, a->bytes);
            return gr_h5_get(h, name, a->type, a->good, a->n, err);
        }
    return GRAFT_FAILED;
}

static void clean(void) {
    gr_remove_all(whole);
    gr_remove_all(parts);
}

/* A store of samples of all lengths, some targets in each, an open block behind each shard; what it holds is kept. */
static void make(void) {
    static int32_t ids[BLOCKS * LENGTH], source[BLOCKS];
    static uint8_t target[BLOCKS * LENGTH];
    int64_t offset[BLOCKS + 1] = {0};
    gr_store_writer *w;
    gr_store_part part;
    graft_error err;
    snprintf(whole, sizeof whole, "/tmp/fuzz-store-XXXXXX");
    snprintf(parts, sizeof parts, "/tmp/fuzz-store-XXXXXX");
    GR_ASSERT(mkdtemp(whole) && mkdtemp(parts) && atexit(clean) == 0);
    GR_ASSERT(gr_store_begin(&w, whole, &(gr_store_limits){SOURCES, VOCABULARY, LENGTH}, &part, &err) == GRAFT_OK);
    for (int shard = 0; shard < SHARDS; shard++) {
        for (int b = 0; b < BLOCKS; b++) {
            offset[b + 1] = offset[b] + 2 + b * 37 % (LENGTH - 2);
            source[b] = shard == SHARDS - 1;
        }
        for (int k = 0; k < BLOCKS * LENGTH; k++) ids[k] = k * 7 % VOCABULARY, target[k] = k % 3 == 1;
        part = (gr_store_part){.n_blocks = BLOCKS,
                               .offset = offset,
                               .source = source,
                               .ids = ids,
                               .target = target,
                               .n_open = 3,
                               .next_source = source[0],
                               .next = BLOCKS * (shard + 1)};
        GR_ASSERT(gr_store_add(w, &part, &err) == GRAFT_OK);
    }
    GR_ASSERT(gr_store_end(w, &(gr_store_left){.n_empty = 1}, "0\tsome\n", &err) == GRAFT_OK);
    gr_store_writer_free(w);
    for (int i = 0; i < GR_LEN(files); i++) {
        gr_h5 *h;
        GR_ASSERT(gr_h5_open(&h, path_of(whole, files[i]), &err) == GRAFT_OK);
        GR_ASSERT(gr_h5_visit(h, keep, (void *)files[i], &err) == GRAFT_OK);
        gr_h5_close(h);
    }
    GR_ASSERT(gr_file_copy(path_of(whole, "shard-000000.h5"), path_of(parts, "shard-000000.h5"), &err) == GRAFT_OK);
}

/* The file with these changes. */
static void write_changed(const char *folder, const char *file, const uint8_t *data, size_t size) {
    gr_h5 *h;
    graft_error err;
    GR_ASSERT(gr_h5_create(&h, path_of(folder, file), &err) == GRAFT_OK);
    for (int i = 0; i < n_arrays + n_attributes; i++) {
        int64_t value = 0, cut = 0;
        const attribute *attr = i < n_arrays ? NULL : &attributes[i - n_arrays];
        const array *a = attr ? NULL : &arrays[i];
        if (strcmp(attr ? attr->file : a->file, file) != 0) continue;
        uint8_t *bytes = a ? gr_calloc(a->n, a->bytes) : NULL;
        if (a) memcpy(bytes, a->good, (size_t)(a->n * a->bytes));
        if (attr) value = attr->good;
        for (size_t at = 0; at + CHANGE <= size; at += CHANGE) {
            int64_t by;
            if (data[at] % (n_arrays + n_attributes) != i) continue;
            memcpy(&by, data + at + 2, sizeof by);
            if (attr) value ^= by;
            else if (data[at + 1] == 255) cut = by & 7; /* shorter than the rest */
            else
                for (int64_t k = 0, e = a->n * data[at + 1] / 256; k < a->bytes; k++)
                    bytes[e * a->bytes + k] ^= (uint8_t)(by >> 8 * k);
        }
        if (attr) GR_ASSERT(gr_h5_put_int(h, attr->name, value, &err) == GRAFT_OK);
        int64_t shape[2] = {a ? GR_MAX(1, a->shape[0] - cut) : 0, a ? a->shape[1] : 0};
        if (a) GR_ASSERT(gr_h5_put(h, a->name, a->type, a->n_dims, shape, bytes, &err) == GRAFT_OK);
        free(bytes);
    }
    GR_ASSERT(gr_h5_commit(h, &err) == GRAFT_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    gr_store *s = NULL;
    gr_store_writer *w = NULL;
    gr_store_part part;
    gr_tokens buffer = {0};
    graft_error err = {0};
    gr_log_quiet(true);
    if (!whole[0]) make();
    write_changed(whole, files[0], data, size);
    write_changed(parts, files[1], data, size);
    GR_ASSERT(gr_store_open(&s, whole, SOURCES, VOCABULARY, &err) == GRAFT_OK);
    for (int64_t b = 0; s && b < s->n_blocks; b++) {
        int64_t skip = 0, n = s->offset[b + 1] - s->offset[b];
        if (gr_store_read(s, b, &buffer, &skip, &err) != GRAFT_OK) {
            GR_ASSERT(size >= CHANGE && strstr(err.msg, "shard-"));
            continue;
        }
        fuzz_touch(buffer.ids + skip, n * (int64_t)sizeof *buffer.ids);
        for (int64_t k = 0; k < n; k++) GR_ASSERT(buffer.ids[skip + k] >= 0 && buffer.ids[skip + k] < VOCABULARY);
    }
    gr_tokens_release(&buffer);
    GR_ASSERT(s || size >= CHANGE); /* as it was made it is whole */
    gr_store_free(s);
    GR_ASSERT(gr_store_begin(&w, parts, &(gr_store_limits){SOURCES, VOCABULARY, LENGTH}, &part, &err) == GRAFT_OK);
    fuzz_touch(part.ids, part.n_open * (int64_t)sizeof *part.ids);
    gr_store_writer_free(w);
    return 0;
}
