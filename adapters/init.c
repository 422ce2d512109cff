#include "adapters/init.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "adapters/impl.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "kernels/philox.h"

/* A model in the making: the source of the tensors that are written. */
typedef struct init_job {
    gr_weights *shape; /* of the configuration */
    gr_model_config config;
    uint64_t seed;
    gr_threads *threads;
    float *rows; /* [GR_SOURCE_ROWS, most columns] */
    gr_progress progress;
    /* the rows that are made now */
    const gr_weight_entry *entry;
    uint64_t stream; /* of the tensor's name */
    int64_t first;
} init_job;

/* ---- values ---- */

/* Two normal numbers of one counter: Box and Muller (1958), in double. */
static void normal_pair(double out[2], uint64_t seed, uint64_t stream, uint64_t pair) {
    uint32_t word[4];
    gr_philox(word, seed, GR_PURPOSE_INIT, stream, pair);
    double u = ((double)((uint64_t)word[0] << 21 | word[1] >> 11) + 0.5) * 0x1p-53;
    double angle = 2 * M_PI * (double)((uint64_t)word[2] << 21 | word[3] >> 11) * 0x1p-53, length = sqrt(-2 * log(u));
    out[0] = length * cos(angle), out[1] = length * sin(angle);
}

/* The row that stays 0, -1: none. A token that means something else as well has a row of its own. */
static int64_t padding_row(const gr_model_config *c) { return c->pad == c->eos || c->pad == c->bos ? -1 : c->pad; }

static void fill_row(void *context, int64_t r, int worker) {
    const init_job *j = context;
    const gr_weight_entry *e = j->entry;
    int64_t K = e->view.cols, row = j->first + r;
    float *to = j->rows + r * K;
    (void)worker;
    bool ones = e->is_vector && !e->is_bias;
    if (e->is_vector || (e->slot == GR_SLOT_EMBED && row == padding_row(&j->config))) {
        for (int64_t k = 0; k < K; k++) to[k] = ones ? 1.0f : 0.0f;
        return;
    }
    for (int64_t k = 0; k < K; k++) {
        double pair[2];
        normal_pair(pair, j->seed, j->stream, (uint64_t)(row * ((K + 1) / 2) + k / 2));
        to[k] = (float)(pair[0] * (double)j->config.init_range);
        if (++k < K) to[k] = (float)(pair[1] * (double)j->config.init_range);
    }
}

static graft_status random_rows(void *context, int64_t i, int64_t first, int64_t n, const float **rows, graft_error *err) {
    init_job *j = context;
    (void)err;
    j->entry = gr_weights_get(j->shape, i);
    j->stream = XXH3_64bits(j->entry->name, strlen(j->entry->name));
    j->first = first;
    gr_threads_run(j->threads, n, fill_row, j);
    gr_progress_update(&j->progress, i, "%s", j->entry->name);
    *rows = j->rows;
    return GRAFT_OK;
}

/* ---- configuration and tokenizer ---- */

static graft_status open_shape(init_job *j, const char *path, graft_error *err) {
    graft_status st;
    char *inside = gr_is_dir(path) ? gr_path_join(path, "config.json") : gr_strdup(path);
    if (!inside) return gr_fail_memory(err, path);
    if (!gr_exists(inside)) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: no such file: expected a config.json", inside));
    if (!gr_ends_with(inside, ".json"))
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "%s: expected a config.json, or the folder that has one", inside));
    GR_TRY(gr_weights_open_headers(&j->shape, inside, err));
    j->config = *gr_weights_config(j->shape);
    j->config.base_vocab = 0; /* random rows extend nothing */
    if (!(j->config.init_range > 0))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: initializer_range is %g, expected more than 0", inside,
                       (double)j->config.init_range));
done:
    free(inside);
    return st;
}

/* A vocabulary's file says neither which tokens end a text nor how a chat is written: files beside it do. */
static graft_status refuse_vocabulary(const char *path, graft_error *err) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const char *as = gr_ends_with(name, ".model") ? "tokenizer.model" : gr_ends_with(name, ".json") ? "tokenizer.json" : NULL;
    if (!as || gr_is_dir(path) || !gr_exists(path)) return GRAFT_OK;
    if (slash && strcmp(name, as) == 0)
        return gr_fail(err, GRAFT_BAD_USAGE, "--tokenizer %s: name its folder: %.*s", path, (int)(slash - path), path);
    return gr_fail(err, GRAFT_BAD_USAGE,
                   "--tokenizer %s: a vocabulary alone; expected a folder that has it as %s (graft vocab train --out FOLDER writes "
                   "one), a .gguf file or a run",
                   path, as);
}

/* The tokenizer that was named, or that lies beside the configuration; *out NULL: neither. */
static graft_status open_tokenizer(gr_tokenizer **out, const gr_init_options *o, graft_error *err) {
    static const char *const files[] = {"tokenizer.json", "tokenizer.model"};
    const char *slash = strrchr(o->config, '/');
    bool folder = gr_is_dir(o->config), beside = false;
    if (o->tokenizer) {
        graft_status st = refuse_vocabulary(o->tokenizer, err);
        return st == GRAFT_OK ? gr_tokenizer_open(out, o->tokenizer, err) : st;
    }
    char *place = folder ? gr_strdup(o->config) : slash ? gr_strndup(o->config, slash - o->config) : gr_strdup(".");
    if (!place) return gr_fail_memory(err, o->config);
    for (int i = 0; i < GR_LEN(files); i++) {
        char *file = gr_path_join(place, files[i]);
        beside |= file && gr_exists(file);
        free(file);
    }
    graft_status st = beside ? gr_tokenizer_open(out, place, err) : GRAFT_OK;
    if (st == GRAFT_OK && beside) gr_note("tokenizer: that of %s, beside the configuration", place);
    free(place);
    return st;
}

