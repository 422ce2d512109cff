#include "core/text/scripts.h"

#include <string.h>

#include <utf8proc.h>

/* Names in the order of their numbers. */
static const char *const NAMES[] = {"",           "",          "han",      "",         "hangul",    "latin",    "",
                                    "greek",      "cyrillic",  "armenian", "hebrew",   "arabic",    "syriac",   "thaana",
                                    "devanagari", "bengali",   "gurmukhi", "gujarati", "oriya",     "tamil",    "telugu",
                                    "kannada",    "malayalam", "sinhala",  "thai",     "lao",       "tibetan",  "burmese",
                                    "georgian",   "ethiopic",  "cherokee", "khmer",    "mongolian", "bopomofo", "yi"};
enum {
    GREEK = GR_SCRIPT_FIRST,
    CYRILLIC,
    ARMENIAN,
    HEBREW,
    ARABIC,
    SYRIAC,
    THAANA,
    DEVANAGARI,
    BENGALI,
    GURMUKHI,
    GUJARATI,
    ORIYA,
    TAMIL,
    TELUGU,
    KANNADA,
    MALAYALAM,
    SINHALA,
    THAI,
    LAO,
    TIBETAN,
    BURMESE,
    GEORGIAN,
    ETHIOPIC,
    CHEROKEE,
    KHMER,
    MONGOLIAN,
    BOPOMOFO,
    YI,
    COUNT
};
_Static_assert(GR_LEN(NAMES) == COUNT && COUNT <= 64, "a name and a bit for each");

/* Where letters of a script lie, in order; other characters in between are no letters or of no script. */
static const struct {
    uint32_t first, last;
    uint8_t script;
} BLOCKS[] = {
    {0x41, 0xAA, GR_SCRIPT_LATIN},
    {0xBA, 0x2B8, GR_SCRIPT_LATIN},
    {0x2E0, 0x2E4, GR_SCRIPT_LATIN},
    {0x370, 0x373, GREEK},
    {0x376, 0x3E1, GREEK},
    {0x3F0, 0x3FF, GREEK},
    {0x400, 0x52F, CYRILLIC},
    {0x531, 0x588, ARMENIAN},
    {0x5D0, 0x5F2, HEBREW},
    {0x620, 0x63F, ARABIC},
    {0x641, 0x6FF, ARABIC},
    {0x710, 0x74F, SYRIAC},
    {0x750, 0x77F, ARABIC},
    {0x780, 0x7B1, THAANA},
    {0x860, 0x86A, SYRIAC},
    {0x870, 0x8C9, ARABIC},
    {0x903, 0x97F, DEVANAGARI},
    {0x980, 0x9FC, BENGALI},
    {0xA03, 0xA74, GURMUKHI},
    {0xA83, 0xAF9, GUJARATI},
    {0xB02, 0xB71, ORIYA},
    {0xB83, 0xBD7, TAMIL},
    {0xC01, 0xC61, TELUGU},
    {0xC80, 0xCF2, KANNADA},
    {0xD02, 0xD7F, MALAYALAM},
    {0xD82, 0xDF3, SINHALA},
    {0xE01, 0xE46, THAI},
    {0xE81, 0xEDF, LAO},
    {0xF00, 0xF8C, TIBETAN},
    {0x1000, 0x109C, BURMESE},
    {0x10A0, 0x10FF, GEORGIAN},
    {0x1100, 0x11FF, GR_SCRIPT_HANGUL},
    {0x1200, 0x138F, ETHIOPIC},
    {0x13A0, 0x13FD, CHEROKEE},
    {0x1780, 0x17DC, KHMER},
    {0x1820, 0x18AA, MONGOLIAN},
    {0x1C80, 0x1C88, CYRILLIC},
    {0x1C90, 0x1CBF, GEORGIAN},
    {0x1D00, 0x1D25, GR_SCRIPT_LATIN},
    {0x1D2C, 0x1D5C, GR_SCRIPT_LATIN},
    {0x1D6B, 0x1D77, GR_SCRIPT_LATIN},
    {0x1D79, 0x1DBE, GR_SCRIPT_LATIN},
    {0x1E00, 0x1EFF, GR_SCRIPT_LATIN},
    {0x1F00, 0x1FFC, GREEK},
    {0x2071, 0x209C, GR_SCRIPT_LATIN},
    {0x212A, 0x212B, GR_SCRIPT_LATIN},
    {0x214E, 0x2188, GR_SCRIPT_LATIN},
    {0x2C60, 0x2C7F, GR_SCRIPT_LATIN},
    {0x2D00, 0x2D2D, GEORGIAN},
    {0x2D80, 0x2DDE, ETHIOPIC},
    {0x3005, 0x3005, GR_SCRIPT_HAN},
    {0x3007, 0x3029, GR_SCRIPT_HAN},
    {0x302E, 0x302F, GR_SCRIPT_HANGUL},
    {0x3038, 0x303B, GR_SCRIPT_HAN},
    {0x3041, 0x30FF, GR_SCRIPT_HAN},
    {0x3105, 0x312F, BOPOMOFO},
    {0x3131, 0x318E, GR_SCRIPT_HANGUL},
    {0x31A0, 0x31BF, BOPOMOFO},
    {0x31F0, 0x31FF, GR_SCRIPT_HAN},
    {0x3400, 0x9FFF, GR_SCRIPT_HAN},
    {0xA000, 0xA48C, YI},
    {0xA640, 0xA69D, CYRILLIC},
    {0xA722, 0xA7FF, GR_SCRIPT_LATIN},
    {0xA8F2, 0xA8FE, DEVANAGARI},
    {0xA960, 0xA97C, GR_SCRIPT_HANGUL},
    {0xA9E0, 0xA9FE, BURMESE},
    {0xAA60, 0xAA7F, BURMESE},
    {0xAB01, 0xAB2E, ETHIOPIC},
    {0xAB30, 0xAB69, GR_SCRIPT_LATIN},
    {0xAB70, 0xABBF, CHEROKEE},
    {0xAC00, 0xD7FB, GR_SCRIPT_HANGUL},
    {0xF900, 0xFAD9, GR_SCRIPT_HAN},
    {0xFB00, 0xFB06, GR_SCRIPT_LATIN},
    {0xFB13, 0xFB17, ARMENIAN},
    {0xFB1D, 0xFB4F, HEBREW},
    {0xFB50, 0xFEFC, ARABIC},
    {0xFF21, 0xFF5A, GR_SCRIPT_LATIN},
    {0xFF66, 0xFF9D, GR_SCRIPT_HAN},
    {0xFFA0, 0xFFDC, GR_SCRIPT_HANGUL},
    {0x1AFF0, 0x1B167, GR_SCRIPT_HAN},
    {0x20000, 0x3FFFF, GR_SCRIPT_HAN},
};

