/* Values as text: str and repr of Python, json.dumps, and "..." % values. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "core/text/jinja_impl.h"

enum { MAX_DEPTH = 100 };

static bool is_printable(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return c == ' ' ||
           !(k == UTF8PROC_CATEGORY_CN || k == UTF8PROC_CATEGORY_CC || k == UTF8PROC_CATEGORY_CF || k == UTF8PROC_CATEGORY_CS ||
             k == UTF8PROC_CATEGORY_CO || k == UTF8PROC_CATEGORY_ZS || k == UTF8PROC_CATEGORY_ZL || k == UTF8PROC_CATEGORY_ZP);
}

/* repr of a float: the shortest digits that read back as it. */
static void float_text(double f, char out[40]) {
    char digits[32];
    if (isnan(f) || isinf(f)) {
        snprintf(out, 40, "%s", isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
        return;
    }
    int precision = 0;
    do snprintf(digits, sizeof digits, "%.*e", precision, f);
    while (strtod(digits, NULL) != f && ++precision < 17);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent < -4 || exponent >= 16) {
        char *e = strchr(digits, 'e');
        *e = '\0';
        snprintf(out, 40, "%.26se%c%02d", digits, exponent < 0 ? '-' : '+', abs(exponent) % 1000);
        return;
    }
    snprintf(out, 40, "%.*f", GR_MAX(precision - exponent, 0), f);
    if (!strchr(out, '.')) strcat(out, ".0");
}

static void repr_string(run *r, jbuild *b, const jstr *s) {
    bool single = memchr(s->s, '\'', (size_t)s->n), twice = memchr(s->s, '"', (size_t)s->n);
    char quote = single && !twice ? '"' : '\'', text[16];
    int size;
    int64_t start = 0;
    gr_jb_add(r, b, &quote, 1, s->spans ? s->spans[0].origin : s->origin);
    for (int64_t i = 0; i < s->n; i += size) {
        int32_t c = gr_utf8_read(s->s + i, s->n - i, &size);
        text[0] = '\0';
        if (c == quote || c == '\\') snprintf(text, sizeof text, "\\%c", (char)c);
        else if (c == '\n' || c == '\r' || c == '\t') snprintf(text, sizeof text, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
        else if (!(c >= 0x20 && c < 0x7F) && !is_printable(c))
            snprintf(text, sizeof text, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)c);
        if (!text[0]) continue;
        gr_jb_slice(r, b, s, start, i);
        gr_jb_add(r, b, text, (int64_t)strlen(text), s->spans ? 0 : s->origin);
        start = i + size;
    }
    gr_jb_slice(r, b, s, start, s->n);
    gr_jb_add(r, b, &quote, 1, s->spans ? s->spans[s->n_spans - 1].origin : s->origin);
}

static void put(run *r, jbuild *b, const char *s, int32_t origin) { gr_jb_add(r, b, s, (int64_t)strlen(s), origin); }

/* None, booleans and numbers, in the words of Python or of JSON; false for what is none of them. */
static bool put_scalar(run *r, jbuild *b, jvalue v, int32_t origin, bool json) {
    char text[64];
    if (v.kind == J_NONE) {
        snprintf(text, sizeof text, "%s", json ? "null" : "None");
    } else if (v.kind == J_BOOL) {
        snprintf(text, sizeof text, "%s", json ? (v.as.i ? "true" : "false") : v.as.i ? "True" : "False");
    } else if (v.kind == J_INT) {
        snprintf(text, sizeof text, "%lld", (long long)v.as.i);
    } else if (v.kind == J_FLOAT && json && !isfinite(v.as.f)) {
        snprintf(text, sizeof text, "%s", isnan(v.as.f) ? "NaN" : v.as.f > 0 ? "Infinity" : "-Infinity");
    } else if (v.kind == J_FLOAT) {
        float_text(v.as.f, text);
    } else {
        return false;
    }
    put(r, b, text, origin);
    return true;
}

