/* SentencePiece's normalisation nmt_nfkc as a precompiled character map: NFKC, with control characters left out and what is like a
 * space as a space. Format: bytes of a double array (darts-clone: unit = offset, flag of a leaf, label), the array, replacements
 * each ended by NUL. Its own map also lists compatibility characters before marks, which ours makes in two steps or not at all. */
#include <stdlib.h>
#include <string.h>

#include <utf8proc.h>

#include "core/text/encode.h"

enum { NEAR = 1024, WIDE_TILDE = 0xFF5E }; /* the latter stays, Japanese uses it otherwise than the narrow one */

typedef struct rule {
    char key[24];
    uint8_t key_len;
    int32_t to; /* place in the replacements */
} rule;

typedef struct builder {
    rule *rules;
    int64_t n, capacity;
    gr_str texts;
    uint32_t *units;
    uint8_t *taken; /* 1: the unit is in use, 2: a node's children lie from here */
    int64_t n_units, units_capacity, taken_capacity, first_free;
    bool failed;
} builder;

/* Controls that go, and what becomes a space, as in SentencePiece's builder. */
static const uint32_t SPACES[] = {0x09,   0x0A,   0x0C,   0x0D,   0x61C,  0x1680, 0x200B, 0x200C,
                                  0x200E, 0x200F, 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD};

static bool is_space(uint32_t point) {
    for (int i = 0; i < GR_LEN(SPACES); i++)
        if (SPACES[i] == point) return true;
    return false;
}

static bool is_dropped(uint32_t point) {
    return (point < 0x20 && !is_space(point)) || point == 0x7F || point == 0x8F || point == 0x9F;
}

static void add_rule(builder *b, const char *key, int64_t key_len, const char *to, int64_t to_len) {
    if (key_len > (int64_t)sizeof b->rules->key || memchr(key, 0, (size_t)key_len)) return;
    if (!gr_grow(&b->rules, &b->capacity, b->n + 1, sizeof *b->rules)) {
        b->failed = true;
        return;
    }
    rule *r = &b->rules[b->n++];
    memcpy(r->key, key, (size_t)key_len);
    r->key_len = (uint8_t)key_len;
    r->to = (int32_t)b->texts.len;
    gr_str_add(&b->texts, to, to_len);
    gr_str_putc(&b->texts, '\0');
    b->failed |= b->texts.failed;
}

/* s[n] in a Unicode form, owned; NULL when out of memory. */
static char *form(const char *s, int64_t n, utf8proc_option_t options) {
    utf8proc_uint8_t *out = NULL;
    utf8proc_map((const utf8proc_uint8_t *)s, n, &out, options | UTF8PROC_STABLE);
    return (char *)out;
}

/* Sequences that compose to the character: its first k parts composed to one, and the rest. */
static void add_sequences(builder *b, const char *character, int64_t len, const char *parts) {
    int64_t n = (int64_t)strlen(parts);
    int size;
    for (int64_t i = 0; i < n; i += size) {
        gr_utf8_decode(parts + i, n - i, &size, NULL);
        if (i + size == n) break;
        char *head = form(parts, i + size, UTF8PROC_COMPOSE), key[64];
        int head_size;
        if (!head) {
            b->failed = true;
            return;
        }
        int64_t head_len = (int64_t)strlen(head);
        gr_utf8_decode(head, head_len, &head_size, NULL);
        if (head_size == head_len && head_len + n - i - size <= (int64_t)sizeof key) {
            memcpy(key, head, (size_t)head_len);
            memcpy(key + head_len, parts + i + size, (size_t)(n - i - size));
            add_rule(b, key, head_len + n - i - size, character, len);
        }
        free(head);
    }
}

static void add_character(builder *b, uint32_t point) {
    char s[4];
    int len = gr_utf8_encode(point, s);
    if (point == WIDE_TILDE) return;
    if (is_space(point) || is_dropped(point)) {
        add_rule(b, s, len, " ", is_space(point));
        return;
    }
    char *composed = form(s, len, UTF8PROC_COMPOSE | UTF8PROC_COMPAT), *parts = form(s, len, UTF8PROC_DECOMPOSE);
    bool same = composed && strlen(composed) == (size_t)len && memcmp(composed, s, (size_t)len) == 0;
    b->failed |= !composed || !parts;
    if (composed && !same) add_rule(b, s, len, composed, (int64_t)strlen(composed));
    if (same && parts && strcmp(parts, composed) != 0) add_sequences(b, s, len, parts);
    free(composed);
    free(parts);
}

