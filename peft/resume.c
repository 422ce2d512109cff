/* May a run go on from a checkpoint? Its settings are held against those that it began with. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "peft/recipe_schema.h"
#include "peft/run.h"
#include "peft/schedule.h"

static int by_text(const void *a, const void *b) { return strcmp(*(const char *const *)a, *(const char *const *)b); }

/* Lists of names in any order, each name once. */
static bool same_names(const gr_list *a, const gr_list *b) {
    bool same = a->n == b->n;
    const char **x = gr_calloc(a->n + 1, sizeof *x), **y = gr_calloc(b->n + 1, sizeof *y);
    if (same && x && y && a->n > 0) {
        memcpy(x, a->items, (size_t)a->n * sizeof *x);
        memcpy(y, b->items, (size_t)b->n * sizeof *y);
        qsort(x, (size_t)a->n, sizeof *x, by_text);
        qsort(y, (size_t)b->n, sizeof *y, by_text);
        for (int i = 0; i < a->n; i++) same = same && strcmp(x[i], y[i]) == 0;
    }
    free(x);
    free(y);
    return same;
}

/* The value in one line, owned. */
static char *value_text(const gr_key *k, const gr_recipe *r) {
    gr_str s = {0};
    gr_key_print(k, r, &s);
    char *text = gr_str_take(&s), *to = text;
    for (const char *c = text; c && *c; c++)
        if (*c != '\n' && *c != ' ') *to++ = *c;
        else if (to > text && to[-1] != ' ') *to++ = ' ';
    if (to) *to = '\0';
    return text;
}

static bool same_value(const gr_key *k, const gr_recipe *a, const gr_recipe *b) {
    if (k->type == GR_KEY_LIST)
        return same_names((const void *)((const char *)a + k->offset), (const void *)((const char *)b + k->offset));
    char *x = value_text(k, a), *y = value_text(k, b);
    bool same = x && y && strcmp(x, y) == 0;
    free(x);
    free(y);
    return same;
}

/* Does a key that must stay say something else now? What auto means is decided: by the machine for the dtype, in training for
 * compute. */
static bool differs(const gr_key *k, const gr_run *run, const gr_recipe *before, const gr_train_identity *saved) {
    const gr_recipe *now = run->r;
    if (k == &gr_recipe_keys[GR_ROW_model_dtype] && saved->compute_dtype >= 0)
        return saved->compute_dtype != run->identity.compute_dtype;
    if (k == &gr_recipe_keys[GR_ROW_model_compute])
        return gr_train_products(now->model_compute) != gr_train_products(before->model_compute);
    if (k->resume == GR_RESUME_DATA && saved->data_key == run->identity.data_key) return false;
    return !same_value(k, before, now);
}

static void add_difference(gr_str *out, const gr_key *k, const gr_run *run, const gr_recipe *before,
                           const gr_train_identity *saved) {
    char *was = value_text(k, before), *is = value_text(k, run->r);
    gr_str_printf(out, "%s%s%s%s: %s, it began with %s", out->len ? "; " : "", k->section, *k->section ? "." : "", k->name,
                  is ? is : "", was ? was : "");
    if (k == &gr_recipe_keys[GR_ROW_model_dtype] && saved->compute_dtype >= 0)
        gr_str_printf(out, " (%s, and %s, as this machine has it)", gr_dtype_get((gr_dtype)saved->compute_dtype)->name,
                      gr_dtype_get((gr_dtype)run->identity.compute_dtype)->name);
    free(was);
    free(is);
}

static const char *way_out(const gr_run *run) {
    return run->adapter ? "with adapter.init_from for its weights" : "with its model/ as model.base";
}

static graft_status check_settings(const gr_run *run, const char *folder, const gr_recipe *before, const gr_train_identity *saved,
                                   graft_error *err) {
    gr_str list = {0};
    graft_status st = GRAFT_OK;
    bool data = false;
    for (int i = 0; i < GR_N_RECIPE_KEYS; i++) {
        const gr_key *k = &gr_recipe_keys[i];
        if ((k->resume != GR_RESUME_SAME && k->resume != GR_RESUME_DATA) || !differs(k, run, before, saved)) continue;
        add_difference(&list, k, run, before, saved);
        data = data || k->resume == GR_RESUME_DATA;
    }
    if (saved->data_key != run->identity.data_key && !data)
        gr_str_printf(
            &list,
            "%sdata.train: its samples are others than those it began with (the files, the tokenizer or its template changed)",
            list.len ? "; " : "");
    if (list.len)
        st = gr_fail(err, GRAFT_BAD_USAGE,
                     "%s: a run goes on with the settings it began with. %s. Leave them as they were, begin another run "
                     "in its own output_dir (%s), or --overwrite this one",
                     folder, list.failed ? "" : list.data, way_out(run));
    gr_str_release(&list);
    return st;
}

