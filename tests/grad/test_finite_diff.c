/* test_finite_diff.c - every backward operation against central differences of its forward, for every level this CPU
 * has, or on the card that GRAFT_DEVICE names. The scalar is L = sum of y * dy in double; a derivative along a random direction
 * compares a whole gradient. */
#include <math.h>
#include <stdio.h>

#include "../kernels/mirror.h"
#include "kernels/philox.h"

enum { N = 13 };
static const char *const levels[] = {"generic", "avx2", "avx512", "avx512bf16", "amx"};

/* What operations are given lies in one structure a check; a card's mirror carries it there and back. */
static mirror_buffer world;
static void world_is(void *p, size_t bytes) { world = (mirror_buffer){p, 1, (int64_t)bytes / 4, (int64_t)bytes / 4, 0}; }
static bool find_world(void *context, const void *p, mirror_buffer *b) {
    (void)context;
    *b = world;
    return (const char *)p >= (char *)world.data && (const char *)p < (char *)(world.data + world.ld);
}

static void fill(float *x, int64_t n, int tag) {
    for (int64_t i = 0; i < n; i++) x[i] = 2 * gr_random_uniform(5, (uint32_t)tag, 0, (uint64_t)i) - 1;
}

static double dot(const float *a, const float *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

static gr_rows rows_of(float *x, int64_t cols) { return (gr_rows){x, cols, GR_DTYPE_F32}; }

typedef double loss_fn(gr_device *d, void *context);

/* grad[n] is dL/dx: its product with three random directions against (L(x + h u) - L(x - h u)) / 2h. */
static void check(gr_device *d, loss_fn *loss, void *context, float *x, const float *grad, int64_t n, const char *what) {
    const float h = 1.0f / 256;
    float *at = malloc((size_t)n * 4), *u = malloc((size_t)n * 4);
    assert_true(at && u);
    memcpy(at, x, (size_t)n * 4);
    for (int direction = 0; direction < 3; direction++) {
        fill(u, n, 90 + direction);
        double scale = sqrt(dot(grad, grad, n)) * sqrt(dot(u, u, n)) / sqrt((double)n) + 1e-6;
        for (int64_t i = 0; i < n; i++) x[i] = at[i] + h * u[i];
        double plus = loss(d, context);
        for (int64_t i = 0; i < n; i++) x[i] = at[i] - h * u[i];
        double numeric = (plus - loss(d, context)) / (2 * (double)h), analytic = dot(grad, u, n);
        memcpy(x, at, (size_t)n * 4);
        if (!(fabs(numeric - analytic) < 3e-3 * scale))
            fail_msg("%s %s: difference quotient %g, gradient %g", d->level, what, numeric, analytic);
    }
    free(at);
    free(u);
}

typedef struct norm {
    float x[N * 36], w[36], dy[N * 36], rstd[N * 36], y[N * 36], dx[N * 36], dw[36];
    int64_t parts;
} norm;

static double norm_loss(gr_device *d, void *context) {
    norm *t = context;
    gr_norm p = {.w = t->w, .eps = 1e-5f, .parts = t->parts, .width = 36 / t->parts};
    d->ops->rmsnorm_forward(d, rows_of(t->y, 36), t->rstd, (gr_rows){0}, rows_of(t->x, 36), (gr_rows){0}, &p, N);
    return dot(t->y, t->dy, N * 36);
}

static void check_rmsnorm(gr_device *d, int64_t parts) {
    static norm t;
    world_is(&t, sizeof t);
    t.parts = parts;
    fill(t.x, N * 36, 1), fill(t.w, 36, 2), fill(t.dy, N * 36, 3);
    memset(t.dx, 0, sizeof t.dx), memset(t.dw, 0, sizeof t.dw);
    norm_loss(d, &t);
    gr_norm p = {.w = t.w, .dw = t.dw, .parts = parts, .width = 36 / parts};
    d->ops->rmsnorm_backward(d, rows_of(t.dx, 36), (gr_rows){0}, true, rows_of(t.dy, 36), rows_of(t.x, 36), t.rstd, &p, N);
    check(d, norm_loss, &t, t.x, t.dx, N * 36, "rmsnorm dx");
    check(d, norm_loss, &t, t.w, t.dw, 36 / parts, "rmsnorm dw");
}

enum { K = 37, O = 21, R = 5 };

typedef struct linear {
    float x[N * K], w[O * K], bias[O], A[R * K], B[O * R], y[N * O], h[N * R], dy[N * O], xd[N * K], dxd[N * K], dh[N * R];
    float dx[N * K], dw[O * K], dbias[O], dA[R * K], dB[O * R];
    uint64_t key[N];
    gr_lora lora;
    gr_linear l;
    gr_group group;
    gr_dropout dropout;
    gr_product p;
} linear;

static double linear_loss(gr_device *d, void *context) {
    linear *t = context;
    t->p.y = rows_of(t->y, O);
    d->ops->linear_forward(d, &t->p, N);
    return dot(t->y, t->dy, N * O);
}

/* Without dropout, then with it. */
static void check_linear(gr_device *d) {
    static linear t;
    world_is(&t, sizeof t);
    float *inputs[] = {t.x, t.w, t.bias, t.A, t.B, t.dy};
    const int64_t sizes[] = {N * K, O * K, O, R * K, O * R, N * O};
    for (int i = 0; i < 6; i++) fill(inputs[i], sizes[i], 10 + i);
    for (int i = 0; i < N; i++) t.key[i] = (uint64_t)i;
    t.lora = (gr_lora){.rank = R, .scale = 0.7f, .A = t.A, .B = t.B, .dA = t.dA, .dB = t.dB};
    t.l = (gr_linear){.w = {GR_DTYPE_F32, O, K, t.w}, .bias = t.bias, .lora = &t.lora, .n_lora = 1, .dw = t.dw, .dbias = t.dbias};
    t.group = (gr_group){.member = {&t.l}, .n = 1};
    t.dropout = (gr_dropout){.p = 0.25f, .seed = 3, .row_key = t.key, .site = 9};
    t.p = (gr_product){
        .group = &t.group, .x = rows_of(t.x, K), .h = t.h, .xd = rows_of(t.xd, K), .dxd = rows_of(t.dxd, K), .dh = t.dh};
    for (int drop = 0; drop < 2; drop++) {
        t.p.dropout = drop ? &t.dropout : NULL;
        memset(t.dw, 0, sizeof t.dw), memset(t.dbias, 0, sizeof t.dbias), memset(t.dA, 0, sizeof t.dA),
            memset(t.dB, 0, sizeof t.dB);
        linear_loss(d, &t);
        t.p.y = rows_of(t.dy, O);
        d->ops->linear_backward(d, &t.p, rows_of(t.dx, K), false, N);
        check(d, linear_loss, &t, t.x, t.dx, N * K, drop ? "linear dx through dropout" : "linear dx");
        check(d, linear_loss, &t, t.w, t.dw, O * K, "linear dw");
        check(d, linear_loss, &t, t.bias, t.dbias, O, "linear dbias");
        check(d, linear_loss, &t, t.A, t.dA, R * K, "linear dA");
        check(d, linear_loss, &t, t.B, t.dB, O * R, "linear dB");
    }
}

enum { H = 4, KV = 2, D = 10, T = 75 };

typedef struct attention {
    float q[T * H * D], k[T * KV * D], v[T * KV * D], out[T * H * D], lse[T * H], dout[T * H * D];
    float dq[T * H * D], dk[T * KV * D], dv[T * KV * D], delta[T * H];
    gr_attention a;
} attention;

static const gr_seq two[] = {{0, 70, 0, 70}, {70, 5, 70, 5}};

static double attention_loss(gr_device *d, void *context) {
    attention *t = context;
    d->ops->attention_forward(d, &t->a);
    return dot(t->out, t->dout, T * H * D);
}

/* A window smaller than the first sequence, and a cap that bends scores of about 1. */
static void check_attention(gr_device *d, int64_t window, float softcap) {
    static attention t;
    world_is(&t, sizeof t);
    fill(t.q, T * H * D, 20), fill(t.k, T * KV * D, 21), fill(t.v, T * KV * D, 22), fill(t.dout, T * H * D, 23);
    t.a = (gr_attention){.q = rows_of(t.q, H * D),
                         .k = rows_of(t.k, KV * D),
                         .v = rows_of(t.v, KV * D),
                         .out = rows_of(t.out, H * D),
                         .lse = t.lse,
                         .dq = rows_of(t.dq, H * D),
                         .dk = rows_of(t.dk, KV * D),
                         .dv = rows_of(t.dv, KV * D),
                         .dout = rows_of(t.dout, H * D),
                         .delta = t.delta,
                         .seqs = two,
                         .n_seqs = 2,
                         .H = H,
                         .K = KV,
                         .D = D,
                         .scale = 0.4f,
                         .window = window,
                         .softcap = softcap};
    attention_loss(d, &t);
    d->ops->attention_backward(d, &t.a);
    check(d, attention_loss, &t, t.q, t.dq, T * H * D, "attention dq");
    check(d, attention_loss, &t, t.k, t.dk, T * KV * D, "attention dk");
    check(d, attention_loss, &t, t.v, t.dv, T * KV * D, "attention dv");
}

enum { F = 29, V = 101 };

typedef struct rows {
    gr_activation act;
    gr_loss_terms terms;
    float x[N * V], y[N * V], dy[N * V], nll[N], grad[N * V], table[N * 10];
    int32_t ids[N];
    uint64_t key[N];
} rows;

static double glu_loss(gr_device *d, void *context) {
    rows *t = context;
    d->ops->glu_forward(d, rows_of(t->y, F), rows_of(t->x, 2 * F), N, F, t->act);
    return dot(t->y, t->dy, N * F);
}

static double cross_entropy_loss(gr_device *d, void *context) {
    rows *t = context;
    double loss = 0;
    memcpy(t->y, t->x, sizeof t->y); /* a cap changes them */
    d->ops->cross_entropy(d, t->nll, rows_of(t->y, V), t->ids, NULL, N, V, &t->terms);
    for (int i = 0; i < N; i++) {
        double cap = t->terms.softcap, x = t->x[i * V + t->ids[i]], lse = t->nll[i] + (cap > 0 ? cap * tanh(x / cap) : x);
        loss += t->dy[i] * (t->nll[i] + t->terms.z_loss * lse * lse);
    }
    return loss;
}

static double dropout_loss(gr_device *d, void *context) {
    rows *t = context;
    d->ops->dropout(d, rows_of(t->y, V), rows_of(t->x, V), N, V, &(gr_dropout){0.25f, 3, t->key, 9}, false);
    return dot(t->y, t->dy, N * V);
}

static double rope_loss(gr_device *d, void *context) {
    rows *t = context;
    for (int p = 0; p < N; p++)
        for (int i = 0; i < 5; i++) {
            t->table[p * 10 + i] = cosf((float)(p * (i + 1))), t->table[p * 10 + 5 + i] = sinf((float)(p * (i + 1)));
        }
    memcpy(t->y, t->x, sizeof t->y);
    d->ops->rope(d, rows_of(t->y, 20), t->ids, t->table, N, 2, 10, false);
    double loss = dot(t->y, t->dy, N * 20);
    memcpy(t->y, t->dy, sizeof t->y); /* the gradient: dy turned back */
    d->ops->rope(d, rows_of(t->y, 20), t->ids, t->table, N, 2, 10, true);
    return loss;
}

/* The table [5, F] is x; embed_forward reads it, embed_backward adds to its gradient. */
static double embed_loss(gr_device *d, void *context) {
    rows *t = context;
    gr_weight table = {GR_DTYPE_F32, N, F, t->x};
    d->ops->embed_forward(d, rows_of(t->y, F), &table, t->ids, N, 1.3f);
    return dot(t->y, t->dy, N * F);
}

static void check_rows(gr_device *d) {
    static rows t;
    world_is(&t, sizeof t);
    fill(t.x, N * V, 30), fill(t.dy, N * V, 31);
    for (int i = 0; i < N; i++) t.ids[i] = i * 5 % 7, t.key[i] = (uint64_t)i;
    for (int act = GR_ACTIVATION_SILU; act <= GR_ACTIVATION_GELU_TANH; act++) {
        t.act = (gr_activation)act;
        d->ops->glu_backward(d, rows_of(t.grad, 2 * F), rows_of(t.dy, F), rows_of(t.x, 2 * F), N, F, t.act);
        check(d, glu_loss, &t, t.x, t.grad, N * 2 * F, act ? "geglu" : "glu");
    }
    for (int terms = 0; terms < 4; terms++) {
        t.terms = (gr_loss_terms){.softcap = terms & 1 ? 0.7f : 0, .z_loss = terms & 2 ? 0.3f : 0};
        memcpy(t.grad, t.x, sizeof t.grad);
        d->ops->cross_entropy(d, t.nll, rows_of(t.grad, V), t.ids, t.dy, N, V, &t.terms);
        check(d, cross_entropy_loss, &t, t.x, t.grad, N * V, "cross_entropy");
    }
    memset(t.grad, 0, sizeof t.grad);
    d->ops->dropout(d, rows_of(t.grad, V), rows_of(t.dy, V), N, V, &(gr_dropout){0.25f, 3, t.key, 9}, true);
    check(d, dropout_loss, &t, t.x, t.grad, N * V, "dropout");
    rope_loss(d, &t);
    memcpy(t.grad, t.y, sizeof t.grad);
    check(d, rope_loss, &t, t.x, t.grad, N * 20, "rope");
    memset(t.grad, 0, sizeof t.grad);
    d->ops->embed_backward(d, t.grad, rows_of(t.dy, F), t.ids, N, F, 1.3f);
    check(d, embed_loss, &t, t.x, t.grad, N * F, "embed");
}

static void check_all(gr_device *d) {
    check_rmsnorm(d, 1);
    check_rmsnorm(d, 3);
    check_linear(d);
    check_attention(d, 0, 0);
    check_attention(d, 9, 0);
    check_attention(d, 66, 0.8f);
    check_rows(d);
}

static bool on_card(void) { return getenv("GRAFT_DEVICE") && strncmp(getenv("GRAFT_DEVICE"), "cuda", 4) == 0; }

static void test_level(void **state) {
    const char *level = *state, *why = NULL;
    if (on_card() || !gr_cpu_ops(level)) skip();
    setenv("GRAFT_CPU", level, 1);
    gr_threads *threads = gr_threads_new(2);
    gr_device *d = gr_device_open("cpu", threads, &why);
    if (!d) fail_msg("%s", why);
    check_all(d);
    gr_device_close(d);
    gr_threads_free(threads);
}

/* In float32; with the device's form of a group's weights in the last one, as they are mapped in the first. */
static void test_card(void **state) {
    const char *why = NULL;
    (void)state;
    if (!on_card()) skip();
    gr_device *card = gr_device_open(getenv("GRAFT_DEVICE"), NULL, &why);
    if (!card) fail_msg("%s", why);
    mirror *m = mirror_new(card, find_world, NULL);
    m->in_place = true;
    check_all(&m->device);
    m->variant = 1;
    check_linear(&m->device);
    gr_device_close(&m->device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        {"generic", test_level, NULL, NULL, (void *)levels[0]}, {"avx2", test_level, NULL, NULL, (void *)levels[1]},
        {"avx512", test_level, NULL, NULL, (void *)levels[2]},  {"avx512bf16", test_level, NULL, NULL, (void *)levels[3]},
        {"amx", test_level, NULL, NULL, (void *)levels[4]},     {"cuda", test_card, NULL, NULL, NULL},
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
