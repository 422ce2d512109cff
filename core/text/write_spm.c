#include "core/text/write_spm.h"

#include <string.h>

enum { VARINT = 0, LENGTH = 2, FIXED32 = 5 }; /* protobuf's wire types */

static void put_varint(gr_str *s, uint64_t v) {
    for (; v >= 0x80; v >>= 7) gr_str_putc(s, (char)(0x80 | (v & 0x7F)));
    gr_str_putc(s, (char)v);
}

void gr_spm_put_number(gr_str *s, uint32_t field, int64_t v) {
    put_varint(s, (uint64_t)field << 3 | VARINT);
    put_varint(s, (uint64_t)v);
}

void gr_spm_put_bytes(gr_str *s, uint32_t field, const char *bytes, int64_t n) {
    put_varint(s, (uint64_t)field << 3 | LENGTH);
    put_varint(s, (uint64_t)n);
    gr_str_add(s, bytes, n);
}

static void put_message(gr_str *s, uint32_t field, gr_str *message) {
    gr_spm_put_bytes(s, field, message->data, message->len);
    s->failed |= message->failed;
    gr_str_release(message);
}

/* ModelProto.pieces: piece, score, type, of which NORMAL is what is meant where there is none. */
void gr_spm_put_piece(gr_str *s, const char *text, int64_t len, float score, gr_piece_type type) {
    gr_str piece = {0};
    gr_spm_put_bytes(&piece, 1, text, len);
    put_varint(&piece, 2 << 3 | FIXED32);
    gr_str_add(&piece, (const char *)&score, sizeof score);
    if (type != GR_PIECE_NORMAL) gr_spm_put_number(&piece, 3, type);
    put_message(s, 1, &piece);
}

/* ModelProto.trainer_spec.vocab_size */
void gr_spm_put_size(gr_str *s, int64_t n_pieces) {
    gr_str trainer = {0};
    gr_spm_put_number(&trainer, 4, n_pieces);
    put_message(s, 2, &trainer);
}
