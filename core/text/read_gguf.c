/* A tokenizer from the tokenizer.ggml.* keys of a GGUF (keys: ggml docs/gguf.md; meaning: llama.cpp's llama-vocab.cpp). */
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/text/encode.h"
#include "core/text/read.h"

#define KEY(name) "tokenizer.ggml." name

/* fallback: where the file has no such key, and a vocabulary that large; -1: none. */
static graft_status read_id(const gr_gguf *g, const char *key, int32_t fallback, int64_t n_vocab, int32_t *out, graft_error *err) {
    int64_t id;
    graft_status st = gr_gguf_int_or(g, key, fallback < n_vocab ? fallback : -1, &id, err);
    if (st == GRAFT_OK) *out = id < -1 || id > INT32_MAX ? -1 : (int32_t)id;
    return st;
}

/* Length of an array that must have an entry a piece. */
static graft_status check_length(const gr_gguf *g, const char *key, int64_t n_vocab, graft_error *err) {
    int64_t n;
    graft_status st = gr_gguf_get_array(g, key, NULL, &n, err);
    if (st == GRAFT_OK && n != n_vocab)
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s: %s has %lld entries for %lld tokens", gr_gguf_path(g), key, (long long)n,
                     (long long)n_vocab);
    return st;
}

static graft_status read_pieces(gr_tokenizer *t, const gr_gguf *g, graft_error *err) {
    graft_status st = GRAFT_OK;
    bool types = gr_gguf_has(g, KEY("token_type")), scores = gr_gguf_has(g, KEY("scores"));
    if (types) GR_TRY(check_length(g, KEY("token_type"), t->info.n_vocab, err));
    if (scores) GR_TRY(check_length(g, KEY("scores"), t->info.n_vocab, err));
    for (int64_t i = 0; i < t->info.n_vocab; i++) {
        const char *s;
        int64_t len, type = GR_PIECE_NORMAL;
        double score = 0;
        GR_TRY(gr_gguf_array_string(g, KEY("tokens"), i, &s, &len, err));
        if (types) GR_TRY(gr_gguf_array_int(g, KEY("token_type"), i, &type, err));
        if (scores) GR_TRY(gr_gguf_array_float(g, KEY("scores"), i, &score, err));
        if (len > INT32_MAX / 2 || type < GR_PIECE_NORMAL || type > GR_PIECE_BYTE || score != score)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: token %lld has type %lld and score %g", gr_gguf_path(g), (long long)i,
                           (long long)type, score));
        if (!gr_piece_set(t, i, s, len, score, (gr_piece_type)type)) GR_TRY(gr_fail_memory(err, "vocabulary"));
    }
done:
    return st;
}

static graft_status read_merges(gr_tokenizer *t, const gr_gguf *g, graft_error *err) {
    int64_t n, len;
    graft_status st;
    GR_TRY(gr_gguf_get_array(g, KEY("merges"), NULL, &n, err));
    t->merges = gr_text_alloc(t, n, sizeof *t->merges);
    if (!t->merges || n > INT32_MAX) GR_TRY(gr_fail_memory(err, "merges"));
    for (int64_t i = 0; i < n; i++) {
        const char *s;
        GR_TRY(gr_gguf_array_string(g, KEY("merges"), i, &s, &len, err));
        const char *space = len > 1 ? memchr(s + 1, ' ', (size_t)len - 1) : NULL; /* pieces hold no space */
        char *copy = gr_text_alloc(t, len + 1, 1);
        if (!copy) GR_TRY(gr_fail_memory(err, "merges"));
        if (!space || len > INT32_MAX / 2)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: merge %lld is not two pieces", gr_gguf_path(g), (long long)i));
        memcpy(copy, s, (size_t)len);
        t->merges[i] = (gr_merge){.text = copy, .len = (int32_t)len, .left_len = (int32_t)(space - s)};
        t->n_merges = i + 1;
    }
done:
    return st;
}

