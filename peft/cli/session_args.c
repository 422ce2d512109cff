#include "peft/cli/session_args.h"

#include <stdlib.h>
#include <string.h>

graft_status gr_open_session(const gr_args *a, gr_session_use use, gr_session *s, gr_recipe **recipe, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_recipe *r = NULL;
    const char *first = a->n_arguments > 0 ? a->arguments[0] : NULL;
    const char **adapters = gr_calloc(a->n_given + 1, sizeof *adapters), **reads = gr_calloc(a->n_given + 3, sizeof *reads);
    if (!adapters || !reads) GR_TRY(gr_fail_memory(err, "arguments"));
    GR_TRY(gr_args_recipe(a, NULL, a->n_arguments, &r, err));
    gr_session_options o = {
        .model = gr_args_text(a, "model", first),
        .adapters = adapters,
        .n_adapters = gr_args_all(a, "adapter", adapters),
        .template_name = use == GR_FOR_FILES          ? ""
                         : gr_args_has(a, "template") ? r->data_template
                                                      : NULL,
        .system = gr_args_has(a, "system") ? r->data_system : NULL,
        .template_args = gr_args_has(a, "template-args") ? r->data_template_args : NULL,
        .dtype = use != GR_FOR_FILES ? r->model_dtype : GR_DT_FP32,
        .compute = use != GR_FOR_WRITING && r->model_compute == GR_COMPUTE_AUTO ? GR_COMPUTE_EXACT : r->model_compute,
        .quantize = use != GR_FOR_FILES ? r->model_quantize : GR_QUANTIZE_NONE,
        .device = r->_device,
        .threads = r->_threads,
    };
    const char *format = gr_args_text(a, "format", "");
    int n_reads = gr_args_all(a, "text", reads);
    reads[n_reads++] = gr_args_text(a, "data", NULL);
    reads[n_reads++] = gr_args_text(a, "prompts", NULL);
    reads[n_reads++] = gr_args_text(a, "vocab", NULL);
    gr_output output = {
        .path = gr_args_text(a, "out", NULL), .overwrite = gr_args_has(a, "overwrite"), .inputs = reads, .n_inputs = n_reads};
    output.folder = output.path && use == GR_FOR_FILES && strcmp(format, "gguf") != 0 &&
                    (*format || !(gr_ends_with(output.path, ".gguf") || gr_ends_with(output.path, ".GGUF")));
    if (output.path) o.output = &output;
    if (first && gr_args_has(a, "model")) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "%s: the model is already given by --model", first));
    GR_TRY(gr_session_open(s, &o, err));
    if (recipe) {
        *recipe = r;
        r = NULL;
    }
done:
    gr_recipe_free(r);
    free(adapters);
    free(reads);
    return st;
}

graft_status gr_args_sampling(const gr_args *a, gr_generate_options *o, const char **stop, int64_t max_tokens, graft_error *err) {
    graft_status st = GRAFT_OK;
    double temperature, top_p, penalty;
    int64_t top_k, seed;
    const char **all = gr_calloc(a->n_given + 1, sizeof *all);
    if (!all) return gr_fail_memory(err, "options");
    *o = (gr_generate_options){.stop = stop, .n_stop = gr_args_all(a, "stop", all)};
    if (o->n_stop > GR_MAX_STOP) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--stop: at most %d stop strings", GR_MAX_STOP));
    for (int i = 0; i < o->n_stop; i++) {
        stop[i] = all[i];
        if (!*all[i]) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--stop: expected a text, found an empty one"));
    }
    GR_TRY(gr_args_int(a, "max-tokens", 1, max_tokens, &o->max_tokens, err));
    GR_TRY(gr_args_float(a, "temperature", 0, 1e6, 0, &temperature, err));
    GR_TRY(gr_args_float(a, "top-p", 0, 1, 1, &top_p, err));
    GR_TRY(gr_args_float(a, "repetition-penalty", 1e-6, 1e6, 1, &penalty, err));
    GR_TRY(gr_args_int(a, "top-k", 0, 0, &top_k, err));
    GR_TRY(gr_args_int(a, "seed", 0, 42, &seed, err));
    o->temperature = (float)temperature;
    o->top_p = (float)top_p;
    o->repetition_penalty = (float)penalty;
    o->top_k = (int)GR_MIN(top_k, INT32_MAX);
    o->seed = (uint64_t)seed;
    o->ignore_eos = gr_args_has(a, "ignore-eos");
done:
    free(all);
    return st;
}
