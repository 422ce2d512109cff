/* Trained rows of tokens against PEFT (tests/golden/rows: made by make_rows.py): adapters that it wrote, with a tied and an untied
 * head, tokens in a range and in any order, alone and beside a LoRA. Their files, merged models, what cannot be. */
#include "tests/unit/adapter_world.h"

#include <jansson.h>

#include "adapters/impl.h"
#include "core/model/decoder.h"

static const char *const cases[] = {"alone-tied", "alone-tied-range", "alone-both", "alone-embedding",
                                    "lora-tied",  "lora-range",       "lora-apart", "lora-head"};

enum { LOGIT_ROWS = 4 };

typedef struct golden {
    const char *name;
    char folder[256], model[256];
    double loss;
    gr_batch batch;
    int32_t rows[LOGIT_ROWS];
    gr_safetensors *tensors;
} golden;

static json_t *read_json(const char *path) {
    json_t *root = json_load_file(path, 0, NULL);
    assert_non_null(root);
    return root;
}

static golden open_golden(const char *name) {
    golden g = {.name = name};
    json_t *all = read_json(TESTS_DIR "/golden/rows/rows.json"), *facts = json_object_get(all, name), *seq;
    char path[300];
    size_t i;
    snprintf(g.folder, sizeof g.folder, "%s/golden/rows/%s", TESTS_DIR, name);
    snprintf(g.model, sizeof g.model, "%s/golden/%s", TESTS_DIR, json_string_value(json_object_get(facts, "model")));
    g.loss = json_number_value(json_object_get(facts, "loss"));
    snprintf(path, sizeof path, "%s/golden.json", g.model);
    json_t *base = read_json(path);
    for (i = 0; i < LOGIT_ROWS; i++)
        g.rows[i] = (int32_t)json_integer_value(json_array_get(json_object_get(base, "logit_rows"), i));
    json_array_foreach(json_object_get(json_object_get(base, "batch"), "sequences"), i, seq) {
        json_t *tokens = json_object_get(seq, "tokens"), *targets = json_object_get(seq, "targets");
        int32_t ids[128];
        uint8_t mask[128];
        size_t n = json_array_size(tokens);
        assert_true(n <= GR_LEN(ids));
        for (size_t k = 0; k < n; k++) {
            ids[k] = (int32_t)json_integer_value(json_array_get(tokens, k));
            mask[k] = json_integer_value(json_array_get(targets, k)) != 0;
        }
        assert_ok(gr_batch_append(&g.batch, ids, mask, (int64_t)n, i, &err));
    }
    assert_ok(gr_safetensors_open(&g.tensors, TESTS_DIR "/golden/rows/rows.safetensors", &err));
    json_decref(base);
    json_decref(all);
    return g;
}

static void close_golden(golden *g) {
    gr_batch_release(&g->batch);
    gr_safetensors_close(g->tensors);
}

static const gr_tensor *tensor_of(const golden *g, const char *part, const char *name) {
    char full[256];
    snprintf(full, sizeof full, "%s.%s%s", g->name, part, name);
    const gr_tensor *t = gr_safetensors_find(g->tensors, full);
    if (!t) fail_msg("no %s", full);
    return t;
}

/* Forward and backward where the model trains, else forward alone; the mean loss. */
static double loss_of(gr_model *m, const golden *g, bool training, gr_recompute recompute) {
    gr_decoder *d;
    float *nll = calloc((size_t)g->batch.n, sizeof *nll);
    double sum = 0;
    gr_decoder_options o = {.max_tokens = g->batch.n, .training = training, .recompute = recompute};
    assert_ok(gr_decoder_new(&d, m, &o, &err));
    gr_loss loss = {.scale = 1.0f / (float)g->batch.n_targets, .nll = nll};
    if (training) assert_ok(gr_decoder_train(d, &g->batch, &loss, &err));
    else assert_ok(gr_decoder_eval(d, &g->batch, nll, &err));
    for (int64_t r = 0; r < g->batch.n; r++) sum += (double)nll[r];
    gr_decoder_free(d);
    free(nll);
    return sum / (double)g->batch.n_targets;
}

