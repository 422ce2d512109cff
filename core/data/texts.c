#include "core/data/texts.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/data/content.h"
#include "core/data/reader.h"
#include "core/text/utf8.h"

enum { STRETCH = 1 << 18, SAMPLES = 256, ROUND = 64 }; /* bytes or samples of a chunk; chunks between two looks at the progress */

typedef struct reading {
    gr_text_fn *fn;
    void *context;
    const char *path;
    bool replace;
    const gr_reader *reader; /* NULL: raw text */
    gr_map map;
    int64_t *ends; /* of raw text's stretches */
    int64_t n_chunks, first;
    graft_status status[ROUND];
    graft_error err[ROUND];
} reading;

static bool has_samples(const char *path) {
    const char *ending = gr_data_ending(path);
    return ending && strcmp(ending, "txt") != 0;
}

/* ---- raw text ---- */

static graft_status fail_bytes(const reading *r, int64_t start, int64_t end, graft_error *err) {
    const char *text = (const char *)r->map.data;
    int size;
    while (start < end && gr_utf8_decode(text + start, end - start, &size, NULL) >= 0) start += size;
    int64_t line = 1;
    for (int64_t i = 0; i < start; i++) line += text[i] == '\n';
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "%s:%lld: byte 0x%02X is no UTF-8: name the file's encoding (--encoding gb18030, big5, latin1 ...), or "
                   "read such bytes as U+FFFD (--encoding replace)",
                   r->path, (long long)line, (uint8_t)text[start]);
}

static graft_status read_stretch(const reading *r, int64_t chunk, int worker, graft_error *err) {
    const char *text = (const char *)r->map.data;
    int64_t start = chunk ? r->ends[chunk - 1] : 0, end = r->ends[chunk];
    if (start == 0 && end >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3)) start = 3;
    if (gr_utf8_valid(text + start, end - start)) return r->fn(r->context, worker, text + start, end - start, err);
    if (!r->replace) return fail_bytes(r, start, end, err);
    gr_str valid = {0};
    gr_utf8_repair(text + start, end - start, &valid);
    graft_status st = valid.failed ? gr_fail_memory(err, r->path) : r->fn(r->context, worker, valid.data, valid.len, err);
    gr_str_release(&valid);
    return st;
}

/* Stretches end with a line; a very long line is cut between characters. */
static bool find_stretches(reading *r) {
    const char *text = (const char *)r->map.data;
    int64_t size = r->map.size, capacity = 0;
    for (int64_t at = 0; at < size;) {
        int64_t end = GR_MIN(at + STRETCH, size);
        const char *newline = end < size ? memchr(text + end, '\n', (size_t)GR_MIN(size - end, STRETCH)) : NULL;
        if (newline) end = newline - text + 1;
        else if (end < size)
            while (end > at + STRETCH - 4 && ((uint8_t)text[end] & 0xC0) == 0x80) end--;
        if (!gr_grow(&r->ends, &capacity, r->n_chunks + 1, sizeof *r->ends)) return false;
        at = r->ends[r->n_chunks++] = end;
    }
    return true;
}

/* ---- samples ---- */

static graft_status read_samples(const reading *r, int64_t chunk, int worker, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_sample s = {0};
    int64_t end = GR_MIN((chunk + 1) * SAMPLES, gr_reader_count(r->reader));
    for (int64_t i = chunk * SAMPLES; i < end; i++) {
        GR_TRY(gr_reader_parse(r->reader, i, &s, err));
        if (s.text) GR_TRY(r->fn(r->context, worker, s.text, (int64_t)strlen(s.text), err));
        for (int64_t k = 0; k < s.n_messages; k++) {
            const char *text = s.messages[k].content;
            if (text && *text) GR_TRY(r->fn(r->context, worker, text, (int64_t)strlen(text), err));
        }
    }
done:
    gr_sample_release(&s);
    return st;
}

/* ---- all ---- */

static void read_chunk(void *context, int64_t k, int worker) {
    reading *r = context;
    int64_t chunk = r->first + k;
    r->status[k] = r->reader ? read_samples(r, chunk, worker, &r->err[k]) : read_stretch(r, chunk, worker, &r->err[k]);
}

static graft_status read_file(reading *r, const gr_data_source *source, struct gr_threads *threads, int64_t *bytes,
                              graft_error *err) {
    gr_reader *reader = NULL;
    graft_status st = GRAFT_OK;
    gr_progress progress;
    *r = (reading){.fn = r->fn, .context = r->context, .path = source->path, .replace = gr_encoding_is_replace(source->encoding)};
    if (has_samples(source->path)) {
        GR_TRY(gr_reader_open(&reader, source, err));
        r->reader = reader;
        r->n_chunks = (gr_reader_count(reader) + SAMPLES - 1) / SAMPLES;
        *bytes += reader->map.size;
    } else {
        GR_TRY(gr_content_open(&r->map, source->path, source->encoding, err));
        if (!find_stretches(r)) GR_TRY(gr_fail_memory(err, source->path));
        *bytes += r->map.size;
    }
    gr_progress_start(&progress, "reading", r->n_chunks);
    for (r->first = 0; r->first < r->n_chunks && st == GRAFT_OK; r->first += ROUND) {
        int64_t n = GR_MIN(ROUND, r->n_chunks - r->first);
        gr_threads_run(threads, n, read_chunk, r);
        for (int64_t k = 0; k < n && st == GRAFT_OK; k++) {
            st = r->status[k];
            if (st != GRAFT_OK && err) *err = r->err[k];
        }
        if (r->n_chunks > ROUND) gr_progress_update(&progress, r->first + n, "parts of %s", source->path);
    }
    if (r->n_chunks > ROUND) gr_progress_end(&progress);
done:
    gr_reader_close(reader);
    gr_map_close(&r->map);
    free(r->ends);
    return st;
}

/* A file, or all of a folder. */
static graft_status read_source(reading *r, const gr_data_source *source, struct gr_threads *threads, int64_t *bytes,
                                graft_error *err) {
    char **files = NULL;
    int64_t n_files = 0;
    gr_data_source file = *source;
    graft_status st = gr_source_files(&files, &n_files, source->path, true, err);
    for (int64_t i = 0; i < n_files && st == GRAFT_OK; i++) {
        file.path = files[i];
        st = read_file(r, &file, threads, bytes, err);
    }
    gr_source_files_free(files, n_files);
    return st;
}

graft_status gr_texts_read(const gr_data_source *sources, int n_sources, struct gr_threads *threads, gr_text_fn *fn, void *context,
                           int64_t *bytes, graft_error *err) {
    graft_status st = GRAFT_OK;
    reading *r = gr_calloc(1, sizeof *r); /* its errors are too large for a stack */
    *bytes = 0;
    if (!r) return gr_fail_memory(err, "texts");
    *r = (reading){.fn = fn, .context = context};
    for (int i = 0; i < n_sources && st == GRAFT_OK; i++) st = read_source(r, &sources[i], threads, bytes, err);
    free(r);
    return st;
}
