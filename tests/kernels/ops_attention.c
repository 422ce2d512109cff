/* ops_attention.c - attention: of every shape of heads, long sequences, packed as in training, on a cache as in decoding. */
#include <math.h>

#include "ops.h"

static const int64_t heads[HEADS][3] = {{9, 3, 64},  {2, 2, 7},   {4, 1, 40}, {1, 1, 256},
                                        {10, 1, 33}, {3, 3, 128}, {1, 1, 1},  {4, 1, 256}};

/* Variants take all heads in float32 and in bfloat16 (the reference stays exact), each plain, with a window, a cap, both. */
static void set_attention(call *c, gr_attention *a) {
    static const int64_t windows[] = {5, 64, 65, 2, 40, 90};
    bool bf16 = c->variant / HEADS % 2;
    c->tolerance = bf16 ? 1e-2 : 2e-5;
    a->compute = bf16 ? GR_DTYPE_BF16 : GR_DTYPE_F32;
    if (c->variant / (2 * HEADS) & 1) a->window = windows[c->variant % 6];
    if (c->variant / (2 * HEADS) & 2) a->softcap = 0.5f;
}

/* n_q rows of queries from row q0 of the virtual batch on, n rows of keys and values. */
static gr_attention attention_of(call *c, int64_t q0, int64_t n_q, int64_t n, int64_t H, int64_t K, int64_t D) {
    return (gr_attention){.q = filled_rows(c, 1, q0, n_q, H * D, H * D + 3),
                          .k = filled_rows(c, 2, 0, n, K * D, K * D + 1),
                          .v = filled_rows(c, 3, 0, n, K * D, K * D + 1),
                          .out = filled_rows(c, 4, q0, n_q, H * D, H * D + 2),
                          .lse = gr_f32(filled_rows(c, 5, q0, n_q, H, H)),
                          .H = H,
                          .K = K,
                          .D = D,
                          .scale = 1.0f / sqrtf((float)D)};
}

/* Of rows that rope turned, below 64. */
static const int32_t *positions(call *c, int64_t n) {
    int32_t *at = (int32_t *)buffer(c, n);
    for (int64_t i = 0; i < n; i++) at[i] = (int32_t)(i * 5 % 64);
    return at;
}

/* What the backward needs too; q, k and v are of the same rows. */
static void add_gradients(call *c, gr_attention *a, int64_t n) {
    a->delta = fixed(c, 6, n, a->H);
    a->dout = filled_rows(c, 7, 0, n, a->H * a->D, a->out.ld);
    a->dq = filled_rows(c, 8, 0, n, a->H * a->D, a->q.ld);
    a->dk = filled_rows(c, 9, 0, n, a->K * a->D, a->k.ld);
    a->dv = filled_rows(c, 10, 0, n, a->K * a->D, a->v.ld);
}

/* The rows under test are positions row0.. of the first sequence, whose keys begin at 0; a second one follows when all
 * of the batch is run. */
void call_attention_forward(call *c) {
    const int64_t *s = heads[c->variant % HEADS], other = c->row0 == 0 ? 70 : 0, keys = c->row0 + c->n, n = c->n;
    gr_attention a = attention_of(c, c->row0, n + other, keys + other, s[0], s[1], s[2]);
    gr_seq seqs[2] = {{0, n, 0, keys}, {n, other, keys, other}};
    a.seqs = seqs, a.n_seqs = other ? 2 : 1, a.scale *= 1.7f;
    set_attention(c, &a);
    c->d->ops->attention_forward(c->d, &a);
    out_rows(c, a.out, a.H * a.D), out_numbers(c, a.lse, a.H);
    if (other) out_whole(c, gr_rows_at(a.out, n, 0), other, a.H * a.D);
}

void call_attention_backward(call *c) {
    const int64_t *s = heads[c->variant % HEADS], n = c->row0 + c->n, other = 3, all = n + other;
    gr_attention a = attention_of(c, 0, all, all, s[0], s[1], s[2]);
    gr_seq seqs[2] = {{0, n, 0, n}, {n, other, n, other}};
    add_gradients(c, &a, all);
    a.seqs = seqs, a.n_seqs = 2;
    set_attention(c, &a);
    if (a.D % 2 == 0 && c->variant % 3) a.pos = positions(c, all), a.turns = fixed(c, 11, 64, a.D);
    c->d->ops->attention_forward(c->d, &a);
    c->d->ops->attention_backward(c->d, &a);
    out_whole(c, a.dq, all, a.H * a.D), out_whole(c, a.dk, all, a.K * a.D), out_whole(c, a.dv, all, a.K * a.D);
}

