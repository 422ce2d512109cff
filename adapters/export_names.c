/* What a user's words for an output mean: formats and types by name. */
#include <string.h>
#include <strings.h>

#include "adapters/export.h"
#include "core/base/file.h"

/* A folder named like a file of weights is hardly what was meant. */
static graft_status check_folder_name(const char *path, graft_error *err) {
    static const char *const files[] = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".ggml", ".npz", ".onnx", ".zip"};
    for (int i = 0; i < GR_LEN(files); i++)
        if (gr_ends_with(path, files[i]) && !gr_is_dir(path))
            return gr_fail(err, GRAFT_BAD_USAGE,
                           "--out %s: no %s file is written: expected the name of a folder, or FILE.gguf (or name the --format)",
                           path, files[i]);
    return GRAFT_OK;
}

graft_status gr_format_of(gr_model_format *format, const char *out_path, const char *asked, const char *hf, graft_error *err) {
    bool gguf_name = gr_ends_with(out_path, ".gguf") || gr_ends_with(out_path, ".GGUF");
    *format = gguf_name ? GR_FORMAT_GGUF : GR_FORMAT_HF;
    if (!asked) return *format == GR_FORMAT_HF ? check_folder_name(out_path, err) : GRAFT_OK;
    bool gguf = strcmp(asked, "gguf") == 0;
    if (!gguf && strcmp(asked, hf) != 0)
        return gr_fail(err, GRAFT_BAD_USAGE, "--format: expected %s or gguf, found \"%s\"", hf, asked);
    if (gguf_name && !gguf)
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "--format %s writes a folder, --out %s is the name of a GGUF: leave --format out, or name a folder", hf,
                       out_path);
    if (gguf && (gr_is_dir(out_path) || gr_ends_with(out_path, "/")))
        return gr_fail(err, GRAFT_BAD_USAGE,
                       "--format gguf writes a file, --out %s is a folder: leave --format out, or name a file.gguf", out_path);
    *format = gguf ? GR_FORMAT_GGUF : GR_FORMAT_HF;
    return GRAFT_OK;
}

/* The types of matrices that are written; in files F32 is fp32's name, and Q4_K that of what llama.cpp calls its mixture Q4_K_M. */
static const struct {
    gr_dtype dtype;
    const char *name;
    bool folder;
} writable[] = {
    {GR_DTYPE_F32, "fp32", true},     {GR_DTYPE_F16, "fp16", true},   {GR_DTYPE_BF16, "bf16", true},
    {GR_DTYPE_Q8_0, "q8_0", false},   {GR_DTYPE_Q6_K, "q6_k", false}, {GR_DTYPE_Q5_K, "q5_k_m", false},
    {GR_DTYPE_Q4_K, "q4_k_m", false},
};

const char *gr_written_type_name(int i, bool *folder) {
    if (i >= GR_LEN(writable)) return NULL;
    if (folder) *folder = writable[i].folder;
    return writable[i].name;
}

bool gr_type_is_written(int dtype, bool *folder) {
    int i = 0;
    while (i < GR_LEN(writable) && (int)writable[i].dtype != dtype) i++;
    return gr_written_type_name(i, folder);
}

graft_status gr_written_type(int *dtype, const char *name, graft_error *err) {
    *dtype = -1;
    if (!name) return GRAFT_OK;
    for (int i = 0; i < GR_LEN(writable); i++)
        if (strcasecmp(name, writable[i].name) == 0 || (int)writable[i].dtype == gr_dtype_from_name(name))
            *dtype = (int)writable[i].dtype;
    if (*dtype >= 0) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_USAGE,
                   "--dtype: expected fp32, fp16 or bf16, or in a GGUF q8_0, q6_k, q5_k_m or q4_k_m, found \"%s\"", name);
}
