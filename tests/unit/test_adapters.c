/* Adapters as artifacts: targets, initial values, slots, PEFT folders (ours, others' and hostile ones). */
#include "tests/unit/adapter_world.h"

#include <jansson.h>

/* ---- planning ---- */

static void test_belle_counts(void **state) {
    static const struct {
        const char *config;
        int64_t expected;
    } rows[] = {{TESTS_DIR "/../recipes/belle/llama-7b/config.json", 17891328},
                {TESTS_DIR "/../recipes/belle/llama-13b/config.json", 28016640}};
    (void)state;
    for (int i = 0; i < GR_LEN(rows); i++) {
        gr_model *m = open_model(rows[i].config);
        gr_adapter *a = NULL;
        assert_ok(plan(&a, m, (gr_adapter_config){.rank = 8, .alpha = 16},
                       TARGETS("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")));
        assert_int_equal(a->params->n_parameters, rows[i].expected);
        gr_adapter_free(a);
        gr_model_free(m);
    }
}

static int64_t count(gr_model *m, int n, const char *const *targets) {
    gr_adapter *a = NULL;
    assert_ok(plan(&a, m, (gr_adapter_config){0}, n, targets));
    int64_t modules = a->n_modules;
    gr_adapter_free(a);
    return modules;
}

static void test_targets(void **state) {
    (void)state;
    gr_adapter *a = NULL;
    gr_model *m = open_model(TINY);
    assert_int_equal(count(m, TARGETS("all-linear")), 14);
    assert_int_equal(count(m, TARGETS("all-linear", "lm_head", "embed_tokens")), 16);
    assert_int_equal(count(m, TARGETS("q_proj", "self_attn.q_proj", "model.layers.1.mlp.up_proj")), 3);
    assert_int_equal(count(m, TARGETS("model\\.layers\\.1\\.self_attn\\.(q|v)_proj")), 2);
    assert_int_equal(count(m, TARGETS(".*_proj")), 14);
    assert_error(plan(&a, m, (gr_adapter_config){0}, TARGETS("q_porj")), GRAFT_BAD_USAGE, "did you mean \"q_proj\"");
    assert_error(plan(&a, m, (gr_adapter_config){0}, TARGETS("proj")), GRAFT_BAD_USAGE, "names no module");
    assert_error(plan(&a, m, (gr_adapter_config){0}, TARGETS("(q|v_proj")), GRAFT_BAD_USAGE, "not a regular expression");
    assert_error(plan(&a, m, (gr_adapter_config){0}, TARGETS("")), GRAFT_BAD_USAGE, "names no module");
    assert_error(plan(&a, m, (gr_adapter_config){0}, 0, NULL), GRAFT_BAD_USAGE, "empty");
    assert_error(plan(&a, m, (gr_adapter_config){.rank = -1}, TARGETS("q_proj")), GRAFT_BAD_USAGE, "rank is -1");
    assert_error(plan(&a, m, (gr_adapter_config){.rank = 4, .dropout = 1}, TARGETS("q_proj")), GRAFT_BAD_USAGE, "dropout");
    assert_error(plan(&a, m, (gr_adapter_config){.rank = 4, .alpha = NAN}, TARGETS("q_proj")), GRAFT_BAD_USAGE, "alpha");
    assert_null(a);
    gr_model_free(m);
}

