/* Recognises what a tokenizer.json's pipeline says (format: HF tokenizers' serialisation) and sets the tokenizer accordingly. */
#include <stdlib.h>
#include <string.h>

#include "core/text/encode.h"
#include "core/text/read.h"

const char *gr_json_str(const json_t *object, const char *key) { return json_string_value(json_object_get(object, key)); }

bool gr_json_flag(const json_t *object, const char *key, bool fallback) {
    const json_t *value = json_object_get(object, key);
    return json_is_boolean(value) ? json_is_true(value) : fallback;
}

typedef graft_status section_reader(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err);

static bool is_type(const json_t *j, const char *type) {
    const char *name = gr_json_str(j, "type");
    return name && strcmp(name, type) == 0;
}

static graft_status unknown(const json_t *j, const char *section, const char *path, graft_error *err) {
    char *text = json_dumps(j, JSON_COMPACT | JSON_ENCODE_ANY);
    graft_status st =
        gr_fail(err, GRAFT_BAD_INPUT, "%s: the %s %.160s is of a kind that graft does not know", path, section, text ? text : "");
    free(text);
    return st;
}

/* The parts of a Sequence one after the other. */
static graft_status read_sequence(gr_tokenizer *t, const json_t *j, const char *list, section_reader *read, const char *path,
                                  graft_error *err) {
    const json_t *parts = json_object_get(j, list), *part;
    size_t i;
    json_array_foreach(parts, i, part) {
        if (is_type(part, "Sequence")) return unknown(part, "nested", path, err);
        graft_status st = read(t, part, path, err);
        if (st != GRAFT_OK) return st;
    }
    return GRAFT_OK;
}

static bool copy_string(gr_tokenizer *t, const char **out, const char *s) { return (*out = gr_arena_strdup(&t->arena, s)) != NULL; }

/* ---- normalizer ---- */

