/* Is a tokenizer that was written the one that it was made from? Both encode texts that are hard on tokenizers, the vocabulary
 * piece by piece, and the added tokens among other text. What differs is shown by an example, and not written. */
#include <stdlib.h>
#include <string.h>

#include "core/text/extend.h"
#include "core/text/impl.h"

static const char *const TEXTS[] = {
    "The mill by the river turned all night, and nobody asked why.",
    "It's said they'd've gone; we're sure she'll come, I'm not, don't ask.",
    "IT'S LATE, WE'RE HERE, I'LL GO, THEY'VE SEEN IT, DON'T",
    "it\u2019s, don\u2019t, \u017f's '\u017f 'S 'Ll 'rE 'vE 'D 'x ' 's' ''t",
    " one space before",
    "  two spaces before",
    "   three, and behind   ",
    "behind ",
    "in    between        many",
    " ",
    "  ",
    "    ",
    "                 ",
    "\n",
    "\n\n\n",
    "\r\n",
    "a\r\nb\r\n\r\nc\rd",
    "\t",
    "\t\tindented\n\t\t\tmore\n",
    "line one\nline two\n\n  line three\n    line four   \n\n\n",
    " \n \n  \n\n   x",
    "x \n",
    "0",
    "7 77 777 7777 77777 777777 7777777",
    "3.14159, 1,234,567.89, -40 C, +5%, 1e-10, 0x1F, 10^6, 1/2, 24:00",
    "2024-02-29T23:59:60Z, 192.168.0.1, +49 (0)30 123456, v1.2.3-rc4",
    "room101b 4x4 3rd 90s a1b2c3 1st2nd",
    "\uff11\uff12\uff13 \u0661\u0662\u0663 \u0967\u0968 \u00bd \u00b2\u00b3 \u2167 \u2460 \u3248",
    "!",
    "?!?! ... -- --- ===== >>>> <<<< :: ;; ,, ##",
    "(a) [b] {c} <d> \"e\" 'f' `g` |h| /i/ \\j\\ *k* _l_ ~m~ @n #o $p %q ^r &s",
    "word,word;word:word.word!word?word-word_word/word\\word|word",
    "a , b ; c : d . e ! f ? g - h _ i",
    "\u201cquoted\u201d \u2018single\u2019 \u00abguillemets\u00bb \u2013 \u2014 \u2026 \u2022 \u00b7 \u00a7 \u00b6",
    "\u20ac5, \u00a36, \u00a57, \u00a9 \u00ae \u2122 \u00b0 \u00b1 \u00d7 \u00f7 \u2260 \u2264 \u221a \u2211 \u2192",
    "Stra\u00dfe, \u00c4rger, caf\u00e9, na\u00efve, \u00d8re, \u0141\u00f3d\u017a, \u0130stanbul, \u0131\u015f\u0131k",
    "cafe\u0301 u\u0308ber n\u0303 A\u030a o\u0301\u0302 s\u0301 e\u0301\u0301",
    "\u212b \u2126 \ufb01n \ufb02y \u01c6 \ufdfa \u217b \uff76\uff9e \uff21\uff42\uff43 \u338f",
    "\u0412 \u043b\u0435\u0441\u0443 \u0442\u0438\u0445\u043e, \u0441\u043d\u0435\u0433 \u0438\u0434\u0451\u0442. "
    "\u0419\u043e\u0434 \u0438\u0306",
    "\u0397 \u03b8\u03ac\u03bb\u03b1\u03c3\u03c3\u03b1 \u03b5\u03af\u03bd\u03b1\u03b9 \u03bc\u03c0\u03bb\u03b5. "
    "\u1f00\u03c1\u03c7\u03ae",
    "\u6cb3\u8fb9\u7684\u6c34\u8f66\u6574\u591c\u8f6c\u52a8\uff0c\u6ca1\u6709\u4eba\u95ee\u4e3a\u4ec0\u4e48\u3002",
    "\u67093\u53ea\u732b\u548c12\u6761\u9c7c\uff01 \u4f60\u597d world \u4e16\u754c\u3000\u7a7a\u683c",
    "\u5ddd\u306e\u6c34\u8eca\u304c\u56de\u308b\u3002\u30ab\u30bf\u30ab\u30ca\u30fc \u304b\u3099",
    "\uac15\uac00\uc5d0 \ubb3c\ub808\ubc29\uc544\uac00 \ub3c8\ub2e4. \u1100\u1161\u11a8",
    "\u0627\u0644\u0646\u0647\u0631 \u0647\u0627\u062f\u0626\u060c \u0641\u064e\u0642\u064e\u062f\u0652 \u0664\u0662",
    "\u05d4\u05e0\u05d4\u05e8 \u05e9\u05e7\u05d8. \u05e9\u05c1\u05dc\u05d5\u05b9\u05dd",
    "\u0928\u0926\u0940 \u0936\u093e\u0902\u0924 \u0939\u0948\u0964 \u0915\u094d\u0937 \u0939\u093f\u0902",
    "\u0e41\u0e21\u0e48\u0e19\u0e49\u0e33\u0e40\u0e07\u0e35\u0e22\u0e1a \u0e01\u0e33",
    "Vi\u1ec7t Nam, ti\u1ebfng Vi\u1ec7t, Vie\u0323\u0302t",
    "\U0001f642\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \u2764\ufe0f \U0001f1e9\U0001f1ea!",
    "\U0001d4b3 \U00020000 \U00010348 \U0001f004",
    "\u2581 \u2581\u2581x\u2581 y",
    "a\u00a0b\u2009c\u2028d\u3000e\u1680f\xc2\x85g\u200bh\ufeffi",
    "\x01\x02 \x1b[0m \x7f",
    "{\"name\": \"x\", \"list\": [1, 2.50, null], \"deep\": {\"ok\": true}}",
    "def f(x):\n    if x > 0:\n        return x ** 2  # square\n    return -x\n",
    "int main(void) {\n\tfor (int i = 0; i < 10; ++i) sum += a[i] << 1;\n\treturn 0;\n}\n",
    "<p class=\"a\">text &amp; more</p><!-- note --><br/>",
    "https://example.org/a-b/c_d?e=f&g=%20h#i someone@example.org ./run --flag=\"v w\" $HOME/*.txt",
    "SELECT a.b, COUNT(*) FROM t WHERE x >= 10 AND y != 'z' GROUP BY a.b;",
    "$x^2 + y_{i,j} \\leq \\frac{1}{2}$ and \\alpha",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n- item\n  - inner\n1. one\n\n```c\nx;\n```\n",
    "camelCase PascalCase snake_case kebab-case UPPER_CASE mixed123Case",
    "Supercalifragilistic antidisestablishmentarianism Donaudampfschifffahrt",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "abababababababababababababababababababababababababababababab",
    "<s>a</s>[INST] b [/INST]<<SYS>>c<</SYS>>",
    "<|im_start|>user\nhello<|im_end|>\n<|begin_of_text|><|eot_id|> <unk> <pad> [MASK]",
    "A B C  d e f   g",
    "..a  ..b\n..c",
    "x\u0301\u0302\u0303 \u0301 \u0301z",
};

