#include "kernels/plugin.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void *gr_plugin_load(const char *file, const char *named_by) {
    const char *named = getenv(named_by);
    char path[4096];
    Dl_info here;
    if (named) return dlopen(named, RTLD_NOW | RTLD_LOCAL);
    if (dladdr((void *)(uintptr_t)gr_plugin_load, &here) && here.dli_fname && strrchr(here.dli_fname, '/')) {
        static const char *const folders[] = {"", "graft/", GRAFT_BACKENDS};
        int length = (int)(strrchr(here.dli_fname, '/') - here.dli_fname) + 1;
        for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
            int n = snprintf(path, sizeof path, "%.*s%s%s", length, here.dli_fname, folders[i], file);
            if (n < (int)sizeof path && access(path, F_OK) == 0) return dlopen(path, RTLD_NOW | RTLD_LOCAL);
        }
    }
    return dlopen(file, RTLD_NOW | RTLD_LOCAL);
}
