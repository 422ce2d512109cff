/* The maker of word problems, and exact match. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>
#include <xxhash.h>

#include "core/data/maker.h"
#include "peft/evaluate.h"

static char *make(const char *language, int64_t n, uint64_t seed, int low, int high, size_t *size) {
    graft_error err = {0};
    char *text = NULL;
    FILE *out = open_memstream(&text, size);
    gr_school_math_options o = {n, seed, language, low, high};
    if (gr_make_school_math(&o, out, &err) != GRAFT_OK) fail_msg("%s", err.msg);
    fclose(out);
    return text;
}

static void check_problem(const char *line, int low, int high) {
    json_error_t e;
    json_t *root = json_loads(line, 0, &e);
    assert_non_null(root);
    const char *question = json_string_value(json_object_get(root, "instruction"));
    const char *s = json_string_value(json_object_get(root, "output"));
    assert_non_null(question);
    assert_null(strpbrk(question, "{}"));
    assert_string_equal(json_string_value(json_object_get(root, "input")), "");
    int steps = 0, a, b, c = -1, n, answer;
    for (char op; sscanf(s, "%d %c %d = %d\n%n", &a, &op, &b, &c, &n) == 4; s += n, steps++) {
        assert_int_equal(c, op == '+' ? a + b : op == '-' ? a - b : op == '*' ? a * b : a / b);
        if (op == '/') assert_int_equal(a % b, 0);
        assert_in_range(c, 1, 200);
    }
    assert_in_range(steps, low, high);
    assert_int_equal(sscanf(s, "#### %d%n", &answer, &n), 1);
    assert_int_equal(answer, c);
    assert_int_equal(s[n], '\0');
    json_decref(root);
}

static int compare_lines(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void test_maker(void **state) {
    (void)state;
    static const struct {
        const char *language;
        int low, high;
    } cases[] = {{"en", 1, 1}, {"en", 2, 2}, {"en", 3, 3}, {"zh", 1, 1}, {"zh", 2, 2}, {"zh", 3, 3}, {"both", 1, 3}, {"en", 1, 2}};
    enum { N = 3000 };
    char **lines = gr_calloc(N, sizeof *lines);
    for (int i = 0; i < GR_LEN(cases); i++) {
        size_t size, again;
        char *text = make(cases[i].language, N, 1, cases[i].low, cases[i].high, &size);
        char *same = make(cases[i].language, N, 1, cases[i].low, cases[i].high, &again);
        assert_int_equal(size, again);
        assert_memory_equal(text, same, size);
        free(same);
        same = make(cases[i].language, N, 2, cases[i].low, cases[i].high, &again);
        assert_true(size != again || memcmp(text, same, size) != 0);
        free(same);
        int n = 0;
        for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
            check_problem(line, cases[i].low, cases[i].high);
            lines[n++] = line;
        }
        assert_int_equal(n, N);
        qsort(lines, N, sizeof *lines, compare_lines);
        for (n = 1; n < N; n++) assert_string_not_equal(lines[n - 1], lines[n]);
        free(text);
    }
    free(lines);
    graft_error err;
    gr_school_math_options bad[] = {
        {0, 1, "en", 1, 1}, {1, 1, "fr", 1, 1}, {1, 1, "en", 2, 1}, {1, 1, "en", 1, 4}, {1, 1, NULL, 1, 1}};
    for (int i = 0; i < GR_LEN(bad); i++) assert_int_equal(gr_make_school_math(&bad[i], stderr, &err), GRAFT_BAD_USAGE);
    FILE *full = fopen("/dev/full", "w");
    setvbuf(full, NULL, _IONBF, 0);
    assert_int_equal(gr_make_school_math(&(gr_school_math_options){10, 1, "en", 1, 1}, full, &err), GRAFT_FAILED);
    fclose(full);
}

static void test_maker_is_portable(void **state) {
    (void)state;
    size_t size; /* the same bytes on any machine: a change of the tables must change this number knowingly */
    char *text = make("both", 1000, 42, 1, 3, &size);
    assert_int_equal(XXH3_64bits(text, size), 0x7a94ed9851f469e7u);
    free(text);
}

static void test_exact_match(void **state) {
    static const struct {
        const char *prediction, *reference;
        bool equal;
    } cases[] = {
        {"3 + 4 = 7\n#### 7", "#### 7", true},
        {"#### 7 apples", "work\n#### 7", true},
        {"#### 8", "#### 7", false},
        {"7", "#### 7", false},
        {"#### ", "#### 7", false},
        {"####7", "#### 7", true},
        {"####\n7\nand 8 more", "#### 7", true},
        {"#### 3\n#### 7", "#### 7", true},
        {"#### $1,234.50", "#### 1234.5", true},
        {"#### 1,234", "#### 1234", true},
        {"#### 70,000.00", "#### 70000", true},
        {"#### 007", "#### 7", true},
        {"#### 7.", "#### 7", true},
        {"#### -7", "#### 7", false},
        {"#### -7", "#### -7", true},
        {"#### $-7", "#### -$7", true},
        {"#### -0", "#### 0", true},
        {"#### 3 + 4 = 7", "#### 7", true},
        {"#### 100", "#### 1", false},
        {"#### 12345678901234567890", "#### 12345678901234567891", false},
        {" yes\n", "yes", true},
        {"Yes", "yes", false},
        {"", "", true},
        {"#### no", "#### no", true},
    };
    (void)state;
    for (int i = 0; i < GR_LEN(cases); i++)
        if (gr_exact_match(cases[i].prediction, cases[i].reference) != cases[i].equal)
            fail_msg("exact_match(\"%s\", \"%s\") is wrong", cases[i].prediction, cases[i].reference);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_maker),
        cmocka_unit_test(test_maker_is_portable),
        cmocka_unit_test(test_exact_match),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
