/* A run from end to end: what the recipe names is opened, the memory is planned, the folder is made, the steps run, the result is
 * written. */
#include "peft/trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "kernels/threads.h"
#include "peft/interrupt.h"
#include "peft/plan.h"
#include "peft/ranks.h"
#include "peft/run.h"
#include "peft/tokens.h"

/* Between the parts of a set-up, which takes long for much data. */
static graft_status check_interrupt(graft_error *err) {
    return gr_interrupted() ? gr_fail(err, GRAFT_INTERRUPTED, "before the first step: nothing was written") : GRAFT_OK;
}

/* ---- opening what the recipe names ---- */

/* name: room for the device of a rank. */
static gr_session_options session_options(const gr_run *run, const char *device, char name[32]) {
    const gr_recipe *r = run->r;
    gr_comm *comm = run->comm;
    if (!device) device = r->_device;
    if (comm && (strcmp(device, "auto") == 0 || strcmp(device, "cuda") == 0)) /* ranks of a host have a card each */
        snprintf(name, 32, "%s@%d", device, gr_comm_host_rank(comm)), device = name;
    return (gr_session_options){.model = r->model_base,
                                .dtype = r->model_dtype,
                                .compute = r->model_compute,
                                .quantize = r->model_quantize,
                                .device = device,
                                .threads = r->_threads > 0  ? r->_threads
                                           : comm           ? gr_comm_threads(comm)
                                           : run->ranks > 1 ? GR_MAX(1, gr_processors() / run->ranks) /* of a plan */
                                                            : 0,
                                .rank = gr_comm_rank(comm),
                                .ranks = comm && gr_shard_has_base(r, run->sharding, run->ranks) ? run->ranks : 1,
                                .max_length = r->data_max_length};
}

/* Ranks of a host have a card each. */
static graft_status refuse_one_card(const gr_run *run, const char *device, graft_error *err) {
    const int here = gr_comm_host_size(run->comm);
    if (here == 1 || !gr_starts_with(device, "cuda:")) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_USAGE,
                   "device %s is one card, and %d ranks of this host want one each: ask for device: cuda, which gives them theirs",
                   device, here);
}

/* The headers of the model's files: sizes, no weights yet. */
static graft_status open_shape(gr_run *run, const char *device, graft_error *err) {
    const gr_recipe *r = run->r;
    char name[32];
    const gr_session_options o = session_options(run, device, name);
    graft_status st = refuse_one_card(run, device ? device : r->_device, err);
    if (st == GRAFT_OK) st = gr_session_open_shape(&run->session, &o, err);
    if (st != GRAFT_OK) return st;
    gr_model *m = run->session.model;
    if (r->data_max_length > m->config.max_positions)
        return gr_fail(err, GRAFT_BAD_USAGE, "%s: data.max_length is %lld: the context of the model is %lld", r->model_base,
                       (long long)r->data_max_length, (long long)m->config.max_positions);
    int quantize = gr_quantize_type(r->model_quantize);
    if (quantize >= 0) run->base_bytes = gr_model_quantized_bytes(m, (gr_dtype)quantize);
    return GRAFT_OK;
}

static graft_status open_text(gr_run *run, graft_error *err) {
    graft_status st = run->session.tokenizer ? GRAFT_OK : gr_session_open_tokenizer(&run->session, err);
    gr_chat_options chat = gr_recipe_chat(run->r, run->session.tokenizer);
    return st == GRAFT_OK ? gr_chat_open(&run->session.chat, &chat, run->session.tokenizer, err) : st;
}

/* The cache folder: the recipe's, or the user's cache; NULL when off. Owned. */
static graft_status cache_folder(char **folder, const gr_recipe *r, graft_error *err) {
    const char *setting = r->data_cache, *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    *folder = NULL;
    if (!setting || strcmp(setting, "none") == 0) return GRAFT_OK;
    if (strcmp(setting, "auto") != 0) *folder = gr_strdup(setting);
    else if (base && *base) *folder = gr_format("%s/graft", base);
    else if (home && *home) *folder = gr_format("%s/.cache/graft", home);
    else return GRAFT_OK;
    return *folder ? GRAFT_OK : gr_fail_memory(err, "cache folder");
}

