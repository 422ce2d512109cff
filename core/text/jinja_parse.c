/* From a template's text to its tree: jinja2's lexer with trim_blocks and lstrip_blocks, and its grammar by recursive descent. */
#include <stdlib.h>
#include <string.h>

#include "core/text/jinja_impl.h"

enum { MAX_SOURCE = 1 << 22, MAX_NESTING = 200, MAX_NODES = 1 << 20 };

typedef enum token_kind { T_TEXT, T_BLOCK, T_BLOCK_END, T_PRINT, T_PRINT_END, T_NAME, T_STRING, T_INT, T_FLOAT, T_OP, T_END } token_kind;

typedef struct token {
    token_kind kind;
    int32_t line;
    const char *s;
    int64_t n;
} token;

typedef struct parser {
    gr_jinja *t;
    const char *s; /* the source, newlines normalised */
    int64_t n, at;
    int32_t line;
    token *tokens;
    int64_t n_tokens, capacity, next;
    int depth;
    int64_t n_nodes;
    jnode spare; /* what a failed allocation gives: never looked at */
    graft_status st;
    graft_error *err;
} parser;

static void fail(parser *p, int32_t line, const char *format, ...) GR_PRINTF(3, 4);
static void fail(parser *p, int32_t line, const char *format, ...) {
    char what[300];
    va_list args;
    if (p->st != GRAFT_OK) return;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    for (char *c = what; *c; c++)
        if ((uint8_t)*c < 0x20) *c = ' ';
    p->st = gr_fail(p->err, GRAFT_BAD_INPUT, "chat template %s, line %d: %s", p->t->title, line, what);
}

static void *alloc(parser *p, int64_t bytes) {
    void *memory = gr_arena_alloc(&p->t->arena, bytes);
    if (!memory && p->st == GRAFT_OK) p->st = gr_fail_memory(p->err, "chat template");
    return memory;
}

/* ---- the lexer ---- */

static void push(parser *p, token_kind kind, const char *s, int64_t n) {
    if (p->st != GRAFT_OK) return;
    if (!gr_grow(&p->tokens, &p->capacity, p->n_tokens + 1, sizeof *p->tokens)) {
        p->st = gr_fail_memory(p->err, "chat template");
        return;
    }
    p->tokens[p->n_tokens++] = (token){kind, p->line, s, n};
}

static int64_t space_at(const char *s, int64_t n) { /* bytes of the white space that s starts with, 0 for none */
    int size;
    return n > 0 && gr_j_is_space(gr_utf8_read(s, n, &size)) ? size : 0;
}

static int64_t spaces(const char *s, int64_t n) {
    int64_t i = 0;
    for (int64_t size; (size = space_at(s + i, n - i)) > 0; i += size) {}
    return i;
}

static int64_t without_spaces_at_end(const char *s, int64_t n) {
    while (n > 0) {
        int64_t start = n - 1;
        while (start > 0 && ((uint8_t)s[start] & 0xC0) == 0x80) start--;
        if (space_at(s + start, n - start) != n - start) break;
        n = start;
    }
    return n;
}

static void skip(parser *p, int64_t n) {
    for (int64_t i = 0; i < n; i++) p->line += p->s[p->at + i] == '\n';
    p->at += n;
}

/* Where the next "{{", "{%" or "{#" stands. */
static int64_t find_open(const parser *p, int64_t from) {
    for (int64_t i = from; i + 1 < p->n; i++) {
        const char *brace = memchr(p->s + i, '{', (size_t)(p->n - 1 - i));
        if (!brace) break;
        i = brace - p->s;
        if (p->s[i + 1] == '{' || p->s[i + 1] == '%' || p->s[i + 1] == '#') return i;
    }
    return -1;
}

/* The text before a tag, as the tag's sign and lstrip_blocks leave it. */
static int64_t strip_before(const parser *p, int64_t start, int64_t open, char sign, bool print, bool line_start) {
    int64_t n = open - start;
    if (sign == '-') return without_spaces_at_end(p->s + start, n);
    if (sign == '+' || print) return n;
    int64_t line = n;
    while (line > 0 && p->s[start + line - 1] != '\n') line--;
    if (line == 0 && !line_start) return n;
    return spaces(p->s + start + line, n - line) == n - line ? line : n;
}

/* After a tag's end ("%}" with its sign): white space, or one newline, goes. */
static void strip_after(parser *p, char sign, bool print) {
    if (sign == '-')
        skip(p, spaces(p->s + p->at, p->n - p->at));
    else if (!print && sign != '+' && p->at < p->n && p->s[p->at] == '\n')
        skip(p, 1);
}

