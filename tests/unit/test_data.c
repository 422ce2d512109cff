/* Readers of data files: every form, and hostile files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>
#include <zlib.h>

#include "core/base/file.h"
#include "core/data/dataset.h"
#include "core/data/reader.h"

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

static const char *put(const char *name, const char *text) { return put_bytes(name, text, strlen(text)); }

static void add_json(gr_str *out, const char *before, const json_t *value) {
    char *text = value ? json_dumps(value, JSON_COMPACT) : NULL;
    if (text) gr_str_printf(out, "%s%s", before, text);
    free(text);
}

/* All samples as "user=..|assistant=..;" or "text=..;", "!" after a role without loss, a message's fields after it where
 * it has more, tools and documents at the end; or the error's message. */
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
        for (int64_t i = 0; i < rec.n_messages; i++) {
            gr_str_printf(out, "%s%s%s=%s", i ? "|" : "", rec.messages[i].role, rec.messages[i].no_loss ? "!" : "",
                          rec.messages[i].content);
            add_json(out, "", rec.messages[i].fields);
        }
        add_json(out, "|tools=", rec.tools);
        add_json(out, "|documents=", rec.documents);
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
        {"{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"u\"},"
         "{\"role\":\"assistant\",\"content\":\"a\",\"weight\":0},{\"role\":\"assistant\",\"content\":\"b\","
         "\"weight\":1}]}",
         "messages", "system=s|user=u|assistant!=a|assistant=b;"},
        {"{\"prompt\":\"p\",\"completion\":\"c\"}", "prompt_completion", "user=p|assistant=c;"},
        {"{\"prompt\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"u\"}],"
         "\"completion\":[{\"role\":\"assistant\",\"content\":\"c\"}]}",
         "prompt_completion", "system=s|user=u|assistant=c;"},
        {"{\"question\":\"q\",\"answer\":\"a\"}", "question_answer", "user=q|assistant=a;"},
        {"{\"question\":\"q\",\"std_answer\":\"a\",\"class\":\"math\"}", "question_answer", "user=q|assistant=a;"},
        {"{\"text\":\"t\"}", "text", "text=t;"},
        {"{\"prompt\":\"p\",\"class\":\"c\"}", "prompt", "user=p;"},
        /* what a file may look like */
        {"\xEF\xBB\xBF{\"text\":\"a\"}\r\n\r\n  \n{\"text\":\"b\"}\r\n", "text", "text=a;text=b;"},
        {"\n [ {\"text\":\"a]},[\\\"\"} , {\"text\":\"b\"} ] \n", "text", "text=a]},[\";text=b;"},
        {"{\"text\":\"a\\u0000b\"}", "text",
         "text=a\xEF\xBF\xBD"
         "b;"},
        {"{\"text\":\"\\ud83d\\ude00 \\\\ud83d\"}", "text", "text=\xF0\x9F\x98\x80 \\ud83d;"},
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
        read_all(&got, &(gr_data_source){.path = put("f.jsonl", cases[i].text), .format = cases[i].format}, &format);
        assert_string_equal(got.data, cases[i].expected);
    }
    gr_str_release(&got);
}

#define SAMPLE(messages) "{\"messages\":[" messages "]}"
#define USER             "{\"role\":\"user\",\"content\":\"u\"},"
#define WEATHER          "{\"name\":\"weather\",\"arguments\":{\"n\":5}}"

