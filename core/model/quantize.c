/* quantize.c - the frozen base in few bits. */
#include <math.h>
#include <stdatomic.h>

#include "core/base/log.h"
#include "core/model/model.h"

/* Elements that a thread converts at once, and those of a chunk; whole blocks of every type. */
enum { PIECE = 1024, CHUNK = 64 * PIECE };

/* The type that a linear's matrix gets: its own when it is quantised already, or when no block fits its rows. */
gr_dtype gr_model_quantized_type(const gr_weight *w, gr_dtype type) {
    bool plain = w->dtype == GR_DTYPE_F32 || w->dtype == GR_DTYPE_F16 || w->dtype == GR_DTYPE_BF16;
    if (!plain) return w->dtype;
    if (w->cols % gr_dtype_get(type)->block == 0) return type;
    return w->cols % gr_dtype_get(GR_DTYPE_Q5_0)->block == 0 ? GR_DTYPE_Q5_0 : w->dtype;
}

/* The linears of the layers: all but the head. */
static int64_t n_matrices(const gr_model *m) { return gr_model_n_linears(m) - 1; }

int64_t gr_model_quantized_bytes(gr_model *m, gr_dtype type) {
    char name[96];
    int64_t bytes = 0;
    for (int64_t i = 0; i < n_matrices(m); i++) {
        const gr_weight *w = &gr_model_linear(m, i, name)->w;
        gr_dtype to = gr_model_quantized_type(w, type);
        if (to != w->dtype) bytes += gr_dtype_bytes(to, w->rows * w->cols);
    }
    return bytes;
}

int64_t gr_model_file_bytes(gr_model *m, int quantise, bool int8) {
    char name[96];
    int64_t bytes = 0;
    bool shape = gr_weights_shape_only(m->weights);
    for (int64_t i = 0; i < gr_weights_count(m->weights); i++) {
        const gr_weight *w = &gr_weights_get(m->weights, i)->view;
        bytes += gr_dtype_bytes(shape ? GR_DTYPE_BF16 : w->dtype, w->rows * w->cols);
    }
    for (int64_t i = 0; i < gr_model_n_linears(m); i++) { /* those that are not read any more */
        const gr_weight *w = &gr_model_linear(m, i, name)->w;
        bool replaced = quantise >= 0 && i < n_matrices(m) && gr_model_quantized_type(w, (gr_dtype)quantise) != w->dtype;
        if (replaced || int8) bytes -= gr_dtype_bytes(shape ? GR_DTYPE_BF16 : w->dtype, w->rows * w->cols);
    }
    return bytes;
}

typedef struct job {
    const gr_weight *from;
    gr_dtype type;
    uint8_t *to;
    atomic_bool not_finite;
} job;

/* Rows are whole blocks, so that a matrix is one run of blocks. */
static void quantize_chunk(void *context, int64_t chunk, int worker) {
    job *j = context;
    const gr_dtype_info *from = gr_dtype_get(j->from->dtype), *to = gr_dtype_get(j->type);
    int64_t end = GR_MIN((chunk + 1) * CHUNK, j->from->rows * j->from->cols);
    float x[PIECE];
    (void)worker;
    for (int64_t at = chunk * CHUNK; at < end; at += PIECE) {
        int64_t n = GR_MIN(PIECE, end - at);
        from->to_f32(x, (const uint8_t *)j->from->data + at * from->block_bytes, n);
        for (int64_t k = 0; k < n; k++)
            if (!isfinite(x[k])) atomic_store(&j->not_finite, true);
        to->from_f32(j->to + at / to->block * to->block_bytes, x, n);
    }
}

/* What became of the matrices, in one line. */
typedef struct tally {
    int64_t made, other, kept; /* of those made, how many of q5_0 in place of the type that was asked for */
    int64_t bytes_before, bytes_after;
    gr_dtype kept_type; /* of the first that was kept */
} tally;

static void tell(const gr_model *m, const tally *t, const char *type) {
    gr_str text = {0};
    if (t->made == 0) {
        gr_note("%s: its layers stay in %s, quantize: %s changes nothing", gr_weights_path(m->weights),
                gr_dtype_get(t->kept_type)->name, type);
        return;
    }
    if (t->other)
        gr_str_printf(&text, "; %lld of them in q5_0, as their rows are no whole blocks of %s", (long long)t->other, type);
    if (t->kept) gr_str_printf(&text, "; %lld stay in %s", (long long)t->kept, gr_dtype_get(t->kept_type)->name);
    gr_note("base: %lld matrices quantised to %s, %.1f MB in place of %.1f%s", (long long)t->made, type,
            (double)t->bytes_after / 1e6, (double)t->bytes_before / 1e6, text.data ? text.data : "");
    gr_str_release(&text);
}

graft_status gr_model_quantize(gr_model *m, gr_dtype type, graft_error *err) {
    char name[96], tensor[112];
    tally t = {0};
    int64_t bytes = gr_model_quantized_bytes(m, type);
    GR_ASSERT(!m->quantized);
    if (bytes > 0 && !(m->quantized = m->device->alloc(m->device, bytes))) return gr_fail_memory(err, "quantised base");
    m->quantized_bytes = bytes;
    uint8_t *to = m->quantized;
    for (int64_t i = 0; i < n_matrices(m); i++) {
        gr_weight *w = &gr_model_linear(m, i, name)->w;
        int64_t n = w->rows * w->cols;
        job j = {.from = w, .type = gr_model_quantized_type(w, type), .to = to};
        if (j.type == w->dtype) {
            if (t.kept++ == 0) t.kept_type = w->dtype;
            continue;
        }
        gr_threads_run(m->threads, (n + CHUNK - 1) / CHUNK, quantize_chunk, &j);
        if (atomic_load(&j.not_finite))
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s.weight holds a NaN or an infinity: it cannot be quantised",
                           gr_weights_path(m->weights), name);
        t.made++;
        t.other += j.type != type;
        t.bytes_before += gr_dtype_bytes(w->dtype, n), t.bytes_after += gr_dtype_bytes(j.type, n);
        to += gr_dtype_bytes(j.type, n);
        *w = (gr_weight){.dtype = j.type, .rows = w->rows, .cols = w->cols, .data = j.to};
        snprintf(tensor, sizeof tensor, "%s.weight", name);
        gr_weights_release(m->weights, tensor);
    }
    tell(m, &t, gr_dtype_get(type)->name);
    return GRAFT_OK;
}
