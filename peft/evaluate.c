#include "peft/evaluate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "peft/interrupt.h"

enum { BATCH_TOKENS = 1024 };

static int64_t sample_length(const gr_dataset *d, int64_t i) { return d->offset[i + 1] - d->offset[i]; }

/* Samples first..end of one batch: as many whole ones as fit into tokens, at least one. */
static int64_t batch_end(const gr_dataset *d, int64_t first, int64_t tokens) {
    int64_t end = first + 1, sum = sample_length(d, first);
    while (end < d->n_samples && sum + sample_length(d, end) <= tokens) sum += sample_length(d, end++);
    return end;
}

int64_t gr_longest_sample(const gr_dataset *d) {
    int64_t longest = 1;
    for (int64_t i = 0; i < d->n_samples; i++) longest = GR_MAX(longest, sample_length(d, i));
    return longest;
}

static int64_t rows_allowed(const gr_dataset *d, int64_t batch_tokens) {
    return GR_MAX(batch_tokens > 0 ? batch_tokens : BATCH_TOKENS, gr_longest_sample(d));
}

int64_t gr_evaluate_rows(const gr_dataset *d, int64_t batch_tokens) {
    int64_t allowed = rows_allowed(d, batch_tokens), largest = 1;
    for (int64_t first = 0, end; first < d->n_samples; first = end) {
        end = batch_end(d, first, allowed);
        largest = GR_MAX(largest, d->offset[end] - d->offset[first]);
    }
    return largest;
}

/* Batches of the rank that has most. */
static int64_t rounds_of(const gr_dataset *d, int64_t tokens, int size) {
    int64_t n = 0;
    for (int64_t first = 0; first < d->n_samples; first = batch_end(d, first, tokens)) n++;
    return (n + size - 1) / size;
}

int64_t gr_count_targets(const gr_dataset *d, const int64_t *idx, int64_t n) {
    int64_t count = 0;
    for (int64_t s = 0; s < n; s++) count += gr_dataset_targets(d, idx[s]);
    return count;
}

int64_t gr_evaluate_targets(const gr_dataset *d, int64_t batch_tokens) {
    int64_t allowed = rows_allowed(d, batch_tokens), largest = 1;
    for (int64_t first = 0, end; first < d->n_samples; first = end) {
        int64_t count = 0;
        end = batch_end(d, first, allowed);
        for (int64_t s = first; s < end; s++) count += gr_count_targets(d, &s, 1);
        largest = GR_MAX(largest, count);
    }
    return largest;
}

typedef struct eval_sums {
    double nll; /* or answers that are right */
    int64_t targets;
} eval_sums;

/* Of all ranks, in their order. */
static graft_status add_ranks(eval_sums *sums, gr_comm *comm, graft_error *err) {
    if (!comm) return GRAFT_OK;
    eval_sums *all = gr_calloc(gr_comm_size(comm), sizeof *all);
    if (!all) return gr_fail_memory(err, "evaluation");
    graft_status st = gr_comm_gather(comm, "sums of the evaluation", sums, sizeof *sums, all, err);
    *sums = (eval_sums){0};
    for (int i = 0; i < gr_comm_size(comm) && st == GRAFT_OK; i++) sums->nll += all[i].nll, sums->targets += all[i].targets;
    free(all);
    return st;
}

graft_status gr_evaluate(gr_model *m, const gr_dataset *d, int64_t batch_tokens, gr_comm *comm, const char *label, double *mean_nll,
                         double *nll, int64_t *targets, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_decoder *decoder = NULL;
    gr_batch batch = {0};
    gr_progress progress;
    eval_sums all = {0};
    int64_t turn = 0, made = 0; /* batches of all ranks; of this one */
    int64_t allowed = rows_allowed(d, batch_tokens);
    gr_decoder_options o = {.max_tokens = gr_evaluate_rows(d, batch_tokens), .max_targets = gr_evaluate_targets(d, batch_tokens)};
    int64_t *idx = gr_calloc(d->n_samples, sizeof *idx);
    float *row_nll = gr_calloc(o.max_tokens, sizeof *row_nll);
    if (!idx || !row_nll) GR_TRY(gr_fail_memory(err, "evaluation"));
    for (int64_t i = 0; i < d->n_samples; i++) idx[i] = i;
    GR_TRY(gr_decoder_new(&decoder, m, &o, err));
    if (label) gr_progress_start(&progress, label, d->n_samples);
    for (int64_t first = 0, end; first < d->n_samples; first = end) {
        end = batch_end(d, first, allowed);
        if (turn++ % gr_comm_size(comm) != gr_comm_rank(comm)) continue;
        if (gr_interrupted()) GR_TRY(gr_fail(err, GRAFT_INTERRUPTED, "the evaluation was interrupted"));
        GR_TRY(gr_batch_fill(&batch, d, idx + first, end - first, 0, err));
        made++;
        GR_TRY(gr_decoder_eval(decoder, &batch, row_nll, err));
        for (int64_t s = first; s < end; s++) {
            double sum = 0;
            int64_t count = 0;
            for (int64_t r = d->offset[s] - d->offset[first]; r < d->offset[s + 1] - d->offset[first]; r++)
                if (batch.weight[r] != 0) sum += row_nll[r], count++;
            if (nll) nll[s] = sum;
            if (targets) targets[s] = count;
            if (!isfinite(sum))
                GR_TRY(gr_fail(err, GRAFT_FAILED, "the loss of evaluation sample %lld is not finite", (long long)s + 1));
            all.nll += sum, all.targets += count;
        }
        if (label) gr_progress_update(&progress, end, "loss %.4f", all.nll / (double)GR_MAX(all.targets, 1));
    }
    if (label) gr_progress_end(&progress);
done:
    for (const int64_t rounds = rounds_of(d, allowed, gr_comm_size(comm)); made < rounds; made++) gr_model_bring_all(m);
    st = gr_comm_agree(comm, "evaluation", st, NULL, err);
    if (st == GRAFT_OK) st = add_ranks(&all, comm, err);
    if (st == GRAFT_OK) *mean_nll = all.nll / (double)GR_MAX(all.targets, 1);
    free(idx);
    free(row_nll);
    gr_batch_release(&batch);
    gr_decoder_free(decoder);
    return st;
}

