/* A chat template from a YAML file: one mapping of names to strings. */
#include <stdlib.h>
#include <string.h>

#include <yaml.h>

#include "core/base/file.h"
#include "core/text/chat_template.h"

enum { FILE_MAX = 1 << 20 };

static graft_status set_field(gr_chat_template *out, const char *key, char *value, const char *path,
                              graft_error *err) {
    static const char *const known[] = {"system", "user", "assistant",     "tool",
                                        "begin",  "gap",  "default_system"};
    const char **fields[] = {&out->pattern[GR_ROLE_SYSTEM],
                             &out->pattern[GR_ROLE_USER],
                             &out->pattern[GR_ROLE_ASSISTANT],
                             &out->pattern[GR_ROLE_TOOL],
                             &out->begin,
                             &out->gap,
                             &out->default_system};
    for (int i = 0; i < GR_LEN(known); i++) {
        if (strcmp(key, known[i]) != 0) continue;
        if (i < GR_ROLE_COUNT && !strstr(value, "{content}"))
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: the pattern of %s must hold {content}", path, key);
        *fields[i] = value;
        return GRAFT_OK;
    }
    const char *nearest = gr_nearest(key, known, GR_LEN(known));
    return gr_fail(err, GRAFT_BAD_INPUT,
                   "%s: unknown key %.60s%s%s; a chat template has system, user and assistant", path, key,
                   nearest ? ", did you mean " : "", nearest ? nearest : "");
}

static const char *scalar(yaml_document_t *document, yaml_node_item_t index) {
    const yaml_node_t *node = yaml_document_get_node(document, index);
    return node && node->type == YAML_SCALAR_NODE ? (const char *)node->data.scalar.value : NULL;
}

static graft_status read_mapping(gr_chat_template *out, yaml_document_t *document, const char *path,
                                 gr_arena *arena, graft_error *err) {
    const yaml_node_t *root = yaml_document_get_root_node(document);
    if (!root || root->type != YAML_MAPPING_NODE)
        return gr_fail(err, GRAFT_BAD_INPUT,
                       "%s: a chat template is a mapping {system, user, assistant} of strings", path);
    for (const yaml_node_pair_t *p = root->data.mapping.pairs.start; p < root->data.mapping.pairs.top; p++) {
        const char *key = scalar(document, p->key), *value = scalar(document, p->value);
        if (!key || !value)
            return gr_fail(err, GRAFT_BAD_INPUT, "%s: the value of %.60s must be a string", path,
                           key ? key : "a key");
        char *copy = gr_arena_strdup(arena, value);
        if (!copy) return gr_fail_memory(err, "chat template");
        graft_status st = set_field(out, key, copy, path, err);
        if (st != GRAFT_OK) return st;
    }
    if (!out->pattern[GR_ROLE_USER] || !out->pattern[GR_ROLE_ASSISTANT])
        return gr_fail(err, GRAFT_BAD_INPUT, "%s: a chat template needs the patterns user and assistant",
                       path);
    return GRAFT_OK;
}

graft_status gr_chat_template_parse(gr_chat_template *out, const char *yaml, int64_t n, const char *path,
                                    gr_arena *arena, graft_error *err) {
    yaml_parser_t parser;
    yaml_document_t document;
    *out = (gr_chat_template){.begin = "", .gap = ""};
    out->name = gr_arena_strdup(arena, path);
    if (!out->name || !yaml_parser_initialize(&parser)) return gr_fail_memory(err, "YAML parser");
    yaml_parser_set_input_string(&parser, (const unsigned char *)yaml, (size_t)n);
    graft_status st;
    if (yaml_parser_load(&parser, &document)) {
        st = read_mapping(out, &document, path, arena, err);
        yaml_document_delete(&document);
    } else {
        st = gr_fail(err, GRAFT_BAD_INPUT, "%s:%zu: no YAML: %s", path, parser.problem_mark.line + 1,
                     parser.problem ? parser.problem : "unknown problem");
    }
    yaml_parser_delete(&parser);
    return st;
}

graft_status gr_chat_template_read(gr_chat_template *out, const char *path, gr_arena *arena,
                                   graft_error *err) {
    char *text = NULL;
    int64_t n;
    graft_status st = gr_file_read(&text, &n, path, FILE_MAX, err);
    if (st == GRAFT_OK) st = gr_chat_template_parse(out, text, n, path, arena, err);
    free(text);
    return st;
}
