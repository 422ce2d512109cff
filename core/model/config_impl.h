/* config_impl.h - what the readers of config.json (config_hf.c) and of GGUF metadata (config_gguf.c) share. Both go by a table of
 * keys: a key of the file is honoured, known to change nothing, or refused by name with its value. */
#ifndef GR_CONFIG_IMPL_H
#define GR_CONFIG_IMPL_H

#include "core/model/config.h"

typedef enum gr_config_kind {
    GR_CONFIG_READ, /* honoured, by the code that knows it */
    GR_CONFIG_INT,  /* honoured: read into the field at `offset`; of a GGUF also a list for all layers, with all of them equal */
    GR_CONFIG_BOOL,
    GR_CONFIG_FLOAT,
    GR_CONFIG_ACTIVATION, /* must be the architecture's */
    GR_CONFIG_HARMLESS,   /* changes nothing that graft computes */
    GR_CONFIG_ONLY,       /* harmless with one of the values `only` (words), refused with any other */
} gr_config_kind;

typedef struct gr_config_key {
    const char *name; /* several rows may have it: the first whose `where` is true counts */
    gr_config_kind kind;
    size_t offset;    /* INT, BOOL, FLOAT: in gr_model_config */
    const char *only; /* ONLY: the values that change nothing, in words */
    size_t where;     /* a flag of gr_arch, 0: always */
    bool required;
} gr_config_key;
/* What a row has after its name. */
#define READ         .kind = GR_CONFIG_READ
#define HARMLESS     .kind = GR_CONFIG_HARMLESS
#define INT(field)   .kind = GR_CONFIG_INT, .offset = offsetof(gr_model_config, field)
#define BOOL(field)  .kind = GR_CONFIG_BOOL, .offset = offsetof(gr_model_config, field)
#define FLOAT(field) .kind = GR_CONFIG_FLOAT, .offset = offsetof(gr_model_config, field)
#define ACTIVATION   .kind = GR_CONFIG_ACTIVATION
#define ONLY(words)  .kind = GR_CONFIG_ONLY, .only = (words)
#define WHERE(flag)  .where = offsetof(gr_arch, flag)

/* Tables end with a row without a name. That of config.json; what it reads as INT or FLOAT is written so, too. */
extern const gr_config_key gr_config_hf_keys[];
/* The key of gr_model_config.base_vocab, READ: a model that was never extended does not have it. */
#define GR_CONFIG_BASE_VOCAB "graft_base_vocab_size"
/* The row that a key is read by, NULL: there is none. */
const gr_config_key *gr_config_find_key(const gr_config_key *keys, const char *name, const gr_arch *arch);

/* root of a config.json, or where that is a model of text and pictures the configuration of its text model, with the whole's ids of
 * tokens: a new reference, root's given up. NULL: out of memory. */
struct json_t;
struct json_t *gr_config_text_part(struct json_t *root, bool *is_part);

/* The types of a rope_scaling or rope_parameters: the first are those that a gr_rope_scaling is written as. */
typedef struct gr_rope_type {
    const char *name;
    gr_rope_scaling scaling;
    const char *reads; /* the keys that it has, in words */
} gr_rope_type;
enum { GR_N_ROPE_TYPES = 4 };
extern const gr_rope_type gr_rope_types[GR_N_ROPE_TYPES];

/* What a config.json calls each gr_activation, in words. */
extern const char *const gr_activation_names[];

/* True when value ("8", "false", "silu", a number in any spelling) is one of the words of only. */
bool gr_config_allows(const char *only, const char *value);
/* A key that no table has: does its name speak of computation? Then it is refused rather than warned about. */
bool gr_config_smells(const char *name);
/* "FILE: KEY is VALUE: graft computes only ONLY". */
graft_status gr_config_refuse(graft_error *err, const char *file, const char *key, const char *value, const char *only);
/* One warning for all keys that no table has (names: "a, b"); nothing when there are none. */
void gr_config_warn(const char *file, const gr_str *names);

/* What must hold of every configuration, wherever it came from. */
graft_status gr_config_check(const gr_model_config *c, const char *file, graft_error *err);
/* Layers slide, all but the last of every `period` (0: all), or layer i alone. n_layers is a file's: what is beyond the most that
 * graft runs is not looked at. */
void gr_config_slide_by(gr_model_config *c, int64_t period);
void gr_config_slide(gr_model_config *c, int64_t layer);
/* Do those slide that gr_config_slide_by would let? And the period by which they do, -1: by none. */
bool gr_config_is_periodic(const gr_model_config *c, int64_t period);
int64_t gr_config_period(const gr_model_config *c);
void gr_config_add_stop(gr_model_config *c, int64_t id);

#endif
