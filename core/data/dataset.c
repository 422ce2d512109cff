#include "core/data/dataset.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/data/cache.h"
#include "core/data/samples.h"
#include "core/data/store.h"

enum {
    PROGRESS_FROM = 2000,   /* samples of a file that are worth a progress line */
    SHARD_IDS = 16 << 20,   /* ids after which a store gets a new file; blocks are never cut */
    ROUND_BYTES = 64 << 20, /* of the file that are tokenised between two appends, when samples are long */
    LARGE_BYTES = 256 << 20 /* of tokens: worth a word when they are kept in memory */
};

/* A data set that grows; with a store its blocks leave for there when they are many. */
typedef struct builder {
    gr_dataset *d;
    int64_t n_ids, id_capacity, target_capacity, offset_capacity, source_capacity;
    gr_store_writer *store; /* NULL: all stays in memory */
    int64_t shard_ids;
} builder;

static graft_status close_sample(builder *b, int source, graft_error *err) {
    gr_dataset *d = b->d;
    if (!gr_grow(&d->offset, &b->offset_capacity, d->n_samples + 2, sizeof *d->offset) ||
        !gr_grow(&d->source, &b->source_capacity, d->n_samples + 1, sizeof *d->source))
        return gr_fail_memory(err, "data set");
    if (d->n_samples == 0) d->offset[0] = 0;
    d->source[d->n_samples++] = source;
    d->offset[d->n_samples] = b->n_ids;
    return GRAFT_OK;
}

static graft_status append_ids(builder *b, const int32_t *ids, const uint8_t *target, int64_t n, graft_error *err) {
    gr_dataset *d = b->d;
    if (!gr_grow(&d->ids, &b->id_capacity, b->n_ids + n, sizeof *d->ids) ||
        !gr_grow(&d->target, &b->target_capacity, b->n_ids + n, 1))
        return gr_fail_memory(err, "data set");
    memcpy(d->ids + b->n_ids, ids, (size_t)n * sizeof *ids);
    memcpy(d->target + b->n_ids, target, (size_t)n);
    b->n_ids += n;
    return GRAFT_OK;
}

static int64_t open_ids(const builder *b) { /* since the last closed sample */
    return b->n_ids - (b->d->n_samples ? b->d->offset[b->d->n_samples] : 0);
}

/* The last n ids belong to a stream: where documents begin is kept for a store, and where attention stops there. */
static void mark_stream(builder *b, int64_t n, gr_block_attention attention) {
    uint8_t *target = b->d->target + b->n_ids - n;
    for (int64_t k = 0; k < n && !b->store && attention == GR_ATTENTION_ACROSS; k++)
        if (target[k] == GR_TARGET_START) target[k] = GR_TARGET_LEARNED;
    b->d->target[b->n_ids - open_ids(b)] = GR_TARGET_NONE; /* the block's first id */
}

/* Texts one after the other, cut into blocks of max_length. */
static graft_status append_stream(builder *b, const gr_chunk *c, int source, const gr_data_options *o, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int64_t at = 0; at < c->ids.n;) {
        int64_t n = GR_MIN(c->ids.n - at, o->max_length - open_ids(b));
        GR_TRY(append_ids(b, c->ids.data + at, c->target + at, n, err));
        mark_stream(b, n, o->attention);
        if (open_ids(b) == o->max_length) GR_TRY(close_sample(b, source, err));
        at += n;
    }
done:
    return st;
}

static graft_status append_chunk(builder *b, const gr_encoding *j, const gr_chunk *c, int source, graft_error *err) {
    graft_status st = GRAFT_OK;
    if (c->st != GRAFT_OK) {
        if (err) *err = c->err;
        return c->st;
    }
    b->d->lost.truncated += c->lost.truncated;
    b->d->lost.dropped += c->lost.dropped;
    b->d->lost.turns += c->lost.turns;
    b->d->lost.prompt += c->lost.prompt;
    b->d->lost.answer += c->lost.answer;
    b->d->n_empty += c->n_empty;
    if (j->o->pretrain) return append_stream(b, c, source, j->o, err);
    for (int64_t i = 0, at = 0; i < c->n; at += c->len[i++]) {
        GR_TRY(append_ids(b, c->ids.data + at, c->target + at, c->len[i], err));
        GR_TRY(close_sample(b, source, err));
    }
done:
    return st;
}

