/* Reading adapters: the names under which PEFT, mlx-lm and their users leave matrices, element types, shapes. */
#include "adapters/impl.h"

#include <math.h>
#include <stdlib.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/text/tokenizer.h"

/* The two matrices of a module, as found in the file. */
typedef struct pair {
    const gr_tensor *a, *b;
} pair;

typedef struct loader {
    gr_model *m;
    const gr_peft_config *config;
    gr_safetensors *files;
    pair *pairs; /* [n], by module index */
    const gr_tensor *rows[GR_ROWS_COUNT];
    int64_t n;
    const gr_tensor *named; /* the first tensor with an adapter's name in its own */
    char adapter_name[64];
    gr_arena arena; /* F64 tensors as F32 */
} loader;

/* ---- names ---- */

/* What a tensor's name says. */
typedef struct matrix_name {
    char module[128];
    char adapter[64]; /* the adapter's own name, "" where there is none */
    bool embedding, is_b;
} matrix_name;

/* Parts that wrappers of PyTorch put into names: torch.compile, FSDP, activation checkpointing, DataParallel;
 * and the language model of a larger one. */
static const char *const wrappers[] = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module",
                                       "language_model"};

/* name without the parts of wrappers and PEFT's prefix, in out; false when it is too long. */
static bool unwrap(const char *name, char *out, size_t size) {
    size_t n = 0;
    for (const char *part = name, *end; *part; part = *end ? end + 1 : end) {
        bool wrapper = false;
        end = part + strcspn(part, ".");
        for (int i = 0; i < GR_LEN(wrappers); i++)
            wrapper |= strlen(wrappers[i]) == (size_t)(end - part) && strncmp(part, wrappers[i], (size_t)(end - part)) == 0;
        if (wrapper) continue;
        if (n + (size_t)(end - part) + 2 > size) return false;
        if (n > 0) out[n++] = '.';
        memcpy(out + n, part, (size_t)(end - part));
        n += (size_t)(end - part);
    }
    out[n] = '\0';
    static const char prefix[] = "base_model.model.";
    if (gr_starts_with(out, prefix)) memmove(out, out + strlen(prefix), strlen(out + strlen(prefix)) + 1);
    return true;
}

/* PEFT: MODULE.lora_A.weight, MODULE.lora_A.ADAPTER.weight, MODULE.lora_embedding_A,
 * MODULE.lora_embedding_A.ADAPTER; mlx-lm: MODULE.lora_a. False for any other name. */
static bool parse_name(const char *name, bool mlx, matrix_name *out) {
    static const struct {
        const char *part;
        bool mlx, embedding, is_b;
    } parts[] = {{".lora_A", false, false, false},          {".lora_B", false, false, true},
                 {".lora_embedding_A", false, true, false}, {".lora_embedding_B", false, true, true},
                 {".lora_a", true, false, false},           {".lora_b", true, false, true}};
    char plain[256];
    if (!unwrap(name, plain, sizeof plain)) return false;
    for (int i = 0; i < GR_LEN(parts); i++) {
        char *at = strstr(plain, parts[i].part), *rest = at ? at + strlen(parts[i].part) : NULL;
        if (!at || parts[i].mlx != mlx || (*rest && *rest != '.') || at - plain >= (int)sizeof out->module) continue;
        *out = (matrix_name){.embedding = parts[i].embedding, .is_b = parts[i].is_b};
        memcpy(out->module, plain, (size_t)(at - plain));
        size_t n = strlen(rest);
        if (!mlx && !parts[i].embedding) { /* ends in .weight */
            if (!gr_ends_with(rest, ".weight")) return false;
            n -= strlen(".weight");
        }
        if (mlx) out->embedding = strcmp(gr_last_component(out->module), "embed_tokens") == 0;
        if (n >= sizeof out->adapter || (n > 0 && (mlx || n < 2 || memchr(rest + 1, '.', n - 1)))) return false;
        if (n > 0) memcpy(out->adapter, rest + 1, n - 1);
        return true;
    }
    return false;
}

static int64_t find_module(gr_model *m, const char *name) {
    for (int64_t i = 0; i < m->n_modules; i++)
        if (strcmp(m->modules[i].name, name) == 0) return i;
    return -1;
}

/* PEFT saves the whole embedding beside a LoRA on it. That is harmless when it is the base's own: compared in
 * the file's precision. */
