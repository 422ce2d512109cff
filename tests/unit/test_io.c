/* The files of core/base and core/io: round trips, and hostile files, each made from a good one by one
 * change. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/io/gguf.h"
#include "core/io/h5.h"
#include "core/io/safetensors.h"
#include "assert_ok.h"

static char dir[] = "/tmp/graft-io-XXXXXX";

static gr_arena arena;

static char *at(const char *name) { /* the path of a scratch file */
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return gr_arena_strdup(&arena, path);
}

static int make_dir(void **state) {
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int drop_dir(void **state) {
    (void)state;
    gr_remove_all(dir);
    gr_arena_release(&arena);
    return 0;
}

static void assert_error(graft_status status, graft_status expected, const graft_error *e, const char *part) {
    if (status != expected || e->status != expected || !strstr(e->msg, part))
        fail_msg("status %d, expected %d with \"%s\" in: %s", status, expected, part, e->msg);
}

static char *slurp(const char *path, int64_t *len) {
    char *data = NULL;
    assert_ok(gr_file_read_raw(&data, len, path, 1 << 24, &err));
    return data;
}

static int count_entries(const char *path) {
    char command[600];
    int n = -1;
    snprintf(command, sizeof command, "ls -A '%s' | wc -l", path);
    FILE *f = popen(command, "r");
    if (fscanf(f, "%d", &n) != 1) n = -1;
    pclose(f);
    return n;
}

/* ---- base ---- */

static void test_files(void **state) {
    (void)state;
    char *text = NULL;
    int64_t len = 0;
    gr_map map;
    assert_ok(gr_file_write(at("a"), "hello", 5, &err));
    assert_ok(gr_file_copy(at("a"), at("b"), &err));
    text = slurp(at("b"), &len);
    assert_string_equal(text, "hello");
    assert_int_equal(len, 5);
    free(text);
    assert_ok(gr_map_open(&map, at("b"), &err));
    assert_memory_equal(map.data, "hello", 5);
    gr_map_close(&map);
    assert_ok(gr_file_write(at("empty"), NULL, 0, &err));
    assert_ok(gr_map_open(&map, at("empty"), &err));
    assert_null(map.data);
    gr_map_close(&map);
    assert_error(gr_file_read(&text, &len, at("b"), 4, &err), GRAFT_BAD_INPUT, &err, at("b"));
    assert_error(gr_file_read(&text, &len, dir, 4, &err), GRAFT_BAD_INPUT, &err, dir);
    assert_error(gr_map_open(&map, dir, &err), GRAFT_BAD_INPUT, &err, "a folder");
    assert_error(gr_map_open(&map, at("none"), &err), GRAFT_BAD_INPUT, &err, "No such file");
    assert_error(gr_file_copy(at("none"), at("c"), &err), GRAFT_BAD_INPUT, &err, at("none"));
    assert_false(gr_exists(at("c")));
    assert_error(gr_file_write(at("no/such"), "x", 1, &err), GRAFT_FAILED, &err, at("no/such"));
    char *joined = gr_path_join("a/", "b");
    assert_string_equal(joined, "a/b");
    free(joined);
}

static void test_folders(void **state) {
    (void)state;
    char *tmp = NULL, *inner;
    assert_ok(gr_dir_begin(&tmp, at("deep/run/"), false, &err));
    inner = gr_path_join(tmp, "x");
    assert_ok(gr_file_write(inner, "1", 1, &err));
    free(inner);
    assert_false(gr_exists(at("deep/run")));
    assert_ok(gr_dir_commit(tmp, at("deep/run/"), false, &err));
    free(tmp);
    assert_true(gr_exists(at("deep/run/x")));
    assert_error(gr_dir_begin(&tmp, at("deep/run"), false, &err), GRAFT_BAD_USAGE, &err, at("deep/run"));
    assert_ok(gr_dir_begin(&tmp, at("deep/run"), true, &err));
    assert_ok(gr_dir_commit(tmp, at("deep/run"), true, &err));
    free(tmp);
    assert_false(gr_exists(at("deep/run/x")));
    gr_remove_all(at("deep/run")); /* what was committed holds a mark; an empty folder is free */
    assert_ok(gr_make_dirs(at("deep/run"), &err));
    assert_ok(gr_dir_begin(&tmp, at("deep/run"), false, &err));
    assert_ok(gr_dir_commit(tmp, at("deep/run"), false, &err));
    free(tmp);
    assert_int_equal(count_entries(at("deep")), 1);
    gr_remove_all(at("deep"));
    assert_false(gr_exists(at("deep")));
    gr_remove_all(at("deep"));
    assert_ok(gr_file_write(at("plain"), "x", 1, &err));
    assert_error(gr_make_dirs(at("plain/sub"), &err), GRAFT_FAILED, &err, "plain/sub");
}

/* A device that is always full, and a file that may not grow: one line each, and nothing is left behind. */
static void test_full_disk(void **state) {
    (void)state;
    gr_writer w;
    assert_error(gr_file_write("/dev/full", "x", 1, &err), GRAFT_FAILED, &err, "/dev/full: No space left");
    gr_remove_all(at("full"));
    assert_ok(gr_make_dirs(at("full"), &err));
    assert_ok(gr_writer_open(&w, at("full/a"), &err));
    assert_non_null(freopen("/dev/full", "w", w.stream));
    static char zeros[1 << 16];
    for (int i = 0; i < 8; i++) fwrite(zeros, 1, sizeof zeros, w.stream);
    assert_error(gr_writer_commit(&w, &err), GRAFT_FAILED, &err, "full/a: No space left on device");
    assert_int_equal(count_entries(at("full")), 0);

    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = (struct rlimit){.rlim_cur = 100000, .rlim_max = old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    char *big = gr_calloc(1 << 20, 1);
    graft_status st = gr_file_write(at("full/b"), big, 1 << 20, &err);
    graft_error h5_err = {0};
    gr_h5 *h = NULL;
    int64_t n = 1 << 18;
    graft_status h5_st = gr_h5_create(&h, at("full/c.h5"), &h5_err);
    if (h5_st == GRAFT_OK) h5_st = gr_h5_put(h, "/big", GR_H5_F32, 1, &n, big, &h5_err);
    gr_h5_close(h);
    setrlimit(RLIMIT_FSIZE, &old);
    free(big);
    assert_error(st, GRAFT_FAILED, &err, "full/b: File too large");
    assert_error(h5_st, GRAFT_FAILED, &h5_err, "full/c.h5: /big: File too large");
    assert_int_equal(count_entries(at("full")), 0);
}

/* What run.log gets: each note, and of a quick progress its last line alone. */
static void test_log(void **state) {
    (void)state;
    char *text = NULL;
    size_t len = 0;
    gr_progress p;
    FILE *f = open_memstream(&text, &len);
    gr_log_tee(f);
    gr_log_quiet(true);
    gr_note("base %s", "x");
    gr_progress_start(&p, "train", 3);
    for (int i = 1; i <= 3; i++) gr_progress_update(&p, i, "loss %.1f", 4.0 - i);
    gr_progress_end(&p);
    gr_log_quiet(false);
    gr_log_tee(NULL);
    gr_note("not in run.log");
    fclose(f);
    assert_string_equal(text, "base x\ntrain  3/3  loss 1.0\n");
    free(text);
}

/* ---- safetensors ---- */

static const float floats[6] = {1, -2, 3.5f, 0, 1e-8f, 6};
static const uint16_t halves[3] = {0x3f80, 0x4000, 0x4040};

static graft_status produce(void *context, int64_t i, void *dst, graft_error *e) {
    (void)e;
    *(int *)context += 1;
    if (i == 0) memcpy(dst, halves, sizeof halves);
    if (i == 1) memcpy(dst, floats, sizeof floats);
    return GRAFT_OK;
}

static graft_status refuse(void *context, int64_t i, void *dst, graft_error *e) {
    (void)context, (void)i, (void)dst;
    return gr_fail(e, GRAFT_FAILED, "no data");
}

/* The BF16 tensor first: the F32 one then lies at an odd offset in a safetensors file. */
static const gr_tensor sample[] = {{.name = "z.bf16", .dtype = GR_DTYPE_BF16, .n_dims = 1, .shape = {3}},
                                   {.name = "a.f32", .dtype = GR_DTYPE_F32, .n_dims = 2, .shape = {2, 3}}};

static void check_sample(const gr_tensor *f32, const gr_tensor *bf16) {
    assert_non_null(f32);
    assert_non_null(bf16);
    assert_int_equal(f32->n_dims, 2);
    assert_int_equal(f32->shape[0], 2);
    assert_int_equal(f32->shape[1], 3);
    assert_int_equal(f32->n_elements, 6);
    assert_int_equal((uintptr_t)f32->data % 4, 0);
    assert_memory_equal(f32->data, floats, sizeof floats);
    assert_int_equal(bf16->n_bytes, 6);
    assert_memory_equal(bf16->data, halves, sizeof halves);
}

static void test_safetensors(void **state) {
    (void)state;
    int calls = 0;
    gr_safetensors *s;
    assert_ok(gr_safetensors_write(at("m.safetensors"), sample, 2, produce, &calls, &err));
    assert_int_equal(calls, 2);
    assert_ok(gr_safetensors_open(&s, at("m.safetensors"), &err));
    assert_int_equal(gr_safetensors_count(s), 2);
    assert_string_equal(gr_safetensors_get(s, 0)->name, "a.f32");
    check_sample(gr_safetensors_find(s, "a.f32"), gr_safetensors_find(s, "z.bf16"));
    assert_string_equal(gr_safetensors_metadata(s, "format"), "pt");
    assert_null(gr_safetensors_metadata(s, "none"));
    assert_null(gr_safetensors_find(s, "none"));
    gr_safetensors_close(s);
    assert_ok(gr_safetensors_write(at("none.safetensors"), NULL, 0, produce, &calls, &err));
    assert_ok(gr_safetensors_open(&s, at("none.safetensors"), &err));
    assert_int_equal(gr_safetensors_count(s), 0);
    gr_safetensors_close(s);
    graft_status st = gr_safetensors_write(at("x.safetensors"), sample, 2, refuse, NULL, &err);
    assert_error(st, GRAFT_FAILED, &err, "no data");
    gr_tensor twice[] = {sample[1], sample[1]}, quantised = sample[1];
    st = gr_safetensors_write(at("x.safetensors"), twice, 2, produce, &calls, &err);
    assert_error(st, GRAFT_FAILED, &err, "twice");
    quantised.dtype = GR_DTYPE_Q8_0;
    quantised.shape[1] = 32;
    st = gr_safetensors_write(at("x.safetensors"), &quantised, 1, produce, &calls, &err);
    assert_error(st, GRAFT_BAD_USAGE, &err, "a.f32");
    assert_false(gr_exists(at("x.safetensors")));
}

/* A safetensors file from a header text and a number of data bytes. */
static void put_safetensors(const char *path, const char *header, int64_t data_bytes) {
    gr_str s = {0};
    uint64_t len = strlen(header);
    gr_str_add(&s, (const char *)&len, 8);
    gr_str_puts(&s, header);
    for (int64_t i = 0; i < data_bytes; i++) gr_str_putc(&s, 0);
    assert_ok(gr_file_write(path, s.data, s.len, &err));
    gr_str_release(&s);
}

static void test_sharded(void **state) {
    (void)state;
    gr_safetensors *s;
    assert_ok(gr_make_dirs(at("sharded"), &err));
    assert_error(gr_safetensors_open(&s, at("sharded"), &err), GRAFT_BAD_INPUT, &err, at("sharded"));
    const char *index = at("sharded/model.safetensors.index.json");
    put_safetensors(at("sharded/1.safetensors"), "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8);
    put_safetensors(at("sharded/2.safetensors"),
                    "{\"b\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[0,2]},"
                    "\"ids\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[2,10]}}",
                    10);
    static const struct {
        const char *map, *part; /* part NULL: a good index */
    } cases[] = {
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\",\"ids\":\"2.safetensors\"}}", NULL},
        {"{\"weight_map\":{\"a\":\"2.safetensors\",\"b\":\"1.safetensors\"}}", "tensor a is not in 2.safetensors"},
        {"{\"weight_map\":{\"a\":\"1.safetensors\",\"c\":\"1.safetensors\"}}", "tensor c"},
        {"{\"weight_map\":{\"a\":\"../sharded/1.safetensors\"}}", "same folder"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "same folder"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "same folder"},
        {"{\"weight_map\":{\"a\":3}}", "same folder"},
        {"{\"weight_map\":{\"a\":\"3.safetensors\"}}", "3.safetensors"},
        {"{\"weight_map\":{}}", "weight_map"},
        {"[1]", "weight_map"},
        {"{\"weight_map\":", "not valid JSON"},
    };
    for (int i = 0; i < GR_LEN(cases); i++) {
        assert_ok(gr_file_write(index, cases[i].map, (int64_t)strlen(cases[i].map), &err));
        graft_status st = gr_safetensors_open(&s, at("sharded"), &err);
        if (cases[i].part) {
            assert_error(st, GRAFT_BAD_INPUT, &err, cases[i].part);
            assert_non_null(strstr(err.msg, at("sharded")));
            continue;
        }
        assert_int_equal(st, GRAFT_OK);
        assert_int_equal(gr_safetensors_count(s), 2);
        assert_int_equal(gr_safetensors_find(s, "b")->n_dims, 0);
        assert_string_equal(gr_safetensors_skipped(s, "ids"), "I64");
        assert_null(gr_safetensors_skipped(s, "a"));
        gr_safetensors_close(s);
    }
}

static void test_safetensors_hostile(void **state) {
    (void)state;
    static const struct {
        const char *header;
        int64_t data_bytes;
        const char *part;
    } cases[] = {
        {"", 0, "JSON"},
        {"[]", 0, "JSON"},
        {"{", 0, "JSON"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 3, "tensor a: offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}} x", 4, "JSON"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 8, "tensor a: offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 8, "tensor a: offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[9223372036854775803,9223372036854775807]}"
         "}",
         8, "tensor a: offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,99999999999999999999]}}", 8, "JSON"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 8, "pair"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0.0,4]}}", 8, "pair"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 8, "pair"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 8, "need 8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 8, "negative"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,4]}}", 8, "overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905],\"data_offsets\":[0,4]}}", 8, "tensor a"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,4]}}", 8, "5 dimensions"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[\"1\"],\"data_offsets\":[0,4]}}", 8, "shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 8, "shape"},
        {"{\"a\":{\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]}}", 8, "dtype"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 8, "dtype"},
        {"{\"a\":7}", 8, "not an object"},
        {"{\"__metadata__\":7}", 8, "__metadata__"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, "JSON"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, "overlaps"},
        {"{\"a\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[0,16]}}", 8, "tensor a: offsets"},
    };
    gr_safetensors *s = NULL;
    char *path = at("bad.safetensors");
    for (int i = 0; i < GR_LEN(cases); i++) {
        put_safetensors(path, cases[i].header, cases[i].data_bytes);
        assert_error(gr_safetensors_open(&s, path, &err), GRAFT_BAD_INPUT, &err, cases[i].part);
        assert_non_null(strstr(err.msg, path));
    }
    static const uint64_t lengths[] = {9, 100, 100000001, UINT64_MAX, UINT64_MAX - 7, 1ull << 63};
    for (int i = 0; i < GR_LEN(lengths); i++) {
        assert_ok(gr_file_write(path, &lengths[i], 8, &err));
        assert_error(gr_safetensors_open(&s, path, &err), GRAFT_BAD_INPUT, &err, path);
    }
    int calls = 0;
    int64_t len;
    assert_ok(gr_safetensors_write(path, sample, 2, produce, &calls, &err));
    char *good = slurp(path, &len);
    for (int64_t n = 0; n < len; n++) { /* truncated anywhere */
        assert_ok(gr_file_write(path, good, n, &err));
        assert_error(gr_safetensors_open(&s, path, &err), GRAFT_BAD_INPUT, &err, path);
    }
    free(good);
    assert_error(gr_safetensors_open(&s, at("missing"), &err), GRAFT_BAD_INPUT, &err, at("missing"));
}

