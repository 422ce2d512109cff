/* Reading tokenizer.json: vocabulary, added tokens, model. */
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/text/encode.h"
#include "core/text/read.h"

graft_status gr_json_load(json_t **out, const char *text, int64_t n, size_t flags, const char *path, graft_error *err) {
    json_error_t problem;
    *out = json_loadb(text, (size_t)n, JSON_ALLOW_NUL | flags, &problem);
    if (*out) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT, "%s:%d: no JSON: %s", path, problem.line, problem.text);
}

/* ---- vocabulary ---- */

/* Ids may leave gaps, but not so many that a small file asks for a huge table. */
static graft_status check_id(json_int_t id, int64_t n_known, const char *path, graft_error *err) {
    if (id >= 0 && id < 4 * n_known + 65536) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: token id %lld in a vocabulary of %lld pieces", path, (long long)id,
                   (long long)n_known);
}

static graft_status count_ids(int64_t *n_vocab, const json_t *vocab, const json_t *added, const char *path, graft_error *err) {
    int64_t n_known = (int64_t)(json_object_size(vocab) + json_array_size(vocab) + json_array_size(added));
    graft_status st = GRAFT_OK;
    const char *key;
    const json_t *value;
    size_t i;
    *n_vocab = (int64_t)json_array_size(vocab);
    json_object_foreach((json_t *)vocab, key, value) {
        if (!json_is_integer(value))
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: the id of piece \"%.60s\" is no integer", path, key));
        GR_TRY(check_id(json_integer_value(value), n_known, path, err));
        *n_vocab = GR_MAX(*n_vocab, json_integer_value(value) + 1);
    }
    json_array_foreach(added, i, value) {
        const json_t *id = json_object_get(value, "id");
        if (!json_is_integer(id) || !gr_json_str(value, "content"))
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: added token %zu needs an id and a content", path, i));
        GR_TRY(check_id(json_integer_value(id), n_known, path, err));
        *n_vocab = GR_MAX(*n_vocab, json_integer_value(id) + 1);
    }
    if (*n_vocab == 0) st = gr_fail(err, GRAFT_BAD_INPUT, "%s: the vocabulary is empty", path);
done:
    return st;
}

/* A piece that stands for a byte keeps that role wherever the file lists it, among the added tokens too. */
static bool is_byte_piece(const gr_tokenizer *t, const char *s, size_t n) {
    return t->byte_fallback && gr_is_byte_name(s, (int64_t)n);
}

static graft_status set_piece(gr_tokenizer *t, int64_t id, const char *s, size_t n, double score, graft_error *err) {
    gr_piece_type type = is_byte_piece(t, s, n) ? GR_PIECE_BYTE : GR_PIECE_NORMAL;
    return n < INT32_MAX && gr_piece_set(t, id, s, (int64_t)n, score, type) ? GRAFT_OK : gr_fail_memory(err, "vocabulary");
}

static graft_status read_vocab(gr_tokenizer *t, const json_t *vocab, const char *path, graft_error *err) {
    const char *key;
    size_t i, n;
    json_t *value;
    graft_status st = GRAFT_OK;
    json_object_keylen_foreach((json_t *)vocab, key, n, value) GR_TRY(set_piece(t, json_integer_value(value), key, n, 0, err));
    json_array_foreach(vocab, i, value) { /* unigram: [piece, score] */
        const json_t *piece = json_array_get(value, 0), *score = json_array_get(value, 1);
        if (!json_is_string(piece) || !json_is_number(score))
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: vocabulary entry %zu is not [piece, score]", path, i));
        GR_TRY(set_piece(t, (int64_t)i, json_string_value(piece), json_string_length(piece), json_number_value(score), err));
    }
done:
    return st;
}

