/* plan_memory.h - what a run would take if ...: for those who choose. Private to the plan. */
#ifndef GR_PLAN_MEMORY_H
#define GR_PLAN_MEMORY_H

#include "peft/plan.h"

/* What may change to save memory, beside what the run says (plan, sharding). */
typedef struct gr_plan_what_if {
    gr_model_forms forms;
    double rank;       /* of the recipe's, as a factor */
    double length;     /* of the longest sample, likewise */
    int64_t eval_rows; /* tokens evaluated at once at most, 0: as the recipe says */
} gr_plan_what_if;

gr_plan_what_if gr_plan_as_it_is(const gr_run *run);
/* Of several ranks, what the one takes that has most. */
gr_memory gr_plan_memory_of(const gr_run *run, const gr_plan_what_if *w);
int64_t gr_plan_evaluation_bytes(const gr_run *run, int64_t at_once);

/* Rows of the largest micro-batch that a rank of this run will meet, and the most targets of one: its order is known, and who gets
 * which samples of a step. */
graft_status gr_plan_largest(const gr_run *run, int64_t longest, int64_t *rows, int64_t *targets, graft_error *err);

/* Does the device have memory of its own? */
bool gr_plan_on_card(const gr_run *run);
/* Are there quantised weights that a card may keep as they are? */
bool gr_plan_may_expand(const gr_run *run);
/* Tokens stay on disk until they are wanted. */
bool gr_plan_streams(const gr_recipe *r);

#endif
