/* Tokenised data sets: masks, truncation, cache, order, split, flat batches. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "core/base/log.h"
#include "core/data/dataset.h"
#include "core/model/batch.h"

static char folder[64]; /* of this run's files */

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/test_data_XXXXXX");
    gr_log_quiet(true);
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    gr_remove_all(folder);
    return 0;
}

static const char *put_bytes(const char *name, const void *bytes, size_t n) {
    static char paths[8][128]; /* the last 8 stay valid */
    static int next;
    char *path = paths[next++ % 8];
    graft_error err;
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    assert_int_equal(gr_file_write(path, bytes, (int64_t)n, &err), GRAFT_OK);
    return path;
}

static const char *put(const char *name, const char *text) { return put_bytes(name, text, strlen(text)); }

/* ---- tokenised sets: a tokenizer whose pieces are single bytes and three control tokens ---- */

enum { START_ID = 256, END_ID = 257, EOS_ID = 258 };

static gr_tokenizer *byte_tokenizer(bool add_bos) {
    gr_str s = {0};
    graft_error err = {0};
    gr_tokenizer *t = NULL;
    char dir[96];
    gr_str_puts(&s, "{\"version\":\"1.0\",\"added_tokens\":[");
    const char *names[] = {"<|im_start|>", "<|im_end|>", "<|endoftext|>"};
    for (int i = 0; i < 3; i++)
        gr_str_printf(&s,
                      "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                      "\"normalized\":false,\"special\":true}",
                      i ? "," : "", START_ID + i, names[i]);
    gr_str_puts(&s, "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
                    "\"trim_offsets\":true,\"use_regex\":true},\"post_processor\":null,\"decoder\":{\"type\":"
                    "\"ByteLevel\"},"
                    "\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{");
    for (int b = 0, next = 256; b < 256; b++) { /* GPT-2's alphabet; ids are the bytes themselves */
        bool plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        gr_str_printf(&s, "\"\\u%04x\":%d,", plain ? b : next++, b);
    }
    for (int i = 0; i < 3; i++) gr_str_printf(&s, "\"%s\":%d%s", names[i], START_ID + i, i < 2 ? "," : "}}}");
    snprintf(dir, sizeof dir, "%s/tok%d", folder, add_bos);
    assert_int_equal(gr_make_dirs(dir, &err), GRAFT_OK);
    char name[64];
    snprintf(name, sizeof name, "tok%d/tokenizer.json", add_bos);
    put(name, s.data);
    snprintf(name, sizeof name, "tok%d/tokenizer_config.json", add_bos);
    put(name, add_bos ? "{\"add_bos_token\":true,\"bos_token\":\"<|im_start|>\",\"eos_token\":\"<|endoftext|>\","
                        "\"tokenizer_class\":\"PreTrainedTokenizerFast\"}"
                      : "{\"bos_token\":\"<|endoftext|>\",\"eos_token\":\"<|endoftext|>\","
                        "\"tokenizer_class\":\"PreTrainedTokenizerFast\"}");
    gr_str_release(&s);
    if (gr_tokenizer_open(&t, dir, &err) != GRAFT_OK) fail_msg("%s", err.msg);
    return t;
}

typedef struct setup {
    gr_tokenizer *t;
    gr_chat *chat;
    gr_threads *threads;
} setup;

static setup set_up(const char *template_name, bool add_bos) {
    graft_error err = {0};
    setup s = {.t = byte_tokenizer(add_bos), .threads = gr_threads_new(2)};
    gr_chat_options o = {.name = template_name, .system = ""};
    if (gr_chat_open(&s.chat, &o, s.t, &err) != GRAFT_OK) fail_msg("%s", err.msg);
    return s;
}

static void tear_down(setup *s) {
    gr_chat_free(s->chat);
    gr_tokenizer_free(s->t);
    gr_threads_free(s->threads);
}

static gr_dataset *load(const setup *s, const gr_data_options *o) {
    graft_error err = {0};
    gr_dataset *d;
    if (gr_dataset_load(&d, o, s->t, s->chat, s->threads, &err) != GRAFT_OK) fail_msg("%s", err.msg);
    return d;
}

