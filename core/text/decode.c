/* From ids back to text, whole or as a stream. */
#include <stdlib.h>
#include <string.h>

#include "core/text/impl.h"

static bool is_hidden(const gr_tokenizer *t, int32_t id, bool skip_special) {
    return skip_special && (t->pieces[id].type == GR_PIECE_CONTROL || t->pieces[id].type == GR_PIECE_UNKNOWN);
}

static graft_status check_id(const gr_tokenizer *t, int32_t id, graft_error *err) {
    if (id >= 0 && id < t->info.n_vocab) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT, "token id %d is outside the vocabulary (0 to %lld)", id, (long long)t->info.n_vocab - 1);
}

static void put_piece(const gr_tokenizer *t, int32_t id, bool first, gr_str *out) {
    const gr_piece *p = &t->pieces[id];
    if (t->byte_level) {
        gr_str_add(out, p->raw, p->raw_len);
        return;
    }
    if (p->type == GR_PIECE_BYTE) {
        char byte = (char)strtol(p->text + 3, NULL, 16); /* <0x41> */
        if (!(first && byte == ' ' && t->lead == GR_LEAD_DROP_ONE)) gr_str_putc(out, byte);
        return;
    }
    const char *s = p->raw;
    for (int64_t i = 0; i < p->raw_len;) {
        if (i + 3 <= p->raw_len && memcmp(s + i, GR_META_SPACE, 3) == 0) {
            bool drop = first && (t->lead == GR_LEAD_DROP_FIRST_PIECE || (t->lead == GR_LEAD_DROP_ONE && i == 0));
            if (!drop) gr_str_putc(out, ' ');
            i += 3;
        } else {
            gr_str_putc(out, s[i++]);
        }
    }
}

/* As HF's ByteFallback: a run of byte pieces that is not wholly UTF-8 is one U+FFFD a byte. */
static void end_bytes(gr_str *out, int64_t *start) {
    int64_t n = *start < 0 ? 0 : out->len - *start;
    if (n > 0 && !out->failed && !gr_utf8_valid(out->data + *start, n)) {
        out->len = *start;
        for (int64_t i = 0; i < n; i++) gr_str_puts(out, "\xef\xbf\xbd");
    }
    *start = -1;
}

graft_status gr_tokenizer_decode(const gr_tokenizer *t, const int32_t *ids, int64_t n, bool skip_special, gr_str *out,
                                 graft_error *err) {
    bool first = true;
    int64_t bytes = -1; /* where in out the run of byte pieces starts */
    for (int64_t i = 0; i < n; i++) {
        graft_status st = check_id(t, ids[i], err);
        if (st != GRAFT_OK) return st;
        if (is_hidden(t, ids[i], skip_special)) continue;
        bool is_byte = !t->byte_level && t->pieces[ids[i]].type == GR_PIECE_BYTE;
        if (!is_byte) end_bytes(out, &bytes);
        if (is_byte && bytes < 0) bytes = out->len;
        put_piece(t, ids[i], first, out);
        first = false;
    }
    end_bytes(out, &bytes);
    gr_str_add(out, "", 0);
    return out->failed ? gr_fail_memory(err, "decoding") : GRAFT_OK;
}

/* Move whole characters from pending to out; a bad byte becomes U+FFFD, a cut character stays. */
static void drain(gr_decode_stream *s, gr_str *out) {
    while (s->n_pending > 0) {
        int size;
        bool cut;
        int32_t point = gr_utf8_decode(s->pending, s->n_pending, &size, &cut);
        if (cut) return;
        if (point < 0) gr_str_add(out, "\xef\xbf\xbd", 3);
        else gr_str_add(out, s->pending, size);
        s->n_pending -= size;
        memmove(s->pending, s->pending + size, (size_t)s->n_pending);
    }
}

graft_status gr_tokenizer_stream(const gr_tokenizer *t, gr_decode_stream *s, int32_t id, bool skip_special, gr_str *out,
                                 graft_error *err) {
    graft_status st = check_id(t, id, err);
    if (st != GRAFT_OK || is_hidden(t, id, skip_special)) return st;
    gr_str bytes = {0};
    put_piece(t, id, !s->started, &bytes);
    s->started = true;
    for (int64_t i = 0; i < bytes.len; i++) {
        s->pending[s->n_pending++] = bytes.data[i];
        drain(s, out);
    }
    bool failed = bytes.failed || out->failed;
    gr_str_release(&bytes);
    return failed ? gr_fail_memory(err, "decoding") : GRAFT_OK;
}

void gr_decode_stream_flush(gr_decode_stream *s, gr_str *out) {
    if (s->n_pending > 0) gr_str_add(out, "\xef\xbf\xbd", 3);
    s->n_pending = 0;
}
