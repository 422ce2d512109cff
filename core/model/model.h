/* model.h - a decoder's slots: what each layer multiplies with. Built from weights; adapters and full-parameter training fill
 * the slots (lora, dw, ...), the decoder only does what the slots say. */
#ifndef GR_MODEL_H
#define GR_MODEL_H

#include "core/model/config.h"
#include "core/model/machine.h"
#include "core/model/params.h"
#include "core/model/rows.h"
#include "core/model/weights.h"

/* A norm's weight, or another vector that may be trained. */
typedef struct gr_vector {
    const float *w; /* [C] */
    float *dw;      /* += or NULL: frozen */
} gr_vector;

/* Linears of a layer that share an input; one product each. */
typedef enum gr_site { GR_SITE_QKV, GR_SITE_O, GR_SITE_GATE_UP, GR_SITE_DOWN, GR_SITE_COUNT } gr_site;

typedef struct gr_layer {
    gr_layer_desc desc;
    gr_vector input_norm, post_norm;
    gr_vector q_norm, k_norm;           /* [D] of each head, with qk_norm */
    gr_vector attention_norm, mlp_norm; /* of what the two branches add to the stream, with branch_norm */
    gr_linear q, k, v, o;               /* self_attn.{q,k,v,o}_proj; q: all three side by side where they are one matrix */
    gr_linear gate, up, down;           /* mlp.{gate,up,down}_proj; gate: likewise with up */
    gr_group group[GR_SITE_COUNT];
} gr_layer;

/* What an adapter may target. */
typedef struct gr_module {
    char name[96];                /* "model.layers.3.self_attn.q_proj" */
    const gr_weight_entry *entry; /* its matrix in the files; NULL: a tied head */
    gr_linear *linear;            /* of the embedding: w [V,C] by token id, and the A of a LoRA stored transposed, [V,R] */
    int64_t out, in;              /* N and K; of the embedding C and V */
} gr_module;

/* How frozen products are made, and of what. */
typedef struct gr_model_forms {
    gr_base_products base;
    bool backward; /* will be run through them */
    bool expand;   /* a card keeps the layers' quantised weights as they are, and expands them before each product: the same bits */
    bool elsewhere; /* weights come and go (gr_elsewhere): devices make no forms of them */
    int quantise;   /* plans: the gr_dtype that gr_model_quantize will make of the layers; -1: they are what they will be */
    bool trained;   /* plans: all weights will be in a set of parameters, of the type of products */
} gr_model_forms;

/* Weights that are not here all the time, or new ones on their way: brought to where the slots point before a layer reads them; -1:
 * the embedding, n_layers: the last norm and the head. They stay until the layer after next is brought, those that a tied head
 * shares until they change. */
typedef struct gr_elsewhere {
    void (*bring)(void *context, int64_t layer); /* NULL: all are here */
    void *context;
} gr_elsewhere;

typedef struct gr_frozen gr_frozen; /* frozen.h */

typedef struct gr_model {
    gr_model_config config;
    gr_weights *weights; /* owned */
    gr_device *device;   /* borrowed, as threads: the host's pool, for work of core's own */
    gr_threads *threads;
    gr_dtype compute;       /* of the frozen products and of attention */
    gr_model_forms forms;   /* set by gr_model_use */
    gr_elsewhere elsewhere; /* with forms.elsewhere; without, as long as some are on their way */
    bool placed;
    bool qk_norm, branch_norm; /* which norms its layers have beside the two that all have */
    gr_linear embed;           /* its products are rows */
    gr_layer *layers;          /* [n_layers] */
    gr_vector norm;
    gr_linear head; /* tied: head.w is embed.w, head.dw is embed.dw */
    gr_group head_group;
    gr_segment embed_rows, head_rows;  /* tokens whose rows are not the file's */
    gr_linear head_part[GR_GROUP_MAX]; /* the head's own rows before and after a segment that is a range */
    gr_group rows_group;               /* a segment of the head that is none; no members otherwise */
    gr_module *modules;                /* [n_modules]: the embedding, linears in layer order, the head */
    int64_t n_modules;
    float **rope; /* [gr_config_n_ropes] of [rope_positions, D], device memory; NULL before gr_model_load */
    int64_t rope_positions;
    const void **mapped; /* [weights] the device's views of the files' data */
    gr_arena vectors;    /* norms and biases as float, where the files have them otherwise */
    gr_frozen *frozen;   /* owned; NULL: frozen matrices are not shared out */
    void *quantized;     /* the matrices that gr_model_quantize made, device memory; NULL: none */
} gr_model;

