#include "core/data/sums.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <xxhash.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/io/h5.h"

enum { SUMS_VERSION = 1, LARGE_BYTES = 64 << 20, SETTLED_NS = 2000000000, MOST_FILES = 1 << 24 };
enum field { PATH, SIZE, CHANGED, CHANGED_INODE, DEVICE, INODE, HIGH, LOW, N_FIELDS, N_FACTS = HIGH };
typedef int64_t row[N_FIELDS]; /* PATH: hash of its path from the root on */

static int64_t ns_of(struct timespec t) { return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec; }

static int64_t hash_of_path(const char *path) {
    char *whole = realpath(path, NULL);
    const char *name = whole ? whole : path;
    int64_t hash = (int64_t)XXH3_64bits(name, strlen(name));
    free(whole);
    return hash;
}

/* What the system tells; false where the file is none whose times say anything. */
static bool look(row r, const char *file) {
    struct stat info;
    if (stat(file, &info) != 0 || !S_ISREG(info.st_mode)) return false;
    r[PATH] = hash_of_path(file);
    r[SIZE] = info.st_size;
    r[CHANGED] = ns_of(info.st_mtim), r[CHANGED_INODE] = ns_of(info.st_ctim);
    r[DEVICE] = (int64_t)info.st_dev, r[INODE] = (int64_t)info.st_ino;
    return true;
}

static int by_path(const void *a, const void *b) {
    int64_t x = ((const int64_t *)a)[PATH], y = ((const int64_t *)b)[PATH];
    return (x > y) - (x < y);
}

static bool same_facts(const row a, const row b) { return memcmp(a, b, N_FACTS * sizeof *a) == 0; }

static graft_status read_file(row r, const char *file, graft_error *err) {
    enum { STRETCH = 64 << 20 };
    gr_map map = {0};
    XXH3_state_t *state = XXH3_createState();
    graft_status st = state ? gr_map_open(&map, file, err) : gr_fail_memory(err, file);
    if (st != GRAFT_OK) goto done;
    XXH3_128bits_reset(state);
    for (int64_t at = 0; at < map.size; at += STRETCH) { /* its memory goes back as it is read */
        int64_t n = GR_MIN(STRETCH, map.size - at);
        XXH3_128bits_update(state, map.data + at, (size_t)n);
        gr_map_drop(map.data + at, n);
    }
    XXH128_hash_t h = XXH3_128bits_digest(state);
    r[HIGH] = (int64_t)h.high64, r[LOW] = (int64_t)h.low64;
    gr_map_close(&map);
done:
    XXH3_freeState(state);
    return st;
}

/* ---- the table ---- */

static char *table_path(const char *folder, const char *source) {
    return gr_format("%s/%016llx.sums.h5", folder, (unsigned long long)hash_of_path(source));
}

/* Its rows in order of their paths, owned; NULL: none that can be used. */
static row *read_table(const char *path, int64_t *n) {
    graft_status st = GRAFT_OK;
    gr_h5 *h = NULL;
    row *rows = NULL;
    int64_t shape[2], version;
    if (!gr_exists(path)) return NULL;
    GR_TRY(gr_h5_open(&h, path, NULL));
    GR_TRY(gr_h5_get_int(h, "version", &version, NULL));
    GR_TRY(gr_h5_shape(h, "/files", GR_H5_I64, 2, shape, NULL));
    if (version != SUMS_VERSION || shape[0] < 1 || shape[0] > MOST_FILES || shape[1] != N_FIELDS) goto done;
    rows = gr_calloc(shape[0], sizeof *rows);
    if (!rows) goto done;
    st = gr_h5_get(h, "/files", GR_H5_I64, rows, shape[0] * N_FIELDS, NULL);
    if (st == GRAFT_OK) qsort(rows, (size_t)shape[0], sizeof *rows, by_path);
    *n = shape[0];
done:
    gr_h5_close(h);
    if (st == GRAFT_OK) return rows;
    free(rows);
    return NULL;
}

static void write_table(const char *path, const char *folder, row *rows, int64_t n) {
    graft_status st = GRAFT_OK;
    graft_error why = {0};
    gr_h5 *h = NULL;
    const int64_t shape[2] = {n, N_FIELDS};
    GR_TRY(gr_make_dirs(folder, &why));
    GR_TRY(gr_h5_create(&h, path, &why));
    GR_TRY(gr_h5_put(h, "/files", GR_H5_I64, 2, shape, rows, &why));
    GR_TRY(gr_h5_put_int(h, "version", SUMS_VERSION, &why));
    st = gr_h5_commit(h, &why);
    h = NULL;
done:
    gr_h5_close(h);
    if (st != GRAFT_OK) gr_warn("what the files of the data are is not remembered: %s", why.msg);
}

/* ---- files ---- */

/* The sum of a file, which is as r says; *keep: it may be remembered. */
static graft_status sum_file(row r, bool regular, const char *file, bool *keep, graft_error *err) {
    struct timespec now;
    row after = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    graft_status st = read_file(r, file, err);
    *keep = st == GRAFT_OK && regular && look(after, file) && same_facts(r, after) && r[CHANGED] < ns_of(now) - SETTLED_NS &&
            r[CHANGED_INODE] < ns_of(now) - SETTLED_NS;
    return st;
}

graft_status gr_file_sums(gr_file_sum *sums, char *const *files, int64_t n, const char *source, const char *folder, int64_t from,
                          graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t n_known = 0, n_kept = 0, bytes = 0;
    bool fresh = false;
    char *path = folder ? table_path(folder, source) : NULL;
    row *known = path ? read_table(path, &n_known) : NULL, *kept = gr_calloc(n, sizeof *kept);
    if (!kept || (folder && !path)) GR_TRY(gr_fail_memory(err, "data files"));
    for (int64_t i = 0; i < n; i++) {
        row r = {0};
        bool regular = look(r, files[i]), keep = true;
        const row *old = regular && known ? bsearch(r, known, (size_t)n_known, sizeof *known, by_path) : NULL;
        if (old && same_facts(r, *old)) r[HIGH] = (*old)[HIGH], r[LOW] = (*old)[LOW];
        else {
            GR_TRY(sum_file(r, regular, files[i], &keep, err));
            fresh = fresh || keep;
        }
        sums[i] = (gr_file_sum){(uint64_t)r[HIGH], (uint64_t)r[LOW]};
        bytes += r[SIZE];
        if (keep) memcpy(kept[n_kept++], r, sizeof r);
    }
    if (path && fresh && bytes >= (from > 0 ? from : LARGE_BYTES)) write_table(path, folder, kept, n_kept);
done:
    free(path);
    free(known);
    free(kept);
    return st;
}
