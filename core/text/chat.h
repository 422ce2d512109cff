/* chat.h - chat templates: conversations to token ids with a mask of what is learned.
 *
 * A template is Jinja text (jinja.h): the model's own (auto), one of ours by name (core/text/templates/), a FILE.jinja, or a
 * FILE.yaml with {system, user, assistant} patterns that hold {content}. What is rendered is what apply_chat_template of
 * transformers renders.
 *
 * Every byte of a rendering knows who wrote it, the template or a message, and from that follow
 * - ids: control tokens are ids only where the template wrote them; text of a message never becomes one (with template none it
 *   does, as HF tokenizers parse it). Where no message holds such text the ids are HF's. BOS is added once where the tokenizer's
 *   add_bos says so and the template has none.
 * - the mask: of an answer is learned all that the model must write itself, from where the generation prompt ends to the token that
 *   ends the turn, the template's text between included; {% generation %} blocks narrow it, the end token stays. A token is learned
 *   when its last byte is.
 * - sequences: where the template writes an answer otherwise once it is history (reasoning dropped, say), that answer gets a
 *   sequence of its own, which ends with it. */
#ifndef GR_CHAT_H
#define GR_CHAT_H

#include "core/text/tokenizer.h"

struct json_t;
typedef struct gr_chat gr_chat;

typedef struct gr_message {
    const char *role;            /* "system", "user", "assistant", "tool" */
    const char *content;         /* UTF-8, NUL-terminated */
    bool no_loss;                /* "weight": 0 or "train": false on a message */
    const struct json_t *fields; /* the message as its file has it, for templates that read more of it (tool_calls,
                                    reasoning_content, name ...); NULL: role and content are all */
} gr_message;

typedef struct gr_conversation {
    const gr_message *messages;
    int64_t n;
    const struct json_t *tools, *documents; /* lists, or NULL */
} gr_conversation;

typedef enum gr_loss_on { GR_LOSS_COMPLETION, GR_LOSS_LAST, GR_LOSS_ALL } gr_loss_on;

/* Tokenised sequences, one after the other. Zero-initialise; may be used again; release frees. */
typedef struct gr_encoded {
    gr_ids ids;
    uint8_t *target; /* [ids.n] 1: a training target */
    int64_t target_capacity;
    int64_t n_sequences, end_capacity;
    int64_t *end;          /* [n_sequences] where each ends in ids */
    int64_t *last_message; /* [n_sequences] the message that it ends with */
    int64_t n_unwritten;   /* messages of which the template writes nothing */
    int64_t n_parted;      /* answers that do not start as the generation prompt ends: learned from where the two part */
    int64_t n_shortened;   /* answers of whose text the template writes a part alone */
    int64_t n_plain;       /* control tokens spelt in messages: plain text, never ids */
    struct gr_chat_scratch *scratch;
} gr_encoded;
void gr_encoded_release(gr_encoded *e);

typedef struct gr_chat_options {
    const char *name;   /* "auto", a name of gr_chat_names, or a path ending in .jinja, .yaml or .yml; NULL: auto */
    const char *source; /* the Jinja text itself instead (name is then for messages) */
    const char *system; /* the text where a conversation has no system message; NULL: the template's own default; "": none */
    const char *args;   /* further variables of the template as the text of a JSON object ({"enable_thinking": false}), or NULL */
} gr_chat_options;

/* t is borrowed and must outlive the chat. BAD_USAGE: no such template, or one that this tokenizer or system text cannot have;
 * BAD_INPUT: a template that cannot be parsed. Says in the log what it assumes. */
graft_status gr_chat_open(gr_chat **out, const gr_chat_options *options, const gr_tokenizer *t, graft_error *err);
void gr_chat_free(gr_chat *c);
/* The token that ends an answer, as one id: generation stops at it as well as at eos. -1 when the template has none. */
int32_t gr_chat_end_of_turn(const gr_chat *c);
uint64_t gr_chat_hash(const gr_chat *c); /* of all that changes ids or masks */
/* The Jinja text that says all of it, system text and arguments included: what goes into the files of a trained model. NULL for
 * none. */
const char *gr_chat_source(const gr_chat *c);
/* Give what is trained with it to the files that t writes from here on (gr_tokenizer_carry); none gives nothing. The token that
 * ends an answer becomes eos there, unless the template writes eos as another token. */
graft_status gr_chat_carry(const gr_chat *c, gr_tokenizer *t, graft_error *err);
/* NULL-terminated list of the known names, for help and errors. */
const char *const *gr_chat_names(void);

/* The sequences of a conversation to learn from. BAD_INPUT: the template refuses it, or writes nothing of what a message is about
 * (tool_calls, tools, the reasoning or the text of an answer to be learned). */
graft_status gr_chat_encode(const gr_chat *c, const gr_conversation *x, gr_loss_on loss_on, gr_encoded *out, graft_error *err);
/* A prompt that was rendered already and its completion: control tokens in both are ids, the completion is learned up to its end
 * token, which is added where it has none. */
graft_status gr_chat_encode_rendered(const gr_chat *c, const char *prompt, const char *completion, gr_encoded *out,
                                     graft_error *err);
/* Does a prompt look rendered: does it begin, after BOS, with the control token that the template begins with? */
bool gr_chat_is_rendered(const gr_chat *c, const char *prompt);
/* The prompt for the next answer, appended to ids. */
graft_status gr_chat_prompt(const gr_chat *c, const gr_conversation *x, gr_ids *ids, graft_error *err);
/* The rendered text alone, as apply_chat_template(tokenize=False) gives it. */
graft_status gr_chat_render(const gr_chat *c, const gr_conversation *x, bool add_generation_prompt, gr_str *out, graft_error *err);

#endif
