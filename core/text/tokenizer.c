/* A tokenizer: opening and freeing, what it knows of itself, its hash. */
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/text/encode_cache.h"
#include "core/text/read.h"

void gr_tokenizer_free(gr_tokenizer *t) {
    if (!t) return;
    gr_arena_release(&t->arena);
    free(t->by_text.slots);
    free(t->by_raw.slots);
    free(t->pairs.slots);
    free(t->joints.pairs);
    gr_cache_pool_free(t->caches);
    free(t);
}

uint64_t gr_tokenizer_hash(const gr_tokenizer *t) {
    XXH3_state_t *state = XXH3_createState();
    if (!state) return 0;
    XXH3_64bits_reset(state);
    int32_t settings[] = {(int32_t)t->info.kind, (int32_t)t->words,
                          t->split_digits,       t->prefix_space,
                          t->split_whitespace,   t->meta_spaces,
                          t->meta_split,         (int32_t)t->meta_prepend,
                          t->byte_level,         t->byte_fallback,
                          t->fuse_unk,           t->info.ignore_merges,
                          t->info.bos,           t->info.eos,
                          t->model_unk,          t->info.add_bos,
                          t->info.add_eos,       (int32_t)t->info.n_vocab};
    XXH3_64bits_update(state, settings, sizeof settings);
    for (int64_t i = 0; i < t->info.n_vocab; i++) {
        const gr_piece *p = &t->pieces[i];
        int32_t head[2] = {p->len, (int32_t)p->type};
        XXH3_64bits_update(state, head, sizeof head);
        XXH3_64bits_update(state, p->text, (size_t)p->len);
        if (t->info.kind != GR_TOKENIZER_BPE) XXH3_64bits_update(state, &p->score, sizeof p->score);
    }
    for (int64_t i = 0; i < t->n_merges; i++) XXH3_64bits_update(state, t->merges[i].text, (size_t)t->merges[i].len + 1);
    for (int i = 0; i < t->n_norm; i++) {
        const gr_norm_step *s = &t->norm[i];
        XXH3_64bits_update(state, &s->kind, sizeof s->kind);
        if (s->from) XXH3_64bits_update(state, s->from, strlen(s->from) + 1);
        if (s->to) XXH3_64bits_update(state, s->to, strlen(s->to) + 1);
    }
    XXH3_64bits_update(state, t->charsmap_blob, (size_t)t->charsmap_blob_len);
    for (int32_t i = 0; i < t->n_added; i++) {
        const gr_added *a = &t->added[i];
        int32_t flags[] = {a->id, a->special, a->normalized, a->lstrip, a->rstrip, a->single_word};
        XXH3_64bits_update(state, flags, sizeof flags);
    }
    uint64_t hash = XXH3_64bits_digest(state);
    XXH3_freeState(state);
    return hash;
}

const gr_tokenizer_info *gr_tokenizer_get_info(const gr_tokenizer *t) { return &t->info; }

const char *gr_tokenizer_piece(const gr_tokenizer *t, int32_t id, int64_t *len, float *score, gr_piece_type *type) {
    if (id < 0 || id >= t->info.n_vocab) return NULL;
    const gr_piece *p = &t->pieces[id];
    if (len) *len = p->len;
    if (score) *score = (float)p->score;
    if (type) *type = p->type;
    return p->text;
}

int32_t gr_tokenizer_find(const gr_tokenizer *t, const char *piece) {
    return gr_table_find(&t->by_text, piece, (int64_t)strlen(piece));
}

int64_t gr_tokenizer_n_tokens(const gr_tokenizer *t) {
    int64_t n = t->info.n_vocab;
    char name[GR_PADDING_LEN];
    for (; n > 0; n--) {
        const gr_piece *p = &t->pieces[n - 1];
        if (p->len == 0) continue;
        gr_padding_name(name, n - 1);
        if (p->type != GR_PIECE_UNUSED || strcmp(name, p->text) != 0) break;
    }
    return n;
}

static graft_status open_gguf(gr_tokenizer **out, const char *path, graft_error *err) {
    gr_gguf *g = NULL;
    graft_status st = gr_gguf_open(&g, path, err);
    if (st == GRAFT_OK) st = gr_tokenizer_from_gguf(out, g, err);
    gr_gguf_close(g);
    return st;
}

graft_status gr_tokenizer_open(gr_tokenizer **out, const char *path, graft_error *err) {
    if (!gr_is_dir(path)) return open_gguf(out, path, err);
    char *json = gr_path_join(path, "tokenizer.json"), *model = gr_path_join(path, "tokenizer.model");
    graft_status st;
    if (!json || !model) st = gr_fail_memory(err, "path");
    else if (gr_exists(json)) st = gr_tokenizer_from_json(out, path, err);
    else if (gr_exists(model)) st = gr_tokenizer_from_spm(out, path, err);
    else st = gr_fail(err, GRAFT_BAD_INPUT, "%s: no tokenizer.json and no tokenizer.model in this folder", path);
    free(json);
    free(model);
    return st;
}

graft_status gr_tokenizer_check_rows(const gr_tokenizer *t, const int32_t *ids, int64_t n, int64_t rows, const char *what,
                                     graft_error *err) {
    if (t->info.n_vocab <= rows) return GRAFT_OK;
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < rows || ids[i] >= t->info.n_vocab) continue;
        const gr_piece *p = &t->pieces[ids[i]];
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: holds the token \"%.*s\" (id %d), for which the model's embedding of %lld rows has none", what,
                       (int)GR_MIN(p->len, 60), p->text ? p->text : "", ids[i], (long long)rows);
    }
    return GRAFT_OK;
}

void gr_tokenizer_note_rows(const gr_tokenizer *t, int64_t rows, const char *path) {
    const int64_t n = t->info.n_vocab;
    if (n <= rows) return;
    const gr_piece *p = &t->pieces[n - 1];
    gr_note("%s: the tokenizer has ids up to %lld (\"%.*s\"), the embedding %lld rows: texts with a token beyond them are refused",
            path, (long long)n - 1, (int)GR_MIN(p->len, 60), p->text ? p->text : "", (long long)rows);
}

graft_status gr_tokenizer_carry(gr_tokenizer *t, const char *chat_template, int32_t end_of_turn, bool as_eos, graft_error *err) {
    t->carried = gr_arena_strdup(&t->arena, chat_template);
    t->carried_end = end_of_turn;
    t->carried_eos = as_eos && end_of_turn >= 0 ? end_of_turn : t->info.eos;
    return t->carried ? GRAFT_OK : gr_fail_memory(err, "chat template");
}

int32_t gr_tokenizer_carried_eos(const gr_tokenizer *t) { return t->carried ? t->carried_eos : t->info.eos; }
int32_t gr_tokenizer_carried_end(const gr_tokenizer *t) { return t->carried ? t->carried_end : -1; }
