/* A tokenizer as the tokenizer.ggml.* keys that llama.cpp reads. */
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/text/impl.h"

#define KEY(name) "tokenizer.ggml." name

typedef struct columns { /* one entry a row of the vocabulary */
    const char **texts;
    int64_t *lens;
    float *scores;
    int32_t *types;
    char *padding; /* names of the rows without a piece */
} columns;

/* A BPE given by merges has no scores: a piece's is minus the rank of the first merge that makes it, so that
 * the order of merging stays; what no merge makes comes last. */
void gr_scores_from_merges(const gr_tokenizer *t, int64_t n, float *scores) {
    for (int64_t i = 0; i < GR_MIN(n, t->info.n_vocab); i++) scores[i] = -(float)t->n_merges;
    for (uint64_t i = 0; t->pairs.slots && i <= t->pairs.mask; i++) {
        const gr_pair *p = &t->pairs.slots[i];
        if (p->key != UINT64_MAX && p->id < n) scores[p->id] = GR_MAX(scores[p->id], -(float)p->rank);
    }
}

static bool fill_columns(const gr_tokenizer *t, int64_t n, columns *c) {
    c->texts = gr_calloc(n, sizeof *c->texts);
    c->lens = gr_calloc(n, sizeof *c->lens);
    c->scores = gr_calloc(n, sizeof *c->scores);
    c->types = gr_calloc(n, sizeof *c->types);
    c->padding = gr_calloc(n, GR_PADDING_LEN);
    if (!c->texts || !c->lens || !c->scores || !c->types || !c->padding) return false;
    for (int64_t i = 0; i < GR_MIN(n, t->info.n_vocab); i++) {
        const gr_piece *p = &t->pieces[i];
        c->texts[i] = p->text;
        c->lens[i] = p->len;
        c->scores[i] = (float)p->score;
        c->types[i] = (int32_t)p->type;
    }
    if (t->info.kind == GR_TOKENIZER_SPM_BPE && t->n_merges > 0) gr_scores_from_merges(t, n, c->scores);
    for (int64_t i = 0; i < n; i++) {
        if (c->lens[i] > 0) continue;
        /* beyond the vocabulary, or a gap in it: llama.cpp wants every row named, and once */
        char *name = c->padding + i * GR_PADDING_LEN;
        c->types[i] = GR_PIECE_UNUSED;
        c->lens[i] = gr_padding_name(name, i);
        c->texts[i] = name;
    }
    return true;
}

static bool put_merges(const gr_tokenizer *t, gr_gguf_builder *b) {
    const char **texts = gr_calloc(t->n_merges, sizeof *texts);
    int64_t *lens = gr_calloc(t->n_merges, sizeof *lens);
    bool ok = texts && lens;
    int64_t n = 0;
    for (int64_t i = 0; ok && i < t->n_merges; i++) {
        if (!gr_merge_counts(t, i)) continue;
        texts[n] = t->merges[i].text;
        lens[n++] = t->merges[i].len;
    }
    if (ok) gr_gguf_put_strings(b, KEY("merges"), texts, lens, n);
    free(texts);
    free(lens);
    return ok;
}

static void put_id(gr_gguf_builder *b, const char *key, int32_t id, int64_t n_vocab) {
    if (id >= 0 && id < n_vocab) gr_gguf_put_u32(b, key, (uint32_t)id);
}

static bool has_step(const gr_tokenizer *t, gr_norm_kind kind) {
    for (int i = 0; i < t->n_norm; i++)
        if (t->norm[i].kind == kind) return true;
    return false;
}

/* llama.cpp wants as many tokens as the embedding has rows. Those beyond can be left out where no text but their own name becomes
 * them: added tokens, which nothing that the model computes can be about. */
static graft_status check_spare(const gr_tokenizer *t, int64_t n_vocab, graft_error *err) {
    int64_t n = 0, first = -1;
    for (int64_t i = n_vocab; i < t->info.n_vocab; i++) {
        const gr_piece *p = &t->pieces[i];
        if (p->len == 0) continue;
        if (p->type == GR_PIECE_NORMAL)
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "the piece \"%.*s\" (id %lld) has no row in the model's embedding of %lld: a GGUF needs one",
                           (int)GR_MIN(p->len, 60), p->text, (long long)i, (long long)n_vocab);
        if (n++ == 0) first = i;
    }
    if (n > 0)
        gr_warn("%lld added tokens without a row in the embedding (\"%.*s\" ...) are not in the GGUF: "
                "their names are plain text there",
                (long long)n, (int)GR_MIN(t->pieces[first].len, 60), t->pieces[first].text);
    return GRAFT_OK;
}

