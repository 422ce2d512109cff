/* trainer.h - runs a recipe: data, model, adapter or all weights, optimizer, evaluation, checkpoints, and the run's folder. */
#ifndef GR_TRAINER_H
#define GR_TRAINER_H

#include "core/base/output.h"
#include "peft/evaluate.h"
#include "peft/recipe.h"

/* Where a run is, after each step; eval_loss only where one was measured just now. */
typedef struct gr_train_progress {
    int64_t step, total_steps;
    double epoch, loss, learning_rate, tokens_per_second;
    double eval_loss; /* NaN: none at this step */
} gr_train_progress;

/* Nonzero: save a checkpoint and leave, as gr_trainer_interrupt does. */
typedef int gr_train_callback(void *payload, const gr_train_progress *progress);

/* Memory of a run in bytes. What is always there: program to threads; besides it either the steps' scratch with an evaluation (or
 * the writing of an adapter), or the writing of a whole model. */
typedef struct gr_memory {
    int64_t program;    /* the program with its libraries, the tokenizer */
    int64_t data;       /* tokenised samples */
    int64_t base;       /* weights as they lie in their files, mapped: the system may take these pages back */
    int64_t made;       /* of the base: quantised weights, int8 forms, rotary table, floats of norms */
    int64_t trained;    /* values, gradients, two moments */
    int64_t threads;    /* scratch that operations share */
    int64_t scratch;    /* of a step: activations, gradients of them, logits */
    int64_t evaluation; /* the larger of loss and exact match, with its KV cache */
    int64_t result;     /* writing the adapter or the model, and reading it back */
    int64_t total;      /* peak */
} gr_memory;

/* What `graft plan` tells besides steps and parameters. Times are seconds, NaN: not known; disk is bytes, -1: not known. */
typedef struct gr_plan_facts {
    gr_memory memory;
    int64_t limit, available; /* of memory: what the run may take in all; what this process could still take when it began */
    int by_cgroup, fits;      /* a control group says what is available; total <= limit */
    double step_seconds, evaluation_seconds, run_seconds;
    int64_t checkpoint_bytes, result_bytes, cache_bytes, disk_bytes, disk_free; /* disk_bytes: all of the run */
    int64_t tokens_per_step;
} gr_plan_facts;

typedef struct gr_train_options {
    bool resume;          /* continue the run in output_dir from its last checkpoint */
    bool overwrite;       /* replace an existing run */
    bool dry_run;         /* say what would happen: parameters, memory, steps; no weights needed */
    gr_str *report;       /* dry_run: the plan as text for people (may be NULL); written also where the run would be refused */
    gr_plan_facts *facts; /* dry_run: the same as numbers (may be NULL) */
    bool calibrate;       /* dry_run: measure the time of a step */
    int64_t samples, mean_tokens; /* dry_run without data: as if it were so many samples (0: none) of so many tokens */
    gr_train_callback *progress;  /* may be NULL */
    void *payload;
} gr_train_options;

typedef struct gr_train_result {
    int64_t steps; /* done; of a dry run those to do, 0 when no data was given */
    /* dry run: trained weights with gradients and moments; memory of a step; the quantised base (0: it is mapped from disk) */
    int64_t state_bytes, scratch_bytes, base_bytes;
    double final_loss, final_eval_loss, best_eval_loss; /* NaN where not measured */
    int64_t n_trainable;
    double seconds, tokens_per_second;
} gr_train_result;

/* INTERRUPTED after SIGINT/SIGTERM (gr_trainer_interrupt) with a checkpoint saved. */
graft_status gr_train(const gr_recipe *r, const gr_train_options *o, gr_train_result *result, graft_error *err);
/* For signal handlers: the run saves a checkpoint after the current step and leaves; nothing when none is running. */
void gr_trainer_interrupt(void);
bool gr_trainer_interrupted(void);
/* Also for signal handlers: what the process is doing, and the folder of the newest checkpoint of its run (NULL: none yet). */
typedef enum gr_train_phase { GR_PHASE_IDLE, GR_PHASE_SETUP, GR_PHASE_STEPS, GR_PHASE_RESULT } gr_train_phase;
gr_train_phase gr_trainer_phase(void);
const char *gr_trainer_last_checkpoint(void);

/* The type of the frozen products for a recipe's model.dtype (enum gr_recipe_dtype) on a device: auto is bf16 where the machine
 * multiplies it faster than float32. */
gr_dtype gr_compute_type(int recipe_dtype, const gr_device *device);

/* The type that a recipe's model.quantize (enum gr_recipe_quantize) makes of the frozen layers, -1 for none. */
int gr_quantize_type(int recipe_quantize);

/* 1234567 -> "1,234,567" */
const char *gr_thousands(int64_t n, char out[32]);

/* Everything a command needs to use a model: opened once, closed once. */
typedef struct gr_session {
    gr_device *device;
    gr_tokenizer *tokenizer;
    gr_chat *chat;
    gr_model *model;
    gr_adapter **adapters;
    double *scales;
    int n_adapters;
    char **inputs; /* files and folders that it reads: what no output may replace (core/base/output.h) */
    int n_inputs;
} gr_session;

typedef struct gr_session_options {
    const char *model;           /* a model, or a run or adapter (which is attached first); NULL: the base of the first adapter */
    const char *const *adapters; /* "path" or "path:scale" */
    int n_adapters;
    const char *template_name; /* as in gr_chat_options; NULL: the one trained with, else "auto"; "": no chat is opened */
    const char *system;        /* as in gr_chat_options; NULL: the one trained with, else the template's own */
    const char *template_args; /* as in gr_chat_options.args, over what was trained with */
    int dtype;                 /* enum gr_recipe_dtype */
    int compute;               /* enum gr_recipe_compute; auto: int8 for quantised weights, unless a dtype is named */
    int quantize;              /* enum gr_recipe_quantize */
    int threads;               /* <= 0: all */
    const gr_output *output; /* what the command writes: checked before anything is opened, with the session's inputs; NULL: none */
} gr_session_options;

graft_status gr_session_open(gr_session *s, const gr_session_options *o, graft_error *err);
void gr_session_close(gr_session *s);
/* The files of the base model (owned path) behind a model, a run or an adapter. */
graft_status gr_session_base(char **base, const char *path, graft_error *err);

#endif
