#include "core/dist/comm.h"

#include <dlfcn.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/dist/transport.h"
#include "kernels/plugin.h"

enum { DEADLINE = 300, HOST_BYTES = 64 };
#define SPEAKING    5.0 /* seconds that a message takes at most */
#define LOOK_AROUND 0.2 /* seconds after which the processes of this host are looked for again */

/* Where a rank lives. */
typedef struct place {
    char host[HOST_BYTES];
    int64_t pid;
    cpu_set_t processors; /* that it may use */
} place;

struct gr_comm {
    const gr_transport *transport;
    int rank, size, host_rank, host_size;
    double deadline;
    place *places;        /* [size] */
    unsigned char *waits; /* [size] */
    gr_piece *out, *in;   /* [size] of what is gathered or broadcast */
    int64_t step, sent;
    int lost;         /* the rank that was, -1: none */
    bool told;        /* all know that the run has failed, and why */
    char failed[512]; /* how; empty: it did not */
};

int gr_comm_rank(const gr_comm *c) { return c ? c->rank : 0; }
int gr_comm_size(const gr_comm *c) { return c ? c->size : 1; }
int gr_comm_host_rank(const gr_comm *c) { return c ? c->host_rank : 0; }
int gr_comm_host_size(const gr_comm *c) { return c ? c->host_size : 1; }
void gr_comm_at_step(gr_comm *c, int64_t step) {
    if (c) c->step = step;
}

int gr_comm_threads(const gr_comm *c) {
    const place *here = &c->places[c->rank];
    int sharing = 0;
    for (int i = 0; i < c->size; i++)
        sharing += strcmp(c->places[i].host, here->host) == 0 && CPU_EQUAL(&c->places[i].processors, &here->processors);
    return GR_MAX(1, CPU_COUNT(&here->processors) / GR_MAX(sharing, 1));
}

int64_t gr_comm_sent(const gr_comm *c) { return c ? c->sent : 0; }

/* ---- an exchange ---- */

static graft_status failed(const gr_comm *c, graft_error *err) { return gr_fail(err, GRAFT_FAILED, "%s", c->failed); }

/* "gradients of step 12" */
static void say_where(const gr_comm *c, const char *what, char *text, size_t size) {
    if (c->step < 0) snprintf(text, size, "%s", what);
    else snprintf(text, size, "%s of step %lld", what, (long long)c->step);
}

static graft_status lose(gr_comm *c, int rank, const char *what, const char *how, graft_error *err) {
    char where[128];
    c->lost = rank;
    say_where(c, what, where, sizeof where);
    snprintf(c->failed, sizeof c->failed, "rank %d (%s, process %lld) %s, seen by rank %d in %s", rank, c->places[rank].host,
             (long long)c->places[rank].pid, how, c->rank, where);
    return failed(c, err);
}

static bool is_here(const gr_comm *c, int rank) { return strcmp(c->places[rank].host, c->places[c->rank].host) == 0; }

/* Of a rank of this host. */
static bool is_gone(const gr_comm *c, int rank) { return kill((pid_t)c->places[rank].pid, 0) != 0 && errno == ESRCH; }

/* A rank of this host that is waited for and whose process is gone; -1: none. */
static int find_dead(const gr_comm *c) {
    for (int i = 0; i < c->size; i++)
        if (c->waits[i] && c->places[i].pid > 0 && is_here(c, i) && is_gone(c, i)) return i;
    return -1;
}

/* patience: seconds, < 0: as long as their processes are there. */
static graft_status wait_for_all(gr_comm *c, const char *what, double patience, graft_error *err) {
    const double began = gr_now();
    double looked = began;
    long pause = 1000; /* ns; ranks may share processors, so that whoever waits must leave them */
    const char *why = "";
    int done;
    while ((done = c->transport->test(c->waits, &why)) == 0) {
        const double now = gr_now();
        if (now - looked > LOOK_AROUND) {
            int dead = find_dead(c);
            looked = now;
            if (dead >= 0) return lose(c, dead, what, "is gone", err);
        }
        if (patience >= 0 && now - began > patience) {
            char how[64];
            int first = 0;
            while (first < c->size - 1 && !c->waits[first]) first++;
            snprintf(how, sizeof how, "was not heard of for %.0f s", patience);
            return lose(c, first, what, how, err);
        }
        nanosleep(&(struct timespec){.tv_nsec = pause}, NULL);
        if (pause < 500000) pause += pause / 2;
    }
    if (done > 0) return GRAFT_OK;
    snprintf(c->failed, sizeof c->failed, "rank %d, %s: %.300s", c->rank, what, why);
    return failed(c, err);
}

