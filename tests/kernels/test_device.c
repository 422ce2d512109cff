/* Devices: memory and its ways, the forms of groups and KV caches, and what the far device does not forgive. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/kernels.h"

static gr_threads *pool;
static gr_device *d;

static void open_device(const char *name) {
    const char *why = "?";
    setenv("GRAFT_DEVICE", name, 1);
    pool = gr_threads_new(2);
    assert_non_null(pool);
    d = gr_device_open("auto", pool, &why);
    if (!d) fail_msg("%s", why);
}

static void close_device(void) {
    gr_device_close(d);
    gr_threads_free(pool);
}

static int setup_cpu(void **state) {
    (void)state;
    open_device("cpu");
    return 0;
}

static int setup_far(void **state) {
    (void)state;
    open_device("far");
    return 0;
}

static int teardown(void **state) {
    (void)state;
    close_device();
    return 0;
}

/* n floats of the device, with the host's numbers where there are any. */
static float *floats(const float *host, int64_t n) {
    float *p = d->alloc(d, n * (int64_t)sizeof *p);
    assert_non_null(p);
    if (host) d->upload(d, p, host, n * (int64_t)sizeof *p);
    else d->zero(d, p, n * (int64_t)sizeof *p);
    return p;
}

static void numbers(float *x, int64_t n, uint32_t seed) {
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) * 0x1p-23f - 1;
    }
}

/* ---- on every device ---- */

static void test_memory(void **state) {
    (void)state;
    enum { N = 5 << 20 }; /* beyond what is taken from the heap */
    unsigned char *host = malloc(N), *back = malloc(N);
    for (int i = 0; i < N; i++) host[i] = (unsigned char)(i * 7 + i / 999);
    for (int64_t bytes = 1; bytes <= N; bytes = bytes * 13 + 3 > N && bytes < N ? N : bytes * 13 + 3) {
        char *a = d->alloc(d, bytes), *b = d->alloc(d, bytes);
        assert_true(a && b && (uintptr_t)a % 64 == 0 && (uintptr_t)b % 64 == 0);
        assert_true(d->footprint(d, bytes) >= bytes);
        d->upload(d, a, host, bytes);
        memset(back, 0, N);
        d->download(d, back, a, bytes, 0);
        assert_memory_equal(back, host, (size_t)bytes);
        assert_true(bytes == N || back[bytes] == 0);
        d->copy(d, b, a, bytes);
        d->zero(d, a, bytes);
        d->download(d, back, b, bytes, d->mark(d, GR_QUEUE_COMPUTE));
        assert_memory_equal(back, host, (size_t)bytes);
        d->upload(d, b + bytes / 2, host, bytes - bytes / 2);
        d->download(d, back, b + bytes / 2, bytes - bytes / 2, 0);
        assert_memory_equal(back, host, (size_t)(bytes - bytes / 2));
        d->download(d, back, a, bytes, 0);
        for (int64_t i = 0; i < bytes; i++) assert_int_equal(back[i], 0);
        d->free(d, a), d->free(d, b);
    }
    const void *view = d->map(d, host, N);
    assert_non_null(view);
    d->download(d, back, view, N, 0);
    assert_memory_equal(back, host, N);
    d->unmap(d, view), d->unmap(d, NULL), d->free(d, NULL);
    d->upload(d, NULL, NULL, 0), d->download(d, NULL, NULL, 0, 0), d->zero(d, NULL, 0), d->copy(d, NULL, NULL, 0);
    d->wait(d, GR_QUEUE_COPY, d->mark(d, GR_QUEUE_COMPUTE));
    assert_null(d->sync(d));
    assert_null(d->alloc(d, -1));
    assert_null(d->alloc(d, INT64_MAX));
    int64_t total, available;
    assert_false(d->memory(d, &total, &available));
    assert_int_equal(d->act_type(d, GR_DTYPE_BF16), GR_DTYPE_F32);
    free(host), free(back);
}

static void test_upload_beside(void **state) {
    (void)state;
    float host[4] = {1, 2, 3, 4}, back[4];
    float *p = floats(host, 4);
    host[1] = 5;
    gr_mark mark = d->upload_beside(d, p, host, sizeof host, d->mark(d, GR_QUEUE_COMPUTE));
    host[1] = 6;
    d->download(d, back, p, sizeof back, 0);
    assert_true(back[1] == (d->queues ? 2 : 5)); /* a late one, until it is waited for */
    d->wait(d, GR_QUEUE_COMPUTE, mark);
    d->download(d, back, p, sizeof back, 0);
    assert_true(back[0] == 1 && back[1] == 5 && back[3] == 4);
    d->free(d, p);
}

