/* A tokenizer as the files of an HF folder: copies of those that it was read from, or equivalents of a GGUF's. */
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/text/encode.h"
#include "core/text/extend_impl.h"
#include "core/text/read.h"

/* own: also the files that hold the vocabulary. */
static graft_status copy_files(const char *from, const char *to, bool own, graft_error *err) {
    static const char *const files[] = {
        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
        "tokenizer.json",        "tokenizer.model",         "vocab.json",        "merges.txt"};
    graft_status st = GRAFT_OK;
    for (int i = 0; i < (own ? GR_LEN(files) : 4) && st == GRAFT_OK; i++) {
        char *source = gr_path_join(from, files[i]), *target = gr_path_join(to, files[i]);
        if (!source || !target) st = gr_fail_memory(err, "path");
        else if (gr_exists(source)) st = gr_file_copy(source, target, err);
        free(source);
        free(target);
    }
    return st;
}

static graft_status write_file(const char *folder, const char *name, const char *text, graft_error *err) {
    char *path = gr_path_join(folder, name);
    graft_status st = path ? gr_file_write(path, text, (int64_t)strlen(text), err) : gr_fail_memory(err, "path");
    free(path);
    return st;
}

/* Takes the value. */
static graft_status write_json(const char *folder, const char *name, json_t *value, size_t flags, graft_error *err) {
    char *text = value ? json_dumps(value, flags) : NULL;
    graft_status st = text ? write_file(folder, name, text, err)
                           : gr_fail(err, GRAFT_FAILED, "%s: the tokenizer's pieces do not fit into JSON (not valid UTF-8?)", name);
    free(text);
    json_decref(value);
    return st;
}

/* Reads a config whose huge numbers ("no limit": 10^30) are no integers; the others stay whole. */
static json_t *read_config(const char *path) {
    const char *key;
    char *text;
    int64_t n;
    json_t *value, *root;
    void *next;
    if (gr_file_read_json(&text, &n, path, GR_JSON_MAX, NULL) != GRAFT_OK) return NULL;
    root = json_loadb(text, (size_t)n, 0, NULL);
    const bool whole = root != NULL;
    if (!whole) root = json_loadb(text, (size_t)n, JSON_DECODE_INT_AS_REAL, NULL);
    free(text);
    if (whole || !root) return root;
    json_object_foreach_safe(root, next, key, value) {
        double v = json_is_real(value) ? json_real_value(value) : 0.5;
        if (v == (double)(int64_t)v && v > -1e15 && v < 1e15) json_object_set_new(root, key, json_integer((json_int_t)v));
    }
    return root;
}

/* What is carried into a config file of the folder; one that is not there stays so. */
static graft_status carry_into(const gr_tokenizer *t, const char *folder, const char *name, bool with_template, graft_error *err) {
    char *path = gr_path_join(folder, name);
    if (!path) return gr_fail_memory(err, "path");
    json_t *root = gr_exists(path) ? read_config(path) : NULL;
    free(path);
    if (!root) return GRAFT_OK;
    if (t->carried_eos != t->info.eos)
        json_object_set_new(root, "eos_token", json_stringn(t->pieces[t->carried_eos].text, (size_t)t->pieces[t->carried_eos].len));
    if (with_template) json_object_set_new(root, "chat_template", json_string(t->carried));
    return write_json(folder, name, root, JSON_INDENT(2), err);
}

static graft_status write_tool_template(const gr_tokenizer *t, const char *folder, graft_error *err) {
    if (!t->info.tool_template) return GRAFT_OK;
    char *more = gr_path_join(folder, "additional_chat_templates");
    graft_status st = more ? gr_make_dirs(more, err) : gr_fail_memory(err, "path");
    if (st == GRAFT_OK) st = write_file(more, "tool_use.jinja", t->info.tool_template, err);
    free(more);
    return st;
}

static graft_status carry(const gr_tokenizer *t, const char *folder, graft_error *err) {
    graft_status st = GRAFT_OK;
    if (!t->carried) return st;
    GR_TRY(carry_into(t, folder, "tokenizer_config.json", true, err));
    GR_TRY(carry_into(t, folder, "special_tokens_map.json", false, err));
    GR_TRY(write_file(folder, "chat_template.jinja", t->carried, err));
    GR_TRY(write_tool_template(t, folder, err)); /* which a list of templates had, that is now one */
done:
    return st;
}