static graft_status exchange(gr_comm *c, const char *what, const gr_piece *out, const gr_piece *in, double patience,
                             graft_error *err) {
    const char *why = "";
    if (c->failed[0]) return failed(c, err);
    GR_ASSERT(out[c->rank].bytes == in[c->rank].bytes);
    if (!c->transport->begin(out, in, &why)) {
        snprintf(c->failed, sizeof c->failed, "rank %d, %s: %.300s", c->rank, what, why);
        return failed(c, err);
    }
    if (out[c->rank].bytes > 0 && out[c->rank].data != in[c->rank].data)
        memcpy(in[c->rank].data, out[c->rank].data, (size_t)out[c->rank].bytes);
    for (int i = 0; i < c->size; i++) c->sent += i == c->rank ? 0 : out[i].bytes;
    return wait_for_all(c, what, patience, err);
}

graft_status gr_comm_exchange(gr_comm *c, const char *what, const gr_piece *out, const gr_piece *in, graft_error *err) {
    return exchange(c, what, out, in, c->deadline, err);
}

static graft_status gather(gr_comm *c, const char *what, const void *mine, int64_t bytes, void *all, double patience,
                           graft_error *err) {
    for (int i = 0; i < c->size; i++) {
        c->out[i] = (gr_piece){(void *)(uintptr_t)mine, bytes}; /* only read */
        c->in[i] = (gr_piece){(char *)all + i * bytes, bytes};
    }
    return exchange(c, what, c->out, c->in, patience, err);
}

graft_status gr_comm_gather(gr_comm *c, const char *what, const void *mine, int64_t bytes, void *all, graft_error *err) {
    return gather(c, what, mine, bytes, all, c->deadline, err);
}

graft_status gr_comm_broadcast(gr_comm *c, const char *what, void *data, int64_t bytes, graft_error *err) {
    for (int i = 0; i < c->size; i++) {
        c->out[i] = (gr_piece){data, c->rank == 0 ? bytes : 0};
        c->in[i] = (gr_piece){data, i == 0 ? bytes : 0};
    }
    c->out[c->rank] = c->in[c->rank] = (gr_piece){data, 0};
    return gr_comm_exchange(c, what, c->out, c->in, err);
}

typedef struct word {
    int32_t status, flag;
    graft_error error;
} word;

static graft_status agree(gr_comm *c, const char *what, graft_status mine, bool *any, double patience, graft_error *err) {
    if (!c || c->failed[0] || c->told) return mine;
    word said = {.status = (int32_t)mine, .flag = any && *any};
    word *all = gr_calloc(c->size, sizeof *all);
    if (!all) return gr_fail_memory(err, what);
    if (mine != GRAFT_OK && err) said.error = *err;
    graft_error lost = {0};
    graft_status st = gather(c, what, &said, sizeof said, all, patience, &lost);
    if (mine != GRAFT_OK) st = mine; /* its own error is nearer */
    else if (st != GRAFT_OK && err) *err = lost;
    for (int i = 0; i < c->size && !c->failed[0]; i++) c->told = c->told || all[i].status != GRAFT_OK;
    for (int i = 0; i < c->size && st == GRAFT_OK; i++) {
        if (any && all[i].flag) *any = true;
        if (all[i].status == GRAFT_OK) continue;
        all[i].error.msg[sizeof all[i].error.msg - 1] = '\0';
        st = gr_fail(err, (graft_status)all[i].status, "rank %d (%s): %s", i, c->places[i].host, all[i].error.msg);
    }
    free(all);
    return st;
}

graft_status gr_comm_agree(gr_comm *c, const char *what, graft_status mine, bool *any, graft_error *err) {
    return agree(c, what, mine, any, c ? c->deadline : 0, err);
}

graft_status gr_comm_await(gr_comm *c, const char *what, graft_status mine, graft_error *err) {
    return agree(c, what, mine, NULL, -1, err);
}

