#include "core/model/sample.h"

#include <math.h>
#include <stdlib.h>

static void penalise(float *logits, const int32_t *seen, int64_t n_seen, float penalty, int32_t *marks, int64_t V) {
    if (penalty == 1.0f) return;
    for (int64_t i = 0; i < V; i++) marks[i] = 0;
    for (int64_t i = 0; i < n_seen; i++) {
        int32_t id = seen[i];
        if (id < 0 || id >= V || marks[id]) continue;
        marks[id] = 1; /* once for each id, however often it was seen */
        logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
    }
}

static int32_t greedy(const float *logits, int64_t V) {
    int32_t best = -1;
    for (int64_t i = 0; i < V; i++)
        if (isfinite(logits[i]) && (best < 0 || logits[i] > logits[best])) best = (int32_t)i;
    return best;
}

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
            total += exp((logits[id] - top) / o->temperature);
            scratch[0] = scratch[--left], scratch[left] = id;
            sift(scratch, left, 0, logits);
        }
    } else {
        for (int64_t i = 0; i < n; i++) total += exp((logits[scratch[i]] - top) / o->temperature);
    }
    int64_t n_kept = 0;
    while (n_kept < k && (n_kept == 0 || kept < (double)o->top_p * total)) {
        if (n - 1 - n_kept < left) { /* not yet off the heap */
            int32_t id = scratch[0];
            scratch[0] = scratch[--left], scratch[left] = id;
            sift(scratch, left, 0, logits);
        }
        kept += exp((logits[scratch[n - 1 - n_kept]] - top) / o->temperature);
        n_kept++;
    }
    double at = (double)random * kept, sum = 0;
    for (int64_t i = 0; i < n_kept; i++) {
        sum += exp((logits[scratch[n - 1 - i]] - top) / o->temperature);
        if (at < sum) return scratch[n - 1 - i];
    }
    return scratch[n - n_kept];
}
