/* turns.c - a list of messages, as OpenAI or sharegpt write them, to graft's: roles, content in parts, calls of tools. What
 * a message holds beyond role and content goes to the template as `fields`, which agrees with what was read here. */
#include <string.h>

#include "core/data/forms.h"

typedef struct role_name {
    const char *name, *role;
    bool call; /* the content is the call of a tool, in JSON */
} role_name;

static const role_name *find_role(const char *name) {
    static const role_name roles[] = {
        {"user", "user", false},          {"assistant", "assistant", false},
        {"system", "system", false},      {"tool", "tool", false},
        {"human", "user", false},         {"gpt", "assistant", false},
        {"observation", "tool", false},   {"function_call", "assistant", true},
        {"bot", "assistant", false},      {"developer", "system", false},
        {"function", "tool", false},      {"tool_response", "tool", false},
        {"tool_call", "assistant", true}, {"model", "assistant", false},
        {"chatgpt", "assistant", false},  {"prompter", "user", false},
        {"ipython", "tool", false},
    };
    for (int i = 0; i < GR_LEN(roles); i++)
        if (!strcmp(roles[i].name, name)) return &roles[i];
    return NULL;
}

/* ---- content ---- */

/* The text of one part of a content: a string, or {"type": "text", "text"}. */
static graft_status part_text(gr_conversion *c, const json_t *part, int64_t number, const char **text) {
    const char *type = json_string_value(json_object_get(part, "type")), *key;
    json_t *value;
    if (json_is_string(part)) return gr_form_string(c, part, "content", text);
    if (!json_is_object(part))
        return gr_form_fail(c, "\"content\": part %lld is %s, expected {\"type\": \"text\", \"text\"}", (long long)number,
                            gr_json_type(part));
    if (type && strcmp(type, "text") && strcmp(type, "input_text") && strcmp(type, "output_text"))
        return gr_form_fail(c, "\"content\": part %lld is of the type \"%.40s\": graft learns text alone", (long long)number, type);
    if (!json_object_get(part, "text"))
        return gr_form_fail(c, "\"content\": part %lld has no \"text\": graft learns text alone", (long long)number);
    json_object_foreach((json_t *)(uintptr_t)part, key, value)
        if (strcmp(key, "type") && strcmp(key, "text") && gr_field_says(value))
            gr_tally_add(c->r->tally, GR_REMARK_MESSAGE_FIELD, key);
    return gr_form_string(c, json_object_get(part, "text"), "text", text);
}

/* The text parts of a content, one after the other. */
static graft_status join_parts(gr_conversion *c, const json_t *parts, const char **content) {
    graft_status st = GRAFT_OK;
    gr_str joined = {0};
    gr_str_puts(&joined, "");
    if (json_array_size(parts) == 0) GR_TRY(gr_form_fail(c, "\"content\" is a list without parts"));
    for (size_t k = 0; k < json_array_size(parts); k++) {
        const char *text;
        GR_TRY(part_text(c, json_array_get(parts, k), (int64_t)k + 1, &text));
        gr_str_puts(&joined, text);
    }
    *content = joined.failed ? NULL : gr_arena_strdup(&c->s->arena, joined.data);
    if (!*content) GR_TRY(gr_fail_memory(c->err, "sample"));
done:
    gr_str_release(&joined);
    return st;
}

/* ---- calls of tools ---- */

/* {"name", "arguments"} -> {"type": "function", "function": {"name", "arguments"}}, owned; NULL: it is none. */
static json_t *make_call(const json_t *call) {
    json_t *name = json_object_get(call, "name"), *arguments = json_object_get(call, "arguments"),
           *id = json_object_get(call, "id");
    if (!json_is_string(name) || !arguments || json_object_size(call) != (id ? 3u : 2u)) return NULL;
    json_t *made = json_object();
    if (made && id) json_object_set(made, "id", id);
    if (made) json_object_set_new(made, "type", json_string("function"));
    if (made) json_object_set_new(made, "function", json_pack("{s:O,s:O}", "name", name, "arguments", arguments));
    return made;
}

