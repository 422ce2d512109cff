/* config.json and generation_config.json of a model that is written: the base's own, with what changed. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/model/config_impl.h"

/* ---- rotary embedding: rope_theta and rope_scaling for transformers 4, rope_parameters for 5 ---- */

static json_t *rope_json(const gr_model_config *c) {
    json_t *rope = json_object();
    json_object_set_new(rope, "rope_type", json_string(gr_rope_types[c->rope_scaling].name));
    if (c->rope_scaling != GR_ROPE_NONE) json_object_set_new(rope, "factor", json_real(c->rope_factor));
    if (c->rope_scaling == GR_ROPE_LLAMA3) {
        json_object_set_new(rope, "low_freq_factor", json_real(c->rope_low_freq));
        json_object_set_new(rope, "high_freq_factor", json_real(c->rope_high_freq));
        json_object_set_new(rope, "original_max_position_embeddings", json_integer(c->rope_original));
    }
    return rope;
}

static bool says(const json_t *root, const char *key) {
    const json_t *v = json_object_get(root, key);
    return v && !json_is_null(v);
}

/* What root says of the head, or the class where it says nothing. */
static bool is_tied(const json_t *root, const gr_arch *arch) {
    return says(root, "tie_word_embeddings") ? json_is_true(json_object_get(root, "tie_word_embeddings")) : arch->tied;
}

/* rope_parameters of transformers 5: one dictionary, or one for each type of layer. */
static json_t *parameters_json(const gr_model_config *c) {
    json_t *all = rope_json(c);
    json_object_set_new(all, "rope_theta", json_real(c->rope_theta));
    if (c->rope_local == 0) return all;
    return json_pack("{s:o, s:{s:s, s:f}}", "full_attention", all, "sliding_attention", "rope_type", "default", "rope_theta",
                     c->rope_local);
}

/* Transformers 5 reads what 4 wrote, so that only 4's keys may be missing; a GGUF's model gets all of them. */
static void put_rope(json_t *root, const gr_model_config *c, bool has_base) {
    if (!has_base) {
        json_object_set_new(root, "rope_parameters", parameters_json(c));
        json_object_set_new(root, "rope_scaling", json_null());
    } else if (!says(root, "rope_parameters")) {
        return;
    }
    if (!says(root, "rope_theta")) json_object_set_new(root, "rope_theta", json_real(c->rope_theta));
    if (c->rope_local > 0 && !says(root, "rope_local_base_freq"))
        json_object_set_new(root, "rope_local_base_freq", json_real(c->rope_local));
    if (!says(root, "rope_scaling") && c->rope_scaling != GR_ROPE_NONE) json_object_set_new(root, "rope_scaling", rope_json(c));
}

/* ---- the files ---- */

static json_t *id_json(int32_t id) { return id < 0 ? json_null() : json_integer(id); }

static json_t *stop_json(const gr_model_config *c) {
    if (c->n_stop_ids < 2) return id_json(c->n_stop_ids ? c->stop_ids[0] : c->eos);
    json_t *list = json_array();
    for (int i = 0; i < c->n_stop_ids; i++) json_array_append_new(list, json_integer(c->stop_ids[i]));
    return list;
}

/* Numbers with as few digits as keep every one of the file. Takes root. */
static graft_status write_json(json_t *root, const char *folder, const char *name, graft_error *err) {
    char *path = gr_path_join(folder, name), *text = NULL;
    for (size_t digits = 15; digits <= 17; digits++) {
        free(text);
        text = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(digits));
        json_t *back = text ? json_loads(text, 0, NULL) : NULL;
        bool same = json_equal(back, root);
        json_decref(back);
        if (same) break;
    }
    graft_status st = path && text ? gr_file_write(path, text, (int64_t)strlen(text), err) : gr_fail_memory(err, name);
    free(path);
    free(text);
    json_decref(root);
    return st;
}

/* The double of fewest digits that is this float: 1e-05 rather than 9.99999974737875e-06. */
static double shortest(float x) {
    char text[32];
    for (int digits = 1; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) break;
    }
    return strtod(text, NULL);
}

/* A number that a file may leave out: null where it is 0. */
static json_t *cap_json(float x) { return x > 0 ? json_real(shortest(x)) : json_null(); }

/* Which layers slide, for every version: by name, by period, from some layer on. Where none does the classes with layer_types still
 * want a window. */
static void put_window(json_t *root, const gr_model_config *c) {
    const gr_arch *arch = c->arch;
    int64_t first = 0, window = c->window ? c->window : arch->layer_types ? arch->window : 0;
    if (!arch->slides) return;
    json_object_set_new(root, "sliding_window", window ? json_integer(window) : json_null());
    if (arch->layer_types) {
        json_t *types = json_array();
        for (int64_t i = 0; i < c->n_layers; i++)
            json_array_append_new(types, json_string(gr_config_slides(c, i) ? "sliding_attention" : "full_attention"));
        json_object_set_new(root, "layer_types", types);
    }
    if (arch->window_period_key && gr_config_period(c) > 0)
        json_object_set_new(root, "sliding_window_pattern", json_integer(gr_config_period(c)));
    if (!arch->window_switch) return;
    while (first < c->n_layers && !gr_config_slides(c, first)) first++;
    json_object_set_new(root, "use_sliding_window", json_boolean(c->window > 0));
    json_object_set_new(root, "max_window_layers", json_integer(first));
}

