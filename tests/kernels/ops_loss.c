/* ops_loss.c - what follows the logits: cross-entropy, caps, the best column and listings, the sum of a step's losses. */
#include <float.h>
#include <math.h>

#include "ops.h"

void call_cross_entropy(call *c) {
    const bool close = c->variant == 4; /* to each other: aligned on a card */
    int64_t V = c->variant == 5 ? 4999 : close ? 9024 : width(c);
    gr_rows logits = close ? filled_rows(c, 2, c->row0, c->n, V, V) : rows(c, 2, V);
    float *nll = numbers(c, 1, 1), *w = numbers(c, 3, 1);
    for (int64_t r = 0; r < c->n; r++)
        for (int64_t j = 0; j < V; j++) gr_f32_row(logits, r)[j] *= 30;
    float *scale = buffer(c, 1);
    *scale = 1024;
    const gr_loss_terms terms = {
        .softcap = c->variant & 2 ? 20 : 0, .z_loss = c->variant & 4 ? 1e-2f : 0, .scale = c->variant % 3 ? NULL : scale};
    c->d->ops->cross_entropy(c->d, nll, logits, indices(c, V), c->variant & 1 ? NULL : w, c->n, V, &terms);
    out_numbers(c, nll, 1);
    if (!(c->variant & 1)) out_rows(c, logits, V);
}

/* Against tanh in double: each value within 4 units of its last place, whichever branch of a level it takes. */
void call_softcap(call *c) {
    const float cap = c->variant & 1 ? 30 : 0.75f;
    int64_t C = width(c);
    gr_rows x = rows(c, 1, C), was = rows(c, 1, C);
    for (int64_t r = 0; r < c->n; r++)
        for (int64_t j = 0; j < C; j++) gr_f32_row(x, r)[j] = gr_f32_row(was, r)[j] *= c->variant & 2 ? 200 : 0.5f;
    c->d->ops->softcap(c->d, x, c->n, C, cap);
    for (int64_t r = 0; r < c->n; r++)
        for (int64_t j = 0; j < C; j++) {
            double exact = (double)cap * tanh((double)gr_f32_row(was, r)[j] / cap), found = gr_f32_row(x, r)[j];
            if (fabs(found - exact) > fabs(exact) * 4 * 0x1p-23) fail_msg("cap of %g: %.9g", exact, found);
        }
    out_rows(c, x, C);
}

/* Rows of every kind of tie, edge and value that is not finite. What is expected is put there. */
static int32_t put_best(float *x, int64_t C, int64_t kind) {
    const int64_t third = C / 3;
    for (int64_t j = 0; j < C && kind > 5; j++) x[j] = kind == 6 ? NAN : kind == 7 ? -INFINITY : j % 2 ? NAN : INFINITY;
    if (kind > 8) return x[C - 1] = -FLT_MAX, x[0] = C > 1 ? -INFINITY : x[0], (int32_t)(C - 1);
    if (kind > 5) return -1;
    switch (kind) {
    case 0: return x[C - 1] = 3, (int32_t)(C - 1);
    case 1: return x[third] = x[C / 2] = x[C - 1] = 3, (int32_t)third; /* the first of equals */
    case 2: x[0] = NAN; return x[third] = 3, x[C - 1] = C - 1 > third ? INFINITY : 3, (int32_t)third;
    case 3: return x[0] = 3, 0;
    case 4:
        for (int64_t j = 0; j < C; j++) x[j] = j < third ? -1 : j % 2 ? 0.0f : -0.0f; /* equals */
        return (int32_t)third;
    default:
        for (int64_t j = 0; j < C; j++) x[j] = j < third ? -INFINITY : j % 3 ? -2 : NAN;
        for (int64_t j = third; j < C; j++)
            if (j % 3) return (int32_t)j;
        return -1;
    }
}

void call_best_column(call *c) {
    const bool close = c->variant == 4; /* to each other: aligned on a card; more than a block reads at once */
    const int64_t V = c->variant == 5 ? 4999 : close ? 24004 : width(c);
    gr_rows logits = close ? filled_rows(c, 2, c->row0, c->n, V, V) : rows(c, 2, V);
    float *found = numbers(c, 1, 1);
    int32_t *best = (int32_t *)buffer(c, c->n), *expected = calloc((size_t)c->n + 1, sizeof *expected);
    assert_non_null(expected);
    for (int64_t r = 0; r < c->n; r++) expected[r] = put_best(gr_f32_row(logits, r), V, (c->row0 + r) % 10);
    c->d->ops->best_column(c->d, best, logits, c->n, V);
    for (int64_t r = 0; r < c->n; r++) {
        if (best[r] != expected[r]) fail_msg("row %d of %d: %d, not %d", (int)r, (int)V, best[r], expected[r]);
        found[r] = (float)best[r];
    }
    free(expected);
    out_numbers(c, found, 1);
}

enum { LISTED_KINDS = 11 };

/* Rows with ties of every number, few that are finite or none, and large ones in the same columns of every block that is read. */
static void put_listed(float *x, int64_t C, int64_t kind) {
    for (int64_t j = 0; j < C; j++) switch (kind) {
        case 1: x[j] = roundf(x[j] * 8); break;
        case 2: x[j] = j % 2 ? 0.0f : -0.0f; break;
        case 3: x[j] = j % 3 ? x[j] : j % 2 ? NAN : INFINITY; break;
        case 4: x[j] = j % (C / 100 + 2) == 1 ? x[j] : -INFINITY; break;
        case 5: x[j] = j % 2 ? NAN : -INFINITY; break;
        case 6: x[j] = roundf(x[j]); break; /* thousands of equals */
        case 7: x[j] = 30 - 0.01f * (float)j; break;
        case 8: x[j] = j % 4096 < 1000 ? 10 + x[j] : -1000; break; /* fewer groups of columns than are listed */
        case 9: x[j] *= j % 5 ? FLT_MAX : 1e-40f; break;
        default: x[j] *= 10;
        }
}

