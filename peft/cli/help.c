/* What the table of commands says about itself: --help, the overview, a man page, bash completion; and `graft help`. */
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "adapters/export.h"
#include "peft/cli/commands.h"
#include "peft/recipe_schema.h"

#ifndef GRAFT_COMMIT
#define GRAFT_COMMIT "" /* of the checkout that was built, from CMake */
#endif

/* ---- topics ---- */

static graft_status help_recipe(const gr_args *a, graft_error *err) {
    if (gr_args_has(a, "json")) {
        char *json = NULL;
        graft_status st = gr_recipe_json_schema(&json, err);
        if (st == GRAFT_OK) printf("%s\n", json);
        free(json);
        return st;
    }
    gr_str text = {0};
    gr_recipe_help(&text);
    if (text.failed) return gr_fail_memory(err, "help");
    fputs(text.data, stdout);
    gr_str_release(&text);
    return GRAFT_OK;
}

/* The commands whose name begins so. */
static void print_group(const char *prefix) {
    for (int i = 0; i < gr_n_commands(); i++)
        if (gr_starts_with(gr_commands[i].name, prefix))
            printf("  graft %-14s %s\n      %s\n", gr_commands[i].name, gr_commands[i].summary, gr_commands[i].example);
}

static graft_status help_data(const gr_args *a, graft_error *err) {
    (void)a, (void)err;
    const char *name;
    printf("graft data - samples as files and as the model sees them\n\n");
    print_group("data ");
    printf("\nforms of samples, told by their fields or named by `format`:");
    for (int i = 0; (name = gr_data_format(i)); i++) printf("%s %s", i ? "," : "", name);
    printf("\nfiles: JSONL (one object a line), a JSON array, CSV or TSV with a header; .gz of these; data.encoding for other text "
           "than UTF-8;\n  .txt: the whole a document, or format: paragraphs (between blank lines) or lines");
    printf("\nother names of fields: columns: {prompt: NAME, completion: NAME} of a source; fields that do not matter:\n"
           "ignore: [NAME]; `graft help recipe`, section data\n");
    return GRAFT_OK;
}

static graft_status help_vocab(const gr_args *a, graft_error *err) {
    (void)a, (void)err;
    printf("graft vocab - the pieces that text becomes\n\n");
    print_group("vocab ");
    printf("\na vocabulary is a SentencePiece .model or a tokenizer.json. With --model, train learns further pieces out of the\n"
           "tokens of that model: each is reached once its merges follow the model's, and text without them keeps its ids.\n"
           "\nextend puts pieces, learned so or by another program, after a model's tokens: their ids begin after the last token\n"
           "(rows that had none serve first), their rows are the mean of the rows that they were spelt with, padding rows the\n"
           "mean of all. What the base cannot make of its tokens, cuts or normalises is left out and counted. config.json\n"
           "(graft_base_vocab_size) or the GGUF (graft.base_vocab_size) says which id is the first new one.\n");
    return GRAFT_OK;
}

/* A row, with what it has that a llama has not. */
static void print_arch(const gr_arch *a) {
    const struct {
        bool has;
        const char *what;
    } parts[] = {
        {a->slides && !a->gguf_slides, "sliding window (not in llama.cpp)"},
        {a->gguf_slides, "sliding window"},
        {a->rope_local > 0, "a rotation of its own where it slides"},
        {a->modules[GR_SLOT_Q_NORM].hf, "norms of q and k"},
        {a->modules[GR_SLOT_ATTENTION_NORM].hf, "four norms"},
        {a->score_cap_key, "soft caps"},
        {a->modules[GR_SLOT_QKV].hf, "qkv_proj and gate_up_proj"},
    };
    const char *between = ": ";
    printf("  %-11s %s, in a GGUF %s", a->hf_type, a->hf_class, a->gguf);
    for (int i = 0; i < GR_LEN(parts); i++) {
        if (!parts[i].has) continue;
        printf("%s%s", between, parts[i].what);
        between = ", ";
    }
    printf("\n");
}

static graft_status help_models(const gr_args *a, graft_error *err) {
    (void)a, (void)err;
    const char *name;
    bool folder;
    printf("what graft runs\n\narchitectures: model_type, class, name in a GGUF (a key or tensor beyond what they compute is "
           "refused by name):\n");
    for (int i = 0; i < GR_N_ARCHS; i++) print_arch(&gr_archs[i]);
    printf("\ntypes of weights that are read:\n  safetensors");
    for (int d = 0; d < GR_DTYPE_COUNT; d++)
        if (gr_dtype_get((gr_dtype)d)->safetensors_name) printf(" %s", gr_dtype_get((gr_dtype)d)->safetensors_name);
    printf("\n  GGUF       ");
    for (int d = 0; d < GR_DTYPE_COUNT; d++)
        if (gr_dtype_get((gr_dtype)d)->gguf_type >= 0) printf(" %s", gr_dtype_get((gr_dtype)d)->name);
    printf("\n\ntypes that `graft merge --dtype` writes:\n  HF folder  ");
    for (int i = 0; (name = gr_written_type_name(i, &folder)); i++)
        if (folder) printf(" %s", name);
    printf("\n  GGUF       ");
    for (int i = 0; (name = gr_written_type_name(i, &folder)); i++) printf(" %s", name);
    printf("\n\na plain base held in few bits (model.quantize, --quantize): %s", gr_recipe_keys[GR_ROW_model_quantize].constraint);
    printf("\n\nchat templates by name (auto: the model's own):\n ");
    for (int i = 0; gr_chat_names()[i]; i++) printf(" %s", gr_chat_names()[i]);
    printf("\n");
    return GRAFT_OK;
}

