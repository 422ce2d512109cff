/* The public interface (graft.h) over the trainer, sessions, generation, evaluation and merging. */
#include "peft/graft.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/export.h"
#include "core/base/log.h"
#include "core/model/generate.h"
#include "peft/evaluate.h"
#include "peft/trainer.h"

struct graft_model {
    gr_session session;
};

const char *graft_version(void) {
    return GRAFT_VERSION;
}

void graft_quiet(int quiet) {
    gr_log_quiet(quiet != 0);
}

void graft_free(void *p) {
    free(p);
}

/* ---- training ---- */

graft_status graft_train(const char *recipe, const char *const *overrides, int n_overrides,
                         const graft_train_options *options, graft_train_result *result, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_recipe *r = NULL;
    gr_train_result run = {.final_loss = NAN, .final_eval_loss = NAN, .best_eval_loss = NAN};
    gr_train_options o = {0};
    if (options)
        o = (gr_train_options){
            .resume = options->resume, .overwrite = options->overwrite, .dry_run = options->dry_run};
    if (o.resume && o.overwrite)
        return gr_fail(err, GRAFT_BAD_USAGE, "resume and overwrite exclude each other");
    GR_TRY(gr_recipe_load(&r, recipe, overrides, n_overrides, err));
    GR_TRY(gr_recipe_require(r, o.dry_run, err));
    GR_TRY(gr_train(r, &o, &run, err));
    if (result)
        *result = (graft_train_result){
            run.steps,          run.n_trainable, run.final_loss,       run.final_eval_loss,
            run.best_eval_loss, run.seconds,     run.tokens_per_second};
done:
    gr_recipe_free(r);
    return st;
}

void graft_train_interrupt(void) {
    gr_trainer_interrupt();
}

/* ---- models ---- */

/* Number of text (NULL: the first) in names[0..n). */
static graft_status choose(int *out, const char *option, const char *text, const char *const *names, int n,
                           const char *expected, graft_error *err) {
    for (*out = 0; text && *out < n && strcmp(text, names[*out]) != 0;) ++*out;
    if (*out < n) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_USAGE, "%s \"%s\": expected %s", option, text, expected);
}

graft_status graft_model_open(graft_model **out, const char *path, const char *const *adapters,
                              int n_adapters, const graft_model_options *options, graft_error *err) {
    /* in the order of enum gr_recipe_dtype, gr_recipe_compute and gr_recipe_quantize */
    static const char *const dtypes[] = {"auto", "fp32", "bf16", "fp16"}, *const computes[] = {"auto", "exact", "int8"},
                            *const types[] = {"none", "q8_0", "q4_0", "q4_k", "nf4"};
    graft_status st = GRAFT_OK;
    graft_model *m = NULL;
    gr_session_options o = {.model = path, .adapters = adapters, .n_adapters = n_adapters};
    *out = NULL;
    if (options) {
        o.template_name = options->chat_template;
        o.system = options->system;
        o.threads = options->threads;
        GR_TRY(choose(&o.dtype, "dtype", options->dtype, dtypes, GR_LEN(dtypes), "auto, fp32, bf16 or fp16", err));
        GR_TRY(choose(&o.compute, "compute", options->compute, computes, GR_LEN(computes), "auto, exact or int8", err));
        GR_TRY(choose(&o.quantize, "quantize", options->quantize, types, GR_LEN(types),
                      "none, q8_0, q4_0, q4_k or nf4", err));
    }
    m = gr_calloc(1, sizeof(*m));
    if (!m) GR_TRY(gr_fail_memory(err, "model"));
    GR_TRY(gr_session_open(&m->session, &o, err));
    *out = m;
    m = NULL;
done:
    free(m);
    return st;
}

void graft_model_close(graft_model *model) {
    if (!model) return;
    gr_session_close(&model->session);
    free(model);
}

/* ---- generation ---- */

typedef struct listener {
    graft_text_callback *callback;
    void *payload;
} listener;

static int pass_on(void *payload, int64_t prompt, const char *text, int64_t len, bool done) {
    const listener *l = payload;
    (void)prompt;
    (void)done;
    return len > 0 ? l->callback(l->payload, text, (size_t)len) : 0;
}

static gr_generate_options with_defaults(const graft_generate_options *o) {
    static const graft_generate_options none;
    if (!o) o = &none;
    return (gr_generate_options){.max_tokens = o->max_tokens > 0 ? o->max_tokens : 256,
                                 .temperature = (float)o->temperature,
                                 .top_k = o->top_k,
                                 .top_p = o->top_p > 0 ? (float)o->top_p : 1,
                                 .repetition_penalty =
                                     o->repetition_penalty > 0 ? (float)o->repetition_penalty : 1,
                                 .seed = o->seed,
                                 .stop = o->stop,
                                 .n_stop = o->n_stop};
}

