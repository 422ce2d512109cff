/* Learning a vocabulary: pieces against the slow way by the book, on top of other tokenizers, whatever the threads; limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/text/learn.h"
#include "core/text/read.h"
#include "core/text/write_spm.h"
#include "core/text/scripts.h"
#include "kernels/threads.h"
#include "assert_ok.h"

static const gr_learn_options plain = {.size = 60, .coverage = 1, .max_length = 16, .min_count = 2};

/* Words of few letters, so that counts are equal often and letters follow themselves; not the same twice. */
static char *make_text(uint64_t seed, int n_words, bool digits) {
    static const char *const letters[] = {"a", "a", "a", "b", "b", "c", "\xe4\xb8\xad", "\xe6\x96\x87"};
    gr_str s = {0};
    for (int i = 0; i < n_words; i++) {
        uint64_t x = (seed = seed * 6364136223846793005u + 1442695040888963407u) >> 33;
        bool wide = x % 3 == 0;
        gr_str_puts(&s, i ? i % 17 ? " " : "\n" : "");
        if (digits && x % 5 == 0) gr_str_printf(&s, "%d", (int)(x % 100));
        else
            for (uint64_t k = 0, n = 1 + x % 7; k < n; k++, x = x * 2862933555777941757u + 3037000493u)
                gr_str_puts(&s, letters[wide ? 6 + (x >> 40) % 2 : (x >> 40) % 6]);
    }
    return gr_str_take(&s);
}

static graft_status learn(gr_learned *out, const gr_tokenizer *base, const gr_learn_options *o, const char *text, int n_threads) {
    gr_learner *l;
    gr_threads *threads = gr_threads_new(n_threads);
    assert_ok(gr_learner_new(&l, base, o, n_threads, &err));
    int64_t len = (int64_t)strlen(text), parts = 0;
    for (int64_t at = 0, end; at < len; at = end, parts++) { /* lines, to one worker or another */
        const char *newline = strchr(text + at, '\n');
        end = newline ? newline - text + 1 : len;
        assert_ok(gr_learner_add(l, (int)(parts % n_threads), text + at, end - at, &err));
    }
    graft_status st = gr_learner_run(l, threads, out, &err);
    gr_learner_free(l);
    gr_threads_free(threads);
    return st;
}

static void start(gr_vocab *v, bool spm) {
    gr_vocab_start o = {.spm = spm};
    assert_ok(gr_vocab_start_new(v, &o, &err));
}

/* ---- by the book ---- */

enum { WORDS = 4000, TOKENS = 64, PIECES = 400 };
typedef struct book {
    char pieces[PIECES][64]; /* letters or bytes, then what is learned */
    int n_pieces, n_words;
    struct {
        int tokens[TOKENS], n;
    } words[WORDS];
} book;

static int find(const book *b, const char *text) {
    for (int i = 0; i < b->n_pieces; i++)
        if (strcmp(b->pieces[i], text) == 0) return i;
    return -1;
}

static void add_letter(book *b, const char *s, int size) {
    char letter[5] = "";
    memcpy(letter, s, (size_t)size);
    int id = find(b, letter);
    if (id < 0) strcpy(b->pieces[id = b->n_pieces++], letter);
    b->words[b->n_words].tokens[b->words[b->n_words].n++] = id;
}

/* spm: words begin with U+2581 and are of characters; else with the space and of bytes. */
static void read_book(book *b, const char *text, bool spm) {
    bool first = true;
    for (const char *s = text; *s; s++) {
        if (first && spm) add_letter(b, "\xe2\x96\x81", 3);
        first = false;
        if (*s == ' ' || *s == '\n') {
            b->n_words++;
            first = *s == '\n';
            if (!first) spm ? add_letter(b, "\xe2\x96\x81", 3) : add_letter(b, " ", 1);
            continue;
        }
        int size = spm && (uint8_t)*s >= 0x80 ? 3 : 1;
        add_letter(b, s, size);
        s += size - 1;
    }
    b->n_words++;
}

static bool book_allows(const char *text) {
    static const char *const wide[] = {"\xe4\xb8\xad", "\xe6\x96\x87"};
    return gr_utf8_valid(text, (int64_t)strlen(text)) || (strlen(text) == 2 && (strstr(wide[0], text) || strstr(wide[1], text)));
}