static void check_logits(gr_model *m, const golden *g) {
    int64_t V = m->config.vocab;
    const float *want = tensor_of(g, "logits", "")->data;
    float *logits = calloc((size_t)(LOGIT_ROWS * V), sizeof *logits), low = INFINITY, high = -INFINITY, worst = 0;
    gr_decoder *d;
    assert_ok(gr_decoder_new(&d, m, &(gr_decoder_options){.max_tokens = g->batch.n}, &err));
    assert_ok(gr_decoder_logits(d, &g->batch, g->rows, LOGIT_ROWS, logits, &err));
    for (int64_t i = 0; i < LOGIT_ROWS * V; i++) {
        low = fminf(low, want[i]), high = fmaxf(high, want[i]);
        worst = fmaxf(worst, fabsf(logits[i] - want[i]));
    }
    if (worst > 1e-5f * (high - low)) fail_msg("%s: logits differ by %g of their range", g->name, (double)(worst / (high - low)));
    gr_decoder_free(d);
    free(logits);
}

/* The golden gradient of an item, rows ascending by token as ours are. */
static void wanted_gradient(const golden *g, const gr_adapter *a, int64_t item, float *out) {
    const gr_param *p = &a->params->items[item];
    const gr_tensor *t = tensor_of(g, "grad.", p->name);
    gr_peft_config c;
    char path[300];
    assert_int_equal(t->n_elements, p->n);
    memcpy(out, t->data, (size_t)p->n * sizeof *out);
    snprintf(path, sizeof path, "%s/adapter_config.json", g->folder);
    assert_ok(gr_peft_config_read(&c, path, &err));
    for (int i = 0; i < GR_ROWS_COUNT; i++) {
        if (a->config.rows[i].n == 0 || a->rows[i] != item) continue;
        for (int64_t r = 0; r < c.rows[i].n; r++) {
            int64_t to = 0;
            while (a->config.rows[i].ids[to] != c.rows[i].ids[r]) to++;
            memcpy(out + to * p->cols, (const float *)t->data + r * p->cols, (size_t)p->cols * sizeof *out);
        }
    }
    gr_peft_config_release(&c);
}

static void check_gradients(const golden *g, const gr_adapter *a) {
    for (int64_t i = 0; i < a->params->n_items; i++) {
        const gr_param *p = &a->params->items[i];
        float *grad = calloc((size_t)p->n, sizeof *grad), *want = calloc((size_t)p->n, sizeof *want);
        double difference = 0, norm = 0;
        gr_params_read(a->params, GR_PARAMS_GRAD, i, grad);
        wanted_gradient(g, a, i, want);
        for (int64_t k = 0; k < p->n; k++) {
            double d = (double)grad[k] - (double)want[k];
            difference += d * d, norm += (double)want[k] * (double)want[k];
        }
        if (!(sqrt(difference / norm) < 1e-4)) fail_msg("%s: %s: gradient off by %g", g->name, p->name, sqrt(difference / norm));
        free(grad), free(want);
    }
}

static void peft_computes_the_same(void **state) {
    (void)state;
    for (int i = 0; i < GR_LEN(cases); i++)
        for (int recompute = GR_RECOMPUTE_NONE; recompute <= GR_RECOMPUTE_FULL; recompute += 2) {
            golden g = open_golden(cases[i]);
            gr_model *m = open_model(g.model);
            gr_adapter *a;
            double bare = loss_of(m, &g, false, 0);
            assert_ok(gr_adapter_load(&a, g.folder, m, true, &err));
            assert_ok(gr_adapter_attach(a, m, 1, &err));
            check_logits(m, &g);
            double loss = loss_of(m, &g, true, (gr_recompute)recompute);
            if (fabs(loss - g.loss) > 1e-5 * g.loss) fail_msg("%s: loss %.8f, expected %.8f", g.name, loss, g.loss);
            check_gradients(&g, a);
            gr_adapter_detach_all(m);
            assert_true(loss_of(m, &g, false, 0) == bare); /* nothing is left behind */
            gr_adapter_free(a);
            gr_model_free(m);
            close_golden(&g);
        }
}

