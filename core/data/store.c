#include "core/data/store.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/io/h5.h"

enum { STORE_VERSION = 2 };
enum shard_field { FIRST, CHUNK, BYTES, IDS, TARGET, SHARD_FIELDS };

struct gr_store_writer {
    gr_store s;
    int64_t block_capacity, source_capacity, learned_capacity, sum_capacity, shard_capacity;
    int32_t *ids; /* of a shard that is looked at, or written */
    uint8_t *target;
    int64_t *offset;
    int32_t *source;
    int64_t ids_capacity, target_capacity, offset_capacity, part_source_capacity;
    int32_t *open_ids; /* that the last one leaves */
    uint8_t *open_target;
    pthread_t thread; /* that writes `part`, in the arrays above, while the next is made */
    bool writing;
    gr_store_part part;
    graft_status st; /* of what was written so far */
    graft_error err;
};

static char *shard_path(const gr_store *s, int64_t i) { return gr_format("%s/shard-%06lld.h5", s->folder, (long long)i); }

static int64_t sum_of(const int32_t *ids, const uint8_t *target, int64_t n) {
    return (int64_t)XXH3_64bits_withSeed(target, (size_t)n, XXH3_64bits(ids, (size_t)n * sizeof *ids));
}

/* Chunks of so many ids; the last may be shorter. */
static int64_t chunks_of(int64_t n_ids) { return (n_ids + GR_STORE_CHUNK - 1) / GR_STORE_CHUNK; }

/* Ids in shard i. */
static int64_t shard_ids(const gr_store *s, int64_t i) {
    const int64_t *shard = s->shards + i * SHARD_FIELDS;
    return s->offset[i + 1 < s->n_shards ? shard[SHARD_FIELDS + FIRST] : s->n_blocks] - s->offset[shard[FIRST]];
}

/* Ids of a block that are learned, behind its first. */
static int64_t count_learned(const uint8_t *target, int64_t n) {
    int64_t count = 0;
    for (int64_t k = 1; k < n; k++) count += target[k] == GR_TARGET_LEARNED;
    return count;
}

static void release(gr_store *s) {
    free(s->offset);
    free(s->source);
    free(s->learned);
    free(s->sum);
    free(s->shards);
    free(s->remarks);
    free(s->folder);
    *s = (gr_store){0};
}

void gr_store_free(gr_store *s) {
    if (!s) return;
    release(s);
    free(s);
}

/* ---- reading ---- */

/* A dataset of one dimension, or of rows of SHARD_FIELDS, owned; *n: its length, which must be `expected` unless that is < 0. */
static graft_status get(gr_h5 *h, const char *name, gr_h5_type type, int64_t *n, int64_t expected, void *out_ptr,
                        graft_error *err) {
    bool rows = strcmp(name, "/shards") == 0;
    int64_t shape[2] = {0, 1};
    int64_t size = type == GR_H5_I64 ? 8 : type == GR_H5_I32 ? 4 : 1;
    graft_status st = gr_h5_shape(h, name, type, rows ? 2 : 1, shape, err);
    if (st != GRAFT_OK) return st;
    if ((expected >= 0 && shape[0] != expected) || (rows && shape[1] != SHARD_FIELDS) || shape[0] > INT64_MAX / 64)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s has another size than the rest", name);
    void *data = gr_calloc(shape[0] * shape[1] + 1, size);
    if (!data) return gr_fail_memory(err, "token cache");
    *(void **)out_ptr = data;
    *n = shape[0];
    return gr_h5_get(h, name, type, data, shape[0] * shape[1], err);
}

