/* The metadata of a GGUF: read by one table of keys, and written. What a key means is what llama.cpp takes it for. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/model/config_impl.h"

static const char *arch_key(char buffer[96], const gr_model_config *c, const char *key) {
    snprintf(buffer, 96, "%s.%s", c->arch->gguf, key);
    return buffer;
}

/* ---- the table: every <arch>.* key; other names say nothing about the computation ---- */

#define BASE_VOCAB "graft.base_vocab_size" /* no <arch>.* key: it says nothing about the computation */

static const gr_config_key keys[] = {
    {"block_count", INT(n_layers), .required = true},
    {"embedding_length", INT(hidden), .required = true},
    {"feed_forward_length", INT(ffn), .required = true},
    {"attention.head_count", INT(n_heads), .required = true},
    {"context_length", INT(max_positions), .required = true},
    {"attention.head_count_kv", INT(n_kv_heads)},
    {"attention.key_length", INT(head_dim)},
    {"attention.value_length", READ},
    {"attention.layer_norm_rms_epsilon", FLOAT(norm_eps), .required = true},
    {"attention.sliding_window", INT(window)},
    {"attention.sliding_window_pattern", READ},
    {"attention.causal", ONLY("true")},
    {"attention.scale", READ, WHERE(score_keys)},
    {"attention.scale", ONLY("0")},
    {"attention.clamp_kqv", ONLY("0")},
    {"attention.max_alibi_bias", ONLY("0")},
    {"attention.temperature_scale", ONLY("0")},
    {"attention.output_scale", ONLY("0 1")},
    {"attn_logit_softcapping", FLOAT(attention_softcap), WHERE(score_cap_key)},
    {"attn_logit_softcapping", ONLY("0")},
    {"final_logit_softcapping", FLOAT(head_softcap), WHERE(score_keys)},
    {"final_logit_softcapping", ONLY("0")},
    {"logit_scale", ONLY("0 1")},
    {"embedding_scale", ONLY("0 1")},
    {"residual_scale", ONLY("0 1")},
    {"expert_count", ONLY("0")},
    {"expert_used_count", ONLY("0")},
    {"expert_weights_scale", ONLY("0 1")},
    {"nextn_predict_layers", ONLY("0")},
    {"use_parallel_residual", ONLY("false")},
    {"pooling_type", ONLY("0")},
    {"rope.freq_base", READ},
    {"rope.freq_base_swa", READ},
    {"rope.dimension_count", READ},
    {"rope.scaling.type", READ},
    {"rope.scaling.factor", READ},
    {"rope.scale_linear", READ},
    {"rope.scaling.attn_factor", ONLY("0 1")},
    {"rope.scaling.alpha", ONLY("0")},
    {"rope.scaling.original_context_length", HARMLESS}, /* of yarn and longrope alone, which are refused */
    {"rope.scaling.finetuned", HARMLESS},
    {"vocab_size", HARMLESS}, /* the embedding has as many rows as it has */
    {"tensor_data_layout", HARMLESS},
    {.name = NULL},
};

/* A value as words: "8", "false", "yarn"; of an array its first element where all are the same, else "a list". */
static graft_status value_text(char out[64], const gr_gguf *g, const char *key, graft_error *err) {
    graft_status st;
    double number = 0, other;
    const char *text = NULL;
    bool flag = false;
    int64_t n = 0;
    switch (gr_gguf_type_of(g, key)) {
    case GR_GGUF_STRING: GR_TRY(gr_gguf_get_string(g, key, &text, NULL, err)); break;
    case GR_GGUF_BOOL:
        GR_TRY(gr_gguf_get_bool(g, key, &flag, err));
        text = flag ? "true" : "false";
        break;
    case GR_GGUF_ARRAY:
        GR_TRY(gr_gguf_get_array(g, key, NULL, &n, err));
        if (n == 0 || gr_gguf_array_float(g, key, 0, &number, NULL) != GRAFT_OK) text = "a list";
        for (int64_t i = 1; !text && i < n; i++)
            if (gr_gguf_array_float(g, key, i, &other, NULL) != GRAFT_OK || other != number) text = "a list";
        break;
    default: GR_TRY(gr_gguf_get_float(g, key, &number, err));
    }
    if (text) snprintf(out, 64, "%s", text);
    else snprintf(out, 64, "%g", number);
done:
    return st;
}

