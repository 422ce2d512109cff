/* tfevents.h - TensorBoard event files: a sequence of TFRecords, each an Event protobuf message.
 *
 * TFRecord: length (uint64 LE), masked CRC32C of the length, the bytes, masked CRC32C of the bytes.
 * Event: 1 wall_time (double), 2 step (int64), 3 file_version (string), 5 summary, 7 session_log.
 * Summary: 1 value { 1 tag (string), 2 simple_value (float) }. */
#ifndef GR_TFEVENTS_H
#define GR_TFEVENTS_H

#include "core/base/base.h"

typedef struct gr_scalar {
    const char *tag; /* "train/loss" */
    double value;
} gr_scalar;

typedef struct gr_tfevents gr_tfevents;

/* Make "<folder>/events.out.tfevents.<time>.<host>.<pid>.<n>" and write the version event. first_step > 0:
 * readers drop the events of older files from that step on (a resumed run). */
graft_status gr_tfevents_open(gr_tfevents **out, const char *folder, int64_t first_step, graft_error *err);
/* One event with n scalars, flushed. */
graft_status gr_tfevents_add(gr_tfevents *t, int64_t step, const gr_scalar *scalars, int n, graft_error *err);
void gr_tfevents_close(gr_tfevents *t);

/* CRC-32C (Castagnoli), as RFC 3720 has it. */
uint32_t gr_crc32c(const void *data, int64_t n);

#endif
