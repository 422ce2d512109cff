/* open.h - the one function that libgraft_cuda.so shows. */
#ifndef GR_CUDA_OPEN_H
#define GR_CUDA_OPEN_H

#include "kernels/kernels.h"

/* A device on card `index`; < 0: of rank -1 - index, modulo the number of cards. abi: GR_ABI of the caller, a hash of the headers
 * that both sides were built with; another one is refused. NULL and why[size] on failure. */
__attribute__((visibility("default"))) gr_device *gr_backend_open(const char *abi, int index, char *why, size_t size);
typedef gr_device *gr_backend_open_fn(const char *abi, int index, char *why, size_t size);

#endif
