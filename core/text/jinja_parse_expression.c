/* Tokens to expressions: jinja2's grammar by recursive descent. */
#include <stdlib.h>
#include <string.h>

#include "core/text/jinja_impl.h"

enum { MAX_NODES = 1 << 20 };

static void *alloc(parser *p, int64_t bytes) {
    void *memory = gr_arena_alloc(&p->t->arena, bytes);
    if (!memory && p->st == GRAFT_OK) p->st = gr_fail_memory(p->err, "chat template");
    return memory;
}

/* ---- the parser's means ---- */

const token *gr_jp_peek(const parser *p) { return &p->tokens[p->next]; }

static const token *take(parser *p) {
    const token *k = &p->tokens[p->next];
    if (k->kind != T_END) p->next++;
    return k;
}

bool gr_jp_is(const token *k, token_kind kind, const char *text) {
    return k->kind == kind && (int64_t)strlen(text) == k->n && memcmp(k->s, text, (size_t)k->n) == 0;
}

bool gr_jp_accept(parser *p, token_kind kind, const char *text) {
    if (!gr_jp_is(gr_jp_peek(p), kind, text)) return false;
    p->next++;
    return true;
}

void gr_jp_unexpected(parser *p, const char *wanted) {
    const token *k = gr_jp_peek(p);
    if (k->kind == T_END) gr_jp_fail(p, k->line, "the template ends where %s was expected", wanted);
    else gr_jp_fail(p, k->line, "\"%.*s\" where %s was expected", (int)GR_MIN(k->n, 40), k->s, wanted);
}

void gr_jp_expect(parser *p, token_kind kind, const char *text) {
    if (!gr_jp_accept(p, kind, text)) gr_jp_unexpected(p, text);
}

static int32_t intern(parser *p, const char *s, int64_t n) {
    gr_jinja *t = p->t;
    for (int32_t i = 0; i < t->n_names; i++)
        if ((int64_t)strlen(t->names[i]) == n && memcmp(t->names[i], s, (size_t)n) == 0) return i;
    char *copy = alloc(p, n + 1);
    if (!copy || !gr_grow(&t->names, &t->name_capacity, t->n_names + 1, sizeof *t->names)) return 0;
    memcpy(copy, s, (size_t)n);
    t->names[t->n_names] = copy;
    return t->n_names++;
}

int32_t gr_jp_expect_name(parser *p, const char *wanted) {
    const token *k = gr_jp_peek(p);
    if (k->kind != T_NAME) return gr_jp_unexpected(p, wanted), 0;
    p->next++;
    return intern(p, k->s, k->n);
}

jnode *gr_jp_node(parser *p, gr_jnode_kind kind) {
    jnode *e = p->st == GRAFT_OK ? alloc(p, sizeof *e) : NULL;
    if (!e) {
        p->spare = (jnode){0};
        return &p->spare;
    }
    if (++p->n_nodes > MAX_NODES) gr_jp_fail(p, gr_jp_peek(p)->line, "the template is too long");
    e->kind = (uint8_t)kind;
    e->line = gr_jp_peek(p)->line;
    e->name = -1;
    return e;
}

void gr_jp_nodes_add(parser *p, node_list *l, jnode *e) {
    if (!gr_grow(&l->items, &l->capacity, l->n + 1, sizeof(jnode *))) {
        if (p->st == GRAFT_OK) p->st = gr_fail_memory(p->err, "chat template");
        return;
    }
    l->items[l->n++] = e;
}

jnode **gr_jp_nodes_take(parser *p, node_list *l, int32_t *n) {
    jnode **items = alloc(p, (l->n + 1) * (int64_t)sizeof *items);
    *n = items ? (int32_t)l->n : 0;
    if (items && l->n) memcpy(items, l->items, (size_t)l->n * sizeof *items);
    free(l->items);
    return items;
}

/* ---- expressions ---- */