/* The end of a tag at `at`: its length, 0 when it is none there. */
static int ends_here(const parser *p, const char *end, char *sign) {
    const char *s = p->s + p->at;
    int64_t left = p->n - p->at;
    *sign = left > 2 && (s[0] == '-' || s[0] == '+') ? s[0] : '\0';
    int i = *sign ? 1 : 0;
    return left >= i + 2 && s[i] == end[0] && s[i + 1] == end[1] ? i + 2 : 0;
}

static bool name_char(char c, bool first) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (uint8_t)c >= 0x80 || (!first && c >= '0' && c <= '9');
}

static void lex_number(parser *p) {
    const char *s = p->s + p->at;
    int64_t left = p->n - p->at, i = 0;
    bool real = false;
    while (i < left && ((s[i] >= '0' && s[i] <= '9') || s[i] == '_')) i++;
    if (i + 1 < left && s[i] == '.' && s[i + 1] >= '0' && s[i + 1] <= '9') {
        real = true;
        for (i++; i < left && ((s[i] >= '0' && s[i] <= '9') || s[i] == '_');) i++;
    }
    if (i + 1 < left && (s[i] == 'e' || s[i] == 'E')) {
        int64_t j = i + 1 + (s[i + 1] == '+' || s[i + 1] == '-');
        if (j < left && s[j] >= '0' && s[j] <= '9') {
            real = true;
            for (i = j; i < left && s[i] >= '0' && s[i] <= '9';) i++;
        }
    }
    push(p, real ? T_FLOAT : T_INT, s, i);
    skip(p, i);
}

/* The inside of a tag up to its end. */
static void lex_tag(parser *p, bool print) {
    static const char *const operators[] = {"//", "**", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<",
                                            ">",  "=",  "(",  ")",  "[",  "]",  "{", "}", ".", ",", ":", "|", ";"};
    int32_t opened = p->line;
    int braces = 0;
    while (p->st == GRAFT_OK) {
        skip(p, spaces(p->s + p->at, p->n - p->at));
        if (p->at >= p->n) return fail(p, opened, "%s is not closed", print ? "\"{{\"" : "\"{%\"");
        char sign, c = p->s[p->at];
        int end = braces ? 0 : ends_here(p, print ? "}}" : "%}", &sign);
        if (end) {
            push(p, print ? T_PRINT_END : T_BLOCK_END, p->s + p->at, end);
            p->at += end;
            return strip_after(p, sign, print);
        }
        const char *s = p->s + p->at;
        int64_t left = p->n - p->at, i = 1;
        if (c == '"' || c == '\'') {
            while (i < left && s[i] != c) i += s[i] == '\\' ? 2 : 1;
            if (i >= left) return fail(p, p->line, "a string is not closed");
            push(p, T_STRING, s + 1, i - 1);
            skip(p, i + 1);
        } else if (name_char(c, true)) {
            while (i < left && name_char(s[i], false)) i++;
            push(p, T_NAME, s, i);
            p->at += i;
        } else if (c >= '0' && c <= '9') {
            lex_number(p);
        } else {
            int found = -1;
            for (int k = 0; k < GR_LEN(operators) && found < 0; k++) {
                size_t length = strlen(operators[k]);
                if ((int64_t)length <= left && memcmp(s, operators[k], length) == 0) found = k;
            }
            if (found < 0) return fail(p, p->line, "unexpected character \"%c\"", c);
            braces += strchr("([{", c) != NULL;
            braces -= strchr(")]}", c) != NULL && braces > 0;
            push(p, T_OP, s, (int64_t)strlen(operators[found]));
            p->at += (int64_t)strlen(operators[found]);
        }
    }
}

/* {% raw %}: its name and end are read; the text up to {% endraw %} is plain. True when it was one. */
static bool lex_raw(parser *p, bool *line_start) {
    int64_t at = p->at + spaces(p->s + p->at, p->n - p->at);
    if (p->n - at < 3 || memcmp(p->s + at, "raw", 3) != 0 || (at + 3 < p->n && name_char(p->s[at + 3], false))) return false;
    char sign;
    skip(p, at + 3 - p->at);
    skip(p, spaces(p->s + p->at, p->n - p->at));
    int end = ends_here(p, "%}", &sign);
    if (!end) return fail(p, p->line, "expected %%} after raw"), true;
    p->at += end;
    strip_after(p, sign, false);
    for (int64_t open = p->at; open + 1 < p->n; open++) {
        if (p->s[open] != '{' || p->s[open + 1] != '%') continue;
        int64_t i = open + 2;
        char begin = i < p->n && (p->s[i] == '-' || p->s[i] == '+') ? p->s[i++] : '\0';
        i += spaces(p->s + i, p->n - i);
        if (p->n - i < 6 || memcmp(p->s + i, "endraw", 6) != 0) continue;
        int64_t n = strip_before(p, p->at, open, begin, false, p->at == 0 || p->s[p->at - 1] == '\n');
        push(p, T_TEXT, p->s + p->at, n);
        skip(p, i + 6 - p->at);
        skip(p, spaces(p->s + p->at, p->n - p->at));
        end = ends_here(p, "%}", &sign);
        if (!end) return fail(p, p->line, "expected %%} after endraw"), true;
        p->at += end;
        strip_after(p, sign, false);
        *line_start = p->s[p->at - 1] == '\n';
        return true;
    }
    fail(p, p->line, "\"raw\" is not closed");
    return true;
}

