/* The decoder, forward and backward side by side. x is the residual stream. Letters as in kernels/ops.def; n is the number of
 * rows of the flat batch. The stream is kept where the norms read it: the next norm adds a branch's output and the old stream up in
 * a fresh buffer, where the output is already unless it is rounded, so that nothing is copied. All is queued on the device; only
 * results are waited for. */
#include <stdlib.h>
#include <string.h>

#include "core/model/decoder_impl.h"

static const gr_rows NONE = {0};

/* Rows that run through the stack: a batch on the device, in training or through a KV cache. */
typedef struct pass {
    gr_device_batch b;
    int64_t n;          /* rows: of the batch, or the last of each sequence */
    const gr_kv *cache; /* [L]; NULL: none */
    bool train;         /* with dropout */
} pass;

static void enter_without_weights(const gr_decoder *d, int64_t layer) {
    if (d->o.hooks) d->o.hooks->enter(d->o.hooks->context, layer);
}

static void enter(const gr_decoder *d, int64_t layer) {
    if (!d->rehearses) gr_model_bring(d->m, layer);
    enter_without_weights(d, layer);
}

static void leave(const gr_decoder *d, int64_t layer) {
    if (d->o.hooks) d->o.hooks->leave(d->o.hooks->context, layer);
}

static void gradient_ready(const gr_decoder *d, int64_t layer) {
    if (d->o.hooks) d->o.hooks->gradient_ready(d->o.hooks->context, layer);
}

/* ---- a product: a group of linears that share an input, with the dropout of its LoRA input ---- */

static gr_product product(const gr_decoder *d, const gr_group *g, float *h, gr_rows x, gr_rows y) {
    return (gr_product){.group = g, .x = x, .y = y, .h = h, .dh = d->dh};
}

/* Each fused input has one dropout mask: that of its site. */
static void with_dropout(const gr_decoder *d, gr_product *p, gr_dropout *drop, int64_t site, const uint64_t *row_key) {
    if (!d->xd) return;
    int64_t K = gr_group_inputs(p->group);
    *drop = (gr_dropout){d->o.dropout, d->o.seed, row_key, (uint32_t)site};
    p->dropout = drop;
    p->xd = gr_decoder_rows(d, d->xd, K, p->x.type), p->dxd = gr_decoder_rows(d, d->dxd, K, p->x.type);
}

static void linear_forward(gr_decoder *d, int64_t i, gr_site site, gr_rows y, gr_rows x, const pass *r) {
    gr_dropout drop;
    gr_product p = product(d, &d->m->layers[i].group[site], d->layers[i].h[site], x, y);
    if (r->train) with_dropout(d, &p, &drop, i * GR_SITE_COUNT + site, r->b.row_key);
    d->dev->ops->linear_forward(d->dev, &p, r->n);
}

/* dx = (NONE: not wanted); the weights' gradients += */
static void linear_backward(gr_decoder *d, int64_t i, gr_site site, gr_rows dx, gr_rows dy, gr_rows x, const pass *r) {
    gr_dropout drop;
    gr_product p = product(d, &d->m->layers[i].group[site], d->layers[i].h[site], x, dy);
    with_dropout(d, &p, &drop, i * GR_SITE_COUNT + site, r->b.row_key);
    d->dev->ops->linear_backward(d->dev, &p, dx, false, r->n);
}

/* ---- norms ---- */

static gr_norm norm_of(const gr_decoder *d, const gr_vector *v, int64_t parts, int64_t width) {
    return (gr_norm){.w = v->w, .dw = v->dw, .eps = d->m->config.norm_eps, .parts = parts, .width = width};
}

/* out = norm(x). */
static void norm_forward(gr_decoder *d, gr_rows out, float *rstd, gr_rows x, const gr_vector *v, int64_t n) {
    gr_norm p = norm_of(d, v, 1, d->w.C);
    d->dev->ops->rmsnorm_forward(d->dev, out, rstd, NONE, x, NONE, &p, n);
}

/* dx = */
static void norm_backward(gr_decoder *d, gr_rows dx, gr_rows dout, gr_rows x, const float *rstd, const gr_vector *v, int64_t n) {
    gr_norm p = norm_of(d, v, 1, d->w.C);
    d->dev->ops->rmsnorm_backward(d->dev, dx, NONE, false, dout, x, rstd, &p, n);
}

/* Where the branch goes that will be added to the stream in `sum`. */
static gr_rows branch_for(const gr_decoder *d, gr_rows sum) { return d->branch.data ? d->branch : sum; }

