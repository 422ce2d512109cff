/* fuzz_file.h - what fuzz targets of file formats share: the input as a file in memory, and reading what came
 * out. */
#ifndef GR_FUZZ_FILE_H
#define GR_FUZZ_FILE_H

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A file that holds the input; close the descriptor to drop it. */
static inline int fuzz_file(char path[64], const uint8_t *data, size_t size) {
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    GR_ASSERT(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, 64, "/proc/self/fd/%d", fd);
    return fd;
}

/* Reads every byte, so that a sanitizer sees one that is not there. */
static inline void fuzz_touch(const void *data, int64_t bytes) {
    volatile uint8_t sink = 0;
    for (int64_t i = 0; i < bytes; i++) sink = ((const uint8_t *)data)[i];
    (void)sink;
}

#endif
