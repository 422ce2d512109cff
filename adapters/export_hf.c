/* A Hugging Face model folder: config.json, generation_config.json, the tokenizer's files, model.safetensors
 * or shards with their index. */
#include "adapters/impl.h"

#include <dirent.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"

static const int64_t DEFAULT_SHARD_BYTES = 5000000000;

static gr_dtype hf_dtype(const gr_export *x, const gr_weight_entry *e) {
    (void)e;
    return x->dtype;
}

typedef struct shard {
    const gr_export *x;
    int64_t first; /* entry of the shard's first tensor */
} shard;

static graft_status produce(void *context, int64_t i, void *dst, graft_error *err) {
    const shard *s = context;
    return gr_export_entry(s->x, s->first + i, s->x->dtype, false, dst, err);
}

/* Tensors first.. of the shard that starts there: as many as fit, at least one. *bytes: their size. */
static int64_t shard_length(const gr_tensor *tensors, int64_t first, int64_t n, int64_t limit, int64_t *bytes) {
    int64_t count = 0;
    *bytes = 0;
    while (first + count < n && (count == 0 || *bytes + tensors[first + count].n_bytes <= limit))
        *bytes += tensors[first + count++].n_bytes;
    return count;
}

static graft_status write_index(const char *folder, json_t *map, int64_t total, graft_error *err) {
    json_t *root = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
    char *path = gr_path_join(folder, "model.safetensors.index.json");
    char *text = root ? json_dumps(root, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    graft_status st = path && text ? gr_file_write(path, text, (int64_t)strlen(text), err) : gr_fail_memory(err, folder);
    json_decref(root);
    free(path);
    free(text);
    return st;
}

static graft_status write_weights(const gr_export *x, const char *folder, graft_error *err) {
    graft_status st;
    gr_tensor *tensors = NULL;
    json_t *map = json_object();
    int64_t limit = x->shard_bytes > 0 ? x->shard_bytes : DEFAULT_SHARD_BYTES, total = 0, bytes, n_shards = 0;
    GR_TRY(gr_export_tensors(&tensors, x, hf_dtype, false, err));
    for (int64_t first = 0; first < x->source.n; n_shards++) first += shard_length(tensors, first, x->source.n, limit, &bytes);
    for (int64_t first = 0, k = 1; first < x->source.n; k++) {
        int64_t n = shard_length(tensors, first, x->source.n, limit, &bytes);
        char name[64] = "model.safetensors";
        if (n_shards > 1) snprintf(name, sizeof name, "model-%05lld-of-%05lld.safetensors", (long long)k, (long long)n_shards);
        char *path = gr_path_join(folder, name);
        st = path ? gr_safetensors_write(path, tensors + first, n, produce, &(shard){x, first}, err) : gr_fail_memory(err, name);
        free(path);
        if (st != GRAFT_OK) goto done;
        for (int64_t i = first; i < first + n; i++) json_object_set_new(map, tensors[i].name, json_string(name));
        total += bytes;
        first += n;
    }
    if (n_shards > 1) GR_TRY(write_index(folder, map, total, err));
done:
    json_decref(map);
    free(tensors);
    return st;
}

/* ---- what goes along with a model ---- */

/* The HF folder that the base is, NULL for a GGUF and for a shape. */
static const char *base_folder(const gr_export *x) {
    return gr_weights_gguf(x->base) || gr_weights_shape_only(x->base) ? NULL : gr_weights_path(x->base);
}

static bool goes_along(const char *name) {
    static const char *const beginnings[] = {"LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY"};
    for (int i = 0; i < GR_LEN(beginnings); i++)
        if (strncasecmp(name, beginnings[i], strlen(beginnings[i])) == 0) return true;
    return false;
}

/* Copies of the files of a folder that `wanted` takes. */
static graft_status copy_files(const char *from, const char *to, bool (*wanted)(const char *name), graft_error *err) {
    graft_status st = GRAFT_OK;
    DIR *d = opendir(from);
    struct dirent *e;
    while (st == GRAFT_OK && d && (e = readdir(d))) {
        char *source = gr_path_join(from, e->d_name), *target = gr_path_join(to, e->d_name);
        if (!source || !target) st = gr_fail_memory(err, "path");
        else if (wanted(e->d_name) && !gr_is_dir(source)) st = gr_file_copy(source, target, err);
        free(source);
        free(target);
    }
    if (d) closedir(d);
    return st;
}

static bool is_template(const char *name) { return gr_ends_with(name, ".jinja"); }

/* Licences and the base's further chat templates: the merged model is still the base's for both. */
static graft_status copy_companions(const char *base, const char *folder, graft_error *err) {
    char *from = gr_path_join(base, "additional_chat_templates"), *to = gr_path_join(folder, "additional_chat_templates");
    graft_status st = from && to ? copy_files(base, folder, goes_along, err) : gr_fail_memory(err, "path");
    if (st == GRAFT_OK && gr_is_dir(from)) st = gr_make_dirs(to, err);
    if (st == GRAFT_OK && gr_is_dir(from)) st = copy_files(from, to, is_template, err);
    free(from);
    free(to);
    return st;
}

/* transformers' classes have biases together: of q, k and v always, or of q, k, v and o or none, or none. */
static graft_status check_biases(const gr_model_config *c, graft_error *err) {
    const gr_arch *arch = c->arch;
    bool qkv = c->qkv_bias == (arch->qkv_bias || c->o_bias), o = !c->o_bias || arch->attention_bias;
    if (qkv && o && (!c->mlp_bias || arch->mlp_bias)) return GRAFT_OK;
    return gr_fail(
        err, GRAFT_BAD_INPUT,
        "an HF folder of a %s cannot hold this model's biases (q, k, v: %s; o: %s; mlp: %s): write a GGUF (--out FILE.gguf)",
        arch->hf_type, c->qkv_bias ? "yes" : "no", c->o_bias ? "yes" : "no", c->mlp_bias ? "yes" : "no");
}

graft_status gr_export_hf(const gr_export *x, const char *folder, graft_error *err) {
    const char *dtype = x->dtype == GR_DTYPE_F32 ? "float32" : x->dtype == GR_DTYPE_F16 ? "float16" : "bfloat16";
    graft_status st;
    GR_TRY(check_biases(x->config, err));
    GR_TRY(write_weights(x, folder, err));
    GR_TRY(gr_config_write_hf(x->config, dtype, base_folder(x), folder, err));
    if (x->tokenizer) GR_TRY(gr_tokenizer_save_hf(x->tokenizer, folder, err));
    if (base_folder(x)) GR_TRY(copy_companions(base_folder(x), folder, err));
done:
    return st;
}
