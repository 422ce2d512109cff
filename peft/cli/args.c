#include "peft/cli/commands.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "peft/recipe_schema.h"

static const gr_option help_option = {"help", NULL, "this text", NULL}; /* every command has it */

const gr_option *gr_command_option(const gr_command *c, int i) {
    for (int g = 0; g < GR_OPTION_GROUPS && c->options[g]; g++)
        for (const gr_option *o = c->options[g]; o->name; o++)
            if (i-- == 0) return o;
    return i == 0 ? &help_option : NULL;
}

const gr_command *gr_command_find(const char *name) {
    for (int i = 0; i < gr_n_commands(); i++)
        if (strcmp(gr_commands[i].name, name) == 0) return &gr_commands[i];
    return NULL;
}

static const gr_key *option_key(const gr_option *o) {
    char full[96];
    for (int i = 0; o->key && i < GR_N_RECIPE_KEYS; i++) {
        const gr_key *k = &gr_recipe_keys[i];
        snprintf(full, sizeof full, "%s%s%s", k->section, *k->section ? "." : "", k->name);
        if (strcmp(full, o->key) == 0) return k;
    }
    return NULL;
}

const char *gr_option_help(const gr_option *o) {
    const gr_key *k = option_key(o);
    return o->help ? o->help : k ? k->help : "";
}

const char *gr_option_choices(const gr_option *o) {
    const gr_key *k = option_key(o);
    return k && k->type == GR_KEY_ENUM && !o->help ? k->constraint : "";
}

/* ---- parsing ---- */

/* Commands of later versions, known by name: no other one is "near". */
static const char *const later[] = {"serve", "fetch", "study", "bench", "data stats", "data clean", "data dedup", "data mix"};

/* "train, validate, plan": the commands, or the second words of a group ("data"). */
static const char *command_names(const char *group, char *out, size_t size) {
    size_t at = 0, n = group ? strlen(group) : 0;
    *out = '\0';
    for (int i = 0; i < gr_n_commands(); i++) {
        const char *name = gr_commands[i].name;
        if (group && (strncmp(name, group, n) != 0 || name[n] != ' ')) continue;
        if (at < size) at += (size_t)snprintf(out + at, size - at, "%s%s", at ? ", " : "", group ? name + n + 1 : name);
    }
    return out;
}

/* A first word that a second one must follow: "data". */
static bool is_group(const char *word) {
    size_t n = strlen(word);
    for (int i = 0; i < gr_n_commands(); i++)
        if (strncmp(gr_commands[i].name, word, n) == 0 && gr_commands[i].name[n] == ' ') return true;
    return false;
}

static graft_status unknown_command(const char *name, graft_error *err) {
    const char *names[64], *near;
    char all[512], group[32];
    bool grouped = strchr(name, ' ') != NULL;
    snprintf(group, sizeof group, "%.*s", (int)strcspn(name, " "), name);
    for (int i = 0; i < GR_LEN(later); i++)
        if (strcmp(name, later[i]) == 0)
            return gr_fail(err, GRAFT_BAD_USAGE, "graft %s is not in this version (%s); `graft help` lists what is", name,
                           GRAFT_VERSION);
    int n = GR_MIN(gr_n_commands(), GR_LEN(names));
    for (int i = 0; i < n; i++) names[i] = gr_commands[i].name;
    near = gr_nearest(name, names, n);
    return gr_fail(err, GRAFT_BAD_USAGE, "unknown command \"%.60s\"%s%s%s; %s%s%s: %s", name, near ? " (did you mean " : "",
                   near ? near : "", near ? "?)" : "", grouped ? "graft " : "", grouped ? group : "there are",
                   grouped ? " has" : "", command_names(grouped ? group : NULL, all, sizeof all));
}

static graft_status unknown_option(const gr_command *c, const char *name, graft_error *err) {
    const char *names[64], *near;
    int n = 0;
    for (const gr_option *o; n < GR_LEN(names) && (o = gr_command_option(c, n)); n++) names[n] = o->name;
    near = gr_nearest(name, names, n);
    return gr_fail(err, GRAFT_BAD_USAGE, "graft %s has no option --%s%s%s%s; see `graft %s --help`", c->name, name,
                   near ? " (did you mean --" : "", near ? near : "", near ? "?)" : "", c->name);
}

/* "--name" or "--name=value" of an option that the command has: hardly the value of the one before it. */
static bool is_option(const gr_command *c, const char *word) {
    size_t n = strcspn(word, "=");
    const gr_option *o;
    for (int k = 0; gr_starts_with(word, "--") && (o = gr_command_option(c, k)); k++)
        if (strlen(o->name) == n - 2 && strncmp(o->name, word + 2, n - 2) == 0) return true;
    return false;
}

