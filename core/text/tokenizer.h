/* tokenizer.h - text to token ids and back, exactly as HF tokenizers does it.
 * Kinds: byte-level BPE (GPT-2, SmolLM2, Llama-3, Qwen2 pre-tokenizers), SentencePiece BPE and unigram (byte fallback). Read from
 * an HF folder (tokenizer.json, or tokenizer.model) or from the metadata of a GGUF. Immutable after opening: safe from any
 * thread. */
#ifndef GR_TOKENIZER_H
#define GR_TOKENIZER_H

#include "core/base/base.h"
#include "core/io/gguf.h"

typedef struct gr_tokenizer gr_tokenizer;

typedef enum gr_tokenizer_kind { GR_TOKENIZER_BPE, GR_TOKENIZER_SPM_BPE, GR_TOKENIZER_SPM_UNIGRAM } gr_tokenizer_kind;

typedef enum gr_piece_type { /* numbers as in GGUF's tokenizer.ggml.token_type */
                             GR_PIECE_NORMAL = 1,
                             GR_PIECE_UNKNOWN = 2,
                             GR_PIECE_CONTROL = 3,
                             GR_PIECE_USER = 4,
                             GR_PIECE_UNUSED = 5,
                             GR_PIECE_BYTE = 6
} gr_piece_type;

/* path: an HF folder or a .gguf file. */
graft_status gr_tokenizer_open(gr_tokenizer **out, const char *path, graft_error *err);
graft_status gr_tokenizer_from_gguf(gr_tokenizer **out, const gr_gguf *g, graft_error *err);
void gr_tokenizer_free(gr_tokenizer *t);
/* The chat template of a HF folder, owned: chat_template.jinja, else the (default) one of tokenizer_config.json; NULL: none. */
graft_status gr_folder_template(char **text, const char *folder, graft_error *err);
/* Warns of what the tokenizer's files of an adapter's folder say and t, the base's, does not: further tokens, another eos_token. */
graft_status gr_tokenizer_compare(const gr_tokenizer *t, const char *folder, graft_error *err);

/* A growing list of ids. Zero-initialise; release frees. */
typedef struct gr_ids {
    int32_t *data;
    int64_t n, capacity;
} gr_ids;
void gr_ids_release(gr_ids *ids);
bool gr_ids_push(gr_ids *ids, int32_t id); /* false when out of memory */

/* Append the ids of text[len] to ids. Invalid UTF-8 reads as U+FFFD as Python's errors="replace" does.
 * parse_special: control tokens written in the text become their ids (HF's behaviour); otherwise they are plain text (user-defined,
 * non-special added tokens are always recognised, as HF does). No BOS or EOS is added. */
graft_status gr_tokenizer_encode(const gr_tokenizer *t, const char *text, int64_t len, bool parse_special, gr_ids *ids,
                                 graft_error *err);

/* Append the bytes of ids to out (skip_special: control tokens leave nothing). As HF decode without clean-up; bytes that are no
 * UTF-8 stay as they are here. */
graft_status gr_tokenizer_decode(const gr_tokenizer *t, const int32_t *ids, int64_t n, bool skip_special, gr_str *out,
                                 graft_error *err);

/* Streaming: feed ids one at a time; text comes out in whole UTF-8 characters only (incomplete tails wait; flush gives them out
 * as U+FFFD). Zero-initialise. */
typedef struct gr_decode_stream {
    char pending[8];
    int n_pending;
    bool started; /* SentencePiece drops the first leading space */
} gr_decode_stream;
graft_status gr_tokenizer_stream(const gr_tokenizer *t, gr_decode_stream *s, int32_t id, bool skip_special, gr_str *out,
                                 graft_error *err);
void gr_decode_stream_flush(gr_decode_stream *s, gr_str *out);

