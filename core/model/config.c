#include "core/model/config.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"

enum { CONFIG_MAX_BYTES = 16 << 20 };

/* One row for each architecture: what differs in names and defaults. The decoder knows none of them. */
typedef struct arch_row {
    const char *hf_type, *hf_class, *gguf;
    bool always_qkv_bias;
} arch_row;

static const arch_row archs[] = {
    {"llama", "LlamaForCausalLM", "llama", false},
    {"mistral", "MistralForCausalLM", "llama", false},
    {"qwen2", "Qwen2ForCausalLM", "qwen2", true},
};

static graft_status check_range(const char *file, const char *key, int64_t value, int64_t min, int64_t max, graft_error *err) {
    if (value >= min && value <= max) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is %lld, expected %lld to %lld", file, key, (long long)value, (long long)min,
                   (long long)max);
}

/* What must hold of every configuration, wherever it came from. */
static graft_status check_config(const gr_model_config *c, const char *file, graft_error *err) {
    const struct {
        const char *key;
        int64_t value, max;
    } sizes[] = {
        {"num_hidden_layers (block_count)", c->n_layers, 1024},
        {"hidden_size (embedding_length)", c->hidden, 1 << 17},
        {"num_attention_heads (head_count)", c->n_heads, 4096},
        {"num_key_value_heads (head_count_kv)", c->n_kv_heads, 4096},
        {"head_dim (key_length)", c->head_dim, 1024},
        {"intermediate_size (feed_forward_length)", c->ffn, 1 << 20},
        {"vocab_size", c->vocab, 1 << 24},
        {"max_position_embeddings (context_length)", c->max_positions, 1 << 24},
    };
    graft_status st;
    for (int i = 0; i < GR_LEN(sizes); i++)
        GR_TRY(check_range(file, sizes[i].key, sizes[i].value, 1, sizes[i].max, err));
    if (c->n_heads % c->n_kv_heads)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %lld heads are not a multiple of %lld key/value heads", file,
                       (long long)c->n_heads, (long long)c->n_kv_heads);
    if (c->head_dim % 2) return gr_fail(err, GRAFT_BAD_INPUT, "%s: head size %lld is odd", file, (long long)c->head_dim);
    if (!(c->norm_eps > 0 && c->norm_eps < 1)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: the norm's epsilon is not in (0, 1)", file);
    if (!(c->rope_theta > 0 && c->rope_theta < 1e12))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: rope theta %g is impossible", file, c->rope_theta);
    if (c->rope_scaling != GR_ROPE_NONE && !(c->rope_factor > 0 && c->rope_factor < 1e6))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: rope scaling factor %g is impossible", file, c->rope_factor);
    if (c->rope_scaling == GR_ROPE_LLAMA3 &&
        !(c->rope_low_freq > 0 && c->rope_high_freq > c->rope_low_freq && c->rope_original > 0))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: llama3 rope scaling needs 0 < low_freq_factor < high_freq_factor", file);
done:
    return st;
}

static void add_stop_id(gr_model_config *c, int64_t id) {
    if (id < 0 || id > INT32_MAX || c->n_stop_ids == GR_LEN(c->stop_ids)) return;
    for (int i = 0; i < c->n_stop_ids; i++)
        if (c->stop_ids[i] == id) return;
    c->stop_ids[c->n_stop_ids++] = (int32_t)id;
}

/* ---- config.json ---- */

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
    GR_TRY(gr_file_read(&text, &len, path, CONFIG_MAX_BYTES, err));
    f->root = json_loadb(text, (size_t)len, JSON_REJECT_DUPLICATES, &e);
    if (!f->root) st = gr_fail(err, GRAFT_BAD_INPUT, "%s:%d:%d: %s", path, e.line, e.column, e.text);
    else if (!json_is_object(f->root)) st = gr_fail(err, GRAFT_BAD_INPUT, "%s: expected a JSON object", path);
done:
    free(text);
    return st;
}