/* ---- GGUF ---- */

static void build(gr_gguf_builder *b) {
    static const char *const words[] = {"one", "t\0wo", ""};
    static const int64_t lens[] = {3, 4, 0};
    gr_gguf_put_string(b, "general.architecture", "llama");
    gr_gguf_put_u32(b, "llama.block_count", 3000000000u);
    gr_gguf_put_f32(b, "eps", 0.5f);
    gr_gguf_put_bool(b, "flag", true);
    gr_gguf_put_strings(b, "tokens", words, lens, 3);
    gr_gguf_put_f32s(b, "scores", floats, 6);
    gr_gguf_put_i32s(b, "types", (const int32_t[]){-1, 7}, 2);
}

static char *good_gguf(const char *path, int64_t *len) {
    gr_gguf_builder b = {0};
    int calls = 0;
    build(&b);
    assert_ok(gr_gguf_write(path, &b, sample, 2, produce, &calls, &err));
    gr_gguf_builder_release(&b);
    return slurp(path, len);
}

static void test_gguf(void **state) {
    (void)state;
    int64_t len, n;
    double number;
    bool flag;
    const char *text;
    gr_gguf *g;
    gr_gguf_type type;
    free(good_gguf(at("m.gguf"), &len));
    assert_ok(gr_gguf_open(&g, at("m.gguf"), &err));
    assert_string_equal(gr_gguf_path(g), at("m.gguf"));
    assert_int_equal(gr_gguf_n_keys(g), 7);
    assert_int_equal(gr_gguf_n_tensors(g), 2);
    assert_string_equal(gr_gguf_tensor(g, 0)->name, "z.bf16");
    check_sample(gr_gguf_find(g, "a.f32"), gr_gguf_find(g, "z.bf16"));
    assert_null(gr_gguf_find(g, "none"));
    assert_string_equal(gr_gguf_key(g, 2, &type), "eps");
    assert_int_equal(type, GR_GGUF_F32);
    assert_ok(gr_gguf_get_string(g, "general.architecture", &text, &len, &err));
    assert_string_equal(text, "llama");
    assert_int_equal(len, 5);
    assert_ok(gr_gguf_get_int(g, "llama.block_count", &n, &err));
    assert_true(n == 3000000000);
    assert_ok(gr_gguf_get_float(g, "eps", &number, &err));
    assert_true(number == 0.5);
    assert_ok(gr_gguf_bool_or(g, "flag", false, &flag, &err));
    assert_true(flag);
    assert_ok(gr_gguf_int_or(g, "none", 5, &n, &err));
    assert_int_equal(n, 5);
    assert_ok(gr_gguf_float_or(g, "none", 5, &number, &err));
    assert_true(number == 5);
    assert_ok(gr_gguf_get_array(g, "tokens", &type, &n, &err));
    assert_int_equal(type, GR_GGUF_STRING);
    assert_int_equal(n, 3);
    assert_ok(gr_gguf_array_string(g, "tokens", 1, &text, &len, &err));
    assert_int_equal(len, 4);
    assert_memory_equal(text, "t\0wo", 4);
    assert_ok(gr_gguf_array_int(g, "types", 0, &n, &err));
    assert_int_equal(n, -1);
    assert_ok(gr_gguf_array_float(g, "scores", 2, &number, &err));
    assert_true(number == 3.5);
    assert_ok(gr_gguf_array_float(g, "types", 1, &number, &err));
    assert_true(number == 7);
    assert_error(gr_gguf_get_int(g, "eps", &n, &err), GRAFT_BAD_INPUT, &err, "eps is f32, expected an integer");
    assert_error(gr_gguf_int_or(g, "eps", 1, &n, &err), GRAFT_BAD_INPUT, &err, "eps");
    assert_error(gr_gguf_get_string(g, "none", &text, &len, &err), GRAFT_BAD_INPUT, &err, "none (a string) is missing");
    assert_error(gr_gguf_get_bool(g, "eps", &flag, &err), GRAFT_BAD_INPUT, &err, "expected a bool");
    assert_error(gr_gguf_get_float(g, "tokens", &number, &err), GRAFT_BAD_INPUT, &err, "array of string");
    assert_error(gr_gguf_array_int(g, "types", 2, &n, &err), GRAFT_BAD_INPUT, &err, "element 2");
    assert_error(gr_gguf_array_int(g, "scores", 0, &n, &err), GRAFT_BAD_INPUT, &err, "scores");
    assert_error(gr_gguf_array_string(g, "types", 0, &text, &len, &err), GRAFT_BAD_INPUT, &err, "types");
    assert_error(gr_gguf_get_array(g, "eps", &type, &n, &err), GRAFT_BAD_INPUT, &err, "an array");
    gr_gguf_close(g);
}

