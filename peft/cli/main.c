/* main.c - the graft program: finds the command, runs it, turns its status into a message and an exit code. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "core/dist/comm.h"
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

/* A pipe that nobody reads any more: the signal comes of a write of this thread, in which all that follows may be called. */
static void on_pipe(int number) {
    (void)gr_unfinished_remove();
    signal(number, SIG_DFL);
    raise(number);
}

/* Waits for a signal that ends this process: what it was writing is removed before. */
static void *end_by_signal(void *signals) {
    int number = 0;
    if (sigwait(signals, &number) != 0) return NULL;
    if (gr_unfinished_remove() > 0) fprintf(stderr, "\ngraft: interrupted: what was being written is removed\n");
    pthread_sigmask(SIG_UNBLOCK, signals, NULL);
    kill(getpid(), number);
    return NULL;
}

/* Those of train, plan and chat are their own. Before any thread has started: they all leave the signals to the one here. */
static void watch_signals(const gr_command *c) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGXCPU};
    static sigset_t signals;
    struct sigaction action;
    pthread_t thread;
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow any more is an error of its write, as on a full disk */
    if (c->run == gr_cmd_train || c->run == gr_cmd_plan || c->run == gr_cmd_chat) return;
    if (sigaction(SIGPIPE, NULL, &action) == 0 && action.sa_handler == SIG_DFL) signal(SIGPIPE, on_pipe);
    sigemptyset(&signals);
    for (int i = 0; i < GR_LEN(numbers); i++) /* what is ignored (nohup) stays so */
        if (sigaction(numbers[i], NULL, &action) == 0 && action.sa_handler == SIG_DFL) sigaddset(&signals, numbers[i]);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    if (pthread_create(&thread, NULL, end_by_signal, &signals) == 0) pthread_detach(thread);
    else pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
}

/* Ranks are train's, and plan's, which tells of all of them. */
static void tell_of_ranks(const gr_command *c) {
    int rank;
    const int ranks = gr_comm_started(&rank);
    if (ranks > 1 && rank == 0 && c->run != gr_cmd_train && c->run != gr_cmd_plan)
        fprintf(stderr, "graft: started %d times: each does all of graft %s by itself; only train shares its work\n", ranks,
                c->name);
}

int main(int argc, char **argv) {
    graft_error err = {0};
    gr_args args = {0};
    graft_status st = gr_args_parse(&args, argc, argv, &err);
    if (st != GRAFT_OK) gr_comm_let_first_tell();
    if (st == GRAFT_OK && gr_args_has(&args, "help")) gr_print_help(args.command);
    else if (st == GRAFT_OK) {
        watch_signals(args.command);
        tell_of_ranks(args.command);
        st = args.command->run(&args, &err);
    }
    if ((fflush(stdout) != 0 || ferror(stdout)) && st == GRAFT_OK)
        st = gr_fail_errno(&err, GRAFT_FAILED, "writing standard output");
    st = tell_options(&args, st, &err);
    if (st != GRAFT_OK && err.msg[0]) /* empty: another rank tells it */
        fprintf(stderr, "graft: %s: %s\n", st == GRAFT_INTERRUPTED ? "interrupted" : "error", err.msg);
    gr_args_release(&args);
    return graft_status_exit_code(st);
}
