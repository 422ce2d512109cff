#include "peft/recipe.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "peft/recipe_check.h"
#include "peft/recipe_values.h"

enum { MAX_RECIPE_BYTES = 1 << 20, MAX_EXTENDS = 8 };

static bool is_section(const char *name) {
    for (int i = 0; i < GR_N_RECIPE_KEYS; i++)
        if (*name && strcmp(gr_recipe_keys[i].section, name) == 0) return true;
    return false;
}

/* ---- keys ---- */

/* "eval.every, save.every" of the keys of this name in other sections, "" for none. */
static void written_elsewhere(const char *name, char out[160]) {
    *out = '\0';
    for (int i = 0; i < GR_N_RECIPE_KEYS; i++) {
        const gr_key *k = &gr_recipe_keys[i];
        size_t at = strlen(out);
        if (strcmp(k->name, name) == 0)
            snprintf(out + at, 160 - at, "%s%s%s%s", at ? " or " : "it is written ", k->section, *k->section ? "." : "", name);
    }
}

/* The nearest key of the section, else (at the top level: also) of all sections. */
static void nearest_key(const char *key, const char *section, char out[160]) {
    const char *names[3 * GR_N_RECIPE_KEYS], *near;
    int n = 0, n_own;
    for (int i = 0; i < GR_N_RECIPE_KEYS; i++) {
        if (strcmp(gr_recipe_keys[i].section, section) == 0) names[n++] = gr_recipe_keys[i].name;
        if (!*section) names[n++] = gr_recipe_keys[i].section;
    }
    n_own = n;
    for (int i = 0; i < GR_N_RECIPE_KEYS; i++) names[n++] = gr_recipe_keys[i].name;
    near = *section ? gr_nearest(key, names, n_own) : NULL;
    if (!near) near = gr_nearest(key, names, n); /* of equals the first, which is the section's own */
    for (int i = 0; near && i < n; i++) {
        if (names[i] != near) continue;
        if (i >= n_own) section = gr_recipe_keys[i - n_own].section;
        snprintf(out, 160, "did you mean %s%s%s?", section, *section ? "." : "", near);
        return;
    }
}

static graft_status unknown_key(gr_reading *rd, const gr_yaml *n, const char *section) {
    char hint[160];
    const char *peer = gr_recipe_peer_hint(n->key);
    written_elsewhere(n->key, hint);
    if (peer) snprintf(hint, sizeof hint, "%s", peer);
    if (!*hint) nearest_key(n->key, section, hint);
    return gr_problem_at(rd->problems, n, GR_AT_KEY, "unknown key \"%.64s\"%s%s; %s", n->key, *section ? " in section " : "",
                         section, *hint ? hint : "`graft help recipe` lists all keys");
}

static graft_status read_entry(gr_reading *rd, const gr_yaml *n, const char *section) {
    const gr_key *k = gr_recipe_key(section, n->key);
    int64_t before = rd->problems->n;
    if (!k) return unknown_key(rd, n, section);
    rd->nodes[k - gr_recipe_keys] = n;
    graft_status st = gr_read_value(rd, n, k);
    rd->wrong[k - gr_recipe_keys] = rd->problems->n > before;
    return st;
}

/* The first keys of a section, in brackets. */
static void keys_below(const char *section, char out[160]) {
    size_t at = 0;
    int n = 0;
    for (int i = 0; i < GR_N_RECIPE_KEYS && n <= 4; i++) {
        if (strcmp(gr_recipe_keys[i].section, section) != 0) continue;
        at += (size_t)snprintf(out + at, 160 - at, "%s%s", n ? ", " : "(", n < 4 ? gr_recipe_keys[i].name : "...");
        n++;
    }
    snprintf(out + at, 160 - at, ")");
}

static graft_status read_tree(gr_reading *rd, const gr_yaml *tree) {
    graft_status st = GRAFT_OK;
    char found[160], keys[160];
    if (gr_yaml_is_null(tree)) return GRAFT_OK;
    for (const gr_yaml *c = tree->child; c; c = c->next) {
        if (!is_section(c->key)) GR_TRY(read_entry(rd, c, ""));
        else if (c->kind == GR_YAML_MAP)
            for (const gr_yaml *e = c->child; e; e = e->next) GR_TRY(read_entry(rd, e, c->key));
        else if (!gr_yaml_is_null(c)) {
            keys_below(c->key, keys);
            GR_TRY(gr_problem_at(rd->problems, c, GR_AT_VALUE, "section %s: expected keys below it %s, found %s", c->key, keys,
                                 gr_yaml_describe(c, found, sizeof found)));
        }
    }
done:
    return st;
}

