/* An embedding (and head) with rows for new pieces, each the mean of rows that there were. */
#include "adapters/extend.h"

#include <stdlib.h>
#include <string.h>

#include "adapters/impl.h"
#include "core/base/log.h"
#include "core/text/extend.h"

enum { PATIENCE_S = 3 };

typedef struct extend_job {
    const gr_model *m;
    const gr_extend_options *o;
    int64_t first_new, n_tokens; /* of the extended tokenizer */
    gr_model_config config;      /* as written */
    gr_weight_entry *entries;    /* owned; names and shapes count */
    int64_t n_entries, n_told;
    int64_t *starts;   /* [n_tokens - first_new + 1] in spelt */
    gr_ids spelt;      /* the old ids of every new piece */
    float *means[2];   /* [hidden] of the tokens' rows of embedding and head */
    float *rows, *row; /* scratch of a chunk, of one row */
    double started;
    gr_progress progress;
} extend_job;

/* ---- rows ---- */

static const gr_weight *base_weight(const extend_job *job, const gr_weight_entry *e) {
    return &gr_weights_find(job->m->weights, e->name)->view;
}

/* The tokens of w that have rows. */
static int64_t n_rows(const extend_job *job, const gr_weight *w) { return GR_MIN(job->first_new, w->rows); }

/* Sums in double, row after row. */
static graft_status mean_row(extend_job *job, const gr_weight *w, float **out, graft_error *err) {
    const int64_t K = w->cols, n = n_rows(job, w);
    double *sum = gr_calloc(K, sizeof *sum);
    *out = gr_calloc(K, sizeof **out);
    if (!sum || !*out) {
        free(sum);
        return gr_fail_memory(err, "mean row");
    }
    for (int64_t r = 0; r < n; r++) {
        gr_weight_rows(w, r, 1, job->row);
        for (int64_t k = 0; k < K; k++) sum[k] += (double)job->row[k];
    }
    for (int64_t k = 0; k < K; k++) (*out)[k] = (float)(sum[k] / (double)n);
    free(sum);
    return GRAFT_OK;
}

/* Of the tokens that new piece id was spelt with; those without a row do not count. */
static void spelt_row(extend_job *job, const gr_weight *w, int64_t id, const float *mean, float *row) {
    const int64_t K = w->cols, *at = job->starts + (id - job->first_new);
    int64_t n = 0;
    memset(row, 0, (size_t)K * sizeof *row);
    for (int64_t i = at[0]; i < at[1]; i++) {
        if (job->spelt.data[i] >= w->rows) continue;
        gr_weight_rows(w, job->spelt.data[i], 1, job->row);
        for (int64_t k = 0; k < K; k++) row[k] += job->row[k];
        n++;
    }
    if (n == 0) memcpy(row, mean, (size_t)K * sizeof *row);
    for (int64_t k = 0; n > 1 && k < K; k++) row[k] /= (float)n;
}

static void one_row(extend_job *job, const gr_weight *w, int64_t id, const float *mean, float *row) {
    bool is_new = id >= job->first_new && id < job->n_tokens;
    if (is_new && job->o->init == GR_EXTEND_PIECES) spelt_row(job, w, id, mean, row);
    else if (!is_new && id < w->rows) gr_weight_rows(w, id, 1, row);
    else memcpy(row, mean, (size_t)w->cols * sizeof *row);
}

static void tell_progress(extend_job *job, int64_t i) {
    if (i < job->n_told) return; /* the read-back */
    job->n_told = i + 1;
    if (gr_now() - job->started > PATIENCE_S) gr_progress_update(&job->progress, i + 1, "%s", job->entries[i].name);
}

static graft_status extended_rows(void *context, int64_t i, int64_t first, int64_t n, const float **rows, graft_error *err) {
    extend_job *job = context;
    const gr_weight_entry *e = &job->entries[i];
    const gr_weight *w = base_weight(job, e);
    bool head = e->slot == GR_SLOT_HEAD;
    (void)err;
    if (head || e->slot == GR_SLOT_EMBED) {
        for (int64_t r = 0; r < n; r++) one_row(job, w, first + r, job->means[head], job->rows + r * w->cols);
    } else {
        gr_weight_rows(w, first, n, job->rows);
    }
    if (first + n == e->view.rows) tell_progress(job, i);
    *rows = job->rows;
    return GRAFT_OK;
}

/* ---- the model ---- */

