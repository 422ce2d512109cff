#include "core/dist/comm.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core/dist/transport.h"
#include "kernels/plugin.h"

enum { DEADLINE = 300, HOST_BYTES = 64 };
#define SPEAKING    5.0 /* seconds that a message takes at most */
#define LOOK_AROUND 0.2 /* seconds after which the processes of this host are looked for again, and notes read */
#define SAY_AFTER   1.0 /* seconds after which a rank that waits says so */
#define TELLING     3   /* seconds in which mpirun has ended the others, when a rank has left with a failure */
#define WORD_NAME   "graft-ranks"
#define LAST_WORD   0.5 /* seconds in which what a rank has said before it left is still listened for */

/* Where a rank lives. */
typedef struct place {
    char host[HOST_BYTES];
    int64_t pid;
    int32_t word, unused; /* a file of its memory, open in it */
    cpu_set_t processors; /* that it may use */
} place;

/* Whether a process of this host works. */
typedef struct still {
    int64_t ticks; /* of its processor time, when they were last looked at */
    double since;  /* they are the same */
} still;

/* What a rank tells the others beside exchanges. */
typedef enum note_kind { NOTE_WAITS, NOTE_FAILED } note_kind;
typedef struct note {
    int32_t kind, status, lost, unused;
    int64_t exchange; /* in which it waits */
    char text[1024];  /* how it failed, with the name of whoever did */
} note;
_Static_assert(sizeof(note) <= GR_NOTE_BYTES, "a note");

struct gr_comm {
    const gr_transport *transport;
    int rank, size, host_rank, host_size;
    double deadline;
    place *places; /* [size] */
    int *claimed;  /* shared by the ranks of a host: 1 + the rank that speaks for them, 0: none yet; NULL: there is no such word */
    int word;      /* its file, -1 */
    unsigned char *waits; /* [size] */
    still *stills;        /* [size] */
    int64_t *heard;       /* [size] the last exchange in which a rank said that it waits, 0: none */
    gr_piece *out, *in;   /* [size] of what is gathered or broadcast */
    int64_t step, sent, exchanges;
    const char *beside;  /* what the devices exchange */
    int64_t said_beside; /* the exchange of devices of which this rank has said that it waits in it */
    double watched;      /* when a device that is waited for was asked about the last time */
    double stood;        /* seconds of that wait in which this process stood still itself */
    double broken;       /* since when a device knows that its exchange is in vain, 0: not */
    int lost;            /* the rank that was, -1: none */
    bool told;           /* all know that the run has failed, and why */
    bool heeded;         /* the speaker has told this rank that it knows */
    bool deaf;           /* no note comes any more */
    bool alone;          /* no rank will speak: this one must */
    graft_status status; /* of what failed */
    char failed[1024];   /* how; empty: it did not */
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

static graft_status failed(const gr_comm *c, graft_error *err) { return gr_fail(err, c->status, "%s", c->failed); }

static bool is_here(const gr_comm *c, int rank) { return strcmp(c->places[rank].host, c->places[c->rank].host) == 0; }

/* Of a rank of this host. */
static bool is_gone(const gr_comm *c, int rank) { return kill((pid_t)c->places[rank].pid, 0) != 0 && errno == ESRCH; }

/* Also one that was lost, which may stand still and go on one day. */
static void tell_all(gr_comm *c, const note *n) {
    for (int i = 0; i < c->size; i++)
        if (i != c->rank && !(is_here(c, i) && is_gone(c, i))) c->transport->send(i, n, (int64_t)sizeof *n);
}

static void tell_failure(gr_comm *c) {
    note n = {.kind = NOTE_FAILED, .status = (int32_t)c->status, .lost = c->lost};
    snprintf(n.text, sizeof n.text, "%s", c->failed);
    tell_all(c, &n);
}

/* In the middle of an exchange: the others are told, and what is under way is given up. */
static graft_status give_up(gr_comm *c, graft_status st, graft_error *err) {
    c->status = st;
    tell_failure(c);
    c->deaf = !c->transport->abandon();
    return failed(c, err);
}

static int speaker(const gr_comm *c) { return c->lost == 0 ? 1 : 0; }

/* Reads the notes that have come; false: one of them says that a rank has failed. */
static bool listen(gr_comm *c) {
    char data[GR_NOTE_BYTES];
    const note *n = (const note *)(const void *)data;
    for (int from; (from = c->transport->receive(data)) >= 0;) {
        if (n->kind == NOTE_WAITS) c->heard[from] = n->exchange;
        else if (!c->failed[0]) {
            c->lost = n->lost, c->status = (graft_status)n->status;
            snprintf(c->failed, sizeof c->failed, "%.*s", (int)sizeof n->text - 1, n->text);
        }
        if (n->kind == NOTE_FAILED && from == speaker(c)) c->heeded = true;
    }
    return !c->failed[0];
}

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
    return give_up(c, GRAFT_FAILED, err);
}

