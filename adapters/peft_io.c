/* PEFT folders: adapter_config.json, adapter_model.safetensors, README.md (peft
 * src/peft/utils/save_and_load.py). */
#include "adapters/impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"

static const char CONFIG_FILE[] = "adapter_config.json", TENSOR_FILE[] = "adapter_model.safetensors";
static const char PREFIX[] = "base_model.model.";

/* The folder that holds the adapter: path, or adapter/ of a run. */
static graft_status find_folder(char **folder, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    static const char *const places[] = {"", "adapter"};
    char *inside = NULL, *config = NULL;
    if (gr_ends_with(path, ".gguf"))
        return gr_fail(
            err, GRAFT_BAD_INPUT,
            "%s: a GGUF LoRA is for llama.cpp only: give graft the PEFT folder that it was made from", path);
    for (int i = 0; i < GR_LEN(places); i++) {
        inside = *places[i] ? gr_path_join(path, places[i]) : gr_strdup(path);
        config = inside ? gr_path_join(inside, CONFIG_FILE) : NULL;
        if (!config) GR_TRY(gr_fail_memory(err, path));
        if (gr_exists(config)) {
            *folder = inside, inside = NULL;
            goto done;
        }
        free(inside);
        free(config);
        inside = config = NULL;
    }
    free(inside);
    inside = gr_path_join(path, "state.h5");
    if (inside && gr_exists(inside))
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s is a checkpoint without an adapter, of a run of method full or of an older graft: what such a run "
                     "gives is in its own folder", path);
    else
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s: no %s in it: expected a PEFT adapter folder, or a run of graft or one of its checkpoints", path,
                     CONFIG_FILE);
done:
    free(inside);
    free(config);
    return st;
}

/* ---- names ---- */

/* The two matrices of a module, as found in the file. */
typedef struct pair {
    const gr_tensor *a, *b;
} pair;

typedef struct loader {
    gr_model *m;
    gr_safetensors *files;
    pair *pairs; /* [n], by module index of gr_adapter_module_at */
    int64_t n;
} loader;

/* What the end of a tensor's name says it is. "default" is the adapter's name, which some writers leave in.
 */
static const struct {
    const char *ending;
    bool embedding, is_b;
} endings[] = {
    {".lora_A.weight", false, false},   {".lora_A.default.weight", false, false},
    {".lora_B.weight", false, true},    {".lora_B.default.weight", false, true},
    {".lora_embedding_A", true, false}, {".lora_embedding_A.default", true, false},
    {".lora_embedding_B", true, true},  {".lora_embedding_B.default", true, true},
};

static int64_t find_module(gr_model *m, const char *name, size_t len) {
    char known[96];
    int64_t out, in;
    for (int64_t i = 0; i <= gr_model_n_linears(m); i++) {
        gr_adapter_module_at(m, i, known, &out, &in);
        if (strlen(known) == len && strncmp(known, name, len) == 0) return i;
    }
    return -1;
}

/* PEFT saves the whole embedding beside a LoRA on it. That is harmless when it is the base's own: compared in
 * the file's precision. */
static bool is_base_weight(const loader *l, const gr_tensor *t, const char *name) {
    static const char *const weights[] = {"model.embed_tokens", "lm_head"};
    const gr_weight *w = NULL;
    for (int i = 0; i < GR_LEN(weights); i++) {
        size_t n = strlen(weights[i]);
        const char *rest = strncmp(name, weights[i], n) == 0 ? name + n : "";
        if (strcmp(rest, ".weight") == 0 || strcmp(rest, ".base_layer.weight") == 0)
            w = i ? &l->m->head.w : &l->m->embed;
    }
    if (!w || !w->data || t->n_dims != 2 || t->shape[0] != w->rows || t->shape[1] != w->cols) return false;
    float *ours = gr_calloc(2 * w->cols, sizeof *ours), *theirs = ours ? ours + w->cols : NULL;
    double difference = 0, size = 0;
    int64_t our_row = gr_dtype_bytes(w->dtype, w->cols), their_row = gr_dtype_bytes(t->dtype, w->cols);
    bool comparable = ours && our_row > 0 && their_row > 0;
    for (int64_t r = 0; comparable && r < w->rows; r++) {
        gr_dtype_get(w->dtype)->to_f32(ours, (const char *)w->data + r * our_row, w->cols);
        gr_dtype_get(t->dtype)->to_f32(theirs, (const char *)t->data + r * their_row, w->cols);
        for (int64_t k = 0; k < w->cols; k++) {
            double d = (double)ours[k] - (double)theirs[k];
            difference += d * d, size += (double)ours[k] * (double)ours[k];
        }
    }
    free(ours);
    return comparable && difference <= 1e-4 * size; /* bf16 rounding: about 1e-5 */
}