void gr_comm_leave(gr_comm *c, graft_status mine, const graft_error *err) {
    graft_error copy = err ? *err : (graft_error){0};
    if (mine != GRAFT_OK) (void)gr_comm_agree(c, "leaving", mine, NULL, &copy);
}

static int speaker(const gr_comm *c) { return c->lost == 0 ? 1 : 0; }

bool gr_comm_speaks(const gr_comm *c) { return !c || c->rank == speaker(c); }

/* ---- opening ---- */

/* Was this process started as one of several? mpirun (Open MPI, MPICH) and srun say so in the environment; srun of one task, a
 * batch script and a shell in an allocation have no rank, or a step of one. */
static bool started_together(void) {
    static const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS"};
    static const char *const ranks[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "MPI_LOCALRANKID", "SLURM_PROCID"};
    for (int i = 0; i < GR_LEN(sizes); i++) {
        const char *size = getenv(sizes[i]);
        if (size && getenv(ranks[i]) && atoi(size) > 1) return true;
    }
    return false;
}

static graft_status find_places(gr_comm *c, graft_error *err) {
    place mine = {.pid = getpid()};
    c->places[c->rank].pid = mine.pid;
    if (gethostname(mine.host, sizeof mine.host - 1) != 0) snprintf(mine.host, sizeof mine.host, "unknown host");
    if (sched_getaffinity(0, sizeof mine.processors, &mine.processors) != 0) CPU_ZERO(&mine.processors);
    graft_status st = gr_comm_gather(c, "opening", &mine, sizeof mine, c->places, err);
    if (st != GRAFT_OK) return st;
    for (int i = 0; i < c->size; i++) {
        c->places[i].host[HOST_BYTES - 1] = '\0';
        if (!is_here(c, i)) continue;
        c->host_size++;
        if (i < c->rank) c->host_rank++;
    }
    return GRAFT_OK;
}

graft_status gr_comm_open(gr_comm **out, double deadline, graft_error *err) {
    graft_status st;
    gr_comm *c = NULL;
    char why[512] = "";
    *out = NULL;
    if (!started_together()) return GRAFT_OK;
    void *library = gr_plugin_load("libgraft_mpi.so", "GRAFT_MPI_LIB");
    gr_transport_open_fn *start = library ? (gr_transport_open_fn *)(uintptr_t)dlsym(library, "gr_transport_open") : NULL;
    if (!start) {
        const char *wrong = dlerror();
        return gr_fail(err, GRAFT_BAD_USAGE, "this was started as one of several ranks, for which libgraft_mpi.so is needed: %s",
                       wrong ? wrong : "it is not graft's");
    }
    if (!(c = gr_calloc(1, sizeof *c))) return gr_fail_memory(err, "ranks");
    if (!(c->transport = start(GR_TRANSPORT_ABI, why, sizeof why)))
        GR_TRY(gr_fail(err, GRAFT_FAILED, "this was started as one of several ranks: %s", why));
    c->rank = c->transport->rank, c->size = c->transport->size;
    c->deadline = deadline > 0 ? deadline : DEADLINE;
    c->step = c->lost = -1;
    c->places = gr_calloc(c->size, sizeof *c->places);
    c->waits = gr_calloc(c->size, sizeof *c->waits);
    c->out = gr_calloc(c->size, sizeof *c->out), c->in = gr_calloc(c->size, sizeof *c->in);
    if (!c->places || !c->waits || !c->out || !c->in) GR_TRY(gr_fail_memory(err, "ranks"));
    GR_TRY(find_places(c, err));
    *out = c;
    c = NULL;
done:
    gr_comm_close(c);
    return st;
}

/* After a failure, for SPEAKING at most. */
static void wait_for_speaker(const gr_comm *c) {
    const double until = gr_now() + SPEAKING;
    while (gr_now() < until && !(is_here(c, speaker(c)) && is_gone(c, speaker(c))))
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

void gr_comm_close(gr_comm *c) {
    if (!c) return;
    if (c->transport && !c->failed[0]) c->transport->close();
    if (c->places && (c->failed[0] || c->told) && !gr_comm_speaks(c)) wait_for_speaker(c);
    free(c->places);
    free(c->waits);
    free(c->out);
    free(c->in);
    free(c);
}
