/* Time of a step by measuring: the decoder itself runs one layer and two at the model's shapes, on weights
 * that are made up; the difference is a layer, the rest embedding and head. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/base/memory.h"
#include "kernels/threads.h"
#include "peft/plan.h"

enum { LAYERS = 2, BUFFERS = 256, PIECE = 1 << 20 };
static const double WORK = 2e11; /* operations of a measurement, about: seconds on small machines */

typedef struct rig {
    gr_model *model;
    gr_device *device;
    void *buffers[BUFFERS], *loras[BUFFERS]; /* of the device; of the host */
    int n_buffers, n_loras;
    bool failed;
} rig;

/* Memory with a byte repeated that makes 0.01 of floats of any width, so that nothing is denormal. */
static void *made_up(rig *g, int64_t bytes, int fill) {
    void *p = g->n_buffers < BUFFERS ? g->device->alloc(g->device, bytes) : NULL, *piece = malloc(PIECE);
    if (p && piece) {
        memset(piece, fill, PIECE);
        for (int64_t at = 0; at < bytes; at += PIECE)
            g->device->upload(g->device, (char *)p + at, piece, GR_MIN(PIECE, bytes - at));
    }
    g->failed |= !p || !piece;
    free(piece);
    if (p) g->buffers[g->n_buffers++] = p;
    return p;
}

static float *gradient(rig *g, int64_t n) { return made_up(g, n * (int64_t)sizeof(float), 0); }

static void make_linear(rig *g, gr_linear *to, const gr_linear *from, const gr_run *run, bool quantised) {
    int quantize = gr_quantize_type(run->r->model_quantize);
    gr_dtype dtype = gr_weights_shape_only(run->session.model->weights) ? GR_DTYPE_BF16 : from->w.dtype;
    int64_t n = from->w.rows * from->w.cols;
    if (quantised && quantize >= 0) dtype = gr_model_quantized_type(&from->w, (gr_dtype)quantize);
    if (!run->adapter) dtype = run->params.form.weights == GR_TRAINED_FP32 ? GR_DTYPE_F32 : GR_DTYPE_BF16;
    *to = (gr_linear){.w = {.dtype = dtype, .rows = from->w.rows, .cols = from->w.cols}};
    to->w.data = made_up(g, gr_dtype_bytes(dtype, n), 0x3c);
    if (!run->adapter) to->dw = gradient(g, n);
    if (from->n_lora == 0) return;
    to->lora = g->n_loras < BUFFERS ? gr_calloc(from->n_lora, sizeof *to->lora) : NULL;
    g->failed |= !to->lora;
    if (!to->lora) return;
    g->loras[g->n_loras++] = to->lora;
    to->n_lora = from->n_lora;
    for (int i = 0; i < from->n_lora; i++) {
        int64_t R = from->lora[i].rank, a = R * from->w.cols, b = R * from->w.rows;
        to->lora[i] = (gr_lora){.rank = R,
                                .scale = from->lora[i].scale,
                                .A = made_up(g, a * 4, 0x3c),
                                .B = made_up(g, b * 4, 0x3c),
                                .dA = gradient(g, a),
                                .dB = gradient(g, b)};
    }
}

static void make_vector(rig *g, gr_vector *v, int64_t n, bool full) {
    *v = (gr_vector){made_up(g, n * 4, 0x3c), full ? gradient(g, n) : NULL};
}

