#include "peft/ranks.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/log.h"
#include "core/model/machine.h"

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

/* Tokens that each rank has of the samples idx[n], whose ranks are known. */
typedef struct dealing {
    const gr_dataset *d;
    const int64_t *idx;
    int64_t n;
    int32_t *rank;   /* [n] */
    int64_t *tokens; /* [size] */
    int size;
} dealing;

static void deal_longest_first(dealing *g, const int64_t *order) {
    for (int64_t i = 0; i < g->n; i++) {
        int least = 0;
        for (int r = 1; r < g->size; r++)
            if (g->tokens[r] < g->tokens[least]) least = r;
        g->tokens[least] += length_of(g->d, g->idx[order[i]]);
        g->rank[order[i]] = least;
    }
}

/* Gives a sample of the rank with the most tokens to another rank, for a shorter one or for none: the exchange that leaves the
 * least to the fuller of the two. False: there is none that leaves it less than now, or it is within a thousandth of an equal
 * share. */
static bool exchange(dealing *g) {
    int64_t sum = 0, best, mine = -1, theirs = -1;
    int full = 0, other = -1;
    for (int r = 0; r < g->size; r++) {
        sum += g->tokens[r];
        if (g->tokens[r] > g->tokens[full]) full = r;
    }
    best = g->tokens[full];
    if (best - sum / g->size <= sum / g->size / 1000) return false;
    for (int64_t i = 0; i < g->n; i++) {
        if (g->rank[i] != full) continue;
        const int64_t length = length_of(g->d, g->idx[i]);
        for (int64_t k = -g->size; k < g->n; k++) { /* below 0: for none of rank k + size */
            const int to = k < 0 ? (int)(k + g->size) : g->rank[k];
            const int64_t less = length - (k < 0 ? 0 : length_of(g->d, g->idx[k]));
            if (to == full || less <= 0) continue;
            const int64_t most = GR_MAX(g->tokens[full] - less, g->tokens[to] + less);
            if (most < best) best = most, mine = i, theirs = k, other = to;
        }
    }
    if (mine < 0) return false;
    const int64_t less = length_of(g->d, g->idx[mine]) - (theirs < 0 ? 0 : length_of(g->d, g->idx[theirs]));
    g->tokens[full] -= less, g->tokens[other] += less;
    g->rank[mine] = other;
    if (theirs >= 0) g->rank[theirs] = full;
    return true;
}

