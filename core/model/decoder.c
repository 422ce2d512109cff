/* The decoder, forward and backward side by side. x is the residual stream. Letters as in kernels/ops.def; n is the number of
 * rows of the flat batch. The stream is kept where the norms read it: every branch writes its output into a fresh buffer and the
 * next norm adds the old stream to it, so that nothing is copied. */
#include "core/model/decoder.h"

#include <stdlib.h>
#include <string.h>

enum { HEAD_FLOATS = 12 << 20, HEAD_ROWS_MIN = 16, HEAD_ROWS_MAX = 256 }; /* rows of logits held at once: about 48 MiB */

/* Inputs of fused products: each has one dropout mask. */
enum { SITE_QKV, SITE_O, SITE_GATE_UP, SITE_DOWN, SITES_PER_LAYER };

/* What backward reads of one layer. Buffers that are computed again are shared by all layers. */
typedef struct layer_acts {
    float *x, *rstd1;          /* [n,C] residual at the layer's input; [n] */
    float *n1;                 /* [n,C] input_norm(x) */
    float *qkv;                /* [n,(H+2K)D] q | k | v after rope */
    float *att, *lse;          /* [n,HD], [n,H] */
    float *xmid;               /* [n,C] residual after attention */
    float *rstd2;              /* [n] */
    float *n2;                 /* [n,C] post_norm(xmid) */
    float *gu, *act;           /* [n,2F] gate | up; [n,F] SwiGLU */
    float *h[SITES_PER_LAYER]; /* [n,sum of ranks] LoRA products */
} layer_acts;

typedef struct widths { /* of buffers, in floats a row */
    int64_t C, HD, KD, QKV, F, V, H, D, widest, rank[SITES_PER_LAYER], head_rank, embed_rank, max_rank;
} widths;

struct gr_decoder {
    gr_model *m;
    gr_device *dev;
    gr_decoder_options o;
    widths w;
    char *memory;                     /* the one allocation of the step */
    layer_acts *layers;               /* [L] */
    float *x_last;                    /* [n,C] output of the last layer, then the final stream */
    float *xf, *rstdf;                /* [n,C] final norm; [n] */
    float *logits;                    /* [head_rows,V] */
    float *head_x, *head_h, *head_dx; /* [head_rows,C], [head_rows,R], [head_rows,C] */
    float *head_nll, *head_weight;
    int32_t *head_idx, *head_target;
    uint64_t *head_key; /* [head_rows] randomness keys of the gathered rows */
    int64_t head_rows;
    float *xd; /* [n,widest input] a LoRA input after dropout */
    float *embed_h, *embed_y;
    gr_seq *seqs; /* [max_tokens] */
    /* backward */
    float *dx, *dbranch; /* [n,C] */
    float *dqkv, *datt, *dact, *delta, *dh, *dxd;
    int64_t lowest; /* layers below need no gradient; L: none needs one */
    bool embed_trains;
};

static int64_t linear_rank(const gr_linear *l) {
    int64_t rank = 0;
    for (int i = 0; i < l->n_lora; i++) rank += l->lora[i].rank;
    return rank;
}

static widths widths_of(const gr_model *m) {
    const gr_model_config *c = &m->config;
    widths w = {.C = c->hidden,
                .H = c->n_heads,
                .D = c->head_dim,
                .HD = c->n_heads * c->head_dim,
                .KD = c->n_kv_heads * c->head_dim,
                .F = c->ffn,
                .V = c->vocab};
    w.QKV = w.HD + 2 * w.KD;
    w.widest = GR_MAX(w.C, GR_MAX(w.F, w.HD));
    for (int64_t i = 0; i < c->n_layers; i++) {
        const gr_layer *l = &m->layers[i];
        const int64_t ranks[SITES_PER_LAYER] = {
            [SITE_QKV] = linear_rank(&l->q) + linear_rank(&l->k) + linear_rank(&l->v),
            [SITE_O] = linear_rank(&l->o),
            [SITE_GATE_UP] = linear_rank(&l->gate) + linear_rank(&l->up),
            [SITE_DOWN] = linear_rank(&l->down),
        };
        for (int s = 0; s < SITES_PER_LAYER; s++) w.rank[s] = GR_MAX(w.rank[s], ranks[s]);
    }
    w.head_rank = linear_rank(&m->head);
    for (int i = 0; i < m->n_embed_lora; i++) w.embed_rank = GR_MAX(w.embed_rank, m->embed_lora[i].rank);
    w.max_rank = GR_MAX(w.head_rank, w.embed_rank);
    for (int s = 0; s < SITES_PER_LAYER; s++) w.max_rank = GR_MAX(w.max_rank, w.rank[s]);
    return w;
}

