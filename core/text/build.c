/* Building a tokenizer: its pieces while a reader fills them in, then the tables that encoding and decoding look things up in. */
#include <stdlib.h>
#include <string.h>

#include "core/text/encode.h"

void *gr_text_alloc(gr_tokenizer *t, int64_t n, int64_t size) {
    int64_t bytes;
    return gr_mul_ok(&bytes, n, size) ? gr_arena_alloc(&t->arena, bytes) : NULL;
}

gr_tokenizer *gr_tokenizer_new(int64_t n_vocab) {
    gr_tokenizer *t = gr_calloc(1, sizeof *t);
    if (!t) return NULL;
    t->info = (gr_tokenizer_info){.pre = "", .n_vocab = n_vocab, .bos = -1, .eos = -1, .pad = -1, .unk = -1};
    t->pieces = gr_text_alloc(t, n_vocab, sizeof *t->pieces);
    t->told_drops = gr_text_alloc(t, 1, sizeof *t->told_drops);
    if (!t->pieces || !t->told_drops) {
        gr_tokenizer_free(t);
        return NULL;
    }
    t->model_unk = -1;
    for (uint32_t point = 0; point < 65536; point++) t->classes[point] = gr_char_class_compute(point);
    for (int b = 0; b < 256; b++) t->byte_ids[b] = -1;
    return t;
}

void gr_byte_alphabet(uint16_t to_point[256]) {
    uint16_t next = 256;
    for (int b = 0; b < 256; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        to_point[b] = printable ? (uint16_t)b : next++;
    }
}

bool gr_piece_set(gr_tokenizer *t, int64_t id, const char *text, int64_t len, double score, gr_piece_type type) {
    char *copy = gr_text_alloc(t, len + 1, 1);
    if (!copy) return false;
    if (len > 0) memcpy(copy, text, (size_t)len);
    t->pieces[id] = (gr_piece){.text = copy,
                               .raw = copy,
                               .len = (int32_t)len,
                               .raw_len = (int32_t)len,
                               .score = score,
                               .type = type,
                               .in_text = type == GR_PIECE_NORMAL || type == GR_PIECE_USER};
    return true;
}

bool gr_is_byte_name(const char *s, int64_t n) {
    return n == 6 && memcmp(s, "<0x", 3) == 0 && s[5] == '>' && strspn(s + 3, "0123456789ABCDEF") == 2;
}

/* The bytes that a byte-level piece stands for; a piece with characters outside the alphabet stands for itself. */
static bool undo_alphabet(gr_tokenizer *t, gr_piece *p, const int16_t *to_byte, int n_points) {
    char *raw = gr_text_alloc(t, p->len + 1, 1);
    if (!raw) return false;
    int32_t n = 0;
    for (int32_t i = 0, size; i < p->len; i += size) {
        int32_t point = gr_utf8_decode(p->text + i, p->len - i, &size, NULL);
        if (point < 0 || point >= n_points || to_byte[point] < 0) {
            p->in_text = false; /* no text is written so in the alphabet */
            return true;
        }
        raw[n++] = (char)to_byte[point];
    }
    p->raw = raw;
    p->raw_len = n;
    return true;
}

static bool build_raw_bytes(gr_tokenizer *t) {
    uint16_t to_point[256];
    int16_t to_byte[512];
    gr_byte_alphabet(to_point);
    memset(to_byte, -1, sizeof to_byte);
    for (int b = 0; b < 256; b++) to_byte[to_point[b]] = (int16_t)b;
    for (int64_t i = 0; i < t->info.n_vocab; i++)
        if (!undo_alphabet(t, &t->pieces[i], to_byte, GR_LEN(to_byte))) return false;
    return true;
}

