#include "core/base/log.h"

#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 1024, BAR_WIDTH = 20 };
#define REDRAW_S 0.1  /* on a terminal */
#define LINE_S   10.0 /* plain lines elsewhere and in run.log */

/* The one place with mutable file-level state: stderr is one for the whole process, and so is what stands on it. */
static struct {
    pthread_mutex_t lock;
    FILE *tee;
    bool quiet, mute, tee_alone;
    bool drawn; /* a progress line without a newline stands on the terminal */
} log_state = {.lock = PTHREAD_MUTEX_INITIALIZER};

void gr_log_tee(FILE *stream) {
    pthread_mutex_lock(&log_state.lock);
    log_state.tee = stream;
    pthread_mutex_unlock(&log_state.lock);
}

void gr_log_quiet(bool quiet) {
    pthread_mutex_lock(&log_state.lock);
    log_state.quiet = quiet;
    pthread_mutex_unlock(&log_state.lock);
}

void gr_log_mute(bool mute) {
    pthread_mutex_lock(&log_state.lock);
    log_state.mute = mute;
    pthread_mutex_unlock(&log_state.lock);
}

void gr_log_to_tee(bool alone) {
    pthread_mutex_lock(&log_state.lock);
    log_state.tee_alone = alone;
    pthread_mutex_unlock(&log_state.lock);
}

static void put_line(FILE *stream, const char *line) {
    fputs(line, stream);
    fputc('\n', stream);
    fflush(stream);
}

/* A whole line to stderr (unless silent) and to the tee. */
static void emit(const char *line, bool silent) {
    pthread_mutex_lock(&log_state.lock);
    if (!silent && !log_state.mute && !log_state.tee_alone) {
        if (log_state.drawn) fputs("\r\033[K", stderr);
        log_state.drawn = false;
        put_line(stderr, line);
    }
    if (log_state.tee && !log_state.mute) put_line(log_state.tee, line);
    pthread_mutex_unlock(&log_state.lock);
}

void gr_note(const char *format, ...) {
    char line[LINE_MAX_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    emit(line, log_state.quiet);
}

void gr_warn(const char *format, ...) {
    char line[LINE_MAX_BYTES] = "warning: ";
    int n = (int)strlen(line);
    va_list args;
    va_start(args, format);
    vsnprintf(line + n, sizeof line - (size_t)n, format, args);
    va_end(args);
    emit(line, false);
}

/* ---- progress ---- */

void gr_progress_start(gr_progress *p, const char *label, int64_t total) {
    *p = (gr_progress){.label = label, .total = total, .first = -1};
}

static void format_duration(char *out, size_t size, double seconds) {
    long long s = (long long)(seconds + 0.5);
    if (s >= 3600) snprintf(out, size, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    else snprintf(out, size, "%lld:%02lld", s / 60, s % 60);
}

/* The line in two flavours; the ETA comes from the pace since the first update, so a resumed run is right too. */
static void format_progress(char *line, size_t size, const gr_progress *p, int64_t done, double now, bool bar, const char *text) {
    char bar_text[BAR_WIDTH + 5] = "", count[64], eta[48] = "", duration[32];
    if (bar && p->total > 0) {
        int full = (int)(GR_MIN((double)done / (double)p->total, 1.0) * BAR_WIDTH);
        memset(bar_text, '.', sizeof bar_text);
        memset(bar_text + 1, '#', (size_t)GR_MAX(full, 0));
        memcpy(bar_text + BAR_WIDTH + 1, "]  ", 4);
        bar_text[0] = '[';
    }
    if (p->total > 0) snprintf(count, sizeof count, "%lld/%lld", (long long)done, (long long)p->total);
    else snprintf(count, sizeof count, "%lld", (long long)done);
    if (p->total > done && done > p->first) {
        double pace = (now - p->started) / (double)(done - p->first);
        format_duration(duration, sizeof duration, pace * (double)(p->total - done));
        snprintf(eta, sizeof eta, "  ETA %s", duration);
    }
    snprintf(line, size, "%s  %s%s%s%s%s", p->label, bar_text, count, *text ? "  " : "", text, eta);
}

/* Cut line to the terminal's width, between characters: a wrapped line cannot be redrawn in place. */
static void fit_terminal(char *line) {
    struct winsize w;
    size_t width = ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 1 ? w.ws_col - 1u : 79u;
    if (strlen(line) <= width) return;
    while (width > 0 && ((unsigned char)line[width] & 0xC0) == 0x80) width--;
    line[width] = '\0';
}

static void draw(const gr_progress *p, int64_t done, double now, const char *text) {
    char line[LINE_MAX_BYTES];
    format_progress(line, sizeof line, p, done, now, true, text);
    fit_terminal(line);
    pthread_mutex_lock(&log_state.lock);
    fprintf(stderr, "\r%s\033[K", line);
    fflush(stderr);
    log_state.drawn = true;
    pthread_mutex_unlock(&log_state.lock);
}

void gr_progress_update(gr_progress *p, int64_t done, const char *format, ...) {
    double now = gr_now();
    bool terminal = isatty(STDERR_FILENO), last = p->total > 0 && done >= p->total;
    if (p->first < 0) {
        p->first = done;
        p->started = now;
        p->logged = now - LINE_S / 2; /* the first plain line soon, not at once */
    }
    bool redraw = terminal && !log_state.quiet && !log_state.tee_alone && (last || now - p->drawn >= REDRAW_S);
    bool plain = last || now - p->logged >= LINE_S;
    if (!redraw && !plain) return;
    char text[LINE_MAX_BYTES / 2], line[LINE_MAX_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (plain) {
        format_progress(line, sizeof line, p, done, now, false, text);
        emit(line, terminal || log_state.quiet);
        p->logged = now;
    }
    if (redraw) {
        draw(p, done, now, text);
        p->drawn = now;
    }
}

void gr_progress_end(gr_progress *p) {
    pthread_mutex_lock(&log_state.lock);
    if (log_state.drawn) fputc('\n', stderr);
    log_state.drawn = false;
    pthread_mutex_unlock(&log_state.lock);
    *p = (gr_progress){0};
}
