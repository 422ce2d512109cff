#include "core/model/weights.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "core/base/log.h"
#include "core/model/weight_files.h"

struct gr_weights {
    gr_model_config config;
    char *path;
    gr_weight_files files;
    gr_weight_entry *entries;
    const gr_tensor **tensors; /* [n] where the files have them */
    int64_t n;
    void **copies; /* [n] rows in canonical order, or norms with their offset, where the file has them otherwise; else NULL */
};

/* ---- the list of tensors ---- */

typedef enum size { ONE, VOCAB, HIDDEN, FFN, FFN_ROWS, Q_ROWS, KV_ROWS, QKV_ROWS, HEAD } size;

/* The matrix of each slot, or a norm's vector; `bias` is the flag of the configuration that says whether there is one too. */
static const struct {
    size rows, cols;
    size_t bias;
} shapes[GR_SLOT_COUNT] = {
    [GR_SLOT_EMBED] = {VOCAB, HIDDEN, 0},
    [GR_SLOT_INPUT_NORM] = {ONE, HIDDEN, 0},
    [GR_SLOT_QKV] = {QKV_ROWS, HIDDEN, offsetof(gr_model_config, qkv_bias)},
    [GR_SLOT_Q] = {Q_ROWS, HIDDEN, offsetof(gr_model_config, qkv_bias)},
    [GR_SLOT_K] = {KV_ROWS, HIDDEN, offsetof(gr_model_config, qkv_bias)},
    [GR_SLOT_V] = {KV_ROWS, HIDDEN, offsetof(gr_model_config, qkv_bias)},
    [GR_SLOT_O] = {HIDDEN, Q_ROWS, offsetof(gr_model_config, o_bias)},
    [GR_SLOT_Q_NORM] = {ONE, HEAD, 0},
    [GR_SLOT_K_NORM] = {ONE, HEAD, 0},
    [GR_SLOT_ATTENTION_NORM] = {ONE, HIDDEN, 0},
    [GR_SLOT_POST_NORM] = {ONE, HIDDEN, 0},
    [GR_SLOT_GATE_UP] = {FFN_ROWS, HIDDEN, offsetof(gr_model_config, mlp_bias)},
    [GR_SLOT_GATE] = {FFN, HIDDEN, offsetof(gr_model_config, mlp_bias)},
    [GR_SLOT_UP] = {FFN, HIDDEN, offsetof(gr_model_config, mlp_bias)},
    [GR_SLOT_DOWN] = {HIDDEN, FFN, offsetof(gr_model_config, mlp_bias)},
    [GR_SLOT_MLP_NORM] = {ONE, HIDDEN, 0},
    [GR_SLOT_NORM] = {ONE, HIDDEN, 0},
    [GR_SLOT_HEAD] = {VOCAB, HIDDEN, 0},
};

