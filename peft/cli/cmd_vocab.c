/* graft vocab train */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/data/content.h"
#include "core/data/texts.h"
#include "core/text/learn.h"
#include "core/text/scripts.h"
#include "peft/cli/commands.h"

/* What `vocab train` was asked for. */
typedef struct job {
    gr_vocab_start start;
    gr_learn_options o;
    gr_data_source *sources; /* [n_sources] */
    int n_sources;
    const char *out;
    bool folder; /* out is one */
    const char **special;
    char *base; /* the model's folder or file; NULL: from nothing */
    gr_tokenizer *tokenizer;
    gr_recipe *recipe; /* threads, encoding */
} job;

static graft_status fail_usage(graft_error *err, const char *what) { return gr_fail(err, GRAFT_BAD_USAGE, "%s", what); }

/* The files of --text and those that follow. */
static graft_status find_texts(job *j, const gr_args *a, graft_error *err) {
    const char **paths = gr_calloc(a->n_given + a->n_arguments + 1, sizeof *paths);
    j->sources = gr_calloc(a->n_given + a->n_arguments + 1, sizeof *j->sources);
    if (!paths || !j->sources) {
        free(paths);
        return gr_fail_memory(err, "arguments");
    }
    int n = gr_args_all(a, "text", paths);
    for (int i = 0; n > 0 && i < a->n_arguments; i++) paths[n++] = a->arguments[i];
    for (int i = 0; i < n; i++)
        j->sources[j->n_sources++] =
            (gr_data_source){.path = paths[i], .format = "auto", .weight = 1, .encoding = gr_args_text(a, "encoding", NULL)};
    free(paths);
    if (n == 0) return fail_usage(err, "what to learn from is missing: give --text FILE");
    return gr_encoding_check(gr_args_text(a, "encoding", NULL), err);
}

/* spm or bpe: of --kind, the model's tokenizer, or the name of --out, which all must agree. */
static graft_status find_kind(job *j, const gr_args *a, graft_error *err) {
    const char *kind = gr_args_text(a, "kind", NULL);
    bool model = gr_ends_with(j->out, ".model"), json = gr_ends_with(j->out, ".json");
    if (kind && strcmp(kind, "spm") != 0 && strcmp(kind, "bpe") != 0)
        return gr_fail(err, GRAFT_BAD_USAGE, "--kind: expected spm or bpe, found \"%s\"", kind);
    j->folder = !model && !json;
    if (j->tokenizer) {
        j->start.spm = gr_tokenizer_get_info(j->tokenizer)->kind != GR_TOKENIZER_BPE;
        if (kind && j->start.spm != (strcmp(kind, "spm") == 0))
            return gr_fail(err, GRAFT_BAD_USAGE,
                           "--kind %s: the tokenizer of --model is of the other kind, and pieces are learned for it", kind);
    } else {
        j->start.spm = kind ? strcmp(kind, "spm") == 0 : model;
    }
    if (j->start.spm ? json : model)
        return gr_fail(err, GRAFT_BAD_USAGE, "--out %s: %s is written as %s, or a folder", j->out,
                       j->start.spm ? "a SentencePiece vocabulary" : "a byte-level vocabulary",
                       j->start.spm ? "NAME.model" : "NAME.json");
    return GRAFT_OK;
}

/* Options that mean something for one kind, or without a model, alone. */
static graft_status check_options(const job *j, const gr_args *a, graft_error *err) {
    static const char *const spm_alone[] = {"character-coverage", "normalization"}, *const new_alone[] = {"special",
                                                                                                          "normalization"};
    for (int i = 0; i < GR_LEN(spm_alone); i++)
        if (!j->start.spm && gr_args_has(a, spm_alone[i]))
            return gr_fail(err, GRAFT_BAD_USAGE, "--%s: byte-level pieces have no such thing, every byte is one (--kind spm has)",
                           spm_alone[i]);
    for (int i = 0; i < GR_LEN(new_alone); i++)
        if (j->tokenizer && gr_args_has(a, new_alone[i]))
            return gr_fail(err, GRAFT_BAD_USAGE, "--%s: with --model that is the model's tokenizer's own", new_alone[i]);
    return GRAFT_OK;
}

