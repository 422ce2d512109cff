/* What is chosen: rows of a micro-batch, what backward computes again, what ranks keep shares of; and, where nothing fits, what to
 * change. */
#include <stdlib.h>

#include "core/base/log.h"
#include "core/base/memory.h"
#include "peft/plan_memory.h"
#include "peft/recipe_schema.h"
#include "peft/shard.h"

enum { MICRO_BATCH_TOKENS = 1024 };

enum { CHANGES = 10 };

/* What ranks keep shares of, from now on; false: not in this run. */
static bool use_sharding(gr_run *run, enum gr_recipe_train_sharding what) {
    run->sharding = what;
    return gr_shard_form(&run->params.form, run->r, what, gr_comm_rank(run->comm), run->ranks);
}

/* Is it worth it? Files that ranks map are shared as they are. */
static bool saves(const gr_run *run, enum gr_recipe_train_sharding what) {
    return what != GR_SHARDING_ZERO3 || !run->adapter || gr_plan_on_card(run);
}

/* What the recipe says; of auto what goes with it, in the order in which it is chosen: zero1 is for those who ask for it. */
static int list_shardings(gr_run *run, enum gr_recipe_train_sharding list[3]) {
    static const enum gr_recipe_train_sharding all[] = {GR_SHARDING_NONE, GR_SHARDING_ZERO2, GR_SHARDING_ZERO3};
    int n = 0;
    if (run->ranks == 1 || run->r->train_sharding != GR_SHARDING_AUTO) list[n++] = run->sharding;
    else
        for (int i = 0; i < GR_LEN(all); i++)
            if (saves(run, all[i]) && use_sharding(run, all[i])) list[n++] = all[i];
    return n;
}

static bool share(gr_run *run, enum gr_recipe_train_sharding what, gr_str *out) {
    const enum gr_recipe_train_sharding before = run->sharding;
    if (run->ranks == 1 || before >= what || !saves(run, what)) return false;
    if (!use_sharding(run, what)) {
        (void)use_sharding(run, before);
        return false;
    }
    gr_str_printf(out, "train.sharding=%s", gr_plan_sharding(run));
    return true;
}

