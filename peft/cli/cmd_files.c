/* graft merge, graft export, graft inspect */
#include <jansson.h>
#include <string.h>

#include "adapters/export.h"
#include "core/base/file.h"
#include "peft/cli/session_args.h"

static graft_status check_out(const gr_args *a, const char **out, graft_error *err) {
    *out = gr_args_text(a, "out", NULL);
    if (!*out) return gr_fail(err, GRAFT_BAD_USAGE, "no place to write to: give --out PATH");
    return gr_check_output(*out, gr_args_has(a, "overwrite"), err);
}

/* --dtype in a recipe's spelling (fp32) or a file's (f32, q8_0). */
static graft_status written_type(const gr_args *a, int *dtype, graft_error *err) {
    static const gr_dtype writable[] = {GR_DTYPE_F32, GR_DTYPE_F16, GR_DTYPE_BF16, GR_DTYPE_Q8_0};
    const char *name = gr_args_text(a, "dtype", NULL);
    *dtype = -1;
    if (!name) return GRAFT_OK;
    int found = gr_dtype_from_name(strcmp(name, "fp32") == 0   ? "f32"
                                   : strcmp(name, "fp16") == 0 ? "f16"
                                                               : name);
    for (int i = 0; i < GR_LEN(writable); i++)
        if (found == (int)writable[i]) *dtype = found;
    return *dtype >= 0 ? GRAFT_OK
                       : gr_fail(err, GRAFT_BAD_USAGE,
                                 "--dtype: expected fp32, fp16, bf16 or q8_0, found \"%s\"", name);
}

static graft_status written_format(const gr_args *a, const char *out, int dtype, gr_model_format *format,
                                   graft_error *err) {
    const char *name = gr_args_text(a, "format", gr_ends_with(out, ".gguf") ? "gguf" : "hf");
    *format = strcmp(name, "gguf") == 0 ? GR_FORMAT_GGUF : GR_FORMAT_HF;
    if (strcmp(name, "gguf") != 0 && strcmp(name, "hf") != 0)
        return gr_fail(err, GRAFT_BAD_USAGE, "--format: expected hf or gguf, found \"%s\"", name);
    if (*format == GR_FORMAT_HF && dtype == GR_DTYPE_Q8_0)
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "--dtype q8_0 is a GGUF's; an HF folder takes fp32, fp16 or bf16");
    return GRAFT_OK;
}

graft_status gr_cmd_merge(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session s = {0};
    gr_merge_options o = {.overwrite = gr_args_has(a, "overwrite")};
    gr_merge_report report = {0};
    const char *out;
    GR_TRY(check_out(a, &out, err));
    GR_TRY(written_type(a, &o.dtype, err));
    GR_TRY(written_format(a, out, o.dtype, &o.format, err));
    GR_TRY(gr_open_session(a, GR_FOR_FILES, &s, NULL, err));
    GR_TRY(gr_merge(s.model, s.tokenizer, s.adapters, s.scales, s.n_adapters, NULL, &o, out, &report, err));
    if (gr_args_has(a, "json")) {
        json_t *json =
            json_pack("{s:s,s:I,s:I,s:I,s:f,s:f}", "out", out, "tensors", (json_int_t)report.n_tensors,
                      "merged", (json_int_t)report.n_merged, "bytes", (json_int_t)report.n_bytes,
                      "max_logit_difference", report.max_logit_difference, "mean_kl", report.mean_kl);
        json_dumpf(json, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(json);
    } else {
        printf("%s: %lld tensors (%lld merged), %.1f MB, read back and compared\n", out,
               (long long)report.n_tensors, (long long)report.n_merged, (double)report.n_bytes / 1e6);
        printf("largest logit difference %.3g, mean KL %.3g nats\n", report.max_logit_difference,
               report.mean_kl);
    }
done:
    gr_session_close(&s);
    return st;
}

graft_status gr_cmd_export(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_session s = {0};
    const char *out, *format = gr_args_text(a, "format", "peft");
    bool gguf = strcmp(format, "gguf") == 0;
    GR_TRY(check_out(a, &out, err));
    if (!gguf && strcmp(format, "peft") != 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "--format: expected peft or gguf, found \"%s\"", format));
    GR_TRY(gr_open_session(a, GR_FOR_FILES, &s, NULL, err));
    if (s.n_adapters != 1)
        GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "export writes one adapter: give one --adapter (found %d)",
                       s.n_adapters));
    if (gguf)
        GR_TRY(gr_adapter_export_gguf(s.adapters[0], s.model, out, err));
    else
        GR_TRY(gr_adapter_save(s.adapters[0], out, gr_args_has(a, "overwrite"), err));
    if (gr_args_has(a, "json")) {
        json_t *json = json_pack("{s:s,s:s,s:I,s:I}", "out", out, "format", format, "modules",
                                 (json_int_t)s.adapters[0]->n_modules, "parameters",
                                 (json_int_t)s.adapters[0]->params.n_parameters);
        json_dumpf(json, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(json);
    } else {
        char text[32];
        printf("%s: %lld modules, %s parameters\n", out, (long long)s.adapters[0]->n_modules,
               gr_thousands(s.adapters[0]->params.n_parameters, text));
    }
done:
    gr_session_close(&s);
    return st;
}

graft_status gr_cmd_inspect(const gr_args *a, graft_error *err) {
    return gr_inspect(a->arguments[0], gr_args_has(a, "json"), stdout, err);
}
