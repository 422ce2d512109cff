/* Texts to counted words: cut wherever no piece, old or new, can have both sides. */
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/text/learn_impl.h"

enum { MOST_BYTES = 1024 }; /* of a word; a longer one is cut, and what stands across the cut not counted */

void gr_bag_release(gr_bag *b) {
    gr_str_release(&b->text);
    free(b->words);
    free(b->slots);
    *b = (gr_bag){0};
}

static bool grow_slots(gr_bag *b) {
    uint64_t size = b->slots ? (b->mask + 1) * 2 : 1024;
    uint32_t *slots = gr_calloc((int64_t)size, sizeof *slots);
    if (!slots) return false;
    free(b->slots);
    b->slots = slots;
    b->mask = size - 1;
    for (int64_t k = 0; k < b->n; k++) {
        uint64_t i = b->words[k].hash & b->mask;
        while (slots[i]) i = (i + 1) & b->mask;
        slots[i] = (uint32_t)k + 1;
    }
    return true;
}

bool gr_bag_add(gr_bag *b, const char *word, int32_t len, uint64_t hash, int64_t count) {
    if ((!b->slots || (uint64_t)b->n * 2 > b->mask) && !grow_slots(b)) return false;
    uint64_t i = hash & b->mask;
    for (uint32_t at; (at = b->slots[i]) != 0; i = (i + 1) & b->mask) {
        gr_bag_word *known = &b->words[at - 1];
        if (known->hash != hash || known->len != len || memcmp(b->text.data + known->start, word, (size_t)len) != 0) continue;
        known->count += count;
        return true;
    }
    if (b->n >= UINT32_MAX - 1 || !gr_grow(&b->words, &b->capacity, b->n + 1, sizeof *b->words)) return false;
    b->words[b->n] = (gr_bag_word){.start = b->text.len, .count = count, .hash = hash, .len = len};
    b->slots[i] = (uint32_t)++b->n;
    gr_str_add(&b->text, word, len);
    return !b->text.failed;
}

static uint8_t script_of(const gr_learner *l, uint32_t point) { return point < 65536 ? l->scripts[point] : gr_script(point); }

static bool is_space(const gr_learner *l, int32_t point) { return point == (l->spm ? 0x2581 : ' '); }

bool gr_learn_flags(gr_learn_worker *w, const char *word, int64_t len) {
    enum { NONE = 255 };
    const gr_learner *l = w->l;
    uint8_t before = NONE;
    bool in_before = false, digit_before = false, space_before = false;
    if (!gr_grow(&w->flags, &w->flags_capacity, len, 1)) return false;
    int size, next_size;
    for (int64_t i = 0; i < len; i += size) {
        int32_t point = gr_utf8_read(word + i, len - i, &size);
        bool space = is_space(l, point);
        int32_t next = space && i + size < len ? gr_utf8_read(word + i + size, len - i - size, &next_size) : -1;
        uint8_t script = space ? NONE : script_of(l, (uint32_t)point), seen;
        if (script == GR_SCRIPT_INHERITED) script = before == NONE ? GR_SCRIPT_COMMON : before;
        seen = space ? (next < 0 || is_space(l, next) ? NONE : script_of(l, (uint32_t)next)) : script; /* a space is its word's */
        bool in = !l->o.only || (seen != NONE && l->o.only >> seen & 1);
        bool digit = l->o.split_digits && gr_char_class(l->base, (uint32_t)point) & GR_CLASS_NUMBER;
        if (l->spm && script == GR_SCRIPT_CJK_SIGN) script = GR_SCRIPT_COMMON;
        bool cut = i > 0 && (in != in_before || digit || digit_before);
        /* SentencePiece: a piece is of one script and has a space at its start alone, or spaces alone */
        if (l->spm && i > 0) cut |= space ? !space_before || (next >= 0 && !is_space(l, next)) : !space_before && script != before;
        memset(w->flags + i, in ? GR_LEARN_IN : 0, (size_t)size);
        if (cut) w->flags[i] |= GR_LEARN_CUT;
        before = script;
        in_before = in;
        digit_before = digit;
        space_before = space;
    }
    return true;
}

static bool add_part(gr_learn_worker *w, const char *part, int64_t len) {
    uint64_t hash = XXH3_64bits(part, (size_t)len);
    return gr_bag_add(&w->bags[hash >> 60], part, (int32_t)len, hash, 1);
}

/* Does a piece of the base have both the character before word[at] and that at it? */
static bool is_joined(const gr_learner *l, const char *word, int64_t at, int64_t len) {
    int64_t start = at - 1;
    int size, left_size;
    while (start > 0 && ((uint8_t)word[start] & 0xC0) == 0x80) start--;
    int32_t left = gr_utf8_read(word + start, at - start, &left_size), right = gr_utf8_read(word + at, len - at, &size);
    return gr_joined(&l->base->joints, left, right, (uint8_t)word[at - 1], (uint8_t)word[at]);
}

static bool on_word(void *context, const char *word, int64_t len) {
    gr_learn_worker *w = context;
    if (!gr_learn_flags(w, word, len)) return false;
    bool in = false;
    int64_t start = 0;
    for (int64_t i = 0; i <= len; i++) {
        bool end = i == len;
        if (!end && ((uint8_t)word[i] & 0xC0) != 0x80)
            end = i - start >= MOST_BYTES || (w->flags[i] & GR_LEARN_CUT && !is_joined(w->l, word, i, len));
        if (end) {
            if (in && !add_part(w, word + start, i - start)) return false;
            start = i;
            in = false;
        }
        if (i < len) in |= w->flags[i] & GR_LEARN_IN;
    }
    return true;
}

graft_status gr_learner_add(gr_learner *l, int worker, const char *text, int64_t len, graft_error *err) {
    gr_learn_worker *w = &l->workers[worker];
    if (!l->spm) return len ? gr_tokenizer_words(l->base, text, len, on_word, w, err) : GRAFT_OK;
    graft_status st = GRAFT_OK;
    for (int64_t at = 0, end; at < len && st == GRAFT_OK; at = end + 1) {
        const char *newline = memchr(text + at, '\n', (size_t)(len - at));
        end = newline ? newline - text : len;
        int64_t n = end - at - (end > at && text[end - 1] == '\r');
        if (n > 0) st = gr_tokenizer_words(l->base, text + at, n, on_word, w, err);
    }
    return st;
}
