/* Tokenizers and models with the pieces of another vocabulary behind their own: ids (those of HF tokenizers and SentencePiece for
 * what was written, tests/golden/make_vocab.py), what becomes of each piece, rows, and what is refused. */
#include "tests/unit/adapter_world.h"

#include <jansson.h>

#include "adapters/extend.h"
#include "core/text/extend.h"

#define GOLDEN TESTS_DIR "/golden/"

static gr_tokenizer *open_vocab(const char *path) {
    gr_tokenizer *v = NULL;
    assert_ok(gr_vocab_open(&v, path, &err));
    return v;
}

static void copy(const char *from, const char *folder, const char *name) {
    char *source = gr_path_join(from, name), *target = gr_path_join(folder, name);
    if (gr_exists(source)) assert_ok(gr_file_copy(source, target, &err));
    free(source);
    free(target);
}

/* A folder of TINY's weights (or another model's) with a golden tokenizer: all have 640 tokens. */
static char *make_base(const char *model, const char *kind) {
    static const char *const files[] = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"};
    char *folder = at(kind), *from = gr_format(GOLDEN "tokenizers/%s", kind);
    assert_ok(gr_make_dirs(folder, &err));
    for (int i = 0; i < GR_LEN(files); i++) copy(from, folder, files[i]);
    copy(model, folder, "config.json");
    copy(model, folder, "model.safetensors");
    free(from);
    return folder;
}

static gr_tokenizer *open_base(const char *folder) {
    gr_tokenizer *t = NULL;
    assert_ok(gr_tokenizer_open(&t, folder, &err));
    return t;
}

static void check_ids(const gr_tokenizer *t, const json_t *texts, const json_t *ids, const char *what) {
    size_t i;
    const json_t *wanted;
    json_array_foreach(ids, i, wanted) {
        gr_ids found = {0};
        const char *text = json_string_value(json_array_get(texts, i));
        assert_ok(gr_tokenizer_encode(t, text, (int64_t)strlen(text), true, &found, &err));
        bool same = found.n == (int64_t)json_array_size(wanted);
        for (int64_t k = 0; same && k < found.n; k++) same = found.data[k] == json_integer_value(json_array_get(wanted, (size_t)k));
        if (!same) fail_msg("%s: other ids for \"%s\"", what, text);
        gr_ids_release(&found);
    }
}

/* HF tokenizers gives an added token the id that it has in the vocabulary, else the next free one: all must be in it. */
static void check_added(const char *folder) {
    char *path = gr_path_join(folder, "tokenizer.json");
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, NULL), *vocab = json_object_get(json_object_get(root, "model"), "vocab"),
           *a;
    size_t i;
    assert_true(json_array_size(json_object_get(root, "added_tokens")) > 0);
    json_array_foreach(json_object_get(root, "added_tokens"), i, a)
        assert_true(json_equal(json_object_get(vocab, json_string_value(json_object_get(a, "content"))), json_object_get(a, "id")));
    json_decref(root);
    free(path);
}

/* What was written is x again. */
static void check_files(const gr_tokenizer *x, const json_t *texts, const json_t *row, const char *what) {
    char *folder = at("saved"), *alone = at("alone");
    gr_tokenizer *back;
    gr_gguf_builder b = {0};
    gr_gguf *g = NULL;
    gr_remove_all(folder);
    gr_remove_all(alone);
    assert_ok(gr_make_dirs(folder, &err));
    assert_ok(gr_make_dirs(alone, &err));
    assert_ok(gr_tokenizer_save_hf(x, folder, &err));
    check_added(folder);
    back = open_base(folder);
    assert_int_equal(gr_tokenizer_get_info(back)->n_vocab, gr_tokenizer_get_info(x)->n_vocab);
    check_ids(back, texts, json_object_get(row, "ids"), what);
    gr_tokenizer_free(back);
    assert_ok(gr_tokenizer_save_gguf(x, gr_tokenizer_get_info(x)->n_vocab + 2, &b, &err));
    assert_ok(gr_gguf_preview(&g, &b, &err));
    assert_ok(gr_tokenizer_from_gguf(&back, g, &err));
    assert_int_equal(gr_tokenizer_n_tokens(back), gr_tokenizer_get_info(x)->n_vocab);
    gr_tokenizer_free(back);
    gr_gguf_close(g);
    gr_gguf_builder_release(&b);
    if (!json_object_get(row, "sentencepiece")) return;
    copy(folder, alone, "tokenizer.model");
    back = open_base(alone);
    check_ids(back, texts, json_object_get(row, "sentencepiece"), what);
    gr_tokenizer_free(back);
}

