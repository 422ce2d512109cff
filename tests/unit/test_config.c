/* What a config.json, the metadata of a GGUF and the tensors of a folder say beside the sizes: each key and each tensor is
 * honoured, known to change nothing, or refused by name. Variants of the golden models, one change each; the expected values are
 * transformers' and llama.cpp's. */
#include "adapter_world.h"

#include <jansson.h>
#include <math.h>

/* ---- config.json ---- */

/* A config.json in the scratch folder: that of a golden model with the keys of `changes` (a JSON object) put over it; those of null
 * under "-" in the list `dropped` are taken away. */
static char *write_config(const char *model, const char *changes) {
    char path[512];
    snprintf(path, sizeof path, "%s/config.json", model);
    json_t *root = json_load_file(path, 0, NULL), *over = json_loads(changes, 0, NULL), *dropped = json_object_get(over, "-"), *v;
    size_t i;
    assert_non_null(root);
    if (!over) fail_msg("not JSON: %s", changes);
    json_array_foreach(dropped, i, v) json_object_del(root, json_string_value(v));
    json_object_update(root, over);
    json_object_del(root, "-");
    char *out = at("config.json");
    assert_int_equal(json_dump_file(root, out, 0), 0);
    json_decref(root);
    json_decref(over);
    return out;
}

/* Reads it; all that was logged in *log, owned. */
static graft_status read_config(gr_model_config *c, const char *model, const char *changes, char **log) {
    size_t n;
    FILE *stream = open_memstream(log, &n);
    gr_log_tee(stream);
    graft_status st = gr_config_read_json(c, write_config(model, changes), &err);
    gr_log_tee(NULL);
    fclose(stream);
    return st;
}

static void expect_config(const char *model, const char *changes, const char *refusal, const char *warning, gr_model_config *c) {
    char *log = NULL;
    gr_model_config other;
    graft_status st = read_config(c ? c : &other, model, changes, &log);
    if (refusal) assert_error(st, GRAFT_BAD_INPUT, refusal);
    else if (st != GRAFT_OK) fail_msg("%s: %s", changes, err.msg);
    if (warning ? !strstr(log, warning) : *log != '\0')
        fail_msg("%s: logged \"%s\", expected \"%s\"", changes, log, warning ? warning : "");
    free(log);
}

static void json_keys_are_honoured_harmless_or_refused(void **state) {
    static const struct {
        const char *changes, *refusal, *warning;
    } rows[] = {
        {"{\"hidden_act\": \"swish\", \"pretraining_tp\": 2, \"transformers.js_config\": {\"a\": 1}, \"is_llama_config\": true}",
         NULL, NULL},
        {"{\"hidden_act\": \"gelu\"}", "hidden_act is gelu: graft computes only silu or swish", NULL},
        {"{\"query_pre_attn_scalar\": 256}", "query_pre_attn_scalar is 256", NULL},
        {"{\"sliding_window_pattern\": 6}", "sliding_window_pattern is 6", NULL},
        {"{\"partial_rotary_factor\": 1.0, \"logits_scaling\": 1, \"num_local_experts\": 0, \"quantization_config\": null}", NULL,
         NULL},
        {"{\"partial_rotary_factor\": 0.5}", "partial_rotary_factor is 0.5", NULL},
        {"{\"embedding_multiplier\": 12.0}", "embedding_multiplier is 12.0", NULL},
        {"{\"logits_scaling\": 8}", "logits_scaling is 8", NULL},
        {"{\"final_logit_softcapping\": 30.0}", "final_logit_softcapping is 30.0", NULL},
        {"{\"num_local_experts\": 8}", "num_local_experts is 8", NULL},
        {"{\"rope_interleaved\": true}", "rope_interleaved is true", NULL},
        {"{\"is_encoder_decoder\": true}", "is_encoder_decoder is true", NULL},
        {"{\"pruned_heads\": {\"0\": [1]}}", "pruned_heads is {", NULL},
        {"{\"use_qk_norm\": true}", "use_qk_norm is true: graft does not compute that",
         NULL}, /* in no table, but its name says so */
        {"{\"use_qk_norm\": false, \"some_scale\": null, \"other_experts\": []}", NULL, NULL},
        {"{\"mlp_hidden_act\": \"relu2\"}", "mlp_hidden_act is relu2", NULL},
        {"{\"is_causal\": false}", "is_causal is false: graft computes only true", NULL}, /* false says something */
        {"{\"causal\": false}", "causal is false", NULL},
        {"{\"use_rope\": false}", "use_rope is false", NULL},
        {"{\"pre_norm\": false}", "pre_norm is false", NULL},
        {"{\"gated_mlp\": false}", "gated_mlp is false", NULL},
        {"{\"use_glu\": false}", "use_glu is false", NULL},
        {"{\"use_rmsnorm\": false}", "use_rmsnorm is false", NULL},
        {"{\"scale_attn_weights\": false}", "scale_attn_weights is false", NULL},
        {"{\"is_causal\": true, \"use_rope\": true, \"pre_norm\": true, \"gated_mlp\": null}", NULL, NULL},
        {"{\"nope_layer_interval\": 2}", "nope_layer_interval is 2: graft computes only 0", NULL},
        {"{\"use_nope\": true}", "use_nope is true", NULL},
        {"{\"positional_encoding\": \"alibi\"}", "positional_encoding is alibi: graft computes only rope or rotary", NULL},
        {"{\"xpos\": true}", "xpos is true", NULL},
        {"{\"use_sinks\": true}", "use_sinks is true", NULL},
        {"{\"num_kv_shared_layers\": 1}", "num_kv_shared_layers is 1", NULL},
        {"{\"kv_lora_rank\": 16}", "kv_lora_rank is 16", NULL},
        {"{\"block_configs\": [{}]}", "block_configs is [{}]: graft does not compute that", NULL},
        {"{\"attn_config\": {\"clip_qkv\": 8}}", "attn_config is {", NULL},
        {"{\"xpos\": false, \"use_sinks\": false, \"num_kv_shared_layers\": 0, \"block_configs\": null, \"attn_config\": {}, "
         "\"positional_encoding\": \"rope\", \"no_rope_layer_interval\": 0}",
         NULL, NULL},
        {"{\"flash_attention\": true, \"gradient_checkpointing\": true}", NULL, NULL},
        {"{\"author\": \"me\", \"stage\": 2}", NULL, "author, stage"},
        {"{\"architectures\": [\"LlamaForSequenceClassification\"]}", "architectures is LlamaForSequenceClassification", NULL},
        {"{\"architectures\": [\"LlamaModel\"]}", NULL, NULL},
        {"{\"architectures\": [\"LLaMAForCausalLM\"]}", NULL, NULL},
        {"{\"architectures\": [\"MistralForCausalLM\"]}", NULL, "model_type llama: the latter counts"},
        {"{\"model_type\": \"granite\"}",
         "model_type \"granite\": graft runs llama, mistral, qwen2, qwen3, gemma2, gemma3_text and phi3", NULL},
        {"{\"model_type\": \"mistral\", \"architectures\": null, \"attention_bias\": true}", "attention_bias is true", NULL},
        {"{\"model_type\": \"mistral\", \"architectures\": null, \"mlp_bias\": true}", "mlp_bias is true", NULL},
        {"{\"attention_dropout\": 0.1}", NULL, "attention_dropout 0.1 is not applied"},
        {"{\"quantization_config\": {\"quant_method\": \"awq\"}}", "quantization_config: weights packed by awq", NULL},
        {"{\"quantization_config\": {\"load_in_4bit\": true}}", "quantization_config: weights packed by another program", NULL},
        {"{\"quantization_config\": {\"load_in_4bit\": false, \"load_in_8bit\": false}}", NULL, NULL},
        {"{\"quantization_config\": {\"bits\": 4, \"load_in_4bit\": false}}", "quantization_config: weights packed by another",
         NULL},
        {"{\"graft_base_vocab_size\": 1}", NULL, NULL},
        {"{\"graft_base_vocab_size\": 99999999}", "graft_base_vocab_size (graft.base_vocab_size) is 99999999, expected 0 to ",
         NULL},
        {"{\"graft_base_vocab_size\": -1}", "graft_base_vocab_size (graft.base_vocab_size) is -1", NULL},
        {"{\"graft_base_vocab_size\": \"1\"}", "graft_base_vocab_size: expected an integer", NULL},
        {"{\"layer_types\": [\"full_attention\", \"linear_attention\"]}", "layer_types is linear_attention", NULL},
        {"{\"layer_types\": [\"full_attention\"]}", "layer_types has 1 entries", NULL},
        {"{\"layer_types\": [\"full_attention\", \"sliding_attention\"]}", "no sliding window is in use", NULL},
    };
    gr_model_config c;
    (void)state;
    for (int i = 0; i < GR_LEN(rows); i++) expect_config(TINY, rows[i].changes, rows[i].refusal, rows[i].warning, NULL);
    expect_config(TINY, "{\"-\": [\"num_key_value_heads\", \"head_dim\", \"rms_norm_eps\", \"max_position_embeddings\"]}", NULL,
                  NULL, &c);
    assert_int_equal(c.n_kv_heads, 4);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.max_positions, 2048);
    assert_true(c.norm_eps == 1e-6f);
    expect_config(TINY, "{\"attention_bias\": true, \"mlp_bias\": true}", NULL, NULL, &c);
    assert_true(c.qkv_bias && c.o_bias && c.mlp_bias);
    expect_config(QWEN, "{\"attention_bias\": true}", NULL, NULL, &c); /* as transformers: says nothing there */
    assert_true(c.qkv_bias && !c.o_bias);
}

