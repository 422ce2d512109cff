#include "core/model/model.h"

#include <stdlib.h>
#include <string.h>

#include "core/model/frozen.h"

/* Where the parts of a layer lie in gr_layer. */
typedef struct slot_row {
    size_t offset;
    bool is_norm;
} slot_row;

#define LINEAR(name)                                                                                                               \
    { offsetof(gr_layer, name), false }
#define NORM(name)                                                                                                                 \
    { offsetof(gr_layer, name), true }
static const slot_row slots[GR_SLOT_COUNT] = {
    [GR_SLOT_INPUT_NORM] = NORM(input_norm),
    [GR_SLOT_QKV] = LINEAR(q),
    [GR_SLOT_Q] = LINEAR(q),
    [GR_SLOT_K] = LINEAR(k),
    [GR_SLOT_V] = LINEAR(v),
    [GR_SLOT_O] = LINEAR(o),
    [GR_SLOT_Q_NORM] = NORM(q_norm),
    [GR_SLOT_K_NORM] = NORM(k_norm),
    [GR_SLOT_ATTENTION_NORM] = NORM(attention_norm),
    [GR_SLOT_POST_NORM] = NORM(post_norm),
    [GR_SLOT_GATE_UP] = LINEAR(gate),
    [GR_SLOT_GATE] = LINEAR(gate),
    [GR_SLOT_UP] = LINEAR(up),
    [GR_SLOT_DOWN] = LINEAR(down),
    [GR_SLOT_MLP_NORM] = NORM(mlp_norm),
};
#undef LINEAR
#undef NORM

/* What a weight belongs to: one of the two. */
typedef struct target {
    gr_linear *linear;
    gr_vector *norm;
} target;

static target target_of(gr_model *m, const gr_weight_entry *e) {
    if (e->slot == GR_SLOT_EMBED) return (target){.linear = &m->embed};
    if (e->slot == GR_SLOT_HEAD) return (target){.linear = &m->head};
    if (e->slot == GR_SLOT_NORM) return (target){.norm = &m->norm};
    void *at = (char *)&m->layers[e->layer] + slots[e->slot].offset;
    return slots[e->slot].is_norm ? (target){.norm = at} : (target){.linear = at};
}

static void tie_head(gr_model *m) {
    if (!m->config.tied) return;
    m->head.w = m->embed.w;
    m->head.dw = m->embed.dw;
}

/* ---- slots ---- */

/* Those of the layers, the head's, and that of its segment where there is one. */
static int64_t n_groups(const gr_model *m) { return m->config.n_layers * GR_SITE_COUNT + 1 + (m->rows_group.n > 0); }

static gr_group *group_at(const gr_model *m, int64_t i) {
    int64_t of_layers = m->config.n_layers * GR_SITE_COUNT;
    if (i >= of_layers) return (gr_group *)(i == of_layers ? &m->head_group : &m->rows_group);
    return &m->layers[i / GR_SITE_COUNT].group[i % GR_SITE_COUNT];
}

static void make_groups(gr_model *m) {
    const gr_module_names *modules = m->config.arch->modules;
    int n_qkv = modules[GR_SLOT_QKV].hf ? 1 : 3, n_gate_up = modules[GR_SLOT_GATE_UP].hf ? 1 : 2;
    for (int64_t i = 0; i < m->config.n_layers; i++) {
        gr_layer *l = &m->layers[i];
        l->desc = gr_config_layer(&m->config, i);
        l->group[GR_SITE_QKV] = (gr_group){.member = {&l->q, &l->k, &l->v}, .n = n_qkv};
        l->group[GR_SITE_O] = (gr_group){.member = {&l->o}, .n = 1};
        l->group[GR_SITE_GATE_UP] = (gr_group){.member = {&l->gate, &l->up}, .n = n_gate_up};
        l->group[GR_SITE_DOWN] = (gr_group){.member = {&l->down}, .n = 1};
    }
    gr_model_split_head(m);
    for (int64_t i = 0; i < n_groups(m); i++) group_at(m, i)->compute = m->compute;
}

/* A model of a configuration: slots without weights. */
static graft_status make_slots(gr_model **out, const gr_model_config *c, gr_machine machine, gr_dtype compute, graft_error *err) {
    gr_model *m = gr_calloc(1, sizeof *m);
    if (!m || !(m->layers = gr_calloc(c->n_layers, sizeof *m->layers))) {
        free(m);
        return gr_fail_memory(err, "model");
    }
    m->config = *c;
    m->qk_norm = c->arch->modules[GR_SLOT_Q_NORM].hf != NULL;
    m->branch_norm = c->arch->modules[GR_SLOT_ATTENTION_NORM].hf != NULL;
    m->device = machine.device, m->threads = machine.threads, m->compute = compute;
    m->forms.quantise = -1;
    make_groups(m);
    *out = m;
    return GRAFT_OK;
}

