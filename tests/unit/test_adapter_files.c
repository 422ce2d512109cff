/* Adapters as other programs leave them: element types, names, targets, mlx-lm's folders, GGUF LoRA, places. */
#include "tests/unit/adapter_world.h"

#include <jansson.h>

#include "adapters/impl.h"

#define Q(layer) "model.layers." layer ".self_attn.q_proj"
#define V(layer) "model.layers." layer ".self_attn.v_proj"

typedef struct raw_tensor { /* a tensor of a made file: values are 0.25 * (1, 2, 3, ...) */
    const char *name, *type;
    int64_t rows, cols;
} raw_tensor;

static double value_of(int64_t k) { return 0.25 * (double)(k + 1); }

static int64_t put_value(gr_str *out, const char *type, int64_t k) {
    double v = value_of(k);
    float f = (float)v;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    int64_t before = out->len;
    if (strcmp(type, "F64") == 0) gr_str_add(out, (const char *)&v, 8);
    else if (strcmp(type, "F32") == 0) gr_str_add(out, (const char *)&f, 4);
    else if (strcmp(type, "BF16") == 0) gr_str_add(out, (const char *)&bits + 2, 2);
    else gr_str_putc(out, 1); /* I8, F8_E4M3 ... */
    return out->len - before;
}

/* A safetensors file whose header is shifted by pad bytes, so that its data may lie unaligned. */
static void write_raw(const char *path, const raw_tensor *t, int n, int pad) {
    gr_str data = {0}, header = {0}, file = {0};
    gr_str_putc(&header, '{');
    for (int i = 0; i < n; i++) {
        int64_t begin = data.len;
        for (int64_t k = 0; k < t[i].rows * t[i].cols; k++) put_value(&data, t[i].type, k);
        gr_str_printf(&header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld,%lld],\"data_offsets\":[%lld,%lld]}", i ? "," : "",
                      t[i].name, t[i].type, (long long)t[i].rows, (long long)t[i].cols, (long long)begin, (long long)data.len);
    }
    gr_str_putc(&header, '}');
    for (int i = 0; i < pad; i++) gr_str_putc(&header, ' ');
    uint64_t len = (uint64_t)header.len;
    gr_str_add(&file, (const char *)&len, 8);
    gr_str_add(&file, header.data, header.len);
    gr_str_add(&file, data.data, data.len);
    assert_ok(gr_file_write(path, file.data, file.len, &err));
    gr_str_release(&data);
    gr_str_release(&header);
    gr_str_release(&file);
}

static void write_folder(const char *folder, const char *config, const raw_tensor *t, int n, int pad) {
    char *path = gr_path_join(folder, "adapter_config.json"), *tensors = gr_path_join(folder, "adapter_model.safetensors");
    assert_ok(gr_make_dirs(folder, &err));
    assert_ok(gr_file_write(path, config, (int64_t)strlen(config), &err));
    write_raw(tensors, t, n, pad);
    free(path);
    free(tensors);
}

#define CONFIG(more) "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4" more "}"

/* F64 is read; a type that graft does not compute with is named, never left out. */
static void test_element_types(void **state) {
    static const struct {
        const char *a, *b, *part;
    } rows[] = {{"F64", "F64", NULL},     {"F32", "F64", NULL},          {"BF16", "F32", NULL},     {"F64", "BF16", NULL},
                {"F32", "I8", "type I8"}, {"F8_E4M3", "F32", "F8_E4M3"}, {"I64", "I64", "type I64"}};
    (void)state;
    gr_model *m = open_model(TINY);
    for (int i = 0; i < GR_LEN(rows); i++)
        for (int pad = 0; pad < 4; pad += 3) {
            gr_adapter *a = NULL;
            raw_tensor t[] = {{"base_model.model." Q("0") ".lora_A.weight", rows[i].a, 2, 64},
                              {"base_model.model." Q("0") ".lora_B.weight", rows[i].b, 64, 2}};
            write_folder(at("types"), CONFIG(""), t, 2, pad);
            graft_status st = gr_adapter_load(&a, at("types"), m, false, &err);
            if (rows[i].part) {
                assert_error(st, GRAFT_BAD_INPUT, rows[i].part);
                assert_non_null(strstr(err.msg, "lora_"));
                continue;
            }
            assert_ok(st);
            const float *A = values_of(a->params, 0), *B = values_of(a->params, 1);
            for (int64_t k = 0; k < 128; k++) {
                assert_true(fabs((double)A[k] - value_of(k)) <= 0.01 * value_of(k));
                assert_true(fabs((double)B[k] - value_of(k)) <= 0.01 * value_of(k));
            }
            gr_adapter_free(a);
        }
    gr_model_free(m);
}

