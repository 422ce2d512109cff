/* recipe_check.h - what single values cannot tell: combinations, and what this version does not do. Internal
 * to peft/recipe*.c. */
#ifndef GR_RECIPE_CHECK_H
#define GR_RECIPE_CHECK_H

#include "peft/recipe.h"
#include "peft/recipe_yaml.h"

enum { GR_MAX_RECIPE_KEYS = 128 };

/* nodes[i]: where row i of the schema was given, NULL for its default. BAD_USAGE with the place. */
graft_status gr_recipe_check(const gr_recipe *r, const gr_yaml *const *nodes, graft_error *err);
/* What a key of another trainer is called here ("use adapter.rank"), NULL when it is none of theirs. */
const char *gr_recipe_peer_hint(const char *key);

#endif
