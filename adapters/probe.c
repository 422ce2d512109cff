/* The read-back of what is written: is the written model what base and adapter are, and does it compute what they compute? */
#include "adapters/merge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/model/decoder.h"

enum { TEXT_TOKENS = 16, FEW_TOKENS = 4, LOGITS = 8 << 20 }; /* of each text; of all, of one of the two models: 32 MiB */

static const char *const texts[] = {
    "The quick brown fox jumps over the lazy dog, and 12 + 34 = 46.",
    "def area(radius):\n    return 3.14159 * radius ** 2",
    "\xe4\xbb\x8a\xe5\xa4\xa9\xe5\xa4\xa9\xe6\xb0\x94\xe5\xbe\x88\xe5\xa5\xbd\xef\xbc\x8c\xe6\x88\x91\xe4\xbb"
    "\xac\xe5\x8e\xbb\xe5\x85\xac\xe5"
    "\x9b\xad\xe6\x95\xa3\xe6\xad\xa5\xe3\x80\x82", /* "It is fine today, we take a walk in the park." */
    "Dear customer, thank you for your letter of the third of March.",
};

/* Of a large vocabulary fewer: the logits of both models are there at once. No more than the model was opened for. */
static int64_t text_tokens(const gr_model *m) {
    int64_t most = GR_MIN(TEXT_TOKENS, m->rope_positions);
    return GR_MIN(most, GR_MAX(FEW_TOKENS, LOGITS / m->config.vocab / GR_LEN(texts)));
}

/* Ids below vocab, at most `most` of each text. */
static graft_status probe_batch(gr_batch *b, const gr_tokenizer *t, int64_t vocab, int64_t most, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_ids ids = {0};
    for (int i = 0; i < GR_LEN(texts); i++) {
        int64_t n = 0;
        ids.n = 0;
        GR_TRY(gr_tokenizer_encode(t, texts[i], (int64_t)strlen(texts[i]), false, &ids, err));
        while (n < GR_MIN(ids.n, most) && ids.data[n] >= 0 && ids.data[n] < vocab) n++;
        if (n > 0) GR_TRY(gr_batch_append(b, ids.data, NULL, n, (uint64_t)i, err));
    }
    if (b->n == 0) st = gr_fail(err, GRAFT_BAD_INPUT, "the tokenizer gives no ids that the model has: do they belong together?");
done:
    gr_ids_release(&ids);
    return st;
}

/* [n,V] of every row, owned. */
static graft_status all_logits(float **out, gr_model *m, const gr_batch *b, graft_error *err) {
    graft_status st;
    gr_decoder *d = NULL;
    float *logits = gr_calloc(b->n * m->config.vocab, sizeof *logits);
    int32_t *rows = gr_calloc(b->n, sizeof *rows);
    if (!logits || !rows) GR_TRY(gr_fail_memory(err, "probe"));
    for (int64_t i = 0; i < b->n; i++) rows[i] = (int32_t)i;
    GR_TRY(gr_decoder_new(&d, m, &(gr_decoder_options){.max_tokens = b->n}, err));
    GR_TRY(gr_decoder_logits(d, b, rows, b->n, logits, err));
    *out = logits, logits = NULL;
done:
    gr_decoder_free(d);
    free(logits);
    free(rows);
    return st;
}

int64_t gr_merge_probe_bytes(const gr_model *m) {
    int64_t rows = GR_LEN(texts) * text_tokens(m);
    return 2 * rows * m->config.vocab * (int64_t)sizeof(float) +
           m->device->footprint(m->device, gr_decoder_plan_bytes(m, &(gr_decoder_options){.max_tokens = rows}));
}

static double log_sum_exp(const float *x, int64_t n) {
    double top = x[0], sum = 0;
    for (int64_t k = 1; k < n; k++) top = fmax(top, x[k]);
    for (int64_t k = 0; k < n; k++) sum += exp(x[k] - top);
    return top + log(sum);
}

/* sum over k of p (log p - log q), p and q the softmax of the two rows. */
static double divergence(const float *a, const float *b, int64_t n) {
    double lse_a = log_sum_exp(a, n), lse_b = log_sum_exp(b, n), kl = 0;
    for (int64_t k = 0; k < n; k++) kl += exp(a[k] - lse_a) * ((a[k] - lse_a) - (b[k] - lse_b));
    return kl;
}

/* ---- bounds ---- */

/* What rounding to a type takes from a tensor at most, as root mean square over that of its values: a few
 * times what it takes from weights as models have them. A row in a wrong place gives 1 and more. */
static double rounding_of(gr_dtype dtype) {
    switch (dtype) {
    case GR_DTYPE_F32: return 1e-6;
    case GR_DTYPE_F16: return 1e-3;
    case GR_DTYPE_BF16: return 4e-3;
    case GR_DTYPE_Q8_0: return 0.03;
    case GR_DTYPE_Q6_K: return 0.1;
    case GR_DTYPE_Q5_0:
    case GR_DTYPE_Q5_1:
    case GR_DTYPE_Q5_K: return 0.2;
    default: return 0.35;
    }
}

