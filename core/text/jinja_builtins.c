/* Arguments, methods of lists and mappings, tests and functions. Filters: jinja_filters.c. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/text/jinja_impl.h"

#pragma GCC diagnostic ignored "-Wunused-parameter" /* built-ins have one type, and not each needs all that it is given */

enum { MAX_RANGE = 100000 }; /* of jinja2's sandbox */

const jbuiltin *gr_j_find_builtin(const jbuiltin *rows, const char *name) {
    while (rows && rows->name && strcmp(rows->name, name) != 0) rows++;
    return rows && rows->name ? rows : NULL;
}

/* ---- arguments ---- */

const jvalue *gr_j_given(const jargs *args, int i, const char *name) {
    if (i >= 0 && i < args->n_positional) return &args->values[i];
    for (int k = args->n_positional; k < args->n; k++)
        if (name && strcmp(args->names[k], name) == 0) return &args->values[k];
    return NULL;
}

jvalue gr_j_arg(const jargs *args, int i, const char *name) {
    const jvalue *v = gr_j_given(args, i, name);
    return v ? *v : (jvalue){0};
}

bool gr_j_arg_bool(const jargs *args, int i, const char *name, bool otherwise) {
    const jvalue *v = gr_j_given(args, i, name);
    return v ? gr_j_truth(*v) : otherwise;
}

const jstr *gr_j_arg_string(run *r, const jargs *args, int i, const char *name) {
    const jvalue *v = gr_j_given(args, i, name);
    if (!v || v->kind == J_NONE) return NULL;
    if (v->kind != J_STRING) return gr_j_fail(r, args->line, "expected a string, not %s", gr_j_type(*v)), NULL;
    return gr_j_str(*v);
}

int64_t gr_j_arg_int(run *r, const jargs *args, int i, const char *name, int64_t otherwise) {
    const jvalue *v = gr_j_given(args, i, name);
    if (!v || v->kind == J_NONE) return otherwise;
    if (v->kind != J_INT && v->kind != J_BOOL)
        return gr_j_fail(r, args->line, "expected an integer, not %s", gr_j_type(*v)), otherwise;
    return v->as.i;
}

const char *gr_j_c_string(run *r, const jstr *s) {
    char *copy = gr_j_alloc(r, s->n + 1);
    if (!gr_j_ok(r)) return "";
    memcpy(copy, s->s, (size_t)s->n);
    copy[s->n] = '\0';
    return copy;
}

/* ---- methods ---- */

jvalue gr_j_dict_part(run *r, const jdict *d, int which) {
    jvalue list = gr_j_new_list(r, J_LIST, d->n);
    gr_j_items(list)->origin = d->origin;
    for (int64_t i = 0; i < d->n && gr_j_ok(r); i++) {
        jvalue both = which == DICT_ITEMS ? gr_j_new_list(r, J_TUPLE, 2) : (jvalue){0};
        if (which == DICT_ITEMS) gr_j_push(r, both, d->keys[i]), gr_j_push(r, both, d->values[i]);
        gr_j_push(r, list, which == DICT_KEYS ? d->keys[i] : which == DICT_VALUES ? d->values[i] : both);
    }
    return list;
}

static jvalue dict_part(run *r, jvalue v, const jargs *args, int which) { return gr_j_dict_part(r, gr_j_dict(v), which); }

static jvalue dict_get(run *r, jvalue v, const jargs *args, int how) {
    if (args->n < 1) return gr_j_fail(r, args->line, "get needs a key");
    const jvalue *found = gr_j_get(gr_j_dict(v), args->values[0]);
    return found ? *found : args->n > 1 ? args->values[1] : (jvalue){.kind = J_NONE};
}

jvalue gr_j_itself(run *r, jvalue v, const jargs *args, int how) { return v; }

static jvalue list_find(run *r, jvalue v, const jargs *args, int all) { /* count, or index of the first */
    const jlist *l = gr_j_items(v);
    int64_t n = 0;
    if (args->n < 1) return gr_j_fail(r, args->line, "expected an argument");
    for (int64_t i = 0; i < l->n; i++) {
        if (!gr_j_equal(l->items[i], args->values[0])) continue;
        if (!all) return J(J_INT, i, i);
        n++;
    }
    return all ? J(J_INT, i, n) : gr_j_fail(r, args->line, "the value is not in the list");
}

static jvalue list_copy(run *r, jvalue v, const jargs *args, int how) {
    return gr_j_binary(r, args->line, OP_ADD, v, gr_j_new_list(r, J_LIST, 1));
}

/* A copy of a dict is itself: nothing changes one. Methods with no function are Python's, not this interpreter's: those that change
 * their object fail in jinja2's sandbox, too. */