/* Pieces of all sizes come and go; none lies in another. */
static void test_many_pieces(void **state) {
    (void)state;
    enum { N = 200 };
    static unsigned char bytes[5000];
    unsigned char *piece[N] = {0};
    int64_t size[N] = {0};
    uint32_t seed = 5;
    for (int turn = 0; turn < 3000; turn++) {
        seed = seed * 1664525u + 1013904223u;
        int i = (int)(seed >> 10) % N;
        if (piece[i]) {
            d->download(d, bytes, piece[i], size[i], 0);
            for (int64_t j = 0; j < size[i]; j++) assert_int_equal(bytes[j], i);
            d->free(d, piece[i]);
            piece[i] = NULL;
        } else {
            size[i] = 1 + (seed >> 4) % (int64_t)sizeof bytes;
            piece[i] = d->alloc(d, size[i]);
            memset(bytes, i, (size_t)size[i]);
            d->upload(d, piece[i], bytes, size[i]);
        }
    }
    for (int i = 0; i < N; i++) d->free(d, piece[i]);
}

enum { K = 64, N0 = 40, N1 = 24, ROWS = 3 };

/* The outputs of two linears of x, by the group's base; *form: whether it has one. */
static void outputs_of(float y[ROWS * (N0 + N1)], gr_base_products base, bool backward, bool trained, bool *form) {
    float w[(N0 + N1) * K], x[ROWS * K];
    numbers(w, (N0 + N1) * K, 1), numbers(x, ROWS * K, 2);
    float *dw = floats(w, (N0 + N1) * K), *dx = floats(x, ROWS * K), *dy = floats(NULL, ROWS * (N0 + N1));
    gr_linear l[2] = {{.w = {GR_DTYPE_F32, N0, K, dw}}, {.w = {GR_DTYPE_F32, N1, K, dw + N0 * K}}};
    float *gradient = trained ? floats(NULL, (N0 + N1) * K) : NULL;
    if (trained) l[0].dw = gradient, l[1].dw = gradient + N0 * K;
    gr_group g = {.member = {&l[0], &l[1]}, .n = 2, .compute = GR_DTYPE_F32, .base = base, .backward = backward};
    int64_t bytes = d->group_bytes(d, &g);
    assert_true(d->place(d, &g));
    *form = g.form != NULL;
    assert_int_equal(bytes > 0, *form);
    if (*form) assert_true(bytes >= (backward ? 2 : 1) * (N0 + N1) * K);
    d->renew(d, &g);
    gr_product p = {.group = &g, .x = {dx, K, GR_DTYPE_F32}, .y = {dy, N0 + N1, GR_DTYPE_F32}};
    d->ops->linear_forward(d, &p, ROWS);
    d->download(d, y, dy, ROWS * (N0 + N1) * (int64_t)sizeof *y, 0);
    d->release(d, &g);
    assert_null(g.form);
    d->release(d, &g);
    d->free(d, dw), d->free(d, dx), d->free(d, dy), d->free(d, gradient);
}

static void test_group(void **state) {
    (void)state;
    float exact[ROWS * (N0 + N1)], rounded[ROWS * (N0 + N1)];
    bool form;
    outputs_of(exact, GR_BASE_EXACT, true, false, &form);
    assert_false(form);
    outputs_of(rounded, GR_BASE_INT8_QUANTISED, true, false, &form); /* float32 is not quantised */
    assert_false(form);
    assert_memory_equal(exact, rounded, sizeof exact);
    outputs_of(rounded, GR_BASE_INT8, true, true, &form); /* what is trained has no form */
    assert_false(form);
    assert_memory_equal(exact, rounded, sizeof exact);
    outputs_of(rounded, GR_BASE_INT8, false, false, &form);
    assert_true(form);
    assert_memory_not_equal(exact, rounded, sizeof exact);
    for (int i = 0; i < ROWS * (N0 + N1); i++) assert_float_equal(exact[i], rounded[i], 0.3);
}