uint8_t gr_script(uint32_t point) {
    switch (utf8proc_category((utf8proc_int32_t)point)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME: return GR_SCRIPT_INHERITED;
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_MC: break;
    default:
        return (point >= 0x3001 && point <= 0x303F) || (point >= 0xFF01 && point <= 0xFFEF) ? GR_SCRIPT_CJK_SIGN : GR_SCRIPT_COMMON;
    }
    for (int low = 0, high = GR_LEN(BLOCKS); low < high;) {
        int i = (low + high) / 2;
        if (point > BLOCKS[i].last) low = i + 1;
        else if (point < BLOCKS[i].first) high = i;
        else return BLOCKS[i].script;
    }
    return point < 0x2B9 || (point > 0x2B8 && point < 0x2EF) || (point >= 0x2100 && point < 0x2150) ? GR_SCRIPT_COMMON
                                                                                                    : GR_SCRIPT_OTHER;
}

/* Bits of the name s[0..n); 0 when there is none. */
static uint64_t bits_of(const char *s, size_t n) {
    uint64_t cjk = (uint64_t)1 << GR_SCRIPT_HAN | (uint64_t)1 << GR_SCRIPT_CJK_SIGN | (uint64_t)1 << GR_SCRIPT_HANGUL |
                   (uint64_t)1 << BOPOMOFO;
    if (n == 3 && memcmp(s, "cjk", n) == 0) return cjk;
    for (int i = 0; n > 0 && i < COUNT; i++)
        if (strlen(NAMES[i]) == n && memcmp(NAMES[i], s, n) == 0) return (uint64_t)1 << i;
    return 0;
}

graft_status gr_scripts_parse(uint64_t *bits, const char *names, graft_error *err) {
    *bits = 0;
    for (const char *s = names;; s++) {
        size_t n = strcspn(s, ",");
        uint64_t found = bits_of(s, n);
        if (!found) {
            gr_str all = {0};
            gr_str_puts(&all, "cjk");
            for (int i = 0; i < COUNT; i++)
                if (*NAMES[i]) gr_str_printf(&all, ", %s", NAMES[i]);
            gr_fail(err, GRAFT_BAD_USAGE, "unknown script \"%.40s\"; expected one or more, with commas, of %s", s,
                    all.failed ? "" : all.data);
            gr_str_release(&all);
            return GRAFT_BAD_USAGE;
        }
        *bits |= found;
        s += n;
        if (!*s) return GRAFT_OK;
    }
}
