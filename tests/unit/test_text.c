/* core/text against golden files made by HF tokenizers and transformers: ids, decodings, streaming, chat
 * renderings and masks; then files that are damaged on purpose. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "core/base/file.h"
#include "core/text/chat_template.h"
#include "core/text/encode.h"
#include "core/text/read.h"
#include "assert_ok.h"

static const char *const KINDS[] = {"gpt2", "smollm2", "llama3", "qwen2", "sp-bpe", "sp-gemma", "sp-unigram"};

static gr_tokenizer *open_golden(const char *kind) {
    char path[512];
    gr_tokenizer *t = NULL;
    snprintf(path, sizeof path, "%s/golden/tokenizers/%s", TESTS_DIR, kind);
    assert_ok(gr_tokenizer_open(&t, path, &err));
    return t;
}

static json_t *load(const char *name) {
    char path[512];
    json_error_t problem;
    snprintf(path, sizeof path, "%s/golden/%s", TESTS_DIR, name);
    json_t *j = json_load_file(path, JSON_ALLOW_NUL, &problem);
    if (!j) fail_msg("%s: %s", path, problem.text);
    return j;
}

static json_t *load_cases(const char *kind) {
    char name[128];
    snprintf(name, sizeof name, "tokenizers/%s/cases.json", kind);
    return load(name);
}

static void check_ids(const char *kind, const gr_ids *got, const json_t *wanted, const char *text) {
    bool same = got->n == (int64_t)json_array_size(wanted);
    for (int64_t i = 0; same && i < got->n; i++) same = got->data[i] == json_integer_value(json_array_get(wanted, (size_t)i));
    if (!same) fail_msg("%s: ids differ for \"%s\"", kind, text);
}

static void test_encode(void **state) {
    (void)state;
    for (int k = 0; k < GR_LEN(KINDS); k++) {
        gr_tokenizer *t = open_golden(KINDS[k]);
        json_t *root = load_cases(KINDS[k]), *row, *byte;
        gr_ids ids = {0};
        size_t i, b;
        json_array_foreach(json_object_get(root, "cases"), i, row) {
            const json_t *text = json_object_get(row, "text");
            ids.n = 0;
            assert_ok(gr_tokenizer_encode(t, json_string_value(text), (int64_t)json_string_length(text), true, &ids, &err));
            check_ids(KINDS[k], &ids, json_object_get(row, "ids"), json_string_value(text));
        }
        json_array_foreach(json_object_get(root, "damaged"), i, row) {
            gr_str bytes = {0};
            json_array_foreach(json_object_get(row, "bytes"), b, byte) gr_str_putc(&bytes, (char)json_integer_value(byte));
            ids.n = 0;
            assert_ok(gr_tokenizer_encode(t, bytes.data, bytes.len, true, &ids, &err));
            check_ids(KINDS[k], &ids, json_object_get(row, "ids"), bytes.data);
            gr_str_release(&bytes);
        }
        gr_ids_release(&ids);
        json_decref(root);
        gr_tokenizer_free(t);
    }
}

/* HF gives U+FFFD for bytes that are no UTF-8, one way or another; graft's decode keeps them: such rows are
 * left out. */
static void test_decode(void **state) {
    (void)state;
    for (int k = 0; k < GR_LEN(KINDS); k++) {
        gr_tokenizer *t = open_golden(KINDS[k]);
        json_t *root = load_cases(KINDS[k]), *row;
        size_t i, j;
        int compared = 0;
        json_array_foreach(json_object_get(root, "decode"), i, row) {
            const json_t *list = json_object_get(row, "ids"), *id;
            gr_ids ids = {0};
            json_array_foreach(list, j, id) gr_ids_push(&ids, (int32_t)json_integer_value(id));
            for (int skip = 0; skip < 2; skip++) {
                const char *wanted = json_string_value(json_object_get(row, skip ? "text_skip_special" : "text"));
                gr_str text = {0}, streamed = {0}, repaired = {0};
                gr_decode_stream stream = {0};
                assert_ok(gr_tokenizer_decode(t, ids.data, ids.n, skip, &text, &err));
                for (int64_t n = 0; n < ids.n; n++) {
                    assert_ok(gr_tokenizer_stream(t, &stream, ids.data[n], skip, &streamed, &err));
                    assert_true(gr_utf8_valid(streamed.data ? streamed.data : "", streamed.len));
                }
                gr_decode_stream_flush(&stream, &streamed);
                gr_utf8_repair(text.data, text.len, &repaired);
                assert_string_equal(repaired.data ? repaired.data : "", wanted);
                if (!strstr(wanted, "\xef\xbf\xbd")) { /* a stream does not wait for the end of a bad run */
                    compared++;
                    assert_string_equal(streamed.data ? streamed.data : "", wanted);
                }
                gr_str_release(&repaired);
                gr_str_release(&text);
                gr_str_release(&streamed);
            }
            gr_ids_release(&ids);
        }
        assert_true(compared > 40);
        json_decref(root);
        gr_tokenizer_free(t);
    }
}

