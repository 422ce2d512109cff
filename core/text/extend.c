/* A tokenizer with the pieces of another vocabulary after its own. */
#include "core/text/extend_impl.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/text/encode.h"
#include "core/text/read.h"

enum { PATIENCE_S = 3 };

static const char *const fate_names[] = {
    [GR_VOCAB_TAKEN] = "new",
    [GR_VOCAB_HAD] = "already there",
    [GR_VOCAB_CONTROL] = "control or added tokens",
    [GR_VOCAB_BYTE] = "byte pieces",
    [GR_VOCAB_PART] = "parts of characters",
    [GR_VOCAB_NORMALIZED] = "changed by the normalizer",
    [GR_VOCAB_CUT] = "cut by the pre-tokenizer",
    [GR_VOCAB_UNREACHABLE] = "not reachable by merges",
    [GR_VOCAB_LEFT] = "beyond the size asked for",
};

const char *gr_vocab_fate_name(gr_vocab_fate fate) { return fate_names[fate]; }

/* ---- the other vocabulary ---- */

/* A GGUF may be larger than a vocabulary that is read whole. */
static graft_status begins_as_gguf(bool *gguf, const char *path, graft_error *err) {
    gr_map map;
    graft_status st = gr_map_open(&map, path, err);
    *gguf = st == GRAFT_OK && map.size >= 4 && memcmp(map.data, "GGUF", 4) == 0;
    if (st == GRAFT_OK) gr_map_close(&map);
    return st;
}

graft_status gr_vocab_open(gr_tokenizer **out, const char *path, graft_error *err) {
    char *text = NULL;
    int64_t n, start = 0;
    bool gguf = false;
    graft_status st;
    if (gr_is_dir(path)) return gr_tokenizer_open(out, path, err);
    GR_TRY(begins_as_gguf(&gguf, path, err));
    if (gguf) return gr_tokenizer_open(out, path, err);
    GR_TRY(gr_file_read(&text, &n, path, GR_JSON_MAX, err));
    while (start < n && strchr(" \t\r\n", text[start]) && text[start]) start++;
    bool json = start < n && text[start] == '{';
    st = json ? gr_tokenizer_parse_json(out, text, n, path, err) : gr_tokenizer_parse_spm(out, text, n, path, err);
done:
    free(text);
    return st;
}

typedef struct candidate { /* a piece of the other vocabulary */
    double order;
    int32_t id, left, right; /* the halves of the first merge that makes it, -1: none */
} candidate;

static int compare_candidates(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->order != y->order) return x->order < y->order ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* All pieces in the order of their use. Owned; NULL when out of memory. */
static candidate *list_candidates(const gr_tokenizer *v) {
    int64_t n = v->info.n_vocab;
    candidate *list = gr_calloc(n, sizeof *list);
    if (!list) return NULL;
    bool merges = v->pairs.slots != NULL;
    for (int64_t i = 0; i < n; i++)
        list[i] = (candidate){merges ? -1 : v->ranks ? v->ranks[i] : -v->pieces[i].score, (int32_t)i, -1, -1};
    for (uint64_t i = 0; merges && i <= v->pairs.mask; i++) {
        const gr_pair *p = &v->pairs.slots[i];
        if (p->key == UINT64_MAX) continue;
        candidate *c = &list[p->id];
        if (c->left >= 0 && c->order <= p->rank) continue;
        c->order = p->rank, c->left = (int32_t)(p->key >> 32), c->right = (int32_t)(uint32_t)p->key;
    }
    qsort(list, (size_t)n, sizeof *list, compare_candidates);
    return list;
}

