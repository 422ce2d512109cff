/* graft chat: a conversation, line by line. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "peft/cli/line_editor.h"
#include "peft/cli/session_args.h"

/* ---- the conversation ---- */

typedef struct conversation {
    const gr_session *session;
    const gr_generate_options *options;
    gr_message *messages; /* contents owned; [0] is the system text, "" for none of its own */
    int64_t n, capacity;
    const char *given_system; /* --system, which the template knows; NULL: none */
} conversation;

static void forget(conversation *c, int64_t from) {
    for (int64_t i = from; i < c->n; i++) free((void *)(uintptr_t)c->messages[i].content);
    c->n = GR_MIN(c->n, from);
}

/* content: taken over */
static graft_status add_turn(conversation *c, const char *role, char *content, graft_error *err) {
    if (!content || !gr_grow(&c->messages, &c->capacity, c->n + 1, sizeof *c->messages)) {
        free(content);
        return gr_fail_memory(err, "conversation");
    }
    c->messages[c->n++] = (gr_message){.role = role, .content = content};
    return GRAFT_OK;
}

static graft_status set_system(conversation *c, const char *text, graft_error *err) {
    char *copy = gr_strdup(text);
    if (!copy) return gr_fail_memory(err, "conversation");
    free((void *)(uintptr_t)c->messages[0].content);
    c->messages[0].content = copy;
    return GRAFT_OK;
}

static int print_text(void *payload, int64_t prompt, const char *text, int64_t len, bool done) {
    (void)payload, (void)prompt, (void)done;
    fwrite(text, 1, (size_t)len, stdout);
    fflush(stdout);
    return gr_line_editor_interrupted();
}

/* The answer to what the conversation holds is printed as it comes, and added. Ctrl-C ends it where it is. */
static graft_status answer(conversation *c, graft_error *err) {
    graft_status st = GRAFT_OK;
    const gr_session *s = c->session;
    int64_t first = *c->messages[0].content ? 0 : 1;
    gr_ids ids = {0};
    gr_completion result = {0};
    GR_TRY(gr_chat_prompt(s->chat, &(gr_conversation){.messages = c->messages + first, .n = c->n - first}, &ids, err));
    GR_TRY(gr_generate(s->model, s->tokenizer, (gr_prompts){&ids, 1, gr_chat_end_of_turn(s->chat)}, c->options, &result, print_text,
                       NULL, err));
    putchar('\n');
    fflush(stdout);
    if (gr_line_editor_interrupted()) gr_note("(stopped)");
    if (*result.text) GR_TRY(add_turn(c, "assistant", gr_strdup(result.text), err));
    else forget(c, c->n - 1); /* a question without an answer */
done:
    gr_ids_release(&ids);
    gr_completions_release(&result, 1);
    return st;
}

static graft_status ask(conversation *c, const char *text, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t before = c->n;
    GR_TRY(add_turn(c, "user", gr_strdup(text), err));
    st = answer(c, err);
    if (st == GRAFT_BAD_USAGE && c->n > 2) {
        gr_note("the conversation no longer fits the model's context: it starts anew");
        forget(c, 1);
        before = 1;
        GR_TRY(add_turn(c, "user", gr_strdup(text), err));
        st = answer(c, err);
    }
done:
    if (st != GRAFT_OK) forget(c, before);
    return st;
}

/* ---- what a line with a slash asks for ---- */

/* The conversation as a line of training data. */
static graft_status save(conversation *c, const char *path, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_writer w = {0};
    json_t *list = json_array(), *line = json_pack("{s:o}", "messages", list);
    const char *system = *c->messages[0].content ? c->messages[0].content : c->given_system;
    if (!line) return gr_fail_memory(err, path);
    if (system && *system) json_array_append_new(list, json_pack("{s:s,s:s}", "role", "system", "content", system));
    for (int64_t i = 1; i < c->n; i++)
        if (json_array_append_new(list, json_pack("{s:s,s:s}", "role", c->messages[i].role, "content", c->messages[i].content)))
            GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "message %lld is no UTF-8, which the file must be", (long long)i));
    if (c->n == 1) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "/save: nothing was said yet"));
    if (gr_exists(path)) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "/save: %s exists already; name another file", path));
    GR_TRY(gr_writer_open(&w, path, err));
    json_dumpf(line, w.stream, JSON_COMPACT);
    fputc('\n', w.stream);
    GR_TRY(gr_writer_commit(&w, err));
    gr_note("%s: %lld messages", path, (long long)json_array_size(list));
done:
    gr_writer_abort(&w);
    json_decref(line);
    return st;
}

static graft_status do_help(conversation *c, const char *text, graft_error *err);

static graft_status do_clear(conversation *c, const char *text, graft_error *err) {
    (void)text, (void)err;
    forget(c, 1);
    gr_note("the conversation is forgotten");
    return GRAFT_OK;
}

static graft_status do_system(conversation *c, const char *text, graft_error *err) {
    const char *now = *c->messages[0].content ? c->messages[0].content : c->given_system;
    if (!*text) {
        gr_note("system text: %s", now ? now : "that of the template");
        return GRAFT_OK;
    }
    return set_system(c, text, err);
}