/* out = norm(sum), sum = x + the branch before; x NONE: sum is there already. */
static void stream_norm_forward(gr_decoder *d, gr_rows out, float *rstd, gr_rows sum, gr_rows x, const gr_vector *v, int64_t n) {
    gr_norm p = norm_of(d, v, 1, d->w.C);
    d->dev->ops->rmsnorm_forward(d->dev, out, rstd, sum, x.data ? x : sum, x.data ? branch_for(d, sum) : NONE, &p, n);
}

/* d->dx += */
static void stream_norm_backward(gr_decoder *d, gr_rows dout, gr_rows x, const float *rstd, const gr_vector *v, int64_t n) {
    gr_norm p = norm_of(d, v, 1, d->w.C);
    d->dev->ops->rmsnorm_backward(d->dev, d->dx, d->dy, true, dout, x, rstd, &p, n);
}

/* Norms of the heads of q and k, where the layer has them: in place, what was there goes to a->qk. */
static void qk_norm_forward(gr_decoder *d, int64_t i, int64_t n) {
    const gr_layer *l = &d->m->layers[i];
    gr_layer_acts *a = &d->layers[i];
    gr_widths w = d->w;
    if (!d->m->qk_norm) return;
    gr_norm q = norm_of(d, &l->q_norm, w.H, w.D), k = norm_of(d, &l->k_norm, w.KD / w.D, w.D);
    gr_rows at_k = gr_rows_at(a->qkv, 0, w.HD), k_before = gr_rows_at(a->qk, 0, w.HD);
    d->dev->zero(d->dev, a->qk.data, n * a->qk.ld * gr_dtype_get(a->qk.type)->block_bytes);
    d->dev->ops->rmsnorm_forward(d->dev, a->qkv, a->rstd_q, a->qk, a->qk, a->qkv, &q, n);
    d->dev->ops->rmsnorm_forward(d->dev, at_k, a->rstd_k, k_before, k_before, at_k, &k, n);
}

static void qk_norm_backward(gr_decoder *d, int64_t i, int64_t n) {
    const gr_layer *l = &d->m->layers[i];
    const gr_layer_acts *a = &d->layers[i];
    gr_widths w = d->w;
    if (!d->m->qk_norm) return;
    gr_norm q = norm_of(d, &l->q_norm, w.H, w.D), k = norm_of(d, &l->k_norm, w.KD / w.D, w.D);
    gr_rows dk = gr_rows_at(d->dqkv, 0, w.HD);
    d->dev->ops->rmsnorm_backward(d->dev, d->dqkv, NONE, false, d->dqkv, a->qk, a->rstd_q, &q, n);
    d->dev->ops->rmsnorm_backward(d->dev, dk, NONE, false, dk, gr_rows_at(a->qk, 0, w.HD), a->rstd_k, &k, n);
}

/* ---- embedding ---- */

/* The two factors of a LoRA on the embedding, which is scaled as its rows are: x += scale * A^T[ids] B^T. */
static float embed_lora_scale(const gr_decoder *d, const gr_lora *lora) {
    return lora->scale * gr_config_embed_scale(&d->m->config);
}

static gr_weight embed_A(const gr_decoder *d, const gr_lora *lora) {
    return (gr_weight){.dtype = GR_DTYPE_F32, .rows = d->m->config.vocab, .cols = lora->rank, .data = lora->A};
}

static gr_linear embed_B(const gr_decoder *d, const gr_lora *lora) {
    return (gr_linear){.w = {.dtype = GR_DTYPE_F32, .rows = d->w.C, .cols = lora->rank, .data = lora->B}, .dw = lora->dB};
}

static void embed_forward(gr_decoder *d, gr_rows x, const pass *r) {
    const gr_ops *op = d->dev->ops;
    const gr_linear *embed = &d->m->embed;
    float scale = gr_config_embed_scale(&d->m->config);
    enter(d, -1);
    op->embed_forward(d->dev, x, &embed->w, r->b.tokens, r->n, scale);
    if (r->b.n_placed) { /* tokens of the other segment */
        op->embed_forward(d->dev, d->embed_y, &d->m->embed_rows.linear.w, r->b.placed_row, r->b.n_placed, scale);
        op->scatter_rows(d->dev, x, d->embed_y, r->b.placed, r->b.n_placed, d->w.C);
    }
    for (int i = 0; i < embed->n_lora; i++) {
        gr_weight A = embed_A(d, &embed->lora[i]);
        gr_linear B = embed_B(d, &embed->lora[i]);
        gr_group g = {.member = {&B}, .n = 1};
        gr_rows h = gr_decoder_rows(d, d->embed_h.data, A.cols, GR_DTYPE_F32);
        gr_product p = product(d, &g, NULL, h, d->embed_y);
        op->embed_forward(d->dev, h, &A, r->b.tokens, r->n, embed_lora_scale(d, &embed->lora[i]));
        op->linear_forward(d->dev, &p, r->n);
        op->add(d->dev, x, d->embed_y, r->n, d->w.C);
    }
    leave(d, -1);
}