static int64_t size_of(size which, const gr_model_config *c) {
    switch (which) {
    case ONE: return 1;
    case VOCAB: return c->vocab;
    case HIDDEN: return c->hidden;
    case FFN: return c->ffn;
    case FFN_ROWS: return 2 * c->ffn;
    case Q_ROWS: return c->n_heads * c->head_dim;
    case KV_ROWS: return c->n_kv_heads * c->head_dim;
    case QKV_ROWS: return (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    case HEAD: return c->head_dim;
    }
    return 0;
}

static gr_weight_entry make_entry(const gr_model_config *c, gr_slot slot, int64_t layer, bool is_bias) {
    const gr_module_names *names = &c->arch->modules[slot];
    const char *part = is_bias ? "bias" : "weight";
    int64_t rows = size_of(shapes[slot].rows, c), cols = size_of(shapes[slot].cols, c);
    gr_weight_entry e = {.slot = slot, .layer = layer, .is_bias = is_bias, .is_vector = is_bias || shapes[slot].rows == ONE};
    int hf = 0, gguf = 0; /* length of what stands before */
    if (layer >= 0) {
        hf = snprintf(e.name, sizeof e.name, "model.layers.%lld.", (long long)layer);
        gguf = snprintf(e.gguf_name, sizeof e.gguf_name, "blk.%lld.", (long long)layer);
    }
    snprintf(e.name + hf, sizeof e.name - (size_t)hf, "%s.%s", names->hf, part);
    snprintf(e.gguf_name + gguf, sizeof e.gguf_name - (size_t)gguf, "%s.%s", names->gguf, part);
    e.view.rows = is_bias ? 1 : rows;
    e.view.cols = is_bias ? rows : cols;
    e.offset = e.is_vector && !is_bias ? c->arch->norm_offset : 0;
    if (c->arch->gguf_interleaved) e.permute_heads = slot == GR_SLOT_Q ? c->n_heads : slot == GR_SLOT_K ? c->n_kv_heads : 0;
    return e;
}

/* The tensors of slots first .. last. */
static int64_t list_slots(gr_weight_entry *list, const gr_model_config *c, int64_t layer, gr_slot first, gr_slot last) {
    int64_t n = 0;
    for (gr_slot slot = first; slot <= last; slot++) {
        if (!c->arch->modules[slot].hf || (slot == GR_SLOT_HEAD && c->tied)) continue;
        list[n++] = make_entry(c, slot, layer, false);
        if (shapes[slot].bias && *(const bool *)((const char *)c + shapes[slot].bias)) list[n++] = make_entry(c, slot, layer, true);
    }
    return n;
}

graft_status gr_weights_list(gr_weight_entry **entries, int64_t *n, const gr_model_config *c, graft_error *err) {
    gr_weight_entry *list = gr_calloc(2 * GR_SLOT_COUNT * (c->n_layers + 1), sizeof *list);
    if (!list) return gr_fail_memory(err, "list of tensors");
    int64_t count = list_slots(list, c, -1, GR_SLOT_EMBED, GR_SLOT_EMBED);
    for (int64_t i = 0; i < c->n_layers; i++) count += list_slots(list + count, c, i, GR_SLOT_INPUT_NORM, GR_SLOT_MLP_NORM);
    count += list_slots(list + count, c, -1, GR_SLOT_NORM, GR_SLOT_HEAD);
    *entries = list;
    *n = count;
    return GRAFT_OK;
}

int64_t gr_gguf_row(int64_t row, int64_t n_heads, int64_t rows) {
    int64_t D = rows / n_heads, head = row / D, in_head = row % D;
    return head * D + in_head % (D / 2) * 2 + in_head / (D / 2);
}

/* ---- opening ---- */

static graft_status check_shape(const gr_weight_entry *e, const gr_tensor *t, const char *name, graft_error *err) {
    int64_t rows = t->n_dims == 2 ? t->shape[0] : 1, cols = t->n_dims >= 1 ? t->shape[t->n_dims - 1] : 0;
    if (t->n_dims > 2 || t->n_dims != (e->is_vector ? 1 : 2) || rows != e->view.rows || cols != e->view.cols)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s has shape %lld x %lld (%d dimensions), expected %lld x %lld", t->file,
                       name, (long long)rows, (long long)cols, t->n_dims, (long long)e->view.rows, (long long)e->view.cols);
    const gr_dtype_info *info = gr_dtype_get(t->dtype);
    if (cols % info->block)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: tensor %s: rows of %lld are no whole blocks of %s", t->file, name,
                       (long long)cols, info->name);
    return GRAFT_OK;
}

/* Rows of a permuted q/k brought into canonical order; a bias is a matrix of one column here. */
static graft_status unpermute(void **copy, gr_weight_entry *e, graft_error *err) {
    int64_t rows = e->is_vector ? e->view.cols : e->view.rows;
    int64_t row_bytes = gr_dtype_bytes(e->view.dtype, e->is_vector ? 1 : e->view.cols);
    if (row_bytes < 0)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: a bias of type %s cannot be read", e->gguf_name,
                       gr_dtype_get(e->view.dtype)->name);
    char *data = gr_alloc_aligned(rows * row_bytes);
    if (!data) return gr_fail_memory(err, e->name);
    for (int64_t r = 0; r < rows; r++)
        memcpy(data + r * row_bytes, (const char *)e->view.data + gr_gguf_row(r, e->permute_heads, rows) * row_bytes,
               (size_t)row_bytes);
    e->view.data = *copy = data;
    return GRAFT_OK;
}

