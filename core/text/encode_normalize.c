/* Normalisation: a short list of steps over a stretch of text. */
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "core/text/encode.h"

/* ---- SentencePiece's precompiled character map: a double array (darts-clone) and NUL-separated replacements ---- */

graft_status gr_charsmap_set(gr_tokenizer *t, const char *blob, int64_t len, const char *path, graft_error *err) {
    if (len == 0) return GRAFT_OK;
    uint32_t bytes = 0;
    if (len >= 4) memcpy(&bytes, blob, 4);
    if (len < 4 || bytes % 4 != 0 || bytes == 0 || bytes >= (uint64_t)len - 4 || blob[len - 1] != '\0')
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: the precompiled character map is damaged", path);
    char *copy = gr_text_alloc(t, len, 1);
    uint32_t *trie = gr_text_alloc(t, bytes / 4, sizeof *trie);
    if (!copy || !trie) return gr_fail_memory(err, "character map");
    memcpy(copy, blob, (size_t)len);
    memcpy(trie, blob + 4, bytes);
    t->charsmap_blob = copy;
    t->charsmap_blob_len = len;
    t->charsmap_trie = trie;
    t->charsmap_n = bytes / 4;
    t->charsmap_text = copy + 4 + bytes;
    t->charsmap_len = len - 4 - bytes;
    return GRAFT_OK;
}

/* The replacement of a prefix of s, NULL when none is known; *used = its bytes. Shortest match or longest. */
static const char *charsmap_find(const gr_tokenizer *t, const char *s, int64_t n, bool longest, int64_t *used) {
    const char *found = NULL;
    uint64_t at = 0, size = (uint64_t)t->charsmap_n;
    uint32_t unit = t->charsmap_trie[0];
    at ^= unit >> 10 << ((unit & 1u << 9) >> 6);
    for (int64_t i = 0; i < n && s[i] != '\0'; i++) {
        at ^= (uint8_t)s[i];
        if (at >= size) break;
        unit = t->charsmap_trie[at];
        if ((unit & (1u << 31 | 0xFF)) != (uint8_t)s[i]) break;
        at ^= unit >> 10 << ((unit & 1u << 9) >> 6);
        if (at >= size) break;
        if (!(unit >> 8 & 1)) continue;
        uint32_t value = t->charsmap_trie[at] & ~(1u << 31);
        if (value >= (uint64_t)t->charsmap_len) break;
        found = t->charsmap_text + value;
        *used = i + 1;
        if (!longest) break;
    }
    return found;
}

static void map_longest(const gr_tokenizer *t, const char *s, int64_t n, gr_str *out) {
    for (int64_t i = 0; i < n;) {
        int64_t used = 0;
        const char *to = charsmap_find(t, s + i, n - i, true, &used);
        if (to) {
            gr_str_puts(out, to);
            i += used;
        } else {
            int size;
            gr_utf8_decode(s + i, n - i, &size, NULL);
            gr_str_add(out, s + i, size);
            i += size;
        }
    }
}

/* HF's Precompiled: a grapheme of less than six bytes is replaced as a whole by its shortest match, else each character is. */
static void map_graphemes(const gr_tokenizer *t, const char *s, int64_t n, gr_str *out) {
    for (int64_t i = 0, end; i < n; i = end) {
        int size;
        utf8proc_int32_t state = 0, before = gr_utf8_decode(s + i, n - i, &size, NULL), after;
        for (end = i + size; end < n; end += size, before = after) {
            after = gr_utf8_decode(s + end, n - end, &size, NULL);
            if (utf8proc_grapheme_break_stateful(before, after, &state)) break;
        }
        int64_t used;
        const char *to = end - i < 6 ? charsmap_find(t, s + i, end - i, false, &used) : NULL;
        if (to) {
            gr_str_puts(out, to);
            continue;
        }
        for (int64_t j = i; j < end; j += size) {
            gr_utf8_decode(s + j, n - j, &size, NULL);
            to = charsmap_find(t, s + j, size, false, &used);
            if (to) gr_str_puts(out, to);
            else gr_str_add(out, s + j, size);
        }
    }
}

/* ---- steps ---- */

static bool unicode_form(const char *s, int64_t n, utf8proc_option_t options, gr_str *out) {
    utf8proc_uint8_t *result = NULL;
    utf8proc_ssize_t len = utf8proc_map((const utf8proc_uint8_t *)s, n, &result, options | UTF8PROC_STABLE);
    if (len < 0) return false;
    gr_str_add(out, (const char *)result, len);
    free(result);
    return true;
}

