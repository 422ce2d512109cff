/* file.h - files: read-only maps, whole reads, and writes that are either complete or not there at all. */
#ifndef GR_FILE_H
#define GR_FILE_H

#include "core/base/base.h"

/* A read-only mapping of a whole file. data is NULL when size is 0. */
typedef struct gr_map {
    const uint8_t *data;
    int64_t size;
} gr_map;

graft_status gr_map_open(gr_map *map, const char *path, graft_error *err); /* BAD_INPUT when missing or unreadable */
void gr_map_close(gr_map *map);
/* Let go of the memory of a mapping's pages that lie wholly in the bytes at data; they are read from the file again when
 * touched. */
void gr_map_drop(const void *data, int64_t bytes);

/* The whole file as an owned, NUL-terminated buffer (*len without the NUL). BAD_INPUT beyond max_bytes, and where the
 * first bytes show that it is something else (sniff.h). */
graft_status gr_file_read(char **text, int64_t *len, const char *path, int64_t max_bytes, graft_error *err);
/* The same of JSON, without the byte order mark that editors put before it. */
graft_status gr_file_read_json(char **text, int64_t *len, const char *path, int64_t max_bytes, graft_error *err);
/* The same of an open stream, which stays the caller's; name: for messages. */
graft_status gr_stream_read(char **text, int64_t *len, FILE *stream, const char *name, int64_t max_bytes, graft_error *err);
/* The same for a reader that knows UTF-16 and all else by itself. */
graft_status gr_file_read_raw(char **text, int64_t *len, const char *path, int64_t max_bytes, graft_error *err);

/* A file that appears under its name only when complete: written to "<path>.tmp-<pid>", then fsync and rename.
 * Write through `stream`; any error sticks and is reported by gr_writer_commit. */
typedef struct gr_writer {
    FILE *stream; /* valid between open and commit/abort */
    char *path, *tmp_path;
} gr_writer;

graft_status gr_writer_open(gr_writer *w, const char *path, graft_error *err);
graft_status gr_writer_commit(gr_writer *w, graft_error *err); /* on failure the temporary file is removed */
void gr_writer_abort(gr_writer *w);                            /* no-op after commit or on a zeroed writer */

/* Write len bytes to path atomically. */
graft_status gr_file_write(const char *path, const void *data, int64_t len, graft_error *err);
graft_status gr_file_copy(const char *from, const char *to, graft_error *err);

/* A folder that appears only when complete: made as "<path>.tmp-<pid>" (its name in *tmp, owned), renamed by commit.
 * An existing path that is not an empty folder is refused with BAD_USAGE unless replace is set; then what graft did not write there
 * (core/base/output.h: commit marks the folder) goes on to the new one. */
graft_status gr_dir_begin(char **tmp, const char *path, bool replace, graft_error *err);
graft_status gr_dir_commit(const char *tmp, const char *path, bool replace, graft_error *err);
/* Remove a file or a whole folder; missing is fine. */
void gr_remove_all(const char *path);

/* What is being written under a name of its own: writers and folders keep this list themselves, others with add and drop. remove:
 * for a process that a signal ends, all of it, and how many there were; whoever then makes or renames such a file waits without
 * end. Between hold and release (which nest) no removal falls: what makes or renames one by other means than these holds. */
void gr_unfinished_add(const char *path);
void gr_unfinished_drop(const char *path);
void gr_unfinished_hold(void);
void gr_unfinished_release(void);
int gr_unfinished_remove(void);
/* tmp, a file on that list, gets its name path, durably, and is unfinished no longer. On failure nothing has changed. */
graft_status gr_rename(const char *tmp, const char *path, graft_error *err);

graft_status gr_make_dirs(const char *path, graft_error *err);
bool gr_exists(const char *path);
bool gr_is_dir(const char *path);
bool gr_is_empty_dir(const char *path);
/* A device or a pipe: written in place, never renamed over. The process's own streams count as such, whatever they are bound to. */
bool gr_is_device(const char *path);
graft_status gr_refuse_device(const char *path, graft_error *err); /* BAD_USAGE for one: it would be replaced */
/* path from the root on (owned): under the working directory when it is relative. Links stay. */
char *gr_path_absolute(const char *path);
/* The way from folder to path (owned), both existing, through no link: "../../models/a". NULL when there is none. */
char *gr_path_relative(const char *path, const char *folder);
/* What to add where path is missing and looks like a name on the Hugging Face hub (org/name): nothing is downloaded here. Else
 * "". */
const char *gr_hub_hint(const char *path);
/* "dir/name" on the heap, NULL when out of memory. */
char *gr_path_join(const char *dir, const char *name);

#endif
