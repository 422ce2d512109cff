/* Running a template's tree: statements write to the output, expressions give values. */
#include <stdlib.h>
#include <string.h>

#include "core/text/jinja_impl.h"

enum { MAX_CALLS = 100, FLOW_BREAK = 1, FLOW_CONTINUE = 2 };

static void execute(run *r, jnode *const *nodes, int32_t n);

/* ---- variables ---- */

static jvalue *find(jscope *s, int32_t name) {
    for (; s; s = s->parent)
        for (int32_t i = s->n - 1; i >= 0; i--)
            if (s->variables[i].name == name) return &s->variables[i].value;
    return NULL;
}

static void define(run *r, jscope *s, int32_t name, jvalue value) {
    for (int32_t i = 0; i < s->n; i++) {
        if (s->variables[i].name != name) continue;
        s->variables[i].value = value;
        return;
    }
    if (s->n == s->capacity) {
        int32_t capacity = GR_MAX(8, 2 * s->capacity);
        struct jvariable *more = gr_j_alloc(r, capacity * (int64_t)sizeof *more);
        if (!gr_j_ok(r)) return;
        if (s->n) memcpy(more, s->variables, (size_t)s->n * sizeof *more);
        s->variables = more;
        s->capacity = capacity;
    }
    s->variables[s->n++] = (struct jvariable){name, value};
}

static void define_text(run *r, jscope *s, const char *name, jvalue value) {
    int32_t id = gr_j_find_name(r->t, name);
    if (id >= 0) define(r, s, id, value);
}

/* A scope in the run's memory: a macro may keep it. */
static jscope *new_scope(run *r, jscope *parent) {
    jscope *s = gr_j_alloc(r, sizeof *s);
    *s = (jscope){.parent = parent};
    return s;
}

/* Give value to a name, an attribute of a namespace or a tuple of names. */
static void assign(run *r, jscope *s, const jnode *target, jvalue value) {
    if (target->kind == N_NAME) {
        define(r, s, target->name, value);
    } else if (target->kind == N_ATTR) {
        jvalue object = gr_j_eval(r, target->a);
        if (object.kind != J_NAMESPACE) {
            gr_j_fail(r, target->line, "only an attribute of a namespace can be set");
            return;
        }
        const char *name = r->t->names[target->name];
        gr_j_put(r, object, gr_j_text(r, name, (int64_t)strlen(name), 0), value);
    } else {
        const jlist *items = gr_j_iterate(r, target->line, value);
        if (!gr_j_ok(r)) return;
        if (items->n != target->n) {
            gr_j_fail(r, target->line, "%lld values for %d names", (long long)items->n, target->n);
            return;
        }
        for (int32_t i = 0; i < target->n; i++) assign(r, s, target->items[i], items->items[i]);
    }
}

/* ---- expressions ---- */

/* A bound of a slice as Python clips it. */
static int64_t bound(run *r, const jnode *e, int64_t none, int64_t n, int64_t low, int64_t high) {
    jvalue v = e ? gr_j_eval(r, e) : (jvalue){.kind = J_NONE};
    if (v.kind == J_NONE) return none;
    if (v.kind != J_INT && v.kind != J_BOOL) return gr_j_fail(r, e->line, "a slice needs integers, not %s", gr_j_type(v)), 0;
    int64_t i = v.as.i + (v.as.i < 0 ? n : 0);
    return GR_MIN(GR_MAX(i, low), high);
}