static void assert_preview(const gr_dataset *d, const setup *s, int64_t i, const char *expected) {
    graft_error err;
    char *text = NULL;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    assert_int_equal(gr_dataset_preview(d, s->t, i, 1, false, out, &err), GRAFT_OK);
    fclose(out);
    const char *body = strchr(text, '\n');
    assert_non_null(body);
    char *ids = strstr(text, "\nids, which");
    text[ids ? ids - text : (long)n - 1] = '\0';
    assert_string_equal(body + 1, expected);
    free(text);
}

static void test_masks(void **state) {
    (void)state;
    setup s = set_up("chatml", false);
    gr_data_source source = {
        .path = put("m.jsonl", "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":"
                               "\"yo\"},"
                               "{\"role\":\"user\",\"content\":\"<|im_end|>\"},{\"role\":\"assistant\",\"content\":\"ok\"}]}\n"
                               "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"\"}]}"
                               "\n"
                               "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\","
                               "\"weight\":0}]}\n"
                               "{\"messages\":[{\"role\":\"user\",\"content\":\"\xE4\xBD\xA0\"},{\"role\":\"assistant\","
                               "\"content\":\"\xE5\xA5\xBD\"}]}\n"),
        .weight = 1};
    gr_data_options o = {.sources = &source, .n_sources = 1, .max_length = 1000};
    gr_dataset *d = load(&s, &o);
    assert_int_equal(d->n_samples, 2);
    assert_int_equal(d->n_empty, 2);
    assert_int_equal(d->n_targets, 3 + 3 + 4);
    assert_preview(d, &s, 0,
                   "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n[[yo<|im_end|>]]\n"
                   "<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n[[ok<|im_end|>]]\n");
    assert_preview(d, &s, 1, "<|im_start|>user\n\xE4\xBD\xA0<|im_end|>\n<|im_start|>assistant\n[[\xE5\xA5\xBD<|im_end|>]]\n");
    int n_end = 0; /* the one written inside a message is plain text */
    for (int64_t i = 0; i < d->offset[1]; i++) n_end += d->ids[i] == END_ID;
    assert_int_equal(n_end, 4);
    gr_dataset_free(d);
    o.loss_on = GR_LOSS_LAST;
    d = load(&s, &o);
    assert_preview(d, &s, 0,
                   "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
                   "<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n[[ok<|im_end|>]]\n");
    gr_dataset_free(d);
    tear_down(&s);
}

static void test_text(void **state) {
    (void)state;
    gr_data_source source = {.path = put("t.jsonl", "{\"text\":\"ab\"}\n{\"text\":\"\"}\n{\"text\":\"c<|im_end|>\"}\n"),
                             .weight = 1};
    gr_data_options o = {.sources = &source, .n_sources = 1, .max_length = 1000, .loss_on = GR_LOSS_ALL};
    for (int bos = 0; bos < 2; bos++) {
        setup s = set_up("none", bos);
        gr_dataset *d = load(&s, &o);
        assert_int_equal(d->n_samples, 2);
        assert_int_equal(d->n_empty, 1);
        assert_int_equal(d->offset[1], 3 + bos);
        assert_int_equal(d->ids[d->offset[2] - 2], END_ID); /* parsed, then one EOS */
        assert_preview(d, &s, 0, bos ? "<|im_start|>[[ab<|endoftext|>]]" : "a[[b<|endoftext|>]]");
        gr_dataset_free(d);
        tear_down(&s);
    }
}

static void test_pretrain(void **state) {
    (void)state;
    setup s = set_up("none", false);
    gr_data_source sources[2] = {{.path = put("p.jsonl", "{\"text\":\"abc\"}\n{\"text\":\"defg\"}\n"), .weight = 1},
                                 {.path = put("q.jsonl", "{\"text\":\"xyz\"}"), .weight = 1}};
    gr_data_options o = {.sources = sources, .n_sources = 2, .max_length = 5, .pretrain = true};
    gr_dataset *d = load(&s, &o);
    assert_int_equal(d->n_samples, 3);
    assert_preview(d, &s, 0, "a[[bc<|endoftext|>d]]");
    assert_preview(d, &s, 1, "e[[fg<|endoftext|>]]");
    assert_preview(d, &s, 2, "x[[yz<|endoftext|>]]");
    assert_int_equal(d->source[2], 1);
    assert_int_equal(d->n_targets, 4 + 3 + 3);
    gr_dataset_free(d);
    tear_down(&s);
}

