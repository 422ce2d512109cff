/* A learner: from texts to the pieces that they need. */
#include "core/text/learn.h"

#include <stdlib.h>
#include <string.h>

#include "core/text/learn_impl.h"

enum { MOST_PIECES = 1 << 24 }; /* rows of an embedding that a configuration may have */

void gr_learned_release(gr_learned *l) {
    gr_arena_release(&l->arena);
    free(l->pieces);
    *l = (gr_learned){0};
}

graft_status gr_learner_new(gr_learner **out, const gr_tokenizer *base, const gr_learn_options *o, int n_workers,
                            graft_error *err) {
    *out = NULL;
    if (base->info.kind == GR_TOKENIZER_SPM_UNIGRAM)
        return gr_fail(
            err, GRAFT_BAD_INPUT,
            "the model's tokenizer is a unigram model, which has no merges that new ones could follow; graft learns BPE");
    gr_learner *l = gr_calloc(1, sizeof *l);
    if (!l || !(l->workers = gr_calloc(n_workers, sizeof *l->workers))) {
        free(l);
        return gr_fail_memory(err, "learner");
    }
    l->base = base;
    l->o = *o;
    l->spm = !base->byte_level;
    l->n_workers = n_workers;
    for (int i = 0; i < n_workers; i++) l->workers[i].l = l;
    for (uint32_t c = 0; c < GR_LEN(l->scripts); c++) l->scripts[c] = gr_script(c);
    *out = l;
    return GRAFT_OK;
}

void gr_learner_free(gr_learner *l) {
    if (!l) return;
    for (int i = 0; i < l->n_workers; i++) {
        gr_learn_worker *w = &l->workers[i];
        for (int p = 0; p < GR_LEARN_PARTS; p++) gr_bag_release(&w->bags[p]);
        free(w->flags);
        free(w->scratch.symbols);
        free(w->scratch.heap);
        free(w->scratch.merged);
    }
    for (int p = 0; p < GR_LEARN_PARTS; p++) {
        free(l->parts[p].tokens);
        free(l->parts[p].words);
    }
    free(l->workers);
    free(l->words);
    free(l->character_ids);
    free(l->symbols.text);
    free(l->symbols.len);
    gr_arena_release(&l->arena);
    free(l);
}

graft_status gr_learner_run(gr_learner *l, struct gr_threads *threads, gr_learned *out, graft_error *err) {
    graft_status st = GRAFT_OK;
    *out = (gr_learned){.first_id = gr_tokenizer_n_tokens(l->base)};
    if (l->o.size > MOST_PIECES - out->first_id)
        return gr_fail(err, GRAFT_BAD_USAGE, "--size: %lld pieces are too many, a model has %d at most",
                       (long long)(l->o.size + l->o.there), MOST_PIECES);
    if (!(out->pieces = gr_calloc(l->o.size, sizeof *out->pieces))) return gr_fail_memory(err, "pieces");
    GR_TRY(gr_learn_corpus(l, threads, out, err));
    if (out->before == 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "nothing to learn from: the text is empty%s",
                       l->o.only ? ", or --only leaves nothing of it" : ""));
    GR_TRY(gr_learn_pairs(l, threads, out, err));
    for (int64_t i = 0; i < l->n_words; i++) out->after += l->words[i].n * l->words[i].count;
done:
    if (st != GRAFT_OK) gr_learned_release(out);
    return st;
}