/* What a message holds beyond role and content. */
static void test_messages(void **state) {
    static const struct {
        const char *text, *expected;
    } cases[] = {
        /* calls of tools: as the file has them, null stays null */
        {SAMPLE(USER "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"function\":" WEATHER "}]}"),
         "user=u|assistant={\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"function\":" WEATHER "}]};"},
        {SAMPLE(USER "{\"role\":\"assistant\",\"tool_calls\":[{\"function\":" WEATHER "}]},"
                     "{\"role\":\"tool\",\"tool_call_id\":\"c\",\"content\":\"t\"}"),
         "user=u|assistant={\"role\":\"assistant\",\"tool_calls\":[{\"function\":" WEATHER "}]}|"
         "tool=t{\"role\":\"tool\",\"tool_call_id\":\"c\",\"content\":\"t\"};"},
        {SAMPLE(USER "{\"role\":\"assistant\",\"content\":\"a\",\"tool_calls\":null}"), "user=u|assistant=a;"},
        {SAMPLE("{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":\"[{\\\"name\\\":\\\"f\\\"}]\"}"),
         "assistant={\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"name\":\"f\"}]};"},
        /* the older form becomes the newer */
        {SAMPLE(USER "{\"role\":\"assistant\",\"content\":null,\"function_call\":{\"name\":\"f\",\"arguments\":\"{}\"}},"
                     "{\"role\":\"function\",\"name\":\"f\",\"content\":\"t\"}"),
         "user=u|assistant={\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"type\":\"function\",\"function\":{\"name\":"
         "\"f\","
         "\"arguments\":\"{}\"}}]}|tool=t{\"role\":\"tool\",\"content\":\"t\",\"name\":\"f\"};"},
        {"{\"conversations\":[{\"from\":\"human\",\"value\":\"h\"},{\"from\":\"function_call\",\"value\":\"{\\\"name\\\":"
         "\\\"f\\\",\\\"arguments\\\":{}}\"},{\"from\":\"function_call\",\"value\":\"[{\\\"name\\\":\\\"g\\\",\\\"arguments\\\":"
         "{\\\"x\\\":1}}]\"},{\"from\":\"observation\",\"value\":\"o\"}],\"tools\":\"[{\\\"name\\\":\\\"f\\\"}]\"}",
         "user=h|assistant={\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{\"type\":\"function\",\"function\":{\"name\":"
         "\"f\","
         "\"arguments\":{}}},{\"type\":\"function\",\"function\":{\"name\":\"g\",\"arguments\":{\"x\":1}}}]}|tool=o|"
         "tools=[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}];"},
        /* tools and documents of the sample */
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"u\"}],\"tools\":[{\"name\":\"f\"}],\"documents\":[{\"text\":\"d\"}]}",
         "user=u|tools=[{\"name\":\"f\"}]|documents=[{\"text\":\"d\"}];"},
        {"{\"prompt\":\"p\",\"completion\":\"c\",\"functions\":[{\"name\":\"f\"}],\"tools\":[]}",
         "user=p|assistant=c|tools=[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}];"},
        {"{\"prompt\":\"p\",\"completion\":\"c\",\"history\":[[\"q\",\"a\"]]}", "user=q|assistant=a|user=p|assistant=c;"},
        /* content in parts, and other roles' names */
        {SAMPLE("{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a \"},\"b\"]},"
                "{\"role\":\"assistant\",\"name\":\"n\",\"content\":[{\"type\":\"text\",\"text\":\"c\"}]}"),
         "user=a b|assistant=c{\"role\":\"assistant\",\"content\":\"c\",\"name\":\"n\"};"},
        {SAMPLE("{\"role\":\"developer\",\"content\":\"d\",\"name\":\"n\"}," USER "{\"role\":\"model\",\"content\":\"m\"}"),
         "system=d{\"role\":\"system\",\"content\":\"d\",\"name\":\"n\"}|user=u|assistant=m;"},
        {SAMPLE(USER "{\"role\":\"assistant\",\"reasoning_content\":\"r\",\"content\":\"a\"}"),
         "user=u|assistant=a{\"role\":\"assistant\",\"reasoning_content\":\"r\",\"content\":\"a\"};"},
        /* turns that are not learned */
        {SAMPLE(
             "{\"role\":\"assistant\",\"content\":\"a\",\"train\":false},{\"role\":\"user\",\"content\":\"u\",\"weight\":1},"
             "{\"role\":\"assistant\",\"content\":\"b\",\"training\":0},{\"role\":\"assistant\",\"content\":\"c\",\"loss\":true}"),
         "assistant!=a|user=u|assistant!=b|assistant=c;"},
    };
    (void)state;
    gr_str got = {0};
    for (int i = 0; i < GR_LEN(cases); i++) {
        read_all(&got, &(gr_data_source){.path = put("m.jsonl", cases[i].text)}, NULL);
        assert_string_equal(got.data, cases[i].expected);
    }
    gr_str_release(&got);
}

