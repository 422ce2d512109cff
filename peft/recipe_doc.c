/* A recipe written out: as YAML with every key, and its documentation for people and for editors. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "peft/recipe_schema.h"

/* ---- the resolved recipe ---- */

/* A code point that a YAML reader would refuse, fold or strip when it stood there as it is. */
static bool needs_escape(uint32_t c) {
    return c < 0x20 || (c >= 0x7F && c <= 0x9F) || c == 0x2028 || c == 0x2029 || c == 0xFEFF || c == 0xFFFE || c == 0xFFFF;
}

/* The code point at s (valid UTF-8, as libyaml made sure) and its length. */
static uint32_t code_point(const char *s, int *len) {
    const unsigned char *u = (const unsigned char *)s;
    uint32_t c = u[0];
    int n = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    if (n > 1) c &= 0x7Fu >> n;
    for (int i = 1; i < n; i++) {
        if ((u[i] & 0xC0) != 0x80) { /* not UTF-8 after all: byte by byte */
            *len = 1;
            return u[0];
        }
        c = c << 6 | (u[i] & 0x3F);
    }
    *len = n;
    return c;
}

static void put_text(gr_str *out, const char *s) {
    static const char *const words[] = {"null", "Null", "NULL", "auto", "true", "false"};
    size_t safe = strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./");
    bool plain = *s && !s[safe] && (strspn(s, "./") || strspn(s, "0123456789-") == 0);
    for (int i = 0; i < GR_LEN(words); i++)
        if (strcmp(s, words[i]) == 0) plain = i == 3; /* "auto" is what `template: auto` says */
    if (strspn(s, "-.0123456789eE") == strlen(s)) plain = false;
    if (plain) {
        gr_str_puts(out, s);
        return;
    }
    gr_str_putc(out, '"');
    for (int len; *s; s += len) {
        uint32_t c = code_point(s, &len);
        if (c == '"' || c == '\\') gr_str_printf(out, "\\%c", (char)c);
        else if (c == '\n') gr_str_puts(out, "\\n");
        else if (needs_escape(c)) gr_str_printf(out, "\\u%04X", (unsigned)c);
        else gr_str_add(out, s, len);
    }
    gr_str_putc(out, '"');
}

/* The shortest decimal that reads back as the same double. */
static void put_double(gr_str *out, double v) {
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    char *e = strchr(text, 'e');
    if (e && !memchr(text, '.', (size_t)(e - text))) /* YAML 1.1 readers take 1e-08 for a text, 1.0e-08 for a number */
        gr_str_printf(out, "%.*s.0%s", (int)(e - text), text, e);
    else gr_str_puts(out, text);
}

/* absolute: a path that leads somewhere is written from the root on, so that it does so from every folder. */
static void put_path(gr_str *out, const char *path, bool absolute) {
    char *whole = absolute ? gr_path_absolute(path) : NULL;
    put_text(out, whole ? whole : path);
    free(whole);
}

/* True when the text of a STRING key names a file or folder. */
static bool is_path(const gr_key *k, const char *text) {
    if (strcmp(k->name, "output_dir") == 0) return true;
    if (strcmp(k->name, "cache") == 0) return strcmp(text, "auto") != 0 && strcmp(text, "none") != 0;
    if (strcmp(k->name, "template") == 0 && !gr_ends_with(text, ".yaml") && !gr_ends_with(text, ".jinja")) return false;
    return (strcmp(k->name, "base") == 0 || strcmp(k->name, "init_from") == 0 || strcmp(k->name, "template") == 0) &&
           gr_exists(text);
}

