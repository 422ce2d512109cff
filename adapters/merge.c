/* W + sum_j scale_j B_j A_j, one tensor and within it one chunk of rows at a time. */
#include "adapters/merge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/impl.h"
#include "core/base/file.h"
#include "core/base/log.h"

enum { PATIENCE_S = 3 };

/* A merge in progress: the source of the tensors that are written. */
typedef struct merge_job {
    const gr_merge_parts *parts;
    const gr_model *m;        /* of parts */
    gr_device *cpu;           /* on which sums are made, whatever the model's */
    gr_dtype dtype;           /* of the matrices written */
    gr_model_config config;   /* as written: not tied where an adapter gives head and embedding different weights */
    gr_weight_entry *entries; /* [n_entries] owned; only names and shapes count */
    int64_t n_entries, n_merged, n_told;
    double started; /* seconds */
    gr_progress progress;
    float *rows, *extra; /* scratch of one chunk: [GR_SOURCE_ROWS, max cols] */
    float *left, *right; /* of an adapter: [GR_SOURCE_ROWS, max rank], [max rank, max cols] */
} merge_job;

/* ---- one tensor ---- */

/* The adapter's module whose weight e is, NULL when it has none. */
static const gr_adapter_module *module_of(const gr_adapter *a, const char *name) {
    for (int64_t j = 0; j < a->n_modules; j++) {
        size_t n = strlen(a->modules[j].name);
        if (strncmp(name, a->modules[j].name, n) == 0 && strcmp(name + n, ".weight") == 0) return &a->modules[j];
    }
    return NULL;
}

/* rows[n,K] += adapter j's part of rows first.. of the module's weight (for an embedding the rows are tokens). On the CPU. */
static void add_adapter(merge_job *job, int j, const gr_adapter_module *module, int64_t first, int64_t n) {
    gr_device *d = job->cpu;
    const gr_params *p = job->parts->adapters[j]->params;
    bool embedding = gr_adapter_is_embedding(module);
    int64_t R = module->rank;
    float scale = (float)(job->parts->scales[j] * gr_adapter_scale(job->parts->adapters[j], module));
    gr_params_read_part(p, GR_PARAMS_VALUE, embedding ? module->a : module->b, first * R, n * R, job->left);
    gr_params_read(p, GR_PARAMS_VALUE, embedding ? module->b : module->a, job->right);
    for (int64_t k = 0; k < n * R; k++) job->left[k] *= scale;
    gr_rows left = {job->left, R, GR_DTYPE_F32}, rows = {job->rows, embedding ? module->out : module->in, GR_DTYPE_F32};
    gr_linear l = {.w = {GR_DTYPE_F32, embedding ? module->out : R, embedding ? R : module->in, job->right}};
    gr_group g = {.member = {&l}, .n = 1};
    if (embedding) { /* A[V,R] B[C,R]^T */
        gr_rows extra = {job->extra, module->out, GR_DTYPE_F32};
        d->ops->linear_forward(d, &(gr_product){.group = &g, .x = left, .y = extra}, n);
        d->ops->add(d, rows, extra, n, module->out);
    } else { /* B[N,R] A[R,K]: the input gradient of a linear with weight A */
        d->ops->linear_backward(d, &(gr_product){.group = &g, .y = left}, rows, true, n);
    }
}

/* rows[n,K] = rows first.. of e before adapters: trained ones, the base's, or (an untied head) those of the base's embedding. */
static graft_status take_rows(merge_job *job, const gr_weight_entry *e, int64_t first, int64_t n, graft_error *err) {
    int64_t K = e->view.cols, trained = job->parts->trained ? gr_params_find(job->parts->trained, e->name) : -1;
    if (trained >= 0) {
        gr_params_read_part(job->parts->trained, GR_PARAMS_VALUE, trained, first * K, n * K, job->rows);
        return gr_device_status(job->parts->trained->device, err);
    }
    const gr_weight_entry *found = gr_weights_find(job->m->weights, e->name);
    const gr_weight *w = &(found ? found : gr_weights_get(job->m->weights, 0))->view;
    if (w->rows != e->view.rows || w->cols != K || gr_dtype_bytes(w->dtype, K) < 0)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: the base has it as %lld x %lld, expected %lld x %lld", e->name,
                       (long long)w->rows, (long long)w->cols, (long long)e->view.rows, (long long)K);
    gr_weight_rows(w, first, n, job->rows);
    return GRAFT_OK;
}