/* What layers slide, as a word: "-SS". */
static const char *sliding(const gr_model_config *c) {
    static char word[16];
    for (int64_t i = 0; i < c->n_layers; i++) word[i] = gr_config_slides(c, i) ? 'S' : '-';
    word[c->n_layers] = '\0';
    return word;
}

#define MISTRAL "\"model_type\": \"mistral\", \"architectures\": null"
#define QWEN3   "\"model_type\": \"qwen3\", \"architectures\": null"
#define GEMMA2  "\"hidden_act\": null, \"model_type\": \"gemma2\", \"architectures\": null"
#define GEMMA3  "\"hidden_act\": null, \"model_type\": \"gemma3_text\", \"architectures\": null"

static void windows_are_those_of_transformers(void **state) {
    static const struct {
        const char *model, *changes, *refusal;
        int64_t window;
        const char *slides;
    } rows[] = {
        {TINY, "{\"sliding_window\": 8}", NULL, 0, "--"}, /* transformers ignores it there */
        {TINY, "{" MISTRAL ", \"sliding_window\": 8}", NULL, 8, "SS"},
        {TINY, "{" MISTRAL ", \"sliding_window\": null}", NULL, 0, "--"},
        {TINY, "{" MISTRAL "}", NULL, 4096, "SS"}, /* its default */
        {TINY, "{" MISTRAL ", \"layer_types\": [\"sliding_attention\", \"full_attention\"]}", "layer_types has full_attention", 0,
         ""},
        {TINY, "{" MISTRAL ", \"sliding_window\": -1}", "sliding_window is -1", 0, ""},
        {QWEN, "{\"sliding_window\": 8, \"use_sliding_window\": false}", NULL, 0, "--"},
        {QWEN, "{\"sliding_window\": 8, \"-\": [\"use_sliding_window\"]}", NULL, 0, "--"},
        {QWEN, "{\"sliding_window\": 8, \"use_sliding_window\": true}", NULL, 0, "--"}, /* layer_types: all are full */
        {QWEN, "{\"sliding_window\": 8, \"use_sliding_window\": true, \"layer_types\": null}", NULL, 0,
         "--"}, /* from layer 28 on */
        {QWEN, "{\"sliding_window\": 8, \"use_sliding_window\": true, \"layer_types\": null, \"max_window_layers\": 1}", NULL, 8,
         "-S"},
        {QWEN,
         "{\"sliding_window\": 8, \"use_sliding_window\": true, \"layer_types\": [\"sliding_attention\", \"full_attention\"]}",
         NULL, 8, "S-"},
        {TINY, "{" QWEN3 ", \"use_sliding_window\": true, \"max_window_layers\": 0}", NULL, 4096, "SS"},
        {TINY, "{" GEMMA2 "}", NULL, 4096, "S-"},
        {TINY, "{" GEMMA2 ", \"sliding_window\": null}", "no sliding window is in use", 0, ""},
        {TINY, "{" GEMMA2 ", \"sliding_window\": 8, \"layer_types\": [\"full_attention\", \"full_attention\"]}", NULL, 0, "--"},
        {TINY, "{" GEMMA3 "}", NULL, 4096, "SS"},
        {TINY, "{" GEMMA3 ", \"num_hidden_layers\": 8, \"sliding_window_pattern\": 3, \"sliding_window\": 512}", NULL, 512,
         "SS-SS-SS"},
        {TINY, "{" GEMMA3 ", \"num_hidden_layers\": 7, \"sliding_window\": 512}", NULL, 512, "SSSSS-S"},
        {TINY, "{" GEMMA3 ", \"sliding_window_pattern\": 1}", NULL, 0, "--"},
        {TINY, "{" GEMMA3 ", \"sliding_window_pattern\": 0}", "sliding_window_pattern is 0", 0, ""},
        {TINY, "{" GEMMA3 ", \"query_pre_attn_scalar\": 0}", "query_pre_attn_scalar is 0, expected 1 to", 0, ""},
    };
    (void)state;
    for (int i = 0; i < GR_LEN(rows); i++) {
        gr_model_config c;
        expect_config(rows[i].model, rows[i].changes, rows[i].refusal, NULL, &c);
        if (rows[i].refusal) continue;
        if (c.window != rows[i].window || strcmp(sliding(&c), rows[i].slides) != 0 ||
            gr_config_layer(&c, 1).window != (rows[i].slides[1] == 'S' ? c.window : 0))
            fail_msg("%s: window %lld of %s", rows[i].changes, (long long)c.window, sliding(&c));
    }
}

