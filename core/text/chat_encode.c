/* Conversations to sequences of ids, with the mask of what is learned. */
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/text/chat_impl.h"

typedef struct gr_chat_scratch {
    gr_renderer renderer;
    gr_rendering whole, upto, prompt; /* of the conversation, of a part of it, of what stands before an answer */
    gr_range *learned;                /* [n_learned] of the sequence being made, in order */
    int64_t n_learned, learned_capacity;
    gr_layout layout;
    gr_ids part;
} scratch;

void gr_encoded_release(gr_encoded *e) {
    if (e->scratch) {
        gr_renderer_release(&e->scratch->renderer);
        gr_rendering_release(&e->scratch->whole);
        gr_rendering_release(&e->scratch->upto);
        gr_rendering_release(&e->scratch->prompt);
        gr_ids_release(&e->scratch->part);
        free(e->scratch->learned);
        free(e->scratch->layout.items);
        free(e->scratch);
    }
    gr_ids_release(&e->ids);
    free(e->target);
    free(e->end);
    free(e->last_message);
    *e = (gr_encoded){0};
}

/* ---- ids ---- */

/* The bytes at the start of s[0..n) that a piece stands for; -1 when the text does not hold it so (it was normalised). first: at a
 * stretch's start, where a space may have been put before it. */
static int64_t bytes_of(const gr_tokenizer *t, int32_t id, const char *s, int64_t n, bool first) {
    const gr_piece *p = &t->pieces[id];
    if (p->type == GR_PIECE_BYTE && !t->byte_level) return n > 0 ? 1 : -1;
    if (p->type == GR_PIECE_UNKNOWN) return -1;
    int64_t at = 0;
    for (int64_t i = 0; i < p->raw_len;) {
        bool meta = !t->byte_level && p->raw_len - i >= 3 && memcmp(p->raw + i, GR_META_SPACE, 3) == 0;
        bool space = meta || (first && i == 0 && p->raw[0] == ' ');
        if (meta && n - at >= 3 && memcmp(s + at, GR_META_SPACE, 3) == 0) at += 3;
        else if (space && at < n && s[at] == ' ') at++;
        else if (space && first && i == 0) at += 0;
        else if (!meta && at < n && s[at] == p->raw[i]) at++;
        else return -1;
        i += meta ? 3 : 1;
    }
    return at;
}

/* Of ids[0..n), the ids of text[0..len): how many end at or before `border`. */
static graft_status ids_before(const gr_tokenizer *t, scratch *s, const int32_t *ids, int64_t n, const char *text, int64_t border,
                               int64_t len, int64_t *count, graft_error *err) {
    int64_t at = 0, i = 0;
    if (border == len) return *count = n, GRAFT_OK; /* as most answers end */
    for (; i < n && at < border; i++) {
        int64_t bytes = bytes_of(t, ids[i], text + at, len - at, i == 0);
        if (bytes < 0) break;
        if (at + bytes > border) return *count = i, GRAFT_OK;
        at += bytes;
    }
    *count = i;
    if (at >= border || i == n) return GRAFT_OK;
    /* normalised text: as far as the ids of the text before the border agree */
    s->part.n = 0;
    graft_status st = gr_tokenizer_encode(t, text, border, false, &s->part, err);
    int64_t same = 0;
    while (same < n && same < s->part.n && ids[same] == s->part.data[same]) same++;
    *count = same;
    return st;
}