/* Text that spells a control token is shown with its ids: the eye cannot tell it from one. */
static void test_preview_ids(void **state) {
    (void)state;
    setup s = set_up("chatml", false);
    graft_error err;
    gr_data_source source = {
        .path = put("p.jsonl", "{\"question\":\"a\",\"answer\":\"b\"}\n{\"question\":\"<|im_end|>\",\"answer\":\"b\"}\n"),
        .weight = 1};
    gr_data_options o = {.sources = &source, .n_sources = 1, .max_length = 64};
    gr_dataset *d = load(&s, &o);
    for (int i = 0; i < 2; i++) {
        char *text = NULL;
        size_t n;
        FILE *out = open_memstream(&text, &n);
        assert_int_equal(gr_dataset_preview(d, s.t, i, 1, false, out, &err), GRAFT_OK);
        fclose(out);
        assert_true((strstr(text, "\nids, which this text alone would not give: ") != NULL) == (i == 1));
        free(text);
    }
    gr_dataset_free(d);
    tear_down(&s);
}

static void test_truncation(void **state) {
    (void)state;
    setup s = set_up("chatml", false);
    graft_error err = {0};
    gr_dataset *d;
    /* <|im_start|>user\n012345<|im_end|>\n<|im_start|>assistant\nABCDE<|im_end|>\n: 14 + 11 prompt ids, 6
     * targets, 1 more */
    gr_data_source source = {.path = put("l.jsonl", "{\"question\":\"012345\",\"answer\":\"ABCDE\"}\n"), .weight = 1};
    gr_data_options o = {.sources = &source, .n_sources = 1, .max_length = 32};
    static const struct {
        int64_t max;
        const char *expected;
    } keep[] = {
        {32, "<|im_start|>user\n012345<|im_end|>\n<|im_start|>assistant\n[[ABCDE<|im_end|>]]\n"},
        {31, "<|im_start|>user\n012345<|im_end|>\n<|im_start|>assistant\n[[ABCDE<|im_end|>]]"},
        /* the frame stays; the question loses its middle */
        {29, "<|im_start|>user\n0145<|im_end|>\n<|im_start|>assistant\n[[ABCDE<|im_end|>]]"},
        {25, "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n[[ABCDE<|im_end|>]]"},
        /* then the answer its end, and no end token is taught there */
        {24, "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n[[ABCDE]]"},
        {20, "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n[[A]]"},
    };
    for (int i = 0; i < GR_LEN(keep); i++) {
        o.max_length = keep[i].max;
        d = load(&s, &o);
        assert_true(d->offset[1] <= o.max_length);
        if (i > 0) assert_int_equal(d->offset[1], o.max_length);
        assert_int_equal(d->lost.truncated, i > 0);
        assert_preview(d, &s, 0, keep[i].expected);
        gr_dataset_free(d);
    }
    setup with_bos = set_up("none", true); /* BOS stays in front of what is left of the prompt */
    for (int max = 8; max >= 5; max -= 3) {
        o.max_length = max;
        d = load(&with_bos, &o);
        assert_preview(d, &with_bos, 0, max == 8 ? "<|im_start|>5[[ABCDE<|endoftext|>]]" : "<|im_start|>5[[ABC]]");
        gr_dataset_free(d);
    }
    tear_down(&with_bos);
    o.max_length = 19; /* the frame alone: nothing can be learned */
    assert_int_equal(gr_dataset_load(&d, &o, s.t, s.chat, s.threads, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "1 too long"));
    o.truncation = GR_TRUNCATE_RIGHT;
    o.max_length = 28;
    d = load(&s, &o);
    assert_preview(d, &s, 0, "<|im_start|>user\n012345<|im_end|>\n<|im_start|>assistant\n[[ABC]]");
    gr_dataset_free(d);
    o.max_length = 20; /* cuts the whole answer away: said, not done in silence */
    assert_int_equal(gr_dataset_load(&d, &o, s.t, s.chat, s.threads, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "l.jsonl: nothing to learn from: 0 samples without an answer, 1 too long"));
    o.truncation = GR_TRUNCATE_DROP;
    assert_int_equal(gr_dataset_load(&d, &o, s.t, s.chat, s.threads, &err), GRAFT_BAD_INPUT);
    o.truncation = GR_TRUNCATE_ERROR;
    assert_int_equal(gr_dataset_load(&d, &o, s.t, s.chat, s.threads, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "l.jsonl:1: 32 tokens, max_length is 20"));
    o.max_length = 1;
    assert_int_equal(gr_dataset_load(&d, &o, s.t, s.chat, s.threads, &err), GRAFT_BAD_USAGE);
    o.max_length = 20;
    source.weight = 0;
    assert_int_equal(gr_dataset_load(&d, &o, s.t, s.chat, s.threads, &err), GRAFT_BAD_USAGE);
    source = (gr_data_source){.path = put("n.jsonl", "{\"prompt\":\"a\"}"), .weight = 1};
    assert_int_equal(gr_dataset_load(&d, &o, s.t, s.chat, s.threads, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "prompts without answers"));
    tear_down(&s);
}

