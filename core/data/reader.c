#include "core/data/reader.h"

#include <ctype.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "core/data/content.h"
#include "core/data/csv.h"
#include "core/text/utf8.h"

enum { DROP_BYTES = 64 << 20 };

/* ---- text that jansson accepts ---- */

static int hex4(const char *s, int64_t left) { /* the value of 4 hex digits, -1 if they are none */
    int value = 0;
    if (left < 4) return -1;
    for (int i = 0; i < 4; i++) {
        if (!isxdigit((uint8_t)s[i])) return -1;
        value = value * 16 + (s[i] <= '9' ? s[i] - '0' : (s[i] | 0x20) - 'a' + 10);
    }
    return value;
}

/* The escape at s (s[0] is a backslash): its bytes, those of both halves of a surrogate pair; *lone: half a pair alone. */
static int escape_length(const char *s, int64_t left, bool *lone) {
    int unit = left > 1 && s[1] == 'u' ? hex4(s + 2, left - 2) : -1;
    *lone = false;
    if (unit < 0) return (int)GR_MIN(left, 2);
    if (unit < 0xD800 || unit >= 0xE000) return 6;
    int second = left > 7 && s[6] == '\\' && s[7] == 'u' ? hex4(s + 8, left - 8) : -1;
    *lone = unit >= 0xDC00 || second < 0xDC00 || second >= 0xE000;
    return *lone ? 6 : 12;
}

/* JSON text with damaged UTF-8 and halves of surrogate pairs read as U+FFFD, as Python's errors="replace" does. */
static void mend(gr_str *out, const char *text, int64_t len) {
    gr_str valid = {0};
    gr_utf8_repair(text, len, &valid);
    out->failed = valid.failed;
    for (int64_t i = 0, n; i < valid.len && !out->failed; i += n) {
        bool lone = false;
        n = valid.data[i] == '\\' ? escape_length(valid.data + i, valid.len - i, &lone) : 1;
        gr_str_add(out, lone ? "\\ufffd" : valid.data + i, n);
    }
    gr_str_release(&valid);
}

/* ---- where the samples are ---- */

/* The memory of the map before `at` back to the system, now and then: a large file is read, not kept. */
static void drop_before(gr_reader *r, int64_t at) {
    if (at - r->dropped < DROP_BYTES) return;
    gr_map_drop(r->map.data + r->dropped, at - r->dropped);
    r->dropped = at;
}

void gr_reader_pass(gr_reader *r, int64_t i) {
    if (i > 0) drop_before(r, r->spans[i - 1].start);
}

graft_status gr_reader_add_span(gr_reader *r, int64_t start, int64_t end, int64_t line, graft_error *err) {
    if (!gr_grow(&r->spans, &r->span_capacity, r->n_spans + 1, sizeof *r->spans)) return gr_fail_memory(err, r->path);
    drop_before(r, start);
    r->spans[r->n_spans++] = (gr_span){start, end - start, line};
    return GRAFT_OK;
}

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

static graft_status index_lines(gr_reader *r, int64_t at, int64_t limit, graft_error *err) {
    const char *text = (const char *)r->map.data;
    graft_status st = GRAFT_OK;
    for (int64_t line = 1; at < r->map.size && (limit == 0 || r->n_spans < limit); line++) {
        const char *newline = memchr(text + at, '\n', (size_t)(r->map.size - at));
        int64_t end = newline ? newline - text : r->map.size, start = at;
        at = end + 1;
        while (start < end && is_space(text[start])) start++;
        if (start < end) GR_TRY(gr_reader_add_span(r, start, end, line, err));
    }
done:
    return st;
}