/* ---- merges of a SentencePiece BPE ---- */

typedef struct split { /* a pair that makes a piece */
    int32_t rank, left, right;
} split;

static int compare_splits(const void *a, const void *b) {
    const split *x = a, *y = b;
    if (x->rank != y->rank) return x->rank < y->rank ? -1 : 1;
    if (x->left != y->left) return x->left < y->left ? -1 : 1;
    return (x->right > y->right) - (x->right < y->right);
}

/* Every way to make a piece of two others, best piece first: the merges that HF's converter derives from scores. */
static json_t *merges_from_scores(const gr_tokenizer *t) {
    split *splits = NULL;
    int64_t n = 0, capacity = 0;
    bool ok = true;
    for (int64_t i = 0; i < t->info.n_vocab && ok; i++) {
        const gr_piece *p = &t->pieces[i];
        if (p->type != GR_PIECE_NORMAL && p->type != GR_PIECE_USER) continue;
        for (int32_t at = 1; at < p->len && ok; at++) {
            if (((uint8_t)p->text[at] & 0xC0) == 0x80) continue;
            int32_t left = gr_table_find(&t->by_raw, p->text, at);
            int32_t right = left < 0 ? -1 : gr_table_find(&t->by_raw, p->text + at, p->len - at);
            if (right < 0) continue;
            ok = gr_grow(&splits, &capacity, n + 1, sizeof *splits);
            if (ok) splits[n++] = (split){t->ranks[i], left, right};
        }
    }
    json_t *list = ok ? json_array() : NULL;
    if (list && n > 0) qsort(splits, (size_t)n, sizeof *splits, compare_splits);
    for (int64_t i = 0; list && i < n; i++) {
        const gr_piece *a = &t->pieces[splits[i].left], *b = &t->pieces[splits[i].right];
        json_t *pair = json_array();
        json_array_append_new(pair, json_stringn(a->text, (size_t)a->len));
        json_array_append_new(pair, json_stringn(b->text, (size_t)b->len));
        json_array_append_new(list, pair);
    }
    free(splits);
    return list;
}

static json_t *merges_as_read(const gr_tokenizer *t) {
    json_t *list = json_array();
    for (int64_t i = 0; i < t->n_merges; i++)
        if (gr_merge_counts(t, i)) json_array_append_new(list, json_stringn(t->merges[i].text, (size_t)t->merges[i].len));
    return list;
}

/* ---- tokenizer.json ---- */

static json_t *piece_json(const gr_tokenizer *t, int32_t id) {
    return id < 0 ? json_null() : json_stringn(t->pieces[id].text, (size_t)t->pieces[id].len);
}

static json_t *bpe_model(const gr_tokenizer *t) {
    json_t *vocab = json_object();
    const int64_t n = gr_tokenizer_n_tokens(t);
    for (int64_t i = 0; i < n; i++) {
        const gr_piece *p = &t->pieces[i];
        if (p->len > 0 && json_object_setn_new(vocab, p->text, (size_t)p->len, json_integer(i)) != 0) {
            json_decref(vocab);
            return NULL;
        }
    }
    return json_pack("{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout", "unk_token",
                     piece_json(t, t->model_unk), "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", t->fuse_unk,
                     "byte_fallback", t->byte_fallback, "ignore_merges", t->info.ignore_merges, "vocab", vocab, "merges",
                     t->byte_level ? merges_as_read(t) : merges_from_scores(t));
}

static json_t *unigram_model(const gr_tokenizer *t) {
    json_t *vocab = json_array();
    const int64_t n = gr_tokenizer_n_tokens(t);
    for (int64_t i = 0; i < n; i++)
        json_array_append_new(vocab, json_pack("[o, f]", piece_json(t, (int32_t)i), t->pieces[i].score));
    return json_pack("{s:s, s:o, s:b, s:o}", "type", "Unigram", "unk_id",
                     t->model_unk < 0 ? json_null() : json_integer(t->model_unk), "byte_fallback", t->byte_fallback, "vocab",
                     vocab);
}

