/* recipe_values.h - reading the values of a recipe. Internal to peft/recipe*.c. */
#ifndef GR_RECIPE_VALUES_H
#define GR_RECIPE_VALUES_H

#include "peft/recipe_schema.h"
#include "peft/recipe_yaml.h"

/* A reader notes what is wrong with a value and goes on, so that all of it is known at once; its status says only whether memory
 * lasted. A recipe with problems is not given to anybody. */
typedef struct gr_reading {
    gr_recipe *r;
    const gr_yaml *nodes[GR_N_RECIPE_KEYS]; /* where each key was given; NULL: its default */
    bool wrong[GR_N_RECIPE_KEYS];           /* what was given could not be read */
    bool files;                             /* look whether the paths are there */
    gr_problems *problems;
    graft_error *err;
} gr_reading;

/* The value of row k into its field of rd->r. */
graft_status gr_read_value(gr_reading *rd, const gr_yaml *n, const gr_key *k);
/* A relative path as the recipe's reader sees it: under the working directory, else beside the file that names it. */
graft_status gr_resolve_path(gr_arena *arena, const gr_yaml *n, const char *path, const char **out, graft_error *err);

#endif