/* What a model is asked in a sample, and what it should say: its last run of targets. Both lie in the sample's tokens. */
typedef struct question {
    gr_ids prompt, answer;
} question;

/* Borrowed from d or, until its next use, from buffer. */
static graft_status read_question(question *q, const gr_dataset *d, int64_t i, gr_tokens *buffer, graft_error *err) {
    const int32_t *ids;
    const uint8_t *target;
    int64_t end = sample_length(d, i), start;
    graft_status st = gr_dataset_read(d, i, buffer, &ids, &target, err);
    if (st != GRAFT_OK) return st;
    while (end > 0 && !target[end - 1]) end--;
    for (start = end; start > 0 && target[start - 1];) start--;
    q->prompt = (gr_ids){.data = (int32_t *)ids, .n = start};
    q->answer = (gr_ids){.data = (int32_t *)ids + start, .n = end - start};
    return GRAFT_OK;
}

/* ---- exact match ---- */

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* The last number on the line after the last "####", without commas, in one spelling (no leading zeros, no
 * trailing zeros of a fraction). False when there is no "####" or no number after it. */
static bool final_number(const char *text, gr_str *number) {
    const char *mark = NULL, *start = NULL;
    for (const char *s = text; (s = strstr(s, "####")); s++) mark = s + 4;
    if (!mark) return false;
    mark += strspn(mark, "# \t\r\n");
    size_t len = strcspn(mark, "\r\n");
    for (const char *s = mark; s < mark + len; s++) {
        bool inside = s > mark && (is_digit(s[-1]) || (start && (s[-1] == ',' || s[-1] == '.') && is_digit(s[-2])));
        if (is_digit(*s) && !inside) start = s;
    }
    if (!start) return false;
    const char *sign = start; /* "-$5" and "$-5" both are -5; "7-5" is 5 */
    while (sign > mark && sign[-1] == '$') sign--;
    bool negative = sign > mark && sign[-1] == '-' && (sign - 1 == mark || !is_digit(sign[-2]));
    bool fraction = false;
    int64_t zeros = 0;
    while (*start == '0' && is_digit(start[1])) start++;
    for (const char *s = start; is_digit(*s) || *s == ',' || (*s == '.' && !fraction && is_digit(s[1])); s++) {
        if (*s == ',' && !is_digit(s[1])) break;
        if (*s == ',') continue;
        fraction = fraction || *s == '.';
        gr_str_putc(number, *s);
        zeros = fraction && (*s == '0' || *s == '.') ? zeros + 1 : 0;
    }
    if (number->failed) return false;
    number->len -= zeros;
    number->data[number->len] = '\0';
    if (negative && strcmp(number->data, "0")) gr_str_putc(number, '-'); /* any place serves: it is only compared */
    return !number->failed;
}

static const char *trim(const char *s, size_t *len) {
    s += strspn(s, " \t\r\n");
    *len = strlen(s);
    while (*len && strchr(" \t\r\n", s[*len - 1])) --*len;
    return s;
}

bool gr_exact_match(const char *prediction, const char *reference) {
    gr_str wanted = {0}, given = {0};
    bool equal;
    if (final_number(reference, &wanted)) {
        equal = final_number(prediction, &given) && !strcmp(wanted.data, given.data);
    } else {
        size_t n_wanted, n_given;
        const char *a = trim(reference, &n_wanted), *b = trim(prediction, &n_given);
        equal = n_wanted == n_given && !memcmp(a, b, n_wanted);
    }
    gr_str_release(&wanted);
    gr_str_release(&given);
    return equal;
}

