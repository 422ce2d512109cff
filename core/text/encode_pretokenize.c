/* Pre-tokenizers: where a text is cut into words before BPE. Each rule is a known regular expression, matched
 * by hand: its alternatives are tried in order at each place, and together they cover every character. */
#include <string.h>

#include "core/text/encode.h"

static const struct {
    gr_word_rule rule;
    const char *regex;
} REGEXES[] = {
    {GR_WORDS_GPT2, "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {GR_WORDS_GPT2, "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {GR_WORDS_LLAMA3, "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
                      "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {GR_WORDS_QWEN2, "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
                     "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
};

gr_word_rule gr_word_rule_from_regex(const char *regex) {
    for (int i = 0; i < GR_LEN(REGEXES); i++)
        if (strcmp(regex, REGEXES[i].regex) == 0) return REGEXES[i].rule;
    return GR_WORDS_NONE;
}

const char *gr_word_rule_regex(gr_word_rule rule) {
    for (int i = 0; i < GR_LEN(REGEXES); i++)
        if (REGEXES[i].rule == rule) return REGEXES[i].regex;
    return NULL;
}

/* Names in GGUF files and what llama.cpp takes each for (llama-vocab.cpp); of equal rows the first is the one that graft writes. */
typedef struct pretok_name {
    const char *name;
    gr_word_rule words;
    bool digits, nfc, ignore_merges;
    bool add_bos; /* where the file does not say */
} pretok_name;
static const pretok_name NAMES[] = {
    {"smollm", GR_WORDS_GPT2, true, false, false, false},
    {"starcoder", GR_WORDS_GPT2, true, false, false, false},
    {"refact", GR_WORDS_GPT2, true, false, false, false},
    {"command-r", GR_WORDS_GPT2, true, false, false, false},
    {"codeshell", GR_WORDS_GPT2, true, false, false, false},
    {"exaone", GR_WORDS_GPT2, true, false, false, false},
    {"minerva-7b", GR_WORDS_GPT2, true, false, false, false},
    {"gpt-2", GR_WORDS_GPT2, false, false, false, false},
    {"phi-2", GR_WORDS_GPT2, false, false, false, false},
    {"mpt", GR_WORDS_GPT2, false, false, false, false},
    {"olmo", GR_WORDS_GPT2, false, false, false, false},
    {"jais", GR_WORDS_GPT2, false, false, false, false},
    {"gigachat", GR_WORDS_GPT2, false, false, false, false},
    {"a.x-4.0", GR_WORDS_GPT2, false, false, false, false},
    {"mellum", GR_WORDS_GPT2, false, false, false, false},
    {"exaone4", GR_WORDS_GPT2, false, false, false, false},
    {"trillion", GR_WORDS_GPT2, false, false, false, false},
    {"llama-bpe", GR_WORDS_LLAMA3, false, false, true, true},
    {"llama3", GR_WORDS_LLAMA3, false, false, true, true},
    {"llama-v3", GR_WORDS_LLAMA3, false, false, true, true},
    {"falcon3", GR_WORDS_LLAMA3, false, false, true, true},
    {"falcon-h1", GR_WORDS_LLAMA3, false, false, true, true},
    {"pixtral", GR_WORDS_LLAMA3, false, false, true, true},
    {"midm-2.0", GR_WORDS_LLAMA3, false, false, true, true},
    {"lfm2", GR_WORDS_LLAMA3, false, false, true, true},
    {"smaug-bpe", GR_WORDS_LLAMA3, false, false, false, false},
    {"dbrx", GR_WORDS_LLAMA3, false, false, false, false},
    {"glm4", GR_WORDS_LLAMA3, false, false, false, false},
    {"chatglm-bpe", GR_WORDS_LLAMA3, false, false, false, false},
    {"qwen2", GR_WORDS_QWEN2, false, true, false, false},
    {"deepseek-r1-qwen", GR_WORDS_QWEN2, false, false, false, false},
    {"stablelm2", GR_WORDS_QWEN2, false, false, false, false},
    {"megrez", GR_WORDS_QWEN2, false, false, false, false},
    {"hunyuan", GR_WORDS_QWEN2, false, false, false, false},
    {"kormo", GR_WORDS_QWEN2, false, false, false, false},
    {"grok-2", GR_WORDS_QWEN2, false, false, false, false},
    {GR_PRETOK_DEFAULT, GR_WORDS_DEFAULT, false, false, false, false},
};

bool gr_pretok_from_name(gr_tokenizer *t, const char *name) {
    for (int i = 0; i < GR_LEN(NAMES); i++) {
        if (strcmp(name, NAMES[i].name) != 0) continue;
        t->words = NAMES[i].words;
        t->split_digits = NAMES[i].digits;
        t->info.ignore_merges = NAMES[i].ignore_merges;
        t->info.add_bos = NAMES[i].add_bos;
        if (NAMES[i].nfc) t->norm[t->n_norm++] = (gr_norm_step){.kind = GR_NORM_NFC};
        t->info.pre = NAMES[i].name;
        return true;
    }
    return false;
}

const char *gr_pretok_name(const gr_tokenizer *t) {
    bool nfc = t->n_norm == 1 && t->norm[0].kind == GR_NORM_NFC;
    if (t->prefix_space || t->split_whitespace || (t->n_norm > 0 && !nfc)) return "";
    for (int i = 0; i < GR_LEN(NAMES); i++) {
        const pretok_name *n = &NAMES[i];
        if (t->words == n->words && t->split_digits == n->digits && nfc == n->nfc && t->info.ignore_merges == n->ignore_merges)
            return n->name;
    }
    return "";
}

char *gr_pretok_known(void) {
    gr_str list = {0};
    for (int i = 0; i < GR_LEN(NAMES); i++) gr_str_printf(&list, "%s%s", i ? ", " : "", NAMES[i].name);
    return gr_str_take(&list);
}

typedef struct span {
    const gr_tokenizer *t;
    const char *s;
    int64_t n;
} span;

/* Not inline, so that class_at is. */
static uint8_t wide_class(const span *x, int64_t i, int *size) { return gr_class_at(x->t, x->s + i, x->n - i, size); }

/* Class of the character at i and its size; at the end of the text class 0 and size 0. */
static inline uint8_t class_at(const span *x, int64_t i, int *size) {
    *size = i < x->n;
    if (i >= x->n) return 0;
    if ((uint8_t)x->s[i] < 0x80) return x->t->classes[(uint8_t)x->s[i]];
    return wide_class(x, i, size);
}

enum { KINDS = GR_CLASS_LETTER | GR_CLASS_NUMBER | GR_CLASS_SPACE };

/* End of the run from i of characters whose letter/number/space bits equal want (0: none of them). */
static int64_t run(const span *x, int64_t i, uint8_t want) {
    int size;
    for (; want == GR_CLASS_LETTER && i + 8 <= x->n; i += 8) { /* ASCII letters by the eight */
        uint64_t others = ~gr_bytes_between(gr_read8(x->s + i) | GR_EIGHT * 0x20, 'a', 'z') & GR_EIGHT * 0x80;
        if (!others) continue;
        i += __builtin_ctzll(others) / 8;
        break;
    }
    while (i < x->n && (class_at(x, i, &size) & KINDS) == want) i += size;
    return i;
}

/* 's 't 'm 'd 're 've 'll after the apostrophe at 0; folded: in any case, long s (U+017F) included. 0 when none is there. */
static int64_t contraction(const span *x, bool folded) {
    if (x->n < 2 || x->s[0] != '\'') return 0;
    char a = x->s[1], b = x->n > 2 ? x->s[2] : '\0';
    if (folded && a == '\xc5' && b == '\xbf') return 3;
    if (folded && a >= 'A' && a <= 'Z') a = (char)(a + 32);
    if (folded && b >= 'A' && b <= 'Z') b = (char)(b + 32);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    return 0;
}

/* \s+(?!\S)|\s+ : a run of spaces leaves its last one to the word that follows. */
static int64_t spaces(const span *x) {
    int64_t i = 0, last = 0;
    int size;
    while (class_at(x, i, &size) & GR_CLASS_SPACE) {
        last = i;
        i += size;
    }
    return i == x->n || last == 0 ? i : last;
}

static int64_t gpt2_word(const span *x) {
    int64_t n = contraction(x, false);
    if (n) return n;
    int64_t i = x->s[0] == ' ' && x->n > 1;
    int size;
    uint8_t kind = class_at(x, i, &size) & KINDS;
    if (!(kind & GR_CLASS_SPACE)) return run(x, i + size, kind);
    return spaces(x);
}

static int64_t llama3_word(const span *x, int max_digits) {
    int64_t n = contraction(x, true);
    if (n) return n;
    int size, next_size;
    uint8_t kind = class_at(x, 0, &size) & KINDS;
    if (kind & GR_CLASS_LETTER) return run(x, size, GR_CLASS_LETTER);
    if (kind & GR_CLASS_NUMBER) {
        int64_t i = size;
        for (int k = 1; k < max_digits && class_at(x, i, &next_size) & GR_CLASS_NUMBER; k++) i += next_size;
        return i;
    }
    uint8_t next = class_at(x, size, &next_size) & KINDS;
    if (x->s[0] != '\r' && x->s[0] != '\n' && next & GR_CLASS_LETTER) return run(x, size, GR_CLASS_LETTER);
    if (!kind || (x->s[0] == ' ' && next_size > 0 && !next)) {
        int64_t i = run(x, size, 0);
        while (i < x->n && (x->s[i] == '\r' || x->s[i] == '\n')) i++;
        return i;
    }
    int64_t end = run(x, 0, GR_CLASS_SPACE);
    for (int64_t i = end; i > 0; i--)
        if (x->s[i - 1] == '\r' || x->s[i - 1] == '\n') return i;
    return spaces(x);
}

/* What llama.cpp makes of a GGUF without a name: four expressions one after the other cut at runs of
 * punctuation, then as GPT-2, then at runs of numbers, then at three ASCII digits. */
static bool is_mark(const span *x, int64_t i, int *size) {
    uint8_t kind = class_at(x, i, size);
    return *size > 0 && (kind & GR_CLASS_PUNCT || (x->s[i] && strchr("$+<=>^~|", x->s[i])));
}

static int64_t default_number(const span *x) {
    int size;
    for (int64_t i = 0;; i += size) {
        bool three = i + 3 <= x->n && strspn(x->s + i, "0123456789") >= 3;
        if (three) return i ? i : 3;
        if (!(class_at(x, i, &size) & GR_CLASS_NUMBER)) return i;
    }
}

static int64_t default_word(const span *x) {
    int size, next;
    int64_t i = 0;
    while (is_mark(x, i, &size)) i += size;
    if (i > 0) return i;
    uint8_t kind = class_at(x, 0, &size) & KINDS;
    if (x->s[0] == ' ' && x->n > 1) { /* a space goes before letters and other characters, not before these */
        uint8_t after = class_at(x, 1, &next) & KINDS;
        if (is_mark(x, 1, &next) || after & GR_CLASS_NUMBER) return 1;
        if (!(after & GR_CLASS_SPACE)) i = 1, kind = after;
    }
    if (kind & GR_CLASS_LETTER) return run(x, i, GR_CLASS_LETTER);
    if (kind & GR_CLASS_NUMBER) return default_number(x);
    if (kind & GR_CLASS_SPACE) {
        i = run(x, 0, GR_CLASS_SPACE);
        return is_mark(x, i, &next) ? i : spaces(x);
    }
    while (class_at(x, i, &size), size > 0 && !(class_at(x, i, &size) & KINDS) && !is_mark(x, i, &next)) i += size;
    return i;
}

int64_t gr_word_length(const gr_tokenizer *t, const char *text, int64_t len) {
    span x = {t, text, len};
    switch (t->words) {
    case GR_WORDS_GPT2: return gpt2_word(&x);
    case GR_WORDS_LLAMA3: return llama3_word(&x, 3);
    case GR_WORDS_QWEN2: return llama3_word(&x, 1);
    case GR_WORDS_DEFAULT: return default_word(&x);
    default: return len;
    }
}