static void gemmas_have_defaults_of_their_own(void **state) {
    static const char drop[] = "\"-\": [\"num_key_value_heads\", \"head_dim\", \"rms_norm_eps\", \"max_position_embeddings\", "
                               "\"tie_word_embeddings\", \"rope_theta\", \"rope_scaling\"]";
    gr_model_config c;
    char changes[1024];
    (void)state;
    snprintf(changes, sizeof changes, "{" GEMMA2 ", %s}", drop);
    expect_config(TINY, changes, NULL, NULL, &c);
    assert_true(c.n_kv_heads == 4 && c.head_dim == 256 && c.max_positions == 8192 && c.tied && c.score_divisor == 256);
    assert_true(c.attention_softcap == 50 && c.head_softcap == 30 && c.rope_theta == 1e4 && gr_config_n_ropes(&c) == 1);
    assert_true(gr_config_embed_scale(&c) == 8); /* 64 wide */
    expect_config(TINY, "{" GEMMA2 ", \"attn_logit_softcapping\": null, \"final_logit_softcapping\": null}", NULL, NULL, &c);
    assert_true(c.attention_softcap == 0 && c.head_softcap == 0);
    snprintf(changes, sizeof changes, "{" GEMMA3 ", %s}", drop);
    expect_config(TINY, changes, NULL, NULL, &c);
    assert_true(c.rope_theta == 1e6 && c.rope_local == 1e4 && gr_config_n_ropes(&c) == 2 && c.max_positions == 131072);
    assert_true(c.attention_softcap == 0 && c.head_softcap == 0 && c.tied && c.norm_eps == 1e-6f);
    expect_config(TINY, "{" GEMMA3 ", \"attn_logit_softcapping\": 50}", "attn_logit_softcapping is 50", NULL, NULL);
    expect_config(TINY, "{" GEMMA3 ", \"use_bidirectional_attention\": true}", "use_bidirectional_attention is true", NULL, NULL);
    expect_config(TINY, "{" GEMMA3 ", \"hidden_activation\": \"gelu\"}", "hidden_activation is gelu", NULL, NULL);
    expect_config(TINY, "{" GEMMA3 ", \"query_pre_attn_scalar\": 100}", NULL, NULL, &c);
    assert_true(gr_config_layer(&c, 0).attention_scale == 0.1f && gr_config_layer(&c, 0).rope == 1);
    expect_config(TINY, "{\"model_type\": \"phi3\", \"architectures\": null, \"-\": [\"rms_norm_eps\"]}", NULL, NULL, &c);
    assert_true(c.norm_eps == 1e-5f && c.window == 0);
}

/* A model of text and pictures: its text_config counts, with the defaults of the class for what it leaves out. */
static void text_of_a_model_of_pictures(void **state) {
    static const char whole[] =
        "{\"-\": [\"hidden_size\", \"num_attention_heads\", \"vocab_size\", \"intermediate_size\", \"num_hidden_layers\", "
        "\"hidden_act\", \"head_dim\", \"num_key_value_heads\", \"rope_theta\"], \"model_type\": \"gemma3\", \"architectures\": "
        "[\"Gemma3ForConditionalGeneration\"], \"eos_token_id\": [1, 106], \"vision_config\": {\"hidden_size\": 1152}, "
        "\"text_config\": {\"hidden_size\": 2560, \"intermediate_size\": 10240, \"model_type\": \"gemma3_text\", "
        "\"num_hidden_layers\": 8, \"rope_scaling\": {\"factor\": 8.0, \"rope_type\": \"linear\"}, \"sliding_window\": 1024}}";
    gr_model_config c;
    (void)state;
    expect_config(TINY, whole, NULL, "the text model alone", &c);
    assert_string_equal(c.arch->hf_type, "gemma3_text");
    assert_true(c.text_part && c.hidden == 2560 && c.n_heads == 8 && c.n_kv_heads == 4 && c.vocab == 262208 && c.head_dim == 256);
    assert_true(c.window == 1024 && c.rope_factor == 8 && c.rope_theta == 1e6 && c.tied && c.n_stop_ids >= 2 && c.stop_ids[0] == 1);
    assert_string_equal(sliding(&c), "SSSSS-SS");
    expect_config(TINY, "{\"model_type\": \"gemma3\"}", "model_type \"gemma3\"", NULL, NULL);
    expect_config(TINY, "{" GEMMA3 ", \"text_config\": {\"a\": 1}}", "text_config is", NULL, NULL);
}

