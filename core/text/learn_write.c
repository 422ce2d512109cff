/* Vocabularies as files: the one to start from, and the same with what was learned. Formats: HF tokenizers' tokenizer.json,
 * SentencePiece's ModelProto (sentencepiece_model.proto), of which a repeated field may be added to at the end. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/text/learn.h"
#include "core/text/encode.h"
#include "core/text/extend_impl.h"
#include "core/text/read.h"
#include "core/text/write_spm.h"

enum { FILE_MAX = 256 << 20 };

void gr_vocab_release(gr_vocab *v) {
    if (v->owned) gr_tokenizer_free(v->tokenizer);
    free(v->bytes);
    *v = (gr_vocab){0};
}

/* ---- a SentencePiece model ---- */

typedef struct model_settings {
    int32_t unk, bos, eos, pad;
    bool split_digits, bytes, squeeze, prefix, spaces;
    const char *name, *map;
    int64_t n_vocab, map_len;
} model_settings;

/* The trainer's and the normaliser's fields. */
static void put_settings(gr_str *s, const model_settings *m) {
    gr_str part = {0};
    gr_spm_put_number(&part, 3, 2); /* BPE */
    gr_spm_put_number(&part, 4, m->n_vocab);
    gr_spm_put_number(&part, 25, m->split_digits);
    gr_spm_put_number(&part, 26, 1); /* pieces of spaces alone */
    gr_spm_put_number(&part, 35, m->bytes);
    gr_spm_put_number(&part, 40, m->unk);
    gr_spm_put_number(&part, 41, m->bos);
    gr_spm_put_number(&part, 42, m->eos);
    gr_spm_put_number(&part, 43, m->pad);
    gr_spm_put_bytes(s, 2, part.data, part.len);
    s->failed |= part.failed;
    gr_str_clear(&part);
    gr_spm_put_bytes(&part, 1, m->name, (int64_t)strlen(m->name));
    if (m->map_len > 0) gr_spm_put_bytes(&part, 2, m->map, m->map_len);
    gr_spm_put_number(&part, 3, m->prefix);
    gr_spm_put_number(&part, 4, m->squeeze);
    gr_spm_put_number(&part, 5, m->spaces);
    gr_spm_put_bytes(s, 3, part.data, part.len);
    s->failed |= part.failed;
    gr_str_release(&part);
}

/* The bytes of a vocabulary: the model's, or the text of root. */
static graft_status take_bytes(gr_vocab *v, gr_str *model, const json_t *root, graft_error *err) {
    if (v->spm) {
        v->n = model->len;
        v->bytes = gr_str_take(model);
    } else {
        v->bytes = root ? json_dumps(root, JSON_COMPACT) : NULL;
        v->n = v->bytes ? (int64_t)strlen(v->bytes) : 0;
    }
    return v->bytes ? GRAFT_OK : gr_fail_memory(err, "vocabulary");
}

/* ---- from nothing ---- */

static graft_status check_special(const gr_vocab_start *o, graft_error *err) {
    for (int i = 0; i < o->n_special; i++) {
        const char *s = o->special[i];
        bool known = !strcmp(s, "<unk>") || !strcmp(s, "<s>") || !strcmp(s, "</s>") || !strcmp(s, "<|endoftext|>");
        for (int k = 0; k < i; k++) known |= !strcmp(s, o->special[k]);
        if (!*s || known || !gr_utf8_valid(s, (int64_t)strlen(s)) || gr_is_byte_name(s, (int64_t)strlen(s)))
            return gr_fail(err, GRAFT_BAD_USAGE, "--special \"%s\": %s", s, known ? "it is there already" : "no name for a token");
    }
    return GRAFT_OK;
}

