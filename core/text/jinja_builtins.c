/* Filters, tests, methods and functions: rows of tables, each as Python or jinja2 has it. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <utf8proc.h>

#include "core/text/jinja_impl.h"

enum { MAX_RANGE = 100000 }; /* of jinja2's sandbox */

/* ---- arguments ---- */

static const jvalue *given(const jargs *args, int i, const char *name) {
    if (i >= 0 && i < args->n_positional) return &args->values[i];
    for (int k = args->n_positional; k < args->n; k++)
        if (name && strcmp(args->names[k], name) == 0) return &args->values[k];
    return NULL;
}

jvalue gr_j_arg(const jargs *args, int i, const char *name) {
    const jvalue *v = given(args, i, name);
    return v ? *v : (jvalue){0};
}

static bool arg_bool(const jargs *args, int i, const char *name, bool otherwise) {
    const jvalue *v = given(args, i, name);
    return v ? gr_j_truth(*v) : otherwise;
}

/* An argument's string; NULL when not given, none or no string (which fails the run). */
static const jstr *arg_string(run *r, const jargs *args, int i, const char *name) {
    const jvalue *v = given(args, i, name);
    if (!v || v->kind == J_NONE) return NULL;
    if (v->kind != J_STRING) return gr_j_fail(r, args->line, "expected a string, not %s", gr_j_type(*v)), NULL;
    return gr_j_str(*v);
}

static int64_t arg_int(run *r, const jargs *args, int i, const char *name, int64_t otherwise) {
    const jvalue *v = given(args, i, name);
    if (!v || v->kind == J_NONE) return otherwise;
    if (v->kind != J_INT && v->kind != J_BOOL) return gr_j_fail(r, args->line, "expected an integer, not %s", gr_j_type(*v)), otherwise;
    return v->as.i;
}

static bool is_text(jvalue v, const char *text) {
    return v.kind == J_STRING && gr_j_str(v)->n == (int64_t)strlen(text) && memcmp(gr_j_str(v)->s, text, (size_t)gr_j_str(v)->n) == 0;
}

/* A string's bytes as a C string in the run's memory. */
static const char *c_string(run *r, const jstr *s) {
    char *copy = gr_j_alloc(r, s->n + 1);
    if (!gr_j_ok(r)) return "";
    memcpy(copy, s->s, (size_t)s->n);
    copy[s->n] = '\0';
    return copy;
}

/* ---- strings ---- */

typedef enum letter_case { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_CAPITALIZE, CASE_FOLD, CASE_SWAP } letter_case;

static int32_t origin_at(const jstr *s, int64_t at) {
    for (int32_t i = 0; i < s->n_spans; i++)
        if (at < s->spans[i].end) return s->spans[i].origin;
    return s->origin;
}

static bool is_cased(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

static jvalue change_case(run *r, jvalue v, letter_case how) {
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
            gr_jb_add(r, &b, how == CASE_UPPER ? "SS" : how == CASE_FOLD ? "ss" : "Ss", 2, origin_at(s, i));
        } else {
            int32_t to = upper ? (how == CASE_UPPER || how == CASE_SWAP ? utf8proc_toupper(c) : utf8proc_totitle(c)) : utf8proc_tolower(c);
            gr_jb_add(r, &b, bytes, gr_utf8_encode((uint32_t)to, bytes), origin_at(s, i));
        }
        inside = is_cased(c);
    }
    return gr_jb_take(r, &b, s->markup);
}

/* jinja2's title filter: words after spaces, dashes, brackets. */
static jvalue title_words(run *r, jvalue v) {
    const jstr *s = gr_j_str(v);
    jbuild b = {0};
    bool start = true;
    int size;
    for (int64_t i = 0; i < s->n; i += size) {
        int32_t c = gr_utf8_read(s->s + i, s->n - i, &size), to = start ? utf8proc_toupper(c) : utf8proc_tolower(c);
        char bytes[4];
        gr_jb_add(r, &b, bytes, gr_utf8_encode((uint32_t)to, bytes), origin_at(s, i));
        start = gr_j_is_space(c) || (c < 0x80 && c && strchr("-([{<", c));
    }
    return gr_jb_take(r, &b, s->markup);
}

