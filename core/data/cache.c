#include "core/data/cache.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/base/log.h"
#include "core/data/content.h"
#include "core/data/reader.h"
#include "core/data/sums.h"
#include "core/io/h5.h"

enum { CACHE_VERSION = 6 }; /* to be raised whenever the same inputs give other tokens or the file another layout */

/* What the bytes of its files are, and of a .txt that it is one: its name says how it is read. */
static graft_status add_source(gr_str *text, const gr_data_source *source, const gr_data_options *o, graft_error *err) {
    graft_status st = GRAFT_OK;
    char **files = NULL;
    gr_file_sum *sums = NULL;
    int64_t n_files = 0;
    GR_TRY(gr_source_files(&files, &n_files, source->path, o->pretrain, err));
    sums = gr_calloc(n_files, sizeof *sums);
    if (!sums) GR_TRY(gr_fail_memory(err, "cache key"));
    GR_TRY(gr_file_sums(sums, files, n_files, source->path, o->cache_dir, o->sums_from, err));
    for (int64_t i = 0; i < n_files; i++) {
        gr_str_printf(text, "%s %016llx%016llx %lld %s\n", i ? "and" : "source", (unsigned long long)sums[i].high,
                      (unsigned long long)sums[i].low, (long long)source->limit, source->format ? source->format : "auto");
        const char *ending = gr_data_ending(files[i]);
        if (ending && strcmp(ending, "txt") == 0) gr_str_puts(text, "named as text\n");
    }
    for (int i = 0; i < source->n_columns; i++)
        gr_str_printf(text, "column %s %s\n", source->columns[i].name, source->columns[i].column);
    if (!gr_encoding_is_utf8(source->encoding)) gr_str_printf(text, "encoding %s\n", source->encoding);
    for (int i = 0; i < source->n_ignore; i++) gr_str_printf(text, "ignore %s\n", source->ignore[i]);
done:
    gr_source_files_free(files, n_files);
    free(sums);
    return st;
}

graft_status gr_cache_make_key(gr_cache_key *key, const gr_data_options *o, const gr_tokenizer *t, const gr_chat *chat,
                               graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_str text = {0};
    gr_str_printf(&text, "version %d tokenizer %016llx chat %016llx loss_on %d max_length %lld truncation %d pretrain %d\n",
                  CACHE_VERSION, (unsigned long long)gr_tokenizer_hash(t), chat ? (unsigned long long)gr_chat_hash(chat) : 0ull,
                  (int)o->loss_on, (long long)o->max_length, (int)o->truncation, o->pretrain);
    for (int i = 0; i < o->n_sources; i++) GR_TRY(add_source(&text, &o->sources[i], o, err));
    if (text.failed) GR_TRY(gr_fail_memory(err, "cache key"));
    XXH128_hash_t h = XXH3_128bits(text.data, (size_t)text.len);
    snprintf(key->hex, sizeof key->hex, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
    for (int i = 0; i < o->n_sources; i++) gr_str_printf(&text, "weight %a\n", o->sources[i].weight);
    if (o->pretrain && o->attention) gr_str_printf(&text, "attention %d\n", (int)o->attention);
    for (int i = 0; i < o->n_sources; i++)
        if (o->sources[i].share > 0) gr_str_printf(&text, "share %a\n", o->sources[i].share);
    if (text.failed) GR_TRY(gr_fail_memory(err, "cache key"));
    key->full = XXH3_64bits(text.data, (size_t)text.len);
done:
    gr_str_release(&text);
    return st;
}

static char *cache_path(const gr_data_options *o, const gr_cache_key *key) { return gr_format("%s/%s.h5", o->cache_dir, key->hex); }

/* What a sealed file of another making could still get wrong. */
static bool consistent(const gr_dataset *d, int64_t n_ids, int n_sources, int64_t n_vocab) {
    int64_t n_targets = 0;
    if (d->offset[0] != 0 || d->offset[d->n_samples] != n_ids) return false;
    for (int64_t i = 0; i < d->n_samples; i++)
        if (d->offset[i] >= d->offset[i + 1] || d->offset[i + 1] > n_ids || d->source[i] < 0 || d->source[i] >= n_sources ||
            (i > 0 && d->source[i] < d->source[i - 1]))
            return false;
    for (int64_t i = 0; i < n_ids; i++) {
        if (d->ids[i] < 0 || d->ids[i] >= n_vocab || d->target[i] > 1) return false;
        n_targets += d->target[i];
    }
    return n_targets == d->n_targets;
}

/* The remarks as bytes with their NUL; a set without any has none. */
static graft_status read_remarks(gr_dataset *d, gr_h5 *h, graft_error *err) {
    int64_t n;
    graft_status st = gr_h5_shape(h, "/remarks", GR_H5_U8, 1, &n, err);
    if (st != GRAFT_OK) return st;
    d->remarks = gr_calloc(n + 1, 1);
    return d->remarks ? gr_h5_get(h, "/remarks", GR_H5_U8, d->remarks, n, err) : gr_fail_memory(err, "data set");
}

static graft_status read_cache(gr_dataset *d, gr_h5 *h, int n_sources, int64_t n_vocab, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t n_offsets, n_ids;
    GR_TRY(gr_h5_shape(h, "/offset", GR_H5_I64, 1, &n_offsets, err));
    GR_TRY(gr_h5_shape(h, "/ids", GR_H5_I32, 1, &n_ids, err));
    if (n_offsets < 2 || n_ids < 1) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "no samples"));
    d->n_samples = n_offsets - 1;
    d->offset = gr_calloc(n_offsets, sizeof *d->offset);
    d->source = gr_calloc(d->n_samples, sizeof *d->source);
    d->ids = gr_calloc(n_ids, sizeof *d->ids);
    d->target = gr_calloc(n_ids, sizeof *d->target);
    if (!d->offset || !d->source || !d->ids || !d->target) GR_TRY(gr_fail_memory(err, "data set"));
    GR_TRY(gr_h5_get(h, "/offset", GR_H5_I64, d->offset, n_offsets, err));
    GR_TRY(gr_h5_get(h, "/source", GR_H5_I32, d->source, d->n_samples, err));
    GR_TRY(gr_h5_get(h, "/ids", GR_H5_I32, d->ids, n_ids, err));
    GR_TRY(gr_h5_get(h, "/target", GR_H5_U8, d->target, n_ids, err));
    GR_TRY(read_remarks(d, h, err));
    GR_TRY(gr_h5_get_int(h, "n_truncated", &d->lost.truncated, err));
    GR_TRY(gr_h5_get_int(h, "n_dropped", &d->lost.dropped, err));
    GR_TRY(gr_h5_get_int(h, "n_lost_turns", &d->lost.turns, err));
    GR_TRY(gr_h5_get_int(h, "n_lost_prompt", &d->lost.prompt, err));
    GR_TRY(gr_h5_get_int(h, "n_lost_answer", &d->lost.answer, err));
    GR_TRY(gr_h5_get_int(h, "n_empty", &d->n_empty, err));
    GR_TRY(gr_h5_get_int(h, "n_targets", &d->n_targets, err));
    if (!consistent(d, n_ids, n_sources, n_vocab)) st = gr_fail(err, GRAFT_BAD_INPUT, "its parts do not fit each other");
