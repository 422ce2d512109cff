/* Steps and memory of a run. The memory model knows everything of size that a run touches; what is small and many (program,
 * libraries, tokenizer, tokenised data) is not modelled but measured: it is there when the plan is made. */
#include "peft/plan_memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/merge.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "kernels/threads.h"
#include "peft/evaluate.h"
#include "peft/ranks.h"
#include "peft/recipe_schema.h"

enum { LOGGED_WINDOWS = 100, EVALUATIONS = 10 };
/* Where the largest micro-batch is looked for, in samples; beyond, what it may be is taken. */
static const int64_t SEARCHED_SAMPLES = 20000000;
/* What is touched only later: HDF5 and the writers of files, their buffers; the library of MPI; bytes of a tokenizer's entry where
 * none is open. */
enum {
    LATER_BYTES = 6 << 20,
    MPI_BYTES = 16 << 20,
    TOKENIZER_ENTRY_BYTES = 500,
    BYTES_PER_ID = 5,
    BYTES_PER_BLOCK = 32,
    BYTES_PER_ROW = 40
};

/* ---- steps ---- */

static int64_t batches_of(int64_t samples, int64_t batch) { return (samples + batch - 1) / batch; }

static bool has_fractional_weight(const gr_dataset *d) {
    if (d->share) return true;
    for (int i = 0; i < d->n_sources; i++)
        if (d->weight[i] != floor(d->weight[i])) return true;
    return false;
}

/* Steps of the epochs of the recipe when every epoch has so many. */
static int64_t steps_of(const gr_recipe *r, int64_t per_epoch) {
    int64_t whole = (int64_t)floor(r->train_num_train_epochs);
    return whole * per_epoch + (int64_t)ceil((r->train_num_train_epochs - (double)whole) * (double)per_epoch);
}

static graft_status count_steps(gr_run *run, int64_t *total, graft_error *err) {
    const gr_recipe *r = run->r;
    int64_t whole = (int64_t)floor(r->train_num_train_epochs);
    *total = 0;
    for (int64_t epoch = 0; epoch <= whole; epoch++) { /* data set weights may give each epoch its own number of samples */
        int64_t *order, n;
        double share = epoch < whole ? 1 : r->train_num_train_epochs - (double)whole;
        if (share <= 0 && epoch > 0) break;
        graft_status st = gr_dataset_order(run->train, (uint64_t)r->train_seed, epoch, false, &order, &n, err);
        if (st != GRAFT_OK) return st;
        free(order); /* how many, whatever their order */
        int64_t steps = batches_of(n, r->train_batch_size);
        if (epoch == 0) run->steps_per_epoch = steps;
        if (epoch == 0 && n > 0 && n < r->train_batch_size)
            gr_note("train.batch_size is %lld and an epoch has %lld samples: each step takes all of them",
                    (long long)r->train_batch_size, (long long)n);
        if (r->train_max_steps > 0) break;
        if (!has_fractional_weight(run->train)) { /* every epoch is like this one */
            *total = steps_of(r, steps);
            break;
        }
        *total += (int64_t)ceil(share * (double)steps);
    }
    return GRAFT_OK;
}

graft_status gr_plan_steps(gr_run *run, graft_error *err) {
    const gr_recipe *r = run->r;
    graft_status st = GRAFT_OK;
    int64_t total = 0;
    if (run->train) {
        GR_TRY(count_steps(run, &total, err));
        run->samples = run->train->n_samples;
        run->mean_tokens = run->train->offset[run->samples] / GR_MAX(run->samples, 1);
    } else {
        run->steps_per_epoch = batches_of(run->samples, r->train_batch_size);
        total = steps_of(r, run->steps_per_epoch);
    }
    run->total_steps = r->train_max_steps > 0 ? r->train_max_steps : total;
    if (run->total_steps < 1 && run->samples > 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "train.num_train_epochs %g gives no step: raise it, or the weights of data.train",
                       r->train_num_train_epochs));
    if (r->train_batch_size < run->ranks)
        gr_note("train.batch_size is %lld: %lld of %d ranks have nothing to compute in a step", (long long)r->train_batch_size,
                (long long)(run->ranks - r->train_batch_size), run->ranks);
    run->eval_every = r->eval_every >= 0 ? r->eval_every : GR_MAX(1, run->total_steps / EVALUATIONS);
    run->save_every = r->save_every >= 0 ? r->save_every : run->eval_every;
    run->log_every = r->log_every > 0 ? r->log_every : GR_MAX(1, run->total_steps / LOGGED_WINDOWS);
    run->identity = (gr_train_identity){.data_key = run->train ? (int64_t)run->train->key : 0,
                                        .total_steps = run->total_steps,
                                        .batch_size = r->train_batch_size,
                                        .seed = r->train_seed,
                                        .compute_dtype = gr_compute_type(r->model_dtype, run->session.machine.device)};
