/* graft.h - graft as a library: train what a recipe says, open a model with its adapters, generate, score, merge.
 *
 * Functions that can fail return graft_status and fill the caller's graft_error (NULL is fine) with one line that names
 * the file, the key and what was expected. Nothing here prints results or ends the process; notes and progress go to stderr.
 * Strings are UTF-8. Pointers handed in are borrowed for the call alone. A graft_model is used by one thread at a time;
 * different models are independent. Structs of options may be all zero: zero means the default. */
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

typedef struct graft_train_options {
    int resume;    /* continue the run in output_dir from its last checkpoint */
    int overwrite; /* replace an existing run */
    int dry_run;   /* only say what would happen; needs no weights */
} graft_train_options;

typedef struct graft_train_result { /* NaN where not measured */
    int64_t steps, trainable_parameters;
    double loss, eval_loss, best_eval_loss; /* nats per target token */
    double seconds, tokens_per_second;
} graft_train_result;

/* Run a recipe (a YAML file, or NULL for the defaults) under overrides "section.key=value". The run's folder is the recipe's
 * output_dir. options and result may be NULL. */
GRAFT_API graft_status graft_train(const char *recipe, const char *const *overrides, int n_overrides,
                                   const graft_train_options *options, graft_train_result *result, graft_error *err);

/* Let a running graft_train save a checkpoint after its current step and return GRAFT_INTERRUPTED. For signal handlers. */
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
 * graft, each "path" or "path:scale". options may be NULL. */
GRAFT_API graft_status graft_model_open(graft_model **out, const char *path, const char *const *adapters, int n_adapters,
                                        const graft_model_options *options, graft_error *err);
GRAFT_API void graft_model_close(graft_model *model); /* NULL is fine */

/* ---- generation ---- */

typedef struct graft_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
} graft_message;

typedef struct graft_generate_options {
    int64_t max_tokens;        /* 0 = 256 */
    double temperature;        /* 0 = greedy */
    int top_k;                 /* 0 = off */
    double top_p;              /* 0 = off */
    double repetition_penalty; /* 0 = off */
    uint64_t seed;
    const char *const *stop; /* strings that end the text */
    int n_stop;
} graft_generate_options;

/* New text while it is made, in whole characters; not NUL-terminated. Nonzero stops the generation. */
typedef int graft_text_callback(void *payload, const char *text, size_t length);

/* The answer to a conversation. *text is the whole answer, freed with graft_free. options and callback may be NULL. */
GRAFT_API graft_status graft_chat(graft_model *model, const graft_message *messages, int64_t n,
                                  const graft_generate_options *options, graft_text_callback *callback, void *payload,
                                  char **text, graft_error *err);
/* The same for one user turn. */
GRAFT_API graft_status graft_generate(graft_model *model, const char *prompt, const graft_generate_options *options,
                                      graft_text_callback *callback, void *payload, char **text, graft_error *err);
GRAFT_API void graft_free(void *p);

/* ---- scoring and merging ---- */

typedef struct graft_eval_result {
    double loss; /* mean, nats per target token */
    int64_t samples, targets;
} graft_eval_result;

/* The loss on a JSON or JSONL file of any form that recipes accept. */
GRAFT_API graft_status graft_eval(graft_model *model, const char *data, graft_eval_result *result, graft_error *err);

typedef struct graft_merge_options {
    const char *format; /* "hf" (NULL): a folder; "gguf": a file */
    const char *dtype;  /* "fp32", "bf16", "fp16", "q8_0"; NULL = the base's own, bf16 for a quantised one */
    int overwrite;
} graft_merge_options;

typedef struct graft_merge_result {
    double max_logit_difference; /* base + adapters against the written files as read back */
    int64_t bytes;
} graft_merge_result;

/* Write the model with its adapters merged into the weights (none: a conversion). options and result may be NULL. */
GRAFT_API graft_status graft_merge(graft_model *model, const char *out_path, const graft_merge_options *options,
                                   graft_merge_result *result, graft_error *err);

#ifdef __cplusplus
}
#endif
#endif