static graft_status load_set(gr_dataset **out, gr_run *run, const gr_source_list *sources, const char *cache, graft_error *err) {
    const gr_recipe *r = run->r;
    gr_data_options o = {.sources = sources->items,
                         .n_sources = sources->n,
                         .loss_on = (gr_loss_on)r->data_loss_on,
                         .max_length = r->data_max_length,
                         .n_rows = run->session.model->config.vocab,
                         .truncation = (gr_truncation)r->data_truncation,
                         .pretrain = r->train_objective == GR_OBJECTIVE_PRETRAIN,
                         .attention = (gr_block_attention)r->data_attention,
                         .cache_dir = cache};
    return gr_dataset_load(out, &o, run->session.tokenizer, run->session.chat, run->session.machine.threads, err);
}

static void tell_set(const char *name, const gr_dataset *d) {
    gr_note("%s: %lld samples, %lld tokens, %lld of them trained%s", name, (long long)d->n_samples,
            (long long)d->offset[d->n_samples], (long long)d->n_targets, d->from_cache ? " (from the cache)" : "");
}

/* What a mix takes of each source in the steps of the run. */
static graft_status tell_mix(const gr_run *run, graft_error *err) {
    const gr_dataset *d = run->train;
    gr_mix_fact *facts = gr_calloc(d->n_sources, sizeof *facts);
    if (!facts) return gr_fail_memory(err, "mix");
    graft_status st = gr_mix_facts(d, run->total_steps * run->r->train_batch_size, facts, err);
    for (int i = 0; i < d->n_sources && st == GRAFT_OK; i++) {
        char tokens[32];
        gr_note("mix: %s: %.2f %% of the tokens, %.2f passes over its %s%s", run->r->data_train.items[i].path, 100 * facts[i].share,
                facts[i].passes, gr_thousands(facts[i].tokens, tokens), facts[i].passes > 1 ? ": it begins again" : "");
    }
    free(facts);
    return st;
}

static graft_status load_data(gr_run *run, graft_error *err) {
    const gr_recipe *r = run->r;
    char *cache = NULL;
    graft_status st;
    GR_TRY(cache_folder(&cache, r, err));
    GR_TRY(load_set(&run->train, run, &r->data_train, cache, err));
    if (r->data_eval.n) GR_TRY(load_set(&run->eval, run, &r->data_eval, cache, err));
    else if (r->data_eval.share > 0)
        GR_TRY(gr_dataset_split(run->train, r->data_eval.share, (uint64_t)r->train_seed, &run->eval, err));
    tell_set("train", run->train);
    if (run->eval) tell_set("eval", run->eval);
done:
    free(cache);
    return st;
}

/* What rank 0 finds there, all go by. */
static graft_status find_checkpoint(gr_run *run, bool resume, graft_error *err) {
    run->resumes = resume && run->r->_output_dir && gr_checkpoint_any(run->r->_output_dir);
    return run->comm ? gr_comm_broadcast(run->comm, "the checkpoint", &run->resumes, sizeof run->resumes, err) : GRAFT_OK;
}

/* Of the ranks of a host, one makes the cache, the others read it. */
static graft_status open_data(gr_run *run, graft_error *err) {
    const bool first = gr_comm_host_rank(run->comm) == 0;
    graft_status st = first ? load_data(run, err) : GRAFT_OK;
    st = gr_comm_await(run->comm, "the data", st, err);
    if (st == GRAFT_OK && !first) st = load_data(run, err);
    return st;
}

