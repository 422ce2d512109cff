/* The model against PyTorch + PEFT (tests/golden/tiny*: made by make_tiny.py), and against itself: invariance to batch, split,
 * threads and recomputation. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>
#include <jansson.h>

#include "adapters/merge.h"
#include "core/model/generate.h"
#include "tests/unit/params_copy.h"

#define MUST(call)                                                                                                                 \
    do {                                                                                                                           \
        graft_error must_err = {0};                                                                                                \
        graft_error *err = &must_err;                                                                                              \
        if ((call) != GRAFT_OK) fail_msg("%s: %s", #call, must_err.msg);                                                           \
    } while (0)

/* Of the others the sequences are longer than the windows. */
static const char *const golden_models[] = {TESTS_DIR "/golden/tiny",        TESTS_DIR "/golden/tiny-qwen2",
                                            TESTS_DIR "/golden/tiny-qwen3",  TESTS_DIR "/golden/tiny-mistral",
                                            TESTS_DIR "/golden/tiny-gemma2", TESTS_DIR "/golden/tiny-gemma3",
                                            TESTS_DIR "/golden/tiny-phi3"};

typedef struct world {
    gr_machine machine;
    gr_model *m;
    gr_adapter *a;
    gr_params *params; /* of the adapter, or owned: all weights */
    bool owns_params;
    json_t *golden;
    gr_safetensors *tensors;
    gr_batch batch;
    int64_t n_targets;
} world;

static void append_sequence(gr_batch *b, json_t *seq, uint64_t key) {
    json_t *tokens = json_object_get(seq, "tokens"), *targets = json_object_get(seq, "targets");
    int32_t ids[1024];
    uint8_t mask[1024];
    size_t n = json_array_size(tokens);
    assert_true(n <= GR_LEN(ids));
    for (size_t i = 0; i < n; i++) {
        ids[i] = (int32_t)json_integer_value(json_array_get(tokens, i));
        mask[i] = json_integer_value(json_array_get(targets, i)) != 0;
    }
    MUST(gr_batch_append(b, ids, mask, (int64_t)n, key, err));
}

enum { FULL = 1, NO_ADAPTER = 2, INT8 = 4, BF16 = 8, FP8 = 16 };

static world open_world(const char *folder, int flags, int threads) {
    world w = {0};
    char path[512];
    size_t i;
    json_t *seq;
    MUST(gr_machine_open(&w.machine, "auto", threads, err));
    if ((flags & INT8 && !w.machine.device->int8) || (flags & FP8 && !w.machine.device->fp8)) {
        gr_machine_close(&w.machine);
        skip(); /* refused by name there */
    }
    MUST(gr_model_open(&w.m, folder, w.machine, flags & BF16 ? GR_DTYPE_BF16 : GR_DTYPE_F32, 0, err));
    if (flags & FULL) {
        w.params = calloc(1, sizeof *w.params);
        w.owns_params = true;
        MUST(gr_model_add_params(w.m, w.params, err));
        MUST(gr_params_allocate(w.params, w.machine.device, true, err));
        MUST(gr_model_attach_params(w.m, w.params, true, err));
    } else if (!(flags & NO_ADAPTER)) {
        snprintf(path, sizeof path, "%s/adapter", folder);
        MUST(gr_adapter_load(&w.a, path, w.m, true, err));
        MUST(gr_adapter_attach(w.a, w.m, 1.0, err));
        w.params = w.a->params;
    }
    if (flags & (INT8 | FP8))
        gr_model_use(w.m, (gr_model_forms){.base = flags & INT8 ? GR_BASE_INT8 : GR_BASE_FP8, .backward = true, .quantise = -1});
    snprintf(path, sizeof path, "%s/golden.json", folder);
    w.golden = json_load_file(path, JSON_ALLOW_NUL, NULL); /* a generated text may hold it */
    assert_non_null(w.golden);
    snprintf(path, sizeof path, "%s/golden.safetensors", folder);
    MUST(gr_safetensors_open(&w.tensors, path, err));
    json_array_foreach(json_object_get(json_object_get(w.golden, "batch"), "sequences"), i, seq) append_sequence(&w.batch, seq, i);
    w.n_targets = w.batch.n_targets;
    return w;
}

static void close_world(world *w) {
    gr_batch_release(&w->batch);
    gr_safetensors_close(w->tensors);
    json_decref(w->golden);
    if (w->m) gr_adapter_detach_all(w->m);
    gr_adapter_free(w->a);
    gr_model_free(w->m);
    if (w->owns_params) {
        gr_params_release(w->params);
        free(w->params);
    }
    gr_machine_close(&w->machine);
}