static void embed_backward(gr_decoder *d, const pass *r) {
    const gr_ops *op = d->dev->ops;
    const gr_linear *embed = &d->m->embed;
    float scale = gr_config_embed_scale(&d->m->config);
    enter_without_weights(d, -1);
    float *drows = d->m->embed_rows.linear.dw;
    if (embed->dw) op->embed_backward(d->dev, embed->dw, d->dx, r->b.tokens, r->n, d->w.C, scale);
    if (drows && r->b.n_placed) {
        op->gather_rows(d->dev, d->embed_y, d->dx, r->b.placed, r->b.n_placed, d->w.C);
        op->embed_backward(d->dev, drows, d->embed_y, r->b.placed_row, r->b.n_placed, d->w.C, scale);
    }
    for (int i = 0; i < embed->n_lora; i++) {
        const gr_lora *lora = &embed->lora[i];
        if (!lora->dA && !lora->dB) continue;
        gr_weight A = embed_A(d, lora);
        gr_linear B = embed_B(d, lora);
        gr_group g = {.member = {&B}, .n = 1};
        gr_rows h = gr_decoder_rows(d, d->embed_h.data, A.cols, GR_DTYPE_F32), dh = {d->dh, A.cols, GR_DTYPE_F32};
        gr_product p = product(d, &g, NULL, h, d->dx);
        op->embed_forward(d->dev, h, &A, r->b.tokens, r->n, embed_lora_scale(d, lora));
        op->linear_backward(d->dev, &p, dh, false, r->n);
        if (lora->dA) op->embed_backward(d->dev, lora->dA, dh, r->b.tokens, r->n, A.cols, embed_lora_scale(d, lora));
    }
    leave(d, -1);
    gradient_ready(d, -1);
}

/* ---- one layer ---- */

static gr_attention attention_of(const gr_decoder *d, int64_t i, const pass *r) {
    const gr_layer_acts *a = &d->layers[i];
    const gr_layer_desc *l = &d->m->layers[i].desc;
    gr_widths w = d->w;
    gr_attention at = {.q = a->qkv,
                       .k = gr_rows_at(a->qkv, 0, w.HD),
                       .v = gr_rows_at(a->qkv, 0, w.HD + w.KD),
                       .out = a->att,
                       .lse = a->lse,
                       .seqs = r->b.seqs,
                       .n_seqs = r->b.n_seqs,
                       .H = w.H,
                       .K = w.KD / w.D,
                       .D = w.D,
                       .scale = l->attention_scale,
                       .window = l->window,
                       .softcap = l->softcap,
                       .compute = d->m->compute};
    if (!r->cache) return at;
    at.kv = &r->cache[i];
    at.k = at.kv->rows, at.v = gr_rows_at(at.kv->rows, 0, w.KD);
    return at;
}

/* From the stream x, to which the branch is still to be added, to a->att; a->x becomes their sum. x NONE: it is there. */
static void attention_forward(gr_decoder *d, int64_t i, gr_rows x, const gr_seq *queries, const pass *r) {
    const gr_ops *op = d->dev->ops;
    const gr_layer *l = &d->m->layers[i];
    gr_layer_acts *a = &d->layers[i];
    gr_widths w = d->w;
    stream_norm_forward(d, a->n1, a->rstd1, a->x, x, &l->input_norm, r->n);
    linear_forward(d, i, GR_SITE_QKV, a->qkv, a->n1, r);
    qk_norm_forward(d, i, r->n);
    op->rope(d->dev, a->qkv, r->b.positions, d->m->rope[l->desc.rope], r->n, w.H + w.KD / w.D, w.D, false);
    if (r->cache) op->kv_append(d->dev, &r->cache[i], gr_rows_at(a->qkv, 0, w.HD), r->b.cache_row, r->n);
    gr_attention at = attention_of(d, i, r);
    at.seqs = queries;
    at.single = r->cache && (queries != r->b.seqs || r->n == r->b.n_seqs);
    op->attention_forward(d->dev, &at);
}

/* A branch's last product, in y; where the layer has a norm of it, what is before that is kept. */
static void branch_forward(gr_decoder *d, int64_t i, gr_site site, gr_rows y, gr_rows x, const pass *r) {
    const gr_layer *l = &d->m->layers[i];
    gr_layer_acts *a = &d->layers[i];
    bool attention = site == GR_SITE_O;
    gr_rows kept = attention ? a->att_out : a->mlp_out;
    linear_forward(d, i, site, d->m->branch_norm ? kept : y, x, r);
    if (d->m->branch_norm)
        norm_forward(d, y, attention ? a->rstd_att : a->rstd_mlp, kept, attention ? &l->attention_norm : &l->mlp_norm, r->n);
}

