#include "core/model/machine.h"

#include <string.h>

graft_status gr_machine_open(gr_machine *m, const char *name, int n_threads, graft_error *err) {
    const char *why = "cannot start the threads; ask for fewer (threads: 1)";
    *m = (gr_machine){.threads = gr_threads_new(n_threads)};
    m->device = m->threads ? gr_device_open(name, m->threads, &why) : NULL;
    if (m->device) {
        m->no_card = why;
        return GRAFT_OK;
    }
    gr_machine_close(m);
    return gr_fail(err, gr_starts_with(why, "out of memory") ? GRAFT_NO_MEMORY : GRAFT_BAD_USAGE, "device %.*s: %s",
                   (int)strcspn(name, "@"), name, why);
}

void gr_machine_close(gr_machine *m) {
    gr_device_close(m->device);
    gr_threads_free(m->threads);
    *m = (gr_machine){0};
}

static graft_status add_free(gr_device *d, graft_error *err) {
    int64_t total, available;
    if (!d->memory(d, &total, &available)) return GRAFT_NO_MEMORY;
    return gr_fail_more(err, GRAFT_NO_MEMORY, "; %.1f of %.1f MiB are free there", (double)available / (1 << 20),
                        (double)total / (1 << 20));
}

graft_status gr_device_status(gr_device *d, graft_error *err) {
    const char *wrong = d->sync(d);
    if (!wrong) return GRAFT_OK;
    bool memory = gr_starts_with(wrong, "out of memory");
    (void)gr_fail(err, memory ? GRAFT_NO_MEMORY : GRAFT_FAILED, "device %s: %s", d->level, wrong);
    return memory ? add_free(d, err) : GRAFT_FAILED;
}

graft_status gr_fail_device_memory(gr_device *d, int64_t bytes, const char *what, graft_error *err) {
    graft_status st = gr_device_status(d, err);
    if (st != GRAFT_OK) return st;
    (void)gr_fail(err, GRAFT_NO_MEMORY, "device %s: out of memory: %.1f MiB for %s", d->level, (double)bytes / (1 << 20), what);
    return add_free(d, err);
}