/* What a sealed file of another making could still get wrong. */
static bool consistent(const gr_store *s, int n_sources, int64_t n_vocab) {
    if (s->n_blocks < 1 || s->n_shards < 1 || s->offset[0] != 0 || s->shards[FIRST] != 0 || s->max_id >= n_vocab) return false;
    for (int64_t b = 0; b < s->n_blocks; b++) {
        if (s->offset[b + 1] <= s->offset[b] || s->offset[b + 1] > INT64_MAX / 8) return false;
        int64_t n = s->offset[b + 1] - s->offset[b];
        if (n < 2 || n > INT32_MAX || s->learned[b] < 0 || s->learned[b] >= n || s->source[b] < (b ? s->source[b - 1] : 0) ||
            s->source[b] >= n_sources)
            return false;
    }
    int64_t n_chunks = 0;
    for (int64_t i = 0; i < s->n_shards; i++) {
        const int64_t *shard = s->shards + i * SHARD_FIELDS;
        int64_t end = i + 1 < s->n_shards ? shard[SHARD_FIELDS + FIRST] : s->n_blocks;
        if (shard[FIRST] < 0 || shard[FIRST] >= end || end > s->n_blocks || shard[CHUNK] != n_chunks) return false;
        int64_t n = shard_ids(s, i);
        n_chunks += chunks_of(n);
        if (shard[BYTES] < 0 || shard[IDS] < 0 || shard[TARGET] < 0 || n > shard[BYTES] / 4 || shard[IDS] > shard[BYTES] - 4 * n ||
            shard[TARGET] > shard[BYTES] - n)
            return false;
    }
    return n_chunks == s->n_sums;
}

/* The attributes of gr_store_left. */
static const char *const left_names[] = {"n_truncated", "n_dropped", "n_lost_turns", "n_lost_prompt", "n_lost_answer", "n_empty"};

static graft_status get_left(gr_h5 *h, gr_store_left *l, graft_error *err) {
    int64_t *const counts[] = {&l->lost.truncated, &l->lost.dropped, &l->lost.turns, &l->lost.prompt, &l->lost.answer, &l->n_empty};
    graft_status st = GRAFT_OK;
    for (int i = 0; i < GR_LEN(counts) && st == GRAFT_OK; i++) {
        st = gr_h5_get_int(h, left_names[i], counts[i], err);
        if (st == GRAFT_OK && *counts[i] < 0) st = gr_fail(err, GRAFT_BAD_INPUT, "%s is below 0", left_names[i]);
    }
    return st;
}

static graft_status put_left(gr_h5 *h, const gr_store_left *l, graft_error *err) {
    const int64_t counts[] = {l->lost.truncated, l->lost.dropped, l->lost.turns, l->lost.prompt, l->lost.answer, l->n_empty};
    graft_status st = GRAFT_OK;
    for (int i = 0; i < GR_LEN(counts) && st == GRAFT_OK; i++) st = gr_h5_put_int(h, left_names[i], counts[i], err);
    return st;
}

static graft_status check_files(const gr_store *s, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int64_t i = 0; i < s->n_shards && st == GRAFT_OK; i++) {
        struct stat info;
        char *path = shard_path(s, i);
        if (!path) return gr_fail_memory(err, "token cache");
        if (stat(path, &info) != 0 || info.st_size != s->shards[i * SHARD_FIELDS + BYTES])
            st = gr_fail(err, GRAFT_BAD_INPUT, "%s is missing or has another size", path);
        free(path);
    }
    return st;
}

static graft_status read_index(gr_store *s, gr_h5 *h, int n_sources, int64_t n_vocab, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t n, version, max_id;
    GR_TRY(gr_h5_get_int(h, "version", &version, err));
    if (version != STORE_VERSION) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "it is of another version of graft"));
    GR_TRY(get(h, "/source", GR_H5_I32, &s->n_blocks, -1, &s->source, err));
    GR_TRY(get(h, "/offset", GR_H5_I64, &n, s->n_blocks + 1, &s->offset, err));
    GR_TRY(get(h, "/learned", GR_H5_I32, &n, s->n_blocks, &s->learned, err));
    GR_TRY(get(h, "/sum", GR_H5_I64, &s->n_sums, -1, &s->sum, err));
    GR_TRY(get(h, "/shards", GR_H5_I64, &s->n_shards, -1, &s->shards, err));
    GR_TRY(get(h, "/remarks", GR_H5_U8, &n, -1, &s->remarks, err));
    GR_TRY(get_left(h, &s->left, err));
    GR_TRY(gr_h5_get_int(h, "max_id", &max_id, err));
    s->max_id = (int32_t)GR_MAX(0, GR_MIN(max_id, INT32_MAX));
    if (max_id != s->max_id || !consistent(s, n_sources, n_vocab))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "its parts do not fit each other"));
    GR_TRY(check_files(s, err));
