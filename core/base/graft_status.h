/* graft_status.h - how every fallible graft function reports: a status, and an error the caller owns.
 *
 * A function that can fail returns graft_status, takes its results as first parameters and a graft_error
 * (which may be NULL) as the last. On failure results are untouched or NULL and err->msg is one line that
 * names the file, the key and what was expected. There is no global "last error". */
#ifndef GRAFT_STATUS_H
#define GRAFT_STATUS_H

/* Marks what the shared library exports; everything else in it is hidden. */
#if defined(__GNUC__)
#define GRAFT_API __attribute__((visibility("default")))
#else
#define GRAFT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum graft_status {
    GRAFT_OK = 0,
    GRAFT_FAILED = -1,      /* it went wrong while running: disk full, non-finite loss ... (exit code 1) */
    GRAFT_BAD_USAGE = -2,   /* the recipe, an option or an argument is wrong (exit code 2) */
    GRAFT_BAD_INPUT = -3,   /* an input file is missing or wrong (exit code 3) */
    GRAFT_INTERRUPTED = -4, /* stopped by SIGINT/SIGTERM after a checkpoint was saved (exit code 130) */
    GRAFT_NO_MEMORY = -5    /* an allocation failed (exit code 1) */
} graft_status;

typedef struct graft_error {
    graft_status status;
    char msg[1024]; /* one line, no newline at its end; "" when nothing failed */
} graft_error;

/* The name of a status ("bad input"), never NULL. */
GRAFT_API const char *graft_status_name(graft_status status);

/* The process exit code that the command line uses for a status: 0, 1, 2, 3 or 130. */
GRAFT_API int graft_status_exit_code(graft_status status);

#ifdef __cplusplus
}
#endif
#endif
