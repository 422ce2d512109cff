/* bench_kernels.c - speed of the operations on the shapes of models, beside the limits that the same run measures.
 *
 *   bench_kernels [threads [PART]]   on a CPU (GRAFT_CPU chooses the level): SmolLM2-135M's shapes, as GFLOP/s and as a share
 *                                    of the FMA peak
 *   GRAFT_DEVICE=cuda bench_kernels  on a card: LLaMA-7B's and SmolLM2-135M's, as bytes and FLOPs a second, with their share of
 *                                    what a copy and a large product reach; bytes are what an operation must read and write once
 *
 * PART: only operations whose line contains it; "limits": only the machine's; "small": a card's lines on sizes of no interest, to
 * see that they run. */
#include <stdint.h>

#include "limits.h"

typedef struct model_shape {
    const char *name;
    int64_t C, H, K, D, F, V, n, length; /* n tokens in sequences of that length */
} model_shape;

static bool on_card;
static double fma_peak;                /* GFLOP/s of the CPU */
static double copy_rate, product_rate; /* of the card, bytes and FLOPs a second */
static const char *wanted = "";        /* a part of the labels to be measured */
static double patience = 0.5;          /* seconds for an operation, or so */
static gr_dtype type_of_rows = GR_DTYPE_F32;

/* ---- device memory ---- */

enum { PERIOD = 1009, PIECE = PERIOD * 1024 }; /* values repeat: pieces of them are all alike */

/* n elements of F32 or BF16. */
static void *filled(gr_device *d, int64_t n, gr_dtype type) {
    static float piece[PIECE];
    static uint16_t halves[PIECE];
    int64_t size = type == GR_DTYPE_F32 ? 4 : 2;
    char *p = d->alloc(d, n * size);
    if (!p) {
        fprintf(stderr, "out of memory: %lld bytes\n", (long long)(n * size));
        exit(1);
    }
    for (int i = 0; i < PIECE && piece[0] == 0; i++) piece[i] = (float)(i * 7919L % PERIOD) / PERIOD - 0.5f;
    for (int i = 0; i < PIECE && halves[0] == 0; i++) halves[i] = gr_f32_to_bf16(piece[i]);
    for (int64_t at = 0; at < n; at += PIECE)
        d->upload(d, p + at * size, type == GR_DTYPE_F32 ? (void *)piece : (void *)halves,
                  (n - at < PIECE ? n - at : PIECE) * size);
    return p;
}

static float *values(gr_device *d, int64_t n) { return filled(d, n, GR_DTYPE_F32); }

/* Rows as the device wants activations of that type. */
static gr_rows rows_as(gr_device *d, int64_t n, int64_t cols, gr_dtype compute) {
    gr_dtype type = d->act_type(d, compute);
    int64_t ld = d->row_stride(d, cols, type);
    return (gr_rows){filled(d, n * ld, type), ld, type};
}

static gr_rows rows(gr_device *d, int64_t n, int64_t cols) { return rows_as(d, n, cols, type_of_rows); }

static int32_t *ids_below(gr_device *d, int64_t n, int64_t below) {
    int32_t *ids = malloc((size_t)n * 4), *there = d->alloc(d, n * 4);
    if (!ids || !there) abort();
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(i * 7919 % below);
    d->upload(d, there, ids, n * 4);
    free(ids);
    return there;
}

static void *sent(gr_device *d, const void *p, int64_t bytes) {
    void *there = d->alloc(d, bytes);
    if (!there) abort();
    d->upload(d, there, p, bytes);
    return there;
}

/* ---- timing ---- */

static void finished(gr_device *d) {
    const char *wrong = d->sync(d);
    if (!wrong) return;
    fprintf(stderr, "%s\n", wrong);
    exit(1);
}

static int64_t size_of(gr_rows x) { return x.type == GR_DTYPE_F32 ? 4 : 2; }

static void report(const char *label, double seconds, double flops, double bytes) {
    if (on_card)
        printf("%-52s %10.1f us %8.1f GB/s %5.1f %% %8.2f TFLOP/s %5.1f %%\n", label, seconds * 1e6, bytes / seconds / 1e9,
               copy_rate > 0 ? bytes / seconds / copy_rate * 100 : 0, flops / seconds / 1e12,
               product_rate > 0 ? flops / seconds / product_rate * 100 : 0);
    else
        printf("%-44s %9.3f ms %8.1f GFLOP/s %5.1f %%\n", label, seconds * 1e3, flops / seconds / 1e9,
               flops / seconds / 1e9 / fma_peak * 100);
    fflush(stdout);
}

