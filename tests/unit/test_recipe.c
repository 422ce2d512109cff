/* Recipes: good ones give the struct, bad ones give one line with file, line, column, key and what to do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "peft/recipe_schema.h"

static char folder[] = "/tmp/graft-recipe-XXXXXX";

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    gr_remove_all(folder);
    return 0;
}

/* Writes folder/name; the path in a static ring of buffers. */
static const char *put(const char *name, const char *text, int64_t len) {
    static char paths[4][256];
    static int next;
    char *path = paths[next++ % 4];
    graft_error err = {0};
    snprintf(path, 256, "%s/%s", folder, name);
    if (gr_file_write(path, text, len < 0 ? (int64_t)strlen(text) : len, &err) != GRAFT_OK) fail_msg("%s", err.msg);
    return path;
}

static graft_status load(gr_recipe **r, const char *yaml, graft_error *err) {
    return gr_recipe_load(r, put("r.yaml", yaml, -1), NULL, 0, err);
}

static gr_recipe *good(const char *yaml) {
    gr_recipe *r = NULL;
    graft_error err = {0};
    if (load(&r, yaml, &err) != GRAFT_OK) fail_msg("%s", err.msg);
    return r;
}

static void bad_cases(void **state) {
    static const struct {
        const char *yaml, *message; /* message: part of the error; "@3:5" stands for the file and the place */
    } cases[] = {
        {"adapter:\n  lora_r: 8\n", "@2:3: unknown key \"lora_r\" in section adapter; use adapter.rank"},
        {"lora_alpha: 8\n", "@1:1: unknown key \"lora_alpha\"; use adapter.alpha"},
        {"adapter: {lora_target_linear: true}", "use adapter.target_modules: all-linear"},
        {"train:\n  per_device_train_batch_size: 4\n", "@2:3: unknown key"},
        {"train:\n  gradient_accumulation_steps: 4\n", "train.batch_size is per optimizer step"},
        {"train:\n  micro_batch_size: 4\n", "use train.batch_size"},
        {"cutoff_len: 512\n", "use data.max_length"},
        {"sequence_len: 512\n", "use data.max_length"},
        {"train: {lr_scheduler_type: cosine}", "use train.lr_scheduler"},
        {"base_model: x\n", "use model.base"},
        {"model:\n  model_name_or_path: x\n", "use model.base"},
        {"datasets: [a]\n", "use data.train"},
        {"num_epochs: 3\n", "use train.num_train_epochs"},
        {"logging_steps: 3\n", "use log.every"},
        {"save_steps: 3\n", "use save.every"},
        {"eval_steps: 3\n", "use eval.every"},
        {"warmup_ratio: 0.1\n", "it is written train.warmup_ratio"},
        {"learning_rate: 1e-4\n", "it is written train.learning_rate"},
        {"adapter:\n  rnak: 8\n", "did you mean adapter.rank?"},
        {"modle:\n  base: x\n", "@1:1: unknown key \"modle\"; did you mean model?"},
        {"trian: {}\n", "did you mean train?"},
        {"zzzzzzzzzz: 1\n", "`graft help recipe` lists all keys"},
        {"eval: 5\n",
         "@1:7: section eval: expected keys below it (every, batch_tokens, metrics, early_stopping_patience), found \"5\""},
        {"model: x\n", "@1:8: section model: expected keys below it (base, dtype, compute, quantize), found \"x\""},
        {"adapter:\n  rank: eight\n", "@2:9: adapter.rank: expected a whole number, found \"eight\""},
        {"adapter:\n  rank: \"8\"\n", "found the quoted text \"8\""},
        {"adapter:\n  rank: 8.5\n", "expected a whole number, found \"8.5\""},
        {"adapter:\n  rank: 0\n", "expected a number from 1 to 4096, found \"0\""},
        {"adapter:\n  rank: 5000\n", "expected a number from 1 to 4096"},
        {"adapter:\n  rank: 99999999999999999999\n", "expected a whole number"},
        {"adapter:\n  rank:\n", "found nothing (null)"},
        {"adapter:\n  rank: [8]\n", "found a list"},
        {"adapter:\n  alpha: {a: 1}\n", "found a mapping"},
        {"adapter:\n  alpha: -1\n", "expected at least 0"},
        {"adapter:\n  alpha: .nan\n", "expected a number, found \".nan\""},
        {"adapter:\n  alpha: 0x10\n", "expected a number"},
        {"adapter:\n  alpha: 1e999\n", "expected a number"},
        {"adapter:\n  dropout: 1.0\n", "expected a number from 0 to 0.99"},
        {"adapter:\n  use_rslora: maybe\n", "expected true or false, found \"maybe\""},
        {"adapter:\n  method: lorra\n", "one of lora|full|embeddings (did you mean lora?)"},
        {"adapter:\n  target_modules: {a: b}\n", "expected a list of names"},
        {"adapter:\n  target_modules: [a, [b]]\n", "@2:23: adapter.target_modules: expected a name, found a list"},
        {"adapter:\n  target_modules: []\n", "it names no module"},
        {"adapter:\n  rank_pattern: [a]\n", "expected a mapping of module names to numbers"},
        {"adapter:\n  rank_pattern: {q_proj: x}\n", "expected a number, found \"x\""},
        {"adapter:\n  rank_pattern: {q_proj: 0}\n", "expected a number from 1 to 4096"},
        {"adapter:\n  rank_pattern: {q_proj: 2.5}\n", "a rank is a whole number"},
        {"adapter:\n  method: full\n  init_from: x\n", "@3:14: adapter.init_from: method full does not start"},
        {"adapter:\n  method: embeddings\n  rows: [new, a]\n", "@3:9: adapter.rows: expected new, all, or a list"},
        {"adapter:\n  method: embeddings\n  rows: []\n", "adapter.rows: expected new, all, or a list"},
        {"adapter:\n  method: embeddings\n  dropout: 0.1\n",
         "@3:12: adapter.dropout: is of method lora and says nothing of method embeddings: leave it out, or use adapter.method"},
        {"adapter:\n  rank: 8\n  method: full\n", "@2:9: adapter.rank: is of method lora and says nothing of method full"},
        {"adapter:\n  alpha: 16\n  method: full\n", "@2:10: adapter.alpha: is of method lora"},
        {"adapter: {method: full, dropout: 0.5}\n", "adapter.dropout: is of method lora"},
        {"adapter: {method: full, target_modules: all-linear}\n", "adapter.target_modules: is of method lora"},
        {"adapter: {method: full, use_rslora: true}\n", "adapter.use_rslora: is of method lora"},
        {"adapter: {method: embeddings, rank_pattern: {q_proj: 2}}\n", "adapter.rank_pattern: is of method lora"},
        {"adapter: {method: embeddings, alpha_pattern: {q_proj: 2}}\n", "adapter.alpha_pattern: is of method lora"},
        {"adapter: {method: full, rows: new}\n", "adapter.rows: it is of method embeddings"},
        {"adapter:\n  method: embeddings\n  trainable_tokens: new\n", "method embeddings has adapter.rows"},
        {"adapter:\n  rows: all\n", "@2:9: adapter.rows: it is of method embeddings"},
        {"adapter:\n  head_rows: false\n", "@2:14: adapter.head_rows: is of trained rows"},
        {"adapter:\n  trainable_tokens: all\n", "adapter.trainable_tokens: expected new, or a list"},
        {"train:\n  objective: dpo\n", "dpo is not in this version"},
        {"model:\n  quantize: nf4\nadapter:\n  method: full\n", "@2:13: model.quantize: method full trains the base's own weights"},
        {"model:\n  quantize: nf5\n", "@2:13: model.quantize: expected one of none|q8_0|q4_0|q4_k|nf4"},
        {"model:\n  compute: int8\nadapter:\n  method: full\n", "int8 is for a frozen base"},
        {"model:\n  compute: fp8\nadapter:\n  method: full\n", "@2:12: model.compute: fp8 is for a frozen base"},
        {"model: {compute: fp8, dtype: fp32}\n", "fp8 goes with bf16 or fp16"},
        {"device: cpu\nmodel: {compute: fp8}\n", "fp8 is of cards (compute capability 9.0: H100, H200), not of the CPU"},
        {"model:\n  compute: fp8-full\n", "fp8-full is not offered: a forward in fp8 costs 1.2 % of loss"},
        {"device: cud\n", "@1:9: device: expected auto, cpu, cuda or cuda:N, found \"cud\""},
        {"device: cuda:x\n", "device: expected auto, cpu, cuda or cuda:N"},
        {"device: null\n", "device: expected auto, cpu, cuda or cuda:N"},
        {"device: cuda:1\nmodel: {compute: int8}\n", "model.compute: int8 is of the CPU"},
        {"adapter:\n  method: embedings\n", "expected one of lora|full|embeddings"},
        {"train:\n  objective: dpp\n", "expected one of sft|pretrain, found"},
        {"train:\n  sharding: zero4\n", "expected one of auto|none|zero1|zero2|zero3"},
        {"train:\n  every: 3\n", "it is written eval.every or save.every or log.every"},
        {"save:\n  evrey: 3\n", "did you mean save.every?"},
        {"data:\n  template: klingon\n",
         "@2:13: data.template: unknown template \"klingon\"; expected auto, FILE.jinja, FILE.yaml, alpaca"},
        {"data:\n  template: chat-ml\n", "did you mean chatml?"},
        {"data:\n  train: [{path: a, format: alpacca}]\n", "@2:29: data.train: unknown format \"alpacca\" (did you mean alpaca?)"},
        {"data:\n  train: 5\n  trian: x\n", "did you mean data.train?"},
        {"data:\n  train: [{format: text}]\n", "@2:11: data.train: a source needs a path"},
        {"data:\n  train: [{path: a, wieght: 2}]\n", "did you mean weight?"},
        {"data:\n  train: [{path: a, weight: 0}]\n", "weight: a number above 0"},
        {"data:\n  train: [{path: a, limit: -2}]\n", "limit: a whole number"},
        {"data:\n  train: [{path: a, columns: [x]}]\n", "columns: {prompt: NAME"},
        {"data:\n  eval: 1.5\n", "a share between 0 and 1"},
        {"data:\n  eval: 0\n", "a share between 0 and 1"},
        {"data:\n  system: [a]\n", "expected a text, found a list"},
        {"data:\n  max_length: 1\n", "expected at least 2"},
        {"train:\n  memory_limit: lots\n", "expected a size such as 12GiB, or auto"},
        {"train:\n  max_steps: auto\n", "expected a whole number or null"},
        {"train:\n  micro_batch_tokens: many\n", "expected a whole number or auto"},
        {"train:\n  num_train_epochs: 0\n", "0 epochs train nothing"},
        {"train:\n  adam_beta2: 1.0\n", "must be below 1"},
        {"train: {warmup_steps: 5, warmup_ratio: 0.1}\n", "not both"},
        {"eval:\n  metrics: [loss, bleu]\n", "expected loss and exact_match"},
        {"eval:\n  early_stopping_patience: 2\n", "needs data.eval"},
        {"train: {objective: pretrain}\ndata: {truncation: drop}\n", "@2:20: data.truncation: is for objective sft"},
        {"train: {objective: pretrain}\ndata: {loss_on: last}\n", "@2:17: data.loss_on: last is for objective sft"},
        {"train: {objective: pretrain}\neval: {metrics: exact_match}\n", "which pretrain does not have"},
        {"model:\n  base: a\nmodel:\n  base: b\n", "@3:1: key \"model\" is given twice (first in line 1)"},
        {"model:\n  base: a\n  base: b\n", "@3:3: key \"base\" is given twice"},
        {"model: {base: a\n", "not valid YAML"},
        {"\tmodel: 1\n", "not valid YAML"},
        {"model:\n  base: \"\xff\xfe\"\n", "@2:10: not valid YAML"},
        {"- a\n- b\n", "@1:1: a recipe is a mapping"},
        {"just text\n", "a recipe is a mapping"},
        {"a: 1\n---\nb: 2\n", "one YAML document"},
        {"model: !python/object {}\n", "YAML tags"},
        {"model: *nothing\n", "@1:8: an alias without an anchor"},
        {"model: &a {base: *a}\n", "an alias without an anchor"},
        {"[a]: 1\n", "a key must be a plain word"},
        {"model:\n  base: \"a\\0b\"\n", "NUL"},
        {"a: [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]\n", "nested too deep"},
        {"a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c "
         "[*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n",
         "more values than a recipe may have"},
        {"extends: [a]\n", "extends: expected the path of a recipe"},
        {"extends: missing.yaml\n", "@1:10: extends: no recipe \"missing.yaml\""},
        {"output_dir: \"\"\n", "output_dir: expected the path of a folder"},
    };
    (void)state;
    for (int i = 0; i < GR_LEN(cases); i++) {
        gr_recipe *r = NULL;
        graft_error err = {0};
        char expected[512];
        const char *m = cases[i].message;
        snprintf(expected, sizeof expected, "%s%s%s", *m == '@' ? folder : "", *m == '@' ? "/r.yaml:" : "", m + (*m == '@'));
        if (load(&r, cases[i].yaml, &err) != GRAFT_BAD_USAGE) fail_msg("case %d: not refused: %s", i, cases[i].yaml);
        if (!strstr(err.msg, expected)) fail_msg("case %d: expected \"%s\" in \"%s\"", i, expected, err.msg);
        if (strchr(err.msg, '\n')) fail_msg("case %d: more than one line", i);
        assert_null(r);
    }
}

