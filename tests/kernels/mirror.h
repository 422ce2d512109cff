/* mirror.h - a device for tests whose operations take the host's memory: each call of one has the buffers that it is given on
 * another device, in the same place among their guards or laid out as that device wants rows, as float32 or as its type of
 * activations; what it changed comes back. So the cases of a test run on a device that the host cannot reach. */
#ifndef GR_TEST_MIRROR_H
#define GR_TEST_MIRROR_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/kernels.h"

/* Host memory that an operation may be given: rows of cols floats, ld apart, with `before` floats in front and behind. */
typedef struct mirror_buffer {
    float *data; /* of the first row */
    int64_t rows, cols, ld, before;
} mirror_buffer;

/* The buffer that holds p; false: none does. */
typedef bool mirror_find(void *context, const void *p, mirror_buffer *b);

typedef struct twin {
    float *host; /* the whole of it, guards too */
    char *was;   /* [bytes] what was sent */
    char *there;
    int64_t bytes;
    mirror_buffer b;
    gr_dtype type;
    int64_t ld; /* of rows that were laid out; 0: in the same places */
} twin;

enum { TWINS = 64, COPIES = 8 };

typedef struct mirror {
    gr_device device; /* first */
    gr_device *real;
    mirror_find *find;
    void *context;
    gr_dtype activations; /* that some rows have instead of float32 */
    int variant;          /* which rows those are, and which are laid out: */
    bool as_decoder;      /* all are both */
    bool close;           /* those of a cache stand close */
    bool in_place;        /* all are as they are on the host, float32 */
    twin twins[TWINS];
    int n_twins;
    gr_step_stats *stats, *stats_there;
    struct {
        void *there;
    } sent[COPIES]; /* arrays that are no buffer's */
    int n_sent;
    gr_group group; /* of a product, with the device's pointers */
    gr_linear linear[GR_GROUP_MAX];
    gr_lora lora[GR_GROUP_MAX][4];
    const void *mapped[GR_GROUP_MAX + 1];
    int n_mapped;
    gr_norm norm;
    gr_dropout dropout;
    gr_weight table;
    gr_product product;
    gr_attention attention;
    gr_kv kv;
    gr_trained trained;
    gr_moments8 moments;
    gr_factors factors;
    gr_loss_terms terms;
} mirror;

static inline uint32_t mirror_hash(uint32_t x) {
    x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu;
    return x ^ x >> 16;
}

/* Element i of the host's buffer as the twin has it. */
static inline void mirror_put(const twin *t, char *to, int64_t i, float x) {
    if (t->type == GR_DTYPE_F32) memcpy(to + 4 * i, &x, 4);
    else gr_dtype_get(t->type)->from_f32(to + 2 * i, &x, 1);
}

static inline float mirror_get(const twin *t, const char *from, int64_t i) {
    float x;
    gr_dtype_get(t->type)->to_f32(&x, from + (t->type == GR_DTYPE_F32 ? 4 : 2) * i, 1);
    return x;
}

