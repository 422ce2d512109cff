/* graft data preview, graft data make */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/data/maker.h"
#include "peft/cli/commands.h"

/* The data set of a recipe, only as much of each source as is looked at. */
static graft_status load(const gr_recipe *r, int64_t last, const gr_tokenizer *t, const gr_chat *chat, gr_threads *threads,
                         gr_dataset **out, graft_error *err) {
    gr_data_source *sources = gr_calloc(r->data_train.n, sizeof *sources);
    if (!sources) return gr_fail_memory(err, "sources");
    for (int i = 0; i < r->data_train.n; i++) {
        sources[i] = r->data_train.items[i];
        int64_t enough = GR_MAX(last, 100); /* some may be dropped */
        if (sources[i].limit == 0 || sources[i].limit > enough) sources[i].limit = enough;
    }
    gr_data_options o = {.sources = sources,
                         .n_sources = r->data_train.n,
                         .loss_on = (gr_loss_on)r->data_loss_on,
                         .max_length = r->data_max_length,
                         .truncation = (gr_truncation)r->data_truncation,
                         .pretrain = r->train_objective == GR_OBJECTIVE_PRETRAIN,
                         .attention = (gr_block_attention)r->data_attention};
    graft_status st = gr_dataset_load(out, &o, t, chat, threads, err);
    free(sources);
    return st;
}

graft_status gr_cmd_data_preview(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_recipe *r = NULL;
    gr_tokenizer *t = NULL;
    gr_chat *chat = NULL;
    gr_threads *threads = NULL;
    gr_dataset *d = NULL;
    char *base = NULL;
    int64_t n, first;
    GR_TRY(gr_args_int(a, "n", 1, 3, &n, err));
    GR_TRY(gr_args_int(a, "first", 0, 0, &first, err));
    GR_TRY(gr_args_recipe(a, a->n_arguments > 0 ? a->arguments[0] : NULL, 1, &r, err));
    if (!r->model_base || r->data_train.n == 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "nothing to show: give a recipe, or --model and --data"));
    GR_TRY(gr_session_base(&base, r->model_base, err));
    GR_TRY(gr_tokenizer_open(&t, base, err));
    gr_chat_options how = gr_recipe_chat(r, t);
    GR_TRY(gr_chat_open(&chat, &how, t, err));
    threads = gr_threads_new((int)GR_MIN(r->_threads, 1024));
    if (!threads) GR_TRY(gr_fail(err, GRAFT_FAILED, "cannot start threads"));
    GR_TRY(load(r, n > INT64_MAX - first ? INT64_MAX : first + n, t, chat, threads, &d, err));
    GR_TRY(gr_dataset_preview(d, t, first, n, isatty(STDOUT_FILENO), stdout, err));
done:
    gr_dataset_free(d);
    gr_threads_free(threads);
    gr_chat_free(chat);
    gr_tokenizer_free(t);
    gr_recipe_free(r);
    free(base);
    return st;
}

/* "2" or "1-3" */
static graft_status parse_steps(const char *text, gr_school_math_options *o, graft_error *err) {
    bool range = strlen(text) == 3 && text[1] == '-';
    if ((strlen(text) != 1 && !range) || text[0] < '1' || text[0] > '3' || (range && (text[2] < text[0] || text[2] > '3')))
        return gr_fail(err, GRAFT_BAD_USAGE, "--steps: expected 1, 2, 3 or a range such as 1-3, found \"%s\"", text);
    o->min_steps = text[0] - '0';
    o->max_steps = range ? text[2] - '0' : o->min_steps;
    return GRAFT_OK;
}

graft_status gr_cmd_data_make(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t seed;
    gr_writer w = {0};
    const char *out = gr_args_text(a, "out", NULL);
    gr_school_math_options o = {.language = gr_args_text(a, "language", "en")};
    if (strcmp(a->arguments[0], "school-math") != 0)
        return gr_fail(err, GRAFT_BAD_USAGE, "unknown task \"%s\": expected school-math", a->arguments[0]);
    if (strcmp(o.language, "en") != 0 && strcmp(o.language, "zh") != 0 && strcmp(o.language, "both") != 0)
        return gr_fail(err, GRAFT_BAD_USAGE, "--language: expected en, zh or both, found \"%s\"", o.language);
    GR_TRY(gr_args_int(a, "n", 1, 1000, &o.n, err));
    GR_TRY(gr_args_int(a, "seed", 0, 1, &seed, err));
    GR_TRY(parse_steps(gr_args_text(a, "steps", "1-3"), &o, err));
    o.seed = (uint64_t)seed;
    if (out) GR_TRY(gr_output_check(&(gr_output){.path = out, .overwrite = gr_args_has(a, "overwrite")}, err));
    if (out) GR_TRY(gr_writer_open(&w, out, err));
    GR_TRY(gr_make_school_math(&o, out ? w.stream : stdout, err));
    if (out) GR_TRY(gr_writer_commit(&w, err));
done:
    gr_writer_abort(&w);
    return st;
}
