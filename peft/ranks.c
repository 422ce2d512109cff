#include "peft/ranks.h"

#include <stdlib.h>
#include <string.h>

/* ---- dealing ---- */

static int64_t length_of(const gr_dataset *d, int64_t sample) { return d->offset[sample + 1] - d->offset[sample]; }

static bool reserve(gr_deal *deal, int64_t n, int size) {
    if (!deal->first && !(deal->first = gr_calloc(size + 1, sizeof *deal->first))) return false;
    if (n <= deal->capacity) return true;
    free(deal->samples);
    free(deal->order);
    free(deal->rank);
    deal->capacity = n;
    deal->samples = gr_calloc(n, sizeof *deal->samples);
    deal->order = gr_calloc(n, sizeof *deal->order);
    deal->rank = gr_calloc(n, sizeof *deal->rank);
    return deal->samples && deal->order && deal->rank;
}

typedef struct by_length {
    const gr_dataset *d;
    const int64_t *idx;
} by_length;

/* The longest first; equals as they come. */
static int compare(const void *a, const void *b, void *context) {
    const by_length *s = context;
    const int64_t i = *(const int64_t *)a, k = *(const int64_t *)b;
    const int64_t more = length_of(s->d, s->idx[k]) - length_of(s->d, s->idx[i]);
    return more != 0 ? (more > 0 ? 1 : -1) : (i > k) - (i < k);
}

graft_status gr_deal_samples(gr_deal *deal, const gr_dataset *d, const int64_t *idx, int64_t n, int size, graft_error *err) {
    by_length how = {d, idx};
    if (!reserve(deal, n, size)) return gr_fail_memory(err, "samples of a step");
    int64_t *tokens = gr_calloc(size, sizeof *tokens);
    if (!tokens) return gr_fail_memory(err, "samples of a step");
    for (int64_t i = 0; i < n; i++) deal->order[i] = i;
    qsort_r(deal->order, (size_t)n, sizeof *deal->order, compare, &how);
    memset(deal->first, 0, (size_t)(size + 1) * sizeof *deal->first);
    for (int64_t i = 0; i < n; i++) {
        int least = 0;
        for (int r = 1; r < size; r++)
            if (tokens[r] < tokens[least]) least = r;
        tokens[least] += length_of(d, idx[deal->order[i]]);
        deal->rank[deal->order[i]] = least;
        deal->first[least + 1]++;
    }
    for (int r = 0; r < size; r++) deal->first[r + 1] += deal->first[r];
    memset(tokens, 0, (size_t)size * sizeof *tokens); /* now: how many each has got */
    for (int64_t i = 0; i < n; i++) deal->samples[deal->first[deal->rank[i]] + tokens[deal->rank[i]]++] = idx[i];
    free(tokens);
    return GRAFT_OK;
}

void gr_deal_release(gr_deal *deal) {
    free(deal->samples);
    free(deal->first);
    free(deal->order);
    free(deal->rank);
    *deal = (gr_deal){0};
}

/* ---- sums ---- */

enum { SHARE_FLOATS = 16 }; /* shares are multiples of it: aligned as parameters are */

graft_status gr_reducer_init(gr_reducer *r, const gr_comm *comm, gr_device *device, int64_t n, graft_error *err) {
    const int size = gr_comm_size(comm);
    *r = (gr_reducer){.device = device, .n = n};
    if (size == 1) return GRAFT_OK;
    r->share = ((n + size - 1) / size + SHARE_FLOATS - 1) / SHARE_FLOATS * SHARE_FLOATS;
    const int64_t all = size * r->share;
    r->out = gr_calloc(size, sizeof *r->out), r->in = gr_calloc(size, sizeof *r->in);
    r->parts = device->alloc(device, all * (int64_t)sizeof *r->parts);
    if (!device->in_host) r->staging = gr_alloc_aligned(2 * all * (int64_t)sizeof(float));
    return r->out && r->in && r->parts && (device->in_host || r->staging) ? GRAFT_OK : gr_fail_memory(err, "sums over ranks");
}

/* The first float of a rank's share. */
static int64_t begin_of(const gr_reducer *r, int rank) { return GR_MIN(r->n, rank * r->share); }

/* An exchange of device memory, through the host's where they are apart. */
static graft_status move(gr_reducer *r, gr_comm *comm, const char *what, graft_error *err) {
    gr_device *d = r->device;
    const int size = gr_comm_size(comm), rank = gr_comm_rank(comm);
    if (d->in_host) return gr_comm_exchange(comm, what, r->out, r->in, err);
    gr_piece out[size], in[size];
    char *at = r->staging;
    for (int i = 0; i < size; i++) {
        bool seen = i > 0 && r->out[i].data == r->out[i - 1].data; /* the same for all */
        out[i] = (gr_piece){seen ? out[i - 1].data : at, r->out[i].bytes};
        if (!seen && out[i].bytes > 0) d->download(d, out[i].data, r->out[i].data, out[i].bytes, 0);
        if (!seen) at += out[i].bytes;
    }
    for (int i = 0; i < size; i++) in[i] = (gr_piece){at, r->in[i].bytes}, at += in[i].bytes;
    graft_status st = gr_comm_exchange(comm, what, out, in, err);
    for (int i = 0; i < size && st == GRAFT_OK; i++)
        if (in[i].bytes > 0 && !(i == rank && r->in[i].data == r->out[i].data))
            d->upload(d, r->in[i].data, in[i].data, in[i].bytes);
    return st;
}

graft_status gr_reducer_sum(gr_reducer *r, gr_comm *comm, const char *what, float *x, graft_error *err) {
    const int size = gr_comm_size(comm), rank = gr_comm_rank(comm);
    const int64_t float_bytes = (int64_t)sizeof(float);
    if (size == 1) return GRAFT_OK;
    const int64_t mine = begin_of(r, rank + 1) - begin_of(r, rank);
    for (int i = 0; i < size; i++) {
        r->out[i] = (gr_piece){x + begin_of(r, i), (begin_of(r, i + 1) - begin_of(r, i)) * float_bytes};
        r->in[i] = (gr_piece){r->parts + i * r->share, mine * float_bytes};
    }
    graft_status st = move(r, comm, what, err);
    if (st != GRAFT_OK) return st;
    if (mine > 0) r->device->ops->sum_parts(r->device, x + begin_of(r, rank), r->parts, size, r->share, mine);
    for (int i = 0; i < size; i++) {
        r->out[i] = (gr_piece){x + begin_of(r, rank), mine * float_bytes};
        r->in[i] = (gr_piece){x + begin_of(r, i), (begin_of(r, i + 1) - begin_of(r, i)) * float_bytes};
    }
    return move(r, comm, what, err);
}

void gr_reducer_release(gr_reducer *r) {
    if (r->device) r->device->free(r->device, r->parts);
    free(r->staging);
    free(r->out);
    free(r->in);
    *r = (gr_reducer){0};
}
