#include "core/data/dataset.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/data/cache.h"
#include "core/data/reader.h"

enum {
    CHUNK_SAMPLES = 16,  /* what a thread tokenises at a time */
    ROUND_CHUNKS = 64,   /* chunks between two appends to the data set: bounds the memory beside it */
    PROGRESS_FROM = 2000 /* samples of a file that are worth a progress line */
};

/* The tokens of up to CHUNK_SAMPLES samples, by one thread. */
typedef struct chunk {
    gr_ids ids;
    uint8_t *target; /* [ids.n] */
    int64_t target_capacity, n, len[CHUNK_SAMPLES];
    int64_t n_truncated, n_dropped, n_empty;
    graft_status st;
    graft_error err;
} chunk;

typedef struct job {
    const gr_reader *r;
    const gr_data_options *o;
    const gr_tokenizer *t;
    const gr_chat *chat; /* NULL: raw text only */
    int64_t first, n;    /* samples of this round */
    chunk chunks[ROUND_CHUNKS];
} job;

/* A data set that grows. */
typedef struct builder {
    gr_dataset *d;
    int64_t n_ids, id_capacity, target_capacity, offset_capacity, source_capacity;
} builder;

/* ---- one sample ---- */

/* Whether any answer that counts says something: an end-of-turn token alone is nothing to learn. */
static bool has_answer(const gr_message *messages, int64_t n, gr_loss_on loss_on) {
    for (int64_t i = n - 1; i >= 0; i--) {
        const gr_message *m = &messages[i];
        if (strcmp(m->role, "assistant") || m->no_loss) continue;
        if (m->content[strspn(m->content, " \t\r\n")]) return true;
        if (loss_on == GR_LOSS_LAST) return false;
    }
    return loss_on == GR_LOSS_ALL;
}

/* Raw text: BOS where the tokenizer wants one, its tokens, EOS; everything after the first id is a target. */
static graft_status encode_text(const job *j, const char *text, gr_encoded *e, graft_error *err) {
    const gr_tokenizer_info *info = gr_tokenizer_get_info(j->t);
    bool parse_special = !j->chat || !strcmp(gr_chat_name(j->chat), "none");
    if (info->add_bos && info->bos >= 0 && !gr_ids_push(&e->ids, info->bos))
        return gr_fail_memory(err, "tokens");
    graft_status st = gr_tokenizer_encode(j->t, text, (int64_t)strlen(text), parse_special, &e->ids, err);
    if (st != GRAFT_OK) return st;
    if (info->eos >= 0 && !gr_ids_push(&e->ids, info->eos)) return gr_fail_memory(err, "tokens");
    if (!gr_grow(&e->target, &e->target_capacity, e->ids.n + 1, 1)) return gr_fail_memory(err, "tokens");
    memset(e->target, 1, (size_t)e->ids.n);
    e->answer_start = GR_MIN(1, e->ids.n);
    return GRAFT_OK;
}

/* Which ids [*start, *end) stay so that at most max are left. What follows the last target teaches nothing
 * and goes first; then the prompt's left end, of which one id stays to predict the answer; then the answer's
 * right end. take() puts BOS in the place of the first id left where the prompt had one. */
static void keep_answer(const gr_encoded *e, int64_t max, int64_t *start, int64_t *end) {
    while (*end > max && !e->target[*end - 1]) --*end;
    *start = GR_MAX(0, GR_MIN(*end - max, e->answer_start - 1));
    *end = GR_MIN(*end, *start + max);
}

