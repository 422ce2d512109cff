/* texts.h - all text of files, whatever they are: raw text, or the samples of a data file. For what counts or streams text and asks
 * for no roles. */
#ifndef GR_TEXTS_H
#define GR_TEXTS_H

#include "core/data/dataset.h"

/* Takes one text (a stretch of whole lines of a raw file; a message or text of a sample), valid UTF-8, on thread `worker`. */
typedef graft_status gr_text_fn(void *context, int worker, const char *text, int64_t len, graft_error *err);

/* Every text of the sources, a file after the other, over the threads; shows progress. A folder is its data files, as in
 * pre-training. Names in .json, .jsonl, .csv and .tsv (also .gz) are read as samples, every other file as raw text. Stretches do
 * not depend on the threads. Errors name file and line, the first of the file wins. *bytes: of the files' text, unpacked. */
graft_status gr_texts_read(const gr_data_source *sources, int n_sources, struct gr_threads *threads, gr_text_fn *fn, void *context,
                           int64_t *bytes, graft_error *err);

#endif
