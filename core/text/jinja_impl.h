/* jinja_impl.h - inside of the interpreter, by stage: text to tokens (jinja_lex.c), to a tree (jinja_parse.c,
 * jinja_parse_expression.c), values (jinja_value.c) and their texts (jinja_format.c), what is done with them (jinja_operators.c,
 * jinja_string.c, jinja_builtins.c, jinja_filters.c), and what runs the tree (jinja_run.c). */
#ifndef GR_JINJA_IMPL_H
#define GR_JINJA_IMPL_H

#include "core/text/jinja.h"
#include "core/text/utf8.h"

/* ---- the tree ---- */

typedef enum gr_jkind { /* of values */
                        J_UNDEFINED,
                        J_NONE,
                        J_BOOL,
                        J_INT,
                        J_FLOAT,
                        J_STRING,
                        J_LIST,
                        J_TUPLE,
                        J_DICT,
                        J_NAMESPACE,
                        J_MACRO,
                        J_FUNCTION, /* a built-in, as.p its name */
                        J_METHOD,
                        J_LOOP
} gr_jkind;
typedef gr_jinja_value jvalue;

typedef enum gr_jnode_kind {
    /* statements */
    N_TEXT,
    N_OUTPUT,
    N_IF,           /* a condition, items then, b: else body */
    N_FOR,          /* a target, b iterable, c filter, items body, other: else body */
    N_SET,          /* a target, b value */
    N_SET_BLOCK,    /* a target, b filter chain or NULL, items body */
    N_MACRO,        /* name, parameters in args, items body */
    N_CALL_BLOCK,   /* a call, items body, args parameters */
    N_FILTER_BLOCK, /* a filter chain, items body */
    N_WITH,         /* args targets and values, items body */
    N_GENERATION,
    N_BREAK,
    N_CONTINUE,
    /* expressions */
    N_CONST,
    N_NAME,
    N_ATTR,   /* a, name */
    N_ITEM,   /* a, b */
    N_SLICE,  /* a, b start, c stop, d step */
    N_CALL,   /* a, args */
    N_FILTER, /* a (NULL: the block's text), name, args */
    N_TEST,   /* a, name, args, op: negated */
    N_NOT,
    N_NEGATIVE,
    N_POSITIVE,
    N_BINARY, /* op, a, b */
    N_CONCAT, /* items, by ~ */
    N_AND,
    N_OR,
    N_COMPARE, /* a, items with op */
    N_COND,    /* a value, b condition, c else or NULL */
    N_LIST,
    N_TUPLE,
    N_DICT /* items: key, value, key ... */
} gr_jnode_kind;

enum { OP_EQ, OP_NE, OP_LT, OP_LE, OP_GT, OP_GE, OP_IN, OP_NOT_IN, OP_ADD, OP_SUB, OP_MUL, OP_DIV, OP_FLOORDIV, OP_MOD, OP_POW };

enum { GR_J_MAX_STEPS = 1 << 22 };             /* nodes that one rendering may go through */
enum { ARG_POSITIONAL = -1, ARG_SPREAD = -2 }; /* in place of an argument's name; *list gives several */

typedef struct gr_jnode jnode;
typedef struct gr_jargs_node { /* arguments of a call, or parameters of a macro: positional ones first */
    jnode **values;            /* [n]; NULL where a parameter has no default */
    int32_t *names;            /* [n] */
    int n;
} jargs_node;

struct gr_jnode {
    uint8_t kind, op;
    int32_t line, name, n;
    jnode *a, *b, *c, *d;
    jnode **items; /* [n] */
    jnode **other; /* [n_other]: a second body */
    int32_t n_other;
    jargs_node args;
    jvalue value; /* of a constant, or the text */
};

struct gr_jinja {
    gr_arena arena;
    const char *title;  /* for messages */
    const char **names; /* every identifier of the template, by number */
    int32_t n_names;
    int64_t name_capacity;
    jnode **body;
    int32_t n_body;
};