/* ---- the plan of step memory: run once to measure (base NULL), once to place ---- */

typedef struct planner {
    char *base;
    int64_t bytes;
} planner;

static void *place(planner *p, int64_t n, int64_t size) {
    void *at = p->base ? p->base + p->bytes : NULL;
    p->bytes += (n * size + 63) / 64 * 64;
    return at;
}

static float *floats(planner *p, int64_t n, int64_t width) { return place(p, n * width, sizeof(float)); }

int64_t gr_decoder_head_rows(const gr_model *m, const gr_decoder_options *o) {
    int64_t rows = HEAD_FLOATS / m->config.vocab;
    rows = GR_MIN(GR_MAX(rows, HEAD_ROWS_MIN), HEAD_ROWS_MAX);
    return GR_MIN(rows, o->max_targets > 0 ? GR_MIN(o->max_targets, o->max_tokens) : o->max_tokens);
}

static void plan_layer(layer_acts *a, planner *p, const widths *w, int64_t n) {
    a->qkv = floats(p, n, w->QKV);
    a->att = floats(p, n, w->HD);
    a->lse = floats(p, n, w->H);
    a->xmid = floats(p, n, w->C);
    a->gu = floats(p, n, 2 * w->F);
    a->rstd1 = floats(p, n, 1);
    a->rstd2 = floats(p, n, 1);
    for (int s = 0; s < SITES_PER_LAYER; s++) a->h[s] = floats(p, n, w->rank[s]);
}

static void plan_recomputed(layer_acts *a, planner *p, const widths *w, int64_t n) {
    a->n1 = floats(p, n, w->C);
    a->n2 = floats(p, n, w->C);
    a->act = floats(p, n, w->F);
}

static void plan_layers(gr_decoder *d, planner *p, const widths *w) {
    int64_t n = d->o.max_tokens, L = d->m->config.n_layers;
    bool keep_layer = d->o.training && d->o.recompute != GR_RECOMPUTE_FULL;
    bool keep_cheap = d->o.training && d->o.recompute == GR_RECOMPUTE_NONE;
    layer_acts shared = {0};
    if (!keep_layer) plan_layer(&shared, p, w, n);
    if (!keep_cheap) plan_recomputed(&shared, p, w, n);
    float *shared_x = d->o.training ? NULL : floats(p, n, w->C);
    for (int64_t i = 0; i < L; i++) {
        layer_acts *a = &d->layers[i];
        *a = shared;
        a->x = d->o.training ? floats(p, n, w->C) : shared_x;
        if (keep_layer) plan_layer(a, p, w, n);
        if (keep_cheap) plan_recomputed(a, p, w, n);
    }
    d->x_last = d->o.training ? floats(p, n, w->C) : shared_x;
}

static void plan_head(gr_decoder *d, planner *p, const widths *w) {
    int64_t rows = d->head_rows;
    d->head_x = floats(p, rows, w->C);
    d->head_h = floats(p, rows, w->head_rank);
    d->head_nll = floats(p, rows, 1);
    d->head_weight = floats(p, rows, 1);
    d->head_idx = place(p, rows, sizeof(int32_t));
    d->head_target = place(p, rows, sizeof(int32_t));
    d->head_key = place(p, rows, sizeof(uint64_t));
    if (d->o.training) d->head_dx = floats(p, rows, w->C);
}

static void plan(gr_decoder *d, planner *p) {
    widths w = d->w = widths_of(d->m);
    int64_t n = d->o.max_tokens;
    d->head_rows = gr_decoder_head_rows(d->m, &d->o);
    plan_layers(d, p, &w);
    plan_head(d, p, &w);
    d->xf = floats(p, n, w.C);
    d->rstdf = floats(p, n, 1);
    d->seqs = place(p, n, sizeof *d->seqs);
    if (w.embed_rank) d->embed_h = floats(p, n, w.embed_rank), d->embed_y = floats(p, n, w.C);
    if (d->o.dropout > 0 && d->o.training) d->xd = floats(p, n, w.widest), d->dxd = floats(p, n, w.widest);
    if (d->o.training) {
        d->dx = floats(p, n, w.C);
        d->dbranch = floats(p, n, w.C);
        d->dh = floats(p, n, w.max_rank);
    }
    int64_t shared = p->bytes; /* the logits are done with before the layers' gradients begin */
    d->logits = floats(p, d->head_rows, w.V);
    if (!d->o.training) return;
    int64_t end = p->bytes;
    p->bytes = shared;
    d->dqkv = floats(p, n, w.QKV);
    d->datt = floats(p, n, w.HD);
    d->dact = floats(p, n, w.F);
    d->delta = floats(p, n, w.H);
    p->bytes = GR_MAX(p->bytes, end);
}