static void lex(parser *p) {
    bool line_start = true; /* nothing but a newline stands before */
    while (p->st == GRAFT_OK && p->at < p->n) {
        int64_t open = find_open(p, p->at), start = p->at;
        if (open < 0) {
            push(p, T_TEXT, p->s + start, p->n - start);
            p->at = p->n;
            break;
        }
        char kind = p->s[open + 1], sign = open + 2 < p->n ? p->s[open + 2] : '\0';
        if (sign != '-' && sign != '+') sign = '\0';
        int64_t n = strip_before(p, start, open, sign, kind == '{', line_start);
        if (n > 0) push(p, T_TEXT, p->s + start, n);
        skip(p, open - start);
        int32_t line = p->line;
        p->at += 2 + (sign != '\0');
        if (kind == '#') {
            const char *close = NULL;
            for (int64_t i = p->at; i + 1 < p->n && !close; i++)
                if (p->s[i] == '#' && p->s[i + 1] == '}') close = p->s + i;
            if (!close) return fail(p, line, "\"{#\" is not closed");
            char end = close > p->s + p->at && (close[-1] == '-' || close[-1] == '+') ? close[-1] : '\0';
            skip(p, close + 2 - (p->s + p->at));
            strip_after(p, end, false);
        } else if (kind == '{') {
            push(p, T_PRINT, p->s + open, 2);
            lex_tag(p, true);
        } else if (!lex_raw(p, &line_start)) {
            push(p, T_BLOCK, p->s + open, 2);
            lex_tag(p, false);
        }
        line_start = p->at > 0 && p->s[p->at - 1] == '\n';
    }
    push(p, T_END, "", 0);
}

/* ---- the parser's means ---- */

static const token *peek(const parser *p) {
    return &p->tokens[p->next];
}

static const token *take(parser *p) {
    const token *k = &p->tokens[p->next];
    if (k->kind != T_END) p->next++;
    return k;
}

static bool is(const token *k, token_kind kind, const char *text) {
    return k->kind == kind && (int64_t)strlen(text) == k->n && memcmp(k->s, text, (size_t)k->n) == 0;
}

static bool accept(parser *p, token_kind kind, const char *text) {
    if (!is(peek(p), kind, text)) return false;
    p->next++;
    return true;
}

static void unexpected(parser *p, const char *wanted) {
    const token *k = peek(p);
    if (k->kind == T_END)
        fail(p, k->line, "the template ends where %s was expected", wanted);
    else
        fail(p, k->line, "\"%.*s\" where %s was expected", (int)GR_MIN(k->n, 40), k->s, wanted);
}

static void expect(parser *p, token_kind kind, const char *text) {
    if (!accept(p, kind, text)) unexpected(p, text);
}

static void end_tag(parser *p) {
    if (peek(p)->kind == T_BLOCK_END)
        p->next++;
    else
        unexpected(p, "%}");
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

static int32_t expect_name(parser *p, const char *wanted) {
    const token *k = peek(p);
    if (k->kind != T_NAME) return unexpected(p, wanted), 0;
    p->next++;
    return intern(p, k->s, k->n);
}

static jnode *node(parser *p, gr_jnode_kind kind) {
    jnode *e = p->st == GRAFT_OK ? alloc(p, sizeof *e) : NULL;
    if (!e) {
        p->spare = (jnode){0};
        return &p->spare;
    }
    if (++p->n_nodes > MAX_NODES) fail(p, peek(p)->line, "the template is too long");
    e->kind = (uint8_t)kind;
    e->line = peek(p)->line;
    e->name = -1;
    return e;
}

/* A list of nodes in the making; moved into the tree's memory at its end. */
typedef struct nodes {
    jnode **items;
    int64_t n, capacity;
} nodes;

static void nodes_add(parser *p, nodes *l, jnode *e) {
    if (!gr_grow(&l->items, &l->capacity, l->n + 1, sizeof(jnode *))) {
        if (p->st == GRAFT_OK) p->st = gr_fail_memory(p->err, "chat template");
        return;
    }
    l->items[l->n++] = e;
}

static jnode **nodes_take(parser *p, nodes *l, int32_t *n) {
    jnode **items = alloc(p, (l->n + 1) * (int64_t)sizeof *items);
    *n = items ? (int32_t)l->n : 0;
    if (items && l->n) memcpy(items, l->items, (size_t)l->n * sizeof *items);
    free(l->items);
    return items;
}

/* ---- expressions ---- */

static jnode *expression(parser *p);
static jnode *unary(parser *p, bool with_filters);

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
            const char *known = strchr(from, c);
            if (known && c != '0')
                gr_str_putc(out, to[known - from]);
            else
                gr_str_putc(out, '\\'), gr_str_putc(out, c);
        }
    }
}