static jvalue slice(run *r, const jnode *e) {
    jvalue object = gr_j_eval(r, e->a);
    if (!gr_j_ok(r)) return object;
    if (object.kind == J_UNDEFINED) return gr_j_fail_undefined(r, e->line, object);
    bool text = object.kind == J_STRING;
    if (!text && (!gr_j_is_list(object) || gr_j_items(object)->lazy))
        return gr_j_fail(r, e->line, "%s has no slices", gr_j_type(object));
    int64_t n = gr_j_length(r, e->line, object);
    jvalue by = e->d ? gr_j_eval(r, e->d) : J(J_INT, i, 1);
    int64_t step = by.kind == J_NONE ? 1 : by.as.i;
    if ((by.kind != J_INT && by.kind != J_NONE) || step == 0 || step < -INT32_MAX || step > INT32_MAX)
        return gr_j_fail(r, e->line, "a slice's step must be an integer other than 0");
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? n - 1 : n;
    int64_t from = bound(r, e->b, step < 0 ? n - 1 : 0, n, low, high), to = bound(r, e->c, step < 0 ? -1 : n, n, low, high);
    if (!gr_j_ok(r)) return (jvalue){0};
    if (text && step == 1)
        return gr_j_slice(r, object, gr_j_offset(gr_j_str(object), from), gr_j_offset(gr_j_str(object), GR_MAX(from, to)));
    const jlist *items = gr_j_iterate(r, e->line, object); /* of a string: its characters */
    jvalue list = gr_j_new_list(r, text ? J_LIST : (gr_jkind)object.kind, 4);
    gr_j_items(list)->origin = items->origin;
    for (int64_t i = from; step > 0 ? i < to : i > to; i += step) gr_j_push(r, list, items->items[i]);
    if (!gr_j_ok(r) || !text) return list;
    return gr_j_concat(r, gr_j_items(list)->items, (int)gr_j_items(list)->n, gr_j_str(object)->markup);
}

/* ---- calls ---- */

static bool evaluate_args(run *r, const jargs_node *from, jargs *args, int32_t line) {
    *args = (jargs){.line = line};
    if (from->n == 0) return true;
    jvalue all = gr_j_new_list(r, J_LIST, from->n);
    for (int i = 0; i < from->n && gr_j_ok(r); i++) {
        jvalue v = gr_j_eval(r, from->values[i]);
        if (from->names[i] == ARG_SPREAD) gr_j_extend(r, all, gr_j_iterate(r, line, v));
        else gr_j_push(r, all, v);
    }
    int n = gr_j_ok(r) ? (int)gr_j_items(all)->n : 0, named = 0;
    args->names = gr_j_alloc(r, (n + 1) * (int64_t)sizeof *args->names);
    if (!gr_j_ok(r)) return false;
    for (int i = 0; i < from->n; i++) named += from->names[i] >= 0;
    for (int i = 0; i < n; i++) args->names[i] = i < n - named ? NULL : r->t->names[from->names[from->n - n + i]];
    args->values = gr_j_items(all)->items;
    args->n = n;
    args->n_positional = n - named;
    return true;
}

/* Run a body into a string. */
static jvalue capture(run *r, jnode *const *nodes, int32_t n) {
    jbuild text = {0}, *was = r->out;
    text.generation = was->generation;
    r->out = &text;
    execute(r, nodes, n);
    r->out = was;
    return gr_jb_take(r, &text, false);
}

static jvalue call_macro(run *r, const jmacro *m, const jargs *args) {
    const jargs_node *p = &m->node->args;
    const char *title = m->node->name >= 0 ? r->t->names[m->node->name] : "caller";
    jscope *inner = new_scope(r, m->scope), *was = r->scope;
    jloop *loop = r->loop;
    if (++r->depth > MAX_CALLS) gr_j_fail(r, args->line, "macro %s calls itself too often", title);
    if (args->n_positional > p->n) gr_j_fail(r, args->line, "macro %s takes %d arguments, not %d", title, p->n, args->n_positional);
    for (int i = 0; i < args->n && gr_j_ok(r); i++) {
        bool known = !args->names[i] || strcmp(args->names[i], "caller") == 0;
        for (int k = 0; k < p->n; k++) known = known || strcmp(args->names[i], r->t->names[p->names[k]]) == 0;
        if (!known) gr_j_fail(r, args->line, "macro %s has no argument \"%.60s\"", title, args->names[i]);
    }
    r->scope = inner;
    for (int i = 0; i < p->n && gr_j_ok(r); i++) {
        const char *name = r->t->names[p->names[i]];
        const jvalue *given = gr_j_given(args, i, name);
        define(r, inner, p->names[i], given ? *given : p->values[i] ? gr_j_eval(r, p->values[i]) : gr_j_undefined(name));
    }
    define_text(r, inner, "caller", gr_j_arg(args, -1, "caller"));
    jvalue text = gr_j_ok(r) ? capture(r, m->node->items, m->node->n) : (jvalue){0};
    r->scope = was;
    r->loop = loop;
    r->depth--;
    return text;
}

