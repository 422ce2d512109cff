/* Do the matrices of a file and the targets of its adapter_config.json agree? PEFT's rules for what is
 * targeted (peft tuners_utils.py: check_target_module_exists). */
#include "adapters/impl.h"

#include <jansson.h>
#include <stdlib.h>

#include "core/base/log.h"

typedef struct rules {
    pcre2_code *target, *excluded; /* where the file has a string */
    const json_t *targets, *exclusions, *layers, *layer_patterns;
} rules;

static bool is_named(const json_t *list, const char *name) {
    size_t i;
    const json_t *item;
    bool found = false;
    json_array_foreach(list, i, item) found |=
        *json_string_value(item) && gr_has_suffix(name, json_string_value(item));
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

/* The number behind "layers" (or the names of layers_pattern), -1 when name has none. */
static int64_t layer_of(const rules *r, const char *name) {
    const json_t *names = r->layer_patterns;
    const char *single = json_string_value(names);
    size_t n_names = single ? *single != '\0' : json_array_size(names);
    for (const char *dot = strchr(name, '.'); dot; dot = strchr(dot + 1, '.')) {
        const char *part = dot;
        char *end;
        while (part > name && part[-1] != '.') part--;
        int64_t layer = strtoll(dot + 1, &end, 10);
        bool fits = n_names == 0 && part > name; /* any name that is not the first */
        for (size_t i = 0; i < n_names; i++) {
            const char *wanted = single ? single : json_string_value(json_array_get(names, i));
            fits |=
                strlen(wanted) == (size_t)(dot - part) && strncmp(part, wanted, (size_t)(dot - part)) == 0;
        }
        if (fits && end > dot + 1 && *end == '.') return layer;
    }
    return -1;
}

static bool in_layers(const rules *r, const char *name) {
    size_t i;
    const json_t *item;
    bool found = false;
    if (!r->layers || json_is_null(r->layers) ||
        (json_is_array(r->layers) && json_array_size(r->layers) == 0))
        return true;
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
    if (r->excluded)
        GR_TRY(gr_regex_match(&excluded, r->excluded, json_string_value(r->exclusions), name, err));
    if (excluded) goto done;
    if (text && strcasecmp(text, "all-linear") == 0)
        *yes = i > 0 && strcmp(name, "lm_head") != 0;
    else if (text)
        GR_TRY(gr_regex_match(yes, r->target, text, name, err));
    else
        *yes = is_listed(r->targets, name) || (is_named(r->targets, name) && in_layers(r, name));
done:
    return st;
}

static graft_status read_rules(rules *r, const json_t *root, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    size_t i;
    const json_t *item;
    *r = (rules){.targets = json_object_get(root, "target_modules"),
                 .exclusions = json_object_get(root, "exclude_modules"),
                 .layers = json_object_get(root, "layers_to_transform"),
                 .layer_patterns = json_object_get(root, "layers_pattern")};
    bool good =
        !r->layers || json_is_null(r->layers) || json_is_integer(r->layers) || json_is_array(r->layers);
    json_array_foreach(r->layers, i, item) good &= json_is_integer(item);
    if (!good)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: layers_to_transform: expected a layer's number, or a list of them", path));
    if (json_is_string(r->targets))
        GR_TRY(gr_regex_compile(&r->target, "(?:", json_string_value(r->targets), ")$", err));
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
        for (int64_t i = 0; i <= gr_model_n_linears(m) && !known; i++) {
            char name[96];
            int64_t out, in;
            gr_adapter_module_at(m, i, name, &out, &in);
            known = gr_has_suffix(name, json_string_value(item));
        }
        if (!known)
            gr_warn("%s: target_modules: \"%s\" names no module of this base", path, json_string_value(item));
    }
}

graft_status gr_peft_check_targets(const gr_peft_config *c, gr_model *m, const bool *found, const char *path,
                                   graft_error *err) {
    graft_status st = GRAFT_OK;
    rules r = {0};
    int64_t n_targets = 0, n_missing = 0, out, in;
    char name[96], missing[96] = "";
    GR_TRY(read_rules(&r, c->root, path, err));
    if (!r.targets || json_is_null(r.targets)) goto done; /* it names none: what is there is meant */
    for (int64_t i = 0; i <= gr_model_n_linears(m); i++) {
        bool wanted;
        gr_adapter_module_at(m, i, name, &out, &in);
        GR_TRY(is_target(&wanted, &r, i, name, err));
        n_targets += wanted;
        if (found[i] && !wanted)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                           "%s: target_modules does not target %s, of which the adapter has matrices: config "
                           "and matrices are "
                           "not of one adapter",
                           path, name));
        if (wanted && !found[i] && n_missing++ == 0) snprintf(missing, sizeof missing, "%s", name);
    }
    if (n_missing > 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: target_modules targets %s, of which the adapter has no matrices (%lld of %lld "
                       "targets lack them): it was "
                       "saved in part; save it again, or correct target_modules and layers_to_transform",
                       path, missing, (long long)n_missing, (long long)n_targets));
    name_strangers(r.targets, m, path);
done:
    pcre2_code_free(r.target);
    pcre2_code_free(r.excluded);
    return st;
}
