/* Any bytes as a chat template: as Jinja text, run on a small conversation with tools, and as the patterns of a YAML file. */
#include <stdlib.h>

#include "core/text/chat_template.h"
#include "core/text/impl.h"

#include "tests/fuzz/fuzz_file.h"

static const char variables[] =
    "{\"messages\": [{\"role\": \"system\", \"content\": \"be\"}, {\"role\": \"user\", \"content\": \" \\u00e9t\\u00e9 \\n 'x' \"},"
    "{\"role\": \"assistant\", \"content\": null, \"tool_calls\": [{\"type\": \"function\", \"function\": {\"name\": \"f\","
    "\"arguments\": {\"a\": 1.5, \"b\": [true, null, -3]}}}]}, {\"role\": \"tool\", \"content\": \"7\"}],"
    "\"tools\": [{\"name\": \"f\", \"n\": 3}], \"documents\": null, \"bos_token\": \"<s>\", \"eos_token\": \"</s>\", "
    "\"add_generation_prompt\": true}";

static void run(const gr_jinja *t) {
    gr_jinja_run *r = gr_jinja_run_new(t);
    json_t *all = json_loads(variables, 0, NULL), *value;
    const char *key, *text;
    const gr_jinja_span *spans;
    int64_t n, n_spans;
    graft_error err;
    if (!r || !all) abort();
    gr_jinja_begin(r, 1700000000, true);
    int32_t origin = 1;
    json_object_foreach(all, key, value) gr_jinja_set(r, key, gr_jinja_json(r, value, origin++));
    /* the spans cover the text, each another origin than the one before */
    if (gr_jinja_render(r, &text, &n, &spans, &n_spans, NULL, &err) == GRAFT_OK) {
        GR_ASSERT(n_spans ? spans[n_spans - 1].end == n : n == 0);
        for (int64_t i = 0; i < n_spans; i++)
            GR_ASSERT(spans[i].end > (i ? spans[i - 1].end : 0) && (!i || spans[i].origin != spans[i - 1].origin));
    } else {
        GR_ASSERT(err.msg[0]);
    }
    json_decref(all);
    gr_jinja_run_free(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static gr_tokenizer *none;
    graft_error err = {0};
    gr_jinja *t = NULL;
    char *source = NULL;
    if (!none && !(none = gr_calloc(1, sizeof *none))) return 0;
    if (gr_jinja_parse(&t, (const char *)data, (int64_t)size, "fuzz", &err) == GRAFT_OK) run(t);
    gr_jinja_free(t);
    if (gr_chat_template_from_yaml(&source, (const char *)data, (int64_t)size, "fuzz", none, &err) == GRAFT_OK) {
        if (gr_jinja_parse(&t, source, (int64_t)strlen(source), "fuzz", &err) == GRAFT_OK) run(t);
        gr_jinja_free(t);
    }
    free(source);
    return 0;
}
