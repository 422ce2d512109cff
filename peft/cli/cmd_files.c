/* graft merge, graft export, graft inspect */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "adapters/inspect.h"
#include "adapters/merge.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/output.h"
#include "peft/cli/session_args.h"

/* Whether it may be written is checked with the session's inputs. */
static graft_status need_out(const gr_args *a, const char **out, graft_error *err) {
    *out = gr_args_text(a, "out", NULL);
    if (!*out) return gr_fail(err, GRAFT_BAD_USAGE, "no place to write to: give --out PATH");
    return GRAFT_OK;
}

static void print_merge(const char *out, const gr_merge_report *r) {
    printf("%s: %lld tensors (%lld merged), %s, %.1f MB, read back and compared\n", out, (long long)r->n_tensors,
           (long long)r->n_merged, gr_dtype_get(r->dtype)->name, (double)r->n_bytes / 1e6);
    printf("largest logit difference %.3g (the largest logit is %.3g); %lld of %lld tokens get another likeliest next one; mean KL "
           "%.3g nats\n",
           r->max_logit_difference, r->largest_logit, (long long)r->n_changed, (long long)r->n_probed, r->mean_kl);
}

static void print_merge_json(const char *out, const gr_merge_report *r) {
    json_t *json =
        json_pack("{s:s,s:s,s:I,s:I,s:I,s:f,s:f,s:f,s:f,s:I,s:I}", "out", out, "dtype", gr_dtype_get(r->dtype)->name, "tensors",
                  (json_int_t)r->n_tensors, "merged", (json_int_t)r->n_merged, "bytes", (json_int_t)r->n_bytes,
                  "max_logit_difference", r->max_logit_difference, "largest_logit", r->largest_logit, "relative_error",
                  r->relative_error, "mean_kl", r->mean_kl, "probed", (json_int_t)r->n_probed, "changed", (json_int_t)r->n_changed);
    json_dumpf(json, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(json);
}

graft_status gr_cmd_merge(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session s = {0};
    gr_merge_options o = {.overwrite = gr_args_has(a, "overwrite")};
    gr_merge_report report = {0};
    const char *out;
    GR_TRY(need_out(a, &out, err));
    GR_TRY(gr_written_type(&o.dtype, gr_args_text(a, "dtype", NULL), err));
    GR_TRY(gr_format_of(&o.format, out, gr_args_text(a, "format", NULL), "hf", err));
    if (o.format == GR_FORMAT_HF && o.dtype >= 0 && gr_dtype_get((gr_dtype)o.dtype)->block > 1)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--dtype %s needs a GGUF (--out FILE.gguf); an HF folder takes fp32, fp16 or bf16",
                       gr_args_text(a, "dtype", NULL)));
    GR_TRY(gr_open_session(a, GR_FOR_FILES, &s, NULL, err));
    gr_merge_parts parts = {s.model, s.tokenizer, s.adapters, s.scales, s.n_adapters, NULL};
    GR_TRY(gr_merge(&parts, &o, out, &report, err));
    if (gr_args_has(a, "json")) print_merge_json(out, &report);
    else print_merge(out, &report);
done:
    gr_session_close(&s);
    return st;
}

/* The adapter that is written: the session's, or, with --base-out, what is left of it when its rows are in that base. */
static graft_status take_rows_apart(const gr_args *a, gr_session *s, const char *out, gr_adapter *plain, char **base_path,
                                    graft_error *err) {
    graft_status st = GRAFT_OK;
    const char *base = gr_args_text(a, "base-out", NULL), *dtype = gr_args_text(a, "dtype", NULL);
    gr_merge_options o = {.overwrite = gr_args_has(a, "overwrite")};
    *plain = *s->adapters[0];
    if (!base && dtype) return gr_fail(err, GRAFT_BAD_USAGE, "--dtype is of --base-out: adapters are written as fp32");
    if (!base) return GRAFT_OK;
    GR_TRY(gr_written_type(&o.dtype, dtype, err));
    GR_TRY(gr_format_of(&o.format, base, NULL, "hf", err));
    if (gr_path_within(base, out) || gr_path_within(out, base))
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--base-out %s and --out %s: one lies in the other", base, out));
    GR_TRY(gr_output_check(&(gr_output){.path = base,
                                        .folder = o.format == GR_FORMAT_HF,
                                        .overwrite = o.overwrite,
                                        .inputs = (const char *const *)s->inputs,
                                        .n_inputs = s->n_inputs},
                           err));
    if (!(*base_path = gr_path_absolute(base))) GR_TRY(gr_fail_memory(err, base));
    GR_TRY(gr_merge_rows(plain, s->adapters[0], s->model, s->tokenizer, &o, *base_path, err));
done:
    return st;
}

static void print_export(const gr_args *a, const char *out, const char *base_path, gr_model_format format, const gr_adapter *x) {
    if (gr_args_has(a, "json")) {
        json_t *json = json_pack("{s:s,s:s,s:I,s:I}", "out", out, "format", format == GR_FORMAT_GGUF ? "gguf" : "peft", "modules",
                                 (json_int_t)x->n_modules, "parameters", (json_int_t)gr_adapter_n_parameters(x));
        if (base_path) json_object_set_new(json, "base", json_string(base_path));
        json_dumpf(json, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(json);
        return;
    }
    char text[32];
    if (base_path) printf("%s: the base with the adapter's rows, read back and compared\n", base_path);
    printf("%s: %lld modules, %s parameters\n", out, (long long)x->n_modules, gr_thousands(gr_adapter_n_parameters(x), text));
}

graft_status gr_cmd_export(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session s = {0};
    const char *out;
    char *base_path = NULL;
    gr_adapter plain;
    gr_model_format format;
    GR_TRY(need_out(a, &out, err));
    GR_TRY(gr_format_of(&format, out, gr_args_text(a, "format", NULL), "peft", err));
    GR_TRY(gr_open_session(a, GR_FOR_FILES, &s, NULL, err));
    if (s.n_adapters != 1)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "export writes one adapter: give one --adapter (found %d)", s.n_adapters));
    GR_TRY(take_rows_apart(a, &s, out, &plain, &base_path, err));
    if (format == GR_FORMAT_GGUF) GR_TRY(gr_adapter_export_gguf(&plain, s.model, out, err));
    else GR_TRY(gr_adapter_save(&plain, out, gr_args_has(a, "overwrite"), err));
    if (gr_adapter_has_rows(&plain))
        gr_note(
            "%s: trained rows of tokens are in it, as PEFT has them; vLLM and llama.cpp serve it as the base with these rows and a "
            "plain LoRA: --base-out PATH",
            out);
    print_export(a, out, base_path, format, &plain);
done:
    free(base_path);
    gr_session_close(&s);
    return st;
}

graft_status gr_cmd_inspect(const gr_args *a, graft_error *err) {
    return gr_inspect(a->arguments[0], gr_args_has(a, "json"), stdout, err);
}
