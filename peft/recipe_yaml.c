#include "peft/recipe_yaml.h"

#include <string.h>
#include <yaml.h>

enum { MAX_DEPTH = 16, MAX_NODES = 8192, MAX_ANCHORS = 64, MAX_KEY = 128 };

typedef struct reader {
    yaml_parser_t parser;
    yaml_event_t event; /* the current one, owned between next() calls */
    bool has_event;
    gr_arena *arena;
    const char *text, *file;
    int64_t len;
    bool from_file;
    int n_nodes;
    struct anchor {
        const char *name;
        gr_yaml *node;
    } anchors[MAX_ANCHORS];
    int n_anchors;
    graft_error *err;
} reader;

static graft_status fail_at(const reader *r, int line, int column, const char *what) {
    if (!r->from_file) return gr_fail(r->err, GRAFT_BAD_USAGE, "%s: %s", r->file, what);
    return gr_fail(r->err, GRAFT_BAD_USAGE, "%s:%d:%d: %s", r->file, line, column, what);
}

static graft_status fail_here(const reader *r, const char *what) {
    return fail_at(r, (int)r->event.start_mark.line + 1, (int)r->event.start_mark.column + 1, what);
}

/* libyaml's own complaint; errors of its byte reader carry an offset instead of a mark. */
static graft_status fail_parser(const reader *r) {
    const yaml_parser_t *p = &r->parser;
    char what[256];
    int line = (int)p->problem_mark.line + 1, column = (int)p->problem_mark.column + 1;
    if (p->error == YAML_MEMORY_ERROR) return gr_fail_memory(r->err, r->file);
    if (p->error == YAML_READER_ERROR) {
        line = column = 1;
        for (int64_t i = 0; i < (int64_t)p->problem_offset && i < r->len; i++, column++)
            if (r->text[i] == '\n') {
                line++;
                column = 0;
            }
    }
    snprintf(what, sizeof what, "not valid YAML: %s%s%s", p->problem ? p->problem : "unknown problem", p->context ? " " : "",
             p->context ? p->context : "");
    return fail_at(r, line, column, what);
}

static graft_status next(reader *r) {
    if (r->has_event) yaml_event_delete(&r->event);
    r->has_event = false;
    if (!yaml_parser_parse(&r->parser, &r->event)) return fail_parser(r);
    r->has_event = true;
    return GRAFT_OK;
}

static gr_yaml *new_node(reader *r, gr_yaml_kind kind) {
    gr_yaml *n = gr_arena_alloc(r->arena, sizeof *n);
    if (!n) {
        gr_fail_memory(r->err, r->file);
        return NULL;
    }
    if (++r->n_nodes > MAX_NODES) {
        fail_here(r, "more values than a recipe may have (aliases count as what they stand for)");
        return NULL;
    }
    n->kind = kind;
    n->file = r->file;
    n->from_file = r->from_file;
    n->line = (int)r->event.start_mark.line + 1;
    n->column = (int)r->event.start_mark.column + 1;
    return n;
}

static graft_status failed(const reader *r) { return r->err ? r->err->status : GRAFT_BAD_USAGE; }

/* The scalar's text as a C string. */
static graft_status scalar_text(reader *r, const char **text) {
    size_t n = r->event.data.scalar.length;
    const char *value = (const char *)r->event.data.scalar.value;
    if (strlen(value) != n) return fail_here(r, "a value contains a NUL character");
    *text = gr_arena_strdup(r->arena, value);
    return *text ? GRAFT_OK : gr_fail_memory(r->err, r->file);
}

static gr_yaml *copy_tree(reader *r, const gr_yaml *from) {
    gr_yaml *n = new_node(r, from->kind);
    if (!n) return NULL;
    *n = *from;
    n->next = n->child = NULL;
    gr_yaml **tail = &n->child;
    for (const gr_yaml *c = from->child; c; c = c->next) {
        gr_yaml *copy = copy_tree(r, c);
        if (!copy) return NULL;
        *tail = copy;
        tail = &copy->next;
    }
    return n;
}