int64_t gr_decoder_plan_bytes(const gr_model *m, const gr_decoder_options *o) {
    planner measure = {0};
    gr_decoder d = {.m = (gr_model *)m, .o = *o, .layers = gr_calloc(m->config.n_layers, sizeof(layer_acts))};
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
    return l->input_norm.dw || l->post_norm.dw || linear_trains(&l->q) || linear_trains(&l->k) || linear_trains(&l->v) ||
           linear_trains(&l->o) || linear_trains(&l->gate) || linear_trains(&l->up) || linear_trains(&l->down);
}

static void find_lowest(gr_decoder *d) {
    d->embed_trains = d->m->dembed != NULL;
    for (int i = 0; i < d->m->n_embed_lora; i++) d->embed_trains |= d->m->embed_lora[i].dA || d->m->embed_lora[i].dB;
    d->lowest = 0;
    while (!d->embed_trains && d->lowest < d->m->config.n_layers && !layer_trains(&d->m->layers[d->lowest])) d->lowest++;
}

graft_status gr_decoder_new(gr_decoder **out, gr_model *m, const gr_decoder_options *o, graft_error *err) {
    graft_status st = GRAFT_OK;
    planner measure = {0}, real = {0};
    *out = NULL;
    if (!m->rope)
        return gr_fail(err, GRAFT_BAD_USAGE, "%s has no weights: only --dry-run works with a config.json",
                       gr_weights_path(m->weights));
    gr_decoder *d = gr_calloc(1, sizeof *d);
    if (!d || !(d->layers = gr_calloc(m->config.n_layers, sizeof *d->layers))) GR_TRY(gr_fail_memory(err, "decoder"));
    d->m = m;
    d->dev = m->device;
    d->o = *o;
    plan(d, &measure);
    real.base = d->memory = d->dev->alloc(d->dev, measure.bytes);
    if (!d->memory)
        GR_TRY(gr_fail(err, GRAFT_NO_MEMORY,
                       "out of memory: a step needs %.1f GiB (lower train.micro_batch_tokens or train.memory_limit)",
                       (double)measure.bytes / (1 << 30)));
    plan(d, &real);
    find_lowest(d);
    *out = d;
    d = NULL;
done:
    gr_decoder_free(d);
    return st;
}

void gr_decoder_free(gr_decoder *d) {
    if (!d) return;
    if (d->memory) d->dev->free(d->dev, d->memory);
    free(d->layers);
    free(d);
}

/* ---- one fused product: a group of linears that share an input, with the dropout of its LoRA input ---- */

typedef struct product {
    const gr_linear *group[3];
    int n_group;
    int64_t K, N; /* input width; sum of output widths */
    float *h;
    uint32_t site;
} product;

static product product_of(gr_decoder *d, int64_t layer, int site) {
    gr_layer *l = &d->m->layers[layer];
    product p = {.h = d->layers[layer].h[site], .site = (uint32_t)(layer * SITES_PER_LAYER + site)};
    const gr_linear *const members[SITES_PER_LAYER][3] = {
        [SITE_QKV] = {&l->q, &l->k, &l->v}, [SITE_O] = {&l->o}, [SITE_GATE_UP] = {&l->gate, &l->up}, [SITE_DOWN] = {&l->down}};
    for (; p.n_group < 3 && members[site][p.n_group]; p.n_group++) {
        p.group[p.n_group] = members[site][p.n_group];
        p.N += p.group[p.n_group]->w.rows;
    }
    p.K = p.group[0]->w.cols;
    return p;
}

static product head_product(gr_decoder *d) {
    const gr_linear *head = &d->m->head;
    return (product){.group = {head},
                     .n_group = 1,
                     .K = head->w.cols,
                     .N = head->w.rows,
                     .h = d->head_h,
                     .site = (uint32_t)(d->m->config.n_layers * SITES_PER_LAYER)};
}

static bool has_lora(const product *p) {
    for (int i = 0; i < p->n_group; i++)
        if (p->group[i]->n_lora) return true;
    return false;
}

/* The LoRA input: x, or x after dropout when training with it. */
static const float *lora_input(gr_decoder *d, const product *p, const float *x, const gr_batch *b, bool train) {
    if (!train || !d->xd || !has_lora(p)) return x;
    d->dev->ops->dropout(d->dev, d->xd, x, b->n, p->K, d->o.dropout, d->o.seed, b->row_key, p->site, false);
    return d->xd;
}

