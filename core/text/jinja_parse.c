/* A template's text to its tree: statements, and what opens and frees a template. */
#include <stdlib.h>
#include <string.h>

#include "core/text/jinja_impl.h"

enum { MAX_SOURCE = 1 << 22 };

static void end_tag(parser *p) {
    if (gr_jp_peek(p)->kind == T_BLOCK_END) p->next++;
    else gr_jp_unexpected(p, "%}");
}

static jnode **body(parser *p, int32_t *n, const char *const *ends);

/* A body up to the one end tag, which is read with its "%}". */
static void body_to(parser *p, jnode *e, const char *end) {
    const char *const ends[] = {end, NULL};
    end_tag(p);
    e->items = body(p, &e->n, ends);
    gr_jp_expect(p, T_NAME, end);
    if (gr_jp_peek(p)->kind == T_NAME) p->next++; /* {% endmacro name %} */
    end_tag(p);
}

static jnode *if_statement(parser *p) { /* after "if" or "elif" */
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif", NULL};
    jnode *e = gr_jp_node(p, N_IF);
    if (++p->depth > MAX_NESTING) gr_jp_fail(p, e->line, "nested too deeply");
    e->a = gr_jp_expression_or_tuple(p);
    end_tag(p);
    e->items = body(p, &e->n, ends);
    if (p->st == GRAFT_OK && gr_jp_accept(p, T_NAME, "elif")) {
        node_list l = {0};
        gr_jp_nodes_add(p, &l, if_statement(p));
        e->other = gr_jp_nodes_take(p, &l, &e->n_other);
    } else if (gr_jp_accept(p, T_NAME, "else")) {
        end_tag(p);
        e->other = body(p, &e->n_other, last);
        gr_jp_expect(p, T_NAME, "endif");
        end_tag(p);
    } else {
        gr_jp_expect(p, T_NAME, "endif");
        end_tag(p);
    }
    p->depth--;
    return e;
}

/* A name, an attribute of one (of a namespace), or a tuple of names. */
static jnode *target(parser *p) {
    node_list l = {0};
    jnode *e = NULL;
    bool bracket = gr_jp_accept(p, T_OP, "(");
    while (p->st == GRAFT_OK) {
        e = gr_jp_node(p, N_NAME);
        e->name = gr_jp_expect_name(p, "a variable's name");
        if (l.n == 0 && gr_jp_accept(p, T_OP, ".")) {
            jnode *of = e;
            e = gr_jp_one(p, N_ATTR, of);
            e->name = gr_jp_expect_name(p, "an attribute");
            return e;
        }
        gr_jp_nodes_add(p, &l, e);
        if (!gr_jp_accept(p, T_OP, ",")) break;
    }
    if (bracket) gr_jp_expect(p, T_OP, ")");
    if (l.n > 1) e = gr_jp_node(p, N_TUPLE);
    if (l.n > 1) e->items = gr_jp_nodes_take(p, &l, &e->n);
    else free(l.items);
    return e ? e : gr_jp_node(p, N_NAME);
}

static jnode *for_statement(parser *p) {
    static const char *const ends[] = {"else", "endfor", NULL}, *const last[] = {"endfor", NULL};
    jnode *e = gr_jp_node(p, N_FOR);
    e->a = target(p);
    gr_jp_expect(p, T_NAME, "in");
    e->b = gr_jp_disjunction(p);
    if (gr_jp_is(gr_jp_peek(p), T_OP, ",")) e->b = gr_jp_tuple_from(p, e->b, NULL);
    if (gr_jp_accept(p, T_NAME, "if")) e->c = gr_jp_expression(p);
    if (gr_jp_is(gr_jp_peek(p), T_NAME, "recursive")) gr_jp_fail(p, e->line, "\"recursive\" loops are not supported");
    end_tag(p);
    e->items = body(p, &e->n, ends);
    if (gr_jp_accept(p, T_NAME, "else")) {
        end_tag(p);
        e->other = body(p, &e->n_other, last);
    }
    gr_jp_expect(p, T_NAME, "endfor");
    end_tag(p);
    return e;
}

