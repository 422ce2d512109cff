/* The interpreter of chat templates: against jinja2 (golden/jinja_cases.json), where bytes come from, and its bounds. */
#include "core/text/jinja.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/assert_ok.h"

static void set_all(gr_jinja_run *r, const json_t *variables, int32_t first_origin) {
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)variables, key, value) gr_jinja_set(r, key, gr_jinja_json(r, value, first_origin++));
}

/* The rendering, or NULL with err. */
static char *render(const char *source, const json_t *variables) {
    gr_jinja *t = NULL;
    char *copy = NULL;
    const char *text;
    const gr_jinja_span *spans;
    int64_t n, n_spans;
    err.msg[0] = '\0';
    if (gr_jinja_parse(&t, source, (int64_t)strlen(source), "test", &err) != GRAFT_OK) return NULL;
    gr_jinja_run *r = gr_jinja_run_new(t);
    gr_jinja_begin(r, 1700000000, true);
    set_all(r, variables, 1);
    if (gr_jinja_render(r, &text, &n, &spans, &n_spans, NULL, &err) == GRAFT_OK) copy = gr_strndup(text, n);
    gr_jinja_run_free(r);
    gr_jinja_free(t);
    return copy;
}

static void as_jinja2(void **state) {
    (void)state;
    json_t *root = json_load_file(TESTS_DIR "/golden/jinja_cases.json", JSON_ALLOW_NUL, NULL), *row;
    size_t i;
    assert_non_null(root);
    json_array_foreach(json_object_get(root, "cases"), i, row) {
        const char *source = json_string_value(json_object_get(row, "template")),
                   *wanted = json_string_value(json_object_get(row, "text"));
        char *text = render(source, json_object_get(root, "variables"));
        if (wanted && !text) fail_msg("%s: %s", source, err.msg);
        if (wanted) assert_string_equal(text, wanted);
        if (!wanted && text) fail_msg("%s: gave \"%s\", jinja2 raises", source, text);
        if (!wanted) assert_non_null(strstr(err.msg, "chat template test"));
        free(text);
    }
    assert_true(i > 100);
    json_decref(root);
}

/* Each byte's origin as a letter: t of the template, a, b, c ... of the variables a, b, c ..., capital within {% generation %}. */
static void check_origins(const char *source, const char *text_wanted, const char *wanted) {
    json_t *variables =
        json_pack("{s:s, s:s, s:{s:[i, s]}, s:[s, s]}", "a", " xyz ", "b", "q-q", "c", "k", 1, "v", "d", "one", "two");
    gr_jinja *t = NULL;
    const char *text;
    const gr_jinja_span *spans;
    int64_t n, n_spans;
    char letters[200] = "";
    assert_int_equal(gr_jinja_parse(&t, source, (int64_t)strlen(source), "test", &err), GRAFT_OK);
    gr_jinja_run *r = gr_jinja_run_new(t);
    gr_jinja_begin(r, 0, true);
    set_all(r, variables, 1);
    if (gr_jinja_render(r, &text, &n, &spans, &n_spans, NULL, &err) != GRAFT_OK) fail_msg("%s: %s", source, err.msg);
    assert_int_equal(n, strlen(text_wanted));
    assert_memory_equal(text, text_wanted, (size_t)n);
    for (int64_t i = 0, k = 0; i < n; i++) {
        while (spans[k].end <= i) k++;
        int origin = spans[k].origin & GR_JINJA_ORIGIN;
        letters[i] = (char)(origin ? 'a' + origin - 1 : 't');
        if (spans[k].origin & GR_JINJA_GENERATION) letters[i] -= 'a' - 'A';
    }
    assert_string_equal(letters, wanted);
    gr_jinja_run_free(r);
    gr_jinja_free(t);
    json_decref(variables);
}

