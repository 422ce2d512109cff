/* jinja.h - the part of Jinja2 that chat templates use, as transformers runs them: trim_blocks and lstrip_blocks on, autoescape
 * off, loop controls, {% generation %}, tojson as json.dumps, raise_exception, strftime_now; a mutating call or a private attribute
 * fails as in jinja2's immutable sandbox. What is not supported is an error that names the template, its line and the construct.
 *
 * Every byte of a rendering knows its origin: 0, the template's own text (and what is counted or computed there), or what the
 * caller gave with a value. Origins go through concatenation, strip, replace, split, slices, case, join, tojson and captured
 * blocks.
 *
 * A parsed template is immutable and safe from any thread; a run belongs to one thread. */
#ifndef GR_JINJA_H
#define GR_JINJA_H

#include <jansson.h>

#include "core/base/base.h"

typedef struct gr_jinja gr_jinja;         /* a parsed template */
typedef struct gr_jinja_run gr_jinja_run; /* variables and memory of a rendering */

/* name is for messages and kept. BAD_INPUT names the line of what cannot be parsed. */
graft_status gr_jinja_parse(gr_jinja **out, const char *source, int64_t n, const char *name, graft_error *err);
void gr_jinja_free(gr_jinja *t);
/* Does the template name this variable (or function) anywhere? */
bool gr_jinja_uses(const gr_jinja *t, const char *variable);

/* A piece of the rendering: bytes up to `end` (exclusive) from origin. GR_JINJA_GENERATION is set in it within {% generation %}. */
typedef struct gr_jinja_span {
    int64_t end;
    int32_t origin;
} gr_jinja_span;
enum { GR_JINJA_GENERATION = 1 << 30, GR_JINJA_ORIGIN = GR_JINJA_GENERATION - 1 };

/* A value of a run's memory: valid until the next gr_jinja_begin. NULL-like (kind 0) is undefined. */
typedef struct gr_jinja_value {
    int kind;
    union {
        int64_t i;
        double f;
        const void *p;
    } as;
} gr_jinja_value;

gr_jinja_run *gr_jinja_run_new(const gr_jinja *t); /* NULL when out of memory; t is borrowed */
void gr_jinja_run_free(gr_jinja_run *r);

/* Start anew: variables and output are dropped, memory is kept. now: seconds since 1970 for strftime_now; utc: in UTC, else local
 * time. */
void gr_jinja_begin(gr_jinja_run *r, int64_t now, bool utc);
/* Values. Bytes and JSON are borrowed until the run ends. Numbers, true, false and null have no origin of their own. */
gr_jinja_value gr_jinja_string(gr_jinja_run *r, const char *s, int64_t n, int32_t origin);
gr_jinja_value gr_jinja_json(gr_jinja_run *r, const json_t *json, int32_t origin);
gr_jinja_value gr_jinja_bool(bool value);
gr_jinja_value gr_jinja_dict(gr_jinja_run *r, int64_t capacity, int32_t origin);
bool gr_jinja_dict_add(gr_jinja_run *r, gr_jinja_value dict, const char *key, gr_jinja_value value);   /* false: full */
gr_jinja_value gr_jinja_list(gr_jinja_run *r, const gr_jinja_value *items, int64_t n, int32_t origin); /* copies items */
/* A variable of the template; does nothing where the template does not name it. */
void gr_jinja_set(gr_jinja_run *r, const char *variable, gr_jinja_value value);

/* Render with the variables set since begin (they stay: a second render may follow a changed one). *text, *spans (adjacent ones
 * differ in origin; the last ends at *len) belong to the run until the next render or begin. BAD_INPUT: the template raised
 * (*raised, may be NULL, is then set when it was its own raise_exception), an error of types, a bound (steps, depth, size) or an
 * unsupported construct. */
graft_status gr_jinja_render(gr_jinja_run *r, const char **text, int64_t *len, const gr_jinja_span **spans, int64_t *n_spans,
                             bool *raised, graft_error *err);

#endif
