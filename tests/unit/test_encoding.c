/* The short ways of encoding against the long ones: cuts, whole characters, the heap and the cache against
 * merging by the book, fast reading of UTF-8 and NFC against the slow, threads on one tokenizer against each
 * other. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "core/text/encode.h"
#include "core/text/read.h"
#include "kernels/threads.h"
#include "assert_ok.h"

#define BYTES "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"

static gr_tokenizer *open_golden(const char *kind) {
    char path[512];
    gr_tokenizer *t = NULL;
    snprintf(path, sizeof path, "%s/golden/tokenizers/%s", TESTS_DIR, kind);
    assert_ok(gr_tokenizer_open(&t, path, &err));
    return t;
}

/* Byte-pair encoding as the book has it: of all pairs the one of the least rank, the leftmost, until none is
 * left. */
static void plain_bpe(const gr_tokenizer *t, const char *word, int64_t len, gr_ids *ids) {
    ids->n = 0;
    int32_t id = t->info.ignore_merges ? gr_table_find(&t->by_raw, word, len) : -1;
    if (id >= 0) {
        assert_true(gr_ids_push(ids, id));
        return;
    }
    for (int64_t i = 0; i < len; i++) assert_true(gr_ids_push(ids, t->byte_ids[(uint8_t)word[i]]));
    for (;;) {
        const gr_pair *best = NULL;
        int64_t at = 0;
        for (int64_t i = 0; i + 1 < ids->n; i++) {
            const gr_pair *pair = gr_pairs_find(&t->pairs, ids->data[i], ids->data[i + 1]);
            if (pair->id >= 0 && (!best || pair->rank < best->rank)) best = pair, at = i;
        }
        if (!best) return;
        ids->data[at] = best->id;
        for (int64_t i = at + 1; i + 1 < ids->n; i++) ids->data[i] = ids->data[i + 1];
        ids->n--;
    }
}

static uint32_t next_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* A word of characters of one or two scripts, now and then with a bad byte; most are short. */
static void random_word(uint32_t *state, gr_str *word) {
    static const uint32_t scripts[][2] = {{'a', 26},    {'a', 3},      {0x4E00, 60},   {0x4E00, 8},     {0x430, 32}, {0xE0, 30},
                                          {0x3041, 80}, {0x1F600, 60}, {0x0300, 0x40}, {0x20000, 2000}, {'0', 10},   {0xAC00, 90}};
    gr_str_clear(word);
    uint32_t one = next_random(state) % GR_LEN(scripts), two = next_random(state) % GR_LEN(scripts);
    uint32_t n = 1 + next_random(state) % (next_random(state) % 20 ? 8 : 120);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t *script = scripts[next_random(state) % 8 ? one : two];
        char c[4] = {(char)(0x80 + next_random(state) % 0x80)};
        int size = next_random(state) % 300 ? gr_utf8_encode(script[0] + next_random(state) % script[1], c) : 1;
        gr_str_add(word, c, size);
    }
}

/* Cuts, whole characters, the heap and the cache, full and overwritten, change no id: more words than it
 * holds, each twice. */
static void test_words_are_merged_plainly(void **state) {
    (void)state;
    static const char *const kinds[] = {"gpt2", "smollm2", "llama3", "qwen2"};
    for (int k = 0; k < GR_LEN(kinds); k++) {
        gr_tokenizer *t = open_golden(kinds[k]);
        gr_scratch s = {.cache = gr_cache_take(t->caches)};
        gr_str word = {0};
        gr_ids ids = {0}, wanted = {0};
        uint32_t random = 5;
        for (int i = 0; i < 4 << GR_CACHE_BITS; i++) {
            random_word(&random, &word);
            plain_bpe(t, word.data, word.len, &wanted);
            for (int again = 0; again < 2; again++) {
                ids.n = 0;
                assert_true(gr_bpe_encode(t, &s, word.data, word.len, &ids));
                if (ids.n != wanted.n || memcmp(ids.data, wanted.data, (size_t)ids.n * sizeof *ids.data) != 0)
                    fail_msg("%s: ids differ for \"%s\"", kinds[k], word.data);
            }
        }
        gr_cache_give(t->caches, s.cache);
        free(s.symbols);
        free(s.heap);
        gr_str_release(&word);
        gr_ids_release(&ids);
        gr_ids_release(&wanted);
        gr_tokenizer_free(t);
    }
}

/* Merges out of the order that training gives, and one whose piece has other bytes than its halves: what is
 * known beforehand of ordinary lists does not hold. */
