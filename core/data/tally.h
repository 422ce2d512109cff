/* tally.h - inside core/data: what of a file nobody reads, or is read as something else, counted from any thread and told
 * once a load instead of once a sample. */
#ifndef GR_TALLY_H
#define GR_TALLY_H

#include <pthread.h>
#include <stdatomic.h>

#include "core/base/base.h"

typedef enum gr_remark {
    GR_REMARK_FIELD,         /* a sample's field that nothing reads; by name */
    GR_REMARK_MESSAGE_FIELD, /* a message's field that only a template could read; by name */
    GR_REMARK_DEVELOPER,     /* messages of the role developer, read as system */
    GR_REMARK_ANSWER_FIRST,  /* conversations that begin with an assistant's turn */
    GR_REMARK_SAME_ROLE,     /* conversations with two turns of one role in a row */
    GR_REMARK_NUL,           /* samples with U+0000, read as U+FFFD */
    GR_REMARK_REPLACED,      /* samples with bytes that are no text, read as U+FFFD */
    GR_REMARK_CONTROL_TEXT,  /* raw texts with control tokens, which become ids */
    GR_REMARK_RENDERED,      /* prompts that were rendered with the template already */
    GR_REMARK_PLAIN,         /* conversations whose messages spell control tokens, which stay text */
    GR_REMARK_LEFT_OUT,      /* messages of which the template writes nothing */
    GR_REMARK_SHORTENED,     /* answers of which the template writes a part */
    GR_REMARK_PARTED,        /* answers that do not start where the generation prompt ends */
    GR_REMARK_APART,         /* samples learned turn by turn */
    GR_REMARK_RAW,           /* a file of no other form, read as text */
    GR_REMARK_COUNT
} gr_remark;

enum { GR_TALLY_NAMES = 64 }; /* further names are counted together */

typedef struct gr_tally {
    pthread_mutex_t lock; /* of adding a name; counting is lock-free */
    atomic_int n_names;
    struct gr_tally_name {
        gr_remark remark;
        char *name; /* owned */
        _Atomic int64_t count;
    } names[GR_TALLY_NAMES];
    _Atomic int64_t plain[GR_REMARK_COUNT]; /* remarks without a name, and names beyond the table */
} gr_tally;

void gr_tally_init(gr_tally *t);
void gr_tally_release(gr_tally *t);
/* Count one; name: of a remark that has one, else NULL. Thread-safe. */
void gr_tally_add(gr_tally *t, gr_remark remark, const char *name);
/* What `from` counted as well. */
void gr_tally_merge(gr_tally *t, const gr_tally *from);
/* Each remark with a count as a line of text for people, the file's name not included. Not while others add. */
void gr_tally_tell(const gr_tally *t, gr_str *lines);

#endif