/* dx of it from d->dx, the gradient of the stream. */
static void branch_backward(gr_decoder *d, int64_t i, gr_site site, gr_rows dx, gr_rows x, const pass *r) {
    const gr_layer *l = &d->m->layers[i];
    const gr_layer_acts *a = &d->layers[i];
    bool attention = site == GR_SITE_O;
    if (d->m->branch_norm)
        norm_backward(d, d->dout, d->dx, attention ? a->att_out : a->mlp_out, attention ? a->rstd_att : a->rstd_mlp,
                      attention ? &l->attention_norm : &l->mlp_norm, r->n);
    linear_backward(d, i, site, dx, d->m->branch_norm ? d->dout : d->dy.data ? d->dy : d->dx, x, r);
}

/* From att and the stream x to a->xmid and the MLP's branch in y, which together are the next layer's stream. */
static void mlp_forward(gr_decoder *d, int64_t i, gr_rows y, gr_rows att, gr_rows x, const pass *r) {
    const gr_layer *l = &d->m->layers[i];
    gr_layer_acts *a = &d->layers[i];
    branch_forward(d, i, GR_SITE_O, branch_for(d, a->xmid), att, r);
    stream_norm_forward(d, a->n2, a->rstd2, a->xmid, x, &l->post_norm, r->n);
    linear_forward(d, i, GR_SITE_GATE_UP, a->gu, a->n2, r);
    d->dev->ops->glu_forward(d->dev, a->act, a->gu, r->n, d->w.F, l->desc.activation);
    if (y.data) branch_forward(d, i, GR_SITE_DOWN, y, a->act, r);
}

/* What the plan did not keep is computed again: the same operations on the same input give the same bits. */
static void layer_recompute(gr_decoder *d, int64_t i, const pass *r) {
    const gr_layer *l = &d->m->layers[i];
    gr_layer_acts *a = &d->layers[i];
    if (d->o.recompute == GR_RECOMPUTE_NONE) return;
    if (d->o.recompute == GR_RECOMPUTE_FULL) {
        bool read = gr_group_rank(&l->group[GR_SITE_DOWN]) > 0 || d->m->branch_norm; /* something of the last product by backward */
        attention_forward(d, i, NONE, r->b.seqs, r);
        mlp_forward(d, i, read ? d->dbranch : NONE, a->att, a->x, r);
        return;
    }
    norm_forward(d, a->n1, a->rstd1, a->x, &l->input_norm, r->n);
    norm_forward(d, a->n2, a->rstd2, a->xmid, &l->post_norm, r->n);
    d->dev->ops->glu_forward(d->dev, a->act, a->gu, r->n, d->w.F, l->desc.activation);
}

/* d->dx: gradient of the layer's output stream on entry, of its input stream on return (below: something there wants it). */
static void layer_backward(gr_decoder *d, int64_t i, bool below, const pass *r) {
    const gr_ops *op = d->dev->ops;
    const gr_layer *l = &d->m->layers[i];
    gr_layer_acts *a = &d->layers[i];
    gr_widths w = d->w;
    layer_recompute(d, i, r);
    branch_backward(d, i, GR_SITE_DOWN, d->dact, a->act, r);
    op->glu_backward(d->dev, a->gu, d->dact, a->gu, r->n, w.F, l->desc.activation); /* in place: nothing reads them again */
    linear_backward(d, i, GR_SITE_GATE_UP, d->dbranch, a->gu, a->n2, r);
    stream_norm_backward(d, d->dbranch, a->xmid, a->rstd2, &l->post_norm, r->n);
    branch_backward(d, i, GR_SITE_O, d->datt, a->att, r);
    gr_attention at = attention_of(d, i, r);
    at.dout = d->datt, at.delta = d->delta;
    at.pos = r->b.positions, at.turns = d->m->rope[l->desc.rope];
    at.dq = d->dqkv, at.dk = gr_rows_at(d->dqkv, 0, w.HD), at.dv = gr_rows_at(d->dqkv, 0, w.HD + w.KD);
    op->attention_backward(d->dev, &at);
    qk_norm_backward(d, i, r->n);
    bool through_norm = below || l->input_norm.dw;
    linear_backward(d, i, GR_SITE_QKV, through_norm ? d->dbranch : NONE, d->dqkv, a->n1, r);
    if (through_norm) stream_norm_backward(d, d->dbranch, a->x, a->rstd1, &l->input_norm, r->n);
}

/* ---- the stack ---- */

/* With a cache, all that follows the last layer's keys and values is done for the last row of each sequence alone: from here on r
 * has these rows. Their attention and stream stand in front. */
