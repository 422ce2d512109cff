/* Reading what stands beside a vocabulary in an HF folder: tokenizer_config.json, special_tokens_map.json, added_tokens.json,
 * chat_template.jinja. */
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/text/read.h"

/* folder/name as JSON; *out is NULL when the file is not there. Numbers are reals: transformers writes "no
 * limit" as a model_max_length of 10^30. */
static graft_status load_file(json_t **out, const char *folder, const char *name, graft_error *err) {
    char *path = gr_path_join(folder, name), *text = NULL;
    int64_t n;
    graft_status st = GRAFT_OK;
    *out = NULL;
    if (!path) return gr_fail_memory(err, "path");
    if (gr_exists(path)) {
        st = gr_file_read_json(&text, &n, path, GR_JSON_MAX, err);
        if (st == GRAFT_OK) st = gr_json_load(out, text, n, JSON_DECODE_INT_AS_REAL, path, err);
    }
    free(text);
    free(path);
    return st;
}

/* A special token is a string or {"content": ...}; NULL: neither. */
static const char *token_text(const json_t *value) {
    return json_is_object(value) ? gr_json_str(value, "content") : json_string_value(value);
}

/* Tokens of a list of which the same is to be told: the first, and how many there are. */
typedef struct found_tokens {
    const char *first;
    int n;
} found_tokens;

static void note_token(found_tokens *f, const char *text) {
    if (f->n++ == 0) f->first = text;
}

static const char *others(const found_tokens *f) { return f->n > 1 ? " (and others)" : ""; }

/* ---- special tokens ---- */

static void read_special(gr_tokenizer *t, const json_t *named, const char *key, int32_t *id) {
    const char *text = token_text(json_object_get(named, key));
    int32_t found = text ? gr_tokenizer_find(t, text) : -1;
    if (found >= 0) *id = found;
}

/* transformers makes control tokens of all that are named: those that the vocabulary lacks, and pieces that are no added tokens. */
static void look_up(const gr_tokenizer *t, const json_t *value, found_tokens *absent, found_tokens *plain) {
    const char *text = token_text(value);
    int32_t id = text && *text ? gr_tokenizer_find(t, text) : -1;
    if (!text || !*text) return;
    if (id < 0) note_token(absent, text);
    else if (t->pieces[id].type == GR_PIECE_NORMAL) note_token(plain, text);
}

static bool is_list_of_tokens(const char *key) {
    static const char *const lists[] = {"additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"};
    for (int i = 0; i < GR_LEN(lists); i++)
        if (strcmp(key, lists[i]) == 0) return true;
    return false;
}

static void check_special(const gr_tokenizer *t, const json_t *named, const char *folder) {
    const char *key, *name;
    const json_t *value, *token;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)named, key, value) {
        found_tokens absent = {0}, plain = {0};
        if (is_list_of_tokens(key)) {
            json_array_foreach(value, i, token) look_up(t, token, &absent, &plain);
            json_object_foreach((json_t *)(uintptr_t)value, name, token) look_up(t, token, &absent, &plain);
        } else if (gr_ends_with(key, "_token")) {
            look_up(t, value, &absent, &plain);
        }
        if (absent.n)
            gr_warn("%s: the %s \"%.60s\"%s is not in the vocabulary and is left out; saving the tokenizer again with transformers "
                    "writes a whole tokenizer.json",
                    folder, key, absent.first, others(&absent));
        if (plain.n)
            gr_warn("%s: the %s \"%.60s\"%s is a piece of the vocabulary and no added token: it is text like any here, while "
                    "transformers splits text at it",
                    folder, key, plain.first, others(&plain));
    }
}

/* What names special tokens, *named owned. special_tokens_map.json overrules the configuration, but is not read beside
 * added_tokens_decoder, as transformers has it. */
