/* Tokens on disk are the tokens in memory, samples and blocks of pre-training alike; documents are known in these, a mix keeps its
 * shares. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/data/dataset.h"
#include "core/data/store.h"
#include "core/data/sums.h"
#include "core/io/h5.h"
#include "core/model/batch.h"

#include "assert_ok.h"

static char folder[] = "/tmp/graft-store-XXXXXX";
static gr_tokenizer *tokenizer;
static gr_threads *threads;

enum { TEXTS = 90, LENGTH = 32, N_SOURCES = 3 };

static const char *at(const char *name) {
    static char paths[8][128];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

/* n texts of 3 to 60 words. */
static void write_texts(const char *name, int n) {
    gr_str s = {0};
    for (int i = 0; i < n; i++) {
        gr_str_printf(&s, "{\"text\": \"%s %d\\n", name, i);
        for (int k = 0; k < 3 + i * 7 % 58; k++) gr_str_printf(&s, "word%d ", i * k % 97);
        gr_str_puts(&s, "\"}\n");
    }
    assert_ok(gr_file_write(at(name), s.data, s.len, &err));
    gr_str_release(&s);
}

static int set_up(void **state) {
    (void)state;
    gr_log_quiet(true);
    if (!mkdtemp(folder)) return -1;
    threads = gr_threads_new(3);
    write_texts("a.jsonl", TEXTS);
    write_texts("b.jsonl", TEXTS / 3);
    write_texts("c.jsonl", TEXTS / 2);
    return gr_tokenizer_open(&tokenizer, TESTS_DIR "/golden/tiny", NULL);
}

static int tear_down(void **state) {
    (void)state;
    gr_tokenizer_free(tokenizer);
    gr_threads_free(threads);
    gr_remove_all(folder);
    return 0;
}

static gr_data_source sources[N_SOURCES];

static gr_data_options options(const char *cache, bool shares) {
    static const double share[N_SOURCES] = {840.48, 314.88, 99.3};
    static char paths[N_SOURCES][128], cache_path[128];
    for (int i = 0; i < N_SOURCES; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/%c.jsonl", folder, 'a' + i);
        sources[i] = (gr_data_source){.path = paths[i], .weight = 1, .share = shares ? share[i] : 0};
    }
    if (cache) snprintf(cache_path, sizeof cache_path, "%s", at(cache));
    return (gr_data_options){.sources = sources,
                             .n_sources = N_SOURCES,
                             .max_length = LENGTH,
                             .pretrain = true,
                             .cache_dir = cache ? cache_path : NULL,
                             .shard_ids = 700};
}

/* What a set may be: a stream whose documents see each other or do not, or samples. */
enum { ACROSS, DOCUMENTS, SAMPLES, KINDS };

static gr_data_options options_of(int kind, const char *cache) {
    gr_data_options o = options(cache, false);
    o.pretrain = kind != SAMPLES;
    o.attention = kind == DOCUMENTS ? GR_ATTENTION_DOCUMENT : GR_ATTENTION_ACROSS;
    return o;
}

static gr_dataset *load(const gr_data_options *o, gr_threads *with) {
    gr_dataset *d = NULL;
    assert_ok(gr_dataset_load(&d, o, tokenizer, NULL, with, &err));
    return d;
}

static void assert_same(const gr_dataset *a, const gr_dataset *b) {
    gr_tokens read_a = {0}, read_b = {0};
    assert_int_equal(a->n_samples, b->n_samples);
    assert_int_equal(a->n_targets, b->n_targets);
    assert_int_equal(a->n_empty, b->n_empty);
    assert_memory_equal(&a->lost, &b->lost, sizeof a->lost);
    for (int64_t i = 0; i < a->n_samples; i++) {
        const int32_t *x, *y;
        const uint8_t *p, *q;
        int64_t n = a->offset[i + 1] - a->offset[i];
        assert_int_equal(n, b->offset[i + 1] - b->offset[i]);
        assert_int_equal(a->source[i], b->source[i]);
        assert_ok(gr_dataset_read(a, i, &read_a, &x, &p, &err));
        assert_ok(gr_dataset_read(b, i, &read_b, &y, &q, &err));
        assert_memory_equal(x, y, (size_t)n * sizeof *x);
        assert_memory_equal(p, q, (size_t)n);
        assert_int_equal(gr_dataset_targets(a, i), gr_dataset_targets(b, i));
    }
    gr_tokens_release(&read_a);
    gr_tokens_release(&read_b);
}

/* The folder of the one set that a cache holds. */
static const char *tokens_of(const char *cache) {
    static char path[200];
    char pattern[200];
    snprintf(pattern, sizeof pattern, "ls -d %s/*.tokens", at(cache));
    FILE *f = popen(pattern, "r");
    assert_non_null(f);
    if (!fgets(path, sizeof path, f)) fail_msg("no store in %s", cache);
    pclose(f);
    path[strcspn(path, "\n")] = '\0';
    return path;
}

