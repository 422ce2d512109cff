#include "core/base/base.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const char *graft_status_name(graft_status status) {
    switch (status) {
    case GRAFT_OK: return "ok";
    case GRAFT_FAILED: return "failed";
    case GRAFT_BAD_USAGE: return "bad usage";
    case GRAFT_BAD_INPUT: return "bad input";
    case GRAFT_INTERRUPTED: return "interrupted";
    case GRAFT_NO_MEMORY: return "out of memory";
    }
    return "unknown status";
}

int graft_status_exit_code(graft_status status) {
    switch (status) {
    case GRAFT_OK: return 0;
    case GRAFT_BAD_USAGE: return 2;
    case GRAFT_BAD_INPUT: return 3;
    case GRAFT_INTERRUPTED: return 130;
    default: return 1;
    }
}

void gr_assert_fail(const char *condition, const char *file, int line) {
    fprintf(stderr, "graft: bug: %s:%d: assertion failed: %s\n", file, line, condition);
    abort();
}

static graft_status fail_v(graft_error *err, graft_status status, const char *format, va_list args) {
    if (err) {
        err->status = status;
        vsnprintf(err->msg, sizeof err->msg, format, args);
    }
    return status;
}

graft_status gr_fail(graft_error *err, graft_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fail_v(err, status, format, args);
    va_end(args);
    return status;
}

graft_status gr_fail_errno(graft_error *err, graft_status status, const char *format, ...) {
    const char *why = strerror(errno);
    va_list args;
    va_start(args, format);
    fail_v(err, status, format, args);
    va_end(args);
    if (err) {
        size_t n = strlen(err->msg);
        snprintf(err->msg + n, sizeof err->msg - n, ": %s", why);
    }
    return status;
}

graft_status gr_fail_context(graft_error *err, graft_status status, const char *format, ...) {
    if (!err) return status;
    char old[sizeof err->msg], context[sizeof err->msg / 2];
    memcpy(old, err->msg, sizeof old);
    va_list args;
    va_start(args, format);
    vsnprintf(context, sizeof context, format, args);
    va_end(args);
    old[sizeof old / 2 - 4] = '\0';
    snprintf(err->msg, sizeof err->msg, "%s: %s", context, old);
    err->status = status;
    return status;
}

graft_status gr_fail_more(graft_error *err, graft_status status, const char *format, ...) {
    size_t len = err ? strlen(err->msg) : 0;
    va_list args;
    if (!err) return status;
    va_start(args, format);
    vsnprintf(err->msg + len, sizeof err->msg - len, format, args);
    va_end(args);
    return status;
}

graft_status gr_fail_memory(graft_error *err, const char *what) {
    return gr_fail(err, GRAFT_NO_MEMORY, "out of memory (%s)", what);
}

bool gr_mul_ok(int64_t *out, int64_t a, int64_t b) { return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, out); }

bool gr_add_ok(int64_t *out, int64_t a, int64_t b) { return a >= 0 && b >= 0 && !__builtin_add_overflow(a, b, out); }

void *gr_calloc(int64_t n, int64_t size) {
    int64_t bytes;
    if (!gr_mul_ok(&bytes, n, size)) return NULL;
    return calloc(1, (size_t)(bytes ? bytes : 1));
}

bool gr_grow(void *array_ptr, int64_t *capacity, int64_t need, int64_t size) {
    if (need <= *capacity) return true;
    int64_t cap = *capacity < 8 ? 8 : *capacity, bytes;
    while (cap < need)
        if (!gr_mul_ok(&cap, cap, 2)) return false;
    if (!gr_mul_ok(&bytes, cap, size)) return false;
    void *old;
    memcpy(&old, array_ptr, sizeof old);
    void *grown = realloc(old, (size_t)bytes);
    if (!grown) return false;
    memcpy(array_ptr, &grown, sizeof grown);
    *capacity = cap;
    return true;
}

void *gr_alloc_aligned(int64_t bytes) {
    if (bytes < 0 || bytes > INT64_MAX - 64) return NULL;
    size_t rounded = ((size_t)bytes + 63) / 64 * 64;
    if (rounded == 0) rounded = 64;
    void *p = aligned_alloc(64, rounded);
    if (p) memset(p, 0, rounded);
    return p;
}

char *gr_strndup(const char *s, int64_t n) {
    char *copy = gr_calloc(n + 1, 1);
    if (copy && n > 0) memcpy(copy, s, (size_t)n);
    return copy;
}

char *gr_strdup(const char *s) { return gr_strndup(s, (int64_t)strlen(s)); }