static graft_status put_keys(const gr_tokenizer *t, int64_t n_vocab, gr_gguf_builder *b, graft_error *err) {
    static const char *const models[] = {
        [GR_TOKENIZER_BPE] = "gpt2", [GR_TOKENIZER_SPM_BPE] = "llama", [GR_TOKENIZER_SPM_UNIGRAM] = "t5"};
    const gr_tokenizer_info *info = &t->info;
    columns c = {0};
    graft_status st = GRAFT_OK;
    GR_TRY(check_spare(t, n_vocab, err));
    if (t->byte_level && (!*info->pre || t->prefix_space))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "GGUF has no name for this tokenizer's pre-tokenizer"));
    if (!fill_columns(t, n_vocab, &c)) GR_TRY(gr_fail_memory(err, "vocabulary"));
    gr_gguf_put_string(b, KEY("model"), models[info->kind]);
    gr_gguf_put_string(b, KEY("pre"), t->byte_level ? info->pre : "default");
    gr_gguf_put_strings(b, KEY("tokens"), c.texts, c.lens, n_vocab);
    if (!t->byte_level) gr_gguf_put_f32s(b, KEY("scores"), c.scores, n_vocab);
    gr_gguf_put_i32s(b, KEY("token_type"), c.types, n_vocab);
    if (t->byte_level && !put_merges(t, b)) GR_TRY(gr_fail_memory(err, "merges"));
    put_id(b, KEY("bos_token_id"), info->bos, n_vocab);
    put_id(b, KEY("eos_token_id"), gr_tokenizer_carried_eos(t), n_vocab);
    put_id(b, KEY("eot_token_id"), gr_tokenizer_carried_end(t), n_vocab);
    put_id(b, KEY("padding_token_id"), info->pad, n_vocab);
    put_id(b, KEY("unknown_token_id"), info->unk, n_vocab);
    gr_gguf_put_bool(b, KEY("add_bos_token"), info->add_bos);
    gr_gguf_put_bool(b, KEY("add_eos_token"), info->add_eos);
    gr_gguf_put_bool(b, KEY("add_space_prefix"), info->add_space_prefix);
    if (info->kind == GR_TOKENIZER_SPM_UNIGRAM) {
        bool squeeze = has_step(t, GR_NORM_SPM_SPACES) || has_step(t, GR_NORM_SPACE_RUNS);
        gr_gguf_put_bool(b, KEY("remove_extra_whitespaces"), squeeze);
        if (t->charsmap_blob)
            gr_gguf_put_u8s(b, KEY("precompiled_charsmap"), (const uint8_t *)t->charsmap_blob, t->charsmap_blob_len);
    }
    const char *template = t->carried ? t->carried : info->chat_template;
    if (template) gr_gguf_put_string(b, "tokenizer.chat_template", template);
    if (info->tool_template && info->folder) { /* what a GGUF has of it is copied */
        const char *const name = "tool_use";
        const int64_t len = (int64_t)strlen(name);
        gr_gguf_put_strings(b, "tokenizer.chat_templates", &name, &len, 1);
        gr_gguf_put_string(b, "tokenizer.chat_template.tool_use", info->tool_template);
    }
done:
    free(c.texts);
    free(c.lens);
    free(c.scores);
    free(c.types);
    free(c.padding);
    return st;
}

graft_status gr_tokenizer_save_gguf(const gr_tokenizer *t, int64_t n_vocab, gr_gguf_builder *b, graft_error *err) {
    gr_gguf_builder own = {0};
    gr_gguf *g = NULL;
    gr_tokenizer *back = NULL;
    graft_status st;
    GR_TRY(put_keys(t, n_vocab, &own, err));
    GR_TRY(gr_gguf_preview(&g, &own, err));
    GR_TRY(gr_tokenizer_from_gguf(&back, g, err));
    GR_TRY(gr_tokenizer_prove(t, back, "a GGUF", err));
    gr_gguf_append(b, &own);
done:
    gr_tokenizer_free(back);
    gr_gguf_close(g);
    gr_gguf_builder_release(&own);
    return st;
}