/* The elements of an array by brackets and strings alone: their own syntax is checked when they are parsed. */
static graft_status index_array(gr_reader *r, int64_t at, int64_t line, int64_t limit, graft_error *err) {
    const char *text = (const char *)r->map.data;
    graft_status st = GRAFT_OK;
    int64_t depth = 0, start = -1, start_line = 0;
    bool quoted = false, closed = false, comma = false;
    for (; at < r->map.size && (limit == 0 || r->n_spans < limit); at++) {
        char c = text[at];
        line += c == '\n';
        if (quoted) {
            if (c == '\\') at++;
            else quoted = c != '"';
            continue;
        }
        if (is_space(c)) continue;
        if (closed) GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s:%lld: text after the end of the array", r->path, (long long)line));
        if (depth == 0) { /* the opening bracket of the file */
            depth = 1;
            continue;
        }
        bool ends = depth == 1 && (c == ',' || c == ']');
        if (ends && start >= 0) GR_TRY(gr_reader_add_span(r, start, at, start_line, err));
        else if (ends && (c == ',' || comma))
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s:%lld: a comma with no sample %s it", r->path, (long long)line,
                           c == ',' ? "before" : "after"));
        if (ends) {
            closed = c == ']';
            comma = c == ',';
            start = -1;
            continue;
        }
        if (start < 0) start = at, start_line = line;
        quoted = c == '"';
        depth += c == '[' || c == '{';
        depth -= c == ']' || c == '}';
        if (depth < 1)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT, "%s:%lld: unexpected \"%c\" in the array", r->path, (long long)line, c));
    }
    if (!closed && (limit == 0 || r->n_spans < limit))
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s:%lld: the file ends inside the array (after %lld whole samples): is it cut off?",
                     r->path, (long long)line, (long long)r->n_spans);
done:
    return st;
}

/* ---- CSV ---- */

static graft_status fail_csv(const gr_reader *r, int64_t line, const char *why, graft_error *err) {
    return gr_fail(err, GRAFT_BAD_INPUT, "%s:%lld: %s", r->path, (long long)line, why);
}

/* The names of the columns, at the file's start. */
static graft_status read_header(gr_reader *r, int64_t at, int64_t *size, graft_error *err) {
    graft_status st = GRAFT_OK;
    gr_csv_record names = {0};
    const char *why = gr_csv_read(&names, (const char *)r->map.data + at, r->map.size - at, r->delimiter, size);
    if (why) GR_TRY(fail_csv(r, 1, why, err));
    r->header = gr_arena_alloc(&r->arena, names.n * (int64_t)sizeof *r->header);
    if (!r->header) GR_TRY(gr_fail_memory(err, r->path));
    for (int64_t i = 0; i < names.n; i++) {
        int64_t start = i ? names.ends[i - 1] : 0, end = names.ends[i];
        while (start < end && is_space(names.text.data[start])) start++;
        while (end > start && is_space(names.text.data[end - 1])) end--;
        char *name = gr_arena_alloc(&r->arena, end - start + 1);
        if (!name) GR_TRY(gr_fail_memory(err, r->path));
        memcpy(name, names.text.data + start, (size_t)(end - start));
        r->header[r->n_header++] = name;
        if (strlen(name) < (size_t)(end - start) || !gr_utf8_valid(name, end - start))
            GR_TRY(fail_csv(r, 1, "the name of a column is no UTF-8: name the file's encoding (data.encoding: gb18030, latin1 ...)",
                            err));
        for (int64_t k = 0; k < i; k++)
            if (!strcmp(r->header[k], name)) GR_TRY(fail_csv(r, 1, "two columns of one name", err));
    }
done:
    gr_csv_release(&names);
    return st;
}

static graft_status index_csv(gr_reader *r, int64_t at, int64_t limit, graft_error *err) {
    const char *text = (const char *)r->map.data;
    graft_status st = GRAFT_OK;
    int64_t size, line = 1;
    GR_TRY(read_header(r, at, &size, err));
    for (;;) {
        for (int64_t k = at; k < at + size; k++) line += text[k] == '\n';
        at += size;
        if (at >= r->map.size || (limit > 0 && r->n_spans >= limit)) break;
        const char *why = gr_csv_read(NULL, text + at, r->map.size - at, r->delimiter, &size);
        if (why) GR_TRY(fail_csv(r, line, why, err));
        int64_t end = at + size;
        while (end > at && (text[end - 1] == '\n' || text[end - 1] == '\r')) end--;
        if (end > at) GR_TRY(gr_reader_add_span(r, at, end, line, err));
    }
    if (r->n_spans == 0) GR_TRY(fail_csv(r, 1, "a header without records", err));
done:
    return st;
}