/* An absent or null key leaves *out alone. */
static graft_status json_int(const json_file *f, const char *key, int64_t *out, graft_error *err) {
    const json_t *v = json_object_get(f->root, key);
    if (!v || json_is_null(v)) return GRAFT_OK;
    if (!json_is_integer(v)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: expected an integer", f->path, key);
    *out = json_integer_value(v);
    return GRAFT_OK;
}

static graft_status json_float(const json_t *object, const char *path, const char *key, double *out, graft_error *err) {
    const json_t *v = json_object_get(object, key);
    if (!v || json_is_null(v)) return GRAFT_OK;
    if (!json_is_number(v)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: expected a number", path, key);
    *out = json_number_value(v);
    return GRAFT_OK;
}

static graft_status json_bool(const json_file *f, const char *key, bool *out, graft_error *err) {
    const json_t *v = json_object_get(f->root, key);
    if (!v || json_is_null(v)) return GRAFT_OK;
    if (!json_is_boolean(v)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: expected true or false", f->path, key);
    *out = json_is_true(v);
    return GRAFT_OK;
}

static void json_stop_ids(gr_model_config *c, const json_t *v) {
    size_t i;
    json_t *item;
    if (json_is_integer(v)) add_stop_id(c, json_integer_value(v));
    json_array_foreach(v, i, item) if (json_is_integer(item)) add_stop_id(c, json_integer_value(item));
}

static int32_t json_token_id(const json_file *f, const char *key) {
    const json_t *v = json_object_get(f->root, key);
    if (json_is_array(v)) v = json_array_get(v, 0);
    int64_t id = json_is_integer(v) ? json_integer_value(v) : -1;
    return id >= 0 && id <= INT32_MAX ? (int32_t)id : -1;
}

/* rope_parameters (transformers 5) or rope_theta and rope_scaling (4). */
static graft_status json_rope(gr_model_config *c, const json_file *f, graft_error *err) {
    graft_status st;
    const json_t *scaling = json_object_get(f->root, "rope_parameters");
    GR_TRY(json_float(f->root, f->path, "rope_theta", &c->rope_theta, err));
    if (!json_is_object(scaling)) scaling = json_object_get(f->root, "rope_scaling");
    if (!json_is_object(scaling)) goto done;
    GR_TRY(json_float(scaling, f->path, "rope_theta", &c->rope_theta, err));
    const json_t *kind = json_object_get(scaling, "rope_type");
    if (!kind) kind = json_object_get(scaling, "type");
    const char *name = json_is_string(kind) ? json_string_value(kind) : "default";
    if (strcmp(name, "default") == 0) goto done;
    GR_TRY(json_float(scaling, f->path, "factor", &c->rope_factor, err));
    if (strcmp(name, "linear") == 0) {
        c->rope_scaling = GR_ROPE_LINEAR;
    } else if (strcmp(name, "llama3") == 0) {
        double original = 8192;
        c->rope_scaling = GR_ROPE_LLAMA3;
        GR_TRY(json_float(scaling, f->path, "low_freq_factor", &c->rope_low_freq, err));
        GR_TRY(json_float(scaling, f->path, "high_freq_factor", &c->rope_high_freq, err));
        GR_TRY(json_float(scaling, f->path, "original_max_position_embeddings", &original, err));
        c->rope_original = original >= 1 && original < 1e9 ? (int64_t)original : 0;
    } else {
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s: rope scaling \"%s\": graft knows default, linear and llama3", f->path, name);
    }
done:
    return st;
}

static graft_status json_sizes(gr_model_config *c, const json_file *f, graft_error *err) {
    graft_status st;
    double eps = 1e-6;
    int64_t window = 0;
    bool use_window = true;
    const struct {
        const char *key;
        int64_t *out;
    } ints[] = {
        {"num_hidden_layers", &c->n_layers}, {"hidden_size", &c->hidden},       {"num_attention_heads", &c->n_heads},
        {"intermediate_size", &c->ffn},      {"vocab_size", &c->vocab},         {"num_key_value_heads", &c->n_kv_heads},
        {"head_dim", &c->head_dim},          {"sliding_window", &window},       {"max_position_embeddings", &c->max_positions},
    };
    for (int i = 0; i < GR_LEN(ints); i++) GR_TRY(json_int(f, ints[i].key, ints[i].out, err));
    for (int i = 0; i < 5; i++)
        if (!json_object_get(f->root, ints[i].key))
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is missing", f->path, ints[i].key);
    GR_TRY(json_float(f->root, f->path, "rms_norm_eps", &eps, err));
    c->norm_eps = (float)eps;
    if (!c->n_kv_heads) c->n_kv_heads = c->n_heads;
    if (!c->head_dim && c->n_heads > 0) c->head_dim = c->hidden / c->n_heads;
    /* Within its window, sliding attention is full attention: that is the context graft runs. */
    GR_TRY(json_bool(f, "use_sliding_window", &use_window, err));
    if (window > 0 && use_window && window < c->max_positions) c->max_positions = window;
done:
    return st;
}

static graft_status json_arch(gr_model_config *c, const json_file *f, graft_error *err) {
    const char *type = json_string_value(json_object_get(f->root, "model_type"));
    const json_t *quantized = json_object_get(f->root, "quantization_config"); /* GPTQ, AWQ, bitsandbytes ... */
    if (json_is_object(quantized)) {
        const char *method = json_string_value(json_object_get(quantized, "quant_method"));
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: quantization_config: weights packed by %s cannot be trained on or merged into; take the "
                       "model that they were made from, or its GGUF", f->path, method ? method : "another program");
    }
    const char *act = json_string_value(json_object_get(f->root, "hidden_act"));
    const arch_row *row = NULL;
    for (int i = 0; type && i < GR_LEN(archs); i++)
        if (strcmp(type, archs[i].hf_type) == 0) row = &archs[i];
    if (!row)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: model_type \"%s\": graft runs llama, mistral and qwen2", f->path,
                       type ? type : "(missing)");
    if (act && strcmp(act, "silu") != 0)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: hidden_act \"%s\", expected silu", f->path, act);
    snprintf(c->arch, sizeof c->arch, "%s", row->gguf);
    c->qkv_bias = row->always_qkv_bias;
    return GRAFT_OK;
}