graft_status gr_longest_prompt(const gr_dataset *d, int64_t *longest, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_tokens buffer = {0};
    *longest = 1;
    for (int64_t i = 0; i < d->n_samples && st == GRAFT_OK; i++) {
        question q = {0};
        st = read_question(&q, d, i, &buffer, err);
        *longest = GR_MAX(*longest, q.prompt.n);
    }
    gr_tokens_release(&buffer);
    return st;
}

int64_t gr_exact_match_bytes(const gr_model *m, const gr_dataset *d, int64_t longest_prompt, int64_t ranks) {
    const int64_t n = (d->n_samples + ranks - 1) / ranks;
    return gr_generate_bytes(m, n, longest_prompt, &(gr_generate_options){.max_tokens = GR_EXACT_MATCH_TOKENS}) +
           GR_MIN(d->offset[d->n_samples], n * longest_prompt) * (int64_t)sizeof(int32_t);
}

typedef struct match_progress {
    gr_progress bar;
    bool shown, stays; /* stays: ranks answer together, so that none of them leaves before the end */
    int64_t done;
} match_progress;

static int count_done(void *payload, int64_t prompt, const char *text, int64_t len, bool done) {
    match_progress *p = payload;
    (void)prompt, (void)text, (void)len;
    if (done && p->shown) gr_progress_update(&p->bar, ++p->done, "answers");
    return gr_interrupted() && !p->stays;
}

graft_status gr_evaluate_exact_match(gr_model *m, const gr_tokenizer *t, const gr_dataset *d, const gr_match_options *o,
                                     double *score, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_str reference = {0};
    match_progress progress = {.shown = o->label != NULL, .stays = m->forms.elsewhere};
    const bool shared = o->comm && !progress.stays; /* else each rank answers all, with weights that they bring each other */
    const int64_t rank = shared ? gr_comm_rank(o->comm) : 0, ranks = shared ? gr_comm_size(o->comm) : 1;
    const int64_t n = (d->n_samples - rank + ranks - 1) / ranks; /* samples rank, rank + ranks, ... */
    int64_t right = 0;
    gr_tokens buffer = {0};
    question q;
    gr_ids *prompts = gr_calloc(n, sizeof *prompts);
    gr_completion *out = o->completions ? o->completions : gr_calloc(n, sizeof *out);
    if (!prompts || !out) GR_TRY(gr_fail_memory(err, "evaluation"));
    for (int64_t i = 0; i < n; i++) {
        GR_TRY(read_question(&q, d, rank + i * ranks, &buffer, err));
        if (!gr_grow(&prompts[i].data, &prompts[i].capacity, q.prompt.n, sizeof *prompts[i].data))
            GR_TRY(gr_fail_memory(err, "evaluation"));
        memcpy(prompts[i].data, q.prompt.data, (size_t)q.prompt.n * sizeof *q.prompt.data);
        prompts[i].n = q.prompt.n;
    }
    gr_generate_options how = {.max_tokens = o->max_tokens, .top_p = 1, .repetition_penalty = 1};
    if (o->label) gr_progress_start(&progress.bar, o->label, n);
    if (n > 0) GR_TRY(gr_generate(m, t, (gr_prompts){prompts, n, o->end_id}, &how, out, count_done, &progress, err));
    if (gr_interrupted() && !progress.stays) GR_TRY(gr_fail(err, GRAFT_INTERRUPTED, "the evaluation was interrupted"));
    if (o->label) gr_progress_end(&progress.bar);
    for (int64_t i = 0; i < n; i++) {
        gr_str_clear(&reference);
        GR_TRY(read_question(&q, d, rank + i * ranks, &buffer, err));
        GR_TRY(gr_tokenizer_decode(t, q.answer.data, q.answer.n, true, &reference, err));
        bool match = gr_exact_match(out[i].text, reference.data ? reference.data : "");
        if (o->matches) o->matches[i] = match;
        right += match;
    }
done:
    for (int64_t i = 0; prompts && i < n; i++) gr_ids_release(&prompts[i]);
    free(prompts);
    gr_tokens_release(&buffer);
    gr_str_release(&reference);
    if (!o->completions && out) {
        gr_completions_release(out, n);
        free(out);
    }
    eval_sums all = {.nll = (double)right, .targets = n};
    st = gr_comm_await(o->comm, "the answers", st, err);
    if (st == GRAFT_OK && shared) st = add_ranks(&all, o->comm, err);
    if (st == GRAFT_OK) *score = all.nll / (double)GR_MAX(all.targets, 1);
    return st;
}