static graft_status mark(const gr_chat *c, scratch *s, const gr_rendering *r, gr_encoded *out, int64_t first, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t k = 0;
    for (int64_t i = 0; i < s->layout.n; i++) {
        const gr_stretch *x = &s->layout.items[i];
        int64_t id = x->id, n = (i + 1 < s->layout.n ? s->layout.items[i + 1].id : out->ids.n) - id;
        while (k < s->n_learned && s->learned[k].end <= x->start) k++;
        for (int64_t j = k; j < s->n_learned && s->learned[j].start < x->end; j++) {
            int64_t from = GR_MAX(s->learned[j].start, x->start) - x->start, to = GR_MIN(s->learned[j].end, x->end) - x->start,
                    a = 0, b = n;
            if (x->added) { /* one token, learned where its own text is */
                const gr_piece *p = &c->t->pieces[out->ids.data[id]];
                const char *own = memmem(r->text + x->start, (size_t)(x->end - x->start), p->text, (size_t)p->len);
                int64_t own_end = own ? own + p->len - (r->text + x->start) : x->end - x->start;
                if (!(from < own_end && own_end <= to)) continue;
            } else {
                GR_TRY(ids_before(c->t, s, out->ids.data + id, n, r->text + x->start, from, x->end - x->start, &a, err));
                GR_TRY(ids_before(c->t, s, out->ids.data + id, n, r->text + x->start, to, x->end - x->start, &b, err));
            }
            for (int64_t m = a; m < b; m++) out->target[id + m] = 1;
        }
    }
    out->target[first] = 0; /* nothing predicts the first token */
done:
    return st;
}

/* BOS where the tokenizer wants one and the rendering has none. */
static bool wants_bos(const gr_chat *c, const gr_rendering *r) {
    const gr_tokenizer_info *info = &c->t->info;
    if (!info->add_bos || info->bos < 0) return false;
    const gr_piece *p = &c->t->pieces[info->bos];
    return !(r->n >= p->len && memcmp(r->text, p->text, (size_t)p->len) == 0 && r->n_trusted && r->trusted[0].start == 0 &&
             r->trusted[0].end >= p->len);
}

/* A rendering as one more sequence, learned where scratch says. */
static graft_status add_sequence(const gr_chat *c, scratch *s, const gr_rendering *r, int64_t last_message, gr_encoded *out,
                                 graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t first = out->ids.n, ends = out->end_capacity;
    if (wants_bos(c, r) && !gr_ids_push(&out->ids, c->t->info.bos)) return gr_fail_memory(err, "encoding a conversation");
    s->layout.n = s->layout.n_plain = 0;
    GR_TRY(gr_tokenizer_encode_trusted(c->t, r->text, r->n, r->trusted ? r->trusted : &(gr_range){0}, r->n_trusted, &out->ids,
                                       &s->layout, err));
    out->n_plain += s->layout.n_plain;
    if (!gr_grow(&out->target, &out->target_capacity, out->ids.n + 1, 1) ||
        !gr_grow(&out->end, &out->end_capacity, out->n_sequences + 1, sizeof *out->end) ||
        !gr_grow(&out->last_message, &ends, out->n_sequences + 1, sizeof *out->last_message))
        GR_TRY(gr_fail_memory(err, "encoding a conversation"));
    memset(out->target + first, 0, (size_t)(out->ids.n - first));
    if (out->ids.n > first) GR_TRY(mark(c, s, r, out, first, err));
    out->last_message[out->n_sequences] = last_message;
    out->end[out->n_sequences++] = out->ids.n;
done:
    return st;
}

/* ---- what is learned ---- */

static graft_status learn(scratch *s, int64_t start, int64_t end, graft_error *err) {
    if (start >= end) return GRAFT_OK;
    if (!gr_grow(&s->learned, &s->learned_capacity, s->n_learned + 1, sizeof *s->learned))
        return gr_fail_memory(err, "encoding a conversation");
    s->learned[s->n_learned++] = (gr_range){start, end};
    return GRAFT_OK;
}

/* Of the part of a turn before its end token: all, or what {% generation %} blocks mark. */
static graft_status learn_turn(const gr_chat *c, scratch *s, const gr_rendering *r, int64_t start, int64_t token, int64_t end,
                               graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t at = 0;
    if (!c->narrows) return learn(s, start, end, err);
    for (int64_t k = 0; k < r->n_spans; at = r->spans[k++].end)
        if (r->spans[k].origin & GR_JINJA_GENERATION) GR_TRY(learn(s, GR_MAX(start, at), GR_MIN(token, r->spans[k].end), err));
    GR_TRY(learn(s, token, end, err));
done:
    return st;
}

