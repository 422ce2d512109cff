/* adapter_config.json, as PEFT 0.21 reads and writes it (peft src/peft/tuners/lora/config.py). */
#include "adapters/impl.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"

enum { MAX_BYTES = 16 << 20 };

/* Keys that ask for another computation than W + scale * B A: each must be absent, null, false or empty. */
static const struct {
    const char *key, *advice;
} refused[] = {
    {"use_dora", "DoRA is not supported: merge it with PEFT (merge_and_unload) and use the merged model as base"},
    {"modules_to_save", "whole trained modules are not supported: merge with PEFT (merge_and_unload) and use "
                        "the merged model as base"},
    {"layer_replication", "replicated layers are not supported: save the replicated model and use it as base"},
    {"lora_bias", "a bias of lora_B is not supported: merge with PEFT and use the merged model as base"},
    {"target_parameters", "LoRA on bare parameters is not supported: target linear modules"},
    {"alora_invocation_tokens", "activated LoRA is not supported: train an ordinary LoRA"},
    {"use_qalora", "QA-LoRA is not supported: merge with PEFT and use the merged model as base"},
    {"use_bdlora", "block-diagonal LoRA is not supported: train an ordinary LoRA"},
    {"arrow_config", "Arrow routing is not supported: load its LoRAs one by one"},
    {"kasa_config", "KaSA is not supported: train an ordinary LoRA"},
    {"velora_config", "VeLoRA is not supported: train an ordinary LoRA"},
    {"monteclora_config", "MonteCLoRA is not supported: train an ordinary LoRA"},
    {"ensure_weight_tying", "adapters tied between embedding and head are not supported: merge with PEFT and use the merged "
                            "model as base"},
};

/* Initialisations that leave the base alone: only the matrices that training made of them matter. The others (pissa, olora, corda,
 * loftq, lora_ga ...) also change the base weights, and such an adapter is nothing without that changed base. */
static const char *const harmless_inits[] = {"gaussian", "eva", "orthogonal"};

/* Keys that are read, or say nothing about the result. */
static const char *const known_keys[] = {"alpha_pattern",
                                         "auto_mapping",
                                         "base_model_name_or_path",
                                         "bias",
                                         "corda_config",
                                         "enable_lora",
                                         "eva_config",
                                         "exclude_modules",
                                         "fan_in_fan_out", /* PEFT itself sets it to false for ordinary linears */
                                         "graft",
                                         "inference_mode",
                                         "init_lora_weights",
                                         "init_weights", /* of rows that are in the file */
                                         "layers_pattern",
                                         "layers_to_transform",
                                         "loftq_config",
                                         "lora_alpha",
                                         "lora_dropout",
                                         "lora_ga_config",
                                         "megatron_config",
                                         "megatron_core",
                                         "merge_weights",
                                         "peft_type",
                                         "peft_version",
                                         "qalora_group_size",
                                         "r",
                                         "rank_pattern",
                                         "revision",
                                         "runtime_config",
                                         "target_modules",
                                         "task_type",
                                         "token_indices",
                                         "trainable_token_indices",
                                         "use_rslora"};

static bool is_off(const json_t *v) {
    if (json_is_array(v)) return json_array_size(v) == 0;
    if (json_is_object(v)) return json_object_size(v) == 0;
    return !v || json_is_null(v) || json_is_false(v);
}

/* ---- reading ---- */

static bool is_rows_alone(const json_t *root) {
    const char *type = json_string_value(json_object_get(root, "peft_type"));
    return type && strcmp(type, "TRAINABLE_TOKENS") == 0;
}

