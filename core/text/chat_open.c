/* Opening a chat template: its Jinja text, system text and arguments, and what is learned of it by rendering small
 * conversations. */
#include "core/text/chat_impl.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <xxhash.h>

#include "core/base/log.h"

/* ---- what a template does, seen in small conversations ---- */

/* Renders messages given as role, content, role, content ... , NULL. */
static graft_status try_out(const gr_chat *c, const char *const *texts, bool prompt, gr_rendering *out, graft_error *err) {
    enum { MOST = 8 };
    gr_message m[MOST];
    gr_conversation x = {.messages = m};
    gr_renderer r = {0};
    for (; texts[2 * x.n] && x.n < MOST; x.n++) m[x.n] = (gr_message){.role = texts[2 * x.n], .content = texts[2 * x.n + 1]};
    graft_status st = gr_renderer_start(&r, c, &x, err);
    if (st == GRAFT_OK) st = gr_renderer_render(&r, x.n, prompt, out, err);
    gr_renderer_release(&r);
    return st;
}

#define ASK    "user", "What is it?"
#define ANSWER "assistant", "A river."

/* The end of turn, the generation prompt and the opening. A template that refuses these conversations is known by what it writes
 * later. */
static graft_status look(gr_chat *c, graft_error *err) {
    static const char *const turn[] = {ASK, ANSWER, NULL}, *const ask[] = {ASK, NULL};
    gr_rendering whole = {0}, question = {0}, prompt = {0};
    gr_match m;
    int64_t first, end;
    c->end_of_turn = -1;
    if (try_out(c, turn, false, &whole, NULL) == GRAFT_OK && gr_rendering_message(&whole, 1, &first, &end)) {
        if (gr_rendering_next_control(c, &whole, end, whole.n, &m)) c->end_of_turn = m.id;
        for (int64_t from = 0; !c->opening && gr_rendering_next_control(c, &whole, from, whole.n, &m); from = m.end)
            if (m.id != c->t->info.bos && m.at < first) c->opening = gr_strndup(c->t->pieces[m.id].text, c->t->pieces[m.id].len);
    }
    bool both = try_out(c, ask, false, &question, NULL) == GRAFT_OK && try_out(c, ask, true, &prompt, NULL) == GRAFT_OK;
    bool longer = both && prompt.n >= question.n && memcmp(prompt.text, question.text, (size_t)question.n) == 0;
    c->generation = gr_strdup(longer ? prompt.text + question.n : "");
    gr_rendering_release(&whole);
    gr_rendering_release(&question);
    gr_rendering_release(&prompt);
    return c->generation ? GRAFT_OK : gr_fail_memory(err, "chat template");
}

/* ---- the system text ---- */

static graft_status set_source(gr_chat *c, char *source, graft_error *err) {
    if (!source) return gr_fail_memory(err, "chat template");
    free(c->source);
    gr_jinja_free(c->jinja);
    c->source = source;
    c->jinja = NULL;
    const char *title = strcmp(c->name, "auto") == 0 ? "auto (the model's own)" : c->name;
    return gr_jinja_parse(&c->jinja, source, (int64_t)strlen(source), title, err);
}

/* Does the template write a system message that is given? */
static graft_status check_system(const gr_chat *c, const char *system, graft_error *err) {
    const char *const texts[] = {ASK, NULL};
    gr_rendering r = {0};
    graft_error why;
    graft_status st = try_out(c, texts, true, &r, &why);
    if (st != GRAFT_OK) st = gr_fail(err, GRAFT_BAD_USAGE, "data.system: %s", why.msg);
    else if (*system && !strstr(r.text, system)) { /* trimmed by the template, perhaps */
        char *start = gr_strdup(system + strspn(system, " \t\r\n"));
        int64_t n = start ? (int64_t)strlen(start) : 0;
        while (n > 0 && strchr(" \t\r\n", start[n - 1])) start[--n] = '\0';
        if (start && !strstr(r.text, start))
            st = gr_fail(err, GRAFT_BAD_USAGE, "data.system: chat template %s does not write system messages", c->name);
        free(start);
    }
    gr_rendering_release(&r);
    return st;
}

/* The start of a rendering that ends where the header of its first user turn begins, or NULL when that cannot be told: a turn's
 * header is what stands between an answer's end and the next question. */