static void test_same_as_memory(void **state) {
    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        gr_data_options in_memory = options_of(kind, NULL), on_disk = options_of(kind, "same");
        gr_dataset *a = load(&in_memory, threads), *b = load(&on_disk, NULL), *c = load(&on_disk, threads), *e = NULL, *f = NULL;
        assert_null(a->store);
        assert_true(b->store && b->store->n_shards > 2 && c->from_cache && !b->from_cache == (kind != DOCUMENTS));
        assert_true((a->lost.truncated > 0) == (kind == SAMPLES));
        assert_same(a, b);
        assert_same(a, c);
        assert_true(gr_dataset_bytes(b) < gr_dataset_bytes(a));
        assert_int_equal(a->key, b->key);
        int64_t *order_a, *order_b, n_a, n_b;
        assert_ok(gr_dataset_order(a, 5, 2, true, &order_a, &n_a, &err));
        assert_ok(gr_dataset_order(b, 5, 2, true, &order_b, &n_b, &err));
        assert_int_equal(n_a, n_b);
        assert_memory_equal(order_a, order_b, (size_t)n_a * sizeof *order_a);
        free(order_a);
        free(order_b);
        assert_ok(gr_dataset_split(a, 0.2, 3, &e, &err));
        assert_ok(gr_dataset_split(b, 0.2, 3, &f, &err));
        assert_same(a, b);
        assert_same(e, f);
        gr_dataset_free(e);
        gr_dataset_free(f);
        gr_dataset_free(a);
        gr_dataset_free(b);
        gr_dataset_free(c);
    }
}

/* Documents of a block are sequences of their own, with positions from 0, and nothing predicts their first ids; across, all is as
 * without documents. */
static void test_documents(void **state) {
    (void)state;
    gr_data_options o = options(NULL, false);
    int32_t bos = gr_tokenizer_get_info(tokenizer)->bos, eos = gr_tokenizer_get_info(tokenizer)->eos;
    bool add_bos = gr_tokenizer_get_info(tokenizer)->add_bos;
    gr_dataset *across = load(&o, threads);
    o.attention = GR_ATTENTION_DOCUMENT;
    gr_dataset *apart = load(&o, threads);
    gr_batch x = {0}, y = {0};
    assert_true(across->key != apart->key);
    int64_t documents = 0, idx[2] = {0};
    for (int64_t i = 0; i + 1 < across->n_samples; i += 2) {
        idx[0] = i, idx[1] = i + 1;
        assert_ok(gr_batch_fill(&x, across, idx, 2, 1, &err));
        assert_ok(gr_batch_fill(&y, apart, idx, 2, 1, &err));
        assert_int_equal(x.n_seqs, 2);
        assert_int_equal(x.n, y.n);
        assert_memory_equal(x.tokens, y.tokens, (size_t)x.n * sizeof *x.tokens);
        assert_int_equal(x.n_targets, x.n - 2);
        assert_int_equal(y.n_targets, y.n - y.n_seqs);
        assert_int_equal(y.n_targets, gr_dataset_targets(apart, i) + gr_dataset_targets(apart, i + 1));
        documents += y.n_seqs - 2;
        for (int64_t s = 0; s < y.n_seqs; s++) {
            int64_t start = y.offset[s], end = y.offset[s + 1];
            bool begins_block = start == 0 || start == x.offset[1];
            for (int64_t r = start; r < end; r++) {
                assert_int_equal(y.positions[r], r - start);
                assert_true((y.weight[r] != 0) == (r + 1 < end));
                if (r + 1 < end) assert_int_equal(y.targets[r], y.tokens[r + 1]);
                if (begins_block) assert_true(y.row_key[r] == x.row_key[r]);
            }
            if (!begins_block) assert_int_equal(y.tokens[start - 1], eos);
            if (!begins_block && add_bos) assert_int_equal(y.tokens[start], bos);
        }
    }
    assert_true(documents > TEXTS);
    gr_batch_release(&x);
    gr_batch_release(&y);
    gr_dataset_free(across);
    gr_dataset_free(apart);
}

/* ---- making goes on, damage is found ---- */

static void resume_making(int kind, const char *cache) {
    gr_data_options in_memory = options_of(kind, NULL), on_disk = options_of(kind, cache);
    gr_dataset *a = load(&in_memory, threads), *b = load(&on_disk, threads);
    int64_t n_shards = b->store->n_shards;
    char path[300], removed[400];
    gr_dataset_free(b);
    snprintf(path, sizeof path, "%s", tokens_of(cache));
    for (int64_t kept = n_shards - 1; kept >= 0; kept -= 2) { /* as if it had been killed then */
        snprintf(removed, sizeof removed, "%s/index.h5", path);
        assert_int_equal(unlink(removed), 0);
        for (int64_t i = kept; i < n_shards; i++) {
            snprintf(removed, sizeof removed, "%s/shard-%06lld.h5", path, (long long)i);
            assert_int_equal(unlink(removed), 0);
        }
        b = load(&on_disk, threads);
        assert_false(b->from_cache);
        assert_int_equal(b->store->n_shards, n_shards);
        assert_same(a, b);
        assert_true((kept > 0) == (b->remarks != NULL));
        gr_dataset_free(b);
    }
    gr_dataset_free(a);
}

static void test_resumed_making(void **state) {
    (void)state;
    resume_making(ACROSS, "parts");
    resume_making(SAMPLES, "parts-of-samples");
}