static void test_patterns(void **state) {
    (void)state;
    gr_adapter *a = NULL;
    gr_model *m = open_model(TINY);
    assert_ok(plan(&a, m, patterned, TARGETS("all-linear", "embed_tokens")));
    assert_int_equal(find(a, "model.layers.0.self_attn.q_proj")->rank, 2); /* the first match wins */
    assert_int_equal(find(a, "model.layers.1.self_attn.q_proj")->rank, 6);
    assert_int_equal(find(a, "model.layers.1.mlp.up_proj")->rank, 3);
    assert_int_equal(find(a, "model.layers.1.mlp.gate_proj")->rank, 4);
    assert_true(fabs(gr_adapter_scale(a, find(a, "model.layers.1.mlp.up_proj")) - 5 / sqrt(3)) < 1e-12);
    assert_true(fabs(gr_adapter_scale(a, find(a, "model.layers.0.mlp.up_proj")) - 8 / sqrt(3)) < 1e-12);
    assert_string_equal(a->params->items[0].name, "model.embed_tokens.lora_embedding_A");
    assert_string_equal(a->params->items[2].name, "model.layers.0.self_attn.q_proj.lora_A.weight");
    assert_int_equal(a->params->items[0].rows, m->config.vocab);
    gr_adapter_free(a);
    gr_pattern bad = {"q_proj", 2.5};
    gr_adapter_config c = {.rank = 4, .alpha = 8, .rank_pattern = &bad, .n_rank_pattern = 1};
    assert_error(plan(&a, m, c, TARGETS("q_proj")), GRAFT_BAD_USAGE, "rank_pattern: \"q_proj\" has rank 2.5");
    gr_model_free(m);
}

static void test_init(void **state) {
    (void)state;
    gr_adapter *a[3];
    gr_model *m = open_model(TINY);
    for (int i = 0; i < 3; i++) {
        assert_ok(plan(&a[i], m, (gr_adapter_config){0}, TARGETS("all-linear", "embed_tokens")));
        init(a[i], i == 0, i == 2 ? 8 : 7);
    }
    assert_same_values(a[0]->params, a[1]->params, true);
    assert_same_values(a[0]->params, a[2]->params, false);
    assert_true(a[0]->params->grad && !a[1]->params->grad);
    for (int64_t j = 0; j < a[0]->n_modules; j++) {
        const gr_adapter_module *module = &a[0]->modules[j];
        bool embedding = module->index == 0; /* zero A, standard normal B; elsewhere uniform A, zero B */
        const gr_params *p = a[0]->params;
        int64_t drawn = embedding ? module->b : module->a, zero = embedding ? module->a : module->b;
        double bound = 1 / sqrt((double)module->in), squares = 0;
        int64_t n = p->items[drawn].n;
        const float *values = values_of(p, drawn), *zeros = values_of(p, zero);
        for (int64_t k = 0; k < n; k++) {
            double w = values[k];
            squares += w * w;
            assert_true(embedding || fabs(w) <= bound);
        }
        double deviation = sqrt(squares / (double)n), expected = embedding ? 1 : bound / sqrt(3);
        assert_true(fabs(deviation / expected - 1) < 0.2);
        for (int64_t k = 0; k < p->items[zero].n; k++) assert_true(zeros[k] == 0);
    }
    for (int i = 0; i < 3; i++) gr_adapter_free(a[i]);
    gr_model_free(m);
}

static void test_attach_and_copy(void **state) {
    (void)state;
    gr_adapter *a = NULL, *b = NULL, *other = NULL;
    gr_model *m = open_model(TINY), *qwen = open_model(QWEN);
    assert_ok(plan(&a, m, (gr_adapter_config){0}, TARGETS("q_proj", "embed_tokens")));
    assert_ok(plan(&b, m, (gr_adapter_config){0}, TARGETS("q_proj", "embed_tokens")));
    assert_ok(plan(&other, m, (gr_adapter_config){.rank = 2, .alpha = 2}, TARGETS("q_proj", "embed_tokens")));
    fill(a, 1);
    init(b, true, 3);
    assert_ok(gr_adapter_copy(b, a, &err));
    assert_same_values(a->params, b->params, true);
    assert_error(gr_adapter_copy(other, a, &err), GRAFT_BAD_INPUT, "rank 4");
    assert_ok(gr_adapter_attach(a, m, 0.5, &err));
    assert_ok(gr_adapter_attach(b, m, 1, &err));
    gr_linear *q = m->modules[1].linear;
    assert_int_equal(q->n_lora, 2);
    assert_int_equal(m->embed.n_lora, 2);
    assert_true(q->lora[0].scale == 1.0f && q->lora[1].scale == 2.0f && !q->lora[0].dA && q->lora[1].dA);
    assert_int_equal(m->modules[2].linear->n_lora, 0);
    gr_adapter_detach_all(m);
    assert_true(q->n_lora == 0 && m->embed.n_lora == 0 && !q->lora);
    assert_error(gr_adapter_attach(a, qwen, 1, &err), GRAFT_BAD_INPUT, "does not fit");
    gr_adapter_free(a);
    gr_adapter_free(b);
    gr_adapter_free(other);
    gr_model_free(m);
    gr_model_free(qwen);
}

