/* maker.h - small made tasks: school-math word problems in the spirit of BELLE's school_math set. */
#ifndef GR_MAKER_H
#define GR_MAKER_H

#include "core/base/base.h"

typedef struct gr_school_math_options {
    int64_t n;
    uint64_t seed;
    const char *language;     /* "en", "zh" or "both" */
    int min_steps, max_steps; /* 1..3 */
} gr_school_math_options;

/* n JSONL lines {"instruction","input","output"} to out; deterministic by seed; output: worked solution ending in "#### n".
 * No problem occurs twice in one call as far as the task allows. */
graft_status gr_make_school_math(const gr_school_math_options *o, FILE *out, graft_error *err);

#endif