/* Forward and backward of a whole batch; the mean loss. */
static double train_pass(world *w, gr_batch *b, gr_recompute recompute) {
    gr_decoder *d;
    gr_decoder_options o = {.max_tokens = b->n, .training = true, .recompute = recompute};
    float *nll = calloc((size_t)b->n, sizeof *nll);
    double sum = 0;
    MUST(gr_decoder_new(&d, w->m, &o, err));
    MUST(gr_decoder_train(d, b, &(gr_loss){.scale = 1.0f / (float)w->n_targets, .nll = nll}, err));
    for (int64_t r = 0; r < b->n; r++) sum += nll[r];
    free(nll);
    gr_decoder_free(d);
    return sum / (double)w->n_targets;
}

static double relative_difference(const float *a, const float *b, int64_t n) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(difference / (norm > 0 ? norm : 1));
}

static void check_logits(world *w, const char *name) {
    json_t *list = json_object_get(w->golden, "logit_rows");
    int64_t n = (int64_t)json_array_size(list), V = w->m->config.vocab;
    int32_t rows[64];
    gr_decoder *d;
    gr_decoder_options o = {.max_tokens = w->batch.n};
    float *logits = calloc((size_t)(n * V), sizeof *logits), low = INFINITY, high = -INFINITY, worst = 0;
    for (int64_t i = 0; i < n; i++) rows[i] = (int32_t)json_integer_value(json_array_get(list, (size_t)i));
    MUST(gr_decoder_new(&d, w->m, &o, err));
    MUST(gr_decoder_logits(d, &w->batch, rows, n, logits, err));
    const float *golden = gr_safetensors_find(w->tensors, name)->data;
    for (int64_t i = 0; i < n * V; i++) {
        low = fminf(low, golden[i]), high = fmaxf(high, golden[i]);
        worst = fmaxf(worst, fabsf(logits[i] - golden[i]));
    }
    if (worst > 1e-5f * (high - low)) fail_msg("%s differ by %g of their range", name, (double)(worst / (high - low)));
    free(logits);
    gr_decoder_free(d);
}

static void logits_are_pytorchs(void **state) {
    (void)state;
    for (int i = 0; i < GR_LEN(golden_models); i++) {
        world base = open_world(golden_models[i], NO_ADAPTER, 2), adapted = open_world(golden_models[i], 0, 2);
        check_logits(&base, "base_logits");
        check_logits(&adapted, "logits");
        close_world(&base);
        close_world(&adapted);
    }
}

static void lora_gradients_are_pefts(void **state) {
    (void)state;
    for (int i = 0; i < GR_LEN(golden_models); i++)
        for (int recompute = GR_RECOMPUTE_NONE; recompute <= GR_RECOMPUTE_FULL; recompute++) {
            world w = open_world(golden_models[i], 0, 2);
            double loss = train_pass(&w, &w.batch, (gr_recompute)recompute);
            double golden_loss = json_number_value(json_object_get(w.golden, "loss"));
            if (fabs(loss - golden_loss) > 1e-5 * golden_loss) fail_msg("loss %.8f, expected %.8f", loss, golden_loss);
            float *grad = read_all(w.params, GR_PARAMS_GRAD);
            for (int64_t p = 0; p < w.params->n_items; p++) {
                char name[256];
                snprintf(name, sizeof name, "grad.%s", w.params->items[p].name);
                const gr_tensor *t = gr_safetensors_find(w.tensors, name);
                assert_non_null(t);
                double difference = relative_difference(grad + w.params->items[p].offset, t->data, t->n_elements);
                if (difference > 1e-4) fail_msg("%s: gradient off by %g", name, difference);
            }
            free(grad);
            close_world(&w);
        }
}

static void full_gradients_are_pytorchs(void **state) {
    (void)state;
    for (int i = 0; i < GR_LEN(golden_models); i++) {
        world w = open_world(golden_models[i], FULL, 2);
        const char *key;
        json_t *facts;
        train_pass(&w, &w.batch, GR_RECOMPUTE_NONE);
        float *grads = read_all(w.params, GR_PARAMS_GRAD);
        json_object_foreach(json_object_get(w.golden, "full_grads"), key, facts) {
            char name[256];
            float sample[4096];
            int64_t p = gr_params_find(w.params, key), stride = json_integer_value(json_object_get(facts, "stride"));
            double norm = 0, golden_norm = json_number_value(json_object_get(facts, "norm"));
            assert_true(p >= 0);
            const float *grad = grads + w.params->items[p].offset;
            for (int64_t k = 0; k < w.params->items[p].n; k++) norm += (double)grad[k] * grad[k];
            if (fabs(sqrt(norm) - golden_norm) > 1e-4 * golden_norm)
                fail_msg("%s: norm %g, expected %g", key, sqrt(norm), golden_norm);
            snprintf(name, sizeof name, "full.%s", key);
            const gr_tensor *t = gr_safetensors_find(w.tensors, name);
            assert_true(t && t->n_elements <= GR_LEN(sample));
            for (int64_t k = 0; k < t->n_elements; k++) sample[k] = grad[k * stride];
            double difference = relative_difference(sample, t->data, t->n_elements);
            if (difference > 1e-4) fail_msg("%s: gradient off by %g", key, difference);
        }
        free(grads);
        close_world(&w);
    }
}

