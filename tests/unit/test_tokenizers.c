/* Tokenizers at the borders: forms that people's files have, settings that a GGUF leaves out, and conversions
 * that would change ids. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/text/encode.h"
#include "core/text/read.h"
#include "assert_ok.h"

static gr_tokenizer *parse(const char *json) {
    gr_tokenizer *t = NULL;
    assert_ok(gr_tokenizer_parse_json(&t, json, (int64_t)strlen(json), "t.json", &err));
    return t;
}

static void refused(const char *json, const char *part) {
    gr_tokenizer *t = NULL;
    assert_int_equal(gr_tokenizer_parse_json(&t, json, (int64_t)strlen(json), "t.json", &err), GRAFT_BAD_INPUT);
    if (!strstr(err.msg, part)) fail_msg("\"%s\" is not in \"%s\"", part, err.msg);
}

static void check_ids(const gr_tokenizer *t, const char *text, int n, const int32_t *wanted) {
    gr_ids ids = {0};
    assert_ok(gr_tokenizer_encode(t, text, (int64_t)strlen(text), true, &ids, &err));
    assert_int_equal(ids.n, n);
    for (int i = 0; i < n; i++) assert_int_equal(ids.data[i], wanted[i]);
    gr_ids_release(&ids);
}
#define check(t, text, ...) check_ids(t, text, GR_LEN(((const int32_t[]){__VA_ARGS__})), (const int32_t[]){__VA_ARGS__})

/* Byte pieces keep their role where the file lists them among the added tokens, as trainers leave them. */
static void test_added_byte_pieces(void **state) {
    (void)state;
    gr_tokenizer *t = parse("{\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"byte_fallback\":true,\"fuse_unk\":true,"
                            "\"vocab\":{\"<unk>\":0,\"<0xC3>\":1,\"<0xA9>\":2,\"a\":3},\"merges\":[]},\"added_tokens\":["
                            "{\"id\":0,\"content\":\"<unk>\",\"special\":true},"
                            "{\"id\":1,\"content\":\"<0xC3>\",\"special\":true,\"normalized\":false},"
                            "{\"id\":2,\"content\":\"<0xA9>\",\"special\":false,\"normalized\":false}]}");
    check(t,
          "a\xc3\xa9"
          "a",
          3, 1, 2, 3);
    check(t, "\xc3\xa8", 0); /* not every byte has a piece */
    check(t, "<0xC3>", 1);   /* HF finds added tokens by their names */
    gr_str text = {0};
    assert_ok(gr_tokenizer_decode(t, (const int32_t[]){3, 1, 2}, 3, true, &text, &err));
    assert_string_equal(text.data, "a\xc3\xa9");
    gr_str_release(&text);
    gr_tokenizer_free(t);
}

/* The words of llama.cpp's default rule; the lists are what HF's Splits with its four expressions give. */
static void test_default_words(void **state) {
    (void)state;
    static const char *const rows[] = {
        "It|'|s| |(|not|)| |123|456|7| of|\n\n | them|,| a| | b",
        "x|=|1| |+|12|  \n",
        "\xe2\x80\xa6\xe2\x80\x9c|\xc2\xbd\xc2\xb2"
        "12\xef\xbc\x93"
        "4|\xe2\x80\x9d",
        "\xe4\xbd\xa0\xe5\xa5\xbd|,| \xe4\xb8\x96\xe7\x95\x8c| |123|!|  ",
        "a| \t|(|b|)| | \xf0\x9f\x99\x82\xf0\x9f\x99\x82| c",
    };
    gr_tokenizer *t = gr_tokenizer_new(1);
    t->words = GR_WORDS_DEFAULT;
    for (int i = 0; i < GR_LEN(rows); i++) {
        gr_str text = {0}, words = {0};
        for (const char *s = rows[i]; *s; s++)
            if (*s != '|') gr_str_putc(&text, *s);
        for (int64_t at = 0, n; at < text.len; at += n) {
            n = gr_word_length(t, text.data + at, text.len - at);
            gr_str_puts(&words, at ? "|" : "");
            gr_str_add(&words, text.data + at, n);
        }
        assert_string_equal(words.data, rows[i]);
        gr_str_release(&text);
        gr_str_release(&words);
    }
    gr_tokenizer_free(t);
}