static char *before_header(const gr_chat *c, const gr_rendering *plain) {
    static const char *const two[] = {ASK, ANSWER, "user", "Where?", ANSWER, NULL};
    gr_rendering r = {0};
    int64_t first, end = 0, next = 0, next_end, last, last_end = 0, ask = 0, ask_end;
    char *found = NULL;
    if (try_out(c, two, false, &r, NULL) == GRAFT_OK && gr_rendering_message(&r, 1, &first, &end) &&
        gr_rendering_message(&r, 2, &next, &next_end) && gr_rendering_message(&r, 3, &last, &last_end) &&
        gr_rendering_message(plain, 0, &ask, &ask_end)) {
        int64_t tail = r.n - last_end; /* what follows an answer at the very end */
        const char *header = r.text + end + tail;
        int64_t n = next - end - tail;
        while (n > 0 && strchr(" \t\r\n", *header)) header++, n--;
        bool same = n > 0 && memcmp(r.text + end, r.text + last_end, (size_t)GR_MIN(tail, next - end)) == 0;
        if (same && n <= ask && memcmp(plain->text + ask - n, header, (size_t)n) == 0) found = gr_strndup(plain->text, ask - n);
    }
    gr_rendering_release(&r);
    return found;
}

/* system: "" - the template's default system text goes, where it can be told from the rest. */
static graft_status leave_out_system(gr_chat *c, graft_error *err) {
    static const char *const ask[] = {ASK, NULL}, *const one[] = {"system", "Be a bird.", ASK, NULL},
                             *const other[] = {"system", "Fly high!", ASK, NULL};
    gr_rendering plain = {0}, a = {0}, b = {0};
    char *before = NULL;
    graft_status st = GRAFT_OK;
    GR_TRY(try_out(c, ask, false, &plain, err));
    if (try_out(c, one, false, &a, NULL) != GRAFT_OK || try_out(c, other, false, &b, NULL) != GRAFT_OK) {
        gr_note("chat template %s takes no system message: it is taken to have no default one either", c->name);
        goto done;
    }
    int64_t head = 0, tail = 0, most = GR_MIN(plain.n, GR_MIN(a.n, b.n));
    while (head < most && plain.text[head] == a.text[head] && plain.text[head] == b.text[head]) head++;
    while (tail < most && plain.text[plain.n - 1 - tail] == a.text[a.n - 1 - tail] &&
           plain.text[plain.n - 1 - tail] == b.text[b.n - 1 - tail])
        tail++;
    if (head + tail >= plain.n) goto done; /* it has no default system text */
    before = before_header(c, &plain);
    if (!before)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE,
                       "data.system: \"\": the default system text of chat template %s cannot be told from the rest; give a text, "
                       "or a template of your own without one",
                       c->name));
    const char *bos = c->t->info.bos >= 0 ? c->t->pieces[c->t->info.bos].text : NULL;
    bool own = bos && gr_starts_with(before, bos) && !gr_starts_with(plain.text + strlen(before), bos); /* not the header's */
    const char *kept = own ? bos : "";
    if (strlen(before) == strlen(kept)) goto done;
    GR_TRY(set_source(c, gr_chat_template_without(c->source, before, kept), err));
done:
    free(before);
    gr_rendering_release(&plain);
    gr_rendering_release(&a);
    gr_rendering_release(&b);
    return st;
}

/* ---- opening ---- */

static graft_status read_args(json_t **args, const char *text, graft_error *err) {
    static const char *const own[] = {"messages", "tools", "documents", "add_generation_prompt"};
    const char *key;
    json_t *value;
    json_error_t why;
    *args = json_loads(text, JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(*args))
        return gr_fail(err, GRAFT_BAD_USAGE, "data.template_args: expected a mapping such as {enable_thinking: false}%s%s",
                       *args ? "" : ": ", *args ? "" : why.text);
    json_object_foreach(*args, key, value) {
        bool name = *key && strspn(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") == strlen(key) &&
                    !(*key >= '0' && *key <= '9');
        if (!name) return gr_fail(err, GRAFT_BAD_USAGE, "data.template_args: \"%.60s\" is no name of a variable", key);
        for (int i = 0; i < GR_LEN(own); i++)
            if (strcmp(key, own[i]) == 0) return gr_fail(err, GRAFT_BAD_USAGE, "data.template_args: %s is given by the data", key);
    }
    return GRAFT_OK;
}

/* Arguments that the template never names would be lost without a word. */
static graft_status check_used(const gr_chat *c, const json_t *args, graft_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)args, key, value)
        if (!gr_jinja_uses(c->jinja, key))
            return gr_fail(err, GRAFT_BAD_USAGE, "data.template_args: chat template %s does not use \"%.60s\"", c->name, key);
    return GRAFT_OK;
}

