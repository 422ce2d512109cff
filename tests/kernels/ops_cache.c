/* ops_cache.c - caches of keys and values: what is appended lies there; what a CPU keeps packed beside it is never stale. */
#include <math.h>

#include "ops.h"

/* The last rows of a cache first; what it held elsewhere stays. */
void call_kv_append(call *c) {
    int64_t KD2 = 2 * width(c), all = c->row0 + c->n + 10;
    gr_kv kv = {.rows = closed(fixed(c, 1, all, KD2), KD2)};
    int32_t *to = (int32_t *)buffer(c, c->n);
    for (int64_t i = 0; i < c->n; i++) to[i] = (int32_t)(all - 1 - c->row0 - i);
    gr_rows x = rows(c, 2, KD2);
    c->d->ops->kv_append(c->d, &kv, x, to, c->n);
    for (int64_t i = 0; i < c->n; i++)
        assert_memory_equal(gr_f32_row(kv.rows, to[i]), gr_f32_row(x, i), (size_t)KD2 * sizeof(float));
    out_whole(c, kv.rows, all, KD2);
}

/* A card's own KV cache: layers apart, of the type of activations; what is appended lies there, as what is asked for. */
void test_card_cache(void **state) {
    const char *level = levels[*(int *)*state], *why = NULL;
    if (!available(level)) skip();
    enum { LAYERS = 3, SLOTS = 2, LEN = 7, K = 2, D = 5, WIDE = 2 * K * D, N = 4 };
    const int32_t at[N] = {0, LEN + 6, 3, LEN};
    gr_device *d = gr_device_open(getenv("GRAFT_DEVICE"), NULL, &why);
    if (!d) fail_msg("%s", why);
    for (gr_dtype type = GR_DTYPE_F32; type <= GR_DTYPE_BF16; type++) {
        const gr_kv_shape shape = {LAYERS, SLOTS, LEN, K, D, type};
        const int64_t size = type == GR_DTYPE_F32 ? 4 : 2;
        gr_kv kv[LAYERS] = {0};
        float x[LAYERS][N * WIDE];
        d->kv_close(d, kv);
        assert_true(d->kv_open(d, kv, &shape));
        assert_true(d->kv_bytes(d, &shape) >= LAYERS * SLOTS * LEN * WIDE * size);
        float *there = d->alloc(d, sizeof x[0]);
        int32_t *rows_there = d->alloc(d, sizeof at);
        d->upload(d, rows_there, at, sizeof at);
        for (int i = 0; i < LAYERS; i++) {
            assert_true(kv[i].rows.data && kv[i].rows.ld == WIDE && kv[i].rows.type == d->act_type(d, type));
            d->zero(d, kv[i].rows.data, SLOTS * LEN * WIDE * size);
        }
        for (int i = 0; i < LAYERS; i++) {
            for (int j = 0; j < N * WIDE; j++) x[i][j] = (float)(j + 1 - i * 50); /* of few digits */
            d->upload(d, there, x[i], sizeof x[i]);
            d->ops->kv_append(d, &kv[i], (gr_rows){there, WIDE, GR_DTYPE_F32}, rows_there, N);
        }
        for (int i = 0; i < LAYERS; i++) {
            uint8_t back[SLOTS * LEN * WIDE * 4];
            float row[WIDE], zero[WIDE] = {0};
            d->download(d, back, kv[i].rows.data, SLOTS * LEN * WIDE * size, 0);
            for (int r = 0; r < SLOTS * LEN; r++) {
                const float *expected = zero;
                gr_dtype_get(type)->to_f32(row, back + r * WIDE * size, WIDE);
                for (int k = 0; k < N; k++)
                    if (at[k] == r) expected = x[i] + k * WIDE;
                assert_memory_equal(row, expected, sizeof row);
            }
        }
        assert_null(d->sync(d));
        d->kv_close(d, kv);
        for (int i = 0; i < LAYERS; i++) assert_true(!kv[i].rows.data && !kv[i].form);
        d->free(d, there), d->free(d, rows_there);
    }
    gr_kv layer;
    assert_false(d->kv_open(d, &layer, &(gr_kv_shape){1, 1 << 20, INT64_C(1) << 40, 8, 128, GR_DTYPE_BF16})); /* overflows */
    d->kv_close(d, &layer);
    assert_false(d->kv_open(d, &layer, &(gr_kv_shape){1, 1 << 10, 1 << 20, 8, 128, GR_DTYPE_BF16})); /* 4 TiB */
    d->kv_close(d, &layer);
    assert_null(d->sync(d));
    gr_device_close(d);
}