/* Python's strip: white space, or the characters of chars. side: 1 left, 2 right. */
static jvalue strip(run *r, jvalue v, const jstr *chars, int side) {
    const jstr *s = gr_j_str(v);
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

static jvalue replace(run *r, jvalue v, const jstr *old, jvalue by, int64_t count) {
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

static jvalue split(run *r, jvalue v, const jargs *args) {
    const jstr *s = gr_j_str(v), *by = arg_string(r, args, 0, "sep");
    int64_t most = arg_int(r, args, 1, "maxsplit", -1), start = 0, at;
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

static jvalue rsplit(run *r, jvalue v, const jargs *args) {
    const jstr *s = gr_j_str(v), *by = arg_string(r, args, 0, "sep");
    int64_t most = arg_int(r, args, 1, "maxsplit", -1), end = s->n, at;
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

static jvalue split_lines(run *r, jvalue v, bool keep) {
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

static jvalue partition(run *r, jvalue v, const jargs *args, bool last) {
    const jstr *s = gr_j_str(v), *by = arg_string(r, args, 0, "sep");
    jvalue out = gr_j_new_list(r, J_TUPLE, 3), none = gr_j_text(r, "", 0, 0);
    if (!by || by->n == 0) return gr_j_fail(r, args->line, "partition needs a separator");
    int64_t at = last ? find_last(s, by, s->n) : find_bytes(s, by, 0);
    gr_j_push(r, out, at < 0 ? (last ? none : v) : gr_j_slice(r, v, 0, at));
    gr_j_push(r, out, at < 0 ? none : gr_j_slice(r, v, at, at + by->n));
    gr_j_push(r, out, at < 0 ? (last ? v : none) : gr_j_slice(r, v, at + by->n, s->n));
    return out;
}

static jvalue join(run *r, int32_t line, jvalue items, jvalue by) {
    const jlist *l = gr_j_iterate(r, line, items);
    jbuild b = {0};
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
        if (i) gr_jb_str(r, &b, by);
        gr_jb_str(r, &b, l->items[i]);
    }
    return gr_jb_take(r, &b, false);
}

/* jinja2's indent. */
static jvalue indent(run *r, jvalue v, const jargs *args) {
    jvalue width = gr_j_arg(args, 0, "width");
    bool first = arg_bool(args, 1, "first", false), blank = arg_bool(args, 2, "blank", false);
    jbuild b = {0}, pad = {0};
    if (width.kind == J_STRING)
        gr_jb_str(r, &pad, width);
    else
        for (int64_t i = width.kind == J_INT ? width.as.i : 4; i > 0; i--) gr_jb_add(r, &pad, " ", 1, 0);
    jvalue by = gr_jb_take(r, &pad, false), lines = split_lines(r, v, false);
    const jstr *s = gr_j_str(v);
    const jlist *l = gr_j_items(lines);
    if (first) gr_jb_str(r, &b, by);
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
        if (i) gr_jb_add(r, &b, "\n", 1, origin_at(gr_j_str(l->items[i]), 0));
        if (i && (blank || gr_j_str(l->items[i])->n)) gr_jb_str(r, &b, by);
        gr_jb_str(r, &b, l->items[i]);
    }
    if (s->n && s->s[s->n - 1] == '\n') gr_jb_add(r, &b, "\n", 1, origin_at(s, s->n - 1));
    return gr_jb_take(r, &b, s->markup);
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

typedef enum char_class { CLASS_DIGIT, CLASS_ALPHA, CLASS_ALNUM, CLASS_SPACE, CLASS_UPPER, CLASS_LOWER } char_class;

static bool all_are(const jstr *s, char_class class) {
    bool cased = false;
    int size;
    for (int64_t i = 0; i < s->n; i += size) {
        int32_t c = gr_utf8_read(s->s + i, s->n - i, &size);
        utf8proc_category_t k = utf8proc_category(c);
        bool alpha = k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO, digit = k == UTF8PROC_CATEGORY_ND;
        bool upper = k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LT, lower = k == UTF8PROC_CATEGORY_LL;
        if (class == CLASS_UPPER || class == CLASS_LOWER) {
            if (class == CLASS_UPPER ? lower : upper) return false;
            cased = cased || upper || lower;
        } else if (!(class == CLASS_DIGIT ? digit : class == CLASS_ALPHA ? alpha : class == CLASS_ALNUM ? alpha || digit : gr_j_is_space(c))) {
            return false;
        }
    }
    return class == CLASS_UPPER || class == CLASS_LOWER ? cased : s->n > 0;
}

/* ---- methods ---- */

typedef enum method_id {
    M_SPLIT, M_RSPLIT, M_STRIP, M_LSTRIP, M_RSTRIP, M_STARTSWITH, M_ENDSWITH, M_UPPER, M_LOWER, M_TITLE, M_CAPITALIZE, M_CASEFOLD, M_SWAPCASE,
    M_REPLACE, M_JOIN, M_FIND, M_RFIND, M_COUNT, M_ISDIGIT, M_ISALPHA, M_ISALNUM, M_ISSPACE, M_ISUPPER, M_ISLOWER, M_SPLITLINES, M_PARTITION,
    M_RPARTITION, M_REMOVEPREFIX, M_REMOVESUFFIX, M_ITEMS, M_KEYS, M_VALUES, M_GET, M_COPY, M_INDEX, M_REFUSED
} method_id;

static const struct method {
    int kind; /* of the object */
    const char *name;
    method_id id;
} methods[] = {
    {J_STRING, "split", M_SPLIT}, {J_STRING, "rsplit", M_RSPLIT}, {J_STRING, "strip", M_STRIP}, {J_STRING, "lstrip", M_LSTRIP},
    {J_STRING, "rstrip", M_RSTRIP}, {J_STRING, "startswith", M_STARTSWITH}, {J_STRING, "endswith", M_ENDSWITH}, {J_STRING, "upper", M_UPPER},
    {J_STRING, "lower", M_LOWER}, {J_STRING, "title", M_TITLE}, {J_STRING, "capitalize", M_CAPITALIZE}, {J_STRING, "casefold", M_CASEFOLD},
    {J_STRING, "swapcase", M_SWAPCASE}, {J_STRING, "replace", M_REPLACE}, {J_STRING, "join", M_JOIN}, {J_STRING, "find", M_FIND},
    {J_STRING, "rfind", M_RFIND}, {J_STRING, "count", M_COUNT}, {J_STRING, "isdigit", M_ISDIGIT}, {J_STRING, "isnumeric", M_ISDIGIT},
    {J_STRING, "isdecimal", M_ISDIGIT}, {J_STRING, "isalpha", M_ISALPHA}, {J_STRING, "isalnum", M_ISALNUM}, {J_STRING, "isspace", M_ISSPACE},
    {J_STRING, "isupper", M_ISUPPER}, {J_STRING, "islower", M_ISLOWER}, {J_STRING, "splitlines", M_SPLITLINES}, {J_STRING, "partition", M_PARTITION},
    {J_STRING, "rpartition", M_RPARTITION}, {J_STRING, "removeprefix", M_REMOVEPREFIX}, {J_STRING, "removesuffix", M_REMOVESUFFIX},
    {J_STRING, "index", M_INDEX}, {J_STRING, "format", M_REFUSED}, {J_STRING, "format_map", M_REFUSED}, {J_STRING, "encode", M_REFUSED},
    {J_STRING, "center", M_REFUSED}, {J_STRING, "ljust", M_REFUSED}, {J_STRING, "rjust", M_REFUSED}, {J_STRING, "zfill", M_REFUSED},
    {J_STRING, "expandtabs", M_REFUSED}, {J_STRING, "translate", M_REFUSED}, {J_STRING, "rindex", M_REFUSED},
    {J_DICT, "items", M_ITEMS}, {J_DICT, "keys", M_KEYS}, {J_DICT, "values", M_VALUES}, {J_DICT, "get", M_GET}, {J_DICT, "copy", M_COPY},
    {J_DICT, "update", M_REFUSED}, {J_DICT, "pop", M_REFUSED}, {J_DICT, "clear", M_REFUSED}, {J_DICT, "setdefault", M_REFUSED},
    {J_DICT, "popitem", M_REFUSED}, {J_DICT, "fromkeys", M_REFUSED},
    {J_LIST, "index", M_INDEX}, {J_LIST, "count", M_COUNT}, {J_LIST, "copy", M_COPY}, {J_LIST, "append", M_REFUSED}, {J_LIST, "extend", M_REFUSED},
    {J_LIST, "insert", M_REFUSED}, {J_LIST, "pop", M_REFUSED}, {J_LIST, "remove", M_REFUSED}, {J_LIST, "reverse", M_REFUSED},
    {J_LIST, "sort", M_REFUSED}, {J_LIST, "clear", M_REFUSED},
    {J_TUPLE, "index", M_INDEX}, {J_TUPLE, "count", M_COUNT},
};

static const struct method *find_method(jvalue object, const char *name) {
    for (int i = 0; i < GR_LEN(methods); i++)
        if (methods[i].kind == object.kind && strcmp(methods[i].name, name) == 0) return &methods[i];
    return NULL;
}

bool gr_j_has_method(jvalue object, const char *name) {
    return find_method(object, name) != NULL;
}

static jvalue pair(run *r, jvalue key, jvalue value) {
    jvalue t = gr_j_new_list(r, J_TUPLE, 2);
    gr_j_push(r, t, key);
    gr_j_push(r, t, value);
    return t;
}

static jvalue dict_part(run *r, const jdict *d, method_id which) {
    jvalue list = gr_j_new_list(r, J_LIST, d->n);
    gr_j_items(list)->origin = d->origin;
    for (int64_t i = 0; i < d->n && gr_j_ok(r); i++)
        gr_j_push(r, list, which == M_KEYS ? d->keys[i] : which == M_VALUES ? d->values[i] : pair(r, d->keys[i], d->values[i]));
    return list;
}

static jvalue find_in(run *r, jvalue object, const jargs *args, method_id id) { /* find, rfind, index, count */
    int64_t n = 0;
    if (args->n < 1) return gr_j_fail(r, args->line, "expected an argument");
    if (object.kind != J_STRING) {
        const jlist *l = gr_j_items(object);
        for (int64_t i = 0; i < l->n; i++) {
            if (!gr_j_equal(l->items[i], args->values[0])) continue;
            if (id == M_INDEX) return J(J_INT, i, i);
            n++;
        }
        return id == M_INDEX ? gr_j_fail(r, args->line, "the value is not in the list") : J(J_INT, i, n);
    }
    const jstr *s = gr_j_str(object), *what = arg_string(r, args, 0, NULL);
    if (args->n > 1) return gr_j_fail(r, args->line, "find with bounds is not supported");
    if (!what) return gr_j_fail(r, args->line, "expected a string");
    if (id == M_COUNT) {
        for (int64_t at = 0; what->n && (at = find_bytes(s, what, at)) >= 0; at += what->n) n++;
        return J(J_INT, i, what->n ? n : gr_j_count(s) + 1);
    }
    int64_t at = id == M_RFIND ? find_last(s, what, s->n) : find_bytes(s, what, 0);
    if (at < 0 && id == M_INDEX) return gr_j_fail(r, args->line, "the text is not found");
    jstr before = {.s = s->s, .n = GR_MAX(at, 0)};
    return J(J_INT, i, at < 0 ? -1 : gr_j_count(&before));
}

static jvalue text_method(run *r, jvalue v, method_id id, const jargs *args) {
    const jstr *s = gr_j_str(v);
    static const int sides[] = {[M_STRIP] = 3, [M_LSTRIP] = 1, [M_RSTRIP] = 2};
    static const letter_case cases[] = {[M_UPPER] = CASE_UPPER, [M_LOWER] = CASE_LOWER, [M_TITLE] = CASE_TITLE, [M_CAPITALIZE] = CASE_CAPITALIZE,
                                        [M_CASEFOLD] = CASE_FOLD, [M_SWAPCASE] = CASE_SWAP};
    static const char_class classes[] = {[M_ISDIGIT] = CLASS_DIGIT, [M_ISALPHA] = CLASS_ALPHA, [M_ISALNUM] = CLASS_ALNUM,
                                         [M_ISSPACE] = CLASS_SPACE, [M_ISUPPER] = CLASS_UPPER, [M_ISLOWER] = CLASS_LOWER};
    switch (id) {
    case M_SPLIT:
        return split(r, v, args);
    case M_RSPLIT:
        return rsplit(r, v, args);
    case M_STRIP:
    case M_LSTRIP:
    case M_RSTRIP:
        return strip(r, v, arg_string(r, args, 0, "chars"), sides[id]);
    case M_STARTSWITH:
    case M_ENDSWITH:
        return gr_jinja_bool(affix(r, args, s, id == M_ENDSWITH));
    case M_UPPER:
    case M_LOWER:
    case M_TITLE:
    case M_CAPITALIZE:
    case M_CASEFOLD:
    case M_SWAPCASE:
        return change_case(r, v, cases[id]);
    case M_REPLACE: {
        const jstr *old = arg_string(r, args, 0, "old"), *by = arg_string(r, args, 1, "new");
        if (!old || !by) return gr_j_fail(r, args->line, "replace needs two strings");
        return replace(r, v, old, J(J_STRING, p, by), arg_int(r, args, 2, "count", -1));
    }
    case M_JOIN:
        return args->n == 1 ? join(r, args->line, args->values[0], v) : gr_j_fail(r, args->line, "join needs one argument");
    case M_SPLITLINES:
        return split_lines(r, v, arg_bool(args, 0, "keepends", false));
    case M_PARTITION:
    case M_RPARTITION:
        return partition(r, v, args, id == M_RPARTITION);
    case M_REMOVEPREFIX:
    case M_REMOVESUFFIX: {
        bool there = affix(r, args, s, id == M_REMOVESUFFIX);
        int64_t n = there ? gr_j_str(args->values[0])->n : 0;
        return id == M_REMOVEPREFIX ? gr_j_slice(r, v, n, s->n) : gr_j_slice(r, v, 0, s->n - n);
    }
    case M_FIND:
    case M_RFIND:
    case M_INDEX:
    case M_COUNT:
        return find_in(r, v, args, id);
    default:
        return gr_jinja_bool(all_are(s, classes[id]));
    }
}

jvalue gr_j_method(run *r, int32_t line, jvalue object, const char *name, const jargs *args) {
    const struct method *m = find_method(object, name);
    if (!m || m->id == M_REFUSED) return gr_j_fail(r, line, "the method \"%s\" of %s is not supported", name, gr_j_type(object));
    if (object.kind == J_STRING) return text_method(r, object, m->id, args);
    if (object.kind != J_DICT) {
        if (m->id == M_COPY) return gr_j_binary(r, line, OP_ADD, object, gr_j_new_list(r, J_LIST, 1));
        return find_in(r, object, args, m->id);
    }
    const jdict *d = gr_j_dict(object);
    if (m->id == M_COPY) return object; /* nothing changes a dict */
    if (m->id != M_GET) return dict_part(r, d, m->id);
    if (args->n < 1) return gr_j_fail(r, line, "get needs a key");
    const jvalue *found = gr_j_get(r, d, args->values[0]);
    return found ? *found : args->n > 1 ? args->values[1] : (jvalue){.kind = J_NONE};
}

/* ---- tests ---- */

typedef enum test_id {
    IS_DEFINED, IS_UNDEFINED, IS_NONE, IS_STRING, IS_NUMBER, IS_INTEGER, IS_FLOAT, IS_BOOLEAN, IS_TRUE, IS_FALSE, IS_MAPPING, IS_ITERABLE,
    IS_SEQUENCE, IS_CALLABLE, IS_ODD, IS_EVEN, IS_DIVISIBLE, IS_EQ, IS_NE, IS_LT, IS_LE, IS_GT, IS_GE, IS_IN, IS_SAME, IS_UPPER, IS_LOWER
} test_id;

static const struct {
    const char *name;
    test_id id;
} tests[] = {{"defined", IS_DEFINED}, {"undefined", IS_UNDEFINED}, {"none", IS_NONE}, {"string", IS_STRING}, {"number", IS_NUMBER},
             {"integer", IS_INTEGER}, {"float", IS_FLOAT}, {"boolean", IS_BOOLEAN}, {"true", IS_TRUE}, {"false", IS_FALSE}, {"mapping", IS_MAPPING},
             {"iterable", IS_ITERABLE}, {"sequence", IS_SEQUENCE}, {"callable", IS_CALLABLE}, {"odd", IS_ODD}, {"even", IS_EVEN},
             {"divisibleby", IS_DIVISIBLE}, {"eq", IS_EQ}, {"equalto", IS_EQ}, {"==", IS_EQ}, {"ne", IS_NE}, {"!=", IS_NE}, {"lt", IS_LT},
             {"lessthan", IS_LT}, {"<", IS_LT}, {"le", IS_LE}, {"<=", IS_LE}, {"gt", IS_GT}, {"greaterthan", IS_GT}, {">", IS_GT}, {"ge", IS_GE},
             {">=", IS_GE}, {"in", IS_IN}, {"sameas", IS_SAME}, {"upper", IS_UPPER}, {"lower", IS_LOWER}};

static bool test_number(run *r, int32_t line, test_id id, jvalue v, const jargs *args) { /* odd, even, divisible */
    int64_t by = id == IS_DIVISIBLE ? arg_int(r, args, 0, "num", 0) : 2;
    if ((v.kind != J_INT && v.kind != J_BOOL) || by == 0) return gr_j_fail(r, line, "this test needs integers"), false;
    return (v.as.i % by != 0) == (id == IS_ODD);
}

static bool test_against(run *r, int32_t line, test_id id, jvalue v, const jargs *args) {
    if (args->n != 1) return gr_j_fail(r, line, "this test needs one argument"), false;
    jvalue other = args->values[0];
    if (id == IS_EQ || id == IS_NE) return gr_j_equal(v, other) == (id == IS_EQ);
    if (id == IS_IN) return gr_j_contains(r, line, other, v);
    if (id == IS_SAME) return v.kind == other.kind && (v.kind == J_NONE || v.as.i == other.as.i);
    int order = gr_j_order(r, line, v, other);
    return id == IS_LT ? order < 0 : id == IS_LE ? order <= 0 : id == IS_GT ? order > 0 : order >= 0;
}

bool gr_j_test(run *r, int32_t line, const char *name, jvalue v, const jargs *args) {
    int found = -1;
    for (int i = 0; i < GR_LEN(tests) && found < 0; i++)
        if (strcmp(name, tests[i].name) == 0) found = i;
    if (found < 0) return gr_j_fail(r, line, "the test \"%s\" is not supported", name), false;
    test_id id = tests[found].id;
    bool many = v.kind == J_STRING || gr_j_is_list(v) || v.kind == J_DICT || v.kind == J_UNDEFINED;
    switch (id) {
    case IS_DEFINED:
    case IS_UNDEFINED:
        return (v.kind != J_UNDEFINED) == (id == IS_DEFINED);
    case IS_NONE:
        return v.kind == J_NONE;
    case IS_STRING:
        return v.kind == J_STRING;
    case IS_NUMBER:
        return v.kind == J_INT || v.kind == J_FLOAT || v.kind == J_BOOL;
    case IS_INTEGER:
        return v.kind == J_INT;
    case IS_FLOAT:
        return v.kind == J_FLOAT;
    case IS_BOOLEAN:
        return v.kind == J_BOOL;
    case IS_TRUE:
    case IS_FALSE:
        return v.kind == J_BOOL && (v.as.i != 0) == (id == IS_TRUE);
    case IS_MAPPING:
        return v.kind == J_DICT;
    case IS_ITERABLE:
        return many || v.kind == J_LOOP;
    case IS_SEQUENCE:
        return many && !(v.kind == J_LIST && gr_j_items(v)->lazy);
    case IS_CALLABLE:
        return v.kind == J_MACRO || v.kind == J_FUNCTION || v.kind == J_METHOD;
    case IS_ODD:
    case IS_EVEN:
    case IS_DIVISIBLE:
        return test_number(r, line, id, v, args);
    case IS_UPPER:
    case IS_LOWER:
        return v.kind == J_STRING && all_are(gr_j_str(v), id == IS_UPPER ? CLASS_UPPER : CLASS_LOWER);
    default:
        return test_against(r, line, id, v, args);
    }
}

/* ---- filters over lists ---- */

static jvalue lazy(jvalue list) {
    gr_j_items(list)->lazy = true;
    return list;
}

/* "a.b" or "0": the attribute of an item, as make_attrgetter does. */
static jvalue path(run *r, int32_t line, jvalue item, jvalue name) {
    if (name.kind != J_STRING) return gr_j_item(r, line, item, name);
    const char *s = c_string(r, gr_j_str(name));
    while (gr_j_ok(r)) {
        const char *dot = strchr(s, '.');
        int64_t n = dot ? dot - s : (int64_t)strlen(s);
        bool digits = n > 0 && (int64_t)strspn(s, "0123456789") == n;
        jvalue key = digits ? J(J_INT, i, atoll(s)) : gr_j_text(r, s, n, 0);
        item = gr_j_item(r, line, item, key);
        if (!dot) break;
        s = dot + 1;
    }
    return item;
}

static jargs rest(const jargs *args, int from) { /* arguments after the first ones */
    jargs more = *args;
    from = GR_MIN(from, args->n_positional);
    more.values += from;
    more.names += from;
    more.n -= from;
    more.n_positional -= from;
    return more;
}

/* What map and select go over: for them none and false are empty. */
static const jlist *some(run *r, int32_t line, jvalue v) {
    return gr_j_iterate(r, line, gr_j_truth(v) ? v : (jvalue){0});
}

static jvalue map_items(run *r, int32_t line, jvalue v, const jargs *args) {
    const jvalue *attribute = given(args, -1, "attribute"), *otherwise = given(args, -1, "default");
    const jlist *l = some(r, line, v);
    jvalue out = gr_j_new_list(r, J_LIST, l->n), name = gr_j_arg(args, 0, NULL);
    if (!attribute && name.kind != J_STRING) return gr_j_fail(r, line, "map needs a filter's name or attribute=");
    jargs more = attribute ? (jargs){.line = line} : rest(args, 1);
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
        jvalue x = attribute ? path(r, line, l->items[i], *attribute) : gr_j_filter(r, line, c_string(r, gr_j_str(name)), l->items[i], &more);
        gr_j_push(r, out, attribute && otherwise && x.kind == J_UNDEFINED ? *otherwise : x);
    }
    return lazy(out);
}

/* select, reject, selectattr, rejectattr. */
static jvalue choose(run *r, int32_t line, jvalue v, const jargs *args, bool attribute, bool keep) {
    const jlist *l = some(r, line, v);
    jvalue out = gr_j_new_list(r, J_LIST, l->n), test = gr_j_arg(args, attribute, NULL);
    if (attribute && args->n_positional < 1) return gr_j_fail(r, line, "expected an attribute's name");
    jargs more = rest(args, attribute + 1);
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
        jvalue x = attribute ? path(r, line, l->items[i], args->values[0]) : l->items[i];
        bool yes = test.kind == J_STRING ? gr_j_test(r, line, c_string(r, gr_j_str(test)), x, &more) : gr_j_truth(x);
        if (yes == keep) gr_j_push(r, out, l->items[i]);
    }
    return lazy(out);
}

static jvalue fold_case(run *r, jvalue v, bool sensitive) {
    return sensitive || v.kind != J_STRING ? v : change_case(r, v, CASE_LOWER);
}

static jvalue unique(run *r, int32_t line, jvalue v, const jargs *args) {
    const jlist *l = gr_j_iterate(r, line, v);
    const jvalue *attribute = given(args, 1, "attribute");
    bool sensitive = arg_bool(args, 0, "case_sensitive", false);
    jvalue out = gr_j_new_list(r, J_LIST, l->n), seen = gr_j_new_list(r, J_LIST, l->n);
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
        jvalue key = fold_case(r, attribute ? path(r, line, l->items[i], *attribute) : l->items[i], sensitive);
        if (gr_j_contains(r, line, seen, key)) continue;
        gr_j_push(r, seen, key);
        gr_j_push(r, out, l->items[i]);
    }
    return lazy(out);
}

/* Stable insertion by keys: lists in templates are short. */
static jvalue sorted(run *r, int32_t line, const jlist *l, const jvalue *keys, bool reverse) {
    jvalue out = gr_j_new_list(r, J_LIST, l->n);
    int64_t *order = gr_j_alloc(r, (l->n + 1) * (int64_t)sizeof *order);
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
        int64_t j = i;
        for (; j > 0; j--) {
            int before = gr_j_order(r, line, keys[order[j - 1]], keys[i]);
            if (!gr_j_ok(r) || (reverse ? before >= 0 : before <= 0) || ++r->steps > 1 << 24) break;
            order[j] = order[j - 1];
        }
        order[j] = i;
    }
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) gr_j_push(r, out, l->items[order[i]]);
    return out;
}