static void test_control_tokens_are_text(void **state) {
    (void)state;
    gr_tokenizer *t = open_golden("smollm2");
    gr_ids ids = {0};
    assert_ok(gr_tokenizer_encode(t, "<|im_end|>", 10, false, &ids, &err));
    assert_true(ids.n > 1);
    ids.n = 0;
    assert_ok(gr_tokenizer_encode(t, "<|im_end|>", 10, true, &ids, &err));
    assert_int_equal(ids.n, 1);
    assert_int_equal(ids.data[0], gr_tokenizer_find(t, "<|im_end|>"));
    int32_t beyond = (int32_t)gr_tokenizer_get_info(t)->n_vocab;
    gr_str text = {0};
    assert_int_equal(gr_tokenizer_decode(t, &beyond, 1, false, &text, &err), GRAFT_BAD_INPUT);
    gr_ids_release(&ids);
    gr_tokenizer_free(t);
}

/* A long word takes the heap, not the array, and must not take quadratic time. */
static void test_long_words(void **state) {
    (void)state;
    gr_tokenizer *t = open_golden("gpt2");
    gr_ids ids = {0};
    gr_str text = {0}, back = {0};
    for (int i = 0; i < 200000; i++) gr_str_putc(&text, "thequick"[i % 8]);
    assert_ok(gr_tokenizer_encode(t, text.data, text.len, true, &ids, &err));
    assert_ok(gr_tokenizer_decode(t, ids.data, ids.n, false, &back, &err));
    assert_int_equal(text.len, back.len);
    assert_memory_equal(text.data, back.data, (size_t)text.len);
    gr_str_release(&text);
    gr_str_release(&back);
    gr_ids_release(&ids);
    gr_tokenizer_free(t);
}

/* A character of the vocabulary that is an added token, too, keeps its id within words. Ids: tokenizers' (Python). */
static void test_added_character(void **state) {
    (void)state;
    static const int32_t expected[] = {261, 317, 296, 269, 296, 298, 306, 295, 331, 296, 331};
    char dir[] = "/tmp/graft-text-XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    json_t *root = json_load_file(TESTS_DIR "/golden/tokenizers/sp-bpe/tokenizer.json", 0, NULL);
    assert_non_null(root);
    json_array_append_new(json_object_get(root, "added_tokens"),
                          json_pack("{s:i,s:s,s:b,s:b,s:b,s:b,s:b}", "id", 296, "content", "e", "single_word", 0, "lstrip", 0,
                                    "rstrip", 0, "normalized", 1, "special", 0));
    assert_int_equal(json_dump_file(root, path, 0), 0);
    json_decref(root);
    gr_tokenizer *t = NULL;
    gr_ids ids = {0};
    assert_ok(gr_tokenizer_open(&t, dir, &err));
    assert_ok(gr_tokenizer_encode(t, "abe bead xex", 12, true, &ids, &err));
    assert_int_equal(ids.n, GR_LEN(expected));
    assert_memory_equal(ids.data, expected, sizeof expected);
    gr_ids_release(&ids);
    gr_tokenizer_free(t);
    gr_remove_all(dir);
}

/* Through GGUF keys and back the ids stay. */
static void test_gguf_round_trip(void **state) {
    (void)state;
    static const char *const kinds[] = {"smollm2", "llama3", "qwen2", "sp-bpe", "sp-gemma"};
    char dir[] = "/tmp/graft-text-XXXXXX", path[64], folder[64];
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/t.gguf", dir);
    snprintf(folder, sizeof folder, "%s/hf", dir);
    for (int k = 0; k < GR_LEN(kinds); k++) {
        gr_tokenizer *t = open_golden(kinds[k]), *loaded = NULL, *again = NULL;
        gr_gguf_builder b = {0};
        gr_remove_all(folder);
        assert_ok(gr_make_dirs(folder, &err));
        assert_ok(gr_tokenizer_save_gguf(t, gr_tokenizer_get_info(t)->n_vocab + 3, &b, &err));
        assert_ok(gr_gguf_write(path, &b, NULL, 0, NULL, NULL, &err));
        assert_ok(gr_tokenizer_open(&loaded, path, &err));
        assert_ok(gr_tokenizer_save_hf(loaded, folder, &err));
        assert_ok(gr_tokenizer_open(&again, folder, &err));
        const int64_t n_tokens = gr_tokenizer_get_info(t)->n_vocab; /* the three rows more are padding */
        assert_int_equal(gr_tokenizer_get_info(loaded)->n_vocab, n_tokens + 3);
        assert_int_equal(gr_tokenizer_n_tokens(loaded), n_tokens);
        assert_int_equal(gr_tokenizer_n_tokens(again), n_tokens);
        assert_int_equal(gr_tokenizer_get_info(again)->n_vocab, n_tokens);
        json_t *root = load_cases(kinds[k]), *row;
        size_t i;
        json_array_foreach(json_object_get(root, "cases"), i, row) {
            const json_t *text = json_object_get(row, "text");
            const gr_tokenizer *both[] = {loaded, again};
            for (int n = 0; n < 2; n++) {
                gr_ids ids = {0};
                assert_ok(
                    gr_tokenizer_encode(both[n], json_string_value(text), (int64_t)json_string_length(text), true, &ids, &err));
                check_ids(kinds[k], &ids, json_object_get(row, "ids"), json_string_value(text));
                gr_ids_release(&ids);
            }
        }
        json_decref(root);
        gr_gguf_builder_release(&b);
        gr_tokenizer_free(t);
        gr_tokenizer_free(loaded);
        gr_tokenizer_free(again);
    }
    gr_remove_all(dir);
}

/* ---- chat ---- */