/* Tokens decoded one by one with the packed keys and values kept beside the cache, half-way set back: the bits of attention without
 * them. */
void test_kept_panels(void **state) {
    const char *level = levels[*(int *)*state];
    if (!available(level)) skip();
    enum { H = 4, K = 2, D = 40, ROWS = 200, SLOTS = 2, WIDE = 2 * K * D, SET_BACK = 150, TO = 100 };
    gr_device *d = device(level, 2);
    for (int variant = 0; variant < 4; variant++) {
        const bool bf16 = variant & 1;
        const int64_t window = variant & 2 ? 50 : 0;
        call c = {.d = d, .n = SLOTS};
        gr_kv kv;
        assert_true(d->kv_open(d, &kv, &(gr_kv_shape){1, SLOTS, ROWS, K, D, GR_DTYPE_F32}));
        const int32_t *packed = gr_cpu_kv_of(&kv)->packed;
        gr_rows text = filled_rows(&c, 1, 0, SLOTS * ROWS, WIDE, WIDE + 5), out = filled_rows(&c, 3, 0, SLOTS, H * D, H * D);
        gr_attention a = {.q = filled_rows(&c, 2, 0, SLOTS, H * D, H * D),
                          .k = kv.rows,
                          .v = gr_rows_at(kv.rows, 0, K * D),
                          .n_seqs = SLOTS,
                          .H = H,
                          .K = K,
                          .D = D,
                          .scale = 0.2f,
                          .window = window,
                          .compute = bf16 ? GR_DTYPE_BF16 : GR_DTYPE_F32};
        gr_rows expected = filled_rows(&c, 4, 0, SLOTS, H * D, H * D);
        bool set_back = false;
        for (int len = 1; len <= ROWS; len++) {
            const int half = (len + 1) / 2, at[SLOTS] = {len - 1, ROWS + half - 1};
            gr_seq seqs[SLOTS] = {{0, 1, 0, len}, {1, 1, ROWS, half}};
            a.seqs = seqs;
            for (int s = 0; s < SLOTS; s++) d->ops->kv_append(d, &kv, gr_rows_at(text, at[s], 0), &(int32_t){at[s]}, 1);
            for (int i = 0; i < 2; i++) {
                a.out = i ? out : expected, a.kv = i ? &kv : NULL;
                d->ops->attention_forward(d, &a);
            }
            if (memcmp(out.data, expected.data, SLOTS * H * D * sizeof(float)) != 0)
                fail_msg("%s: %d keys, window %d, bits differ", level, len, (int)window);
            if (len != SET_BACK || set_back) continue;
            set_back = true;
            for (int r = TO; r < ROWS; r++) /* another text from there on */
                for (int j = 0; j < WIDE; j++) gr_f32_row(text, r)[j] *= -1;
            len = TO;
        }
        if (strcmp(level, "generic") != 0) {
            assert_int_equal(packed[0], ROWS);
            assert_int_equal(gr_cpu_kv_of(&kv)->from[0], 0);
        }
        d->kv_close(d, &kv);
        release(&c);
    }
    close_device(d);
}

/* A slot whose window went on without single queries, then is set back: what was not packed is not taken for packed. And blocks of
 * keys before the window are not read at all: they are NaN. */
