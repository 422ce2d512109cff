/* The files that a run leaves: metrics.jsonl, trainer_state.json, TensorBoard events, loss.svg. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <glob.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "peft/metrics.h"
#include "peft/plot.h"
#include "peft/tfevents.h"

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/graft-metrics-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    gr_remove_all(folder);
    return 0;
}

static char *read_text(const char *name, int64_t *len) {
    char *path = gr_path_join(folder, name), *text = NULL;
    graft_error err = {0};
    if (gr_file_read(&text, len, path, 1 << 24, &err) != GRAFT_OK) fail_msg("%s", err.msg);
    free(path);
    return text;
}

static void log_steps(gr_metrics *m, int64_t from, int64_t to, double shift) {
    graft_error err = {0};
    for (int64_t step = from; step <= to; step++) {
        gr_train_row row = {.step = step,
                            .epoch = (double)step / 10,
                            .loss = 3.0 / (double)step + shift,
                            .grad_norm = 1.0 / 3,
                            .learning_rate = 2e-4,
                            .tokens_per_second = 321.5,
                            .num_tokens = step * 100,
                            .num_target_tokens = step * 60};
        assert_int_equal(gr_metrics_train(m, &row, &err), GRAFT_OK);
        if (step % 4 != 0) continue;
        gr_eval_row eval = {step, row.epoch, 2.5, 0.25, 40, step == 8 ? 0.5 : NAN};
        assert_int_equal(gr_metrics_eval(m, &eval, &err), GRAFT_OK);
    }
}

static const gr_run_facts facts = {.max_steps = 20,
                                   .save_steps = 4,
                                   .eval_steps = 4,
                                   .logging_steps = 1,
                                   .train_batch_size = 16,
                                   .num_train_epochs = 2,
                                   .best_metric = 2.5,
                                   .best_step = 4};

static void test_crc32c(void **state) {
    (void)state;
    char zeros[32] = {0};
    assert_int_equal(gr_crc32c("123456789", 9), 0xe3069283u); /* RFC 3720, appendix B.4 and the usual check value */
    assert_int_equal(gr_crc32c(zeros, 32), 0x8a9136aau);
    assert_int_equal(gr_crc32c("", 0), 0);
}

static void test_lines(void **state) {
    (void)state;
    graft_error err = {0};
    gr_metrics *m;
    assert_int_equal(gr_metrics_open(&m, folder, false, false, -1, &err), GRAFT_OK);
    log_steps(m, 1, 4, 0);
    int64_t len;
    char *text = read_text("metrics.jsonl", &len); /* complete while the run goes on */
    assert_non_null(strstr(text, "{\"step\": 1, \"epoch\": 0.1, \"loss\": 3.0, \"grad_norm\": 0.3333333333333333, "
                                 "\"learning_rate\": 0.0002, \"tokens_per_second\": 321.5, \"num_tokens\": 100, "
                                 "\"num_target_tokens\": 60}\n"));
    assert_non_null(strstr(text, "{\"step\": 4, \"epoch\": 0.4, \"eval_loss\": 2.5, \"eval_runtime\": 0.25, "
                                 "\"eval_samples_per_second\": 40.0}\n"));
    free(text);
    gr_train_row bad = {.step = 5, .loss = NAN, .grad_norm = INFINITY};
    assert_int_equal(gr_metrics_train(m, &bad, &err), GRAFT_OK);
    assert_int_equal(gr_metrics_save(m, &facts, &err), GRAFT_OK);
    gr_metrics_close(m);
    text = read_text("metrics.jsonl", &len);
    assert_non_null(strstr(text, "\"loss\": null, \"grad_norm\": null"));
    free(text);
    text = read_text("trainer_state.json", &len);
    json_t *o = json_loads(text, 0, NULL);
    assert_true(json_is_object(o));
    assert_true(json_is_null(json_object_get(json_array_get(json_object_get(o, "log_history"), 5), "loss")));
    json_decref(o);
    free(text);
}

