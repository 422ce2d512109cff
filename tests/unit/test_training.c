/* Whole training runs against torch's AdamW and clipping and transformers' learning rates
 * (tests/golden/training: made by make_training.py), and what a run does about losses that are not finite and
 * evaluations that do not improve. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "core/io/safetensors.h"
#include "peft/graft.h"
#include "peft/schedule.h"

enum { MOST_OVERRIDES = 40 };

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/graft-training-XXXXXX");
    graft_quiet(1);
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    gr_remove_all(folder);
    return 0;
}

/* ---- overrides ---- */

typedef struct overrides {
    const char *items[MOST_OVERRIDES];
    char text[MOST_OVERRIDES][256];
    int n;
} overrides;

static void add(overrides *o, const char *format, ...) GR_PRINTF(2, 3);
static void add(overrides *o, const char *format, ...) {
    va_list args;
    assert_true(o->n < MOST_OVERRIDES);
    va_start(args, format);
    vsnprintf(o->text[o->n], sizeof o->text[0], format, args);
    va_end(args);
    o->items[o->n] = o->text[o->n];
    o->n++;
}

static void add_settings(overrides *o, json_t *settings) {
    const char *key;
    json_t *value;
    json_object_foreach(settings, key, value) {
        if (json_is_string(value)) add(o, "%s=%s", key, json_string_value(value));
        else if (json_is_integer(value)) add(o, "%s=%lld", key, (long long)json_integer_value(value));
        else add(o, "%s=%.17g", key, json_real_value(value));
    }
}

/* What every run here has in common: in file order, four samples a step, each step logged, in <folder>/run.
 */
static void begin(overrides *o, const char *model, int64_t steps) {
    *o = (overrides){0};
    add(o, "model.base=%s", model);
    add(o, "data.train=%s/golden/tiny/train.jsonl", TESTS_DIR);
    add(o, "output_dir=%s/run", folder);
    add(o, "train.max_steps=%lld", (long long)steps);
    for (const char *const *same =
             (const char *const[]){"model.dtype=fp32", "data.shuffle=false", "data.cache=none", "train.batch_size=4", "log.every=1",
                                   "log.tensorboard=false", "log.plot=false", "threads=1", NULL};
         *same; same++)
        add(o, "%s", *same);
}

static graft_status train(const overrides *o, graft_train_result *result, graft_error *err) {
    graft_train_options options = {.overwrite = 1};
    return graft_train(NULL, o->items, o->n, &options, result, err);
}

/* The windows of <folder>/run/metrics.jsonl that hold key. Owned. */
static json_t *read_metrics(const char *key) {
    char path[128], line[1024];
    json_t *rows = json_array();
    snprintf(path, sizeof path, "%s/run/metrics.jsonl", folder);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        json_t *row = json_loads(line, 0, NULL);
        assert_non_null(row);
        if (json_object_get(row, key)) json_array_append(rows, row);
        json_decref(row);
    }
    fclose(f);
    return rows;
}

static int count_rows(const char *key) {
    json_t *rows = read_metrics(key);
    int n = (int)json_array_size(rows);
    json_decref(rows);
    return n;
}

static double number(json_t *row, const char *key) {
    assert_true(json_is_number(json_object_get(row, key)));
    return json_number_value(json_object_get(row, key));
}

/* ---- learning rates ---- */

static void learning_rates_are_transformers(void **state) {
    (void)state;
    size_t i, step;
    json_t *golden = json_load_file(TESTS_DIR "/golden/training/training.json", 0, NULL), *schedule, *shape;
    json_array_foreach(json_object_get(golden, "schedules"), i, schedule) {
        overrides o = {0};
        gr_recipe *r;
        graft_error err = {0};
        int64_t total = json_integer_value(json_object_get(schedule, "total"));
        add(&o, "train.learning_rate=3e-4");
        add_settings(&o, json_object_get(schedule, "settings"));
        assert_int_equal(gr_recipe_load(&r, NULL, o.items, o.n, &err), GRAFT_OK);
        assert_int_equal(json_array_size(json_object_get(schedule, "shape")), total);
        json_array_foreach(json_object_get(schedule, "shape"), step, shape) {
            double found = gr_learning_rate(r, (int64_t)step + 1, total), expected = 3e-4 * json_number_value(shape);
            if (fabs(found - expected) > 1e-12 * 3e-4)
                fail_msg("schedule %zu, step %zu of %lld: %.12g, expected %.12g", i, step + 1, (long long)total, found, expected);
        }
        gr_recipe_free(r);
    }
    assert_true(i > 0);
    json_decref(golden);
}

