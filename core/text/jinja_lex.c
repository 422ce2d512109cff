/* A template's text as tokens: jinja2's lexer with trim_blocks and lstrip_blocks. */
#include <string.h>

#include "core/text/jinja_impl.h"

void gr_jp_fail(parser *p, int32_t line, const char *format, ...) {
    va_list args;
    if (p->st != GRAFT_OK) return;
    va_start(args, format);
    p->st = gr_j_complain(p->err, p->t->title, line, format, args);
    va_end(args);
}

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
    if (sign == '-') skip(p, spaces(p->s + p->at, p->n - p->at));
    else if (!print && sign != '+' && p->at < p->n && p->s[p->at] == '\n') skip(p, 1);
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
        if (p->at >= p->n) return gr_jp_fail(p, opened, "%s is not closed", print ? "\"{{\"" : "\"{%\"");
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
            if (i >= left) return gr_jp_fail(p, p->line, "a string is not closed");
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
            if (found < 0) return gr_jp_fail(p, p->line, "unexpected character \"%c\"", c);
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
    if (!end) return gr_jp_fail(p, p->line, "expected %%} after raw"), true;
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
        if (!end) return gr_jp_fail(p, p->line, "expected %%} after endraw"), true;
        p->at += end;
        strip_after(p, sign, false);
        *line_start = p->s[p->at - 1] == '\n';
        return true;
    }
    gr_jp_fail(p, p->line, "\"raw\" is not closed");
    return true;
}

void gr_jp_lex(parser *p) {
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
            if (!close) return gr_jp_fail(p, line, "\"{#\" is not closed");
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