int32_t gr_j_find_name(const gr_jinja *t, const char *name); /* -1 when the template lacks it */
/* BAD_INPUT naming the template and the line (0: none known). */
graft_status gr_j_complain(graft_error *err, const char *title, int32_t line, const char *format, va_list args);

/* ---- parsing ---- */

enum { MAX_NESTING = 200 };
typedef enum token_kind {
    T_TEXT,
    T_BLOCK,
    T_BLOCK_END,
    T_PRINT,
    T_PRINT_END,
    T_NAME,
    T_STRING,
    T_INT,
    T_FLOAT,
    T_OP,
    T_END
} token_kind;

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

typedef struct node_list { /* in the making; moved into the tree's memory at the end */
    jnode **items;
    int64_t n, capacity;
} node_list;

void gr_jp_fail(parser *p, int32_t line, const char *format, ...) GR_PRINTF(3, 4); /* once */
void gr_jp_lex(parser *p);
const token *gr_jp_peek(const parser *p);
bool gr_jp_is(const token *k, token_kind kind, const char *text);
bool gr_jp_accept(parser *p, token_kind kind, const char *text); /* goes past a token of this kind and text */
void gr_jp_unexpected(parser *p, const char *wanted);
void gr_jp_expect(parser *p, token_kind kind, const char *text);
int32_t gr_jp_expect_name(parser *p, const char *wanted); /* its number */
/* Nodes are never NULL, after a failure neither. */
jnode *gr_jp_node(parser *p, gr_jnode_kind kind);
jnode *gr_jp_one(parser *p, gr_jnode_kind kind, jnode *a);
void gr_jp_nodes_add(parser *p, node_list *l, jnode *e);
jnode **gr_jp_nodes_take(parser *p, node_list *l, int32_t *n);
gr_jinja_value gr_jp_constant_text(parser *p, const char *s, int64_t n);
jnode *gr_jp_expression(parser *p);
jnode *gr_jp_expression_or_tuple(parser *p);
jnode *gr_jp_disjunction(parser *p);                                 /* an expression without if */
jnode *gr_jp_tuple_from(parser *p, jnode *first, const char *close); /* after an expression and a comma */
jnode *gr_jp_unary(parser *p, bool with_filters);
jnode *gr_jp_filter(parser *p, jnode *of);              /* a name, and arguments in parentheses */
jnode *gr_jp_filters(parser *p, jnode *e);              /* all that follow e */
jargs_node gr_jp_arguments(parser *p, bool parameters); /* up to and with ")" */

/* ---- values ---- */

typedef struct jstr {
    const char *s;
    int64_t n;
    const gr_jinja_span *spans; /* NULL: all of one origin */
    int32_t n_spans, origin;
    bool markup; /* of the filter safe: what is added to it is escaped, as markupsafe does */
} jstr;

typedef struct jlist {
    jvalue *items;
    int64_t n, capacity;
    int32_t origin;
    bool lazy, spent; /* a generator: true whatever it holds, without a length, gone over once */
} jlist;

typedef struct jdict { /* in the order of insertion; of a namespace too */
    jvalue *keys, *values;
    int64_t n, capacity;
    int32_t origin;
} jdict;

typedef struct jscope {
    struct jscope *parent;
    struct jvariable {
        int32_t name;
        jvalue value;
    } * variables;
    int32_t n, capacity;
} jscope;

typedef struct jmacro {
    const jnode *node;
    jscope *scope; /* where it was defined */
} jmacro;

typedef struct jmethod {
    jvalue self;
    const char *name;
} jmethod;

typedef struct jloop {
    const jlist *items;
    int64_t index;
    jvalue changed; /* last argument of loop.changed */
    bool has_changed;
} jloop;

typedef struct jargs { /* evaluated */
    jvalue *values;
    const char **names; /* NULL: positional; these come first */
    int n, n_positional;
    int32_t line;
} jargs;