/* One of the ids that the configuration names, as the tokenizer has it. */
static void take_id(int32_t *id, int32_t of_tokenizer, const char *key) {
    if (of_tokenizer < 0 || of_tokenizer == *id) return;
    if (*id >= 0)
        gr_note("%s is %d in the configuration, %d in the tokenizer: the latter is written", key, (int)*id, (int)of_tokenizer);
    *id = of_tokenizer;
}

static graft_status join_tokenizer(init_job *j, const gr_tokenizer *t, graft_error *err) {
    const gr_tokenizer_info *info = gr_tokenizer_get_info(t);
    if (info->n_vocab > j->config.vocab)
        return gr_fail(err, GRAFT_BAD_USAGE, "the tokenizer has %lld tokens, vocab_size of %s is %lld: set it to %lld or more",
                       (long long)info->n_vocab, gr_weights_path(j->shape), (long long)j->config.vocab, (long long)info->n_vocab);
    if (info->n_vocab < j->config.vocab)
        gr_note("vocab_size %lld: the tokenizer has %lld tokens, the last %lld rows of the embedding have none",
                (long long)j->config.vocab, (long long)info->n_vocab, (long long)(j->config.vocab - info->n_vocab));
    take_id(&j->config.bos, info->bos, "bos_token_id");
    take_id(&j->config.eos, info->eos, "eos_token_id");
    take_id(&j->config.pad, info->pad, "pad_token_id");
    if (info->eos >= 0) j->config.n_stop_ids = 1, j->config.stop_ids[0] = info->eos;
    return GRAFT_OK;
}

/* ---- writing ---- */

static graft_status read_back(void *context, const gr_export *x, const char *path, graft_error *err) {
    gr_weights *back = NULL;
    (void)context;
    gr_log_mute(true);
    graft_status st = gr_weights_open(&back, path, err);
    gr_log_mute(false);
    if (st != GRAFT_OK) return gr_fail_context(err, GRAFT_FAILED, "reading back what was written");
    st = gr_export_check(x, back, path, err);
    gr_weights_close(back);
    return st;
}

static graft_status allocate(init_job *j, gr_weight_entry **entries, int64_t *n, graft_error *err) {
    int64_t cols = 1;
    graft_status st = gr_weights_list(entries, n, &j->config, err);
    if (st != GRAFT_OK) return st;
    for (int64_t i = 0; i < *n; i++) cols = GR_MAX(cols, (*entries)[i].view.cols);
    j->rows = gr_alloc_aligned(GR_SOURCE_ROWS * cols * (int64_t)sizeof(float));
    return j->rows ? GRAFT_OK : gr_fail_memory(err, "random weights");
}

static void describe(gr_init_report *r, const init_job *j, const gr_export *x) {
    *r = (gr_init_report){.n_tensors = x->source.n, .vocab = j->config.vocab, .range = (double)j->config.init_range};
    if (x->tokenizer) r->n_pieces = gr_tokenizer_get_info(x->tokenizer)->n_vocab;
    for (int64_t i = 0; i < x->source.n; i++) {
        const gr_weight_entry *e = &x->source.entries[i];
        r->n_parameters += e->view.rows * e->view.cols;
        r->n_bytes += gr_dtype_bytes(x->dtype, e->view.rows * e->view.cols);
    }
}

graft_status gr_init_model(const gr_init_options *o, const char *out_path, gr_threads *threads, gr_init_report *report,
                           graft_error *err) {
    graft_status st;
    init_job j = {.seed = o->seed, .threads = threads};
    gr_tokenizer *t = NULL;
    gr_weight_entry *entries = NULL;
    int64_t n = 0;
    GR_TRY(open_shape(&j, o->config, err));
    GR_TRY(open_tokenizer(&t, o, err));
    if (t) GR_TRY(join_tokenizer(&j, t, err));
    else if (o->format == GR_FORMAT_GGUF)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "a GGUF holds its tokenizer: name one (--tokenizer T)"));
    else gr_warn("no tokenizer: the model can be trained once its folder has one (--tokenizer T)");
    GR_TRY(allocate(&j, &entries, &n, err));
    gr_export x = {.source = {entries, n, random_rows, &j},
                   .config = &j.config,
                   .tokenizer = t,
                   .base = j.shape,
                   .dtype = o->dtype,
                   .threads = threads};
    const char *slash = strrchr(out_path, '/');
    x.name = slash ? slash + 1 : out_path;
    gr_progress_start(&j.progress, "init", n);
    GR_TRY(gr_export_write(&x, o->format, o->overwrite, out_path, read_back, NULL, err));
    if (report) describe(report, &j, &x);
done:
    gr_progress_end(&j.progress);
    gr_weights_close(j.shape);
    gr_tokenizer_free(t);
    free(entries);
    free(j.rows);
    return st;
}