/* The raw form that piece p of v has in t, whose bytes or U+2581 differ. Anything but TAKEN: why there is none. */
static gr_vocab_fate raw_form(const gr_tokenizer *t, const gr_tokenizer *v, const gr_piece *p, gr_str *raw) {
    gr_str_clear(raw);
    if (p->type == GR_PIECE_BYTE) return GR_VOCAB_BYTE;
    if (p->type != GR_PIECE_NORMAL || !p->in_text || p->raw_len == 0) return GR_VOCAB_CONTROL;
    for (int32_t i = 0; i < p->raw_len; i++) {
        bool space = v->byte_level ? p->raw[i] == ' ' : i + 3 <= p->raw_len && memcmp(p->raw + i, GR_META_SPACE, 3) == 0;
        if (!space) gr_str_putc(raw, p->raw[i]);
        else if (t->byte_level) gr_str_putc(raw, ' ');
        else gr_str_puts(raw, GR_META_SPACE);
        if (space && !v->byte_level) i += 2;
    }
    if (t->byte_level || raw->failed) return GR_VOCAB_TAKEN;
    if (memchr(raw->data, 0, (size_t)raw->len) || (v->byte_level && raw->len == 1 && (uint8_t)raw->data[0] < 0x20))
        return GR_VOCAB_BYTE;
    return gr_utf8_valid(raw->data, raw->len) ? GR_VOCAB_TAKEN : GR_VOCAB_PART;
}

/* A byte-level piece in GPT-2's alphabet. */
static void put_alphabet(gr_str *out, const char *raw, int64_t len) {
    uint16_t to_point[256];
    gr_byte_alphabet(to_point);
    for (int64_t i = 0; i < len; i++) {
        uint16_t point = to_point[(uint8_t)raw[i]];
        if (point < 0x80) gr_str_putc(out, (char)point);
        else gr_str_printf(out, "%c%c", 0xC0 | point >> 6, 0x80 | (point & 63));
    }
}

static void put_text(const gr_tokenizer *t, gr_str *out, const char *raw, int64_t len) {
    if (t->byte_level) put_alphabet(out, raw, len);
    else gr_str_add(out, raw, len);
}

/* A SentencePiece text with its spaces as spaces. */
static void put_spaces(gr_str *out, const char *raw, int64_t len) {
    for (int64_t i = 0; i < len; i++) {
        bool space = i + 3 <= len && memcmp(raw + i, GR_META_SPACE, 3) == 0;
        gr_str_putc(out, space ? ' ' : raw[i]);
        i += space ? 2 : 0;
    }
}

/* ---- can a piece stand in a text as it is? ---- */

/* Does the normalizer leave it alone among others? */
static bool stays_normal(const gr_tokenizer *t, gr_scratch *s, const gr_str *raw) {
    gr_str text = {0};
    const char *normal;
    int64_t len;
    gr_str_putc(&text, '.');
    if (t->byte_level) gr_str_add(&text, raw->data, raw->len);
    else put_spaces(&text, raw->data, raw->len);
    gr_str_putc(&text, '.');
    bool ok = !text.failed && gr_normalize(t, s, text.data, text.len, &normal, &len);
    if (ok) {
        ok = memmem(normal, (size_t)len, raw->data, (size_t)raw->len) != NULL;
        if (!ok && t->meta_spaces) ok = memmem(normal, (size_t)len, text.data + 1, (size_t)text.len - 2) != NULL;
    }
    gr_str_release(&text);
    return ok;
}

/* Is it one word of the pre-tokenizer? */
static bool is_one_word(const gr_tokenizer *t, const gr_str *raw) {
    gr_match m;
    int size;
    const char *s = raw->data;
    if (gr_added_next(t, &t->added_raw, s, raw->len, 0, false, &m) ||
        gr_added_next(t, &t->added_normalized, s, raw->len, 0, false, &m))
        return false;
    for (int64_t i = 0; i < raw->len; i += size) {
        uint8_t kind = gr_class_at(t, s + i, raw->len - i, &size);
        if (t->split_digits && kind & GR_CLASS_NUMBER && size < raw->len) return false;
        if (t->split_whitespace && kind & GR_CLASS_SPACE) return false;
        if (t->meta_spaces && t->meta_split && i > 0 && size == 3 && memcmp(s + i, GR_META_SPACE, 3) == 0) return false;
    }
    return gr_word_length(t, s, raw->len) == raw->len;
}