done:
    return st;
}

graft_status gr_store_open(gr_store **out, const char *folder, int n_sources, int64_t n_vocab, graft_error *err) {
    graft_status st = GRAFT_OK;
    graft_error why = {0};
    gr_h5 *h = NULL;
    char *path = gr_path_join(folder, "index.h5");
    gr_store *s = gr_calloc(1, sizeof *s);
    *out = NULL;
    if (!path || !s || !(s->folder = gr_strdup(folder))) GR_TRY(gr_fail_memory(err, "token cache"));
    if (!gr_exists(path)) goto done;
    st = gr_h5_open(&h, path, &why);
    if (st == GRAFT_OK) st = read_index(s, h, n_sources, n_vocab, &why);
    gr_h5_close(h);
    if (st == GRAFT_OK) {
        *out = s, s = NULL;
    } else if (st == GRAFT_BAD_INPUT) {
        gr_warn("token cache %s is damaged and will be made again (%s)", folder, why.msg);
        st = GRAFT_OK;
    } else if (err) {
        *err = why;
    }
done:
    gr_store_free(s);
    free(path);
    return st;
}

/* bytes at `from` of an open file. */
static bool read_at(int file, void *to, int64_t bytes, int64_t from) {
    while (bytes > 0) {
        ssize_t n = pread(file, to, (size_t)GR_MIN(bytes, 1 << 30), (off_t)from);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        to = (char *)to + n, from += n, bytes -= n;
    }
    return true;
}

/* The index goes, so that the next run looks at every shard and makes anew what is not whole. at: an id of the shard. */
static graft_status damaged(const gr_store *s, const char *path, int64_t at, const char *what, graft_error *err) {
    char *index = gr_path_join(s->folder, "index.h5");
    bool gone = index && (unlink(index) == 0 || errno == ENOENT);
    free(index);
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: the tokens from %lld on %s; %s", path, (long long)at, what,
                   gone ? "start again: the shard will be made anew" : "remove the folder, it will be made again");
}

/* n ids of a shard from `first` on, whole chunks of it, with their targets. */
static graft_status read_chunks(const gr_store *s, const int64_t *shard, const char *path, int64_t first, int64_t n,
                                const gr_tokens *to, graft_error *err) {
    graft_status st = GRAFT_OK;
    errno = 0;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    bool read = file >= 0 && read_at(file, to->ids, n * (int64_t)sizeof *to->ids, shard[IDS] + first * (int64_t)sizeof *to->ids) &&
                read_at(file, to->target, n, shard[TARGET] + first);
    if (!read && errno) st = gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", path);
    else if (!read) st = damaged(s, path, first, "ends too soon", err);
    for (int64_t at = 0; at < n && st == GRAFT_OK; at += GR_STORE_CHUNK)
        if (sum_of(to->ids + at, to->target + at, GR_MIN(GR_STORE_CHUNK, n - at)) !=
            s->sum[shard[CHUNK] + (first + at) / GR_STORE_CHUNK])
            st = damaged(s, path, first + at, "do not match their checksum", err);
    if (file >= 0) close(file);
    return st;
}

