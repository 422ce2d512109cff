#include "peft/tokens.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"

bool gr_recipe_trains_rows(const gr_recipe *r) {
    return r->adapter_method == GR_METHOD_EMBEDDINGS || r->adapter_trainable_tokens.n > 0;
}

/* The key that names the tokens, and its value. */
static const gr_list *list_of(const gr_recipe *r, const char **key) {
    bool alone = r->adapter_method == GR_METHOD_EMBEDDINGS;
    *key = alone ? "adapter.rows" : "adapter.trainable_tokens";
    return alone ? &r->adapter_rows : &r->adapter_trainable_tokens;
}

static graft_status take_range(gr_ids_list *out, gr_arena *arena, int64_t first, int64_t end, graft_error *err) {
    int32_t *ids = gr_arena_alloc(arena, (end - first) * (int64_t)sizeof *ids);
    if (!ids) return gr_fail_memory(err, "tokens");
    for (int64_t i = first; i < end; i++) ids[i - first] = (int32_t)i;
    *out = (gr_ids_list){ids, end - first};
    return GRAFT_OK;
}

static graft_status take_new(gr_ids_list *out, gr_arena *arena, const char *key, const gr_model *m, const gr_tokenizer *t,
                             graft_error *err) {
    int64_t first = m->config.base_vocab, end = t ? GR_MIN(gr_tokenizer_n_tokens(t), m->config.vocab) : m->config.vocab;
    const char *base = gr_weights_path(m->weights);
    if (first == 0)
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "%s: new: %s records no extension, so that none of its rows is known to be new: extend it with graft vocab "
                       "extend, or name the tokens: %s=[...], or all with adapter.method=embeddings adapter.rows=all",
                       key, base, key);
    if (first >= end)
        return gr_fail(err, GRAFT_BAD_USAGE, "%s: new: %s was extended from %lld rows, and its tokenizer has %lld tokens", key,
                       base, (long long)first, (long long)end);
    return take_range(out, arena, first, end, err);
}

/* A number is an id: true, and *id is -1 when it is too large for one. */
static bool is_id(const char *text, int64_t *id) {
    if (!*text || strspn(text, "0123456789") != strlen(text)) return false;
    *id = strlen(text) < 10 ? strtoll(text, NULL, 10) : -1;
    return true;
}

/* The piece of the vocabulary that is nearest to text, NULL when none is near. */
static const char *nearest_piece(const gr_tokenizer *t, const char *text) {
    int64_t n = gr_tokenizer_n_tokens(t);
    const char **names = gr_calloc(n, sizeof *names), *found = NULL;
    for (int64_t i = 0; names && i < n; i++) names[i] = gr_tokenizer_piece(t, (int32_t)i, NULL, NULL, NULL);
    if (names) found = gr_nearest(text, names, (int)n);
    free(names);
    return found;
}

/* A piece as the vocabulary has it, or a text that is one token. */
static graft_status find_token(int64_t *id, const char *key, const char *text, const gr_model *m, const gr_tokenizer *t,
                               graft_error *err) {
    gr_ids ids = {0};
    graft_status st = GRAFT_OK;
    const char *near;
    *id = -1;
    if (is_id(text, id)) {
        if (*id >= 0 && *id < m->config.vocab) return GRAFT_OK;
        return gr_fail(err, GRAFT_BAD_USAGE, "%s: there is no token %s: the base has rows 0 to %lld (a number is an id)", key, text,
                       (long long)m->config.vocab - 1);
    }
    if (!t) return gr_fail(err, GRAFT_BAD_USAGE, "%s: \"%s\": a shape has no tokenizer: name tokens by id", key, text);
    *id = gr_tokenizer_find(t, text);
    if (*id >= 0) goto done;
    GR_TRY(gr_tokenizer_encode(t, text, (int64_t)strlen(text), true, &ids, err));
    if (ids.n == 1) *id = ids.data[0];
    if (*id >= 0) goto done;
    near = nearest_piece(t, text);
    st = gr_fail(err, GRAFT_BAD_USAGE, "%s: \"%s\" is no token of %s, it takes %lld%s%s%s; graft vocab extend adds tokens", key,
                 text, gr_weights_path(m->weights), (long long)ids.n, near ? "; did you mean \"" : "", near ? near : "",
                 near ? "\"?" : "");
done:
    gr_ids_release(&ids);
    return st;
}

static int by_value(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

static graft_status take_list(gr_ids_list *out, gr_arena *arena, const char *key, const gr_list *list, const gr_model *m,
                              const gr_tokenizer *t, graft_error *err) {
    int32_t *ids = gr_arena_alloc(arena, list->n * (int64_t)sizeof *ids);
    if (!ids) return gr_fail_memory(err, "tokens");
    for (int i = 0; i < list->n; i++) {
        int64_t id;
        graft_status st = find_token(&id, key, list->items[i], m, t, err);
        if (st != GRAFT_OK) return st;
        for (int j = 0; j < i; j++)
            if (ids[j] == id)
                return gr_fail(err, GRAFT_BAD_USAGE, "%s: \"%s\" and \"%s\" are the same token, %lld", key, list->items[j],
                               list->items[i], (long long)id);
        ids[i] = (int32_t)id;
    }
    qsort(ids, (size_t)list->n, sizeof *ids, by_value);
    *out = (gr_ids_list){ids, list->n};
    return GRAFT_OK;
}

static void tell(const gr_ids_list *list, const gr_recipe *r, const gr_model *m) {
    bool range = list->ids[list->n - 1] - list->ids[0] == list->n - 1;
    const char *where = m->config.tied         ? "the embedding, which is the head too"
                        : r->adapter_head_rows ? "embedding and head"
                                               : "the embedding; those of the head stay (adapter.head_rows: false)";
    if (list->n > 1)
        gr_note("trained rows: %lld of %lld (%s%d %s %d) of %s", (long long)list->n, (long long)m->config.vocab,
                range ? "" : "between ", list->ids[0], range ? "to" : "and", list->ids[list->n - 1], where);
    else gr_note("trained rows: token %d of %s", list->ids[0], where);
}

graft_status gr_recipe_tokens(gr_ids_list *out, gr_arena *arena, const gr_recipe *r, const gr_model *m, const gr_tokenizer *t,
                              graft_error *err) {
    const char *key;
    const gr_list *list = list_of(r, &key);
    bool single = list->n == 1;
    graft_status st;
    if (single && strcmp(list->items[0], "new") == 0) st = take_new(out, arena, key, m, t, err);
    else if (single && strcmp(list->items[0], "all") == 0) st = take_range(out, arena, 0, m->config.vocab, err);
    else st = take_list(out, arena, key, list, m, t, err);
    if (st == GRAFT_OK) tell(out, r, m);
    return st;
}