/* A layer's weights, which the second one shares, and the norms that it may have: of the stream, and of heads. */
static void make_layers(rig *g, const gr_run *run) {
    const gr_layer *from = &run->session.model->layers[0];
    gr_layer *first = &g->model->layers[0], *second = &g->model->layers[1];
    gr_vector *norms[][2] = {{&first->input_norm, &second->input_norm},
                             {&first->post_norm, &second->post_norm},
                             {&first->attention_norm, &second->attention_norm},
                             {&first->mlp_norm, &second->mlp_norm},
                             {&first->q_norm, &second->q_norm},
                             {&first->k_norm, &second->k_norm}};
    for (int s = 0; s < GR_SITE_COUNT; s++)
        for (int i = 0; i < from->group[s].n; i++) {
            make_linear(g, first->group[s].member[i], from->group[s].member[i], run, true);
            *second->group[s].member[i] = *first->group[s].member[i];
        }
    for (int i = 0; i < GR_LEN(norms); i++) {
        bool of_heads = i >= GR_LEN(norms) - 2;
        make_vector(g, norms[i][0], of_heads ? g->model->config.head_dim : g->model->config.hidden, !run->adapter);
        *norms[i][1] = *norms[i][0];
    }
}

static graft_status make_rows(rig *g, const gr_run *run, graft_error *err) {
    for (int i = 0; run->adapter && i < GR_ROWS_COUNT; i++) {
        const gr_ids_list *list = &run->adapter->config.rows[i];
        int64_t n = list->n * g->model->config.hidden;
        if (n == 0) continue;
        gr_rows_values rows = {list->ids, list->n, made_up(g, n * (int64_t)sizeof(float), 0x3c), gradient(g, n)};
        graft_status st = gr_model_attach_rows(g->model, i == GR_ROWS_HEAD, &rows, err);
        if (st != GRAFT_OK) return st;
    }
    return GRAFT_OK;
}

static graft_status make_rig(rig *g, const gr_run *run, graft_error *err) {
    const gr_model *from = run->session.model;
    gr_model_config c = from->config;
    c.n_layers = LAYERS;
    g->device = run->session.machine.device;
    graft_status st = gr_model_make(&g->model, &c, run->session.machine, from->compute, from->rope_positions, err);
    if (st != GRAFT_OK) return st;
    gr_model *m = g->model;
    make_layers(g, run);
    make_vector(g, &m->norm, c.hidden, !run->adapter);
    make_linear(g, &m->embed, &(gr_linear){.w = from->embed.w}, run, false);
    make_linear(g, &m->head, &from->head, run, false);
    if (c.tied) m->head.w = m->embed.w, m->head.dw = m->embed.dw;
    if ((st = make_rows(g, run, err)) != GRAFT_OK) return st;
    gr_model_use(m, gr_plan_forms(run));
    return g->failed ? gr_fail_memory(err, "measuring") : GRAFT_OK;
}

static void free_rig(rig *g) {
    gr_model_free(g->model);
    for (int i = 0; i < g->n_buffers; i++) g->device->free(g->device, g->buffers[i]);
    for (int i = 0; i < g->n_loras; i++) free(g->loras[i]);
}

/* Sequences of the data's mean length and share of targets, `rows` in all. */
static graft_status made_batch(gr_batch *b, const gr_run *run, int64_t rows, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t mean = GR_MAX(2, GR_MIN(run->mean_tokens > 0 ? run->mean_tokens : rows, run->session.model->rope_positions)),
            V = run->session.model->config.vocab;
    double share = run->train ? (double)run->train->n_targets / (double)run->train->offset[run->train->n_samples] : 0.5;
    int32_t *ids = gr_calloc(rows, sizeof *ids);
    uint8_t *target = gr_calloc(rows, 1);
    if (!ids || !target) GR_TRY(gr_fail_memory(err, "measuring"));
    for (int64_t i = 0; i < rows; i++) ids[i] = (int32_t)(i * 7919 % V);
    for (int64_t at = 0, n; at < rows; at += n) {
        n = GR_MIN(mean, rows - at);
        for (int64_t i = 0; i < n; i++) target[i] = (double)i >= (1 - share) * (double)n;
        GR_TRY(gr_batch_append(b, ids + at, target, n, (uint64_t)at, err));
    }
done:
    free(ids);
    free(target);
    return st;
}

