/* dataset.h - data sets: JSON and JSONL files of any of the field's forms, tokenised once, cached in HDF5.
 *
 * A data set is flat: ids of all samples one after the other with a target mask. Formats (conventions: alpaca, sharegpt,
 * messages, prompt/completion, question/answer, instruction/output, text), autodetected per source or named, with `columns`
 * mapping graft's names to the file's. */
#ifndef GR_DATASET_H
#define GR_DATASET_H

#include "core/text/chat.h"
#include "kernels/threads.h"

typedef enum gr_truncation { GR_TRUNCATE_KEEP_ANSWER, GR_TRUNCATE_RIGHT, GR_TRUNCATE_DROP, GR_TRUNCATE_ERROR } gr_truncation;

/* pretrain: what a token sees of its block: all before it, or its own document alone. */
typedef enum gr_block_attention { GR_ATTENTION_ACROSS, GR_ATTENTION_DOCUMENT } gr_block_attention;

typedef struct gr_column {
    const char *name, *column;
} gr_column; /* graft's name -> the file's */

typedef struct gr_data_source {
    const char *path; /* .json (array), .jsonl, .csv, .tsv or .txt, also as .gz, or a folder with train.jsonl; pretrain: or
                                  a folder of such files, by path, those of sub-folders too */
    const char
        *format; /* "auto" or a name: alpaca sharegpt messages prompt_completion question_answer instruction_output text; of a
                           file that is text alone: document (the whole; auto of a .txt), paragraphs, lines */
    const gr_column *columns;
    int n_columns;
    double weight;             /* 1 = each sample once an epoch, 0.5 = half of them, 2 = twice */
    double share;              /* pretrain: its part of all tokens, in any unit; 0: none. All sources have one, or none */
    int64_t limit;             /* at most so many samples from the file's start, a document being one; 0 = all */
    const char *const *ignore; /* fields of samples and messages that are left aside without a word */
    int n_ignore;
    const char *encoding; /* utf-8 (NULL), replace (bytes that are no UTF-8 read as U+FFFD), or a name that iconv knows */
} gr_data_source;

typedef struct gr_data_options {
    const gr_data_source *sources;
    int n_sources;
    gr_loss_on loss_on;
    int64_t max_length; /* tokens */
    int64_t n_rows;     /* of the model's embedding: an id beyond them is an error; 0: no model */
    gr_truncation truncation;
    bool pretrain;                /* texts joined by EOS and cut to max_length, every token a target */
    gr_block_attention attention; /* of pretrain */
    const char *cache_dir; /* NULL: no cache, all tokens are kept in memory; else the folder "<dir>/<key>.tokens" (store.h), from
                              which samples are read when they are wanted; key = hash of contents, tokenizer, template, options */
    int64_t shard_ids;     /* of a file of that folder, about; 0: 16 M */
    int64_t sums_from;     /* bytes of a source from which on it is remembered there what they are (sums.h); 0: 64 MiB */
} gr_data_options;

/* What max_length took from how many samples. */
typedef struct gr_losses {
    int64_t truncated, dropped;    /* cut, or left out since nothing to learn would have been left */
    int64_t turns, prompt, answer; /* of the truncated ones: lost whole old turns, text of the prompt, the end of an answer */
} gr_losses;

/* What an id is to training. A block of documents that do not see each other is one sample and several sequences. */
typedef enum gr_target {
    GR_TARGET_NONE,
    GR_TARGET_LEARNED, /* predicted by the row before it */
    GR_TARGET_START    /* a sequence begins here, at position 0: nothing predicts it */
} gr_target;

typedef struct gr_dataset {
    int64_t n_samples;
    int64_t *offset; /* [n_samples+1]: lengths of samples, summed up; into ids and target */
    int32_t *ids;    /* [offset[n_samples]]; NULL: in the store */
    uint8_t *target; /* a gr_target for each id; likewise */
    int32_t *source; /* [n_samples] index of its source */
    double *weight;  /* [n_sources] */
    double *share;   /* [n_sources], NULL: no mix */
    int n_sources;
    struct gr_store *store;       /* NULL: all is in memory */
    bool borrowed;                /* the store is that of the set from which this one was split off, and which outlives it */
    int64_t *block;               /* [n_samples] of the store */
    gr_block_attention attention; /* samples that are no blocks of a stream are documents */
    gr_losses lost;
    int64_t n_empty;   /* samples without an answer to learn */
    int64_t n_targets; /* ids that are learned */
    char *remarks;     /* what was left aside or assumed: lines of "<index of the source>\t<text>\n", or NULL; reported by load */
    bool from_cache;
    uint64_t key; /* hash of content and options: a resume checks it */
} gr_dataset;