static void start_model(gr_str *s, const gr_vocab_start *o) {
    char name[8];
    gr_str map = {0};
    model_settings m = {.bos = 1,
                        .eos = 2,
                        .pad = -1,
                        .split_digits = o->split_digits,
                        .bytes = true,
                        .prefix = true,
                        .spaces = true,
                        .name = "identity",
                        .n_vocab = 3 + o->n_special + 256 + 1};
    gr_spm_put_piece(s, "<unk>", 5, 0, GR_PIECE_UNKNOWN);
    gr_spm_put_piece(s, "<s>", 3, 0, GR_PIECE_CONTROL);
    gr_spm_put_piece(s, "</s>", 4, 0, GR_PIECE_CONTROL);
    for (int i = 0; i < o->n_special; i++) gr_spm_put_piece(s, o->special[i], (int64_t)strlen(o->special[i]), 0, GR_PIECE_CONTROL);
    for (unsigned b = 0; b < 256; b++) {
        snprintf(name, sizeof name, "<0x%02X>", b);
        gr_spm_put_piece(s, name, 6, 0, GR_PIECE_BYTE);
    }
    gr_spm_put_piece(s, GR_META_SPACE, 3, 0, GR_PIECE_NORMAL); /* a space, whatever the text's characters are */
    if (o->nfkc) {
        s->failed |= !gr_charsmap_nfkc(&map);
        m.name = "nmt_nfkc", m.squeeze = true, m.map = map.data, m.map_len = map.len;
    }
    put_settings(s, &m);
    gr_str_release(&map);
}

static json_t *start_json(const gr_vocab_start *o) {
    uint16_t to_point[256];
    json_t *vocab = json_object(), *added = json_array(), *steps = json_array();
    for (int i = -1; i < o->n_special; i++) {
        const char *text = i < 0 ? "<|endoftext|>" : o->special[i];
        json_object_set_new(vocab, text, json_integer(i + 1));
        json_array_append_new(added, json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", i + 1, "content", text, "single_word",
                                               0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1));
    }
    gr_byte_alphabet(to_point);
    for (int b = 0; b < 256; b++) {
        char name[5] = "";
        gr_utf8_encode(to_point[b], name);
        json_object_set_new(vocab, name, json_integer(1 + o->n_special + b));
    }
    if (o->split_digits) json_array_append_new(steps, json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", 1));
    json_array_append_new(
        steps, json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 1));
    return json_pack("{s:s, s:n, s:n, s:o, s:n, s:{s:s, s:o}, s:n, s:{s:s, s:b, s:b, s:b}, s:{s:s, s:n, s:n, s:n, s:n, s:b, s:b, "
                     "s:b, s:o, s:[]}}",
                     "version", "1.0", "truncation", "padding", "added_tokens", added, "normalizer", "pre_tokenizer", "type",
                     "Sequence", "pretokenizers", steps, "post_processor", "decoder", "type", "ByteLevel", "add_prefix_space", 0,
                     "trim_offsets", 1, "use_regex", 1, "model", "type", "BPE", "dropout", "unk_token", "continuing_subword_prefix",
                     "end_of_word_suffix", "fuse_unk", 0, "byte_fallback", 0, "ignore_merges", 0, "vocab", vocab, "merges");
}

graft_status gr_vocab_start_new(gr_vocab *v, const gr_vocab_start *o, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_str model = {0};
    json_t *root = NULL;
    *v = (gr_vocab){.owned = true, .spm = o->spm};
    GR_TRY(check_special(o, err));
    if (o->spm) start_model(&model, o);
    else root = start_json(o);
    GR_TRY(take_bytes(v, &model, root, err));
    GR_TRY(o->spm ? gr_tokenizer_parse_spm(&v->tokenizer, v->bytes, v->n, "the vocabulary", err)
                  : gr_tokenizer_parse_json(&v->tokenizer, v->bytes, v->n, "the vocabulary", err));
done:
    json_decref(root);
    gr_str_release(&model);
    if (st != GRAFT_OK) gr_vocab_release(v);
    return st;
}

/* ---- of a model ---- */