static bool is_base_weight(const loader *l, const gr_tensor *t, const char *name) {
    static const char *const weights[] = {"model.embed_tokens", "lm_head"};
    const gr_weights *base = l->m->weights;
    const gr_weight_entry *embed = gr_weights_get(base, 0), *head = gr_weights_find(base, "lm_head.weight");
    const gr_weight *w = NULL;
    for (int i = 0; i < GR_LEN(weights); i++) {
        size_t n = strlen(weights[i]);
        const char *rest = strncmp(name, weights[i], n) == 0 ? name + n : "";
        if (strcmp(rest, ".weight") == 0 || strcmp(rest, ".base_layer.weight") == 0 ||
            strcmp(rest, ".token_adapter.base_layer.weight") == 0)
            w = &(i && head ? head : embed)->view;
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
        {"trainable_tokens", "trained rows of a module that is neither the embedding nor the head"},
        {"modules_to_save", "a whole trained module"},
        {"lora_B.bias", "a bias of lora_B"},
        {"lora_", "a kind of LoRA that graft does not know"},
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

/* One file holds one adapter, whatever its name. */
static graft_status check_adapter_name(loader *l, const gr_tensor *t, const char *adapter, graft_error *err) {
    if (!l->named) {
        snprintf(l->adapter_name, sizeof l->adapter_name, "%s", adapter);
        l->named = t;
    }
    const char *known = *l->adapter_name ? l->adapter_name : "default", *given = *adapter ? adapter : "default";
    if (strcmp(known, given) == 0) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensors %s and %s are of two adapters, \"%s\" and \"%s\": save one adapter a folder",
                   t->file, l->named->name, t->name, known, given);
}

static graft_status take_tensor(loader *l, const gr_tensor *t, graft_error *err) {
    matrix_name name;
    if (!parse_name(t->name, l->config->mlx, &name)) {
        char plain[256];
        const char *adapter;
        bool short_enough = unwrap(t->name, plain, sizeof plain);
        int which = short_enough ? gr_peft_rows_of_name(plain, &adapter) : -1;
        if (which < 0) return short_enough && is_base_weight(l, t, plain) ? GRAFT_OK : refuse_tensor(t, err);
        if (l->rows[which])
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensors %s and %s are the same rows", t->file, l->rows[which]->name, t->name);
        l->rows[which] = t;
        return check_adapter_name(l, t, adapter, err);
    }
    int64_t i = find_module(l->m, name.module);
    if (i < 0 || (i == 0) != name.embedding)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s: the base has no %s \"%s\": is this the adapter's base model?", t->file,
                       t->name, name.embedding ? "embedding" : "linear", name.module);
    const gr_tensor **place = name.is_b ? &l->pairs[i].b : &l->pairs[i].a;
    if (*place) return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensors %s and %s are the same matrix", t->file, (*place)->name, t->name);
    *place = t;
    return check_adapter_name(l, t, name.adapter, err);
}

/* F64 is read as F32; every other type that graft does not compute with is refused: a matrix that is left out
 * would be an adapter in part. */
static graft_status take_odd(loader *l, const gr_tensor *t, const char *type, graft_error *err) {
    int64_t n = 1;
    if (strcmp(type, "F64") != 0)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s is of type %s, expected F64, F32, F16 or BF16: save it in one of these",
                       t->file, t->name, type);
    gr_tensor *copy = gr_arena_alloc(&l->arena, (int64_t)sizeof *copy);
    for (int d = 0; d < t->n_dims; d++)
        if (t->shape[d] < 0 || !gr_mul_ok(&n, n, t->shape[d])) n = -1;
    if (t->n_dims < 0 || n < 0 || t->n_bytes / 8 != n || t->n_bytes % 8 != 0)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s: its shape does not fit its %lld bytes", t->file, t->name,
                       (long long)t->n_bytes);
    float *values = copy ? gr_arena_alloc(&l->arena, GR_MAX(n, 1) * (int64_t)sizeof *values) : NULL;
    if (!values) return gr_fail_memory(err, t->name);
    for (int64_t k = 0; k < n; k++) {
        double v;
        memcpy(&v, (const char *)t->data + 8 * k, sizeof v);
        values[k] = (float)v;
    }
    *copy = *t;
    copy->dtype = GR_DTYPE_F32;
    copy->n_elements = n;
    copy->n_bytes = 4 * n;
    copy->data = values;
    return take_tensor(l, copy, err);
}

static graft_status pair_up(loader *l, const char *file, bool *found, graft_error *err) {
    graft_status st = GRAFT_OK;
    const char *type;
    int64_t n = 0;
    for (int64_t i = 0; i < gr_safetensors_count(l->files); i++) GR_TRY(take_tensor(l, gr_safetensors_get(l->files, i), err));
    for (int64_t i = 0; gr_safetensors_odd(l->files, i, &type); i++)
        GR_TRY(take_odd(l, gr_safetensors_odd(l->files, i, &type), type, err));
    for (int64_t i = 0; i < l->n; i++) {
        const pair *p = &l->pairs[i];
        if (!p->a != !p->b)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: %s has only one of lora_A and lora_B (%s)", file, l->m->modules[i].name,
                           (p->a ? p->a : p->b)->name));
        found[i] = p->a != NULL;
        n += found[i];
    }
    if (n == 0 && !l->config->config.rows_alone)
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s: no LoRA matrices in it: the adapter was saved empty", file);
done:
    return st;
}