/* ---- GGUF ---- */

enum { N_BYTE_LEVEL = 259 }; /* 256 bytes, "ab", "abc" and a control token */

static void put_byte_level(gr_gguf_builder *b, const char *merges) {
    uint16_t to_point[256];
    char names[256][4];
    const char *texts[N_BYTE_LEVEL], *list[3];
    int64_t lens[N_BYTE_LEVEL];
    int32_t types[N_BYTE_LEVEL];
    int n = 0;
    char copy[64];
    gr_byte_alphabet(to_point);
    for (int i = 0; i < 256; i++) {
        lens[i] = gr_utf8_encode(to_point[i], names[i]);
        texts[i] = names[i];
        types[i] = GR_PIECE_NORMAL;
    }
    texts[256] = "ab", texts[257] = "abc", texts[258] = "<|bos|>";
    for (int i = 256; i < N_BYTE_LEVEL; i++) lens[i] = (int64_t)strlen(texts[i]), types[i] = GR_PIECE_NORMAL;
    types[258] = GR_PIECE_CONTROL;
    snprintf(copy, sizeof copy, "%s", merges);
    for (char *s = strtok(copy, ","); s; s = strtok(NULL, ",")) list[n++] = s;
    gr_gguf_put_string(b, "tokenizer.ggml.model", "gpt2");
    gr_gguf_put_strings(b, "tokenizer.ggml.tokens", texts, lens, N_BYTE_LEVEL);
    gr_gguf_put_i32s(b, "tokenizer.ggml.token_type", types, N_BYTE_LEVEL);
    gr_gguf_put_strings(b, "tokenizer.ggml.merges", list, NULL, n);
    gr_gguf_put_u32(b, "tokenizer.ggml.bos_token_id", 258);
}

static graft_status from_keys(gr_tokenizer **t, gr_gguf_builder *b) {
    gr_gguf *g = NULL;
    *t = NULL;
    assert_ok(gr_gguf_preview(&g, b, &err));
    graft_status st = gr_tokenizer_from_gguf(t, g, &err);
    gr_gguf_close(g);
    gr_gguf_builder_release(b);
    return st;
}

static char *logged(FILE *log) {
    static char text[2000];
    rewind(log);
    text[fread(text, 1, sizeof text - 1, log)] = '\0';
    return text;
}

/* What a file leaves out is decided as llama.cpp decides it, and said. */
static void test_gguf_without_keys(void **state) {
    (void)state;
    FILE *log = tmpfile();
    gr_tokenizer *t = NULL, *again = NULL;
    gr_gguf_builder b = {0};
    gr_log_tee(log);
    put_byte_level(&b, "a b,ab c");
    assert_ok(from_keys(&t, &b));
    assert_string_equal(t->info.pre, "default");
    assert_false(t->info.add_bos || t->info.ignore_merges);
    assert_non_null(strstr(logged(log), "tokenizer.ggml.pre is missing"));
    assert_ok(gr_tokenizer_save_gguf(t, N_BYTE_LEVEL, &b, &err)); /* and the name stays */
    assert_ok(from_keys(&again, &b));
    assert_string_equal(again->info.pre, "default");
    assert_int_equal(gr_tokenizer_save_hf(t, "/nowhere", &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "no form in a Hugging Face folder"));
    gr_tokenizer_free(again);
    gr_tokenizer_free(t);
    put_byte_level(&b, "a b,ab c");
    gr_gguf_put_string(&b, "tokenizer.ggml.pre", "falcon3");
    assert_ok(from_keys(&t, &b));
    assert_true(t->info.add_bos && t->info.ignore_merges);
    assert_non_null(strstr(logged(log), "add_bos_token missing: taken as true"));
    assert_ok(gr_tokenizer_save_gguf(t, N_BYTE_LEVEL, &b, &err));
    assert_ok(from_keys(&again, &b));
    assert_string_equal(again->info.pre, "falcon3");
    gr_tokenizer_free(again);
    gr_tokenizer_free(t);
    put_byte_level(&b, "a b,ab c");
    gr_gguf_put_string(&b, "tokenizer.ggml.pre", "dbrx"); /* Llama 3's words without its other ways */
    assert_ok(from_keys(&t, &b));
    assert_true(t->words == GR_WORDS_LLAMA3 && !t->info.add_bos && !t->info.ignore_merges);
    gr_tokenizer_free(t);
    put_byte_level(&b, "a b,ab c");
    gr_gguf_put_string(&b, "tokenizer.ggml.pre", "tekken");
    assert_int_equal(from_keys(&t, &b), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "tokenizer.ggml.pre is \"tekken\"; graft knows smollm"));
    gr_log_tee(NULL);
    fclose(log);
}

