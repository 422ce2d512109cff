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

static const char *name_of(int i, bool gguf) { return gguf ? gr_archs[i].gguf : gr_archs[i].hf_type; }

/* Is row i the first of its name? */
static bool is_first(int i, bool gguf) {
    for (int k = 0; k < i; k++)
        if (strcmp(name_of(k, gguf), name_of(i, gguf)) == 0) return false;
    return true;
}

void gr_arch_names(char out[128], bool gguf) {
    int last = GR_N_ARCHS - 1;
    size_t at = 0;
    while (!is_first(last, gguf)) last--;
    for (int i = 0; i <= last; i++)
        if (is_first(i, gguf))
            at += (size_t)snprintf(out + at, 128 - at, "%s%s", i == 0 ? "" : i == last ? " and " : ", ", name_of(i, gguf));
}