static graft_status read_merges(gr_tokenizer *t, const json_t *merges, const char *path, graft_error *err) {
    size_t i;
    const json_t *value;
    t->merges = gr_text_alloc(t, (int64_t)json_array_size(merges), sizeof *t->merges);
    if (!t->merges || json_array_size(merges) > INT32_MAX) return gr_fail_memory(err, "merges");
    json_array_foreach(merges, i, value) {
        const json_t *left = json_array_get(value, 0), *right = json_array_get(value, 1);
        const char *text = json_string_value(value), *space = text && *text ? strchr(text + 1, ' ') : NULL;
        size_t n, left_len;
        if (json_is_string(left) && json_is_string(right)) {
            left_len = json_string_length(left);
            n = left_len + 1 + json_string_length(right);
        } else if (space) {
            left_len = (size_t)(space - text);
            n = json_string_length(value);
        } else {
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: merge %zu is neither \"left right\" nor [left, right]", path, i);
        }
        char *copy = n < INT32_MAX ? gr_text_alloc(t, (int64_t)n + 1, 1) : NULL;
        if (!copy) return gr_fail_memory(err, "merges");
        if (space) {
            memcpy(copy, text, n);
        } else {
            memcpy(copy, json_string_value(left), left_len);
            copy[left_len] = ' ';
            memcpy(copy + left_len + 1, json_string_value(right), n - left_len - 1);
        }
        t->merges[t->n_merges++] = (gr_merge){.text = copy, .len = (int32_t)n, .left_len = (int32_t)left_len};
    }
    return GRAFT_OK;
}

/* Does the normalizer make something else of the piece? */
static bool is_normalized(const gr_tokenizer *t, const gr_piece *p) {
    gr_scratch s = {0};
    const char *text;
    int64_t len;
    bool changed = gr_normalize(t, &s, p->text, p->len, &text, &len) && (len != p->len || memcmp(text, p->text, (size_t)len) != 0);
    gr_str_release(&s.normal[0]);
    gr_str_release(&s.normal[1]);
    return changed;
}

/* HF finds an added token of spaces also in what another one beside it has stripped: both at once are not known. */
static graft_status check_strips(const gr_tokenizer *t, const char *path, graft_error *err) {
    const gr_added *strips = NULL, *space = NULL;
    int size;
    for (int32_t i = 0; i < t->n_added; i++) {
        const gr_added *a = &t->added[i];
        if (a->lstrip || a->rstrip) strips = a;
        if (a->len > 0 && gr_class_at(t, a->text, a->len, &size) & GR_CLASS_SPACE) space = a;
    }
    if (!strips || !space || strips == space) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "%s: added_tokens: \"%.60s\" strips spaces and token %d begins with one: both in one file are not known", path,
                   strips->text, space->id);
}

/* The id that HF tokenizers gives the content: its own in the vocabulary, else the next one; *highest: of the
 * added tokens so far. */
static int64_t next_id(const json_t *vocab, const char *content, int64_t *highest, bool *known) {
    const json_t *own = json_object_get(vocab, content), *entry;
    int64_t size = (int64_t)(json_object_size(vocab) + json_array_size(vocab)), id = GR_MAX(size, *highest + 1);
    size_t i;
    if (own) id = json_integer_value(own);
    *known = own != NULL;
    json_array_foreach(vocab, i, entry) { /* unigram: [piece, score] */
        const char *piece = json_string_value(json_array_get(entry, 0));
        if (piece && strcmp(piece, content) == 0) id = (int64_t)i, *known = true;
    }
    *highest = GR_MAX(*highest, id);
    return id;
}

