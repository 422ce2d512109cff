/* ops_call.c - calls of an operation for tests: guarded buffers of made-up values, devices of every level, and what is compared. */
#include <math.h>
#include <stdio.h>

#include "kernels/philox.h"
#include "ops.h"

call *running;
bool on_card, few_digits;
gr_dtype card_type;
static const float guard = 12345.0f;

/* n rows of ld floats, the first off alignment, guarded on both sides and after their first cols. */
static float *guarded_rows(call *c, int64_t n, int64_t cols, int64_t ld) {
    int64_t all = n * ld + 2 * GUARD + 1;
    float *p = aligned_alloc(64, (size_t)((all + 15) / 16 * 16) * 4);
    assert_non_null(p);
    assert_true(c->n_buffers < BUFFERS);
    for (int64_t i = 0; i < all; i++) p[i] = guard;
    c->buffers[c->n_buffers++] = (guarded){p, n * ld, cols, ld};
    return p + GUARD + c->off;
}

float *buffer(call *c, int64_t n) { return guarded_rows(c, n, 1, 1); }

/* Rows row0..row0+n of a virtual matrix of values in [-1,1), ld apart. */
gr_rows filled_rows(call *c, int tag, int64_t row0, int64_t n, int64_t cols, int64_t ld) {
    float *x = guarded_rows(c, n, cols, ld);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < cols; j += 4) {
            uint32_t word[4];
            gr_philox(word, 7, (uint32_t)tag, (uint64_t)(row0 + i), (uint64_t)j);
            for (int64_t k = 0; k < 4 && j + k < cols; k++) {
                float value = (float)(word[k] >> 8) * 0x1p-23f - 1;
                x[i * ld + j + k] = few_digits ? gr_bf16_to_f32(gr_f32_to_bf16(value)) : value;
            }
        }
    return (gr_rows){x, ld, GR_DTYPE_F32};
}

/* Two variants of three have rows apart, each matrix by another distance. */
int64_t apart(const call *c, int tag, int64_t cols) {
    return cols + ((c->variant + c->variant / GR_DTYPE_COUNT) % 3 ? 1 + tag % 7 : 0);
}

gr_rows rows(call *c, int tag, int64_t cols) { return filled_rows(c, tag, c->row0, c->n, cols, apart(c, tag, cols)); }
float *numbers(call *c, int tag, int64_t each) { return gr_f32(filled_rows(c, tag, c->row0, c->n, each, each)); }
float *fixed(call *c, int tag, int64_t n, int64_t cols) { return gr_f32(filled_rows(c, tag, 0, n, cols, cols)); }

/* Rows that stand close. */
gr_rows closed(float *x, int64_t cols) { return (gr_rows){x, cols, GR_DTYPE_F32}; }

void out_rows(call *c, gr_rows x, int64_t cols) { c->outputs[c->n_outputs++] = (output){x, c->n, cols, false}; }
void out_numbers(call *c, float *x, int64_t each) { out_rows(c, closed(x, each), each); }
void out_whole(call *c, gr_rows x, int64_t n, int64_t cols) { c->outputs[c->n_outputs++] = (output){x, n, cols, true}; }
void out_sum(call *c, float *x, int64_t n) { out_whole(c, closed(x, n), 1, n); }

void release(call *c) {
    for (const guarded *b = c->buffers; b < c->buffers + c->n_buffers; b++) {
        for (int64_t j = 0; j < GUARD + c->off; j++) assert_true(b->p[j] == guard);
        const float *x = b->p + GUARD + c->off;
        for (int64_t i = 0; i < b->size; i += b->ld)
            for (int64_t j = b->cols; j < b->ld; j++)
                if (x[i + j] != guard) fail_msg("written between rows: row %d", (int)(i / b->ld));
        for (int64_t j = 0; j < GUARD; j++) assert_true(x[b->size + j] == guard);
        free(b->p);
    }
}

static const int64_t widths[] = {64, 1, 17, 100, 576, 1031}; /* by variant */
int64_t width(const call *c) { return c->columns ? c->columns : widths[c->variant % 6]; }

