/* sums.h - inside core/data: what the bytes of files are, remembered between runs, so that a corpus is not read to know that it is
 * the same. The folder of the cache has for each large source a sealed table (core/io/h5.h) of its files: path, size, times of
 * change of contents and of the inode (ns), device, inode, and XXH3-128 of the bytes. */
#ifndef GR_SUMS_H
#define GR_SUMS_H

#include "core/base/base.h"

typedef struct gr_file_sum {
    uint64_t high, low; /* XXH3-128 */
} gr_file_sum;

/* sums[n] of the files of a source. A file is read unless the table has it and all that it says beside the sum is as the system
 * tells it now; a table that is damaged or of another making says nothing. One is written where the files have `from` bytes or more
 * together (0: 64 MiB), without files that changed while they were read or less than two seconds before: a later change could leave
 * their times. folder NULL: no table; one that cannot be written is a warning. BAD_INPUT: a file that cannot be read. */
graft_status gr_file_sums(gr_file_sum *sums, char *const *files, int64_t n, const char *source, const char *folder, int64_t from,
                          graft_error *err);

#endif
