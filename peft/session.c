/* A model ready for use: the base, the adapters on it, its tokenizer and chat template, from paths as people
 * give them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/model/frozen.h"
#include "peft/recipe_schema.h"
#include "peft/session.h"

static bool has_file(const char *folder, const char *name) {
    char *path = gr_path_join(folder, name);
    bool found = path && gr_exists(path);
    free(path);
    return found;
}

graft_status gr_session_base(char **out, const char *path, graft_error *err) {
    *out = NULL;
    if (gr_adapter_is(path)) return gr_adapter_base(out, path, err);
    if (gr_is_dir(path) && has_file(path, "state.h5"))
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s is a checkpoint without an adapter, of a run of method full or of an older graft: what such a "
                       "run gives is in its own folder",
                       path);
    if (gr_is_dir(path) && !has_file(path, "config.json") && has_file(path, "model")) *out = gr_path_join(path, "model");
    else *out = gr_strdup(path);
    return *out ? GRAFT_OK : gr_fail_memory(err, path);
}

/* The recipe of the run that path is or lies in (runs/x, runs/x/adapter, runs/x/checkpoint-9), NULL when there is none. */
static gr_recipe *run_recipe(const char *path) {
    gr_recipe *r = NULL;
    char *real = realpath(path, NULL), *name = real ? strrchr(real, '/') : NULL;
    bool inner = name && (strcmp(name, "/adapter") == 0 || strcmp(name, "/model") == 0 || gr_starts_with(name, "/checkpoint-"));
    char *file = real ? gr_path_join(real, inner ? "../recipe.yaml" : "recipe.yaml") : NULL;
    if (file && gr_exists(file) && gr_recipe_load(&r, file, NULL, 0, NULL) != GRAFT_OK) r = NULL;
    free(file);
    free(real);
    return r;
}

/* "path:scale": *path owned. A path that exists is never cut. */
static graft_status split_scale(const char *given, char **path, double *scale, graft_error *err) {
    const char *colon = gr_exists(given) ? NULL : strrchr(given, ':');
    char *end = NULL;
    *scale = 1;
    if (colon) {
        *scale = strtod(colon + 1, &end);
        if (end == colon + 1 || *end || !isfinite(*scale))
            return gr_fail(err, GRAFT_BAD_USAGE, "adapter %s: expected PATH or PATH:SCALE with a number as scale", given);
    }
    *path = gr_strndup(given, colon ? colon - given : (int64_t)strlen(given));
    return *path ? GRAFT_OK : gr_fail_memory(err, given);
}

static graft_status add_adapter(gr_session *s, const char *given, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *path = NULL;
    gr_adapter *a = NULL;
    double scale;
    GR_TRY(split_scale(given, &path, &scale, err));
    GR_TRY(gr_adapter_load(&a, path, s->model, false, err));
    if (a->tokenizer_hash && s->tokenizer && a->tokenizer_hash != gr_tokenizer_hash(s->tokenizer))
        gr_warn("%s was trained with another tokenizer than that of %s", path, gr_weights_path(s->model->weights));
    s->scales[s->n_adapters] = scale;
    s->adapters[s->n_adapters++] = a;
    if (a->folder && s->tokenizer) GR_TRY(gr_tokenizer_compare(s->tokenizer, a->folder, err));
    GR_TRY(gr_adapter_attach(a, s->model, scale, err));
done:
    free(path);
    return st;
}

/* What the session reads, and whether the command may write where it wants to. */
static graft_status list_inputs(gr_session *s, const gr_session_options *o, const char *base, graft_error *err) {
    graft_status st = GRAFT_OK;
    const gr_output none = {0}, *out = o->output ? o->output : &none;
    const char *template = o->template_name && gr_exists(o->template_name) ? o->template_name : NULL;
    const char *const others[] = {o->model, base, template};
    double scale;
    s->inputs = gr_calloc(GR_LEN(others) + o->n_adapters + out->n_inputs, sizeof *s->inputs);
    if (!s->inputs) return gr_fail_memory(err, "session");
    for (int i = 0; i < GR_LEN(others) + out->n_inputs; i++) {
        const char *path = i < GR_LEN(others) ? others[i] : out->inputs[i - GR_LEN(others)];
        if (path && !(s->inputs[s->n_inputs++] = gr_strdup(path))) GR_TRY(gr_fail_memory(err, "session"));
    }
    for (int i = 0; i < o->n_adapters; i++) GR_TRY(split_scale(o->adapters[i], &s->inputs[s->n_inputs++], &scale, err));
    if (!out->path) goto done;
    gr_output all = *out;
    all.inputs = (const char *const *)s->inputs;
    all.n_inputs = s->n_inputs;
    GR_TRY(gr_output_check(&all, err));
done:
    return st;
}

/* ---- the steps ---- */

