/* Counted words to words of tokens: the alphabet of a SentencePiece model, then what the base makes of each word. */
#include <stdlib.h>
#include <string.h>

#include "kernels/threads.h"
#include "core/text/learn_impl.h"

enum { POINTS = 0x110000, MOST_TOKENS = 192 }; /* tokens of a word: one that is longer is cut */

bool gr_symbols_add(gr_symbols *s, const char *text, int32_t len) {
    if (s->n == s->capacity) {
        int64_t lens = s->capacity;
        if (!gr_grow(&s->len, &lens, s->n + 1, sizeof *s->len) || !gr_grow(&s->text, &s->capacity, s->n + 1, sizeof *s->text))
            return false;
    }
    s->text[s->n] = text;
    s->len[s->n++] = len;
    return true;
}

bool gr_learned_add(gr_learned *out, const gr_learner *l, const char *raw, int32_t len, int32_t left, int32_t right) {
    uint16_t to_point[256];
    char *text = gr_arena_alloc(&out->arena, 2 * (int64_t)len + 1);
    int32_t n = 0;
    if (!text) return false;
    gr_byte_alphabet(to_point);
    if (l->spm) memcpy(text, raw, (size_t)(n = len));
    else
        for (int32_t i = 0; i < len; i++) n += gr_utf8_encode(to_point[(uint8_t)raw[i]], text + n);
    out->pieces[out->n++] = (gr_learned_piece){.text = text, .len = n, .left = left, .right = right};
    return true;
}

/* ---- the alphabet ---- */

typedef struct character {
    int64_t count;
    uint32_t point;
} character;

static int compare_characters(const void *a, const void *b) {
    const character *x = a, *y = b;
    if (x->count != y->count) return x->count > y->count ? -1 : 1;
    return x->point < y->point ? -1 : x->point > y->point;
}

/* Characters that occur, the most frequent first; *list owned. */
static bool count_characters(gr_learner *l, character **list, int64_t *n, int64_t *total) {
    int64_t *counts = gr_calloc(POINTS, sizeof *counts);
    *list = NULL;
    *n = *total = 0;
    if (!counts) return false;
    gr_learn_worker *w = &l->workers[0];
    bool ok = true;
    for (int p = 0; p < GR_LEARN_PARTS && ok; p++)
        for (int64_t k = 0; k < w->bags[p].n && ok; k++) {
            const gr_bag_word *word = &w->bags[p].words[k];
            const char *text = w->bags[p].text.data + word->start;
            int size;
            ok = gr_learn_flags(w, text, word->len);
            for (int32_t i = 0; i < word->len && ok; i += size) {
                int32_t point = gr_utf8_read(text + i, word->len - i, &size);
                if (!(w->flags[i] & GR_LEARN_IN)) continue;
                counts[point] += word->count;
                *total += word->count;
            }
        }
    for (int32_t c = 1; c < POINTS; c++) *n += counts[c] > 0;
    if (ok && *n > 0 && !(*list = gr_calloc(*n, sizeof **list))) ok = false;
    for (int32_t c = 1, k = 0; c < POINTS && *list; c++)
        if (counts[c] > 0) (*list)[k++] = (character){counts[c], (uint32_t)c};
    if (*list) qsort(*list, (size_t)*n, sizeof **list, compare_characters);
    free(counts);
    return ok;
}

/* A piece for each character that the base lacks, as far as coverage goes. */
static graft_status add_alphabet(gr_learner *l, gr_learned *out, graft_error *err) {
    character *list = NULL;
    graft_status st = GRAFT_OK;
    int64_t n = 0, total = 0, covered = 0, n_new = 0, k;
    char text[4];
    l->character_ids = gr_calloc(POINTS, sizeof *l->character_ids);
    if (!l->character_ids || !count_characters(l, &list, &n, &total)) GR_TRY(gr_fail_memory(err, "alphabet"));
    for (k = 0; k < n && (double)covered < l->o.coverage * (double)total; k++) {
        covered += list[k].count;
        int len = gr_utf8_encode(list[k].point, text);
        if (gr_table_find(&l->base->by_raw, text, len) >= 0) list[k].count = 0; /* known */
        else n_new++;
    }
    n = k;
    if (n_new > l->o.size)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE,
                       "--size %lld: the text has %lld characters that need pieces of their own at --character-coverage %g, which "
                       "takes a --size of %lld at least; or less coverage",
                       (long long)(l->o.size + l->o.there), (long long)n_new, l->o.coverage, (long long)(n_new + l->o.there)));
    for (k = 0; k < n; k++) {
        if (!list[k].count) continue;
        int len = gr_utf8_encode(list[k].point, text);
        char *copy = gr_arena_alloc(&l->arena, len);
        if (!copy) GR_TRY(gr_fail_memory(err, "alphabet"));
        memcpy(copy, text, (size_t)len);
        l->character_ids[list[k].point] = (int32_t)l->symbols.n;
        if (!gr_symbols_add(&l->symbols, copy, len) || !gr_learned_add(out, l, copy, len, -1, -1))
            GR_TRY(gr_fail_memory(err, "alphabet"));
    }
    out->n_characters = out->n;
done:
    free(list);
    return st;
}

