/* formats.c - the forms a sample may have, one table row each, and how each becomes messages. */
#include <stdlib.h>
#include <string.h>

#include "core/data/forms.h"

typedef graft_status convert_fn(gr_conversion *c);

enum { MAX_FIELDS = 6 };

struct gr_form {
    const char *name;
    convert_fn *convert;
    const char *required[2];        /* graft's names of the fields that every sample has */
    const char *mark;               /* a further field that the first sample must have to be detected as this, or NULL */
    const char *fields[MAX_FIELDS]; /* all that are read, for columns and errors; with turns also `common` */
};

static const char *const common[] = {"system", "tools", "functions", "documents"}; /* what every form but text has */

static convert_fn convert_turns, convert_alpaca, convert_instances, convert_prompt, convert_question, convert_text;

static const gr_form formats[] = {
    /* detection tries them in this order */
    {"messages", convert_turns, {"messages"}, NULL, {"messages"}},
    {"sharegpt", convert_turns, {"conversations"}, NULL, {"conversations"}},
    {"seed_tasks", convert_instances, {"instruction", "instances"}, NULL, {"instruction", "instances"}},
    {"alpaca", convert_alpaca, {"instruction", "output"}, "input", {"instruction", "input", "output", "history"}},
    {"instruction_output", convert_alpaca, {"instruction", "output"}, NULL, {"instruction", "input", "output", "history"}},
    {"prompt_completion", convert_prompt, {"prompt", "completion"}, NULL, {"prompt", "completion", "history"}},
    {"question_answer", convert_question, {"question", "answer"}, NULL, {"question", "answer", "history"}},
    {"text", convert_text, {"text"}, NULL, {"text"}},
    {"prompt", convert_prompt, {"prompt"}, NULL, {"prompt", "history"}}, /* for generation: nothing to learn */
};

static const gr_form raw_forms[] = {{.name = "document"}, {.name = "paragraphs"}, {.name = "lines"}}; /* as gr_raw, from 1 */

const char *gr_form_name(const gr_form *f) { return f->name; }

gr_raw gr_form_raw(const char *name) {
    for (int i = 0; i < GR_LEN(raw_forms); i++)
        if (strcmp(raw_forms[i].name, name) == 0) return (gr_raw)(i + 1);
    return GR_RAW_NONE;
}

void gr_form_set_raw(gr_reader *r) { r->format = &raw_forms[r->raw - 1]; }

bool gr_form_knows(const char *name, int64_t len) {
    for (int i = 0; i < GR_LEN(formats); i++)
        for (int k = 0; k < 2; k++) {
            const char *known = formats[i].required[k];
            if (known && (int64_t)strlen(known) == len && !memcmp(known, name, (size_t)len)) return true;
        }
    return false;
}

bool gr_form_has_turns(const gr_form *f) { return f->convert && strcmp(f->name, "text") != 0; }

bool gr_form_has_answers(const gr_form *f) { return strcmp(f->name, "prompt") != 0; }

/* ---- fields ---- */

const char *gr_form_column(const gr_reader *r, const char *name) {
    for (int i = 0; i < r->n_columns; i++)
        if (!strcmp(r->columns[i].name, name)) return r->columns[i].column;
    return name;
}

static const char std_answer[] = "std_answer"; /* BELLE's evaluation set: its answer */

static const json_t *field(const gr_reader *r, const json_t *object, const char *name) {
    const char *column = gr_form_column(r, name);
    const json_t *value = json_object_get(object, column);
    return value || column != name || strcmp(name, "answer") ? value : json_object_get(object, std_answer);
}

const char *gr_json_type(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "a list";
    case JSON_STRING: return "a string";
    case JSON_TRUE:
    case JSON_FALSE: return "true or false";
    case JSON_NULL: return "null";
    default: return "a number";
    }
}

static void make_printable(char *text) { /* what comes from a file must not break a message's one line */
    for (; *text; text++)
        if ((uint8_t)*text < 0x20 || *text == 0x7F) *text = '?';
}

