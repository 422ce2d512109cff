#include "core/model/model.h"

#include <stdlib.h>
#include <string.h>

/* Where the parts of a layer lie in gr_layer, by the module's name: the one table from which opening, enumeration and
 * full-parameter training find the slots. */
typedef struct slot_row {
    const char *module;
    size_t offset;
    bool is_norm;
} slot_row;

static const slot_row slots[] = {
    {"input_layernorm", offsetof(gr_layer, input_norm), true}, {"self_attn.q_proj", offsetof(gr_layer, q), false},
    {"self_attn.k_proj", offsetof(gr_layer, k), false},        {"self_attn.v_proj", offsetof(gr_layer, v), false},
    {"self_attn.o_proj", offsetof(gr_layer, o), false},        {"post_attention_layernorm", offsetof(gr_layer, post_norm), true},
    {"mlp.gate_proj", offsetof(gr_layer, gate), false},        {"mlp.up_proj", offsetof(gr_layer, up), false},
    {"mlp.down_proj", offsetof(gr_layer, down), false},
};
enum { LINEARS_PER_LAYER = 7 };

int64_t gr_model_n_linears(const gr_model *m) { return m->config.n_layers * LINEARS_PER_LAYER + 1; }

gr_linear *gr_model_linear(gr_model *m, int64_t i, char name[96]) {
    int64_t layer = i / LINEARS_PER_LAYER, k = i % LINEARS_PER_LAYER;
    if (layer == m->config.n_layers) {
        snprintf(name, 96, "lm_head");
        return &m->head;
    }
    const slot_row *row = slots;
    while (row->is_norm || k-- > 0) row++;
    snprintf(name, 96, "model.layers.%lld.%s", (long long)layer, row->module);
    return (gr_linear *)((char *)&m->layers[layer] + row->offset);
}

/* What a weight's name stands for: exactly one of the pointers is set. */
typedef struct target {
    gr_linear *linear;
    bool is_bias; /* of the linear */
    gr_vector *vector;
    bool is_embed;
} target;

static target find_target(gr_model *m, const char *name) {
    long long layer;
    int used = 0;
    if (sscanf(name, "model.layers.%lld.%n", &layer, &used) == 1 && used > 0) {
        const char *rest = name + used;
        for (int i = 0; i < GR_LEN(slots); i++) {
            size_t len = strlen(slots[i].module);
            if (strncmp(rest, slots[i].module, len) != 0 || rest[len] != '.') continue;
            void *slot = (char *)&m->layers[layer] + slots[i].offset;
            if (slots[i].is_norm) return (target){.vector = slot};
            return (target){.linear = slot, .is_bias = strcmp(rest + len, ".bias") == 0};
        }
    }
    if (strcmp(name, "model.norm.weight") == 0) return (target){.vector = &m->norm};
    if (strcmp(name, "lm_head.weight") == 0) return (target){.linear = &m->head};
    GR_ASSERT(strcmp(name, "model.embed_tokens.weight") == 0);
    return (target){.is_embed = true};
}

static void tie_head(gr_model *m) {
    if (!m->config.tied) return;
    m->head.w = m->embed;
    m->head.dw = m->dembed;
}

/* A norm or bias as floats: borrowed when the file has floats, else converted once. */
static graft_status vector_data(gr_model *m, const gr_weight_entry *e, const float **out, graft_error *err) {
    const gr_dtype_info *info = gr_dtype_get(e->view.dtype);
    *out = e->view.data;
    if (e->view.dtype == GR_DTYPE_F32 || !e->view.data) return GRAFT_OK;
    float *copy = gr_arena_alloc(&m->vectors, e->view.cols * (int64_t)sizeof *copy);
    if (!copy) return gr_fail_memory(err, e->name);
    info->to_f32(copy, e->view.data, e->view.cols);
    *out = copy;
    return GRAFT_OK;
}

/* convert: norms and biases become floats; without, their slots stay empty. */
static graft_status bind_files(gr_model *m, bool convert, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int64_t i = 0; i < gr_weights_count(m->weights); i++) {
        const gr_weight_entry *e = gr_weights_get(m->weights, i);
        target t = find_target(m, e->name);
        if (t.is_embed) m->embed = e->view;
        else if (!convert && (t.vector || t.is_bias)) continue;
        else if (t.vector) GR_TRY(vector_data(m, e, &t.vector->w, err));
        else if (t.is_bias) GR_TRY(vector_data(m, e, &t.linear->bias, err));
        else t.linear->w = e->view;
    }
    tie_head(m);
done:
    return st;
}

graft_status gr_model_open_shape(gr_model **out, const char *path, gr_machine machine, gr_dtype compute, int64_t max_positions,
                                 graft_error *err) {
    graft_status st;
    char name[96];
    *out = NULL;
    gr_model *m = gr_calloc(1, sizeof *m);
    if (!m) return gr_fail_memory(err, "model");
    m->device = machine.device, m->threads = machine.threads, m->compute = compute;
    GR_TRY(gr_weights_open_headers(&m->weights, path, err));
    m->config = *gr_weights_config(m->weights);
    m->layers = gr_calloc(m->config.n_layers, sizeof *m->layers);
    if (!m->layers) GR_TRY(gr_fail_memory(err, "model"));
    GR_TRY(bind_files(m, false, err));
    for (int64_t i = 0; i < gr_model_n_linears(m); i++) gr_model_linear(m, i, name)->compute = compute;
    int64_t longest = gr_config_longest(&m->config);
    m->rope_positions = max_positions > 0 ? GR_MIN(max_positions, longest) : longest;
    *out = m;
    m = NULL;
done:
    gr_model_free(m);
    return st;
}

