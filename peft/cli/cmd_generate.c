/* graft generate: one prompt, or the lines of a file in batches */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "peft/cli/session_args.h"

enum { MAX_PROMPTS_BYTES = 1 << 30 };

/* ---- prompts ---- */

typedef struct prompts {
    gr_ids *ids;
    json_t **lines; /* as they were, with a "prompt" */
    int64_t n, ids_capacity, lines_capacity;
    int64_t n_replaced; /* lines that had a field of the name of a result */
} prompts;

static void release_prompts(prompts *p) {
    for (int64_t i = 0; i < p->n; i++) {
        gr_ids_release(&p->ids[i]);
        json_decref(p->lines[i]);
    }
    free(p->ids);
    free(p->lines);
    *p = (prompts){0};
}

/* One more prompt; line is taken over. */
static graft_status add_prompt(const gr_session *s, prompts *p, const gr_conversation *x, json_t *line, graft_error *err) {
    if (!gr_grow(&p->ids, &p->ids_capacity, p->n + 1, sizeof *p->ids) ||
        !gr_grow(&p->lines, &p->lines_capacity, p->n + 1, sizeof(json_t *))) {
        json_decref(line);
        return gr_fail_memory(err, "prompts");
    }
    p->lines[p->n] = line;
    p->ids[p->n] = (gr_ids){0};
    p->n++;
    return gr_chat_prompt(s->chat, x, &p->ids[p->n - 1], err);
}

static graft_status message_of(const json_t *m, int64_t i, gr_message *out, graft_error *err) {
    out->role = json_string_value(json_object_get(m, "role"));
    out->content = json_string_value(json_object_get(m, "content"));
    out->fields = m;
    if (out->role && !out->content && json_is_array(json_object_get(m, "tool_calls"))) out->content = "";
    if (out->role && out->content) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT, "messages[%lld]: expected {\"role\": text, \"content\": text}", (long long)i);
}

/* The messages of a line: its "messages", or its "prompt" as a user's; before them its "system". */
static graft_status line_messages(const json_t *line, gr_message **out, int64_t *n, graft_error *err) {
    graft_status st = GRAFT_OK;
    const json_t *prompt = json_object_get(line, "prompt"), *list = json_object_get(line, "messages"),
                 *system = json_object_get(line, "system");
    int64_t count = json_is_string(prompt) ? 1 : (int64_t)json_array_size(list);
    gr_message *messages = gr_calloc(count + 1, sizeof *messages);
    *out = messages;
    *n = 0;
    if (!messages) return gr_fail_memory(err, "messages");
    if (json_is_string(system)) messages[(*n)++] = (gr_message){.role = "system", .content = json_string_value(system)};
    else if (system && !json_is_null(system)) return gr_fail(err, GRAFT_BAD_INPUT, "system: expected a text");
    if (json_is_string(prompt) && json_is_array(list)) /* as a line of results has them, whose prompt is rendered already */
        return gr_fail(err, GRAFT_BAD_INPUT, "both \"prompt\" and \"messages\": leave one out");
    if (json_is_string(prompt)) {
        messages[(*n)++] = (gr_message){.role = "user", .content = json_string_value(prompt)};
        return GRAFT_OK;
    }
    if (count == 0)
        return gr_fail(err, GRAFT_BAD_INPUT, "expected {\"prompt\": text} or {\"messages\": [{\"role\", \"content\"}, ...]}");
    for (int64_t i = 0; i < count; i++) GR_TRY(message_of(json_array_get(list, (size_t)i), i, &messages[(*n)++], err));
done:
    return st;
}

/* What a line gives to the template beside its messages. */
static graft_status list_of(const json_t *line, const char *name, const json_t **out, graft_error *err) {
    const json_t *v = json_object_get(line, name);
    *out = json_is_array(v) && json_array_size(v) ? v : NULL;
    return !v || json_is_null(v) || json_is_array(v) ? GRAFT_OK : gr_fail(err, GRAFT_BAD_INPUT, "%s: expected a list", name);
}

