#include "core/io/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/sniff.h"
#include "core/io/tensor_stream.h"

/* Bytes of a value of each gr_gguf_type; 0: of variable length. */
static const int type_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
static const char *const type_names[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};

enum { KEY_MAX = 65535, ALIGNMENT_MAX = 1 << 16, KEY_MIN_BYTES = 8 + 4 + 1, TENSOR_MIN_BYTES = 8 + 4 + 4 + 8 };

typedef struct entry {
    const char *key; /* arena */
    gr_gguf_type type, element;
    int64_t n;            /* array: elements; string: bytes */
    const uint8_t *value; /* in the map; array: its first element */
    int64_t begin, end;   /* where in the map type and value stand */
    int64_t *offsets;     /* array of strings: where in the map each length stands; owned */
    const char *text;     /* string: NUL-terminated copy, arena */
} entry;

struct gr_gguf {
    gr_map map;
    char *path;
    gr_arena arena;
    entry *entries, **by_key;
    gr_tensor *tensors, **by_name;
    int64_t n_entries, n_tensors;
};

/* ---- a cursor that never leaves the map ---- */

typedef struct cursor {
    const gr_gguf *g;
    int64_t at;
    graft_error *err;
} cursor;

static graft_status truncated(const cursor *c, const char *what) {
    return gr_fail(c->err, GRAFT_BAD_INPUT, "%s: truncated or damaged: %s at byte %lld does not fit in %lld bytes", c->g->path,
                   what, (long long)c->at, (long long)c->g->map.size);
}

static graft_status take(cursor *c, void *out, int64_t bytes, const char *what) {
    if (bytes > c->g->map.size - c->at) return truncated(c, what);
    memcpy(out, c->g->map.data + c->at, (size_t)bytes);
    c->at += bytes;
    return GRAFT_OK;
}

/* A count or length; at least item_bytes follow in the file for each item, so that it bounds what may be allocated. */
static graft_status take_count(cursor *c, int64_t *out, int64_t item_bytes, const char *what) {
    uint64_t n = 0;
    graft_status st = take(c, &n, sizeof n, what);
    if (st != GRAFT_OK) return st;
    if (n > (uint64_t)((c->g->map.size - c->at) / item_bytes)) return truncated(c, what);
    *out = (int64_t)n;
    return GRAFT_OK;
}

/* The name of a key or tensor, copied. */
static graft_status take_name(cursor *c, gr_arena *arena, const char **out, const char *what) {
    int64_t len = 0;
    graft_status st = take_count(c, &len, 1, what);
    if (st != GRAFT_OK) return st;
    const char *bytes = (const char *)c->g->map.data + c->at;
    if (len == 0 || len > KEY_MAX || memchr(bytes, 0, (size_t)len))
        return gr_fail(c->err, GRAFT_BAD_INPUT, "%s: %s at byte %lld: empty, too long or holds a NUL byte", c->g->path, what,
                       (long long)c->at);
    char *name = gr_arena_alloc(arena, len + 1);
    if (!name) return gr_fail_memory(c->err, what);
    memcpy(name, bytes, (size_t)len);
    c->at += len;
    *out = name;
    return GRAFT_OK;
}

/* ---- opening: metadata ---- */

static graft_status read_string_array(cursor *c, entry *e) {
    e->offsets = gr_calloc(e->n, sizeof *e->offsets);
    if (!e->offsets) return gr_fail_memory(c->err, e->key);
    for (int64_t i = 0; i < e->n; i++) {
        int64_t len = 0;
        e->offsets[i] = c->at;
        graft_status st = take_count(c, &len, 1, e->key);
        if (st != GRAFT_OK) return st;
        c->at += len;
    }
    return GRAFT_OK;
}

