/* Steps and memory of a run. The memory model knows everything of size that a run touches; what is small and many (program,
 * libraries, tokenizer, tokenised data) is not modelled but measured: it is there when the plan is made. */
#include "peft/plan.h"

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

enum { MICRO_BATCH_TOKENS = 1024, LOGGED_WINDOWS = 100, EVALUATIONS = 10 };
/* Where the largest micro-batch is looked for, in samples; beyond, what it may be is taken. */
static const int64_t SEARCHED_SAMPLES = 20000000;
/* What is touched only later: HDF5 and the writers of files, their buffers; bytes of a tokenizer's entry where none is open. */
enum { LATER_BYTES = 6 << 20, TOKENIZER_ENTRY_BYTES = 500, BYTES_PER_ID = 5, BYTES_PER_BLOCK = 32, BYTES_PER_ROW = 40 };

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

/* What one rank does of a step. */
static void meet_samples(const gr_run *run, const int64_t *idx, int64_t n, int64_t *rows, int64_t *targets) {
    for (int64_t first = 0, end; first < n; first = end) {
        *rows = GR_MAX(*rows, gr_plan_micro_batch(run, idx, first, n, &end));
        *targets = GR_MAX(*targets, gr_count_targets(run->train, idx + first, end - first));
    }
}

/* Rows of the largest micro-batch that a rank of this run will meet, and the most targets of one: its order is known, and who gets
 * which samples of a step. */
