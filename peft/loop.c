/* The steps of a run: batch -> micro-batches -> clip -> AdamW -> log, evaluate, save. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "peft/evaluate.h"
#include "peft/interrupt.h"
#include "peft/plan.h"
#include "peft/ranks.h"
#include "peft/schedule.h"
#include "peft/shard.h"

enum { MAX_SKIPS_IN_A_ROW = 10, QUEUED_STEPS = 2 };

/* A step that the device was given and whose sums were not read yet. */
typedef struct queued_step {
    int64_t step, cursor; /* its number; its first sample in the order */
    int64_t tokens, targets;
    gr_mark done;
} queued_step;

typedef struct loop {
    gr_run *run;
    int64_t *order; /* samples of the current epoch */
    int64_t n_order, order_epoch;
    gr_deal deal; /* of the step's samples to the ranks */
    gr_reducer reducer;
    gr_batch batch;
    gr_step_stats *stats; /* [1 + QUEUED_STEPS] device memory: of the step that is made, and copies of the last ones */
    queued_step queued[QUEUED_STEPS];
    int n_queued;
    int64_t saved_step; /* of the newest checkpoint, 0: none */
    int64_t first_step; /* that was done before this process began */
    int64_t sent;       /* bytes of gradients and weights to other ranks, in the steps since */
    gr_progress progress;
    double window_started; /* seconds; evaluation and saving do not count */
    double speed;          /* tokens/s of the last logged window */
    double learning_rate;  /* of the step that is made */
    bool stop;             /* early stopping */
    bool leave;            /* some rank was asked to leave, and all know it */
} loop;

/* ---- one step ---- */

static gr_device *device_of(const loop *l) { return l->run->session.machine.device; }

static gr_adamw adamw_of(const gr_recipe *r) {
    return (gr_adamw){.beta1 = (float)r->train_adam_beta1,
                      .beta2 = (float)r->train_adam_beta2,
                      .epsilon = (float)r->train_adam_epsilon,
                      .weight_decay = (float)r->train_weight_decay};
}

static void zero_gradients(loop *l, int64_t from, int64_t to) {
    float *grad = l->run->params.grad;
    device_of(l)->zero(device_of(l), grad + from, (to - from) * (int64_t)sizeof *grad);
}

/* Gradient release: those of a layer are whole, and their place is another's next. The head comes first, after the loss. */
static void update_layer(void *context, int64_t layer) {
    loop *l = context;
    gr_params *p = &l->run->params;
    gr_device *dev = device_of(l);
    const gr_adamw how = adamw_of(l->run->r);
    int64_t first = 0, end, from, to;
    if (layer == l->run->session.model->config.n_layers) dev->ops->step_prepare(dev, l->stats, 0, true);
    while (first < p->n_items && p->items[first].layer != layer) first++;
    if (first == p->n_items) return;
    for (end = first + 1; end < p->n_items && p->items[end].layer == layer;) end++;
    from = p->items[first].grad_at, to = p->items[end - 1].grad_at + p->items[end - 1].n;
    dev->ops->sum_squares(dev, l->stats, p->grad + from, to - from);
    dev->ops->step_check(dev, l->stats, true);
    gr_params_update(p, first, end, l->learning_rate, &how, l->stats);
    zero_gradients(l, from, to);
}

/* With sharding: they go to the ranks that update them. */
static void reduce_layer(void *context, int64_t layer) { gr_shard_reduce(&((loop *)context)->run->shard, layer); }

static void ignore_layer(void *context, int64_t layer) { (void)context, (void)layer; }

void gr_run_release_gradients(gr_run *run) {
    const gr_params_form *form = &run->params.form;
    if (!form->release && !form->sharded) return;
    run->hooks = (gr_layer_hooks){
        .enter = ignore_layer, .leave = ignore_layer, .gradient_ready = form->release ? update_layer : reduce_layer};
    run->plan.hooks = &run->hooks;
}

/* Micro-batches of the rank that has most of them, of the samples that were dealt. */
static int64_t most_micro_batches(const loop *l) {
    int64_t most = 0;
    for (int i = 0; i < gr_comm_size(l->run->comm); i++) {
        const int64_t *idx = l->deal.samples + l->deal.first[i], n = l->deal.first[i + 1] - l->deal.first[i];
        int64_t count = 0;
        for (int64_t first = 0, end; first < n; first = end, count++) (void)gr_plan_micro_batch(l->run, idx, first, n, &end);
        most = GR_MAX(most, count);
    }
    return most;
}