static graft_status take_type(cursor *c, gr_gguf_type *out, const char *key) {
    uint32_t type = 0;
    graft_status st = take(c, &type, sizeof type, key);
    if (st != GRAFT_OK) return st;
    if (type >= (uint32_t)GR_LEN(type_bytes))
        return gr_fail(c->err, GRAFT_BAD_INPUT, "%s: key %s: unknown value type %u", c->g->path, key, type);
    *out = (gr_gguf_type)type;
    return GRAFT_OK;
}

static graft_status read_array(cursor *c, entry *e) {
    graft_status st = take_type(c, &e->element, e->key);
    if (st != GRAFT_OK) return st;
    if (e->element == GR_GGUF_ARRAY)
        return gr_fail(c->err, GRAFT_BAD_INPUT, "%s: key %s: an array of arrays, which graft does not read", c->g->path, e->key);
    int bytes = type_bytes[e->element];
    st = take_count(c, &e->n, bytes ? bytes : 8, e->key);
    if (st != GRAFT_OK) return st;
    e->value = c->g->map.data + c->at;
    if (!bytes) return read_string_array(c, e);
    c->at += e->n * bytes;
    return GRAFT_OK;
}

static graft_status read_value(cursor *c, gr_gguf *g, entry *e) {
    graft_status st = take_type(c, &e->type, e->key);
    if (st != GRAFT_OK) return st;
    if (e->type == GR_GGUF_ARRAY) return read_array(c, e);
    e->n = type_bytes[e->type];
    if (e->type == GR_GGUF_STRING) {
        if ((st = take_count(c, &e->n, 1, e->key)) != GRAFT_OK) return st;
        char *text = gr_arena_alloc(&g->arena, e->n + 1);
        if (!text) return gr_fail_memory(c->err, e->key);
        memcpy(text, g->map.data + c->at, (size_t)e->n);
        e->text = text;
    } else if (e->n > g->map.size - c->at) {
        return truncated(c, e->key);
    }
    e->value = g->map.data + c->at;
    c->at += e->n;
    return GRAFT_OK;
}

static graft_status read_entry(cursor *c, gr_gguf *g, entry *e) {
    graft_status st = take_name(c, &g->arena, &e->key, "a metadata key");
    if (st != GRAFT_OK) return st;
    e->begin = c->at;
    st = read_value(c, g, e);
    e->end = c->at;
    return st;
}

static int by_key(const void *a, const void *b) { return strcmp((*(entry *const *)a)->key, (*(entry *const *)b)->key); }

static graft_status read_metadata(cursor *c, gr_gguf *g) {
    g->entries = gr_calloc(g->n_entries, sizeof *g->entries);
    g->by_key = gr_calloc(g->n_entries, sizeof(entry *));
    if (!g->entries || !g->by_key) return gr_fail_memory(c->err, "GGUF metadata");
    for (int64_t i = 0; i < g->n_entries; i++) {
        graft_status st = read_entry(c, g, &g->entries[i]);
        if (st != GRAFT_OK) return st;
        g->by_key[i] = &g->entries[i];
    }
    qsort(g->by_key, (size_t)g->n_entries, sizeof(entry *), by_key);
    for (int64_t i = 1; i < g->n_entries; i++)
        if (strcmp(g->by_key[i - 1]->key, g->by_key[i]->key) == 0)
            return gr_fail(c->err, GRAFT_BAD_INPUT, "%s: key %s comes twice", g->path, g->by_key[i]->key);
    return GRAFT_OK;
}

/* ---- opening: tensors ---- */

static graft_status unknown_type(const cursor *c, const char *name, uint32_t type) {
    gr_str known = {0};
    for (int d = 0; d < GR_DTYPE_COUNT; d++) {
        const gr_dtype_info *info = gr_dtype_get((gr_dtype)d);
        gr_str_printf(&known, "%s%s", d ? ", " : "", info->name);
    }
    graft_status st = gr_fail(c->err, GRAFT_BAD_INPUT, "%s: tensor %s: ggml type %u; graft reads %s", c->g->path, name, type,
                              known.data ? known.data : "other types");
    gr_str_release(&known);
    return st;
}