/* A call or a list of calls as a list in OpenAI's form, owned by the sample. */
static graft_status make_calls(gr_conversion *c, const json_t *calls, const char *name, json_t **out) {
    size_t n = json_is_array(calls) ? json_array_size(calls) : 1;
    *out = gr_form_own(c, json_array());
    if (!*out) return gr_fail_memory(c->err, "sample");
    for (size_t k = 0; k < n; k++) {
        json_t *made = make_call(json_is_array(calls) ? json_array_get(calls, k) : calls);
        if (!made || json_array_append_new(*out, made)) break;
    }
    if (n > 0 && json_array_size(*out) == n) return GRAFT_OK;
    return gr_form_fail(c, "\"%s\" must be the call of a tool: {\"name\": ..., \"arguments\": {...}}, or a list of them", name);
}

/* JSON inside a string, owned by the sample; NULL: it is none. */
static json_t *parse_inside(gr_conversion *c, const json_t *text) {
    return gr_form_own(c, json_loadb(json_string_value(text), json_string_length(text), JSON_ALLOW_NUL, NULL));
}

/* The calls that a message makes in whatever form, NULL: none. */
static graft_status read_calls(gr_conversion *c, const json_t *turn, const role_name *role, const json_t *content, json_t **calls) {
    json_t *list = json_object_get(turn, "tool_calls"), *old = json_object_get(turn, "function_call");
    const char *from = gr_field_says(list) ? "tool_calls" : "function_call";
    graft_status st = GRAFT_OK;
    *calls = NULL;
    if (role->call) { /* "{\"name\": ...}" as the content, as sharegpt has it */
        json_t *inside = json_is_string(content) ? parse_inside(c, content) : NULL;
        if (!inside) return gr_form_fail(c, "a turn of \"%s\" must hold JSON: {\"name\": ..., \"arguments\": {...}}", role->name);
        return make_calls(c, inside, role->name, calls);
    }
    if (!gr_field_says(list) && !gr_field_says(old)) return GRAFT_OK;
    if (strcmp(role->role, "assistant"))
        return gr_form_fail(c, "\"%s\" on a turn of the role %s: only an assistant calls tools", from, role->role);
    if (gr_field_says(list) && gr_field_says(old)) return gr_form_fail(c, "both \"tool_calls\" and \"function_call\"");
    if (!gr_field_says(list)) return make_calls(c, old, from, calls);
    *calls = json_is_string(list) ? parse_inside(c, list) : list;
    if (!json_is_array(*calls)) return gr_form_fail(c, "\"tool_calls\" is %s, expected a list of calls", gr_json_type(list));
    for (size_t k = 0; k < json_array_size(*calls); k++) {
        const json_t *call = json_array_get(*calls, k), *function = json_object_get(call, "function");
        if (!json_is_string(json_object_get(function ? function : call, "name")))
            GR_TRY(gr_form_fail(c, "\"tool_calls\": call %lld has no \"function\" with a \"name\"", (long long)k + 1));
    }
done:
    return st;
}

/* ---- one message ---- */

/* What was read of one turn. */
typedef struct turn {
    const json_t *json;
    const role_name *role;
    const char *role_key, *content_key;
    json_t *calls;
    gr_message m;
    bool more, joined; /* fields beyond role and content; content that is not the file's string */
} turn;

/* The message as templates should see it: the file's own object where nothing was read as something else. */
static graft_status make_fields(gr_conversion *c, turn *t) {
    const json_t *content = json_object_get(t->json, t->content_key), *role = json_object_get(t->json, t->role_key);
    const char *key;
    json_t *value;
    bool as_is = !strcmp(t->role_key, "role") && !strcmp(json_string_value(role), t->m.role) && !t->joined &&
                 (!t->calls || t->calls == json_object_get(t->json, "tool_calls"));
    t->m.fields = t->json;
    if (as_is) return GRAFT_OK;
    json_t *made = gr_form_own(c, json_object());
    t->m.fields = made;
    if (!made) return gr_fail_memory(c->err, "sample");
    json_object_set_new(made, "role", json_string(t->m.role));
    if (content) json_object_set_new(made, "content", json_is_null(content) ? json_null() : json_string(t->m.content));
    json_object_foreach((json_t *)(uintptr_t)t->json, key, value)
        if (strcmp(key, t->role_key) && strcmp(key, t->content_key) && strcmp(key, "function_call"))
            json_object_set(made, key, value);
    if (t->calls) json_object_set(made, "tool_calls", t->calls);
    return GRAFT_OK;
}