/* Sequences whose keys are split among tasks, against the reference; and each alone has the bits it has in the batch. */
static void attend(call *c, int64_t first, int64_t n_seqs, gr_dtype compute, int64_t window) {
    enum { H = 2, K = 1, D = 17, ALL = 3300 };
    static const gr_seq seqs[] = {{0, 1600, 0, 1600}, {1600, 100, 1600, 100}, {1700, 1100, 1700, 1100}, {2800, 500, 2800, 500}};
    int64_t begin = seqs[first].q_start, end = seqs[first + n_seqs - 1].q_start + seqs[first + n_seqs - 1].q_len;
    gr_attention a = attention_of(c, 0, ALL, ALL, H, K, D);
    add_gradients(c, &a, ALL);
    a.seqs = seqs + first, a.n_seqs = n_seqs, a.compute = compute, a.window = window, a.softcap = window == 300 ? 2 : 0;
    c->d->ops->attention_forward(c->d, &a);
    c->d->ops->attention_backward(c->d, &a);
    c->row0 = begin, c->n = end - begin, c->tolerance = compute == GR_DTYPE_F32 ? 2e-5 : 1e-2;
    out_rows(c, gr_rows_at(a.out, begin, 0), H * D), out_rows(c, gr_rows_at(a.dq, begin, 0), H * D);
    out_rows(c, gr_rows_at(a.dk, begin, 0), K * D), out_rows(c, gr_rows_at(a.dv, begin, 0), K * D);
}

void test_long_attention(void **state) {
    const char *level = levels[*(int *)*state];
    if (!available(level)) skip();
    const operation op = {.name = "long attention"};
    gr_device *reference = device("generic", 2), *one = device(level, 1), *three = device(level, 3);
    static const int64_t windows[] = {0, 300, 1090};
    for (int i = 0; i < 3; i++) {
        call exact = {.d = reference};
        attend(&exact, 0, 4, GR_DTYPE_F32, windows[i]);
        for (int bf16 = 0; bf16 < 2; bf16++) {
            gr_dtype compute = bf16 ? GR_DTYPE_BF16 : GR_DTYPE_F32;
            call a = {.d = three}, b = {.d = one};
            attend(&a, 0, 4, compute, windows[i]);
            compare(&a, &exact, &op, level);
            attend(&b, 0, 4, compute, windows[i]);
            compare_bits(&a, &b, &op, "one thread");
            release(&b);
            b = (call){.d = three};
            attend(&b, 2, 1, compute, windows[i]);
            compare_bits(&a, &b, &op, "alone");
            release(&b);
            if (windows[i] == 0) { /* a window as long as the longest */
                b = (call){.d = three};
                attend(&b, 0, 4, compute, 1600);
                compare_bits(&a, &b, &op, "within the window");
                release(&b);
            }
            release(&a);
        }
        release(&exact);
    }
    close_device(reference), close_device(one), close_device(three);
}

/* Sequences of mixed lengths in rows as the decoder has them on a card: of one type, laid out, q, k and v side by side. */
typedef struct packed_case {
    int64_t H, K, D, window;
    float softcap;
    gr_dtype type;
} packed_case;

static const packed_case packed_cases[] = {
    {3, 3, 64, 0, 0, GR_DTYPE_BF16},    {4, 2, 128, 0, 0, GR_DTYPE_BF16},  {2, 1, 256, 0, 0, GR_DTYPE_BF16},
    {3, 1, 64, 0, 0, GR_DTYPE_F16},     {2, 2, 128, 90, 0, GR_DTYPE_F16},  {2, 1, 256, 70, 2, GR_DTYPE_F16},
    {2, 1, 80, 0, 1.5f, GR_DTYPE_BF16}, {2, 2, 40, 33, 0, GR_DTYPE_BF16},  {2, 1, 200, 5, 0, GR_DTYPE_BF16},
    {4, 1, 128, 64, 2, GR_DTYPE_BF16},  {1, 1, 64, 150, 3, GR_DTYPE_BF16}, {1, 1, 36, 0, 0, GR_DTYPE_BF16},
    {2, 1, 64, 34, 0, GR_DTYPE_BF16},
};
static const gr_seq packed_seqs[] = {
    {0, 200, 0, 200}, {200, 1, 200, 1}, {201, 300, 201, 300}, {501, 64, 501, 64}, {585, 50, 565, 70}};
