#include "core/model/arch.h"

#include <string.h>

static const gr_module_names llama_modules[GR_SLOT_COUNT] = {
    [GR_SLOT_EMBED] = {"model.embed_tokens", "token_embd"},
    [GR_SLOT_INPUT_NORM] = {"input_layernorm", "attn_norm"},
    [GR_SLOT_Q] = {"self_attn.q_proj", "attn_q"},
    [GR_SLOT_K] = {"self_attn.k_proj", "attn_k"},
    [GR_SLOT_V] = {"self_attn.v_proj", "attn_v"},
    [GR_SLOT_O] = {"self_attn.o_proj", "attn_output"},
    [GR_SLOT_POST_NORM] = {"post_attention_layernorm", "ffn_norm"},
    [GR_SLOT_GATE] = {"mlp.gate_proj", "ffn_gate"},
    [GR_SLOT_UP] = {"mlp.up_proj", "ffn_up"},
    [GR_SLOT_DOWN] = {"mlp.down_proj", "ffn_down"},
    [GR_SLOT_NORM] = {"model.norm", "output_norm"},
    [GR_SLOT_HEAD] = {"lm_head", "output"},
};

const gr_arch gr_archs[] = {
    {.hf_type = "llama",
     .hf_class = "LlamaForCausalLM",
     .gguf = "llama",
     .modules = llama_modules,
     .activation = GR_ACTIVATION_SILU,
     .max_positions = 2048,
     .attention_bias = true,
     .mlp_bias = true,
     .gguf_interleaved = true,
     .gguf_65b = true},
    {.hf_type = "mistral",
     .hf_class = "MistralForCausalLM",
     .gguf = "llama",
     .modules = llama_modules,
     .activation = GR_ACTIVATION_SILU,
     .max_positions = 131072,
     .n_kv_heads = 8,
     .window = 4096,
     .gguf_interleaved = true,
     .gguf_65b = true},
    {.hf_type = "qwen2",
     .hf_class = "Qwen2ForCausalLM",
     .gguf = "qwen2",
     .modules = llama_modules,
     .activation = GR_ACTIVATION_SILU,
     .max_positions = 32768,
     .n_kv_heads = 32,
     .window = 4096,
     .window_switch = true,
     .qkv_bias = true,
     .gguf_square_q = true},
};
_Static_assert(GR_LEN(gr_archs) == GR_N_ARCHS, "the number that the header says");

graft_status gr_arch_find(const gr_arch **out, const char *file, const char *key, const char *name, bool gguf, graft_error *err) {
    const char *known[GR_N_ARCHS];
    int n = 0;
    gr_str list = {0};
    for (int i = 0; i < GR_N_ARCHS; i++) {
        known[n] = gguf ? gr_archs[i].gguf : gr_archs[i].hf_type;
        *out = &gr_archs[i];
        if (strcmp(known[n], name) == 0) return GRAFT_OK;
        if (n == 0 || strcmp(known[n], known[n - 1]) != 0) n++; /* those of one name are neighbours */
    }
    for (int i = 0; i < n; i++) gr_str_printf(&list, "%s%s", i == 0 ? "" : i + 1 < n ? ", " : " and ", known[i]);
    gr_fail(err, GRAFT_BAD_INPUT, "%s: %s \"%.40s\": graft runs %s", file, key, name, list.data);
    gr_str_release(&list);
    return GRAFT_BAD_INPUT;
}