/* Another process that loads the set. */
static pid_t start_loading(const gr_data_options *o) {
    pid_t child = fork();
    if (child) return child;
    gr_dataset *d = NULL;
    _exit(gr_dataset_load(&d, o, tokenizer, NULL, NULL, NULL) != GRAFT_OK || !d->store);
}

/* Killed at any moment, nothing that is not whole is taken for whole, and the next goes on. */
static void test_killed_making(void **state) {
    (void)state;
    gr_data_options in_memory = options_of(SAMPLES, NULL), on_disk = options_of(SAMPLES, "killed");
    on_disk.shard_ids = 100;
    gr_dataset *a = load(&in_memory, threads), *b;
    int killed = 0, status;
    for (int i = 0; i < 20; i++) {
        pid_t child = start_loading(&on_disk);
        assert_true(child > 0);
        usleep((useconds_t)(500 + i * 700));
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        killed += WIFSIGNALED(status);
        if (i % 5 < 4) continue; /* go on from what the killed ones left */
        b = load(&on_disk, threads);
        assert_same(a, b);
        gr_dataset_free(b);
        gr_remove_all(at("killed"));
    }
    assert_true(killed > 0);
    gr_dataset_free(a);
}

/* Several that make the same set at once do no harm to each other. */
static void test_made_at_once(void **state) {
    (void)state;
    gr_data_options in_memory = options_of(SAMPLES, NULL), on_disk = options_of(SAMPLES, "at-once");
    on_disk.shard_ids = 300;
    gr_dataset *a = load(&in_memory, threads), *b;
    pid_t children[4];
    int status;
    for (int i = 0; i < GR_LEN(children); i++) assert_true((children[i] = start_loading(&on_disk)) > 0);
    for (int i = 0; i < GR_LEN(children); i++) {
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    b = load(&on_disk, threads);
    assert_true(b->from_cache);
    assert_same(a, b);
    gr_dataset_free(a);
    gr_dataset_free(b);
}

static void flip(const char *path, long from_end) {
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, -from_end, SEEK_END), 0);
    int c = fgetc(f);
    assert_int_equal(fseek(f, -from_end, SEEK_END), 0);
    fputc(c ^ 0x40, f);
    fclose(f);
}

/* One token of the second shard is another: all samples of its chunk are refused, no others. */
static void damage_token(int kind, const char *cache) {
    gr_data_options in_memory = options_of(kind, NULL), on_disk = options_of(kind, cache);
    on_disk.shard_ids = 4 * GR_STORE_CHUNK;
    write_texts("a.jsonl", 70 * TEXTS);
    gr_dataset *a = load(&in_memory, threads), *b = load(&on_disk, threads);
    gr_tokens buffer = {0};
    const int32_t *ids;
    const uint8_t *target;
    char path[300];
    snprintf(path, sizeof path, "%s/shard-000001.h5", tokens_of(cache));
    const int64_t *shard = b->store->shards + 5, at_id = GR_STORE_CHUNK + 1000;
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)(shard[3] + at_id * 4 + 1), SEEK_SET), 0);
    fputc(0x3F, f);
    fclose(f);
    int64_t chunk = b->offset[shard[0]] + GR_STORE_CHUNK, wrong = 0;
    for (int64_t i = 0; i < b->n_samples; i++) {
        graft_status st = gr_dataset_read(b, i, &buffer, &ids, &target, &err);
        bool touches = b->offset[i] < chunk + GR_STORE_CHUNK && b->offset[i + 1] > chunk;
        assert_int_equal(st, touches ? GRAFT_BAD_INPUT : GRAFT_OK);
        wrong += touches;
        if (st != GRAFT_OK) assert_true(strstr(err.msg, "shard-000001.h5") && strstr(err.msg, "tokens from 8192 on"));
    }
    assert_true(wrong > 100 && wrong < b->n_samples / 2);
    assert_non_null(strstr(err.msg, "made anew"));
    gr_dataset_free(b);
    b = load(&on_disk, threads); /* the next run makes the shard again */
    assert_false(b->from_cache);
    assert_same(a, b);
    gr_dataset_free(b);
    b = load(&on_disk, threads); /* once */
    assert_true(b->from_cache);
    assert_same(a, b);
    gr_dataset_free(b);
    gr_dataset_free(a);
    gr_tokens_release(&buffer);
    write_texts("a.jsonl", TEXTS);
}

static void test_damage(void **state) {
    (void)state;
    damage_token(ACROSS, "damaged-stream");
    damage_token(SAMPLES, "damaged-samples");
    gr_data_options in_memory = options(NULL, false), on_disk = options("damaged", false);
    gr_dataset *a = load(&in_memory, threads), *b = load(&on_disk, threads);
    char path[300];
    gr_dataset_free(b);
    snprintf(path, sizeof path, "%s/index.h5", tokens_of("damaged"));
    flip(path, 40);
    b = load(&on_disk, threads); /* the index is made again */
    assert_false(b->from_cache);
    assert_same(a, b);
    gr_dataset_free(b);
    snprintf(path, sizeof path, "%s/shard-000000.h5", tokens_of("damaged"));
    assert_int_equal(truncate(path, 3000), 0);
    b = load(&on_disk, threads);
    assert_same(a, b);
    gr_dataset_free(b);
    gr_dataset_free(a);
}