done:
    return st;
}

/* ---- micro-batches ---- */

int64_t gr_plan_micro_batch(const gr_run *run, const int64_t *idx, int64_t first, int64_t n, int64_t *end) {
    const int64_t *offset = run->train->offset;
    int64_t rows = 0, at = first;
    for (; at < n; at++) {
        int64_t length = offset[idx[at] + 1] - offset[idx[at]];
        if (at > first && rows + length > run->micro_tokens) break;
        rows += length;
    }
    *end = at;
    return rows;
}

/* Tokens of a step that a rank gets of data that is only assumed: twice the mean, as lengths vary. */
static int64_t assumed_share(const gr_run *run) {
    if (run->ranks == 1 || run->train || run->mean_tokens == 0) return INT64_MAX;
    return 2 * ((run->r->train_batch_size * run->mean_tokens + run->ranks - 1) / run->ranks);
}

/* What one rank does of a step. */
static void meet_samples(const gr_run *run, const int64_t *idx, int64_t n, int64_t *rows, int64_t *targets) {
    for (int64_t first = 0, end; first < n; first = end) {
        *rows = GR_MAX(*rows, gr_plan_micro_batch(run, idx, first, n, &end));
        *targets = GR_MAX(*targets, gr_count_targets(run->train, idx + first, end - first));
    }
}

graft_status gr_plan_largest(const gr_run *run, int64_t longest, int64_t *rows, int64_t *targets, graft_error *err) {
    const int64_t batch = run->r->train_batch_size;
    int64_t steps = run->total_steps, *order = NULL;
    gr_deal deal = {0};
    graft_status st = GRAFT_OK;
    *rows = GR_MAX(longest, GR_MIN(run->micro_tokens, assumed_share(run))), *targets = 0;
    if (!run->train || steps > SEARCHED_SAMPLES / batch) return GRAFT_OK;
    *rows = *targets = 1;
    for (int64_t epoch = 0, n; steps > 0; epoch++) {
        GR_TRY(gr_dataset_order(run->train, (uint64_t)run->r->train_seed, epoch, run->r->data_shuffle, &order, &n, err));
        for (int64_t at = 0; at < n && steps > 0; at += batch, steps--) {
            GR_TRY(gr_deal_samples(&deal, run->train, order + at, GR_MIN(batch, n - at), run->ranks, err));
            for (int i = 0; i < run->ranks; i++)
                meet_samples(run, deal.samples + deal.first[i], deal.first[i + 1] - deal.first[i], rows, targets);
        }
        free(order);
        order = NULL;
        if (n == 0 && epoch > 1000) break; /* weights that leave no sample: the run says so */
    }
done:
    free(order);
    gr_deal_release(&deal);
    return st;
}

/* ---- the memory model ---- */

static int64_t footprint(const gr_run *run, int64_t bytes) {
    return run->session.machine.device->footprint(run->session.machine.device, bytes);
}

bool gr_plan_streams(const gr_recipe *r) { return r->data_cache && strcmp(r->data_cache, "none") != 0; }

static int64_t data_bytes(const gr_dataset *d) { return d ? gr_dataset_bytes(d) : 0; }

bool gr_plan_on_card(const gr_run *run) {
    gr_device *d = run->session.machine.device;
    int64_t total, available;
    return d->memory(d, &total, &available);
}

