/* config.json and generation_config.json: read by one table of keys, written so that every other key of the base stays. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/model/config_impl.h"

enum { CONFIG_MAX_BYTES = 16 << 20 };

/* ---- the table ---- */

const gr_config_key gr_config_hf_keys[] = {
    /* sizes */
    {"num_hidden_layers", INT(n_layers), .required = true},
    {"hidden_size", INT(hidden), .required = true},
    {"num_attention_heads", INT(n_heads), .required = true},
    {"num_key_value_heads", INT(n_kv_heads)},
    {"head_dim", INT(head_dim)},
    {"intermediate_size", INT(ffn), .required = true},
    {"vocab_size", INT(vocab), .required = true},
    {"max_position_embeddings", INT(max_positions)},
    /* what the layers compute */
    {"rms_norm_eps", FLOAT(norm_eps)},
    {"initializer_range", FLOAT(init_range)},
    {"attention_dropout", READ},
    {"tie_word_embeddings", BOOL(tied)},
    {"attention_bias", BOOL(qkv_bias), WHERE(attention_bias)},
    {"attention_bias", HARMLESS, WHERE(qkv_bias)}, /* transformers: q, k and v have them whatever it says */
    {"attention_bias", ONLY("false")},
    {"mlp_bias", BOOL(mlp_bias), WHERE(mlp_bias)},
    {"mlp_bias", ONLY("false")},
    {"hidden_act", ACTIVATION},
    {"activation_function", ACTIVATION},
    {"hidden_activation", ACTIVATION},
    {"sliding_window", READ}, /* or ignored, as by transformers; likewise the next two */
    {"use_sliding_window", READ},
    {"max_window_layers", READ},
    {"layer_types", READ},
    {"sliding_window_pattern", READ, WHERE(window_period_key)},
    {"_sliding_window_pattern", HARMLESS}, /* what transformers made layer_types of */
    {"rope_theta", READ},
    {"rope_scaling", READ},
    {"rope_parameters", READ},
    {"rope_local_base_freq", READ, WHERE(window_period_key)},
    {"original_max_position_embeddings", READ},
    {"partial_rotary_factor", ONLY("1")},
    {"rotary_pct", ONLY("1")},
    {"rope_interleaved", ONLY("false")},
    {"no_rope_layers", ONLY("")},
    {"no_rope_layer_interval", ONLY("0")},
    {"nope_layer_interval", ONLY("0")},
    {"use_nope", ONLY("false")},
    {"use_rope", ONLY("true")},
    {"position_embedding_type", ONLY("rope")},
    {"positional_encoding", ONLY("rope rotary")},
    {"position_encoding", ONLY("rope rotary")},
    {"pos_emb_type", ONLY("rope rotary")},
    {"alibi", ONLY("false")},
    {"xpos", ONLY("false")},
    {"use_xpos", ONLY("false")},
    {"attn_logit_softcapping", FLOAT(attention_softcap), WHERE(score_cap_key)},
    {"attn_logit_softcapping", ONLY("0")},
    {"final_logit_softcapping", FLOAT(head_softcap), WHERE(score_keys)},
    {"final_logit_softcapping", ONLY("0")},
    {"query_pre_attn_scalar", INT(score_divisor), WHERE(score_keys)},
    {"query_pre_attn_scalar", ONLY("")},
    {"embedding_multiplier", ONLY("1")},
    {"residual_multiplier", ONLY("1")},
    {"logits_scaling", ONLY("1")},
    {"logit_scale", ONLY("1")},
    {"scale_emb", ONLY("1")},
    {"scale_depth", ONLY("")},
    {"dim_model_base", ONLY("")},
    {"attention_chunk_size", ONLY("")},
    {"is_causal", ONLY("true")},
    {"causal", ONLY("true")},
    {"causal_attention", ONLY("true")},
    {"bidirectional", ONLY("false")},
    {"prefix_lm", ONLY("false")},
    {"scale_attn_weights", ONLY("true")},
    {"use_sinks", ONLY("false")},
    {"num_kv_shared_layers", ONLY("0")},
    {"q_lora_rank", ONLY("0")},
    {"kv_lora_rank", ONLY("0")},
    {"attn_config", ONLY("")},
    {"ffn_config", ONLY("")},
    {"block_configs", ONLY("")},
    {"pre_norm", ONLY("true")},
    {"use_rmsnorm", ONLY("true")},
    {"rms_norm", ONLY("true")},
    {"gated_mlp", ONLY("true")},
    {"use_glu", ONLY("true")},
    {"glu", ONLY("true")},
    {"attn_temperature_tuning", ONLY("false")},
    {"num_local_experts", ONLY("0")},
    {"num_experts", ONLY("0")},
    {"n_routed_experts", ONLY("0")},
    {"num_experts_per_tok", ONLY("0")},
    {"num_nextn_predict_layers", ONLY("0")},
    {"pretraining_tp", HARMLESS}, /* the same products in slices */
    {"quantization_config", READ},
    {"compression_config", ONLY("")},
    {"pruned_heads", ONLY("")},
    {"is_encoder_decoder", ONLY("false")},
    {"add_cross_attention", ONLY("false")},
    {"per_layer_config", ONLY("")},
    {"text_config", ONLY("")},
    {"vision_config", ONLY("")},
    {"audio_config", ONLY("")},
    /* what it is, and its ids */
    {"model_type", READ},
    {"architectures", READ},
    {GR_CONFIG_BASE_VOCAB, READ},
    {"bos_token_id", READ},
    {"eos_token_id", READ},
    {"pad_token_id", READ},
    {.name = NULL},
};

