/* What leaves: merged HF folders and GGUF files against the sum computed by hand, GGUF LoRA, and
 * inspection. */
#include "tests/unit/adapter_world.h"

#include <jansson.h>

#include "adapters/inspect.h"
#include "core/model/decoder.h"
#include "kernels/philox.h"

/* ---- merging ---- */

/* Row r of the canonical weight name in w, as floats. */
static void weight_row(const gr_weights *w, const char *name, int64_t r, float *row) {
    const gr_weight_entry *e = gr_weights_find(w, name);
    assert_non_null(e);
    gr_dtype_get(e->view.dtype)
        ->to_f32(row, (const char *)e->view.data + r * gr_dtype_bytes(e->view.dtype, e->view.cols), e->view.cols);
}

/* merged = base + sum of scale * B A, computed here in double, within tolerance of each value's size. The
 * head of a tied base is its embedding. */
static void check_merged(const char *path, gr_model *m, gr_adapter *const *adapters, const double *scales, int n,
                         double tolerance) {
    enum { MAX_COLS = 1024 };
    gr_weights *merged = NULL;
    float found[MAX_COLS], base[MAX_COLS];
    assert_ok(gr_weights_open(&merged, path, &err));
    for (int64_t i = 0; i < gr_weights_count(merged); i++) {
        const gr_weight_entry *e = gr_weights_get(merged, i);
        bool untied = !gr_weights_find(m->weights, e->name);
        const gr_adapter_module *module[2] = {0}; /* what the adapters add to it */
        const float *A[2], *B[2];
        for (int j = 0; j < n; j++) {
            char name[96];
            snprintf(name, sizeof name, "%.*s", (int)strlen(e->name) - 7, e->name); /* without ".weight" */
            module[j] = gr_ends_with(e->name, ".weight") ? find(adapters[j], name) : NULL;
            if (!module[j]) continue;
            A[j] = values_of(adapters[j]->params, module[j]->a), B[j] = values_of(adapters[j]->params, module[j]->b);
        }
        assert_true(e->view.cols <= MAX_COLS);
        for (int64_t r = 0; r < e->view.rows; r++) {
            double expected[MAX_COLS];
            weight_row(merged, e->name, r, found);
            weight_row(m->weights, untied ? "model.embed_tokens.weight" : e->name, r, base);
            for (int64_t k = 0; k < e->view.cols; k++) expected[k] = base[k];
            for (int j = 0; j < n; j++) {
                if (!module[j]) continue;
                int64_t R = module[j]->rank, K = module[j]->in;
                double scale = scales[j] * gr_adapter_scale(adapters[j], module[j]);
                for (int64_t k = 0; k < e->view.cols; k++)
                    for (int64_t q = 0; q < R; q++)
                        expected[k] += scale * (module[j]->index == 0 ? (double)A[j][r * R + q] * B[j][k * R + q]
                                                                      : (double)B[j][r * R + q] * A[j][q * K + k]);
            }
            for (int64_t k = 0; k < e->view.cols; k++)
                if (fabs(found[k] - expected[k]) > tolerance * fmax(fabs(expected[k]), 0.1))
                    fail_msg("%s: %s[%lld, %lld] is %g, expected %g", path, e->name, (long long)r, (long long)k, found[k],
                             expected[k]);
        }
    }
    gr_weights_close(merged);
}

static void test_merge(void **state) {
    static const struct {
        const char *name;
        gr_merge_options o;
        double tolerance;
    } cases[] = {
        {"m-f32", {.format = GR_FORMAT_HF, .dtype = GR_DTYPE_F32}, 1e-6},
        {"m-own", {.format = GR_FORMAT_HF, .dtype = -1, .shard_bytes = 50000}, 1e-6}, /* the base's own: f32; in shards */
        {"m-bf16", {.format = GR_FORMAT_HF, .dtype = GR_DTYPE_BF16}, 0.00391}, /* half a unit in the last place: once rounded */
        {"m-f16", {.format = GR_FORMAT_HF, .dtype = GR_DTYPE_F16}, 0.00049},
        {"m-f32.gguf", {.format = GR_FORMAT_GGUF, .dtype = GR_DTYPE_F32}, 1e-6},
        {"m-bf16.gguf", {.format = GR_FORMAT_GGUF, .dtype = GR_DTYPE_BF16}, 0.00391},
        {"m-q8_0.gguf", {.format = GR_FORMAT_GGUF, .dtype = GR_DTYPE_Q8_0}, 0.1},
        {"m-q6_k.gguf", {.format = GR_FORMAT_GGUF, .dtype = GR_DTYPE_Q6_K}, 0.1}, /* rows of 64: q8_0 ... */
        {"m-q5_k.gguf", {.format = GR_FORMAT_GGUF, .dtype = GR_DTYPE_Q5_K}, 0.5}, /* ... q5_1 */
        {"m-q4_k.gguf", {.format = GR_FORMAT_GGUF, .dtype = GR_DTYPE_Q4_K}, 0.5}, /* ... q5_0 */
    };
    static const char *const models[] = {TINY, QWEN};
    static const double scales[] = {1, -0.5};
    (void)state;
    for (int i = 0; i < GR_LEN(models); i++) {
        gr_adapter *a[2];
        gr_tokenizer *t = NULL;
        gr_model *m = open_model(models[i]);
        assert_ok(gr_tokenizer_open(&t, models[i], &err));
        assert_ok(plan(&a[0], m, patterned, TARGETS("all-linear")));
        assert_ok(plan(&a[1], m, (gr_adapter_config){0}, TARGETS("q_proj", "embed_tokens", "lm_head")));
        for (int j = 0; j < 2; j++) {
            fill(a[j], (uint64_t)j);
            assert_ok(gr_adapter_attach(a[j], m, scales[j], &err));
        }
        for (int c = 0; c < GR_LEN(cases); c++) {
            gr_merge_report report;
            gr_merge_options o = cases[c].o;
            o.overwrite = i > 0;
            assert_ok(
                gr_merge(PARTS(m, t, .adapters = a, .scales = scales, .n_adapters = 2), &o, at(cases[c].name), &report, &err));
            check_merged(at(cases[c].name), m, a, scales, 2, cases[c].tolerance);
            assert_int_equal(report.n_merged, 16);
            assert_true(report.largest_logit > 0 && report.n_probed > 0 && report.n_changed <= report.n_probed);
            if (cases[c].tolerance < 1e-5) assert_true(report.max_logit_difference < 2e-3 && report.mean_kl < 1e-6);
        }
        assert_true(gr_exists(at("m-own/model.safetensors.index.json")) && !gr_exists(at("m-own/model.safetensors")));
        for (int j = 0; j < 2; j++) gr_adapter_free(a[j]);
        gr_adapter_detach_all(m);
        gr_model_free(m);
        gr_tokenizer_free(t);
    }
}

