#include "core/data/dataset.h"

#include <string.h>

/* Whether the text of ids, tokenised anew, is other ids: a control token's text that is no control token, say. */
static graft_status hides_ids(const gr_tokenizer *t, const int32_t *ids, int64_t n, bool *hides, graft_error *err) {
    graft_status st;
    gr_str text = {0};
    gr_ids again = {0};
    GR_TRY(gr_tokenizer_decode(t, ids, n, false, &text, err));
    GR_TRY(gr_tokenizer_encode(t, text.data, text.len, true, &again, err));
    *hides = again.n != n || memcmp(again.data, ids, (size_t)n * sizeof *ids) != 0;
done:
    gr_str_release(&text);
    gr_ids_release(&again);
    return st;
}

graft_status gr_dataset_preview(const gr_dataset *d, const gr_tokenizer *t, int64_t first, int64_t n, bool colour, FILE *out,
                                graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_str text = {0};
    gr_tokens read = {0};
    const char *open = colour ? "\033[32m" : "[[", *close = colour ? "\033[0m" : "]]";
    for (int64_t i = GR_MAX(0, first); i < d->n_samples && n > 0; i++, n--) {
        int64_t len = d->offset[i + 1] - d->offset[i], n_targets = 0;
        const int32_t *ids;
        const uint8_t *targets;
        GR_TRY(gr_dataset_read(d, i, &read, &ids, &targets, err));
        gr_decode_stream stream = {0};
        bool marked = false;
        gr_str_clear(&text);
        for (int64_t k = 0; k < len; k++) {
            bool target = targets[k] == GR_TARGET_LEARNED;
            n_targets += target;
            if (target != marked) { /* a character cut by the border of the mask shows as U+FFFD on both sides */
                gr_decode_stream_flush(&stream, &text);
                gr_str_puts(&text, target ? open : close);
            }
            marked = target;
            GR_TRY(gr_tokenizer_stream(t, &stream, ids[k], false, &text, err));
        }
        gr_decode_stream_flush(&stream, &text);
        if (marked) gr_str_puts(&text, close);
        if (text.failed) GR_TRY(gr_fail_memory(err, "preview"));
        fprintf(out, "--- sample %lld: %lld tokens, %lld targets ---\n%s\n", (long long)i, (long long)len, (long long)n_targets,
                text.data);
        bool hides;
        GR_TRY(hides_ids(t, ids, len, &hides, err));
        if (hides) {
            fprintf(out, "ids, which this text alone would not give:");
            for (int64_t k = 0; k < len; k++) fprintf(out, " %d", ids[k]);
            fprintf(out, "\n");
        }
        if (ferror(out)) GR_TRY(gr_fail_errno(err, GRAFT_FAILED, "preview: cannot write"));
    }
done:
    gr_tokens_release(&read);
    gr_str_release(&text);
    return st;
}
