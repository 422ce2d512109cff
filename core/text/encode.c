/* The way from text to ids: the stages in order, and added tokens. */
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/text/encode.h"

void gr_ids_release(gr_ids *ids) {
    free(ids->data);
    *ids = (gr_ids){0};
}

bool gr_ids_push(gr_ids *ids, int32_t id) {
    if (ids->n == ids->capacity && !gr_grow(&ids->data, &ids->capacity, ids->n + 1, sizeof *ids->data)) return false;
    ids->data[ids->n++] = id;
    return true;
}

bool gr_push_unknown(const gr_tokenizer *t, const char *text, int64_t len, bool after_unknown, gr_ids *ids) {
    bool bytes = t->byte_fallback;
    for (int64_t i = 0; bytes && i < len; i++) bytes = t->byte_ids[(uint8_t)text[i]] >= 0;
    if (bytes) {
        for (int64_t i = 0; i < len; i++)
            if (!gr_ids_push(ids, t->byte_ids[(uint8_t)text[i]])) return false;
        return true;
    }
    if (t->model_unk < 0 && len > 0 && !atomic_exchange(t->told_drops, true))
        gr_warn(
            "the tokenizer has no piece for the byte 0x%02X and no unknown token: such bytes leave nothing, as in HF tokenizers",
            (uint8_t)text[0]);
    if (t->model_unk < 0 || (t->fuse_unk && after_unknown)) return true;
    return gr_ids_push(ids, t->model_unk);
}

/* Bytes of white space at the start or the end of s[0..n). */
static int64_t space_prefix(const gr_tokenizer *t, const char *s, int64_t n) {
    int64_t i = 0;
    for (int size; i < n; i += size)
        if (!(gr_class_at(t, s + i, n - i, &size) & GR_CLASS_SPACE)) break;
    return i;
}

static uint8_t last_class(const gr_tokenizer *t, const char *s, int64_t n, int64_t *start) {
    int64_t i = n - 1;
    while (i > 0 && ((uint8_t)s[i] & 0xC0) == 0x80) i--;
    int size;
    *start = i;
    return gr_class_at(t, s + i, n - i, &size);
}

/* Is the match from start to end a word of its own (no letter, number, mark or '_' on either side)? */
static bool stands_alone(const gr_tokenizer *t, const char *text, int64_t len, int64_t start, int64_t end) {
    const uint8_t word = GR_CLASS_LETTER | GR_CLASS_NUMBER | GR_CLASS_MARK | GR_CLASS_WORD_EXTRA;
    int64_t at;
    int size;
    if (start > 0 && last_class(t, text, start, &at) & word) return false;
    return end == len || !(gr_class_at(t, text + end, len - end, &size) & word);
}

bool gr_added_next(const gr_tokenizer *t, const gr_prefix_set *set, const char *text, int64_t len, int64_t from, bool special,
                   gr_match *m) {
    if (set->n == 0) return false;
    for (int64_t i = from; i < len; i++) {
        if (set->only >= 0) {
            const char *start = memchr(text + i, set->only, (size_t)(len - i));
            if (!start) return false;
            i = start - text;
        }
        uint8_t b = (uint8_t)text[i];
        if (set->first[b] == set->first[b + 1]) continue;
        gr_prefix_walk walk = {0};
        int32_t value, found = -1;
        int64_t end = i;
        for (int64_t j = i; j < len && gr_prefix_step(set, &walk, (uint8_t)text[j], &value); j++)
            if (value >= 0) found = value, end = j + 1;
        if (found < 0) continue;
        const gr_added *a = &t->added[found];
        if ((a->special && !special) || (a->single_word && !stands_alone(t, text, len, i, end))) {
            i = end - 1; /* as HF: the text of a refused match is not searched again */
            continue;
        }
        *m = (gr_match){.start = i, .end = end, .at = i, .id = a->id, .special = a->special};
        int64_t at;
        if (a->lstrip)
            while (m->start > from && last_class(t, text, m->start, &at) & GR_CLASS_SPACE) m->start = at;
        if (a->rstrip) m->end += space_prefix(t, text + end, len - end);
        return true;
    }
    return false;
}

typedef struct job {
    const gr_tokenizer *t;
    gr_scratch s;
    gr_ids *ids;
    bool special;            /* control tokens are parsed */
    const gr_range *trusted; /* where alone they are, [n_trusted], in order; NULL: everywhere */
    int64_t n_trusted;
    const char *text;  /* all of it */
    gr_layout *layout; /* NULL: not wanted */
    gr_word_fn *word;  /* takes the words in place of the model; NULL: the model does */
    void *context;     /* word's */
} job;