/* The first of a merge listed twice counts in a GGUF, the last in a tokenizer.json: written as it counts. */
static void test_merge_twice(void **state) {
    (void)state;
    gr_tokenizer *t = NULL, *back = NULL;
    gr_gguf_builder b = {0};
    put_byte_level(&b, "a b,ab c,a b");
    gr_gguf_put_string(&b, "tokenizer.ggml.pre", "gpt-2");
    assert_ok(from_keys(&t, &b));
    assert_int_equal(gr_pairs_find(&t->pairs, 'a', 'b')->rank, 0);
    assert_ok(gr_tokenizer_save_gguf(t, N_BYTE_LEVEL, &b, &err));
    assert_ok(from_keys(&back, &b));
    assert_int_equal(back->n_merges, 2);
    gr_tokenizer_free(t);
    gr_tokenizer_free(back);
}

/* Old files of SentencePiece models say little; bytes are known by name. */
static void test_old_sentencepiece(void **state) {
    (void)state;
    static const char *const texts[] = {"<unk>", "<s>", "</s>", "<0x41>", GR_META_SPACE, "b"};
    static const float scores[] = {0, 0, 0, 0, -1, -2};
    static const int32_t types[] = {2, 3, 3, 1, 1, 1};
    gr_tokenizer *t = NULL;
    gr_gguf_builder b = {0};
    gr_gguf_put_string(&b, "tokenizer.ggml.model", "llama");
    gr_gguf_put_strings(&b, "tokenizer.ggml.tokens", texts, NULL, GR_LEN(texts));
    gr_gguf_put_f32s(&b, "tokenizer.ggml.scores", scores, GR_LEN(texts));
    gr_gguf_put_i32s(&b, "tokenizer.ggml.token_type", types, GR_LEN(texts));
    assert_ok(from_keys(&t, &b));
    assert_true(t->info.bos == 1 && t->info.eos == 2 && t->model_unk == 0);
    assert_true(t->info.add_bos && !t->info.add_eos && t->info.add_space_prefix);
    check(t, "bA", 4, 5, 3);
    gr_tokenizer_free(t);
}

/* ---- conversions ---- */

#define BYTE_VOCAB   "\"vocab\":{\"h\":0,\"i\":1,\"hi\":2,\"\\u0120\":3,\"e\":4,\"\\u00cc\":5,\"\\u0123\":6,\"x\":7,\"y\":8}"
#define BYTE_MODEL   "\"model\":{\"type\":\"BPE\"," BYTE_VOCAB ",\"merges\":[\"h i\"]}"
#define BYTES        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"
#define ADDED(flags) "\"added_tokens\":[{\"id\":9,\"content\":\"<m>\",\"special\":true,\"normalized\":false" flags "}]"
#define SPM_MODEL(unk)                                                                                                             \
    "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":" unk ",\"byte_fallback\":true,\"vocab\":{\"<unk>\":0,"      \
    "\"\\u2581\":1,\"a\":2,\"b\":3,\"\\u2581a\":4,\"ab\":5,\"\\u2581\\u2581\":6},\"merges\":[\"\\u2581 "                           \
    "a\",\"a b\","                                                                                                                 \
    "\"\\u2581 \\u2581\"]}"
#define META(scheme, split)                                                                                                        \
    "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":\"" scheme "\",\"split\":" split "}"
#define UNK "\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true,\"normalized\":false}]"