static graft_status micro_batch(loop *l, const int64_t *idx, int64_t first, int64_t end, const gr_loss *loss, graft_error *err) {
    graft_status st = gr_batch_fill(&l->batch, l->run->train, idx + first, end - first, l->run->state.epoch, err);
    return st == GRAFT_OK ? gr_decoder_train(l->run->decoder, &l->batch, loss, err) : st;
}

/* Forward and backward over this rank's part of samples idx[0..n), as many whole ones at a time as the plan has rows for. The
 * gradient is that of the mean over all targets of the step, whatever the split. */
static graft_status accumulate(loop *l, const int64_t *idx, int64_t n, queued_step *step, graft_error *err) {
    gr_run *run = l->run;
    gr_device *dev = device_of(l);
    graft_status st = GRAFT_OK;
    int64_t joined = 0; /* micro-batches of this rank, or of that which has most where all ranks go in step */
    step->targets = gr_count_targets(run->train, idx, n);
    for (int64_t i = 0; i < n; i++) step->tokens += run->train->offset[idx[i] + 1] - run->train->offset[idx[i]];
    if (run->comm) {
        const int rank = gr_comm_rank(run->comm);
        GR_TRY(gr_deal_samples(&l->deal, run->train, idx, n, gr_comm_size(run->comm), err));
        idx = l->deal.samples + l->deal.first[rank], n = l->deal.first[rank + 1] - l->deal.first[rank];
        if (gr_shard_in_step(&run->shard)) joined = most_micro_batches(l);
    }
    gr_loss loss = {.scale = 1.0f / (float)GR_MAX(step->targets, 1),
                    .z_loss = (float)run->r->train_z_loss,
                    .stats = l->stats,
                    .scaled = run->state.loss_scale > 0};
    dev->ops->step_begin(dev, l->stats);
    zero_gradients(l, 0, run->params.n_grads);
    if (run->params.sum) dev->zero(dev, run->params.sum, run->params.n_mine * (int64_t)sizeof(float));
    for (int64_t first = 0, end; first < n && st == GRAFT_OK; first = end, loss.first_row += l->batch.n, joined--) {
        (void)gr_plan_micro_batch(run, idx, first, n, &end);
        st = micro_batch(l, idx, first, end, &loss, err);
        if (st != GRAFT_OK) break; /* the others go on: they are joined below */
    }
    for (; joined > 0; joined--) gr_decoder_join(run->decoder);
done:
    return st;
}

static int64_t length_of(const loop *l, int64_t sample) {
    return l->run->train->offset[sample + 1] - l->run->train->offset[sample];
}

/* A row of this rank's part of a step as one of all: its sample's first. -1 stays. */
static int64_t row_of_step(const loop *l, const queued_step *step, int64_t row) {
    const int64_t *sample = l->deal.samples + l->deal.first[gr_comm_rank(l->run->comm)], *each = l->order + step->cursor;
    if (row < 0) return -1;
    while ((row -= length_of(l, *sample)) >= 0) sample++;
    for (row = 0; *each != *sample; each++) row += length_of(l, *each);
    return row;
}

typedef struct rank_sums {
    double nll, squares;
    int64_t bad_row; /* of the step */
} rank_sums;

/* The sums of a step, and its gradients where all ranks have all of them, become those of all ranks, which have the same bits
 * then. */
static graft_status reduce(loop *l, const queued_step *step, graft_error *err) {
    gr_comm *comm = l->run->comm;
    gr_device *dev = device_of(l);
    const gr_params *p = &l->run->params;
    const int size = gr_comm_size(comm);
    gr_step_stats sums;
    graft_status st = GRAFT_OK;
    if (!comm) return GRAFT_OK;
    if (p->sum && p->n_mine > 0) dev->ops->sum_squares(dev, l->stats, p->sum, p->n_mine);
    rank_sums *all = gr_calloc(size, sizeof *all);
    if (!all) return gr_fail_memory(err, "sums over ranks");
    const gr_mark made = dev->mark(dev, GR_QUEUE_COMPUTE); /* a device that is joined adds up gradients while sums are told */
    if (!p->sum) GR_TRY(gr_reducer_sum(&l->reducer, "the gradients", p->grad, err));
    dev->download(dev, &sums, l->stats, sizeof sums, made);
    GR_TRY(gr_comm_status(comm, err));
    const rank_sums mine = {sums.nll, sums.squares, row_of_step(l, step, sums.bad_row)};
    GR_TRY(gr_comm_gather(comm, "the loss", &mine, sizeof mine, all, err));
    sums.nll = sums.squares = 0, sums.bad_row = -1;
    for (int i = 0; i < size; i++) {
        sums.nll += all[i].nll, sums.squares += all[i].squares;
        if (all[i].bad_row >= 0 && (sums.bad_row < 0 || all[i].bad_row < sums.bad_row)) sums.bad_row = all[i].bad_row;
    }
    dev->upload(dev, l->stats, &sums, sizeof sums);
done:
    free(all);
    return st;
}

