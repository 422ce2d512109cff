/* store.h - inside core/data: blocks of tokens on disk, for data that is larger than memory. A folder holds
 *   shard-000000.h5 ...  sealed (core/io/h5.h): /ids int32 and /target uint8 of whole blocks one after the other, /offset int64 and
 *                        /source int32 of these blocks, and what making the next shard begins with: /open_ids, /open_target, the
 *                        attributes source, next, n_empty;
 *   index.h5             sealed, written last: /offset, /source, /documents and /sum of all blocks, /shards: first block, size in
 *                        bytes, and where ids and target lie in the file; /remarks.
 * The index is read whole (32 bytes a block); a block is read when it is wanted, from its place in the shard, and proves itself
 * by its checksum in the index: libhdf5 never sees a shard whose seal was not checked. */
#ifndef GR_STORE_H
#define GR_STORE_H

#include "core/base/base.h"

/* What is in a store. offset [n_blocks+1] counts ids over all blocks. */
typedef struct gr_store {
    int64_t n_blocks, n_shards;
    int64_t *offset;
    int32_t *source;    /* [n_blocks], blocks of a source lie together */
    int32_t *documents; /* [n_blocks] that begin in it after its first id */
    int64_t *sum;       /* [n_blocks] XXH3-64 of its ids, going on over its targets */
    int64_t *shards;    /* [n_shards, 4]: first block, bytes of the file, places of ids and target */
    int64_t n_empty;
    int32_t max_id;
    char *remarks; /* as in gr_dataset, NULL: none */
    char *folder;
} gr_store;

/* *out NULL: there is none, or what is there is damaged or of another making, which is said in a warning. */
graft_status gr_store_open(gr_store **out, const char *folder, int n_sources, int64_t n_vocab, graft_error *err);
void gr_store_free(gr_store *s);
/* ids[n] and target[n] of a block, n = offset[block+1] - offset[block]. Any thread. BAD_INPUT naming the file where it is
 * damaged: its index is removed then, so that gr_store_begin keeps what is whole and the rest is made again. */
graft_status gr_store_read(const gr_store *s, int64_t block, int32_t *ids, uint8_t *target, graft_error *err);

/* ---- making one ---- */

/* Blocks that go into one shard, and where making goes on behind them. */
typedef struct gr_store_part {
    int64_t n_blocks;
    const int64_t *offset; /* [n_blocks+1] from 0 */
    const int32_t *source; /* [n_blocks] */
    const int32_t *ids;    /* [offset[n_blocks] + n_open] */
    const uint8_t *target;
    int64_t n_open;            /* ids behind the last block, of one that is not whole yet */
    int64_t next_source, next; /* the sample that comes next */
    int64_t n_empty;           /* samples left out so far */
} gr_store_part;

typedef struct gr_store_writer gr_store_writer;
/* What a shard that lies there may hold at most. */
typedef struct gr_store_limits {
    int n_sources;
    int64_t n_vocab, block; /* ids of a block */
} gr_store_limits;
/* Begin in folder (which is made), or go on behind the shards that lie there whole: *part is where making goes on, without blocks;
 * its n_open ids are the writer's. */
graft_status gr_store_begin(gr_store_writer **out, const char *folder, const gr_store_limits *most, gr_store_part *part,
                            graft_error *err);
graft_status gr_store_add(gr_store_writer *w, const gr_store_part *part, graft_error *err);
/* Write the index: the store is whole. */
graft_status gr_store_end(gr_store_writer *w, int64_t n_empty, const char *remarks, graft_error *err);
bool gr_store_writer_empty(const gr_store_writer *w); /* no block yet */
void gr_store_writer_free(gr_store_writer *w);        /* shards that were written stay, for the next time */

#endif
