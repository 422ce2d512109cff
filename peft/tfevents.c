#include "peft/tfevents.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

struct gr_tfevents {
    FILE *stream;
    char *path;
    gr_str event, summary, value; /* reused for each event */
};

uint32_t gr_crc32c(const void *data, int64_t n) {
    const uint8_t *bytes = data;
    uint32_t crc = 0xffffffffu;
    for (int64_t i = 0; i < n; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

/* ---- protobuf ---- */

enum wire { WIRE_VARINT = 0, WIRE_64BIT = 1, WIRE_BYTES = 2, WIRE_32BIT = 5 };

static void put_varint(gr_str *s, uint64_t v) {
    for (; v >= 128; v >>= 7) gr_str_putc(s, (char)(v | 128));
    gr_str_putc(s, (char)v);
}

static void put_key(gr_str *s, int field, enum wire wire) { put_varint(s, (uint64_t)field << 3 | wire); }

/* The low n bytes of v, least significant first. */
static void put_fixed(gr_str *s, uint64_t v, int n) {
    for (int i = 0; i < n; i++) gr_str_putc(s, (char)(v >> 8 * i & 255));
}

static void put_bytes(gr_str *s, int field, const char *bytes, int64_t n) {
    put_key(s, field, WIRE_BYTES);
    put_varint(s, (uint64_t)n);
    gr_str_add(s, bytes, n);
}

static void put_double(gr_str *s, int field, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    put_key(s, field, WIRE_64BIT);
    put_fixed(s, bits, 8);
}

static void put_float(gr_str *s, int field, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    put_key(s, field, WIRE_32BIT);
    put_fixed(s, bits, 4);
}

static void begin_event(gr_str *s, int64_t step) {
    struct timeval now;
    gettimeofday(&now, NULL);
    gr_str_clear(s);
    put_double(s, 1, (double)now.tv_sec + 1e-6 * (double)now.tv_usec);
    if (step != 0) {
        put_key(s, 2, WIRE_VARINT);
        put_varint(s, (uint64_t)step);
    }
}

/* ---- records ---- */

static uint32_t masked_crc(const void *data, int64_t n) {
    uint32_t crc = gr_crc32c(data, n);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static graft_status write_record(gr_tfevents *t, const gr_str *event, graft_error *err) {
    gr_str record = {0};
    graft_status st = GRAFT_OK;
    put_fixed(&record, (uint64_t)event->len, 8);
    if (!record.failed) put_fixed(&record, masked_crc(record.data, 8), 4);
    gr_str_add(&record, event->data, event->len);
    put_fixed(&record, masked_crc(event->data, event->len), 4);
    if (record.failed || event->failed) {
        st = gr_fail_memory(err, "TensorBoard event");
    } else {
        size_t len = (size_t)record.len;
        if (fwrite(record.data, 1, len, t->stream) != len || fflush(t->stream) != 0)
            st = gr_fail_errno(err, GRAFT_FAILED, "%s: cannot write", t->path);
    }
    gr_str_release(&record);
    return st;
}

/* Names sort in the order of their making, the order in which readers take them. */
static FILE *open_new(gr_tfevents *t, const char *folder) {
    char host[65] = "localhost";
    struct timeval now;
    gettimeofday(&now, NULL);
    if (gethostname(host, sizeof(host) - 1) != 0 || host[0] == 0) memcpy(host, "localhost", 10);
    for (int i = 0; i < 1000; i++) {
        free(t->path);
        t->path = gr_format("%s/events.out.tfevents.%010lld.%s.%ld.%d", folder, (long long)now.tv_sec, host, (long)getpid(), i);
        if (!t->path) return NULL;
        FILE *f = fopen(t->path, "wbx");
        if (f || errno != EEXIST) return f;
    }
    return NULL;
}

graft_status gr_tfevents_open(gr_tfevents **out, const char *folder, int64_t first_step, graft_error *err) {
    graft_status st = GRAFT_OK;
    *out = NULL;
    gr_tfevents *t = gr_calloc(1, sizeof(*t));
    if (!t) return gr_fail_memory(err, "TensorBoard events");
    t->stream = open_new(t, folder);
    if (!t->stream) {
        st = gr_fail_errno(err, GRAFT_FAILED, "%s: cannot create a TensorBoard event file", folder);
        goto done;
    }
    begin_event(&t->event, 0);
    put_bytes(&t->event, 3, "brain.Event:2", 13);
    GR_TRY(write_record(t, &t->event, err));
    if (first_step > 0) {
        static const char started[] = {1 << 3 | WIRE_VARINT, 1}; /* SessionLog { status: START } */
        begin_event(&t->event, first_step);
        put_bytes(&t->event, 7, started, sizeof(started));
        GR_TRY(write_record(t, &t->event, err));
    }
done:
    if (st != GRAFT_OK) {
        gr_tfevents_close(t);
        return st;
    }
    *out = t;
    return GRAFT_OK;
}

graft_status gr_tfevents_add(gr_tfevents *t, int64_t step, const gr_scalar *scalars, int n, graft_error *err) {
    gr_str_clear(&t->summary);
    for (int i = 0; i < n; i++) {
        gr_str_clear(&t->value);
        put_bytes(&t->value, 1, scalars[i].tag, (int64_t)strlen(scalars[i].tag));
        put_float(&t->value, 2, (float)scalars[i].value);
        put_bytes(&t->summary, 1, t->value.data, t->value.len);
    }
    if (t->summary.failed || t->value.failed) return gr_fail_memory(err, "TensorBoard event");
    begin_event(&t->event, step);
    put_bytes(&t->event, 5, t->summary.data, t->summary.len);
    return write_record(t, &t->event, err);
}

void gr_tfevents_close(gr_tfevents *t) {
    if (!t) return;
    if (t->stream) fclose(t->stream);
    gr_str_release(&t->event);
    gr_str_release(&t->summary);
    gr_str_release(&t->value);
    free(t->path);
    free(t);
}
