/* The templates graft knows by name. A new one is a row here and its golden cases (core/text/README.md). */
#include <string.h>

#include "core/text/chat_template.h"

#define CHATML(role) "<|im_start|>" role "\n{content}<|im_end|>\n"
#define CHATML_PATTERNS                                                                                      \
    { CHATML("system"), CHATML("user"), CHATML("assistant"), CHATML("tool") }
/* Qwen's: a tool speaks within a user turn. */
#define QWEN_PATTERNS                                                                                        \
    {                                                                                                        \
        CHATML("system"), CHATML("user"), CHATML("assistant"),                                               \
            "<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n"                     \
    }
/* Relatives of ChatML that render differently. */
#define NO_CHATML    "<think>", "<|im_sep|>", "trim", "strip()"
#define LLAMA3(role) "<|start_header_id|>" role "<|end_header_id|>\n\n{content}<|eot_id|>"

static const gr_chat_template TEMPLATES[] = {
    {.name = "smollm2",
     .begin = "",
     .pattern = CHATML_PATTERNS,
     .gap = "",
     .default_system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
     .needs = {"<|im_start|>", "<|im_end|>"},
     .has = {"<|im_start|>", "<|im_end|>",
             "You are a helpful AI assistant named SmolLM, trained by Hugging Face"}},
    {.name = "qwen2.5",
     .begin = "",
     .pattern = QWEN_PATTERNS,
     .gap = "",
     .default_system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
     .needs = {"<|im_start|>", "<|im_end|>"},
     .has = {"<|im_start|>", "<|im_end|>",
             "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
     .has_not = {NO_CHATML},
     .lone_tool = true},
    {.name = "qwen2.5-base",
     .begin = "",
     .pattern = QWEN_PATTERNS,
     .gap = "",
     .default_system = "You are a helpful assistant.",
     .needs = {"<|im_start|>", "<|im_end|>"},
     .has = {"<|im_start|>", "<|im_end|>", "You are a helpful assistant.", "<tool_response>"},
     .has_not = {NO_CHATML, "You are a helpful assistant. "},
     .lone_tool = true},
    {.name = "qwen2",
     .begin = "",
     .pattern = CHATML_PATTERNS,
     .gap = "",
     .default_system = "You are a helpful assistant.",
     .needs = {"<|im_start|>", "<|im_end|>"},
     .has = {"<|im_start|>", "<|im_end|>", "You are a helpful assistant."},
     .has_not = {NO_CHATML, "You are a helpful assistant. ", "tool"}},
    {.name = "chatml",
     .begin = "",
     .pattern = CHATML_PATTERNS,
     .gap = "",
     .needs = {"<|im_start|>", "<|im_end|>"},
     .has = {"<|im_start|>", "<|im_end|>"},
     .has_not = {NO_CHATML, "You are", "tool", "bos_token"}},
    {.name = "llama-3",
     .begin = "{bos}",
     .pattern = {LLAMA3("system"), LLAMA3("user"), LLAMA3("assistant"), LLAMA3("tool")},
     .gap = "",
     .needs = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"},
     .has = {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "trim"},
     .has_not = {"Cutting Knowledge Date", "You are", "tool"},
     .trim = true},
    {.name = "llama-2",
     .begin = "",
     .pattern = {"<<SYS>>\n{content}\n<</SYS>>\n\n", "{bos}[INST] {content} [/INST]", " {content} {eos}"},
     .gap = "",
     .has = {"[INST]", "[/INST]", "<<SYS>>"},
     .trim = true,
     .fold_system = true},
    {.name = "alpaca",
     .begin = "",
     .pattern = {"{content}\n\n", "### Instruction:\n{content}\n\n", "### Response:\n{content}{eos}"},
     .gap = "\n\n",
     .default_system = "Below is an instruction that describes a task. Write a response that appropriately "
                       "completes the request.",
     .has = {"### Instruction:", "### Response:",
             "Below is an instruction that describes a task. Write a response"},
     .skip_empty_system = true},
    {.name = "belle",
     .begin = "",
     .pattern = {"{content}\n\n", "Human: \n{content}\n\n", "Assistant:\n{content}{eos}"},
     .gap = "",
     .has = {"Human: \\n", "Assistant:\\n"},
     .has_not = {"<|im_start|>", "[INST]"},
     .skip_empty_system = true},
    {.name = "none",
     .begin = "",
     .pattern = {"{content}", "{content}", "{content}", "{content}"},
     .gap = "",
     .has = {NULL},
     .parse_special = true},
};

static const char *const NAMES[] = {"smollm2",      "chatml", "llama-2", "llama-3", "qwen2", "qwen2.5",
                                    "qwen2.5-base", "alpaca", "belle",   "none",    NULL};

const char *const *gr_chat_names(void) {
    return NAMES;
}

const gr_chat_template *gr_chat_template_find(const char *name) {
    for (int i = 0; i < GR_LEN(TEMPLATES); i++)
        if (strcmp(name, TEMPLATES[i].name) == 0) return &TEMPLATES[i];
    return NULL;
}

static bool matches(const gr_chat_template *row, const char *jinja) {
    if (!row->has[0]) return false;
    for (int i = 0; i < GR_LEN(row->has) && row->has[i]; i++)
        if (!strstr(jinja, row->has[i])) return false;
    for (int i = 0; i < GR_LEN(row->has_not) && row->has_not[i]; i++)
        if (strstr(jinja, row->has_not[i])) return false;
    return true;
}

const gr_chat_template *gr_chat_template_recognise(const char *jinja) {
    for (int i = 0; i < GR_LEN(TEMPLATES); i++)
        if (matches(&TEMPLATES[i], jinja)) return &TEMPLATES[i];
    return NULL;
}
