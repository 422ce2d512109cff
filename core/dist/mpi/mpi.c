/* mpi.c - libgraft_mpi.so: bytes between ranks by MPI's sends and receives, polled, so that whoever waits can look at the clock.
 * MPI's own collectives are not used: they wait without end for a rank that is gone. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/dist/transport.h"

/* MPI counts in int: longer pieces go in parts. */
#define PART_BYTES ((int64_t)1 << 30)
enum { TAG = 7, TAG_NOTE = 8, CALLS_BACK = 100 };

/* A note on its way. */
typedef struct note {
    struct note *next;
    MPI_Request request;
    char data[GR_NOTE_BYTES];
} note;

static struct {
    gr_transport shown;
    MPI_Comm comm;
    MPI_Request *request; /* [n] under way */
    MPI_Status *status;   /* [n], not looked at: gcc warns of MPICH's constant for none */
    int *peer;            /* [n] of each */
    int n, capacity;
    note *notes;
    bool ended; /* MPI is not called any more */
    char said[MPI_MAX_ERROR_STRING + 16];
} state;

static const char *text_of(int code) {
    int n = 0;
    char text[MPI_MAX_ERROR_STRING];
    if (MPI_Error_string(code, text, &n) != MPI_SUCCESS) n = 0;
    snprintf(state.said, sizeof state.said, "MPI: %.*s", n, text);
    return state.said;
}

/* Room for more requests; false when out of memory. */
static bool reserve(int64_t more) {
    if (state.n + more <= state.capacity) return true;
    if (state.n + more > 1 << 20) return false;
    int capacity = (int)(2 * (state.n + more));
    MPI_Request *request = realloc(state.request, (size_t)capacity * sizeof *request);
    if (request) state.request = request;
    MPI_Status *status = realloc(state.status, (size_t)capacity * sizeof *status);
    if (status) state.status = status;
    int *peer = realloc(state.peer, (size_t)capacity * sizeof *peer);
    if (peer) state.peer = peer;
    if (!request || !status || !peer) return false;
    state.capacity = capacity;
    return true;
}

/* One piece with one rank, sent or received. */
static int start(gr_piece piece, int peer, bool sends) {
    int code = MPI_SUCCESS;
    for (int64_t at = 0; at < piece.bytes && code == MPI_SUCCESS; at += PART_BYTES) {
        int n = (int)(piece.bytes - at < PART_BYTES ? piece.bytes - at : PART_BYTES);
        char *data = (char *)piece.data + at;
        state.peer[state.n] = peer;
        MPI_Request *r = &state.request[state.n];
        code =
            sends ? MPI_Isend(data, n, MPI_BYTE, peer, TAG, state.comm, r) : MPI_Irecv(data, n, MPI_BYTE, peer, TAG, state.comm, r);
        if (code == MPI_SUCCESS) state.n++;
    }
    return code;
}

/* Receives first. Everyone begins with the rank behind itself, so that not all send to the same one at once. */
static bool begin(const gr_piece *out, const gr_piece *in, const char **why) {
    const int size = state.shown.size, rank = state.shown.rank;
    int code = MPI_SUCCESS;
    state.n = 0;
    for (int sends = 0; sends < 2; sends++)
        for (int k = 1; k < size && code == MPI_SUCCESS; k++) {
            int peer = sends ? (rank + k) % size : (rank + size - k) % size;
            gr_piece piece = sends ? out[peer] : in[peer];
            if (!reserve(piece.bytes / PART_BYTES + 1)) {
                *why = "out of memory";
                return false;
            }
            code = start(piece, peer, sends);
        }
    if (code == MPI_SUCCESS) return true;
    *why = text_of(code);
    return false;
}

static int test(unsigned char *waits, const char **why) {
    int all = 1, code = MPI_Testall(state.n, state.request, &all, state.status);
    if (code != MPI_SUCCESS) {
        *why = text_of(code);
        return -1;
    }
    memset(waits, 0, (size_t)state.shown.size);
    for (int i = 0; i < state.n && !all; i++) {
        int done = 1;
        if (state.request[i] != MPI_REQUEST_NULL) (void)MPI_Request_get_status(state.request[i], &done, MPI_STATUS_IGNORE);
        if (!done) waits[state.peer[i]] = 1;
    }
    return all ? 1 : 0;
}