static graft_status read_added(gr_tokenizer *t, const json_t *added, const json_t *vocab, const char *path, graft_error *err) {
    size_t i;
    int64_t highest = -1;
    bool warned = false;
    const json_t *value;
    t->added = gr_text_alloc(t, (int64_t)json_array_size(added), sizeof *t->added);
    if (!t->added) return gr_fail_memory(err, "added tokens");
    json_array_foreach(added, i, value) {
        const json_t *content = json_object_get(value, "content");
        int64_t id = json_integer_value(json_object_get(value, "id"));
        bool in_vocab;
        int64_t hf_id = next_id(vocab, json_string_value(content), &highest, &in_vocab);
        const gr_piece *there = &t->pieces[id];
        bool other = there->text && (there->len != (int64_t)json_string_length(content) ||
                                     memcmp(there->text, json_string_value(content), (size_t)there->len) != 0);
        if (id != hf_id && (other || in_vocab))
            return gr_fail(err, GRAFT_BAD_INPUT,
                           "%s: added_tokens: \"%.60s\" is listed with id %lld, but HF tokenizers gives it %lld: its own in the "
                           "vocabulary, or the next free one; saving the tokenizer again with transformers writes it so",
                           path, json_string_value(content), (long long)id, (long long)hf_id);
        if (id != hf_id && !warned)
            gr_warn("%s: added_tokens: \"%.60s\" and others keep the ids that are listed, such as %lld; HF tokenizers would number "
                    "them from the size of the vocabulary, %lld",
                    path, json_string_value(content), (long long)id, (long long)hf_id);
        warned |= id != hf_id;
        bool special = gr_json_flag(value, "special", false);
        gr_piece_type type = special ? GR_PIECE_CONTROL : GR_PIECE_USER;
        bool known = t->pieces[id].text != NULL, single_word = gr_json_flag(value, "single_word", false);
        if (is_byte_piece(t, json_string_value(content), json_string_length(content))) type = GR_PIECE_BYTE;
        if (!gr_piece_set(t, id, json_string_value(content), (int64_t)json_string_length(content), t->pieces[id].score, type))
            return gr_fail_memory(err, "added tokens");
        /* The model knows its vocabulary alone. What of it is a control token is found as such, unless it is
         * looked for as a word or in another form. */
        bool found = !single_word && !(gr_json_flag(value, "normalized", !special) && is_normalized(t, &t->pieces[id]));
        t->pieces[id].in_text = known && type != GR_PIECE_BYTE && (!special || !found);
        t->added[t->n_added++] = (gr_added){.text = t->pieces[id].text,
                                            .len = t->pieces[id].len,
                                            .id = (int32_t)id,
                                            .special = special,
                                            .normalized = gr_json_flag(value, "normalized", !special),
                                            .lstrip = gr_json_flag(value, "lstrip", false),
                                            .rstrip = gr_json_flag(value, "rstrip", false),
                                            .single_word = single_word};
    }
    return GRAFT_OK;
}

/* ---- model ---- */

static bool has_text(const json_t *object, const char *key) {
    const char *s = gr_json_str(object, key);
    return s && *s;
}

static graft_status read_model(gr_tokenizer *t, const json_t *model, const char *path, graft_error *err) {
    bool unigram = json_is_array(json_object_get(model, "vocab"));
    graft_status st = GRAFT_OK;
    t->bytes_match = unigram;
    t->fuse_unk = unigram || gr_json_flag(model, "fuse_unk", false);
    t->info.ignore_merges = gr_json_flag(model, "ignore_merges", false);
    if (has_text(model, "continuing_subword_prefix") || has_text(model, "end_of_word_suffix"))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: BPE with continuing_subword_prefix or end_of_word_suffix is not known", path));
    if (json_number_value(json_object_get(model, "dropout")) > 0)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: BPE with dropout is not known; set \"dropout\": null", path));
    if (!unigram) GR_TRY(read_merges(t, json_object_get(model, "merges"), path, err));
    if (unigram) t->info.kind = GR_TOKENIZER_SPM_UNIGRAM;
    else if (t->byte_level) t->info.kind = GR_TOKENIZER_BPE;
    else t->info.kind = GR_TOKENIZER_SPM_BPE;
    if (!unigram && !t->byte_level && !t->byte_fallback && !t->meta_spaces)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: a BPE that is neither byte-level nor SentencePiece's is not known", path));
    if (unigram && t->byte_level)
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: a unigram model with the ByteLevel pre_tokenizer is not known", path));
    if (!unigram && !json_is_array(json_object_get(model, "merges")))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: model.merges is missing: no BPE", path));
done:
    return st;
}

/* Without an unknown token HF drops characters that the vocabulary lacks (BPE), or fails at them (unigram); a
 * ByteLevel pre_tokenizer before a model with other bytes makes pieces of pieces. */
static graft_status check_complete(const gr_tokenizer *t, const char *path, graft_error *err) {
    bool bytes = t->byte_level || t->byte_fallback;
    for (int b = 0; b < 256; b++) bytes &= t->byte_ids[b] >= 0;
    if (t->model_unk < 0 && !bytes && !t->byte_level) /* of bytes, what is dropped is said when it is: gr_push_unknown */
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: model.unk_token is missing, and not every byte is in the vocabulary: text that "
                       "it lacks would be dropped",
                       path);
    if (t->byte_level && t->byte_fallback && !bytes)
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: the ByteLevel pre_tokenizer with byte_fallback and a vocabulary without its bytes is not known", path);
    return GRAFT_OK;
}

