#include "core/data/tally.h"

#include <stdlib.h>
#include <string.h>

enum { TOLD_NAMES = 12, NAME_BYTES = 60 };

void gr_tally_init(gr_tally *t) {
    *t = (gr_tally){0};
    pthread_mutex_init(&t->lock, NULL);
}

void gr_tally_release(gr_tally *t) {
    for (int i = 0; i < t->n_names; i++) free(t->names[i].name);
    pthread_mutex_destroy(&t->lock);
}

/* The place of a name among the first n, or n. */
static int find(const gr_tally *t, int from, int n, gr_remark remark, const char *name) {
    while (from < n && (t->names[from].remark != remark || strcmp(t->names[from].name, name))) from++;
    return from;
}

static void add(gr_tally *t, gr_remark remark, const char *name, int64_t times) {
    int n = name ? atomic_load_explicit(&t->n_names, memory_order_acquire) : 0;
    int at = name ? find(t, 0, n, remark, name) : n;
    if (name && at == n) {
        pthread_mutex_lock(&t->lock);
        int now = t->n_names;
        at = find(t, n, now, remark, name); /* another thread may have added it meanwhile */
        char *copy = at == now && at < GR_TALLY_NAMES ? gr_strdup(name) : NULL;
        if (copy) {
            t->names[at].remark = remark;
            t->names[at].name = copy;
            atomic_store_explicit(&t->n_names, ++now, memory_order_release);
        }
        n = now;
        pthread_mutex_unlock(&t->lock);
    }
    _Atomic int64_t *count = at < n ? &t->names[at].count : &t->plain[remark];
    atomic_fetch_add_explicit(count, times, memory_order_relaxed);
}

void gr_tally_add(gr_tally *t, gr_remark remark, const char *name) { add(t, remark, name, 1); }

void gr_tally_merge(gr_tally *t, const gr_tally *from) {
    for (int i = 0; i < from->n_names; i++) add(t, from->names[i].remark, from->names[i].name, from->names[i].count);
    for (int remark = 0; remark < GR_REMARK_COUNT; remark++)
        if (from->plain[remark]) add(t, (gr_remark)remark, NULL, from->plain[remark]);
}

static int by_count(const void *a, const void *b) {
    const struct gr_tally_name *x = *(const struct gr_tally_name *const *)a, *y = *(const struct gr_tally_name *const *)b;
    if (x->count != y->count) return x->count > y->count ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* `"source" (in 2000 samples), "id" (in 7)`: the most frequent first; what order the threads came in does not show. */
static void tell_names(const gr_tally *t, gr_remark remark, const char *what, gr_str *lines) {
    const struct gr_tally_name *sorted[GR_TALLY_NAMES];
    int n = 0;
    for (int i = 0; i < t->n_names; i++)
        if (t->names[i].remark == remark) sorted[n++] = &t->names[i];
    qsort(sorted, (size_t)n, sizeof *sorted, by_count);
    for (int i = 0; i < n && i < TOLD_NAMES; i++) {
        gr_str_puts(lines, i ? ", \"" : " \"");
        const char *name = sorted[i]->name;
        for (int k = 0; name[k] && k < NAME_BYTES; k++)
            gr_str_putc(lines, (uint8_t)name[k] < 0x20 || name[k] == 0x7F ? '?' : name[k]);
        gr_str_printf(lines, "\" (in %lld %s)", (long long)sorted[i]->count, what);
    }
    if (n > TOLD_NAMES || t->plain[remark]) gr_str_puts(lines, " and others");
}

void gr_tally_tell(const gr_tally *t, gr_str *lines) {
    static const struct {
        const char *before, *names, *after; /* names: what they are counted in; NULL: the count stands before `after` */
    } texts[GR_REMARK_COUNT] = {
        [GR_REMARK_FIELD] = {"fields that are not used:", "samples", ""},
        [GR_REMARK_MESSAGE_FIELD] = {"fields of messages that are not used unless the template does:", "messages", ""},
        [GR_REMARK_DEVELOPER] = {"", NULL, " messages of the role developer are read as system"},
        [GR_REMARK_ANSWER_FIRST] = {"", NULL, " conversations begin with an assistant turn"},
        [GR_REMARK_SAME_ROLE] = {"", NULL, " conversations have two turns of one role in a row"},
        [GR_REMARK_NUL] = {"", NULL, " times U+0000 in a text is read as U+FFFD"},
        [GR_REMARK_REPLACED] = {"", NULL, " samples hold bytes that are no text, read as U+FFFD"},
        [GR_REMARK_CONTROL_TEXT] = {"", NULL, " texts hold control tokens of the tokenizer, which are taken as ids"},
        [GR_REMARK_RENDERED] =
            {"", NULL,
             " prompts begin with the chat template's own control token: they are taken as rendered, their control tokens as ids"},
        [GR_REMARK_PLAIN] = {"", NULL,
                             " samples spell control tokens in their messages, which stay plain text: was it rendered already?"},
        [GR_REMARK_LEFT_OUT] = {"", NULL, " messages are left out by the chat template"},
        [GR_REMARK_SHORTENED] =
            {"", NULL,
             " answers are not written word for word by the chat template, which leaves a part out or writes it itself (<think>): "
             "`graft data preview` shows what is learned"},
        [GR_REMARK_PARTED] = {"", NULL, " answers do not begin as the generation prompt ends; learned from where the two part"},
        [GR_REMARK_APART] = {"", NULL,
                             " samples give several sequences: the chat template writes an answer otherwise once it is history"},
        [GR_REMARK_RAW] = {"", NULL, " files are one document each (format: paragraphs and lines cut them)"},
    };
    for (int remark = 0; remark < GR_REMARK_COUNT; remark++) {
        bool any = t->plain[remark] > 0;
        for (int i = 0; i < t->n_names && !any; i++) any = t->names[i].remark == (gr_remark)remark;
        if (!any) continue;
        gr_str_puts(lines, texts[remark].before);
        if (texts[remark].names) tell_names(t, (gr_remark)remark, texts[remark].names, lines);
        else gr_str_printf(lines, "%lld", (long long)t->plain[remark]);
        gr_str_printf(lines, "%s\n", texts[remark].after);
    }
}
