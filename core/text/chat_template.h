/* chat_template.h - inside core/text: where a chat template's Jinja text comes from, and what is put around it. */
#ifndef GR_CHAT_TEMPLATE_H
#define GR_CHAT_TEMPLATE_H

#include <jansson.h>

#include "core/text/chat.h"
#include "core/text/jinja.h"

/* core/text/templates/NAME.jinja, built in by CMake; the last row has no name. */
typedef struct gr_named_template {
    const char *name, *source;
} gr_named_template;
extern const gr_named_template gr_chat_templates[];
extern const char *const gr_chat_template_names[]; /* NULL-terminated */

/* The template that options name, as Jinja text; owned. */
graft_status gr_chat_template_find(char **source, const gr_chat_options *o, const gr_tokenizer *t, graft_error *err);
/* A mapping {system, user, assistant[, tool, begin, gap, default_system]} of patterns with {content}, {bos}, {eos} as Jinja text;
 * owned. An answer whose pattern has no control token of t after {content} gets eos there. */
graft_status gr_chat_template_from_yaml(char **source, const char *yaml, int64_t n, const char *path, const gr_tokenizer *t,
                                        graft_error *err);

/* source with args as the defaults of its variables, and with system as the text of conversations that have no system message
 * (NULL: as it is). Owned. */
char *gr_chat_template_with(const char *source, const char *system, const json_t *args);
/* source with the text `left_out` at the start of its renderings without a system message replaced by `kept`. Owned. */
char *gr_chat_template_without(const char *source, const char *left_out, const char *kept);

#endif