/* What is written reads back the same, and writing it once more gives the same bytes. */
static void files_come_back(void **state) {
    (void)state;
    for (int i = 0; i < GR_LEN(cases); i++) {
        golden g = open_golden(cases[i]);
        gr_model *m = open_model(g.model);
        gr_adapter *a, *b;
        assert_ok(gr_adapter_load(&a, g.folder, m, false, &err));
        assert_ok(gr_adapter_save(a, at("saved"), true, &err));
        assert_ok(gr_adapter_load(&b, at("saved"), m, false, &err));
        assert_same_values(a->params, b->params, true);
        assert_int_equal(a->config.rows_alone, strncmp(g.name, "alone", 5) == 0);
        assert_int_equal(b->config.rows_alone, a->config.rows_alone);
        assert_int_equal(gr_adapter_n_parameters(a), gr_adapter_n_parameters(b));
        for (int k = 0; k < GR_ROWS_COUNT; k++) assert_int_equal(a->config.rows[k].n, b->config.rows[k].n);
        gr_adapter_free(a), gr_adapter_free(b);
        gr_model_free(m);
        close_golden(&g);
    }
}

/* A merged model is what PEFT computes; a head stays tied. */
static void rows_are_merged(void **state) {
    (void)state;
    for (int i = 0; i < GR_LEN(cases); i++)
        for (int format = GR_FORMAT_HF; format <= GR_FORMAT_GGUF; format++) {
            const char *out = at(format == GR_FORMAT_HF ? "merged" : "merged.gguf");
            golden g = open_golden(cases[i]);
            gr_model *m = open_model(g.model), *merged;
            gr_tokenizer *t;
            gr_adapter *a;
            double one = 1;
            gr_merge_report report;
            assert_ok(gr_tokenizer_open(&t, g.model, &err));
            assert_ok(gr_adapter_load(&a, g.folder, m, false, &err));
            assert_ok(gr_adapter_attach(a, m, 1, &err));
            gr_merge_options o = {.format = (gr_model_format)format, .dtype = GR_DTYPE_F32, .overwrite = true};
            assert_ok(gr_merge(PARTS(m, t, .adapters = &a, .scales = &one, .n_adapters = 1), &o, out, &report, &err));
            merged = open_model(out);
            assert_int_equal(merged->config.tied, m->config.tied);
            double loss = loss_of(merged, &g, false, 0);
            if (fabs(loss - g.loss) > 1e-5 * g.loss) fail_msg("%s: loss %.8f, expected %.8f", g.name, loss, g.loss);
            gr_model_free(merged);
            gr_adapter_detach_all(m);
            gr_adapter_free(a);
            gr_model_free(m);
            gr_tokenizer_free(t);
            close_golden(&g);
        }
}

static gr_adapter *planned(gr_model *m, const int32_t *ids, int64_t n, bool lora) {
    static const char *const q[] = {"q_proj"};
    gr_adapter_config c = {
        .rank = 2, .alpha = 4, .target_modules = q, .n_target_modules = lora, .rows_alone = !lora, .base = "tiny"};
    gr_adapter *a;
    c.rows[GR_ROWS_EMBED] = (gr_ids_list){ids, n};
    assert_ok(gr_adapter_plan(&a, &c, m, NULL, &err));
    assert_ok(gr_params_allocate(a->params, machine.device, true, &err));
    assert_ok(gr_adapter_init(a, 1, &err));
    assert_ok(gr_adapter_init_rows(a, m, &err));
    return a;
}