static graft_status read_role(gr_conversion *c, turn *t) {
    const char *name;
    const json_t *who = json_object_get(t->json, t->role_key);
    if (!who) return gr_form_fail_missing(c, t->role_key, t->json);
    graft_status st = gr_form_string(c, who, t->role_key, &name);
    if (st != GRAFT_OK) return st;
    t->role = find_role(name);
    if (!t->role)
        return gr_form_fail(c,
                            "unknown role \"%.40s\", expected user, assistant, system or tool (human, gpt, bot, observation, "
                            "function_call)",
                            name);
    t->m.role = t->role->role;
    if (!strcmp(name, "developer")) gr_tally_add(c->r->tally, GR_REMARK_DEVELOPER, NULL);
    return GRAFT_OK;
}

static graft_status read_content(gr_conversion *c, turn *t) {
    const json_t *what = json_object_get(t->json, t->content_key), *reasoning = json_object_get(t->json, "reasoning_content");
    graft_status st = read_calls(c, t->json, t->role, what, &t->calls);
    if (st != GRAFT_OK) return st;
    if (reasoning && !json_is_null(reasoning) && !json_is_string(reasoning))
        return gr_form_fail(c, "\"reasoning_content\" is %s, expected a string", gr_json_type(reasoning));
    t->joined = !json_is_string(what) || t->role->call;
    t->m.content = "";
    if (t->role->call) return GRAFT_OK;
    if (t->calls && (!what || json_is_null(what))) return t->joined = false, GRAFT_OK;
    if (!what) return gr_form_fail_missing(c, t->content_key, t->json);
    if (json_is_array(what)) return join_parts(c, what, &t->m.content);
    st = gr_form_string(c, what, t->content_key, &t->m.content);
    t->joined = t->m.content != json_string_value(what); /* its U+0000 were replaced */
    return st;
}

/* Calls of tools in turns of their own, one after the other, are one turn's: the model would learn to stop between them. */
static bool joins_last_call(gr_conversion *c, const turn *t) {
    if (!t->role->call || !c->last_call || c->message != c->last_call + 1) return false;
    const gr_message *last = &c->s->messages[c->s->n_messages - 1];
    if (last->no_loss != t->m.no_loss) return false;
    return json_array_extend(json_object_get(last->fields, "tool_calls"), t->calls) == 0;
}

static graft_status push_turn(gr_conversion *c, json_t *json) {
    graft_status st = GRAFT_OK;
    if (!json_is_object(json)) return gr_form_fail(c, "a message is %s, expected an object", gr_json_type(json));
    bool sharegpt = !json_object_get(json, "role") && (json_object_get(json, "from") || json_object_get(json, "value"));
    turn t = {.json = json, .role_key = sharegpt ? "from" : "role", .content_key = sharegpt ? "value" : "content"};
    gr_fields_drop_ignored(c->r, json);
    GR_TRY(read_role(c, &t));
    GR_TRY(gr_fields_check_message(c, json, t.m.role, &t.m.no_loss, &t.more));
    GR_TRY(read_content(c, &t));
    if (joins_last_call(c, &t)) {
        c->last_call = c->message;
        return GRAFT_OK;
    }
    if (t.more || t.calls) GR_TRY(make_fields(c, &t));
    if (t.role->call) c->last_call = c->message;
    GR_TRY(gr_form_push(c, t.m));
done:
    return st;
}

