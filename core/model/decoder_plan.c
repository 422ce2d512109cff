/* decoder_plan.c - the plan of step memory: made once to measure, once to place, and allocated in one piece. */
#include <stdlib.h>

#include "core/model/decoder_impl.h"

/* Rows of logits held at once: for each chunk of rows the whole head is read, and unpacked, once forward and once backward. */
enum { HEAD_FLOATS = 48 << 20, HEAD_ROWS_MIN = 16, HEAD_ROWS_MAX = 256, HEAD_ROWS_MAX_FAR = 1024 };

typedef struct planner {
    gr_decoder *d;
    char *base; /* NULL: only measure */
    int64_t bytes;
} planner;

static void *place(planner *p, int64_t n, int64_t size) {
    void *at = p->base ? p->base + p->bytes : NULL;
    p->bytes += (n * size + 63) / 64 * 64;
    return at;
}

static float *floats(planner *p, int64_t n, int64_t width) { return place(p, n * width, sizeof(float)); }

gr_rows gr_decoder_rows(const gr_decoder *d, void *data, int64_t width, gr_dtype type) {
    return (gr_rows){.data = data, .ld = d->dev->row_stride(d->dev, width, type), .type = type};
}

static gr_rows rows_of(planner *p, int64_t n, int64_t width, gr_dtype type) {
    gr_rows rows = gr_decoder_rows(p->d, NULL, width, type);
    rows.data = place(p, n * rows.ld, gr_dtype_get(type)->block_bytes);
    return rows;
}

static gr_rows branch(planner *p, int64_t n, int64_t width) {
    return rows_of(p, n, width, p->d->dev->act_type(p->d->dev, p->d->m->compute));
}

static gr_rows stream(planner *p, int64_t n, int64_t width) { return rows_of(p, n, width, GR_DTYPE_F32); }

static gr_widths widths_of(const gr_model *m) {
    const gr_model_config *c = &m->config;
    gr_widths w = {.C = c->hidden,
                   .H = c->n_heads,
                   .D = c->head_dim,
                   .HD = c->n_heads * c->head_dim,
                   .KD = c->n_kv_heads * c->head_dim,
                   .F = c->ffn,
                   .V = c->vocab};
    w.QKV = w.HD + 2 * w.KD;
    w.widest = GR_MAX(w.C, GR_MAX(w.F, w.HD));
    w.head_rank = gr_group_rank(&m->head_group);
    for (int i = 0; i < m->embed.n_lora; i++) w.embed_rank = GR_MAX(w.embed_rank, m->embed.lora[i].rank);
    w.max_rank = GR_MAX(w.head_rank, w.embed_rank);
    for (int64_t i = 0; i < c->n_layers; i++)
        for (int s = 0; s < GR_SITE_COUNT; s++) {
            w.rank[s] = GR_MAX(w.rank[s], gr_group_rank(&m->layers[i].group[s]));
            w.max_rank = GR_MAX(w.max_rank, w.rank[s]);
        }
    return w;
}

int64_t gr_decoder_head_rows(const gr_model *m, const gr_decoder_options *o) {
    int64_t rows = HEAD_FLOATS / m->config.vocab;
    rows = GR_MIN(GR_MAX(rows, HEAD_ROWS_MIN), m->device->in_host ? HEAD_ROWS_MAX : HEAD_ROWS_MAX_FAR);
    return GR_MIN(rows, o->max_targets > 0 ? GR_MIN(o->max_targets, o->max_tokens) : o->max_tokens);
}

static void plan_layer(gr_layer_acts *a, planner *p, const gr_widths *w, int64_t n) {
    a->qkv = branch(p, n, w->QKV);
    a->att = branch(p, n, w->HD);
    a->lse = floats(p, n, w->H);
    a->xmid = stream(p, n, w->C);
    a->gu = branch(p, n, 2 * w->F);
    a->rstd1 = floats(p, n, 1);
    a->rstd2 = floats(p, n, 1);
    for (int s = 0; s < GR_SITE_COUNT; s++) a->h[s] = floats(p, n, w->rank[s]);
    if (p->d->m->qk_norm) {
        a->qk = branch(p, n, w->HD + w->KD);
        a->rstd_q = floats(p, n, w->H);
        a->rstd_k = floats(p, n, w->KD / w->D);
    }
    if (p->d->m->branch_norm) {
        a->att_out = branch(p, n, w->C), a->mlp_out = branch(p, n, w->C);
        a->rstd_att = floats(p, n, 1), a->rstd_mlp = floats(p, n, 1);
    }
}