static void put_left(gr_h5 *h, int64_t n_empty) {
    static const char *const names[] = {"n_truncated", "n_dropped", "n_lost_turns", "n_lost_prompt", "n_lost_answer"};
    for (int i = 0; i < GR_LEN(names); i++) assert_ok(gr_h5_put_int(h, names[i], 0, &err));
    assert_ok(gr_h5_put_int(h, "n_empty", n_empty, &err));
}

/* An index with a right seal and wrong contents: made again, never read beyond. */
static void test_hostile_index(void **state) {
    (void)state;
    gr_data_options in_memory = options(NULL, false), on_disk = options("hostile", false);
    gr_dataset *a = load(&in_memory, threads), *b = load(&on_disk, threads);
    gr_store good = *b->store;
    char path[300];
    snprintf(path, sizeof path, "%s/index.h5", tokens_of("hostile"));
    for (int which = 0; which < 14; which++) {
        int64_t n = good.n_blocks, n1 = n + 1, shards[2] = {good.n_shards, 5}, one = 1, n_sums = good.n_sums;
        int64_t *offset = gr_calloc(n1, 8), *list = gr_calloc(shards[0] * 5, 8);
        int32_t *source = gr_calloc(n, 4), *learned = gr_calloc(n, 4);
        memcpy(offset, good.offset, (size_t)n1 * 8);
        memcpy(list, good.shards, (size_t)shards[0] * 40);
        memcpy(source, b->source, (size_t)n * 4);
        memcpy(learned, good.learned, (size_t)n * 4);
        int64_t max_id = good.max_id;
        if (which == 0) offset[1] = INT64_MAX;
        if (which == 1) offset[n] = -1;
        if (which == 2) source[0] = 5;
        if (which == 3) learned[n - 1] = -2;
        if (which == 4) list[3] = INT64_MAX - 1;
        if (which == 5) list[5] = n + 3;
        if (which == 6) list[2] = 17;
        if (which == 7) max_id = 1LL << 40;
        if (which == 8) shards[1] = 3;
        if (which == 9) learned[0] = LENGTH;
        if (which == 10) list[6] = 0;
        if (which == 11) n_sums--;
        if (which == 12) list[1] = -1;
        int64_t left = which == 13 ? -7 : 0;
        gr_h5 *h = NULL;
        assert_ok(gr_h5_create(&h, path, &err));
        assert_ok(gr_h5_put(h, "/offset", GR_H5_I64, 1, &n1, offset, &err));
        assert_ok(gr_h5_put(h, "/source", GR_H5_I32, 1, &n, source, &err));
        assert_ok(gr_h5_put(h, "/learned", GR_H5_I32, 1, &n, learned, &err));
        assert_ok(gr_h5_put(h, "/sum", GR_H5_I64, 1, &n_sums, good.sum, &err));
        assert_ok(gr_h5_put(h, "/shards", GR_H5_I64, 2, shards, list, &err));
        assert_ok(gr_h5_put(h, "/remarks", GR_H5_U8, 1, &one, "", &err));
        assert_ok(gr_h5_put_int(h, "version", 2, &err));
        put_left(h, left);
        assert_ok(gr_h5_put_int(h, "max_id", max_id, &err));
        assert_ok(gr_h5_commit(h, &err));
        gr_dataset *c = load(&on_disk, threads);
        assert_false(c->from_cache);
        assert_same(a, c);
        gr_dataset_free(c);
        free(offset);
        free(list);
        free(source);
        free(learned);
    }
    gr_dataset_free(b);
    gr_dataset_free(a);
}

/* An index whose counts are not those of the tokens, which is seen when they are read. */
static void test_wrong_counts(void **state) {
    (void)state;
    gr_data_options on_disk = options_of(SAMPLES, "counts");
    gr_dataset *d = load(&on_disk, threads);
    gr_tokens buffer = {0};
    const int32_t *ids;
    const uint8_t *target;
    d->store->learned[5]--;
    assert_ok(gr_dataset_read(d, 4, &buffer, &ids, &target, &err));
    assert_int_equal(gr_dataset_read(d, 5, &buffer, &ids, &target, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "no tokenizer makes"));
    gr_tokens_release(&buffer);
    gr_dataset_free(d);
}

