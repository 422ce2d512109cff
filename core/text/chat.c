#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "core/text/chat_template.h"
#include "core/text/impl.h"

/* A pattern, cut at control tokens and {content}. */
typedef struct chat_op {
    enum { OP_TEXT, OP_CONTROL, OP_CONTENT } kind;
    const char *text;
    int64_t len;
    int32_t id;
} chat_op;

enum { OPS_MAX = 32 };

typedef struct chat_pattern {
    chat_op ops[OPS_MAX];
    int n, content,
        end;    /* index of {content} and of the control token that ends the turn; -1 when there is none */
    int answer; /* the assistant's: where the answer starts */
} chat_pattern;

struct gr_chat {
    gr_arena arena;
    gr_chat_template row;
    chat_pattern begin, gap, role[GR_ROLE_COUNT];
    const char *system; /* text when the messages have none; NULL for none */
    const gr_tokenizer *t;
    uint64_t hash;
};

static const char *const ROLES[GR_ROLE_COUNT] = {"system", "user", "assistant", "tool"};

static bool add_op(chat_pattern *p, chat_op op) {
    if (op.kind == OP_TEXT && op.len == 0) return true;
    if (p->n == OPS_MAX) return false;
    if (op.kind == OP_CONTENT && p->content < 0) p->content = p->n;
    if (op.kind == OP_CONTROL && p->content >= 0 && p->end < 0) p->end = p->n;
    p->ops[p->n++] = op;
    return true;
}

/* Literal text: control tokens of the tokenizer in it become ids. */
static bool add_literal(chat_pattern *p, const gr_tokenizer *t, const char *text, int64_t len) {
    int64_t at = 0;
    gr_match m;
    for (int64_t from = 0; gr_added_next(t, &t->added_raw, text, len, from, true, &m); from = m.end) {
        if (t->pieces[m.id].type != GR_PIECE_CONTROL) continue;
        if (!add_op(p, (chat_op){.kind = OP_TEXT, .text = text + at, .len = m.start - at}) ||
            !add_op(p, (chat_op){.kind = OP_CONTROL, .id = m.id}))
            return false;
        at = m.end;
    }
    return add_op(p, (chat_op){.kind = OP_TEXT, .text = text + at, .len = len - at});
}

static graft_status compile(chat_pattern *p, const gr_chat *c, const char *text, graft_error *err) {
    const struct {
        const char *mark;
        chat_op op;
    } marks[] = {{"{content}", {.kind = OP_CONTENT}},
                 {"{bos}", {.kind = OP_CONTROL, .id = c->t->info.bos}},
                 {"{eos}", {.kind = OP_CONTROL, .id = c->t->info.eos}}};
    *p = (chat_pattern){.content = -1, .end = -1};
    bool ok = true;
    for (const char *s = text, *start = text; s && ok;) {
        int found = -1;
        const char *next = s;
        for (; *next && found < 0; next += found < 0)
            for (int i = 0; i < GR_LEN(marks); i++)
                if (gr_starts_with(next, marks[i].mark)) found = i;
        ok = add_literal(p, c->t, start, next - start);
        if (found >= 0 && (marks[found].op.kind == OP_CONTENT || marks[found].op.id >= 0))
            ok = ok && add_op(p, marks[found].op);
        s = start = found < 0 ? NULL : next + strlen(marks[found].mark);
    }
    return ok ? GRAFT_OK
              : gr_fail(err, GRAFT_BAD_INPUT, "chat template %s: the pattern \"%.60s\" has too many parts",
                        c->row.name, text);
}

static graft_status compile_all(gr_chat *c, graft_error *err) {
    graft_status st;
    GR_TRY(compile(&c->begin, c, c->row.begin, err));
    GR_TRY(compile(&c->gap, c, c->row.gap, err));
    for (int i = 0; i < GR_ROLE_COUNT; i++)
        if (c->row.pattern[i]) GR_TRY(compile(&c->role[i], c, c->row.pattern[i], err));
    chat_pattern *answer = &c->role[GR_ROLE_ASSISTANT];
    /* The prompt ends before {content}; a mere space there (LLaMA-2) is the model's to write. */
    answer->answer = answer->content;
    if (answer->content == 1 && answer->ops[0].kind == OP_TEXT && answer->ops[0].len == 1) answer->answer = 0;
    if (answer->end >= 0 || c->t->info.eos < 0) goto done;
    /* An answer ends with eos where the pattern has no control token of its own. */
    if (answer->n == OPS_MAX)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "chat template %s: the assistant pattern is too long",
                       c->row.name));
    answer->end = answer->content + 1;
    memmove(&answer->ops[answer->end + 1], &answer->ops[answer->end],
            (size_t)(answer->n - answer->end) * sizeof(chat_op));
    answer->ops[answer->end] = (chat_op){.kind = OP_CONTROL, .id = c->t->info.eos};
    answer->n++;