void test_window(void **state) {
    const char *level = levels[*(int *)*state];
    if (!available(level)) skip();
    enum { H = 2, K = 1, D = 33, ROWS = 700, WIDE = 2 * K * D, WINDOW = 100 };
    static const int positions[] = {600, 601, 639, 640, 650, 400, 401, 20, 21, 64, 300, 370, 390};
    gr_device *d = device(level, 2);
    for (int variant = 0; variant < 4; variant++) {
        const bool blank = variant & 2;
        call c = {.d = d, .n = 1};
        gr_kv kv;
        assert_true(d->kv_open(d, &kv, &(gr_kv_shape){1, 1, ROWS, K, D, GR_DTYPE_F32}));
        gr_rows text = filled_rows(&c, 1, 0, ROWS, WIDE, WIDE), out = rows(&c, 3, H * D), expected = rows(&c, 4, H * D);
        gr_seq seq = {.q_len = 1};
        gr_attention a = {.q = rows(&c, 2, H * D),
                          .k = kv.rows,
                          .v = gr_rows_at(kv.rows, 0, K * D),
                          .seqs = &seq,
                          .n_seqs = 1,
                          .H = H,
                          .K = K,
                          .D = D,
                          .scale = 0.3f,
                          .window = WINDOW,
                          .compute = variant & 1 ? GR_DTYPE_BF16 : GR_DTYPE_F32};
        int32_t all[ROWS];
        for (int r = 0; r < ROWS; r++) all[r] = r;
        d->ops->kv_append(d, &kv, text, all, ROWS);
        for (size_t i = 0; i < sizeof positions / sizeof *positions; i++) {
            const int at = positions[i];
            const int64_t before = gr_first_key(WINDOW, at) / GR_KV_BLOCK * GR_KV_BLOCK;
            for (int j = 0; j < WIDE; j++) gr_f32_row(text, at)[j] *= -1;
            d->ops->kv_append(d, &kv, gr_rows_at(text, at, 0), &all[at], 1);
            if (blank) memset(gr_f32_row(kv.rows, 0), 0xFF, (size_t)(before * WIDE) * sizeof(float));
            seq.kv_len = at + 1;
            a.out = out, a.kv = &kv;
            d->ops->attention_forward(d, &a);
            if (blank) memcpy(gr_f32_row(kv.rows, 0), text.data, (size_t)(before * WIDE) * sizeof(float));
            a.out = expected, a.kv = NULL;
            d->ops->attention_forward(d, &a);
            if (memcmp(out.data, expected.data, H * D * sizeof(float)) != 0) fail_msg("%s: position %d, bits differ", level, at);
            assert_false(isnan(gr_f32(out)[0]));
        }
        d->kv_close(d, &kv);
        release(&c);
    }
    close_device(d);
}

/* Rows written again leave the whole blocks before them packed, in all heads of their slot alone. */
void test_forgotten_panels(void **state) {
    enum { K = 2, D = 5, SLOTS = 3, ROWS = 300, SLOT = 1 };
    static const struct {
        int32_t packed, first, left;
    } cases[] = {{200, 200, 200}, {200, 199, 192}, {200, 130, 128}, {200, 128, 128}, {200, 127, 64}, {200, 3, 0}, {30, 100, 30}};
    (void)state;
    gr_device *d = device("generic", 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        call c = {.d = d, .n = 20};
        gr_kv kv[2];
        assert_true(d->kv_open(d, kv, &(gr_kv_shape){2, SLOTS, ROWS, K, D, GR_DTYPE_F32}));
        for (int j = 0; j < 2 * SLOTS * K; j++) gr_cpu_kv_of(&kv[j / (SLOTS * K)])->packed[j % (SLOTS * K)] = cases[i].packed;
        int32_t at[20];
        for (int j = 0; j < 20; j++) at[j] = SLOT * ROWS + cases[i].first + j;
        d->ops->kv_append(d, &kv[1], rows(&c, 1, 2 * K * D), at, c.n);
        for (int j = 0; j < 2 * SLOTS * K; j++)
            assert_int_equal(gr_cpu_kv_of(&kv[j / (SLOTS * K)])->packed[j % (SLOTS * K)],
                             j / K == SLOTS + SLOT ? cases[i].left : cases[i].packed);
        d->kv_close(d, kv);
        release(&c);
    }
    close_device(d);
}
