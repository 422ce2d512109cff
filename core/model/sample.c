#include "core/model/sample.h"

#include <math.h>
#include <stdlib.h>

static float penalised(float logit, float penalty) { return logit > 0 ? logit / penalty : logit * penalty; }

static void penalise(float *logits, const int32_t *seen, int64_t n_seen, float penalty, int32_t *marks, int64_t V) {
    if (penalty == 1.0f) return;
    for (int64_t i = 0; i < V; i++) marks[i] = 0;
    for (int64_t i = 0; i < n_seen; i++) {
        int32_t id = seen[i];
        if (id < 0 || id >= V || marks[id]) continue;
        marks[id] = 1; /* once for each id, however often it was seen */
        logits[id] = penalised(logits[id], penalty);
    }
}

static int32_t greedy(const float *logits, int64_t V) {
    int32_t best = -1;
    for (int64_t i = 0; i < V; i++)
        if (isfinite(logits[i]) && (best < 0 || logits[i] > logits[best])) best = (int32_t)i;
    return best;
}

/* A probability relative to the largest logit's. */
static double weight_of(float logit, double top, float temperature) { return exp((logit - top) / temperature); }

/* Larger logit first; the smaller id among equals, so that the order is one. */
static bool before(const float *logits, int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); }

static void sift(int32_t *heap, int64_t n, int64_t i, const float *logits) {
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(logits, heap[child + 1], heap[child])) child++;
        if (!before(logits, heap[child], heap[i])) return;
        int32_t swap = heap[i];
        heap[i] = heap[child], heap[child] = swap;
    }
}

int32_t gr_sample(float *logits, int64_t V, const int32_t *seen, int64_t n_seen, const gr_generate_options *o, float random,
                  int32_t *scratch) {
    penalise(logits, seen, n_seen, o->repetition_penalty, scratch, V);
    int32_t best = greedy(logits, V);
    if (o->temperature <= 0 || best < 0) return best;

    /* probabilities relative to the largest; the most likely ids come off a heap one by one, until top-k or top-p ends them */
    double total = 0, top = logits[best], kept = 0;
    int64_t n = 0, k = o->top_k > 0 ? GR_MIN((int64_t)o->top_k, V) : V;
    for (int64_t i = 0; i < V; i++)
        if (isfinite(logits[i])) scratch[n++] = (int32_t)i;
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift(scratch, n, i, logits);
    int64_t left = n;
    k = GR_MIN(k, n);
    if (k < n) { /* top-p is taken of what top-k left */
        for (int64_t i = 0; i < k; i++) {
            int32_t id = scratch[0];
            total += weight_of(logits[id], top, o->temperature);
            scratch[0] = scratch[--left], scratch[left] = id;
            sift(scratch, left, 0, logits);
        }
    } else {
        for (int64_t i = 0; i < n; i++) total += weight_of(logits[scratch[i]], top, o->temperature);
    }
    int64_t n_kept = 0;
    while (n_kept < k && (n_kept == 0 || kept < (double)o->top_p * total)) {
        if (n - 1 - n_kept < left) { /* not yet off the heap */
            int32_t id = scratch[0];
            scratch[0] = scratch[--left], scratch[left] = id;
            sift(scratch, left, 0, logits);
        }
        kept += weight_of(logits[scratch[n - 1 - n_kept]], top, o->temperature);
        n_kept++;
    }
    double at = (double)random * kept, sum = 0;
    for (int64_t i = 0; i < n_kept; i++) {
        sum += weight_of(logits[scratch[n - 1 - i]], top, o->temperature);
        if (at < sum) return scratch[n - 1 - i];
    }
    return scratch[n - n_kept];
}

/* ---- from a listing ----
 * The entries have the order in which gr_sample takes ids, so that sums over them are its own to the last bit. What is open is the
 * sum of all, and what follows the entries: the random number decides between ids by a sum that lies between two bounds, and where
 * both give one id, every sum between them does, since rounding keeps the order of sums. */

/* What gr_sample would have summed up lies between. */
typedef struct bounds {
    double low, high;
} bounds;

/* Of a listing after the penalty. */
typedef struct choice {
    const gr_listed *entry;
    double top;
    int64_t n;    /* entries that are gr_sample's first n */
    bool all;     /* and it has no others */
    bounds total; /* of the weights of all */
} choice;

bool gr_sample_lists(const gr_generate_options *o) {
    bool hot = o->temperature > 0;
    return o->repetition_penalty >= 1 && o->repetition_penalty <= 1e6f &&
           (!hot || (o->temperature >= 1e-6f && o->temperature <= 1e6f));
}

float gr_sample_temperature(const gr_generate_options *o) { return o->temperature > 0 ? o->temperature : 1; }

static int in_order(const void *a, const void *b) {
    const gr_listed *x = a, *y = b;
    if (x->value != y->value) return x->value > y->value ? -1 : 1;
    return x->column < y->column ? -1 : x->column > y->column;
}

