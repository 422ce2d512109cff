/* Rows of tokens in an adapter, PEFT's trainable tokens (peft src/peft/tuners/trainable_tokens): they stand in place of the base's
 * rows, nothing is added and there is no scale. */
#include "adapters/impl.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"

static const char *const modules[GR_ROWS_COUNT] = {"model.embed_tokens", "lm_head"};

const char *gr_rows_module(int which) { return modules[which]; }

/* ---- planning ---- */

static graft_status check_ids(const gr_ids_list *list, const char *module, const gr_model *m, graft_error *err) {
    for (int64_t i = 0; i < list->n; i++) {
        if (list->ids[i] < 0 || list->ids[i] >= m->config.vocab)
            return gr_fail(err, GRAFT_BAD_USAGE, "token %d is trained: the base's %s has rows 0 to %lld", list->ids[i], module,
                           (long long)m->config.vocab - 1);
        if (i > 0 && list->ids[i] <= list->ids[i - 1])
            return gr_fail(err, GRAFT_BAD_USAGE, "token %d is named twice among those that are trained", list->ids[i]);
    }
    return GRAFT_OK;
}

/* A module has rows of its own or a LoRA, as in PEFT. */
static graft_status check_lora(const gr_adapter *a, const gr_model *m, graft_error *err) {
    for (int64_t j = 0; j < a->n_modules; j++) {
        bool embed = a->modules[j].index == 0, head = strcmp(a->modules[j].name, "lm_head") == 0;
        if ((embed && a->config.rows[GR_ROWS_EMBED].n > 0) ||
            (head && a->config.rows[m->config.tied ? GR_ROWS_EMBED : GR_ROWS_HEAD].n > 0))
            return gr_fail(err, GRAFT_BAD_USAGE,
                           "target_modules names %s, of which rows of tokens are trained: it can have these or a LoRA, not both",
                           a->modules[j].name);
    }
    return GRAFT_OK;
}

graft_status gr_adapter_add_rows(gr_adapter *a, const gr_adapter_config *c, gr_model *m, graft_error *err) {
    graft_status st = GRAFT_OK;
    for (int i = 0; i < GR_ROWS_COUNT; i++) {
        int64_t n = c->rows[i].n;
        char name[128];
        a->config.rows[i] = (gr_ids_list){0};
        if (n == 0) continue;
        GR_TRY(check_ids(&c->rows[i], modules[i], m, err));
        if (i == GR_ROWS_HEAD && m->config.tied)
            GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "rows of lm_head are trained apart, and the base's head is its embedding"));
        int32_t *ids = gr_arena_alloc(&a->arena, n * (int64_t)sizeof *ids);
        if (!ids) GR_TRY(gr_fail_memory(err, "adapter"));
        memcpy(ids, c->rows[i].ids, (size_t)n * sizeof *ids);
        a->config.rows[i] = (gr_ids_list){ids, n};
        snprintf(name, sizeof name, "%s.%strainable_tokens_delta", modules[i], c->rows_alone ? "" : "token_adapter.");
        GR_TRY(gr_params_add(a->params, name, n, m->config.hidden, true, &a->rows[i], err));
    }
    GR_TRY(check_lora(a, m, err));
done:
    return st;
}

/* ---- values ---- */

/* The base's rows into the adapter's: training begins where the base is. */
graft_status gr_adapter_init_rows(gr_adapter *a, const gr_model *m, graft_error *err) {
    graft_status st = GRAFT_OK;
    float *staging = gr_calloc(gr_params_largest(a->params), sizeof *staging);
    if (!staging) GR_TRY(gr_fail_memory(err, "adapter"));
    for (int i = 0; i < GR_ROWS_COUNT; i++) {
        const gr_ids_list *list = &a->config.rows[i];
        if (list->n == 0) continue;
        const gr_weight_entry *head = gr_weights_find(m->weights, "lm_head.weight");
        const gr_weight *w = &(i == GR_ROWS_HEAD && head ? head : gr_weights_get(m->weights, 0))->view;
        int64_t row_bytes = gr_dtype_bytes(w->dtype, w->cols);
        GR_ASSERT(w->data && row_bytes > 0);
        for (int64_t r = 0; r < list->n; r++)
            gr_dtype_get(w->dtype)->to_f32(staging + r * w->cols, (const char *)w->data + list->ids[r] * row_bytes, w->cols);
        gr_params_write(a->params, GR_PARAMS_VALUE, a->rows[i], staging);
        if (list->n == w->rows) gr_weights_rest(m->weights, w->data);
    }
done:
    free(staging);
    return st;
}

/* Where id stands in the list, -1: it does not. */
static int64_t find(const gr_ids_list *list, int32_t id) {
    int64_t low = 0, high = list->n;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (list->ids[middle] < id) low = middle + 1;
        else high = middle;
    }
    return low < list->n && list->ids[low] == id ? low : -1;
}

