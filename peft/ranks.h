/* ranks.h - what the ranks of a run do together: who takes which samples of a step, and sums over all of them. With one rank
 * (comm NULL) nothing is dealt or added: a run of one process is what it always was. Private to peft/. */
#ifndef GR_RANKS_H
#define GR_RANKS_H

#include "core/data/dataset.h"
#include "core/dist/comm.h"
#include "core/model/params.h"

/* Samples of a step by rank. Memory grows as needed; a zeroed one is empty. */
typedef struct gr_deal {
    int64_t *samples; /* [n] those of rank 0, of rank 1, ...; each rank's in the order of the step */
    int64_t *first;   /* [size + 1] where each rank's begin */
    int64_t *order;   /* [n] internal, as the next: by length */
    int32_t *rank;    /* [n] of each sample of the step */
    int64_t capacity;
} gr_deal;

/* Deals samples idx[0..n) of d by their lengths alone: the longest first, each to the rank that has the fewest tokens so far, the
 * lowest of equals (Graham's longest processing time first, SIAM J. Appl. Math. 17(2), 1969); then the fullest rank exchanges
 * samples with others as long as that leaves it less. With one rank the order stays. */
graft_status gr_deal_samples(gr_deal *deal, const gr_dataset *d, const int64_t *idx, int64_t n, int size, graft_error *err);
void gr_deal_release(gr_deal *deal);

/* Whether devices of all ranks can move bytes between their memories, and if so connects them (gr_device.joined); which way bytes
 * take is told. Once, by all ranks, when their devices are open; *bytes: what that takes of the device's memory. */
graft_status gr_ranks_join(gr_comm *comm, gr_device *device, int64_t *bytes, graft_error *err);

/* After a failure, before memory is given back: exchanges that are under way, to which others may never come, end. device may be
 * NULL. */
void gr_ranks_leave(gr_device *device);

/* Exchanges of a device's memory; a zeroed one is empty. */
typedef struct gr_mover {
    gr_device *device;
    gr_comm *comm;
    char *staging;      /* where the host moves the bytes of another memory */
    gr_piece *out, *in; /* [size] in device memory: what goes to and comes from each rank, to be filled in before each */
    int64_t sent;       /* bytes that this rank gave to others */
} gr_mover;

/* most: bytes that come and go in one exchange at most, what is the same for all counted once. */
graft_status gr_mover_init(gr_mover *m, gr_comm *comm, gr_device *device, int64_t most, graft_error *err);
/* Each rank's m->out[i] becomes rank i's m->in[rank], after the work that the device's compute queue was given so far. What reads
 * `in` or writes over `out` waits for *done (gr_device.wait; 0: it is done). Beside the compute queue where the device does it by
 * itself; the host does not wait then. */
graft_status gr_mover_begin(gr_mover *m, const char *what, gr_mark *done, graft_error *err);
/* The same; what the compute queue is given from now on comes after it. */
graft_status gr_mover_exchange(gr_mover *m, const char *what, graft_error *err);
void gr_mover_release(gr_mover *m);
/* All ranks: tells what they have sent each other in so many steps, of which this one sent so many bytes. */
graft_status gr_ranks_tell(gr_comm *comm, int64_t steps, int64_t sent, graft_error *err);

/* Memory for sums; a zeroed one is empty. */
typedef struct gr_reducer {
    gr_mover move;
    float *parts;     /* device memory: this rank's share of each rank's gradient */
    int64_t n, share; /* floats of the whole; of a rank's share of it, a multiple of 16 */
} gr_reducer;

/* Bytes of the device's memory for sums over n floats of so many ranks; 0: of one. */
int64_t gr_reducer_bytes(int size, int64_t n);
/* For sums over n floats of the device's memory; does nothing with one rank. */
graft_status gr_reducer_init(gr_reducer *r, gr_comm *comm, gr_device *device, int64_t n, graft_error *err);
/* x[n] of the device becomes the sum over all ranks, added in their order: each rank adds up its share of all and gives it to the
 * others. All ranks have the same bits then. */
graft_status gr_reducer_sum(gr_reducer *r, const char *what, float *x, graft_error *err);
void gr_reducer_release(gr_reducer *r);

#endif
