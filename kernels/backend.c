/* backend.c - the device of a name. */
#include "kernels/backend.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/open.h"
#include "kernels/plugin.h"

static _Thread_local char said[512]; /* what *why points to where it is put together */

static const char no_driver[] = "there is no NVIDIA driver (libcuda.so.1)";

/* Ours and cuBLASLt take long to load, which a machine without a card does not wait for. */
bool gr_device_has_driver(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (driver) dlclose(driver);
    return driver != NULL;
}

static gr_device *open_cuda(int index, const char **why) {
    *why = NULL;
    void *library = gr_plugin_load("libgraft_cuda.so", "GRAFT_CUDA_LIB");
    gr_backend_open_fn *open = library ? (gr_backend_open_fn *)(uintptr_t)dlsym(library, "gr_backend_open") : NULL;
    gr_device *d = open ? open(GR_ABI, index, said, sizeof said) : NULL;
    if (!library) snprintf(said, sizeof said, "%.500s", gr_plugin_error());
    else if (!open) snprintf(said, sizeof said, "libgraft_cuda.so, or what GRAFT_CUDA_LIB names, is not graft's");
    if (!d)
        *why = strstr(said, "driver version") && !gr_device_has_driver() ? no_driver : said; /* the runtime takes none for old */
    return d;
}

/* What "cuda", "cuda:N" and "cuda@R" are to gr_backend_open; false: another name. */
static bool card_of(const char *name, int *index) {
    char *end;
    *index = 0;
    if (strcmp(name, "cuda") == 0) return true;
    if (strncmp(name, "cuda", 4) != 0 || (name[4] != ':' && name[4] != '@') || name[5] < '0' || name[5] > '9') return false;
    long n = strtol(name + 5, &end, 10);
    if (*end != '\0' || n >= 1024) return false;
    *index = name[4] == '@' ? -1 - (int)n : (int)n;
    return true;
}

bool gr_device_is_name(const char *name) {
    int index;
    return name && (strcmp(name, "auto") == 0 || strcmp(name, "cpu") == 0 || (card_of(name, &index) && index >= 0));
}

gr_device *gr_device_open(const char *name, gr_threads *threads, const char **why) {
    const char *debug = getenv("GRAFT_DEVICE");
    const bool automatic = strcmp(name, "auto") == 0 || strncmp(name, "auto@", 5) == 0;
    const int wanted = automatic && name[4] ? -1 - atoi(name + 5) : 0;
    int index;
    if (automatic && debug) {
        *why = "GRAFT_DEVICE must be cpu, far, cuda or cuda:N";
        name = debug;
        if (strcmp(name, "far") == 0) return gr_far_device_new(threads, why);
        if (strcmp(name, "cpu") != 0 && !card_of(name, &index)) return NULL;
    }
    if (strcmp(name, "cpu") == 0) return gr_cpu_device_new(threads, why);
    if (card_of(name, &index)) return open_cuda(automatic && strcmp(name, "cuda") == 0 ? wanted : index, why);
    if (gr_planned_is_name(name)) return gr_planned_device_new(name, why);
    if (automatic && !debug) {
        const char *no_card = no_driver;
        gr_device *d = gr_device_has_driver() ? open_cuda(wanted, &no_card) : NULL;
        if (d) return d;
        if ((d = gr_cpu_device_new(threads, why))) *why = no_card;
        return d;
    }
    if (!automatic) *why = "expected auto, cpu, cuda or cuda:N";
    return NULL;
}

void gr_device_close(gr_device *d) {
    if (d) d->close(d);
}