static const jbuiltin dict_methods[] = {{"items", dict_part, DICT_ITEMS},
                                        {"keys", dict_part, DICT_KEYS},
                                        {"values", dict_part, DICT_VALUES},
                                        {"get", dict_get, 0},
                                        {"copy", gr_j_itself, 0},
                                        {"update", NULL, 0},
                                        {"pop", NULL, 0},
                                        {"clear", NULL, 0},
                                        {"setdefault", NULL, 0},
                                        {"popitem", NULL, 0},
                                        {"fromkeys", NULL, 0},
                                        {NULL, NULL, 0}};
static const jbuiltin list_methods[] = {
    {"index", list_find, false}, {"count", list_find, true}, {"copy", list_copy, 0}, {"append", NULL, 0},
    {"extend", NULL, 0},         {"insert", NULL, 0},        {"pop", NULL, 0},       {"remove", NULL, 0},
    {"reverse", NULL, 0},        {"sort", NULL, 0},          {"clear", NULL, 0},     {NULL, NULL, 0}};
static const jbuiltin tuple_methods[] = {{"index", list_find, false}, {"count", list_find, true}, {NULL, NULL, 0}};

static const jbuiltin *find_method(jvalue object, const char *name) {
    static const jbuiltin *const methods[] = {[J_STRING] = gr_j_text_methods,
                                              [J_LIST] = list_methods,
                                              [J_TUPLE] = tuple_methods,
                                              [J_DICT] = dict_methods,
                                              [J_LOOP] = NULL};
    return gr_j_find_builtin(methods[object.kind], name);
}

bool gr_j_has_method(jvalue object, const char *name) { return find_method(object, name) != NULL; }

jvalue gr_j_method(run *r, jvalue object, const char *name, const jargs *args) {
    const jbuiltin *m = find_method(object, name);
    if (m && m->call) return m->call(r, object, args, m->how);
    return gr_j_fail(r, args->line, "the method \"%s\" of %s is not supported", name, gr_j_type(object));
}

/* ---- tests ---- */

#define KIND(k) (1 << J_##k)
enum { MANY = KIND(STRING) | KIND(LIST) | KIND(TUPLE) | KIND(DICT) | KIND(UNDEFINED) };

static jvalue is_kind(run *r, jvalue v, const jargs *args, int kinds) { return gr_jinja_bool(kinds >> v.kind & 1); }

static jvalue is_sequence(run *r, jvalue v, const jargs *args, int how) {
    return gr_jinja_bool((MANY >> v.kind & 1) && !(v.kind == J_LIST && gr_j_items(v)->lazy));
}

static jvalue is_bool(run *r, jvalue v, const jargs *args, int value) {
    return gr_jinja_bool(v.kind == J_BOOL && (v.as.i != 0) == value);
}

static jvalue is_multiple(run *r, jvalue v, const jargs *args, int how) { /* how: rest of 2, or -1: of the argument */
    int64_t by = how < 0 ? gr_j_arg_int(r, args, 0, "num", 0) : 2;
    if ((v.kind != J_INT && v.kind != J_BOOL) || by == 0) return gr_j_fail(r, args->line, "this test needs integers");
    return gr_jinja_bool((v.as.i % by != 0) == (how == 1));
}

static jvalue is_case(run *r, jvalue v, const jargs *args, int class) {
    return v.kind == J_STRING ? gr_js_all_are(r, v, args, class) : gr_jinja_bool(false);
}

static jvalue is_same(run *r, jvalue v, const jargs *args, int how) {
    if (args->n != 1) return gr_j_fail(r, args->line, "this test needs one argument");
    jvalue other = args->values[0];
    return gr_jinja_bool(v.kind == other.kind && (v.kind == J_NONE || v.as.i == other.as.i));
}

static jvalue is_compared(run *r, jvalue v, const jargs *args, int op) {
    if (args->n != 1) return gr_j_fail(r, args->line, "this test needs one argument");
    return gr_jinja_bool(gr_j_compare(r, args->line, op, v, args->values[0]));
}