static jvalue loop_method(run *r, jmethod *m, const jargs *args) {
    jloop *loop = (jloop *)(uintptr_t)m->self.as.p;
    if (strcmp(m->name, "cycle") == 0)
        return args->n_positional ? args->values[loop->index % args->n_positional]
                                  : gr_j_fail(r, args->line, "loop.cycle needs values");
    jvalue now = gr_j_new_list(r, J_TUPLE, args->n);
    for (int i = 0; i < args->n_positional; i++) gr_j_push(r, now, args->values[i]);
    bool changed = !loop->has_changed || !gr_j_equal(loop->changed, now);
    loop->changed = now;
    loop->has_changed = true;
    return J(J_BOOL, i, changed);
}

static jvalue call_value(run *r, jvalue f, const jargs *args) {
    if (!gr_j_ok(r)) return (jvalue){0};
    if (f.kind == J_MACRO) return call_macro(r, f.as.p, args);
    if (f.kind == J_FUNCTION) return gr_j_function(r, f.as.p, args);
    if (f.kind == J_METHOD) {
        jmethod *m = (jmethod *)(uintptr_t)f.as.p;
        return m->self.kind == J_LOOP ? loop_method(r, m, args) : gr_j_method(r, m->self, m->name, args);
    }
    if (f.kind == J_UNDEFINED) return gr_j_fail_undefined(r, args->line, f);
    return gr_j_fail(r, args->line, "%s cannot be called", gr_j_type(f));
}

static jvalue call(run *r, const jnode *e) {
    jargs args;
    if (e->a->kind == N_ATTR) { /* a method needs no value of its own */
        jvalue object = gr_j_eval(r, e->a->a);
        const char *name = r->t->names[e->a->name];
        if (!gr_j_ok(r)) return object;
        if (object.kind != J_LOOP && object.kind != J_NAMESPACE && object.kind != J_UNDEFINED && gr_j_has_method(object, name))
            return evaluate_args(r, &e->args, &args, e->line) ? gr_j_method(r, object, name, &args) : object;
        jvalue f = gr_j_attribute(r, e->line, object, name);
        if (f.kind == J_UNDEFINED && gr_j_ok(r))
            return gr_j_fail(r, e->line, "%s has no method \"%s\" here", gr_j_type(object), name);
        return evaluate_args(r, &e->args, &args, e->line) ? call_value(r, f, &args) : f;
    }
    jvalue f = gr_j_eval(r, e->a);
    return gr_j_ok(r) && evaluate_args(r, &e->args, &args, e->line) ? call_value(r, f, &args) : (jvalue){0};
}

/* a + b + c of strings alone is one string, made once. */
static jvalue sum(run *r, const jnode *e) {
    enum { MOST = 64 };
    const jnode *parts[MOST], *left = e;
    jvalue values[MOST];
    int n = 0;
    while (n < MOST - 1 && left->kind == N_BINARY && left->op == OP_ADD) parts[n++] = left, left = left->a;
    jvalue total = gr_j_eval(r, left);
    for (int i = 0; i < n && gr_j_ok(r);) {
        int k = 0;
        for (; i + k < n && gr_j_ok(r); k++) {
            values[k + 1] = gr_j_eval(r, parts[n - 1 - i - k]->b);
            if (values[k + 1].kind != J_STRING || gr_j_str(values[k + 1])->markup) break;
        }
        bool strings = gr_j_ok(r) && total.kind == J_STRING && !gr_j_str(total)->markup;
        if (strings && k > 0) {
            values[0] = total;
            total = gr_j_concat(r, values, k + 1, false);
        } else {
            for (int m = 0; m < k; m++) total = gr_j_binary(r, parts[n - 1 - i - m]->line, OP_ADD, total, values[m + 1]);
        }
        i += k;
        if (i < n && gr_j_ok(r)) total = gr_j_binary(r, parts[n - 1 - i]->line, OP_ADD, total, values[k + 1]), i++;
    }
    return total;
}

static jvalue comparison(run *r, const jnode *e) {
    jvalue left = gr_j_eval(r, e->a);
    bool all = true;
    for (int32_t i = 0; i < e->n && all && gr_j_ok(r); i++) {
        jvalue right = gr_j_eval(r, e->items[i]->b);
        all = gr_j_ok(r) && gr_j_compare(r, e->line, e->items[i]->op, left, right);
        left = right;
    }
    return J(J_BOOL, i, all);
}

