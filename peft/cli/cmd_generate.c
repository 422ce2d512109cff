/* graft generate, graft chat */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "peft/cli/session_args.h"

enum { MAX_PROMPTS_BYTES = 1 << 30, MAX_STOP = 16 };

/* The sampling options; o->stop points into stop[MAX_STOP]. */
static graft_status sampling_options(const gr_args *a, gr_generate_options *o, const char **stop,
                                     int64_t max_tokens, graft_error *err) {
    graft_status st = GRAFT_OK;
    double temperature, top_p, penalty;
    int64_t top_k, seed;
    const char **all = gr_calloc(a->n_given + 1, sizeof *all);
    if (!all) return gr_fail_memory(err, "options");
    *o = (gr_generate_options){.stop = stop, .n_stop = gr_args_all(a, "stop", all)};
    if (o->n_stop > MAX_STOP)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--stop: at most %d stop strings", MAX_STOP));
    for (int i = 0; i < o->n_stop; i++) stop[i] = all[i];
    GR_TRY(gr_args_int(a, "max-tokens", 1, max_tokens, &o->max_tokens, err));
    GR_TRY(gr_args_float(a, "temperature", 0, 1e6, 0, &temperature, err));
    GR_TRY(gr_args_float(a, "top-p", 0, 1, 1, &top_p, err));
    GR_TRY(gr_args_float(a, "repetition-penalty", 1e-6, 1e6, 1, &penalty, err));
    GR_TRY(gr_args_int(a, "top-k", 0, 0, &top_k, err));
    GR_TRY(gr_args_int(a, "seed", 0, 42, &seed, err));
    GR_TRY(gr_args_int(a, "batch", 1, 0, &o->batch, err));
    o->temperature = (float)temperature;
    o->top_p = (float)top_p;
    o->repetition_penalty = (float)penalty;
    o->top_k = (int)GR_MIN(top_k, INT32_MAX);
    o->seed = (uint64_t)seed;
    o->ignore_eos = gr_args_has(a, "ignore-eos");
done:
    free(all);
    return st;
}

/* ---- prompts ---- */

typedef struct prompts {
    gr_ids *ids;
    json_t **text; /* the line's "prompt", or its "messages" as the template renders them */
    int64_t n, ids_capacity, text_capacity;
} prompts;

static void release_prompts(prompts *p) {
    for (int64_t i = 0; i < p->n; i++) {
        gr_ids_release(&p->ids[i]);
        json_decref(p->text[i]);
    }
    free(p->ids);
    free(p->text);
    *p = (prompts){0};
}

static graft_status encode(const gr_session *s, const gr_message *messages, int64_t n, gr_ids *out,
                           graft_error *err) {
    gr_encoded e = {0};
    graft_status st = gr_chat_encode(s->chat, messages, n, true, GR_LOSS_COMPLETION, &e, err);
    if (st == GRAFT_OK) {
        *out = e.ids; /* moves */
        e.ids = (gr_ids){0};
    }
    gr_encoded_release(&e);
    return st;
}

/* Room for one more, then its ids; text is taken over. */
static graft_status add_prompt(const gr_session *s, prompts *p, const gr_message *messages, int64_t n,
                               json_t *text, graft_error *err) {
    if (!gr_grow(&p->ids, &p->ids_capacity, p->n + 1, sizeof *p->ids) ||
        !gr_grow(&p->text, &p->text_capacity, p->n + 1, sizeof(json_t *))) {
        json_decref(text);
        return gr_fail_memory(err, "prompts");
    }
    p->text[p->n] = text;
    p->ids[p->n] = (gr_ids){0};
    p->n++;
    return encode(s, messages, n, &p->ids[p->n - 1], err);
}

static graft_status add_messages(const gr_session *s, prompts *p, json_t *list, const char *place,
                                 graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_str text = {0};
    int64_t n = (int64_t)json_array_size(list);
    gr_message *messages = gr_calloc(n, sizeof *messages);
    if (!messages) return gr_fail_memory(err, place);
    for (int64_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(list, (size_t)i);
        messages[i].role = json_string_value(json_object_get(m, "role"));
        messages[i].content = json_string_value(json_object_get(m, "content"));
        if (!messages[i].role || !messages[i].content)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                           "messages[%lld]: expected {\"role\": text, \"content\": text}", (long long)i));
    }
    GR_TRY(gr_chat_render(s->chat, messages, n, true, &text, err));
    GR_TRY(add_prompt(s, p, messages, n, json_stringn(text.data ? text.data : "", (size_t)text.len), err));
