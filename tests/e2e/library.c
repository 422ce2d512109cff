/* Every function of graft.h, as a program that knows the header alone: ./library MODEL DATA.jsonl FOLDER. Prints a line a case, as
 * shell tests do. */
#include <graft.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failed;
static graft_error err;

static void tell(int good, const char *name, const char *why) {
    printf("%s %s\n", good ? "ok" : "not ok", name);
    if (good) return;
    printf("    %s (%s: \"%s\")\n", why, graft_status_name(err.status), err.msg);
    failed = 1;
}

static void check(int good, const char *name) { tell(good, name, "it does not hold"); }

/* A call that must succeed and leave no error behind; err holds one from before. */
static void done_well(graft_status st, const char *name) {
    tell(st == GRAFT_OK && err.status == GRAFT_OK && err.msg[0] == '\0', name, "expected success and no error");
    err.status = GRAFT_FAILED;
    strcpy(err.msg, "left from before");
}

static void refused(graft_status st, graft_status expected, const char *word, const char *name) {
    tell(st == expected && err.status == expected && strstr(err.msg, word), name, word);
    check(graft_status_exit_code(st) == (expected == GRAFT_BAD_USAGE ? 2 : expected == GRAFT_BAD_INPUT ? 3 : 130), "its exit code");
}

/* ---- NULL ---- */