static void repr(run *r, jbuild *b, jvalue v, int32_t origin, int depth) {
    if (depth > MAX_DEPTH) {
        gr_j_fail(r, 0, "a value is nested too deeply");
    } else if (put_scalar(r, b, v, origin, false)) {
    } else if (v.kind == J_UNDEFINED) {
        put(r, b, "Undefined", origin);
    } else if (v.kind == J_STRING) {
        repr_string(r, b, gr_j_str(v));
    } else if (gr_j_is_list(v)) {
        const jlist *l = gr_j_items(v);
        put(r, b, v.kind == J_LIST ? "[" : "(", l->origin);
        for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
            if (i) put(r, b, ", ", l->origin);
            repr(r, b, l->items[i], l->origin, depth + 1);
        }
        put(r, b, v.kind == J_LIST ? "]" : l->n == 1 ? ",)" : ")", l->origin);
    } else if (v.kind == J_DICT) {
        const jdict *d = gr_j_dict(v);
        put(r, b, "{", d->origin);
        for (int64_t i = 0; i < d->n && gr_j_ok(r); i++) {
            if (i) put(r, b, ", ", d->origin);
            repr(r, b, d->keys[i], d->origin, depth + 1);
            put(r, b, ": ", d->origin);
            repr(r, b, d->values[i], d->origin, depth + 1);
        }
        put(r, b, "}", d->origin);
    } else {
        gr_j_fail(r, 0, "a %s cannot be printed", gr_j_type(v));
    }
}

void gr_jb_str(run *r, jbuild *b, jvalue v) {
    if (v.kind == J_STRING) gr_jb_slice(r, b, gr_j_str(v), 0, gr_j_str(v)->n);
    else if (v.kind != J_UNDEFINED) repr(r, b, v, 0, 0);
}

jvalue gr_j_to_string(run *r, jvalue v) {
    if (v.kind == J_STRING) return v;
    jbuild b = {0};
    gr_jb_str(r, &b, v);
    return gr_jb_take(r, &b, false);
}

jvalue gr_j_repr(run *r, jvalue v) {
    jbuild b = {0};
    repr(r, &b, v, 0, 0);
    return gr_jb_take(r, &b, false);
}

/* ---- json.dumps ---- */

static void json_string_text(run *r, jbuild *b, const jstr *s, bool ascii) {
    static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
    int32_t edge = s->spans ? s->spans[0].origin : s->origin;
    int size;
    int64_t start = 0;
    gr_jb_add(r, b, "\"", 1, edge);
    for (int64_t i = 0; i < s->n; i += size) {
        size = 8;
        if (!ascii && i + 8 <= s->n && gr_all_ascii(gr_read8(s->s + i)) && !gr_bytes_between(gr_read8(s->s + i), 0, 0x1F) &&
            !memchr(s->s + i, '"', 8) && !memchr(s->s + i, '\\', 8))
            continue;
        int32_t c = gr_utf8_read(s->s + i, s->n - i, &size);
        char text[16] = "";
        const char *known = c > 0 && c < 0x80 ? strchr(from, c) : NULL;
        if (known) snprintf(text, sizeof text, "\\%c", to[known - from]);
        else if (c < 0x20 || (ascii && c >= 0x7F && c < 0x10000 && c != 0x7F)) snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
        else if (ascii && c >= 0x10000)
            snprintf(text, sizeof text, "\\u%04x\\u%04x", (unsigned)(0xD7C0 + (c >> 10)), (unsigned)(0xDC00 + (c & 0x3FF)));
        if (!text[0]) continue;
        gr_jb_slice(r, b, s, start, i);
        gr_jb_add(r, b, text, (int64_t)strlen(text), edge);
        start = i + size;
    }
    gr_jb_slice(r, b, s, start, s->n);
    gr_jb_add(r, b, "\"", 1, edge);
}