static json_t *added_tokens(const gr_tokenizer *t) {
    json_t *list = json_array();
    for (int32_t i = 0; i < t->n_added; i++) {
        const gr_added *a = &t->added[i];
        json_array_append_new(list, json_pack("{s:i, s:o, s:b, s:b, s:b, s:b, s:b}", "id", (int)a->id, "content",
                                              json_stringn(a->text, (size_t)a->len), "single_word", a->single_word, "lstrip",
                                              a->lstrip, "rstrip", a->rstrip, "normalized", a->normalized, "special", a->special));
    }
    return list;
}

static char *base64(const char *data, int64_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    gr_str out = {0};
    for (int64_t i = 0; i < n; i += 3) {
        uint32_t bits = 0;
        for (int k = 0; k < 3; k++) bits = bits << 8 | (i + k < n ? (uint8_t)data[i + k] : 0);
        for (int k = 0; k < 4; k++) gr_str_putc(&out, i + k > n ? '=' : digits[bits >> (18 - 6 * k) & 63]);
    }
    return gr_str_take(&out);
}

static json_t *step_json(const gr_tokenizer *t, const gr_norm_step *step) {
    switch (step->kind) {
    case GR_NORM_NFC: return json_pack("{s:s}", "type", "NFC");
    case GR_NORM_CHARSMAP_SPM: {
        char *map = base64(t->charsmap_blob, t->charsmap_blob_len);
        json_t *value = json_pack("{s:s, s:s}", "type", "Precompiled", "precompiled_charsmap", map ? map : "");
        free(map);
        return value;
    }
    case GR_NORM_PREPEND: return json_pack("{s:s, s:s}", "type", "Prepend", "prepend", step->to);
    case GR_NORM_REPLACE:
        return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "String", step->from, "content", step->to);
    default: return NULL;
    }
}

/* The steps that a GGUF's tokenizer can have. */
static json_t *normalizer(const gr_tokenizer *t) {
    json_t *list = json_array();
    for (int i = 0; i < t->n_norm; i++) {
        if (t->norm[i].kind == GR_NORM_SPM_SPACES) {
            json_array_append_new(list, json_pack("{s:s, s:b, s:b}", "type", "Strip", "strip_left", 1, "strip_right", 1));
            json_array_append_new(list,
                                  json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", "Regex", " {2,}", "content", " "));
        } else {
            json_array_append_new(list, step_json(t, &t->norm[i]));
        }
    }
    if (json_array_size(list) > 0) return json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", list);
    json_decref(list);
    return json_null();
}

static json_t *pre_tokenizer(const gr_tokenizer *t) {
    if (!t->byte_level) return json_null();
    bool gpt2 = t->words == GR_WORDS_GPT2;
    json_t *list = json_array();
    if (t->split_digits) json_array_append_new(list, json_pack("{s:s, s:b}", "type", "Digits", "individual_digits", 1));
    if (!gpt2)
        json_array_append_new(list, json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split", "pattern", "Regex",
                                              gr_word_rule_regex(t->words), "behavior", "Isolated", "invert", 0));
    json_array_append_new(
        list, json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", gpt2));
    return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", list);
}

static json_t *decoder(const gr_tokenizer *t) {
    if (t->byte_level)
        return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 1);
    json_t *list = json_pack("[{s:s, s:{s:s}, s:s}, {s:s}, {s:s}]", "type", "Replace", "pattern", "String", GR_META_SPACE,
                             "content", " ", "type", "ByteFallback", "type", "Fuse");
    if (t->lead != GR_LEAD_KEEP)
        json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
    return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", list);
}

/* Adds BOS and EOS as the tokenizer says. */
static json_t *post_processor(const gr_tokenizer *t) {
    const gr_tokenizer_info *info = &t->info;
    if (!info->add_bos && !info->add_eos) return json_null();
    const int32_t ids[2] = {info->add_bos ? info->bos : -1, info->add_eos ? info->eos : -1};
    json_t *single = json_array(), *pair = json_array(), *special = json_object();
    for (int sequence = 0; sequence < 2; sequence++) {
        for (int part = 0; part < 3; part++) {
            int32_t id = part == 1 ? -1 : ids[part / 2];
            json_t *item;
            if (part == 1) item = json_pack("{s:{s:s, s:i}}", "Sequence", "id", sequence ? "B" : "A", "type_id", sequence);
            else if (id >= 0) item = json_pack("{s:{s:o, s:i}}", "SpecialToken", "id", piece_json(t, id), "type_id", sequence);
            else continue;
            if (!sequence) json_array_append(single, item);
            json_array_append_new(pair, item);
            if (id >= 0)
                json_object_set_new(
                    special, t->pieces[id].text,
                    json_pack("{s:o, s:[i], s:[o]}", "id", piece_json(t, id), "ids", (int)id, "tokens", piece_json(t, id)));
        }
    }
    return json_pack("{s:s, s:o, s:o, s:o}", "type", "TemplateProcessing", "single", single, "pair", pair, "special_tokens",
                     special);
}

