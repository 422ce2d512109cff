#include "core/data/fit.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

enum { ROUNDS = 200 };

/* A conversation that gets shorter. */
typedef struct cutting {
    const gr_chat *c;
    const gr_tokenizer *t;
    gr_message *m; /* [n], a copy */
    int64_t n;
    json_t *made;   /* owns the fields that were made */
    gr_arena arena; /* owns the texts that were made */
} cutting;

static bool is_role(const gr_message *m, const char *role) { return strcmp(m->role, role) == 0; }

int64_t gr_fit_end(const gr_encoded *e, int64_t first, int64_t end) {
    while (end > first && !e->target[end - 1]) end--;
    return end;
}

static graft_status count(const cutting *k, const char *text, int64_t *n, graft_error *err) {
    gr_ids ids = {0};
    graft_status st = gr_tokenizer_encode(k->t, text, (int64_t)strlen(text), false, &ids, err);
    *n = ids.n;
    gr_ids_release(&ids);
    return st;
}

/* Drop the first turn after the system messages, up to the next question, when an answer to learn comes after it. */
static bool drop_turn(cutting *k) {
    int64_t first = 0, next, last = k->n - 1;
    while (first < k->n && is_role(&k->m[first], "system")) first++;
    for (next = first + 1; next < k->n && !is_role(&k->m[next], "user");) next++;
    while (last >= next && (!is_role(&k->m[last], "assistant") || k->m[last].no_loss)) last--;
    if (last < next) return false;
    memmove(&k->m[first], &k->m[next], (size_t)(k->n - next) * sizeof *k->m);
    k->n -= next - first;
    return true;
}

static int64_t border(const char *s, int64_t at) { /* of a character, at or before */
    while (at > 0 && ((uint8_t)s[at] & 0xC0) == 0x80) at--;
    return at;
}

/* The text without so many bytes in its middle. */
static graft_status set_shorter(cutting *k, gr_message *m, int64_t bytes, graft_error *err) {
    int64_t n = (int64_t)strlen(m->content), keep = GR_MAX(0, n - bytes), head = border(m->content, keep / 2);
    int64_t tail = n - border(m->content, n - (keep - keep / 2));
    char *text = gr_arena_alloc(&k->arena, head + tail + 1);
    if (!text) return gr_fail_memory(err, "sample");
    if (head + tail > n) tail = n - head;
    memcpy(text, m->content, (size_t)head);
    memcpy(text + head, m->content + n - tail, (size_t)tail);
    m->content = text;
    if (!m->fields) return GRAFT_OK;
    json_t *fields = json_copy((json_t *)(uintptr_t)m->fields);
    if (!fields || json_array_append_new(k->made, fields) != 0 || json_object_set_new(fields, "content", json_string(text)) != 0)
        return gr_fail_memory(err, "sample");
    m->fields = fields;
    return GRAFT_OK;
}

/* Take `tokens` out of the longest user text; *cut is false when no user text is left to cut. */
static graft_status cut_question(cutting *k, int64_t tokens, bool *cut, graft_error *err) {
    gr_message *longest = NULL;
    int64_t n, bytes;
    *cut = false;
    for (int64_t i = 0; i < k->n; i++)
        if (is_role(&k->m[i], "user") && k->m[i].content[0] && (!longest || strlen(k->m[i].content) > strlen(longest->content)))
            longest = &k->m[i];
    if (!longest) return GRAFT_OK;
    graft_status st = count(k, longest->content, &n, err);
    if (st != GRAFT_OK) return st;
    bytes = (int64_t)strlen(longest->content);
    *cut = true;
    return set_shorter(k, longest, tokens >= n ? bytes : (bytes * tokens + n - 1) / n, err);
}

static graft_status user_tokens(const cutting *k, int64_t *total, graft_error *err) {
    graft_status st = GRAFT_OK;
    *total = 0;
    for (int64_t i = 0, n; i < k->n && st == GRAFT_OK; i++) {
        if (!is_role(&k->m[i], "user")) continue;
        st = count(k, k->m[i].content, &n, err);
        *total += n;
    }
    return st;
}

/* Where the last run of targets before `end` starts. */
static int64_t last_answer(const gr_encoded *e, int64_t end) {
    while (end > 0 && !e->target[end - 1]) end--;
    while (end > 0 && e->target[end - 1]) end--;
    return end;
}