/* Tokens are the tokenizer's, which is opened for them. */
static graft_status plan_rows(gr_run *run, gr_adapter_config *c, gr_arena *arena, graft_error *err) {
    gr_model *m = run->session.model;
    graft_status st = GRAFT_OK;
    if (!gr_weights_shape_only(m->weights) && !run->session.tokenizer) GR_TRY(gr_session_open_tokenizer(&run->session, err));
    GR_TRY(gr_recipe_tokens(&c->rows[GR_ROWS_EMBED], arena, run->r, m, run->session.tokenizer, err));
    if (!m->config.tied && run->r->adapter_head_rows) c->rows[GR_ROWS_HEAD] = c->rows[GR_ROWS_EMBED];
done:
    return st;
}

/* Decide what is trained, and give the model its shape with it; nothing is allocated. */
static graft_status plan_params(gr_run *run, graft_error *err) {
    const gr_recipe *r = run->r;
    char *base = NULL;
    graft_status st;
    gr_arena arena = {0};
    run->params.form = (gr_params_form){.optimizer = (gr_optimizer)r->train_optimizer,
                                        .weights = (gr_trained_type)r->train_weights,
                                        .release = r->train_gradient_release,
                                        .seed = (uint64_t)r->train_seed,
                                        .turns = run->session.machine.device->queues};
    run->sharding = r->train_sharding == GR_SHARDING_AUTO ? GR_SHARDING_NONE : (enum gr_recipe_train_sharding)r->train_sharding;
    (void)gr_shard_form(&run->params.form, r, run->sharding, gr_comm_rank(run->comm), run->ranks);
    if (r->adapter_method == GR_METHOD_FULL) return gr_model_add_params(run->session.model, &run->params, err);
    base = gr_exists(r->model_base) ? gr_path_absolute(r->model_base) : gr_strdup(r->model_base);
    if (!base) GR_TRY(gr_fail_memory(err, "base"));
    gr_adapter_config c = {.rank = r->adapter_rank,
                           .alpha = r->adapter_alpha,
                           .dropout = r->adapter_dropout,
                           .use_rslora = r->adapter_use_rslora,
                           .target_modules = r->adapter_target_modules.items,
                           .n_target_modules = r->adapter_target_modules.n,
                           .rank_pattern = r->adapter_rank_pattern.items,
                           .n_rank_pattern = r->adapter_rank_pattern.n,
                           .alpha_pattern = r->adapter_alpha_pattern.items,
                           .n_alpha_pattern = r->adapter_alpha_pattern.n,
                           .rows_alone = r->adapter_method == GR_METHOD_EMBEDDINGS,
                           .base = base};
    if (c.rows_alone) c.n_target_modules = 0;
    if (gr_recipe_trains_rows(r)) GR_TRY(plan_rows(run, &c, &arena, err));
    GR_TRY(gr_adapter_plan(&run->adapter, &c, run->session.model, &run->params, err));
    GR_TRY(gr_adapter_attach(run->adapter, run->session.model, 1.0, err));
done:
    free(base);
    gr_arena_release(&arena);
    return st;
}

/* ---- reading and allocating what was planned ---- */

static graft_status load_model(gr_run *run, graft_error *err) {
    char name[32];
    const gr_session_options o = session_options(run, NULL, name);
    gr_adapter_detach_all(run->session.model); /* the shapes alone */
    return gr_session_load(&run->session, &o, err);
}

static graft_status load_params(gr_run *run, graft_error *err) {
    const gr_recipe *r = run->r;
    gr_adapter *from = NULL;
    graft_status st;
    GR_TRY(gr_params_allocate(&run->params, run->session.machine.device, true, err));
    GR_TRY(gr_shard_init(&run->shard, run->comm, &run->params, run->session.model, err));
    GR_TRY(gr_shard_init_base(&run->shard, run->comm, run->session.model, err));
    if (!run->adapter) return gr_model_attach_params(run->session.model, &run->params, true, err);
    run->adapter->tokenizer_hash = gr_tokenizer_hash(run->session.tokenizer);
    const char *template = gr_chat_source(run->session.chat);
    if (template && !(run->adapter->chat_template = gr_arena_strdup(&run->adapter->arena, template)))
        GR_TRY(gr_fail_memory(err, "chat template"));
    GR_TRY(gr_adapter_init(run->adapter, (uint64_t)r->train_seed, err));
    GR_TRY(gr_adapter_init_rows(run->adapter, run->session.model, err));
    if (r->adapter_init_from && !run->resumes) { /* a resumed run has its own weights: where it began may be gone */
        GR_TRY(gr_adapter_load(&from, r->adapter_init_from, run->session.model, false, err));
        GR_TRY(gr_adapter_copy(run->adapter, from, err));
        if (template && from->chat_template && strcmp(template, from->chat_template) != 0)
            gr_warn("adapter.init_from %s was trained with another chat template than the one here: data.template names one",
                    r->adapter_init_from);
    }
    GR_TRY(gr_adapter_attach(run->adapter, run->session.model, 1.0, err));
done:
    gr_adapter_free(from);
    return st;
}

