/* base.h - what every file of graft uses: error raising, assertions, checked sizes, memory, strings.
 * Layer: core/base depends on the C library only. */
#ifndef GR_BASE_H
#define GR_BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "core/base/graft_status.h"

/* The project's one control-flow macro: run e, on failure go to the label `done` with st set. */
#define GR_TRY(e)                                                                                                                  \
    do {                                                                                                                           \
        st = (e);                                                                                                                  \
        if (st != GRAFT_OK) goto done;                                                                                             \
    } while (0)

/* A bug in graft itself (never bad input): prints the place and aborts. Always compiled in. */
#define GR_ASSERT(c)                                                                                                               \
    do {                                                                                                                           \
        if (!(c)) gr_assert_fail(#c, __FILE__, __LINE__);                                                                          \
    } while (0)

#define GR_PRINTF(a, b) __attribute__((format(printf, a, b)))
#define GR_LEN(array)   ((int)(sizeof(array) / sizeof((array)[0])))
#define GR_MIN(a, b)    ((a) < (b) ? (a) : (b))
#define GR_MAX(a, b)    ((a) > (b) ? (a) : (b))

_Noreturn void gr_assert_fail(const char *condition, const char *file, int line);

/* Fill err (may be NULL) with a formatted message and return status: `return gr_fail(err, GRAFT_BAD_INPUT, ...)`. */
graft_status gr_fail(graft_error *err, graft_status status, const char *format, ...) GR_PRINTF(3, 4);
/* Same with ": <strerror(errno)>" appended. */
graft_status gr_fail_errno(graft_error *err, graft_status status, const char *format, ...) GR_PRINTF(3, 4);
/* Put "context: " before the message that err already holds; returns err's status (GRAFT_FAILED if err is NULL). */
graft_status gr_fail_context(graft_error *err, graft_status status, const char *format, ...) GR_PRINTF(3, 4);
/* Put more words behind the message that err already holds; returns status. */
graft_status gr_fail_more(graft_error *err, graft_status status, const char *format, ...) GR_PRINTF(3, 4);
/* "out of memory (<what>)". */
graft_status gr_fail_memory(graft_error *err, const char *what);

/* Checked arithmetic on sizes that come from files: false on overflow or a negative operand. */
bool gr_mul_ok(int64_t *out, int64_t a, int64_t b);
bool gr_add_ok(int64_t *out, int64_t a, int64_t b);

/* Allocation: sizes in elements x bytes, overflow-checked; zeroed; NULL when out of memory. Free with free(). */
void *gr_calloc(int64_t n, int64_t size);
/* Grow *array (element size bytes) so that it holds at least need elements; doubles. False when out of memory. */
bool gr_grow(void *array_ptr, int64_t *capacity, int64_t need, int64_t size);
/* 64-byte aligned, zeroed; free with free(). */
void *gr_alloc_aligned(int64_t bytes);
char *gr_strdup(const char *s);
char *gr_strndup(const char *s, int64_t n);
/* Formatted string on the heap, NULL when out of memory. */
char *gr_format(const char *format, ...) GR_PRINTF(1, 2);

bool gr_starts_with(const char *s, const char *prefix);
bool gr_ends_with(const char *s, const char *suffix);
/* Of names[0..n), the one nearest to key by edit distance (at most a third of its length), else NULL. */
const char *gr_nearest(const char *key, const char *const *names, int n);

/* gr_str: a growing byte string. Zero-initialise to start; data is NUL-terminated once anything was added.
 * An allocation failure sticks: later calls do nothing and failed is true. */
typedef struct gr_str {
    char *data;
    int64_t len, capacity;
    bool failed;
} gr_str;

void gr_str_add(gr_str *s, const char *bytes, int64_t n);
void gr_str_puts(gr_str *s, const char *text);
void gr_str_putc(gr_str *s, char c);
void gr_str_printf(gr_str *s, const char *format, ...) GR_PRINTF(2, 3);
void gr_str_clear(gr_str *s);   /* length 0, memory kept */
void gr_str_release(gr_str *s); /* frees; s is zeroed */
/* The bytes as an owned C string (never NULL unless out of memory); s is zeroed. */
char *gr_str_take(gr_str *s);

/* gr_arena: allocations that die together. Zero-initialise to start; grows by chunks. */
typedef struct gr_arena {
    struct gr_arena_chunk *chunk;
} gr_arena;

void *gr_arena_alloc(gr_arena *a, int64_t bytes); /* zeroed, 16-byte aligned, NULL when out of memory */
char *gr_arena_strdup(gr_arena *a, const char *s);
void gr_arena_release(gr_arena *a);

/* Seconds of the monotonic clock. */
double gr_now(void);

#endif
