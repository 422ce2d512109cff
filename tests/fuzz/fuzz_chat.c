/* Any bytes as a chat template's YAML, and as a model's Jinja text to be recognised. */
#include <stdlib.h>

#include "core/text/chat_template.h"

#include "tests/fuzz/fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    gr_arena arena = {0};
    gr_chat_template row;
    graft_error err;
    char *text = gr_strndup((const char *)data, (int64_t)size);
    if (!text) return 0;
    if (gr_chat_template_parse(&row, text, (int64_t)size, "fuzz", &arena, &err) == GRAFT_OK)
        GR_ASSERT(row.pattern[GR_ROLE_USER] && row.pattern[GR_ROLE_ASSISTANT]);
    else
        GR_ASSERT(err.msg[0]);
    gr_chat_template_recognise(text);
    free(text);
    gr_arena_release(&arena);
    return 0;
}