static const struct {
    const char *name, *tokenizer;
} CHATS[] = {{"smollm2", "smollm2"}, {"chatml", "smollm2"}, {"qwen2", "qwen2"},   {"qwen2.5", "qwen2"},
             {"llama-3", "llama3"},  {"llama-2", "sp-bpe"}, {"alpaca", "sp-bpe"}, {"belle", "sp-bpe"}};

static gr_chat *open_chat(const char *name, const char *source, const char *system, const char *args, const gr_tokenizer *t) {
    gr_chat *c = NULL;
    gr_chat_options o = {.name = name, .source = source, .system = system, .args = args};
    assert_ok(gr_chat_open(&c, &o, t, &err));
    return c;
}

static gr_conversation conversation(const json_t *list, gr_message *out) {
    size_t i;
    const json_t *m;
    json_array_foreach(list, i, m)
        out[i] = (gr_message){.role = json_string_value(json_object_get(m, "role")),
                              .content = json_string_value(json_object_get(m, "content"))};
    return (gr_conversation){.messages = out, .n = (int64_t)json_array_size(list)};
}

static void test_chat_golden(void **state) {
    (void)state;
    json_t *root = load("chat_cases.json"), *row;
    int n_cases = 0;
    for (int k = 0; k < GR_LEN(CHATS); k++) {
        gr_tokenizer *t = open_golden(CHATS[k].tokenizer);
        gr_chat *c = open_chat(CHATS[k].name, NULL, NULL, NULL, t);
        size_t i;
        json_array_foreach(root, i, row) {
            if (strcmp(json_string_value(json_object_get(row, "template")), CHATS[k].name) != 0) continue;
            gr_message m[16];
            gr_conversation x = conversation(json_object_get(row, "messages"), m);
            gr_str text = {0}, back = {0};
            gr_ids ids = {0};
            bool prompt = json_is_true(json_object_get(row, "add_generation_prompt"));
            assert_ok(gr_chat_render(c, &x, prompt, &text, &err));
            assert_string_equal(text.data, json_string_value(json_object_get(row, "text")));
            assert_ok(gr_chat_prompt(c, &x, &ids, &err));
            if (prompt) assert_ok(gr_tokenizer_decode(t, ids.data, ids.n, false, &back, &err));
            if (prompt && t->byte_level) assert_string_equal(back.data, text.data);
            gr_str_release(&back);
            gr_str_release(&text);
            gr_ids_release(&ids);
            n_cases++;
        }
        gr_chat_free(c);
        gr_tokenizer_free(t);
    }
    assert_int_equal(n_cases, json_array_size(root));
    json_decref(root);
}

static void check_unknown(const char *name, const gr_tokenizer *t, const char *hint) {
    gr_chat *c = NULL;
    assert_int_equal(gr_chat_open(&c, &(gr_chat_options){.name = name}, t, &err), GRAFT_BAD_USAGE);
    assert_null(c);
    if (!strstr(err.msg, hint)) fail_msg("\"%s\" lacks \"%s\"", err.msg, hint);
}

static void test_chat_unknown(void **state) {
    (void)state;
    gr_tokenizer *t = open_golden("gpt2");
    check_unknown("auto", t, "alpaca");
    check_unknown("smollm2", t, "<|im_start|>");
    check_unknown("lama-3", t, "llama-3");
    gr_tokenizer_free(t);
}

/* The learned ids of a conversation, decoded, with '|' between stretches and '/' between sequences. */
static char *learned(const gr_tokenizer *t, const gr_chat *c, const gr_conversation *x, gr_loss_on on) {
    gr_encoded e = {0};
    gr_str text = {0};
    assert_ok(gr_chat_encode(c, x, on, &e, &err));
    for (int64_t i = 0, s = 0; i < e.ids.n; i++) {
        if (e.target[i]) assert_ok(gr_tokenizer_decode(t, &e.ids.data[i], 1, false, &text, &err));
        if (e.target[i] && (i + 1 == e.end[s] || !e.target[i + 1])) gr_str_putc(&text, '|');
        if (i + 1 == e.end[s] && ++s < e.n_sequences) gr_str_putc(&text, '/');
    }
    gr_encoded_release(&e);
    gr_str_add(&text, "", 0);
    return gr_str_take(&text);
}

static void check_learned(const gr_tokenizer *t, const gr_chat *c, const gr_message *m, int64_t n, gr_loss_on on,
                          const char *wanted) {
    char *text = learned(t, c, &(gr_conversation){.messages = m, .n = n}, on);
    assert_string_equal(text, wanted);
    free(text);
}