/* ---- PEFT folders ---- */

static void test_round_trip(void **state) {
    (void)state;
    gr_adapter *a = NULL, *b = NULL;
    gr_model *m = open_model(TINY);
    char *folder = at("run/adapter"), *base = NULL;
    assert_ok(plan(&a, m, patterned, TARGETS("all-linear", "embed_tokens", "lm_head")));
    fill(a, 4);
    a->tokenizer_hash = 0xfedcba9876543210u;
    assert_ok(gr_adapter_save(a, folder, false, &err));
    assert_error(gr_adapter_save(a, folder, false, &err), GRAFT_BAD_USAGE, "exists already");
    assert_ok(gr_adapter_save(a, folder, true, &err));
    assert_ok(gr_adapter_load(&b, at("run"), m, true, &err)); /* a run's folder: its adapter/ is taken */
    assert_int_equal(b->n_modules, a->n_modules);
    assert_true(b->tokenizer_hash == a->tokenizer_hash && b->vocab == m->config.vocab && b->params->grad);
    for (int64_t j = 0; j < a->n_modules; j++) {
        assert_string_equal(a->modules[j].name, b->modules[j].name);
        assert_true(gr_adapter_scale(a, &a->modules[j]) == gr_adapter_scale(b, &b->modules[j]));
    }
    assert_same_values(a->params, b->params, true);
    assert_ok(gr_adapter_base(&base, at("run"), &err));
    assert_string_equal(base, "tiny");
    float *values = read_all(a->params, GR_PARAMS_VALUE);
    values[a->params->items[3].offset + 5] = INFINITY;
    write_all(a->params, GR_PARAMS_VALUE, values);
    free(values);
    assert_error(gr_adapter_save(a, at("diverged"), false, &err), GRAFT_FAILED, "not finite");
    assert_false(gr_exists(at("diverged")));
    free(base);
    gr_adapter_free(a);
    gr_adapter_free(b);
    gr_model_free(m);
}

/* A good folder "good" with q_proj of both layers at rank 4, whose parts the hostile cases change. */
static void write_good(gr_model *m) {
    gr_adapter *a = NULL;
    assert_ok(plan(&a, m, (gr_adapter_config){0}, TARGETS("q_proj")));
    fill(a, 2);
    assert_ok(gr_adapter_save(a, at("good"), true, &err));
    gr_adapter_free(a);
}

static void write_case(const char *config, const char *safetensors) {
    gr_remove_all(at("case"));
    assert_ok(gr_make_dirs(at("case"), &err));
    if (config) assert_ok(gr_file_write(at("case/adapter_config.json"), config, (int64_t)strlen(config), &err));
    if (safetensors) assert_ok(gr_file_copy(safetensors, at("case/adapter_model.safetensors"), &err));
}

