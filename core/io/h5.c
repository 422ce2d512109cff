#include "core/io/h5.h"

#include <errno.h>
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/base/file.h"

/* The user block: magic, version, length and hash of all bytes behind it, the rest zero. */
enum { USER_BLOCK = 2048, VERSION = 1, MAX_DIMS = 2, SEAL_AT = 16 };
static const char magic[8] = "graft-h5";

struct gr_h5 {
    hid_t file;
    char *path;
    gr_h5_seal seal;  /* of one that was opened */
    gr_writer writer; /* its temporary file is the one that libhdf5 writes; zeroed when opened for reading */
};

/* ---- the seal ---- */

static graft_status make_seal(uint8_t block[USER_BLOCK], const char *path, FILE *f, graft_error *err) {
    enum { CHUNK = 1 << 20 };
    graft_status st = GRAFT_OK;
    uint32_t version = VERSION;
    uint64_t length = 0;
    XXH128_canonical_t digest;
    XXH3_state_t *state = XXH3_createState();
    char *chunk = gr_calloc(CHUNK, 1); /* read, not mapped: a mapping would count as resident memory */
    if (!state || !chunk) GR_TRY(gr_fail_memory(err, path));
    XXH3_128bits_reset(state);
    if (fseek(f, USER_BLOCK, SEEK_SET) != 0) GR_TRY(gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", path));
    for (size_t n; (n = fread(chunk, 1, CHUNK, f)) > 0; length += n) XXH3_128bits_update(state, chunk, n);
    if (ferror(f)) GR_TRY(gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", path));
    XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(state));
    memset(block, 0, USER_BLOCK);
    memcpy(block, magic, sizeof magic);
    memcpy(block + 8, &version, sizeof version);
    memcpy(block + SEAL_AT, &length, sizeof length);
    memcpy(block + SEAL_AT + 8, &digest, sizeof digest);
done:
    free(chunk);
    XXH3_freeState(state);
    return st;
}

/* path: the name in messages; file: what is read. */
static graft_status check_seal(const char *path, const char *file, gr_h5_seal *seal, graft_error *err) {
    graft_status st = GRAFT_OK;
    uint8_t found[USER_BLOCK], expected[USER_BLOCK];
    uint32_t version;
    uint64_t length;
    FILE *f = fopen(file, "re");
    if (!f) return gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", path);
    errno = 0;
    size_t got = fread(found, 1, sizeof found, f);
    if (ferror(f)) GR_TRY(gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", path));
    if (got < sizeof found || memcmp(found, magic, sizeof magic) != 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: not a checkpoint or cache of graft, or its first bytes are damaged", path));
    memcpy(&version, found + 8, sizeof version);
    memcpy(&length, found + 16, sizeof length);
    if (version != VERSION)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: container version %u, this graft reads version %d", path, version, VERSION));
    GR_TRY(make_seal(expected, path, f, err));
    uint64_t actual;
    memcpy(&actual, expected + 16, sizeof actual);
    if (length != actual)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: holds %llu bytes where %llu were written: truncated or damaged", path,
                       (unsigned long long)actual, (unsigned long long)length));
    if (memcmp(found, expected, sizeof found) != 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: damaged: its content does not match its checksum", path));
    memcpy(seal->bytes, found + SEAL_AT, sizeof seal->bytes);
done:
    fclose(f);
    return st;
}

/* ---- opening and closing ---- */

/* libhdf5 failed: errno says why where it was the disk. */
static graft_status h5_fail(const gr_h5 *h, const char *name, graft_error *err) {
    bool writing = h->writer.path != NULL;
    graft_status status = writing ? GRAFT_FAILED : GRAFT_BAD_INPUT;
    const char *verb = writing ? "writing" : "reading", *gap = name ? ": " : "";
    if (errno) return gr_fail_errno(err, status, "%s %s%s%s", verb, h->path, gap, name ? name : "");
    return gr_fail(err, status, "%s %s%s%s: libhdf5 reports an error", verb, h->path, gap, name ? name : "");
}

/* Before each group of libhdf5 calls: its error printing off, no stale errno; and, before its first call, no work at exit, where it
 * crashes over a file that a full disk kept it from closing. Every file is closed here anyway. */
static void h5_begin(void) {
    H5dont_atexit();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    errno = 0;
}

static gr_h5 *h5_new(const char *path) {
    gr_h5 *h = gr_calloc(1, sizeof *h);
    if (!h) return NULL;
    h->file = H5I_INVALID_HID;
    h->path = gr_strdup(path);
    if (h->path) return h;
    free(h);
    return NULL;
}

graft_status gr_h5_create(gr_h5 **out, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    hid_t plist = H5I_INVALID_HID;
    gr_h5 *h = h5_new(path);
    gr_unfinished_hold(); /* libhdf5 would make the file anew */
    if (!h) GR_TRY(gr_fail_memory(err, path));
    GR_TRY(gr_writer_open(&h->writer, path, err));
    if (!h->writer.tmp_path) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "writing %s: it is not a regular file", path));
    h5_begin();
    plist = H5Pcreate(H5P_FILE_CREATE);
    if (plist < 0 || H5Pset_userblock(plist, USER_BLOCK) < 0 || H5Pset_obj_track_times(plist, false) < 0 ||
        (h->file = H5Fcreate(h->writer.tmp_path, H5F_ACC_TRUNC, plist, H5P_DEFAULT)) < 0)
        GR_TRY(h5_fail(h, NULL, err));
    *out = h;
    h = NULL;
done:
    if (plist >= 0) H5Pclose(plist);
    gr_unfinished_release();
    gr_h5_close(h);
    return st;
}