#define MODEL(merges, flags)                                                                                                       \
    "{\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true" flags                                                 \
    ",\"vocab\":{\"<unk>\":0,\"\\u2581\":1,\"a\":2,\"b\":3,\"\\u2581a\":4,\"ab\":5,\"\\u2581\\u2581\":6,"                          \
    "\"1\":7,\"12\":8,\"x\":9,\" \":10,\" a\":11,\"2\":12},\"merges\":" merges "}"
#define SPECIAL(name) "{\"SpecialToken\":{\"id\":\"" name "\",\"type_id\":0}}"
#define SEQUENCE      "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}"
#define TEMPLATE(single)                                                                                                           \
    "{\"type\":\"TemplateProcessing\",\"single\":[" single                                                                         \
    "],\"special_tokens\":{\"x\":{\"id\":\"x\",\"ids\":[7]},\"y\":{\"id\":\"y\",\"ids\":[8]}}}"
#define REFUSED_META(scheme) "{" SPM_MODEL("true") "," META(scheme, "true") "}"
/* Pipelines in which a part was left out without a word; the ids are those of HF tokenizers. */
static void test_pipelines(void **state) {
    (void)state;
    static const struct {
        const char *json, *text;
        int32_t ids[6];
        int n;
    } rows[] = {
        {MODEL("[[\"\\u2581\",\"a\"],[\"a\",\"b\"],[\"\\u2581\",\"\\u2581\"],[\"1\",\"2\"],[\" \",\"a\"]]",
               ",\"byte_fallback\":true") ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?"
                                          "i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+"
                                          "|\\\\p{N}{1,3}| "
                                          "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+"
                                          "(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false}}",
         "ab  ab a12",
         {5, 10, 10, 5, 11, 8},
         6},
        {MODEL("[[\"\\u2581\",\"a\"],[\"a\",\"b\"],[\"\\u2581\",\"\\u2581\"],[\"1\",\"2\"],[\" \",\"a\"]]",
               "") ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":"
                   "\"WhitespaceSplit\"},{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_"
                   "scheme\":\"first\",\"split\":false}]}}",
         "  a ab a",
         {2, 5, 2},
         3},
        {MODEL("[[\"\\u2581\",\"a\"],[\"a\",\"b\"],[\"\\u2581\",\"\\u2581\"],[\"1\",\"2\"],[\" \",\"a\"]]",
               ",\"byte_fallback\":true") ",\"pre_tokenizer\":{\"type\":\"WhitespaceSplit\"}}",
         "a\t ab",
         {2, 5},
         2},
        {MODEL("[[\"\\u2581\",\"a\"],[\"a\",\"b\"],[\"\\u2581\",\"\\u2581\"],[\"1\",\"2\"],[\" \",\"a\"]]",
               "") ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\","
                   "\"individual_digits\":true},{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\","
                   "\"prepend_scheme\":\"first\",\"split\":false}]}}",
         "a12 a",
         {4, 7, 12, 4},
         4},
        {MODEL("[[\"\\u2581\",\"a\"],[\"a\",\"b\"],[\"\\u2581\",\"\\u2581\"],[\"1\",\"2\"],[\" \",\"a\"]]",
               "") ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
                   "\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?"
                   "\\\\p{L}+|\\\\p{N}{1,3}| "
                   "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},"
                   "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"Metaspace\",\"replacement\":"
                   "\"\\u2581\",\"prepend_scheme\":\"first\",\"split\":false}]}}",
         "ab ab",
         {4, 3, 4, 3},
         4},
        {MODEL("[]", "") ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_"
                         "scheme\":\"first\",\"split\":false}}",
         "ab a",
         {1, 2, 3, 1, 2},
         5},
        {MODEL("[[\"\\u2581\",\"a\"],[\"a\",\"b\"],[\"\\u2581\",\"\\u2581\"],[\"1\",\"2\"],[\" \",\"a\"]]",
               "") ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":"
                   "\"first\",\"split\":false},\"added_tokens\":[{\"id\":9,\"content\":\"x\",\"special\":true,"
                   "\"normalized\":false,\"single_word\":true,\"lstrip\":false,\"rstrip\":false}]}",
         "x ax",
         {9, 4, 9},
         3},
        {MODEL("[[\"\\u2581\",\"a\"],[\"a\",\"b\"],[\"\\u2581\",\"\\u2581\"],[\"1\",\"2\"],[\" \",\"a\"]]",
               ",\"ignore_merges\":true") ",\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":"
                                          "\"\\u2581\",\"prepend_scheme\":\"first\",\"split\":false},\"added_"
                                          "tokens\":[{\"id\":13,\"content\":\"\\u2581x\",\"special\":false,"
                                          "\"normalized\":false,\"single_word\":true,\"lstrip\":false,"
                                          "\"rstrip\":false}]}",
         "x a\u2581x",
         {1, 9, 4, 1, 9},
         5},
    };
    for (int i = 0; i < GR_LEN(rows); i++) {
        gr_tokenizer *t = parse(rows[i].json);
        check_ids(t, rows[i].text, rows[i].n, rows[i].ids);
        gr_tokenizer_free(t);
    }
    refused("{\"model\":{\"type\":\"BPE\"," BYTE_VOCAB ",\"byte_fallback\":true,\"merges\":[]}}", "unk_token is missing");
    refused("{\"model\":{\"type\":\"BPE\"," BYTE_VOCAB "}," BYTES "}", "merges is missing");
    refused("{\"model\":{\"type\":\"BPE\"," BYTE_VOCAB ",\"byte_fallback\":true,\"unk_token\":\"h\",\"merges\":[]}," BYTES "}",
            "byte_fallback");
    gr_tokenizer *gap = parse("{" BYTE_MODEL "," BYTES ",\"added_tokens\":[{\"id\":10,\"content\":\"<m>\"}]}");
    check(gap, "<m>", 10); /* with a warning: the model was trained with the ids of the file */
    gr_tokenizer_free(gap);
    refused("{" BYTE_MODEL "," BYTES ",\"added_tokens\":[{\"id\":9,\"content\":\"hi\"}]}", "HF tokenizers gives it 2");
    refused("{" BYTE_MODEL "," BYTES ",\"added_tokens\":[{\"id\":7,\"content\":\"<m>\"}]}", "HF tokenizers gives it 9");
    refused("{" BYTE_MODEL "," BYTES ",\"post_processor\":" TEMPLATE(SPECIAL("x") "," SPECIAL("y") "," SEQUENCE) "}",
            "more than one token");
    refused("{" BYTE_MODEL "," BYTES ",\"post_processor\":" TEMPLATE(SPECIAL("x") "," SEQUENCE "," SEQUENCE) "}", "post_processor");
    gr_tokenizer *t =
        parse("{" BYTE_MODEL "," BYTES ",\"post_processor\":" TEMPLATE(SPECIAL("x") "," SEQUENCE "," SPECIAL("y")) "}");
    assert_true(t->info.add_bos && t->info.bos == 7 && t->info.add_eos && t->info.eos == 8);
    gr_tokenizer_free(t);
    refused(REFUSED_META("second"), "second");
    refused("{" BYTE_MODEL "," BYTES
            ",\"added_tokens\":[{\"id\":9,\"content\":\"<m>\",\"rstrip\":true},{\"id\":10,\"content\":\"  \"}]}",
            "strips spaces");
}

