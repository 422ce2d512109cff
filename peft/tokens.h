/* tokens.h - which tokens' rows a recipe trains. Private to peft/. */
#ifndef GR_TOKENS_H
#define GR_TOKENS_H

#include "peft/recipe.h"

/* Does the recipe train rows of tokens: adapter.method embeddings, or adapter.trainable_tokens? */
bool gr_recipe_trains_rows(const gr_recipe *r);
/* Their ids, ascending, in arena: adapter.rows or adapter.trainable_tokens for model and tokenizer (NULL where the base is a shape:
 * then every row of an extension is new, and tokens are ids). Says which they are. BAD_USAGE for "new" of a base that was never
 * extended, and a token that is not one, with the nearest. */
graft_status gr_recipe_tokens(gr_ids_list *out, gr_arena *arena, const gr_recipe *r, const gr_model *m, const gr_tokenizer *t,
                              graft_error *err);

#endif