/* The twin of the buffer that holds p; rows: as activations. */
static inline twin *mirror_twin(mirror *m, const void *p, bool rows) {
    mirror_buffer b;
    for (twin *t = m->twins; t < m->twins + m->n_twins; t++)
        if ((const char *)p >= (char *)t->host && (const char *)p <= (char *)(t->host + 2 * t->b.before + t->b.rows * t->b.ld))
            return t;
    if (!m->find(m->context, p, &b)) return NULL;
    assert_true(m->n_twins < TWINS);
    twin *t = &m->twins[m->n_twins++];
    uint32_t draw = m->in_place ? 0 : m->as_decoder ? 3 : mirror_hash((uint32_t)(m->variant * TWINS + m->n_twins));
    *t = (twin){.host = b.data - b.before, .b = b, .type = rows && draw & 1 ? m->activations : GR_DTYPE_F32};
    if (m->close) t->ld = b.cols;
    else if (rows && draw & 2) t->ld = m->real->row_stride(m->real, b.cols, t->type);
    int64_t n = t->ld ? b.rows * t->ld : 2 * b.before + b.rows * b.ld;
    t->bytes = n * (t->type == GR_DTYPE_F32 ? 4 : 2);
    t->was = calloc(1, (size_t)t->bytes + 1);
    t->there = m->real->alloc(m->real, t->bytes);
    assert_true(t->was && t->there);
    if (t->ld)
        for (int64_t r = 0; r < b.rows; r++)
            for (int64_t j = 0; j < b.cols; j++) mirror_put(t, t->was, r * t->ld + j, b.data[r * b.ld + j]);
    else if (t->type == GR_DTYPE_F32) memcpy(t->was, t->host, (size_t)t->bytes);
    else
        for (int64_t i = 0; i < n; i++) mirror_put(t, t->was, i, t->host[i]);
    m->real->upload(m->real, t->there, t->was, t->bytes);
    return t;
}

/* Where p's element is there; arrays within a buffer may be of any type of its bytes. */
static inline void *mirror_at(mirror *m, const void *p) {
    twin *t = p ? mirror_twin(m, p, false) : NULL;
    if (p && (!t || t->type != GR_DTYPE_F32 || t->ld)) fail_msg("mirror: memory that is no buffer's, or was rows before");
    return t ? t->there + ((const char *)p - (char *)t->host) : NULL;
}

static inline gr_rows mirror_rows(mirror *m, gr_rows x) {
    if (!x.data) return x;
    twin *t = mirror_twin(m, x.data, true);
    if (!t) return x; /* the device's own, a cache */
    int64_t at = (float *)x.data - t->host, size = t->type == GR_DTYPE_F32 ? 4 : 2;
    if (t->ld) {
        at -= t->b.before;
        int64_t r = t->b.ld ? at / t->b.ld : 0;
        at = r * t->ld + (at - r * t->b.ld);
        if (r >= t->b.rows) at = 0; /* an empty rest */
    }
    return (gr_rows){t->there + at * size, t->ld ? t->ld : x.ld, t->type};
}

static inline void *mirror_send(mirror *m, const void *p, int64_t bytes) {
    assert_true(m->n_sent < COPIES);
    void *there = m->real->alloc(m->real, bytes);
    m->real->upload(m->real, there, p, bytes);
    return m->sent[m->n_sent++].there = there;
}

static inline const void *mirror_weight_data(mirror *m, const gr_weight *w) {
    const void *there = m->real->map(m->real, w->data, gr_dtype_bytes(w->dtype, w->rows * w->cols));
    assert_true(m->n_mapped <= GR_GROUP_MAX);
    return m->mapped[m->n_mapped++] = there;
}

static inline const gr_weight *mirror_table(mirror *m, const gr_weight *w) {
    m->table = *w;
    m->table.data = mirror_weight_data(m, w);
    return &m->table;
}

static inline const gr_norm *mirror_norm(mirror *m, const gr_norm *p) {
    m->norm = *p;
    m->norm.w = mirror_at(m, p->w), m->norm.dw = mirror_at(m, p->dw);
    return &m->norm;
}

static inline const gr_dropout *mirror_dropout(mirror *m, const gr_dropout *p) {
    if (!p) return NULL;
    m->dropout = *p;
    m->dropout.row_key = mirror_at(m, p->row_key);
    return &m->dropout;
}