/* A string in the making. */
typedef struct jbuild {
    char *s;
    gr_jinja_span *spans;
    int64_t n, capacity, n_spans, span_capacity;
    int32_t generation; /* GR_JINJA_GENERATION within such a block, added to all that comes */
} jbuild;

typedef struct jchunk {
    struct jchunk *next;
    int64_t size;
    _Alignas(16) char data[];
} jchunk;

struct gr_jinja_run {
    const gr_jinja *t;
    jchunk *chunks, *chunk; /* bump memory, reused by the next begin */
    int64_t chunk_used, allocated, steps;
    int depth;
    jscope globals;
    jscope *scope;
    jbuild *out;
    jbuild output;
    jloop *loop;
    int flow; /* FLOW_BREAK, FLOW_CONTINUE */
    int64_t now;
    bool utc, raised;
    graft_status st;
    graft_error *err;
    _Alignas(16) char spare[1024];
};
typedef gr_jinja_run run;

void *gr_j_alloc(run *r, int64_t bytes); /* never NULL: fails the run and gives a spare place when there is none */
/* Fails the run once; gives undefined. line 0: none known. */
jvalue gr_j_fail(run *r, int32_t line, const char *format, ...) GR_PRINTF(3, 4);

static inline bool gr_j_ok(const run *r) { return r->st == GRAFT_OK; }
#define J(kind_, field, v) ((jvalue){.kind = (kind_), .as.field = (v)})
static inline const jstr *gr_j_str(jvalue v) { return v.as.p; }
static inline jlist *gr_j_items(jvalue v) { return (jlist *)(uintptr_t)v.as.p; }
static inline jdict *gr_j_dict(jvalue v) { return (jdict *)(uintptr_t)v.as.p; }
static inline bool gr_j_is_list(jvalue v) { return v.kind == J_LIST || v.kind == J_TUPLE; }

void gr_jb_add(run *r, jbuild *b, const char *s, int64_t n, int32_t origin);
void gr_jb_slice(run *r, jbuild *b, const jstr *s, int64_t from, int64_t to);
void gr_jb_str(run *r, jbuild *b, jvalue v);       /* str(v) */
jvalue gr_jb_take(run *r, jbuild *b, bool markup); /* into the run's memory; b is emptied */
void gr_jb_release(jbuild *b);

jvalue gr_j_text(run *r, const char *s, int64_t n, int32_t origin); /* borrows s */
jvalue gr_j_slice(run *r, jvalue string, int64_t from, int64_t to); /* bytes */
jvalue gr_j_concat(run *r, const jvalue *strings, int n, bool markup);
jvalue gr_j_escape(run *r, jvalue string); /* &, <, >, quotes; the result is markup */
jvalue gr_j_to_string(run *r, jvalue v);   /* str(v) */
jvalue gr_j_repr(run *r, jvalue v);
jvalue gr_j_new_list(run *r, gr_jkind kind, int64_t capacity);
void gr_j_push(run *r, jvalue list, jvalue item);
void gr_j_extend(run *r, jvalue list, const jlist *by);
jvalue gr_j_new_dict(run *r, gr_jkind kind, int64_t capacity);
void gr_j_put(run *r, jvalue dict, jvalue key, jvalue value);
bool gr_j_is_text(jvalue v, const char *text); /* a string of this text */
const jvalue *gr_j_get(const jdict *d, jvalue key);
const jvalue *gr_j_get_text(const jdict *d, const char *key);
bool gr_j_truth(jvalue v);
bool gr_j_equal(jvalue a, jvalue b);
/* -1, 0, 1; fails the run where Python would raise TypeError. */
int gr_j_order(run *r, int32_t line, jvalue a, jvalue b);
bool gr_j_contains(run *r, int32_t line, jvalue container, jvalue item);
/* The items of what may be iterated, as a list; fails the run for what may not. */
jlist *gr_j_iterate(run *r, int32_t line, jvalue v);
int64_t gr_j_length(run *r, int32_t line, jvalue v);
const char *gr_j_type(jvalue v);                                  /* Python's name of its type */
bool gr_j_number(jvalue v, double *f, int64_t *i, bool *integer); /* bools count */
typedef struct jjson {                                            /* of json.dumps */
    bool ascii, sort;
    int indent; /* -1: one line */
    const char *item, *key;
} jjson;
jvalue gr_j_dumps(run *r, int32_t line, jvalue v, const jjson *how);