static void select_last_rows(gr_decoder *d, gr_rows *att, gr_rows *x, pass *r) {
    const gr_ops *op = d->dev->ops;
    gr_layer_acts *a = &d->layers[d->m->config.n_layers - 1];
    gr_rows to_att = gr_decoder_rows(d, a->qkv.data, d->w.HD, a->qkv.type); /* free by then */
    op->gather_rows(d->dev, to_att, *att, r->b.last_row, r->b.n_seqs, d->w.HD);
    op->gather_rows(d->dev, d->last_x, *x, r->b.last_row, r->b.n_seqs, d->w.C);
    *att = to_att, *x = d->last_x;
    r->n = r->b.n_seqs;
}

/* Rows through all layers and the final norm: d->xf; with a cache only the last row of each sequence, in order. */
static void stack_forward(gr_decoder *d, pass *r) {
    int64_t L = d->m->config.n_layers;
    embed_forward(d, d->layers[0].x, r);
    for (int64_t i = 0; i < L; i++) {
        gr_layer_acts *a = &d->layers[i];
        gr_rows att = a->att, x = a->x;
        bool last = r->cache && i + 1 == L;
        enter(d, i);
        attention_forward(d, i, i > 0 ? d->layers[i - 1].xmid : NONE, last ? r->b.last_seqs : r->b.seqs, r);
        if (last) select_last_rows(d, &att, &x, r);
        mlp_forward(d, i, branch_for(d, i + 1 < L ? d->layers[i + 1].x : d->x_last), att, x, r);
        leave(d, i);
    }
    enter(d, L);
    stream_norm_forward(d, d->xf, d->rstdf, d->x_last, d->layers[L - 1].xmid, &d->m->norm, r->n);
}

/* d->dx from the gradient of d->xf (in d->dbranch) down to the embedding. */
static void stack_backward(gr_decoder *d, const pass *r) {
    int64_t L = d->m->config.n_layers;
    d->dev->zero(d->dev, d->dx.data, r->n * d->dx.ld * (int64_t)sizeof(float));
    stream_norm_backward(d, d->dbranch, d->x_last, d->rstdf, &d->m->norm, r->n);
    leave(d, L);
    gradient_ready(d, L);
    for (int64_t i = L - 1; i >= d->lowest; i--) {
        enter(d, i);
        layer_backward(d, i, i > d->lowest || d->embed_trains, r);
        leave(d, i);
        gradient_ready(d, i);
    }
    if (d->embed_trains) embed_backward(d, r);
}

void gr_decoder_join(const gr_decoder *d) {
    const int64_t L = d->m->config.n_layers;
    for (int64_t i = -1; i < L; i++) enter(d, i), leave(d, i);
    enter(d, L), leave(d, L), gradient_ready(d, L);
    for (int64_t i = L - 1; i >= d->lowest; i--) enter(d, i), leave(d, i), gradient_ready(d, i);
    if (d->embed_trains) enter_without_weights(d, -1), leave(d, -1), gradient_ready(d, -1);
}

/* ---- head and loss: only rows that have a target, some at a time ---- */

/* Logits of tokens whose rows are in the head's segment, where it is a product of its own, in place of those that the file gives;
 * and their gradients, which the file's rows do not see: dx is the segment's part alone. */
static void segment_forward(gr_decoder *d, int64_t n) {
    const gr_segment *s = &d->m->head_rows;
    if (!d->m->rows_group.n) return;
    gr_product p = product(d, &d->m->rows_group, NULL, d->head_x, d->head_columns);
    d->dev->ops->linear_forward(d->dev, &p, n);
    d->dev->ops->scatter_columns(d->dev, d->logits, d->head_columns, s->columns, n, s->n);
}

static void segment_backward(gr_decoder *d, gr_rows dx, int64_t n) {
    const gr_segment *s = &d->m->head_rows;
    if (!d->m->rows_group.n) return;
    gr_product p = product(d, &d->m->rows_group, NULL, d->head_x, d->head_columns);
    d->dev->ops->take_columns(d->dev, d->head_columns, d->logits, s->columns, n, s->n);
    d->dev->ops->linear_backward(d->dev, &p, dx, false, n);
}

/* Logits of the head's rows first.. (at most d->head_rows of them) in d->logits; how many. */
static int64_t head_forward(gr_decoder *d, int64_t first, gr_product *p, gr_dropout *drop, const pass *r) {
    int64_t count = GR_MIN(d->head_rows, r->b.n_head - first);
    d->dev->ops->gather_rows(d->dev, d->head_x, d->xf, r->b.head_row + first, count, d->w.C);
    *p = product(d, &d->m->head_group, d->head_h, d->head_x, d->logits);
    if (r->train) with_dropout(d, p, drop, d->m->config.n_layers * GR_SITE_COUNT, r->b.head_key + first);
    d->dev->ops->linear_forward(d->dev, p, count);
    segment_forward(d, count);
    return count;
}