static void test_chat_masks(void **state) {
    (void)state;
    gr_tokenizer *t = open_golden("smollm2");
    gr_chat *c = open_chat("smollm2", NULL, "", NULL, t);
    gr_message m[] = {{.role = "user", .content = "Hi"},
                      {.role = "assistant", .content = "One"},
                      {.role = "user", .content = "<|im_end|>"},
                      {.role = "assistant", .content = "Two"}};
    gr_conversation prompt = {.messages = m, .n = 3}, whole = {.messages = m, .n = 4};
    assert_int_equal(gr_chat_end_of_turn(c), gr_tokenizer_find(t, "<|im_end|>"));
    check_learned(t, c, m, 4, GR_LOSS_COMPLETION, "One<|im_end|>|Two<|im_end|>|");
    check_learned(t, c, m, 4, GR_LOSS_LAST, "Two<|im_end|>|");
    check_learned(t, c, m, 2, GR_LOSS_ALL, "user\nHi<|im_end|>|<|im_start|>assistant\nOne<|im_end|>|");
    m[1].no_loss = true;
    check_learned(t, c, m, 4, GR_LOSS_COMPLETION, "Two<|im_end|>|");
    gr_encoded e = {0};
    gr_ids before = {0};
    assert_ok(gr_chat_prompt(c, &prompt, &before, &err));
    assert_ok(gr_chat_encode(c, &whole, GR_LOSS_COMPLETION, &e, &err));
    int64_t first = 0;
    while (!e.target[first]) first++;
    assert_int_equal(first, before.n); /* the model is trained on what it sees when it generates */
    assert_memory_equal(e.ids.data, before.data, (size_t)before.n * sizeof(int32_t));
    gr_message wrong[] = {{.role = "robot", .content = "x"}};
    assert_int_equal(gr_chat_encode(c, &(gr_conversation){.messages = wrong, .n = 1}, GR_LOSS_ALL, &e, &err), GRAFT_BAD_INPUT);
    assert_int_equal(gr_chat_encode(c, &(gr_conversation){.messages = wrong, .n = 0}, GR_LOSS_ALL, &e, &err), GRAFT_BAD_INPUT);
    gr_encoded_release(&e);
    gr_ids_release(&before);
    gr_chat_free(c);
    c = open_chat("belle", NULL, NULL, NULL, t);
    m[1].no_loss = false;
    check_learned(t, c, m, 4, GR_LOSS_COMPLETION, "One<|im_end|>|Two<|im_end|>|"); /* eos of this tokenizer */
    gr_chat_free(c);
    c = open_chat("none", NULL, NULL, NULL, t);
    check_learned(t, c, m + 2, 2, GR_LOSS_COMPLETION, "Two<|im_end|>|");
    gr_chat_free(c);
    gr_tokenizer_free(t);
}

/* A template of its own kind: reasoning of earlier answers is dropped, calls of tools are wrapped, the prompt may open the
 * reasoning. */
#define THINKER                                                                                                                    \
    "{% for m in messages %}{% set last = loop.last or messages[loop.index:] | selectattr('role', 'equalto', 'user') | list | "    \
    "length == 0 %}"                                                                                                               \
    "{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content and last %}{{ '<think>' + m.reasoning_content + '</think>' "    \
    "}}{% endif %}"                                                                                                                \
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + c.function.arguments | tojson + "       \
    "'</call>' }}{% endfor %}"                                                                                                     \
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if think %}{{ '<think>' "     \
    "}}{% endif %}{% endif %}"

static void check_json(const gr_tokenizer *t, const gr_chat *c, const char *json, const char *wanted) {
    json_t *list = json_loads(json, 0, NULL), *m;
    gr_message messages[8];
    size_t i;
    assert_non_null(list);
    gr_conversation x = conversation(list, messages);
    json_array_foreach(list, i, m) {
        messages[i].fields = m;
        if (!messages[i].content) messages[i].content = "";
    }
    char *text = learned(t, c, &x, GR_LOSS_COMPLETION);
    assert_string_equal(text, wanted);
    free(text);
    json_decref(list);
}

static void test_chat_turns(void **state) {
    (void)state;
    gr_tokenizer *t = open_golden("smollm2");
    gr_chat *c = open_chat("thinker", THINKER, NULL, NULL, t);
    /* template text that the model must write is learned, and of an answer after another its own sequence where history differs */
    check_json(t, c,
               "[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": null, \"tool_calls\": "
               "[{\"function\": {\"name\": \"f\","
               "\"arguments\": {\"x\": 1}}}]}, {\"role\": \"tool\", \"content\": \"7\"}, {\"role\": \"assistant\", \"content\": "
               "\"b\", \"reasoning_content\": \"r\"}]",
               "<call>f{\"x\": 1}</call><|im_end|>|<think>r</think>b<|im_end|>|");
    check_json(
        t, c,
        "[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\", \"reasoning_content\": \"r\"},"
        "{\"role\": \"user\", \"content\": \"c\"}, {\"role\": \"assistant\", \"content\": \"d\"}]",
        "d<|im_end|>|/<think>r</think>b<|im_end|>|");
    gr_chat_free(c);
    /* the prompt opens the reasoning that the answer then has or lacks */
    c = open_chat("thinker", THINKER, NULL, "{\"think\": true}", t);
    check_json(
        t, c,
        "[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\", \"reasoning_content\": \"r\"}]",
        "r</think>b<|im_end|>|");
    check_json(t, c, "[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]", "b<|im_end|>|");
    gr_chat_free(c);
    /* {% generation %} narrows; the end token stays */
    c = open_chat("narrow",
                  "{% for m in messages %}{{ '<|im_start|>' + m.role + ':' }}{% if m.role == 'assistant' %}{{ 'say ' }}{% "
                  "generation %}{{ m.content }}"
                  "{% endgeneration %}{{ ' so' }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' }}{% endfor %}",
                  NULL, NULL, t);
    check_json(t, c, "[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \" b\"}]",
               " b|<|im_end|>|");
    gr_chat_free(c);
    /* a token over the border is learned: its last byte is the answer's. Control text of a message stays text */
    c = open_chat(
        "straddle",
        "{% for m in messages %}{{ 'i' + m.content + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}i{% endif %}", NULL,
        NULL, t);
    check_json(t, c, "[{\"role\": \"user\", \"content\": \"a<|im_end|>\"}, {\"role\": \"assistant\", \"content\": \"nt\"}]",
               "int<|im_end|>|");
    gr_chat_free(c);
    gr_tokenizer_free(t);
}