/* Shapes into the slots, names into the modules. A tied head is a module too. */
static graft_status bind_shapes(gr_model *m, graft_error *err) {
    int64_t n = gr_weights_count(m->weights);
    m->modules = gr_calloc(n + 1, sizeof *m->modules);
    m->mapped = gr_calloc(n, sizeof *m->mapped);
    if (!m->modules || !m->mapped) return gr_fail_memory(err, "model");
    for (int64_t i = 0; i < n; i++) {
        const gr_weight_entry *e = gr_weights_get(m->weights, i);
        target t = target_of(m, e);
        if (t.norm || e->is_bias) continue;
        bool embed = e->slot == GR_SLOT_EMBED;
        gr_module *module = &m->modules[m->n_modules++];
        *module = (gr_module){
            .entry = e, .linear = t.linear, .out = embed ? e->view.cols : e->view.rows, .in = embed ? e->view.rows : e->view.cols};
        snprintf(module->name, sizeof module->name, "%.*s", (int)(strlen(e->name) - strlen(".weight")), e->name);
        t.linear->w = (gr_weight){.dtype = e->view.dtype, .rows = e->view.rows, .cols = e->view.cols};
    }
    if (m->config.tied) {
        const gr_module *embed = &m->modules[0];
        m->modules[m->n_modules++] = (gr_module){.name = "lm_head", .linear = &m->head, .out = embed->in, .in = embed->out};
    }
    tie_head(m);
    return GRAFT_OK;
}

/* ---- opening ---- */

static graft_status make_rope(gr_model *m, graft_error *err) {
    int n = gr_config_n_ropes(&m->config);
    int64_t bytes = m->rope_positions * m->config.head_dim * (int64_t)sizeof(float);
    graft_status st = GRAFT_OK;
    float *table = gr_alloc_aligned(bytes);
    m->rope = gr_calloc(n, sizeof *m->rope);
    for (int i = 0; table && m->rope && i < n; i++) {
        if (!(m->rope[i] = m->device->alloc(m->device, bytes))) break;
        gr_config_rope_table(&m->config, i, table, m->rope_positions);
        m->device->upload(m->device, m->rope[i], table, bytes);
    }
    if (!table || !m->rope) st = gr_fail_memory(err, "rotary table");
    else if (!m->rope[n - 1]) st = gr_fail_device_memory(m->device, bytes, "a rotary table", err);
    free(table);
    return st;
}

graft_status gr_model_make(gr_model **out, const gr_model_config *c, gr_machine machine, gr_dtype compute, int64_t rope_positions,
                           graft_error *err) {
    graft_status st = make_slots(out, c, machine, compute, err);
    if (st != GRAFT_OK) return st;
    (*out)->rope_positions = rope_positions;
    if ((st = make_rope(*out, err)) == GRAFT_OK) return GRAFT_OK;
    gr_model_free(*out);
    *out = NULL;
    return st;
}

graft_status gr_model_open_shape(gr_model **out, const char *path, gr_machine machine, gr_dtype compute, int64_t max_positions,
                                 graft_error *err) {
    graft_status st;
    gr_model *m = NULL;
    gr_weights *w = NULL;
    *out = NULL;
    GR_TRY(gr_weights_open_headers(&w, path, err));
    GR_TRY(make_slots(&m, gr_weights_config(w), machine, compute, err));
    m->weights = w, w = NULL;
    GR_TRY(bind_shapes(m, err));
    int64_t longest = m->config.max_positions;
    m->rope_positions = max_positions > 0 ? GR_MIN(max_positions, longest) : longest;
    *out = m;
    m = NULL;
done:
    gr_weights_close(w);
    gr_model_free(m);
    return st;
}