static graft_status check_supported(const json_t *root, const char *path, graft_error *err) {
    const json_t *type = json_object_get(root, "peft_type"), *bias = json_object_get(root, "bias");
    const json_t *init = json_object_get(root, "init_lora_weights"), *task = json_object_get(root, "task_type");
    if (!json_is_string(type) || (strcmp(json_string_value(type), "LORA") != 0 && !is_rows_alone(root)))
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: peft_type is %s, expected \"LORA\" or \"TRAINABLE_TOKENS\": merge other kinds with PEFT and use the "
                       "merged model as base",
                       path, json_is_string(type) ? json_string_value(type) : "missing");
    for (int i = 0; i < GR_LEN(refused); i++)
        if (!is_off(json_object_get(root, refused[i].key)))
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: %s", path, refused[i].key, refused[i].advice);
    if (json_is_string(bias) ? strcmp(json_string_value(bias), "none") != 0 : !is_off(bias))
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: bias: expected \"none\": trained biases are not supported, merge with PEFT and "
                       "use the merged model as base",
                       path);
    bool harmless = !json_is_string(init);
    for (int i = 0; !harmless && i < GR_LEN(harmless_inits); i++)
        harmless = strcasecmp(json_string_value(init), harmless_inits[i]) == 0;
    if (!harmless)
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: init_lora_weights \"%s\" changes the base too: convert to a plain LoRA with PEFT "
                       "(save_pretrained with path_initial_model_for_weight_conversion)",
                       path, json_string_value(init));
    if (!is_off(task) && (!json_is_string(task) || strcmp(json_string_value(task), "CAUSAL_LM") != 0))
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: task_type is %s, expected CAUSAL_LM: an adapter for another task does not fit a causal language model",
                       path, json_is_string(task) ? json_string_value(task) : "no string");
    return GRAFT_OK;
}

/* PEFT drops keys that it does not know with a warning; so do we. */
static void name_unknown(const json_t *root, const char *path) {
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)(uintptr_t)root, key, value) {
        bool known = is_off(value);
        for (int i = 0; !known && i < GR_LEN(known_keys); i++) known = strcmp(key, known_keys[i]) == 0;
        if (!known) gr_warn("%s: %s is not known and is left out of account, as in PEFT", path, key);
    }
}

graft_status gr_peft_read_number(const json_t *root, const char *path, const char *key, double *out, graft_error *err) {
    const json_t *v = json_object_get(root, key);
    if (!v || json_is_null(v)) return GRAFT_OK;
    if (!json_is_number(v)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: expected a number", path, key);
    *out = json_number_value(v);
    return GRAFT_OK;
}

static graft_status read_patterns(const json_t *root, const char *path, const char *key, gr_arena *arena, const gr_pattern **out,
                                  int *n_out, graft_error *err) {
    json_t *object = json_object_get(root, key), *value;
    const char *pattern;
    int n = 0;
    if (is_off(object)) return GRAFT_OK;
    if (!json_is_object(object) || json_object_size(object) > INT16_MAX)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: expected an object of names to numbers", path, key);
    gr_pattern *list = gr_arena_alloc(arena, (int64_t)json_object_size(object) * (int64_t)sizeof *list);
    if (!list) return gr_fail_memory(err, path);
    json_object_foreach(object, pattern, value) {
        if (!json_is_number(value)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: \"%s\": expected a number", path, key, pattern);
        list[n] = (gr_pattern){.pattern = gr_arena_strdup(arena, pattern), .value = json_number_value(value)};
        if (!list[n++].pattern) return gr_fail_memory(err, path);
    }
    *out = list, *n_out = n;
    return GRAFT_OK;
}

/* null, a string, or a list of strings. */
static graft_status check_names(const json_t *root, const char *key, const char *path, graft_error *err) {
    size_t i;
    json_t *item, *list = json_object_get(root, key);
    if (!list || json_is_null(list) || json_is_string(list)) return GRAFT_OK;
    bool good = json_is_array(list);
    json_array_foreach(list, i, item) good &= json_is_string(item);
    if (good) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: expected a list of names, or a string", path, key);
}

/* Our own additions; anybody else's adapter has none. */
static graft_status read_graft_key(gr_peft_config *c, const json_t *root, const char *path, graft_error *err) {
    const json_t *own = json_object_get(root, "graft");
    double vocab = 0;
    if (!json_is_object(own)) return GRAFT_OK;
    const char *hash = json_string_value(json_object_get(own, "tokenizer_hash"));
    graft_status st = gr_peft_read_number(own, path, "vocab", &vocab, err);
    if (hash) c->tokenizer_hash = strtoull(hash, NULL, 16);
    const char *base_path = json_string_value(json_object_get(own, "base_path"));
    if (base_path && !(c->base_path = gr_arena_strdup(&c->arena, base_path))) return gr_fail_memory(err, path);
    c->vocab = vocab >= 1 && vocab <= INT32_MAX ? (int64_t)vocab : 0;
    return st;
}

static graft_status read_values(gr_peft_config *c, const json_t *root, const char *path, graft_error *err) {
    static const char *const numbers[] = {"r", "lora_alpha"};
    static const char *const names[] = {"target_modules", "exclude_modules", "layers_pattern"};
    graft_status st = GRAFT_OK;
    double rank = 8, alpha = 8, dropout = 0; /* PEFT's defaults */
    gr_adapter_config *a = &c->config;
    const json_t *base = json_object_get(root, "base_model_name_or_path"), *rslora = json_object_get(root, "use_rslora");
    a->rows_alone = is_rows_alone(root);
    for (int i = 0; i < GR_LEN(numbers); i++)
        if (json_is_null(json_object_get(root, numbers[i])))
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is null, expected a number: the scale of the adapter depends on it", path,
                           numbers[i]));
    GR_TRY(gr_peft_read_number(root, path, "r", &rank, err));
    GR_TRY(gr_peft_read_number(root, path, "lora_alpha", &alpha, err));
    GR_TRY(gr_peft_read_number(root, path, "lora_dropout", &dropout, err));
    if (!(rank >= 1 && rank <= INT16_MAX) || rank != floor(rank))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: r is %g, expected a whole number from 1 to %d", path, rank, INT16_MAX));
    if (!(dropout >= 0 && dropout < 1))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: lora_dropout is %g, expected 0 to below 1", path, dropout));
    if (rslora && !json_is_boolean(rslora) && !json_is_null(rslora))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: use_rslora: expected true or false", path));
    a->rank = (int64_t)rank, a->alpha = alpha, a->dropout = dropout, a->use_rslora = json_is_true(rslora);
    for (int i = 0; i < GR_LEN(names); i++) GR_TRY(check_names(root, names[i], path, err));
    GR_TRY(read_patterns(root, path, "rank_pattern", &c->arena, &a->rank_pattern, &a->n_rank_pattern, err));
    GR_TRY(read_patterns(root, path, "alpha_pattern", &c->arena, &a->alpha_pattern, &a->n_alpha_pattern, err));
    GR_TRY(gr_peft_rows_read(c, path, err));
    GR_TRY(read_graft_key(c, root, path, err));
    a->base = gr_arena_strdup(&c->arena, json_is_string(base) ? json_string_value(base) : "");
    if (!a->base) GR_TRY(gr_fail_memory(err, path));