/* ---- the end ---- */

static void close_run(gr_run *run) {
    gr_metrics_close(run->metrics);
    gr_decoder_free(run->decoder);
    gr_dataset_free(run->train);
    gr_dataset_free(run->eval);
    if (run->adapter && run->session.model) gr_adapter_detach_all(run->session.model);
    gr_adapter_free(run->adapter);
    gr_shard_release(&run->shard);
    gr_params_release(&run->params);
    gr_session_close(&run->session);
    free(run->recipe_text);
    free(run->less);
    gr_checkpoint_close(&run->last);
}

/* True when every data file is there; *missing: the first that is not, NULL when none is named. */
static bool has_data(const gr_recipe *r, const char **missing) {
    const gr_source_list *lists[] = {&r->data_train, &r->data_eval};
    *missing = NULL;
    for (int k = 0; k < GR_LEN(lists); k++)
        for (int i = 0; i < lists[k]->n && !*missing; i++)
            if (!gr_exists(lists[k]->items[i].path)) *missing = lists[k]->items[i].path;
    return r->data_train.n > 0 && !*missing;
}

/* What a dry run without data says: steps of an assumed set, or of none. */
static graft_status assume_data(gr_run *run, const gr_train_options *o, graft_error *err) {
    if (o->mean_tokens > run->r->data_max_length && run->r->train_objective != GR_OBJECTIVE_PRETRAIN)
        return gr_fail(err, GRAFT_BAD_USAGE, "--mean-tokens %lld: samples are cut to data.max_length, which is %lld",
                       (long long)o->mean_tokens, (long long)run->r->data_max_length);
    run->samples = o->samples;
    run->mean_tokens = o->mean_tokens > 0 ? o->mean_tokens : run->r->data_max_length;
    return gr_plan_steps(run, err);
}

static graft_status dry_run(gr_run *run, const gr_train_options *o, gr_train_result *result, graft_error *err) {
    const gr_recipe *r = run->r;
    graft_status st;
    const char *missing;
    bool shape = gr_weights_shape_only(run->session.model->weights), data = has_data(r, &missing) && !shape && o->samples == 0;
    gr_plan_facts facts = {0};
    GR_TRY(plan_params(run, err));
    if (!shape) GR_TRY(open_text(run, err));
    if (data) GR_TRY(open_data(run, err));
    GR_TRY(data ? gr_plan_steps(run, err) : assume_data(run, o, err));
    graft_status fits = gr_plan_memory(run, data ? gr_longest_sample(run->train) : r->data_max_length, err);
    if (fits != GRAFT_OK && fits != GRAFT_BAD_USAGE) GR_TRY(fits);
    gr_plan_facts_of(run, &facts);
    if (o->calibrate && facts.fits) GR_TRY(gr_plan_time(run, &facts, err));
    result->n_trainable = run->params.n_parameters;
    result->steps = run->total_steps;
    result->state_bytes = run->memory.trained;
    result->scratch_bytes = run->memory.scratch;
    result->base_bytes = run->base_bytes;
    if (o->report) gr_plan_report(run, &facts, shape ? NULL : missing, o->report);
    if (o->facts) *o->facts = facts;
    st = fits; /* what training would refuse is refused */
done:
    return st;
}