static void replace_all(const char *s, int64_t n, const char *from, const char *to, gr_str *out) {
    const size_t m = strlen(from);
    int64_t start = 0;
    for (const char *at; (at = memmem(s + start, (size_t)(n - start), from, m)); start = at - s + (int64_t)m) {
        gr_str_add(out, s + start, at - (s + start));
        gr_str_puts(out, to);
    }
    gr_str_add(out, s + start, n - start);
}

/* Runs of at least `least` spaces become to. */
static void replace_runs(const char *s, int64_t n, int64_t least, const char *to, gr_str *out) {
    for (int64_t i = 0, end; i < n; i = end) {
        for (end = i; end < n && s[end] == ' ';) end++;
        if (end - i >= least) gr_str_puts(out, to);
        else gr_str_add(out, s + i, end == i ? (end = i + 1) - i : end - i);
    }
}

static void strip(const gr_tokenizer *t, const char *s, int64_t n, bool left, gr_str *out) {
    int64_t first = -1, last = 0; /* the stretch without white space at its ends */
    int size;
    for (int64_t i = 0; i < n; i += size) {
        if (gr_class_at(t, s + i, n - i, &size) & GR_CLASS_SPACE) continue;
        if (first < 0) first = i;
        last = i + size;
    }
    if (first < 0) return;
    if (left) gr_str_add(out, s + first, n - first);
    else gr_str_add(out, s, last);
}

static void spm_spaces(const char *s, int64_t n, gr_str *out) {
    while (n > 0 && s[0] == ' ') s++, n--;
    while (n > 0 && s[n - 1] == ' ') n--;
    replace_runs(s, n, 1, " ", out);
}

static const utf8proc_option_t FORMS[] = {
    [GR_NORM_NFC] = UTF8PROC_COMPOSE,
    [GR_NORM_NFD] = UTF8PROC_DECOMPOSE,
    [GR_NORM_NFKC] = UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
    [GR_NORM_NFKD] = UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
};

/* Does no form change s? ASCII is never changed; NFC also leaves alone what is below the combining marks,
 * dashes and quotes, Chinese characters and punctuation, and the wide forms: what nearly all text is made of. */
static bool is_in_form(const char *s, int64_t n, gr_norm_kind form) {
    int size;
    for (int64_t i = 0; i < n; i += size) {
        size = 8;
        if (i + 8 <= n && gr_all_ascii(gr_read8(s + i))) continue;
        int32_t p = gr_utf8_read(s + i, n - i, &size);
        bool inert = p < 0x300 || (p >= 0x3400 && p <= 0x9FFF) || (p >= 0x3000 && p <= 0x3029) || (p >= 0x2010 && p <= 0x2027) ||
                     (p >= 0xFF00 && p <= 0xFFEF);
        if (p < 0 || (p >= 0x80 && !(inert && form == GR_NORM_NFC))) return false;
    }
    return true;
}

static bool apply(const gr_tokenizer *t, const gr_norm_step *step, const char *s, int64_t n, gr_str *out) {
    switch (step->kind) {
    case GR_NORM_NFC:
    case GR_NORM_NFD:
    case GR_NORM_NFKC:
    case GR_NORM_NFKD:
        if (!is_in_form(s, n, step->kind)) return unicode_form(s, n, FORMS[step->kind], out);
        gr_str_add(out, s, n);
        break;
    case GR_NORM_PREPEND:
        if (n > 0) gr_str_puts(out, step->to);
        gr_str_add(out, s, n);
        break;
    case GR_NORM_REPLACE: replace_all(s, n, step->from, step->to, out); break;
    case GR_NORM_SPACE_RUNS: replace_runs(s, n, 2, step->to, out); break;
    case GR_NORM_STRIP_LEFT: strip(t, s, n, true, out); break;
    case GR_NORM_STRIP_RIGHT: strip(t, s, n, false, out); break;
    case GR_NORM_CHARSMAP: map_graphemes(t, s, n, out); break;
    case GR_NORM_CHARSMAP_SPM: map_longest(t, s, n, out); break;
    case GR_NORM_SPM_SPACES: spm_spaces(s, n, out); break;
    }
    return !out->failed;
}

bool gr_normalize(const gr_tokenizer *t, gr_scratch *s, const char *text, int64_t len, const char **out, int64_t *out_len) {
    for (int i = 0; i < t->n_norm; i++) {
        gr_str *to = &s->normal[i % 2];
        gr_str_clear(to);
        if (!apply(t, &t->norm[i], text, len, to)) return false;
        text = to->data ? to->data : "";
        len = to->len;
    }
    *out = text;
    *out_len = len;
    return true;
}