/* A conversion that would change ids is refused with an example. */
static void test_conversions_are_proved(void **state) {
    (void)state;
    static const struct {
        const char *json, *part; /* NULL: the same ids */
    } rows[] = {
        {"{" BYTE_MODEL "," BYTES "}", NULL},
        {"{" BYTE_MODEL "," BYTES "," ADDED("") "}", NULL},
        {"{" BYTE_MODEL "," BYTES "," ADDED(",\"lstrip\":true") "}", "lstrip"},
        {"{" BYTE_MODEL "," BYTES "," ADDED(",\"rstrip\":true") "}", "rstrip"},
        {"{" BYTE_MODEL "," BYTES "," ADDED(",\"single_word\":true") "}", "single_word"},
        {"{" BYTE_MODEL "," BYTES ",\"normalizer\":{\"type\":\"NFC\"}}", "no name"},
        {"{" BYTE_MODEL "," BYTES ",\"normalizer\":{\"type\":\"Strip\"}}", "no name"},
        {"{" SPM_MODEL("true") "," UNK ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\","
                               "\"prepend\":\"\\u2581\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" "
                               "\"},\"content\":\"\\u2581\"}]}}",
         NULL},
        {"{" SPM_MODEL("true") "," UNK "," META("never", "false") "}", NULL},
        {"{" SPM_MODEL("true") "," UNK "," META("first", "false") "}", "Metaspace"},
        {"{" SPM_MODEL("true") "," UNK "," META("always", "true") "}", "Metaspace"},
        {"{" SPM_MODEL("true") "," UNK ",\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFKC\"},"
                               "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}]}}",
         "normalizer"},
    };
    for (int i = 0; i < GR_LEN(rows); i++) {
        gr_tokenizer *t = parse(rows[i].json);
        gr_gguf_builder b = {0};
        graft_status st = gr_tokenizer_save_gguf(t, t->info.n_vocab, &b, &err);
        if (!rows[i].part) {
            assert_ok(st);
        } else {
            assert_int_equal(st, GRAFT_BAD_INPUT);
            if (!strstr(err.msg, rows[i].part)) fail_msg("row %d: %s", i, err.msg);
            assert_int_equal(b.n_keys, 0);
        }
        gr_gguf_builder_release(&b);
        gr_tokenizer_free(t);
    }
    refused("{" BYTE_MODEL ",\"pre_tokenizer\":{\"type\":\"Punctuation\"}}", "Punctuation");
}