graft_status gr_deal_samples(gr_deal *deal, const gr_dataset *d, const int64_t *idx, int64_t n, int size, graft_error *err) {
    by_length how = {d, idx};
    if (!reserve(deal, n, size)) return gr_fail_memory(err, "samples of a step");
    int64_t *tokens = gr_calloc(size, sizeof *tokens);
    if (!tokens) return gr_fail_memory(err, "samples of a step");
    dealing g = {d, idx, n, deal->rank, tokens, size};
    for (int64_t i = 0; i < n; i++) deal->order[i] = i;
    qsort_r(deal->order, (size_t)n, sizeof *deal->order, compare, &how);
    deal_longest_first(&g, deal->order);
    for (int64_t i = 0; i < n && exchange(&g); i++) continue;
    memset(deal->first, 0, (size_t)(size + 1) * sizeof *deal->first);
    for (int64_t i = 0; i < n; i++) deal->first[deal->rank[i] + 1]++;
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

/* ---- exchanges of device memory ---- */

typedef struct way {
    int32_t can, in_host;       /* the device moves bytes by itself; it is the CPU */
    char level[24], about[124]; /* its; by what, or why not */
    char id[40], host[64];      /* of the card, and where it is */
} way;

/* BAD_USAGE where a card is that of two ranks. */
static graft_status check_own(const gr_comm *comm, const way *all, graft_error *err) {
    for (int i = 1; i < gr_comm_size(comm); i++)
        for (int k = 0; k < i && all[i].id[0]; k++)
            if (strcmp(all[i].id, all[k].id) == 0 && strcmp(all[i].host, all[k].host) == 0)
                return gr_fail(
                    err, GRAFT_BAD_USAGE,
                    "ranks %d and %d have the same card (UUID %.39s), and the %d ranks of this host want one each: start "
                    "fewer, or ask for device: cpu",
                    k, i, all[i].id, gr_comm_host_size(comm));
    return GRAFT_OK;
}

/* Of all ranks, or none: what keeps the first that cannot is told. BAD_USAGE where some have cards and some have not, or two have
 * the same. */
static graft_status find_way(gr_comm *comm, gr_device *device, bool *can, char about[124], graft_error *err) {
    const int size = gr_comm_size(comm);
    const char *text = device->in_host ? "" : "the device has no way of its own";
    way mine = {.can = device->ranks_name && device->ranks_name(device, NULL, &text), .in_host = device->in_host};
    way *all = gr_calloc(size, sizeof *all);
    if (!all) return gr_fail_memory(err, "ranks");
    snprintf(mine.level, sizeof mine.level, "%s", device->level);
    snprintf(mine.about, sizeof mine.about, "%s", text);
    snprintf(mine.id, sizeof mine.id, "%s", device->id ? device->id : "");
    if (gethostname(mine.host, sizeof mine.host - 1) != 0) mine.host[0] = '\0';
    graft_status st = gr_comm_gather(comm, "joining", &mine, sizeof mine, all, err);
    int first = 0;
    while (first < size - 1 && all[first].can) first++;
    *can = st == GRAFT_OK && all[first].can;
    snprintf(about, sizeof mine.about, "%.123s", all[first].about);
    for (int i = 1; i < size && st == GRAFT_OK; i++)
        if (all[i].in_host != all[0].in_host)
            st = gr_fail(err, GRAFT_BAD_USAGE,
                         "rank 0 is on %.23s, rank %d on %.23s: as many ranks of a host as it has cards, or device: cpu",
                         all[0].level, i, all[i].level);
    if (st == GRAFT_OK) st = check_own(comm, all, err);
    free(all);
    return st;
}

graft_status gr_ranks_join(gr_comm *comm, gr_device *device, int64_t *bytes, graft_error *err) {
    const gr_watch watch = {gr_comm_watch, comm};
    char about[124], name[GR_RANKS_NAME] = "";
    const char *why = "";
    int64_t total, before = 0, after = 0;
    bool can = false;
    graft_status st = GRAFT_OK;
    *bytes = 0;
    if (!comm) return GRAFT_OK;
    GR_TRY(find_way(comm, device, &can, about, err));
    if (!can) {
        if (about[0] && gr_comm_rank(comm) == 0) gr_note("ranks: bytes between devices go through the hosts: %s", about);
        return GRAFT_OK;
    }
    if (gr_comm_rank(comm) == 0 && !device->ranks_name(device, name, &why)) st = gr_fail(err, GRAFT_FAILED, "joining: %s", why);
    GR_TRY(gr_comm_agree(comm, "joining", st, NULL, err));
    GR_TRY(gr_comm_broadcast(comm, "joining", name, sizeof name, err));
    (void)device->memory(device, &total, &before);
    gr_comm_beside(comm, "joining", 0);
    if (!device->ranks_join(device, name, gr_comm_rank(comm), gr_comm_size(comm), &watch)) st = gr_device_status(device, err);
    GR_TRY(gr_comm_agree(comm, "joining", st, NULL, err));
    (void)device->memory(device, &total, &after);
    *bytes = GR_MAX(before - after, 0);
    if (gr_comm_rank(comm) == 0)
        gr_note("ranks: bytes between devices go by %s, which takes %.1f MiB of each", about, (double)*bytes / (1 << 20));
done:
    return st;
}

void gr_ranks_leave(gr_device *device) {
    if (device && device->joined) device->ranks_leave(device);
}

graft_status gr_mover_init(gr_mover *m, gr_comm *comm, gr_device *device, int64_t most, graft_error *err) {
    const int size = gr_comm_size(comm);
    const bool staged = !device->in_host && !device->joined;
    *m = (gr_mover){.device = device, .comm = comm};
    m->out = gr_calloc(size, sizeof *m->out), m->in = gr_calloc(size, sizeof *m->in);
    if (staged) m->staging = gr_alloc_aligned(most);
    return m->out && m->in && (!staged || m->staging) ? GRAFT_OK : gr_fail_memory(err, "exchanges of ranks");
}

/* Through the host's memory. */
static graft_status move_staged(gr_mover *m, const char *what, graft_error *err) {
    gr_device *d = m->device;
    const int size = gr_comm_size(m->comm), rank = gr_comm_rank(m->comm);
    gr_piece out[size], in[size];
    char *at = m->staging;
    for (int i = 0; i < size; i++) {
        bool seen = i > 0 && m->out[i].data == m->out[i - 1].data; /* the same for all */
        out[i] = (gr_piece){seen ? out[i - 1].data : at, m->out[i].bytes};
        if (!seen && out[i].bytes > 0) d->download(d, out[i].data, m->out[i].data, out[i].bytes, 0);
        if (!seen) at += out[i].bytes;
    }
    for (int i = 0; i < size; i++) in[i] = (gr_piece){at, m->in[i].bytes}, at += in[i].bytes;
    graft_status st = gr_comm_exchange(m->comm, what, out, in, err);
    for (int i = 0; i < size && st == GRAFT_OK; i++)
        if (in[i].bytes > 0 && !(i == rank && m->in[i].data == m->out[i].data))
            d->upload(d, m->in[i].data, in[i].data, in[i].bytes);
    return st;
}

graft_status gr_mover_begin(gr_mover *m, const char *what, gr_mark *done, graft_error *err) {
    gr_device *d = m->device;
    int64_t bytes = 0;
    *done = 0;
    for (int i = 0; i < gr_comm_size(m->comm); i++) bytes += i == gr_comm_rank(m->comm) ? 0 : m->out[i].bytes;
    m->sent += bytes;
    if (d->in_host) return gr_comm_exchange(m->comm, what, m->out, m->in, err);
    if (!d->joined) return move_staged(m, what, err);
    graft_status st = gr_comm_status(m->comm, err);
    if (st != GRAFT_OK) return st;
    gr_comm_beside(m->comm, what, bytes);
    d->wait(d, GR_QUEUE_COMM, d->mark(d, GR_QUEUE_COMPUTE));
    d->exchange(d, m->out, m->in);
    *done = d->mark(d, GR_QUEUE_COMM);
    return GRAFT_OK;
}

graft_status gr_mover_exchange(gr_mover *m, const char *what, graft_error *err) {
    gr_mark done;
    graft_status st = gr_mover_begin(m, what, &done, err);
    if (st == GRAFT_OK) m->device->wait(m->device, GR_QUEUE_COMPUTE, done);
    return st;
}

void gr_mover_release(gr_mover *m) {
    free(m->staging);
    free(m->out);
    free(m->in);
    *m = (gr_mover){0};
}

graft_status gr_ranks_tell(gr_comm *comm, int64_t steps, int64_t sent, graft_error *err) {
    const int size = gr_comm_size(comm);
    int64_t each[size], all = 0;
    if (!comm || steps <= 0) return GRAFT_OK;
    graft_status st = gr_comm_gather(comm, "bytes sent", &sent, sizeof sent, each, err);
    for (int i = 0; i < size && st == GRAFT_OK; i++) all += each[i];
    if (st == GRAFT_OK && gr_comm_rank(comm) == 0)
        gr_note("ranks: each of %d has sent %lld bytes of gradients and weights a step", size, (long long)(all / size / steps));
    return st;
}

/* ---- sums ---- */

enum { SHARE_FLOATS = 16 }; /* shares are multiples of it: aligned as parameters are */

static int64_t share_of(int size, int64_t n) { return ((n + size - 1) / size + SHARE_FLOATS - 1) / SHARE_FLOATS * SHARE_FLOATS; }

int64_t gr_reducer_bytes(int size, int64_t n) { return size == 1 ? 0 : size * share_of(size, n) * (int64_t)sizeof(float); }

graft_status gr_reducer_init(gr_reducer *r, gr_comm *comm, gr_device *device, int64_t n, graft_error *err) {
    const int size = gr_comm_size(comm);
    *r = (gr_reducer){.n = n};
    if (size == 1) return GRAFT_OK;
    r->share = share_of(size, n);
    const int64_t bytes = gr_reducer_bytes(size, n);
    graft_status st = gr_mover_init(&r->move, comm, device, 2 * bytes, err);
    if (st == GRAFT_OK && !(r->parts = device->alloc(device, bytes)))
        st = gr_fail_device_memory(device, bytes, "sums over ranks", err);
    return st;
}

/* The first float of a rank's share. */
static int64_t begin_of(const gr_reducer *r, int rank) { return GR_MIN(r->n, rank * r->share); }

graft_status gr_reducer_sum(gr_reducer *r, const char *what, float *x, graft_error *err) {
    const int size = gr_comm_size(r->move.comm), rank = gr_comm_rank(r->move.comm);
    const int64_t float_bytes = (int64_t)sizeof(float);
    gr_piece *out = r->move.out, *in = r->move.in;
    gr_device *d = r->move.device;
    if (size == 1) return GRAFT_OK;
    const int64_t mine = begin_of(r, rank + 1) - begin_of(r, rank);
    for (int i = 0; i < size; i++) {
        out[i] = (gr_piece){x + begin_of(r, i), (begin_of(r, i + 1) - begin_of(r, i)) * float_bytes};
        in[i] = (gr_piece){r->parts + i * r->share, mine * float_bytes};
    }
    graft_status st = gr_mover_exchange(&r->move, what, err);
    if (st != GRAFT_OK) return st;
    if (mine > 0) d->ops->sum_parts(d, x + begin_of(r, rank), r->parts, size, r->share, mine);
    for (int i = 0; i < size; i++) {
        out[i] = (gr_piece){x + begin_of(r, rank), mine * float_bytes};
        in[i] = (gr_piece){x + begin_of(r, i), (begin_of(r, i + 1) - begin_of(r, i)) * float_bytes};
    }
    return gr_mover_exchange(&r->move, what, err);
}

void gr_reducer_release(gr_reducer *r) {
    if (r->parts) r->move.device->free(r->move.device, r->parts);
    gr_mover_release(&r->move);
    *r = (gr_reducer){0};
}
