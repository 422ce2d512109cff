/* memory.h - what this process holds and what the system can still give, in bytes. */
#ifndef GR_MEMORY_H
#define GR_MEMORY_H

#include <stdint.h>

/* Resident memory of this process now, mapped files that were read included. */
int64_t gr_memory_resident(void);
/* What can still be taken without driving others out: MemAvailable, or less where control groups (version 1
 * or 2) leave less. *by_cgroup (may be NULL): 1 when such a limit decides. */
int64_t gr_memory_available(int *by_cgroup);
/* Free bytes for this user on the file system of path, or of its nearest folder that exists; -1 when that cannot be told. */
int64_t gr_disk_free(const char *path);

#endif
