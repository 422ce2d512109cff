/* schedule.h - the learning rate of a step. */
#ifndef GR_SCHEDULE_H
#define GR_SCHEDULE_H

#include "peft/recipe.h"

/* Step from 1 to total. Warmup: lr*step/warmup; then the recipe's scheduler down to min_lr_ratio:
 * cosine and linear over the steps left, constant, wsd (constant, then linear over the last wsd_decay_ratio of all steps). */
double gr_learning_rate(const gr_recipe *r, int64_t step, int64_t total);
int64_t gr_warmup_steps(const gr_recipe *r, int64_t total);

#endif
