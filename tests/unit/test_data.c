/* Readers of data files: every form, and hostile files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "core/data/dataset.h"

static char folder[64]; /* of this run's files */

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/test_data_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    gr_remove_all(folder);
    return 0;
}

static const char *put_bytes(const char *name, const void *bytes, size_t n) {
    static char paths[8][128]; /* the last 8 stay valid */
    static int next;
    char *path = paths[next++ % 8];
    graft_error err;
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    assert_int_equal(gr_file_write(path, bytes, (int64_t)n, &err), GRAFT_OK);
    return path;
}

static const char *put(const char *name, const char *text) {
    return put_bytes(name, text, strlen(text));
}

/* All samples as "user=..|assistant=..;" or "text=..;", "!" after a role without loss; or the error's
 * message. */
static void read_all(gr_str *out, const gr_data_source *source, const char **format) {
    graft_error err = {0};
    gr_reader *r;
    gr_record rec;
    gr_str_clear(out);
    gr_str_puts(out, "");
    if (gr_reader_open(&r, source, &err) != GRAFT_OK) {
        assert_null(r);
        gr_str_puts(out, err.msg);
        return;
    }
    if (format) *format = gr_reader_format(r);
    int64_t n = 0;
    for (;; n++) {
        if (gr_reader_next(r, &rec, &err) != GRAFT_OK) {
            gr_str_clear(out);
            gr_str_puts(out, err.msg);
            break;
        }
        if (!rec.n_messages && !rec.text) {
            assert_int_equal(n, gr_reader_count(r));
            break;
        }
        if (rec.text) gr_str_printf(out, "text=%s", rec.text);
        for (int64_t i = 0; i < rec.n_messages; i++)
            gr_str_printf(out, "%s%s%s=%s", i ? "|" : "", rec.messages[i].role,
                          rec.messages[i].no_loss ? "!" : "", rec.messages[i].content);
        gr_str_putc(out, ';');
    }
    gr_reader_close(r);
}

static void test_formats(void **state) {
    static const struct {
        const char *text, *format, *expected;
    } cases[] = {
        {"{\"instruction\":\"i\",\"input\":\"x\",\"output\":\"o\"}", "alpaca", "user=i\nx|assistant=o;"},
        {"[{\"instruction\":\"i\",\"input\":\"\",\"output\":\"o\"},\n "
         "{\"instruction\":\"j\",\"output\":\"p\"}]",
         "alpaca", "user=i|assistant=o;user=j|assistant=p;"},
        {"{\"instruction\":\"i\",\"input\":null,\"output\":\"o\",\"system\":\"s\",\"history\":[[\"q\",\"a\"]]"
         "}",
         "alpaca", "system=s|user=q|assistant=a|user=i|assistant=o;"},
        {"{\"instruction\":\"\",\"input\":\"x\",\"output\":\"o\"}", "alpaca", "user=x|assistant=o;"},
        {"{\"instruction\":\"i\",\"output\":\"o\"}", "instruction_output", "user=i|assistant=o;"},
        {"{\"instruction\":\"i\",\"instances\":[{\"input\":\"x\",\"output\":\"o\"}],\"id\":1}", "seed_tasks",
         "user=i\nx|assistant=o;"},
        {"{\"conversations\":[{\"from\":\"human\",\"value\":\"h\"},{\"from\":\"gpt\",\"value\":\"g\"}],"
         "\"system\":\"s\"}",
         "sharegpt", "system=s|user=h|assistant=g;"},
        {"{\"id\":\"7\",\"conversations\":[{\"from\":\"human\",\"value\":\"h\"},{\"from\":\"assistant\","
         "\"value\":\"g\"}]}",
         "sharegpt", "user=h|assistant=g;"},
        {"{\"conversations\":[{\"from\":\"function_call\",\"value\":\"f\"},{\"from\":\"observation\","
         "\"value\":\"r\"}]}",
         "sharegpt", "assistant=f|tool=r;"},
        {"{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"u\"},"
         "{\"role\":\"assistant\",\"content\":\"a\",\"weight\":0},{\"role\":\"assistant\",\"content\":\"b\","
         "\"weight\":1}]}",
         "messages", "system=s|user=u|assistant!=a|assistant=b;"},
        {"{\"prompt\":\"p\",\"completion\":\"c\"}", "prompt_completion", "user=p|assistant=c;"},
        {"{\"prompt\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"u\"}],"
         "\"completion\":[{\"role\":\"assistant\",\"content\":\"c\"}]}",
         "prompt_completion", "system=s|user=u|assistant=c;"},
        {"{\"question\":\"q\",\"answer\":\"a\"}", "question_answer", "user=q|assistant=a;"},
        {"{\"question\":\"q\",\"std_answer\":\"a\",\"class\":\"math\"}", "question_answer",
         "user=q|assistant=a;"},
        {"{\"text\":\"t\"}", "text", "text=t;"},
        {"{\"prompt\":\"p\",\"class\":\"c\"}", "prompt", "user=p;"},
        /* what a file may look like */
        {"\xEF\xBB\xBF{\"text\":\"a\"}\r\n\r\n  \n{\"text\":\"b\"}\r\n", "text", "text=a;text=b;"},
        {"\n [ {\"text\":\"a]},[\\\"\"} , {\"text\":\"b\"} ] \n", "text", "text=a]},[\";text=b;"},
        {"{\"text\":\"a\\u0000b\"}", "text",
         "text=a\xEF\xBF\xBD"
         "b;"},
        {"{\"text\":\"\\ud83d\\ude00 \\ud83d \\ude00 \\\\ud83d\"}", "text",
         "text=\xF0\x9F\x98\x80 \xEF\xBF\xBD \xEF\xBF\xBD \\ud83d;"},
        {"{\"text\":\"a\xFF"
         "b\xE4\xBD\"}",
         "text",
         "text=a\xEF\xBF\xBD"
         "b\xEF\xBF\xBD;"},
        {"{\"text\":\"\xED\xA0\x80\"}", "text", "text=\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD;"},
        {"{\"text\":\"a\",\"id\":123456789012345678901234567890,\"x\":1e300}", "text", "text=a;"},
        {"{\"text\":\"a\",\"text\":\"b\"}", "text", "text=b;"},
    };
    (void)state;
    gr_str got = {0};
    for (int i = 0; i < GR_LEN(cases); i++) {
        const char *format = "?";
        read_all(&got, &(gr_data_source){.path = put("f.jsonl", cases[i].text)}, &format);
        assert_string_equal(got.data, cases[i].expected);
        assert_string_equal(format, cases[i].format);
        read_all(&got, &(gr_data_source){.path = put("f.jsonl", cases[i].text), .format = cases[i].format},
                 &format);
        assert_string_equal(got.data, cases[i].expected);
    }
    gr_str_release(&got);
}

