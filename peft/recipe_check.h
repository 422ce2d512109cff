/* recipe_check.h - what single values cannot tell: combinations, and what this version does not do. Internal to peft/recipe*.c. */
#ifndef GR_RECIPE_CHECK_H
#define GR_RECIPE_CHECK_H

#include "peft/recipe_schema.h"
#include "peft/recipe_yaml.h"

/* Where a problem is: at a value, at its key, or at a value whose file is missing. */
typedef enum gr_problem_place { GR_AT_VALUE, GR_AT_KEY, GR_AT_FILE } gr_problem_place;
/* Note "file:line:column: message". Always OK; memory that ran out is remembered in p->failed. */
graft_status gr_problem_at(gr_problems *p, const gr_yaml *n, gr_problem_place place, const char *format, ...) GR_PRINTF(4, 5);

/* nodes[i]: where row i of the schema was given, NULL for its default; wrong[i]: that could not be read, so no rule looks at it.
 * Notes what does not go together, and what a run needs and is not there. */
graft_status gr_recipe_check(const gr_recipe *r, const gr_yaml *const *nodes, const bool *wrong, gr_problems *p);
graft_status gr_recipe_check_complete(const gr_recipe *r, const gr_yaml *const *nodes, const bool *wrong, gr_problems *p);
/* Why a choice of a key cannot be had ("is not in this version; ..."), NULL when it is none that is planned. */
const char *gr_recipe_later(const gr_key *k, const char *choice);
/* What a key of another trainer is called here ("use adapter.rank"), NULL when it is none of theirs. */
const char *gr_recipe_peer_hint(const char *key);

#endif
