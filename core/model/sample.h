/* sample.h - choosing the next token from logits. */
#ifndef GR_SAMPLE_H
#define GR_SAMPLE_H

#include "core/model/generate.h"

/* The next id from logits[V] (changed in place): repetition penalty over seen[n_seen], then greedy at temperature 0, else
 * temperature, top-k, top-p in HF's order. random: uniform in [0,1). scratch[V]: indices. -1 when no logit is finite. */
int32_t gr_sample(float *logits, int64_t V, const int32_t *seen, int64_t n_seen, const gr_generate_options *o, float random,
                  int32_t *scratch);

#endif