enum { PACKED_SEQS = sizeof packed_seqs / sizeof *packed_seqs, PACKED_ROWS = 635 };

/* Outputs are those of rows row0..row0 + n. Backward turns dq and dk back, or rope does it behind. */
enum { FORWARD, BACKWARD, BACKWARD_AND_ROPE };
static void attend_packed(call *c, const packed_case *s, const gr_seq *seqs, int64_t n_seqs, int64_t row0, int64_t n, int what) {
    const bool backward = what != FORWARD;
    const int64_t HD = s->H * s->D, KD = s->K * s->D, all = HD + 2 * KD;
    running = c;
    c->row0 = row0, c->n = n, c->tolerance = 1e-2;
    gr_rows qkv = filled_rows(c, 1, 0, PACKED_ROWS, all, all), dqkv = filled_rows(c, 2, 0, PACKED_ROWS, all, all);
    gr_attention a = {.q = qkv,
                      .k = gr_rows_at(qkv, 0, HD),
                      .v = gr_rows_at(qkv, 0, HD + KD),
                      .out = filled_rows(c, 3, 0, PACKED_ROWS, HD, HD),
                      .lse = fixed(c, 4, PACKED_ROWS, s->H),
                      .dq = dqkv,
                      .dk = gr_rows_at(dqkv, 0, HD),
                      .dv = gr_rows_at(dqkv, 0, HD + KD),
                      .dout = filled_rows(c, 5, 0, PACKED_ROWS, HD, HD),
                      .delta = fixed(c, 6, PACKED_ROWS, s->H),
                      .seqs = seqs,
                      .n_seqs = n_seqs,
                      .H = s->H,
                      .K = s->K,
                      .D = s->D,
                      .scale = 1.7f / sqrtf((float)s->D),
                      .window = s->window,
                      .softcap = s->softcap,
                      .compute = s->type};
    c->d->ops->attention_forward(c->d, &a);
    const int32_t *pos = positions(c, PACKED_ROWS);
    const float *table = fixed(c, 7, 64, s->D);
    if (what == BACKWARD) a.pos = pos, a.turns = table;
    if (backward) c->d->ops->attention_backward(c->d, &a);
    if (what == BACKWARD_AND_ROPE) c->d->ops->rope(c->d, dqkv, pos, table, n, s->H + s->K, s->D, true);
    out_rows(c, gr_rows_at(a.out, row0, 0), HD), out_rows(c, gr_rows_at(closed(a.lse, s->H), row0, 0), s->H);
    for (int i = 0; backward && i < 3; i++) out_rows(c, gr_rows_at(i == 0 ? a.dq : i == 1 ? a.dk : a.dv, row0, 0), i ? KD : HD);
}

/* Against the reference; the bits of a sequence alone and of a query alone are those it has among others. */
void test_packed_attention(void **state) {
    const char *level = levels[*(int *)*state];
    const operation op = {.name = "packed attention"};
    if (!available(level) || !chosen(&op)) skip();
    gr_device *reference = device("generic", 1), *d = device(level, 1);
    for (size_t i = 0; i < sizeof packed_cases / sizeof *packed_cases; i++) {
        const packed_case *s = &packed_cases[i];
        call exact = {.d = reference, .variant = (int)i}, a = {.d = d, .variant = (int)i};
        few_digits = true;
        ((mirror *)d)->activations = s->type, ((mirror *)d)->as_decoder = true;
        attend_packed(&exact, s, packed_seqs, PACKED_SEQS, 0, PACKED_ROWS, BACKWARD);
        attend_packed(&a, s, packed_seqs, PACKED_SEQS, 0, PACKED_ROWS, BACKWARD);
        compare(&a, &exact, &op, level);
        release(&exact);
        call apart = {.d = d};
        attend_packed(&apart, s, packed_seqs, PACKED_SEQS - 1, 0, packed_seqs[PACKED_SEQS - 1].kv_start, BACKWARD_AND_ROPE);
        compare_bits(&a, &apart, &op, "rope behind it");
        release(&apart);
        for (int j = 0; j < PACKED_SEQS; j++) {
            const gr_seq *one = &packed_seqs[j];
            call b = {.d = d};
            attend_packed(&b, s, one, 1, one->q_start, one->q_len, BACKWARD);
            compare_bits(&a, &b, &op, "a sequence alone");
            release(&b);
            for (int64_t at = one->q_len - 1; at > 0; at = at * 2 / 5) {
                const gr_seq row = {one->q_start + at, 1, one->kv_start, one->kv_len - one->q_len + at + 1};
                b = (call){.d = d};
                attend_packed(&b, s, &row, 1, row.q_start, 1, FORWARD);
                compare_bits(&a, &b, &op, "a query alone");
                release(&b);
            }
        }
        release(&a);
    }
    few_digits = false;
    close_device(reference), close_device(d);
}

