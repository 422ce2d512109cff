#include "peft/recipe.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "peft/recipe_check.h"
#include "peft/recipe_schema.h"
#include "peft/recipe_yaml.h"

enum { MAX_RECIPE_BYTES = 1 << 20, MAX_EXTENDS = 8 };

/* ---- the table ---- */

const gr_key gr_recipe_keys[] = {
#define KEY(section, name, type, fallback, constraint, help)                                                 \
    {#section, #name, fallback, constraint, help, GR_KEY_##type, offsetof(gr_recipe, section##_##name)},
#include "peft/schema.def"
#undef KEY
};

enum { N_KEYS = GR_LEN(gr_recipe_keys) };
_Static_assert((int)N_KEYS <= (int)GR_MAX_RECIPE_KEYS, "raise GR_MAX_RECIPE_KEYS");

int gr_recipe_n_keys(void) {
    return N_KEYS;
}

void gr_key_range(const gr_key *k, double *min, double *max) {
    const char *dots = strstr(k->constraint, "..");
    *min = -INFINITY;
    *max = INFINITY;
    if (!dots) return;
    if (dots != k->constraint) *min = strtod(k->constraint, NULL);
    if (dots[2]) *max = strtod(dots + 2, NULL);
}

bool gr_key_choice(const gr_key *k, int i, char out[32]) {
    const char *s = k->constraint;
    for (; i > 0 && s; i--) {
        s = strchr(s, '|');
        if (s) s++;
    }
    if (!s) return false;
    snprintf(out, 32, "%.*s", (int)strcspn(s, "|"), s);
    return true;
}

static const gr_key *find_key(const char *section, const char *name) {
    for (int i = 0; i < N_KEYS; i++)
        if (strcmp(gr_recipe_keys[i].section, section) == 0 && strcmp(gr_recipe_keys[i].name, name) == 0)
            return &gr_recipe_keys[i];
    return NULL;
}

static bool is_section(const char *name) {
    for (int i = 0; i < N_KEYS; i++)
        if (*name && strcmp(gr_recipe_keys[i].section, name) == 0) return true;
    return false;
}

/* ---- values ---- */

typedef struct reading {
    gr_recipe *r;
    const gr_yaml *nodes[N_KEYS]; /* where each key was given; NULL: its default */
    graft_error *err;
} reading;

static graft_status expected(const gr_yaml *n, const gr_key *k, const char *what, graft_error *err) {
    char found[160];
    return gr_yaml_fail(n, false, err, "%s%s%s: expected %s, found %s", k->section, *k->section ? "." : "",
                        k->name, what, gr_yaml_describe(n, found, sizeof found));
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
    } units[] = {
        {"", 1},      {"B", 1},        {"KB", 1e3},        {"MB", 1e6},           {"GB", 1e9},
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

static graft_status check_range(const gr_yaml *n, const gr_key *k, double v, graft_error *err) {
    double min, max;
    char range[64];
    gr_key_range(k, &min, &max);
    if (v >= min && v <= max) return GRAFT_OK;
    if (isinf(max))
        snprintf(range, sizeof range, "at least %g", min);
    else
        snprintf(range, sizeof range, "a number from %g to %g", min, max);
    return expected(n, k, range, err);
}

static bool plain_word(const gr_yaml *n, const char *word) {
    return n->kind == GR_YAML_SCALAR && n->plain && strcmp(n->text, word) == 0;
}

static graft_status read_number(const gr_yaml *n, const gr_key *k, void *field, graft_error *err) {
    bool plain = n->kind == GR_YAML_SCALAR && n->plain;
    int64_t i = -1;
    double f;
    switch (k->type) {
    case GR_KEY_FLOAT:
        if (!plain || !parse_float(n->text, &f)) return expected(n, k, "a number", err);
        *(double *)field = f;
        return check_range(n, k, f, err);
    case GR_KEY_INT_AUTO:
    case GR_KEY_SIZE_AUTO:
    case GR_KEY_INT_NULL:
        *(int64_t *)field = -1;
        if (k->type == GR_KEY_INT_NULL ? gr_yaml_is_null(n) : plain_word(n, "auto")) return GRAFT_OK;
        if (k->type == GR_KEY_SIZE_AUTO) {
            if (!plain || !parse_size(n->text, &i))
                return expected(n, k, "a size such as 12GiB, or auto", err);
            break;
        }
        if (!plain || !parse_int(n->text, &i))
            return expected(
                n, k, k->type == GR_KEY_INT_NULL ? "a whole number or null" : "a whole number or auto", err);
        break;
    default:
        if (!plain || !parse_int(n->text, &i)) return expected(n, k, "a whole number", err);
    }
    *(int64_t *)field = i;
    return check_range(n, k, (double)i, err);
}

static graft_status read_bool(const gr_yaml *n, const gr_key *k, bool *field, graft_error *err) {
    static const char *const words[] = {"false", "true", "False", "True", "no", "yes", "off", "on"};
    for (int i = 0; i < GR_LEN(words); i++)
        if (plain_word(n, words[i])) {
            *field = i % 2 == 1;
            return GRAFT_OK;
        }
    return expected(n, k, "true or false", err);
}

static graft_status read_enum(const gr_yaml *n, const gr_key *k, int *field, graft_error *err) {
    char choices[16][32], what[256];
    const char *names[16];
    int n_choices = 0;
    while (n_choices < 16 && gr_key_choice(k, n_choices, choices[n_choices])) n_choices++;
    for (int i = 0; i < n_choices; i++) {
        names[i] = choices[i];
        if (n->kind == GR_YAML_SCALAR && strcmp(n->text, choices[i]) == 0) {
            *field = i;
            return GRAFT_OK;
        }
    }
    const char *near = n->kind == GR_YAML_SCALAR ? gr_nearest(n->text, names, n_choices) : NULL;
    snprintf(what, sizeof what, "%s%s%s%s%s", n_choices > 1 ? "one of " : "", k->constraint,
             near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
    return expected(n, k, what, err);
}

static int count_children(const gr_yaml *n) {
    int count = 0;
    for (const gr_yaml *c = n->child; c; c = c->next) count++;
    return count;
}

static graft_status read_list(gr_arena *arena, const gr_yaml *n, const gr_key *k, gr_list *list,
                              graft_error *err) {
    *list = (gr_list){0};
    if (gr_yaml_is_null(n)) return GRAFT_OK;
    if (n->kind == GR_YAML_MAP) return expected(n, k, "a list of names", err);
    int count = n->kind == GR_YAML_LIST ? count_children(n) : 1;
    list->items = gr_arena_alloc(arena, count * (int64_t)sizeof *list->items);
    if (!list->items) return gr_fail_memory(err, k->name);
    for (const gr_yaml *c = n->kind == GR_YAML_LIST ? n->child : n; c;
         c = n->kind == GR_YAML_LIST ? c->next : NULL) {
        if (c->kind != GR_YAML_SCALAR || gr_yaml_is_null(c) || !*c->text)
            return expected(c, k, "a name", err);
        list->items[list->n++] = c->text;
    }
    return GRAFT_OK;
}

static graft_status read_map(gr_arena *arena, const gr_yaml *n, const gr_key *k, gr_pattern_list *list,
                             graft_error *err) {
    graft_status st;
    *list = (gr_pattern_list){0};
    if (gr_yaml_is_null(n)) return GRAFT_OK;
    if (n->kind != GR_YAML_MAP) return expected(n, k, "a mapping of module names to numbers", err);
    list->items = gr_arena_alloc(arena, count_children(n) * (int64_t)sizeof *list->items);
    if (!list->items) return gr_fail_memory(err, k->name);
    for (const gr_yaml *c = n->child; c; c = c->next) {
        double v;
        if (c->kind != GR_YAML_SCALAR || !c->plain || !parse_float(c->text, &v))
            return expected(c, k, "a number", err);
        if ((st = check_range(c, k, v, err)) != GRAFT_OK) return st;
        list->items[list->n++] = (gr_pattern){c->key, v};
    }
    return GRAFT_OK;
}

/* A relative path as the recipe's reader sees it: under the working directory, else beside the file that
 * names it. */
static graft_status resolve_path(gr_arena *arena, const gr_yaml *n, const char *path, const char **out,
                                 graft_error *err) {
    const char *slash = n->from_file ? strrchr(n->file, '/') : NULL;
    *out = path;
    if (!slash || path[0] == '/' || gr_exists(path)) return GRAFT_OK;
    char *beside = gr_format("%.*s/%s", (int)(slash - n->file), n->file, path);
    if (!beside) return gr_fail_memory(err, path);
    if (gr_exists(beside)) *out = gr_arena_strdup(arena, beside);
    free(beside);
    return *out ? GRAFT_OK : gr_fail_memory(err, path);
}

static graft_status read_string(gr_arena *arena, const gr_yaml *n, const gr_key *k, const char **field,
                                graft_error *err) {
    bool is_path = strcmp(k->name, "base") == 0 || strcmp(k->name, "init_from") == 0 ||
                   (strcmp(k->name, "template") == 0 && n->text && gr_ends_with(n->text, ".yaml"));
    if (n->kind != GR_YAML_SCALAR) return expected(n, k, "a text", err);
    *field = gr_yaml_is_null(n) ? NULL : n->text;
    return is_path && *field ? resolve_path(arena, n, *field, field, err) : GRAFT_OK;
}

/* ---- data sources ---- */

static graft_status read_columns(gr_arena *arena, const gr_yaml *n, const gr_key *k, gr_data_source *s,
                                 graft_error *err) {
    if (gr_yaml_is_null(n)) return GRAFT_OK;
    if (n->kind != GR_YAML_MAP) return expected(n, k, "columns: {prompt: NAME, completion: NAME, ...}", err);
    gr_column *columns = gr_arena_alloc(arena, count_children(n) * (int64_t)sizeof *columns);
    if (!columns) return gr_fail_memory(err, k->name);
    for (const gr_yaml *c = n->child; c; c = c->next) {
        if (c->kind != GR_YAML_SCALAR || gr_yaml_is_null(c))
            return expected(c, k, "the name of a column", err);
        columns[s->n_columns++] = (gr_column){c->key, c->text};
    }
    s->columns = columns;
    return GRAFT_OK;
}

static graft_status read_source_key(gr_arena *arena, const gr_yaml *c, const gr_key *k, gr_data_source *s,
                                    graft_error *err) {
    static const char *const names[] = {"path", "format", "columns", "weight", "limit"};
    bool scalar = c->kind == GR_YAML_SCALAR, null = gr_yaml_is_null(c);
    if (strcmp(c->key, "path") == 0) {
        if (!scalar || null) return expected(c, k, "a path", err);
        return resolve_path(arena, c, c->text, &s->path, err);
    }
    if (strcmp(c->key, "format") == 0) {
        if (!scalar || null) return expected(c, k, "format: auto or the name of a format", err);
        s->format = c->text;
    } else if (strcmp(c->key, "columns") == 0) {
        return read_columns(arena, c, k, s, err);
    } else if (strcmp(c->key, "weight") == 0) {
        if (!scalar || !c->plain || !parse_float(c->text, &s->weight) || s->weight <= 0 || s->weight > 1e6)
            return expected(c, k, "weight: a number above 0", err);
    } else if (strcmp(c->key, "limit") == 0) {
        if (!null && (!scalar || !c->plain || !parse_int(c->text, &s->limit) || s->limit < 1))
            return expected(c, k, "limit: a whole number from 1, or null", err);
    } else {
        const char *near = gr_nearest(c->key, names, GR_LEN(names));
        return gr_yaml_fail(
            c, true, err,
            "unknown key \"%.64s\" in %s.%s: a source has path, format, columns, weight, limit%s%s%s", c->key,
            k->section, k->name, near ? " (did you mean " : "", near ? near : "", near ? "?)" : "");
    }
    return GRAFT_OK;
}

static graft_status read_source(gr_arena *arena, const gr_yaml *n, const gr_key *k, gr_data_source *s,
                                graft_error *err) {
    graft_status st = GRAFT_OK;
    *s = (gr_data_source){.format = "auto", .weight = 1.0};
    if (n->kind == GR_YAML_SCALAR && !gr_yaml_is_null(n) && *n->text)
        return resolve_path(arena, n, n->text, &s->path, err);
    if (n->kind != GR_YAML_MAP) return expected(n, k, "a path or {path: ..., format: ..., ...}", err);
    for (const gr_yaml *c = n->child; c; c = c->next) GR_TRY(read_source_key(arena, c, k, s, err));
    if (!s->path || !*s->path)
        return gr_yaml_fail(n, false, err, "%s.%s: a source needs a path", k->section, k->name);
done:
    return st;
}

static graft_status read_sources(gr_arena *arena, const gr_yaml *n, const gr_key *k, gr_source_list *list,
                                 graft_error *err) {
    graft_status st = GRAFT_OK;
    *list = (gr_source_list){0};
    if (gr_yaml_is_null(n)) return GRAFT_OK;
    if (k->type == GR_KEY_EVAL_SOURCES && n->kind == GR_YAML_SCALAR && n->plain &&
        parse_float(n->text, &list->share)) {
        if (list->share > 0 && list->share < 1) return GRAFT_OK;
        return expected(n, k, "a path, or a share between 0 and 1 (such as 0.02)", err);
    }
    bool many = n->kind == GR_YAML_LIST;
    list->items = gr_arena_alloc(arena, (many ? count_children(n) : 1) * (int64_t)sizeof *list->items);
    if (!list->items) return gr_fail_memory(err, k->name);
    for (const gr_yaml *c = many ? n->child : n; c; c = many ? c->next : NULL)
        GR_TRY(read_source(arena, c, k, &list->items[list->n++], err));
done:
    return st;
}

static graft_status read_value(gr_recipe *r, const gr_yaml *n, const gr_key *k, graft_error *err) {
    void *field = (char *)r + k->offset;
    switch (k->type) {
    case GR_KEY_STRING:
        return read_string(&r->arena, n, k, field, err);
    case GR_KEY_BOOL:
        return read_bool(n, k, field, err);
    case GR_KEY_ENUM:
        return read_enum(n, k, field, err);
    case GR_KEY_LIST:
        return read_list(&r->arena, n, k, field, err);
    case GR_KEY_MAP:
        return read_map(&r->arena, n, k, field, err);
    case GR_KEY_SOURCES:
    case GR_KEY_EVAL_SOURCES:
        return read_sources(&r->arena, n, k, field, err);
    default:
        return read_number(n, k, field, err);
    }
}

/* ---- keys ---- */

static graft_status unknown_key(const gr_yaml *n, const char *section, graft_error *err) {
    const char *names[2 * N_KEYS];
    int n_names = 0;
    char hint[160] = "";
    const char *peer = gr_recipe_peer_hint(n->key);
    for (int i = 0; i < N_KEYS && !*hint; i++)
        if (strcmp(gr_recipe_keys[i].name, n->key) == 0)
            snprintf(hint, sizeof hint, "it is written %s%s%s", gr_recipe_keys[i].section,
                     *gr_recipe_keys[i].section ? "." : "", gr_recipe_keys[i].name);
    if (peer) snprintf(hint, sizeof hint, "%s", peer);
    for (int i = 0; i < N_KEYS; i++) {
        if (strcmp(gr_recipe_keys[i].section, section) == 0) names[n_names++] = gr_recipe_keys[i].name;
        if (!*section) names[n_names++] = gr_recipe_keys[i].section;
    }
    const char *near = gr_nearest(n->key, names, n_names);
    if (!*hint && near)
        snprintf(hint, sizeof hint, "did you mean %s%s%s?", section, *section ? "." : "", near);
    for (int i = 0; i < N_KEYS; i++) names[i] = gr_recipe_keys[i].name;
    if (!*hint && (near = gr_nearest(n->key, names, N_KEYS)))
        for (int i = 0; i < N_KEYS; i++)
            if (gr_recipe_keys[i].name == near)
                snprintf(hint, sizeof hint, "did you mean %s.%s?", gr_recipe_keys[i].section, near);
    return gr_yaml_fail(n, true, err, "unknown key \"%.64s\"%s%s; %s", n->key, *section ? " in section " : "",
                        section, *hint ? hint : "`graft help recipe` lists all keys");
}

static graft_status read_entry(reading *rd, const gr_yaml *n, const char *section) {
    const gr_key *k = find_key(section, n->key);
    if (!k) return unknown_key(n, section, rd->err);
    rd->nodes[k - gr_recipe_keys] = n;
    return read_value(rd->r, n, k, rd->err);
}

static graft_status read_tree(reading *rd, const gr_yaml *tree) {
    graft_status st = GRAFT_OK;
    char found[160];
    if (gr_yaml_is_null(tree)) return GRAFT_OK;
    for (const gr_yaml *c = tree->child; c; c = c->next) {
        if (!is_section(c->key)) {
            GR_TRY(read_entry(rd, c, ""));
            continue;
        }
        if (gr_yaml_is_null(c)) continue;
        if (c->kind != GR_YAML_MAP)
            return gr_yaml_fail(c, false, rd->err, "section %s: expected keys below it, found %s", c->key,
                                gr_yaml_describe(c, found, sizeof found));
        for (const gr_yaml *e = c->child; e; e = e->next) GR_TRY(read_entry(rd, e, c->key));
    }
done:
    return st;
}

static graft_status read_defaults(gr_recipe *r, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int i = 0; i < N_KEYS; i++) {
        const gr_key *k = &gr_recipe_keys[i];
        gr_yaml *n = NULL;
        GR_TRY(gr_yaml_parse(&n, &r->arena, k->fallback, (int64_t)strlen(k->fallback), "schema.def", false,
                             err));
        GR_TRY(read_value(r, n, k, err));
    }
done:
    return st;
}

/* ---- files, extends, overrides ---- */

/* The file's tree laid over what it extends. chain[0..depth) are the files on the way here. */
static graft_status load_tree(gr_yaml **out, gr_recipe *r, const char *path, const char **chain, int depth,
                              graft_error *err) {
    graft_status st = GRAFT_OK;
    char *text = NULL, found[160];
    int64_t len = 0;
    gr_yaml *tree = NULL, *base = NULL, *extends;
    const char *base_path = NULL;
    chain[depth] = path;
    GR_TRY(gr_file_read(&text, &len, path, MAX_RECIPE_BYTES, err));
    GR_TRY(gr_yaml_parse(&tree, &r->arena, text, len, path, true, err));
    if (tree->kind != GR_YAML_MAP && !gr_yaml_is_null(tree))
        GR_TRY(gr_yaml_fail(tree, false, err, "a recipe is a mapping (key: value), found %s",
                            gr_yaml_describe(tree, found, sizeof found)));
    *out = tree;
    extends = gr_yaml_find(tree, "extends");
    if (!extends || gr_yaml_is_null(extends)) goto done;
    if (extends->kind != GR_YAML_SCALAR || !*extends->text)
        GR_TRY(gr_yaml_fail(extends, false, err, "extends: expected the path of a recipe, found %s",
                            gr_yaml_describe(extends, found, sizeof found)));
    GR_TRY(resolve_path(&r->arena, extends, extends->text, &base_path, err));
    for (int i = 0; i <= depth; i++)
        if (strcmp(chain[i], base_path) == 0)
            GR_TRY(gr_yaml_fail(extends, false, err, "extends: a circle, %s extends itself", base_path));
    if (depth + 1 >= MAX_EXTENDS)
        GR_TRY(gr_yaml_fail(extends, false, err, "extends: more than %d recipes on top of each other",
                            MAX_EXTENDS));
    st = load_tree(&base, r, base_path, chain, depth + 1, err);
    if (st == GRAFT_BAD_INPUT)
        st = gr_yaml_fail(extends, false, err, "extends: no recipe \"%s\"", extends->text);
    if (st != GRAFT_OK) goto done;
    extends->text = "null"; /* done: the resolved recipe extends nothing */
    extends->plain = true;
    *out = gr_yaml_is_null(base) ? tree : gr_yaml_merge(base, tree);
done:
    free(text);
    return st;
}

/* "section.key=value" as a tree laid over root. */
static graft_status apply_override(gr_yaml **root, gr_recipe *r, const char *override, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_yaml *value = NULL, *section = NULL;
    const char *label = gr_arena_strdup(&r->arena, override), *equals = strchr(override, '=');
    char *name = gr_arena_strdup(&r->arena, override), *dot;
    if (!label || !name) return gr_fail_memory(err, override);
    if (!equals || equals == override)
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "%s: expected section.key=value, such as train.learning_rate=1e-4", override);
    name[equals - override] = '\0';
    dot = strchr(name, '.');
    const gr_key *k = dot ? NULL : find_key("", name);
    if (dot) {
        *dot = '\0';
        k = find_key(name, dot + 1);
    }
    GR_TRY(gr_yaml_parse(&value, &r->arena, equals + 1, (int64_t)strlen(equals + 1), label, false, err));
    if (k && k->type == GR_KEY_STRING && value->kind != GR_YAML_SCALAR) { /* a text with ": " in it */
        value->kind = GR_YAML_SCALAR;
        value->plain = false;
        value->text = label + (equals - override) + 1;
        value->child = NULL;
    }
    if (k && strcmp(k->name, "extends") == 0)
        return gr_fail(err, GRAFT_BAD_USAGE, "%s: extends belongs into a recipe file", override);
    value->key = dot ? dot + 1 : name;
    if (dot) {
        section = gr_arena_alloc(&r->arena, sizeof *section);
        if (!section) return gr_fail_memory(err, override);
        *section = (gr_yaml){.kind = GR_YAML_MAP, .key = name, .file = label, .child = value};
        value = section;
    }
    gr_yaml *old = gr_yaml_find(*root, value->key);
    gr_yaml_set(*root, old && dot ? gr_yaml_merge(old, value) : value);
done:
    return st;
}

static graft_status build(gr_recipe **out, const char *path, const char *const *overrides, int n_overrides,
                          graft_error *err) {
    graft_status st = GRAFT_OK;
    const char *chain[MAX_EXTENDS];
    gr_yaml *tree = NULL;
    gr_recipe *r = gr_calloc(1, sizeof *r);
    reading rd = {.r = r, .err = err};
    if (!r) return gr_fail_memory(err, "recipe");
    r->path = gr_arena_strdup(&r->arena, path ? path : "");
    if (!r->path) GR_TRY(gr_fail_memory(err, "recipe"));
    GR_TRY(read_defaults(r, err));
    if (path) GR_TRY(load_tree(&tree, r, r->path, chain, 0, err));
    if (!tree || tree->kind != GR_YAML_MAP) {
        tree = gr_arena_alloc(&r->arena, sizeof *tree);
        if (!tree) GR_TRY(gr_fail_memory(err, "recipe"));
        *tree = (gr_yaml){
            .kind = GR_YAML_MAP, .file = r->path, .from_file = path != NULL, .line = 1, .column = 1};
    }
    for (int i = 0; i < n_overrides; i++) GR_TRY(apply_override(&tree, r, overrides[i], err));
    GR_TRY(read_tree(&rd, tree));
    GR_TRY(gr_recipe_check(r, rd.nodes, err));
    *out = r;
    r = NULL;
done:
    gr_recipe_free(r);
    return st;
}

graft_status gr_recipe_load(gr_recipe **out, const char *path, const char *const *overrides, int n_overrides,
                            graft_error *err) {
    return build(out, path, overrides, n_overrides, err);
}

graft_status gr_recipe_default(gr_recipe **out, const char *const *overrides, int n_overrides,
                               graft_error *err) {
    return build(out, NULL, overrides, n_overrides, err);
}

void gr_recipe_free(gr_recipe *r) {
    if (!r) return;
    gr_arena_release(&r->arena);
    free(r);
}