/* Tokens decoded one by one in two slots of a cache of two layers. */
static void decode(float out[2 * 4 * 16]) {
    enum { LAYERS = 2, SLOTS = 2, LEN = 100, KV = 2, H = 4, D = 16 };
    const gr_kv_shape shape = {LAYERS, SLOTS, LEN, KV, D, GR_DTYPE_F32};
    gr_kv layer[LAYERS] = {0};
    float x[SLOTS * 2 * KV * D], q[SLOTS * H * D];
    assert_true(d->kv_bytes(d, &shape) >= LAYERS * SLOTS * LEN * 2 * KV * D * (int64_t)sizeof(float));
    d->kv_close(d, layer);
    assert_true(d->kv_open(d, layer, &shape));
    for (int i = 0; i < LAYERS; i++) assert_true(layer[i].rows.data && layer[i].rows.ld == 2 * KV * D);
    float *dx = floats(NULL, SLOTS * 2 * KV * D), *dq = floats(NULL, SLOTS * H * D), *dout = floats(NULL, SLOTS * H * D);
    int32_t *rows = d->alloc(d, SLOTS * (int64_t)sizeof *rows);
    gr_seq *seqs = d->alloc(d, SLOTS * (int64_t)sizeof *seqs);
    for (int t = 0; t < LEN; t++)
        for (int i = 0; i < LAYERS; i++) {
            const int32_t at[SLOTS] = {t, LEN + t};
            const gr_seq seq[SLOTS] = {{0, 1, 0, t + 1}, {1, 1, LEN, t + 1}};
            numbers(x, SLOTS * 2 * KV * D, (uint32_t)(2 * t + i)), numbers(q, SLOTS * H * D, (uint32_t)t);
            d->upload(d, dx, x, sizeof x), d->upload(d, dq, q, sizeof q);
            d->upload(d, rows, at, sizeof at), d->upload(d, seqs, seq, sizeof seq);
            d->ops->kv_append(d, &layer[i], (gr_rows){dx, 2 * KV * D, GR_DTYPE_F32}, rows, SLOTS);
            gr_attention a = {.q = {dq, H * D, GR_DTYPE_F32},
                              .k = layer[i].rows,
                              .v = gr_rows_at(layer[i].rows, 0, KV * D),
                              .out = {dout, H * D, GR_DTYPE_F32},
                              .seqs = seqs,
                              .n_seqs = SLOTS,
                              .H = H,
                              .K = KV,
                              .D = D,
                              .scale = 0.25f,
                              .compute = GR_DTYPE_F32,
                              .kv = &layer[i]};
            d->ops->attention_forward(d, &a);
            d->download(d, out, dout, SLOTS * H * D * (int64_t)sizeof *out, 0);
            a.kv = NULL; /* the same bits without what the backend keeps */
            d->ops->attention_forward(d, &a);
            float again[SLOTS * H * D];
            d->download(d, again, dout, sizeof again, 0);
            assert_memory_equal(out, again, sizeof again);
        }
    d->kv_close(d, layer);
    for (int i = 0; i < LAYERS; i++) assert_true(!layer[i].rows.data && !layer[i].form);
    d->free(d, dx), d->free(d, dq), d->free(d, dout), d->free(d, rows), d->free(d, seqs);
}

static void test_kv(void **state) {
    (void)state;
    float out[2 * 4 * 16];
    gr_kv layer[1];
    decode(out);
    assert_false(d->kv_open(d, layer, &(gr_kv_shape){1, 1 << 20, INT64_C(1) << 40, 8, 128, GR_DTYPE_F32}));
    d->kv_close(d, layer);
}

/* ---- far against cpu ---- */

static void test_same_bits(void **state) {
    (void)state;
    float group[2][ROWS * (N0 + N1)], out[2][2 * 4 * 16];
    bool form;
    for (int far = 0; far < 2; far++) {
        open_device(far ? "far" : "cpu");
        assert_int_equal(strncmp(d->level, far ? "far-" : "cpu-", 4), 0);
        assert_int_equal(d->queues, far);
        outputs_of(group[far], GR_BASE_INT8, true, false, &form);
        decode(out[far]);
        close_device();
    }
    assert_memory_equal(group[0], group[1], sizeof group[0]);
    assert_memory_equal(out[0], out[1], sizeof out[0]);
}

/* ---- on far alone ---- */

static void test_nothing_is_zero(void **state) {
    (void)state;
    unsigned char bytes[1000];
    for (int i = 0; i < 3; i++) {
        char *p = d->alloc(d, sizeof bytes);
        d->download(d, bytes, p, sizeof bytes, 0);
        for (size_t j = 0; j < sizeof bytes; j++) assert_int_equal(bytes[j], 0xFF);
        d->zero(d, p, sizeof bytes);
        d->free(d, p);
    }
}