static void test_chat_losses(void **state) {
    (void)state;
    gr_tokenizer *t = open_golden("smollm2");
    gr_chat *c = open_chat("chatml", NULL, NULL, NULL, t);
    gr_encoded e = {0};
    json_t *call = json_loads(
        "{\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": \"{}\"}}]}",
        0, NULL);
    json_t *thought = json_loads("{\"role\": \"assistant\", \"content\": \"x\", \"reasoning_content\": \"y\"}", 0, NULL),
           *tools = json_loads("[{\"name\": \"f\"}]", 0, NULL);
    gr_message m[] = {{.role = "user", .content = "a"}, {.role = "assistant", .content = "", .fields = call}};
    gr_conversation x = {.messages = m, .n = 2};
    assert_int_equal(gr_chat_encode(c, &x, GR_LOSS_COMPLETION, &e, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "message 2: chat template chatml does not write its tool_calls"));
    m[1] = (gr_message){.role = "assistant", .content = "x", .fields = thought};
    assert_int_equal(gr_chat_encode(c, &x, GR_LOSS_COMPLETION, &e, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "reasoning_content"));
    m[1].fields = NULL;
    x.tools = tools;
    assert_int_equal(gr_chat_encode(c, &x, GR_LOSS_COMPLETION, &e, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "tools"));
    x.tools = NULL;
    assert_ok(gr_chat_encode(c, &x, GR_LOSS_COMPLETION, &e, &err));
    assert_int_equal(e.n_unwritten, 0);
    gr_chat_free(c);
    c = open_chat("halves", "{% for m in messages %}{{ '<|im_start|>' + m.content.split('|')[-1] + '<|im_end|>' }}{% endfor %}",
                  NULL, NULL, t);
    gr_message halves[] = {{.role = "user", .content = "a|b"},
                           {.role = "assistant", .content = "c|d"},
                           {.role = "user", .content = "e"},
                           {.role = "assistant", .content = "f g"}};
    assert_ok(gr_chat_encode(c, &(gr_conversation){.messages = halves, .n = 4}, GR_LOSS_COMPLETION, &e, &err));
    assert_int_equal(e.n_shortened, 1);
    gr_chat_free(c);
    c = open_chat("deaf", "{% for m in messages if m.role != 'system' %}{{ m.content + '<|im_end|>' }}{% endfor %}", NULL, NULL, t);
    gr_message deaf[] = {{.role = "system", .content = "s"}, m[0], m[1]};
    assert_ok(gr_chat_encode(c, &(gr_conversation){.messages = deaf, .n = 3}, GR_LOSS_COMPLETION, &e, &err));
    assert_int_equal(e.n_unwritten, 1);
    gr_chat_free(c);
    gr_encoded_release(&e);
    json_decref(call);
    json_decref(thought);
    json_decref(tools);
    gr_tokenizer_free(t);
}

static void check_text(const gr_chat *c, const gr_message *m, int64_t n, const char *wanted) {
    gr_str text = {0};
    assert_ok(gr_chat_render(c, &(gr_conversation){.messages = m, .n = n}, true, &text, &err));
    assert_string_equal(text.data, wanted);
    gr_str_release(&text);
}

/* data.system and template_args are part of the text that goes into files: rendered anew from there it is the same. */
static void test_chat_source(void **state) {
    (void)state;
    static const char own[] = "{{ bos_token }}{% if messages[0].role != 'system' %}{{ '<sys>Be a default.</sys>\n' }}{% endif %}{% "
                              "for m in messages %}{{ '<' + (m.role if m.role"
                              " != 'system' else 'sys') + '>' + m.content + '</' + (m.role if m.role != 'system' else 'sys') + "
                              "'>\n' }}{% endfor %}{% if add_generation_prompt %}"
                              "{{ '<assistant>' ~ mood }}{% endif %}";
    gr_tokenizer *t = open_golden("sp-bpe");
    gr_message m[] = {{.role = "system", .content = "S"}, {.role = "user", .content = "U"}};
    gr_chat *c = open_chat("own", own, "Say \"hi\"\n{{ 1 }}", "{\"mood\": \"!\"}", t);
    for (int again = 0; again < 2; again++) {
        check_text(c, m + 1, 1, "<s><sys>Say \"hi\"\n{{ 1 }}</sys>\n<user>U</user>\n<assistant>!");
        check_text(c, m, 2, "<s><sys>S</sys>\n<user>U</user>\n<assistant>!");
        char *source = gr_strdup(gr_chat_source(c));
        gr_chat_free(c);
        c = open_chat("again", source, NULL, NULL, t);
        free(source);
    }
    gr_chat_free(c);
    c = open_chat("own", own, "", "{\"mood\": \"\"}", t); /* none: the default goes, BOS and a given one stay */
    check_text(c, m + 1, 1, "<s><user>U</user>\n<assistant>");
    check_text(c, m, 2, "<s><sys>S</sys>\n<user>U</user>\n<assistant>");
    gr_chat_free(c);
    gr_chat_options odd = {
        .name = "odd",
        .source = "{{ 'You are X. ' if messages[0].role != 'system' }}{% for m in messages %}{{ m.content }}{% endfor %}",
        .system = ""};
    assert_int_equal(gr_chat_open(&c, &odd, t, &err), GRAFT_BAD_USAGE);
    assert_non_null(strstr(err.msg, "cannot be told from the rest"));
    odd.source = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}";
    odd.system = "Be heard.";
    assert_int_equal(gr_chat_open(&c, &odd, t, &err), GRAFT_BAD_USAGE);
    assert_non_null(strstr(err.msg, "does not write system messages"));
    odd.system = NULL;
    odd.args = "{\"mood\": 1}";
    assert_int_equal(gr_chat_open(&c, &odd, t, &err), GRAFT_BAD_USAGE);
    assert_non_null(strstr(err.msg, "does not use \"mood\""));
    gr_tokenizer_free(t);
}