/* The layers that slide turn by another base; the scaling is of the others. */
static void rotations_of_two_kinds(void **state) {
    static const struct {
        const char *changes, *refusal;
        double theta, local, factor;
    } rows[] = {
        {"{" GEMMA3 ", \"rope_theta\": 5e5, \"rope_local_base_freq\": 2e4}", NULL, 5e5, 2e4, 1},
        {"{" GEMMA3 ", \"rope_theta\": 1e6, \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 8}}", NULL, 1e6, 1e4, 8},
        {"{" GEMMA3
         ", \"-\": [\"rope_theta\"], \"rope_parameters\": {\"full_attention\": {\"rope_type\": \"linear\", \"factor\": 4, "
         "\"rope_theta\": 3e5}, \"sliding_attention\": {\"rope_type\": \"default\", \"rope_theta\": 3e4}}}",
         NULL, 3e5, 3e4, 4},
        {"{" GEMMA3 ", \"-\": [\"rope_theta\"], \"rope_parameters\": {\"full_attention\": {\"rope_theta\": 3e5}}}", NULL, 3e5, 1e4,
         1},
        {"{" GEMMA3 ", \"-\": [\"rope_theta\"], \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 8}, \"rope_parameters\": "
         "{\"full_attention\": {\"rope_type\": \"linear\", \"factor\": 8, \"rope_theta\": 3e5}}}",
         NULL, 3e5, 1e4, 8},
        {"{" GEMMA3 ", \"rope_parameters\": {\"rope_theta\": 3e5}}", "rope_parameters.rope_theta: expected full_attention", 0, 0,
         0},
        {"{" GEMMA3 ", \"rope_parameters\": {\"sliding_attention\": {\"rope_type\": \"linear\", \"factor\": 8}}}",
         "graft scales the layers alone that do not slide", 0, 0, 0},
        {"{" GEMMA3 ", \"rope_parameters\": {\"sliding_attention\": 5}}", "rope_parameters.sliding_attention: expected an object",
         0, 0, 0},
        {"{" GEMMA3 ", \"rope_local_base_freq\": \"x\"}", "rope_local_base_freq: expected a number", 0, 0, 0},
    };
    float tables[2][4 * 16];
    gr_model_config c;
    (void)state;
    for (int i = 0; i < GR_LEN(rows); i++) {
        expect_config(TINY, rows[i].changes, rows[i].refusal, NULL, &c);
        if (!rows[i].refusal && (c.rope_theta != rows[i].theta || c.rope_local != rows[i].local || c.rope_factor != rows[i].factor))
            fail_msg("%s: theta %g and %g, factor %g", rows[i].changes, c.rope_theta, c.rope_local, c.rope_factor);
    }
    expect_config(TINY, rows[1].changes, NULL, NULL, &c); /* heads of 16 */
    for (int k = 0; k < 2; k++) gr_config_rope_table(&c, k, tables[k], 4);
    assert_true(tables[0][3 * 16] == (float)cos(3.0 / 8) && tables[1][3 * 16] == (float)cos(3.0));
}

static void rope_is_read_as_transformers_reads_it(void **state) {
    static const struct {
        const char *changes, *refusal, *warning;
        gr_rope_scaling type;
        double theta, factor;
    } rows[] = {
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 4.0}}", NULL, NULL, GR_ROPE_LINEAR, 1e4, 4},
        {"{\"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 4, \"rope_theta\": 5e5}}", NULL, "rope_theta is 10000",
         GR_ROPE_LINEAR, 5e5, 4},
        {"{\"rope_scaling\": {}}", NULL, NULL, GR_ROPE_NONE, 1e4, 1},
        {"{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}}", NULL, NULL, GR_ROPE_NONE, 1e4, 1},
        {"{\"rope_scaling\": {\"type\": \"default\", \"factor\": 1.0}}", NULL, NULL, GR_ROPE_NONE, 1e4, 1},
        {"{\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 5e5}, \"-\": [\"rope_theta\"]}", NULL, NULL,
         GR_ROPE_NONE, 5e5, 1},
        {"{\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 5e5}}", NULL, "as transformers 5 does", GR_ROPE_NONE,
         5e5, 1},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 4}, \"rope_parameters\": {\"rope_type\": \"default\", "
         "\"rope_theta\": 5e5}}",
         NULL, "rope_scaling and rope_parameters differ", GR_ROPE_LINEAR, 1e4, 4},
        {"{\"-\": [\"rope_theta\"]}", NULL, NULL, GR_ROPE_NONE, 1e4, 1},
        {"{\"rope_theta\": null}", "rope_theta: expected a number", NULL, 0, 0, 0},
        {"{\"rope_scaling\": 4.0}", "rope_scaling: expected an object", NULL, 0, 0, 0},
        {"{\"rope_scaling\": {\"type\": \"default\", \"rope_type\": \"linear\", \"factor\": 4}}", "rope_type and type differ", NULL,
         0, 0, 0},
        {"{\"rope_scaling\": {\"type\": null, \"factor\": 4}}", "type: expected a name", NULL, 0, 0, 0},
        {"{\"rope_scaling\": {\"factor\": 4.0}}", "rope_scaling.factor is 4.0", NULL, 0, 0, 0},
        {"{\"rope_scaling\": {\"type\": \"linear\"}}", "rope_scaling: factor: expected a number", NULL, 0, 0, 0},
        {"{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0}}", "rope type \"yarn\"", NULL, 0, 0, 0},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 4, \"attention_factor\": 2}}", "rope_scaling.attention_factor is 2",
         NULL, 0, 0, 0},
        {"{\"rope_scaling\": {\"type\": \"default\", \"mrope_section\": [16, 24]}}", "rope_scaling.mrope_section is [16,24]", NULL,
         0, 0, 0},
        {"{\"rope_parameters\": {\"rope_type\": \"default\", \"partial_rotary_factor\": 0.5}}",
         "rope_parameters.partial_rotary_factor is 0.5", NULL, 0, 0, 0},
        {"{\"rope_parameters\": {\"full_attention\": {\"rope_theta\": 5e5}}}",
         "rope_parameters.full_attention: one rotation for each type of layer", NULL, 0, 0, 0},
        {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8}}", "low_freq_factor: expected a number", NULL, 0, 0, 0},
        {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4, "
         "\"original_max_position_embeddings\": 512}, \"original_max_position_embeddings\": 64}",
         "original_max_position_embeddings differs", NULL, 0, 0, 0},
        {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4}}", NULL,
         NULL, GR_ROPE_LLAMA3, 1e4, 8},
    };
    gr_model_config c = {0};
    (void)state;
    for (int i = 0; i < GR_LEN(rows); i++) {
        expect_config(TINY, rows[i].changes, rows[i].refusal, rows[i].warning, &c);
        if (!rows[i].refusal &&
            (c.rope_scaling != rows[i].type || c.rope_theta != rows[i].theta || c.rope_factor != rows[i].factor))
            fail_msg("%s: type %d, theta %g, factor %g", rows[i].changes, (int)c.rope_scaling, c.rope_theta, c.rope_factor);
    }
    assert_int_equal(c.rope_original, 2048); /* of the last: the context, as transformers 5 fills it in */
}

