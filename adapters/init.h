/* init.h - a model of random weights from its configuration, written as a base model to pre-train. */
#ifndef GR_INIT_H
#define GR_INIT_H

#include "adapters/export.h"

typedef struct gr_init_options {
    const char *config;    /* a config.json, or the HF folder that has one */
    const char *tokenizer; /* HF folder or GGUF; NULL: the folder of config has one, or the model gets none */
    gr_model_format format;
    gr_dtype dtype; /* F32, F16 or BF16 */
    uint64_t seed;
    bool overwrite;
} gr_init_options;

typedef struct gr_init_report {
    int64_t n_parameters, n_tensors, n_bytes;
    int64_t vocab, n_pieces; /* rows of the embedding; tokens of the tokenizer, 0: none */
    double range;            /* standard deviation of the matrices: initializer_range */
} gr_init_report;

/* Weights as `_init_weights` of transformers' classes draws them: matrices normal(0, initializer_range), the embedding's row of
 * pad_token_id 0 (unless it is bos or eos), biases 0, norms 1. A number is a function of (seed, tensor's name, place), the same on
 * every machine and in every format, but for rounding to dtype. The ids of bos, eos and pad are the tokenizer's where it has them.
 * Written whole or not at all, read back and compared. BAD_USAGE where the tokenizer has more tokens than the embedding rows.
 * report may be NULL. */
graft_status gr_init_model(const gr_init_options *o, const char *out_path, gr_threads *threads, gr_init_report *report,
                           graft_error *err);

#endif