static bool is_trusted(const job *j, int64_t start, int64_t end) {
    if (!j->trusted) return true;
    for (int64_t low = 0, high = j->n_trusted; low < high;) {
        int64_t i = (low + high) / 2;
        if (j->trusted[i].end <= start) low = i + 1;
        else if (j->trusted[i].start > start) high = i;
        else return end <= j->trusted[i].end;
    }
    return false;
}

/* Whether a control token that is looked for in normalised text stands in this stretch of raw text in trusted places alone: which
 * of several a match came from is not known. */
static bool all_trusted(const job *j, const char *raw, int64_t len, const gr_piece *p) {
    int64_t start = raw - j->text, n = 0;
    if (is_trusted(j, start, start + len)) return true;
    for (const char *at = raw, *end = raw + len; (at = memmem(at, (size_t)(end - at), p->text, (size_t)p->len)); at += p->len, n++)
        if (!is_trusted(j, at - j->text, at - j->text + p->len)) return false;
    return n > 0; /* else normalisation made it of something else */
}

/* Text [start, end) becomes the ids from here on. */
static bool note(job *j, int64_t start, int64_t end, bool added) {
    gr_layout *l = j->layout;
    if (!l || start == end) return true;
    if (!gr_grow(&l->items, &l->capacity, l->n + 1, sizeof *l->items)) return false;
    l->items[l->n++] = (gr_stretch){.start = start, .end = end, .id = j->ids->n, .added = added};
    return true;
}

static bool encode_model(job *j, const char *word, int64_t len) {
    if (j->word) return j->word(j->context, word, len);
    if (j->t->info.kind == GR_TOKENIZER_SPM_UNIGRAM) return gr_unigram_encode(j->t, &j->s, word, len, j->ids);
    return gr_bpe_encode(j->t, &j->s, word, len, j->ids);
}

/* Metaspace: spaces become U+2581, one is put before the text, and words start at each. */
static bool encode_meta(job *j, const char *text, int64_t len, bool first) {
    const gr_tokenizer *t = j->t;
    gr_str *out = &j->s.words;
    gr_str_clear(out);
    bool prepend = t->meta_prepend == GR_PREPEND_ALWAYS || (t->meta_prepend == GR_PREPEND_FIRST && first);
    bool starts = len > 0 && (text[0] == ' ' || (len >= 3 && memcmp(text, GR_META_SPACE, 3) == 0));
    if (prepend && !starts) gr_str_puts(out, GR_META_SPACE);
    for (const char *at = text, *const end = text + len; at < end;) {
        const char *space = memchr(at, ' ', (size_t)(end - at));
        gr_str_add(out, at, (space ? space : end) - at);
        if (space) gr_str_puts(out, GR_META_SPACE);
        at = space ? space + 1 : end;
    }
    if (out->failed) return false;
    int64_t start = 0;
    for (const char *at; t->meta_split && start + 1 < out->len; start = at - out->data) {
        if (!(at = memmem(out->data + start + 1, (size_t)(out->len - start - 1), GR_META_SPACE, 3))) break;
        if (!encode_model(j, out->data + start, at - (out->data + start))) return false;
    }
    return start == out->len || encode_model(j, out->data + start, out->len - start);
}

/* The words of text[0..len) by the regular expression; each goes to the model, or through Metaspace. */
static bool encode_words(job *j, const char *text, int64_t len, bool first) {
    gr_str *buffer = &j->s.words;
    bool meta = j->t->meta_spaces;
    if (j->t->prefix_space && len > 0 && text[0] != ' ') {
        gr_str_clear(buffer);
        gr_str_putc(buffer, ' ');
        gr_str_add(buffer, text, len);
        if (buffer->failed) return false;
        text = buffer->data;
        len = buffer->len;
    }
    for (int64_t i = 0, n; i < len; i += n) {
        n = gr_word_length(j->t, text + i, len - i);
        if (!(meta ? encode_meta(j, text + i, n, first && i == 0) : encode_model(j, text + i, n))) return false;
    }
    return true;
}

/* Every digit (any Unicode number) stands alone. */
static bool encode_digits(job *j, const char *text, int64_t len, bool first) {
    int64_t start = 0;
    int size;
    if (!j->t->split_digits) return encode_words(j, text, len, first);
    for (int64_t i = 0; i < len; i += size) {
        size = 8;
        if (i + 8 <= len && gr_all_ascii(gr_read8(text + i)) && !gr_bytes_between(gr_read8(text + i), '0', '9')) continue;
        if (!(gr_class_at(j->t, text + i, len - i, &size) & GR_CLASS_NUMBER)) continue;
        if (!encode_words(j, text + start, i - start, first && start == 0) || !encode_words(j, text + i, size, first && i == 0))
            return false;
        start = i + size;
    }
    return encode_words(j, text + start, len - start, first && start == 0);
}

/* The pre-tokenizers in the order that a tokenizer.json may have them: white space dropped, digits, a regular
 * expression, then bytes or Metaspace. */
