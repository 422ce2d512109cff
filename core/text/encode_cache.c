#include "core/text/encode_cache.h"

#include <stdatomic.h>
#include <stdlib.h>

enum { IDLE_CACHES = 64 };

struct gr_cache_pool {
    _Atomic(gr_word_cache *) idle[IDLE_CACHES];
};

gr_cache_pool *gr_cache_pool_new(void) { return gr_calloc(1, sizeof(gr_cache_pool)); }

void gr_cache_pool_free(gr_cache_pool *pool) {
    for (int i = 0; pool && i < IDLE_CACHES; i++) free(pool->idle[i]);
    free(pool);
}

gr_word_cache *gr_cache_take(gr_cache_pool *pool) {
    for (int i = 0; i < IDLE_CACHES; i++) {
        gr_word_cache *cache = atomic_exchange_explicit(&pool->idle[i], NULL, memory_order_acquire);
        if (cache) return cache;
    }
    return gr_alloc_aligned(sizeof(gr_word_cache));
}

void gr_cache_give(gr_cache_pool *pool, gr_word_cache *cache) {
    for (int i = 0; i < IDLE_CACHES; i++) {
        gr_word_cache *none = NULL;
        if (atomic_compare_exchange_strong_explicit(&pool->idle[i], &none, cache, memory_order_release, memory_order_relaxed))
            return;
    }
    free(cache);
}
