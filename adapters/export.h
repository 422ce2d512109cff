/* export.h - whole models written: HF folders and GGUF files, tensor by tensor (a model is never whole in memory). What the tensors
 * are made of is the source's business. */
#ifndef GR_EXPORT_H
#define GR_EXPORT_H

#include "core/model/weights.h"
#include "core/text/tokenizer.h"
#include "kernels/threads.h"

typedef enum gr_model_format { GR_FORMAT_HF, GR_FORMAT_GGUF } gr_model_format;

enum { GR_SOURCE_ROWS = 256 }; /* that are asked for at once, at most */

/* The tensors of a model: entries[n] in the order of its files (names and shapes count), and their values: rows first ..
 * first + count of entry i as float32 in canonical order, in *rows until the next call. */
typedef struct gr_tensor_source {
    const gr_weight_entry *entries;
    int64_t n;
    graft_status (*rows)(void *context, int64_t i, int64_t first, int64_t count, const float **rows, graft_error *err);
    void *context;
} gr_tensor_source;

/* A model to be written; all borrowed. */
typedef struct gr_export {
    gr_tensor_source source;
    const gr_model_config *config; /* as written */
    const gr_tokenizer *tokenizer; /* an HF folder may have none: NULL */
    const gr_weights *base;        /* whose name, metadata and licence go along */
    const char *name;              /* general.name of a GGUF; NULL: the base's */
    gr_dtype dtype; /* of the matrices: F32, F16 or BF16; in a GGUF also Q8_0, Q6_K, and Q4_K and Q5_K for llama.cpp's mixtures */
    int64_t shard_bytes; /* HF: size of a shard; 0 = 5 GB */
    int64_t n_kept;      /* the base's rows of embedding and head that are kept where there are others, too; 0: all */
    gr_threads *threads;
} gr_export;

/* To a folder (which exists) or a file. */
graft_status gr_export_hf(const gr_export *x, const char *folder, graft_error *err);
graft_status gr_export_gguf(const gr_export *x, const char *path, graft_error *err);

/* The same to out_path, under another name until proof, which gets context, has looked at what was written. BAD_USAGE: something
 * lies there and it is not to be replaced, or a folder where a GGUF goes. */
typedef graft_status gr_export_proof(void *context, const gr_export *x, const char *path, graft_error *err);
graft_status gr_export_write(const gr_export *x, gr_model_format format, bool overwrite, const char *out_path,
                             gr_export_proof *proof, void *context, graft_error *err);

/* The read-back: the configuration of `written`, opened from path, is x's, and rows of every tensor are the source's within what
 * their type rounds away. FAILED, naming what is wrong, when they are not. */
graft_status gr_export_check(const gr_export *x, const gr_weights *written, const char *path, graft_error *err);

/* The format that a name says (".gguf"), checked against the one that was asked for by name (NULL: none); hf: what a folder is
 * called, "hf" or "peft". BAD_USAGE when they contradict each other. */
graft_status gr_format_of(gr_model_format *format, const char *out_path, const char *asked, const char *hf, graft_error *err);
/* --dtype in a recipe's spelling (fp32), a file's (f32, q8_0) or llama.cpp's (Q4_K_M); NULL: -1, the base's own. */
graft_status gr_written_type(int *dtype, const char *name, graft_error *err);
/* Type i of those that can be written, as help names it (fp32 ... q4_k_m), *folder: in an HF folder as well; NULL past the last. */
const char *gr_written_type_name(int i, bool *folder);
bool gr_type_is_written(int dtype, bool *folder);

#endif
