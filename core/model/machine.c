#include "core/model/machine.h"

graft_status gr_machine_open(gr_machine *m, const char *name, int n_threads, graft_error *err) {
    const char *why = "cannot start the threads; ask for fewer (threads: 1)";
    *m = (gr_machine){.threads = gr_threads_new(n_threads)};
    m->device = m->threads ? gr_device_open(name, m->threads, &why) : NULL;
    if (m->device) {
        m->no_card = why;
        return GRAFT_OK;
    }
    gr_machine_close(m);
    return gr_fail(err, gr_starts_with(why, "out of memory") ? GRAFT_NO_MEMORY : GRAFT_BAD_USAGE, "device %.40s: %s", name, why);
}

void gr_machine_close(gr_machine *m) {
    gr_device_close(m->device);
    gr_threads_free(m->threads);
    *m = (gr_machine){0};
}

graft_status gr_device_status(gr_device *d, graft_error *err) {
    const char *wrong = d->sync(d);
    return wrong ? gr_fail(err, GRAFT_FAILED, "device %s: %s", d->level, wrong) : GRAFT_OK;
}