static void test_hostile_config(void **state) {
    static const struct {
        const char *key, *value, *part;
    } cases[] = {
        {"use_dora", "true", "DoRA"},
        {"modules_to_save", "[\"lm_head\"]", "modules_to_save"},
        {"trainable_token_indices", "[1, 2]", "saved in part"},
        {"bias", "\"all\"", "bias"},
        {"bias", "true", "bias"},
        {"layer_replication", "[[0, 2]]", "layer_replication"},
        {"lora_bias", "true", "lora_bias"},
        {"target_parameters", "[\"x\"]", "target_parameters"},
        {"peft_type", "\"IA3\"", "peft_type is IA3"},
        {"peft_type", "null", "peft_type is missing"},
        {"init_lora_weights", "\"pissa_niter_4\"", "init_lora_weights"},
        {"r", "0", "r is 0"},
        {"r", "2.5", "r is 2.5"},
        {"r", "\"8\"", "r: expected a number"},
        {"r", "8", "expected 8 x 64"},
        {"r", "1e300", "r is 1e+300"},
        {"lora_alpha", "1e300", "adapter_config.json: alpha is 1e+300"},
        {"alpha_pattern", "{\"q_proj\": -1e300}", "alpha_pattern: \"q_proj\""},
        {"lora_alpha", "[]", "lora_alpha: expected a number"},
        {"lora_dropout", "1.5", "lora_dropout is 1.5"},
        {"use_rslora", "\"yes\"", "use_rslora"},
        {"target_modules", "[1]", "target_modules"},
        {"rank_pattern", "{\"q_proj\": 0}", "rank_pattern"},
        {"rank_pattern", "{\"q_proj\": \"4\"}", "rank_pattern"},
        {"rank_pattern", "{\"layers.1.*\": 2}", "layers.1.self_attn.q_proj"},
        {"alpha_pattern", "{\"(\": 4}", "not a regular expression"},
        {"alpha_pattern", "[1]", "alpha_pattern"},
        {"graft", "{\"vocab\": 641}", "graft.vocab"},
    };
    (void)state;
    int64_t len;
    char *good = NULL;
    gr_adapter *a = NULL;
    gr_model *m = open_model(TINY);
    write_good(m);
    assert_ok(gr_file_read(&good, &len, at("good/adapter_config.json"), 1 << 20, &err));
    for (int i = 0; i < GR_LEN(cases); i++) {
        json_t *root = json_loads(good, 0, NULL);
        json_object_set_new(root, cases[i].key, json_loads(cases[i].value, JSON_DECODE_ANY, NULL));
        char *text = json_dumps(root, 0);
        write_case(text, at("good/adapter_model.safetensors"));
        assert_error(gr_adapter_load(&a, at("case"), m, false, &err), GRAFT_BAD_INPUT, cases[i].part);
        assert_non_null(strstr(err.msg, at("case")));
        free(text);
        json_decref(root);
    }
    static const struct {
        const char *text, *part;
    } broken[] = {{"", "adapter_config.json:1"},
                  {"{\"r\": 8", "adapter_config.json:1"},
                  {"[]", "expected a JSON object"},
                  {"{\"r\": 8, \"r\": 9}", "duplicate"},
                  {"{\"peft_type\": \"\xff\"}", "unable to decode"}};
    for (int i = 0; i < GR_LEN(broken); i++) {
        write_case(broken[i].text, at("good/adapter_model.safetensors"));
        assert_error(gr_adapter_load(&a, at("case"), m, false, &err), GRAFT_BAD_INPUT, broken[i].part);
    }
    write_case("{\"peft_type\": \"LORA\", \"r\": 4}", at("good/adapter_model.safetensors")); /* PEFT's defaults do for the rest */
    assert_ok(gr_adapter_load(&a, at("case"), m, false, &err));
    assert_true(gr_adapter_scale(a, &a->modules[0]) == 2);
    gr_adapter_free(a);
    write_case(good, NULL);
    assert_error(gr_adapter_load(&a, at("case"), m, false, &err), GRAFT_BAD_INPUT, "adapter_model.safetensors is missing");
    assert_ok(gr_file_write(at("case/adapter_model.bin"), "x", 1, &err));
    assert_error(gr_adapter_load(&a, at("case"), m, false, &err), GRAFT_BAD_INPUT, "safe_serialization=True");
    write_case(NULL, NULL);
    assert_error(gr_adapter_load(&a, at("case"), m, false, &err), GRAFT_BAD_INPUT, "expected a PEFT adapter folder");
    assert_error(gr_adapter_load(&a, at("nowhere"), m, false, &err), GRAFT_BAD_INPUT, at("nowhere"));
    assert_error(gr_adapter_load(&a, at("x.gguf"), m, false, &err), GRAFT_BAD_INPUT, "no such adapter");
    free(good);
    gr_model_free(m);
}