/* Where key's value begins in the file: behind its name and, for arrays, its types. */
static char *find_bytes(char *data, int64_t len, const char *name) {
    char *p = memmem(data, (size_t)len, name, strlen(name));
    assert_non_null(p);
    return p;
}

static void test_gguf_hostile(void **state) {
    (void)state;
    enum { U32, U64 };
    static const struct {
        const char *near; /* the change is made `offset` bytes after this text */
        int offset, width;
        uint64_t value;
        const char *part;
    } cases[] = {
        {"GGUF", 0, U32, 0x46554758, "not a GGUF"},
        {"GGUF", 4, U32, 1, "version 1"},
        {"GGUF", 4, U32, 4, "version 4"},
        {"GGUF", 4, U32, 3u << 24, "big endian"},
        {"GGUF", 8, U64, 1000000, "number of tensors"},
        {"GGUF", 8, U64, UINT64_MAX, "number of tensors"},
        {"GGUF", 16, U64, 1ull << 60, "number of keys"},
        {"GGUF", 16, U64, 8, ""},
        {"GGUF", 16, U64, 6, ""},
        {"GGUF", 24, U64, UINT64_MAX, "metadata key"},
        {"GGUF", 24, U64, 0, "metadata key"},
        {"GGUF", 24, U64, 1ull << 40, "metadata key"},
        {"general.architecture", 0, U32, 0, "NUL"},
        {"general.architecture", 20, U32, 13, "unknown value type 13"},
        {"general.architecture", 24, U64, UINT64_MAX - 8, "general.architecture"},
        {"general.architecture", 24, U64, 1 << 20, "general.architecture"},
        {"tokens", 10, U32, GR_GGUF_ARRAY, "array of arrays"},
        {"tokens", 10, U32, 99, "unknown value type 99"},
        {"tokens", 14, U64, 1ull << 61, "tokens"},
        {"tokens", 22, U64, 1ull << 33, "tokens"},
        {"scores", 14, U64, 1ull << 62, "scores"},
        {"scores", 14, U64, UINT64_MAX, "scores"},
        {"a.f32", 5, U32, 5, "5 dimensions"},
        {"a.f32", 5, U32, UINT32_MAX, "dimensions"},
        {"a.f32", 9, U64, UINT64_MAX, "negative or overflows"},
        {"a.f32", 9, U64, 1ull << 62, "overflows"},
        {"a.f32", 9, U64, 1 << 20, "beyond the end"},
        {"a.f32", 25, U32, 16, "ggml type 16; graft reads f32, f16, bf16"},
        {"a.f32", 25, U32, UINT32_MAX, "ggml type"},
        {"a.f32", 25, U32, 8, "whole q8_0 blocks"},
        {"a.f32", 29, U64, UINT64_MAX, "beyond the end"},
        {"a.f32", 29, U64, 64, "beyond the end"},
        {"a.f32", 29, U64, 4, "alignment"},
        {"z.bf16", 0, U32, 0, "NUL"},
    };
    gr_gguf *g = NULL;
    char *path = at("bad.gguf");
    int64_t len;
    char *good = good_gguf(path, &len), *bad = gr_calloc(len, 1);
    for (int i = 0; i < GR_LEN(cases); i++) {
        memcpy(bad, good, (size_t)len);
        memcpy(find_bytes(bad, len, cases[i].near) + cases[i].offset, &cases[i].value, cases[i].width == U32 ? 4 : 8);
        assert_ok(gr_file_write(path, bad, len, &err));
        assert_error(gr_gguf_open(&g, path, &err), GRAFT_BAD_INPUT, &err, cases[i].part);
        assert_non_null(strstr(err.msg, path));
    }
    for (int64_t n = 0; n < len - 8; n++) { /* truncated anywhere; the last tensor's padding may miss */
        assert_ok(gr_file_write(path, good, n, &err));
        assert_error(gr_gguf_open(&g, path, &err), GRAFT_BAD_INPUT, &err, path);
    }
    free(good);
    free(bad);
    assert_error(gr_gguf_open(&g, at("missing"), &err), GRAFT_BAD_INPUT, &err, at("missing"));
    assert_error(gr_gguf_open(&g, dir, &err), GRAFT_BAD_INPUT, &err, "a folder");
}

