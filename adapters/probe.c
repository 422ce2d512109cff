/* The read-back of a merge: does the written model compute what base and adapter compute? */
#include "adapters/merge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/decoder.h"

enum { TEXT_TOKENS = 16 };

static const char *const texts[] = {
    "The quick brown fox jumps over the lazy dog, and 12 + 34 = 46.",
    "def area(radius):\n    return 3.14159 * radius ** 2",
    "\xe4\xbb\x8a\xe5\xa4\xa9\xe5\xa4\xa9\xe6\xb0\x94\xe5\xbe\x88\xe5\xa5\xbd\xef\xbc\x8c\xe6\x88\x91\xe4\xbb"
    "\xac\xe5\x8e\xbb\xe5\x85\xac\xe5"
    "\x9b\xad\xe6\x95\xa3\xe6\xad\xa5\xe3\x80\x82", /* "It is fine today, we take a walk in the park." */
    "Dear customer, thank you for your letter of the third of March.",
};

static graft_status probe_batch(gr_batch *b, const gr_tokenizer *t, int64_t vocab, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_ids ids = {0};
    for (int i = 0; i < GR_LEN(texts); i++) {
        int64_t n = 0;
        ids.n = 0;
        GR_TRY(gr_tokenizer_encode(t, texts[i], (int64_t)strlen(texts[i]), false, &ids, err));
        while (n < GR_MIN(ids.n, TEXT_TOKENS) && ids.data[n] >= 0 && ids.data[n] < vocab) n++;
        if (n > 0) GR_TRY(gr_batch_append(b, ids.data, NULL, n, (uint64_t)i, err));
    }
    if (b->n == 0)
        st = gr_fail(err, GRAFT_BAD_INPUT,
                     "the tokenizer gives no ids that the model has: do they belong together?");
done:
    gr_ids_release(&ids);
    return st;
}

/* logits[n,V] of every row, owned. */
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

graft_status gr_merge_probe(gr_model *m, const gr_tokenizer *t, const char *path, gr_merge_report *report,
                            graft_error *err) {
    graft_status st;
    gr_batch b = {0};
    gr_model *merged = NULL;
    float *expected = NULL, *found = NULL;
    double largest = 0;
    int64_t V = m->config.vocab;
    GR_TRY(probe_batch(&b, t, V, err));
    GR_TRY(all_logits(&expected, m, &b, err));
    if ((st = gr_model_open(&merged, path, m->device, GR_DTYPE_F32, TEXT_TOKENS, err)) != GRAFT_OK) {
        st = gr_fail_context(err, GRAFT_FAILED, "reading back what was written");
        goto done;
    }
    if (merged->config.vocab != V)
        GR_TRY(gr_fail(err, GRAFT_FAILED, "%s: reads back with another vocabulary", path));
    GR_TRY(all_logits(&found, merged, &b, err));
    for (int64_t k = 0; k < b.n * V; k++) {
        double difference = fabs((double)expected[k] - (double)found[k]);
        if (!isfinite(difference))
            GR_TRY(gr_fail(err, GRAFT_FAILED, "%s: logits of the merged model are not finite", path));
        report->max_logit_difference = fmax(report->max_logit_difference, difference);
        largest = fmax(largest, fabs((double)expected[k]));
    }
    for (int64_t r = 0; r < b.n; r++)
        report->mean_kl += divergence(expected + r * V, found + r * V, V) / (double)b.n;
    for (int64_t i = 0; i < gr_weights_count(merged->weights); i++) {
        const gr_weight *w = &gr_weights_get(merged->weights, i)->view;
        report->n_bytes += gr_dtype_bytes(w->dtype, w->rows * w->cols);
    }
    report->n_tensors = gr_weights_count(merged->weights);
    if (m->head.compute == GR_DTYPE_F32 && merged->embed.dtype == GR_DTYPE_F32 &&
        report->max_logit_difference > 1e-2 * largest)
        st = gr_fail(err, GRAFT_FAILED,
                     "%s: float32 logits differ by %g from base and adapter: the merge is wrong", path,
                     report->max_logit_difference);
done:
    gr_model_free(merged);
    gr_batch_release(&b);
    free(expected);
    free(found);
    return st;
}