/* Single queries, and three of a prompt, on a cache whose slots are filled as far as kv_len says. */
static void attend_cached(call *c, const packed_case *s, const gr_seq *seqs, int64_t n_seqs, int64_t row0) {
    enum { QUERIES = 8, POSITIONS = 8700 };
    const int64_t HD = s->H * s->D, KD = s->K * s->D;
    running = c;
    c->row0 = row0, c->n = n_seqs == 1 ? 1 : QUERIES, c->tolerance = 1e-2;
    const gr_kv kv = {.rows = filled_rows(c, 1, 0, POSITIONS, 2 * KD, 2 * KD)};
    gr_attention a = {.q = filled_rows(c, 2, 0, QUERIES, HD, HD),
                      .k = kv.rows,
                      .v = gr_rows_at(kv.rows, 0, KD),
                      .out = filled_rows(c, 3, 0, QUERIES, HD, HD),
                      .lse = fixed(c, 4, QUERIES, s->H),
                      .seqs = seqs,
                      .n_seqs = n_seqs,
                      .H = s->H,
                      .K = s->K,
                      .D = s->D,
                      .scale = 4 / sqrtf((float)s->D),
                      .window = s->window,
                      .softcap = s->softcap,
                      .compute = s->type,
                      .kv = &kv};
    c->d->ops->attention_forward(c->d, &a);
    out_rows(c, gr_rows_at(a.out, row0, 0), HD), out_rows(c, gr_rows_at(closed(a.lse, s->H), row0, 0), s->H);
}

/* More positions than there are pieces of them in one step, pieces that are just full, one position. */
void test_cached_attention(void **state) {
    static const packed_case cases[] = {{2, 1, 64, 0, 0, GR_DTYPE_BF16},
                                        {5, 1, 128, 0, 2, GR_DTYPE_F16},
                                        {2, 2, 256, 300, 0, GR_DTYPE_BF16},
                                        {3, 3, 19, 200, 0, GR_DTYPE_F32}};
    static const gr_seq seqs[] = {{0, 1, 8200, 256}, {1, 1, 0, 8200},  {2, 1, 8456, 1},
                                  {3, 3, 8457, 100}, {6, 1, 8557, 90}, {7, 1, 100, 700}};
    const operation op = {.name = "cached attention"};
    const char *level = levels[*(int *)*state];
    if (!available(level) || !chosen(&op)) skip();
    gr_device *reference = device("generic", 1), *d = device(level, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        call exact = {.d = reference, .variant = (int)i}, a = {.d = d, .variant = (int)i};
        few_digits = true;
        ((mirror *)d)->activations = cases[i].type, ((mirror *)d)->as_decoder = true;
        attend_cached(&exact, &cases[i], seqs, 6, 0);
        attend_cached(&a, &cases[i], seqs, 6, 0);
        if (cases[i].type == GR_DTYPE_F32) a.tolerance = 2e-5;
        compare(&a, &exact, &op, level);
        for (int j = 0; j < 6; j++) {
            call b = {.d = d};
            if (seqs[j].q_len > 1) continue;
            attend_cached(&b, &cases[i], &seqs[j], 1, seqs[j].q_start);
            compare_bits(&a, &b, &op, "a query alone");
            release(&b);
        }
        release(&exact), release(&a);
    }
    few_digits = false;
    close_device(reference), close_device(d);
}