/* Control, unknown and user-defined pieces are found in the text before the model sees it. */
static bool collect_added(gr_tokenizer *t) {
    int32_t n = 0;
    for (int64_t i = 0; i < t->info.n_vocab; i++) {
        gr_piece_type type = t->pieces[i].type;
        n += type == GR_PIECE_CONTROL || type == GR_PIECE_USER || type == GR_PIECE_UNKNOWN;
    }
    t->added = gr_text_alloc(t, n, sizeof *t->added);
    if (!t->added) return false;
    for (int64_t i = 0; i < t->info.n_vocab; i++) {
        const gr_piece *p = &t->pieces[i];
        if (p->type != GR_PIECE_CONTROL && p->type != GR_PIECE_USER && p->type != GR_PIECE_UNKNOWN) continue;
        t->added[t->n_added++] = (gr_added){.text = p->text, .len = p->len, .id = (int32_t)i, .special = p->type != GR_PIECE_USER};
    }
    return true;
}

static graft_status setup_bpe(gr_tokenizer *t, const gr_gguf *g, graft_error *err) {
    const char *pre = "";
    char *known = NULL;
    graft_status st = GRAFT_OK;
    if (gr_gguf_has(g, KEY("pre"))) GR_TRY(gr_gguf_get_string(g, KEY("pre"), &pre, NULL, err));
    t->info.kind = GR_TOKENIZER_BPE;
    t->byte_level = t->first_merge_wins = true;
    if (!*pre)
        gr_note("%s: tokenizer.ggml.pre is missing: words are cut by llama.cpp's default rule, which may not be the one that the "
                "model was trained with",
                gr_gguf_path(g));
    if (!gr_pretok_from_name(t, *pre ? pre : GR_PRETOK_DEFAULT)) {
        known = gr_pretok_known();
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: tokenizer.ggml.pre is \"%s\"; graft knows %s", gr_gguf_path(g), pre,
                       known ? known : "others"));
    }
    GR_TRY(read_merges(t, g, err));
done:
    free(known);
    return st;
}

static graft_status setup_sentencepiece(gr_tokenizer *t, const gr_gguf *g, bool unigram, graft_error *err) {
    bool prefix, squeeze;
    graft_status st;
    GR_TRY(check_length(g, KEY("scores"), t->info.n_vocab, err));
    GR_TRY(gr_gguf_bool_or(g, KEY("add_space_prefix"), !unigram, &prefix, err));
    GR_TRY(gr_gguf_bool_or(g, KEY("remove_extra_whitespaces"), false, &squeeze, err));
    t->info.kind = unigram ? GR_TOKENIZER_SPM_UNIGRAM : GR_TOKENIZER_SPM_BPE;
    t->info.add_bos = !unigram;
    t->info.add_eos = unigram;
    t->info.add_space_prefix = prefix;
    t->lead = prefix ? GR_LEAD_DROP_ONE : GR_LEAD_KEEP;
    t->byte_fallback = t->fuse_unk = true;
    if (unigram && gr_gguf_has(g, KEY("precompiled_charsmap"))) {
        gr_str blob = {0};
        int64_t n = 0, byte = 0;
        st = gr_gguf_get_array(g, KEY("precompiled_charsmap"), NULL, &n, err);
        for (int64_t i = 0; i < n && st == GRAFT_OK; i++) {
            st = gr_gguf_array_int(g, KEY("precompiled_charsmap"), i, &byte, err);
            gr_str_putc(&blob, (char)byte);
        }
        if (st == GRAFT_OK && blob.failed) st = gr_fail_memory(err, "character map");
        if (st == GRAFT_OK) st = gr_charsmap_set(t, blob.data, blob.len, gr_gguf_path(g), err);
        gr_str_release(&blob);
        GR_TRY(st);
        if (t->charsmap_trie) t->norm[t->n_norm++] = (gr_norm_step){.kind = GR_NORM_CHARSMAP_SPM};
    }
    for (int64_t i = 0; i < t->info.n_vocab; i++) /* llama.cpp finds bytes by their names, whatever the type says */
        if (gr_is_byte_name(t->pieces[i].text, t->pieces[i].len)) t->pieces[i].type = GR_PIECE_BYTE;
    if (squeeze) t->norm[t->n_norm++] = (gr_norm_step){.kind = GR_NORM_SPM_SPACES};
    if (prefix) t->norm[t->n_norm++] = (gr_norm_step){.kind = GR_NORM_PREPEND, .to = " "};
    t->norm[t->n_norm++] = (gr_norm_step){.kind = GR_NORM_REPLACE, .from = " ", .to = GR_META_SPACE};
done:
    return st;
}