/* Another number of steps is another schedule, unless every step done would have had the same learning rate. */
static graft_status check_steps(const gr_run *run, const char *folder, const gr_recipe *began, const gr_train_identity *saved,
                                const gr_train_state *s, graft_error *err) {
    int64_t total = run->total_steps, before = saved->total_steps;
    const char *key = run->r->train_max_steps > 0 ? "train.max_steps" : "train.num_train_epochs";
    if (total < s->step)
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "%s: %s makes %lld steps, and %lld are done: raise it, or resume from an earlier checkpoint (remove "
                       "the later ones)",
                       folder, key, (long long)total, (long long)s->step);
    for (int64_t step = 1; total != before && step <= s->step; step++) {
        double was = gr_learning_rate(run->r, step, before), is = gr_learning_rate(run->r, step, total);
        if (was != is)
            return gr_fail(err, GRAFT_BAD_USAGE,
                           "%s: %s makes %lld steps, it began with %lld, and its schedule was made for these: step %lld of the "
                           "%lld done had learning rate %.4g and would have had %.4g. Only train.lr_scheduler: constant, or wsd "
                           "before its decay, can be extended; begin another run in its own output_dir (%s)",
                           folder, key, (long long)total, (long long)before, (long long)step, (long long)s->step, was, is,
                           way_out(run));
    }
    if (total != before) gr_note("%s: %lld steps, it began with %lld", key, (long long)total, (long long)before);
    if (run->r->train_max_steps > 0 && run->r->train_num_train_epochs != began->train_num_train_epochs)
        gr_note("train.num_train_epochs: %g, it began with %g: that changes nothing, the steps are train.max_steps",
                run->r->train_num_train_epochs, began->train_num_train_epochs);
    return GRAFT_OK;
}

void gr_resume_tell_complete(const gr_run *run) {
    int64_t total = run->total_steps;
    bool same = true;
    for (int64_t step = 1; step <= total && same; step++)
        same = gr_learning_rate(run->r, step, total) == gr_learning_rate(run->r, step, 2 * total);
    if (same)
        gr_note("the run is complete; with %s raised, it goes on",
                run->r->train_max_steps > 0 ? "train.max_steps" : "train.num_train_epochs");
    else
        gr_note("the run is complete, and its learning rate has come to its end: to go on from it, begin another run in its own "
                "output_dir (%s)",
                way_out(run));
}

/* Where the base lies may change; that it is the same one is taken for granted, aloud. */
static void tell_base(const gr_run *run, const gr_recipe *before) {
    char *now = gr_path_absolute(run->r->model_base), *was = before->model_base ? gr_path_absolute(before->model_base) : NULL;
    if (now && was && strcmp(now, was) != 0)
        gr_note("model.base is %s, it began with %s: taken for the same weights", run->r->model_base, before->model_base);
    free(now);
    free(was);
}

graft_status gr_resume_plan(gr_run *run, graft_error *err) {
    gr_train_identity saved;
    char *recipe = NULL;
    graft_status st = gr_checkpoint_open_last(&run->last, run->r->_output_dir, true, err); /* damaged ones are told of later */
    if (st == GRAFT_OK && run->last.h5) {
        st = gr_checkpoint_identity(&run->last, &saved, &recipe, err);
        if (st == GRAFT_OK) run->before = saved.split;
    }
    free(recipe);
    return st;
}

graft_status gr_resume_check(const void *context, const char *folder, const gr_train_identity *saved, const gr_train_state *s,
                             graft_error *err) {
    const gr_run *run = context;
    gr_recipe *before = NULL;
    graft_status st;
    GR_TRY(gr_recipe_parse(&before, saved->recipe, "the checkpoint's recipe", err));
    GR_TRY(check_settings(run, folder, before, saved, err));
    GR_TRY(check_steps(run, folder, before, saved, s, err));
    tell_base(run, before);
done:
    gr_recipe_free(before);
    return st;
}