graft_status gr_config_read_json(gr_model_config *c, const char *path, graft_error *err) {
    json_file f = {0}, generation = {0};
    graft_status st;
    *c = (gr_model_config){.max_positions = 2048, .rope_theta = 10000, .rope_factor = 1, .rope_low_freq = 1, .rope_high_freq = 4};
    char *folder = gr_strdup(path), *slash = folder ? strrchr(folder, '/') : NULL;
    if (slash) *slash = '\0';
    char *generation_path = folder ? gr_path_join(slash ? folder : ".", "generation_config.json") : NULL;
    if (!generation_path) GR_TRY(gr_fail_memory(err, "config"));
    GR_TRY(json_open(&f, path, err));
    GR_TRY(json_arch(c, &f, err));
    GR_TRY(json_sizes(c, &f, err));
    GR_TRY(json_rope(c, &f, err));
    GR_TRY(json_bool(&f, "tie_word_embeddings", &c->tied, err));
    if (!c->qkv_bias) {
        bool bias = false;
        GR_TRY(json_bool(&f, "attention_bias", &bias, err));
        c->qkv_bias = c->o_bias = bias;
    }
    GR_TRY(json_bool(&f, "mlp_bias", &c->mlp_bias, err));
    c->bos = json_token_id(&f, "bos_token_id");
    c->eos = json_token_id(&f, "eos_token_id");
    c->pad = json_token_id(&f, "pad_token_id");
    json_stop_ids(c, json_object_get(f.root, "eos_token_id"));
    if (gr_exists(generation_path)) {
        GR_TRY(json_open(&generation, generation_path, err));
        json_stop_ids(c, json_object_get(generation.root, "eos_token_id"));
    }
    GR_TRY(check_config(c, path, err));
done:
    json_decref(f.root);
    json_decref(generation.root);
    free(folder);
    free(generation_path);
    return st;
}

/* ---- GGUF ---- */

static const char *arch_key(char buffer[96], const gr_model_config *c, const char *key) {
    snprintf(buffer, 96, "%s.%s", c->arch, key);
    return buffer;
}

double gr_config_rope_divisor(const gr_model_config *c, int64_t i) {
    if (c->rope_scaling != GR_ROPE_LLAMA3) return 1;
    double freq = pow(c->rope_theta, -2.0 * (double)i / (double)c->head_dim), wavelength = 2 * M_PI / freq;
    double original = (double)c->rope_original;
    if (wavelength > original / c->rope_low_freq) return c->rope_factor;
    if (wavelength < original / c->rope_high_freq) return 1;
    double smooth = (original / wavelength - c->rope_low_freq) / (c->rope_high_freq - c->rope_low_freq);
    return 1 / ((1 - smooth) / c->rope_factor + smooth);
}