/* A weight of random blocks; scales are kept small and finite. */
gr_weight weight(call *c, gr_dtype dtype, int tag, int64_t n_rows, int64_t n_cols) {
    const gr_dtype_info *type = gr_dtype_get(dtype);
    n_cols = (n_cols + type->block - 1) / type->block * type->block;
    int64_t bytes = gr_dtype_bytes(dtype, n_rows * n_cols);
    uint8_t *data = (uint8_t *)buffer(c, (bytes + 3) / 4);
    float *values = fixed(c, tag, n_rows, n_cols);
    if (type->from_f32) {
        type->from_f32(data, values, n_rows * n_cols);
    } else {
        for (int64_t i = 0; i < bytes; i++) data[i] = (uint8_t)gr_random_u32(9, (uint32_t)tag, 1, (uint64_t)i);
        for (int64_t b = 0; b < bytes; b += type->block_bytes) {
            int64_t halves = dtype == GR_DTYPE_Q6_K ? b + 208 : b;
            int count = dtype == GR_DTYPE_Q4_0 || dtype == GR_DTYPE_Q5_0 || dtype == GR_DTYPE_Q6_K ? 1 : 2;
            for (int i = 0; i < count; i++) {
                uint16_t h = gr_f32_to_f16(0.01f * values[(b + i) % (n_rows * n_cols)]);
                memcpy(data + halves + 2 * i, &h, 2);
            }
        }
    }
    return (gr_weight){.dtype = dtype, .rows = n_rows, .cols = n_cols, .data = data};
}

gr_dtype variant_dtype(const call *c) { return (gr_dtype)(c->variant % GR_DTYPE_COUNT); }

int32_t *indices(call *c, int64_t below) {
    int32_t *ids = (int32_t *)buffer(c, c->n);
    for (int64_t i = 0; i < c->n; i++) ids[i] = (int32_t)((c->row0 + i) * 7 % below);
    return ids;
}

uint64_t *row_keys(call *c) {
    uint64_t *key = (uint64_t *)((char *)buffer(c, 2 * c->n + 2) + 4 * c->off); /* aligned to 8 bytes */
    for (int64_t i = 0; i < c->n; i++) key[i] = (uint64_t)(c->row0 + i) << 33 | 5;
    return key;
}

const char *const levels[] = {"generic", "avx2", "avx512", "avx512bf16", "amx", "cuda"};

bool is_card(const char *level) { return strcmp(level, "cuda") == 0; }

/* A card is tested where GRAFT_DEVICE names it, and nothing else then. */
bool available(const char *level) {
    const char *named = getenv("GRAFT_DEVICE");
    bool card = named && strncmp(named, "cuda", 4) == 0;
    return card ? is_card(level) : !is_card(level) && gr_cpu_ops(level);
}

static bool find_buffer(void *context, const void *p, mirror_buffer *b) {
    (void)context;
    for (const guarded *g = running->buffers; g < running->buffers + running->n_buffers; g++) {
        const float *begin = g->p, *end = g->p + GUARD + running->off + g->size + GUARD;
        if ((const char *)p < (const char *)begin || (const char *)p > (const char *)end) continue;
        *b = (mirror_buffer){g->p + GUARD + running->off, g->ld ? g->size / g->ld : 0, g->cols, g->ld, GUARD + running->off};
        return true;
    }
    return false;
}

mirror *mirrored(gr_device *d) { return d->close == mirror_close ? (mirror *)d : NULL; }

gr_device *device(const char *level, int n_threads) {
    const char *why = NULL;
    if (is_card(level)) {
        gr_device *card = gr_device_open(getenv("GRAFT_DEVICE"), NULL, &why);
        if (!card) fail_msg("%s", why);
        return &mirror_new(card, find_buffer, NULL)->device;
    }
    gr_threads *threads = gr_threads_new(n_threads);
    assert_int_equal(gr_threads_count(threads), n_threads);
    setenv("GRAFT_CPU", level, 1);
    gr_device *d = gr_device_open("cpu", threads, &why);
    if (!d) fail_msg("%s", why);
    return d;
}

void close_device(gr_device *d) {
    if (mirrored(d)) {
        gr_device_close(d);
        return;
    }
    gr_threads *threads = gr_cpu_threads(d);
    gr_device_close(d);
    gr_threads_free(threads);
}

