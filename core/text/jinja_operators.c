/* Attributes, items and operators of values. */
#include <math.h>
#include <string.h>

#include "core/text/jinja_impl.h"

jvalue gr_j_undefined(const char *name) { return (jvalue){.kind = J_UNDEFINED, .as.p = name}; }

jvalue gr_j_fail_undefined(run *r, int32_t line, jvalue v) {
    return gr_j_fail(r, line, "\"%.80s\" is undefined", v.as.p ? (const char *)v.as.p : "a value");
}

static jvalue loop_attribute(const jloop *loop, const char *name) {
    const jlist *l = loop->items;
    int64_t i = loop->index;
    const struct {
        const char *name;
        jvalue value;
    } all[] = {{"index", J(J_INT, i, i + 1)},
               {"index0", J(J_INT, i, i)},
               {"first", J(J_BOOL, i, i == 0)},
               {"last", J(J_BOOL, i, i == l->n - 1)},
               {"length", J(J_INT, i, l->n)},
               {"revindex", J(J_INT, i, l->n - i)},
               {"revindex0", J(J_INT, i, l->n - i - 1)},
               {"depth", J(J_INT, i, 1)}, /* of recursive loops, which there are none here */
               {"depth0", J(J_INT, i, 0)},
               {"previtem", i > 0 ? l->items[i - 1] : gr_j_undefined("loop.previtem")},
               {"nextitem", i + 1 < l->n ? l->items[i + 1] : gr_j_undefined("loop.nextitem")}};
    for (int k = 0; k < GR_LEN(all); k++)
        if (strcmp(name, all[k].name) == 0) return all[k].value;
    return gr_j_undefined(name);
}

jvalue gr_j_attribute(run *r, int32_t line, jvalue object, const char *name) {
    if (object.kind == J_UNDEFINED) return gr_j_fail_undefined(r, line, object);
    if (object.kind == J_LOOP) {
        if (strcmp(name, "changed") != 0 && strcmp(name, "cycle") != 0) return loop_attribute(object.as.p, name);
    } else if (object.kind == J_NAMESPACE) {
        const jvalue *found = gr_j_get_text(gr_j_dict(object), name);
        return found ? *found : gr_j_undefined(name);
    }
    if (object.kind == J_LOOP || gr_j_has_method(object, name)) {
        jmethod *m = gr_j_alloc(r, sizeof *m);
        *m = (jmethod){object, name};
        return J(J_METHOD, p, m);
    }
    const jvalue *found = object.kind == J_DICT ? gr_j_get_text(gr_j_dict(object), name) : NULL;
    return found ? *found : gr_j_undefined(name);
}

/* An index counted from the end where negative; -1 when there is no such place. */
static int64_t place(int64_t i, int64_t n) {
    i += i < 0 ? n : 0;
    return i >= 0 && i < n ? i : -1;
}

jvalue gr_j_item(run *r, int32_t line, jvalue object, jvalue key) {
    if (object.kind == J_UNDEFINED) return gr_j_fail_undefined(r, line, object);
    if (object.kind == J_DICT) {
        const jvalue *found = gr_j_get(gr_j_dict(object), key);
        if (found) return *found;
    }
    if (key.kind == J_INT || key.kind == J_BOOL) {
        if (gr_j_is_list(object) && !gr_j_items(object)->lazy) {
            int64_t i = place(key.as.i, gr_j_items(object)->n);
            return i < 0 ? gr_j_undefined("an item of a list") : gr_j_items(object)->items[i];
        }
        if (object.kind == J_STRING) {
            const jstr *s = gr_j_str(object);
            int64_t i = place(key.as.i, gr_j_count(s));
            if (i < 0) return gr_j_undefined("a character of a string");
            int64_t at = gr_j_offset(s, i);
            int size;
            gr_utf8_read(s->s + at, s->n - at, &size);
            return gr_j_slice(r, object, at, at + size);
        }
        return gr_j_undefined("an item");
    }
    if (key.kind != J_STRING) return gr_j_undefined("an item");
    const char *name = gr_j_c_string(r, gr_j_str(key));
    return object.kind == J_DICT && !gr_j_has_method(object, name) ? gr_j_undefined(name) : gr_j_attribute(r, line, object, name);
}

/* ---- operators ---- */

static jvalue repeat(run *r, int32_t line, jvalue v, int64_t times) {
    jvalue out;
    if (v.kind == J_STRING) {
        jbuild b = {0};
        for (int64_t i = 0; i < times && gr_j_ok(r) && gr_j_str(v)->n; i++) gr_jb_str(r, &b, v);
        out = gr_jb_take(r, &b, gr_j_str(v)->markup);
    } else {
        const jlist *l = gr_j_iterate(r, line, v);
        out = gr_j_new_list(r, (gr_jkind)v.kind, l->n);
        for (int64_t i = 0; i < times && l->n && gr_j_ok(r); i++) gr_j_extend(r, out, l);
    }
    return out;
}

