/* Strings: Python's methods of them, which filters and tests use too. What they make knows where each of its bytes came from. */
#include <string.h>

#include <utf8proc.h>

#include "core/text/jinja_impl.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" /* built-ins have one type, and not each needs all that it is given */

int32_t gr_j_origin_at(const jstr *s, int64_t at) {
    for (int32_t i = 0; i < s->n_spans; i++)
        if (at < s->spans[i].end) return s->spans[i].origin;
    return s->origin;
}

static bool is_cased(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

jvalue gr_js_case(run *r, jvalue v, const jargs *args, int how) {
    const jstr *s = gr_j_str(v);
    jbuild b = {0};
    bool inside = false; /* of a word, for title */
    int size;
    for (int64_t i = 0; i < s->n; i += size) {
        int32_t c = gr_utf8_read(s->s + i, s->n - i, &size);
        bool upper = how == CASE_UPPER || (how == CASE_TITLE && !inside) || (how == CASE_CAPITALIZE && i == 0) ||
                     (how == CASE_SWAP && utf8proc_category(c) == UTF8PROC_CATEGORY_LL);
        char bytes[4];
        if (c == 0xDF && (upper || how == CASE_FOLD)) { /* sharp s: the one common letter that grows */
            gr_jb_add(r, &b, how == CASE_UPPER ? "SS" : how == CASE_FOLD ? "ss" : "Ss", 2, gr_j_origin_at(s, i));
        } else {
            int32_t to =
                upper ? (how == CASE_UPPER || how == CASE_SWAP ? utf8proc_toupper(c) : utf8proc_totitle(c)) : utf8proc_tolower(c);
            gr_jb_add(r, &b, bytes, gr_utf8_encode((uint32_t)to, bytes), gr_j_origin_at(s, i));
        }
        inside = is_cased(c);
    }
    return gr_jb_take(r, &b, s->markup);
}

jvalue gr_js_strip(run *r, jvalue v, const jargs *args, int side) {
    const jstr *s = gr_j_str(v), *chars = gr_j_arg_string(r, args, 0, "chars");
    int64_t from = 0, to = s->n;
    int size;
    while (side & 1 && from < to) {
        int32_t c = gr_utf8_read(s->s + from, to - from, &size);
        if (chars ? !memmem(chars->s, (size_t)chars->n, s->s + from, (size_t)size) : !gr_j_is_space(c)) break;
        from += size;
    }
    while (side & 2 && from < to) {
        int64_t at = to - 1;
        while (at > from && ((uint8_t)s->s[at] & 0xC0) == 0x80) at--;
        int32_t c = gr_utf8_read(s->s + at, to - at, &size);
        if (chars ? !memmem(chars->s, (size_t)chars->n, s->s + at, (size_t)size) : !gr_j_is_space(c)) break;
        to = at;
    }
    return gr_j_slice(r, v, from, to);
}

static int64_t find_bytes(const jstr *s, const jstr *what, int64_t from) {
    const char *found = from <= s->n ? memmem(s->s + from, (size_t)(s->n - from), what->s, (size_t)what->n) : NULL;
    return found ? found - s->s : -1;
}

jvalue gr_j_replace(run *r, jvalue v, const jstr *old, jvalue by, int64_t count) {
    const jstr *s = gr_j_str(v);
    jbuild b = {0};
    int64_t start = 0, at = 0;
    int size;
    while (count != 0 && gr_j_ok(r)) {
        if (old->n == 0) { /* between all characters */
            gr_jb_str(r, &b, by);
            if (at >= s->n) break;
            gr_utf8_read(s->s + at, s->n - at, &size);
            gr_jb_slice(r, &b, s, at, at + size);
            start = at += size;
        } else {
            at = find_bytes(s, old, start);
            if (at < 0) break;
            gr_jb_slice(r, &b, s, start, at);
            gr_jb_str(r, &b, by);
            start = at + old->n;
        }
        count--;
    }
    gr_jb_slice(r, &b, s, start, s->n);
    return gr_jb_take(r, &b, s->markup);
}

static jvalue split_spaces(run *r, jvalue v, int64_t most) {
    const jstr *s = gr_j_str(v);
    jvalue list = gr_j_new_list(r, J_LIST, 4);
    int64_t at = 0, start;
    int size;
    while (gr_j_ok(r)) {
        while (at < s->n && gr_j_is_space(gr_utf8_read(s->s + at, s->n - at, &size))) at += size;
        if (at >= s->n) break;
        start = at;
        if (most-- == 0) {
            gr_j_push(r, list, gr_j_slice(r, v, start, s->n));
            break;
        }
        while (at < s->n && !gr_j_is_space(gr_utf8_read(s->s + at, s->n - at, &size))) at += size;
        gr_j_push(r, list, gr_j_slice(r, v, start, at));
    }
    return list;
}

static jvalue split(run *r, jvalue v, const jargs *args, int how) {
    const jstr *s = gr_j_str(v), *by = gr_j_arg_string(r, args, 0, "sep");
    int64_t most = gr_j_arg_int(r, args, 1, "maxsplit", -1), start = 0, at;
    if (!gr_j_ok(r)) return v;
    if (!by) return split_spaces(r, v, most);
    if (by->n == 0) return gr_j_fail(r, args->line, "split needs a separator that is not empty");
    jvalue list = gr_j_new_list(r, J_LIST, 4);
    while (most-- != 0 && (at = find_bytes(s, by, start)) >= 0 && gr_j_ok(r)) {
        gr_j_push(r, list, gr_j_slice(r, v, start, at));
        start = at + by->n;
    }
    gr_j_push(r, list, gr_j_slice(r, v, start, s->n));
    return list;
}

static int64_t find_last(const jstr *s, const jstr *by, int64_t end) {
    for (int64_t i = end - by->n; i >= 0; i--)
        if (memcmp(s->s + i, by->s, (size_t)by->n) == 0) return i;
    return -1;
}

static jvalue rsplit(run *r, jvalue v, const jargs *args, int how) {
    const jstr *s = gr_j_str(v), *by = gr_j_arg_string(r, args, 0, "sep");
    int64_t most = gr_j_arg_int(r, args, 1, "maxsplit", -1), end = s->n, at;
    if (!gr_j_ok(r)) return v;
    if (!by && most < 0) return split_spaces(r, v, -1);
    if (!by || by->n == 0) return gr_j_fail(r, args->line, "rsplit needs a separator here");
    jvalue back = gr_j_new_list(r, J_LIST, 4), list = gr_j_new_list(r, J_LIST, 4);
    while (most-- != 0 && (at = find_last(s, by, end)) >= 0 && gr_j_ok(r)) {
        gr_j_push(r, back, gr_j_slice(r, v, at + by->n, end));
        end = at;
    }
    gr_j_push(r, list, gr_j_slice(r, v, 0, end));
    for (int64_t i = gr_j_items(back)->n - 1; i >= 0; i--) gr_j_push(r, list, gr_j_items(back)->items[i]);
    return list;
}

jvalue gr_j_split_lines(run *r, jvalue v, bool keep) {
    const jstr *s = gr_j_str(v);
    jvalue list = gr_j_new_list(r, J_LIST, 4);
    int64_t start = 0;
    int size;
    for (int64_t i = 0; i < s->n && gr_j_ok(r); i += size) {
        int32_t c = gr_utf8_read(s->s + i, s->n - i, &size);
        if (!((c >= 10 && c <= 13) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029)) continue;
        int64_t end = i;
        if (c == '\r' && i + 1 < s->n && s->s[i + 1] == '\n') size = 2;
        gr_j_push(r, list, gr_j_slice(r, v, start, keep ? i + size : end));
        start = i + size;
    }
    if (start < s->n) gr_j_push(r, list, gr_j_slice(r, v, start, s->n));
    return list;
}

static jvalue partition(run *r, jvalue v, const jargs *args, int last) {
    const jstr *s = gr_j_str(v), *by = gr_j_arg_string(r, args, 0, "sep");
    jvalue out = gr_j_new_list(r, J_TUPLE, 3), none = gr_j_text(r, "", 0, 0);
    if (!by || by->n == 0) return gr_j_fail(r, args->line, "partition needs a separator");
    int64_t at = last ? find_last(s, by, s->n) : find_bytes(s, by, 0);
    gr_j_push(r, out, at < 0 ? (last ? none : v) : gr_j_slice(r, v, 0, at));
    gr_j_push(r, out, at < 0 ? none : gr_j_slice(r, v, at, at + by->n));
    gr_j_push(r, out, at < 0 ? (last ? v : none) : gr_j_slice(r, v, at + by->n, s->n));
    return out;
}

jvalue gr_j_join(run *r, int32_t line, jvalue items, jvalue by) {
    const jlist *l = gr_j_iterate(r, line, items);
    jbuild b = {0};
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
        if (i) gr_jb_str(r, &b, by);
        gr_jb_str(r, &b, l->items[i]);
    }
    return gr_jb_take(r, &b, false);
}