static bool listed_before(gr_listed a, gr_listed b) { return a.value > b.value || (a.value == b.value && a.column < b.column); }

/* Entries are the row's, in order, and nothing else stands before the last; sums are within what a listing promises. */
static void expect_listing(const gr_listing *l, const float *x, int64_t C, double temperature) {
    int32_t finite = 0, before = 0;
    double listed = 0, rest = 0;
    for (int64_t j = 0; j < C; j++) finite += isfinite(x[j]) != 0;
    assert_int_equal(l->finite, finite);
    assert_int_equal(l->n, finite < GR_LISTED ? finite : GR_LISTED);
    for (int32_t i = 0; i < l->n; i++) {
        const gr_listed e = l->entry[i];
        if (e.column < 0 || e.column >= C || x[e.column] != e.value) fail_msg("entry %d: %.9g of %d", i, e.value, e.column);
        if (i > 0 && !listed_before(l->entry[i - 1], e)) fail_msg("entry %d: %.9g of %d comes late", i, e.value, e.column);
        listed += exp(((double)e.value - l->entry[0].value) / temperature);
    }
    for (int64_t j = 0; j < C && l->n > 0; j++) {
        const gr_listed now = {x[j], (int32_t)j}, last = l->entry[l->n - 1];
        before += isfinite(x[j]) && listed_before(now, last);
        if (isfinite(x[j]) && listed_before(last, now)) rest += exp(((double)x[j] - l->entry[0].value) / temperature);
    }
    if (l->n > 0 && before != l->n - 1) fail_msg("%d stand before entry %d", before, l->n - 1);
    if (!(fabs(l->listed - listed) <= 1e-12 * listed)) fail_msg("listed: %.17g, not %.17g", l->listed, listed);
    if (!(fabs(l->rest - rest) <= GR_LISTING_ERROR * rest + GR_LISTING_LEAST)) fail_msg("rest: %.17g, not %.17g", l->rest, rest);
    const gr_listing untouched = {0};
    assert_memory_equal(&l->entry[l->n], &untouched, (size_t)(GR_LISTED - l->n) * sizeof *l->entry);
}

/* Two rows of each kind; an emulator may give each a thread of its own. */
void call_list_columns(call *c) {
    static const float temperatures[] = {1, 0.7f, 20, 0.05f, 1e-6f, 1e6f};
    const bool close = c->variant == 4; /* to each other: aligned on a card; more than a block reads at once */
    const int64_t V = c->variant == 5 ? 4999 : close ? 24004 : width(c), left = 2 * LISTED_KINDS - c->row0;
    const int64_t n = left < 0 ? 0 : left < c->n ? left : c->n, bytes = n * (int64_t)sizeof(gr_listing);
    gr_rows logits = close ? filled_rows(c, 2, c->row0, c->n, V, V) : rows(c, 2, V);
    float *sums = numbers(c, 1, 2), temperature = temperatures[(c->variant + c->variant / 6) % 6];
    gr_listing *list = (gr_listing *)((char *)buffer(c, bytes / 4 + 2) + 4 * c->off); /* aligned to 8 bytes */
    memset(list, 0, (size_t)bytes);
    for (int64_t r = 0; r < n; r++) put_listed(gr_f32_row(logits, r), V, (c->row0 + r) % LISTED_KINDS);
    c->d->ops->list_columns(c->d, list, logits, n, V, temperature);
    for (int64_t r = 0; r < n; r++) {
        expect_listing(&list[r], gr_f32_row(logits, r), V, temperature);
        sums[2 * r] = (float)list[r].listed, sums[2 * r + 1] = (float)list[r].rest;
    }
    out_numbers(c, sums, 2);
}

/* In two parts, added to what was there; odd variants meet a NaN and an infinity, of which the first one counts. */
void call_loss_sum(call *c) {
    enum { EACH = 45 };
    gr_step_stats s = {.nll = 0.5, .bad_row = -1};
    float *nll = numbers(c, 1, EACH), *w = numbers(c, 2, EACH), *sum = buffer(c, 1);
    int32_t *row = (int32_t *)buffer(c, c->n * EACH);
    const int64_t n = c->n * EACH, part = n / 4;
    const int64_t bad = c->n > 20 && c->variant & 1 ? (c->variant & 2 ? n - 5 : 19) : -1;
    double expected = 0.5;
    for (int64_t i = 0; i < n; i++) row[i] = (int32_t)(i * 7 % 1000), expected += (double)nll[i] * w[i];
    if (bad >= 0) nll[bad] = NAN, nll[bad + 1] = INFINITY;
    c->d->ops->loss_sum(c->d, &s, nll, w, row, part, 5000);
    c->d->ops->loss_sum(c->d, &s, nll + part, w + part, row + part, n - part, 5000);
    assert_int_equal(s.bad_row, bad < 0 ? -1 : 5000 + row[bad]);
    assert_true(bad < 0 ? s.nll == expected : isnan(s.nll));
    *sum = bad < 0 ? (float)s.nll : 0;
    out_sum(c, sum, 1);
}