/* Open a base model (path as gr_weights_open). compute: GR_DTYPE_F32 | BF16 | F16, the type of the frozen products and of
 * attention. max_positions: longest sequence that will be run (at most the model's context; 0 = that). A shape-only model cannot be
 * run. */
graft_status gr_model_open(gr_model **out, const char *path, gr_machine machine, gr_dtype compute, int64_t max_positions,
                           graft_error *err);
void gr_model_free(gr_model *m);
/* The same in two steps: the headers alone, so that sizes are known before anything is read or allocated; then the weights, on the
 * host. Between them the model is a shape: what is attached to it counts in plans, and nothing can be run. */
graft_status gr_model_open_shape(gr_model **out, const char *path, gr_machine machine, gr_dtype compute, int64_t max_positions,
                                 graft_error *err);
graft_status gr_model_load(gr_model *m, graft_error *err);
/* A model without files, whose slots are the caller's to fill with device memory. rope_positions: of the rotary tables. */
graft_status gr_model_make(gr_model **out, const gr_model_config *c, gr_machine machine, gr_dtype compute, int64_t rope_positions,
                           graft_error *err);
/* Bring to the device what is not there, and make the forms of all groups. Called by those who run the model; does nothing when
 * nothing has changed since. */
graft_status gr_model_place(gr_model *m, graft_error *err);
/* The slots of the model are about to change (an adapter comes or goes): forms made of them are given up. */
void gr_model_unplace(gr_model *m);
/* Trained weights have new values, from an update or a file: forms that hold them are renewed. */
void gr_model_renew(gr_model *m);
/* Brings a layer's weights, where they are elsewhere: those who run the model do so before they read them. */
void gr_model_bring(const gr_model *m, int64_t layer);
/* Brings all layers, in the order in which a forward pass does: where ranks bring them together, what one does that has no batch
 * when others have. */
void gr_model_bring_all(const gr_model *m);
/* How frozen products are made from now on. What is trained stays exact. */
void gr_model_use(gr_model *m, gr_model_forms forms);
/* Memory of the forms that place would make then. */
int64_t gr_model_form_bytes(const gr_model *m, gr_model_forms forms);
/* Scratch that products of so many rows take then on a device that has its own; 0: none. */
int64_t gr_model_scratch_bytes(const gr_model *m, gr_model_forms forms, int64_t rows);
/* Memory of the copies of the file's weights that the device keeps beside its forms, and those of the largest group, which are
 * there while its form is made. 0 where the device reads the files themselves. full: every weight is trained, and in a set of
 * parameters. */
int64_t gr_model_copied_bytes(const gr_model *m, bool full, gr_model_forms forms);
/* Memory that the model's weights keep as they lie in its files when it runs, with the layers quantised to `quantise` (-1: not) and
 * with forms of all frozen linears in their place; a shape without files counts as bf16. */
int64_t gr_model_file_bytes(const gr_model *m, int quantise, bool replaced);

/* Quantise the frozen base: the matrix of every linear of a layer that the file has as F32, F16 or BF16 becomes one of `type`
 * in device memory, and the file's pages are let go. Embedding, head, norms and biases stay as they are, as in QLoRA.
 * A matrix whose rows are no whole blocks of `type` becomes q5_0, which is llama.cpp's choice for q4_k; one that does not fit
 * that either stays. Notes what was done. BAD_INPUT for a weight that is not finite. Before adapters are attached; the model
 * cannot be merged afterwards. */
graft_status gr_model_quantize(gr_model *m, gr_dtype type, graft_error *err);
/* Elements first .. end of a module's matrix, whole blocks, become `type`: to made on the host, where all of the matrix has room
 * and these lie as in it. BAD_INPUT where one is not finite. */
graft_status gr_model_convert(gr_model *m, const gr_module *module, gr_dtype type, int64_t first, int64_t end, void *made,
                              graft_error *err);
/* The type that a linear's matrix gets. */
gr_dtype gr_model_quantized_type(const gr_weight *w, gr_dtype type);
/* Bytes of the matrices that it would make (also of a shape-only model). */
int64_t gr_model_quantized_bytes(const gr_model *m, gr_dtype type);

/* Full-parameter training: one parameter for every weight of the model; attach lets the slots point there, with the values of the
 * files where initialise. The parameter set stays the caller's and must outlive the attachment. */
graft_status gr_model_add_params(gr_model *m, gr_params *p, graft_error *err);
graft_status gr_model_attach_params(gr_model *m, gr_params *p, bool initialise, graft_error *err);

#endif