static void test_late_uploads(void **state) {
    (void)state;
    float host[4] = {1, 2, 3, 4}, back[4];
    float *p = floats(host, 4), *sum = floats(NULL, 4);
    memset(host, 0, sizeof host); /* the host's memory is the host's again */
    d->ops->add(d, (gr_rows){sum, 4, GR_DTYPE_F32}, (gr_rows){p, 4, GR_DTYPE_F32}, 1, 4);
    gr_mark mark = d->mark(d, GR_QUEUE_COMPUTE);
    assert_true(mark > 0);
    host[0] = 9;
    d->upload(d, sum, host, sizeof host);
    d->download(d, back, sum, sizeof back, mark); /* what comes after a mark is not seen */
    assert_true(back[0] == 1 && back[3] == 4);
    d->download(d, back, sum, sizeof back, 0);
    assert_true(back[0] == 9 && back[3] == 0);
    d->free(d, p), d->free(d, sum);
}

/* What a child process said before it died of what it did; it must die. */
static char said[2000];
static void dies(void (*what)(void)) {
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL), signal(SIGABRT, SIG_DFL);
        dup2(ends[1], 2);
        what();
        _exit(0);
    }
    close(ends[1]);
    ssize_t n, at = 0;
    while (at < (ssize_t)sizeof said - 1 && (n = read(ends[0], said + at, sizeof said - 1 - (size_t)at)) > 0) at += n;
    said[at] = 0;
    close(ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && (WTERMSIG(status) == SIGSEGV || WTERMSIG(status) == SIGABRT));
}

static void must_say(const char *words) {
    if (!strstr(said, words)) fail_msg("\"%s\" is not in \"%s\"", words, said);
}

static float *a_memory, on_host[64];
static volatile float sink;

static gr_rows of(float *p) { return (gr_rows){p, 4, GR_DTYPE_F32}; }
static void reads(void) { sink = *(volatile float *)a_memory; }
static void writes(void) { *(volatile float *)a_memory = 1; }
static void reads_between_operations(void) {
    d->zero(d, a_memory, 16);
    float x;
    d->download(d, &x, a_memory, 4, 0);
    reads();
}
static void adds_from_host(void) { d->ops->add(d, of(a_memory), of(on_host), 1, 4); }
static void adds_to_host(void) { d->ops->add(d, of(on_host), of(a_memory), 1, 4); }
static void reads_ids_of_host(void) {
    int32_t id = 0;
    d->ops->gather_rows(d, of(a_memory), of(a_memory + 16), &id, 1, 4);
}
static void multiplies_host(void) {
    gr_linear l = {.w = {GR_DTYPE_F32, 4, 4, on_host}};
    gr_group g = {.member = {&l}, .n = 1};
    gr_product p = {.group = &g, .x = of(a_memory), .y = of(a_memory)};
    d->ops->linear_forward(d, &p, 1);
}
static void multiplies_what_was_not_renewed(void) {
    gr_linear l = {.w = {GR_DTYPE_F32, 4, 4, a_memory}, .dw = a_memory + 16};
    gr_group g = {.member = {&l}, .n = 1};
    gr_product p = {.group = &g, .x = of(a_memory + 32), .y = of(a_memory + 48)};
    d->zero(d, a_memory, 64 * sizeof *a_memory);
    (void)d->place(d, &g);
    d->ops->linear_forward(d, &p, 1);
    d->upload(d, a_memory, &(float){1}, sizeof(float));
    d->renew(d, &g);
    d->ops->linear_forward(d, &p, 1);
    d->upload(d, a_memory, &(float){2}, sizeof(float));
    d->ops->linear_forward(d, &p, 1);
}
static void adds_what_was_freed(void) {
    float *p = d->alloc(d, 64);
    d->free(d, p);
    d->ops->add(d, of(a_memory), of(p), 1, 4);
}
static void frees_twice(void) {
    float *p = d->alloc(d, 64);
    d->free(d, p), d->free(d, p);
}
static void frees_a_part(void) { d->free(d, a_memory + 16); }
static void zeroes_too_much(void) { d->zero(d, a_memory, 256 + 1); }
static void uploads_the_devices(void) { d->upload(d, a_memory, a_memory + 16, 4); }
static void downloads_the_hosts(void) { d->download(d, on_host, on_host + 16, 4, 0); }
static void give(int64_t name, float *to, bool uploads) {
    const gr_repeat key = {{name}};
    while (d->repeat(d, &key)) {
        d->ops->add(d, of(to), of(a_memory), 1, 4);
        if (uploads) d->upload(d, a_memory, on_host, 4);
    }
}
static void repeats_another_work(void) { give(1, a_memory + 16, false), give(2, a_memory, false), give(1, a_memory, false); }
static void uploads_within_a_work(void) { give(1, a_memory + 16, true); }
static void waits_for_the_future(void) { d->wait(d, GR_QUEUE_COPY, d->mark(d, GR_QUEUE_COMPUTE) + 1); }