static void product_forward(gr_decoder *d, const product *p, float *y, const float *x, const gr_batch *b, bool train) {
    const float *xd = lora_input(d, p, x, b, train);
    d->dev->ops->linear_forward(d->dev, y, p->N, p->h, x, xd, p->group, p->n_group, b->n);
}

/* dx = (NULL: not wanted); the weights' gradients += */
static void product_backward(gr_decoder *d, const product *p, float *dx, const float *dy, const float *x, const gr_batch *b) {
    const float *xd = lora_input(d, p, x, b, true);
    float *dxd = xd != x ? d->dxd : NULL;
    d->dev->ops->linear_backward(d->dev, dx, false, dxd, d->dh, dy, p->N, x, xd, p->h, p->group, p->n_group, b->n);
    if (dxd && dx) d->dev->ops->dropout(d->dev, dx, dxd, b->n, p->K, d->o.dropout, d->o.seed, b->row_key, p->site, true);
}

/* ---- embedding ---- */

static void embed_forward(gr_decoder *d, float *x, const gr_batch *b) {
    const gr_ops *op = d->dev->ops;
    int64_t n = b->n, C = d->m->config.hidden;
    op->embed_forward(d->dev, x, &d->m->embed, b->tokens, n, 1.0f);
    for (int i = 0; i < d->m->n_embed_lora; i++) { /* x += scale * A^T[ids] B^T */
        const gr_lora *lora = &d->m->embed_lora[i];
        gr_weight At = {.dtype = GR_DTYPE_F32, .rows = d->m->config.vocab, .cols = lora->rank, .data = lora->A};
        gr_linear B = {.w = {.dtype = GR_DTYPE_F32, .rows = C, .cols = lora->rank, .data = lora->B}};
        const gr_linear *group[] = {&B};
        op->embed_forward(d->dev, d->embed_h, &At, b->tokens, n, lora->scale);
        op->linear_forward(d->dev, d->embed_y, C, NULL, d->embed_h, d->embed_h, group, 1, n);
        op->add(d->dev, x, d->embed_y, n * C);
    }
}

static void embed_backward(gr_decoder *d, const gr_batch *b) {
    const gr_ops *op = d->dev->ops;
    int64_t n = b->n, C = d->m->config.hidden;
    if (d->m->dembed) op->embed_backward(d->dev, d->m->dembed, d->dx, b->tokens, n, C, 1.0f);
    for (int i = 0; i < d->m->n_embed_lora; i++) {
        const gr_lora *lora = &d->m->embed_lora[i];
        if (!lora->dA && !lora->dB) continue;
        gr_weight At = {.dtype = GR_DTYPE_F32, .rows = d->m->config.vocab, .cols = lora->rank, .data = lora->A};
        gr_linear B = {.w = {.dtype = GR_DTYPE_F32, .rows = C, .cols = lora->rank, .data = lora->B}, .dw = lora->dB};
        const gr_linear *group[] = {&B};
        op->embed_forward(d->dev, d->embed_h, &At, b->tokens, n, lora->scale);
        op->linear_backward(d->dev, d->dh, false, NULL, NULL, d->dx, C, d->embed_h, d->embed_h, NULL, group, 1, n);
        if (lora->dA) op->embed_backward(d->dev, lora->dA, d->dh, b->tokens, n, lora->rank, lora->scale);
    }
}

/* ---- one layer ---- */

/* New rows of a KV cache: where the layer's keys and values go, and are read from. NULL in training. */
typedef struct cache_view {
    float *kv; /* [n_slots*max_len, 2KD] of this layer */
    gr_kv_panels panels;
    const int32_t *rows; /* [n] cache row of each batch row */
} cache_view;

static void attention(gr_decoder *d, layer_acts *a, const gr_batch *b, const cache_view *cache) {
    widths w = d->w;
    const gr_ops *op = d->dev->ops;
    const float *k = a->qkv + w.HD, *v = k + w.KD;
    int64_t ldkv = w.QKV;
    if (cache) {
        for (int64_t r = 0; r < b->n; r++)
            op->scatter_rows(d->dev, cache->kv, a->qkv + r * w.QKV + w.HD, &cache->rows[r], 1, 2 * w.KD);
        k = cache->kv, v = k + w.KD, ldkv = 2 * w.KD;
    }
    float scale = 1.0f / __builtin_sqrtf((float)w.D);
    op->attention_forward(d->dev, a->att, w.HD, a->lse, a->qkv, w.QKV, k, v, ldkv, d->seqs, b->n_seqs, w.H, d->m->config.n_kv_heads,
                          w.D, scale, d->m->compute, cache ? &cache->panels : NULL);
}