graft_status gr_train(const gr_recipe *r, const gr_train_options *o, gr_train_result *result, graft_error *err) {
    const bool writes = gr_comm_rank(o->comm) == 0;
    gr_run run = {.r = r,
                  .comm = o->comm,
                  .ranks = o->dry_run && o->ranks > 0 ? (int)o->ranks : gr_comm_size(o->comm),
                  .progress = o->progress,
                  .payload = o->payload};
    gr_train_result ignored;
    graft_status st;
    double started = gr_now();
    if (!result) result = &ignored;
    *result = (gr_train_result){.final_loss = NAN, .final_eval_loss = NAN, .best_eval_loss = NAN};
    gr_phase_set(GR_PHASE_SETUP);
    GR_TRY(gr_recipe_require(r, o->dry_run, err));
    if (!o->dry_run && writes) GR_TRY(gr_folder_check(r, o, err));
    if (!o->dry_run && gr_folder_logs(o->comm)) GR_TRY(gr_folder_listen(&run, err));
    if (run.ranks > 1 && r->train_gradient_release)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "train.gradient_release is for one rank: several reduce whole gradients"));
    if (!o->dry_run) GR_TRY(gr_alike_settings(&run, err));
    if (!o->dry_run) GR_TRY(find_checkpoint(&run, o->resume, err));
    GR_TRY(open_shape(&run, o->dry_run ? o->device : NULL, err));
    if (o->dry_run) {
        GR_TRY(dry_run(&run, o, result, err));
        goto done;
    }
    GR_TRY(gr_ranks_join(run.comm, run.session.machine.device, &run.joined_bytes, err));
    GR_TRY(plan_params(&run, err));
    GR_TRY(gr_plan_least(&run, err));
    GR_TRY(open_text(&run, err));
    GR_TRY(check_interrupt(err));
    GR_TRY(open_data(&run, err));
    GR_TRY(check_interrupt(err));
    GR_TRY(gr_alike_work(&run, err));
    GR_TRY(gr_plan_steps(&run, err));
    if (run.train->share) GR_TRY(tell_mix(&run, err));
    if (run.resumes) GR_TRY(gr_resume_plan(&run, err));
    GR_TRY(gr_plan_memory(&run, gr_longest_sample(run.train), err));
    GR_TRY(load_model(&run, err));
    GR_TRY(load_params(&run, err));
    GR_TRY(gr_alike_values(&run, err));
    gr_model_use(run.session.model, gr_plan_forms(&run));
    gr_run_release_gradients(&run);
    GR_TRY(gr_decoder_new(&run.decoder, run.session.model, &run.plan, err));
    GR_TRY(gr_folder_open(&run, o, err));
    result->n_trainable = run.params.n_parameters;
    int64_t tokens_before = run.state.num_tokens;
    double steps_started = gr_now();
    gr_phase_set(GR_PHASE_STEPS);
    st = gr_run_steps(&run, err);
    gr_phase_set(GR_PHASE_RESULT);
    result->steps = run.state.step;
    result->final_loss = run.state.final_loss;
    result->best_eval_loss = run.state.best_eval_loss;
    result->final_eval_loss = run.last_eval_loss;
    result->tokens_per_second = (double)(run.state.num_tokens - tokens_before) / GR_MAX(gr_now() - steps_started, 1e-9);
    if (st != GRAFT_OK) goto done;
    GR_TRY(gr_comm_await(run.comm, "the result", gr_run_result(&run, err), err));
    result->seconds = gr_now() - started;
done:
    if (st == GRAFT_NO_MEMORY && run.less) st = gr_fail_more(err, st, "; less is needed with %s", run.less);
    gr_comm_leave(run.comm, st, err);
    gr_folder_end(&run, st, err);
    if (st != GRAFT_OK) gr_ranks_leave(run.session.machine.device);
    close_run(&run);
    gr_phase_set(GR_PHASE_IDLE);
    return st;
}