static void assert_same_gradients(const world *a, const world *b) {
    float *x = read_all(a->params, GR_PARAMS_GRAD), *y = read_all(b->params, GR_PARAMS_GRAD);
    assert_memory_equal(x, y, (size_t)b->params->n_floats * sizeof *x);
    free(x);
    free(y);
}

/* Every row's nll, and the gradients, of the batch taken whole, sequence by sequence, and with one thread. */
static void check_batch_and_threads(const char *model, int flags) {
    size_t i;
    json_t *seq;
    world whole = open_world(model, flags, 2), split = open_world(model, flags, 1);
    gr_decoder *d, *e;
    gr_decoder_options o = {.max_tokens = whole.batch.n, .training = true};
    float *nll = calloc((size_t)whole.batch.n, sizeof *nll), *alone = calloc((size_t)whole.batch.n, sizeof *alone);
    int64_t row = 0;
    MUST(gr_decoder_new(&d, whole.m, &o, err));
    MUST(gr_decoder_train(d, &whole.batch, &(gr_loss){.scale = 1.0f / (float)whole.n_targets, .nll = nll}, err));
    MUST(gr_decoder_new(&e, split.m, &o, err));
    json_array_foreach(json_object_get(json_object_get(split.golden, "batch"), "sequences"), i, seq) {
        gr_batch one = {0};
        append_sequence(&one, seq, i);
        MUST(gr_decoder_train(e, &one, &(gr_loss){.scale = 1.0f / (float)whole.n_targets, .nll = alone}, err));
        assert_memory_equal(alone, nll + row, (size_t)one.n * sizeof *nll); /* bit for bit */
        row += one.n;
        gr_batch_release(&one);
    }
    float *whole_grad = read_all(whole.params, GR_PARAMS_GRAD), *split_grad = read_all(split.params, GR_PARAMS_GRAD);
    double difference = relative_difference(split_grad, whole_grad, whole.params->n_floats);
    if (difference > 1e-5) fail_msg("gradients of the split differ by %g", difference);
    world single = open_world(model, flags, 1);
    train_pass(&single, &single.batch, GR_RECOMPUTE_NONE);
    assert_same_gradients(&single, &whole);
    free(whole_grad);
    free(split_grad);
    gr_decoder_free(d);
    gr_decoder_free(e);
    free(nll);
    free(alone);
    close_world(&whole);
    close_world(&split);
    close_world(&single);
}

static void batch_and_threads_change_nothing(void **state) {
    for (int g = 0; g < GR_LEN(golden_models); g++) check_batch_and_threads(golden_models[g], *(const int *)*state);
}

static void recomputation_gives_the_same_bits(void **state) {
    (void)state;
    for (int g = 0; g < GR_LEN(golden_models); g++) {
        world keep = open_world(golden_models[g], FULL, 2);
        train_pass(&keep, &keep.batch, GR_RECOMPUTE_NONE);
        for (int policy = GR_RECOMPUTE_SELECTIVE; policy <= GR_RECOMPUTE_FULL; policy++) {
            world again = open_world(golden_models[g], FULL, 2);
            train_pass(&again, &again.batch, (gr_recompute)policy);
            assert_same_gradients(&again, &keep);
            close_world(&again);
        }
        close_world(&keep);
    }
}

/* Both factors of the frozen products rounded to blocks of int8, or, for dx, to e4m3: gradients keep their direction. */
static void gradients_are_near_the_exact_ones(void **state) {
    const int flags = *(const int *)*state;
    for (int g = 0; g < GR_LEN(golden_models); g++) {
        world rounded = open_world(golden_models[g], flags, 2); /* first: it skips where the device has no such products */
        world exact = open_world(golden_models[g], 0, 2);
        double dot = 0, a = 0, b = 0;
        train_pass(&exact, &exact.batch, GR_RECOMPUTE_NONE);
        train_pass(&rounded, &rounded.batch, GR_RECOMPUTE_NONE);
        float *x = read_all(exact.params, GR_PARAMS_GRAD), *y = read_all(rounded.params, GR_PARAMS_GRAD);
        for (int64_t i = 0; i < exact.params->n_floats; i++)
            dot += (double)x[i] * y[i], a += (double)x[i] * x[i], b += (double)y[i] * y[i];
        free(x);
        free(y);
        if (dot / sqrt(a * b) < (flags & (INT8 | FP8) ? 0.995 : 0.9995))
            fail_msg("%s: cosine %g", golden_models[g], dot / sqrt(a * b));
        assert_true(dot / sqrt(a * b) < 1 - 1e-9); /* it was rounded */
        close_world(&exact);
        close_world(&rounded);
    }
}