static graft_status refuse_tensor(const gr_tensor *t, graft_error *err) {
    static const struct {
        const char *part, *what;
    } kinds[] = {
        {"lora_magnitude_vector", "DoRA"},
        {"trainable_tokens", "trained token rows"},
        {"modules_to_save", "a whole trained module"},
        {"lora_B.bias", "a bias of lora_B"},
        {"lora_", "an adapter name other than \"default\", or a kind of LoRA that graft does not know"},
        {"embed_tokens", "an embedding other than the base's"},
        {"lm_head", "a head other than the base's"},
        {"", "a tensor that is no LoRA matrix"},
    };
    int i = 0;
    while (!strstr(t->name, kinds[i].part)) i++;
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "%s: tensor %s: %s: graft loads pure LoRA; merge it with PEFT (merge_and_unload) and use "
                   "the merged model as base",
                   t->file, t->name, kinds[i].what);
}

static graft_status take_tensor(loader *l, const gr_tensor *t, graft_error *err) {
    const char *name = gr_starts_with(t->name, PREFIX) ? t->name + strlen(PREFIX) : t->name;
    int e = 0;
    while (e < GR_LEN(endings) && !gr_ends_with(name, endings[e].ending)) e++;
    if (e == GR_LEN(endings)) return is_base_weight(l, t, name) ? GRAFT_OK : refuse_tensor(t, err);
    size_t len = strlen(name) - strlen(endings[e].ending);
    int64_t i = find_module(l->m, name, len);
    if (i < 0 || (i == 0) != endings[e].embedding)
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: tensor %s: the base has no %s \"%.*s\": is this the adapter's base model?",
                       t->file, t->name, endings[e].embedding ? "embedding" : "linear", (int)GR_MIN(len, 200),
                       name);
    const gr_tensor **place = endings[e].is_b ? &l->pairs[i].b : &l->pairs[i].a;
    if (*place)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensors %s and %s are the same matrix", t->file,
                       (*place)->name, t->name);
    *place = t;
    return GRAFT_OK;
}

static graft_status pair_up(loader *l, const char *file, bool *wanted, graft_error *err) {
    char name[96];
    int64_t out, in, found = 0;
    for (int64_t i = 0; i < gr_safetensors_count(l->files); i++) {
        graft_status st = take_tensor(l, gr_safetensors_get(l->files, i), err);
        if (st != GRAFT_OK) return st;
    }
    for (int64_t i = 0; i < l->n; i++) {
        const pair *p = &l->pairs[i];
        gr_adapter_module_at(l->m, i, name, &out, &in);
        if (!p->a != !p->b)
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s has only one of lora_A and lora_B (%s)", file, name,
                           (p->a ? p->a : p->b)->name);
        wanted[i] = p->a != NULL;
        found += wanted[i];
    }
    if (found == 0)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: no LoRA matrices in it: the adapter was saved empty", file);
    return GRAFT_OK;
}

/* ---- loading ---- */

static graft_status load_matrix(const gr_tensor *t, float *dst, int64_t rows, int64_t cols, bool transposed,
                                const char *config_path, graft_error *err) {
    float *row;
    if (t->n_dims != 2 || t->shape[0] != rows || t->shape[1] != cols)
        return gr_fail(
            err, GRAFT_BAD_INPUT,
            "%s: tensor %s has shape %lld x %lld, expected %lld x %lld by the base model and the rank in %s",
            t->file, t->name, (long long)(t->n_dims > 0 ? t->shape[0] : 0),
            (long long)(t->n_dims > 1 ? t->shape[1] : 0), (long long)rows, (long long)cols, config_path);
    const gr_dtype_info *info = gr_dtype_get(t->dtype);
    int64_t row_bytes = gr_dtype_bytes(t->dtype, cols);
    if (row_bytes < 0 || !(row = gr_calloc(cols, sizeof *row)))
        return row_bytes < 0 ? gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s: rows are no whole blocks",
                                       t->file, t->name)
                             : gr_fail_memory(err, t->name);
    graft_status st = GRAFT_OK;
    for (int64_t r = 0; r < rows && st == GRAFT_OK; r++) {
        info->to_f32(row, (const char *)t->data + r * row_bytes, cols);
        for (int64_t c = 0; c < cols; c++) {
            if (!isfinite(row[c]) && st == GRAFT_OK)
                st = gr_fail(err, GRAFT_BAD_INPUT,
                             "%s: tensor %s[%lld, %lld] is not finite: the adapter is damaged or diverged",
                             t->file, t->name, (long long)r, (long long)c);
            dst[transposed ? c * rows + r : r * cols + c] = row[c];
        }
    }
    free(row);
    return st;
}