static bool abandon(void) {
    int all = 0;
    for (int i = 0; i < state.n && !state.ended; i++)
        if (state.request[i] != MPI_REQUEST_NULL) (void)MPI_Cancel(&state.request[i]);
    for (int k = 0; k < CALLS_BACK && !all && !state.ended; k++) {
        if (MPI_Testall(state.n, state.request, &all, state.status) != MPI_SUCCESS) break;
        if (!all) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    state.ended = state.ended || !all;
    state.n = 0;
    return !state.ended;
}

/* ---- notes ---- */

/* Forgets those that are gone. */
static void sweep(void) {
    for (note **at = &state.notes; *at;) {
        note *one = *at;
        int done = 0;
        if (MPI_Test(&one->request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || !done) {
            at = &one->next;
            continue;
        }
        *at = one->next;
        free(one);
    }
}

static void send_note(int rank, const void *data, int64_t bytes) {
    if (state.ended) return;
    sweep();
    note *one = calloc(1, sizeof *one);
    if (!one) return;
    memcpy(one->data, data, (size_t)bytes);
    if (MPI_Isend(one->data, (int)bytes, MPI_BYTE, rank, TAG_NOTE, state.comm, &one->request) != MPI_SUCCESS) {
        free(one);
        return;
    }
    one->next = state.notes;
    state.notes = one;
}

static int receive_note(void *data) {
    MPI_Status from;
    int there = 0;
    if (state.ended) return -1;
    for (int k = 0; k < 2 && !there; k++) /* it looks first and brings in what has come then: the second look sees that */
        if (MPI_Iprobe(MPI_ANY_SOURCE, TAG_NOTE, state.comm, &there, &from) != MPI_SUCCESS) return -1;
    if (!there) return -1;
    if (MPI_Recv(data, GR_NOTE_BYTES, MPI_BYTE, from.MPI_SOURCE, TAG_NOTE, state.comm, &from) != MPI_SUCCESS) return -1;
    return from.MPI_SOURCE;
}

static void leave(void) {
    char unread[GR_NOTE_BYTES];
    while (receive_note(unread) >= 0) continue;
    sweep();
    free(state.request);
    free(state.status);
    free(state.peer);
    (void)MPI_Comm_free(&state.comm);
    (void)MPI_Finalize();
}

__attribute__((visibility("default"))) const gr_transport *gr_transport_open(const char *abi, char *why, size_t size) {
    int had = 0, given = 0, code;
    if (strcmp(abi, GR_TRANSPORT_ABI) != 0) {
        snprintf(why, size, "libgraft_mpi.so is of another version of graft: install both together");
        return NULL;
    }
    (void)MPI_Initialized(&had);
    if (had) {
        snprintf(why, size, "MPI was started by something else in this process");
        return NULL;
    }
#ifdef OPEN_MPI /* which would end the process; MPICH may know Slurm by its library */
    if (getenv("SLURM_PROCID") && !getenv("OMPI_COMM_WORLD_RANK") && !getenv("PMI_RANK") && !getenv("PMIX_RANK")) {
        snprintf(why, size,
                 "srun has started them so that they cannot find each other: use srun --mpi=pmix, or mpirun within the "
                 "allocation");
        return NULL;
    }
#endif
    code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &given);
    if (code == MPI_SUCCESS) code = MPI_Comm_dup(MPI_COMM_WORLD, &state.comm);
    if (code == MPI_SUCCESS) code = MPI_Comm_set_errhandler(state.comm, MPI_ERRORS_RETURN);
    if (code == MPI_SUCCESS) code = MPI_Comm_rank(state.comm, &state.shown.rank);
    if (code == MPI_SUCCESS) code = MPI_Comm_size(state.comm, &state.shown.size);
    if (code != MPI_SUCCESS) {
        snprintf(why, size, "%s", text_of(code));
        return NULL;
    }
    state.shown.begin = begin, state.shown.test = test, state.shown.close = leave;
    state.shown.abandon = abandon, state.shown.send = send_note, state.shown.receive = receive_note;
    return &state.shown;
}