/* Keys that have nothing to do with what graft computes, in words. */
static const char harmless[] =
    "_name_or_path _model_name_or_path name_or_path _commit_hash transformers_version torch_dtype dtype use_cache attn_pdrop "
    "resid_pdrop embd_pdrop hidden_dropout max_sequence_length model_max_length max_seq_len seq_length sep_token_id "
    "unk_token_id decoder_start_token_id tokenizer_class auto_map attn_implementation _attn_implementation "
    "_attn_implementation_autoset _flash_attn_2_enabled use_flash_attention_2 use_flash_attention use_flash_attn "
    "flash_attention gradient_checkpointing initializer_factor return_dict output_attentions output_hidden_states "
    "torchscript use_bfloat16 is_decoder cross_attention_hidden_size tie_encoder_decoder tf_legacy_loss "
    "cache_implementation full_attn_mod interpolate_factor chunk_size_feed_forward finetuning_task id2label label2id num_labels "
    "problem_type prefix task_specific_params "
    "is_llama_config transformers.js_config unsloth_version unsloth_fixed mlx_version license language "
    /* generation settings of old files */
    "max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature "
    "top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size "
    "bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id "
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens";

/* ---- values ---- */

typedef struct json_file {
    json_t *root;
    const char *path;
} json_file;

static graft_status json_open(json_file *f, const char *path, graft_error *err) {
    char *text = NULL;
    int64_t len;
    json_error_t e;
    graft_status st;
    f->path = path;
    GR_TRY(gr_file_read_json(&text, &len, path, CONFIG_MAX_BYTES, err));
    f->root = json_loadb(text, (size_t)len, JSON_REJECT_DUPLICATES, &e);
    if (!f->root) st = gr_fail(err, GRAFT_BAD_INPUT, "%s:%d:%d: %s", path, e.line, e.column, e.text);
    else if (!json_is_object(f->root)) st = gr_fail(err, GRAFT_BAD_INPUT, "%s: expected a JSON object", path);
done:
    free(text);
    return st;
}

