/* Any bytes as a tokenizer.json; what can be read encodes and decodes a text made of the same bytes. */
#include <stdlib.h>

#include "core/text/read.h"

#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    gr_tokenizer *t = NULL;
    graft_error err;
    gr_ids ids = {0};
    gr_str text = {0};
    if (gr_tokenizer_parse_json(&t, (const char *)data, (int64_t)size, "fuzz", &err) == GRAFT_OK) {
        GR_ASSERT(gr_tokenizer_encode(t, (const char *)data, (int64_t)size, size % 2, &ids, &err) == GRAFT_OK);
        GR_ASSERT(gr_tokenizer_decode(t, ids.data, ids.n, false, &text, &err) == GRAFT_OK);
    } else {
        GR_ASSERT(err.msg[0]);
    }
    gr_ids_release(&ids);
    gr_str_release(&text);
    gr_tokenizer_free(t);
    return 0;
}