/* What it knows of itself. Ids are -1 where there is none. */
typedef struct gr_tokenizer_info {
    gr_tokenizer_kind kind;
    const char *pre; /* GGUF's name of the pre-tokenizer: the file's own, else what fits: "smollm", "gpt-2", "llama-bpe",
                         "qwen2" ...; "" for SentencePiece and where GGUF has no name */
    int64_t n_vocab; /* ids run from 0 to n_vocab-1 */
    int32_t bos, eos, pad, unk;
    bool add_bos, add_eos; /* the tokenizer's own setting (false for SmolLM2) */
    bool add_space_prefix; /* SentencePiece's dummy prefix */
    bool ignore_merges;
    const char *tool_template; /* the model's own for samples with tools (tool_use), or NULL */
    const char *chat_template; /* the model's own Jinja text (GGUF key, chat_template.jinja, tokenizer_config.json), or NULL */
    const char *folder;        /* the HF folder it was read from (its files can be copied), NULL for a GGUF */
} gr_tokenizer_info;
const gr_tokenizer_info *gr_tokenizer_get_info(const gr_tokenizer *t);

/* The piece of id as stored in the vocabulary (byte-level BPE: in GPT-2's printable alphabet), its score and type. */
const char *gr_tokenizer_piece(const gr_tokenizer *t, int32_t id, int64_t *len, float *score, gr_piece_type *type);
/* -1 when there is no such piece; exact vocabulary entry ("<|im_end|>"). */
int32_t gr_tokenizer_find(const gr_tokenizer *t, const char *piece);
/* A model's embedding may have fewer rows than the tokenizer ids: a spare token is no fault until a text has it. BAD_INPUT naming
 * what ("prompt 1") and the first of ids[n] without a row, as a token. note_rows says beforehand, once, how many there are. */
graft_status gr_tokenizer_check_rows(const gr_tokenizer *t, const int32_t *ids, int64_t n, int64_t rows, const char *what,
                                     graft_error *err);
void gr_tokenizer_note_rows(const gr_tokenizer *t, int64_t rows, const char *path);
/* Ids 0 .. n_tokens-1 are the tokens: n_vocab without the padding at its end, pieces named "[PAD" id "]" for rows of a GGUF's
 * embedding that have no token. */
int64_t gr_tokenizer_n_tokens(const gr_tokenizer *t);
/* XXH3-64 over everything that changes ids: recorded in adapters and cache keys. */
uint64_t gr_tokenizer_hash(const gr_tokenizer *t);

/* How a trained model is to be spoken to, in the files that are written from here on: the chat template, the token that ends an
 * answer (-1: none), and whether that token becomes the tokenizer's eos. What t itself does stays. Before t is shared among
 * threads. */
graft_status gr_tokenizer_carry(gr_tokenizer *t, const char *chat_template, int32_t end_of_turn, bool as_eos, graft_error *err);
int32_t gr_tokenizer_carried_end(const gr_tokenizer *t); /* -1: none is carried */
int32_t gr_tokenizer_carried_eos(const gr_tokenizer *t); /* what is written as eos_token */

/* Write the tokenizer's files into an existing folder: copies of the HF files it was read from, or, when read from a GGUF, an
 * equivalent tokenizer.json, tokenizer_config.json (tokenizer_class PreTrainedTokenizerFast), special_tokens_map.json and
 * chat_template.jinja that HF tokenizers loads and that gives the same ids, which is proved by reading it back. */
graft_status gr_tokenizer_save_hf(const gr_tokenizer *t, const char *folder, graft_error *err);
/* Does `written`, a tokenizer read back from what was written of t, make the same ids? Both encode several hundred hard texts, the
 * pieces of the vocabulary and the added tokens among text. form ("a GGUF") is for the message: BAD_INPUT with the first text
 * that differs and the likely cause. */
graft_status gr_tokenizer_prove(const gr_tokenizer *t, const gr_tokenizer *written, const char *form, graft_error *err);
/* Add all tokenizer.ggml.* keys and tokenizer.chat_template to a GGUF; n_vocab rows (extra rows are unused pieces; added tokens
 * without a row are left out, with a warning). BAD_INPUT where
 * GGUF cannot hold the tokenizer: where what was added, read back, makes other ids (gr_tokenizer_prove). */
graft_status gr_tokenizer_save_gguf(const gr_tokenizer *t, int64_t n_vocab, gr_gguf_builder *b, graft_error *err);

#endif