done:
    return st;
}

graft_status gr_peft_config_read(gr_peft_config *c, const char *path, graft_error *err) {
    graft_status st;
    char *text = NULL;
    json_t *root = NULL;
    int64_t len;
    json_error_t why;
    *c = (gr_peft_config){0};
    GR_TRY(gr_file_read_json(&text, &len, path, MAX_BYTES, err));
    root = json_loadb(text, (size_t)len, JSON_REJECT_DUPLICATES, &why);
    if (!root) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s:%d:%d: %s", path, why.line, why.column, why.text));
    if (!json_is_object(root)) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: expected a JSON object", path));
    c->root = root;
    root = NULL;
    c->mlx = !json_object_get(c->root, "peft_type") &&
             (json_object_get(c->root, "lora_parameters") || json_object_get(c->root, "fine_tune_type"));
    if (c->mlx) {
        GR_TRY(gr_mlx_config_read(c, path, err));
    } else {
        GR_TRY(check_supported(c->root, path, err));
        GR_TRY(read_values(c, c->root, path, err));
        name_unknown(c->root, path);
    }
done:
    json_decref(root);
    free(text);
    if (st != GRAFT_OK) gr_peft_config_release(c);
    return st;
}

void gr_peft_config_release(gr_peft_config *c) {
    gr_arena_release(&c->arena);
    json_decref(c->root);
    *c = (gr_peft_config){0};
}

/* ---- writing ---- */

/* A whole number without a point, as PEFT's users write lora_alpha. */
static json_t *number_json(double v) { return v == floor(v) && fabs(v) < 1e15 ? json_integer((json_int_t)v) : json_real(v); }

static double module_value(const gr_adapter_module *module, bool rank) { return rank ? (double)module->rank : module->alpha; }

/* rank_pattern or alpha_pattern from the modules as they are: keyed by the last component where all modules of that name agree,
 * else by whole name. No two keys match the same module, so the order in which a reader tries them does not matter. */