/* Metadata that the writer does not refuse by itself: reading back does. */
static void test_gguf_metadata(void **state) {
    (void)state;
    static const struct {
        const char *key, *part;
        uint32_t value;
    } cases[] = {{"eps", "comes twice", 1},
                 {"general.alignment", "power of two", 0},
                 {"general.alignment", "power of two", 4},
                 {"general.alignment", "power of two", 48},
                 {"general.alignment", "power of two", 1u << 31}};
    int calls = 0;
    for (int i = 0; i < GR_LEN(cases); i++) {
        gr_gguf_builder b = {0};
        build(&b);
        gr_gguf_put_u32(&b, cases[i].key, cases[i].value);
        graft_status st = gr_gguf_write(at("meta.gguf"), &b, sample, 2, produce, &calls, &err);
        assert_error(st, GRAFT_FAILED, &err, cases[i].part);
        gr_gguf_builder_release(&b);
    }
    gr_gguf_builder b = {0};
    gr_tensor twice[] = {sample[0], sample[0]};
    graft_status st = gr_gguf_write(at("meta.gguf"), &b, twice, 2, produce, &calls, &err);
    assert_error(st, GRAFT_FAILED, &err, "z.bf16 comes twice");
    st = gr_gguf_write(at("meta.gguf"), &b, sample, 2, refuse, NULL, &err);
    assert_error(st, GRAFT_FAILED, &err, "no data");
    assert_false(gr_exists(at("meta.gguf")));
    assert_ok(gr_gguf_write(at("meta.gguf"), &b, NULL, 0, produce, &calls, &err)); /* an empty file is a file */
}

