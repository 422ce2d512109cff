/* formats.c - the forms a sample may have, one table row each, and how each becomes messages. */
#include <stdlib.h>
#include <string.h>

#include "core/data/reader.h"

/* One sample on its way to messages. */
typedef struct conversion {
    const gr_reader *r;
    int64_t i;
    gr_sample *s;
    graft_error *err;
} conversion;

typedef graft_status convert_fn(conversion *c);

enum { MAX_FIELDS = 6 };

struct gr_form {
    const char *name;
    convert_fn *convert;
    const char *required[2]; /* graft's names of the fields that every sample has */
    const char *mark; /* a further field that the first sample must have to be detected as this, or NULL */
    const char *fields[MAX_FIELDS]; /* all that are read, for columns and errors */
};

static convert_fn convert_turns, convert_alpaca, convert_instances, convert_prompt, convert_question,
    convert_text;

static const gr_form formats[] = {
    /* detection tries them in this order */
    {"messages", convert_turns, {"messages"}, NULL, {"messages", "system"}},
    {"sharegpt", convert_turns, {"conversations"}, NULL, {"conversations", "system"}},
    {"seed_tasks", convert_instances, {"instruction", "instances"}, NULL, {"instruction", "instances"}},
    {"alpaca",
     convert_alpaca,
     {"instruction", "output"},
     "input",
     {"instruction", "input", "output", "system", "history"}},
    {"instruction_output",
     convert_alpaca,
     {"instruction", "output"},
     NULL,
     {"instruction", "input", "output", "system", "history"}},
    {"prompt_completion", convert_prompt, {"prompt", "completion"}, NULL, {"prompt", "completion", "system"}},
    {"question_answer", convert_question, {"question", "answer"}, NULL, {"question", "answer", "system"}},
    {"text", convert_text, {"text"}, NULL, {"text"}},
    {"prompt", convert_prompt, {"prompt"}, NULL, {"prompt", "system"}}, /* for generation: nothing to learn */
};

const char *gr_form_name(const gr_form *f) {
    return f->name;
}

bool gr_form_has_answers(const gr_form *f) {
    return strcmp(f->name, "prompt") != 0;
}

/* ---- fields ---- */

/* graft's name -> the file's: by columns, else the name itself, else a name that a well-known set uses. */
static const json_t *field(const gr_reader *r, const json_t *object, const char *name) {
    for (int i = 0; i < r->n_columns; i++)
        if (!strcmp(r->columns[i].name, name)) return json_object_get(object, r->columns[i].column);
    const json_t *value = json_object_get(object, name);
    if (!value && !strcmp(name, "answer"))
        value = json_object_get(object, "std_answer"); /* BELLE's evaluation set */
    return value;
}

static const char *type_name(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "a list";
    case JSON_STRING:
        return "a string";
    case JSON_TRUE:
    case JSON_FALSE:
        return "true or false";
    case JSON_NULL:
        return "null";
    default:
        return "a number";
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
        n +=
            (size_t)snprintf(out + n, size - n, "%s%.*s", count > 1 ? ", " : "", MAX_KEY, more ? "..." : key);
        if (more) break;
    }
    make_printable(out);
    if (!count) snprintf(out, size, "none");
}

static graft_status fail_at(const conversion *c, const char *format, ...) GR_PRINTF(2, 3);
static graft_status fail_at(const conversion *c, const char *format, ...) {
    char where[400], what[500];
    va_list args;
    gr_reader_where(c->r, c->i, where, sizeof where);
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    make_printable(what);
    return gr_fail(c->err, GRAFT_BAD_INPUT, "%s: %s", where, what);
}

static graft_status fail_missing(const conversion *c, const char *name, const json_t *object) {
    char keys[400];
    list_keys(object, keys, sizeof keys);
    return fail_at(c, "no \"%s\" here (format %s; keys: %s)", name, c->r->format->name, keys);
}

/* The text of a JSON string. Contents end at their NUL, so that U+0000 inside one reads as U+FFFD. */
static graft_status string_value(conversion *c, const json_t *value, const char *name, const char **out) {
    if (!json_is_string(value)) return fail_at(c, "\"%s\" is %s, expected a string", name, type_name(value));
    const char *text = json_string_value(value);
    size_t len = json_string_length(value);
    *out = text;
    if (strlen(text) == len) return GRAFT_OK;
    char *copy = gr_arena_alloc(&c->s->arena, 3 * (int64_t)len + 1), *to = copy;
    if (!copy) return gr_fail_memory(c->err, "sample");
    for (size_t k = 0; k < len; k++) {
        if (text[k])
            *to++ = text[k];
        else
            to = (char *)memcpy(to, "\xEF\xBF\xBD", 3) + 3;
    }
    *out = copy;
    return GRAFT_OK;
}