static void plan_recomputed(gr_layer_acts *a, planner *p, const gr_widths *w, int64_t n) {
    a->n1 = branch(p, n, w->C);
    a->n2 = branch(p, n, w->C);
    a->act = branch(p, n, w->F);
}

static void plan_layers(gr_decoder *d, planner *p, const gr_widths *w) {
    int64_t n = d->o.max_tokens, L = d->m->config.n_layers;
    bool keep_layer = d->o.training && d->o.recompute != GR_RECOMPUTE_FULL;
    bool keep_cheap = d->o.training && d->o.recompute == GR_RECOMPUTE_NONE;
    gr_layer_acts shared = {0};
    if (!keep_layer) plan_layer(&shared, p, w, n);
    if (!keep_cheap) plan_recomputed(&shared, p, w, n);
    if (!d->o.training) shared.x = stream(p, n, w->C);
    for (int64_t i = 0; i < L; i++) {
        gr_layer_acts *a = &d->layers[i];
        *a = shared;
        if (d->o.training) a->x = stream(p, n, w->C);
        if (keep_layer) plan_layer(a, p, w, n);
        if (keep_cheap) plan_recomputed(a, p, w, n);
    }
    d->x_last = d->o.training ? stream(p, n, w->C) : shared.x;
    if (!d->o.training) d->last_x = stream(p, n, w->C);
}

static void plan_head(gr_decoder *d, planner *p, const gr_widths *w) {
    d->head_x = branch(p, d->head_rows, w->C);
    d->head_h = floats(p, d->head_rows, w->head_rank);
    d->nll = floats(p, d->o.max_tokens, 1);
    if (!d->o.training) d->best = place(p, d->o.max_tokens, sizeof *d->best);
    if (d->o.listings) d->list = place(p, d->o.listings, sizeof *d->list);
    if (d->m->rows_group.n) d->head_columns = stream(p, d->head_rows, d->m->head_rows.n);
    if (d->o.training) d->head_dx = branch(p, d->head_rows, w->C);
}

int64_t gr_device_batch_place(gr_device_batch *p, void *base, bool cached) {
    planner at = {.base = base};
    int64_t n_cached = cached ? p->n : 0, seqs_cached = cached ? p->n_seqs : 0;
    p->tokens = place(&at, p->n, sizeof *p->tokens);
    p->positions = place(&at, p->n, sizeof *p->positions);
    p->row_key = place(&at, p->n, sizeof *p->row_key);
    p->seqs = place(&at, p->n_seqs, sizeof *p->seqs);
    p->head_row = place(&at, p->n_head, sizeof *p->head_row);
    p->head_target = place(&at, p->n_head, sizeof *p->head_target);
    p->head_weight = place(&at, p->n_head, sizeof *p->head_weight);
    p->head_gradient = place(&at, p->n_head, sizeof *p->head_gradient);
    p->head_key = place(&at, p->n_head, sizeof *p->head_key);
    p->placed = place(&at, p->n_placed, sizeof *p->placed);
    p->placed_row = place(&at, p->n_placed, sizeof *p->placed_row);
    p->cache_row = place(&at, n_cached, sizeof *p->cache_row);
    p->last_row = place(&at, seqs_cached, sizeof *p->last_row);
    p->last_seqs = place(&at, seqs_cached, sizeof *p->last_seqs);
    return at.bytes;
}

static gr_device_batch largest_batch(const gr_decoder *d) {
    int64_t n = d->o.max_tokens;
    return (gr_device_batch){.n = n, .n_seqs = n, .n_head = n, .n_placed = d->m->embed_rows.n > 0 ? n : 0};
}