/* Every problem in one go, in the order of the file; no problem makes another. */
static void all_problems(void **state) {
    static const char *const expected[] = {
        "/a.yaml:1:16: model.dtype: expected one of auto|fp32|bf16|fp16 (did you mean fp32?), found \"fp12\"",
        "/a.yaml:1:22: unknown key \"bass\" in section model; did you mean model.base?",
        "/a.yaml:3:3: unknown key \"lora_r\" in section adapter; use adapter.rank",
        "/a.yaml:4:12: adapter.dropout: expected a number from 0 to 0.99, found \"2\"",
        "/a.yaml:5:28: adapter.target_modules: expected a name, found a list",
        "/a.yaml:6:26: adapter.rank_pattern: expected a number, found \"x\"",
        "/a.yaml:6:32: adapter.rank_pattern: expected a number from 1 to 4096, found \"0\"",
        ("/a.yaml:8:17: unknown key \"paht\" in data.train: a source has path, format, columns, ignore, weight, share, limit (did "
         "you mean path?)"),
        "/a.yaml:8:34: data.train: expected weight: a number above 0, found \"-1\"",
        "/a.yaml:8:16: data.train: a source needs a path",
        "/a.yaml:9:6: section log: expected keys below it (every, tensorboard, plot), found \"5\"",
        "/a.yaml:10:1: unknown key \"sede\"; did you mean train.seed?",
        "train.sead=1: unknown key \"sead\" in section train; did you mean train.seed?",
        "/a.yaml:7:17: eval.metrics: expected loss and exact_match, found \"bleu\"",
        "/a.yaml: model.base, output_dir are missing; set them in the recipe or as section.key=value",
    };
    static const char *const overrides[] = {"train.sead=1"};
    gr_problems problems = {0};
    gr_recipe *r = NULL;
    graft_error err = {0};
    (void)state;
    const char *path = put("a.yaml",
                           "model: {dtype: fp12, bass: x}\n"
                           "adapter:\n"
                           "  lora_r: 8\n"
                           "  dropout: 2\n"
                           "  target_modules: [q_proj, [v_proj]]\n"
                           "  rank_pattern: {q_proj: x, k: 0, v: 2}\n"
                           "eval: {metrics: [bleu]}\n"
                           "data: {train: [{paht: x, weight: -1}, {path: nowhere.jsonl}]}\n"
                           "log: 5\n"
                           "sede: 1\n",
                           -1);
    graft_status st = gr_recipe_examine(&r, path, overrides, 1, &(gr_examine_options){.complete = true}, &problems, &err);
    assert_int_equal(st, GRAFT_OK);
    for (int i = 0; i < GR_LEN(expected) && i < problems.n; i++)
        if (!gr_ends_with(problems.items[i].text, expected[i]))
            fail_msg("problem %d: expected \"%s\", found \"%s\"", i, expected[i], problems.items[i].text);
    assert_int_equal(problems.n, GR_LEN(expected));
    assert_int_equal(problems.items[1].line, 1);
    assert_int_equal(problems.items[1].column, 22);
    assert_null(r);
    gr_problems_release(&problems);
    assert_int_equal(gr_recipe_load(&r, path, overrides, 1, &err), GRAFT_BAD_USAGE);
    assert_non_null(strstr(err.msg, " (and 13 more: graft validate)")); /* what is missing is told when it is needed */
}

