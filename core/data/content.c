#include "core/data/content.h"

#include <errno.h>
#include <fcntl.h>
#include <iconv.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include "core/base/sniff.h"

enum { CHUNK = 1 << 16, MOST_TIMES = 200 };
static const int64_t MOST_ANYWAY = (int64_t)1 << 30; /* bytes that anything may unpack to */

/* ---- encodings ---- */

bool gr_encoding_is_replace(const char *encoding) { return encoding && strcmp(encoding, "replace") == 0; }

bool gr_encoding_is_utf8(const char *encoding) {
    return !encoding || strcasecmp(encoding, "utf-8") == 0 || strcasecmp(encoding, "utf8") == 0;
}

static iconv_t open_converter(const char *encoding) { return iconv_open("UTF-8", encoding); }

graft_status gr_encoding_check(const char *encoding, graft_error *err) {
    if (gr_encoding_is_utf8(encoding) || gr_encoding_is_replace(encoding)) return GRAFT_OK;
    iconv_t converter = *encoding ? open_converter(encoding) : (iconv_t)-1;
    if (converter == (iconv_t)-1)
        return gr_fail(
            err, GRAFT_BAD_USAGE,
            "unknown encoding \"%.40s\": expected utf-8, replace, or one that iconv knows (gb18030, big5, shift_jis, euc-kr, "
            "latin1, windows-1252, utf-16 ...)",
            encoding);
    iconv_close(converter);
    return GRAFT_OK;
}

/* ---- where the text goes ---- */

/* A file without a name that grows; text in another encoding is converted on its way. */
typedef struct sink {
    const char *path, *encoding; /* of the file that is read, for errors */
    int fd;
    int64_t size, line; /* bytes written; the line they end in */
    iconv_t converter;  /* or -1 */
    char pending[16];   /* of a character that the last chunk cut */
    size_t n_pending;
    graft_error *err;
} sink;

static graft_status open_sink(sink *k) {
    const char *folder = getenv("TMPDIR");
    if (!folder || !*folder) folder = "/tmp";
    k->fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (k->fd < 0) { /* a file system without nameless files */
        char *name = gr_format("%s/graft-data-XXXXXX", folder);
        gr_unfinished_hold(); /* while it has a name */
        k->fd = name ? mkostemp(name, O_CLOEXEC) : -1;
        if (k->fd >= 0) unlink(name);
        gr_unfinished_release();
        free(name);
    }
    if (k->fd < 0) return gr_fail_errno(k->err, GRAFT_FAILED, "%s: no temporary file in %s (set TMPDIR)", k->path, folder);
    return GRAFT_OK;
}

static graft_status put_raw(sink *k, const char *bytes, size_t n) {
    k->size += (int64_t)n;
    for (const char *at = bytes; (at = memchr(at, '\n', (size_t)(bytes + n - at))); at++) k->line++;
    while (n > 0) {
        ssize_t written = write(k->fd, bytes, n);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0)
            return gr_fail_errno(k->err, GRAFT_FAILED, "%s: its text does not fit in the temporary folder (TMPDIR)", k->path);
        bytes += written;
        n -= (size_t)written;
    }
    return GRAFT_OK;
}

static graft_status fail_bytes(const sink *k, const char *bytes, size_t n) {
    return gr_fail(k->err, GRAFT_BAD_INPUT, "%s:%lld: byte 0x%02X%s is no %s: is data.encoding right?", k->path, (long long)k->line,
                   n ? (unsigned)(uint8_t)*bytes : 0u, n < 2 ? " at the end" : "", k->encoding);
}

/* Convert n bytes; those of a character that goes on in the next chunk are left: *rest. */
static graft_status convert(sink *k, char *bytes, size_t n, size_t *rest) {
    char text[CHUNK];
    *rest = 0;
    while (n > 0) {
        char *out = text;
        size_t left = sizeof text, ok = iconv(k->converter, &bytes, &n, &out, &left);
        int problem = errno;
        graft_status st = put_raw(k, text, (size_t)(out - text));
        if (st != GRAFT_OK) return st;
        if (ok != (size_t)-1 || problem == E2BIG) continue;
        if (problem != EINVAL || n >= sizeof k->pending) return fail_bytes(k, bytes, n);
        *rest = n;
        return GRAFT_OK;
    }
    return GRAFT_OK;
}

static graft_status put(sink *k, const char *bytes, size_t n) {
    if (k->converter == (iconv_t)-1) return put_raw(k, bytes, n);
    char chunk[CHUNK];
    while (n > 0) {
        size_t take = GR_MIN(n, sizeof chunk - k->n_pending), rest;
        memcpy(chunk, k->pending, k->n_pending);
        memcpy(chunk + k->n_pending, bytes, take);
        size_t len = k->n_pending + take;
        graft_status st = convert(k, chunk, len, &rest);
        if (st != GRAFT_OK) return st;
        memcpy(k->pending, chunk + len - rest, rest);
        k->n_pending = rest;
        bytes += take;
        n -= take;
    }
    return GRAFT_OK;
}

