/* chat.h - chat templates: messages to token ids with a mask of what is learned.
 * Templates by name (no Jinja interpreter): smollm2, chatml, llama-2, llama-3, qwen2, qwen2.5, qwen2.5-base, alpaca, belle, none, or a FILE.yaml with
 * {system, user, assistant} patterns holding {content}. auto: the model's own Jinja text is recognised by its features; unknown ->
 * an error that names the choices.
 *
 * Encoding rules. Control tokens of the template are looked up as ids; text inside a message is plain text, never a control token
 * (except with `none`, where control tokens in the text are parsed as HF tokenizers do). Text between two control tokens is encoded
 * as one string, as HF does with the rendered chat, except that a token boundary is kept where an assistant's answer starts (the
 * model sees the prompt alone when it generates). An answer's targets are its content and the end-of-turn token; template text
 * after it is never a target. BOS is added once where the template has it or the tokenizer's add_bos says so. */
#ifndef GR_CHAT_H
#define GR_CHAT_H

#include "core/text/tokenizer.h"

typedef struct gr_chat gr_chat;

typedef struct gr_message {
    const char *role;    /* "system", "user", "assistant", "tool" */
    const char *content; /* UTF-8, NUL-terminated */
    bool no_loss;        /* "weight": 0 or "train": false on a message */
    const struct json_t *fields; /* the message as its file has it, for templates that read more of it (tool_calls, reasoning_content,
                                    name ...); NULL: role and content are all */
} gr_message;

typedef enum gr_loss_on { GR_LOSS_COMPLETION, GR_LOSS_LAST, GR_LOSS_ALL } gr_loss_on;

/* A tokenised conversation: ids and, per id, 1 where it is a training target. Zero-initialise; release frees. */
typedef struct gr_encoded {
    gr_ids ids;
    uint8_t *target;
    int64_t target_capacity;
    int64_t answer_start; /* index of the first target of the last answer; ids.n when there is none */
} gr_encoded;
void gr_encoded_release(gr_encoded *e);

/* name: as above ("auto", a template's name or a path ending in .yaml). system: NULL = the template's own default system text,
 * "" = none. t is borrowed and must outlive the chat. */
graft_status gr_chat_open(gr_chat **out, const char *name, const char *system, const gr_tokenizer *t, graft_error *err);
void gr_chat_free(gr_chat *c);
const char *gr_chat_name(const gr_chat *c); /* the resolved name: "smollm2" */
/* The strings that end a turn ("<|im_end|>") as one id: generation stops at it as well as at eos. -1 when the template has none. */
int32_t gr_chat_end_of_turn(const gr_chat *c);
uint64_t gr_chat_hash(const gr_chat *c);
/* NULL-terminated list of the known names, for help and errors. */
const char *const *gr_chat_names(void);

/* Encode messages. With add_generation_prompt the result ends with the assistant header. BAD_INPUT when roles cannot be
 * rendered (unknown role, empty list). */
graft_status gr_chat_encode(const gr_chat *c, const gr_message *messages, int64_t n, bool add_generation_prompt, gr_loss_on loss_on,
                            gr_encoded *out, graft_error *err);
/* The rendered text alone, as apply_chat_template(tokenize=False) gives it. */
graft_status gr_chat_render(const gr_chat *c, const gr_message *messages, int64_t n, bool add_generation_prompt, gr_str *out,
                            graft_error *err);

#endif