/* Tools speak within a user turn of Qwen2.5; two in a row share one. */
static void test_chat_tool(void **state) {
    (void)state;
    gr_tokenizer *t = open_golden("qwen2");
    gr_chat *c = open_chat("qwen2.5", NULL, NULL, NULL, t);
    gr_str text = {0};
    gr_message m[] = {{.role = "tool", .content = "7"}, {.role = "tool", .content = "8"}};
    assert_ok(gr_chat_render(c, &(gr_conversation){.messages = m, .n = 2}, false, &text, &err));
    assert_non_null(strstr(
        text.data, "<|im_start|>user\n<tool_response>\n7\n</tool_response>\n<tool_response>\n8\n</tool_response><|im_end|>\n"));
    gr_str_release(&text);
    gr_chat_free(c);
    gr_tokenizer_free(t);
}

/* In a SentencePiece model the text after an answer's start goes on: no second dummy prefix, so the ids are
 * those of the whole. */
static void test_chat_spm_boundary(void **state) {
    (void)state;
    gr_tokenizer *t = open_golden("sp-bpe");
    gr_chat *c = open_chat("llama-2", NULL, NULL, NULL, t);
    gr_message m[] = {{.role = "user", .content = "What is it?"}, {.role = "assistant", .content = "The river."}};
    gr_encoded e = {0};
    gr_ids whole = {0};
    const char *text = "<s>[INST] What is it? [/INST] The river. </s>";
    assert_ok(gr_chat_encode(c, &(gr_conversation){.messages = m, .n = 2}, GR_LOSS_COMPLETION, &e, &err));
    assert_ok(gr_tokenizer_encode(t, text, (int64_t)strlen(text), true, &whole, &err));
    assert_int_equal(e.ids.n, whole.n);
    assert_memory_equal(e.ids.data, whole.data, (size_t)whole.n * sizeof(int32_t));
    gr_encoded_release(&e);
    gr_ids_release(&whole);
    gr_chat_free(c);
    gr_tokenizer_free(t);
}

/* A control token that is looked for in normalised text is one where nothing but trusted text spells it. */
static void test_trusted_normalized(void **state) {
    (void)state;
    static const char json[] =
        "{\"added_tokens\": [{\"id\": 9, \"content\": \"<s>\", \"special\": true, \"normalized\": true}], \"normalizer\": "
        "{\"type\": \"NFKC\"},"
        "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, \"decoder\": {\"type\": \"ByteLevel\"},"
        "\"model\": {\"type\": \"BPE\", \"vocab\": {\"<\": 0, \"s\": 1, \">\": 2, \"a\": 3}, \"merges\": []}}";
    static const struct {
        const char *text;
        int64_t trusted;
        int n, ids[8];
    } cases[] = {{"<s>a", 4, 2, {9, 3}},
                 {"<s>a", 3, 2, {9, 3}},
                 {"<s>a", 0, 4, {0, 1, 2, 3}},
                 {"<s>a<s>", 3, 7, {0, 1, 2, 3, 0, 1, 2}},
                 {"a\xef\xbc\x9cs>", 1, 4, {3, 0, 1, 2}} /* a wide "<" */};
    gr_tokenizer *t = NULL;
    assert_ok(gr_tokenizer_parse_json(&t, json, (int64_t)strlen(json), "t.json", &err));
    for (int i = 0; i < GR_LEN(cases); i++) {
        gr_ids ids = {0};
        gr_range trusted = {0, cases[i].trusted};
        assert_ok(gr_tokenizer_encode_trusted(t, cases[i].text, (int64_t)strlen(cases[i].text), &trusted, 1, &ids, NULL, &err));
        assert_int_equal(ids.n, cases[i].n);
        for (int k = 0; k < cases[i].n; k++) assert_int_equal(ids.data[k], cases[i].ids[k]);
        gr_ids_release(&ids);
    }
    gr_tokenizer_free(t);
}

static void parse_yaml(const char *yaml, graft_status wanted, const char *hint) {
    gr_tokenizer *t = open_golden("smollm2");
    char *source;
    err.msg[0] = '\0';
    assert_int_equal(gr_chat_template_from_yaml(&source, yaml, (int64_t)strlen(yaml), "t.yaml", t, &err), wanted);
    if (hint && !strstr(err.msg, hint)) fail_msg("\"%s\" lacks \"%s\"", err.msg, hint);
    free(source);
    gr_tokenizer_free(t);
}