static void put_source(gr_str *out, const gr_data_source *s, bool absolute) {
    gr_str_puts(out, "\n    - path: ");
    put_path(out, s->path, absolute && gr_exists(s->path));
    gr_str_puts(out, "\n      format: ");
    put_text(out, s->format);
    gr_str_puts(out, "\n      columns: {");
    for (int i = 0; i < s->n_columns; i++) {
        if (i) gr_str_puts(out, ", ");
        put_text(out, s->columns[i].name);
        gr_str_puts(out, ": ");
        put_text(out, s->columns[i].column);
    }
    gr_str_puts(out, "}\n      ignore: [");
    for (int i = 0; i < s->n_ignore; i++) {
        if (i) gr_str_puts(out, ", ");
        put_text(out, s->ignore[i]);
    }
    gr_str_puts(out, s->share > 0 ? "]\n      share: " : "]\n      weight: ");
    put_double(out, s->share > 0 ? s->share : s->weight);
    gr_str_puts(out, "\n      limit: ");
    if (s->limit > 0) gr_str_printf(out, "%lld", (long long)s->limit);
    else gr_str_puts(out, "null");
}

static void put_lists(gr_str *out, const gr_key *k, const void *field, bool absolute) {
    if (k->type == GR_KEY_LIST) {
        const gr_list *list = field;
        gr_str_putc(out, '[');
        for (int i = 0; i < list->n; i++) {
            if (i) gr_str_puts(out, ", ");
            put_text(out, list->items[i]);
        }
        gr_str_putc(out, ']');
    } else if (k->type == GR_KEY_MAP) {
        const gr_pattern_list *list = field;
        gr_str_putc(out, '{');
        for (int i = 0; i < list->n; i++) {
            if (i) gr_str_puts(out, ", ");
            put_text(out, list->items[i].pattern);
            gr_str_puts(out, ": ");
            put_double(out, list->items[i].value);
        }
        gr_str_putc(out, '}');
    } else {
        const gr_source_list *list = field;
        if (list->share > 0) put_double(out, list->share);
        else if (list->n == 0) gr_str_puts(out, "null");
        for (int i = 0; i < list->n; i++) put_source(out, &list->items[i], absolute);
    }
}

static void put_value(gr_str *out, const gr_key *k, const void *field, bool absolute) {
    int64_t i;
    switch (k->type) {
    case GR_KEY_STRING:
        if (*(const char *const *)field)
            put_path(out, *(const char *const *)field, absolute && is_path(k, *(const char *const *)field));
        else gr_str_puts(out, "null");
        break;
    case GR_KEY_VALUES: /* JSON is YAML */ gr_str_puts(out, *(const char *const *)field); break;
    case GR_KEY_FLOAT: put_double(out, *(const double *)field); break;
    case GR_KEY_BOOL: gr_str_puts(out, *(const bool *)field ? "true" : "false"); break;
    case GR_KEY_ENUM: gr_str_puts(out, gr_key_choice(k, *(const int *)field)); break;
    case GR_KEY_INT:
    case GR_KEY_INT_AUTO:
    case GR_KEY_SIZE_AUTO:
    case GR_KEY_INT_NULL:
        i = *(const int64_t *)field;
        if (i < 0 && k->type != GR_KEY_INT) gr_str_puts(out, k->type == GR_KEY_INT_NULL ? "null" : "auto");
        else gr_str_printf(out, "%lld", (long long)i);
        break;
    default: put_lists(out, k, field, absolute);
    }
}

void gr_key_print(const gr_key *k, const gr_recipe *r, gr_str *out) { put_value(out, k, (const char *)r + k->offset, true); }

static graft_status print_recipe(const gr_recipe *r, bool absolute, gr_str *out, graft_error *err) {
    const char *section = "";
    for (int i = 0; i < GR_N_RECIPE_KEYS; i++) {
        const gr_key *k = &gr_recipe_keys[i];
        if (strcmp(section, k->section) != 0 && *k->section) gr_str_printf(out, "%s:\n", k->section);
        section = k->section;
        gr_str_printf(out, "%s%s: ", *section ? "  " : "", k->name);
        put_value(out, k, (const char *)r + k->offset, absolute);
        gr_str_putc(out, '\n');
    }
    return out->failed ? gr_fail_memory(err, "recipe") : GRAFT_OK;
}