/* Both documents have the same keys with the same indentation in the same order. */
static void check_same_keys(char *a, char *b) {
    char *rest_a = NULL, *rest_b = NULL;
    char *line_a = strtok_r(a, "\n", &rest_a), *line_b = strtok_r(b, "\n", &rest_b);
    for (; line_a && line_b; line_a = strtok_r(NULL, "\n", &rest_a), line_b = strtok_r(NULL, "\n", &rest_b)) {
        char *colon = strchr(line_a, ':');
        if (colon) assert_memory_equal(line_a, line_b, (size_t)(colon - line_a));
        else assert_string_equal(line_a, line_b);
    }
    assert_true(!line_a && !line_b);
}

static void test_state(void **state) {
    (void)state;
    graft_error err = {0};
    gr_metrics *m;
    assert_int_equal(gr_metrics_open(&m, folder, false, true, -1, &err), GRAFT_OK);
    log_steps(m, 1, 9, 0);
    assert_int_equal(gr_metrics_save(m, &facts, &err), GRAFT_OK);
    gr_metrics_close(m);
    int64_t len;
    char *text = read_text("trainer_state.json", &len);
    json_t *o = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(o);
    /* sorted and indented as json.dumps(indent=2, sort_keys=True) writes it */
    char *sorted = json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS);
    check_same_keys(text, sorted);
    free(sorted);
    assert_int_equal(json_integer_value(json_object_get(o, "global_step")), 9);
    assert_int_equal(json_integer_value(json_object_get(o, "num_input_tokens_seen")), 900);
    assert_int_equal(json_integer_value(json_object_get(o, "num_train_epochs")), 2);
    assert_true(json_real_value(json_object_get(o, "best_metric")) == 2.5);
    assert_non_null(strstr(json_string_value(json_object_get(o, "best_model_checkpoint")), "/checkpoint-4"));
    json_t *history = json_object_get(o, "log_history");
    assert_int_equal(json_array_size(history), 11);
    assert_null(json_object_get(json_array_get(history, 4), "eval_exact_match"));
    assert_true(json_real_value(json_object_get(json_array_get(history, 9), "eval_exact_match")) == 0.5);
    json_decref(o);
    free(text);
    gr_run_facts elsewhere = facts;
    elsewhere.best_folder = "runs/x/adapter";
    assert_int_equal(gr_metrics_open(&m, folder, false, false, 9, &err), GRAFT_OK);
    assert_int_equal(gr_metrics_save(m, &elsewhere, &err), GRAFT_OK);
    gr_metrics_close(m);
    text = read_text("trainer_state.json", &len);
    assert_non_null(strstr(text, "\"best_model_checkpoint\": \"runs/x/adapter\""));
    free(text);
    text = read_text("loss.svg", &len);
    assert_true(gr_starts_with(text, "<svg ") && gr_ends_with(text, "</svg>\n"));
    free(text);
}

static void test_resume(void **state) {
    (void)state;
    graft_error err = {0};
    gr_metrics *m;
    int64_t len;
    assert_int_equal(gr_metrics_open(&m, folder, true, false, -1, &err), GRAFT_OK);
    log_steps(m, 1, 7, 0);
    gr_metrics_close(m);
    char *path = gr_path_join(folder, "metrics.jsonl");
    FILE *f = fopen(path, "ab");
    fputs("{\"step\": 8, \"lo", f); /* killed while writing */
    fclose(f);
    assert_int_equal(gr_metrics_open(&m, folder, true, false, 4, &err), GRAFT_OK);
    log_steps(m, 5, 9, 0);
    assert_int_equal(gr_metrics_save(m, &facts, &err), GRAFT_OK);
    gr_metrics_close(m);
    char *resumed = read_text("metrics.jsonl", &len);
    char *resumed_state = read_text("trainer_state.json", &len);
    gr_remove_all(path);
    assert_int_equal(gr_metrics_open(&m, folder, false, false, -1, &err), GRAFT_OK);
    log_steps(m, 1, 9, 0);
    assert_int_equal(gr_metrics_save(m, &facts, &err), GRAFT_OK);
    gr_metrics_close(m);
    char *whole = read_text("metrics.jsonl", &len), *whole_state = read_text("trainer_state.json", &len);
    assert_string_equal(resumed, whole);
    assert_string_equal(resumed_state, whole_state);
    free(resumed);
    free(whole);
    free(resumed_state);
    free(whole_state);
    f = fopen(path, "ab");
    fputs("nonsense\n", f);
    fclose(f);
    assert_int_equal(gr_metrics_open(&m, folder, false, false, 4, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "metrics.jsonl:12"));
    free(path);
}

