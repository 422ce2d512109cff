#include "core/data/cache.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/data/content.h"
#include "core/data/reader.h"
#include "core/data/sums.h"

enum { CACHE_VERSION = 8 }; /* to be raised whenever the same inputs give other tokens or the store has another layout */

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