/* A count, or a list of one for each layer (as llama.cpp reads it) with all of them equal. */
static graft_status read_count(const gr_gguf *g, const char *key, int64_t n_layers, int64_t *out, graft_error *err) {
    int64_t n, value;
    if (!gr_gguf_has(g, key) || gr_gguf_type_of(g, key) != GR_GGUF_ARRAY) return gr_gguf_get_int(g, key, out, err);
    graft_status st = gr_gguf_get_array(g, key, NULL, &n, err);
    if (st == GRAFT_OK && n != n_layers)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is a list of %lld, expected one value or one for each of %lld layers",
                       gr_gguf_path(g), key, (long long)n, (long long)n_layers);
    for (int64_t i = 0; st == GRAFT_OK && i < n; i++) {
        st = gr_gguf_array_int(g, key, i, &value, err);
        if (st == GRAFT_OK && i > 0 && value != *out)
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "%s: %s differs between layers (%lld and %lld): graft computes layers that are alike", gr_gguf_path(g),
                           key, (long long)*out, (long long)value);
        *out = value;
    }
    return st;
}

static graft_status read_float(const gr_gguf *g, const char *key, float *out, graft_error *err) {
    double value = 0;
    graft_status st = gr_gguf_get_float(g, key, &value, err);
    *out = (float)value;
    return st;
}

/* One <arch>.* key of the file: not those that are READ. */
static graft_status check_key(const gr_model_config *c, const gr_gguf *g, const char *key, gr_str *unknown, graft_error *err) {
    const char *name = key + strlen(c->arch->gguf) + 1;
    const gr_config_key *row = gr_config_find_key(keys, name, c->arch);
    char text[64];
    if (row && row->kind != GR_CONFIG_ONLY) return GRAFT_OK;
    graft_status st = value_text(text, g, key, err);
    if (st != GRAFT_OK) return st;
    if (row) return gr_config_allows(row->only, text) ? GRAFT_OK : gr_config_refuse(err, gr_gguf_path(g), key, text, row->only);
    if (gr_config_allows("0 false", text)) return GRAFT_OK;
    if (gr_config_smells(name)) return gr_config_refuse(err, gr_gguf_path(g), key, text, NULL);
    gr_str_printf(unknown, "%s%s", unknown->len ? ", " : "", key);
    return GRAFT_OK;
}

static graft_status read_keys(gr_model_config *c, const gr_gguf *g, graft_error *err) {
    graft_status st = GRAFT_OK;
    char full[96];
    gr_str unknown = {0};
    size_t prefix = strlen(c->arch->gguf);
    for (const gr_config_key *row = keys; row->name; row++) {
        void *field = (char *)c + row->offset;
        if (!row->required && !gr_gguf_has(g, arch_key(full, c, row->name))) continue;
        if (gr_config_find_key(keys, row->name, c->arch) != row) continue;
        if (row->kind == GR_CONFIG_INT) GR_TRY(read_count(g, arch_key(full, c, row->name), c->n_layers, field, err));
        if (row->kind == GR_CONFIG_FLOAT) GR_TRY(read_float(g, arch_key(full, c, row->name), field, err));
    }
    for (int64_t i = 0; i < gr_gguf_n_keys(g); i++) {
        const char *key = gr_gguf_key(g, i, NULL);
        if (strncmp(key, c->arch->gguf, prefix) != 0 || key[prefix] != '.') continue;
        GR_TRY(check_key(c, g, key, &unknown, err));
    }
    gr_config_warn(gr_gguf_path(g), &unknown);
done:
    gr_str_release(&unknown);
    return st;
}