typedef struct made_tensor {
    const char *name;
    int64_t rows, cols;
    gr_dtype dtype;
    float value;
} made_tensor;

static graft_status make(void *context, int64_t i, void *dst, graft_error *e) {
    const made_tensor *t = (const made_tensor *)context + i;
    float *row = gr_calloc(t->rows * t->cols, sizeof *row);
    (void)e;
    for (int64_t k = 0; k < t->rows * t->cols; k++) row[k] = t->value;
    gr_dtype_get(t->dtype)->from_f32(dst, row, t->rows * t->cols);
    free(row);
    return GRAFT_OK;
}

/* Loads a folder of rank 4, alpha 8 with these tensors; n of them, up to the first without a name. */
static graft_status load_made(gr_adapter **a, gr_model *m, const made_tensor *made) {
    gr_tensor tensors[8] = {0};
    int64_t n = 0;
    for (; made[n].name; n++) {
        tensors[n] = (gr_tensor){.name = made[n].name, .dtype = made[n].dtype, .n_dims = 2};
        tensors[n].shape[0] = made[n].rows, tensors[n].shape[1] = made[n].cols;
    }
    write_case("{\"peft_type\": \"LORA\", \"r\": 4, \"lora_alpha\": 8}", NULL);
    assert_ok(gr_safetensors_write(at("case/adapter_model.safetensors"), tensors, n, make, (void *)made, &err));
    return gr_adapter_load(a, at("case"), m, false, &err);
}

#define Q0 "base_model.model.model.layers.0.self_attn.q_proj."
static void test_hostile_tensors(void **state) {
    static const made_tensor A = {Q0 "lora_A.weight", 4, 64, GR_DTYPE_F32, 1};
    static const struct {
        made_tensor second;
        const char *part;
    } cases[] = {
        {{NULL, 0, 0, 0, 0}, "only one of lora_A and lora_B"},
        {{Q0 "lora_B.weight", 4, 64, GR_DTYPE_F32, 1}, "expected 64 x 4"},
        {{Q0 "lora_B.weight", 64, 3, GR_DTYPE_F32, 1}, "expected 64 x 4"},
        {{Q0 "lora_B.weight", 64, 4, GR_DTYPE_F32, NAN}, "not finite"},
        {{Q0 "lora_B.weight", 64, 4, GR_DTYPE_F16, INFINITY}, "not finite"},
        {{Q0 "lora_A.default.weight", 4, 64, GR_DTYPE_F32, 1}, "same matrix"},
        {{Q0 "lora_B.other.weight", 64, 4, GR_DTYPE_F32, 1}, "are of two adapters"},
        {{Q0 "lora_magnitude_vector", 1, 64, GR_DTYPE_F32, 1}, "DoRA"},
        {{"base_model.model.lm_head.weight", 640, 64, GR_DTYPE_F32, 1}, "a head other than the base's"},
        {{Q0 "token_adapter.trainable_tokens_delta", 2, 64, GR_DTYPE_F32, 1}, "neither the embedding nor the head"},
        {{"base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight", 64, 4, GR_DTYPE_F32, 1}, "no linear"},
        {{"base_model.model.model.embed_tokens.lora_A.weight", 4, 640, GR_DTYPE_F32, 1}, "no linear"},
        {{"x", 1, 1, GR_DTYPE_F32, 1}, "no LoRA matrix"},
    };
    (void)state;
    gr_adapter *a = NULL;
    gr_model *m = open_model(TINY);
    for (int i = 0; i < GR_LEN(cases); i++) {
        assert_error(load_made(&a, m, (made_tensor[]){A, cases[i].second, {0}}), GRAFT_BAD_INPUT, cases[i].part);
        assert_null(a);
    }
    assert_error(load_made(&a, m, (made_tensor[]){{0}}), GRAFT_BAD_INPUT, "saved empty");
    assert_ok(load_made(&a, m,
                        (made_tensor[]){{Q0 "lora_A.default.weight", 4, 64, GR_DTYPE_F16, 0.5f},
                                        {"model.layers.0.self_attn.q_proj.lora_B.weight", 64, 4, GR_DTYPE_BF16, 3},
                                        {0}}));
    assert_true(a->n_modules == 1 && values_of(a->params, 0)[255] == 0.5f && values_of(a->params, 1)[255] == 3);
    gr_adapter_free(a);
    gr_model_free(m);
}