static graft_status spell_pieces(extend_job *job, const gr_tokenizer *x, graft_error *err) {
    graft_status st = GRAFT_OK;
    job->starts = gr_calloc(job->n_tokens - job->first_new + 1, sizeof *job->starts);
    if (!job->starts) return gr_fail_memory(err, "spelling");
    for (int64_t id = job->first_new; id < job->n_tokens; id++) {
        GR_TRY(gr_vocab_spelling(x, (int32_t)id, &job->spelt, err));
        job->starts[id - job->first_new + 1] = job->spelt.n;
    }
done:
    return st;
}

static graft_status set_size(extend_job *job, graft_error *err) {
    const gr_model_config *base = &job->m->config;
    int64_t multiple = job->o->multiple, rows = GR_MAX(base->vocab, job->n_tokens);
    if (multiple > 0) rows = (rows + multiple - 1) / multiple * multiple;
    job->config = *base;
    job->config.vocab = rows;
    job->config.base_vocab = job->first_new;
    if (base->base_vocab > 0)
        gr_note("%s was extended before, from id %lld on: rows that are called new are now those from %lld on",
                gr_weights_path(job->m->weights), (long long)base->base_vocab, (long long)job->first_new);
    if (job->first_new > base->vocab)
        gr_note("%s: %lld added tokens had no row in the embedding of %lld: they get the mean of all rows",
                gr_weights_path(job->m->weights), (long long)(job->first_new - base->vocab), (long long)base->vocab);
    if (rows > 1 << 24)
        return gr_fail(err, GRAFT_BAD_USAGE, "%lld rows of an embedding are more than graft knows", (long long)rows);
    return GRAFT_OK;
}

static graft_status prepare(extend_job *job, const gr_tokenizer *x, graft_error *err) {
    graft_status st;
    int64_t cols = 1;
    GR_TRY(gr_needs_weights(job->m, "an extension", err));
    GR_TRY(set_size(job, err));
    GR_TRY(gr_weights_list(&job->entries, &job->n_entries, &job->config, err));
    for (int64_t i = 0; i < job->n_entries; i++) cols = GR_MAX(cols, job->entries[i].view.cols);
    job->rows = gr_alloc_aligned(GR_SOURCE_ROWS * cols * (int64_t)sizeof(float));
    job->row = gr_alloc_aligned(cols * (int64_t)sizeof(float));
    if (!job->rows || !job->row) GR_TRY(gr_fail_memory(err, "extending"));
    for (int64_t i = 0; i < job->n_entries; i++) {
        const gr_weight_entry *e = &job->entries[i];
        bool head = e->slot == GR_SLOT_HEAD;
        if (!gr_weights_find(job->m->weights, e->name)) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s is missing in the base", e->name));
        if (head || e->slot == GR_SLOT_EMBED) GR_TRY(mean_row(job, base_weight(job, e), &job->means[head], err));
    }
    GR_TRY(spell_pieces(job, x, err));
done:
    return st;
}

graft_status gr_extend(gr_model *m, const gr_tokenizer *x, const gr_extend_options *o, const char *out_path,
                       gr_extend_report *report, graft_error *err) {
    graft_status st;
    gr_extend_report found = {0};
    extend_job job = {.m = m, .o = o, .first_new = gr_vocab_first_new(x), .n_tokens = gr_tokenizer_get_info(x)->n_vocab};
    gr_dtype dtype;
    GR_TRY(prepare(&job, x, err));
    GR_TRY(
        gr_choose_written(&dtype, m, &o->file,
                          "the extended model is written as bf16, as its blocks would round all weights again and new rows for the "
                          "first time",
                          err));
    gr_export e = {.source = {job.entries, job.n_entries, extended_rows, &job},
                   .config = &job.config,
                   .tokenizer = x,
                   .base = m->weights,
                   .dtype = dtype,
                   .shard_bytes = o->file.shard_bytes,
                   .n_kept = GR_MIN(job.first_new, m->config.vocab),
                   .threads = m->threads};
    job.started = gr_now();
    gr_progress_start(&job.progress, "extend", job.n_entries);
    GR_TRY(gr_write_model(&e, m, &o->file, out_path, &found.written, err));
    found.written.dtype = dtype;
    found.base_rows = m->config.vocab;
    found.rows = job.config.vocab;
    found.padding = job.config.vocab - job.n_tokens;
    found.spelling = (double)job.spelt.n / (double)(job.n_tokens - job.first_new);
    if (report) *report = found;
done:
    gr_progress_end(&job.progress);
    gr_ids_release(&job.spelt);
    free(job.starts);
    free(job.entries);
    free(job.means[0]);
    free(job.means[1]);
    free(job.rows);
    free(job.row);
    return st;
}