static void test_odd_merges(void **state) {
    (void)state;
    static const struct {
        const char *json, *text;
    } odd[] = {
        /* U+4E00 (bytes E4 B8 80) is made after a and b are merged, though b would rather have it */
        {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"\\u00e4\":2,\"\\u00b8\":3,\"\\u0122\":4,"
         "\"\\u00e4\\u00b8\":5,"
         "\"\\u00e4\\u00b8\\u0122\":6,\"ab\":7,\"b\\u00e4\\u00b8\\u0122\":8},\"merges\":[\"b "
         "\\u00e4\\u00b8\\u0122\",\"a b\","
         "\"\\u00e4 \\u00b8\",\"\\u00e4\\u00b8 \\u0122\"]}," BYTES "}",
         "ab\xe4\xb8\x80"},
    };
    for (int i = 0; i < GR_LEN(odd); i++) {
        gr_tokenizer *t = NULL;
        assert_ok(gr_tokenizer_parse_json(&t, odd[i].json, (int64_t)strlen(odd[i].json), "t.json", &err));
        gr_ids ids = {0}, wanted = {0};
        int64_t len = (int64_t)strlen(odd[i].text);
        plain_bpe(t, odd[i].text, len, &wanted);
        assert_ok(gr_tokenizer_encode(t, odd[i].text, len, false, &ids, &err));
        assert_int_equal(ids.n, wanted.n);
        assert_memory_equal(ids.data, wanted.data, (size_t)ids.n * sizeof *ids.data);
        assert_true(ids.n < len);
        gr_ids_release(&ids);
        gr_ids_release(&wanted);
        gr_tokenizer_free(t);
    }
}

typedef struct shared_work {
    const gr_tokenizer *t;
    gr_ids ids[64];
} shared_work;

static void encode_shared(void *context, int64_t i, int worker) {
    shared_work *w = context;
    (void)worker;
    uint32_t random = 9; /* the same words for all */
    gr_str word = {0};
    for (int k = 0; k < 300; k++) {
        random_word(&random, &word);
        assert_ok(gr_tokenizer_encode(w->t, word.data, word.len, false, &w->ids[i], NULL));
    }
    gr_str_release(&word);
}

static void test_threads_share_a_tokenizer(void **state) {
    (void)state;
    shared_work w = {.t = open_golden("smollm2")};
    gr_threads *threads = gr_threads_new(4);
    assert_non_null(threads);
    gr_threads_run(threads, GR_LEN(w.ids), encode_shared, &w);
    gr_threads_free(threads);
    for (int i = 0; i < GR_LEN(w.ids); i++) {
        assert_int_equal(w.ids[i].n, w.ids[0].n);
        assert_memory_equal(w.ids[i].data, w.ids[0].data, (size_t)w.ids[0].n * sizeof *w.ids[0].data);
        if (i > 0) gr_ids_release(&w.ids[i]);
    }
    gr_ids_release(&w.ids[0]);
    gr_tokenizer_free((gr_tokenizer *)(uintptr_t)w.t);
}

/* The short ways of reading are the long way. */
static void test_fast_unicode(void **state) {
    (void)state;
    static const uint8_t thirds[] = {0x00, 0x7F, 0x80, 0xBF, 0xC0, 0xFF};
    for (int i = 0; i < 256 * 256 * GR_LEN(thirds); i++) {
        char s[4] = {(char)(i >> 8), (char)i, (char)thirds[i >> 16], '\x80'};
        for (int n = 1; n <= 4; n++) {
            int size, fast_size;
            assert_int_equal(gr_utf8_decode(s, n, &size, NULL), gr_utf8_read(s, n, &fast_size));
            assert_int_equal(size, fast_size);
        }
    }
    gr_tokenizer *t = open_golden("qwen2"); /* NFC */
    gr_scratch scratch = {0};
    for (uint32_t point = 1; point < 0x10000; point++) {
        if (point >= 0xD800 && point < 0xE000) continue;
        char s[16] = "e"; /* U+0301 composes with it */
        int64_t n = 1 + gr_utf8_encode(point, s + 1), out_len;
        const char *out;
        assert_true(gr_normalize(t, &scratch, s, n, &out, &out_len));
        char *wanted = (char *)utf8proc_NFC((const utf8proc_uint8_t *)s);
        assert_int_equal(strlen(wanted), out_len);
        assert_memory_equal(wanted, out, (size_t)out_len);
        free(wanted);
    }
    gr_str_release(&scratch.normal[0]);
    gr_str_release(&scratch.normal[1]);
    gr_tokenizer_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words_are_merged_plainly),
        cmocka_unit_test(test_odd_merges),
        cmocka_unit_test(test_threads_share_a_tokenizer),
        cmocka_unit_test(test_fast_unicode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