static int count_pair(const book *b, int left, int right) {
    int n = 0;
    for (int w = 0; w < b->n_words; w++)
        for (int i = 0; i + 1 < b->words[w].n; i++)
            if (b->words[w].tokens[i] == left && b->words[w].tokens[i + 1] == right) n++, i++;
    return n;
}

/* Merges the best pair; false where none is left. */
static bool book_step(book *b, int min_count) {
    int best[2] = {-1, -1}, most = 0;
    char best_text[130] = "", text[130];
    for (int left = 0; left < b->n_pieces; left++)
        for (int right = 0; right < b->n_pieces; right++) {
            int n = count_pair(b, left, right);
            if (n < min_count) continue;
            snprintf(text, sizeof text, "%s%s", b->pieces[left], b->pieces[right]);
            if (find(b, text) >= 0 || !book_allows(text)) continue;
            int order = n != most ? n - most : (int)strlen(best_text) - (int)strlen(text);
            if (!order) order = strcmp(best_text, text);
            if (!order) order = (int)strlen(b->pieces[best[0]]) - (int)strlen(b->pieces[left]);
            if (order <= 0) continue;
            best[0] = left, best[1] = right, most = n;
            strcpy(best_text, text);
        }
    if (most == 0) return false;
    for (int w = 0; w < b->n_words; w++) {
        int n = 0, *t = b->words[w].tokens;
        for (int i = 0; i < b->words[w].n; i++) {
            bool merge = i + 1 < b->words[w].n && t[i] == best[0] && t[i + 1] == best[1];
            t[n++] = merge ? b->n_pieces : t[i];
            i += merge;
        }
        b->words[w].n = n;
    }
    strcpy(b->pieces[b->n_pieces++], best_text);
    return true;
}

static void check_book(bool spm, uint64_t seed) {
    book *b = gr_calloc(1, sizeof *b);
    gr_vocab v;
    gr_learned l;
    char *text = make_text(seed, 300, false);
    start(&v, spm);
    assert_ok(learn(&l, v.tokenizer, &plain, text, 2));
    read_book(b, text, spm);
    int letters = b->n_pieces;
    uint16_t to_point[256];
    gr_byte_alphabet(to_point);
    assert_int_equal(l.n, plain.size);
    assert_int_equal(l.n_characters, spm ? letters - 1 : 0); /* the space is there from the start */
    for (int64_t i = l.n_characters; i < l.n; i++) {
        gr_str wanted = {0};
        assert_true(book_step(b, 2));
        const char *piece = b->pieces[b->n_pieces - 1];
        char utf8[5] = "";
        for (const char *s = piece; *s; s++) {
            memset(utf8, 0, sizeof utf8);
            if (!spm) gr_utf8_encode(to_point[(uint8_t)*s], utf8);
            if (spm) gr_str_putc(&wanted, *s);
            else gr_str_puts(&wanted, utf8);
        }
        assert_string_equal(l.pieces[i].text, wanted.data);
        gr_str_release(&wanted);
    }
    int64_t after = 0;
    for (int w = 0; w < b->n_words; w++) after += b->words[w].n;
    if (spm) assert_int_equal(l.after, after); /* the words of bytes are not the book's at the ends of lines */
    gr_learned_release(&l);
    gr_vocab_release(&v);
    free(text);
    free(b);
}

static void test_by_the_book(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 3; seed++) check_book(true, seed);
    for (uint64_t seed = 1; seed <= 2; seed++) check_book(false, seed);
}

/* ---- files ---- */

static void read_back(gr_tokenizer **t, const gr_vocab *v, const gr_learned *l) {
    char *bytes;
    int64_t n;
    assert_ok(gr_vocab_with(v, l, &bytes, &n, &err));
    assert_ok(v->spm ? gr_tokenizer_parse_spm(t, bytes, n, "V", &err) : gr_tokenizer_parse_json(t, bytes, n, "V", &err));
    if (v->spm) { /* what it says last of its size is so */
        gr_str size = {0};
        gr_spm_put_size(&size, gr_tokenizer_get_info(*t)->n_vocab);
        assert_true(n > size.len);
        assert_memory_equal(bytes + n - size.len, size.data, (size_t)size.len);
        gr_str_release(&size);
    }
    free(bytes);
}