static json_t *patterns_json(const gr_adapter *a, bool rank) {
    double usual = rank ? (double)a->config.rank : a->config.alpha;
    json_t *object = json_object();
    for (int64_t i = 0; i < a->n_modules; i++) {
        double value = module_value(&a->modules[i], rank);
        const char *key = gr_last_component(a->modules[i].name);
        bool agreed = true;
        for (int64_t j = 0; j < a->n_modules; j++)
            if (strcmp(gr_last_component(a->modules[j].name), key) == 0) agreed &= module_value(&a->modules[j], rank) == value;
        if (value != usual) json_object_set_new(object, agreed ? key : a->modules[i].name, number_json(value));
    }
    return object;
}

static json_t *targets_json(const gr_adapter *a) {
    json_t *list = json_array();
    for (int i = 0; i < a->config.n_target_modules; i++) json_array_append_new(list, json_string(a->config.target_modules[i]));
    return list;
}

static json_t *lora_json(const gr_adapter *a) {
    static const char *const nulls[] = {"revision",        "modules_to_save",   "layers_to_transform", "layers_pattern",
                                        "exclude_modules", "layer_replication", "auto_mapping",        "megatron_config"};
    const gr_adapter_config *c = &a->config;
    json_t *root =
        json_pack("{s:s, s:s, s:b, s:I, s:o, s:f, s:o, s:s, s:b, s:b, s:b, s:b, s:o, s:o, s:b, s:{}, s:s, s:s, s:o}", "peft_type",
                  "LORA", "task_type", "CAUSAL_LM", "inference_mode", 1, "r", (json_int_t)c->rank, "lora_alpha",
                  number_json(c->alpha), "lora_dropout", c->dropout, "target_modules", targets_json(a), "bias", "none",
                  "fan_in_fan_out", 0, "init_lora_weights", 1, "use_rslora", (int)c->use_rslora, "use_dora", 0, "rank_pattern",
                  patterns_json(a, true), "alpha_pattern", patterns_json(a, false), "lora_bias", 0, "loftq_config", "megatron_core",
                  "megatron.core", "peft_version", "0.21.2", "trainable_token_indices", gr_peft_rows_json(a));
    for (int i = 0; i < GR_LEN(nulls); i++) json_object_set_new(root, nulls[i], json_null());
    return root;
}

static json_t *rows_json(const gr_adapter *a) {
    return json_pack("{s:s, s:s, s:b, s:o, s:o, s:b, s:n, s:n, s:s}", "peft_type", "TRAINABLE_TOKENS", "task_type", "CAUSAL_LM",
                     "inference_mode", 1, "target_modules", gr_peft_rows_targets_json(a), "token_indices", gr_peft_rows_json(a),
                     "init_weights", 1, "auto_mapping", "revision", "peft_version", "0.21.2");
}

graft_status gr_peft_config_write(const gr_adapter *a, const char *path, graft_error *err) {
    const gr_adapter_config *c = &a->config;
    graft_status st = GRAFT_OK;
    const char *slash = strrchr(path, '/');
    char hash[20], *text = NULL, *folder = slash ? gr_strndup(path, slash - path + 1) : gr_strdup(".");
    char *base_path = folder ? gr_path_relative(c->base, folder) : NULL; /* a moved run finds a base that moved with it */
    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)a->tokenizer_hash);
    json_t *own = json_pack("{s:s, s:I}", "version", GRAFT_VERSION, "vocab", (json_int_t)a->vocab);
    if (a->tokenizer_hash) json_object_set_new(own, "tokenizer_hash", json_string(hash));
    if (base_path) json_object_set_new(own, "base_path", json_string(base_path));
    free(base_path);
    free(folder);
    json_t *root = c->rows_alone ? rows_json(a) : lora_json(a);
    json_object_set_new(root, "graft", own);
    json_object_set_new(root, "base_model_name_or_path", json_string(c->base));
    if (!root || !(text = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_ENSURE_ASCII)))
        GR_TRY(gr_fail(err, GRAFT_FAILED, "%s: out of memory, or a base name that is not UTF-8", path));
    GR_TRY(gr_file_write(path, text, (int64_t)strlen(text), err));
done:
    json_decref(root);
    free(text);
    return st;
}