/* Every architecture: written as both formats and read back, a GGUF also as a folder again, weights and configuration are the
 * base's to the bit, norms that files have without their offset among them; with an adapter the probe of the merge is the judge. */
static void test_architectures(void **state) {
    static const char *const names[] = {"qwen3", "mistral", "gemma2", "gemma3", "phi3"};
    (void)state;
    for (int i = 0; i < GR_LEN(names); i++) {
        char *path = gr_format(TESTS_DIR "/golden/tiny-%s", names[i]), *adapter = gr_format("%s/adapter", path);
        gr_model *m = open_model(path), *back;
        gr_tokenizer *t;
        gr_adapter *a;
        gr_merge_report report;
        assert_ok(gr_tokenizer_open(&t, path, &err));
        uint64_t hash = gr_weights_hash(m->weights);
        gr_merge_options hf = {.format = GR_FORMAT_HF, .dtype = GR_DTYPE_F32, .overwrite = true},
                         gguf = {.format = GR_FORMAT_GGUF, .dtype = GR_DTYPE_F32, .overwrite = true};
        assert_ok(gr_merge(PARTS(m, t), &hf, at("arch-hf"), NULL, &err));
        assert_ok(gr_merge(PARTS(m, t), &gguf, at("arch.gguf"), NULL, &err));
        back = open_model(at("arch-hf"));
        assert_true(gr_weights_hash(back->weights) == hash && back->config.arch == m->config.arch);
        gr_model_free(back);
        back = open_model(at("arch.gguf"));
        assert_true(gr_weights_hash(back->weights) == hash);
        assert_true(back->config.arch == m->config.arch);
        assert_ok(
            gr_merge(PARTS(back, t), &hf, at("arch-hf-again"), NULL, &err)); /* config.json from nothing but the GGUF's keys */
        gr_model_free(back);
        back = open_model(at("arch-hf-again"));
        assert_true(gr_weights_hash(back->weights) == hash && back->config.arch == m->config.arch);
        assert_true(back->config.window == m->config.window && back->config.rope_local == m->config.rope_local);
        assert_memory_equal(back->config.slides, m->config.slides, sizeof m->config.slides);
        gr_model_free(back);
        assert_ok(gr_adapter_load(&a, adapter, m, false, &err));
        assert_ok(gr_adapter_attach(a, m, 1, &err));
        double scale = 1;
        gr_merge_parts parts = {.model = m, .tokenizer = t, .adapters = &a, .scales = &scale, .n_adapters = 1};
        assert_ok(gr_merge(&parts, &hf, at("arch-hf"), &report, &err));
        assert_true(report.n_merged == a->n_modules && report.n_changed == 0 && report.relative_error < 1e-5);
        assert_ok(gr_merge(&parts, &gguf, at("arch.gguf"), &report, &err));
        assert_true(report.relative_error < 1e-5);
        hf.dtype = GR_DTYPE_BF16, gguf.dtype = GR_DTYPE_Q8_0;
        assert_ok(gr_merge(&parts, &hf, at("arch-hf"), &report, &err));
        assert_ok(gr_merge(&parts, &gguf, at("arch.gguf"), &report, &err));
        gr_adapter_detach_all(m);
        gr_adapter_free(a);
        gr_tokenizer_free(t);
        gr_model_free(m);
        free(path);
        free(adapter);
    }
}

static void test_merge_refusals(void **state) {
    (void)state;
    gr_tokenizer *t = NULL;
    gr_model *m = open_model(TINY);
    gr_merge_options o = {.format = GR_FORMAT_HF, .dtype = GR_DTYPE_Q8_0};
    assert_ok(gr_tokenizer_open(&t, TINY, &err));
    assert_error(gr_merge(PARTS(m, t), &o, at("r"), NULL, &err), GRAFT_BAD_USAGE, "q8_0");
    o.dtype = GR_DTYPE_F32;
    assert_ok(gr_merge(PARTS(m, t), &o, at("r"), NULL, &err)); /* a conversion changes nothing */
    check_merged(at("r"), m, NULL, NULL, 0, 0);
    assert_error(gr_merge(PARTS(m, t), &o, at("r"), NULL, &err), GRAFT_BAD_USAGE, "exists already");
    o.format = GR_FORMAT_GGUF;
    assert_error(gr_merge(PARTS(m, t), &o, at("r"), NULL, &err), GRAFT_BAD_USAGE, "is a folder");
    assert_error(gr_merge(PARTS(m, t), &o, "/proc/x.gguf", NULL, &err), GRAFT_FAILED, "/proc/x.gguf");
    gr_model *shapes = open_model(TESTS_DIR "/golden/tiny/config.json");
    assert_error(gr_merge(PARTS(shapes, t), &o, at("s.gguf"), NULL, &err), GRAFT_BAD_USAGE, "no weights");
    assert_false(gr_exists(at("s.gguf")));
    gr_model_free(shapes);
    gr_model_free(m);
    gr_tokenizer_free(t);
}