/* ---- rotary embedding ---- */

/* Llama-3 scaling is stored as one divisor per frequency: rope_freqs.weight. Find the parameters that give them. */
static graft_status rope_factors(gr_model_config *c, const gr_gguf *g, graft_error *err) {
    const gr_tensor *t = gr_gguf_find(g, "rope_freqs.weight");
    if (!t) return GRAFT_OK;
    if (t->dtype != GR_DTYPE_F32 || t->n_elements != c->head_dim / 2)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: rope_freqs.weight: expected %lld f32 values", gr_gguf_path(g),
                       (long long)(c->head_dim / 2));
    const float *factors = t->data;
    float largest = 1;
    for (int64_t i = 0; i < t->n_elements; i++) largest = GR_MAX(largest, factors[i]);
    if (largest == 1) return GRAFT_OK;
    if (c->rope_scaling != GR_ROPE_NONE)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: rope_freqs.weight beside rope.scaling: graft computes one of them",
                       gr_gguf_path(g));
    c->rope_scaling = GR_ROPE_LLAMA3;
    c->rope_factor = largest, c->rope_low_freq = 1, c->rope_high_freq = 4; /* as all of Meta's models have them */
    for (c->rope_original = 32; c->rope_original <= 1 << 17; c->rope_original *= 2) {
        int64_t i = 0;
        while (i < t->n_elements && fabs(gr_config_rope_divisor(c, i) / factors[i] - 1) <= 1e-3) i++;
        if (i == t->n_elements) return GRAFT_OK;
    }
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: rope_freqs.weight does not fit Llama-3 scaling by %g", gr_gguf_path(g),
                   c->rope_factor);
}

/* rope.scaling.factor, or the name that it had in 2023; without a type it is linear, with type none it is not applied; 0 is 1. */
static graft_status rope_scaling(gr_model_config *c, const gr_gguf *g, graft_error *err) {
    char type[96], factor[96];
    const char *kind = "linear";
    double value = 0;
    graft_status st;
    arch_key(type, c, "rope.scaling.type");
    if (!gr_gguf_has(g, arch_key(factor, c, "rope.scaling.factor"))) arch_key(factor, c, "rope.scale_linear");
    if (gr_gguf_has(g, type)) GR_TRY(gr_gguf_get_string(g, type, &kind, NULL, err));
    bool linear = strcmp(kind, "linear") == 0;
    if (!linear && strcmp(kind, "none") != 0) GR_TRY(gr_config_refuse(err, gr_gguf_path(g), type, kind, "none linear"));
    GR_TRY(gr_gguf_float_or(g, factor, 0, &value, err));
    if (!linear || value == 0 || value == 1) goto done;
    c->rope_scaling = GR_ROPE_LINEAR;
    c->rope_factor = value;
    if (!gr_gguf_has(g, type)) gr_note("%s: %s %g without a type: linear, as llama.cpp takes it", gr_gguf_path(g), factor, value);
done:
    return st;
}

static graft_status read_rope(gr_model_config *c, const gr_gguf *g, graft_error *err) {
    char key[96];
    int64_t rope_dims;
    graft_status st;
    GR_TRY(gr_gguf_float_or(g, arch_key(key, c, "rope.freq_base"), 10000, &c->rope_theta, err));
    double local = c->arch->rope_local > 0 ? c->arch->rope_local : c->rope_theta;
    GR_TRY(gr_gguf_float_or(g, arch_key(key, c, "rope.freq_base_swa"), local, &local, err));
    if (c->arch->rope_local > 0 && c->window > 0) c->rope_local = local;
    else if (c->arch->rope_local > 0) c->rope_local = c->arch->rope_local; /* of no layer */
    else if (local != c->rope_theta && c->window > 0)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is %g, rope.freq_base %g: graft turns all layers of a %s alike",
                       gr_gguf_path(g), key, local, c->rope_theta, c->arch->hf_type);
    GR_TRY(gr_gguf_int_or(g, arch_key(key, c, "rope.dimension_count"), c->head_dim, &rope_dims, err));
    if (rope_dims != c->head_dim)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is %lld, expected the head size %lld: graft does not rotate a part of a head",
                       gr_gguf_path(g), key, (long long)rope_dims, (long long)c->head_dim);
    GR_TRY(rope_scaling(c, g, err));
    GR_TRY(rope_factors(c, g, err));