/* Seconds of the statement: on a CPU the best of many, on a card the median of queues of it that take long beside a wait. */
#define MEASURE(seconds, statement)                                                                                                \
    do {                                                                                                                           \
        enum { QUEUES = 5 };                                                                                                       \
        double found[QUEUES], best = 1e9, until = now() + patience;                                                                \
        int many = 1;                                                                                                              \
        for (int run_ = 0; run_ < 3 || (!on_card && now() < until); run_++) {                                                      \
            double start = now();                                                                                                  \
            statement;                                                                                                             \
            finished(d);                                                                                                           \
            if (now() - start < best) best = now() - start;                                                                        \
        }                                                                                                                          \
        if (on_card) {                                                                                                             \
            if (best < patience / QUEUES / 2) many = (int)(patience / QUEUES / 2 / best) + 1;                                      \
            for (int q_ = 0; q_ < QUEUES; q_++) {                                                                                  \
                double start = now();                                                                                              \
                for (int run_ = 0; run_ < many; run_++) statement;                                                                 \
                finished(d);                                                                                                       \
                found[q_] = (now() - start) / many;                                                                                \
            }                                                                                                                      \
            qsort(found, QUEUES, sizeof *found, ascending);                                                                        \
            best = found[QUEUES / 2];                                                                                              \
        }                                                                                                                          \
        (seconds) = best;                                                                                                          \
    } while (0)

#define TIME(label, flops, bytes, statement)                                                                                       \
    do {                                                                                                                           \
        double seconds_;                                                                                                           \
        if (!strstr(label, wanted)) break;                                                                                         \
        MEASURE(seconds_, statement);                                                                                              \
        report(label, seconds_, flops, bytes);                                                                                     \
    } while (0)

/* ---- linears ---- */

static gr_weight make_weight(gr_device *d, gr_dtype dtype, int64_t N, int64_t K) {
    int64_t bytes = gr_dtype_bytes(dtype, N * K);
    gr_weight w = {.dtype = dtype, .rows = N, .cols = K};
    if (dtype == GR_DTYPE_F32 || dtype == GR_DTYPE_BF16) {
        w.data = filled(d, N * K, dtype);
        return w;
    }
    unsigned char *data = malloc((size_t)bytes);
    if (!data) abort();
    for (int64_t i = 0; i < bytes; i++) data[i] = (unsigned char)(i * 31 % 48); /* halves stay small */
    w.data = sent(d, data, bytes);
    free(data);
    return w;
}

/* A group of linears with what its operations take. */
typedef struct bench_group {
    gr_linear member[GR_GROUP_MAX];
    gr_lora lora[GR_GROUP_MAX];
    gr_group group;
    int64_t N, K, rank; /* of all */
    double weights;     /* bytes of them */
} bench_group;

static void make_group(gr_device *d, bench_group *b, const int64_t *N, int members, int64_t K, gr_dtype dtype, int64_t rank,
                       gr_dtype compute) {
    *b = (bench_group){.K = K, .rank = rank * members};
    b->group = (gr_group){.n = members, .compute = compute};
    for (int i = 0; i < members; i++) {
        b->lora[i] = (gr_lora){.rank = rank,
                               .scale = 1,
                               .A = values(d, rank * K),
                               .B = values(d, N[i] * rank),
                               .dA = values(d, rank * K),
                               .dB = values(d, N[i] * rank)};
        b->member[i] = (gr_linear){.w = make_weight(d, dtype, N[i], K), .lora = &b->lora[i], .n_lora = rank ? 1 : 0};
        b->group.member[i] = &b->member[i];
        b->N += N[i], b->weights += (double)gr_dtype_bytes(dtype, N[i] * K);
    }
}

static void free_group(gr_device *d, bench_group *b) {
    for (int i = 0; i < b->group.n; i++) {
        d->free(d, (void *)(uintptr_t)b->member[i].w.data), d->free(d, b->member[i].dw);
        d->free(d, (void *)(uintptr_t)b->lora[i].A), d->free(d, (void *)(uintptr_t)b->lora[i].B);
        d->free(d, b->lora[i].dA), d->free(d, b->lora[i].dB);
    }
}