/* ---- steps ---- */

static void check_near(const char *name, size_t step, json_t *row, const char *key, double expected, double tolerance) {
    double found = number(row, key);
    if (!(fabs(found - expected) <= tolerance * fabs(expected)))
        fail_msg("%s, step %zu: %s is %.12g, expected %.12g", name, step, key, found, expected);
}

/* Each step's loss, gradient norm and rate. What float32 leaves open, times ten. */
static void check_steps(json_t *run, const char *name) {
    json_t *rows = read_metrics("loss"), *losses = json_object_get(run, "losses"), *norms = json_object_get(run, "grad_norms"),
           *rates = json_object_get(run, "learning_rates"), *row;
    size_t i;
    assert_int_equal(json_array_size(rows), json_array_size(losses));
    json_array_foreach(rows, i, row) {
        check_near(name, i + 1, row, "loss", json_number_value(json_array_get(losses, i)), 1e-6);
        check_near(name, i + 1, row, "grad_norm", json_number_value(json_array_get(norms, i)), 2e-5);
        check_near(name, i + 1, row, "learning_rate",
                   rates ? json_number_value(json_array_get(rates, i)) : number(run, "learning_rate"), 1e-12);
    }
    json_decref(rows);
}

/* How far every parameter came from the file before to the file after. */
static void check_updates(json_t *run, const char *name, const char *before_path, const char *after_path, const char *prefix) {
    gr_safetensors *before, *after, *golden;
    graft_error err = {0};
    const char *key;
    json_t *facts;
    int n = 0;
    assert_int_equal(gr_safetensors_open(&before, before_path, &err), GRAFT_OK);
    assert_int_equal(gr_safetensors_open(&after, after_path, &err), GRAFT_OK);
    assert_int_equal(gr_safetensors_open(&golden, TESTS_DIR "/golden/training/training.safetensors", &err), GRAFT_OK);
    json_object_foreach(json_object_get(run, "updates"), key, facts) {
        char full[256];
        double sum = 0, difference = 0, size = 0, norm = json_number_value(json_object_get(facts, "norm"));
        int64_t stride = json_integer_value(json_object_get(facts, "stride"));
        snprintf(full, sizeof full, "%s%s", prefix, key);
        const gr_tensor *from = gr_safetensors_find(before, full), *to = gr_safetensors_find(after, full);
        snprintf(full, sizeof full, "%s/%s", name, key);
        const gr_tensor *expected = gr_safetensors_find(golden, full);
        if (!from || !to || !expected) fail_msg("%s: %s is missing", name, key);
        assert_true(from->n_elements == to->n_elements && from->dtype == GR_DTYPE_F32 && to->dtype == GR_DTYPE_F32);
        const float *a = from->data, *b = to->data, *change = expected->data;
        for (int64_t k = 0; k < to->n_elements; k++) sum += ((double)b[k] - a[k]) * ((double)b[k] - a[k]);
        if (fabs(sqrt(sum) - norm) > 1e-4 * norm) fail_msg("%s: %s moved by %g, expected %g", name, key, sqrt(sum), norm);
        assert_true(expected->n_elements > 0 && (expected->n_elements - 1) * stride < to->n_elements);
        for (int64_t k = 0; k < expected->n_elements; k++) {
            double off = (double)b[k * stride] - a[k * stride] - change[k];
            difference += off * off;
            size += (double)change[k] * change[k];
        }
        if (sqrt(difference / size) > 4e-4) fail_msg("%s: the changes of %s are off by %g", name, key, sqrt(difference / size));
        n++;
    }
    assert_int_equal(n, gr_safetensors_count(after)); /* nothing else was written */
    gr_safetensors_close(before);
    gr_safetensors_close(after);
    gr_safetensors_close(golden);
}