/* The same samples, wherever they are kept. */
static void assert_same(const gr_dataset *a, const gr_dataset *b) {
    graft_error err = {0};
    gr_tokens buffers[2] = {0};
    assert_int_equal(a->n_samples, b->n_samples);
    assert_int_equal(a->key, b->key);
    assert_int_equal(a->n_targets, b->n_targets);
    assert_int_equal(a->lost.truncated, b->lost.truncated);
    assert_memory_equal(a->offset, b->offset, (size_t)(a->n_samples + 1) * sizeof *a->offset);
    for (int64_t i = 0; i < a->n_samples; i++) {
        const int32_t *ids[2];
        const uint8_t *target[2];
        size_t n = (size_t)(a->offset[i + 1] - a->offset[i]);
        assert_int_equal(gr_dataset_read(a, i, &buffers[0], &ids[0], &target[0], &err), GRAFT_OK);
        assert_int_equal(gr_dataset_read(b, i, &buffers[1], &ids[1], &target[1], &err), GRAFT_OK);
        assert_memory_equal(ids[0], ids[1], n * sizeof *ids[0]);
        assert_memory_equal(target[0], target[1], n);
        assert_int_equal(gr_dataset_targets(a, i), gr_dataset_targets(b, i));
    }
    for (int k = 0; k < 2; k++) gr_tokens_release(&buffers[k]);
}

static void test_threads_and_cache(void **state) {
    (void)state;
    setup s = set_up("chatml", false);
    graft_error err = {0};
    gr_str text = {0};
    for (int i = 0; i < 3000; i++) gr_str_printf(&text, "{\"question\":\"q%d\",\"answer\":\"%s%d\"}\n", i, i % 7 ? "a" : "", i);
    char cache[96];
    snprintf(cache, sizeof cache, "%s/cache", folder);
    gr_data_source source = {.path = put_bytes("c.jsonl", text.data, (size_t)text.len), .weight = 1};
    gr_data_options o = {.sources = &source, .n_sources = 1, .max_length = 40, .cache_dir = cache};
    gr_dataset *first = load(&s, &o), *second = load(&s, &o), *alone, *third;
    assert_false(first->from_cache);
    assert_true(second->from_cache);
    o.cache_dir = NULL;
    assert_int_equal(gr_dataset_load(&alone, &o, s.t, s.chat, NULL, &err), GRAFT_OK); /* without threads */
    assert_int_equal(alone->n_samples, 3000);
    o.cache_dir = cache;
    assert_same(alone, first);
    assert_same(alone, second);
    /* another option, another content: other tokens, another key */
    o.max_length = 41;
    third = load(&s, &o);
    assert_false(third->from_cache);
    assert_int_not_equal(third->key, first->key);
    gr_dataset_free(third);
    o.cache_dir = "/proc/nowhere"; /* cannot be written: a warning */
    third = load(&s, &o);
    assert_null(third->store);
    gr_dataset_free(third);
    gr_dataset_free(first);
    gr_dataset_free(second);
    gr_dataset_free(alone);
    gr_str_release(&text);
    tear_down(&s);
}