/* Numbers that are too small for a half, or for a half as scale, may vanish. */
static double smallest_of(gr_dtype dtype) {
    return dtype == GR_DTYPE_F32 || dtype == GR_DTYPE_BF16 ? 0 : dtype == GR_DTYPE_F16 ? 6e-8 : 1e-5;
}

/* How far logits may be from those before rounding, as relative_error. Models amplify: SmolLM2-135M shows 0.01 for bf16, 0.08 for
 * q8_0, 0.13 for q6_k, 0.3 for q5_k_m and 0.4 for q4_k_m; logits of another model would give 1.4. */
static double bound_of(const gr_export *x, const gr_model *m) {
    double bf16 = m->compute == GR_DTYPE_F32 ? 0 : 0.05; /* the products before */
    switch (x->dtype) {
    case GR_DTYPE_F32: return 1e-3 + bf16;
    case GR_DTYPE_F16: return 0.02 + bf16;
    case GR_DTYPE_BF16: return 0.1 + bf16;
    case GR_DTYPE_Q8_0: return 0.5 + bf16;
    default: return 1;
    }
}

/* ---- tensors ---- */

enum { RUNS = 4, RUN_ROWS = 16 }; /* rows of a tensor that are compared: the first, the last, and two runs between */

/* back: room for RUN_ROWS rows. */
static graft_status check_tensor(const gr_export *x, int64_t i, const gr_weights *back_to, float *back, const char *path,
                                 graft_error *err) {
    const gr_weight_entry *there = gr_weights_find(back_to, x->source.entries[i].name);
    if (!there) return gr_fail(err, GRAFT_FAILED, "%s: %s is missing in what was written", path, x->source.entries[i].name);
    const gr_weight *found = &there->view;
    const gr_weight_entry *e = &x->source.entries[i];
    const float *wanted;
    /* a norm is rounded without its offset, and read as float32 with it */
    bool shifted = e->offset != 0 && !gr_weights_gguf(back_to);
    const gr_dtype_info *info = gr_dtype_get(found->dtype);
    gr_dtype written = shifted ? x->dtype : found->dtype;
    double offset = shifted ? (double)e->offset : 0, sum_error = shifted ? 2e-7 : 0; /* of the float32 sum */
    int64_t rows = e->view.rows, K = e->view.cols, n = GR_MIN(rows, RUN_ROWS), row_bytes = gr_dtype_bytes(found->dtype, K);
    double error = 0, power = 0, smallest = smallest_of(written);
    for (int run = 0; run < (n == rows ? 1 : RUNS); run++) {
        int64_t first = (rows - n) * run / (RUNS - 1);
        graft_status st = x->source.rows(x->source.context, i, first, n, &wanted, err);
        if (st != GRAFT_OK) return st;
        info->to_f32(back, (const char *)found->data + first * row_bytes, n * K);
        for (int64_t k = 0; k < n * K; k++) {
            double difference = fabs((double)wanted[k] - (double)back[k]);
            if (!(difference < INFINITY)) error = INFINITY;
            else if (difference > GR_MAX(smallest, sum_error * fabs((double)wanted[k]))) error += difference * difference;
            power += ((double)wanted[k] - offset) * ((double)wanted[k] - offset);
        }
    }
    double bound = rounding_of(written);
    if (error <= bound * bound * power) return GRAFT_OK;
    return gr_fail(
        err, GRAFT_FAILED,
        "%s: %s reads back with an error of %.2g of its size, rounding to %s explains %.2g at most: what was written is wrong",
        path, e->name, sqrt(error / fmax(power, 1e-300)), gr_dtype_get(written)->name, bound);
}

/* The numbers that shape the computation, what each layer computes, and the rotations of a few positions, which hold base and
 * scaling of RoPE. */
static graft_status check_config(const gr_model_config *a, const gr_model_config *b, const char *path, graft_error *err) {
    enum { POSITIONS = 16 };
    bool same = a->n_layers == b->n_layers && a->hidden == b->hidden && a->ffn == b->ffn && a->vocab == b->vocab &&
                a->n_heads == b->n_heads && a->n_kv_heads == b->n_kv_heads && a->head_dim == b->head_dim && a->tied == b->tied &&
                a->max_positions == b->max_positions && a->base_vocab == b->base_vocab && a->head_softcap == b->head_softcap &&
                gr_config_n_ropes(a) == gr_config_n_ropes(b) && gr_config_embed_scale(a) == gr_config_embed_scale(b) &&
                fabsf(a->norm_eps - b->norm_eps) <= 1e-6f * a->norm_eps;
    for (int64_t i = 0; same && i < a->n_layers; i++) {
        gr_layer_desc k = gr_config_layer(a, i), l = gr_config_layer(b, i);
        same = k.window == l.window && fabsf(k.attention_scale - l.attention_scale) <= 1e-6f * k.attention_scale &&
               k.softcap == l.softcap && k.activation == l.activation && k.rope == l.rope;
    }
    float *rope = gr_calloc(2 * POSITIONS * a->head_dim, sizeof *rope);
    if (!rope) return gr_fail_memory(err, path);
    for (int which = 0; same && which < gr_config_n_ropes(a); which++) {
        float *other = rope + POSITIONS * a->head_dim;
        gr_config_rope_table(a, which, rope, POSITIONS);
        gr_config_rope_table(b, which, other, POSITIONS);
        for (int64_t k = 0; k < POSITIONS * a->head_dim; k++) same &= fabsf(rope[k] - other[k]) < 1e-4f;
    }
    free(rope);
    return same ? GRAFT_OK : gr_fail(err, GRAFT_FAILED, "%s: reads back with another configuration", path);
}

