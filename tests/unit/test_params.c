/* A parameter set: registration, buffers by item, and checkpoints of what several have registered. */
#include "tests/unit/adapter_world.h"

#include "core/io/h5.h"
#include "peft/checkpoint.h"

static const gr_params_buffer buffers[] = {GR_PARAMS_VALUE, GR_PARAMS_GRAD, GR_PARAMS_M, GR_PARAMS_V};

static float number(int buffer, int64_t item, int64_t k) { return (float)(1000000 * (buffer + 1) + 10000 * item + k); }

static void fill_all(gr_params *p) {
    float *values = gr_calloc(gr_params_largest(p), sizeof *values);
    for (int b = 0; b < GR_LEN(buffers); b++)
        for (int64_t i = 0; i < p->n_items; i++) {
            for (int64_t k = 0; k < p->items[i].n; k++) values[k] = number(b, i, k);
            gr_params_write(p, buffers[b], i, values);
        }
    free(values);
}

/* present[buffer]: does it hold the numbers of fill_all, or zeros? */
static void check_all(const gr_params *p, const bool present[4]) {
    float *values = gr_calloc(gr_params_largest(p), sizeof *values);
    for (int b = 0; b < GR_LEN(buffers); b++)
        for (int64_t i = 0; i < p->n_items; i++) {
            gr_params_read(p, buffers[b], i, values);
            for (int64_t k = 0; k < p->items[i].n; k++) assert_true(values[k] == (present[b] ? number(b, i, k) : 0));
        }
    free(values);
}

static void add(gr_params *p, const char *name, int64_t rows, int64_t cols, bool decay) {
    int64_t index;
    assert_ok(gr_params_add(p, name, rows, cols, decay, &index, &err));
    assert_int_equal(index, p->n_items - 1);
}

static void test_items(void **state) {
    (void)state;
    gr_params p = {0};
    float values[21] = {0};
    add(&p, "norm", 1, 3, false);
    add(&p, "matrix", 7, 3, true);
    add(&p, "rows", 4, 5, true);
    p.items[2].lr_scale = 0.5f;
    assert_true(p.items[0].lr_scale == 1 && p.items[1].lr_scale == 1 && p.items[2].lr_scale == 0.5f);
    assert_int_equal(gr_params_largest(&p), 21);
    assert_int_equal(p.n_parameters, 3 + 21 + 20);
    assert_ok(gr_params_allocate(&p, machine.device, true, &err));
    assert_true(p.n_mine == p.n_floats && p.n_floats > p.n_parameters);
    check_all(&p, (const bool[]){false, false, false, false});
    fill_all(&p);
    check_all(&p, (const bool[]){true, true, true, true});
    gr_params_read_part(&p, GR_PARAMS_M, 2, 18, 2, values);
    assert_true(values[0] == number(2, 2, 18) && values[1] == number(2, 2, 19) && values[2] == 0);
    values[20] = -1;
    gr_params_write(&p, GR_PARAMS_VALUE, 0, values); /* no further than the item */
    gr_params_read(&p, GR_PARAMS_VALUE, 1, values);
    assert_true(values[0] == number(0, 1, 0) && values[20] == number(0, 1, 20));
    gr_params_release(&p);
}

/* An adapter between two other registrations. */
static gr_adapter *register_three(gr_params *p, gr_model *m) {
    gr_adapter *a = NULL;
    gr_adapter_config c = {
        .rank = 2, .alpha = 4, .base = "tiny", .target_modules = (const char *[]){"up_proj"}, .n_target_modules = 1};
    add(p, "model.embed_tokens.rows", 3, 7, false);
    assert_ok(gr_adapter_plan(&a, &c, m, p, &err));
    add(p, "model.norm.weight", 1, 64, false);
    assert_ok(gr_params_allocate(p, machine.device, true, &err));
    assert_true(a->params == p && a->n_modules == 2 && p->n_items == 6);
    assert_int_equal(gr_adapter_n_parameters(a), p->n_parameters - 21 - 64);
    return a;
}