static bool encode_section(job *j, const char *text, int64_t len, bool first) {
    const gr_tokenizer *t = j->t;
    if (!t->split_whitespace) return encode_digits(j, text, len, first);
    for (int64_t i = 0; i < len;) {
        i += space_prefix(t, text + i, len - i);
        int64_t start = i;
        for (int size; i < len; i += size)
            if (gr_class_at(t, text + i, len - i, &size) & GR_CLASS_SPACE) break;
        if (i > start && !encode_digits(j, text + start, i - start, first && start == 0)) return false;
    }
    return true;
}

/* Text between added tokens of the raw text. */
static bool encode_stretch(job *j, const char *text, int64_t len, bool first) {
    const gr_tokenizer *t = j->t;
    const char *raw = text;
    int64_t raw_len = len, at = 0;
    if (len == 0) return true;
    if (!gr_normalize(t, &j->s, text, len, &text, &len)) return false;
    gr_match m;
    for (int64_t from = 0; gr_added_next(t, &t->added_normalized, text, len, from, j->special, &m); from = m.end) {
        if (m.special && !all_trusted(j, raw, raw_len, &t->pieces[m.id])) continue;
        if (!encode_section(j, text + at, m.start - at, first && at == 0) || !gr_ids_push(j->ids, m.id)) return false;
        at = m.end;
    }
    return encode_section(j, text + at, len - at, first && at == 0);
}

static bool encode_text(job *j, const char *text, int64_t len) {
    const gr_tokenizer *t = j->t;
    if (!gr_utf8_valid(text, len)) {
        gr_utf8_repair(text, len, &j->s.repaired);
        if (j->s.repaired.failed) return false;
        text = j->s.repaired.data;
        len = j->s.repaired.len;
    }
    j->text = text;
    gr_match m;
    int64_t at = 0;
    for (int64_t from = 0; gr_added_next(t, &t->added_raw, text, len, from, j->special, &m); from = m.end) {
        if (j->trusted && m.special && !is_trusted(j, m.at, m.at + t->pieces[m.id].len)) {
            m.end = m.at + t->pieces[m.id].len; /* plain text, and white space beside it stays */
            if (j->layout) j->layout->n_plain++;
            continue;
        }
        if (!note(j, at, m.start, false) || !encode_stretch(j, text + at, m.start - at, at == 0)) return false;
        if (!note(j, m.start, m.end, true) || !gr_ids_push(j->ids, m.id)) return false;
        at = m.end;
    }
    return note(j, at, len, false) && encode_stretch(j, text + at, len - at, at == 0);
}

static graft_status encode(job *j, const char *text, int64_t len, graft_error *err) {
    const gr_tokenizer *t = j->t;
    if (len >= INT32_MAX) return gr_fail(err, GRAFT_BAD_INPUT, "a text of %lld bytes is too long to tokenise", (long long)len);
    if (t->caches && !(j->s.cache = gr_cache_take(t->caches))) return gr_fail_memory(err, "tokenising");
    /* what English takes, so that few texts grow the list more than once */
    int64_t room = j->word ? 0 : len / 4;
    bool ok = gr_grow(&j->ids->data, &j->ids->capacity, j->ids->n + room, sizeof *j->ids->data) && encode_text(j, text, len);
    if (t->caches) gr_cache_give(t->caches, j->s.cache);
    gr_str_release(&j->s.repaired);
    gr_str_release(&j->s.normal[0]);
    gr_str_release(&j->s.normal[1]);
    gr_str_release(&j->s.words);
    free(j->s.symbols);
    free(j->s.heap);
    free(j->s.nodes);
    return ok ? GRAFT_OK : gr_fail_memory(err, "tokenising");
}

graft_status gr_tokenizer_encode(const gr_tokenizer *t, const char *text, int64_t len, bool parse_special, gr_ids *ids,
                                 graft_error *err) {
    job j = {.t = t, .ids = ids, .special = parse_special};
    return encode(&j, text, len, err);
}

graft_status gr_tokenizer_encode_trusted(const gr_tokenizer *t, const char *text, int64_t len, const gr_range *trusted,
                                         int64_t n_trusted, gr_ids *ids, gr_layout *layout, graft_error *err) {
    job j = {.t = t, .ids = ids, .special = true, .trusted = trusted, .n_trusted = n_trusted, .layout = layout};
    return encode(&j, text, len, err);
}

graft_status gr_tokenizer_words(const gr_tokenizer *t, const char *text, int64_t len, gr_word_fn *word, void *context,
                                graft_error *err) {
    gr_ids ids = {0};
    job j = {.t = t, .ids = &ids, .word = word, .context = context};
    graft_status st = encode(&j, text, len, err);
    gr_ids_release(&ids);
    return st;
}
