/* generate.h - text from a model: many prompts in one batch, sampled or greedy, batch-invariant and reproducible. */
#ifndef GR_GENERATE_H
#define GR_GENERATE_H

#include "core/model/decoder.h"
#include "core/text/chat.h"

typedef struct gr_generate_options {
    int64_t max_tokens;       /* new tokens per prompt at most */
    float temperature;        /* 0: greedy */
    int top_k;                /* 0: off */
    float top_p;              /* 1: off */
    float repetition_penalty; /* 1: off; HF's: divides positive, multiplies negative logits of ids already seen */
    uint64_t seed;
    const char *const *stop; /* stop strings; the text ends before the first of them */
    int n_stop;
    bool ignore_eos; /* end tokens end nothing: for measuring */
    int64_t batch;   /* prompts in flight at once; 0: auto */
} gr_generate_options;

typedef struct gr_completion {
    char *text;       /* owned; without special tokens, cut at a stop string */
    int64_t n_tokens; /* generated, the end-of-turn token included */
    bool stopped;     /* ended by itself (end token or stop string), not by max_tokens */
} gr_completion;

/* Called for each prompt when new text is ready (whole characters), and with len 0 while a long prompt is read; done marks its end.
 * May be NULL. Nonzero return stops everything. */
typedef int gr_generate_callback(void *payload, int64_t prompt, const char *text, int64_t len, bool done);

typedef struct gr_prompts {
    const gr_ids *ids; /* [n] */
    int64_t n;
    int32_t end_id; /* an extra end token (the template's end of turn), -1 none; the model's eos ids always end */
} gr_prompts;

/* results[n] is filled in order. BAD_USAGE when a prompt does not fit the context. */
graft_status gr_generate(gr_model *m, const gr_tokenizer *t, gr_prompts prompts, const gr_generate_options *o,
                         gr_completion *results, gr_generate_callback *callback, void *payload, graft_error *err);
void gr_completions_release(gr_completion *c, int64_t n);

/* Memory that generation of n prompts of up to `longest` tokens takes besides model and prompts, at most. */
int64_t gr_generate_bytes(const gr_model *m, int64_t n, int64_t longest, const gr_generate_options *o);

#endif