/* Python's escapes, as unicode-escape reads them: an unknown one keeps its backslash. */
static void unescape(gr_str *out, const char *s, int64_t n) {
    static const char from[] = "ntrbfav\\'\"0", to[] = "\n\t\r\b\f\a\v\\'\"";
    for (int64_t i = 0; i < n; i++) {
        if (s[i] != '\\' || i + 1 == n) {
            gr_str_putc(out, s[i]);
            continue;
        }
        char c = s[++i];
        int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
        if (digits && i + digits < n && (int64_t)strspn(s + i + 1, "0123456789abcdefABCDEF") >= digits) {
            char hex[9] = {0}, bytes[4];
            memcpy(hex, s + i + 1, (size_t)digits);
            uint32_t point = (uint32_t)strtoul(hex, NULL, 16);
            if (point >= 0xD800 && (point < 0xE000 || point > 0x10FFFF)) point = 0xFFFD;
            gr_str_add(out, bytes, gr_utf8_encode(point, bytes));
            i += digits;
        } else if (c >= '0' && c <= '7') {
            int value = 0, k = 0;
            char bytes[4];
            for (; k < 3 && i + k < n && s[i + k] >= '0' && s[i + k] <= '7'; k++) value = value * 8 + (s[i + k] - '0');
            gr_str_add(out, bytes, gr_utf8_encode((uint32_t)value, bytes));
            i += k - 1;
        } else if (c == '\n') {
        } else {
            const char *known = c ? strchr(from, c) : NULL;
            if (known && c != '0') gr_str_putc(out, to[known - from]);
            else gr_str_putc(out, '\\'), gr_str_putc(out, c);
        }
    }
}

jvalue gr_jp_constant_text(parser *p, const char *s, int64_t n) {
    jstr *v = alloc(p, sizeof *v);
    if (v) *v = (jstr){.s = s, .n = n};
    return J(J_STRING, p, v);
}

static jnode *string(parser *p) { /* adjacent literals are one */
    jnode *e = gr_jp_node(p, N_CONST);
    gr_str text = {0};
    while (gr_jp_peek(p)->kind == T_STRING) {
        const token *k = take(p);
        unescape(&text, k->s, k->n);
    }
    char *copy = alloc(p, text.len + 1);
    if (copy && text.len) memcpy(copy, text.data, (size_t)text.len);
    e->value = gr_jp_constant_text(p, copy ? copy : "", copy ? text.len : 0);
    if (text.failed && p->st == GRAFT_OK) p->st = gr_fail_memory(p->err, "chat template");
    gr_str_release(&text);
    return e;
}

static jnode *number(parser *p) {
    const token *k = gr_jp_peek(p);
    jnode *e = gr_jp_node(p, N_CONST);
    char digits[64];
    int n = 0;
    for (int64_t i = 0; i < k->n && n < (int)sizeof digits - 1; i++)
        if (k->s[i] != '_') digits[n++] = k->s[i];
    digits[n] = '\0';
    e->value = k->kind == T_FLOAT ? J(J_FLOAT, f, strtod(digits, NULL)) : J(J_INT, i, strtoll(digits, NULL, 10));
    if (k->kind == T_INT && n > 18) gr_jp_fail(p, k->line, "the number %s is too large", digits);
    p->next++;
    return e;
}

/* Items up to the closing sign; keys of a dict and their values are items in turn. */
static jnode *display(parser *p, gr_jnode_kind kind, const char *close) {
    jnode *e = gr_jp_node(p, kind);
    node_list l = {0};
    while (p->st == GRAFT_OK && !gr_jp_accept(p, T_OP, close)) {
        if (l.n) {
            gr_jp_expect(p, T_OP, ",");
            if (gr_jp_accept(p, T_OP, close)) break;
        }
        gr_jp_nodes_add(p, &l, gr_jp_expression(p));
        if (kind == N_DICT) {
            gr_jp_expect(p, T_OP, ":");
            gr_jp_nodes_add(p, &l, gr_jp_expression(p));
        }
    }
    e->items = gr_jp_nodes_take(p, &l, &e->n);
    return e;
}

jnode *gr_jp_tuple_from(parser *p, jnode *first, const char *close) { /* after an expression and a comma */
    jnode *e = gr_jp_node(p, N_TUPLE);
    node_list l = {0};
    gr_jp_nodes_add(p, &l, first);
    while (p->st == GRAFT_OK && gr_jp_accept(p, T_OP, ",")) {
        const token *k = gr_jp_peek(p);
        if (k->kind == T_BLOCK_END || k->kind == T_PRINT_END || (close && gr_jp_is(k, T_OP, close)) || gr_jp_is(k, T_OP, "="))
            break;
        gr_jp_nodes_add(p, &l, gr_jp_expression(p));
    }
    e->items = gr_jp_nodes_take(p, &l, &e->n);
    return e;
}

static jnode *parenthesis(parser *p) {
    if (gr_jp_accept(p, T_OP, ")")) return gr_jp_node(p, N_TUPLE);
    jnode *e = gr_jp_expression(p);
    if (gr_jp_is(gr_jp_peek(p), T_OP, ",")) e = gr_jp_tuple_from(p, e, ")");
    gr_jp_expect(p, T_OP, ")");
    return e;
}

