#include "core/data/csv.h"

#include <stdlib.h>
#include <string.h>

void gr_csv_release(gr_csv_record *record) {
    gr_str_release(&record->text);
    free(record->ends);
    *record = (gr_csv_record){0};
}

/* Where the text of the quoted cell at text[at] ends: its closing quote; n when there is none. Each "" is one quote of it. */
static int64_t read_quoted(gr_csv_record *record, const char *text, int64_t n, int64_t at) {
    for (int64_t start = at + 1;;) {
        const char *quote = start < n ? memchr(text + start, '"', (size_t)(n - start)) : NULL;
        if (!quote) return n;
        at = quote - text;
        bool twice = at + 1 < n && text[at + 1] == '"';
        if (record) gr_str_add(&record->text, text + start, at - start + twice);
        if (!twice) return at;
        start = at + 2;
    }
}

static bool ends_line(const char *text, int64_t n, int64_t at) {
    return at >= n || text[at] == '\n' || (text[at] == '\r' && (at + 1 >= n || text[at + 1] == '\n'));
}

const char *gr_csv_read(gr_csv_record *record, const char *text, int64_t n, char delimiter, int64_t *size) {
    int64_t at = 0;
    if (record) {
        gr_str_clear(&record->text);
        record->n = 0;
    }
    *size = n;
    for (bool more = true; more; at++) {
        if (at < n && text[at] == '"') {
            at = read_quoted(record, text, n, at);
            if (at == n) return "a quote that is opened here is never closed";
            at++;
        } else {
            int64_t start = at;
            while (!ends_line(text, n, at) && text[at] != delimiter) at++;
            if (record) gr_str_add(&record->text, text + start, at - start);
        }
        more = at < n && text[at] == delimiter;
        if (!more && !ends_line(text, n, at))
            return "text after the closing quote of a cell; a quote inside a quoted cell is written twice";
        if (!record) continue;
        if (!gr_grow(&record->ends, &record->capacity, record->n + 1, sizeof *record->ends) || record->text.failed)
            return "out of memory";
        record->ends[record->n++] = record->text.len;
    }
    at--; /* at the line's end */
    if (at < n && text[at] == '\r') at++;
    *size = GR_MIN(at + 1, n);
    return NULL;
}

char gr_csv_delimiter(const char *text, int64_t n) {
    static const char delimiters[] = {',', ';', '\t'};
    int64_t counts[GR_LEN(delimiters)] = {0};
    int best = 0;
    bool quoted = false;
    for (int64_t at = 0; at < n && (quoted || text[at] != '\n'); at++) {
        quoted ^= text[at] == '"';
        for (int i = 0; i < GR_LEN(delimiters) && !quoted; i++) counts[i] += text[at] == delimiters[i];
    }
    for (int i = 1; i < GR_LEN(delimiters); i++)
        if (counts[i] > counts[best]) best = i;
    return delimiters[best];
}
