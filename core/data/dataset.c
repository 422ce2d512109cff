#include "core/data/dataset.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/data/cache.h"
#include "core/data/fit.h"
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
    int64_t *len;    /* [n] */
    int64_t target_capacity, len_capacity, n, n_empty;
    gr_losses lost;
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

static gr_loss_on loss_on(const job *j) { return j->o->pretrain ? GR_LOSS_ALL : j->o->loss_on; }

/* Whether any answer that counts says something: an end-of-turn token alone is nothing to learn. */
static bool has_answer(const gr_message *messages, int64_t n, gr_loss_on on) {
    for (int64_t i = n - 1; i >= 0; i--) {
        const gr_message *m = &messages[i];
        if (strcmp(m->role, "assistant") || m->no_loss) continue;
        if (m->content[strspn(m->content, " \t\r\n")] || m->fields) return true;
        if (on == GR_LOSS_LAST) return false;
    }
    return on == GR_LOSS_ALL;
}

/* Does text end, but for white space, with the token's own text? */
static bool ends_with_token(const gr_tokenizer *t, int32_t id, const char *text, int64_t n) {
    int64_t len = 0;
    const char *piece = id < 0 ? NULL : gr_tokenizer_piece(t, id, &len, NULL, NULL);
    while (n > 0 && strchr(" \t\r\n", text[n - 1])) n--;
    return piece && len > 0 && n >= len && memcmp(text + n - len, piece, (size_t)len) == 0;
}

static bool starts_with_token(const gr_tokenizer *t, int32_t id, const char *text, int64_t n) {
    int64_t len = 0;
    const char *piece = id < 0 ? NULL : gr_tokenizer_piece(t, id, &len, NULL, NULL);
    return piece && len > 0 && n >= len && memcmp(text, piece, (size_t)len) == 0;
}

static bool has_control(const gr_tokenizer *t, const gr_ids *ids, int64_t from) {
    gr_piece_type type;
    for (int64_t i = from; i < ids->n; i++) {
        gr_tokenizer_piece(t, ids->data[i], NULL, NULL, &type);
        if (type == GR_PIECE_CONTROL) return true;
    }
    return false;
}

/* Raw text: BOS where the tokenizer wants one, its tokens (control tokens in it are ids, as HF tokenizers have them), EOS where the
 * text has no end token; everything after the first id is a target. */
static graft_status encode_text(const job *j, const char *text, gr_encoded *e, graft_error *err) {
    const gr_tokenizer_info *info = gr_tokenizer_get_info(j->t);
    int64_t n = (int64_t)strlen(text), first;
    e->ids.n = e->n_sequences = 0;
    if (info->add_bos && info->bos >= 0 && !starts_with_token(j->t, info->bos, text, n) && !gr_ids_push(&e->ids, info->bos))
        return gr_fail_memory(err, "tokens");
    first = e->ids.n;
    graft_status st = gr_tokenizer_encode(j->t, text, n, true, &e->ids, err);
    if (st != GRAFT_OK) return st;
    if (has_control(j->t, &e->ids, first)) gr_tally_add(j->r->tally, GR_REMARK_CONTROL_TEXT, NULL);
    bool ended =
        ends_with_token(j->t, info->eos, text, n) || (j->chat && ends_with_token(j->t, gr_chat_end_of_turn(j->chat), text, n));
    if (info->eos >= 0 && !ended && !gr_ids_push(&e->ids, info->eos)) return gr_fail_memory(err, "tokens");
    if (!gr_grow(&e->target, &e->target_capacity, e->ids.n + 1, 1) || !gr_grow(&e->end, &e->end_capacity, 1, sizeof *e->end))
        return gr_fail_memory(err, "tokens");
    memset(e->target, 1, (size_t)e->ids.n);
    e->end[e->n_sequences++] = e->ids.n;
    return GRAFT_OK;
}

/* Ids [start, end) of e to the chunk as a sample; nothing when they hold nothing to learn. */
static graft_status put(chunk *c, const gr_encoded *e, int64_t start, int64_t end, bool *learned) {
    int64_t len = end - start, need = c->ids.n + len, n_targets = 0;
    for (int64_t k = start + 1; k < end; k++) n_targets += e->target[k]; /* no row predicts the first id */
    *learned = n_targets > 0;
    if (n_targets == 0) return GRAFT_OK;
    if (!gr_grow(&c->ids.data, &c->ids.capacity, need, sizeof *c->ids.data) || !gr_grow(&c->target, &c->target_capacity, need, 1) ||
        !gr_grow(&c->len, &c->len_capacity, c->n + 1, sizeof *c->len))
        return gr_fail_memory(&c->err, "tokens");
    memcpy(c->ids.data + c->ids.n, e->ids.data + start, (size_t)len * sizeof *c->ids.data);
    memcpy(c->target + c->ids.n, e->target + start, (size_t)len);
    c->target[c->ids.n] = 0;
    c->ids.n = need;
    c->len[c->n++] = len;
    return GRAFT_OK;
}