gr_dtype gr_compute_type(int recipe_dtype, const gr_device *device) {
    switch ((enum gr_recipe_model_dtype)recipe_dtype) {
    case GR_DT_BF16: return GR_DTYPE_BF16;
    case GR_DT_FP16: return GR_DTYPE_F16;
    case GR_DT_FP32: return GR_DTYPE_F32;
    case GR_DT_AUTO: break;
    }
    return device->fast_bf16 ? GR_DTYPE_BF16 : GR_DTYPE_F32;
}

int gr_quantize_type(int recipe_quantize) {
    switch ((enum gr_recipe_model_quantize)recipe_quantize) {
    case GR_QUANTIZE_Q8_0: return GR_DTYPE_Q8_0;
    case GR_QUANTIZE_Q4_0: return GR_DTYPE_Q4_0;
    case GR_QUANTIZE_Q4_K: return GR_DTYPE_Q4_K;
    case GR_QUANTIZE_NF4: return GR_DTYPE_NF4;
    case GR_QUANTIZE_NONE: break;
    }
    return -1;
}

graft_status gr_session_open_shape(gr_session *s, const gr_session_options *o, graft_error *err) {
    graft_status st = gr_machine_open(&s->machine, o->device ? o->device : "auto", (int)GR_MIN(o->threads, 1024), err);
    if (st != GRAFT_OK) return st;
    const gr_device *d = s->machine.device;
    if (s->machine.no_card && gr_device_has_driver())
        gr_warn("device auto: %s; %s does the work (device: cpu says that this is meant)", s->machine.no_card, d->level);
    gr_dtype compute = gr_compute_type(o->dtype, d);
    if (o->compute == GR_COMPUTE_INT8 && !d->int8)
        return gr_fail(
            err, GRAFT_BAD_USAGE,
            "model.compute: int8 is of the CPU; %s multiplies bf16 faster than it could be rounded: use exact, or device: cpu",
            d->level);
    if (o->compute == GR_COMPUTE_FP8 && !d->fp8)
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "model.compute: fp8 is of cards of compute capability 9.0 (H100, H200), which %s is not: use exact",
                       d->level);
    if (o->compute == GR_COMPUTE_FP8 && compute == GR_DTYPE_F32)
        return gr_fail(err, GRAFT_BAD_USAGE, "model.compute: fp8 goes with model.dtype: bf16 or fp16");
    return gr_model_open_shape(&s->model, o->model, s->machine, compute, o->max_length, err);
}

graft_status gr_session_load(gr_session *s, const gr_session_options *o, graft_error *err) {
    int quantize = gr_quantize_type(o->quantize);
    graft_status st = gr_model_load(s->model, err);
    if (st == GRAFT_OK && o->ranks > 1) return gr_frozen_share(s->model, quantize, o->rank, o->ranks, err);
    return st == GRAFT_OK && quantize >= 0 ? gr_model_quantize(s->model, (gr_dtype)quantize, err) : st;
}

graft_status gr_session_open_tokenizer(gr_session *s, graft_error *err) {
    const char *base = gr_weights_path(s->model->weights);
    graft_status st = gr_tokenizer_open(&s->tokenizer, base, err);
    if (st == GRAFT_OK) gr_tokenizer_note_rows(s->tokenizer, s->model->config.vocab, base);
    return st;
}

/* ---- all of it ---- */

gr_base_products gr_train_products(int recipe_compute) {
    return recipe_compute == GR_COMPUTE_INT8 ? GR_BASE_INT8 : recipe_compute == GR_COMPUTE_FP8 ? GR_BASE_FP8 : GR_BASE_EXACT;
}

static gr_base_products products(const gr_session *s, const gr_session_options *o) {
    if (!s->machine.device->int8) return GR_BASE_EXACT;
    if (o->compute == GR_COMPUTE_INT8) return GR_BASE_INT8;
    return o->compute == GR_COMPUTE_AUTO && o->dtype == GR_DT_AUTO ? GR_BASE_INT8_QUANTISED : GR_BASE_EXACT;
}

/* Before anything is read: what will be made of a base must fit. Its files do not count: the system may take their pages back. */
static graft_status check_memory(const gr_session *s, const gr_session_options *o, graft_error *err) {
    const gr_model *m = s->model;
    int quantize = gr_quantize_type(o->quantize);
    int64_t bytes = quantize >= 0 ? gr_model_quantized_bytes(m, (gr_dtype)quantize) : 0, available = gr_memory_available(NULL),
            total;
    bool card = s->machine.device->memory(s->machine.device, &total, &available);
    const gr_model_forms forms = {.base = products(s, o), .quantise = quantize};
    if (card) bytes += gr_model_copied_bytes(m, false, forms);
    bytes += gr_model_form_bytes(m, forms) + m->rope_positions * m->config.head_dim * (int64_t)sizeof(float);
    if (bytes <= available) return GRAFT_OK;
    if (card)
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "%s: its weights take %.1f MiB of %s, and %.1f MiB are free there; less is needed with %s%sdevice: cpu",
                       o->model, (double)bytes / (1 << 20), s->machine.device->level, (double)available / (1 << 20),
                       m->compute == GR_DTYPE_F32 ? "model.dtype: bf16, or " : "", quantize < 0 ? "model.quantize: nf4, or " : "");
    return gr_fail(err, GRAFT_BAD_USAGE, "%s: quantised, or as int8, it takes %.2f GiB besides its files, and %.2f GiB are free",
                   o->model, (double)bytes / (1 << 30), (double)available / (1 << 30));
}

