/* mix.c - the order of a mix of sources by share of tokens: a function of (seed, epoch). Blocks of one length are drawn, the k-th
 * of a source with share p at time (k - 1/2) / p, the earlier first: at any time each source has given its share of all, to a
 * block. A source's blocks come in passes, each in an order of its own; an epoch is the time in which no source gives more than
 * one pass. */
#include <math.h>
#include <stdlib.h>

#include "core/data/mix.h"

/* What a mix draws from: the whole blocks of each source. */
typedef struct urn {
    int64_t first, n;      /* samples of the data set */
    double share;          /* of all tokens */
    int64_t drawn, end;    /* in this epoch: draws [drawn, end) of all that the source gives in the run */
    int64_t *pass, n_pass; /* order of the pass that is drawn from now, -1: none */
} urn;

static int64_t length_of(const gr_dataset *d, int64_t i) { return d->offset[i + 1] - d->offset[i]; }

/* urns[n_sources]; *span: the time of an epoch. */
static void fill_urns(urn *urns, double *span, const gr_dataset *d) {
    double total = 0;
    int64_t whole = gr_mix_block(d);
    for (int s = 0; s < d->n_sources; s++) urns[s] = (urn){.share = d->share[s], .n_pass = -1}, total += d->share[s];
    for (int64_t i = 0; i < d->n_samples; i++) {
        urn *u = &urns[d->source[i]];
        if (length_of(d, i) == whole && u->n++ == 0) u->first = i;
    }
    *span = INFINITY;
    for (int s = 0; s < d->n_sources; s++) {
        urns[s].share /= total;
        *span = fmin(*span, (double)urns[s].n / urns[s].share);
    }
}

/* Draws of a source until a time. */
static int64_t draws_until(const urn *u, double time) { return (int64_t)floor(time * u->share + 0.5); }

int64_t gr_mix_block(const gr_dataset *d) {
    int64_t longest = 0;
    for (int64_t i = 0; i < d->n_samples; i++) longest = GR_MAX(longest, length_of(d, i));
    return longest;
}

/* Sample number k of all that a source gives. */
static int64_t draw(urn *u, int64_t k, int source, uint64_t seed, bool shuffled) {
    if (u->n_pass != k / u->n) {
        u->n_pass = k / u->n;
        for (int64_t i = 0; i < u->n; i++) u->pass[i] = u->first + i;
        if (shuffled) gr_shuffle(u->pass, u->n, seed, (uint64_t)(source + 1) << 40 | (uint64_t)u->n_pass);
    }
    return u->pass[k % u->n];
}

graft_status gr_mix_order(const gr_dataset *d, uint64_t seed, int64_t epoch, bool shuffled, int64_t **order, int64_t *n,
                          graft_error *err) {
    graft_status st = GRAFT_OK;
    double span;
    int64_t total = 0, *list = NULL;
    urn *urns = gr_calloc(d->n_sources, sizeof *urns);
    if (!urns) return gr_fail_memory(err, "order of samples");
    fill_urns(urns, &span, d);
    for (int s = 0; s < d->n_sources; s++)
        if (urns[s].n == 0)
            GR_TRY(
                gr_fail(err, GRAFT_BAD_INPUT,
                        "data.train: source %d has no whole block of %lld tokens, and a mix takes no others: more text, a smaller "
                        "data.max_length or a smaller data.eval",
                        s + 1, (long long)gr_mix_block(d)));
    for (int s = 0; s < d->n_sources; s++) {
        urns[s].drawn = draws_until(&urns[s], (double)epoch * span);
        urns[s].end = draws_until(&urns[s], (double)(epoch + 1) * span);
        total += urns[s].end - urns[s].drawn;
        if (!(urns[s].pass = gr_calloc(GR_MAX(urns[s].n, 1), sizeof *urns[s].pass)))
            GR_TRY(gr_fail_memory(err, "order of samples"));
    }
    list = gr_calloc(GR_MAX(total, 1), sizeof *list);
    if (!list) GR_TRY(gr_fail_memory(err, "order of samples"));
    for (int64_t at = 0; at < total; at++) {
        int next = -1;
        double earliest = INFINITY;
        for (int s = 0; s < d->n_sources; s++) {
            double time = ((double)urns[s].drawn + 0.5) / urns[s].share;
            if (urns[s].drawn < urns[s].end && time < earliest) earliest = time, next = s;
        }
        GR_ASSERT(next >= 0);
        list[at] = draw(&urns[next], urns[next].drawn++, next, seed, shuffled);
    }
    *order = list;
    *n = total;
done:
    for (int s = 0; s < d->n_sources; s++) free(urns[s].pass);
    free(urns);
    return st;
}

graft_status gr_mix_facts(const gr_dataset *d, int64_t draws, gr_mix_fact *facts, graft_error *err) {
    double span;
    urn *urns = gr_calloc(d->n_sources, sizeof *urns);
    if (!urns) return gr_fail_memory(err, "mix");
    fill_urns(urns, &span, d);
    for (int s = 0; s < d->n_sources; s++)
        facts[s] = (gr_mix_fact){.share = urns[s].share,
                                 .tokens = urns[s].n * gr_mix_block(d),
                                 .passes = (double)draws * urns[s].share / (double)GR_MAX(urns[s].n, 1)};
    free(urns);
    return GRAFT_OK;
}
