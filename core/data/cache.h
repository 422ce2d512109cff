/* cache.h - inside core/data: the name of a tokenised set on disk: the hash of all that it depends on. */
#ifndef GR_CACHE_H
#define GR_CACHE_H

#include "core/data/dataset.h"

typedef struct gr_cache_key {
    char hex[33];  /* XXH3-128 of contents, tokenizer, template and options */
    uint64_t full; /* the same with the weights of the sources, which do not change the tokens */
} gr_cache_key;

graft_status gr_cache_make_key(gr_cache_key *key, const gr_data_options *o, const gr_tokenizer *t, const gr_chat *chat,
                               graft_error *err);

#endif