/* ---- GGUF ---- */

static graft_status no_data(void *context, int64_t i, void *dst, graft_error *e) {
    (void)context, (void)i, (void)dst, (void)e;
    return GRAFT_OK;
}

typedef struct gguf_change { /* a key over those of a small model */
    const char *key;
    enum { U32, F32, BOOL, TEXT, LIST } type;
    double value;
    const char *text;
} gguf_change;

static void put(gr_gguf_builder *b, const gguf_change *g) {
    const int32_t list[] = {(int32_t)g->value, (int32_t)g->value}, uneven[] = {2, 1};
    if (g->type == U32) gr_gguf_put_u32(b, g->key, (uint32_t)g->value);
    if (g->type == F32) gr_gguf_put_f32(b, g->key, (float)g->value);
    if (g->type == BOOL) gr_gguf_put_bool(b, g->key, g->value != 0);
    if (g->type == TEXT) gr_gguf_put_string(b, g->key, g->text);
    if (g->type == LIST) gr_gguf_put_i32s(b, g->key, g->value ? list : uneven, 2);
}

/* Metadata of a llama of 2 layers with the changes over it, and its embedding. */
static graft_status read_gguf(gr_model_config *c, const gguf_change *changes, int n, char **log) {
    static const gguf_change base[] = {
        {"general.architecture", TEXT, 0, "llama"},   {"llama.block_count", U32, 2, NULL},
        {"llama.embedding_length", U32, 32, NULL},    {"llama.feed_forward_length", U32, 64, NULL},
        {"llama.attention.head_count", U32, 4, NULL}, {"llama.attention.head_count_kv", U32, 2, NULL},
        {"llama.context_length", U32, 512, NULL},     {"llama.attention.layer_norm_rms_epsilon", F32, 1e-5, NULL},
    };
    gr_gguf_builder b = {0};
    gr_gguf *g = NULL;
    size_t len;
    gr_tensor embed = {.name = "token_embd.weight", .dtype = GR_DTYPE_F32, .n_dims = 2, .shape = {100, 32}};
    for (int i = 0; i < GR_LEN(base); i++) {
        bool changed = false;
        for (int k = 0; k < n; k++) changed |= strcmp(base[i].key, changes[k].key) == 0;
        if (!changed) put(&b, &base[i]);
    }
    for (int k = 0; k < n; k++) put(&b, &changes[k]);
    assert_ok(gr_gguf_write(at("x.gguf"), &b, &embed, 1, no_data, NULL, &err));
    gr_gguf_builder_release(&b);
    FILE *stream = open_memstream(log, &len);
    gr_log_tee(stream);
    graft_status st = gr_gguf_open(&g, at("x.gguf"), &err);
    if (st == GRAFT_OK) st = gr_config_read_gguf(c, g, &err);
    gr_gguf_close(g);
    gr_log_tee(NULL);
    fclose(stream);
    return st;
}

static void gguf_keys_are_honoured_harmless_or_refused(void **state) {
    static const struct {
        gguf_change change;
        const char *refusal, *warning;
    } rows[] = {
        {{"llama.attention.causal", BOOL, 1, NULL}, NULL, NULL},
        {{"llama.attention.causal", BOOL, 0, NULL}, "llama.attention.causal is false: graft computes only true", NULL},
        {{"llama.attention.scale", F32, 0.5, NULL}, "llama.attention.scale is 0.5", NULL},
        {{"llama.logit_scale", F32, 8, NULL}, "llama.logit_scale is 8: graft computes only 0 or 1", NULL},
        {{"llama.expert_count", U32, 0, NULL}, NULL, NULL},
        {{"llama.expert_count", U32, 8, NULL}, "llama.expert_count is 8", NULL},
        {{"llama.rope.scaling.attn_factor", F32, 2, NULL}, "llama.rope.scaling.attn_factor is 2", NULL},
        {{"llama.rope.scaling.type", TEXT, 0, "yarn"}, "llama.rope.scaling.type is yarn", NULL},
        {{"llama.rope.dimension_count", U32, 4, NULL}, "llama.rope.dimension_count is 4", NULL},
        {{"llama.attention.value_length", U32, 4, NULL}, "llama.attention.value_length is 4", NULL},
        {{"llama.attention.head_count_kv", LIST, 0, NULL}, "llama.attention.head_count_kv differs between layers (2 and 1)", NULL},
        {{"llama.swiglu_clamp", F32, 7, NULL}, "llama.swiglu_clamp is 7: graft does not compute that", NULL}, /* in no table */
        {{"llama.swiglu_clamp", F32, 0, NULL}, NULL, NULL},
        {{"llama.author", TEXT, 0, "me"}, NULL, "llama.author"},
        {{"other.logit_scale", F32, 8, NULL}, NULL, NULL}, /* not of this architecture: nobody reads it */
        {{"llama.vocab_size", U32, 300, NULL}, NULL, "the embedding has 100 rows"},
        {{"graft.base_vocab_size", U32, 100, NULL}, NULL, NULL},
        {{"graft.base_vocab_size", U32, 101, NULL}, "(graft.base_vocab_size) is 101, expected 0 to 100", NULL},
        {{"graft.base_vocab_size", TEXT, 0, "many"}, "graft.base_vocab_size", NULL},
        {{"general.type", TEXT, 0, "adapter"}, "is an adapter, not a model", NULL},
        {{"split.count", U32, 2, NULL}, "split.count is 2", NULL},
        {{"general.architecture", TEXT, 0, "mamba"},
         "general.architecture \"mamba\": graft runs llama, qwen2, qwen3, gemma2, gemma3 and phi3",
         NULL},
    };
    gr_model_config c;
    char *log = NULL;
    (void)state;
    for (int i = 0; i < GR_LEN(rows); i++) {
        graft_status st = read_gguf(&c, &rows[i].change, 1, &log);
        if (rows[i].refusal) assert_error(st, GRAFT_BAD_INPUT, rows[i].refusal);
        else if (st != GRAFT_OK) fail_msg("%s: %s", rows[i].change.key, err.msg);
        if (rows[i].warning ? !strstr(log, rows[i].warning) : *log != '\0') fail_msg("%s: logged %s", rows[i].change.key, log);
        free(log);
    }
    assert_ok(read_gguf(
        &c, (gguf_change[]){{"llama.attention.head_count_kv", LIST, 2, NULL}, {"llama.attention.sliding_window", U32, 8, NULL}}, 2,
        &log));
    free(log);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.window, 8);
    assert_string_equal(c.arch->hf_type, "mistral"); /* a llama with a window */
}