/* Seconds of a batch forward and backward, and forward alone, through so many layers: the best of three. */
static graft_status measure(rig *g, const gr_run *run, const gr_batch *b, int layers, double *train, double *eval,
                            graft_error *err) {
    graft_status st;
    gr_decoder *d = NULL;
    gr_decoder_options o = run->plan;
    float *nll = gr_calloc(b->n, sizeof *nll);
    if (!nll) GR_TRY(gr_fail_memory(err, "measuring"));
    gr_model_unplace(g->model);
    g->model->config.n_layers = layers, o.max_tokens = b->n;
    GR_TRY(gr_decoder_new(&d, g->model, &o, err));
    *train = *eval = INFINITY;
    for (int i = 0; i < 3; i++) {
        double start = gr_now();
        GR_TRY(gr_decoder_train(d, b, &(gr_loss){.scale = 1e-3f, .nll = nll}, err));
        double middle = gr_now();
        GR_TRY(gr_decoder_eval(d, b, nll, err));
        if (i > 0) *train = fmin(*train, middle - start), *eval = fmin(*eval, gr_now() - middle); /* the first touches memory */
    }
done:
    gr_decoder_free(d);
    free(nll);
    return st;
}

/* Seconds of an update of all parameters: zeroing, norm and AdamW. */
static double update_seconds(rig *g, const gr_run *run) {
    enum { MOST = 4 << 20 };
    gr_device *d = g->device;
    int64_t n = GR_MIN(run->params.n_floats, MOST);
    float *p[4];
    gr_step_stats *stats = made_up(g, sizeof *stats, 0);
    for (int i = 0; i < 4; i++) p[i] = made_up(g, n * (int64_t)sizeof(float), 0x3c);
    if (g->failed) return 0;
    gr_adamw a = {.lr = 1e-6f, .beta1 = 0.9f, .beta2 = 0.999f, .epsilon = 1e-8f};
    double start = gr_now();
    d->ops->step_begin(d, stats);
    d->ops->sum_squares(d, stats, p[3], n);
    d->ops->step_prepare(d, stats, 1, false);
    d->ops->adamw(d, &(gr_trained){.f32 = p[0]}, p[1], p[2], p[3], n, &a, stats);
    d->zero(d, p[3], n * (int64_t)sizeof(float));
    (void)d->sync(d);
    return (gr_now() - start) * (double)run->params.n_floats / (double)n;
}

/* Rows that take about as long as one waits gladly. */
static int64_t rows_to_measure(const gr_run *run) {
    const gr_model_config *c = &run->session.model->config;
    double weights = (double)c->hidden * (double)(3 * c->ffn + (2 * c->n_heads + 2 * c->n_kv_heads) * c->head_dim + c->vocab);
    return GR_MIN(run->plan.max_tokens, GR_MAX(32, (int64_t)(WORK / (6 * weights))));
}

/* Nothing to say where the made-up layer itself takes more than half of what is free. */
static bool too_large(const gr_run *run, int64_t rows) {
    const gr_model_config *c = &run->session.model->config;
    gr_decoder_options o = run->plan;
    o.max_tokens = rows;
    int64_t weights = c->hidden * (3 * c->ffn + (2 * c->n_heads + 2 * c->n_kv_heads) * c->head_dim + 2 * c->vocab);
    return weights * (run->adapter ? 2 : 8) + gr_decoder_plan_bytes(run->session.model, &o) > run->available / 2;
}

/* ---- of several ranks ---- */

int64_t gr_plan_rank_tokens(const gr_run *run, int64_t all) {
    return run->ranks == 1 ? all : GR_MAX((all + run->ranks - 1) / run->ranks, GR_MIN(all, run->mean_tokens));
}

/* Of the frozen matrices as ranks share them out. */
static double base_bytes(const gr_run *run) {
    const int quantise = gr_quantize_type(run->r->model_quantize);
    const int64_t made = quantise >= 0 ? gr_model_quantized_bytes(run->session.model, (gr_dtype)quantise) : 0;
    return (double)(gr_model_file_bytes(run->session.model, quantise, false) + made);
}

