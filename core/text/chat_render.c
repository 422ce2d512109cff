/* Rendering conversations: values with their origins, and what a rendering tells of messages and control tokens. */
#include "core/text/chat_impl.h"

#include <stdlib.h>
#include <string.h>

void gr_rendering_release(gr_rendering *r) {
    free(r->text);
    free(r->spans);
    free(r->trusted);
    *r = (gr_rendering){0};
}

void gr_renderer_release(gr_renderer *r) {
    gr_jinja_run_free(r->run);
    gr_arena_release(&r->repaired);
    free(r->messages);
    *r = (gr_renderer){0};
}

static void set_token(gr_renderer *r, const char *name, int32_t id) {
    const gr_tokenizer *t = r->c->t;
    if (id >= 0) gr_jinja_set(r->run, name, gr_jinja_string(r->run, t->pieces[id].text, t->pieces[id].len, GR_FROM_TEMPLATE));
}

static int kind_of_key(const char *key) {
    static const struct {
        const char *key;
        int kind;
    } kinds[] = {{"role", GR_FROM_ROLE},
                 {"content", GR_FROM_CONTENT},
                 {"tool_calls", GR_FROM_CALLS},
                 {"function_call", GR_FROM_CALLS},
                 {"reasoning_content", GR_FROM_REASONING},
                 {"reasoning", GR_FROM_REASONING},
                 {"thinking", GR_FROM_REASONING}};
    for (int i = 0; i < GR_LEN(kinds); i++)
        if (strcmp(key, kinds[i].key) == 0) return kinds[i].kind;
    return GR_FROM_OTHER;
}

/* A message's text, with what is no UTF-8 repaired. */
static gr_jinja_value text_value(gr_renderer *r, const char *s, int32_t origin) {
    int64_t n = (int64_t)strlen(s);
    if (!gr_utf8_valid(s, n)) {
        gr_str valid = {0};
        gr_utf8_repair(s, n, &valid);
        const char *copy = valid.data ? gr_arena_strdup(&r->repaired, valid.data) : NULL;
        gr_str_release(&valid);
        s = copy ? copy : "";
        n = (int64_t)strlen(s);
    }
    return gr_jinja_string(r->run, s, n, origin);
}

static gr_jinja_value message_value(gr_renderer *r, const gr_message *m, int64_t i) {
    const char *key;
    json_t *value;
    gr_jinja_value d = gr_jinja_dict(r->run, m->fields ? (int64_t)json_object_size(m->fields) : 2, gr_origin(i, GR_FROM_OTHER));
    if (!m->fields) {
        gr_jinja_dict_add(r->run, d, "role", text_value(r, m->role ? m->role : "", gr_origin(i, GR_FROM_ROLE)));
        gr_jinja_dict_add(r->run, d, "content", text_value(r, m->content ? m->content : "", gr_origin(i, GR_FROM_CONTENT)));
        return d;
    }
    json_object_foreach((json_t *)(uintptr_t)m->fields, key, value)
        gr_jinja_dict_add(r->run, d, key, gr_jinja_json(r->run, value, gr_origin(i, kind_of_key(key))));
    return d;
}

graft_status gr_renderer_start(gr_renderer *r, const gr_chat *c, const gr_conversation *x, graft_error *err) {
    const gr_tokenizer_info *info = &c->t->info;
    if (r->c != c) gr_renderer_release(r);
    r->c = c;
    if (!r->run) r->run = gr_jinja_run_new(c->jinja);
    if (!r->run || !gr_grow(&r->messages, &r->capacity, x->n, sizeof *r->messages))
        return gr_fail_memory(err, "rendering a conversation");
    if (x->n < 1) return gr_fail(err, GRAFT_BAD_INPUT, "a conversation has no messages");
    gr_arena_release(&r->repaired);
    gr_jinja_begin(r->run, c->now, c->utc);
    set_token(r, "bos_token", info->bos);
    set_token(r, "eos_token", info->eos);
    set_token(r, "pad_token", info->pad);
    set_token(r, "unk_token", info->unk);
    json_t *none = json_null();
    gr_jinja_set(r->run, "tools", gr_jinja_json(r->run, x->tools ? x->tools : none, GR_FROM_TOOLS));
    gr_jinja_set(r->run, "documents", gr_jinja_json(r->run, x->documents ? x->documents : none, GR_FROM_DOCUMENTS));
    for (int64_t i = 0; i < x->n; i++) r->messages[i] = message_value(r, &x->messages[i], i);
    return GRAFT_OK;
}

