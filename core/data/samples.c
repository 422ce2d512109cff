#include "core/data/samples.h"

#include <stdlib.h>
#include <string.h>

#include "core/data/fit.h"

static gr_loss_on loss_on(const gr_encoding *j) { return j->o->pretrain ? GR_LOSS_ALL : j->o->loss_on; }

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
static graft_status encode_text(const gr_encoding *j, const gr_sample *s, gr_encoded *e, graft_error *err) {
    const char *text = s->text;
    const gr_tokenizer_info *info = gr_tokenizer_get_info(j->t);
    int64_t n = (int64_t)strlen(text), first;
    e->ids.n = e->n_sequences = 0;
    if (info->add_bos && info->bos >= 0 && !s->continues && !starts_with_token(j->t, info->bos, text, n) &&
        !gr_ids_push(&e->ids, info->bos))
        return gr_fail_memory(err, "tokens");
    first = e->ids.n;
    graft_status st = gr_tokenizer_encode(j->t, text, n, true, &e->ids, err);
    if (st != GRAFT_OK) return st;
    if (has_control(j->t, &e->ids, first)) gr_tally_add(j->r->tally, GR_REMARK_CONTROL_TEXT, NULL);
    bool ended =
        ends_with_token(j->t, info->eos, text, n) || (j->chat && ends_with_token(j->t, gr_chat_end_of_turn(j->chat), text, n));
    if (info->eos >= 0 && !ended && !s->continued && !gr_ids_push(&e->ids, info->eos)) return gr_fail_memory(err, "tokens");
    if (!gr_grow(&e->target, &e->target_capacity, e->ids.n + 1, 1) || !gr_grow(&e->end, &e->end_capacity, 1, sizeof *e->end))
        return gr_fail_memory(err, "tokens");
    memset(e->target, 1, (size_t)e->ids.n);
    e->end[e->n_sequences++] = e->ids.n;
    return GRAFT_OK;
}

/* Ids [start, end) of e to the chunk as a sample, or as a document of a stream; nothing when they hold nothing to learn. */
static graft_status put(const gr_encoding *j, gr_chunk *c, const gr_encoded *e, int64_t start, int64_t end, bool *learned) {
    int64_t len = end - start, need = c->ids.n + len, n_targets = 0;
    for (int64_t k = start + 1; k < end; k++) n_targets += e->target[k]; /* no row predicts the first id */
    *learned = n_targets > 0;
    if (n_targets == 0) return GRAFT_OK;
    if (!gr_grow(&c->ids.data, &c->ids.capacity, need, sizeof *c->ids.data) || !gr_grow(&c->target, &c->target_capacity, need, 1) ||
        !gr_grow(&c->len, &c->len_capacity, c->n + 1, sizeof *c->len))
        return gr_fail_memory(&c->err, "tokens");
    memcpy(c->ids.data + c->ids.n, e->ids.data + start, (size_t)len * sizeof *c->ids.data);
    memcpy(c->target + c->ids.n, e->target + start, (size_t)len);
    if (j->o->pretrain) memset(c->target + c->ids.n, GR_TARGET_LEARNED, (size_t)len);
    c->target[c->ids.n] = !j->o->pretrain ? GR_TARGET_NONE : c->continues ? GR_TARGET_LEARNED : GR_TARGET_START;
    c->ids.n = need;
    c->len[c->n++] = len;
    return GRAFT_OK;
}

/* Sequence `which` of e, longer than max_length, to the chunk as truncation says. x: its conversation; NULL: raw text. */
static graft_status take_long(const gr_encoding *j, int64_t i, gr_chunk *c, const gr_encoded *e, int64_t which,
                              const gr_conversation *x, gr_encoded *shorter) {
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
            GR_TRY(put(j, c, e, start, GR_MIN(kept, start + max), &learned));
            break;
        }
        GR_TRY(gr_fit_sequence(&(gr_fit_form){j->chat, j->t, loss_on(j), max}, x, e, which, shorter, &fit, &c->err));
        if (!fit.dropped) GR_TRY(put(j, c, shorter, 0, shorter->ids.n, &learned));
        break;
    case GR_TRUNCATE_RIGHT: GR_TRY(put(j, c, e, start, start + max, &learned)); break;
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