static const struct topic {
    const char *name, *summary;
    graft_status (*print)(const gr_args *a, graft_error *err);
} topics[] = {
    {"recipe", "every key of a recipe; with --json its JSON Schema", help_recipe},
    {"models", "architectures, types of weights that are read and written, chat templates", help_models},
    {"data", "what can be done with data, and the forms of samples", help_data},
    {"vocab", "what can be done with vocabularies", help_vocab},
};

static graft_status unknown_topic(const char *name, graft_error *err) {
    const char *names[64], *near;
    gr_str all = {0};
    int n = 0;
    for (int i = 0; i < GR_LEN(topics); i++) names[n++] = topics[i].name;
    for (int i = 0; i < gr_n_commands() && n < GR_LEN(names); i++) names[n++] = gr_commands[i].name;
    for (int i = 0; i < n; i++) gr_str_printf(&all, "%s%s", i ? ", " : "", names[i]);
    near = gr_nearest(name, names, n);
    gr_fail(err, GRAFT_BAD_USAGE, "no help on \"%.60s\"%s%s%s; there is: %s", name, near ? " (did you mean " : "", near ? near : "",
            near ? "?)" : "", all.failed ? "" : all.data);
    gr_str_release(&all);
    return GRAFT_BAD_USAGE;
}

/* ---- the table of commands ---- */

static void print_overview(void) {
    printf("graft %s - parameter-efficient finetuning of language models\n\nusage: graft COMMAND [options]\n\n", GRAFT_VERSION);
    for (int i = 0; i < gr_n_commands(); i++) printf("  %-14s %s\n", gr_commands[i].name, gr_commands[i].summary);
    printf("\n`graft COMMAND --help` explains a command, `graft help TOPIC` one of these:\n\n");
    for (int i = 0; i < GR_LEN(topics); i++) printf("  %-14s %s\n", topics[i].name, topics[i].summary);
    printf("\nexit codes: 0 done, 1 failed, 2 the command line or a recipe is wrong, 3 an input file is "
           "missing or wrong,\n"
           "130 interrupted after a checkpoint was saved\n");
}

void gr_print_help(const gr_command *c) {
    if (!c) {
        print_overview();
        return;
    }
    printf("graft %s - %s\n\nusage: graft %s %s\n\noptions:\n", c->name, c->summary, c->name, c->arguments);
    const gr_option *o;
    for (int i = 0; (o = gr_command_option(c, i)); i++) {
        char left[64];
        snprintf(left, sizeof left, "--%s %s", o->name, o->value ? o->value : "");
        printf("  %-26s %s%s%s%s\n", left, gr_option_help(o), *gr_option_choices(o) ? " (" : "", gr_option_choices(o),
               *gr_option_choices(o) ? ")" : "");
    }
    printf("\nexample:\n  %s\n", c->example);
}

/* Text for roff: a dash is a minus sign there, a backslash starts a command. */
static void put_roff(const char *s) {
    for (; *s; s++) {
        if (*s == '-' || *s == '\\') putchar('\\');
        putchar(*s == '\\' ? 'e' : *s);
    }
}

static void print_man(void) {
    printf(".TH GRAFT 1 \"\" \"graft %s\"\n.SH NAME\ngraft \\- parameter\\-efficient finetuning of language "
           "models\n"
           ".SH SYNOPSIS\n.B graft\n.I COMMAND\n[options]\n.SH COMMANDS\n",
           GRAFT_VERSION);
    for (int i = 0; i < gr_n_commands(); i++) {
        const gr_command *c = &gr_commands[i];
        const gr_option *o;
        printf(".SS ");
        put_roff(c->name);
        putchar('\n');
        put_roff(c->summary);
        printf(".\n.PP\n.B graft ");
        put_roff(c->name);
        putchar(' ');
        put_roff(c->arguments);
        putchar('\n');
        for (int k = 0; (o = gr_command_option(c, k)); k++) {
            printf(".TP\n.B \\-\\-");
            put_roff(o->name);
            if (o->value) printf(" \\fI%s\\fR", o->value);
            putchar('\n');
            put_roff(gr_option_help(o));
            putchar('\n');
        }
        printf(".PP\nExample:\n.PP\n.nf\n");
        put_roff(c->example);
        printf("\n.fi\n");
    }
    printf(".SH EXIT STATUS\n0 done, 1 failed, 2 the command line or a recipe is wrong, 3 an input file is missing or wrong, 130 "
           "interrupted after a checkpoint was saved.\n.SH RECIPES\n.nf\n");
    gr_str help = {0};
    gr_recipe_help(&help);
    if (!help.failed) put_roff(help.data);
    gr_str_release(&help);
    printf(".fi\n");
}