static const jbuiltin tests[] = {{"defined", is_kind, ~KIND(UNDEFINED)},
                                 {"undefined", is_kind, KIND(UNDEFINED)},
                                 {"none", is_kind, KIND(NONE)},
                                 {"string", is_kind, KIND(STRING)},
                                 {"number", is_kind, KIND(INT) | KIND(FLOAT) | KIND(BOOL)},
                                 {"integer", is_kind, KIND(INT)},
                                 {"float", is_kind, KIND(FLOAT)},
                                 {"boolean", is_kind, KIND(BOOL)},
                                 {"mapping", is_kind, KIND(DICT)},
                                 {"iterable", is_kind, MANY | KIND(LOOP)},
                                 {"sequence", is_sequence, 0},
                                 {"callable", is_kind, KIND(MACRO) | KIND(FUNCTION) | KIND(METHOD)},
                                 {"true", is_bool, true},
                                 {"false", is_bool, false},
                                 {"odd", is_multiple, 1},
                                 {"even", is_multiple, 0},
                                 {"divisibleby", is_multiple, -1},
                                 {"upper", is_case, CLASS_UPPER},
                                 {"lower", is_case, CLASS_LOWER},
                                 {"sameas", is_same, 0},
                                 {"in", is_compared, OP_IN},
                                 {"eq", is_compared, OP_EQ},
                                 {"equalto", is_compared, OP_EQ},
                                 {"==", is_compared, OP_EQ},
                                 {"ne", is_compared, OP_NE},
                                 {"!=", is_compared, OP_NE},
                                 {"lt", is_compared, OP_LT},
                                 {"lessthan", is_compared, OP_LT},
                                 {"<", is_compared, OP_LT},
                                 {"le", is_compared, OP_LE},
                                 {"<=", is_compared, OP_LE},
                                 {"gt", is_compared, OP_GT},
                                 {"greaterthan", is_compared, OP_GT},
                                 {">", is_compared, OP_GT},
                                 {"ge", is_compared, OP_GE},
                                 {">=", is_compared, OP_GE},
                                 {NULL, NULL, 0}};

bool gr_j_test(run *r, const char *name, jvalue v, const jargs *args) {
    const jbuiltin *test = gr_j_find_builtin(tests, name);
    return gr_j_truth(test ? test->call(r, v, args, test->how)
                           : gr_j_fail(r, args->line, "the test \"%s\" is not supported", name));
}

/* ---- functions ---- */

static jvalue range(run *r, jvalue v, const jargs *args, int how) {
    int64_t a = gr_j_arg_int(r, args, 0, NULL, 0), from = args->n > 1 ? a : 0;
    int64_t to = args->n > 1 ? gr_j_arg_int(r, args, 1, NULL, 0) : a;
    int64_t step = gr_j_arg_int(r, args, 2, NULL, 1);
    if (args->n < 1 || step == 0) return gr_j_fail(r, args->line, "range needs a bound, and a step other than 0");
    jvalue list = gr_j_new_list(r, J_LIST, 4);
    for (int64_t i = from, n = 0; gr_j_ok(r) && (step > 0 ? i < to : i > to); i += step, n++) {
        if (n >= MAX_RANGE) return gr_j_fail(r, args->line, "range has more than %d values", MAX_RANGE);
        gr_j_push(r, list, J(J_INT, i, i));
    }
    return list;
}

static jvalue new_dict(run *r, jvalue v, const jargs *args, int kind) { /* namespace(...), dict(...) */
    jvalue out = gr_j_new_dict(r, (gr_jkind)kind, args->n);
    for (int i = 0; i < args->n && gr_j_ok(r); i++) {
        if (args->names[i]) {
            gr_j_put(r, out, gr_j_text(r, args->names[i], (int64_t)strlen(args->names[i]), 0), args->values[i]);
        } else if (args->values[i].kind == J_DICT) {
            const jdict *d = gr_j_dict(args->values[i]);
            for (int64_t k = 0; k < d->n; k++) gr_j_put(r, out, d->keys[k], d->values[k]);
        } else {
            gr_j_fail(r, args->line, "expected a mapping or named values");
        }
    }
    return out;
}

static jvalue strftime_now(run *r, jvalue v, const jargs *args, int how) {
    const jstr *format = gr_j_arg_string(r, args, 0, "format");
    char text[400];
    struct tm parts;
    time_t now = (time_t)r->now;
    if (!format || format->n > 200) return gr_j_fail(r, args->line, "strftime_now needs a format");
    if (!(r->utc ? gmtime_r(&now, &parts) : localtime_r(&now, &parts))) return gr_j_fail(r, args->line, "no time");
    size_t n = strftime(text, sizeof text, gr_j_c_string(r, format), &parts);
    jbuild b = {0};
    gr_jb_add(r, &b, text, (int64_t)n, 0);
    return gr_jb_take(r, &b, false);
}

static jvalue raise_exception(run *r, jvalue v, const jargs *args, int how) {
    jvalue message = gr_j_to_string(r, gr_j_arg(args, 0, "message"));
    if (!gr_j_ok(r)) return message;
    r->raised = true;
    return gr_j_fail(r, args->line, "refuses: %.300s", gr_j_c_string(r, gr_j_str(message)));
}

static const jbuiltin functions[] = {{"raise_exception", raise_exception, 0},
                                     {"namespace", new_dict, J_NAMESPACE},
                                     {"dict", new_dict, J_DICT},
                                     {"range", range, 0},
                                     {"strftime_now", strftime_now, 0},
                                     {NULL, NULL, 0}};

bool gr_j_is_function(const char *name) { return gr_j_find_builtin(functions, name) != NULL; }

jvalue gr_j_function(run *r, const char *name, const jargs *args) {
    const jbuiltin *f = gr_j_find_builtin(functions, name);
    return f->call(r, (jvalue){0}, args, f->how);
}