static void test_hostile_files(void **state) {
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"", "empty, expected JSONL"},
        {" \n\t\r\n", "empty, expected JSONL"},
        {"\xEF\xBB\xBF", "empty, expected JSONL"},
        {"[]", "empty list"},
        {"[", "cut off"},
        {"[{\"text\":\"a\"}", "cut off"},
        {"[{\"text\":\"a\"},", "after 1 whole samples"},
        {"[{\"text\":\"a\"},]", "comma with no sample after"},
        {"[,{\"text\":\"a\"}]", "comma with no sample before"},
        {"[{\"text\":\"a\"}]\n{\"text\":\"b\"}", ":2: text after the end"},
        {"[{\"text\":\"a\"}}]", "unexpected \"}\""},
        {"[{\"text\":\"a\"} {\"text\":\"b\"}]", "bad JSON"},
        {"\xFF\xFE{", "UTF-16"},
        {"{\"text\":\"a\"}\n{\"text\":", ":2:"},
        {"{\"text\":\"a\"}\n{\"text\":\"b\" x}", ":2:13: bad JSON"},
        {"{\"text\":\"a\"}{\"text\":\"b\"}", "bad JSON: end of file expected"},
        {"{\"text\":\"a\nb\"}", ":1:"},
        {"{\"text\":NaN}", "bad JSON"},
        {"{\"text\":\"a\"}\n5", ":2: a sample is a number"},
        {"\"text\"", ":1: a sample is a string"},
        {"{\"text\":\"a\"}\n{\"txt\":\"b\"}", ":2: no \"text\" here (format text; keys: txt)"},
        {"{\"text\":7}", "\"text\" is a number, expected a string"},
        {"{\"text\":null}", "\"text\" is null"},
        {"{\"foo\":1,\"b\\nr\":2}", "keys foo, b?r; forms are messages {messages}, sharegpt"},
        {"{}", "keys none"},
        {"{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\"}", "objective: dpo"},
        {"{\"prompt\":\"p\",\"completion\":\"a\",\"label\":true}", "format: prompt_completion"},
        {"{\"messages\":[]}", "\"messages\" is an empty list"},
        {"{\"messages\":{}}", "\"messages\" is an object, expected a list"},
        {"{\"messages\":[5]}", "a message is a number"},
        {"{\"messages\":[{\"content\":\"a\"}]}", "no \"role\""},
        {"{\"messages\":[{\"role\":\"user\"}]}", "no \"content\""},
        {"{\"messages\":[{\"role\":\"ro\\nbot\",\"content\":\"a\"}]}", "unknown role \"ro?bot\""},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", "\"content\" is a list"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"weight\":0.5}]}", "must be 0 or 1"},
        {"{\"conversations\":[{\"value\":\"a\"}]}", "no \"from\""},
        {"{\"instruction\":\"i\",\"input\":\"\",\"output\":\"o\",\"history\":[[\"q\"]]}",
         "[question, answer] pairs"},
        {"{\"instruction\":\"i\",\"input\":\"\",\"output\":\"o\",\"history\":\"q\"}",
         "\"history\" is a string"},
        {"{\"instruction\":\"i\",\"instances\":[]}", "one object {input, output}"},
        {"[{\"question\":\"q\",\"answer\":\"a\"},\n\n{\"question\":\"q\"}]", ":3 (sample 2): no \"answer\""},
    };
    (void)state;
    gr_str got = {0};
    for (int i = 0; i < GR_LEN(cases); i++) {
        read_all(&got, &(gr_data_source){.path = put("bad.jsonl", cases[i].text)}, NULL);
        if (!strstr(got.data, cases[i].expected))
            fail_msg("\"%s\" not in \"%s\"", cases[i].expected, got.data);
        assert_non_null(strstr(got.data, "bad.jsonl"));
        assert_null(strchr(got.data, '\n'));
    }
    char deep[20000]; /* nested beyond any sense, in a list and in a line */
    memset(deep, '[', sizeof deep);
    read_all(&got, &(gr_data_source){.path = put_bytes("bad.json", deep, sizeof deep)}, NULL);
    assert_non_null(strstr(got.data, "cut off"));
    memcpy(deep, "{\"text\":", 8);
    read_all(&got, &(gr_data_source){.path = put_bytes("bad.json", deep, sizeof deep)}, NULL);
    assert_non_null(strstr(got.data, "maximum parsing depth"));
    read_all(&got, &(gr_data_source){.path = put_bytes("bad.jsonl", "{\"text\":\"a\"}\n\0\0\0", 16)}, NULL);
    assert_non_null(strstr(got.data, ":2:1: bad JSON"));
    read_all(&got, &(gr_data_source){.path = "/nonexistent/a.jsonl"}, NULL);
    assert_string_equal(got.data, "/nonexistent/a.jsonl: no such file");
    gr_str_release(&got);
}