/* Was this run asked to leave? Ranks must all know it, or none: what they know is what they told each other in the last step. */
static bool is_leaving(const loop *l) { return l->run->comm ? l->leave : gr_interrupted(); }

/* All ranks go on, or none. */
static graft_status meet(loop *l, const char *what, graft_status mine, graft_error *err) {
    const bool knew = l->leave;
    l->leave = l->leave || gr_interrupted();
    graft_status st = gr_comm_agree(l->run->comm, what, mine, &l->leave, err);
    if (l->run->comm && l->leave && !knew && st == GRAFT_OK) gr_note("asked to leave: the step is being finished and saved");
    return st;
}

/* The sample of the step to which a row belongs. */
static int64_t sample_of(const loop *l, const queued_step *step, int64_t row) {
    const int64_t *sample = l->order + step->cursor;
    while ((row -= length_of(l, *sample)) >= 0) sample++;
    return *sample;
}

static const char *nonfinite_gradient(const gr_params *p) {
    const char *found = NULL;
    float *grad = gr_calloc(gr_params_largest(p), sizeof *grad);
    for (int64_t i = 0; grad && i < p->n_items && !found; i++) {
        gr_params_read(p, GR_PARAMS_GRAD, i, grad);
        for (int64_t k = 0; k < p->items[i].n && !found; k++)
            if (!isfinite(grad[k])) found = p->items[i].name;
    }
    if (!grad) return "(which one: no memory to look)";
    free(grad);
    return found ? found : "(their norm overflows)";
}

/* A NaN or infinity in a step: stop with what and where, or count it as skipped. */
static graft_status nonfinite(loop *l, const queued_step *step, const gr_step_stats *sums, graft_error *err) {
    gr_train_state *s = &l->run->state;
    bool released = l->run->params.form.release && isfinite(sums->nll);
    char what[256];
    if (sums->bad_row >= 0)
        snprintf(what, sizeof what, "the loss of training sample %lld", (long long)sample_of(l, step, sums->bad_row) + 1);
    else if (l->n_queued > 0 || l->run->params.form.release || l->run->params.form.sharded)
        snprintf(what, sizeof what, "a gradient"); /* those of a later step are there by now, or of another rank */
    else snprintf(what, sizeof what, "the gradient of %s", nonfinite_gradient(&l->run->params));
    s->skipped_in_a_row++;
    if (l->run->r->train_on_nonfinite == GR_NONFINITE_SKIP && s->skipped_in_a_row < MAX_SKIPS_IN_A_ROW) {
        gr_warn("step %lld skipped: %s is not finite", (long long)step->step, what);
        return GRAFT_OK;
    }
    s->step = step->step - 1; /* the last one that was done */
    return gr_fail(err, GRAFT_FAILED,
                   "step %lld: %s is not finite; %s was updated. Lower train.learning_rate (now %g), check the data, or "
                   "continue from the last checkpoint with --resume",
                   (long long)step->step, what, released ? "what is above its layer" : "nothing", l->run->r->train_learning_rate);
}

/* The sums of the oldest queued step, once the device has them. */
static graft_status settle_one(loop *l, graft_error *err) {
    gr_train_state *s = &l->run->state;
    gr_device *dev = device_of(l);
    queued_step step = l->queued[0];
    gr_step_stats sums;
    l->queued[0] = l->queued[1];
    l->n_queued--;
    dev->download(dev, &sums, l->stats + 1 + step.step % QUEUED_STEPS, sizeof sums, step.done);
    graft_status st = gr_comm_status(l->run->comm, err);
    if (st != GRAFT_OK) return st;
    s->optimizer_step = sums.optimizer_step;
    s->loss_scale = (double)sums.loss_scale, s->good_steps = sums.good_steps;
    if (sums.nonfinite && s->loss_scale > 0 && isfinite(sums.nll) && !sums.halt) {
        gr_note("step %lld: gradients beyond half floats, not updated; the loss scale is %g now", (long long)step.step,
                s->loss_scale);
        return GRAFT_OK;
    }
    if (sums.nonfinite) return nonfinite(l, &step, &sums, err);
    s->skipped_in_a_row = 0;
    s->window_loss += sums.nll;
    s->window_targets += step.targets;
    s->window_grad_norm = sqrt(sums.squares);
    s->final_loss = sums.nll / (double)GR_MAX(step.targets, 1);
    return GRAFT_OK;
}

