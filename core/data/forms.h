/* forms.h - inside core/data: what the conversion of a sample is made of. formats.c knows the forms, turns.c the messages,
 * fields.c what all other fields mean. */
#ifndef GR_FORMS_H
#define GR_FORMS_H

#include "core/data/reader.h"

/* One sample on its way to messages. */
typedef struct gr_conversion {
    const gr_reader *r;
    int64_t i;
    gr_sample *s;
    int64_t message;   /* the one that is read, from 1; 0: none. For errors */
    int64_t last_call; /* the last turn of its list that was the call of a tool alone; 0: none */
    graft_error *err;
} gr_conversion;

/* "file:line: message 2: ...", made printable. BAD_INPUT. */
graft_status gr_form_fail(const gr_conversion *c, const char *format, ...) GR_PRINTF(2, 3);
graft_status gr_form_fail_missing(const gr_conversion *c, const char *name, const json_t *object);
/* "an object", "a list", "a string" ... */
const char *gr_json_type(const json_t *value);
/* graft's name -> the file's: by columns, else the name itself. */
const char *gr_form_column(const gr_reader *r, const char *name);
/* The text of a JSON string; U+0000 inside it reads as U+FFFD. name is for the error. */
graft_status gr_form_string(gr_conversion *c, const json_t *value, const char *name, const char **out);
graft_status gr_form_push(gr_conversion *c, gr_message m);
/* Give JSON made for this sample to it: returns value, or NULL when that or memory is missing. */
json_t *gr_form_own(gr_conversion *c, json_t *value);

/* ---- turns.c ---- */

/* The messages of a list, in OpenAI's form or sharegpt's. name is for the error. */
graft_status gr_form_push_turns(gr_conversion *c, const json_t *turns, const char *name);
/* The tools and documents of the sample. */
graft_status gr_form_read_tools(gr_conversion *c);

/* ---- hints.c ---- */

/* Add "; write data: {train: [...]}" with the columns that would make a form of these fields, or nothing. */
void gr_form_hint(const gr_reader *r, const json_t *object, gr_str *out);

/* ---- fields.c ---- */

/* Whether a field of a sample or message is there and says something: null, "", [] and {} do not. */
bool gr_field_says(const json_t *value);
/* Take what the source's `ignore` names out of a sample or message. */
void gr_fields_drop_ignored(const gr_reader *r, json_t *object);
/* Refuse preference data by its fields alone, before the form is known. */
graft_status gr_fields_check_preference(const gr_conversion *c, const json_t *object);
/* Refuse the fields beside those that are read (gr_reader.used) that change what the sample means; count the others. */
graft_status gr_fields_check_sample(const gr_conversion *c);
/* The same for a message of that role; *no_loss: it says that it is not to be learned; *more: it has fields beyond role,
 * content and those. */
graft_status gr_fields_check_message(const gr_conversion *c, const json_t *turn, const char *role, bool *no_loss, bool *more);

#endif
