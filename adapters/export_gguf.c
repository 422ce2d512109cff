/* A whole model as GGUF v3 for llama.cpp (ggml docs/gguf.md; llama.cpp's conversion/llama.py for what its
 * loader expects, src/llama-quant.cpp for the type of each tensor). */
#include "adapters/impl.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"

/* Of the mixtures Q4_K_M and Q5_K_M: layers whose attn_v and ffn_down get Q6_K. */
static bool more_bits(int64_t layer, int64_t n) { return layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2; }

/* llama.cpp calls models of 80 layers "70B", of some architectures only those with grouped queries. */
static bool is_70b(const gr_model_config *c) { return c->n_layers == 80 && (!c->arch->gguf_65b || c->n_heads != c->n_kv_heads); }

/* The type that llama.cpp's quantiser chooses for a matrix, before it looks whether rows are whole blocks. */
static gr_dtype mixture(const gr_export *x, const gr_weight_entry *e) {
    const gr_model_config *c = x->config;
    bool mixed = x->dtype == GR_DTYPE_Q4_K || x->dtype == GR_DTYPE_Q5_K, v = e->slot == GR_SLOT_V;
    if (e->slot == (c->tied ? GR_SLOT_EMBED : GR_SLOT_HEAD)) /* what gives the logits */
        return x->dtype == GR_DTYPE_Q8_0 || e->view.cols % gr_dtype_get(x->dtype)->block ? GR_DTYPE_Q8_0 : GR_DTYPE_Q6_K;
    if (mixed && e->slot == GR_SLOT_QKV) return x->dtype == GR_DTYPE_Q4_K ? GR_DTYPE_Q5_K : GR_DTYPE_Q6_K;
    if (!mixed || !(v || e->slot == GR_SLOT_DOWN)) return x->dtype;
    if (more_bits(e->layer, c->n_layers)) return GR_DTYPE_Q6_K;
    return v && is_70b(c) && x->dtype == GR_DTYPE_Q4_K ? GR_DTYPE_Q5_K : x->dtype;
}

/* What takes the place of a type whose blocks do not fit a row; F16 fits all. */
static gr_dtype fallback(gr_dtype dtype) {
    switch (dtype) {
    case GR_DTYPE_Q4_K: return GR_DTYPE_Q5_0;
    case GR_DTYPE_Q5_K: return GR_DTYPE_Q5_1;
    case GR_DTYPE_Q6_K: return GR_DTYPE_Q8_0;
    default: return GR_DTYPE_F16;
    }
}

/* One-dimensional tensors stay F32 (llama.cpp computes with nothing else). */
static gr_dtype gguf_dtype(const gr_export *x, const gr_weight_entry *e) {
    if (e->is_vector) return GR_DTYPE_F32;
    if (gr_dtype_get(x->dtype)->block == 1) return x->dtype;
    gr_dtype dtype = mixture(x, e);
    if (e->view.cols % gr_dtype_get(dtype)->block) dtype = fallback(dtype);
    return e->view.cols % gr_dtype_get(dtype)->block ? GR_DTYPE_F16 : dtype;
}

/* How many matrices have another type than the mixture's, as their rows are no whole blocks. */
static void tell_fallbacks(const gr_export *x) {
    int64_t n = 0, matrices = 0;
    gr_dtype to = x->dtype;
    for (int64_t i = 0; i < x->source.n && gr_dtype_get(x->dtype)->block > 1; i++) {
        const gr_weight_entry *e = &x->source.entries[i];
        if (e->is_vector) continue;
        matrices++;
        if (e->view.cols % gr_dtype_get(x->dtype)->block == 0) continue;
        if (n++ == 0 || gguf_dtype(x, e) != GR_DTYPE_Q8_0) to = gguf_dtype(x, e);
    }
    if (n > 0)
        gr_note("%lld of %lld matrices have rows that are no whole blocks of %s and get another type (%s ...), as llama.cpp does",
                (long long)n, (long long)matrices, gr_dtype_get(x->dtype)->name, gr_dtype_get(to)->name);
}

static bool has_rope_tensor(const gr_export *x) { return x->config->rope_scaling == GR_ROPE_LLAMA3; }

static graft_status produce(void *context, int64_t i, void *dst, graft_error *err) {
    const gr_export *x = context;
    if (i < x->source.n) return gr_export_entry(x, i, gguf_dtype(x, &x->source.entries[i]), true, dst, err);
    float *divisors = dst; /* rope_freqs.weight */
    for (int64_t k = 0; k < x->config->head_dim / 2; k++) divisors[k] = (float)gr_config_rope_divisor(x->config, k);
    return GRAFT_OK;
}

/* general.file_type, as llama.cpp's enum llama_ftype numbers them. */
static uint32_t file_type(gr_dtype dtype) {
    switch (dtype) {
    case GR_DTYPE_F16: return 1;
    case GR_DTYPE_Q8_0: return 7;
    case GR_DTYPE_Q4_K: /* Q4_K_M */ return 15;
    case GR_DTYPE_Q5_K: /* Q5_K_M */ return 17;
    case GR_DTYPE_Q6_K: return 18;
    case GR_DTYPE_BF16: return 32;
    default: return 0;
    }
}

/* What a GGUF says of its model beside the computation (licence, authors, languages, sampling ...) stays true
 * of what is made of it; what is about the file itself is written anew. */
static void copy_general(const gr_gguf *g, gr_gguf_builder *b) {
    static const char *const anew[] = {"architecture",         "type",         "name",     "file_type",
                                       "quantization_version", "quantized_by", "alignment"};
    for (int64_t i = 0; i < gr_gguf_n_keys(g); i++) {
        const char *key = gr_gguf_key(g, i, NULL);
        bool copied = gr_starts_with(key, "general.");
        for (int k = 0; copied && k < GR_LEN(anew); k++) copied = strcmp(key + strlen("general."), anew[k]) != 0;
        if (copied) gr_gguf_put_copy(b, g, key);
    }
}

