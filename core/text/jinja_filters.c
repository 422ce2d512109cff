/* Filters, as jinja2 has them. */
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "core/text/jinja_impl.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" /* built-ins have one type, and not each needs all that it is given */

static const jargs no_args;

/* ---- over lists ---- */

static jvalue lazy(jvalue list) {
    gr_j_items(list)->lazy = true;
    return list;
}

/* "a.b" or "0": the attribute of an item, as make_attrgetter does. */
static jvalue path(run *r, int32_t line, jvalue item, jvalue name) {
    if (name.kind != J_STRING) return gr_j_item(r, line, item, name);
    const char *s = gr_j_c_string(r, gr_j_str(name));
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
static const jlist *some(run *r, int32_t line, jvalue v) { return gr_j_iterate(r, line, gr_j_truth(v) ? v : (jvalue){0}); }

static jvalue map_items(run *r, jvalue v, const jargs *args, int how) {
    const jvalue *attribute = gr_j_given(args, -1, "attribute"), *otherwise = gr_j_given(args, -1, "default");
    const jlist *l = some(r, args->line, v);
    jvalue out = gr_j_new_list(r, J_LIST, l->n), name = gr_j_arg(args, 0, NULL);
    if (!attribute && name.kind != J_STRING) return gr_j_fail(r, args->line, "map needs a filter's name or attribute=");
    jargs more = attribute ? (jargs){.line = args->line} : rest(args, 1);
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
        jvalue x = attribute ? path(r, args->line, l->items[i], *attribute)
                             : gr_j_filter(r, gr_j_c_string(r, gr_j_str(name)), l->items[i], &more);
        gr_j_push(r, out, attribute && otherwise && x.kind == J_UNDEFINED ? *otherwise : x);
    }
    return lazy(out);
}

/* select, reject, selectattr, rejectattr. */
enum { KEEP = 1, BY_ATTRIBUTE = 2 };

static jvalue choose(run *r, jvalue v, const jargs *args, int how) {
    bool attribute = how & BY_ATTRIBUTE, keep = how & KEEP;
    const jlist *l = some(r, args->line, v);
    jvalue out = gr_j_new_list(r, J_LIST, l->n), test = gr_j_arg(args, attribute, NULL);
    if (attribute && args->n_positional < 1) return gr_j_fail(r, args->line, "expected an attribute's name");
    jargs more = rest(args, attribute + 1);
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
        jvalue x = attribute ? path(r, args->line, l->items[i], args->values[0]) : l->items[i];
        bool yes = test.kind == J_STRING ? gr_j_test(r, gr_j_c_string(r, gr_j_str(test)), x, &more) : gr_j_truth(x);
        if (yes == keep) gr_j_push(r, out, l->items[i]);
    }
    return lazy(out);
}

static jvalue fold_case(run *r, jvalue v, bool sensitive) {
    return sensitive || v.kind != J_STRING ? v : gr_js_case(r, v, &no_args, CASE_LOWER);
}

/* What an item is sorted by and compared with: its attribute where one is named, case folded unless that counts. */
static jvalue key_of(run *r, jvalue item, const jargs *args, int sensitive_at, int attribute_at) {
    const jvalue *attribute = gr_j_given(args, attribute_at, "attribute");
    jvalue key = attribute ? path(r, args->line, item, *attribute) : item;
    return fold_case(r, key, gr_j_arg_bool(args, sensitive_at, "case_sensitive", false));
}

static jvalue unique(run *r, jvalue v, const jargs *args, int how) {
    const jlist *l = gr_j_iterate(r, args->line, v);
    jvalue out = gr_j_new_list(r, J_LIST, l->n), seen = gr_j_new_list(r, J_LIST, l->n);
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
        jvalue key = key_of(r, l->items[i], args, 0, 1);
        if (gr_j_contains(r, args->line, seen, key)) continue;
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
            if (!gr_j_ok(r) || (reverse ? before >= 0 : before <= 0) || ++r->steps > GR_J_MAX_STEPS) break;
            order[j] = order[j - 1];
        }
        order[j] = i;
    }
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) gr_j_push(r, out, l->items[order[i]]);
    return out;
}