static jnode *name_or_constant(parser *p) {
    static const struct {
        const char *name;
        gr_jkind kind;
        int value;
    } constants[] = {{"true", J_BOOL, 1},  {"True", J_BOOL, 1}, {"false", J_BOOL, 0},
                     {"False", J_BOOL, 0}, {"none", J_NONE, 0}, {"None", J_NONE, 0}};
    const token *k = gr_jp_peek(p);
    for (int i = 0; i < GR_LEN(constants); i++) {
        if (!gr_jp_is(k, T_NAME, constants[i].name)) continue;
        jnode *e = gr_jp_node(p, N_CONST);
        e->value = J(constants[i].kind, i, constants[i].value);
        p->next++;
        return e;
    }
    jnode *e = gr_jp_node(p, N_NAME);
    p->next++;
    e->name = intern(p, k->s, k->n);
    return e;
}

static jnode *primary(parser *p) {
    const token *k = gr_jp_peek(p);
    if (k->kind == T_NAME) return name_or_constant(p);
    if (k->kind == T_STRING) return string(p);
    if (k->kind == T_INT || k->kind == T_FLOAT) return number(p);
    if (gr_jp_accept(p, T_OP, "(")) return parenthesis(p);
    if (gr_jp_accept(p, T_OP, "[")) return display(p, N_LIST, "]");
    if (gr_jp_accept(p, T_OP, "{")) return display(p, N_DICT, "}");
    gr_jp_unexpected(p, "a value");
    return gr_jp_node(p, N_CONST);
}

/* After "(": up to ")". */
jargs_node gr_jp_arguments(parser *p, bool parameters) {
    jargs_node args = {0};
    node_list l = {0};
    int32_t *names = NULL;
    int64_t capacity = 0;
    while (p->st == GRAFT_OK && !gr_jp_accept(p, T_OP, ")")) {
        if (l.n) {
            gr_jp_expect(p, T_OP, ",");
            if (gr_jp_accept(p, T_OP, ")")) break;
        }
        if (gr_jp_is(gr_jp_peek(p), T_OP, "**")) gr_jp_fail(p, gr_jp_peek(p)->line, "arguments with ** are not supported");
        bool spread = !parameters && gr_jp_accept(p, T_OP, "*");
        bool named = !spread && gr_jp_peek(p)->kind == T_NAME && gr_jp_is(&p->tokens[p->next + 1], T_OP, "=");
        int32_t name = named || parameters ? gr_jp_expect_name(p, "a parameter's name") : spread ? ARG_SPREAD : ARG_POSITIONAL;
        if (named) p->next++;
        if (parameters && !named && l.n && l.items[l.n - 1])
            gr_jp_fail(p, gr_jp_peek(p)->line, "a parameter without default after one with");
        gr_jp_nodes_add(p, &l, parameters && !named ? NULL : gr_jp_expression(p));
        if (!gr_grow(&names, &capacity, l.n, sizeof *names)) break;
        names[l.n - 1] = name;
        if (name < 0 && l.n > 1 && names[l.n - 2] >= 0)
            gr_jp_fail(p, gr_jp_peek(p)->line, "a positional argument after a named one");
    }
    args.values = gr_jp_nodes_take(p, &l, &args.n);
    args.names = alloc(p, (args.n + 1) * (int64_t)sizeof *names);
    if (args.names && args.n) memcpy(args.names, names, (size_t)args.n * sizeof *names);
    free(names);
    return args;
}

static jnode *subscript(parser *p, jnode *of) {
    jnode *part[3] = {NULL, NULL, NULL}, *e = gr_jp_node(p, N_ITEM);
    int n = 0;
    bool slice = false;
    e->a = of;
    while (p->st == GRAFT_OK && !gr_jp_accept(p, T_OP, "]")) {
        if (gr_jp_accept(p, T_OP, ":")) {
            slice = true;
            if (++n > 2) return gr_jp_unexpected(p, "]"), e;
        } else {
            part[n] = gr_jp_expression(p);
            if (!gr_jp_is(gr_jp_peek(p), T_OP, ":") && !gr_jp_is(gr_jp_peek(p), T_OP, "]")) return gr_jp_unexpected(p, "]"), e;
        }
    }
    if (slice) e->kind = N_SLICE;
    if (!slice && !part[0]) gr_jp_fail(p, e->line, "an empty subscript");
    e->b = part[0], e->c = part[1], e->d = part[2];
    return e;
}

static jnode *call(parser *p, jnode *f) {
    jnode *e = gr_jp_node(p, N_CALL);
    e->a = f;
    e->args = gr_jp_arguments(p, false);
    return e;
}

