/* The plan told: as numbers, and as text for people. */
#include <math.h>
#include <string.h>

#include "adapters/export.h"
#include "core/base/memory.h"
#include "peft/plan.h"
#include "peft/schedule.h"

static const double GIB = 1 << 30;

/* ---- numbers ---- */

static void disk_of(const gr_run *run, gr_plan_facts *f) {
    const gr_recipe *r = run->r;
    int64_t n = run->params.n_parameters, saves = run->save_every > 0 ? run->total_steps / run->save_every + 1 : 1;
    int64_t each[GR_PARAMS_BUFFERS];
    gr_params_bytes(&run->params, each);
    bool moments = run->params.form.optimizer == GR_OPTIMIZER_ADAMW;
    f->checkpoint_bytes = n * (moments ? 3 : 1) * (int64_t)sizeof(float) + each[GR_PARAMS_BUFFERS - 1];
    f->result_bytes = n * (int64_t)sizeof(float);
    bool cached = r->data_cache && strcmp(r->data_cache, "none") != 0 && !(run->train && run->train->from_cache);
    int64_t tokens = run->train ? run->train->offset[run->train->n_samples] : run->samples * run->mean_tokens;
    f->cache_bytes = cached ? tokens * (int64_t)(sizeof(int32_t) + sizeof(uint8_t)) : 0;
    int64_t kept = GR_MIN(saves, r->save_save_total_limit + (r->save_best ? 1 : 0)) + 1; /* one in the making */
    f->disk_bytes =
        f->checkpoint_bytes * kept + f->result_bytes * 2 + f->cache_bytes; /* the result, too, is written beside the old one */
    f->disk_free = gr_disk_free(r->_output_dir ? r->_output_dir : ".");
}

void gr_plan_facts_of(const gr_run *run, gr_plan_facts *f) {
    *f = (gr_plan_facts){.memory = run->memory,
                         .limit = run->memory_limit,
                         .available = run->available,
                         .by_cgroup = run->by_cgroup,
                         .fits = run->memory.total <= run->memory_limit && !gr_plan_lacks_host(run),
                         .step_seconds = NAN,
                         .evaluation_seconds = NAN,
                         .run_seconds = NAN,
                         .epoch_seconds = NAN,
                         .ranks = run->ranks,
                         .sharding = gr_plan_sharding(run)};
    if (run->samples > 0) f->tokens_per_step = GR_MIN(run->samples, run->r->train_batch_size) * run->mean_tokens;
    if (run->ranks > 1) f->sent_bytes = gr_plan_sent(run, NULL, NULL);
    disk_of(run, f);
}

/* ---- text ---- */

const char *gr_thousands(int64_t n, char out[32]) {
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%lld", (long long)n), k = 0;
    for (int i = 0; i < len; i++) {
        out[k++] = digits[i];
        if ((len - i) % 3 == 1 && i + 1 < len && digits[i] != '-') out[k++] = ',';
    }
    out[k] = '\0';
    return out;
}

static int64_t model_parameters(const gr_model *m) {
    int64_t n = 0;
    for (int64_t i = 0; i < gr_weights_count(m->weights); i++) {
        const gr_weight *w = &gr_weights_get(m->weights, i)->view;
        n += w->rows * w->cols;
    }
    return n;
}

static void put_duration(gr_str *out, double s) {
    if (s < 0.1) gr_str_printf(out, "%.2g ms", 1000 * s);
    else if (s < 10) gr_str_printf(out, "%.2g s", s);
    else if (s < 600) gr_str_printf(out, "%.0f s", s);
    else if (s < 7200) gr_str_printf(out, "%.0f min", s / 60);
    else gr_str_printf(out, "%.1f h", s / 3600);
}

static void put_size(gr_str *out, int64_t bytes) {
    if (bytes < 100 << 20) gr_str_printf(out, "%.1f MiB", (double)bytes / (1 << 20));
    else gr_str_printf(out, "%.2f GiB", (double)bytes / GIB);
}

