#include "core/io/safetensors.h"

#include <dirent.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/sniff.h"
#include "core/io/tensor_stream.h"

enum { PREFIX = 8, HEADER_MAX = 100 * 1000 * 1000 }; /* the limit of the reference implementation */

typedef struct shard {
    char *path;
    gr_map map;
} shard;

typedef struct skipped {
    const char *name, *dtype;
    gr_tensor tensor; /* without a dtype */
} skipped;

struct gr_safetensors {
    gr_arena names;
    shard *shards;
    int64_t n_shards, shards_cap;
    gr_tensor *tensors; /* sorted by name once opened */
    int64_t n, cap;
    skipped *skipped; /* tensors of types that graft does not compute with */
    int64_t n_skipped, skipped_cap;
    void **copies; /* tensors that lie unaligned in their file */
    int64_t n_copies, copies_cap;
    json_t *metadata; /* of the first shard, may be NULL */
};

static graft_status bad_tensor(graft_error *err, const shard *f, const char *name, const char *what) {
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s: %s", f->path, name, what);
}

/* The tensor's bytes as [begin, begin + bytes) of the shard's data section, checked to lie inside. */
static graft_status read_offsets(int64_t *begin, int64_t *bytes, const shard *f, int64_t data_bytes, const char *name,
                                 const json_t *entry, graft_error *err) {
    const json_t *pair = json_object_get(entry, "data_offsets");
    const json_t *first = json_array_get(pair, 0), *second = json_array_get(pair, 1);
    if (json_array_size(pair) != 2 || !json_is_integer(first) || !json_is_integer(second))
        return bad_tensor(err, f, name, "\"data_offsets\" is not a pair of integers");
    int64_t b = json_integer_value(first), e = json_integer_value(second);
    if (b < 0 || b > e || e > data_bytes)
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: tensor %s: offsets %lld to %lld do not lie in the %lld data bytes; the file is truncated or damaged",
                       f->path, name, (long long)b, (long long)e, (long long)data_bytes);
    *begin = b;
    *bytes = e - b;
    return GRAFT_OK;
}

static graft_status read_shape(gr_tensor *t, const shard *f, const json_t *entry, graft_error *err) {
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape)) return bad_tensor(err, f, t->name, "\"shape\" is not a list of integers");
    if (json_array_size(shape) > GR_MAX_DIMS)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s: %zu dimensions, graft reads up to %d", f->path, t->name,
                       json_array_size(shape), GR_MAX_DIMS);
    t->n_dims = (int)json_array_size(shape);
    for (int d = 0; d < t->n_dims; d++) {
        const json_t *size = json_array_get(shape, (size_t)d);
        if (!json_is_integer(size)) return bad_tensor(err, f, t->name, "\"shape\" is not a list of integers");
        t->shape[d] = json_integer_value(size);
    }
    return gr_tensor_measure(t, err);
}

/* Files may place an F32 at an odd offset; such a tensor gets an aligned copy that the handle owns. */
static graft_status place_data(gr_safetensors *s, gr_tensor *t, const uint8_t *data, graft_error *err) {
    t->data = data;
    if ((uintptr_t)data % (uintptr_t)gr_dtype_get(t->dtype)->block_bytes == 0) return GRAFT_OK;
    void *copy = gr_alloc_aligned(t->n_bytes);
    if (!copy || !gr_grow(&s->copies, &s->copies_cap, s->n_copies + 1, sizeof *s->copies)) {
        free(copy);
        return gr_fail_memory(err, t->name);
    }
    memcpy(copy, data, (size_t)t->n_bytes);
    s->copies[s->n_copies++] = copy;
    t->data = copy;
    return GRAFT_OK;
}