static jvalue sort(run *r, int32_t line, jvalue v, const jargs *args) {
    const jlist *l = gr_j_iterate(r, line, v);
    const jvalue *attribute = given(args, 2, "attribute");
    bool reverse = arg_bool(args, 0, "reverse", false), sensitive = arg_bool(args, 1, "case_sensitive", false);
    jvalue keys = gr_j_new_list(r, J_LIST, l->n);
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++)
        gr_j_push(r, keys, fold_case(r, attribute ? path(r, line, l->items[i], *attribute) : l->items[i], sensitive));
    return gr_j_ok(r) ? sorted(r, line, l, gr_j_items(keys)->items, reverse) : v;
}

static jvalue dictsort(run *r, int32_t line, jvalue v, const jargs *args) {
    if (v.kind != J_DICT) return gr_j_fail(r, line, "dictsort needs a mapping, not %s", gr_j_type(v));
    bool sensitive = arg_bool(args, 0, "case_sensitive", false), reverse = arg_bool(args, 2, "reverse", false);
    bool by_value = is_text(gr_j_arg(args, 1, "by"), "value");
    const jdict *d = gr_j_dict(v);
    jvalue pairs = dict_part(r, d, M_ITEMS), keys = gr_j_new_list(r, J_LIST, d->n);
    for (int64_t i = 0; i < d->n && gr_j_ok(r); i++) gr_j_push(r, keys, fold_case(r, by_value ? d->values[i] : d->keys[i], sensitive));
    return gr_j_ok(r) ? sorted(r, line, gr_j_items(pairs), gr_j_items(keys)->items, reverse) : v;
}