/* ---- choosing ---- */

static void note_example(char *examples, size_t size, const gr_tokenizer *t, const char *raw, int64_t len) {
    size_t at = strlen(examples);
    gr_str text = {0};
    if (t->byte_level && !gr_utf8_valid(raw, len)) put_alphabet(&text, raw, len);
    else gr_str_add(&text, raw, len);
    bool plain = text.len > 0;
    for (int64_t i = 0; i < text.len; i++) plain &= (uint8_t)text.data[i] >= 0x20 && text.data[i] != 0x7F;
    if (!text.failed && plain && at + (size_t)text.len + 6 < size)
        snprintf(examples + at, size - at, "%s\"%s\"", at ? ", " : "", text.data);
    gr_str_release(&text);
}

static void tell_fate(gr_vocab_report *r, gr_vocab_fate fate, const gr_growth *g, const char *raw, int64_t len) {
    r->fates[fate]++;
    if (r->fates[fate] <= 3) note_example(r->examples[fate], sizeof r->examples[fate], g->t, raw, len);
}

/* Is v t with more merges behind? Then these are taken as they are. */
static bool goes_on(const gr_tokenizer *t, const gr_tokenizer *v) {
    if (!t->byte_level || !v->byte_level || v->n_merges < t->n_merges || t->n_merges == 0) return false;
    for (int64_t i = 0; i < t->n_merges; i++)
        if (t->merges[i].len != v->merges[i].len || memcmp(t->merges[i].text, v->merges[i].text, (size_t)t->merges[i].len) != 0)
            return false;
    return true;
}

typedef struct choice {
    gr_growth *g;
    const gr_tokenizer *v;
    gr_scratch scratch;
    gr_str raw, half;
    int64_t max;
    bool goes_on;
} choice;

/* The id of v's piece in what is there, -1: none. */
static int32_t id_of(choice *c, int32_t piece) {
    if (raw_form(c->g->t, c->v, &c->v->pieces[piece], &c->half) != GR_VOCAB_TAKEN || c->half.failed) return -1;
    return gr_growth_find(c->g, c->half.data, c->half.len);
}

static gr_vocab_fate look_at(choice *c, const candidate *x) {
    const gr_tokenizer *t = c->g->t;
    gr_vocab_fate fate = raw_form(t, c->v, &c->v->pieces[x->id], &c->raw);
    if (fate != GR_VOCAB_TAKEN || c->raw.failed) return fate;
    gr_str_clear(&c->half);
    put_text(t, &c->half, c->raw.data, c->raw.len); /* as it would stand in the vocabulary: a control token's name */
    int32_t there = c->half.failed ? -1 : gr_table_find(&t->by_text, c->half.data, c->half.len);
    if (there < 0 || there >= c->g->first_new) there = gr_table_find(&t->by_raw, c->raw.data, c->raw.len);
    if (there >= 0 && there < c->g->first_new) return GR_VOCAB_HAD;
    if (!gr_utf8_valid(c->raw.data, c->raw.len)) return GR_VOCAB_TAKEN; /* a part of a character: of a longer text */
    if (!stays_normal(t, &c->scratch, &c->raw)) return GR_VOCAB_NORMALIZED;
    return is_one_word(t, &c->raw) ? GR_VOCAB_TAKEN : GR_VOCAB_CUT;
}

static bool add(choice *c, const candidate *x, gr_vocab_fate *fate) {
    gr_growth *g = c->g;
    if (gr_growth_find(g, c->raw.data, c->raw.len) >= 0) return true; /* another piece needed it before */
    if (c->goes_on && x->left >= 0 && g->n < c->max) {
        int32_t left = id_of(c, x->left), right = id_of(c, x->right);
        if (left >= 0 && right >= 0 && !gr_growth_add_merge(g, c->raw.data, c->raw.len, left, right)) return false;
        if (gr_growth_find(g, c->raw.data, c->raw.len) >= 0) return true;
    }
    return gr_growth_add(g, c->raw.data, c->raw.len, c->max, fate);
}