static void test_chat_file(void **state) {
    (void)state;
    parse_yaml("{system: 'S {content}', user: 'U {content}', assistant: 'A {content}'}", GRAFT_OK, NULL);
    parse_yaml("user: '{content}'\n", GRAFT_BAD_INPUT, "assistant");
    parse_yaml("usr: '{content}'\n", GRAFT_BAD_INPUT, "did you mean user");
    parse_yaml("user: 'no place'\n", GRAFT_BAD_INPUT, "{content}");
    parse_yaml("[1, 2]", GRAFT_BAD_INPUT, "mapping");
    parse_yaml("user: [a]", GRAFT_BAD_INPUT, "string");
    parse_yaml("user: 'x", GRAFT_BAD_INPUT, "t.yaml");
    parse_yaml("", GRAFT_BAD_INPUT, "mapping");
}

/* ---- hostile files ---- */

static void parse_json(const char *json, const char *hint) {
    gr_tokenizer *t = NULL;
    assert_int_equal(gr_tokenizer_parse_json(&t, json, (int64_t)strlen(json), "t.json", &err), GRAFT_BAD_INPUT);
    assert_null(t);
    if (!strstr(err.msg, hint)) fail_msg("\"%s\" lacks \"%s\"", err.msg, hint);
}

#define BYTES "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"

static void test_hostile_json(void **state) {
    (void)state;
    parse_json("{\"model\":", "no JSON");
    parse_json("{}", "model");
    parse_json("{\"model\":{\"type\":\"WordPiece\",\"vocab\":{\"a\":0}}}", "WordPiece");
    parse_json("{\"model\":{\"vocab\":{},\"merges\":[]}," BYTES "}", "empty");
    parse_json("{\"model\":{\"vocab\":{\"a\":2000000000},\"merges\":[]}," BYTES "}", "2000000000");
    parse_json("{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}," BYTES "}", "-1");
    parse_json("{\"model\":{\"vocab\":{\"a\":\"x\"},\"merges\":[]}," BYTES "}", "integer");
    parse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}," BYTES "}", "merge 0");
    parse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"ab\"]}," BYTES "}", "merge 0");
    parse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}," BYTES "}", "merge 0");
    parse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"pre_tokenizer\":{\"type\":\"Whitespace\"}}", "Whitespace");
    parse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[]},\"normalizer\":{\"type\":\"Lowercase\"}," BYTES "}", "Lowercase");
    parse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"byte_fallback\":true,\"unk_token\":\"zz\"}}", "unknown token");
    parse_json("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"dropout\":0.1}," BYTES "}", "dropout");
    parse_json("{\"model\":{\"vocab\":[[\"a\"]]}}", "[piece, score]");
    parse_json("{\"model\":{\"vocab\":[[\"a\",0]]},\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_"
               "charsmap\":\"////\"}}",
               "damaged");
    parse_json("{\"added_tokens\":[{\"id\":99999999,\"content\":\"x\"}],\"model\":{\"vocab\":{\"a\":0},"
               "\"merges\":[]}," BYTES "}",
               "99999999");
}

static gr_tokenizer *parse_good(const char *json) {
    gr_tokenizer *t = NULL;
    assert_ok(gr_tokenizer_parse_json(&t, json, (int64_t)strlen(json), "t.json", &err));
    return t;
}

/* What published files hold beside the usual: GPT-2's empty unk_token, LLaMA's normalised added tokens. */
static void test_published_json(void **state) {
    (void)state;
    gr_tokenizer_free(parse_good("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"\"}," BYTES "}"));
    gr_tokenizer_free(parse_good("{\"model\":{\"vocab\":{\"a\":0},\"merges\":[],\"unk_token\":\"zz\"}," BYTES "}"));
    gr_tokenizer *t = parse_good(
        "{\"added_tokens\":[{\"id\":3,\"content\":\"a b\",\"special\":false,\"normalized\":true}],"
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\u2581\"}"
        ","
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\u2581\"}]},"
        "\"model\":{\"byte_fallback\":true,\"unk_token\":\"b\",\"merges\":[],\"vocab\":{\"\u2581\":0,\"a\":1,\"b\":2}}}");
    gr_ids ids = {0};
    gr_str text = {0};
    assert_ok(gr_tokenizer_encode(t, "a a b", 5, true, &ids, &err)); /* found with the space before it */
    assert_int_equal(ids.n, 3);
    assert_int_equal(ids.data[0], 0);
    assert_int_equal(ids.data[1], 1);
    assert_int_equal(ids.data[2], 3);
    assert_ok(gr_tokenizer_decode(t, ids.data, ids.n, false, &text, &err));
    assert_string_equal(text.data, " a a b");
    gr_str_release(&text);
    gr_ids_release(&ids);
    gr_tokenizer_free(t);
}

/* tokenizer_config.json as transformers writes it: a huge model_max_length, tokens as objects, templates by
 * name; special_tokens_map.json overrules it; what names a token that is not there is left out. */
