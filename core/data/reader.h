/* reader.h - inside core/data: samples of a file by index, from any thread. A file is mapped and its samples'
 * places are noted at opening; each is parsed when asked for. */
#ifndef GR_READER_H
#define GR_READER_H

#include <jansson.h>

#include "core/base/file.h"
#include "core/data/dataset.h"
#include "core/data/tally.h"

/* One parsed sample. Zero-initialise; reused by gr_reader_parse; release frees. */
typedef struct gr_sample {
    json_t *root;   /* owns most strings */
    json_t *made;   /* a list of what was made of it */
    gr_arena arena; /* owns the other strings */
    bool rounded;   /* a whole number beyond 64 bits was read: all are fractions now */
    gr_message *messages;
    int64_t n_messages, capacity;
    const json_t *tools, *documents; /* borrowed from root, or NULL */
    bool is_pair;                    /* its messages are the strings prompt and completion */
    const char *text;
    bool continues, continued; /* text is a part of a document whose other parts are the samples before, and behind */
} gr_sample;

void gr_sample_release(gr_sample *s);

typedef struct gr_span { /* the bytes of one sample */
    int64_t start, len, line;
} gr_span;

typedef enum gr_raw { GR_RAW_NONE, GR_RAW_DOCUMENT, GR_RAW_PARAGRAPHS, GR_RAW_LINES } gr_raw; /* a file of text alone */

typedef struct gr_form gr_form;
enum { GR_USED_FIELDS = 16 };

struct gr_reader {
    gr_map map;
    char *path; /* of the file itself, also when a folder was given */
    gr_raw raw;
    bool is_array, replace; /* a JSON array; bytes that are no text read as U+FFFD */
    char delimiter;         /* of a CSV, else 0 */
    char **header;          /* names of a CSV's columns */
    int64_t n_header;
    gr_span *spans;
    int64_t n_spans, span_capacity, next;
    int64_t dropped; /* bytes of the map before which memory was given back */
    gr_arena arena;
    gr_column *columns; /* copies */
    int n_columns;
    const char **ignore; /* fields of samples and messages that the source leaves aside; copies */
    int n_ignore;
    const gr_form *format;
    const char *used[GR_USED_FIELDS]; /* the file's names of the fields that the format reads */
    int n_used;
    gr_tally *tally;  /* counts across threads */
    gr_sample sample; /* of gr_reader_next */
};

/* The ending of a data file's name, perhaps with .gz behind it: "jsonl", "json", "csv", "tsv" or "txt", in any case; else NULL. */
const char *gr_data_ending(const char *name);
/* The file behind a source's path: the path itself or, for a folder, its train.jsonl. Owned. */
graft_status gr_source_file(char **file, const char *path, graft_error *err);
/* The files behind a source's path: that one or, where `many`, of a folder without train.jsonl all that have a data file's name,
 * those of sub-folders too, by path. Free with gr_source_files_free. */
graft_status gr_source_files(char ***files, int64_t *n, const char *path, bool many, graft_error *err);
void gr_source_files_free(char **files, int64_t n);
/* Parse sample i (from 0). Thread-safe: writes to s alone. */
graft_status gr_reader_parse(const gr_reader *r, int64_t i, gr_sample *s, graft_error *err);
/* "file.jsonl:12" or "file.json:40 (sample 7)", for errors. */
void gr_reader_where(const gr_reader *r, int64_t i, char *text, size_t size);

/* Samples before i are not asked for soon: the file's memory before it goes back to the system. */
void gr_reader_pass(gr_reader *r, int64_t i);

graft_status gr_reader_add_span(gr_reader *r, int64_t start, int64_t end, int64_t line, graft_error *err);

/* ---- raw.c ---- */

graft_status gr_raw_index(gr_reader *r, int64_t limit, graft_error *err);
graft_status gr_raw_parse(const gr_reader *r, int64_t i, gr_sample *s, graft_error *err);

/* ---- formats.c ---- */

/* The form of a file of text alone by its name, GR_RAW_NONE: the name is another's. */
gr_raw gr_form_raw(const char *name);
void gr_form_set_raw(gr_reader *r);

/* Sets r->format and r->used: by name, or by the keys of the first sample; checks the columns. */
graft_status gr_form_find(gr_reader *r, const char *name, const json_t *first, graft_error *err);
const char *gr_form_name(const gr_form *f);
bool gr_form_has_answers(const gr_form *f);
bool gr_form_knows(const char *name, int64_t len); /* a field that some form requires */
bool gr_form_has_turns(const gr_form *f);          /* messages, not raw text */
/* s->root to s->messages or s->text. */
graft_status gr_form_convert(const gr_reader *r, int64_t i, gr_sample *s, graft_error *err);

/* BAD_INPUT naming file, line and byte when the span's bytes are no UTF-8, with the keys that read them. */
graft_status gr_reader_check_bytes(const gr_reader *r, const gr_span *span, graft_error *err);

#endif
