/* csv.h - inside core/data: records of comma-separated values, RFC 4180: a cell may be quoted, may then hold delimiters and line
 * ends, and "" for one quote. A quote inside a cell that does not begin with one is a character. */
#ifndef GR_CSV_H
#define GR_CSV_H

#include "core/base/base.h"

/* The cells of one record, unquoted, one after the other in text. Zero-initialise; reused by read; release frees. */
typedef struct gr_csv_record {
    gr_str text;
    int64_t *ends; /* [n] where each cell ends in text */
    int64_t n, capacity;
} gr_csv_record;

void gr_csv_release(gr_csv_record *record);

/* The record at text[0..n), n > 0: its cells to record (NULL: only where it ends), *size the bytes up to the next record. NULL, or
 * what is wrong with it ("out of memory" among that). */
const char *gr_csv_read(gr_csv_record *record, const char *text, int64_t n, char delimiter, int64_t *size);
/* Of comma, semicolon and tab, the one that the first line has most of outside of quotes; comma where it has none. */
char gr_csv_delimiter(const char *text, int64_t n);

#endif
