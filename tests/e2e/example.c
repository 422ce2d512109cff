/* Trains a LoRA adapter and asks the result a question, with graft.h alone.
 *
 *     cc example.c $(pkg-config --cflags --libs graft) -o example
 *     ./example MODEL DATA.jsonl OUT "What is 3 + 4?" [section.key=value ...] */
#include <graft.h>
#include <stdio.h>

enum { MOST_OVERRIDES = 32 };

static int print_text(void *payload, const char *text, size_t length) {
    (void)payload;
    fwrite(text, 1, length, stdout);
    return 0;
}

static graft_status train_and_ask(const char *model, const char *question, const char *out, const char *const *overrides, int n,
                                  graft_error *err) {
    graft_train_options again = {.overwrite = 1};
    graft_train_result result;
    graft_status status = graft_train(NULL, overrides, n, &again, &result, err);
    if (status != GRAFT_OK) return status;
    printf("%lld steps, %lld trainable parameters, loss %.4f\n", (long long)result.steps, (long long)result.trainable_parameters,
           result.loss);

    graft_model *tuned;
    graft_generate_options options = {.max_tokens = 64};
    char *answer = NULL;
    status = graft_model_open(&tuned, model, &out, 1, NULL, err); /* the run's folder is its adapter */
    if (status != GRAFT_OK) return status;
    status = graft_generate(tuned, question, &options, print_text, NULL, &answer, err);
    printf("\n");
    graft_free(answer);
    graft_model_close(tuned);
    return status;
}

int main(int argc, char **argv) {
    const char *overrides[MOST_OVERRIDES];
    char base[512], data[512], out[512];
    graft_error err;
    int n = 0;
    if (argc < 5 || argc - 5 > MOST_OVERRIDES - 3) {
        fprintf(stderr, "usage: %s MODEL DATA.jsonl OUT QUESTION [section.key=value ...]\n", argv[0]);
        return 2;
    }
    snprintf(base, sizeof(base), "model.base=%s", argv[1]);
    snprintf(data, sizeof(data), "data.train=%s", argv[2]);
    snprintf(out, sizeof(out), "output_dir=%s", argv[3]);
    overrides[n++] = base;
    overrides[n++] = data;
    overrides[n++] = out;
    for (int i = 5; i < argc; i++) overrides[n++] = argv[i];
    graft_status status = train_and_ask(argv[1], argv[4], argv[3], overrides, n, &err);
    if (status != GRAFT_OK) fprintf(stderr, "%s: %s\n", graft_status_name(status), err.msg);
    return graft_status_exit_code(status);
}
