/* Values as Python has them, and strings whose bytes know where they came from. */
#include <stdlib.h>
#include <string.h>

#include "core/text/jinja_impl.h"

enum { CHUNK_BYTES = 1 << 16, MAX_BYTES = 1 << 28, MAX_DEPTH = 100 };

/* ---- memory ---- */

graft_status gr_j_complain(graft_error *err, const char *title, int32_t line, const char *format, va_list args) {
    char what[400], at[32] = "";
    vsnprintf(what, sizeof what, format, args);
    for (char *c = what; *c; c++)
        if ((uint8_t)*c < 0x20) *c = ' ';
    if (line > 0) snprintf(at, sizeof at, ", line %d", line);
    return gr_fail(err, GRAFT_BAD_INPUT, "chat template %s%s: %s", title, at, what);
}

jvalue gr_j_fail(run *r, int32_t line, const char *format, ...) {
    va_list args;
    if (r->st != GRAFT_OK) return (jvalue){0};
    va_start(args, format);
    r->st = gr_j_complain(r->err, r->t->title, line, format, args);
    va_end(args);
    return (jvalue){0};
}

static void memory_failed(run *r) {
    if (r->st == GRAFT_OK) r->st = gr_fail_memory(r->err, "rendering a chat template");
}

/* After a failure small requests get the run's spare place, which is written and never read. */
void *gr_j_alloc(run *r, int64_t bytes) {
    bytes = (bytes + 15) / 16 * 16;
    r->allocated += bytes;
    if (r->allocated > MAX_BYTES) gr_j_fail(r, 0, "takes more than %d MiB for one conversation", MAX_BYTES >> 20);
    if (!gr_j_ok(r)) return bytes <= (int64_t)sizeof r->spare ? r->spare : NULL;
    if (!r->chunk || r->chunk->size - r->chunk_used < bytes) {
        jchunk **next = r->chunk ? &r->chunk->next : &r->chunks;
        if (*next && (*next)->size < bytes) { /* too small for this one: those behind it go */
            for (jchunk *c = *next, *after; c; c = after) after = c->next, free(c);
            *next = NULL;
        }
        if (!*next) {
            int64_t size = GR_MAX(bytes, CHUNK_BYTES);
            *next = malloc(sizeof(jchunk) + (size_t)size);
            if (!*next) return memory_failed(r), bytes <= (int64_t)sizeof r->spare ? r->spare : NULL;
            (*next)->next = NULL;
            (*next)->size = size;
        }
        r->chunk = *next;
        r->chunk_used = 0;
    }
    void *memory = r->chunk->data + r->chunk_used;
    r->chunk_used += bytes;
    return memory;
}

/* ---- strings in the making ---- */

static bool reserve(run *r, jbuild *b, int64_t n) {
    if (!gr_j_ok(r)) return false;
    if (b->n + n > MAX_BYTES / 4) return gr_j_fail(r, 0, "writes more than %d MiB", MAX_BYTES >> 22), false;
    if (gr_grow(&b->s, &b->capacity, b->n + n + 1, 1) && gr_grow(&b->spans, &b->span_capacity, b->n_spans + 1, sizeof *b->spans))
        return true;
    memory_failed(r);
    return false;
}

void gr_jb_add(run *r, jbuild *b, const char *s, int64_t n, int32_t origin) {
    if (n <= 0 || !reserve(r, b, n)) return;
    memcpy(b->s + b->n, s, (size_t)n);
    b->n += n;
    origin |= b->generation;
    if (b->n_spans && b->spans[b->n_spans - 1].origin == origin) b->spans[b->n_spans - 1].end = b->n;
    else b->spans[b->n_spans++] = (gr_jinja_span){b->n, origin};
}

void gr_jb_slice(run *r, jbuild *b, const jstr *s, int64_t from, int64_t to) {
    if (!s->spans) {
        gr_jb_add(r, b, s->s + from, to - from, s->origin);
        return;
    }
    for (int32_t i = 0; i < s->n_spans && from < to; i++) {
        if (s->spans[i].end <= from) continue;
        int64_t end = GR_MIN(to, s->spans[i].end);
        gr_jb_add(r, b, s->s + from, end - from, s->spans[i].origin);
        from = end;
    }
}