/* A SentencePiece text may be two pieces of v in another form ("x" in the base's): the first counts. */
static bool note_wanted(choice *c, const candidate *list, int64_t n) {
    gr_growth *g = c->g;
    if (!gr_table_init(&g->wanted, n)) return false;
    for (int64_t i = 0; i < n; i++) {
        if (look_at(c, &list[i]) != GR_VOCAB_TAKEN) continue;
        char *copy = gr_arena_alloc(&g->arena, c->raw.len + 1);
        if (!copy || c->raw.failed || c->half.failed) return false;
        memcpy(copy, c->raw.data, (size_t)c->raw.len);
        gr_table_add(&g->wanted, copy, (int32_t)c->raw.len, (int32_t)i);
    }
    return true;
}

static graft_status choose(gr_growth *g, const gr_tokenizer *v, int64_t max, gr_vocab_report *r, graft_error *err) {
    choice c = {.g = g, .v = v, .max = max > 0 ? max : INT32_MAX / 4, .goes_on = goes_on(g->t, v)};
    candidate *list = list_candidates(v);
    bool ok = list && note_wanted(&c, list, v->info.n_vocab);
    gr_progress progress;
    double started = gr_now();
    gr_progress_start(&progress, "pieces", v->info.n_vocab);
    for (int64_t i = 0; ok && i < v->info.n_vocab; i++) {
        if (i % 64 == 0 && gr_now() - started > PATIENCE_S) gr_progress_update(&progress, i, "%lld new", (long long)g->n);
        if (v->pieces[list[i].id].len == 0) continue; /* a gap */
        r->n_pieces++;
        gr_vocab_fate fate = look_at(&c, &list[i]);
        if (fate == GR_VOCAB_TAKEN) ok = add(&c, &list[i], &fate) && !c.raw.failed && !c.half.failed;
        tell_fate(r, fate, g, c.raw.data ? c.raw.data : "", c.raw.len);
    }
    gr_progress_end(&progress);
    for (int64_t i = 0; i < g->n; i++) r->n_intermediate += !g->pieces[i].asked;
    r->n_new = g->n;
    r->n_merges = g->n_merges;
    free(list);
    gr_str_release(&c.raw);
    gr_str_release(&c.half);
    gr_str_release(&c.scratch.normal[0]);
    gr_str_release(&c.scratch.normal[1]);
    return ok ? GRAFT_OK : gr_fail_memory(err, "new pieces");
}

/* ---- building ---- */

double gr_next_score(double score) {
    float next = (float)score - 1;
    if ((double)next >= score) next = (float)(score * (score < 0 ? 1.000001 : 0.999999));
    return (double)next;
}

static bool put_merge(gr_tokenizer *x, int32_t left, int32_t right) {
    const gr_piece *a = &x->pieces[left], *b = &x->pieces[right];
    char *text = gr_text_alloc(x, (int64_t)a->len + b->len + 2, 1);
    if (!text) return false;
    memcpy(text, a->text, (size_t)a->len);
    text[a->len] = ' ';
    memcpy(text + a->len + 1, b->text, (size_t)b->len);
    x->merges[x->n_merges++] = (gr_merge){.text = text, .len = a->len + b->len + 1, .left_len = a->len};
    return true;
}