static graft_status read_defaults(gr_reading *rd) {
    graft_status st = GRAFT_OK;
    for (int i = 0; i < GR_N_RECIPE_KEYS; i++) {
        const gr_key *k = &gr_recipe_keys[i];
        gr_yaml *n = NULL;
        GR_TRY(gr_yaml_parse(&n, &rd->r->arena, k->fallback, (int64_t)strlen(k->fallback), "schema.def", false, rd->err));
        GR_TRY(gr_read_value(rd, n, k));
    }
done:
    return st;
}

/* ---- files, extends, overrides ---- */

/* What files of `tree` say of adapters lies beneath the method that is chosen on top of it. */
static void put_beneath(const gr_yaml *tree) {
    const gr_yaml *adapter = gr_yaml_find(tree, "adapter");
    if (!adapter || adapter->kind != GR_YAML_MAP) return;
    for (gr_yaml *c = adapter->child; c; c = c->next) c->beneath = c->beneath || c->from_file;
}

static bool chooses_method(const gr_yaml *over) { return gr_yaml_find(gr_yaml_find(over, "adapter"), "method") != NULL; }

/* The file's tree laid over what it extends. chain[0..depth) are the files on the way here. */
static graft_status load_tree(gr_yaml **out, gr_recipe *r, const char *path, const char **chain, int depth, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *text = NULL, found[160];
    int64_t len = 0;
    gr_yaml *tree = NULL, *base = NULL, *extends;
    const char *base_path = NULL;
    chain[depth] = path;
    GR_TRY(gr_file_read_raw(&text, &len, path, MAX_RECIPE_BYTES, err));
    GR_TRY(gr_yaml_parse(&tree, &r->arena, text, len, path, true, err));
    if (tree->kind != GR_YAML_MAP && !gr_yaml_is_null(tree))
        GR_TRY(gr_yaml_fail(tree, false, err, "a recipe is a mapping (key: value), found %s",
                            gr_yaml_describe(tree, found, sizeof found)));
    *out = tree;
    extends = gr_yaml_find(tree, "extends");
    if (extends && gr_yaml_is_null(extends)) put_beneath(tree); /* the recipe of a run has every key, whatever its method */
    if (!extends || gr_yaml_is_null(extends)) goto done;
    if (extends->kind != GR_YAML_SCALAR || !*extends->text)
        GR_TRY(gr_yaml_fail(extends, false, err, "extends: expected the path of a recipe, found %s",
                            gr_yaml_describe(extends, found, sizeof found)));
    GR_TRY(gr_resolve_path(&r->arena, extends, extends->text, &base_path, err));
    for (int i = 0; i <= depth; i++)
        if (strcmp(chain[i], base_path) == 0)
            GR_TRY(gr_yaml_fail(extends, false, err, "extends: a circle, %s extends itself", base_path));
    if (depth + 1 >= MAX_EXTENDS)
        GR_TRY(gr_yaml_fail(extends, false, err, "extends: more than %d recipes on top of each other", MAX_EXTENDS));
    st = load_tree(&base, r, base_path, chain, depth + 1, err);
    if (st == GRAFT_BAD_INPUT) st = gr_yaml_fail(extends, false, err, "extends: no recipe \"%s\"", extends->text);
    if (st != GRAFT_OK) goto done;
    if (chooses_method(tree)) put_beneath(base);
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
        return gr_fail(err, GRAFT_BAD_USAGE, "%s: expected section.key=value, such as train.learning_rate=1e-4", override);
    if (!equals[1]) /* of a shell: an unset variable, or "" that was to be an empty text */
        return gr_fail(err, GRAFT_BAD_USAGE, "%snull (unset) or %s'\"\"' (an empty text): a value is missing", override, override);
    name[equals - override] = '\0';
    dot = strchr(name, '.');
    const gr_key *k = dot ? NULL : gr_recipe_key("", name);
    if (dot) {
        *dot = '\0';
        k = gr_recipe_key(name, dot + 1);
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
    if (chooses_method(&(gr_yaml){.kind = GR_YAML_MAP, .child = value})) put_beneath(*root);
    gr_yaml *old = gr_yaml_find(*root, value->key);
    gr_yaml_set(*root, old && dot ? gr_yaml_merge(old, value) : value);
done:
    return st;
}

/* A run is where it lies, wherever it was made. */
static graft_status set_output_dir(gr_yaml *tree, gr_recipe *r, const char *folder, graft_error *err) {
    gr_yaml *value = gr_arena_alloc(&r->arena, sizeof *value);
    if (!value) return gr_fail_memory(err, folder);
    *value = (gr_yaml){.kind = GR_YAML_SCALAR, .key = "output_dir", .file = folder, .text = folder};
    gr_yaml_set(tree, value);
    return GRAFT_OK;
}

/* What the recipe asks for as a whole, once every value was looked at. */
static graft_status check_whole(gr_reading *rd, bool complete) {
    graft_status st = gr_recipe_check(rd->r, rd->nodes, rd->wrong, rd->problems);
    if (st == GRAFT_OK && complete) st = gr_recipe_check_complete(rd->r, rd->nodes, rd->wrong, rd->problems);
    return st != GRAFT_OK || rd->problems->failed ? gr_fail_memory(rd->err, "recipe") : GRAFT_OK;
}

graft_status gr_recipe_examine(gr_recipe **out, const char *path, const char *const *overrides, int n_overrides,
                               const gr_examine_options *o, gr_problems *problems, graft_error *err) {
    graft_status st = GRAFT_OK;
    const char *chain[MAX_EXTENDS];
    gr_yaml *tree = NULL;
    gr_recipe *r = gr_calloc(1, sizeof *r);
    gr_reading rd = {.r = r, .problems = problems, .err = err};
    *out = NULL;
    if (!r) return gr_fail_memory(err, "recipe");
    const char *folder = path && gr_is_dir(path) ? gr_arena_strdup(&r->arena, path) : NULL;
    char *inside = folder ? gr_path_join(path, "recipe.yaml") : NULL;
    r->path = gr_arena_strdup(&r->arena, inside ? inside : path ? path : "");
    free(inside);
    if (!r->path) GR_TRY(gr_fail_memory(err, "recipe"));
    if (folder && !gr_exists(r->path))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s is a folder without recipe.yaml: expected a recipe, or a run of graft", folder));
    GR_TRY(read_defaults(&rd));
    rd.files = o->files;
    if (path) GR_TRY(load_tree(&tree, r, r->path, chain, 0, err));
    if (!tree || tree->kind != GR_YAML_MAP) {
        tree = gr_arena_alloc(&r->arena, sizeof *tree);
        if (!tree) GR_TRY(gr_fail_memory(err, "recipe"));
        *tree = (gr_yaml){.kind = GR_YAML_MAP, .file = r->path, .from_file = path != NULL, .line = 1, .column = 1};
    }
    if (folder) GR_TRY(set_output_dir(tree, r, folder, err));
    for (int i = 0; i < n_overrides; i++) GR_TRY(apply_override(&tree, r, overrides[i], err));
    GR_TRY(read_tree(&rd, tree));
    for (int i = 0; i < r->data_train.n; i++) r->data_train.items[i].encoding = r->data_encoding;
    for (int i = 0; i < r->data_eval.n; i++) r->data_eval.items[i].encoding = r->data_encoding;
    GR_TRY(check_whole(&rd, o->complete));
    if (problems->n == 0) {
        *out = r;
        r = NULL;
    }
done:
    gr_recipe_free(r);
    return st;
}

graft_status gr_recipe_parse(gr_recipe **out, const char *text, const char *name, graft_error *err) {
    graft_status st;
    gr_yaml *tree = NULL;
    gr_problems problems = {0};
    gr_recipe *r = gr_calloc(1, sizeof *r);
    gr_reading rd = {.r = r, .problems = &problems, .err = err};
    *out = NULL;
    if (!r) return gr_fail_memory(err, "recipe");
    r->path = gr_arena_strdup(&r->arena, name);
    if (!r->path) GR_TRY(gr_fail_memory(err, "recipe"));
    GR_TRY(read_defaults(&rd));
    GR_TRY(gr_yaml_parse(&tree, &r->arena, text, (int64_t)strlen(text), r->path, false, err));
    GR_TRY(read_tree(&rd, tree));
    if (problems.n > 0) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "%s: %s", name, problems.items[0].text));
    *out = r;
    r = NULL;