/* Forward, backward and, of one trained F32 weight, its gradient alone, under these labels. */
static void time_group(gr_device *d, bench_group *b, int64_t n, char label[3][96], bool placed) {
    int64_t N = b->N, K = b->K, rank = b->rank;
    gr_rows x = rows(d, n, K), y = rows(d, n, N), dx = rows_as(d, n, K, n > 16 && on_card ? GR_DTYPE_F32 : type_of_rows);
    float *h = values(d, n * rank), *dh = values(d, n * rank);
    const gr_product p = {.group = &b->group, .x = x, .y = y, .h = h, .dh = dh};
    double flops = 2.0 * (double)n * (double)(N * K + rank * K + rank * (b->group.n ? N / b->group.n : 0)),
           moved = b->weights + (double)n * (double)(K + N) * (double)size_of(x);
    b->group.backward = placed && n > 16;
    if (placed && !d->place(d, &b->group)) abort();
    TIME(label[0], flops, moved, d->ops->linear_forward(d, &p, n));
    if (n > 16) {
        TIME(label[1], 2 * flops - 2.0 * (double)n * (double)(N * K), moved + 4.0 * (double)n * (double)K,
             d->ops->linear_backward(d, &p, dx, on_card, n));
    }
    if (n > 16 && rank == 0 && b->group.n == 1 && b->member[0].w.dtype == GR_DTYPE_F32) { /* a trained weight's gradient alone */
        b->member[0].dw = values(d, N * K);
        TIME(label[2], flops, 8.0 * (double)(N * K) + (double)n * (double)(K + N) * (double)size_of(x),
             d->ops->linear_backward(d, &p, (gr_rows){0}, false, n));
    }
    if (placed) d->release(d, &b->group);
    d->free(d, x.data), d->free(d, y.data), d->free(d, dx.data), d->free(d, h), d->free(d, dh);
}

static bool any_wanted(char label[3][96]) {
    return strstr(label[0], wanted) || strstr(label[1], wanted) || strstr(label[2], wanted);
}

static void bench_linear(gr_device *d, int64_t n, int64_t N, int64_t K, gr_dtype dtype, int64_t rank, gr_dtype compute) {
    static const char *const what[] = {"fwd", "bwd", "dw "};
    char label[3][96];
    bench_group b;
    for (int i = 0; i < 3; i++)
        snprintf(label[i], sizeof *label, "linear %s n=%d %dx%d %s in %s r=%d", what[i], (int)n, (int)N, (int)K,
                 gr_dtype_get(dtype)->name, gr_dtype_get(compute)->name, (int)rank);
    if (!any_wanted(label)) return;
    make_group(d, &b, &N, 1, K, dtype, rank, compute);
    time_group(d, &b, n, label, false);
    free_group(d, &b);
}

/* The same with int8 forms, as a share of the float peak too. */
static void bench_int8(gr_device *d, int64_t n, int64_t N, int64_t K, gr_dtype dtype) {
    char label[3][96];
    bench_group b;
    for (int i = 0; i < 3; i++)
        snprintf(label[i], sizeof *label, "int8 %s n=%d %dx%d %s", i ? "bwd" : "fwd", (int)n, (int)N, (int)K,
                 gr_dtype_get(dtype)->name);
    if (!any_wanted(label)) return;
    make_group(d, &b, &N, 1, K, dtype, 0, GR_DTYPE_F32);
    b.group.base = GR_BASE_INT8;
    time_group(d, &b, n, label, true);
    free_group(d, &b);
}

/* ---- attention ---- */

typedef struct bench_attend {
    gr_attention a;
    int64_t n;
} bench_attend;

static void make_attention(gr_device *d, bench_attend *b, const model_shape *s, int64_t n_seqs, int64_t length, gr_dtype compute) {
    int64_t n = length * n_seqs, q = s->H * s->D, k = s->K * s->D;
    gr_seq *seqs = malloc((size_t)n_seqs * sizeof *seqs);
    if (!seqs) abort();
    for (int64_t i = 0; i < n_seqs; i++) seqs[i] = (gr_seq){i * length, length, i * length, length};
    *b = (bench_attend){.n = n};
    b->a = (gr_attention){.q = rows(d, n, q),
                          .k = rows(d, n, k),
                          .v = rows(d, n, k),
                          .out = rows(d, n, q),
                          .lse = values(d, n * s->H),
                          .dq = rows(d, n, q),
                          .dk = rows(d, n, k),
                          .dv = rows(d, n, k),
                          .dout = rows(d, n, q),
                          .delta = values(d, n * s->H),
                          .seqs = sent(d, seqs, n_seqs * (int64_t)sizeof *seqs),
                          .n_seqs = n_seqs,
                          .H = s->H,
                          .K = s->K,
                          .D = s->D,
                          .scale = 0.125f,
                          .compute = compute};
    free(seqs);
}

