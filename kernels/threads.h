/* threads.h - a pool of threads that runs numbered chunks. Which thread runs a chunk never changes a result: work is
 * split into fixed chunks by the caller, each writes its own outputs, partial sums are added in chunk order. */
#ifndef GR_THREADS_H
#define GR_THREADS_H

#include <stdint.h>

typedef struct gr_threads gr_threads;

/* worker is 0..n_threads-1 (for per-thread scratch only), chunk 0..n_chunks-1. */
typedef void gr_chunk_fn(void *context, int64_t chunk, int worker);

int gr_processors(void);                   /* that this process may use */
gr_threads *gr_threads_new(int n_threads); /* <= 0: one per CPU this process may use; NULL when out of resources */
void gr_threads_free(gr_threads *t);       /* NULL is fine */
int gr_threads_count(const gr_threads *t);
/* Run all chunks, each thread those of a range of its own and then what others have left; return when all are done. The calling
 * thread works too. Not reentrant. */
void gr_threads_run(gr_threads *t, int64_t n_chunks, gr_chunk_fn *fn, void *context);

#endif
