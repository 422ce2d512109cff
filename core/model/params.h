/* params.h - a parameter set is all that training sees: named, shaped tensors in layer order, their gradients and what the
 * optimizer keeps of them. Whether it holds LoRA, every weight or four rows is nobody's business here. */
#ifndef GR_PARAMS_H
#define GR_PARAMS_H

#include "core/base/base.h"
#include "kernels/kernels.h"

typedef enum gr_optimizer { GR_OPTIMIZER_ADAMW, GR_OPTIMIZER_ADAMW_8BIT, GR_OPTIMIZER_ADAFACTOR } gr_optimizer;

/* What each of several ranks keeps a share of (ZeRO, arXiv 1910.02054); each of these takes in those before it. All of them need
 * AdamW. */
typedef enum gr_sharded {
    GR_SHARDED_NOTHING,
    GR_SHARDED_STATES,    /* what the optimizer keeps, what float32 has more than bfloat16, and sums of gradients over ranks */
    GR_SHARDED_GRADIENTS, /* a rank's own gradients are there for one layer at a time, as with release */
    GR_SHARDED_VALUES     /* of tensors as a whole one layer at a time, and the next, are there */
} gr_sharded;

/* How matrices are held; vectors are float32. See gr_trained. */
typedef enum gr_trained_type {
    GR_TRAINED_FP32,
    GR_TRAINED_BF16,           /* bfloat16 for the products, and beside it the other half of float32, which updates see */
    GR_TRAINED_BF16_STOCHASTIC /* bfloat16 alone, rounded at random */
} gr_trained_type;

typedef struct gr_params_form {
    gr_optimizer optimizer; /* adamw_8bit: tensors of fewer than 4,096 elements, and vectors, have moments in float32 */
    gr_trained_type weights;
    bool release;  /* gradients of one layer at a time: tensors with the same `layer` are updated together, and then the place of
                      their gradients is another layer's */
    uint64_t seed; /* of rounding at random */
    gr_sharded sharded;
    bool turns;     /* sharded gradients of layers have two places, as values have: one layer's leave while the next's are made */
    int rank, size; /* of the ranks; 0 and 1, or 0, of one that is alone */
} gr_params_form;

typedef struct gr_param {
    char *name; /* canonical: "model.layers.0.self_attn.q_proj.lora_A.weight", or the HF name of a weight; owned */
    int64_t rows, cols;
    int64_t offset, n; /* in elements, among those of all tensors; offset is a multiple of 16 */
    bool decay;        /* weight decay applies (not to norms and biases) */
    float lr_scale;    /* of the learning rate; 1 unless changed after gr_params_add */
    int64_t layer;     /* after whose backward its gradient is whole; 0 unless changed after gr_params_add */
    bool early;        /* its gradient is begun before that of any layer (a tied head): it has a place of its own */
    /* where it lies, once allocated */
    gr_dtype type;    /* F32 or BF16 */
    int64_t value_at; /* in the buffer of its type */
    int64_t grad_at;  /* in grad */
    int64_t state_at; /* bytes in state */
    /* this rank's part: elements first .. first + mine, which it updates; without sharding all */
    int64_t first, mine;
    int64_t mine_at; /* of it in m, v and sum */
    int64_t kept_at; /* in low; where values are sharded, in kept or kept_half too */
} gr_param;

typedef enum gr_params_buffer { GR_PARAMS_VALUE, GR_PARAMS_GRAD, GR_PARAMS_M, GR_PARAMS_V } gr_params_buffer;

typedef struct gr_params {
    gr_param *items;
    int64_t n_items, items_capacity;
    int64_t n_floats;     /* length of each flat buffer, gaps included (gaps stay zero) */
    int64_t n_parameters; /* without gaps */
    gr_params_form form;  /* float32, AdamW, all gradients at once unless changed before gr_params_add */
    int64_t n_grads;      /* length of grad */
    int64_t n_mine;       /* length of m, v and sum: with sharding of this rank's parts alone */
    float *value;         /* device memory: tensors of type F32, */
    uint16_t *half, *low; /* those of type BF16 and, without rounding at random, what float32 has more; NULL: none */
    /* With GR_SHARDED_VALUES this rank's parts of tensors of either type; value and half then have two places of layers, that of
     * layer i is i's parity, and one of early tensors. Whoever runs the model brings a layer's values there. */
    float *kept;
    uint16_t *kept_half;
    float *grad, *m, *v; /* NULL unless allocated for training; m and v of AdamW in float32, else */
    float *sum;          /* gradients of this rank's parts, added up over ranks: what updates read. NULL: they read grad */
    char *state;         /* what gr_params_state tells */
    /* Where gr_params_read and _read_part take it from instead, while ranks work together on what one of them writes; NULL: what is
     * here is read, of which there must be enough. */
    void (*fetch)(void *context, gr_params_buffer which, int64_t item, int64_t first, int64_t n, float *dst);
    void *fetch_context;
    gr_device *device; /* borrowed */
} gr_params;