/* Put side by side at random. */
/* clang-format off */
static const char *const PARTS[] = {
    " ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "a", "the", " the", "The", " river", "'s", "'LL", "'", "7", "42", "123", "4567",
    ".", ",", "!", "?", "-", "_", "(", ")", "\"", "/", "=", "<", ">", "|", "+", "$", "#", "\u00e9", "e\u0301", "\u00df", "\u6c34",
    "\u3002", "\u306e", "\uac15", "\u0438", "\u0647", "\u093f", "\u0e33", "\U0001f642", "\u200d", "\u00a0", "\u3000", "\u2019",
    "\u2026", "\u00bd", "\uff11", "\ufb01", "\u0308", "\u2581", "ing", "Mill", "x", "X",
};
/* clang-format on */
enum { MIXTURES = 400 };

typedef struct proof {
    const gr_tokenizer *a, *b;
    bool extended; /* b is a with new pieces: where it gives one, the text counts */
    const char *form;
    gr_ids ids[2];
    gr_str text;
    graft_error *err;
} proof;

/* One line of a text for a message. */
static char *shown(const gr_str *text) {
    gr_str s = {0};
    for (int64_t i = 0; i < text->len && (s.len < 80 || ((uint8_t)text->data[i] & 0xC0) == 0x80); i++) {
        uint8_t c = (uint8_t)text->data[i];
        if (c == '\n') gr_str_puts(&s, "\\n");
        else if (c < 0x20 || c == 0x7F || c == '\\' || c == '"') gr_str_printf(&s, "\\x%02x", c);
        else gr_str_putc(&s, (char)c);
    }
    return gr_str_take(&s);
}