/* What the run's state says is what was computed, for those who read it. */
static graft_status settle(loop *l, graft_error *err) {
    while (l->n_queued > 0) {
        graft_status st = settle_one(l, err);
        if (st != GRAFT_OK) return st;
    }
    return gr_device_status(device_of(l), err);
}

/* The order of the epoch that the run is in. */
static graft_status load_order(loop *l, graft_error *err) {
    gr_run *run = l->run;
    int64_t epoch = run->state.epoch;
    if (l->order && l->order_epoch == epoch) return GRAFT_OK;
    graft_status st = settle(l, err); /* steps of the epoch before may have something to tell */
    if (st != GRAFT_OK) return st;
    free(l->order);
    l->order = NULL;
    l->order_epoch = epoch;
    return gr_dataset_order(run->train, (uint64_t)run->r->train_seed, epoch, run->r->data_shuffle, &l->order, &l->n_order, err);
}

/* Samples [*first, end) of the epoch that make the next step; a new epoch begins when the last is used up. */
static graft_status next_samples(loop *l, int64_t *end, graft_error *err) {
    gr_run *run = l->run;
    gr_train_state *s = &run->state;
    graft_status st = GRAFT_OK;
    while (true) {
        GR_TRY(load_order(l, err));
        if (s->cursor < l->n_order) break;
        if (l->n_order == 0 && s->epoch > 1000000) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "data.train: the weights leave no sample"));
        s->epoch++;
        s->cursor = 0;
    }
    *end = GR_MIN(s->cursor + run->r->train_batch_size, l->n_order);
done:
    return st;
}

static graft_status update(loop *l, graft_error *err) {
    gr_run *run = l->run;
    gr_device *dev = device_of(l);
    const gr_adamw how = adamw_of(run->r);
    if (!run->params.form.release) {
        if (!run->params.sum) dev->ops->sum_squares(dev, l->stats, run->params.grad, run->params.n_floats);
        dev->ops->step_prepare(dev, l->stats, run->r->train_max_grad_norm, run->r->train_on_nonfinite != GR_NONFINITE_SKIP);
        gr_params_update(&run->params, 0, run->params.n_items, l->learning_rate, &how, l->stats);
    }
    graft_status st = gr_shard_renew(&run->shard, err);
    if (!run->session.model->elsewhere.bring) gr_model_renew(run->session.model);
    return st;
}

/* One step is queued; on a device that works beside the host, the sums of the step before are read while it runs. */
static graft_status train_step(loop *l, graft_error *err) {
    gr_run *run = l->run;
    gr_train_state *s = &run->state;
    gr_device *dev = device_of(l);
    graft_status st;
    int64_t end;
    const int64_t sent = run->shard.move.sent + l->reducer.move.sent;
    GR_TRY(next_samples(l, &end, err));
    queued_step step = {.step = s->step + 1, .cursor = s->cursor};
    l->learning_rate = gr_learning_rate(run->r, step.step, run->total_steps);
    gr_comm_at_step(run->comm, step.step);
    st = accumulate(l, l->order + s->cursor, end - s->cursor, &step, err);
    GR_TRY(meet(l, "the samples", gr_shard_status(&run->shard, st, err), err));
    GR_TRY(reduce(l, &step, err));
    GR_TRY(update(l, err));
    dev->copy(dev, l->stats + 1 + step.step % QUEUED_STEPS, l->stats, sizeof *l->stats);
    step.done = dev->mark(dev, GR_QUEUE_COMPUTE);
    l->queued[l->n_queued++] = step;
    s->step++;
    s->cursor = end;
    l->sent += run->shard.move.sent + l->reducer.move.sent - sent;
    s->window_tokens += step.tokens;
    s->num_tokens += step.tokens;
    s->num_target_tokens += step.targets;
    while (l->n_queued > (dev->queues ? 1 : 0)) GR_TRY(settle_one(l, err));
done:
    return st;
}