static jvalue constant_text(parser *p, const char *s, int64_t n) {
    jstr *v = alloc(p, sizeof *v);
    if (v) *v = (jstr){.s = s, .n = n};
    return J(J_STRING, p, v);
}

static jnode *string(parser *p) { /* adjacent literals are one */
    jnode *e = node(p, N_CONST);
    gr_str text = {0};
    while (peek(p)->kind == T_STRING) {
        const token *k = take(p);
        unescape(&text, k->s, k->n);
    }
    char *copy = alloc(p, text.len + 1);
    if (copy && text.len) memcpy(copy, text.data, (size_t)text.len);
    e->value = constant_text(p, copy ? copy : "", copy ? text.len : 0);
    if (text.failed && p->st == GRAFT_OK) p->st = gr_fail_memory(p->err, "chat template");
    gr_str_release(&text);
    return e;
}

static jnode *number(parser *p) {
    const token *k = peek(p);
    jnode *e = node(p, N_CONST);
    char digits[64];
    int n = 0;
    for (int64_t i = 0; i < k->n && n < (int)sizeof digits - 1; i++)
        if (k->s[i] != '_') digits[n++] = k->s[i];
    digits[n] = '\0';
    e->value = k->kind == T_FLOAT ? J(J_FLOAT, f, strtod(digits, NULL)) : J(J_INT, i, strtoll(digits, NULL, 10));
    if (k->kind == T_INT && n > 18) fail(p, k->line, "the number %s is too large", digits);
    p->next++;
    return e;
}

/* Items up to the closing sign; keys of a dict and their values are items in turn. */
static jnode *display(parser *p, gr_jnode_kind kind, const char *close) {
    jnode *e = node(p, kind);
    nodes l = {0};
    while (p->st == GRAFT_OK && !accept(p, T_OP, close)) {
        if (l.n) {
            expect(p, T_OP, ",");
            if (accept(p, T_OP, close)) break;
        }
        nodes_add(p, &l, expression(p));
        if (kind == N_DICT) {
            expect(p, T_OP, ":");
            nodes_add(p, &l, expression(p));
        }
    }
    e->items = nodes_take(p, &l, &e->n);
    return e;
}

static jnode *tuple_from(parser *p, jnode *first, const char *close) { /* after an expression and a comma */
    jnode *e = node(p, N_TUPLE);
    nodes l = {0};
    nodes_add(p, &l, first);
    while (p->st == GRAFT_OK && accept(p, T_OP, ",")) {
        const token *k = peek(p);
        if (k->kind == T_BLOCK_END || k->kind == T_PRINT_END || (close && is(k, T_OP, close)) || is(k, T_OP, "=")) break;
        nodes_add(p, &l, expression(p));
    }
    e->items = nodes_take(p, &l, &e->n);
    return e;
}

static jnode *parenthesis(parser *p) {
    if (accept(p, T_OP, ")")) return node(p, N_TUPLE);
    jnode *e = expression(p);
    if (is(peek(p), T_OP, ",")) e = tuple_from(p, e, ")");
    expect(p, T_OP, ")");
    return e;
}

static jnode *name_or_constant(parser *p) {
    static const struct {
        const char *name;
        gr_jkind kind;
        int value;
    } constants[] = {{"true", J_BOOL, 1}, {"True", J_BOOL, 1}, {"false", J_BOOL, 0}, {"False", J_BOOL, 0}, {"none", J_NONE, 0}, {"None", J_NONE, 0}};
    const token *k = peek(p);
    for (int i = 0; i < GR_LEN(constants); i++) {
        if (!is(k, T_NAME, constants[i].name)) continue;
        jnode *e = node(p, N_CONST);
        e->value = J(constants[i].kind, i, constants[i].value);
        p->next++;
        return e;
    }
    jnode *e = node(p, N_NAME);
    p->next++;
    e->name = intern(p, k->s, k->n);
    return e;
}

static jnode *primary(parser *p) {
    const token *k = peek(p);
    if (k->kind == T_NAME) return name_or_constant(p);
    if (k->kind == T_STRING) return string(p);
    if (k->kind == T_INT || k->kind == T_FLOAT) return number(p);
    if (accept(p, T_OP, "(")) return parenthesis(p);
    if (accept(p, T_OP, "[")) return display(p, N_LIST, "]");
    if (accept(p, T_OP, "{")) return display(p, N_DICT, "}");
    unexpected(p, "a value");
    return node(p, N_CONST);
}

