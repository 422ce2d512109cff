/* Is a tokenizer that was written the one that it was made from? Both encode texts that are hard on tokenizers, the vocabulary
 * piece by piece, and the added tokens among other text. What differs is shown by an example, and not written. */
#include <stdlib.h>
#include <string.h>

#include "core/text/impl.h"

static const char *const TEXTS[] = {
    "The mill by the river turned all night, and nobody asked why.",
    "It's said they'd've gone; we're sure she'll come, I'm not, don't ask.",
    "IT'S LATE, WE'RE HERE, I'LL GO, THEY'VE SEEN IT, DON'T",
    "it\xe2\x80\x99s, don\xe2\x80\x99t, \xc5\xbf's '\xc5\xbf 'S 'Ll 'rE 'vE 'D 'x ' 's' ''t",
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
    "\xef\xbc\x91\xef\xbc\x92\xef\xbc\x93 \xd9\xa1\xd9\xa2\xd9\xa3 \xe0\xa5\xa7\xe0\xa5\xa8 \xc2\xbd \xc2\xb2\xc2\xb3 \xe2\x85\xa7 "
    "\xe2\x91\xa0 \xe3\x89\x88",
    "!",
    "?!?! ... -- --- ===== >>>> <<<< :: ;; ,, ##",
    "(a) [b] {c} <d> \"e\" 'f' `g` |h| /i/ \\j\\ *k* _l_ ~m~ @n #o $p %q ^r &s",
    "word,word;word:word.word!word?word-word_word/word\\word|word",
    "a , b ; c : d . e ! f ? g - h _ i",
    "\xe2\x80\x9cquoted\xe2\x80\x9d \xe2\x80\x98single\xe2\x80\x99 \xc2\xabguillemets\xc2\xbb \xe2\x80\x93 \xe2\x80\x94 "
    "\xe2\x80\xa6 \xe2\x80\xa2 \xc2\xb7 \xc2\xa7 \xc2\xb6",
    "\xe2\x82\xac"
    "5, \xc2\xa3"
    "6, \xc2\xa5"
    "7, \xc2\xa9 \xc2\xae \xe2\x84\xa2 \xc2\xb0 \xc2\xb1 \xc3\x97 \xc3\xb7 "
    "\xe2\x89\xa0 \xe2\x89\xa4 \xe2\x88\x9a \xe2\x88\x91 \xe2\x86\x92",
    "Stra\xc3\x9f"
    "e, \xc3\x84rger, caf\xc3\xa9, na\xc3\xafve, \xc3\x98re, \xc5\x81\xc3\xb3"
    "d\xc5\xba, "
    "\xc4\xb0stanbul, \xc4\xb1\xc5\x9f\xc4\xb1k",
    "cafe\xcc\x81 u\xcc\x88"
    "ber n\xcc\x83 A\xcc\x8a o\xcc\x81\xcc\x82 s\xcc\x81 e\xcc\x81\xcc\x81",
    "\xe2\x84\xab \xe2\x84\xa6 \xef\xac\x81n \xef\xac\x82y \xc7\x86 \xef\xb7\xba \xe2\x85\xbb \xef\xbd\xb6\xef\xbe\x9e "
    "\xef\xbc\xa1\xef\xbd\x82\xef\xbd\x83 \xe3\x8e\x8f",
    "\xd0\x92 \xd0\xbb\xd0\xb5\xd1\x81\xd1\x83 \xd1\x82\xd0\xb8\xd1\x85\xd0\xbe, \xd1\x81\xd0\xbd\xd0\xb5\xd0\xb3 "
    "\xd0\xb8\xd0\xb4\xd1\x91\xd1\x82. \xd0\x99\xd0\xbe\xd0\xb4 \xd0\xb8\xcc\x86",
    "\xce\x97 \xce\xb8\xce\xac\xce\xbb\xce\xb1\xcf\x83\xcf\x83\xce\xb1 \xce\xb5\xce\xaf\xce\xbd\xce\xb1\xce\xb9 "
    "\xce\xbc\xcf\x80\xce\xbb\xce\xb5. \xe1\xbc\x80\xcf\x81\xcf\x87\xce\xae",
    "\xe6\xb2\xb3\xe8\xbe\xb9\xe7\x9a\x84\xe6\xb0\xb4\xe8\xbd\xa6\xe6\x95\xb4\xe5\xa4\x9c\xe8\xbd\xac\xe5\x8a\xa8\xef"
    "\xbc\x8c\xe6\xb2\xa1\xe6\x9c\x89\xe4\xba\xba\xe9\x97\xae\xe4\xb8\xba\xe4\xbb\x80\xe4\xb9\x88\xe3\x80\x82",
    "\xe6\x9c\x89"
    "3\xe5\x8f\xaa\xe7\x8c\xab\xe5\x92\x8c"
    "12\xe6\x9d\xa1\xe9\xb1\xbc\xef\xbc\x81 "
    "\xe4\xbd\xa0\xe5\xa5\xbd world \xe4\xb8\x96\xe7\x95\x8c\xe3\x80\x80\xe7\xa9\xba\xe6\xa0\xbc",
    "\xe5\xb7\x9d\xe3\x81\xae\xe6\xb0\xb4\xe8\xbb\x8a\xe3\x81\x8c\xe5\x9b\x9e\xe3\x82\x8b\xe3\x80\x82"
    "\xe3\x82\xab\xe3\x82\xbf\xe3\x82\xab\xe3\x83\x8a\xe3\x83\xbc \xe3\x81\x8b\xe3\x82\x99",
    "\xea\xb0\x95\xea\xb0\x80\xec\x97\x90 \xeb\xac\xbc\xeb\xa0\x88\xeb\xb0\xa9\xec\x95\x84\xea\xb0\x80 "
    "\xeb\x8f\x88\xeb\x8b\xa4. \xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8",
    "\xd8\xa7\xd9\x84\xd9\x86\xd9\x87\xd8\xb1 \xd9\x87\xd8\xa7\xd8\xaf\xd8\xa6\xd8\x8c "
    "\xd9\x81\xd9\x8e\xd9\x82\xd9\x8e\xd8\xaf\xd9\x92 \xd9\xa4\xd9\xa2",
    "\xd7\x94\xd7\xa0\xd7\x94\xd7\xa8 \xd7\xa9\xd7\xa7\xd7\x98. \xd7\xa9\xd7\x81\xd7\x9c\xd7\x95\xd6\xb9\xd7\x9d",
    "\xe0\xa4\xa8\xe0\xa4\xa6\xe0\xa5\x80 \xe0\xa4\xb6\xe0\xa4\xbe\xe0\xa4\x82\xe0\xa4\xa4 \xe0\xa4\xb9\xe0\xa5\x88\xe0\xa5\xa4 "
    "\xe0\xa4\x95\xe0\xa5\x8d\xe0\xa4\xb7 \xe0\xa4\xb9\xe0\xa4\xbf\xe0\xa4\x82",
    "\xe0\xb9\x81\xe0\xb8\xa1\xe0\xb9\x88\xe0\xb8\x99\xe0\xb9\x89\xe0\xb8\xb3\xe0\xb9\x80\xe0\xb8\x87\xe0\xb8"
    "\xb5\xe0\xb8"
    "\xa2\xe0\xb8\x9a \xe0\xb8\x81\xe0\xb8\xb3",
    "Vi\xe1\xbb\x87t Nam, ti\xe1\xba\xbfng Vi\xe1\xbb\x87t, Vie\xcc\xa3\xcc\x82t",
    "\xf0\x9f\x99\x82\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x91\xa7 \xf0\x9f\x91\x8d\xf0\x9f\x8f\xbd \xe2\x9d\xa4\xef\xb8\x8f "
    "\xf0\x9f\x87\xa9\xf0\x9f\x87\xaa!",
    "\xf0\x9d\x92\xb3 \xf0\xa0\x80\x80 \xf0\x90\x8d\x88 \xf0\x9f\x80\x84",
    "\xe2\x96\x81 \xe2\x96\x81\xe2\x96\x81x\xe2\x96\x81 y",
    "a\xc2\xa0"
    "b\xe2\x80\x89"
    "c\xe2\x80\xa8"
    "d\xe3\x80\x80"
    "e\xe1\x9a\x80"
    "f\xc2\x85g\xe2\x80\x8bh\xef\xbb\xbfi",
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
    "x\xcc\x81\xcc\x82\xcc\x83 \xcc\x81 \xcc\x81z",
};