static void free_attention(gr_device *d, bench_attend *b) {
    const gr_rows all[] = {b->a.q, b->a.k, b->a.v, b->a.out, b->a.dq, b->a.dk, b->a.dv, b->a.dout};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) d->free(d, all[i].data);
    d->free(d, b->a.lse), d->free(d, b->a.delta), d->free(d, (void *)(uintptr_t)b->a.seqs);
}

static void bench_attention(gr_device *d, const model_shape *s, int64_t n_seqs, int64_t length, gr_dtype compute) {
    bench_attend b;
    char label[96];
    int64_t q = s->H * s->D, k = s->K * s->D, n = n_seqs * length;
    double flops = 2.0 * (double)n_seqs * (double)(length * length * q); /* two products, half of them masked */
    make_attention(d, &b, s, n_seqs, length, compute);
    double each = (double)n * (double)size_of(b.a.q);
    snprintf(label, sizeof label, "%sattention fwd %d x %d %s", s->name, (int)n_seqs, (int)length, gr_dtype_get(compute)->name);
    TIME(label, flops, each * (double)(2 * q + 2 * k), d->ops->attention_forward(d, &b.a));
    snprintf(label, sizeof label, "%sattention bwd %d x %d %s", s->name, (int)n_seqs, (int)length, gr_dtype_get(compute)->name);
    TIME(label, 2.5 * flops, each * (double)(4 * q + 4 * k), d->ops->attention_backward(d, &b.a));
    free_attention(d, &b);
}

/* One token of each of n_seqs sequences of that length in a cache. */
static void bench_cached(gr_device *d, const model_shape *s, int64_t n_seqs, int64_t length) {
    char label[2][96];
    gr_kv kv = {0};
    gr_seq *seqs = malloc((size_t)n_seqs * sizeof *seqs);
    int32_t *last = malloc((size_t)n_seqs * 4);
    int64_t q = s->H * s->D, k = s->K * s->D;
    if (!seqs || !last || !d->kv_open(d, &kv, &(gr_kv_shape){1, n_seqs, length, s->K, s->D, type_of_rows})) abort();
    d->zero(d, kv.rows.data, n_seqs * length * 2 * k * size_of(kv.rows));
    for (int64_t i = 0; i < n_seqs; i++) seqs[i] = (gr_seq){i, 1, i * length, length}, last[i] = (int32_t)((i + 1) * length - 1);
    gr_rows x = rows(d, n_seqs, q), out = rows(d, n_seqs, q), new = rows(d, n_seqs, 2 * k);
    int32_t *at = sent(d, last, n_seqs * 4);
    gr_seq *there = sent(d, seqs, n_seqs * (int64_t)sizeof *seqs);
    const gr_attention a = {.q = x,
                            .k = kv.rows,
                            .v = gr_rows_at(kv.rows, 0, k),
                            .out = out,
                            .seqs = there,
                            .n_seqs = n_seqs,
                            .H = s->H,
                            .K = s->K,
                            .D = s->D,
                            .scale = 0.125f,
                            .compute = type_of_rows,
                            .kv = &kv};
    snprintf(label[0], sizeof *label, "%skv_append %d rows", s->name, (int)n_seqs);
    snprintf(label[1], sizeof *label, "%sattention of a token, %d x %d cached", s->name, (int)n_seqs, (int)length);
    TIME(label[0], 0, 4.0 * (double)(n_seqs * k) * (double)size_of(x), d->ops->kv_append(d, &kv, new, at, n_seqs));
    TIME(label[1], 4.0 * (double)(n_seqs * length * q), 2.0 * (double)(n_seqs * length * k) * (double)size_of(x),
         d->ops->attention_forward(d, &a));
    d->kv_close(d, &kv);
    d->free(d, x.data), d->free(d, out.data), d->free(d, new.data), d->free(d, at), d->free(d, there);
    free(seqs), free(last);
}

/* ---- the rest: rows by themselves ---- */

/* "name nxC" after the model's name. */
static const char *named(const model_shape *s, const char *name, int64_t n, int64_t C) {
    static char label[96];
    snprintf(label, sizeof label, "%s%s %dx%d", s->name, name, (int)n, (int)C);
    return label;
}

