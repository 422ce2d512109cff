/* peak FILE COMMAND [ARGUMENT ...] - run a command; the peak of its resident memory, in bytes, goes to FILE.
 * Ends as the command does. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct rusage usage;
    int status;
    if (argc < 3) return 2;
    pid_t child = fork();
    if (child == 0) {
        execvp(argv[2], argv + 2);
        _exit(127);
    }
    if (child < 0 || wait4(child, &status, 0, &usage) != child) return 1;
    FILE *f = fopen(argv[1], "w");
    if (!f || fprintf(f, "%lld\n", (long long)usage.ru_maxrss * 1024) < 0 || fclose(f) != 0) return 1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