/* Every way to memory, counted; linked with --wrap (CMakeLists.txt). */
static atomic_int allocations;
#define COUNTED(result, name, parameters, arguments)                                                                               \
    result __real_##name parameters;                                                                                               \
    result __wrap_##name parameters;                                                                                               \
    result __wrap_##name parameters {                                                                                              \
        allocations++;                                                                                                             \
        return __real_##name arguments;                                                                                            \
    }
COUNTED(void *, malloc, (size_t n), (n))
COUNTED(void *, calloc, (size_t n, size_t size), (n, size))
COUNTED(void *, realloc, (void *p, size_t n), (p, n))
COUNTED(void *, aligned_alloc, (size_t alignment, size_t n), (alignment, n))
COUNTED(void *, mmap, (void *at, size_t n, int prot, int flags, int fd, off_t from), (at, n, prot, flags, fd, from))

static void a_training_step_allocates_nothing(void **state) {
    const int flags = *(const int *)*state;
    world w = open_world(golden_models[0], flags, 2);
    if (gr_starts_with(w.machine.device->level, "far-")) { /* its late uploads wait in memory of the heap */
        close_world(&w);
        skip();
    }
    gr_decoder_options o = {.max_tokens = w.batch.n, .training = true, .recompute = GR_RECOMPUTE_SELECTIVE, .dropout = 0.1f};
    gr_decoder *d;
    int before = allocations;
    MUST(gr_decoder_new(&d, w.m, &o, err));
    float *nll = calloc((size_t)w.batch.n, sizeof *nll);
    assert_true(allocations > before); /* the counters count */
    before = allocations;
    for (int i = 0; i < 2; i++) MUST(gr_decoder_train(d, &w.batch, &(gr_loss){.scale = 1, .nll = nll}, err));
    assert_int_equal(allocations, before);
    free(nll);
    gr_decoder_free(d);
    close_world(&w);
}

/* An adapter of the head alone, B not zero, on the NO_ADAPTER world of a golden model. */
static void put_adapter_on_head(world *w) {
    const char *const head[] = {"lm_head"};
    gr_adapter_config c = {.rank = 4, .alpha = 8, .target_modules = head, .n_target_modules = 1, .base = "tiny"};
    MUST(gr_adapter_plan(&w->a, &c, w->m, NULL, err));
    MUST(gr_params_allocate(w->a->params, w->machine.device, true, err));
    MUST(gr_adapter_init(w->a, 3, err));
    w->params = w->a->params;
    float *values = read_all(w->params, GR_PARAMS_VALUE);
    for (int64_t i = 0; i < w->params->n_floats; i++) values[i] = 0.1f * sinf(0.7f * (float)i);
    write_all(w->params, GR_PARAMS_VALUE, values);
    free(values);
    MUST(gr_adapter_attach(w->a, w->m, 1.0, err));
}

/* The mean loss of the batch with dropout, sequence by sequence or whole; gradients are added. */
static double loss_with_dropout(world *w, float dropout, bool split) {
    gr_decoder *d;
    gr_decoder_options o = {.max_tokens = w->batch.n, .training = true, .dropout = dropout, .seed = 5};
    float *nll = calloc((size_t)w->batch.n, sizeof *nll);
    double sum = 0;
    size_t i;
    json_t *seq;
    MUST(gr_decoder_new(&d, w->m, &o, err));
    if (!split) MUST(gr_decoder_train(d, &w->batch, &(gr_loss){.scale = 1.0f / (float)w->n_targets, .nll = nll}, err));
    for (int64_t r = 0; r < w->batch.n; r++) sum += nll[r];
    json_array_foreach(json_object_get(json_object_get(w->golden, "batch"), "sequences"), i, seq) {
        gr_batch one = {0};
        if (!split) break;
        append_sequence(&one, seq, i);
        MUST(gr_decoder_train(d, &one, &(gr_loss){.scale = 1.0f / (float)w->n_targets, .nll = nll}, err));
        for (int64_t r = 0; r < one.n; r++) sum += nll[r];
        gr_batch_release(&one);
    }
    free(nll);
    gr_decoder_free(d);
    return sum / (double)w->n_targets;
}

/* The head's LoRA input has dropout like every other: the loss feels it, the masks are a row's own, and gradients are those of the
 * masked product. */
