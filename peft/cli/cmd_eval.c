/* graft eval */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "peft/cli/session_args.h"

/* What was measured of a data set; the arrays are per sample. */
typedef struct scores {
    double loss, exact_match; /* NaN: not asked for */
    double *nll;
    int64_t *targets;
    gr_completion *completions;
    uint8_t *matches;
} scores;

static void release_scores(scores *x, int64_t n) {
    free(x->nll);
    free(x->targets);
    if (x->completions) gr_completions_release(x->completions, n);
    free(x->completions);
    free(x->matches);
}

static graft_status load_data(const gr_args *a, const gr_session *s, const gr_recipe *r, gr_dataset **out, graft_error *err) {
    int64_t limit, context = s->model->config.max_positions;
    graft_status st = gr_args_int(a, "limit", 1, 0, &limit, err);
    if (st != GRAFT_OK) return st;
    if (gr_args_has(a, "max-length") && r->data_max_length > context)
        return gr_fail(err, GRAFT_BAD_USAGE, "--max-length: the context of the model is %lld tokens, found %lld",
                       (long long)context, (long long)r->data_max_length);
    gr_data_source source = r->data_train.items[0];
    source.limit = limit;
    gr_data_options o = {.sources = &source,
                         .n_sources = 1,
                         .loss_on = (gr_loss_on)r->data_loss_on,
                         .n_rows = s->model->config.vocab,
                         .max_length = gr_args_has(a, "max-length") ? r->data_max_length : context,
                         .truncation = (gr_truncation)r->data_truncation};
    return gr_dataset_load(out, &o, s->tokenizer, s->chat, s->machine.threads, err);
}

static graft_status measure(const gr_args *a, gr_session *s, const gr_recipe *r, const gr_dataset *d, scores *x, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t max_tokens;
    *x = (scores){.loss = NAN, .exact_match = NAN};
    GR_TRY(gr_args_int(a, "max-tokens", 1, 256, &max_tokens, err));
    if (gr_recipe_has_metric(r, "loss") || gr_args_has(a, "out")) {
        x->nll = gr_calloc(d->n_samples, sizeof *x->nll);
        x->targets = gr_calloc(d->n_samples, sizeof *x->targets);
        if (!x->nll || !x->targets) GR_TRY(gr_fail_memory(err, "scores"));
        GR_TRY(gr_evaluate(s->model, d, r->eval_batch_tokens, NULL, "loss", &x->loss, x->nll, x->targets, err));
    }
    if (gr_recipe_has_metric(r, "exact_match")) {
        x->completions = gr_calloc(d->n_samples, sizeof *x->completions);
        x->matches = gr_calloc(d->n_samples, 1);
        if (!x->completions || !x->matches) GR_TRY(gr_fail_memory(err, "scores"));
        gr_match_options o = {gr_chat_end_of_turn(s->chat), max_tokens, "answers", x->completions, x->matches, NULL};
        GR_TRY(gr_evaluate_exact_match(s->model, s->tokenizer, d, &o, &x->exact_match, err));
    }
done:
    return st;
}

static graft_status write_samples(const char *path, const gr_dataset *d, const scores *x, graft_error *err) {
    gr_writer w = {0};
    graft_status st = gr_writer_open(&w, path, err);
    if (st != GRAFT_OK) return st;
    for (int64_t i = 0; i < d->n_samples; i++) {
        json_t *line = json_pack("{s:I,s:I,s:f}", "index", (json_int_t)i, "tokens", (json_int_t)x->targets[i], "nll", x->nll[i]);
        if (line && x->completions) {
            json_object_set_new(line, "completion", json_string(x->completions[i].text));
            json_object_set_new(line, "exact_match", json_boolean(x->matches[i]));
        }
        if (!line) st = gr_fail_memory(err, "scores");
        if (st != GRAFT_OK) break;
        json_dumpf(line, w.stream, JSON_COMPACT);
        fputc('\n', w.stream);
        json_decref(line);
    }
    if (st != GRAFT_OK) {
        gr_writer_abort(&w);
        return st;
    }
    return gr_writer_commit(&w, err);
}

static void print_json(const gr_dataset *d, const scores *x) {
    json_t *out = json_pack("{s:I,s:I,s:I,s:I}", "samples", (json_int_t)d->n_samples, "target_tokens", (json_int_t)d->n_targets,
                            "truncated", (json_int_t)d->lost.truncated, "dropped", (json_int_t)(d->lost.dropped + d->n_empty));
    if (!isnan(x->loss)) {
        json_object_set_new(out, "loss", json_real(x->loss));
        json_object_set_new(out, "perplexity", json_real(exp(x->loss)));
    }
    if (!isnan(x->exact_match)) json_object_set_new(out, "exact_match", json_real(x->exact_match));
    json_dumpf(out, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    putchar('\n');
    json_decref(out);
}

static void print_table(const gr_dataset *d, const scores *x) {
    char text[32];
    printf("samples        %s", gr_thousands(d->n_samples, text));
    if (d->lost.truncated) printf(", %lld truncated", (long long)d->lost.truncated);
    if (d->lost.dropped + d->n_empty) printf(", %lld left out", (long long)(d->lost.dropped + d->n_empty));
    printf("\ntarget tokens  %s\n", gr_thousands(d->n_targets, text));
    if (!isnan(x->loss)) printf("loss           %.4f\nperplexity     %.3f\n", x->loss, exp(x->loss));
    if (!isnan(x->exact_match))
        printf("exact match    %.1f %% (%lld of %lld)\n", 100 * x->exact_match, llround(x->exact_match * (double)d->n_samples),
               (long long)d->n_samples);
}

graft_status gr_cmd_eval(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session s = {0};
    gr_recipe *r = NULL;
    gr_dataset *d = NULL;
    scores x = {0};
    if (!gr_args_has(a, "data")) return gr_fail(err, GRAFT_BAD_USAGE, "no data: give --data FILE");
    GR_TRY(gr_open_session(a, GR_FOR_SCORING, &s, &r, err));
    GR_TRY(load_data(a, &s, r, &d, err));
    GR_TRY(measure(a, &s, r, d, &x, err));
    if (gr_args_has(a, "out")) GR_TRY(write_samples(gr_args_text(a, "out", NULL), d, &x, err));
    if (gr_args_has(a, "json")) print_json(d, &x);
    else print_table(d, &x);
done:
    release_scores(&x, d ? d->n_samples : 0);
    gr_dataset_free(d);
    gr_recipe_free(r);
    gr_session_close(&s);
    return st;
}