static graft_status largest_micro_batch(const gr_run *run, int64_t longest, int64_t *rows, int64_t *targets, graft_error *err) {
    const int64_t batch = run->r->train_batch_size;
    int64_t steps = run->total_steps, *order = NULL;
    gr_deal deal = {0};
    graft_status st = GRAFT_OK;
    *rows = GR_MAX(longest, run->micro_tokens), *targets = 0;
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

/* What may change to save memory. */
typedef struct what_if {
    gr_model_forms forms;
    double rank;       /* of the recipe's, as a factor */
    double length;     /* of the longest sample, likewise */
    int64_t eval_rows; /* tokens evaluated at once at most, 0: as the recipe says */
} what_if;

static int64_t footprint(const gr_run *run, int64_t bytes) {
    return run->session.machine.device->footprint(run->session.machine.device, bytes);
}

/* Tokens stay on disk until they are wanted. */
static bool streams(const gr_recipe *r) { return r->data_cache && strcmp(r->data_cache, "none") != 0; }

static int64_t data_bytes(const gr_dataset *d) { return d ? gr_dataset_bytes(d) : 0; }

/* Does the device have memory of its own? */
static bool on_card(const gr_run *run) {
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

static int64_t evaluation_bytes(const gr_run *run, int64_t at_once) {
    int64_t wanted = at_once > 0 ? at_once : run->r->eval_batch_tokens;
    int64_t rows = run->eval ? gr_evaluate_rows(run->eval, wanted) : run->r->data_max_length;
    gr_decoder_options o = {.max_tokens = rows, .max_targets = run->eval ? gr_evaluate_targets(run->eval, wanted) : 0};
    if (!run->eval && run->train) return 0;
    int64_t loss = footprint(run, gr_decoder_plan_bytes(run->session.model, &o)) + rows * BYTES_PER_ROW;
    return gr_recipe_has_metric(run->r, "exact_match") && run->eval
               ? GR_MAX(loss, gr_exact_match_bytes(run->session.model, run->eval, run->eval_prompt))
               : loss;
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

/* Values, gradients and optimizer states, with adapters of another rank. */
static int64_t trained_bytes(const gr_run *run, double rank) {
    int64_t each[GR_PARAMS_BUFFERS], bytes = 0;
    double share = run->params.n_floats > 0 ? (double)trained_floats(run, rank) / (double)run->params.n_floats : 0;
    gr_params_bytes(&run->params, each);
    for (int i = 0; i < GR_PARAMS_BUFFERS; i++) bytes += each[i] ? footprint(run, (int64_t)((double)each[i] * share)) : 0;
    return bytes;
}

static gr_memory memory_of(const gr_run *run, const what_if *w) {
    const gr_recipe *r = run->r;
    gr_model *m = run->session.model;
    int64_t loaded = data_bytes(run->train) + data_bytes(run->eval);
    bool int8 = w->forms.base == GR_BASE_INT8, full = !run->adapter;
    gr_decoder_options plan = run->plan;
    plan.max_tokens = GR_MAX(1, (int64_t)((double)plan.max_tokens * w->length));
    gr_memory a = {.data = loaded ? loaded : run->samples * (streams(r) ? BYTES_PER_BLOCK : run->mean_tokens * BYTES_PER_ID)};
    a.program = run->resident - loaded + LATER_BYTES + (run->session.tokenizer ? 0 : m->config.vocab * TOKENIZER_ENTRY_BYTES);
    a.base = full ? 0 : on_card(run) ? gr_model_copied_bytes(m, full, w->forms) : gr_model_file_bytes(m, w->forms.quantise, int8);
    if (w->forms.quantise >= 0) a.made = footprint(run, gr_model_quantized_bytes(m, (gr_dtype)w->forms.quantise));
    if (int8 || on_card(run)) a.made += gr_model_form_bytes(m, w->forms);
    a.made += gr_config_n_ropes(&m->config) * footprint(run, m->rope_positions * m->config.head_dim * (int64_t)sizeof(float)) +
              (full || on_card(run) ? 0 : vector_bytes(m));
    a.trained = trained_bytes(run, w->rank);
    a.threads = on_card(run) ? run->session.machine.device->shared_bytes + gr_model_scratch_bytes(m, w->forms, plan.max_tokens)
                             : shared_bytes(run, plan.max_tokens);
    a.scratch =
        footprint(run, gr_decoder_plan_bytes(m, &plan)) + plan.max_tokens * BYTES_PER_ROW + run->samples * (int64_t)sizeof(int64_t);
    a.evaluation = evaluation_bytes(run, w->eval_rows);
    a.result = result_bytes(run);
    int64_t saving = gr_params_largest(&run->params) * (int64_t)sizeof(float); /* of a checkpoint, an item at a time */
    int64_t steps = a.scratch + GR_MAX(a.evaluation, full ? saving : a.result);
    a.total = a.program + a.data + a.base + a.made + a.trained + a.threads + (full ? GR_MAX(steps, a.result) : steps);
    if (!on_card(run)) return a;
    a.host = a.program + a.data + a.result;
    a.total = a.base + a.made + a.trained + a.threads + a.scratch + a.evaluation;
    return a;
}

gr_model_forms gr_plan_forms(const gr_run *run) {
    return (gr_model_forms){.base = gr_train_products(run->r->model_compute),
                            .backward = true,
                            .expand = run->expand,
                            .quantise = gr_quantize_type(run->r->model_quantize)};
}

/* Are there quantised weights that a card may keep as they are? */
static bool may_expand(const gr_run *run) {
    gr_model_forms kept = gr_plan_forms(run), made = kept;
    kept.expand = true, made.expand = false;
    return on_card(run) && gr_model_form_bytes(run->session.model, kept) < gr_model_form_bytes(run->session.model, made);
}

static what_if as_it_is(const gr_run *run) { return (what_if){gr_plan_forms(run), 1, 1, 0}; }

/* ---- choosing ---- */

enum { CHANGES = 8 };

/* One more thing to change, in the order of what it costs, until the memory fits. */
static bool change(gr_run *run, what_if *w, int step, int64_t longest, gr_str *out) {
    const gr_recipe *r = run->r;
    bool plain = gr_model_quantized_bytes(run->session.model, GR_DTYPE_NF4) > 0;
    switch (step) {
    case 0:
        if (run->plan.recompute == GR_RECOMPUTE_FULL) return false;
        run->plan.recompute = GR_RECOMPUTE_FULL;
        gr_str_puts(out, "train.gradient_checkpointing=full");
        return true;
    case 1:
        if (run->plan.max_tokens <= longest || r->train_gradient_release) return false;
        run->plan.max_tokens = longest;
        gr_str_printf(out, "train.micro_batch_tokens=%lld", (long long)longest);
        return true;
    case 2:
        if (!run->eval || memory_of(run, w).evaluation <= evaluation_bytes(run, longest)) return false;
        w->eval_rows = longest;
        gr_str_printf(out, "eval.batch_tokens=%lld", (long long)longest);
        return true;
    case 3:
        if (w->forms.base != GR_BASE_FP8) return false;
        w->forms.base = GR_BASE_EXACT;
        gr_str_puts(out, "model.compute=exact");
        return true;
    case 4:
        if (!run->adapter || w->forms.quantise >= 0 || !plain || r->model_compute == GR_COMPUTE_INT8) return false;
        w->forms.quantise = GR_DTYPE_NF4, w->forms.expand = on_card(run);
        gr_str_puts(out, "model.quantize=nf4");
        return true;
    case 5:
    case 6:
        if (longest < 64) return false;
        w->length /= 2;
        gr_str_printf(out, "data.max_length=%lld", (long long)((double)longest * w->length));
        return true;
    default:
        if (!run->adapter || run->adapter->n_modules == 0 || r->adapter_rank < 2) return false;
        w->rank /= 2;
        gr_str_printf(out, "adapter.rank=%lld", (long long)GR_MAX(1, r->adapter_rank / 2));
        return true;
    }
}

bool gr_plan_lacks_host(const gr_run *run) { return run->memory.host > run->host_limit; }

static const char *less_data(const gr_run *run) {
    return streams(run->r) ? "fewer samples in data.train"
                           : "fewer samples in data.train, or a data.cache, from which they are read";
}

void gr_plan_advice(gr_run *run, gr_str *out) {
    if (gr_plan_lacks_host(run)) {
        gr_str_printf(out, "%s: the host may give %.2f GiB", less_data(run), (double)run->host_limit / (1 << 30));
        return;
    }
    int64_t longest = run->train ? gr_longest_sample(run->train) : run->r->data_max_length;
    gr_decoder_options kept = run->plan;
    what_if w = as_it_is(run);
    bool first = true;
    for (int step = 0; step < CHANGES; step++) {
        gr_str one = {0};
        if (change(run, &w, step, longest, &one)) {
            int64_t total = memory_of(run, &w).total;
            gr_str_printf(out, "%s%s (%.2f GiB)", first ? "" : ", with it ", one.data ? one.data : "", (double)total / (1 << 30));
            first = false;
            if (total <= run->memory_limit) step = CHANGES;
        }
        gr_str_release(&one);
    }
    if (first) gr_str_puts(out, "a smaller base");
    else if (memory_of(run, &w).total > run->memory_limit) gr_str_puts(out, "; still too much: a smaller base, or more memory");
    run->plan = kept;
}

static void set_limit(gr_run *run) {
    run->resident = gr_memory_resident();
    run->available = gr_memory_available(&run->by_cgroup);
    run->host_limit = INT64_MAX;
    run->memory_limit = run->r->train_memory_limit > 0 ? run->r->train_memory_limit : run->resident + run->available / 4 * 3;
    gr_device *d = run->session.machine.device;
    int64_t total, available;
    if (!d->memory(d, &total, &available)) return;
    if (d->flops <= 0) run->host_limit = run->resident + run->available / 4 * 3; /* a card that is here */
    run->available = available; /* what is free may change: the plan goes by all that there is */
    if (run->r->train_memory_limit <= 0) run->memory_limit = total - total / 16;
}

static graft_status refuse(gr_run *run, graft_error *err) {
    gr_str advice = {0};
    if (gr_plan_lacks_host(run))
        return gr_fail(
            err, GRAFT_BAD_USAGE,
            "beside the card training needs %.1f MiB of the host's memory, %.1f of them for its data; it may have %.1f MiB: what "
            "it holds and three quarters of what is free; less is needed with %s",
            (double)run->memory.host / (1 << 20), (double)run->memory.data / (1 << 20), (double)run->host_limit / (1 << 20),
            less_data(run));
    gr_plan_advice(run, &advice);
    const char *which = run->r->train_memory_limit > 0 ? "train.memory_limit allows"
                        : on_card(run)                 ? "of the card's memory it may have"
                                                       : "train.memory_limit allows, three quarters of what is free,";
    graft_status st = gr_fail(err, GRAFT_BAD_USAGE,
                              "training needs %.1f MiB with micro-batches of %lld tokens, %s %.1f MiB; less is needed with %s",
                              (double)run->memory.total / (1 << 20), (long long)run->plan.max_tokens, which,
                              (double)run->memory_limit / (1 << 20), advice.data ? advice.data : "a smaller base");
    gr_str_release(&advice);
    return st;
}

graft_status gr_plan_least(gr_run *run, graft_error *err) {
    set_limit(run);
    run->expand = may_expand(run);
    what_if w = as_it_is(run);
    run->plan = (gr_decoder_options){.max_tokens = 1, .training = true, .recompute = GR_RECOMPUTE_FULL};
    run->memory = memory_of(run, &w);
    int64_t least = run->memory.total - run->memory.evaluation - run->memory.scratch;
    return least <= run->memory_limit && !gr_plan_lacks_host(run) ? GRAFT_OK : refuse(run, err);
}

const char *gr_plan_policy(const gr_run *run) {
    return gr_key_choice(&gr_recipe_keys[GR_ROW_train_gradient_checkpointing], (int)run->plan.recompute);
}

/* wanted, policy: what is chosen where memory is no matter. */
static void tell_choice(const gr_run *run, int64_t wanted, int policy) {
    const gr_train_split *before = &run->before;
    const bool as_before = run->micro_tokens == before->micro_batch_tokens &&
                           (int64_t)run->plan.recompute == before->gradient_checkpointing && !run->expand;
    char why[64] = "as in the checkpoint";
    if (before->micro_batch_tokens > 0 && run->micro_tokens != before->micro_batch_tokens)
        gr_note("micro-batches of up to %lld tokens, the checkpoint's had up to %lld: from here on sums of gradients are split "
                "otherwise, which changes their rounding",
                (long long)run->micro_tokens, (long long)before->micro_batch_tokens);
    if (run->micro_tokens == wanted && (int)run->plan.recompute == policy && !run->expand) return;
    if (!as_before) snprintf(why, sizeof why, "to stay within %.2f GiB", (double)run->memory_limit / (1 << 30));
    gr_note("memory: micro-batches of up to %lld tokens, gradient_checkpointing %s%s, %s", (long long)run->micro_tokens,
            gr_plan_policy(run), run->expand ? ", quantised weights expanded before each product" : "", why);
}

/* Rows that keep the device busy: a card wants more of them, the more the narrower the model is. */
static int64_t rows_wanted(const gr_run *run) {
    int64_t rows = 4096;
    if (!on_card(run)) return MICRO_BATCH_TOKENS;
    while (rows < 16384 && rows * run->session.model->config.hidden < 4096 * 4096) rows *= 2;
    return rows;
}

/* What saves memory, by what it costs of a step on a card: nothing, 2, 5, 7, 30 and 35 %. */
static const struct {
    gr_recompute recompute;
    bool expand;
} savings[] = {{GR_RECOMPUTE_NONE, false},     {GR_RECOMPUTE_SELECTIVE, false}, {GR_RECOMPUTE_NONE, true},
               {GR_RECOMPUTE_SELECTIVE, true}, {GR_RECOMPUTE_FULL, false},      {GR_RECOMPUTE_FULL, true}};

/* A card's memory may be others' when the run wants it: what to do then is told by what is free now. */
static graft_status keep_advice(gr_run *run, graft_error *err) {
    const int64_t limit = run->memory_limit;
    gr_str advice = {0};
    if (!on_card(run)) return GRAFT_OK;
    run->memory_limit = GR_MIN(limit, run->available);
    gr_str_printf(&advice, "train.memory_limit=%lldMiB, which was free when the run was planned, or ",
                  (long long)(run->available >> 20));
    gr_plan_advice(run, &advice);
    run->memory_limit = limit;
    return (run->less = gr_str_take(&advice)) ? GRAFT_OK : gr_fail_memory(err, "plan");
}

/* The first of these that fits with the rows of the plan, of a policy from first to last. */
static bool fits(gr_run *run, int first, int last) {
    const bool expands = may_expand(run);
    for (size_t i = 0; i < GR_LEN(savings); i++) {
        if ((int)savings[i].recompute < first || (int)savings[i].recompute > last || (savings[i].expand && !expands)) continue;
        run->plan.recompute = savings[i].recompute, run->expand = savings[i].expand;
        const what_if w = as_it_is(run);
        run->memory = memory_of(run, &w);
        if (run->memory.total <= run->memory_limit) return true;
    }
    return false;
}

/* Rows of a micro-batch where all of them fit: a step's, those that were named, those the run has had so far, or the device's. */
static int64_t most_rows(const gr_run *run, int64_t longest, int64_t before) {
    const gr_recipe *r = run->r;
    int64_t step = longest * r->train_batch_size, wanted = r->train_micro_batch_tokens > 0 ? r->train_micro_batch_tokens
                                                           : before > 0                    ? before
                                                                                           : rows_wanted(run);
    return r->train_gradient_release ? step : GR_MAX(longest, GR_MIN(wanted, step));
}

graft_status gr_plan_memory(gr_run *run, int64_t longest, graft_error *err) {
    const gr_recipe *r = run->r;
    const bool any = r->train_gradient_checkpointing == GR_RECOMPUTE_AUTO;
    const int first = any ? GR_RECOMPUTE_NONE : r->train_gradient_checkpointing, last = any ? GR_RECOMPUTE_FULL : first;
    const bool before = any && run->before.micro_batch_tokens > 0;
    const int policy = (int)run->before.gradient_checkpointing;
    gr_decoder_options *o = &run->plan;
    *o = (gr_decoder_options){.training = true,
                              .dropout = r->adapter_method == GR_METHOD_LORA ? (float)r->adapter_dropout : 0,
                              .seed = (uint64_t)r->train_seed};
    set_limit(run);
    if (run->eval && gr_recipe_has_metric(r, "exact_match")) {
        graft_status st = gr_longest_prompt(run->eval, &run->eval_prompt, err);
        if (st != GRAFT_OK) return st;
    }
    run->micro_tokens = most_rows(run, longest, run->before.micro_batch_tokens);
    for (;; run->micro_tokens = GR_MAX(longest, run->micro_tokens / 2)) {
        graft_status st = largest_micro_batch(run, longest, &o->max_tokens, &o->max_targets, err);
        if (st != GRAFT_OK) return st;
        if (r->train_gradient_release && r->train_micro_batch_tokens > 0 && r->train_micro_batch_tokens < o->max_tokens)
            return gr_fail(err, GRAFT_BAD_USAGE,
                           "train.gradient_release needs one micro-batch a step: the largest step has %lld tokens, "
                           "train.micro_batch_tokens is %lld; raise it, or lower train.batch_size",
                           (long long)o->max_tokens, (long long)r->train_micro_batch_tokens);
        const bool found = (before && fits(run, policy, policy)) || fits(run, first, last);
        if (gr_plan_lacks_host(run)) break;
        if (found) {
            tell_choice(run, most_rows(run, longest, 0), first);
            run->identity.split = (gr_train_split){run->micro_tokens, run->plan.recompute};
            return keep_advice(run, err);
        }
        if (run->micro_tokens == longest || r->train_micro_batch_tokens > 0 || r->train_gradient_release) break;
    }
    return refuse(run, err);
}