/* SentencePiece with merges, as HF's converter lists them: every way to make a new piece of two. */
static bool put_splits(gr_tokenizer *x, const gr_growth *g) {
    int64_t capacity = 0;
    gr_merge *all = NULL;
    bool ok = gr_grow(&all, &capacity, x->n_merges + 1024, sizeof *all);
    if (ok && x->n_merges > 0) memcpy(all, x->merges, (size_t)x->n_merges * sizeof *all);
    x->merges = all;
    for (int64_t i = 0; ok && i < g->n; i++) {
        const gr_new_piece *p = &g->pieces[i];
        for (int32_t at = 1; ok && at < p->len; at++) {
            if (((uint8_t)p->raw[at] & 0xC0) == 0x80) continue;
            int32_t left = gr_growth_find(g, p->raw, at), right = left < 0 ? -1 : gr_growth_find(g, p->raw + at, p->len - at);
            if (right < 0) continue;
            ok = gr_grow(&all, &capacity, x->n_merges + 1, sizeof *all);
            x->merges = all;
            ok = ok && put_merge(x, left, right);
        }
    }
    x->merges = gr_text_alloc(x, x->n_merges, sizeof *x->merges);
    if (ok && x->merges) memcpy(x->merges, all, (size_t)x->n_merges * sizeof *all);
    free(all);
    return ok && x->merges;
}

static bool put_merges(gr_tokenizer *x, const gr_growth *g) {
    const gr_tokenizer *t = g->t;
    if (t->ranks) return true; /* scores decide */
    x->n_merges = t->n_merges;
    x->merges = t->merges;
    if (!t->byte_level) return put_splits(x, g);
    x->merges = gr_text_alloc(x, t->n_merges + g->n_merges, sizeof *x->merges);
    if (!x->merges) return false;
    if (t->n_merges > 0) memcpy(x->merges, t->merges, (size_t)t->n_merges * sizeof *x->merges);
    for (int64_t i = 0; i < g->n_merges; i++)
        if (!put_merge(x, g->merges[i].left, g->merges[i].right)) return false;
    return true;
}

static bool put_pieces(gr_tokenizer *x, const gr_growth *g) {
    const gr_tokenizer *t = g->t;
    double score = 0;
    gr_str text = {0};
    bool ok = true;
    for (int64_t i = 0; ok && i < g->first_new; i++) {
        const gr_piece *p = &t->pieces[i];
        ok = gr_piece_set(x, i, p->text, p->len, p->score, p->type);
        x->pieces[i].in_text = p->in_text;
        if (p->type == GR_PIECE_NORMAL) score = GR_MIN(score, p->score);
    }
    for (int64_t i = 0; ok && i < g->n; i++) {
        gr_str_clear(&text);
        put_text(t, &text, g->pieces[i].raw, g->pieces[i].len);
        score = t->ranks ? gr_next_score(score) : 0;
        ok = !text.failed && gr_piece_set(x, g->first_new + i, text.data, text.len, score, GR_PIECE_NORMAL);
    }
    gr_str_release(&text);
    return ok;
}

/* Settings are copied; what they point to stays the base's. */
static graft_status build(gr_tokenizer **out, const gr_growth *g, graft_error *err) {
    const gr_tokenizer *t = g->t;
    const char *where = t->info.folder ? t->info.folder : "the extended tokenizer";
    gr_tokenizer *x = gr_tokenizer_new(g->first_new + g->n);
    graft_status st = GRAFT_OK;
    if (!x) return gr_fail_memory(err, "tokenizer");
    gr_tokenizer own = *x;
    *x = *t;
    x->info.n_vocab = own.info.n_vocab;
    x->arena = own.arena, x->told_drops = own.told_drops, x->pieces = own.pieces;
    x->by_text = x->by_raw = (gr_table){0};
    x->pairs = (gr_pair_table){0};
    x->joints = (gr_joints){0};
    x->added_raw = x->added_normalized = x->prefixes = (gr_prefix_set){0};
    x->merges = NULL, x->n_merges = 0;
    x->ranks = x->characters = NULL;
    x->caches = NULL;
    x->carried = NULL;
    x->extends = t;
    x->first_new = g->first_new;
    if (!put_pieces(x, g) || !put_merges(x, g)) st = gr_fail_memory(err, "tokenizer");
    x->added = gr_text_alloc(x, t->n_added, sizeof *x->added);
    if (!x->added) st = gr_fail_memory(err, "tokenizer");
    else if (t->n_added > 0) memcpy(x->added, t->added, (size_t)t->n_added * sizeof *x->added);
    if (st == GRAFT_OK) st = gr_tokenizer_finish(x, where, err);
    if (st == GRAFT_OK) *out = x;
    else gr_tokenizer_free(x);
    return st;
}