/* One round on a sequence of n ids, max being wanted. *again: something was cut, encode again. */
static graft_status shorten(cutting *k, const gr_encoded *e, int64_t n, int64_t max, bool all, gr_fit *fit, bool *again,
                            graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t total = 0, start = last_answer(e, n);
    *again = drop_turn(k);
    fit->turns |= *again;
    if (*again) goto done;
    GR_TRY(user_tokens(k, &total, err));
    /* an answer too long by itself leaves the question at most half of the room */
    int64_t tokens = n - max <= total ? n - max : all ? 0 : start - max / 2;
    if (tokens <= 0 || total == 0) goto done;
    GR_TRY(cut_question(k, tokens, again, err));
    fit->prompt |= *again;
done:
    return st;
}

/* The messages of a sequence, of which only the answers that it learns are to be learned. */
static graft_status copy(cutting *k, const gr_conversation *x, gr_loss_on loss_on, const gr_encoded *e, int64_t which,
                         graft_error *err) {
    k->n = e->last_message[which] + 1;
    k->m = gr_calloc(k->n, sizeof *k->m);
    k->made = json_array();
    if (!k->m || !k->made) return gr_fail_memory(err, "sample");
    memcpy(k->m, x->messages, (size_t)k->n * sizeof *k->m);
    bool apart = which > 0 || k->n < x->n; /* a sequence of its own learns its last answer alone */
    int64_t last = k->n - 1;
    while (last >= 0 && (!is_role(&k->m[last], "assistant") || k->m[last].no_loss)) last--;
    for (int64_t i = 0; i < k->n && loss_on != GR_LOSS_ALL; i++)
        if (i != last && (apart || loss_on == GR_LOSS_LAST)) k->m[i].no_loss = true;
    for (int64_t s = 0; s < e->n_sequences && !apart; s++)
        if (s != which) k->m[e->last_message[s]].no_loss = true;
    if (loss_on != GR_LOSS_ALL && last >= 0) k->n = last + 1; /* what follows the last answer teaches nothing */
    return GRAFT_OK;
}

/* Whether what stands before the last answer fills max ids by itself: the cut would go through a system's or tool's text, and what
 * is left would end before that answer. */
static graft_status answer_lies_beyond(cutting *k, gr_conversation x, int64_t max, gr_encoded *e, bool *beyond, graft_error *err) {
    graft_status st = GRAFT_OK;
    int64_t first = 0;
    *beyond = false;
    for (int64_t i = 0; i < x.n - 1; i++) k->m[i].no_loss = true;
    GR_TRY(gr_chat_encode(k->c, &x, GR_LOSS_LAST, e, err));
    while (first < e->ids.n && !e->target[first]) first++;
    *beyond = first >= max;
done:
    return st;
}

graft_status gr_fit_sequence(const gr_fit_form *f, const gr_conversation *x, const gr_encoded *e, int64_t which, gr_encoded *out,
                             gr_fit *fit, graft_error *err) {
    graft_status st = GRAFT_OK;
    cutting k = {.c = f->chat, .t = f->tokenizer};
    int64_t max = f->max, n = max + 1, n_targets = 0;
    *fit = (gr_fit){0};
    GR_TRY(copy(&k, x, f->loss_on, e, which, err));
    for (int round = 0; round < ROUNDS; round++) {
        gr_conversation shorter = {.messages = k.m, .n = k.n, .tools = x->tools, .documents = x->documents};
        bool again;
        GR_TRY(gr_chat_encode(f->chat, &shorter, f->loss_on, out, err));
        if (out->n_sequences == 0) break;
        n = gr_fit_end(out, 0, out->end[0]);
        if (n <= max) break;
        GR_TRY(shorten(&k, out, n, max, f->loss_on == GR_LOSS_ALL, fit, &again, err));
        if (!again) break;
    }
    if (n > max && f->loss_on != GR_LOSS_ALL) {
        bool beyond;
        gr_encoded last = {0};
        gr_conversation shortest = {.messages = k.m, .n = k.n, .tools = x->tools, .documents = x->documents};
        st = answer_lies_beyond(&k, shortest, max, &last, &beyond, err);
        gr_encoded_release(&last);
        if (st != GRAFT_OK) goto done;
        if (beyond) out->n_sequences = 0;
    }
    fit->answer = n > max;
    if (out->n_sequences) out->n_sequences = 1, out->end[0] = out->ids.n = GR_MIN(n, max);
    for (int64_t i = 1; i < out->ids.n; i++) n_targets += out->target[i];
    fit->dropped = out->n_sequences == 0 || n_targets == 0;
done:
    free(k.m);
    json_decref(k.made);
    gr_arena_release(&k.arena);
    return st;
}
