#include "core/model/rows.h"

#include <stdlib.h>

#include "core/model/model.h"

/* Rows first .. first + n of w. */
static gr_weight part_of(const gr_weight *w, int64_t first, int64_t n) {
    gr_weight part = *w;
    part.rows = n;
    if (w->data) part.data = (const char *)w->data + first * gr_dtype_bytes(w->dtype, w->cols);
    return part;
}

static bool is_range(const gr_segment *s) { return s->n > 0 && s->ids[s->n - 1] - s->ids[0] == s->n - 1; }

static void add_part(gr_model *m, int64_t first, int64_t n) {
    gr_linear *part = &m->head_part[m->head_group.n];
    *part = (gr_linear){.w = part_of(&m->head.w, first, n)};
    if (n > 0) m->head_group.member[m->head_group.n++] = part;
}

void gr_model_split_head(gr_model *m) {
    gr_segment *s = &m->head_rows;
    m->head_group.n = m->rows_group.n = 0;
    m->rows_group.compute = m->compute;
    if (is_range(s)) {
        int64_t end = s->ids[0] + s->n;
        add_part(m, 0, s->ids[0]);
        m->head_group.member[m->head_group.n++] = &s->linear;
        add_part(m, end, m->config.vocab - end);
        return;
    }
    m->head_group.member[m->head_group.n++] = &m->head;
    if (s->n > 0) m->rows_group.member[m->rows_group.n++] = &s->linear;
}

static graft_status make_place(gr_segment *s, int64_t vocab, graft_error *err) {
    s->place = gr_calloc(vocab, sizeof *s->place);
    if (!s->place) return gr_fail_memory(err, "rows of tokens");
    for (int64_t v = 0; v < vocab; v++) s->place[v] = -1;
    for (int64_t i = 0; i < s->n; i++) s->place[s->ids[i]] = (int32_t)i;
    return GRAFT_OK;
}

static graft_status make_columns(gr_segment *s, gr_device *d, graft_error *err) {
    int64_t bytes = s->n * (int64_t)sizeof *s->columns;
    if (is_range(s)) return GRAFT_OK;
    s->columns = d->alloc(d, bytes);
    if (!s->columns) return gr_fail_device_memory(d, bytes, "rows of tokens", err);
    d->upload(d, s->columns, s->ids, bytes);
    return GRAFT_OK;
}

graft_status gr_model_attach_rows(gr_model *m, bool head, const gr_rows_values *rows, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_segment s = {.n = rows->n, .ids = rows->ids};
    s.linear = (gr_linear){.w = {.dtype = GR_DTYPE_F32, .rows = rows->n, .cols = m->config.hidden, .data = rows->value},
                           .dw = rows->grad,
                           .exact = true};
    GR_ASSERT(rows->n > 0 && rows->ids[0] >= 0 && rows->ids[rows->n - 1] < m->config.vocab && !(head && m->config.tied));
    if ((head ? &m->head_rows : &m->embed_rows)->n > 0)
        return gr_fail(err, GRAFT_BAD_USAGE, "there are rows of another adapter in the %s already: merge one adapter first",
                       head ? "head" : "embedding");
    gr_model_unplace(m);
    gr_segment *embed = head ? NULL : &m->embed_rows, *of_head = head || m->config.tied ? &m->head_rows : NULL;
    if (embed) *embed = s;
    if (of_head) *of_head = s;
    if (embed) GR_TRY(make_place(embed, m->config.vocab, err));
    if (of_head) GR_TRY(make_columns(of_head, m->device, err));
    gr_model_split_head(m);
done:
    if (st != GRAFT_OK) gr_model_detach_rows(m);
    return st;
}

void gr_model_detach_rows(gr_model *m) {
    gr_model_unplace(m);
    free(m->embed_rows.place);
    if (m->head_rows.columns) m->device->free(m->device, m->head_rows.columns);
    m->embed_rows = m->head_rows = (gr_segment){0};
    gr_model_split_head(m);
}