/* A required string field, or an optional one: "" when missing or null. */
static graft_status text_field(conversion *c, const json_t *object, const char *name, bool required,
                               const char **out) {
    const json_t *value = field(c->r, object, name);
    *out = "";
    if (!value && required) return fail_missing(c, name, object);
    if (!value || (!required && json_is_null(value))) return GRAFT_OK;
    return string_value(c, value, name, out);
}

static graft_status push(conversion *c, const char *role, const char *content, bool no_loss) {
    gr_sample *s = c->s;
    if (!gr_grow(&s->messages, &s->capacity, s->n_messages + 1, sizeof *s->messages))
        return gr_fail_memory(c->err, "sample");
    s->messages[s->n_messages++] = (gr_message){.role = role, .content = content, .no_loss = no_loss};
    return GRAFT_OK;
}

static graft_status push_system(conversion *c) {
    const char *text;
    graft_status st = text_field(c, c->s->root, "system", false, &text);
    return st == GRAFT_OK && text[0] ? push(c, "system", text, false) : st;
}

/* ---- turns: {"role", "content", "weight"} or {"from", "value"} ---- */

static const char *role_of(const char *name) {
    static const struct {
        const char *name, *role;
    } roles[] = {
        {"user", "user"},        {"assistant", "assistant"},
        {"system", "system"},    {"tool", "tool"},
        {"human", "user"},       {"gpt", "assistant"},
        {"observation", "tool"}, {"function_call", "assistant"},
        {"bot", "assistant"},
    };
    for (int i = 0; i < GR_LEN(roles); i++)
        if (!strcmp(roles[i].name, name)) return roles[i].role;
    return NULL;
}

/* "weight": 1 (or none) is learned, 0 is not. */
static bool read_weight(const json_t *turn, bool *no_loss) {
    const json_t *weight = json_object_get(turn, "weight");
    double value = json_is_number(weight) ? json_number_value(weight) : 1;
    *no_loss = value == 0;
    return (!weight || json_is_null(weight) || json_is_number(weight)) && (value == 0 || value == 1);
}

static graft_status push_turn(conversion *c, const json_t *turn) {
    const char *name, *content, *role;
    bool no_loss;
    graft_status st = GRAFT_OK;
    if (!json_is_object(turn)) return fail_at(c, "a message is %s, expected an object", type_name(turn));
    bool sharegpt =
        !json_object_get(turn, "role") && (json_object_get(turn, "from") || json_object_get(turn, "value"));
    const char *role_key = sharegpt ? "from" : "role", *content_key = sharegpt ? "value" : "content";
    const json_t *who = json_object_get(turn, role_key), *what = json_object_get(turn, content_key);
    if (!who || !what) return fail_missing(c, who ? content_key : role_key, turn);
    GR_TRY(string_value(c, who, role_key, &name));
    GR_TRY(string_value(c, what, content_key, &content));
    role = role_of(name);
    if (!role)
        GR_TRY(fail_at(
            c,
            "unknown role \"%.40s\", expected user, assistant, system or tool (human, gpt, bot, observation, "
            "function_call)",
            name));
    if (!read_weight(turn, &no_loss)) GR_TRY(fail_at(c, "\"weight\" of a message must be 0 or 1"));
    GR_TRY(push(c, role, content, no_loss));
done:
    return st;
}

static graft_status push_turns(conversion *c, const json_t *turns, const char *name) {
    graft_status st = GRAFT_OK;
    if (!json_is_array(turns))
        return fail_at(c, "\"%s\" is %s, expected a list of messages", name, type_name(turns));
    if (json_array_size(turns) == 0) return fail_at(c, "\"%s\" is an empty list", name);
    for (size_t k = 0; k < json_array_size(turns); k++) GR_TRY(push_turn(c, json_array_get(turns, k)));
done:
    return st;
}

/* ---- one function a form ---- */