/* What wrappers and writers leave in names is understood; what may be another tensor is not. */
static void test_names(void **state) {
    static const struct {
        const char *a, *b, *part;
    } rows[] = {
        {"_orig_mod.base_model.model." Q("0") ".lora_A.weight", "_orig_mod.base_model.model." Q("0") ".lora_B.weight", NULL},
        {"base_model.model._orig_mod." Q("0") ".lora_A.weight", "base_model.model._orig_mod." Q("0") ".lora_B.weight", NULL},
        {"module." Q("0") ".lora_A.weight", "module." Q("0") ".lora_B.weight", NULL},
        {"base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight",
         "base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_B.weight", NULL},
        {"base_model.model.model.layers.0._checkpoint_wrapped_module.self_attn.q_proj.lora_A.mine.weight",
         "base_model.model.model.layers.0._checkpoint_wrapped_module.self_attn.q_proj.lora_B.mine.weight", NULL},
        {Q("0") ".lora_A.mine.weight", Q("0") ".lora_B.yours.weight", "\"mine\" and \"yours\""},
        {"base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight", Q("0") ".lora_B.weight", "no linear"},
        {Q("0") ".lora_A.weight", Q("0") ".lora_B.bias", "a bias of lora_B"},
        {Q("0") ".lora_A.weight", Q("0") ".lora_B", "graft does not know"},
        {Q("0") ".lora_A.weight", Q("0") ".lora_Bx.weight", "graft does not know"},
        {Q("0") ".lora_a", Q("0") ".lora_b", "graft does not know"}, /* mlx-lm's names with PEFT's configuration */
        {Q("0") ".lora_A.a.b.weight", Q("0") ".lora_B.a.b.weight", "graft does not know"},
    };
    (void)state;
    gr_model *m = open_model(TINY);
    for (int i = 0; i < GR_LEN(rows); i++) {
        gr_adapter *a = NULL;
        raw_tensor t[] = {{rows[i].a, "F32", 2, 64}, {rows[i].b, "F32", 64, 2}};
        write_folder(at("names"), "\xEF\xBB\xBF" CONFIG(""), t, 2, 0); /* an editor's byte order mark is no harm */
        graft_status st = gr_adapter_load(&a, at("names"), m, false, &err);
        if (rows[i].part) {
            assert_error(st, GRAFT_BAD_INPUT, rows[i].part);
            continue;
        }
        assert_ok(st);
        assert_true(a->n_modules == 1 && find(a, Q("0")));
        gr_adapter_free(a);
    }
    gr_model_free(m);
}