/* Llama-3 scaling is stored as one divisor per frequency: rope_freqs.weight. Find the parameters that give them. */
static graft_status gguf_rope_factors(gr_model_config *c, const gr_gguf *g, graft_error *err) {
    const gr_tensor *t = gr_gguf_find(g, "rope_freqs.weight");
    if (!t) return GRAFT_OK;
    if (t->dtype != GR_DTYPE_F32 || t->n_elements != c->head_dim / 2)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: rope_freqs.weight: expected %lld f32 values", gr_gguf_path(g),
                       (long long)(c->head_dim / 2));
    const float *factors = t->data;
    float largest = 1;
    for (int64_t i = 0; i < t->n_elements; i++) largest = GR_MAX(largest, factors[i]);
    if (largest == 1) return GRAFT_OK;
    c->rope_scaling = GR_ROPE_LLAMA3;
    c->rope_factor = largest, c->rope_low_freq = 1, c->rope_high_freq = 4; /* as all of Meta's models have them */
    for (c->rope_original = 32; c->rope_original <= 1 << 17; c->rope_original *= 2) {
        int64_t i = 0;
        while (i < t->n_elements && fabs(gr_config_rope_divisor(c, i) / factors[i] - 1) <= 1e-3) i++;
        if (i == t->n_elements) return GRAFT_OK;
    }
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: rope_freqs.weight does not fit Llama-3 scaling by %g", gr_gguf_path(g), c->rope_factor);
}

static graft_status gguf_rope(gr_model_config *c, const gr_gguf *g, graft_error *err) {
    char key[96];
    const char *kind;
    int64_t rope_dims;
    graft_status st;
    GR_TRY(gr_gguf_float_or(g, arch_key(key, c, "rope.freq_base"), 10000, &c->rope_theta, err));
    GR_TRY(gr_gguf_int_or(g, arch_key(key, c, "rope.dimension_count"), c->head_dim, &rope_dims, err));
    if (rope_dims != c->head_dim)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is %lld, expected the head size %lld", gr_gguf_path(g), key,
                       (long long)rope_dims, (long long)c->head_dim);
    if (gr_gguf_has(g, arch_key(key, c, "rope.scaling.type"))) {
        GR_TRY(gr_gguf_get_string(g, key, &kind, NULL, err));
        if (strcmp(kind, "linear") == 0) {
            c->rope_scaling = GR_ROPE_LINEAR;
            GR_TRY(gr_gguf_get_float(g, arch_key(key, c, "rope.scaling.factor"), &c->rope_factor, err));
        } else if (strcmp(kind, "none") != 0) {
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is \"%s\": graft knows none and linear", gr_gguf_path(g), key, kind);
        }
    }
    GR_TRY(gguf_rope_factors(c, g, err));
done:
    return st;
}

static int32_t gguf_token_id(const gr_gguf *g, const char *key) {
    int64_t id;
    if (gr_gguf_int_or(g, key, -1, &id, NULL) != GRAFT_OK || id < 0 || id > INT32_MAX) return -1;
    return (int32_t)id;
}