/* Sequence `which` of e, longer than max_length, to the chunk as truncation says. x: its conversation; NULL: raw text. */
static graft_status take_long(const job *j, int64_t i, chunk *c, const gr_encoded *e, int64_t which, const gr_conversation *x,
                              gr_encoded *shorter) {
    graft_status st = GRAFT_OK;
    char where[400];
    int64_t start = which ? e->end[which - 1] : 0, end = e->end[which], max = j->o->max_length, kept;
    bool learned = false;
    gr_fit fit = {.answer = true};
    switch (j->o->truncation) {
    case GR_TRUNCATE_KEEP_ANSWER:
        kept = gr_fit_end(e, start, end);
        if (kept - start <= max || !x) { /* what follows the last answer is all that goes; of a raw text, its right end */
            fit.answer = kept - start > max;
            GR_TRY(put(c, e, start, GR_MIN(kept, start + max), &learned));
            break;
        }
        GR_TRY(gr_fit_sequence(&(gr_fit_form){j->chat, j->t, loss_on(j), max}, x, e, which, shorter, &fit, &c->err));
        if (!fit.dropped) GR_TRY(put(c, shorter, 0, shorter->ids.n, &learned));
        break;
    case GR_TRUNCATE_RIGHT: GR_TRY(put(c, e, start, start + max, &learned)); break;
    case GR_TRUNCATE_DROP: break;
    case GR_TRUNCATE_ERROR:
        gr_reader_where(j->r, i, where, sizeof where);
        return gr_fail(&c->err, GRAFT_BAD_INPUT, "%s: %lld tokens, max_length is %lld; raise it or set truncation: keep-answer",
                       where, (long long)(end - start), (long long)max);
    }
    c->lost.dropped += !learned;
    c->lost.truncated += learned;
    c->lost.turns += learned && fit.turns;
    c->lost.prompt += learned && fit.prompt;
    c->lost.answer += learned && fit.answer;
done:
    return st;
}

static graft_status take(const job *j, int64_t i, chunk *c, const gr_encoded *e, const gr_conversation *x, gr_encoded *shorter) {
    graft_status st = GRAFT_OK;
    for (int64_t k = 0, start = 0; k < e->n_sequences; start = e->end[k++]) {
        bool learned;
        if (e->end[k] - start > j->o->max_length && !j->o->pretrain) {
            GR_TRY(take_long(j, i, c, e, k, x, shorter));
            continue;
        }
        GR_TRY(put(c, e, start, e->end[k], &learned));
        c->n_empty += !learned;
    }
done:
    return st;
}

static graft_status encode_messages(const job *j, const gr_sample *s, const gr_conversation *x, gr_encoded *e, graft_error *err) {
    if (s->is_pair && gr_chat_is_rendered(j->chat, s->messages[0].content)) {
        gr_tally_add(j->r->tally, GR_REMARK_RENDERED, NULL);
        return gr_chat_encode_rendered(j->chat, s->messages[0].content, s->messages[1].content, e, err);
    }
    graft_status st = gr_chat_encode(j->chat, x, loss_on(j), e, err);
    if (st != GRAFT_OK) return st;
    for (int64_t k = 0; k < e->n_unwritten; k++) gr_tally_add(j->r->tally, GR_REMARK_LEFT_OUT, NULL);
    for (int64_t k = 0; k < e->n_parted; k++) gr_tally_add(j->r->tally, GR_REMARK_PARTED, NULL);
    for (int64_t k = 0; k < e->n_shortened; k++) gr_tally_add(j->r->tally, GR_REMARK_SHORTENED, NULL);
    if (e->n_plain) gr_tally_add(j->r->tally, GR_REMARK_PLAIN, NULL);
    if (e->n_sequences > 1) gr_tally_add(j->r->tally, GR_REMARK_APART, NULL);
    return GRAFT_OK;
}