/* The file has q_proj of both layers and v_proj of the second: which targets are these? As peft's check_target_module_exists. */
static void test_targets_agree(void **state) {
    static const struct {
        const char *keys, *part;
    } rows[] = {
        {"\"target_modules\": null", NULL},
        {"\"target_modules\": [\"q_proj\", \"" V("1") "\"]", NULL},
        {"\"target_modules\": [\"self_attn.q_proj\", \"layers.1.self_attn.v_proj\", \"c_attn\"]", NULL},
        {"\"target_modules\": \".*q_proj|model.layers.1.*v_proj\"", NULL},
        {"\"target_modules\": [\"q_proj\", \"v_proj\"], \"exclude_modules\": [\"layers.0.self_attn.v_proj\"]", NULL},
        {"\"target_modules\": [\"q_proj\", \"v_proj\"], \"exclude_modules\": \".*0.*v_proj\"", NULL},
        {"\"target_modules\": [\"" Q("0") "\", \"q_proj\", \"v_proj\"], \"layers_to_transform\": [1]", NULL},
        {"\"target_modules\": [\"" Q("0") "\", \"q_proj\", \"v_proj\"], \"layers_to_transform\": 1, \"layers_pattern\": \"layers\"",
         NULL},
        {"\"target_modules\": [\"" Q(
             "0") "\", \"q_proj\", \"v_proj\"], \"layers_to_transform\": [1], \"layers_pattern\": [\"h\", \"layers\"]",
         NULL},
        {"\"target_modules\": [\"" Q(
             "0") "\", \"q_proj\", \"v_proj\"], \"layers_to_transform\": 1, \"layers_pattern\": \"model.layers\"",
         NULL},
        {"\"target_modules\": [\"q_proj\", \"v_proj\"]", V("0")},
        {"\"target_modules\": [\"q_proj\"]", "does not target " V("1")},
        {"\"target_modules\": [\"q_proj\", \"v_proj\"], \"layers_to_transform\": [1]", "does not target " Q("0")},
        {"\"target_modules\": [\"q_proj\", \"v_proj\"], \"layers_to_transform\": [0, 1]", V("0")},
        {"\"target_modules\": [\"q_proj\", \"v_proj\"], \"layers_to_transform\": [1], \"layers_pattern\": \"h\"",
         "does not target"},
        {"\"target_modules\": [\"q_proj\", \"v_proj\"], \"layers_to_transform\": [\"1\"]", "layers_to_transform"},
        {"\"target_modules\": \"all-linear\"", "k_proj"},
        {"\"target_modules\": \"q_proj\"", "does not target"}, /* a string is a regular expression for the whole name */
        {"\"target_modules\": [\"q_proj\", \"v_proj\"], \"exclude_modules\": [3]", "exclude_modules"},
        {"\"target_modules\": \"(q_proj\"", "not a regular expression"},
    };
    static const raw_tensor t[] = {{Q("0") ".lora_A.weight", "F32", 2, 64}, {Q("0") ".lora_B.weight", "F32", 64, 2},
                                   {Q("1") ".lora_A.weight", "F32", 2, 64}, {Q("1") ".lora_B.weight", "F32", 64, 2},
                                   {V("1") ".lora_A.weight", "F32", 2, 64}, {V("1") ".lora_B.weight", "F32", 32, 2}};
    (void)state;
    gr_model *m = open_model(TINY);
    for (int i = 0; i < GR_LEN(rows); i++) {
        char config[512];
        gr_adapter *a = NULL;
        snprintf(config, sizeof config, CONFIG(", %s"), rows[i].keys);
        write_folder(at("targets"), config, t, GR_LEN(t), 0);
        graft_status st = gr_adapter_load(&a, at("targets"), m, false, &err);
        if (rows[i].part) {
            assert_error(st, GRAFT_BAD_INPUT, rows[i].part);
            assert_non_null(strstr(err.msg, "adapter_config.json"));
        } else {
            assert_ok(st);
            assert_int_equal(a->n_modules, 3);
        }
        gr_adapter_free(a);
    }
    gr_model_free(m);
}

