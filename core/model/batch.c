#include "core/model/batch.h"

#include <stdlib.h>

/* The finaliser of splitmix64: neighbouring inputs give unrelated outputs. */
static uint64_t mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static bool grow_to(void *array_ptr, int64_t capacity, int64_t need, int64_t size) {
    return gr_grow(array_ptr, &capacity, need, size); /* the caller's capacity moves once all arrays have grown */
}

static graft_status reserve(gr_batch *b, int64_t rows, graft_error *err) {
    if (rows > b->capacity) {
        int64_t grown = GR_MAX(rows, 2 * b->capacity), old = b->capacity;
        if (!grow_to(&b->tokens, old, grown, sizeof *b->tokens) || !grow_to(&b->targets, old, grown, sizeof *b->targets) ||
            !grow_to(&b->weight, old, grown, sizeof *b->weight) || !grow_to(&b->positions, old, grown, sizeof *b->positions) ||
            !grow_to(&b->row_key, old, grown, sizeof *b->row_key))
            return gr_fail_memory(err, "batch");
        b->capacity = grown;
    }
    if (!gr_grow(&b->offset, &b->seq_capacity, b->n_seqs + 2, sizeof *b->offset)) return gr_fail_memory(err, "batch");
    return GRAFT_OK;
}

graft_status gr_batch_append(gr_batch *b, const int32_t *ids, const uint8_t *target, int64_t n, uint64_t key, graft_error *err) {
    GR_ASSERT(n >= 0 && n <= INT32_MAX);
    graft_status st = reserve(b, b->n + n, err);
    if (st != GRAFT_OK) return st;
    for (int64_t i = 0; i < n; i++) {
        int64_t row = b->n + i;
        bool last = i + 1 == n, trained = !last && target && target[i + 1] == GR_TARGET_LEARNED;
        b->tokens[row] = ids[i];
        b->targets[row] = last ? 0 : ids[i + 1];
        b->weight[row] = trained ? 1.0f : 0.0f;
        b->positions[row] = (int32_t)i;
        b->row_key[row] = mix(key ^ mix((uint64_t)i));
        b->n_targets += trained;
    }
    b->offset[b->n_seqs] = b->n;
    b->n += n;
    b->offset[++b->n_seqs] = b->n;
    return GRAFT_OK;
}

graft_status gr_batch_fill(gr_batch *b, const gr_dataset *d, const int64_t *idx, int64_t n_samples, int64_t epoch,
                           graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t rows = 0;
    gr_batch_clear(b);
    for (int64_t i = 0; i < n_samples; i++) {
        GR_ASSERT(idx[i] >= 0 && idx[i] < d->n_samples);
        rows += d->offset[idx[i] + 1] - d->offset[idx[i]];
    }
    GR_TRY(reserve(b, rows, err));
    for (int64_t i = 0; i < n_samples; i++) {
        const int32_t *ids;
        const uint8_t *target;
        int64_t n = d->offset[idx[i] + 1] - d->offset[idx[i]];
        uint64_t key = mix((uint64_t)idx[i] ^ mix((uint64_t)epoch));
        GR_TRY(gr_dataset_read(d, idx[i], &b->tokens_read, &ids, &target, err));
        for (int64_t start = 0, end; start < n; start = end) {
            for (end = start + 1; end < n && target[end] != GR_TARGET_START;) end++;
            GR_TRY(gr_batch_append(b, ids + start, target + start, end - start, start ? key ^ mix((uint64_t)start) : key, err));
        }
    }
done:
    return st;
}

void gr_batch_clear(gr_batch *b) { b->n = b->n_seqs = b->n_targets = 0; }

void gr_batch_release(gr_batch *b) {
    if (!b) return;
    free(b->tokens);
    free(b->targets);
    free(b->weight);
    free(b->positions);
    free(b->row_key);
    free(b->offset);
    gr_tokens_release(&b->tokens_read);
    *b = (gr_batch){0};
}