static bool affix(run *r, const jargs *args, const jstr *s, bool end) {
    jvalue what = gr_j_arg(args, 0, NULL);
    if (args->n != 1) return gr_j_fail(r, args->line, "expected one argument"), false;
    if (what.kind == J_TUPLE) {
        for (int64_t i = 0; i < gr_j_items(what)->n; i++) {
            jargs one = {.values = &gr_j_items(what)->items[i], .n = 1, .n_positional = 1, .line = args->line};
            if (affix(r, &one, s, end)) return true;
        }
        return false;
    }
    if (what.kind != J_STRING) return gr_j_fail(r, args->line, "expected a string, not %s", gr_j_type(what)), false;
    const jstr *t = gr_j_str(what);
    return t->n <= s->n && memcmp(s->s + (end ? s->n - t->n : 0), t->s, (size_t)t->n) == 0;
}

jvalue gr_js_all_are(run *r, jvalue v, const jargs *args, int class) {
    const jstr *s = gr_j_str(v);
    bool cased = false;
    int size;
    for (int64_t i = 0; i < s->n; i += size) {
        int32_t c = gr_utf8_read(s->s + i, s->n - i, &size);
        utf8proc_category_t k = utf8proc_category(c);
        bool alpha = k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO, digit = k == UTF8PROC_CATEGORY_ND;
        bool upper = k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LT, lower = k == UTF8PROC_CATEGORY_LL;
        if (class == CLASS_UPPER || class == CLASS_LOWER) {
            if (class == CLASS_UPPER ? lower : upper) return gr_jinja_bool(false);
            cased = cased || upper || lower;
        } else if (!(class == CLASS_DIGIT   ? digit
                     : class == CLASS_ALPHA ? alpha
                     : class == CLASS_ALNUM ? alpha || digit
                                            : gr_j_is_space(c))) {
            return gr_jinja_bool(false);
        }
    }
    return gr_jinja_bool(class == CLASS_UPPER || class == CLASS_LOWER ? cased : s->n > 0);
}