static void test_two_owners(void **state) {
    (void)state;
    gr_params p = {0}, same = {0}, other = {0};
    gr_train_state s = {.step = 3}, back = {0};
    gr_model *m = open_model(TINY);
    gr_adapter *a = register_three(&p, m), *b = register_three(&same, m), *loaded = NULL;
    gr_checkpoint last = {0};
    gr_train_identity was;
    char *recipe;
    float *x = gr_calloc(2 * gr_params_largest(&p), sizeof *x), *y = x + gr_params_largest(&p);
    fill_all(&p);
    assert_ok(gr_checkpoint_save(dir, a, &p, &s, &(gr_train_identity){.recipe = "", .split = {40, 2}}, NULL, &err));
    assert_ok(gr_checkpoint_open_last(&last, dir, false, &err));
    struct gr_h5 *opened = last.h5;
    assert_ok(gr_checkpoint_open_last(&last, dir, false, &err)); /* still the newest: it stays open */
    assert_ptr_equal(last.h5, opened);
    s.step = 4;
    assert_ok(gr_checkpoint_save(dir, a, &p, &s, &(gr_train_identity){.recipe = "", .split = {40, 2}}, NULL, &err));
    assert_ok(gr_checkpoint_open_last(&last, dir, false, &err));
    assert_true(gr_ends_with(last.folder, "checkpoint-4"));
    assert_ok(gr_checkpoint_identity(&last, &was, &recipe, &err));
    assert_true(was.split.micro_batch_tokens == 40 && was.split.gradient_checkpointing == 2 && was.compute_dtype == 0);
    free(recipe);
    assert_ok(gr_checkpoint_read(&last, &same, NULL, NULL, NULL, &err));
    check_all(&same, (const bool[]){true, false, false, false});
    assert_ok(gr_checkpoint_read(&last, &same, &back, NULL, NULL, &err));
    check_all(&same, (const bool[]){true, false, true, true});
    assert_int_equal(back.step, 4);
    add(&other, "model.embed_tokens.rows", 3, 7, false);
    assert_ok(gr_params_allocate(&other, machine.device, true, &err));
    assert_error(gr_checkpoint_read(&last, &other, NULL, NULL, NULL, &err), GRAFT_BAD_USAGE, "holds 6 trained tensors");
    /* The adapter beside the state is that of p, in a set of its own; back in a shared set it leaves the neighbours alone. */
    assert_ok(gr_adapter_load(&loaded, last.folder, m, false, &err));
    assert_true(loaded->params == &loaded->own && loaded->params->n_items == 4);
    assert_ok(gr_adapter_init(b, 1, &err));
    assert_ok(gr_adapter_copy(b, loaded, &err));
    check_all(&same, (const bool[]){true, false, true, true});
    for (int64_t j = 0; j < a->n_modules; j++) {
        gr_params_read(&p, GR_PARAMS_VALUE, a->modules[j].b, x);
        gr_params_read(loaded->params, GR_PARAMS_VALUE, loaded->modules[j].b, y);
        assert_memory_equal(x, y, (size_t)p.items[a->modules[j].b].n * sizeof *x);
    }
    free(x);
    gr_checkpoint_close(&last);
    gr_adapter_free(loaded);
    gr_adapter_free(a);
    gr_adapter_free(b);
    gr_params_release(&p);
    gr_params_release(&same);
    gr_params_release(&other);
    gr_model_free(m);
}