/* ---- values ---- */

static graft_status fail_shape(const gr_tensor *t, int64_t rows, int64_t cols, const char *expected, graft_error *err) {
    char shape[96] = "";
    for (int i = 0; i < t->n_dims; i++) {
        size_t n = strlen(shape);
        snprintf(shape + n, sizeof shape - n, "%s%lld", i ? " x " : "", (long long)t->shape[i]);
    }
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s has shape %s, expected %lld x %lld by the base model and %s", t->file,
                   t->name, *shape ? shape : "() (one number)", (long long)rows, (long long)cols, expected);
}

graft_status gr_adapter_load_matrix(const gr_tensor *t, float *dst, int64_t rows, int64_t cols, bool transposed,
                                    const char *expected, graft_error *err) {
    float *row;
    if (t->n_dims != 2 || t->shape[0] != rows || t->shape[1] != cols) return fail_shape(t, rows, cols, expected, err);
    const gr_dtype_info *info = gr_dtype_get(t->dtype);
    int64_t row_bytes = gr_dtype_bytes(t->dtype, cols);
    if (row_bytes < 0) return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s: rows are no whole blocks", t->file, t->name);
    if (!(row = gr_calloc(cols, sizeof *row))) return gr_fail_memory(err, t->name);
    graft_status st = GRAFT_OK;
    for (int64_t r = 0; r < rows && st == GRAFT_OK; r++) {
        info->to_f32(row, (const char *)t->data + r * row_bytes, cols);
        for (int64_t c = 0; c < cols; c++) {
            if (!isfinite(row[c]) && st == GRAFT_OK)
                st = gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s[%lld, %lld] is not finite: the adapter is damaged or diverged",
                             t->file, t->name, (long long)r, (long long)c);
            dst[transposed ? c * rows + r : r * cols + c] = row[c];
        }
    }
    free(row);
    return st;
}

/* PEFT: A [R,K], B [N,R], the embedding's A [R,V]; mlx-lm: A [K,R], B [R,N], the embedding's A [V,R]. Ours: A
 * [R,K], B [N,R], the embedding's A [V,R]. */
static graft_status load_values(gr_adapter *a, const loader *l, const char *expected, graft_error *err) {
    graft_status st = GRAFT_OK;
    bool mlx = l->config->mlx;
    float *staging = gr_calloc(gr_params_largest(a->params), sizeof *staging);
    if (!staging) GR_TRY(gr_fail_memory(err, "adapter"));
    for (int64_t j = 0; j < a->n_modules; j++) {
        const gr_adapter_module *module = &a->modules[j];
        const pair *p = &l->pairs[module->index];
        int64_t R = module->rank;
        bool turned = gr_adapter_is_embedding(module) != mlx;
        GR_TRY(gr_adapter_load_matrix(p->a, staging, mlx ? module->in : R, mlx ? R : module->in, turned, expected, err));
        gr_params_write(a->params, GR_PARAMS_VALUE, module->a, staging);
        GR_TRY(gr_adapter_load_matrix(p->b, staging, mlx ? R : module->out, mlx ? module->out : R, mlx, expected, err));
        gr_params_write(a->params, GR_PARAMS_VALUE, module->b, staging);
    }
done:
    free(staging);
    return st;
}

/* ---- folders ---- */

static graft_status open_tensors(gr_safetensors **files, const char *folder, const char *path, graft_error *err) {
    char *bin = gr_path_join(folder, "adapter_model.bin");
    graft_status st = GRAFT_OK;
    if (!bin) return gr_fail_memory(err, path);
    if (gr_exists(path)) st = gr_safetensors_open(files, path, err);
    else if (gr_exists(bin))
        st = gr_fail(err, GRAFT_BAD_INPUT,
                     "%s is missing; graft does not read the pickle adapter_model.bin: load it with PEFT and save it with "
                     "safe_serialization=True",
                     path);
    else st = gr_fail(err, GRAFT_BAD_INPUT, "%s is missing", path);
    free(bin);
    return st;
}

static graft_status check_base(const gr_peft_config *c, const gr_model *m, const char *path, graft_error *err) {
    if (!c->vocab || c->vocab == m->config.vocab) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "%s: graft.vocab: the adapter was trained on a base with %lld embedding rows, this one has %lld: use the same "
                   "base",
                   path, (long long)c->vocab, (long long)m->config.vocab);
}

