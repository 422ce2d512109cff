/* plot.h - the loss curve of a run as an SVG picture. */
#ifndef GR_PLOT_H
#define GR_PLOT_H

#include "core/base/base.h"

typedef struct gr_point {
    double x, y; /* step, loss; points that are not finite are left out */
} gr_point;

/* A complete SVG document to svg: the training loss (thin), its moving average (thick) and the evaluation
 * losses (dots), with axes, ticks, title and legend. Points are in the order of x. title is plain text. */
void gr_plot_loss(gr_str *svg, const char *title, const gr_point *train, int64_t n_train, const gr_point *eval, int64_t n_eval);

#endif
