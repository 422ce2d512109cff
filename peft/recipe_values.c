/* The values of a recipe: each type of key reads a node of the YAML tree into its field. */
#include "peft/recipe_values.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/data/content.h"
#include "peft/recipe_check.h"

static graft_status expected(gr_reading *rd, const gr_yaml *n, const gr_key *k, const char *what) {
    char found[160];
    return gr_problem_at(rd->problems, n, GR_AT_VALUE, "%s%s%s: expected %s, found %s", k->section, *k->section ? "." : "", k->name,
                         what, gr_yaml_describe(n, found, sizeof found));
}

static bool parse_int(const char *s, int64_t *out) {
    char *end;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    if (end == s || *end || errno || s[0] == ' ') return false;
    *out = v;
    return true;
}

/* Decimal notation only: no hex, no inf, no nan. */
static bool parse_float(const char *s, double *out) {
    char *end;
    if (!*s || s[strspn(s, "+-.0123456789eE")]) return false;
    double v = strtod(s, &end);
    if (end == s || *end || !isfinite(v)) return false;
    *out = v;
    return true;
}

/* "12GiB", "500MB", "1048576": bytes. */
static bool parse_size(const char *s, int64_t *out) {
    static const struct unit {
        const char *name;
        double bytes;
    } units[] = {{"", 1},      {"B", 1},        {"KB", 1e3},        {"MB", 1e6},           {"GB", 1e9},
                 {"TB", 1e12}, {"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"TiB", 1099511627776.0}};
    char number[32];
    size_t n = strspn(s, "0123456789.");
    double v;
    if (n == 0 || n >= sizeof number) return false;
    memcpy(number, s, n);
    number[n] = '\0';
    if (!parse_float(number, &v)) return false;
    s += n + strspn(s + n, " ");
    for (int i = 0; i < GR_LEN(units); i++)
        if (strcmp(s, units[i].name) == 0 && v * units[i].bytes < 9e18) {
            *out = (int64_t)(v * units[i].bytes);
            return true;
        }
    return false;
}

static graft_status check_range(gr_reading *rd, const gr_yaml *n, const gr_key *k, double v) {
    double min, max;
    char range[64];
    gr_key_range(k, &min, &max);
    if (v >= min && v <= max) return GRAFT_OK;
    if (isinf(max)) snprintf(range, sizeof range, "at least %g", min);
    else snprintf(range, sizeof range, "a number from %g to %g", min, max);
    return expected(rd, n, k, range);
}

static bool plain_word(const gr_yaml *n, const char *word) {
    return n->kind == GR_YAML_SCALAR && n->plain && strcmp(n->text, word) == 0;
}

static graft_status read_number(gr_reading *rd, const gr_yaml *n, const gr_key *k, void *field) {
    bool plain = n->kind == GR_YAML_SCALAR && n->plain;
    int64_t i = -1;
    double f;
    switch (k->type) {
    case GR_KEY_FLOAT:
        if (!plain || !parse_float(n->text, &f)) return expected(rd, n, k, "a number");
        *(double *)field = f;
        return check_range(rd, n, k, f);
    case GR_KEY_INT_AUTO:
    case GR_KEY_SIZE_AUTO:
    case GR_KEY_INT_NULL:
        *(int64_t *)field = -1;
        if (k->type == GR_KEY_INT_NULL ? gr_yaml_is_null(n) : plain_word(n, "auto")) return GRAFT_OK;
        if (k->type == GR_KEY_SIZE_AUTO) {
            if (!plain || !parse_size(n->text, &i)) return expected(rd, n, k, "a size such as 12GiB, or auto");
            break;
        }
        if (!plain || !parse_int(n->text, &i))
            return expected(rd, n, k, k->type == GR_KEY_INT_NULL ? "a whole number or null" : "a whole number or auto");
        break;
    default:
        if (!plain || !parse_int(n->text, &i)) return expected(rd, n, k, "a whole number");
    }
    *(int64_t *)field = i;
    return check_range(rd, n, k, (double)i);
}

static graft_status read_bool(gr_reading *rd, const gr_yaml *n, const gr_key *k, bool *field) {
    static const char *const words[] = {"false", "true", "False", "True", "no", "yes", "off", "on"};
    for (int i = 0; i < GR_LEN(words); i++)
        if (plain_word(n, words[i])) {
            *field = i % 2 == 1;
            return GRAFT_OK;
        }
    return expected(rd, n, k, "true or false");
}

static graft_status read_enum(gr_reading *rd, const gr_yaml *n, const gr_key *k, int *field) {
    const char *names[16], *why, *near = NULL, *text = n->kind == GR_YAML_SCALAR ? n->text : NULL;
    char what[256];
    int n_choices = 0;
    for (const gr_choice *c = k->choices; c->name && n_choices < GR_LEN(names); c++) {
        names[n_choices++] = c->name;
        if (!text || strcmp(text, c->name) != 0) continue;
        *field = c->value;
        return GRAFT_OK;
    }
    if (text && (why = gr_recipe_later(k, text)))
        return gr_problem_at(rd->problems, n, GR_AT_VALUE, "%s%s%s: %s %s", k->section, *k->section ? "." : "", k->name, text, why);
    if (text) near = gr_nearest(text, names, n_choices);
    snprintf(what, sizeof what, "%s%s%s%s%s", n_choices > 1 ? "one of " : "", k->constraint, near ? " (did you mean " : "",
             near ? near : "", near ? "?)" : "");
    return expected(rd, n, k, what);
}

static int count_children(const gr_yaml *n) {
    int count = 0;
    for (const gr_yaml *c = n->child; c; c = c->next) count++;
    return count;
}

static graft_status read_list(gr_reading *rd, const gr_yaml *n, const gr_key *k, gr_list *list) {
    graft_status st = GRAFT_OK;
    *list = (gr_list){0};
    if (gr_yaml_is_null(n)) return GRAFT_OK;
    if (n->kind == GR_YAML_MAP) return expected(rd, n, k, "a list of names");
    int count = n->kind == GR_YAML_LIST ? count_children(n) : 1;
    list->items = gr_arena_alloc(&rd->r->arena, count * (int64_t)sizeof *list->items);
    if (!list->items) return gr_fail_memory(rd->err, k->name);
    for (const gr_yaml *c = n->kind == GR_YAML_LIST ? n->child : n; c; c = n->kind == GR_YAML_LIST ? c->next : NULL) {
        if (c->kind != GR_YAML_SCALAR || gr_yaml_is_null(c) || !*c->text) GR_TRY(expected(rd, c, k, "a name"));
        else list->items[list->n++] = c->text;
    }
done:
    return st;
}

static graft_status read_map(gr_reading *rd, const gr_yaml *n, const gr_key *k, gr_pattern_list *list) {
    graft_status st = GRAFT_OK;
    *list = (gr_pattern_list){0};
    if (gr_yaml_is_null(n)) return GRAFT_OK;
    if (n->kind != GR_YAML_MAP) return expected(rd, n, k, "a mapping of module names to numbers");
    list->items = gr_arena_alloc(&rd->r->arena, count_children(n) * (int64_t)sizeof *list->items);
    if (!list->items) return gr_fail_memory(rd->err, k->name);
    for (const gr_yaml *c = n->child; c; c = c->next) {
        double v = NAN;
        if (c->kind != GR_YAML_SCALAR || !c->plain || !parse_float(c->text, &v)) GR_TRY(expected(rd, c, k, "a number"));
        else GR_TRY(check_range(rd, c, k, v));
        list->items[list->n++] = (gr_pattern){c->key, v};
    }
done:
    return st;
}

/* YAML as JSON: a scalar without quotes is what YAML 1.2 takes it for. NULL when memory is short. */
static json_t *json_of(const gr_yaml *n) {
    int64_t i;
    double f;
    if (n->kind == GR_YAML_MAP) {
        json_t *object = json_object();
        for (const gr_yaml *c = n->child; c; c = c->next) json_object_set_new(object, c->key, json_of(c));
        return object;
    }
    if (n->kind == GR_YAML_LIST) {
        json_t *list = json_array();
        for (const gr_yaml *c = n->child; c; c = c->next) json_array_append_new(list, json_of(c));
        return list;
    }
    if (gr_yaml_is_null(n)) return json_null();
    if (plain_word(n, "true") || plain_word(n, "True")) return json_true();
    if (plain_word(n, "false") || plain_word(n, "False")) return json_false();
    if (n->plain && parse_int(n->text, &i)) return json_integer(i);
    if (n->plain && parse_float(n->text, &f) && isfinite(f)) return json_real(f);
    return json_string(n->text);
}

/* A mapping of any values, kept as the text of a JSON object. */
static graft_status read_values(gr_reading *rd, const gr_yaml *n, const gr_key *k, const char **field) {
    *field = "{}";
    if (gr_yaml_is_null(n)) return GRAFT_OK;
    if (n->kind != GR_YAML_MAP) return expected(rd, n, k, "a mapping such as {enable_thinking: false}");
    json_t *object = json_of(n);
    char *text = object ? json_dumps(object, JSON_REAL_PRECISION(17)) : NULL;
    json_decref(object);
    *field = text ? gr_arena_strdup(&rd->r->arena, text) : NULL;
    free(text);
    return *field ? GRAFT_OK : gr_fail_memory(rd->err, k->name);
}

graft_status gr_resolve_path(gr_arena *arena, const gr_yaml *n, const char *path, const char **out, graft_error *err) {
    const char *slash = n->from_file ? strrchr(n->file, '/') : NULL;
    *out = path;
    if (!slash || path[0] == '/' || gr_exists(path)) return GRAFT_OK;
    char *beside = gr_format("%.*s/%s", (int)(slash - n->file), n->file, path);
    if (!beside) return gr_fail_memory(err, path);
    if (gr_exists(beside)) *out = gr_arena_strdup(arena, beside);
    free(beside);
    return *out ? GRAFT_OK : gr_fail_memory(err, path);
}

/* The same for the value of a key. */
static graft_status read_path(gr_reading *rd, const gr_yaml *n, const gr_key *k, const char **field) {
    graft_status st = gr_resolve_path(&rd->r->arena, n, n->text, field, rd->err);
    if (st != GRAFT_OK || !rd->files || gr_exists(*field)) return st;
    return gr_problem_at(rd->problems, n, GR_AT_FILE, "%s.%s: nothing is there: \"%s\"%s", k->section, k->name, n->text,
                         strcmp(k->name, "base") == 0 ? gr_hub_hint(n->text) : "");
}

/* A name of a list that other files keep; also: what else may be written. */
static graft_status known_name(gr_reading *rd, const gr_yaml *n, const gr_key *k, const char *what, const char *name_of(int),
                               const char *also) {
    const char *names[64];
    char list[512] = "";
    int count = 0;
    for (; count < GR_LEN(names) && (names[count] = name_of(count)); count++) {
        size_t at = strlen(list);
        if (strcmp(n->text, names[count]) == 0) return GRAFT_OK;
        snprintf(list + at, sizeof list - at, ", %s", names[count]);
    }
    const char *near = gr_nearest(n->text, names, count);
    return gr_problem_at(rd->problems, n, GR_AT_VALUE, "%s.%s: unknown %s \"%.64s\"%s%s%s; expected %s%s", k->section, k->name,
                         what, n->text, near ? " (did you mean " : "", near ? near : "", near ? "?)" : "", also, list);
}

static const char *template_name(int i) { return gr_chat_names()[i]; }

static graft_status read_string(gr_reading *rd, const gr_yaml *n, const gr_key *k, const char **field) {
    bool is_path =
        strcmp(k->name, "base") == 0 || strcmp(k->name, "init_from") == 0 ||
        (strcmp(k->name, "template") == 0 && n->text && (gr_ends_with(n->text, ".yaml") || gr_ends_with(n->text, ".jinja")));
    if (n->kind != GR_YAML_SCALAR) return expected(rd, n, k, "a text");
    *field = gr_yaml_is_null(n) ? NULL : n->text;
    if (*field && strcmp(k->name, "template") == 0 && !is_path && strcmp(n->text, "auto") != 0)
        return known_name(rd, n, k, "template", template_name, "auto, FILE.jinja, FILE.yaml");
    graft_error why = {0};
    if (strcmp(k->name, "encoding") == 0 && gr_encoding_check(*field, &why) != GRAFT_OK)
        return gr_problem_at(rd->problems, n, GR_AT_VALUE, "%s.%s: %s", k->section, k->name, why.msg);
    return is_path && *field ? read_path(rd, n, k, field) : GRAFT_OK;
}

/* ---- data sources ---- */

static graft_status read_columns(gr_reading *rd, const gr_yaml *n, const gr_key *k, gr_data_source *s) {
    if (gr_yaml_is_null(n)) return GRAFT_OK;
    if (n->kind != GR_YAML_MAP) return expected(rd, n, k, "columns: {prompt: NAME, completion: NAME, ...}");
    graft_status st = GRAFT_OK;
    gr_column *columns = gr_arena_alloc(&rd->r->arena, count_children(n) * (int64_t)sizeof *columns);
    if (!columns) return gr_fail_memory(rd->err, k->name);
    for (const gr_yaml *c = n->child; c; c = c->next) {
        if (c->kind != GR_YAML_SCALAR || gr_yaml_is_null(c)) GR_TRY(expected(rd, c, k, "the name of a column"));
        else columns[s->n_columns++] = (gr_column){c->key, c->text};
    }
    s->columns = columns;
done:
    return st;
}

/* Names, as a list or one alone. */
static graft_status read_ignore(gr_reading *rd, const gr_yaml *n, const gr_key *k, gr_data_source *s) {
    gr_list list;
    graft_status st = gr_yaml_is_null(n) ? GRAFT_OK : read_list(rd, n, k, &list);
    if (st != GRAFT_OK || gr_yaml_is_null(n)) return st;
    s->ignore = list.items;
    s->n_ignore = list.n;
    return GRAFT_OK;
}

static graft_status read_source_key(gr_reading *rd, const gr_yaml *c, const gr_key *k, gr_data_source *s) {
    static const char *const names[] = {"path", "format", "columns", "ignore", "weight", "share", "limit"};
    bool scalar = c->kind == GR_YAML_SCALAR, null = gr_yaml_is_null(c);
    if (strcmp(c->key, "path") == 0) {
        if (!scalar || null) return expected(rd, c, k, "a path");
        return read_path(rd, c, k, &s->path);
    }
    if (strcmp(c->key, "format") == 0) {
        if (!scalar || null) return expected(rd, c, k, "format: auto or the name of a format");
        s->format = c->text;
        return strcmp(c->text, "auto") == 0 ? GRAFT_OK : known_name(rd, c, k, "format", gr_data_format, "auto");
    } else if (strcmp(c->key, "columns") == 0) {
        return read_columns(rd, c, k, s);
    } else if (strcmp(c->key, "ignore") == 0) {
        return read_ignore(rd, c, k, s);
    } else if (strcmp(c->key, "weight") == 0) {
        if (!scalar || !c->plain || !parse_float(c->text, &s->weight) || s->weight <= 0 || s->weight > 1e6)
            return expected(rd, c, k, "weight: a number above 0");
    } else if (strcmp(c->key, "share") == 0) {
        if (k->type == GR_KEY_EVAL_SOURCES)
            return gr_problem_at(rd->problems, c, GR_AT_KEY, "data.eval: share is of data.train: each sample is evaluated once");
        if (!null && (!scalar || !c->plain || !parse_float(c->text, &s->share) || s->share <= 0 || s->share > 1e18))
            return expected(rd, c, k, "share: a number above 0: its part of all tokens, in any unit");
    } else if (strcmp(c->key, "limit") == 0) {
        if (!null && (!scalar || !c->plain || !parse_int(c->text, &s->limit) || s->limit < 1))
            return expected(rd, c, k, "limit: a whole number from 1, or null");
    } else {
        const char *near = gr_nearest(c->key, names, GR_LEN(names));
        return gr_problem_at(
            rd->problems, c, GR_AT_KEY,
            "unknown key \"%.64s\" in %s.%s: a source has path, format, columns, ignore, weight, share, limit%s%s%s", c->key,
            k->section, k->name, near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
    }
    return GRAFT_OK;
}

static graft_status read_source(gr_reading *rd, const gr_yaml *n, const gr_key *k, gr_data_source *s) {
    graft_status st = GRAFT_OK;
    *s = (gr_data_source){.format = "auto", .weight = 1.0};
    if (n->kind == GR_YAML_SCALAR && !gr_yaml_is_null(n) && *n->text) return read_path(rd, n, k, &s->path);
    if (n->kind != GR_YAML_MAP) return expected(rd, n, k, "a path or {path: ..., format: ..., ...}");
    for (const gr_yaml *c = n->child; c; c = c->next) GR_TRY(read_source_key(rd, c, k, s));
    if (!gr_yaml_find(n, "path") || (s->path && !*s->path))
        st = gr_problem_at(rd->problems, n, GR_AT_VALUE, "%s.%s: a source needs a path", k->section, k->name);
    if (st == GRAFT_OK && gr_yaml_find(n, "share") && gr_yaml_find(n, "weight"))
        st = gr_problem_at(rd->problems, n, GR_AT_VALUE,
                           "%s.%s: a source has a weight (how often its samples come) or a share (of all tokens), not both",
                           k->section, k->name);
done:
    return st;
}

static graft_status read_sources(gr_reading *rd, const gr_yaml *n, const gr_key *k, gr_source_list *list) {
    graft_status st = GRAFT_OK;
    *list = (gr_source_list){0};
    if (gr_yaml_is_null(n)) return GRAFT_OK;
    if (k->type == GR_KEY_EVAL_SOURCES && n->kind == GR_YAML_SCALAR && n->plain && parse_float(n->text, &list->share)) {
        if (list->share > 0 && list->share < 1) return GRAFT_OK;
        return expected(rd, n, k, "a path, or a share between 0 and 1 (such as 0.02)");
    }
    bool many = n->kind == GR_YAML_LIST;
    list->items = gr_arena_alloc(&rd->r->arena, (many ? count_children(n) : 1) * (int64_t)sizeof *list->items);
    if (!list->items) return gr_fail_memory(rd->err, k->name);
    for (const gr_yaml *c = many ? n->child : n; c; c = many ? c->next : NULL)
        GR_TRY(read_source(rd, c, k, &list->items[list->n++]));
done:
    return st;
}

graft_status gr_read_value(gr_reading *rd, const gr_yaml *n, const gr_key *k) {
    void *field = (char *)rd->r + k->offset;
    switch (k->type) {
    case GR_KEY_STRING: return read_string(rd, n, k, field);
    case GR_KEY_BOOL: return read_bool(rd, n, k, field);
    case GR_KEY_ENUM: return read_enum(rd, n, k, field);
    case GR_KEY_LIST: return read_list(rd, n, k, field);
    case GR_KEY_VALUES: return read_values(rd, n, k, field);
    case GR_KEY_MAP: return read_map(rd, n, k, field);
    case GR_KEY_SOURCES:
    case GR_KEY_EVAL_SOURCES: return read_sources(rd, n, k, field);
    default: return read_number(rd, n, k, field);
    }
}