static graft_status read_numbers(job *j, const gr_args *a, graft_error *err) {
    graft_status st;
    const char *form = gr_args_text(a, "normalization", "identity");
    GR_TRY(gr_args_int(a, "size", 1, 0, &j->o.size, err));
    if (j->o.size == 0) GR_TRY(fail_usage(err, "how many pieces is missing: give --size N"));
    GR_TRY(gr_args_int(a, "max-piece-length", 1, 16, &j->o.max_length, err));
    if (j->o.max_length > 64)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--max-piece-length: 64 characters at most, found %lld", (long long)j->o.max_length));
    GR_TRY(gr_args_int(a, "min-count", 1, 2, &j->o.min_count, err));
    GR_TRY(gr_args_float(a, "character-coverage", 0, 1, 0.9995, &j->o.coverage, err));
    j->o.split_digits = j->start.split_digits = gr_args_has(a, "split-digits");
    if (gr_args_has(a, "only")) GR_TRY(gr_scripts_parse(&j->o.only, gr_args_text(a, "only", NULL), err));
    j->start.nfkc = strcmp(form, "nmt_nfkc") == 0;
    if (!j->start.nfkc && strcmp(form, "identity") != 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--normalization: expected identity or nmt_nfkc, found \"%s\"", form));
done:
    return st;
}

static graft_status read_job(job *j, const gr_args *a, graft_error *err) {
    graft_status st;
    const char **inputs = NULL;
    j->out = gr_args_text(a, "out", NULL);
    GR_TRY(gr_args_recipe(a, NULL, a->n_arguments, &j->recipe, err));
    GR_TRY(find_texts(j, a, err));
    if (!j->out) GR_TRY(fail_usage(err, "where to write is missing: give --out NAME.model, NAME.json or a folder"));
    GR_TRY(read_numbers(j, a, err));
    if (gr_args_has(a, "model")) {
        GR_TRY(gr_session_base(&j->base, gr_args_text(a, "model", NULL), err));
        GR_TRY(gr_tokenizer_open(&j->tokenizer, j->base, err));
    }
    GR_TRY(find_kind(j, a, err));
    GR_TRY(check_options(j, a, err));
    j->special = gr_calloc(a->n_given + 1, sizeof *j->special);
    inputs = gr_calloc(j->n_sources + 1, sizeof *inputs);
    if (!j->special || !inputs) GR_TRY(gr_fail_memory(err, "arguments"));
    j->start.special = j->special;
    j->start.n_special = gr_args_all(a, "special", j->special);
    for (int i = 0; i < j->n_sources; i++) inputs[i] = j->sources[i].path;
    inputs[j->n_sources] = j->base;
    GR_TRY(gr_output_check(&(gr_output){.path = j->out,
                                        .folder = j->folder,
                                        .overwrite = gr_args_has(a, "overwrite"),
                                        .inputs = inputs,
                                        .n_inputs = j->n_sources + (j->base != NULL)},
                           err));
done:
    free(inputs);
    return st;
}

/* ---- writing ---- */

static graft_status write_into(const char *folder, const char *name, const char *bytes, int64_t n, graft_error *err) {
    char *path = gr_path_join(folder, name);
    graft_status st = path ? gr_file_write(path, bytes, n, err) : gr_fail_memory(err, "path");
    free(path);
    return st;
}

/* What else a folder needs so that AutoTokenizer opens it: a model's own files, less those that hold its pieces in other forms. */
static graft_status write_beside(const job *j, const char *folder, graft_error *err) {
    static const char spm[] =
        "{\n  \"tokenizer_class\": \"LlamaTokenizer\",\n  \"bos_token\": \"<s>\",\n  \"eos_token\": \"</s>\",\n"
        "  \"unk_token\": \"<unk>\",\n  \"add_bos_token\": true,\n  \"add_eos_token\": false,\n"
        "  \"legacy\": false,\n  \"clean_up_tokenization_spaces\": false\n}\n";
    static const char bpe[] = "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n  \"bos_token\": \"<|endoftext|>\",\n"
                              "  \"eos_token\": \"<|endoftext|>\",\n  \"clean_up_tokenization_spaces\": false\n}\n";
    static const char *const pieces[] = {"tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"};
    const char *config = j->start.spm ? spm : bpe;
    if (!j->tokenizer) return write_into(folder, "tokenizer_config.json", config, (int64_t)strlen(config), err);
    graft_status st = gr_tokenizer_save_hf(j->tokenizer, folder, err);
    for (int i = 0; i < GR_LEN(pieces) && st == GRAFT_OK; i++) {
        char *path = gr_path_join(folder, pieces[i]);
        if (!path) st = gr_fail_memory(err, "path");
        else gr_remove_all(path);
        free(path);
    }
    return st;
}