/* What of a tokenizer commonly has no place in other forms. */
static const char *peculiarity(const gr_tokenizer *t) {
    for (int32_t i = 0; i < t->n_added; i++) {
        const gr_added *a = &t->added[i];
        if (a->lstrip || a->rstrip) return "added tokens that take the space beside them (lstrip, rstrip)";
        if (a->single_word) return "added tokens that are words of their own (single_word)";
    }
    if (t->meta_spaces) return "where its Metaspace pre_tokenizer puts and cuts at spaces";
    for (int32_t i = 0; i < t->n_added; i++)
        if (t->added[i].normalized && t->n_norm > 0) return "added tokens looked for in normalized text";
    return t->n_norm > 0 ? "its normalizer" : "its settings";
}

static bool has_new(const gr_tokenizer *x, const gr_ids *ids) {
    for (int64_t i = 0; i < ids->n; i++)
        if (ids->data[i] >= x->first_new) return true;
    return false;
}

/* Do both lists of ids stand for the same text? */
static graft_status same_text(proof *p, bool *same) {
    gr_str texts[2] = {{0}, {0}};
    const gr_tokenizer *both[] = {p->a, p->b};
    graft_status st = GRAFT_OK;
    for (int k = 0; k < 2; k++) GR_TRY(gr_tokenizer_decode(both[k], p->ids[k].data, p->ids[k].n, false, &texts[k], p->err));
    *same = texts[0].len == texts[1].len && (texts[0].len == 0 || memcmp(texts[0].data, texts[1].data, (size_t)texts[0].len) == 0);
done:
    gr_str_release(&texts[0]);
    gr_str_release(&texts[1]);
    return st;
}

/* Do both make the same ids of p->text, control tokens parsed or not? */
static graft_status compare(proof *p) {
    for (int special = 0; special < 2; special++) {
        const gr_tokenizer *both[] = {p->a, p->b};
        if (p->text.failed) return gr_fail_memory(p->err, "a text");
        for (int k = 0; k < 2; k++) {
            p->ids[k].n = 0;
            graft_status st = gr_tokenizer_encode(both[k], p->text.data, p->text.len, special, &p->ids[k], p->err);
            if (st != GRAFT_OK) return st;
        }
        const gr_ids *x = &p->ids[0], *y = &p->ids[1];
        bool same = x->n == y->n && (x->n == 0 || memcmp(x->data, y->data, (size_t)x->n * sizeof *x->data) == 0);
        if (!same && p->extended && has_new(p->b, y)) {
            graft_status st = same_text(p, &same);
            if (st != GRAFT_OK) return st;
        }
        if (same) continue;
        char *example = shown(&p->text);
        if (p->extended) {
            graft_status st =
                gr_fail(p->err, GRAFT_FAILED, "\"%s\" would change though it has no new piece", example ? example : "a text");
            free(example);
            return st;
        }
        graft_status st = gr_fail(p->err, GRAFT_BAD_INPUT,
                                  "%s cannot hold this tokenizer: \"%s\" would become other ids than before (likely cause: %s)",
                                  p->form, example ? example : "a text", peculiarity(p->a));
        free(example);
        return st;
    }
    return GRAFT_OK;
}

static graft_status compare_text(proof *p, const char *a, const char *b, int64_t b_len, const char *c) {
    gr_str_clear(&p->text);
    gr_str_puts(&p->text, a);
    gr_str_add(&p->text, b, b_len);
    gr_str_puts(&p->text, c);
    return compare(p);
}

