/* test_optimizers.c - what is trained, in every form: five updates against golden values (tests/golden/make_optimizers.py), where
 * everything lies, and reading and writing whatever the type. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/model/machine.h"
#include "core/model/params.h"
#include "tests/unit/machine.h"

static int set_up(void **state) {
    gr_log_quiet(true);
    return open_machine(state);
}

static const char *const weights[] = {"fp32", "bf16", "bf16_stochastic"};

/* A matrix, a vector and a small matrix; the first is item 1. */
static void make(gr_params *p, gr_params_form form, int64_t rows, int64_t cols) {
    int64_t index;
    p->form = form;
    assert_ok(gr_params_add(p, "vector", 1, 5, false, &index, &err));
    assert_ok(gr_params_add(p, "matrix", rows, cols, true, &index, &err));
    assert_ok(gr_params_add(p, "small", 3, 7, true, &index, &err));
    assert_ok(gr_params_allocate(p, machine.device, true, &err));
}

static void fill_with(float *x, int64_t n, double (*f)(int64_t i, int t), int t) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)f(i, t);
}

static double start_of(int64_t i, int t) { return (void)t, 0.5 * sin(0.7 * (double)i); }
static double gradient_of(int64_t i, int t) { return cos(1.3 * (double)i + t) * pow(10, -3 + sin(0.01 * (double)i)); }

/* Root of the mean square of the difference to the golden values, over that of the way from the start. */
static double distance(const json_t *golden, const float *w) {
    double off = 0, way = 0;
    for (size_t k = 0; k < json_array_size(golden); k++) {
        double x = json_number_value(json_array_get(golden, k)), d = w[7 * k] - x, s = x - start_of((int64_t)(7 * k), 0);
        off += d * d, way += s * s;
    }
    return sqrt(off / way);
}

/* Of float32, and of bfloat16 with all of it, within rounding; of bfloat16 alone about one unit of 2^-8 of the values. In 8 bits
 * single codes fall to the other side of a middle. */
static void test_golden(void **state) {
    (void)state;
    static const char *const names[] = {"adamw", "adamw_8bit", "adafactor"};
    static const double tolerance[] = {2e-5, 2e-3, 2e-5};
    json_t *golden = json_load_file(TESTS_DIR "/golden/optimizers.json", 0, NULL);
    assert_non_null(golden);
    assert_int_equal(json_integer_value(json_object_get(golden, "stride")), 7);
    int64_t rows = json_integer_value(json_object_get(golden, "rows")), cols = json_integer_value(json_object_get(golden, "cols"));
    float *x = calloc((size_t)(rows * cols), sizeof *x);
    assert_non_null(x);
    gr_step_stats *s = machine.device->alloc(machine.device, sizeof *s);
    for (int optimizer = 0; optimizer < 3; optimizer++)
        for (int type = 0; type < 3; type++) {
            gr_params p = {0};
            make(&p, (gr_params_form){.optimizer = (gr_optimizer)optimizer, .weights = (gr_trained_type)type, .seed = 1}, rows,
                 cols);
            fill_with(x, rows * cols, start_of, 0);
            gr_params_write(&p, GR_PARAMS_VALUE, 1, x);
            for (int t = 1; t <= 5; t++) {
                const gr_adamw how = {.beta1 = 0.9f, .beta2 = 0.999f, .epsilon = 1e-8f, .weight_decay = 0.1f};
                const gr_step_stats now = {.clip = 1, .optimizer_step = t};
                fill_with(x, rows * cols, gradient_of, t);
                gr_params_write(&p, GR_PARAMS_GRAD, 1, x);
                machine.device->upload(machine.device, s, &now, sizeof now);
                gr_params_update(&p, 0, p.n_items, 1e-2, &how, s);
            }
            gr_params_read(&p, GR_PARAMS_VALUE, 1, x);
            double d = distance(json_object_get(golden, names[optimizer]), x);
            if (!(d < (type == GR_TRAINED_BF16_STOCHASTIC ? 0.2 : tolerance[optimizer])))
                fail_msg("%s, %s: %g from the golden values", names[optimizer], weights[type], d);
            gr_params_release(&p);
        }
    machine.device->free(machine.device, s);
    free(x);
    json_decref(golden);
}