static void test_published_config(void **state) {
    (void)state;
    char dir[] = "/tmp/test_text_XXXXXX", path[64];
    assert_non_null(mkdtemp(dir));
    static const struct {
        const char *name, *text;
    } files[] = {
        {"tokenizer.json", "{\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"c\":2},\"merges\":[]}," BYTES "}"},
        {"special_tokens_map.json", "{\"bos_token\":\"c\",\"eos_token\":{\"content\":\"a\"}}"},
        {"added_tokens.json", "{\"<pad>\":7}"},
        {"tokenizer_config.json",
         "{\"model_max_length\":1000000000000000019884624838656,\"add_bos_token\":true,\"pad_token\":\"<pad>"
         "\","
         "\"bos_token\":{\"__type\":\"AddedToken\",\"content\":\"b\"},\"unk_token\":null,"
         "\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"T\"},{\"name\":\"default\",\"template\":"
         "\"D\"}]}"},
    };
    for (int i = 0; i < GR_LEN(files); i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i].name);
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        fputs(files[i].text, f);
        fclose(f);
    }
    gr_tokenizer *t = NULL;
    assert_ok(gr_tokenizer_open(&t, dir, &err));
    const gr_tokenizer_info *info = gr_tokenizer_get_info(t);
    assert_int_equal(info->bos, 2);
    assert_int_equal(info->eos, 0);
    assert_int_equal(info->pad, -1);
    assert_true(info->add_bos);
    assert_string_equal(info->chat_template, "D");
    gr_tokenizer_free(t);
    for (int i = 0; i < GR_LEN(files); i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i].name);
        remove(path);
    }
    assert_int_equal(rmdir(dir), 0);
}

/* Byte pieces that are not wholly UTF-8 are one U+FFFD each, as HF's ByteFallback writes them. */
static void test_decode_bytes(void **state) {
    (void)state;
    gr_tokenizer *t = open_golden("sp-bpe");
    static const struct {
        uint8_t bytes[4];
        int n;
        const char *text;
    } cases[] = {{{0xE4, 0xBD, 0xA0}, 3, "\xe4\xbd\xa0"},
                 {{0xE4, 0xBD}, 2, "\xef\xbf\xbd\xef\xbf\xbd"},
                 {{0xA0, 0x41}, 2, "\xef\xbf\xbd\xef\xbf\xbd"},
                 {{0x20, 0x41}, 2, "A"}};
    for (int i = 0; i < GR_LEN(cases); i++) {
        int32_t ids[4];
        gr_str text = {0};
        for (int k = 0; k < cases[i].n; k++) ids[k] = t->byte_ids[cases[i].bytes[k]];
        assert_ok(gr_tokenizer_decode(t, ids, cases[i].n, false, &text, &err));
        assert_string_equal(text.data, cases[i].text);
        gr_str_release(&text);
    }
    gr_tokenizer_free(t);
}

/* A trie whose units lead in circles or out of the table must end. */
static void test_hostile_charsmap(void **state) {
    (void)state;
    uint32_t units[3 + 2] = {16, 0xFFFFFFFF, 0x7FFFFFFF, 0x161, 0x561};
    char blob[24], out[64];
    memcpy(blob, units, 20);
    memcpy(blob + 20, "abc", 4);
    for (uint32_t seed = 1; seed < 100; seed++) {
        gr_tokenizer *t = gr_tokenizer_new(1);
        assert_non_null(t);
        for (int i = 4; i < 20; i++) blob[i] = (char)((seed * 2654435761u) >> (i % 24));
        assert_ok(gr_charsmap_set(t, blob, sizeof blob, "test", &err));
        t->norm[0].kind = seed % 2 ? GR_NORM_CHARSMAP : GR_NORM_CHARSMAP_SPM;
        t->n_norm = 1;
        gr_scratch s = {0};
        const char *result;
        int64_t n;
        snprintf(out, sizeof out, "text %u a\xcc\x81", seed);
        assert_true(gr_normalize(t, &s, out, (int64_t)strlen(out), &result, &n));
        gr_str_release(&s.normal[0]);
        gr_tokenizer_free(t);
    }
}

static void test_hostile_spm(void **state) {
    (void)state;
    char path[512], *bytes;
    int64_t n;
    snprintf(path, sizeof path, "%s/golden/tokenizers/sp-bpe/tokenizer.model", TESTS_DIR);
    assert_ok(gr_file_read(&bytes, &n, path, 1 << 24, &err));
    for (int64_t cut = 0; cut < n; cut += 1 + n / 50) { /* every prefix is refused or is a smaller model */
        gr_tokenizer *t = NULL;
        char *part = gr_strndup(bytes, cut);
        graft_status st = gr_tokenizer_parse_spm(&t, part, cut, "cut.model", &err);
        assert_true(st == GRAFT_OK ? t != NULL : st == GRAFT_BAD_INPUT && t == NULL);
        gr_tokenizer_free(t);
        free(part);
    }
    gr_tokenizer *t = NULL;
    static const char huge[] = "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"; /* a piece of 2^63-1 bytes */
    assert_int_equal(gr_tokenizer_parse_spm(&t, huge, sizeof huge - 1, "huge.model", &err), GRAFT_BAD_INPUT);
    free(bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_control_tokens_are_text),
        cmocka_unit_test(test_long_words),
        cmocka_unit_test(test_added_character),
        cmocka_unit_test(test_gguf_round_trip),
        cmocka_unit_test(test_chat_golden),
        cmocka_unit_test(test_chat_unknown),
        cmocka_unit_test(test_chat_masks),
        cmocka_unit_test(test_chat_tool),
        cmocka_unit_test(test_trusted_normalized),
        cmocka_unit_test(test_chat_turns),
        cmocka_unit_test(test_chat_losses),
        cmocka_unit_test(test_chat_source),
        cmocka_unit_test(test_chat_spm_boundary),
        cmocka_unit_test(test_chat_file),
        cmocka_unit_test(test_hostile_json),
        cmocka_unit_test(test_published_json),
        cmocka_unit_test(test_published_config),
        cmocka_unit_test(test_decode_bytes),
        cmocka_unit_test(test_hostile_charsmap),
        cmocka_unit_test(test_hostile_spm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