/* The last row of each sequence of b moves to the front of x. */
static void last_rows_first(gr_decoder *d, float *x, int64_t width, const gr_batch *b) {
    for (int64_t s = 0; s < b->n_seqs; s++) {
        int32_t row = (int32_t)b->offset[s + 1] - 1;
        if (row != s) d->dev->ops->gather_rows(d->dev, x + s * width, x, &row, 1, width);
    }
}

/* x_in is the layer's input stream without `add` (the branch still to be added; NULL: none); ends with a->xmid and the down product
 * in y, which together are the next layer's stream. last_rows: all that follows the keys and values is done for the last row of
 * each sequence alone; they then stand in front. */
static void layer_forward(gr_decoder *d, int64_t i, const float *add, float *y, const gr_batch *b, const cache_view *cache,
                          bool train, bool last_rows) {
    const gr_ops *op = d->dev->ops;
    const gr_model_config *c = &d->m->config;
    const gr_layer *l = &d->m->layers[i];
    layer_acts *a = &d->layers[i];
    int64_t n = b->n, C = c->hidden, QKV = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    product qkv = product_of(d, i, SITE_QKV), o = product_of(d, i, SITE_O);
    product gate_up = product_of(d, i, SITE_GATE_UP), down = product_of(d, i, SITE_DOWN);

    op->rmsnorm_forward(d->dev, a->n1, a->rstd1, a->x, add, l->input_norm.w, n, C, c->norm_eps);
    product_forward(d, &qkv, a->qkv, a->n1, b, train);
    op->rope(d->dev, a->qkv, QKV, b->positions, d->m->rope, n, c->n_heads + c->n_kv_heads, c->head_dim, false);
    for (int64_t s = 0; last_rows && s < b->n_seqs; s++) d->seqs[s].q_start += d->seqs[s].q_len - 1, d->seqs[s].q_len = 1;
    attention(d, a, b, cache);
    gr_batch rest = *b;
    if (last_rows) {
        last_rows_first(d, a->att, c->n_heads * c->head_dim, b);
        last_rows_first(d, a->x, C, b);
        rest.n = b->n_seqs;
    }
    product_forward(d, &o, a->xmid, a->att, &rest, train);
    op->rmsnorm_forward(d->dev, a->n2, a->rstd2, a->xmid, a->x, l->post_norm.w, rest.n, C, c->norm_eps);
    product_forward(d, &gate_up, a->gu, a->n2, &rest, train);
    op->swiglu_forward(d->dev, a->act, a->gu, rest.n, c->ffn);
    if (y) product_forward(d, &down, y, a->act, &rest, train);
}

/* What the plan did not keep is computed again: the same operations on the same input give the same bits. */
static void layer_recompute(gr_decoder *d, int64_t i, const gr_batch *b) {
    const gr_ops *op = d->dev->ops;
    const gr_model_config *c = &d->m->config;
    layer_acts *a = &d->layers[i];
    if (d->o.recompute == GR_RECOMPUTE_NONE) return;
    if (d->o.recompute == GR_RECOMPUTE_FULL) {
        layer_forward(d, i, NULL, NULL, b, NULL, true, false);
        product down = product_of(d, i, SITE_DOWN);
        if (has_lora(&down)) product_forward(d, &down, d->dbranch, a->act, b, true); /* for its LoRA products */
        return;
    }
    op->rmsnorm_forward(d->dev, a->n1, a->rstd1, a->x, NULL, d->m->layers[i].input_norm.w, b->n, c->hidden, c->norm_eps);
    op->rmsnorm_forward(d->dev, a->n2, a->rstd2, a->xmid, NULL, d->m->layers[i].post_norm.w, b->n, c->hidden, c->norm_eps);
    op->swiglu_forward(d->dev, a->act, a->gu, b->n, c->ffn);
}