/* What is trained of the group as it is on the host, or blank. */
static inline void mirror_trained_values(mirror *m, const gr_group *host, bool blank) {
    for (int i = 0; i < host->n; i++) {
        const gr_linear *l = host->member[i];
        int64_t bytes = gr_dtype_bytes(l->w.dtype, l->w.rows * l->w.cols);
        void *w = (void *)(uintptr_t)m->linear[i].w.data;
        if (l->dw && blank) m->real->zero(m->real, w, bytes);
        else if (l->dw) m->real->upload(m->real, w, l->w.data, bytes);
        for (int j = 0; j < l->n_lora; j++) {
            void *A = (void *)(uintptr_t)m->lora[i][j].A, *B = (void *)(uintptr_t)m->lora[i][j].B;
            int64_t of_A = l->lora[j].rank * l->w.cols * 4, of_B = l->lora[j].rank * l->w.rows * 4;
            if (!l->lora[j].dA) continue;
            if (blank) m->real->zero(m->real, A, of_A), m->real->zero(m->real, B, of_B);
            else m->real->upload(m->real, A, l->lora[j].A, of_A), m->real->upload(m->real, B, l->lora[j].B, of_B);
        }
    }
}

/* With the device's form of the group; of other values at first where that is wanted, which are renewed. */
static inline void mirror_place(mirror *m, const gr_group *host, bool renewed) {
    if (renewed) mirror_trained_values(m, host, true);
    assert_true(m->real->place(m->real, &m->group));
    if (!renewed) return;
    mirror_trained_values(m, host, false);
    m->real->renew(m->real, &m->group);
}

static inline const gr_product *mirror_product(mirror *m, const gr_product *p) {
    gr_product *q = &m->product;
    *q = *p;
    m->group = *p->group, q->group = &m->group;
    for (int i = 0; i < m->group.n; i++) {
        gr_linear *l = &m->linear[i];
        *l = *p->group->member[i];
        m->group.member[i] = l;
        l->w.data = mirror_weight_data(m, &l->w);
        l->bias = mirror_at(m, l->bias), l->dw = mirror_at(m, l->dw), l->dbias = mirror_at(m, l->dbias);
        for (int j = 0; j < l->n_lora; j++) {
            gr_lora *lora = &m->lora[i][j];
            *lora = l->lora[j];
            lora->A = mirror_at(m, lora->A), lora->B = mirror_at(m, lora->B);
            lora->dA = mirror_at(m, lora->dA), lora->dB = mirror_at(m, lora->dB);
        }
        l->lora = m->lora[i];
    }
    q->x = mirror_rows(m, p->x), q->y = mirror_rows(m, p->y), q->xd = mirror_rows(m, p->xd), q->dxd = mirror_rows(m, p->dxd);
    q->h = mirror_at(m, p->h), q->dh = mirror_at(m, p->dh);
    q->dropout = mirror_dropout(m, p->dropout);
    m->group.backward = true;
    if (m->variant & 1) mirror_place(m, p->group, m->variant & 8); /* odd variants */
    return q;
}

static inline const gr_kv *mirror_kv(mirror *m, const gr_kv *kv) {
    if (!kv) return NULL;
    m->kv = *kv;
    m->close = true;
    m->kv.rows = mirror_rows(m, kv->rows);
    m->close = false;
    return &m->kv;
}

static inline const gr_attention *mirror_attention(mirror *m, const gr_attention *a) {
    gr_attention *b = &m->attention;
    *b = *a;
    b->q = mirror_rows(m, a->q), b->k = mirror_rows(m, a->k), b->v = mirror_rows(m, a->v), b->out = mirror_rows(m, a->out);
    b->dq = mirror_rows(m, a->dq), b->dk = mirror_rows(m, a->dk), b->dv = mirror_rows(m, a->dv), b->dout = mirror_rows(m, a->dout);
    b->lse = mirror_at(m, a->lse), b->delta = mirror_at(m, a->delta);
    b->pos = mirror_at(m, a->pos), b->turns = mirror_at(m, a->turns);
    b->seqs = mirror_send(m, a->seqs, a->n_seqs * (int64_t)sizeof *a->seqs);
    b->kv = mirror_kv(m, a->kv);
    return b;
}