static bool build_tables(gr_tokenizer *t) {
    int64_t n = t->info.n_vocab;
    if (!gr_table_init(&t->by_text, n) || !gr_table_init(&t->by_raw, n)) return false;
    for (int64_t i = 0; i < n; i++) {
        gr_piece *p = &t->pieces[i];
        if (!p->text) *p = (gr_piece){.text = "", .raw = "", .type = GR_PIECE_UNUSED}; /* a gap between ids */
        if (p->len == 0) continue;
        gr_table_add(&t->by_text, p->text, p->len, (int32_t)i);
        if (p->in_text && p->raw_len > 0) gr_table_add(&t->by_raw, p->raw, p->raw_len, (int32_t)i);
    }
    for (int b = 0; b < 256; b++) {
        char c = (char)b, name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)b);
        t->byte_ids[b] = t->byte_level ? gr_table_find(&t->by_raw, &c, 1) : gr_table_find(&t->by_text, name, 6);
        if (!t->byte_level && t->byte_ids[b] >= 0 && t->pieces[t->byte_ids[b]].type != GR_PIECE_BYTE) t->byte_ids[b] = -1;
    }
    return true;
}

/* Ids of the merges' texts. */
static graft_status build_pairs(gr_tokenizer *t, const char *path, graft_error *err) {
    if (!gr_pairs_init(&t->pairs, t->n_merges)) return gr_fail_memory(err, "merges");
    gr_str both = {0};
    graft_status st = GRAFT_OK;
    for (int64_t i = 0; i < t->n_merges && st == GRAFT_OK; i++) {
        const gr_merge *m = &t->merges[i];
        const char *right = m->text + m->left_len + 1;
        int64_t right_len = m->len - m->left_len - 1;
        gr_str_clear(&both);
        gr_str_add(&both, m->text, m->left_len);
        gr_str_add(&both, right, right_len);
        if (both.failed) {
            st = gr_fail_memory(err, "merges");
            break;
        }
        int32_t a = gr_table_find(&t->by_text, m->text, m->left_len), b = gr_table_find(&t->by_text, right, right_len);
        int32_t ab = gr_table_find(&t->by_text, both.data, both.len);
        if (a < 0 || b < 0 || ab < 0)
            st = gr_fail(err, GRAFT_BAD_INPUT, "%s: merge %lld (\"%.60s\") joins pieces that are not in the vocabulary", path,
                         (long long)i, m->text);
        else if (!t->first_merge_wins || gr_pairs_find(&t->pairs, a, b)->id < 0) gr_pairs_add(&t->pairs, a, b, (int32_t)i, ab);
    }
    gr_str_release(&both);
    return st;
}

bool gr_merge_counts(const gr_tokenizer *t, int64_t i) {
    const gr_merge *m = &t->merges[i];
    int32_t left = gr_table_find(&t->by_text, m->text, m->left_len),
            right = gr_table_find(&t->by_text, m->text + m->left_len + 1, m->len - m->left_len - 1);
    return gr_pairs_find(&t->pairs, left, right)->rank == (int32_t)i;
}

static int compare_scores(const void *a, const void *b) {
    double x = (*(const gr_piece *const *)a)->score, y = (*(const gr_piece *const *)b)->score;
    return (x < y) - (x > y);
}

/* Rank of each piece by descending score; equal scores share a rank, so that the leftmost pair goes first. */
static bool build_ranks(gr_tokenizer *t) {
    int64_t n = t->info.n_vocab;
    t->ranks = gr_text_alloc(t, n, sizeof *t->ranks);
    gr_piece **order = gr_calloc(n, sizeof *order);
    if (!t->ranks || !order) {
        free(order);
        return false;
    }
    for (int64_t i = 0; i < n; i++) order[i] = &t->pieces[i];
    qsort(order, (size_t)n, sizeof *order, compare_scores);
    int32_t rank = 0;
    for (int64_t i = 0; i < n; i++) {
        if (i > 0 && order[i]->score < order[i - 1]->score) rank++;
        t->ranks[order[i] - t->pieces] = rank;
    }
    free(order);
    return true;
}