/* A run begins where the base is: rows are its own, and change nothing yet, whatever type products are made in. */
static void rows_begin_as_the_bases(void **state) {
    static const int32_t ids[] = {2, 7, 8, 104};
    static const gr_dtype types[] = {GR_DTYPE_F32, GR_DTYPE_BF16};
    (void)state;
    for (int i = 0; i < GR_LEN(types); i++) {
        golden g = open_golden("alone-tied");
        gr_model *m;
        assert_ok(gr_model_open(&m, g.model, machine, types[i], 128, &err));
        double bare = loss_of(m, &g, false, 0);
        gr_adapter *a = planned(m, ids, 4, false);
        assert_ok(gr_adapter_attach(a, m, 1, &err));
        assert_true(loss_of(m, &g, false, 0) == bare);
        assert_int_equal(gr_adapter_n_parameters(a), 4 * m->config.hidden);
        gr_adapter_detach_all(m);
        gr_adapter_free(a);
        gr_model_free(m);
        close_golden(&g);
    }
}

/* init_from: of rows alone into rows beside a LoRA, where all of them are trained again. */
static void rows_are_copied(void **state) {
    static const int32_t some[] = {7, 104}, more[] = {2, 7, 104};
    (void)state;
    gr_model *m = open_model(TINY);
    gr_adapter *from = planned(m, some, 2, false), *to = planned(m, more, 3, true), *lora = planned(m, some, 0, true);
    float *rows = calloc((size_t)(3 * m->config.hidden), sizeof *rows),
          *back = calloc((size_t)(3 * m->config.hidden), sizeof *back);
    for (int64_t k = 0; k < 2 * m->config.hidden; k++) rows[k] = (float)k;
    gr_params_write(from->params, GR_PARAMS_VALUE, from->rows[GR_ROWS_EMBED], rows);
    assert_ok(gr_adapter_copy(to, from, &err));
    gr_params_read(to->params, GR_PARAMS_VALUE, to->rows[GR_ROWS_EMBED], back);
    assert_memory_equal(back + m->config.hidden, rows, (size_t)(2 * m->config.hidden) * sizeof *rows);
    assert_ok(gr_adapter_copy(to, lora, &err)); /* the LoRA alone: rows stay */
    assert_error(gr_adapter_copy(from, to, &err), GRAFT_BAD_INPUT, "token 2 is not trained here");
    assert_error(gr_adapter_copy(lora, from, &err), GRAFT_BAD_INPUT, "adapter.trainable_tokens");
    assert_error(gr_adapter_copy(from, lora, &err), GRAFT_BAD_INPUT, "merge it first");
    gr_adapter_free(from), gr_adapter_free(to), gr_adapter_free(lora);
    gr_model_free(m);
    free(rows), free(back);
}

static void what_cannot_be_is_refused(void **state) {
    static const int32_t ids[] = {2, 7}, large[] = {2, 640}, twice[] = {7, 7};
    static const char *const embed[] = {"embed_tokens"}, *const head[] = {"lm_head"};
    (void)state;
    gr_model *m = open_model(TINY);
    gr_adapter *a = planned(m, ids, 2, false), *b = planned(m, ids, 1, true), *c = NULL;
    gr_adapter_config bad = {.rank = 2, .alpha = 4, .target_modules = embed, .n_target_modules = 1, .base = "tiny"};
    bad.rows[GR_ROWS_EMBED] = (gr_ids_list){ids, 2};
    assert_error(gr_adapter_plan(&c, &bad, m, NULL, &err), GRAFT_BAD_USAGE, "model.embed_tokens, of which rows");
    bad.target_modules = head;
    assert_error(gr_adapter_plan(&c, &bad, m, NULL, &err), GRAFT_BAD_USAGE, "lm_head, of which rows");
    bad.rows_alone = true, bad.n_target_modules = 0, bad.rows[GR_ROWS_EMBED].ids = large;
    assert_error(gr_adapter_plan(&c, &bad, m, NULL, &err), GRAFT_BAD_USAGE, "rows 0 to 639");
    bad.rows[GR_ROWS_EMBED].ids = twice;
    assert_error(gr_adapter_plan(&c, &bad, m, NULL, &err), GRAFT_BAD_USAGE, "token 7 is named twice");
    assert_error(gr_adapter_attach(a, m, 0.5, &err), GRAFT_BAD_USAGE, "no scale");
    assert_ok(gr_adapter_attach(a, m, 1, &err));
    assert_error(gr_adapter_attach(b, m, 1, &err), GRAFT_BAD_USAGE, "merge one first");
    assert_error(gr_adapter_export_gguf(b, m, at("rows.gguf"), &err), GRAFT_BAD_USAGE, "cannot hold trained rows");
    gr_adapter_detach_all(m);
    gr_adapter_free(a), gr_adapter_free(b);
    gr_model_free(m);
}