/* word: "name" or "name=value"; following: the next word, a value for "name"; *used: how many words it took. */
static graft_status parse_option(gr_args *a, const char *word, const char *following, int *used, graft_error *err) {
    const char *equals = strchr(word, '='), *value = NULL;
    char name[48];
    const gr_option *o = NULL;
    snprintf(name, sizeof name, "%.*s", equals ? (int)(equals - word) : (int)strlen(word), word);
    for (int k = 0; (o = gr_command_option(a->command, k)); k++)
        if (strcmp(o->name, name) == 0) break;
    if (!o) return unknown_option(a->command, name, err);
    *used = 1;
    if (equals) value = equals + 1;
    if (!o->value && value) return gr_fail(err, GRAFT_BAD_USAGE, "--%s takes no value", name);
    if (o->value && !value) {
        if (!following || is_option(a->command, following))
            return gr_fail(err, GRAFT_BAD_USAGE, "--%s needs a value: --%s %s%s%s%s%s", name, name, o->value,
                           following ? " (a value of that form: --" : "", following ? name : "", following ? "=" : "",
                           following ? "...)" : "");
        value = following;
        *used = 2;
    }
    if (strcmp(name, "out") == 0 && strcmp(value, "-") == 0) {
        if (strcmp(o->value, "FILE") != 0)
            return gr_fail(err, GRAFT_BAD_USAGE,
                           "--out -: graft %s writes a folder or a .gguf file, not to standard output (./- is that name)",
                           a->command->name);
        value = "/dev/stdout";
    }
    a->given[a->n_given].option = o;
    a->given[a->n_given++].value = value;
    return GRAFT_OK;
}

/* The command that argv[1..] names; *first: the word after it. */
static graft_status parse_command(gr_args *a, int argc, char **argv, int *first, graft_error *err) {
    char two[64] = "";
    *first = argc > 1 ? 2 : 1;
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        a->command = gr_command_find("help");
        return GRAFT_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        a->command = gr_command_find("version");
        return GRAFT_OK;
    }
    if (argc > 2) {
        snprintf(two, sizeof two, "%s %s", argv[1], argv[2]);
        a->command = gr_command_find(two);
        *first = 3;
    }
    if (!a->command) {
        a->command = gr_command_find(argv[1]);
        *first = 2;
    }
    if (a->command) return GRAFT_OK;
    if (!is_group(argv[1])) return unknown_command(argv[1], err);
    if (argc > 2 && (strcmp(argv[2], "--help") == 0 || strcmp(argv[2], "-h") == 0)) {
        a->command = gr_command_find("help");
        a->arguments[a->n_arguments++] = argv[1];
        *first = 3;
        return GRAFT_OK;
    }
    if (argc > 2) return unknown_command(two, err);
    return gr_fail(err, GRAFT_BAD_USAGE, "what to do with %s is missing: graft %s has %s; `graft help %s` explains them", argv[1],
                   argv[1], command_names(argv[1], two, sizeof two), argv[1]);
}

graft_status gr_args_parse(gr_args *a, int argc, char **argv, graft_error *err) {
    graft_status st = GRAFT_OK;
    int first;
    bool options = true;
    *a = (gr_args){.arguments = gr_calloc(argc + 1, sizeof *a->arguments), .given = gr_calloc(argc + 1, sizeof *a->given)};
    if (!a->arguments || !a->given) GR_TRY(gr_fail_memory(err, "arguments"));
    GR_TRY(parse_command(a, argc, argv, &first, err));
    for (int i = first, used; i < argc; i += used) {
        used = 1;
        if (options && strcmp(argv[i], "--") == 0) options = false;
        else if (options && strcmp(argv[i], "-h") == 0) GR_TRY(parse_option(a, "help", NULL, &used, err));
        else if (options && gr_starts_with(argv[i], "--"))
            GR_TRY(parse_option(a, argv[i] + 2, argv[i + 1], &used, err)); /* argv[argc] is NULL */
        else a->arguments[a->n_arguments++] = argv[i];
    }
    if (gr_args_has(a, "help")) return GRAFT_OK;
    if (a->n_arguments < a->command->min_arguments || a->n_arguments > a->command->max_arguments)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "%s argument%s%s; usage: graft %s %s",
                       a->n_arguments < a->command->min_arguments ? "missing" : "unexpected",
                       a->n_arguments > a->command->max_arguments ? " " : "",
                       a->n_arguments > a->command->max_arguments ? a->arguments[a->command->max_arguments] : "", a->command->name,
                       a->command->arguments));
done:
    return st;
}

void gr_args_release(gr_args *a) {
    free(a->arguments);
    free(a->given);
    *a = (gr_args){0};
}

/* ---- reading ---- */

bool gr_args_has(const gr_args *a, const char *name) {
    for (int i = 0; i < a->n_given; i++)
        if (strcmp(a->given[i].option->name, name) == 0) return true;
    return false;
}

const char *gr_args_text(const gr_args *a, const char *name, const char *fallback) {
    for (int i = a->n_given - 1; i >= 0; i--)
        if (strcmp(a->given[i].option->name, name) == 0) return a->given[i].value;
    return fallback;
}