static void bench_norms(gr_device *d, const model_shape *s) {
    const int64_t n = s->n, C = s->C;
    gr_rows x = rows_as(d, n, C, GR_DTYPE_F32), sum = rows_as(d, n, C, GR_DTYPE_F32), y = rows(d, n, C), add = rows(d, n, C);
    const gr_rows none = {0};
    float *w = values(d, C), *rstd = values(d, n);
    const gr_norm norm = {.w = w, .eps = 1e-5f, .parts = 1, .width = C};
    double nC = (double)n * (double)C, act = (double)size_of(y);
    TIME(named(s, "rmsnorm fwd", n, C), 4 * nC, (on_card ? 8 + 2 * act : 8) * nC,
         d->ops->rmsnorm_forward(d, y, rstd, sum, x, on_card ? add : none, &norm, n));
    TIME(named(s, "rmsnorm bwd", n, C), 8 * nC, (on_card ? 12 + 2 * act : 12 + act) * nC,
         d->ops->rmsnorm_backward(d, x, on_card ? add : none, true, y, sum, rstd, &norm, n));
    d->free(d, x.data), d->free(d, sum.data), d->free(d, y.data), d->free(d, add.data), d->free(d, w), d->free(d, rstd);
}

static void bench_flat(gr_device *d, const model_shape *s) {
    const int64_t n = s->n, C = s->C, F = s->F;
    gr_rows out = rows(d, n, F), gu = rows(d, n, 2 * F), dgu = rows(d, n, 2 * F), x = rows(d, n, C), y = rows(d, n, C),
            q = rows(d, n, s->H * s->D);
    float *table = values(d, 64 * s->D);
    int32_t *pos = ids_below(d, n, 64);
    void *key = values(d, 2 * n);
    const gr_dropout drop = {.p = 0.1f, .seed = 1, .row_key = key, .site = 3};
    double act = (double)size_of(x), nF = (double)n * (double)F, nC = (double)n * (double)C, nQ = (double)(n * s->H * s->D);
    char heads[32];
    snprintf(heads, sizeof heads, "rope %dx%d of", (int)s->H, (int)s->D);
    TIME(named(s, heads, n, s->H * s->D), 3 * nQ, 2 * act * nQ, d->ops->rope(d, q, pos, table, n, s->H, s->D, false));
    for (int act_ = GR_ACTIVATION_SILU; act_ <= GR_ACTIVATION_GELU_TANH; act_++) {
        static const char *const names[][2] = {{"glu fwd", "glu bwd"}, {"geglu fwd", "geglu bwd"}};
        TIME(named(s, names[act_][0], n, F), 20 * nF, 3 * act * nF, d->ops->glu_forward(d, out, gu, n, F, (gr_activation)act_));
        TIME(named(s, names[act_][1], n, F), 25 * nF, 5 * act * nF,
             d->ops->glu_backward(d, dgu, out, gu, n, F, (gr_activation)act_));
    }
    TIME(named(s, "dropout", n, C), nC, 2 * act * nC, d->ops->dropout(d, y, x, n, C, &drop, false));
    TIME(named(s, "add", n, C), nC, 3 * act * nC, d->ops->add(d, y, x, n, C));
    const gr_rows all[] = {out, gu, dgu, x, y, q};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) d->free(d, all[i].data);
    d->free(d, table), d->free(d, pos), d->free(d, key);
}

enum { COLUMNS = 64 }; /* of trained tokens */