static json_t *tokenizer_json(const gr_tokenizer *t) {
    return json_pack("{s:s, s:n, s:n, s:o, s:o, s:o, s:o, s:o, s:o}", "version", "1.0", "truncation", "padding", "added_tokens",
                     added_tokens(t), "normalizer", normalizer(t), "pre_tokenizer", pre_tokenizer(t), "post_processor",
                     post_processor(t), "decoder", decoder(t), "model",
                     t->info.kind == GR_TOKENIZER_SPM_UNIGRAM ? unigram_model(t) : bpe_model(t));
}

graft_status gr_tokenizer_to_json(const gr_tokenizer *t, json_t **out, graft_error *err) {
    *out = NULL;
    if (t->words == GR_WORDS_DEFAULT)
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "the GGUF's tokenizer.ggml.pre is missing or \"" GR_PRETOK_DEFAULT
                       "\": llama.cpp's rule for such files has no form in a Hugging Face folder; write a GGUF, or set "
                       "the key to the model's own pre-tokenizer");
    *out = tokenizer_json(t);
    return *out ? GRAFT_OK
                : gr_fail(err, GRAFT_FAILED, "tokenizer.json: the tokenizer's pieces do not fit into JSON (not valid UTF-8?)");
}

/* The names of the special tokens, for both config files. */
static json_t *special_map(const gr_tokenizer *t) {
    const gr_tokenizer_info *info = &t->info;
    const int32_t ids[] = {info->bos, info->eos, info->pad, info->unk};
    static const char *const keys[] = {"bos_token", "eos_token", "pad_token", "unk_token"};
    json_t *map = json_object();
    for (int i = 0; i < GR_LEN(ids); i++)
        if (ids[i] >= 0) json_object_set_new(map, keys[i], piece_json(t, ids[i]));
    return map;
}

static graft_status write_files(const gr_tokenizer *t, const char *folder, graft_error *err) {
    json_t *config = special_map(t), *root = NULL;
    json_object_set_new(config, "tokenizer_class", json_string("PreTrainedTokenizerFast"));
    json_object_set_new(config, "add_bos_token", json_boolean(t->info.add_bos));
    json_object_set_new(config, "add_eos_token", json_boolean(t->info.add_eos));
    json_object_set_new(config, "clean_up_tokenization_spaces", json_false());
    graft_status st;
    GR_TRY(gr_tokenizer_to_json(t, &root, err));
    GR_TRY(write_json(folder, "tokenizer.json", root, JSON_COMPACT, err));
    st = write_json(folder, "tokenizer_config.json", config, JSON_INDENT(2), err);
    config = NULL;
    GR_TRY(st);
    GR_TRY(write_json(folder, "special_tokens_map.json", special_map(t), JSON_INDENT(2), err));
    if (t->info.chat_template) GR_TRY(write_file(folder, "chat_template.jinja", t->info.chat_template, err));
    GR_TRY(write_tool_template(t, folder, err));
done:
    json_decref(config);
    return st;
}

graft_status gr_tokenizer_save_hf(const gr_tokenizer *t, const char *folder, graft_error *err) {
    gr_tokenizer *back = NULL;
    graft_status st;
    if (t->info.folder) {
        GR_TRY(copy_files(t->info.folder, folder, !t->extends, err));
        GR_TRY(carry(t, folder, err));
        if (!t->extends) goto done;
        GR_TRY(gr_write_extended(t, folder, err));
        GR_TRY(gr_tokenizer_open(&back, folder, err));
        GR_TRY(gr_tokenizer_prove(t, back, "the extended folder", err));
        goto done;
    }
    GR_TRY(write_files(t, folder, err));
    GR_TRY(carry(t, folder, err));
    GR_TRY(gr_tokenizer_open(&back, folder, err));
    GR_TRY(gr_tokenizer_prove(t, back, "a Hugging Face folder", err));
done:
    gr_tokenizer_free(back);
    return st;
}