/* A PEFT folder with another configuration beside the tensors of a case. */
static void check_config(const char *name, const char *config, const char *part) {
    golden g = open_golden(name);
    gr_model *m = open_model(g.model);
    gr_adapter *a = NULL;
    char from[300];
    snprintf(from, sizeof from, "%s/adapter_model.safetensors", g.folder);
    assert_ok(gr_make_dirs(at("hostile"), &err));
    assert_ok(gr_file_copy(from, at("hostile/adapter_model.safetensors"), &err));
    assert_ok(gr_file_write(at("hostile/adapter_config.json"), config, (int64_t)strlen(config), &err));
    assert_error(gr_adapter_load(&a, at("hostile"), m, false, &err), GRAFT_BAD_INPUT, part);
    gr_model_free(m);
    close_golden(&g);
}

#define ALONE "{\"peft_type\": \"TRAINABLE_TOKENS\", \"base_model_name_or_path\": \"x\", "
#define LORA  "{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 4, \"target_modules\": [\"q_proj\", \"down_proj\"], "

static void hostile_files_are_refused(void **state) {
    static const struct {
        const char *name, *config, *part;
    } files[] = {
        {"alone-tied", ALONE "\"token_indices\": []}", "expected a list of token ids"},
        {"alone-tied", ALONE "\"token_indices\": 3}", "expected a list of token ids"},
        {"alone-tied", ALONE "\"token_indices\": [1, 2, 3, 4, 5, -6]}", "token_indices[5]"},
        {"alone-tied", ALONE "\"token_indices\": [1, 2, 3, 4, 5, 5]}", "token 5 is named twice"},
        {"alone-tied", ALONE "\"token_indices\": [1, 2, 3, 4, 5, 640]}", "rows 0 to 639"},
        {"alone-tied", ALONE "\"token_indices\": [1, 2, 3]}", "expected 3 x 64"},
        {"alone-tied", ALONE "\"target_modules\": [\"q_proj\"], \"token_indices\": [1]}", "expected embed_tokens or lm_head"},
        {"alone-both", ALONE "\"target_modules\": [\"embed_tokens\"], \"token_indices\": [1, 2, 3, 4, 5, 6]}", "names no tokens"},
        {"alone-embedding", ALONE "\"target_modules\": [\"embed_tokens\", \"lm_head\"], \"token_indices\": [1, 2, 3, 4, 5, 6]}",
         "saved in part"},
        {"lora-tied", LORA "\"trainable_token_indices\": null}", "names no tokens"},
        {"lora-tied", LORA "\"trainable_token_indices\": {\"q_proj\": [1]}}", "expected embed_tokens or lm_head"},
        {"lora-tied", LORA "\"trainable_token_indices\": {\"embed_tokens\": [1, 2, 3, 4, 5, 6], \"lm_head\": [1]}}",
         "rows of other tokens"},
    };
    (void)state;
    for (int i = 0; i < GR_LEN(files); i++) check_config(files[i].name, files[i].config, files[i].part);
}

enum { TIED = 6 }; /* tokens of the case lora-tied */

typedef struct two_lists {
    const gr_tensor *tensors;
    const gr_tensor *embed;
    const int *order; /* row k of the head is this row of the embedding */
} two_lists;

