/* store.h - inside core/data: tokens on disk, for data that is larger than memory and for the ranks of a host, which share one
 * copy. A block is a sample, or a stretch of a stream of texts. A folder holds
 *   shard-000000.h5 ...  sealed (core/io/h5.h): /ids int32 and /target uint8 of whole blocks one after the other, /offset int64 and
 *                        /source int32 of these blocks, and what making the next shard begins with: /open_ids, /open_target, the
 *                        attributes next_source, next, and what was left out so far;
 *   index.h5             sealed, written last: /offset, /source and /learned of all blocks, /sum of all chunks, /shards: first
 *                        block, first chunk, size in bytes, and where ids and target lie in the file; /remarks.
 * The index is read whole (16 bytes a block); a block is read when it is wanted, from its place in the shard. Checksums are of
 * chunks, GR_STORE_CHUNK ids of a shard and their targets: a block is read with all of the chunks in which it lies, which prove
 * themselves by their sums in the index: libhdf5 never sees a shard whose seal was not checked. */
#ifndef GR_STORE_H
#define GR_STORE_H

#include "core/data/dataset.h"

enum { GR_STORE_CHUNK = 8192 }; /* 40 KiB: little beside a step, 1 MiB of sums for a thousand million tokens */

/* What was left out or cut while the blocks were made. */
typedef struct gr_store_left {
    gr_losses lost;
    int64_t n_empty;
} gr_store_left;

/* What is in a store. offset [n_blocks+1] counts ids over all blocks. */
typedef struct gr_store {
    int64_t n_blocks, n_shards, n_sums;
    int64_t *offset;
    int32_t *source;  /* [n_blocks], blocks of a source lie together */
    int32_t *learned; /* [n_blocks] ids of it that are GR_TARGET_LEARNED, behind its first */
    int64_t *sum;     /* [n_sums] XXH3-64 of a chunk's ids, going on over its targets */
    int64_t *shards;  /* [n_shards, 5]: first block, first chunk, bytes of the file, places of ids and target */
    gr_store_left left;
    int32_t max_id;
    char *remarks; /* as in gr_dataset, NULL: none */
    char *folder;
} gr_store;

/* *out NULL: there is none, or what is there is damaged or of another making, which is said in a warning. */
graft_status gr_store_open(gr_store **out, const char *folder, int n_sources, int64_t n_vocab, graft_error *err);
void gr_store_free(gr_store *s);
/* ids[n] and target[n] of a block, n = offset[block+1] - offset[block], from buffer->ids and buffer->target [*skip] on. Any thread,
 * each with a buffer of its own. BAD_INPUT naming the file where it is damaged: its index is removed then, so that gr_store_begin
 * keeps what is whole and the rest is made again. */
graft_status gr_store_read(const gr_store *s, int64_t block, gr_tokens *buffer, int64_t *skip, graft_error *err);

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
    gr_store_left left;        /* so far */
} gr_store_part;

typedef struct gr_store_writer gr_store_writer;
/* What a shard that lies there may hold at most. */
typedef struct gr_store_limits {
    int n_sources;
    int64_t n_vocab, block; /* ids of a block, at most */
} gr_store_limits;
/* Begin in folder (which is made), or go on behind the shards that lie there whole: *part is where making goes on, without blocks;
 * its n_open ids are the writer's. */
graft_status gr_store_begin(gr_store_writer **out, const char *folder, const gr_store_limits *most, gr_store_part *part,
                            graft_error *err);
/* The part is copied and written by a thread of the writer's, beside what the caller does next: that it could not be is told by the
 * next call, or by the end. The caller leaves libhdf5 alone until then. */
graft_status gr_store_add(gr_store_writer *w, const gr_store_part *part, graft_error *err);
/* Write the index: the store is whole. */
graft_status gr_store_end(gr_store_writer *w, const gr_store_left *left, const char *remarks, graft_error *err);
bool gr_store_writer_empty(const gr_store_writer *w); /* no block yet */
void gr_store_writer_free(gr_store_writer *w);        /* shards that were written stay, for the next time */

#endif
