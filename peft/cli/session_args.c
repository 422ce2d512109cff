#include "peft/cli/session_args.h"

#include <stdlib.h>

graft_status gr_open_session(const gr_args *a, gr_session_use use, gr_session *s, gr_recipe **recipe,
                             graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_recipe *r = NULL;
    const char *first = a->n_arguments > 0 ? a->arguments[0] : NULL;
    const char **adapters = gr_calloc(a->n_given + 1, sizeof *adapters);
    if (!adapters) return gr_fail_memory(err, "arguments");
    GR_TRY(gr_args_recipe(a, NULL, a->n_arguments, &r, err));
    gr_session_options o = {
        .model = gr_args_text(a, "model", first),
        .adapters = adapters,
        .n_adapters = gr_args_all(a, "adapter", adapters),
        .template_name = use == GR_FOR_FILES          ? ""
                         : gr_args_has(a, "template") ? r->data_template
                                                      : NULL,
        .system = gr_args_has(a, "system") ? r->data_system : NULL,
        .dtype = use != GR_FOR_FILES ? r->model_dtype : GR_DT_FP32,
        .compute = use == GR_FOR_WRITING || r->model_compute == GR_COMPUTE_INT8 ? r->model_compute : GR_COMPUTE_EXACT,
        .quantize = use != GR_FOR_FILES ? r->model_quantize : GR_QUANTIZE_NONE,
        .threads = (int)GR_MIN(r->_threads, 1024),
    };
    if (first && gr_args_has(a, "model"))
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "%s: the model is already given by --model", first));
    GR_TRY(gr_session_open(s, &o, err));
    if (recipe) {
        *recipe = r;
        r = NULL;
    }
done:
    gr_recipe_free(r);
    free(adapters);
    return st;
}