graft_status gr_config_read_gguf(gr_model_config *c, const gr_gguf *g, graft_error *err) {
    const char *arch, *path = gr_gguf_path(g);
    char key[96];
    double eps;
    bool known = false;
    graft_status st;
    *c = (gr_model_config){.rope_factor = 1, .rope_low_freq = 1, .rope_high_freq = 4};
    GR_TRY(gr_gguf_get_string(g, "general.architecture", &arch, NULL, err));
    for (int i = 0; i < GR_LEN(archs); i++) known |= strcmp(arch, archs[i].gguf) == 0;
    if (!known)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: general.architecture \"%.40s\": graft runs llama and qwen2", path, arch);
    snprintf(c->arch, sizeof c->arch, "%s", arch);
    GR_TRY(gr_gguf_get_int(g, arch_key(key, c, "block_count"), &c->n_layers, err));
    GR_TRY(gr_gguf_get_int(g, arch_key(key, c, "embedding_length"), &c->hidden, err));
    GR_TRY(gr_gguf_get_int(g, arch_key(key, c, "feed_forward_length"), &c->ffn, err));
    GR_TRY(gr_gguf_get_int(g, arch_key(key, c, "attention.head_count"), &c->n_heads, err));
    GR_TRY(check_range(path, key, c->n_heads, 1, 4096, err));
    GR_TRY(gr_gguf_int_or(g, arch_key(key, c, "attention.head_count_kv"), c->n_heads, &c->n_kv_heads, err));
    GR_TRY(gr_gguf_int_or(g, arch_key(key, c, "attention.key_length"), c->hidden / c->n_heads, &c->head_dim, err));
    GR_TRY(gr_gguf_get_int(g, arch_key(key, c, "context_length"), &c->max_positions, err));
    GR_TRY(gr_gguf_get_float(g, arch_key(key, c, "attention.layer_norm_rms_epsilon"), &eps, err));
    c->norm_eps = (float)eps;
    const gr_tensor *embed = gr_gguf_find(g, "token_embd.weight");
    if (!embed || embed->n_dims != 2) return gr_fail(err, GRAFT_BAD_INPUT, "%s: token_embd.weight is missing or no matrix", path);
    c->vocab = embed->shape[0];
    GR_TRY(gguf_rope(c, g, err));
    c->tied = !gr_gguf_find(g, "output.weight");
    c->qkv_bias = gr_gguf_find(g, "blk.0.attn_q.bias") != NULL;
    c->o_bias = gr_gguf_find(g, "blk.0.attn_output.bias") != NULL;
    c->mlp_bias = gr_gguf_find(g, "blk.0.ffn_gate.bias") != NULL;
    c->bos = gguf_token_id(g, "tokenizer.ggml.bos_token_id");
    c->eos = gguf_token_id(g, "tokenizer.ggml.eos_token_id");
    c->pad = gguf_token_id(g, "tokenizer.ggml.padding_token_id");
    add_stop_id(c, c->eos);
    add_stop_id(c, gguf_token_id(g, "tokenizer.ggml.eot_token_id"));
    GR_TRY(check_config(c, path, err));
done:
    return st;
}

/* ---- the rotary table ---- */

/* float32 arithmetic in HF's order, so that the angles are HF's to the last bit or nearly so */
static float inverse_frequency(const gr_model_config *c, int64_t i) {
    float inv = 1.0f / (float)pow(c->rope_theta, (double)((float)(2 * i) / (float)c->head_dim));
    if (c->rope_scaling == GR_ROPE_LINEAR) return inv / (float)c->rope_factor;
    if (c->rope_scaling != GR_ROPE_LLAMA3) return inv;
    float factor = (float)c->rope_factor, low = (float)c->rope_low_freq, high = (float)c->rope_high_freq;
    float original = (float)c->rope_original, wavelength = (float)(2 * M_PI) / inv;
    if (wavelength > original / low) return inv / factor;
    if (wavelength < original / high) return inv;
    float smooth = (original / wavelength - low) / (high - low);
    return (1 - smooth) * inv / factor + smooth * inv;
}

void gr_config_rope_table(const gr_model_config *c, float *table, int64_t n_positions) {
    int64_t half = c->head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        float inv = inverse_frequency(c, i);
        for (int64_t p = 0; p < n_positions; p++) {
            float angle = (float)p * inv;
            table[p * c->head_dim + i] = (float)cos((double)angle);
            table[p * c->head_dim + half + i] = (float)sin((double)angle);
        }
    }
}

/* ---- writing ---- */

static const arch_row *row_of(const gr_model_config *c) {
    for (int i = 0; i < GR_LEN(archs); i++)
        if (strcmp(archs[i].gguf, c->arch) == 0) return &archs[i];
    return &archs[0];
}

static json_t *rope_json(const gr_model_config *c) {
    static const char *const names[] = {"default", "linear", "llama3"};
    json_t *rope = json_object();
    json_object_set_new(rope, "rope_type", json_string(names[c->rope_scaling]));
    if (c->rope_scaling != GR_ROPE_NONE) json_object_set_new(rope, "factor", json_real(c->rope_factor));
    if (c->rope_scaling == GR_ROPE_LLAMA3) {
        json_object_set_new(rope, "low_freq_factor", json_real(c->rope_low_freq));
        json_object_set_new(rope, "high_freq_factor", json_real(c->rope_high_freq));
        json_object_set_new(rope, "original_max_position_embeddings", json_integer(c->rope_original));
    }
    return rope;
}

static json_t *id_json(int32_t id) { return id < 0 ? json_null() : json_integer(id); }

