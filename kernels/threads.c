/* threads.c - the pool. Workers spin shortly for the next job, then sleep. A run waits only for workers that joined it:
 * one that the kernel has not scheduled yet (another process has its CPU) finds the job closed and delays nobody. Every thread has
 * its own range of chunks and, when done with it, helps with the others': from job to job the same rows stay in the same core's
 * cache. */
#include "kernels/threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

enum { SPINS = 4000, THREADS_MAX = 1024 }; /* about 50 microseconds */

typedef struct worker {
    _Alignas(64) atomic_int_fast64_t next; /* chunk of its range to hand out */
    int64_t end;
    _Alignas(64) gr_threads *pool;
    pthread_t thread;
    int index; /* the caller is worker 0 */
} worker;

struct gr_threads {
    int n;
    worker *workers; /* [n] */
    /* the job: written by the caller while it is closed and nobody is inside */
    gr_chunk_fn *fn;
    void *context;
    _Alignas(64) atomic_uint generation; /* counts jobs */
    atomic_bool open, stop;
    atomic_int sleepers;            /* workers in, or about to enter, pthread_cond_wait */
    _Alignas(64) atomic_int inside; /* workers that may be touching the job */
    atomic_bool caller_sleeps;
    pthread_mutex_t mutex;
    pthread_cond_t start, done;
};

static inline void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void work(gr_threads *t, int index) {
    for (int i = 0; i < t->n; i++) {
        worker *owner = &t->workers[(index + i) % t->n];
        while (atomic_load_explicit(&owner->next, memory_order_relaxed) < owner->end) {
            int64_t chunk = atomic_fetch_add_explicit(&owner->next, 1, memory_order_relaxed);
            if (chunk < owner->end) t->fn(t->context, chunk, index);
        }
    }
}

/* inside++ then read open here, open = false then read inside in gr_threads_run: with sequential consistency at
 * least one side sees the other. */
static void join_job(gr_threads *t, int index) {
    atomic_fetch_add(&t->inside, 1);
    if (atomic_load(&t->open)) work(t, index);
    if (atomic_fetch_sub(&t->inside, 1) == 1 && atomic_load(&t->caller_sleeps)) {
        pthread_mutex_lock(&t->mutex);
        pthread_cond_signal(&t->done);
        pthread_mutex_unlock(&t->mutex);
    }
}

static void *worker_main(void *argument) {
    worker *w = argument;
    gr_threads *t = w->pool;
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load_explicit(&t->generation, memory_order_acquire) == seen; i++) pause_cpu();
        if (atomic_load(&t->generation) == seen) {
            pthread_mutex_lock(&t->mutex);
            atomic_fetch_add(&t->sleepers, 1);
            while (atomic_load(&t->generation) == seen) pthread_cond_wait(&t->start, &t->mutex);
            atomic_fetch_sub(&t->sleepers, 1);
            pthread_mutex_unlock(&t->mutex);
        }
        seen = atomic_load(&t->generation);
        if (atomic_load(&t->stop)) return NULL;
        join_job(t, w->index);
    }
}

static void announce(gr_threads *t) {
    atomic_fetch_add(&t->generation, 1);
    if (atomic_load(&t->sleepers) == 0) return;
    pthread_mutex_lock(&t->mutex);
    pthread_cond_broadcast(&t->start);
    pthread_mutex_unlock(&t->mutex);
}

int gr_processors(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 && n < THREADS_MAX ? (int)n : 1;
}

gr_threads *gr_threads_new(int n_threads) {
    if (n_threads <= 0) n_threads = gr_processors();
    if (n_threads > THREADS_MAX) n_threads = THREADS_MAX;
    gr_threads *t = aligned_alloc(64, (sizeof *t + 63) / 64 * 64);
    if (!t) return NULL;
    *t = (gr_threads){.n = 1};
    t->workers = aligned_alloc(64, (size_t)n_threads * sizeof *t->workers);
    if (!t->workers) {
        free(t);
        return NULL;
    }
    for (int i = 0; i < n_threads; i++) t->workers[i] = (worker){.pool = t, .index = i};
    pthread_mutex_init(&t->mutex, NULL);
    pthread_cond_init(&t->start, NULL);
    pthread_cond_init(&t->done, NULL);
    for (; t->n < n_threads; t->n++) {
        worker *w = &t->workers[t->n];
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
            gr_threads_free(t);
            return NULL;
        }
    }
    return t;
}

void gr_threads_free(gr_threads *t) {
    if (!t) return;
    atomic_store(&t->stop, true);
    announce(t);
    for (int i = 1; i < t->n; i++) pthread_join(t->workers[i].thread, NULL);
    pthread_cond_destroy(&t->done);
    pthread_cond_destroy(&t->start);
    pthread_mutex_destroy(&t->mutex);
    free(t->workers);
    free(t);
}

int gr_threads_count(const gr_threads *t) { return t->n; }

static void wait_until_empty(gr_threads *t) {
    for (int i = 0; i < SPINS && atomic_load_explicit(&t->inside, memory_order_acquire) != 0; i++) pause_cpu();
    if (atomic_load(&t->inside) == 0) return;
    pthread_mutex_lock(&t->mutex);
    atomic_store(&t->caller_sleeps, true);
    while (atomic_load(&t->inside) != 0) pthread_cond_wait(&t->done, &t->mutex);
    atomic_store(&t->caller_sleeps, false);
    pthread_mutex_unlock(&t->mutex);
}

void gr_threads_run(gr_threads *t, int64_t n_chunks, gr_chunk_fn *fn, void *context) {
    if (t->n == 1 || n_chunks <= 1) {
        for (int64_t i = 0; i < n_chunks; i++) fn(context, i, 0);
        return;
    }
    t->fn = fn, t->context = context;
    for (int i = 0; i < t->n; i++) {
        atomic_store_explicit(&t->workers[i].next, n_chunks * i / t->n, memory_order_relaxed);
        t->workers[i].end = n_chunks * (i + 1) / t->n;
    }
    atomic_store(&t->open, true);
    announce(t);
    work(t, 0);
    atomic_store(&t->open, false);
    wait_until_empty(t);
}
