/* utf8.h - reading UTF-8 that may be damaged. Every maximal ill-formed part reads as one U+FFFD, as Python's
 * errors="replace" and the Unicode standard (chapter 3, "best practice") have it. */
#ifndef GR_UTF8_H
#define GR_UTF8_H

#include <string.h>

#include "core/base/base.h"

/* Eight bytes at a time. */
static const uint64_t GR_EIGHT = 0x0101010101010101u;
static inline uint64_t gr_read8(const char *s) {
    uint64_t v;
    memcpy(&v, s, 8);
    return v;
}
static inline bool gr_all_ascii(uint64_t eight) { return !(eight & GR_EIGHT * 0x80); }
/* The high bit of each byte that is ASCII and lies in low..high. */
static inline uint64_t gr_bytes_between(uint64_t eight, uint8_t low, uint8_t high) {
    uint64_t seven = eight & GR_EIGHT * 0x7F;
    return (seven + GR_EIGHT * (0x80u - low)) & ~(seven + GR_EIGHT * (0x7Fu - high)) & ~eight & GR_EIGHT * 0x80;
}

/* The code point at s[0..n), n > 0, and its bytes in *size. Invalid: -1, *size = the maximal subpart that one
 * U+FFFD replaces; *cut (may be NULL) is set when it is only cut off by the end of the text. */
int32_t gr_utf8_decode(const char *s, int64_t n, int *size, bool *cut);

/* The same, fast for what is common: one byte, and three as Chinese has them. */
static inline int32_t gr_utf8_read(const char *text, int64_t n, int *size) {
    const uint8_t *s = (const uint8_t *)text;
    if (s[0] < 0x80) {
        *size = 1;
        return s[0];
    }
    if (s[0] > 0xE0 && s[0] < 0xED && n >= 3 && (s[1] & 0xC0) == 0x80 && (s[2] & 0xC0) == 0x80) {
        *size = 3;
        return (s[0] & 0x0F) << 12 | (s[1] & 0x3F) << 6 | (s[2] & 0x3F);
    }
    return gr_utf8_decode(text, n, size, NULL);
}

int gr_utf8_encode(uint32_t point, char *out); /* bytes written, at most 4 */
bool gr_utf8_valid(const char *s, int64_t n);
void gr_utf8_repair(const char *s, int64_t n, gr_str *out);

#endif