/* The weight of a norm, which an HF file has without its offset: float32, as transformers computes it. */
static graft_status add_offset(void **copy, gr_weight_entry *e, graft_error *err) {
    float *data = gr_alloc_aligned(e->view.cols * (int64_t)sizeof *data);
    if (!data) return gr_fail_memory(err, e->name);
    gr_dtype_get(e->view.dtype)->to_f32(data, e->view.data, e->view.cols);
    for (int64_t i = 0; i < e->view.cols; i++) data[i] = e->offset + data[i];
    e->view.dtype = GR_DTYPE_F32;
    e->view.data = *copy = data;
    return GRAFT_OK;
}

/* The pages of entry i in the file, also where they were copied into canonical order. */
static void drop_pages(const gr_weights *w, int64_t i) {
    if (w->tensors[i]) gr_map_drop(w->tensors[i]->data, w->tensors[i]->n_bytes);
}

static graft_status bind_tensors(gr_weights *w, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int64_t i = 0; i < w->n; i++) {
        gr_weight_entry *e = &w->entries[i];
        const char *name = w->files.gguf ? e->gguf_name : e->name;
        const gr_tensor *t = w->tensors[i] = gr_weight_files_take(&w->files, name);
        if (!t) GR_TRY(gr_weight_files_missing(&w->files, name, e, w->path, err));
        GR_TRY(check_shape(e, t, name, err));
        e->view.dtype = t->dtype;
        e->view.data = t->data;
    }
    GR_TRY(gr_weight_files_unused(&w->files, &w->config, err));
done:
    return st;
}

graft_status gr_weights_load(gr_weights *w, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int64_t i = 0; i < w->n; i++) {
        gr_weight_entry *e = &w->entries[i];
        bool wanted = w->files.gguf ? e->permute_heads > 0 : e->offset != 0;
        if (!wanted || w->copies[i]) continue;
        GR_TRY(w->files.gguf ? unpermute(&w->copies[i], e, err) : add_offset(&w->copies[i], e, err));
        drop_pages(w, i);
    }
done:
    return st;
}

/* A config that ties the head to the embedding while the file has another head: the file's is kept, as transformers 5 does. */
static void untie(gr_weights *w) {
    if (!w->config.tied) return;
    const gr_tensor *head = gr_weight_files_take(&w->files, "lm_head.weight");
    const gr_tensor *embed = gr_weight_files_take(&w->files, "model.embed_tokens.weight");
    if (!head || !embed) return;
    bool same = head->dtype == embed->dtype && head->n_bytes == embed->n_bytes &&
                memcmp(head->data, embed->data, (size_t)head->n_bytes) == 0;
    gr_map_drop(head->data, head->n_bytes);
    gr_map_drop(embed->data, embed->n_bytes);
    if (same) return;
    gr_warn("%s: tie_word_embeddings is true, but lm_head.weight is not the embedding: the head of the file is taken", w->path);
    w->config.tied = false;
}

static graft_status open_files(gr_weights *w, const char *path, graft_error *err) {
    graft_status st;
    char *config_path = NULL;
    if (gr_is_dir(path)) {
        config_path = gr_path_join(path, "config.json");
        if (!config_path) return gr_fail_memory(err, "path");
        if (!gr_exists(config_path))
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: config.json is missing: expected a Hugging Face model folder", path));
        GR_TRY(gr_config_read_json(&w->config, config_path, err));
        GR_TRY(gr_weight_files_open_hf(&w->files, path, err));
        untie(w);
    } else if (gr_ends_with(path, ".json")) {
        GR_TRY(gr_config_read_json(&w->config, path, err));
    } else {
        if (!gr_exists(path))
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: no such model: expected a Hugging Face folder or a .gguf file%s", path,
                           gr_hub_hint(path)));
        GR_TRY(gr_weight_files_open_gguf(&w->files, path, err));
        GR_TRY(gr_config_read_gguf(&w->config, w->files.gguf, err));
    }
done:
    free(config_path);
    return st;
}

