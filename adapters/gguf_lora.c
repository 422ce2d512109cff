/* GGUF LoRA, as llama.cpp's convert_lora_to_gguf.py writes it and its src/llama-adapter.cpp reads it. */
#include "adapters/impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"

#define KEY_TEMPLATE "tokenizer.chat_template" /* as a model's file has it */

/* ---- writing ---- */

typedef struct lora_export {
    const gr_adapter *a;
    const gr_weight_entry **entries; /* [n_modules] the base tensor of each module */
    double alpha;                    /* the file's one adapter.lora.alpha */
    float *staging;                  /* room for the largest matrix */
} lora_export;

/* The loader scales by alpha / rank of the tensor. What this module's own scale (rsLoRA, alpha_pattern) is
 * beyond that goes into B. */
static double fold_factor(const lora_export *x, const gr_adapter_module *module) {
    return gr_adapter_scale(x->a, module) * (double)module->rank / x->alpha;
}

/* Tensor i: lora_a (even) or lora_b (odd) of module i/2. The embedding's pair is stored as llama.cpp wants it: A [V,R], B [C,R]. */
static graft_status produce(void *context, int64_t i, void *dst, graft_error *err) {
    const lora_export *x = context;
    const gr_adapter_module *module = &x->a->modules[i / 2];
    const gr_params *p = x->a->params;
    int64_t index = i % 2 ? module->b : module->a, R = module->rank;
    float *to = dst, *value = i % 2 ? x->staging : to;
    gr_params_read(p, GR_PARAMS_VALUE, index, value);
    graft_status st = gr_device_status(p->device, err);
    if (st != GRAFT_OK) return st;
    for (int64_t k = 0; k < p->items[index].n; k++)
        if (!isfinite(value[k]))
            return gr_fail(err, GRAFT_FAILED, "%s is not finite: a diverged adapter is not exported", p->items[index].name);
    if (i % 2 == 0) return GRAFT_OK;
    int64_t heads = x->entries[i / 2]->permute_heads;
    double factor = fold_factor(x, module);
    for (int64_t n = 0; n < module->out; n++) {
        int64_t row = heads ? gr_gguf_row(n, heads, module->out) : n;
        for (int64_t r = 0; r < R; r++) to[row * R + r] = (float)(factor * (double)value[n * R + r]);
    }
    return GRAFT_OK;
}

static graft_status find_entries(lora_export *x, const gr_model *m, const char *path, graft_error *err) {
    for (int64_t j = 0; j < x->a->n_modules; j++) {
        const gr_adapter_module *module = &x->a->modules[j];
        x->entries[j] = m->modules[module->index].entry;
        if (!x->entries[j] || (m->config.tied && gr_adapter_is_embedding(module)))
            return gr_fail(err, GRAFT_BAD_USAGE,
                           "%s: a GGUF LoRA cannot adapt %s: the base's head is its embedding, and llama.cpp cannot tell the two "
                           "apart; graft merge --format gguf writes them as two",
                           path, module->name);
    }
    return GRAFT_OK;
}

static graft_status list_tensors(const lora_export *x, gr_tensor *tensors, gr_arena *names, graft_error *err) {
    for (int64_t i = 0; i < 2 * x->a->n_modules; i++) {
        const gr_adapter_module *module = &x->a->modules[i / 2];
        bool flipped = i % 2 == 0 && gr_adapter_is_embedding(module);
        char name[96];
        snprintf(name, sizeof name, "%s.lora_%c", x->entries[i / 2]->gguf_name, i % 2 ? 'b' : 'a');
        tensors[i] = (gr_tensor){.name = gr_arena_strdup(names, name), .dtype = GR_DTYPE_F32, .n_dims = 2};
        if (!tensors[i].name) return gr_fail_memory(err, name);
        tensors[i].shape[0] = i % 2 ? module->out : flipped ? module->in : module->rank;
        tensors[i].shape[1] = i % 2 || flipped ? module->rank : module->in;
    }
    return GRAFT_OK;
}