static bool is_merged(const merge_job *job, const gr_weight_entry *e) {
    bool yes = job->parts->trained && gr_params_find(job->parts->trained, e->name) >= 0;
    for (int i = 0; i < job->parts->n_adapters; i++)
        yes |= module_of(job->parts->adapters[i], e->name) != NULL ||
               gr_adapter_rows_of(job->parts->adapters[i], e->name, job->m->config.tied) >= 0;
    return yes;
}

/* A line for those who wait: nothing is said of a merge that is done in a moment. */
static void tell_progress(merge_job *job, int64_t i) {
    if (i < job->n_told) return; /* the read-back */
    job->n_told = i + 1;
    if (gr_now() - job->started > PATIENCE_S) gr_progress_update(&job->progress, i + 1, "%s", gr_dtype_get(job->dtype)->name);
}

static graft_status merged_rows(void *context, int64_t i, int64_t first, int64_t n, const float **rows, graft_error *err) {
    merge_job *job = context;
    const gr_weight_entry *e = &job->entries[i];
    int64_t K = e->view.cols;
    graft_status st = take_rows(job, e, first, n, err);
    if (st != GRAFT_OK) return st;
    for (int j = 0; j < job->parts->n_adapters; j++) {
        int which = gr_adapter_rows_of(job->parts->adapters[j], e->name, job->m->config.tied);
        if (which >= 0) gr_adapter_place_rows(job->parts->adapters[j], which, first, n, K, job->rows);
    }
    for (int j = 0; j < job->parts->n_adapters; j++) {
        const gr_adapter_module *module = module_of(job->parts->adapters[j], e->name);
        if (module) add_adapter(job, j, module, first, n);
        st = gr_device_status(job->parts->adapters[j]->params->device, err);
        if (st != GRAFT_OK) return st;
    }
    for (int64_t k = 0; k < n * K; k++)
        if (!isfinite(job->rows[k]))
            return gr_fail(err, GRAFT_FAILED, "%s: row %lld of the merged weight is not finite", e->name,
                           (long long)(first + k / K));
    if (first + n == e->view.rows) tell_progress(job, i);
    *rows = job->rows;
    return GRAFT_OK;
}

/* ---- the whole model ---- */

/* The quantised type of most of the base's matrices, -1 when none is quantised. */
static int quantised_type(const gr_model *m) {
    int64_t n[GR_DTYPE_COUNT] = {0};
    int most = -1;
    for (int64_t i = 0; i < gr_weights_count(m->weights); i++) {
        int dtype = (int)gr_weights_get(m->weights, i)->view.dtype;
        if (gr_dtype_get((gr_dtype)dtype)->block > 1 && (++n[dtype], most < 0 || n[dtype] > n[most])) most = dtype;
    }
    return most;
}

int64_t gr_merge_bytes(const gr_model *m, gr_dtype dtype) {
    int64_t file = 0, largest = 0, cols = 1;
    for (int64_t i = 0; i < gr_weights_count(m->weights); i++) {
        const gr_weight *w = &gr_weights_get(m->weights, i)->view;
        int64_t bytes = w->rows * w->cols * gr_dtype_get(dtype)->block_bytes;
        file += bytes, largest = GR_MAX(largest, bytes), cols = GR_MAX(cols, w->cols);
    }
    return 2 * GR_SOURCE_ROWS * cols * (int64_t)sizeof(float) + file + GR_MAX(largest, gr_merge_probe_bytes(m));
}