/* What config.json says of layers, scores and rotations comes back from a GGUF, also what llama.cpp takes for granted. */
static void layers_come_back_from_a_gguf(void **state) {
    static const struct {
        const char *changes, *slides;
    } rows[] = {
        {"{" QWEN3 ", \"num_hidden_layers\": 8}", "--------"},
        {"{" QWEN3 ", \"num_hidden_layers\": 8, \"use_sliding_window\": true, \"max_window_layers\": 5}", "-----SSS"},
        {"{" MISTRAL ", \"num_hidden_layers\": 8, \"sliding_window\": 16}", "SSSSSSSS"},
        {"{" GEMMA2 ", \"num_hidden_layers\": 8, \"query_pre_attn_scalar\": 100, \"attn_logit_softcapping\": 20}", "S-S-S-S-"},
        {"{" GEMMA2 ", \"layer_types\": [\"full_attention\", \"full_attention\"]}", "--"},
        {"{" GEMMA3 ", \"num_hidden_layers\": 8, \"final_logit_softcapping\": 12}", "SSSSS-SS"},
        {"{" GEMMA3 ", \"num_hidden_layers\": 8, \"sliding_window_pattern\": 3, \"rope_local_base_freq\": 2e4}", "SS-SS-SS"},
        {"{" GEMMA3 ", \"num_hidden_layers\": 62, \"sliding_window_pattern\": 1}", NULL}, /* llama.cpp's 27B by its layers */
    };
    (void)state;
    for (int i = 0; i < GR_LEN(rows); i++) {
        gr_model_config c, back;
        gr_gguf_builder b = {0};
        gr_gguf *g = NULL;
        expect_config(TINY, rows[i].changes, NULL, NULL, &c);
        gr_tensor embed = {.name = "token_embd.weight", .dtype = GR_DTYPE_F32, .n_dims = 2, .shape = {c.vocab, c.hidden}};
        gr_config_put_gguf(&c, &b);
        assert_ok(gr_gguf_write(at("layers.gguf"), &b, &embed, 1, no_data, NULL, &err));
        gr_gguf_builder_release(&b);
        assert_ok(gr_gguf_open(&g, at("layers.gguf"), &err));
        assert_ok(gr_config_read_gguf(&back, g, &err));
        gr_gguf_close(g);
        if (rows[i].slides) assert_string_equal(sliding(&back), rows[i].slides);
        assert_true(back.arch == c.arch && back.window == c.window && back.rope_theta == c.rope_theta);
        assert_true(back.head_softcap == c.head_softcap);
        for (int64_t k = 0; k < c.n_layers; k++) {
            gr_layer_desc a = gr_config_layer(&c, k), d = gr_config_layer(&back, k);
            assert_true(a.window == d.window && a.softcap == d.softcap && a.attention_scale == d.attention_scale &&
                        a.rope == d.rope);
        }
        assert_true(c.window == 0 || back.rope_local == c.rope_local);
    }
}

/* Which layers slide as a list of flags, as gguf-py writes it: the writer's list of integers with another type. */
static void flags_say_which_layers_slide(void **state) {
    static const char key[] = "gemma3.attention.sliding_window_pattern";
    static const int32_t flags[] = {0x00010100, 0x01000001}; /* bytes */
    const uint32_t type = GR_GGUF_BOOL;
    const uint64_t count = sizeof flags;
    gr_model_config c;
    gr_gguf_builder b = {0};
    gr_gguf *g = NULL;
    char head[4096];
    (void)state;
    expect_config(TINY, "{" GEMMA3 ", \"num_hidden_layers\": 8, \"sliding_window_pattern\": 6}", NULL, NULL, &c);
    gr_tensor embed = {.name = "token_embd.weight", .dtype = GR_DTYPE_F32, .n_dims = 2, .shape = {c.vocab, c.hidden}};
    gr_config_put_gguf(&c, &b);
    gr_gguf_put_i32s(&b, key, flags, GR_LEN(flags));
    assert_ok(gr_gguf_write(at("flags.gguf"), &b, &embed, 1, no_data, NULL, &err));
    gr_gguf_builder_release(&b);
    FILE *file = fopen(at("flags.gguf"), "r+b");
    assert_non_null(file);
    size_t len = fread(head, 1, sizeof head, file);
    const char *found = memmem(head, len, key, strlen(key));
    assert_non_null(found); /* behind the key: array, type, count */
    fseek(file, found - head + (long)(strlen(key) + sizeof type), SEEK_SET);
    fwrite(&type, sizeof type, 1, file), fwrite(&count, sizeof count, 1, file);
    fclose(file);
    assert_ok(gr_gguf_open(&g, at("flags.gguf"), &err));
    assert_ok(gr_config_read_gguf(&c, g, &err));
    gr_gguf_close(g);
    assert_string_equal(sliding(&c), "-SS-S--S");
}

/* What is written says of the head what it is, also where the base leaves that to its class. */
static void a_written_head_is_not_left_to_the_class(void **state) {
    static const struct {
        const char *changes;
        bool tied;
    } rows[] = {
        {"{" GEMMA3 ", \"-\": [\"tie_word_embeddings\"]}", false},
        {"{" GEMMA3 ", \"-\": [\"tie_word_embeddings\"]}", true},
        {"{\"tie_word_embeddings\": true}", false},
        {"{\"-\": [\"tie_word_embeddings\"]}", true},
    };
    (void)state;
    for (int i = 0; i < GR_LEN(rows); i++) {
        gr_model_config c, back;
        expect_config(TINY, rows[i].changes, NULL, NULL, &c);
        assert_ok(gr_make_dirs(at("written"), &err));
        c.tied = rows[i].tied;
        assert_ok(gr_config_write_hf(&c, "float32", dir, at("written"), &err));
        assert_ok(gr_config_read_json(&back, at("written/config.json"), &err));
        assert_int_equal(back.tied, rows[i].tied);
    }
}

