/* shard.h - ZeRO (arXiv 1910.02054): what each of several ranks keeps a share of (gr_params_form.sharded), and what they send each
 * other for it. With nothing sharded, all of these do nothing. Private to peft/.
 *
 * A layer's gradients leave when they are whole: every rank gives every other its share of them, which it adds up in the order of
 * ranks, micro-batch after micro-batch; in all modes alike, so that they have the same bits. All ranks do so equally often: those
 * that have nothing (more) to compute join with zeros. After the update the new weights come back. */
#ifndef GR_SHARD_H
#define GR_SHARD_H

#include "core/model/frozen.h"
#include "peft/ranks.h"
#include "peft/recipe.h"

typedef struct gr_shard {
    gr_params *params; /* of which something is sharded; NULL: nothing is */
    /* With GR_SHARDED_VALUES and a shared base: the layer in the places of even, of odd and of early ones, or on its way there
     * until a mark; the layer that was read last; the last of all. */
    int64_t here[3], before, last;
    gr_mark arrives[3];
    /* Without GR_SHARDED_VALUES, where exchanges go beside the compute queue: the model that reads the values, and until when those
     * of layer i - 1 are on their way after an update, 0: they are there; NULL: nothing is awaited layer by layer. */
    gr_model *reader;
    gr_mark *comes;  /* [n_layers + 2] */
    int64_t leaving; /* the layer whose gradients are on their way until a mark, and not added up yet */
    gr_mark left;
    bool reads;      /* rank 0 reads, the others serve */
    gr_model *model; /* whose frozen matrices are shared out; NULL: they are not */
    gr_mover move;
    float *parts;    /* device memory: a share of the largest layer's gradients of each rank */
    int64_t stride;  /* floats of such a share */
    graft_status st; /* of what hooks did; after a failure they do nothing any more */
    graft_error err;
} gr_shard;

/* The parts of a rank of so many where ranks keep shares of what `sharding` says, which is not auto. false: the recipe goes with no
 * such sharding; of one that names it, recipe_check.c has said why. */
bool gr_shard_form(gr_params_form *form, const gr_recipe *r, enum gr_recipe_train_sharding sharding, int rank, int size);

/* Bytes of the device's memory that init would take for a set of parameters, also of a plan; 0: nothing is sharded. */
int64_t gr_shard_bytes(const gr_params *p);
/* Do so many ranks share out a frozen base then? */
bool gr_shard_has_base(const gr_recipe *r, enum gr_recipe_train_sharding sharding, int ranks);
/* m: the model that is run with p. */
graft_status gr_shard_init(gr_shard *s, gr_comm *comm, gr_params *p, gr_model *m, graft_error *err);
/* After that: the frozen matrices of a model, where they are shared out (gr_frozen_share), are brought when it is run. */
graft_status gr_shard_init_base(gr_shard *s, gr_comm *comm, gr_model *m, graft_error *err);
/* Must all ranks run equally many batches? */
static inline bool gr_shard_in_step(const gr_shard *s) { return s->move.comm != NULL; }
void gr_shard_release(gr_shard *s);
/* The layer's gradients are whole: they go to params->sum, and their place becomes zero; with form.turns by the time when those of
 * the next layer are whole, and of the embedding, which is last, at once. */
void gr_shard_reduce(gr_shard *s, int64_t layer);
/* After an update of params: the weights of all ranks' parts are here, or will be when they are brought (gr_model_bring, which also
 * makes the forms of a layer anew). */
graft_status gr_shard_renew(gr_shard *s, graft_error *err);
/* st, or what hooks met. */
graft_status gr_shard_status(const gr_shard *s, graft_status st, graft_error *err);

/* Rank 0 reads whole tensors (gr_params_read) between begin and end; the others serve it meanwhile: their begin returns when rank 0
 * has come to its end. what: is written of them. mine: how that went; they learn of it. */
graft_status gr_shard_begin_reading(gr_shard *s, const char *what, graft_error *err);
graft_status gr_shard_end_reading(gr_shard *s, const char *what, graft_status mine, graft_error *err);

#endif
