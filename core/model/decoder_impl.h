/* decoder_impl.h - what decoder.c and decoder_plan.c share: the buffers of a step. Letters as in kernels/ops.def. */
#ifndef GR_DECODER_IMPL_H
#define GR_DECODER_IMPL_H

#include "core/model/decoder.h"

/* What backward reads of one layer. Buffers that are computed again are shared by all layers. The stream (x, xmid) and
 * logits are float, branches have the device's type of activations. */
typedef struct gr_layer_acts {
    gr_rows x;                  /* [n,C] residual at the layer's input */
    float *rstd1;               /* [n] */
    gr_rows n1;                 /* [n,C] input_norm(x) */
    gr_rows qkv;                /* [n,(H+2K)D] q | k | v after rope */
    gr_rows qk;                 /* [n,(H+K)D] q | k before their norms */
    float *rstd_q, *rstd_k;     /* [n,H], [n,K] */
    gr_rows att;                /* [n,HD] */
    float *lse;                 /* [n,H] */
    gr_rows xmid;               /* [n,C] residual after attention */
    float *rstd2;               /* [n] */
    gr_rows n2;                 /* [n,C] post_norm(xmid) */
    gr_rows gu, act;            /* [n,2F] gate | up; [n,F] activated */
    gr_rows att_out, mlp_out;   /* [n,C] the branches before their norms */
    float *rstd_att, *rstd_mlp; /* [n] */
    float *h[GR_SITE_COUNT];    /* [n,sum of ranks] LoRA products */
} gr_layer_acts;

typedef struct gr_widths { /* of buffers, in elements a row */
    int64_t C, HD, KD, QKV, F, V, H, D, widest, rank[GR_SITE_COUNT], head_rank, embed_rank, max_rank;
} gr_widths;

/* A batch on the device, in one piece. The head's rows are those that have a target, or whose logits are asked for. */
typedef struct gr_device_batch {
    int64_t n, n_seqs, n_head, n_placed;
    uint64_t *row_key, *head_key;       /* [n], [n_head] randomness keys */
    gr_seq *seqs, *last_seqs;           /* [n_seqs]; with a cache: queries of the last row of each alone */
    int32_t *tokens, *positions;        /* [n] */
    int32_t *cache_row, *last_row;      /* [n] where keys and values go; [n_seqs]; with a cache alone */
    int32_t *head_row, *head_target;    /* [n_head] */
    float *head_weight, *head_gradient; /* [n_head] of the loss; of its gradient */
    int32_t *placed, *placed_row;       /* [n_placed] rows whose token has its row in the embedding's segment; which one */
} gr_device_batch;

struct gr_decoder {
    gr_model *m;
    gr_device *dev;
    gr_decoder_options o;
    gr_widths w;
    char *memory;   /* the one allocation of the step */
    void *batch[2]; /* in it: places of batches, that of gr_decoder_batches(d); staging: one on the host */
    char *staging;
    int turn;                /* which of them was uploaded last */
    gr_mark batch_read[2];   /* what reads it was given to the device before */
    float *nll_staging;      /* [head rows of a batch] on the host */
    gr_layer_acts *layers;   /* [L] */
    gr_rows x_last;          /* [n,C] output of the last layer, then the final stream */
    gr_rows last_x;          /* [n,C] not in training: the stream of the last rows of the sequences */
    gr_rows branch;          /* [n,C] of bfloat16: a branch's output; absent: it goes where the next stream will be */
    gr_rows xf;              /* [n,C] final norm */
    float *rstdf;            /* [n] */
    gr_rows logits;          /* [head_rows,V] */
    gr_rows head_x, head_dx; /* [head_rows,C] */
    float *head_h;           /* [head_rows,R] */
    float *nll;              /* [head rows of a batch] */
    int32_t *best;           /* [head rows of a batch] not in training: columns of the largest logits */
    gr_listing *list;        /* [listings] */
    int64_t head_rows;       /* of logits at once */
    void *xd, *dxd;          /* [n,widest input] a LoRA input after dropout, and its gradient */
    gr_rows embed_h, embed_y;
    gr_rows head_columns; /* [head_rows,n] logits of the head's segment, where it is no range */
    /* backward */
    gr_rows dx, dbranch;            /* [n,C] */
    gr_rows dy;                     /* [n,C] dx as products take it; absent: they take dx, or none takes it */
    gr_rows dqkv, datt, dact, dout; /* dout: of a branch before its norm */
    float *delta, *dh;
    int64_t lowest; /* layers below need no gradient; L: none needs one */
    bool embed_trains;
    bool rehearses; /* operations are noted, nothing is computed */
};

/* ---- decoder.c ---- */

/* Has the device rehearse the largest pass there will be, of `largest` rows. */
graft_status gr_decoder_rehearse(gr_decoder *d, const gr_device_batch *largest, graft_error *err);

/* ---- decoder_batch.c ---- */

/* Can the batch be run? */
graft_status gr_decoder_check(const gr_decoder *d, const gr_batch *b, graft_error *err);
/* The arrays of b in d->staging, with n_head rows for the head, which are still to be filled in. */
gr_device_batch gr_decoder_stage(gr_decoder *d, const gr_batch *b, int64_t n_head, bool cached);
/* The same: rows with a target are the head's; their gradients are scaled. */
gr_device_batch gr_decoder_stage_targets(gr_decoder *d, const gr_batch *b, float scale);
/* Places of batches: two where one is uploaded while the device works on the other. */
static inline int gr_decoder_batches(const gr_decoder *d) { return d->dev->queues ? 2 : 1; }
/* What was staged, on its way to the device: beside the work on the batch before, but with a cache, where what is asked depends on
 * that work. What is queued from now on reads it; the last of that is followed by gr_decoder_batch_read. */
gr_device_batch gr_decoder_upload(gr_decoder *d, const gr_device_batch *host, bool cached);
void gr_decoder_batch_read(gr_decoder *d);

/* ---- decoder_plan.c ---- */

/* Rows of `width` elements at data, as the device wants them. */
gr_rows gr_decoder_rows(const gr_decoder *d, void *data, int64_t width, gr_dtype type);
/* The batch's arrays at base (NULL: only measured), for p->n, n_seqs, n_head; the bytes they take. */
int64_t gr_device_batch_place(gr_device_batch *p, void *base, bool cached);

#endif