/* A matrix of more rows or columns than Adafactor has room for is refused when it is planned; vectors and others take any. */
static void test_adafactor_limit(void **state) {
    (void)state;
    static const struct {
        int64_t rows, cols;
        bool adafactor, good;
    } cases[] = {{GR_FACTORS_MOST / 2 - 1, 2, true, true},
                 {GR_FACTORS_MOST / 2 - 1, 3, true, false},
                 {GR_FACTORS_MOST / 2 + 1, 2, true, false},
                 {2, GR_FACTORS_MOST, true, false},
                 {INT64_MAX / 256, 2, true, false},
                 {1, 4 * (int64_t)GR_FACTORS_MOST, true, true},
                 {4 * (int64_t)GR_FACTORS_MOST, 2, false, true}};
    for (int i = 0; i < GR_LEN(cases); i++) {
        gr_params p = {.form = {.optimizer = cases[i].adafactor ? GR_OPTIMIZER_ADAFACTOR : GR_OPTIMIZER_ADAMW}};
        int64_t index;
        graft_status st = gr_params_add(&p, "embed", cases[i].rows, cases[i].cols, true, &index, &err);
        assert_int_equal(st, cases[i].good ? GRAFT_OK : GRAFT_BAD_USAGE);
        if (!cases[i].good) assert_non_null(strstr(err.msg, "embed: "));
        if (!cases[i].good) assert_non_null(strstr(err.msg, "train.optimizer"));
        gr_params_release(&p);
    }
}

/* Each item keeps its own values, gradients and states, wherever they lie. */
static void test_places(void **state) {
    (void)state;
    enum { ROWS = 20, COLS = 230, MOST = ROWS * COLS };
    static float x[MOST], y[MOST];
    for (int form = 0; form < 18; form++) {
        gr_params p = {0};
        gr_state_part part[GR_STATE_PARTS];
        int64_t bytes[GR_PARAMS_BUFFERS];
        make(&p, (gr_params_form){.optimizer = form % 3, .weights = form / 3 % 3, .release = form / 9, .seed = 1}, ROWS, COLS);
        for (int64_t i = 0; i < p.n_items; i++) {
            for (int64_t k = 0; k < p.items[i].n; k++) x[k] = (float)(i + 1) + (float)k / 128;
            gr_params_write(&p, GR_PARAMS_VALUE, i, x);
            for (int k = 0, n = gr_params_state(&p, i, part); k < n; k++) {
                memset(x, (int)(16 * (i + 1) + k), sizeof x);
                machine.device->upload(machine.device, part[k].data, x, part[k].rows * part[k].cols * (part[k].codes ? 1 : 4));
            }
        }
        for (int64_t i = 0; i < p.n_items; i++) {
            gr_params_read(&p, GR_PARAMS_VALUE, i, y);
            for (int64_t k = 0; k < p.items[i].n; k++) {
                float whole = (float)(i + 1) + (float)k / 128;
                bool rounds = form / 3 % 3 == GR_TRAINED_BF16_STOCHASTIC && p.items[i].rows > 1;
                assert_true(rounds ? y[k] == gr_bf16_to_f32(gr_f32_to_bf16(whole)) : y[k] == whole);
            }
            for (int k = 0, n = gr_params_state(&p, i, part); k < n; k++) {
                int64_t size = part[k].rows * part[k].cols * (part[k].codes ? 1 : 4);
                memset(x, (int)(16 * (i + 1) + k), sizeof x);
                machine.device->download(machine.device, y, part[k].data, size, 0);
                assert_memory_equal(x, y, (size_t)size);
            }
        }
        gr_params_bytes(&p, bytes);
        assert_int_equal(bytes[3], p.n_grads * 4);
        gr_params_release(&p);
    }
}

/* With release: layers share a place, what is begun early has its own. */
static void test_release(void **state) {
    (void)state;
    gr_params p = {.form = {.release = true}};
    int64_t index;
    static const int64_t layers[] = {-1, 0, 0, 1, 2}, sizes[] = {40, 16, 20, 100, 3}, at[] = {0, 48, 64, 48, 48};
    for (int i = 0; i < 5; i++) {
        assert_ok(gr_params_add(&p, "x", 1, sizes[i], false, &index, &err));
        p.items[index].layer = layers[i], p.items[index].early = i == 0;
    }
    assert_ok(gr_params_allocate(&p, machine.device, true, &err));
    for (int i = 0; i < 5; i++) assert_int_equal(p.items[i].grad_at, at[i]);
    assert_int_equal(p.n_grads, 48 + 112);
    gr_params_release(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_adafactor_limit),
        cmocka_unit_test(test_places),
        cmocka_unit_test(test_release),
    };
    return cmocka_run_group_tests(tests, set_up, close_machine);
}
