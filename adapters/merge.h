/* merge.h - a merge in progress: the tensors to write and how each is made. Shared by merge.c and the export
 * formats. */
#ifndef GR_ADAPTERS_MERGE_H
#define GR_ADAPTERS_MERGE_H

#include "adapters/export.h"

typedef struct gr_merge_job {
    gr_model *m;
    const gr_tokenizer *tokenizer;
    gr_adapter *const *adapters;
    const double *scales;
    int n_adapters;
    const gr_params *trained; /* may be NULL */
    const gr_merge_options *options;
    gr_dtype dtype; /* of the matrices written */
    gr_model_config
        config; /* as written: not tied where an adapter gives head and embedding different weights */
    gr_weight_entry *entries; /* [n_entries] owned; only names and shapes count */
    int64_t n_entries, n_merged;
    float *rows, *extra, *left; /* scratch of one chunk: [CHUNK, max cols] twice, [CHUNK, max rank] */
} gr_merge_job;

/* The tensors as they will be written (name, dtype, shape), owned by the caller; names are borrowed from the
 * job. dtype_of says the type of an entry. */
typedef gr_dtype gr_dtype_rule(const gr_merge_job *job, const gr_weight_entry *e);
graft_status gr_merge_tensors(gr_tensor **out, const gr_merge_job *job, gr_dtype_rule *dtype_of,
                              bool gguf_names, graft_error *err);

/* Entry i merged in float32 and rounded once to dtype, into dst; gguf: rows in GGUF's order. */
graft_status gr_merge_entry(gr_merge_job *job, int64_t i, gr_dtype dtype, bool gguf, void *dst,
                            graft_error *err);

/* The formats: write the whole model to folder (which exists) or path. */
graft_status gr_export_hf(gr_merge_job *job, const char *folder, graft_error *err);
graft_status gr_export_gguf(gr_merge_job *job, const char *path, graft_error *err);

/* Logits of m (base with adapters attached, or trained weights) against the model at path, in float32, on a
 * few fixed texts. */
graft_status gr_merge_probe(gr_model *m, const gr_tokenizer *t, const char *path, gr_merge_report *report,
                            graft_error *err);

#endif
