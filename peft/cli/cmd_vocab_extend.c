/* graft vocab extend */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/extend.h"
#include "core/data/content.h"
#include "core/data/texts.h"
#include "core/text/extend.h"
#include "core/text/utf8.h"
#include "peft/cli/session_args.h"

/* ---- held-out text: what is measured ---- */

typedef struct measure { /* ids: before and after */
    int64_t lines, characters, ids[2];
} measure;

typedef struct measuring {
    const gr_tokenizer *x;
    measure *parts; /* of each thread */
} measuring;

/* Lines of a file, or all that a message says. */
static graft_status measure_text(void *context, int worker, const char *text, int64_t len, graft_error *err) {
    const measuring *all = context;
    measure *m = &all->parts[worker];
    graft_status st = GRAFT_OK;
    int size;
    for (int64_t at = 0, end; st == GRAFT_OK && at < len; at = end + 1) {
        const char *newline = memchr(text + at, '\n', (size_t)(len - at));
        end = newline ? newline - text : len;
        int64_t n = end > at && text[end - 1] == '\r' ? end - 1 - at : end - at;
        if (n == 0) continue;
        st = gr_vocab_check_text(all->x, text + at, n, m->ids, err);
        for (int64_t i = 0; i < n; i += size, m->characters++) gr_utf8_read(text + at + i, n - i, &size);
        m->lines++;
    }
    return st;
}

static graft_status measure_files(const gr_args *a, const gr_tokenizer *x, gr_threads *threads, measure *sum, graft_error *err) {
    graft_status st = GRAFT_OK;
    const int n_parts = gr_threads_count(threads);
    const char **paths = gr_calloc(a->n_given + 1, sizeof *paths);
    gr_data_source *sources = gr_calloc(a->n_given + 1, sizeof *sources);
    measure *parts = gr_calloc(n_parts, sizeof *parts);
    if (!paths || !sources || !parts) GR_TRY(gr_fail_memory(err, "held-out text"));
    const char *encoding = gr_args_text(a, "encoding", NULL);
    int n = gr_args_all(a, "text", paths);
    for (int i = 0; i < n; i++)
        sources[i] = (gr_data_source){.path = paths[i], .format = "auto", .weight = 1, .encoding = encoding};
    if (n == 0) goto done;
    int64_t bytes;
    GR_TRY(gr_texts_read(sources, n, threads, measure_text, &(measuring){x, parts}, &bytes, err));
    for (int i = 0; i < n_parts; i++) {
        sum->lines += parts[i].lines, sum->characters += parts[i].characters;
        sum->ids[0] += parts[i].ids[0], sum->ids[1] += parts[i].ids[1];
    }
    if (sum->lines == 0) st = gr_fail(err, GRAFT_BAD_INPUT, "%s: no lines in it", paths[0]);
done:
    free(paths);
    free(sources);
    free(parts);
    return st;
}

/* ---- the report ---- */

typedef struct extension {
    const char *out, *vocab;
    gr_vocab_report pieces;
    gr_extend_report model;
    measure text;
} extension;

static double per(int64_t n, int64_t of, double times) { return of > 0 ? times * (double)n / (double)of : 0; }

static void print_text(const extension *x) {
    const gr_vocab_report *p = &x->pieces;
    const gr_merge_report *w = &x->model.written;
    const measure *t = &x->text;
    printf("%s: %lld new pieces, ids %lld to %lld; %lld rows, before %lld, %lld without a token; %s, %.1f MB, "
           "read back and compared\n",
           x->out, (long long)p->n_new, (long long)p->first_new, (long long)(p->first_new + p->n_new - 1), (long long)x->model.rows,
           (long long)x->model.base_rows, (long long)x->model.padding, gr_dtype_get(w->dtype)->name, (double)w->n_bytes / 1e6);
    printf("%s, %lld pieces:", x->vocab, (long long)p->n_pieces);
    for (int i = 0, n = 0; i < GR_VOCAB_N_FATES; i++) {
        if (p->fates[i] == 0) continue;
        printf("%s %lld %s%s%s%s", n++ ? "," : "", (long long)p->fates[i], gr_vocab_fate_name((gr_vocab_fate)i),
               *p->examples[i] && i > 0 ? " (" : "", i > 0 ? p->examples[i] : "", *p->examples[i] && i > 0 ? ")" : "");
    }
    if (p->n_merges > 0) printf("\n%lld merges, for which", (long long)p->n_merges);
    else printf("\nscores decide what merges, for which");
    printf(" %lld intermediate pieces were needed", (long long)p->n_intermediate);
    if (p->n_unproved > 0) printf("; %lld pieces are spelt otherwise by themselves (%s)", (long long)p->n_unproved, p->unproved);
    printf("\na new piece stands for %.2f old tokens on average\n", x->model.spelling);
    if (t->lines > 0)
        printf(
            "held-out text, %lld lines: %.1f tokens a line, before %.1f; %.0f tokens for 1,000 characters, before %.0f: %.2f times "
            "fewer\n",
            (long long)t->lines, per(t->ids[1], t->lines, 1), per(t->ids[0], t->lines, 1), per(t->ids[1], t->characters, 1000),
            per(t->ids[0], t->characters, 1000), per(t->ids[0], t->ids[1], 1));
    else printf("no held-out text (--text FILE): tokens a line are not measured\n");
    printf("old tokens: largest logit difference %.3g (the largest logit is %.3g)\n", w->max_logit_difference, w->largest_logit);
}

