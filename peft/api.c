/* The public interface (graft.h) over the trainer, sessions, generation, evaluation and merging. */
#include "peft/graft.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/merge.h"
#include "core/base/log.h"
#include "core/model/generate.h"
#include "peft/evaluate.h"
#include "peft/interrupt.h"
#include "peft/recipe_schema.h"
#include "peft/session.h"
#include "peft/trainer.h"

struct graft_model {
    gr_session session;
};

const char *graft_version(void) { return GRAFT_VERSION; }

void graft_quiet(int quiet) { gr_log_quiet(quiet != 0); }

void graft_free(void *p) { free(p); }

/* A success leaves no error behind, not even one of an attempt on the way. */
static graft_status leave(graft_status st, graft_error *err) {
    if (st == GRAFT_OK && err) *err = (graft_error){0};
    return st;
}

static graft_status need(const void *argument, const char *name, graft_error *err) {
    return argument ? GRAFT_OK : gr_fail(err, GRAFT_BAD_USAGE, "%s is NULL", name);
}

static graft_status need_strings(const char *const *list, int64_t n, const char *name, graft_error *err) {
    if (n < 0) return gr_fail(err, GRAFT_BAD_USAGE, "n_%s is %lld, expected a count", name, (long long)n);
    if (n > 0 && !list) return need(NULL, name, err);
    for (int64_t i = 0; i < n; i++)
        if (!list[i]) return gr_fail(err, GRAFT_BAD_USAGE, "%s[%lld] is NULL", name, (long long)i);
    return GRAFT_OK;
}

/* ---- training ---- */

typedef struct train_listener {
    graft_train_callback *callback;
    void *payload;
    int64_t first; /* the first step that was told, and when */
    double started;
} train_listener;

static int tell_step(void *payload, const gr_train_progress *p) {
    train_listener *l = payload;
    double now = gr_now(), left = NAN;
    if (l->started == 0) {
        l->first = p->step;
        l->started = now;
    } else {
        left = (now - l->started) / (double)(p->step - l->first) * (double)(p->total_steps - p->step);
    }
    graft_train_progress told = {p->step,          p->total_steps,       p->epoch,     p->loss,
                                 p->learning_rate, p->tokens_per_second, p->eval_loss, left};
    return l->callback(l->payload, &told);
}

static graft_status check_train(const char *const *overrides, int n_overrides, const graft_train_options *o, graft_error *err) {
    graft_status st = need_strings(overrides, n_overrides, "overrides", err);
    if (st == GRAFT_OK && o && o->resume && o->overwrite)
        return gr_fail(err, GRAFT_BAD_USAGE, "resume and overwrite exclude each other");
    return st;
}

graft_status graft_train(const char *recipe, const char *const *overrides, int n_overrides, const graft_train_options *options,
                         graft_train_result *result, graft_error *err) {
    static const graft_train_options none;
    graft_status st = GRAFT_OK;
    gr_recipe *r = NULL;
    gr_train_result run = {.final_loss = NAN, .final_eval_loss = NAN, .best_eval_loss = NAN};
    GR_TRY(check_train(overrides, n_overrides, options, err));
    if (!options) options = &none;
    train_listener l = {.callback = options->callback, .payload = options->payload};
    gr_train_options o = {.resume = options->resume != 0,
                          .overwrite = options->overwrite != 0,
                          .dry_run = options->dry_run != 0,
                          .progress = l.callback ? tell_step : NULL,
                          .payload = &l};
    GR_TRY(gr_recipe_load(&r, recipe, overrides, n_overrides, err));
    GR_TRY(gr_recipe_require(r, o.dry_run, err));
    GR_TRY(gr_train(r, &o, &run, err));
    if (result)
        *result = (graft_train_result){run.steps,          run.n_trainable, run.final_loss,       run.final_eval_loss,
                                       run.best_eval_loss, run.seconds,     run.tokens_per_second};
done:
    gr_recipe_free(r);
    return leave(st, err);
}

void graft_train_interrupt(void) { gr_interrupt(); }

/* ---- models ---- */