graft_status gr_model_load(gr_model *m, graft_error *err) {
    graft_status st = GRAFT_OK;
    if (gr_weights_shape_only(m->weights)) return GRAFT_OK;
    GR_TRY(gr_weights_load(m->weights, err));
    GR_TRY(make_rope(m, err));
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
    if (!m) return;
    gr_model_detach_rows(m);
    for (int64_t i = 0; i < m->n_modules; i++) free(m->modules[i].linear->lora);
    for (int64_t i = 0; m->mapped && i < gr_weights_count(m->weights); i++) m->device->unmap(m->device, m->mapped[i]);
    for (int i = 0; m->rope && i < gr_config_n_ropes(&m->config); i++) m->device->free(m->device, m->rope[i]);
    if (m->quantized) m->device->free(m->device, m->quantized);
    gr_frozen_free(m);
    free(m->rope);
    free(m->mapped);
    free(m->modules);
    free(m->layers);
    gr_arena_release(&m->vectors);
    gr_weights_close(m->weights);
    free(m);
}

static bool is_of_layers(const gr_model *m, int64_t group) { return group < m->config.n_layers * GR_SITE_COUNT; }

/* The type of a matrix once the layers were quantised. */
static gr_dtype type_then(const gr_weight *w, gr_model_forms f, bool of_layers) {
    return f.quantise >= 0 && of_layers ? gr_model_quantized_type(w, (gr_dtype)f.quantise) : w->dtype;
}

/* Matrix l among those of the files, which is its place among the parameters. */
static int64_t place_of(const gr_model *m, const gr_linear *l) {
    int64_t n = 0;
    for (int64_t i = 0; m->weights && i < gr_weights_count(m->weights); i++) {
        const gr_weight_entry *e = gr_weights_get(m->weights, i);
        if (!e->is_vector && target_of((gr_model *)m, e).linear == l) return n;
        n += !e->is_vector;
    }
    return -1;
}

/* Does b lie behind a? */
static bool follows(const gr_model *m, const gr_linear *a, const gr_linear *b, gr_model_forms f) {
    const int64_t bytes = gr_dtype_bytes(a->w.dtype, a->w.rows * a->w.cols);
    return f.trained && !a->dw ? place_of(m, b) == place_of(m, a) + 1 : (const char *)b->w.data == (const char *)a->w.data + bytes;
}

static bool is_joined(const gr_model *m, const gr_group *g, gr_model_forms f) {
    bool joined = g->n > 0 && g->compute != GR_DTYPE_F32;
    for (int j = 0; j < g->n && joined; j++) {
        const gr_linear *l = g->member[j];
        joined = l->dw ? l->w.dtype == g->compute : f.trained;
        if (j > 0) joined = joined && follows(m, g->member[j - 1], l, f);
    }
    return joined;
}

/* Group i as it is, or would be, placed: fp8 is of the layers' products, whose dx flows on. The head's gradient is what all others
 * come from, and its rows of logits have few large values; the first layer's q, k and v are asked for dx where the embedding is
 * trained, and there alone. Quantised weights that are only read forward are never kept twice; of the head, which is one and read
 * for each chunk of rows, training always makes a matrix. */
static void set_products(const gr_model *m, int64_t i, gr_group *g, gr_model_forms f) {
    const bool layers = is_of_layers(m, i);
    bool quantised = false;
    for (int j = 0; j < g->n; j++) quantised |= gr_dtype_get(type_then(&g->member[j]->w, f, layers))->block > 1;
    g->base = f.base == GR_BASE_FP8 && (i == GR_SITE_QKV || !layers) ? GR_BASE_EXACT : f.base;
    g->backward = f.backward;
    g->joined = is_joined(m, g, f);
    g->expand = f.elsewhere || (quantised && (!f.backward || (f.expand && layers)));
}

/* ---- weights on the device ---- */

/* The data of a weight as the slots want it, on the host: norms and biases as floats, matrices as the file has them. */
static graft_status host_data(gr_model *m, const gr_weight_entry *e, const void **data, int64_t *bytes, graft_error *err) {
    int64_t n = e->view.rows * e->view.cols;
    *data = e->view.data;
    *bytes = e->is_vector ? n * (int64_t)sizeof(float) : gr_dtype_bytes(e->view.dtype, n);
    if (!e->is_vector || e->view.dtype == GR_DTYPE_F32) return GRAFT_OK;
    float *copy = gr_arena_alloc(&m->vectors, *bytes);
    if (!copy) return gr_fail_memory(err, e->name);
    gr_dtype_get(e->view.dtype)->to_f32(copy, e->view.data, n);
    *data = copy;
    return GRAFT_OK;
}

static bool has_member(const gr_group *g, const gr_linear *l) {
    for (int i = 0; i < g->n; i++)
        if (g->member[i] == l) return true;
    return false;
}

