/* params.h - a parameter set is all that training sees: named, shaped tensors in layer order in flat buffers (value,
 * gradient, first and second moment). Whether it holds LoRA, every weight or four rows is nobody's business here. */
#ifndef GR_PARAMS_H
#define GR_PARAMS_H

#include "core/base/base.h"
#include "kernels/kernels.h"

typedef struct gr_param {
    char *name; /* canonical: "model.layers.0.self_attn.q_proj.lora_A.weight", or the HF name of a weight; owned */
    int64_t rows, cols;
    int64_t offset, n; /* in floats, in each flat buffer; offset is a multiple of 16 */
    bool decay;        /* weight decay applies (not to norms and biases) */
    float lr_scale;    /* of the learning rate; 1 unless changed after gr_params_add */
} gr_param;

typedef struct gr_params {
    gr_param *items;
    int64_t n_items, items_capacity;
    int64_t n_floats;            /* length of each flat buffer, gaps included (gaps stay zero) */
    int64_t n_parameters;        /* without gaps */
    int64_t begin, end;          /* floats begin..end of each buffer are updated by this process; all once allocated */
    float *value, *grad, *m, *v; /* device memory; grad, m, v: NULL unless allocated for training */
    gr_device *device;           /* borrowed */
} gr_params;

/* Add a tensor to the plan; its index in *index. Only before allocation. */
graft_status gr_params_add(gr_params *p, const char *name, int64_t rows, int64_t cols, bool decay, int64_t *index,
                           graft_error *err);
/* Allocate the buffers, zeroed; training: also gradient and optimizer states. */
graft_status gr_params_allocate(gr_params *p, gr_device *device, bool training, graft_error *err);
/* Index of name, -1 when absent. */
int64_t gr_params_find(const gr_params *p, const char *name);
/* Floats of the largest item: what a buffer for reading and writing needs. */
int64_t gr_params_largest(const gr_params *p);
/* Copy a whole item [n] from or to a buffer that is allocated, or floats first .. first + n of one; dst and src are host memory. */
typedef enum gr_params_buffer { GR_PARAMS_VALUE, GR_PARAMS_GRAD, GR_PARAMS_M, GR_PARAMS_V } gr_params_buffer;
void gr_params_read(const gr_params *p, gr_params_buffer which, int64_t item, float *dst);
void gr_params_read_part(const gr_params *p, gr_params_buffer which, int64_t item, int64_t first, int64_t n, float *dst);
void gr_params_write(gr_params *p, gr_params_buffer which, int64_t item, const float *src);
/* Where an item lies, for the slots of a model: device memory, which host code does not look into. */
static inline float *gr_params_value(const gr_params *p, int64_t i) { return p->value + p->items[i].offset; }
static inline float *gr_params_grad(const gr_params *p, int64_t i) { return p->grad ? p->grad + p->items[i].offset : NULL; }
void gr_params_release(gr_params *p);

#endif