done:
    return st;
}

static graft_status unknown_template(const gr_tokenizer *t, const char *name, graft_error *err) {
    gr_str list = {0};
    int n = 0;
    for (; NULL != gr_chat_names()[n]; n++) gr_str_printf(&list, "%s%s", n ? ", " : "", gr_chat_names()[n]);
    const char *choices = list.data ? list.data : "", *nearest = gr_nearest(name, gr_chat_names(), n);
    graft_status st;
    if (strcmp(name, "auto") == 0)
        st = gr_fail(err, GRAFT_BAD_USAGE,
                     "%s; name one: template: %s, or a FILE.yaml with {system, user, assistant}",
                     t->info.chat_template ? "the model's own chat template is none that graft recognises"
                                           : "the model has no chat template",
                     choices);
    else
        st = gr_fail(err, GRAFT_BAD_USAGE,
                     "unknown chat template \"%.80s\"%s%s; known: auto, %s, or a FILE.yaml", name,
                     nearest ? ", did you mean " : "", nearest ? nearest : "", choices);
    gr_str_release(&list);
    return st;
}

static graft_status choose(gr_chat *c, const char *name, graft_error *err) {
    if (gr_ends_with(name, ".yaml") || gr_ends_with(name, ".yml"))
        return gr_chat_template_read(&c->row, name, &c->arena, err);
    const gr_chat_template *row = gr_chat_template_find(name);
    if (strcmp(name, "auto") == 0 && c->t->info.chat_template)
        row = gr_chat_template_recognise(c->t->info.chat_template);
    if (!row) return unknown_template(c->t, name, err);
    c->row = *row;
    for (int i = 0; i < GR_LEN(row->needs) && row->needs[i]; i++) {
        int32_t id = gr_tokenizer_find(c->t, row->needs[i]);
        if (id < 0 || c->t->pieces[id].type != GR_PIECE_CONTROL)
            return gr_fail(err, GRAFT_BAD_USAGE,
                           "chat template %s needs the control token %s, which the tokenizer lacks; alpaca, "
                           "belle and none need no "
                           "such token",
                           row->name, row->needs[i]);
    }
    return GRAFT_OK;
}

static uint64_t hash_chat(const gr_chat *c) {
    const gr_chat_template *r = &c->row;
    const char *texts[] = {r->begin,      r->gap,        c->system,    r->pattern[0],
                           r->pattern[1], r->pattern[2], r->pattern[3]};
    uint64_t h =
        (uint64_t)(r->trim | r->fold_system << 1 | r->skip_empty_system << 2 | r->parse_special << 3);
    for (int i = 0; i < GR_LEN(texts); i++)
        h = XXH3_64bits_withSeed(texts[i] ? texts[i] : "\1", strlen(texts[i] ? texts[i] : "\1"), h);
    return h;
}

graft_status gr_chat_open(gr_chat **out, const char *name, const char *system, const gr_tokenizer *t,
                          graft_error *err) {
    gr_chat *c = gr_calloc(1, sizeof *c);
    if (!c) return gr_fail_memory(err, "chat template");
    c->t = t;
    graft_status st;
    GR_TRY(choose(c, name, err));
    c->system = system ? gr_arena_strdup(&c->arena, system) : c->row.default_system;
    if (system && !c->system) GR_TRY(gr_fail_memory(err, "chat template"));
    if (c->system && !*c->system) c->system = NULL;
    if (c->system && !c->row.pattern[GR_ROLE_SYSTEM])
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE,
                       "chat template %s has no system pattern, but a system text is given", c->row.name));
    GR_TRY(compile_all(c, err));
    c->hash = hash_chat(c);
    *out = c;
    c = NULL;