/* Fields that change what a sample means: refused on every sample, by name; and the way out. */
static void test_refused_fields(void **state) {
    static const struct {
        const char *fields, *expected;
    } cases[] = {
        {"\"label\":true", "\"label\" is preference data"},
        {"\"label\":0", "\"label\" is preference data"},
        {"\"label\":\"False\"", "ignore: [label]"},
        {"\"label\":\"sports\"", NULL},
        {"\"label\":null", NULL},
        {"\"is_desirable\":false", "\"is_desirable\" is preference data"},
        {"\"loss_mask\":[0,1]", "\"loss_mask\" says what is learned"},
        {"\"masks\":[1]", "ignore: [masks]"},
        {"\"loss_mask\":[]", NULL},
        {"\"kto_tag\":true", "\"kto_tag\" is preference data"},
        {"\"rejected\":\"r\"", "objective: dpo"},
        {"\"rejected\":null", NULL},
        {"\"rejected_response\":\"r\"", "\"rejected_response\""},
        {"\"chosen\":[]", "\"chosen\""},
        {"\"images\":[\"a.png\"]", "\"images\": graft learns text alone"},
        {"\"images\":[]", NULL},
        {"\"weight\":0.5", "\"weight\": a weight for a single sample"},
        {"\"weight\":1", NULL},
        {"\"train\":false", "\"train\" says that the sample is not to be learned"},
        {"\"loss\":2.25", NULL},
        {"\"system_prompt\":\"s\"", "columns: {system: system_prompt}"},
        {"\"tool_calls\":[{}]", "\"tool_calls\" belongs to a message"},
        {"\"chat_template_kwargs\":{\"a\":1}", "data.template_args"},
        {"\"tools\":5", "\"tools\" is a number"},
        {"\"tools\":\"search\"", "\"tools\" is a string that is no JSON list"},
        {"\"tools\":[\"search\"]", "\"tools\" holds a string"},
        {"\"tools\":[{\"n\":1}],\"id\":12345678901234567890123", "beyond 64 bits"},
        {"\"id\":12345678901234567890123", NULL},
    };
    static const struct {
        const char *message, *expected;
    } messages[] = {
        {"\"role\":\"user\",\"train\":true", "message 2: \"train\": true on a turn of the role user"},
        {"\"role\":\"assistant\",\"weight\":0.5", "\"weight\" of a message must be 0 or 1"},
        {"\"role\":\"assistant\",\"train\":\"no\"", "\"train\" of a message must be 0 or 1"},
        {"\"role\":\"assistant\",\"masked\":true", "\"masked\": write \"train\": false"},
        {"\"role\":\"assistant\",\"no_loss\":true", "\"no_loss\": write \"train\": false"},
        {"\"role\":\"assistant\",\"ignore\":1", "\"ignore\": write \"train\": false"},
        {"\"role\":\"assistant\",\"ignore\":false", NULL},
        {"\"role\":\"assistant\",\"loss_mask\":1", "\"loss_mask\": a turn is learned whole"},
        {"\"role\":\"assistant\",\"loss_weight\":0", "assistant!=c;"},
        {"\"role\":\"assistant\",\"loss_scale\":0.0", "assistant!=c;"},
        {"\"role\":\"assistant\",\"loss_scale\":0.5", "\"loss_scale\" of a message must be 0 or 1"},
        {"\"role\":\"user\",\"loss_weight\":1", "user=c"},
        {"\"role\":\"assistant\",\"train_detail\":[{\"train\":false}]", "\"train_detail\": a turn is learned whole"},
        {"\"role\":\"user\",\"images\":[\"a.png\"]", "\"images\": graft learns text alone"},
        {"\"role\":\"user\",\"tool_calls\":[{\"name\":\"f\"}]", "only an assistant calls tools"},
        {"\"role\":\"assistant\",\"tool_calls\":{}", NULL},
        {"\"role\":\"assistant\",\"tool_calls\":[{}]", "call 1 has no \"function\" with a \"name\""},
        {"\"role\":\"assistant\",\"tool_calls\":\"x\"", "\"tool_calls\" is a string, expected a list of calls"},
        {"\"role\":\"assistant\",\"function_call\":{\"name\":\"f\"}", "\"function_call\" must be the call of a tool"},
        {"\"role\":\"function_call\"", "a turn of \"function_call\" must hold JSON"},
        {"\"role\":\"assistant\",\"reasoning_content\":5", "\"reasoning_content\" is a number"},
    };
    (void)state;
    gr_str got = {0};
    char text[512];
    for (int i = 0; i < GR_LEN(cases); i++) {
        const char *name = "label";
        snprintf(text, sizeof text, "{\"prompt\":\"p\",\"completion\":\"c\"}\n{\"prompt\":\"p\",\"completion\":\"c\",%s}",
                 cases[i].fields);
        read_all(&got, &(gr_data_source){.path = put("r.jsonl", text), .ignore = &name, .n_ignore = 0}, NULL);
        const char *expected = cases[i].expected ? cases[i].expected : "user=p|assistant=c;user=p|assistant=c;";
        if (!strstr(got.data, expected) || (cases[i].expected && !strstr(got.data, "r.jsonl:2: ")))
            fail_msg("%s: \"%s\" not in \"%s\"", cases[i].fields, expected, got.data);
        if (strncmp(cases[i].fields, "\"label", 7)) continue;
        read_all(&got, &(gr_data_source){.path = put("r.jsonl", text), .ignore = &name, .n_ignore = 1}, NULL);
        assert_string_equal(got.data, "user=p|assistant=c;user=p|assistant=c;");
    }
    for (int i = 0; i < GR_LEN(messages); i++) {
        snprintf(text, sizeof text, SAMPLE(USER "{%s,\"content\":\"c\"}"), messages[i].message);
        read_all(&got, &(gr_data_source){.path = put("r.jsonl", text)}, NULL);
        const char *expected = messages[i].expected ? messages[i].expected : "assistant=c";
        if (!strstr(got.data, expected)) fail_msg("%s: \"%s\" not in \"%s\"", messages[i].message, expected, got.data);
    }
    gr_column chosen = {"completion", "chosen"};
    const char *rejected = "rejected";
    read_all(&got,
             &(gr_data_source){.path = put("r.jsonl", "{\"prompt\":\"p\",\"chosen\":\"c\",\"rejected\":\"r\"}"),
                               .columns = &chosen,
                               .n_columns = 1,
                               .ignore = &rejected,
                               .n_ignore = 1},
             NULL);
    assert_string_equal(got.data, "user=p|assistant=c;");
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
        {"{\"prompt\":\"p\",\"completion\":\"a\",\"label\":true}", "a label for each answer"},
        {"{\"messages\":[]}", "\"messages\" is an empty list"},
        {"{\"messages\":{}}", "\"messages\" is an object, expected a list"},
        {"{\"messages\":[5]}", "a message is a number"},
        {"{\"messages\":[{\"content\":\"a\"}]}", "no \"role\""},
        {"{\"messages\":[{\"role\":\"user\"}]}", "no \"content\""},
        {"{\"messages\":[{\"role\":\"ro\\nbot\",\"content\":\"a\"}]}", "unknown role \"ro?bot\""},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[]}]}", "\"content\" is a list without parts"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}", "part 1 is of the type \"image_url\""},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}", "part 1 has no \"text\""},
        {"{\"messages\":[{\"role\":\"user\",\"content\":null}]}", "message 1: \"content\" is null"},
        {"{\"system\":\"s\",\"messages\":[{\"role\":\"system\",\"content\":\"t\"}]}", "which one counts"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"weight\":0.5}]}", "must be 0 or 1"},
        {"{\"conversations\":[{\"value\":\"a\"}]}", "no \"from\""},
        {"{\"instruction\":\"i\",\"input\":\"\",\"output\":\"o\",\"history\":[[\"q\"]]}", "[question, answer] pairs"},
        {"{\"instruction\":\"i\",\"input\":\"\",\"output\":\"o\",\"history\":\"q\"}", "\"history\" is a string"},
        {"{\"instruction\":\"i\",\"instances\":[]}", "one object {input, output}"},
        {"[{\"question\":\"q\",\"answer\":\"a\"},\n\n{\"question\":\"q\"}]", ":3 (sample 2): no \"answer\""},
    };
    (void)state;
    gr_str got = {0};
    for (int i = 0; i < GR_LEN(cases); i++) {
        read_all(&got, &(gr_data_source){.path = put("bad.jsonl", cases[i].text)}, NULL);
        if (!strstr(got.data, cases[i].expected)) fail_msg("\"%s\" not in \"%s\"", cases[i].expected, got.data);
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

/* Bytes that are no UTF-8: an error with the line, U+FFFD when asked for, or another encoding. */
static void test_encodings(void **state) {
    static const struct {
        const char *text, *encoding, *expected;
    } cases[] = {
        {"{\"text\":\"a\"}\n{\"text\":\"a\xFF\"}", NULL,
         "e.jsonl:2: byte 0xFF is no UTF-8: name the file's encoding (data.encoding: gb18030"},
        {"[{\"text\":\n\"a\xC4\xE3\"}]", "utf-8", "e.jsonl:2: byte 0xC4 is no UTF-8"},
        {"{\"text\":\"\\ud83d \"}", NULL, "e.jsonl:1: \\ud800 to \\udfff alone is half a character"},
        {"text\na\xFF\n", NULL, "e.jsonl:1:"},
        {"text,id\n\"a\n\xFF\",1\n", NULL, "e.jsonl:3: byte 0xFF"},
        {"t\xFFt,text\na,b\n", NULL, "e.jsonl:1: the name of a column is no UTF-8"},
        {"{\"text\":\"a\xFF"
         "b\xE4\xBD\"}",
         "replace",
         "text=a\xEF\xBF\xBD"
         "b\xEF\xBF\xBD;"},
        {"{\"text\":\"\xED\xA0\x80\\udc00\"}", "replace", "text=\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD;"},
        {"text,id\na\xFF,1\n", "replace", "text=a\xEF\xBF\xBD;"},
        {"{\"text\":\"\xC4\xE3\xBA\xC3\x81\x5C\"}", "gb18030",
         "text=\xE4\xBD\xA0\xE5\xA5\xBD\xE4\xB9\x97;"}, /* 0x5C is no backslash there */
        {"[{\"text\":\"\xE9\"},\n{\"text\":\"b\"}]", "latin1", "text=\xC3\xA9;text=b;"},
        {"{\"text\":\"a\"}\n{\"text\":\"\xFF\xFF\"}", "gb18030", "e.jsonl:2: byte 0xFF is no gb18030: is data.encoding right?"},
        {"{\"text\":\"a\"}\n\x81", "gb18030", "e.jsonl:2: byte 0x81 at the end is no gb18030"},
        {"{\"text\":\"a\"}", "klingon", "unknown encoding \"klingon\": expected utf-8, replace, or one that iconv knows"},
    };
    (void)state;
    gr_str got = {0};
    for (int i = 0; i < GR_LEN(cases); i++) {
        read_all(&got, &(gr_data_source){.path = put("e.jsonl", cases[i].text), .encoding = cases[i].encoding}, NULL);
        if (!strstr(got.data, cases[i].expected)) fail_msg("%d: \"%s\" not in \"%s\"", i, cases[i].expected, got.data);
    }
    static const char utf16[] = "\xFF\xFE{\0\"\0t\0e\0x\0t\0\"\0:\0\"\0\x60\x4F\"\0}\0";
    read_all(&got, &(gr_data_source){.path = put_bytes("e.jsonl", utf16, sizeof utf16 - 1), .encoding = "utf-16"}, NULL);
    assert_string_equal(got.data, "text=\xE4\xBD\xA0;");
    read_all(&got, &(gr_data_source){.path = put_bytes("e.jsonl", utf16, sizeof utf16 - 1)}, NULL);
    assert_non_null(strstr(got.data, "is text in UTF-16"));
    /* a character across the border of what is converted at once */
    gr_str large = {0};
    for (int i = 0; i < 40000; i++) gr_str_printf(&large, "%s\xC4\xE3\"}\n", i % 3 ? "{\"text\":\"" : "{\"text\":\"a");
    read_all(&got, &(gr_data_source){.path = put_bytes("e.jsonl", large.data, (size_t)large.len), .encoding = "gb18030"}, NULL);
    assert_int_equal(got.len, 40000 / 3 + 1 + 40000 * 9);
    gr_str_release(&large);
    gr_str_release(&got);
}

/* One rule for all who ask: in any case, before .gz, and only behind a dot and a name. */
static void test_endings(void **state) {
    static const struct {
        const char *name, *ending;
    } cases[] = {
        {"a.jsonl", "jsonl"}, {"a.json", "json"}, {"b/a.CSV", "csv"}, {"a.tsv.gz", "tsv"}, {"a.TXT.GZ", "txt"}, {"a.b.Txt", "txt"},
        {"a.gz", NULL},       {"atxt", NULL},     {".txt", NULL},     {"a.txt.xz", NULL},  {"a.md", NULL},      {"", NULL},
    };
    (void)state;
    for (int i = 0; i < GR_LEN(cases); i++) {
        const char *found = gr_data_ending(cases[i].name);
        if (!cases[i].ending != !found || (found && strcmp(found, cases[i].ending) != 0))
            fail_msg("%s: found %s", cases[i].name, found ? found : "none");
    }
}

static void test_csv(void **state) {
    static const struct {
        const char *name, *text, *expected;
    } cases[] = {
        {"a.csv", "instruction,input,output\nadd,1 2,3\n", "user=add\n1 2|assistant=3;"},
        {"a.csv", "\xEF\xBB\xBFprompt, completion \r\n\"a \"\"b\"\",\r\nc\", d\r\n\r\ne,5\" f\r\n",
         "user=a \"b\",\r\nc|assistant= d;user=e|assistant=5\" f;"},
        {"a.csv", ",text\n0,a\n1,\n2,\"\"", "text=a;text=;text=;"},
        {"a.CSV", "question;answer\n\"1;5\";b", "user=1;5|assistant=b;"},
        {"a.tsv", "question\tanswer\na,b\tc", "user=a,b|assistant=c;"},
        {"a.txt", "\"prompt\",completion\na,b", "user=a|assistant=b;"},
        {"a.csv", "text\na\nb", "text=a;text=b;"},
        {"a.csv", "messages,id\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"u\"\"}]\",1", "user=u;"},
        {"a.csv", "prompt,completion,label\na,b,\nc,d,0\n", "a.csv:3: \"label\" is preference data"},
        {"a.csv", "prompt,completion\n\"a\nb\",c\nd\n", "a.csv:4: 1 cells, the header has 2"},
        {"a.csv", "prompt,completion\na,b,c\n", "a.csv:2: 3 cells, the header has 2"},
        {"a.csv", "prompt,completion\na,b\n\nc,\"d\n", "a.csv:4: a quote that is opened here is never closed"},
        {"a.csv", "prompt,completion\n\"a\"b,c\n", "a.csv:2: text after the closing quote"},
        {"a.csv", "prompt,completion\n", "a header without records"},
        {"a.csv", "prompt,prompt\na,b\n", "two columns of one name"},
        {"a.csv", "a,b\nc,d\n", "keys a, b"},
        {"a.txt", "a,b\nc,d\n", "text=a,b\nc,d\n;"},
        {"a.jsonl", "a,b\nc,d\n", "bad JSON"},
        {"a.csv", "{\"text\":\"a\"}\n", "text=a;"},
    };
    (void)state;
    gr_str got = {0};
    for (int i = 0; i < GR_LEN(cases); i++) {
        read_all(&got, &(gr_data_source){.path = put(cases[i].name, cases[i].text)}, NULL);
        if (!strstr(got.data, cases[i].expected)) fail_msg("%d: \"%s\" not in \"%s\"", i, cases[i].expected, got.data);
    }
    read_all(&got, &(gr_data_source){.path = put("a.csv", "text\na\nb\nc\n"), .limit = 2}, NULL);
    assert_string_equal(got.data, "text=a;text=b;");
    gr_str_release(&got);
}

/* bytes as a gzip file */
static const char *put_gzip(const char *name, const char *text, int64_t n, int64_t times, const char *mode) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    gzFile f = gzopen(path, mode);
    assert_non_null(f);
    for (int64_t i = 0; i < times; i++) assert_int_equal(gzwrite(f, text, (unsigned)n), n);
    assert_int_equal(gzclose(f), Z_OK);
    static char kept[128];
    return strcpy(kept, path);
}