/* The sample's ids, cut to max_length, to the chunk; dropped when nothing is left to learn. */
static graft_status take(const job *j, int64_t i, chunk *c, const gr_encoded *e) {
    int64_t n = e->ids.n, start = 0, end = n, max = j->o->max_length, n_targets = 0;
    char where[400];
    bool too_long = n > max && !j->o->pretrain;
    if (too_long) {
        switch (j->o->truncation) {
        case GR_TRUNCATE_KEEP_ANSWER:
            keep_answer(e, max, &start, &end);
            break;
        case GR_TRUNCATE_RIGHT:
            end = max;
            break;
        case GR_TRUNCATE_DROP:
            end = 0;
            break;
        case GR_TRUNCATE_ERROR:
            gr_reader_where(j->r, i, where, sizeof where);
            return gr_fail(&c->err, GRAFT_BAD_INPUT,
                           "%s: %lld tokens, max_length is %lld; raise it or set truncation: keep-answer",
                           where, (long long)n, (long long)max);
        }
    }
    for (int64_t k = start + 1; k < end; k++) n_targets += e->target[k]; /* no row predicts the first id */
    if (n_targets == 0) {
        c->n_dropped += too_long;
        c->n_empty += !too_long;
        return GRAFT_OK;
    }
    c->n_truncated += too_long;
    int64_t len = end - start, need = c->ids.n + len;
    if (!gr_grow(&c->ids.data, &c->ids.capacity, need, sizeof *c->ids.data) ||
        !gr_grow(&c->target, &c->target_capacity, need, 1))
        return gr_fail_memory(&c->err, "tokens");
    memcpy(c->ids.data + c->ids.n, e->ids.data + start, (size_t)len * sizeof *c->ids.data);
    memcpy(c->target + c->ids.n, e->target + start, (size_t)len);
    c->target[c->ids.n] = 0;
    const gr_tokenizer_info *info = gr_tokenizer_get_info(j->t);
    if (start > 0 && len > 1 && !c->target[c->ids.n + 1] && info->add_bos && e->ids.data[0] == info->bos)
        c->ids.data[c->ids.n] = info->bos; /* models that know BOS as the first id go astray without it */
    c->ids.n = need;
    c->len[c->n++] = len;
    return GRAFT_OK;
}

static graft_status encode_sample(const job *j, int64_t i, gr_sample *s, gr_encoded *e, chunk *c) {
    char where[400];
    graft_status st = gr_reader_parse(j->r, i, s, &c->err);
    if (st != GRAFT_OK) return st;
    e->ids.n = e->answer_start = 0;
    gr_reader_where(j->r, i, where, sizeof where);
    if (s->text) {
        if (!s->text[0]) return c->n_empty++, GRAFT_OK;
        st = encode_text(j, s->text, e, &c->err);
    } else if (!j->chat) {
        return gr_fail(&c->err, GRAFT_BAD_USAGE, "%s: messages need a template, none was given", where);
    } else {
        gr_loss_on loss_on = j->o->pretrain ? GR_LOSS_ALL : j->o->loss_on;
        if (!has_answer(s->messages, s->n_messages, loss_on)) return c->n_empty++, GRAFT_OK;
        st = gr_chat_encode(j->chat, s->messages, s->n_messages, false, loss_on, e, &c->err);
    }
    return st == GRAFT_OK ? take(j, i, c, e) : gr_fail_context(&c->err, st, "%s", where);
}

static void encode_chunk(void *context, int64_t index, int worker) {
    (void)worker;
    job *j = context;
    chunk *c = &j->chunks[index];
    gr_sample sample = {0};
    gr_encoded encoded = {0};
    c->ids.n = c->n = c->n_truncated = c->n_dropped = c->n_empty = 0;
    c->st = GRAFT_OK;
    int64_t first = j->first + index * CHUNK_SAMPLES, end = GR_MIN(first + CHUNK_SAMPLES, j->first + j->n);
    for (int64_t i = first; i < end && c->st == GRAFT_OK; i++)
        c->st = encode_sample(j, i, &sample, &encoded, c);
    gr_sample_release(&sample);
    gr_encoded_release(&encoded);
}

/* ---- the data set ---- */

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

