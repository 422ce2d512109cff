/* Any bytes as a GGUF file: opened, and everything in it read. */
#include "core/io/gguf.h"

#include "tests/fuzz/fuzz_file.h"

static void read_array(const gr_gguf *g, const char *key) {
    gr_gguf_type type;
    const char *s;
    int64_t n, len, integer;
    double number;
    if (gr_gguf_get_array(g, key, &type, &n, NULL) != GRAFT_OK) return;
    for (int64_t i = 0; i < n; i += 1 + n / 64) {
        if (gr_gguf_array_string(g, key, i, &s, &len, NULL) == GRAFT_OK) fuzz_touch(s, len);
        gr_gguf_array_int(g, key, i, &integer, NULL);
        gr_gguf_array_float(g, key, i, &number, NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    gr_gguf *g = NULL;
    graft_error err;
    int fd = fuzz_file(path, data, size);
    if (gr_gguf_open(&g, path, &err) == GRAFT_OK) {
        for (int64_t i = 0; i < gr_gguf_n_keys(g); i++) {
            const char *key = gr_gguf_key(g, i, NULL), *text;
            int64_t n;
            double number;
            if (gr_gguf_get_string(g, key, &text, &n, &err) == GRAFT_OK) fuzz_touch(text, n);
            gr_gguf_get_int(g, key, &n, &err);
            gr_gguf_get_float(g, key, &number, &err);
            read_array(g, key);
        }
        for (int64_t i = 0; i < gr_gguf_n_tensors(g); i++) {
            const gr_tensor *t = gr_gguf_tensor(g, i);
            GR_ASSERT(gr_gguf_find(g, t->name) == t);
            fuzz_touch(t->data, t->n_bytes);
        }
    } else {
        GR_ASSERT(err.msg[0]);
    }
    gr_gguf_close(g);
    close(fd);
    return 0;
}
