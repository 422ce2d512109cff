/* The files of an extended tokenizer: those of its base, with the new pieces put in. Everything else of them stays, what graft has
 * no use for as well. */
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/text/extend_impl.h"
#include "core/text/read.h"
#include "core/text/write_spm.h"

/* ---- tokenizer.json ---- */

/* Pieces by name: the new ones, and added tokens that were no pieces. HF tokenizers numbers these behind the vocabulary, however
 * large it has become; as pieces they keep their ids. */
static bool put_vocab(const gr_tokenizer *x, json_t *vocab) {
    bool ok = json_is_object(vocab);
    for (int32_t i = 0; ok && i < x->n_added; i++) {
        const gr_added *a = &x->added[i];
        if (a->len > 0 && !json_object_getn(vocab, a->text, (size_t)a->len))
            ok = json_object_setn_new(vocab, a->text, (size_t)a->len, json_integer(a->id)) == 0;
    }
    for (int64_t i = x->first_new; ok && i < x->info.n_vocab; i++) {
        const gr_piece *p = &x->pieces[i];
        ok = json_object_setn_new(vocab, p->text, (size_t)p->len, json_integer(i)) == 0;
    }
    return ok;
}

/* In the form of those that are there: "left right" or [left, right]. */
static bool put_merges(const gr_tokenizer *x, json_t *merges) {
    bool ok = json_is_array(merges), words = json_is_string(json_array_get(merges, 0));
    for (int64_t i = x->extends->n_merges; ok && i < x->n_merges; i++) {
        const gr_merge *m = &x->merges[i];
        json_t *pair = words ? json_stringn(m->text, (size_t)m->len) : json_array();
        if (!words) {
            json_array_append_new(pair, json_stringn(m->text, (size_t)m->left_len));
            json_array_append_new(pair, json_stringn(m->text + m->left_len + 1, (size_t)(m->len - m->left_len - 1)));
        }
        ok = json_array_append_new(merges, pair) == 0;
    }
    return ok;
}

static graft_status write_json(const gr_tokenizer *x, const char *from, const char *to, graft_error *err) {
    char *text = NULL;
    int64_t n;
    json_t *root = NULL;
    graft_status st;
    GR_TRY(gr_file_read_json(&text, &n, from, GR_JSON_MAX, err));
    GR_TRY(gr_json_load(&root, text, n, 0, from, err));
    json_t *model = json_object_get(root, "model");
    free(text);
    text = NULL;
    if (put_vocab(x, json_object_get(model, "vocab")) && put_merges(x, json_object_get(model, "merges")))
        text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17));
    if (!text) GR_TRY(gr_fail_memory(err, to));
    GR_TRY(gr_file_write(to, text, (int64_t)strlen(text), err));
done:
    json_decref(root);
    free(text);
    return st;
}

/* ---- tokenizer.model ---- */

/* Is the model, read back, one in which every new piece has its id? */
static graft_status check_model(const gr_tokenizer *x, const gr_str *bytes, const char *path, graft_error *err) {
    gr_tokenizer *back = NULL;
    graft_status st = gr_tokenizer_parse_spm(&back, bytes->data, bytes->len, path, err);
    for (int64_t i = x->first_new; st == GRAFT_OK && i < x->info.n_vocab; i++)
        if (gr_tokenizer_find(back, x->pieces[i].text) != i)
            st = gr_fail(err, GRAFT_FAILED, "%s: piece \"%.60s\" reads back with another id than %lld", path, x->pieces[i].text,
                         (long long)i);
    gr_tokenizer_free(back);
    return st;
}

static graft_status write_model(const gr_tokenizer *x, const char *from, const char *to, graft_error *err) {
    gr_str out = {0};
    char *bytes = NULL;
    int64_t n;
    gr_tokenizer *old = NULL;
    graft_status st;
    GR_TRY(gr_file_read(&bytes, &n, from, GR_SPM_MAX, err));
    GR_TRY(gr_tokenizer_parse_spm(&old, bytes, n, from, err));
    if (old->info.kind != GR_TOKENIZER_SPM_BPE || old->info.n_vocab > x->first_new)
        GR_TRY(gr_fail(
            err, GRAFT_BAD_INPUT, "%s has %lld pieces and is %s: it is no form of the tokenizer of %lld tokens beside it", from,
            (long long)old->info.n_vocab, old->info.kind == GR_TOKENIZER_SPM_BPE ? "a BPE" : "a unigram", (long long)x->first_new));
    double score = 0;
    for (int64_t i = 0; i < old->info.n_vocab; i++)
        if (old->pieces[i].type == GR_PIECE_NORMAL) score = GR_MIN(score, old->pieces[i].score);
    gr_str_add(&out, bytes, n);
    for (int64_t i = old->info.n_vocab; i < x->info.n_vocab; i++) {
        const gr_piece *p = &x->pieces[i];
        char name[GR_PADDING_LEN];
        if (i >= x->first_new) score = gr_next_score(score);
        if (p->len > 0) gr_spm_put_piece(&out, p->text, p->len, i < x->first_new ? 0 : (float)score, p->type);
        else gr_spm_put_piece(&out, name, gr_padding_name(name, i), 0, GR_PIECE_UNUSED);
    }
    gr_spm_put_size(&out, x->info.n_vocab);
    if (out.failed) GR_TRY(gr_fail_memory(err, to));
    GR_TRY(check_model(x, &out, to, err));
    GR_TRY(gr_file_write(to, out.data, out.len, err));
done:
    gr_tokenizer_free(old);
    gr_str_release(&out);
    free(bytes);
    return st;
}

/* ---- both ---- */

typedef graft_status writer(const gr_tokenizer *x, const char *from, const char *to, graft_error *err);

static graft_status write_one(const gr_tokenizer *x, const char *folder, const char *name, writer *write, graft_error *err) {
    char *from = gr_path_join(x->info.folder, name), *to = gr_path_join(folder, name);
    graft_status st = from && to ? GRAFT_OK : gr_fail_memory(err, "path");
    if (st == GRAFT_OK && gr_exists(from)) {
        if (write) st = write(x, from, to, err);
        else gr_note("%s is left out: the extended vocabulary is in tokenizer.json", from);
    }
    free(from);
    free(to);
    return st;
}

graft_status gr_write_extended(const gr_tokenizer *x, const char *folder, graft_error *err) {
    graft_status st;
    GR_TRY(write_one(x, folder, "tokenizer.json", write_json, err));
    GR_TRY(write_one(x, folder, "tokenizer.model", write_model, err));
    GR_TRY(write_one(x, folder, "vocab.json", NULL, err));
    GR_TRY(write_one(x, folder, "merges.txt", NULL, err));
done:
    return st;
}