/* After "(": up to ")". */
static jargs_node arguments(parser *p, bool parameters) {
    jargs_node args = {0};
    nodes l = {0};
    int32_t *names = NULL;
    int64_t capacity = 0;
    while (p->st == GRAFT_OK && !accept(p, T_OP, ")")) {
        if (l.n) {
            expect(p, T_OP, ",");
            if (accept(p, T_OP, ")")) break;
        }
        if (is(peek(p), T_OP, "**")) fail(p, peek(p)->line, "arguments with ** are not supported");
        bool spread = !parameters && accept(p, T_OP, "*");
        bool named = !spread && peek(p)->kind == T_NAME && is(&p->tokens[p->next + 1], T_OP, "=");
        int32_t name = named || parameters ? expect_name(p, "a parameter's name") : spread ? ARG_SPREAD : ARG_POSITIONAL;
        if (named) p->next++;
        if (parameters && !named && l.n && l.items[l.n - 1]) fail(p, peek(p)->line, "a parameter without default after one with");
        nodes_add(p, &l, parameters && !named ? NULL : expression(p));
        if (!gr_grow(&names, &capacity, l.n, sizeof *names)) break;
        names[l.n - 1] = name;
        if (name < 0 && l.n > 1 && names[l.n - 2] >= 0) fail(p, peek(p)->line, "a positional argument after a named one");
    }
    args.values = nodes_take(p, &l, &args.n);
    args.names = alloc(p, (args.n + 1) * (int64_t)sizeof *names);
    if (args.names && args.n) memcpy(args.names, names, (size_t)args.n * sizeof *names);
    free(names);
    return args;
}

static jnode *subscript(parser *p, jnode *of) {
    jnode *part[3] = {NULL, NULL, NULL}, *e = node(p, N_ITEM);
    int n = 0;
    bool slice = false;
    e->a = of;
    while (p->st == GRAFT_OK && !accept(p, T_OP, "]")) {
        if (accept(p, T_OP, ":")) {
            slice = true;
            if (++n > 2) return unexpected(p, "]"), e;
        } else {
            part[n] = expression(p);
            if (!is(peek(p), T_OP, ":") && !is(peek(p), T_OP, "]")) return unexpected(p, "]"), e;
        }
    }
    if (slice) e->kind = N_SLICE;
    if (!slice && !part[0]) fail(p, e->line, "an empty subscript");
    e->b = part[0], e->c = part[1], e->d = part[2];
    return e;
}

static jnode *call(parser *p, jnode *f) {
    jnode *e = node(p, N_CALL);
    e->a = f;
    e->args = arguments(p, false);
    return e;
}

static jnode *postfix(parser *p, jnode *e) {
    while (p->st == GRAFT_OK) {
        if (accept(p, T_OP, ".")) {
            jnode *of = e;
            if (peek(p)->kind == T_INT) {
                e = node(p, N_ITEM);
                e->a = of;
                e->b = number(p);
                continue;
            }
            e = node(p, N_ATTR);
            e->a = of;
            e->name = expect_name(p, "an attribute");
        } else if (accept(p, T_OP, "[")) {
            e = subscript(p, e);
        } else if (accept(p, T_OP, "(")) {
            e = call(p, e);
        } else {
            break;
        }
    }
    return e;
}

/* "name" or "name.name" of a filter or test, with arguments in parentheses. */
static jnode *filter(parser *p, jnode *of) {
    jnode *e = node(p, N_FILTER);
    e->a = of;
    e->name = expect_name(p, "a filter");
    if (accept(p, T_OP, "(")) e->args = arguments(p, false);
    return e;
}

static jnode *test(parser *p, jnode *of) {
    jnode *e = node(p, N_TEST);
    e->a = of;
    e->op = accept(p, T_NAME, "not");
    e->name = expect_name(p, "a test");
    const token *k = peek(p);
    bool keyword = is(k, T_NAME, "else") || is(k, T_NAME, "or") || is(k, T_NAME, "and") || is(k, T_NAME, "is") || is(k, T_NAME, "if") ||
                   is(k, T_NAME, "not") || is(k, T_NAME, "in");
    bool argument = (k->kind == T_NAME && !keyword) || k->kind == T_STRING || k->kind == T_INT || k->kind == T_FLOAT || is(k, T_OP, "[") ||
                    is(k, T_OP, "{");
    if (accept(p, T_OP, "(")) {
        e->args = arguments(p, false);
    } else if (argument) {
        nodes l = {0};
        nodes_add(p, &l, postfix(p, primary(p)));
        e->args.values = nodes_take(p, &l, &e->args.n);
        e->args.names = alloc(p, sizeof(int32_t));
        if (e->args.names) e->args.names[0] = ARG_POSITIONAL;
    }
    return e;
}

