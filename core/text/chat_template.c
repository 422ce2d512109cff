/* Chat templates as Jinja text: found by name or in a file, written from YAML patterns, or wrapped. */
#include <stdlib.h>
#include <string.h>

#include <yaml.h>

#include "core/base/file.h"
#include "core/text/chat_template.h"
#include "core/text/encode.h"

enum { FILE_MAX = 1 << 22 };

const char *const *gr_chat_names(void) { return gr_chat_template_names; }

/* ---- writing Jinja ---- */

static void put_text(gr_str *out, const char *s, int64_t n) { /* a string literal */
    gr_str_putc(out, '"');
    for (int64_t i = 0; i < n; i++) {
        if (s[i] == '"' || s[i] == '\\') gr_str_printf(out, "\\%c", s[i]);
        else if (s[i] == '\n') gr_str_puts(out, "\\n");
        else if ((uint8_t)s[i] < 0x20 || s[i] == 0x7F) gr_str_printf(out, "\\x%02x", (uint8_t)s[i]);
        else gr_str_putc(out, s[i]);
    }
    gr_str_putc(out, '"');
}

static void put_value(gr_str *out, const json_t *v) {
    const char *key;
    json_t *item;
    size_t i;
    if (json_is_string(v)) {
        put_text(out, json_string_value(v), (int64_t)json_string_length(v));
    } else if (json_is_array(v)) {
        gr_str_putc(out, '[');
        json_array_foreach(v, i, item) {
            if (i) gr_str_puts(out, ", ");
            put_value(out, item);
        }
        gr_str_putc(out, ']');
    } else if (json_is_object(v)) {
        bool more = false;
        gr_str_putc(out, '{');
        json_object_foreach((json_t *)(uintptr_t)v, key, item) {
            if (more) gr_str_puts(out, ", ");
            put_text(out, key, (int64_t)strlen(key));
            gr_str_puts(out, ": ");
            put_value(out, item);
            more = true;
        }
        gr_str_putc(out, '}');
    } else if (json_is_integer(v)) {
        gr_str_printf(out, "%lld", (long long)json_integer_value(v));
    } else if (json_is_real(v)) {
        gr_str_printf(out, "%.17g", json_real_value(v));
    } else {
        gr_str_puts(out, json_is_true(v) ? "true" : json_is_false(v) ? "false" : "none");
    }
}

/* What is put before a template ends with a block and a newline, which trim_blocks takes: the template then still starts a line. */
char *gr_chat_template_with(const char *source, const char *system, const json_t *args) {
    gr_str out = {0};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)args, key, value) {
        gr_str_printf(&out, "{%%- if %s is not defined %%}{%% set %s = ", key, key);
        put_value(&out, value);
        gr_str_puts(&out, " %}{% endif %}\n");
    }
    if (system) {
        gr_str_puts(&out,
                    "{%- if not messages or messages[0].role != 'system' %}{% set messages = [{'role': 'system', 'content': ");
        put_text(&out, system, (int64_t)strlen(system));
        gr_str_puts(&out, "}] + messages %}{% endif %}\n");
    }
    gr_str_puts(&out, source);
    return gr_str_take(&out);
}

char *gr_chat_template_without(const char *source, const char *left_out, const char *kept) {
    gr_str out = {0};
    int64_t n = (int64_t)strlen(source);
    if (n && source[n - 1] == '\n') n--; /* as a template's own last newline goes */
    gr_str_puts(&out, "{%- set rendered %}\n");
    gr_str_add(&out, source, n);
    gr_str_puts(&out, "{%+ endset %}{% if messages and messages[0].role == 'system' %}{{ rendered }}{% elif rendered.startswith(");
    put_text(&out, left_out, (int64_t)strlen(left_out));
    gr_str_puts(&out, ") %}{{ ");
    put_text(&out, kept, (int64_t)strlen(kept));
    gr_str_puts(&out, " + rendered[(");
    put_text(&out, left_out, (int64_t)strlen(left_out));
    gr_str_puts(&out,
                " | length):] }}{% else %}{{ raise_exception('the default system text cannot be left out here') }}{% endif %}");
    return gr_str_take(&out);
}

/* ---- patterns in YAML ---- */

typedef struct patterns {
    char *system, *user, *assistant, *tool, *begin, *gap, *default_system;
} patterns;

static graft_status set_field(patterns *p, const char *key, const char *value, const char *path, graft_error *err) {
    static const char *const known[] = {"system", "user", "assistant", "tool", "begin", "gap", "default_system"};
    char **fields[] = {&p->system, &p->user, &p->assistant, &p->tool, &p->begin, &p->gap, &p->default_system};
    for (int i = 0; i < GR_LEN(known); i++) {
        if (strcmp(key, known[i]) != 0) continue;
        if (i < 4 && !strstr(value, "{content}"))
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: the pattern of %s must hold {content}", path, key);
        free(*fields[i]);
        *fields[i] = gr_strdup(value);
        return *fields[i] ? GRAFT_OK : gr_fail_memory(err, "chat template");
    }
    const char *nearest = gr_nearest(key, known, GR_LEN(known));
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: unknown key %.60s%s%s; a chat template has system, user and assistant", path, key,
                   nearest ? ", did you mean " : "", nearest ? nearest : "");
}