static void dropout_reaches_the_head(void **state) {
    (void)state;
    for (int g = 0; g < GR_LEN(golden_models); g++) {
        world w = open_world(golden_models[g], NO_ADAPTER, 2);
        put_adapter_on_head(&w);
        int64_t n = w.params->n_floats;
        double whole = loss_with_dropout(&w, 0.5f, false), split, none, analytic = 0;
        float *at = read_all(w.params, GR_PARAMS_VALUE), *grad = read_all(w.params, GR_PARAMS_GRAD);
        float *moved = calloc((size_t)n, sizeof *moved);
        assert_true(at && grad && moved);
        split = loss_with_dropout(&w, 0.5f, true);
        none = loss_with_dropout(&w, 0, false);
        if (fabs(whole - none) < 1e-4) fail_msg("%s: loss %g with dropout, %g without", golden_models[g], whole, none);
        assert_true(fabs(whole - split) < 1e-6);
        double loss[2];
        for (int side = 0; side < 2; side++) {
            for (int64_t i = 0; i < n; i++) moved[i] = at[i] + (side ? -1 : 1) * cosf((float)i) / 256;
            write_all(w.params, GR_PARAMS_VALUE, moved);
            gr_model_renew(w.m);
            loss[side] = loss_with_dropout(&w, 0.5f, false);
        }
        for (int64_t i = 0; i < n; i++) analytic += grad[i] * (double)cosf((float)i);
        double numeric = (loss[0] - loss[1]) * 128;
        if (fabs(numeric - analytic) > 1e-2 * fabs(analytic))
            fail_msg("%s: difference quotient %g, gradient %g", golden_models[g], numeric, analytic);
        free(at);
        free(grad);
        free(moved);
        close_world(&w);
    }
}

static void zero_b_changes_no_logit(void **state) {
    (void)state;
    world w = open_world(golden_models[0], 0, 2);
    float *zeros = calloc((size_t)gr_params_largest(w.params), sizeof *zeros);
    for (int64_t p = 0; p < w.params->n_items; p++)
        if (gr_ends_with(w.params->items[p].name, "lora_B.weight")) gr_params_write(w.params, GR_PARAMS_VALUE, p, zeros);
    free(zeros);
    gr_decoder *d;
    gr_decoder_options o = {.max_tokens = w.batch.n};
    float *with = calloc((size_t)w.batch.n, sizeof *with), *without = calloc((size_t)w.batch.n, sizeof *without);
    MUST(gr_decoder_new(&d, w.m, &o, err));
    MUST(gr_decoder_eval(d, &w.batch, with, err));
    gr_adapter_detach_all(w.m);
    MUST(gr_decoder_eval(d, &w.batch, without, err));
    for (int64_t r = 0; r < w.batch.n; r++) assert_true(with[r] == without[r]);
    gr_decoder_free(d);
    free(with);
    free(without);
    close_world(&w);
}

static void frozen_weights_stay(void **state) {
    (void)state;
    world w = open_world(golden_models[0], 0, 2);
    uint64_t before = gr_weights_hash(w.m->weights);
    train_pass(&w, &w.batch, GR_RECOMPUTE_NONE);
    assert_true(before == gr_weights_hash(w.m->weights));
    gr_model_use(w.m,
                 (gr_model_forms){.base = w.machine.device->int8 ? GR_BASE_INT8 : GR_BASE_EXACT, .backward = true, .quantise = -1});
    MUST(gr_model_place(w.m, err)); /* pages that are given back come again */
    assert_true(before == gr_weights_hash(w.m->weights));
    close_world(&w);
}

/* Every matrix of the layers, and nothing else, becomes what the type's quantiser makes of the file's rows; with any number of
 * threads. */
