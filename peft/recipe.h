/* recipe.h - a recipe: YAML (libyaml) read through the one schema table (schema.def) into one struct. Each key is read in
 * exactly one place of the program. */
#ifndef GR_RECIPE_H
#define GR_RECIPE_H

#include "adapters/adapter.h"
#include "core/data/dataset.h"
#include "core/model/decoder.h"

typedef struct gr_list {
    const char **items;
    int n;
} gr_list;

typedef struct gr_pattern_list {
    gr_pattern *items;
    int n;
} gr_pattern_list;

typedef struct gr_source_list {
    gr_data_source *items;
    int n;
    double share; /* eval only: > 0 means a share of the training data instead of sources */
} gr_source_list;

/* The constants of the choices. */
#define ENUM_KEY(section, name, fallback, choices, resume, help) enum gr_recipe_##section##_##name{choices};
#define CHOICE_KEY(section, name, fallback, choices, resume, help)
#define C(constant, text) constant,
#include "peft/schema.def"
enum { GR_RECOMPUTE_AUTO = -1 }; /* train.gradient_checkpointing: a gr_recompute, or as memory allows */

#define GR_C_STRING       const char *
#define GR_C_INT          int64_t
#define GR_C_FLOAT        double
#define GR_C_BOOL         bool
#define GR_C_ENUM         int
#define GR_C_INT_AUTO     int64_t
#define GR_C_SIZE_AUTO    int64_t
#define GR_C_INT_NULL     int64_t
#define GR_C_LIST         gr_list
#define GR_C_MAP          gr_pattern_list
#define GR_C_VALUES       const char *
#define GR_C_SOURCES      gr_source_list
#define GR_C_EVAL_SOURCES gr_source_list

/* Fields are named <section>_<key> (top level: _<key>): r->train_batch_size, r->_output_dir. */
typedef struct gr_recipe {
#define KEY(section, name, type, fallback, constraint, resume, help) GR_C_##type section##_##name;
#include "peft/schema.def"
    const char *path; /* the file it came from, "" for none */
    gr_arena arena;   /* owns every string and list */
} gr_recipe;

/* Read path (NULL: the defaults; a run's folder: its recipe.yaml, with that folder as output_dir; with its `extends` chain;
 * relative paths of extends, data and model are relative to the working directory first, then to the recipe's folder), apply
 * overrides ("section.key=value"), check. Errors (BAD_USAGE) carry file:line:column, the key, what was expected and the nearest
 * known key (peers' names such as lora_r are known). What this version does not do is refused by name; so is a key of a LoRA that
 * was written beside adapter.method full or embeddings, or on top of that. One that lies beneath, in a recipe on which the method
 * was chosen, is inherited and says nothing. */
graft_status gr_recipe_load(gr_recipe **out, const char *path, const char *const *overrides, int n_overrides, graft_error *err);

/* What is wrong with a recipe, all of it: zero-initialise, release frees. */
typedef struct gr_problems {
    struct gr_problem {
        const char *text; /* "file:line:column: key: what was expected" */
        int line, column; /* 0: it came from the command line, or is no place in a file */
        bool missing;     /* a path that leads nowhere: nothing is wrong with the recipe itself */
    } * items;
    int64_t n, capacity;
    gr_arena arena;
    bool failed; /* memory ran out */
} gr_problems;
void gr_problems_release(gr_problems *p);

typedef struct gr_examine_options {
    bool files;    /* look whether the paths of model, data, adapter and template are there */
    bool complete; /* it must have what training needs */
} gr_examine_options;
/* As gr_recipe_load (path NULL: the defaults), but every problem is noted instead of the first; *out is NULL when there are any. An
 * error is what ends the reading: no such recipe, bad syntax, an override that is no key=value. */
graft_status gr_recipe_examine(gr_recipe **out, const char *path, const char *const *overrides, int n_overrides,
                               const gr_examine_options *o, gr_problems *problems, graft_error *err);
void gr_recipe_free(gr_recipe *r);
/* BAD_USAGE naming all keys that training needs and that have no value: model.base, data.train, output_dir (dry_run:
 * model.base). */
graft_status gr_recipe_require(const gr_recipe *r, bool dry_run, graft_error *err);
/* The recipe's chat template, as gr_chat_open wants it; borrowed from r. Pre-training on a model (its tokenizer: t, NULL: any)
 * without a template of its own needs none: auto is none then. */
gr_chat_options gr_recipe_chat(const gr_recipe *r, const gr_tokenizer *t);
/* True when eval.metrics names it. */
bool gr_recipe_has_metric(const gr_recipe *r, const char *name);
/* The resolved recipe as YAML with every key; reading it back gives the same recipe. */
graft_status gr_recipe_print(const gr_recipe *r, gr_str *out, graft_error *err);
/* The same with paths from the root on: it means the same in every working directory. */
graft_status gr_recipe_print_absolute(const gr_recipe *r, gr_str *out, graft_error *err);
/* A resolved recipe from its text; name: what it is called in messages. */
graft_status gr_recipe_parse(gr_recipe **out, const char *text, const char *name, graft_error *err);
/* Documentation from the table: for people (graft help recipe), and a JSON Schema for editors. */
void gr_recipe_help(gr_str *out);
graft_status gr_recipe_json_schema(char **json /* owned */, graft_error *err);

#endif