/* Leaves the offset within the data section in *offset; data is placed once that section's start is known. */
static graft_status read_tensor(cursor *c, gr_gguf *g, gr_tensor *t, uint64_t *offset) {
    graft_status st;
    uint32_t n_dims = 0, type = 0;
    uint64_t dims[GR_MAX_DIMS] = {0};
    GR_TRY(take_name(c, &g->arena, &t->name, "a tensor name"));
    GR_TRY(take(c, &n_dims, sizeof n_dims, t->name));
    if (n_dims > GR_MAX_DIMS)
        return gr_fail(c->err, GRAFT_BAD_INPUT, "%s: tensor %s: %u dimensions, at most %d are possible", g->path, t->name, n_dims,
                       GR_MAX_DIMS);
    GR_TRY(take(c, dims, (int64_t)(n_dims * sizeof dims[0]), t->name));
    GR_TRY(take(c, &type, sizeof type, t->name));
    GR_TRY(take(c, offset, sizeof *offset, t->name));
    int dtype = type > INT32_MAX ? -1 : gr_dtype_from_gguf((int)type);
    if (dtype < 0) return unknown_type(c, t->name, type);
    t->dtype = (gr_dtype)dtype;
    t->file = g->path;
    t->n_dims = (int)n_dims;
    for (uint32_t d = 0; d < n_dims; d++) t->shape[n_dims - 1 - d] = dims[d] > INT64_MAX ? -1 : (int64_t)dims[d];
    GR_TRY(gr_tensor_measure(t, c->err));
done:
    return st;
}

static int by_name(const void *a, const void *b) { return strcmp((*(gr_tensor *const *)a)->name, (*(gr_tensor *const *)b)->name); }

static graft_status read_alignment(const gr_gguf *g, int64_t *out, graft_error *err) {
    graft_status st = gr_gguf_int_or(g, "general.alignment", GR_GGUF_ALIGNMENT, out, err);
    if (st != GRAFT_OK) return st;
    if (*out >= 8 && *out <= ALIGNMENT_MAX && (*out & (*out - 1)) == 0) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: general.alignment is %lld, expected a power of two from 8 to %d", g->path,
                   (long long)*out, ALIGNMENT_MAX);
}

static graft_status place_tensors(cursor *c, gr_gguf *g, const uint64_t *offsets) {
    int64_t alignment = 0;
    graft_status st = read_alignment(g, &alignment, c->err);
    if (st != GRAFT_OK) return st;
    int64_t start = (c->at + alignment - 1) / alignment * alignment;
    for (int64_t i = 0; i < g->n_tensors; i++) {
        gr_tensor *t = &g->tensors[i];
        if (start > g->map.size || offsets[i] > (uint64_t)(g->map.size - start) ||
            t->n_bytes > g->map.size - start - (int64_t)offsets[i])
            return gr_fail(c->err, GRAFT_BAD_INPUT,
                           "%s: tensor %s: its data ends beyond the end of the file; the file is truncated or damaged", g->path,
                           t->name);
        if (offsets[i] % (uint64_t)alignment != 0)
            return gr_fail(c->err, GRAFT_BAD_INPUT, "%s: tensor %s: offset %llu is no multiple of the alignment %lld", g->path,
                           t->name, (unsigned long long)offsets[i], (long long)alignment);
        t->data = g->map.data + start + offsets[i];
    }
    return GRAFT_OK;
}