graft_status gr_choose_written(gr_dtype *out, const gr_model *m, const gr_merge_options *o, const char *why, graft_error *err) {
    gr_dtype own = m->embed.w.dtype;
    int dtype = o->dtype, base = quantised_type(m);
    bool named = dtype >= 0, plain = false;
    if (!named) dtype = own == GR_DTYPE_F32 || own == GR_DTYPE_F16 ? (int)own : GR_DTYPE_BF16;
    if (!gr_type_is_written(dtype, &plain) || (!plain && o->format == GR_FORMAT_HF))
        return gr_fail(err, GRAFT_BAD_USAGE, "--dtype %s: a written %s", gr_dtype_get((gr_dtype)dtype)->name,
                       o->format == GR_FORMAT_HF
                           ? "HF folder holds fp32, fp16 or bf16; a quantised type needs a GGUF (--out FILE.gguf)"
                           : "GGUF holds fp32, fp16, bf16, q8_0, q6_k, q5_k_m or q4_k_m");
    *out = (gr_dtype)dtype;
    if (base >= 0 && !named)
        gr_note("%s is quantised (%s): %s; --dtype %s", gr_weights_path(m->weights), gr_dtype_get((gr_dtype)base)->name, why,
                o->format == GR_FORMAT_HF ? "fp32 keeps all of it" : "q4_k_m, q5_k_m, q6_k or q8_0 quantises anew");
    return GRAFT_OK;
}

static graft_status choose_dtype(merge_job *job, const gr_merge_options *o, graft_error *err) {
    bool plain = false;
    graft_status st = gr_choose_written(&job->dtype, job->m, o,
                                        "merged weights are written as bf16, which rounds the adapter's changes less", err);
    if (st != GRAFT_OK) return st;
    gr_type_is_written((int)job->dtype, &plain);
    if (!plain && job->parts->n_adapters > 0)
        gr_warn("rounding to %s after merging can hide small changes of an adapter: see the KL below",
                gr_dtype_get(job->dtype)->name);
    return GRAFT_OK;
}

graft_status gr_needs_weights(const gr_model *m, const char *doing, graft_error *err) {
    const char *path = gr_weights_path(m->weights);
    if (gr_weights_shape_only(m->weights))
        return gr_fail(err, GRAFT_BAD_USAGE, "%s: a config alone has no weights, which %s needs", path, doing);
    if (m->quantized)
        return gr_fail(err, GRAFT_BAD_USAGE, "%s: %s needs the weights of the file; open the base without quantising it", path,
                       doing);
    return GRAFT_OK;
}

static graft_status prepare(merge_job *job, const gr_merge_options *o, graft_error *err) {
    graft_status st;
    int64_t cols = 1, rank = 1;
    GR_TRY(gr_needs_weights(job->m, "merging", err));
    job->config = job->m->config;
    gr_config_lead_stop(&job->config, gr_tokenizer_carried_end(job->parts->tokenizer));
    GR_TRY(choose_dtype(job, o, err));
    for (int i = 0; i < job->parts->n_adapters; i++)
        if (module_of(job->parts->adapters[i], "lm_head.weight") || module_of(job->parts->adapters[i], "model.embed_tokens.weight"))
            job->config.tied = false;
    GR_TRY(gr_weights_list(&job->entries, &job->n_entries, &job->config, err));
    for (int64_t i = 0; i < job->n_entries; i++) {
        cols = GR_MAX(cols, job->entries[i].view.cols);
        job->n_merged += is_merged(job, &job->entries[i]);
    }
    for (int i = 0; i < job->parts->n_adapters; i++)
        for (int64_t j = 0; j < job->parts->adapters[i]->n_modules; j++)
            rank = GR_MAX(rank, job->parts->adapters[i]->modules[j].rank);
    job->rows = gr_alloc_aligned(GR_SOURCE_ROWS * cols * (int64_t)sizeof(float));
    job->extra = gr_alloc_aligned(GR_SOURCE_ROWS * cols * (int64_t)sizeof(float));
    job->left = gr_alloc_aligned(GR_SOURCE_ROWS * rank * (int64_t)sizeof(float));
    job->right = gr_alloc_aligned(rank * cols * (int64_t)sizeof(float));
    if (!job->rows || !job->extra || !job->left || !job->right) GR_TRY(gr_fail_memory(err, "merging"));
done:
    return st;
}