const char *gr_data_ending(const char *name) {
    static const char *const endings[] = {"jsonl", "json", "csv", "tsv", "txt"};
    size_t n = strlen(name);
    if (n > 3 && strcasecmp(name + n - 3, ".gz") == 0) n -= 3;
    for (int i = 0; i < GR_LEN(endings); i++) {
        size_t len = strlen(endings[i]);
        if (n > len + 1 && name[n - len - 1] == '.' && strncasecmp(name + n - len, endings[i], len) == 0) return endings[i];
    }
    return NULL;
}

static bool has_ending(const char *path, const char *ending) {
    const char *found = gr_data_ending(path);
    return found && strcmp(found, ending) == 0;
}

/* Whether the file is CSV, by its name or because its first line is a list of columns that a form has; sets its delimiter. */
static bool find_csv(gr_reader *r, int64_t at) {
    const char *text = (const char *)r->map.data + at;
    int64_t n = r->map.size - at, size, known = 0;
    bool csv = has_ending(r->path, "csv"), tsv = has_ending(r->path, "tsv");
    gr_csv_record names = {0};
    r->delimiter = tsv ? '\t' : gr_csv_delimiter(text, n);
    if (!csv && !tsv && !gr_csv_read(&names, text, n, r->delimiter, &size) && names.n > 1)
        for (int64_t i = 0; i < names.n; i++) {
            int64_t start = i ? names.ends[i - 1] : 0;
            known += gr_form_knows(names.text.data + start, names.ends[i] - start);
        }
    gr_csv_release(&names);
    return csv || tsv || known > 0;
}

static json_t *csv_row(const gr_reader *r, const gr_csv_record *cells) {
    json_t *row = json_object();
    for (int64_t i = 0; row && i < r->n_header; i++) {
        int64_t start = i ? cells->ends[i - 1] : 0;
        if (json_object_set_new(row, r->header[i], json_stringn(cells->text.data + start, (size_t)(cells->ends[i] - start)))) {
            json_decref(row);
            return NULL;
        }
    }
    return row;
}

/* NULL in *row: text that is no UTF-8 (or no memory). */
static graft_status parse_csv(const gr_reader *r, int64_t i, const char *text, int64_t len, json_t **row, graft_error *err) {
    gr_csv_record cells = {0};
    graft_status st = GRAFT_OK;
    int64_t size;
    const char *why = gr_csv_read(&cells, text, len, r->delimiter, &size);
    if (!why && cells.n != r->n_header)
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s:%lld: %lld cells, the header has %lld: is a quote or a delimiter missing?", r->path,
                     (long long)r->spans[i].line, (long long)cells.n, (long long)r->n_header);
    else if (why) st = fail_csv(r, r->spans[i].line, why, err);
    *row = st == GRAFT_OK ? csv_row(r, &cells) : NULL;
    gr_csv_release(&cells);
    return st;
}

/* ---- what the file is ---- */

static graft_status index_samples(gr_reader *r, int64_t limit, graft_error *err) {
    const char *text = (const char *)r->map.data;
    int64_t size = r->map.size, at = 0, first, line = 1;
    graft_status st;
    if (size >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3)) at = 3;
    for (first = at; first < size && is_space(text[first]); first++) line += text[first] == '\n';
    if (first == size)
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: empty, expected JSONL (one object a line), a JSON array or CSV", r->path);
    r->is_array = text[first] == '[';
    if (!r->is_array && text[first] != '{' && find_csv(r, at)) return index_csv(r, at, limit, err);
    r->delimiter = 0;
    st = r->is_array ? index_array(r, first, line, limit, err) : index_lines(r, at, limit, err);
    if (st == GRAFT_OK && r->n_spans == 0) st = gr_fail(err, GRAFT_BAD_INPUT, "%s: an empty list, no samples", r->path);
    return st;
}

/* ---- parsing one ---- */

void gr_reader_where(const gr_reader *r, int64_t i, char *text, size_t size) {
    snprintf(text, size, "%s:%lld", r->path, (long long)r->spans[i].line);
    size_t n = strlen(text);
    if (r->is_array) snprintf(text + n, size - n, " (sample %lld)", (long long)i + 1);
}

