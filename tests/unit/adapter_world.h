/* adapter_world.h - what the tests of adapters share: a scratch folder, the golden tiny models (2 layers;
 * TINY: tied head, QWEN: biases, untied), adapters with every matrix non-zero. Included once by a test
 * program. */
#ifndef GR_TESTS_ADAPTER_WORLD_H
#define GR_TESTS_ADAPTER_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/merge.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "assert_ok.h"
#include "tests/unit/params_copy.h"

static const char TINY[] = TESTS_DIR "/golden/tiny", QWEN[] = TESTS_DIR "/golden/tiny-qwen2";
static char dir[] = "/tmp/graft-adapters-XXXXXX";
static gr_arena arena;
static gr_machine machine;

static inline char *at(const char *name) { /* the path of a scratch file */
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return gr_arena_strdup(&arena, path);
}

static int set_up(void **state) {
    (void)state;
    gr_log_quiet(true);
    return gr_machine_open(&machine, "auto", 2, NULL) == GRAFT_OK && mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    gr_remove_all(dir);
    gr_arena_release(&arena);
    gr_machine_close(&machine);
    return 0;
}

static void assert_error(graft_status status, graft_status expected, const char *part) {
    if (status != expected || err.status != expected || !strstr(err.msg, part))
        fail_msg("status %d, expected %d with \"%s\" in: %s", status, expected, part, err.msg);
}

static inline gr_model *open_model(const char *path) {
    gr_model *m = NULL;
    assert_ok(gr_model_open(&m, path, machine, GR_DTYPE_F32, 128, &err));
    return m;
}

static inline graft_status plan(gr_adapter **a, gr_model *m, gr_adapter_config c, int n, const char *const *targets) {
    c.target_modules = targets;
    c.n_target_modules = n;
    if (!c.rank) c.rank = 4, c.alpha = 8;
    if (!c.base) c.base = "tiny";
    return gr_adapter_plan(a, &c, m, NULL, &err);
}
#define TARGETS(...)                                                                                                               \
    GR_LEN(((const char *[]){__VA_ARGS__})), (const char *[]) { __VA_ARGS__ }

/* A copy of an item's values, in the arena. */
static inline const float *values_of(const gr_params *p, int64_t item) {
    float *copy = gr_arena_alloc(&arena, p->items[item].n * (int64_t)sizeof *copy);
    assert_non_null(copy);
    gr_params_read(p, GR_PARAMS_VALUE, item, copy);
    return copy;
}

static inline void assert_same_values(const gr_params *a, const gr_params *b, bool same) {
    float *x = read_all(a, GR_PARAMS_VALUE), *y = read_all(b, GR_PARAMS_VALUE);
    assert_int_equal(a->n_floats, b->n_floats);
    assert_int_equal(memcmp(x, y, (size_t)a->n_floats * sizeof *x) == 0, same);
    free(x), free(y);
}

static inline void init(gr_adapter *a, bool training, uint64_t seed) {
    assert_ok(gr_params_allocate(a->params, machine.device, training, &err));
    assert_ok(gr_adapter_init(a, seed, &err));
}

#define PARTS(m, ...) (&(gr_merge_parts){.model = (m), .tokenizer = __VA_ARGS__})

/* Every matrix non-zero, so that a mistake in any shows. */
static inline void fill(gr_adapter *a, uint64_t seed) {
    init(a, false, seed);
    float *values = gr_calloc(gr_params_largest(a->params), sizeof *values);
    for (int64_t i = 0; i < a->params->n_items; i++) {
        for (int64_t k = 0; k < a->params->items[i].n; k++)
            values[k] = (float)sin((double)(seed + 1) * 0.7 + (double)(i * 1000 + k)) * 0.1f;
        gr_params_write(a->params, GR_PARAMS_VALUE, i, values);
    }
    free(values);
}

static inline const gr_adapter_module *find(const gr_adapter *a, const char *name) {
    for (int64_t j = 0; j < a->n_modules; j++)
        if (strcmp(a->modules[j].name, name) == 0) return &a->modules[j];
    return NULL;
}

/* Ranks and scales that differ between modules. */
static const gr_pattern ranks[] = {{"layers.0.*q_proj", 2}, {"q_proj", 6}, {"up_proj", 3}};
static const gr_pattern alphas[] = {{"model.layers.1.mlp.up_proj", 5}};
static const gr_adapter_config patterned = {.rank = 4,
                                            .alpha = 8,
                                            .use_rslora = true,
                                            .rank_pattern = ranks,
                                            .n_rank_pattern = 3,
                                            .alpha_pattern = alphas,
                                            .n_alpha_pattern = 1};

#endif