/* ---- HDF5 ---- */

static void write_h5(const char *path) {
    gr_h5 *h;
    assert_ok(gr_h5_create(&h, path, &err));
    assert_ok(gr_h5_put(h, "/params/layer.0/a", GR_H5_F32, 2, (const int64_t[]){2, 3}, floats, &err));
    assert_ok(gr_h5_put(h, "/params/none", GR_H5_I32, 1, (const int64_t[]){0}, NULL, &err));
    assert_ok(gr_h5_put(h, "/bytes", GR_H5_U8, 1, (const int64_t[]){3}, "abc", &err));
    assert_ok(gr_h5_put_int(h, "step", -7, &err));
    assert_ok(gr_h5_put_double(h, "best", 0.25, &err));
    assert_ok(gr_h5_put_text(h, "recipe", "r\xc3\xa9sum\xc3\xa9", &err));
    assert_ok(gr_h5_put_text(h, "nothing", "", &err));
    char *large = gr_calloc(200001, 1);
    memset(large, 'x', 200000);
    assert_ok(gr_h5_put_text(h, "large", large, &err));
    free(large);
    assert_ok(gr_h5_commit(h, &err));
}

static void test_h5(void **state) {
    (void)state;
    gr_h5 *h;
    int64_t shape[2], value;
    float back[6];
    double best;
    char *text;
    write_h5(at("s.h5"));
    assert_ok(gr_h5_open(&h, at("s.h5"), &err));
    assert_ok(gr_h5_shape(h, "/params/layer.0/a", GR_H5_F32, 2, shape, &err));
    assert_int_equal(shape[0], 2);
    assert_int_equal(shape[1], 3);
    assert_ok(gr_h5_get(h, "/params/layer.0/a", GR_H5_F32, back, 6, &err));
    assert_memory_equal(back, floats, sizeof floats);
    assert_ok(gr_h5_get(h, "/params/none", GR_H5_I32, back, 0, &err));
    assert_true(gr_h5_has(h, "/bytes"));
    assert_false(gr_h5_has(h, "/no/such/thing"));
    assert_ok(gr_h5_get_int(h, "step", &value, &err));
    assert_int_equal(value, -7);
    assert_ok(gr_h5_get_double(h, "best", &best, &err));
    assert_true(best == 0.25);
    assert_ok(gr_h5_get_text(h, "recipe", &text, &err));
    assert_string_equal(text, "r\xc3\xa9sum\xc3\xa9");
    free(text);
    assert_ok(gr_h5_get_text(h, "nothing", &text, &err));
    assert_string_equal(text, "");
    free(text);
    assert_ok(gr_h5_get_text(h, "large", &text, &err));
    assert_int_equal(strlen(text), 200000);
    free(text);
    assert_error(gr_h5_get(h, "/bytes", GR_H5_F32, back, 3, &err), GRAFT_BAD_INPUT, &err, "/bytes is not of type f32");
    assert_error(gr_h5_get(h, "/bytes", GR_H5_U8, back, 4, &err), GRAFT_BAD_INPUT, &err, "3 elements, expected 4");
    assert_error(gr_h5_shape(h, "/bytes", GR_H5_U8, 2, shape, &err), GRAFT_BAD_INPUT, &err, "1 dimensions");
    assert_error(gr_h5_get(h, "/absent/x", GR_H5_U8, back, 4, &err), GRAFT_BAD_INPUT, &err, "missing");
    assert_error(gr_h5_get(h, "/params", GR_H5_U8, back, 4, &err), GRAFT_BAD_INPUT, &err, "/params");
    assert_error(gr_h5_get_int(h, "best", &value, &err), GRAFT_BAD_INPUT, &err, "best is not an integer");
    assert_error(gr_h5_get_int(h, "absent", &value, &err), GRAFT_BAD_INPUT, &err, "absent");
    assert_error(gr_h5_get_text(h, "step", &text, &err), GRAFT_BAD_INPUT, &err, "step is not a text");
    gr_h5_close(h);

    assert_ok(gr_h5_create(&h, at("gone.h5"), &err)); /* closed without commit: nothing stays */
    assert_ok(gr_h5_put_int(h, "x", 1, &err));
    assert_error(gr_h5_put_int(h, "x", 1, &err), GRAFT_FAILED, &err, "gone.h5: x");
    gr_h5_close(h);
    assert_false(gr_exists(at("gone.h5")));
    assert_error(gr_h5_create(&h, at("no/x.h5"), &err), GRAFT_FAILED, &err, "no/x.h5");
}