/* The listing's entries that were seen are penalised; how many ids beyond it may have been. */
static int64_t penalise_listed(gr_listing *l, int64_t V, const int32_t *seen, int64_t n_seen, float penalty, int32_t *marks) {
    int64_t beyond = 0;
    for (int64_t i = 0; i < n_seen; i++)
        if (seen[i] >= 0 && seen[i] < V) marks[seen[i]] = 0;
    for (int32_t i = 0; i < l->n; i++) marks[l->entry[i].column] = 0;
    for (int64_t i = 0; i < n_seen; i++) {
        if (seen[i] < 0 || seen[i] >= V || marks[seen[i]]) continue;
        marks[seen[i]] = 1, beyond++;
    }
    for (int32_t i = 0; i < l->n; i++) {
        gr_listed *e = &l->entry[i];
        if (!marks[e->column]) continue;
        e->value = penalised(e->value, penalty), beyond--;
    }
    qsort(l->entry, (size_t)l->n, sizeof *l->entry, in_order);
    return l->finite > l->n ? beyond : 0;
}

/* What a listing says once its entries are penalised (a penalty lowers logits: nothing beyond the listing rises into it). cut: its
 * last entry as it came. false: nothing for sure. */
static bool choice_of(choice *c, const gr_listing *l, double top, gr_listed cut, int64_t beyond, const gr_generate_options *o,
                      int64_t V) {
    const float T = gr_sample_temperature(o);
    *c = (choice){.entry = l->entry, .all = l->finite == l->n};
    while (c->n < l->n && isfinite(l->entry[c->n].value) && (c->all || in_order(&l->entry[c->n], &cut) <= 0)) c->n++;
    if (c->n == 0) return false;
    c->top = l->entry[0].value;
    double listed = l->listed, rest = l->rest, error = l->rest * GR_LISTING_ERROR + GR_LISTING_LEAST, gone = 0;
    if (o->repetition_penalty != 1.0f) {
        const double grown = weight_of((float)top, c->top, T);
        listed = 0;
        for (int32_t i = 0; i < l->n; i++) listed += weight_of(l->entry[i].value, c->top, T);
        rest *= grown, error *= grown;
        gone = beyond > 0 ? (double)beyond * weight_of(cut.value, c->top, T) : 0;
    }
    if (c->all) rest = error = 0;
    const double slack = (double)(V + 64) * 0x1p-52; /* sums of V doubles, and an exponential's last place */
    c->total.low = (listed + fmax(rest - error - gone, 0)) * (1 - slack);
    c->total.high = (listed + rest + error) * (1 + slack);
    return isfinite(c->total.high);
}

/* gr_sample's choice among the first m of the order, which are all that count (whole) or not. */
static int32_t choose(const choice *c, int64_t m, bool whole, bounds total, const gr_generate_options *o, float random) {
    double weight[GR_LISTED], sum = 0;
    bounds kept = {-1, -1};
    int64_t n = 0, lowest = -1;
    while (n < m && kept.high < 0) {
        sum += weight[n] = weight_of(c->entry[n].value, c->top, o->temperature);
        if (kept.low < 0 && !(sum < (double)o->top_p * total.low)) kept.low = sum;
        if (!(sum < (double)o->top_p * total.high)) kept.high = sum;
        n++;
    }
    /* entries that end before top-p does: as much as it takes, at most an entry more */
    if (kept.low < 0) kept.low = whole ? sum : fmax(sum, fmin((double)o->top_p, 1) * total.low);
    if (kept.high < 0) kept.high = whole ? sum : fmin(total.high, (double)o->top_p * total.high + weight[n - 1] * (1 + 0x1p-40));
    kept.low *= random, kept.high *= random;
    sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += weight[i];
        if (lowest < 0 && kept.low < sum) lowest = i;
        if (kept.high < sum) return lowest == i ? c->entry[i].column : GR_SAMPLE_UNDECIDED;
    }
    return GR_SAMPLE_UNDECIDED;
}

int32_t gr_sample_listed(gr_listing *l, int64_t V, const int32_t *seen, int64_t n_seen, const gr_generate_options *o, float random,
                         int32_t *scratch) {
    if (l->n == 0) return -1;
    const bool penalty = o->repetition_penalty != 1.0f;
    const gr_listed first = l->entry[0], cut = l->entry[l->n - 1];
    int64_t beyond = penalty ? penalise_listed(l, V, seen, n_seen, o->repetition_penalty, scratch) : 0;
    choice c;
    if (!choice_of(&c, l, first.value, cut, beyond, o, V)) return GR_SAMPLE_UNDECIDED;
    if (o->temperature <= 0) return c.entry[0].column;
    const int64_t k = o->top_k, fewest = l->finite - (penalty ? n_seen : 0); /* a penalty may make logits infinite */
    if (k == 0 || k >= l->finite) return choose(&c, c.n, c.all, c.total, o, random);
    if (k >= fewest || k > c.n) return GR_SAMPLE_UNDECIDED;
    double total = 0;
    for (int64_t i = 0; i < k; i++) total += weight_of(c.entry[i].value, c.top, o->temperature);
    return choose(&c, k, true, (bounds){total, total}, o, random);
}
