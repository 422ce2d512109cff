/* sample.h - choosing the next token from logits. */
#ifndef GR_SAMPLE_H
#define GR_SAMPLE_H

#include "core/model/generate.h"

/* The next id from logits[V] (changed in place): repetition penalty over seen[n_seen], then greedy at temperature 0, else
 * temperature, top-k, top-p in HF's order. random: uniform in [0,1). scratch[V]: indices. -1 when no logit is finite. */
int32_t gr_sample(float *logits, int64_t V, const int32_t *seen, int64_t n_seen, const gr_generate_options *o, float random,
                  int32_t *scratch);

/* Whether gr_sample_listed can choose by these options at all, from listings of gr_sample_temperature. */
bool gr_sample_lists(const gr_generate_options *o);
float gr_sample_temperature(const gr_generate_options *o);

/* The same from what a device lists of the row (list_columns of kernels/ops.def; changed in place): the id that gr_sample would
 * give, or GR_SAMPLE_UNDECIDED where that depends on what the listing leaves open. */
enum { GR_SAMPLE_UNDECIDED = -2 };
int32_t gr_sample_listed(gr_listing *l, int64_t V, const int32_t *seen, int64_t n_seen, const gr_generate_options *o, float random,
                         int32_t *scratch);

#endif