static graft_status convert_turns(conversion *c) {
    graft_status st = GRAFT_OK;
    const char *name = c->r->format->required[0];
    const json_t *turns = field(c->r, c->s->root, name), *first = json_array_get(turns, 0);
    const char *who = json_string_value(json_object_get(first, "role"));
    if (!who) who = json_string_value(json_object_get(first, "from"));
    if (!turns) return fail_missing(c, name, c->s->root);
    if (!who || strcmp(who, "system")) GR_TRY(push_system(c));
    GR_TRY(push_turns(c, turns, name));
done:
    return st;
}

/* instruction + "\n" + input, or the one that is not empty. */
static graft_status push_instruction(conversion *c, const char *instruction, const char *input) {
    if (!input[0] || !instruction[0]) return push(c, "user", input[0] ? input : instruction, false);
    int64_t n = (int64_t)strlen(instruction) + (int64_t)strlen(input) + 2;
    char *joined = gr_arena_alloc(&c->s->arena, n);
    if (!joined) return gr_fail_memory(c->err, "sample");
    snprintf(joined, (size_t)n, "%s\n%s", instruction, input);
    return push(c, "user", joined, false);
}

static graft_status push_history(conversion *c) {
    graft_status st = GRAFT_OK;
    const json_t *history = field(c->r, c->s->root, "history");
    if (!history || json_is_null(history)) return GRAFT_OK;
    if (!json_is_array(history))
        return fail_at(c, "\"history\" is %s, expected a list of [question, answer]", type_name(history));
    for (size_t k = 0; k < json_array_size(history); k++) {
        const json_t *pair = json_array_get(history, k);
        const char *question, *answer;
        if (!json_is_array(pair) || json_array_size(pair) != 2)
            return fail_at(c, "\"history\" must hold [question, answer] pairs");
        GR_TRY(string_value(c, json_array_get(pair, 0), "history", &question));
        GR_TRY(string_value(c, json_array_get(pair, 1), "history", &answer));
        GR_TRY(push(c, "user", question, false));
        GR_TRY(push(c, "assistant", answer, false));
    }
done:
    return st;
}

static graft_status convert_alpaca(conversion *c) {
    graft_status st = GRAFT_OK;
    const char *instruction, *input, *output;
    GR_TRY(text_field(c, c->s->root, "instruction", true, &instruction));
    GR_TRY(text_field(c, c->s->root, "input", false, &input));
    GR_TRY(text_field(c, c->s->root, "output", true, &output));
    GR_TRY(push_system(c));
    GR_TRY(push_history(c));
    GR_TRY(push_instruction(c, instruction, input));
    GR_TRY(push(c, "assistant", output, false));
done:
    return st;
}

/* The seed tasks of self-instruct and BELLE: the one instance holds input and output. */
static graft_status convert_instances(conversion *c) {
    graft_status st = GRAFT_OK;
    const char *instruction, *input, *output;
    const json_t *list = field(c->r, c->s->root, "instances"), *instance = json_array_get(list, 0);
    if (!list) return fail_missing(c, "instances", c->s->root);
    if (json_array_size(list) != 1 || !json_is_object(instance))
        return fail_at(
            c,
            "\"instances\" must be a list with one object {input, output}; write one line for each instance");
    GR_TRY(text_field(c, c->s->root, "instruction", true, &instruction));
    GR_TRY(text_field(c, instance, "input", false, &input));
    GR_TRY(text_field(c, instance, "output", true, &output));
    GR_TRY(push_instruction(c, instruction, input));
    GR_TRY(push(c, "assistant", output, false));
done:
    return st;
}

/* A string is one message of that role; a list is messages. */
static graft_status push_part(conversion *c, const char *name, const char *role) {
    const json_t *value = field(c->r, c->s->root, name);
    const char *text;
    if (!value) return fail_missing(c, name, c->s->root);
    if (json_is_array(value)) return push_turns(c, value, name);
    graft_status st = string_value(c, value, name, &text);
    return st == GRAFT_OK ? push(c, role, text, false) : st;
}

static graft_status convert_prompt(conversion *c) {
    graft_status st = GRAFT_OK;
    GR_TRY(push_system(c));
    GR_TRY(push_part(c, "prompt", "user"));
    if (gr_form_has_answers(c->r->format)) GR_TRY(push_part(c, "completion", "assistant"));
done:
    return st;
}

static graft_status convert_question(conversion *c) {
    graft_status st = GRAFT_OK;
    const char *question, *answer;
    GR_TRY(text_field(c, c->s->root, "question", true, &question));
    GR_TRY(text_field(c, c->s->root, "answer", true, &answer));
    GR_TRY(push_system(c));
    GR_TRY(push(c, "user", question, false));
    GR_TRY(push(c, "assistant", answer, false));
done:
    return st;
}