graft_status gr_adapter_export_gguf(const gr_adapter *a, const gr_model *m, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_arena arena = {0};
    gr_gguf_builder b = {0};
    int64_t n = 2 * a->n_modules;
    lora_export x = {.a = a, .entries = gr_arena_alloc(&arena, a->n_modules * (int64_t)sizeof *x.entries)};
    gr_tensor *tensors = gr_arena_alloc(&arena, n * (int64_t)sizeof *tensors);
    x.staging = gr_calloc(gr_params_largest(a->params), sizeof *x.staging);
    if (!x.entries || !tensors || !x.staging) GR_TRY(gr_fail_memory(err, path));
    if (gr_adapter_has_rows(a))
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "%s: a GGUF LoRA cannot hold trained rows of tokens: %s", path,
                       a->config.rows_alone ? "graft merge writes the base with them"
                                            : "with --base-out FILE.gguf the base is written with them, and the LoRA for it"));
    GR_TRY(find_entries(&x, m, path, err));
    GR_TRY(list_tensors(&x, tensors, &arena, err));
    x.alpha = (float)(gr_adapter_scale(a, &a->modules[0]) * (double)a->modules[0].rank); /* as stored */
    if (x.alpha == 0) x.alpha = 1; /* the loader takes 0 for "no scaling"; the factor then makes B zero */
    gr_gguf_put_string(&b, "general.architecture", m->config.arch->gguf);
    gr_gguf_put_string(&b, "general.type", "adapter");
    gr_gguf_put_string(&b, "general.name", "graft LoRA");
    gr_gguf_put_u32(&b, "general.file_type", 0); /* all F32 */
    if (*a->config.base) gr_gguf_put_string(&b, "general.base_model.0.name", a->config.base);
    if (*a->config.base) gr_gguf_put_u32(&b, "general.base_model.count", 1);
    gr_gguf_put_string(&b, "adapter.type", "lora");
    if (a->chat_template) gr_gguf_put_string(&b, KEY_TEMPLATE, a->chat_template);
    gr_gguf_put_f32(&b, "adapter.lora.alpha", (float)x.alpha);
    GR_TRY(gr_gguf_write(path, &b, tensors, n, produce, &x, err));
done:
    gr_gguf_builder_release(&b);
    gr_arena_release(&arena);
    free(x.staging);
    return st;
}

/* ---- reading ---- */

typedef struct lora_import {
    gr_model *m;
    const gr_gguf *g;
    const gr_tensor **a, **b; /* [n], by module index */
    const gr_weight_entry **entries;
    bool *found;
    int64_t n;
} lora_import;

/* Keys of an adapter that are not read. */
static void name_unknown(const gr_gguf *g) {
    static const char *const known[] = {"adapter.type", "adapter.lora.alpha", "adapter.lora.task_name",
                                        "adapter.lora.prompt_prefix"};
    for (int64_t i = 0; i < gr_gguf_n_keys(g); i++) {
        const char *key = gr_gguf_key(g, i, NULL);
        bool told = !gr_starts_with(key, "adapter.");
        for (int k = 0; !told && k < GR_LEN(known); k++) told = strcmp(key, known[k]) == 0;
        if (!told) gr_warn("%s: %s is not known here and is taken to change nothing", gr_gguf_path(g), key);
    }
}

