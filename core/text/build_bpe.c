/* What the merges let one know before a text comes: where nothing ever joins, and which characters become one
 * symbol whatever stands beside them. */
#include <stdlib.h>
#include <string.h>

#include "core/text/encode.h"

/* The whole character that ends at piece[at]; -1 when the piece has a part of it alone. */
static int32_t character_before(const char *piece, int64_t at) {
    int64_t start = at - 1;
    while (start > 0 && at - start < 4 && ((uint8_t)piece[start] & 0xC0) == 0x80) start--;
    int size;
    int32_t point = gr_utf8_decode(piece + start, at - start, &size, NULL);
    return size == at - start ? point : -1;
}

static void add_joints(gr_joints *j, const char *piece, int64_t len) {
    for (int64_t i = 1; i < len; i++) {
        uint8_t last = (uint8_t)piece[i - 1], first = (uint8_t)piece[i];
        if ((first & 0xC0) == 0x80) continue; /* within a character */
        int size;
        int32_t left = character_before(piece, i), right = gr_utf8_decode(piece + i, len - i, &size, NULL);
        if (left < 0 || right < 0) j->parts[last * 4 + first / 64] |= (uint64_t)1 << first % 64;
        if (left < 0) left = GR_PART + last;
        if (right < 0) right = GR_PART + first;
        uint64_t place = gr_joint_place(j, left, right);
        j->pairs[place / 64] |= (uint64_t)1 << place % 64;
    }
}

/* Do all merges make the bytes of their two halves? A byte-level piece that stands for itself may not. */
static bool merges_keep_bytes(const gr_tokenizer *t) {
    for (uint64_t i = 0; t->byte_level && i <= t->pairs.mask; i++) {
        const gr_pair *pair = &t->pairs.slots[i];
        if (pair->key == UINT64_MAX) continue;
        const gr_piece *a = &t->pieces[pair->key >> 32], *b = &t->pieces[(uint32_t)pair->key], *ab = &t->pieces[pair->id];
        if (a->raw_len + b->raw_len != ab->raw_len || memcmp(ab->raw, a->raw, (size_t)a->raw_len) != 0 ||
            memcmp(ab->raw + a->raw_len, b->raw, (size_t)b->raw_len) != 0)
            return false;
    }
    return true;
}

static bool build_joints(gr_tokenizer *t) {
    gr_joints *j = &t->joints;
    uint64_t bits = 64;
    j->shift = 64 - 6;
    /* Pairs are about as many as pieces. Where text is characters, one that seems joined makes two words of the cache a new one. */
    for (; bits < (uint64_t)t->info.n_vocab * (t->byte_level ? 4 : 16); bits *= 2) j->shift--;
    j->pairs = gr_calloc((int64_t)(bits / 64), sizeof *j->pairs);
    if (!j->pairs) return false;
    for (int64_t i = 0; i < t->info.n_vocab; i++) {
        const gr_piece *p = &t->pieces[i];
        if (t->byte_level) add_joints(j, p->raw, p->raw_len);
        else add_joints(j, p->text, p->len);
    }
    if (!merges_keep_bytes(t)) { /* everything may be joined */
        memset(j->parts, 0xFF, sizeof j->parts);
        memset(j->pairs, 0xFF, (size_t)bits / 8);
    }
    return true;
}

/* Has every merge a higher rank than those that make its halves? Training makes such lists. *ordered is set. */
static bool check_order(const gr_tokenizer *t, bool *ordered) {
    int32_t *made = gr_calloc(t->info.n_vocab, sizeof *made); /* the rank after which a piece can be there */
    if (!made) return false;
    *ordered = true;
    for (uint64_t i = 0; i <= t->pairs.mask; i++) {
        const gr_pair *pair = &t->pairs.slots[i];
        if (pair->key != UINT64_MAX) made[pair->id] = GR_MAX(made[pair->id], pair->rank + 1);
    }
    for (uint64_t i = 0; i <= t->pairs.mask; i++) {
        const gr_pair *pair = &t->pairs.slots[i];
        if (pair->key == UINT64_MAX) continue;
        *ordered &= made[pair->key >> 32] <= pair->rank && made[(uint32_t)pair->key] <= pair->rank;
    }
    free(made);
    return true;
}

/* In an ordered list no merge takes a character before the merges within it are done, so a character that
 * becomes one piece alone may be that piece from the start. */
static bool build_characters(gr_tokenizer *t) {
    bool ordered;
    t->characters = gr_text_alloc(t, GR_LEN(t->classes), sizeof *t->characters);
    if (!t->characters || !check_order(t, &ordered)) return false;
    for (int i = 0; i < GR_LEN(t->classes); i++) t->characters[i] = -1;
    gr_scratch s = {0};
    gr_ids ids = {0};
    bool ok = true;
    for (int64_t i = 0; ordered && ok && i < t->info.n_vocab; i++) {
        const gr_piece *p = &t->pieces[i];
        if (p->raw_len < 2 || p->raw_len > 3) continue;
        int size;
        int32_t point = gr_utf8_decode(p->raw, p->raw_len, &size, NULL);
        if (point < 0 || size != p->raw_len) continue;
        ids.n = 0;
        ok = gr_bpe_merge(t, &s, p->raw, p->raw_len, &ids);
        if (ok && ids.n == 1) t->characters[point] = ids.data[0];
    }
    gr_ids_release(&ids);
    free(s.symbols);
    return ok;
}

/* Where texts are characters, the piece of each. */
static bool list_characters(gr_tokenizer *t) {
    int32_t *list = gr_text_alloc(t, GR_LEN(t->classes), sizeof *list);
    if (!list) return false;
    for (int i = 0; i < GR_LEN(t->classes); i++) list[i] = -1;
    for (int64_t i = 0; i < t->info.n_vocab; i++) {
        const gr_piece *p = &t->pieces[i];
        int size;
        if (p->len < 1 || p->len > 3) continue;
        const int32_t point = gr_utf8_decode(p->text, p->len, &size, NULL); /* raw may be another by now: an added token's */
        if (point >= 0 && size == p->len) list[point] = gr_table_find(&t->by_raw, p->text, p->len);
    }
    t->characters = list;
    return true;
}

bool gr_bpe_tables(gr_tokenizer *t) { return build_joints(t) && (t->byte_level ? build_characters(t) : list_characters(t)); }