/* d->nll of every row with a target; in training also d->dbranch = gradient of d->xf, and the head's own gradients. */
static void head_loss(gr_decoder *d, const gr_loss *loss, const pass *r) {
    const gr_ops *op = d->dev->ops;
    const gr_device_batch *b = &r->b;
    const gr_loss_terms terms = {.softcap = d->m->config.head_softcap,
                                 .z_loss = loss ? loss->z_loss : 0,
                                 .scale = loss && loss->scaled ? &loss->stats->loss_scale : NULL};
    gr_product p;
    gr_dropout drop;
    if (r->train) d->dev->zero(d->dev, d->dbranch.data, r->n * d->dbranch.ld * gr_dtype_get(d->dbranch.type)->block_bytes);
    for (int64_t first = 0, count; first < b->n_head; first += count) {
        count = head_forward(d, first, &p, &drop, r);
        op->cross_entropy(d->dev, d->nll + first, d->logits, b->head_target + first, r->train ? b->head_gradient + first : NULL,
                          count, d->w.V, &terms);
        if (loss && loss->stats)
            op->loss_sum(d->dev, loss->stats, d->nll + first, b->head_weight + first, b->head_row + first, count, loss->first_row);
        if (!r->train) continue;
        segment_backward(d, d->head_dx, count);
        op->linear_backward(d->dev, &p, d->head_dx, d->m->rows_group.n > 0, count);
        op->scatter_rows(d->dev, d->dbranch, d->head_dx, b->head_row + first, count, d->w.C);
    }
}

/* ---- what goes to the device, and what comes back ---- */

/* What was staged goes to the device at once. */
static pass upload(gr_decoder *d, const gr_device_batch *host, const gr_kv *cache, bool train) {
    return (pass){.b = gr_decoder_upload(d, host, cache != NULL), .n = host->n, .cache = cache, .train = train};
}

/* nll[n] of all rows on the host: those of the head's where they belong, 0 elsewhere. */
static void fetch_nll(gr_decoder *d, const gr_batch *b, float *nll) {
    int64_t at = 0;
    for (int64_t i = 0; i < b->n; i++) at += b->weight[i] != 0;
    d->dev->download(d->dev, d->nll_staging, d->nll, at * (int64_t)sizeof *nll, 0);
    at = 0;
    for (int64_t i = 0; i < b->n; i++) nll[i] = b->weight[i] != 0 ? d->nll_staging[at++] : 0;
}

graft_status gr_decoder_rehearse(gr_decoder *d, const gr_device_batch *largest, graft_error *err) {
    const gr_layer_hooks *hooks = d->o.hooks;
    pass r = {.b = *largest, .n = largest->n, .train = d->o.training};
    if (!d->dev->rehearse) return GRAFT_OK;
    (void)gr_device_batch_place(&r.b, d->batch[0], false);
    d->o.hooks = NULL, d->rehearses = true;
    (void)d->dev->rehearse(d->dev, true);
    stack_forward(d, &r);
    head_loss(d, NULL, &r);
    if (d->o.training) stack_backward(d, &r);
    d->o.hooks = hooks, d->rehearses = false;
    if (d->dev->rehearse(d->dev, false)) return GRAFT_OK;
    return gr_device_status(d->dev, err);
}

/* ---- work that comes again ---- */

/* Whether the work is to be given, now or again: see gr_device.repeat. given: false at first. */
static bool again(const gr_decoder *d, const gr_repeat *key, bool *given) {
    if (key && d->dev->repeat && !d->o.hooks && !d->m->elsewhere.bring) return d->dev->repeat(d->dev, key);
    return *given ? false : (*given = true);
}

/* Is a layer so small for so many rows that a card waits for the host's launches? A direction of it is some 25 of them, 75 us. In
 * that time a card makes 2^34 multiplications at half its rate; a fourth of them leaves no doubt. */
static bool bound_by_launches(const gr_decoder *d, int64_t rows) {
    const gr_model_config *c = &d->m->config;
    const int64_t attention = 2 * (c->n_heads + c->n_kv_heads) * c->head_dim;
    return rows * c->hidden * (attention + 3 * c->ffn) < (int64_t)1 << 32;
}

/* A direction of the layers of a training batch: the same work for all batches of the same numbers of rows and sequences. */
static void train_layers(gr_decoder *d, bool backward, pass *r) {
    const gr_device_batch *b = &r->b;
    const gr_repeat key = {{(intptr_t)d, (intptr_t)b->tokens, r->n, b->n_seqs, b->n_placed,
                            b->n_placed > 0 ? (intptr_t)b->placed : 0, [11] = backward ? 2 : 1}};
    for (bool given = false; again(d, bound_by_launches(d, r->n) ? &key : NULL, &given);) {
        if (backward) stack_backward(d, r);
        else stack_forward(d, r);
    }
}

