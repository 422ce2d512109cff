/* Trained rows of tokens in PEFT's files: trainable_token_indices of a LORA, token_indices of TRAINABLE_TOKENS, and the tensors
 * trainable_tokens_delta, which are whole rows in spite of their name. */
#include <jansson.h>
#include <stdlib.h>

#include "adapters/impl.h"

static const char DELTA[] = ".trainable_tokens_delta";

/* ---- the configuration ---- */

static int by_value(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

/* The tokens of a list, in its order and ascending. */
static graft_status read_ids(gr_peft_config *c, int which, const json_t *list, const char *key, const char *path,
                             graft_error *err) {
    int64_t n = (int64_t)json_array_size(list);
    int32_t *ids = gr_arena_alloc(&c->arena, (2 * n + 1) * (int64_t)sizeof *ids), *sorted = ids + n;
    if (!json_is_array(list) || n == 0) return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: expected a list of token ids", path, key);
    if (!ids) return gr_fail_memory(err, path);
    for (int64_t i = 0; i < n; i++) {
        const json_t *item = json_array_get(list, (size_t)i);
        if (!json_is_integer(item) || json_integer_value(item) < 0 || json_integer_value(item) > INT32_MAX)
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s[%lld]: expected a token id", path, key, (long long)i);
        ids[i] = sorted[i] = (int32_t)json_integer_value(item);
    }
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    for (int64_t i = 1; i < n; i++)
        if (sorted[i] == sorted[i - 1])
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: token %d is named twice: which row counts cannot be known", path, key,
                           sorted[i]);
    c->rows[which] = (gr_ids_list){ids, n};
    c->config.rows[which] = (gr_ids_list){sorted, n};
    return GRAFT_OK;
}

/* A name that PEFT takes for the end of the module's; -1 of none that has rows of tokens. */
static int module_of(const char *name) {
    for (int i = 0; i < GR_ROWS_COUNT; i++)
        if (gr_has_suffix(gr_rows_module(i), name)) return i;
    return -1;
}

static graft_status no_module(const char *name, const char *key, const char *path, graft_error *err) {
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s: \"%s\": expected embed_tokens or lm_head: only they have rows of tokens", path,
                   key, name ? name : "(no name)");
}

static graft_status read_alone(gr_peft_config *c, const char *path, graft_error *err) {
    const json_t *list = json_object_get(c->root, "token_indices"), *targets = json_object_get(c->root, "target_modules");
    const char *text = json_string_value(targets);
    bool wanted[GR_ROWS_COUNT] = {!targets || json_is_null(targets), false}, any = false;
    graft_status st = GRAFT_OK;
    pcre2_code *regex = NULL;
    if (text) GR_TRY(gr_regex_compile(&regex, "(?:", text, ")$", err));
    for (int i = 0; i < GR_ROWS_COUNT && text; i++) {
        GR_TRY(gr_regex_match(&wanted[i], regex, text, gr_rows_module(i), err));
        any |= wanted[i];
    }
    for (size_t k = 0; k < json_array_size(targets); k++) {
        const char *name = json_string_value(json_array_get(targets, k));
        int which = name ? module_of(name) : -1;
        if (which < 0) GR_TRY(no_module(name, "target_modules", path, err));
        else any = wanted[which] = true;
    }
    if (!any && !wanted[GR_ROWS_EMBED]) GR_TRY(no_module(text, "target_modules", path, err));
    for (int i = 0; i < GR_ROWS_COUNT; i++)
        if (wanted[i]) GR_TRY(read_ids(c, i, list, "token_indices", path, err));
done:
    pcre2_code_free(regex);
    return st;
}

graft_status gr_peft_rows_read(gr_peft_config *c, const char *path, graft_error *err) {
    static const char key[] = "trainable_token_indices";
    json_t *rows = json_object_get(c->root, key), *list;
    const char *name;
    if (c->config.rows_alone) return read_alone(c, path, err);
    if (!rows || json_is_null(rows)) return GRAFT_OK;
    if (!json_is_object(rows)) return read_ids(c, GR_ROWS_EMBED, rows, key, path, err);
    json_object_foreach(rows, name, list) {
        int which = module_of(name);
        if (which < 0) return no_module(name, key, path, err);
        graft_status st = read_ids(c, which, list, key, path, err);
        if (st != GRAFT_OK) return st;
    }
    return GRAFT_OK;
}

static json_t *ids_json(const gr_ids_list *list) {
    json_t *array = json_array();
    for (int64_t i = 0; i < list->n; i++) json_array_append_new(array, json_integer(list->ids[i]));
    return array;
}

json_t *gr_peft_rows_json(const gr_adapter *a) {
    const gr_ids_list *embed = &a->config.rows[GR_ROWS_EMBED], *head = &a->config.rows[GR_ROWS_HEAD];
    if (a->config.rows_alone) return ids_json(embed->n > 0 ? embed : head);
    if (embed->n == 0 && head->n == 0) return json_null();
    if (head->n == 0) return ids_json(embed);
    json_t *object = json_pack("{s:o}", "lm_head", ids_json(head));
    if (embed->n > 0) json_object_set_new(object, "embed_tokens", ids_json(embed));
    return object;
}

json_t *gr_peft_rows_targets_json(const gr_adapter *a) {
    json_t *array = json_array();
    for (int i = 0; i < GR_ROWS_COUNT; i++)
        if (a->config.rows[i].n > 0) json_array_append_new(array, json_string(gr_last_component(gr_rows_module(i))));
    return array;
}