/* What the reader has to say, to the data set: a load from the cache says it again. */
static graft_status keep_remarks(gr_dataset *d, const gr_tally *tally, int source, graft_error *err) {
    gr_str told = {0}, all = {0};
    gr_tally_tell(tally, &told);
    if (d->remarks) gr_str_puts(&all, d->remarks);
    for (int64_t at = 0, end; at < told.len; at = end) {
        end = (const char *)memchr(told.data + at, '\n', (size_t)(told.len - at)) - told.data + 1;
        gr_str_printf(&all, "%d\t%.*s", source, (int)(end - at), told.data + at);
    }
    bool failed = told.failed || all.failed;
    free(d->remarks);
    d->remarks = !failed && all.len ? gr_str_take(&all) : NULL;
    gr_str_release(&told);
    gr_str_release(&all);
    return failed ? gr_fail_memory(err, "remarks") : GRAFT_OK;
}

/* Samples from j->first on that are tokenised together: bounded in number and in bytes. */
static int64_t round_samples(const gr_encoding *j) {
    int64_t n = 0, bytes = 0, most = GR_MIN(gr_reader_count(j->r) - j->first, GR_CHUNK_SAMPLES * GR_ROUND_CHUNKS);
    while (n < most && bytes < ROUND_BYTES) bytes += j->r->spans[j->first + n++].len;
    return n;
}

/* The whole blocks to the store, once they are many or `all` of the rest is wanted; the open one stays. */
static graft_status flush(builder *b, int64_t next_source, int64_t next, bool all, graft_error *err) {
    gr_dataset *d = b->d;
    int64_t n_open = open_ids(b), n_ids = b->n_ids - n_open;
    if (!b->store || d->n_samples == 0 || (!all && n_ids < b->shard_ids)) return GRAFT_OK;
    const gr_store_part part = {.n_blocks = d->n_samples,
                                .offset = d->offset,
                                .source = d->source,
                                .ids = d->ids,
                                .target = d->target,
                                .n_open = n_open,
                                .next_source = next_source,
                                .next = next,
                                .left = {d->lost, d->n_empty}};
    graft_status st = gr_store_add(b->store, &part, err);
    memmove(d->ids, d->ids + n_ids, (size_t)n_open * sizeof *d->ids);
    memmove(d->target, d->target + n_ids, (size_t)n_open);
    b->n_ids = n_open;
    d->n_samples = 0;
    return st;
}

/* A source on its way: samples of all its files are counted through. */
typedef struct source_walk {
    int source;
    int64_t first;       /* the sample to begin with */
    int64_t done;        /* samples of the files before, a piece of a long document being one */
    int64_t taken;       /* of what a limit counts: there a document is one, whatever its pieces */
    bool quiet;          /* many files: no progress of each */
    gr_data_source file; /* the source, with the path of a file */
    gr_tally tally;      /* of all files */
} source_walk;

/* The samples of a file, from walk->first on. */
static graft_status add_file(builder *b, gr_encoding *j, source_walk *walk, struct gr_threads *threads, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_reader *r = NULL;
    gr_progress progress;
    GR_TRY(gr_reader_open(&r, &walk->file, err));
    if (!gr_form_has_answers(r->format))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: prompts without answers: nothing to learn from", r->path));
    j->r = r;
    int64_t n = gr_reader_count(r);
    bool shown = n >= PROGRESS_FROM && !walk->quiet;
    if (shown) gr_progress_start(&progress, "tokenising", n);
    for (j->first = GR_MAX(0, walk->first - walk->done); j->first < n && st == GRAFT_OK; j->first += j->n) {
        j->n = round_samples(j);
        int64_t n_chunks = (j->n + GR_CHUNK_SAMPLES - 1) / GR_CHUNK_SAMPLES;
        if (threads) gr_threads_run(threads, n_chunks, gr_encode_chunk, j);
        else
            for (int64_t k = 0; k < n_chunks; k++) gr_encode_chunk(j, k, 0);
        for (int64_t k = 0; k < n_chunks && st == GRAFT_OK; k++) st = append_chunk(b, j, &j->chunks[k], walk->source, err);
        if (st == GRAFT_OK) st = flush(b, walk->source, walk->done + j->first + j->n, false, err);
        gr_reader_pass(r, j->first + j->n);
        if (shown) gr_progress_update(&progress, j->first + j->n, "samples");
    }
    if (shown) gr_progress_end(&progress);
    gr_tally_merge(&walk->tally, r->tally);
    walk->done += n;
    walk->taken += r->raw == GR_RAW_DOCUMENT ? 1 : n;
done:
    gr_reader_close(r);
    return st;
}

