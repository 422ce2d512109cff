/* metrics.h - what a run leaves behind for people and tools: metrics.jsonl, trainer_state.json (transformers' form), TensorBoard
 * event files, loss.svg. Conventions 1.6 and 1.7 name every field. */
#ifndef GR_METRICS_H
#define GR_METRICS_H

#include "core/base/base.h"

typedef struct gr_train_row { /* one logged window of training */
    int64_t step;
    double epoch, loss, grad_norm, learning_rate, tokens_per_second;
    int64_t num_tokens, num_target_tokens; /* so far */
} gr_train_row;

typedef struct gr_eval_row {
    int64_t step;
    double epoch, eval_loss, eval_runtime, eval_samples_per_second;
    double exact_match; /* NaN: not measured */
} gr_eval_row;

typedef struct gr_run_facts { /* what trainer_state.json says of the run as a whole */
    int64_t max_steps, save_steps, eval_steps, logging_steps, train_batch_size;
    double num_train_epochs;
    double best_metric;      /* NaN: none yet */
    int64_t best_step;       /* -1: none */
    const char *best_folder; /* that holds it; NULL: the checkpoint of best_step */
    int64_t global_step;     /* steps done and the epoch they reached; 0: those of the last row */
    double epoch;
} gr_run_facts;

typedef struct gr_metrics gr_metrics;

/* Open the run's logs in folder. resume_step < 0: a new run; else rows after that step are dropped from metrics.jsonl and the
 * rest is kept (also in trainer_state.json and the plot). */
graft_status gr_metrics_open(gr_metrics **out, const char *folder, bool tensorboard, bool plot, int64_t resume_step,
                             graft_error *err);
graft_status gr_metrics_train(gr_metrics *m, const gr_train_row *row, graft_error *err);
graft_status gr_metrics_eval(gr_metrics *m, const gr_eval_row *row, graft_error *err);
/* Write trainer_state.json and loss.svg (atomically); called with each checkpoint and at the end. */
graft_status gr_metrics_save(gr_metrics *m, const gr_run_facts *facts, graft_error *err);
void gr_metrics_close(gr_metrics *m);

#endif