static const char *scalar(yaml_document_t *document, yaml_node_item_t index) {
    const yaml_node_t *node = yaml_document_get_node(document, index);
    return node && node->type == YAML_SCALAR_NODE ? (const char *)node->data.scalar.value : NULL;
}

static graft_status read_mapping(patterns *out, yaml_document_t *document, const char *path, graft_error *err) {
    const yaml_node_t *root = yaml_document_get_root_node(document);
    if (!root || root->type != YAML_MAPPING_NODE)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: a chat template is a mapping {system, user, assistant} of strings", path);
    for (const yaml_node_pair_t *p = root->data.mapping.pairs.start; p < root->data.mapping.pairs.top; p++) {
        const char *key = scalar(document, p->key), *value = scalar(document, p->value);
        if (!key || !value)
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: the value of %.60s must be a string", path, key ? key : "a key");
        graft_status st = set_field(out, key, value, path, err);
        if (st != GRAFT_OK) return st;
    }
    if (!out->user || !out->assistant)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: a chat template needs the patterns user and assistant", path);
    return GRAFT_OK;
}

/* A pattern as pieces that are printed one after the other. */
static void put_pattern(gr_str *out, const char *pattern, int64_t n) {
    static const struct {
        const char *mark, *code;
    } marks[] = {{"{content}", "{{- message.content }}"}, {"{bos}", "{{- bos_token }}"}, {"{eos}", "{{- eos_token }}"}};
    int64_t start = 0;
    for (int64_t i = 0; i <= n;) {
        int found = -1;
        for (int k = 0; k < GR_LEN(marks) && i < n; k++)
            if ((int64_t)strlen(marks[k].mark) <= n - i && gr_starts_with(pattern + i, marks[k].mark)) found = k;
        if (found < 0 && i < n) {
            i++;
            continue;
        }
        if (i > start) {
            gr_str_puts(out, "{{- ");
            put_text(out, pattern + start, i - start);
            gr_str_puts(out, " }}");
        }
        if (found < 0) break;
        gr_str_puts(out, marks[found].code);
        start = i += (int64_t)strlen(marks[found].mark);
    }
}

static void put_all(gr_str *out, const char *pattern) {
    if (pattern) put_pattern(out, pattern, (int64_t)strlen(pattern));
}

static bool has_control(const gr_tokenizer *t, const char *text) {
    gr_match m;
    int64_t n = (int64_t)strlen(text);
    for (int64_t from = 0; gr_added_next(t, &t->added_raw, text, n, from, true, &m); from = m.end)
        if (m.special) return true;
    return strstr(text, "{eos}") != NULL;
}

static void put_role(gr_str *out, bool *first, const char *role, const char *pattern) {
    if (!pattern) return;
    gr_str_printf(out, "{%%- %s message.role == '%s' -%%}", *first ? "if" : "elif", role);
    put_all(out, pattern);
    *first = false;
}

static void put_template(gr_str *out, const patterns *p, const gr_tokenizer *t) {
    const char *content = strstr(p->assistant, "{content}"), *after = content + strlen("{content}");
    bool first = true, end = has_control(t, after);
    gr_str answer = {0};
    gr_str_add(&answer, p->assistant, after - p->assistant);
    if (!end) gr_str_puts(&answer, "{eos}");
    gr_str_puts(&answer, after);
    put_all(out, p->begin);
    if (p->default_system && *p->default_system) {
        gr_str_puts(out, "{%- if messages[0].role != 'system' -%}{%- set messages = [{'role': 'system', 'content': ");
        put_text(out, p->default_system, (int64_t)strlen(p->default_system));
        gr_str_puts(out, "}] + messages -%}{%- endif -%}");
    }
    gr_str_puts(out, "{%- for message in messages -%}");
    put_role(out, &first, "system", p->system);
    put_role(out, &first, "user", p->user);
    put_role(out, &first, "assistant", answer.data);
    if (p->gap && *p->gap) {
        gr_str_puts(out, "{%- if not loop.last or add_generation_prompt -%}");
        put_all(out, p->gap);
        gr_str_puts(out, "{%- endif -%}");
    }
    put_role(out, &first, "tool", p->tool);
    gr_str_puts(out, "{%- else -%}{{- raise_exception('the template has no pattern for the role ' ~ message.role) }}{%- endif "
                     "-%}{%- endfor -%}");
    gr_str_puts(out, "{%- if add_generation_prompt -%}");
    /* a mere space before the answer is the model's to write, as in LLaMA-2 */
    if (content - p->assistant != 1 || p->assistant[0] != ' ') put_pattern(out, p->assistant, content - p->assistant);
    gr_str_puts(out, "{%- endif -%}");
    out->failed = out->failed || answer.failed;
    gr_str_release(&answer);
}

