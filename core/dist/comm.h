/* comm.h - the ranks of a run: processes that mpirun or srun has started together, one per device.
 *
 * One primitive moves bytes: an exchange, in which every rank has a piece for every other (MPI's alltoallv). What is a sum is made
 * of exchanged pieces by our own operation, in the order of the ranks: MPI and NCCL promise no order, so that runs would not
 * repeat. All ranks make the same calls in the same order.
 *
 * A rank that is not heard of within the deadline, or whose process is gone, is named by the others (rank, host, process,
 * operation); from then on every call fails with that message, and nothing is sent any more. */
#ifndef GR_COMM_H
#define GR_COMM_H

#include "core/base/base.h"
#include "kernels/kernels.h"

typedef struct gr_comm gr_comm;

/* Joins the ranks that this process was started with; NULL in *out: it was started alone. BAD_USAGE when it was not, but the
 * library that moves bytes between ranks (libgraft_mpi.so, or what GRAFT_MPI_LIB names) cannot be used: training every rank by
 * itself is never what was meant. deadline: seconds that a rank waits for another in an exchange; <= 0: 300. */
graft_status gr_comm_open(gr_comm **out, double deadline, graft_error *err);
/* How many ranks this process was started as one of, by the environment, and which of them; 1 and 0: it is alone. */
int gr_comm_started(int *rank);
/* Before a failure is told that all ranks meet before they have come together: the first tells it, the others wait for a while, in
 * which mpirun ends them. */
void gr_comm_let_first_tell(void);
/* What GRAFT_RANK_DEADLINE sets, 300 without it; BAD_USAGE: it is no positive number. */
graft_status gr_comm_deadline(double *seconds, graft_error *err);
/* Leaves; after a failure without a word to the others. mpirun ends all as soon as one has left with a failure: those that do not
 * tell of it (gr_comm_speaks) return when the one that does is gone. NULL is fine. */
void gr_comm_close(gr_comm *c);

/* 0 and 1 where c is NULL: all of a process that is alone. */
int gr_comm_rank(const gr_comm *c);
int gr_comm_size(const gr_comm *c);
/* The same among the ranks of this host: which of its devices is this rank's. */
int gr_comm_host_rank(const gr_comm *c);
int gr_comm_host_size(const gr_comm *c);
/* Threads for this rank: a share of the processors that it may use, where other ranks of this host may use the same. */
int gr_comm_threads(const gr_comm *c);
/* The step that messages of failures name; < 0: none. */
void gr_comm_at_step(gr_comm *c, int64_t step);
/* Bytes that this rank has sent to others so far, its device's exchanges included. */
int64_t gr_comm_sent(const gr_comm *c);

/* Each rank's out[i] becomes rank i's in[rank]; both [size] of host memory, pieces of a pair have the same number of bytes on both
 * sides. `what` names the operation. Returns when all of it is done. c is not NULL, here and below. */
graft_status gr_comm_exchange(gr_comm *c, const char *what, const gr_piece *out, const gr_piece *in, graft_error *err);
/* all[size * bytes] = every rank's mine[bytes], in the order of the ranks. */
graft_status gr_comm_gather(gr_comm *c, const char *what, const void *mine, int64_t bytes, void *all, graft_error *err);
/* data[bytes] of rank 0 becomes everyone's. */
graft_status gr_comm_broadcast(gr_comm *c, const char *what, void *data, int64_t bytes, graft_error *err);
/* No rank goes on before all have come here, and either all go on or none: where some come with a failure, the others fail with the
 * message of the first of them, which is named. err holds this rank's own. *any (may be NULL) becomes whether any rank came with it
 * set. With c NULL, mine is returned. */
graft_status gr_comm_agree(gr_comm *c, const char *what, graft_status mine, bool *any, graft_error *err);
/* The same after work of one rank that the others have waited for: however long that took, as long as its process is there and, on
 * this host, was busy within the deadline. */
graft_status gr_comm_await(gr_comm *c, const char *what, graft_status mine, graft_error *err);
/* Bytes go to others by the devices themselves (gr_device.exchange), in what `what` names, as one more exchange of all. */
void gr_comm_beside(gr_comm *c, const char *what, int64_t bytes);
/* A gr_watch.goes_on of the gr_comm c for the exchanges of devices: false once a rank is lost or fails. */
bool gr_comm_watch(void *c, double waited, const char **why);
/* Was a rank lost, or did one fail, as far as this one has heard? */
graft_status gr_comm_status(const gr_comm *c, graft_error *err);
/* Before this rank leaves with a status: what the others do not know yet, they are told, wherever they are: what they wait in next
 * fails with it. Returns when the rank that speaks knows it. */
void gr_comm_leave(gr_comm *c, graft_status mine, const graft_error *err);
/* Is it this rank that tells people what all of them know? Rank 0; when that one was lost, the next; or this one, where that one
 * does not hear it. Of a host it is one alone. */
bool gr_comm_speaks(const gr_comm *c);

#endif