static graft_status read_tensors(cursor *c, gr_gguf *g) {
    graft_status st = GRAFT_OK;
    uint64_t *offsets = gr_calloc(g->n_tensors, sizeof *offsets);
    g->tensors = gr_calloc(g->n_tensors, sizeof *g->tensors);
    g->by_name = gr_calloc(g->n_tensors, sizeof(gr_tensor *));
    if (!offsets || !g->tensors || !g->by_name) GR_TRY(gr_fail_memory(c->err, "GGUF tensors"));
    for (int64_t i = 0; i < g->n_tensors; i++) {
        GR_TRY(read_tensor(c, g, &g->tensors[i], &offsets[i]));
        g->by_name[i] = &g->tensors[i];
    }
    qsort(g->by_name, (size_t)g->n_tensors, sizeof(gr_tensor *), by_name);
    for (int64_t i = 1; i < g->n_tensors; i++)
        if (strcmp(g->by_name[i - 1]->name, g->by_name[i]->name) == 0)
            GR_TRY(gr_fail(c->err, GRAFT_BAD_INPUT, "%s: tensor %s comes twice", g->path, g->by_name[i]->name));
    GR_TRY(place_tensors(c, g, offsets));
done:
    free(offsets);
    return st;
}

/* ggml, ggmf, ggjt: words in the order of a little-endian machine. */
static bool is_old_ggml(const gr_map *map) {
    static const char *const magics[] = {"lmgg", "fmgg", "tjgg"};
    for (int i = 0; map->size >= 4 && i < GR_LEN(magics); i++)
        if (memcmp(map->data, magics[i], 4) == 0) return true;
    return false;
}

static graft_status read_header(cursor *c, gr_gguf *g) {
    graft_status st;
    uint32_t version = 0;
    if (g->map.size < 4 || memcmp(g->map.data, "GGUF", 4) != 0)
        return gr_fail(c->err, GRAFT_BAD_INPUT, "%s: not a GGUF file (it does not begin with \"GGUF\")%s", g->path,
                       is_old_ggml(&g->map) ? ": a ggml file of before August 2023; convert the model anew" : "");
    c->at = 4;
    GR_TRY(take(c, &version, sizeof version, "the version"));
    if (version != 2 && version != 3)
        return gr_fail(c->err, GRAFT_BAD_INPUT, "%s: GGUF version %u%s; graft reads versions 2 and 3, little endian", g->path,
                       version >= 1u << 24 ? version >> 24 : version, version >= 1u << 24 ? ", big endian" : "");
    GR_TRY(take_count(c, &g->n_tensors, TENSOR_MIN_BYTES, "the number of tensors"));
    GR_TRY(take_count(c, &g->n_entries, KEY_MIN_BYTES, "the number of keys"));
done:
    return st;
}

graft_status gr_gguf_open(gr_gguf **out, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_gguf *g = gr_calloc(1, sizeof *g);
    if (!g || !(g->path = gr_strdup(path))) GR_TRY(gr_fail_memory(err, path));
    GR_TRY(gr_map_open(&g->map, path, err));
    GR_TRY(gr_expect_kind(g->map.data, g->map.size, GR_KIND_GGUF, "a GGUF file", path, err));
    cursor c = {.g = g, .err = err};
    GR_TRY(read_header(&c, g));
    GR_TRY(read_metadata(&c, g));
    GR_TRY(read_tensors(&c, g));
    *out = g;
    g = NULL;
done:
    gr_gguf_close(g);
    return st;
}

void gr_gguf_close(gr_gguf *g) {
    if (!g) return;
    for (int64_t i = 0; g->entries && i < g->n_entries; i++) free(g->entries[i].offsets);
    free(g->entries);
    free(g->by_key);
    free(g->tensors);
    free(g->by_name);
    gr_arena_release(&g->arena);
    gr_map_close(&g->map);
    free(g->path);
    free(g);
}

const char *gr_gguf_path(const gr_gguf *g) { return g->path; }

/* ---- tensors ---- */

int64_t gr_gguf_n_tensors(const gr_gguf *g) { return g->n_tensors; }

const gr_tensor *gr_gguf_tensor(const gr_gguf *g, int64_t i) {
    GR_ASSERT(i >= 0 && i < g->n_tensors);
    return &g->tensors[i];
}

const gr_tensor *gr_gguf_find(const gr_gguf *g, const char *name) {
    gr_tensor wanted = {.name = name}, *key = &wanted;
    gr_tensor **found = bsearch(&key, g->by_name, (size_t)g->n_tensors, sizeof key, by_name);
    return found ? *found : NULL;
}