json_t *gr_config_text_part(json_t *root, bool *is_part) {
    static const char *const wholes[] = {"bos_token_id",        "eos_token_id", "pad_token_id",
                                         "quantization_config", "torch_dtype",  "dtype"};
    const char *type = json_string_value(json_object_get(root, "model_type"));
    json_t *text = json_object_get(root, "text_config");
    const gr_arch *arch = NULL;
    *is_part = false;
    for (int i = 0; i < GR_N_ARCHS; i++)
        if (type && gr_archs[i].hf_whole && strcmp(gr_archs[i].hf_whole, type) == 0) arch = &gr_archs[i];
    if (!arch || !json_is_object(text)) return root;
    *is_part = true;
    json_t *part = json_copy(text);
    json_object_set_new(part, "model_type", json_string(arch->hf_type));
    json_object_del(part, "architectures");
    for (int i = 0; i < GR_LEN(wholes); i++)
        if (json_object_get(root, wholes[i]) && !json_object_get(part, wholes[i]))
            json_object_set(part, wholes[i], json_object_get(root, wholes[i]));
    json_decref(root);
    return part;
}

static bool is_empty(const json_t *v) {
    return !v || json_is_null(v) || (json_is_array(v) && json_array_size(v) == 0) ||
           (json_is_object(v) && json_object_size(v) == 0);
}

static bool is_truthy(const json_t *v) {
    return !is_empty(v) && !json_is_false(v) && !(json_is_number(v) && json_number_value(v) == 0);
}

/* A value as words: a string as it is, anything else as JSON. Owned; NULL when out of memory. */
static char *value_text(const json_t *v) {
    return json_is_string(v) ? gr_strdup(json_string_value(v))
                             : json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(7));
}

/* BAD_INPUT unless v is one of the values that change nothing. */
static graft_status json_only(const char *path, const char *key, const json_t *v, const char *only, graft_error *err) {
    if (is_empty(v)) return GRAFT_OK;
    char *text = value_text(v);
    graft_status st = text ? GRAFT_OK : gr_fail_memory(err, key);
    if (text && !gr_config_allows(only, text)) st = gr_config_refuse(err, path, key, text, only);
    free(text);
    return st;
}