static graft_status do_save(conversation *c, const char *text, graft_error *err) {
    if (!*text) return gr_fail(err, GRAFT_BAD_USAGE, "/save: expected the name of a file, such as /save talk.jsonl");
    return save(c, text, err);
}

static const struct slash {
    const char *name, *argument, *help;
    graft_status (*run)(conversation *c, const char *text, graft_error *err); /* NULL: leave */
} slashes[] = {
    {"/help", "", "this list", do_help},
    {"/clear", "", "forget the conversation", do_clear},
    {"/system", " TEXT", "the system text from now on; without TEXT: say it", do_system},
    {"/save", " FILE", "write the conversation as a line of {\"messages\"}, which train and generate read", do_save},
    {"/exit", "", "leave; so do /quit, Ctrl-D, and Ctrl-C twice", NULL},
    {"/quit", "", NULL, NULL},
};

static graft_status do_help(conversation *c, const char *text, graft_error *err) {
    (void)c, (void)text, (void)err;
    for (int i = 0; i < GR_LEN(slashes); i++)
        if (slashes[i].help)
            fprintf(stderr, "  %s%-*s %s\n", slashes[i].name, 14 - (int)strlen(slashes[i].name), slashes[i].argument,
                    slashes[i].help);
    fprintf(stderr, "  //text         a question that begins with a slash\n  Ctrl-C         stops an answer, clears a line\n");
    return GRAFT_OK;
}

static graft_status unknown_slash(const char *line, int n, graft_error *err) {
    char known[128] = "";
    const char *names[GR_LEN(slashes)], *near;
    for (int i = 0; i < GR_LEN(slashes); i++) {
        names[i] = slashes[i].name;
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? " " : "", names[i]);
    }
    char *word = gr_strndup(line, n);
    near = word ? gr_nearest(word, names, GR_LEN(slashes)) : NULL;
    free(word);
    return gr_fail(err, GRAFT_BAD_USAGE,
                   "no command \"%.*s\"%s%s%s; known are %s; a question that begins with a slash is written //...", GR_MIN(n, 40),
                   line, near ? " (did you mean " : "", near ? near : "", near ? "?)" : "", known);
}

static graft_status do_slash(conversation *c, const char *line, bool *leave, graft_error *err) {
    int n = (int)strcspn(line, " \t");
    for (int i = 0; i < GR_LEN(slashes); i++) {
        if ((int)strlen(slashes[i].name) != n || strncmp(line, slashes[i].name, (size_t)n) != 0) continue;
        *leave = !slashes[i].run;
        return *leave ? GRAFT_OK : slashes[i].run(c, line + n + strspn(line + n, " \t"), err);
    }
    return unknown_slash(line, n, err);
}

/* ---- the loop ---- */

static graft_status do_line(conversation *c, const char *line, int64_t len, bool *leave, graft_error *err) {
    if ((int64_t)strlen(line) != len) return gr_fail(err, GRAFT_BAD_USAGE, "a line holds the character NUL: it is not sent");
    if (line[strspn(line, " \t")] == '\0') return GRAFT_OK;
    if (line[0] == '/' && line[1] != '/') return do_slash(c, line, leave, err);
    return ask(c, line + (line[0] == '/'), err);
}

/* A person is told what was wrong with a line and goes on; lines from elsewhere end with the first one that fails, but for unknown
 * commands, which are only left out. */
static graft_status chat_loop(conversation *c, gr_line_editor *editor, graft_error *err) {
    bool leave = false, person = gr_line_editor_interactive(editor);
    const char *line;
    int64_t len;
    gr_line_kind kind;
    if (person) fprintf(stderr, "/help lists what else you can write here\n");
    while (!leave && (kind = gr_line_editor_read(editor, &line, &len)) != GR_LINE_END) {
        graft_error wrong = {0};
        if (kind == GR_LINE_CLEARED) continue;
        graft_status st = do_line(c, line, len, &leave, &wrong);
        if (st == GRAFT_OK) continue;
        if (st == GRAFT_NO_MEMORY || (!person && (*line != '/' || line[1] == '/'))) {
            if (err) *err = wrong;
            return st;
        }
        fprintf(stderr, "%s\n", wrong.msg);
    }
    return GRAFT_OK;
}

graft_status gr_cmd_chat(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session s = {0};
    gr_generate_options o;
    gr_line_editor *editor = NULL;
    conversation c = {.session = &s, .options = &o, .given_system = gr_args_text(a, "system", NULL)};
    const char *stop[GR_MAX_STOP];
    GR_TRY(gr_args_sampling(a, &o, stop, 512, err));
    GR_TRY(gr_open_session(a, GR_FOR_WRITING, &s, NULL, err));
    GR_TRY(gr_line_editor_open(&editor, "> ", err));
    GR_TRY(add_turn(&c, "system", gr_strdup(""), err));
    GR_TRY(chat_loop(&c, editor, err));
done:
    gr_line_editor_close(editor);
    forget(&c, 0);
    free(c.messages);
    gr_session_close(&s);
    return st;
}