/* The tokenizer.model alone as base: scores decide, and the same pieces are added. */
static void check_model_alone(const char *kind, const gr_tokenizer *v, const json_t *texts, const json_t *row) {
    char *folder = at("model-alone"), *from = gr_format(GOLDEN "tokenizers/%s", kind);
    gr_tokenizer *x = NULL;
    gr_vocab_report r;
    assert_ok(gr_make_dirs(folder, &err));
    copy(from, folder, "tokenizer.model");
    gr_tokenizer *t = open_base(folder);
    assert_ok(gr_vocab_extend(&x, t, v, 0, &r, &err));
    assert_ok(gr_vocab_check(x, &err));
    assert_int_equal(r.n_new, json_integer_value(json_object_get(row, "new")));
    check_ids(x, texts, json_object_get(row, "sentencepiece"), kind);
    char *saved = at("model-saved");
    gr_remove_all(saved);
    assert_ok(gr_make_dirs(saved, &err));
    assert_ok(gr_tokenizer_save_hf(x, saved, &err));
    gr_tokenizer *back = open_base(saved);
    check_ids(back, texts, json_object_get(row, "sentencepiece"), kind);
    assert_int_equal(gr_tokenizer_get_info(back)->n_vocab, gr_tokenizer_get_info(x)->n_vocab);
    gr_tokenizer_free(back);
    gr_tokenizer_free(x);
    gr_tokenizer_free(t);
    gr_remove_all(folder);
    free(from);
}

static void test_ids(void **state) {
    (void)state;
    json_t *root = json_load_file(GOLDEN "vocab/cases.json", 0, NULL), *texts = json_object_get(root, "texts"), *row;
    size_t i, k;
    assert_true(json_array_size(json_object_get(root, "rows")) == 18);
    json_array_foreach(json_object_get(root, "rows"), i, row) {
        const char *kind = json_string_value(json_object_get(row, "base")),
                   *name = json_string_value(json_object_get(row, "vocab"));
        char *path = gr_format(GOLDEN "vocab/%s", name), *what = gr_format("%s with %s", kind, name);
        gr_tokenizer *t = open_base(make_base(TINY, kind)), *v = open_vocab(path), *x = NULL;
        gr_vocab_report r;
        int64_t total = 0, n[2] = {0};
        assert_ok(gr_vocab_extend(&x, t, v, 0, &r, &err));
        assert_int_equal(r.n_new, json_integer_value(json_object_get(row, "new")));
        assert_int_equal(r.fates[GR_VOCAB_UNREACHABLE], json_integer_value(json_object_get(row, "unreachable")));
        assert_int_equal(r.first_new, 640);
        assert_int_equal(r.n_unproved, 0);
        assert_int_equal(r.n_new - r.n_intermediate, r.fates[GR_VOCAB_TAKEN]);
        for (int f = 0; f < GR_VOCAB_N_FATES; f++) total += r.fates[f];
        assert_int_equal(total, gr_tokenizer_get_info(v)->n_vocab);
        assert_ok(gr_vocab_check(x, &err));
        check_ids(x, texts, json_object_get(row, "ids"), what);
        json_t *text;
        json_array_foreach(texts, k, text)
            assert_ok(gr_vocab_check_text(x, json_string_value(text), (int64_t)json_string_length(text), n, &err));
        assert_true(n[1] < n[0]);
        check_files(x, texts, row, what);
        if (json_object_get(row, "sentencepiece")) check_model_alone(kind, v, texts, row);
        gr_tokenizer_free(x);
        gr_tokenizer_free(v);
        gr_tokenizer_free(t);
        free(path);
        free(what);
    }
    json_decref(root);
}

/* ---- what becomes of a piece ---- */

