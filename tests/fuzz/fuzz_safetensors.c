/* Any bytes as a safetensors file: opened, and every tensor read. */
#include "core/io/safetensors.h"

#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    gr_safetensors *s = NULL;
    graft_error err;
    int fd = fuzz_file(path, data, size);
    if (gr_safetensors_open(&s, path, &err) == GRAFT_OK) {
        gr_safetensors_metadata(s, "format");
        for (int64_t i = 0; i < gr_safetensors_count(s); i++) {
            const gr_tensor *t = gr_safetensors_get(s, i);
            GR_ASSERT(gr_safetensors_find(s, t->name) == t);
            fuzz_touch(t->data, t->n_bytes);
        }
    } else {
        GR_ASSERT(err.msg[0]);
    }
    gr_safetensors_close(s);
    close(fd);
    return 0;
}