static graft_status produce(void *context, int64_t i, void *dst, graft_error *e) {
    const two_lists *x = context;
    const gr_tensor *t = &x->tensors[i];
    size_t row = t->n_bytes / TIED;
    (void)e;
    if (t->data) memcpy(dst, t->data, t->n_bytes);
    else
        for (int k = 0; k < TIED; k++)
            memcpy((char *)dst + (size_t)k * row, (const char *)x->embed->data + (size_t)x->order[k] * row, row);
    return GRAFT_OK;
}

/* A tied head whose tokens stand in another order than the embedding's, in the configuration as in the tensor: the same rows. */
static void tied_lists_are_sets(void **state) {
    static const char name[] = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
                      head_name[] = "base_model.model.lm_head.token_adapter.trainable_tokens_delta",
                      format[] = LORA "\"trainable_token_indices\": {\"embed_tokens\": [104, 2, 7, 8, 63, 300], \"lm_head\": %s}}";
    static const struct {
        const char *list;
        int order[TIED];
        const char *message; /* NULL: good */
    } ways[] = {
        {"[104, 2, 7, 8, 63, 300]", {0, 1, 2, 3, 4, 5}, NULL},
        {"[300, 63, 8, 7, 2, 104]", {5, 4, 3, 2, 1, 0}, NULL},
        {"[2, 104, 7, 8, 63, 300]", {1, 0, 2, 3, 4, 5}, NULL},
        {"[2, 104, 7, 8, 63, 300]", {0, 1, 2, 3, 4, 5}, "differ"},
        {"[104, 2, 7, 8, 63, 301]", {0, 1, 2, 3, 4, 5}, "rows of other tokens"},
    };
    (void)state;
    golden g = open_golden("lora-tied");
    gr_model *m = open_model(g.model);
    gr_safetensors *s;
    gr_adapter *a, *b;
    gr_tensor tensors[64];
    assert_ok(gr_safetensors_open(&s, g.folder, &err));
    int64_t n = gr_safetensors_count(s);
    assert_true(n < GR_LEN(tensors));
    for (int64_t i = 0; i < n; i++) tensors[i] = *gr_safetensors_get(s, i);
    const gr_tensor *embed = gr_safetensors_find(s, name);
    assert_non_null(embed);
    tensors[n] = *embed, tensors[n].name = head_name, tensors[n].data = NULL;
    assert_ok(gr_adapter_load(&a, g.folder, m, false, &err));
    int64_t of_rows = a->params->items[a->rows[GR_ROWS_EMBED]].n;
    float *x = calloc((size_t)of_rows, sizeof *x), *y = calloc((size_t)of_rows, sizeof *y);
    gr_params_read(a->params, GR_PARAMS_VALUE, a->rows[GR_ROWS_EMBED], x);
    assert_ok(gr_make_dirs(at("sets"), &err));
    for (int i = 0; i < GR_LEN(ways); i++) {
        char *config = gr_format(format, ways[i].list);
        assert_ok(gr_file_write(at("sets/adapter_config.json"), config, (int64_t)strlen(config), &err));
        free(config);
        two_lists write = {tensors, embed, ways[i].order};
        assert_ok(gr_safetensors_write(at("sets/adapter_model.safetensors"), tensors, n + 1, produce, &write, &err));
        if (ways[i].message) {
            assert_error(gr_adapter_load(&b, at("sets"), m, false, &err), GRAFT_BAD_INPUT, ways[i].message);
            continue;
        }
        assert_ok(gr_adapter_load(&b, at("sets"), m, false, &err));
        gr_params_read(b->params, GR_PARAMS_VALUE, b->rows[GR_ROWS_EMBED], y);
        assert_memory_equal(x, y, (size_t)of_rows * sizeof *x);
        gr_adapter_free(b);
    }
    free(x), free(y);
    gr_adapter_free(a);
    gr_safetensors_close(s);
    gr_model_free(m);
    close_golden(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(peft_computes_the_same),    cmocka_unit_test(files_come_back),
        cmocka_unit_test(rows_are_merged),           cmocka_unit_test(rows_begin_as_the_bases),
        cmocka_unit_test(rows_are_copied),           cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(hostile_files_are_refused), cmocka_unit_test(tied_lists_are_sets),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