static void test_configs(void **state) {
    static const struct {
        const char *keys, *part;
    } rows[] = {
        {"\"init_lora_weights\": \"eva\"", NULL},
        {"\"init_lora_weights\": \"Gaussian\"", NULL},
        {"\"init_lora_weights\": false", NULL},
        {"\"init_lora_weights\": \"olora\"", "olora"},
        {"\"init_lora_weights\": \"mica\"", "mica"},
        {"\"task_type\": null", NULL},
        {"\"task_type\": \"SEQ_CLS\"", "task_type is SEQ_CLS"},
        {"\"fan_in_fan_out\": true", NULL},
        {"\"ensure_weight_tying\": true", "ensure_weight_tying"},
        {"\"monteclora_config\": {\"x\": 1}", "monteclora_config"},
        {"\"lora_dropout\": null", NULL},
    };
    static const raw_tensor t[] = {{Q("0") ".lora_A.weight", "F32", 2, 64}, {Q("0") ".lora_B.weight", "F32", 64, 2}};
    (void)state;
    gr_model *m = open_model(TINY);
    for (int i = 0; i < GR_LEN(rows); i++) {
        char config[512];
        gr_adapter *a = NULL;
        snprintf(config, sizeof config, CONFIG(", %s"), rows[i].keys);
        write_folder(at("configs"), config, t, GR_LEN(t), 0);
        graft_status st = gr_adapter_load(&a, at("configs"), m, false, &err);
        if (rows[i].part) assert_error(st, GRAFT_BAD_INPUT, rows[i].part);
        else assert_ok(st);
        gr_adapter_free(a);
    }
    static const char *const nulls[] = {"{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": null}",
                                        "{\"peft_type\": \"LORA\", \"r\": null, \"lora_alpha\": 4}"};
    for (int i = 0; i < GR_LEN(nulls); i++) {
        gr_adapter *a = NULL;
        write_folder(at("configs"), nulls[i], t, GR_LEN(t), 0);
        assert_error(gr_adapter_load(&a, at("configs"), m, false, &err), GRAFT_BAD_INPUT, "is null");
    }
    gr_model_free(m);
}

/* ---- mlx-lm ---- */

static graft_status load_mlx(gr_adapter **a, gr_model *m, const char *config, const raw_tensor *t, int n) {
    *a = NULL;
    gr_remove_all(at("mlx"));
    assert_ok(gr_make_dirs(at("mlx"), &err));
    assert_ok(gr_file_write(at("mlx/adapter_config.json"), config, (int64_t)strlen(config), &err));
    write_raw(at("mlx/adapters.safetensors"), t, n, 0);
    return gr_adapter_load(a, at("mlx"), m, false, &err);
}

static void test_mlx(void **state) {
    static const raw_tensor t[] = {{Q("1") ".lora_a", "F32", 64, 2}, {Q("1") ".lora_b", "F32", 2, 64}};
    static const struct {
        const char *config, *part;
    } rows[] = {
        {"{\"fine_tune_type\": \"lora\", \"num_layers\": 1, \"lora_parameters\": {\"rank\": 2, \"scale\": 20.0, \"dropout\": 0.0}}",
         NULL},
        {"{\"lora_layers\": 1, \"lora_parameters\": {\"rank\": 2, \"scale\": 20.0, \"keys\": [\"self_attn.q_proj\"]}}", NULL},
        {"{\"num_layers\": 2, \"lora_parameters\": {\"rank\": 2, \"scale\": 20.0}}", Q("0") " is not in"},
        {"{\"num_layers\": 1, \"lora_parameters\": {\"rank\": 2, \"scale\": 20.0, \"keys\": [\"self_attn.v_proj\"]}}",
         "saved in part"},
        {"{\"fine_tune_type\": \"dora\", \"lora_parameters\": {\"rank\": 2, \"scale\": 20.0}}", "\"dora\", expected \"lora\""},
        {"{\"fine_tune_type\": \"lora\", \"use_dora\": true, \"lora_parameters\": {\"rank\": 2, \"scale\": 20.0}}",
         "\"dora\", expected \"lora\""},
        {"{\"fine_tune_type\": \"full\"}", "\"full\""},
        {"{\"num_layers\": 1, \"lora_parameters\": {\"rank\": 2}}", "lora_parameters.scale"},
        {"{\"num_layers\": 1, \"lora_parameters\": {\"rank\": 2, \"scale\": 20.0, \"alpha\": 16}}", "lora_parameters.alpha"},
        {"{\"num_layers\": 1, \"lora_parameters\": {\"rank\": 4, \"scale\": 20.0}}", "expected 64 x 4"},
    };
    (void)state;
    gr_model *m = open_model(TINY);
    gr_adapter *a = NULL;
    for (int i = 0; i < GR_LEN(rows); i++) {
        graft_status st = load_mlx(&a, m, rows[i].config, t, GR_LEN(t));
        if (rows[i].part) {
            assert_error(st, GRAFT_BAD_INPUT, rows[i].part);
            continue;
        }
        assert_ok(st);
        assert_int_equal(a->n_modules, 1);
        assert_true(fabs(gr_adapter_scale(a, &a->modules[0]) - 20) < 1e-12);
        const float *A = values_of(a->params, a->modules[0].a), *B = values_of(a->params, a->modules[0].b);
        for (int64_t k = 0; k < 64; k++)
            for (int64_t r = 0; r < 2; r++) {
                assert_true((double)A[r * 64 + k] == value_of(k * 2 + r));
                assert_true((double)B[k * 2 + r] == value_of(r * 64 + k));
            }
        gr_adapter_free(a);
    }
    gr_model_free(m);
}