static jvalue sort(run *r, jvalue v, const jargs *args, int how) {
    const jlist *l = gr_j_iterate(r, args->line, v);
    jvalue keys = gr_j_new_list(r, J_LIST, l->n);
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) gr_j_push(r, keys, key_of(r, l->items[i], args, 1, 2));
    return gr_j_ok(r) ? sorted(r, args->line, l, gr_j_items(keys)->items, gr_j_arg_bool(args, 0, "reverse", false)) : v;
}

static jvalue dictsort(run *r, jvalue v, const jargs *args, int how) {
    if (v.kind != J_DICT) return gr_j_fail(r, args->line, "dictsort needs a mapping, not %s", gr_j_type(v));
    bool sensitive = gr_j_arg_bool(args, 0, "case_sensitive", false), reverse = gr_j_arg_bool(args, 2, "reverse", false);
    bool by_value = gr_j_is_text(gr_j_arg(args, 1, "by"), "value");
    const jdict *d = gr_j_dict(v);
    jvalue pairs = gr_j_dict_part(r, d, DICT_ITEMS), keys = gr_j_new_list(r, J_LIST, d->n);
    for (int64_t i = 0; i < d->n && gr_j_ok(r); i++)
        gr_j_push(r, keys, fold_case(r, by_value ? d->values[i] : d->keys[i], sensitive));
    return gr_j_ok(r) ? sorted(r, args->line, gr_j_items(pairs), gr_j_items(keys)->items, reverse) : v;
}

static jvalue reversed(run *r, jvalue v, const jargs *args, int how) {
    const jlist *l = gr_j_iterate(r, args->line, v);
    jvalue out = gr_j_new_list(r, J_LIST, l->n);
    for (int64_t i = l->n - 1; i >= 0; i--) gr_j_push(r, out, l->items[i]);
    if (!gr_j_ok(r)) return v;
    return v.kind == J_STRING ? gr_j_concat(r, gr_j_items(out)->items, (int)l->n, gr_j_str(v)->markup) : lazy(out);
}

static jvalue end_of_list(run *r, jvalue v, const jargs *args, int last) {
    const jlist *l = gr_j_iterate(r, args->line, v);
    if (!gr_j_ok(r) || l->n == 0) return (jvalue){.kind = J_UNDEFINED, .as.p = last ? "the last item" : "the first item"};
    return l->items[last ? l->n - 1 : 0];
}

static jvalue extreme(run *r, jvalue v, const jargs *args, int most) {
    const jlist *l = gr_j_iterate(r, args->line, v);
    jvalue best = {.kind = J_UNDEFINED, .as.p = "an item of an empty list"}, best_key = best;
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
        jvalue key = key_of(r, l->items[i], args, 0, 1);
        int order = i ? gr_j_order(r, args->line, key, best_key) : 0;
        if (i && (most ? order <= 0 : order >= 0)) continue;
        best = l->items[i];
        best_key = key;
    }
    return best;
}

static jvalue total(run *r, jvalue v, const jargs *args, int how) {
    const jlist *l = gr_j_iterate(r, args->line, v);
    const jvalue *attribute = gr_j_given(args, 0, "attribute"), *start = gr_j_given(args, 1, "start");
    jvalue all = start ? *start : J(J_INT, i, 0);
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++)
        all = gr_j_binary(r, args->line, OP_ADD, all, attribute ? path(r, args->line, l->items[i], *attribute) : l->items[i]);
    return all;
}

static jvalue join(run *r, jvalue v, const jargs *args, int how) {
    const jvalue *attribute = gr_j_given(args, 1, "attribute");
    jvalue by = gr_j_given(args, 0, "d") ? gr_j_to_string(r, gr_j_arg(args, 0, "d")) : gr_j_text(r, "", 0, 0);
    if (attribute) {
        jargs one = {.values = (jvalue *)(uintptr_t)attribute, .names = (const char *[]){"attribute"}, .n = 1, .line = args->line};
        v = map_items(r, v, &one, 0);
    }
    return gr_j_ok(r) ? gr_j_join(r, args->line, v, by) : v;
}