/* A file of the folder that t was read from; NULL in *bytes where there is none. */
static graft_status read_own(const gr_tokenizer *t, const char *name, char **bytes, int64_t *n, graft_error *err) {
    char *path = t->info.folder ? gr_path_join(t->info.folder, name) : NULL;
    graft_status st = t->info.folder && !path ? gr_fail_memory(err, "path") : GRAFT_OK;
    *bytes = NULL;
    if (path && gr_exists(path)) st = gr_file_read(bytes, n, path, FILE_MAX, err);
    free(path);
    return st;
}

/* t as a ModelProto, where its files have none. */
static graft_status make_model(const gr_tokenizer *t, gr_str *s, graft_error *err) {
    const gr_tokenizer_info *info = &t->info;
    const int64_t n = gr_tokenizer_n_tokens(t);
    model_settings m = {.unk = info->unk,
                        .bos = info->bos,
                        .eos = info->eos,
                        .pad = info->pad,
                        .bytes = t->byte_fallback,
                        .prefix = info->add_space_prefix || t->meta_prepend != GR_PREPEND_NEVER,
                        .spaces = true,
                        .name = "identity",
                        .n_vocab = n};
    for (int i = 0; i < t->n_norm; i++) {
        gr_norm_kind kind = t->norm[i].kind;
        if (kind == GR_NORM_SPM_SPACES) m.squeeze = true;
        else if (kind == GR_NORM_CHARSMAP_SPM || kind == GR_NORM_CHARSMAP)
            m.name = "nmt_nfkc", m.map = t->charsmap_blob, m.map_len = t->charsmap_blob_len;
        else if (kind != GR_NORM_PREPEND && kind != GR_NORM_REPLACE)
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "the model's tokenizer.json normalises text in a way that a SentencePiece .model cannot say, and "
                           "there is no tokenizer.model beside it");
    }
    float *scores = gr_calloc(n, sizeof *scores);
    if (!scores) return gr_fail_memory(err, "scores");
    for (int64_t i = 0; i < n; i++) scores[i] = (float)t->pieces[i].score;
    if (t->merges) gr_scores_from_merges(t, n, scores);
    for (int64_t i = 0; i < n; i++) {
        const gr_piece *p = &t->pieces[i];
        char name[GR_PADDING_LEN];
        int len = gr_padding_name(name, i);
        if (p->len > 0) gr_spm_put_piece(s, p->text, p->len, scores[i], p->type);
        else gr_spm_put_piece(s, name, len, 0, GR_PIECE_UNUSED);
    }
    put_settings(s, &m);
    free(scores);
    return s->failed ? gr_fail_memory(err, "vocabulary") : GRAFT_OK;
}

graft_status gr_vocab_of(gr_vocab *v, gr_tokenizer *t, graft_error *err) {
    graft_status st;
    gr_str model = {0};
    json_t *root = NULL;
    *v = (gr_vocab){.tokenizer = t, .spm = !t->byte_level};
    GR_TRY(gr_vocab_check_ids(t, err));
    GR_TRY(read_own(t, v->spm ? "tokenizer.model" : "tokenizer.json", &v->bytes, &v->n, err));
    if (v->bytes) goto done;
    GR_TRY(v->spm ? make_model(t, &model, err) : gr_tokenizer_to_json(t, &root, err));
    GR_TRY(take_bytes(v, &model, root, err));
done:
    json_decref(root);
    gr_str_release(&model);
    if (st != GRAFT_OK) gr_vocab_release(v);
    return st;
}

/* ---- with what was learned ---- */