/* Rows of tokens in a line of the table: how many, and of what. */
static void card_rows(const gr_adapter *a, gr_str *s) {
    for (int i = 0; i < GR_ROWS_COUNT; i++) {
        const gr_ids_list *list = &a->config.rows[i];
        if (list->n > 0)
            gr_str_printf(s, "| rows of %s | %lld, tokens %d to %d |\n", gr_last_component(gr_rows_module(i)), (long long)list->n,
                          list->ids[0], list->ids[list->n - 1]);
    }
}

static void card_lora(const gr_adapter *a, gr_str *s) {
    const gr_adapter_config *c = &a->config;
    gr_str_printf(s, "| rank | %lld |\n| alpha | %g%s |\n| dropout | %g |\n| parameters | %lld |\n| targets |", (long long)c->rank,
                  c->alpha, c->use_rslora ? " (rsLoRA: alpha / sqrt(rank))" : "", c->dropout,
                  (long long)gr_adapter_n_parameters(a));
    for (int i = 0; i < c->n_target_modules; i++) gr_str_printf(s, "%s %s", i ? "," : "", c->target_modules[i]);
    gr_str_puts(s, " |\n");
}

/* vLLM and llama.cpp take a plain LoRA; one with rows of tokens is split for them. */
static void card_serving(const gr_adapter *a, gr_str *s) {
    int64_t served_rank = 16; /* vLLM's default limit; it takes powers of two */
    while (served_rank < a->config.rank) served_rank *= 2;
    if (a->config.rows_alone) return;
    if (gr_adapter_has_rows(a))
        gr_str_puts(s, "\nIts rows of tokens go into the base for vLLM and llama.cpp, and a plain LoRA is left:\n\n```sh\n"
                       "graft export --adapter THIS_FOLDER --base-out BASE_WITH_ROWS --out LORA\n```\n");
    gr_str_printf(s, "\nvLLM:\n\n```sh\nvllm serve %s --enable-lora --max-lora-rank %lld --lora-modules name=%s\n```\n",
                  gr_adapter_has_rows(a) ? "BASE_WITH_ROWS" : "BASE", (long long)served_rank,
                  gr_adapter_has_rows(a) ? "LORA" : "THIS_FOLDER");
}

graft_status gr_model_card_write(const gr_adapter *a, const char *path, graft_error *err) {
    const gr_adapter_config *c = &a->config;
    graft_status st;
    gr_str s = {0};
    const char *tag = c->rows_alone ? "trainable-tokens" : "lora",
               *title = c->rows_alone ? "Trained rows of tokens" : "LoRA adapter";
    gr_str_printf(&s, "---\nlibrary_name: peft\npipeline_tag: text-generation\ntags: [%s, graft]\nbase_model: '", tag);
    for (const char *p = c->base; *p; p++) gr_str_printf(&s, *p == '\'' ? "''" : "%c", *p);
    gr_str_printf(&s, "'\n---\n\n# %s\n\nTrained with graft %s on `%s`.\n\n| | |\n|---|---|\n", title, GRAFT_VERSION, c->base);
    if (c->rows_alone) gr_str_printf(&s, "| parameters | %lld |\n", (long long)gr_adapter_n_parameters(a));
    else card_lora(a, &s);
    card_rows(a, &s);
    gr_str_puts(&s, "\n## Use\n\nPEFT:\n\n```python\nfrom peft import PeftModel\n"
                    "from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained(\"BASE\")\n"
                    "model = PeftModel.from_pretrained(model, \"THIS_FOLDER\")\n```\n");
    card_serving(a, &s);
    gr_str_puts(&s, "\ngraft:\n\n```sh\ngraft generate --model BASE --adapter THIS_FOLDER --prompt 'Hello'\n"
                    "graft merge --model BASE --adapter THIS_FOLDER --out merged --format hf\n");
    if (!gr_adapter_has_rows(a))
        gr_str_puts(&s, "graft export --model BASE --adapter THIS_FOLDER --format gguf --out adapter.gguf   # for "
                        "llama.cpp --lora\n");
    gr_str_puts(&s, "```\n");
    st = s.failed ? gr_fail_memory(err, path) : gr_file_write(path, s.data, s.len, err);
    gr_str_release(&s);
    return st;
}