done:
    gr_chat_free(c);
    return st;
}

void gr_chat_free(gr_chat *c) {
    if (!c) return;
    gr_arena_release(&c->arena);
    free(c);
}

const char *gr_chat_name(const gr_chat *c) {
    return c->row.name;
}

int32_t gr_chat_end_of_turn(const gr_chat *c) {
    const chat_pattern *answer = &c->role[GR_ROLE_ASSISTANT];
    return c->row.parse_special || answer->end < 0 ? -1 : answer->ops[answer->end].id;
}

uint64_t gr_chat_hash(const gr_chat *c) {
    return c->hash;
}

void gr_encoded_release(gr_encoded *e) {
    gr_ids_release(&e->ids);
    free(e->target);
    *e = (gr_encoded){0};
}

/* ---- writing a conversation: to ids with a mask, or to text ---- */

typedef struct writer {
    const gr_chat *c;
    gr_encoded *out;  /* NULL when rendering */
    gr_str *rendered; /* NULL when encoding */
    gr_str run;       /* text since the last control token or boundary */
    bool target;      /* what is written now is learned */
    bool after_text;  /* the last thing encoded was text, not a control token */
    graft_error *err;
} writer;

/* Give the ids from `first` on their mask. */
static graft_status mark(writer *w, int64_t first) {
    gr_encoded *e = w->out;
    if (!gr_grow(&e->target, &e->target_capacity, e->ids.n, 1))
        return gr_fail_memory(w->err, "encoding a conversation");
    if (e->ids.n > first) memset(e->target + first, w->target, (size_t)(e->ids.n - first));
    return GRAFT_OK;
}

/* Encode the pending text. */
static graft_status flush(writer *w) {
    if (w->rendered || w->run.len == 0)
        return w->run.failed ? gr_fail_memory(w->err, "encoding a conversation") : GRAFT_OK;
    int64_t before = w->out->ids.n;
    graft_status st = gr_tokenizer_encode_part(w->c->t, w->run.data, w->run.len, w->c->row.parse_special,
                                               w->after_text, &w->out->ids, w->err);
    gr_str_clear(&w->run);
    w->after_text = true;
    return st == GRAFT_OK ? mark(w, before) : st;
}

static void put_text(writer *w, const char *text, int64_t len) {
    gr_str_add(w->rendered ? w->rendered : &w->run, text, len);
}

static graft_status put_control(writer *w, int32_t id) {
    if (w->rendered) {
        gr_str_add(w->rendered, w->c->t->pieces[id].text, w->c->t->pieces[id].len);
        return GRAFT_OK;
    }
    graft_status st = flush(w);
    if (st != GRAFT_OK) return st;
    w->after_text = false;
    if (!gr_ids_push(&w->out->ids, id)) return gr_fail_memory(w->err, "encoding a conversation");
    return mark(w, w->out->ids.n - 1);
}

static graft_status set_target(writer *w, bool target) {
    graft_status st = w->target == target ? GRAFT_OK : flush(w);
    w->target = target;
    return st;
}

/* ops[first..last) of a pattern. */
static graft_status put_ops(writer *w, const chat_pattern *p, int first, int last, const char *content,
                            int64_t len) {
    graft_status st = GRAFT_OK;
    for (int i = first; i < last && st == GRAFT_OK; i++) {
        const chat_op *op = &p->ops[i];
        if (op->kind == OP_CONTROL)
            st = put_control(w, op->id);
        else if (op->kind == OP_TEXT)
            put_text(w, op->text, op->len);
        else
            put_text(w, content, len);
    }
    return st;
}

/* As Python's str.strip(). */
static void trim(const gr_tokenizer *t, const char **s, int64_t *n) {
    int64_t first = -1, last = 0;
    int size;
    for (int64_t i = 0; i < *n; i += size) {
        int32_t point = gr_utf8_decode(*s + i, *n - i, &size, NULL);
        if (point >= 0 &&
            ((gr_char_class(t, (uint32_t)point) & GR_CLASS_SPACE) || (point >= 0x1C && point <= 0x1F)))
            continue;
        if (first < 0) first = i;
        last = i + size;
    }
    *s += first < 0 ? 0 : first;
    *n = first < 0 ? 0 : last - first;
}