/* Paths that lead nowhere are told apart, and only when asked for. */
static void missing_paths(void **state) {
    static const char *const expected[] = {
        ":1:15: model.base: nothing is there: \"no.gguf\"", ":2:26: adapter.init_from: nothing is there: \"runs/none\"",
        ":4:21: data.train: nothing is there: \"none.jsonl\"", ":5:9: data.eval: nothing is there: \"none.json\"",
        ":6:13: data.template: nothing is there: \"none.jinja\""};
    gr_problems problems = {0};
    gr_recipe *r = NULL;
    graft_error err = {0};
    (void)state;
    put("there.jsonl", "{}\n", -1);
    const char *path = put("f.yaml",
                           "model: {base: no.gguf}\n"
                           "adapter: {init_from:     runs/none}\n"
                           "data:\n"
                           "  train: [{path:    none.jsonl}, there.jsonl]\n"
                           "  eval: none.json\n"
                           "  template: none.jinja\n"
                           "output_dir: runs/new\n",
                           -1);
    gr_examine_options o = {.files = true, .complete = true};
    assert_int_equal(gr_recipe_examine(&r, path, NULL, 0, &o, &problems, &err), GRAFT_OK);
    assert_null(r);
    for (int i = 0; i < GR_LEN(expected) && i < problems.n; i++) {
        assert_true(problems.items[i].missing);
        if (!gr_ends_with(problems.items[i].text, expected[i]))
            fail_msg("problem %d: expected \"%s\", found \"%s\"", i, expected[i], problems.items[i].text);
    }
    assert_int_equal(problems.n, GR_LEN(expected));
    gr_problems_release(&problems);
    o.files = false;
    assert_int_equal(gr_recipe_examine(&r, path, NULL, 0, &o, &problems, &err), GRAFT_OK);
    assert_int_equal(problems.n, 0);
    assert_non_null(r);
    gr_recipe_free(r);
}