/* Editors put one before the text: read, and what is written from such a base is as from any. */
static void a_byte_order_mark_is_no_harm(void **state) {
    gr_model_config c, back;
    char *text;
    int64_t n;
    gr_str marked = {0};
    (void)state;
    assert_ok(gr_file_read(&text, &n, write_config(TINY, "{\"vocab_size\": 17}"), 1 << 20, &err));
    gr_str_printf(&marked, "\xEF\xBB\xBF%s", text);
    assert_ok(gr_file_write(at("config.json"), marked.data, marked.len, &err));
    assert_ok(gr_config_read_json(&c, at("config.json"), &err));
    assert_int_equal(c.vocab, 17);
    assert_ok(gr_make_dirs(at("written"), &err));
    assert_ok(gr_config_write_hf(&c, "float32", dir, at("written"), &err));
    assert_ok(gr_config_read_json(&back, at("written/config.json"), &err));
    assert_int_equal(back.vocab, 17);
    free(text);
    gr_str_release(&marked);
}

/* One model, the ways to say linear scaling by 4. */
static void gguf_rope_scaling_old_and_new(void **state) {
    static const gguf_change type = {"llama.rope.scaling.type", TEXT, 0, "linear"},
                             none = {"llama.rope.scaling.type", TEXT, 0, "none"},
                             factor = {"llama.rope.scaling.factor", F32, 4, NULL}, old = {"llama.rope.scale_linear", F32, 4, NULL},
                             zero = {"llama.rope.scaling.factor", F32, 0, NULL};
    const struct {
        gguf_change changes[2];
        int n;
        gr_rope_scaling scaling;
    } rows[] = {
        {{type, factor}, 2, GR_ROPE_LINEAR}, {{factor}, 1, GR_ROPE_LINEAR},     {{old}, 1, GR_ROPE_LINEAR},
        {{type, old}, 2, GR_ROPE_LINEAR},    {{none, factor}, 2, GR_ROPE_NONE}, {{type, zero}, 2, GR_ROPE_NONE},
    };
    (void)state;
    for (int i = 0; i < GR_LEN(rows); i++) {
        gr_model_config c;
        char *log = NULL;
        assert_ok(read_gguf(&c, rows[i].changes, rows[i].n, &log));
        free(log);
        assert_int_equal(c.rope_scaling, rows[i].scaling);
        assert_true(c.rope_factor == (rows[i].scaling ? 4 : 1));
    }
}

/* ---- the tensors of a folder ---- */

typedef struct folder { /* the golden model with other names and further tensors */
    const gr_safetensors *from;
    gr_tensor tensors[64];
    const void *data[64];
    int64_t n;
} folder;

static graft_status give(void *context, int64_t i, void *dst, graft_error *e) {
    const folder *f = context;
    (void)e;
    memcpy(dst, f->data[i], (size_t)(f->tensors[i].n_bytes));
    return GRAFT_OK;
}

/* Opens a folder "m" whose tensors are the golden model's, with `prefix` before each name but for the first `cut` bytes, and
 * `extra` (a copy of the tensor `like`, its first float changed where `changed`). */
static graft_status open_folder(gr_weights **w, const char *changes, const char *prefix, size_t cut, const char *extra,
                                const char *like, bool changed) {
    static float other[640 * 64];
    gr_safetensors *s = NULL;
    folder f = {0};
    char *path = at("m/config.json"), *names = NULL;
    assert_ok(gr_make_dirs(at("m"), &err));
    assert_int_equal(rename(write_config(TINY, changes), path), 0);
    assert_ok(gr_safetensors_open(&s, TINY, &err));
    for (int64_t i = 0; i < gr_safetensors_count(s); i++) {
        gr_tensor *t = &f.tensors[f.n];
        *t = *gr_safetensors_get(s, i);
        f.data[f.n++] = t->data;
        names = gr_format("%s%s", prefix, t->name + (strncmp(t->name, "model.", 6) == 0 ? cut : 0));
        t->name = gr_arena_strdup(&arena, names);
        free(names);
        if (!extra || strcmp(gr_safetensors_get(s, i)->name, like) != 0) continue;
        f.tensors[f.n] = *t;
        f.tensors[f.n].name = extra;
        memcpy(other, t->data, (size_t)t->n_bytes);
        other[0] += changed ? 1 : 0;
        f.data[f.n++] = other;
    }
    assert_ok(gr_safetensors_write(at("m/model.safetensors"), f.tensors, f.n, give, &f, &err));
    gr_safetensors_close(s);
    return gr_weights_open(w, at("m"), &err);
}

/* Each entry says where its name stands; the order is the model's. */
static void tensors_are_listed_by_slot(void **state) {
    gr_model_config c;
    gr_weight_entry *list;
    int64_t n, biases = 0;
    (void)state;
    expect_config(TINY, "{\"attention_bias\": true, \"mlp_bias\": true}", NULL, NULL, &c);
    assert_ok(gr_weights_list(&list, &n, &c, &err));
    assert_int_equal(n, 2 + c.n_layers * (2 + 7 * 2)); /* tied */
    for (int64_t i = 0; i < n; i++) {
        const gr_weight_entry *e = &list[i];
        char name[96], of_layer[40] = "";
        if (e->layer >= 0) snprintf(of_layer, sizeof of_layer, "model.layers.%lld.", (long long)e->layer);
        snprintf(name, sizeof name, "%s%s.%s", of_layer, c.arch->modules[e->slot].hf, e->is_bias ? "bias" : "weight");
        assert_string_equal(e->name, name);
        assert_true(e->is_vector == (e->view.rows == 1));
        if (i == 0) assert_true(e->slot == GR_SLOT_EMBED && e->layer == -1 && e->view.rows == c.vocab);
        else assert_true(e->layer > e[-1].layer || e->slot >= e[-1].slot);
        if (e->slot == GR_SLOT_K) assert_true(e->permute_heads == c.n_kv_heads && !e->is_bias == (e->view.cols == c.hidden));
        biases += e->is_bias;
    }
    assert_int_equal(biases, 7 * c.n_layers);
    assert_string_equal(list[n - 1].name, "model.norm.weight");
    assert_string_equal(list[n - 1].gguf_name, "output_norm.weight");
    free(list);
}