static void print_json(const extension *x) {
    const gr_vocab_report *p = &x->pieces;
    const gr_merge_report *w = &x->model.written;
    const measure *t = &x->text;
    json_t *fates = json_object(), *held = json_null();
    for (int i = 0; i < GR_VOCAB_N_FATES; i++)
        json_object_set_new(fates, gr_vocab_fate_name((gr_vocab_fate)i), json_integer(p->fates[i]));
    if (t->lines > 0)
        held = json_pack("{s:I,s:I,s:I,s:I,s:f,s:f,s:f,s:f,s:f}", "lines", (json_int_t)t->lines, "characters",
                         (json_int_t)t->characters, "tokens_before", (json_int_t)t->ids[0], "tokens", (json_int_t)t->ids[1],
                         "tokens_per_line_before", per(t->ids[0], t->lines, 1), "tokens_per_line", per(t->ids[1], t->lines, 1),
                         "tokens_per_1000_characters_before", per(t->ids[0], t->characters, 1000), "tokens_per_1000_characters",
                         per(t->ids[1], t->characters, 1000), "times_fewer", per(t->ids[0], t->ids[1], 1));
    json_t *json = json_pack(
        "{s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:o,s:o,s:I,s:f,s:f}", "out", x->out, "dtype",
        gr_dtype_get(w->dtype)->name, "rows", (json_int_t)x->model.rows, "rows_before", (json_int_t)x->model.base_rows, "padding",
        (json_int_t)x->model.padding, "first_new", (json_int_t)p->first_new, "new", (json_int_t)p->n_new, "intermediate",
        (json_int_t)p->n_intermediate, "merges", (json_int_t)p->n_merges, "unproved", (json_int_t)p->n_unproved, "pieces",
        (json_int_t)p->n_pieces, "old_tokens_per_new", x->model.spelling, "fates", fates, "text", held, "bytes",
        (json_int_t)w->n_bytes, "max_logit_difference", w->max_logit_difference, "largest_logit", w->largest_logit);
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(json);
}

/* ---- the command ---- */

static graft_status read_options(const gr_args *a, gr_extend_options *o, extension *x, int64_t *size, graft_error *err) {
    graft_status st = GRAFT_OK;
    const char *init = gr_args_text(a, "init", "pieces");
    x->out = gr_args_text(a, "out", NULL);
    x->vocab = gr_args_text(a, "vocab", NULL);
    if (!gr_args_has(a, "model") && a->n_arguments == 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "what to extend is missing: give --model PATH"));
    if (!x->vocab)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE,
                       "no vocabulary: give --vocab PATH, a tokenizer.json or .model of `graft vocab train` or another program"));
    if (!x->out) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "no place to write to: give --out PATH"));
    o->init = strcmp(init, "mean") == 0 ? GR_EXTEND_MEAN : GR_EXTEND_PIECES;
    if (o->init == GR_EXTEND_PIECES && strcmp(init, "pieces") != 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--init: expected pieces or mean, found \"%s\"", init));
    GR_TRY(gr_args_int(a, "size", 1, 0, size, err));
    GR_TRY(gr_args_int(a, "pad-to-multiple", 1, 0, &o->multiple, err));
    if (o->multiple > 1 << 20) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--pad-to-multiple: expected 1 to %d", 1 << 20));
    GR_TRY(gr_written_type(&o->file.dtype, gr_args_text(a, "dtype", NULL), err));
    GR_TRY(gr_format_of(&o->file.format, x->out, gr_args_text(a, "format", NULL), "hf", err));
    GR_TRY(gr_encoding_check(gr_args_text(a, "encoding", NULL), err));
    if (gr_args_has(a, "encoding") && !gr_args_has(a, "text"))
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--encoding: is of the files of --text, and there are none"));
done:
    return st;
}

graft_status gr_cmd_vocab_extend(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session s = {0};
    gr_tokenizer *more = NULL, *extended = NULL;
    gr_extend_options o = {.file.overwrite = gr_args_has(a, "overwrite")};
    extension x = {0};
    int64_t size;
    GR_TRY(read_options(a, &o, &x, &size, err));
    GR_TRY(gr_open_session(a, GR_FOR_FILES, &s, NULL, err));
    if (s.n_adapters > 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "the model has an adapter on it: merge it first (graft merge), or name its base"));
    GR_TRY(gr_vocab_open(&more, x.vocab, err));
    st = gr_vocab_extend(&extended, s.tokenizer, more, size, &x.pieces, err);
    if (st != GRAFT_OK) {
        gr_fail_context(err, st, "%s", x.vocab);
        goto done;
    }
    GR_TRY(gr_vocab_check(extended, err));
    GR_TRY(measure_files(a, extended, s.machine.threads, &x.text, err));
    GR_TRY(gr_extend(s.model, extended, &o, x.out, &x.model, err));
    if (gr_args_has(a, "json")) print_json(&x);
    else print_text(&x);
done:
    gr_tokenizer_free(extended);
    gr_tokenizer_free(more);
    gr_session_close(&s);
    return st;
}