/* ---- what happens between steps ---- */

static double epoch_of(const loop *l) {
    return (double)l->run->state.epoch + (double)l->run->state.cursor / (double)GR_MAX(l->n_order, 1);
}

static graft_status log_window(loop *l, graft_error *err) {
    gr_run *run = l->run;
    gr_train_state *s = &run->state;
    double seconds = gr_now() - l->window_started;
    bool learned = s->window_targets > 0; /* a window of skipped steps has no loss, and above all not 0 */
    l->speed = (double)s->window_tokens / GR_MAX(seconds, 1e-9);
    gr_train_row row = {.step = s->step,
                        .epoch = epoch_of(l),
                        .loss = learned ? s->window_loss / (double)s->window_targets : NAN,
                        .grad_norm = learned ? s->window_grad_norm : NAN,
                        .learning_rate = gr_learning_rate(run->r, s->step, run->total_steps),
                        .tokens_per_second = l->speed,
                        .num_tokens = s->num_tokens,
                        .num_target_tokens = s->num_target_tokens};
    graft_status st = run->metrics ? gr_metrics_train(run->metrics, &row, err) : GRAFT_OK;
    s->window_loss = 0;
    s->window_targets = s->window_tokens = 0;
    l->window_started = gr_now();
    return st;
}

/* Before output_dir is written to, on all ranks; mine: how this one comes here. What was best went with a folder that is gone. */
static graft_status hold_folder(loop *l, const char *what, graft_status mine, graft_error *err) {
    gr_run *run = l->run;
    bool anew = false;
    if (mine == GRAFT_OK && gr_comm_rank(run->comm) == 0) mine = gr_folder_hold(run, &anew, err);
    mine = gr_comm_agree(run->comm, what, mine, &anew, err);
    if (mine != GRAFT_OK || !anew) return mine;
    run->state.best_eval_loss = NAN;
    run->state.best_step = -1;
    run->state.evals_since_best = 0;
    return GRAFT_OK;
}

static graft_status evaluate(loop *l, graft_error *err) {
    gr_run *run = l->run;
    gr_train_state *s = &run->state;
    graft_status st;
    graft_error why = {0};
    double started = gr_now();
    gr_eval_row row = {.step = s->step, .epoch = epoch_of(l), .exact_match = NAN};
    gr_match_options match = {
        .end_id = gr_chat_end_of_turn(run->session.chat), .max_tokens = GR_EXACT_MATCH_TOKENS, .comm = run->comm};
    GR_TRY(settle(l, err));
    st = gr_evaluate(run->session.model, run->eval, run->r->eval_batch_tokens, run->comm, NULL, &row.eval_loss, NULL, NULL, &why);
    if (st == GRAFT_FAILED && !run->comm)
        GR_TRY(gr_fail(err, st, "step %lld: %s; nothing of it was saved", (long long)s->step, why.msg));
    if (st != GRAFT_OK && err) *err = why;
    GR_TRY(st);
    row.eval_runtime = gr_now() - started;
    row.eval_samples_per_second = (double)run->eval->n_samples / GR_MAX(row.eval_runtime, 1e-9);
    if (gr_recipe_has_metric(run->r, "exact_match"))
        GR_TRY(gr_evaluate_exact_match(run->session.model, run->session.tokenizer, run->eval, &match, &row.exact_match, err));
    GR_TRY(hold_folder(l, "an evaluation", GRAFT_OK, err));
    if (run->metrics) GR_TRY(gr_metrics_eval(run->metrics, &row, err));
    if (isnan(row.exact_match)) gr_note("step %lld: eval loss %.4f", (long long)s->step, row.eval_loss);
    else gr_note("step %lld: eval loss %.4f, exact match %.1f %%", (long long)s->step, row.eval_loss, 100 * row.exact_match);
    run->last_eval_loss = row.eval_loss;
    s->evaluated_step = s->step;
    bool better = isnan(s->best_eval_loss) || row.eval_loss < s->best_eval_loss;
    if (better) {
        s->best_eval_loss = row.eval_loss;
        s->best_step = s->step;
    }
    s->evals_since_best = better ? 0 : s->evals_since_best + 1;
    int64_t patience = run->r->eval_early_stopping_patience;
    if (patience > 0 && s->evals_since_best >= patience) {
        gr_note("no improvement in %lld evaluations: stopping early", (long long)patience);
        l->stop = true;
    }
    if (!better || !run->r->save_best || !run->adapter) goto done;
    if (gr_comm_rank(run->comm) == 0) st = gr_run_export(run, err);
    GR_TRY(gr_comm_await(run->comm, "the best adapter", st, err));
done:
    return st;
}