/* ---- metadata ---- */

int64_t gr_gguf_n_keys(const gr_gguf *g) { return g->n_entries; }

const char *gr_gguf_key(const gr_gguf *g, int64_t i, gr_gguf_type *type) {
    GR_ASSERT(i >= 0 && i < g->n_entries);
    if (type) *type = g->entries[i].type;
    return g->entries[i].key;
}

static const entry *find_entry(const gr_gguf *g, const char *name) {
    entry wanted = {.key = name}, *key = &wanted;
    entry **found = bsearch(&key, g->by_key, (size_t)g->n_entries, sizeof key, by_key);
    return found ? *found : NULL;
}

bool gr_gguf_has(const gr_gguf *g, const char *key) { return find_entry(g, key) != NULL; }

gr_gguf_type gr_gguf_type_of(const gr_gguf *g, const char *key) {
    const entry *e = find_entry(g, key);
    GR_ASSERT(e);
    return e->type;
}

void gr_gguf_put_copy(gr_gguf_builder *b, const gr_gguf *g, const char *key) {
    const entry *e = find_entry(g, key);
    if (!e) return;
    uint64_t len = strlen(key);
    gr_str_add(&b->meta, (const char *)&len, sizeof len);
    gr_str_puts(&b->meta, key);
    gr_str_add(&b->meta, (const char *)g->map.data + e->begin, e->end - e->begin);
    b->n_keys++;
}

static graft_status wrong_type(const gr_gguf *g, const char *key, const entry *e, const char *wanted, graft_error *err) {
    if (!e) return gr_fail(err, GRAFT_BAD_INPUT, "%s: key %s (%s) is missing", g->path, key, wanted);
    bool array = e->type == GR_GGUF_ARRAY;
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: key %s is %s%s, expected %s", g->path, key, array ? "an array of " : "",
                   type_names[array ? e->element : e->type], wanted);
}

/* False when type is no integer or the value is beyond int64. */
static bool load_int(int64_t *out, gr_gguf_type type, const uint8_t *p) {
    bool is_signed = type == GR_GGUF_I8 || type == GR_GGUF_I16 || type == GR_GGUF_I32 || type == GR_GGUF_I64;
    bool is_unsigned = type == GR_GGUF_U8 || type == GR_GGUF_U16 || type == GR_GGUF_U32 || type == GR_GGUF_U64;
    if (!is_signed && !is_unsigned) return false;
    uint64_t raw = 0;
    int shift = 64 - 8 * type_bytes[type];
    memcpy(&raw, p, (size_t)type_bytes[type]);
    *out = is_signed ? (int64_t)(raw << shift) >> shift : (int64_t)raw; /* sign-extended */
    return is_signed || *out >= 0;
}

static bool load_float(double *out, gr_gguf_type type, const uint8_t *p) {
    int64_t integer;
    if (type == GR_GGUF_F64) {
        memcpy(out, p, sizeof *out);
    } else if (type == GR_GGUF_F32) {
        float v;
        memcpy(&v, p, sizeof v);
        *out = v;
    } else if (load_int(&integer, type, p)) {
        *out = (double)integer;
    } else {
        return false;
    }
    return true;
}

graft_status gr_gguf_get_int(const gr_gguf *g, const char *key, int64_t *out, graft_error *err) {
    const entry *e = find_entry(g, key);
    return e && load_int(out, e->type, e->value) ? GRAFT_OK : wrong_type(g, key, e, "an integer", err);
}

graft_status gr_gguf_get_float(const gr_gguf *g, const char *key, double *out, graft_error *err) {
    const entry *e = find_entry(g, key);
    return e && load_float(out, e->type, e->value) ? GRAFT_OK : wrong_type(g, key, e, "a number", err);
}