static void quantised_layers_are_the_files(void **state) {
    (void)state;
    static const gr_dtype types[] = {GR_DTYPE_Q8_0, GR_DTYPE_Q4_0, GR_DTYPE_Q4_K, GR_DTYPE_NF4};
    for (int t = 0; t < GR_LEN(types); t++) {
        world plain = open_world(golden_models[0], NO_ADAPTER, 1), w = open_world(golden_models[0], NO_ADAPTER, 1 + t);
        int64_t planned = gr_model_quantized_bytes(w.m, types[t]), sum = 0;
        MUST(gr_model_quantize(w.m, types[t], err));
        MUST(gr_model_place(plain.m, err));
        assert_true(planned > 0 && gr_model_quantized_bytes(w.m, types[t]) == 0);
        for (int64_t i = 0; i < w.m->n_modules - 2; i++) {
            const gr_weight *from = &plain.m->modules[i + 1].entry->view, *to = &w.m->modules[i + 1].linear->w;
            const gr_dtype_info *info = gr_dtype_get(to->dtype);
            int64_t n = from->rows * from->cols, bytes = gr_dtype_bytes(to->dtype, n);
            uint8_t *expected = malloc((size_t)bytes), *made = malloc((size_t)bytes);
            float *floats = malloc((size_t)n * sizeof *floats);
            assert_true(expected && made && floats && from->dtype == GR_DTYPE_F32 && to->rows == from->rows &&
                        to->cols == from->cols);
            assert_int_equal(to->dtype, from->cols % gr_dtype_get(types[t])->block ? GR_DTYPE_Q5_0 : types[t]);
            memcpy(floats, from->data, (size_t)n * sizeof *floats); /* as the file has it */
            w.machine.device->download(w.machine.device, made, to->data, bytes, 0);
            info->from_f32(expected, floats, n);
            assert_memory_equal(expected, made, (size_t)bytes);
            free(expected);
            free(made);
            free(floats);
            sum += bytes;
        }
        assert_int_equal(sum, planned);
        assert_int_equal(w.m->embed.w.dtype, GR_DTYPE_F32);
        assert_int_equal(w.m->head.w.dtype, GR_DTYPE_F32);
        assert_null(gr_weights_find(w.m->weights, "model.layers.1.mlp.up_proj.weight")->view.data);
        assert_non_null(gr_weights_find(w.m->weights, "model.layers.1.input_layernorm.weight")->view.data);
        gr_merge_options o = {.format = GR_FORMAT_HF, .dtype = -1};
        graft_error err = {0};
        assert_int_equal(gr_merge(&(gr_merge_parts){.model = w.m}, &o, "never-written", NULL, &err), GRAFT_BAD_USAGE);
        assert_non_null(strstr(err.msg, "open the base without quantising it"));
        close_world(&plain);
        close_world(&w);
    }
}

static void a_weight_that_is_not_finite_is_not_quantised(void **state) {
    (void)state;
    graft_error err = {0};
    world w = open_world(golden_models[0], NO_ADAPTER, 2);
    gr_weight *v = (gr_weight *)&gr_weights_find(w.m->weights, "model.layers.1.self_attn.k_proj.weight")->view;
    float *copy = malloc((size_t)(v->rows * v->cols) * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, v->data, (size_t)(v->rows * v->cols) * sizeof *copy);
    copy[v->rows * v->cols - 1] = NAN;
    v->data = copy;
    assert_int_equal(gr_model_quantize(w.m, GR_DTYPE_NF4, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "model.layers.1.self_attn.k_proj.weight holds a NaN"));
    free(copy);
    close_world(&w);
}

/* The logits of the cache path are those of the training path, bit for bit, however the prompt is cut. */
static void check_cache(const char *model, int flags) {
    world w = open_world(model, flags, 2);
    int64_t V = w.m->config.vocab, len = w.batch.offset[1];
    float *whole = calloc((size_t)V, sizeof *whole), *stepped = calloc((size_t)V, sizeof *stepped);
    int32_t last = (int32_t)(len - 1), slot = 1;
    gr_decoder *d;
    gr_decoder_options o = {.max_tokens = w.batch.n};
    MUST(gr_decoder_new(&d, w.m, &o, err));
    MUST(gr_decoder_logits(d, &w.batch, &last, 1, whole, err));
    const int64_t cuts[] = {1, 7, len};
    for (int c = 0; c < GR_LEN(cuts); c++) {
        gr_kv_cache cache;
        MUST(gr_kv_cache_init(&cache, w.m, 2, len, err));
        for (int64_t at = 0, n; at < len; at += n) {
            gr_batch b = {0};
            n = GR_MIN(cuts[c], len - at);
            MUST(gr_batch_append(&b, w.batch.tokens + at, NULL, n, 0, err));
            for (int64_t i = 0; i < n; i++) b.positions[i] = (int32_t)(at + i);
            MUST(gr_decoder_step(d, &b, &cache, &slot, stepped, err));
            gr_batch_release(&b);
        }
        /* a card makes few rows and single queries by other products (kernels/cuda/README.md) */
        if (gr_starts_with(w.machine.device->level, "cuda"))
            assert_true(relative_difference(stepped, whole, V) < (flags & BF16 ? 2e-2 : 1e-5));
        else assert_memory_equal(stepped, whole, (size_t)V * sizeof *whole);
        gr_kv_cache_release(&cache);
    }
    free(whole);
    free(stepped);
    gr_decoder_free(d);
    close_world(&w);
}

static void cache_gives_the_same_logits(void **state) {
    for (int g = 0; g < GR_LEN(golden_models); g++) check_cache(golden_models[g], *(const int *)*state);
}

static void (*real_download)(gr_device *d, void *host, const void *from, int64_t bytes, gr_mark after);
static int64_t largest_download;
static void noted_download(gr_device *d, void *host, const void *from, int64_t bytes, gr_mark after) {
    largest_download = GR_MAX(largest_download, bytes);
    real_download(d, host, from, bytes, after);
}