/* "id, question, answer": the keys of an object, shortened. */
static void list_keys(const json_t *object, char *out, size_t size) {
    enum { MAX_KEYS = 12, MAX_KEY = 40 };
    const char *key;
    json_t *value;
    size_t n = 0;
    int count = 0;
    out[0] = '\0';
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        if (n + MAX_KEY + 8 > size) break;
        bool more = count++ == MAX_KEYS;
        n += (size_t)snprintf(out + n, size - n, "%s%.*s", count > 1 ? ", " : "", MAX_KEY, more ? "..." : key);
        if (more) break;
    }
    make_printable(out);
    if (!count) snprintf(out, size, "none");
}

graft_status gr_form_fail(const gr_conversion *c, const char *format, ...) {
    char where[400], what[600], message[40] = "";
    va_list args;
    gr_reader_where(c->r, c->i, where, sizeof where);
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    make_printable(what);
    if (c->message) snprintf(message, sizeof message, "message %lld: ", (long long)c->message);
    return gr_fail(c->err, GRAFT_BAD_INPUT, "%s: %s%s", where, message, what);
}

graft_status gr_form_fail_missing(const gr_conversion *c, const char *name, const json_t *object) {
    char keys[400];
    list_keys(object, keys, sizeof keys);
    return gr_form_fail(c, "no \"%s\" here (format %s; keys: %s)", name, c->r->format->name, keys);
}

/* The text of a JSON string. Contents end at their NUL, so that U+0000 inside one reads as U+FFFD. */
graft_status gr_form_string(gr_conversion *c, const json_t *value, const char *name, const char **out) {
    if (!json_is_string(value)) return gr_form_fail(c, "\"%s\" is %s, expected a string", name, gr_json_type(value));
    const char *text = json_string_value(value);
    size_t len = json_string_length(value);
    *out = text;
    if (strlen(text) == len) return GRAFT_OK;
    char *copy = gr_arena_alloc(&c->s->arena, 3 * (int64_t)len + 1), *to = copy;
    if (!copy) return gr_fail_memory(c->err, "sample");
    for (size_t k = 0; k < len; k++) {
        if (text[k]) *to++ = text[k];
        else to = (char *)memcpy(to, "\xEF\xBF\xBD", 3) + 3;
    }
    *out = copy;
    gr_tally_add(c->r->tally, GR_REMARK_NUL, NULL);
    return GRAFT_OK;
}

/* A required string field, or an optional one: "" when missing or null. */
static graft_status text_field(gr_conversion *c, const json_t *object, const char *name, bool required, const char **out) {
    const json_t *value = field(c->r, object, name);
    *out = "";
    if (!value && required) return gr_form_fail_missing(c, name, object);
    if (!value || (!required && json_is_null(value))) return GRAFT_OK;
    return gr_form_string(c, value, name, out);
}

graft_status gr_form_push(gr_conversion *c, gr_message m) {
    gr_sample *s = c->s;
    if (!gr_grow(&s->messages, &s->capacity, s->n_messages + 1, sizeof *s->messages)) return gr_fail_memory(c->err, "sample");
    s->messages[s->n_messages++] = m;
    return GRAFT_OK;
}

static graft_status push(gr_conversion *c, const char *role, const char *content) {
    return gr_form_push(c, (gr_message){.role = role, .content = content});
}

json_t *gr_form_own(gr_conversion *c, json_t *value) {
    if (!c->s->made) c->s->made = json_array();
    return value && json_array_append_new(c->s->made, value) == 0 ? value : NULL;
}

static graft_status push_system(gr_conversion *c) {
    const char *text;
    graft_status st = text_field(c, c->s->root, "system", false, &text);
    return st == GRAFT_OK && text[0] ? push(c, "system", text) : st;
}

/* ---- one function a form ---- */