enum { FIND, FIND_LAST, FIND_OR_FAIL, FIND_ALL };

static jvalue position(run *r, jvalue v, const jargs *args, int how) {
    if (args->n < 1) return gr_j_fail(r, args->line, "expected an argument");
    const jstr *s = gr_j_str(v), *what = gr_j_arg_string(r, args, 0, NULL);
    if (args->n > 1) return gr_j_fail(r, args->line, "find with bounds is not supported");
    if (!what) return gr_j_fail(r, args->line, "expected a string");
    if (how == FIND_ALL) {
        int64_t n = 0;
        for (int64_t at = 0; what->n && (at = find_bytes(s, what, at)) >= 0; at += what->n) n++;
        return J(J_INT, i, what->n ? n : gr_j_count(s) + 1);
    }
    int64_t at = how == FIND_LAST ? find_last(s, what, s->n) : find_bytes(s, what, 0);
    if (at < 0 && how == FIND_OR_FAIL) return gr_j_fail(r, args->line, "the text is not found");
    jstr before = {.s = s->s, .n = GR_MAX(at, 0)};
    return J(J_INT, i, at < 0 ? -1 : gr_j_count(&before));
}

static jvalue has_affix(run *r, jvalue v, const jargs *args, int end) { return gr_jinja_bool(affix(r, args, gr_j_str(v), end)); }

