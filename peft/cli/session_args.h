/* session_args.h - a session from the options that the commands share: --model, --adapter, --template, --dtype ... */
#ifndef GR_SESSION_ARGS_H
#define GR_SESSION_ARGS_H

#include "peft/cli/commands.h"

typedef enum gr_session_use {
    GR_FOR_FILES,   /* merge, export: no chat template, float32 products */
    GR_FOR_SCORING, /* eval: exact products unless int8 is asked for */
    GR_FOR_WRITING, /* generate, chat: fast products where weights are quantised */
} gr_session_use;

/* --model may also be the command's only argument (`graft chat runs/name`). *recipe (may be NULL; owned): the
 * options that mean recipe keys, over the defaults. */
graft_status gr_open_session(const gr_args *a, gr_session_use use, gr_session *s, gr_recipe **recipe, graft_error *err);

enum { GR_MAX_STOP = 16 };
/* The sampling options; o->stop points into stop[GR_MAX_STOP]. max_tokens: the default. */
graft_status gr_args_sampling(const gr_args *a, gr_generate_options *o, const char **stop, int64_t max_tokens, graft_error *err);

#endif
