/* graft merge, graft export, graft inspect */
#include <jansson.h>
#include <string.h>

#include "adapters/inspect.h"
#include "adapters/merge.h"
#include "core/base/file.h"
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

graft_status gr_cmd_export(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session s = {0};
    const char *out;
    gr_model_format format;
    GR_TRY(need_out(a, &out, err));
    GR_TRY(gr_format_of(&format, out, gr_args_text(a, "format", NULL), "peft", err));
    GR_TRY(gr_open_session(a, GR_FOR_FILES, &s, NULL, err));
    if (s.n_adapters != 1)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "export writes one adapter: give one --adapter (found %d)", s.n_adapters));
    if (format == GR_FORMAT_GGUF) GR_TRY(gr_adapter_export_gguf(s.adapters[0], s.model, out, err));
    else GR_TRY(gr_adapter_save(s.adapters[0], out, gr_args_has(a, "overwrite"), err));
    if (gr_args_has(a, "json")) {
        json_t *json =
            json_pack("{s:s,s:s,s:I,s:I}", "out", out, "format", format == GR_FORMAT_GGUF ? "gguf" : "peft", "modules",
                      (json_int_t)s.adapters[0]->n_modules, "parameters", (json_int_t)gr_adapter_n_parameters(s.adapters[0]));
        json_dumpf(json, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(json);
    } else {
        char text[32];
        printf("%s: %lld modules, %s parameters\n", out, (long long)s.adapters[0]->n_modules,
               gr_thousands(gr_adapter_n_parameters(s.adapters[0]), text));
    }
done:
    gr_session_close(&s);
    return st;
}

graft_status gr_cmd_inspect(const gr_args *a, graft_error *err) {
    return gr_inspect(a->arguments[0], gr_args_has(a, "json"), stdout, err);
}