static graft_status append_ids(builder *b, const int32_t *ids, const uint8_t *target, int64_t n,
                               graft_error *err) {
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

/* Texts one after the other, cut into blocks of max_length. */
static graft_status append_stream(builder *b, const chunk *c, int source, int64_t max_length,
                                  graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int64_t at = 0; at < c->ids.n;) {
        int64_t n = GR_MIN(c->ids.n - at, max_length - open_ids(b));
        GR_TRY(append_ids(b, c->ids.data + at, c->target + at, n, err));
        memset(b->d->target + b->n_ids - n, 1, (size_t)n);
        b->d->target[b->n_ids - open_ids(b)] = 0;
        if (open_ids(b) == max_length) GR_TRY(close_sample(b, source, err));
        at += n;
    }
done:
    return st;
}

static graft_status append_chunk(builder *b, const job *j, const chunk *c, int source, graft_error *err) {
    graft_status st = GRAFT_OK;
    if (c->st != GRAFT_OK) {
        if (err) *err = c->err;
        return c->st;
    }
    b->d->n_truncated += c->n_truncated;
    b->d->n_dropped += c->n_dropped;
    b->d->n_empty += c->n_empty;
    if (j->o->pretrain) return append_stream(b, c, source, j->o->max_length, err);
    for (int64_t i = 0, at = 0; i < c->n; at += c->len[i++]) {
        GR_TRY(append_ids(b, c->ids.data + at, c->target + at, c->len[i], err));
        GR_TRY(close_sample(b, source, err));
    }
done:
    return st;
}

/* What the reader has to say, to the data set: a load from the cache says it again. */
static graft_status keep_remarks(gr_dataset *d, const gr_reader *r, int source, graft_error *err) {
    gr_str told = {0}, all = {0};
    gr_reader_tell(r, &told);
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

static graft_status add_source(builder *b, job *j, int source, struct gr_threads *threads, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_reader *r = NULL;
    gr_progress progress;
    GR_TRY(gr_reader_open(&r, &j->o->sources[source], err));
    if (!gr_form_has_answers(r->format))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: prompts without answers: nothing to learn from", r->path));
    j->r = r;
    int64_t n = gr_reader_count(r);
    if (n >= PROGRESS_FROM) gr_progress_start(&progress, "tokenising", n);
    for (j->first = 0; j->first < n && st == GRAFT_OK; j->first += j->n) {
        j->n = GR_MIN(n - j->first, CHUNK_SAMPLES * ROUND_CHUNKS);
        int64_t n_chunks = (j->n + CHUNK_SAMPLES - 1) / CHUNK_SAMPLES;
        if (threads)
            gr_threads_run(threads, n_chunks, encode_chunk, j);
        else
            for (int64_t k = 0; k < n_chunks; k++) encode_chunk(j, k, 0);
        for (int64_t k = 0; k < n_chunks && st == GRAFT_OK; k++)
            st = append_chunk(b, j, &j->chunks[k], source, err);
        if (n >= PROGRESS_FROM) gr_progress_update(&progress, j->first + j->n, "samples");
    }
    if (n >= PROGRESS_FROM) gr_progress_end(&progress);
    if (st == GRAFT_OK) st = keep_remarks(b->d, r, source, err);
    if (st == GRAFT_OK && open_ids(b) > 1)
        GR_TRY(close_sample(b, source, err)); /* the last, shorter block */
    else
        b->n_ids -= open_ids(b);
done:
    gr_reader_close(r);
    return st;
}

static graft_status build(gr_dataset *d, const gr_data_options *o, const gr_tokenizer *t, const gr_chat *chat,
                          struct gr_threads *threads, graft_error *err) {
    graft_status st = GRAFT_OK;
    builder b = {.d = d};
    job *j = gr_calloc(1, sizeof *j);
    if (!j) return gr_fail_memory(err, "data set");
    j->o = o, j->t = t, j->chat = chat;
    for (int i = 0; i < o->n_sources; i++) GR_TRY(add_source(&b, j, i, threads, err));
    if (d->n_samples == 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                       "%s%s: nothing to learn from: %lld samples without an answer, %lld too long",
                       o->sources[0].path, o->n_sources > 1 ? " and the other sources" : "",
                       (long long)d->n_empty, (long long)d->n_dropped));
    for (int64_t i = 0; i < b.n_ids; i++) d->n_targets += d->target[i];
done:
    for (int k = 0; k < ROUND_CHUNKS; k++) {
        gr_ids_release(&j->chunks[k].ids);
        free(j->chunks[k].target);
    }
    free(j);
    return st;
}

