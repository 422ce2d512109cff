#include <string.h>

#include <utf8proc.h>

#include "core/text/impl.h"

int32_t gr_utf8_decode(const char *text, int64_t n, int *size, bool *cut) {
    const uint8_t *s = (const uint8_t *)text;
    uint8_t b = s[0];
    if (cut) *cut = false;
    *size = 1;
    if (b < 0x80) return b;
    if (b < 0xC2 || b > 0xF4) return -1;
    int need = b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
    int32_t point = b & (0x7F >> need);
    for (int i = 1; i < need; i++) {
        if (i >= n) {
            if (cut) *cut = true;
            return -1;
        }
        uint8_t c = s[i], low = 0x80, high = 0xBF;
        if (i == 1) { /* no overlong forms, surrogates, or points beyond U+10FFFF */
            if (b == 0xE0) low = 0xA0;
            if (b == 0xED) high = 0x9F;
            if (b == 0xF0) low = 0x90;
            if (b == 0xF4) high = 0x8F;
        }
        if (c < low || c > high) return -1;
        point = point << 6 | (c & 0x3F);
        *size = i + 1;
    }
    return point;
}

int gr_utf8_encode(uint32_t point, char *out) {
    return (int)utf8proc_encode_char((utf8proc_int32_t)point, (utf8proc_uint8_t *)out);
}

bool gr_utf8_valid(const char *s, int64_t n) {
    for (int64_t i = 0; i < n;) {
        if (i + 8 <= n && gr_all_ascii(gr_read8(s + i))) {
            i += 8;
            continue;
        }
        int size;
        if (gr_utf8_read(s + i, n - i, &size) < 0) return false;
        i += size;
    }
    return true;
}

void gr_utf8_repair(const char *s, int64_t n, gr_str *out) {
    for (int64_t i = 0; i < n;) {
        int size;
        if (gr_utf8_decode(s + i, n - i, &size, NULL) < 0) gr_str_add(out, "\xef\xbf\xbd", 3);
        else gr_str_add(out, s + i, size);
        i += size;
    }
}

static bool is_space(uint32_t p) { /* Unicode's White_Space */
    return (p >= 0x09 && p <= 0x0D) || p == 0x20 || p == 0x85 || p == 0xA0 || p == 0x1680 || (p >= 0x2000 && p <= 0x200A) ||
           p == 0x2028 || p == 0x2029 || p == 0x202F || p == 0x205F || p == 0x3000;
}

uint8_t gr_char_class_compute(uint32_t point) {
    if (is_space(point)) return GR_CLASS_SPACE;
    switch (utf8proc_category((utf8proc_int32_t)point)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return GR_CLASS_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return GR_CLASS_NUMBER;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME: return GR_CLASS_MARK;
    case UTF8PROC_CATEGORY_PC: return GR_CLASS_WORD_EXTRA | GR_CLASS_PUNCT;
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO: return GR_CLASS_PUNCT;
    default: return 0;
    }
}