static jvalue display(run *r, const jnode *e) {
    if (e->kind == N_DICT) {
        jvalue dict = gr_j_new_dict(r, J_DICT, e->n / 2);
        for (int32_t i = 0; i + 1 < e->n && gr_j_ok(r); i += 2) {
            jvalue key = gr_j_eval(r, e->items[i]);
            gr_j_put(r, dict, key, gr_j_eval(r, e->items[i + 1]));
        }
        return dict;
    }
    jvalue list = gr_j_new_list(r, e->kind == N_LIST ? J_LIST : J_TUPLE, e->n);
    for (int32_t i = 0; i < e->n && gr_j_ok(r); i++) gr_j_push(r, list, gr_j_eval(r, e->items[i]));
    return list;
}

static jvalue concat(run *r, const jnode *e) {
    jbuild b = {0};
    for (int32_t i = 0; i < e->n && gr_j_ok(r); i++) gr_jb_str(r, &b, gr_j_eval(r, e->items[i]));
    return gr_jb_take(r, &b, false);
}

static jvalue negative(run *r, const jnode *e) {
    jvalue v = gr_j_eval(r, e->a);
    if (!gr_j_ok(r)) return v;
    if (v.kind == J_FLOAT) return J(J_FLOAT, f, e->kind == N_NEGATIVE ? -v.as.f : v.as.f);
    if (v.kind == J_INT || v.kind == J_BOOL) return J(J_INT, i, e->kind == N_NEGATIVE ? -v.as.i : v.as.i);
    return v.kind == J_UNDEFINED ? gr_j_fail_undefined(r, e->line, v) : gr_j_fail(r, e->line, "%s has no sign", gr_j_type(v));
}

static jvalue name(run *r, const jnode *e) {
    jvalue *v = find(r->scope, e->name);
    const char *text = r->t->names[e->name];
    if (v) return *v;
    return gr_j_is_function(text) ? J(J_FUNCTION, p, text) : gr_j_undefined(text);
}

/* input: what a block of {% filter %} holds, for a chain whose first filter has no operand. */
static jvalue filtered(run *r, const jnode *e, const jvalue *input) {
    jvalue v = !e->a ? *input : e->a->kind == N_FILTER ? filtered(r, e->a, input) : gr_j_eval(r, e->a);
    jargs args;
    if (!gr_j_ok(r) || !evaluate_args(r, &e->args, &args, e->line)) return v;
    return gr_j_filter(r, r->t->names[e->name], v, &args);
}

static jvalue tested(run *r, const jnode *e) {
    jvalue v = gr_j_eval(r, e->a);
    jargs args;
    if (!gr_j_ok(r) || !evaluate_args(r, &e->args, &args, e->line)) return v;
    return J(J_BOOL, i, gr_j_test(r, r->t->names[e->name], v, &args) != e->op);
}

static jvalue evaluate(run *r, const jnode *e) {
    jvalue v;
    switch (e->kind) {
    case N_CONST: return e->value;
    case N_NAME: return name(r, e);
    case N_ATTR: v = gr_j_eval(r, e->a); return gr_j_ok(r) ? gr_j_attribute(r, e->line, v, r->t->names[e->name]) : v;
    case N_ITEM: v = gr_j_eval(r, e->a); return gr_j_ok(r) ? gr_j_item(r, e->line, v, gr_j_eval(r, e->b)) : v;
    case N_SLICE: return slice(r, e);
    case N_CALL: return call(r, e);
    case N_FILTER: return filtered(r, e, NULL);
    case N_TEST: return tested(r, e);
    case N_NOT: return J(J_BOOL, i, !gr_j_truth(gr_j_eval(r, e->a)));
    case N_NEGATIVE:
    case N_POSITIVE: return negative(r, e);
    case N_BINARY:
        if (e->op == OP_ADD) return sum(r, e);
        v = gr_j_eval(r, e->a);
        return gr_j_binary(r, e->line, e->op, v, gr_j_eval(r, e->b));
    case N_CONCAT: return concat(r, e);
    case N_AND: v = gr_j_eval(r, e->a); return gr_j_truth(v) ? gr_j_eval(r, e->b) : v;
    case N_OR: v = gr_j_eval(r, e->a); return gr_j_truth(v) ? v : gr_j_eval(r, e->b);
    case N_COMPARE: return comparison(r, e);
    case N_COND:
        if (gr_j_truth(gr_j_eval(r, e->b))) return gr_j_eval(r, e->a);
        return e->c ? gr_j_eval(r, e->c) : gr_j_undefined("the missing else of an if");
    default: return display(r, e);
    }
}