static void missing_and_huge_files(void **state) {
    gr_recipe *r = NULL;
    graft_error err = {0};
    (void)state;
    assert_int_equal(gr_recipe_load(&r, "/nonexistent.yaml", NULL, 0, &err), GRAFT_BAD_INPUT);
    assert_non_null(strstr(err.msg, "/nonexistent.yaml"));
    char *big = gr_calloc(3 << 20, 1);
    memset(big, '#', 3 << 20);
    assert_int_equal(gr_recipe_load(&r, put("big.yaml", big, 3 << 20), NULL, 0, &err), GRAFT_BAD_INPUT);
    free(big);
}

static void defaults(void **state) {
    (void)state;
    gr_recipe *r = good("");
    assert_null(r->model_base);
    assert_int_equal(r->adapter_rank, 8);
    assert_true(r->adapter_alpha == 16);
    assert_int_equal(r->adapter_target_modules.n, 1);
    assert_string_equal(r->adapter_target_modules.items[0], "all-linear");
    assert_int_equal(r->data_train.n, 0);
    assert_true(r->train_learning_rate == 2e-4);
    assert_int_equal(r->train_max_steps, -1);
    assert_int_equal(r->train_micro_batch_tokens, -1);
    assert_int_equal(r->train_memory_limit, -1);
    assert_int_equal(r->data_truncation, GR_TRUNCATE_KEEP_ANSWER);
    assert_true(r->data_shuffle);
    gr_recipe_free(r);
}