/* d->dx: gradient of the layer's output stream on entry, of its input stream on return (below: something there wants it). */
static void layer_backward(gr_decoder *d, int64_t i, const gr_batch *b, bool below) {
    const gr_ops *op = d->dev->ops;
    const gr_layer *l = &d->m->layers[i];
    layer_acts *a = &d->layers[i];
    widths w = d->w;
    int64_t n = b->n;
    product qkv = product_of(d, i, SITE_QKV), o = product_of(d, i, SITE_O);
    product gate_up = product_of(d, i, SITE_GATE_UP), down = product_of(d, i, SITE_DOWN);

    layer_recompute(d, i, b);
    product_backward(d, &down, d->dact, d->dx, a->act, b);
    op->swiglu_backward(d->dev, a->gu, d->dact, a->gu, n, w.F); /* in place: nothing reads them again */
    product_backward(d, &gate_up, d->dbranch, a->gu, a->n2, b);
    op->rmsnorm_backward(d->dev, d->dx, l->post_norm.dw, d->dbranch, a->xmid, a->rstd2, l->post_norm.w, n, w.C);
    product_backward(d, &o, d->datt, d->dx, a->att, b);
    op->attention_backward(d->dev, d->dqkv, d->dqkv + w.HD, d->dqkv + w.HD + w.KD, d->delta, d->datt, w.HD, a->qkv, w.QKV,
                           a->qkv + w.HD, a->qkv + w.HD + w.KD, w.QKV, a->att, a->lse, d->seqs, b->n_seqs, w.H,
                           d->m->config.n_kv_heads, w.D, 1.0f / __builtin_sqrtf((float)w.D), d->m->compute);
    op->rope(d->dev, d->dqkv, w.QKV, b->positions, d->m->rope, n, w.H + d->m->config.n_kv_heads, w.D, true);
    bool through_norm = below || l->input_norm.dw;
    product_backward(d, &qkv, through_norm ? d->dbranch : NULL, d->dqkv, a->n1, b);
    if (through_norm) op->rmsnorm_backward(d->dev, d->dx, l->input_norm.dw, d->dbranch, a->x, a->rstd1, l->input_norm.w, n, w.C);
}

/* ---- the stack ---- */

/* Rows through all layers and the final norm: d->xf; with a cache only the last row of each sequence, in order. */
static void stack_forward(gr_decoder *d, const gr_batch *b, gr_kv_cache *cache, const int32_t *cache_rows, bool train) {
    const gr_model_config *c = &d->m->config;
    int64_t L = c->n_layers, stride = cache ? cache->n_slots * cache->max_len * 2 * c->n_kv_heads * c->head_dim : 0;
    embed_forward(d, d->layers[0].x, b);
    for (int64_t i = 0; i < L; i++) {
        cache_view view = {.rows = cache_rows};
        if (cache)
            view.kv = cache->kv + i * stride,
            view.panels = (gr_kv_panels){cache->panels + i * cache->panel_floats,
                                         cache->packed + i * cache->n_slots * c->n_kv_heads, cache->max_len, cache->blocks};
        const float *add = i > 0 ? d->layers[i - 1].xmid : NULL;
        layer_forward(d, i, add, i + 1 < L ? d->layers[i + 1].x : d->x_last, b, cache ? &view : NULL, train, cache && i + 1 == L);
    }
    d->dev->ops->rmsnorm_forward(d->dev, d->xf, d->rstdf, d->x_last, d->layers[L - 1].xmid, d->m->norm.w, cache ? b->n_seqs : b->n,
                                 c->hidden, c->norm_eps);
}

/* d->dx from the gradient of d->xf (in d->dbranch) down to the embedding. */
static void stack_backward(gr_decoder *d, const gr_batch *b) {
    const gr_model_config *c = &d->m->config;
    memset(d->dx, 0, (size_t)(b->n * c->hidden) * sizeof *d->dx);
    d->dev->ops->rmsnorm_backward(d->dev, d->dx, d->m->norm.dw, d->dbranch, d->x_last, d->rstdf, d->m->norm.w, b->n, c->hidden);
    for (int64_t i = c->n_layers - 1; i >= d->lowest; i--) layer_backward(d, i, b, i > d->lowest || d->embed_trains);
    if (d->embed_trains) embed_backward(d, b);
}

static void training_seqs(gr_decoder *d, const gr_batch *b) {
    for (int64_t s = 0; s < b->n_seqs; s++) {
        int64_t start = b->offset[s], len = b->offset[s + 1] - start;
        d->seqs[s] = (gr_seq){.q_start = start, .q_len = len, .kv_start = start, .kv_len = len};
    }
}

/* ---- head and loss: only rows that have a target, some at a time ---- */

static int64_t next_head_rows(gr_decoder *d, const gr_batch *b, int64_t *row) {
    int64_t count = 0;
    for (; *row < b->n && count < d->head_rows; ++*row) {
        if (b->weight[*row] == 0) continue;
        d->head_idx[count] = (int32_t)*row;
        d->head_target[count] = b->targets[*row];
        d->head_key[count] = b->row_key[*row];
        d->head_weight[count++] = b->weight[*row];
    }
    return count;
}

