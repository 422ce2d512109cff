/* session_args.h - a session from the options that the commands share: --model, --adapter, --template,
 * --dtype ... */
#ifndef GR_SESSION_ARGS_H
#define GR_SESSION_ARGS_H

#include "peft/cli/commands.h"

/* --model may also be the command's only argument (`graft chat runs/name`). for_text: to read and write text;
 * else for its files (merge, export): no chat template, float32 products. *recipe (may be NULL; owned): the
 * options that mean recipe keys, over the defaults. */
graft_status gr_open_session(const gr_args *a, bool for_text, gr_session *s, gr_recipe **recipe,
                             graft_error *err);

#endif
