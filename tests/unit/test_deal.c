/* Samples of a step dealt to ranks: each to one of them, in the order of the step, and by lengths of real samples nearly as well as
 * can be. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "peft/ranks.h"

#include "assert_ok.h"

enum { RANKS = 8, MOST = 2048 };

/* Samples of the lengths in files: all that dealing looks at. */
typedef struct lengths {
    gr_dataset d;
    int64_t offset[MOST + 1], order[MOST];
} lengths;

static void read_lengths(lengths *l, const char *path) {
    FILE *f = fopen(path, "r");
    long long tokens;
    assert_non_null(f);
    for (; l->d.n_samples < MOST && fscanf(f, "%lld", &tokens) == 1; l->d.n_samples++)
        l->offset[l->d.n_samples + 1] = l->offset[l->d.n_samples] + tokens;
    fclose(f);
    l->d.offset = l->offset;
}

/* Some order of them, always the same. */
static void mix(lengths *l) {
    uint64_t random = 1;
    for (int64_t i = 0; i < l->d.n_samples; i++) l->order[i] = i;
    for (int64_t i = l->d.n_samples - 1; i > 0; i--) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        int64_t k = (int64_t)((random >> 33) % (uint64_t)(i + 1)), other = l->order[k];
        l->order[k] = l->order[i], l->order[i] = other;
    }
}

static int64_t length_of(const gr_dataset *d, int64_t i) { return d->offset[i + 1] - d->offset[i]; }

/* Each sample of idx[n] once, each rank's in the order of the step; tokens of the rank that has the most. */
static int64_t check_deal(const gr_deal *deal, const gr_dataset *d, const int64_t *idx, int64_t n, int size) {
    int64_t slowest = 0, places[MOST];
    bool seen[MOST] = {0};
    for (int64_t i = 0; i < n; i++) places[idx[i]] = i;
    assert_int_equal(deal->first[0], 0);
    assert_int_equal(deal->first[size], n);
    for (int r = 0; r < size; r++) {
        int64_t tokens = 0;
        for (int64_t i = deal->first[r]; i < deal->first[r + 1]; i++) {
            assert_false(seen[deal->samples[i]]);
            seen[deal->samples[i]] = true;
            if (i > deal->first[r]) assert_true(places[deal->samples[i - 1]] < places[deal->samples[i]]);
            tokens += length_of(d, deal->samples[i]);
        }
        slowest = GR_MAX(slowest, tokens);
    }
    return slowest;
}

typedef struct balance {
    double efficiency, over; /* tokens / (ranks x the slowest one's); the slowest one's / the least that it can be */
} balance;

static balance deal_all(const lengths *l, int64_t batch, const char *name) {
    gr_deal deal = {0};
    double tokens = 0, slow = 0, least = 0;
    for (int64_t first = 0; first + batch <= l->d.n_samples; first += batch) {
        const int64_t *idx = l->order + first;
        int64_t sum = 0, longest = 0;
        assert_ok(gr_deal_samples(&deal, &l->d, idx, batch, RANKS, &err));
        for (int64_t i = 0; i < batch; i++) sum += length_of(&l->d, idx[i]), longest = GR_MAX(longest, length_of(&l->d, idx[i]));
        tokens += (double)sum;
        slow += (double)check_deal(&deal, &l->d, idx, batch, RANKS);
        least += GR_MAX((double)longest, (double)sum / RANKS);
    }
    gr_deal_release(&deal);
    const balance b = {tokens / (RANKS * slow), slow / least};
    printf("%s, batches of %lld on %d ranks: %.4f of the time all work, %.4f of the bound\n", name, (long long)batch, RANKS,
           b.efficiency, b.over);
    return b;
}

static void test_real_lengths(void **state) {
    (void)state;
    static const struct {
        const char *name, *files[2];
    } sets[] = {{"alpaca_zh and alpaca_en", {"alpaca_zh", "alpaca_en"}}, {"gsm8k", {"gsm8k"}}};
    for (int i = 0; i < GR_LEN(sets); i++) {
        lengths l = {0};
        for (int k = 0; k < 2 && sets[i].files[k]; k++) {
            char path[128];
            snprintf(path, sizeof path, TESTS_DIR "/bench/lengths_%s.txt", sets[i].files[k]);
            read_lengths(&l, path);
        }
        assert_true(l.d.n_samples >= 1024);
        mix(&l);
        assert_true(deal_all(&l, 128, sets[i].name).efficiency >= 0.99);
        assert_true(deal_all(&l, 32, sets[i].name).over <= 1.01);
    }
}

/* Fewer samples than ranks, one rank, equal lengths, a sample that outweighs all others. */
static void test_odd_steps(void **state) {
    (void)state;
    static const int64_t tokens[] = {5, 5, 5, 5, 100, 2, 3, 2, 7, 7};
    lengths l = {0};
    gr_deal deal = {0};
    for (int64_t i = 0; i < GR_LEN(tokens); i++) l.offset[i + 1] = l.offset[i] + tokens[i], l.order[i] = GR_LEN(tokens) - 1 - i;
    l.d.offset = l.offset, l.d.n_samples = GR_LEN(tokens);
    for (int64_t n = 1; n <= GR_LEN(tokens); n++)
        for (int size = 1; size <= RANKS; size++) {
            assert_ok(gr_deal_samples(&deal, &l.d, l.order, n, size, &err));
            int64_t slowest = check_deal(&deal, &l.d, l.order, n, size);
            if (n == GR_LEN(tokens) && size > 1) assert_int_equal(slowest, 100);
            if (n == 4 && size == 4) assert_int_equal(slowest, 7);
            gr_deal_release(&deal); /* its ranks stay as many */
        }
}

/* 7 6 5 5 5 on two ranks: longest first leaves 7 5 and 6 5 5, which is 16; the best is 15: 6 and a 5 change places. */
static void test_exchange(void **state) {
    (void)state;
    static const int64_t tokens[] = {7, 6, 5, 5, 5};
    lengths l = {0};
    gr_deal deal = {0};
    for (int64_t i = 0; i < GR_LEN(tokens); i++) l.offset[i + 1] = l.offset[i] + tokens[i], l.order[i] = i;
    l.d.offset = l.offset, l.d.n_samples = GR_LEN(tokens);
    assert_ok(gr_deal_samples(&deal, &l.d, l.order, GR_LEN(tokens), 2, &err));
    assert_int_equal(check_deal(&deal, &l.d, l.order, GR_LEN(tokens), 2), 15);
    gr_deal_release(&deal);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_real_lengths), cmocka_unit_test(test_odd_steps),
                                       cmocka_unit_test(test_exchange)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