static const char PIECES[] =
    "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},{\"id\":1,\"content\":\"<s>\",\"special\":true}],"
    "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"byte_fallback\":true,\"merges\":[],\"vocab\":{\"<unk>\":0,\"<s>\":1,"
    "\"<0x41>\":2,\"e\\u0301x\":3,\"77\":4,\"<|im_end|>\":5,\"\\u6c34\\u8f66\":6,\"\\uff0c\\u6c34\":7,\"the\":8,"
    "\"\\u2581\\u6c34\":9,"
    "\"qzqzqzqzqz\":10,\"\\u6c34\\u8f66\\u6c34\\u8f66\":11,\"\\u2581x \\u2581y\":12}}}";

static void write_text(const char *path, const char *text) { assert_ok(gr_file_write(path, text, (int64_t)strlen(text), &err)); }

static void test_fates(void **state) {
    (void)state;
    /* fates of pieces 0, 1, ... by base */
    static const struct {
        const char *kind;
        int64_t fates[GR_VOCAB_N_FATES];
    } rows[] = {
        {"smollm2", {[GR_VOCAB_TAKEN] = 5, [GR_VOCAB_HAD] = 1, [GR_VOCAB_CONTROL] = 2, [GR_VOCAB_BYTE] = 1, [GR_VOCAB_CUT] = 4}},
        {"qwen2",
         {[GR_VOCAB_TAKEN] = 6,
          [GR_VOCAB_HAD] = 1,
          [GR_VOCAB_CONTROL] = 2,
          [GR_VOCAB_BYTE] = 1,
          [GR_VOCAB_NORMALIZED] = 1,
          [GR_VOCAB_CUT] = 2}},
        {"sp-gemma", {[GR_VOCAB_TAKEN] = 9, [GR_VOCAB_CONTROL] = 2, [GR_VOCAB_BYTE] = 1, [GR_VOCAB_NORMALIZED] = 1}},
    };
    write_text(at("pieces.json"), PIECES);
    gr_tokenizer *v = open_vocab(at("pieces.json"));
    for (int i = 0; i < GR_LEN(rows); i++) {
        gr_tokenizer *t = open_base(make_base(TINY, rows[i].kind)), *x = NULL;
        gr_vocab_report r;
        assert_ok(gr_vocab_extend(&x, t, v, 0, &r, &err));
        for (int f = 0; f < GR_VOCAB_N_FATES; f++)
            if (r.fates[f] != rows[i].fates[f])
                fail_msg("%s: %lld pieces %s, expected %lld (%s)", rows[i].kind, (long long)r.fates[f],
                         gr_vocab_fate_name((gr_vocab_fate)f), (long long)rows[i].fates[f], r.examples[f]);
        assert_ok(gr_vocab_check(x, &err));
        gr_tokenizer_free(x);
        x = NULL;
        assert_ok(gr_vocab_extend(&x, t, v, 2, &r, &err)); /* as many as fit, with what they need */
        assert_true(r.n_new <= 2 && r.n_new > 0 && r.fates[GR_VOCAB_LEFT] > 0);
        gr_tokenizer_free(x);
        gr_tokenizer_free(t);
    }
    gr_tokenizer_free(v);
}

/* Pieces of a vocabulary that goes on from the base's merges come with its own merges, in its order. */
static void test_continued(void **state) {
    (void)state;
    gr_tokenizer *t = open_base(make_base(TINY, "smollm2")), *x = NULL, *v, *again = NULL;
    gr_vocab_report r;
    v = open_vocab(GOLDEN "vocab/bpe.json");
    assert_ok(gr_vocab_extend(&x, t, v, 0, &r, &err));
    assert_ok(gr_make_dirs(at("continued"), &err));
    assert_ok(gr_tokenizer_save_hf(x, at("continued"), &err));
    gr_tokenizer_free(v);
    v = open_base(at("continued"));
    int64_t n_merges = r.n_merges, n_new = r.n_new;
    assert_ok(gr_vocab_extend(&again, t, v, 0, &r, &err));
    assert_int_equal(r.n_new, n_new);
    assert_int_equal(r.n_merges, n_merges);
    assert_int_equal(r.n_intermediate, 0);
    assert_true(gr_tokenizer_hash(again) == gr_tokenizer_hash(v)); /* it is the same tokenizer */
    gr_tokenizer_free(again);
    gr_tokenizer_free(x);
    gr_tokenizer_free(v);
    gr_tokenizer_free(t);
}