static jnode *filters(parser *p, jnode *e) {
    while (p->st == GRAFT_OK) {
        if (accept(p, T_OP, "|"))
            e = filter(p, e);
        else if (accept(p, T_NAME, "is"))
            e = test(p, e);
        else if (accept(p, T_OP, "("))
            e = call(p, e);
        else
            break;
    }
    return e;
}

static jnode *one(parser *p, gr_jnode_kind kind, jnode *a) {
    jnode *e = node(p, kind);
    e->a = a;
    return e;
}

static jnode *two(parser *p, gr_jnode_kind kind, int op, jnode *a, jnode *b) {
    jnode *e = node(p, kind);
    e->line = a->line;
    e->op = (uint8_t)op;
    e->a = a;
    e->b = b;
    return e;
}

static jnode *unary(parser *p, bool with_filters) {
    jnode *e;
    if (++p->depth > MAX_NESTING) fail(p, peek(p)->line, "nested too deeply");
    if (p->st != GRAFT_OK)
        e = node(p, N_CONST);
    else if (accept(p, T_OP, "-"))
        e = one(p, N_NEGATIVE, unary(p, false));
    else if (accept(p, T_OP, "+"))
        e = one(p, N_POSITIVE, unary(p, false));
    else
        e = primary(p);
    e = postfix(p, e);
    p->depth--;
    return with_filters ? filters(p, e) : e;
}

static jnode *power(parser *p) {
    jnode *e = unary(p, true);
    while (p->st == GRAFT_OK && accept(p, T_OP, "**")) e = two(p, N_BINARY, OP_POW, e, unary(p, true));
    return e;
}

static jnode *product(parser *p) {
    static const struct {
        const char *text;
        int op;
    } operators[] = {{"*", OP_MUL}, {"//", OP_FLOORDIV}, {"/", OP_DIV}, {"%", OP_MOD}};
    jnode *e = power(p);
    for (int i = 0; i < GR_LEN(operators) && p->st == GRAFT_OK; i++) {
        if (!accept(p, T_OP, operators[i].text)) continue;
        e = two(p, N_BINARY, operators[i].op, e, power(p));
        i = -1;
    }
    return e;
}

static jnode *concat(parser *p) {
    jnode *first = product(p);
    if (!is(peek(p), T_OP, "~")) return first;
    jnode *e = node(p, N_CONCAT);
    nodes l = {0};
    nodes_add(p, &l, first);
    while (p->st == GRAFT_OK && accept(p, T_OP, "~")) nodes_add(p, &l, product(p));
    e->items = nodes_take(p, &l, &e->n);
    return e;
}

static jnode *sum(parser *p) {
    jnode *e = concat(p);
    while (p->st == GRAFT_OK) {
        if (accept(p, T_OP, "+"))
            e = two(p, N_BINARY, OP_ADD, e, concat(p));
        else if (accept(p, T_OP, "-"))
            e = two(p, N_BINARY, OP_SUB, e, concat(p));
        else
            break;
    }
    return e;
}

static int comparison(parser *p) { /* -1: none here */
    static const char *const texts[] = {[OP_EQ] = "==", [OP_NE] = "!=", [OP_LT] = "<", [OP_LE] = "<=", [OP_GT] = ">", [OP_GE] = ">="};
    for (int op = 0; op < GR_LEN(texts); op++)
        if (accept(p, T_OP, texts[op])) return op;
    if (accept(p, T_NAME, "in")) return OP_IN;
    if (is(peek(p), T_NAME, "not") && is(&p->tokens[p->next + 1], T_NAME, "in")) {
        p->next += 2;
        return OP_NOT_IN;
    }
    return -1;
}

static jnode *compare(parser *p) {
    jnode *e = sum(p);
    int op = comparison(p);
    if (op < 0) return e;
    jnode *chain = one(p, N_COMPARE, e);
    nodes l = {0};
    while (op >= 0 && p->st == GRAFT_OK) {
        nodes_add(p, &l, two(p, N_BINARY, op, e, sum(p)));
        op = comparison(p);
    }
    chain->items = nodes_take(p, &l, &chain->n);
    return chain;
}

static jnode *negation(parser *p) {
    if (!is(peek(p), T_NAME, "not")) return compare(p);
    if (++p->depth > MAX_NESTING) fail(p, peek(p)->line, "nested too deeply");
    p->next++;
    jnode *e = one(p, N_NOT, p->st == GRAFT_OK ? negation(p) : node(p, N_CONST));
    p->depth--;
    return e;
}

static jnode *conjunction(parser *p) {
    jnode *e = negation(p);
    while (p->st == GRAFT_OK && accept(p, T_NAME, "and")) e = two(p, N_AND, 0, e, negation(p));
    return e;
}