static void test_gzip(void **state) {
    static const char line[] = "{\"text\":\"a\"}\n", csv[] = "prompt,completion\na,b\n";
    (void)state;
    gr_str got = {0};
    graft_error err = {0};
    char *bytes;
    int64_t n;
    put_gzip("a.jsonl.gz", line, sizeof line - 1, 1, "w");
    const char *path = put_gzip("a.jsonl.gz", line, sizeof line - 1, 2, "a"); /* a second member */
    read_all(&got, &(gr_data_source){.path = path}, NULL);
    assert_string_equal(got.data, "text=a;text=a;text=a;");
    read_all(&got, &(gr_data_source){.path = put_gzip("a.csv.gz", csv, sizeof csv - 1, 1, "w")}, NULL);
    assert_string_equal(got.data, "user=a|assistant=b;");
    read_all(&got, &(gr_data_source){.path = put_gzip("b.jsonl.gz", "{\"text\":\"\xC4\xE3\"}", 13, 1, "w"), .encoding = "gb18030"},
             NULL);
    assert_string_equal(got.data, "text=\xE4\xBD\xA0;");
    path = put_gzip("c.jsonl.gz", line, sizeof line - 1, 100, "w");
    assert_int_equal(gr_file_read_raw(&bytes, &n, path, 1 << 20, &err), GRAFT_OK);
    read_all(&got, &(gr_data_source){.path = put_bytes("cut.gz", bytes, (size_t)n - 9)}, NULL);
    assert_non_null(strstr(got.data, "cut.gz: ends inside its gzip data: is it cut off?"));
    bytes[n - 6] ^= 1; /* of the checksum */
    read_all(&got, &(gr_data_source){.path = put_bytes("bad.gz", bytes, (size_t)n)}, NULL);
    assert_non_null(strstr(got.data, "bad.gz: damaged gzip data (incorrect data check)"));
    bytes[n - 6] ^= 1;
    char *more = gr_calloc(n + 2, 1);
    memcpy(more, bytes, (size_t)n);
    read_all(&got, &(gr_data_source){.path = put_bytes("pad.gz", more, (size_t)n + 2)}, NULL);
    assert_int_equal(got.len, 100 * 7);
    more[n] = 'x';
    read_all(&got, &(gr_data_source){.path = put_bytes("tail.gz", more, (size_t)n + 2)}, NULL);
    assert_non_null(strstr(got.data, "tail.gz: other bytes after the end"));
    free(more);
    free(bytes);
    read_all(&got, &(gr_data_source){.path = put_gzip("p.gz", "PAR1....", 8, 1, "w")}, NULL);
    assert_non_null(strstr(got.data, "p.gz: is a Parquet file"));
    gr_str_release(&got);
}

