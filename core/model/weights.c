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
    void **copies; /* [n] rows put into canonical order, where the file has them otherwise; else NULL */
};

/* ---- the list of tensors of the LLaMA family: one row each ---- */

typedef struct tensor_row {
    const char *hf, *gguf;
    enum { IN_MODEL, IN_LAYER } place;
    enum { ALWAYS, UNTIED, QKV_BIAS, O_BIAS, MLP_BIAS } when;
    enum { ONE, VOCAB, HIDDEN, FFN, Q_ROWS, KV_ROWS } rows, cols;
    enum { KEEP, PERMUTE_Q, PERMUTE_KV } permute; /* "llama" GGUF files interleave the two halves of each head */
} tensor_row;

static const tensor_row tensor_rows[] = {
    {"model.embed_tokens.weight", "token_embd.weight", IN_MODEL, ALWAYS, VOCAB, HIDDEN, KEEP},
    {"input_layernorm.weight", "attn_norm.weight", IN_LAYER, ALWAYS, ONE, HIDDEN, KEEP},
    {"self_attn.q_proj.weight", "attn_q.weight", IN_LAYER, ALWAYS, Q_ROWS, HIDDEN, PERMUTE_Q},
    {"self_attn.q_proj.bias", "attn_q.bias", IN_LAYER, QKV_BIAS, ONE, Q_ROWS, PERMUTE_Q},
    {"self_attn.k_proj.weight", "attn_k.weight", IN_LAYER, ALWAYS, KV_ROWS, HIDDEN, PERMUTE_KV},
    {"self_attn.k_proj.bias", "attn_k.bias", IN_LAYER, QKV_BIAS, ONE, KV_ROWS, PERMUTE_KV},
    {"self_attn.v_proj.weight", "attn_v.weight", IN_LAYER, ALWAYS, KV_ROWS, HIDDEN, KEEP},
    {"self_attn.v_proj.bias", "attn_v.bias", IN_LAYER, QKV_BIAS, ONE, KV_ROWS, KEEP},
    {"self_attn.o_proj.weight", "attn_output.weight", IN_LAYER, ALWAYS, HIDDEN, Q_ROWS, KEEP},
    {"self_attn.o_proj.bias", "attn_output.bias", IN_LAYER, O_BIAS, ONE, HIDDEN, KEEP},
    {"post_attention_layernorm.weight", "ffn_norm.weight", IN_LAYER, ALWAYS, ONE, HIDDEN, KEEP},
    {"mlp.gate_proj.weight", "ffn_gate.weight", IN_LAYER, ALWAYS, FFN, HIDDEN, KEEP},
    {"mlp.gate_proj.bias", "ffn_gate.bias", IN_LAYER, MLP_BIAS, ONE, FFN, KEEP},
    {"mlp.up_proj.weight", "ffn_up.weight", IN_LAYER, ALWAYS, FFN, HIDDEN, KEEP},
    {"mlp.up_proj.bias", "ffn_up.bias", IN_LAYER, MLP_BIAS, ONE, FFN, KEEP},
    {"mlp.down_proj.weight", "ffn_down.weight", IN_LAYER, ALWAYS, HIDDEN, FFN, KEEP},
    {"mlp.down_proj.bias", "ffn_down.bias", IN_LAYER, MLP_BIAS, ONE, HIDDEN, KEEP},
    {"model.norm.weight", "output_norm.weight", IN_MODEL, ALWAYS, ONE, HIDDEN, KEEP},
    {"lm_head.weight", "output.weight", IN_MODEL, UNTIED, VOCAB, HIDDEN, KEEP},
};

static bool present(const tensor_row *row, const gr_model_config *c) {
    switch (row->when) {
    case ALWAYS: return true;
    case UNTIED: return !c->tied;
    case QKV_BIAS: return c->qkv_bias;
    case O_BIAS: return c->o_bias;
    case MLP_BIAS: return c->mlp_bias;
    }
    return false;
}

static int64_t size_of(int which, const gr_model_config *c) {
    switch (which) {
    case VOCAB: return c->vocab;
    case HIDDEN: return c->hidden;
    case FFN: return c->ffn;
    case Q_ROWS: return c->n_heads * c->head_dim;
    case KV_ROWS: return c->n_kv_heads * c->head_dim;
    default: return 1;
    }
}

static void fill_entry(gr_weight_entry *e, const tensor_row *row, const gr_model_config *c, int64_t layer) {
    bool permuted = strcmp(c->arch, "llama") == 0;
    *e = (gr_weight_entry){.is_vector = row->rows == ONE};
    if (row->place == IN_LAYER) {
        snprintf(e->name, sizeof e->name, "model.layers.%lld.%s", (long long)layer, row->hf);
        snprintf(e->gguf_name, sizeof e->gguf_name, "blk.%lld.%s", (long long)layer, row->gguf);
    } else {
        snprintf(e->name, sizeof e->name, "%s", row->hf);
        snprintf(e->gguf_name, sizeof e->gguf_name, "%s", row->gguf);
    }
    e->view.rows = size_of((int)row->rows, c);
    e->view.cols = size_of((int)row->cols, c);
    if (permuted && row->permute != KEEP) e->permute_heads = row->permute == PERMUTE_Q ? c->n_heads : c->n_kv_heads;
}

graft_status gr_weights_list(gr_weight_entry **entries, int64_t *n, const gr_model_config *c, graft_error *err) {
    int64_t capacity = GR_LEN(tensor_rows) * (c->n_layers + 1), count = 0;
    gr_weight_entry *list = gr_calloc(capacity, sizeof *list);
    if (!list) return gr_fail_memory(err, "list of tensors");
    int first = 0;
    while (first < GR_LEN(tensor_rows)) {
        int last = first; /* a run of rows of the same place: the layers' run repeats */
        while (last < GR_LEN(tensor_rows) && tensor_rows[last].place == tensor_rows[first].place) last++;
        int64_t repeats = tensor_rows[first].place == IN_LAYER ? c->n_layers : 1;
        for (int64_t layer = 0; layer < repeats; layer++)
            for (int i = first; i < last; i++)
                if (present(&tensor_rows[i], c)) fill_entry(&list[count++], &tensor_rows[i], c, layer);
        first = last;
    }
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
    for (int64_t i = 0; w->files.gguf && i < w->n; i++) {
        if (!w->entries[i].permute_heads || w->copies[i]) continue;
        GR_TRY(unpermute(&w->copies[i], &w->entries[i], err));
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

uint64_t gr_weights_hash(const gr_weights *w) {
    uint64_t hash = 0;
    for (int64_t i = 0; i < w->n; i++) {
        const gr_weight *v = &w->entries[i].view;
        hash = XXH3_64bits_withSeed(v->data, (size_t)gr_dtype_bytes(v->dtype, v->rows * v->cols), hash);
    }
    return hash;
}
