#include "core/model/arch.h"

#include <string.h>

/* ---- names ---- */

/* What all have. */
#define ENDS                                                                                                                       \
    [GR_SLOT_EMBED] = {"model.embed_tokens", "token_embd"}, [GR_SLOT_INPUT_NORM] = {"input_layernorm", "attn_norm"},               \
    [GR_SLOT_O] = {"self_attn.o_proj", "attn_output"}, [GR_SLOT_DOWN] = {"mlp.down_proj", "ffn_down"},                             \
    [GR_SLOT_NORM] = {"model.norm", "output_norm"}, [GR_SLOT_HEAD] = {"lm_head", "output"}
#define LINEARS                                                                                                                    \
    [GR_SLOT_Q] = {"self_attn.q_proj", "attn_q"}, [GR_SLOT_K] = {"self_attn.k_proj", "attn_k"},                                    \
    [GR_SLOT_V] = {"self_attn.v_proj", "attn_v"}, [GR_SLOT_GATE] = {"mlp.gate_proj", "ffn_gate"},                                  \
    [GR_SLOT_UP] = {"mlp.up_proj", "ffn_up"}
#define FUSED      [GR_SLOT_QKV] = {"self_attn.qkv_proj", "attn_qkv"}, [GR_SLOT_GATE_UP] = {"mlp.gate_up_proj", "ffn_up"}
#define HEAD_NORMS [GR_SLOT_Q_NORM] = {"self_attn.q_norm", "attn_q_norm"}, [GR_SLOT_K_NORM] = {"self_attn.k_norm", "attn_k_norm"}
#define TWO_NORMS  [GR_SLOT_POST_NORM] = {"post_attention_layernorm", "ffn_norm"}
#define FOUR_NORMS                                                                                                                 \
    [GR_SLOT_ATTENTION_NORM] = {"post_attention_layernorm", "post_attention_norm"},                                                \
    [GR_SLOT_POST_NORM] = {"pre_feedforward_layernorm", "ffn_norm"},                                                               \
    [GR_SLOT_MLP_NORM] = {"post_feedforward_layernorm", "post_ffw_norm"}

static const gr_module_names llama_modules[GR_SLOT_COUNT] = {ENDS, LINEARS, TWO_NORMS};
static const gr_module_names qwen3_modules[GR_SLOT_COUNT] = {ENDS, LINEARS, TWO_NORMS, HEAD_NORMS};
static const gr_module_names phi3_modules[GR_SLOT_COUNT] = {ENDS, FUSED, TWO_NORMS};
static const gr_module_names gemma2_modules[GR_SLOT_COUNT] = {ENDS, LINEARS, FOUR_NORMS};
static const gr_module_names gemma3_modules[GR_SLOT_COUNT] = {ENDS, LINEARS, FOUR_NORMS, HEAD_NORMS};

/* ---- rows ---- */

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
     .slides = true,
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
     .slides = true,
     .window = 4096,
     .layer_types = true,
     .window_switch = true,
     .qkv_bias = true,
     .gguf_square = true},
    {.hf_type = "qwen3",
     .hf_class = "Qwen3ForCausalLM",
     .gguf = "qwen3",
     .modules = qwen3_modules,
     .activation = GR_ACTIVATION_SILU,
     .max_positions = 32768,
     .n_kv_heads = 32,
     .head_dim = 128,
     .slides = true,
     .window = 4096,
     .layer_types = true,
     .window_switch = true,
     .attention_bias = true},
    {.hf_type = "gemma2",
     .hf_class = "Gemma2ForCausalLM",
     .gguf = "gemma2",
     .modules = gemma2_modules,
     .activation = GR_ACTIVATION_GELU_TANH,
     .max_positions = 8192,
     .n_kv_heads = 4,
     .head_dim = 256,
     .slides = true,
     .window = 4096,
     .window_period = 2,
     .score_divisor = 256,
     .attention_softcap = 50,
     .head_softcap = 30,
     .tied = true,
     .layer_types = true,
     .attention_bias = true,
     .score_keys = true,
     .score_cap_key = true,
     .norm_offset = 1,
     .embed_scaled = true,
     .gguf_slides = true,
     .gguf_window = 4096,
     .gguf_tied = true,
     .gguf_27b = 46},
    {.hf_type = "gemma3_text",
     .hf_class = "Gemma3ForCausalLM",
     .gguf = "gemma3",
     .hf_whole = "gemma3",
     .modules = gemma3_modules,
     .activation = GR_ACTIVATION_GELU_TANH,
     .max_positions = 131072,
     .n_heads = 8,
     .vocab = 262208,
     .n_kv_heads = 4,
     .head_dim = 256,
     .slides = true,
     .window = 4096,
     .window_period = 6,
     .rope_theta = 1e6,
     .rope_local = 1e4,
     .score_divisor = 256,
     .tied = true,
     .layer_types = true,
     .attention_bias = true,
     .window_period_key = true,
     .score_keys = true,
     .norm_offset = 1,
     .embed_scaled = true,
     .gguf_slides = true,
     .gguf_27b = 62},
    {.hf_type = "phi3",
     .hf_class = "Phi3ForCausalLM",
     .gguf = "phi3",
     .modules = phi3_modules,
     .activation = GR_ACTIVATION_SILU,
     .max_positions = 4096,
     .norm_eps = 1e-5f,
     .slides = true,
     .gguf_square = true},
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
