/* backend.h - what opens the devices that backend.c knows by name. Private to kernels/. */
#ifndef GR_BACKEND_H
#define GR_BACKEND_H

#include "kernels/kernels.h"

/* threads: borrowed. NULL and *why on failure. */
gr_device *gr_cpu_device_new(gr_threads *threads, const char **why);
gr_device *gr_far_device_new(gr_threads *threads, const char **why); /* see far.c */
/* name: one that gr_planned_is_name knows. */
gr_device *gr_planned_device_new(const char *name, const char **why);

#endif