static jvalue to_list(run *r, jvalue v, const jargs *args, int how) {
    const jlist *l = gr_j_iterate(r, args->line, v);
    jvalue out = gr_j_new_list(r, J_LIST, l->n);
    gr_j_items(out)->origin = l->origin;
    gr_j_extend(r, out, l);
    return out;
}

/* ---- over values ---- */

static jvalue to_int(run *r, jvalue v, const jargs *args, int how) {
    jvalue otherwise = args->n ? gr_j_arg(args, 0, "default") : J(J_INT, i, 0);
    char *end;
    if (v.kind == J_UNDEFINED) return gr_j_fail(r, args->line, "int needs a value, not undefined");
    if (v.kind == J_INT || v.kind == J_BOOL) return J(J_INT, i, v.as.i);
    if (v.kind == J_FLOAT) return v.as.f > -9e18 && v.as.f < 9e18 ? J(J_INT, i, (int64_t)v.as.f) : otherwise;
    if (v.kind != J_STRING) return otherwise;
    const jstr *s = gr_j_str(gr_js_strip(r, v, &no_args, 3));
    const char *text = gr_j_c_string(r, s);
    if (s->n == 0 || s->n > 40) return otherwise;
    long long whole = strtoll(text, &end, 10);
    if (!*end && s->n < 19) return J(J_INT, i, whole);
    double f = strtod(text, &end);
    return *end || !(f > -9e18 && f < 9e18) ? otherwise : J(J_INT, i, (int64_t)f);
}

static jvalue to_float(run *r, jvalue v, const jargs *args, int how) {
    jvalue otherwise = args->n ? gr_j_arg(args, 0, "default") : J(J_FLOAT, f, 0);
    double f;
    int64_t i;
    bool whole;
    char *end;
    if (v.kind == J_UNDEFINED) return gr_j_fail(r, args->line, "float needs a value, not undefined");
    if (gr_j_number(v, &f, &i, &whole)) return J(J_FLOAT, f, f);
    if (v.kind != J_STRING) return otherwise;
    const jstr *s = gr_j_str(gr_js_strip(r, v, &no_args, 3));
    f = strtod(gr_j_c_string(r, s), &end);
    return s->n == 0 || *end ? otherwise : J(J_FLOAT, f, f);
}

static jvalue absolute(run *r, jvalue v, const jargs *args, int how) {
    if (v.kind == J_FLOAT) return J(J_FLOAT, f, v.as.f < 0 ? -v.as.f : v.as.f);
    if (v.kind == J_INT || v.kind == J_BOOL) return J(J_INT, i, v.as.i < 0 ? -v.as.i : v.as.i);
    return gr_j_fail(r, args->line, "abs needs a number, not %s", gr_j_type(v));
}

/* round(precision=0, method="common"): halves to even as Python has them; a whole number stays one. */
static jvalue rounded(run *r, jvalue v, const jargs *args, int how) {
    double f;
    int64_t i;
    bool whole;
    char text[64];
    int64_t digits = gr_j_arg_int(r, args, 0, "precision", 0);
    if (!gr_j_number(v, &f, &i, &whole) || gr_j_given(args, 1, "method"))
        return gr_j_fail(r, args->line, "round needs a number and no method");
    if (digits < 0 || digits > 15) return gr_j_fail(r, args->line, "round to %lld digits is not supported", (long long)digits);
    if (whole) return J(J_INT, i, i);
    snprintf(text, sizeof text, "%.*f", (int)digits, f);
    return J(J_FLOAT, f, strtod(text, NULL));
}

