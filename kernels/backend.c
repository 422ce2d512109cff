/* backend.c - the device of a name. */
#include "kernels/backend.h"

#include <stdlib.h>
#include <string.h>

gr_device *gr_device_open(const char *name, gr_threads *threads, const char **why) {
    const char *debug = getenv("GRAFT_DEVICE");
    bool automatic = strcmp(name, "auto") == 0;
    if (strcmp(name, "cpu") == 0 || (automatic && (!debug || strcmp(debug, "cpu") == 0))) return gr_cpu_device_new(threads, why);
    if (automatic && strcmp(debug, "far") == 0) return gr_far_device_new(threads, why);
    *why = "expected auto, cpu or cuda";
    if (automatic) *why = "GRAFT_DEVICE must be cpu or far";
    if (strcmp(name, "cuda") == 0) *why = "this graft has no CUDA backend";
    return NULL;
}

void gr_device_close(gr_device *d) {
    if (d) d->close(d);
}
