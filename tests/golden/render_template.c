/* render_template - renders Jinja templates as graft does, for comparison with jinja2 (compare_templates.py).
 * stdin: JSON lines {"template", "variables": {...}}; stdout: {"text"} or {"error", "raised"} a line. Every variable's origin is 1,
 * each message's 2 + its index; with --spans the origins are written as "spans": [[end, origin], ...]. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/text/jinja.h"

static void set_variables(gr_jinja_run *r, json_t *variables) {
    const char *key;
    json_t *value, *message;
    size_t i;
    json_object_foreach(variables, key, value) {
        if (strcmp(key, "messages") != 0) {
            gr_jinja_set(r, key, gr_jinja_json(r, value, 1));
            continue;
        }
        gr_jinja_value *items = calloc(json_array_size(value) + 1, sizeof *items);
        json_array_foreach(value, i, message) items[i] = gr_jinja_json(r, message, 2 + (int32_t)i);
        gr_jinja_set(r, key, gr_jinja_list(r, items, (int64_t)json_array_size(value), 0));
        free(items);
    }
}

static json_t *render(json_t *task, bool with_spans) {
    const char *source = json_string_value(json_object_get(task, "template")), *text;
    graft_error err;
    gr_jinja *t = NULL;
    gr_jinja_run *r = NULL;
    const gr_jinja_span *spans;
    int64_t n, n_spans;
    bool raised = false;
    json_t *out = json_object();
    if (gr_jinja_parse(&t, source, (int64_t)strlen(source), "test", &err) == GRAFT_OK && (r = gr_jinja_run_new(t))) {
        gr_jinja_begin(r, getenv("SOURCE_DATE_EPOCH") ? atoll(getenv("SOURCE_DATE_EPOCH")) : 1700000000, true);
        set_variables(r, json_object_get(task, "variables"));
        if (gr_jinja_render(r, &text, &n, &spans, &n_spans, &raised, &err) == GRAFT_OK) {
            json_object_set_new(out, "text", json_stringn(text, (size_t)n));
            json_t *list = json_array();
            for (int64_t i = 0; i < n_spans; i++)
                json_array_append_new(list, json_pack("[I, i]", (json_int_t)spans[i].end, spans[i].origin));
            if (with_spans) json_object_set_new(out, "spans", list);
            else json_decref(list);
        }
    }
    if (json_object_size(out) == 0) json_object_update_new(out, json_pack("{s:s, s:b}", "error", err.msg, "raised", raised));
    gr_jinja_run_free(r);
    gr_jinja_free(t);
    return out;
}

int main(int argc, char **argv) {
    char *line = NULL;
    size_t capacity = 0;
    bool with_spans = argc > 1 && strcmp(argv[1], "--spans") == 0;
    while (getline(&line, &capacity, stdin) > 0) {
        json_t *task = json_loads(line, 0, NULL), *out = task ? render(task, with_spans) : NULL;
        if (!out) return 1;
        json_dumpf(out, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(out);
        json_decref(task);
    }
    free(line);
    return 0;
}