static void layers_are_described(void **state) {
    gr_model_config c;
    (void)state;
    expect_config(TINY, "{\"model_type\": \"mistral\", \"architectures\": null, \"sliding_window\": 8}", NULL, NULL, &c);
    gr_layer_desc d = gr_config_layer(&c, c.n_layers - 1);
    assert_true(d.window == 8 && d.softcap == 0 && d.attention_scale == 0.25f &&
                d.activation == GR_ACTIVATION_SILU); /* heads of 16 */
    assert_true(d.rope < gr_config_n_ropes(&c) && gr_config_embed_scale(&c) == 1);
}

static void names_of_wrappers_are_understood(void **state) {
    static const struct {
        const char *prefix;
        size_t cut;
    } rows[] = {{"", 0},
                {"", 6}, /* saved from AutoModel: without "model." */
                {"_orig_mod.", 0},
                {"module.", 0},
                {"module._orig_mod.", 0},
                {"language_model.", 0},
                {"model.language_model.", 6},
                {"_fsdp_wrapped_module.", 0}};
    gr_weights *w, *plain;
    (void)state;
    assert_ok(gr_weights_open(&plain, TINY, &err));
    for (int i = 0; i < GR_LEN(rows); i++) {
        assert_ok(open_folder(&w, "{}", rows[i].prefix, rows[i].cut, NULL, NULL, false));
        assert_true(gr_weights_hash(w) == gr_weights_hash(plain));
        gr_weights_close(w);
    }
    gr_weights_close(plain);
    assert_error(open_folder(&w, "{}", "vision_tower.", 0, NULL, NULL, false), GRAFT_BAD_INPUT,
                 "the file has names such as vision_tower.model.");
    assert_error(open_folder(&w, "{}", "", 0, "_orig_mod.model.norm.weight", "model.norm.weight", true), GRAFT_BAD_INPUT,
                 "would both be model.norm.weight");
}

static void every_tensor_is_used_or_harmless(void **state) {
    static const struct {
        const char *changes, *extra;
        bool refused;
    } rows[] = {
        {"{}", "model.layers.0.self_attn.rotary_emb.inv_freq", false},
        {"{}", "model.layers.1.self_attn.q_proj.bias", true},
        {"{}", "model.layers.0.self_attn.q_norm.weight", true},
        {"{}", "model.layers.2.input_layernorm.weight", true}, /* the configuration has two */
        {"{}", "score.weight", true},
        {"{}", "v_head.summary.weight", true},
    };
    gr_weights *w;
    (void)state;
    for (int i = 0; i < GR_LEN(rows); i++) {
        graft_status st = open_folder(&w, rows[i].changes, "", 0, rows[i].extra, "model.norm.weight", false);
        if (rows[i].refused) assert_error(st, GRAFT_BAD_INPUT, rows[i].extra);
        else assert_ok(st);
        gr_weights_close(w);
    }
    assert_error(open_folder(&w, "{\"num_hidden_layers\": 1}", "", 0, NULL, NULL, false), GRAFT_BAD_INPUT, "model.layers.1.");
    assert_error(open_folder(&w, "{\"attention_bias\": true}", "", 0, NULL, NULL, false), GRAFT_BAD_INPUT,
                 "q_proj.bias is missing");
}

static void tied_heads_are_the_files(void **state) {
    gr_weights *w;
    (void)state;
    assert_ok(open_folder(&w, "{}", "", 0, "lm_head.weight", "model.embed_tokens.weight", false)); /* the same: stays tied */
    assert_true(gr_weights_config(w)->tied);
    assert_null(gr_weights_find(w, "lm_head.weight"));
    gr_weights_close(w);
    assert_ok(open_folder(&w, "{}", "", 0, "lm_head.weight", "model.embed_tokens.weight", true));
    assert_false(gr_weights_config(w)->tied);
    const float *head = gr_weights_find(w, "lm_head.weight")->view.data,
                *embed = gr_weights_find(w, "model.embed_tokens.weight")->view.data;
    assert_true(head[0] == embed[0] + 1 && head[1] == embed[1]);
    gr_weights_close(w);
    assert_error(open_folder(&w, "{\"-\": [\"tie_word_embeddings\"]}", "", 0, NULL, NULL, false), GRAFT_BAD_INPUT,
                 "tie_word_embeddings");
}

static void which_files_hold_the_weights(void **state) {
    gr_weights *w = NULL;
    (void)state;
    assert_ok(open_folder(&w, "{}", "", 0, NULL, NULL, false));
    gr_weights_close(w);
    assert_int_equal(rename(at("m/model.safetensors"), at("m/model-00001-of-00002.safetensors")), 0);
    assert_error(gr_weights_open(&w, at("m"), &err), GRAFT_BAD_INPUT, "model.safetensors.index.json, which lists them, is missing");
    assert_int_equal(rename(at("m/model-00001-of-00002.safetensors"), at("m/weights.safetensors")), 0);
    assert_error(gr_weights_open(&w, at("m"), &err), GRAFT_BAD_INPUT, "if weights.safetensors holds the weights");
    assert_int_equal(rename(at("m/weights.safetensors"), at("m/pytorch_model.bin")), 0);
    assert_error(gr_weights_open(&w, at("m"), &err), GRAFT_BAD_INPUT, "pytorch_model.bin is a pickle of PyTorch");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_keys_are_honoured_harmless_or_refused),
        cmocka_unit_test(windows_are_those_of_transformers),
        cmocka_unit_test(gemmas_have_defaults_of_their_own),
        cmocka_unit_test(rotations_of_two_kinds),
        cmocka_unit_test(text_of_a_model_of_pictures),
        cmocka_unit_test(rope_is_read_as_transformers_reads_it),
        cmocka_unit_test(gguf_keys_are_honoured_harmless_or_refused),
        cmocka_unit_test(layers_come_back_from_a_gguf),
        cmocka_unit_test(flags_say_which_layers_slide),
        cmocka_unit_test(a_written_head_is_not_left_to_the_class),
        cmocka_unit_test(a_byte_order_mark_is_no_harm),
        cmocka_unit_test(gguf_rope_scaling_old_and_new),
        cmocka_unit_test(tensors_are_listed_by_slot),
        cmocka_unit_test(layers_are_described),
        cmocka_unit_test(names_of_wrappers_are_understood),
        cmocka_unit_test(every_tensor_is_used_or_harmless),
        cmocka_unit_test(tied_heads_are_the_files),
        cmocka_unit_test(which_files_hold_the_weights),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