static graft_status check_options(const gr_data_options *o, graft_error *err) {
    if (o->n_sources < 1) return gr_fail(err, GRAFT_BAD_USAGE, "data: no source given");
    if (o->max_length < 2 || o->max_length > INT32_MAX)
        return gr_fail(err, GRAFT_BAD_USAGE, "data.max_length: is %lld, expected at least 2",
                       (long long)o->max_length);
    for (int i = 0; i < o->n_sources; i++) {
        const gr_data_source *s = &o->sources[i];
        if (!(s->weight > 0 && s->weight <= 1000))
            return gr_fail(err, GRAFT_BAD_USAGE, "%s: weight is %g, expected more than 0 and at most 1000",
                           s->path, s->weight);
        if (s->limit < 0)
            return gr_fail(err, GRAFT_BAD_USAGE, "%s: limit is %lld, expected 0 (all) or more", s->path,
                           (long long)s->limit);
    }
    return GRAFT_OK;
}

static void report(const gr_dataset *d, const gr_data_options *o) {
    if (d->n_truncated || d->n_dropped)
        gr_warn("data: max_length %lld: %lld samples truncated, %lld dropped", (long long)o->max_length,
                (long long)d->n_truncated, (long long)d->n_dropped);
    if (d->n_empty) gr_warn("data: %lld samples without an answer to learn dropped", (long long)d->n_empty);
    for (const char *line = d->remarks, *end; line && (end = strchr(line, '\n')); line = end + 1) {
        char *text;
        long source = strtol(line, &text, 10);
        if (*text == '\t' && source >= 0 && source < o->n_sources)
            gr_warn("data: %s: %.*s", o->sources[source].path, (int)(end - text - 1), text + 1);
    }
}

graft_status gr_dataset_load(gr_dataset **out, const gr_data_options *o, const gr_tokenizer *t,
                             const gr_chat *chat, struct gr_threads *threads, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_cache_key key;
    gr_dataset *d = NULL;
    *out = NULL;
    GR_TRY(check_options(o, err));
    GR_TRY(gr_cache_make_key(&key, o, t, chat, err));
    if (o->cache_dir) d = gr_cache_load(o, &key, gr_tokenizer_get_info(t)->n_vocab);
    if (d) {
        d->from_cache = true;
    } else {
        d = gr_calloc(1, sizeof *d);
        if (!d) GR_TRY(gr_fail_memory(err, "data set"));
        GR_TRY(build(d, o, t, chat, threads, err));
        if (o->cache_dir) gr_cache_save(o, &key, d);
    }
    d->n_sources = o->n_sources;
    d->key = key.full;
    d->weight = gr_calloc(o->n_sources, sizeof *d->weight);
    if (!d->weight) GR_TRY(gr_fail_memory(err, "data set"));
    for (int i = 0; i < o->n_sources; i++) d->weight[i] = o->sources[i].weight;
    report(d, o);
    if (o->n_rows > 0) GR_TRY(gr_tokenizer_check_rows(t, d->ids, d->offset[d->n_samples], o->n_rows, o->sources[0].path, err));
    *out = d;
    d = NULL;
done:
    gr_dataset_free(d);
    return st;
}

void gr_dataset_free(gr_dataset *d) {
    if (!d) return;
    free(d->offset);
    free(d->ids);
    free(d->target);
    free(d->source);
    free(d->weight);
    free(d->remarks);
    free(d);
}
