/* quantize.c - the frozen base in few bits. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "core/base/log.h"
#include "core/model/model.h"
#include "kernels/threads.h"

/* Elements that a thread converts at once, and those of a chunk; whole blocks of every type. */
enum { PIECE = 1024, CHUNK = 64 * PIECE };

/* The type that a linear's matrix gets: its own when it is quantised already, or when no block fits its rows. */
gr_dtype gr_model_quantized_type(const gr_weight *w, gr_dtype type) {
    bool plain = w->dtype == GR_DTYPE_F32 || w->dtype == GR_DTYPE_F16 || w->dtype == GR_DTYPE_BF16;
    if (!plain) return w->dtype;
    if (w->cols % gr_dtype_get(type)->block == 0) return type;
    return w->cols % gr_dtype_get(GR_DTYPE_Q5_0)->block == 0 ? GR_DTYPE_Q5_0 : w->dtype;
}

/* The linears of the layers: neither the embedding, which is first, nor the head, which is last. */
static bool in_layers(const gr_model *m, int64_t module) { return module > 0 && module < m->n_modules - 1; }

int64_t gr_model_quantized_bytes(const gr_model *m, gr_dtype type) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < m->n_modules; i++) {
        const gr_weight *w = &m->modules[i].linear->w;
        gr_dtype to = gr_model_quantized_type(w, type);
        if (in_layers(m, i) && to != w->dtype) bytes += gr_dtype_bytes(to, w->rows * w->cols);
    }
    return bytes;
}

int64_t gr_model_file_bytes(const gr_model *m, int quantise, bool replaced) {
    int64_t bytes = 0;
    bool shape = gr_weights_shape_only(m->weights);
    for (int64_t i = 0; i < gr_weights_count(m->weights); i++) {
        const gr_weight *w = &gr_weights_get(m->weights, i)->view;
        bytes += gr_dtype_bytes(shape ? GR_DTYPE_BF16 : w->dtype, w->rows * w->cols);
    }
    for (int64_t i = 1; i < m->n_modules; i++) { /* those that are not read any more */
        const gr_weight *w = &m->modules[i].linear->w;
        bool quantised = quantise >= 0 && in_layers(m, i) && gr_model_quantized_type(w, (gr_dtype)quantise) != w->dtype;
        bool trained = m->modules[i].linear == &m->head && m->head_rows.n == w->rows; /* all rows are in the segment */
        if (quantised || replaced || trained) bytes -= gr_dtype_bytes(shape ? GR_DTYPE_BF16 : w->dtype, w->rows * w->cols);
    }
    return bytes;
}

typedef struct job {
    const gr_weight *from; /* on the host */
    gr_dtype type;
    uint8_t *to;
    int64_t first, end; /* elements */
    atomic_bool not_finite;
} job;

/* Rows are whole blocks, so that a matrix is one run of blocks. */
static void quantize_chunk(void *context, int64_t chunk, int worker) {
    job *j = context;
    const gr_dtype_info *from = gr_dtype_get(j->from->dtype), *to = gr_dtype_get(j->type);
    int64_t begin = j->first + chunk * CHUNK, end = GR_MIN(begin + CHUNK, j->end);
    float x[PIECE];
    (void)worker;
    for (int64_t at = begin; at < end; at += PIECE) {
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

graft_status gr_model_convert(gr_model *m, const gr_module *module, gr_dtype type, int64_t first, int64_t end, void *made,
                              graft_error *err) {
    job j = {.from = &module->entry->view, .type = type, .to = made, .first = first, .end = end};
    gr_threads_run(m->threads, (end - first + CHUNK - 1) / CHUNK, quantize_chunk, &j);
    if (!atomic_load(&j.not_finite)) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s holds a NaN or an infinity: it cannot be quantised", gr_weights_path(m->weights),
                   module->entry->name);
}

/* The matrix in the type that it gets, made in `made` on the host; to: its place on the device. */
static graft_status quantize_matrix(gr_model *m, const gr_module *module, gr_dtype type, uint8_t *made, uint8_t *to,
                                    graft_error *err) {
    gr_weight *w = &module->linear->w;
    graft_status st = gr_model_convert(m, module, type, 0, w->rows * w->cols, made, err);
    if (st != GRAFT_OK) return st;
    m->device->upload(m->device, to, made, gr_dtype_bytes(type, w->rows * w->cols));
    w->dtype = type, w->data = to;
    gr_weights_release(m->weights, module->entry->name);
    return GRAFT_OK;
}

graft_status gr_model_quantize(gr_model *m, gr_dtype type, graft_error *err) {
    graft_status st = GRAFT_OK;
    tally t = {0};
    int64_t bytes = gr_model_quantized_bytes(m, type), largest = 0;
    GR_ASSERT(!m->quantized && !m->placed);
    for (int64_t i = 0; i < m->n_modules; i++)
        largest = GR_MAX(largest, in_layers(m, i) ? m->modules[i].out * m->modules[i].in : 0);
    uint8_t *made = gr_alloc_aligned(largest * 2), *to = m->quantized = bytes > 0 ? m->device->alloc(m->device, bytes) : NULL;
    if (!made) GR_TRY(gr_fail_memory(err, "quantised base"));
    if (bytes > 0 && !to) GR_TRY(gr_fail_device_memory(m->device, bytes, "the quantised base", err));
    for (int64_t i = 0; i < m->n_modules; i++) {
        gr_weight *w = &m->modules[i].linear->w;
        int64_t n = w->rows * w->cols;
        gr_dtype from = w->dtype, wanted = gr_model_quantized_type(w, type);
        if (!in_layers(m, i)) continue;
        if (wanted == from) {
            if (t.kept++ == 0) t.kept_type = from;
            continue;
        }
        GR_TRY(quantize_matrix(m, &m->modules[i], wanted, made, to, err));
        to += gr_dtype_bytes(wanted, n);
        t.made++;
        t.other += wanted != type;
        t.bytes_before += gr_dtype_bytes(from, n), t.bytes_after += gr_dtype_bytes(wanted, n);
    }
    tell(m, &t, gr_dtype_get(type)->name);
done:
    free(made);
    return st;
}
