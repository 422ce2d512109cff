/* Random weights of a configuration: what they are, that they are the same everywhere, and what is refused. */
#include "tests/unit/adapter_world.h"

#include "adapters/init.h"

static const char TINY_CONFIG[] = TESTS_DIR "/golden/tiny/config.json";
static gr_threads *pool;

static graft_status make(const char *config, const char *tokenizer, gr_model_format format, gr_dtype dtype, uint64_t seed,
                         const char *out, gr_init_report *report) {
    gr_init_options o = {.config = config, .tokenizer = tokenizer, .format = format, .dtype = dtype, .seed = seed};
    return gr_init_model(&o, out, pool, report, &err);
}

/* Mean, deviation and fourth moment of a matrix, as floats. */
static void check_normal(const gr_weight *w, double deviation) {
    int64_t n = w->rows * w->cols;
    const float *x = w->data;
    double mean = 0, square = 0, fourth = 0;
    for (int64_t k = 0; k < n; k++) mean += x[k], square += (double)x[k] * x[k], fourth += pow(x[k], 4);
    mean /= (double)n, square /= (double)n, fourth /= (double)n;
    assert_true(fabs(mean) < 6 * deviation / sqrt((double)n));
    assert_true(fabs(sqrt(square) / deviation - 1) < 6 / sqrt(2 * (double)n));
    assert_true(fabs(fourth / (square * square) - 3) < 6 * sqrt(24 / (double)n)); /* a normal's kurtosis */
}

static void test_values(void **state) {
    (void)state;
    gr_weights *w = NULL, *gguf = NULL, *half = NULL;
    gr_init_report r;
    assert_ok(make(TINY, NULL, GR_FORMAT_HF, GR_DTYPE_F32, 7, at("init-f32"), &r));
    assert_ok(make(TINY_CONFIG, TINY, GR_FORMAT_GGUF, GR_DTYPE_F32, 7, at("init.gguf"), NULL));
    assert_ok(make(TINY, NULL, GR_FORMAT_HF, GR_DTYPE_BF16, 7, at("init-bf16"), NULL));
    assert_ok(gr_weights_open(&w, at("init-f32"), &err));
    assert_ok(gr_weights_open(&gguf, at("init.gguf"), &err));
    assert_ok(gr_weights_open(&half, at("init-bf16"), &err));
    int64_t n = 0;
    for (int64_t i = 0; i < gr_weights_count(w); i++) {
        const gr_weight_entry *e = gr_weights_get(w, i), *same = gr_weights_find(gguf, e->name),
                              *rounded = gr_weights_find(half, e->name);
        int64_t size = e->view.rows * e->view.cols;
        n += size;
        assert_memory_equal(e->view.data, same->view.data, (size_t)size * sizeof(float));
        for (int64_t k = 0; k < size; k++) {
            float x = ((const float *)e->view.data)[k], y;
            gr_dtype_get(GR_DTYPE_BF16)->to_f32(&y, (const uint16_t *)rounded->view.data + k, 1);
            assert_true(fabsf(x - y) <= fabsf(x) / 256);
            if (e->is_vector) assert_true(x == 1);
        }
        if (!e->is_vector && e->slot != GR_SLOT_EMBED) check_normal(&e->view, 0.02);
    }
    assert_int_equal(r.n_parameters, n);
    assert_int_equal(r.n_tensors, gr_weights_count(w));
    gr_weights_close(w);
    gr_weights_close(gguf);
    gr_weights_close(half);
}

/* Biases are 0, a padding token's row too; another seed gives other weights, the same threads or not the same. */
static void test_qwen2(void **state) {
    (void)state;
    gr_weights *a = NULL, *b = NULL;
    gr_threads *one = gr_threads_new(1), *all = pool;
    pool = one;
    assert_ok(make(QWEN, NULL, GR_FORMAT_HF, GR_DTYPE_F32, 1, at("qwen-1"), NULL));
    pool = all;
    assert_ok(make(QWEN, NULL, GR_FORMAT_HF, GR_DTYPE_F32, 1, at("qwen-again"), NULL));
    assert_ok(gr_weights_open(&a, at("qwen-1"), &err));
    assert_ok(gr_weights_open(&b, at("qwen-again"), &err));
    assert_true(gr_weights_hash(a) == gr_weights_hash(b));
    gr_weights_close(b);
    assert_ok(make(QWEN, NULL, GR_FORMAT_HF, GR_DTYPE_F32, 2, at("qwen-2"), NULL));
    assert_ok(gr_weights_open(&b, at("qwen-2"), &err));
    assert_true(gr_weights_hash(a) != gr_weights_hash(b));
    const gr_weight_entry *bias = gr_weights_find(a, "model.layers.0.self_attn.q_proj.bias"), *embed = gr_weights_get(a, 0);
    for (int64_t k = 0; k < bias->view.cols; k++) assert_true(((const float *)bias->view.data)[k] == 0);
    int32_t pad = gr_weights_config(a)->pad;
    for (int64_t k = 0; pad >= 0 && k < embed->view.cols; k++)
        assert_true(((const float *)embed->view.data)[pad * embed->view.cols + k] == 0);
    gr_weights_close(a);
    gr_weights_close(b);
    gr_threads_free(one);
}