graft_status gr_weights_open_headers(gr_weights **out, const char *path, graft_error *err) {
    graft_status st;
    *out = NULL;
    gr_weights *w = gr_calloc(1, sizeof *w);
    if (!w || !(w->path = gr_strdup(path))) GR_TRY(gr_fail_memory(err, "model"));
    GR_TRY(open_files(w, path, err));
    GR_TRY(gr_weights_list(&w->entries, &w->n, &w->config, err));
    w->copies = gr_calloc(w->n, sizeof *w->copies);
    w->tensors = gr_calloc(w->n, sizeof *w->tensors);
    if (!w->copies || !w->tensors) GR_TRY(gr_fail_memory(err, "model"));
    if (!gr_weights_shape_only(w)) GR_TRY(bind_tensors(w, err));
    *out = w;
    w = NULL;
done:
    gr_weights_close(w);
    return st;
}

graft_status gr_weights_open(gr_weights **out, const char *path, graft_error *err) {
    graft_status st = gr_weights_open_headers(out, path, err);
    if (st != GRAFT_OK || (st = gr_weights_load(*out, err)) == GRAFT_OK) return st;
    gr_weights_close(*out);
    *out = NULL;
    return st;
}

void gr_weights_close(gr_weights *w) {
    if (!w) return;
    for (int64_t i = 0; w->copies && i < w->n; i++) free(w->copies[i]);
    free(w->copies);
    free(w->tensors);
    free(w->entries);
    gr_weight_files_close(&w->files);
    free(w->path);
    free(w);
}

const gr_model_config *gr_weights_config(const gr_weights *w) { return &w->config; }
const char *gr_weights_path(const gr_weights *w) { return w->path; }
const gr_gguf *gr_weights_gguf(const gr_weights *w) { return w->files.gguf; }
bool gr_weights_shape_only(const gr_weights *w) { return !w->files.gguf && !w->files.safetensors; }
int64_t gr_weights_count(const gr_weights *w) { return w->n; }
const gr_weight_entry *gr_weights_get(const gr_weights *w, int64_t i) { return &w->entries[i]; }

const gr_weight_entry *gr_weights_find(const gr_weights *w, const char *name) {
    for (int64_t i = 0; i < w->n; i++)
        if (strcmp(w->entries[i].name, name) == 0) return &w->entries[i];
    return NULL;
}

void gr_weights_rest(const gr_weights *w, const void *data) {
    for (int64_t i = 0; w && i < w->n; i++)
        if (w->entries[i].view.data == data) drop_pages(w, i);
}

void gr_weights_release(gr_weights *w, const char *name) {
    for (int64_t i = 0; i < w->n; i++) {
        if (strcmp(w->entries[i].name, name) != 0 || !w->entries[i].view.data) continue;
        drop_pages(w, i);
        free(w->copies[i]);
        w->copies[i] = NULL;
        w->entries[i].view.data = NULL;
    }
}

uint64_t gr_weights_glance(const gr_weights *w) {
    enum { WHOLE = 1 << 16, PIECE = 1 << 12, PIECES = 4 };
    uint64_t hash = 0;
    for (int64_t i = 0; i < w->n; i++) {
        const gr_weight_entry *e = &w->entries[i];
        const char *data = e->view.data;
        const int64_t bytes = gr_dtype_bytes(e->view.dtype, e->view.rows * e->view.cols);
        const bool whole = bytes <= WHOLE;
        const int64_t about[] = {(int64_t)e->view.dtype, e->view.rows, e->view.cols};
        hash = XXH3_64bits_withSeed(e->name, strlen(e->name), hash);
        hash = XXH3_64bits_withSeed(about, sizeof about, hash);
        if (data && whole) hash = XXH3_64bits_withSeed(data, (size_t)bytes, hash);
        for (int64_t k = 0; data && !whole && k < PIECES; k++) /* the first, the last, and two between */
            hash = XXH3_64bits_withSeed(data + (bytes - PIECE) / (PIECES - 1) * k, PIECE, hash);
    }
    return hash;
}

uint64_t gr_weights_hash(const gr_weights *w) {
    uint64_t hash = 0;
    for (int64_t i = 0; i < w->n; i++) {
        const gr_weight *v = &w->entries[i].view;
        hash = XXH3_64bits_withSeed(v->data, (size_t)gr_dtype_bytes(v->dtype, v->rows * v->cols), hash);
    }
    return hash;
}