/* A name gives its constant, is printed as it was read, and stands in help. */
static void choices(void **state) {
    int n_choices = 0;
    (void)state;
    for (int i = 0; i < GR_N_RECIPE_KEYS; i++) {
        const gr_key *k = &gr_recipe_keys[i];
        for (const gr_choice *c = k->choices; c && c->name; c++, n_choices++) {
            char override[96], line[96];
            gr_recipe *r = NULL;
            gr_str text = {0};
            graft_error err;
            const bool full = k == &gr_recipe_keys[GR_ROW_train_weights] || k == &gr_recipe_keys[GR_ROW_train_sharding];
            const int more = full || k == &gr_recipe_keys[GR_ROW_data_attention] ? 2 : 1;
            snprintf(override, sizeof override, "%s%s%s=%s", k->section, *k->section ? "." : "", k->name, c->name);
            snprintf(line, sizeof line, "%s%s: %s\n", *k->section ? "  " : "", k->name, c->name);
            const char *with = full ? "adapter.method=full" : "train.objective=pretrain";
            if (gr_recipe_load(&r, NULL, (const char *const[]){override, with}, more, &err) != GRAFT_OK) fail_msg("%s", err.msg);
            assert_int_equal(*(const int *)((const char *)r + k->offset), c->value);
            assert_int_equal(gr_recipe_print(r, &text, &err), GRAFT_OK);
            assert_non_null(strstr(text.data, line));
            assert_non_null(strstr(k->constraint, c->name));
            gr_str_release(&text);
            gr_recipe_free(r);
        }
    }
    assert_int_equal(n_choices, 48);
    assert_string_equal(gr_recipe_keys[GR_ROW_model_quantize].constraint, "none|q8_0|q4_0|q4_k|nf4");
    assert_string_equal(gr_key_choice(&gr_recipe_keys[GR_ROW_train_gradient_checkpointing], GR_RECOMPUTE_SELECTIVE), "selective");
    assert_string_equal(gr_key_choice(&gr_recipe_keys[GR_ROW_data_truncation], GR_TRUNCATE_DROP), "drop");
    assert_string_equal(gr_key_choice(&gr_recipe_keys[GR_ROW_data_loss_on], GR_LOSS_LAST), "last");
}

