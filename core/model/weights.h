/* weights.h - the files of a base model, whatever their format, under canonical (HF) names and in canonical layout.
 * A GGUF's names are translated and its interleaved rows of q and k put into order here, at the border; to norms that an HF file
 * has without their offset (w of 1 + w) it is added. */
#ifndef GR_WEIGHTS_H
#define GR_WEIGHTS_H

#include "core/io/safetensors.h"
#include "core/model/config.h"
#include "kernels/kernels.h"

typedef struct gr_weights gr_weights;

/* path: an HF folder, a .gguf file, or a config.json (shapes only: every data pointer is NULL). All tensors of the architecture are
 * present with the right shapes afterwards, or the error names the file and the tensor, expected and found shape. */
graft_status gr_weights_open(gr_weights **out, const char *path, graft_error *err);
/* The same in two steps: with the headers read alone, views are whole but those with permute_heads or offset are still as the
 * file has them; load brings them into canonical order and form, in memory of their own. */
graft_status gr_weights_open_headers(gr_weights **out, const char *path, graft_error *err);
graft_status gr_weights_load(gr_weights *w, graft_error *err);
void gr_weights_close(gr_weights *w);
const gr_model_config *gr_weights_config(const gr_weights *w);
const char *gr_weights_path(const gr_weights *w);
const gr_gguf *gr_weights_gguf(const gr_weights *w); /* NULL unless it is a GGUF */
bool gr_weights_shape_only(const gr_weights *w);

/* One tensor. Matrices: view.rows x view.cols in canonical row order; vectors: rows = 1. */
typedef struct gr_weight_entry {
    gr_slot slot;
    int64_t layer;      /* -1: the model's own */
    bool is_bias;       /* of the linear in the slot */
    char name[96];      /* "model.layers.0.self_attn.q_proj.weight" */
    char gguf_name[64]; /* "blk.0.attn_q.weight" */
    gr_weight view;
    bool is_vector;        /* norms and biases */
    float offset;          /* of a norm: what its weight is above that of an HF file; a GGUF's has it */
    int64_t permute_heads; /* q and k: number of heads whose rows the architecture's GGUF interleaves; 0 otherwise */
} gr_weight_entry;
/* In layer order: embedding, layers, final norm, head (absent when tied). */
int64_t gr_weights_count(const gr_weights *w);
const gr_weight_entry *gr_weights_get(const gr_weights *w, int64_t i);
const gr_weight_entry *gr_weights_find(const gr_weights *w, const char *name); /* NULL when absent */
/* The tensor at data (a view's) will hardly be read from now on: its pages are given back to the system, which brings them again
 * when needed. w may be NULL: nothing is given back. */
void gr_weights_rest(const gr_weights *w, const void *data);
/* Give back the memory of a tensor that is not read any more: its view.data is NULL afterwards. */
void gr_weights_release(gr_weights *w, const char *name);
/* The same list for a config alone (no data): what a model of this shape consists of. *entries is owned by the caller. */
graft_status gr_weights_list(gr_weight_entry **entries, int64_t *n, const gr_model_config *c, graft_error *err);
/* Where GGUF interleaves rows of q and k: its row of canonical row r (heads x D rows). */
int64_t gr_gguf_row(int64_t row, int64_t n_heads, int64_t rows);
/* XXH3-64 over all weights in order: frozen weights prove that they did not change. */
uint64_t gr_weights_hash(const gr_weights *w);
/* The same over names, types, shapes, tensors of 64 KiB at most and pieces of larger ones: tells another model, also a finetuned
 * one, in no time. Of the file: before a load. */
uint64_t gr_weights_glance(const gr_weights *w);

#endif
