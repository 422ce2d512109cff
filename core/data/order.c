/* order.c - which samples an epoch takes and in which order, and the split into two sets: functions of seeds alone. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/data/mix.h"
#include "kernels/philox.h"

/* Fisher-Yates; the numbers are keyed by (seed, purpose, stream, place). */
static void shuffle(int64_t *items, int64_t n, uint64_t seed, uint32_t purpose, uint64_t stream) {
    for (int64_t i = n - 1; i > 0; i--) {
        uint32_t random[4];
        gr_philox(random, seed, purpose, stream, (uint64_t)i);
        uint64_t wide = (uint64_t)random[0] << 32 | random[1];
        int64_t k = (int64_t)(((unsigned __int128)wide * (uint64_t)(i + 1)) >> 64), swapped = items[i];
        items[i] = items[k];
        items[k] = swapped;
    }
}

void gr_shuffle(int64_t *items, int64_t n, uint64_t seed, uint64_t stream) { shuffle(items, n, seed, GR_PURPOSE_SHUFFLE, stream); }

/* The samples of one source that a fractional weight adds in this epoch: a window that wanders, epoch after
 * epoch, over a fixed shuffled circle of them, so that 0.5 takes one half and next time the other. */
static graft_status add_fraction(int32_t *count, const gr_dataset *d, int64_t first, int64_t n, double fraction, uint64_t seed,
                                 int64_t epoch, graft_error *err) {
    int64_t *circle = gr_calloc(n, sizeof *circle);
    if (!circle) return gr_fail_memory(err, "order of samples");
    for (int64_t i = 0; i < n; i++) circle[i] = first + i;
    shuffle(circle, n, seed, GR_PURPOSE_SPLIT, (uint64_t)d->source[first]);
    int64_t start = (int64_t)floor((double)epoch * fraction * (double)n + 0.5);
    int64_t end = (int64_t)floor((double)(epoch + 1) * fraction * (double)n + 0.5);
    for (int64_t i = start; i < end; i++) count[circle[i % n]]++;
    free(circle);
    return GRAFT_OK;
}

/* How often each sample occurs in this epoch. The samples of a source lie together. */
static graft_status count_samples(int32_t *count, const gr_dataset *d, uint64_t seed, int64_t epoch, graft_error *err) {
    for (int64_t first = 0, n; first < d->n_samples; first += n) {
        double weight = d->weight[d->source[first]], whole = floor(weight);
        for (n = 0; first + n < d->n_samples && d->source[first + n] == d->source[first]; n++) count[first + n] = (int32_t)whole;
        if (weight == whole) continue;
        graft_status st = add_fraction(count, d, first, n, weight - whole, seed, epoch, err);
        if (st != GRAFT_OK) return st;
    }
    return GRAFT_OK;
}

graft_status gr_dataset_order(const gr_dataset *d, uint64_t seed, int64_t epoch, bool shuffled, int64_t **order, int64_t *n,
                              graft_error *err) {
    graft_status st = GRAFT_OK;
    if (d->share) return gr_mix_order(d, seed, epoch, shuffled, order, n, err);
    int64_t total = 0, at = 0, *list = NULL;
    int32_t most = 0, *count = gr_calloc(d->n_samples, sizeof *count);
    if (!count) return gr_fail_memory(err, "order of samples");
    GR_TRY(count_samples(count, d, seed, epoch, err));
    for (int64_t i = 0; i < d->n_samples; i++) total += count[i], most = GR_MAX(most, count[i]);
    list = gr_calloc(GR_MAX(total, 1), sizeof *list);
    if (!list) GR_TRY(gr_fail_memory(err, "order of samples"));
    for (int32_t round = 0; round < most; round++) /* file order, repeated samples in a second pass */
        for (int64_t i = 0; i < d->n_samples; i++)
            if (count[i] > round) list[at++] = i;
    if (shuffled) shuffle(list, total, seed, GR_PURPOSE_SHUFFLE, (uint64_t)epoch);
    *order = list;
    *n = total;
done:
    free(count);
    return st;
}