/* ---- what stands beside tokenizer.json ---- */

#define BESIDE                                                                                                                     \
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"h\":0,\"i\":1,\"hi\":2,\"\\u0120\":3,\"<\":4,\"m\":5,\">\":6,\"x\":7,\"y\":8},"     \
    "\"merges\":[\"h i\"]},\"normalizer\":{\"type\":\"NFKC\"}," BYTES ",\"decoder\":{\"type\":\"ByteLevel\"},\"added_tokens\":["   \
    "{\"id\":9,\"content\":\"<m>\",\"special\":true,\"normalized\":false},"                                                        \
    "{\"id\":10,\"content\":\"<n>\",\"special\":true,\"normalized\":false}],\"post_processor\":{\"type\":\"TemplateProcessing\","  \
    "\"single\":[" SPECIAL("<n>") "," SEQUENCE "],\"special_tokens\":{\"<n>\":{\"id\":\"<n>\",\"ids\":[10]}}}}"
#define LISTED(flags) "\"added_tokens_decoder\":{\"9\":{\"content\":\"<m>\"" flags "}}"
#define OBJECT        "{\"content\":\"<n>\",\"lstrip\":false,\"normalized\":false,\"rstrip\":false,\"single_word\":false}"

static void write_beside(const char *folder, const char *name, const char *text) {
    char *path = gr_path_join(folder, name);
    if (text) assert_ok(gr_file_write(path, text, (int64_t)strlen(text), &err));
    else remove(path);
    free(path);
}

/* Each is honoured as transformers does it, or warned about by name. Ids, eos (-1: none) and what is special are transformers',
 * but where the warning says so. */