static graft_status close_sink(sink *k, gr_map *map) {
    if (k->n_pending) return fail_bytes(k, k->pending, 1);
    *map = (gr_map){0};
    if (k->size == 0) return GRAFT_OK;
    void *data = mmap(NULL, (size_t)k->size, PROT_READ, MAP_PRIVATE, k->fd, 0);
    if (data == MAP_FAILED) return gr_fail_errno(k->err, GRAFT_FAILED, "cannot map the text of %s", k->path);
    *map = (gr_map){.data = data, .size = k->size};
    return GRAFT_OK;
}

/* ---- gzip ---- */

static graft_status fail_gzip(const sink *k, const z_stream *z, int code) {
    if (code == Z_BUF_ERROR) return gr_fail(k->err, GRAFT_BAD_INPUT, "%s: ends inside its gzip data: is it cut off?", k->path);
    if (code == Z_MEM_ERROR) return gr_fail_memory(k->err, k->path);
    return gr_fail(k->err, GRAFT_BAD_INPUT, "%s: damaged gzip data (%s)", k->path, z->msg ? z->msg : "no stream");
}

/* What is left of the file after a stream: another one is read on (cat a.gz b.gz), zeros are padding. */
static graft_status after_stream(const sink *k, z_stream *z, int64_t left, bool *more) {
    const uint8_t *at = z->next_in;
    *more = left >= 2 && at[0] == 0x1F && at[1] == 0x8B;
    if (*more) return inflateReset(z) == Z_OK ? GRAFT_OK : fail_gzip(k, z, Z_STREAM_ERROR);
    for (int64_t i = 0; i < left; i++)
        if (at[i]) return gr_fail(k->err, GRAFT_BAD_INPUT, "%s: other bytes after the end of its gzip data", k->path);
    return GRAFT_OK;
}

static graft_status unpack(sink *k, const gr_map *packed) {
    graft_status st = GRAFT_OK;
    uint8_t text[CHUNK];
    const uint8_t *end = packed->data + packed->size;
    int64_t size = 0, most = GR_MAX(MOST_ANYWAY, packed->size > INT64_MAX / MOST_TIMES ? INT64_MAX : packed->size * MOST_TIMES);
    z_stream z = {.next_in = (uint8_t *)(uintptr_t)packed->data};
    if (inflateInit2(&z, 15 + 16) != Z_OK) return gr_fail_memory(k->err, k->path);
    for (bool more = true; more;) {
        z.avail_in = (uInt)GR_MIN(end - z.next_in, 1 << 30);
        z.next_out = text;
        z.avail_out = sizeof text;
        int code = inflate(&z, Z_NO_FLUSH);
        if (code != Z_OK && code != Z_STREAM_END) GR_TRY(fail_gzip(k, &z, code));
        size_t got = sizeof text - z.avail_out;
        size += (int64_t)got;
        if (size > most)
            GR_TRY(gr_fail(k->err, GRAFT_BAD_INPUT, "%s: unpacks to more than %d times its size; if that is right, gunzip it first",
                           k->path, (int)MOST_TIMES));
        GR_TRY(put(k, (const char *)text, got));
        if (code == Z_STREAM_END) GR_TRY(after_stream(k, &z, end - z.next_in, &more));
    }
done:
    inflateEnd(&z);
    return st;
}

/* ---- all of it ---- */

graft_status gr_content_open(gr_map *map, const char *path, const char *encoding, graft_error *err) {
    static const char expected[] = "samples in JSON, JSONL or CSV";
    graft_status st = GRAFT_OK;
    gr_map file = {0};
    bool as_is = gr_encoding_is_utf8(encoding) || gr_encoding_is_replace(encoding);
    sink k = {.path = path, .encoding = encoding, .fd = -1, .line = 1, .converter = (iconv_t)-1, .err = err};
    *map = (gr_map){0};
    GR_TRY(gr_encoding_check(encoding, err));
    GR_TRY(gr_map_open(&file, path, err));
    gr_kind kind = gr_sniff(file.data, file.size, NULL);
    if (kind != GR_KIND_GZIP && as_is) {
        GR_TRY(gr_expect_kind(file.data, file.size, GR_KIND_UNKNOWN, expected, path, err));
        *map = file;
        file = (gr_map){0};
        goto done;
    }
    if (kind != GR_KIND_GZIP && kind != GR_KIND_UTF16)
        GR_TRY(gr_expect_kind(file.data, file.size, GR_KIND_UNKNOWN, expected, path, err));
    if (!as_is) k.converter = open_converter(encoding);
    GR_TRY(open_sink(&k));
    GR_TRY(kind == GR_KIND_GZIP ? unpack(&k, &file) : put(&k, (const char *)file.data, (size_t)file.size));
    GR_TRY(close_sink(&k, map));
    GR_TRY(gr_expect_kind(map->data, map->size, GR_KIND_UNKNOWN, expected, path, err));
done:
    if (st != GRAFT_OK) gr_map_close(map);
    if (k.converter != (iconv_t)-1) iconv_close(k.converter);
    if (k.fd >= 0) close(k.fd);
    gr_map_close(&file);
    return st;
}