done:
    return st;
}

/* ---- the whole ---- */

static int32_t token_id(const gr_gguf *g, const char *key) {
    int64_t id;
    if (gr_gguf_int_or(g, key, -1, &id, NULL) != GRAFT_OK || id < 0 || id > INT32_MAX) return -1;
    return (int32_t)id;
}

/* What the file is: a whole model of an architecture that graft runs. */
static graft_status read_arch(gr_model_config *c, const gr_gguf *g, graft_error *err) {
    const char *arch, *type = "model", *path = gr_gguf_path(g);
    int64_t n_files;
    graft_status st;
    if (gr_gguf_has(g, "general.type")) GR_TRY(gr_gguf_get_string(g, "general.type", &type, NULL, err));
    if (strcmp(type, "adapter") == 0)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: is an adapter, not a model: give it with --adapter and its base with --model",
                       path);
    if (strcmp(type, "model") != 0)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: general.type is \"%.40s\", expected a model", path, type);
    GR_TRY(gr_gguf_int_or(g, "split.count", 1, &n_files, err));
    if (n_files > 1)
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: split.count is %lld: one of several files; join them with `llama-gguf-split --merge`", path,
                       (long long)n_files);
    GR_TRY(gr_gguf_get_string(g, "general.architecture", &arch, NULL, err));
    GR_TRY(gr_arch_find(&c->arch, path, "general.architecture", arch, true, err));
done:
    return st;
}

/* What transformers calls it: a llama with a sliding window is a mistral. */
static void name_arch(gr_model_config *c) {
    for (int i = 0; c->window > 0 && !c->arch->slides && i < GR_N_ARCHS; i++)
        if (strcmp(gr_archs[i].gguf, c->arch->gguf) == 0 && gr_archs[i].slides) c->arch = &gr_archs[i];
}

/* Which layers slide: a period, a flag for each layer, or what the architecture has. */
static graft_status read_sliding(gr_model_config *c, const gr_gguf *g, graft_error *err) {
    char key[96];
    int64_t period = c->arch->window_period, n, value;
    graft_status st = GRAFT_OK;
    if (c->window < 0 || c->window > 1 << 24)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is %lld", gr_gguf_path(g), arch_key(key, c, "attention.sliding_window"),
                       (long long)c->window);
    if (c->window == 0) return GRAFT_OK;
    arch_key(key, c, "attention.sliding_window_pattern");
    if (gr_gguf_has(g, key) && gr_gguf_type_of(g, key) == GR_GGUF_ARRAY) {
        GR_TRY(gr_gguf_get_array(g, key, NULL, &n, err));
        if (n != c->n_layers)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is a list of %lld, expected one for each of %lld layers", gr_gguf_path(g),
                           key, (long long)n, (long long)c->n_layers));
        for (int64_t i = 0; i < n; i++) {
            GR_TRY(gr_gguf_array_int(g, key, i, &value, err));
            if (value) gr_config_slide(c, i);
        }
    } else {
        GR_TRY(gr_gguf_int_or(g, key, period, &period, err));
        if (period < 0) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is %lld", gr_gguf_path(g), key, (long long)period));
        gr_config_slide_by(c, period);
    }
    if (gr_config_n_sliding(c) == 0) c->window = 0;
done:
    return st;
}

/* What scores are divided by the root of in llama.cpp, which goes by the number of layers. */
static int64_t llama_divisor(const gr_model_config *c) {
    return c->arch->gguf_27b == c->n_layers ? c->hidden / c->n_heads : c->head_dim;
}