static void test_beside_json(void **state) {
    (void)state;
    static const struct {
        const char *config, *map, *added, *text;
        int32_t ids[6];
        int n, eos;
        bool special; /* "<m>" */
        const char *warning;
    } rows[] = {
        {"{\"eos_token\":\"<n>\"}", NULL, NULL, "h <m> x", {0, 3, 9, 3, 7}, 5, 10, true, NULL},
        {"\xef\xbb\xbf{\"eos_token\":\"<n>\"}", NULL, NULL, "x", {7}, 1, 10, true, NULL}, /* after a byte order mark */
        /* flags */
        {"{" LISTED(",\"special\":true,\"lstrip\":true") "}", NULL, NULL, "h <m> x", {0, 9, 3, 7}, 4, -1, true, NULL},
        {"{" LISTED(",\"special\":true,\"rstrip\":true") "}", NULL, NULL, "h <m> x", {0, 3, 9, 7}, 4, -1, true, NULL},
        {"{" LISTED(",\"special\":true,\"single_word\":true") "}", NULL, NULL, "<m>x", {4, 5, 6, 7}, 4, -1, true, NULL},
        {"{" LISTED(",\"special\":true") "}", NULL, NULL, "\xef\xbc\x9cm>", {4, 5, 6}, 3, -1, true, NULL},
        {"{" LISTED(",\"special\":true,\"normalized\":true") "}", NULL, NULL, "\xef\xbc\x9cm>", {9}, 1, -1, true, NULL},
        {"{" LISTED("") "}", NULL, NULL, "\xef\xbc\x9cm>", {9}, 1, -1, false, NULL},
        {"{\"image_token\":\"<m>\"," LISTED("") "}", NULL, NULL, "<m>", {9}, 1, -1, true, NULL},
        {"{\"extra_special_tokens\":[\"<m>\"]," LISTED("") "}", NULL, NULL, "<m>", {9}, 1, -1, false, NULL},
        {"{}", "{\"eos_token\":{\"content\":\"<m>\",\"lstrip\":true}}", NULL, "h <m>", {0, 3, 9}, 3, 9, true, NULL},
        /* which file has the word */
        {"{\"eos_token\":\"<m>\"}",
         "{\"eos_token\":\"<n>\"}",
         NULL,
         "x",
         {7},
         1,
         10,
         true,
         "the eos_token is \"<n>\", as special_tokens_map.json has it, not \"<m>\""},
        {"{\"eos_token\":\"<m>\"}", "{\"eos_token\":null}", NULL, "x", {7}, 1, -1, true, NULL},
        {"{\"eos_token\":\"<m>\"}", "{\"eos_token\":" OBJECT "}", "{\"<m>\":9}", "x", {7}, 1, 10, true, "not \"<m>\""},
        {"{\"eos_token\":\"<m>\"," LISTED(",\"special\":true") "}",
         "{\"eos_token\":\"<n>\"}",
         "{\"<p>\":11}",
         "x",
         {7},
         1,
         9,
         true,
         NULL},
        {"{" LISTED(",\"special\":true") "}",
         "{\"eos_token\":\"<n>\"}",
         NULL,
         "x",
         {7},
         1,
         10,
         true,
         "the eos_token \"<n>\" is that of special_tokens_map.json; transformers does not read it"},
        {"{}", NULL, "{\"<m>\":3}", "<m>", {9}, 1, -1, true, "the added token \"<m>\" keeps its id"},
        /* what the vocabulary lacks, or has as a piece alone */
        {"{\"additional_special_tokens\":[\"<m>\",{\"__type\":\"AddedToken\",\"content\":\"<h>\"},\"<x>\"]}",
         NULL,
         NULL,
         "<m>",
         {9},
         1,
         -1,
         true,
         "the additional_special_tokens \"<h>\" (and others) is not in the vocabulary and is left out"},
        {"{\"extra_special_tokens\":{\"image_token\":\"<h>\"}}",
         NULL,
         NULL,
         "x",
         {7},
         1,
         -1,
         true,
         "the extra_special_tokens \"<h>\" is not"},
        {"{}",
         "{\"additional_special_tokens\":[\"<h>\"]}",
         NULL,
         "x",
         {7},
         1,
         -1,
         true,
         "the additional_special_tokens \"<h>\" is not"},
        {"{\"image_token\":\"<h>\"}", NULL, NULL, "x", {7}, 1, -1, true, "the image_token \"<h>\" is not in the vocabulary"},
        {"{\"added_tokens_decoder\":{\"11\":{\"content\":\"<h>\"}}}",
         NULL,
         NULL,
         "x",
         {7},
         1,
         -1,
         true,
         "the added token \"<h>\" is not"},
        {"{\"pad_token\":\"h\"}",
         NULL,
         NULL,
         "hi",
         {2},
         1,
         -1,
         true,
         "the pad_token \"h\" is a piece of the vocabulary and no added"},
        {"{\"added_tokens_decoder\":{\"0\":{\"content\":\"h\"}}}",
         NULL,
         NULL,
         "hi",
         {2},
         1,
         -1,
         true,
         "the added token \"h\" is a piece of the vocabulary alone"},
        /* settings */
        {"{\"split_special_tokens\":true}", NULL, NULL, "<m>", {9}, 1, -1, true, "split_special_tokens is left out of account"},
        {"{\"bos_token\":\"<n>\",\"add_bos_token\":false}",
         NULL,
         NULL,
         "x",
         {7},
         1,
         -1,
         true,
         "add_bos_token is false, which is taken, while tokenizer.json's post_processor adds that token"},
        {"{\"eos_token\":\"<m>\",\"add_eos_token\":true}",
         NULL,
         NULL,
         "x",
         {7},
         1,
         9,
         true,
         "add_eos_token is true, which is taken, while tokenizer.json's post_processor adds no such token"},
        {"{\"add_bos_token\":true,\"add_eos_token\":false}", NULL, NULL, "x", {7}, 1, -1, true, NULL},
    };
    char dir[] = "/tmp/test_tokenizers_XXXXXX";
    assert_non_null(mkdtemp(dir));
    write_beside(dir, "tokenizer.json", BESIDE);
    for (int i = 0; i < GR_LEN(rows); i++) {
        char *log = NULL;
        size_t n;
        gr_tokenizer *t = NULL;
        FILE *stream = open_memstream(&log, &n);
        write_beside(dir, "tokenizer_config.json", rows[i].config);
        write_beside(dir, "special_tokens_map.json", rows[i].map);
        write_beside(dir, "added_tokens.json", rows[i].added);
        gr_log_tee(stream);
        assert_ok(gr_tokenizer_open(&t, dir, &err));
        gr_log_tee(NULL);
        fclose(stream);
        if (rows[i].warning ? !strstr(log, rows[i].warning) : *log != '\0')
            fail_msg("row %d: logged \"%s\", expected \"%s\"", i, log, rows[i].warning ? rows[i].warning : "");
        check_ids(t, rows[i].text, rows[i].n, rows[i].ids);
        assert_int_equal(t->info.eos, rows[i].eos);
        assert_int_equal(t->pieces[9].type, rows[i].special ? GR_PIECE_CONTROL : GR_PIECE_USER);
        gr_tokenizer_free(t);
        free(log);
    }
    gr_remove_all(dir);
}