/* No row of `from` may be lost. */
static graft_status check_copy(const gr_adapter *a, const gr_adapter *from, graft_error *err) {
    for (int i = 0; i < GR_ROWS_COUNT; i++)
        for (int64_t r = 0; r < from->config.rows[i].n; r++)
            if (find(&a->config.rows[i], from->config.rows[i].ids[r]) < 0)
                return gr_fail(err, GRAFT_BAD_INPUT,
                               "the adapter to start from has %lld trained rows of %s, and that of token %d is not trained here: "
                               "name it in adapter.%s, or merge that adapter first",
                               (long long)from->config.rows[i].n, modules[i], from->config.rows[i].ids[r],
                               a->config.rows_alone ? "rows" : "trainable_tokens");
    return GRAFT_OK;
}

graft_status gr_adapter_copy_rows(gr_adapter *a, const gr_adapter *from, graft_error *err) {
    graft_status st = GRAFT_OK;
    float *to = NULL, *rows = NULL;
    GR_TRY(check_copy(a, from, err));
    to = gr_calloc(gr_params_largest(a->params), sizeof *to);
    rows = gr_calloc(gr_params_largest(from->params), sizeof *rows);
    if (!to || !rows) GR_TRY(gr_fail_memory(err, "adapter"));
    for (int i = 0; i < GR_ROWS_COUNT; i++) {
        const gr_ids_list *list = &from->config.rows[i];
        if (list->n == 0) continue;
        int64_t C = a->params->items[a->rows[i]].cols;
        gr_params_read(from->params, GR_PARAMS_VALUE, from->rows[i], rows);
        gr_params_read(a->params, GR_PARAMS_VALUE, a->rows[i], to);
        for (int64_t r = 0; r < list->n; r++)
            memcpy(to + find(&a->config.rows[i], list->ids[r]) * C, rows + r * C, (size_t)C * sizeof *to);
        gr_params_write(a->params, GR_PARAMS_VALUE, a->rows[i], to);
        if (list->n < a->config.rows[i].n)
            gr_note("%lld of %lld trained rows of %s come from the adapter to start from, the others from the base",
                    (long long)list->n, (long long)a->config.rows[i].n, modules[i]);
    }
done:
    free(to);
    free(rows);
    return st;
}

/* ---- slots of the model ---- */

graft_status gr_adapter_check_rows(const gr_adapter *a, const gr_model *m, double user_scale, graft_error *err) {
    const gr_segment *segments[GR_ROWS_COUNT] = {&m->embed_rows, &m->head_rows};
    const gr_linear *linears[GR_ROWS_COUNT] = {&m->embed, &m->head};
    for (int i = 0; i < GR_ROWS_COUNT; i++) {
        bool rows = a->config.rows[m->config.tied ? GR_ROWS_EMBED : i].n > 0, lora = false;
        for (int64_t j = 0; j < a->n_modules; j++) lora |= m->modules[a->modules[j].index].linear == linears[i];
        if (rows && user_scale != 1)
            return gr_fail(err, GRAFT_BAD_USAGE, "an adapter with trained rows has no scale: they stand in place of the base's");
        if ((rows && (segments[i]->n > 0 || linears[i]->n_lora > 0)) || (lora && segments[i]->n > 0))
            return gr_fail(err, GRAFT_BAD_USAGE, "two adapters change %s, and one by rows in place of the base's: merge one first",
                           modules[i]);
    }
    return GRAFT_OK;
}

graft_status gr_adapter_attach_rows(gr_adapter *a, gr_model *m, graft_error *err) {
    graft_status st = GRAFT_OK;
    bool planned = !a->params->value;
    for (int i = 0; i < GR_ROWS_COUNT; i++) {
        const gr_ids_list *list = &a->config.rows[i];
        gr_rows_values values = {.ids = list->ids, .n = list->n};
        if (list->n == 0) continue;
        if (!planned) values.value = gr_params_value(a->params, a->rows[i]), values.grad = gr_params_grad(a->params, a->rows[i]);
        GR_TRY(gr_model_attach_rows(m, i == GR_ROWS_HEAD, &values, err));
    }
done:
    return st;
}

/* ---- in a merged model ---- */

int gr_adapter_rows_of(const gr_adapter *a, const char *weight, bool tied) {
    bool embed = strcmp(weight, "model.embed_tokens.weight") == 0, head = strcmp(weight, "lm_head.weight") == 0;
    int which = head && !tied ? GR_ROWS_HEAD : GR_ROWS_EMBED;
    return (embed || head) && a->config.rows[which].n > 0 ? which : -1;
}

void gr_adapter_place_rows(const gr_adapter *a, int which, int64_t first, int64_t n, int64_t K, float *rows) {
    const gr_ids_list *list = &a->config.rows[which];
    for (int64_t r = 0; r < list->n; r++)
        if (list->ids[r] >= first && list->ids[r] < first + n)
            gr_params_read_part(a->params, GR_PARAMS_VALUE, a->rows[which], r * K, K, rows + (list->ids[r] - first) * K);
}

bool gr_adapter_has_rows(const gr_adapter *a) { return a->config.rows[GR_ROWS_EMBED].n + a->config.rows[GR_ROWS_HEAD].n > 0; }