/* What is left aside is counted over threads and told again by the cache. */
static void test_remarks(void **state) {
    (void)state;
    setup s = set_up("chatml", false);
    gr_str text = {0};
    char cache[96];
    snprintf(cache, sizeof cache, "%s/remarks", folder);
    for (int i = 0; i < 3000; i++)
        gr_str_printf(&text,
                      "{\"messages\":[{\"role\":\"%s\",\"content\":\"q\"%s},{\"role\":\"assistant\",\"content\":\"a\",\"ts\":%d}],"
                      "\"so\\nurce\":1%s}\n",
                      i % 3 ? "user" : "developer", i % 3 == 1 ? ",\"name\":\"Bob\"" : "", i, i % 2 ? "" : ",\"id\":7,\"x\":null");
    gr_data_source sources[] = {{.path = put("plain.jsonl", "{\"prompt\":\"q\",\"completion\":\"a\"}"), .weight = 1},
                                {.path = put_bytes("r.jsonl", text.data, (size_t)text.len), .weight = 1}};
    gr_data_options o = {.sources = sources, .n_sources = 2, .max_length = 40, .cache_dir = cache};
    static const char expected[] = "1\tfields that are not used: \"so?urce\" (in 3000 samples), \"id\" (in 1500 samples)\n"
                                   "1\tfields of messages that are not used unless the template does: \"ts\" (in 3000 messages), "
                                   "\"name\" (in 1000 messages)\n"
                                   "1\t1000 messages of the role developer are read as system\n"
                                   "1\t1000 conversations begin with an assistant turn\n";
    for (int i = 0; i < 2; i++) {
        gr_dataset *d = load(&s, &o);
        assert_int_equal(d->from_cache, i);
        assert_string_equal(d->remarks, expected);
        gr_dataset_free(d);
    }
    gr_str_release(&text);
    tear_down(&s);
}

/* What a tool said is never cut: where it leaves the last answer no room the sample goes, though an earlier answer would fit. */
static void test_tool_text_is_whole(void **state) {
    (void)state;
    setup s = set_up("chatml", false);
    graft_error err = {0};
    gr_dataset *d;
    static const char sample[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"qqqq\"},"
                                 "{\"role\":\"assistant\",\"content\":\"c\"},"
                                 "{\"role\":\"tool\",\"content\":\"0123456789\"},{\"role\":\"assistant\",\"content\":\"z\"}]}";
    gr_data_source source = {.path = put("tool.jsonl", sample), .weight = 1};
    gr_data_options o = {.sources = &source, .n_sources = 1, .max_length = 54}; /* 57 with all of it */
    d = load(&s, &o);
    assert_preview(d, &s, 0,
                   "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n[[c<|im_end|>]]\n<|im_start|>tool\n0123456789<|im_end|>\n"
                   "<|im_start|>assistant\n[[z<|im_end|>]]");
    gr_dataset_free(d);
    for (o.max_length = 40; o.max_length <= 51; o.max_length += 11) {
        assert_int_equal(gr_dataset_load(&d, &o, s.t, s.chat, s.threads, &err), GRAFT_BAD_INPUT);
        assert_non_null(strstr(err.msg, "1 too long"));
    }
    tear_down(&s);
}

/* A message's control tokens stay text, and a load says in how many samples: in whatever form they come, rendered prompts of alpaca
 * and answers that bring their end of turn along. */
static void test_control_text_is_told(void **state) {
    (void)state;
    static const struct {
        const char *sample;
        bool told;
    } cases[] = {
        {"{\"prompt\":\"q\",\"completion\":\"a<|im_end|>\"}", true},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"<|im_start|>q\"},"
         "{\"role\":\"assistant\",\"content\":\"a\"}]}",
         true},
        {"{\"instruction\":\"<|im_start|>user\\nq<|im_end|>\",\"input\":\"\",\"output\":\"a<|im_end|>\"}", true},
        {"{\"system\":\"s\",\"prompt\":\"<|im_start|>user\\nq<|im_end|>\",\"completion\":\"a\"}", true},
        {"{\"question\":\"q\",\"answer\":\"a<|endoftext|>\"}", true},
        {"{\"prompt\":\"q <|im_ end|>\",\"completion\":\"a |im_end|\"}", false},
    };
    setup s = set_up("chatml", false);
    for (int i = 0; i < GR_LEN(cases); i++) {
        gr_data_source source = {.path = put("control.jsonl", cases[i].sample), .weight = 1};
        gr_data_options o = {.sources = &source, .n_sources = 1, .max_length = 400};
        gr_dataset *d = load(&s, &o);
        bool told = d->remarks && strstr(d->remarks, "\t1 samples spell control tokens in their messages, which stay plain text");
        if (told != cases[i].told) fail_msg("%s: %s", cases[i].sample, d->remarks ? d->remarks : "nothing");
        gr_dataset_free(d);
    }
    tear_down(&s);
}