/* INT into an int64_t, BOOL, FLOAT into a float. An absent or null key leaves *out alone. */
static graft_status json_value(const json_file *f, const char *key, gr_config_kind kind, void *out, graft_error *err) {
    const json_t *v = json_object_get(f->root, key);
    if (!v || json_is_null(v)) return GRAFT_OK;
    if (kind == GR_CONFIG_INT) {
        if (!json_is_integer(v)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: expected an integer", f->path, key);
        *(int64_t *)out = json_integer_value(v);
    } else if (kind == GR_CONFIG_BOOL) {
        if (!json_is_boolean(v)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: expected true or false", f->path, key);
        *(bool *)out = json_is_true(v);
    } else {
        if (!json_is_number(v)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: expected a number", f->path, key);
        *(float *)out = (float)json_number_value(v);
    }
    return GRAFT_OK;
}

static void json_stop_ids(gr_model_config *c, const json_t *v) {
    size_t i;
    json_t *item;
    if (json_is_integer(v)) gr_config_add_stop(c, json_integer_value(v));
    json_array_foreach(v, i, item)
        if (json_is_integer(item)) gr_config_add_stop(c, json_integer_value(item));
}

static int32_t json_token_id(const json_file *f, const char *key) {
    const json_t *v = json_object_get(f->root, key);
    if (json_is_array(v)) v = json_array_get(v, 0);
    int64_t id = json_is_integer(v) ? json_integer_value(v) : -1;
    return id >= 0 && id <= INT32_MAX ? (int32_t)id : -1;
}

/* ---- keys ---- */

static graft_status read_key(gr_model_config *c, const json_file *f, const gr_config_key *row, const json_t *v, graft_error *err) {
    switch (row->kind) {
    case GR_CONFIG_INT:
    case GR_CONFIG_BOOL:
    case GR_CONFIG_FLOAT: return json_value(f, row->name, row->kind, (char *)c + row->offset, err);
    case GR_CONFIG_ACTIVATION: return json_only(f->path, row->name, v, gr_activation_names[c->arch->activation], err);
    case GR_CONFIG_ONLY: return json_only(f->path, row->name, v, row->only, err);
    case GR_CONFIG_READ:
    case GR_CONFIG_HARMLESS: break;
    }
    return GRAFT_OK;
}

/* Every key of the file by the table. One that it does not have is refused where its name speaks of computation, else named in a
 * warning; what is null, empty, false or 0 says nothing. */
static graft_status json_keys(gr_model_config *c, const json_file *f, graft_error *err) {
    graft_status st = GRAFT_OK;
    const char *key;
    json_t *v;
    gr_str unknown = {0};
    for (const gr_config_key *row = gr_config_hf_keys; row->name; row++)
        if (row->required && is_empty(json_object_get(f->root, row->name)) && *(const int64_t *)((char *)c + row->offset) == 0)
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is missing", f->path, row->name);
    json_object_foreach(f->root, key, v) {
        const gr_config_key *row = gr_config_find_key(gr_config_hf_keys, key, c->arch);
        if (row) GR_TRY(read_key(c, f, row, v, err));
        else if (gr_config_allows(harmless, key) || !is_truthy(v)) continue;
        else if (gr_config_smells(key)) GR_TRY(json_only(f->path, key, v, "", err));
        else gr_str_printf(&unknown, "%s%s", unknown.len ? ", " : "", key);
    }
    gr_config_warn(f->path, &unknown);
done:
    gr_str_release(&unknown);
    return st;
}

/* ---- which layers slide ---- */

/* layer_types of transformers 5 into c. A class without them that the list contradicts is refused. */
static graft_status json_layer_types(gr_model_config *c, const json_file *f, bool all_slide, bool *given, graft_error *err) {
    const json_t *list = json_object_get(f->root, "layer_types"), *v;
    size_t i;
    *given = json_is_array(list) && json_array_size(list) > 0;
    if (!*given && !is_empty(list)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: layer_types: expected a list", f->path);
    if (*given && (int64_t)json_array_size(list) != c->n_layers)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: layer_types has %zu entries, expected one for each of %lld layers", f->path,
                       json_array_size(list), (long long)c->n_layers);
    json_array_foreach(list, i, v) {
        const char *type = json_is_string(v) ? json_string_value(v) : "?";
        bool slides = strcmp(type, "sliding_attention") == 0;
        if (!slides && strcmp(type, "full_attention") != 0)
            return gr_config_refuse(err, f->path, "layer_types", type, "full_attention sliding_attention");
        if (slides) gr_config_slide(c, (int64_t)i);
        if (!c->arch->layer_types && slides != all_slide)
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: layer_types has %s, but %s of a %s", f->path, type,
                           all_slide ? "sliding_window is in use in every layer" : "no sliding window is in use in any layer",
                           c->arch->hf_type);
    }
    return GRAFT_OK;
}

/* The window and which layers attend within it, as transformers takes it: some architectures have none whatever the keys say, in
 * some every layer slides, in some all but one of so many, in some those from max_window_layers on where use_sliding_window is
 * true. */
static graft_status json_window(gr_model_config *c, const json_file *f, graft_error *err) {
    graft_status st;
    const gr_arch *arch = c->arch;
    bool use = !arch->window_switch, given;
    int64_t window = arch->window, first = 28 /* transformers' default */, period = arch->window_period;
    if (json_is_null(json_object_get(f->root, "sliding_window"))) window = 0;
    if (arch->slides) GR_TRY(json_value(f, "sliding_window", GR_CONFIG_INT, &window, err));
    if (window < 0) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: sliding_window is %lld", f->path, (long long)window));
    if (arch->window_switch) {
        GR_TRY(json_value(f, "use_sliding_window", GR_CONFIG_BOOL, &use, err));
        GR_TRY(json_value(f, "max_window_layers", GR_CONFIG_INT, &first, err));
    }
    if (arch->window_period_key) GR_TRY(json_value(f, "sliding_window_pattern", GR_CONFIG_INT, &period, err));
    if (arch->window_period && period < 1)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: sliding_window_pattern is %lld", f->path, (long long)period));
    if (!use) window = 0;
    GR_TRY(json_layer_types(c, f, window > 0, &given, err));
    if (!given && (window > 0 || period > 0) && !arch->window_switch) gr_config_slide_by(c, period);
    for (int64_t i = GR_MAX(first, 0); !given && window > 0 && arch->window_switch && i < GR_MIN(c->n_layers, GR_MAX_LAYERS); i++)
        gr_config_slide(c, i);
    if (gr_config_n_sliding(c) > 0 && window == 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: layer_types has sliding_attention, but no sliding window is in use", f->path));
    c->window = gr_config_n_sliding(c) > 0 ? window : 0;
done:
    return st;
}

/* ---- rotary embedding ---- */

const gr_rope_type gr_rope_types[] = {
    {"default", GR_ROPE_NONE, ""},
    {"linear", GR_ROPE_LINEAR, "factor"},
    {"llama3", GR_ROPE_LLAMA3, "factor low_freq_factor high_freq_factor"},
    {"dynamic", GR_ROPE_NONE, "factor"}, /* changes nothing within max_position_embeddings, beyond which graft does not go */
};

/* Of every type. Linear scaling has no use for an original context. */
static const char rope_harmless[] = "rope_type type rope_theta original_max_position_embeddings finetuned",
                  rope_ones[] = "factor attention_factor partial_rotary_factor"; /* change nothing where they are 1 */

typedef struct rope_dict {
    const json_t *object; /* may be NULL */
    const char *path, *where;
} rope_dict;

static graft_status find_rope_type(const gr_rope_type **out, const rope_dict *r, graft_error *err) {
    const json_t *type = json_object_get(r->object, "rope_type"), *old = json_object_get(r->object, "type");
    *out = &gr_rope_types[0];
    if (type && old && !json_equal(type, old))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: rope_type and type differ, and programs disagree on which counts", r->path,
                       r->where);
    if (!type && !old) return GRAFT_OK;
    const char *name = json_string_value(type ? type : old);
    if (!name) return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: %s: expected a name", r->path, r->where, type ? "rope_type" : "type");
    for (int i = 0; i < GR_N_ROPE_TYPES; i++)
        if (strcmp(name, gr_rope_types[i].name) == 0) *out = &gr_rope_types[i];
    if (strcmp(name, (*out)->name) == 0) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "%s: %s: rope type \"%s\": graft computes default, linear, llama3 and dynamic (within the context)", r->path,
                   r->where, name);
}

/* Every key is one that the type has. */
static graft_status rope_check(const rope_dict *r, const gr_rope_type *type, graft_error *err) {
    graft_status st = GRAFT_OK;
    const char *key;
    json_t *v;
    char full[128];
    json_object_foreach((json_t *)r->object, key, v) {
        if (json_is_object(v))
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s.%s: one rotation for each type of layer, where this model has one for all",
                           r->path, r->where, key);
        if (gr_config_allows(rope_harmless, key) || gr_config_allows(type->reads, key)) continue;
        snprintf(full, sizeof full, "%s.%s", r->where, key);
        GR_TRY(json_only(r->path, full, v, gr_config_allows(rope_ones, key) ? "1" : "", err));
    }
done:
    return st;
}