jvalue gr_jb_take(run *r, jbuild *b, bool markup) {
    jstr *v = gr_j_alloc(r, sizeof *v);
    char *s = gr_j_alloc(r, b->n + 1);
    *v = (jstr){.s = "", .markup = markup};
    if (gr_j_ok(r) && b->n > 0) {
        memcpy(s, b->s, (size_t)b->n);
        v->s = s;
        v->n = b->n;
        v->origin = b->spans[0].origin;
        if (b->n_spans > 1) {
            gr_jinja_span *spans = gr_j_alloc(r, b->n_spans * (int64_t)sizeof *spans);
            if (gr_j_ok(r))
                memcpy(spans, b->spans, (size_t)b->n_spans * sizeof *spans), v->spans = spans, v->n_spans = (int32_t)b->n_spans;
        }
    }
    gr_jb_release(b);
    return J(J_STRING, p, v);
}

void gr_jb_release(jbuild *b) {
    free(b->s);
    free(b->spans);
    *b = (jbuild){0};
}

jvalue gr_j_text(run *r, const char *s, int64_t n, int32_t origin) {
    jstr *v = gr_j_alloc(r, sizeof *v);
    *v = (jstr){.s = s, .n = n, .origin = origin};
    return J(J_STRING, p, v);
}

jvalue gr_j_slice(run *r, jvalue string, int64_t from, int64_t to) {
    const jstr *s = gr_j_str(string);
    if (from <= 0 && to >= s->n) return string;
    if (from >= to) from = to = 0;
    jstr *v = gr_j_alloc(r, sizeof *v);
    *v = (jstr){.s = s->s + from, .n = to - from, .origin = s->origin, .markup = s->markup};
    if (!s->spans || from == to) return J(J_STRING, p, v);
    int32_t first = 0, last;
    while (s->spans[first].end <= from) first++;
    for (last = first; s->spans[last].end < to;) last++;
    v->origin = s->spans[first].origin;
    if (last == first) return J(J_STRING, p, v);
    gr_jinja_span *spans = gr_j_alloc(r, (last - first + 1) * (int64_t)sizeof *spans);
    if (!gr_j_ok(r)) return J(J_STRING, p, v);
    for (int32_t i = first; i <= last; i++)
        spans[i - first] = (gr_jinja_span){GR_MIN(to, s->spans[i].end) - from, s->spans[i].origin};
    v->spans = spans;
    v->n_spans = last - first + 1;
    return J(J_STRING, p, v);
}

jvalue gr_j_concat(run *r, const jvalue *strings, int n, bool markup) {
    int64_t bytes = 0, n_spans = 0;
    for (int i = 0; i < n; i++) bytes += gr_j_str(strings[i])->n, n_spans += GR_MAX(1, gr_j_str(strings[i])->n_spans);
    jstr *v = gr_j_alloc(r, sizeof *v);
    char *s = gr_j_alloc(r, bytes + 1);
    gr_jinja_span *spans = gr_j_alloc(r, n_spans * (int64_t)sizeof *spans);
    *v = (jstr){.s = "", .markup = markup};
    if (!gr_j_ok(r)) return J(J_STRING, p, v);
    int64_t at = 0;
    int32_t k = 0;
    for (int i = 0; i < n; i++) {
        const jstr *part = gr_j_str(strings[i]);
        if (part->n == 0) continue;
        memcpy(s + at, part->s, (size_t)part->n);
        for (int32_t j = 0; j < GR_MAX(1, part->n_spans); j++) {
            gr_jinja_span span = part->spans ? part->spans[j] : (gr_jinja_span){part->n, part->origin};
            span.end += at;
            if (k && spans[k - 1].origin == span.origin) spans[k - 1].end = span.end;
            else spans[k++] = span;
        }
        at += part->n;
    }
    v->s = s;
    v->n = at;
    v->origin = k ? spans[0].origin : 0;
    if (k > 1) v->spans = spans, v->n_spans = k;
    return J(J_STRING, p, v);
}

