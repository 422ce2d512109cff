/* chat_template.h - a chat template as data: patterns holding {content}, {bos} and {eos}; inside core/text.
 */
#ifndef GR_CHAT_TEMPLATE_H
#define GR_CHAT_TEMPLATE_H

#include "core/text/chat.h"

enum { GR_ROLE_SYSTEM, GR_ROLE_USER, GR_ROLE_ASSISTANT, GR_ROLE_TOOL, GR_ROLE_COUNT };

/* An answer's pattern is split at {content}: what is before it is also the generation prompt. A pattern for
 * an answer without a control token after {content} gets eos there. */
typedef struct gr_chat_template {
    const char *name;
    const char *begin;                  /* once, before everything; "" for nothing */
    const char *pattern[GR_ROLE_COUNT]; /* NULL: the template cannot express that role */
    const char *gap;                    /* between an answer and the next message; "" for nothing */
    const char *default_system;         /* NULL: none */
    const char *needs[4];               /* control tokens that the tokenizer must have */
    const char *has[4], *has_not[8];    /* recognition: parts of the model's Jinja text */
    bool trim;                          /* white space around a content is dropped */
    bool fold_system; /* the system pattern is put before the first user content; roles must alternate */
    bool skip_empty_system;
    bool lone_tool;     /* tool messages in a row would share one turn, which a pattern cannot say: refused */
    bool parse_special; /* control tokens written in the content are parsed */
} gr_chat_template;

/* NULL when unknown. */
const gr_chat_template *gr_chat_template_find(const char *name);
const gr_chat_template *gr_chat_template_recognise(const char *jinja);

/* chat_file.c: {system, user, assistant[, tool, begin, gap, default_system]}; strings are allocated in arena.
 */
graft_status gr_chat_template_read(gr_chat_template *out, const char *path, gr_arena *arena,
                                   graft_error *err);
graft_status gr_chat_template_parse(gr_chat_template *out, const char *yaml, int64_t n, const char *path,
                                    gr_arena *arena, graft_error *err);

#endif