static jnode *disjunction(parser *p) {
    jnode *e = conjunction(p);
    while (p->st == GRAFT_OK && accept(p, T_NAME, "or")) e = two(p, N_OR, 0, e, conjunction(p));
    return e;
}

static jnode *expression(parser *p) {
    if (++p->depth > MAX_NESTING) fail(p, peek(p)->line, "nested too deeply");
    jnode *e = p->st == GRAFT_OK ? disjunction(p) : node(p, N_CONST);
    while (p->st == GRAFT_OK && accept(p, T_NAME, "if")) {
        jnode *choice = node(p, N_COND);
        choice->a = e;
        choice->b = disjunction(p);
        if (accept(p, T_NAME, "else")) choice->c = expression(p);
        e = choice;
    }
    p->depth--;
    return e;
}

static jnode *expression_or_tuple(parser *p) {
    jnode *e = expression(p);
    return is(peek(p), T_OP, ",") ? tuple_from(p, e, NULL) : e;
}

/* ---- statements ---- */

static jnode **body(parser *p, int32_t *n, const char *const *ends);

/* A body up to the one end tag, which is read with its "%}". */
static void body_to(parser *p, jnode *e, const char *end) {
    const char *const ends[] = {end, NULL};
    end_tag(p);
    e->items = body(p, &e->n, ends);
    expect(p, T_NAME, end);
    if (peek(p)->kind == T_NAME) p->next++; /* {% endmacro name %} */
    end_tag(p);
}

static jnode *if_statement(parser *p) { /* after "if" or "elif" */
    static const char *const ends[] = {"elif", "else", "endif", NULL}, *const last[] = {"endif", NULL};
    jnode *e = node(p, N_IF);
    if (++p->depth > MAX_NESTING) fail(p, e->line, "nested too deeply");
    e->a = expression_or_tuple(p);
    end_tag(p);
    e->items = body(p, &e->n, ends);
    if (p->st == GRAFT_OK && accept(p, T_NAME, "elif")) {
        nodes l = {0};
        nodes_add(p, &l, if_statement(p));
        e->other = nodes_take(p, &l, &e->n_other);
    } else if (accept(p, T_NAME, "else")) {
        end_tag(p);
        e->other = body(p, &e->n_other, last);
        expect(p, T_NAME, "endif");
        end_tag(p);
    } else {
        expect(p, T_NAME, "endif");
        end_tag(p);
    }
    p->depth--;
    return e;
}

/* A name, an attribute of one (of a namespace), or a tuple of names. */
static jnode *target(parser *p) {
    nodes l = {0};
    jnode *e = NULL;
    bool bracket = accept(p, T_OP, "(");
    while (p->st == GRAFT_OK) {
        e = node(p, N_NAME);
        e->name = expect_name(p, "a variable's name");
        if (l.n == 0 && accept(p, T_OP, ".")) {
            jnode *of = e;
            e = one(p, N_ATTR, of);
            e->name = expect_name(p, "an attribute");
            return e;
        }
        nodes_add(p, &l, e);
        if (!accept(p, T_OP, ",")) break;
    }
    if (bracket) expect(p, T_OP, ")");
    if (l.n > 1) e = node(p, N_TUPLE);
    if (l.n > 1)
        e->items = nodes_take(p, &l, &e->n);
    else
        free(l.items);
    return e ? e : node(p, N_NAME);
}

static jnode *for_statement(parser *p) {
    static const char *const ends[] = {"else", "endfor", NULL}, *const last[] = {"endfor", NULL};
    jnode *e = node(p, N_FOR);
    e->a = target(p);
    expect(p, T_NAME, "in");
    e->b = disjunction(p);
    if (is(peek(p), T_OP, ",")) e->b = tuple_from(p, e->b, NULL);
    if (accept(p, T_NAME, "if")) e->c = expression(p);
    if (is(peek(p), T_NAME, "recursive")) fail(p, e->line, "\"recursive\" loops are not supported");
    end_tag(p);
    e->items = body(p, &e->n, ends);
    if (accept(p, T_NAME, "else")) {
        end_tag(p);
        e->other = body(p, &e->n_other, last);
    }
    expect(p, T_NAME, "endfor");
    end_tag(p);
    return e;
}

static jnode *set_statement(parser *p) {
    jnode *e = node(p, N_SET);
    e->a = target(p);
    if (accept(p, T_OP, "=")) {
        e->b = expression_or_tuple(p);
        end_tag(p);
        return e;
    }
    e->kind = N_SET_BLOCK;
    if (accept(p, T_OP, "|")) e->b = filters(p, filter(p, NULL));
    body_to(p, e, "endset");
    return e;
}