static graft_status read_clock(gr_chat *c, graft_error *err) {
    const char *epoch = getenv("SOURCE_DATE_EPOCH");
    char *end;
    c->now = (int64_t)time(NULL);
    if (!epoch || !*epoch) return GRAFT_OK;
    c->now = strtoll(epoch, &end, 10);
    c->utc = true;
    return *end || c->now < 0 || c->now > 253402300799
               ? gr_fail(err, GRAFT_BAD_USAGE, "SOURCE_DATE_EPOCH: \"%.40s\" is no number of seconds", epoch)
               : GRAFT_OK;
}

static void hash(gr_chat *c) {
    enum { RULES = 2 }; /* of ids and masks: another number makes caches of other rules strangers */
    c->hash = XXH3_64bits_withSeed(c->source, strlen(c->source), RULES + c->parses_text);
    if (!gr_jinja_uses(c->jinja, "strftime_now")) return;
    struct tm day;
    time_t now = (time_t)c->now;
    if (c->utc ? gmtime_r(&now, &day) != NULL : localtime_r(&now, &day) != NULL)
        c->hash = XXH3_64bits_withSeed(&day.tm_yday, sizeof day.tm_yday, c->hash + (uint64_t)day.tm_year);
    gr_note("chat template %s writes the present date into conversations; SOURCE_DATE_EPOCH in the environment fixes it", c->name);
}

graft_status gr_chat_open(gr_chat **out, const gr_chat_options *o, const gr_tokenizer *t, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *source = NULL;
    json_t *args = NULL;
    gr_chat *c = gr_calloc(1, sizeof *c);
    *out = NULL;
    if (!c) return gr_fail_memory(err, "chat template");
    c->t = t;
    c->told = gr_calloc(1, sizeof *c->told);
    c->name = gr_strdup(o->name ? o->name : "auto");
    if (!c->name || !c->told) GR_TRY(gr_fail_memory(err, "chat template"));
    c->parses_text = strcmp(c->name, "none") == 0 && !o->source;
    if (o->args) GR_TRY(read_args(&args, o->args, err));
    GR_TRY(read_clock(c, err));
    GR_TRY(gr_chat_template_find(&source, o, t, err));
    const bool own = t->info.chat_template && strcmp(source, t->info.chat_template) == 0; /* not itself the one for tools */
    st = set_source(c, source, err);
    source = NULL;
    GR_TRY(st);
    GR_TRY(check_used(c, args, err));
    const char *system = o->system && *o->system ? o->system : NULL;
    if (system || json_object_size(args)) GR_TRY(set_source(c, gr_chat_template_with(c->source, system, args), err));
    if (system) GR_TRY(check_system(c, system, err));
    if (o->system && !*o->system && !c->parses_text) GR_TRY(leave_out_system(c, err));
    GR_TRY(look(c, err));
    c->narrows = strstr(c->source, "endgeneration") != NULL;
    hash(c);
    if (own && t->info.tool_template && strcmp(t->info.tool_template, t->info.chat_template) != 0) {
        const gr_chat_options tools = {.name = "tool_use", .source = t->info.tool_template, .system = o->system, .args = o->args};
        GR_TRY(gr_chat_open(&c->with_tools, &tools, t, err));
        c->hash = XXH3_64bits_withSeed(&c->with_tools->hash, sizeof c->hash, c->hash);
    }
    if (c->end_of_turn < 0 && !c->parses_text)
        gr_warn("chat template %s ends an answer with no control token: the model is not taught where to stop", c->name);
    *out = c;
    c = NULL;
done:
    json_decref(args);
    free(source);
    gr_chat_free(c);
    return st;
}

void gr_chat_free(gr_chat *c) {
    if (!c) return;
    gr_jinja_free(c->jinja);
    gr_chat_free(c->with_tools);
    free(c->name);
    free(c->source);
    free(c->generation);
    free(c->opening);
    free(c->told);
    free(c);
}

int32_t gr_chat_end_of_turn(const gr_chat *c) { return c->parses_text ? -1 : c->end_of_turn; }

uint64_t gr_chat_hash(const gr_chat *c) { return c->hash; }

const char *gr_chat_source(const gr_chat *c) { return c->parses_text ? NULL : c->source; }

bool gr_chat_is_rendered(const gr_chat *c, const char *prompt) {
    int32_t bos = c->t->info.bos;
    if (bos >= 0 && c->t->pieces[bos].len && gr_starts_with(prompt, c->t->pieces[bos].text)) return true;
    return c->opening && gr_starts_with(prompt, c->opening);
}

graft_status gr_chat_carry(const gr_chat *c, gr_tokenizer *t, graft_error *err) {
    if (c->parses_text) return GRAFT_OK;
    return gr_tokenizer_carry(t, c->source, c->end_of_turn, !gr_jinja_uses(c->jinja, "eos_token"), err);
}