static void null_arguments(graft_model *m, const char *base) {
    char *text = NULL;
    const char *hole[] = {NULL};
    graft_message no_role = {NULL, "x"}, no_content = {"user", NULL};
    graft_conversation empty = {NULL, 1};
    graft_generate_options no_stop = {.n_stop = 1}, hot = {.temperature = -1}, wide = {.top_p = 2}, long_one = {.max_tokens = -3};
    graft_eval_result scores;
    graft_model *opened = NULL;
    refused(graft_train(NULL, NULL, 1, NULL, NULL, &err), GRAFT_BAD_USAGE, "overrides", "train: overrides");
    refused(graft_train(NULL, hole, 1, NULL, NULL, &err), GRAFT_BAD_USAGE, "overrides[0]", "train: an override");
    refused(graft_train(NULL, NULL, 0, NULL, NULL, &err), GRAFT_BAD_USAGE, "model.base", "train: nothing at all");
    refused(graft_model_open(NULL, base, NULL, 0, NULL, &err), GRAFT_BAD_USAGE, "out", "open: out");
    refused(graft_model_open(&opened, base, NULL, 2, NULL, &err), GRAFT_BAD_USAGE, "adapters", "open: adapters");
    refused(graft_model_open(&opened, base, hole, 1, NULL, &err), GRAFT_BAD_USAGE, "adapters[0]", "open: an adapter");
    refused(graft_model_open(&opened, NULL, NULL, 0, NULL, &err), GRAFT_BAD_USAGE, "model", "open: no model");
    refused(graft_generate(NULL, "x", NULL, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "model", "generate: model");
    refused(graft_generate(m, NULL, NULL, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "prompt", "generate: prompt");
    refused(graft_generate(m, "x", NULL, NULL, NULL, NULL, &err), GRAFT_BAD_USAGE, "text", "generate: text");
    refused(graft_generate(m, "x", &no_stop, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "stop", "generate: stop");
    refused(graft_generate(m, "x", &hot, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "temperature", "generate: temperature");
    refused(graft_generate(m, "x", &wide, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "top_p", "generate: top_p");
    refused(graft_generate(m, "x", &long_one, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "max_tokens", "generate: max_tokens");
    refused(graft_chat(m, NULL, 1, NULL, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "messages", "chat: messages");
    refused(graft_chat(m, &no_role, 1, NULL, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "messages[0].role", "chat: a role");
    refused(graft_chat(m, &no_content, 1, NULL, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "messages[0].content",
            "chat: a content");
    refused(graft_chat(m, &no_role, 0, NULL, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "at least one", "chat: no message");
    refused(graft_chat_batch(m, NULL, 1, NULL, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "conversations", "batch: conversations");
    refused(graft_chat_batch(m, &empty, 1, NULL, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "conversation 1", "batch: messages");
    refused(graft_generate_batch(m, hole, 1, NULL, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "prompts[0]", "batch: a prompt");
    refused(graft_generate_batch(m, NULL, 1, NULL, NULL, NULL, &text, &err), GRAFT_BAD_USAGE, "prompts", "batch: prompts");
    refused(graft_generate_batch(m, &base, 1, NULL, NULL, NULL, NULL, &err), GRAFT_BAD_USAGE, "texts", "batch: texts");
    refused(graft_eval(NULL, "x", &scores, &err), GRAFT_BAD_USAGE, "model", "eval: model");
    refused(graft_eval(m, NULL, &scores, &err), GRAFT_BAD_USAGE, "data", "eval: data");
    refused(graft_eval(m, "x", NULL, &err), GRAFT_BAD_USAGE, "result", "eval: result");
    refused(graft_merge(NULL, "x", NULL, NULL, &err), GRAFT_BAD_USAGE, "model", "merge: model");
    refused(graft_merge(m, NULL, NULL, NULL, &err), GRAFT_BAD_USAGE, "out_path", "merge: out_path");
    refused(graft_export(NULL, "x", NULL, &err), GRAFT_BAD_USAGE, "model", "export: model");
    refused(graft_export(m, NULL, NULL, &err), GRAFT_BAD_USAGE, "out_path", "export: out_path");
    check(graft_generate(m, NULL, NULL, NULL, NULL, &text, NULL) == GRAFT_BAD_USAGE && !text && !opened,
          "without an error to fill");
    graft_model_close(NULL);
    graft_free(NULL);
}

/* ---- training ---- */

typedef struct watch {
    int64_t calls, last, total, stop_at;
    int by_function, evaluations, sane;
} watch;

static int watch_step(void *payload, const graft_train_progress *p) {
    watch *w = payload;
    w->calls++;
    w->sane = w->sane && p->step > w->last && p->step <= p->total_steps && isfinite(p->loss) && p->learning_rate >= 0 &&
              p->tokens_per_second > 0 && p->epoch > 0 && (w->calls == 1 || p->seconds_left >= 0);
    w->last = p->step;
    w->total = p->total_steps;
    w->evaluations += isfinite(p->eval_loss);
    if (p->step != w->stop_at) return 0;
    if (w->by_function) graft_train_interrupt();
    return !w->by_function;
}

static void training(const char *base, const char *data, const char *run) {
    char a[600], b[600], c[600];
    const char *overrides[] = {a,
                               b,
                               c,
                               "model.dtype=fp32",
                               "adapter.rank=4",
                               "data.eval=0.2",
                               "data.cache=none",
                               "train.max_steps=6",
                               "train.batch_size=5",
                               "train.learning_rate=1e-2",
                               "eval.every=3",
                               "threads=2"};
    int n = sizeof overrides / sizeof *overrides;
    graft_train_result result;
    snprintf(a, sizeof a, "model.base=%s", base);
    snprintf(b, sizeof b, "data.train=%s", data);
    snprintf(c, sizeof c, "output_dir=%s", run);
    watch w = {.stop_at = 2, .sane = 1};
    graft_train_options o = {.callback = watch_step, .payload = &w};
    refused(graft_train(NULL, overrides, n, &o, &result, &err), GRAFT_INTERRUPTED, "", "a callback stops the training");
    w = (watch){.stop_at = 4, .by_function = 1, .last = 2, .sane = 1};
    o.resume = 1;
    refused(graft_train(NULL, overrides, n, &o, &result, &err), GRAFT_INTERRUPTED, "", "so does graft_train_interrupt");
    check(w.calls == 2 && w.sane, "the resumed run goes on where it was");
    w = (watch){.last = 4, .sane = 1};
    done_well(graft_train(NULL, overrides, n, &o, &result, &err), "the rest of the run");
    check(w.calls == 2 && w.last == 6 && w.total == 6 && w.evaluations == 1 && w.sane, "every step was told");
    check(result.steps == 6 && result.trainable_parameters > 0 && isfinite(result.loss) && isfinite(result.eval_loss) &&
              result.best_eval_loss <= result.eval_loss && result.seconds > 0 && result.tokens_per_second > 0,
          "the result");
    o = (graft_train_options){0};
    refused(graft_train(NULL, overrides, n, &o, NULL, &err), GRAFT_BAD_USAGE, run, "an existing run");
    o = (graft_train_options){.resume = 1, .overwrite = 1};
    refused(graft_train(NULL, overrides, n, &o, NULL, &err), GRAFT_BAD_USAGE, "exclude", "resume and overwrite");
    o = (graft_train_options){.dry_run = 1};
    overrides[2] = "output_dir=never";
    done_well(graft_train(NULL, overrides, n, &o, NULL, &err), "a dry run");
    refused(graft_train("nowhere.yaml", NULL, 0, NULL, NULL, &err), GRAFT_BAD_INPUT, "nowhere.yaml", "no such recipe");
}

/* ---- generation ---- */

enum { N_PROMPTS = 5 };
static const char *const prompts[N_PROMPTS] = {"What is 3 + 4?", "Say hello.", "小明有12个苹果，给了弟弟5个，还剩几个？", "x",
                                               "Name a colour."};

typedef struct pieces {
    char text[N_PROMPTS][4096];
    int n_done;
    int64_t stop_after; /* characters of any text; 0: never */
} pieces;

static int collect(void *payload, int64_t i, const char *text, size_t length, int done) {
    pieces *p = payload;
    strncat(p->text[i], text, length);
    p->n_done += done;
    return p->stop_after > 0 && (int64_t)strlen(p->text[i]) >= p->stop_after;
}

static int collect_one(void *payload, const char *text, size_t length) { return collect(payload, 0, text, length, 0); }

static void generation(graft_model *m) {
    graft_generate_options o = {.max_tokens = 24};
    char *texts[N_PROMPTS], *alone = NULL;
    static pieces many, one;
    int same = 1, streamed = 1;
    done_well(graft_generate_batch(m, prompts, N_PROMPTS, &o, collect, &many, texts, &err), "generate a batch");
    for (int i = 0; i < N_PROMPTS; i++) {
        memset(&one, 0, sizeof one);
        same &= graft_generate(m, prompts[i], &o, collect_one, &one, &alone, &err) == GRAFT_OK && strcmp(alone, texts[i]) == 0;
        streamed &= strcmp(many.text[i], texts[i]) == 0 && strcmp(one.text[0], texts[i]) == 0;
        graft_free(alone);
        graft_free(texts[i]);
    }
    check(same, "together they are what they are alone");
    check(streamed && many.n_done == N_PROMPTS, "what was streamed is the text");
    memset(&many, 0, sizeof many);
    many.stop_after = 1;
    done_well(graft_generate_batch(m, prompts, N_PROMPTS, &o, collect, &many, texts, &err), "a callback stops a batch");
    for (int i = 0; i < N_PROMPTS; i++) {
        same &= texts[i] != NULL;
        graft_free(texts[i]);
    }
    check(same, "every text is there, if empty");
    done_well(graft_generate_batch(m, NULL, 0, &o, NULL, NULL, NULL, &err), "a batch of none");
    graft_message turns[] = {{"system", "Be brief."}, {"user", "Say hello."}, {"assistant", "Hello!"}, {"user", "Again."}};
    graft_conversation talk = {turns, 4};
    done_well(graft_chat(m, turns, 4, &o, NULL, NULL, &alone, &err), "chat");
    done_well(graft_chat_batch(m, &talk, 1, &o, NULL, NULL, texts, &err), "a batch of conversations");
    check(alone && texts[0] && strcmp(alone, texts[0]) == 0, "gives the same");
    graft_free(texts[0]);
    graft_free(alone);
    turns[1].role = "wizard";
    refused(graft_chat_batch(m, &talk, 1, &o, NULL, NULL, texts, &err), GRAFT_BAD_INPUT, "wizard", "an unknown role");
    check(texts[0] == NULL, "leaves no text");
}

/* ---- scoring and writing ---- */

static double loss_of(const char *path, const char *adapter, const char *data) {
    graft_model *m = NULL;
    graft_model_options o = {.dtype = "fp32", .compute = "exact", .threads = 2};
    graft_eval_result scores = {.loss = NAN};
    if (graft_model_open(&m, path, &adapter, adapter ? 1 : 0, &o, &err) == GRAFT_OK) graft_eval(m, data, &scores, &err);
    graft_model_close(m);
    return scores.loss;
}

static void scoring_and_writing(graft_model *m, graft_model *plain, const char *base, const char *data, const char *run) {
    graft_eval_result scores = {0}, before = {0};
    graft_merge_options to_folder = {.dtype = "fp32"}, to_file = {.dtype = "fp32", .format = "gguf"}, wrong = {.dtype = "fp12"},
                        quantised = {.dtype = "q8_0"}, again = {.dtype = "fp32", .overwrite = 1};
    graft_merge_result merged;
    graft_export_options as_tar = {.format = "tar"};
    done_well(graft_eval(m, data, &scores, &err), "eval");
    done_well(graft_eval(plain, data, &before, &err), "eval of the base");
    check(scores.samples == before.samples && scores.targets == before.targets && scores.loss < before.loss,
          "the training lowered the loss");
    refused(graft_eval(m, "nowhere.jsonl", &scores, &err), GRAFT_BAD_INPUT, "nowhere.jsonl", "eval: no such data");
    done_well(graft_merge(m, "merged", &to_folder, &merged, &err), "merge to a folder");
    check(merged.bytes > 0 && merged.max_logit_difference < 1e-3 && merged.largest_logit > merged.max_logit_difference,
          "its report");
    done_well(graft_merge(m, "merged.gguf", &to_file, NULL, &err), "merge to a GGUF");
    refused(graft_merge(m, "merged", &to_folder, NULL, &err), GRAFT_BAD_USAGE, "merged", "merge over something");
    done_well(graft_merge(m, "merged", &again, NULL, &err), "merge over a model, overwriting");
    refused(graft_merge(m, "other", &wrong, NULL, &err), GRAFT_BAD_USAGE, "fp12", "merge to an unknown type");
    refused(graft_merge(m, "other", &quantised, NULL, &err), GRAFT_BAD_USAGE, "q8_0", "merge to a quantised folder");
    refused(graft_merge(m, base, &again, NULL, &err), GRAFT_BAD_USAGE, "", "merge over the base");
    done_well(graft_export(m, "peft", NULL, &err), "export a PEFT folder");
    done_well(graft_export(m, "lora.gguf", NULL, &err), "export a GGUF");
    refused(graft_export(m, "peft", NULL, &err), GRAFT_BAD_USAGE, "peft", "export over something");
    refused(graft_export(m, "other", &as_tar, &err), GRAFT_BAD_USAGE, "tar", "export to an unknown format");
    refused(graft_export(plain, "other", NULL, &err), GRAFT_BAD_USAGE, "adapter", "export of no adapter");
    check(fabs(loss_of("merged", NULL, data) - scores.loss) < 1e-4, "the merged folder has the loss of the run");
    check(fabs(loss_of("merged.gguf", NULL, data) - scores.loss) < 1e-4, "and so has the GGUF");
    check(loss_of(base, "peft", data) == loss_of(base, run, data), "and the exported adapter, bit for bit");
}

int main(int argc, char **argv) {
    graft_model *m = NULL, *plain = NULL;
    graft_model_options o = {.dtype = "fp32", .compute = "exact", .threads = 2}, wrong = {.dtype = "fp12"};
    if (argc != 4) return 2;
    const char *base = argv[1], *data = argv[2], *run = argv[3];
    graft_quiet(1);
    training(base, data, run);
    done_well(graft_model_open(&m, NULL, &run, 1, &o, &err), "open a run, which remembers its base");
    done_well(graft_model_open(&plain, base, NULL, 0, NULL, &err), "open a base");
    graft_model *none = NULL;
    refused(graft_model_open(&none, base, NULL, 0, &wrong, &err), GRAFT_BAD_USAGE, "fp12", "open: an unknown type");
    refused(graft_model_open(&none, "nowhere", NULL, 0, NULL, &err), GRAFT_BAD_INPUT, "nowhere", "open: no such model");
    check(!none && m && plain, "a failure opens nothing");
    if (!m || !plain) return 1;
    null_arguments(m, base);
    generation(m);
    scoring_and_writing(m, plain, base, data, run);
    graft_model_close(m);
    graft_model_close(plain);
    check(strcmp(graft_version(), "") != 0, "the version");
    return failed;
}
