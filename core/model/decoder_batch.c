/* decoder_batch.c - a batch on its way to the device: checked, staged on the host in one piece, uploaded. */
#include <string.h>

#include "core/model/decoder_impl.h"

graft_status gr_decoder_check(const gr_decoder *d, const gr_batch *b, graft_error *err) {
    if (b->n > d->o.max_tokens)
        return gr_fail(err, GRAFT_FAILED, "a batch of %lld tokens is larger than the planned %lld", (long long)b->n,
                       (long long)d->o.max_tokens);
    graft_status st = gr_model_place(d->m, err); /* adapters may have come or gone since the decoder was made */
    if (st != GRAFT_OK) return st;
    for (int64_t i = 0; i < b->n; i++) {
        if (b->positions[i] < 0 || b->positions[i] >= d->m->rope_positions)
            return gr_fail(err, GRAFT_BAD_USAGE,
                           "%s: a sequence has more than %lld tokens, the context of the model: shorten the data with max_length",
                           gr_weights_path(d->m->weights), (long long)d->m->rope_positions);
        if (b->tokens[i] < 0 || b->tokens[i] >= d->m->config.vocab)
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "token id %d is outside the model's vocabulary of %lld: does the tokenizer belong to this model?",
                           b->tokens[i], (long long)d->m->config.vocab);
        if (b->weight[i] != 0 && (b->targets[i] < 0 || b->targets[i] >= d->m->config.vocab))
            return gr_fail(err, GRAFT_BAD_INPUT, "target id %d is outside the model's vocabulary of %lld", b->targets[i],
                           (long long)d->m->config.vocab);
    }
    return GRAFT_OK;
}

static int64_t count_placed(const gr_segment *s, const gr_batch *b) {
    int64_t n = 0;
    for (int64_t i = 0; s->n && i < b->n; i++) n += s->place[b->tokens[i]] >= 0;
    return n;
}

/* Rows whose token is in the embedding's segment. */
static void stage_placed(const gr_segment *s, const gr_batch *b, gr_device_batch *host) {
    int64_t at = 0;
    for (int64_t i = 0; s->n && i < b->n; i++)
        if (s->place[b->tokens[i]] >= 0) host->placed[at] = (int32_t)i, host->placed_row[at++] = s->place[b->tokens[i]];
}

gr_device_batch gr_decoder_stage(gr_decoder *d, const gr_batch *b, int64_t n_head, bool cached) {
    gr_device_batch host = {.n = b->n, .n_seqs = b->n_seqs, .n_head = n_head, .n_placed = count_placed(&d->m->embed_rows, b)};
    (void)gr_device_batch_place(&host, d->staging, cached);
    memcpy(host.tokens, b->tokens, (size_t)b->n * sizeof *b->tokens);
    memcpy(host.positions, b->positions, (size_t)b->n * sizeof *b->positions);
    memcpy(host.row_key, b->row_key, (size_t)b->n * sizeof *b->row_key);
    stage_placed(&d->m->embed_rows, b, &host);
    for (int64_t s = 0; s < b->n_seqs; s++) {
        int64_t start = b->offset[s], len = b->offset[s + 1] - start;
        host.seqs[s] = (gr_seq){.q_start = start, .q_len = len, .kv_start = start, .kv_len = len};
    }
    return host;
}

gr_device_batch gr_decoder_stage_targets(gr_decoder *d, const gr_batch *b, float scale) {
    int64_t n_head = 0, at = 0;
    for (int64_t i = 0; i < b->n; i++) n_head += b->weight[i] != 0;
    gr_device_batch host = gr_decoder_stage(d, b, n_head, false);
    for (int64_t i = 0; i < b->n; i++) {
        if (b->weight[i] == 0) continue;
        host.head_row[at] = (int32_t)i, host.head_target[at] = b->targets[i], host.head_key[at] = b->row_key[i];
        host.head_weight[at] = b->weight[i], host.head_gradient[at++] = b->weight[i] * scale;
    }
    return host;
}

gr_device_batch gr_decoder_upload(gr_decoder *d, const gr_device_batch *host, bool cached) {
    gr_device *dev = d->dev;
    gr_device_batch b = *host;
    d->turn = cached ? 0 : (d->turn + 1) % gr_decoder_batches(d);
    int64_t bytes = gr_device_batch_place(&b, d->batch[d->turn], cached);
    if (cached) dev->upload(dev, d->batch[d->turn], d->staging, bytes);
    else dev->wait(dev, GR_QUEUE_COMPUTE, dev->upload_beside(dev, d->batch[d->turn], d->staging, bytes, d->batch_read[d->turn]));
    return b;
}

void gr_decoder_batch_read(gr_decoder *d) { d->batch_read[d->turn] = d->dev->mark(d->dev, GR_QUEUE_COMPUTE); }
