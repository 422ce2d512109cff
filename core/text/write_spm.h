/* write_spm.h - parts of SentencePiece's ModelProto (sentencepiece_model.proto) as bytes. A message may go on after its end: pieces
 * that follow are more pieces, and fields of a further trainer_spec are put in place of those before. Inside of core/text. */
#ifndef GR_TEXT_WRITE_SPM_H
#define GR_TEXT_WRITE_SPM_H

#include "core/text/tokenizer.h"

/* A field of a message: a whole number, or bytes. Lack of memory is in s->failed, here and below. */
void gr_spm_put_number(gr_str *s, uint32_t field, int64_t v);
void gr_spm_put_bytes(gr_str *s, uint32_t field, const char *bytes, int64_t n);

void gr_spm_put_piece(gr_str *s, const char *text, int64_t len, float score, gr_piece_type type);
/* How many pieces there are, in place of what was said before. */
void gr_spm_put_size(gr_str *s, int64_t n_pieces);

#endif
