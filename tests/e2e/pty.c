/* Runs a program on a terminal of its own and plays a person: ./pty SCRIPT PROGRAM [ARGUMENT ...]
 *
 * A line of SCRIPT: "wait TEXT" (until the program has written it, 60 s at most), "send TEXT" (as typed, \r is Enter, \3 Ctrl-C, \4
 * Ctrl-D, \e escape), "end" (the program must end). What it wrote goes to stdout; the exit status is the program's, 99 when a wait
 * was in vain. */
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WAIT_S = 60 };

static char seen[1 << 20]; /* what the program wrote since the last match */
static size_t n_seen;

/* Reads what is there for at most ms; false when the program has closed its end. */
static int pump(int fd, int ms) {
    struct pollfd input = {.fd = fd, .events = POLLIN};
    char buffer[256]; /* small: the rest waits, as on a slow terminal */
    if (poll(&input, 1, ms) <= 0) return 1;
    ssize_t n = read(fd, buffer, sizeof buffer);
    if (n <= 0) return 0;
    fwrite(buffer, 1, (size_t)n, stdout);
    if (n_seen + (size_t)n >= sizeof seen) n_seen = 0;
    memcpy(seen + n_seen, buffer, (size_t)n);
    n_seen += (size_t)n;
    return 1;
}

static int wait_for(int fd, const char *text) {
    time_t until = time(NULL) + WAIT_S;
    for (;;) {
        char *found = memmem(seen, n_seen, text, strlen(text));
        if (found) {
            size_t used = (size_t)(found - seen) + strlen(text);
            memmove(seen, seen + used, n_seen - used);
            n_seen -= used;
            return 1;
        }
        if (time(NULL) > until || !pump(fd, 200)) return 0;
    }
}

static void type(int fd, const char *text) {
    char out[1024];
    size_t n = 0;
    for (; *text && n < sizeof out; text++) {
        if (*text != '\\') {
            out[n++] = *text;
            continue;
        }
        text++;
        out[n++] = *text == 'r' ? '\r' : *text == 'e' ? '\033' : *text == '3' ? 3 : *text == '4' ? 4 : *text;
    }
    if (write(fd, out, n) != (ssize_t)n) perror("write");
}

static int play(int fd, FILE *script) {
    char line[1024];
    while (fgets(line, sizeof line, script)) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, "send ", 5) == 0) type(fd, line + 5);
        if (strncmp(line, "wait ", 5) == 0 && !wait_for(fd, line + 5)) {
            printf("\n[waited in vain for \"%s\"]\n", line + 5);
            return 0;
        }
        for (int i = 0; i < 3 && strcmp(line, "pause") == 0; i++) pump(fd, 100);
        if (strcmp(line, "end") == 0)
            for (time_t until = time(NULL) + WAIT_S; pump(fd, 200);)
                if (time(NULL) > until) return 0;
    }
    return 1;
}

int main(int argc, char **argv) {
    int fd, status = 0;
    FILE *script = argc > 2 ? fopen(argv[1], "r") : NULL;
    if (!script) return 98;
    pid_t child = forkpty(&fd, NULL, NULL, NULL);
    if (child == 0) {
        execvp(argv[2], argv + 2);
        _exit(127);
    }
    int good = child > 0 && play(fd, script);
    fflush(stdout);
    if (!good && child > 0) kill(child, SIGKILL);
    waitpid(child, &status, 0);
    fclose(script);
    return !good ? 99 : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