graft_status gr_recipe_print(const gr_recipe *r, gr_str *out, graft_error *err) { return print_recipe(r, false, out, err); }

graft_status gr_recipe_print_absolute(const gr_recipe *r, gr_str *out, graft_error *err) { return print_recipe(r, true, out, err); }

/* ---- help ---- */

static const char *form(const gr_key *k) {
    switch (k->type) {
    case GR_KEY_STRING: return "text";
    case GR_KEY_INT: return "whole number";
    case GR_KEY_FLOAT: return "number";
    case GR_KEY_BOOL: return "true or false";
    case GR_KEY_ENUM: return "";
    case GR_KEY_INT_AUTO: return "whole number or auto";
    case GR_KEY_SIZE_AUTO: return "size or auto";
    case GR_KEY_INT_NULL: return "whole number or null";
    case GR_KEY_LIST: return "name or list of names";
    case GR_KEY_MAP: return "{pattern: number}";
    case GR_KEY_VALUES: return "{name: value}";
    case GR_KEY_SOURCES: return "path or list of sources";
    case GR_KEY_EVAL_SOURCES: return "path, list of sources or share";
    }
    return "";
}

void gr_recipe_help(gr_str *out) {
    const char *section = NULL;
    gr_str_puts(out, "A recipe is YAML. Every key below may be left out, except model.base, data.train and output_dir.\n"
                     "On the command line a key is written section.key=value, such as train.learning_rate=1e-4.\n");
    for (int i = 0; i < GR_N_RECIPE_KEYS; i++) {
        const gr_key *k = &gr_recipe_keys[i];
        if (!section || strcmp(section, k->section) != 0) {
            if (*k->section) gr_str_printf(out, "\n%s:\n", k->section);
            else gr_str_puts(out, "\n");
        }
        section = k->section;
        gr_str_printf(out, "%s%s: %s", *section ? "  " : "", k->name, k->fallback);
        gr_str_printf(out, "   # %s%s%s\n", form(k), *form(k) && *k->constraint ? ", " : "", k->constraint);
        gr_str_printf(out, "      %s\n", k->help);
    }
    gr_str_puts(out, "\nA source of data is a path or {path: FILE, format: auto, columns: {prompt: NAME}, ignore: [NAME], weight: "
                     "1.0,\nlimit: null}; columns maps graft's names to the file's, ignore names fields that are left aside.\n"
                     "For pretrain share: NUMBER in place of weight, in all sources: its part of all tokens, in any unit.\n");
}

/* ---- JSON Schema ---- */

static json_t *number_schema(const gr_key *k, const char *type) {
    double min, max;
    gr_key_range(k, &min, &max);
    json_t *s = json_pack("{s:s}", "type", type);
    if (!isinf(min)) json_object_set_new(s, "minimum", strcmp(type, "integer") ? json_real(min) : json_integer((json_int_t)min));
    if (!isinf(max)) json_object_set_new(s, "maximum", strcmp(type, "integer") ? json_real(max) : json_integer((json_int_t)max));
    return s;
}

static json_t *enum_schema(const gr_key *k) {
    json_t *choices = json_array();
    for (const gr_choice *c = k->choices; c->name; c++) json_array_append_new(choices, json_string(c->name));
    return json_pack("{s:o}", "enum", choices);
}

static json_t *source_schema(void) {
    return json_pack(
        "{s:[{s:s},{s:s,s:b,s:[s],s:{s:{s:s},s:{s:s},s:{s:s,s:{s:s}},s:{s:s,s:{s:s}},s:{s:s,s:i},s:{s:s,s:i},s:{s:[s,s],s:i}}}]}",
        "anyOf", "type", "string", "type", "object", "additionalProperties", 0, "required", "path", "properties", "path", "type",
        "string", "format", "type", "string", "columns", "type", "object", "additionalProperties", "type", "string", "ignore",
        "type", "array", "items", "type", "string", "weight", "type", "number", "exclusiveMinimum", 0, "share", "type", "number",
        "exclusiveMinimum", 0, "limit", "type", "integer", "null", "minimum", 1);
}