static int64_t end_of_messages_before(const gr_rendering *r, int64_t i) { /* past the last byte of messages before i */
    int64_t end = 0;
    for (int64_t k = 0; k < r->n_spans; k++) {
        int64_t m = gr_origin_message(r->spans[k].origin);
        if (m >= 0 && m < i && gr_origin_kind(r->spans[k].origin) != GR_FROM_ROLE) end = r->spans[k].end;
    }
    return end;
}

/* The last place before `before` where the generation prompt ends; -1 when it stands nowhere after `from`. */
static int64_t after_generation_prompt(const gr_chat *c, const gr_rendering *r, int64_t from, int64_t before) {
    int64_t n = (int64_t)strlen(c->generation);
    for (int64_t at = before - n; n > 0 && at >= from; at--)
        if (memcmp(r->text + at, c->generation, (size_t)n) == 0) return at + n;
    return -1;
}

/* Where answer i of r begins, in bytes: where the prompt for it ends. */
static graft_status find_start(scratch *s, const gr_chat *c, const gr_rendering *r, int64_t i, gr_encoded *out, int64_t *start) {
    int64_t first = r->n, end, floor = end_of_messages_before(r, i), same = 0;
    const gr_rendering *p = &s->prompt;
    gr_rendering_message(r, i, &first, &end);
    bool prompted = i > 0 && gr_renderer_render(&s->renderer, i, true, &s->prompt, NULL) == GRAFT_OK;
    while (prompted && same < p->n && same < r->n && p->text[same] == r->text[same]) same++;
    if (prompted && same == p->n) return *start = same, GRAFT_OK;
    out->n_parted += prompted;
    while (same > 0 && same < r->n && ((uint8_t)r->text[same] & 0xC0) == 0x80) same--;
    if (prompted && same >= floor) *start = GR_MIN(same, first);
    else *start = after_generation_prompt(c, r, floor, first);
    if (*start < 0) *start = first;
    return GRAFT_OK;
}

typedef struct turn {
    int64_t start, token, end; /* token: where the token that ends the turn starts; end when there is none */
} turn;

/* Answer i in a rendering that goes no further than `to` messages. */
static graft_status find_turn(scratch *s, const gr_chat *c, const gr_rendering *r, int64_t i, int64_t to, gr_encoded *out,
                              turn *x) {
    int64_t first, end, next = r->n, unused;
    int32_t id = -1;
    graft_status st = find_start(s, c, r, i, out, &x->start);
    if (!gr_rendering_message(r, i, &first, &end)) end = x->start;
    for (int64_t k = i + 1; k < to; k++) {
        if (!gr_rendering_message(r, k, &first, &unused) || first < end) continue;
        next = first;
        break;
    }
    x->end = gr_rendering_turn_end(c, r, GR_MAX(end, x->start), next, &id);
    x->token = x->end < 0 ? -1 : x->end - c->t->pieces[id].len;
    if (x->end < 0) x->end = x->token = to == i + 1 ? r->n : end;
    return st;
}

static bool is_answer(const gr_message *m) { return strcmp(m->role, "assistant") == 0 && !m->no_loss; }

/* Every answer to be learned, in the whole conversation's rendering where that writes it as when it was the last; in a sequence of
 * its own where it does not. */