/* method: full: trained values replace the base's by name. */
static void test_merge_trained(void **state) {
    (void)state;
    gr_tokenizer *t = NULL;
    gr_params p = {0};
    gr_weights *merged = NULL;
    gr_merge_report report;
    float row[1024];
    gr_model *m = open_model(QWEN);
    gr_merge_options o = {.format = GR_FORMAT_GGUF, .dtype = GR_DTYPE_F32};
    assert_ok(gr_tokenizer_open(&t, QWEN, &err));
    assert_ok(gr_model_add_params(m, &p, &err));
    assert_ok(gr_params_allocate(&p, machine.device, false, &err));
    assert_ok(gr_model_attach_params(m, &p, true, &err));
    float *values = read_all(&p, GR_PARAMS_VALUE);
    for (int64_t k = 0; k < p.n_floats; k++) values[k] += 0.01f * (float)(k % 5);
    write_all(&p, GR_PARAMS_VALUE, values);
    assert_ok(gr_merge(PARTS(m, t, .trained = &p), &o, at("trained.gguf"), &report, &err));
    assert_int_equal(report.n_merged, p.n_items);
    assert_true(report.max_logit_difference < 1e-4);
    assert_ok(gr_weights_open(&merged, at("trained.gguf"), &err));
    for (int64_t i = 0; i < p.n_items; i++)
        for (int64_t r = 0; r < p.items[i].rows; r++) {
            weight_row(merged, p.items[i].name, r, row);
            assert_memory_equal(row, values + p.items[i].offset + r * p.items[i].cols, (size_t)p.items[i].cols * sizeof *row);
        }
    free(values);
    gr_weights_close(merged);
    gr_model_free(m);
    gr_params_release(&p);
    gr_tokenizer_free(t);
}

static graft_status make_weight(void *context, int64_t i, void *dst, graft_error *e) {
    const gr_weight_entry *entry = (const gr_weight_entry *)context + i;
    float *w = dst;
    (void)e;
    for (int64_t k = 0; k < entry->view.rows * entry->view.cols; k++)
        w[k] = (float)sin((double)(1000 * i + k)) * 0.2f + (strstr(entry->name, "norm") ? 1 : 0);
    return GRAFT_OK;
}

/* A model of any shape as an HF folder. */
static void write_model(const gr_model_config *c, const gr_tokenizer *t, const char *folder) {
    gr_weight_entry *entries = NULL;
    int64_t n;
    char *path = gr_path_join(folder, "model.safetensors");
    assert_ok(gr_weights_list(&entries, &n, c, &err));
    gr_tensor *tensors = gr_calloc(n, sizeof *tensors);
    for (int64_t i = 0; i < n; i++) {
        const gr_weight *w = &entries[i].view;
        tensors[i] = (gr_tensor){.name = entries[i].name, .dtype = GR_DTYPE_F32, .n_dims = entries[i].is_vector ? 1 : 2};
        tensors[i].shape[0] = entries[i].is_vector ? w->cols : w->rows;
        tensors[i].shape[1] = entries[i].is_vector ? 0 : w->cols;
    }
    assert_ok(gr_make_dirs(folder, &err));
    assert_ok(gr_safetensors_write(path, tensors, n, make_weight, entries, &err));
    assert_ok(gr_config_write_hf(c, "float32", NULL, folder, &err));
    assert_ok(gr_tokenizer_save_hf(t, folder, &err));
    free(tensors);
    free(entries);
    free(path);
}

/* What the golden models lack: biases in "llama" (a GGUF interleaves those of q and k, too) and Llama-3's
 * rope_freqs.weight. */
static void test_merge_llama_biases(void **state) {
    (void)state;
    gr_tokenizer *t = NULL;
    gr_merge_report report;
    gr_merge_options o = {.format = GR_FORMAT_GGUF, .dtype = -1};
    gr_model *m = open_model(TINY), *back;
    gr_model_config c = m->config;
    gr_model_free(m);
    c.qkv_bias = c.o_bias = c.mlp_bias = true;
    c.rope_scaling = GR_ROPE_LLAMA3;
    c.rope_factor = 8, c.rope_low_freq = 1, c.rope_high_freq = 4, c.rope_original = 8192, c.rope_theta = 500000;
    assert_ok(gr_tokenizer_open(&t, TINY, &err));
    write_model(&c, t, at("biased"));
    m = open_model(at("biased"));
    assert_ok(gr_merge(PARTS(m, t), &o, at("biased.gguf"), &report, &err));
    check_merged(at("biased.gguf"), m, NULL, NULL, 0, 0);
    assert_true(report.max_logit_difference < 1e-4);
    back = open_model(at("biased.gguf"));
    assert_true(back->config.rope_scaling == GR_ROPE_LLAMA3 && back->config.rope_factor == 8 && back->config.o_bias);
    const gr_gguf *g = gr_weights_gguf(back->weights);
    const float *stored = gr_gguf_find(g, "blk.1.attn_k.bias")->data;
    const float *bias = gr_weights_find(m->weights, "model.layers.1.self_attn.k_proj.bias")->view.data;
    assert_true(stored[1] == bias[c.head_dim / 2] && stored[2] == bias[1]);
    m->config.o_bias = false; /* transformers' llama has biases of q, k, v and o or none */
    o.format = GR_FORMAT_HF;
    assert_error(gr_merge(PARTS(m, t), &o, at("biased-hf"), NULL, &err), GRAFT_BAD_INPUT, "q, k, v: yes; o: no");
    gr_model_free(back);
    gr_model_free(m);
    gr_tokenizer_free(t);
}