/* One more thing to change, in the order of what it costs, until the memory fits. */
static bool change(gr_run *run, gr_plan_what_if *w, int step, int64_t longest, gr_str *out) {
    const gr_recipe *r = run->r;
    bool plain = gr_model_quantized_bytes(run->session.model, GR_DTYPE_NF4) > 0;
    switch (step) {
    case 0: return share(run, GR_SHARDING_ZERO2, out);
    case 1: return share(run, GR_SHARDING_ZERO3, out);
    case 2:
        if (run->plan.recompute == GR_RECOMPUTE_FULL) return false;
        run->plan.recompute = GR_RECOMPUTE_FULL;
        gr_str_puts(out, "train.gradient_checkpointing=full");
        return true;
    case 3:
        if (run->plan.max_tokens <= longest || r->train_gradient_release) return false;
        run->plan.max_tokens = longest;
        gr_str_printf(out, "train.micro_batch_tokens=%lld", (long long)longest);
        return true;
    case 4:
        if (!run->eval || gr_plan_memory_of(run, w).evaluation <= gr_plan_evaluation_bytes(run, longest)) return false;
        w->eval_rows = longest;
        gr_str_printf(out, "eval.batch_tokens=%lld", (long long)longest);
        return true;
    case 5:
        if (w->forms.base != GR_BASE_FP8) return false;
        w->forms.base = GR_BASE_EXACT;
        gr_str_puts(out, "model.compute=exact");
        return true;
    case 6:
        if (!run->adapter || w->forms.quantise >= 0 || !plain || r->model_compute == GR_COMPUTE_INT8) return false;
        w->forms.quantise = GR_DTYPE_NF4, w->forms.expand = gr_plan_on_card(run);
        gr_str_puts(out, "model.quantize=nf4");
        return true;
    case 7:
    case 8:
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
    return gr_plan_streams(run->r) ? "fewer samples in data.train"
                                   : "fewer samples in data.train, or a data.cache, from which they are read";
}

void gr_plan_advice(gr_run *run, gr_str *out) {
    if (gr_plan_lacks_host(run)) {
        gr_str_printf(out, "%s: the host may give %.2f GiB", less_data(run), (double)run->host_limit / (1 << 30));
        return;
    }
    int64_t longest = run->train ? gr_longest_sample(run->train) : run->r->data_max_length;
    const gr_decoder_options kept = run->plan;
    const enum gr_recipe_train_sharding sharding = run->sharding;
    gr_plan_what_if w = gr_plan_as_it_is(run);
    bool first = true;
    for (int step = 0; step < CHANGES; step++) {
        gr_str one = {0};
        if (change(run, &w, step, longest, &one)) {
            int64_t total = gr_plan_memory_of(run, &w).total;
            gr_str_printf(out, "%s%s (%.2f GiB)", first ? "" : ", with it ", one.data ? one.data : "", (double)total / (1 << 30));
            first = false;
            if (total <= run->memory_limit) step = CHANGES;
        }
        gr_str_release(&one);
    }
    if (first) gr_str_puts(out, "a smaller base");
    else if (gr_plan_memory_of(run, &w).total > run->memory_limit)
        gr_str_puts(out, "; still too much: a smaller base, or more memory");
    run->plan = kept;
    (void)use_sharding(run, sharding);
}

/* Three quarters of what is free, of which ranks of this host have equal parts, beside `files` that they map together. */
static int64_t share_of_free(const gr_run *run, int64_t files) {
    const int64_t free = run->available / 4 * 3, ranks = run->comm ? gr_comm_host_size(run->comm) : run->ranks;
    files = ranks > 1 ? GR_MIN(files, free) : 0;
    return files + (free - files) / ranks;
}

/* What a rank may take beside what it holds: all ranks have the plan of the one that may take least. */
static graft_status agree_on_limits(gr_run *run, graft_error *err) {
    const int size = gr_comm_size(run->comm);
    const int64_t held = gr_plan_on_card(run) ? 0 : run->resident;
    const int64_t mine[] = {run->memory_limit - held, run->host_limit - run->resident};
    int64_t all[size][2];
    if (!run->comm) return GRAFT_OK;
    graft_status st = gr_comm_gather(run->comm, "what memory there is", mine, sizeof mine, all, err);
    for (int i = 0; i < size && st == GRAFT_OK; i++) {
        run->memory_limit = GR_MIN(run->memory_limit, all[i][0] + held);
        run->host_limit = GR_MIN(run->host_limit, all[i][1] + run->resident);
    }
    return st;
}

static graft_status set_limit(gr_run *run, graft_error *err) {
    gr_device *d = run->session.machine.device;
    const gr_model_forms forms = gr_plan_forms(run);
    int64_t total, available;
    run->resident = gr_memory_resident();
    run->available = gr_memory_available(&run->by_cgroup);
    run->host_limit = INT64_MAX / 2; /* none */
    run->memory_limit = run->r->train_memory_limit;
    const bool card = d->memory(d, &total, &available);
    if (card && d->flops <= 0) run->host_limit = run->resident + share_of_free(run, 0); /* a card that is here */
    if (run->memory_limit <= 0 && card) run->memory_limit = total - total / 16 - run->joined_bytes;
    if (card) run->memory_limit = GR_MIN(run->memory_limit, total - run->joined_bytes);
    if (run->memory_limit <= 0)
        run->memory_limit =
            run->resident +
            share_of_free(run,
                          !run->adapter ? 0 : gr_model_file_bytes(run->session.model, forms.quantise, forms.base == GR_BASE_INT8));
    if (card) run->available = available; /* what is free may change: the plan goes by all that there is */
    return agree_on_limits(run, err);
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
    char parts[64] = "";
    if (run->plan.max_tokens > 1) /* else it is the least that any run needs */
        snprintf(parts, sizeof parts, " with micro-batches of %lld tokens", (long long)run->plan.max_tokens);
    const char *which = run->r->train_memory_limit > run->memory_limit && run->comm && !gr_plan_on_card(run)
                            ? "of train.memory_limit each rank may have"
                        : run->r->train_memory_limit > run->memory_limit ? "there are"
                        : run->r->train_memory_limit > 0                 ? "train.memory_limit allows"
                        : gr_plan_on_card(run)                           ? "of the card's memory it may have"
                                               : "train.memory_limit allows, three quarters of what is free,";
    graft_status st = gr_fail(err, GRAFT_BAD_USAGE, "training needs %.1f MiB%s, %s %.1f MiB; less is needed with %s",
                              (double)run->memory.total / (1 << 20), parts, which, (double)run->memory_limit / (1 << 20),
                              advice.data ? advice.data : "a smaller base");
    gr_str_release(&advice);
    return st;
}

graft_status gr_plan_least(gr_run *run, graft_error *err) {
    enum gr_recipe_train_sharding list[3];
    const int n = list_shardings(run, list);
    graft_status st = set_limit(run, err);
    if (st != GRAFT_OK) return st;
    run->expand = gr_plan_may_expand(run);
    gr_plan_what_if w = gr_plan_as_it_is(run);
    run->plan = (gr_decoder_options){.max_tokens = 1, .training = true, .recompute = GR_RECOMPUTE_FULL};
    for (int i = 0; i < n; i++) {
        (void)use_sharding(run, list[i]);
        run->memory = gr_plan_memory_of(run, &w);
        int64_t least = run->memory.total - run->memory.evaluation - run->memory.scratch;
        if (least <= run->memory_limit && !gr_plan_lacks_host(run)) return GRAFT_OK;
    }
    return refuse(run, err);
}

const char *gr_plan_sharding(const gr_run *run) {
    return gr_key_choice(&gr_recipe_keys[GR_ROW_train_sharding], (int)run->sharding);
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
    if (run->ranks == 1 && run->r->train_sharding > GR_SHARDING_NONE)
        gr_note("train.sharding %s is of several ranks (mpirun): one alone keeps all",
                gr_key_choice(&gr_recipe_keys[GR_ROW_train_sharding], run->r->train_sharding));
    if (run->ranks > 1 && run->r->train_sharding == GR_SHARDING_AUTO && run->sharding > GR_SHARDING_NONE)
        gr_note("sharding: %s, so that each of %d ranks stays within %.2f GiB", gr_plan_sharding(run), run->ranks,
                (double)run->memory_limit / (1 << 30));
    if (run->micro_tokens == wanted && (int)run->plan.recompute == policy && !run->expand) return;
    if (!as_before) snprintf(why, sizeof why, "to stay within %.2f GiB", (double)run->memory_limit / (1 << 30));
    gr_note("memory: micro-batches of up to %lld tokens, gradient_checkpointing %s%s, %s", (long long)run->micro_tokens,
            gr_plan_policy(run), run->expand ? ", quantised weights expanded before each product" : "", why);
}

/* Rows that keep the device busy: a card wants more of them, the more the narrower the model is. */
static int64_t rows_wanted(const gr_run *run) {
    int64_t rows = 4096;
    if (!gr_plan_on_card(run)) return MICRO_BATCH_TOKENS;
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
    if (!gr_plan_on_card(run)) return GRAFT_OK;
    /* What was free when the run was planned, and what graft held by then. */
    run->memory_limit = GR_MIN(limit, run->available + run->session.machine.device->shared_bytes);
    if (run->memory_limit < limit)
        gr_str_printf(&advice, "train.memory_limit=%lldMiB, as much as was free when the run was planned, or with ",
                      (long long)(run->memory_limit >> 20));
    gr_plan_advice(run, &advice);
    run->memory_limit = limit;
    return (run->less = gr_str_take(&advice)) ? GRAFT_OK : gr_fail_memory(err, "plan");
}

/* The first of these that fits with the rows of the plan, of a policy from first to last. */
static bool fits(gr_run *run, int first, int last) {
    const bool expands = gr_plan_may_expand(run);
    for (size_t i = 0; i < GR_LEN(savings); i++) {
        if ((int)savings[i].recompute < first || (int)savings[i].recompute > last || (savings[i].expand && !expands)) continue;
        run->plan.recompute = savings[i].recompute, run->expand = savings[i].expand;
        const gr_plan_what_if w = gr_plan_as_it_is(run);
        run->memory = gr_plan_memory_of(run, &w);
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

/* Sizes of micro-batches that are tried, each half of the one before. */
enum { SIZES = 32 };
typedef struct search {
    gr_run *run;
    int64_t longest;
    bool before; /* there is a checkpoint, whose policy comes first */
    struct {
        int64_t micro_tokens, rows, targets;
    } size[SIZES];
    int n_sizes;
} search;

/* The run has micro-batches of this size; *last: there is no smaller one. */
static graft_status use_size(search *s, int k, bool *last, graft_error *err) {
    gr_run *run = s->run;
    const gr_recipe *r = run->r;
    gr_decoder_options *o = &run->plan;
    graft_status st = GRAFT_OK;
    for (; s->n_sizes <= k && st == GRAFT_OK; s->n_sizes++) {
        const int i = s->n_sizes;
        run->micro_tokens = i == 0 ? most_rows(run, s->longest, run->before.micro_batch_tokens)
                                   : GR_MAX(s->longest, s->size[i - 1].micro_tokens / 2);
        s->size[i].micro_tokens = run->micro_tokens;
        st = gr_plan_largest(run, s->longest, &s->size[i].rows, &s->size[i].targets, err);
    }
    if (st != GRAFT_OK) return st;
    run->micro_tokens = s->size[k].micro_tokens, o->max_tokens = s->size[k].rows, o->max_targets = s->size[k].targets;
    *last = run->micro_tokens == s->longest || k + 1 == SIZES || r->train_micro_batch_tokens > 0 || r->train_gradient_release;
    if (r->train_gradient_release && r->train_micro_batch_tokens > 0 && r->train_micro_batch_tokens < o->max_tokens)
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "train.gradient_release needs one micro-batch a step: the largest step has %lld tokens, "
                       "train.micro_batch_tokens is %lld; raise it, or lower train.batch_size",
                       (long long)o->max_tokens, (long long)r->train_micro_batch_tokens);
    return GRAFT_OK;
}

/* The largest micro-batches of at least `least` rows that fit, with a policy from first to last. */
static graft_status find(search *s, int first, int last, int64_t least, bool *found, graft_error *err) {
    gr_run *run = s->run;
    const int policy = (int)run->before.gradient_checkpointing;
    bool smallest = false;
    *found = false;
    for (int k = 0; !*found && !smallest; k++) {
        graft_status st = use_size(s, k, &smallest, err);
        if (st != GRAFT_OK) return st;
        if (k > 0 && run->micro_tokens < least) break;
        *found = (s->before && fits(run, policy, policy)) || fits(run, first, last);
        if (gr_plan_lacks_host(run)) break;
    }
    return GRAFT_OK;
}

/* On a card to compute everything again costs more than smaller micro-batches, or exchanges of weights, do. */
static graft_status find_cheapest(search *s, int first, int last, bool *found, graft_error *err) {
    const bool twice = gr_plan_on_card(s->run) && first < GR_RECOMPUTE_FULL && last == GR_RECOMPUTE_FULL;
    enum gr_recipe_train_sharding list[3];
    const int n = list_shardings(s->run, list);
    graft_status st = GRAFT_OK;
    *found = false;
    for (int pass = twice ? 0 : 1; pass < 2 && !*found; pass++)
        for (int i = 0; i < n && !*found && st == GRAFT_OK; i++) {
            (void)use_sharding(s->run, list[i]);
            st = find(s, first, pass == 0 ? GR_RECOMPUTE_SELECTIVE : last, pass == 0 ? rows_wanted(s->run) / 4 : 0, found, err);
        }
    return st;
}

graft_status gr_plan_memory(gr_run *run, int64_t longest, graft_error *err) {
    const gr_recipe *r = run->r;
    const bool any = r->train_gradient_checkpointing == GR_RECOMPUTE_AUTO;
    const int first = any ? GR_RECOMPUTE_NONE : r->train_gradient_checkpointing, last = any ? GR_RECOMPUTE_FULL : first;
    search s = {.run = run, .longest = longest, .before = any && run->before.micro_batch_tokens > 0};
    bool found;
    graft_status st;
    run->plan = (gr_decoder_options){.training = true,
                                     .dropout = r->adapter_method == GR_METHOD_LORA ? (float)r->adapter_dropout : 0,
                                     .seed = (uint64_t)r->train_seed};
    GR_TRY(set_limit(run, err));
    if (run->eval && gr_recipe_has_metric(r, "exact_match")) GR_TRY(gr_longest_prompt(run->eval, &run->eval_prompt, err));
    GR_TRY(find_cheapest(&s, first, last, &found, err));
    if (!found || gr_plan_lacks_host(run)) return refuse(run, err);
    tell_choice(run, most_rows(run, longest, 0), first);
    run->identity.split = (gr_train_split){run->micro_tokens, run->plan.recompute};
    GR_TRY(keep_advice(run, err));
done:
    return st;
}
