/* merge.h - a merge in progress: the tensors to write and how each is made. Shared by merge.c and the export
 * formats. */
#ifndef GR_ADAPTERS_MERGE_H
#define GR_ADAPTERS_MERGE_H

#include "adapters/export.h"
#include "core/base/log.h"

enum { GR_MERGE_ROWS = 256 }; /* of a chunk */

typedef struct gr_merge_job {
    gr_model *m;
    gr_device *cpu; /* on which sums are made, whatever the model's */
    const gr_tokenizer *tokenizer;
    gr_adapter *const *adapters;
    const double *scales;
    int n_adapters;
    const gr_params *trained; /* may be NULL */
    const gr_merge_options *options;
    gr_dtype dtype;           /* of the matrices written */
    gr_model_config config;   /* as written: not tied where an adapter gives head and embedding different weights */
    gr_weight_entry *entries; /* [n_entries] owned; only names and shapes count */
    int64_t n_entries, n_merged;
    double started; /* seconds */
    gr_progress progress;
    float *rows, *extra; /* scratch of one chunk: [GR_MERGE_ROWS, max cols] */
    float *left, *right; /* of an adapter: [GR_MERGE_ROWS, max rank], [max rank, max cols] */
} gr_merge_job;

/* The tensors as they will be written (name, dtype, shape), owned by the caller; names are borrowed from the
 * job. dtype_of says the type of an entry. */
typedef gr_dtype gr_dtype_rule(const gr_merge_job *job, const gr_weight_entry *e);
graft_status gr_merge_tensors(gr_tensor **out, const gr_merge_job *job, gr_dtype_rule *dtype_of, bool gguf_names, graft_error *err);

/* Rows first .. first + n (n <= GR_MERGE_ROWS) of an entry merged in float32, into job->rows, in canonical order. */
graft_status gr_merge_rows(gr_merge_job *job, const gr_weight_entry *e, int64_t first, int64_t n, graft_error *err);
/* Entry i merged in float32 and rounded once to dtype, into dst; gguf: rows in GGUF's order. */
graft_status gr_merge_entry(gr_merge_job *job, int64_t i, gr_dtype dtype, bool gguf, void *dst, graft_error *err);

/* The formats: write the whole model to folder (which exists) or path. */
graft_status gr_export_hf(gr_merge_job *job, const char *folder, graft_error *err);
graft_status gr_export_gguf(gr_merge_job *job, const char *path, graft_error *err);

/* The read-back: the configuration at path is the job's, rows of every tensor are the merged ones within what their type rounds
 * away, and the logits are those of the job's model (base with adapters attached, or trained weights), in float32, on a few fixed
 * texts. FAILED, naming what is wrong, when they are not. */
graft_status gr_merge_probe(gr_merge_job *job, const char *path, gr_merge_report *report, graft_error *err);

/* Memory of the probe besides both models' weights. */
int64_t gr_merge_probe_bytes(const gr_model *m);

#endif