/* The value of a choice of the recipe's section model; text NULL: *out stays. */
static graft_status choose(int *out, const char *name, const char *text, graft_error *err) {
    char expected[120] = "";
    for (const gr_choice *c = gr_recipe_key("model", name)->choices; text && c->name; c++) {
        size_t at = strlen(expected);
        if (strcmp(text, c->name) == 0) {
            *out = c->value;
            return GRAFT_OK;
        }
        snprintf(expected + at, sizeof expected - at, "%s%s", at == 0 ? "" : c[1].name ? ", " : " or ", c->name);
    }
    return text ? gr_fail(err, GRAFT_BAD_USAGE, "%s \"%s\": expected %s", name, text, expected) : GRAFT_OK;
}

graft_status graft_model_open(graft_model **out, const char *path, const char *const *adapters, int n_adapters,
                              const graft_model_options *options, graft_error *err) {
    graft_status st = GRAFT_OK;
    graft_model *m = NULL;
    gr_session_options o = {.model = path, .adapters = adapters, .n_adapters = n_adapters};
    GR_TRY(need(out, "out", err));
    *out = NULL;
    GR_TRY(need_strings(adapters, n_adapters, "adapters", err));
    if (options) {
        o.template_name = options->chat_template;
        o.system = options->system;
        o.threads = options->threads;
        GR_TRY(choose(&o.dtype, "dtype", options->dtype, err));
        GR_TRY(choose(&o.compute, "compute", options->compute, err));
        GR_TRY(choose(&o.quantize, "quantize", options->quantize, err));
    }
    m = gr_calloc(1, sizeof(*m));
    if (!m) GR_TRY(gr_fail_memory(err, "model"));
    GR_TRY(gr_session_open(&m->session, &o, err));
    *out = m;
    m = NULL;
done:
    free(m);
    return leave(st, err);
}

void graft_model_close(graft_model *model) {
    if (!model) return;
    gr_session_close(&model->session);
    free(model);
}

/* ---- generation ---- */

typedef struct listener {
    graft_text_callback *one;
    graft_batch_callback *many;
    void *payload;
} listener;

static int pass_on(void *payload, int64_t prompt, const char *text, int64_t len, bool done) {
    const listener *l = payload;
    if (len == 0 && !(done && l->many)) return 0;
    return l->one ? l->one(l->payload, text, (size_t)len) : l->many(l->payload, prompt, text, (size_t)len, done);
}

static graft_status generate_options(const graft_generate_options *o, gr_generate_options *out, graft_error *err) {
    static const graft_generate_options none;
    graft_status st = GRAFT_OK;
    if (!o) o = &none;
    GR_TRY(need_strings(o->stop, o->n_stop, "stop", err));
    if (o->max_tokens < 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "max_tokens is %lld, expected 0 or more", (long long)o->max_tokens));
    if (!(o->temperature >= 0)) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "temperature is %g, expected 0 or more", o->temperature));
    if (o->top_k < 0) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "top_k is %d, expected 0 or more", o->top_k));
    if (!(o->top_p >= 0 && o->top_p <= 1)) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "top_p is %g, expected 0 to 1", o->top_p));
    if (!(o->repetition_penalty >= 0))
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "repetition_penalty is %g, expected 0 or more", o->repetition_penalty));
    *out = (gr_generate_options){.max_tokens = o->max_tokens > 0 ? o->max_tokens : 256,
                                 .temperature = (float)o->temperature,
                                 .top_k = o->top_k,
                                 .top_p = o->top_p > 0 ? (float)o->top_p : 1,
                                 .repetition_penalty = o->repetition_penalty > 0 ? (float)o->repetition_penalty : 1,
                                 .seed = o->seed,
                                 .stop = o->stop,
                                 .n_stop = o->n_stop};
done:
    return st;
}

static bool is_role(const char *role) {
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    for (int i = 0; i < GR_LEN(roles); i++)
        if (strcmp(role, roles[i]) == 0) return true;
    return false;
}

