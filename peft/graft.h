/* graft.h - graft as a library: train what a recipe says, open a model with its adapters, generate, score, merge, export.
 *
 * Functions that can fail return graft_status and fill the caller's graft_error (NULL is fine): on failure with one line that names
 * the file, the key and what was expected, on success with nothing (status GRAFT_OK, msg ""). A pointer that must not be NULL and
 * is gives GRAFT_BAD_USAGE with its name; results are then untouched, or NULL. Nothing here prints results or ends the process;
 * notes and progress go to stderr. Strings are UTF-8. Pointers handed in are borrowed for the call alone; what a function hands out
 * is freed as it says. A graft_model is used by one thread at a time; different models are independent; one training runs at a time
 * in a process. Structs of options may be all zero, and pointers to them NULL: zero means the default. */
#ifndef GRAFT_H
#define GRAFT_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/graft_status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* "0.1.0" */
GRAFT_API const char *graft_version(void);

/* Notes and progress on stderr: 1 = silent (warnings stay), 0 = shown (the default). For the whole process. */
GRAFT_API void graft_quiet(int quiet);

/* ---- training ---- */

typedef struct graft_train_progress { /* after a step */
    int64_t step, total_steps;
    double epoch, loss; /* loss: nats per target token of this step */
    double learning_rate, tokens_per_second;
    double eval_loss;    /* NaN: nothing was evaluated after this step */
    double seconds_left; /* NaN until it can be told */
} graft_train_progress;

/* Called after each step, by the thread that called graft_train. Nonzero: save a checkpoint and return GRAFT_INTERRUPTED. */
typedef int graft_train_callback(void *payload, const graft_train_progress *progress);

typedef struct graft_train_options {
    int resume;    /* continue the run in output_dir from its last checkpoint */
    int overwrite; /* replace an existing run */
    int dry_run;   /* only say what would happen; needs no weights */
    graft_train_callback *callback;
    void *payload; /* of the callback */
} graft_train_options;

typedef struct graft_train_result { /* NaN where not measured */
    int64_t steps, trainable_parameters;
    double loss, eval_loss, best_eval_loss; /* nats per target token */
    double seconds, tokens_per_second;
} graft_train_result;

/* Run a recipe (a YAML file, or NULL for the defaults) under overrides "section.key=value". The run's folder is the recipe's
 * output_dir. options and result may be NULL. BAD_USAGE: the recipe or an override; BAD_INPUT: a file that it names; INTERRUPTED:
 * by the callback or graft_train_interrupt, with a checkpoint saved. */
GRAFT_API graft_status graft_train(const char *recipe, const char *const *overrides, int n_overrides,
                                   const graft_train_options *options, graft_train_result *result, graft_error *err);

/* Let a running graft_train save a checkpoint after its current step and return GRAFT_INTERRUPTED; nothing when none runs. For
 * signal handlers and other threads. */
GRAFT_API void graft_train_interrupt(void);

/* ---- models ---- */

typedef struct graft_model graft_model; /* an opened base with its adapters, tokenizer and chat template */

typedef struct graft_model_options {
    const char *dtype;         /* "auto" (NULL), "fp32", "bf16", "fp16" */
    const char *chat_template; /* "auto", "none", "chatml", ... or a FILE.yaml; NULL = as the adapter was trained, else "auto" */
    const char *system;        /* system text; NULL = as trained, else the template's own; "" = none */
    int threads;               /* 0 = all CPUs */
    const char *compute;       /* "auto" (NULL): int8 products for quantised weights unless dtype is named; "exact"; "int8" */
    const char *quantize;      /* "none" (NULL), "q8_0", "q4_0", "q4_k", "nf4": the layers of a base that is not quantised yet */
} graft_model_options;

/* path: a HF folder or a .gguf file; NULL = the base that the first adapter remembers. adapters: PEFT folders or runs of
 * graft, each "path" or "path:scale". options may be NULL. *out is closed with graft_model_close. BAD_INPUT: a file is missing or
 * wrong; BAD_USAGE: an option, or no model at all. */
GRAFT_API graft_status graft_model_open(graft_model **out, const char *path, const char *const *adapters, int n_adapters,
                                        const graft_model_options *options, graft_error *err);
GRAFT_API void graft_model_close(graft_model *model); /* NULL is fine */

/* ---- generation ---- */