static graft_status rope_number(const rope_dict *r, const char *key, double *out, graft_error *err) {
    const json_t *v = json_object_get(r->object, key);
    if (!json_is_number(v)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: %s: expected a number", r->path, r->where, key);
    *out = json_number_value(v);
    return GRAFT_OK;
}

/* The base of a rotation: of the dictionary, else of the top level, where its key is `name`. */
static graft_status rope_theta(double *theta, const rope_dict *r, const rope_dict *top, const char *name, graft_error *err) {
    const json_t *inner = json_object_get(r->object, "rope_theta"), *outer = json_object_get(top->object, name);
    graft_status st = inner || outer ? rope_number(inner ? r : top, inner ? "rope_theta" : name, theta, err) : GRAFT_OK;
    if (st == GRAFT_OK && json_is_number(inner) && json_is_number(outer) && json_number_value(inner) != json_number_value(outer))
        gr_warn("%s: %s is %g, but %g in %s: the latter is taken, as transformers 5 does (4 takes the other)", r->path, name,
                json_number_value(outer), json_number_value(inner), r->where);
    return st;
}

/* Where the layers that slide turn by a base of their own, rope_parameters of transformers 5 has a dictionary for each of the two:
 * *r becomes that of the others, and the other is read. */
static graft_status rope_by_layer(gr_model_config *c, rope_dict *r, const rope_dict *top, graft_error *err) {
    const gr_rope_type *type;
    const char *key;
    json_t *v;
    graft_status st = GRAFT_OK;
    rope_dict local = {json_object_get(r->object, "sliding_attention"), r->path, "rope_parameters.sliding_attention"};
    if (c->arch->rope_local == 0) return GRAFT_OK;
    if (is_truthy(r->object) && !json_is_object(r->object))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: expected an object", r->path, r->where);
    json_object_foreach((json_t *)r->object, key, v)
        if (strcmp(key, "sliding_attention") != 0 && strcmp(key, "full_attention") != 0)
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "%s: rope_parameters.%s: expected full_attention and sliding_attention, each with its own", r->path,
                           key);
    if (!is_empty(local.object) && !json_is_object(local.object))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: expected an object", r->path, local.where);
    GR_TRY(find_rope_type(&type, &local, err));
    GR_TRY(rope_check(&local, type, err));
    if (type->scaling != GR_ROPE_NONE)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: rope type \"%s\": graft scales the layers alone that do not slide", r->path,
                       local.where, type->name);
    GR_TRY(rope_theta(&c->rope_local, &local, top, "rope_local_base_freq", err));
    r->object = json_object_get(r->object, "full_attention");
    r->where = "rope_parameters.full_attention";
