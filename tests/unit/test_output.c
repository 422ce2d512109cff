/* What may be written, and the mark of graft's folders. The commands' side of it is in e2e/outputs.sh. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/output.h"

static char folder[] = "/tmp/graft-output-XXXXXX";

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) && chdir(folder) == 0 && mkdir("a", 0777) == 0 && mkdir("a/b", 0777) == 0 &&
                   symlink("a/b", "link") == 0 && gr_file_write("a/f", "x", 1, NULL) == GRAFT_OK
               ? 0
               : -1;
}

static int remove_folder(void **state) {
    (void)state;
    gr_remove_all(folder);
    return 0;
}

static void paths(void **state) {
    static const struct {
        const char *path, *from, *way;
    } ways[] = {{"a/f", "a", "f"},   {"a/f", "a/b", "../f"}, {"a", "a/b", ".."},
                {"a/b", "a/b", "."}, {"a/b", ".", "a/b"},    {"a/f", "link", "../f"}};
    (void)state;
    for (int i = 0; i < GR_LEN(ways); i++) {
        char *way = gr_path_relative(ways[i].path, ways[i].from);
        assert_non_null(way);
        while (gr_ends_with(way, "/")) way[strlen(way) - 1] = '\0';
        assert_string_equal(way, ways[i].way);
        free(way);
    }
    assert_null(gr_path_relative("nowhere", "a"));
    char *whole = gr_path_absolute("./a/f"), *expected = gr_path_join(folder, "a/f");
    assert_string_equal(whole, expected);
    free(whole);
    free(expected);
    assert_true(gr_path_within("a/b", "a") && gr_path_within("link", "a") && gr_path_within("a", "a/") &&
                gr_path_within("a/b/../new", "a"));
    assert_false(gr_path_within("a", "a/b") || gr_path_within("ab", "a") || gr_path_within("a/../new", "a"));
}

static void check(graft_status expected, const char *words, gr_output o) {
    graft_error err = {0};
    graft_status st = gr_output_check(&o, &err);
    if (st != expected || !strstr(err.msg, words)) fail_msg("%s: %d, \"%s\", expected \"%s\"", o.path, (int)st, err.msg, words);
}

static void outputs(void **state) {
    const char *const inputs[] = {"a/f", NULL, "a/b", "nowhere"};
    (void)state;
#define READS .inputs = inputs, .n_inputs = GR_LEN(inputs)
    check(GRAFT_OK, "", (gr_output){"new", .folder = true, READS});
    check(GRAFT_OK, "", (gr_output){"a/b/new", READS});
    check(GRAFT_OK, "", (gr_output){"/dev/null", READS});
    check(GRAFT_OK, "", (gr_output){"/dev/stdout", READS});
    check(GRAFT_BAD_USAGE, "a/f is an input", (gr_output){"a/f", .overwrite = true, READS});
    check(GRAFT_BAD_USAGE, "an input", (gr_output){"./a/../a/f", .overwrite = true, READS});
    check(GRAFT_BAD_USAGE, "link", (gr_output){"link", .folder = true, .overwrite = true, READS});
    check(GRAFT_BAD_USAGE, "contains a/f", (gr_output){"a", .folder = true, .overwrite = true, READS});
    check(GRAFT_BAD_USAGE, "exists already", (gr_output){.path = "a/f"});
    check(GRAFT_OK, "", (gr_output){"a/f", .overwrite = true});
    check(GRAFT_BAD_USAGE, "is a file", (gr_output){"a/f", .folder = true, .overwrite = true});
    check(GRAFT_BAD_USAGE, "is a folder", (gr_output){"a", .overwrite = true});
    check(GRAFT_BAD_USAGE, "no model or adapter that graft wrote", (gr_output){"a", .folder = true, .overwrite = true});
    check(GRAFT_OK, "", (gr_output){"a/b", .folder = true}); /* empty */
    check(GRAFT_BAD_USAGE, "empty name", (gr_output){.path = ""});
}

static void marks(void **state) {
    graft_error err = {0};
    char *tmp;
    (void)state;
    for (int round = 0; round < 2; round++) { /* the second replaces the first */
        assert_int_equal(gr_dir_begin(&tmp, "piece", round > 0, &err), GRAFT_OK);
        char *path = gr_path_join(tmp, round ? "new" : "old");
        assert_int_equal(gr_file_write(path, "graft's", 7, &err), GRAFT_OK);
        assert_int_equal(gr_dir_commit(tmp, "piece", round > 0, &err), GRAFT_OK);
        free(path);
        free(tmp);
        if (round == 0) assert_int_equal(gr_file_write("piece/mine", "x", 1, &err), GRAFT_OK);
    }
    assert_true(gr_is_marked("piece", "folder"));
    assert_false(gr_is_marked("piece", "run") || gr_is_marked("a", "folder"));
    assert_true(gr_exists("piece/new") && gr_exists("piece/mine"));
    assert_false(gr_exists("piece/old"));
    gr_remove_piece("piece");
    assert_true(gr_exists("piece/mine"));
    assert_false(gr_exists("piece/new") || gr_exists("piece/" GR_MARK_FILE));
    unlink("piece/mine");
    gr_remove_piece("piece");
    assert_false(gr_exists("piece"));
}

/* Folders and files without end, each in the place of the one before. */
static void *write_on(void *none) {
    graft_error err = {0};
    for (;;) {
        char *tmp, *path;
        if (gr_dir_begin(&tmp, "ended", true, &err) != GRAFT_OK || !(path = gr_path_join(tmp, "f"))) return none;
        if (gr_file_write(path, "graft's", 7, &err) != GRAFT_OK || gr_dir_commit(tmp, "ended", true, &err) != GRAFT_OK) return none;
        if (gr_file_write("ended.f", "graft's", 7, &err) != GRAFT_OK) return none;
        free(path);
        free(tmp);
    }
}

/* What a signal to a process does, at many moments: nothing is left but what is whole. */
static void ended(void **state) {
    (void)state;
    for (int round = 0; round < 300; round++) {
        if (gr_exists("ended")) assert_int_equal(gr_file_write("ended/mine", "x", 1, NULL), GRAFT_OK);
        const bool mine = gr_exists("ended/mine");
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            pthread_t thread;
            if (pthread_create(&thread, NULL, write_on, NULL) != 0) _exit(1);
            usleep((useconds_t)(round * 17 % 3000));
            gr_unfinished_remove();
            usleep(300); /* in which nothing new is made */
            _exit(0);
        }
        int code;
        assert_int_equal(waitpid(child, &code, 0), child);
        assert_int_equal(code, 0);
        DIR *dir = opendir(".");
        assert_non_null(dir);
        for (struct dirent *e; (e = readdir(dir));) assert_null(strstr(e->d_name, ".tmp-"));
        closedir(dir);
        assert_true(!mine || gr_exists("ended/mine"));
        assert_true(!gr_exists("ended") || (gr_is_marked("ended", "folder") && gr_exists("ended/f")));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(paths), cmocka_unit_test(outputs), cmocka_unit_test(marks),
                                       cmocka_unit_test(ended)};
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
