/* samples.h - inside core/data: samples of a file as ids with what is learned of them, many at a time. */
#ifndef GR_SAMPLES_H
#define GR_SAMPLES_H

#include "core/data/reader.h"

enum {
    GR_CHUNK_SAMPLES = 16, /* what a thread tokenises at a time */
    GR_ROUND_CHUNKS = 64   /* chunks between two appends to the data set: bounds the memory beside it */
};

/* The tokens of up to GR_CHUNK_SAMPLES samples, by one thread. */
typedef struct gr_chunk {
    gr_ids ids;
    uint8_t *target; /* [ids.n] of gr_target; pretrain: START where a document begins, else LEARNED */
    int64_t *len;    /* [n] */
    int64_t target_capacity, len_capacity, n, n_empty;
    bool continues; /* the sample that is put now: part of a document that has begun */
    gr_losses lost;
    graft_status st;
    graft_error err;
} gr_chunk;

typedef struct gr_encoding {
    const gr_reader *r;
    const gr_data_options *o;
    const gr_tokenizer *t;
    const gr_chat *chat; /* NULL: raw text only */
    int64_t first, n;    /* samples of this round */
    gr_chunk chunks[GR_ROUND_CHUNKS];
} gr_encoding;

gr_encoding *gr_encoding_new(const gr_data_options *o, const gr_tokenizer *t, const gr_chat *chat); /* NULL: out of memory */
void gr_encoding_free(gr_encoding *j);
/* A gr_chunk_fn of a gr_encoding: samples of chunk `index` of the round to chunks[index]; the first failing sample is in its st and
 * err. */
void gr_encode_chunk(void *context, int64_t index, int worker);

#endif