done:
    return st;
}

/* llama3's original context: of the dictionary, of the top level, or the context itself, as transformers 5 fills it in. */
static graft_status rope_original(gr_model_config *c, const rope_dict *r, const rope_dict *top, graft_error *err) {
    static const char key[] = "original_max_position_embeddings";
    const json_t *inner = json_object_get(r->object, key), *outer = json_object_get(top->object, key);
    double original = (double)c->max_positions;
    if (inner && outer && !json_equal(inner, outer))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s differs from that of %s", r->path, key, r->where);
    graft_status st = inner || outer ? rope_number(inner ? r : top, key, &original, err) : GRAFT_OK;
    c->rope_original = original >= 1 && original < 1e9 ? (int64_t)original : 0;
    return st;
}

/* As transformers 5 does: rope_scaling where it says anything (all that 4 knows), else rope_parameters. */
static graft_status json_rope(gr_model_config *c, const json_file *f, graft_error *err) {
    const rope_dict top = {f->root, f->path, "config"},
                    scaling = {json_object_get(f->root, "rope_scaling"), f->path, "rope_scaling"};
    rope_dict parameters = {json_object_get(f->root, "rope_parameters"), f->path, "rope_parameters"};
    rope_dict r;
    const gr_rope_type *type, *other;
    graft_status st;
    GR_TRY(rope_by_layer(c, &parameters, &top, err));
    r = is_truthy(scaling.object) ? scaling : parameters;
    if (!is_truthy(r.object)) r.object = NULL;
    if (r.object && !json_is_object(r.object)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: expected an object", r.path, r.where);
    GR_TRY(find_rope_type(&type, &r, err));
    GR_TRY(rope_check(&r, type, err));
    c->rope_scaling = type->scaling;
    /* of the layers that do not slide rope_scaling is put over rope_parameters, elsewhere in its place */
    bool over = c->arch->rope_local > 0 && !json_object_get(r.object, "rope_theta");
    GR_TRY(rope_theta(&c->rope_theta, over ? &parameters : &r, &top, "rope_theta", err));
    if (c->rope_scaling != GR_ROPE_NONE) GR_TRY(rope_number(&r, "factor", &c->rope_factor, err));
    if (c->rope_scaling == GR_ROPE_LLAMA3) {
        GR_TRY(rope_number(&r, "low_freq_factor", &c->rope_low_freq, err));
        GR_TRY(rope_number(&r, "high_freq_factor", &c->rope_high_freq, err));
        GR_TRY(rope_original(c, &r, &top, err));
    }
    if (r.object == scaling.object && is_truthy(parameters.object) &&
        (find_rope_type(&other, &parameters, NULL) != GRAFT_OK || other->scaling != type->scaling))
        gr_warn("%s: rope_scaling and rope_parameters differ: the former is taken, as transformers does", f->path);
done:
    return st;
}

/* ---- the whole ---- */

/* A configuration of bitsandbytes that is off says load_in_4bit: false, and nothing but its settings. */
static bool packs(const json_t *quantized) {
    const char *key;
    json_t *v;
    bool said = false;
    json_object_foreach((json_t *)(uintptr_t)quantized, key, v) {
        bool load = strncmp(key, "load_in_", 8) == 0 || strncmp(key, "_load_in_", 9) == 0;
        if (load ? is_truthy(v) : strncmp(key, "bnb_4bit_", 9) != 0 && strncmp(key, "llm_int8_", 9) != 0) return true;
        said |= load;
    }
    return !said;
}

static graft_status json_quantized(const json_file *f, graft_error *err) {
    const json_t *quantized = json_object_get(f->root, "quantization_config"); /* GPTQ, AWQ, bitsandbytes ... */
    if (is_empty(quantized)) return GRAFT_OK;
    const char *method = json_string_value(json_object_get(quantized, "quant_method"));
    if (!packs(quantized)) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "%s: quantization_config: weights packed by %s cannot be trained on or merged into; take the "
                   "model that they were made from, or its GGUF",
                   f->path, method ? method : "another program");
}

