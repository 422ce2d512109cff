#include "peft/cli/line_editor.h"

#include <errno.h>
#include <fcntl.h>
#include <histedit.h>
#include <langinfo.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wchar.h>

#include "core/base/file.h"

enum { HISTORY_LINES = 1000, PRESSES_TO_END = 3 };

struct gr_line_editor {
    const char *prompt;
    EditLine *edit; /* NULL: no terminal */
    History *history;
    char *history_file; /* owned; NULL: none */
    char *line;         /* owned, from getline */
    size_t capacity;
    bool had_text; /* something stood on the line when Ctrl-C came */
    int n_cleared; /* empty lines that Ctrl-C dropped, in a row */
    struct sigaction old_int, old_cont, old_winch;
};

/* ---- signals ---- */

static volatile sig_atomic_t presses, continued, resized;
static int wake[2] = {-1, -1}; /* a signal writes into it, so that none comes unseen between a look and a wait */

static void on_signal(int number) {
    int saved = errno;
    ssize_t written = write(wake[1], "", 1); /* full: somebody will wake anyway */
    (void)written;
    errno = saved;
    if (number == SIGCONT) continued = 1;
    if (number == SIGWINCH) resized = 1;
    if (number != SIGINT || ++presses < PRESSES_TO_END) return;
    signal(SIGINT, SIG_DFL);
    raise(SIGINT);
}

bool gr_line_editor_interrupted(void) { return presses > 0; }

static bool catch_signals(gr_line_editor *e) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}; /* an answer's writes are not cut off */
    if (pipe2(wake, O_CLOEXEC | O_NONBLOCK) != 0) return false;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, &e->old_int);
    sigaction(SIGCONT, &action, &e->old_cont);
    sigaction(SIGWINCH, &action, &e->old_winch);
    return true;
}

/* One character for libedit, whose own reading would swallow the first Ctrl-C. */
static int get_character(EditLine *edit, wchar_t *out) {
    gr_line_editor *e = NULL;
    mbstate_t state = {0};
    char byte;
    el_get(edit, EL_CLIENTDATA, &e);
    for (;;) {
        struct pollfd inputs[] = {{.fd = STDIN_FILENO, .events = POLLIN}, {.fd = wake[0], .events = POLLIN}};
        char signals[64];
        if (poll(inputs, 2, -1) < 0 && errno != EINTR) return -1;
        while (read(wake[0], signals, sizeof signals) > 0) continue;
        if (presses > 0) {
            const LineInfo *line = el_line(edit);
            e->had_text = line->lastchar > line->buffer;
            return -1;
        }
        if (resized) el_resize(edit);
        if (continued) { /* the shell had the terminal */
            el_set(edit, EL_PREP_TERM, 1);
            el_set(edit, EL_REFRESH);
        }
        resized = continued = 0;
        if (!inputs[0].revents) continue;
        ssize_t n = read(STDIN_FILENO, &byte, 1);
        if (n <= 0) return (int)n;
        size_t used = mbrtowc(out, &byte, 1, &state);
        if (used == (size_t)-2) continue; /* more bytes to come */
        if (used == (size_t)-1) *out = 0xFFFD;
        return 1;
    }
}

/* ---- history ---- */

/* A folder of its owner alone, and the file in it; NULL where there is no place. */
static char *history_path(void) {
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    bool xdg = state && *state == '/';
    char *file = NULL, *folder = xdg ? gr_format("%s/graft", state) : home ? gr_format("%s/.local/state/graft", home) : NULL;
    mode_t mask = umask(077);
    if (folder && gr_make_dirs(folder, NULL) == GRAFT_OK) file = gr_path_join(folder, "chat_history");
    umask(mask);
    free(folder);
    return file;
}

static void remember(gr_line_editor *e, const char *line) {
    HistEvent event;
    history(e->history, &event, H_ENTER, line);
    if (!e->history_file) return;
    mode_t mask = umask(077);
    history(e->history, &event, H_SAVE, e->history_file);
    umask(mask);
}