static graft_status convert_turns(gr_conversion *c) {
    graft_status st = GRAFT_OK;
    const char *name = c->r->format->required[0];
    const json_t *turns = field(c->r, c->s->root, name), *first = json_array_get(turns, 0);
    const char *who = json_string_value(json_object_get(first, "role"));
    if (!who) who = json_string_value(json_object_get(first, "from"));
    if (!turns) return gr_form_fail_missing(c, name, c->s->root);
    GR_TRY(push_system(c));
    if (c->s->n_messages && who && (!strcmp(who, "system") || !strcmp(who, "developer")))
        GR_TRY(gr_form_fail(
            c, "a \"system\" field beside a message of the role %.20s: which one counts? ignore: [system] leaves the field aside",
            who));
    GR_TRY(gr_form_push_turns(c, turns, name));
done:
    return st;
}

/* instruction + "\n" + input, or the one that is not empty. */
static graft_status push_instruction(gr_conversion *c, const char *instruction, const char *input) {
    if (!input[0] || !instruction[0]) return push(c, "user", input[0] ? input : instruction);
    int64_t n = (int64_t)strlen(instruction) + (int64_t)strlen(input) + 2;
    char *joined = gr_arena_alloc(&c->s->arena, n);
    if (!joined) return gr_fail_memory(c->err, "sample");
    snprintf(joined, (size_t)n, "%s\n%s", instruction, input);
    return push(c, "user", joined);
}

static graft_status push_history(gr_conversion *c) {
    graft_status st = GRAFT_OK;
    const json_t *history = field(c->r, c->s->root, "history");
    if (!history || json_is_null(history)) return GRAFT_OK;
    if (!json_is_array(history))
        return gr_form_fail(c, "\"history\" is %s, expected a list of [question, answer]", gr_json_type(history));
    for (size_t k = 0; k < json_array_size(history); k++) {
        const json_t *pair = json_array_get(history, k);
        const char *question, *answer;
        if (!json_is_array(pair) || json_array_size(pair) != 2)
            return gr_form_fail(c, "\"history\" must hold [question, answer] pairs");
        GR_TRY(gr_form_string(c, json_array_get(pair, 0), "history", &question));
        GR_TRY(gr_form_string(c, json_array_get(pair, 1), "history", &answer));
        GR_TRY(push(c, "user", question));
        GR_TRY(push(c, "assistant", answer));
    }
done:
    return st;
}

/* instance: the object that holds input and output. */
static graft_status push_task(gr_conversion *c, const json_t *instance) {
    graft_status st = GRAFT_OK;
    const char *instruction, *input, *output;
    GR_TRY(text_field(c, c->s->root, "instruction", true, &instruction));
    GR_TRY(text_field(c, instance, "input", false, &input));
    GR_TRY(text_field(c, instance, "output", true, &output));
    GR_TRY(push_system(c));
    if (instance == c->s->root) GR_TRY(push_history(c));
    GR_TRY(push_instruction(c, instruction, input));
    GR_TRY(push(c, "assistant", output));
done:
    return st;
}

static graft_status convert_alpaca(gr_conversion *c) { return push_task(c, c->s->root); }

/* The seed tasks of self-instruct and BELLE. */
static graft_status convert_instances(gr_conversion *c) {
    const json_t *list = field(c->r, c->s->root, "instances"), *instance = json_array_get(list, 0);
    if (!list) return gr_form_fail_missing(c, "instances", c->s->root);
    if (json_array_size(list) != 1 || !json_is_object(instance))
        return gr_form_fail(c, "\"instances\" must be a list with one object {input, output}; write one line for each instance");
    return push_task(c, instance);
}

/* A string is one message of that role; a list is messages. */
static graft_status push_part(gr_conversion *c, const char *name, const char *role) {
    const json_t *value = field(c->r, c->s->root, name);
    const char *text;
    if (!value) return gr_form_fail_missing(c, name, c->s->root);
    if (json_is_array(value)) return gr_form_push_turns(c, value, name);
    graft_status st = gr_form_string(c, value, name, &text);
    return st == GRAFT_OK ? push(c, role, text) : st;
}