static void values(void **state) {
    (void)state;
    gr_recipe *r = good(
        "# a comment\n"
        "model: {base: m.gguf, dtype: bf16}\n"
        "adapter: {rank: 4, alpha: 1.5e1, target_modules: [q_proj, v_proj], rank_pattern: {\"layers.0.*\": "
        "2}}\n"
        "data:\n"
        "  train:\n"
        "    - a.jsonl\n"
        "    - {path: b.json, format: alpaca, columns: {prompt: q, completion: a}, ignore: [label, id], weight: 0.5, limit: 10}\n"
        "  eval: 0.02\n"
        "  system: \"\"\n"
        "  loss_on: last\n"
        "train: {max_steps: 7, memory_limit: 1.5GiB, micro_batch_tokens: 512, on_nonfinite: skip}\n"
        "eval: {metrics: [loss, exact_match]}\n"
        "log: {plot: no}\n");
    assert_string_equal(r->model_base, "m.gguf");
    assert_int_equal(r->model_dtype, GR_DT_BF16);
    assert_true(r->adapter_alpha == 15);
    assert_int_equal(r->adapter_target_modules.n, 2);
    assert_string_equal(r->adapter_rank_pattern.items[0].pattern, "layers.0.*");
    assert_int_equal(r->data_train.n, 2);
    assert_string_equal(r->data_train.items[0].format, "auto");
    assert_true(r->data_train.items[0].weight == 1);
    assert_true(r->data_train.items[1].weight == 0.5);
    assert_int_equal(r->data_train.items[1].limit, 10);
    assert_string_equal(r->data_train.items[1].columns[1].name, "completion");
    assert_string_equal(r->data_train.items[1].columns[1].column, "a");
    assert_int_equal(r->data_train.items[1].n_ignore, 2);
    assert_string_equal(r->data_train.items[1].ignore[1], "id");
    assert_true(r->data_eval.share == 0.02);
    assert_string_equal(r->data_system, "");
    assert_int_equal(r->data_loss_on, GR_LOSS_LAST);
    assert_int_equal(r->train_max_steps, 7);
    assert_int_equal(r->train_memory_limit, 1610612736);
    assert_false(r->log_plot);
    gr_recipe_free(r);
}

static void anchors(void **state) {
    (void)state;
    gr_recipe *r = good("data:\n  train: &d [{path: a.jsonl}]\n  eval: *d\n");
    assert_int_equal(r->data_eval.n, 1);
    assert_string_equal(r->data_eval.items[0].path, "a.jsonl");
    gr_recipe_free(r);
}

static void extending(void **state) {
    gr_recipe *r = NULL;
    graft_error err = {0};
    (void)state;
    put("base.yaml", "model: {base: b}\nadapter: {rank: 4, target_modules: [a, b]}\ntrain: {seed: 1}\n", -1);
    put("mid.yaml", "extends: base.yaml\nadapter: {alpha: 3}\ndata: {train: x.jsonl}\n", -1);
    put("x.jsonl", "{}\n", -1);
    r = good("extends: mid.yaml\nadapter: {target_modules: [c]}\ntrain: {learning_rate: 1}\n");
    assert_null(r->_extends);
    assert_string_equal(r->model_base, "b");
    assert_int_equal(r->adapter_rank, 4);
    assert_true(r->adapter_alpha == 3);
    assert_int_equal(r->adapter_target_modules.n, 1); /* lists replace */
    assert_int_equal(r->train_seed, 1);
    assert_true(gr_starts_with(r->data_train.items[0].path, folder)); /* found beside the recipe that names it */
    gr_recipe_free(r);
    put("base.yaml", "extends: mid.yaml\n", -1);
    assert_int_equal(load(&r, "extends: mid.yaml\n", &err), GRAFT_BAD_USAGE);
    assert_non_null(strstr(err.msg, "a circle"));
    put("base.yaml", "adapter: {rank: x}\n", -1);
    assert_int_equal(load(&r, "extends: mid.yaml\n", &err), GRAFT_BAD_USAGE);
    assert_non_null(strstr(err.msg, "/base.yaml:1:17: adapter.rank"));
}

