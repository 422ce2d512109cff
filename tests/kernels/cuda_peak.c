/* cuda_peak.c - compiled as a library that is loaded before CUDA's runtime (LD_PRELOAD): when the program ends, the most bytes of
 * a card that it had from cudaMalloc at one time go to the file named by CUDA_PEAK, as asked for and in cudaMalloc's pages. Plain
 * C: the runtime's header need not be there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/shape.h"

enum { MOST = 65536 };

static struct {
    void *at;
    size_t bytes;
} piece[MOST];
static int n_pieces;
static long long now, now_pages, peak, peak_pages;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void add(long long bytes, int sign) {
    now += sign * bytes, now_pages += sign * gr_cuda_pages(bytes);
    if (now > peak) peak = now;
    if (now_pages > peak_pages) peak_pages = now_pages;
}

int cudaMalloc(void **p, size_t bytes);
int cudaMalloc(void **p, size_t bytes) {
    int (*next)(void **, size_t) = (int (*)(void **, size_t))dlsym(RTLD_NEXT, "cudaMalloc"), e = next(p, bytes);
    pthread_mutex_lock(&lock);
    if (e == 0 && n_pieces < MOST) piece[n_pieces].at = *p, piece[n_pieces++].bytes = bytes, add((long long)bytes, 1);
    pthread_mutex_unlock(&lock);
    return e;
}

int cudaFree(void *p);
int cudaFree(void *p) {
    int (*next)(void *) = (int (*)(void *))dlsym(RTLD_NEXT, "cudaFree");
    pthread_mutex_lock(&lock);
    for (int i = 0; p && i < n_pieces; i++)
        if (piece[i].at == p) {
            add((long long)piece[i].bytes, -1);
            piece[i] = piece[--n_pieces];
            break;
        }
    pthread_mutex_unlock(&lock);
    return next(p);
}

static void __attribute__((destructor)) tell(void) {
    FILE *f = getenv("CUDA_PEAK") && peak > 0 ? fopen(getenv("CUDA_PEAK"), "w") : NULL;
    if (!f) return;
    fprintf(f, "%lld %lld\n", peak, peak_pages);
    fclose(f);
}