static graft_status convert_text(conversion *c) {
    return text_field(c, c->s->root, "text", true, &c->s->text);
}

graft_status gr_form_convert(const gr_reader *r, int64_t i, gr_sample *s, graft_error *err) {
    conversion c = {r, i, s, err};
    if (!json_is_object(s->root))
        return fail_at(&c, "a sample is %s, expected an object", type_name(s->root));
    return r->format->convert(&c);
}

/* ---- which form ---- */

static bool has_field(const gr_form *f, const char *name) {
    for (int i = 0; i < MAX_FIELDS && f->fields[i]; i++)
        if (!strcmp(f->fields[i], name)) return true;
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
    return i >= 0 && i < GR_LEN(formats) ? formats[i].name : NULL;
}

/* "messages {messages, system}; alpaca {...}": the forms with their fields. */
static void list_forms(gr_str *out) {
    for (int i = 0; i < GR_LEN(formats); i++) {
        gr_str_printf(out, "%s%s {%s", i ? ", " : "", formats[i].name, formats[i].required[0]);
        if (formats[i].required[1]) gr_str_printf(out, ", %s", formats[i].required[1]);
        gr_str_puts(out, "}");
    }
}

static graft_status fail_form(const gr_reader *r, const json_t *first, graft_error *err) {
    char where[400], keys[400];
    gr_str forms = {0};
    gr_reader_where(r, 0, where, sizeof where);
    list_keys(first, keys, sizeof keys);
    list_forms(&forms);
    gr_fail(err, GRAFT_BAD_INPUT,
            "%s: no known form has the keys %s; forms are %s; map other names with columns", where, keys,
            forms.data ? forms.data : "");
    gr_str_release(&forms);
    return GRAFT_BAD_INPUT;
}

static graft_status find_named(const gr_form **out, const gr_reader *r, const char *name, const json_t *first,
                               graft_error *err) {
    const char *names[GR_LEN(formats)];
    conversion c = {r, 0, NULL, err};
    char keys[400];
    for (int i = 0; i < GR_LEN(formats); i++) {
        names[i] = formats[i].name;
        if (strcmp(formats[i].name, name)) continue;
        for (int k = 0; k < r->n_columns; k++)
            if (!has_field(&formats[i], r->columns[k].name))
                return gr_fail(err, GRAFT_BAD_USAGE, "%s: columns: \"%s\" is no field of format %s", r->path,
                               r->columns[k].name, name);
        *out = &formats[i];
        if (has_required(r, *out, first)) return GRAFT_OK;
        list_keys(first, keys, sizeof keys);
        const char *and = (*out)->required[1];
        return fail_at(&c, "format %s needs %s%s%s, the keys here are: %s; map other names with columns",
                       name, (*out)->required[0], and? " and " : "", and? and : "", keys);
    }
    const char *near = gr_nearest(name, names, GR_LEN(formats));
    gr_str forms = {0};
    list_forms(&forms);
    gr_fail(err, GRAFT_BAD_USAGE, "%s: unknown format \"%s\"%s%s%s; expected auto or one of %s", r->path,
            name, near ? " (did you mean " : "", near ? near : "", near ? "?)" : "",
            forms.data ? forms.data : "");
    gr_str_release(&forms);
    return GRAFT_BAD_USAGE;
}

graft_status gr_form_find(const gr_form **out, const gr_reader *r, const char *name, const json_t *first,
                          graft_error *err) {
    conversion c = {r, 0, NULL, err};
    if (!json_is_object(first)) return fail_at(&c, "a sample is %s, expected an object", type_name(first));
    if (name && strcmp(name, "auto")) return find_named(out, r, name, first, err);
    if (field(r, first, "chosen") && field(r, first, "rejected"))
        return fail_at(&c, "preference data (chosen, rejected): it needs objective: dpo");
    if (json_is_boolean(field(r, first, "kto_tag")) ||
        (field(r, first, "completion") && json_is_boolean(field(r, first, "label"))))
        return fail_at(&c, "preference data with a label for each answer: keep the good ones and name "
                           "format: prompt_completion");
    for (int i = 0; i < GR_LEN(formats); i++) {
        const gr_form *f = &formats[i];
        if (!has_columns(r, f) || !has_required(r, f, first) || (f->mark && !field(r, first, f->mark)))
            continue;
        *out = f;
        return GRAFT_OK;
    }
    return fail_form(r, first, err);
}
