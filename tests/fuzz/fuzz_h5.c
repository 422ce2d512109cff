/* Any bytes as a sealed HDF5 file. Inputs that break the seal must be refused; libhdf5 itself, which is not
 * made for hostile files, is reached only by inputs whose checksum is right: the corpus of whole files. */
#include "core/io/h5.h"

#include <stdlib.h>

#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64], *text = NULL;
    gr_h5 *h = NULL;
    graft_error err;
    int64_t value, shape[2];
    int fd = fuzz_file(path, data, size);
    if (gr_h5_open(&h, path, &err) == GRAFT_OK) {
        gr_h5_get_int(h, "step", &value, &err);
        gr_h5_get_text(h, "recipe", &text, &err);
        gr_h5_shape(h, "/params/layer.0/a", GR_H5_F32, 2, shape, &err);
        free(text);
    } else {
        GR_ASSERT(err.msg[0]);
    }
    gr_h5_close(h);
    close(fd);
    return 0;
}