static jnode *set_statement(parser *p) {
    jnode *e = gr_jp_node(p, N_SET);
    e->a = target(p);
    if (gr_jp_accept(p, T_OP, "=")) {
        e->b = gr_jp_expression_or_tuple(p);
        end_tag(p);
        return e;
    }
    e->kind = N_SET_BLOCK;
    if (gr_jp_accept(p, T_OP, "|")) e->b = gr_jp_filters(p, gr_jp_filter(p, NULL));
    body_to(p, e, "endset");
    return e;
}

static jnode *macro_statement(parser *p) {
    jnode *e = gr_jp_node(p, N_MACRO);
    e->name = gr_jp_expect_name(p, "a macro's name");
    gr_jp_expect(p, T_OP, "(");
    e->args = gr_jp_arguments(p, true);
    body_to(p, e, "endmacro");
    return e;
}

static jnode *call_statement(parser *p) {
    jnode *e = gr_jp_node(p, N_CALL_BLOCK);
    if (gr_jp_accept(p, T_OP, "(")) e->args = gr_jp_arguments(p, true);
    e->a = gr_jp_unary(p, false);
    if (e->a->kind != N_CALL) gr_jp_fail(p, e->line, "\"call\" needs a call");
    body_to(p, e, "endcall");
    return e;
}

static jnode *with_statement(parser *p) {
    jnode *e = gr_jp_node(p, N_WITH);
    node_list names = {0}, values = {0};
    while (p->st == GRAFT_OK && gr_jp_peek(p)->kind != T_BLOCK_END) {
        if (names.n) gr_jp_expect(p, T_OP, ",");
        gr_jp_nodes_add(p, &names, target(p));
        gr_jp_expect(p, T_OP, "=");
        gr_jp_nodes_add(p, &values, gr_jp_expression(p));
    }
    e->args.values = gr_jp_nodes_take(p, &values, &e->args.n);
    e->other = gr_jp_nodes_take(p, &names, &e->n_other);
    body_to(p, e, "endwith");
    return e;
}

static jnode *statement(parser *p) { /* after "{%" */
    const token *k = gr_jp_peek(p);
    if (k->kind != T_END) p->next++;
    jnode *e;
    if (gr_jp_is(k, T_NAME, "if")) return if_statement(p);
    if (gr_jp_is(k, T_NAME, "for")) return for_statement(p);
    if (gr_jp_is(k, T_NAME, "set")) return set_statement(p);
    if (gr_jp_is(k, T_NAME, "macro")) return macro_statement(p);
    if (gr_jp_is(k, T_NAME, "call")) return call_statement(p);
    if (gr_jp_is(k, T_NAME, "with")) return with_statement(p);
    if (gr_jp_is(k, T_NAME, "filter")) {
        e = gr_jp_node(p, N_FILTER_BLOCK);
        e->a = gr_jp_filters(p, gr_jp_filter(p, NULL));
        body_to(p, e, "endfilter");
        return e;
    }
    if (gr_jp_is(k, T_NAME, "generation")) {
        e = gr_jp_node(p, N_GENERATION);
        body_to(p, e, "endgeneration");
        return e;
    }
    if (gr_jp_is(k, T_NAME, "break") || gr_jp_is(k, T_NAME, "continue")) {
        e = gr_jp_node(p, gr_jp_is(k, T_NAME, "break") ? N_BREAK : N_CONTINUE);
        end_tag(p);
        return e;
    }
    if (k->kind == T_NAME) gr_jp_fail(p, k->line, "the statement \"%.*s\" is not supported", (int)GR_MIN(k->n, 40), k->s);
    else gr_jp_unexpected(p, "a statement");
    return gr_jp_node(p, N_CONST);
}