/* ---- what was made ---- */

/* The ids of a piece's text within a word. */
static graft_status spell(const gr_tokenizer *t, const gr_piece *p, gr_ids *ids, graft_error *err) {
    gr_scratch s = {0};
    bool ok = gr_bpe_merge(t, &s, p->raw, p->raw_len, ids);
    free(s.symbols);
    free(s.heap);
    return ok ? GRAFT_OK : gr_fail_memory(err, "spelling");
}

int64_t gr_vocab_first_new(const gr_tokenizer *x) { return x->first_new; }

graft_status gr_vocab_spelling(const gr_tokenizer *x, int32_t id, gr_ids *ids, graft_error *err) {
    return spell(x->extends, &x->pieces[id], ids, err);
}

static graft_status prove_pieces(const gr_tokenizer *x, gr_vocab_report *r, graft_error *err) {
    gr_ids ids = {0};
    graft_status st = GRAFT_OK;
    for (int64_t i = x->first_new; i < x->info.n_vocab; i++) {
        const gr_piece *p = &x->pieces[i];
        ids.n = 0;
        GR_TRY(spell(x, p, &ids, err));
        if (ids.n == 1 && ids.data[0] == i) continue;
        if (r->n_unproved++ < 3) note_example(r->unproved, sizeof r->unproved, x, p->raw, p->raw_len);
    }
done:
    gr_ids_release(&ids);
    return st;
}

graft_status gr_vocab_check_ids(const gr_tokenizer *t, graft_error *err) {
    if (!t->left_out || t->left_out_id < gr_tokenizer_n_tokens(t)) return GRAFT_OK;
    return gr_fail(
        err, GRAFT_BAD_INPUT,
        "%s: the added token \"%.60s\" has the id %lld, which a new piece would get, and no vocabulary file has it: save "
        "the tokenizer with transformers first, which writes a whole tokenizer.json",
        t->info.folder, t->left_out, (long long)t->left_out_id);
}

graft_status gr_vocab_extend(gr_tokenizer **out, const gr_tokenizer *base, const gr_tokenizer *more, int64_t max_pieces,
                             gr_vocab_report *report, graft_error *err) {
    gr_growth g = {.t = base, .first_new = gr_tokenizer_n_tokens(base)};
    gr_tokenizer *x = NULL;
    graft_status st;
    *report = (gr_vocab_report){.first_new = g.first_new};
    if (base->info.kind == GR_TOKENIZER_SPM_UNIGRAM)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                       "the model's tokenizer is a unigram: graft extends byte-level BPE and SentencePiece BPE, where new pieces "
                       "change no text of the old ones"));
    if (!base->byte_level && !base->byte_fallback && base->model_unk < 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "the model's tokenizer has neither bytes nor an unknown token"));
    GR_TRY(gr_vocab_check_ids(base, err));
    GR_TRY(choose(&g, more, max_pieces, report, err));
    if (g.n == 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                       "nothing to add: of %lld pieces of the vocabulary the model has %lld and %lld are control tokens or bytes",
                       (long long)report->n_pieces, (long long)report->fates[GR_VOCAB_HAD],
                       (long long)(report->fates[GR_VOCAB_CONTROL] + report->fates[GR_VOCAB_BYTE])));
    GR_TRY(build(&x, &g, err));
    report->n_merges = x->n_merges - base->n_merges;
    GR_TRY(prove_pieces(x, report, err));
    *out = x;
    x = NULL;
done:
    gr_tokenizer_free(x);
    gr_growth_release(&g);
    return st;
}
