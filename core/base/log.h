/* log.h - what a person sees while graft works: notes, warnings and one progress line with an ETA, on stderr.
 * Results go to stdout and never through here. No colours or bars when stderr is no terminal. */
#ifndef GR_LOG_H
#define GR_LOG_H

#include "core/base/base.h"

/* Copy of everything that is logged, one line a message (run.log); NULL stops it. The stream stays the caller's. */
void gr_log_tee(FILE *stream);
void gr_log_quiet(bool quiet); /* drop notes and progress; warnings stay */
/* Drop warnings as well, also from the tee: while a file that graft wrote is read back, whose source was warned about before. */
void gr_log_mute(bool mute);
/* Nothing to stderr; the tee has all: of several ranks one tells. */
void gr_log_to_tee(bool alone);
void gr_note(const char *format, ...) GR_PRINTF(1, 2);
void gr_warn(const char *format, ...) GR_PRINTF(1, 2);

/* A progress line: "label  [####....]  42/100  text  ETA 1:23". On a terminal it redraws in place (at most 10 times a
 * second); elsewhere it prints a plain line at most every 10 s. */
typedef struct gr_progress {
    const char *label; /* borrowed */
    int64_t total, first;
    double started, drawn, logged;
} gr_progress;

void gr_progress_start(gr_progress *p, const char *label, int64_t total);
void gr_progress_update(gr_progress *p, int64_t done, const char *format, ...) GR_PRINTF(3, 4);
void gr_progress_end(gr_progress *p); /* finishes the line */

#endif