static void sample_clear(gr_sample *s) {
    json_decref(s->root);
    json_decref(s->made);
    gr_arena_release(&s->arena);
    s->root = s->made = NULL;
    s->rounded = false;
    s->text = NULL;
    s->tools = s->documents = NULL;
    s->is_pair = s->continues = s->continued = false;
    s->n_messages = 0;
}

void gr_sample_release(gr_sample *s) {
    sample_clear(s);
    free(s->messages);
    *s = (gr_sample){0};
}

static graft_status fail_json(const gr_reader *r, const gr_span *span, const json_error_t *e, graft_error *err) {
    const char *text = (const char *)r->map.data;
    int64_t line_start = span->start;
    while (line_start > 0 && text[line_start - 1] != '\n') line_start--;
    long long column = e->column + (e->line == 1 ? (long long)(span->start - line_start) : 0);
    char why[sizeof e->text];
    snprintf(why, sizeof why, "%s", e->text);
    for (char *c = why; *c; c++)
        if ((uint8_t)*c < 0x20) *c = ' ';
    return gr_fail(err, GRAFT_BAD_INPUT, "%s:%lld:%lld: bad JSON: %s%s", r->path, (long long)span->line + e->line - 1, column, why,
                   r->is_array ? "" : " (expected a JSON array, one object a line, or a CSV with a header)");
}

/* Whole numbers stay whole, for templates that write them; with one beyond 64 bits all become fractions. */
static json_t *load(const char *text, int64_t len, bool *rounded, json_error_t *e) {
    enum { FLAGS = JSON_ALLOW_NUL | JSON_DECODE_ANY };
    json_t *root = json_loadb(text, (size_t)len, FLAGS, e);
    *rounded = !root && json_error_code(e) == json_error_numeric_overflow;
    return *rounded ? json_loadb(text, (size_t)len, FLAGS | JSON_DECODE_INT_AS_REAL, e) : root;
}

/* The root of JSON or of a record; NULL without an error: what is wrong is in *e, or the text is no UTF-8. */
static graft_status parse_text(const gr_reader *r, int64_t i, const char *text, int64_t len, json_t **root, bool *rounded,
                               json_error_t *e, graft_error *err) {
    *rounded = false;
    if (r->delimiter) return parse_csv(r, i, text, len, root, err);
    *root = load(text, len, rounded, e);
    return GRAFT_OK;
}

graft_status gr_reader_check_bytes(const gr_reader *r, const gr_span *span, graft_error *err) {
    const char *text = (const char *)r->map.data + span->start;
    int64_t line = span->line;
    for (int64_t at = 0; at < span->len;) {
        int size;
        line += text[at] == '\n';
        if (gr_utf8_decode(text + at, span->len - at, &size, NULL) < 0)
            return gr_fail(
                err, GRAFT_BAD_INPUT,
                "%s:%lld: byte 0x%02X is no UTF-8: name the file's encoding (data.encoding: gb18030, big5, latin1 ...), or "
                "read such bytes as U+FFFD (data.encoding: replace)",
                r->path, (long long)line, (uint8_t)text[at]);
        at += size;
    }
    return GRAFT_OK;
}

/* Bytes that are no UTF-8, or half of a surrogate pair: what else a reader refuses that reads the mended text. */
static graft_status fail_text(const gr_reader *r, const gr_span *span, graft_error *err) {
    graft_status st = gr_reader_check_bytes(r, span, err);
    if (st != GRAFT_OK) return st;
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "%s:%lld: \\ud800 to \\udfff alone is half a character; data.encoding: replace reads it as U+FFFD", r->path,
                   (long long)span->line);
}

static graft_status parse_json(const gr_reader *r, int64_t i, json_t **root, bool *rounded, graft_error *err) {
    const gr_span *span = &r->spans[i];
    const char *text = (const char *)r->map.data + span->start;
    json_error_t e, e2;
    graft_status st = parse_text(r, i, text, span->len, root, rounded, &e, err);
    if (st != GRAFT_OK || *root) return st;
    gr_str mended = {0};
    mend(&mended, text, span->len);
    st = mended.failed ? gr_fail_memory(err, r->path) : parse_text(r, i, mended.data, mended.len, root, rounded, &e2, err);
    gr_str_release(&mended);
    if (st != GRAFT_OK) return st;
    if (!*root && !gr_utf8_valid(text, span->len)) return fail_text(r, span, err);
    if (!*root) return r->delimiter ? gr_fail_memory(err, r->path) : fail_json(r, span, &e, err);
    if (r->replace) return gr_tally_add(r->tally, GR_REMARK_REPLACED, NULL), GRAFT_OK;
    json_decref(*root);
    *root = NULL;
    return fail_text(r, span, err);
}