static inline const gr_trained *mirror_trained(mirror *m, const gr_trained *w) {
    m->trained = *w;
    m->trained.f32 = mirror_at(m, w->f32), m->trained.bf16 = mirror_at(m, w->bf16), m->trained.low = mirror_at(m, w->low);
    return &m->trained;
}

static inline const gr_moments8 *mirror_moments8(mirror *m, const gr_moments8 *p) {
    m->moments = (gr_moments8){mirror_at(m, p->m), mirror_at(m, p->v), mirror_at(m, p->m_scale), mirror_at(m, p->v_scale)};
    return &m->moments;
}

static inline const gr_factors *mirror_factors(mirror *m, const gr_factors *p) {
    m->factors = (gr_factors){mirror_at(m, p->row), mirror_at(m, p->col), mirror_at(m, p->all)};
    return &m->factors;
}

static inline gr_step_stats *mirror_stats(mirror *m, const gr_step_stats *s) {
    m->stats = (gr_step_stats *)(uintptr_t)s;
    return m->stats_there = mirror_send(m, s, sizeof *s);
}

/* What the operation changed. An element that it left alone stays as it was to the last bit. */
static inline void mirror_back(mirror *m) {
    if (m->group.form) m->real->release(m->real, &m->group);
    m->group = (gr_group){0};
    for (twin *t = m->twins; t < m->twins + m->n_twins; t++) {
        char *now = malloc((size_t)t->bytes + 1);
        int64_t size = t->type == GR_DTYPE_F32 ? 4 : 2;
        assert_non_null(now);
        m->real->download(m->real, now, t->there, t->bytes, 0);
        for (int64_t r = 0; t->ld && r < t->b.rows; r++)
            for (int64_t j = 0; j < t->b.cols; j++)
                if (memcmp(now + (r * t->ld + j) * size, t->was + (r * t->ld + j) * size, (size_t)size) != 0)
                    t->b.data[r * t->b.ld + j] = mirror_get(t, now, r * t->ld + j);
        for (int64_t i = 0; !t->ld && i < t->bytes / size; i++)
            if (memcmp(now + i * size, t->was + i * size, (size_t)size) != 0) {
                if (size == 4) memcpy(t->host + i, now + 4 * i, 4);
                else t->host[i] = mirror_get(t, now, i);
            }
        free(now);
        free(t->was);
        m->real->free(m->real, t->there);
    }
    if (m->stats) m->real->download(m->real, m->stats, m->stats_there, sizeof *m->stats, 0);
    const char *wrong = m->real->sync(m->real);
    for (int i = 0; i < m->n_sent; i++) m->real->free(m->real, m->sent[i].there);
    for (int i = 0; i < m->n_mapped; i++) m->real->unmap(m->real, m->mapped[i]);
    m->n_twins = m->n_sent = m->n_mapped = 0, m->stats = NULL;
    if (wrong) fail_msg("%s: %s", m->real->level, wrong);
}

#define MIRROR_SCALAR(name, type)                                                                                                  \
    static inline type mirror_##name(mirror *m, type x) {                                                                          \
        (void)m;                                                                                                                   \
        return x;                                                                                                                  \
    }
MIRROR_SCALAR(i64, int64_t)
MIRROR_SCALAR(f32, float)
MIRROR_SCALAR(f64, double)
MIRROR_SCALAR(bool, bool)
MIRROR_SCALAR(activation, gr_activation)
MIRROR_SCALAR(adamw, const gr_adamw *)
static inline const gr_loss_terms *mirror_terms(mirror *m, const gr_loss_terms *p) {
    m->terms = *p;
    m->terms.scale = mirror_at(m, p->scale);
    return &m->terms;
}

static inline gr_device *mirror_device(mirror *m, const gr_device *d) {
    (void)d;
    return m->real;
}