/* Each rank sends every other its share: of the gradients as float, of the weights in the type of products. */
int64_t gr_plan_sent(const gr_run *run, int64_t *backward, int64_t *forward) {
    const gr_params *p = &run->params;
    const double others = (double)(run->ranks - 1) / run->ranks, n = (double)p->n_floats;
    const double weights = n * (p->form.weights == GR_TRAINED_FP32 ? sizeof(float) : sizeof(uint16_t));
    const int64_t step = GR_MIN(run->samples > 0 ? run->samples : INT64_MAX, run->r->train_batch_size) * run->mean_tokens;
    const double times = fmax(1, ceil((double)gr_plan_rank_tokens(run, step) / (double)GR_MAX(run->plan.max_tokens, 1)));
    double each[2] = {2 * n * sizeof(float), 0}; /* backward, forward */
    if (p->form.sharded) each[0] = times * n * sizeof(float), each[1] = weights;
    if (p->form.sharded >= GR_SHARDED_VALUES) each[0] += times * weights, each[1] = times * weights;
    if (gr_shard_has_base(run->r, run->sharding, run->ranks))
        each[0] += times * base_bytes(run), each[1] += times * base_bytes(run);
    if (backward) *backward = (int64_t)(others * each[0]);
    if (forward) *forward = (int64_t)(others * each[1]);
    return (int64_t)(others * (each[0] + each[1]));
}

/* ---- by data sheet ---- */

static const double OF_PEAK = 0.5; /* share of the products' rate that is assumed */
/* How many times as fast as of bfloat16 products of e4m3 with exact sums are, measured on an H200: 1,220 of 780 TFLOP/s. */
static const double FP8_TIMES = 1.55;
/* Share of a link's rate that exchanges get: NCCL's bus bandwidth on eight A100, 235 of 300 GB/s. */
static const double OF_LINK = 0.78;

/* Operations of a token forward: two for each weight of a product of a layer; */
static double layer_operations(const gr_run *run) {
    const gr_model *m = run->session.model;
    double weights = 0;
    for (int64_t i = 0; i < m->n_modules; i++)
        if (m->modules[i].entry && m->modules[i].entry->layer >= 0) weights += (double)m->modules[i].in * (double)m->modules[i].out;
    return 2 * weights;
}

/* and with the head's of all tokens, and attention over half of a sample's mean length. */
static double forward_operations(const gr_run *run) {
    const gr_model_config *c = &run->session.model->config;
    return layer_operations(run) + 2 * (double)c->hidden * (double)c->vocab +
           2 * (double)(c->n_layers * c->n_heads * c->head_dim) * (double)run->mean_tokens;
}

/* Seconds that bytes to other cards take. */
static double link_seconds(const gr_run *run, int64_t bytes) {
    const double rate = run->session.machine.device->link;
    return rate > 0 ? (double)bytes / (OF_LINK * rate) : 0;
}

/* Forward, the gradients of inputs, those of weights where all are trained, and what is computed again; then the update, by the
 * bytes that it moves. Layers are exchanged beside the work on others; without sharding, sums of gradients come after it. */