/* Samples of a source from `first` on; a stream of texts goes on from file to file. */
static graft_status add_source(builder *b, gr_encoding *j, int source, int64_t first, struct gr_threads *threads,
                               graft_error *err) {
    graft_status st = GRAFT_OK;
    const gr_data_source *o = &j->o->sources[source];
    source_walk walk = {.source = source, .first = first, .file = *o};
    char **files = NULL;
    int64_t n_files = 0;
    gr_progress progress;
    gr_tally_init(&walk.tally);
    GR_TRY(gr_source_files(&files, &n_files, o->path, j->o->pretrain, err));
    walk.quiet = n_files > 1;
    if (walk.quiet) gr_progress_start(&progress, "tokenising", n_files);
    for (int64_t i = 0; i < n_files && st == GRAFT_OK && (o->limit == 0 || walk.taken < o->limit); i++) {
        walk.file.path = files[i];
        walk.file.limit = o->limit ? o->limit - walk.taken : 0;
        st = add_file(b, j, &walk, threads, err);
        if (walk.quiet) gr_progress_update(&progress, i + 1, "files");
    }
    if (walk.quiet) gr_progress_end(&progress);
    if (st == GRAFT_OK) st = keep_remarks(b->d, &walk.tally, source, err);
    if (st == GRAFT_OK && open_ids(b) > 1) GR_TRY(close_sample(b, source, err)); /* the last, shorter block */
    else b->n_ids -= open_ids(b);
done:
    gr_source_files_free(files, n_files);
    gr_tally_release(&walk.tally);
    return st;
}

static graft_status nothing_to_learn(const gr_dataset *d, const gr_data_options *o, graft_error *err) {
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "%s%s: nothing to learn from: %lld samples without an answer, %lld too long for data.max_length %lld",
                   o->sources[0].path, o->n_sources > 1 ? " and the other sources" : "", (long long)d->n_empty,
                   (long long)d->lost.dropped, (long long)o->max_length);
}

static graft_status build(gr_dataset *d, const gr_data_options *o, const gr_tokenizer *t, const gr_chat *chat,
                          struct gr_threads *threads, graft_error *err) {
    graft_status st = GRAFT_OK;
    builder b = {.d = d};
    gr_encoding *j = gr_encoding_new(o, t, chat);
    if (!j) return gr_fail_memory(err, "data set");
    for (int i = 0; i < o->n_sources; i++) GR_TRY(add_source(&b, j, i, 0, threads, err));
    if (d->n_samples == 0) GR_TRY(nothing_to_learn(d, o, err));
    for (int64_t i = 0; i < d->n_samples; i++) d->n_targets += gr_dataset_targets(d, i);
done:
    gr_encoding_free(j);
    return st;
}

/* ---- a store ---- */

/* The ids that a part left open, as the builder's. */
static graft_status begin_from(builder *b, const gr_store_part *part, graft_error *err) {
    b->d->lost = part->left.lost;
    b->d->n_empty = part->left.n_empty;
    return part->n_open ? append_ids(b, part->ids, part->target, part->n_open, err) : GRAFT_OK;
}

static graft_status remark_resumed(gr_dataset *d, graft_error *err) {
    d->remarks = gr_format("0\ttokenised in several goes: what was left aside in earlier ones is not counted here\n");
    return d->remarks ? GRAFT_OK : gr_fail_memory(err, "remarks");
}