static jnode *postfix(parser *p, jnode *e) {
    while (p->st == GRAFT_OK) {
        if (gr_jp_accept(p, T_OP, ".")) {
            jnode *of = e;
            if (gr_jp_peek(p)->kind == T_INT) {
                e = gr_jp_node(p, N_ITEM);
                e->a = of;
                e->b = number(p);
                continue;
            }
            e = gr_jp_node(p, N_ATTR);
            e->a = of;
            e->name = gr_jp_expect_name(p, "an attribute");
        } else if (gr_jp_accept(p, T_OP, "[")) {
            e = subscript(p, e);
        } else if (gr_jp_accept(p, T_OP, "(")) {
            e = call(p, e);
        } else {
            break;
        }
    }
    return e;
}

jnode *gr_jp_filter(parser *p, jnode *of) {
    jnode *e = gr_jp_node(p, N_FILTER);
    e->a = of;
    e->name = gr_jp_expect_name(p, "a filter");
    if (gr_jp_accept(p, T_OP, "(")) e->args = gr_jp_arguments(p, false);
    return e;
}

static jnode *test(parser *p, jnode *of) {
    jnode *e = gr_jp_node(p, N_TEST);
    e->a = of;
    e->op = gr_jp_accept(p, T_NAME, "not");
    e->name = gr_jp_expect_name(p, "a test");
    const token *k = gr_jp_peek(p);
    static const char *const keywords[] = {"else", "or", "and", "is", "if", "not", "in"};
    bool keyword = false;
    for (int i = 0; i < GR_LEN(keywords); i++) keyword |= gr_jp_is(k, T_NAME, keywords[i]);
    bool argument = (k->kind == T_NAME && !keyword) || k->kind == T_STRING || k->kind == T_INT || k->kind == T_FLOAT ||
                    gr_jp_is(k, T_OP, "[") || gr_jp_is(k, T_OP, "{");
    if (gr_jp_accept(p, T_OP, "(")) {
        e->args = gr_jp_arguments(p, false);
    } else if (argument) {
        node_list l = {0};
        gr_jp_nodes_add(p, &l, postfix(p, primary(p)));
        e->args.values = gr_jp_nodes_take(p, &l, &e->args.n);
        e->args.names = alloc(p, sizeof(int32_t));
        if (e->args.names) e->args.names[0] = ARG_POSITIONAL;
    }
    return e;
}

jnode *gr_jp_filters(parser *p, jnode *e) {
    while (p->st == GRAFT_OK) {
        if (gr_jp_accept(p, T_OP, "|")) e = gr_jp_filter(p, e);
        else if (gr_jp_accept(p, T_NAME, "is")) e = test(p, e);
        else if (gr_jp_accept(p, T_OP, "(")) e = call(p, e);
        else break;
    }
    return e;
}

jnode *gr_jp_one(parser *p, gr_jnode_kind kind, jnode *a) {
    jnode *e = gr_jp_node(p, kind);
    e->a = a;
    return e;
}

static jnode *two(parser *p, gr_jnode_kind kind, int op, jnode *a, jnode *b) {
    jnode *e = gr_jp_node(p, kind);
    e->line = a->line;
    e->op = (uint8_t)op;
    e->a = a;
    e->b = b;
    return e;
}

jnode *gr_jp_unary(parser *p, bool with_filters) {
    jnode *e;
    if (++p->depth > MAX_NESTING) gr_jp_fail(p, gr_jp_peek(p)->line, "nested too deeply");
    if (p->st != GRAFT_OK) e = gr_jp_node(p, N_CONST);
    else if (gr_jp_accept(p, T_OP, "-")) e = gr_jp_one(p, N_NEGATIVE, gr_jp_unary(p, false));
    else if (gr_jp_accept(p, T_OP, "+")) e = gr_jp_one(p, N_POSITIVE, gr_jp_unary(p, false));
    else e = primary(p);
    e = postfix(p, e);
    p->depth--;
    return with_filters ? gr_jp_filters(p, e) : e;
}

/* ---- operators, from what binds least to what binds most ---- */

enum { BY_OR, BY_AND, BY_SUM, BY_PRODUCT, BY_POWER };

static jnode *operand(parser *p, int level);