done:
    gr_problems_release(&problems);
    gr_recipe_free(r);
    return st;
}

/* Where one error is all that can be said: the first problem, and how many more there are. */
graft_status gr_recipe_load(gr_recipe **out, const char *path, const char *const *overrides, int n_overrides, graft_error *err) {
    gr_problems problems = {0};
    char more[64] = "";
    graft_status st = gr_recipe_examine(out, path, overrides, n_overrides, &(gr_examine_options){0}, &problems, err);
    if (problems.n > 1)
        snprintf(more, sizeof more, " (and %lld more%s)", (long long)problems.n - 1, path ? ": graft validate" : "");
    if (st == GRAFT_OK && problems.n > 0) st = gr_fail(err, GRAFT_BAD_USAGE, "%s%s", problems.items[0].text, more);
    gr_problems_release(&problems);
    return st;
}

void gr_recipe_free(gr_recipe *r) {
    if (!r) return;
    gr_arena_release(&r->arena);
    free(r);
}

gr_chat_options gr_recipe_chat(const gr_recipe *r, const gr_tokenizer *t) {
    bool none = r->train_objective == GR_OBJECTIVE_PRETRAIN && t && !gr_tokenizer_get_info(t)->chat_template && r->data_template &&
                strcmp(r->data_template, "auto") == 0;
    return (gr_chat_options){.name = none ? "none" : r->data_template, .system = r->data_system, .args = r->data_template_args};
}