static void put_text(const char *path, const char *text) { assert_ok(gr_file_write(path, text, (int64_t)strlen(text), &err)); }

static char *text_of(const char *path) {
    char *text = NULL;
    int64_t len;
    assert_ok(gr_file_read(&text, &len, path, 1 << 20, &err));
    return text;
}

static void assert_holds(const char *path, const char *part) {
    char *text = text_of(path);
    if (!strstr(text, part)) fail_msg("%s: no \"%s\" in %s", path, part, text);
    free(text);
}

/* A mistral with keys, files and licences of its own, as an HF folder. */
static gr_tokenizer *write_mistral(void) {
    gr_tokenizer *t = NULL;
    gr_model *m = open_model(TINY);
    gr_model_config c = m->config;
    gr_model_free(m);
    c.arch = &gr_archs[1];
    c.window = 128, c.max_positions = 512, c.base_vocab = c.vocab - 3;
    assert_ok(gr_tokenizer_open(&t, TINY, &err));
    write_model(&c, t, at("mistral"));
    char *config = text_of(at("mistral/config.json"));
    config[strrchr(config, '}') - config] = '\0';
    char *more = gr_format(
        "%s, \"initializer_factor\": 0.041666666666666664, \"_name_or_path\": \"x/y\", \"auto_map\": {\"A\": \"b.C\"}}", config);
    put_text(at("mistral/config.json"), more);
    free(config);
    free(more);
    put_text(at("mistral/generation_config.json"), "{\"temperature\": 0.6, \"eos_token_id\": [2, 5]}");
    put_text(at("mistral/LICENSE.txt"), "licence");
    put_text(at("mistral/NOTICE"), "notice");
    put_text(at("mistral/README.md"), "readme");
    assert_ok(gr_make_dirs(at("mistral/additional_chat_templates"), &err));
    put_text(at("mistral/additional_chat_templates/rag.jinja"), "rag");
    return t;
}

static graft_status same_data(void *context, int64_t i, void *dst, graft_error *e) {
    const gr_tensor *t = gr_gguf_tensor(context, i);
    (void)e;
    memcpy(dst, t->data, (size_t)t->n_bytes);
    return GRAFT_OK;
}

/* The GGUF once more with a licence and tags in it. */
static void add_licence(const char *from, const char *to) {
    gr_gguf *g = NULL;
    gr_gguf_builder b = {0};
    assert_ok(gr_gguf_open(&g, from, &err));
    for (int64_t i = 0; i < gr_gguf_n_keys(g); i++) gr_gguf_put_copy(&b, g, gr_gguf_key(g, i, NULL));
    gr_gguf_put_string(&b, "general.license", "apache-2.0");
    gr_gguf_put_strings(&b, "general.tags", (const char *const[]){"a", "bc"}, NULL, 2);
    gr_gguf_put_string(&b, "general.quantized_by", "somebody");
    gr_gguf_put_u32(&b, "tokenizer.ggml.eom_token_id", 7);
    gr_gguf_put_string(&b, "tokenizer.chat_template.rag", "rag");
    gr_tensor *list = gr_calloc(gr_gguf_n_tensors(g), sizeof *list);
    for (int64_t i = 0; i < gr_gguf_n_tensors(g); i++) list[i] = *gr_gguf_tensor(g, i);
    assert_ok(gr_gguf_write(to, &b, list, gr_gguf_n_tensors(g), same_data, g, &err));
    free(list);
    gr_gguf_builder_release(&b);
    gr_gguf_close(g);
}

static void merge_plain(const char *from, const gr_tokenizer *t, gr_model_format format, const char *to) {
    gr_merge_options o = {.format = format, .dtype = -1};
    gr_model *m = open_model(from);
    assert_ok(gr_merge(PARTS(m, t), &o, to, NULL, &err));
    gr_model_free(m);
}