/* Is it a matrix of a layer? Those are mapped with their group, and what a form replaces is given back before the next. */
static bool in_layers(const gr_weight_entry *e) { return e->layer >= 0 && !e->is_vector; }

/* A slot that nothing else has filled (trained or quantised weights) gets the file's data: of the members of g, which is of the
 * layers, or (NULL) of all that is in no such group. */
static graft_status map_weights(gr_model *m, const gr_group *g, graft_error *err) {
    for (int64_t i = 0; m->weights && i < gr_weights_count(m->weights); i++) {
        const gr_weight_entry *e = gr_weights_get(m->weights, i);
        target t = target_of(m, e);
        const void **slot = t.norm ? (const void **)&t.norm->w : e->is_bias ? (const void **)&t.linear->bias : &t.linear->w.data;
        const void *data;
        int64_t bytes;
        if (*slot || in_layers(e) != (g != NULL) || (g && !has_member(g, t.linear))) continue;
        graft_status st = host_data(m, e, &data, &bytes, err);
        if (st != GRAFT_OK) return st;
        *slot = m->mapped[i] = m->device->map(m->device, data, bytes);
        if (!*slot) return gr_fail_device_memory(m->device, bytes, e->name, err);
        if (*slot != data) gr_weights_rest(m->weights, e->view.data);
    }
    return GRAFT_OK;
}

/* What is read through a form from now on: the files' pages rest, and a copy that the device made goes where the form is all. */
static void rest(gr_model *m, const gr_group *g) {
    for (int i = 0; g->form && i < g->n; i++) gr_weights_rest(m->weights, g->member[i]->w.data);
    if (!m->device->holds(m->device, g)) return;
    for (int64_t i = 0; m->weights && i < gr_weights_count(m->weights); i++) {
        const gr_weight_entry *e = gr_weights_get(m->weights, i);
        target t = target_of(m, e);
        if (!m->mapped[i] || !in_layers(e) || !has_member(g, t.linear)) continue;
        m->device->unmap(m->device, m->mapped[i]);
        m->mapped[i] = t.linear->w.data = NULL;
    }
}

graft_status gr_model_place(gr_model *m, graft_error *err) {
    if (m->placed) return GRAFT_OK;
    graft_status st = map_weights(m, NULL, err);
    tie_head(m);
    gr_model_split_head(m);
    for (int64_t i = 0; st == GRAFT_OK && i < n_groups(m); i++) {
        gr_group *g = group_at(m, i);
        set_products(m, i, g, m->forms);
        if (is_of_layers(m, i)) st = map_weights(m, g, err);
        if (st == GRAFT_OK && !m->device->place(m->device, g))
            st = gr_fail_device_memory(m->device, m->device->group_bytes(m->device, g), "forms of the weights", err);
        if (st == GRAFT_OK) rest(m, g);
    }
    if (st != GRAFT_OK) gr_model_unplace(m); /* those that were made */
    m->placed = st == GRAFT_OK;
    return st;
}

void gr_model_unplace(gr_model *m) {
    for (int64_t i = 0; i < n_groups(m); i++) m->device->release(m->device, group_at(m, i));
    m->placed = false;
}

void gr_model_renew(gr_model *m) {
    for (int64_t i = 0; i < n_groups(m); i++) m->device->renew(m->device, group_at(m, i));
}

void gr_model_bring(const gr_model *m, int64_t layer) {
    const int64_t L = m->config.n_layers, first = layer * GR_SITE_COUNT;
    if (!m->elsewhere.bring) return;
    m->elsewhere.bring(m->elsewhere.context, layer);
    for (int64_t i = first; layer >= 0 && i < (layer == L ? n_groups(m) : first + GR_SITE_COUNT); i++)
        m->device->renew(m->device, group_at(m, i));
}

void gr_model_bring_all(const gr_model *m) {
    for (int64_t i = -1; i <= m->config.n_layers; i++) gr_model_bring(m, i);
}

void gr_model_use(gr_model *m, gr_model_forms forms) {
    gr_model_unplace(m);
    m->forms = forms;
}

int64_t gr_model_form_bytes(const gr_model *m, gr_model_forms forms) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < n_groups(m); i++) {
        gr_group g = *group_at(m, i);
        set_products(m, i, &g, forms);
        bytes += m->device->group_bytes(m->device, &g);
    }
    return bytes;
}