static graft_status convert_prompt(gr_conversion *c) {
    graft_status st = GRAFT_OK;
    GR_TRY(push_system(c));
    GR_TRY(push_history(c));
    GR_TRY(push_part(c, "prompt", "user"));
    if (gr_form_has_answers(c->r->format)) GR_TRY(push_part(c, "completion", "assistant"));
    c->s->is_pair = c->s->n_messages == 2 && !json_is_array(field(c->r, c->s->root, "prompt")) &&
                    !json_is_array(field(c->r, c->s->root, "completion"));
done:
    return st;
}

static graft_status convert_question(gr_conversion *c) {
    graft_status st = GRAFT_OK;
    const char *question, *answer;
    GR_TRY(text_field(c, c->s->root, "question", true, &question));
    GR_TRY(text_field(c, c->s->root, "answer", true, &answer));
    GR_TRY(push_system(c));
    GR_TRY(push_history(c));
    GR_TRY(push(c, "user", question));
    GR_TRY(push(c, "assistant", answer));
done:
    return st;
}

static graft_status convert_text(gr_conversion *c) { return text_field(c, c->s->root, "text", true, &c->s->text); }

/* Numbers for templates must be the file's: a whole number that was read as a fraction would be written as one. */
static graft_status check_numbers(const gr_conversion *c) {
    bool given = c->s->tools || c->s->documents;
    for (int64_t i = 0; i < c->s->n_messages; i++) given |= c->s->messages[i].fields != NULL;
    if (!c->s->rounded || !given) return GRAFT_OK;
    return gr_form_fail(c, "a whole number beyond 64 bits beside tools or other fields for the template; write it as a string");
}

graft_status gr_form_convert(const gr_reader *r, int64_t i, gr_sample *s, graft_error *err) {
    graft_status st;
    gr_conversion c = {.r = r, .i = i, .s = s, .err = err};
    if (!json_is_object(s->root)) return gr_form_fail(&c, "a sample is %s, expected an object", gr_json_type(s->root));
    gr_fields_drop_ignored(r, s->root);
    GR_TRY(gr_fields_check_sample(&c));
    GR_TRY(r->format->convert(&c));
    if (gr_form_has_turns(r->format)) GR_TRY(gr_form_read_tools(&c));
    GR_TRY(check_numbers(&c));
done:
    return st;
}

/* ---- which form ---- */

/* Field k of a form, NULL past the last. */
static const char *form_field(const gr_form *f, int k) {
    for (int i = 0; i < MAX_FIELDS && f->fields[i]; i++)
        if (k-- == 0) return f->fields[i];
    return gr_form_has_turns(f) && k < GR_LEN(common) ? common[k] : NULL;
}

static bool has_field(const gr_form *f, const char *name) {
    const char *at;
    for (int i = 0; (at = form_field(f, i)); i++)
        if (!strcmp(at, name)) return true;
    return false;
}

static bool has_columns(const gr_reader *r, const gr_form *f) {
    for (int i = 0; i < r->n_columns; i++)
        if (!has_field(f, r->columns[i].name)) return false;
    return true;
}

static bool has_required(const gr_reader *r, const gr_form *f, const json_t *object) {
    return field(r, object, f->required[0]) && (!f->required[1] || field(r, object, f->required[1]));
}

const char *gr_data_format(int i) {
    if (i < 0 || i >= GR_LEN(formats) + GR_LEN(raw_forms)) return NULL;
    return i < GR_LEN(formats) ? formats[i].name : raw_forms[i - GR_LEN(formats)].name;
}

/* "messages {messages, system}; alpaca {...}": the forms with their fields. */
static void list_forms(gr_str *out) {
    for (int i = 0; i < GR_LEN(formats); i++) {
        gr_str_printf(out, "%s%s {%s", i ? ", " : "", formats[i].name, formats[i].required[0]);
        if (formats[i].required[1]) gr_str_printf(out, ", %s", formats[i].required[1]);
        gr_str_puts(out, "}");
    }
}