static jvalue to_json(run *r, jvalue v, const jargs *args, int how) {
    jvalue indent_by = gr_j_arg(args, 1, "indent"), separators = gr_j_arg(args, 2, "separators");
    bool broken = indent_by.kind == J_INT;
    jjson form = {.ascii = gr_j_arg_bool(args, 0, "ensure_ascii", false),
                  .sort = gr_j_arg_bool(args, 3, "sort_keys", false),
                  .indent = broken ? (int)GR_MAX(0, GR_MIN(indent_by.as.i, 64)) : -1,
                  .item = broken ? "," : ", ",
                  .key = ": "};
    if (indent_by.kind == J_STRING) return gr_j_fail(r, args->line, "tojson with a text as indent is not supported");
    if (gr_j_is_list(separators) && gr_j_items(separators)->n == 2) {
        const jvalue *s = gr_j_items(separators)->items;
        if (s[0].kind == J_STRING && s[1].kind == J_STRING)
            form.item = gr_j_c_string(r, gr_j_str(s[0])), form.key = gr_j_c_string(r, gr_j_str(s[1]));
    }
    return gr_j_dumps(r, args->line, v, &form);
}

static jvalue otherwise(run *r, jvalue v, const jargs *args, int how) { /* default(value, boolean) */
    bool missing = v.kind == J_UNDEFINED || (gr_j_arg_bool(args, 1, "boolean", false) && !gr_j_truth(v));
    const jvalue *by = gr_j_given(args, 0, "default_value");
    static const jstr empty = {.s = ""};
    return !missing ? v : by ? *by : J(J_STRING, p, &empty);
}

static jvalue items(run *r, jvalue v, const jargs *args, int how) {
    if (v.kind == J_UNDEFINED) return lazy(gr_j_new_list(r, J_LIST, 1));
    if (v.kind != J_DICT) return gr_j_fail(r, args->line, "items needs a mapping, not %s", gr_j_type(v));
    return lazy(gr_j_dict_part(r, gr_j_dict(v), DICT_ITEMS));
}

static jvalue length(run *r, jvalue v, const jargs *args, int how) { return J(J_INT, i, gr_j_length(r, args->line, v)); }

static jvalue attribute(run *r, jvalue v, const jargs *args, int how) {
    if (v.kind == J_DICT) return (jvalue){0}; /* attributes alone: no items */
    if (!args->n) return gr_j_fail(r, args->line, "attr needs a name");
    return gr_j_attribute(r, args->line, v, gr_j_c_string(r, gr_j_str(gr_j_to_string(r, args->values[0]))));
}

static jvalue format(run *r, jvalue v, const jargs *args, int how) {
    jvalue all = gr_j_new_list(r, J_TUPLE, args->n);
    for (int i = 0; i < args->n_positional; i++) gr_j_push(r, all, args->values[i]);
    return gr_j_format(r, args->line, gr_j_to_string(r, v), all);
}

/* ---- over text ---- */

/* jinja2's title filter: words after spaces, dashes, brackets. */
static jvalue title_words(run *r, jvalue v, const jargs *args, int how) {
    const jstr *s = gr_j_str(v);
    jbuild b = {0};
    bool start = true;
    int size;
    for (int64_t i = 0; i < s->n; i += size) {
        int32_t c = gr_utf8_read(s->s + i, s->n - i, &size), to = start ? utf8proc_toupper(c) : utf8proc_tolower(c);
        char bytes[4];
        gr_jb_add(r, &b, bytes, gr_utf8_encode((uint32_t)to, bytes), gr_j_origin_at(s, i));
        start = gr_j_is_space(c) || (c < 0x80 && c && strchr("-([{<", c));
    }
    return gr_jb_take(r, &b, s->markup);
}

/* jinja2's indent. */
static jvalue indent(run *r, jvalue v, const jargs *args, int how) {
    if (v.kind != J_STRING) return gr_j_fail(r, args->line, "indent needs a string, not %s", gr_j_type(v));
    jvalue width = gr_j_arg(args, 0, "width");
    bool first = gr_j_arg_bool(args, 1, "first", false), blank = gr_j_arg_bool(args, 2, "blank", false);
    jbuild b = {0}, pad = {0};
    if (width.kind == J_STRING) gr_jb_str(r, &pad, width);
    else
        for (int64_t i = width.kind == J_INT ? width.as.i : 4; i > 0; i--) gr_jb_add(r, &pad, " ", 1, 0);
    jvalue by = gr_jb_take(r, &pad, false), lines = gr_j_split_lines(r, v, false);
    const jstr *s = gr_j_str(v);
    const jlist *l = gr_j_items(lines);
    if (first) gr_jb_str(r, &b, by);
    for (int64_t i = 0; i < l->n && gr_j_ok(r); i++) {
        if (i) gr_jb_add(r, &b, "\n", 1, gr_j_origin_at(gr_j_str(l->items[i]), 0));
        if (i && (blank || gr_j_str(l->items[i])->n)) gr_jb_str(r, &b, by);
        gr_jb_str(r, &b, l->items[i]);
    }
    if (s->n && s->s[s->n - 1] == '\n') gr_jb_add(r, &b, "\n", 1, gr_j_origin_at(s, s->n - 1));
    return gr_jb_take(r, &b, s->markup);
}

