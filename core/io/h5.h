/* h5.h - HDF5 containers that prove themselves (checkpoints, token caches): the file carries in its 2,048-byte user
 * block a magic, the content's length and its XXH3-128, verified before libhdf5 opens the rest. Written atomically.
 * The files open with h5py and HDFView: plain datasets and string/number attributes. */
#ifndef GR_H5_H
#define GR_H5_H

#include "core/base/base.h"

typedef struct gr_h5 gr_h5;

typedef enum gr_h5_type { GR_H5_F32, GR_H5_F64, GR_H5_I32, GR_H5_I64, GR_H5_U8 } gr_h5_type;

graft_status gr_h5_create(gr_h5 **out, const char *path, graft_error *err); /* appears under path at commit */
graft_status gr_h5_commit(gr_h5 *h, graft_error *err);                    /* closes, seals, fsyncs, renames, reads back; frees h */
graft_status gr_h5_open(gr_h5 **out, const char *path, graft_error *err); /* BAD_INPUT when the seal does not match */
/* Length and hash of a file, as they stand in its user block: another file has others. */
typedef struct gr_h5_seal {
    uint8_t bytes[24];
} gr_h5_seal;
graft_status gr_h5_commit_sealed(gr_h5 *h, gr_h5_seal *seal, graft_error *err); /* gr_h5_commit, and what the seal says */
gr_h5_seal gr_h5_seal_of(const gr_h5 *h);                                       /* of a file that was opened */
void gr_h5_close(gr_h5 *h);                                                     /* a created, uncommitted file is removed */

/* Datasets: "/group/name" (groups are made). Up to 2 dims. */
graft_status gr_h5_put(gr_h5 *h, const char *name, gr_h5_type type, int n_dims, const int64_t *shape, const void *data,
                       graft_error *err);
/* Shape of a dataset; BAD_INPUT when missing or of another type. */
graft_status gr_h5_shape(gr_h5 *h, const char *name, gr_h5_type type, int n_dims, int64_t *shape, graft_error *err);
/* Reads the whole dataset into data (n_elements must match). */
graft_status gr_h5_get(gr_h5 *h, const char *name, gr_h5_type type, void *data, int64_t n_elements, graft_error *err);
/* The byte of the file, opened for reading, at which the elements of a dataset begin: they lie there one after the other. */
graft_status gr_h5_place(gr_h5 *h, const char *name, gr_h5_type type, int64_t *offset, graft_error *err);
bool gr_h5_has(gr_h5 *h, const char *name);
bool gr_h5_has_attribute(gr_h5 *h, const char *name);
/* Calls visit for each dataset ("/group/name") and then each attribute of the root group, in order of their names; stops at the
 * first status that is not OK and returns it. */
typedef graft_status gr_h5_visitor(void *context, gr_h5 *h, const char *name, bool is_attribute, graft_error *err);
graft_status gr_h5_visit(gr_h5 *h, gr_h5_visitor *visit, void *context, graft_error *err);
/* Attributes of the root group. */
graft_status gr_h5_put_int(gr_h5 *h, const char *name, int64_t value, graft_error *err);
graft_status gr_h5_get_int(gr_h5 *h, const char *name, int64_t *value, graft_error *err);
graft_status gr_h5_put_double(gr_h5 *h, const char *name, double value, graft_error *err);
graft_status gr_h5_get_double(gr_h5 *h, const char *name, double *value, graft_error *err);
graft_status gr_h5_put_text(gr_h5 *h, const char *name, const char *value, graft_error *err);
graft_status gr_h5_get_text(gr_h5 *h, const char *name, char **value /* owned */, graft_error *err);

#endif