static int64_t vector_bytes(const gr_model *m) { /* norms and biases that the file does not hold as floats */
    int64_t bytes = 0;
    for (int64_t i = 0; i < gr_weights_count(m->weights); i++) {
        const gr_weight_entry *e = gr_weights_get(m->weights, i);
        if (e->is_vector && e->view.dtype != GR_DTYPE_F32) bytes += e->view.cols * (int64_t)sizeof(float);
    }
    return bytes;
}

/* Rows of A that products of bfloat16 round, once for all threads: the gradients of a chunk of logits, or the
 * rows of the widest fused product. */
static int64_t shared_bytes(const gr_run *run, int64_t rows) {
    const gr_model_config *c = &run->session.model->config;
    int64_t head = gr_decoder_head_rows(run->session.model, &run->plan) * c->vocab;
    int64_t widest = GR_MAX(2 * c->ffn, (c->n_heads + 2 * c->n_kv_heads) * c->head_dim);
    int64_t bytes =
        run->session.model->compute == GR_DTYPE_BF16 ? 2 * GR_MAX(head, rows * widest) : rows * c->hidden * (int64_t)sizeof(float);
    return GR_MIN(footprint(run, run->session.machine.device->shared_bytes), bytes);
}

/* Does no rank have all weights? */
static bool brings_weights(const gr_run *run) {
    return run->params.form.sharded >= GR_SHARDED_VALUES || gr_shard_has_base(run->r, run->sharding, run->ranks);
}

int64_t gr_plan_evaluation_bytes(const gr_run *run, int64_t at_once) {
    int64_t wanted = at_once > 0 ? at_once : run->r->eval_batch_tokens;
    int64_t rows = run->eval ? gr_evaluate_rows(run->eval, wanted) : run->r->data_max_length;
    gr_decoder_options o = {.max_tokens = rows, .max_targets = run->eval ? gr_evaluate_targets(run->eval, wanted) : 0};
    if (!run->eval && run->train) return 0;
    int64_t loss = footprint(run, gr_decoder_plan_bytes(run->session.model, &o)) + rows * BYTES_PER_ROW;
    if (!gr_recipe_has_metric(run->r, "exact_match") || !run->eval) return loss;
    return GR_MAX(loss,
                  gr_exact_match_bytes(run->session.model, run->eval, run->eval_prompt, brings_weights(run) ? 1 : run->ranks));
}

static int64_t result_bytes(const gr_run *run) {
    if (!run->adapter) return gr_merge_bytes(run->session.model, GR_DTYPE_F32);
    return (gr_params_largest(&run->params) + run->params.n_floats) * (int64_t)sizeof(float);
}

/* Of each buffer of the parameter set, with so much of the adapter's rank; rows of tokens have none. */
static int64_t trained_floats(const gr_run *run, double rank) {
    int64_t rows = 0;
    for (int i = 0; run->adapter && i < GR_ROWS_COUNT; i++)
        if (run->adapter->config.rows[i].n > 0) rows += run->params.items[run->adapter->rows[i]].n;
    return rows + (int64_t)((double)(run->params.n_floats - rows) * rank);
}

/* Values, gradients and optimizer states, with adapters of another rank. Of several ranks' the first has most. */
static int64_t trained_bytes(const gr_run *run, double rank) {
    int64_t each[GR_PARAMS_BUFFERS], bytes = 0;
    double share = run->params.n_floats > 0 ? (double)trained_floats(run, rank) / (double)run->params.n_floats : 0;
    gr_params params = run->params;
    params.form.rank = 0;
    gr_params_bytes(&params, each);
    for (int i = 0; i < GR_PARAMS_BUFFERS; i++) bytes += each[i] ? footprint(run, (int64_t)((double)each[i] * share)) : 0;
    return bytes;
}

/* What the others have sent. */
static int64_t exchange_bytes(const gr_run *run, double rank) {
    const gr_params *p = &run->params;
    return p->form.sharded ? footprint(run, gr_shard_bytes(p))
                           : footprint(run, gr_reducer_bytes(run->ranks, trained_floats(run, rank)));
}