/* Put side by side at random. */
static const char *const PARTS[] = {" ",
                                    "  ",
                                    "    ",
                                    "\n",
                                    "\n\n",
                                    "\r\n",
                                    "\t",
                                    "a",
                                    "the",
                                    " the",
                                    "The",
                                    " river",
                                    "'s",
                                    "'LL",
                                    "'",
                                    "7",
                                    "42",
                                    "123",
                                    "4567",
                                    ".",
                                    ",",
                                    "!",
                                    "?",
                                    "-",
                                    "_",
                                    "(",
                                    ")",
                                    "\"",
                                    "/",
                                    "=",
                                    "<",
                                    ">",
                                    "|",
                                    "+",
                                    "$",
                                    "#",
                                    "\xc3\xa9",
                                    "e\xcc\x81",
                                    "\xc3\x9f",
                                    "\xe6\xb0\xb4",
                                    "\xe3\x80\x82",
                                    "\xe3\x81\xae",
                                    "\xea\xb0\x95",
                                    "\xd0\xb8",
                                    "\xd9\x87",
                                    "\xe0\xa4\xbf",
                                    "\xe0\xb8\xb3",
                                    "\xf0\x9f\x99\x82",
                                    "\xe2\x80\x8d",
                                    "\xc2\xa0",
                                    "\xe3\x80\x80",
                                    "\xe2\x80\x99",
                                    "\xe2\x80\xa6",
                                    "\xc2\xbd",
                                    "\xef\xbc\x91",
                                    "\xef\xac\x81",
                                    "\xcc\x88",
                                    "\xe2\x96\x81",
                                    "ing",
                                    "Mill",
                                    "x",
                                    "X"};
enum { MIXTURES = 400 };

typedef struct proof {
    const gr_tokenizer *a, *b;
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
        if (x->n == y->n && (x->n == 0 || memcmp(x->data, y->data, (size_t)x->n * sizeof *x->data) == 0)) continue;
        char *example = shown(&p->text);
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

graft_status gr_tokenizer_prove(const gr_tokenizer *t, const gr_tokenizer *written, const char *form, graft_error *err) {
    proof p = {.a = t, .b = written, .form = form, .err = err};
    graft_status st;
    bool told[2] = {atomic_exchange(t->told_drops, true),
                    atomic_exchange(written->told_drops, true)}; /* these texts are nobody's */
    GR_TRY(compare_added(&p, t));
    GR_TRY(compare_added(&p, written));
    GR_TRY(compare_texts(&p));
    GR_TRY(compare_pieces(&p));
done:
    atomic_store(t->told_drops, told[0]);
    atomic_store(written->told_drops, told[1]);
    gr_ids_release(&p.ids[0]);
    gr_ids_release(&p.ids[1]);
    gr_str_release(&p.text);
    return st;
}
