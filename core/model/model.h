/* model.h - a decoder's slots: what each layer multiplies with. Built from weights; adapters and full-parameter training fill
 * the slots (lora, dw, ...), the decoder only does what the slots say. */
#ifndef GR_MODEL_H
#define GR_MODEL_H

#include "core/model/config.h"
#include "core/model/machine.h"
#include "core/model/params.h"
#include "core/model/weights.h"

/* A norm's weight, or another vector that may be trained. */
typedef struct gr_vector {
    const float *w; /* [C] */
    float *dw;      /* += or NULL: frozen */
} gr_vector;

typedef struct gr_layer {
    gr_vector input_norm, post_norm;
    gr_linear q, k, v, o;     /* self_attn.{q,k,v,o}_proj */
    gr_linear gate, up, down; /* mlp.{gate,up,down}_proj */
} gr_layer;

typedef struct gr_model {
    gr_model_config config;
    gr_weights *weights; /* owned */
    gr_device *device;   /* borrowed */
    gr_threads *threads; /* borrowed: for work of the host on the model */
    gr_dtype compute;    /* of the frozen products and of attention */
    gr_weight embed;     /* [V,C] */
    float *dembed;       /* [V,C] += or NULL */
    gr_lora *embed_lora; /* LoRA on embed_tokens; its A is stored transposed, [V,R] */
    int n_embed_lora;
    gr_layer *layers; /* [n_layers] */
    gr_vector norm;
    gr_linear head; /* tied: head.w is embed, head.dw is dembed */
    float *rope;    /* [rope_positions, D] */
    int64_t rope_positions;
    gr_arena vectors; /* norms and biases as float */
    void *int8;       /* the packed forms, device memory; see gr_model_use_int8 */
    void *quantized;  /* the matrices that gr_model_quantize made, device memory; NULL: none */
    int64_t quantized_bytes;
} gr_model;

/* Open a base model (path as gr_weights_open). compute: GR_DTYPE_F32 | BF16 | F16, the type of the frozen products and of
 * attention. max_positions: longest sequence that will be run (at most gr_config_longest; 0 = that). A shape-only model cannot be
 * run. */
graft_status gr_model_open(gr_model **out, const char *path, gr_machine machine, gr_dtype compute, int64_t max_positions,
                           graft_error *err);
void gr_model_free(gr_model *m);
/* The same in two steps: the headers alone, so that sizes are known before anything is read or allocated; then the weights. Between
 * them the model is a shape: what is attached to it counts in plans, and nothing can be run. */
graft_status gr_model_open_shape(gr_model **out, const char *path, gr_machine machine, gr_dtype compute, int64_t max_positions,
                                 graft_error *err);
graft_status gr_model_load(gr_model *m, graft_error *err);
/* Memory that the model's weights keep as they lie in its files when it runs, with the layers quantised to `quantise` (-1: not) and
 * with int8 forms of all frozen linears; a shape without files counts as bf16. The other forms: gr_model_quantized_bytes,
 * gr_model_int8_bytes. */
int64_t gr_model_file_bytes(gr_model *m, int quantise, bool int8);

/* All linears that an adapter may target, in layer order q k v o gate up down ..., then lm_head. */
int64_t gr_model_n_linears(const gr_model *m);
/* name: "model.layers.3.self_attn.q_proj" or "lm_head" into name[96]. */
gr_linear *gr_model_linear(gr_model *m, int64_t i, char name[96]);

/* Quantise the frozen base: the matrix of every linear of a layer that the file has as F32, F16 or BF16 becomes one of `type`
 * in the model's own memory, and the file's pages are let go. Embedding, head, norms and biases stay as they are, as in QLoRA.
 * A matrix whose rows are no whole blocks of `type` becomes q5_0, which is llama.cpp's choice for q4_k; one that does not fit
 * that either stays. Notes what was done. BAD_INPUT for a weight that is not finite. Before adapters are attached; the model
 * cannot be merged afterwards. */
graft_status gr_model_quantize(gr_model *m, gr_dtype type, graft_error *err);
/* The type that a linear's matrix gets. */
gr_dtype gr_model_quantized_type(const gr_weight *w, gr_dtype type);
/* Bytes of the matrices that it would make (also of a shape-only model). */
int64_t gr_model_quantized_bytes(gr_model *m, gr_dtype type);

/* Full-parameter training: one parameter for every weight of the model, initialised from it; attach lets the slots point there.
 * detach lets them point at the files again. The parameter set stays the caller's and must outlive the attachment. */
graft_status gr_model_add_params(gr_model *m, gr_params *p, graft_error *err);
graft_status gr_model_attach_params(gr_model *m, gr_params *p, bool initialise, graft_error *err);

/* Products of int8 for frozen linears (gr_linear.int8_forward; with backward also int8_backward), those whose weights are quantised
 * or, with all, every one. What is trained stays exact: call it when the slots are filled. gr_model_int8_bytes: the memory it
 * takes. */
graft_status gr_model_use_int8(gr_model *m, bool all, bool backward, graft_error *err);
int64_t gr_model_int8_bytes(gr_model *m, bool all, bool backward);

#endif
