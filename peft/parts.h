/* parts.h - files of ranks in a checkpoint: state-<rank>-of-<ranks>.h5, sealed. A file holds what its rank keeps of each tensor,
 * in float32 and one dimension: /parameters/NAME, /adam_exp_avg/NAME, /adam_exp_avg_sq/NAME; and /first [tensors, 2]: the first
 * element of each part, and how many. Private to peft/. */
#ifndef GR_PARTS_H
#define GR_PARTS_H

#include "core/io/h5.h"
#include "core/model/params.h"

/* Its path (owned), NULL when out of memory. */
char *gr_parts_path(const char *folder, int64_t rank, int64_t ranks);
/* Write this rank's. */
graft_status gr_parts_write(const char *folder, const gr_params *p, gr_h5_seal *seal, graft_error *err);
/* Open those of all ranks, whose seals are known; files[ranks] is zeroed before, and closed by the caller. BAD_INPUT naming the one
 * that is missing, damaged or of another checkpoint. */
graft_status gr_parts_open(struct gr_h5 **files, const char *folder, const gr_h5_seal *seals, int64_t ranks, graft_error *err);
/* Read into allocated parameters, of this rank's parts what is sharded. states: the optimizer's too. */
graft_status gr_parts_read(struct gr_h5 *const *files, const char *folder, int64_t ranks, gr_params *p, bool states,
                           graft_error *err);

#endif