/* A merged model carries what its base says of itself. */
static void test_what_goes_along(void **state) {
    (void)state;
    gr_tokenizer *t = write_mistral();
    merge_plain(at("mistral"), t, GR_FORMAT_HF, at("kept"));
    static const char *const kept[] = {"\"MistralForCausalLM\"",           "\"model_type\": \"mistral\"", "\"sliding_window\": 128",
                                       "\"max_position_embeddings\": 512", "\"_name_or_path\": \"x/y\"",  "0.04166666666666666"};
    for (int i = 0; i < GR_LEN(kept); i++) assert_holds(at("kept/config.json"), kept[i]);
    char *config = text_of(at("kept/config.json"));
    assert_null(strstr(config, "auto_map")); /* Python files that are not there */
    free(config);
    assert_holds(at("kept/generation_config.json"), "{\"temperature\": 0.6, \"eos_token_id\": [2, 5]}");
    assert_holds(at("kept/LICENSE.txt"), "licence");
    assert_holds(at("kept/NOTICE"), "notice");
    assert_holds(at("kept/additional_chat_templates/rag.jinja"), "rag");
    assert_false(gr_exists(at("kept/README.md")));
    merge_plain(at("mistral"), t, GR_FORMAT_GGUF, at("mistral.gguf"));
    add_licence(at("mistral.gguf"), at("licensed.gguf"));
    merge_plain(at("licensed.gguf"), t, GR_FORMAT_GGUF, at("again.gguf"));
    gr_gguf *g = NULL;
    const char *text, *arch;
    int64_t n, window, first_new;
    assert_ok(gr_gguf_open(&g, at("again.gguf"), &err));
    assert_ok(gr_gguf_get_string(g, "general.license", &text, NULL, &err));
    assert_string_equal(text, "apache-2.0");
    assert_ok(gr_gguf_array_string(g, "general.tags", 1, &text, &n, &err));
    assert_true(n == 2 && memcmp(text, "bc", 2) == 0);
    assert_false(gr_gguf_has(g, "general.quantized_by")); /* of the file, not of the model */
    assert_true(gr_gguf_has(g, "tokenizer.ggml.eom_token_id") && gr_gguf_has(g, "tokenizer.chat_template.rag"));
    assert_ok(gr_gguf_get_string(g, "general.architecture", &arch, NULL, &err));
    assert_string_equal(arch, "llama");
    assert_ok(gr_gguf_get_int(g, "llama.attention.sliding_window", &window, &err));
    assert_int_equal(window, 128);
    assert_ok(gr_gguf_get_int(g, "graft.base_vocab_size", &first_new, &err));
    gr_gguf_close(g);
    merge_plain(at("again.gguf"), t, GR_FORMAT_HF, at("back")); /* a mistral again */
    assert_holds(at("back/generation_config.json"), "7");       /* ends an answer, as in llama.cpp */
    assert_holds(at("back/config.json"), "\"model_type\": \"mistral\"");
    assert_holds(at("back/config.json"), "\"sliding_window\": 128");
    gr_model *back = open_model(at("back")), *kept_model = open_model(at("kept")), *plain = open_model(TINY);
    assert_int_equal(back->config.base_vocab, back->config.vocab - 3); /* through every writer */
    assert_int_equal(kept_model->config.base_vocab, back->config.base_vocab);
    assert_int_equal(first_new, back->config.base_vocab);
    assert_int_equal(plain->config.base_vocab, 0);
    gr_model_free(back);
    gr_model_free(kept_model);
    gr_model_free(plain);
    gr_tokenizer_free(t);
}

/* The types that llama.cpp's quantiser chooses: more bits for the logits, and for attn_v and ffn_down of some layers. */
static void check_types(const char *path, gr_dtype dtype, int64_t file_type, bool tied) {
    gr_gguf *g = NULL;
    int64_t found;
    assert_ok(gr_gguf_open(&g, path, &err));
    assert_ok(gr_gguf_get_int(g, "general.file_type", &found, &err));
    assert_int_equal(found, file_type);
    for (int64_t i = 0; i < gr_gguf_n_tensors(g); i++) {
        const gr_tensor *t = gr_gguf_tensor(g, i);
        long long layer = -1;
        sscanf(t->name, "blk.%lld.", &layer);
        bool more = layer == 0 || layer == 3 || layer == 6 || layer == 7; /* of 8: the ends and every third between */
        gr_dtype expected = dtype;
        if (t->n_dims == 1) expected = GR_DTYPE_F32;
        else if (gr_ends_with(t->name, "attn_output.weight")) /* rows of 96 */
            expected = dtype == GR_DTYPE_Q4_K ? GR_DTYPE_Q5_0 : dtype == GR_DTYPE_Q5_K ? GR_DTYPE_Q5_1 : GR_DTYPE_Q8_0;
        else if (strcmp(t->name, "output.weight") == 0 || (tied && strcmp(t->name, "token_embd.weight") == 0))
            expected = GR_DTYPE_Q6_K;
        else if ((gr_ends_with(t->name, "attn_v.weight") || gr_ends_with(t->name, "ffn_down.weight")) && more)
            expected = GR_DTYPE_Q6_K;
        if (t->dtype != expected) fail_msg("%s: %s is %s", path, t->name, gr_dtype_get(t->dtype)->name);
    }
    gr_gguf_close(g);
}

static void test_mixtures(void **state) {
    static const struct {
        gr_dtype dtype;
        int64_t file_type;
        const char *name;
    } cases[] = {{GR_DTYPE_Q4_K, 15, "q4_k_m"}, {GR_DTYPE_Q5_K, 17, "Q5_K_M"}, {GR_DTYPE_Q6_K, 18, "q6_k"}};
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        gr_tokenizer *t = NULL;
        gr_model *m = open_model(TINY);
        gr_model_config c = m->config;
        gr_model_free(m);
        c.hidden = c.ffn = 256, c.n_heads = 3, c.n_kv_heads = 1, c.head_dim = 32, c.n_layers = 8, c.tied = tied;
        assert_ok(gr_tokenizer_open(&t, TINY, &err));
        write_model(&c, t, at(tied ? "wide-tied" : "wide"));
        m = open_model(at(tied ? "wide-tied" : "wide"));
        for (int i = 0; i < GR_LEN(cases); i++) {
            gr_merge_options o = {.format = GR_FORMAT_GGUF, .overwrite = true};
            gr_merge_report report;
            assert_ok(gr_written_type(&o.dtype, cases[i].name, &err));
            assert_int_equal(o.dtype, cases[i].dtype);
            assert_ok(gr_merge(PARTS(m, t), &o, at("wide.gguf"), &report, &err));
            check_types(at("wide.gguf"), cases[i].dtype, cases[i].file_type, tied);
        }
        gr_model_free(m);
        gr_tokenizer_free(t);
    }
}

/* What reads back as another model fails, whatever the rounding: here the files hold weights that the model does not compute
 * with. */