/* Fields that no form has: the columns to write. */
static void test_hints(void **state) {
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"{\"prompt\":\"a\",\"response\":\"b\"}", "h.jsonl, columns: {completion: response}}]}"},
        {"{\"Query\":\"a\",\"the answer\":\"b\",\"Answer\":\"c\"}", "columns: {prompt: Query, completion: Answer}}]}"},
        {"{\"input\":\"a\",\"output\":\"b\"}", "columns: {prompt: input, completion: output}}]}"},
        {"{\"instruction\":\"a\",\"input\":\"b\",\"response\":\"c\"}", "columns: {output: response}}]}"},
        {"{\"instruction\":\"a\",\"context\":\"b\",\"response\":\"c\"}", "columns: {input: context, output: response}}]}"},
        {"{\"question\":\"a\",\"response\":\"b\",\"system_prompt\":\"s\"}",
         "columns: {prompt: question, completion: response, system: system_prompt}}]}"},
        {"{\"dialogue\":[{\"role\":\"user\",\"content\":\"b\"}]}", "columns: {messages: dialogue}}]}"},
        {"{\"chat\":[{\"from\":\"human\",\"value\":\"b\"}]}", "columns: {conversations: chat}}]}"},
        {"{\"body\":\"a\"}", "columns: {text: body}}]}"},
        {"{\"response\":\"a\"}", "forms are messages {messages}"},
    };
    (void)state;
    gr_str got = {0};
    for (int i = 0; i < GR_LEN(cases); i++) {
        read_all(&got, &(gr_data_source){.path = put("h.jsonl", cases[i].text)}, NULL);
        if (!strstr(got.data, cases[i].expected)) fail_msg("\"%s\" not in \"%s\"", cases[i].expected, got.data);
    }
    gr_str_release(&got);
}

