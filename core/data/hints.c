/* hints.c - a sample that no form has: the columns that would make it one, as YAML to be copied. */
#include <string.h>
#include <strings.h>

#include "core/data/forms.h"

/* What other sets call a field, the likeliest first. */
static const char *const prompts[] = {"prompt", "instruction", "query",   "question", "user",
                                      "human",  "problem",     "request", "source",   "input"},
                         *const answers[] = {"completion", "response", "answer", "output",   "assistant",
                                             "gpt",        "reply",    "target", "solution", "summary"},
                         *const inputs[] = {"input", "context"}, *const systems[] = {"system_prompt", "system_message"},
                         *const texts[] = {"content", "body", "document", "article", "code"},
                         *const turns[] = {"messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns"};

/* The first of the names that the sample has with such a value, written as the file writes it, or NULL. */
static const char *find(const json_t *object, const char *const *names, int n, json_type type) {
    for (int i = 0; i < n; i++) {
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)(uintptr_t)object, key, value)
            if (!strcasecmp(key, names[i]) && json_typeof(value) == type) return key;
    }
    return NULL;
}
#define FIND(object, names, type) find(object, names, GR_LEN(names), type)

static bool is_plain(const char *text) { /* in YAML, without quotes */
    return text[0] && strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-") == strlen(text) &&
           !strchr("-.", text[0]);
}

static void put_name(gr_str *out, const char *text) {
    if (is_plain(text)) {
        gr_str_puts(out, text);
        return;
    }
    gr_str_putc(out, '\'');
    for (; *text; text++) {
        if (*text == '\'') gr_str_putc(out, '\'');
        gr_str_putc(out, *text);
    }
    gr_str_putc(out, '\'');
}

/* One column, unless the file has graft's own name for it. */
static void put_column(gr_str *out, const char *name, const char *column) {
    if (!column || !strcmp(name, column)) return;
    gr_str_printf(out, "%s%s: ", out->len ? ", " : "", name);
    put_name(out, column);
}

void gr_form_hint(const gr_reader *r, const json_t *object, gr_str *out) {
    gr_str columns = {0};
    const char *list = FIND(object, turns, JSON_ARRAY), *prompt = FIND(object, prompts, JSON_STRING),
               *answer = FIND(object, answers, JSON_STRING), *text = FIND(object, texts, JSON_STRING),
               *input = FIND(object, inputs, JSON_STRING);
    if (list) {
        const json_t *first = json_array_get(json_object_get(object, list), 0);
        put_column(&columns, json_object_get(first, "from") ? "conversations" : "messages", json_is_object(first) ? list : NULL);
    } else if (prompt && answer && input && strcmp(prompt, input)) {
        put_column(&columns, "instruction", prompt);
        put_column(&columns, "input", input);
        put_column(&columns, "output", answer);
    } else if (prompt && answer) {
        put_column(&columns, "prompt", prompt);
        put_column(&columns, "completion", answer);
    } else if (text && !prompt && !answer) {
        put_column(&columns, "text", text);
    }
    if (columns.len) put_column(&columns, "system", FIND(object, systems, JSON_STRING));
    if (columns.len && !columns.failed) {
        gr_str_puts(out, "; write data: {train: [{path: ");
        put_name(out, r->path);
        gr_str_printf(out, ", columns: {%s}}]}", columns.data);
    }
    gr_str_release(&columns);
}