graft_status gr_store_read(const gr_store *s, int64_t block, gr_tokens *buffer, int64_t *skip, graft_error *err) {
    int64_t low = 0, high = s->n_shards; /* the last shard that begins at block or before */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (s->shards[middle * SHARD_FIELDS + FIRST] <= block) low = middle;
        else high = middle;
    }
    const int64_t *shard = s->shards + low * SHARD_FIELDS;
    int64_t start = s->offset[block] - s->offset[shard[FIRST]], n = s->offset[block + 1] - s->offset[block];
    int64_t first = start / GR_STORE_CHUNK * GR_STORE_CHUNK;
    int64_t end = GR_MIN(chunks_of(start + n) * GR_STORE_CHUNK, shard_ids(s, low));
    char *path = shard_path(s, low);
    graft_status st = GRAFT_OK;
    *skip = start - first;
    if (!path || !gr_grow(&buffer->ids, &buffer->id_capacity, end - first, sizeof *buffer->ids) ||
        !gr_grow(&buffer->target, &buffer->target_capacity, end - first, 1))
        GR_TRY(gr_fail_memory(err, "token cache"));
    GR_TRY(read_chunks(s, shard, path, first, end - first, buffer, err));
    const int32_t *ids = buffer->ids + *skip;
    const uint8_t *target = buffer->target + *skip;
    bool right = count_learned(target, n) == s->learned[block];
    for (int64_t k = 0; k < n && right; k++) right = ids[k] >= 0 && ids[k] <= s->max_id && target[k] <= GR_TARGET_START;
    if (!right) st = damaged(s, path, start, "hold what no tokenizer makes", err);
done:
    free(path);
    return st;
}

/* ---- making ---- */

/* The blocks of a part that lies in the file of the newest shard, to the index. */
static graft_status index_part(gr_store_writer *w, const gr_store_part *p, const int64_t shard[SHARD_FIELDS], graft_error *err) {
    gr_store *s = &w->s;
    int64_t n = s->n_blocks + p->n_blocks, base = s->n_blocks ? s->offset[s->n_blocks] : 0, n_ids = p->offset[p->n_blocks];
    if (!gr_grow(&s->offset, &w->block_capacity, n + 1, sizeof *s->offset) ||
        !gr_grow(&s->source, &w->source_capacity, n, sizeof *s->source) ||
        !gr_grow(&s->learned, &w->learned_capacity, n, sizeof *s->learned) ||
        !gr_grow(&s->sum, &w->sum_capacity, s->n_sums + chunks_of(n_ids), sizeof *s->sum) ||
        !gr_grow(&s->shards, &w->shard_capacity, (s->n_shards + 1) * SHARD_FIELDS, sizeof *s->shards))
        return gr_fail_memory(err, "token cache");
    memcpy(s->shards + s->n_shards++ * SHARD_FIELDS, shard, SHARD_FIELDS * sizeof *shard);
    s->offset[s->n_blocks] = base;
    for (int64_t b = 0; b < p->n_blocks; b++) {
        int64_t start = p->offset[b], end = p->offset[b + 1];
        s->learned[s->n_blocks] = (int32_t)count_learned(p->target + start, end - start);
        s->source[s->n_blocks] = p->source[b];
        s->offset[++s->n_blocks] = base + end;
    }
    for (int64_t k = 0; k < n_ids; k++) s->max_id = GR_MAX(s->max_id, p->ids[k]);
    for (int64_t at = 0; at < n_ids; at += GR_STORE_CHUNK)
        s->sum[s->n_sums++] = sum_of(p->ids + at, p->target + at, GR_MIN(GR_STORE_CHUNK, n_ids - at));
    return GRAFT_OK;
}

/* Where the tokens lie in the file of a shard, which is open; its size. */
static graft_status place_shard(int64_t shard[SHARD_FIELDS], gr_h5 *h, const char *path, graft_error *err) {
    struct stat info;
    graft_status st = gr_h5_place(h, "/ids", GR_H5_I32, &shard[IDS], err);
    if (st == GRAFT_OK) st = gr_h5_place(h, "/target", GR_H5_U8, &shard[TARGET], err);
    if (st == GRAFT_OK && stat(path, &info) != 0) st = gr_fail_errno(err, GRAFT_FAILED, "cannot read %s", path);
    if (st == GRAFT_OK) shard[BYTES] = info.st_size;
    return st;
}