/* Load, detect, render, tokenise (threads over samples, order kept), truncate, cache. Errors name file and line (or index). A
 * sample without any target is dropped and counted; a set that ends up empty is BAD_INPUT. Progress is shown for long loads. */
graft_status gr_dataset_load(gr_dataset **out, const gr_data_options *options, const gr_tokenizer *t, const gr_chat *chat,
                             struct gr_threads *threads, graft_error *err);
void gr_dataset_free(gr_dataset *d);
/* Take the share (0..1) of the samples chosen by seed out of d into a new set (train/eval split); both keep file order. A
 * single sample stays in d, with a warning: *eval is NULL. */
graft_status gr_dataset_split(gr_dataset *d, double share, uint64_t seed, gr_dataset **eval, graft_error *err);

/* Memory that the set takes, and what of it a store keeps on disk instead. */
int64_t gr_dataset_bytes(const gr_dataset *d);

/* A sample, read into memory that the caller keeps for the next one. Zero-initialise; release frees. */
typedef struct gr_tokens {
    int32_t *ids;
    uint8_t *target;
    int64_t id_capacity, target_capacity;
} gr_tokens;
/* ids[n] and target[n] of sample i, n = offset[i+1] - offset[i]: borrowed from d or, until its next use, from buffer. */
graft_status gr_dataset_read(const gr_dataset *d, int64_t i, gr_tokens *buffer, const int32_t **ids, const uint8_t **target,
                             graft_error *err);
void gr_tokens_release(gr_tokens *t);
/* Ids of sample i that are learned. */
int64_t gr_dataset_targets(const gr_dataset *d, int64_t i);

/* The order of an epoch: sample indices, a function of (seed, epoch) alone; weights applied; shuffle false = file order. Of a mix
 * (shares): an epoch is the longest stretch in which no source gives a block twice; the next goes on where it ended, each source in
 * passes of its own, and at every place each has given its share of all tokens, to within a block.
 * *order is owned by the caller; small weights may leave an epoch without samples, *n = 0. */
graft_status gr_dataset_order(const gr_dataset *d, uint64_t seed, int64_t epoch, bool shuffle, int64_t **order, int64_t *n,
                              graft_error *err);

/* What a mix takes of a source. */
typedef struct gr_mix_fact {
    double share;   /* of all tokens, 0..1 */
    int64_t tokens; /* that the source has, in whole blocks */
    double passes;  /* over them */
} gr_mix_fact;
/* facts[n_sources] of a set with shares, for a run of so many samples. */
graft_status gr_mix_facts(const gr_dataset *d, int64_t samples, gr_mix_fact *facts, graft_error *err);

/* One raw sample as messages, for eval and preview: iterate a source without tokenising. The reader owns what it returns until
 * the next call. */
typedef struct gr_reader gr_reader;
typedef struct gr_record {
    const gr_message *messages; /* the whole conversation; the last is the reference answer when role is assistant */
    int64_t n_messages;
    const struct json_t *tools, *documents; /* of the sample, for the template; NULL: none */
    const char *text;                       /* a raw text sample instead of messages, else NULL */
    int64_t line;                           /* line or index in the file, from 1 */
} gr_record;
graft_status gr_reader_open(gr_reader **out, const gr_data_source *source, graft_error *err);
/* GRAFT_OK and record->n_messages == 0 && text == NULL at the end. */
graft_status gr_reader_next(gr_reader *r, gr_record *record, graft_error *err);
const char *gr_data_format(int i);                /* the name of form i, NULL past the last */
const char *gr_reader_format(const gr_reader *r); /* the detected or named format */
int64_t gr_reader_count(const gr_reader *r);      /* samples in the file */
void gr_reader_close(gr_reader *r);

/* Print n decoded samples with their mask to out (targets marked; brackets without a terminal, colour on one), and their ids where
 * the text alone would be other ones (a message that spells a control token). */
graft_status gr_dataset_preview(const gr_dataset *d, const gr_tokenizer *t, int64_t first, int64_t n, bool colour, FILE *out,
                                graft_error *err);

#endif