char *gr_format(const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *text = n < 0 ? NULL : gr_calloc((int64_t)n + 1, 1);
    if (!text) return NULL;
    va_start(args, format);
    vsnprintf(text, (size_t)n + 1, format, args);
    va_end(args);
    return text;
}

bool gr_starts_with(const char *s, const char *prefix) { return strncmp(s, prefix, strlen(prefix)) == 0; }

bool gr_ends_with(const char *s, const char *suffix) {
    size_t n = strlen(s), m = strlen(suffix);
    return n >= m && strcmp(s + n - m, suffix) == 0;
}

enum { NEAREST_MAX = 63 }; /* longer keys get no hint */

/* Letters changed, left out, added, or swapped with their neighbour. */
static int edit_distance(const char *a, int n, const char *b, int m) {
    int rows[3][NEAREST_MAX + 1];
    for (int j = 0; j <= m; j++) rows[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *row = rows[i % 3], *above = rows[(i + 2) % 3], *before = rows[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int change = above[j - 1] + (a[i - 1] != b[j - 1]);
            row[j] = GR_MIN(change, GR_MIN(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = GR_MIN(row[j], before[j - 2] + 1);
        }
    }
    return rows[n % 3][m];
}

const char *gr_nearest(const char *key, const char *const *names, int n) {
    const char *best = NULL;
    int key_len = (int)strnlen(key, NEAREST_MAX + 1), best_distance = (key_len + 2) / 3 + 1;
    if (key_len > NEAREST_MAX) return NULL;
    for (int i = 0; i < n; i++) {
        int len = (int)strnlen(names[i], NEAREST_MAX + 1);
        if (len > NEAREST_MAX) continue;
        int distance = edit_distance(key, key_len, names[i], len);
        if (distance < best_distance) best = names[i], best_distance = distance;
    }
    return best;
}

void gr_str_add(gr_str *s, const char *bytes, int64_t n) {
    int64_t need;
    if (s->failed) return;
    if (!gr_add_ok(&need, s->len, n) || !gr_add_ok(&need, need, 1) || !gr_grow(&s->data, &s->capacity, need, 1)) {
        s->failed = true;
        return;
    }
    if (n > 0) memcpy(s->data + s->len, bytes, (size_t)n);
    s->len += n;
    s->data[s->len] = '\0';
}

void gr_str_puts(gr_str *s, const char *text) { gr_str_add(s, text, (int64_t)strlen(text)); }

void gr_str_putc(gr_str *s, char c) { gr_str_add(s, &c, 1); }

void gr_str_printf(gr_str *s, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (s->failed) return;
    if (n < 0 || !gr_grow(&s->data, &s->capacity, s->len + n + 1, 1)) {
        s->failed = true;
        return;
    }
    va_start(args, format);
    vsnprintf(s->data + s->len, (size_t)n + 1, format, args);
    va_end(args);
    s->len += n;
}

void gr_str_clear(gr_str *s) {
    s->len = 0;
    if (s->data) s->data[0] = '\0';
}

void gr_str_release(gr_str *s) {
    free(s->data);
    *s = (gr_str){0};
}

char *gr_str_take(gr_str *s) {
    gr_str_add(s, "", 0); /* an empty string is a string too */
    char *data = s->data;
    if (s->failed) {
        free(data);
        data = NULL;
    }
    *s = (gr_str){0};
    return data;
}

struct gr_arena_chunk {
    struct gr_arena_chunk *next;
    int64_t used, size;
    _Alignas(16) char data[];
};

void *gr_arena_alloc(gr_arena *a, int64_t bytes) {
    if (bytes < 0 || bytes > INT64_MAX / 2) return NULL;
    bytes = (bytes + 15) / 16 * 16;
    struct gr_arena_chunk *c = a->chunk;
    if (!c || c->size - c->used < bytes) {
        int64_t size = GR_MAX(bytes, 64 * 1024);
        c = gr_calloc(1, (int64_t)sizeof *c + size);
        if (!c) return NULL;
        c->size = size;
        c->next = a->chunk;
        a->chunk = c;
    }
    void *p = c->data + c->used;
    c->used += bytes;
    return p;
}

char *gr_arena_strdup(gr_arena *a, const char *s) {
    int64_t n = (int64_t)strlen(s);
    char *copy = gr_arena_alloc(a, n + 1);
    if (copy) memcpy(copy, s, (size_t)n);
    return copy;
}

void gr_arena_release(gr_arena *a) {
    for (struct gr_arena_chunk *c = a->chunk, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    a->chunk = NULL;
}

double gr_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
