/* mpi.c - libgraft_mpi.so: bytes between ranks by MPI's sends and receives, polled, so that whoever waits can look at the clock.
 * MPI's own collectives are not used: they wait without end for a rank that is gone. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/dist/transport.h"

/* MPI counts in int: longer pieces go in parts. */
#define PART_BYTES ((int64_t)1 << 30)
enum { TAG = 7 };

static struct {
    gr_transport shown;
    MPI_Comm comm;
    MPI_Request *request; /* [n] under way */
    int *peer;            /* [n] of each */
    int n, capacity;
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
    int *peer = realloc(state.peer, (size_t)capacity * sizeof *peer);
    if (peer) state.peer = peer;
    if (!request || !peer) return false;
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
    int all = 1, code = MPI_Testall(state.n, state.request, &all, MPI_STATUSES_IGNORE);
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

static void leave(void) {
    free(state.request);
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
    return &state.shown;
}
