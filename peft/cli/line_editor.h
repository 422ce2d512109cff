/* line_editor.h - lines from a person: on a terminal edited and remembered (libedit), elsewhere as they come. */
#ifndef GR_LINE_EDITOR_H
#define GR_LINE_EDITOR_H

#include "core/base/base.h"

typedef struct gr_line_editor gr_line_editor;

typedef enum gr_line_kind {
    GR_LINE,         /* a line was read */
    GR_LINE_CLEARED, /* Ctrl-C: what stood there is dropped */
    GR_LINE_END,     /* end of input, Ctrl-D, or Ctrl-C twice */
} gr_line_kind;

/* Reads stdin. prompt is borrowed. On a terminal (stdin and stderr) Ctrl-C no longer ends the program, and history is kept in
 * $XDG_STATE_HOME/graft/chat_history (~/.local/state), for its owner alone; without such a place it lasts as long as the editor.
 * There is one editor at a time: signals belong to the process. */
graft_status gr_line_editor_open(gr_line_editor **out, const char *prompt, graft_error *err);
void gr_line_editor_close(gr_line_editor *e); /* NULL is fine; Ctrl-C is what it was before */
bool gr_line_editor_interactive(const gr_line_editor *e);
/* *line[*len] without its newline, NUL-terminated, valid until the next call. */
gr_line_kind gr_line_editor_read(gr_line_editor *e, const char **line, int64_t *len);
/* True when Ctrl-C was pressed since the last read. Pressed three times it ends the program, whatever is running. */
bool gr_line_editor_interrupted(void);

#endif