static void test_source_options(void **state) {
    (void)state;
    gr_str got = {0};
    const char *path = put("train.jsonl", "{\"q\":\"a\",\"r\":\"b\",\"text\":\"t\"}\n{\"q\":\"c\",\"r\":\"d\",\"text\":\"t\"}\n");
    gr_column qa[] = {{"question", "q"}, {"answer", "r"}}, pc[] = {{"prompt", "q"}, {"completion", "r"}}, odd[] = {{"quest", "q"}};
    const char *format = "?";
    read_all(&got, &(gr_data_source){.path = folder, .columns = qa, .n_columns = 2}, &format);
    assert_string_equal(got.data, "user=a|assistant=b;user=c|assistant=d;");
    assert_string_equal(format, "question_answer");
    read_all(&got, &(gr_data_source){.path = path, .columns = pc, .n_columns = 2, .limit = 1}, &format);
    assert_string_equal(got.data, "user=a|assistant=b;");
    assert_string_equal(format, "prompt_completion");
    read_all(&got, &(gr_data_source){.path = path}, &format);
    assert_string_equal(format, "text");
    read_all(&got, &(gr_data_source){.path = path, .format = "question_answer", .columns = odd, .n_columns = 1}, NULL);
    assert_non_null(strstr(got.data, "columns: \"quest\" is no field of format question_answer"));
    read_all(&got, &(gr_data_source){.path = path, .format = "alpaca"}, NULL);
    assert_non_null(strstr(got.data, "format alpaca needs instruction and output, the keys here are: q, r, text"));
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
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_refused_fields),
        cmocka_unit_test(test_hostile_files),
        cmocka_unit_test(test_encodings),
        cmocka_unit_test(test_endings),
        cmocka_unit_test(test_csv),
        cmocka_unit_test(test_gzip),
        cmocka_unit_test(test_hints),
        cmocka_unit_test(test_source_options),
        cmocka_unit_test(test_shared_files),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