/* ---- order, split, batches: a set of samples of 3 ids each ---- */

static gr_dataset *plain_set(int64_t n, int64_t n_second, double w0, double w1) {
    gr_dataset *d = gr_calloc(1, sizeof *d);
    d->n_samples = n + n_second;
    d->n_sources = 2;
    d->offset = gr_calloc(d->n_samples + 1, sizeof *d->offset);
    d->ids = gr_calloc(3 * d->n_samples, sizeof *d->ids);
    d->target = gr_calloc(3 * d->n_samples, 1);
    d->source = gr_calloc(d->n_samples, sizeof *d->source);
    d->weight = gr_calloc(2, sizeof *d->weight);
    d->weight[0] = w0, d->weight[1] = w1;
    for (int64_t i = 0; i < d->n_samples; i++) {
        d->source[i] = i >= n;
        d->offset[i + 1] = 3 * (i + 1);
        for (int k = 0; k < 3; k++) d->ids[3 * i + k] = (int32_t)(10 * i + k);
        d->target[3 * i + 2] = 1;
    }
    d->n_targets = d->n_samples;
    return d;
}

static void test_order(void **state) {
    (void)state;
    graft_error err;
    gr_dataset *d = plain_set(5, 4, 0.5, 2);
    int64_t *order, *again, n, m;
    int seen[9] = {0};
    for (int epoch = 0; epoch < 2; epoch++) {
        assert_int_equal(gr_dataset_order(d, 7, epoch, true, &order, &n, &err), GRAFT_OK);
        assert_int_equal(gr_dataset_order(d, 7, epoch, true, &again, &m, &err), GRAFT_OK);
        assert_int_equal(n, m);
        assert_int_equal(n, (epoch ? 2 : 3) + 8);
        assert_memory_equal(order, again, (size_t)n * sizeof *order);
        for (int64_t i = 0; i < n; i++) seen[order[i]]++;
        free(order);
        free(again);
    }
    for (int i = 0; i < 9; i++) assert_int_equal(seen[i], i < 5 ? 1 : 4); /* both halves, and 2 epochs of twice */
    gr_dataset_free(d);
    d = plain_set(500, 0, 1, 1);
    assert_int_equal(gr_dataset_order(d, 7, 0, false, &order, &n, &err), GRAFT_OK);
    for (int64_t i = 0; i < n; i++) assert_int_equal(order[i], i);
    free(order);
    assert_int_equal(gr_dataset_order(d, 7, 0, true, &order, &n, &err), GRAFT_OK);
    assert_int_equal(gr_dataset_order(d, 7, 1, true, &again, &m, &err), GRAFT_OK);
    int fixed = 0, same = 0;
    for (int64_t i = 0; i < n; i++) fixed += order[i] == i, same += order[i] == again[i];
    assert_in_range(fixed, 0, 8); /* 1 expected */
    assert_in_range(same, 0, 8);
    free(order);
    free(again);
    gr_dataset_free(d);
    d = plain_set(1, 0, 0.25, 1);
    assert_int_equal(gr_dataset_order(d, 7, 0, true, &order, &n, &err), GRAFT_OK);
    assert_int_equal(n, 0); /* an epoch that the weights leave empty */
    free(order);
    gr_dataset_free(d);
}