/* A shard with a right seal and wrong contents, of a making that was killed: tokenised again. */
static void test_hostile_shard(void **state) {
    (void)state;
    gr_data_options in_memory = options(NULL, false), on_disk = options("shard", false);
    gr_dataset *a = load(&in_memory, threads), *b = load(&on_disk, threads);
    char path[300], index[300];
    snprintf(path, sizeof path, "%s/shard-000001.h5", tokens_of("shard"));
    snprintf(index, sizeof index, "%s/index.h5", tokens_of("shard"));
    gr_dataset_free(b);
    for (int which = 0; which < 7; which++) {
        int64_t offset[2] = {0, LENGTH}, two = 2, one = 1, n = LENGTH, n_open = 3, n_open_ids = 3;
        int32_t ids[4 * LENGTH] = {0}, source = 0;
        uint8_t target[4 * LENGTH] = {0};
        if (which == 0) n_open = n_open_ids = LENGTH; /* a block that is open and whole */
        if (which == 1) n_open = n_open_ids = LENGTH + 1;
        if (which == 2) n_open_ids = 2;
        if (which == 3) ids[LENGTH + 1] = 1 << 30;
        if (which == 4) ids[LENGTH + 1] = -1;
        if (which == 5) target[LENGTH + 2] = 3;
        if (which == 6) n = offset[1] = LENGTH + 2;
        gr_h5 *h = NULL;
        assert_ok(gr_h5_create(&h, path, &err));
        assert_ok(gr_h5_put(h, "/ids", GR_H5_I32, 1, &n, ids, &err));
        assert_ok(gr_h5_put(h, "/target", GR_H5_U8, 1, &n, target, &err));
        assert_ok(gr_h5_put(h, "/offset", GR_H5_I64, 1, &two, offset, &err));
        assert_ok(gr_h5_put(h, "/source", GR_H5_I32, 1, &one, &source, &err));
        assert_ok(gr_h5_put(h, "/open_ids", GR_H5_I32, 1, &n_open_ids, ids + n, &err));
        assert_ok(gr_h5_put(h, "/open_target", GR_H5_U8, 1, &n_open_ids, target + n, &err));
        assert_ok(gr_h5_put_int(h, "version", 2, &err));
        assert_ok(gr_h5_put_int(h, "n_open", n_open, &err));
        assert_ok(gr_h5_put_int(h, "next_source", 0, &err));
        assert_ok(gr_h5_put_int(h, "next", 1, &err));
        put_left(h, 0);
        assert_ok(gr_h5_commit(h, &err));
        assert_int_equal(unlink(index), 0);
        b = load(&on_disk, threads);
        assert_same(a, b);
        gr_dataset_free(b);
    }
    gr_dataset_free(a);
}

/* A folder that cannot be written costs memory, not the run. */
static void test_unwritable(void **state) {
    (void)state;
    assert_ok(gr_file_write(at("file"), "x", 1, &err));
    gr_data_options in_memory = options(NULL, false), on_disk = options("file", false);
    gr_dataset *a = load(&in_memory, threads), *b = load(&on_disk, threads);
    assert_null(b->store);
    assert_same(a, b);
    gr_dataset_free(a);
    gr_dataset_free(b);
}

/* ---- mixes ---- */

static void test_mix(void **state) {
    (void)state;
    gr_data_options o = options("mix", true);
    gr_dataset *d = load(&o, threads);
    gr_mix_fact facts[N_SOURCES];
    const double share[N_SOURCES] = {840.48 / 1254.66, 314.88 / 1254.66, 99.3 / 1254.66};
    int64_t drawn[N_SOURCES] = {0}, total = 0, whole[N_SOURCES] = {0};
    int32_t *times = gr_calloc(d->n_samples, sizeof *times);
    for (int64_t i = 0; i < d->n_samples; i++) whole[d->source[i]] += d->offset[i + 1] - d->offset[i] == LENGTH;
    for (int64_t epoch = 0; epoch < 7; epoch++) {
        int64_t *order, *again, n, m, in_epoch[N_SOURCES] = {0};
        assert_ok(gr_dataset_order(d, 9, epoch, true, &order, &n, &err));
        assert_ok(gr_dataset_order(d, 9, epoch, true, &again, &m, &err));
        assert_int_equal(n, m);
        assert_memory_equal(order, again, (size_t)n * sizeof *order);
        for (int64_t k = 0; k < n; k++) {
            int source = d->source[order[k]];
            assert_int_equal(d->offset[order[k] + 1] - d->offset[order[k]], LENGTH);
            times[order[k]]++;
            drawn[source]++, in_epoch[source]++, total++;
            for (int s = 0; s < N_SOURCES; s++) assert_true(fabs((double)drawn[s] - share[s] * (double)total) < 1.01);
        }
        for (int s = 0; s < N_SOURCES; s++) assert_true(in_epoch[s] <= whole[s] + 1);
        free(order);
        free(again);
    }
    for (int64_t i = 0; i < d->n_samples; i++) { /* passes: each block as often as any other of its source, to one */
        int64_t passes = drawn[d->source[i]] / whole[d->source[i]];
        if (d->offset[i + 1] - d->offset[i] < LENGTH) assert_int_equal(times[i], 0);
        else assert_true(times[i] == passes || times[i] == passes + 1);
    }
    assert_ok(gr_mix_facts(d, total, facts, &err));
    for (int s = 0; s < N_SOURCES; s++) {
        assert_true(fabs(facts[s].share - share[s]) < 1e-12);
        assert_int_equal(facts[s].tokens, whole[s] * LENGTH);
        assert_true(fabs(facts[s].passes - (double)drawn[s] / (double)whole[s]) < 0.2);
    }
    int64_t *one, *two, n1, n2;
    assert_ok(gr_dataset_order(d, 9, 0, true, &one, &n1, &err));
    assert_ok(gr_dataset_order(d, 10, 0, true, &two, &n2, &err));
    assert_true(n1 == n2 && memcmp(one, two, (size_t)n1 * sizeof *one) != 0);
    free(one);
    free(two);
    free(times);
    gr_dataset_free(d);
}

