/* ranks.c - what the ranks of a run say to each other, for tests/unit/test_ranks.sh: mpirun -n N ranks WHAT [RANK].
 *   exchange   pieces of many sizes between all pairs, gathered and broadcast ones; checked by everyone
 *   disagree   RANK comes with a failure, all leave with its message
 *   leave      RANK fails alone, while the others exchange
 *   silent     RANK stands still, and rank 0, which needs nothing of it, goes on to the next exchange (3 s of patience)
 *   die        RANK is killed while the others wait
 *   stop       RANK stands still while the others wait (3 s of patience) */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/dist/comm.h"

/* Byte i of what `from` gives to `to`. */
static unsigned char byte_of(int from, int to, int64_t i) { return (unsigned char)(31 * from + 7 * to + i % 251); }

static int64_t size_of(int from, int to) { return (from + to) % 3 == 0 ? 0 : (int64_t)1 << ((5 * from + 3 * to) % 23); }

static int count_wrong(const unsigned char *data, int64_t n, int from, int to) {
    int wrong = 0;
    for (int64_t i = 0; i < n; i++) wrong += data[i] != byte_of(from, to, i);
    return wrong;
}

static graft_status exchange(gr_comm *c, graft_error *err) {
    const int rank = gr_comm_rank(c), size = gr_comm_size(c);
    gr_piece *out = gr_calloc(size, sizeof *out), *in = gr_calloc(size, sizeof *in);
    int wrong = 0;
    graft_status st;
    for (int i = 0; i < size; i++) {
        out[i] = (gr_piece){malloc((size_t)size_of(rank, i) + 1), size_of(rank, i)};
        in[i] = (gr_piece){calloc(1, (size_t)size_of(i, rank) + 1), size_of(i, rank)};
        for (int64_t k = 0; k < out[i].bytes; k++) ((unsigned char *)out[i].data)[k] = byte_of(rank, i, k);
    }
    for (int round = 0; round < 20; round++) {
        GR_TRY(gr_comm_exchange(c, "trying", out, in, err));
        for (int i = 0; i < size; i++) wrong += count_wrong(in[i].data, in[i].bytes, i, rank);
    }
    unsigned char mine[100], *all = malloc(sizeof mine * (size_t)size), given[100];
    for (int64_t k = 0; k < 100; k++) mine[k] = byte_of(rank, 0, k), given[k] = rank == 0 ? byte_of(5, 5, k) : 0;
    GR_TRY(gr_comm_gather(c, "gathering", mine, sizeof mine, all, err));
    for (int i = 0; i < size; i++) wrong += count_wrong(all + 100 * i, 100, i, 0);
    GR_TRY(gr_comm_broadcast(c, "telling", given, sizeof given, err));
    wrong += count_wrong(given, sizeof given, 5, 5);
    free(all);
    for (int i = 0; i < size; i++) free(out[i].data), free(in[i].data);
    printf("rank %d of %d, %d of %d here: %d wrong, %lld bytes sent\n", rank, size, gr_comm_host_rank(c), gr_comm_host_size(c),
           wrong, (long long)gr_comm_sent(c));
    if (wrong) st = gr_fail(err, GRAFT_FAILED, "%d bytes are wrong", wrong);
done:
    free(out);
    free(in);
    return st;
}

/* Everyone has a piece for everyone but rank 0 and `which`, of which nothing is heard. */
static graft_status pass_by(gr_comm *c, int which, graft_error *err) {
    const int rank = gr_comm_rank(c), size = gr_comm_size(c);
    gr_piece out[size], in[size];
    int64_t sent[size], got[size];
    memset(sent, 0, sizeof sent);
    if (rank == which) raise(SIGSTOP);
    for (int i = 0; i < size; i++) {
        const int64_t bytes = (rank == 0 && i == which) || (rank == which && i == 0) ? 0 : (int64_t)sizeof *sent;
        out[i] = (gr_piece){&sent[i], bytes}, in[i] = (gr_piece){&got[i], bytes};
    }
    graft_status st = gr_comm_exchange(c, "passing by", out, in, err);
    return st == GRAFT_OK ? gr_comm_agree(c, "going on", st, NULL, err) : st;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "exchange";
    const int which = argc > 2 ? atoi(argv[2]) : -1;
    gr_comm *c;
    graft_error err = {0};
    graft_status st = gr_comm_open(&c, strcmp(what, "stop") == 0 || strcmp(what, "silent") == 0 ? 3 : 0, &err);
    if (st == GRAFT_OK && !c) st = gr_fail(&err, GRAFT_BAD_USAGE, "alone");
    if (st == GRAFT_OK && strcmp(what, "exchange") == 0) st = exchange(c, &err);
    if (st == GRAFT_OK && strcmp(what, "disagree") == 0)
        st = gr_comm_agree(c, "agreeing", which == gr_comm_rank(c) ? gr_fail(&err, GRAFT_BAD_INPUT, "no milk") : GRAFT_OK, NULL,
                           &err);
    if (st == GRAFT_OK && strcmp(what, "silent") == 0) st = pass_by(c, which, &err);
    if (st == GRAFT_OK && strcmp(what, "leave") == 0) {
        if (which == gr_comm_rank(c)) st = gr_fail(&err, GRAFT_BAD_INPUT, "no milk");
        else st = exchange(c, &err);
        gr_comm_leave(c, st, &err);
    }
    for (int step = 1; st == GRAFT_OK && (strcmp(what, "die") == 0 || strcmp(what, "stop") == 0); step++) {
        gr_comm_at_step(c, step);
        if (step == 5 && which == gr_comm_rank(c)) raise(what[0] == 'd' ? SIGKILL : SIGSTOP);
        st = gr_comm_agree(c, "going on", GRAFT_OK, NULL, &err);
    }
    if (st != GRAFT_OK) fprintf(stderr, "%s\n", err.msg);
    gr_comm_close(c);
    return st == GRAFT_OK ? 0 : 1;
}