static jnode *macro_statement(parser *p) {
    jnode *e = node(p, N_MACRO);
    e->name = expect_name(p, "a macro's name");
    expect(p, T_OP, "(");
    e->args = arguments(p, true);
    body_to(p, e, "endmacro");
    return e;
}

static jnode *call_statement(parser *p) {
    jnode *e = node(p, N_CALL_BLOCK);
    if (accept(p, T_OP, "(")) e->args = arguments(p, true);
    e->a = unary(p, false);
    if (e->a->kind != N_CALL) fail(p, e->line, "\"call\" needs a call");
    body_to(p, e, "endcall");
    return e;
}

static jnode *with_statement(parser *p) {
    jnode *e = node(p, N_WITH);
    nodes names = {0}, values = {0};
    while (p->st == GRAFT_OK && peek(p)->kind != T_BLOCK_END) {
        if (names.n) expect(p, T_OP, ",");
        nodes_add(p, &names, target(p));
        expect(p, T_OP, "=");
        nodes_add(p, &values, expression(p));
    }
    e->args.values = nodes_take(p, &values, &e->args.n);
    e->other = nodes_take(p, &names, &e->n_other);
    body_to(p, e, "endwith");
    return e;
}

static jnode *statement(parser *p) { /* after "{%" */
    const token *k = take(p);
    jnode *e;
    if (is(k, T_NAME, "if")) return if_statement(p);
    if (is(k, T_NAME, "for")) return for_statement(p);
    if (is(k, T_NAME, "set")) return set_statement(p);
    if (is(k, T_NAME, "macro")) return macro_statement(p);
    if (is(k, T_NAME, "call")) return call_statement(p);
    if (is(k, T_NAME, "with")) return with_statement(p);
    if (is(k, T_NAME, "filter")) {
        e = node(p, N_FILTER_BLOCK);
        e->a = filters(p, filter(p, NULL));
        body_to(p, e, "endfilter");
        return e;
    }
    if (is(k, T_NAME, "generation")) {
        e = node(p, N_GENERATION);
        body_to(p, e, "endgeneration");
        return e;
    }
    if (is(k, T_NAME, "break") || is(k, T_NAME, "continue")) {
        e = node(p, is(k, T_NAME, "break") ? N_BREAK : N_CONTINUE);
        end_tag(p);
        return e;
    }
    if (k->kind == T_NAME)
        fail(p, k->line, "the statement \"%.*s\" is not supported", (int)GR_MIN(k->n, 40), k->s);
    else
        unexpected(p, "a statement");
    return node(p, N_CONST);
}

/* Statements up to a tag of one of these names; its "{%" is read, its name not. */
static jnode **body(parser *p, int32_t *n, const char *const *ends) {
    nodes l = {0};
    if (++p->depth > MAX_NESTING) fail(p, peek(p)->line, "nested too deeply");
    for (bool done = false; p->st == GRAFT_OK && !done;) {
        const token *k = peek(p);
        jnode *e = NULL;
        if (k->kind == T_TEXT) {
            e = node(p, N_TEXT);
            e->value = constant_text(p, k->s, k->n);
            p->next++;
        } else if (k->kind == T_PRINT) {
            p->next++;
            e = node(p, N_OUTPUT);
            e->a = expression_or_tuple(p);
            if (peek(p)->kind == T_PRINT_END)
                p->next++;
            else
                unexpected(p, "}}");
        } else if (k->kind == T_BLOCK) {
            p->next++;
            for (int i = 0; ends && ends[i] && !done; i++) done = is(peek(p), T_NAME, ends[i]);
            if (!done) e = statement(p);
        } else if (k->kind == T_END) {
            if (ends) fail(p, k->line, "the template ends before \"%s\"", ends[0] ? ends[0] : "");
            done = true;
        } else {
            unexpected(p, "text or a tag");
        }
        if (e) nodes_add(p, &l, e);
    }
    p->depth--;
    return nodes_take(p, &l, n);
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
    if (n > MAX_SOURCE) return gr_fail(err, GRAFT_BAD_INPUT, "chat template %s: %lld bytes, expected at most %d", name, (long long)n, MAX_SOURCE);
    if (!gr_utf8_valid(source, n)) return gr_fail(err, GRAFT_BAD_INPUT, "chat template %s: is not UTF-8", name);
    p.t = gr_calloc(1, sizeof *p.t);
    if (!p.t) return gr_fail_memory(err, "chat template");
    p.t->title = gr_arena_strdup(&p.t->arena, name);
    p.s = normalise(p.t, source, &p.n);
    if (!p.s || !p.t->title) GR_TRY(gr_fail_memory(err, "chat template"));
    lex(&p);
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

bool gr_jinja_uses(const gr_jinja *t, const char *variable) {
    return gr_j_find_name(t, variable) >= 0;
}