static void test_mix_refusals(void **state) {
    (void)state;
    gr_dataset *d = NULL;
    gr_data_options o = options(NULL, true);
    sources[1].share = 0;
    assert_int_equal(gr_dataset_load(&d, &o, tokenizer, NULL, threads, &err), GRAFT_BAD_USAGE);
    assert_non_null(strstr(err.msg, "all sources"));
    o = options(NULL, true);
    o.pretrain = false;
    assert_int_equal(gr_dataset_load(&d, &o, tokenizer, NULL, threads, &err), GRAFT_BAD_USAGE);
    o = options(NULL, true);
    o.max_length = 20000; /* no source has that much */
    d = load(&o, threads);
    int64_t *order, n;
    assert_int_equal(gr_dataset_order(d, 1, 0, true, &order, &n, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "source 2 has no whole block"));
    gr_dataset_free(d);
}

/* ---- files that are text alone ---- */

/* The texts of a file's samples, each in brackets. */
static char *texts_of(const char *path, const char *format, int64_t limit) {
    gr_data_source source = {.path = path, .format = format, .weight = 1, .limit = limit};
    gr_reader *r = NULL;
    gr_record record;
    gr_str out = {0};
    assert_ok(gr_reader_open(&r, &source, &err));
    for (;;) {
        assert_ok(gr_reader_next(r, &record, &err));
        if (!record.text) break;
        gr_str_printf(&out, "[%s@%lld]", record.text, (long long)record.line);
    }
    gr_reader_close(r);
    return gr_str_take(&out);
}

static void test_raw_forms(void **state) {
    (void)state;
    static const char text[] = "\xEF\xBB\xBF"
                               "A title\n\n  First words,\nand more. \n\r\n\n\nLast\n";
    static const struct {
        const char *format, *expected;
        int64_t limit;
    } cases[] = {
        {"auto", "[A title\n\n  First words,\nand more. \n\r\n\n\nLast\n@1]", 0},
        {"document", "[A title\n\n  First words,\nand more. \n\r\n\n\nLast\n@1]", 0},
        {"paragraphs", "[A title@1][  First words,\nand more.@3][Last@8]", 0},
        {"paragraphs", "[A title@1]", 1},
        {"lines", "[A title@1][  First words,@3][and more.@4][Last@8]", 0},
        {"lines", "[A title@1][  First words,@3]", 2},
    };
    assert_ok(gr_file_write(at("raw.txt"), text, sizeof text - 1, &err));
    for (int i = 0; i < GR_LEN(cases); i++) {
        char *found = texts_of(at("raw.txt"), cases[i].format, cases[i].limit);
        assert_string_equal(found, cases[i].expected);
        free(found);
    }
    assert_ok(gr_file_write(at("json.txt"), "{\"text\": \"x\"}\n", 14, &err)); /* lines of JSON under that name */
    char *found = texts_of(at("json.txt"), "auto", 0);
    assert_string_equal(found, "[x@1]");
    free(found);
    gr_reader *r = NULL;
    gr_data_source source = {.path = at("bad.txt"), .weight = 1};
    assert_ok(gr_file_write(source.path, "ok\nno \xFF\n", 8, &err));
    assert_ok(gr_reader_open(&r, &source, &err));
    gr_record record;
    assert_int_equal(gr_reader_next(r, &record, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "bad.txt:2: byte 0xFF"));
    gr_reader_close(r);
    source.encoding = "replace";
    assert_ok(gr_reader_open(&r, &source, &err));
    assert_ok(gr_reader_next(r, &record, &err));
    assert_string_equal(record.text, "ok\nno \xEF\xBF\xBD\n");
    gr_reader_close(r);
    assert_ok(gr_file_write(at("blank.txt"), " \n\n", 3, &err));
    source.path = at("blank.txt");
    assert_int_equal(gr_reader_open(&r, &source, &err), GRAFT_BAD_INPUT);
}