static graft_status read_scores(gr_model_config *c, const gr_gguf *g, graft_error *err) {
    char key[96];
    double scale;
    graft_status st = gr_gguf_float_or(g, arch_key(key, c, "attention.scale"), 0, &scale, err);
    if (st != GRAFT_OK || !c->arch->score_keys) return st;
    c->score_divisor = llama_divisor(c);
    if (scale == 0) return GRAFT_OK;
    double divisor = 1 / (scale * scale);
    c->score_divisor = divisor >= 0.5 && divisor < 1 << 20 ? (int64_t)(divisor + 0.5) : 0;
    if (c->score_divisor > 0 && fabs(divisor - (double)c->score_divisor) < 1e-4 * divisor) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is %g: expected one over the root of a whole number", gr_gguf_path(g), key, scale);
}

bool gr_config_llama_scales(const gr_model_config *c) { return !c->arch->score_keys || c->score_divisor == llama_divisor(c); }

static graft_status read_sizes(gr_model_config *c, const gr_gguf *g, graft_error *err) {
    const char *path = gr_gguf_path(g);
    char key[96];
    int64_t value_length, vocab;
    graft_status st;
    GR_TRY(read_keys(c, g, err));
    if (c->n_heads < 1)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is %lld", path, arch_key(key, c, "attention.head_count"),
                       (long long)c->n_heads);
    if (!c->n_kv_heads) c->n_kv_heads = c->n_heads;
    if (!c->head_dim) c->head_dim = c->hidden / c->n_heads;
    GR_TRY(gr_gguf_int_or(g, arch_key(key, c, "attention.value_length"), c->head_dim, &value_length, err));
    if (value_length != c->head_dim)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is %lld, expected attention.key_length, %lld", path, key,
                       (long long)value_length, (long long)c->head_dim);
    const gr_tensor *embed = gr_gguf_find(g, "token_embd.weight");
    if (!embed || embed->n_dims != 2) return gr_fail(err, GRAFT_BAD_INPUT, "%s: token_embd.weight is missing or no matrix", path);
    c->vocab = embed->shape[0];
    GR_TRY(gr_gguf_int_or(g, arch_key(key, c, "vocab_size"), c->vocab, &vocab, err));
    if (vocab != c->vocab)
        gr_warn("%s: %s is %lld, the embedding has %lld rows: those count", path, key, (long long)vocab, (long long)c->vocab);
done:
    return st;
}

static bool has_bias(const gr_model_config *c, const gr_gguf *g, gr_slot slot) {
    char name[96];
    snprintf(name, sizeof name, "blk.0.%s.bias", c->arch->modules[slot].gguf);
    return c->arch->modules[slot].gguf && gr_gguf_find(g, name);
}

graft_status gr_config_read_gguf(gr_model_config *c, const gr_gguf *g, graft_error *err) {
    graft_status st;
    *c = (gr_model_config){.init_range = 0.02f, .rope_factor = 1, .rope_low_freq = 1, .rope_high_freq = 4};
    GR_TRY(read_arch(c, g, err));
    c->window = c->arch->gguf_window;
    c->attention_softcap = c->arch->attention_softcap, c->head_softcap = c->arch->head_softcap;
    GR_TRY(read_sizes(c, g, err));
    name_arch(c);
    GR_TRY(read_sliding(c, g, err));
    GR_TRY(read_scores(c, g, err));
    GR_TRY(read_rope(c, g, err));
    c->tied = !gr_gguf_find(g, "output.weight");
    c->qkv_bias = has_bias(c, g, GR_SLOT_Q) || has_bias(c, g, GR_SLOT_QKV);
    c->o_bias = has_bias(c, g, GR_SLOT_O);
    c->mlp_bias = has_bias(c, g, GR_SLOT_GATE) || has_bias(c, g, GR_SLOT_GATE_UP);
    c->bos = token_id(g, "tokenizer.ggml.bos_token_id");
    c->eos = token_id(g, "tokenizer.ggml.eos_token_id");
    c->pad = token_id(g, "tokenizer.ggml.padding_token_id");
    gr_config_add_stop(c, c->eos);
    gr_config_add_stop(c, token_id(g, "tokenizer.ggml.eot_token_id"));
    gr_config_add_stop(c, token_id(g, "tokenizer.ggml.eom_token_id")); /* ends an answer in llama.cpp as well */
    GR_TRY(gr_gguf_int_or(g, BASE_VOCAB, 0, &c->base_vocab, err));
    GR_TRY(gr_config_check(c, gr_gguf_path(g), err));
done:
    return st;
}