gr_memory gr_plan_memory_of(const gr_run *run, const gr_plan_what_if *w) {
    const gr_recipe *r = run->r;
    gr_model *m = run->session.model;
    int64_t loaded = data_bytes(run->train) + data_bytes(run->eval);
    bool int8 = w->forms.base == GR_BASE_INT8, full = !run->adapter;
    gr_decoder_options plan = run->plan;
    plan.max_tokens = GR_MAX(1, (int64_t)((double)plan.max_tokens * w->length));
    gr_memory a = {.data =
                       loaded ? loaded : run->samples * (gr_plan_streams(r) ? BYTES_PER_BLOCK : run->mean_tokens * BYTES_PER_ID)};
    a.program = run->resident - loaded + LATER_BYTES + (run->ranks > 1 && !run->comm ? MPI_BYTES : 0) +
                (run->session.tokenizer ? 0 : m->config.vocab * TOKENIZER_ENTRY_BYTES);
    a.base = full                   ? 0
             : gr_plan_on_card(run) ? gr_model_copied_bytes(m, full, w->forms)
                                    : gr_model_file_bytes(m, w->forms.quantise, int8);
    if (gr_shard_has_base(r, run->sharding, run->ranks)) {
        const gr_weight *embed = &m->embed.w;
        a.base = m->config.tied ? footprint(run, gr_dtype_bytes(embed->dtype, embed->rows * embed->cols)) : 0;
        a.made = gr_frozen_bytes(m, w->forms.quantise, run->ranks);
    } else if (w->forms.quantise >= 0) a.made = footprint(run, gr_model_quantized_bytes(m, (gr_dtype)w->forms.quantise));
    if (int8 || gr_plan_on_card(run)) a.made += gr_model_form_bytes(m, w->forms);
    a.made += gr_config_n_ropes(&m->config) * footprint(run, m->rope_positions * m->config.head_dim * (int64_t)sizeof(float)) +
              (full || gr_plan_on_card(run) ? 0 : vector_bytes(m));
    a.trained = trained_bytes(run, w->rank);
    a.exchange = run->ranks > 1 ? exchange_bytes(run, w->rank) : 0;
    a.threads = gr_plan_on_card(run)
                    ? run->session.machine.device->shared_bytes + gr_model_scratch_bytes(m, w->forms, plan.max_tokens)
                    : shared_bytes(run, plan.max_tokens);
    a.scratch =
        footprint(run, gr_decoder_plan_bytes(m, &plan)) + plan.max_tokens * BYTES_PER_ROW + run->samples * (int64_t)sizeof(int64_t);
    a.evaluation = gr_plan_evaluation_bytes(run, w->eval_rows);
    a.result = result_bytes(run);
    int64_t saving = gr_params_largest(&run->params) * (int64_t)sizeof(float); /* of a checkpoint, an item at a time */
    int64_t steps = a.scratch + GR_MAX(a.evaluation, full ? saving : a.result);
    a.total = a.program + a.data + a.base + a.made + a.trained + a.exchange + a.threads + (full ? GR_MAX(steps, a.result) : steps);
    if (!gr_plan_on_card(run)) return a;
    a.host = a.program + a.data + a.result;
    a.total = a.base + a.made + a.trained + a.exchange + a.threads + a.scratch + a.evaluation;
    return a;
}

gr_model_forms gr_plan_forms(const gr_run *run) {
    return (gr_model_forms){.base = gr_train_products(run->r->model_compute),
                            .backward = true,
                            .expand = run->expand,
                            .elsewhere = brings_weights(run),
                            .quantise = gr_quantize_type(run->r->model_quantize),
                            .trained = !run->adapter && run->r->train_weights != GR_TRAINED_FP32 &&
                                       run->session.model->compute == GR_DTYPE_BF16};
}

bool gr_plan_may_expand(const gr_run *run) {
    gr_model_forms kept = gr_plan_forms(run), made = kept;
    kept.expand = true, made.expand = false;
    return gr_plan_on_card(run) && gr_model_form_bytes(run->session.model, kept) < gr_model_form_bytes(run->session.model, made);
}

gr_plan_what_if gr_plan_as_it_is(const gr_run *run) { return (gr_plan_what_if){gr_plan_forms(run), 1, 1, 0}; }