/* What a GGUF's model says of itself. */
static json_t *described(const gr_model_config *c) {
    const gr_arch *arch = c->arch;
    const char *activation = gr_activation_names[arch->activation];
    int len = (int)strcspn(activation, " ");
    json_t *root =
        json_pack("{s:s, s:s%, s:b, s:b, s:o, s:o, s:o, s:b}", "model_type", arch->hf_type, "hidden_act", activation, len,
                  "attention_bias", (int)(c->qkv_bias && !arch->qkv_bias), "mlp_bias", (int)c->mlp_bias, "bos_token_id",
                  id_json(c->bos), "eos_token_id", stop_json(c), "pad_token_id", id_json(c->pad), "use_cache", 1);
    if (!root) return NULL;
    for (const gr_config_key *row = gr_config_hf_keys; row->name; row++) {
        const void *field = (const char *)c + row->offset;
        if (gr_config_find_key(gr_config_hf_keys, row->name, arch) != row) continue;
        if (row->kind == GR_CONFIG_INT) json_object_set_new(root, row->name, json_integer(*(const int64_t *)field));
        if (row->kind == GR_CONFIG_FLOAT) json_object_set_new(root, row->name, cap_json(*(const float *)field));
    }
    if (arch->score_keys) json_object_set_new(root, "hidden_activation", json_stringn(activation, (size_t)len));
    put_window(root, c);
    return root;
}

/* A file that was read before. NULL: out of memory, or it went away. */
static json_t *load_again(const char *path) {
    char *text;
    int64_t len;
    if (gr_file_read_json(&text, &len, path, INT32_MAX, NULL) != GRAFT_OK) return NULL;
    json_t *root = json_loadb(text, (size_t)len, 0, NULL);
    free(text);
    return root;
}

/* The base's config.json; it was read before. NULL: out of memory, or it went away. */
static json_t *base_json(const char *base) {
    char *path = gr_path_join(base, "config.json");
    json_t *root = path ? load_again(path) : NULL;
    bool is_part;
    free(path);
    return root ? gr_config_text_part(root, &is_part) : NULL;
}

static graft_status write_generation(const gr_model_config *c, const char *base, const char *folder, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *from = base ? gr_path_join(base, "generation_config.json") : NULL, *to = gr_path_join(folder, "generation_config.json");
    bool there = from && gr_exists(from);
    json_t *kept = there && c->led ? load_again(from) : NULL;
    if (kept) {
        json_object_set_new(kept, "eos_token_id", stop_json(c));
        st = write_json(kept, folder, "generation_config.json", err);
    } else if (to && there) {
        st = gr_file_copy(from, to, err);
    } else {
        json_t *root = json_pack("{s:o, s:o, s:o}", "bos_token_id", id_json(c->bos), "eos_token_id", stop_json(c), "pad_token_id",
                                 id_json(c->pad));
        st = root ? write_json(root, folder, "generation_config.json", err) : gr_fail_memory(err, "generation_config.json");
    }
    free(from);
    free(to);
    return st;
}

graft_status gr_config_write_hf(const gr_model_config *c, const char *dtype_name, const char *base, const char *folder,
                                graft_error *err) {
    graft_status st;
    json_t *root = base ? base_json(base) : described(c);
    if (!root) return gr_fail(err, GRAFT_FAILED, "%s: config.json cannot be written", folder);
    put_rope(root, c, base != NULL);
    json_object_set_new(root, "architectures", json_pack("[s]", c->arch->hf_class));
    if (!base || says(root, "dtype") || !says(root, "torch_dtype")) json_object_set_new(root, "dtype", json_string(dtype_name));
    json_object_set_new(root, "torch_dtype", json_string(dtype_name));         /* what transformers 4 reads, and 5 as well */
    if (base) json_object_set_new(root, "vocab_size", json_integer(c->vocab)); /* may have been extended */
    json_object_del(root, GR_CONFIG_BASE_VOCAB);
    if (c->base_vocab > 0) json_object_set_new(root, GR_CONFIG_BASE_VOCAB, json_integer(c->base_vocab));
    if (!base || is_tied(root, c->arch) != c->tied) json_object_set_new(root, "tie_word_embeddings", json_boolean(c->tied));
    if (base && c->led) json_object_set_new(root, "eos_token_id", stop_json(c));
    json_object_del(root, "auto_map"); /* names Python files that are not written */
    json_object_del(root, "quantization_config");
    GR_TRY(write_json(root, folder, "config.json", err));
    GR_TRY(write_generation(c, base, folder, err));
done:
    return st;
}