static graft_status save(loop *l, graft_error *err) {
    gr_run *run = l->run;
    graft_status st;
    int64_t best;
    char *folder = gr_checkpoint_folder(run->r->_output_dir, run->state.step);
    if (!folder) return gr_fail_memory(err, "checkpoint");
    GR_TRY(hold_folder(l, "saving", settle(l, err), err)); /* all are there: after a loss nothing is begun */
    best = run->r->save_best ? run->state.best_step : -1;
    GR_TRY(gr_checkpoint_save(run->r->_output_dir, run->adapter, &run->params, &run->state, &run->identity, run->comm, err));
    gr_last_checkpoint_set(folder);
    l->saved_step = run->state.step;
    if (!run->metrics) goto done; /* what follows is rank 0's */
    GR_TRY(gr_run_facts_save(run, err));
    gr_checkpoint_prune(run->r->_output_dir, run->r->save_save_total_limit, best);
done:
    free(folder);
    return st;
}

static bool due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }

/* An evaluation belongs to the step that was done last and has not been made: after a step, or in a run that was interrupted before
 * it. */
static bool evaluation_is_due(const gr_run *run) {
    int64_t step = run->state.step;
    return run->eval && step > 0 && step != run->state.evaluated_step && (step == run->total_steps || due(step, run->eval_every));
}

/* Evaluate when it is due. An interrupt leaves that for the resumed run, so that it ends as the uninterrupted one. */
static graft_status evaluate_if_due(loop *l, bool *evaluated, graft_error *err) {
    *evaluated = false;
    if (!evaluation_is_due(l->run) || is_leaving(l)) return GRAFT_OK;
    graft_status st = evaluate(l, err);
    *evaluated = st == GRAFT_OK;
    if (st == GRAFT_INTERRUPTED) l->leave = true;
    return st == GRAFT_INTERRUPTED ? GRAFT_OK : st;
}

static void tell_progress(loop *l, double learning_rate, bool evaluated) {
    gr_run *run = l->run;
    const gr_train_state *s = &run->state;
    double speed = l->speed > 0 ? l->speed : (double)s->window_tokens / GR_MAX(gr_now() - l->window_started, 1e-9);
    gr_train_progress p = {.step = s->step,
                           .total_steps = run->total_steps,
                           .epoch = epoch_of(l),
                           .loss = s->final_loss,
                           .learning_rate = learning_rate,
                           .tokens_per_second = speed,
                           .eval_loss = evaluated ? run->last_eval_loss : NAN};
    if (run->progress && run->progress(run->payload, &p) != 0) gr_interrupt();
}

/* What follows a step, or the loading of a checkpoint: evaluation and saving, when due. */
static graft_status evaluate_and_save(loop *l, bool first, graft_error *err) {
    gr_run *run = l->run;
    gr_train_state *s = &run->state;
    graft_status st;
    bool evaluated, last = s->step == run->total_steps;
    double paused = gr_now();
    GR_TRY(evaluate_if_due(l, &evaluated, err));
    if (!first || evaluated) tell_progress(l, gr_learning_rate(run->r, s->step, run->total_steps), evaluated);
    bool best = evaluated && s->best_step == s->step && run->r->save_best && !run->adapter; /* all weights: kept as a checkpoint */
    if (first ? evaluated : last || l->stop || is_leaving(l) || best || due(s->step, run->save_every)) GR_TRY(save(l, err));
    l->window_started += gr_now() - paused;
done:
    return st;
}

static graft_status after_step(loop *l, graft_error *err) {
    gr_run *run = l->run;
    gr_train_state *s = &run->state;
    graft_status st = GRAFT_OK;
    bool logged = due(s->step, run->log_every) || s->step == run->total_steps;
    /* What a log or a callback is told is this step's; a line on the screen may show the loss of the one before. */
    if (logged || run->progress || isnan(s->final_loss)) GR_TRY(settle(l, err));
    gr_progress_update(&l->progress, s->step, "loss %.4f  lr %.2e  %.0f tok/s", s->final_loss,
                       gr_learning_rate(run->r, s->step, run->total_steps),
                       l->speed > 0 ? l->speed : (double)s->window_tokens / GR_MAX(gr_now() - l->window_started, 1e-9));
    if (logged) GR_TRY(log_window(l, err));
    GR_TRY(evaluate_and_save(l, false, err));
done:
    return st;
}