static graft_status load_values(gr_adapter *a, const loader *l, const char *config_path, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int64_t j = 0; j < a->n_modules; j++) {
        const gr_adapter_module *module = &a->modules[j];
        const pair *p = &l->pairs[module->linear + 1];
        GR_TRY(load_matrix(p->a, gr_params_value(&a->params, module->a), module->rank, module->in,
                           gr_adapter_is_embedding(module), config_path, err));
        GR_TRY(load_matrix(p->b, gr_params_value(&a->params, module->b), module->out, module->rank, false,
                           config_path, err));
    }
done:
    return st;
}

static graft_status open_tensors(gr_safetensors **files, const char *folder, const char *path,
                                 graft_error *err) {
    char *bin = gr_path_join(folder, "adapter_model.bin");
    graft_status st = GRAFT_OK;
    if (!bin) return gr_fail_memory(err, path);
    if (!gr_exists(path))
        st = gr_exists(bin) ? gr_fail(err, GRAFT_BAD_INPUT,
                                      "%s is missing; graft does not read the pickle adapter_model.bin: load "
                                      "it with PEFT and save it "
                                      "with safe_serialization=True",
                                      path)
                            : gr_fail(err, GRAFT_BAD_INPUT, "%s is missing", path);
    else
        st = gr_safetensors_open(files, path, err);
    free(bin);
    return st;
}

static graft_status load_folder(gr_adapter **out, const char *folder, gr_model *m, bool training,
                                graft_error *err) {
    graft_status st;
    gr_peft_config config = {0};
    gr_adapter *a = NULL;
    loader l = {.m = m, .n = 1 + gr_model_n_linears(m)};
    bool *wanted = gr_calloc(l.n, sizeof *wanted);
    char *config_path = gr_path_join(folder, CONFIG_FILE), *tensor_path = gr_path_join(folder, TENSOR_FILE);
    l.pairs = gr_calloc(l.n, sizeof *l.pairs);
    if (!wanted || !config_path || !tensor_path || !l.pairs) GR_TRY(gr_fail_memory(err, folder));
    GR_TRY(gr_peft_config_read(&config, config_path, err));
    if (config.vocab && config.vocab != m->config.vocab)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: graft.vocab: the adapter was trained on a base with %lld embedding rows, this "
                       "one has %lld: use the same base",
                       config_path, (long long)config.vocab, (long long)m->config.vocab));
    GR_TRY(open_tensors(&l.files, folder, tensor_path, err));
    GR_TRY(pair_up(&l, tensor_path, wanted, err));
    if ((st = gr_adapter_build(&a, &config.config, m, wanted, err)) != GRAFT_OK) {
        st = st == GRAFT_BAD_USAGE ? gr_fail_context(err, GRAFT_BAD_INPUT, "%s", config_path) : st;
        goto done;
    }
    a->tokenizer_hash = config.tokenizer_hash;
    GR_TRY(gr_params_allocate(&a->params, m->device, training, err));
    GR_TRY(load_values(a, &l, config_path, err));
    *out = a;
    a = NULL;
done:
    gr_adapter_free(a);
    gr_safetensors_close(l.files);
    gr_peft_config_release(&config);
    free(l.pairs);
    free(wanted);
    free(config_path);
    free(tensor_path);
    return st;
}

graft_status gr_adapter_load(gr_adapter **out, const char *path, gr_model *m, bool training,
                             graft_error *err) {
    char *folder = NULL;
    *out = NULL;
    graft_status st = find_folder(&folder, path, err);
    if (st == GRAFT_OK) st = load_folder(out, folder, m, training, err);
    free(folder);
    return st;
}