static graft_status encode_answers(const gr_chat *c, scratch *s, const gr_conversation *x, bool last_only, gr_encoded *out,
                                   graft_error *err) {
    graft_status st = GRAFT_OK;
    bool any = false;
    int64_t *apart = gr_calloc(x->n + 1, sizeof *apart), n_apart = 0, last = x->n - 1;
    if (!apart) return gr_fail_memory(err, "encoding a conversation");
    while (last >= 0 && !is_answer(&x->messages[last])) last--;
    s->n_learned = 0;
    for (int64_t i = last_only ? GR_MAX(last, 0) : 0; i <= last; i++) {
        turn a;
        if (!is_answer(&x->messages[i])) continue;
        bool part = i + 1 < x->n && gr_renderer_render(&s->renderer, i + 1, false, &s->upto, NULL) == GRAFT_OK;
        const gr_rendering *r = part ? &s->upto : &s->whole;
        GR_TRY(find_turn(s, c, r, i, part ? i + 1 : x->n, out, &a));
        if (part && (s->whole.n < a.end || memcmp(s->whole.text, r->text, (size_t)a.end) != 0)) {
            apart[n_apart++] = i;
            continue;
        }
        any = true;
        GR_TRY(learn_turn(c, s, &s->whole, a.start, a.token, a.end, err));
    }
    if (any) GR_TRY(add_sequence(c, s, &s->whole, x->n - 1, out, err));
    for (int64_t k = 0; k < n_apart; k++) {
        turn a;
        GR_TRY(gr_renderer_render(&s->renderer, apart[k] + 1, false, &s->upto, err));
        GR_TRY(find_turn(s, c, &s->upto, apart[k], apart[k] + 1, out, &a));
        s->n_learned = 0;
        GR_TRY(learn_turn(c, s, &s->upto, a.start, a.token, a.end, err));
        GR_TRY(add_sequence(c, s, &s->upto, apart[k], out, err));
    }
done:
    free(apart);
    return st;
}

/* Everything but the messages that say otherwise, and white space of the template after the token that ends a turn. */
static graft_status encode_all(const gr_chat *c, scratch *s, const gr_conversation *x, gr_encoded *out, graft_error *err) {
    const gr_rendering *r = &s->whole;
    graft_status st = GRAFT_OK;
    int64_t at = 0;
    s->n_learned = 0;
    for (int64_t i = 0; i < x->n; i++) {
        int64_t first, end, next = r->n, unused;
        if (!gr_rendering_message(r, i, &first, &end)) continue;
        for (int64_t k = i + 1; k < x->n && next == r->n; k++)
            if (gr_rendering_message(r, k, &first, &unused) && first >= end) next = first;
        int64_t token_end = gr_rendering_turn_end(c, r, end, next, NULL);
        if (token_end >= 0) end = token_end;
        if (!x->messages[i].no_loss) GR_TRY(learn(s, at, end, err));
        at = GR_MAX(at, end);
        while (at < r->n && strchr(" \t\r\n", r->text[at])) at++;
    }
    GR_TRY(add_sequence(c, s, r, x->n - 1, out, err));
done:
    return st;
}

/* ---- what must not be lost ---- */

static bool is_blank(const char *s) { return !s || !s[strspn(s, " \t\r\n")]; }

static bool holds(const json_t *v) { /* something worth saying */
    return v && !json_is_null(v) && !json_is_false(v) && !(json_is_string(v) && is_blank(json_string_value(v))) &&
           !((json_is_array(v) || json_is_object(v)) && json_array_size(v) + json_object_size(v) == 0);
}

static bool writes(const gr_rendering *r, int32_t origin) {
    for (int64_t k = 0; k < r->n_spans; k++)
        if ((r->spans[k].origin & GR_JINJA_ORIGIN) == origin) return true;
    return false;
}

/* Bytes of a message's text in a rendering, white space apart. */
static int64_t written_bytes(const gr_rendering *r, int64_t i) {
    int64_t n = 0, start = 0;
    for (int64_t k = 0; k < r->n_spans; start = r->spans[k++].end)
        for (int64_t at = start; (r->spans[k].origin & GR_JINJA_ORIGIN) == gr_origin(i, GR_FROM_CONTENT) && at < r->spans[k].end;
             at++)
            n += (uint8_t)r->text[at] > ' ';
    return n;
}

static bool is_shortened(const gr_rendering *r, int64_t i, const char *content) {
    int64_t n = 0;
    for (; *content; content++) n += (uint8_t)*content > ' ';
    return written_bytes(r, i) < n;
}

static graft_status fail_lost(const gr_chat *c, int64_t i, const char *what, graft_error *err) {
    bool field = strcmp(what, "text") != 0;
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "message %lld: chat template %s does not write its %s, which would be lost: name a template that does "
                   "(data.template, --template), or take the sample out%s",
                   (long long)i + 1, c->name, what, field ? ", or leave the field aside (ignore: [...] of its source)" : "");
}