jvalue gr_j_eval(run *r, const jnode *e) {
    if (!gr_j_ok(r)) return (jvalue){0};
    if (++r->steps > GR_J_MAX_STEPS) return gr_j_fail(r, e->line, "takes more than %d steps", GR_J_MAX_STEPS);
    return evaluate(r, e);
}

/* ---- statements ---- */

static void for_loop(run *r, const jnode *e) {
    jvalue source = gr_j_eval(r, e->b);
    if (!gr_j_ok(r)) return;
    const jlist *items = gr_j_iterate(r, e->line, source);
    jscope *inner = new_scope(r, r->scope), *was = r->scope;
    jloop *loop = gr_j_alloc(r, sizeof *loop), *outer = r->loop;
    r->scope = inner;
    if (e->c && gr_j_ok(r)) { /* the loop counts what passes the filter */
        jvalue passed = gr_j_new_list(r, J_LIST, items->n);
        for (int64_t i = 0; i < items->n && gr_j_ok(r); i++) {
            assign(r, inner, e->a, items->items[i]);
            if (gr_j_truth(gr_j_eval(r, e->c))) gr_j_push(r, passed, items->items[i]);
        }
        items = gr_j_items(passed);
    }
    *loop = (jloop){.items = items};
    r->loop = loop;
    bool whole = false; /* jinja2's else comes when no round ran to its end: after `continue` in each, too */
    for (int64_t i = 0; i < items->n && gr_j_ok(r) && r->flow != FLOW_BREAK; i++) {
        inner->n = 0;
        loop->index = i;
        define_text(r, inner, "loop", J(J_LOOP, p, loop));
        assign(r, inner, e->a, items->items[i]);
        r->flow = 0;
        execute(r, e->items, e->n);
        whole |= !r->flow;
    }
    r->flow = 0;
    r->scope = was;
    r->loop = outer;
    if (!whole && gr_j_ok(r)) execute(r, e->other, e->n_other);
}

/* A body with a scope of its own. */
static jvalue scoped_capture(run *r, const jnode *e) {
    jscope *was = r->scope;
    r->scope = new_scope(r, was);
    jvalue text = capture(r, e->items, e->n);
    r->scope = was;
    return text;
}

static void with_block(run *r, const jnode *e) {
    jscope *inner = new_scope(r, r->scope), *was = r->scope;
    for (int32_t i = 0; i < e->n_other && gr_j_ok(r); i++) assign(r, inner, e->other[i], gr_j_eval(r, e->args.values[i]));
    r->scope = inner;
    execute(r, e->items, e->n);
    r->scope = was;
}

static void generation(run *r, const jnode *e) {
    jscope *was = r->scope;
    int32_t before = r->out->generation;
    r->scope = new_scope(r, was);
    r->out->generation = GR_JINJA_GENERATION;
    execute(r, e->items, e->n);
    r->out->generation = before;
    r->scope = was;
}

static jvalue macro_of(run *r, const jnode *e) {
    jmacro *m = gr_j_alloc(r, sizeof *m);
    *m = (jmacro){.node = e, .scope = r->scope};
    return J(J_MACRO, p, m);
}

static void call_block(run *r, const jnode *e) {
    jargs args, more;
    jvalue f = gr_j_eval(r, e->a->a);
    if (!gr_j_ok(r) || !evaluate_args(r, &e->a->args, &args, e->line)) return;
    more = args;
    more.n = args.n + 1;
    more.values = gr_j_alloc(r, more.n * (int64_t)sizeof *more.values);
    more.names = gr_j_alloc(r, more.n * (int64_t)sizeof *more.names);
    if (!gr_j_ok(r)) return;
    for (int i = 0; i < args.n; i++) more.values[i] = args.values[i], more.names[i] = args.names[i];
    more.values[args.n] = macro_of(r, e);
    more.names[args.n] = "caller";
    gr_jb_str(r, r->out, call_value(r, f, &more));
}