/* Likewise of the tokenizer what graft has no use for: further special ids (eot, eom, fim_pre ...) and named chat templates. */
static void copy_tokenizer(const gr_gguf *g, bool end_is_new, gr_gguf_builder *b) {
    const char *const anew[] = {"bos", "eos", "unknown", "padding", end_is_new ? "eot" : "eos"};
    for (int64_t i = 0; i < gr_gguf_n_keys(g); i++) {
        const char *key = gr_gguf_key(g, i, NULL);
        bool id = gr_starts_with(key, "tokenizer.ggml.") && gr_ends_with(key, "_token_id"), written = false;
        for (int k = 0; id && k < GR_LEN(anew); k++) {
            const char *name = key + strlen("tokenizer.ggml.");
            written |= gr_starts_with(name, anew[k]) && strcmp(name + strlen(anew[k]), "_token_id") == 0;
        }
        if ((id && !written) || gr_starts_with(key, "tokenizer.chat_template.") || strcmp(key, "tokenizer.chat_templates") == 0)
            gr_gguf_put_copy(b, g, key);
    }
}

/* What ends an answer beside eos (generation_config.json's list): as eot and eom, which llama.cpp and graft end at, too. */
static void put_stops(const gr_export *x, gr_gguf_builder *b) {
    const gr_model_config *c = x->config;
    const int32_t eos = gr_tokenizer_carried_eos(x->tokenizer), end = gr_tokenizer_carried_end(x->tokenizer);
    const char *const keys[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};
    int next = end >= 0;
    for (int i = 0; i < c->n_stop_ids; i++) {
        if (c->stop_ids[i] == eos || c->stop_ids[i] == end || c->stop_ids[i] >= c->vocab) continue;
        if (next < GR_LEN(keys)) gr_gguf_put_u32(b, keys[next++], (uint32_t)c->stop_ids[i]);
        else gr_warn("a GGUF has no key for a fourth token that ends an answer: id %d is left out", (int)c->stop_ids[i]);
    }
}

static graft_status put_metadata(const gr_export *x, gr_gguf_builder *b, graft_error *err) {
    const char *base = gr_weights_path(x->base), *slash = strrchr(base, '/'), *name = slash && slash[1] ? slash + 1 : base;
    const gr_gguf *g = gr_weights_gguf(x->base);
    graft_status st = GRAFT_OK;
    if (x->name) name = x->name;
    else if (g && gr_gguf_has(g, "general.name")) st = gr_gguf_get_string(g, "general.name", &name, NULL, err);
    if (st != GRAFT_OK) return st;
    gr_config_put_gguf(x->config, b);
    gr_gguf_put_string(b, "general.type", "model");
    gr_gguf_put_string(b, "general.name", name);
    gr_gguf_put_u32(b, "general.file_type", file_type(x->dtype));
    gr_gguf_put_u32(b, "general.quantization_version", 2);
    if (g) {
        copy_general(g, b);
        copy_tokenizer(g, gr_tokenizer_carried_end(x->tokenizer) >= 0, b);
    } else put_stops(x, b);
    return gr_tokenizer_save_gguf(x->tokenizer, x->config->vocab, b, err);
}

/* What llama.cpp's graph of the architecture does not have. */
static void tell_limits(const gr_model_config *c) {
    const gr_arch *arch = c->arch;
    if (arch->gguf_square && c->n_heads * c->head_dim != c->hidden)
        gr_warn("llama.cpp loads %s only where heads x head size is the hidden size: graft reads this GGUF, llama.cpp will not",
                arch->gguf);
    if (arch->gguf_tied && !c->tied)
        gr_warn("llama.cpp loads %s only where the head is the embedding: graft reads this GGUF, llama.cpp will not", arch->gguf);
    if (c->window > 0 && !arch->gguf_slides)
        gr_warn("llama.cpp computes no sliding window for %s: within %lld tokens its answers are this model's, beyond they are not",
                arch->gguf, (long long)c->window);
    if ((arch->attention_softcap > 0 && c->attention_softcap == 0) || (arch->head_softcap > 0 && c->head_softcap == 0))
        gr_warn("llama.cpp computes %s only with soft caps, which this model does not have: graft reads this GGUF, llama.cpp will "
                "give no numbers",
                arch->gguf);
    if (!gr_config_llama_scales(c))
        gr_warn("llama.cpp does not divide the scores of %s by the root of %lld (query_pre_attn_scalar): graft reads this GGUF, "
                "llama.cpp will compute otherwise",
                arch->gguf, (long long)c->score_divisor);
}

graft_status gr_export_gguf(const gr_export *x, const char *path, graft_error *err) {
    graft_status st;
    gr_gguf_builder b = {0};
    gr_tensor *tensors = NULL;
    int64_t n = x->source.n;
    tell_limits(x->config);
    tell_fallbacks(x);
    GR_TRY(put_metadata(x, &b, err));
    GR_TRY(gr_export_tensors(&tensors, x, gguf_dtype, true, err));
    if (has_rope_tensor(x)) {
        tensors[n] = (gr_tensor){.name = "rope_freqs.weight", .dtype = GR_DTYPE_F32, .n_dims = 1};
        tensors[n++].shape[0] = x->config->head_dim / 2;
    }
    GR_TRY(gr_gguf_write(path, &b, tensors, n, produce, (void *)x, err));
done:
    gr_gguf_builder_release(&b);
    free(tensors);
    return st;
}
