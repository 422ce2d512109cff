/* machine.h - what everything runs on: the host's threads and a device, opened and closed together. */
#ifndef GR_MACHINE_H
#define GR_MACHINE_H

#include "core/base/base.h"
#include "kernels/kernels.h"
#include "kernels/threads.h"

/* Passed by value; whoever opened it closes it. */
typedef struct gr_machine {
    gr_threads *threads; /* also for the host's own parallel work */
    gr_device *device;
    const char *no_card; /* why auto did not take one, NULL: it did, or was not asked */
} gr_machine;

/* name: as gr_device_open takes it. n_threads <= 0: one per CPU that this process may use. BAD_USAGE when there is no such device
 * here. */
graft_status gr_machine_open(gr_machine *m, const char *name, int n_threads, graft_error *err);
void gr_machine_close(gr_machine *m); /* a zeroed one is fine, and one is left */

/* Waits for the device; FAILED with its words when something went wrong on it since it was opened, NO_MEMORY with what is free
 * there when that was it. */
graft_status gr_device_status(gr_device *d, graft_error *err);
/* NO_MEMORY: the device did not give bytes for what; with what is free of how much, where its memory is its own. Or, as
 * gr_device_status, what went wrong on it before. */
graft_status gr_fail_device_memory(gr_device *d, int64_t bytes, const char *what, graft_error *err);

#endif