/* ---- the editor ---- */

static char *prompt_of(EditLine *edit) {
    gr_line_editor *e = NULL;
    el_get(edit, EL_CLIENTDATA, &e);
    return (char *)(uintptr_t)e->prompt;
}

static graft_status open_terminal(gr_line_editor *e, graft_error *err) {
    HistEvent event;
    /* Whatever the locale, texts here are UTF-8. */
    if (!setlocale(LC_CTYPE, "") || strcmp(nl_langinfo(CODESET), "UTF-8") != 0) setlocale(LC_CTYPE, "C.UTF-8");
    e->edit = el_init("graft", stdin, stderr, stderr); /* stdout is for answers */
    e->history = history_init();
    if (!e->edit || !e->history) return gr_fail_memory(err, "line editor");
    history(e->history, &event, H_SETSIZE, HISTORY_LINES);
    history(e->history, &event, H_SETUNIQUE, 1);
    e->history_file = history_path();
    if (e->history_file) history(e->history, &event, H_LOAD, e->history_file);
    el_set(e->edit, EL_CLIENTDATA, e);
    el_set(e->edit, EL_PROMPT, prompt_of);
    el_set(e->edit, EL_EDITOR, "emacs");
    el_set(e->edit, EL_HIST, history, e->history);
    el_set(e->edit, EL_GETCFN, get_character);
    el_set(e->edit, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_source(e->edit, NULL); /* ~/.editrc */
    return catch_signals(e) ? GRAFT_OK : gr_fail_errno(err, GRAFT_FAILED, "line editor");
}

graft_status gr_line_editor_open(gr_line_editor **out, const char *prompt, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_line_editor *e = gr_calloc(1, sizeof *e);
    *out = NULL;
    if (!e) return gr_fail_memory(err, "line editor");
    e->prompt = prompt;
    if (isatty(STDIN_FILENO) && isatty(STDERR_FILENO)) st = open_terminal(e, err);
    if (st == GRAFT_OK) *out = e;
    else gr_line_editor_close(e);
    return st;
}

void gr_line_editor_close(gr_line_editor *e) {
    if (!e) return;
    if (e->edit) {
        el_end(e->edit);
        sigaction(SIGINT, &e->old_int, NULL);
        sigaction(SIGCONT, &e->old_cont, NULL);
        sigaction(SIGWINCH, &e->old_winch, NULL);
        close(wake[0]);
        close(wake[1]);
    }
    if (e->history) history_end(e->history);
    free(e->history_file);
    free(e->line);
    free(e);
}

bool gr_line_editor_interactive(const gr_line_editor *e) { return e->edit != NULL; }

static gr_line_kind cleared(gr_line_editor *e) {
    fputc('\n', stderr);
    e->n_cleared = e->had_text ? 0 : e->n_cleared + 1;
    return e->n_cleared > 1 ? GR_LINE_END : GR_LINE_CLEARED;
}

gr_line_kind gr_line_editor_read(gr_line_editor *e, const char **line, int64_t *len) {
    int n = 0;
    *line = "";
    *len = 0;
    presses = 0;
    if (!e->edit) {
        ssize_t got = getline(&e->line, &e->capacity, stdin);
        if (got < 0) return GR_LINE_END;
        *line = e->line;
        *len = got;
    } else {
        el_set(e->edit, EL_PREP_TERM, 1); /* before the prompt invites to type */
        const char *text = el_gets(e->edit, &n);
        if (!text && presses > 0) return cleared(e);
        if (!text || n <= 0) {
            fputc('\n', stderr);
            return GR_LINE_END;
        }
        e->n_cleared = 0;
        free(e->line);
        if (!(e->line = gr_strndup(text, n))) return GR_LINE_END;
        *line = e->line;
        *len = n;
        if (e->line[strspn(e->line, " \t\r\n")]) remember(e, e->line);
    }
    while (*len > 0 && (e->line[*len - 1] == '\n' || e->line[*len - 1] == '\r')) e->line[--*len] = '\0';
    return GR_LINE;
}