static graft_status compare_texts(proof *p) {
    graft_status st = GRAFT_OK;
    uint32_t random = 11;
    for (int i = 0; i < GR_LEN(TEXTS); i++) GR_TRY(compare_text(p, TEXTS[i], "", 0, ""));
    for (int i = 0; i < MIXTURES; i++) {
        gr_str_clear(&p->text);
        for (int k = 0; k < 4 + i % 20; k++) {
            random = random * 1664525u + 1013904223u;
            gr_str_puts(&p->text, PARTS[(random >> 8) % (uint32_t)GR_LEN(PARTS)]);
        }
        GR_TRY(compare(p));
    }
done:
    return st;
}

/* An added token stands alone, between spaces, inside a word, beside others. The names of byte pieces are no text. */
static graft_status compare_added(proof *p, const gr_tokenizer *t) {
    static const char *const around[][2] = {{"", ""},   {" ", " "}, {"x  ", "  y"}, {"a\n", "\n b"},
                                            {"x", "y"}, {"(", ")"}, {"7", "'s"}};
    graft_status st = GRAFT_OK;
    for (int32_t i = 0; i < t->n_added; i++) {
        const gr_added *a = &t->added[i];
        if (gr_is_byte_name(a->text, a->len) || a->id >= p->b->info.n_vocab) continue; /* left out: it has no row */
        for (int k = 0; k < GR_LEN(around); k++) GR_TRY(compare_text(p, around[k][0], a->text, a->len, around[k][1]));
    }
done:
    return st;
}

/* Every piece as text of its own and as the start of a word. */
static graft_status compare_pieces(proof *p) {
    graft_status st = GRAFT_OK;
    const gr_tokenizer *t = p->a;
    for (int64_t i = 0; i < t->info.n_vocab; i++) {
        const gr_piece *piece = &t->pieces[i];
        bool plain = piece->type == GR_PIECE_NORMAL || piece->type == GR_PIECE_USER;
        if (!plain || piece->raw_len == 0 || !gr_utf8_valid(piece->raw, piece->raw_len)) continue;
        gr_str_clear(&p->text);
        for (int32_t k = 0; k < piece->raw_len; k++) {
            bool space = !t->byte_level && k + 3 <= piece->raw_len && memcmp(piece->raw + k, GR_META_SPACE, 3) == 0;
            gr_str_putc(&p->text, space ? ' ' : piece->raw[k]);
            k += space ? 2 : 0;
        }
        GR_TRY(compare(p));
    }
done:
    return st;
}

static graft_status prove(proof *p) {
    graft_status st;
    bool told[2] = {atomic_exchange(p->a->told_drops, true),
                    atomic_exchange(p->b->told_drops, true)}; /* these texts are nobody's */
    GR_TRY(compare_added(p, p->a));
    GR_TRY(compare_added(p, p->b));
    GR_TRY(compare_texts(p));
    GR_TRY(compare_pieces(p));
done:
    atomic_store(p->a->told_drops, told[0]);
    atomic_store(p->b->told_drops, told[1]);
    return st;
}

static void release(proof *p) {
    gr_ids_release(&p->ids[0]);
    gr_ids_release(&p->ids[1]);
    gr_str_release(&p->text);
}

graft_status gr_tokenizer_prove(const gr_tokenizer *t, const gr_tokenizer *written, const char *form, graft_error *err) {
    proof p = {.a = t, .b = written, .form = form, .err = err};
    graft_status st = prove(&p);
    release(&p);
    return st;
}

graft_status gr_vocab_check(const gr_tokenizer *x, graft_error *err) {
    proof p = {.a = x->extends, .b = x, .extended = true, .err = err};
    graft_status st = prove(&p);
    release(&p);
    return st;
}

graft_status gr_vocab_check_text(const gr_tokenizer *x, const char *text, int64_t len, int64_t n_ids[2], graft_error *err) {
    proof p = {.a = x->extends, .b = x, .extended = true, .err = err};
    gr_str_add(&p.text, text, len);
    graft_status st = len > 0 ? compare(&p) : GRAFT_OK;
    for (int k = 0; k < 2 && n_ids && st == GRAFT_OK; k++) n_ids[k] += p.ids[k].n; /* with control tokens parsed */
    release(&p);
    return st;
}
