/* tokens.c - the tokens of a data set, in memory or in a store. */
#include <stdlib.h>
#include <string.h>

#include "core/data/dataset.h"
#include "core/data/store.h"

void gr_tokens_release(gr_tokens *t) {
    free(t->ids);
    free(t->target);
    *t = (gr_tokens){0};
}

graft_status gr_dataset_read(const gr_dataset *d, int64_t i, gr_tokens *buffer, const int32_t **ids, const uint8_t **target,
                             graft_error *err) {
    int64_t n = d->offset[i + 1] - d->offset[i], skip = 0;
    if (!d->store) {
        *ids = d->ids + d->offset[i], *target = d->target + d->offset[i];
        return GRAFT_OK;
    }
    graft_status st = gr_store_read(d->store, d->block[i], buffer, &skip, err);
    if (st != GRAFT_OK) return st;
    uint8_t *marks = buffer->target + skip;
    for (int64_t k = 0; k < n && d->attention == GR_ATTENTION_ACROSS; k++)
        if (marks[k] == GR_TARGET_START) marks[k] = GR_TARGET_LEARNED;
    *ids = buffer->ids + skip, *target = marks;
    return GRAFT_OK;
}

int64_t gr_dataset_targets(const gr_dataset *d, int64_t i) {
    int64_t start = d->offset[i], end = d->offset[i + 1], count = 0;
    if (d->store) return d->attention == GR_ATTENTION_ACROSS ? end - start - 1 : d->store->learned[d->block[i]];
    for (int64_t k = start + 1; k < end; k++) count += d->target[k] == GR_TARGET_LEARNED;
    return count;
}

int64_t gr_dataset_bytes(const gr_dataset *d) {
    int64_t of_sample = (int64_t)(sizeof *d->offset + sizeof *d->source), of_id = (int64_t)(sizeof *d->ids + sizeof *d->target);
    if (!d->store) return d->offset[d->n_samples] * of_id + d->n_samples * of_sample;
    int64_t index = d->borrowed ? 0
                                : d->store->n_blocks * (int64_t)(sizeof *d->store->offset + sizeof *d->store->learned) +
                                      d->store->n_sums * (int64_t)sizeof *d->store->sum;
    return index + d->n_samples * (of_sample + (int64_t)sizeof *d->block);
}

void gr_dataset_free(gr_dataset *d) {
    if (!d) return;
    if (!d->borrowed) gr_store_free(d->store);
    free(d->block);
    free(d->share);
    free(d->offset);
    free(d->ids);
    free(d->target);
    free(d->source);
    free(d->weight);
    free(d->remarks);
    free(d);
}