graft_status gr_chat_template_from_yaml(char **source, const char *yaml, int64_t n, const char *path, const gr_tokenizer *t,
                                        graft_error *err) {
    yaml_parser_t parser;
    yaml_document_t document;
    patterns p = {0};
    gr_str out = {0};
    *source = NULL;
    if (!yaml_parser_initialize(&parser)) return gr_fail_memory(err, "YAML parser");
    yaml_parser_set_input_string(&parser, (const unsigned char *)yaml, (size_t)n);
    graft_status st;
    if (yaml_parser_load(&parser, &document)) {
        st = read_mapping(&p, &document, path, err);
        yaml_document_delete(&document);
    } else {
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s:%zu: no YAML: %s", path, parser.problem_mark.line + 1,
                     parser.problem ? parser.problem : "unknown problem");
    }
    yaml_parser_delete(&parser);
    if (st == GRAFT_OK) put_template(&out, &p, t);
    if (st == GRAFT_OK && !(*source = gr_str_take(&out))) st = gr_fail_memory(err, "chat template");
    gr_str_release(&out);
    char *all[] = {p.system, p.user, p.assistant, p.tool, p.begin, p.gap, p.default_system};
    for (int i = 0; i < GR_LEN(all); i++) free(all[i]);
    return st;
}

/* ---- finding ---- */

static graft_status unknown_template(const char *name, graft_error *err) {
    gr_str list = {0};
    int n = 0;
    for (; gr_chat_names()[n]; n++) gr_str_printf(&list, "%s%s", n ? ", " : "", gr_chat_names()[n]);
    const char *choices = list.data ? list.data : "", *nearest = gr_nearest(name, gr_chat_names(), n);
    graft_status st;
    if (strcmp(name, "auto") == 0)
        st = gr_fail(
            err, GRAFT_BAD_USAGE,
            "the model has no chat template; name one (data.template in a recipe, --template elsewhere): %s, or a FILE.jinja or "
            "FILE.yaml",
            choices);
    else
        st = gr_fail(err, GRAFT_BAD_USAGE, "unknown chat template \"%.80s\"%s%s; known: auto, %s, or a FILE.jinja or FILE.yaml",
                     name, nearest ? ", did you mean " : "", nearest ? nearest : "", choices);
    gr_str_release(&list);
    return st;
}

/* "{#- needs A B -#}" on a template's first line: control tokens that the tokenizer must have. */
static graft_status check_needs(const char *name, const char *source, const gr_tokenizer *t, graft_error *err) {
    static const char mark[] = "{#- needs ";
    if (!gr_starts_with(source, mark)) return GRAFT_OK;
    for (const char *s = source + strlen(mark); *s && *s != '-';) {
        char token[64];
        size_t n = strcspn(s, " ");
        snprintf(token, sizeof token, "%.*s", (int)n, s);
        int32_t id = gr_tokenizer_find(t, token);
        if (id < 0 || t->pieces[id].type != GR_PIECE_CONTROL)
            return gr_fail(err, GRAFT_BAD_USAGE,
                           "chat template %s needs the control token %s, which the tokenizer lacks; alpaca, belle, vicuna and none "
                           "need no such token",
                           name, token);
        s += n + strspn(s + n, " ");
    }
    return GRAFT_OK;
}

static graft_status read_template(char **source, const char *path, const gr_tokenizer *t, graft_error *err) {
    char *text = NULL;
    int64_t n;
    graft_status st = gr_file_read(&text, &n, path, FILE_MAX, err);
    if (st != GRAFT_OK || gr_ends_with(path, ".jinja")) {
        *source = text;
        return st;
    }
    st = gr_chat_template_from_yaml(source, text, n, path, t, err);
    free(text);
    return st;
}

graft_status gr_chat_template_find(char **source, const gr_chat_options *o, const gr_tokenizer *t, graft_error *err) {
    const char *name = o->name ? o->name : "auto", *found = o->source;
    *source = NULL;
    if (!found && (gr_ends_with(name, ".jinja") || gr_ends_with(name, ".yaml") || gr_ends_with(name, ".yml")))
        return read_template(source, name, t, err);
    if (!found && strcmp(name, "auto") == 0) found = t->info.chat_template;
    for (int i = 0; !found && gr_chat_templates[i].name; i++) {
        if (strcmp(name, gr_chat_templates[i].name) != 0) continue;
        found = gr_chat_templates[i].source;
        graft_status st = check_needs(name, found, t, err);
        if (st != GRAFT_OK) return st;
    }
    if (!found) return unknown_template(name, err);
    *source = gr_strdup(found);
    return *source ? GRAFT_OK : gr_fail_memory(err, "chat template");
}