/* From a device that the host cannot reach come ids, and no logits. */
static void check_greedy_text(const char *model) {
    size_t i, k;
    json_t *item, *id;
    world w = open_world(model, 0, 2);
    gr_tokenizer *t;
    MUST(gr_tokenizer_open(&t, model, err));
    gr_ids prompts[16] = {0}, expected[16] = {0};
    gr_completion results[16];
    json_t *list = json_object_get(w.golden, "generate");
    int64_t n = (int64_t)json_array_size(list), longest = 1;
    assert_true(n <= GR_LEN(prompts));
    json_array_foreach(list, i, item) {
        json_array_foreach(json_object_get(item, "prompt_ids"), k, id) gr_ids_push(&prompts[i], (int32_t)json_integer_value(id));
        json_array_foreach(json_object_get(item, "ids"), k, id) gr_ids_push(&expected[i], (int32_t)json_integer_value(id));
        longest = GR_MAX(longest, expected[i].n);
    }
    gr_generate_options o = {.max_tokens = longest, .top_p = 1, .repetition_penalty = 1};
    gr_device *dev = w.m->device;
    real_download = dev->download, dev->download = noted_download, largest_download = 0;
    MUST(gr_generate(w.m, t, (gr_prompts){prompts, n, -1}, &o, results, NULL, NULL, err));
    dev->download = real_download;
    if (!dev->in_host) assert_true(largest_download > 0 && largest_download <= n * (int64_t)sizeof(int32_t));
    for (int64_t p = 0; p < n; p++) {
        assert_int_equal(results[p].n_tokens, expected[p].n);
        assert_string_equal(results[p].text, json_string_value(json_object_get(json_array_get(list, (size_t)p), "text")));
        gr_ids_release(&prompts[p]);
        gr_ids_release(&expected[p]);
    }
    gr_completions_release(results, n);
    gr_tokenizer_free(t);
    close_world(&w);
}

static void greedy_text_is_transformers(void **state) {
    (void)state;
    for (int g = 0; g < GR_LEN(golden_models); g++) check_greedy_text(golden_models[g]);
}

/* Sampled text is that of whole rows of logits on the same device, which moves ids of greedy text and listings of this. */
static void sampled_text_is_that_of_rows(void **state) {
    (void)state;
    static const gr_generate_options ways[] = {
        {.max_tokens = 8, .temperature = 1.5f, .top_p = 0.95f, .repetition_penalty = 1, .seed = 3, .ignore_eos = true},
        {.max_tokens = 8, .temperature = 1, .top_p = 1, .top_k = 20, .repetition_penalty = 1.2f, .seed = 4, .ignore_eos = true},
        {.max_tokens = 8, .temperature = 0, .top_p = 1, .repetition_penalty = 1.5f, .ignore_eos = true}};
    world w = open_world(golden_models[0], 0, 2);
    gr_device *dev = w.m->device;
    const bool in_host = dev->in_host;
    gr_tokenizer *t;
    MUST(gr_tokenizer_open(&t, golden_models[0], err));
    int32_t ids[] = {7, 20, 33, 8, 21};
    const gr_ids prompts[] = {{.data = ids, .n = 3}, {.data = ids + 1, .n = 4}, {.data = ids, .n = 3}};
    const int64_t n = GR_LEN(prompts);
    for (int way = 0; way < GR_LEN(ways); way++) {
        gr_completion listed[GR_LEN(prompts)], whole[GR_LEN(prompts)];
        real_download = dev->download, dev->download = noted_download, largest_download = 0;
        MUST(gr_generate(w.m, t, (gr_prompts){prompts, n, -1}, &ways[way], listed, NULL, NULL, err));
        dev->download = real_download;
        if (!in_host) assert_int_equal(largest_download, n * (int64_t)sizeof(gr_listing));
        dev->in_host = true; /* as generation sees it: rows are read */
        MUST(gr_generate(w.m, t, (gr_prompts){prompts, n, -1}, &ways[way], whole, NULL, NULL, err));
        dev->in_host = in_host;
        for (int64_t p = 0; p < n; p++) {
            assert_int_equal(listed[p].n_tokens, 8);
            assert_string_equal(listed[p].text, whole[p].text);
        }
        if (way < 2) assert_string_not_equal(listed[0].text, listed[2].text); /* twins draw other numbers */
        gr_completions_release(listed, n), gr_completions_release(whole, n);
    }
    gr_tokenizer_free(t);
    close_world(&w);
}