graft_status gr_export_check(const gr_export *x, const gr_weights *written, const char *path, graft_error *err) {
    graft_status st;
    int64_t cols = 1;
    for (int64_t i = 0; i < x->source.n; i++) cols = GR_MAX(cols, x->source.entries[i].view.cols);
    float *back = gr_calloc(RUN_ROWS * cols, sizeof *back);
    if (!back) GR_TRY(gr_fail_memory(err, path));
    GR_TRY(check_config(x->config, gr_weights_config(written), path, err));
    for (int64_t i = 0; i < x->source.n; i++) GR_TRY(check_tensor(x, i, written, back, path, err));
done:
    free(back);
    return st;
}

/* ---- logits ---- */

static int64_t likeliest(const float *x, int64_t n) {
    int64_t best = 0;
    for (int64_t k = 1; k < n; k++)
        if (x[k] > x[best]) best = k;
    return best;
}

/* Logits of n rows: width apart. */
typedef struct logits {
    const float *rows;
    int64_t width;
} logits;

/* The first V logits of n rows before (a) and after (b). */
static graft_status compare(gr_merge_report *report, logits a, logits b, int64_t n, int64_t V, const char *path, graft_error *err) {
    double error = 0, power = 0;
    for (int64_t r = 0; r < n; r++) {
        const float *expected = a.rows + r * a.width, *found = b.rows + r * b.width;
        double sum = 0, squares = 0;
        for (int64_t k = 0; k < V; k++) {
            double e = (double)expected[k], difference = fabs(e - (double)found[k]);
            if (!isfinite(difference)) return gr_fail(err, GRAFT_FAILED, "%s: logits of the merged model are not finite", path);
            report->max_logit_difference = fmax(report->max_logit_difference, difference);
            report->largest_logit = fmax(report->largest_logit, fabs(e));
            sum += e, squares += e * e, error += difference * difference;
        }
        power += squares - sum * sum / (double)V;
        report->mean_kl += divergence(expected, found, V) / (double)n;
        report->n_changed += likeliest(expected, V) != likeliest(found, V);
    }
    report->n_probed = n;
    report->relative_error = error > 0 ? sqrt(error / fmax(power, 1e-30)) : 0;
    return GRAFT_OK;
}

graft_status gr_merge_probe(const gr_export *x, gr_model *m, const char *path, gr_merge_report *report, graft_error *err) {
    graft_status st;
    gr_model *merged = NULL;
    gr_batch b = {0};
    float *expected = NULL, *found = NULL;
    int64_t V = x->n_kept > 0 ? x->n_kept : m->config.vocab;
    GR_TRY(probe_batch(&b, x->tokenizer, V, text_tokens(m), err));
    GR_TRY(all_logits(&expected, m, &b, err));
    gr_log_mute(true);
    st = gr_model_open(&merged, path, (gr_machine){.threads = m->threads, .device = m->device}, GR_DTYPE_F32, TEXT_TOKENS, err);
    gr_log_mute(false);
    if (st != GRAFT_OK) {
        st = gr_fail_context(err, GRAFT_FAILED, "reading back what was written");
        goto done;
    }
    GR_TRY(gr_export_check(x, merged->weights, path, err));
    GR_TRY(all_logits(&found, merged, &b, err));
    GR_TRY(compare(report, (logits){expected, m->config.vocab}, (logits){found, merged->config.vocab}, b.n, V, path, err));
    for (int64_t i = 0; i < gr_weights_count(merged->weights); i++) {
        const gr_weight *w = &gr_weights_get(merged->weights, i)->view;
        report->n_bytes += gr_dtype_bytes(w->dtype, w->rows * w->cols);
    }
    report->n_tensors = gr_weights_count(merged->weights);
    if (report->relative_error > bound_of(x, m))
        st = gr_fail(err, GRAFT_FAILED,
                     "%s: the logits of what was written differ from those before by %.2g of their size, rounding to %s "
                     "explains %.2g at most: what was written is wrong",
                     path, report->relative_error, gr_dtype_get(x->dtype)->name, bound_of(x, m));
done:
    gr_model_free(merged);
    gr_batch_release(&b);
    free(expected);
    free(found);
    return st;
}
