/* bench_tokenizer.c - speed of tokenising a text file, one thread, line by line. Usage: bench_tokenizer MODEL TEXT; prints MB/s and
 * tokens. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/text/tokenizer.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
    graft_error err;
    gr_tokenizer *t = NULL;
    char *line = NULL;
    size_t capacity = 0;
    ssize_t len;
    long long bytes = 0, tokens = 0;
    double seconds = 0;
    FILE *f = argc == 3 ? fopen(argv[2], "r") : NULL;
    if (!f || gr_tokenizer_open(&t, argv[1], &err) != GRAFT_OK) {
        fprintf(stderr, "usage: bench_tokenizer MODEL TEXT\n");
        return 1;
    }
    while ((len = getline(&line, &capacity, f)) > 0) {
        gr_ids ids = {0};
        double start = now();
        if (gr_tokenizer_encode(t, line, len, false, &ids, &err) != GRAFT_OK) return 1;
        seconds += now() - start;
        bytes += len, tokens += ids.n;
        gr_ids_release(&ids);
    }
    printf("%.2f MB/s %lld tokens\n", (double)bytes / seconds / 1e6, tokens);
    free(line);
    fclose(f);
    gr_tokenizer_free(t);
    return 0;
}