static void put_steps(const gr_run *run, const char *missing, gr_str *out) {
    char text[32];
    if (run->samples == 0) {
        if (missing) gr_str_printf(out, "steps                 data: %s is not here: no steps", missing);
        else gr_str_puts(out, "steps                 no data: no steps");
        if (run->total_steps > 0) gr_str_printf(out, " of an epoch; train.max_steps says %lld", (long long)run->total_steps);
        gr_str_puts(out, " (--samples N --mean-tokens L assume a set)\n");
        return;
    }
    gr_str_printf(out, "training samples      %s%s", gr_thousands(run->samples, text), run->train ? "" : " (assumed)");
    gr_str_printf(out, ", %lld tokens each on average\n", (long long)run->mean_tokens);
    gr_str_printf(out, "steps                 %s (%lld an epoch, warmup %lld)\n", gr_thousands(run->total_steps, text),
                  (long long)run->steps_per_epoch, (long long)gr_warmup_steps(run->r, run->total_steps));
}

/* What ranks share out. */
static void put_ranks(const gr_run *run, const gr_plan_facts *f, gr_str *out) {
    static const char *const what[] = {
        [GR_SHARDING_NONE] = "each has all of what is trained",
        [GR_SHARDING_ZERO1] = "each has a share of the optimizer's states and of the sums of gradients",
        [GR_SHARDING_ZERO2] =
            "each has a share of the optimizer's states and of the sums of gradients, and its own gradients of one "
            "layer at a time",
        [GR_SHARDING_ZERO3] =
            "each has a share of weights, gradients and the optimizer's states, and a few layers of them at a time"};
    const char *shared = gr_shard_has_base(run->r, run->sharding, run->ranks)
                             ? "each has a share of the base, and two layers of it at a time"
                             : what[run->sharding];
    gr_str_printf(out, "ranks                 %d, sharding %s: %s\n", run->ranks, f->sharding, shared);
    gr_str_puts(out, "                      each sends the others ");
    put_size(out, f->sent_bytes);
    gr_str_puts(out, " a step\n");
}

static void put_row(gr_str *out, const char *name, int64_t bytes, const char *what) {
    if (bytes > 0) gr_str_printf(out, "  %-20s%8.1f MiB  %s\n", name, (double)bytes / (1 << 20), what);
}

static void put_memory(const gr_run *run, const gr_memory *m, gr_str *out) {
    bool fp8 = gr_train_products(run->r->model_compute) == GR_BASE_FP8;
    char made[80] = "rotary table, norms, forms of the weights";
    if (run->base_bytes > 0)
        snprintf(made, sizeof made, "base in %s, rotary table",
                 gr_dtype_get((gr_dtype)gr_quantize_type(run->r->model_quantize))->name);
    else if (fp8) snprintf(made, sizeof made, "rotary table, norms, forms of the weights, once more in fp8");
    bool match = run->eval && gr_recipe_has_metric(run->r, "exact_match");
    bool card = m->host > 0;
    const char *of = run->ranks > 1 ? " of a rank" : "";
    gr_str_printf(out, "memory                %.2f GiB at most%s", (double)m->total / GIB, card ? " on the card" : of);
    if (card) gr_str_printf(out, "%s, %.2f GiB of the host", of, (double)m->host / GIB);
    gr_str_puts(out, "\n");
    put_row(out, "program", m->program, "measured now: program, libraries, tokenizer");
    put_row(out, "data", m->data, run->train ? "tokenised" : "tokenised, assumed");
    put_row(out, "base", m->base,
            card ? "the card's copies of its files' weights" : "mapped from its files; the system may take these pages back");
    put_row(out, "base, made", m->made, made);
    put_row(out, "trained state", m->trained,
            run->params.form.sharded ? "values, gradients, what the optimizer keeps; of what is shared out a share"
                                     : "values, gradients, what the optimizer keeps");
    put_row(out, "exchanged", m->exchange, "what other ranks sent");
    put_row(out, "threads", m->threads, "scratch that operations share");
    put_row(out, "step scratch", m->scratch, "activations and what backward needs");
    put_row(out, "evaluation", m->evaluation,
            match ? "beside the step's; exact_match with its KV cache, if answers are long" : "beside the step's");
    put_row(out, "result", m->result,
            run->adapter ? "writing the adapter; in place of an evaluation"
                         : "writing the model and reading it back; in place of step and evaluation");
}