graft_status gr_h5_commit(gr_h5 *h, graft_error *err) {
    gr_h5_seal seal;
    return gr_h5_commit_sealed(h, &seal, err);
}

graft_status gr_h5_commit_sealed(gr_h5 *h, gr_h5_seal *seal, graft_error *err) {
    graft_status st = GRAFT_OK;
    FILE *f = NULL;
    uint8_t block[USER_BLOCK];
    h5_begin();
    herr_t flushed = H5Fflush(h->file, H5F_SCOPE_LOCAL), closed = H5Fclose(h->file);
    h->file = H5I_INVALID_HID;
    if (flushed < 0 || closed < 0) GR_TRY(h5_fail(h, NULL, err));
    f = fopen(h->writer.tmp_path, "re");
    if (!f) GR_TRY(gr_fail_errno(err, GRAFT_FAILED, "reading back %s", h->path));
    GR_TRY(make_seal(block, h->path, f, err));
    fwrite(block, 1, sizeof block, h->writer.stream);
    if (fflush(h->writer.stream) == 0 && !ferror(h->writer.stream)) {
        st = check_seal(h->path, h->writer.tmp_path, seal, err);
        if (st != GRAFT_OK) GR_TRY(gr_fail_context(err, GRAFT_FAILED, "reading back what was written"));
    }
    GR_TRY(gr_writer_commit(&h->writer, err));
done:
    if (f) fclose(f);
    gr_h5_close(h);
    return st;
}

graft_status gr_h5_open(gr_h5 **out, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_h5 *h = h5_new(path);
    if (!h) GR_TRY(gr_fail_memory(err, path));
    GR_TRY(check_seal(path, path, &h->seal, err));
    h5_begin();
    h->file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    if (h->file < 0) GR_TRY(h5_fail(h, NULL, err));
    *out = h;
    h = NULL;
done:
    gr_h5_close(h);
    return st;
}

gr_h5_seal gr_h5_seal_of(const gr_h5 *h) { return h->seal; }

void gr_h5_close(gr_h5 *h) {
    if (!h) return;
    if (h->file >= 0) H5Fclose(h->file);
    gr_writer_abort(&h->writer);
    free(h->path);
    free(h);
}

/* ---- datasets ---- */

/* All types are little endian in the file; graft's hosts are, too. */
static hid_t type_id(gr_h5_type type) {
    switch (type) {
    case GR_H5_F32: return H5T_IEEE_F32LE;
    case GR_H5_F64: return H5T_IEEE_F64LE;
    case GR_H5_I32: return H5T_STD_I32LE;
    case GR_H5_I64: return H5T_STD_I64LE;
    case GR_H5_U8: return H5T_STD_U8LE;
    }
    return H5I_INVALID_HID;
}

