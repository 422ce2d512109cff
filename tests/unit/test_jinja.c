/* The template interpreter where jinja2 has ways of its own: each case is what jinja2 3.1 gives in
 * transformers' environment. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/text/jinja.h"

/* NULL where it fails. Owned. */
static char *render(const char *source) {
    static const char variables[] =
        "{\"n\": 7, \"nil\": null, \"d\": {\"k\": 1, \"b\": \"two\"}, \"l\": [3, 1, 2], \"s\": \"Hello\"}";
    graft_error err = {0};
    gr_jinja *t = NULL;
    const char *text, *key;
    const gr_jinja_span *spans;
    int64_t n, n_spans;
    char *out = NULL;
    json_t *all = json_loads(variables, 0, NULL), *value;
    if (gr_jinja_parse(&t, source, (int64_t)strlen(source), "test", &err) == GRAFT_OK) {
        gr_jinja_run *r = gr_jinja_run_new(t);
        gr_jinja_begin(r, 0, true);
        json_object_foreach(all, key, value) gr_jinja_set(r, key, gr_jinja_json(r, value, 1));
        if (gr_jinja_render(r, &text, &n, &spans, &n_spans, NULL, &err) == GRAFT_OK)
            out = gr_strndup(text, n);
        gr_jinja_run_free(r);
    }
    if (!out) assert_true(err.msg[0] != '\0');
    gr_jinja_free(t);
    json_decref(all);
    return out;
}

static void renderings_are_jinja2s(void **state) {
    static const struct {
        const char *source, *expected; /* NULL: it raises */
    } cases[] = {
        {"{% for x in l %}{% continue %}{% else %}none{% endfor %}", "none"},
        {"{% for x in l %}{% break %}{% else %}none{% endfor %}", "none"},
        {"{% for x in l %}{{ x }}{% if x == 1 %}{% break %}{% endif %}{% else %}none{% endfor %}", "31"},
        {"{% for x in [] %}{{ x }}{% else %}none{% endfor %}", "none"},
        {"{% for x in l if x > 5 %}{{ x }}{% else %}none{% endfor %}", "none"},
        {"{{ n|round }} {{ 2.5|round }} {{ 3.5|round }} {{ true|round(1) }} {{ 2.675|round(2) }}",
         "7 2.0 4.0 1 2.67"},
        {"{{ 7.5 % 2 }} {{ -7.5 % 2 }} {{ 7.5 % -2 }} {{ 12345678901234567 % 2.5 }}", "1.5 0.5 -0.5 0.5"},
        {"{{ 7.5 // 2 }} {{ -7.5 // 2 }} {{ 7 // -2 }} {{ -7 % 3 }}", "3.0 -4.0 -4 2"},
        {"{{ n[1:] }}", NULL},
        {"{{ nil[1:] }}", NULL},
        {"{{ d[1:] }}", NULL},
        {"{{ missing[1:] }}", NULL},
        {"{{ n[0] is defined }}", "False"},
        {"{{ s[::-1] }}{{ l[::-2] }}{{ s[-3:-1] }}", "olleH[2, 3]ll"},
        {"{{ \"x\" % n }}", NULL},
        {"{{ \"x\" % \"y\" }}", NULL},
        {"{{ \"x\" % l }}{{ \"x\" % d }}", "xx"},
        {"{{ \"%s-%s\" % (1,) }}", NULL},
        {"{{ \"%s\" % n }}{{ \"%d%%\" % 5 }}", "75%"},
        {"{{ n|indent }}", NULL},
        {"{{ l|indent }}", NULL},
        {"{{ \"a\nb\"|indent(2) }}", "a\n  b"},
        {"{{ missing|int }}", NULL},
        {"{{ missing|float }}", NULL},
        {"{{ none|int }} {{ \"x\"|int(3) }} {{ \" 12 \"|int }} {{ \"3.9\"|int }} {{ \"1e2\"|int }}",
         "0 3 12 3 100"},
        {"{{ d|attr(\"k\") }}.", "."},
        {"{{ d.k }}{{ d[\"b\"] }}{{ d.items()|list }}", "1two[('k', 1), ('b', 'two')]"},
        {"{{ loop }}|{{ missing }}|{{ missing.x is defined }}", NULL},
        {"{{ missing is defined }}{{ d.x is defined }}{{ none is none }}", "FalseFalseTrue"},
        {"{{ 1 if false }}.", "."},
        {"{{ [1, \"a\", none, true, 2.0] }} {{ (1,) }} {{ {\"a\": [1]} }}",
         "[1, 'a', None, True, 2.0] (1,) {'a': [1]}"},
        {"{{ \"a\" ~ 1 ~ none ~ true }}", "a1NoneTrue"},
        {"{{ 1.0 }} {{ 1e22 }} {{ 1e-5 }} {{ 0.1 + 0.2 }}", "1.0 1e+22 1e-05 0.30000000000000004"},
        {"{{ d|tojson }} {{ \"é<\"|tojson }} {{ l|tojson(indent=1) }}",
         "{\"k\": 1, \"b\": \"two\"} \"é<\" [\n 3,\n 1,\n 2\n]"},
        {"{{ 'it\\'s' }} {{ ['it\\'s', '\"', \"\\n\"] }}", "it's [\"it's\", '\"', '\\n']"},
        {"{%- set ns = namespace(a=0) -%}{% for x in l %}{% set ns.a = ns.a + x %}{% set y = x %}{% endfor "
         "%}{{ ns.a }}{{ y is defined }}",
         "6False"},
        {"  {%- if n -%}  a  {%+ endif %}\n b", "a   b"},
        {"  {% if n %}\n  x\n  {% endif %}\ny\n", "  x\ny"},
        {"{{ l|sort|join(\",\") }} {{ l|map(\"string\")|join }} {{ s|list|unique|join }}", "1,2,3 312 Helo"},
        {"{{ s.split(\"l\") }} {{ \"a  b \".split() }} {{ s.replace(\"l\", \"L\", 1) }}",
         "['He', '', 'o'] ['a', 'b'] HeLlo"},
        {"{{ ' a b  c '.split(none, 1) }}", "['a', 'b  c ']"},
        {"{{ l.append(4) }}", NULL},
        {"{{ d.update({}) }}", NULL},
        {"{{ raise_exception(\"no\") }}", NULL},
        {"{{ n.foo.bar }}", NULL},
        {"{{ s._private }}", ""},
        {"{{ 1 + \"a\" }}", NULL},
        {"{{ 3 < \"a\" }}", NULL},
        {"{% macro m(a, b=2) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}{{ m() }}",
         "12132"},
    };
    (void)state;
    for (int i = 0; i < GR_LEN(cases); i++) {
        char *found = render(cases[i].source);
        if (!cases[i].expected != !found || (found && strcmp(found, cases[i].expected) != 0))
            fail_msg("%s gives %s, expected %s", cases[i].source, found ? found : "an error",
                     cases[i].expected ? cases[i].expected : "an error");
        free(found);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(renderings_are_jinja2s),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
