/* plan.h - what a run will take, before anything is read or allocated: steps, memory, time, disk. Private to peft/. */
#ifndef GR_PLAN_H
#define GR_PLAN_H

#include "peft/run.h"

/* Steps of the run and how often it logs, evaluates and saves, from the data. */
graft_status gr_plan_steps(gr_run *run, graft_error *err);

/* Before the data is read: BAD_USAGE when model and trained state alone are more than train.memory_limit. */
graft_status gr_plan_least(gr_run *run, graft_error *err);

/* Rows of a micro-batch, what backward computes again and what ranks keep shares of (run->plan, micro_tokens, sharding; all ranks
 * have the same): the fastest that train.memory_limit (auto: three quarters of what the machine can give, shared by its ranks)
 * allows, which is said where it is not the first choice. Fills run->memory. BAD_USAGE, with the keys to change, when nothing fits.
 * longest: tokens of the longest sample. */
graft_status gr_plan_memory(gr_run *run, int64_t longest, graft_error *err);

/* Is what lies on the host beside a card more than the host may give? */
bool gr_plan_lacks_host(const gr_run *run);
/* How the run makes frozen products, as planned. */
gr_model_forms gr_plan_forms(const gr_run *run);
/* The chosen train.sharding by name. */
const char *gr_plan_sharding(const gr_run *run);
/* The chosen train.gradient_checkpointing by name. */
const char *gr_plan_policy(const gr_run *run);

/* "key=value (1.20 GiB), with it ...": what to change, one on top of the other, until the limit holds. */
void gr_plan_advice(gr_run *run, gr_str *out);

/* Samples idx[first..*end) that are run at once: as many whole ones as micro_tokens allow, at least one. Returns their rows. */
int64_t gr_plan_micro_batch(const gr_run *run, const int64_t *idx, int64_t first, int64_t n, int64_t *end);

/* Seconds of a step and of an evaluation, from a few real operations at the model's shapes on this machine;
 * NaN where that cannot be told. Takes a few seconds. */
graft_status gr_plan_time(gr_run *run, gr_plan_facts *facts, graft_error *err);

/* Bytes that a rank sends the others in a step, by theory; of it what is sent in a backward and, once a step or in all forwards,
 * before it (both may be NULL). */
int64_t gr_plan_sent(const gr_run *run, int64_t *backward, int64_t *forward);
/* Tokens of a step that a rank gets where `all` are dealt. */
int64_t gr_plan_rank_tokens(const gr_run *run, int64_t all);

/* Fills what is told by run (memory, limits, disk). */
void gr_plan_facts_of(const gr_run *run, gr_plan_facts *facts);
/* The plan as text for people. missing: a data file that is not there (NULL: none is missing, or none was named). */
void gr_plan_report(gr_run *run, const gr_plan_facts *facts, const char *missing, gr_str *out);

#endif