/* ---- GGUF LoRA ---- */

/* What was written is read back: the same modules and the same scale * B A, rows of q and k in their order again. */
static void test_gguf(void **state) {
    (void)state;
    static const char *const models[] = {TINY, QWEN};
    for (int i = 0; i < GR_LEN(models); i++) {
        gr_adapter *a = NULL, *b = NULL;
        char *base = NULL;
        gr_model *m = open_model(models[i]);
        gr_adapter_config c = patterned;
        c.base = "some/base";
        if (i) assert_ok(plan(&a, m, c, TARGETS("all-linear", "embed_tokens", "lm_head")));
        else assert_ok(plan(&a, m, c, TARGETS("all-linear")));
        fill(a, 6);
        assert_ok(gr_adapter_export_gguf(a, m, at("lora.gguf"), &err));
        assert_true(gr_adapter_is(at("lora.gguf")));
        assert_ok(gr_adapter_base(&base, at("lora.gguf"), &err));
        assert_string_equal(base, "some/base");
        assert_ok(gr_adapter_load(&b, at("lora.gguf"), m, true, &err));
        assert_int_equal(a->n_modules, b->n_modules);
        assert_non_null(b->params->grad);
        for (int64_t j = 0; j < a->n_modules; j++) {
            const gr_adapter_module *x = &a->modules[j], *y = &b->modules[j];
            assert_string_equal(x->name, y->name);
            assert_int_equal(x->rank, y->rank);
            assert_memory_equal(values_of(a->params, x->a), values_of(b->params, y->a), (size_t)(x->in * x->rank) * sizeof(float));
            const float *xb = values_of(a->params, x->b), *yb = values_of(b->params, y->b);
            for (int64_t k = 0; k < x->out * x->rank; k++) {
                double want = gr_adapter_scale(a, x) * (double)xb[k], got = gr_adapter_scale(b, y) * (double)yb[k];
                assert_true(fabs(want - got) <= 1e-6 * fabs(want));
            }
        }
        gr_adapter_free(b);
        b = NULL;
        gr_model *other = open_model(models[!i]);
        assert_error(gr_adapter_load(&b, at("lora.gguf"), other, false, &err), GRAFT_BAD_INPUT, "general.architecture");
        gr_model_free(other);
        free(base);
        gr_adapter_free(a);
        gr_model_free(m);
    }
}

static graft_status one(void *context, int64_t i, void *dst, graft_error *e) {
    const gr_tensor *t = (const gr_tensor *)context + i;
    (void)e;
    for (int64_t k = 0; k < t->shape[0] * t->shape[1]; k++) ((float *)dst)[k] = 1;
    return GRAFT_OK;
}