static void test_deaths(void **state) {
    (void)state;
    static const struct {
        void (*what)(void);
        const char *words;
    } deaths[] = {{reads, ""},
                  {writes, ""},
                  {reads_between_operations, ""},
                  {adds_from_host, "add: y "},
                  {adds_to_host, "add: x "},
                  {reads_ids_of_host, "gather_rows: idx "},
                  {multiplies_host, "linear_forward: a weight "},
                  {multiplies_what_was_not_renewed, "linear_forward: group "},
                  {adds_what_was_freed, "was freed"},
                  {frees_twice, "free: p "},
                  {frees_a_part, "is not what alloc gave"},
                  {zeroes_too_much, "has fewer bytes"},
                  {uploads_the_devices, "upload: host "},
                  {downloads_the_hosts, "download: from "},
                  {repeats_another_work, "has other arguments"},
                  {uploads_within_a_work, "upload: work that comes again"},
                  {waits_for_the_future, "wait: mark "}};
    a_memory = d->alloc(d, 256);
    for (size_t i = 0; i < sizeof deaths / sizeof *deaths; i++) {
        dies(deaths[i].what);
        must_say(deaths[i].words);
    }
    d->free(d, a_memory);
}

static void test_names(void **state) {
    (void)state;
    static const struct {
        const char *name, *debug, *words; /* NULL: it opens */
    } cases[] = {{"cpu", NULL, NULL},
                 {"auto", NULL, NULL},
                 {"auto", "cpu", NULL},
                 {"auto", "far", NULL},
                 {"cpu", "near", NULL},
                 {"h100", NULL, NULL}, /* a plan's */
                 {"auto", "near", "GRAFT_DEVICE must be cpu, far, cuda or cuda:N"},
                 {"auto", "h100", "GRAFT_DEVICE must be cpu, far, cuda or cuda:N"}, /* computes nothing */
                 {"cuda:1000", NULL, ""},                                           /* no library, no driver, or fewer cards */
                 {"cuda:1000", "far", ""},
                 {"cuda:", NULL, "auto, cpu, cuda or cuda:N"},
                 {"tpu", NULL, "auto, cpu, cuda or cuda:N"}};
    pool = gr_threads_new(1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *why = NULL;
        if (cases[i].debug) setenv("GRAFT_DEVICE", cases[i].debug, 1);
        else unsetenv("GRAFT_DEVICE");
        d = gr_device_open(cases[i].name, pool, &why);
        assert_int_equal(d == NULL, cases[i].words != NULL);
        if (!d) assert_non_null(strstr(why, cases[i].words));
        gr_device_close(d);
    }
    setenv("GRAFT_DEVICE", "far", 1);
    setenv("GRAFT_CPU", "mmx", 1);
    const char *why = NULL;
    assert_null(gr_device_open("auto", pool, &why));
    assert_non_null(strstr(why, "GRAFT_CPU"));
    unsetenv("GRAFT_CPU");
    gr_threads_free(pool);
}

int main(void) {
#define ON(test, device)                                                                                                           \
    { #test " on " #device, test, setup_##device, teardown, NULL }
    const struct CMUnitTest tests[] = {
        ON(test_memory, cpu),
        ON(test_memory, far),
        ON(test_upload_beside, cpu),
        ON(test_upload_beside, far),
        ON(test_many_pieces, cpu),
        ON(test_many_pieces, far),
        ON(test_group, cpu),
        ON(test_group, far),
        ON(test_kv, cpu),
        ON(test_kv, far),
        cmocka_unit_test(test_same_bits),
        ON(test_nothing_is_zero, far),
        ON(test_late_uploads, far),
        ON(test_deaths, far),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
