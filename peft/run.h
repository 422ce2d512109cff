/* run.h - one training run. trainer.c has it from end to end and calls the others; none of them calls back. Private to peft/. */
#ifndef GR_RUN_H
#define GR_RUN_H

#include <stdio.h>
#include <sys/types.h>

#include "adapters/adapter.h"
#include "core/dist/comm.h"
#include "core/model/batch.h"
#include "core/model/decoder.h"
#include "peft/checkpoint.h"
#include "peft/metrics.h"
#include "peft/session.h"
#include "peft/shard.h"
#include "peft/trainer.h"

typedef struct gr_run {
    const gr_recipe *r;
    gr_comm *comm;            /* of the ranks, NULL: this one alone. What is written, rank 0 writes */
    int ranks;                /* that train together, also those of a plan; at least 1 */
    gr_session session;       /* without adapters: the one that is trained is below */
    int64_t base_bytes;       /* of the quantised matrices; 0: none */
    gr_params params;         /* what is trained: the adapter's matrices, or every weight */
    gr_shard shard;           /* of it, over the ranks */
    gr_adapter *adapter;      /* method full: NULL */
    gr_dataset *train, *eval; /* eval: NULL when there is none */
    int64_t eval_prompt;      /* tokens of the longest, where its answers are generated */
    gr_decoder *decoder;
    gr_layer_hooks hooks;                      /* of the decoder, with gradient release */
    gr_decoder_options plan;                   /* rows of the largest micro-batch and recompute policy */
    enum gr_recipe_train_sharding sharding;    /* what ranks keep shares of, as planned: never auto */
    bool expand;                               /* quantised weights are expanded before each product (gr_model_forms) */
    int64_t micro_tokens;                      /* rows that a micro-batch of several samples has at most */
    char *less;                                /* of a card: what would have it need less, in words; NULL: nothing planned yet */
    gr_checkpoint last;                        /* that the run goes on from, open until it was read; zeroed: none */
    gr_train_split before;                     /* of it; zeroed: there is none, or it has no record of it */
    gr_memory memory;                          /* as planned */
    int64_t memory_limit, resident, available; /* bytes: allowed in all; held when the plan was made; still to be had then */
    int64_t joined_bytes;                      /* of a card that exchanges with other ranks take (gr_ranks_join): not in the plan */
    int64_t host_limit;                        /* of the host's memory beside a card that is here */
    int by_cgroup;
    int64_t samples, mean_tokens; /* of the training set, also where it is only assumed; 0: not known */
    int64_t total_steps, steps_per_epoch, eval_every, save_every, log_every; /* 0: at the end only */
    gr_train_identity identity;
    gr_train_state state;
    double last_eval_loss; /* NaN: none in this process */
    gr_metrics *metrics;
    bool resumes;                /* from a checkpoint */
    char *recipe_text;           /* resolved */
    gr_train_callback *progress; /* may be NULL */
    void *payload;
    FILE *log;   /* run.log, NULL before gr_folder_open */
    FILE *early; /* what is logged until then */
    char *early_text;
    size_t early_len;
    dev_t folder_device;
    ino_t folder_inode; /* rank 0's: output_dir, so that another one is told from it */
    int64_t started;    /* time(2) */
} gr_run;

/* With train.gradient_release and with sharding: the decoder of run->plan tells of gradients that are whole. Before it is made. */
void gr_run_release_gradients(gr_run *run);
/* Train from run->state to the end (or an early stop). INTERRUPTED when a signal asked for it and a checkpoint was saved. */
graft_status gr_run_steps(gr_run *run, graft_error *err);

/* ---- result.c ---- */

/* Write what the run has learned: adapter/ or model/. */
graft_status gr_run_export(gr_run *run, graft_error *err);
/* At the end of the run, on all ranks: the best weights if they were evaluated, else the last. An adapter was exported when it was
 * best. */
graft_status gr_run_result(gr_run *run, graft_error *err);

/* ---- alike.c ---- */

/* Ranks: by one recipe? Every key but those that say where a host has its files, or what it lends. BAD_USAGE, on all ranks, naming
 * one that differs from rank 0's, with both values. Nothing with one rank. */
graft_status gr_alike_settings(const gr_run *run, graft_error *err);
/* The same of what they make of it: type of the products, data, what is trained, the base (gr_weights_glance). After the data were
 * opened. */
graft_status gr_alike_work(const gr_run *run, graft_error *err);
/* The same of an adapter's values. After load_params. */
graft_status gr_alike_values(const gr_run *run, graft_error *err);

/* ---- resume.c ---- */

/* Opens the last checkpoint of the run's folder, and what it says that was planned: run->last, before. Before gr_plan_memory. */
graft_status gr_resume_plan(gr_run *run, graft_error *err);
/* A gr_checkpoint_check; context: the gr_run. BAD_USAGE naming every setting that makes the result and that the run did not begin
 * with, with both values: settings are compared as settings (schema.def: resume). */
gr_checkpoint_check gr_resume_check;
/* Of a run whose last step is done: whether it can be extended, and what to do if not. */
void gr_resume_tell_complete(const gr_run *run);

/* ---- folder.c: the run's folder ---- */

/* BAD_USAGE when r's output_dir may not be trained into: it holds what is no run of graft, or a run and nothing was said about it,
 * or what the recipe reads. */
graft_status gr_folder_check(const gr_recipe *r, const gr_train_options *o, graft_error *err);
/* Does this rank have a log? Rank 0 has run.log; the others have ranks/rank-R.log in the folder where GRAFT_RANK_LOG is 1. */
bool gr_folder_logs(const gr_comm *comm);
/* Keep what is logged from now on for it. */
graft_status gr_folder_listen(gr_run *run, graft_error *err);
/* Make or clean the folder and open its logs; with --resume read the last checkpoint into params and state. */
graft_status gr_folder_open(gr_run *run, const gr_train_options *o, graft_error *err);
/* Before rank 0 writes into the folder: where it was removed or moved away meanwhile, it is made anew (*anew), and that is said;
 * refused where something else stands in its place. */
graft_status gr_folder_hold(gr_run *run, bool *anew, graft_error *err);
graft_status gr_run_facts_save(gr_run *run, graft_error *err);
/* Close the logs, with how the run ended: status and err (may be NULL) of the whole. */
void gr_folder_end(gr_run *run, graft_status status, const graft_error *err);

#endif