/* Keys of a LoRA beside another method: refused where both were written, and on top of that; silent where they are inherited. */
static void keys_of_lora(void **state) {
    static const struct {
        const char *base, *top, *overrides[2], *message; /* NULL: good */
    } cases[] = {
        {"adapter: {rank: 4, alpha: 3, dropout: 0.5, target_modules: [a], rank_pattern: {a: 2}}\n",
         "extends: base.yaml\nadapter: {method: full}\n",
         {0},
         NULL},
        {"{}\n", "adapter: {rank: 4, dropout: 0.5}\n", {"adapter.method=embeddings"}, NULL},
        {"{}\n", "adapter: {rank: 4}\n", {"adapter={method: full}"}, NULL},
        {"{}\n", "adapter: {method: full, dropout: 0, use_rslora: false, rank_pattern: {}}\n", {0}, NULL},
        {"adapter: {rank: 4, method: full}\n", "extends: base.yaml\n", {0}, "/base.yaml:1:17: adapter.rank: is of method lora"},
        {"adapter: {method: full}\n", "extends: base.yaml\nadapter: {rank: 4}\n", {0}, "/r.yaml:2:17: adapter.rank: is of"},
        {"adapter: {rank_pattern: {a: 2}}\n",
         "extends: base.yaml\nadapter: {method: full, rank_pattern: {b: 2}}\n",
         {0},
         "adapter.rank_pattern: is of"},
        {"{}\n", "adapter: {method: full}\n", {"adapter.rank=4"}, "adapter.rank=4: adapter.rank: is of method lora"},
        {"{}\n", "{}\n", {"adapter.rank=4", "adapter.method=full"}, "adapter.rank=4: adapter.rank: is of method lora"},
        {"{}\n", "{}\n", {"adapter.method=full", "adapter.rank=4"}, "adapter.rank=4: adapter.rank: is of method lora"},
    };
    graft_error err = {0};
    gr_str text = {0};
    (void)state;
    for (int i = 0; i < GR_LEN(cases); i++) {
        gr_recipe *r = NULL;
        int n = cases[i].overrides[1] ? 2 : cases[i].overrides[0] ? 1 : 0;
        put("base.yaml", cases[i].base, -1);
        graft_status st = gr_recipe_load(&r, put("r.yaml", cases[i].top, -1), cases[i].overrides, n, &err);
        if (!cases[i].message && st != GRAFT_OK) fail_msg("case %d: %s", i, err.msg);
        if (cases[i].message && st != GRAFT_BAD_USAGE) fail_msg("case %d: not refused", i);
        if (cases[i].message && !strstr(err.msg, cases[i].message)) fail_msg("case %d: %s", i, err.msg);
        if (i == 0) assert_int_equal(gr_recipe_print(r, &text, &err), GRAFT_OK);
        gr_recipe_free(r);
    }
    gr_recipe *r = good(text.data); /* as the run of the first case keeps it: every key */
    assert_int_equal(r->adapter_rank, 4);
    gr_recipe_free(r);
    static const char *const more[] = {"adapter.rank=4"};
    assert_int_equal(gr_recipe_load(&r, put("r.yaml", text.data, -1), more, 1, &err), GRAFT_BAD_USAGE);
    assert_non_null(strstr(err.msg, "adapter.rank=4: adapter.rank: is of method lora"));
    gr_str_release(&text);
}

static void overriding(void **state) {
    static const char *const overrides[] = {"data.train=a.jsonl", "adapter.target_modules=[q_proj,v_proj]",
                                            "train.seed=7",       "data.system=You are: a",
                                            "output_dir=o",       "adapter.rank_pattern={x: 2}"};
    static const struct {
        const char *text, *message;
    } wrong[] = {
        {"train.seed", "expected section.key=value"},
        {"=3", "expected section.key=value"},
        {"train.sede=3", "train.sede=3: unknown key \"sede\" in section train; did you mean train.seed?"},
        {"seed=3", "it is written train.seed"},
        {"train.seed=x", "train.seed=x: train.seed: expected a whole number, found \"x\""},
        {"train.seed=[", "not valid YAML"},
        {"extends=a.yaml", "extends belongs into a recipe file"},
        {"device=tpu", "device: expected auto, cpu, cuda or cuda:N, found \"tpu\""},
        {"train=3", "section train: expected keys below it (objective, num_train_epochs, max_steps, batch_size, ...), found"},
    };
    gr_recipe *r = NULL;
    graft_error err = {0};
    (void)state;
    const char *path = put("r.yaml", "train: {seed: 1, batch_size: 2}\nadapter: {rank_pattern: {y: 3}}\n", -1);
    if (gr_recipe_load(&r, path, overrides, GR_LEN(overrides), &err) != GRAFT_OK) fail_msg("%s", err.msg);
    assert_int_equal(r->train_seed, 7);
    assert_int_equal(r->train_batch_size, 2);
    assert_string_equal(r->data_train.items[0].path, "a.jsonl");
    assert_int_equal(r->adapter_target_modules.n, 2);
    assert_string_equal(r->data_system, "You are: a");
    assert_int_equal(r->adapter_rank_pattern.n, 2);
    gr_recipe_free(r);
    for (int i = 0; i < GR_LEN(wrong); i++) {
        r = NULL;
        assert_int_equal(gr_recipe_load(&r, NULL, &wrong[i].text, 1, &err), GRAFT_BAD_USAGE);
        if (!strstr(err.msg, wrong[i].message)) fail_msg("expected \"%s\" in \"%s\"", wrong[i].message, err.msg);
    }
}

