#include "core/model/generate.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/base/log.h"
#include "core/model/sample.h"
#include "kernels/philox.h"

enum { MAX_BATCH = 64, PREFILL_TOKENS = 512, CACHE_BYTES = 1 << 30 };

/* One prompt in flight in one slot of the KV cache. */
typedef struct flight {
    int64_t prompt; /* index; -1: the slot is free */
    int64_t fed;    /* prompt tokens already in the cache */
    gr_ids ids;     /* prompt and what was generated */
    gr_decode_stream stream;
    gr_str text;   /* decoded so far */
    int64_t shown; /* bytes of text given to the callback */
    uint64_t key;  /* randomness: of the prompt's ids and its number among equal prompts */
} flight;

typedef struct generator {
    gr_model *m;
    const gr_tokenizer *t;
    const gr_generate_options *o;
    gr_prompts prompts;
    int64_t next;
    gr_completion *results;
    gr_generate_callback *callback;
    void *payload;
    flight *slots;
    int64_t n_slots;
    gr_kv_cache cache;
    gr_decoder *decoder;
    gr_batch batch;
    int32_t *order;   /* [n_slots] slot of each sequence of the batch */
    int32_t *best;    /* [n_slots] what the device chose; NULL: it does not */
    gr_listing *list; /* [n_slots] what it lists; NULL: it does not */
    float *logits;    /* [n_slots,V], with listings [V]; NULL: the device chooses */
    int32_t *scratch; /* [V] */
    bool stopped;     /* by the callback */
} generator;

static uint64_t prompt_key(const gr_ids *prompts, int64_t i) {
    uint64_t hash = XXH3_64bits(prompts[i].data, (size_t)prompts[i].n * sizeof(int32_t)), twins = 0;
    for (int64_t j = 0; j < i; j++)
        twins +=
            prompts[j].n == prompts[i].n && memcmp(prompts[j].data, prompts[i].data, (size_t)prompts[i].n * sizeof(int32_t)) == 0;
    return hash + twins;
}

static graft_status check_prompts(const generator *g, int64_t *longest, graft_error *err) {
    char name[32];
    graft_status st;
    *longest = 0;
    for (int64_t i = 0; i < g->prompts.n; i++) {
        if (g->prompts.ids[i].n == 0) return gr_fail(err, GRAFT_BAD_USAGE, "prompt %lld is empty", (long long)i + 1);
        if (g->prompts.ids[i].n >= g->m->rope_positions)
            return gr_fail(err, GRAFT_BAD_USAGE, "prompt %lld has %lld tokens: the context of the model is %lld", (long long)i + 1,
                           (long long)g->prompts.ids[i].n, (long long)g->m->rope_positions);
        snprintf(name, sizeof name, "prompt %lld", (long long)i + 1);
        st = gr_tokenizer_check_rows(g->t, g->prompts.ids[i].data, g->prompts.ids[i].n, g->m->config.vocab, name, err);
        if (st != GRAFT_OK) return st;
        *longest = GR_MAX(*longest, g->prompts.ids[i].n);
    }
    return GRAFT_OK;
}

/* Slots and their length for n prompts, and the rows of a step. */
static int64_t slots_for(const gr_model *m, int64_t n, int64_t longest, const gr_generate_options *o, int64_t *max_len,
                         int64_t *rows) {
    *max_len = GR_MIN(GR_MIN(o->max_tokens, m->rope_positions) + longest, m->rope_positions);
    int64_t each = GR_MAX(gr_kv_cache_bytes(m, 1, *max_len), 1);
    int64_t slots = GR_MIN(o->batch > 0 ? o->batch : GR_MIN(MAX_BATCH, GR_MAX(1, CACHE_BYTES / each)), n);
    *rows = GR_MAX(GR_MIN(PREFILL_TOKENS, slots * *max_len), slots);
    return slots;
}

/* How the next tokens are chosen. Where the host cannot read logits in place, the device makes greedy choices that nothing else
 * goes into, and lists what most other choices need. */
typedef enum way { BY_LOGITS, BY_DEVICE, BY_LISTING } way;

