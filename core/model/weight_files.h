/* weight_files.h - the tensors of a model's files under the names that graft looks for, and which of them it took: what is left
 * over in the end is a part of the model that would not be computed. Used by weights.c alone. */
#ifndef GR_WEIGHT_FILES_H
#define GR_WEIGHT_FILES_H

#include "core/model/weights.h"

typedef struct gr_named_tensor {
    const char *name; /* canonical: without what other programs put before it; of a GGUF its own */
    const gr_tensor *tensor;
    bool used;
} gr_named_tensor;

typedef struct gr_weight_files { /* zero-initialise */
    gr_gguf *gguf;               /* one of the two, or none */
    gr_safetensors *safetensors;
    gr_named_tensor *items; /* [n] sorted by name */
    int64_t n;
    gr_arena names;
} gr_weight_files;

/* The safetensors of an HF folder. BAD_INPUT where two tensors have the same canonical name. */
graft_status gr_weight_files_open_hf(gr_weight_files *f, const char *folder, graft_error *err);
graft_status gr_weight_files_open_gguf(gr_weight_files *f, const char *path, graft_error *err);
void gr_weight_files_close(gr_weight_files *f);

/* The tensor of this name, marked as used; NULL when there is none. */
const gr_tensor *gr_weight_files_take(gr_weight_files *f, const char *name);
/* BAD_INPUT: e, looked for as `name`, is not there (or has a type that graft does not read). */
graft_status gr_weight_files_missing(const gr_weight_files *f, const char *name, const gr_weight_entry *e, const char *path,
                                     graft_error *err);
/* BAD_INPUT naming a tensor that was not taken, unless all that are left change nothing (rotary_emb.inv_freq ...). */
graft_status gr_weight_files_unused(const gr_weight_files *f, const gr_model_config *c, graft_error *err);

#endif
