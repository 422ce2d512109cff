/* fit.h - inside core/data: a conversation cut to a number of tokens so that its frame stays. */
#ifndef GR_FIT_H
#define GR_FIT_H

#include "core/text/chat.h"

/* What was lost. */
typedef struct gr_fit {
    bool turns, prompt, answer; /* whole old turns; the middle of user texts; the right end of the last answer */
    bool dropped;               /* nothing to learn is left */
} gr_fit;

/* How samples become sequences. */
typedef struct gr_fit_form {
    const gr_chat *chat;
    const gr_tokenizer *tokenizer;
    gr_loss_on loss_on;
    int64_t max; /* ids */
} gr_fit_form;

/* Sequence `which` of e (of conversation x, longer than max) once more, as the one sequence of `out`, with at most max ids: whole
 * old turns go first, then the middle of the longest user text, then the answer's right end, with no end token there. Control
 * tokens, system and tool texts stay; what cannot be kept so is dropped. */
graft_status gr_fit_sequence(const gr_fit_form *f, const gr_conversation *x, const gr_encoded *e, int64_t which, gr_encoded *out,
                             gr_fit *fit, graft_error *err);
/* Ids [first, returned) of a sequence that ends at `end` and that are worth keeping: what follows the last target teaches
 * nothing. */
int64_t gr_fit_end(const gr_encoded *e, int64_t first, int64_t end);

#endif