/* The embedding, the head's rows, the loss. */
static void bench_ends(gr_device *d, const model_shape *s) {
    const int64_t n = s->n, C = s->C, V = s->V, R = on_card ? (n < 1024 ? n : 1024) : 64;
    gr_rows logits = rows_as(d, R, V, GR_DTYPE_F32), x = rows_as(d, n, C, GR_DTYPE_F32), y = rows(d, n, C),
            columns = rows_as(d, R, COLUMNS, GR_DTYPE_F32);
    gr_step_stats *stats = sent(d, &(gr_step_stats){.clip = 1, .optimizer_step = 1}, (int64_t)sizeof *stats);
    int32_t *ids = ids_below(d, n, V), *index = ids_below(d, n, n);
    gr_listing *list = (gr_listing *)values(d, R * (int64_t)sizeof *list / 4);
    float *nll = values(d, n), *weight = values(d, n), *dtable = values(d, V * C);
    const gr_weight table = make_weight(d, on_card ? GR_DTYPE_BF16 : GR_DTYPE_F32, V, C);
    const gr_loss_terms plain = {0}, capped = {.softcap = 30};
    double RV = (double)R * (double)V, nC = (double)n * (double)C, act = (double)size_of(y);
    TIME(named(s, "embed fwd", n, C), nC, 6 * nC, d->ops->embed_forward(d, x, &table, ids, n, 1));
    TIME(named(s, "embed bwd", n, C), nC, 12 * nC, d->ops->embed_backward(d, dtable, x, ids, n, C, 1));
    TIME(named(s, "gather_rows", n, C), 0, (4 + act) * nC, d->ops->gather_rows(d, y, x, index, n, C));
    TIME(named(s, "cross_entropy", R, V), 20 * RV, 8 * RV, d->ops->cross_entropy(d, nll, logits, ids, weight, R, V, &plain));
    TIME(named(s, "cross_entropy, capped,", R, V), 40 * RV, 8 * RV,
         d->ops->cross_entropy(d, nll, logits, ids, weight, R, V, &capped));
    TIME(named(s, "softcap", R, V), 10 * RV, 8 * RV, d->ops->softcap(d, logits, R, V, 30));
    TIME(named(s, "best_column", R, V), RV, 4 * RV, d->ops->best_column(d, index, logits, R, V));
    TIME(named(s, "list_columns", R, V), 8 * RV, 8 * RV, d->ops->list_columns(d, list, logits, R, V, 1));
    TIME(named(s, "scatter_rows", n, C), 0, (4 + act) * nC, d->ops->scatter_rows(d, x, y, index, n, C));

    TIME(named(s, "scatter_columns", R, COLUMNS), 0, 8.0 * (double)(R * COLUMNS),
         d->ops->scatter_columns(d, logits, columns, ids, R, COLUMNS));
    TIME(named(s, "take_columns", R, COLUMNS), 0, 12.0 * (double)(R * COLUMNS),
         d->ops->take_columns(d, columns, logits, ids, R, COLUMNS));
    TIME(named(s, "step_begin", 1, 1), 0, 0, d->ops->step_begin(d, stats));
    TIME(named(s, "step_prepare", 1, 1), 0, 0, d->ops->step_prepare(d, stats, 1, false));
    TIME(named(s, "loss_sum", n, 1), 2.0 * (double)n, 12.0 * (double)n, d->ops->loss_sum(d, stats, nll, weight, index, n, 0));
    d->free(d, logits.data), d->free(d, x.data), d->free(d, y.data), d->free(d, columns.data), d->free(d, stats), d->free(d, ids),
        d->free(d, index);
    d->free(d, nll), d->free(d, weight), d->free(d, dtable), d->free(d, (void *)(uintptr_t)table.data);
}

/* Updates of a matrix. */
static void bench_updates(gr_device *d, const model_shape *s, int64_t n, int64_t C) {
    const gr_adamw p = {1e-3f, 0.9f, 0.99f, 1e-8f, 0.01f};
    const int64_t all = n * C;
    float *w = values(d, all), *m = values(d, all), *v = values(d, all), *g = values(d, all), *row = values(d, n),
          *col = values(d, C);
    gr_step_stats *stats = sent(d, &(gr_step_stats){.clip = 1, .optimizer_step = 1}, (int64_t)sizeof *stats);
    d->zero(d, v, all * 4);
    const gr_trained f32 = {.f32 = w}, bf16 = {.bf16 = (uint16_t *)w};
    const gr_moments8 codes = {(uint8_t *)m, (uint8_t *)m + all, v, v + all / GR_MOMENTS_BLOCK + 1};
    const gr_factors factors = {.row = row, .col = col};
    double N = (double)all;
    TIME(named(s, "sum_squares", n, C), 2 * N, 4 * N, d->ops->sum_squares(d, stats, g, all));
    TIME(named(s, "adamw", n, C), 12 * N, 28 * N, d->ops->adamw(d, &f32, m, v, g, all, &p, stats));
    d->zero(d, v, all * 4);
    TIME(named(s, "adamw_8bit", n, C), 12 * N, 16 * N, d->ops->adamw_8bit(d, &f32, &codes, g, all, &p, stats));
    TIME(named(s, "adamw_8bit at random", n, C), 12 * N, 12 * N, d->ops->adamw_8bit(d, &bf16, &codes, g, all, &p, stats));
    TIME(named(s, "adafactor", n, C), 12 * N, 12 * N, d->ops->adafactor(d, &f32, &factors, g, n, C, &p, stats));
    d->free(d, w), d->free(d, m), d->free(d, v), d->free(d, g), d->free(d, row), d->free(d, col), d->free(d, stats);
}

/* ---- a CPU ---- */