static void test_split(void **state) {
    (void)state;
    graft_error err;
    gr_dataset *d = plain_set(60, 40, 1, 1), *e;
    d->key = 5;
    assert_int_equal(gr_dataset_split(d, 1.0, 1, &e, &err), GRAFT_BAD_USAGE);
    assert_int_equal(gr_dataset_split(d, 0.1, 1, &e, &err), GRAFT_OK);
    assert_int_equal(e->n_samples, 10);
    assert_int_equal(d->n_samples, 90);
    assert_int_equal(d->n_targets, 90);
    assert_int_equal(e->n_targets, 10);
    assert_int_not_equal(e->key, d->key);
    int seen[100] = {0};
    const gr_dataset *both[] = {d, e};
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; i < both[k]->n_samples; i++) {
            int64_t at = both[k]->offset[i], sample = both[k]->ids[at] / 10;
            assert_int_equal(both[k]->offset[i + 1], at + 3);
            assert_int_equal(both[k]->ids[at + 2], 10 * sample + 2);
            assert_int_equal(both[k]->target[at + 2], 1);
            assert_int_equal(both[k]->source[i], sample >= 60);
            if (i > 0) assert_true(sample > both[k]->ids[at - 3] / 10); /* file order */
            seen[sample]++;
        }
    for (int i = 0; i < 100; i++) assert_int_equal(seen[i], 1);
    gr_dataset_free(d);
    gr_dataset_free(e);
    d = plain_set(1, 0, 1, 1);
    assert_int_equal(gr_dataset_split(d, 0.5, 1, &e, &err), GRAFT_OK); /* nothing to split */
    assert_null(e);
    assert_int_equal(d->n_samples, 1);
    gr_dataset_free(d);
}

static void test_batch(void **state) {
    (void)state;
    graft_error err;
    gr_dataset *d = plain_set(3, 0, 1, 1);
    gr_batch b = {0}, c = {0};
    int64_t idx[] = {2, 0}, alone[] = {0};
    assert_int_equal(gr_batch_fill(&b, d, idx, 2, 0, &err), GRAFT_OK);
    assert_int_equal(b.n, 6);
    assert_int_equal(b.n_seqs, 2);
    assert_int_equal(b.n_targets, 2);
    static const int32_t tokens[] = {20, 21, 22, 0, 1, 2}, positions[] = {0, 1, 2, 0, 1, 2};
    static const float weight[] = {0, 1, 0, 0, 1, 0};
    static const int64_t offset[] = {0, 3, 6};
    assert_memory_equal(b.tokens, tokens, sizeof tokens);
    assert_memory_equal(b.positions, positions, sizeof positions);
    assert_memory_equal(b.weight, weight, sizeof weight);
    assert_memory_equal(b.offset, offset, sizeof offset);
    assert_int_equal(b.targets[1], 22);
    assert_int_equal(b.targets[4], 2);
    /* keys depend on sample, position and epoch, not on the neighbours */
    assert_int_equal(gr_batch_fill(&c, d, alone, 1, 0, &err), GRAFT_OK);
    assert_memory_equal(c.row_key, b.row_key + 3, 3 * sizeof *c.row_key);
    assert_int_not_equal(b.row_key[0], b.row_key[3]);
    assert_int_not_equal(b.row_key[0], b.row_key[1]);
    assert_int_equal(gr_batch_fill(&c, d, alone, 1, 1, &err), GRAFT_OK);
    assert_int_not_equal(c.row_key[0], b.row_key[3]);
    /* appended prompts train nothing; a set of any size fits */
    int32_t ids[100] = {5, 6, 7};
    gr_batch_clear(&b);
    for (int i = 0; i < 50; i++) assert_int_equal(gr_batch_append(&b, ids, NULL, 100, 9, &err), GRAFT_OK);
    assert_int_equal(b.n, 5000);
    assert_int_equal(b.n_seqs, 50);
    assert_int_equal(b.n_targets, 0);
    assert_int_equal(b.offset[50], 5000);
    assert_int_equal(b.tokens[4901], 6);
    gr_batch_release(&b);
    gr_batch_release(&c);
    gr_dataset_free(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_pretrain),
        cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_preview_ids),
        cmocka_unit_test(test_threads_and_cache),
        cmocka_unit_test(test_remarks),
        cmocka_unit_test(test_control_text_is_told),
        cmocka_unit_test(test_tool_text_is_whole),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_batch),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