static graft_status put_part(gr_h5 *h, const gr_store_part *p, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t n_ids = p->offset[p->n_blocks], n_offsets = p->n_blocks + 1;
    GR_TRY(gr_h5_put(h, "/ids", GR_H5_I32, 1, &n_ids, p->ids, err));
    GR_TRY(gr_h5_put(h, "/target", GR_H5_U8, 1, &n_ids, p->target, err));
    GR_TRY(gr_h5_put(h, "/offset", GR_H5_I64, 1, &n_offsets, p->offset, err));
    GR_TRY(gr_h5_put(h, "/source", GR_H5_I32, 1, &p->n_blocks, p->source, err));
    if (p->n_open > 0) GR_TRY(gr_h5_put(h, "/open_ids", GR_H5_I32, 1, &p->n_open, p->ids + n_ids, err));
    if (p->n_open > 0) GR_TRY(gr_h5_put(h, "/open_target", GR_H5_U8, 1, &p->n_open, p->target + n_ids, err));
    GR_TRY(gr_h5_put_int(h, "version", STORE_VERSION, err));
    GR_TRY(gr_h5_put_int(h, "n_open", p->n_open, err));
    GR_TRY(gr_h5_put_int(h, "next_source", p->next_source, err));
    GR_TRY(gr_h5_put_int(h, "next", p->next, err));
    st = put_left(h, &p->left, err);
done:
    return st;
}

static graft_status write_part(gr_store_writer *w, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_h5 *h = NULL;
    int64_t shard[SHARD_FIELDS] = {w->s.n_blocks, w->s.n_sums};
    char *path = shard_path(&w->s, w->s.n_shards);
    if (!path) GR_TRY(gr_fail_memory(err, "token cache"));
    GR_TRY(gr_h5_create(&h, path, err));
    GR_TRY(put_part(h, &w->part, err));
    st = gr_h5_commit(h, err);
    h = NULL;
    if (st != GRAFT_OK) goto done;
    GR_TRY(gr_h5_open(&h, path, err));
    GR_TRY(place_shard(shard, h, path, err));
    GR_TRY(index_part(w, &w->part, shard, err));
done:
    gr_h5_close(h);
    free(path);
    return st;
}

static void *write_beside(void *writer) {
    gr_store_writer *w = writer;
    w->st = write_part(w, &w->err);
    return NULL;
}

/* Until the part that is being written is on disk; what failed once has failed. */
static graft_status await_part(gr_store_writer *w, graft_error *err) {
    if (w->writing) pthread_join(w->thread, NULL);
    w->writing = false;
    if (w->st != GRAFT_OK && err) *err = w->err;
    return w->st;
}

graft_status gr_store_add(gr_store_writer *w, const gr_store_part *p, graft_error *err) {
    const int64_t n_ids = p->offset[p->n_blocks] + p->n_open;
    graft_status st = await_part(w, err);
    if (st != GRAFT_OK) return st;
    if (!gr_grow(&w->ids, &w->ids_capacity, n_ids, sizeof *w->ids) || !gr_grow(&w->target, &w->target_capacity, n_ids, 1) ||
        !gr_grow(&w->offset, &w->offset_capacity, p->n_blocks + 1, sizeof *w->offset) ||
        !gr_grow(&w->source, &w->part_source_capacity, p->n_blocks, sizeof *w->source))
        return gr_fail_memory(err, "token cache");
    memcpy(w->ids, p->ids, (size_t)n_ids * sizeof *w->ids);
    memcpy(w->target, p->target, (size_t)n_ids);
    memcpy(w->offset, p->offset, (size_t)(p->n_blocks + 1) * sizeof *w->offset);
    memcpy(w->source, p->source, (size_t)p->n_blocks * sizeof *w->source);
    w->part = *p;
    w->part.ids = w->ids, w->part.target = w->target, w->part.offset = w->offset, w->part.source = w->source;
    w->writing = pthread_create(&w->thread, NULL, write_beside, w) == 0;
    if (w->writing) return GRAFT_OK;
    write_beside(w); /* no thread to be had */
    return await_part(w, err);
}