static jvalue reversed(run *r, int32_t line, jvalue v) {
    const jlist *l = gr_j_iterate(r, line, v);
    jvalue out = gr_j_new_list(r, J_LIST, l->n);
    for (int64_t i = l->n - 1; i >= 0; i--) gr_j_push(r, out, l->items[i]);
    if (!gr_j_ok(r)) return v;
    return v.kind == J_STRING ? gr_j_concat(r, gr_j_items(out)->items, (int)l->n, gr_j_str(v)->markup) : lazy(out);
}

static jvalue end_of_list(run *r, int32_t line, jvalue v, bool last) {
    const jlist *l = gr_j_iterate(r, line, v);
    if (!gr_j_ok(r) || l->n == 0) return (jvalue){.kind = J_UNDEFINED, .as.p = last ? "the last item" : "the first item"};
    return l->items[last ? l->n - 1 : 0];
}

static jvalue extreme(run *r, int32_t line, jvalue v, const jargs *args, bool most) {
    const jlist *l = gr_j_iterate(r, line, v);
    const jvalue *attribute = given(args, 1, "attribute");
    jvalue best = {.kind = J_UNDEFINED, .as.p = "an item of an empty list"}, best_key = best;
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
        jvalue key = fold_case(r, attribute ? path(r, line, l->items[i], *attribute) : l->items[i], arg_bool(args, 0, "case_sensitive", false));
        int order = i ? gr_j_order(r, line, key, best_key) : 0;
        if (i && (most ? order <= 0 : order >= 0)) continue;
        best = l->items[i];
        best_key = key;
    }
    return best;
}

