#include "peft/cli/commands.h"

#define END {NULL, NULL, NULL, NULL} /* of a group of options */

static const gr_option train_options[] = {
    {"resume", NULL, "continue the run in output_dir from its last checkpoint", NULL},
    {"overwrite", NULL, "replace an existing run", NULL},
    {"dry-run", NULL, "say what would happen: parameters, memory, steps; needs no weights", NULL},
    {"output-dir", "PATH", NULL, "output_dir"},
    {"max-steps", "N", NULL, "train.max_steps"},
    {"seed", "N", NULL, "train.seed"},
    END,
};

static const gr_option json_option[] = {{"json", NULL, "the result as JSON", NULL}, END};

static const gr_option machine_options[] = {
    {"dtype", "TYPE", NULL, "model.dtype"},
    {"threads", "N", NULL, "threads"},
    {"device", "NAME", NULL, "device"},
    END,
};

static const gr_option validate_options[] = {{"print", NULL, "the resolved recipe, with every key", NULL}, END};

static const gr_option help_options[] = {
    {"man", NULL, "the manual page", NULL},
    {"completion", "SHELL", "the completion script of a shell (bash)", NULL},
    {"json", NULL, "help recipe: the JSON Schema of recipes", NULL},
    END,
};

const gr_command gr_commands[] = {
    {"train", "train what a recipe says", "RECIPE [section.key=value ...] [options]",
     "graft train recipes/quickstart.yaml train.learning_rate=1e-3", 1, GR_ANY_NUMBER, gr_cmd_train,
     {train_options, machine_options, json_option}},
    {"validate", "check a recipe without running it", "RECIPE [section.key=value ...] [options]",
     "graft validate recipes/quickstart.yaml", 1, GR_ANY_NUMBER, gr_cmd_validate, {validate_options, json_option}},
    {"help", "explain a command, or every key of a recipe", "[recipe | COMMAND] [options]", "graft help recipe", 0, 2, gr_cmd_help,
     {help_options}},
    {"version", "print the version", "", "graft version", 0, 0, gr_cmd_version, {NULL}},
};

int gr_n_commands(void) { return GR_LEN(gr_commands); }