static way way_of(const gr_model *m, int64_t slots, int64_t rows, const gr_generate_options *o) {
    if (m->device->in_host) return BY_LOGITS;
    if (o->temperature <= 0 && o->repetition_penalty == 1.0f) return BY_DEVICE;
    const gr_decoder_options whole = {.max_tokens = rows};
    return gr_sample_lists(o) && slots <= gr_decoder_head_rows(m, &whole) ? BY_LISTING : BY_LOGITS;
}

static gr_decoder_options decoder_options(const gr_model *m, int64_t slots, int64_t rows, const gr_generate_options *o) {
    return (gr_decoder_options){.max_tokens = rows, .listings = way_of(m, slots, rows, o) == BY_LISTING ? slots : 0};
}

int64_t gr_generate_bytes(const gr_model *m, int64_t n, int64_t longest, const gr_generate_options *o) {
    int64_t max_len, rows, slots = slots_for(m, n, longest, o, &max_len, &rows), V = m->config.vocab;
    const gr_decoder_options options = decoder_options(m, slots, rows, o);
    const way by = way_of(m, slots, rows, o);
    const int64_t host = by == BY_DEVICE    ? slots * (int64_t)sizeof(int32_t)
                         : by == BY_LISTING ? slots * (int64_t)sizeof(gr_listing) + 2 * V * 4
                                            : (slots + 1) * V * 4;
    return gr_kv_cache_bytes(m, slots, max_len) + m->device->footprint(m->device, gr_decoder_plan_bytes(m, &options)) + host;
}

static graft_status prepare(generator *g, graft_error *err) {
    const gr_model_config *c = &g->m->config;
    int64_t longest, max_len, rows;
    graft_status st;
    GR_TRY(check_prompts(g, &longest, err));
    g->n_slots = slots_for(g->m, g->prompts.n, longest, g->o, &max_len, &rows);
    g->slots = gr_calloc(g->n_slots, sizeof *g->slots);
    g->order = gr_calloc(g->n_slots, sizeof *g->order);
    const gr_decoder_options options = decoder_options(g->m, g->n_slots, rows, g->o);
    const way by = way_of(g->m, g->n_slots, rows, g->o);
    if (by == BY_DEVICE) {
        g->best = gr_calloc(g->n_slots, sizeof *g->best);
    } else {
        if (by == BY_LISTING) g->list = gr_calloc(g->n_slots, sizeof *g->list);
        g->logits = gr_calloc((by == BY_LISTING ? 1 : g->n_slots) * c->vocab, sizeof *g->logits);
        g->scratch = gr_calloc(c->vocab, sizeof *g->scratch);
    }
    bool there = by == BY_DEVICE ? g->best != NULL : g->logits && g->scratch && (by == BY_LOGITS || g->list);
    if (!g->slots || !g->order || !there) GR_TRY(gr_fail_memory(err, "generation"));
    for (int64_t s = 0; s < g->n_slots; s++) g->slots[s].prompt = -1;
    GR_TRY(gr_kv_cache_init(&g->cache, g->m, g->n_slots, max_len, err));
    GR_TRY(gr_decoder_new(&g->decoder, g->m, &options, err));
done:
    return st;
}

static graft_status start_flight(generator *g, int64_t slot, graft_error *err) {
    flight *f = &g->slots[slot];
    f->prompt = g->next++;
    f->fed = f->shown = 0;
    f->key = prompt_key(g->prompts.ids, f->prompt);
    f->stream = (gr_decode_stream){0};
    f->ids.n = 0;
    gr_str_clear(&f->text);
    g->cache.len[slot] = 0;
    for (int64_t i = 0; i < g->prompts.ids[f->prompt].n; i++)
        if (!gr_ids_push(&f->ids, g->prompts.ids[f->prompt].data[i])) return gr_fail_memory(err, "prompt");
    return GRAFT_OK;
}

/* Bytes of text that are safe to show: what could be the start of a stop string waits. *cut: where a stop string begins, -1
 * none. */
static int64_t safe_length(const generator *g, const flight *f, int64_t *cut) {
    int64_t safe = f->text.len;
    *cut = -1;
    for (int i = 0; i < g->o->n_stop; i++) {
        int64_t len = (int64_t)strlen(g->o->stop[i]);
        if (len == 0 || !f->text.data) continue;
        const char *hit = memmem(f->text.data, (size_t)f->text.len, g->o->stop[i], (size_t)len);
        if (hit && (*cut < 0 || hit - f->text.data < *cut)) *cut = hit - f->text.data;
        for (int64_t tail = GR_MIN(len - 1, f->text.len); tail > 0; tail--)
            if (memcmp(f->text.data + f->text.len - tail, g->o->stop[i], (size_t)tail) == 0) {
                safe = GR_MIN(safe, f->text.len - tail);
                break;
            }
    }
    return *cut >= 0 ? *cut : safe;
}