static jvalue total(run *r, int32_t line, jvalue v, const jargs *args) {
    const jlist *l = gr_j_iterate(r, line, v);
    const jvalue *attribute = given(args, 0, "attribute"), *start = given(args, 1, "start");
    jvalue all = start ? *start : J(J_INT, i, 0);
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++)
        all = gr_j_binary(r, line, OP_ADD, all, attribute ? path(r, line, l->items[i], *attribute) : l->items[i]);
    return all;
}

/* ---- filters over values ---- */

static jvalue to_int(run *r, jvalue v, const jargs *args) {
    jvalue otherwise = args->n ? gr_j_arg(args, 0, "default") : J(J_INT, i, 0);
    char *end;
    if (v.kind == J_INT || v.kind == J_BOOL) return J(J_INT, i, v.as.i);
    if (v.kind == J_FLOAT) return v.as.f > -9e18 && v.as.f < 9e18 ? J(J_INT, i, (int64_t)v.as.f) : otherwise;
    if (v.kind != J_STRING) return otherwise;
    const jstr *s = gr_j_str(strip(r, v, NULL, 3));
    const char *text = c_string(r, s);
    if (s->n == 0 || s->n > 40) return otherwise;
    long long whole = strtoll(text, &end, 10);
    if (!*end && s->n < 19) return J(J_INT, i, whole);
    double f = strtod(text, &end);
    return *end || !(f > -9e18 && f < 9e18) ? otherwise : J(J_INT, i, (int64_t)f);
}