static graft_status check_header(const gr_gguf *g, const gr_model *m, double *alpha, graft_error *err) {
    const char *type = "", *kind = "", *arch;
    graft_status st = GRAFT_OK;
    if (gr_gguf_has(g, "general.type")) GR_TRY(gr_gguf_get_string(g, "general.type", &type, NULL, err));
    if (strcmp(type, "adapter") != 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: general.type is \"%s\", expected \"adapter\": this GGUF is no adapter",
                       gr_gguf_path(g), type));
    GR_TRY(gr_gguf_get_string(g, "adapter.type", &kind, NULL, err));
    if (strcmp(kind, "lora") != 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: adapter.type is \"%s\", expected \"lora\"", gr_gguf_path(g), kind));
    if (gr_gguf_has(g, "adapter.alora.invocation_tokens"))
        GR_TRY(
            gr_fail(err, GRAFT_BAD_INPUT, "%s: adapter.alora.invocation_tokens: activated LoRA is not supported", gr_gguf_path(g)));
    GR_TRY(gr_gguf_get_string(g, "general.architecture", &arch, NULL, err));
    if (strcmp(arch, m->config.arch->gguf) != 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: general.architecture is \"%s\", the base's is \"%s\"", gr_gguf_path(g), arch,
                       m->config.arch->gguf));
    GR_TRY(gr_gguf_float_or(g, "adapter.lora.alpha", 0, alpha, err));
    if (*alpha == 0) gr_note("%s: without adapter.lora.alpha its matrices are not scaled, as in llama.cpp", gr_gguf_path(g));
    name_unknown(g);
    if (!isfinite(*alpha)) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: adapter.lora.alpha is not finite", gr_gguf_path(g)));
done:
    return st;
}

/* The module whose base tensor the name of a pair begins with, -1 when there is none. */
static int64_t find_entry(const lora_import *x, const char *name, size_t len) {
    for (int64_t i = 0; i < x->n; i++) {
        const char *known = x->entries[i] ? x->entries[i]->gguf_name : "";
        if (strlen(known) == len && strncmp(known, name, len) == 0) return i;
    }
    return -1;
}

static graft_status take_tensors(lora_import *x, graft_error *err) {
    int64_t found = 0;
    for (int64_t k = 0; k < gr_gguf_n_tensors(x->g); k++) {
        const gr_tensor *t = gr_gguf_tensor(x->g, k);
        bool a = gr_ends_with(t->name, ".lora_a"), b = gr_ends_with(t->name, ".lora_b");
        int64_t i = a || b ? find_entry(x, t->name, strlen(t->name) - strlen(".lora_a")) : -1;
        if (i < 0)
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s: %s", t->file, t->name,
                           a || b ? "the base has no such tensor: is this the adapter's base model?" : "no matrix of a LoRA");
        if (i == 0 && x->m->config.tied)
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "%s: tensor %s: the base's head is its embedding, and llama.cpp would adapt both: graft cannot", t->file,
                           t->name);
        (a ? x->a : x->b)[i] = t;
    }
    for (int64_t i = 0; i < x->n; i++) {
        const gr_tensor *one = x->a[i] ? x->a[i] : x->b[i];
        if (!x->a[i] != !x->b[i])
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s has no partner: a LoRA is a pair of lora_a and lora_b",
                           gr_gguf_path(x->g), one->name);
        x->found[i] = one != NULL;
        found += x->found[i];
    }
    if (found == 0) return gr_fail(err, GRAFT_BAD_INPUT, "%s: no LoRA matrices in it", gr_gguf_path(x->g));
    return GRAFT_OK;
}

/* Each module's rank is that of its tensors; the patterns are whole names. */
static graft_status read_ranks(const lora_import *x, gr_adapter_config *c, gr_pattern *patterns, graft_error *err) {
    for (int64_t i = 0; i < x->n; i++) {
        if (!x->found[i]) continue;
        int64_t rank = x->b[i]->n_dims == 2 ? x->b[i]->shape[1] : 0;
        if (rank < 1 || rank > INT16_MAX)
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s: its rank is no number from 1 to %d", x->b[i]->file, x->b[i]->name,
                           INT16_MAX);
        if (c->rank == 0) c->rank = rank;
        if (rank != c->rank) patterns[c->n_rank_pattern++] = (gr_pattern){x->m->modules[i].name, (double)rank};
    }
    return GRAFT_OK;
}