/* The chat template beside the adapter, where there is one. */
static graft_status read_template(gr_adapter *a, const char *folder, graft_error *err) {
    char *text;
    graft_status st = gr_folder_template(&text, folder, err);
    if (text && !(a->chat_template = gr_arena_strdup(&a->arena, text))) st = gr_fail_memory(err, folder);
    if (!(a->folder = gr_arena_strdup(&a->arena, folder))) st = gr_fail_memory(err, folder);
    free(text);
    return st;
}

static graft_status load_folder(gr_adapter **out, const char *folder, gr_model *m, bool training, graft_error *err) {
    graft_status st;
    gr_peft_config config = {0};
    gr_adapter *a = NULL;
    loader l = {.m = m, .config = &config, .n = m->n_modules};
    bool *found = gr_calloc(l.n, sizeof *found);
    char *config_path = gr_path_join(folder, GR_ADAPTER_CONFIG), *tensor_path = NULL, *expected = NULL;
    l.pairs = gr_calloc(l.n, sizeof *l.pairs);
    if (!found || !config_path || !l.pairs) GR_TRY(gr_fail_memory(err, folder));
    GR_TRY(gr_peft_config_read(&config, config_path, err));
    tensor_path = gr_path_join(folder, config.mlx ? GR_MLX_TENSORS : GR_ADAPTER_TENSORS);
    expected = gr_format("the rank in %s", config_path);
    if (!tensor_path || !expected) GR_TRY(gr_fail_memory(err, folder));
    GR_TRY(check_base(&config, m, config_path, err));
    GR_TRY(open_tensors(&l.files, folder, tensor_path, err));
    GR_TRY(pair_up(&l, tensor_path, found, err));
    GR_TRY(gr_peft_rows_fit(&config, m, l.rows, config_path, err));
    st = config.mlx ? gr_mlx_check_targets(&config, m, found, config_path, err)
                    : gr_peft_check_targets(&config, m, found, config_path, err);
    if (st == GRAFT_OK) st = gr_adapter_build(&a, &config.config, m, found, NULL, err);
    if (st == GRAFT_BAD_USAGE) st = gr_fail_context(err, GRAFT_BAD_INPUT, "%s", config_path);
    GR_TRY(st);
    a->tokenizer_hash = config.tokenizer_hash;
    GR_TRY(read_template(a, folder, err));
    GR_TRY(gr_params_allocate(a->params, m->device, training, err));
    GR_TRY(load_values(a, &l, expected, err));
    GR_TRY(gr_peft_rows_load(a, &config, l.rows, err));
    if (config.mlx)
        gr_note("%s: an adapter of mlx-lm: scale %g, rank %lld", folder, config.config.alpha / (double)config.config.rank,
                (long long)config.config.rank);
    *out = a;
    a = NULL;
done:
    gr_adapter_free(a);
    gr_safetensors_close(l.files);
    gr_peft_config_release(&config);
    gr_arena_release(&l.arena);
    free(l.pairs);
    free(found);
    free(config_path);
    free(tensor_path);
    free(expected);
    return st;
}

graft_status gr_adapter_load(gr_adapter **out, const char *path, gr_model *m, bool training, graft_error *err) {
    char *place = NULL;
    *out = NULL;
    graft_status st = gr_adapter_locate(&place, path, err);
    if (st == GRAFT_OK)
        st = gr_is_dir(place) ? load_folder(out, place, m, training, err) : gr_gguf_lora_load(out, place, m, training, err);
    free(place);
    return st;
}

/* The base that the configuration names; where that is not there, what lies where its way from the folder leads. */
static graft_status folder_base(char **base, const char *folder, graft_error *err) {
    gr_peft_config config = {0};
    char *path = gr_path_join(folder, GR_ADAPTER_CONFIG);
    graft_status st;
    if (!path) GR_TRY(gr_fail_memory(err, folder));
    GR_TRY(gr_peft_config_read(&config, path, err));
    const char *named = config.config.base;
    if (!*named) goto done;
    bool moved = config.base_path && !gr_exists(named);
    *base = moved ? gr_path_join(folder, config.base_path) : gr_strdup(named);
    if (!*base) GR_TRY(gr_fail_memory(err, folder));
    if (!moved || gr_exists(*base)) goto done;
    free(*base);
    *base = NULL;
    st = gr_fail(err, GRAFT_BAD_INPUT, "%s: its base is neither %s nor, from its folder, %s: was it moved? name it with --model",
                 folder, named, config.base_path);
done:
    gr_peft_config_release(&config);
    free(path);
    return st;
}

graft_status gr_adapter_base(char **base, const char *path, graft_error *err) {
    char *place = NULL;
    graft_status st;
    *base = NULL;
    GR_TRY(gr_adapter_locate(&place, path, err));
    GR_TRY(gr_is_dir(place) ? folder_base(base, place, err) : gr_gguf_lora_base(base, place, err));
    if (!*base)
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s does not name its base (base_model_name_or_path): name it with --model", place);
done:
    free(place);
    return st;
}
