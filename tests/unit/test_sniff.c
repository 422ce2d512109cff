/* What a file is by its first bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/sniff.h"

static void test_kinds(void **state) {
    static const struct {
        const char *bytes;
        int len; /* 0: a text */
        gr_kind kind;
        const char *what; /* a part of it */
    } cases[] = {
        {"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", 0, GR_KIND_FOREIGN, "git-LFS pointer"},
        {"\n  <!DOCTYPE HTML><html>", 0, GR_KIND_FOREIGN, "HTML"},
        {"\xEF\xBB\xBF<html lang=en>", 0, GR_KIND_FOREIGN, "HTML"},
        {"<?xml version=\"1.0\"?><Error>", 0, GR_KIND_FOREIGN, "XML"},
        {"PAR1\x15\x04", 0, GR_KIND_FOREIGN, "Parquet"},
        {"ARROW1\0\0", 8, GR_KIND_FOREIGN, "Arrow file"},
        {"\xFF\xFF\xFF\xFF\x10\0\0\0", 8, GR_KIND_FOREIGN, "Arrow stream"},
        {"\x1F\x8B\x08\0", 4, GR_KIND_GZIP, "gzip"},
        {"PK\x03\x04\x14\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05\0\0\0a.txt", 35, GR_KIND_FOREIGN, "zip archive"},
        {"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\x12\0archive/data.pklFB", 48, GR_KIND_FOREIGN,
         "PyTorch"},
        {"PK\x03\x04\x14\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x13\0\0\0[Content_Types].xml", 49, GR_KIND_FOREIGN, "office"},
        {"\x80\x02\x8A\x0Al\xFC\x9C", 7, GR_KIND_FOREIGN, "PyTorch"},
        {"\x80\x04\x95\x10\0\0\0", 7, GR_KIND_FOREIGN, "a Python pickle"},
        {"\x80\x02]q\0}q\1X", 8, GR_KIND_FOREIGN, "a Python pickle"},
        {"\xFD"
         "7zXZ\0",
         6, GR_KIND_FOREIGN, "xz"},
        {"]\0\0\x80\0\xFF\xFF\xFF\xFF", 9, GR_KIND_FOREIGN, "lzma"},
        {"x\x9C\xAB\x56\xCA\x4D\x2D\x2E\x4E\x4C\x4F\x2D\x56\xB2\x8A\x06\x72", 17, GR_KIND_FOREIGN, "zlib"},
        {"\x28\xB5\x2F\xFD\x04", 5, GR_KIND_FOREIGN, "zstd"},
        {"GGUF\x03\0\0\0", 8, GR_KIND_GGUF, "GGUF"},
        {"\x20\0\0\0\0\0\0\0{\"a\"", 12, GR_KIND_SAFETENSORS, "safetensors"},
        {"\x1F\x8B\0\0\0\0\0\0{\"", 10, GR_KIND_SAFETENSORS, "safetensors"},
        {"\x80\x02\0\0\0\0\0\0{\"", 10, GR_KIND_SAFETENSORS, "safetensors"},
        {"\x89HDF\r\n\x1A\n", 0, GR_KIND_HDF5, "HDF5"},
        {"graft-h5", 0, GR_KIND_HDF5, "graft"},
        {"\xFF\xFE{\0", 4, GR_KIND_UTF16, "UTF-16"},
        {"{\0\"\0t\0e\0", 8, GR_KIND_UTF16, "UTF-16"},
        {"\0{\0\"\0t\0e", 8, GR_KIND_UTF16, "UTF-16"},
        {"\xFF\xFE\0\0{\0\0\0", 8, GR_KIND_UTF16, "UTF-32"},
        {"\0\0\xFE\xFF\0\0\0{", 8, GR_KIND_UTF16, "UTF-32"},
        {"{\0\0\0\"\0\0\0", 8, GR_KIND_UTF16, "UTF-32"},
        {"\0\0\0{\0\0\0\"", 8, GR_KIND_UTF16, "UTF-32"},
        /* none of them */
        {"x\xDA\xA4\xCA\xC7 y\r\n", 9, GR_KIND_UNKNOWN, NULL}, /* GBK */
        {"x\x9C", 2, GR_KIND_UNKNOWN, NULL},
        {"", 0, GR_KIND_UNKNOWN, NULL},
        {"P", 0, GR_KIND_UNKNOWN, NULL},
        {"{\"text\": \"<html>\"}", 0, GR_KIND_UNKNOWN, NULL},
        {"version https://example.com", 0, GR_KIND_UNKNOWN, NULL},
        {"<|im_start|>", 0, GR_KIND_UNKNOWN, NULL},
        {"\x0A\x0E\x0A\x05<unk>\x15\0\0\0\0\x18\x02", 16, GR_KIND_UNKNOWN, NULL},
        {"\xE4\xBD\xA0\xE5\xA5\xBD", 0, GR_KIND_UNKNOWN, NULL},
    };
    (void)state;
    for (int i = 0; i < GR_LEN(cases); i++) {
        const char *what;
        char copy[64]; /* of exactly these bytes, for the sanitizers */
        int64_t n = cases[i].len ? cases[i].len : (int64_t)strlen(cases[i].bytes);
        memcpy(copy + sizeof copy - n, cases[i].bytes, (size_t)n);
        gr_kind kind = gr_sniff(copy + sizeof copy - n, n, &what);
        if (kind != cases[i].kind || !what != !cases[i].what || (what && !strstr(what, cases[i].what)))
            fail_msg("case %d: kind %d, %s", i, (int)kind, what ? what : "(none)");
    }
    char tar[512] = "name";
    memcpy(tar + 257, "ustar", 5);
    assert_int_equal(gr_sniff(tar, sizeof tar, NULL), GR_KIND_FOREIGN);
}

static void test_expected(void **state) {
    graft_error err = {0};
    (void)state;
    assert_int_equal(gr_expect_kind("GGUF\3", 5, GR_KIND_GGUF, "a GGUF file", "m.gguf", &err), GRAFT_OK);
    assert_int_equal(gr_expect_kind("\1\2\3", 3, GR_KIND_GGUF, "a GGUF file", "m.gguf", &err), GRAFT_OK); /* its reader says more */
    assert_int_equal(gr_expect_kind("GGUF\3", 5, GR_KIND_SAFETENSORS, "a safetensors file", "m.st", &err), GRAFT_BAD_INPUT);
    assert_string_equal(err.msg, "m.st: is a GGUF file (expected a safetensors file)");
    assert_int_equal(gr_expect_kind("Entry not found\n", 16, GR_KIND_GGUF, "a GGUF file", "m.gguf", &err), GRAFT_BAD_INPUT);
    assert_string_equal(err.msg, "m.gguf: expected a GGUF file, found text: \"Entry not found\"");
    assert_int_equal(gr_expect_kind("GGUF\3", 5, GR_KIND_UNKNOWN, NULL, "c.json", &err), GRAFT_BAD_INPUT);
    assert_string_equal(err.msg, "c.json: is a GGUF file");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kinds), cmocka_unit_test(test_expected)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