done:
    return st;
}

gr_dataset *gr_cache_load(const gr_data_options *o, const gr_cache_key *key, int64_t n_vocab) {
    graft_status st = GRAFT_OK;
    graft_error why = {0};
    gr_h5 *h = NULL;
    gr_dataset *d = NULL;
    char *path = cache_path(o, key);
    if (!path || !gr_exists(path)) goto done;
    d = gr_calloc(1, sizeof *d);
    if (!d) goto done;
    st = gr_h5_open(&h, path, &why);
    if (st == GRAFT_OK) st = read_cache(d, h, o->n_sources, n_vocab, &why);
    gr_h5_close(h);
    if (st != GRAFT_OK) {
        gr_warn("token cache %s is damaged and will be made again (%s)", path, why.msg);
        gr_dataset_free(d);
        d = NULL;
    }
done:
    free(path);
    return d;
}

static graft_status write_cache(gr_h5 *h, const gr_dataset *d, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t n_samples = d->n_samples, n_offsets = n_samples + 1, n_ids = d->offset[n_samples];
    const char *remarks = d->remarks ? d->remarks : "";
    int64_t n_remarks = (int64_t)strlen(remarks) + 1;
    GR_TRY(gr_h5_put(h, "/offset", GR_H5_I64, 1, &n_offsets, d->offset, err));
    GR_TRY(gr_h5_put(h, "/source", GR_H5_I32, 1, &n_samples, d->source, err));
    GR_TRY(gr_h5_put(h, "/ids", GR_H5_I32, 1, &n_ids, d->ids, err));
    GR_TRY(gr_h5_put(h, "/target", GR_H5_U8, 1, &n_ids, d->target, err));
    GR_TRY(gr_h5_put(h, "/remarks", GR_H5_U8, 1, &n_remarks, remarks, err));
    GR_TRY(gr_h5_put_int(h, "n_truncated", d->lost.truncated, err));
    GR_TRY(gr_h5_put_int(h, "n_dropped", d->lost.dropped, err));
    GR_TRY(gr_h5_put_int(h, "n_lost_turns", d->lost.turns, err));
    GR_TRY(gr_h5_put_int(h, "n_lost_prompt", d->lost.prompt, err));
    GR_TRY(gr_h5_put_int(h, "n_lost_answer", d->lost.answer, err));
    GR_TRY(gr_h5_put_int(h, "n_empty", d->n_empty, err));
    GR_TRY(gr_h5_put_int(h, "n_targets", d->n_targets, err));
done:
    return st;
}

void gr_cache_save(const gr_data_options *o, const gr_cache_key *key, const gr_dataset *d) {
    graft_status st = GRAFT_OK;
    graft_error why = {0};
    gr_h5 *h = NULL;
    char *path = cache_path(o, key);
    if (!path) return;
    GR_TRY(gr_make_dirs(o->cache_dir, &why));
    GR_TRY(gr_h5_create(&h, path, &why));
    GR_TRY(write_cache(h, d, &why));
    st = gr_h5_commit(h, &why);
    h = NULL;
done:
    if (st != GRAFT_OK) gr_warn("token cache not written: %s", why.msg);
    gr_h5_close(h);
    free(path);
}