static void test_wrong_read_back(void **state) {
    static const gr_dtype types[] = {GR_DTYPE_F32,  GR_DTYPE_F16,  GR_DTYPE_BF16, GR_DTYPE_Q8_0,
                                     GR_DTYPE_Q6_K, GR_DTYPE_Q5_K, GR_DTYPE_Q4_K};
    (void)state;
    gr_tokenizer *t = NULL;
    gr_params p = {0};
    gr_model *m = open_model(QWEN), *other = open_model(QWEN);
    assert_ok(gr_tokenizer_open(&t, QWEN, &err));
    assert_ok(gr_model_add_params(other, &p, &err));
    assert_ok(gr_params_allocate(&p, machine.device, false, &err));
    assert_ok(gr_model_attach_params(other, &p, true, &err));
    int64_t head = gr_params_find(&p, "lm_head.weight");
    float *values = gr_calloc(p.items[head].n, sizeof *values);
    gr_params_read(&p, GR_PARAMS_VALUE, head, values);
    for (int64_t k = 0; k < p.items[head].n; k++) values[k] *= -1;
    gr_params_write(&p, GR_PARAMS_VALUE, head, values);
    free(values);
    for (int i = 0; i < GR_LEN(types); i++) {
        gr_merge_options o = {.format = GR_FORMAT_GGUF, .dtype = (int)types[i]};
        assert_error(gr_merge(PARTS(m, t, .trained = &p), &o, at("wrong.gguf"), NULL, &err), GRAFT_FAILED,
                     "what was written is wrong");
        assert_false(gr_exists(at("wrong.gguf")));
    }
    gr_model_free(other);
    gr_model_free(m);
    gr_params_release(&p);
    gr_tokenizer_free(t);
}

static const gr_weight_entry *listed;

/* A source of what a model's files hold. */
static graft_status base_rows(void *context, int64_t i, int64_t first, int64_t count, const float **rows, graft_error *e) {
    static float values[GR_SOURCE_ROWS * 1024];
    const gr_model *m = context;
    const gr_weight *w = &gr_weights_find(m->weights, listed[i].name)->view;
    (void)e;
    gr_dtype_get(w->dtype)->to_f32(values, (const char *)w->data + first * gr_dtype_bytes(w->dtype, w->cols), count * w->cols);
    *rows = values;
    return GRAFT_OK;
}

/* Files that are not what the source has: a weight that is missing, rows in another order, another base of RoPE. */
static void test_wrong_files(void **state) {
    static const char *const models[] = {TINY, TINY, QWEN};
    (void)state;
    for (int i = 0; i < GR_LEN(models); i++) {
        gr_tokenizer *t = NULL;
        gr_params p = {0};
        gr_merge_report report = {0};
        gr_model *m = open_model(models[i]), *other = open_model(models[i]);
        gr_merge_options o = {.format = GR_FORMAT_GGUF, .dtype = GR_DTYPE_Q4_K, .overwrite = true};
        assert_ok(gr_tokenizer_open(&t, models[i], &err));
        assert_ok(gr_model_add_params(other, &p, &err));
        assert_ok(gr_params_allocate(&p, machine.device, false, &err));
        assert_ok(gr_model_attach_params(other, &p, true, &err));
        int64_t item = gr_params_find(&p, "model.layers.1.self_attn.q_proj.weight");
        const gr_param *q = &p.items[item];
        const float *kept = values_of(&p, item);
        float *w = gr_calloc(q->n, sizeof *w);
        memcpy(w, kept, (size_t)q->n * sizeof *w);
        for (int64_t r = 0; i == 1 && r < q->rows; r++)
            memcpy(w + r * q->cols, kept + gr_gguf_row(r, m->config.n_heads, q->rows) * q->cols, (size_t)q->cols * sizeof *w);
        if (i == 0) memset(w, 0, (size_t)q->n * sizeof *w);
        gr_params_write(&p, GR_PARAMS_VALUE, item, w);
        if (i == 2) other->config.rope_theta *= 2;
        assert_ok(gr_merge(PARTS(other, t, .trained = &p), &o, at("other.gguf"), NULL, &err));
        gr_export x = {.source = {.rows = base_rows, .context = m}, .config = &m->config, .tokenizer = t, .dtype = GR_DTYPE_Q4_K};
        gr_weight_entry *entries = NULL;
        assert_ok(gr_weights_list(&entries, &x.source.n, &m->config, &err));
        x.source.entries = entries;
        listed = entries;
        assert_error(gr_merge_probe(&x, m, at("other.gguf"), &report, &err), GRAFT_FAILED,
                     i == 2 ? "another configuration" : "layers.1.self_attn.q_proj.weight");
        free(entries), free(w);
        gr_model_free(other);
        gr_model_free(m);
        gr_params_release(&p);
        gr_tokenizer_free(t);
    }
}

static void test_names(void **state) {
    gr_model_format f;
    int dtype;
    (void)state;
    assert_ok(gr_format_of(&f, "a/b.gguf", NULL, "hf", &err));
    assert_int_equal(f, GR_FORMAT_GGUF);
    assert_ok(gr_format_of(&f, "a/b", NULL, "peft", &err));
    assert_int_equal(f, GR_FORMAT_HF);
    assert_ok(gr_format_of(&f, "a/b", "gguf", "peft", &err));
    assert_int_equal(f, GR_FORMAT_GGUF);
    assert_error(gr_format_of(&f, "a/b.gguf", "peft", "peft", &err), GRAFT_BAD_USAGE, "the name of a GGUF");
    assert_error(gr_format_of(&f, dir, "gguf", "hf", &err), GRAFT_BAD_USAGE, "is a folder");
    assert_error(gr_format_of(&f, "a", "zip", "hf", &err), GRAFT_BAD_USAGE, "expected hf or gguf, found \"zip\"");
    assert_ok(gr_written_type(&dtype, NULL, &err));
    assert_int_equal(dtype, -1);
    assert_error(gr_written_type(&dtype, "q4_1", &err), GRAFT_BAD_USAGE, "q4_k_m");
    assert_error(gr_written_type(&dtype, "nf4", &err), GRAFT_BAD_USAGE, "q4_k_m");
}