static graft_status skip_tensor(gr_safetensors *s, gr_tensor t, const char *dtype, const json_t *entry, graft_error *err) {
    const json_t *shape = json_object_get(entry, "shape");
    char *kept = gr_arena_strdup(&s->names, dtype);
    if (!kept || !gr_grow(&s->skipped, &s->skipped_cap, s->n_skipped + 1, sizeof *s->skipped)) return gr_fail_memory(err, t.name);
    t.n_dims = json_array_size(shape) <= GR_MAX_DIMS ? (int)json_array_size(shape) : -1;
    for (int d = 0; d < t.n_dims; d++) t.shape[d] = json_integer_value(json_array_get(shape, (size_t)d));
    s->skipped[s->n_skipped++] = (skipped){.name = t.name, .dtype = kept, .tensor = t};
    return GRAFT_OK;
}

/* data: the shard's data section. *left: bytes of it that no tensor has claimed yet; overlaps run it below zero. */
static graft_status add_tensor(gr_safetensors *s, const shard *f, const uint8_t *data, int64_t data_bytes, int64_t *left,
                               const char *key, const json_t *entry, graft_error *err) {
    int64_t begin = 0, bytes = 0;
    if (!json_is_object(entry)) return bad_tensor(err, f, key, "its entry in the header is not an object");
    const char *dtype_name = json_string_value(json_object_get(entry, "dtype"));
    if (!dtype_name) return bad_tensor(err, f, key, "\"dtype\" is missing or not a string");
    graft_status st = read_offsets(&begin, &bytes, f, data_bytes, key, entry, err);
    if (st != GRAFT_OK) return st;
    *left -= bytes;
    if (*left < 0) return bad_tensor(err, f, key, "its data overlaps another tensor's");
    const char *name = gr_arena_strdup(&s->names, key);
    if (!name) return gr_fail_memory(err, key);
    int dtype = gr_dtype_from_safetensors(dtype_name);
    if (dtype < 0)
        return skip_tensor(s, (gr_tensor){.name = name, .file = f->path, .data = data + begin, .n_bytes = bytes}, dtype_name, entry,
                           err);
    gr_tensor t = {.name = name, .dtype = (gr_dtype)dtype, .file = f->path};
    if ((st = read_shape(&t, f, entry, err)) != GRAFT_OK) return st;
    if (t.n_bytes != bytes)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s: %lld bytes of data, its shape and type need %lld", f->path, key,
                       (long long)bytes, (long long)t.n_bytes);
    if ((st = place_data(s, &t, data + begin, err)) != GRAFT_OK) return st;
    if (!gr_grow(&s->tensors, &s->cap, s->n + 1, sizeof *s->tensors)) return gr_fail_memory(err, key);
    s->tensors[s->n++] = t;
    return GRAFT_OK;
}

static graft_status read_shard(gr_safetensors *s, const shard *f, graft_error *err) {
    graft_status st = GRAFT_OK;
    uint64_t header_len = 0;
    json_error_t why;
    json_t *header = NULL;
    const json_t *entry;
    const char *key;
    if (f->map.size >= PREFIX) memcpy(&header_len, f->map.data, PREFIX);
    if (f->map.size < PREFIX || header_len > (uint64_t)(f->map.size - PREFIX) || header_len > HEADER_MAX)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: not a safetensors file, or truncated: a header of %llu bytes in a file of %lld",
                       f->path, (unsigned long long)header_len, (long long)f->map.size);
    header = json_loadb((const char *)f->map.data + PREFIX, (size_t)header_len, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(header))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: the safetensors header is not a JSON object: %s", f->path,
                       header ? "another JSON value" : why.text));
    const uint8_t *data = f->map.data + PREFIX + header_len;
    int64_t data_bytes = f->map.size - PREFIX - (int64_t)header_len, left = data_bytes;
    json_object_foreach(header, key, entry) {
        if (strcmp(key, "__metadata__") != 0) GR_TRY(add_tensor(s, f, data, data_bytes, &left, key, entry, err));
        else if (!json_is_object(entry)) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: \"__metadata__\" is not an object", f->path));
    }
    if (f == s->shards) s->metadata = json_incref(json_object_get(header, "__metadata__"));
done:
    json_decref(header);
    return st;
}