static graft_status write_folder(const job *j, const char *bytes, int64_t n, bool overwrite, graft_error *err) {
    char *tmp = NULL;
    graft_status st;
    GR_TRY(gr_dir_begin(&tmp, j->out, overwrite, err));
    GR_TRY(write_beside(j, tmp, err));
    GR_TRY(write_into(tmp, j->start.spm ? "tokenizer.model" : "tokenizer.json", bytes, n, err));
    GR_TRY(gr_mark_folder(tmp, err));
    GR_TRY(gr_dir_commit(tmp, j->out, overwrite, err));
done:
    if (st != GRAFT_OK && tmp) gr_remove_all(tmp);
    free(tmp);
    return st;
}

static void tell(const job *j, const gr_learned *l, int64_t bytes, double seconds, bool json) {
    double ratio = l->after ? (double)l->before / (double)l->after : 1;
    if (json) {
        json_t *root = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "out", j->out, "kind",
                                 j->start.spm ? "spm" : "bpe", "pieces", (json_int_t)(l->first_id + l->n), "new", (json_int_t)l->n,
                                 "characters", (json_int_t)l->n_characters, "bytes", (json_int_t)bytes, "tokens_before",
                                 (json_int_t)l->before, "tokens_after", (json_int_t)l->after, "seconds", seconds);
        char *text = root ? json_dumps(root, JSON_PRESERVE_ORDER) : NULL;
        printf("%s\n", text ? text : "{}");
        free(text);
        json_decref(root);
        return;
    }
    printf("%s: %lld pieces, %lld of them new (%lld characters); the text's %lld tokens become %lld (%.2f times fewer); %.1f s\n",
           j->out, (long long)(l->first_id + l->n), (long long)l->n, (long long)l->n_characters, (long long)l->before,
           (long long)l->after, ratio, seconds);
}

static graft_status add_text(void *context, int worker, const char *text, int64_t len, graft_error *err) {
    return gr_learner_add(context, worker, text, len, err);
}

graft_status gr_cmd_vocab_train(const gr_args *a, graft_error *err) {
    graft_status st;
    job j = {0};
    gr_vocab v = {0};
    gr_learner *learner = NULL;
    gr_learned learned = {0};
    gr_threads *threads = NULL;
    char *bytes = NULL;
    int64_t n, n_text;
    double started = gr_now();
    GR_TRY(read_job(&j, a, err));
    GR_TRY(j.tokenizer ? gr_vocab_of(&v, j.tokenizer, err) : gr_vocab_start_new(&v, &j.start, err));
    if (!j.tokenizer) {
        int64_t there = gr_tokenizer_get_info(v.tokenizer)->n_vocab;
        if (j.o.size <= there)
            GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--size: %lld pieces, but bytes and control tokens alone are %lld",
                           (long long)j.o.size, (long long)there));
        j.o.there = there;
        j.o.size -= there;
    }
    threads = gr_threads_new((int)GR_MIN(j.recipe->_threads, 1024));
    if (!threads) GR_TRY(gr_fail(err, GRAFT_FAILED, "cannot start threads"));
    GR_TRY(gr_learner_new(&learner, v.tokenizer, &j.o, gr_threads_count(threads), err));
    GR_TRY(gr_texts_read(j.sources, j.n_sources, threads, add_text, learner, &n_text, err));
    GR_TRY(gr_learner_run(learner, threads, &learned, err));
    GR_TRY(gr_vocab_with(&v, &learned, &bytes, &n, err));
    GR_TRY(j.folder ? write_folder(&j, bytes, n, gr_args_has(a, "overwrite"), err) : gr_file_write(j.out, bytes, n, err));
    tell(&j, &learned, n_text, gr_now() - started, gr_args_has(a, "json"));
done:
    free(bytes);
    gr_learned_release(&learned);
    gr_learner_free(learner);
    gr_threads_free(threads);
    gr_vocab_release(&v);
    gr_tokenizer_free(j.tokenizer);
    gr_recipe_free(j.recipe);
    free(j.sources);
    free(j.special);
    free(j.base);
    return st;
}