static graft_status check_message(const gr_chat *c, scratch *s, const gr_conversation *x, int64_t i, gr_encoded *out,
                                  graft_error *err) {
    const gr_message *m = &x->messages[i];
    const json_t *calls = json_object_get(m->fields, "tool_calls"), *call = json_object_get(m->fields, "function_call");
    static const char *const reasons[] = {"reasoning_content", "reasoning", "thinking"};
    const char *reason = NULL;
    for (int k = 0; k < GR_LEN(reasons); k++)
        if (holds(json_object_get(m->fields, reasons[k]))) reason = reasons[k];
    bool content = !is_blank(m->content) && !writes(&s->whole, gr_origin(i, GR_FROM_CONTENT));
    bool reasoning = reason && !writes(&s->whole, gr_origin(i, GR_FROM_REASONING));
    if ((holds(calls) || holds(call)) && !writes(&s->whole, gr_origin(i, GR_FROM_CALLS)))
        return fail_lost(c, i, holds(calls) ? "tool_calls" : "function_call", err);
    bool shortened = is_answer(m) && is_shortened(&s->whole, i, m->content);
    if (!content && !reasoning && !shortened) return GRAFT_OK;
    /* dropped from history, perhaps, but written when it is the last */
    bool last = i + 1 < x->n && gr_renderer_render(&s->renderer, i + 1, false, &s->upto, NULL) == GRAFT_OK;
    if (last && content) content = !writes(&s->upto, gr_origin(i, GR_FROM_CONTENT));
    if (last && reasoning) reasoning = !writes(&s->upto, gr_origin(i, GR_FROM_REASONING));
    if (reasoning) return fail_lost(c, i, reason, err);
    if (content && is_answer(m)) return fail_lost(c, i, "text", err);
    out->n_unwritten += content;
    out->n_shortened += shortened && (!last || is_shortened(&s->upto, i, m->content));
    return GRAFT_OK;
}

static graft_status check_losses(const gr_chat *c, scratch *s, const gr_conversation *x, gr_encoded *out, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int64_t i = 0; i < x->n; i++) GR_TRY(check_message(c, s, x, i, out, err));
    if (holds(x->tools) && !writes(&s->whole, GR_FROM_TOOLS))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                       "chat template %s does not write the tools of a sample, which would be lost: name a "
                       "template that does (data.template, --template), or leave them aside with ignore: [tools]",
                       c->name));
    if (holds(x->documents) && !writes(&s->whole, GR_FROM_DOCUMENTS))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                       "chat template %s does not write the documents of a sample, which would be lost: name a template that does "
                       "(data.template, --template), or leave them aside with ignore: [documents]",
                       c->name));
done:
    return st;
}

/* ---- the interface ---- */

static graft_status start(const gr_chat *c, const gr_conversation *x, gr_encoded *out, graft_error *err) {
    out->ids.n = out->n_sequences = out->n_unwritten = out->n_parted = out->n_shortened = out->n_plain = 0;
    if (!out->scratch) out->scratch = gr_calloc(1, sizeof *out->scratch);
    return out->scratch ? gr_renderer_start(&out->scratch->renderer, c, x, err) : gr_fail_memory(err, "encoding a conversation");
}

const gr_chat *gr_chat_for(const gr_chat *c, const gr_conversation *x) {
    return c->with_tools && holds(x->tools) ? c->with_tools : c;
}

graft_status gr_chat_encode(const gr_chat *c, const gr_conversation *x, gr_loss_on loss_on, gr_encoded *out, graft_error *err) {
    graft_status st;
    c = gr_chat_for(c, x);
    GR_TRY(start(c, x, out, err));
    scratch *s = out->scratch;
    GR_TRY(gr_renderer_render(&s->renderer, x->n, false, &s->whole, err));
    GR_TRY(check_losses(c, s, x, out, err));
    if (loss_on == GR_LOSS_ALL) st = encode_all(c, s, x, out, err);
    else st = encode_answers(c, s, x, loss_on == GR_LOSS_LAST, out, err);
done:
    return st;
}

