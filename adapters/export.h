/* export.h - merging adapters into weights, and writing whole models: HF folders and GGUF files, tensor by tensor (the model is
 * never whole in memory), read back and checked. */
#ifndef GR_EXPORT_H
#define GR_EXPORT_H

#include "adapters/adapter.h"
#include "core/text/tokenizer.h"

typedef enum gr_model_format { GR_FORMAT_HF, GR_FORMAT_GGUF } gr_model_format;

typedef struct gr_merge_options {
    gr_model_format format;
    int dtype; /* gr_dtype to write; -1: the base's own (bf16 for a quantised base). In a GGUF also Q8_0, Q6_K, and
                                Q4_K and Q5_K for llama.cpp's mixtures Q4_K_M and Q5_K_M */
    bool overwrite;
    int64_t shard_bytes; /* HF: size of a shard; 0 = 5 GB */
} gr_merge_options;

typedef struct gr_merge_report {
    gr_dtype dtype;              /* that was written */
    double max_logit_difference; /* base + adapter against the merged files as read back, on probe texts */
    double largest_logit;        /* magnitude, of base + adapter: the yardstick of the difference */
    double relative_error;       /* root mean square of the differences over that of the logits (each row without its mean) */
    double mean_kl;              /* nats */
    int64_t n_probed, n_changed; /* tokens of the probe; those whose likeliest next token is another one */
    int64_t n_tensors, n_merged, n_bytes;
} gr_merge_report;

/* The format that a name says (".gguf"), checked against the one that was asked for by name (NULL: none); hf: what a folder is
 * called, "hf" or "peft". BAD_USAGE when they contradict each other. */
graft_status gr_format_of(gr_model_format *format, const char *out_path, const char *asked, const char *hf, graft_error *err);
/* --dtype in a recipe's spelling (fp32), a file's (f32, q8_0) or llama.cpp's (Q4_K_M); NULL: -1, the base's own. */
graft_status gr_written_type(int *dtype, const char *name, graft_error *err);
/* Type i of those that can be written, as help names it (fp32 ... q4_k_m), *folder: in an HF folder as well; NULL past the last. */
const char *gr_written_type_name(int i, bool *folder);

/* W + sum_j scale_j * B_j A_j in float32, rounded once. No adapters: a conversion. `trained` (may be NULL) replaces weights by name
 * (method: full). m is the opened base with the adapters attached (the logits of "base + adapter" come from it). A tied head that
 * an adapter targets is untied: lm_head is written and tie_word_embeddings = false; likewise an embedding. */
graft_status gr_merge(gr_model *m, const gr_tokenizer *t, gr_adapter *const *adapters, const double *scales, int n_adapters,
                      const gr_params *trained, const gr_merge_options *o, const char *out_path, gr_merge_report *report,
                      graft_error *err);

/* Memory that gr_merge of m without adapters takes besides the model, at most: one tensor, the written files as they are read back,
 * and the logits of the probe. dtype: F32, F16 or BF16. */
int64_t gr_merge_bytes(const gr_model *m, gr_dtype dtype);

/* What a path is (safetensors, HF folder, adapter, GGUF model, GGUF LoRA, checkpoint, token cache, run) and what is in it: a table
 * for people, or with json one JSON object, to out. */
graft_status gr_inspect(const char *path, bool json, FILE *out, graft_error *err);

#endif