static void test_source_options(void **state) {
    (void)state;
    gr_str got = {0};
    const char *path =
        put("train.jsonl",
            "{\"q\":\"a\",\"r\":\"b\",\"text\":\"t\"}\n{\"q\":\"c\",\"r\":\"d\",\"text\":\"t\"}\n");
    gr_column qa[] = {{"question", "q"}, {"answer", "r"}}, pc[] = {{"prompt", "q"}, {"completion", "r"}},
              odd[] = {{"quest", "q"}};
    const char *format = "?";
    read_all(&got, &(gr_data_source){.path = folder, .columns = qa, .n_columns = 2}, &format);
    assert_string_equal(got.data, "user=a|assistant=b;user=c|assistant=d;");
    assert_string_equal(format, "question_answer");
    read_all(&got, &(gr_data_source){.path = path, .columns = pc, .n_columns = 2, .limit = 1}, &format);
    assert_string_equal(got.data, "user=a|assistant=b;");
    assert_string_equal(format, "prompt_completion");
    read_all(&got, &(gr_data_source){.path = path}, &format);
    assert_string_equal(format, "text");
    read_all(&got,
             &(gr_data_source){.path = path, .format = "question_answer", .columns = odd, .n_columns = 1},
             NULL);
    assert_non_null(strstr(got.data, "columns: \"quest\" is no field of format question_answer"));
    read_all(&got, &(gr_data_source){.path = path, .format = "alpaca"}, NULL);
    assert_non_null(
        strstr(got.data, "format alpaca needs instruction and output, the keys here are: q, r, text"));
    read_all(&got, &(gr_data_source){.path = path, .format = "alpacca"}, NULL);
    assert_non_null(strstr(got.data, "unknown format \"alpacca\" (did you mean alpaca?)"));
    read_all(&got, &(gr_data_source){.path = "/proc"}, NULL);
    assert_non_null(strstr(got.data, "folder without train.jsonl"));
    gr_str_release(&got);
}

static void test_shared_files(void **state) {
    static const struct {
        const char *name, *format;
        int64_t n;
    } files[] = {
        {"alpaca_en_0.json", "alpaca", 3252},
        {"alpaca_zh_0.json", "alpaca", 3247},
        {"alpaca_en_1.json", "alpaca", 3130},
        {"alpaca_zh_1.json", "alpaca", 2982},
        {"belle_eval_prompt.jsonl", "prompt", 11},
        {"belle_eval_set_500.jsonl", "question_answer", 500},
        {"belle_zh_seed_tasks.jsonl", "seed_tasks", 175},
        {"gsm8k_train.jsonl", "question_answer", 7473},
    };
    (void)state;
    char path[512];
    const char *shared = getenv("GRAFT_SHARED");
    if (!shared) shared = TESTS_DIR "/../../shared";
    for (int i = 0; i < GR_LEN(files); i++) {
        graft_error err;
        gr_reader *r;
        gr_record rec;
        int64_t n = 0;
        snprintf(path, sizeof path, "%s/data/%s", shared, files[i].name);
        if (!gr_exists(path)) {
            print_message("SKIPPED: no %s; set GRAFT_SHARED to the folder that holds data/\n", path);
            skip();
        }
        assert_int_equal(gr_reader_open(&r, &(gr_data_source){.path = path}, &err), GRAFT_OK);
        assert_string_equal(gr_reader_format(r), files[i].format);
        for (;; n++) {
            assert_int_equal(gr_reader_next(r, &rec, &err), GRAFT_OK);
            if (!rec.n_messages && !rec.text) break;
        }
        assert_int_equal(n, files[i].n);
        gr_reader_close(r);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_hostile_files),
        cmocka_unit_test(test_source_options),
        cmocka_unit_test(test_shared_files),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