/* The architecture of a class's name, NULL for none: LlamaForCausalLM, or LlamaModel, the decoder saved alone. */
static const gr_arch *arch_of_class(const char *name) {
    for (int i = 0; i < GR_N_ARCHS; i++) {
        const char *class = gr_archs[i].hf_class;
        size_t prefix = strlen(class) - strlen("ForCausalLM");
        if (strcasecmp(name, class) == 0) return &gr_archs[i]; /* LLaMAForCausalLM: the spelling of 2023 */
        if (strncmp(name, class, prefix) == 0 && strcmp(name + prefix, "Model") == 0) return &gr_archs[i];
    }
    return NULL;
}

static graft_status json_arch(gr_model_config *c, const json_file *f, graft_error *err) {
    const char *type = json_string_value(json_object_get(f->root, "model_type"));
    const json_t *list = json_object_get(f->root, "architectures"), *v;
    size_t i;
    graft_status st = gr_arch_find(&c->arch, f->path, "model_type", type ? type : "(missing)", false, err);
    if (st != GRAFT_OK) return st;
    json_array_foreach(list, i, v) {
        const char *name = json_is_string(v) ? json_string_value(v) : "?";
        const gr_arch *named = arch_of_class(name);
        if (!named)
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "%s: architectures is %s: graft runs models of language with one head, expected %s for "
                           "model_type %s",
                           f->path, name, c->arch->hf_class, type);
        if (named != c->arch)
            gr_warn("%s: architectures is %s, model_type %s: the latter counts, as in transformers", f->path, name, type);
    }
    c->max_positions = c->arch->max_positions;
    c->n_heads = c->arch->n_heads;
    c->vocab = c->arch->vocab;
    c->n_kv_heads = c->arch->n_kv_heads;
    c->head_dim = c->arch->head_dim;
    c->score_divisor = c->arch->score_divisor;
    c->attention_softcap = c->arch->attention_softcap;
    c->head_softcap = c->arch->head_softcap;
    c->rope_local = c->arch->rope_local;
    if (c->arch->norm_eps > 0) c->norm_eps = c->arch->norm_eps;
    if (c->arch->rope_theta > 0) c->rope_theta = c->arch->rope_theta;
    c->tied = c->arch->tied;
    c->qkv_bias = c->arch->qkv_bias;
    return GRAFT_OK;
}