static int base64_digit(char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

static graft_status read_charsmap(gr_tokenizer *t, const char *base64, const char *path, graft_error *err) {
    gr_str blob = {0};
    uint32_t bits = 0;
    int n_bits = 0;
    for (const char *s = base64; *s && *s != '='; s++) {
        int digit = base64_digit(*s);
        if (digit < 0) {
            gr_str_release(&blob);
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: the precompiled character map is no base64", path);
        }
        bits = bits << 6 | (uint32_t)digit;
        if ((n_bits += 6) >= 8) gr_str_putc(&blob, (char)(bits >> (n_bits -= 8)));
    }
    graft_status st = blob.failed ? gr_fail_memory(err, "character map") : gr_charsmap_set(t, blob.data, blob.len, path, err);
    gr_str_release(&blob);
    return st;
}

static graft_status add_step(gr_tokenizer *t, gr_norm_step step, const char *path, graft_error *err) {
    if (t->n_norm == GR_LEN(t->norm)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: the normalizer has too many steps", path);
    t->norm[t->n_norm++] = step;
    return GRAFT_OK;
}

static graft_status read_replace(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err) {
    const json_t *pattern = json_object_get(j, "pattern");
    const char *from = gr_json_str(pattern, "String"), *regex = gr_json_str(pattern, "Regex"), *to = gr_json_str(j, "content");
    gr_norm_step step = {.kind = GR_NORM_REPLACE};
    if (!to || (!from && !regex) || (from && !*from)) return unknown(j, "normalizer", path, err);
    if (regex && strcmp(regex, " {2,}") != 0) return unknown(j, "normalizer", path, err);
    if (regex) step.kind = GR_NORM_SPACE_RUNS;
    if (!copy_string(t, &step.to, to) || (from && !copy_string(t, &step.from, from))) return gr_fail_memory(err, "normalizer");
    return add_step(t, step, path, err);
}

graft_status gr_json_normalizer(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err) {
    static const struct {
        const char *type;
        gr_norm_kind kind;
    } forms[] = {{"NFC", GR_NORM_NFC}, {"NFD", GR_NORM_NFD}, {"NFKC", GR_NORM_NFKC}, {"NFKD", GR_NORM_NFKD}};
    if (!j || json_is_null(j)) return GRAFT_OK;
    for (int i = 0; i < GR_LEN(forms); i++)
        if (is_type(j, forms[i].type)) return add_step(t, (gr_norm_step){.kind = forms[i].kind}, path, err);
    if (is_type(j, "Sequence")) return read_sequence(t, j, "normalizers", gr_json_normalizer, path, err);
    if (is_type(j, "Replace")) return read_replace(t, j, path, err);
    if (is_type(j, "Prepend") && gr_json_str(j, "prepend")) {
        gr_norm_step step = {.kind = GR_NORM_PREPEND};
        if (!copy_string(t, &step.to, gr_json_str(j, "prepend"))) return gr_fail_memory(err, "normalizer");
        t->info.add_space_prefix = true;
        return add_step(t, step, path, err);
    }
    if (is_type(j, "Strip")) {
        graft_status st = GRAFT_OK;
        if (gr_json_flag(j, "strip_left", true)) st = add_step(t, (gr_norm_step){.kind = GR_NORM_STRIP_LEFT}, path, err);
        if (st == GRAFT_OK && gr_json_flag(j, "strip_right", true))
            st = add_step(t, (gr_norm_step){.kind = GR_NORM_STRIP_RIGHT}, path, err);
        return st;
    }
    if (is_type(j, "Precompiled")) {
        const char *map = gr_json_str(j, "precompiled_charsmap");
        if (!map || !*map) return GRAFT_OK;
        graft_status st = read_charsmap(t, map, path, err);
        return st != GRAFT_OK ? st : add_step(t, (gr_norm_step){.kind = GR_NORM_CHARSMAP}, path, err);
    }
    return unknown(j, "normalizer", path, err);
}

/* ---- pre_tokenizer ---- */

static bool normalizer_drops_spaces(const gr_tokenizer *t) {
    for (int i = 0; i < t->n_norm; i++)
        if (t->norm[i].kind == GR_NORM_REPLACE && strcmp(t->norm[i].from, " ") == 0 && !strchr(t->norm[i].to, ' ')) {
            bool again = false; /* a later step may bring spaces */
            for (int k = i + 1; k < t->n_norm; k++) again |= t->norm[k].to && strchr(t->norm[k].to, ' ');
            for (int k = i + 1; k < t->n_norm; k++) again |= t->norm[k].kind == GR_NORM_NFKC || t->norm[k].kind == GR_NORM_NFKD;
            return !again;
        }
    return false;
}

static graft_status read_split(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err) {
    const json_t *pattern = json_object_get(j, "pattern");
    const char *regex = gr_json_str(pattern, "Regex"), *literal = gr_json_str(pattern, "String");
    const char *behavior = gr_json_str(j, "behavior");
    bool invert = gr_json_flag(j, "invert", false);
    if (literal && strcmp(literal, " ") == 0 && normalizer_drops_spaces(t))
        return GRAFT_OK; /* Gemma: no space is left to split at */
    bool keeps_matches = behavior && strcmp(behavior, invert ? "Removed" : "Isolated") == 0;
    gr_word_rule rule = regex ? gr_word_rule_from_regex(regex) : GR_WORDS_NONE;
    if (rule == GR_WORDS_NONE || !keeps_matches || t->words != GR_WORDS_NONE) return unknown(j, "pre_tokenizer", path, err);
    t->words = rule;
    return GRAFT_OK;
}

/* "always" | "first" | "never", or the older add_prefix_space. */
static gr_prepend prepend_scheme(const json_t *j) {
    const char *scheme = gr_json_str(j, "prepend_scheme");
    if (!scheme) return gr_json_flag(j, "add_prefix_space", true) ? GR_PREPEND_ALWAYS : GR_PREPEND_NEVER;
    return strcmp(scheme, "never") == 0 ? GR_PREPEND_NEVER : strcmp(scheme, "first") == 0 ? GR_PREPEND_FIRST : GR_PREPEND_ALWAYS;
}

static bool is_meta_space(const json_t *j) {
    const char *replacement = gr_json_str(j, "replacement"), *scheme = gr_json_str(j, "prepend_scheme");
    bool known = !scheme || strcmp(scheme, "never") == 0 || strcmp(scheme, "first") == 0 || strcmp(scheme, "always") == 0;
    return is_type(j, "Metaspace") && known && replacement && strcmp(replacement, GR_META_SPACE) == 0;
}

graft_status gr_json_pre_tokenizer(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err) {
    if (!j || json_is_null(j)) return GRAFT_OK;
    if (is_type(j, "Sequence")) return read_sequence(t, j, "pretokenizers", gr_json_pre_tokenizer, path, err);
    if (t->byte_level || t->meta_spaces) return unknown(j, "pre_tokenizer (after ByteLevel or Metaspace)", path, err);
    if (is_type(j, "ByteLevel")) {
        bool regex = gr_json_flag(j, "use_regex", true), prefix = gr_json_flag(j, "add_prefix_space", true);
        if ((regex || prefix) && t->words != GR_WORDS_NONE) return unknown(j, "pre_tokenizer (after Split)", path, err);
        t->byte_level = true;
        t->prefix_space = prefix;
        if (regex) t->words = GR_WORDS_GPT2;
        return GRAFT_OK;
    }
    if (is_type(j, "Digits") && gr_json_flag(j, "individual_digits", false) && t->words == GR_WORDS_NONE) {
        t->split_digits = true;
        return GRAFT_OK;
    }
    if (is_type(j, "Split")) return read_split(t, j, path, err);
    if (is_type(j, "WhitespaceSplit") && t->words == GR_WORDS_NONE) {
        t->split_whitespace = true;
        return GRAFT_OK;
    }
    if (is_meta_space(j)) {
        t->meta_spaces = true;
        t->meta_split = gr_json_flag(j, "split", true);
        t->meta_prepend = prepend_scheme(j);
        t->info.add_space_prefix = t->meta_prepend != GR_PREPEND_NEVER;
        return GRAFT_OK;
    }
    return unknown(j, "pre_tokenizer", path, err);
}

/* ---- decoder ---- */

graft_status gr_json_decoder(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err) {
    if (!j || json_is_null(j)) return GRAFT_OK;
    if (is_type(j, "Sequence")) return read_sequence(t, j, "decoders", gr_json_decoder, path, err);
    if (is_type(j, "ByteLevel") || is_type(j, "ByteFallback") || is_type(j, "Fuse")) return GRAFT_OK;
    if (is_meta_space(j)) {
        if (prepend_scheme(j) != GR_PREPEND_NEVER) t->lead = GR_LEAD_DROP_FIRST_PIECE;
        return GRAFT_OK;
    }
    if (is_type(j, "Replace")) {
        const char *from = gr_json_str(json_object_get(j, "pattern"), "String"), *to = gr_json_str(j, "content");
        if (from && to && strcmp(from, GR_META_SPACE) == 0 && strcmp(to, " ") == 0) return GRAFT_OK;
    }
    const char *content = gr_json_str(j, "content");
    if (is_type(j, "Strip") && content && strcmp(content, " ") == 0 && json_integer_value(json_object_get(j, "start")) == 1 &&
        json_integer_value(json_object_get(j, "stop")) == 0) {
        t->lead = GR_LEAD_DROP_ONE;
        return GRAFT_OK;
    }
    return unknown(j, "decoder", path, err);
}

/* ---- post_processor ---- */

/* The id of a template's special token, -1 when it is not named properly. */
static int32_t template_id(const json_t *j, const json_t *special) {
    const char *name = gr_json_str(special, "id");
    const json_t *entry = name ? json_object_get(json_object_get(j, "special_tokens"), name) : NULL;
    const json_t *ids = json_object_get(entry, "ids"), *id = json_array_get(ids, 0);
    return json_array_size(ids) == 1 && json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < INT32_MAX
               ? (int32_t)json_integer_value(id)
               : -1;
}

graft_status gr_json_post_processor(gr_tokenizer *t, const json_t *j, const char *path, graft_error *err) {
    if (!j || json_is_null(j) || is_type(j, "ByteLevel")) return GRAFT_OK;
    if (is_type(j, "Sequence")) return read_sequence(t, j, "processors", gr_json_post_processor, path, err);
    if (!is_type(j, "TemplateProcessing")) return unknown(j, "post_processor", path, err);
    const json_t *part;
    size_t i;
    bool after = false, one = !t->info.add_bos && !t->info.add_eos;
    json_array_foreach(json_object_get(j, "single"), i, part) {
        const json_t *special = json_object_get(part, "SpecialToken");
        if (json_object_get(part, "Sequence")) one &= !after, after = true;
        if (!special) continue;
        int32_t id = template_id(j, special), *slot = after ? &t->info.eos : &t->info.bos;
        bool *added = after ? &t->info.add_eos : &t->info.add_bos;
        if (id < 0 || *added) return unknown(part, "post_processor (more than one token on a side)", path, err);
        *slot = id;
        *added = true;
    }
    return one && after ? GRAFT_OK : unknown(j, "post_processor", path, err);
}