static void bench_cpu(gr_device *d) {
    static const model_shape smol = {"", 576, 9, 3, 64, 1536, 49152, 1024, 512};
    /* SmolLM2's, its head, LLaMA-7B's */
    static const int64_t shapes[][2] = {{576, 576},   {192, 576},   {1536, 576},  {576, 1536},
                                        {49152, 576}, {4096, 4096}, {4096, 11008}};
    static const gr_dtype dtypes[] = {GR_DTYPE_F32, GR_DTYPE_Q4_1}, computes[] = {GR_DTYPE_F32, GR_DTYPE_BF16};
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < 7; s++)
            for (int c = 0; c < (d->fast_bf16 ? 2 : 1); c++) {
                bench_linear(d, s == 4 ? 256 : 1024, shapes[s][0], shapes[s][1], dtypes[t], s == 4 ? 0 : 8, computes[c]);
                bench_linear(d, s == 4 ? 256 : 1024, shapes[s][0], shapes[s][1], dtypes[t], 0, computes[c]);
                bench_linear(d, 1, shapes[s][0], shapes[s][1], dtypes[t], 0, computes[c]);
            }
    static const gr_dtype packed[] = {GR_DTYPE_Q4_1, GR_DTYPE_Q8_0};
    for (int t = 0; t < 2; t++)
        for (int s = 0; s < 5; s++)
            for (int n = 1; n <= 1024; n *= s == 4 ? 256 : 32) bench_int8(d, n, shapes[s][0], shapes[s][1], packed[t]);
    for (int t = 0; t < 2; t++) bench_int8(d, 1, 262144, 1024, packed[t]); /* beyond all caches */
    for (int i = 0; i < (d->fast_bf16 ? 2 : 1); i++) {
        bench_attention(d, &smol, 4, 256, computes[i]);
        bench_attention(d, &smol, 1, 1024, computes[i]);
        bench_attention(d, &smol, 1, 4096, computes[i]);
    }
    bench_norms(d, &smol), bench_flat(d, &smol), bench_ends(d, &smol), bench_updates(d, &smol, 1024, 576);
}

/* ---- a card ---- */

/* A group of a model's layer: forward, backward; with adapters of the rank, without. */
static void bench_group_of(gr_device *d, const model_shape *s, const char *name, const int64_t *N, int members, int64_t K,
                           int64_t rank) {
    bench_group b;
    char label[3][96];
    static const char *const what[] = {"fwd", "bwd", "dw"};
    for (int i = 0; i < 3; i++)
        snprintf(label[i], sizeof *label, "%s%s %s r=%d n=%d", s->name, name, what[i], (int)rank, (int)s->n);
    if (!any_wanted(label)) return;
    make_group(d, &b, N, members, K, GR_DTYPE_BF16, rank, type_of_rows);
    time_group(d, &b, s->n, label, true);
    free_group(d, &b);
}

/* Decoding: as many rows as sequences. */
static void bench_few(gr_device *d, const model_shape *s, const char *name, const int64_t *N, int members, int64_t K, gr_dtype type,
                      int64_t n) {
    bench_group b;
    char label[3][96];
    for (int i = 0; i < 3; i++)
        snprintf(label[i], sizeof *label, "%s%s of %d rows, %s", s->name, name, (int)n, gr_dtype_get(type)->name);
    if (!any_wanted(label)) return;
    make_group(d, &b, N, members, K, type, 0, type_of_rows);
    time_group(d, &b, n, label, true);
    free_group(d, &b);
}

/* A trained weight's gradient, kept in float32. */
static void bench_trained(gr_device *d, const model_shape *s, const char *name, int64_t N, int64_t K) {
    bench_group b;
    char label[3][96] = {"-", "-"};
    snprintf(label[2], sizeof *label, "%s%s dw n=%d", s->name, name, (int)s->n);
    if (!any_wanted(label)) return;
    const char *all = wanted;
    wanted = label[2]; /* of a weight in bfloat16 only this is of interest */
    make_group(d, &b, &N, 1, K, GR_DTYPE_F32, 0, type_of_rows);
    time_group(d, &b, s->n, label, true);
    free_group(d, &b);
    wanted = all;
}

static void bench_model(gr_device *d, const model_shape *s) {
    const int64_t q = s->H * s->D, k = s->K * s->D, F = s->F, C = s->C, V = s->V;
    const int64_t qkv[] = {q, k, k}, gate_up[] = {F, F};
    for (int64_t rank = 0; rank <= 8; rank += 8) {
        bench_group_of(d, s, "qkv", qkv, 3, C, rank), bench_group_of(d, s, "o", &C, 1, q, rank);
        bench_group_of(d, s, "gate_up", gate_up, 2, C, rank), bench_group_of(d, s, "down", &C, 1, F, rank);
    }
    const model_shape head = {s->name, C, s->H, s->K, s->D, F, V, s->n < 1024 ? s->n : 1024, s->length};
    bench_group_of(d, &head, "head", &V, 1, C, 0);
    bench_trained(d, s, "gate", F, C);
    bench_attention(d, s, s->n / s->length, s->length, type_of_rows);
    if (s->n >= 4096) bench_attention(d, s, 4, 1024, type_of_rows), bench_attention(d, s, 1, 4096, type_of_rows);
    bench_norms(d, s), bench_flat(d, s), bench_ends(d, s), bench_updates(d, s, F, C);
}

