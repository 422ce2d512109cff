/* ranks.c - what the ranks of a run say to each other, for tests/unit/test_ranks.sh: mpirun -n N ranks WHAT [RANK].
 *   exchange   pieces of many sizes between all pairs, gathered and broadcast ones; checked by everyone
 *   disagree   RANK comes with a failure, all leave with its message
 *   leave      RANK fails alone, while the others exchange
 *   silent     RANK stands still, and rank 0, which needs nothing of it, goes on to the next exchange (3 s of patience)
 *   die        RANK is killed while the others wait
 *   stop       RANK stands still while the others wait (3 s of patience)
 *   cards      the same pieces between cards, many times without a wait of the host; checked by everyone
 *   card-dies  RANK is killed while the others' cards wait for its own
 *   card-stops RANK stands still meanwhile (3 s of patience)
 *   card-fails RANK leaves with a failure of its own meanwhile (3 s of patience) */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/dist/comm.h"
#include "core/model/machine.h"
#include "peft/ranks.h"

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

/* ---- cards ---- */

typedef struct cards {
    gr_machine machine;
    gr_mover mover;
    int64_t bytes;
    char *out, *in;             /* device memory: pieces for and from all ranks, one after the other */
    unsigned char *sent, *host; /* [bytes] what is sent; room */
} cards;

static graft_status open_cards(cards *k, gr_comm *c, graft_error *err) {
    const int rank = gr_comm_rank(c), size = gr_comm_size(c);
    char name[32];
    int64_t taken, out = 0, in = 0;
    graft_status st;
    snprintf(name, sizeof name, "cuda:%d", gr_comm_host_rank(c));
    GR_TRY(gr_machine_open(&k->machine, name, 1, err));
    gr_device *d = k->machine.device;
    GR_TRY(gr_ranks_join(c, d, &taken, err));
    if (!d->joined) GR_TRY(gr_fail(err, GRAFT_FAILED, "the cards are not joined"));
    GR_TRY(gr_mover_init(&k->mover, c, d, 0, err));
    for (int i = 0; i < size; i++) out += size_of(rank, i), in += size_of(i, rank);
    k->bytes = GR_MAX(out, in);
    k->out = d->alloc(d, k->bytes), k->in = d->alloc(d, k->bytes);
    k->sent = malloc((size_t)k->bytes), k->host = malloc((size_t)k->bytes);
    out = in = 0;
    for (int i = 0; i < size; i++) {
        for (int64_t n = 0; n < size_of(rank, i); n++) k->sent[out + n] = byte_of(rank, i, n);
        k->mover.out[i] = (gr_piece){k->out + out, size_of(rank, i)};
        k->mover.in[i] = (gr_piece){k->in + in, size_of(i, rank)};
        out += size_of(rank, i), in += size_of(i, rank);
    }
done:
    return st;
}

static void close_cards(cards *k, graft_status st) {
    gr_device *d = k->machine.device;
    if (st != GRAFT_OK) gr_ranks_leave(d);
    if (d) d->free(d, k->out), d->free(d, k->in);
    free(k->sent);
    free(k->host);
    gr_mover_release(&k->mover);
    gr_machine_close(&k->machine);
}

/* What came is right in every round: it is wiped before each, beside which the compute queue works on. */
static graft_status between_cards(gr_comm *c, const char *what, int which, graft_error *err) {
    const int rank = gr_comm_rank(c), size = gr_comm_size(c);
    cards k = {0};
    int wrong = 0;
    graft_status st;
    GR_TRY(open_cards(&k, c, err));
    gr_device *d = k.machine.device;
    const int64_t before = gr_comm_sent(c);
    (void)signal(SIGTERM, SIG_IGN); /* mpirun's, when another was killed: what is seen is to be told first */
    for (int round = 0; round < 5; round++) {
        gr_comm_at_step(c, round + 1);
        if (round == 3 && which == rank) (void)d->sync(d); /* the emulator's NCCL has a lock that is lost with who holds it */
        if (round == 3 && which == rank && strcmp(what, "card-dies") == 0) raise(SIGKILL);
        if (round == 3 && which == rank && strcmp(what, "card-stops") == 0) raise(SIGSTOP);
        if (round == 3 && which == rank && strcmp(what, "card-fails") == 0) GR_TRY(gr_fail(err, GRAFT_FAILED, "no milk"));
        d->zero(d, k.in, k.bytes);
        d->zero(d, k.out, k.bytes);
        d->upload(d, k.out, k.sent, k.bytes);
        GR_TRY(gr_mover_exchange(&k.mover, "trying", err));
        if (round < 3) continue; /* given without a wait */
        d->download(d, k.host, k.in, k.bytes, 0);
        GR_TRY(gr_comm_status(c, err));
        const unsigned char *at = k.host;
        for (int i = 0; i < size; at += size_of(i, rank), i++) wrong += count_wrong(at, size_of(i, rank), i, rank);
    }
    GR_TRY(gr_device_status(d, err));
    printf("rank %d of %d: %d wrong, %lld bytes sent\n", rank, size, wrong, (long long)(gr_comm_sent(c) - before));
    if (wrong) st = gr_fail(err, GRAFT_FAILED, "%d bytes are wrong", wrong);
done:
    gr_comm_leave(c, st, err);
    close_cards(&k, st);
    return st;
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "exchange";
    const int which = argc > 2 ? atoi(argv[2]) : -1;
    gr_comm *c;
    graft_error err = {0};
    const bool short_of_time = strstr(what, "stop") || strstr(what, "fails") || strcmp(what, "silent") == 0;
    graft_status st = gr_comm_open(&c, short_of_time ? 3 : 0, &err);
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
    if (st == GRAFT_OK && strncmp(what, "card", 4) == 0) st = between_cards(c, what, which, &err);
    for (int step = 1; st == GRAFT_OK && (strcmp(what, "die") == 0 || strcmp(what, "stop") == 0); step++) {
        gr_comm_at_step(c, step);
        if (step == 5 && which == gr_comm_rank(c)) raise(what[0] == 'd' ? SIGKILL : SIGSTOP);
        st = gr_comm_agree(c, "going on", GRAFT_OK, NULL, &err);
    }
    if (st != GRAFT_OK) fprintf(stderr, "%s\n", err.msg);
    gr_comm_close(c);
    return st == GRAFT_OK ? 0 : 1;
}