typedef struct turn {
    int role;
    bool learned; /* an answer whose content and end are targets */
    bool all;     /* so is everything else in the turn */
    bool last_answer;
} turn;

static graft_status put_turn(writer *w, turn x, const char *content, int64_t len) {
    const chat_pattern *p = &w->c->role[x.role];
    bool answer = x.role == GR_ROLE_ASSISTANT;
    graft_status st;
    int header = answer ? p->answer : p->content, end = p->end < 0 ? p->n : p->end + 1;
    GR_TRY(set_target(w, x.all));
    GR_TRY(put_ops(w, p, 0, header, content, len));
    if (answer) {
        GR_TRY(flush(w)); /* the model sees the prompt alone when it generates */
        GR_TRY(set_target(w, x.learned));
        if (w->out && x.last_answer) w->out->answer_start = w->out->ids.n;
    }
    GR_TRY(put_ops(w, p, header, end, content, len));
    if (end < p->n) GR_TRY(set_target(w, false)); /* template text after the end of a turn is never learned */
    GR_TRY(put_ops(w, p, end, p->n, content, len));
done:
    return st;
}

static int role_of(const gr_message *m) {
    for (int i = 0; i < GR_ROLE_COUNT; i++)
        if (m->role && strcmp(m->role, ROLES[i]) == 0) return i;
    return -1;
}

/* Roles that this template can express, in an order that it can. */
static graft_status check_roles(const gr_chat *c, const gr_message *m, int64_t n, graft_error *err) {
    if (n < 1) return gr_fail(err, GRAFT_BAD_INPUT, "a conversation has no messages");
    for (int64_t i = 0, turn_number = 0; i < n; i++) {
        int role = role_of(&m[i]);
        if (role < 0)
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "message %lld has the role \"%.40s\"; expected system, user, assistant or tool",
                           (long long)i + 1, m[i].role ? m[i].role : "");
        if (!c->row.pattern[role])
            return gr_fail(err, GRAFT_BAD_INPUT, "message %lld: chat template %s has no form for the role %s",
                           (long long)i + 1, c->row.name, ROLES[role]);
        if (c->row.lone_tool && role == GR_ROLE_TOOL && i > 0 && role_of(&m[i - 1]) == GR_ROLE_TOOL)
            return gr_fail(
                err, GRAFT_BAD_INPUT,
                "message %lld: chat template %s has no form for two tool messages in a row; join them",
                (long long)i + 1, c->row.name);
        if (role == GR_ROLE_SYSTEM && i > 0 && (c->row.fold_system || c->row.skip_empty_system))
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "message %lld: in chat template %s a system message must come first",
                           (long long)i + 1, c->row.name);
        if (role == GR_ROLE_SYSTEM) continue;
        if (c->row.fold_system && (role == GR_ROLE_USER) != (turn_number % 2 == 0))
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "message %lld: in chat template %s user and assistant must take turns, user first",
                           (long long)i + 1, c->row.name);
        turn_number++;
    }
    return GRAFT_OK;
}

/* The content of a message as it is put into its pattern; folded holds it when the system text is put before
 * it. */
static graft_status prepare(const gr_chat *c, const char *system, const char **content, int64_t *len,
                            gr_str *folded, graft_error *err) {
    if (system) {
        const chat_pattern *p = &c->role[GR_ROLE_SYSTEM];
        for (int i = 0; i < p->n; i++) {
            if (p->ops[i].kind == OP_CONTENT)
                gr_str_puts(folded, system);
            else if (p->ops[i].kind == OP_TEXT)
                gr_str_add(folded, p->ops[i].text, p->ops[i].len);
        }
        gr_str_add(folded, *content, *len);
        if (folded->failed) return gr_fail_memory(err, "encoding a conversation");
        *content = folded->data;
        *len = folded->len;
    }
    if (c->row.trim) trim(c->t, content, len);
    return GRAFT_OK;
}