static void put_fit(gr_run *run, const gr_plan_facts *f, gr_str *out) {
    gr_str_printf(out, "fits                  %s: %s %.2f GiB", f->fits ? "yes" : "NO",
                  run->r->train_memory_limit > f->limit ? "train.memory_limit allows more, there are"
                  : run->r->train_memory_limit > 0      ? "train.memory_limit allows"
                                                        : "the limit is",
                  (double)f->limit / GIB);
    bool card = f->memory.host > 0;
    if (run->r->train_memory_limit <= 0)
        gr_str_puts(out, card             ? ", 15/16 of the card"
                         : run->ranks > 1 ? ", a rank's share of three quarters of what is free and what the program holds"
                                          : ", three quarters of what is free and what the program holds");
    gr_str_printf(out, "; %s has %.2f GiB free%s", card ? "it" : "this machine", (double)f->available / GIB,
                  f->by_cgroup ? " (a control group's limit)" : "");
    if (f->memory.total > run->resident + f->available && run->r->train_memory_limit > 0)
        gr_str_puts(out, ", which is less than the run takes");
    gr_str_puts(out, "\n");
    if (f->fits) return;
    gr_str_puts(out, "                      less is needed with ");
    gr_plan_advice(run, out);
    gr_str_puts(out, "\n");
}

static void put_time(const gr_run *run, const gr_plan_facts *f, gr_str *out) {
    if (!isfinite(f->step_seconds)) return;
    gr_str_puts(out, "time                  about ");
    put_duration(out, f->step_seconds);
    gr_str_printf(out, " for a step of %lld tokens", (long long)f->tokens_per_step);
    if (f->share_of_peak > 0)
        gr_str_printf(out, " (assumed: %.0f %% of the rate of %s's products)", 100 * f->share_of_peak,
                      run->session.machine.device->level);
    else
        gr_str_puts(out, run->ranks > 1 ? " (measured on this machine; exchanges are not counted)" : " (measured on this machine)");
    if (isfinite(f->run_seconds)) {
        gr_str_puts(out, "; ");
        put_duration(out, f->run_seconds);
        gr_str_printf(out, " for %lld steps", (long long)run->total_steps);
        if (f->epoch_seconds < f->run_seconds) {
            gr_str_puts(out, ", ");
            put_duration(out, f->epoch_seconds);
            gr_str_puts(out, " an epoch");
        }
        if (isfinite(f->evaluation_seconds)) {
            gr_str_puts(out, " with evaluations of ");
            put_duration(out, f->evaluation_seconds);
        }
    }
    gr_str_puts(out, "\n");
}

static void put_disk(const gr_run *run, const gr_plan_facts *f, gr_str *out) {
    gr_str_puts(out, "disk                  ");
    put_size(out, f->disk_bytes);
    gr_str_puts(out, ": checkpoints of ");
    put_size(out, f->checkpoint_bytes);
    gr_str_printf(out, ", %s of ", run->adapter ? "the adapter" : "the model");
    put_size(out, f->result_bytes);
    if (f->cache_bytes > 0) {
        gr_str_puts(out, ", the token cache of ");
        put_size(out, f->cache_bytes);
    }
    if (f->disk_free >= 0) {
        gr_str_puts(out, "; free are ");
        put_size(out, f->disk_free);
        if (f->disk_free < f->disk_bytes)
            gr_str_puts(out, f->cache_bytes > f->checkpoint_bytes
                                 ? ", TOO LITTLE: another disk with data.cache"
                                 : ", TOO LITTLE: fewer checkpoints with save.every or save.save_total_limit");
    }
    gr_str_puts(out, "\n");
}

void gr_plan_report(gr_run *run, const gr_plan_facts *f, const char *missing, gr_str *out) {
    char text[32];
    int64_t base = model_parameters(run->session.model), trained = run->params.n_parameters;
    gr_str_printf(out, "base                  %s (%s, %s parameters%s)\n", run->r->model_base,
                  run->session.model->config.arch->gguf, gr_thousands(base, text),
                  gr_weights_shape_only(run->session.model->weights) ? "; weights counted as bf16" : "");
    gr_str_printf(out, "trainable parameters  %s (%.3f %% of the base)\n", gr_thousands(trained, text),
                  100.0 * (double)trained / (double)base);
    put_steps(run, missing, out);
    gr_str_printf(out,
                  "batch                 %lld samples a step%s, micro-batches of up to %lld tokens, gradient_checkpointing %s\n",
                  (long long)run->r->train_batch_size, run->ranks > 1 ? ", dealt to the ranks by length" : "",
                  (long long)run->plan.max_tokens, gr_plan_policy(run));
    if (run->ranks > 1) put_ranks(run, f, out);
    if (run->expand) gr_str_puts(out, "weights               quantised, expanded before each product\n");
    put_memory(run, &f->memory, out);
    put_fit(run, f, out);
    put_time(run, f, out);
    put_disk(run, f, out);
}
