/* ref_step.c - what a step sums up: a few numbers, on one thread. */
#include <math.h>

#include "kernels/cpu/impl.h"

void gr_loss_sum_generic(gr_device *d, gr_step_stats *s, const float *nll, const float *weight, const int32_t *row, int64_t n,
                         int64_t first) {
    (void)d;
    for (int64_t r = 0; r < n; r++) {
        s->nll += (double)nll[r] * weight[r];
        if (!isfinite(nll[r]) && s->bad_row < 0) s->bad_row = first + row[r];
    }
}

void gr_step_check_generic(gr_device *d, gr_step_stats *s, bool halt_on_nonfinite) {
    (void)d;
    s->nonfinite = !isfinite(s->nll) || !isfinite(sqrt(s->squares));
    s->halt |= s->nonfinite && halt_on_nonfinite;
}

void gr_step_prepare_generic(gr_device *d, gr_step_stats *s, double max_norm, bool halt_on_nonfinite) {
    const float scale = s->loss_scale > 0 ? s->loss_scale : 1;
    s->squares /= (double)scale * scale;
    double norm = sqrt(s->squares);
    gr_step_check_generic(d, s, halt_on_nonfinite && (scale <= 1 || !isfinite(s->nll)));
    s->clip = 1;
    s->good_steps = s->nonfinite ? 0 : s->good_steps + 1;
    if (s->nonfinite) s->loss_scale = scale > 1 ? scale / 2 : s->loss_scale;
    if (s->nonfinite) return;
    if (max_norm > 0 && max_norm / (norm + 1e-6) < 1) s->clip = (float)(max_norm / (norm + 1e-6));
    s->clip /= scale;
    if (!s->halt) s->optimizer_step++;
    if (s->loss_scale <= 0 || s->good_steps < GR_LOSS_SCALE_STEPS) return;
    s->good_steps = 0;
    if (scale < GR_LOSS_SCALE_MOST) s->loss_scale = 2 * scale;
}

void gr_step_begin_generic(gr_device *d, gr_step_stats *s) {
    (void)d;
    *s = (gr_step_stats){.bad_row = -1,
                         .optimizer_step = s->optimizer_step,
                         .halt = s->halt,
                         .loss_scale = s->loss_scale,
                         .good_steps = s->good_steps};
}