void make_wide_call(call *c, const operation *op, gr_device *d, int variant, int64_t row0, int64_t n, int64_t columns) {
    *c = (call){.d = d, .variant = variant, .row0 = row0, .n = n, .columns = columns, .tolerance = 2e-5, .off = 1};
    if (on_card && variant % 4 == 0) c->off = 0; /* whole vectors are moved there where all arrays are aligned */
    running = c;
    if (mirrored(d)) {
        bool floats = strcmp(op->name, "cross_entropy") == 0 || strcmp(op->name, "softcap") == 0 ||
                      strcmp(op->name, "best_column") == 0 || strcmp(op->name, "list_columns") == 0; /* logits always are */
        ((mirror *)d)->variant = variant, ((mirror *)d)->activations = floats ? GR_DTYPE_F32 : card_type;
    }
    op->run(c);
    /* a card's products have factors of bfloat16 or half; rows of these types are rounded once more */
    bool linear = strncmp(op->name, "linear", 6) == 0, attention = strncmp(op->name, "attention", 9) == 0;
    double of_type = card_type == GR_DTYPE_BF16 ? 4e-3 : card_type == GR_DTYPE_F16 ? 1e-3 : 0;
    if (on_card && (linear || attention) && c->tolerance > 2e-5) of_type = fmax(of_type, 4e-3);
    if (on_card && attention) of_type *= 2.5;
    if (on_card) c->tolerance = fmax(c->tolerance, of_type);
}

void make_call(call *c, const operation *op, gr_device *d, int variant, int64_t row0, int64_t n) {
    make_wide_call(c, op, d, variant, row0, n, 0);
}

/* GRAFT_OPS="rope,add": these alone, while one works on them; "packed attention", "cached attention" and "few rows" too. */
bool chosen(const operation *op) {
    const char *some = getenv("GRAFT_OPS"), *at = some ? strstr(some, op->name) : op->name;
    char after = at ? at[strlen(op->name)] : 'x';
    return (!on_card || strncmp(op->name, "int8", 4) != 0) && at && (after == '\0' || after == ',');
}

/* Norm of the difference over norm, each output; b may be of some of a's rows. */
void compare(const call *a, const call *b, const operation *op, const char *level) {
    assert_int_equal(a->n_outputs, b->n_outputs);
    for (int i = 0; i < a->n_outputs; i++) {
        const output *out = &b->outputs[i];
        int64_t skip = out->whole ? 0 : b->row0 - a->row0;
        double difference = 0, norm = 1e-30;
        for (int64_t r = 0; r < out->rows; r++)
            for (int64_t j = 0; j < out->cols; j++) {
                double x = gr_f32_row(a->outputs[i].x, skip + r)[j], y = gr_f32_row(out->x, r)[j];
                if (isnan(x) || isnan(y)) fail_msg("%s %s variant %d output %d: NaN", op->name, level, a->variant, i);
                difference += (x - y) * (x - y), norm += y * y;
            }
        if (sqrt(difference / norm) > a->tolerance)
            fail_msg("%s %s variant %d output %d: relative difference %g", op->name, level, a->variant, i, sqrt(difference / norm));
    }
}

void compare_bits(const call *a, const call *b, const operation *op, const char *what) {
    bool same_rows = a->row0 == b->row0 && a->n == b->n;
    /* a card's few rows go another way than many, where its products are not exact: theirs are other bits, and both err */
    if (on_card && strcmp(op->name, "linear_forward") == 0 && a->tolerance > 2e-5 && (a->n <= FEW_ROWS) != (b->n <= FEW_ROWS)) {
        call both = *a;
        both.tolerance *= 2;
        compare(&both, b, op, what);
        return;
    }
    for (int i = 0; i < a->n_outputs && i < b->n_outputs; i++) {
        const output *x = &a->outputs[i], *y = &b->outputs[i];
        if (!same_rows && x->whole) continue;
        int64_t skip = x->whole ? 0 : b->row0 - a->row0;
        for (int64_t r = 0; r < y->rows; r++)
            if (memcmp(gr_f32_row(x->x, skip + r), gr_f32_row(y->x, r), (size_t)y->cols * sizeof(float)) != 0)
                fail_msg("%s %s variant %d output %d: bits differ", op->name, what, a->variant, i);
    }
}
