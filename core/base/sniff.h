/* sniff.h - what a file really is, by its first bytes: downloads that are no downloads, other programs' formats. So that the
 * error of a reader names the cause and what to do. */
#ifndef GR_SNIFF_H
#define GR_SNIFF_H

#include "core/base/base.h"

typedef enum gr_kind {
    GR_KIND_UNKNOWN, /* none of these; text of any sort among them */
    GR_KIND_GGUF,
    GR_KIND_SAFETENSORS,
    GR_KIND_HDF5,
    GR_KIND_GZIP,
    GR_KIND_UTF16,  /* by its mark or by its zero bytes; UTF-32 as well */
    GR_KIND_FOREIGN /* all that graft reads nowhere */
} gr_kind;

enum { GR_SNIFF_BYTES = 512 }; /* more are not looked at */

/* *what (may be NULL): "a git-LFS pointer instead of the file; git lfs pull fetches it", NULL when unknown. */
gr_kind gr_sniff(const void *bytes, int64_t n, const char **what);
/* BAD_INPUT "<path>: <what it is>, expected <expected>" when the bytes are of a known kind other than the wanted one or, where a
 * binary kind is wanted, text. expected may be NULL. */
graft_status gr_expect_kind(const void *bytes, int64_t n, gr_kind wanted, const char *expected, const char *path, graft_error *err);

#endif