/* Characters of a string. */
int64_t gr_j_count(const jstr *s);
int64_t gr_j_offset(const jstr *s, int64_t character); /* in bytes */
bool gr_j_is_space(int32_t point);                     /* as str.isspace */

/* ---- operators ---- */

jvalue gr_j_undefined(const char *name);
jvalue gr_j_fail_undefined(run *r, int32_t line, jvalue v);
jvalue gr_j_attribute(run *r, int32_t line, jvalue object, const char *name);
jvalue gr_j_item(run *r, int32_t line, jvalue object, jvalue key);
jvalue gr_j_binary(run *r, int32_t line, int op, jvalue a, jvalue b);
bool gr_j_compare(run *r, int32_t line, int op, jvalue a, jvalue b);
jvalue gr_j_format(run *r, int32_t line, jvalue format, jvalue values); /* format % values */

/* ---- running ---- */

jvalue gr_j_eval(run *r, const jnode *e);

/* ---- built-ins ---- */

/* A method or filter or test of v, or a function (without v). how: which one, where several share code. */
typedef jvalue gr_jbuiltin(run *r, jvalue v, const jargs *args, int how);
typedef struct jbuiltin { /* a row of a table, which ends with a NULL name; call NULL: known, not supported */
    const char *name;
    gr_jbuiltin *call;
    int how;
} jbuiltin;
const jbuiltin *gr_j_find_builtin(const jbuiltin *rows, const char *name); /* NULL: none */

/* Argument i (-1: by name alone) or of this name; NULL, undefined or `otherwise` when not given. */
const jvalue *gr_j_given(const jargs *args, int i, const char *name);
jvalue gr_j_arg(const jargs *args, int i, const char *name);
bool gr_j_arg_bool(const jargs *args, int i, const char *name, bool otherwise);
int64_t gr_j_arg_int(run *r, const jargs *args, int i, const char *name, int64_t otherwise);
const jstr *gr_j_arg_string(run *r, const jargs *args, int i, const char *name); /* NULL too for none, and for what fails the run */
const char *gr_j_c_string(run *r, const jstr *s);                                /* in the run's memory */

jvalue gr_j_filter(run *r, const char *name, jvalue input, const jargs *args);
bool gr_j_test(run *r, const char *name, jvalue input, const jargs *args);
bool gr_j_has_method(jvalue object, const char *name);
jvalue gr_j_method(run *r, jvalue object, const char *name, const jargs *args);
bool gr_j_is_function(const char *name);
jvalue gr_j_function(run *r, const char *name, const jargs *args);
enum { DICT_ITEMS, DICT_KEYS, DICT_VALUES };
jvalue gr_j_dict_part(run *r, const jdict *d, int which);
gr_jbuiltin gr_j_itself;

/* Of strings. */
enum { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_CAPITALIZE, CASE_FOLD, CASE_SWAP };
enum { CLASS_DIGIT, CLASS_ALPHA, CLASS_ALNUM, CLASS_SPACE, CLASS_UPPER, CLASS_LOWER };
extern const jbuiltin gr_j_text_methods[];
gr_jbuiltin gr_js_case, gr_js_all_are; /* how: CASE_, CLASS_ */
gr_jbuiltin gr_js_strip;               /* white space, or the characters of the argument; how: 1 left, 2 right, 3 both */
jvalue gr_j_replace(run *r, jvalue v, const jstr *old, jvalue by, int64_t count);
jvalue gr_j_split_lines(run *r, jvalue v, bool keep);
jvalue gr_j_join(run *r, int32_t line, jvalue items, jvalue by);
int32_t gr_j_origin_at(const jstr *s, int64_t at);

#endif
