/* main.c - the graft program: finds the command, runs it, turns its status into a message and an exit code. */
#include <errno.h>
#include <string.h>

#include "peft/cli/commands.h"

/* A command that was short of memory: its options that have it need less. */
static graft_status tell_options(const gr_args *a, graft_status st, graft_error *err) {
    static const char *const names[][2] = {{"max-tokens", "smaller --max-tokens"},
                                           {"batch", "smaller --batch"},
                                           {"batch-tokens", "smaller --batch-tokens"},
                                           {"max-length", "smaller --max-length"},
                                           {"quantize", "--quantize nf4"}};
    const char *before = "; less is needed with ";
    if (st != GRAFT_NO_MEMORY || !a->command || strstr(err->msg, before)) return st;
    for (int k = 0; k < GR_LEN(names); k++)
        for (int i = 0; gr_command_option(a->command, i); i++)
            if (strcmp(gr_command_option(a->command, i)->name, names[k][0]) == 0) {
                (void)gr_fail_more(err, st, "%s%s", before, names[k][1]);
                before = ", ";
            }
    return st;
}

int main(int argc, char **argv) {
    graft_error err = {0};
    gr_args args = {0};
    graft_status st = gr_args_parse(&args, argc, argv, &err);
    if (st == GRAFT_OK && gr_args_has(&args, "help")) gr_print_help(args.command);
    else if (st == GRAFT_OK) st = args.command->run(&args, &err);
    if ((fflush(stdout) != 0 || ferror(stdout)) && st == GRAFT_OK)
        st = gr_fail_errno(&err, GRAFT_FAILED, "writing standard output");
    st = tell_options(&args, st, &err);
    if (st != GRAFT_OK && err.msg[0]) /* empty: another rank tells it */
        fprintf(stderr, "graft: %s: %s\n", st == GRAFT_INTERRUPTED ? "interrupted" : "error", err.msg);
    gr_args_release(&args);
    return graft_status_exit_code(st);
}
