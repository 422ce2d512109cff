/* Choosing tokens from what a device lists of its rows of logits: where a listing decides, the token is that of the whole row. */
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/machine.h"
#include "core/model/sample.h"
#include "kernels/philox.h"
#include "tests/unit/machine.h"

enum { MOST = 40000, SEEN = 300, KINDS = 8 };

static uint64_t drawn;

static float uniform(void) { return gr_random_uniform(5, GR_PURPOSE_SAMPLE, 1, drawn++); }
static int64_t below(int64_t n) { return (int64_t)(uniform() * (float)n); }

/* Rows as models make them (0), of one height or peaked, with ties, with values that are not finite. */
static void fill(float *x, int64_t V, int64_t kind) {
    for (int64_t j = 0; j < V; j++) {
        const float noise = uniform() + uniform() + uniform() - 1.5f;
        switch (kind) {
        case 0: x[j] = 18 - 2 * logf(1 + (float)(j * 7919 % V)) + noise; break;
        case 1: x[j] = 6 * noise; break;
        case 2: x[j] = 0.1f * noise; break;
        case 3: x[j] = roundf(4 * noise) / 4; break;
        case 4: x[j] = j % 5 == 0 ? NAN : j % 7 == 0 ? INFINITY : j % 3 == 0 ? -INFINITY : 3 * noise; break;
        case 5: x[j] = j % 50 == 3 ? noise : -INFINITY; break;
        case 6: x[j] = j == V / 2 ? 30 : noise; break;
        default: x[j] = 1;
        }
    }
}

static gr_listing list_of(const float *x, int64_t V, float temperature) {
    gr_device *dev = machine.device;
    gr_listing list, *there = dev->alloc(dev, sizeof list);
    float *row = dev->alloc(dev, V * (int64_t)sizeof *row);
    assert_true(there && row);
    dev->upload(dev, row, x, V * (int64_t)sizeof *row);
    dev->ops->list_columns(dev, there, (gr_rows){row, V, GR_DTYPE_F32}, 1, V, temperature);
    dev->download(dev, &list, there, sizeof list, 0);
    assert_ok(gr_device_status(dev, &err));
    dev->free(dev, there), dev->free(dev, row);
    return list;
}

/* A random number at which the choice passes from one listed token to the next, as exactly as numbers are. */
static float edge(const gr_listing *l, float temperature) {
    double sum = 0;
    for (int64_t i = below(l->n); l->n > 0 && i >= 0; i--)
        sum += exp(((double)l->entry[i].value - l->entry[0].value) / temperature);
    return fminf((float)(sum / (l->listed + l->rest)), 1 - 0x1p-24f);
}

typedef struct trial {
    float x[MOST];
    int64_t V;
    gr_generate_options o;
    int32_t seen[SEEN], n_seen, scratch[MOST];
} trial;

static void draw(trial *t) {
    static const int64_t sizes[] = {1, 300, 1024, 1025, 3001, 6000, 5003, 6007};
    static const float temperatures[] = {0, 0.3f, 1, 1, 2.5f}, top_p[] = {1, 0.95f, 0.5f}, penalties[] = {1, 1, 1.1f, 2};
    static const int top_k[] = {0, 0, 0, 1, 40, 1024, 1030, 3000, 100000};
    t->V = below(50) ? sizes[below(GR_LEN(sizes))] : MOST;
    t->o = (gr_generate_options){.temperature = temperatures[below(GR_LEN(temperatures))],
                                 .top_k = top_k[below(GR_LEN(top_k))],
                                 .top_p = top_p[below(GR_LEN(top_p))],
                                 .repetition_penalty = penalties[below(GR_LEN(penalties))]};
    t->n_seen = (int32_t)below(SEEN);
    for (int32_t i = 0; i < t->n_seen; i++) t->seen[i] = (int32_t)below(below(2) ? t->V + 1 : GR_MIN(t->V, 40));
    fill(t->x, t->V, below(KINDS));
}