/* Also where a piece's own text comes to be spelt otherwise: "abc" is "ab" "c" by the base's merge, (a, bc) makes it elsewhere. */
static void test_own_merges(void **state) {
    (void)state;
    static const char form[] = "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"ab\":3,\"xa\":4,\"x\":5%s},"
                               "\"merges\":[[\"a\",\"b\"]%s]},"
                               "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
                               "\"decoder\":{\"type\":\"ByteLevel\"}}";
    char *base = gr_format(form, "", ""), *more = gr_format(form, ",\"bc\":6,\"abc\":7", ",[\"b\",\"c\"],[\"a\",\"bc\"]");
    static const char *const texts[] = {"abc", "bc", "abbc", "cabcab"};
    gr_tokenizer *t, *v, *x = NULL;
    gr_vocab_report r;
    write_text(at("old.json"), base);
    write_text(at("more.json"), more);
    t = open_vocab(at("old.json"));
    v = open_vocab(at("more.json"));
    assert_ok(gr_vocab_extend(&x, t, v, 0, &r, &err));
    assert_int_equal(r.n_merges, 2);
    assert_int_equal(r.n_unproved, 1);
    assert_string_equal(r.unproved, "\"abc\"");
    for (int i = 0; i < GR_LEN(texts); i++) {
        gr_ids a = {0}, b = {0};
        assert_ok(gr_tokenizer_encode(x, texts[i], (int64_t)strlen(texts[i]), true, &a, &err));
        assert_ok(gr_tokenizer_encode(v, texts[i], (int64_t)strlen(texts[i]), true, &b, &err));
        assert_true(a.n == b.n && memcmp(a.data, b.data, (size_t)a.n * sizeof *a.data) == 0);
        gr_ids_release(&a);
        gr_ids_release(&b);
    }
    gr_tokenizer_free(x);
    gr_tokenizer_free(v);
    gr_tokenizer_free(t);
    free(base);
    free(more);
}

/* No way leads to an old piece that did not before, nor is one made a second time: "bc" is a piece here, but no merge makes it. */
static void test_old_pieces(void **state) {
    (void)state;
    static const char base[] = "{\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"d\":3,\"bc\":4}},"
                               "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
                               "\"decoder\":{\"type\":\"ByteLevel\"}}";
    static const char more[] =
        "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true}],\"model\":{\"type\":\"BPE\","
        "\"unk_token\":\"<unk>\",\"byte_fallback\":true,\"merges\":[],\"vocab\":{\"<unk>\":0,\"abcd\":1,\"xyz\":2}}}";
    static const int32_t wanted[2][2] = {{1, 2}, {7, -1}}; /* of "bc", "abcd": after "ab" and "abc" */
    static const char *const texts[] = {"bc", "abcd"};
    gr_tokenizer *t, *v, *x = NULL;
    gr_vocab_report r;
    write_text(at("old.json"), base);
    write_text(at("more.json"), more);
    t = open_vocab(at("old.json"));
    v = open_vocab(at("more.json"));
    assert_ok(gr_vocab_extend(&x, t, v, 0, &r, &err));
    assert_int_equal(r.n_new, 3);
    assert_int_equal(r.n_intermediate, 2);
    assert_int_equal(r.fates[GR_VOCAB_UNREACHABLE], 1); /* "xyz": bytes without a piece */
    for (int i = 0; i < GR_LEN(texts); i++) {
        gr_ids ids = {0};
        assert_ok(gr_tokenizer_encode(x, texts[i], (int64_t)strlen(texts[i]), true, &ids, &err));
        for (int64_t k = 0; k < ids.n; k++) assert_int_equal(ids.data[k], wanted[i][k]);
        gr_ids_release(&ids);
    }
    gr_tokenizer_free(x);
    gr_tokenizer_free(v);
    gr_tokenizer_free(t);
}

/* ---- rows ---- */

static void read_row(const gr_weights *w, const char *name, int64_t r, float *row) {
    const gr_weight *v = &gr_weights_find(w, name)->view;
    assert_true(r < v->rows);
    gr_dtype_get(v->dtype)->to_f32(row, (const char *)v->data + r * gr_dtype_bytes(v->dtype, v->cols), v->cols);
}