static void show(generator *g, flight *f, int64_t until, bool done) {
    int64_t len = GR_MAX(until - f->shown, 0);
    if (!g->callback || (len == 0 && !done)) return;
    const char *text = f->text.data ? f->text.data + f->shown : "";
    if (g->callback(g->payload, f->prompt, text, len, done) != 0) g->stopped = true;
    f->shown += len;
}

static bool is_end(const generator *g, int32_t id) {
    if (g->o->ignore_eos) return false;
    if (id == g->prompts.end_id || id == gr_tokenizer_get_info(g->t)->eos) return true;
    for (int i = 0; i < g->m->config.n_stop_ids; i++)
        if (id == g->m->config.stop_ids[i]) return true;
    return false;
}

static graft_status finish(generator *g, flight *f, int64_t until, bool stopped, graft_error *err) {
    gr_completion *r = &g->results[f->prompt];
    r->n_tokens = f->ids.n - g->prompts.ids[f->prompt].n;
    r->stopped = stopped;
    r->text = gr_strndup(f->text.data ? f->text.data : "", until);
    if (!r->text) return gr_fail_memory(err, "completion");
    show(g, f, until, true);
    f->prompt = -1;
    return GRAFT_OK;
}

/* The next token of sequence i of the batch: the device's choice, or by its listing where that decides, or by its logits. */
static graft_status choose(generator *g, int64_t i, int32_t *id, graft_error *err) {
    const flight *f = &g->slots[g->order[i]];
    const int64_t V = g->m->config.vocab, generated = f->ids.n - g->prompts.ids[f->prompt].n;
    graft_status st = GRAFT_OK;
    if (g->best) {
        *id = g->best[i];
        return GRAFT_OK;
    }
    float random = gr_random_uniform(g->o->seed, GR_PURPOSE_SAMPLE, f->key, (uint64_t)generated);
    float *logits = g->list ? g->logits : g->logits + i * V;
    if (g->list) {
        *id = gr_sample_listed(&g->list[i], V, f->ids.data, f->ids.n, g->o, random, g->scratch);
        if (*id != GR_SAMPLE_UNDECIDED) return GRAFT_OK;
        GR_TRY(gr_decoder_step_row(g->decoder, i, logits, err));
    }
    *id = gr_sample(logits, V, f->ids.data, f->ids.n, g->o, random, g->scratch);
done:
    return st;
}

/* Sequence i of the batch has its next token; ends the flight when that was the last. */
static graft_status advance(generator *g, int64_t i, graft_error *err) {
    flight *f = &g->slots[g->order[i]];
    graft_status st = GRAFT_OK;
    int64_t generated = f->ids.n - g->prompts.ids[f->prompt].n, cut;
    int32_t id;
    GR_TRY(choose(g, i, &id, err));
    if (id < 0) return gr_fail(err, GRAFT_FAILED, "prompt %lld: the model's logits are not finite", (long long)f->prompt + 1);
    if (!gr_ids_push(&f->ids, id)) return gr_fail_memory(err, "completion");
    bool end = is_end(g, id), full = generated + 1 >= g->o->max_tokens || f->ids.n >= g->cache.max_len;
    if (!end) GR_TRY(gr_tokenizer_stream(g->t, &f->stream, id, true, &f->text, err));
    if (end || full) gr_decode_stream_flush(&f->stream, &f->text);
    if (f->text.failed) GR_TRY(gr_fail_memory(err, "completion"));
    int64_t safe = safe_length(g, f, &cut);
    if (cut >= 0) GR_TRY(finish(g, f, cut, true, err));
    else if (end || full) GR_TRY(finish(g, f, f->text.len, end, err));
    else show(g, f, safe, false);
done:
    return st;
}

