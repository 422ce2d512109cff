/* recipe_schema.h - schema.def as a table of rows. Private to peft/. */
#ifndef GR_RECIPE_SCHEMA_H
#define GR_RECIPE_SCHEMA_H

#include "peft/recipe.h"

/* The number of each row: GR_ROW_train_seed. */
enum {
#define KEY(section, name, type, fallback, constraint, resume, help) GR_ROW_##section##_##name,
#include "peft/schema.def"
    GR_N_RECIPE_KEYS
};

typedef enum gr_key_type {
    GR_KEY_STRING,
    GR_KEY_INT,
    GR_KEY_FLOAT,
    GR_KEY_BOOL,
    GR_KEY_ENUM,
    GR_KEY_INT_AUTO,
    GR_KEY_SIZE_AUTO,
    GR_KEY_INT_NULL,
    GR_KEY_LIST,
    GR_KEY_MAP,
    GR_KEY_VALUES,
    GR_KEY_SOURCES,
    GR_KEY_EVAL_SOURCES
} gr_key_type;

/* May a resumed run have another value than it began with? (schema.def) */
typedef enum gr_key_resume { GR_RESUME_SAME, GR_RESUME_FREE, GR_RESUME_DATA, GR_RESUME_STEPS } gr_key_resume;

typedef struct gr_choice {
    const char *name;
    int value;
} gr_choice;

typedef struct gr_key {
    const char *section, *name, *fallback, *constraint, *help;
    gr_key_type type;
    gr_key_resume resume;
    size_t offset;            /* of its field in gr_recipe */
    const gr_choice *choices; /* ENUM: ends with a NULL name; constraint has them as "a|b" */
} gr_key;

extern const gr_key gr_recipe_keys[GR_N_RECIPE_KEYS];

/* Bounds of a numeric constraint "min..max"; an open end is infinite. */
void gr_key_range(const gr_key *k, double *min, double *max);
/* The name of an ENUM's value. */
const char *gr_key_choice(const gr_key *k, int value);
/* The row of a key, NULL for none. */
const gr_key *gr_recipe_key(const char *section, const char *name);

/* The value of a key as the resolved recipe of a run has it. */
void gr_key_print(const gr_key *k, const gr_recipe *r, gr_str *out);

#endif