graft_status gr_gguf_get_bool(const gr_gguf *g, const char *key, bool *out, graft_error *err) {
    const entry *e = find_entry(g, key);
    if (!e || e->type != GR_GGUF_BOOL) return wrong_type(g, key, e, "a bool", err);
    *out = *e->value != 0;
    return GRAFT_OK;
}

graft_status gr_gguf_get_string(const gr_gguf *g, const char *key, const char **out, int64_t *len, graft_error *err) {
    const entry *e = find_entry(g, key);
    if (!e || e->type != GR_GGUF_STRING) return wrong_type(g, key, e, "a string", err);
    *out = e->text;
    if (len) *len = e->n;
    return GRAFT_OK;
}

graft_status gr_gguf_int_or(const gr_gguf *g, const char *key, int64_t fallback, int64_t *out, graft_error *err) {
    if (gr_gguf_has(g, key)) return gr_gguf_get_int(g, key, out, err);
    *out = fallback;
    return GRAFT_OK;
}

graft_status gr_gguf_float_or(const gr_gguf *g, const char *key, double fallback, double *out, graft_error *err) {
    if (gr_gguf_has(g, key)) return gr_gguf_get_float(g, key, out, err);
    *out = fallback;
    return GRAFT_OK;
}

graft_status gr_gguf_bool_or(const gr_gguf *g, const char *key, bool fallback, bool *out, graft_error *err) {
    if (gr_gguf_has(g, key)) return gr_gguf_get_bool(g, key, out, err);
    *out = fallback;
    return GRAFT_OK;
}

/* ---- arrays ---- */

graft_status gr_gguf_get_array(const gr_gguf *g, const char *key, gr_gguf_type *element, int64_t *n, graft_error *err) {
    const entry *e = find_entry(g, key);
    if (!e || e->type != GR_GGUF_ARRAY) return wrong_type(g, key, e, "an array", err);
    if (element) *element = e->element;
    *n = e->n;
    return GRAFT_OK;
}

static graft_status find_element(const gr_gguf *g, const char *key, int64_t i, const entry **out, graft_error *err) {
    int64_t n = 0;
    graft_status st = gr_gguf_get_array(g, key, NULL, &n, err);
    if (st != GRAFT_OK) return st;
    if (i < 0 || i >= n)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: key %s: element %lld is wanted, the array has %lld", g->path, key, (long long)i,
                       (long long)n);
    *out = find_entry(g, key);
    return GRAFT_OK;
}

graft_status gr_gguf_array_string(const gr_gguf *g, const char *key, int64_t i, const char **s, int64_t *len, graft_error *err) {
    const entry *e;
    graft_status st = find_element(g, key, i, &e, err);
    if (st != GRAFT_OK) return st;
    if (!e->offsets) return wrong_type(g, key, e, "an array of strings", err);
    memcpy(len, g->map.data + e->offsets[i], sizeof *len);
    *s = (const char *)g->map.data + e->offsets[i] + sizeof *len;
    return GRAFT_OK;
}

graft_status gr_gguf_array_int(const gr_gguf *g, const char *key, int64_t i, int64_t *out, graft_error *err) {
    const entry *e;
    graft_status st = find_element(g, key, i, &e, err);
    if (st != GRAFT_OK) return st;
    const uint8_t *at = e->value + i * type_bytes[e->element];
    bool flag = e->element == GR_GGUF_BOOL, ok = flag || load_int(out, e->element, at);
    if (flag) *out = *at != 0;
    return ok ? GRAFT_OK : wrong_type(g, key, e, "an array of integers or flags", err);
}

graft_status gr_gguf_array_float(const gr_gguf *g, const char *key, int64_t i, double *out, graft_error *err) {
    const entry *e;
    graft_status st = find_element(g, key, i, &e, err);
    if (st != GRAFT_OK) return st;
    bool ok = load_float(out, e->element, e->value + i * type_bytes[e->element]);
    return ok ? GRAFT_OK : wrong_type(g, key, e, "an array of numbers", err);
}