/* One batch: every sequence in flight gives its new token, or a piece of its prompt as far as there is room. */
static graft_status step(generator *g, graft_error *err) {
    int64_t room = GR_MAX(PREFILL_TOKENS, g->n_slots), n_seqs = 0, waiting = 0;
    graft_status st = GRAFT_OK;
    gr_batch_clear(&g->batch);
    for (int64_t s = 0; s < g->n_slots; s++) {
        if (g->slots[s].prompt < 0 && g->next < g->prompts.n) GR_TRY(start_flight(g, s, err));
        waiting += g->slots[s].prompt >= 0;
    }
    for (int64_t s = 0; s < g->n_slots; s++) {
        flight *f = &g->slots[s];
        if (f->prompt < 0) continue;
        waiting--;
        int64_t count = GR_MIN(f->ids.n - f->fed, room - waiting); /* leave a row for each sequence still to come */
        int64_t first = g->batch.n;
        GR_TRY(gr_batch_append(&g->batch, f->ids.data + f->fed, NULL, count, 0, err));
        for (int64_t i = 0; i < count; i++) g->batch.positions[first + i] = (int32_t)(f->fed + i);
        f->fed += count;
        room -= count;
        g->order[n_seqs++] = (int32_t)s;
    }
    if (g->best) GR_TRY(gr_decoder_step_best(g->decoder, &g->batch, &g->cache, g->order, g->best, err));
    else if (g->list)
        GR_TRY(gr_decoder_step_list(g->decoder, &g->batch, &g->cache, g->order, gr_sample_temperature(g->o), g->list, err));
    else GR_TRY(gr_decoder_step(g->decoder, &g->batch, &g->cache, g->order, g->logits, err));
    for (int64_t i = 0; i < n_seqs && !g->stopped; i++)
        if (g->slots[g->order[i]].fed == g->slots[g->order[i]].ids.n) GR_TRY(advance(g, i, err));
        else if (g->callback && g->callback(g->payload, g->slots[g->order[i]].prompt, "", 0, false) != 0) g->stopped = true;
done:
    return st;
}

static bool in_flight(const generator *g) {
    for (int64_t s = 0; s < g->n_slots; s++)
        if (g->slots[s].prompt >= 0) return true;
    return false;
}

/* A callback that stopped everything leaves unfinished prompts with the text they have. */
static graft_status finish_rest(generator *g, graft_error *err) {
    for (int64_t s = 0; s < g->n_slots; s++)
        if (g->slots[s].prompt >= 0 && finish(g, &g->slots[s], g->slots[s].text.len, false, err)) return GRAFT_NO_MEMORY;
    for (int64_t i = 0; i < g->prompts.n; i++)
        if (!g->results[i].text && !(g->results[i].text = gr_strdup(""))) return gr_fail_memory(err, "completion");
    return GRAFT_OK;
}

graft_status gr_generate(gr_model *m, const gr_tokenizer *t, gr_prompts prompts, const gr_generate_options *o,
                         gr_completion *results, gr_generate_callback *callback, void *payload, graft_error *err) {
    generator g = {.m = m, .t = t, .o = o, .prompts = prompts, .results = results, .callback = callback, .payload = payload};
    int64_t n = prompts.n;
    graft_status st = GRAFT_OK;
    memset(results, 0, (size_t)n * sizeof *results);
    if (n == 0) return GRAFT_OK;
    if (o->max_tokens < 1)
        return gr_fail(err, GRAFT_BAD_USAGE, "max-tokens is %lld, expected at least 1", (long long)o->max_tokens);
    GR_TRY(prepare(&g, err));
    while (!g.stopped && (g.next < n || in_flight(&g))) GR_TRY(step(&g, err));
    GR_TRY(finish_rest(&g, err));
done:
    for (int64_t s = 0; g.slots && s < g.n_slots; s++) {
        gr_ids_release(&g.slots[s].ids);
        gr_str_release(&g.slots[s].text);
    }
    free(g.slots);
    free(g.order);
    free(g.logits);
    free(g.best);
    free(g.list);
    free(g.scratch);
    gr_kv_cache_release(&g.cache);
    gr_decoder_free(g.decoder);
    gr_batch_release(&g.batch);
    if (st != GRAFT_OK) gr_completions_release(results, n);
    return st;
}

void gr_completions_release(gr_completion *c, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        free(c[i].text);
        c[i] = (gr_completion){0};
    }
}