/* Special ids and the settings that the model's kind decides where the file does not: as llama.cpp, which the note says. */
static graft_status read_settings(gr_tokenizer *t, const gr_gguf *g, graft_error *err) {
    static const char *const keys[] = {KEY("add_bos_token"), KEY("add_eos_token"), KEY("add_space_prefix")};
    gr_tokenizer_info *info = &t->info;
    bool spm = info->kind == GR_TOKENIZER_SPM_BPE;
    const bool *values[] = {&info->add_bos, &info->add_eos, &info->add_space_prefix};
    gr_str missing = {0}, taken = {0};
    graft_status st;
    GR_TRY(read_id(g, KEY("bos_token_id"), spm ? 1 : -1, info->n_vocab, &info->bos, err));
    GR_TRY(read_id(g, KEY("eos_token_id"), spm ? 2 : -1, info->n_vocab, &info->eos, err));
    GR_TRY(read_id(g, KEY("padding_token_id"), -1, info->n_vocab, &info->pad, err));
    GR_TRY(read_id(g, KEY("unknown_token_id"), spm ? 0 : -1, info->n_vocab, &info->unk, err));
    if (info->kind != GR_TOKENIZER_BPE) t->model_unk = info->unk;
    GR_TRY(gr_gguf_bool_or(g, keys[0], info->add_bos, &info->add_bos, err));
    GR_TRY(gr_gguf_bool_or(g, keys[1], info->add_eos, &info->add_eos, err));
    info->add_bos = info->add_bos && info->bos >= 0;
    info->add_eos = info->add_eos && info->eos >= 0;
    for (int i = 0; i < GR_LEN(keys); i++) { /* what is missing and off is as expected */
        if (gr_gguf_has(g, keys[i]) || !*values[i]) continue;
        gr_str_printf(&missing, "%s%s", missing.len ? ", " : "", keys[i]);
        gr_str_printf(&taken, "%strue", taken.len ? ", " : "");
    }
    if (missing.len > 0 && !missing.failed && !taken.failed)
        gr_note("%s: %s missing: taken as %s, as llama.cpp does for this kind of tokenizer", gr_gguf_path(g), missing.data,
                taken.data);
done:
    gr_str_release(&missing);
    gr_str_release(&taken);
    return st;
}

graft_status gr_tokenizer_from_gguf(gr_tokenizer **out, const gr_gguf *g, graft_error *err) {
    const char *model, *chat;
    gr_tokenizer *t = NULL;
    int64_t n;
    graft_status st;
    GR_TRY(gr_gguf_get_string(g, KEY("model"), &model, NULL, err));
    GR_TRY(gr_gguf_get_array(g, KEY("tokens"), NULL, &n, err));
    if (n < 1 || n > INT32_MAX / 2)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: tokenizer.ggml.tokens has %lld entries", gr_gguf_path(g), (long long)n));
    t = gr_tokenizer_new(n);
    if (!t) GR_TRY(gr_fail_memory(err, "tokenizer"));
    GR_TRY(read_pieces(t, g, err));
    bool gpt2 = strcmp(model, "gpt2") == 0, unigram = strcmp(model, "t5") == 0;
    if (!gpt2 && !unigram && strcmp(model, "llama") != 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: tokenizer.ggml.model is \"%s\"; graft knows gpt2, llama and t5", gr_gguf_path(g),
                       model));
    GR_TRY(gpt2 ? setup_bpe(t, g, err) : setup_sentencepiece(t, g, unigram, err));
    GR_TRY(read_settings(t, g, err));
    if (gr_gguf_has(g, "tokenizer.chat_template")) {
        GR_TRY(gr_gguf_get_string(g, "tokenizer.chat_template", &chat, NULL, err));
        t->info.chat_template = gr_arena_strdup(&t->arena, chat);
        if (!t->info.chat_template) GR_TRY(gr_fail_memory(err, "chat template"));
    }
    if (gr_gguf_has(g, "tokenizer.chat_template.tool_use")) {
        GR_TRY(gr_gguf_get_string(g, "tokenizer.chat_template.tool_use", &chat, NULL, err));
        t->info.tool_template = gr_arena_strdup(&t->arena, chat);
        if (!t->info.tool_template) GR_TRY(gr_fail_memory(err, "chat template"));
    }
    if (!collect_added(t)) GR_TRY(gr_fail_memory(err, "added tokens"));
    GR_TRY(gr_tokenizer_finish(t, gr_gguf_path(g), err));
    *out = t;
    t = NULL;
done:
    gr_tokenizer_free(t);
    return st;
}