static void bytes_know_their_origin(void **state) {
    (void)state;
    check_origins("<{{ a }}>", "< xyz >", "taaaaat");
    check_origins("{{ 'm' + a + b ~ 1 }}", "m xyz q-q1", "taaaaabbbt");
    check_origins("{{ (a | trim)[1:] + b.replace('-', '+').upper() }}", "yzQ+Q", "aabtb");
    check_origins("{{ ('x' ~ b).split('-') | join(a.strip()) }}", "xqxyzq", "tbaaab");
    check_origins("{{ c | tojson }}", "{\"k\": [1, \"v\"]}", "ccccccccccccccc");
    check_origins("{{ {'k': b, 'n': 1} | tojson }}", "{\"k\": \"q-q\", \"n\": 1}", "ttttttbbbbbttttttttt");
    check_origins("{{ d }}{% for x in d | reverse %}{{ x }}{{ loop.index }}{% endfor %}", "['one', 'two']two1one2",
                  "dddddddddddddddddtdddt");
    check_origins("{% set x %}[{{ a }}]{% endset %}{{ x | indent }}{{ '%s!' % b }}", "[ xyz ]q-q!", "taaaaatbbbt");
    check_origins("{% macro f(y) %}({{ y }}){% endmacro %}{{ f(b) }}{% filter upper %}u{{ b }}{% endfilter %}", "(q-q)UQ-Q",
                  "tbbbttbbb");
    check_origins("p{% generation %}{{ b }}x{% endgeneration %}n", "pq-qxn", "tBBBTt");
    check_origins("{% set x %}{% generation %}{{ b }}{% endgeneration %}{% endset %}{{ x[1:] + '.' }}", "-q.", "BBt");
}

static void fails(const char *source, const char *hint) {
    char *text = render(source, NULL);
    assert_null(text);
    if (!strstr(err.msg, hint)) fail_msg("%s: \"%s\" lacks \"%s\"", source, err.msg, hint);
    assert_null(strchr(err.msg, '\n'));
}

static void what_is_not_supported_is_named_with_its_line(void **state) {
    (void)state;
    fails("a\n{% include 'x' %}", "line 2: the statement \"include\"");
    fails("{% import 'x' as y %}", "\"import\"");
    fails("\n\n{{ 'a' | wordwrap }}", "line 3: the filter \"wordwrap\"");
    fails("{{ 1 is escaped }}", "the test \"escaped\"");
    fails("{{ 'a'.zfill(3) }}", "the method \"zfill\"");
    fails("{% for x in [] recursive %}{% endfor %}", "recursive");
    fails("{{ f(**{}) }}", "**");
    fails("{{ raise_exception('a\nb') }}", "refuses: a b");
}

/* A NUL is a character like others. */
static void nul_bytes(void **state) {
    (void)state;
    static const char source[] = "a\0{{ 'b\\\0c' ~ '%d' }}";
    gr_jinja *t = NULL;
    const char *text;
    const gr_jinja_span *spans;
    int64_t n, n_spans;
    assert_ok(gr_jinja_parse(&t, source, sizeof source - 1, "test", &err));
    gr_jinja_run *r = gr_jinja_run_new(t);
    gr_jinja_begin(r, 0, true);
    assert_ok(gr_jinja_render(r, &text, &n, &spans, &n_spans, NULL, &err));
    assert_int_equal(n, 8);
    assert_memory_equal(text, "a\0b\\\0c%d", 8);
    gr_jinja_run_free(r);
    gr_jinja_free(t);
}

static void it_is_bounded(void **state) {
    (void)state;
    gr_str deep = {0};
    fails("{% set l = range(30000) %}{% for i in l %}{% for j in l %}{{ i }}{% endfor %}{% endfor %}", "steps");
    fails("{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "MiB");
    fails("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "calls itself");
    fails("{{ 9223372036854775807 + 1 }}", "too large");
    for (int i = 0; i < 5000; i++) gr_str_putc(&deep, '-');
    gr_str_puts(&deep, "1 }}");
    char *source = gr_format("{{ %s", deep.data);
    fails(source, "nested too deeply");
    free(source);
    gr_str_release(&deep);
}

int main(void) {
    const struct CMUnitTest all[] = {
        cmocka_unit_test(as_jinja2),
        cmocka_unit_test(bytes_know_their_origin),
        cmocka_unit_test(what_is_not_supported_is_named_with_its_line),
        cmocka_unit_test(nul_bytes),
        cmocka_unit_test(it_is_bounded),
    };
    return cmocka_run_group_tests(all, NULL, NULL);
}
