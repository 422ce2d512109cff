/* Writing PEFT folders: adapter_config.json, adapter_model.safetensors, README.md (peft src/peft/utils/save_and_load.py). */
#include "adapters/impl.h"

#include <math.h>
#include <stdlib.h>

#include "core/base/file.h"
#include "core/model/machine.h"

static const char PREFIX[] = "base_model.model.";

typedef struct adapter_export {
    const gr_adapter *a;
    float *staging; /* room for the largest matrix */
} adapter_export;

/* The parameters of tensor i: A (even) and B (odd) of each module, then rows of tokens. */
static int64_t item_of(const gr_adapter *a, int64_t i) {
    const gr_adapter_module *module = &a->modules[i / 2];
    int64_t beyond = i - 2 * a->n_modules;
    if (beyond < 0) return i % 2 ? module->b : module->a;
    return a->rows[a->config.rows[GR_ROWS_EMBED].n > 0 ? beyond : GR_ROWS_HEAD];
}

/* Tensor i in PEFT's layout. */
static graft_status produce(void *context, int64_t i, void *dst, graft_error *err) {
    const adapter_export *x = context;
    const gr_adapter *a = x->a;
    const gr_adapter_module *module = i < 2 * a->n_modules ? &a->modules[i / 2] : NULL;
    int64_t index = item_of(a, i), n = a->params->items[index].n;
    bool turned = module && i % 2 == 0 && gr_adapter_is_embedding(module);
    float *to = dst, *value = turned ? x->staging : to;
    gr_params_read(a->params, GR_PARAMS_VALUE, index, value);
    graft_status st = gr_device_status(a->params->device, err);
    if (st != GRAFT_OK) return st;
    for (int64_t k = 0; k < n; k++)
        if (!isfinite(value[k]))
            return gr_fail(err, GRAFT_FAILED, "%s is not finite: a diverged adapter is not saved", a->params->items[index].name);
    for (int64_t v = 0; turned && v < module->in; v++)
        for (int64_t r = 0; r < module->rank; r++) to[r * module->in + v] = value[v * module->rank + r];
    return GRAFT_OK;
}

static graft_status save_tensors(const gr_adapter *a, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_arena names = {0};
    int64_t n = 2 * a->n_modules + (a->config.rows[GR_ROWS_EMBED].n > 0) + (a->config.rows[GR_ROWS_HEAD].n > 0);
    gr_tensor *tensors = gr_arena_alloc(&names, n * (int64_t)sizeof *tensors);
    float *staging = gr_calloc(gr_params_largest(a->params), sizeof *staging);
    if (!tensors || !staging) GR_TRY(gr_fail_memory(err, path));
    for (int64_t i = 0; i < n; i++) {
        const gr_param *item = &a->params->items[item_of(a, i)];
        bool turned = i < 2 * a->n_modules && i % 2 == 0 && gr_adapter_is_embedding(&a->modules[i / 2]);
        char name[160];
        snprintf(name, sizeof name, "%s%s", PREFIX, item->name);
        tensors[i] = (gr_tensor){.name = gr_arena_strdup(&names, name), .dtype = GR_DTYPE_F32, .n_dims = 2};
        tensors[i].shape[0] = turned ? item->cols : item->rows;
        tensors[i].shape[1] = turned ? item->rows : item->cols;
        if (!tensors[i].name) GR_TRY(gr_fail_memory(err, path));
    }
    GR_TRY(gr_safetensors_write(path, tensors, n, produce, &(adapter_export){a, staging}, err));
done:
    gr_arena_release(&names);
    free(staging);
    return st;
}

static bool same_ids(const gr_ids_list *a, const gr_ids_list *b) {
    return a->n == b->n && (a->n == 0 || memcmp(a->ids, b->ids, (size_t)a->n * sizeof *a->ids) == 0);
}

/* The tensors were compared by their writer; here the configuration is. */
static graft_status check_config(const gr_adapter *a, const char *path, graft_error *err) {
    gr_peft_config back;
    if (gr_peft_config_read(&back, path, err) != GRAFT_OK)
        return gr_fail_context(err, GRAFT_FAILED, "reading back what was written");
    const gr_adapter_config *c = &back.config;
    bool same = c->rows_alone == a->config.rows_alone && strcmp(c->base, a->config.base) == 0 &&
                back.tokenizer_hash == a->tokenizer_hash && back.vocab == a->vocab;
    if (!c->rows_alone)
        same = same && c->rank == a->config.rank && fabs(c->alpha - a->config.alpha) <= 1e-12 * fabs(c->alpha) &&
               c->use_rslora == a->config.use_rslora;
    for (int i = 0; i < GR_ROWS_COUNT; i++) same = same && same_ids(&c->rows[i], &a->config.rows[i]);
    gr_peft_config_release(&back);
    return same ? GRAFT_OK : gr_fail(err, GRAFT_FAILED, "%s: what was written reads back differently", path);
}

graft_status gr_adapter_write(const gr_adapter *a, const char *folder, graft_error *err) {
    graft_status st;
    char *config = gr_path_join(folder, GR_ADAPTER_CONFIG), *tensors = gr_path_join(folder, GR_ADAPTER_TENSORS),
         *card = gr_path_join(folder, "README.md"), *template = gr_path_join(folder, GR_ADAPTER_TEMPLATE);
    if (!config || !tensors || !card || !template) GR_TRY(gr_fail_memory(err, folder));
    GR_TRY(gr_peft_config_write(a, config, err));
    GR_TRY(save_tensors(a, tensors, err));
    GR_TRY(gr_model_card_write(a, card, err));
    if (a->chat_template) GR_TRY(gr_file_write(template, a->chat_template, (int64_t)strlen(a->chat_template), err));
    GR_TRY(check_config(a, config, err));
done:
    free(config);
    free(tensors);
    free(card);
    free(template);
    return st;
}

graft_status gr_adapter_save(const gr_adapter *a, const char *folder, bool replace, graft_error *err) {
    graft_status st;
    char *tmp = NULL;
    GR_TRY(gr_dir_begin(&tmp, folder, replace, err));
    GR_TRY(gr_adapter_write(a, tmp, err));
    GR_TRY(gr_dir_commit(tmp, folder, replace, err));
done:
    if (tmp && st != GRAFT_OK) gr_remove_all(tmp);
    free(tmp);
    return st;
}