static jvalue to_float(run *r, jvalue v, const jargs *args) {
    jvalue otherwise = args->n ? gr_j_arg(args, 0, "default") : J(J_FLOAT, f, 0);
    double f;
    int64_t i;
    bool whole;
    char *end;
    if (gr_j_number(v, &f, &i, &whole)) return J(J_FLOAT, f, f);
    if (v.kind != J_STRING) return otherwise;
    const jstr *s = gr_j_str(strip(r, v, NULL, 3));
    f = strtod(c_string(r, s), &end);
    return s->n == 0 || *end ? otherwise : J(J_FLOAT, f, f);
}

static jvalue absolute(run *r, int32_t line, jvalue v) {
    if (v.kind == J_FLOAT) return J(J_FLOAT, f, v.as.f < 0 ? -v.as.f : v.as.f);
    if (v.kind == J_INT || v.kind == J_BOOL) return J(J_INT, i, v.as.i < 0 ? -v.as.i : v.as.i);
    return gr_j_fail(r, line, "abs needs a number, not %s", gr_j_type(v));
}

/* round(precision=0, method="common"): halves to even as Python has them; a whole number stays one. */
static jvalue rounded(run *r, int32_t line, jvalue v, const jargs *args) {
    double f;
    int64_t i;
    bool whole;
    char text[64];
    int64_t digits = arg_int(r, args, 0, "precision", 0);
    if (!gr_j_number(v, &f, &i, &whole) || given(args, 1, "method")) return gr_j_fail(r, line, "round needs a number and no method");
    if (digits < 0 || digits > 15) return gr_j_fail(r, line, "round to %lld digits is not supported", (long long)digits);
    if (whole) return J(J_INT, i, i);
    snprintf(text, sizeof text, "%.*f", (int)digits, f);
    return J(J_FLOAT, f, strtod(text, NULL));
}

static jvalue to_json(run *r, int32_t line, jvalue v, const jargs *args) {
    const jstr *none = NULL;
    jvalue indent_by = gr_j_arg(args, 1, "indent"), separators = gr_j_arg(args, 2, "separators");
    bool broken = indent_by.kind == J_INT;
    jjson how = {.ascii = arg_bool(args, 0, "ensure_ascii", false), .sort = arg_bool(args, 3, "sort_keys", false),
                 .indent = broken ? (int)GR_MAX(0, GR_MIN(indent_by.as.i, 64)) : -1, .item = broken ? "," : ", ", .key = ": "};
    (void)none;
    if (indent_by.kind == J_STRING) return gr_j_fail(r, line, "tojson with a text as indent is not supported");
    if (gr_j_is_list(separators) && gr_j_items(separators)->n == 2) {
        const jvalue *s = gr_j_items(separators)->items;
        if (s[0].kind == J_STRING && s[1].kind == J_STRING) how.item = c_string(r, gr_j_str(s[0])), how.key = c_string(r, gr_j_str(s[1]));
    }
    return gr_j_dumps(r, line, v, &how);
}

static jvalue to_list(run *r, int32_t line, jvalue v) {
    const jlist *l = gr_j_iterate(r, line, v);
    jvalue out = gr_j_new_list(r, J_LIST, l->n);
    gr_j_items(out)->origin = l->origin;
    for (int64_t i = 0; i < l->n; i++) gr_j_push(r, out, l->items[i]);
    return out;
}

static jvalue otherwise(jvalue v, const jargs *args) { /* default(value, boolean) */
    bool missing = v.kind == J_UNDEFINED || (arg_bool(args, 1, "boolean", false) && !gr_j_truth(v));
    const jvalue *by = given(args, 0, "default_value");
    static const jstr empty = {.s = ""};
    return !missing ? v : by ? *by : J(J_STRING, p, &empty);
}

static jvalue safe(run *r, jvalue v) {
    const jstr *from = gr_j_str(gr_j_to_string(r, v));
    jstr *s = gr_j_alloc(r, sizeof *s);
    *s = *from;
    s->markup = true;
    return J(J_STRING, p, s);
}

static jvalue without_markup(run *r, jvalue v) {
    if (!gr_j_str(v)->markup) return v;
    jstr *s = gr_j_alloc(r, sizeof *s);
    *s = *gr_j_str(v);
    s->markup = false;
    return J(J_STRING, p, s);
}

typedef enum filter_id {
    F_TRIM, F_UPPER, F_LOWER, F_CAPITALIZE, F_TITLE, F_STRING, F_REPLACE, F_INDENT, F_SAFE, F_ESCAPE, F_JOIN, F_LENGTH, F_TOJSON, F_ITEMS, F_DEFAULT,
    F_LIST, F_FIRST, F_LAST, F_MAP, F_SELECT, F_REJECT, F_SELECTATTR, F_REJECTATTR, F_UNIQUE, F_SORT, F_DICTSORT, F_REVERSE, F_INT, F_FLOAT, F_ABS,
    F_ROUND, F_MIN, F_MAX, F_SUM, F_ATTR, F_FORMAT
} filter_id;