/* A document of several megabytes is tokenised in pieces, and is the same ids, one document with one end. */
static void test_long_document(void **state) {
    (void)state;
    gr_str s = {0};
    for (int i = 0; i < 80000; i++) gr_str_printf(&s, "Line %d says %d.\n%s", i, i * 7 % 1013, i % 50 ? "" : "\n  indented\n");
    assert_true(s.len > (5 << 18));
    assert_ok(gr_file_write(at("long.txt"), s.data, s.len, &err));
    gr_ids ids = {0};
    assert_ok(gr_tokenizer_encode(tokenizer, s.data, s.len, true, &ids, &err));
    gr_data_source source = {.path = at("long.txt"), .weight = 1};
    gr_data_options o = {
        .sources = &source, .n_sources = 1, .max_length = 512, .pretrain = true, .attention = GR_ATTENTION_DOCUMENT};
    gr_dataset *d = load(&o, threads);
    int64_t bos = gr_tokenizer_get_info(tokenizer)->add_bos, n = d->offset[d->n_samples];
    assert_int_equal(n, ids.n + bos + 1);
    assert_memory_equal(d->ids + bos, ids.data, (size_t)ids.n * sizeof *ids.data);
    assert_int_equal(d->ids[n - 1], gr_tokenizer_get_info(tokenizer)->eos);
    assert_int_equal(d->n_targets, n - d->n_samples); /* no document begins inside */
    gr_dataset_free(d);
    static char longs[128]; /* a limit counts documents, not their pieces */
    snprintf(longs, sizeof longs, "%s", at("longs"));
    assert_ok(gr_make_dirs(longs, &err));
    assert_ok(gr_file_write(at("longs/1.txt"), s.data, s.len, &err));
    assert_ok(gr_file_write(at("longs/2.txt"), s.data, s.len, &err));
    assert_ok(gr_file_write(at("longs/3.txt"), "no more", 7, &err));
    source = (gr_data_source){.path = longs, .weight = 1, .limit = 2};
    d = load(&o, threads);
    assert_int_equal(d->offset[d->n_samples], 2 * n);
    gr_dataset_free(d);
    gr_ids_release(&ids);
    gr_str_release(&s);
}

/* A folder is its files, one after the other: the same stream as one file of all, also when making it goes on. */
static void test_folder(void **state) {
    (void)state;
    static const char *const names[] = {"corpus/1.txt", "corpus/2/a.txt", "corpus/2/b.jsonl", "corpus/3.txt"};
    static char all_path[128], corpus[128], bare[128], cache[128];
    gr_str all = {0};
    snprintf(all_path, sizeof all_path, "%s", at("all.jsonl"));
    snprintf(corpus, sizeof corpus, "%s", at("corpus"));
    snprintf(bare, sizeof bare, "%s", at("bare"));
    snprintf(cache, sizeof cache, "%s", at("corpus-cache"));
    assert_ok(gr_make_dirs(at("corpus/2"), &err));
    for (int i = 0; i < GR_LEN(names); i++) {
        gr_str s = {0};
        for (int k = 0; k < 400 + 90 * i; k++) gr_str_printf(&s, "%s%d of %d", k ? " " : "", k * k % 101, i);
        gr_str_printf(&all, "{\"text\": \"%s\"}\n", s.data);
        char *object = gr_format("{\"text\": \"%s\"}", s.data);
        const char *text = i == 2 ? object : s.data;
        assert_ok(gr_file_write(at(names[i]), text, (int64_t)strlen(text), &err));
        free(object);
        gr_str_release(&s);
    }
    assert_ok(gr_file_write(at("corpus/README.md"), "not data", 8, &err));
    assert_ok(gr_file_write(all_path, all.data, all.len, &err));
    gr_str_release(&all);
    gr_data_source one = {.path = all_path, .weight = 1}, many = {.path = corpus, .weight = 1};
    gr_data_options a = {
        .sources = &one, .n_sources = 1, .max_length = LENGTH, .pretrain = true, .attention = GR_ATTENTION_DOCUMENT};
    gr_data_options b = a;
    b.sources = &many, b.cache_dir = cache, b.shard_ids = 1500;
    gr_dataset *x = load(&a, threads), *y = load(&b, threads);
    assert_same(x, y);
    assert_true(y->store->n_shards > 2);
    gr_dataset_free(y);
    char path[300];
    snprintf(path, sizeof path, "%s/index.h5", tokens_of("corpus-cache"));
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof path, "%s/shard-000002.h5", tokens_of("corpus-cache"));
    assert_int_equal(unlink(path), 0);
    y = load(&b, threads);
    assert_same(x, y);
    gr_dataset_free(x);
    gr_dataset_free(y);
    many.limit = one.limit = 2; /* of all files together */
    b.cache_dir = NULL;
    x = load(&a, threads), y = load(&b, threads);
    assert_same(x, y);
    gr_dataset_free(x);
    gr_dataset_free(y);
    many.limit = 0;
    b.pretrain = false; /* samples of sft are of one file */
    b.attention = GR_ATTENTION_ACROSS;
    assert_int_equal(gr_dataset_load(&y, &b, tokenizer, NULL, threads, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "train.jsonl"));
    assert_ok(gr_make_dirs(at("bare/2"), &err));
    many.path = bare;
    b.pretrain = true;
    assert_int_equal(gr_dataset_load(&y, &b, tokenizer, NULL, threads, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "without data"));
    assert_int_equal(symlink("..", at("corpus/2/up")), 0); /* a folder within itself */
    many.path = corpus;
    assert_int_equal(gr_dataset_load(&y, &b, tokenizer, NULL, threads, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "folders deep"));
}

/* ---- what files are, remembered ---- */

static gr_file_sum sum_of(const char *file, const char *cache, int64_t from) {
    gr_file_sum sum = {0};
    char *name = gr_strdup(file);
    assert_ok(gr_file_sums(&sum, &name, 1, file, cache, from, &err));
    free(name);
    return sum;
}

static bool same_sum(gr_file_sum a, gr_file_sum b) { return a.high == b.high && a.low == b.low; }