/* The last form is prompts alone, unless other fields look like answers. */
static graft_status find_prompt(const gr_form **out, const gr_reader *r, const json_t *first, graft_error *err) {
    const gr_form *prompt = &formats[GR_LEN(formats) - 1];
    char where[400], keys[400];
    gr_str hint = {0};
    gr_form_hint(r, first, &hint);
    if (!hint.len && has_columns(r, prompt) && has_required(r, prompt, first)) {
        *out = prompt;
        return GRAFT_OK;
    }
    gr_reader_where(r, 0, where, sizeof where);
    list_keys(first, keys, sizeof keys);
    if (!hint.len) {
        gr_str_puts(&hint, "; forms are ");
        list_forms(&hint);
        gr_str_puts(&hint, "; map other names with columns");
    }
    gr_fail(err, GRAFT_BAD_INPUT, "%s: no known form has the keys %s%s", where, keys, hint.data ? hint.data : "");
    gr_str_release(&hint);
    return GRAFT_BAD_INPUT;
}

static graft_status find_named(const gr_form **out, const gr_reader *r, const char *name, const json_t *first, graft_error *err) {
    const char *names[GR_LEN(formats)];
    gr_conversion c = {.r = r, .err = err};
    char keys[400];
    gr_str hint = {0};
    for (int i = 0; i < GR_LEN(formats); i++) {
        names[i] = formats[i].name;
        if (strcmp(formats[i].name, name)) continue;
        for (int k = 0; k < r->n_columns; k++)
            if (!has_field(&formats[i], r->columns[k].name))
                return gr_fail(err, GRAFT_BAD_USAGE, "%s: columns: \"%s\" is no field of format %s", r->path, r->columns[k].name,
                               name);
        *out = &formats[i];
        if (has_required(r, *out, first)) return GRAFT_OK;
        list_keys(first, keys, sizeof keys);
        gr_form_hint(r, first, &hint);
        const char *second = (*out)->required[1];
        gr_form_fail(&c, "format %s needs %s%s%s, the keys here are: %s%s", name, (*out)->required[0], second ? " and " : "",
                     second ? second : "", keys, hint.len ? hint.data : "; map other names with columns");
        gr_str_release(&hint);
        return GRAFT_BAD_INPUT;
    }
    const char *near = gr_nearest(name, names, GR_LEN(formats));
    gr_str forms = {0};
    list_forms(&forms);
    gr_fail(err, GRAFT_BAD_USAGE, "%s: unknown format \"%s\"%s%s%s; expected auto or one of %s", r->path, name,
            near ? " (did you mean " : "", near ? near : "", near ? "?)" : "", forms.data ? forms.data : "");
    gr_str_release(&forms);
    return GRAFT_BAD_USAGE;
}

static graft_status find_form(const gr_form **out, const gr_reader *r, const char *name, const json_t *first, graft_error *err) {
    gr_conversion c = {.r = r, .err = err};
    if (!json_is_object(first)) return gr_form_fail(&c, "a sample is %s, expected an object", gr_json_type(first));
    graft_status st = gr_fields_check_preference(&c, first);
    if (st != GRAFT_OK) return st;
    if (name && strcmp(name, "auto")) return find_named(out, r, name, first, err);
    for (int i = 0; i < GR_LEN(formats); i++) {
        const gr_form *f = &formats[i];
        if (!has_columns(r, f) || !has_required(r, f, first) || (f->mark && !field(r, first, f->mark))) continue;
        if (!gr_form_has_answers(f)) break;
        *out = f;
        return GRAFT_OK;
    }
    return find_prompt(out, r, first, err);
}

graft_status gr_form_find(gr_reader *r, const char *name, const json_t *first, graft_error *err) {
    const char *at;
    graft_status st = find_form(&r->format, r, name, first, err);
    if (st != GRAFT_OK) return st;
    for (int i = 0; (at = form_field(r->format, i)); i++) r->used[r->n_used++] = gr_form_column(r, at);
    if (has_field(r->format, "answer")) r->used[r->n_used++] = std_answer;
    return GRAFT_OK;
}