static jvalue arithmetic(run *r, int32_t line, int op, double x, double y, int64_t i, int64_t j, bool whole) {
    int64_t k = 0;
    bool overflow = false;
    if ((op == OP_DIV || op == OP_FLOORDIV || op == OP_MOD) && y == 0) return gr_j_fail(r, line, "division by zero");
    if (op == OP_DIV) return J(J_FLOAT, f, x / y);
    if (op == OP_POW) {
        double p = pow(x, y);
        if (whole && j >= 0 && fabs(p) < 9e15) return J(J_INT, i, (int64_t)p);
        return whole && j >= 0 ? gr_j_fail(r, line, "a number grows too large") : J(J_FLOAT, f, p);
    }
    if (!whole) {
        double rest = op == OP_MOD || op == OP_FLOORDIV ? fmod(x, y) : 0;
        if (rest != 0 && (rest < 0) != (y < 0)) rest += y; /* of y's sign, as in Python */
        double m = op == OP_ADD ? x + y : op == OP_SUB ? x - y : op == OP_MUL ? x * y : rest;
        return J(J_FLOAT, f, op == OP_FLOORDIV ? nearbyint((x - rest) / y) : m);
    }
    if (op == OP_ADD) overflow = __builtin_add_overflow(i, j, &k);
    else if (op == OP_SUB) overflow = __builtin_sub_overflow(i, j, &k);
    else if (op == OP_MUL) overflow = __builtin_mul_overflow(i, j, &k);
    else if (i == INT64_MIN) overflow = true;
    else if (op == OP_FLOORDIV) k = i / j - ((i % j != 0) && ((i % j < 0) != (j < 0)));
    else k = i % j + ((i % j != 0) && ((i % j < 0) != (j < 0)) ? j : 0);
    return overflow ? gr_j_fail(r, line, "a number grows too large") : J(J_INT, i, k);
}

static jvalue add_lists(run *r, int32_t line, jvalue a, jvalue b) {
    const jlist *l = gr_j_iterate(r, line, a), *m = gr_j_iterate(r, line, b);
    jvalue out = gr_j_new_list(r, (gr_jkind)a.kind, l->n + m->n);
    gr_j_items(out)->origin = l->origin;
    gr_j_extend(r, out, l);
    gr_j_extend(r, out, m);
    return out;
}

jvalue gr_j_binary(run *r, int32_t line, int op, jvalue a, jvalue b) {
    static const char *const signs[] = {
        [OP_ADD] = "+", [OP_SUB] = "-", [OP_MUL] = "*", [OP_DIV] = "/", [OP_FLOORDIV] = "//", [OP_MOD] = "%", [OP_POW] = "**"};
    double x, y;
    int64_t i, j;
    bool whole, both;
    if (!gr_j_ok(r)) return a;
    if (op == OP_ADD && a.kind == J_STRING && b.kind == J_STRING) {
        bool markup = gr_j_str(a)->markup || gr_j_str(b)->markup;
        jvalue parts[2] = {markup ? gr_j_escape(r, a) : a, markup ? gr_j_escape(r, b) : b};
        return gr_j_concat(r, parts, 2, markup);
    }
    if (gr_j_number(a, &x, &i, &whole) && gr_j_number(b, &y, &j, &both)) return arithmetic(r, line, op, x, y, i, j, whole && both);
    if (op == OP_ADD && gr_j_is_list(a) && a.kind == b.kind) return add_lists(r, line, a, b);
    if (op == OP_MOD && a.kind == J_STRING) return gr_j_format(r, line, a, b);
    if (op == OP_MUL && (a.kind == J_STRING || gr_j_is_list(a)) && b.kind == J_INT) return repeat(r, line, a, b.as.i);
    if (op == OP_MUL && (b.kind == J_STRING || gr_j_is_list(b)) && a.kind == J_INT) return repeat(r, line, b, a.as.i);
    if (a.kind == J_UNDEFINED) return gr_j_fail_undefined(r, line, a);
    if (b.kind == J_UNDEFINED) return gr_j_fail_undefined(r, line, b);
    return gr_j_fail(r, line, "%s %s %s is not possible", gr_j_type(a), signs[op], gr_j_type(b));
}

bool gr_j_compare(run *r, int32_t line, int op, jvalue a, jvalue b) {
    switch (op) {
    case OP_EQ: return gr_j_equal(a, b);
    case OP_NE: return !gr_j_equal(a, b);
    case OP_IN: return gr_j_contains(r, line, b, a);
    case OP_NOT_IN: return !gr_j_contains(r, line, b, a);
    default: {
        int order = gr_j_order(r, line, a, b);
        return op == OP_LT ? order < 0 : op == OP_LE ? order <= 0 : op == OP_GT ? order > 0 : order >= 0;
    }
    }
}