/* Once a conversation: an order of turns that is unusual. */
static void remark_order(const gr_conversion *c, int64_t first) {
    const gr_message *m = c->s->messages + first;
    int64_t n = c->s->n_messages - first, start = 0;
    while (start < n && !strcmp(m[start].role, "system")) start++;
    if (first == 0 && start < n && !strcmp(m[start].role, "assistant")) gr_tally_add(c->r->tally, GR_REMARK_ANSWER_FIRST, NULL);
    for (int64_t i = start + 1; i < n; i++) {
        if (strcmp(m[i].role, m[i - 1].role) || !strcmp(m[i].role, "tool")) continue;
        gr_tally_add(c->r->tally, GR_REMARK_SAME_ROLE, NULL);
        return;
    }
}

graft_status gr_form_push_turns(gr_conversion *c, const json_t *turns, const char *name) {
    graft_status st = GRAFT_OK;
    int64_t first = c->s->n_messages;
    if (json_is_string(turns) && gr_field_says(turns)) { /* in a cell of a CSV */
        const json_t *inside = parse_inside(c, turns);
        if (!inside) return gr_form_fail(c, "\"%s\" is a string that is no JSON, expected a list of messages", name);
        turns = inside;
    }
    if (!json_is_array(turns)) return gr_form_fail(c, "\"%s\" is %s, expected a list of messages", name, gr_json_type(turns));
    if (json_array_size(turns) == 0) return gr_form_fail(c, "\"%s\" is an empty list", name);
    for (size_t k = 0; k < json_array_size(turns); k++) {
        c->message = (int64_t)k + 1;
        GR_TRY(push_turn(c, json_array_get(turns, k)));
    }
    remark_order(c, first);
done:
    c->message = c->last_call = 0;
    return st;
}

/* ---- of a sample ---- */

/* A list of objects, or the same as JSON inside a string; NULL when there is none. */
static graft_status read_list(gr_conversion *c, const char *name, json_t **list) {
    json_t *value = json_object_get(c->s->root, gr_form_column(c->r, name));
    *list = NULL;
    if (!gr_field_says(value)) return GRAFT_OK;
    bool inside = json_is_string(value);
    *list = inside ? parse_inside(c, value) : value;
    if (inside && json_is_object(*list)) { /* one alone */
        json_t *one = *list;
        *list = gr_form_own(c, json_array());
        if (!*list || json_array_append(*list, one)) return gr_fail_memory(c->err, "sample");
    }
    if (!json_is_array(*list))
        return gr_form_fail(c, "\"%s\" is %s, expected a list of objects", name,
                            inside ? "a string that is no JSON list" : gr_json_type(value));
    for (size_t k = 0; k < json_array_size(*list); k++)
        if (!json_is_object(json_array_get(*list, k)))
            return gr_form_fail(c, "\"%s\" holds %s, expected objects", name, gr_json_type(json_array_get(*list, k)));
    if (json_array_size(*list) == 0) *list = NULL;
    return GRAFT_OK;
}

/* Descriptions of bare functions as tools: {"type": "function", "function": ...} around each. */
static graft_status wrap_functions(gr_conversion *c, json_t **list) {
    json_t *wrapped = gr_form_own(c, json_array());
    if (!wrapped) return gr_fail_memory(c->err, "sample");
    for (size_t k = 0; k < json_array_size(*list); k++) {
        json_t *tool = json_array_get(*list, k);
        bool bare = json_object_get(tool, "name") && !json_object_get(tool, "function");
        if (bare ? json_array_append_new(wrapped, json_pack("{s:s,s:O}", "type", "function", "function", tool))
                 : json_array_append(wrapped, tool))
            return gr_fail_memory(c->err, "sample");
    }
    *list = wrapped;
    return GRAFT_OK;
}

graft_status gr_form_read_tools(gr_conversion *c) {
    json_t *tools, *functions, *documents;
    graft_status st;
    GR_TRY(read_list(c, "tools", &tools));
    GR_TRY(read_list(c, "functions", &functions));
    GR_TRY(read_list(c, "documents", &documents));
    if (tools && functions) GR_TRY(gr_form_fail(c, "both \"tools\" and \"functions\""));
    if (functions || (tools && !strcmp(gr_form_name(c->r->format), "sharegpt"))) {
        if (functions) tools = functions;
        GR_TRY(wrap_functions(c, &tools));
    }
    c->s->tools = tools;
    c->s->documents = documents;
done:
    return st;
}