done:
    gr_str_release(&text);
    free(messages);
    return st == GRAFT_OK ? st : gr_fail_context(err, st, "%s", place);
}

static graft_status add_line(const gr_session *s, prompts *p, const char *line, int64_t len,
                             const char *place, graft_error *err) {
    graft_status st = GRAFT_OK;
    json_error_t why;
    json_t *root = json_loadb(line, (size_t)len, JSON_REJECT_DUPLICATES, &why);
    if (!root) return gr_fail(err, GRAFT_BAD_INPUT, "%s: not JSON: %s", place, why.text);
    json_t *prompt = json_object_get(root, "prompt"), *messages = json_object_get(root, "messages");
    if (json_is_string(prompt)) {
        gr_message m = {.role = "user", .content = json_string_value(prompt)};
        st = add_prompt(s, p, &m, 1, json_incref(prompt), err);
        if (st != GRAFT_OK) st = gr_fail_context(err, st, "%s", place);
    } else if (json_is_array(messages) && json_array_size(messages) > 0) {
        st = add_messages(s, p, messages, place, err);
    } else {
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s: expected {\"prompt\": text} or {\"messages\": [...]}", place);
    }
    json_decref(root);
    return st;
}

static graft_status read_prompts(const gr_session *s, prompts *p, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *text = NULL, place[512];
    int64_t len = 0, number = 0;
    GR_TRY(gr_file_read(&text, &len, path, MAX_PROMPTS_BYTES, err));
    for (int64_t at = 0, end; at < len; at = end + 1) {
        const char *newline = memchr(text + at, '\n', (size_t)(len - at));
        end = newline ? newline - text : len;
        number++;
        if ((int64_t)strspn(text + at, " \t\r") >= end - at) continue;
        snprintf(place, sizeof place, "%s:%lld", path, (long long)number);
        GR_TRY(add_line(s, p, text + at, end - at, place, err));
    }
    if (p->n == 0)
        st = gr_fail(err, GRAFT_BAD_INPUT,
                     "%s: no prompts; expected {\"prompt\": text} or {\"messages\": [...]} lines", path);
done:
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

static graft_status write_completions(FILE *out, const prompts *p, const gr_completion *results,
                                      graft_error *err) {
    for (int64_t i = 0; i < p->n; i++) {
        json_t *line = json_pack("{s:O?,s:s,s:I}", "prompt", p->text[i], "completion", results[i].text,
                                 "tokens", (json_int_t)results[i].n_tokens);
        if (!line)
            return gr_fail(err, GRAFT_FAILED, "prompt %lld: the completion is no UTF-8", (long long)i + 1);
        json_dumpf(line, out, JSON_COMPACT);
        fputc('\n', out);
        json_decref(line);
    }
    return GRAFT_OK;
}

static graft_status generate_file(const gr_args *a, const gr_session *s, const gr_generate_options *o,
                                  graft_error *err) {
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
    GR_TRY(gr_generate(s->model, s->tokenizer, p.ids, p.n, gr_chat_end_of_turn(s->chat), o, results,
                       on_generated, &g, err));
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

static graft_status generate_one(const gr_args *a, const gr_session *s, const gr_generate_options *o,
                                 graft_error *err) {
    graft_status st = GRAFT_OK;
    bool json = gr_args_has(a, "json");
    gr_completion result = {0};
    prompts p = {0};
    gr_message m = {.role = "user", .content = gr_args_text(a, "prompt", NULL)};
    GR_TRY(add_prompt(s, &p, &m, 1, json_string(m.content), err));
    if (json && !p.text[0]) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--prompt: not UTF-8, which --json needs"));
    GR_TRY(gr_generate(s->model, s->tokenizer, p.ids, 1, gr_chat_end_of_turn(s->chat), o, &result,
                       json ? NULL : print_text, NULL, err));
    if (json)
        GR_TRY(write_completions(stdout, &p, &result, err));
    else
        putchar('\n');
done:
    gr_completions_release(&result, 1);
    release_prompts(&p);
    return st;
}

graft_status gr_cmd_generate(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session s = {0};
    gr_generate_options o;
    const char *stop[MAX_STOP];
    if (gr_args_has(a, "prompt") == gr_args_has(a, "prompts"))
        return gr_fail(err, GRAFT_BAD_USAGE, "give either --prompt TEXT or --prompts FILE");
    if (gr_args_has(a, "out") && !gr_args_has(a, "prompts"))
        return gr_fail(err, GRAFT_BAD_USAGE, "--out goes with --prompts");
    GR_TRY(sampling_options(a, &o, stop, 256, err));
    GR_TRY(gr_open_session(a, GR_FOR_WRITING, &s, NULL, err));
    GR_TRY(gr_args_has(a, "prompts") ? generate_file(a, &s, &o, err) : generate_one(a, &s, &o, err));
done:
    gr_session_close(&s);
    return st;
}

/* ---- chat ---- */

typedef struct history {
    gr_message *messages;
    int64_t n, capacity;
} history;

static void clear_history(history *h) {
    for (int64_t i = 0; i < h->n; i++) free((void *)(uintptr_t)h->messages[i].content);
    h->n = 0;
}

/* content: taken over */
static bool add_turn(history *h, const char *role, char *content) {
    if (!content || !gr_grow(&h->messages, &h->capacity, h->n + 1, sizeof *h->messages)) {
        free(content);
        return false;
    }
    h->messages[h->n++] = (gr_message){.role = role, .content = content};
    return true;
}

/* One turn: the question is in the history; the answer is printed as it comes and added. */
static graft_status answer(const gr_session *s, const gr_generate_options *o, history *h, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_ids ids = {0};
    gr_completion result = {0};
    GR_TRY(encode(s, h->messages, h->n, &ids, err));
    GR_TRY(gr_generate(s->model, s->tokenizer, &ids, 1, gr_chat_end_of_turn(s->chat), o, &result, print_text,
                       NULL, err));
    putchar('\n');
    fflush(stdout);
    if (!add_turn(h, "assistant", gr_strdup(result.text))) st = gr_fail_memory(err, "history");
done:
    gr_ids_release(&ids);
    gr_completions_release(&result, 1);
    return st;
}

static graft_status chat_loop(const gr_session *s, const gr_generate_options *o, graft_error *err) {
    graft_status st = GRAFT_OK;
    history h = {0};
    char *line = NULL;
    size_t capacity = 0;
    ssize_t len;
    bool terminal = isatty(STDIN_FILENO);
    if (terminal) fprintf(stderr, "/clear forgets the conversation, /exit leaves\n");
    for (;;) {
        if (terminal) fputs("> ", stderr);
        if ((len = getline(&line, &capacity, stdin)) < 0) break;
        while (len > 0 && (line[len - 1] == '\n' || line[len - 1] == '\r')) line[--len] = '\0';
        if (len == 0) continue;
        if (strcmp(line, "/exit") == 0 || strcmp(line, "/quit") == 0) break;
        if (strcmp(line, "/clear") == 0) {
            clear_history(&h);
            continue;
        }
        if (!add_turn(&h, "user", gr_strndup(line, len))) GR_TRY(gr_fail_memory(err, "history"));
        st = answer(s, o, &h, err);
        if (st == GRAFT_BAD_USAGE && h.n > 1) {
            gr_note("the conversation no longer fits the model's context: it starts anew");
            char *question = gr_strdup(h.messages[h.n - 1].content);
            clear_history(&h);
            if (!add_turn(&h, "user", question)) GR_TRY(gr_fail_memory(err, "history"));
            st = answer(s, o, &h, err);
        }
        if (st != GRAFT_OK) goto done;
    }
done:
    clear_history(&h);
    free(h.messages);
    free(line);
    return st;
}

graft_status gr_cmd_chat(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session s = {0};
    gr_generate_options o;
    const char *stop[MAX_STOP];
    GR_TRY(sampling_options(a, &o, stop, 512, err));
    GR_TRY(gr_open_session(a, GR_FOR_WRITING, &s, NULL, err));
    GR_TRY(chat_loop(&s, &o, err));
done:
    gr_session_close(&s);
    return st;
}