static uint64_t little_endian(const uint8_t *p, int n) {
    uint64_t v = 0;
    for (int i = n; i-- > 0;) v = v << 8 | p[i];
    return v;
}

static void check_crc(const uint8_t *p, int64_t n) {
    uint32_t crc = gr_crc32c(p, n);
    assert_int_equal(little_endian(p + n, 4), (uint32_t)((crc >> 15 | crc << 17) + 0xa282ead8u));
}

static void test_events(void **state) {
    (void)state;
    graft_error err = {0};
    gr_metrics *m;
    glob_t found;
    char pattern[128];
    assert_int_equal(gr_metrics_open(&m, folder, true, false, -1, &err), GRAFT_OK);
    log_steps(m, 1, 4, 0);
    gr_metrics_close(m);
    snprintf(pattern, sizeof(pattern), "%s/events.out.tfevents.*", folder);
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, 1);
    gr_map map;
    assert_int_equal(gr_map_open(&map, found.gl_pathv[0], &err), GRAFT_OK);
    globfree(&found);
    int records = 0, losses = 0;
    for (int64_t at = 0; at < map.size; records++) {
        int64_t n = (int64_t)little_endian(map.data + at, 8);
        check_crc(map.data + at, 8);
        assert_true(at + 16 + n <= map.size);
        check_crc(map.data + at + 12, n);
        losses += memmem(map.data + at + 12, (size_t)n, "train/loss", 10) != NULL;
        if (at == 0) assert_non_null(memmem(map.data, 64, "brain.Event:2", 13));
        at += 16 + n;
    }
    assert_int_equal(records, 6); /* version, four windows, one evaluation */
    assert_int_equal(losses, 4);
    gr_map_close(&map);
}

static void test_two_event_files_in_one_second(void **state) {
    (void)state;
    graft_error err = {0};
    gr_tfevents *a, *b;
    assert_int_equal(gr_tfevents_open(&a, folder, 0, &err), GRAFT_OK);
    assert_int_equal(gr_tfevents_open(&b, folder, 3, &err), GRAFT_OK);
    gr_tfevents_close(a);
    gr_tfevents_close(b);
    assert_int_equal(gr_tfevents_open(&a, "/nonexistent", 0, &err), GRAFT_FAILED);
    assert_non_null(strstr(err.msg, "/nonexistent"));
}

static void test_plot_of_odd_data(void **state) {
    (void)state;
    const gr_point points[] = {{1, NAN}, {2, 5}, {3, INFINITY}, {4, 5}};
    for (int n = 0; n <= 4; n++) {
        gr_str svg = {0};
        gr_plot_loss(&svg, "a <b> & c", points, n, points, n / 2);
        assert_false(svg.failed);
        assert_non_null(strstr(svg.data, "a &lt;b> &amp; c"));
        assert_null(strstr(svg.data, "nan"));
        assert_null(strstr(svg.data, "inf"));
        gr_str_release(&svg);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crc32c),
        cmocka_unit_test_setup_teardown(test_lines, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_state, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_resume, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_events, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_two_event_files_in_one_second, make_folder, remove_folder),
        cmocka_unit_test(test_plot_of_odd_data),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
