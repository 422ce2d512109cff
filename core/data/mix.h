/* mix.h - sources by share of tokens (pretrain): which samples an epoch takes, in which order. */
#ifndef GR_MIX_H
#define GR_MIX_H

#include "core/data/dataset.h"

/* As gr_dataset_order, of a set with shares. */
graft_status gr_mix_order(const gr_dataset *d, uint64_t seed, int64_t epoch, bool shuffled, int64_t **order, int64_t *n,
                          graft_error *err);
/* Tokens of a whole block: a mix takes no others, which a source has at its end. */
int64_t gr_mix_block(const gr_dataset *d);

/* order.c: Fisher-Yates by (seed, stream). */
void gr_shuffle(int64_t *items, int64_t n, uint64_t seed, uint64_t stream);

#endif