typedef struct probing {
    gr_model *m;
    gr_merge_report *report;
} probing;

static graft_status probe(void *context, const gr_export *x, const char *path, graft_error *err) {
    const probing *p = context;
    return gr_merge_probe(x, p->m, path, p->report, err);
}

graft_status gr_write_model(const gr_export *x, gr_model *m, const gr_merge_options *o, const char *out_path,
                            gr_merge_report *report, graft_error *err) {
    return gr_export_write(x, o->format, o->overwrite, out_path, probe, &(probing){m, report}, err);
}

graft_status gr_merge(const gr_merge_parts *parts, const gr_merge_options *o, const char *out_path, gr_merge_report *report,
                      graft_error *err) {
    graft_status st;
    gr_model *m = parts->model;
    gr_merge_report found = {0};
    merge_job job = {.parts = parts, .m = m};
    const char *why = "";
    GR_TRY(prepare(&job, o, err));
    job.cpu = m->device->in_host ? m->device : gr_device_open("cpu", m->threads, &why);
    if (!job.cpu) GR_TRY(gr_fail(err, GRAFT_NO_MEMORY, "merging: %s", why));
    gr_export x = {.source = {job.entries, job.n_entries, merged_rows, &job},
                   .config = &job.config,
                   .tokenizer = parts->tokenizer,
                   .base = m->weights,
                   .dtype = job.dtype,
                   .shard_bytes = o->shard_bytes,
                   .threads = m->threads};
    job.started = gr_now();
    gr_progress_start(&job.progress, "merge", job.n_entries);
    GR_TRY(gr_write_model(&x, m, o, out_path, &found, err));
    found.n_merged = job.n_merged;
    found.dtype = job.dtype;
    if (report) *report = found;
done:
    gr_progress_end(&job.progress);
    if (job.cpu != m->device) gr_device_close(job.cpu);
    free(job.entries);
    free(job.rows);
    free(job.extra);
    free(job.left);
    free(job.right);
    return st;
}

/* ---- the rows alone ---- */

graft_status gr_merge_rows(gr_adapter *plain, gr_adapter *a, gr_model *m, const gr_tokenizer *t, const gr_merge_options *o,
                           const char *base_path, graft_error *err) {
    graft_status st;
    double one = 1;
    gr_adapter rows = *a, *only = &rows;
    gr_merge_parts parts = {.model = m, .tokenizer = t, .adapters = &only, .scales = &one, .n_adapters = 1};
    if (!gr_adapter_has_rows(a))
        return gr_fail(err, GRAFT_BAD_USAGE, "the adapter has no trained rows of tokens: it is a plain LoRA for its own base");
    if (a->n_modules == 0)
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "the adapter has trained rows alone, no LoRA would be left: graft merge writes the model");
    rows.n_modules = 0;
    gr_adapter_detach_all(m);
    GR_TRY(gr_adapter_attach(&rows, m, 1, err));
    GR_TRY(gr_merge(&parts, o, base_path, NULL, err));
    gr_adapter_detach_all(m);
    GR_TRY(gr_adapter_attach(a, m, 1, err));
    *plain = *a;
    for (int i = 0; i < GR_ROWS_COUNT; i++) plain->config.rows[i] = (gr_ids_list){0};
    plain->config.base = base_path;
done:
    return st;
}