static void time_by_data_sheet(gr_run *run, gr_plan_facts *f) {
    const gr_device *d = run->session.machine.device;
    if (f->tokens_per_step == 0) f->tokens_per_step = run->plan.max_tokens * run->ranks;
    const double passes = (run->adapter ? 2 : 3) + (run->plan.recompute == GR_RECOMPUTE_FULL ? 1 : 0),
                 tokens = (double)gr_plan_rank_tokens(run, f->tokens_per_step),
                 micro_batches = ceil(tokens / (double)run->plan.max_tokens);
    const bool sharded = run->params.form.sharded != GR_SHARDED_NOTHING,
               beside = sharded || gr_shard_has_base(run->r, run->sharding, run->ranks);
    double operations = passes * forward_operations(run), backward, forward;
    int64_t sent_backward, sent_forward;
    if (gr_train_products(run->r->model_compute) == GR_BASE_FP8) operations -= layer_operations(run) * (1 - 1 / FP8_TIMES);
    const double rate = run->session.model->compute == GR_DTYPE_F32 ? d->flops_f32 : d->flops;
    double work = operations * tokens / (OF_PEAK * rate);
    if (run->expand) /* the layers' weights, for each pass of each micro-batch: read in about 5 bits, written in 16 */
        work += passes * micro_batches * 2.6 * layer_operations(run) / 2 / d->bandwidth;
    forward = work / passes, backward = work - forward;
    (void)gr_plan_sent(run, &sent_backward, &sent_forward);
    f->step_seconds = fmax(forward, link_seconds(run, sent_forward)) +
                      (beside ? fmax(backward, link_seconds(run, sent_backward)) : backward + link_seconds(run, sent_backward)) +
                      7 * sizeof(float) * (double)run->params.n_floats / (sharded ? run->ranks : 1) / d->bandwidth;
    f->share_of_peak = OF_PEAK;
}

/* The run's from a step's. */
static void add_up(const gr_run *run, gr_plan_facts *f) {
    if (run->total_steps <= 0 || run->samples <= 0) return;
    const double evaluations = !run->eval            ? 0
                               : run->eval_every > 0 ? (double)((run->total_steps + run->eval_every - 1) / run->eval_every)
                                                     : 1;
    f->epoch_seconds = f->step_seconds * (double)run->steps_per_epoch;
    f->run_seconds = f->step_seconds * (double)run->total_steps + (evaluations > 0 ? f->evaluation_seconds * evaluations : 0);
}

/* How many times as long as alone ranks take that have more threads than there are processors. */
static double crowding(const gr_run *run) {
    return fmax(1, (double)run->ranks * gr_threads_count(run->session.machine.threads) / gr_processors());
}

graft_status gr_plan_time(gr_run *run, gr_plan_facts *f, graft_error *err) {
    graft_status st = GRAFT_OK;
    if (run->session.machine.device->flops > 0) {
        time_by_data_sheet(run, f);
        add_up(run, f);
        return GRAFT_OK;
    }
    rig g = {.n_buffers = 0};
    gr_batch b = {0};
    double one, two, one_eval, two_eval;
    int64_t rows = rows_to_measure(run), L = run->session.model->config.n_layers;
    if (too_large(run, rows)) {
        gr_note("time is not measured: one layer would take more than half of the free memory");
        return GRAFT_OK;
    }
    GR_TRY(make_rig(&g, run, err));
    double update = update_seconds(&g, run);
    if (g.failed) GR_TRY(gr_fail_memory(err, "measuring"));
    GR_TRY(made_batch(&b, run, rows, err));
    GR_TRY(measure(&g, run, &b, 1, &one, &one_eval, err));
    GR_TRY(measure(&g, run, &b, LAYERS, &two, &two_eval, err));
    double layer = fmax(two - one, 0.01 * one), layer_eval = fmax(two_eval - one_eval, 0.01 * one_eval);
    double token = (one + (double)(L - 1) * layer) / (double)rows,
           token_eval = (one_eval + (double)(L - 1) * layer_eval) / (double)rows;
    if (f->tokens_per_step == 0) f->tokens_per_step = run->plan.max_tokens * run->ranks;
    if (run->params.form.sharded) update /= run->ranks;
    f->step_seconds = crowding(run) * (token * (double)gr_plan_rank_tokens(run, f->tokens_per_step) + update);
    if (run->eval)
        f->evaluation_seconds =
            crowding(run) * token_eval * (double)gr_plan_rank_tokens(run, run->eval->offset[run->eval->n_samples]);
    add_up(run, f);
done:
    free_rig(&g);
    gr_batch_release(&b);
    return st;
}