/* nll of every row with a target; with train also d->dbranch = gradient of d->xf, and the head's own gradients. */
static void head_loss(gr_decoder *d, const gr_batch *b, float scale, float *nll, bool train) {
    const gr_ops *op = d->dev->ops;
    int64_t C = d->m->config.hidden, V = d->m->config.vocab, row = 0, count;
    product head = head_product(d);
    memset(nll, 0, (size_t)b->n * sizeof *nll);
    if (train) memset(d->dbranch, 0, (size_t)(b->n * C) * sizeof *d->dbranch);
    while ((count = next_head_rows(d, b, &row)) > 0) {
        const gr_batch gathered = {.n = count, .row_key = d->head_key};
        op->gather_rows(d->dev, d->head_x, d->xf, d->head_idx, count, C);
        product_forward(d, &head, d->logits, d->head_x, &gathered, train);
        for (int64_t i = 0; i < count; i++) d->head_weight[i] *= scale;
        op->cross_entropy(d->dev, d->head_nll, d->logits, d->head_target, train ? d->head_weight : NULL, count, V);
        for (int64_t i = 0; i < count; i++) nll[d->head_idx[i]] = d->head_nll[i];
        if (!train) continue;
        product_backward(d, &head, d->head_dx, d->logits, d->head_x, &gathered);
        op->scatter_rows(d->dev, d->dbranch, d->head_dx, d->head_idx, count, C);
    }
}

/* ---- entry points ---- */

static graft_status check_batch(const gr_decoder *d, const gr_batch *b, graft_error *err) {
    if (b->n > d->o.max_tokens)
        return gr_fail(err, GRAFT_FAILED, "a batch of %lld tokens is larger than the planned %lld", (long long)b->n,
                       (long long)d->o.max_tokens);
    for (int64_t i = 0; i < b->n; i++) {
        if (b->positions[i] < 0 || b->positions[i] >= d->m->rope_positions)
            return gr_fail(err, GRAFT_BAD_USAGE,
                           "%s: a sequence has more than %lld tokens, the %s: shorten the data with max_length",
                           gr_weights_path(d->m->weights), (long long)d->m->rope_positions, gr_config_limit(&d->m->config));
        if (b->tokens[i] < 0 || b->tokens[i] >= d->m->config.vocab)
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "token id %d is outside the model's vocabulary of %lld: does the tokenizer belong to this model?",
                           b->tokens[i], (long long)d->m->config.vocab);
        if (b->weight[i] != 0 && (b->targets[i] < 0 || b->targets[i] >= d->m->config.vocab))
            return gr_fail(err, GRAFT_BAD_INPUT, "target id %d is outside the model's vocabulary of %lld", b->targets[i],
                           (long long)d->m->config.vocab);
    }
    return GRAFT_OK;
}

graft_status gr_decoder_eval(gr_decoder *d, const gr_batch *b, float *nll, graft_error *err) {
    graft_status st;
    GR_TRY(check_batch(d, b, err));
    training_seqs(d, b);
    stack_forward(d, b, NULL, NULL, false);
    head_loss(d, b, 1.0f, nll, false);
done:
    return st;
}

graft_status gr_decoder_train(gr_decoder *d, const gr_batch *b, float scale, float *nll, graft_error *err) {
    graft_status st;
    GR_ASSERT(d->o.training);
    GR_TRY(check_batch(d, b, err));
    training_seqs(d, b);
    stack_forward(d, b, NULL, NULL, true);
    head_loss(d, b, scale, nll, true);
    stack_backward(d, b);
done:
    return st;
}

static void head_logits(gr_decoder *d, const int32_t *rows, int64_t n_rows, float *logits) {
    const gr_ops *op = d->dev->ops;
    int64_t C = d->m->config.hidden, V = d->m->config.vocab;
    product head = head_product(d);
    for (int64_t first = 0, count; first < n_rows; first += count) {
        count = GR_MIN(d->head_rows, n_rows - first);
        op->gather_rows(d->dev, d->head_x, d->xf, rows + first, count, C);
        op->linear_forward(d->dev, logits + first * V, V, d->head_h, d->head_x, d->head_x, head.group, 1, count);
    }
}

graft_status gr_decoder_logits(gr_decoder *d, const gr_batch *b, const int32_t *rows, int64_t n_rows, float *logits,
                               graft_error *err) {
    graft_status st;
    GR_TRY(check_batch(d, b, err));
    training_seqs(d, b);
    stack_forward(d, b, NULL, NULL, false);
    head_logits(d, rows, n_rows, logits);
done:
    return st;
}