/* Twice the rows must not add twice the logits: they are made in blocks and never kept. */
static void no_logits_are_kept(void **state) {
    (void)state;
    for (int training = 0; training < 2; training++) {
        world w = open_world(golden_models[0], 0, 1);
        gr_decoder_options o = {.max_tokens = 100000, .training = training, .recompute = GR_RECOMPUTE_FULL};
        int64_t some = gr_decoder_plan_bytes(w.m, &o);
        o.max_tokens *= 2;
        int64_t a_row = (gr_decoder_plan_bytes(w.m, &o) - some) / 100000, hidden = w.m->config.hidden, ffn = w.m->config.ffn;
        assert_true(a_row > 0);
        w.m->config.vocab *= 64; /* bytes a row do not depend on it */
        int64_t more = gr_decoder_plan_bytes(w.m, &o);
        assert_true(more > some + 100000 * a_row ||
                    (training && more == some + 100000 * a_row)); /* where gradients come later, there is room */
        o.max_tokens /= 2;
        int64_t a_row_of_more = (more - gr_decoder_plan_bytes(w.m, &o)) / 100000;
        w.m->config.vocab /= 64;
        assert_true(llabs(a_row_of_more - a_row) < 4 * (hidden + ffn));
        close_world(&w);
    }
}

static void a_device_is_honoured_or_refused(void **state) {
    gr_machine m;
    (void)state;
    MUST(gr_machine_open(&m, "cpu", 3, err));
    assert_int_equal(gr_threads_count(m.threads), 3);
    gr_machine_close(&m);
    assert_null(m.device);
    graft_error err = {0};
    assert_int_equal(gr_machine_open(&m, "cuda:1000", 1, &err), GRAFT_BAD_USAGE); /* no library, no driver, or fewer cards */
    assert_true(gr_starts_with(err.msg, "device cuda:1000: "));
    assert_int_equal(gr_machine_open(&m, "cuda:", 1, &err), GRAFT_BAD_USAGE);
    assert_int_equal(gr_machine_open(&m, "tpu", 1, &err), GRAFT_BAD_USAGE);
    assert_string_equal(err.msg, "device tpu: expected auto, cpu, cuda or cuda:N");
    gr_machine_close(&m);
}

int main(void) {
    static int exact = 0, int8 = INT8, bf16 = BF16, bf16_full = BF16 | FULL, fp8 = BF16 | FP8;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_is_honoured_or_refused),
        cmocka_unit_test(logits_are_pytorchs),
        cmocka_unit_test(lora_gradients_are_pefts),
        cmocka_unit_test(full_gradients_are_pytorchs),
        {"gradients_are_near_the_exact_ones, int8", gradients_are_near_the_exact_ones, NULL, NULL, &int8},
        {"gradients_are_near_the_exact_ones, bf16", gradients_are_near_the_exact_ones, NULL, NULL, &bf16},
        {"gradients_are_near_the_exact_ones, fp8", gradients_are_near_the_exact_ones, NULL, NULL, &fp8},
        {"batch_and_threads_change_nothing", batch_and_threads_change_nothing, NULL, NULL, &exact},
        {"batch_and_threads_change_nothing, int8", batch_and_threads_change_nothing, NULL, NULL, &int8},
        {"batch_and_threads_change_nothing, bf16", batch_and_threads_change_nothing, NULL, NULL, &bf16},
        {"batch_and_threads_change_nothing, fp8", batch_and_threads_change_nothing, NULL, NULL, &fp8},
        cmocka_unit_test(recomputation_gives_the_same_bits),
        cmocka_unit_test(zero_b_changes_no_logit),
        cmocka_unit_test(dropout_reaches_the_head),
        {"cache_gives_the_same_logits", cache_gives_the_same_logits, NULL, NULL, &exact},
        {"cache_gives_the_same_logits, int8", cache_gives_the_same_logits, NULL, NULL, &int8},
        {"cache_gives_the_same_logits, bf16", cache_gives_the_same_logits, NULL, NULL, &bf16},
        {"a_training_step_allocates_nothing", a_training_step_allocates_nothing, NULL, NULL, &exact},
        {"a_training_step_allocates_nothing, int8", a_training_step_allocates_nothing, NULL, NULL, &int8},
        {"a_training_step_allocates_nothing, bf16, every weight", a_training_step_allocates_nothing, NULL, NULL, &bf16_full},
        cmocka_unit_test(frozen_weights_stay),
        cmocka_unit_test(quantised_layers_are_the_files),
        cmocka_unit_test(a_weight_that_is_not_finite_is_not_quantised),
        cmocka_unit_test(greedy_text_is_transformers),
        cmocka_unit_test(sampled_text_is_that_of_rows),
        cmocka_unit_test(no_logits_are_kept),
    };
    cmocka_set_test_filter(getenv("GRAFT_TEST")); /* of these names alone; NULL: all */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
