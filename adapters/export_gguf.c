/* A whole model as GGUF v3 for llama.cpp (ggml docs/gguf.md; llama.cpp's conversion/llama.py for what its
 * loader expects). */
#include "adapters/merge.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"

/* One-dimensional tensors stay F32 (llama.cpp computes with nothing else); a row that is no whole number of
 * Q8_0 blocks is F16. */
static gr_dtype gguf_dtype(const gr_merge_job *job, const gr_weight_entry *e) {
    if (e->is_vector) return GR_DTYPE_F32;
    return e->view.cols % gr_dtype_get(job->dtype)->block == 0 ? job->dtype : GR_DTYPE_F16;
}

static bool has_rope_tensor(const gr_merge_job *job) {
    return job->config.rope_scaling == GR_ROPE_LLAMA3;
}

static graft_status produce(void *context, int64_t i, void *dst, graft_error *err) {
    gr_merge_job *job = context;
    if (i < job->n_entries) return gr_merge_entry(job, i, gguf_dtype(job, &job->entries[i]), true, dst, err);
    float *divisors = dst; /* rope_freqs.weight */
    for (int64_t k = 0; k < job->config.head_dim / 2; k++)
        divisors[k] = (float)gr_config_rope_divisor(&job->config, k);
    return GRAFT_OK;
}

/* general.file_type, as llama.cpp's enum llama_ftype numbers them. */
static uint32_t file_type(gr_dtype dtype) {
    switch (dtype) {
    case GR_DTYPE_F16:
        return 1;
    case GR_DTYPE_Q8_0:
        return 7;
    case GR_DTYPE_BF16:
        return 32;
    default:
        return 0;
    }
}

static graft_status put_metadata(const gr_merge_job *job, gr_gguf_builder *b, graft_error *err) {
    const char *base = gr_weights_path(job->m->weights), *slash = strrchr(base, '/'),
               *name = slash && slash[1] ? slash + 1 : base;
    const gr_gguf *g = gr_weights_gguf(job->m->weights);
    graft_status st = GRAFT_OK;
    if (g && gr_gguf_has(g, "general.name")) st = gr_gguf_get_string(g, "general.name", &name, NULL, err);
    if (st != GRAFT_OK) return st;
    gr_config_put_gguf(&job->config, b);
    gr_gguf_put_string(b, "general.type", "model");
    gr_gguf_put_string(b, "general.name", name);
    gr_gguf_put_u32(b, "general.file_type", file_type(job->dtype));
    gr_gguf_put_u32(b, "general.quantization_version", 2);
    return gr_tokenizer_save_gguf(job->tokenizer, job->config.vocab, b, err);
}

graft_status gr_export_gguf(gr_merge_job *job, const char *path, graft_error *err) {
    graft_status st;
    gr_gguf_builder b = {0};
    gr_tensor *tensors = NULL;
    int64_t n = job->n_entries;
    if (strcmp(job->config.arch, "qwen2") == 0 &&
        job->config.n_heads * job->config.head_dim != job->config.hidden)
        gr_warn("llama.cpp loads qwen2 only where heads x head size is the hidden size: graft reads this "
                "GGUF, llama.cpp will not");
    GR_TRY(put_metadata(job, &b, err));
    GR_TRY(gr_merge_tensors(&tensors, job, gguf_dtype, true, err));
    if (has_rope_tensor(job)) {
        tensors[n] = (gr_tensor){.name = "rope_freqs.weight", .dtype = GR_DTYPE_F32, .n_dims = 1};
        tensors[n++].shape[0] = job->config.head_dim / 2;
    }
    GR_TRY(gr_gguf_write(path, &b, tensors, n, produce, job, err));
done:
    gr_gguf_builder_release(&b);
    free(tensors);
    return st;
}