static graft_status resolve_alias(reader *r, gr_yaml **out) {
    const char *name = (const char *)r->event.data.alias.anchor;
    for (int i = r->n_anchors - 1; i >= 0; i--)
        if (strcmp(r->anchors[i].name, name) == 0) {
            *out = copy_tree(r, r->anchors[i].node);
            return *out ? GRAFT_OK : failed(r);
        }
    return fail_here(r, "an alias without an anchor before it");
}

static graft_status keep_anchor(reader *r, const char *name, gr_yaml *node) {
    if (!name) return GRAFT_OK;
    if (r->n_anchors == MAX_ANCHORS) return fail_here(r, "more anchors than a recipe may have");
    r->anchors[r->n_anchors++] = (struct anchor){name, node};
    return GRAFT_OK;
}

static graft_status read_node(reader *r, int depth, gr_yaml **out);

/* One "key: value"; the current event is the key. */
static graft_status read_entry(reader *r, int depth, const gr_yaml *map, gr_yaml **out) {
    graft_status st = GRAFT_OK;
    const char *key = NULL;
    char what[160];
    if (r->event.type != YAML_SCALAR_EVENT) return fail_here(r, "a key must be a plain word");
    int line = (int)r->event.start_mark.line + 1, column = (int)r->event.start_mark.column + 1;
    GR_TRY(scalar_text(r, &key));
    if (strlen(key) > MAX_KEY) return fail_at(r, line, column, "a key longer than 128 bytes");
    for (const gr_yaml *c = map->child; c; c = c->next)
        if (strcmp(c->key, key) == 0) {
            snprintf(what, sizeof what, "key \"%.64s\" is given twice (first in line %d)", key, c->key_line);
            return fail_at(r, line, column, what);
        }
    GR_TRY(next(r));
    GR_TRY(read_node(r, depth, out));
    (*out)->key = key;
    (*out)->key_line = line;
    (*out)->key_column = column;
done:
    return st;
}

/* The entries of a list or map up to its end event. */
static graft_status read_children(reader *r, int depth, gr_yaml *parent) {
    graft_status st = GRAFT_OK;
    yaml_event_type_t end = parent->kind == GR_YAML_MAP ? YAML_MAPPING_END_EVENT : YAML_SEQUENCE_END_EVENT;
    gr_yaml **tail = &parent->child;
    GR_TRY(next(r));
    while (r->event.type != end) {
        gr_yaml *child = NULL;
        if (parent->kind == GR_YAML_MAP) GR_TRY(read_entry(r, depth, parent, &child));
        else GR_TRY(read_node(r, depth, &child));
        *tail = child;
        tail = &child->next;
        GR_TRY(next(r));
    }
done:
    return st;
}

/* The node that the current event starts; ends on its last event. */
static graft_status read_node(reader *r, int depth, gr_yaml **out) {
    graft_status st = GRAFT_OK;
    const yaml_char_t *tag = NULL, *anchor_name = NULL;
    const char *anchor = NULL;
    gr_yaml *n = NULL;
    if (depth >= MAX_DEPTH) return fail_here(r, "nested too deep for a recipe");
    switch (r->event.type) {
    case YAML_ALIAS_EVENT: return resolve_alias(r, out);
    case YAML_SCALAR_EVENT:
        tag = r->event.data.scalar.tag;
        anchor_name = r->event.data.scalar.anchor;
        break;
    case YAML_MAPPING_START_EVENT:
        tag = r->event.data.mapping_start.tag;
        anchor_name = r->event.data.mapping_start.anchor;
        break;
    case YAML_SEQUENCE_START_EVENT:
        tag = r->event.data.sequence_start.tag;
        anchor_name = r->event.data.sequence_start.anchor;
        break;
    default: return fail_here(r, "a value was expected here");
    }
    if (tag) return fail_here(r, "YAML tags (!name) are not known in recipes");
    if (anchor_name && !(anchor = gr_arena_strdup(r->arena, (const char *)anchor_name))) return gr_fail_memory(r->err, r->file);
    n = new_node(r, r->event.type == YAML_SCALAR_EVENT          ? GR_YAML_SCALAR
                    : r->event.type == YAML_MAPPING_START_EVENT ? GR_YAML_MAP
                                                                : GR_YAML_LIST);
    if (!n) return failed(r);
    if (n->kind == GR_YAML_SCALAR) {
        n->plain = r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
        GR_TRY(scalar_text(r, &n->text));
    } else {
        GR_TRY(read_children(r, depth + 1, n));
    }
    GR_TRY(keep_anchor(r, anchor, n));
    *out = n;
done:
    return st;
}