static graft_status merge_names(json_t **named, const json_t *config, const json_t *map, const char *folder, graft_error *err) {
    const char *key;
    const json_t *value;
    const bool listed = json_object_get(config, "added_tokens_decoder") != NULL;
    *named = json_is_object(config) ? json_copy((json_t *)(uintptr_t)config) : json_object();
    if (!*named) return gr_fail_memory(err, "special tokens");
    json_object_foreach((json_t *)(uintptr_t)map, key, value) {
        const json_t *own = json_object_get(config, key);
        const char *text = token_text(value), *other = token_text(own);
        if (listed && own) continue;
        if (listed && text)
            gr_warn("%s: the %s \"%.60s\" is that of special_tokens_map.json; transformers does not read it where "
                    "tokenizer_config.json has added_tokens_decoder",
                    folder, key, text);
        if (text && other && strcmp(text, other) != 0)
            gr_warn(
                "%s: the %s is \"%.60s\", as special_tokens_map.json has it, not \"%.60s\", as tokenizer_config.json; transformers "
                "takes it so, too",
                folder, key, text, other);
        if (listed && !text) continue;
        if (json_object_set(*named, key, (json_t *)(uintptr_t)value) != 0) return gr_fail_memory(err, "special tokens");
    }
    return GRAFT_OK;
}

/* ---- added tokens ---- */

/* Is the token of the text one that a key of its own names, such as eos_token? */
static bool is_named(const json_t *config, const char *text) {
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)(uintptr_t)config, key, value) {
        const char *name = gr_ends_with(key, "_token") ? token_text(value) : NULL;
        if (name && strcmp(name, text) == 0) return true;
    }
    return false;
}

/* The flags of the entry into an added token; those that are missing are what transformers takes for them. */
static bool set_flags(json_t *token, const json_t *entry, bool named) {
    static const char *const flags[] = {"lstrip", "rstrip", "single_word"};
    bool special = gr_json_flag(entry, "special", false), ok = true;
    bool normalized = gr_json_flag(entry, "normalized", !special);
    for (int i = 0; i < GR_LEN(flags); i++)
        ok &= json_object_set_new(token, flags[i], json_boolean(gr_json_flag(entry, flags[i], false))) == 0;
    ok &= json_object_set_new(token, "normalized", json_boolean(normalized)) == 0;
    return ok && json_object_set_new(token, "special", json_boolean(special || named)) == 0;
}

graft_status gr_json_added_flags(json_t *added, const char *folder, graft_error *err) {
    json_t *config = NULL, *by_text = json_object(), *token;
    const char *key, *text;
    const json_t *entry;
    size_t i;
    graft_status st;
    GR_TRY(load_file(&config, folder, "tokenizer_config.json", err));
    if (!by_text) GR_TRY(gr_fail_memory(err, "added tokens"));
    json_object_foreach(json_object_get(config, "added_tokens_decoder"), key, entry) {
        text = gr_json_str(entry, "content");
        if (text && json_object_set(by_text, text, (json_t *)(uintptr_t)entry) != 0) GR_TRY(gr_fail_memory(err, "added tokens"));
    }
    json_array_foreach(added, i, token) {
        text = gr_json_str(token, "content");
        entry = text ? json_object_get(by_text, text) : NULL;
        if (entry && !set_flags(token, entry, is_named(config, text))) GR_TRY(gr_fail_memory(err, "added tokens"));
    }
done:
    json_decref(by_text);
    json_decref(config);
    return st;
}

/* Is the added token found as added_tokens_decoder has it? Of what was read by gr_json_added_flags, always. */
static bool same_flags(const gr_tokenizer *t, int32_t id, const json_t *entry) {
    static const char *const flags[] = {"lstrip", "rstrip", "single_word"};
    if (gr_json_flag(entry, "special", false) && t->pieces[id].type == GR_PIECE_USER) return false;
    for (int k = 0; k < GR_LEN(flags); k++) {
        if (!gr_json_flag(entry, flags[k], false)) continue;
        for (int32_t i = 0; i < t->n_added; i++) {
            const gr_added *a = &t->added[i];
            if (a->id == id) return (bool[]){a->lstrip, a->rstrip, a->single_word}[k];
        }
    }
    return true;
}