/* Add a tensor to the plan; its index in *index. Only before allocation. BAD_USAGE: too large for adafactor. */
graft_status gr_params_add(gr_params *p, const char *name, int64_t rows, int64_t cols, bool decay, int64_t *index,
                           graft_error *err);
/* Allocate the buffers, zeroed; training: also gradient and optimizer states. */
graft_status gr_params_allocate(gr_params *p, gr_device *device, bool training, graft_error *err);
/* Bytes of each buffer that it would allocate for training; 0: none. */
enum { GR_PARAMS_BUFFERS = 10 };
void gr_params_bytes(const gr_params *p, int64_t bytes[GR_PARAMS_BUFFERS]);
/* Index of name, -1 when absent. */
int64_t gr_params_find(const gr_params *p, const char *name);
/* Floats of the largest item: what a buffer for reading and writing needs. */
int64_t gr_params_largest(const gr_params *p);
/* Copy a whole item [n] from or to a buffer that is allocated, or floats first .. first + n of one; dst and src are host memory.
 * Values are float32 here whatever their type: all of what updates see; written ones are rounded to the nearest where the type has
 * no more. A device that failed tells zeros: whoever keeps what was read asks gr_device_status afterwards. With sharding, what is
 * written keeps this rank's part of what is sharded, and only that can be read. */
void gr_params_read(const gr_params *p, gr_params_buffer which, int64_t item, float *dst);
void gr_params_read_part(const gr_params *p, gr_params_buffer which, int64_t item, int64_t first, int64_t n, float *dst);
void gr_params_write(gr_params *p, gr_params_buffer which, int64_t item, const float *src);
void gr_params_write_part(gr_params *p, gr_params_buffer which, int64_t item, int64_t first, int64_t n, const float *src);
/* Where an item lies, for the slots of a model: device memory, which host code does not look into. */
static inline float *gr_params_value(const gr_params *p, int64_t i) { return p->value + p->items[i].value_at; }
static inline float *gr_params_grad(const gr_params *p, int64_t i) { return p->grad ? p->grad + p->items[i].grad_at : NULL; }
/* The same as a matrix of its type. */
gr_weight gr_params_weight(const gr_params *p, int64_t i);

/* ---- parts of ranks (params_shard.c): the elements of a layer, from the first item's to the last's, are cut into as many shares
 * of equal length as there are ranks, each a multiple of 16; rank r has share r. ---- */

enum { GR_PARAMS_ALIGN = 16 }; /* 64 bytes: a vector register, a cache line */
/* Of an item of n elements, with the gap behind it. */
static inline int64_t gr_params_whole(int64_t n) { return (n + GR_PARAMS_ALIGN - 1) / GR_PARAMS_ALIGN * GR_PARAMS_ALIGN; }

typedef struct gr_range {
    int64_t begin, end;
} gr_range;
/* A rank's share among the elements of an item and the gap behind it, as `offset` counts them; empty: begin is end. */
gr_range gr_params_own(const gr_params *p, const gr_param *item, int rank);
/* This rank's within the item: elements *first .. *first + *n, all of them without sharding. */
void gr_params_mine(const gr_params *p, int64_t item, int64_t *first, int64_t *n);
/* Items begin .. end of a layer; none: begin is end. */
gr_range gr_params_layer(const gr_params *p, int64_t layer);

/* A rank's share of a layer, in the buffers where the layer is whole: those of a buffer lie in one piece. */
typedef struct gr_params_share {
    int64_t grad_at, n;                  /* in grad */
    int64_t float_at, n_floats;          /* in value */
    int64_t half_at, n_halves;           /* in half */
    int64_t kept_float_at, kept_half_at; /* in kept and kept_half, of this rank's own */
} gr_params_share;
gr_params_share gr_params_share_of(const gr_params *p, gr_range layer, int rank);

/* What the optimizer keeps of an item, as it lies there: for checkpoints. Of a set allocated for training. Of an item that this
 * rank has a part of, that part: one row. */
typedef struct gr_state_part {
    const char *name; /* "adam_exp_avg", "adam8_exp_avg", "adam8_exp_avg_scale", "adafactor_row" ... */
    void *data;       /* device memory */
    int64_t rows, cols;
    bool codes; /* bytes, else floats */
} gr_state_part;
enum { GR_STATE_PARTS = 4 };
int gr_params_state(const gr_params *p, int64_t item, gr_state_part parts[GR_STATE_PARTS]);

/* Update items first..end from their gradients; how: but for lr, which is learning_rate times the item's lr_scale, and weight decay
 * where the item has none. Forms made of the values must be renewed then. */
void gr_params_update(gr_params *p, int64_t first, int64_t end, double learning_rate, const gr_adamw *how, const gr_step_stats *s);
void gr_params_release(gr_params *p);

#endif