static const struct {
    const char *name;
    filter_id id;
} filters[] = {{"trim", F_TRIM}, {"upper", F_UPPER}, {"lower", F_LOWER}, {"capitalize", F_CAPITALIZE}, {"title", F_TITLE}, {"string", F_STRING},
               {"replace", F_REPLACE}, {"indent", F_INDENT}, {"safe", F_SAFE}, {"escape", F_ESCAPE}, {"e", F_ESCAPE}, {"forceescape", F_ESCAPE},
               {"join", F_JOIN}, {"length", F_LENGTH}, {"count", F_LENGTH}, {"tojson", F_TOJSON}, {"items", F_ITEMS}, {"default", F_DEFAULT},
               {"d", F_DEFAULT}, {"list", F_LIST}, {"first", F_FIRST}, {"last", F_LAST}, {"map", F_MAP}, {"select", F_SELECT}, {"reject", F_REJECT},
               {"selectattr", F_SELECTATTR}, {"rejectattr", F_REJECTATTR}, {"unique", F_UNIQUE}, {"sort", F_SORT}, {"dictsort", F_DICTSORT},
               {"reverse", F_REVERSE}, {"int", F_INT}, {"float", F_FLOAT}, {"abs", F_ABS}, {"round", F_ROUND}, {"min", F_MIN}, {"max", F_MAX},
               {"sum", F_SUM}, {"attr", F_ATTR}, {"format", F_FORMAT}};

/* Filters of one text: whatever comes in is made one. */
static jvalue text_filter(run *r, int32_t line, filter_id id, jvalue v, const jargs *args) {
    if (id == F_INDENT && v.kind != J_STRING) return gr_j_fail(r, line, "indent needs a string, not %s", gr_j_type(v));
    v = gr_j_to_string(r, v);
    if (!gr_j_ok(r)) return v;
    switch (id) {
    case F_TRIM:
        return strip(r, v, arg_string(r, args, 0, "chars"), 3);
    case F_UPPER:
        return change_case(r, v, CASE_UPPER);
    case F_LOWER:
        return change_case(r, v, CASE_LOWER);
    case F_CAPITALIZE:
        return change_case(r, v, CASE_CAPITALIZE);
    case F_TITLE:
        return title_words(r, v);
    case F_INDENT:
        return indent(r, v, args);
    case F_SAFE:
        return safe(r, v);
    case F_ESCAPE:
        return gr_j_escape(r, v);
    case F_REPLACE: {
        jvalue old = gr_j_to_string(r, gr_j_arg(args, 0, "old")), by = gr_j_to_string(r, gr_j_arg(args, 1, "new"));
        if (args->n < 2) return gr_j_fail(r, line, "replace needs two texts");
        return gr_j_ok(r) ? replace(r, without_markup(r, v), gr_j_str(old), by, arg_int(r, args, 2, "count", -1)) : v;
    }
    default:
        return v;
    }
}

static jvalue joined(run *r, int32_t line, jvalue v, const jargs *args) {
    const jvalue *attribute = given(args, 1, "attribute");
    jvalue by = given(args, 0, "d") ? gr_j_to_string(r, gr_j_arg(args, 0, "d")) : gr_j_text(r, "", 0, 0);
    if (attribute) {
        jargs one = {.values = (jvalue *)(uintptr_t)attribute, .names = (const char *[]){"attribute"}, .n = 1, .line = line};
        v = map_items(r, line, v, &one);
    }
    return gr_j_ok(r) ? join(r, line, v, by) : v;
}

jvalue gr_j_filter(run *r, int32_t line, const char *name, jvalue v, const jargs *args) {
    int found = -1;
    if (!gr_j_ok(r)) return v;
    for (int i = 0; i < GR_LEN(filters) && found < 0; i++)
        if (strcmp(name, filters[i].name) == 0) found = i;
    if (found < 0) return gr_j_fail(r, line, "the filter \"%s\" is not supported", name);
    switch (filters[found].id) {
    case F_JOIN:
        return joined(r, line, v, args);
    case F_LENGTH:
        return J(J_INT, i, gr_j_length(r, line, v));
    case F_TOJSON:
        return to_json(r, line, v, args);
    case F_ITEMS:
        if (v.kind == J_UNDEFINED) return lazy(gr_j_new_list(r, J_LIST, 1));
        return v.kind == J_DICT ? lazy(dict_part(r, gr_j_dict(v), M_ITEMS)) : gr_j_fail(r, line, "items needs a mapping, not %s", gr_j_type(v));
    case F_DEFAULT:
        return otherwise(v, args);
    case F_LIST:
        return to_list(r, line, v);
    case F_FIRST:
    case F_LAST:
        return end_of_list(r, line, v, filters[found].id == F_LAST);
    case F_MAP:
        return map_items(r, line, v, args);
    case F_SELECT:
    case F_REJECT:
        return choose(r, line, v, args, false, filters[found].id == F_SELECT);
    case F_SELECTATTR:
    case F_REJECTATTR:
        return choose(r, line, v, args, true, filters[found].id == F_SELECTATTR);
    case F_UNIQUE:
        return unique(r, line, v, args);
    case F_SORT:
        return sort(r, line, v, args);
    case F_DICTSORT:
        return dictsort(r, line, v, args);
    case F_REVERSE:
        return reversed(r, line, v);
    case F_INT:
    case F_FLOAT:
        if (v.kind == J_UNDEFINED) return gr_j_fail(r, line, "%s needs a value, not undefined", name);
        return filters[found].id == F_INT ? to_int(r, v, args) : to_float(r, v, args);
    case F_ABS:
        return absolute(r, line, v);
    case F_ROUND:
        return rounded(r, line, v, args);
    case F_MIN:
    case F_MAX:
        return extreme(r, line, v, args, filters[found].id == F_MAX);
    case F_SUM:
        return total(r, line, v, args);
    case F_ATTR:
        if (v.kind == J_DICT) return (jvalue){0}; /* attributes alone: no items */
        return args->n ? gr_j_attribute(r, line, v, c_string(r, gr_j_str(gr_j_to_string(r, args->values[0])))) : gr_j_fail(r, line, "attr needs a name");
    case F_FORMAT: {
        jvalue all = gr_j_new_list(r, J_TUPLE, args->n);
        for (int i = 0; i < args->n_positional; i++) gr_j_push(r, all, args->values[i]);
        return gr_j_format(r, line, gr_j_to_string(r, v), all);
    }
    default:
        return text_filter(r, line, filters[found].id, v, args);
    }
}

/* ---- "..." % values ---- */