/* ---- words ---- */

/* All workers' words of a part into the first one's bag. */
static void gather_part(void *context, int64_t p, int worker) {
    gr_learner *l = context;
    gr_bag *to = &l->workers[0].bags[p];
    (void)worker;
    for (int i = 1; i < l->n_workers; i++) {
        gr_bag *from = &l->workers[i].bags[p];
        for (int64_t k = 0; k < from->n; k++) {
            const gr_bag_word *w = &from->words[k];
            if (!gr_bag_add(to, from->text.data + w->start, w->len, w->hash, w->count)) l->parts[p].failed = true;
        }
        gr_bag_release(from);
    }
}

/* The symbol of what merging made; -1: none, or one that no new piece may have. */
static int32_t symbol_of(const gr_learner *l, const char *text, const gr_merged *m, const uint8_t *flags) {
    for (int32_t i = m->start; i < m->end; i++)
        if (!(flags[i] & GR_LEARN_IN) || (i > m->start && flags[i] & GR_LEARN_CUT)) return -1;
    if (m->id >= 0 || !l->character_ids) return m->id;
    int size;
    int32_t point = gr_utf8_read(text + m->start, m->end - m->start, &size);
    return point >= 0 && size == m->end - m->start && l->character_ids[point] ? l->character_ids[point] : -1;
}

/* Tokens from `first` on are a word. */
static bool close_word(struct gr_corpus_part *c, int64_t first, int64_t count) {
    int64_t n = c->n_tokens - first;
    c->total += n * count;
    if (n < 2) {
        c->n_tokens = first;
        c->alone += n * count;
        return true;
    }
    if (!gr_grow(&c->words, &c->words_capacity, c->n_words + 1, sizeof *c->words)) return false;
    c->words[c->n_words++] = (gr_learn_word){.count = count, .n = (int32_t)n}; /* tokens are known once they lie still */
    return true;
}

static bool add_word(gr_learner *l, gr_learn_worker *w, struct gr_corpus_part *c, const char *text, int32_t len, int64_t count) {
    const gr_merged *merged;
    if (!gr_learn_flags(w, text, len)) return false;
    int64_t n = gr_bpe_split(l->base, &w->scratch, text, len, &merged), first = c->n_tokens;
    if (n < 0) return false;
    for (int64_t i = 0; i < n; i++) {
        int32_t id = symbol_of(l, text, &merged[i], w->flags);
        bool cut = i > 0 && w->flags[merged[i].start] & GR_LEARN_CUT;
        if (cut || id < 0 || c->n_tokens - first == MOST_TOKENS) {
            if (!close_word(c, first, count)) return false;
            first = c->n_tokens;
        }
        if (id < 0) continue;
        if (!gr_grow(&c->tokens, &c->tokens_capacity, c->n_tokens + 1, sizeof *c->tokens)) return false;
        c->tokens[c->n_tokens++] = id;
    }
    return close_word(c, first, count);
}

static void split_part(void *context, int64_t p, int worker) {
    gr_learner *l = context;
    struct gr_corpus_part *c = &l->parts[p];
    gr_bag *bag = &l->workers[0].bags[p];
    for (int64_t k = 0; k < bag->n && !c->failed; k++)
        c->failed =
            !add_word(l, &l->workers[worker], c, bag->text.data + bag->words[k].start, bag->words[k].len, bag->words[k].count);
    int32_t *at = c->tokens;
    for (int64_t k = 0; k < c->n_words; at += c->words[k++].n) c->words[k].tokens = at;
    gr_bag_release(bag);
}

static bool any_failed(const gr_learner *l) {
    for (int p = 0; p < GR_LEARN_PARTS; p++)
        if (l->parts[p].failed) return true;
    return false;
}

graft_status gr_learn_corpus(gr_learner *l, struct gr_threads *threads, gr_learned *out, graft_error *err) {
    const gr_tokenizer *t = l->base;
    graft_status st = GRAFT_OK;
    gr_threads_run(threads, GR_LEARN_PARTS, gather_part, l);
    if (any_failed(l)) return gr_fail_memory(err, "words");
    for (int64_t i = 0; i < out->first_id; i++)
        if (!gr_symbols_add(&l->symbols, t->pieces[i].raw, t->pieces[i].raw_len)) return gr_fail_memory(err, "vocabulary");
    if (l->spm) GR_TRY(add_alphabet(l, out, err));
    gr_threads_run(threads, GR_LEARN_PARTS, split_part, l);
    if (any_failed(l)) return gr_fail_memory(err, "words");
    for (int p = 0; p < GR_LEARN_PARTS; p++) {
        l->n_words += l->parts[p].n_words;
        out->before += l->parts[p].total;
        out->after += l->parts[p].alone;
    }
    if (l->n_words > UINT32_MAX || !(l->words = gr_calloc(l->n_words + 1, sizeof *l->words))) return gr_fail_memory(err, "words");
    for (int64_t p = 0, n = 0; p < GR_LEARN_PARTS; n += l->parts[p++].n_words)
        if (l->parts[p].n_words) memcpy(l->words + n, l->parts[p].words, (size_t)l->parts[p].n_words * sizeof *l->words);
done:
    return st;
}