/* ---- writing ---- */

/* The window, and which layers slide where these are not the architecture's: a period, or a flag for each. Where none does and a
 * file without the key has a window, a period of 1. */
static void put_window(const gr_model_config *c, gr_gguf_builder *b) {
    char key[96];
    int64_t period = c->window > 0 ? gr_config_period(c) : 1, window = c->window > 0 ? c->window : c->arch->gguf_window;
    if (window == 0) return;
    gr_gguf_put_u32(b, arch_key(key, c, "attention.sliding_window"), (uint32_t)window);
    if (gr_config_is_periodic(c, c->arch->window_period)) return;
    arch_key(key, c, "attention.sliding_window_pattern");
    if (period >= 0) {
        gr_gguf_put_u32(b, key, (uint32_t)period);
        return;
    }
    int32_t flags[GR_MAX_LAYERS];
    for (int64_t i = 0; i < c->n_layers; i++) flags[i] = gr_config_slides(c, i);
    gr_gguf_put_i32s(b, key, flags, c->n_layers);
}

void gr_config_put_gguf(const gr_model_config *c, gr_gguf_builder *b) {
    char key[96];
    const struct {
        const char *key;
        int64_t value;
    } ints[] = {
        {"context_length", c->max_positions},
        {"embedding_length", c->hidden},
        {"block_count", c->n_layers},
        {"feed_forward_length", c->ffn},
        {"rope.dimension_count", c->head_dim},
        {"attention.head_count", c->n_heads},
        {"attention.head_count_kv", c->n_kv_heads},
        {"attention.key_length", c->head_dim},
        {"attention.value_length", c->head_dim},
        {"vocab_size", c->vocab},
    };
    gr_gguf_put_string(b, "general.architecture", c->arch->gguf);
    for (int i = 0; i < GR_LEN(ints); i++) gr_gguf_put_u32(b, arch_key(key, c, ints[i].key), (uint32_t)ints[i].value);
    put_window(c, b);
    if (c->arch->score_cap_key) gr_gguf_put_f32(b, arch_key(key, c, "attn_logit_softcapping"), c->attention_softcap);
    if (c->head_softcap > 0 || c->arch->head_softcap > 0)
        gr_gguf_put_f32(b, arch_key(key, c, "final_logit_softcapping"), c->head_softcap);
    if (!gr_config_llama_scales(c)) gr_gguf_put_f32(b, arch_key(key, c, "attention.scale"), 1 / sqrtf((float)c->score_divisor));
    if (c->rope_local > 0 && c->rope_local != c->arch->rope_local)
        gr_gguf_put_f32(b, arch_key(key, c, "rope.freq_base_swa"), (float)c->rope_local);
    if (c->base_vocab > 0) gr_gguf_put_u32(b, BASE_VOCAB, (uint32_t)c->base_vocab);
    gr_gguf_put_f32(b, arch_key(key, c, "rope.freq_base"), (float)c->rope_theta);
    gr_gguf_put_f32(b, arch_key(key, c, "attention.layer_norm_rms_epsilon"), c->norm_eps);
    if (c->rope_scaling == GR_ROPE_LINEAR) {
        gr_gguf_put_string(b, arch_key(key, c, "rope.scaling.type"), "linear");
        gr_gguf_put_f32(b, arch_key(key, c, "rope.scaling.factor"), (float)c->rope_factor);
    }
}
