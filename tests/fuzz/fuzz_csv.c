/* Records of CSV from arbitrary bytes: they cover the text, and what their cells are written as reads back as the same cells. */
#include <stdlib.h>
#include <string.h>

#include "core/data/csv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void write_record(gr_str *out, const gr_csv_record *cells, char delimiter) {
    for (int64_t i = 0; i < cells->n; i++) {
        if (i) gr_str_putc(out, delimiter);
        gr_str_putc(out, '"');
        for (int64_t k = i ? cells->ends[i - 1] : 0; k < cells->ends[i]; k++) {
            if (cells->text.data[k] == '"') gr_str_putc(out, '"');
            gr_str_putc(out, cells->text.data[k]);
        }
        gr_str_putc(out, '"');
    }
    gr_str_puts(out, "\r\n");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    char *text = malloc(size - 1); /* of exactly this size, for the sanitizer */
    int64_t n = (int64_t)size - 1, length, again_length, end;
    char delimiter = data[0] % 2 ? ',' : gr_csv_delimiter((const char *)data + 1, n);
    gr_csv_record cells = {0}, again = {0};
    gr_str written = {0};
    GR_ASSERT(text);
    memcpy(text, data + 1, size - 1);
    for (int64_t at = 0; at < n; at += length) {
        const char *why = gr_csv_read(&cells, text + at, n - at, delimiter, &length);
        GR_ASSERT((gr_csv_read(NULL, text + at, n - at, delimiter, &end) == NULL) == (why == NULL));
        if (why) break;
        GR_ASSERT(end == length && length > 0 && length <= n - at && cells.n > 0 && cells.text.len <= length);
        gr_str_clear(&written);
        write_record(&written, &cells, delimiter);
        GR_ASSERT(!gr_csv_read(&again, written.data, written.len, delimiter, &again_length) && again_length == written.len);
        GR_ASSERT(again.n == cells.n && again.text.len == cells.text.len);
        GR_ASSERT(!memcmp(again.ends, cells.ends, (size_t)cells.n * sizeof *cells.ends));
        GR_ASSERT(cells.text.len == 0 || !memcmp(again.text.data, cells.text.data, (size_t)cells.text.len));
    }
    gr_csv_release(&cells);
    gr_csv_release(&again);
    gr_str_release(&written);
    free(text);
    return 0;
}