static void test_h5_same_bytes(void **state) {
    (void)state;
    int64_t n, m;
    write_h5(at("1.h5"));
    sleep(1); /* a time in the file would show */
    write_h5(at("2.h5"));
    char *a = slurp(at("1.h5"), &n), *b = slurp(at("2.h5"), &m);
    assert_int_equal(n, m);
    assert_memory_equal(a, b, (size_t)n);
    free(a);
    free(b);
}

static void test_h5_hostile(void **state) {
    (void)state;
    gr_h5 *h = NULL;
    int64_t len;
    char *path = at("bad.h5");
    write_h5(path);
    char *good = slurp(path, &len);
    assert_ok(gr_h5_open(&h, path, &err));
    gr_h5_close(h);
    for (int64_t i = 0; i < len; i += i < 64 ? 1 : len / 97) { /* a flipped bit anywhere */
        good[i] ^= 4;
        assert_ok(gr_file_write(path, good, len, &err));
        assert_error(gr_h5_open(&h, path, &err), GRAFT_BAD_INPUT, &err, path);
        good[i] ^= 4;
    }
    for (int64_t n = 0; n < len; n += n < 4 ? 1 : len / 53) { /* truncated anywhere */
        assert_ok(gr_file_write(path, good, n, &err));
        assert_error(gr_h5_open(&h, path, &err), GRAFT_BAD_INPUT, &err, path);
    }
    good = realloc(good, (size_t)len + 1);
    good[len] = 0;
    assert_ok(gr_file_write(path, good, len + 1, &err)); /* something appended */
    assert_error(gr_h5_open(&h, path, &err), GRAFT_BAD_INPUT, &err, path);
    assert_ok(gr_file_write(path, good + 2048, len - 2048, &err)); /* plain HDF5 without a seal */
    assert_error(gr_h5_open(&h, path, &err), GRAFT_BAD_INPUT, &err, "not a checkpoint");
    assert_error(gr_h5_open(&h, dir, &err), GRAFT_BAD_INPUT, &err, dir);
    assert_error(gr_h5_open(&h, at("missing"), &err), GRAFT_BAD_INPUT, &err, "No such file");
    free(good);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_folders),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_log),
        cmocka_unit_test(test_safetensors),
        cmocka_unit_test(test_sharded),
        cmocka_unit_test(test_safetensors_hostile),
        cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_gguf_hostile),
        cmocka_unit_test(test_gguf_metadata),
        cmocka_unit_test(test_h5),
        cmocka_unit_test(test_h5_same_bytes),
        cmocka_unit_test(test_h5_hostile),
    };
    return cmocka_run_group_tests_name("io", tests, make_dir, drop_dir);
}
