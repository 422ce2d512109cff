/* recipe_yaml.h - YAML as a tree in which every value knows its file, line and column. Internal to
 * peft/recipe*.c. The subset recipes need: mappings with string keys, sequences, scalars; anchors and aliases
 * are copied. A tree is bounded in depth and in nodes, so that no file can make a small recipe a large one. */
#ifndef GR_RECIPE_YAML_H
#define GR_RECIPE_YAML_H

#include "core/base/base.h"

typedef enum gr_yaml_kind { GR_YAML_SCALAR, GR_YAML_LIST, GR_YAML_MAP } gr_yaml_kind;

typedef struct gr_yaml {
    gr_yaml_kind kind;
    bool plain;       /* a scalar without quotes: may be a number, null, true ... */
    const char *text; /* scalar: its value */
    const char *key;  /* entry of a map: its key */
    const char *file; /* for messages and relative paths */
    bool from_file;   /* false: `file` is a label such as "train.seed=x" and there is no line */
    bool beneath;     /* written in a recipe on top of which adapter.method was chosen, or as one of all keys of a run */
    int line, column; /* of the value, from 1 */
    int key_line, key_column;
    struct gr_yaml *child; /* first entry of a list or map */
    struct gr_yaml *next;  /* next entry of the same parent */
} gr_yaml;

/* Parse text[len]; everything is allocated from arena; file is borrowed. An empty document is a null scalar. BAD_USAGE with
 * file:line:column for bad syntax, invalid UTF-8, a duplicate key, an unknown alias, a tree beyond the bounds. */
graft_status gr_yaml_parse(gr_yaml **out, gr_arena *arena, const char *text, int64_t len, const char *file, bool from_file,
                           graft_error *err);
/* over laid over base: maps are merged key by key, everything else is replaced. May reuse the nodes of both. */
gr_yaml *gr_yaml_merge(gr_yaml *base, gr_yaml *over);
gr_yaml *gr_yaml_find(const gr_yaml *map, const char *key); /* NULL when absent or map is no map */
/* Add an entry, or replace the one of this key. */
void gr_yaml_set(gr_yaml *map, gr_yaml *entry);
bool gr_yaml_is_null(const gr_yaml *n);
/* The value in words for "found ...", into out[size]; "the text \"abc\"", "a list". */
const char *gr_yaml_describe(const gr_yaml *n, char *out, size_t size);
/* BAD_USAGE "file:line:column: message" (at_key: the place of the key, not of its value). */
graft_status gr_yaml_fail(const gr_yaml *n, bool at_key, graft_error *err, const char *format, ...) GR_PRINTF(4, 5);

#endif