/* Tensor i: 0, 1, 2 ...; the fifth: the base's embedding when there is one. */
static graft_status count_up(void *context, int64_t i, void *dst, graft_error *e) {
    static const int64_t sizes[] = {8 * 640, 48 * 8, 8 * 48, 640 * 8, 640 * 48};
    (void)e;
    for (int64_t k = 0; k < sizes[i]; k++) ((float *)dst)[k] = i == 4 && context ? ((const float *)context)[k] : (float)k;
    return GRAFT_OK;
}

/* What PEFT itself writes; targets as a string; and the copy of the base's embedding that PEFT saves beside a
 * LoRA on it. */
static void test_foreign(void **state) {
    (void)state;
    gr_adapter *a = NULL;
    gr_model *m = open_model(QWEN);
    gr_tensor tensors[] = {
        {.name = "base_model.model.model.embed_tokens.lora_embedding_A", .n_dims = 2, .shape = {8, 640}},
        {.name = "base_model.model.model.embed_tokens.lora_embedding_B", .n_dims = 2, .shape = {48, 8}},
        {.name = "base_model.model.lm_head.lora_A.weight", .n_dims = 2, .shape = {8, 48}},
        {.name = "base_model.model.lm_head.lora_B.weight", .n_dims = 2, .shape = {640, 8}},
        {.name = "base_model.model.model.embed_tokens.base_layer.weight", .n_dims = 2, .shape = {640, 48}},
    };
    assert_ok(gr_adapter_load(&a, TESTS_DIR "/golden/tiny-qwen2/adapter", m, false, &err));
    assert_int_equal(a->n_modules, 14);
    gr_adapter_free(a);
    for (int kept = 1; kept >= 0; kept--) { /* the base's own embedding, then another */
        write_case("{\"peft_type\": \"LORA\", \"target_modules\": \".*(lm_head|embed_tokens)\"}", NULL);
        assert_ok(gr_safetensors_write(at("case/adapter_model.safetensors"), tensors, GR_LEN(tensors), count_up,
                                       kept ? (void *)gr_weights_find(m->weights, "model.embed_tokens.weight")->view.data : NULL,
                                       &err));
        graft_status st = gr_adapter_load(&a, at("case"), m, false, &err);
        if (!kept) {
            assert_error(st, GRAFT_BAD_INPUT, "an embedding other than the base's");
            continue;
        }
        assert_ok(st);
        assert_true(a->n_modules == 2 && find(a, "lm_head") && find(a, "model.embed_tokens"));
        const float *A = values_of(a->params, find(a, "model.embed_tokens")->a); /* kept transposed */
        for (int64_t k = 0; k < 8 * 640; k++) assert_true(A[k % 640 * 8 + k / 640] == (float)k);
        gr_adapter_free(a);
    }
    gr_model_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_belle_counts),   cmocka_unit_test(test_targets),         cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_init),           cmocka_unit_test(test_attach_and_copy), cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_hostile_config), cmocka_unit_test(test_hostile_tensors), cmocka_unit_test(test_foreign),
    };
    return cmocka_run_group_tests_name("adapters", tests, set_up, tear_down);
}
