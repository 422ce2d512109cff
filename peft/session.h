/* session.h - a model with what it is used with: machine, base, tokenizer, chat template, adapters. How these are opened is written
 * here once, for commands, which open all of it, and for the trainer, which plans memory between the steps. */
#ifndef GR_SESSION_H
#define GR_SESSION_H

#include "core/base/output.h"
#include "peft/recipe.h"

typedef struct gr_session {
    gr_machine machine;
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
    int dtype;                 /* enum gr_recipe_model_dtype */
    int compute;               /* enum gr_recipe_model_compute; auto: int8 for quantised weights, unless a dtype is named;
                                  fp8 is refused but by the steps below */
    int quantize;              /* enum gr_recipe_model_quantize */
    const char *device;        /* as the recipe's; NULL: auto */
    int64_t threads;           /* <= 0: all */
    int64_t max_length;        /* longest sequence that will be run, 0: what the model has room for */
    int rank, ranks;           /* ranks > 1: frozen matrices are shared out over them (gr_frozen_share) */
    const gr_output *output; /* what the command writes: checked before anything is opened, with the session's inputs; NULL: none */
} gr_session_options;

graft_status gr_session_open(gr_session *s, const gr_session_options *o, graft_error *err);
void gr_session_close(gr_session *s); /* a zeroed one is fine */

/* The steps of opening, for who opens a model's files for training. Of o count model (the base itself), dtype, compute, quantize,
 * device, threads, max_length, ranks. First the machine and the headers of the model's files: it is a shape, of which sizes are
 * known. */
graft_status gr_session_open_shape(gr_session *s, const gr_session_options *o, graft_error *err);
/* The weights, quantised when asked for; nothing may be attached yet. */
graft_status gr_session_load(gr_session *s, const gr_session_options *o, graft_error *err);
/* The base's tokenizer. */
graft_status gr_session_open_tokenizer(gr_session *s, graft_error *err);

/* The files of the base model (owned path) behind a model, a run or an adapter. */
graft_status gr_session_base(char **base, const char *path, graft_error *err);

/* The type of the frozen products for a recipe's model.dtype (enum gr_recipe_model_dtype) on a device: auto is bf16 where it
 * multiplies that faster than float32. */
gr_dtype gr_compute_type(int recipe_dtype, const gr_device *device);

/* How training makes the frozen products for a recipe's model.compute (enum gr_recipe_model_compute): auto is exact. */
gr_base_products gr_train_products(int recipe_compute);

/* The type that a recipe's model.quantize (enum gr_recipe_model_quantize) makes of the frozen layers, -1 for none. */
int gr_quantize_type(int recipe_quantize);

#endif