static void print_bash_completion(void) {
    printf("# bash completion of graft, made by `graft help --completion bash`\n_graft() {\n"
           "    local cur=${COMP_WORDS[COMP_CWORD]} words=\n    COMPREPLY=()\n    case \"${COMP_WORDS[1]} "
           "${COMP_WORDS[2]}\" in\n");
    for (int pass = 0; pass < 2; pass++) /* two-word commands first: "data make" before the rest of "data" */
        for (int i = 0; i < gr_n_commands(); i++) {
            const gr_command *c = &gr_commands[i];
            const gr_option *o;
            bool two = strchr(c->name, ' ') != NULL;
            if (two != (pass == 0)) continue;
            printf("    \"%s%s) words=\"", c->name, two ? "\"" : " \"*");
            for (int k = 0; (o = gr_command_option(c, k)); k++) printf("%s--%s", k ? " " : "", o->name);
            printf("\" ;;\n");
        }
    printf("    esac\n    if [[ $COMP_CWORD -eq 1 ]]; then words=\"");
    for (int i = 0; i < gr_n_commands(); i++) {
        int n = (int)strcspn(gr_commands[i].name, " ");
        bool repeated = i > 0 && strncmp(gr_commands[i - 1].name, gr_commands[i].name, (size_t)n + 1) == 0;
        if (!repeated) printf("%s%.*s", i ? " " : "", n, gr_commands[i].name);
    }
    for (int i = 0, n; i < gr_n_commands(); i++) { /* the second words of each group, once */
        const char *name = gr_commands[i].name;
        n = (int)strcspn(name, " ");
        if (!name[n] || (i > 0 && strncmp(gr_commands[i - 1].name, name, (size_t)n + 1) == 0)) continue;
        printf("\"\n    elif [[ $COMP_CWORD -eq 2 && ${COMP_WORDS[1]} == %.*s ]]; then words=\"", n, name);
        for (int k = i; k < gr_n_commands() && strncmp(gr_commands[k].name, name, (size_t)n + 1) == 0; k++)
            printf("%s ", gr_commands[k].name + n + 1);
    }
    printf("\"\n    elif [[ $COMP_CWORD -eq 2 && ${COMP_WORDS[1]} == help ]]; then words=\"");
    for (int i = 0; i < GR_LEN(topics); i++) printf(" %s", topics[i].name);
    for (int i = 0; i < gr_n_commands(); i++) printf(" %.*s", (int)strcspn(gr_commands[i].name, " "), gr_commands[i].name);
    printf("\"\n    fi\n    if [[ $cur == -* || -n $words && ( $COMP_CWORD -eq 1 || $COMP_CWORD -eq 2 && "
           "( ${COMP_WORDS[1]} == data || ${COMP_WORDS[1]} == vocab || ${COMP_WORDS[1]} == help ) ) ]]; then\n"
           "        mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n"
           "    else\n        mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n    fi\n}\n"
           "complete -o filenames -F _graft graft\n");
}

graft_status gr_cmd_help(const gr_args *a, graft_error *err) {
    const char *shell = gr_args_text(a, "completion", NULL);
    char name[96];
    if (gr_args_has(a, "man")) {
        print_man();
        return GRAFT_OK;
    }
    if (shell && strcmp(shell, "bash") != 0)
        return gr_fail(err, GRAFT_BAD_USAGE, "--completion: expected bash, found \"%s\"", shell);
    if (shell) {
        print_bash_completion();
        return GRAFT_OK;
    }
    if (a->n_arguments == 0) {
        print_overview();
        return GRAFT_OK;
    }
    for (int i = 0; i < GR_LEN(topics); i++)
        if (a->n_arguments == 1 && strcmp(a->arguments[0], topics[i].name) == 0) return topics[i].print(a, err);
    snprintf(name, sizeof name, "%s%s%s", a->arguments[0], a->n_arguments > 1 ? " " : "",
             a->n_arguments > 1 ? a->arguments[1] : "");
    const gr_command *c = gr_command_find(name);
    if (!c) return unknown_topic(name, err);
    gr_print_help(c);
    return GRAFT_OK;
}

graft_status gr_cmd_version(const gr_args *a, graft_error *err) {
    const char *commit = *GRAFT_COMMIT ? GRAFT_COMMIT : "unknown";
    gr_machine machine;
    (void)err;
    const char *level = gr_machine_open(&machine, "auto", 1, NULL) == GRAFT_OK ? machine.device->level : "no device";
    if (gr_args_has(a, "json"))
        printf("{\"version\": \"%s\", \"commit\": \"%s\", \"device\": \"%s\"}\n", GRAFT_VERSION, commit, level);
    else printf("graft %s (commit %s, %s)\n", GRAFT_VERSION, commit, level);
    gr_machine_close(&machine);
    return GRAFT_OK;
}
