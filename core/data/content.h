/* content.h - inside core/data: the bytes of a data file as the reader wants them: unpacked and in UTF-8. */
#ifndef GR_CONTENT_H
#define GR_CONTENT_H

#include "core/base/file.h"

/* How a file's bytes become text: the value of data.encoding, NULL as "utf-8". */
bool gr_encoding_is_utf8(const char *encoding);    /* bytes that are no UTF-8 are an error */
bool gr_encoding_is_replace(const char *encoding); /* UTF-8 where they read as U+FFFD */
/* BAD_USAGE naming encodings when iconv does not know it. */
graft_status gr_encoding_check(const char *encoding, graft_error *err);

/* Map the text of path: the file itself or, where it is packed (gzip) or in another encoding, what it becomes, in an unlinked
 * temporary file ($TMPDIR, else /tmp): memory stays bounded. A file that is of another kind, damaged, or unpacks to beyond all
 * reason is BAD_INPUT; bytes that the encoding does not have are BAD_INPUT with their line. Close with gr_map_close. */
graft_status gr_content_open(gr_map *map, const char *path, const char *encoding, graft_error *err);

#endif