/* A checkpoint that was loaded may leave something of its last step to do, or nothing at all. */
static graft_status begin(loop *l, graft_error *err) {
    gr_run *run = l->run;
    int64_t patience = run->r->eval_early_stopping_patience;
    graft_status st = meet(l, "the beginning", load_order(l, err), err);
    if (st == GRAFT_OK && run->state.step > 0) st = evaluate_and_save(l, true, err);
    if (patience > 0 && run->state.evals_since_best >= patience) {
        gr_note("the run has stopped early: with eval.early_stopping_patience raised, it goes on");
        l->stop = true;
    }
    return st;
}

/* Leave when a signal asked for it; one that came after the step was looked at still finds it saved. */
static graft_status check_interrupt(loop *l, graft_error *err) {
    const gr_run *run = l->run;
    if (!is_leaving(l) || l->stop || (run->state.step >= run->total_steps && !evaluation_is_due(run))) return GRAFT_OK;
    if (run->state.step == 0) return gr_fail(err, GRAFT_INTERRUPTED, "before the first step: nothing was saved");
    if (l->saved_step != run->state.step) {
        graft_status st = save(l, err);
        if (st != GRAFT_OK) return st;
    }
    return gr_fail(err, GRAFT_INTERRUPTED, "at step %lld of %lld, saved in %s/checkpoint-%lld: continue with --resume",
                   (long long)run->state.step, (long long)run->total_steps, run->r->_output_dir, (long long)run->state.step);
}

graft_status gr_run_steps(gr_run *run, graft_error *err) {
    loop l = {.run = run, .saved_step = run->state.step, .first_step = run->state.step};
    run->hooks.context = &l;
    graft_status st = GRAFT_OK;
    gr_device *dev = device_of(&l);
    bool halves = run->session.model->compute == GR_DTYPE_F16 && dev->act_type(dev, GR_DTYPE_F16) == GR_DTYPE_F16;
    if (halves && run->state.loss_scale <= 0) run->state.loss_scale = GR_LOSS_SCALE_FIRST;
    if (halves && run->params.form.release)
        return gr_fail(
            err, GRAFT_BAD_USAGE,
            "model.dtype fp16 needs a loss scale that is known when all gradients are there, which train.gradient_release "
            "does not have: use bf16, or no gradient_release");
    if (!halves) run->state.loss_scale = 0; /* of a run that began where gradients are half floats */
    gr_step_stats begun = {.optimizer_step = run->state.optimizer_step,
                           .loss_scale = (float)run->state.loss_scale,
                           .good_steps = (int32_t)run->state.good_steps};
    const int64_t stats_bytes = (1 + QUEUED_STEPS) * (int64_t)sizeof *l.stats;
    l.stats = dev->alloc(dev, stats_bytes);
    if (!l.stats) return gr_fail_device_memory(dev, stats_bytes, "the sums of a step", err);
    dev->upload(dev, l.stats, &begun, sizeof begun);
    gr_progress_start(&l.progress, "train", run->total_steps);
    gr_progress_update(&l.progress, run->state.step, run->state.step < run->total_steps ? "first step" : "no step is left");
    l.window_started = gr_now();
    if (!run->params.sum) GR_TRY(gr_reducer_init(&l.reducer, run->comm, dev, run->params.n_floats, err));
    GR_TRY(begin(&l, err));
    GR_TRY(check_interrupt(&l, err));
    while (run->state.step < run->total_steps && !l.stop) {
        GR_TRY(train_step(&l, err));
        GR_TRY(after_step(&l, err));
        GR_TRY(check_interrupt(&l, err));
    }
    GR_TRY(gr_ranks_tell(run->comm, run->state.step - l.first_step, l.sent, err));
done:
    gr_progress_end(&l.progress);
    if (st != GRAFT_OK) gr_ranks_leave(dev);
    free(l.order);
    dev->free(dev, l.stats);
    gr_deal_release(&l.deal);
    gr_reducer_release(&l.reducer);
    gr_batch_release(&l.batch);
    return st;
}