jvalue gr_j_escape(run *r, jvalue string) {
    static const char from[] = "&<>'\"";
    static const char *const to[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    const jstr *s = gr_j_str(string);
    if (s->markup) return string;
    jbuild b = {0};
    int64_t start = 0;
    for (int64_t i = 0; i < s->n; i++) {
        const char *found = s->s[i] ? strchr(from, s->s[i]) : NULL;
        if (!found) continue;
        gr_jb_slice(r, &b, s, start, i);
        gr_jb_add(r, &b, to[found - from], (int64_t)strlen(to[found - from]), gr_j_str(gr_j_slice(r, string, i, i + 1))->origin);
        start = i + 1;
    }
    gr_jb_slice(r, &b, s, start, s->n);
    return gr_jb_take(r, &b, true);
}

/* ---- characters ---- */

int64_t gr_j_count(const jstr *s) {
    int64_t n = 0;
    for (int64_t i = 0; i < s->n; i++) n += ((uint8_t)s->s[i] & 0xC0) != 0x80;
    return n;
}

int64_t gr_j_offset(const jstr *s, int64_t character) {
    int64_t i = 0;
    for (int size; i < s->n && character > 0; i += size, character--) gr_utf8_read(s->s + i, s->n - i, &size);
    return i;
}

bool gr_j_is_space(int32_t c) {
    return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/* ---- lists and dicts ---- */

jvalue gr_j_new_list(run *r, gr_jkind kind, int64_t capacity) {
    jlist *l = gr_j_alloc(r, sizeof *l);
    jvalue *items = gr_j_alloc(r, GR_MAX(1, capacity) * (int64_t)sizeof *items);
    *l = (jlist){.items = items, .capacity = gr_j_ok(r) ? GR_MAX(1, capacity) : 0};
    return J(kind, p, l);
}

/* Room for one more in an array of the run's memory. */
static bool grow(run *r, jvalue **items, int64_t n, int64_t capacity) {
    jvalue *more = gr_j_alloc(r, 2 * capacity * (int64_t)sizeof *more);
    if (!gr_j_ok(r)) return false;
    memcpy(more, *items, (size_t)n * sizeof *more);
    *items = more;
    return true;
}

void gr_j_push(run *r, jvalue list, jvalue item) {
    jlist *l = gr_j_items(list);
    if (!gr_j_ok(r)) return;
    if (l->n == l->capacity) {
        if (!grow(r, &l->items, l->n, l->capacity)) return;
        l->capacity *= 2;
    }
    l->items[l->n++] = item;
}

void gr_j_extend(run *r, jvalue list, const jlist *by) {
    for (int64_t i = 0; i < by->n && gr_j_ok(r); i++) gr_j_push(r, list, by->items[i]);
}

jvalue gr_j_new_dict(run *r, gr_jkind kind, int64_t capacity) {
    jdict *d = gr_j_alloc(r, sizeof *d);
    capacity = GR_MAX(4, capacity);
    jvalue *keys = gr_j_alloc(r, capacity * (int64_t)sizeof *keys), *values = gr_j_alloc(r, capacity * (int64_t)sizeof *values);
    *d = (jdict){.keys = keys, .values = values, .capacity = gr_j_ok(r) ? capacity : 0};
    return J(kind, p, d);
}

void gr_j_put(run *r, jvalue dict, jvalue key, jvalue value) {
    jdict *d = gr_j_dict(dict);
    if (!gr_j_ok(r)) return;
    jvalue *known = (jvalue *)(uintptr_t)gr_j_get(d, key);
    if (known) {
        *known = value;
        return;
    }
    if (d->n == d->capacity) {
        if (!grow(r, &d->keys, d->n, d->capacity) || !grow(r, &d->values, d->n, d->capacity)) return;
        d->capacity *= 2;
    }
    d->keys[d->n] = key;
    d->values[d->n++] = value;
}

const jvalue *gr_j_get(const jdict *d, jvalue key) {
    for (int64_t i = 0; i < d->n; i++)
        if (gr_j_equal(d->keys[i], key)) return &d->values[i];
    return NULL;
}

bool gr_j_is_text(jvalue v, const char *text) {
    return v.kind == J_STRING && gr_j_str(v)->n == (int64_t)strlen(text) &&
           memcmp(gr_j_str(v)->s, text, (size_t)gr_j_str(v)->n) == 0;
}

const jvalue *gr_j_get_text(const jdict *d, const char *key) {
    for (int64_t i = 0; i < d->n; i++)
        if (gr_j_is_text(d->keys[i], key)) return &d->values[i];
    return NULL;
}

static jvalue from_json(run *r, const json_t *json, int32_t origin, int depth) {
    if (depth > MAX_DEPTH) return gr_j_fail(r, 0, "a value is nested too deeply");
    switch (json_typeof(json)) {
    case JSON_STRING: return gr_j_text(r, json_string_value(json), (int64_t)json_string_length(json), origin);
    case JSON_INTEGER: return J(J_INT, i, json_integer_value(json));
    case JSON_REAL: return J(J_FLOAT, f, json_real_value(json));
    case JSON_TRUE:
    case JSON_FALSE: return gr_jinja_bool(json_is_true(json));
    case JSON_NULL: return J(J_NONE, i, 0);
    case JSON_ARRAY: {
        jvalue list = gr_j_new_list(r, J_LIST, (int64_t)json_array_size(json));
        gr_j_items(list)->origin = origin;
        for (size_t i = 0; i < json_array_size(json) && gr_j_ok(r); i++)
            gr_j_push(r, list, from_json(r, json_array_get(json, i), origin, depth + 1));
        return list;
    }
    default: {
        jvalue dict = gr_j_new_dict(r, J_DICT, (int64_t)json_object_size(json));
        gr_j_dict(dict)->origin = origin;
        const char *key;
        size_t n;
        json_t *value;
        json_object_keylen_foreach((json_t *)(uintptr_t)json, key, n, value) {
            jdict *d = gr_j_dict(dict);
            jvalue k = gr_j_text(r, key, (int64_t)n, origin), v = from_json(r, value, origin, depth + 1);
            if (gr_j_ok(r) && d->n < d->capacity) d->keys[d->n] = k, d->values[d->n++] = v; /* an object has no key twice */
        }
        return dict;
    }
    }
}

jvalue gr_jinja_json(run *r, const json_t *json, int32_t origin) { return from_json(r, json, origin, 0); }

jvalue gr_jinja_string(run *r, const char *s, int64_t n, int32_t origin) { return gr_j_text(r, s, n, origin); }

jvalue gr_jinja_bool(bool value) { return J(J_BOOL, i, value); }

jvalue gr_jinja_dict(run *r, int64_t capacity, int32_t origin) {
    jvalue d = gr_j_new_dict(r, J_DICT, capacity);
    gr_j_dict(d)->origin = origin;
    return d;
}

bool gr_jinja_dict_add(run *r, jvalue dict, const char *key, jvalue value) {
    gr_j_put(r, dict, gr_j_text(r, key, (int64_t)strlen(key), 0), value);
    return gr_j_ok(r);
}

jvalue gr_jinja_list(run *r, const jvalue *items, int64_t n, int32_t origin) {
    jvalue l = gr_j_new_list(r, J_LIST, n);
    gr_j_items(l)->origin = origin;
    for (int64_t i = 0; i < n; i++) gr_j_push(r, l, items[i]);
    return l;
}

/* ---- Python's view of values ---- */

const char *gr_j_type(jvalue v) {
    static const char *const names[] = {
        [J_UNDEFINED] = "undefined", [J_NONE] = "NoneType",       [J_BOOL] = "bool",   [J_INT] = "int",
        [J_FLOAT] = "float",         [J_STRING] = "str",          [J_LIST] = "list",   [J_TUPLE] = "tuple",
        [J_DICT] = "dict",           [J_NAMESPACE] = "Namespace", [J_MACRO] = "Macro", [J_FUNCTION] = "function",
        [J_METHOD] = "method",       [J_LOOP] = "LoopContext"};
    return v.kind == J_LIST && gr_j_items(v)->lazy ? "generator" : names[v.kind];
}

bool gr_j_truth(jvalue v) {
    switch (v.kind) {
    case J_UNDEFINED:
    case J_NONE: return false;
    case J_BOOL:
    case J_INT: return v.as.i != 0;
    case J_FLOAT: return v.as.f != 0;
    case J_STRING: return gr_j_str(v)->n > 0;
    case J_LIST:
    case J_TUPLE: return gr_j_items(v)->lazy || gr_j_items(v)->n > 0;
    case J_DICT: return gr_j_dict(v)->n > 0;
    default: return true;
    }
}

bool gr_j_number(jvalue v, double *f, int64_t *i, bool *integer) {
    if (v.kind == J_INT || v.kind == J_BOOL) return *i = v.as.i, *f = (double)v.as.i, *integer = true, true;
    if (v.kind == J_FLOAT) return *f = v.as.f, *integer = false, true;
    return false;
}

static bool equal(jvalue a, jvalue b, int depth) {
    double x, y;
    int64_t i, j;
    bool whole, both;
    if (depth > MAX_DEPTH) return false;
    if (gr_j_number(a, &x, &i, &whole) && gr_j_number(b, &y, &j, &both)) return whole && both ? i == j : x == y;
    if (a.kind != b.kind) return false;
    if (a.kind == J_STRING)
        return gr_j_str(a)->n == gr_j_str(b)->n && memcmp(gr_j_str(a)->s, gr_j_str(b)->s, (size_t)gr_j_str(a)->n) == 0;
    if (gr_j_is_list(a)) {
        const jlist *l = gr_j_items(a), *m = gr_j_items(b);
        if (l->n != m->n) return false;
        for (int64_t k = 0; k < l->n; k++)
            if (!equal(l->items[k], m->items[k], depth + 1)) return false;
        return true;
    }
    if (a.kind == J_DICT) {
        const jdict *c = gr_j_dict(a), *d = gr_j_dict(b);
        if (c->n != d->n) return false;
        for (int64_t k = 0; k < c->n; k++) {
            const jvalue *other = gr_j_get(d, c->keys[k]);
            if (!other || !equal(c->values[k], *other, depth + 1)) return false;
        }
        return true;
    }
    return a.kind == J_UNDEFINED || a.kind == J_NONE || a.as.p == b.as.p;
}

bool gr_j_equal(jvalue a, jvalue b) { return equal(a, b, 0); }

int gr_j_order(run *r, int32_t line, jvalue a, jvalue b) {
    double x, y;
    int64_t i, j;
    bool whole, both;
    if (gr_j_number(a, &x, &i, &whole) && gr_j_number(b, &y, &j, &both))
        return whole && both ? (i > j) - (i < j) : (x > y) - (x < y);
    if (a.kind == J_STRING && b.kind == J_STRING) {
        const jstr *s = gr_j_str(a), *t = gr_j_str(b);
        int order = memcmp(s->s, t->s, (size_t)GR_MIN(s->n, t->n)); /* UTF-8 keeps the order of code points */
        return order ? (order > 0) - (order < 0) : (s->n > t->n) - (s->n < t->n);
    }
    if (gr_j_is_list(a) && a.kind == b.kind) {
        const jlist *l = gr_j_items(a), *m = gr_j_items(b);
        for (int64_t k = 0; k < GR_MIN(l->n, m->n); k++)
            if (!gr_j_equal(l->items[k], m->items[k])) return gr_j_order(r, line, l->items[k], m->items[k]);
        return (l->n > m->n) - (l->n < m->n);
    }
    gr_j_fail(r, line, "%s and %s have no order", gr_j_type(a), gr_j_type(b));
    return 0;
}

bool gr_j_contains(run *r, int32_t line, jvalue container, jvalue item) {
    if (container.kind == J_STRING && item.kind == J_STRING) {
        const jstr *s = gr_j_str(container), *t = gr_j_str(item);
        return t->n == 0 || memmem(s->s, (size_t)s->n, t->s, (size_t)t->n) != NULL;
    }
    if (container.kind == J_DICT) return gr_j_get(gr_j_dict(container), item) != NULL;
    if (container.kind == J_STRING) return gr_j_fail(r, line, "\"in\" a string needs a string, not %s", gr_j_type(item)), false;
    const jlist *l = gr_j_iterate(r, line, container);
    for (int64_t i = 0; i < l->n; i++)
        if (gr_j_equal(l->items[i], item)) return true;
    return false;
}

jlist *gr_j_iterate(run *r, int32_t line, jvalue v) {
    if (gr_j_is_list(v)) {
        jlist *l = gr_j_items(v);
        if (!l->lazy) return l;
        if (l->spent) return gr_j_items(gr_j_new_list(r, J_LIST, 0));
        l->spent = true;
        return l;
    }
    jvalue list = gr_j_new_list(r, J_LIST, v.kind == J_DICT ? gr_j_dict(v)->n : 4);
    if (v.kind == J_DICT) {
        for (int64_t i = 0; i < gr_j_dict(v)->n; i++) gr_j_push(r, list, gr_j_dict(v)->keys[i]);
    } else if (v.kind == J_STRING) {
        const jstr *s = gr_j_str(v);
        int size;
        for (int64_t i = 0; i < s->n && gr_j_ok(r); i += size) {
            gr_utf8_read(s->s + i, s->n - i, &size);
            gr_j_push(r, list, gr_j_slice(r, v, i, i + size));
        }
    } else if (v.kind != J_UNDEFINED) {
        gr_j_fail(r, line, "%s cannot be gone over", gr_j_type(v));
    }
    return gr_j_items(list);
}

int64_t gr_j_length(run *r, int32_t line, jvalue v) {
    if (v.kind == J_UNDEFINED) return 0;
    if (v.kind == J_STRING) return gr_j_count(gr_j_str(v));
    if (v.kind == J_DICT) return gr_j_dict(v)->n;
    if (gr_j_is_list(v) && !gr_j_items(v)->lazy) return gr_j_items(v)->n;
    gr_j_fail(r, line, "%s has no length", gr_j_type(v));
    return 0;
}