static void test_hostile_gguf(void **state) {
    static const struct {
        const char *type, *kind, *a, *b, *part;
        float alpha;
    } rows[] = {
        {"adapter", "lora", "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b", NULL, 0}, /* 0: no scaling */
        {"model", "lora", "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b", "no adapter", 4},
        {"adapter", "dora", "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b", "adapter.type", 4},
        {"adapter", "lora", "blk.0.attn_q.weight.lora_a", "blk.1.attn_q.weight.lora_b", "has no partner", 4},
        {"adapter", "lora", "blk.2.attn_q.weight.lora_a", "blk.2.attn_q.weight.lora_b", "no such tensor", 4},
        {"adapter", "lora", "blk.0.attn_q.weight.lora_a", "blk.0.attn_norm.weight", "no matrix of a LoRA", 4},
        {"adapter", "lora", "token_embd.weight.lora_a", "token_embd.weight.lora_b", "would adapt both", 4},
        {"adapter", "lora", "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b", "not finite", INFINITY},
        {"adapter", "lora", "blk.0.attn_v.weight.lora_a", "blk.0.attn_v.weight.lora_b", "expected 32 x 2", 4},
    };
    (void)state;
    gr_model *m = open_model(TINY);
    for (int i = 0; i < GR_LEN(rows); i++) {
        gr_adapter *a = NULL;
        gr_gguf_builder b = {0};
        gr_tensor t[] = {{.name = rows[i].a, .n_dims = 2, .shape = {2, 64}}, {.name = rows[i].b, .n_dims = 2, .shape = {64, 2}}};
        gr_gguf_put_string(&b, "general.architecture", "llama");
        gr_gguf_put_string(&b, "general.type", rows[i].type);
        gr_gguf_put_string(&b, "adapter.type", rows[i].kind);
        gr_gguf_put_f32(&b, "adapter.lora.alpha", rows[i].alpha);
        assert_ok(gr_gguf_write(at("made.gguf"), &b, t, 2, one, t, &err));
        gr_gguf_builder_release(&b);
        graft_status st = gr_adapter_load(&a, at("made.gguf"), m, false, &err);
        if (rows[i].part) {
            assert_error(st, GRAFT_BAD_INPUT, rows[i].part);
            continue;
        }
        assert_ok(st);
        assert_true(gr_adapter_scale(a, &a->modules[0]) == 1);
        gr_adapter_free(a);
    }
    gr_model_free(m);
}

/* ---- places ---- */

static void test_places(void **state) {
    static const raw_tensor t[] = {{Q("0") ".lora_A.weight", "F32", 2, 64}, {Q("0") ".lora_B.weight", "F32", 64, 2}};
    (void)state;
    gr_adapter *a = NULL;
    gr_model *m = open_model(TINY);
    write_folder(at("outer/default"), CONFIG(""), t, GR_LEN(t), 0);
    assert_true(gr_adapter_is(at("outer")));
    assert_ok(gr_adapter_load(&a, at("outer"), m, false, &err)); /* the only one in it */
    gr_adapter_free(a);
    assert_ok(gr_adapter_load(&a, at("outer/default/adapter_model.safetensors"), m, false, &err));
    gr_adapter_free(a);
    a = NULL;
    write_folder(at("outer/second"), CONFIG(""), t, GR_LEN(t), 0);
    assert_error(gr_adapter_load(&a, at("outer"), m, false, &err), GRAFT_BAD_INPUT, "2 adapters in sub-folders");
    assert_ok(gr_make_dirs(at("model"), &err));
    assert_ok(gr_file_write(at("model/config.json"), "{}", 2, &err));
    assert_error(gr_adapter_load(&a, at("model"), m, false, &err), GRAFT_BAD_INPUT, "not an adapter");
    assert_ok(gr_make_dirs(at("torn"), &err));
    assert_ok(gr_file_write(at("torn/adapter_model.safetensors"), "x", 1, &err));
    assert_error(gr_adapter_load(&a, at("torn"), m, false, &err), GRAFT_BAD_INPUT, "adapter_config.json is missing");
    assert_ok(gr_make_dirs(at("pickle"), &err));
    assert_ok(gr_file_write(at("pickle/adapter_model.bin"), "x", 1, &err));
    assert_error(gr_adapter_load(&a, at("pickle"), m, false, &err), GRAFT_BAD_INPUT, "safe_serialization=True");
    assert_error(gr_adapter_load(&a, at("pickle/adapter_model.bin"), m, false, &err), GRAFT_BAD_INPUT, "pickle");
    assert_error(gr_adapter_load(&a, TESTS_DIR "/golden/tiny/config.json", m, false, &err), GRAFT_BAD_INPUT, "expected the folder");
    gr_model_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_element_types), cmocka_unit_test(test_names),  cmocka_unit_test(test_targets_agree),
        cmocka_unit_test(test_configs),       cmocka_unit_test(test_mlx),    cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_hostile_gguf),  cmocka_unit_test(test_places),
    };
    return cmocka_run_group_tests_name("adapter files", tests, set_up, tear_down);
}
