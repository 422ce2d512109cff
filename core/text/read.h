/* read.h - the readers of tokenizers: from files to the data of impl.h. Inside of core/text. */
#ifndef GR_TEXT_READ_H
#define GR_TEXT_READ_H

#include <jansson.h>

#include "core/text/impl.h"

graft_status gr_tokenizer_from_json(gr_tokenizer **out, const char *folder, graft_error *err); /* tokenizer.json */
graft_status gr_tokenizer_from_spm(gr_tokenizer **out, const char *folder, graft_error *err);  /* tokenizer.model */
/* bytes of a ModelProto; path is for messages. */
graft_status gr_tokenizer_parse_spm(gr_tokenizer **out, const void *bytes, int64_t n, const char *path, graft_error *err);
/* text of a tokenizer.json. */
graft_status gr_tokenizer_parse_json(gr_tokenizer **out, const char *text, int64_t n, const char *path, graft_error *err);
/* bos, eos, chat template ... from tokenizer_config.json, special_tokens_map.json and chat_template.jinja, where they are; json:
 * the vocabulary is a tokenizer.json's. What names tokens that are not there, or contradicts, is warned about. */
graft_status gr_tokenizer_read_config(gr_tokenizer *t, const char *folder, bool json, graft_error *err);
/* The flags of added_tokens_decoder (tokenizer_config.json) into tokenizer.json's added_tokens, whose own they overrule. */
graft_status gr_json_added_flags(json_t *added, const char *folder, graft_error *err);

/* ---- tokenizer.json (read_json.c, read_json_pipeline.c) ---- */

enum { GR_JSON_MAX = 256 << 20, GR_SPM_MAX = 64 << 20 };
graft_status gr_json_load(json_t **out, const char *text, int64_t n, size_t flags, const char *path, graft_error *err);
/* Each reads one section (NULL and JSON null: nothing) into t; an unknown form is BAD_INPUT that names it. path: for messages. */
graft_status gr_json_normalizer(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err);
graft_status gr_json_pre_tokenizer(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err);
graft_status gr_json_decoder(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err);
graft_status gr_json_post_processor(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err);

const char *gr_json_str(const json_t *object, const char *key); /* NULL when absent or no string */
/* write_hf.c: a GGUF's tokenizer as a tokenizer.json, *out owned; BAD_INPUT where that has no form for it. */
graft_status gr_tokenizer_to_json(const gr_tokenizer *t, json_t **out, graft_error *err);
bool gr_json_flag(const json_t *object, const char *key, bool fallback);

#endif
