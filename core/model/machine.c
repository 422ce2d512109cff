#include "core/model/machine.h"

#include <string.h>

graft_status gr_machine_open(gr_machine *m, const char *name, int n_threads, graft_error *err) {
    const char *why = "cannot start";
    *m = (gr_machine){0};
    if (strcmp(name, "auto") != 0 && strcmp(name, "cpu") != 0)
        return gr_fail(err, GRAFT_BAD_USAGE, "device: expected auto or cpu, found \"%.40s\"", name);
    m->device = gr_cpu_device_new(n_threads, &why);
    if (!m->device) return gr_fail(err, GRAFT_BAD_USAGE, "device: %s", why);
    m->threads = m->device->threads;
    return GRAFT_OK;
}

void gr_machine_close(gr_machine *m) {
    gr_device_free(m->device);
    *m = (gr_machine){0};
}
