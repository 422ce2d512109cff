#include "peft/metrics.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "peft/plot.h"
#include "peft/tfevents.h"

typedef struct row { /* one line of metrics.jsonl */
    bool is_eval;
    gr_train_row train;
    gr_eval_row eval;
} row;

struct gr_metrics {
    char *folder, *jsonl_path;
    FILE *jsonl;
    gr_tfevents *events; /* NULL: off */
    bool plot;
    row *rows;
    int64_t n_rows, capacity;
};

/* The fields of a row in the order in which metrics.jsonl has them. */
typedef struct field {
    const char *name, *tag; /* tag: TensorBoard's, NULL = not shown there */
    size_t offset;
    bool is_int, optional; /* optional: left out when NaN */
    bool in_state;         /* also in trainer_state.json's log_history */
} field;

static const field train_fields[] = {
    {"step", NULL, offsetof(gr_train_row, step), true, false, true},
    {"epoch", "train/epoch", offsetof(gr_train_row, epoch), false, false, true},
    {"loss", "train/loss", offsetof(gr_train_row, loss), false, false, true},
    {"grad_norm", "train/grad_norm", offsetof(gr_train_row, grad_norm), false, false, true},
    {"learning_rate", "train/learning_rate", offsetof(gr_train_row, learning_rate), false, false, true},
    {"tokens_per_second", "train/tokens_per_second", offsetof(gr_train_row, tokens_per_second), false, false, false},
    {"num_tokens", NULL, offsetof(gr_train_row, num_tokens), true, false, true},
    {"num_target_tokens", NULL, offsetof(gr_train_row, num_target_tokens), true, false, false},
};

static const field eval_fields[] = {
    {"step", NULL, offsetof(gr_eval_row, step), true, false, true},
    {"epoch", NULL, offsetof(gr_eval_row, epoch), false, false, true},
    {"eval_loss", "eval/loss", offsetof(gr_eval_row, eval_loss), false, false, true},
    {"eval_runtime", "eval/runtime", offsetof(gr_eval_row, eval_runtime), false, false, true},
    {"eval_samples_per_second", "eval/samples_per_second", offsetof(gr_eval_row, eval_samples_per_second), false, false, true},
    {"eval_exact_match", "eval/exact_match", offsetof(gr_eval_row, exact_match), false, true, true},
};

static const field *fields_of(const row *r, int *n) {
    *n = r->is_eval ? GR_LEN(eval_fields) : GR_LEN(train_fields);
    return r->is_eval ? eval_fields : train_fields;
}

static char *values_of(row *r) { return r->is_eval ? (char *)&r->eval : (char *)&r->train; }

static double real_at(const char *values, const field *f) {
    double v;
    memcpy(&v, values + f->offset, sizeof(v));
    return v;
}

static int64_t int_at(const char *values, const field *f) {
    int64_t v;
    memcpy(&v, values + f->offset, sizeof(v));
    return v;
}

static int64_t row_step(const row *r) { return r->is_eval ? r->eval.step : r->train.step; }

/* The shortest decimal that reads back as v; null where JSON has no number. */
static void put_real(gr_str *s, double v) {
    char text[40];
    if (!isfinite(v)) {
        gr_str_puts(s, "null");
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, v);
        if (strtod(text, NULL) == v) break;
    }
    gr_str_puts(s, text);
    if (!strpbrk(text, ".e")) gr_str_puts(s, ".0");
}

static void put_value(gr_str *s, const char *values, const field *f) {
    if (f->is_int) gr_str_printf(s, "%lld", (long long)int_at(values, f));
    else put_real(s, real_at(values, f));
}

static bool left_out(const char *values, const field *f) { return f->optional && isnan(real_at(values, f)); }

static void put_line(gr_str *s, row *r) {
    int n;
    const field *f = fields_of(r, &n);
    const char *values = values_of(r);
    for (int i = 0; i < n; i++) {
        if (left_out(values, f + i)) continue;
        gr_str_printf(s, "%s\"%s\": ", i == 0 ? "{" : ", ", f[i].name);
        put_value(s, values, f + i);
    }
    gr_str_puts(s, "}\n");
}