/* ---- entry points ---- */

graft_status gr_decoder_eval(gr_decoder *d, const gr_batch *b, float *nll, graft_error *err) {
    graft_status st = gr_decoder_check(d, b, err);
    if (st != GRAFT_OK) return st;
    gr_device_batch host = gr_decoder_stage_targets(d, b, 1);
    pass r = upload(d, &host, NULL, false);
    stack_forward(d, &r);
    head_loss(d, NULL, &r);
    gr_decoder_batch_read(d);
    leave(d, d->m->config.n_layers);
    fetch_nll(d, b, nll);
    return gr_device_status(d->dev, err);
}

graft_status gr_decoder_train(gr_decoder *d, const gr_batch *b, const gr_loss *loss, graft_error *err) {
    GR_ASSERT(d->o.training);
    graft_status st = gr_decoder_check(d, b, err);
    if (st != GRAFT_OK) return st;
    gr_device_batch host = gr_decoder_stage_targets(d, b, loss->scale);
    pass r = upload(d, &host, NULL, true);
    train_layers(d, false, &r);
    head_loss(d, loss, &r);
    train_layers(d, true, &r);
    gr_decoder_batch_read(d);
    if (!loss->nll) return GRAFT_OK;
    fetch_nll(d, b, loss->nll);
    return gr_device_status(d->dev, err);
}

/* What is wanted of the head's rows: one of these. */
typedef struct wanted {
    float *logits;
    int32_t *best;
    gr_listing *list;
    float temperature; /* of list */
} wanted;

/* Logits of the head's rows first.. (at most d->head_rows of them), and what is made of them on the device; how many. */
static int64_t head_columns(gr_decoder *d, int64_t first, const wanted *w, const pass *r) {
    const gr_ops *op = d->dev->ops;
    gr_product p;
    const float cap = d->m->config.head_softcap;
    const int64_t count = head_forward(d, first, &p, NULL, r), V = d->w.V;
    if (cap > 0) op->softcap(d->dev, d->logits, count, V, cap);
    if (w->best) op->best_column(d->dev, d->best + first, d->logits, count, V);
    if (w->list) op->list_columns(d->dev, d->list + first, d->logits, count, V, w->temperature);
    return count;
}

/* What is wanted comes to the host. made: it is there for all rows. */
static graft_status head_logits(gr_decoder *d, const wanted *w, bool made, const pass *r, graft_error *err) {
    const int64_t V = d->w.V;
    for (int64_t first = 0, count; first < r->b.n_head; first += count) {
        count = made ? r->b.n_head : head_columns(d, first, w, r);
        for (int64_t i = 0; w->logits && i < count; i++)
            d->dev->download(d->dev, w->logits + (first + i) * V, gr_rows_at(d->logits, i, 0).data, V * (int64_t)sizeof(float), 0);
    }
    gr_decoder_batch_read(d);
    if (w->best) d->dev->download(d->dev, w->best, d->best, r->b.n_head * (int64_t)sizeof *w->best, 0);
    if (w->list) d->dev->download(d->dev, w->list, d->list, r->b.n_head * (int64_t)sizeof *w->list, 0);
    leave(d, d->m->config.n_layers);
    return gr_device_status(d->dev, err);
}

graft_status gr_decoder_logits(gr_decoder *d, const gr_batch *b, const int32_t *rows, int64_t n_rows, float *logits,
                               graft_error *err) {
    graft_status st = gr_decoder_check(d, b, err);
    if (st != GRAFT_OK) return st;
    gr_device_batch host = gr_decoder_stage(d, b, n_rows, false);
    memcpy(host.head_row, rows, (size_t)n_rows * sizeof *rows);
    pass r = upload(d, &host, NULL, false);
    stack_forward(d, &r);
    return head_logits(d, &(wanted){.logits = logits}, false, &r, err);
}

/* ---- the KV cache ---- */

static gr_kv_shape shape_of(const gr_model *m, int64_t n_slots, int64_t max_len) {
    const gr_model_config *c = &m->config;
    return (gr_kv_shape){.n_layers = c->n_layers,
                         .n_slots = n_slots,
                         .max_len = max_len,
                         .K = c->n_kv_heads,
                         .D = c->head_dim,
                         .compute = m->compute};
}

