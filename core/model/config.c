#include "core/model/config_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"

/* ---- keys ---- */

const char *const gr_activation_names[] = {
    [GR_ACTIVATION_SILU] = "silu swish", [GR_ACTIVATION_GELU_TANH] = "gelu_pytorch_tanh gelu_new"};

/* Words of names that speak of computation: what transformers and llama.cpp compute otherwise has one of them in its name. */
static const char *const smells[] = {
    "multiplier", "scale", "scaling",   "softcap",    "norm",     "expert", "moe",    "window", "rope",     "rotary",
    "alibi",      "bias",  "clip",      "clamp",      "parallel", "mup",    "sparse", "causal", "residual", "logit",
    "qk",         "kq",    "quant",     "activation", "act_fn",   "prun",   "factor", "theta",  "pattern",  "mamba",
    "ssm",        "conv",  "recurrent", "attention",  "_act",     "heads",  "ntk",    "logn"};

const gr_config_key *gr_config_find_key(const gr_config_key *keys, const char *name, const gr_arch *arch) {
    for (; keys->name; keys++)
        if (strcmp(keys->name, name) == 0 && (!keys->where || *(const bool *)((const char *)arch + keys->where))) return keys;
    return NULL;
}

bool gr_config_smells(const char *name) {
    for (int i = 0; i < GR_LEN(smells); i++)
        if (strcasestr(name, smells[i])) return true;
    return false;
}

bool gr_config_allows(const char *only, const char *value) {
    char *end;
    double number = strtod(value, &end);
    bool is_number = *value && !*end;
    while (*only) {
        size_t n = strcspn(only, " ");
        if (strlen(value) == n && strncmp(only, value, n) == 0) return true;
        double wanted = strtod(only, &end);
        if (is_number && end == only + n && wanted == number) return true;
        only += n + strspn(only + n, " ");
    }
    return false;
}

graft_status gr_config_refuse(graft_error *err, const char *file, const char *key, const char *value, const char *only) {
    if (!only || !*only) return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is %.60s: graft does not compute that", file, key, value);
    char words[64] = "";
    for (const char *w = only; *w; w += strspn(w, " ")) {
        size_t n = strcspn(w, " "), at = strlen(words);
        snprintf(words + at, sizeof words - at, "%s%.*s", at ? " or " : "", (int)n, w);
        w += n;
    }
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is %.60s: graft computes only %s", file, key, value, words);
}

void gr_config_warn(const char *file, const gr_str *names) {
    if (names->len > 0) gr_warn("%s: keys that graft does not know, taken to change nothing: %s", file, names->data);
}

/* ---- which layers slide ---- */

void gr_config_slide(gr_model_config *c, int64_t layer) {
    if (layer < GR_MAX_LAYERS) c->slides[layer / 64] |= (uint64_t)1 << layer % 64;
}

void gr_config_slide_by(gr_model_config *c, int64_t period) {
    for (int64_t i = 0; i < GR_MIN(c->n_layers, GR_MAX_LAYERS); i++)
        if (period == 0 || (i + 1) % period != 0) gr_config_slide(c, i);
}

int64_t gr_config_n_sliding(const gr_model_config *c) {
    int64_t n = 0;
    for (int64_t i = 0; i < GR_MIN(c->n_layers, GR_MAX_LAYERS); i++) n += gr_config_slides(c, i);
    return n;
}

bool gr_config_is_periodic(const gr_model_config *c, int64_t period) {
    gr_model_config like = {.n_layers = c->n_layers};
    gr_config_slide_by(&like, period);
    return memcmp(like.slides, c->slides, sizeof like.slides) == 0;
}

int64_t gr_config_period(const gr_model_config *c) {
    int64_t period = 1;
    if (gr_config_is_periodic(c, 0)) return 0;
    while (gr_config_slides(c, period - 1)) period++;
    return gr_config_is_periodic(c, period) ? period : -1;
}

/* ---- what must hold ---- */

static graft_status check_range(const char *file, const char *key, int64_t value, int64_t min, int64_t max, graft_error *err) {
    if (value >= min && value <= max) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s is %lld, expected %lld to %lld", file, key, (long long)value, (long long)min,
                   (long long)max);
}