/* Tokens that were added beside the vocabulary file: {"text": id}, or {"id": {"content": "text"}}. */
static graft_status check_added(gr_tokenizer *t, const json_t *tokens, const char *folder, graft_error *err) {
    const char *key;
    const json_t *value;
    found_tokens moved = {0}, plain = {0}, flags = {0};
    json_object_foreach((json_t *)(uintptr_t)tokens, key, value) {
        bool by_id = json_is_object(value);
        const char *text = by_id ? gr_json_str(value, "content") : key;
        int32_t found = text ? gr_tokenizer_find(t, text) : -1;
        double id = by_id ? strtod(key, NULL) : json_number_value(value);
        if (!text) continue;
        if (found >= 0) {
            gr_piece_type type = t->pieces[found].type;
            if (id != (double)found) note_token(&moved, text);
            if (type == GR_PIECE_NORMAL) note_token(&plain, text);
            else if (!same_flags(t, found, value)) note_token(&flags, text);
            continue;
        }
        gr_warn("%s: the added token \"%.60s\" is not in the vocabulary and is left out; saving the "
                "tokenizer again with transformers writes a whole tokenizer.json",
                folder, text);
        if (!(id >= 0 && id < INT32_MAX) || (t->left_out && id < (double)t->left_out_id)) continue;
        if (!(t->left_out = gr_arena_strdup(&t->arena, text))) return gr_fail_memory(err, "added tokens");
        t->left_out_id = (int64_t)id;
    }
    if (moved.n)
        gr_warn("%s: the added token \"%.60s\"%s keeps its id in the vocabulary, which is not the one that is listed; transformers "
                "has it so, too",
                folder, moved.first, others(&moved));
    if (plain.n)
        gr_warn("%s: the added token \"%.60s\"%s is a piece of the vocabulary alone: it is text like any here, while transformers "
                "splits text at it; saving the tokenizer again with transformers writes it so",
                folder, plain.first, others(&plain));
    if (flags.n)
        gr_warn(
            "%s: what added_tokens_decoder says of \"%.60s\"%s (special, lstrip, rstrip, single_word) is not what tokenizer.model "
            "makes of it, which is taken; saving the tokenizer again with transformers writes a tokenizer.json that has it",
            folder, flags.first, others(&flags));
    return GRAFT_OK;
}

/* text[0]: the default template, text[1]: what transformers takes for a sample with tools; owned, NULL where there is none. */
static graft_status find_templates(char *text[2], const char *folder, const json_t *config, graft_error *err) {
    static const char *const names[] = {"default", "tool_use"}, *const files[] = {"chat_template.jinja",
                                                                                  "additional_chat_templates/tool_use.jinja"};
    const json_t *value = json_object_get(config, "chat_template"), *entry;
    graft_status st = GRAFT_OK;
    bool in_file = false; /* then those of the config are not read */
    text[0] = text[1] = NULL;
    for (int i = 0; i < 2 && st == GRAFT_OK; i++) {
        const char *found = i == 0 && json_is_string(value) ? json_string_value(value) : gr_json_str(value, names[i]);
        char *path = gr_path_join(folder, files[i]);
        int64_t n;
        size_t k;
        json_array_foreach(value, k, entry) { /* several named templates */
            const char *name = gr_json_str(entry, "name");
            if (name && strcmp(name, names[i]) == 0) found = gr_json_str(entry, "template");
        }
        if (!path) st = gr_fail_memory(err, "path");
        else if (gr_exists(path)) st = gr_file_read(&text[i], &n, path, GR_JSON_MAX, err), in_file = true;
        else if (found && !in_file && !(text[i] = gr_strdup(found))) st = gr_fail_memory(err, "chat template");
        free(path);
    }
    return st;
}

static graft_status read_template(gr_tokenizer *t, const char *folder, const json_t *config, graft_error *err) {
    char *text[2];
    graft_status st = find_templates(text, folder, config, err);
    if (text[0] && !(t->info.chat_template = gr_arena_strdup(&t->arena, text[0]))) st = gr_fail_memory(err, "chat template");
    if (text[1] && !(t->info.tool_template = gr_arena_strdup(&t->arena, text[1]))) st = gr_fail_memory(err, "chat template");
    free(text[0]);
    free(text[1]);
    return st;
}

graft_status gr_folder_template(char **text, const char *folder, graft_error *err) {
    json_t *config;
    char *both[2] = {NULL, NULL};
    graft_status st = load_file(&config, folder, "tokenizer_config.json", err);
    if (st == GRAFT_OK) st = find_templates(both, folder, config, err);
    *text = both[0];
    free(both[1]);
    json_decref(config);
    return st;
}

/* ---- beside an adapter ---- */

static void compare_token(const gr_tokenizer *t, const char *folder, const char *text) {
    if (text && *text && gr_tokenizer_find(t, text) < 0)
        gr_warn("%s: its tokenizer has a token \"%.60s\" that the base has not: it is plain text here", folder, text);
}

