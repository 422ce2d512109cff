#include "peft/schedule.h"

#include <math.h>

int64_t gr_warmup_steps(const gr_recipe *r, int64_t total) {
    if (r->train_warmup_steps > 0) return r->train_warmup_steps;
    return (int64_t)ceil(r->train_warmup_ratio * (double)total);
}

double gr_learning_rate(const gr_recipe *r, int64_t step, int64_t total) {
    int64_t warmup = gr_warmup_steps(r, total);
    double peak = r->train_learning_rate, floor_ratio = r->train_min_lr_ratio, shape = 1;
    if (step <= warmup) return peak * (double)step / (double)warmup;
    double done = (double)(step - 1 - warmup) / (double)(total - warmup); /* 0 <= done < 1: the last step learns too */
    switch ((enum gr_recipe_train_lr_scheduler)r->train_lr_scheduler) {
    case GR_SCHEDULER_COSINE: shape = 0.5 * (1 + cos(M_PI * done)); break;
    case GR_SCHEDULER_LINEAR: shape = 1 - done; break;
    case GR_SCHEDULER_CONSTANT: break;
    case GR_SCHEDULER_WSD: {
        double decay = ceil(r->train_wsd_decay_ratio * (double)total), left = (double)(total - step + 1);
        if (left < decay) shape = left / decay;
        break;
    }
    }
    return peak * (floor_ratio + (1 - floor_ratio) * shape);
}