graft_status graft_chat(graft_model *model, const graft_message *messages, int64_t n,
                        const graft_generate_options *options, graft_text_callback *callback, void *payload,
                        char **text, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session *s = &model->session;
    gr_encoded prompt = {0};
    gr_completion answer = {0};
    listener l = {callback, payload};
    gr_generate_options o = with_defaults(options);
    gr_message *turns = gr_calloc(n, sizeof(*turns));
    *text = NULL;
    if (n > 0 && !turns) GR_TRY(gr_fail_memory(err, "messages"));
    for (int64_t i = 0; i < n; i++)
        turns[i] = (gr_message){.role = messages[i].role, .content = messages[i].content};
    GR_TRY(gr_chat_encode(s->chat, turns, n, true, GR_LOSS_COMPLETION, &prompt, err));
    GR_TRY(gr_generate(s->model, s->tokenizer, &prompt.ids, 1, gr_chat_end_of_turn(s->chat), &o, &answer,
                       callback ? pass_on : NULL, &l, err));
    *text = answer.text;
    answer.text = NULL;
done:
    gr_completions_release(&answer, 1);
    gr_encoded_release(&prompt);
    free(turns);
    return st;
}

graft_status graft_generate(graft_model *model, const char *prompt, const graft_generate_options *options,
                            graft_text_callback *callback, void *payload, char **text, graft_error *err) {
    graft_message turn = {"user", prompt};
    return graft_chat(model, &turn, 1, options, callback, payload, text, err);
}

/* ---- scoring and merging ---- */

graft_status graft_eval(graft_model *model, const char *data, graft_eval_result *result, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session *s = &model->session;
    gr_dataset *d = NULL;
    gr_data_source source = {.path = data, .format = "auto", .weight = 1};
    gr_data_options o = {.sources = &source,
                         .n_sources = 1,
                         .template_name = gr_chat_name(s->chat),
                         .loss_on = GR_LOSS_COMPLETION,
                         .max_length = s->model->config.max_positions,
                         .n_rows = s->model->config.vocab,
                         .truncation = GR_TRUNCATE_KEEP_ANSWER};
    double loss = NAN;
    GR_TRY(gr_dataset_load(&d, &o, s->tokenizer, s->chat, s->device->threads, err));
    GR_TRY(gr_evaluate(s->model, d, 0, NULL, &loss, NULL, NULL, err));
    *result = (graft_eval_result){loss, d->n_samples, d->n_targets};
done:
    gr_dataset_free(d);
    return st;
}

static graft_status merge_options(gr_merge_options *o, const graft_merge_options *options, graft_error *err) {
    static const struct {
        const char *name;
        gr_dtype dtype;
    } dtypes[] = {
        {"fp32", GR_DTYPE_F32}, {"bf16", GR_DTYPE_BF16}, {"fp16", GR_DTYPE_F16}, {"q8_0", GR_DTYPE_Q8_0}};
    *o = (gr_merge_options){.format = GR_FORMAT_HF, .dtype = -1};
    if (!options) return GRAFT_OK;
    o->overwrite = options->overwrite != 0;
    if (options->format && strcmp(options->format, "gguf") == 0)
        o->format = GR_FORMAT_GGUF;
    else if (options->format && strcmp(options->format, "hf") != 0)
        return gr_fail(err, GRAFT_BAD_USAGE, "format \"%s\": expected hf or gguf", options->format);
    for (int i = 0; options->dtype && i < GR_LEN(dtypes); i++)
        if (strcmp(options->dtype, dtypes[i].name) == 0) o->dtype = (int)dtypes[i].dtype;
    if (options->dtype && o->dtype < 0)
        return gr_fail(err, GRAFT_BAD_USAGE, "dtype \"%s\": expected fp32, bf16, fp16 or q8_0",
                       options->dtype);
    return GRAFT_OK;
}

graft_status graft_merge(graft_model *model, const char *out_path, const graft_merge_options *options,
                         graft_merge_result *result, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session *s = &model->session;
    gr_merge_options o;
    gr_merge_report report = {0};
    GR_TRY(merge_options(&o, options, err));
    gr_output out = {.path = out_path, .folder = o.format == GR_FORMAT_HF, .overwrite = o.overwrite,
                     .inputs = (const char *const *)s->inputs, .n_inputs = s->n_inputs};
    GR_TRY(gr_output_check(&out, err));
    GR_TRY(gr_merge(s->model, s->tokenizer, s->adapters, s->scales, s->n_adapters, NULL, &o, out_path,
                    &report, err));
    if (result) *result = (graft_merge_result){report.max_logit_difference, report.n_bytes};
done:
    return st;
}