static int64_t count_tokens(const gr_tokenizer *t, const char *text, bool by_lines) {
    gr_ids ids = {0};
    int64_t len = (int64_t)strlen(text);
    for (int64_t at = 0, end; at < len; at = end + 1) {
        const char *newline = strchr(text + at, '\n');
        end = newline ? newline - text : len;
        int64_t n = end - at + (!by_lines && newline);
        assert_ok(gr_tokenizer_encode(t, text + at, n, false, &ids, &err));
    }
    int64_t n = ids.n;
    gr_ids_release(&ids);
    return n;
}

/* What was counted is what the written vocabulary makes of the text. */
static void test_written(void **state) {
    (void)state;
    char *text = make_text(7, 600, true);
    for (int spm = 0; spm < 2; spm++) {
        gr_vocab v;
        gr_learned l;
        gr_tokenizer *t;
        start(&v, spm);
        assert_ok(learn(&l, v.tokenizer, &plain, text, 1));
        read_back(&t, &v, &l);
        assert_int_equal(gr_tokenizer_get_info(t)->n_vocab, l.first_id + l.n);
        assert_int_equal(count_tokens(t, text, spm), l.after);
        assert_true(l.after < l.before);
        if (!spm) assert_int_equal(count_tokens(v.tokenizer, text, false), l.before);
        for (int64_t i = 0; i < l.n; i++) assert_int_equal(gr_tokenizer_find(t, l.pieces[i].text), l.first_id + i);
        gr_tokenizer_free(t);
        gr_learned_release(&l);
        gr_vocab_release(&v);
    }
    free(text);
}

static void test_threads(void **state) {
    (void)state;
    char *text = make_text(11, 2000, true);
    for (int spm = 0; spm < 2; spm++) {
        char *bytes[3];
        int64_t n[3];
        for (int k = 0; k < 3; k++) {
            gr_vocab v;
            gr_learned l;
            start(&v, spm);
            assert_ok(learn(&l, v.tokenizer, &plain, text, k + 1));
            assert_ok(gr_vocab_with(&v, &l, &bytes[k], &n[k], &err));
            gr_learned_release(&l);
            gr_vocab_release(&v);
        }
        for (int k = 1; k < 3; k++) {
            assert_int_equal(n[k], n[0]);
            assert_memory_equal(bytes[k], bytes[0], (size_t)n[0]);
        }
        for (int k = 0; k < 3; k++) free(bytes[k]);
    }
    free(text);
}

/* On top of other tokenizers: text without new pieces keeps its ids, the new ones come up as counted. */
static void test_on_top(void **state) {
    (void)state;
    static const char *const folders[] = {"smollm2", "gpt2", "llama3", "qwen2", "sp-bpe"};
    static const char before[] = "The River runs\n\n  42 times, don't it? \xc3\xa9t\xc3\xa9 <s> \xe2\x80\xa6";
    char *text = make_text(5, 500, true);
    for (int k = 0; k < GR_LEN(folders); k++) {
        char path[512];
        gr_tokenizer *base, *t;
        gr_vocab v;
        gr_learned l;
        gr_learn_options o = plain;
        gr_ids ids = {0}, old = {0};
        snprintf(path, sizeof path, TESTS_DIR "/golden/tokenizers/%s", folders[k]);
        assert_ok(gr_tokenizer_open(&base, path, &err));
        assert_ok(gr_vocab_of(&v, base, &err));
        o.size = 20;
        assert_ok(learn(&l, base, &o, text, 2));
        read_back(&t, &v, &l);
        assert_int_equal(gr_tokenizer_get_info(t)->n_vocab, gr_tokenizer_get_info(base)->n_vocab + 20);
        if (!v.spm) assert_int_equal(count_tokens(t, text, false), l.after);
        assert_true(count_tokens(t, text, v.spm) < count_tokens(base, text, v.spm));
        assert_ok(gr_tokenizer_encode(base, before, (int64_t)strlen(before), true, &old, &err));
        assert_ok(gr_tokenizer_encode(t, before, (int64_t)strlen(before), true, &ids, &err));
        assert_int_equal(ids.n, old.n);
        assert_memory_equal(ids.data, old.data, (size_t)ids.n * sizeof *ids.data);
        gr_ids_release(&ids);
        gr_ids_release(&old);
        gr_tokenizer_free(t);
        gr_learned_release(&l);
        gr_vocab_release(&v);
        gr_tokenizer_free(base);
    }
    gr_tokenizer *unigram;
    gr_learner *none;
    assert_ok(gr_tokenizer_open(&unigram, TESTS_DIR "/golden/tokenizers/sp-unigram", &err));
    assert_int_equal(gr_learner_new(&none, unigram, &plain, 1, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "unigram"));
    gr_tokenizer_free(unigram);
    free(text);
}