static void printing_round_trips(void **state) {
    gr_str once = {0}, twice = {0};
    graft_error err = {0};
    (void)state;
    gr_recipe *r = good("model: {base: 'null', dtype: fp16}\n"
                        "adapter: {alpha: 0.1, target_modules: ['1', 'true', '- x', \"q: 'a'\"], "
                        "alpha_pattern: {'a\"b\\c': 3.25}}\n"
                        "data:\n"
                        "  train: [{path: 'a b.jsonl', columns: {prompt: '#q', completion: "
                        "\"\\u2028\\u00e9\\x07\"}, weight: 0.3}]\n"
                        "  eval: [e.jsonl]\n"
                        "  system: \"\\tline\\n  two \\U0001F600 \\u0085 end \"\n"
                        "train: {learning_rate: 1.2345678901234567e-5, memory_limit: 3MB, max_steps: 3}\n"
                        "output_dir: 'auto'\n");
    assert_int_equal(gr_recipe_print(r, &once, &err), GRAFT_OK);
    gr_recipe *again = good(once.data);
    assert_int_equal(gr_recipe_print(again, &twice, &err), GRAFT_OK);
    assert_string_equal(once.data, twice.data);
    assert_string_equal(r->data_system, again->data_system);
    assert_string_equal(again->model_base, "null");
    assert_true(r->train_learning_rate == again->train_learning_rate);
    assert_string_equal(r->data_train.items[0].columns[1].column, again->data_train.items[0].columns[1].column);
    gr_recipe_free(r);
    gr_recipe_free(again);
    gr_str_release(&once);
    gr_str_release(&twice);
}

static void requirements(void **state) {
    graft_error err = {0};
    (void)state;
    gr_recipe *r = good("");
    assert_int_equal(gr_recipe_require(r, false, &err), GRAFT_BAD_USAGE);
    assert_non_null(strstr(err.msg, "model.base, data.train, output_dir are missing"));
    gr_recipe_free(r);
    r = good("model: {base: x}\n");
    assert_int_equal(gr_recipe_require(r, true, &err), GRAFT_OK);
    assert_int_equal(gr_recipe_require(r, false, &err), GRAFT_BAD_USAGE);
    gr_recipe_free(r);
}

static void documentation(void **state) {
    graft_error err = {0};
    gr_str help = {0};
    char *json = NULL;
    (void)state;
    gr_recipe_help(&help);
    assert_non_null(strstr(help.data, "lr_scheduler: cosine"));
    gr_str_release(&help);
    assert_int_equal(gr_recipe_json_schema(&json, &err), GRAFT_OK);
    json_t *root = json_loads(json, 0, NULL);
    json_t *rank = json_object_get(
        json_object_get(json_object_get(json_object_get(json_object_get(root, "properties"), "adapter"), "properties"), "rank"),
        "maximum");
    assert_int_equal(json_integer_value(rank), 4096);
    json_decref(root);
    free(json);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_cases),     cmocka_unit_test(all_problems),
        cmocka_unit_test(missing_paths), cmocka_unit_test(missing_and_huge_files),
        cmocka_unit_test(defaults),      cmocka_unit_test(values),
        cmocka_unit_test(choices),       cmocka_unit_test(anchors),
        cmocka_unit_test(extending),     cmocka_unit_test(keys_of_lora),
        cmocka_unit_test(overriding),    cmocka_unit_test(printing_round_trips),
        cmocka_unit_test(requirements),  cmocka_unit_test(documentation),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