static graft_status open_base(gr_session *s, const gr_session_options *o, const char *base, graft_error *err) {
    gr_session_options of_base = *o;
    graft_status st;
    of_base.model = base;
    GR_TRY(gr_session_open_shape(s, &of_base, err));
    if (gr_weights_shape_only(s->model->weights))
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "%s is a shape without weights: only train --dry-run can use it", base));
    GR_TRY(check_memory(s, &of_base, err));
    GR_TRY(gr_session_load(s, &of_base, err));
    GR_TRY(gr_session_open_tokenizer(s, err));
done:
    return st;
}

/* What is asked for, else what was trained with: the text in the adapter's files, or the run's recipe. What was trained with or
 * asked for by name goes into what is written from here. template_name "": only for that. */
static graft_status open_chat(gr_session *s, const gr_session_options *o, const char *run, graft_error *err) {
    bool files = o->template_name && !*o->template_name;
    const char *name = files ? NULL : o->template_name,
               *trained = name || s->n_adapters == 0 ? NULL : s->adapters[0]->chat_template;
    gr_recipe *r = name ? NULL : run_recipe(run);
    graft_status st = GRAFT_OK;
    gr_chat_options chat = {.name = name, .source = trained};
    if (r && !trained) chat = gr_recipe_chat(r, s->tokenizer);
    if (trained) chat.name = r ? r->data_template : "trained";
    if (o->system) chat.system = o->system;
    if (o->template_args) chat.args = o->template_args;
    if (files && !trained && !r) goto done;
    GR_TRY(gr_chat_open(&s->chat, &chat, s->tokenizer, err));
    if (name || trained || r) GR_TRY(gr_chat_carry(s->chat, s->tokenizer, err));
done:
    gr_recipe_free(r);
    return st;
}

graft_status gr_session_open(gr_session *s, const gr_session_options *o, graft_error *err) {
    graft_status st = GRAFT_OK;
    char *base = NULL, *first = NULL;
    double scale;
    bool model_is_adapter = o->model && gr_adapter_is(o->model);
    *s = (gr_session){0};
    if (!o->model && o->n_adapters == 0)
        return gr_fail(err, GRAFT_BAD_USAGE, "no model: give --model, or --adapter with a run or an adapter");
    if (o->compute == GR_COMPUTE_FP8)
        return gr_fail(err, GRAFT_BAD_USAGE, "model.compute: fp8 is of training, whose forward is exact: use exact here");
    if (o->n_adapters > 0) GR_TRY(split_scale(o->adapters[0], &first, &scale, err));
    const char *run = o->model ? o->model : first;
    GR_TRY(gr_session_base(&base, run, err));
    s->adapters = gr_calloc(o->n_adapters + 1, sizeof(gr_adapter *));
    s->scales = gr_calloc(o->n_adapters + 1, sizeof *s->scales);
    if (!s->adapters || !s->scales) GR_TRY(gr_fail_memory(err, "session"));
    GR_TRY(list_inputs(s, o, base, err));
    st = open_base(s, o, base, err);
    if (st != GRAFT_OK && s->machine.device && strcmp(base, run) != 0)
        st = gr_fail_context(err, st, "%s is trained on %s (another place: --model)", run, base);
    if (st != GRAFT_OK) goto done;
    if (model_is_adapter) GR_TRY(add_adapter(s, o->model, err));
    for (int i = 0; i < o->n_adapters; i++) GR_TRY(add_adapter(s, o->adapters[i], err));
    if (products(s, o) != GR_BASE_EXACT) gr_model_use(s->model, (gr_model_forms){.base = products(s, o), .quantise = -1});
    GR_TRY(open_chat(s, o, first ? first : run, err));
done:
    free(base);
    free(first);
    if (st != GRAFT_OK) gr_session_close(s);
    return st;
}

void gr_session_close(gr_session *s) {
    if (s->model) gr_adapter_detach_all(s->model);
    for (int i = 0; i < s->n_adapters; i++) gr_adapter_free(s->adapters[i]);
    free(s->adapters);
    free(s->scales);
    for (int i = 0; i < s->n_inputs; i++) free(s->inputs[i]);
    free(s->inputs);
    gr_chat_free(s->chat);
    gr_tokenizer_free(s->tokenizer);
    gr_model_free(s->model);
    gr_machine_close(&s->machine);
    *s = (gr_session){0};
}