/* Takes path over, also on failure. */
static graft_status open_shard(gr_safetensors *s, char *path, graft_error *err) {
    if (!path || !gr_grow(&s->shards, &s->shards_cap, s->n_shards + 1, sizeof *s->shards)) {
        free(path);
        return gr_fail_memory(err, "opening a safetensors file");
    }
    shard *f = &s->shards[s->n_shards++]; /* may move later: tensors borrow only its path and map */
    *f = (shard){.path = path};
    graft_status st = gr_map_open(&f->map, path, err);
    if (st == GRAFT_OK) st = gr_expect_kind(f->map.data, f->map.size, GR_KIND_SAFETENSORS, "a safetensors file", path, err);
    return st == GRAFT_OK ? read_shard(s, f, err) : st;
}

/* "<folder of path>/<name>", owned. */
static char *beside(const char *path, const char *name) {
    const char *slash = strrchr(path, '/');
    return gr_format("%.*s%s", slash ? (int)(slash - path + 1) : 0, path, name);
}

/* Files named by an index must be its neighbours: nothing else on the disk is opened because a file says so. */
static bool is_plain_name(const char *name) {
    return name && *name && !strchr(name, '/') && !strchr(name, '\\') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static bool has_shard(const gr_safetensors *s, const char *name) {
    for (int64_t i = 0; i < s->n_shards; i++) {
        const char *slash = strrchr(s->shards[i].path, '/');
        if (strcmp(slash ? slash + 1 : s->shards[i].path, name) == 0) return true;
    }
    return false;
}

static graft_status open_index(gr_safetensors *s, const char *path, json_t **index, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *text = NULL;
    int64_t len;
    json_error_t why;
    const char *key;
    const json_t *value;
    GR_TRY(gr_file_read_json(&text, &len, path, HEADER_MAX, err));
    *index = json_loadb(text, (size_t)len, JSON_REJECT_DUPLICATES, &why);
    json_t *map = json_object_get(*index, "weight_map");
    if (!*index) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: not valid JSON: %s (line %d)", path, why.text, why.line));
    if (json_object_size(map) == 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: no \"weight_map\" of tensor names to file names", path));
    json_object_foreach(map, key, value) {
        const char *file = json_string_value(value);
        if (!is_plain_name(file))
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: weight_map: tensor %s: the value must be a file name in the same folder",
                           path, key));
        if (!has_shard(s, file)) GR_TRY(open_shard(s, beside(path, file), err));
    }
done:
    free(text);
    return st;
}

static int by_name(const void *a, const void *b) { return strcmp(((const gr_tensor *)a)->name, ((const gr_tensor *)b)->name); }

static graft_status sort_tensors(gr_safetensors *s, graft_error *err) {
    if (s->n > 0) qsort(s->tensors, (size_t)s->n, sizeof *s->tensors, by_name);
    for (int64_t i = 1; i < s->n; i++) {
        const gr_tensor *a = &s->tensors[i - 1], *b = &s->tensors[i];
        if (strcmp(a->name, b->name) == 0)
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s is also in %s", b->file, b->name, a->file);
    }
    return GRAFT_OK;
}

/* Every tensor of the index is in the file it is mapped to. */
static graft_status check_index(const gr_safetensors *s, const char *path, const json_t *index, graft_error *err) {
    const char *name;
    json_t *value;
    json_object_foreach(json_object_get(index, "weight_map"), name, value) {
        const gr_tensor *t = gr_safetensors_find(s, name);
        const char *file = json_string_value(value), *slash = t ? strrchr(t->file, '/') : NULL;
        if (!t && gr_safetensors_skipped(s, name)) continue;
        if (!t || strcmp(slash ? slash + 1 : t->file, file) != 0)
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: weight_map: tensor %s is not in %s", path, name, file);
    }
    return GRAFT_OK;
}

/* The first name in the folder that begins and ends so, into name[256]. */
static bool folder_has(char name[256], const char *folder, const char *begin, const char *end) {
    DIR *d = opendir(folder);
    struct dirent *e;
    bool found = false;
    while (d && !found && (e = readdir(d))) {
        found = gr_starts_with(e->d_name, begin) && gr_ends_with(e->d_name, end);
        if (found) snprintf(name, 256, "%s", e->d_name);
    }
    if (d) closedir(d);
    return found;
}