typedef struct graft_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
} graft_message;

typedef struct graft_generate_options {
    int64_t max_tokens;        /* new tokens at most; 0 = 256 */
    double temperature;        /* 0 = greedy */
    int top_k;                 /* 0 = off */
    double top_p;              /* 0 = off */
    double repetition_penalty; /* 0 = off */
    uint64_t seed;             /* of the sampling */
    const char *const *stop;   /* strings that end the text */
    int n_stop;
} graft_generate_options;

/* New text while it is made, in whole characters; not NUL-terminated. Nonzero stops the generation. */
typedef int graft_text_callback(void *payload, const char *text, size_t length);

/* The answer to a conversation. *text is the whole answer (what there is of it when the callback stopped it), freed with
 * graft_free. options and callback may be NULL. BAD_USAGE: an option, or a conversation that does not fit the model's context;
 * BAD_INPUT: roles that the template cannot render. */
GRAFT_API graft_status graft_chat(graft_model *model, const graft_message *messages, int64_t n,
                                  const graft_generate_options *options, graft_text_callback *callback, void *payload, char **text,
                                  graft_error *err);
/* The same for one user turn. */
GRAFT_API graft_status graft_generate(graft_model *model, const char *prompt, const graft_generate_options *options,
                                      graft_text_callback *callback, void *payload, char **text, graft_error *err);

typedef struct graft_conversation {
    const graft_message *messages;
    int64_t n;
} graft_conversation;

/* The same for many at once, with conversation number i from 0; done: its text is complete (length may be 0). */
typedef int graft_batch_callback(void *payload, int64_t i, const char *text, size_t length, int done);

/* The answers to n conversations, computed together: each is what graft_chat gives, sooner. texts[n] is filled in their order, each
 * freed with graft_free; all are NULL when it fails. A callback that stops leaves the texts that there are, "" for those not
 * begun. */
GRAFT_API graft_status graft_chat_batch(graft_model *model, const graft_conversation *conversations, int64_t n,
                                        const graft_generate_options *options, graft_batch_callback *callback, void *payload,
                                        char **texts, graft_error *err);
/* The same for n user turns. */
GRAFT_API graft_status graft_generate_batch(graft_model *model, const char *const *prompts, int64_t n,
                                            const graft_generate_options *options, graft_batch_callback *callback, void *payload,
                                            char **texts, graft_error *err);
/* Frees a text from here; NULL is fine. */
GRAFT_API void graft_free(void *p);

/* ---- scoring, merging, exporting ---- */

typedef struct graft_eval_result {
    double loss; /* mean, nats per target token */
    int64_t samples, targets;
} graft_eval_result;

/* The loss on a JSON or JSONL file of any form that recipes accept. BAD_INPUT: the file, with its line. */
GRAFT_API graft_status graft_eval(graft_model *model, const char *data, graft_eval_result *result, graft_error *err);

typedef struct graft_merge_options {
    const char *format; /* "hf": a folder; "gguf": a file; NULL = as out_path ends (.gguf) */
    const char *dtype; /* "fp32", "bf16", "fp16", in a GGUF also "q8_0", "q6_k", "q5_k_m", "q4_k_m"; NULL = the base's own, bf16 for
                          a quantised one */
    int overwrite;     /* an existing model may be replaced; never one that this model was read from */
} graft_merge_options;

typedef struct graft_merge_result {
    double max_logit_difference; /* base + adapters against the written files as read back */
    double largest_logit;        /* its yardstick */
    int64_t bytes;
} graft_merge_result;

/* Write the model with its adapters merged into the weights (none: a conversion). options and result may be NULL. BAD_USAGE: an
 * option, or a place that may not be written to. */
GRAFT_API graft_status graft_merge(graft_model *model, const char *out_path, const graft_merge_options *options,
                                   graft_merge_result *result, graft_error *err);

typedef struct graft_export_options {
    const char *format; /* "peft": a folder; "gguf": llama.cpp's LoRA file; NULL = as out_path ends (.gguf) */
    int overwrite;
} graft_export_options;

/* Write the model's one adapter for other programs. options may be NULL. BAD_USAGE: no adapter or several, an option, the place. */
GRAFT_API graft_status graft_export(graft_model *model, const char *out_path, const graft_export_options *options,
                                    graft_error *err);

#ifdef __cplusplus
}
#endif
#endif
