/* transport.h - what libgraft_mpi.so shows of MPI, and all that is asked of it: bytes between processes that were started together.
 * Private to core/dist. */
#ifndef GR_TRANSPORT_H
#define GR_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/dist/comm.h"

/* Of one version of graft on both sides. */
#define GR_TRANSPORT_ABI "graft-mpi-2"

/* Bytes of a note at most. */
enum { GR_NOTE_BYTES = 2048 };

typedef struct gr_transport {
    int rank, size;
    /* Begins to move the pieces that are not this rank's own; false and *why (valid until the next call) when it cannot. One at a
     * time. The memory is the transport's until it is done. */
    bool (*begin)(const gr_piece *out, const gr_piece *in, const char **why);
    /* 1: all moved; 0: not yet; -1: failed, with *why. waits[size] is set where a rank has not given all of its piece, or taken all
     * of ours. */
    int (*test)(unsigned char *waits, const char **why);
    /* Gives up what is under way; the memory is the caller's again. What cannot be called back any more (bytes may come when MPI
     * is called) ends all calls: it is false, and nothing is sent or received from then on. */
    bool (*abandon)(void);
    /* A note for a rank that may not be waiting for one, [bytes] of data copied: it goes at once. */
    void (*send)(int rank, const void *data, int64_t bytes);
    /* The next note that has come, to data[GR_NOTE_BYTES]: whose it is, -1: there is none. */
    int (*receive)(void *data);
    /* Leaves MPI in good order: all ranks come here. After a failure nobody calls it. */
    void (*close)(void);
} gr_transport;

/* Starts MPI; NULL and why[size] when it cannot. */
typedef const gr_transport *gr_transport_open_fn(const char *abi, char *why, size_t size);
gr_transport_open_fn gr_transport_open;

#endif