int64_t gr_model_scratch_bytes(const gr_model *m, gr_model_forms forms, int64_t rows) {
    int64_t most = 0;
    for (int64_t i = 0; m->device->scratch_bytes && is_of_layers(m, i); i++) {
        gr_group g = *group_at(m, i);
        set_products(m, i, &g, forms);
        most = GR_MAX(most, m->device->scratch_bytes(m->device, &g, rows));
    }
    return most;
}

static int64_t copied_bytes(const gr_model *m, const gr_weight_entry *e) {
    int64_t n = e->view.rows * e->view.cols;
    gr_dtype dtype = gr_weights_shape_only(m->weights) ? GR_DTYPE_BF16 : e->view.dtype;
    return m->device->footprint(m->device, e->is_vector ? n * (int64_t)sizeof(float) : gr_dtype_bytes(dtype, n));
}

int64_t gr_model_copied_bytes(const gr_model *m, bool full, gr_model_forms forms) {
    int64_t kept = 0, largest = 0;
    if (m->device->in_host || full) return 0;
    for (int64_t i = 0; i < gr_weights_count(m->weights); i++) {
        const gr_weight_entry *e = gr_weights_get(m->weights, i);
        if (!in_layers(e)) kept += copied_bytes(m, e);
    }
    for (int64_t i = 0; is_of_layers(m, i); i++) {
        gr_group g = *group_at(m, i);
        int64_t bytes = 0;
        set_products(m, i, &g, forms);
        for (int64_t k = 0; k < gr_weights_count(m->weights); k++) {
            const gr_weight_entry *e = gr_weights_get(m->weights, k);
            const gr_linear *l = in_layers(e) ? target_of((gr_model *)m, e).linear : NULL;
            if (l && has_member(&g, l) && type_then(&l->w, forms, true) == l->w.dtype) bytes += copied_bytes(m, e);
        }
        if (g.expand) kept += bytes;
        else largest = GR_MAX(largest, bytes);
    }
    return kept + largest;
}

/* ---- full-parameter training ---- */

graft_status gr_model_add_params(gr_model *m, gr_params *p, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t index;
    for (int64_t i = 0; i < gr_weights_count(m->weights); i++) {
        const gr_weight_entry *e = gr_weights_get(m->weights, i);
        GR_TRY(gr_params_add(p, e->name, e->view.rows, e->view.cols, !e->is_vector, &index, err));
        bool embedding = e->slot == GR_SLOT_EMBED;
        p->items[index].layer = e->layer >= 0 ? e->layer : embedding ? -1 : m->config.n_layers;
        p->items[index].early = embedding && m->config.tied;
    }
done:
    return st;
}

enum { PIECE = 1 << 18 }; /* elements converted at a time; whole blocks of every type */

static graft_status initialise_param(gr_model *m, gr_params *p, int64_t index, const gr_weight_entry *e, graft_error *err) {
    const gr_dtype_info *info = gr_dtype_get(e->view.dtype);
    int64_t n = e->view.rows * e->view.cols;
    float *piece = gr_alloc_aligned(GR_MIN(n, PIECE) * (int64_t)sizeof *piece);
    if (!piece) return gr_fail_memory(err, e->name);
    for (int64_t at = 0, count; at < n; at += count) {
        count = GR_MIN(PIECE, n - at);
        info->to_f32(piece, (const char *)e->view.data + at / info->block * info->block_bytes, count);
        gr_params_write_part(p, GR_PARAMS_VALUE, index, at, count, piece);
    }
    free(piece);
    gr_weights_rest(m->weights, e->view.data);
    return GRAFT_OK;
}

graft_status gr_model_attach_params(gr_model *m, gr_params *p, bool initialise, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_model_unplace(m);
    for (int64_t i = 0; i < gr_weights_count(m->weights); i++) {
        const gr_weight_entry *e = gr_weights_get(m->weights, i);
        int64_t index = gr_params_find(p, e->name);
        if (index < 0) return gr_fail(err, GRAFT_BAD_INPUT, "trained weights: %s is missing", e->name);
        gr_weight value = gr_params_weight(p, index);
        float *grad = gr_params_grad(p, index);
        if (initialise) GR_TRY(initialise_param(m, p, index, e, err));
        target t = target_of(m, e);
        if (t.norm) *t.norm = (gr_vector){.w = value.data, .dw = grad};
        else if (e->is_bias) t.linear->bias = value.data, t.linear->dbias = grad;
        else t.linear->w.dtype = value.dtype, t.linear->w.data = value.data, t.linear->dw = grad;
    }
    tie_head(m);
done:
    return st;
}
