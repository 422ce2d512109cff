/* frozen.h - the frozen matrices of a model shared out over ranks: each keeps an equal share of the bytes of every layer, and
 * layers come to one of two places before they are read. Norms and biases stay whole, and so does a tied embedding. */
#ifndef GR_FROZEN_H
#define GR_FROZEN_H

#include "core/model/model.h"

typedef struct gr_frozen_layer {
    int64_t bytes;   /* of its matrices, one behind the other, each from a multiple of 64 on */
    int64_t kept_at; /* of this rank's share of them in kept */
} gr_frozen_layer;

struct gr_frozen {
    int rank, size;
    gr_frozen_layer *layers; /* [n_layers + 2]: the embedding (unless tied), the layers, the head */
    char *kept, *place[2];   /* device memory; layer i, -1 the embedding, lies in place i & 1 */
};

/* Of a loaded model without adapters: m->frozen, owned by m. quantise: the gr_dtype that the layers' matrices get, as
 * gr_model_quantize has it; -1: that of the files. Slots point to the places afterwards, which whoever sets m->elsewhere fills. */
graft_status gr_frozen_share(gr_model *m, int quantise, int rank, int size, graft_error *err);
void gr_frozen_free(gr_model *m); /* without is fine */
/* Bytes of a layer in its place that are a rank's share; -1: the embedding, n_layers: the head. */
gr_range gr_frozen_part(const gr_model *m, int64_t layer, int rank);
/* Memory of the device that the share of a rank and the places would take: of the rank that has most. */
int64_t gr_frozen_bytes(const gr_model *m, int quantise, int size);

#endif
