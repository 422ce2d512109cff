/* GGUF LoRA, as llama.cpp's convert_lora_to_gguf.py writes it and its src/llama-adapter.cpp reads it. */
#include "adapters/impl.h"

#include <math.h>
#include <string.h>

typedef struct lora_export {
    const gr_adapter *a;
    const gr_weight_entry **entries; /* [n_modules] the base tensor of each module */
    double alpha;                    /* the file's one adapter.lora.alpha */
} lora_export;

/* The loader scales by alpha / rank of the tensor. What this module's own scale (rsLoRA, alpha_pattern) is
 * beyond that goes into B. */
static double fold_factor(const lora_export *x, const gr_adapter_module *module) {
    return gr_adapter_scale(x->a, module) * (double)module->rank / x->alpha;
}

/* Tensor i: lora_a (even) or lora_b (odd) of module i/2. The embedding's pair is stored as llama.cpp wants
 * it: A [V,R], B [C,R]. */
static graft_status produce(void *context, int64_t i, void *dst, graft_error *err) {
    const lora_export *x = context;
    const gr_adapter_module *module = &x->a->modules[i / 2];
    const gr_params *p = &x->a->params;
    int64_t index = i % 2 ? module->b : module->a, R = module->rank;
    const float *value = gr_params_value(p, index);
    float *to = dst;
    for (int64_t k = 0; k < p->items[index].n; k++)
        if (!isfinite(value[k]))
            return gr_fail(err, GRAFT_FAILED, "%s is not finite: a diverged adapter is not exported",
                           p->items[index].name);
    if (i % 2 == 0) {
        memcpy(to, value, (size_t)p->items[index].n * sizeof *to);
        return GRAFT_OK;
    }
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
        char name[128];
        snprintf(name, sizeof name, "%s.weight", module->name);
        x->entries[j] = gr_weights_find(m->weights, name);
        if (!x->entries[j] || (m->config.tied && gr_adapter_is_embedding(module)))
            return gr_fail(err, GRAFT_BAD_USAGE,
                           "%s: a GGUF LoRA cannot adapt %s: the base's head is its embedding, and llama.cpp "
                           "cannot tell "
                           "the two apart; graft merge --format gguf writes them as two",
                           path, module->name);
    }
    return GRAFT_OK;
}

static graft_status list_tensors(const lora_export *x, gr_tensor *tensors, gr_arena *names,
                                 graft_error *err) {
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

graft_status gr_adapter_export_gguf(const gr_adapter *a, const gr_model *m, const char *path,
                                    graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_arena arena = {0};
    gr_gguf_builder b = {0};
    int64_t n = 2 * a->n_modules;
    lora_export x = {.a = a, .entries = gr_arena_alloc(&arena, a->n_modules * (int64_t)sizeof *x.entries)};
    gr_tensor *tensors = gr_arena_alloc(&arena, n * (int64_t)sizeof *tensors);
    if (!x.entries || !tensors) GR_TRY(gr_fail_memory(err, path));
    GR_TRY(find_entries(&x, m, path, err));
    GR_TRY(list_tensors(&x, tensors, &arena, err));
    x.alpha = (float)(gr_adapter_scale(a, &a->modules[0]) * (double)a->modules[0].rank); /* as stored */
    if (x.alpha == 0) x.alpha = 1; /* the loader takes 0 for "no scaling"; the factor then makes B zero */
    gr_gguf_put_string(&b, "general.architecture", m->config.arch);
    gr_gguf_put_string(&b, "general.type", "adapter");
    gr_gguf_put_string(&b, "general.name", "graft LoRA");
    gr_gguf_put_u32(&b, "general.file_type", 0); /* all F32 */
    if (*a->config.base) gr_gguf_put_string(&b, "general.base_model.0.name", a->config.base);
    if (*a->config.base) gr_gguf_put_u32(&b, "general.base_model.count", 1);
    gr_gguf_put_string(&b, "adapter.type", "lora");
    gr_gguf_put_f32(&b, "adapter.lora.alpha", (float)x.alpha);
    GR_TRY(gr_gguf_write(path, &b, tensors, n, produce, &x, err));
done:
    gr_gguf_builder_release(&b);
    gr_arena_release(&arena);
    return st;
}