static graft_status put_messages(writer *w, const gr_message *m, int64_t n, bool generation,
                                 gr_loss_on loss_on) {
    const gr_chat *c = w->c;
    gr_str folded = {0};
    int64_t last_answer = -1;
    graft_status st;
    for (int64_t i = 0; i < n; i++)
        if (role_of(&m[i]) == GR_ROLE_ASSISTANT && !m[i].no_loss) last_answer = i;
    bool given = role_of(&m[0]) == GR_ROLE_SYSTEM, all = loss_on == GR_LOSS_ALL;
    const char *system = given ? m[0].content : c->system;
    GR_TRY(set_target(w, all));
    GR_TRY(put_ops(w, &c->begin, 0, c->begin.n, "", 0));
    if (system && !c->row.fold_system && !(c->row.skip_empty_system && !*system)) {
        const char *content = system;
        int64_t len = (int64_t)strlen(content);
        GR_TRY(prepare(c, NULL, &content, &len, &folded, w->err));
        GR_TRY(put_turn(w, (turn){.role = GR_ROLE_SYSTEM, .all = all && !(given && m[0].no_loss)}, content,
                        len));
    }
    for (int64_t i = given; i < n; i++) {
        const char *content = m[i].content;
        int64_t len = (int64_t)strlen(content);
        int role = role_of(&m[i]);
        bool learned = !m[i].no_loss && (all || loss_on == GR_LOSS_COMPLETION || i == last_answer);
        if (i > 0 && role_of(&m[i - 1]) == GR_ROLE_ASSISTANT) GR_TRY(put_ops(w, &c->gap, 0, c->gap.n, "", 0));
        gr_str_clear(&folded);
        GR_TRY(prepare(c, c->row.fold_system && i == given ? system : NULL, &content, &len, &folded, w->err));
        GR_TRY(put_turn(w, (turn){role, learned, all && !m[i].no_loss, i == last_answer}, content, len));
    }
    if (generation) {
        if (role_of(&m[n - 1]) == GR_ROLE_ASSISTANT) GR_TRY(put_ops(w, &c->gap, 0, c->gap.n, "", 0));
        const chat_pattern *p = &c->role[GR_ROLE_ASSISTANT];
        GR_TRY(set_target(w, false));
        GR_TRY(put_ops(w, p, 0, p->answer, "", 0));
    }
    GR_TRY(flush(w));
done:
    gr_str_release(&folded);
    return st;
}

graft_status gr_chat_encode(const gr_chat *c, const gr_message *messages, int64_t n,
                            bool add_generation_prompt, gr_loss_on loss_on, gr_encoded *out,
                            graft_error *err) {
    writer w = {.c = c, .out = out, .err = err};
    const gr_tokenizer_info *info = &c->t->info;
    graft_status st;
    out->ids.n = 0;
    out->answer_start = -1;
    GR_TRY(check_roles(c, messages, n, err));
    GR_TRY(put_messages(&w, messages, n, add_generation_prompt, loss_on));
    if (info->add_bos && info->bos >= 0 && (out->ids.n == 0 || out->ids.data[0] != info->bos)) {
        if (!gr_ids_push(&out->ids, 0)) GR_TRY(gr_fail_memory(err, "encoding a conversation"));
        GR_TRY(mark(&w, out->ids.n - 1));
        memmove(out->ids.data + 1, out->ids.data, (size_t)(out->ids.n - 1) * sizeof *out->ids.data);
        memmove(out->target + 1, out->target, (size_t)(out->ids.n - 1));
        out->ids.data[0] = info->bos;
        if (out->answer_start >= 0) out->answer_start++;
    }
    if (out->ids.n > 0) out->target[0] = 0; /* nothing predicts the first token */
    if (out->answer_start < 0) out->answer_start = out->ids.n;
done:
    gr_str_release(&w.run);
    return st;
}

graft_status gr_chat_render(const gr_chat *c, const gr_message *messages, int64_t n,
                            bool add_generation_prompt, gr_str *out, graft_error *err) {
    writer w = {.c = c, .rendered = out, .err = err};
    graft_status st = check_roles(c, messages, n, err);
    if (st == GRAFT_OK) st = put_messages(&w, messages, n, add_generation_prompt, GR_LOSS_COMPLETION);
    gr_str_add(out, "", 0);
    if (st == GRAFT_OK && out->failed) st = gr_fail_memory(err, "rendering a conversation");
    return st;
}