/* The whole row's token; x is kept. */
static int32_t by_row(trial *t, float random) {
    static float x[MOST];
    memcpy(x, t->x, (size_t)t->V * sizeof *x);
    return gr_sample(x, t->V, t->seen, t->n_seen, &t->o, random, t->scratch);
}

static void a_listing_gives_the_rows_token(void **state) {
    (void)state;
    static trial t;
    const int trials = machine.device->in_host ? 2400 : 300; /* an emulated card takes its time */
    int decided = 0;
    for (int i = 0; i < trials; i++) {
        draw(&t);
        const float temperature = gr_sample_temperature(&t.o);
        assert_true(gr_sample_lists(&t.o));
        gr_listing list = list_of(t.x, t.V, temperature);
        list.rest *= 1 + (double)(i % 3 - 1) * 0.5 * GR_LISTING_ERROR; /* what a device may be off */
        const float random = i % 2 ? edge(&list, temperature) : uniform();
        const int32_t id = gr_sample_listed(&list, t.V, t.seen, t.n_seen, &t.o, random, t.scratch);
        if (id == GR_SAMPLE_UNDECIDED) continue;
        const int32_t expected = by_row(&t, random);
        decided++;
        if (id != expected)
            fail_msg("trial %d: %d, not %d, of %d: temperature %g, top-k %d, top-p %g, penalty %g, random %.9g", i, id, expected,
                     (int)t.V, t.o.temperature, t.o.top_k, t.o.top_p, t.o.repetition_penalty, random);
    }
    assert_in_range(decided, trials / 2, trials - trials / 50); /* edges are not */
}

/* Rows as models make them are seldom moved as a whole. */
static void most_rows_stay_on_the_device(void **state) {
    (void)state;
    static trial t;
    static const struct {
        gr_generate_options o;
        int least; /* of 100 that are decided */
    } ways[] = {{{.temperature = 0.8f, .top_p = 0.9f, .repetition_penalty = 1}, 98},
                {{.temperature = 0.8f, .top_p = 1, .repetition_penalty = 1}, 95},
                {{.temperature = 1, .top_p = 1, .top_k = 50, .repetition_penalty = 1.1f}, 100},
                {{.temperature = 0.8f, .top_p = 0.9f, .repetition_penalty = 1.1f}, 90},
                {{.temperature = 0, .top_p = 1, .repetition_penalty = 1.2f}, 100}};
    for (int w = 0; w < GR_LEN(ways); w++) {
        int decided = 0;
        t.o = ways[w].o, t.V = MOST, t.n_seen = 100;
        gr_listing rows[4];
        for (int i = 0; i < 4; i++) {
            fill(t.x, MOST, 0);
            rows[i] = list_of(t.x, t.V, gr_sample_temperature(&t.o));
        }
        for (int i = 0; i < 100; i++) {
            for (int32_t k = 0; k < t.n_seen; k++) t.seen[k] = (int32_t)below(MOST);
            gr_listing list = rows[i % 4];
            decided += gr_sample_listed(&list, t.V, t.seen, t.n_seen, &t.o, uniform(), t.scratch) >= 0;
        }
        if (decided < ways[w].least) fail_msg("way %d: %d of 100 were decided", w, decided);
    }
}

/* A penalty below 1 lifts what is not listed; temperatures beyond all use are not the device's. */
static void some_options_take_whole_rows(void **state) {
    (void)state;
    assert_false(gr_sample_lists(&(gr_generate_options){.temperature = 1, .top_p = 1, .repetition_penalty = 0.9f}));
    assert_false(gr_sample_lists(&(gr_generate_options){.temperature = 1e-7f, .top_p = 1, .repetition_penalty = 1}));
    assert_false(gr_sample_lists(&(gr_generate_options){.temperature = 2e6f, .top_p = 1, .repetition_penalty = 1}));
    assert_true(gr_sample_lists(&(gr_generate_options){.temperature = 0, .top_p = 1, .repetition_penalty = 2}));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_listing_gives_the_rows_token),
        cmocka_unit_test(most_rows_stay_on_the_device),
        cmocka_unit_test(some_options_take_whole_rows),
    };
    return cmocka_run_group_tests(tests, open_machine, close_machine);
}