graft_status gr_model_load(gr_model *m, graft_error *err) {
    graft_status st = GRAFT_OK;
    if (gr_weights_shape_only(m->weights)) return GRAFT_OK;
    GR_TRY(gr_weights_load(m->weights, err));
    GR_TRY(bind_files(m, true, err));
    m->rope = m->device->alloc(m->device, m->rope_positions * m->config.head_dim * (int64_t)sizeof *m->rope);
    if (!m->rope) GR_TRY(gr_fail_memory(err, "rotary table"));
    gr_config_rope_table(&m->config, 0, m->rope, m->rope_positions);
done:
    return st;
}

graft_status gr_model_open(gr_model **out, const char *path, gr_machine machine, gr_dtype compute, int64_t max_positions,
                           graft_error *err) {
    graft_status st = gr_model_open_shape(out, path, machine, compute, max_positions, err);
    if (st != GRAFT_OK || (st = gr_model_load(*out, err)) == GRAFT_OK) return st;
    gr_model_free(*out);
    *out = NULL;
    return st;
}

void gr_model_free(gr_model *m) {
    char name[96];
    if (!m) return;
    for (int64_t i = 0; m->layers && i < gr_model_n_linears(m); i++) free(gr_model_linear(m, i, name)->lora);
    free(m->embed_lora);
    free(m->layers);
    if (m->rope) m->device->free(m->device, m->rope);
    if (m->int8) m->device->free(m->device, m->int8);
    if (m->quantized) m->device->free(m->device, m->quantized);
    gr_arena_release(&m->vectors);
    gr_weights_close(m->weights);
    free(m);
}

graft_status gr_model_add_params(gr_model *m, gr_params *p, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t index;
    for (int64_t i = 0; i < gr_weights_count(m->weights); i++) {
        const gr_weight_entry *e = gr_weights_get(m->weights, i);
        GR_TRY(gr_params_add(p, e->name, e->view.rows, e->view.cols, !e->is_vector, &index, err));
    }
done:
    return st;
}

graft_status gr_model_attach_params(gr_model *m, gr_params *p, bool initialise, graft_error *err) {
    graft_status st = GRAFT_OK;
    float *staging = gr_calloc(initialise ? gr_params_largest(p) : 1, sizeof *staging);
    if (!staging) GR_TRY(gr_fail_memory(err, "trained weights"));
    for (int64_t i = 0; i < gr_weights_count(m->weights); i++) {
        const gr_weight_entry *e = gr_weights_get(m->weights, i);
        int64_t index = gr_params_find(p, e->name);
        if (index < 0) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "trained weights: %s is missing", e->name));
        float *value = gr_params_value(p, index), *grad = gr_params_grad(p, index);
        if (initialise) {
            gr_dtype_get(e->view.dtype)->to_f32(staging, e->view.data, e->view.rows * e->view.cols);
            gr_params_write(p, GR_PARAMS_VALUE, index, staging);
            gr_weights_rest(m->weights, e->view.data);
        }
        gr_weight trained = {.dtype = GR_DTYPE_F32, .rows = e->view.rows, .cols = e->view.cols, .data = value};
        target t = find_target(m, e->name);
        if (t.is_embed) m->embed = trained, m->dembed = grad;
        else if (t.vector) *t.vector = (gr_vector){.w = value, .dw = grad};
        else if (t.is_bias) t.linear->bias = value, t.linear->dbias = grad;
        else t.linear->w = trained, t.linear->dw = grad;
    }
    tie_head(m);
done:
    free(staging);
    return st;
}

static bool takes_int8(const gr_linear *l, bool all) { return !l->dw && (all || gr_dtype_get(l->w.dtype)->block > 1); }

/* Bytes of the form, whole cache lines; 0: the backend has no such products. */
static int64_t int8_bytes(const gr_model *m, const gr_linear *l, bool transposed) {
    int64_t bytes = 0;
    m->device->ops->int8_size(m->device, &bytes, &l->w, transposed);
    return (bytes + 63) / 64 * 64;
}

int64_t gr_model_int8_bytes(gr_model *m, bool all, bool backward) {
    int64_t sum = 0;
    char name[96];
    for (int64_t i = 0; i < gr_model_n_linears(m); i++) {
        const gr_linear *l = gr_model_linear(m, i, name);
        if (takes_int8(l, all)) sum += int8_bytes(m, l, false) + (backward ? int8_bytes(m, l, true) : 0);
    }
    return sum;
}

static const void *pack(gr_model *m, const gr_linear *l, bool transposed, char **at) {
    int64_t bytes = int8_bytes(m, l, transposed);
    char *form = *at;
    if (bytes == 0) return NULL;
    m->device->ops->int8_pack(m->device, form, &l->w, transposed);
    *at += bytes;
    return form;
}

graft_status gr_model_use_int8(gr_model *m, bool all, bool backward, graft_error *err) {
    int64_t bytes = gr_model_int8_bytes(m, all, backward);
    char name[96];
    GR_ASSERT(!m->int8);
    if (bytes == 0) return GRAFT_OK;
    char *at = m->int8 = m->device->alloc(m->device, bytes); /* one piece: large enough for large pages */
    if (!at) return gr_fail_memory(err, "int8 forms");
    for (int64_t i = 0; i < gr_model_n_linears(m); i++) {
        gr_linear *l = gr_model_linear(m, i, name);
        if (!takes_int8(l, all)) continue;
        l->int8_forward = pack(m, l, false, &at);
        if (backward) l->int8_backward = pack(m, l, true, &at);
        gr_weights_rest(m->weights, l->w.data);
    }
    return GRAFT_OK;
}