static int compare_rules(const void *a, const void *b) {
    const rule *x = a, *y = b;
    int order = memcmp(x->key, y->key, GR_MIN(x->key_len, y->key_len));
    return order ? order : (int)x->key_len - (int)y->key_len;
}

/* ---- the double array ---- */

static bool room(builder *b, int64_t n) { /* in whole blocks, so that a step from within never leaves it */
    n = (n + 255) / 256 * 256;
    if (!gr_grow(&b->units, &b->units_capacity, n, sizeof *b->units) || !gr_grow(&b->taken, &b->taken_capacity, n, 1)) return false;
    for (; b->n_units < n; b->n_units++) b->units[b->n_units] = b->taken[b->n_units] = 0;
    return true;
}

/* A place whose units at place ^ label are free. */
static int64_t find_place(builder *b, const uint8_t *labels, int n) {
    while (b->first_free < b->n_units && b->taken[b->first_free] & 1) b->first_free++;
    for (int64_t unit = GR_MAX(b->first_free, b->n_units - NEAR);; unit++) { /* what is nearly full is not searched again */
        if (!room(b, unit + 1)) return -1;
        int64_t place = unit ^ labels[0];
        bool fits = place > 0 && !(b->taken[place] & 2);
        for (int i = 0; i < n && fits; i++) fits = !(b->taken[place ^ labels[i]] & 1);
        if (fits) return place;
    }
}

/* Units for the rules [first, end), which share depth bytes and follow `unit`. */
static void build_node(builder *b, int64_t unit, int64_t first, int64_t end, int depth) {
    uint8_t labels[256];
    int64_t starts[257];
    int n = 0;
    for (int64_t i = first; i < end; i++) {
        uint8_t label = b->rules[i].key_len == depth ? 0 : (uint8_t)b->rules[i].key[depth];
        if (n > 0 && labels[n - 1] == label) continue;
        labels[n] = label;
        starts[n++] = i;
    }
    starts[n] = end;
    int64_t place = find_place(b, labels, n);
    if (place < 0) {
        b->failed = true;
        return;
    }
    b->taken[place] |= 2;
    b->units[unit] |= (uint32_t)(unit ^ place) << 10 | (labels[0] == 0 ? 1u << 8 : 0);
    for (int i = 0; i < n; i++) b->taken[place ^ labels[i]] |= 1;
    for (int i = 0; i < n && !b->failed; i++) {
        int64_t child = place ^ labels[i];
        if (labels[i] == 0) {
            b->units[child] = (uint32_t)b->rules[starts[i]].to | 1u << 31;
        } else {
            b->units[child] = labels[i];
            build_node(b, child, starts[i], starts[i + 1], depth + 1);
        }
    }
}

bool gr_charsmap_nfkc(gr_str *out) {
    builder b = {0};
    for (uint32_t point = 1; point < 0x110000 && !b.failed; point++)
        if (utf8proc_category((utf8proc_int32_t)point) != UTF8PROC_CATEGORY_CN && (point < 0xD800 || point >= 0xE000))
            add_character(&b, point);
    if (!b.failed) {
        qsort(b.rules, (size_t)b.n, sizeof *b.rules, compare_rules);
        int64_t n = 0;
        for (int64_t i = 0; i < b.n; i++) /* one of each key */
            if (i == 0 || compare_rules(&b.rules[i], &b.rules[n - 1]) != 0) b.rules[n++] = b.rules[i];
        b.n = n;
        b.failed = !room(&b, 1);
    }
    if (!b.failed) {
        b.taken[0] |= 1;
        build_node(&b, 0, 0, b.n, 0);
    }
    uint32_t bytes = (uint32_t)(b.n_units * 4);
    if (!b.failed) {
        gr_str_add(out, (const char *)&bytes, 4);
        gr_str_add(out, (const char *)b.units, b.n_units * 4);
        gr_str_add(out, b.texts.data, b.texts.len);
    }
    bool ok = !b.failed && !out->failed;
    free(b.rules);
    free(b.units);
    free(b.taken);
    gr_str_release(&b.texts);
    return ok;
}