static graft_status json_model(gr_model_config *c, const json_file *f, graft_error *err) {
    graft_status st;
    float dropout = 0;
    GR_TRY(json_arch(c, f, err));
    GR_TRY(json_quantized(f, err));
    GR_TRY(json_keys(c, f, err));
    if (json_is_null(json_object_get(f->root, "num_key_value_heads"))) c->n_kv_heads = 0;
    if (json_is_null(json_object_get(f->root, "attn_logit_softcapping"))) c->attention_softcap = 0;
    if (json_is_null(json_object_get(f->root, "final_logit_softcapping"))) c->head_softcap = 0;
    if (!c->n_kv_heads) c->n_kv_heads = c->n_heads;
    if (!c->head_dim && c->n_heads > 0) c->head_dim = c->hidden / c->n_heads;
    if (c->arch->attention_bias) c->o_bias = c->qkv_bias;
    GR_TRY(json_value(f, "attention_dropout", GR_CONFIG_FLOAT, &dropout, err));
    if (dropout > 0) gr_warn("%s: attention_dropout %g is not applied in training", f->path, (double)dropout);
    GR_TRY(json_window(c, f, err));
    GR_TRY(json_rope(c, f, err));
    GR_TRY(json_value(f, GR_CONFIG_BASE_VOCAB, GR_CONFIG_INT, &c->base_vocab, err));
    c->bos = json_token_id(f, "bos_token_id");
    c->eos = json_token_id(f, "eos_token_id");
    c->pad = json_token_id(f, "pad_token_id");
    json_stop_ids(c, json_object_get(f->root, "eos_token_id"));
done:
    return st;
}

graft_status gr_config_read_json(gr_model_config *c, const char *path, graft_error *err) {
    json_file f = {0}, generation = {0};
    graft_status st;
    *c = (gr_model_config){
        .norm_eps = 1e-6f, .init_range = 0.02f, .rope_theta = 10000, .rope_factor = 1, .rope_low_freq = 1, .rope_high_freq = 4};
    const char *slash = strrchr(path, '/');
    char *generation_path = gr_format("%.*s/generation_config.json", slash ? (int)(slash - path) : 1, slash ? path : ".");
    if (!generation_path) GR_TRY(gr_fail_memory(err, "config"));
    GR_TRY(json_open(&f, path, err));
    f.root = gr_config_text_part(f.root, &c->text_part);
    if (!f.root) GR_TRY(gr_fail_memory(err, "config"));
    GR_TRY(json_model(c, &f, err));
    if (c->text_part) gr_note("%s: of a model of text and pictures the text model alone (%s)", path, c->arch->hf_type);
    if (gr_exists(generation_path)) {
        GR_TRY(json_open(&generation, generation_path, err));
        json_stop_ids(c, json_object_get(generation.root, "eos_token_id"));
    }
    GR_TRY(gr_config_check(c, path, err));
done:
    json_decref(f.root);
    json_decref(generation.root);
    free(generation_path);
    return st;
}