/* Makes the groups that name passes through; one by one, as libhdf5's own way would put the time into the file. */
static graft_status make_groups(gr_h5 *h, const char *name, hid_t plist, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *part = gr_strdup(name);
    if (!part) return gr_fail_memory(err, name);
    for (char *slash = strchr(part + (*part == '/'), '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (H5Lexists(h->file, part, H5P_DEFAULT) <= 0) {
            hid_t group = H5Gcreate2(h->file, part, H5P_DEFAULT, plist, H5P_DEFAULT);
            if (group < 0) GR_TRY(h5_fail(h, part, err));
            H5Gclose(group);
        }
        *slash = '/';
    }
done:
    free(part);
    return st;
}

graft_status gr_h5_put(gr_h5 *h, const char *name, gr_h5_type type, int n_dims, const int64_t *shape, const void *data,
                       graft_error *err) {
    graft_status st = GRAFT_OK;
    hsize_t dims[MAX_DIMS];
    hid_t groups = H5I_INVALID_HID, plist = H5I_INVALID_HID, space = H5I_INVALID_HID, set = H5I_INVALID_HID;
    GR_ASSERT(n_dims >= 1 && n_dims <= MAX_DIMS);
    for (int d = 0; d < n_dims; d++) dims[d] = (hsize_t)shape[d];
    h5_begin();
    if ((groups = H5Pcreate(H5P_GROUP_CREATE)) < 0 || H5Pset_obj_track_times(groups, false) < 0 ||
        (plist = H5Pcreate(H5P_DATASET_CREATE)) < 0 || H5Pset_obj_track_times(plist, false) < 0)
        GR_TRY(h5_fail(h, name, err));
    GR_TRY(make_groups(h, name, groups, err));
    if ((space = H5Screate_simple(n_dims, dims, NULL)) < 0 ||
        (set = H5Dcreate2(h->file, name, type_id(type), space, H5P_DEFAULT, plist, H5P_DEFAULT)) < 0 ||
        H5Dwrite(set, type_id(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0)
        GR_TRY(h5_fail(h, name, err));
done:
    if (set >= 0 && H5Dclose(set) < 0 && st == GRAFT_OK) st = h5_fail(h, name, err);
    if (space >= 0) H5Sclose(space);
    if (plist >= 0) H5Pclose(plist);
    if (groups >= 0) H5Pclose(groups);
    return st;
}

bool gr_h5_has(gr_h5 *h, const char *name) {
    bool found = true;
    char *part = gr_strdup(name);
    if (!part) return false;
    h5_begin();
    for (char *slash = part; found && (slash = strchr(slash + 1, '/'));) { /* H5Lexists needs each group to be there */
        *slash = '\0';
        found = H5Lexists(h->file, part, H5P_DEFAULT) > 0;
        *slash = '/';
    }
    found = found && H5Lexists(h->file, part, H5P_DEFAULT) > 0;
    free(part);
    return found;
}

/* The open dataset of that type, with its shape in dims[0..*n_dims). */
static graft_status open_dataset(hid_t *out, hsize_t dims[MAX_DIMS], int *n_dims, gr_h5 *h, const char *name, gr_h5_type type,
                                 graft_error *err) {
    static const char *const type_names[] = {"f32", "f64", "i32", "i64", "u8"};
    graft_status st = GRAFT_OK;
    hid_t set = H5I_INVALID_HID, space = H5I_INVALID_HID, actual = H5I_INVALID_HID;
    if (!gr_h5_has(h, name)) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: dataset %s is missing", h->path, name));
    h5_begin();
    if ((set = H5Dopen2(h->file, name, H5P_DEFAULT)) < 0 || (space = H5Dget_space(set)) < 0 || (actual = H5Dget_type(set)) < 0)
        GR_TRY(h5_fail(h, name, err));
    *n_dims = H5Sget_simple_extent_ndims(space);
    if (H5Tequal(actual, type_id(type)) <= 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: dataset %s is not of type %s", h->path, name, type_names[type]));
    if (*n_dims < 1 || *n_dims > MAX_DIMS)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: dataset %s has %d dimensions, expected 1 or 2", h->path, name, *n_dims));
    if (H5Sget_simple_extent_dims(space, dims, NULL) < 0) GR_TRY(h5_fail(h, name, err));
    *out = set;
    set = H5I_INVALID_HID;
done:
    if (actual >= 0) H5Tclose(actual);
    if (space >= 0) H5Sclose(space);
    if (set >= 0) H5Dclose(set);
    return st;
}

graft_status gr_h5_shape(gr_h5 *h, const char *name, gr_h5_type type, int n_dims, int64_t *shape, graft_error *err) {
    hsize_t dims[MAX_DIMS] = {0};
    int actual = 0;
    hid_t set = H5I_INVALID_HID;
    graft_status st = open_dataset(&set, dims, &actual, h, name, type, err);
    if (st != GRAFT_OK) return st;
    H5Dclose(set);
    if (actual != n_dims)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: dataset %s has %d dimensions, expected %d", h->path, name, actual, n_dims);
    for (int d = 0; d < n_dims; d++) shape[d] = (int64_t)dims[d];
    return GRAFT_OK;
}

graft_status gr_h5_get(gr_h5 *h, const char *name, gr_h5_type type, void *data, int64_t n_elements, graft_error *err) {
    graft_status st = GRAFT_OK;
    hsize_t dims[MAX_DIMS] = {0};
    int n_dims = 0;
    int64_t n = 1;
    hid_t set = H5I_INVALID_HID;
    GR_TRY(open_dataset(&set, dims, &n_dims, h, name, type, err));
    for (int d = 0; d < n_dims; d++)
        if (!gr_mul_ok(&n, n, (int64_t)dims[d])) n = -1;
    if (n != n_elements)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: dataset %s has %lld elements, expected %lld", h->path, name, (long long)n,
                       (long long)n_elements));
    if (H5Dread(set, type_id(type), H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0) GR_TRY(h5_fail(h, name, err));
done:
    if (set >= 0) H5Dclose(set);
    return st;
}

graft_status gr_h5_place(gr_h5 *h, const char *name, gr_h5_type type, int64_t *offset, graft_error *err) {
    hsize_t dims[MAX_DIMS] = {0};
    int n_dims = 0;
    hid_t set = H5I_INVALID_HID;
    graft_status st = open_dataset(&set, dims, &n_dims, h, name, type, err);
    if (st != GRAFT_OK) return st;
    haddr_t at = H5Dget_offset(set);
    H5Dclose(set);
    if (at == HADDR_UNDEF || at > INT64_MAX) return gr_fail(err, GRAFT_BAD_INPUT, "%s: dataset %s is in pieces", h->path, name);
    *offset = (int64_t)at;
    return GRAFT_OK;
}

/* ---- attributes ---- */

static graft_status put_attribute(gr_h5 *h, const char *name, hid_t type, const void *value, graft_error *err) {
    graft_status st = GRAFT_OK;
    hid_t attribute = H5I_INVALID_HID, space = H5Screate(H5S_SCALAR);
    if (space < 0 || (attribute = H5Acreate2(h->file, name, type, space, H5P_DEFAULT, H5P_DEFAULT)) < 0 ||
        H5Awrite(attribute, type, value) < 0)
        GR_TRY(h5_fail(h, name, err));
done:
    if (attribute >= 0) H5Aclose(attribute);
    if (space >= 0) H5Sclose(space);
    return st;
}

/* Opens a scalar attribute that must equal type. */
static graft_status open_attribute(hid_t *out, gr_h5 *h, const char *name, hid_t type, const char *wanted, graft_error *err) {
    graft_status st = GRAFT_OK;
    hid_t attribute = H5I_INVALID_HID, actual = H5I_INVALID_HID, space = H5I_INVALID_HID;
    if (H5Aexists(h->file, name) <= 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: attribute %s (%s) is missing", h->path, name, wanted));
    if ((attribute = H5Aopen(h->file, name, H5P_DEFAULT)) < 0 || (actual = H5Aget_type(attribute)) < 0 ||
        (space = H5Aget_space(attribute)) < 0)
        GR_TRY(h5_fail(h, name, err));
    if (H5Tequal(actual, type) <= 0 || H5Sget_simple_extent_type(space) != H5S_SCALAR)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: attribute %s is not %s", h->path, name, wanted));
    *out = attribute;
    attribute = H5I_INVALID_HID;
done:
    if (space >= 0) H5Sclose(space);
    if (actual >= 0) H5Tclose(actual);
    if (attribute >= 0) H5Aclose(attribute);
    return st;
}

static graft_status get_attribute(gr_h5 *h, const char *name, hid_t type, const char *wanted, void *value, graft_error *err) {
    hid_t attribute = H5I_INVALID_HID;
    graft_status st = open_attribute(&attribute, h, name, type, wanted, err);
    if (st != GRAFT_OK) return st;
    if (H5Aread(attribute, type, value) < 0) st = h5_fail(h, name, err);
    H5Aclose(attribute);
    return st;
}

graft_status gr_h5_put_int(gr_h5 *h, const char *name, int64_t value, graft_error *err) {
    h5_begin();
    return put_attribute(h, name, H5T_STD_I64LE, &value, err);
}

bool gr_h5_has_attribute(gr_h5 *h, const char *name) {
    h5_begin();
    return H5Aexists(h->file, name) > 0;
}

graft_status gr_h5_get_int(gr_h5 *h, const char *name, int64_t *value, graft_error *err) {
    h5_begin();
    return get_attribute(h, name, H5T_STD_I64LE, "an integer", value, err);
}

graft_status gr_h5_put_double(gr_h5 *h, const char *name, double value, graft_error *err) {
    h5_begin();
    return put_attribute(h, name, H5T_IEEE_F64LE, &value, err);
}

graft_status gr_h5_get_double(gr_h5 *h, const char *name, double *value, graft_error *err) {
    h5_begin();
    return get_attribute(h, name, H5T_IEEE_F64LE, "a double", value, err);
}

/* UTF-8 of variable length: not bound to the 64 KiB of other attributes, and h5py reads it as str. */
static hid_t text_type(void) {
    hid_t type = H5Tcopy(H5T_C_S1);
    if (type < 0 || (H5Tset_size(type, H5T_VARIABLE) >= 0 && H5Tset_cset(type, H5T_CSET_UTF8) >= 0)) return type;
    H5Tclose(type);
    return H5I_INVALID_HID;
}

graft_status gr_h5_put_text(gr_h5 *h, const char *name, const char *value, graft_error *err) {
    h5_begin();
    hid_t type = text_type();
    if (type < 0) return h5_fail(h, name, err);
    graft_status st = put_attribute(h, name, type, &value, err);
    H5Tclose(type);
    return st;
}

graft_status gr_h5_get_text(gr_h5 *h, const char *name, char **value, graft_error *err) {
    char *text = NULL;
    h5_begin();
    hid_t type = text_type();
    if (type < 0) return h5_fail(h, name, err);
    graft_status st = get_attribute(h, name, type, "a text", &text, err);
    H5Tclose(type);
    if (st != GRAFT_OK) return st;
    *value = gr_strdup(text ? text : "");
    H5free_memory(text);
    return *value ? GRAFT_OK : gr_fail_memory(err, name);
}

/* ---- listing ---- */

typedef struct visit_call {
    gr_h5 *h;
    gr_h5_visitor *visit;
    void *context;
    graft_status st;
    graft_error *err;
} visit_call;

static herr_t visit_link(hid_t root, const char *name, const H5L_info_t *info, void *data) {
    visit_call *c = data;
    (void)info;
    hid_t object = H5Oopen(root, name, H5P_DEFAULT);
    bool is_dataset = object >= 0 && H5Iget_type(object) == H5I_DATASET;
    if (object >= 0) H5Oclose(object);
    if (!is_dataset) return 0;
    char *path = gr_format("/%s", name);
    c->st = path ? c->visit(c->context, c->h, path, false, c->err) : gr_fail_memory(c->err, name);
    free(path);
    return c->st == GRAFT_OK ? 0 : -1;
}

static herr_t visit_attribute(hid_t root, const char *name, const H5A_info_t *info, void *data) {
    visit_call *c = data;
    (void)root, (void)info;
    c->st = c->visit(c->context, c->h, name, true, c->err);
    return c->st == GRAFT_OK ? 0 : -1;
}

graft_status gr_h5_visit(gr_h5 *h, gr_h5_visitor *visit, void *context, graft_error *err) {
    visit_call c = {.h = h, .visit = visit, .context = context, .err = err};
    h5_begin();
    bool ok = H5Lvisit(h->file, H5_INDEX_NAME, H5_ITER_INC, visit_link, &c) >= 0 &&
              H5Aiterate2(h->file, H5_INDEX_NAME, H5_ITER_INC, NULL, visit_attribute, &c) >= 0;
    if (c.st != GRAFT_OK) return c.st;
    return ok ? GRAFT_OK : h5_fail(h, NULL, err);
}
