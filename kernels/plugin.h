/* plugin.h - libraries of graft's own that are loaded at run time, where what they stand on is there: libgraft_cuda.so,
 * libgraft_mpi.so. */
#ifndef GR_PLUGIN_H
#define GR_PLUGIN_H

/* The library of a name ("libgraft_cuda.so"): the one that the environment variable `named_by` names, else beside the program or
 * library that this is part of, in graft/ there, where both were installed, or where the system looks. It stays loaded. NULL when
 * there is none, or it is cut off. */
void *gr_plugin_load(const char *file, const char *named_by);
/* Why the last one of this thread is NULL. */
const char *gr_plugin_error(void);

#endif
