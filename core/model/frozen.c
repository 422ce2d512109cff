#include "core/model/frozen.h"

#include <stdlib.h>

#include "core/base/log.h"
#include "core/model/machine.h"

enum { ALIGN = 64, NO_LAYER = -2 };

static int64_t aligned(int64_t bytes) { return (bytes + ALIGN - 1) / ALIGN * ALIGN; }

/* The layer with which a module's matrix comes. */
static int64_t layer_of(const gr_model *m, const gr_module *module) {
    if (!module->entry) return NO_LAYER; /* a tied head */
    if (module->entry->slot == GR_SLOT_EMBED) return m->config.tied ? NO_LAYER : -1;
    return module->entry->slot == GR_SLOT_HEAD ? m->config.n_layers : module->entry->layer;
}

/* A shape without files counts as bf16. */
static gr_dtype type_of(const gr_model *m, const gr_module *module, int quantise) {
    gr_weight w = module->linear->w;
    if (gr_weights_shape_only(m->weights)) w.dtype = GR_DTYPE_BF16;
    return quantise >= 0 && module->entry->layer >= 0 ? gr_model_quantized_type(&w, (gr_dtype)quantise) : w.dtype;
}

static int64_t bytes_of(const gr_model *m, const gr_module *module, int quantise) {
    return gr_dtype_bytes(type_of(m, module, quantise), module->out * module->in);
}

static gr_range share_of(int64_t bytes, int rank, int size) {
    const int64_t share = aligned((bytes + size - 1) / size);
    return (gr_range){GR_MIN(bytes, rank * share), GR_MIN(bytes, (rank + 1) * share)};
}

gr_range gr_frozen_part(const gr_model *m, int64_t layer, int rank) {
    return share_of(m->frozen->layers[layer + 1].bytes, rank, m->frozen->size);
}

/* Bytes of all layers; of this rank's shares, and of the places, in all. */
static int64_t measure(const gr_model *m, int quantise, int rank, int size, gr_frozen_layer *layers, int64_t place[2]) {
    int64_t kept = 0;
    for (int64_t i = 0; i < m->n_modules; i++) {
        const int64_t layer = layer_of(m, &m->modules[i]);
        if (layer != NO_LAYER) layers[layer + 1].bytes += aligned(bytes_of(m, &m->modules[i], quantise));
    }
    place[0] = place[1] = 0;
    for (int64_t i = -1; i <= m->config.n_layers; i++) {
        const gr_range mine = share_of(layers[i + 1].bytes, rank, size);
        layers[i + 1].kept_at = kept;
        kept += mine.end - mine.begin;
        place[i & 1] = GR_MAX(place[i & 1], layers[i + 1].bytes);
    }
    return kept;
}

int64_t gr_frozen_bytes(const gr_model *m, int quantise, int size) {
    int64_t place[2];
    gr_frozen_layer *layers = gr_calloc(m->config.n_layers + 2, sizeof *layers);
    if (!layers) return 0;
    const int64_t kept = measure(m, quantise, 0, size, layers, place);
    free(layers);
    return m->device->footprint(m->device, kept) + m->device->footprint(m->device, place[0]) +
           m->device->footprint(m->device, place[1]);
}

/* What is this rank's of a matrix that lies at `at` of its layer; made: room for all of it. */
static graft_status keep_part(gr_model *m, const gr_module *module, gr_dtype type, int64_t at, char *made, graft_error *err) {
    const gr_frozen *f = m->frozen;
    const int64_t layer = layer_of(m, module), n = module->out * module->in;
    const gr_range mine = gr_frozen_part(m, layer, f->rank);
    const int64_t begin = GR_MAX(mine.begin, at), end = GR_MIN(mine.end, at + gr_dtype_bytes(type, n));
    const char *from = module->entry->view.data;
    if (begin >= end) return GRAFT_OK;
    if (type != module->entry->view.dtype) { /* whole blocks that hold it */
        const gr_dtype_info *info = gr_dtype_get(type);
        const int64_t first = (begin - at) / info->block_bytes, last = (end - at + info->block_bytes - 1) / info->block_bytes;
        graft_status st = gr_model_convert(m, module, type, first * info->block, last * info->block, made, err);
        if (st != GRAFT_OK) return st;
        from = made;
    }
    m->device->upload(m->device, f->kept + f->layers[layer + 1].kept_at + (begin - mine.begin), from + (begin - at), end - begin);
    return GRAFT_OK;
}

static graft_status keep_parts(gr_model *m, int quantise, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t at = 0, before = NO_LAYER, largest = 0;
    for (int64_t i = 0; i < m->n_modules; i++)
        if (m->modules[i].entry) largest = GR_MAX(largest, bytes_of(m, &m->modules[i], quantise));
    char *made = quantise >= 0 ? gr_alloc_aligned(largest) : NULL;
    if (quantise >= 0 && !made) return gr_fail_memory(err, "quantised base");
    for (int64_t i = 0; i < m->n_modules; i++) {
        const gr_module *module = &m->modules[i];
        gr_weight *w = &module->linear->w;
        const int64_t layer = layer_of(m, module);
        if (layer == NO_LAYER) continue;
        if (layer != before) at = 0, before = layer;
        const gr_dtype type = type_of(m, module, quantise), was = w->dtype;
        GR_TRY(keep_part(m, module, type, at, made, err));
        w->dtype = type, w->data = m->frozen->place[layer & 1] + at;
        at += aligned(gr_dtype_bytes(type, module->out * module->in));
        if (type != was) gr_weights_release(m->weights, module->entry->name);
        else gr_weights_rest(m->weights, module->entry->view.data);
    }
done:
    free(made);
    return st;
}

graft_status gr_frozen_share(gr_model *m, int quantise, int rank, int size, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t place[2];
    GR_ASSERT(!m->frozen && !m->placed && !m->quantized);
    gr_frozen *f = m->frozen = gr_calloc(1, sizeof *f);
    if (!f || !(f->layers = gr_calloc(m->config.n_layers + 2, sizeof *f->layers))) GR_TRY(gr_fail_memory(err, "frozen weights"));
    f->rank = rank, f->size = size;
    const int64_t kept = measure(m, quantise, rank, size, f->layers, place);
    f->kept = m->device->alloc(m->device, GR_MAX(kept, 1));
    for (int i = 0; i < 2; i++) f->place[i] = m->device->alloc(m->device, GR_MAX(place[i], 1));
    if (!f->kept || !f->place[0] || !f->place[1])
        GR_TRY(gr_fail_device_memory(m->device, kept + place[0] + place[1], "frozen weights", err));
    GR_TRY(keep_parts(m, quantise, err));
    gr_note("base: this rank keeps %.1f MB of it; %.1f MB are places for layers of all ranks", (double)kept / 1e6,
            (double)(place[0] + place[1]) / 1e6);
done:
    return st;
}

void gr_frozen_free(gr_model *m) {
    gr_frozen *f = m->frozen;
    if (!f) return;
    m->device->free(m->device, f->kept);
    for (int i = 0; i < 2; i++) m->device->free(m->device, f->place[i]);
    free(f->layers);
    free(f);
    m->frozen = NULL;
}
