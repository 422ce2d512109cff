/* graft init */
#include <jansson.h>
#include <stdlib.h>

#include "adapters/init.h"
#include "core/base/file.h"
#include "core/base/output.h"
#include "peft/cli/commands.h"

static void print_json(const char *out, gr_dtype dtype, int64_t seed, const gr_init_report *r) {
    json_t *json = json_pack("{s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:o,s:f}", "out", out, "dtype", gr_dtype_get(dtype)->name, "seed",
                             (json_int_t)seed, "parameters", (json_int_t)r->n_parameters, "tensors", (json_int_t)r->n_tensors,
                             "bytes", (json_int_t)r->n_bytes, "vocab_size", (json_int_t)r->vocab, "tokens",
                             r->n_pieces ? json_integer(r->n_pieces) : json_null(), "initializer_range", r->range);
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(json);
}

static void print(const char *out, gr_dtype dtype, int64_t seed, const gr_init_report *r) {
    char text[32], vocab[32];
    printf("%s: %s random parameters in %lld tensors, %s, %.1f MB, read back and compared\n", out,
           gr_thousands(r->n_parameters, text), (long long)r->n_tensors, gr_dtype_get(dtype)->name, (double)r->n_bytes / 1e6);
    printf("seed %lld, matrices normal(0, %g), vocab_size %s", (long long)seed, r->range, gr_thousands(r->vocab, vocab));
    if (r->n_pieces) printf(", %s tokens", gr_thousands(r->n_pieces, text));
    printf("\n");
}

static graft_status read_options(const gr_args *a, gr_init_options *o, const char **out, int64_t *seed, graft_error *err) {
    graft_status st = GRAFT_OK;
    const char *dtype = gr_args_text(a, "dtype", "fp32");
    bool plain = false;
    int type;
    *out = gr_args_text(a, "out", NULL);
    *o = (gr_init_options){.config = gr_args_text(a, "config", NULL),
                           .tokenizer = gr_args_text(a, "tokenizer", NULL),
                           .overwrite = gr_args_has(a, "overwrite")};
    if (!o->config) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "no architecture: give --config FILE, a config.json"));
    if (!*out) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "no place to write to: give --out PATH"));
    GR_TRY(gr_args_int(a, "seed", 0, 42, seed, err));
    o->seed = (uint64_t)*seed;
    GR_TRY(gr_format_of(&o->format, *out, gr_args_text(a, "format", NULL), "hf", err));
    GR_TRY(gr_written_type(&type, dtype, err));
    if (!gr_type_is_written(type, &plain) || !plain)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--dtype: expected fp32, fp16 or bf16, found \"%s\": random weights are to be trained",
                       dtype));
    o->dtype = (gr_dtype)type;
done:
    return st;
}

graft_status gr_cmd_init(const gr_args *a, graft_error *err) {
    graft_status st;
    gr_init_options o;
    gr_init_report report;
    gr_recipe *r = NULL;
    gr_threads *threads = NULL;
    char *base = NULL;
    const char *out;
    int64_t seed;
    GR_TRY(read_options(a, &o, &out, &seed, err));
    GR_TRY(gr_args_recipe(a, NULL, a->n_arguments, &r, err));
    const char *reads[] = {o.config, o.tokenizer};
    GR_TRY(gr_output_check(&(gr_output){.path = out,
                                        .folder = o.format == GR_FORMAT_HF,
                                        .overwrite = o.overwrite,
                                        .inputs = reads,
                                        .n_inputs = o.tokenizer ? 2 : 1},
                           err));
    if (o.tokenizer) { /* a run's folder has its base's */
        GR_TRY(gr_session_base(&base, o.tokenizer, err));
        o.tokenizer = base;
    }
    threads = gr_threads_new((int)GR_MIN(r->_threads, 1024));
    if (!threads) GR_TRY(gr_fail(err, GRAFT_FAILED, "cannot start threads"));
    GR_TRY(gr_init_model(&o, out, threads, &report, err));
    if (gr_args_has(a, "json")) print_json(out, o.dtype, seed, &report);
    else print(out, o.dtype, seed, &report);
done:
    gr_threads_free(threads);
    gr_recipe_free(r);
    free(base);
    return st;
}