static graft_status no_weights(const char *folder, graft_error *err) {
    char name[256];
    if (folder_has(name, folder, "model-", ".safetensors"))
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: %s is one of several files, and model.safetensors.index.json, which lists them, is missing", folder,
                       name);
    if (folder_has(name, folder, "", ".safetensors"))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: no model.safetensors and no index; if %s holds the weights, give it that name",
                       folder, name);
    if (folder_has(name, folder, "", ".bin") || folder_has(name, folder, "", ".pth") || folder_has(name, folder, "", ".pt"))
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: %s is a pickle of PyTorch, which graft does not read; save the model as safetensors "
                       "(transformers: from_pretrained, then save_pretrained)",
                       folder, name);
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "%s: the folder holds no weights: expected model.safetensors, model.safetensors.index.json or "
                   "adapter_model.safetensors",
                   folder);
}

/* The file to open for path: path itself, or what its folder holds; owned. */
static graft_status resolve(char **out, const char *path, graft_error *err) {
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"};
    char other[256];
    if (!gr_is_dir(path)) {
        *out = gr_strdup(path);
        return *out ? GRAFT_OK : gr_fail_memory(err, path);
    }
    for (int i = 0; i < GR_LEN(names); i++) {
        char *file = gr_path_join(path, names[i]);
        if (!file) return gr_fail_memory(err, path);
        if (gr_exists(file)) {
            *out = file;
            if (i == 0 && folder_has(other, path, "model-", ".safetensors"))
                gr_warn("%s: %s is taken, as transformers takes it; %s beside it is not read", path, names[0], other);
            return GRAFT_OK;
        }
        free(file);
    }
    return no_weights(path, err);
}

graft_status gr_safetensors_open(gr_safetensors **out, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *file = NULL;
    json_t *index = NULL;
    gr_safetensors *s = gr_calloc(1, sizeof *s);
    if (!s) GR_TRY(gr_fail_memory(err, path));
    GR_TRY(resolve(&file, path, err));
    if (gr_ends_with(file, ".json")) GR_TRY(open_index(s, file, &index, err));
    else GR_TRY(open_shard(s, gr_strdup(file), err));
    GR_TRY(sort_tensors(s, err));
    if (index) GR_TRY(check_index(s, file, index, err));
    *out = s;
    s = NULL;
done:
    gr_safetensors_close(s);
    json_decref(index);
    free(file);
    return st;
}

void gr_safetensors_close(gr_safetensors *s) {
    if (!s) return;
    for (int64_t i = 0; i < s->n_shards; i++) {
        gr_map_close(&s->shards[i].map);
        free(s->shards[i].path);
    }
    for (int64_t i = 0; i < s->n_copies; i++) free(s->copies[i]);
    free(s->shards);
    free(s->copies);
    free(s->tensors);
    free(s->skipped);
    json_decref(s->metadata);
    gr_arena_release(&s->names);
    free(s);
}

int64_t gr_safetensors_count(const gr_safetensors *s) { return s->n; }

const gr_tensor *gr_safetensors_get(const gr_safetensors *s, int64_t i) {
    GR_ASSERT(i >= 0 && i < s->n);
    return &s->tensors[i];
}

const gr_tensor *gr_safetensors_find(const gr_safetensors *s, const char *name) {
    gr_tensor key = {.name = name};
    return s->n ? bsearch(&key, s->tensors, (size_t)s->n, sizeof key, by_name) : NULL;
}

const char *gr_safetensors_skipped(const gr_safetensors *s, const char *name) {
    for (int64_t i = 0; i < s->n_skipped; i++)
        if (strcmp(s->skipped[i].name, name) == 0) return s->skipped[i].dtype;
    return NULL;
}

const char *gr_safetensors_skipped_at(const gr_safetensors *s, int64_t i) { return i < s->n_skipped ? s->skipped[i].name : NULL; }

