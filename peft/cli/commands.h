/* commands.h - the commands of graft as one table: --help, `graft help`, the man page and the shell completion are made from it. */
#ifndef GR_COMMANDS_H
#define GR_COMMANDS_H

#include "peft/session.h"
#include "peft/trainer.h"

typedef struct gr_option {
    const char *name;  /* without dashes */
    const char *value; /* its value's name in help ("PATH"); NULL: a switch */
    const char *help;  /* NULL: that of the recipe key */
    const char *key;   /* "model.dtype" when it means what a recipe key means, else NULL */
} gr_option;

typedef struct gr_args gr_args;
typedef graft_status gr_command_fn(const gr_args *a, graft_error *err);

enum { GR_OPTION_GROUPS = 4, GR_ANY_NUMBER = 1 << 20 };

typedef struct gr_command {
    const char *name;      /* "train"; two words for "data make" */
    const char *summary;   /* one line, lower case */
    const char *arguments; /* "RECIPE [section.key=value ...]" */
    const char *example;
    int min_arguments, max_arguments;
    gr_command_fn *run;
    const gr_option *options[GR_OPTION_GROUPS]; /* groups, each ended by a row without a name */
} gr_command;

extern const gr_command gr_commands[];
int gr_n_commands(void);
const gr_command *gr_command_find(const char *name);
/* Option i over all groups, NULL past the last. */
const gr_option *gr_command_option(const gr_command *c, int i);
/* Help text of an option. */
const char *gr_option_help(const gr_option *o);
/* "auto|fp32|bf16" of an option that means a key with choices, else "". */
const char *gr_option_choices(const gr_option *o);

/* ---- parsed arguments (args.c) ---- */
struct gr_args {
    const gr_command *command; /* NULL: none was named (plain `graft`) */
    const char **arguments;    /* [n_arguments] */
    int n_arguments;
    struct gr_given {
        const gr_option *option;
        const char *value;
    } * given; /* [n_given] in order */
    int n_given;
};

/* BAD_USAGE with the nearest command or option. Strings stay argv's. */
graft_status gr_args_parse(gr_args *a, int argc, char **argv, graft_error *err);
void gr_args_release(gr_args *a);
bool gr_args_has(const gr_args *a, const char *name);
const char *gr_args_text(const gr_args *a, const char *name, const char *fallback); /* the last one given */
int gr_args_all(const gr_args *a, const char *name, const char **values);           /* every one; values[n_given] */
graft_status gr_args_int(const gr_args *a, const char *name, int64_t min, int64_t fallback, int64_t *out, graft_error *err);
graft_status gr_args_float(const gr_args *a, const char *name, double min, double max, double fallback, double *out,
                           graft_error *err);
/* The options that mean recipe keys, then arguments from first_override on, laid over a recipe file (NULL: the defaults). */
graft_status gr_args_recipe(const gr_args *a, const char *path, int first_override, gr_recipe **out, graft_error *err);
/* The same with every problem noted (gr_recipe_examine). */
graft_status gr_args_examine(const gr_args *a, const char *path, int first_override, const gr_examine_options *o, gr_recipe **out,
                             gr_problems *problems, graft_error *err);

/* ---- the commands ---- */
gr_command_fn gr_cmd_help, gr_cmd_version, gr_cmd_train, gr_cmd_plan, gr_cmd_validate, gr_cmd_generate, gr_cmd_chat, gr_cmd_eval,
    gr_cmd_merge, gr_cmd_export, gr_cmd_inspect, gr_cmd_tokenize, gr_cmd_init, gr_cmd_data_preview, gr_cmd_data_make,
    gr_cmd_vocab_train, gr_cmd_vocab_extend, gr_cmd_doctor;

/* Help of one command, or of all (c NULL), to stdout. */
void gr_print_help(const gr_command *c);

#endif