/* A rank of this host that is waited for and whose process is gone; -1: none. */
static int find_dead(const gr_comm *c) {
    for (int i = 0; i < c->size; i++)
        if (c->waits[i] && c->places[i].pid > 0 && is_here(c, i) && is_gone(c, i)) return i;
    return -1;
}

/* Processor time of a process of this host, in ticks, and whether it is stopped; -1: not known. */
static int64_t ticks_of(int64_t pid, bool *stopped) {
    char path[64], text[1024], *at, state = ' ';
    long long user = 0, system = 0;
    *stopped = false;
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    FILE *f = fopen(path, "re");
    if (!f) return -1;
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    at = strrchr(text, ')'); /* behind the name, fields 3 and on: the 14th and 15th are wanted too */
    if (!at || sscanf(at + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lld %lld", &state, &user, &system) != 3) return -1;
    *stopped = state == 'T' || state == 't';
    return user + system;
}

/* A rank of this host that is waited for and has not worked for the deadline; -1: none. */
static int find_still(gr_comm *c, double began, double now) {
    for (int i = 0; i < c->size; i++) {
        still *s = &c->stills[i];
        if (!c->waits[i] || i == c->rank || !is_here(c, i)) continue;
        bool stopped;
        const int64_t ticks = ticks_of(c->places[i].pid, &stopped);
        if (ticks < 0 || ticks != s->ticks || s->since < began) *s = (still){ticks, now};
        else if (now - s->since > c->deadline) return i;
    }
    return -1;
}

/* Of the ranks that are waited for, one that stands still on this host, else the one that has said the least: others wait
 * themselves. */
static int find_silent(const gr_comm *c) {
    int silent = -1;
    for (int i = 0; i < c->size; i++) {
        bool stopped = false;
        if (!c->waits[i] || i == c->rank) continue;
        if (is_here(c, i)) (void)ticks_of(c->places[i].pid, &stopped);
        if (stopped) return i;
        if (silent < 0 || c->heard[i] < c->heard[silent]) silent = i;
    }
    return silent < 0 ? (c->rank + 1) % c->size : silent;
}

/* A look at the others while they are waited for. patience: seconds, < 0: as long as their processes are there and work. */
static graft_status look_around(gr_comm *c, const char *what, double began, double patience, graft_error *err) {
    const double now = gr_now();
    char how[64];
    int lost;
    if (!listen(c)) return give_up(c, c->status, err);
    if ((lost = find_dead(c)) >= 0) {
        if (!listen(c)) return give_up(c, c->status, err); /* its last word */
        return lose(c, lost, what, "is gone", err);
    }
    if (patience >= 0 && now - began > patience) {
        snprintf(how, sizeof how, "was not heard of for %.0f s", patience);
        return lose(c, find_silent(c), what, how, err);
    }
    if (patience < 0 && (lost = find_still(c, began, now)) >= 0) {
        snprintf(how, sizeof how, "has done nothing for %.0f s", c->deadline);
        return lose(c, lost, what, how, err);
    }
    return GRAFT_OK;
}

static graft_status wait_for_all(gr_comm *c, const char *what, double patience, graft_error *err) {
    double began = gr_now(), before = began;
    const double say = began + GR_MIN(SAY_AFTER, c->deadline / 4);
    double look = began + GR_MIN(LOOK_AROUND, c->deadline / 4);
    long pause = 1000; /* ns; ranks may share processors, so that whoever waits must leave them */
    const char *why = "";
    bool said = false;
    int done;
    while ((done = c->transport->test(c->waits, &why)) == 0) {
        const double now = gr_now();
        if (now - before > SAY_AFTER) began += now - before; /* this one stood still itself */
        before = now;
        if (now > look) {
            graft_status st = look_around(c, what, began, patience, err);
            if (st != GRAFT_OK) return st;
            look = now + GR_MIN(LOOK_AROUND, c->deadline / 4);
        }
        if (!said && now > say) {
            tell_all(c, &(note){.kind = NOTE_WAITS, .exchange = c->exchanges});
            said = true;
        }
        nanosleep(&(struct timespec){.tv_nsec = pause}, NULL);
        if (pause < 500000) pause += pause / 2;
    }
    if (done > 0) return GRAFT_OK;
    snprintf(c->failed, sizeof c->failed, "rank %d, %s: %.300s", c->rank, what, why);
    return give_up(c, GRAFT_FAILED, err);
}

static graft_status exchange(gr_comm *c, const char *what, const gr_piece *out, const gr_piece *in, double patience,
                             graft_error *err) {
    const char *why = "";
    if (c->failed[0]) return failed(c, err);
    GR_ASSERT(out[c->rank].bytes == in[c->rank].bytes);
    c->exchanges++;
    if (!c->transport->begin(out, in, &why)) {
        snprintf(c->failed, sizeof c->failed, "rank %d, %s: %.300s", c->rank, what, why);
        return give_up(c, GRAFT_FAILED, err);
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

/* Names who failed and, in a step, in what; an interrupt is no fault of a rank. */
static void name_rank(const gr_comm *c, int rank, const char *what, graft_status st, graft_error *err) {
    char where[128], said[sizeof err->msg];
    if (!err || st == GRAFT_INTERRUPTED) return;
    say_where(c, what, where, sizeof where);
    memcpy(said, err->msg, sizeof said);
    if (c->step < 0) (void)gr_fail(err, st, "rank %d (%s): %s", rank, c->places[rank].host, said);
    else (void)gr_fail(err, st, "rank %d (%s), %s: %s", rank, c->places[rank].host, where, said);
}

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
    for (int i = 0; i < c->size && !c->failed[0]; i++) {
        const int32_t said_st = all[i].status; /* after an interrupt all of them may go on, to save */
        c->told = c->told || (said_st != GRAFT_OK && said_st != GRAFT_INTERRUPTED);
    }
    for (int i = 0; i < c->size && st == GRAFT_OK; i++) {
        if (any && all[i].flag) *any = true;
        if (all[i].status == GRAFT_OK) continue;
        all[i].error.msg[sizeof all[i].error.msg - 1] = '\0';
        st = gr_fail(err, (graft_status)all[i].status, "%s", all[i].error.msg);
        name_rank(c, i, what, st, err);
    }
    if (mine != GRAFT_OK && c->step >= 0) name_rank(c, c->rank, what, st, err);
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
    if (!c || mine == GRAFT_OK || c->told) return;
    if (!c->failed[0]) {
        c->status = mine;
        snprintf(c->failed, sizeof c->failed, "rank %d (%s): %.900s", c->rank, c->places[c->rank].host,
                 err ? err->msg : "it failed");
    }
    tell_failure(c); /* the speaker says so once more, so that the others know that it knows */
    if (c->rank == speaker(c)) return;
    const double until = gr_now() + GR_MAX(c->deadline, SPEAKING);
    double gone = INFINITY; /* when the speaker was seen to be */
    while (!c->heeded && !c->alone) {
        const double now = gr_now();
        if (isinf(gone) && is_here(c, speaker(c)) && is_gone(c, speaker(c))) gone = now;
        (void)listen(c);
        if (c->deaf && now > gone) break;
        c->alone = !c->heeded && (now > until || now > gone + LAST_WORD); /* one that has heard nothing cannot know */
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
}

/* ---- exchanges of devices ---- */

void gr_comm_beside(gr_comm *c, const char *what, int64_t bytes) {
    c->beside = what;
    c->sent += bytes;
    c->exchanges++;
}

graft_status gr_comm_status(const gr_comm *c, graft_error *err) { return c && c->failed[0] ? failed(c, err) : GRAFT_OK; }

/* The device knows that something is wrong, but not what: who has left may be found yet. */
static void watch_broken(gr_comm *c, double now) {
    char where[128];
    if (c->broken == 0) c->broken = now;
    if (now - c->broken < GR_MIN(SPEAKING, c->deadline) || look_around(c, c->beside, now, INFINITY, NULL) != GRAFT_OK) return;
    say_where(c, c->beside, where, sizeof where);
    snprintf(c->failed, sizeof c->failed, "rank %d: the exchange of devices is broken, in %s", c->rank, where);
    (void)give_up(c, GRAFT_FAILED, NULL);
}

bool gr_comm_watch(void *context, double waited, const char **why) {
    gr_comm *c = context;
    const double now = gr_now(), gap = now - c->watched, pause = GR_MIN(LOOK_AROUND, c->deadline / 4);
    *why = c->failed;
    if (c->failed[0]) return false;
    if (gap < pause) return true;
    if (waited < gap) c->stood = 0; /* another wait than the last time */
    else if (gap > SAY_AFTER && isfinite(waited)) c->stood += gap;
    c->watched = now;
    memset(c->waits, 1, (size_t)c->size);
    if (isinf(waited)) watch_broken(c, now), waited = 0;
    if (!c->failed[0]) (void)look_around(c, c->beside, now - waited + c->stood, c->deadline, NULL);
    if (!c->failed[0] && waited > GR_MIN(SAY_AFTER, c->deadline / 4) && c->said_beside != c->exchanges) {
        tell_all(c, &(note){.kind = NOTE_WAITS, .exchange = c->exchanges});
        c->said_beside = c->exchanges;
    }
    return !c->failed[0];
}

/* Is this rank the first of its host to ask? Again, it is told the same. Works also where no other rank does. */
static bool claim(const gr_comm *c) {
    int said = 0;
    if (!c->claimed) return true;
    (void)__atomic_compare_exchange_n(c->claimed, &said, c->rank + 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return said == 0 || said == c->rank + 1;
}

bool gr_comm_speaks(const gr_comm *c) { return !c || ((c->rank == speaker(c) || c->alone) && claim(c)); }

/* ---- opening ---- */

/* As mpirun (Open MPI, MPICH) and srun say in the environment; *all false: that is of this host alone. 1: by itself, as are srun of
 * one task, a batch script and a shell in an allocation, which have no rank, or a step of one. */
static int started_as_one_of(bool *all, int *rank) {
    static const struct {
        const char *size, *rank;
        bool all;
    } told[] = {{"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", true},
                {"PMI_SIZE", "PMI_RANK", true},
                {"MPI_LOCALNRANKS", "MPI_LOCALRANKID", false},
                {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID", true}};
    for (int i = 0; i < GR_LEN(told); i++) {
        const char *size = getenv(told[i].size);
        const char *mine = getenv(told[i].rank);
        *all = told[i].all;
        if (size && mine && atoi(size) > 1) return *rank = atoi(mine), atoi(size);
    }
    return *rank = 0, 1;
}

int gr_comm_started(int *rank) {
    bool all;
    return started_as_one_of(&all, rank);
}

void gr_comm_let_first_tell(void) {
    int rank;
    if (gr_comm_started(&rank) > 1 && rank > 0) sleep((unsigned)TELLING);
}

graft_status gr_comm_deadline(double *seconds, graft_error *err) {
    const char *text = getenv("GRAFT_RANK_DEADLINE");
    char *end = NULL;
    *seconds = DEADLINE;
    if (!text) return GRAFT_OK;
    const double value = strtod(text, &end);
    if (!isfinite(value) || value <= 0 || end == text || *end)
        return gr_fail(err, GRAFT_BAD_USAGE, "GRAFT_RANK_DEADLINE is \"%.40s\": expected a positive number of seconds", text);
    *seconds = value;
    return GRAFT_OK;
}

/* The word of the first rank of this host. Without it (a system that does not allow it) two ranks may tell of a failure. */
static void share_word(gr_comm *c) {
    char path[64], name[64] = "";
    int first = 0;
    while (!is_here(c, first)) first++;
    snprintf(path, sizeof path, "/proc/%lld/fd/%d", (long long)c->places[first].pid, (int)c->places[first].word);
    if (c->places[first].word < 0 || readlink(path, name, sizeof name - 1) < 0 || !strstr(name, WORD_NAME)) return;
    const int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    void *shared = mmap(NULL, sizeof *c->claimed, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (shared != MAP_FAILED) c->claimed = shared;
    close(file);
}

static graft_status find_places(gr_comm *c, graft_error *err) {
    c->word = memfd_create(WORD_NAME, MFD_CLOEXEC);
    if (c->word >= 0 && ftruncate(c->word, sizeof *c->claimed) != 0) c->word = (close(c->word), -1);
    place mine = {.pid = getpid(), .word = c->word};
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
    share_word(c);
    return GRAFT_OK;
}

graft_status gr_comm_open(gr_comm **out, double deadline, graft_error *err) {
    graft_status st;
    bool all;
    int rank;
    const int expected = started_as_one_of(&all, &rank);
    gr_comm *c = NULL;
    char why[512] = "";
    *out = NULL;
    if (expected == 1) return GRAFT_OK;
    void *library = gr_plugin_load("libgraft_mpi.so", "GRAFT_MPI_LIB");
    gr_transport_open_fn *start = library ? (gr_transport_open_fn *)(uintptr_t)dlsym(library, "gr_transport_open") : NULL;
    if (!start) {
        gr_comm_let_first_tell();
        return gr_fail(err, GRAFT_BAD_USAGE, "this was started as one of several ranks, for which libgraft_mpi.so is needed: %s",
                       library ? "what GRAFT_MPI_LIB names is not graft's" : gr_plugin_error());
    }
    if (!(c = gr_calloc(1, sizeof *c))) return gr_fail_memory(err, "ranks");
    if (!(c->transport = start(GR_TRANSPORT_ABI, why, sizeof why))) {
        gr_comm_let_first_tell();
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "this was started as one of %d ranks: %s", expected, why));
    }
    if (all ? c->transport->size != expected : c->transport->size < expected)
        GR_TRY(gr_fail(
            err, GRAFT_BAD_USAGE,
            "this was started as one of %d ranks, and the MPI of libgraft_mpi.so knows of %d: start it with the mpirun of that "
            "MPI, or with srun --mpi=pmix",
            expected, c->transport->size));
    c->rank = c->transport->rank, c->size = c->transport->size;
    c->deadline = deadline > 0 ? deadline : DEADLINE;
    c->step = c->lost = c->word = -1;
    c->beside = "an exchange";
    c->places = gr_calloc(c->size, sizeof *c->places);
    c->waits = gr_calloc(c->size, sizeof *c->waits);
    c->stills = gr_calloc(c->size, sizeof *c->stills);
    c->heard = gr_calloc(c->size, sizeof *c->heard);
    c->out = gr_calloc(c->size, sizeof *c->out), c->in = gr_calloc(c->size, sizeof *c->in);
    if (!c->places || !c->waits || !c->stills || !c->heard || !c->out || !c->in) GR_TRY(gr_fail_memory(err, "ranks"));
    GR_TRY(find_places(c, err));
    *out = c;
    c = NULL;
done:
    gr_comm_close(c);
    return st;
}

/* After a failure, for SPEAKING at most. */
static void wait_for_speaker(const gr_comm *c) {
    const double until = gr_now() + (c->rank == speaker(c) ? 0 : SPEAKING);
    while (gr_now() < until && !(is_here(c, speaker(c)) && is_gone(c, speaker(c))))
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

void gr_comm_close(gr_comm *c) {
    if (!c) return;
    if (c->transport && !c->failed[0]) c->transport->close();
    if (c->places && (c->failed[0] || c->told) && !gr_comm_speaks(c)) wait_for_speaker(c);
    if (c->claimed) munmap(c->claimed, sizeof *c->claimed);
    if (c->word >= 0) close(c->word);
    free(c->places);
    free(c->waits);
    free(c->stills);
    free(c->heard);
    free(c->out);
    free(c->in);
    free(c);
}