/* Row r of a matrix is the mean of rows[n] of the base's. */
static void check_mean(const gr_weights *w, const gr_weights *base, const char *name, int64_t r, const int32_t *rows, int64_t n) {
    float row[256], part[256];
    double mean[256] = {0};
    int64_t K = gr_weights_find(w, name)->view.cols;
    for (int64_t i = 0; i < n; i++) {
        read_row(base, name, rows ? rows[i] : i, part);
        for (int64_t k = 0; k < K; k++) mean[k] += (double)part[k] / (double)n;
    }
    read_row(w, name, r, row);
    for (int64_t k = 0; k < K; k++)
        if (fabs(mean[k] - (double)row[k]) > 1e-6) fail_msg("%s: row %lld is no mean", name, (long long)r);
}

static void check_matrix(const gr_weights *w, const gr_weights *base, const char *name, const gr_tokenizer *x, bool pieces) {
    float row[256], before[256];
    int64_t K = gr_weights_find(w, name)->view.cols, first = gr_vocab_first_new(x), n = gr_tokenizer_get_info(x)->n_vocab;
    for (int64_t r = 0; r < first; r++) {
        read_row(w, name, r, row);
        read_row(base, name, r, before);
        assert_memory_equal(row, before, (size_t)K * sizeof *row);
    }
    for (int64_t r = first; r < n; r++) {
        gr_ids ids = {0};
        assert_ok(gr_vocab_spelling(x, (int32_t)r, &ids, &err));
        assert_true(ids.n > 1 || pieces);
        check_mean(w, base, name, r, pieces ? ids.data : NULL, pieces ? ids.n : first);
        gr_ids_release(&ids);
    }
    for (int64_t r = n; r < gr_weights_config(w)->vocab; r++) check_mean(w, base, name, r, NULL, first);
}

static void test_rows(void **state) {
    (void)state;
    static const struct {
        const char *model, *kind, *out;
        gr_extend_init init;
        int64_t multiple, rows;
    } cases[] = {
        {TINY, "smollm2", "extended", GR_EXTEND_PIECES, 64, 896},
        {TINY, "smollm2", "extended.gguf", GR_EXTEND_MEAN, 100, 900},
        {QWEN, "smollm2", "untied", GR_EXTEND_PIECES, 0, 887},
        {QWEN, "qwen2", "untied.gguf", GR_EXTEND_PIECES, 1000, 1000},
    };
    gr_tokenizer *v = open_vocab(GOLDEN "vocab/bpe.json");
    for (int i = 0; i < GR_LEN(cases); i++) {
        char *folder = make_base(cases[i].model, cases[i].kind), *out = at(cases[i].out);
        gr_tokenizer *t = open_base(folder), *x = NULL, *back = NULL;
        gr_model *m = open_model(folder);
        gr_weights *w = NULL;
        gr_vocab_report r;
        gr_extend_report report;
        gr_extend_options o = {.file = {.format = gr_ends_with(out, ".gguf") ? GR_FORMAT_GGUF : GR_FORMAT_HF, .dtype = -1},
                               .init = cases[i].init,
                               .multiple = cases[i].multiple};
        assert_ok(gr_vocab_extend(&x, t, v, 0, &r, &err));
        assert_ok(gr_extend(m, x, &o, out, &report, &err));
        assert_int_equal(report.rows, cases[i].rows);
        assert_int_equal(report.padding, cases[i].rows - 640 - r.n_new);
        assert_true(report.written.max_logit_difference < 1e-5 && report.written.n_probed > 20);
        assert_ok(gr_weights_open(&w, out, &err));
        assert_int_equal(gr_weights_config(w)->vocab, cases[i].rows);
        assert_int_equal(gr_weights_config(w)->base_vocab, 640);
        assert_true(gr_weights_config(w)->tied == m->config.tied);
        check_matrix(w, m->weights, "model.embed_tokens.weight", x, cases[i].init == GR_EXTEND_PIECES);
        if (!m->config.tied) check_matrix(w, m->weights, "lm_head.weight", x, cases[i].init == GR_EXTEND_PIECES);
        assert_ok(gr_tokenizer_open(&back, out, &err));
        assert_int_equal(gr_tokenizer_n_tokens(back), 640 + r.n_new); /* padding rows have none */
        assert_error(gr_extend(m, x, &o, out, &report, &err), GRAFT_BAD_USAGE, "");
        gr_tokenizer_free(back);
        gr_weights_close(w);
        gr_tokenizer_free(x);
        gr_tokenizer_free(t);
        gr_model_free(m);
    }
    gr_tokenizer_free(v);
}