/* What a graft wrote that did not record all of it yet: attributes alone, as nothing is trained. */
static void test_old_checkpoint(void **state) {
    static const char *const ints[] = {"step",        "epoch",          "cursor",   "optimizer_step",   "num_tokens",
                                       "best_step",   "n_tensors",      "data_key", "evals_since_best", "num_target_tokens",
                                       "total_steps", "window_targets", "seed",     "skipped_in_a_row", "window_tokens",
                                       "batch_size"};
    static const char *const doubles[] = {"best_eval_loss", "final_loss", "window_loss", "window_grad_norm"};
    (void)state;
    gr_params none = {0};
    gr_train_state s;
    gr_train_identity was;
    gr_checkpoint c = {0};
    gr_h5 *h = NULL;
    char path[300], *recipe;
    memset(&s, 0x5a, sizeof s), memset(&was, 0x5a, sizeof was);
    snprintf(path, sizeof path, "%s/checkpoint-4", at("old"));
    assert_ok(gr_make_dirs(path, &err));
    snprintf(path, sizeof path, "%s/checkpoint-4/state.h5", at("old"));
    assert_ok(gr_h5_create(&h, path, &err));
    assert_ok(gr_h5_put_int(h, "graft_checkpoint_version", 1, &err));
    assert_ok(gr_h5_put_text(h, "recipe", "seed: 1\n", &err));
    for (size_t i = 0; i < GR_LEN(ints); i++) assert_ok(gr_h5_put_int(h, ints[i], strcmp(ints[i], "step") == 0 ? 4 : 0, &err));
    for (size_t i = 0; i < GR_LEN(doubles); i++) assert_ok(gr_h5_put_double(h, doubles[i], 1, &err));
    assert_ok(gr_h5_commit(h, &err));
    assert_ok(gr_checkpoint_open_last(&c, at("old"), false, &err));
    assert_ok(gr_checkpoint_identity(&c, &was, &recipe, &err));
    assert_true(was.split.micro_batch_tokens == 0 && was.split.gradient_checkpointing == 0 && was.compute_dtype == -1);
    assert_ok(gr_checkpoint_read(&c, &none, &s, NULL, NULL, &err));
    assert_true(s.step == 4 && s.evaluated_step == 4 && s.loss_scale == 0 && s.good_steps == 0);
    free(recipe);
    gr_checkpoint_close(&c);
}

static void allocate(gr_params *p, gr_device *device, gr_trained_type weights) {
    *p = (gr_params){.form = {.weights = weights, .seed = 3}};
    add(p, "norm", 1, 3, false);
    add(p, "matrix", 71, 33, true);
    assert_ok(gr_params_allocate(p, device, true, &err));
}

/* The bytes of a checkpoint's state. In the arena. */
static const char *save(const gr_params *p, const char *name, size_t *size) {
    const gr_train_state s = {.step = 7, .optimizer_step = 6, .loss_scale = 512};
    char path[300], *bytes;
    assert_ok(gr_checkpoint_save(at(name), NULL, p, &s, &(gr_train_identity){.recipe = "seed: 1\n"}, NULL, &err));
    snprintf(path, sizeof path, "%s/checkpoint-7/state.h5", at(name));
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    *size = (size_t)ftell(f);
    rewind(f);
    bytes = gr_arena_alloc(&arena, (int64_t)*size);
    assert_int_equal(fread(bytes, 1, *size, f), *size);
    fclose(f);
    return bytes;
}

static void load(gr_params *p, const char *name) {
    gr_train_state s = {0};
    char path[300];
    snprintf(path, sizeof path, "%s/checkpoint-7", at(name));
    assert_ok(gr_checkpoint_load(path, p, &s, NULL, NULL, &err));
    assert_true(s.step == 7 && s.optimizer_step == 6 && s.loss_scale == 512);
}

/* What one device saves, another one loads and saves again to the same bytes; and back. */
static void test_from_device_to_device(void **state) {
    (void)state;
    gr_threads *threads = gr_threads_new(1);
    const char *why = NULL;
    gr_device *cpu = gr_device_open("cpu", threads, &why);
    assert_non_null(cpu);
    for (gr_trained_type weights = GR_TRAINED_FP32; weights <= GR_TRAINED_BF16_STOCHASTIC; weights++) {
        gr_params first, second, third;
        size_t sizes[3];
        float values[71 * 33];
        allocate(&first, machine.device, weights), allocate(&second, cpu, weights), allocate(&third, machine.device, weights);
        for (int b = 0; b < GR_LEN(buffers); b++)
            for (int64_t i = 0; i < first.n_items; i++) {
                for (int64_t k = 0; k < first.items[i].n; k++) values[k] = (float)sin((double)(b * 9000 + i * 5000 + k)) / 3;
                gr_params_write(&first, buffers[b], i, values);
            }
        const char *begun = save(&first, "first", &sizes[0]);
        load(&second, "first");
        const char *moved = save(&second, "second", &sizes[1]);
        load(&third, "second");
        const char *back = save(&third, "third", &sizes[2]);
        assert_true(sizes[0] > 3 * 71 * 33 * 4 * (weights == GR_TRAINED_FP32) && sizes[0] == sizes[1] && sizes[0] == sizes[2]);
        assert_memory_equal(begun, moved, sizes[0]);
        assert_memory_equal(begun, back, sizes[0]);
        gr_params_release(&first), gr_params_release(&second), gr_params_release(&third);
    }
    gr_device_close(cpu);
    gr_threads_free(threads);
}