/* ---- GGUF LoRA ---- */

/* What llama.cpp computes from the file, alpha / rank * B A with rows of q and k interleaved, is the
 * adapter's own change. */
static void check_gguf_lora(gr_model *m, const gr_adapter *a, const char *path) {
    gr_gguf *g = NULL;
    double alpha;
    assert_ok(gr_gguf_open(&g, path, &err));
    assert_ok(gr_gguf_get_float(g, "adapter.lora.alpha", &alpha, &err));
    assert_int_equal(gr_gguf_n_tensors(g), 2 * a->n_modules);
    for (int64_t j = 0; j < a->n_modules; j++) {
        const gr_adapter_module *module = &a->modules[j];
        char name[128];
        snprintf(name, sizeof name, "%s.weight", module->name);
        const gr_weight_entry *e = gr_weights_find(m->weights, name);
        snprintf(name, sizeof name, "%s.lora_a", e->gguf_name);
        const gr_tensor *ta = gr_gguf_find(g, name);
        snprintf(name, sizeof name, "%s.lora_b", e->gguf_name);
        const gr_tensor *tb = gr_gguf_find(g, name);
        assert_true(ta && tb && ta->dtype == GR_DTYPE_F32 && tb->dtype == GR_DTYPE_F32);
        bool embedding = module->index == 0;
        int64_t R = module->rank;
        assert_int_equal(tb->shape[0], module->out);
        assert_int_equal(tb->shape[1], R);
        assert_int_equal(ta->shape[embedding], R);
        assert_int_equal(ta->shape[!embedding], module->in);
        const float *A = values_of(a->params, module->a), *B = values_of(a->params, module->b), *fb = tb->data;
        assert_memory_equal(ta->data, A, (size_t)ta->n_bytes);
        for (int64_t n = 0; n < module->out; n++)
            for (int64_t r = 0; r < R; r++) {
                int64_t row = e->permute_heads ? gr_gguf_row(n, e->permute_heads, module->out) : n;
                double loader = alpha / (double)R * fb[row * R + r], ours = gr_adapter_scale(a, module) * B[n * R + r];
                assert_true(fabs(loader - ours) <= 1e-6 * fmax(fabs(ours), 1e-2));
            }
    }
    gr_gguf_close(g);
}

static void test_gguf_lora(void **state) {
    static const char *const models[] = {TINY, QWEN};
    (void)state;
    for (int i = 0; i < GR_LEN(models); i++) {
        gr_adapter *a = NULL;
        gr_model *m = open_model(models[i]);
        if (m->config.tied) {
            assert_ok(plan(&a, m, patterned, TARGETS("lm_head")));
            fill(a, 1);
            assert_error(gr_adapter_export_gguf(a, m, at("x.gguf"), &err), GRAFT_BAD_USAGE, "cannot adapt lm_head");
            gr_adapter_free(a);
            assert_ok(plan(&a, m, patterned, TARGETS("embed_tokens")));
            fill(a, 1);
            assert_error(gr_adapter_export_gguf(a, m, at("x.gguf"), &err), GRAFT_BAD_USAGE, "cannot adapt model.embed_tokens");
            gr_adapter_free(a);
            assert_ok(plan(&a, m, patterned, TARGETS("all-linear")));
        } else {
            assert_ok(plan(&a, m, patterned, TARGETS("all-linear", "lm_head", "embed_tokens")));
        }
        fill(a, 5);
        assert_ok(gr_adapter_export_gguf(a, m, at("lora.gguf"), &err));
        check_gguf_lora(m, a, at("lora.gguf"));
        gr_adapter_free(a);
        gr_model_free(m);
    }
}

/* ---- head and embedding of a tied model ---- */

enum { BATCH_TOKENS = 40 };

static gr_batch made_batch(int64_t vocab) {
    gr_batch b = {0};
    for (uint64_t s = 0; s < 2; s++) {
        int32_t ids[BATCH_TOKENS / 2];
        uint8_t trained[BATCH_TOKENS / 2];
        for (uint64_t i = 0; i < BATCH_TOKENS / 2; i++) {
            ids[i] = (int32_t)(gr_random_u32(5, 0, s, i) % (uint32_t)vocab);
            trained[i] = i > 0;
        }
        assert_ok(gr_batch_append(&b, ids, trained, BATCH_TOKENS / 2, s, &err));
    }
    return b;
}

static double mean_loss(gr_model *m, const gr_batch *b) {
    float nll[BATCH_TOKENS];
    double sum = 0;
    gr_decoder *d = NULL;
    assert_ok(gr_decoder_new(&d, m, &(gr_decoder_options){.max_tokens = b->n}, &err));
    assert_ok(gr_decoder_eval(d, b, nll, &err));
    for (int64_t i = 0; i < b->n; i++) sum += (double)nll[i];
    gr_decoder_free(d);
    return sum / (double)b->n_targets;
}