graft_status gr_kv_cache_init(gr_kv_cache *c, const gr_model *m, int64_t n_slots, int64_t max_len, graft_error *err) {
    const gr_model_config *g = &m->config;
    int64_t floats_each = 2 * g->n_kv_heads * g->head_dim * g->n_layers, wide = (g->head_dim + 31) / 32 * 32, n, block;
    *c = (gr_kv_cache){
        .n_slots = n_slots, .max_len = max_len, .device = m->device, .blocks = (max_len + GR_KV_BLOCK - 1) / GR_KV_BLOCK};
    if (!gr_mul_ok(&n, floats_each * (int64_t)sizeof(float), n_slots) || !gr_mul_ok(&n, n, max_len) ||
        !gr_mul_ok(&block, 2 * GR_KV_BLOCK * wide * g->n_kv_heads * g->n_layers * (int64_t)sizeof(float), n_slots) ||
        !gr_mul_ok(&block, block, c->blocks))
        return gr_fail_memory(err, "KV cache");
    c->panel_floats = block / g->n_layers / (int64_t)sizeof(float);
    c->len = gr_calloc(n_slots, sizeof *c->len);
    c->packed = gr_calloc(n_slots * g->n_kv_heads * g->n_layers, sizeof *c->packed);
    c->kv = m->device->alloc(m->device, n);
    c->panels = m->device->alloc(m->device, block);
    if (!c->len || !c->packed || !c->kv || !c->panels) {
        gr_kv_cache_release(c);
        return gr_fail_memory(err, "KV cache");
    }
    return GRAFT_OK;
}

int64_t gr_kv_cache_bytes(const gr_model *m, int64_t n_slots, int64_t max_len) {
    const gr_model_config *g = &m->config;
    int64_t blocks = (max_len + GR_KV_BLOCK - 1) / GR_KV_BLOCK, wide = (g->head_dim + 31) / 32 * 32;
    return m->device->footprint(2 * g->n_kv_heads * g->head_dim * g->n_layers * 4 * n_slots * max_len) +
           m->device->footprint(2 * GR_KV_BLOCK * wide * g->n_kv_heads * g->n_layers * 4 * n_slots * blocks);
}

void gr_kv_cache_release(gr_kv_cache *c) {
    if (c->kv) c->device->free(c->device, c->kv);
    if (c->panels) c->device->free(c->device, c->panels);
    free(c->packed);
    free(c->len);
    *c = (gr_kv_cache){0};
}

/* Panels of a slot from its `filled` rows on are no longer what the cache holds. */
static void forget_panels(gr_kv_cache *c, const gr_model_config *g, int64_t slot, int64_t filled) {
    for (int64_t i = 0; i < g->n_layers * g->n_kv_heads; i++) {
        int32_t *packed = &c->packed[(i / g->n_kv_heads * c->n_slots + slot) * g->n_kv_heads + i % g->n_kv_heads];
        if (*packed > filled) *packed = (int32_t)(filled / GR_KV_BLOCK * GR_KV_BLOCK);
    }
}

graft_status gr_decoder_step(gr_decoder *d, const gr_batch *b, gr_kv_cache *c, const int32_t *slots, float *logits,
                             graft_error *err) {
    graft_status st;
    int32_t *rows = gr_calloc(b->n + b->n_seqs, sizeof *rows), *of_seq = rows + b->n; /* in the cache; of d->xf */
    if (!rows) return gr_fail_memory(err, "decoding");
    GR_TRY(check_batch(d, b, err));
    for (int64_t s = 0; s < b->n_seqs; s++) {
        int64_t start = b->offset[s], len = b->offset[s + 1] - start, filled = c->len[slots[s]], base = slots[s] * c->max_len;
        if (filled + len > c->max_len)
            GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "%lld tokens do not fit the cache of %lld positions", (long long)(filled + len),
                           (long long)c->max_len));
        for (int64_t i = 0; i < len; i++) rows[start + i] = (int32_t)(base + filled + i);
        forget_panels(c, &d->m->config, slots[s], filled);
        d->seqs[s] = (gr_seq){.q_start = start, .q_len = len, .kv_start = base, .kv_len = filled + len};
        of_seq[s] = (int32_t)s;
    }
    stack_forward(d, b, c, rows, false);
    head_logits(d, of_seq, b->n_seqs, logits);
    for (int64_t s = 0; s < b->n_seqs; s++) c->len[slots[s]] += b->offset[s + 1] - b->offset[s];
done:
    free(rows);
    return st;
}