static bool build_prefixes(gr_tokenizer *t) {
    t->prefixes.keys = gr_text_alloc(t, t->info.n_vocab, sizeof *t->prefixes.keys);
    if (!t->prefixes.keys) return false;
    t->min_score = 0;
    for (int64_t i = 0; i < t->info.n_vocab; i++) {
        const gr_piece *p = &t->pieces[i];
        if (p->type == GR_PIECE_NORMAL) t->min_score = GR_MIN(t->min_score, p->score);
        if ((p->in_text || (t->bytes_match && p->type == GR_PIECE_BYTE)) && p->len > 0)
            t->prefixes.keys[t->prefixes.n++] = (gr_prefix_key){p->text, p->len, (int32_t)i};
    }
    gr_prefix_sort(&t->prefixes);
    return true;
}

/* A normalised added token is looked for in normalised text, so its own text is normalised too. */
static bool add_normalized(gr_tokenizer *t, int32_t i, gr_prefix_set *set) {
    gr_scratch s = {0};
    const char *text;
    int64_t len;
    bool ok = gr_normalize(t, &s, t->added[i].text, t->added[i].len, &text, &len);
    char *copy = ok ? gr_text_alloc(t, len + 1, 1) : NULL;
    if (copy && len > 0) {
        memcpy(copy, text, (size_t)len);
        set->keys[set->n++] = (gr_prefix_key){copy, (int32_t)len, i};
        gr_piece *p = &t->pieces[t->added[i].id]; /* it is written as it was found: with its space */
        if (!t->byte_level) p->raw = copy, p->raw_len = (int32_t)len;
    }
    gr_str_release(&s.normal[0]);
    gr_str_release(&s.normal[1]);
    return copy != NULL;
}

static bool build_added(gr_tokenizer *t) {
    gr_prefix_set *raw = &t->added_raw, *normalized = &t->added_normalized;
    raw->keys = gr_text_alloc(t, t->n_added, sizeof *raw->keys);
    normalized->keys = gr_text_alloc(t, t->n_added, sizeof *raw->keys);
    if (!raw->keys || !normalized->keys) return false;
    for (int32_t i = 0; i < t->n_added; i++) {
        const gr_added *a = &t->added[i];
        if (a->len == 0) continue;
        gr_prefix_set *set = a->normalized ? normalized : raw;
        if (!a->normalized || !t->normalize_added) set->keys[set->n++] = (gr_prefix_key){a->text, a->len, i};
        else if (!add_normalized(t, i, set)) return false;
    }
    gr_prefix_sort(raw);
    gr_prefix_sort(normalized);
    return true;
}

graft_status gr_tokenizer_finish(gr_tokenizer *t, const char *path, graft_error *err) {
    gr_tokenizer_info *info = &t->info;
    int32_t *ids[] = {&info->bos, &info->eos, &info->pad, &info->unk};
    static const char *const names[] = {"bos", "eos", "pad", "unk"};
    for (int i = 0; i < GR_LEN(ids); i++)
        if (*ids[i] < -1 || *ids[i] >= info->n_vocab)
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: the %s token's id %d is outside the vocabulary (%lld pieces)", path, names[i],
                           *ids[i], (long long)info->n_vocab);
    if (t->byte_level) {
        if (!build_raw_bytes(t)) return gr_fail_memory(err, "vocabulary");
    }
    if (!build_tables(t) || !build_added(t)) return gr_fail_memory(err, "vocabulary");
    if (info->kind == GR_TOKENIZER_SPM_UNIGRAM) {
        if (!build_prefixes(t)) return gr_fail_memory(err, "vocabulary");
    } else if (t->byte_level || t->merges) {
        graft_status st = build_pairs(t, path, err);
        if (st != GRAFT_OK) return st;
    } else if (!build_ranks(t)) {
        return gr_fail_memory(err, "vocabulary");
    }
    if (info->kind != GR_TOKENIZER_SPM_UNIGRAM && (!(t->caches = gr_cache_pool_new()) || !gr_bpe_tables(t)))
        return gr_fail_memory(err, "vocabulary");
    if (!*info->pre && t->byte_level) info->pre = gr_pretok_name(t);
    return GRAFT_OK;
}