/* Tokenise into the store, from where an earlier try ended. FAILED: it cannot be written. */
static graft_status make_store(const char *folder, const gr_data_options *o, const gr_tokenizer *t, const gr_chat *chat,
                               struct gr_threads *threads, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_store_part part;
    gr_dataset *d = gr_calloc(1, sizeof *d);
    builder b = {.d = d, .shard_ids = o->shard_ids > 0 ? o->shard_ids : SHARD_IDS};
    gr_encoding *j = gr_encoding_new(o, t, chat);
    if (!d || !j) GR_TRY(gr_fail_memory(err, "data set"));
    const gr_store_limits most = {o->n_sources, gr_tokenizer_get_info(t)->n_vocab, o->max_length};
    GR_TRY(gr_store_begin(&b.store, folder, &most, &part, err));
    GR_TRY(begin_from(&b, &part, err));
    if (part.next || part.next_source) {
        gr_note("%s: tokenising goes on at sample %lld of source %lld", folder, (long long)part.next + 1,
                (long long)part.next_source + 1);
        GR_TRY(remark_resumed(d, err));
    }
    int64_t first = part.next;
    for (int64_t i = part.next_source; i < o->n_sources; i++, first = 0) GR_TRY(add_source(&b, j, (int)i, first, threads, err));
    GR_TRY(flush(&b, o->n_sources, 0, true, err));
    if (gr_store_writer_empty(b.store)) GR_TRY(nothing_to_learn(d, o, err));
    GR_TRY(gr_store_end(b.store, &(gr_store_left){d->lost, d->n_empty}, d->remarks, err));
done:
    gr_store_writer_free(b.store);
    gr_encoding_free(j);
    gr_dataset_free(d);
    return st;
}

/* What the set is, of a store, which needs no sources itself. */
static graft_status take_store(gr_dataset *d, graft_error *err) {
    gr_store *s = d->store;
    d->n_samples = s->n_blocks;
    d->lost = s->left.lost;
    d->n_empty = s->left.n_empty;
    d->source = s->source, s->source = NULL;
    d->offset = gr_calloc(s->n_blocks + 1, sizeof *d->offset);
    d->block = gr_calloc(s->n_blocks, sizeof *d->block);
    d->remarks = s->remarks && *s->remarks ? gr_strdup(s->remarks) : NULL;
    if (!d->offset || !d->block) return gr_fail_memory(err, "data set");
    memcpy(d->offset, s->offset, (size_t)(s->n_blocks + 1) * sizeof *d->offset);
    for (int64_t i = 0; i < s->n_blocks; i++) {
        d->block[i] = i;
        d->n_targets += gr_dataset_targets(d, i);
    }
    return GRAFT_OK;
}

/* The store of these samples, which is made where there is none; d->store stays NULL where it cannot be written. */
static graft_status open_store(gr_dataset *d, const gr_data_options *o, const gr_cache_key *key, const gr_tokenizer *t,
                               const gr_chat *chat, struct gr_threads *threads, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t n_vocab = gr_tokenizer_get_info(t)->n_vocab;
    char *folder = gr_format("%s/%s.tokens", o->cache_dir, key->hex);
    if (!folder) return gr_fail_memory(err, "token cache");
    GR_TRY(gr_store_open(&d->store, folder, o->n_sources, n_vocab, err));
    d->from_cache = d->store != NULL;
    if (!d->store) {
        st = make_store(folder, o, t, chat, threads, err);
        if (st == GRAFT_FAILED) { /* the disk: it costs memory, never a run */
            gr_warn("token cache not written, all tokens are kept in memory: %s", err ? err->msg : "");
            st = GRAFT_OK;
        } else if (st == GRAFT_OK) {
            st = gr_store_open(&d->store, folder, o->n_sources, n_vocab, err);
        }
    }
    if (st == GRAFT_OK && d->store) st = take_store(d, err);
done:
    free(folder);
    return st;
}

static graft_status check_options(const gr_data_options *o, graft_error *err) {
    if (o->n_sources < 1) return gr_fail(err, GRAFT_BAD_USAGE, "data: no source given");
    if (o->max_length < 2 || o->max_length > INT32_MAX)
        return gr_fail(err, GRAFT_BAD_USAGE, "data.max_length: is %lld, expected at least 2", (long long)o->max_length);
    for (int i = 0; i < o->n_sources; i++) {
        const gr_data_source *s = &o->sources[i];
        if (!(s->weight > 0 && s->weight <= 1000))
            return gr_fail(err, GRAFT_BAD_USAGE, "%s: weight is %g, expected more than 0 and at most 1000", s->path, s->weight);
        if (s->limit < 0)
            return gr_fail(err, GRAFT_BAD_USAGE, "%s: limit is %lld, expected 0 (all) or more", s->path, (long long)s->limit);
        if (!(s->share >= 0 && s->share < 1e18) || (s->share > 0) != (o->sources[0].share > 0) || (s->share > 0 && !o->pretrain))
            return gr_fail(err, GRAFT_BAD_USAGE, "%s: share is %g: all sources of a pretrain set have one above 0, or none",
                           s->path, s->share);
    }
    return GRAFT_OK;
}