/* Where a completion ends: after its last control token when but white space follows that. */
static int64_t end_of_completion(const gr_chat *c, const gr_rendering *r, int64_t from, bool *closed) {
    int32_t id = -1;
    int64_t end = gr_rendering_turn_end(c, r, from, r->n, &id), rest = end;
    *closed = end >= 0;
    while (*closed && rest < r->n) *closed = strchr(" \t\r\n", r->text[rest++]) != NULL;
    return *closed ? end : r->n;
}

graft_status gr_chat_encode_rendered(const gr_chat *c, const char *prompt, const char *completion, gr_encoded *out,
                                     graft_error *err) {
    int64_t before = (int64_t)strlen(prompt), n = before + (int64_t)strlen(completion);
    int32_t end_id = c->end_of_turn >= 0 ? c->end_of_turn : c->t->info.eos;
    bool closed;
    graft_status st = start(c, &(gr_conversation){.messages = &(gr_message){.role = "user", .content = ""}, .n = 1}, out, err);
    if (st != GRAFT_OK) return st;
    scratch *s = out->scratch;
    gr_rendering *r = &s->whole;
    r->n_spans = 0;
    r->n_trusted = 1;
    if (!gr_grow(&r->text, &r->capacity, n + 1, 1) || !gr_grow(&r->trusted, &r->trusted_capacity, 1, sizeof *r->trusted))
        return gr_fail_memory(err, "encoding a conversation");
    r->n = n;
    memcpy(r->text, prompt, (size_t)before);
    memcpy(r->text + before, completion, (size_t)(n - before + 1));
    r->trusted[0] = (gr_range){0, n};
    s->n_learned = 0;
    GR_TRY(learn(s, before, end_of_completion(c, r, before, &closed), err));
    GR_TRY(add_sequence(c, s, r, 0, out, err));
    if (!closed && end_id >= 0) {
        if (!gr_ids_push(&out->ids, end_id) || !gr_grow(&out->target, &out->target_capacity, out->ids.n + 1, 1))
            GR_TRY(gr_fail_memory(err, "encoding a conversation"));
        out->target[out->ids.n - 1] = 1;
        out->end[out->n_sequences - 1] = out->ids.n;
    }
done:
    return st;
}

graft_status gr_chat_prompt(const gr_chat *c, const gr_conversation *x, gr_ids *ids, graft_error *err) {
    graft_status st;
    c = gr_chat_for(c, x);
    gr_encoded e = {0};
    GR_TRY(start(c, x, &e, err));
    scratch *s = e.scratch;
    GR_TRY(gr_renderer_render(&s->renderer, x->n, true, &s->whole, err));
    GR_TRY(check_losses(c, s, x, &e, err));
    if (e.n_unwritten) gr_warn("chat template %s leaves out %lld of the messages", c->name, (long long)e.n_unwritten);
    s->n_learned = 0;
    GR_TRY(add_sequence(c, s, &s->whole, x->n - 1, &e, err));
    if (e.n_plain && !atomic_exchange(c->told, true)) /* once, not for each of a thousand prompts */
        gr_warn("the prompt spells control tokens, which are plain text here (a prompt rendered already wants --template none)");
    for (int64_t i = 0; i < e.ids.n; i++)
        if (!gr_ids_push(ids, e.ids.data[i])) GR_TRY(gr_fail_memory(err, "encoding a conversation"));
done:
    gr_encoded_release(&e);
    return st;
}

graft_status gr_chat_render(const gr_chat *c, const gr_conversation *x, bool add_generation_prompt, gr_str *out, graft_error *err) {
    graft_status st;
    gr_encoded e = {0};
    c = gr_chat_for(c, x);
    GR_TRY(start(c, x, &e, err));
    GR_TRY(gr_renderer_render(&e.scratch->renderer, x->n, add_generation_prompt, &e.scratch->whole, err));
    gr_str_add(out, e.scratch->whole.text, e.scratch->whole.n);
    gr_str_add(out, "", 0);
    if (out->failed) st = gr_fail_memory(err, "rendering a conversation");
done:
    gr_encoded_release(&e);
    return st;
}