/* ---- tensors ---- */

int gr_peft_rows_of_name(const char *name, const char **adapter) {
    for (int i = 0; i < GR_ROWS_COUNT; i++) {
        size_t n = strlen(gr_rows_module(i)), wrapper = strlen(".token_adapter"), delta = strlen(DELTA);
        const char *rest = name + n;
        if (strncmp(name, gr_rows_module(i), n) != 0) continue;
        if (strncmp(rest, ".token_adapter", wrapper) == 0) rest += wrapper;
        if (strncmp(rest, DELTA, delta) != 0) continue;
        rest += delta;
        *adapter = *rest ? rest + 1 : rest;
        if (*rest == '\0' || (*rest == '.' && rest[1] && !strchr(rest + 1, '.'))) return i;
    }
    return -1;
}

/* PEFT unties a head whose tokens are others than the embedding's: a tied one must have the same. */
static graft_status fit_tied(gr_peft_config *c, const char *path, graft_error *err) {
    const gr_ids_list *embed = &c->config.rows[GR_ROWS_EMBED], *head = &c->config.rows[GR_ROWS_HEAD];
    if (head->n == 0) return GRAFT_OK;
    if (embed->n != head->n || memcmp(embed->ids, head->ids, (size_t)head->n * sizeof *head->ids) != 0)
        return gr_fail(
            err, GRAFT_BAD_INPUT,
            "%s: lm_head has trained rows of other tokens than embed_tokens, and this base's head is its embedding: merge "
            "with PEFT and use the merged model as base",
            path);
    c->config.rows[GR_ROWS_HEAD] = (gr_ids_list){0};
    return GRAFT_OK;
}

graft_status gr_peft_rows_fit(gr_peft_config *c, const gr_model *m, const gr_tensor *const *found, const char *path,
                              graft_error *err) {
    for (int i = 0; i < GR_ROWS_COUNT; i++) {
        bool tied = m->config.tied && i == GR_ROWS_HEAD; /* whose rows PEFT may write once more */
        const gr_ids_list *list = &c->config.rows[tied ? GR_ROWS_EMBED : i];
        if (!found[i] && c->config.rows[i].n > 0 && !tied)
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: %s has trained rows, of which the file has no tensor: it was saved in part",
                           path, gr_rows_module(i));
        if (found[i] && list->n == 0)
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: it names no tokens, and the file has trained rows: tensor %s", path,
                           found[i]->name);
        if (list->n > 0 && list->ids[list->n - 1] >= m->config.vocab)
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "%s: token %d has a trained row, the base has rows 0 to %lld: use the extended base", path,
                           list->ids[list->n - 1], (long long)m->config.vocab - 1);
    }
    return m->config.tied ? fit_tied(c, path, err) : GRAFT_OK;
}

static int64_t place_of(const gr_ids_list *sorted, int32_t id) {
    const int32_t *at = bsearch(&id, sorted->ids, (size_t)sorted->n, sizeof id, by_value);
    return at - sorted->ids;
}

/* The rows of a tensor, ascending by token, in rows; staging has room for as many. */
static graft_status load_sorted(const gr_tensor *t, const gr_ids_list *order, const gr_ids_list *sorted, int64_t C, float *staging,
                                float *rows, graft_error *err) {
    graft_status st = gr_adapter_load_matrix(t, staging, order->n, C, false, "the tokens in its configuration", err);
    for (int64_t r = 0; st == GRAFT_OK && r < order->n; r++)
        memcpy(rows + place_of(sorted, order->ids[r]) * C, staging + r * C, (size_t)C * sizeof *rows);
    return st;
}

graft_status gr_peft_rows_load(gr_adapter *a, const gr_peft_config *c, const gr_tensor *const *found, graft_error *err) {
    graft_status st = GRAFT_OK;
    const gr_tensor *again = a->config.rows[GR_ROWS_HEAD].n == 0 ? found[GR_ROWS_HEAD] : NULL; /* of a tied head */
    int64_t largest = gr_params_largest(a->params);
    float *staging = gr_calloc(largest, sizeof *staging), *rows = gr_calloc(largest, sizeof *rows);
    float *twice = again ? gr_calloc(largest, sizeof *twice) : NULL;
    if (!staging || !rows || (again && !twice)) GR_TRY(gr_fail_memory(err, "adapter"));
    for (int i = 0; i < GR_ROWS_COUNT; i++) {
        const gr_ids_list *sorted = &a->config.rows[i];
        if (sorted->n == 0) continue;
        int64_t C = a->params->items[a->rows[i]].cols;
        GR_TRY(load_sorted(found[i], &c->rows[i], sorted, C, staging, rows, err));
        gr_params_write(a->params, GR_PARAMS_VALUE, a->rows[i], rows);
        if (!again) continue;
        const gr_ids_list *order = &c->rows[c->rows[GR_ROWS_HEAD].n > 0 ? GR_ROWS_HEAD : i];
        GR_TRY(load_sorted(again, order, sorted, C, staging, twice, err));
        if (memcmp(twice, rows, (size_t)(sorted->n * C) * sizeof *rows) != 0)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                           "%s: tensors %s and %s differ, and this base's head is its embedding: is this the adapter's base model?",
                           again->file, found[i]->name, again->name));
    }
done:
    free(staging);
    free(rows);
    free(twice);
    return st;
}