static graft_status take(const gr_encoding *j, int64_t i, gr_chunk *c, const gr_encoded *e, const gr_conversation *x,
                         gr_encoded *shorter) {
    graft_status st = GRAFT_OK;
    for (int64_t k = 0, start = 0; k < e->n_sequences; start = e->end[k++]) {
        bool learned;
        if (e->end[k] - start > j->o->max_length && !j->o->pretrain) {
            GR_TRY(take_long(j, i, c, e, k, x, shorter));
            continue;
        }
        GR_TRY(put(j, c, e, start, e->end[k], &learned));
        c->n_empty += !learned;
    }
done:
    return st;
}

static graft_status encode_messages(const gr_encoding *j, const gr_sample *s, const gr_conversation *x, gr_encoded *e,
                                    graft_error *err) {
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

static graft_status encode_sample(const gr_encoding *j, int64_t i, gr_sample *s, gr_encoded *e, gr_encoded *shorter, gr_chunk *c) {
    char where[400];
    graft_status st = gr_reader_parse(j->r, i, s, &c->err);
    if (st != GRAFT_OK) return st;
    gr_conversation x = {.messages = s->messages, .n = s->n_messages, .tools = s->tools, .documents = s->documents};
    const gr_conversation *conversation = NULL;
    gr_reader_where(j->r, i, where, sizeof where);
    c->continues = s->continues;
    if (s->text) {
        if (!s->text[0]) return c->n_empty++, GRAFT_OK;
        st = encode_text(j, s, e, &c->err);
    } else if (!j->chat) {
        return gr_fail(&c->err, GRAFT_BAD_USAGE, "%s: messages need a template, none was given", where);
    } else {
        if (!has_answer(s->messages, s->n_messages, loss_on(j))) return c->n_empty++, GRAFT_OK;
        st = encode_messages(j, s, &x, e, &c->err);
        if (!s->is_pair || !gr_chat_is_rendered(j->chat, s->messages[0].content)) conversation = &x;
    }
    return st == GRAFT_OK ? take(j, i, c, e, conversation, shorter) : gr_fail_context(&c->err, st, "%s", where);
}

void gr_encode_chunk(void *context, int64_t index, int worker) {
    (void)worker;
    gr_encoding *j = context;
    gr_chunk *c = &j->chunks[index];
    gr_sample sample = {0};
    gr_encoded encoded = {0}, shorter = {0};
    c->ids.n = c->n = c->n_empty = 0;
    c->lost = (gr_losses){0};
    c->st = GRAFT_OK;
    int64_t first = j->first + index * GR_CHUNK_SAMPLES, end = GR_MIN(first + GR_CHUNK_SAMPLES, j->first + j->n);
    for (int64_t i = first; i < end && c->st == GRAFT_OK; i++) c->st = encode_sample(j, i, &sample, &encoded, &shorter, c);
    gr_sample_release(&sample);
    gr_encoded_release(&encoded);
    gr_encoded_release(&shorter);
}

gr_encoding *gr_encoding_new(const gr_data_options *o, const gr_tokenizer *t, const gr_chat *chat) {
    gr_encoding *j = gr_calloc(1, sizeof *j);
    if (j) j->o = o, j->t = t, j->chat = chat;
    return j;
}

void gr_encoding_free(gr_encoding *j) {
    for (int k = 0; j && k < GR_ROUND_CHUNKS; k++) {
        gr_ids_release(&j->chunks[k].ids);
        free(j->chunks[k].target);
        free(j->chunks[k].len);
    }
    free(j);
}