static graft_status read_stream(reader *r, gr_yaml **out) {
    graft_status st = GRAFT_OK;
    GR_TRY(next(r)); /* stream start */
    GR_TRY(next(r));
    if (r->event.type == YAML_STREAM_END_EVENT) {
        *out = new_node(r, GR_YAML_SCALAR);
        if (!*out) return failed(r);
        (*out)->text = "";
        (*out)->plain = true;
        return GRAFT_OK;
    }
    GR_TRY(next(r));
    GR_TRY(read_node(r, 0, out));
    GR_TRY(next(r)); /* document end */
    GR_TRY(next(r));
    if (r->event.type != YAML_STREAM_END_EVENT) return fail_here(r, "a recipe is one YAML document; a second one starts here");
done:
    return st;
}

graft_status gr_yaml_parse(gr_yaml **out, gr_arena *arena, const char *text, int64_t len, const char *file, bool from_file,
                           graft_error *err) {
    graft_error ignored = {0};
    reader r = {.arena = arena, .text = text, .len = len, .file = file, .from_file = from_file, .err = err ? err : &ignored};
    gr_yaml *tree = NULL;
    if (!yaml_parser_initialize(&r.parser)) return gr_fail_memory(err, file);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, (size_t)len);
    graft_status st = read_stream(&r, &tree);
    if (r.has_event) yaml_event_delete(&r.event);
    yaml_parser_delete(&r.parser);
    if (st == GRAFT_OK) *out = tree;
    return st;
}

gr_yaml *gr_yaml_find(const gr_yaml *map, const char *key) {
    if (!map || map->kind != GR_YAML_MAP) return NULL;
    for (gr_yaml *c = map->child; c; c = c->next)
        if (strcmp(c->key, key) == 0) return c;
    return NULL;
}

void gr_yaml_set(gr_yaml *map, gr_yaml *entry) {
    gr_yaml **link = &map->child;
    while (*link && strcmp((*link)->key, entry->key) != 0) link = &(*link)->next;
    entry->next = *link ? (*link)->next : NULL;
    *link = entry;
}

gr_yaml *gr_yaml_merge(gr_yaml *base, gr_yaml *over) {
    if (base->kind != GR_YAML_MAP || over->kind != GR_YAML_MAP) return over;
    base->beneath = base->beneath && over->beneath;
    for (gr_yaml *c = over->child, *following; c; c = following) {
        following = c->next;
        gr_yaml *old = gr_yaml_find(base, c->key);
        gr_yaml_set(base, old ? gr_yaml_merge(old, c) : c);
    }
    return base;
}

bool gr_yaml_is_null(const gr_yaml *n) {
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL"};
    if (n->kind != GR_YAML_SCALAR || !n->plain) return false;
    for (int i = 0; i < GR_LEN(nulls); i++)
        if (strcmp(n->text, nulls[i]) == 0) return true;
    return false;
}

const char *gr_yaml_describe(const gr_yaml *n, char *out, size_t size) {
    if (n->kind == GR_YAML_LIST) snprintf(out, size, "a list");
    else if (n->kind == GR_YAML_MAP) snprintf(out, size, "a mapping (key: value)");
    else if (gr_yaml_is_null(n)) snprintf(out, size, "nothing (null)");
    else snprintf(out, size, "%s\"%.60s\"%s", n->plain ? "" : "the quoted text ", n->text, strlen(n->text) > 60 ? "..." : "");
    return out;
}

graft_status gr_yaml_fail(const gr_yaml *n, bool at_key, graft_error *err, const char *format, ...) {
    char what[800];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    if (!n->from_file) return gr_fail(err, GRAFT_BAD_USAGE, "%s: %s", n->file, what);
    return gr_fail(err, GRAFT_BAD_USAGE, "%s:%d:%d: %s", n->file, at_key ? n->key_line : n->line,
                   at_key ? n->key_column : n->column, what);
}