static graft_status load_pairs(gr_adapter *a, const lora_import *x, double alpha, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t largest = gr_params_largest(a->params);
    float *staging = gr_calloc(largest, sizeof *staging), *rows = gr_calloc(largest, sizeof *rows);
    if (!staging || !rows) GR_TRY(gr_fail_memory(err, "adapter"));
    for (int64_t j = 0; j < a->n_modules; j++) {
        gr_adapter_module *module = &a->modules[j];
        int64_t i = module->index, R = module->rank, N = module->out, heads = x->entries[i]->permute_heads;
        bool flipped = gr_adapter_is_embedding(module);
        if (alpha == 0) module->alpha = (double)R; /* the loader then does not scale */
        GR_TRY(gr_adapter_load_matrix(x->a[i], staging, flipped ? module->in : R, flipped ? R : module->in, false, "lora_b", err));
        gr_params_write(a->params, GR_PARAMS_VALUE, module->a, staging);
        GR_TRY(gr_adapter_load_matrix(x->b[i], staging, N, R, false, "lora_a", err));
        for (int64_t n = 0; heads && n < N; n++)
            memcpy(rows + n * R, staging + gr_gguf_row(n, heads, N) * R, (size_t)R * sizeof *rows);
        gr_params_write(a->params, GR_PARAMS_VALUE, module->b, heads ? rows : staging);
    }
done:
    free(staging);
    free(rows);
    return st;
}

graft_status gr_gguf_lora_load(gr_adapter **out, const char *path, gr_model *m, bool training, graft_error *err) {
    graft_status st;
    gr_gguf *g = NULL;
    gr_adapter *a = NULL;
    gr_arena arena = {0};
    double alpha = 0;
    char *base = NULL;
    gr_adapter_config c = {0};
    lora_import x = {.m = m, .n = m->n_modules};
    gr_pattern *patterns = gr_arena_alloc(&arena, x.n * (int64_t)sizeof *patterns);
    x.a = gr_arena_alloc(&arena, x.n * (int64_t)sizeof *x.a);
    x.b = gr_arena_alloc(&arena, x.n * (int64_t)sizeof *x.b);
    x.entries = gr_arena_alloc(&arena, x.n * (int64_t)sizeof *x.entries);
    x.found = gr_arena_alloc(&arena, x.n * (int64_t)sizeof *x.found);
    if (!patterns || !x.a || !x.b || !x.entries || !x.found) GR_TRY(gr_fail_memory(err, path));
    for (int64_t i = 0; i < x.n; i++) x.entries[i] = m->modules[i].entry;
    GR_TRY(gr_gguf_open(&g, path, err));
    x.g = g;
    GR_TRY(check_header(g, m, &alpha, err));
    GR_TRY(take_tensors(&x, err));
    GR_TRY(read_ranks(&x, &c, patterns, err));
    GR_TRY(gr_gguf_lora_base(&base, path, err));
    c.rank_pattern = patterns;
    c.alpha = alpha != 0 ? alpha : (double)c.rank;
    c.base = base;
    st = gr_adapter_build(&a, &c, m, x.found, NULL, err);
    GR_TRY(st == GRAFT_BAD_USAGE ? gr_fail_context(err, GRAFT_BAD_INPUT, "%s", path) : st);
    GR_TRY(gr_params_allocate(a->params, m->device, training, err));
    GR_TRY(load_pairs(a, &x, alpha, err));
    if (gr_gguf_has(g, KEY_TEMPLATE)) {
        const char *text;
        GR_TRY(gr_gguf_get_string(g, KEY_TEMPLATE, &text, NULL, err));
        a->chat_template = gr_arena_strdup(&a->arena, text);
        if (!a->chat_template) GR_TRY(gr_fail_memory(err, path));
    }
    *out = a;
    a = NULL;
done:
    gr_adapter_free(a);
    gr_gguf_close(g);
    gr_arena_release(&arena);
    free(base);
    return st;
}

graft_status gr_gguf_lora_base(char **base, const char *path, graft_error *err) {
    static const char key[] = "general.base_model.0.name";
    gr_gguf *g = NULL;
    const char *name;
    graft_status st;
    *base = NULL;
    GR_TRY(gr_gguf_open(&g, path, err));
    if (!gr_gguf_has(g, key)) goto done;
    GR_TRY(gr_gguf_get_string(g, key, &name, NULL, err));
    *base = gr_strdup(name);
    if (!*base) st = gr_fail_memory(err, path);
done:
    gr_gguf_close(g);
    return st;
}