/* The string with markup or without. */
static jvalue marked(run *r, jvalue v, bool markup) {
    jstr *s = gr_j_alloc(r, sizeof *s);
    *s = *gr_j_str(v);
    s->markup = markup;
    return J(J_STRING, p, s);
}

static jvalue safe(run *r, jvalue v, const jargs *args, int how) { return marked(r, v, true); }

static jvalue escape(run *r, jvalue v, const jargs *args, int how) { return gr_j_escape(r, v); }

static jvalue replace(run *r, jvalue v, const jargs *args, int how) {
    jvalue old = gr_j_to_string(r, gr_j_arg(args, 0, "old")), by = gr_j_to_string(r, gr_j_arg(args, 1, "new"));
    if (args->n < 2) return gr_j_fail(r, args->line, "replace needs two texts");
    if (gr_j_str(v)->markup) v = marked(r, v, false);
    return gr_j_ok(r) ? gr_j_replace(r, v, gr_j_str(old), by, gr_j_arg_int(r, args, 2, "count", -1)) : v;
}

/* ---- the table ---- */

/* Filters of one text: whatever comes in is made one. */
static const jbuiltin text_filters[] = {{"trim", gr_js_strip, 3},
                                        {"upper", gr_js_case, CASE_UPPER},
                                        {"lower", gr_js_case, CASE_LOWER},
                                        {"capitalize", gr_js_case, CASE_CAPITALIZE},
                                        {"title", title_words, 0},
                                        {"string", gr_j_itself, 0},
                                        {"replace", replace, 0},
                                        {"safe", safe, 0},
                                        {"escape", escape, 0},
                                        {"e", escape, 0},
                                        {"forceescape", escape, 0},
                                        {NULL, NULL, 0}};

static const jbuiltin filters[] = {{"indent", indent, 0},
                                   {"join", join, 0},
                                   {"length", length, 0},
                                   {"count", length, 0},
                                   {"tojson", to_json, 0},
                                   {"items", items, 0},
                                   {"default", otherwise, 0},
                                   {"d", otherwise, 0},
                                   {"list", to_list, 0},
                                   {"first", end_of_list, false},
                                   {"last", end_of_list, true},
                                   {"map", map_items, 0},
                                   {"select", choose, KEEP},
                                   {"reject", choose, 0},
                                   {"selectattr", choose, BY_ATTRIBUTE | KEEP},
                                   {"rejectattr", choose, BY_ATTRIBUTE},
                                   {"unique", unique, 0},
                                   {"sort", sort, 0},
                                   {"dictsort", dictsort, 0},
                                   {"reverse", reversed, 0},
                                   {"int", to_int, 0},
                                   {"float", to_float, 0},
                                   {"abs", absolute, 0},
                                   {"round", rounded, 0},
                                   {"min", extreme, false},
                                   {"max", extreme, true},
                                   {"sum", total, 0},
                                   {"attr", attribute, 0},
                                   {"format", format, 0},
                                   {NULL, NULL, 0}};

jvalue gr_j_filter(run *r, const char *name, jvalue v, const jargs *args) {
    const jbuiltin *of_text = gr_j_find_builtin(text_filters, name), *f = of_text ? of_text : gr_j_find_builtin(filters, name);
    if (!gr_j_ok(r)) return v;
    if (!f) return gr_j_fail(r, args->line, "the filter \"%s\" is not supported", name);
    if (of_text) v = gr_j_to_string(r, v);
    return gr_j_ok(r) ? f->call(r, v, args, f->how) : v;
}
