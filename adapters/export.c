/* What the formats share: a source's tensors as a file lists them, and their values rounded to its types. */
#include <stdlib.h>
#include <unistd.h>

#include "adapters/impl.h"
#include "core/base/file.h"
#include "kernels/threads.h"

/* Rows of a chunk on their way into the file, one at a time. */
typedef struct round_job {
    const gr_dtype_info *to;
    const float *rows;
    char *dst;
    int64_t cols, row_bytes, first, n_rows;
    int64_t heads; /* whose rows GGUF interleaves; 0: none */
} round_job;

/* A norm as an HF file has it: without its offset. */
static graft_status round_norm(const gr_weight_entry *e, const gr_dtype_info *to, const float *row, void *dst, graft_error *err) {
    float *less = gr_calloc(e->view.cols, sizeof *less);
    if (!less) return gr_fail_memory(err, e->name);
    for (int64_t i = 0; i < e->view.cols; i++) less[i] = row[i] - e->offset;
    to->from_f32(dst, less, e->view.cols);
    free(less);
    return GRAFT_OK;
}

static void round_row(void *context, int64_t r, int worker) {
    const round_job *j = context;
    int64_t row = j->heads ? gr_gguf_row(j->first + r, j->heads, j->n_rows) : j->first + r;
    (void)worker;
    j->to->from_f32(j->dst + row * j->row_bytes, j->rows + r * j->cols, j->cols);
}

void gr_weight_rows(const gr_weight *w, int64_t first, int64_t n, float *rows) {
    gr_dtype_get(w->dtype)->to_f32(rows, (const char *)w->data + first * gr_dtype_bytes(w->dtype, w->cols), n * w->cols);
}

graft_status gr_export_entry(const gr_export *x, int64_t i, gr_dtype dtype, bool gguf, void *dst, graft_error *err) {
    const gr_weight_entry *e = &x->source.entries[i];
    int64_t heads = gguf ? e->permute_heads : 0, rows = e->view.rows, cols = e->view.cols;
    if (e->is_vector && heads) rows = cols, cols = 1; /* its elements are what is interleaved */
    round_job rounding = {.to = gr_dtype_get(dtype), .dst = dst, .cols = cols, .row_bytes = gr_dtype_bytes(dtype, cols)};
    rounding.n_rows = rows, rounding.heads = heads;
    for (int64_t first = 0; first < e->view.rows; first += GR_SOURCE_ROWS) {
        int64_t n = GR_MIN(GR_SOURCE_ROWS, e->view.rows - first);
        graft_status st = x->source.rows(x->source.context, i, first, n, &rounding.rows, err);
        if (st != GRAFT_OK) return st;
        if (!gguf && e->offset != 0) return round_norm(e, rounding.to, rounding.rows, dst, err);
        rounding.first = first;
        gr_threads_run(x->threads, n * e->view.cols / cols, round_row, &rounding);
    }
    return GRAFT_OK;
}

graft_status gr_export_tensors(gr_tensor **out, const gr_export *x, gr_dtype_rule *dtype_of, bool gguf, graft_error *err) {
    gr_tensor *list = gr_calloc(x->source.n + 1, sizeof *list); /* + 1: a format may add one of its own */
    if (!list) return gr_fail_memory(err, "list of tensors");
    for (int64_t i = 0; i < x->source.n; i++) {
        const gr_weight_entry *e = &x->source.entries[i];
        list[i] = (gr_tensor){.name = gguf ? e->gguf_name : e->name, .dtype = dtype_of(x, e), .n_dims = e->is_vector ? 1 : 2};
        list[i].shape[0] = e->is_vector ? e->view.cols : e->view.rows;
        list[i].shape[1] = e->is_vector ? 0 : e->view.cols;
        list[i].n_elements = e->view.rows * e->view.cols;
        list[i].n_bytes = gr_dtype_bytes(list[i].dtype, list[i].n_elements);
    }
    *out = list;
    return GRAFT_OK;
}

/* ---- to its place ---- */

static graft_status write_folder(const gr_export *x, bool overwrite, const char *out_path, gr_export_proof *proof, void *context,
                                 graft_error *err) {
    graft_status st;
    char *tmp = NULL;
    GR_TRY(gr_dir_begin(&tmp, out_path, overwrite, err));
    GR_TRY(gr_export_hf(x, tmp, err));
    GR_TRY(proof(context, x, tmp, err));
    GR_TRY(gr_dir_commit(tmp, out_path, overwrite, err));
done:
    if (tmp && st != GRAFT_OK) gr_remove_all(tmp);
    free(tmp);
    return st;
}

static graft_status write_file(const gr_export *x, bool overwrite, const char *out_path, gr_export_proof *proof, void *context,
                               graft_error *err) {
    graft_status st;
    char *tmp = gr_format("%s.tmp-%lld.gguf", out_path, (long long)getpid());
    if (!tmp) return gr_fail_memory(err, out_path);
    GR_TRY(gr_refuse_device(out_path, err));
    if (gr_is_dir(out_path)) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "%s is a folder; a GGUF needs a file name", out_path));
    if (gr_exists(out_path) && !overwrite)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "%s exists already; name another file or ask for it to be replaced", out_path));
    gr_unfinished_add(tmp);
    GR_TRY(gr_export_gguf(x, tmp, err));
    GR_TRY(proof(context, x, tmp, err));
    GR_TRY(gr_rename(tmp, out_path, err));
done:
    if (st != GRAFT_OK) gr_remove_all(tmp);
    free(tmp);
    return st;
}

graft_status gr_export_write(const gr_export *x, gr_model_format format, bool overwrite, const char *out_path,
                             gr_export_proof *proof, void *context, graft_error *err) {
    return format == GR_FORMAT_HF ? write_folder(x, overwrite, out_path, proof, context, err)
                                  : write_file(x, overwrite, out_path, proof, context, err);
}