static graft_status with_pieces(const gr_vocab *v, const gr_learned *learned, char **out, int64_t *n, graft_error *err) {
    gr_tokenizer *t = NULL;
    gr_str s = {0};
    double least = 0;
    graft_status st;
    GR_TRY(gr_tokenizer_parse_spm(&t, v->bytes, v->n, "the model's tokenizer.model", err));
    if (t->info.n_vocab > learned->first_id)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "the model's tokenizer.model has %lld pieces, its tokenizer.json %lld tokens",
                       (long long)t->info.n_vocab, (long long)learned->first_id));
    for (int64_t i = 0; i < t->info.n_vocab; i++) least = GR_MIN(least, t->pieces[i].score);
    gr_str_add(&s, v->bytes, v->n);
    for (int64_t i = t->info.n_vocab; i < learned->first_id; i++) { /* added tokens, which tokenizer.json alone has */
        const gr_piece *p = &v->tokenizer->pieces[i];
        char name[GR_PADDING_LEN];
        if (p->len > 0) gr_spm_put_piece(&s, p->text, p->len, 0, p->type);
        else gr_spm_put_piece(&s, name, gr_padding_name(name, i), 0, GR_PIECE_UNUSED);
    }
    for (int64_t i = 0; i < learned->n; i++) /* whole numbers: floats hold them apart */
        gr_spm_put_piece(&s, learned->pieces[i].text, learned->pieces[i].len, (float)(floor(least) - 1 - (double)i),
                         GR_PIECE_NORMAL);
    gr_spm_put_size(&s, learned->first_id + learned->n);
    *n = s.len;
    if (!(*out = gr_str_take(&s))) GR_TRY(gr_fail_memory(err, "vocabulary"));
done:
    gr_tokenizer_free(t);
    gr_str_release(&s);
    return st;
}

/* Added tokens that the vocabulary lacks take ids from its size on: they go into it, so that theirs stay. */
static void keep_added(json_t *vocab, const json_t *added) {
    size_t i;
    const json_t *a;
    json_array_foreach(added, i, a) {
        const char *content = gr_json_str(a, "content");
        if (content && !json_object_get(vocab, content)) json_object_set(vocab, content, json_object_get(a, "id"));
    }
}

/* The text of a piece by its id. */
static json_t *text_of(const gr_vocab *v, const gr_learned *learned, int32_t id) {
    if (id < learned->first_id) return json_stringn(v->tokenizer->pieces[id].text, (size_t)v->tokenizer->pieces[id].len);
    const gr_learned_piece *p = &learned->pieces[id - learned->first_id];
    return json_stringn(p->text, (size_t)p->len);
}

static graft_status with_merges(const gr_vocab *v, const gr_learned *learned, char **out, int64_t *n, graft_error *err) {
    json_t *root = NULL;
    graft_status st;
    GR_TRY(gr_json_load(&root, v->bytes, v->n, 0, "the model's tokenizer.json", err));
    json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab"),
           *merges = json_object_get(model, "merges");
    bool strings = json_is_string(json_array_get(merges, 0)), ok = true;
    keep_added(vocab, json_object_get(root, "added_tokens"));
    for (int64_t i = 0; i < learned->n && ok; i++) {
        const gr_learned_piece *p = &learned->pieces[i];
        json_t *left = text_of(v, learned, p->left), *right = text_of(v, learned, p->right);
        ok = left && right && json_object_setn_new(vocab, p->text, (size_t)p->len, json_integer(learned->first_id + i)) == 0 &&
             json_array_append_new(merges, strings ? json_sprintf("%s %s", json_string_value(left), json_string_value(right))
                                                   : json_pack("[O, O]", left, right)) == 0;
        json_decref(left);
        json_decref(right);
    }
    *out = ok ? json_dumps(root, JSON_COMPACT) : NULL;
    *n = *out ? (int64_t)strlen(*out) : 0;
    if (!*out) GR_TRY(gr_fail_memory(err, "vocabulary"));
done:
    json_decref(root);
    return st;
}

graft_status gr_vocab_with(const gr_vocab *v, const gr_learned *learned, char **out, int64_t *n, graft_error *err) {
    return v->spm ? with_pieces(v, learned, out, n, err) : with_merges(v, learned, out, n, err);
}