graft_status gr_config_check(const gr_model_config *c, const char *file, graft_error *err) {
    const struct {
        const char *key;
        int64_t value, max;
    } sizes[] = {
        {"num_hidden_layers (block_count)", c->n_layers, GR_MAX_LAYERS},
        {"hidden_size (embedding_length)", c->hidden, 1 << 17},
        {"num_attention_heads (head_count)", c->n_heads, 4096},
        {"num_key_value_heads (head_count_kv)", c->n_kv_heads, 4096},
        {"head_dim (key_length)", c->head_dim, 1024},
        {"intermediate_size (feed_forward_length)", c->ffn, 1 << 20},
        {"vocab_size", c->vocab, 1 << 24},
        {"max_position_embeddings (context_length)", c->max_positions, 1 << 24},
    };
    graft_status st;
    GR_TRY(check_range(file, "sliding_window", c->window, 0, 1 << 24, err));
    for (int i = 0; i < GR_LEN(sizes); i++) GR_TRY(check_range(file, sizes[i].key, sizes[i].value, 1, sizes[i].max, err));
    GR_TRY(check_range(file, "graft_base_vocab_size (graft.base_vocab_size)", c->base_vocab, 0, c->vocab, err));
    if (c->n_heads % c->n_kv_heads)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: %lld heads are not a multiple of %lld key/value heads", file,
                       (long long)c->n_heads, (long long)c->n_kv_heads);
    if (c->head_dim % 2) return gr_fail(err, GRAFT_BAD_INPUT, "%s: head size %lld is odd", file, (long long)c->head_dim);
    if (c->window == 0 && gr_config_n_sliding(c) > 0)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: layers have sliding attention, but there is no sliding_window", file);
    GR_TRY(check_range(file, "query_pre_attn_scalar", c->score_divisor, c->arch->score_keys, 1 << 20, err));
    if (!(c->attention_softcap >= 0 && c->attention_softcap < 1e6f && c->head_softcap >= 0 && c->head_softcap < 1e6f))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: a soft cap (%g of scores, %g of logits) is impossible", file,
                       (double)c->attention_softcap, (double)c->head_softcap);
    if (!(c->rope_local >= 0 && c->rope_local < 1e12))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: rope theta %g of the layers that slide is impossible", file, c->rope_local);
    if (!(c->norm_eps > 0 && c->norm_eps < 1))
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: the norm's epsilon is not in (0, 1)", file);
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

void gr_config_add_stop(gr_model_config *c, int64_t id) {
    if (id < 0 || id > INT32_MAX || c->n_stop_ids == GR_LEN(c->stop_ids)) return;
    for (int i = 0; i < c->n_stop_ids; i++)
        if (c->stop_ids[i] == id) return;
    c->stop_ids[c->n_stop_ids++] = (int32_t)id;
}

void gr_config_lead_stop(gr_model_config *c, int64_t id) {
    gr_model_config was = *c;
    if (id < 0) return;
    c->led = true;
    c->n_stop_ids = 0;
    gr_config_add_stop(c, id);
    for (int i = 0; i < was.n_stop_ids; i++) gr_config_add_stop(c, was.stop_ids[i]);
    if (was.n_stop_ids == 0) gr_config_add_stop(c, was.eos);
}

/* ---- what layers compute ---- */

gr_layer_desc gr_config_layer(const gr_model_config *c, int64_t layer) {
    bool slides = gr_config_slides(c, layer);
    int64_t divisor = c->score_divisor > 0 ? c->score_divisor : c->head_dim;
    return (gr_layer_desc){.window = slides ? c->window : 0,
                           .attention_scale = 1.0f / sqrtf((float)divisor),
                           .softcap = c->attention_softcap,
                           .activation = c->arch->activation,
                           .rope = slides && c->rope_local > 0 ? 1 : 0};
}

/* Not rounded to the embedding's type, as transformers does in bf16: as in float32, and in llama.cpp. */
float gr_config_embed_scale(const gr_model_config *c) { return c->arch->embed_scaled ? sqrtf((float)c->hidden) : 1; }

/* ---- the rotary tables ---- */

int gr_config_n_ropes(const gr_model_config *c) { return c->rope_local > 0 ? 2 : 1; }

double gr_config_rope_divisor(const gr_model_config *c, int64_t i) {
    if (c->rope_scaling != GR_ROPE_LLAMA3) return 1;
    double freq = pow(c->rope_theta, -2.0 * (double)i / (double)c->head_dim), wavelength = 2 * M_PI / freq;
    double original = (double)c->rope_original;
    if (wavelength > original / c->rope_low_freq) return c->rope_factor;
    if (wavelength < original / c->rope_high_freq) return 1;
    double smooth = (original / wavelength - c->rope_low_freq) / (c->rope_high_freq - c->rope_low_freq);
    return 1 / ((1 - smooth) / c->rope_factor + smooth);
}

/* float32 arithmetic in HF's order, so that the angles are HF's to the last bit or nearly so */
static float inverse_frequency(const gr_model_config *c, int which, int64_t i) {
    double theta = which == 0 ? c->rope_theta : c->rope_local;
    float inv = 1.0f / (float)pow(theta, (double)((float)(2 * i) / (float)c->head_dim));
    if (which != 0) return inv;
    if (c->rope_scaling == GR_ROPE_LINEAR) return inv / (float)c->rope_factor;
    if (c->rope_scaling != GR_ROPE_LLAMA3) return inv;
    float factor = (float)c->rope_factor, low = (float)c->rope_low_freq, high = (float)c->rope_high_freq;
    float original = (float)c->rope_original, wavelength = (float)(2 * M_PI) / inv;
    if (wavelength > original / low) return inv / factor;
    if (wavelength < original / high) return inv;
    float smooth = (original / wavelength - low) / (high - low);
    return (1 - smooth) * inv / factor + smooth * inv;
}

void gr_config_rope_table(const gr_model_config *c, int which, float *table, int64_t n_positions) {
    int64_t half = c->head_dim / 2;
    GR_ASSERT(which < gr_config_n_ropes(c));
    for (int64_t i = 0; i < half; i++) {
        float inv = inverse_frequency(c, which, i);
        for (int64_t p = 0; p < n_positions; p++) {
            float angle = (float)p * inv;
            table[p * c->head_dim + i] = (float)cos((double)angle);
            table[p * c->head_dim + half + i] = (float)sin((double)angle);
        }
    }
}