static void execute_one(run *r, const jnode *e) {
    jvalue v;
    switch (e->kind) {
    case N_TEXT: gr_jb_add(r, r->out, gr_j_str(e->value)->s, gr_j_str(e->value)->n, 0); break;
    case N_OUTPUT:
        v = gr_j_eval(r, e->a);
        if (gr_j_ok(r)) gr_jb_str(r, r->out, v);
        break;
    case N_IF:
        v = gr_j_eval(r, e->a);
        if (gr_j_truth(v)) execute(r, e->items, e->n);
        else execute(r, e->other, e->n_other);
        break;
    case N_FOR: for_loop(r, e); break;
    case N_SET:
        v = gr_j_eval(r, e->b);
        if (gr_j_ok(r)) assign(r, r->scope, e->a, v);
        break;
    case N_SET_BLOCK:
        v = scoped_capture(r, e);
        if (e->b && gr_j_ok(r)) v = filtered(r, e->b, &v);
        if (gr_j_ok(r)) assign(r, r->scope, e->a, v);
        break;
    case N_MACRO: define(r, r->scope, e->name, macro_of(r, e)); break;
    case N_CALL_BLOCK: call_block(r, e); break;
    case N_FILTER_BLOCK:
        v = scoped_capture(r, e);
        if (gr_j_ok(r)) v = filtered(r, e->a, &v);
        if (gr_j_ok(r)) gr_jb_str(r, r->out, v);
        break;
    case N_WITH: with_block(r, e); break;
    case N_GENERATION: generation(r, e); break;
    case N_BREAK:
    case N_CONTINUE:
        if (!r->loop) gr_j_fail(r, e->line, "break and continue need a loop");
        r->flow = e->kind == N_BREAK ? FLOW_BREAK : FLOW_CONTINUE;
        break;
    default: break;
    }
}

static void execute(run *r, jnode *const *nodes, int32_t n) {
    if (++r->depth > 2 * MAX_CALLS) gr_j_fail(r, n ? nodes[0]->line : 0, "blocks are nested too deeply");
    for (int32_t i = 0; i < n && gr_j_ok(r) && !r->flow; i++) {
        if (++r->steps > GR_J_MAX_STEPS) gr_j_fail(r, nodes[i]->line, "takes more than %d steps", GR_J_MAX_STEPS);
        execute_one(r, nodes[i]);
    }
    r->depth--;
}

/* ---- a run ---- */

gr_jinja_run *gr_jinja_run_new(const gr_jinja *t) {
    run *r = gr_calloc(1, sizeof *r);
    if (r) r->t = t;
    return r;
}

void gr_jinja_run_free(gr_jinja_run *r) {
    if (!r) return;
    for (jchunk *c = r->chunks, *next; c; c = next) next = c->next, free(c);
    gr_jb_release(&r->output);
    free(r);
}

void gr_jinja_begin(gr_jinja_run *r, int64_t now, bool utc) {
    r->chunk = NULL; /* the first allocation takes the first chunk */
    r->chunk_used = r->allocated = 0;
    r->globals = (jscope){0};
    r->now = now;
    r->utc = utc;
    r->st = GRAFT_OK;
    r->err = NULL;
}

void gr_jinja_set(gr_jinja_run *r, const char *variable, jvalue value) { define_text(r, &r->globals, variable, value); }

graft_status gr_jinja_render(gr_jinja_run *r, const char **text, int64_t *len, const gr_jinja_span **spans, int64_t *n_spans,
                             bool *raised, graft_error *err) {
    r->err = err;
    r->scope = new_scope(r, &r->globals);
    r->out = &r->output;
    r->output.n = r->output.n_spans = 0;
    r->output.generation = 0;
    r->steps = r->depth = r->flow = 0;
    r->loop = NULL;
    r->raised = false;
    if (r->st != GRAFT_OK) return gr_fail(err, r->st, "chat template %s: the values given to it are too large", r->t->title);
    execute(r, r->t->body, r->t->n_body);
    gr_jb_add(r, &r->output, "", 0, 0);
    *text = r->output.n ? r->output.s : "";
    *len = r->output.n;
    *spans = r->output.spans;
    *n_spans = r->output.n_spans;
    if (raised) *raised = r->raised;
    return r->st;
}