static void format_one(run *r, int32_t line, jbuild *b, const char *spec, int n, char kind, jvalue v) {
    char form[32], text[400];
    double f;
    int64_t i;
    bool whole;
    if (kind == 's' || kind == 'r') {
        jvalue s = kind == 's' ? gr_j_to_string(r, v) : gr_j_repr(r, v);
        if (n > 0) gr_j_fail(r, line, "a width in %%%c is not supported", kind);
        if (gr_j_ok(r)) gr_jb_str(r, b, s);
        return;
    }
    if (!gr_j_number(v, &f, &i, &whole) || n > 16 || strspn(spec, "0123456789.-+ ") < (size_t)n) {
        gr_j_fail(r, line, "%%%.*s%c of %s is not supported", GR_MIN(n, 16), spec, kind, gr_j_type(v));
        return;
    }
    if (strchr("di", kind))
        snprintf(form, sizeof form, "%%%.*slld", n, spec), snprintf(text, sizeof text, form, (long long)(whole ? i : (int64_t)f));
    else if (strchr("xXo", kind) && whole)
        snprintf(form, sizeof form, "%%%.*sll%c", n, spec, kind), snprintf(text, sizeof text, form, (long long)i);
    else
        snprintf(form, sizeof form, "%%%.*s%c", n, spec, kind), snprintf(text, sizeof text, form, f);
    gr_jb_add(r, b, text, (int64_t)strlen(text), 0);
}

jvalue gr_j_format(run *r, int32_t line, jvalue format, jvalue values) {
    const jstr *s = gr_j_str(format);
    jbuild b = {0};
    int64_t next = 0, start = 0;
    for (int64_t i = 0; i < s->n && gr_j_ok(r); i++) {
        if (s->s[i] != '%') continue;
        gr_jb_slice(r, &b, s, start, i);
        int64_t at = i + 1, spec;
        jvalue v = {0};
        bool named = at < s->n && s->s[at] == '(';
        if (named) {
            const char *close = memchr(s->s + at, ')', (size_t)(s->n - at));
            const jvalue *found = NULL;
            if (close && values.kind == J_DICT) found = gr_j_get(r, gr_j_dict(values), gr_j_text(r, s->s + at + 1, close - s->s - at - 1, 0));
            if (!found) return gr_jb_release(&b), gr_j_fail(r, line, "a name in a format has no value");
            v = *found;
            at = close - s->s + 1;
        }
        for (spec = at; at < s->n && strchr("0123456789.-+ #", s->s[at]);) at++;
        char kind = at < s->n ? s->s[at] : '\0';
        if (kind == '%') {
            gr_jb_add(r, &b, "%", 1, 0);
        } else if (!kind || !strchr("srdixXofFeEgG", kind)) {
            gr_j_fail(r, line, "a format that is not supported");
        } else {
            bool tuple = values.kind == J_TUPLE;
            if (!named && next >= (tuple ? gr_j_items(values)->n : 1)) gr_j_fail(r, line, "a format has more places than values");
            if (!named && gr_j_ok(r)) v = tuple ? gr_j_items(values)->items[next] : values;
            next += !named;
            if (gr_j_ok(r)) format_one(r, line, &b, s->s + spec, (int)(at - spec), kind, v);
        }
        i = at;
        start = at + 1;
    }
    bool one = values.kind > J_UNDEFINED && values.kind <= J_STRING, left = one && next == 0;
    if (values.kind == J_TUPLE) left = next < gr_j_items(values)->n;
    if (gr_j_ok(r) && left) gr_j_fail(r, line, "a format has fewer places than values");
    gr_jb_slice(r, &b, s, GR_MIN(start, s->n), s->n);
    return gr_jb_take(r, &b, s->markup);
}

/* ---- functions ---- */

static jvalue range(run *r, int32_t line, const jargs *args) {
    int64_t a = arg_int(r, args, 0, NULL, 0), from = args->n > 1 ? a : 0, to = args->n > 1 ? arg_int(r, args, 1, NULL, 0) : a;
    int64_t step = arg_int(r, args, 2, NULL, 1);
    if (args->n < 1 || step == 0) return gr_j_fail(r, line, "range needs a bound, and a step other than 0");
    jvalue list = gr_j_new_list(r, J_LIST, 4);
    for (int64_t i = from, n = 0; gr_j_ok(r) && (step > 0 ? i < to : i > to); i += step, n++) {
        if (n >= MAX_RANGE) return gr_j_fail(r, line, "range has more than %d values", MAX_RANGE);
        gr_j_push(r, list, J(J_INT, i, i));
    }
    return list;
}

static jvalue new_namespace(run *r, int32_t line, const jargs *args, gr_jkind kind) { /* namespace(...), dict(...) */
    jvalue out = gr_j_new_dict(r, kind, args->n);
    for (int i = 0; i < args->n && gr_j_ok(r); i++) {
        if (args->names[i]) {
            gr_j_put(r, out, gr_j_text(r, args->names[i], (int64_t)strlen(args->names[i]), 0), args->values[i]);
        } else if (args->values[i].kind == J_DICT) {
            const jdict *d = gr_j_dict(args->values[i]);
            for (int64_t k = 0; k < d->n; k++) gr_j_put(r, out, d->keys[k], d->values[k]);
        } else {
            gr_j_fail(r, line, "expected a mapping or named values");
        }
    }
    return out;
}

static jvalue strftime_now(run *r, int32_t line, const jargs *args) {
    const jstr *format = arg_string(r, args, 0, "format");
    char text[400];
    struct tm parts;
    time_t now = (time_t)r->now;
    if (!format || format->n > 200) return gr_j_fail(r, line, "strftime_now needs a format");
    if (!(r->utc ? gmtime_r(&now, &parts) : localtime_r(&now, &parts))) return gr_j_fail(r, line, "no time");
    size_t n = strftime(text, sizeof text, c_string(r, format), &parts);
    char *copy = gr_j_alloc(r, (int64_t)n + 1);
    if (!gr_j_ok(r)) return (jvalue){0};
    memcpy(copy, text, n);
    return gr_j_text(r, copy, (int64_t)n, 0);
}

static const char *const functions[] = {"raise_exception", "namespace", "dict", "range", "strftime_now"};

bool gr_j_is_function(const char *name) {
    for (int i = 0; i < GR_LEN(functions); i++)
        if (strcmp(name, functions[i]) == 0) return true;
    return false;
}

jvalue gr_j_function(run *r, int32_t line, const char *name, const jargs *args) {
    if (strcmp(name, "range") == 0) return range(r, line, args);
    if (strcmp(name, "namespace") == 0) return new_namespace(r, line, args, J_NAMESPACE);
    if (strcmp(name, "dict") == 0) return new_namespace(r, line, args, J_DICT);
    if (strcmp(name, "strftime_now") == 0) return strftime_now(r, line, args);
    jvalue message = gr_j_to_string(r, gr_j_arg(args, 0, "message"));
    if (!gr_j_ok(r)) return message;
    r->raised = true;
    return gr_j_fail(r, line, "refuses: %.300s", c_string(r, gr_j_str(message)));
}