/* The parts of ranks tile every tensor, each lies where it is said, and updates keep to them. */
static void test_parts_of_ranks(void **state) {
    (void)state;
    enum { RANKS = 5 };
    static const int64_t shapes[][3] = {{0, 1, 3}, {0, 7, 30}, {0, 1, 1}, {1, 40, 5}, {1, 1, 17}, {2, 1, 2}};
    for (int form = 0; form < 4; form++) {
        const gr_trained_type weights = form % 2 ? GR_TRAINED_BF16 : GR_TRAINED_FP32;
        const gr_sharded sharded = form / 2 ? GR_SHARDED_VALUES : GR_SHARDED_GRADIENTS;
        const bool turns = form == 3;
        int64_t covered[GR_LEN(shapes)] = {0}, of_shares[3] = {0}, n_mine = 0, lows = 0, kept[2] = {0}, whole[GR_PARAMS_BUFFERS];
        for (int rank = 0; rank < RANKS; rank++) {
            gr_params p = {.form = {.weights = weights, .sharded = sharded, .turns = turns, .rank = rank, .size = RANKS}};
            int64_t bytes[GR_PARAMS_BUFFERS];
            for (int i = 0; i < GR_LEN(shapes); i++) {
                add(&p, "tensor", shapes[i][1], shapes[i][2], true);
                p.items[i].layer = shapes[i][0];
            }
            assert_ok(gr_params_allocate(&p, machine.device, true, &err));
            fill_all(&p);
            gr_params_bytes(&p, bytes);
            assert_int_equal(bytes[4], p.n_mine * 4);
            assert_int_equal(bytes[6], bytes[4]);
            n_mine += p.n_mine, lows += bytes[2], kept[0] += bytes[7], kept[1] += bytes[8];
            for (int i = 0; i < GR_LEN(shapes); i++) {
                float values[210];
                int64_t first, n;
                gr_params_mine(&p, i, &first, &n);
                if (n > 0) assert_int_equal(first, covered[i]); /* where the rank before ends */
                covered[i] += n;
                assert_true(p.items[i].mine_at + n <= p.n_mine && p.items[i].mine_at % 16 == 0);
                for (int b = 0; b < GR_LEN(buffers); b++) {
                    gr_params_read_part(&p, buffers[b], i, first, n, values);
                    for (int64_t k = 0; k < n; k++) assert_true(values[k] == number(b, i, first + k));
                }
            }
            for (int64_t layer = 0; layer < 3; layer++) {
                const gr_range items = gr_params_layer(&p, layer);
                const gr_params_share share = gr_params_share_of(&p, items, rank);
                assert_true(share.n == share.n_floats + share.n_halves && share.n % 16 == 0);
                of_shares[layer] += share.n;
                if (sharded < GR_SHARDED_VALUES || share.n_floats == 0) continue;
                assert_true((layer & 1) == (share.float_at >= bytes[0] / 8)); /* the two places: halves of it */
                assert_true(share.float_at + share.n_floats <= bytes[0] / 4);
                assert_true(share.kept_float_at + share.n_floats <= bytes[7] / 4);
            }
            assert_int_equal(gr_params_layer(&p, 3).end, 0);
            assert_int_equal(p.n_grads, turns ? 2 * 256 : 256); /* of the largest layer */
            assert_int_equal(p.items[3].grad_at, turns ? 256 : 0);
            p.form.sharded = GR_SHARDED_NOTHING;
            gr_params_bytes(&p, whole);
            gr_params_release(&p);
        }
        for (int i = 0; i < GR_LEN(shapes); i++) assert_int_equal(covered[i], shapes[i][1] * shapes[i][2]);
        assert_true(of_shares[0] == 16 + 224 + 16 && of_shares[1] == 208 + 32 && of_shares[2] == 16);
        assert_int_equal(n_mine * 4, whole[4]);
        assert_int_equal(lows, whole[2]);
        if (sharded == GR_SHARDED_VALUES) assert_true(kept[0] == whole[0] && kept[1] == whole[1]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_items),          cmocka_unit_test(test_parts_of_ranks),        cmocka_unit_test(test_two_owners),
        cmocka_unit_test(test_old_checkpoint), cmocka_unit_test(test_from_device_to_device),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
