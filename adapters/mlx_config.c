/* adapter_config.json as mlx-lm writes it (mlx_lm/tuner): a scale instead of alpha, the last num_layers layers. */
#include "adapters/impl.h"

#include <jansson.h>
#include <math.h>

static graft_status read_type(const json_t *root, const json_t *parameters, const char *path, graft_error *err) {
    const char *type = json_string_value(json_object_get(root, "fine_tune_type"));
    if (json_is_true(json_object_get(root, "use_dora"))) type = "dora";
    if (type && strcmp(type, "lora") != 0)
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: an mlx-lm adapter of fine_tune_type \"%s\", expected \"lora\": fuse it with mlx_lm.fuse and use the "
                       "fused model as base",
                       path, type);
    if (!json_is_object(parameters))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: lora_parameters: expected an object with rank and scale", path);
    if (json_object_get(parameters, "alpha"))
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: lora_parameters.alpha: versions of mlx-lm differ in whether it counts: remove it and set "
                       "lora_parameters.scale to the factor that the matrices were trained with",
                       path);
    return GRAFT_OK;
}

graft_status gr_mlx_config_read(gr_peft_config *c, const char *path, graft_error *err) {
    const json_t *parameters = json_object_get(c->root, "lora_parameters");
    const char *base = json_string_value(json_object_get(c->root, "model"));
    double rank = NAN, scale = NAN, dropout = 0;
    graft_status st;
    GR_TRY(read_type(c->root, parameters, path, err));
    GR_TRY(gr_peft_read_number(parameters, path, "rank", &rank, err));
    GR_TRY(gr_peft_read_number(parameters, path, "scale", &scale, err));
    GR_TRY(gr_peft_read_number(parameters, path, "dropout", &dropout, err));
    if (!(rank >= 1 && rank <= INT16_MAX) || rank != floor(rank))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: lora_parameters.rank: expected a whole number from 1 to %d", path, INT16_MAX));
    if (!isfinite(scale))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: lora_parameters.scale: expected the factor of the matrices", path));
    c->config.rank = (int64_t)rank;
    c->config.alpha = scale * rank;
    c->config.dropout = dropout >= 0 && dropout < 1 ? dropout : 0;
    c->config.base = gr_arena_strdup(&c->arena, base ? base : "");
    if (!c->config.base) st = gr_fail_memory(err, path);
done:
    return st;
}

/* The layer that a name lies in, -1 outside the layers. */
static int64_t layer_of(const char *name) {
    long long layer;
    return sscanf(name, "model.layers.%lld.", &layer) == 1 ? layer : -1;
}

static bool is_listed(const json_t *keys, const char *name) {
    size_t i;
    const json_t *key;
    bool found = false;
    json_array_foreach(keys, i, key) found |= json_is_string(key) && gr_has_suffix(name, json_string_value(key));
    return found;
}

graft_status gr_mlx_check_targets(const gr_peft_config *c, gr_model *m, const bool *found, const char *path, graft_error *err) {
    const json_t *layers = json_object_get(c->root, "num_layers"),
                 *keys = json_object_get(json_object_get(c->root, "lora_parameters"), "keys");
    if (!layers) layers = json_object_get(c->root, "lora_layers"); /* its older name */
    int64_t n = m->n_modules, L = m->config.n_layers;
    int64_t given = json_is_integer(layers) ? json_integer_value(layers) : -1, first = given < 0 || given > L ? 0 : L - given;
    if (m->config.tied && found[0])
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: an adapter of mlx-lm on the embedding of a model whose head is its embedding changes both: fuse it "
                       "with mlx_lm.fuse",
                       path);
    for (int64_t i = 0; i < n; i++) {
        const char *name = m->modules[i].name;
        int64_t layer = layer_of(name);
        bool wanted = found[i];
        if (json_is_array(keys)) {
            wanted = is_listed(keys, name) && (layer < 0 || layer >= first);
        } else if (layer >= 0) { /* the layers are alike */
            wanted = false;
            for (int64_t k = 0; k < n && layer >= first; k++)
                wanted |= found[k] && strcmp(gr_last_component(m->modules[k].name), gr_last_component(name)) == 0;
        }
        if (wanted != found[i])
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "%s: %s is %s the adapter, but num_layers and keys (%s layers, the last ones) say "
                           "otherwise: it was saved in part, or for another base",
                           path, name, found[i] ? "in" : "not in", given < 0 ? "all" : "some");
    }
    return GRAFT_OK;
}
