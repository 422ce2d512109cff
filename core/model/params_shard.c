/* The parts of ranks. See params.h. */
#include "core/model/params.h"

static gr_range layer_of(const gr_params *p, const gr_param *item) {
    gr_range r = {item - p->items, item - p->items + 1};
    while (r.begin > 0 && p->items[r.begin - 1].layer == item->layer) r.begin--;
    while (r.end < p->n_items && p->items[r.end].layer == item->layer) r.end++;
    return r;
}

static int64_t end_of(const gr_param *item) { return item->offset + gr_params_whole(item->n); }

/* Elements of a rank's share of a layer; with sharding. */
static gr_range share_of(const gr_params *p, gr_range layer, int rank) {
    const int64_t begin = p->items[layer.begin].offset, end = end_of(&p->items[layer.end - 1]);
    const int64_t share = gr_params_whole((end - begin + p->form.size - 1) / p->form.size);
    return (gr_range){GR_MIN(end, begin + rank * share), GR_MIN(end, begin + (rank + 1) * share)};
}

/* What is in both; where nothing is, an empty range within b. */
static gr_range overlap(gr_range a, gr_range b) {
    const int64_t begin = GR_MIN(GR_MAX(a.begin, b.begin), b.end);
    return (gr_range){begin, GR_MAX(begin, GR_MIN(a.end, b.end))};
}

gr_range gr_params_own(const gr_params *p, const gr_param *item, int rank) {
    const gr_range all = {item->offset, end_of(item)};
    return p->form.sharded ? overlap(share_of(p, layer_of(p, item), rank), all) : all;
}

void gr_params_mine(const gr_params *p, int64_t item, int64_t *first, int64_t *n) {
    *first = p->items[item].first, *n = p->items[item].mine;
}

gr_range gr_params_layer(const gr_params *p, int64_t layer) {
    for (int64_t i = 0; i < p->n_items; i++)
        if (p->items[i].layer == layer) return layer_of(p, &p->items[i]);
    return (gr_range){0, 0};
}

gr_params_share gr_params_share_of(const gr_params *p, gr_range layer, int rank) {
    const gr_param *head = &p->items[layer.begin];
    const gr_range all = share_of(p, layer, rank);
    gr_params_share s = {.grad_at = head->grad_at + (all.begin - head->offset), .n = all.end - all.begin};
    for (int64_t i = layer.begin; i < layer.end; i++) {
        const gr_param *item = &p->items[i];
        const gr_range part = overlap(all, (gr_range){item->offset, end_of(item)});
        const int64_t n = part.end - part.begin, at = item->value_at + (part.begin - item->offset);
        const bool is_half = item->type != GR_DTYPE_F32;
        int64_t *where = is_half ? &s.half_at : &s.float_at, *count = is_half ? &s.n_halves : &s.n_floats;
        if (n > 0 && *count == 0) *where = at, *(is_half ? &s.kept_half_at : &s.kept_float_at) = item->kept_at;
        *count += n;
    }
    return s;
}
