/* trainer.h - runs a recipe: data, model, adapter or all weights, optimizer, evaluation, checkpoints, and the run's folder. */
#ifndef GR_TRAINER_H
#define GR_TRAINER_H

#include "core/base/output.h"
#include "peft/evaluate.h"
#include "peft/recipe.h"

/* Where a run is, after each step; loss is that of the newest step whose sums are known, eval_loss only where one was measured just
 * now. */
typedef struct gr_train_progress {
    int64_t step, total_steps;
    double epoch, loss, learning_rate, tokens_per_second;
    double eval_loss; /* NaN: none at this step */
} gr_train_progress;

/* Nonzero: save a checkpoint and leave, as gr_interrupt does. */
typedef int gr_train_callback(void *payload, const gr_train_progress *progress);

/* Memory of a run in bytes, of several ranks that of each. What is always there: program to threads; besides it either the steps'
 * scratch with an evaluation (or the writing of an adapter), or the writing of a whole model. */
typedef struct gr_memory {
    int64_t program;    /* the program with its libraries, the tokenizer */
    int64_t data;       /* tokenised samples */
    int64_t base;       /* weights as they lie in their files, mapped: the system may take these pages back */
    int64_t made;       /* of the base: quantised weights, int8 forms, rotary table, floats of norms */
    int64_t trained;    /* values, gradients, what the optimizer keeps */
    int64_t exchange;   /* of several ranks: what the others sent */
    int64_t threads;    /* scratch that operations share */
    int64_t scratch;    /* of a step: activations, gradients of them, logits */
    int64_t evaluation; /* the larger of loss and exact match, with its KV cache */
    int64_t result;     /* writing the adapter or the model, and reading it back */
    int64_t total;      /* peak: of the card where there is one, else of all */
    int64_t host;       /* beside a card: peak of program, data and result, which are the host's */
} gr_memory;

/* What `graft plan` tells besides steps and parameters. Times are seconds, NaN: not known; disk is bytes, -1: not known. */
typedef struct gr_plan_facts {
    gr_memory memory;
    int64_t limit, available; /* of memory: what the run may take in all; what this process could still take when it began */
    int by_cgroup, fits;      /* a control group says what is available; total <= limit */
    double step_seconds, evaluation_seconds, run_seconds, epoch_seconds; /* an epoch: its steps alone */
    double share_of_peak; /* of a card's products that the times assume, 0: they are measured */
    int64_t checkpoint_bytes, result_bytes, cache_bytes, disk_bytes, disk_free; /* disk_bytes: all of the run */
    int64_t tokens_per_step;                                                    /* of all ranks */
    int64_t ranks, sent_bytes; /* that train together; what each sends the others in a step */
    const char *sharding;      /* what they keep shares of: a choice of train.sharding */
} gr_plan_facts;

typedef struct gr_train_options {
    bool resume;          /* continue the run in output_dir from its last checkpoint */
    bool overwrite;       /* replace an existing run */
    bool dry_run;         /* say what would happen: parameters, memory, steps; no weights needed */
    gr_str *report;       /* dry_run: the plan as text for people (may be NULL); written also where the run would be refused */
    gr_plan_facts *facts; /* dry_run: the same as numbers (may be NULL) */
    bool calibrate;       /* dry_run: measure the time of a step */
    const char *device;   /* dry_run: in place of the recipe's (NULL); also one that gr_planned_is_name knows */
    int64_t ranks;        /* dry_run: as if so many trained together; 0: one */
    int64_t samples, mean_tokens; /* dry_run without data: as if it were so many samples (0: none) of so many tokens */
    gr_train_callback *progress;  /* may be NULL */
    void *payload;
    gr_comm *comm; /* the ranks that run this recipe together, NULL: this one alone. Borrowed */
} gr_train_options;

typedef struct gr_train_result {
    int64_t steps; /* done; of a dry run those to do, 0 when no data was given */
    /* dry run: trained weights with gradients and moments; memory of a step; the quantised base (0: it is mapped from disk) */
    int64_t state_bytes, scratch_bytes, base_bytes;
    double final_loss, final_eval_loss, best_eval_loss; /* NaN where not measured */
    int64_t n_trainable;
    double seconds, tokens_per_second;
} gr_train_result;

/* INTERRUPTED after SIGINT/SIGTERM (gr_interrupt) with a checkpoint saved. */
graft_status gr_train(const gr_recipe *r, const gr_train_options *o, gr_train_result *result, graft_error *err);

/* 1234567 -> "1,234,567" */
const char *gr_thousands(int64_t n, char out[32]);

#endif
