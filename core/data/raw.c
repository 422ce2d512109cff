/* raw.c - files that are text and nothing else: the whole a document, or one a paragraph or a line. */
#include <string.h>

#include "core/data/reader.h"
#include "core/text/utf8.h"

enum { PIECE_BYTES = 1 << 20 }; /* of a document that are tokenised as one text */

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/* A document in pieces: each ends behind a line whose next one begins with a letter, so that no pre-tokenizer sees the seam. */
static graft_status index_document(gr_reader *r, int64_t at, graft_error *err) {
    const char *text = (const char *)r->map.data;
    graft_status st = GRAFT_OK;
    for (int64_t line = 1, end; at < r->map.size; at = end) {
        int64_t first = line;
        for (end = at; end < r->map.size; end++) {
            bool seam = text[end] == '\n';
            line += seam;
            if (seam && end + 1 - at >= PIECE_BYTES && end + 1 < r->map.size && !is_blank(text[end + 1])) {
                end++;
                break;
            }
        }
        GR_TRY(gr_reader_add_span(r, at, end, first, err));
    }
done:
    return st;
}

/* What lies between blank lines, or each line that is not blank; without the white space around it. */
static graft_status index_parts(gr_reader *r, int64_t at, int64_t limit, graft_error *err) {
    const char *text = (const char *)r->map.data;
    graft_status st = GRAFT_OK;
    int64_t start = -1, end = 0, first = 0;
    for (int64_t line = 1; at < r->map.size && (limit == 0 || r->n_spans < limit); line++) {
        const char *newline = memchr(text + at, '\n', (size_t)(r->map.size - at));
        int64_t next = newline ? newline - text + 1 : r->map.size, from = at, to = next;
        while (to > from && is_blank(text[to - 1])) to--;
        if (start >= 0 && to == from) {
            GR_TRY(gr_reader_add_span(r, start, end, first, err));
            start = -1;
        }
        if (to > from) {
            if (start < 0) start = from, first = line;
            end = to;
            if (r->raw == GR_RAW_LINES) {
                GR_TRY(gr_reader_add_span(r, start, end, first, err));
                start = -1;
            }
        }
        at = next;
    }
    if (start >= 0 && (limit == 0 || r->n_spans < limit)) st = gr_reader_add_span(r, start, end, first, err);
done:
    return st;
}

graft_status gr_raw_index(gr_reader *r, int64_t limit, graft_error *err) {
    const char *text = (const char *)r->map.data;
    int64_t at = r->map.size >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0, first = at;
    while (first < r->map.size && is_blank(text[first])) first++;
    if (first == r->map.size) return gr_fail(err, GRAFT_BAD_INPUT, "%s: empty, expected text", r->path);
    return r->raw == GR_RAW_DOCUMENT ? index_document(r, at, err) : index_parts(r, at, limit, err);
}

graft_status gr_raw_parse(const gr_reader *r, int64_t i, gr_sample *s, graft_error *err) {
    const gr_span *span = &r->spans[i];
    const char *text = (const char *)r->map.data + span->start;
    bool valid = gr_utf8_valid(text, span->len), nul = memchr(text, '\0', (size_t)span->len) != NULL;
    if (!valid && !r->replace) return gr_reader_check_bytes(r, span, err);
    s->continues = r->raw == GR_RAW_DOCUMENT && i > 0;
    s->continued = r->raw == GR_RAW_DOCUMENT && i + 1 < r->n_spans;
    gr_str mended = {0};
    if (!valid) gr_utf8_repair(text, span->len, &mended);
    const char *from = valid ? text : mended.data;
    int64_t n = valid ? span->len : mended.len;
    char *copy = mended.failed ? NULL : gr_arena_alloc(&s->arena, (nul ? 3 * n : n) + 1), *to = copy;
    for (int64_t k = 0; copy && nul && k < n; k++) {
        if (from[k]) *to++ = from[k];
        else to = (char *)memcpy(to, "\xEF\xBF\xBD", 3) + 3;
    }
    if (copy && !nul) memcpy(copy, from, (size_t)n);
    gr_str_release(&mended);
    if (!copy) return gr_fail_memory(err, r->path);
    s->text = copy;
    if (!valid) gr_tally_add(r->tally, GR_REMARK_REPLACED, NULL);
    if (nul) gr_tally_add(r->tally, GR_REMARK_NUL, NULL);
    return GRAFT_OK;
}
