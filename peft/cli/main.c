/* main.c - the graft program: finds the command, runs it, turns its status into a message and an exit code. */
#include <errno.h>

#include "peft/cli/commands.h"

int main(int argc, char **argv) {
    graft_error err = {0};
    gr_args args = {0};
    graft_status st = gr_args_parse(&args, argc, argv, &err);
    if (st == GRAFT_OK && gr_args_has(&args, "help")) gr_print_help(args.command);
    else if (st == GRAFT_OK) st = args.command->run(&args, &err);
    if ((fflush(stdout) != 0 || ferror(stdout)) && st == GRAFT_OK)
        st = gr_fail_errno(&err, GRAFT_FAILED, "writing standard output");
    if (st != GRAFT_OK) fprintf(stderr, "graft: %s: %s\n", st == GRAFT_INTERRUPTED ? "interrupted" : "error", err.msg);
    gr_args_release(&args);
    return graft_status_exit_code(st);
}
