/* Do the matrices of a file and the targets of its adapter_config.json agree? PEFT's rules for what is
 * targeted (peft tuners_utils.py: check_target_module_exists). */
#include "adapters/impl.h"

#include <jansson.h>
#include <stdlib.h>

#include "core/base/log.h"

typedef struct rules {
    pcre2_code *target, *excluded; /* where the file has a string */
    const json_t *targets, *exclusions, *layers;
    pcre2_code **layer; /* [n_layer]: where a name holds its layer's number, the group idx */
    size_t n_layer;
} rules;

static bool is_named(const json_t *list, const char *name) {
    size_t i;
    const json_t *item;
    bool found = false;
    json_array_foreach(list, i, item) found |= *json_string_value(item) && gr_has_suffix(name, json_string_value(item));
    return found;
}

/* A module that is listed by its whole name is a target in any layer. */
static bool is_listed(const json_t *list, const char *name) {
    size_t i;
    const json_t *item;
    bool found = false;
    json_array_foreach(list, i, item) found |= strcmp(json_string_value(item), name) == 0;
    return found;
}

/* The number behind "layers" (or what layers_pattern names), -1 when name has none. */
static int64_t layer_of(const rules *r, const char *name) {
    int64_t layer = -1;
    for (size_t i = 0; i < r->n_layer && layer < 0; i++) {
        char number[20];
        PCRE2_SIZE len = sizeof number;
        pcre2_match_data *data = pcre2_match_data_create_from_pattern(r->layer[i], NULL);
        if (data && pcre2_match(r->layer[i], (PCRE2_SPTR)name, PCRE2_ZERO_TERMINATED, 0, 0, data, NULL) > 0 &&
            pcre2_substring_copy_byname(data, (PCRE2_SPTR) "idx", (PCRE2_UCHAR *)number, &len) == 0)
            layer = strtoll(number, NULL, 10);
        pcre2_match_data_free(data);
    }
    return layer;
}

static bool in_layers(const rules *r, const char *name) {
    size_t i;
    const json_t *item;
    bool found = false;
    if (!r->layers || json_is_null(r->layers) || (json_is_array(r->layers) && json_array_size(r->layers) == 0)) return true;
    int64_t layer = layer_of(r, name);
    if (json_is_integer(r->layers)) return layer >= 0 && layer == json_integer_value(r->layers);
    json_array_foreach(r->layers, i, item) found |= layer >= 0 && json_integer_value(item) == layer;
    return found;
}

static graft_status is_target(bool *yes, const rules *r, int64_t i, const char *name, graft_error *err) {
    graft_status st = GRAFT_OK;
    bool excluded = is_named(r->exclusions, name);
    const char *text = json_string_value(r->targets);
    *yes = false;
    if (r->excluded) GR_TRY(gr_regex_match(&excluded, r->excluded, json_string_value(r->exclusions), name, err));
    if (excluded) goto done;
    if (text && strcasecmp(text, "all-linear") == 0) *yes = i > 0 && strcmp(name, "lm_head") != 0;
    else if (text) GR_TRY(gr_regex_match(yes, r->target, text, name, err));
    else *yes = is_listed(r->targets, name) || (is_named(r->targets, name) && in_layers(r, name));
done:
    return st;
}

/* PEFT puts each name of layers_pattern into a regular expression; without any, the first number counts that
 * is not at the start. */
static graft_status read_layer_patterns(rules *r, const json_t *names, graft_error *err) {
    graft_status st = GRAFT_OK;
    const char *single = json_string_value(names);
    size_t n = single ? *single != '\0' : json_array_size(names);
    r->layer = gr_calloc((int64_t)n + 1, sizeof *r->layer);
    if (!r->layer) GR_TRY(gr_fail_memory(err, "layers_pattern"));
    if (n == 0) {
        GR_TRY(gr_regex_compile(&r->layer[r->n_layer++], "", ".*?\\.[^.]*\\.(?<idx>[0-9]+)\\.", "", err));
        goto done;
    }
    for (size_t i = 0; i < n; i++) {
        const char *name = single ? single : json_string_value(json_array_get(names, i));
        GR_TRY(gr_regex_compile(&r->layer[r->n_layer++], "(?:^|.*?\\.)", name, "\\.(?<idx>[0-9]+)\\.", err));
    }
done:
    return st;
}

static graft_status read_rules(rules *r, const json_t *root, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    size_t i;
    const json_t *item;
    *r = (rules){.targets = json_object_get(root, "target_modules"),
                 .exclusions = json_object_get(root, "exclude_modules"),
                 .layers = json_object_get(root, "layers_to_transform")};
    bool good = !r->layers || json_is_null(r->layers) || json_is_integer(r->layers) || json_is_array(r->layers);
    json_array_foreach(r->layers, i, item) good &= json_is_integer(item);
    if (!good) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: layers_to_transform: expected a layer's number, or a list of them", path));
    if (json_is_string(r->targets)) GR_TRY(gr_regex_compile(&r->target, "(?:", json_string_value(r->targets), ")$", err));
    GR_TRY(read_layer_patterns(r, json_object_get(root, "layers_pattern"), err));
    if (json_string_length(r->exclusions) > 0)
        GR_TRY(gr_regex_compile(&r->excluded, "(?:", json_string_value(r->exclusions), ")$", err));
done:
    return st;
}

/* Names of the list that mean nothing in this base: PEFT's users list those of several architectures. */
static void name_strangers(const json_t *targets, gr_model *m, const char *path) {
    size_t k;
    const json_t *item;
    json_array_foreach(targets, k, item) {
        bool known = false;
        for (int64_t i = 0; i < m->n_modules && !known; i++) known = gr_has_suffix(m->modules[i].name, json_string_value(item));
        if (!known) gr_warn("%s: target_modules: \"%s\" names no module of this base", path, json_string_value(item));
    }
}

graft_status gr_peft_check_targets(const gr_peft_config *c, gr_model *m, const bool *found, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    rules r = {0};
    int64_t n_targets = 0, n_missing = 0;
    const char *missing = NULL;
    if (c->config.rows_alone) return GRAFT_OK; /* they are of what has rows */
    GR_TRY(read_rules(&r, c->root, path, err));
    if (!r.targets || json_is_null(r.targets)) goto done; /* it names none: what is there is meant */
    for (int64_t i = 0; i < m->n_modules; i++) {
        bool wanted;
        const char *name = m->modules[i].name;
        GR_TRY(is_target(&wanted, &r, i, name, err));
        n_targets += wanted;
        if (found[i] && !wanted)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                           "%s: target_modules does not target %s, of which the adapter has matrices: config and matrices are not "
                           "of one adapter",
                           path, name));
        if (wanted && !found[i] && n_missing++ == 0) missing = name;
    }
    if (n_missing > 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: target_modules targets %s, of which the adapter has no matrices (%lld of %lld targets lack them): it "
                       "was saved in part; save it again, or correct target_modules and layers_to_transform",
                       path, missing, (long long)n_missing, (long long)n_targets));
    name_strangers(r.targets, m, path);
done:
    pcre2_code_free(r.target);
    pcre2_code_free(r.excluded);
    for (size_t i = 0; i < r.n_layer; i++) pcre2_code_free(r.layer[i]);
    free(r.layer);
    return st;
}