static void report(const gr_dataset *d, const gr_data_options *o, bool no_eos) {
    const gr_losses *l = &d->lost;
    if (l->truncated || l->dropped)
        gr_warn("data: max_length %lld: %lld samples truncated (%lld lost old turns, %lld text of the prompt, %lld the answer's "
                "end), %lld dropped",
                (long long)o->max_length, (long long)l->truncated, (long long)l->turns, (long long)l->prompt, (long long)l->answer,
                (long long)l->dropped);
    if (o->pretrain && no_eos) gr_warn("data: the tokenizer has no EOS token: documents are joined without one");
    if (d->n_empty) gr_warn("data: %lld samples without an answer to learn dropped", (long long)d->n_empty);
    for (const char *line = d->remarks, *end; line && (end = strchr(line, '\n')); line = end + 1) {
        char *text;
        long source = strtol(line, &text, 10);
        if (*text == '\t' && source >= 0 && source < o->n_sources)
            gr_warn("data: %s: %.*s", o->sources[source].path, (int)(end - text - 1), text + 1);
    }
}

/* From the cache, or tokenised now. */
static graft_status load_tokens(gr_dataset **out, const gr_data_options *o, const gr_cache_key *key, const gr_tokenizer *t,
                                const gr_chat *chat, struct gr_threads *threads, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_dataset *d = gr_calloc(1, sizeof *d);
    if (!d) return gr_fail_memory(err, "data set");
    d->attention = o->pretrain ? o->attention : GR_ATTENTION_DOCUMENT;
    if (o->cache_dir) GR_TRY(open_store(d, o, key, t, chat, threads, err));
    if (!d->store) GR_TRY(build(d, o, t, chat, threads, err));
    if (!d->store && gr_dataset_bytes(d) > LARGE_BYTES)
        gr_note("data: %.0f MiB of tokens are kept in memory; with a data.cache they would be read from disk",
                (double)gr_dataset_bytes(d) / (1 << 20));
    *out = d;
    d = NULL;
done:
    gr_dataset_free(d);
    return st;
}

/* Weights and shares. A mix draws whole blocks. */
static graft_status take_proportions(gr_dataset *d, const gr_data_options *o, graft_error *err) {
    d->weight = gr_calloc(o->n_sources, sizeof *d->weight);
    d->share = o->sources[0].share > 0 ? gr_calloc(o->n_sources, sizeof *d->share) : NULL;
    if (!d->weight || (o->sources[0].share > 0 && !d->share)) return gr_fail_memory(err, "data set");
    for (int i = 0; i < o->n_sources; i++) {
        d->weight[i] = o->sources[i].weight;
        if (d->share) d->share[i] = o->sources[i].share;
    }
    return GRAFT_OK;
}

graft_status gr_dataset_load(gr_dataset **out, const gr_data_options *o, const gr_tokenizer *t, const gr_chat *chat,
                             struct gr_threads *threads, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_cache_key key;
    gr_dataset *d = NULL;
    *out = NULL;
    GR_TRY(check_options(o, err));
    GR_TRY(gr_cache_make_key(&key, o, t, chat, err));
    GR_TRY(load_tokens(&d, o, &key, t, chat, threads, err));
    d->n_sources = o->n_sources;
    d->key = key.full;
    GR_TRY(take_proportions(d, o, err));
    report(d, o, gr_tokenizer_get_info(t)->eos < 0);
    const int32_t *ids = d->store ? &d->store->max_id : d->ids;
    int64_t n_ids = d->store ? 1 : d->offset[d->n_samples];
    if (o->n_rows > 0) GR_TRY(gr_tokenizer_check_rows(t, ids, n_ids, o->n_rows, o->sources[0].path, err));
    *out = d;
    d = NULL;
done:
    gr_dataset_free(d);
    return st;
}