/* Along its own gradient each matrix changes the loss by the gradient's norm. */
static void check_gradients(gr_adapter *a, gr_model *m, const gr_batch *b) {
    float nll[BATCH_TOKENS];
    const double step = 0.02;
    gr_decoder *d = NULL;
    assert_ok(gr_decoder_new(&d, m, &(gr_decoder_options){.max_tokens = b->n, .training = true}, &err));
    assert_ok(gr_decoder_train(d, b, &(gr_loss){.scale = 1 / (float)b->n_targets, .nll = nll}, &err));
    gr_decoder_free(d);
    for (int64_t p = 0; p < a->params->n_items; p++) {
        int64_t n = a->params->items[p].n;
        const float *kept = values_of(a->params, p);
        float *value = gr_calloc(n, sizeof *value), *grad = gr_calloc(n, sizeof *grad);
        double norm = 0, loss[2];
        gr_params_read(a->params, GR_PARAMS_GRAD, p, grad);
        for (int64_t k = 0; k < n; k++) norm += (double)grad[k] * (double)grad[k];
        norm = sqrt(norm);
        assert_true(norm > 0);
        for (int side = 0; side < 2; side++) {
            for (int64_t k = 0; k < n; k++) value[k] = (float)((double)kept[k] + (side ? -step : step) * (double)grad[k] / norm);
            gr_params_write(a->params, GR_PARAMS_VALUE, p, value);
            gr_model_renew(m);
            loss[side] = mean_loss(m, b);
        }
        gr_params_write(a->params, GR_PARAMS_VALUE, p, kept);
        gr_model_renew(m);
        free(value), free(grad);
        double slope = (loss[0] - loss[1]) / (2 * step);
        if (fabs(slope - norm) > 0.01 * norm + 1e-4)
            fail_msg("%s: slope %g, norm of the gradient %g", a->params->items[p].name, slope, norm);
    }
}

static void test_tied_head_and_embedding(void **state) {
    static const char *const targets[][2] = {{"lm_head", "embed_tokens"}, {"lm_head"}, {"embed_tokens"}};
    static const char *const outs[] = {"untied", "untied.gguf"};
    const double one = 1;
    (void)state;
    for (int i = 0; i < GR_LEN(targets); i++) {
        gr_adapter *a = NULL;
        gr_tokenizer *t = NULL;
        gr_model *m = open_model(TINY);
        gr_batch b = made_batch(m->config.vocab);
        double base = mean_loss(m, &b);
        assert_true(m->config.tied);
        assert_ok(gr_tokenizer_open(&t, TINY, &err));
        assert_ok(plan(&a, m, (gr_adapter_config){0}, i == 0 ? 2 : 1, targets[i]));
        init(a, true, 4);
        float *values = read_all(a->params, GR_PARAMS_VALUE);
        for (int64_t k = 0; k < a->params->n_floats; k++) values[k] = (float)sin((double)k) * 0.1f;
        write_all(a->params, GR_PARAMS_VALUE, values);
        free(values);
        assert_ok(gr_adapter_attach(a, m, one, &err));
        double adapted = mean_loss(m, &b);
        assert_true(fabs(adapted - base) > 1e-4);
        check_gradients(a, m, &b);
        for (int format = 0; format < 2; format++) {
            gr_merge_options o = {.format = format ? GR_FORMAT_GGUF : GR_FORMAT_HF, .overwrite = true};
            gr_merge_report report;
            assert_ok(gr_merge(PARTS(m, t, .adapters = &a, .scales = &one, .n_adapters = 1), &o, at(outs[format]), &report, &err));
            gr_model *merged = open_model(at(outs[format]));
            assert_false(merged->config.tied);
            assert_true(report.max_logit_difference < 1e-4 && fabs(mean_loss(merged, &b) - adapted) < 1e-5);
            gr_model_free(merged);
        }
        gr_adapter_detach_all(m);
        gr_adapter_free(a);
        gr_batch_release(&b);
        gr_tokenizer_free(t);
        gr_model_free(m);
    }
}

/* ---- inspection ---- */

static void test_inspect(void **state) {
    const struct {
        const char *path, *kind;
    } cases[] = {
        {TINY, "Hugging Face model"},
        {TESTS_DIR "/golden/tiny/config.json", "model configuration (shapes only)"},
        {TESTS_DIR "/golden/tiny/adapter", "PEFT adapter"},
        {TESTS_DIR "/golden/tiny/model.safetensors", "safetensors"},
        {at("lora.gguf"), "GGUF LoRA"},
        {at("trained.gguf"), "GGUF model"},
        {at("m-own"), "Hugging Face model"},
    };
    (void)state;
    for (int i = 0; i < GR_LEN(cases); i++)
        for (int json = 0; json < 2; json++) {
            char *text = NULL;
            size_t len;
            FILE *out = open_memstream(&text, &len);
            assert_ok(gr_inspect(cases[i].path, json, out, &err));
            fclose(out);
            assert_non_null(strstr(text, cases[i].kind));
            json_t *root = json ? json_loads(text, 0, NULL) : NULL;
            assert_true(!json || json_is_array(json_object_get(root, "tensors")));
            json_decref(root);
            free(text);
        }
    assert_ok(gr_make_dirs(at("empty"), &err));
    assert_error(gr_inspect(at("empty"), false, stderr, &err), GRAFT_BAD_INPUT, "nothing graft knows");
    assert_error(gr_inspect(at("missing"), false, stderr, &err), GRAFT_BAD_INPUT, "missing");
    assert_ok(gr_file_write(at("noise"), "noise", 5, &err));
    assert_error(gr_inspect(at("noise"), false, stderr, &err), GRAFT_BAD_INPUT, "neither GGUF");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_architectures),
        cmocka_unit_test(test_merge_refusals),
        cmocka_unit_test(test_merge_trained),
        cmocka_unit_test(test_merge_llama_biases),
        cmocka_unit_test(test_what_goes_along),
        cmocka_unit_test(test_gguf_lora),
        cmocka_unit_test(test_tied_head_and_embedding),
        cmocka_unit_test(test_inspect),
        cmocka_unit_test(test_mixtures),
        cmocka_unit_test(test_wrong_read_back),
        cmocka_unit_test(test_wrong_files),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests_name("merge", tests, set_up, tear_down);
}
