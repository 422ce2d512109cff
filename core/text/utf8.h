/* utf8.h - reading UTF-8 that may be damaged. Every maximal ill-formed part reads as one U+FFFD, as Python's
 * errors="replace" and the Unicode standard (chapter 3, "best practice") have it. */
#ifndef GR_UTF8_H
#define GR_UTF8_H

#include "core/base/base.h"

/* The code point at s[0..n), n > 0, and its bytes in *size. Invalid: -1, *size = the maximal subpart that one
 * U+FFFD replaces; *cut (may be NULL) is set when it is only cut off by the end of the text. */
int32_t gr_utf8_decode(const char *s, int64_t n, int *size, bool *cut);
int gr_utf8_encode(uint32_t point, char *out); /* bytes written, at most 4 */
bool gr_utf8_valid(const char *s, int64_t n);
void gr_utf8_repair(const char *s, int64_t n, gr_str *out);

#endif