/* The ids of conversation number (from 1; 0: the only one). */
static graft_status encode(const gr_session *s, const graft_conversation *c, int64_t number, gr_ids *out, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_message *turns = NULL;
    if (c->n < 1) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "a conversation has %lld messages, expected at least one", (long long)c->n));
    GR_TRY(need(c->messages, "messages", err));
    turns = gr_calloc(c->n, sizeof(*turns));
    if (!turns) GR_TRY(gr_fail_memory(err, "messages"));
    for (int64_t i = 0; i < c->n; i++) {
        if (!c->messages[i].role || !c->messages[i].content)
            GR_TRY(
                gr_fail(err, GRAFT_BAD_USAGE, "messages[%lld].%s is NULL", (long long)i, c->messages[i].role ? "content" : "role"));
        if (!is_role(c->messages[i].role))
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "messages[%lld] has the role \"%.40s\", expected system, user, assistant or tool",
                           (long long)i, c->messages[i].role));
        turns[i] = (gr_message){.role = c->messages[i].role, .content = c->messages[i].content};
    }
    st = gr_chat_prompt(s->chat, &(gr_conversation){.messages = turns, .n = c->n}, out, err);
done:
    free(turns);
    return st != GRAFT_OK && number > 0 ? gr_fail_context(err, st, "conversation %lld", (long long)number) : st;
}

/* texts[n], all or none of them; number them in errors when there may be many. */
static graft_status answer(graft_model *model, const graft_conversation *conversations, int64_t n, bool many,
                           const graft_generate_options *options, listener *l, char **texts, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_generate_options o;
    gr_ids *ids = NULL;
    gr_completion *answers = NULL;
    GR_TRY(need(model, "model", err));
    GR_TRY(generate_options(options, &o, err));
    gr_session *s = &model->session;
    ids = gr_calloc(n, sizeof *ids);
    answers = gr_calloc(n, sizeof *answers);
    if (!ids || !answers) GR_TRY(gr_fail_memory(err, "conversations"));
    for (int64_t i = 0; i < n; i++) GR_TRY(encode(s, &conversations[i], many ? i + 1 : 0, &ids[i], err));
    GR_TRY(gr_generate(s->model, s->tokenizer, (gr_prompts){ids, n, gr_chat_end_of_turn(s->chat)}, &o, answers,
                       l->one || l->many ? pass_on : NULL, l, err));
    for (int64_t i = 0; i < n; i++) {
        texts[i] = answers[i].text; /* moves */
        answers[i].text = NULL;
    }
done:
    for (int64_t i = 0; ids && i < n; i++) gr_ids_release(&ids[i]);
    if (answers) gr_completions_release(answers, n);
    free(answers);
    free(ids);
    return leave(st, err);
}

graft_status graft_chat(graft_model *model, const graft_message *messages, int64_t n, const graft_generate_options *options,
                        graft_text_callback *callback, void *payload, char **text, graft_error *err) {
    graft_conversation one = {messages, n};
    listener l = {.one = callback, .payload = payload};
    graft_status st = need(text, "text", err);
    if (st != GRAFT_OK) return st;
    *text = NULL;
    return answer(model, &one, 1, false, options, &l, text, err);
}

graft_status graft_generate(graft_model *model, const char *prompt, const graft_generate_options *options,
                            graft_text_callback *callback, void *payload, char **text, graft_error *err) {
    graft_message turn = {"user", prompt};
    graft_status st = need(text, "text", err);
    if (st != GRAFT_OK) return st;
    *text = NULL;
    st = need(prompt, "prompt", err);
    return st == GRAFT_OK ? graft_chat(model, &turn, 1, options, callback, payload, text, err) : st;
}

graft_status graft_chat_batch(graft_model *model, const graft_conversation *conversations, int64_t n,
                              const graft_generate_options *options, graft_batch_callback *callback, void *payload, char **texts,
                              graft_error *err) {
    listener l = {.many = callback, .payload = payload};
    graft_status st = GRAFT_OK;
    if (n < 0) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "n is %lld, expected a count", (long long)n));
    if (n > 0) GR_TRY(need(texts, "texts", err));
    for (int64_t i = 0; i < n; i++) texts[i] = NULL;
    if (n > 0) GR_TRY(need(conversations, "conversations", err));
    return answer(model, conversations, n, true, options, &l, texts, err);
done:
    return st;
}

graft_status graft_generate_batch(graft_model *model, const char *const *prompts, int64_t n, const graft_generate_options *options,
                                  graft_batch_callback *callback, void *payload, char **texts, graft_error *err) {
    graft_status st = GRAFT_OK;
    graft_message *turns = NULL;
    graft_conversation *list = NULL;
    for (int64_t i = 0; texts && i < n; i++) texts[i] = NULL;
    GR_TRY(need_strings(prompts, n, "prompts", err));
    turns = gr_calloc(n, sizeof *turns);
    list = gr_calloc(n, sizeof *list);
    if (!turns || !list) GR_TRY(gr_fail_memory(err, "prompts"));
    for (int64_t i = 0; i < n; i++) {
        turns[i] = (graft_message){"user", prompts[i]};
        list[i] = (graft_conversation){&turns[i], 1};
    }
    st = graft_chat_batch(model, list, n, options, callback, payload, texts, err);
done:
    free(turns);
    free(list);
    return st;
}