static void write_config(const char *name, const char *more) {
    char text[1024];
    int n = snprintf(text, sizeof text,
                     "{\"model_type\": \"llama\", \"hidden_size\": 32, \"num_attention_heads\": 2, \"num_hidden_layers\": 1, "
                     "\"intermediate_size\": 48, \"initializer_range\": 0.5, %s}",
                     more);
    assert_ok(gr_make_dirs(at("shapes"), &err));
    assert_ok(gr_file_write(at(name), text, n, &err));
}

static void test_configuration(void **state) {
    (void)state;
    gr_weights *w = NULL;
    gr_init_report r;
    write_config("shapes/wide.json",
                 "\"vocab_size\": 700, \"graft_base_vocab_size\": 640, \"eos_token_id\": 5, \"tie_word_embeddings\": false");
    assert_ok(make(at("shapes/wide.json"), TINY, GR_FORMAT_HF, GR_DTYPE_F32, 3, at("wide"), &r));
    assert_int_equal(r.vocab, 700);
    assert_true(r.n_pieces > 0 && r.n_pieces < 700 && r.range == 0.5);
    assert_ok(gr_weights_open(&w, at("wide"), &err));
    gr_tokenizer *t = NULL;
    assert_ok(gr_tokenizer_open(&t, at("wide"), &err));
    assert_int_equal(gr_weights_config(w)->eos, gr_tokenizer_get_info(t)->eos); /* not 5 */
    assert_int_equal(gr_weights_config(w)->bos, gr_tokenizer_get_info(t)->bos);
    check_normal(&gr_weights_find(w, "lm_head.weight")->view, 0.5);
    assert_int_equal(gr_weights_config(w)->base_vocab, 0); /* random rows extend nothing */
    gr_tokenizer_free(t);
    gr_weights_close(w);
    write_config("shapes/bare.json", "\"vocab_size\": 64");
    assert_ok(make(at("shapes/bare.json"), NULL, GR_FORMAT_HF, GR_DTYPE_F32, 3, at("bare"), &r)); /* without a tokenizer */
    assert_int_equal(r.n_pieces, 0);
}

static void test_refusals(void **state) {
    (void)state;
    write_config("shapes/narrow.json", "\"vocab_size\": 64");
    assert_error(make(at("shapes/narrow.json"), TINY, GR_FORMAT_HF, GR_DTYPE_F32, 1, at("no"), NULL), GRAFT_BAD_USAGE,
                 "vocab_size");
    assert_error(make(at("shapes/narrow.json"), NULL, GR_FORMAT_GGUF, GR_DTYPE_F32, 1, at("no.gguf"), NULL), GRAFT_BAD_USAGE,
                 "--tokenizer");
    assert_error(make(at("shapes/none.json"), NULL, GR_FORMAT_HF, GR_DTYPE_F32, 1, at("no"), NULL), GRAFT_BAD_INPUT,
                 "no such file");
    assert_error(make(at("init-f32/model.safetensors"), NULL, GR_FORMAT_HF, GR_DTYPE_F32, 1, at("no"), NULL), GRAFT_BAD_USAGE,
                 "config.json");
    write_config("shapes/still.json", "\"vocab_size\": 64, \"initializer_range\": 0");
    assert_error(make(at("shapes/still.json"), NULL, GR_FORMAT_HF, GR_DTYPE_F32, 1, at("no"), NULL), GRAFT_BAD_INPUT, "");
    assert_false(gr_exists(at("no")));
    assert_false(gr_exists(at("no.gguf")));
    assert_error(make(TINY, NULL, GR_FORMAT_HF, GR_DTYPE_F32, 1, at("init-f32"), NULL), GRAFT_BAD_USAGE, "exists");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_values), cmocka_unit_test(test_qwen2),
                                       cmocka_unit_test(test_configuration), cmocka_unit_test(test_refusals)};
    pool = gr_threads_new(3);
    int failed = cmocka_run_group_tests_name("init", tests, set_up, tear_down);
    gr_threads_free(pool);
    return failed;
}