const gr_tensor *gr_safetensors_odd(const gr_safetensors *s, int64_t i, const char **type) {
    if (i >= s->n_skipped) return NULL;
    *type = s->skipped[i].dtype;
    return &s->skipped[i].tensor;
}

const char *gr_safetensors_metadata(const gr_safetensors *s, const char *key) {
    return json_string_value(json_object_get(s->metadata, key));
}

/* ---- writing ---- */

/* The length, the JSON header and its padding; data sections start 8-aligned. */
static graft_status make_header(gr_str *out, const gr_tensor *tensors, int64_t n, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t offset = 0, end;
    char *text = NULL;
    json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    for (int64_t i = 0; i < n; i++) {
        const gr_tensor *t = &tensors[i];
        const char *dtype = gr_dtype_get(t->dtype)->safetensors_name;
        if (!dtype)
            GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "writing %s: tensor %s: safetensors has no type %s", t->file, t->name,
                           gr_dtype_get(t->dtype)->name));
        if (json_object_get(header, t->name) || !gr_add_ok(&end, offset, t->n_bytes))
            GR_TRY(gr_fail(err, GRAFT_FAILED, "writing %s: tensor %s comes twice or is too large", t->file, t->name));
        json_t *shape = json_array();
        for (int d = 0; d < t->n_dims; d++) json_array_append_new(shape, json_integer(t->shape[d]));
        json_t *entry =
            json_pack("{s:s,s:o,s:[I,I]}", "dtype", dtype, "shape", shape, "data_offsets", (json_int_t)offset, (json_int_t)end);
        if (json_object_set_new(header, t->name, entry) != 0)
            GR_TRY(
                gr_fail(err, GRAFT_FAILED, "writing %s: tensor %s: out of memory, or a name that is not UTF-8", t->file, t->name));
        offset = end;
    }
    text = json_dumps(header, JSON_COMPACT);
    if (!text) GR_TRY(gr_fail_memory(err, "the safetensors header"));
    int64_t len = (int64_t)strlen(text), padded = (len + 7) / 8 * 8;
    gr_str_add(out, (const char *)&(uint64_t){(uint64_t)padded}, PREFIX);
    gr_str_add(out, text, len);
    for (; len < padded; len++) gr_str_putc(out, ' ');
    if (out->failed) GR_TRY(gr_fail_memory(err, "the safetensors header"));
done:
    free(text);
    json_decref(header);
    return st;
}

static graft_status read_back(const char *file, const gr_tensor *tensors, const uint64_t *hashes, int64_t n, graft_error *err) {
    gr_safetensors *back;
    graft_status st = gr_safetensors_open(&back, file, err);
    if (st != GRAFT_OK) return gr_fail_context(err, GRAFT_FAILED, "reading back what was written");
    for (int64_t i = 0; st == GRAFT_OK && i < n; i++)
        st = gr_tensor_compare(&tensors[i], hashes[i], gr_safetensors_find(back, tensors[i].name), err);
    gr_safetensors_close(back);
    return st;
}

graft_status gr_safetensors_write(const char *path, const gr_tensor *tensors, int64_t n, gr_tensor_producer *produce, void *context,
                                  graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_tensor *list = NULL;
    gr_str header = {0};
    gr_writer w = {0};
    uint64_t *hashes = gr_calloc(n, sizeof *hashes);
    if (!hashes) GR_TRY(gr_fail_memory(err, path));
    GR_TRY(gr_tensors_prepare(&list, tensors, n, path, err));
    GR_TRY(make_header(&header, list, n, err));
    GR_TRY(gr_writer_open(&w, path, err));
    fwrite(header.data, 1, (size_t)header.len, w.stream);
    GR_TRY(gr_tensors_stream(w.stream, list, n, 1, produce, context, hashes, err));
    if (w.tmp_path && fflush(w.stream) == 0 && !ferror(w.stream)) GR_TRY(read_back(w.tmp_path, list, hashes, n, err));
    GR_TRY(gr_writer_commit(&w, err));
done:
    gr_writer_abort(&w);
    gr_str_release(&header);
    free(list);
    free(hashes);
    return st;
}