int gr_args_all(const gr_args *a, const char *name, const char **values) {
    int n = 0;
    for (int i = 0; i < a->n_given; i++)
        if (strcmp(a->given[i].option->name, name) == 0) values[n++] = a->given[i].value;
    return n;
}

graft_status gr_args_int(const gr_args *a, const char *name, int64_t min, int64_t fallback, int64_t *out, graft_error *err) {
    const char *text = gr_args_text(a, name, NULL);
    char *end;
    *out = fallback;
    if (!text) return GRAFT_OK;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || errno || v < min)
        return gr_fail(err, GRAFT_BAD_USAGE, "--%s: expected a whole number from %lld, found \"%s\"", name, (long long)min, text);
    *out = v;
    return GRAFT_OK;
}

graft_status gr_args_float(const gr_args *a, const char *name, double min, double max, double fallback, double *out,
                           graft_error *err) {
    const char *text = gr_args_text(a, name, NULL);
    char *end;
    *out = fallback;
    if (!text) return GRAFT_OK;
    double v = strtod(text, &end);
    if (end == text || *end || !(v >= min && v <= max))
        return gr_fail(err, GRAFT_BAD_USAGE, "--%s: expected a number from %g to %g, found \"%s\"", name, min, max, text);
    *out = v;
    return GRAFT_OK;
}

/* key=value; a text or a path is quoted, so that it is taken as it is; a list is given with commas. */
static char *option_override(const gr_option *o, const char *value) {
    gr_str s = {0};
    const gr_key *k = option_key(o);
    gr_str_printf(&s, "%s=", o->key);
    if (!k || (k->type != GR_KEY_STRING && k->type != GR_KEY_SOURCES)) {
        bool list = k && k->type == GR_KEY_LIST;
        gr_str_printf(&s, "%s%s%s", list ? "[" : "", value, list ? "]" : "");
        return gr_str_take(&s);
    }
    gr_str_putc(&s, '"');
    for (const char *c = value; *c; c++) {
        if (*c == '"' || *c == '\\') gr_str_printf(&s, "\\%c", *c);
        else if ((unsigned char)*c < 0x20) gr_str_printf(&s, "\\x%02X", (unsigned)(unsigned char)*c);
        else gr_str_putc(&s, *c);
    }
    gr_str_putc(&s, '"');
    return gr_str_take(&s);
}

/* The options that mean recipe keys, then arguments from first on, as "key=value" each; *list owned (free_overrides). */
static graft_status overrides(const gr_args *a, int first, char ***list, int *n, graft_error *err) {
    char **all = gr_calloc(a->n_given + a->n_arguments + 1, sizeof *all);
    *list = all;
    *n = 0;
    if (!all) return gr_fail_memory(err, "arguments");
    for (int i = 0; i < a->n_given; i++) {
        if (!a->given[i].option->key) continue;
        if (!(all[(*n)++] = option_override(a->given[i].option, a->given[i].value))) return gr_fail_memory(err, "arguments");
    }
    for (int i = first; i < a->n_arguments; i++)
        if (!(all[(*n)++] = gr_strdup(a->arguments[i]))) return gr_fail_memory(err, "arguments");
    return GRAFT_OK;
}

static void free_overrides(char **list, int n) {
    for (int i = 0; list && i < n; i++) free(list[i]);
    free(list);
}

/* An error about an override that an option made begins with the option as it was written. */
static void name_option(const gr_args *a, char *const *list, graft_error *err) {
    for (int i = 0, n = 0; i < a->n_given; i++) {
        const gr_option *o = a->given[i].option;
        if (!o->key) continue;
        size_t len = strlen(list[n]);
        bool found = strncmp(err->msg, list[n], len) == 0 && err->msg[len] == ':';
        char *msg = found ? gr_format("--%s %.100s%s", o->name, a->given[i].value, err->msg + len) : NULL;
        if (msg) snprintf(err->msg, sizeof err->msg, "%s", msg);
        free(msg);
        n++;
    }
}

graft_status gr_args_recipe(const gr_args *a, const char *path, int first_override, gr_recipe **out, graft_error *err) {
    char **list;
    int n;
    graft_status st = overrides(a, first_override, &list, &n, err);
    if (st == GRAFT_OK && (st = gr_recipe_load(out, path, (const char *const *)list, n, err)) != GRAFT_OK && err)
        name_option(a, list, err);
    free_overrides(list, n);
    return st;
}

graft_status gr_args_examine(const gr_args *a, const char *path, int first_override, const gr_examine_options *o, gr_recipe **out,
                             gr_problems *problems, graft_error *err) {
    char **list;
    int n;
    graft_status st = overrides(a, first_override, &list, &n, err);
    if (st == GRAFT_OK) st = gr_recipe_examine(out, path, (const char *const *)list, n, o, problems, err);
    free_overrides(list, n);
    return st;
}
