/* graft tokenize: lines to ids and back, a block of lines at a time over all threads, in order. */
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/text/tokenizer.h"
#include "core/text/utf8.h"
#include "kernels/threads.h"
#include "peft/cli/commands.h"

enum { BLOCK_LINES = 4096 };

typedef struct line {
    char *text; /* owned, from getline */
    size_t capacity;
    int64_t len, number;
    gr_str out;
    graft_status status;
    graft_error err;
} line;

typedef struct work {
    const gr_tokenizer *tokenizer;
    const char *file; /* for messages */
    bool plain, decode;
    line *lines;
} work;

static graft_status encode_text(const work *w, const char *text, int64_t len, line *l) {
    gr_ids ids = {0};
    graft_status st = gr_tokenizer_encode(w->tokenizer, text, len, true, &ids, &l->err);
    gr_str_putc(&l->out, '[');
    for (int64_t i = 0; i < ids.n; i++) gr_str_printf(&l->out, "%s%d", i ? ", " : "", (int)ids.data[i]);
    gr_str_puts(&l->out, "]\n");
    gr_ids_release(&ids);
    return st;
}

static graft_status fail_line(const work *w, line *l, const char *what) {
    return gr_fail(&l->err, GRAFT_BAD_INPUT, "%s:%lld: %s", w->file, (long long)l->number, what);
}

static graft_status encode_json(const work *w, line *l) {
    graft_status st = GRAFT_OK;
    gr_str valid = {0};
    gr_utf8_repair(l->text, l->len, &valid);
    json_t *root = valid.failed ? NULL : json_loadb(valid.data, (size_t)valid.len, JSON_ALLOW_NUL, NULL);
    const json_t *text = json_object_get(root, "text");
    if (json_is_string(text)) st = encode_text(w, json_string_value(text), (int64_t)json_string_length(text), l);
    else st = fail_line(w, l, "expected {\"text\": ...}; --plain reads lines of plain text");
    json_decref(root);
    gr_str_release(&valid);
    return st;
}

static graft_status decode_json(const work *w, line *l) {
    graft_status st = GRAFT_OK;
    gr_ids ids = {0};
    gr_str bytes = {0}, text = {0};
    json_t *root = json_loadb(l->text, (size_t)l->len, 0, NULL), *entry;
    int64_t n_vocab = gr_tokenizer_get_info(w->tokenizer)->n_vocab;
    size_t i;
    if (!json_is_array(root)) GR_TRY(fail_line(w, l, "expected a list of ids, such as [1, 2, 3]"));
    json_array_foreach(root, i, entry) {
        if (!json_is_integer(entry) || json_integer_value(entry) < 0 || json_integer_value(entry) >= n_vocab)
            GR_TRY(fail_line(w, l, "an entry is no id of this tokenizer"));
        if (!gr_ids_push(&ids, (int32_t)json_integer_value(entry))) GR_TRY(gr_fail_memory(&l->err, "ids"));
    }
    GR_TRY(gr_tokenizer_decode(w->tokenizer, ids.data, ids.n, false, &bytes, &l->err));
    gr_utf8_repair(bytes.data ? bytes.data : "", bytes.len, &text);
    if (w->plain) {
        gr_str_add(&l->out, text.data ? text.data : "", text.len);
    } else {
        json_t *object = json_pack("{s:s%}", "text", text.data ? text.data : "", (size_t)text.len);
        char *dump = json_dumps(object, JSON_ENSURE_ASCII);
        gr_str_puts(&l->out, dump ? dump : "");
        free(dump);
        json_decref(object);
    }
    gr_str_putc(&l->out, '\n');
done:
    json_decref(root);
    gr_ids_release(&ids);
    gr_str_release(&bytes);
    gr_str_release(&text);
    return st;
}

static void do_line(void *context, int64_t chunk, int worker) {
    const work *w = context;
    line *l = &w->lines[chunk];
    (void)worker;
    gr_str_clear(&l->out);
    if (w->decode) l->status = decode_json(w, l);
    else if (w->plain) l->status = encode_text(w, l->text, l->len, l);
    else l->status = encode_json(w, l);
    if (l->status == GRAFT_OK && l->out.failed) l->status = gr_fail_memory(&l->err, "ids");
}

/* Up to BLOCK_LINES lines; blank ones count only as plain text. *number: lines read so far. */
static int64_t read_block(FILE *in, const work *w, int64_t *number) {
    int64_t n = 0;
    while (n < BLOCK_LINES) {
        line *l = &w->lines[n];
        ssize_t len = getline(&l->text, &l->capacity, in);
        if (len < 0) break;
        if (len > 0 && l->text[len - 1] == '\n') l->text[--len] = '\0';
        l->len = len;
        l->number = ++*number;
        bool blank = (int64_t)strspn(l->text, " \t\r") == len;
        if (!blank || (w->plain && !w->decode)) n++;
    }
    return n;
}

static graft_status tokenize_stream(FILE *in, const work *w, gr_threads *threads, graft_error *err) {
    int64_t number = 0, n;
    while ((n = read_block(in, w, &number)) > 0) {
        gr_threads_run(threads, n, do_line, (void *)(uintptr_t)w);
        for (int64_t i = 0; i < n; i++) {
            const line *l = &w->lines[i];
            if (l->status != GRAFT_OK) {
                if (err) *err = l->err;
                return l->status;
            }
            fwrite(l->out.data, 1, (size_t)l->out.len, stdout);
        }
        if (ferror(stdout)) return gr_fail_errno(err, GRAFT_FAILED, "writing standard output");
    }
    return ferror(in) ? gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", w->file) : GRAFT_OK;
}

graft_status gr_cmd_tokenize(const gr_args *a, graft_error *err) {
    graft_status st = GRAFT_OK;
    bool from_stdin = a->n_arguments == 0 || strcmp(a->arguments[0], "-") == 0;
    gr_tokenizer *tokenizer = NULL;
    gr_recipe *r = NULL;
    gr_threads *threads = NULL;
    char *base = NULL;
    FILE *in = stdin;
    work w = {.file = from_stdin ? "standard input" : a->arguments[0],
              .plain = gr_args_has(a, "plain"),
              .decode = gr_args_has(a, "decode")};
    w.lines = gr_calloc(BLOCK_LINES, sizeof *w.lines);
    if (!w.lines) return gr_fail_memory(err, "lines");
    GR_TRY(gr_args_recipe(a, NULL, a->n_arguments, &r, err));
    if (!gr_args_has(a, "model")) GR_TRY(gr_fail(err, GRAFT_BAD_USAGE, "no tokenizer: give --model"));
    GR_TRY(gr_session_base(&base, gr_args_text(a, "model", NULL), err));
    GR_TRY(gr_tokenizer_open(&tokenizer, base, err));
    w.tokenizer = tokenizer;
    threads = gr_threads_new((int)GR_MIN(r->_threads, 1024));
    if (!threads) GR_TRY(gr_fail(err, GRAFT_FAILED, "cannot start threads"));
    if (!from_stdin && !(in = fopen(a->arguments[0], "re")))
        GR_TRY(gr_fail_errno(err, GRAFT_BAD_INPUT, "cannot read %s", a->arguments[0]));
    GR_TRY(tokenize_stream(in, &w, threads, err));
done:
    if (in && in != stdin) fclose(in);
    gr_threads_free(threads);
    gr_tokenizer_free(tokenizer);
    gr_recipe_free(r);
    free(base);
    for (int i = 0; i < BLOCK_LINES; i++) {
        free(w.lines[i].text);
        gr_str_release(&w.lines[i].out);
    }
    free(w.lines);
    return st;
}