static graft_status add_line(const gr_session *s, prompts *p, json_t *line, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_message *messages = NULL;
    gr_str text = {0};
    int64_t n = 0;
    GR_TRY(line_messages(line, &messages, &n, err));
    gr_conversation x = {.messages = messages, .n = n};
    GR_TRY(list_of(line, "tools", &x.tools, err));
    GR_TRY(list_of(line, "documents", &x.documents, err));
    if (!json_is_string(json_object_get(line, "prompt"))) {
        GR_TRY(gr_chat_render(s->chat, &x, true, &text, err));
        json_object_set_new(line, "prompt", json_stringn(text.data ? text.data : "", (size_t)text.len));
    }
    GR_TRY(add_prompt(s, p, &x, json_incref(line), err));
done:
    gr_str_release(&text);
    free(messages);
    return st;
}

static graft_status parse_line(json_t **line, const char *text, int64_t len, graft_error *err) {
    json_error_t why;
    *line = json_loadb(text, (size_t)len, JSON_REJECT_DUPLICATES, &why);
    if (json_is_object(*line)) return GRAFT_OK;
    if (*line) return gr_fail(err, GRAFT_BAD_INPUT, "expected an object {\"prompt\": text} or {\"messages\": [...]}");
    if (json_error_code(&why) == json_error_null_character || json_error_code(&why) == json_error_null_byte_in_key)
        return gr_fail(err, GRAFT_BAD_INPUT, "a text holds the character NUL (\\u0000), which no prompt may have");
    return gr_fail(err, GRAFT_BAD_INPUT, "not JSON: %s", why.text);
}

static graft_status read_prompts(const gr_session *s, prompts *p, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    bool from_stdin = strcmp(path, "-") == 0;
    const char *name = from_stdin ? "standard input" : path;
    char *text = NULL;
    json_t *line = NULL;
    int64_t len = 0, number = 0;
    GR_TRY(from_stdin ? gr_stream_read(&text, &len, stdin, name, MAX_PROMPTS_BYTES, err)
                      : gr_file_read(&text, &len, path, MAX_PROMPTS_BYTES, err));
    for (int64_t at = gr_starts_with(text, "\xEF\xBB\xBF") ? 3 : 0, end; at < len; at = end + 1) {
        const char *newline = memchr(text + at, '\n', (size_t)(len - at));
        end = newline ? newline - text : len;
        number++;
        if ((int64_t)strspn(text + at, " \t\r") >= end - at) continue;
        st = parse_line(&line, text + at, end - at, err);
        if (st == GRAFT_OK) st = add_line(s, p, line, err);
        if (st != GRAFT_OK) GR_TRY(gr_fail_context(err, st, "%s:%lld", name, (long long)number));
        json_decref(line);
        line = NULL;
    }
    if (p->n == 0)
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s: no prompts; expected {\"prompt\": text} or {\"messages\": [...]} lines", name);
done:
    json_decref(line);
    free(text);
    return st;
}

/* ---- generate ---- */

typedef struct generated {
    gr_progress progress;
    int64_t done;
} generated;

static int on_generated(void *payload, int64_t prompt, const char *text, int64_t len, bool done) {
    generated *g = payload;
    (void)prompt, (void)text, (void)len;
    if (done) gr_progress_update(&g->progress, ++g->done, "prompts");
    return 0;
}

/* The fields of the line in their order, what was its answer as "reference", then the results. */
static json_t *result_line(prompts *p, int64_t i, const gr_completion *result) {
    const char *key, *was = json_object_get(p->lines[i], "completion") ? "completion" : "answer";
    json_t *value, *line = json_object();
    bool replaced =
        json_object_get(p->lines[i], "tokens") || (json_object_get(p->lines[i], was) && json_object_get(p->lines[i], "reference"));
    json_object_foreach(p->lines[i], key, value)
        if (strcmp(key, "tokens") != 0 && (strcmp(key, "reference") != 0 || !json_object_get(p->lines[i], was)))
            json_object_set(line, strcmp(key, was) == 0 ? "reference" : key, value);
    p->n_replaced += replaced;
    if (json_object_set_new(line, "completion", json_string(result->text)) != 0 ||
        json_object_set_new(line, "tokens", json_integer(result->n_tokens)) != 0) {
        json_decref(line);
        return NULL;
    }
    return line;
}