#define MIRROR(x)                                                                                                                  \
    _Generic((x),                                                                                                                  \
        gr_device *: mirror_device,                                                                                                \
        gr_rows: mirror_rows,                                                                                                      \
        float *: mirror_at,                                                                                                        \
        const float *: mirror_at,                                                                                                  \
        int32_t *: mirror_at,                                                                                                      \
        const int32_t *: mirror_at,                                                                                                \
        gr_listing *: mirror_at,                                                                                                   \
        gr_step_stats *: mirror_stats,                                                                                             \
        const gr_step_stats *: mirror_stats,                                                                                       \
        const gr_weight *: mirror_table,                                                                                           \
        const gr_product *: mirror_product,                                                                                        \
        const gr_attention *: mirror_attention,                                                                                    \
        const gr_kv *: mirror_kv,                                                                                                  \
        const gr_norm *: mirror_norm,                                                                                              \
        const gr_trained *: mirror_trained,                                                                                        \
        const gr_moments8 *: mirror_moments8,                                                                                      \
        const gr_factors *: mirror_factors,                                                                                        \
        const gr_dropout *: mirror_dropout,                                                                                        \
        const gr_loss_terms *: mirror_terms,                                                                                       \
        const gr_adamw *: mirror_adamw,                                                                                            \
        int64_t: mirror_i64,                                                                                                       \
        float: mirror_f32,                                                                                                         \
        double: mirror_f64,                                                                                                        \
        bool: mirror_bool,                                                                                                         \
        gr_activation: mirror_activation)(mirror_, x)
#define MIRROR_1(x)                                                MIRROR(x)
#define MIRROR_2(x, ...)                                           MIRROR(x), MIRROR_1(__VA_ARGS__)
#define MIRROR_3(x, ...)                                           MIRROR(x), MIRROR_2(__VA_ARGS__)
#define MIRROR_4(x, ...)                                           MIRROR(x), MIRROR_3(__VA_ARGS__)
#define MIRROR_5(x, ...)                                           MIRROR(x), MIRROR_4(__VA_ARGS__)
#define MIRROR_6(x, ...)                                           MIRROR(x), MIRROR_5(__VA_ARGS__)
#define MIRROR_7(x, ...)                                           MIRROR(x), MIRROR_6(__VA_ARGS__)
#define MIRROR_8(x, ...)                                           MIRROR(x), MIRROR_7(__VA_ARGS__)
#define MIRROR_9(x, ...)                                           MIRROR(x), MIRROR_8(__VA_ARGS__)
#define MIRROR_OF(_1, _2, _3, _4, _5, _6, _7, _8, _9, mapped, ...) mapped
#define MIRRORED(...)                                                                                                              \
    MIRROR_OF(__VA_ARGS__, MIRROR_9, MIRROR_8, MIRROR_7, MIRROR_6, MIRROR_5, MIRROR_4, MIRROR_3, MIRROR_2, MIRROR_1, none)         \
    (__VA_ARGS__)

#define GR_OP(name, params, args)                                                                                                  \
    static void mirror_op_##name params {                                                                                          \
        mirror *mirror_ = (mirror *)d;                                                                                             \
        mirror_->real->ops->name(MIRRORED args);                                                                                   \
        mirror_back(mirror_);                                                                                                      \
    }
#include "kernels/ops.def"
#undef GR_OP

#define GR_OP(name, params, args) .name = mirror_op_##name,
static const gr_ops mirror_ops = {
#include "kernels/ops.def"
};
#undef GR_OP

static inline void mirror_close(gr_device *d) {
    gr_device_close(((mirror *)d)->real);
    free(d);
}

/* Of a device, which it closes with itself. */
static inline mirror *mirror_new(gr_device *real, mirror_find *find, void *context) {
    mirror *m = calloc(1, sizeof *m);
    assert_non_null(m);
    m->real = real, m->find = find, m->context = context;
    m->device.ops = &mirror_ops, m->device.level = real->level, m->device.close = mirror_close;
    m->activations = GR_DTYPE_F32;
    return m;
}

#endif