graft_status gr_tokenizer_compare(const gr_tokenizer *t, const char *folder, graft_error *err) {
    json_t *config = NULL, *added = NULL, *whole = NULL;
    const json_t *value;
    const char *key;
    size_t i;
    graft_status st;
    GR_TRY(load_file(&config, folder, "tokenizer_config.json", err));
    GR_TRY(load_file(&added, folder, "added_tokens.json", err));
    json_t *listed = added ? NULL : json_object_get(config, "added_tokens_decoder");
    json_object_foreach(added, key, value) compare_token(t, folder, key);
    json_object_foreach(listed, key, value) compare_token(t, folder, gr_json_str(value, "content"));
    if (!added && !listed) GR_TRY(load_file(&whole, folder, "tokenizer.json", err));
    json_array_foreach(json_object_get(whole, "added_tokens"), i, value) compare_token(t, folder, gr_json_str(value, "content"));
    value = json_object_get(config, "eos_token");
    const char *eos = json_is_object(value) ? gr_json_str(value, "content") : json_string_value(value);
    if (eos && t->info.eos >= 0 && strcmp(eos, t->pieces[t->info.eos].text) != 0)
        gr_warn("%s: its eos_token is \"%.60s\", that of the base \"%.60s\": the base's is taken", folder, eos,
                t->pieces[t->info.eos].text);
done:
    json_decref(config);
    json_decref(added);
    json_decref(whole);
    return st;
}

static graft_status check_sides(const gr_tokenizer *t, int32_t first, int32_t last, const char *folder, graft_error *err) {
    bool bos = t->info.add_bos && first >= 0 && first != t->info.bos;
    if (!bos && !(t->info.add_eos && last >= 0 && last != t->info.eos)) return GRAFT_OK;
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "%s: tokenizer.json's post_processor adds \"%.60s\" %s a text, tokenizer_config.json's %s is \"%.60s\": they "
                   "must be one token, or %s be false",
                   folder, t->pieces[bos ? first : last].text, bos ? "before" : "after", bos ? "bos_token" : "eos_token",
                   t->pieces[bos ? t->info.bos : t->info.eos].text, bos ? "add_bos_token" : "add_eos_token");
}

/* add_bos_token (add_eos_token), on which a tokenizer.json's post_processor has a word, too: adds. */
static bool read_side(const json_t *config, const char *key, bool adds, int32_t id, bool json, const char *folder) {
    bool flag = gr_json_flag(config, key, adds) && id >= 0;
    if (json && flag != adds)
        gr_warn("%s: tokenizer_config.json's %s is %s, which is taken, while tokenizer.json's post_processor adds %s token; "
                "transformers 5.24 takes the latter",
                folder, key, flag ? "true" : "false", adds ? "that" : "no such");
    return flag;
}

graft_status gr_tokenizer_read_config(gr_tokenizer *t, const char *folder, bool json, graft_error *err) {
    json_t *config = NULL, *map = NULL, *added = NULL, *named = NULL;
    graft_status st;
    int32_t first = t->info.add_bos ? t->info.bos : -1, last = t->info.add_eos ? t->info.eos : -1; /* by the post_processor */
    GR_TRY(load_file(&map, folder, "special_tokens_map.json", err));
    GR_TRY(load_file(&config, folder, "tokenizer_config.json", err));
    GR_TRY(load_file(&added, folder, "added_tokens.json", err));
    GR_TRY(merge_names(&named, config, map, folder, err));
    read_special(t, named, "bos_token", &t->info.bos);
    read_special(t, named, "eos_token", &t->info.eos);
    read_special(t, named, "pad_token", &t->info.pad);
    read_special(t, named, "unk_token", &t->info.unk);
    check_special(t, named, folder);
    const json_t *decoder = json_object_get(config, "added_tokens_decoder");
    GR_TRY(check_added(t, decoder ? decoder : added, folder, err));
    if (gr_json_flag(config, "split_special_tokens", false))
        gr_warn("%s: split_special_tokens is left out of account: control tokens in a template or a plain text are made tokens, "
                "while transformers spells them out",
                folder);
    t->info.add_bos = read_side(config, "add_bos_token", t->info.add_bos, t->info.bos, json, folder);
    t->info.add_eos = read_side(config, "add_eos_token", t->info.add_eos, t->info.eos, json, folder);
    GR_TRY(check_sides(t, first, last, folder, err));
    GR_TRY(read_template(t, folder, config, err));
    t->info.folder = gr_arena_strdup(&t->arena, folder);
    if (!t->info.folder) GR_TRY(gr_fail_memory(err, "tokenizer"));
done:
    json_decref(config);
    json_decref(map);
    json_decref(added);
    json_decref(named);
    return st;
}
