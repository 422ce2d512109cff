/* A recipe of any bytes is refused in one line, or is read, printed, and read again to the same text. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "peft/recipe.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static gr_recipe *read_bytes(const char *path, const void *data, int64_t len, graft_error *err) {
    gr_recipe *r = NULL;
    FILE *f = fopen(path, "we");
    if (!f) abort();
    fwrite(data, 1, (size_t)len, f);
    fclose(f);
    return gr_recipe_load(&r, path, NULL, 0, err) == GRAFT_OK ? r : NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    graft_error err = {0};
    gr_str once = {0}, twice = {0};
    snprintf(path, sizeof path, "/tmp/graft-fuzz-recipe-%ld.yaml", (long)getpid());
    gr_recipe *r = read_bytes(path, data, (int64_t)size, &err), *again;
    if (!r) {
        if (!err.msg[0]) abort();
        return 0;
    }
    if (gr_recipe_print(r, &once, &err) != GRAFT_OK) abort();
    again = read_bytes(path, once.data, once.len, &err);
    if (!again || gr_recipe_print(again, &twice, &err) != GRAFT_OK || strcmp(once.data, twice.data) != 0) abort();
    gr_recipe_free(r);
    gr_recipe_free(again);
    gr_str_release(&once);
    gr_str_release(&twice);
    return 0;
}