/* Operands of a level joined by its operators, from the left. */
static jnode *binary(parser *p, int level) {
    static const struct {
        const char *text;
        int level, token, kind, op;
    } operators[] = {{"or", BY_OR, T_NAME, N_OR, 0},
                     {"and", BY_AND, T_NAME, N_AND, 0},
                     {"+", BY_SUM, T_OP, N_BINARY, OP_ADD},
                     {"-", BY_SUM, T_OP, N_BINARY, OP_SUB},
                     {"*", BY_PRODUCT, T_OP, N_BINARY, OP_MUL},
                     {"/", BY_PRODUCT, T_OP, N_BINARY, OP_DIV},
                     {"//", BY_PRODUCT, T_OP, N_BINARY, OP_FLOORDIV},
                     {"%", BY_PRODUCT, T_OP, N_BINARY, OP_MOD},
                     {"**", BY_POWER, T_OP, N_BINARY, OP_POW}};
    jnode *e = operand(p, level);
    for (int i = 0; i < GR_LEN(operators) && p->st == GRAFT_OK; i++) {
        if (operators[i].level != level || !gr_jp_accept(p, (token_kind)operators[i].token, operators[i].text)) continue;
        e = two(p, (gr_jnode_kind)operators[i].kind, operators[i].op, e, operand(p, level));
        i = -1;
    }
    return e;
}

static jnode *concat(parser *p) {
    jnode *first = binary(p, BY_PRODUCT);
    if (!gr_jp_is(gr_jp_peek(p), T_OP, "~")) return first;
    jnode *e = gr_jp_node(p, N_CONCAT);
    node_list l = {0};
    gr_jp_nodes_add(p, &l, first);
    while (p->st == GRAFT_OK && gr_jp_accept(p, T_OP, "~")) gr_jp_nodes_add(p, &l, binary(p, BY_PRODUCT));
    e->items = gr_jp_nodes_take(p, &l, &e->n);
    return e;
}

static int comparison(parser *p) { /* -1: none here */
    static const char *const texts[] = {
        [OP_EQ] = "==", [OP_NE] = "!=", [OP_LT] = "<", [OP_LE] = "<=", [OP_GT] = ">", [OP_GE] = ">="};
    for (int op = 0; op < GR_LEN(texts); op++)
        if (gr_jp_accept(p, T_OP, texts[op])) return op;
    if (gr_jp_accept(p, T_NAME, "in")) return OP_IN;
    if (gr_jp_is(gr_jp_peek(p), T_NAME, "not") && gr_jp_is(&p->tokens[p->next + 1], T_NAME, "in")) {
        p->next += 2;
        return OP_NOT_IN;
    }
    return -1;
}

static jnode *compare(parser *p) {
    jnode *e = binary(p, BY_SUM);
    int op = comparison(p);
    if (op < 0) return e;
    jnode *chain = gr_jp_one(p, N_COMPARE, e);
    node_list l = {0};
    while (op >= 0 && p->st == GRAFT_OK) {
        gr_jp_nodes_add(p, &l, two(p, N_BINARY, op, e, binary(p, BY_SUM)));
        op = comparison(p);
    }
    chain->items = gr_jp_nodes_take(p, &l, &chain->n);
    return chain;
}

static jnode *negation(parser *p) {
    if (!gr_jp_is(gr_jp_peek(p), T_NAME, "not")) return compare(p);
    if (++p->depth > MAX_NESTING) gr_jp_fail(p, gr_jp_peek(p)->line, "nested too deeply");
    p->next++;
    jnode *e = gr_jp_one(p, N_NOT, p->st == GRAFT_OK ? negation(p) : gr_jp_node(p, N_CONST));
    p->depth--;
    return e;
}

static jnode *operand(parser *p, int level) {
    switch (level) {
    case BY_OR: return binary(p, BY_AND);
    case BY_AND: return negation(p);
    case BY_SUM: return concat(p);
    case BY_PRODUCT: return binary(p, BY_POWER);
    default: return gr_jp_unary(p, true);
    }
}

jnode *gr_jp_disjunction(parser *p) { return binary(p, BY_OR); }

jnode *gr_jp_expression(parser *p) {
    if (++p->depth > MAX_NESTING) gr_jp_fail(p, gr_jp_peek(p)->line, "nested too deeply");
    jnode *e = p->st == GRAFT_OK ? gr_jp_disjunction(p) : gr_jp_node(p, N_CONST);
    while (p->st == GRAFT_OK && gr_jp_accept(p, T_NAME, "if")) {
        jnode *choice = gr_jp_node(p, N_COND);
        choice->a = e;
        choice->b = gr_jp_disjunction(p);
        if (gr_jp_accept(p, T_NAME, "else")) choice->c = gr_jp_expression(p);
        e = choice;
    }
    p->depth--;
    return e;
}

jnode *gr_jp_expression_or_tuple(parser *p) {
    jnode *e = gr_jp_expression(p);
    return gr_jp_is(gr_jp_peek(p), T_OP, ",") ? gr_jp_tuple_from(p, e, NULL) : e;
}