/* The table of the one source of a cache, NULL: none. */
static const char *table_of(const char *cache) {
    static char path[200];
    char command[200];
    snprintf(command, sizeof command, "ls %s/*.sums.h5 2>/dev/null", cache);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    bool found = fgets(path, sizeof path, f) != NULL;
    pclose(f);
    path[strcspn(path, "\n")] = '\0';
    return found ? path : NULL;
}

/* A table with the rows of the one that is there, sealed: field k of its row changed by x, or with one field less. */
static void forge(const char *path, int k, int64_t x, int64_t fields) {
    int64_t row[8], version, shape[2] = {1, fields};
    gr_h5 *h = NULL;
    assert_ok(gr_h5_open(&h, path, &err));
    assert_ok(gr_h5_get(h, "/files", GR_H5_I64, row, 8, &err));
    assert_ok(gr_h5_get_int(h, "version", &version, &err));
    gr_h5_close(h);
    row[k] ^= x;
    assert_ok(gr_h5_create(&h, path, &err));
    assert_ok(gr_h5_put(h, "/files", GR_H5_I64, 2, shape, row, &err));
    assert_ok(gr_h5_put_int(h, "version", version, &err));
    assert_ok(gr_h5_commit(h, &err));
}

static void set_time(const char *file, struct timespec changed) {
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, changed};
    assert_int_equal(utimensat(AT_FDCWD, file, times, 0), 0);
}

/* A file that is as it was is not read: a table with another sum shows it. Any other file is, and damage says nothing. */
static void test_sums(void **state) {
    (void)state;
    static char file[128], cache[128];
    struct stat before;
    snprintf(file, sizeof file, "%s", at("sums.txt"));
    snprintf(cache, sizeof cache, "%s", at("sums-cache"));
    assert_ok(gr_file_write(file, "some text", 9, &err));
    gr_file_sum good = sum_of(file, NULL, 1), other = good;
    other.low ^= 4;
    assert_true(same_sum(sum_of(file, cache, 1), good));
    assert_null(table_of(cache)); /* it has only just changed */
    usleep(2100000);
    assert_true(same_sum(sum_of(file, cache, 0), good));
    assert_null(table_of(cache)); /* it is small */
    assert_true(same_sum(sum_of(file, cache, 1), good));
    assert_non_null(table_of(cache));
    forge(table_of(cache), 7, 4, 8);
    assert_true(same_sum(sum_of(file, cache, 1), other));
    for (int k = 0; k < 6; k++) { /* path, size, times, device, inode */
        forge(table_of(cache), k, 1, 8);
        assert_true(same_sum(sum_of(file, cache, 1), good)); /* which the table has then, too */
        forge(table_of(cache), 7, 4, 8);
        assert_true(same_sum(sum_of(file, cache, 1), other));
    }
    forge(table_of(cache), 0, 0, 7);
    assert_true(same_sum(sum_of(file, cache, 1), good));
    forge(table_of(cache), 7, 4, 8);
    assert_true(same_sum(sum_of(file, cache, 1), other));
    flip(table_of(cache), 40);
    assert_true(same_sum(sum_of(file, cache, 1), good));
    forge(table_of(cache), 7, 4, 8);
    assert_int_equal(stat(file, &before), 0);
    set_time(file, (struct timespec){.tv_sec = 1000});
    assert_true(same_sum(sum_of(file, cache, 1), good));
    assert_ok(gr_file_write(file, "same size", 9, &err)); /* with the time of before */
    set_time(file, before.st_mtim);
    assert_false(same_sum(sum_of(file, cache, 1), good));
    assert_false(same_sum(sum_of(file, cache, 1), other));
}

/* The tokens of files whose times changed are found all the same. */
static void test_touched(void **state) {
    (void)state;
    gr_data_options o = options("touched", false);
    o.sums_from = 1;
    usleep(2100000);
    gr_dataset *a = load(&o, threads), *b = load(&o, threads), *c;
    assert_true(!a->from_cache && b->from_cache);
    assert_non_null(table_of(o.cache_dir));
    for (int i = 0; i < N_SOURCES; i++) set_time(sources[i].path, (struct timespec){.tv_sec = 1000 + i});
    c = load(&o, threads);
    assert_true(c->from_cache);
    assert_same(a, c);
    gr_dataset_free(a);
    gr_dataset_free(b);
    gr_dataset_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_as_memory), cmocka_unit_test(test_documents),     cmocka_unit_test(test_resumed_making),
        cmocka_unit_test(test_killed_making),  cmocka_unit_test(test_made_at_once),  cmocka_unit_test(test_damage),
        cmocka_unit_test(test_wrong_counts),   cmocka_unit_test(test_hostile_index), cmocka_unit_test(test_hostile_shard),
        cmocka_unit_test(test_unwritable),     cmocka_unit_test(test_mix),           cmocka_unit_test(test_mix_refusals),
        cmocka_unit_test(test_raw_forms),      cmocka_unit_test(test_long_document), cmocka_unit_test(test_folder),
        cmocka_unit_test(test_sums),           cmocka_unit_test(test_touched),
    };
    return cmocka_run_group_tests_name("store", tests, set_up, tear_down);
}