/* An extended model can be extended again: the padding rows serve first, and the newest extension counts. */
static void test_twice(void **state) {
    (void)state;
    gr_tokenizer *v = open_vocab(GOLDEN "vocab/sp.model");
    static const char *const bases[] = {"extended", "extended.gguf"};
    for (int i = 0; i < GR_LEN(bases); i++) {
        gr_tokenizer *t = open_base(at(bases[i])), *x = NULL;
        gr_model *m = open_model(at(bases[i])), *back;
        gr_vocab_report r;
        gr_extend_options o = {.file = {.format = GR_FORMAT_HF, .dtype = -1, .overwrite = true}};
        assert_ok(gr_vocab_extend(&x, t, v, 5, &r, &err));
        assert_int_equal(r.first_new, 887);
        assert_ok(gr_extend(m, x, &o, at("twice"), NULL, &err));
        back = open_model(at("twice"));
        assert_int_equal(back->config.base_vocab, 887);
        assert_int_equal(back->config.vocab, GR_MAX(m->config.vocab, 887 + r.n_new));
        gr_model_free(back);
        gr_model_free(m);
        gr_tokenizer_free(x);
        gr_tokenizer_free(t);
    }
    gr_tokenizer_free(v);
}

/* ---- refusals ---- */

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *text, *part;
    } hostile[] = {
        {"", "no SentencePiece model"},
        {"{\"model\": {\"type\": \"WordPiece\", \"vocab\": {}}}", "WordPiece"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 4000000000}, \"merges\": []}}", "4000000000"},
        {"{\"model\": ", "no JSON"},
        {"\x0a\xff\xff\xff\xff\x0f", "damaged"},
    };
    gr_tokenizer *t = open_base(make_base(TINY, "smollm2")), *v = NULL, *x = NULL,
                 *unigram = open_base(make_base(TINY, "sp-unigram"));
    gr_vocab_report r;
    for (int i = 0; i < GR_LEN(hostile); i++) {
        write_text(at("hostile"), hostile[i].text);
        assert_error(gr_vocab_open(&v, at("hostile"), &err), GRAFT_BAD_INPUT, hostile[i].part);
    }
    assert_error(gr_vocab_open(&v, at("missing.json"), &err), GRAFT_BAD_INPUT, "missing.json");
    assert_error(gr_vocab_extend(&x, t, t, 0, &r, &err), GRAFT_BAD_INPUT, "nothing to add: of 640 pieces");
    assert_error(gr_vocab_extend(&x, unigram, t, 0, &r, &err), GRAFT_BAD_INPUT, "is a unigram");
    gr_tokenizer_free(t);
    gr_tokenizer_free(unigram);
    assert_ok(gr_make_dirs(at("left-out"), &err)); /* an added token that no vocabulary file has, at the first new id */
    copy(GOLDEN "tokenizers/sp-bpe", at("left-out"), "tokenizer.model");
    write_text(at("left-out/added_tokens.json"), "{\"<pad>\": 640}");
    t = open_base(at("left-out"));
    v = open_vocab(GOLDEN "vocab/sp.model");
    assert_error(gr_vocab_extend(&x, t, v, 0, &r, &err), GRAFT_BAD_INPUT, "the added token \"<pad>\" has the id 640");
    gr_tokenizer_free(t);
    write_text(at("left-out/added_tokens.json"), "{\"<pad>\": 7}"); /* a name of an old id takes none of the new */
    t = open_base(at("left-out"));
    assert_ok(gr_vocab_extend(&x, t, v, 0, &r, &err));
    gr_tokenizer_free(x);
    gr_tokenizer_free(v);
    gr_tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids),        cmocka_unit_test(test_fates),      cmocka_unit_test(test_continued),
        cmocka_unit_test(test_old_pieces), cmocka_unit_test(test_own_merges), cmocka_unit_test(test_rows),
        cmocka_unit_test(test_twice),      cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