/* A role such as "user" may be part of a control token ("<|user|>"); one that holds more than a word may not. */
static bool is_word(const char *s, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!((s[i] >= 'a' && s[i] <= 'z') || (s[i] >= 'A' && s[i] <= 'Z') || (s[i] >= '0' && s[i] <= '9') || s[i] == '_' ||
              s[i] == '-'))
            return false;
    return n < 32;
}

static bool add_trusted(gr_rendering *r, bool all) {
    int64_t start = 0;
    r->n_trusted = 0;
    for (int64_t i = 0; i < r->n_spans; start = r->spans[i++].end) {
        int32_t origin = r->spans[i].origin & GR_JINJA_ORIGIN;
        bool role = gr_origin_message(origin) >= 0 && gr_origin_kind(origin) == GR_FROM_ROLE &&
                    is_word(r->text + start, r->spans[i].end - start);
        if (!all && origin != GR_FROM_TEMPLATE && !role) continue;
        if (r->n_trusted && r->trusted[r->n_trusted - 1].end == start) {
            r->trusted[r->n_trusted - 1].end = r->spans[i].end;
            continue;
        }
        if (!gr_grow(&r->trusted, &r->trusted_capacity, r->n_trusted + 1, sizeof *r->trusted)) return false;
        r->trusted[r->n_trusted++] = (gr_range){start, r->spans[i].end};
    }
    return true;
}

graft_status gr_renderer_render(gr_renderer *r, int64_t n, bool add_generation_prompt, gr_rendering *out, graft_error *err) {
    const char *text;
    const gr_jinja_span *spans;
    gr_jinja_set(r->run, "messages", gr_jinja_list(r->run, r->messages, n, GR_FROM_TEMPLATE));
    gr_jinja_set(r->run, "add_generation_prompt", gr_jinja_bool(add_generation_prompt));
    graft_status st = gr_jinja_render(r->run, &text, &out->n, &spans, &out->n_spans, NULL, err);
    if (st != GRAFT_OK) return st;
    if (!gr_grow(&out->text, &out->capacity, out->n + 1, 1) ||
        !gr_grow(&out->spans, &out->span_capacity, out->n_spans + 1, sizeof *out->spans))
        return gr_fail_memory(err, "rendering a conversation");
    memcpy(out->text, text, (size_t)out->n);
    out->text[out->n] = '\0';
    if (out->n_spans) memcpy(out->spans, spans, (size_t)out->n_spans * sizeof *spans);
    return add_trusted(out, r->c->parses_text) ? GRAFT_OK : gr_fail_memory(err, "rendering a conversation");
}

bool gr_rendering_message(const gr_rendering *r, int64_t i, int64_t *first, int64_t *end) {
    int64_t start = 0;
    bool found = false;
    for (int64_t k = 0; k < r->n_spans; start = r->spans[k++].end) {
        if (gr_origin_message(r->spans[k].origin) != i || gr_origin_kind(r->spans[k].origin) == GR_FROM_ROLE) continue;
        if (!found) *first = start;
        *end = r->spans[k].end;
        found = true;
    }
    return found;
}

bool gr_rendering_next_control(const gr_chat *c, const gr_rendering *r, int64_t from, int64_t to, gr_match *m) {
    int64_t k = 0;
    while (gr_added_next(c->t, &c->t->added_raw, r->text, to, from, true, m)) {
        int64_t end = m->at + c->t->pieces[m->id].len;
        while (k < r->n_trusted && r->trusted[k].end <= m->at) k++;
        if (m->special && k < r->n_trusted && r->trusted[k].start <= m->at && end <= r->trusted[k].end) {
            m->end = end;
            return true;
        }
        from = end;
    }
    return false;
}

int64_t gr_rendering_turn_end(const gr_chat *c, const gr_rendering *r, int64_t from, int64_t to, int32_t *id) {
    int64_t end = -1;
    gr_match m;
    for (; gr_rendering_next_control(c, r, from, to, &m); from = m.end) {
        end = m.end;
        if (id) *id = m.id;
        if (m.id == c->end_of_turn || m.id == c->t->info.eos) break;
    }
    return end;
}