graft_status gr_adapter_base(char **base, const char *path, graft_error *err) {
    graft_status st;
    char *folder = NULL, *config_path = NULL;
    gr_peft_config config = {0};
    *base = NULL;
    GR_TRY(find_folder(&folder, path, err));
    config_path = gr_path_join(folder, CONFIG_FILE);
    if (!config_path) GR_TRY(gr_fail_memory(err, path));
    GR_TRY(gr_peft_config_read(&config, config_path, err));
    if (!*config.config.base)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: base_model_name_or_path is missing: name the base with --model", config_path));
    if (config.base_path && !gr_exists(config.config.base)) {
        if (!(*base = gr_path_join(folder, config.base_path))) GR_TRY(gr_fail_memory(err, path));
        if (gr_exists(*base)) goto done;
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s: its base is neither %s nor, from its folder, %s: was it moved? name it with --model", path,
                     config.config.base, config.base_path);
        free(*base);
        *base = NULL;
        goto done;
    }
    *base = gr_strdup(config.config.base);
    if (!*base) st = gr_fail_memory(err, path);
done:
    free(folder);
    free(config_path);
    gr_peft_config_release(&config);
    return st;
}

/* ---- saving ---- */

/* Tensor i: A (even) or B (odd) of module i/2, in PEFT's layout. */
static graft_status produce(void *context, int64_t i, void *dst, graft_error *err) {
    const gr_adapter *a = context;
    const gr_adapter_module *module = &a->modules[i / 2];
    int64_t index = i % 2 ? module->b : module->a, n = a->params.items[index].n;
    const float *value = gr_params_value(&a->params, index);
    float *to = dst;
    for (int64_t k = 0; k < n; k++)
        if (!isfinite(value[k]))
            return gr_fail(err, GRAFT_FAILED, "%s is not finite: a diverged adapter is not saved",
                           a->params.items[index].name);
    if (i % 2 == 0 && gr_adapter_is_embedding(module)) {
        for (int64_t v = 0; v < module->in; v++)
            for (int64_t r = 0; r < module->rank; r++) to[r * module->in + v] = value[v * module->rank + r];
    } else {
        memcpy(to, value, (size_t)n * sizeof *to);
    }
    return GRAFT_OK;
}

static graft_status save_tensors(const gr_adapter *a, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_arena names = {0};
    gr_tensor *tensors = gr_arena_alloc(&names, 2 * a->n_modules * (int64_t)sizeof *tensors);
    if (!tensors) GR_TRY(gr_fail_memory(err, path));
    for (int64_t i = 0; i < 2 * a->n_modules; i++) {
        const gr_adapter_module *module = &a->modules[i / 2];
        char name[160];
        snprintf(name, sizeof name, "%s%s", PREFIX, a->params.items[i % 2 ? module->b : module->a].name);
        tensors[i] = (gr_tensor){.name = gr_arena_strdup(&names, name), .dtype = GR_DTYPE_F32, .n_dims = 2};
        tensors[i].shape[0] = i % 2 ? module->out : module->rank;
        tensors[i].shape[1] = i % 2 ? module->rank : module->in;
        if (!tensors[i].name) GR_TRY(gr_fail_memory(err, path));
    }
    GR_TRY(gr_safetensors_write(path, tensors, 2 * a->n_modules, produce, (void *)a, err));
done:
    gr_arena_release(&names);
    return st;
}

/* The tensors were compared by their writer; here the configuration is. */
static graft_status check_config(const gr_adapter *a, const char *path, graft_error *err) {
    gr_peft_config back;
    if (gr_peft_config_read(&back, path, err) != GRAFT_OK)
        return gr_fail_context(err, GRAFT_FAILED, "reading back what was written");
    const gr_adapter_config *c = &back.config;
    bool same = c->rank == a->config.rank && fabs(c->alpha - a->config.alpha) <= 1e-12 * fabs(c->alpha) &&
                c->use_rslora == a->config.use_rslora && strcmp(c->base, a->config.base) == 0 &&
                back.tokenizer_hash == a->tokenizer_hash && back.vocab == a->vocab;
    gr_peft_config_release(&back);
    return same ? GRAFT_OK : gr_fail(err, GRAFT_FAILED, "%s: what was written reads back differently", path);
}

graft_status gr_adapter_write(const gr_adapter *a, const char *folder, graft_error *err) {
    graft_status st;
    char *config = gr_path_join(folder, CONFIG_FILE), *tensors = gr_path_join(folder, TENSOR_FILE), *card = gr_path_join(folder, "README.md");
    if (!config || !tensors || !card) GR_TRY(gr_fail_memory(err, folder));
    GR_TRY(gr_peft_config_write(a, config, err));
    GR_TRY(save_tensors(a, tensors, err));
    GR_TRY(gr_model_card_write(a, card, err));
    GR_TRY(check_config(a, config, err));
done:
    free(config);
    free(tensors);
    free(card);
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