static void init_from(overrides *o, const char *adapter) {
    add(o, "adapter.rank=4");
    add(o, "adapter.alpha=8");
    add(o, "adapter.init_from=%s", adapter);
}

/* The ten steps of golden.json. */
static void golden_steps_are_torchs(void **state) {
    (void)state;
    static const char *const models[] = {TESTS_DIR "/golden/tiny", TESTS_DIR "/golden/tiny-qwen2"};
    for (int m = 0; m < GR_LEN(models); m++)
        for (int full = 0; full < 2; full++) {
            char path[512];
            overrides o;
            graft_error err = {0};
            snprintf(path, sizeof path, "%s/golden.json", models[m]);
            json_t *golden = json_load_file(path, 0, NULL), *run = json_object_get(golden, full ? "train_full" : "train");
            begin(&o, models[m], (int64_t)json_array_size(json_object_get(run, "losses")));
            add(&o, "train.lr_scheduler=constant");
            add(&o, "train.learning_rate=%.17g", number(run, "learning_rate"));
            add(&o, "train.max_grad_norm=%.17g", number(run, "max_grad_norm"));
            add(&o, "train.batch_size=%d", (int)number(run, "batch_size"));
            add(&o, "adapter.method=%s", full ? "full" : "lora");
            snprintf(path, sizeof path, "%s/adapter", models[m]);
            if (!full) init_from(&o, path);
            if (train(&o, NULL, &err) != GRAFT_OK) fail_msg("%s: %s", models[m], err.msg);
            check_steps(run, models[m]);
            json_decref(golden);
        }
}

static void runs_are_torchs(void **state) {
    (void)state;
    size_t i;
    json_t *golden = json_load_file(TESTS_DIR "/golden/training/training.json", 0, NULL), *run;
    json_array_foreach(json_object_get(golden, "runs"), i, run) {
        const char *name = json_string_value(json_object_get(run, "name"));
        json_t *settings = json_object_get(run, "settings");
        bool lora = strcmp(json_string_value(json_object_get(settings, "adapter.method")), "lora") == 0;
        char model[256], before[512], after[128];
        overrides o;
        graft_error err = {0};
        snprintf(model, sizeof model, "%s/golden/%s", TESTS_DIR, json_string_value(json_object_get(run, "model")));
        snprintf(before, sizeof before, "%s%s", model, lora ? "/adapter" : "");
        snprintf(after, sizeof after, "%s/run/%s", folder, lora ? "adapter" : "model");
        begin(&o, model, (int64_t)json_array_size(json_object_get(run, "losses")));
        add_settings(&o, settings);
        if (lora) init_from(&o, before);
        if (train(&o, NULL, &err) != GRAFT_OK) fail_msg("%s: %s", name, err.msg);
        check_steps(run, name);
        check_updates(run, name, before, after, lora ? "base_model.model." : "");
    }
    assert_true(i > 0);
    json_decref(golden);
}

/* ---- losses that are not finite, evaluations that do not improve ---- */

/* tiny-qwen2 in <folder>/nan, but for the embedding of one id, which is NaN. (Its head is a matrix of its
 * own.) */