/* ---- scoring, merging, exporting ---- */

graft_status graft_eval(graft_model *model, const char *data, graft_eval_result *result, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_dataset *d = NULL;
    GR_TRY(need(model, "model", err));
    GR_TRY(need(data, "data", err));
    GR_TRY(need(result, "result", err));
    gr_session *s = &model->session;
    gr_data_source source = {.path = data, .format = "auto", .weight = 1};
    gr_data_options o = {.sources = &source,
                         .n_sources = 1,
                         .loss_on = GR_LOSS_COMPLETION,
                         .max_length = s->model->rope_positions,
                         .n_rows = s->model->config.vocab,
                         .truncation = GR_TRUNCATE_KEEP_ANSWER};
    double loss = NAN;
    GR_TRY(gr_dataset_load(&d, &o, s->tokenizer, s->chat, s->machine.threads, err));
    GR_TRY(gr_evaluate(s->model, d, 0, NULL, NULL, &loss, NULL, NULL, err));
    *result = (graft_eval_result){loss, d->n_samples, d->n_targets};
done:
    gr_dataset_free(d);
    return leave(st, err);
}

/* What a call writes, checked against what the model was read from. */
static graft_status check_output(const gr_session *s, const char *path, gr_model_format format, bool overwrite, graft_error *err) {
    gr_output out = {.path = path,
                     .folder = format == GR_FORMAT_HF,
                     .overwrite = overwrite,
                     .inputs = (const char *const *)s->inputs,
                     .n_inputs = s->n_inputs};
    return gr_output_check(&out, err);
}

graft_status graft_merge(graft_model *model, const char *out_path, const graft_merge_options *options, graft_merge_result *result,
                         graft_error *err) {
    static const graft_merge_options none;
    graft_status st = GRAFT_OK;
    gr_merge_options o = {.overwrite = options && options->overwrite};
    gr_merge_report report = {0};
    GR_TRY(need(model, "model", err));
    GR_TRY(need(out_path, "out_path", err));
    if (!options) options = &none;
    gr_session *s = &model->session;
    GR_TRY(gr_format_of(&o.format, out_path, options->format, "hf", err));
    GR_TRY(gr_written_type(&o.dtype, options->dtype, err));
    if (o.format == GR_FORMAT_HF && o.dtype >= 0 && gr_dtype_get((gr_dtype)o.dtype)->block > 1)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "dtype \"%s\" needs a GGUF; a folder takes fp32, fp16 or bf16", options->dtype));
    GR_TRY(check_output(s, out_path, o.format, o.overwrite, err));
    gr_merge_parts parts = {s->model, s->tokenizer, s->adapters, s->scales, s->n_adapters, NULL};
    GR_TRY(gr_merge(&parts, &o, out_path, &report, err));
    if (result) *result = (graft_merge_result){report.max_logit_difference, report.largest_logit, report.n_bytes};
done:
    return leave(st, err);
}

graft_status graft_export(graft_model *model, const char *out_path, const graft_export_options *options, graft_error *err) {
    static const graft_export_options none;
    graft_status st = GRAFT_OK;
    gr_model_format format;
    GR_TRY(need(model, "model", err));
    GR_TRY(need(out_path, "out_path", err));
    if (!options) options = &none;
    gr_session *s = &model->session;
    if (s->n_adapters != 1) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "an export writes one adapter, the model has %d", s->n_adapters));
    GR_TRY(gr_format_of(&format, out_path, options->format, "peft", err));
    GR_TRY(check_output(s, out_path, format, options->overwrite != 0, err));
    if (format == GR_FORMAT_GGUF) GR_TRY(gr_adapter_export_gguf(s->adapters[0], s->model, out_path, err));
    else GR_TRY(gr_adapter_save(s->adapters[0], out_path, options->overwrite != 0, err));
done:
    return leave(st, err);
}