/* The character map that is made: wide forms, ligatures, marks, controls, spaces; words are then the same ones. */
/* Added tokens beside a tokenizer.model: new pieces come after those of tokenizer.json, and are refused where none has them. */
static void test_added(void **state) {
    (void)state;
    static const char *const from = TESTS_DIR "/golden/tokenizers/sp-bpe", *const file = "tokenizer.model";
    char folder[] = "/tmp/graft-learn-XXXXXX", *text = make_text(5, 500, true);
    assert_non_null(mkdtemp(folder));
    char *model = gr_path_join(folder, file), *json = gr_path_join(folder, "tokenizer.json"),
         *added = gr_path_join(folder, "added_tokens.json"), *source = gr_path_join(from, file),
         *source_json = gr_path_join(from, "tokenizer.json");
    gr_tokenizer *base, *t;
    gr_vocab v;
    gr_learned l;
    gr_learn_options o = plain;
    o.size = 20;
    assert_ok(gr_file_copy(source, model, &err));
    assert_ok(gr_file_write(added, "{\"<pad>\": 640}", 14, &err));
    assert_ok(gr_tokenizer_open(&base, folder, &err));
    assert_int_equal(gr_vocab_of(&v, base, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "<pad>"));
    gr_tokenizer_free(base);
    json_t *root = json_load_file(source_json, JSON_ALLOW_NUL, NULL);
    assert_non_null(root);
    json_array_append_new(json_object_get(root, "added_tokens"),
                          json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", 640, "content", "<pad>", "single_word", 0,
                                    "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1));
    assert_int_equal(json_dump_file(root, json, 0), 0);
    json_decref(root);
    assert_ok(gr_tokenizer_open(&base, folder, &err));
    assert_int_equal(gr_tokenizer_n_tokens(base), 641);
    assert_ok(gr_vocab_of(&v, base, &err));
    assert_ok(learn(&l, base, &o, text, 2));
    read_back(&t, &v, &l);
    assert_int_equal(gr_tokenizer_get_info(t)->n_vocab, 661);
    assert_int_equal(gr_tokenizer_find(t, "<pad>"), 640);
    for (int64_t i = 0; i < l.n; i++) {
        char *name = gr_format("%.*s", (int)l.pieces[i].len, l.pieces[i].text);
        assert_int_equal(gr_tokenizer_find(t, name), l.first_id + i);
        free(name);
    }
    gr_tokenizer_free(t);
    gr_learned_release(&l);
    gr_vocab_release(&v);
    gr_tokenizer_free(base);
    gr_remove_all(folder);
    free(model);
    free(json);
    free(added);
    free(source);
    free(source_json);
    free(text);
}

static void test_normalized(void **state) {
    (void)state;
    gr_vocab v;
    gr_vocab_start o = {.spm = true, .nfkc = true};
    gr_ids ids = {0}, plain_ids = {0};
    gr_str text = {0};
    static const char odd[] =
        "\xef\xbc\xa1\xef\xac\x81\x01  e\xcc\x81\xe3\x80\x80\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8 \xe2\x91\xa0\xef\xbd\x9e ";
    static const char even[] = "Afi \xc3\xa9 \xea\xb0\x81 1\xef\xbd\x9e";
    assert_ok(gr_vocab_start_new(&v, &o, &err));
    assert_ok(gr_tokenizer_encode(v.tokenizer, odd, (int64_t)strlen(odd), false, &ids, &err));
    assert_ok(gr_tokenizer_decode(v.tokenizer, ids.data, ids.n, true, &text, &err));
    assert_string_equal(text.data, even);
    gr_vocab_release(&v);
    o.nfkc = false;
    assert_ok(gr_vocab_start_new(&v, &o, &err));
    assert_ok(gr_tokenizer_encode(v.tokenizer, odd, (int64_t)strlen(odd), false, &plain_ids, &err));
    gr_str_clear(&text);
    assert_ok(gr_tokenizer_decode(v.tokenizer, plain_ids.data, plain_ids.n, true, &text, &err));
    assert_string_equal(text.data, odd);
    gr_ids_release(&ids);
    gr_ids_release(&plain_ids);
    gr_str_release(&text);
    gr_vocab_release(&v);
}

/* ---- options and limits ---- */

static void test_options(void **state) {
    (void)state;
    char *text = make_text(3, 800, true);
    for (int spm = 0; spm < 2; spm++) {
        gr_vocab v;
        gr_learned l;
        gr_learn_options o = plain;
        start(&v, spm);
        o.size = 24;
        assert_ok(gr_scripts_parse(&o.only, "cjk", &err));
        assert_ok(learn(&l, v.tokenizer, &o, text, 1));
        for (int64_t i = 0; i < l.n; i++) assert_null(strpbrk(l.pieces[i].text, "abc0123456789"));
        gr_learned_release(&l);
        o = plain;
        o.size = 30;
        o.split_digits = true;
        o.max_length = 3;
        assert_ok(learn(&l, v.tokenizer, &o, text, 1));
        for (int64_t i = 0; i < l.n; i++) {
            const char *digit = strpbrk(l.pieces[i].text, "0123456789");
            if (digit) assert_int_equal(l.pieces[i].len, 1);
            int n = 0;
            for (const char *s = l.pieces[i].text; *s; s++) n += ((uint8_t)*s & 0xC0) != 0x80;
            assert_true(n <= (spm ? 3 : 9)); /* a character is up to three of the alphabet */
        }
        gr_learned_release(&l);
        o = plain;
        o.min_count = 200; /* few pairs are that frequent */
        assert_int_equal(learn(&l, v.tokenizer, &o, text, 1), GRAFT_BAD_INPUT);
        assert_non_null(strstr(err.msg, "--min-count"));
        gr_vocab_release(&v);
    }
    uint64_t bits;
    assert_int_equal(gr_scripts_parse(&bits, "latin,klingon", &err), GRAFT_BAD_USAGE);
    assert_non_null(strstr(err.msg, "devanagari"));
    assert_int_equal(gr_script(0x4E2D), GR_SCRIPT_HAN);
    assert_int_equal(gr_script(0x30FC), GR_SCRIPT_HAN);
    assert_int_equal(gr_script(0xFF0C), GR_SCRIPT_CJK_SIGN);
    assert_int_equal(gr_script('x'), GR_SCRIPT_LATIN);
    assert_int_equal(gr_script('7'), GR_SCRIPT_COMMON);
    assert_int_equal(gr_script(0x301), GR_SCRIPT_INHERITED);
    free(text);
}

/* Of a name that is taken nothing is made; damaged or odd text is text. */
static void test_odd_text(void **state) {
    (void)state;
    static const char *const texts[] = {"", "x", "\n\n\n", "   ", "\xff\xfe", "\xe4", "\xcc\x81\xcc\x81", "<s><s><s><s>"};
    gr_str large = {0};
    for (int i = 0; i < 5000; i++) gr_str_puts(&large, "aab");
    for (int spm = 0; spm < 2; spm++)
        for (int i = 0; i <= GR_LEN(texts); i++) {
            gr_vocab v;
            gr_learned l;
            gr_learn_options o = plain;
            start(&v, spm);
            o.size = 1000;
            assert_int_equal(learn(&l, v.tokenizer, &o, i < GR_LEN(texts) ? texts[i] : large.data, 1), GRAFT_BAD_INPUT);
            assert_non_null(strstr(err.msg, i == 0 || (spm && i == 2) ? "empty" : "no more than"));
            o.size = 1;
            o.coverage = 1;
            graft_status st = learn(&l, v.tokenizer, &o, large.data, 1);
            if (spm) assert_int_equal(st, GRAFT_BAD_USAGE); /* two letters */
            else assert_int_equal(st, GRAFT_OK);
            if (!spm) assert_int_equal(l.pieces[0].len, 2);
            if (!spm) gr_learned_release(&l);
            gr_vocab_release(&v);
        }
    gr_str_release(&large);
    static const char *const taken[] = {"</s>"};
    gr_vocab v;
    gr_vocab_start o = {.spm = true, .special = taken, .n_special = 1};
    assert_int_equal(gr_vocab_start_new(&v, &o, &err), GRAFT_BAD_USAGE);
    assert_non_null(strstr(err.msg, "--special"));
}

int main(void) {
    gr_log_quiet(true);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_the_book), cmocka_unit_test(test_written),  cmocka_unit_test(test_threads),
        cmocka_unit_test(test_on_top),      cmocka_unit_test(test_added),    cmocka_unit_test(test_options),
        cmocka_unit_test(test_normalized),  cmocka_unit_test(test_odd_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