static json_t *stop_json(const gr_model_config *c) {
    if (c->n_stop_ids < 2) return id_json(c->n_stop_ids ? c->stop_ids[0] : c->eos);
    json_t *list = json_array();
    for (int i = 0; i < c->n_stop_ids; i++) json_array_append_new(list, json_integer(c->stop_ids[i]));
    return list;
}

static graft_status write_json(json_t *root, const char *folder, const char *name, graft_error *err) {
    char *path = gr_path_join(folder, name), *text = json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(7));
    graft_status st = path && text ? gr_file_write(path, text, (int64_t)strlen(text), err) : gr_fail_memory(err, name);
    free(path);
    free(text);
    json_decref(root);
    return st;
}

graft_status gr_config_write_hf(const gr_model_config *c, const char *dtype_name, const char *folder, graft_error *err) {
    const arch_row *row = row_of(c);
    graft_status st;
    /* both spellings: transformers 5 reads dtype and rope_parameters, 4 reads torch_dtype, rope_theta and rope_scaling */
    json_t *rope_parameters = rope_json(c);
    json_object_set_new(rope_parameters, "rope_theta", json_real(c->rope_theta));
    json_t *scaling = c->rope_scaling == GR_ROPE_NONE ? json_null() : rope_json(c);
    json_t *root = json_pack(
        "{s:[s], s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:o, s:o, s:b, s:b, s:b, s:o, s:o, s:o, s:b}",
        "architectures", row->hf_class, "model_type", row->hf_type, "hidden_act", "silu", "dtype", dtype_name, "torch_dtype",
        dtype_name, "num_hidden_layers", (json_int_t)c->n_layers, "hidden_size", (json_int_t)c->hidden, "num_attention_heads",
        (json_int_t)c->n_heads, "num_key_value_heads", (json_int_t)c->n_kv_heads, "head_dim", (json_int_t)c->head_dim,
        "intermediate_size", (json_int_t)c->ffn, "vocab_size", (json_int_t)c->vocab, "max_position_embeddings",
        (json_int_t)c->max_positions, "rms_norm_eps", (double)c->norm_eps, "rope_theta", c->rope_theta, "rope_parameters",
        rope_parameters, "rope_scaling", scaling, "tie_word_embeddings", (int)c->tied, "attention_bias",
        (int)(c->qkv_bias && !row->always_qkv_bias), "mlp_bias", (int)c->mlp_bias, "bos_token_id", id_json(c->bos), "eos_token_id",
        stop_json(c), "pad_token_id", id_json(c->pad), "use_cache", 1);
    if (!root) return gr_fail_memory(err, "config.json");
    GR_TRY(write_json(root, folder, "config.json", err));
    json_t *generation = json_pack("{s:o, s:o, s:o}", "bos_token_id", id_json(c->bos), "eos_token_id", stop_json(c),
                                   "pad_token_id", id_json(c->pad));
    if (!generation) return gr_fail_memory(err, "generation_config.json");
    GR_TRY(write_json(generation, folder, "generation_config.json", err));
done:
    return st;
}

void gr_config_put_gguf(const gr_model_config *c, gr_gguf_builder *b) {
    char key[96];
    const struct {
        const char *key;
        int64_t value;
    } ints[] = {
        {"context_length", c->max_positions},       {"embedding_length", c->hidden},
        {"block_count", c->n_layers},               {"feed_forward_length", c->ffn},
        {"rope.dimension_count", c->head_dim},      {"attention.head_count", c->n_heads},
        {"attention.head_count_kv", c->n_kv_heads}, {"attention.key_length", c->head_dim},
        {"attention.value_length", c->head_dim},    {"vocab_size", c->vocab},
    };
    gr_gguf_put_string(b, "general.architecture", c->arch);
    for (int i = 0; i < GR_LEN(ints); i++) gr_gguf_put_u32(b, arch_key(key, c, ints[i].key), (uint32_t)ints[i].value);
    gr_gguf_put_f32(b, arch_key(key, c, "rope.freq_base"), (float)c->rope_theta);
    gr_gguf_put_f32(b, arch_key(key, c, "attention.layer_norm_rms_epsilon"), c->norm_eps);
    if (c->rope_scaling == GR_ROPE_LINEAR) {
        gr_gguf_put_string(b, arch_key(key, c, "rope.scaling.type"), "linear");
        gr_gguf_put_f32(b, arch_key(key, c, "rope.scaling.factor"), (float)c->rope_factor);
    }
}