static graft_status encode_sample(const job *j, int64_t i, gr_sample *s, gr_encoded *e, gr_encoded *shorter, chunk *c) {
    char where[400];
    graft_status st = gr_reader_parse(j->r, i, s, &c->err);
    if (st != GRAFT_OK) return st;
    gr_conversation x = {.messages = s->messages, .n = s->n_messages, .tools = s->tools, .documents = s->documents};
    const gr_conversation *conversation = NULL;
    gr_reader_where(j->r, i, where, sizeof where);
    if (s->text) {
        if (!s->text[0]) return c->n_empty++, GRAFT_OK;
        st = encode_text(j, s->text, e, &c->err);
    } else if (!j->chat) {
        return gr_fail(&c->err, GRAFT_BAD_USAGE, "%s: messages need a template, none was given", where);
    } else {
        if (!has_answer(s->messages, s->n_messages, loss_on(j))) return c->n_empty++, GRAFT_OK;
        st = encode_messages(j, s, &x, e, &c->err);
        if (!s->is_pair || !gr_chat_is_rendered(j->chat, s->messages[0].content)) conversation = &x;
    }
    return st == GRAFT_OK ? take(j, i, c, e, conversation, shorter) : gr_fail_context(&c->err, st, "%s", where);
}

static void encode_chunk(void *context, int64_t index, int worker) {
    (void)worker;
    job *j = context;
    chunk *c = &j->chunks[index];
    gr_sample sample = {0};
    gr_encoded encoded = {0}, shorter = {0};
    c->ids.n = c->n = c->n_empty = 0;
    c->lost = (gr_losses){0};
    c->st = GRAFT_OK;
    int64_t first = j->first + index * CHUNK_SAMPLES, end = GR_MIN(first + CHUNK_SAMPLES, j->first + j->n);
    for (int64_t i = first; i < end && c->st == GRAFT_OK; i++) c->st = encode_sample(j, i, &sample, &encoded, &shorter, c);
    gr_sample_release(&sample);
    gr_encoded_release(&encoded);
    gr_encoded_release(&shorter);
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

/* Texts one after the other, cut into blocks of max_length. */
static graft_status append_stream(builder *b, const chunk *c, int source, int64_t max_length, graft_error *err) {
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
    b->d->lost.truncated += c->lost.truncated;
    b->d->lost.dropped += c->lost.dropped;
    b->d->lost.turns += c->lost.turns;
    b->d->lost.prompt += c->lost.prompt;
    b->d->lost.answer += c->lost.answer;
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
        if (threads) gr_threads_run(threads, n_chunks, encode_chunk, j);
        else
            for (int64_t k = 0; k < n_chunks; k++) encode_chunk(j, k, 0);
        for (int64_t k = 0; k < n_chunks && st == GRAFT_OK; k++) st = append_chunk(b, j, &j->chunks[k], source, err);
        if (n >= PROGRESS_FROM) gr_progress_update(&progress, j->first + j->n, "samples");
    }
    if (n >= PROGRESS_FROM) gr_progress_end(&progress);
    if (st == GRAFT_OK) st = keep_remarks(b->d, r, source, err);
    if (st == GRAFT_OK && open_ids(b) > 1) GR_TRY(close_sample(b, source, err)); /* the last, shorter block */
    else b->n_ids -= open_ids(b);
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
                       "%s%s: nothing to learn from: %lld samples without an answer, %lld too long for data.max_length %lld",
                       o->sources[0].path, o->n_sources > 1 ? " and the other sources" : "", (long long)d->n_empty,
                       (long long)d->lost.dropped, (long long)o->max_length));
    for (int64_t i = 0; i < b.n_ids; i++) d->n_targets += d->target[i];
done:
    for (int k = 0; k < ROUND_CHUNKS; k++) {
        gr_ids_release(&j->chunks[k].ids);
        free(j->chunks[k].target);
        free(j->chunks[k].len);
    }
    free(j);
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
    }
    return GRAFT_OK;
}

static void report(const gr_dataset *d, const gr_data_options *o) {
    const gr_losses *l = &d->lost;
    if (l->truncated || l->dropped)
        gr_warn("data: max_length %lld: %lld samples truncated (%lld lost old turns, %lld text of the prompt, %lld the answer's "
                "end), %lld dropped",
                (long long)o->max_length, (long long)l->truncated, (long long)l->turns, (long long)l->prompt, (long long)l->answer,
                (long long)l->dropped);
    if (d->n_empty) gr_warn("data: %lld samples without an answer to learn dropped", (long long)d->n_empty);
    for (const char *line = d->remarks, *end; line && (end = strchr(line, '\n')); line = end + 1) {
        char *text;
        long source = strtol(line, &text, 10);
        if (*text == '\t' && source >= 0 && source < o->n_sources)
            gr_warn("data: %s: %.*s", o->sources[source].path, (int)(end - text - 1), text + 1);
    }
}

graft_status gr_dataset_load(gr_dataset **out, const gr_data_options *o, const gr_tokenizer *t, const gr_chat *chat,
                             struct gr_threads *threads, graft_error *err) {
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
