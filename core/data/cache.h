/* cache.h - inside core/data: tokenised data sets kept in HDF5 under a name that is the hash of all they depend on. */
#ifndef GR_CACHE_H
#define GR_CACHE_H

#include "core/data/dataset.h"

typedef struct gr_cache_key {
    char hex[33];  /* XXH3-128 of contents, tokenizer, template and options */
    uint64_t full; /* the same with the weights of the sources, which do not change the tokens */
} gr_cache_key;

graft_status gr_cache_make_key(gr_cache_key *key, const gr_data_options *o, const gr_tokenizer *t, const gr_chat *chat,
                               graft_error *err);
/* NULL when there is none or it is damaged (which is said in a warning). */
gr_dataset *gr_cache_load(const gr_data_options *o, const gr_cache_key *key, int64_t n_vocab);
/* A cache that cannot be written is a warning, not an error. */
void gr_cache_save(const gr_data_options *o, const gr_cache_key *key, const gr_dataset *d);

#endif