static void make_model_with_nan(int32_t id) {
    static const char *const files[] = {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"};
    const char *from = TESTS_DIR "/golden/tiny-qwen2";
    char path[512], to[512], *text;
    int64_t len;
    gr_safetensors *st;
    graft_error err = {0};
    snprintf(to, sizeof to, "%s/nan", folder);
    assert_int_equal(gr_make_dirs(to, &err), GRAFT_OK);
    for (int i = 0; i < GR_LEN(files); i++) {
        snprintf(path, sizeof path, "%s/%s", from, files[i]);
        snprintf(to, sizeof to, "%s/nan/%s", folder, files[i]);
        assert_int_equal(gr_file_copy(path, to, &err), GRAFT_OK);
    }
    snprintf(path, sizeof path, "%s/model.safetensors", from);
    snprintf(to, sizeof to, "%s/nan/model.safetensors", folder);
    assert_int_equal(gr_file_read_raw(&text, &len, path, 1 << 24, &err), GRAFT_OK);
    assert_int_equal(gr_safetensors_open(&st, path, &err), GRAFT_OK);
    const gr_tensor *embedding = gr_safetensors_find(st, "model.embed_tokens.weight");
    assert_non_null(embedding);
    const size_t row = (size_t)embedding->shape[1] * sizeof(float);
    char *at = memmem(text, (size_t)len, (const char *)embedding->data + (size_t)id * row, row);
    assert_non_null(at);
    memset(at, 0xff, row);
    assert_int_equal(gr_file_write(to, text, len, &err), GRAFT_OK);
    gr_safetensors_close(st);
    free(text);
}

/* Ids of tiny-qwen2's tokenizer: one that the fifteenth sample alone holds, and one of every sample. */
enum { RARE_ID = 495, COMMON_ID = 1 };

/* A run on the model with NaN in <folder>/run, with a constant rate. */
static graft_status train_with_nan(const char *on_nonfinite, int64_t steps, graft_error *err) {
    overrides o;
    char model[128];
    snprintf(model, sizeof model, "%s/nan", folder);
    begin(&o, model, steps);
    add(&o, "train.lr_scheduler=constant");
    add(&o, "train.on_nonfinite=%s", on_nonfinite);
    return train(&o, NULL, err);
}

static char *read_run(const char *name, int64_t *len) {
    char path[128], *text;
    graft_error err = {0};
    snprintf(path, sizeof path, "%s/run/%s", folder, name);
    if (gr_file_read_raw(&text, len, path, 1 << 24, &err) != GRAFT_OK) fail_msg("%s", err.msg);
    return text;
}

/* The mark of the run that ended says it. */
static void assert_marked(const char *line) {
    int64_t n;
    char *mark = read_run(".graft", &n);
    if (!strstr(mark, line)) fail_msg("no \"%s\" in: %s", line, mark);
    free(mark);
}

static void a_step_that_is_not_finite_is_skipped(void **state) {
    (void)state;
    graft_error err = {0};
    int64_t n, n_more;
    size_t i;
    json_t *row;
    make_model_with_nan(RARE_ID);
    assert_int_equal(train_with_nan("stop", 6, &err), GRAFT_FAILED);
    assert_non_null(strstr(err.msg, "step 4: the loss of training sample 15 is not finite"));
    assert_int_equal(count_rows("loss"), 3);
    assert_marked("step: 3 of 6");
    assert_int_equal(train_with_nan("skip", 3, &err), GRAFT_OK);
    char *three = read_run("adapter/adapter_model.safetensors", &n);
    assert_int_equal(train_with_nan("skip", 4, &err), GRAFT_OK);
    char *four = read_run("adapter/adapter_model.safetensors", &n_more), *log = read_run("run.log", &n_more);
    assert_memory_equal(three, four, (size_t)n); /* the fourth step changed nothing */
    assert_non_null(strstr(log, "step 4 skipped: the loss of training sample 15 is not finite"));
    free(log);
    assert_int_equal(train_with_nan("skip", 54, &err), GRAFT_OK); /* eleven skips, never in a row */
    json_t *rows = read_metrics("loss");
    assert_int_equal(json_array_size(rows), 54);
    json_array_foreach(rows, i, row) { /* an epoch is five steps */
        assert_int_equal(json_is_null(json_object_get(row, "loss")), (i + 1) % 5 == 4);
        assert_int_equal(json_is_null(json_object_get(row, "grad_norm")), (i + 1) % 5 == 4);
    }
    json_decref(rows);
    free(three);
    free(four);
}

static void ten_skips_in_a_row_stop_the_run(void **state) {
    (void)state;
    graft_error err = {0};
    make_model_with_nan(COMMON_ID);
    assert_int_equal(train_with_nan("skip", 20, &err), GRAFT_FAILED);
    assert_non_null(strstr(err.msg, "step 10: the loss of training sample"));
    assert_int_equal(count_rows("loss"), 9);
    assert_marked("step: 9 of 20");
}

/* Weights that have diverged are no result, whatever steps may do. */
static void an_evaluation_that_is_not_finite_stops_the_run(void **state) {
    (void)state;
    overrides o;
    graft_error err = {0};
    const char *const choices[] = {"stop", "skip"};
    for (int i = 0; i < 2; i++) {
        begin(&o, TESTS_DIR "/golden/tiny", 4);
        add(&o, "train.learning_rate=1e30");
        add(&o, "train.lr_scheduler=constant");
        add(&o, "train.warmup_steps=0");
        add(&o, "train.on_nonfinite=%s", choices[i]);
        add(&o, "data.eval=%s/golden/tiny/train.jsonl", TESTS_DIR);
        add(&o, "eval.every=1");
        assert_int_equal(train(&o, NULL, &err), GRAFT_FAILED);
        assert_non_null(strstr(err.msg, "the loss of evaluation sample 1 is not finite"));
        assert_int_equal(count_rows("eval_loss"), 0);
    }
}

typedef struct losses_told {
    int n;
    double loss[8];
} losses_told;

static int keep_loss(void *payload, const graft_train_progress *p) {
    losses_told *told = payload;
    assert_int_equal(p->step, ++told->n);
    told->loss[p->step] = p->loss;
    return 0;
}

static void a_callback_is_told_the_loss_of_its_step(void **state) {
    (void)state;
    overrides o;
    losses_told told = {0};
    graft_train_options options = {.overwrite = 1, .callback = keep_loss, .payload = &told};
    graft_error err = {0};
    size_t i;
    json_t *row;
    begin(&o, TESTS_DIR "/golden/tiny", 7);
    assert_int_equal(train(&o, NULL, &err), GRAFT_OK);
    json_t *rows = read_metrics("loss");
    add(&o, "log.every=3");
    assert_int_equal(graft_train(NULL, o.items, o.n, &options, NULL, &err), GRAFT_OK);
    assert_int_equal(told.n, 7);
    json_array_foreach(rows, i, row) assert_true(fabs(told.loss[i + 1] - number(row, "loss")) < 1e-5);
    json_decref(rows);
}

/* The line of a run's log that shows the last step. */
static void the_last_line_shows_the_last_loss(void **state) {
    (void)state;
    overrides o;
    char shown[64];
    int64_t n;
    graft_train_result result;
    graft_error err = {0};
    begin(&o, TESTS_DIR "/golden/tiny", 5);
    assert_int_equal(train(&o, &result, &err), GRAFT_OK);
    char *log = read_run("run.log", &n);
    snprintf(shown, sizeof shown, "train  5/5  loss %.4f", result.loss);
    assert_non_null(strstr(log, shown));
    free(log);
}

static void a_run_that_does_not_improve_stops_early(void **state) {
    (void)state;
    overrides o;
    graft_train_result result;
    graft_error err = {0};
    for (int patience = 0; patience < 3; patience++) { /* 0: null */
        begin(&o, TESTS_DIR "/golden/tiny", 8);
        add(&o, "train.learning_rate=0"); /* every evaluation gives the same */
        add(&o, "data.eval=0.2");
        add(&o, "eval.every=2");
        if (patience) add(&o, "eval.early_stopping_patience=%d", patience);
        assert_int_equal(train(&o, &result, &err), GRAFT_OK);
        assert_int_equal(result.steps, patience ? 2 + 2 * patience : 8);
        assert_int_equal(count_rows("eval_loss"), patience ? 1 + patience : 4);
    }
    begin(&o, TESTS_DIR "/golden/tiny", 8);
    add(&o, "train.learning_rate=1e-3");
    add(&o, "data.eval=%s/golden/tiny/train.jsonl", TESTS_DIR);
    add(&o, "eval.every=2");
    add(&o, "eval.early_stopping_patience=1");
    assert_int_equal(train(&o, &result, &err), GRAFT_OK); /* it improves */
    assert_int_equal(result.steps, 8);
    assert_true(result.best_eval_loss == result.eval_loss);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(learning_rates_are_transformers),
        cmocka_unit_test_setup_teardown(golden_steps_are_torchs, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(runs_are_torchs, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_step_that_is_not_finite_is_skipped, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(ten_skips_in_a_row_stop_the_run, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_callback_is_told_the_loss_of_its_step, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(an_evaluation_that_is_not_finite_stops_the_run, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(the_last_line_shows_the_last_loss, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_run_that_does_not_improve_stops_early, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