static void new_line(run *r, jbuild *b, const jjson *how, int depth, int32_t origin) {
    if (how->indent < 0) return;
    put(r, b, "\n", origin);
    for (int i = 0; i < how->indent * depth; i++) put(r, b, " ", origin);
}

static void dump(run *r, int32_t line, jbuild *b, jvalue v, const jjson *how, int32_t origin, int depth);

static void dump_key(run *r, int32_t line, jbuild *b, jvalue key, const jjson *how, int32_t origin) {
    if (key.kind == J_STRING) {
        json_string_text(r, b, gr_j_str(key), how->ascii);
    } else {
        put(r, b, "\"", origin);
        dump(r, line, b, key, how, origin, 0);
        put(r, b, "\"", origin);
    }
}

static void dump_dict(run *r, int32_t line, jbuild *b, const jdict *d, const jjson *how, int depth) {
    int64_t *order = gr_j_alloc(r, (d->n + 1) * (int64_t)sizeof *order);
    if (!gr_j_ok(r)) return;
    for (int64_t i = 0; i < d->n; i++) {
        int64_t j = i;
        for (; how->sort && j > 0 && gr_j_order(r, line, d->keys[order[j - 1]], d->keys[i]) > 0; j--) order[j] = order[j - 1];
        order[j] = i;
    }
    put(r, b, "{", d->origin);
    for (int64_t i = 0; i < d->n && gr_j_ok(r); i++) {
        if (i) put(r, b, how->item, d->origin);
        new_line(r, b, how, depth + 1, d->origin);
        dump_key(r, line, b, d->keys[order[i]], how, d->origin);
        put(r, b, how->key, d->origin);
        dump(r, line, b, d->values[order[i]], how, d->origin, depth + 1);
    }
    if (d->n) new_line(r, b, how, depth, d->origin);
    put(r, b, "}", d->origin);
}

static void dump(run *r, int32_t line, jbuild *b, jvalue v, const jjson *how, int32_t origin, int depth) {
    if (depth > MAX_DEPTH) {
        gr_j_fail(r, line, "a value is nested too deeply");
    } else if (v.kind == J_STRING) {
        json_string_text(r, b, gr_j_str(v), how->ascii);
    } else if (put_scalar(r, b, v, origin, true)) {
    } else if (gr_j_is_list(v) && !gr_j_items(v)->lazy) {
        const jlist *l = gr_j_items(v);
        put(r, b, "[", l->origin);
        for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
            if (i) put(r, b, how->item, l->origin);
            new_line(r, b, how, depth + 1, l->origin);
            dump(r, line, b, l->items[i], how, l->origin, depth + 1);
        }
        if (l->n) new_line(r, b, how, depth, l->origin);
        put(r, b, "]", l->origin);
    } else if (v.kind == J_DICT) {
        dump_dict(r, line, b, gr_j_dict(v), how, depth);
    } else {
        gr_j_fail(r, line, "%s has no form in JSON", gr_j_type(v));
    }
}

jvalue gr_j_dumps(run *r, int32_t line, jvalue v, const jjson *how) {
    jbuild b = {0};
    dump(r, line, &b, v, how, 0, 0);
    return gr_jb_take(r, &b, false);
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
    if (strchr("di", kind) && !whole && !(f > -9e18 && f < 9e18)) {
        gr_j_fail(r, line, "a number grows too large");
        return;
    }
    if (strchr("di", kind))
        snprintf(form, sizeof form, "%%%.*slld", n, spec), snprintf(text, sizeof text, form, (long long)(whole ? i : (int64_t)f));
    else if (strchr("xXo", kind) && whole)
        snprintf(form, sizeof form, "%%%.*sll%c", n, spec, kind), snprintf(text, sizeof text, form, (long long)i);
    else snprintf(form, sizeof form, "%%%.*s%c", n, spec, kind), snprintf(text, sizeof text, form, f);
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
            if (close && values.kind == J_DICT)
                found = gr_j_get(gr_j_dict(values), gr_j_text(r, s->s + at + 1, close - s->s - at - 1, 0));
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