/* ---- going on ---- */

static void forget_part(gr_store_writer *w) {
    free(w->ids);
    free(w->target);
    free(w->offset);
    free(w->source);
    w->ids = NULL, w->target = NULL, w->offset = NULL, w->source = NULL;
    w->ids_capacity = w->target_capacity = w->offset_capacity = w->part_source_capacity = 0;
}

static bool are_tokens(const int32_t *ids, const uint8_t *target, int64_t n, int64_t n_vocab) {
    for (int64_t k = 0; k < n; k++)
        if (ids[k] < 0 || ids[k] >= n_vocab || target[k] > GR_TARGET_START) return false;
    return true;
}

/* The ids of the open block, to the writer once they are right: those of the shard before stay otherwise. */
static graft_status get_open(gr_store_writer *w, gr_h5 *h, int64_t n_open, int64_t n_vocab, graft_error *err) {
    graft_status st = GRAFT_OK;
    int32_t *ids = NULL;
    uint8_t *target = NULL;
    int64_t n;
    if (n_open > 0) GR_TRY(get(h, "/open_ids", GR_H5_I32, &n, n_open, &ids, err));
    if (n_open > 0) GR_TRY(get(h, "/open_target", GR_H5_U8, &n, n_open, &target, err));
    if (!are_tokens(ids, target, n_open, n_vocab)) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "its open block holds no tokens"));
    free(w->open_ids);
    free(w->open_target);
    w->open_ids = ids, w->open_target = target;
    ids = NULL, target = NULL;
done:
    free(ids);
    free(target);
    return st;
}

/* A shard as a part, checked; the arrays are the writer's. */
static graft_status get_part(gr_store_writer *w, gr_h5 *h, gr_store_part *p, const gr_store_limits *most, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t version, n, n_ids;
    forget_part(w);
    *p = (gr_store_part){0};
    GR_TRY(gr_h5_get_int(h, "version", &version, err));
    GR_TRY(gr_h5_get_int(h, "n_open", &p->n_open, err));
    GR_TRY(gr_h5_get_int(h, "next_source", &p->next_source, err));
    GR_TRY(gr_h5_get_int(h, "next", &p->next, err));
    GR_TRY(get_left(h, &p->left, err));
    GR_TRY(get(h, "/ids", GR_H5_I32, &n_ids, -1, &w->ids, err));
    GR_TRY(get(h, "/target", GR_H5_U8, &n, n_ids, &w->target, err));
    GR_TRY(get(h, "/source", GR_H5_I32, &p->n_blocks, -1, &w->source, err));
    GR_TRY(get(h, "/offset", GR_H5_I64, &n, p->n_blocks + 1, &w->offset, err));
    bool whole = version == STORE_VERSION && p->n_blocks > 0 && p->n_open >= 0 && p->n_open < most->block && p->next_source >= 0 &&
                 p->next_source <= most->n_sources && p->next >= 0 && w->offset[0] == 0 && w->offset[n - 1] == n_ids;
    for (int64_t b = 0; b < p->n_blocks && whole; b++)
        whole = w->offset[b] + 1 < w->offset[b + 1] && w->offset[b + 1] <= n_ids &&
                w->offset[b + 1] - w->offset[b] <= most->block && w->source[b] >= (b ? w->source[b - 1] : 0) &&
                w->source[b] < most->n_sources;
    if (!whole || !are_tokens(w->ids, w->target, n_ids, most->n_vocab))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "its parts do not fit each other"));
    p->offset = w->offset, p->source = w->source, p->ids = w->ids, p->target = w->target;