static json_t *value_schema(const gr_key *k) {
    json_t *s;
    switch (k->type) {
    case GR_KEY_STRING: return json_pack("{s:[s,s]}", "type", "string", "null");
    case GR_KEY_INT: return number_schema(k, "integer");
    case GR_KEY_FLOAT: return number_schema(k, "number");
    case GR_KEY_BOOL: return json_pack("{s:s}", "type", "boolean");
    case GR_KEY_ENUM: return enum_schema(k);
    case GR_KEY_INT_AUTO: return json_pack("{s:[o,{s:s}]}", "anyOf", number_schema(k, "integer"), "const", "auto");
    case GR_KEY_SIZE_AUTO:
        return json_pack("{s:[o,{s:s,s:s}]}", "anyOf", number_schema(k, "integer"), "type", "string", "pattern",
                         "^(auto|[0-9.]+ ?([KMGT]i?)?B?)$");
    case GR_KEY_INT_NULL: return json_pack("{s:[o,{s:s}]}", "anyOf", number_schema(k, "integer"), "type", "null");
    case GR_KEY_LIST:
        return json_pack("{s:[{s:[s,s]},{s:s,s:{s:[s,s]}}]}", "anyOf", "type", "string", "integer", "type", "array", "items",
                         "type", "string", "integer"); /* a token may be its id */
    case GR_KEY_VALUES: return json_pack("{s:[s,s]}", "type", "object", "null");
    case GR_KEY_MAP:
        return json_pack("{s:[s,s],s:o}", "type", "object", "null", "additionalProperties", number_schema(k, "number"));
    case GR_KEY_SOURCES:
    case GR_KEY_EVAL_SOURCES:
        s = json_pack("{s:[o,{s:s,s:o},{s:s}]}", "anyOf", source_schema(), "type", "array", "items", source_schema(), "type",
                      "null");
        if (s && k->type == GR_KEY_EVAL_SOURCES)
            json_array_append_new(json_object_get(s, "anyOf"),
                                  json_pack("{s:s,s:i,s:i}", "type", "number", "exclusiveMinimum", 0, "exclusiveMaximum", 1));
        return s;
    }
    return NULL;
}

static json_t *default_json(const gr_key *k) {
    double v;
    char *end;
    if (strcmp(k->fallback, "null") == 0) return json_null();
    if (strcmp(k->fallback, "{}") == 0) return json_object();
    if (k->type == GR_KEY_BOOL) return json_boolean(strcmp(k->fallback, "true") == 0);
    v = strtod(k->fallback, &end);
    if (*end) return json_string(k->fallback);
    return v == floor(v) && k->type != GR_KEY_FLOAT ? json_integer((json_int_t)v) : json_real(v);
}

graft_status gr_recipe_json_schema(char **json, graft_error *err) {
    json_t *root = json_pack("{s:s,s:s,s:s,s:b,s:{}}", "$schema", "http://json-schema.org/draft-07/schema#", "title",
                             "graft recipe", "type", "object", "additionalProperties", 0, "properties");
    json_t *top = json_object_get(root, "properties");
    for (int i = 0; i < GR_N_RECIPE_KEYS; i++) {
        const gr_key *k = &gr_recipe_keys[i];
        json_t *where = top;
        if (*k->section) {
            if (!json_object_get(top, k->section))
                json_object_set_new(top, k->section,
                                    json_pack("{s:s,s:b,s:{}}", "type", "object", "additionalProperties", 0, "properties"));
            where = json_object_get(json_object_get(top, k->section), "properties");
        }
        json_t *s = value_schema(k);
        json_object_set_new(s, "description", json_string(k->help));
        json_object_set_new(s, "default", default_json(k));
        json_object_set_new(where, k->name, s);
    }
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(15)) : NULL;
    json_decref(root);
    if (!text) return gr_fail_memory(err, "JSON schema");
    *json = text;
    return GRAFT_OK;
}
