/* json_pipeline.h - the normalizer, pre_tokenizer, decoder and post_processor of a tokenizer.json; inside
 * core/text. */
#ifndef GR_JSON_PIPELINE_H
#define GR_JSON_PIPELINE_H

#include <jansson.h>

#include "core/text/impl.h"

/* Each reads one section (NULL and JSON null: nothing) into t; an unknown form is BAD_INPUT that names it.
 * path: for messages. */
graft_status gr_json_normalizer(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err);
graft_status gr_json_pre_tokenizer(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err);
graft_status gr_json_decoder(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err);
graft_status gr_json_post_processor(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err);

const char *gr_json_str(const json_t *object, const char *key); /* NULL when absent or no string */
bool gr_json_flag(const json_t *object, const char *key, bool fallback);

#endif