static graft_status write_completions(FILE *out, prompts *p, const gr_completion *results, graft_error *err) {
    for (int64_t i = 0; i < p->n; i++) {
        json_t *line = result_line(p, i, &results[i]);
        if (!line) return gr_fail(err, GRAFT_FAILED, "prompt %lld: the completion is no UTF-8", (long long)i + 1);
        json_dumpf(line, out, JSON_COMPACT);
        fputc('\n', out);
        json_decref(line);
    }
    if (p->n_replaced > 0)
        gr_warn("%lld lines had a field \"tokens\", or \"reference\" beside an answer: it is replaced", (long long)p->n_replaced);
    return GRAFT_OK;
}

static graft_status generate_file(const gr_args *a, const gr_session *s, const gr_generate_options *o, graft_error *err) {
    graft_status st = GRAFT_OK;
    prompts p = {0};
    gr_completion *results = NULL;
    generated g = {0};
    gr_writer w = {0};
    const char *out = gr_args_text(a, "out", NULL);
    GR_TRY(read_prompts(s, &p, gr_args_text(a, "prompts", NULL), err));
    results = gr_calloc(p.n, sizeof *results);
    if (!results) GR_TRY(gr_fail_memory(err, "completions"));
    if (out) GR_TRY(gr_writer_open(&w, out, err));
    gr_progress_start(&g.progress, "generate", p.n);
    GR_TRY(gr_generate(s->model, s->tokenizer, (gr_prompts){p.ids, p.n, gr_chat_end_of_turn(s->chat)}, o, results, on_generated, &g,
                       err));
    gr_progress_end(&g.progress);
    GR_TRY(write_completions(out ? w.stream : stdout, &p, results, err));
    if (out) GR_TRY(gr_writer_commit(&w, err));
done:
    if (g.progress.label) gr_progress_end(&g.progress);
    gr_writer_abort(&w);
    if (results) gr_completions_release(results, p.n);
    free(results);
    release_prompts(&p);
    return st;
}

static int print_text(void *payload, int64_t prompt, const char *text, int64_t len, bool done) {
    (void)payload, (void)prompt, (void)done;
    fwrite(text, 1, (size_t)len, stdout);
    fflush(stdout);
    return 0;
}

static graft_status generate_one(const gr_args *a, const gr_session *s, const gr_generate_options *o, graft_error *err) {
    graft_status st = GRAFT_OK;
    bool json = gr_args_has(a, "json");
    gr_completion result = {0};
    prompts p = {0};
    gr_message m = {.role = "user", .content = gr_args_text(a, "prompt", NULL)};
    json_t *line = json_pack("{s:s}", "prompt", m.content);
    GR_TRY(add_prompt(s, &p, &(gr_conversation){.messages = &m, .n = 1}, line, err));
    if (json && !line) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--prompt: not UTF-8, which --json needs"));
    GR_TRY(gr_generate(s->model, s->tokenizer, (gr_prompts){p.ids, 1, gr_chat_end_of_turn(s->chat)}, o, &result,
                       json ? NULL : print_text, NULL, err));
    if (json) GR_TRY(write_completions(stdout, &p, &result, err));
    else putchar('\n');
done:
    gr_completions_release(&result, 1);
    release_prompts(&p);
    return st;
}

graft_status gr_cmd_generate(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session s = {0};
    gr_generate_options o;
    const char *stop[GR_MAX_STOP];
    if (gr_args_has(a, "prompt") == gr_args_has(a, "prompts"))
        return gr_fail(err, GRAFT_BAD_USAGE, "give either --prompt TEXT or --prompts FILE");
    if (gr_args_has(a, "out") && !gr_args_has(a, "prompts")) return gr_fail(err, GRAFT_BAD_USAGE, "--out goes with --prompts");
    GR_TRY(gr_args_sampling(a, &o, stop, 256, err));
    GR_TRY(gr_args_int(a, "batch", 1, 0, &o.batch, err));
    GR_TRY(gr_open_session(a, GR_FOR_WRITING, &s, NULL, err));
    GR_TRY(gr_args_has(a, "prompts") ? generate_file(a, &s, &o, err) : generate_one(a, &s, &o, err));
done:
    gr_session_close(&s);
    return st;
}