static jvalue without_affix(run *r, jvalue v, const jargs *args, int end) {
    const jstr *s = gr_j_str(v);
    int64_t n = affix(r, args, s, end) ? gr_j_str(args->values[0])->n : 0;
    return end ? gr_j_slice(r, v, 0, s->n - n) : gr_j_slice(r, v, n, s->n);
}

static jvalue replace(run *r, jvalue v, const jargs *args, int how) {
    const jstr *old = gr_j_arg_string(r, args, 0, "old"), *by = gr_j_arg_string(r, args, 1, "new");
    if (!old || !by) return gr_j_fail(r, args->line, "replace needs two strings");
    return gr_j_replace(r, v, old, J(J_STRING, p, by), gr_j_arg_int(r, args, 2, "count", -1));
}

static jvalue join(run *r, jvalue v, const jargs *args, int how) {
    return args->n == 1 ? gr_j_join(r, args->line, args->values[0], v) : gr_j_fail(r, args->line, "join needs one argument");
}

static jvalue split_lines(run *r, jvalue v, const jargs *args, int how) {
    return gr_j_split_lines(r, v, gr_j_arg_bool(args, 0, "keepends", false));
}

const jbuiltin gr_j_text_methods[] = {{"split", split, 0},
                                      {"rsplit", rsplit, 0},
                                      {"strip", gr_js_strip, 3},
                                      {"lstrip", gr_js_strip, 1},
                                      {"rstrip", gr_js_strip, 2},
                                      {"startswith", has_affix, false},
                                      {"endswith", has_affix, true},
                                      {"removeprefix", without_affix, false},
                                      {"removesuffix", without_affix, true},
                                      {"upper", gr_js_case, CASE_UPPER},
                                      {"lower", gr_js_case, CASE_LOWER},
                                      {"title", gr_js_case, CASE_TITLE},
                                      {"capitalize", gr_js_case, CASE_CAPITALIZE},
                                      {"casefold", gr_js_case, CASE_FOLD},
                                      {"swapcase", gr_js_case, CASE_SWAP},
                                      {"replace", replace, 0},
                                      {"join", join, 0},
                                      {"find", position, FIND},
                                      {"rfind", position, FIND_LAST},
                                      {"index", position, FIND_OR_FAIL},
                                      {"count", position, FIND_ALL},
                                      {"isdigit", gr_js_all_are, CLASS_DIGIT},
                                      {"isnumeric", gr_js_all_are, CLASS_DIGIT},
                                      {"isdecimal", gr_js_all_are, CLASS_DIGIT},
                                      {"isalpha", gr_js_all_are, CLASS_ALPHA},
                                      {"isalnum", gr_js_all_are, CLASS_ALNUM},
                                      {"isspace", gr_js_all_are, CLASS_SPACE},
                                      {"isupper", gr_js_all_are, CLASS_UPPER},
                                      {"islower", gr_js_all_are, CLASS_LOWER},
                                      {"splitlines", split_lines, 0},
                                      {"partition", partition, false},
                                      {"rpartition", partition, true},
                                      /* Python has these, this interpreter does not */
                                      {"format", NULL, 0},
                                      {"format_map", NULL, 0},
                                      {"encode", NULL, 0},
                                      {"center", NULL, 0},
                                      {"ljust", NULL, 0},
                                      {"rjust", NULL, 0},
                                      {"zfill", NULL, 0},
                                      {"expandtabs", NULL, 0},
                                      {"translate", NULL, 0},
                                      {"rindex", NULL, 0},
                                      {NULL, NULL, 0}};