/* unk: a name (BPE) or an id (unigram); needs the tables. */
static graft_status read_unknown(gr_tokenizer *t, const json_t *model, const char *path, graft_error *err) {
    const char *name = gr_json_str(model, "unk_token");
    const json_t *id = json_object_get(model, "unk_id");
    graft_status st = GRAFT_OK;
    if (name && !*name) name = NULL;
    if (name) t->model_unk = gr_tokenizer_find(t, name);
    if (json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < t->info.n_vocab)
        t->model_unk = (int32_t)json_integer_value(id);
    if ((name || json_is_integer(id)) && t->model_unk < 0 && !t->byte_level) /* bytes leave nothing unknown */
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: the unknown token is not in the vocabulary", path));
    GR_TRY(check_complete(t, path, err));
    t->info.unk = t->model_unk;
    if (t->model_unk >= 0 && t->pieces[t->model_unk].type == GR_PIECE_CONTROL) t->pieces[t->model_unk].type = GR_PIECE_UNKNOWN;
done:
    return st;
}

static graft_status build(gr_tokenizer **out, const json_t *root, const char *path, graft_error *err) {
    const json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab");
    const json_t *added = json_object_get(root, "added_tokens");
    const char *type = gr_json_str(model, "type");
    gr_tokenizer *t = NULL;
    int64_t n_vocab;
    graft_status st;
    if ((type && strcmp(type, "BPE") != 0 && strcmp(type, "Unigram") != 0) || (!json_is_object(vocab) && !json_is_array(vocab)))
        GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s: the model is %.40s; graft knows BPE and Unigram", path, type ? type : "missing"));
    GR_TRY(count_ids(&n_vocab, vocab, added, path, err));
    t = gr_tokenizer_new(n_vocab);
    if (!t) GR_TRY(gr_fail_memory(err, "tokenizer"));
    t->byte_fallback = gr_json_flag(model, "byte_fallback", false);
    t->normalize_added = true;
    GR_TRY(gr_json_normalizer(t, json_object_get(root, "normalizer"), path, err));
    GR_TRY(gr_json_pre_tokenizer(t, json_object_get(root, "pre_tokenizer"), path, err));
    GR_TRY(gr_json_decoder(t, json_object_get(root, "decoder"), path, err));
    GR_TRY(gr_json_post_processor(t, json_object_get(root, "post_processor"), path, err));
    GR_TRY(read_vocab(t, vocab, path, err));
    GR_TRY(read_added(t, added, vocab, path, err));
    GR_TRY(check_strips(t, path, err));
    GR_TRY(read_model(t, model, path, err));
    GR_TRY(gr_tokenizer_finish(t, path, err));
    GR_TRY(read_unknown(t, model, path, err));
    *out = t;
    t = NULL;
done:
    gr_tokenizer_free(t);
    return st;
}

graft_status gr_tokenizer_parse_json(gr_tokenizer **out, const char *text, int64_t n, const char *path, graft_error *err) {
    json_t *root = NULL;
    graft_status st = gr_json_load(&root, text, n, 0, path, err);
    if (st == GRAFT_OK) st = build(out, root, path, err);
    json_decref(root);
    return st;
}

graft_status gr_tokenizer_from_json(gr_tokenizer **out, const char *folder, graft_error *err) {
    char *path = gr_path_join(folder, "tokenizer.json"), *text = NULL;
    json_t *root = NULL;
    int64_t n;
    gr_tokenizer *t = NULL;
    graft_status st;
    if (!path) GR_TRY(gr_fail_memory(err, "path"));
    GR_TRY(gr_file_read_json(&text, &n, path, GR_JSON_MAX, err));
    GR_TRY(gr_json_load(&root, text, n, 0, path, err));
    GR_TRY(gr_json_added_flags(json_object_get(root, "added_tokens"), folder, err));
    GR_TRY(build(&t, root, path, err));
    GR_TRY(gr_tokenizer_read_config(t, folder, true, err));
    *out = t;
    t = NULL;
done:
    json_decref(root);
    gr_tokenizer_free(t);
    free(text);
    free(path);
    return st;
}