static void bench_decoding(gr_device *d, const model_shape *s) {
    const int64_t q = s->H * s->D, k = s->K * s->D, F = s->F, C = s->C, V = s->V, qkv[] = {q, k, k}, gate_up[] = {F, F};
    static const gr_dtype types[] = {GR_DTYPE_BF16, GR_DTYPE_NF4, GR_DTYPE_Q4_K};
    for (int t = 0; t < 3; t++)
        for (int64_t n = 1; n <= 8; n += 7) {
            if (types[t] == GR_DTYPE_Q4_K && (C % 256 || F % 256)) continue; /* whole blocks */
            bench_few(d, s, "qkv", qkv, 3, C, types[t], n), bench_few(d, s, "o", &C, 1, q, types[t], n);
            bench_few(d, s, "gate_up", gate_up, 2, C, types[t], n), bench_few(d, s, "down", &C, 1, F, types[t], n);
            bench_few(d, s, "head", &V, 1, C, types[t], n);
        }
    for (int64_t n = 1; n <= 8; n += 7) bench_cached(d, s, n, s->n < 1024 ? s->length : 1024);
}

/* What a copy within the memory moves (bytes read and written), what a square product in bfloat16 reaches. */
static void card_limits(gr_device *d, int64_t bytes, int64_t size) {
    double seconds;
    float *from = values(d, bytes / 4), *to = values(d, bytes / 4);
    MEASURE(seconds, d->copy(d, to, from, bytes));
    copy_rate = 2 * (double)bytes / seconds;
    d->free(d, from), d->free(d, to);
    bench_group b;
    make_group(d, &b, &size, 1, size, GR_DTYPE_BF16, 0, GR_DTYPE_BF16);
    gr_rows x = rows(d, size, size), y = rows(d, size, size);
    const gr_product p = {.group = &b.group, .x = x, .y = y};
    b.group.backward = true;
    if (!d->place(d, &b.group)) abort();
    MEASURE(seconds, d->ops->linear_forward(d, &p, size));
    product_rate = 2.0 * (double)size * (double)size * (double)size / seconds;
    d->release(d, &b.group);
    d->free(d, x.data), d->free(d, y.data);
    free_group(d, &b);
}

static void bench_card(gr_device *d) {
    static const model_shape large[] = {{"7B ", 4096, 32, 32, 128, 11008, 32000, 4096, 256},
                                        {"SmolLM2 ", 576, 9, 3, 64, 1536, 49152, 1024, 512},
                                        {"SmolLM2 ", 576, 9, 3, 64, 1536, 49152, 16384, 512}},
                             small[] = {{"small ", 128, 4, 2, 32, 192, 320, 64, 32}};
    bool quick = strcmp(wanted, "small") == 0;
    const model_shape *models = quick ? small : large;
    int n_models = quick ? 1 : 3;
    type_of_rows = GR_DTYPE_BF16;
    patience = quick ? 1e-4 : 0.1;
    card_limits(d, quick ? 1 << 20 : INT64_C(2) << 30, quick ? 64 : 8192);
    printf("%s: copies %.0f GB/s (read and written), products in bfloat16 %.1f TFLOP/s\n", d->about, copy_rate / 1e9,
           product_rate / 1e12);
    if (strcmp(wanted, "limits") == 0) return;
    bench_decoding(d, &models[0]);
    for (int i = 0; i < n_models; i++) bench_model(d, &models[i]);
}

int main(int argc, char **argv) {
    const char *why = "cannot start the threads";
    gr_threads *pool = gr_threads_new(argc > 1 ? atoi(argv[1]) : 0);
    gr_device *d = pool ? gr_device_open(getenv("GRAFT_DEVICE") ? "auto" : "cpu", pool, &why) : NULL;
    if (!d) {
        fprintf(stderr, "%s\n", why);
        return 1;
    }
    if (argc > 2) wanted = argv[2];
    on_card = !d->in_host;
    if (on_card) {
        bench_card(d);
    } else {
        fma_peak = peak(pool, d);
        printf("%s, %d threads, FMA peak %.1f GFLOP/s, memory %.1f GB/s\n", d->level, gr_threads_count(pool), fma_peak,
               bandwidth(pool, d));
        if (strcmp(wanted, "limits") != 0) bench_cpu(d);
    }
    finished(d);
    gr_device_close(d);
    gr_threads_free(pool);
    return 0;
}