/* Statements up to a tag of one of these names; its "{%" is read, its name not. */
static jnode **body(parser *p, int32_t *n, const char *const *ends) {
    node_list l = {0};
    if (++p->depth > MAX_NESTING) gr_jp_fail(p, gr_jp_peek(p)->line, "nested too deeply");
    for (bool done = false; p->st == GRAFT_OK && !done;) {
        const token *k = gr_jp_peek(p);
        jnode *e = NULL;
        if (k->kind == T_TEXT) {
            e = gr_jp_node(p, N_TEXT);
            e->value = gr_jp_constant_text(p, k->s, k->n);
            p->next++;
        } else if (k->kind == T_PRINT) {
            p->next++;
            e = gr_jp_node(p, N_OUTPUT);
            e->a = gr_jp_expression_or_tuple(p);
            if (gr_jp_peek(p)->kind == T_PRINT_END) p->next++;
            else gr_jp_unexpected(p, "}}");
        } else if (k->kind == T_BLOCK) {
            p->next++;
            for (int i = 0; ends && ends[i] && !done; i++) done = gr_jp_is(gr_jp_peek(p), T_NAME, ends[i]);
            if (!done) e = statement(p);
        } else if (k->kind == T_END) {
            while (ends && ends[0] && ends[1]) ends++; /* the last closes, the others may be left out */
            if (ends) gr_jp_fail(p, k->line, "the template ends before \"%s\"", ends[0] ? ends[0] : "");
            done = true;
        } else {
            gr_jp_unexpected(p, "text or a tag");
        }
        if (e) gr_jp_nodes_add(p, &l, e);
    }
    p->depth--;
    return gr_jp_nodes_take(p, &l, n);
}

/* ---- the template ---- */

/* \r\n and \r become \n; one newline at the end goes. */
static char *normalise(gr_jinja *t, const char *s, int64_t *n) {
    char *copy = gr_arena_alloc(&t->arena, *n + 1);
    int64_t out = 0;
    if (!copy) return NULL;
    for (int64_t i = 0; i < *n; i++) {
        copy[out++] = s[i] == '\r' ? '\n' : s[i];
        if (s[i] == '\r' && i + 1 < *n && s[i + 1] == '\n') i++;
    }
    *n = out > 0 && copy[out - 1] == '\n' ? out - 1 : out;
    return copy;
}

graft_status gr_jinja_parse(gr_jinja **out, const char *source, int64_t n, const char *name, graft_error *err) {
    parser p = {.line = 1, .n = n, .err = err};
    graft_status st = GRAFT_OK;
    *out = NULL;
    if (n > MAX_SOURCE)
        return gr_fail(err, GRAFT_BAD_INPUT, "chat template %s: %lld bytes, expected at most %d", name, (long long)n, MAX_SOURCE);
    if (!gr_utf8_valid(source, n)) return gr_fail(err, GRAFT_BAD_INPUT, "chat template %s: is not UTF-8", name);
    p.t = gr_calloc(1, sizeof *p.t);
    if (!p.t) return gr_fail_memory(err, "chat template");
    p.t->title = gr_arena_strdup(&p.t->arena, name);
    p.s = normalise(p.t, source, &p.n);
    if (!p.s || !p.t->title) GR_TRY(gr_fail_memory(err, "chat template"));
    gr_jp_lex(&p);
    GR_TRY(p.st);
    p.t->body = body(&p, &p.t->n_body, NULL);
    GR_TRY(p.st);
    *out = p.t;
    p.t = NULL;
done:
    free(p.tokens);
    gr_jinja_free(p.t);
    return st;
}

void gr_jinja_free(gr_jinja *t) {
    if (!t) return;
    gr_arena_release(&t->arena);
    free(t->names);
    free(t);
}

int32_t gr_j_find_name(const gr_jinja *t, const char *name) {
    for (int32_t i = 0; i < t->n_names; i++)
        if (strcmp(t->names[i], name) == 0) return i;
    return -1;
}

bool gr_jinja_uses(const gr_jinja *t, const char *variable) { return gr_j_find_name(t, variable) >= 0; }
