/* checkpoint.h - what a run needs to go on exactly where it was: output_dir/checkpoint-<step>/state.h5 (HDF5, sealed by a
 * checksum). Randomness and data order are functions of seed and position, so that the state is short.
 *
 * Of ranks that keep shares of what is trained, each writes a file of its own, state-<rank>-of-<ranks>.h5 (parts.h); state.h5 holds
 * what is the run's, and the seal of each of them. Any number of ranks reads the files of any other. */
#ifndef GR_CHECKPOINT_H
#define GR_CHECKPOINT_H

#include "adapters/adapter.h"
#include "core/dist/comm.h"

/* Where a run is. Everything here is saved. */
typedef struct gr_train_state {
    int64_t step;           /* optimizer steps done */
    int64_t epoch, cursor;  /* epoch from 0; samples of it that are done */
    int64_t optimizer_step; /* updates made (skipped steps make none) */
    double loss_scale;      /* see gr_step_stats, as the next */
    int64_t good_steps;
    int64_t num_tokens, num_target_tokens;
    int64_t skipped_in_a_row;
    double best_eval_loss; /* NaN: not evaluated yet */
    int64_t best_step, evals_since_best;
    int64_t evaluated_step; /* the last one that was evaluated, 0: none */
    double final_loss;      /* of the last step */
    double window_loss;     /* sum of nll, targets and seconds of the logged window so far */
    int64_t window_targets, window_tokens;
    double window_grad_norm;
} gr_train_state;

/* What was planned by the memory there was: how sums of gradients are split into micro-batches, and what backward computes again,
 * which changes no bit. */
typedef struct gr_train_split {
    int64_t micro_batch_tokens;     /* rows that a micro-batch of several samples has at most */
    int64_t gradient_checkpointing; /* a gr_recompute */
} gr_train_split;

/* What a run is, so that it is known whether another one may go on from its checkpoint. */
typedef struct gr_train_identity {
    int64_t data_key, total_steps, batch_size, seed;
    int64_t compute_dtype; /* gr_dtype of the products; -1: not recorded */
    gr_train_split split;  /* zeroed: not recorded */
    const char *recipe;    /* resolved, as gr_recipe_print gives it; borrowed */
} gr_train_identity;

/* Write checkpoint-<step> atomically; an existing one of the same step is replaced. adapter: p's own, written beside the state as a
 * PEFT adapter, so that a checkpoint is one; NULL: every weight is trained. All ranks (comm; NULL: this one alone) come here, and
 * all return alike: rank 0 writes, and where p is sharded each of them its parts. */
graft_status gr_checkpoint_save(const char *output_dir, const gr_adapter *adapter, const gr_params *p, const gr_train_state *s,
                                const gr_train_identity *id, gr_comm *comm, graft_error *err);
/* Whether a run may go on from what was saved, before its tensors are read. */
typedef graft_status gr_checkpoint_check(const void *context, const char *folder, const gr_train_identity *saved,
                                         const gr_train_state *state, graft_error *err);
/* One that was found whole. */
typedef struct gr_checkpoint {
    char *folder, *path; /* path: of its state.h5 */
    struct gr_h5 *h5;
    struct gr_h5 **parts; /* [n_parts] of the ranks that wrote it, where each has a file */
    int64_t n_parts;
} gr_checkpoint;

graft_status gr_checkpoint_open(gr_checkpoint *c, const char *folder, graft_error *err);
/* The newest intact one in output_dir (zeroed when there is none at all). *c: zeroed, or one that was opened so before, which stays
 * open where it is still the newest: its bytes are summed up once. Damaged ones are passed over, with a warning unless quiet;
 * BAD_INPUT when all are damaged. */
graft_status gr_checkpoint_open_last(gr_checkpoint *c, const char *output_dir, bool quiet, graft_error *err);
void gr_checkpoint_close(gr_checkpoint *c); /* a zeroed one is fine, and one is left */
/* What the run is whose checkpoint it is; recipe: owned by the caller, saved->recipe is that. */
graft_status gr_checkpoint_identity(const gr_checkpoint *c, gr_train_identity *saved, char **recipe, graft_error *err);
/* Read a checkpoint into allocated parameters of the same names and shapes. s may be NULL (values only; then the optimizer's
 * moments are left alone), and so may check. */
graft_status gr_checkpoint_read(const gr_checkpoint *c, gr_params *p, gr_train_state *s, gr_checkpoint_check *check,
                                const void *context, graft_error *err);
/* Both. */
graft_status gr_checkpoint_load(const char *folder, gr_params *p, gr_train_state *s, gr_checkpoint_check *check,
                                const void *context, graft_error *err);
/* True when output_dir holds a checkpoint, whole or damaged. */
bool gr_checkpoint_any(const char *output_dir);
char *gr_checkpoint_folder(const char *output_dir, int64_t step);
/* Remove all but the newest `keep` checkpoints; that of best_step (-1: none) stays. */
void gr_checkpoint_prune(const char *output_dir, int64_t keep, int64_t best_step);

#endif
