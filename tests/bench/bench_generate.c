/* bench_generate.c - speed of generation. Usage: bench_generate MODEL [QUANTIZE [TOKENS [BATCH ...]]]; QUANTIZE as model.quantize
 * (none); 128 tokens, batches of 1 and 8. One line a batch: tokens/s of all its sequences, greedy, after short prompts. The device
 * is GRAFT_DEVICE or the first card. Two lengths are generated: what they share, reading the prompt, drops out. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/model/generate.h"
#include "peft/session.h"

enum { FEW = 8, MOST = 64, ROUNDS = 3 };

/* Seconds that it takes to generate so many tokens after each of the prompts. */
static graft_status generate(const gr_session *s, const gr_ids *prompts, int64_t n, int64_t tokens, double *seconds,
                             graft_error *err) {
    gr_completion results[MOST] = {0};
    const gr_generate_options o = {.max_tokens = tokens, .top_p = 1, .repetition_penalty = 1, .ignore_eos = true, .batch = n};
    double started = gr_now();
    graft_status st = gr_generate(s->model, s->tokenizer, (gr_prompts){prompts, n, -1}, &o, results, NULL, NULL, err);
    *seconds = gr_now() - started;
    for (int64_t i = 0; st == GRAFT_OK && i < n; i++)
        if (results[i].n_tokens != tokens) st = gr_fail(err, GRAFT_FAILED, "other than %lld tokens", (long long)tokens);
    gr_completions_release(results, n);
    return st;
}

static graft_status bench(const gr_session *s, int64_t n, int64_t tokens, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_ids prompts[MOST] = {0};
    double best = 0, few, many;
    for (int64_t i = 0; i < n; i++) {
        char text[64];
        snprintf(text, sizeof text, "What is %lld + 345 in the end", (long long)(i * 37 + 100));
        GR_TRY(gr_tokenizer_encode(s->tokenizer, text, (int64_t)strlen(text), false, &prompts[i], err));
    }
    for (int round = 0; round < ROUNDS; round++) {
        GR_TRY(generate(s, prompts, n, FEW, &few, err));
        GR_TRY(generate(s, prompts, n, FEW + tokens, &many, err));
        best = GR_MAX(best, (double)(n * tokens) / (many - few));
    }
    printf("batch %lld %.2f tokens/s\n", (long long)n, best);
    fflush(stdout);
done:
    for (int64_t i = 0; i < n; i++) gr_ids_release(&prompts[i]);
    return st;
}

int main(int argc, char **argv) {
    static const char *const names[] = {"none", "q8_0", "q4_0", "q4_k", "nf4"};
    static const int types[] = {GR_QUANTIZE_NONE, GR_QUANTIZE_Q8_0, GR_QUANTIZE_Q4_0, GR_QUANTIZE_Q4_K, GR_QUANTIZE_NF4};
    graft_error err;
    gr_session s = {0};
    gr_session_options o = {.model = argc > 1 ? argv[1] : NULL, .template_name = "none", .quantize = -1};
    int64_t tokens = argc > 3 ? atoll(argv[3]) : 128;
    graft_status st;
    for (int i = 0; i < GR_LEN(names); i++)
        if (strcmp(argc > 2 ? argv[2] : "none", names[i]) == 0) o.quantize = types[i];
    if (!o.model || o.quantize < 0 || tokens < 1) {
        fprintf(stderr, "usage: bench_generate MODEL [none|q8_0|q4_0|q4_k|nf4 [TOKENS [BATCH ...]]]\n");
        return 2;
    }
    o.max_length = 64 + FEW + tokens;
    double started = gr_now();
    GR_TRY(gr_session_open(&s, &o, &err));
    printf("opened in %.1f s, on %s\n", gr_now() - started, s.machine.device->level);
    for (int i = 4; i < GR_MAX(argc, 6); i++) {
        int64_t n = argc > 4 ? (i < argc ? atoll(argv[i]) : 0) : i == 4 ? 1 : 8;
        if (n >= 1 && n <= MOST) GR_TRY(bench(&s, n, tokens, &err));
    }
done:
    if (st != GRAFT_OK) fprintf(stderr, "%s\n", err.msg);
    gr_session_close(&s);
    return st;
}