done:
    return st;
}

graft_status gr_store_begin(gr_store_writer **out, const char *folder, const gr_store_limits *most, gr_store_part *part,
                            graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_store_writer *w = gr_calloc(1, sizeof *w);
    *out = NULL;
    *part = (gr_store_part){0};
    if (!w || !(w->s.folder = gr_strdup(folder))) GR_TRY(gr_fail_memory(err, "token cache"));
    GR_TRY(gr_make_dirs(folder, err));
    for (bool more = true; more;) {
        gr_store_part p;
        gr_h5 *h = NULL;
        int64_t shard[SHARD_FIELDS] = {w->s.n_blocks, w->s.n_sums};
        char *path = shard_path(&w->s, w->s.n_shards);
        if (!path) GR_TRY(gr_fail_memory(err, "token cache"));
        more = gr_exists(path) && gr_h5_open(&h, path, NULL) == GRAFT_OK && get_part(w, h, &p, most, NULL) == GRAFT_OK &&
               place_shard(shard, h, path, NULL) == GRAFT_OK && get_open(w, h, p.n_open, most->n_vocab, NULL) == GRAFT_OK;
        if (more) st = index_part(w, &p, shard, err);
        if (more) *part = p;
        gr_h5_close(h);
        free(path);
        if (st != GRAFT_OK) goto done;
    }
    forget_part(w);
    part->n_blocks = 0, part->offset = NULL, part->source = NULL;
    part->ids = w->open_ids, part->target = w->open_target;
    *out = w, w = NULL;
done:
    gr_store_writer_free(w);
    return st;
}

graft_status gr_store_end(gr_store_writer *w, const gr_store_left *left, const char *remarks, graft_error *err) {
    graft_status st = await_part(w, err);
    if (st != GRAFT_OK) return st;
    gr_store *s = &w->s;
    gr_h5 *h = NULL;
    const char *text = remarks ? remarks : "";
    int64_t n_offsets = s->n_blocks + 1, n_remarks = (int64_t)strlen(text) + 1, shards[2] = {s->n_shards, SHARD_FIELDS};
    char *path = gr_path_join(s->folder, "index.h5");
    if (!path) GR_TRY(gr_fail_memory(err, "token cache"));
    GR_TRY(gr_h5_create(&h, path, err));
    GR_TRY(gr_h5_put(h, "/offset", GR_H5_I64, 1, &n_offsets, s->offset, err));
    GR_TRY(gr_h5_put(h, "/source", GR_H5_I32, 1, &s->n_blocks, s->source, err));
    GR_TRY(gr_h5_put(h, "/learned", GR_H5_I32, 1, &s->n_blocks, s->learned, err));
    GR_TRY(gr_h5_put(h, "/sum", GR_H5_I64, 1, &s->n_sums, s->sum, err));
    GR_TRY(gr_h5_put(h, "/shards", GR_H5_I64, 2, shards, s->shards, err));
    GR_TRY(gr_h5_put(h, "/remarks", GR_H5_U8, 1, &n_remarks, text, err));
    GR_TRY(gr_h5_put_int(h, "version", STORE_VERSION, err));
    GR_TRY(put_left(h, left, err));
    GR_TRY(gr_h5_put_int(h, "max_id", s->max_id, err));
    st = gr_h5_commit(h, err);
    h = NULL;
done:
    gr_h5_close(h);
    free(path);
    return st;
}

bool gr_store_writer_empty(const gr_store_writer *w) { return !w->writing && w->s.n_blocks == 0; }

void gr_store_writer_free(gr_store_writer *w) {
    if (!w) return;
    await_part(w, NULL);
    forget_part(w);
    free(w->open_ids);
    free(w->open_target);
    release(&w->s);
    free(w);
}