static void plan(gr_decoder *d, planner *p) {
    gr_widths w = d->w = widths_of(d->m);
    int64_t n = d->o.max_tokens;
    gr_device_batch largest = largest_batch(d);
    d->head_rows = gr_decoder_head_rows(d->m, &d->o);
    plan_layers(d, p, &w);
    plan_head(d, p, &w);
    for (int i = 0; i < gr_decoder_batches(d); i++)
        d->batch[i] = place(p, gr_device_batch_place(&largest, NULL, !d->o.training), 1);
    d->xf = branch(p, n, w.C);
    d->rstdf = floats(p, n, 1);
    if (w.embed_rank) d->embed_h = stream(p, n, w.embed_rank);
    if (w.embed_rank || d->m->embed_rows.n) d->embed_y = stream(p, n, w.C);
    if (d->o.dropout > 0 && d->o.training) d->xd = branch(p, n, w.widest).data, d->dxd = branch(p, n, w.widest).data;
    const gr_dtype type = d->dev->act_type(d->dev, d->m->compute);
    const bool rounds = type == GR_DTYPE_BF16; /* branches: half floats may not hold what float32 streams do */
    if (d->o.training) {
        d->dx = stream(p, n, w.C);
        d->dbranch = branch(p, n, w.C);
        d->dh = floats(p, n, w.max_rank);
    }
    if (rounds) d->branch = d->o.training ? d->dbranch : branch(p, n, w.C);
    int64_t shared = p->bytes;                /* the logits are done with before the layers' gradients begin */
    d->logits = stream(p, d->head_rows, w.V); /* floats: the host reads them */
    if (!d->o.training) return;
    int64_t end = p->bytes;
    p->bytes = shared;
    d->dqkv = branch(p, n, w.QKV);
    d->datt = branch(p, n, w.HD);
    d->dact = branch(p, n, w.F);
    if (d->m->branch_norm) d->dout = branch(p, n, w.C);
    else if (type != GR_DTYPE_F32) d->dy = branch(p, n, w.C);
    d->delta = floats(p, n, w.H);
    p->bytes = GR_MAX(p->bytes, end);
}

int64_t gr_decoder_plan_bytes(const gr_model *m, const gr_decoder_options *o) {
    gr_decoder d = {.m = (gr_model *)m, .dev = m->device, .o = *o, .layers = gr_calloc(m->config.n_layers, sizeof *d.layers)};
    planner measure = {.d = &d};
    if (!d.layers) return -1;
    plan(&d, &measure);
    free(d.layers);
    return measure.bytes;
}

/* ---- what needs a gradient ---- */

static bool linear_trains(const gr_linear *l) {
    if (l->dw || l->dbias) return true;
    for (int i = 0; i < l->n_lora; i++)
        if (l->lora[i].dA || l->lora[i].dB) return true;
    return false;
}

static bool layer_trains(const gr_layer *l) {
    const gr_vector *norms[] = {&l->input_norm, &l->post_norm, &l->q_norm, &l->k_norm, &l->attention_norm, &l->mlp_norm};
    bool trains = false;
    for (int i = 0; i < GR_LEN(norms); i++) trains |= norms[i]->dw != NULL;
    for (int s = 0; s < GR_SITE_COUNT; s++)
        for (int i = 0; i < l->group[s].n; i++) trains |= linear_trains(l->group[s].member[i]);
    return trains;
}

static void find_lowest(gr_decoder *d) {
    d->embed_trains = linear_trains(&d->m->embed) || linear_trains(&d->m->embed_rows.linear);
    d->lowest = 0;
    while (!d->embed_trains && d->lowest < d->m->config.n_layers && !layer_trains(&d->m->layers[d->lowest])) d->lowest++;
}

graft_status gr_decoder_new(gr_decoder **out, gr_model *m, const gr_decoder_options *o, graft_error *err) {
    graft_status st = GRAFT_OK;
    *out = NULL;
    if (!m->rope)
        return gr_fail(err, GRAFT_BAD_USAGE, "%s has no weights: only --dry-run works with a config.json",
                       gr_weights_path(m->weights));
    gr_decoder *d = gr_calloc(1, sizeof *d);
    if (!d || !(d->layers = gr_calloc(m->config.n_layers, sizeof *d->layers))) GR_TRY(gr_fail_memory(err, "decoder"));
    d->m = m, d->dev = m->device, d->o = *o;
    GR_TRY(gr_model_place(m, err));
    planner measure = {.d = d}, real = {.d = d};
    plan(d, &measure);
    gr_device_batch largest = largest_batch(d);
    d->staging = gr_alloc_aligned(gr_device_batch_place(&largest, NULL, !o->training));
    d->nll_staging = gr_calloc(o->max_tokens, sizeof *d->nll_staging);
    real.base = d->memory = d->dev->alloc(d->dev, measure.bytes);
    if (!d->staging || !d->nll_staging) GR_TRY(gr_fail_memory(err, "batch"));
    if (!d->memory) {
        char what[64];
        snprintf(what, sizeof what, "the activations of %lld tokens", (long long)o->max_tokens);
        GR_TRY(gr_fail_device_memory(d->dev, measure.bytes, what, err));
    }
    plan(d, &real);
    find_lowest(d);
    GR_TRY(gr_decoder_rehearse(d, &largest, err));
    *out = d;
    d = NULL;
done:
    gr_decoder_free(d);
    return st;
}

void gr_decoder_free(gr_decoder *d) {
    if (!d) return;
    if (d->memory) d->dev->free(d->dev, d->memory);
    free(d->staging);
    free(d->nll_staging);
    free(d->layers);
    free(d);
}