graft_status gr_kv_cache_init(gr_kv_cache *c, const gr_model *m, int64_t n_slots, int64_t max_len, graft_error *err) {
    gr_kv_shape shape = shape_of(m, n_slots, max_len);
    *c = (gr_kv_cache){.n_slots = n_slots, .max_len = max_len, .device = m->device};
    c->len = gr_calloc(n_slots, sizeof *c->len);
    c->layers = gr_calloc(m->config.n_layers, sizeof *c->layers);
    if (c->len && c->layers && m->device->kv_open(m->device, c->layers, &shape)) return GRAFT_OK;
    bool host = !c->len || !c->layers;
    char what[96];
    snprintf(what, sizeof what, "the KV cache of %lld sequences of up to %lld tokens", (long long)n_slots, (long long)max_len);
    gr_kv_cache_release(c);
    return host ? gr_fail_memory(err, "KV cache")
                : gr_fail_device_memory(m->device, m->device->kv_bytes(m->device, &shape), what, err);
}

int64_t gr_kv_cache_bytes(const gr_model *m, int64_t n_slots, int64_t max_len) {
    gr_kv_shape shape = shape_of(m, n_slots, max_len);
    return m->device->kv_bytes(m->device, &shape);
}

void gr_kv_cache_release(gr_kv_cache *c) {
    if (c->layers) c->device->kv_close(c->device, c->layers);
    free(c->layers);
    free(c->len);
    *c = (gr_kv_cache){0};
}

/* Where each sequence has one token more, the same work comes again and again: on other tokens and other lengths. */
static graft_status logits_of_step(gr_decoder *d, const wanted *w, const pass *r, graft_error *err) {
    const gr_device_batch *b = &r->b;
    const bool comes_again = r->n == b->n_seqs && b->n_head <= d->head_rows;
    gr_repeat key = {{(intptr_t)d, (intptr_t)r->cache, (intptr_t)b->tokens, b->n_seqs, b->n_head, b->n_placed, w->best != NULL,
                      w->list != NULL}};
    memcpy(&key.key[8], &w->temperature, sizeof w->temperature);
    bool given = false;
    while (again(d, comes_again ? &key : NULL, &given)) {
        pass now = *r;
        stack_forward(d, &now);
        if (comes_again) head_columns(d, 0, w, &now);
    }
    return head_logits(d, w, comes_again, r, err);
}

static graft_status step(gr_decoder *d, const gr_batch *b, gr_kv_cache *c, const int32_t *slots, const wanted *w,
                         graft_error *err) {
    graft_status st = gr_decoder_check(d, b, err);
    if (st != GRAFT_OK) return st;
    gr_device_batch host = gr_decoder_stage(d, b, b->n_seqs, true);
    for (int64_t s = 0; s < b->n_seqs; s++) {
        gr_seq *q = &host.seqs[s];
        int64_t filled = c->len[slots[s]], base = slots[s] * c->max_len;
        if (filled + q->q_len > c->max_len)
            return gr_fail(err, GRAFT_BAD_USAGE, "%lld tokens do not fit the cache of %lld positions",
                           (long long)(filled + q->q_len), (long long)c->max_len);
        for (int64_t i = 0; i < q->q_len; i++) host.cache_row[q->q_start + i] = (int32_t)(base + filled + i);
        q->kv_start = base, q->kv_len = filled + q->q_len;
        host.last_row[s] = (int32_t)(q->q_start + q->q_len - 1);
        host.last_seqs[s] = (gr_seq){.q_start = host.last_row[s], .q_len = 1, .kv_start = base, .kv_len = q->kv_len};
        host.head_row[s] = (int32_t)s;
    }
    pass r = upload(d, &host, c->layers, false);
    st = logits_of_step(d, w, &r, err);
    for (int64_t s = 0; s < b->n_seqs && st == GRAFT_OK; s++) c->len[slots[s]] += b->offset[s + 1] - b->offset[s];
    return st;
}

graft_status gr_decoder_step(gr_decoder *d, const gr_batch *b, gr_kv_cache *c, const int32_t *slots, float *logits,
                             graft_error *err) {
    return step(d, b, c, slots, &(wanted){.logits = logits}, err);
}

graft_status gr_decoder_step_best(gr_decoder *d, const gr_batch *b, gr_kv_cache *c, const int32_t *slots, int32_t *best,
                                  graft_error *err) {
    return step(d, b, c, slots, &(wanted){.best = best}, err);
}

graft_status gr_decoder_step_list(gr_decoder *d, const gr_batch *b, gr_kv_cache *c, const int32_t *slots, float temperature,
                                  gr_listing *list, graft_error *err) {
    GR_ASSERT(b->n_seqs <= GR_MIN(d->o.listings, d->head_rows));
    return step(d, b, c, slots, &(wanted){.list = list, .temperature = temperature}, err);
}

graft_status gr_decoder_step_row(gr_decoder *d, int64_t s, float *logits, graft_error *err) {
    d->dev->download(d->dev, logits, gr_rows_at(d->logits, s, 0).data, d->w.V * (int64_t)sizeof *logits, 0);
    return gr_device_status(d->dev, err);
}
