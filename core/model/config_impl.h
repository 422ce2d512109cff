/* config_impl.h - what the readers of config.json (config_hf.c) and of GGUF metadata (config_gguf.c) share. Both go by a table of
 * keys: a key of the file is honoured, known to change nothing, or refused by name with its value. */
#ifndef GR_CONFIG_IMPL_H
#define GR_CONFIG_IMPL_H

#include "core/model/config.h"

typedef enum gr_config_kind {
    GR_CONFIG_READ, /* honoured, by the code that knows it */
    GR_CONFIG_INT,  /* honoured: read into the field at `offset` */
    GR_CONFIG_BOOL,
    GR_CONFIG_HARMLESS, /* changes nothing that graft computes */
    GR_CONFIG_ONLY,     /* harmless with one of the values `only` (words), refused with any other */
} gr_config_kind;

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
void gr_config_add_stop(gr_model_config *c, int64_t id);

#endif
