/* output.h - may this be written? The one answer for every command: an output never replaces an input of the same command, nor what
 * is there unless that was asked for, nor a folder that graft did not make. Also the mark by which graft knows its folders. */
#ifndef GR_OUTPUT_H
#define GR_OUTPUT_H

#include "core/base/base.h"

typedef struct gr_output {
    const char *path;
    bool folder;               /* a folder will be written, else a file */
    bool overwrite;            /* what is there may be replaced */
    const char *const *inputs; /* files and folders that the command reads; those that do not exist are passed over */
    int n_inputs;
} gr_output;

/* BAD_USAGE with the reason and what to do. Refused always: a path that is an input, lies in one and exists, or contains one, also
 * through links; a folder where a file is to be, and the other way round; a folder that graft did not write. Refused without
 * overwrite: what exists. Free always: devices and pipes, where a file is to be. */
graft_status gr_output_check(const gr_output *o, graft_error *err);

/* True when path is folder or lies in it, links followed; neither needs to exist. */
bool gr_path_within(const char *path, const char *folder);

/* ---- the mark ----
 * A file ".graft" in a folder. Its first line is "graft VERSION KIND". KIND "folder": a folder written as one piece (an adapter, a
 * model, a checkpoint); then the names of its files, one a line. KIND "run": a run's folder; then lines "key: value". */

#define GR_MARK_FILE ".graft"

/* Mark folder as one piece of what it now holds. */
graft_status gr_mark_folder(const char *folder, graft_error *err);
/* The text of folder's mark (owned), NULL when there is none. */
char *gr_mark_read(const char *folder);
/* True when folder bears the mark of that kind. */
bool gr_is_marked(const char *folder, const char *kind);
/* Move what graft did not write from folder to another, names that exist there excepted. A folder without a mark is taken for one
 * of an older graft, which wrote files of known names. */
void gr_carry_strangers(const char *from, const char *to);
/* Remove what graft wrote into folder as one piece, and folder itself when nothing else is in it. */
void gr_remove_piece(const char *folder);

#endif