/* Copy the samples i with chosen[i] == which to `to`, which may be d itself (ids only move to the left). */
static void take_samples(gr_dataset *to, const gr_dataset *d, const uint8_t *chosen, int which) {
    int64_t n = 0, n_ids = 0, n_samples = d->n_samples, start = 0, next;
    for (int64_t i = 0; i < n_samples; i++, start = next) {
        next = d->offset[i + 1]; /* read before offset[n] below may overwrite it */
        int64_t len = next - start;
        if (chosen[i] != which) continue;
        if (d->store) {
            to->block[n] = d->block[i];
        } else {
            memmove(to->ids + n_ids, d->ids + start, (size_t)len * sizeof *d->ids);
            memmove(to->target + n_ids, d->target + start, (size_t)len);
        }
        to->source[n] = d->source[i];
        n_ids += len;
        to->offset[++n] = n_ids;
    }
    to->offset[0] = 0;
    to->n_samples = n;
    to->n_targets = 0;
    for (int64_t i = 0; i < n; i++) to->n_targets += gr_dataset_targets(to, i);
}

static graft_status split_memory(gr_dataset *e, const gr_dataset *d, int64_t n_eval, int64_t n_ids, graft_error *err) {
    e->offset = gr_calloc(n_eval + 1, sizeof *e->offset);
    e->source = gr_calloc(n_eval, sizeof *e->source);
    e->weight = gr_calloc(d->n_sources, sizeof *e->weight);
    if (d->store) {
        e->block = gr_calloc(n_eval, sizeof *e->block);
        e->store = d->store, e->borrowed = true;
    } else {
        e->ids = gr_calloc(n_ids, sizeof *e->ids);
        e->target = gr_calloc(n_ids, sizeof *e->target);
    }
    bool tokens = d->store ? e->block != NULL : e->ids && e->target;
    return e->offset && e->source && e->weight && tokens ? GRAFT_OK : gr_fail_memory(err, "split");
}

graft_status gr_dataset_split(gr_dataset *d, double share, uint64_t seed, gr_dataset **eval, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t n = d->n_samples, n_ids = 0, *list = NULL;
    uint8_t *chosen = NULL;
    gr_dataset *e = NULL;
    *eval = NULL;
    if (!(share > 0 && share < 1)) return gr_fail(err, GRAFT_BAD_USAGE, "data.eval: a share is between 0 and 1, this is %g", share);
    if (n < 2) {
        gr_warn("data.eval: a single sample cannot be split: it is trained, nothing is evaluated");
        return GRAFT_OK;
    }
    int64_t n_eval = GR_MIN(n - 1, GR_MAX(1, (int64_t)floor(share * (double)n + 0.5)));
    list = gr_calloc(n, sizeof *list);
    chosen = gr_calloc(n, sizeof *chosen);
    e = gr_calloc(1, sizeof *e);
    if (!list || !chosen || !e) GR_TRY(gr_fail_memory(err, "split"));
    for (int64_t i = 0; i < n; i++) list[i] = i;
    shuffle(list, n, seed, GR_PURPOSE_SPLIT, UINT64_MAX); /* a stream that no source has */
    for (int64_t i = 0; i < n_eval; i++) {
        chosen[list[i]] = 1;
        n_ids += d->offset[list[i] + 1] - d->offset[list[i]];
    }
    GR_TRY(split_memory(e, d, n_eval, n_ids, err));
    for (int i = 0; i < d->n_sources; i++) e->weight[i] = 1; /* evaluation takes each sample once */
    e->n_sources = d->n_sources;
    e->from_cache = d->from_cache;
    e->attention = d->attention;
    take_samples(e, d, chosen, 1);
    take_samples(d, d, chosen, 0);
    e->key = d->key ^ 0x9E3779B97F4A7C15u ^ seed; /* the two differ from each other and from the whole */
    d->key = e->key + (uint64_t)n_eval;
    *eval = e;
    e = NULL;
done:
    gr_dataset_free(e);
    free(list);
    free(chosen);
    return st;
}