/* tokenizer.model knows no flags but whether a piece is a control token. */
static void test_beside_model(void **state) {
    (void)state;
    static const struct {
        const char *config, *warning;
    } rows[] = {
        {"{\"added_tokens_decoder\":{\"1\":{\"content\":\"<s>\",\"special\":true}},\"add_bos_token\":false}", NULL},
        {"{\"added_tokens_decoder\":{\"1\":{\"content\":\"<s>\",\"special\":true,\"rstrip\":true}}}",
         "says of \"<s>\" (special, lstrip"},
    };
    char dir[] = "/tmp/test_tokenizers_XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/tokenizer.model", dir);
    assert_ok(gr_file_copy(TESTS_DIR "/golden/tokenizers/sp-bpe/tokenizer.model", path, &err));
    for (int i = 0; i < GR_LEN(rows); i++) {
        char *log = NULL;
        size_t n;
        gr_tokenizer *t = NULL;
        FILE *stream = open_memstream(&log, &n);
        write_beside(dir, "tokenizer_config.json", rows[i].config);
        gr_log_tee(stream);
        assert_ok(gr_tokenizer_open(&t, dir, &err));
        gr_log_tee(NULL);
        fclose(stream);
        if (rows[i].warning ? !strstr(log, rows[i].warning) : *log != '\0') fail_msg("row %d: logged \"%s\"", i, log);
        gr_tokenizer_free(t);
        free(log);
    }
    gr_remove_all(dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_added_byte_pieces),      cmocka_unit_test(test_default_words),
        cmocka_unit_test(test_gguf_without_keys),      cmocka_unit_test(test_merge_twice),
        cmocka_unit_test(test_old_sentencepiece),      cmocka_unit_test(test_pipelines),
        cmocka_unit_test(test_conversions_are_proved), cmocka_unit_test(test_beside_json),
        cmocka_unit_test(test_beside_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