graft_status gr_reader_parse(const gr_reader *r, int64_t i, gr_sample *s, graft_error *err) {
    sample_clear(s);
    if (r->raw) return gr_raw_parse(r, i, s, err);
    graft_status st = parse_json(r, i, &s->root, &s->rounded, err);
    return st == GRAFT_OK ? gr_form_convert(r, i, s, err) : st;
}

/* ---- the reader ---- */

graft_status gr_source_file(char **file, const char *path, graft_error *err) {
    *file = gr_is_dir(path) ? gr_path_join(path, "train.jsonl") : gr_strdup(path);
    if (!*file) return gr_fail_memory(err, path);
    if (gr_exists(*file)) return GRAFT_OK;
    free(*file);
    *file = NULL;
    if (gr_is_dir(path)) return gr_fail(err, GRAFT_BAD_INPUT, "%s: a folder without train.jsonl; name the file", path);
    return gr_fail(err, GRAFT_BAD_INPUT, "%s: no such file", path);
}

static int by_path(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

typedef struct file_list {
    char **files;
    int64_t n, capacity;
} file_list;

static graft_status list_folder(file_list *l, const char *folder, int depth, graft_error *err) {
    enum { DEEPEST = 16 };
    graft_status st = GRAFT_OK;
    DIR *d = opendir(folder);
    struct dirent *e;
    if (!d) return gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", folder);
    while (st == GRAFT_OK && (e = readdir(d))) {
        char *path = e->d_name[0] == '.' ? NULL : gr_path_join(folder, e->d_name);
        if (!path) continue;
        bool inner = gr_is_dir(path), taken = !inner && gr_data_ending(e->d_name);
        if (inner && depth < DEEPEST) st = list_folder(l, path, depth + 1, err);
        else if (inner) st = gr_fail(err, GRAFT_BAD_INPUT, "%s: more than %d folders deep: a link that leads back?", path, DEEPEST);
        if (taken && !gr_grow(&l->files, &l->capacity, l->n + 1, sizeof *l->files)) st = gr_fail_memory(err, folder), taken = false;
        if (taken) l->files[l->n++] = path;
        else free(path);
    }
    closedir(d);
    return st;
}

void gr_source_files_free(char **files, int64_t n) {
    for (int64_t i = 0; i < n; i++) free(files[i]);
    free(files);
}

graft_status gr_source_files(char ***files, int64_t *n, const char *path, bool many, graft_error *err) {
    graft_status st;
    file_list l = {0};
    char *one = gr_path_join(path, "train.jsonl");
    bool folder = many && one && gr_is_dir(path) && !gr_exists(one);
    free(one);
    if (folder) {
        GR_TRY(list_folder(&l, path, 0, err));
        if (l.n == 0)
            GR_TRY(gr_fail(err, GRAFT_BAD_INPUT,
                           "%s: a folder without data: expected .txt, .jsonl, .json, .csv or .tsv, also as .gz", path));
        qsort(l.files, (size_t)l.n, sizeof *l.files, by_path);
    } else {
        if (!gr_grow(&l.files, &l.capacity, 1, sizeof *l.files)) return gr_fail_memory(err, path);
        GR_TRY(gr_source_file(&l.files[0], path, err));
        l.n = 1;
    }
    *files = l.files, *n = l.n;
    return GRAFT_OK;
done:
    gr_source_files_free(l.files, l.n);
    return st;
}

static graft_status copy_names(gr_reader *r, const gr_data_source *source, graft_error *err) {
    r->n_columns = source->n_columns;
    r->columns = gr_arena_alloc(&r->arena, (int64_t)sizeof *r->columns * source->n_columns);
    if (!r->columns) return gr_fail_memory(err, "columns");
    for (int i = 0; i < source->n_columns; i++) {
        r->columns[i].name = gr_arena_strdup(&r->arena, source->columns[i].name);
        r->columns[i].column = gr_arena_strdup(&r->arena, source->columns[i].column);
        if (!r->columns[i].name || !r->columns[i].column) return gr_fail_memory(err, "columns");
    }
    r->n_ignore = source->n_ignore;
    r->ignore = gr_arena_alloc(&r->arena, (int64_t)sizeof *r->ignore * source->n_ignore);
    if (!r->ignore) return gr_fail_memory(err, "columns");
    for (int i = 0; i < source->n_ignore; i++)
        if (!(r->ignore[i] = gr_arena_strdup(&r->arena, source->ignore[i]))) return gr_fail_memory(err, "columns");
    return GRAFT_OK;
}

/* How a file is read that is text alone: by the name of a format, or a .txt that does not begin as JSON or CSV do. */
static gr_raw raw_form(gr_reader *r, const char *format) {
    const char *text = (const char *)r->map.data;
    int64_t at = 0;
    if (format && strcmp(format, "auto") != 0) return gr_form_raw(format);
    if (!has_ending(r->path, "txt")) return GR_RAW_NONE;
    while (at < r->map.size && is_space(text[at])) at++;
    if (at < r->map.size && text[at] == '[')
        for (at++; at < r->map.size && is_space(text[at]);) at++;
    if (at < r->map.size && text[at] == '{') return GR_RAW_NONE;
    bool csv = r->map.size > 0 && find_csv(r, 0);
    r->delimiter = 0;
    if (!csv) gr_tally_add(r->tally, GR_REMARK_RAW, NULL);
    return csv ? GR_RAW_NONE : GR_RAW_DOCUMENT;
}

graft_status gr_reader_open(gr_reader **out, const gr_data_source *source, graft_error *err) {
    graft_status st = GRAFT_OK;
    json_t *first = NULL;
    bool rounded;
    gr_reader *r = gr_calloc(1, sizeof *r);
    *out = NULL;
    if (!r) return gr_fail_memory(err, "reader");
    r->tally = gr_calloc(1, sizeof *r->tally);
    if (!r->tally) GR_TRY(gr_fail_memory(err, "reader"));
    gr_tally_init(r->tally);
    GR_TRY(gr_source_file(&r->path, source->path, err));
    GR_TRY(copy_names(r, source, err));
    r->replace = gr_encoding_is_replace(source->encoding);
    GR_TRY(gr_content_open(&r->map, r->path, source->encoding, err));
    r->raw = raw_form(r, source->format);
    if (r->raw) {
        gr_form_set_raw(r);
        GR_TRY(gr_raw_index(r, source->limit, err));
    } else {
        GR_TRY(index_samples(r, source->limit, err));
        GR_TRY(parse_json(r, 0, &first, &rounded, err));
        GR_TRY(gr_form_find(r, source->format, first, err));
    }
    r->dropped = 0; /* all over again, sample by sample */
    *out = r;
    r = NULL;
done:
    json_decref(first);
    gr_reader_close(r);
    return st;
}

graft_status gr_reader_next(gr_reader *r, gr_record *record, graft_error *err) {
    *record = (gr_record){0};
    if (r->next >= r->n_spans) return GRAFT_OK;
    int64_t i = r->next;
    graft_status st = gr_reader_parse(r, i, &r->sample, err);
    if (st != GRAFT_OK) return st;
    r->next++;
    *record = (gr_record){.messages = r->sample.messages,
                          .n_messages = r->sample.n_messages,
                          .tools = r->sample.tools,
                          .documents = r->sample.documents,
                          .text = r->sample.text,
                          .line = r->is_array ? i + 1 : r->spans[i].line};
    return GRAFT_OK;
}

const char *gr_reader_format(const gr_reader *r) { return gr_form_name(r->format); }

int64_t gr_reader_count(const gr_reader *r) { return r->n_spans; }

void gr_reader_close(gr_reader *r) {
    if (!r) return;
    gr_sample_release(&r->sample);
    gr_map_close(&r->map);
    gr_arena_release(&r->arena);
    if (r->tally) gr_tally_release(r->tally);
    free(r->tally);
    free(r->spans);
    free(r->path);
    free(r);
}
