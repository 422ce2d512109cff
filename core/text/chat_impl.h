/* chat_impl.h - inside of chat templates: the chat and its renderings, for chat_open.c, chat_render.c and chat_encode.c. */
#ifndef GR_CHAT_IMPL_H
#define GR_CHAT_IMPL_H

#include "core/text/chat_template.h"
#include "core/text/encode.h"

struct gr_chat {
    const gr_tokenizer *t;
    gr_jinja *jinja;
    char *name, *source; /* source: with system text and arguments */
    char *generation;    /* what add_generation_prompt adds after a user turn; "" for nothing */
    char *opening;
    int32_t end_of_turn;
    bool parses_text; /* none: control tokens in messages are parsed */
    bool narrows;     /* the template has {% generation %} */
    int64_t now;      /* of strftime_now */
    bool utc;
    uint64_t hash;
    struct gr_chat *with_tools; /* the model's own for conversations with tools; NULL: this one */
    atomic_bool *told;          /* a prompt's control text was spoken of */
};

/* The one that renders x. */
const gr_chat *gr_chat_for(const gr_chat *c, const gr_conversation *x);

/* Origins of what is given to a template: of message i (from 0) gr_origin(i, kind), else one of the last. */
enum { GR_FROM_OTHER, GR_FROM_ROLE, GR_FROM_CONTENT, GR_FROM_CALLS, GR_FROM_REASONING, GR_FROM_KINDS };
enum { GR_FROM_TEMPLATE = 0, GR_FROM_TOOLS, GR_FROM_DOCUMENTS };
static inline int32_t gr_origin(int64_t i, int kind) { return (int32_t)((i + 1) * GR_FROM_KINDS + kind); }
static inline int64_t gr_origin_message(int32_t origin) { /* -1: none */
    return (origin & GR_JINJA_ORIGIN) / GR_FROM_KINDS - 1;
}
static inline int gr_origin_kind(int32_t origin) { return (origin & GR_JINJA_ORIGIN) % GR_FROM_KINDS; }

/* One rendering, kept. */
typedef struct gr_rendering {
    char *text;
    gr_jinja_span *spans;
    gr_range *trusted; /* where control tokens count */
    int64_t n, capacity, n_spans, span_capacity, n_trusted, trusted_capacity;
} gr_rendering;
void gr_rendering_release(gr_rendering *r);

/* Values of a conversation, rendered as often as wanted. */
typedef struct gr_renderer {
    const gr_chat *c;
    gr_jinja_run *run;
    gr_jinja_value *messages;
    int64_t capacity;
    gr_arena repaired; /* texts that were no UTF-8 */
} gr_renderer;
graft_status gr_renderer_start(gr_renderer *r, const gr_chat *c, const gr_conversation *x, graft_error *err);
/* The first n messages. */
graft_status gr_renderer_render(gr_renderer *r, int64_t n, bool add_generation_prompt, gr_rendering *out, graft_error *err);
void gr_renderer_release(gr_renderer *r);

/* The next control token that the template wrote in [from, to); false when there is none. */
bool gr_rendering_next_control(const gr_chat *c, const gr_rendering *r, int64_t from, int64_t to, gr_match *m);
/* The end of the token that ends a turn whose last text ends at from, looked for up to `to`: the template's end-of-turn token or
 * eos, else the last control token there; -1 when there is none. *id (may be NULL): the token. */
int64_t gr_rendering_turn_end(const gr_chat *c, const gr_rendering *r, int64_t from, int64_t to, int32_t *id);
/* The first and past the last byte that message i wrote, its role apart; false when it wrote none. */
bool gr_rendering_message(const gr_rendering *r, int64_t i, int64_t *first, int64_t *end);

#endif