/* ---- opening, and the rows of the run so far ---- */

static graft_status read_row(row *r, const char *line, int64_t len, const char *where, graft_error *err) {
    json_error_t problem;
    json_t *o = json_loadb(line, (size_t)len, 0, &problem);
    if (!json_is_object(o) || !json_is_integer(json_object_get(o, "step"))) {
        json_decref(o);
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: not a line of metrics (expected {\"step\": ...}); move the file away to go on without it", where);
    }
    *r = (row){.is_eval = json_object_get(o, "eval_loss") != NULL};
    int n;
    const field *f = fields_of(r, &n);
    for (int i = 0; i < n; i++) {
        const json_t *v = json_object_get(o, f[i].name);
        int64_t integer = json_is_integer(v) ? json_integer_value(v) : 0;
        double real = json_is_number(v) ? json_number_value(v) : NAN;
        if (f[i].is_int) memcpy(values_of(r) + f[i].offset, &integer, sizeof(integer));
        else memcpy(values_of(r) + f[i].offset, &real, sizeof(real));
    }
    json_decref(o);
    return GRAFT_OK;
}

static graft_status add_row(gr_metrics *m, const row *r, graft_error *err) {
    if (!gr_grow(&m->rows, &m->capacity, m->n_rows + 1, sizeof(row))) return gr_fail_memory(err, "metrics");
    m->rows[m->n_rows++] = *r;
    return GRAFT_OK;
}

/* Keep the lines up to `step`. A last line without its newline was being written when the run was killed: it goes. */
static graft_status keep_rows(gr_metrics *m, int64_t step, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *text = NULL, where[512];
    int64_t len = 0, line = 0;
    gr_str kept = {0};
    if (!gr_exists(m->jsonl_path)) return GRAFT_OK;
    GR_TRY(gr_file_read(&text, &len, m->jsonl_path, (int64_t)1 << 32, err));
    for (char *at = text, *end; (end = memchr(at, '\n', (size_t)(text + len - at))); at = end + 1) {
        row r;
        line++;
        if (end == at) continue;
        snprintf(where, sizeof(where), "%s:%lld", m->jsonl_path, (long long)line);
        GR_TRY(read_row(&r, at, end - at, where, err));
        if (row_step(&r) > step) continue;
        GR_TRY(add_row(m, &r, err));
        gr_str_add(&kept, at, end + 1 - at);
    }
    if (kept.failed) GR_TRY(gr_fail_memory(err, "metrics"));
    GR_TRY(gr_file_write(m->jsonl_path, kept.data ? kept.data : "", kept.len, err));
done:
    gr_str_release(&kept);
    free(text);
    return st;
}

graft_status gr_metrics_open(gr_metrics **out, const char *folder, bool tensorboard, bool plot, int64_t resume_step,
                             graft_error *err) {
    graft_status st = GRAFT_OK;
    *out = NULL;
    gr_metrics *m = gr_calloc(1, sizeof(*m));
    if (!m) return gr_fail_memory(err, "metrics");
    m->plot = plot;
    m->folder = gr_strdup(folder);
    m->jsonl_path = gr_path_join(folder, "metrics.jsonl");
    if (!m->folder || !m->jsonl_path) GR_TRY(gr_fail_memory(err, "metrics"));
    if (resume_step >= 0) GR_TRY(keep_rows(m, resume_step, err));
    m->jsonl = fopen(m->jsonl_path, resume_step >= 0 ? "ab" : "wb");
    if (!m->jsonl) GR_TRY(gr_fail_errno(err, GRAFT_FAILED, "%s: cannot write", m->jsonl_path));
    if (tensorboard) GR_TRY(gr_tfevents_open(&m->events, folder, resume_step >= 0 ? resume_step + 1 : 0, err));
done:
    if (st != GRAFT_OK) {
        gr_metrics_close(m);
        return st;
    }
    *out = m;
    return GRAFT_OK;
}

void gr_metrics_close(gr_metrics *m) {
    if (!m) return;
    if (m->jsonl) fclose(m->jsonl);
    gr_tfevents_close(m->events);
    free(m->rows);
    free(m->jsonl_path);
    free(m->folder);
    free(m);
}

/* ---- rows ---- */

static graft_status log_row(gr_metrics *m, row *r, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_str line = {0};
    gr_scalar scalars[8];
    int n, n_scalars = 0;
    const field *f = fields_of(r, &n);
    put_line(&line, r);
    if (line.failed) GR_TRY(gr_fail_memory(err, "metrics"));
    if (fwrite(line.data, 1, (size_t)line.len, m->jsonl) != (size_t)line.len || fflush(m->jsonl) != 0)
        GR_TRY(gr_fail_errno(err, GRAFT_FAILED, "%s: cannot write", m->jsonl_path));
    for (int i = 0; i < n; i++)
        if (f[i].tag && !left_out(values_of(r), f + i)) scalars[n_scalars++] = (gr_scalar){f[i].tag, real_at(values_of(r), f + i)};
    if (m->events) GR_TRY(gr_tfevents_add(m->events, row_step(r), scalars, n_scalars, err));
    GR_TRY(add_row(m, r, err));
done:
    gr_str_release(&line);
    return st;
}

graft_status gr_metrics_train(gr_metrics *m, const gr_train_row *train, graft_error *err) {
    row r = {.is_eval = false, .train = *train};
    return log_row(m, &r, err);
}

graft_status gr_metrics_eval(gr_metrics *m, const gr_eval_row *eval, graft_error *err) {
    row r = {.is_eval = true, .eval = *eval};
    return log_row(m, &r, err);
}

/* ---- trainer_state.json and loss.svg ---- */

static int by_name(const void *a, const void *b) {
    return strcmp((*(const field *const *)a)->name, (*(const field *const *)b)->name);
}

static void put_history(gr_str *s, gr_metrics *m) {
    const field *sorted[GR_LEN(train_fields)];
    if (m->n_rows == 0) gr_str_puts(s, "  \"log_history\": [],\n");
    else gr_str_puts(s, "  \"log_history\": [\n");
    for (int64_t i = 0; i < m->n_rows; i++) {
        int n, n_sorted = 0;
        const field *f = fields_of(&m->rows[i], &n);
        const char *values = values_of(&m->rows[i]);
        for (int j = 0; j < n; j++)
            if (f[j].in_state && !left_out(values, f + j)) sorted[n_sorted++] = f + j;
        qsort(sorted, (size_t)n_sorted, sizeof(sorted[0]), by_name);
        gr_str_puts(s, "    {\n");
        for (int j = 0; j < n_sorted; j++) {
            gr_str_printf(s, "      \"%s\": ", sorted[j]->name);
            put_value(s, values, sorted[j]);
            gr_str_puts(s, j + 1 < n_sorted ? ",\n" : "\n");
        }
        gr_str_puts(s, i + 1 < m->n_rows ? "    },\n" : "    }\n  ],\n");
    }
}

static void put_int(gr_str *s, const char *name, int64_t v) { gr_str_printf(s, "  \"%s\": %lld,\n", name, (long long)v); }

static void put_named_real(gr_str *s, const char *name, double v) {
    gr_str_printf(s, "  \"%s\": ", name);
    put_real(s, v);
    gr_str_puts(s, ",\n");
}

/* A path as a JSON string. */
static void put_json_string(gr_str *s, const char *text) {
    json_t *string = json_string(text); /* NULL for invalid UTF-8 */
    char *quoted = string ? json_dumps(string, JSON_ENCODE_ANY) : NULL;
    gr_str_puts(s, quoted ? quoted : "null");
    free(quoted);
    json_decref(string);
}

/* As transformers' TrainerState.save_to_json: keys sorted, indented by two. */
static void put_state(gr_str *s, gr_metrics *m, const gr_run_facts *facts) {
    int64_t step = facts->global_step, tokens = 0;
    double epoch = facts->epoch;
    for (int64_t i = 0; i < m->n_rows; i++) {
        const row *r = &m->rows[i];
        if (row_step(r) >= step) {
            step = row_step(r);
            epoch = r->is_eval ? r->eval.epoch : r->train.epoch;
        }
        if (!r->is_eval) tokens = r->train.num_tokens;
    }
    gr_str_puts(s, "{\n");
    if (facts->best_step >= 0) put_int(s, "best_global_step", facts->best_step);
    else gr_str_puts(s, "  \"best_global_step\": null,\n");
    put_named_real(s, "best_metric", facts->best_metric);
    gr_str_puts(s, "  \"best_model_checkpoint\": ");
    char *best = facts->best_step < 0 ? NULL
                 : facts->best_folder ? gr_strdup(facts->best_folder)
                                      : gr_format("%s/checkpoint-%lld", m->folder, (long long)facts->best_step);
    if (best) put_json_string(s, best);
    else gr_str_puts(s, "null");
    free(best);
    gr_str_puts(s, ",\n");
    put_named_real(s, "epoch", epoch);
    put_int(s, "eval_steps", facts->eval_steps);
    put_int(s, "global_step", step);
    gr_str_puts(s, "  \"is_hyper_param_search\": false,\n  \"is_local_process_zero\": true,\n"
                   "  \"is_world_process_zero\": true,\n");
    put_history(s, m);
    put_int(s, "logging_steps", facts->logging_steps);
    put_int(s, "max_steps", facts->max_steps);
    put_int(s, "num_input_tokens_seen", tokens);
    if (facts->num_train_epochs == floor(facts->num_train_epochs) && fabs(facts->num_train_epochs) < 1e15)
        put_int(s, "num_train_epochs", (int64_t)facts->num_train_epochs);
    else put_named_real(s, "num_train_epochs", facts->num_train_epochs);
    put_int(s, "save_steps", facts->save_steps);
    gr_str_puts(s, "  \"stateful_callbacks\": {},\n  \"total_flos\": 0,\n");
    put_int(s, "train_batch_size", facts->train_batch_size);
    gr_str_puts(s, "  \"trial_name\": null,\n  \"trial_params\": null\n}\n");
}

static graft_status save_text(gr_metrics *m, const char *name, gr_str *text, graft_error *err) {
    char *path = gr_path_join(m->folder, name);
    graft_status st = path && !text->failed ? gr_file_write(path, text->data, text->len, err) : gr_fail_memory(err, name);
    free(path);
    gr_str_release(text);
    return st;
}

static graft_status save_plot(gr_metrics *m, graft_error *err) {
    gr_str svg = {0};
    int64_t n_train = 0, n_eval = 0;
    gr_point *train = gr_calloc(m->n_rows + 1, sizeof(*train)), *eval = gr_calloc(m->n_rows + 1, sizeof(*eval));
    if (!train || !eval) {
        free(train);
        free(eval);
        return gr_fail_memory(err, "loss.svg");
    }
    for (int64_t i = 0; i < m->n_rows; i++) {
        const row *r = &m->rows[i];
        if (r->is_eval) eval[n_eval++] = (gr_point){(double)r->eval.step, r->eval.eval_loss};
        else train[n_train++] = (gr_point){(double)r->train.step, r->train.loss};
    }
    const char *slash = strrchr(m->folder, '/');
    char *title = gr_format("Loss of %s", slash && slash[1] ? slash + 1 : m->folder);
    gr_plot_loss(&svg, title ? title : "Loss", train, n_train, eval, n_eval);
    free(title);
    free(train);
    free(eval);
    return save_text(m, "loss.svg", &svg, err);
}

graft_status gr_metrics_save(gr_metrics *m, const gr_run_facts *facts, graft_error *err) {
    gr_str state = {0};
    put_state(&state, m, facts);
    graft_status st = save_text(m, "trainer_state.json", &state, err);
    if (st == GRAFT_OK && m->plot) st = save_plot(m, err);
    return st;
}
