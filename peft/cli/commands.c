#include "peft/cli/commands.h"

#define END                                                                                                                        \
    { NULL, NULL, NULL, NULL } /* of a group of options */

/* ---- groups that several commands share ---- */

static const gr_option json_option[] = {{"json", NULL, "the result as JSON", NULL}, END};

static const gr_option machine_options[] = {
    {"dtype", "TYPE", NULL, "model.dtype"},
    {"threads", "N", NULL, "threads"},
    {"device", "NAME", NULL, "device"},
    END,
};

static const gr_option model_options[] = {
    {"model", "PATH", "HF folder, .gguf file or a run's folder; may be left out when an adapter remembers its base", NULL},
    {"adapter", "PATH[:SCALE]", "a run, a checkpoint of one, a PEFT or mlx-lm folder or a GGUF LoRA, on the model; may be repeated",
     NULL},
    END,
};

static const gr_option text_options[] = {
    /* a model that reads and writes text */
    {"template", "NAME", NULL, "data.template"},
    {"system", "TEXT", NULL, "data.system"},
    {"template-args", "VALUES", NULL, "data.template_args"},
    {"compute", "HOW", "exact (the default), or int8 where the device can: products of weights in 8 bits", "model.compute"},
    {"dtype", "TYPE", NULL, "model.dtype"},
    {"quantize", "TYPE", NULL, "model.quantize"},
    {"threads", "N", NULL, "threads"},
    {"device", "NAME", NULL, "device"},
    END,
};

static const gr_option sampling[] = {
    {"max-tokens", "N", "new tokens at most (256; in chat 512)", NULL},
    {"temperature", "T", "0 (the default): the best token each time", NULL},
    {"top-k", "K", "sample among the K best tokens; 0: all", NULL},
    {"top-p", "P", "sample among the best tokens that sum to P", NULL},
    {"repetition-penalty", "X", "above 1: tokens already there become less likely", NULL},
    {"stop", "TEXT", "end before this text; may be repeated", NULL},
    {"ignore-eos", NULL, "go on after an end token, to max-tokens", NULL},
    {"seed", "N", "seed of the sampling", NULL},
    END,
};

static const gr_option data_options[] = {
    /* how samples become tokens */
    {"data", "FILE", "samples: .json, .jsonl or .csv (or .gz of these) in any of the known forms", "data.train"},
    {"encoding", "NAME", NULL, "data.encoding"},
    {"loss-on", "WHAT", NULL, "data.loss_on"},
    {"max-length", "N", NULL, "data.max_length"},
    {"truncation", "HOW", NULL, "data.truncation"},
    END,
};

/* ---- each command's own ---- */

static const gr_option train_options[] = {
    {"resume", NULL, "continue the run in output_dir from its last checkpoint; also with more steps, where the schedule allows it",
     NULL},
    {"overwrite", NULL, "replace an existing run; what is no run is never touched", NULL},
    {"dry-run", NULL, "say what would happen: parameters, memory, steps; needs no weights", NULL},
    {"output-dir", "PATH", NULL, "output_dir"},
    {"max-steps", "N", NULL, "train.max_steps"},
    {"seed", "N", NULL, "train.seed"},
    END,
};

static const gr_option plan_options[] = {
    {"ranks", "N", "for each of so many processes that train together, with a card each, or sharing this machine's CPU (1)", NULL},
    {"samples", "N", "plan for so many samples in place of the recipe's data", NULL},
    {"mean-tokens", "L", "tokens of such a sample (data.max_length)", NULL},
    {"device", "NAME", "in place of the recipe's; a100-40gb, a100-80gb, h100 and h200 need not be here", NULL},
    {"dtype", "TYPE", NULL, "model.dtype"},
    {"threads", "N", NULL, "threads"},
    END,
};

static const gr_option validate_options[] = {
    {"print", NULL, "the resolved recipe, with every key", NULL},
    {"no-files", NULL, "do not look whether the paths are there: for recipes whose model or data is elsewhere", NULL},
    END,
};

static const gr_option generate_options[] = {
    {"prompt", "TEXT", "one prompt; its completion alone is printed", NULL},
    {"prompts", "FILE",
     "lines {\"prompt\"} or {\"messages\"}, - for standard input; each comes back in order with its other fields, \"completion\" "
     "and \"tokens\"; a completion or answer that it had is its \"reference\"",
     NULL},
    {"out", "FILE", "where the lines of --prompts go (standard output)", NULL},
    {"batch", "N", "prompts in flight at once (as many as memory allows)", NULL},
    {"overwrite", NULL, "replace the file of --out", NULL},
    {"json", NULL, "the completion of --prompt as such a line", NULL},
    END,
};

static const gr_option eval_options[] = {
    {"metrics", "LIST", "loss, exact_match, or both with a comma", "eval.metrics"},
    {"out", "FILE", "one line a sample, with \"tokens\" (targets) and \"nll\" (their sum, nats)", NULL},
    {"overwrite", NULL, "replace the file of --out", NULL},
    {"limit", "N", "the first N samples only", NULL},
    {"max-tokens", "N", "new tokens of an answer at most (256)", NULL},
    {"batch-tokens", "N", NULL, "eval.batch_tokens"},
    {"json", NULL, "the result as JSON", NULL},
    END,
};

static const gr_option merge_options[] = {
    {"out", "PATH", "HF folder or .gguf file to write", NULL},
    {"format", "NAME", "hf or gguf (told from the name of --out)", NULL},
    {"dtype", "TYPE", "fp32, fp16, bf16, in a GGUF also q8_0, q6_k, q5_k_m, q4_k_m (the base's own; bf16 for a quantised base)",
     NULL},
    {"overwrite", NULL, "replace what is there", NULL},
    {"threads", "N", NULL, "threads"},
    END,
};

static const gr_option export_options[] = {
    {"out", "PATH", "folder or .gguf file to write", NULL},
    {"format", "NAME", "peft (a folder) or gguf, llama.cpp's LoRA (told from the name of --out)", NULL},
    {"base-out", "PATH",
     "of an adapter with trained rows of tokens: where the base with these rows goes, HF folder or .gguf file; --out is then a "
     "plain LoRA for it, as vLLM and llama.cpp serve it",
     NULL},
    {"dtype", "TYPE", "of --base-out: fp32, fp16, bf16 (the base's own; bf16 for a quantised base)", NULL},
    {"overwrite", NULL, "replace what is there", NULL},
    {"threads", "N", NULL, "threads"},
    END,
};

static const gr_option init_options[] = {
    {"config", "FILE", "the architecture: a config.json, or the folder that has one", NULL},
    {"out", "PATH", "HF folder or .gguf file to write", NULL},
    {"tokenizer", "PATH", "HF folder, .gguf file or run whose tokenizer goes along (that beside the config.json)", NULL},
    {"seed", "N", "the same seed gives the same weights (42)", NULL},
    {"dtype", "TYPE", "fp32 (the default), fp16 or bf16", NULL},
    {"format", "NAME", "hf or gguf (told from the name of --out)", NULL},
    {"overwrite", NULL, "replace what is there", NULL},
    {"threads", "N", NULL, "threads"},
    END,
};

static const gr_option tokenize_options[] = {
    {"model", "PATH", "HF folder, .gguf file, run or adapter whose tokenizer is used", NULL},
    {"plain", NULL, "lines are the text itself instead of {\"text\": ...}", NULL},
    {"decode", NULL, "the way back: lists of ids to text", NULL},
    {"threads", "N", NULL, "threads"},
    END,
};

static const gr_option preview_options[] = {
    {"n", "N", "samples to show (3)", NULL},
    {"first", "I", "the first of them, from 0", NULL},
    {"model", "PATH", "HF folder, .gguf file or run whose tokenizer and template are used", "model.base"},
    {"template", "NAME", NULL, "data.template"},
    {"system", "TEXT", NULL, "data.system"},
    {"template-args", "VALUES", NULL, "data.template_args"},
    {"threads", "N", NULL, "threads"},
    END,
};

static const gr_option make_options[] = {
    {"n", "N", "problems to make (1000)", NULL},
    {"seed", "N", "the same seed makes the same problems", NULL},
    {"language", "NAME", "en, zh or both", NULL},
    {"steps", "RANGE", "steps of a solution, such as 1-3", NULL},
    {"out", "FILE", "where the lines go (standard output)", NULL},
    {"overwrite", NULL, "replace the file of --out", NULL},
    END,
};

static const gr_option vocab_train_options[] = {
    {"text", "FILE",
     "raw text, or samples in .json, .jsonl, .csv, .tsv: all their text; .gz of these; a folder of them; more may follow", NULL},
    {"size", "N", "pieces of the vocabulary; with --model: new ones", NULL},
    {"out", "PATH", "NAME.model (SentencePiece), NAME.json (a tokenizer.json) or a folder", NULL},
    {"kind", "NAME",
     "spm: SentencePiece BPE with byte fallback; bpe: byte-level BPE (told from --model, or from the name of --out)", NULL},
    {"model", "PATH", "HF folder, .gguf file or run: learn further pieces from its tokens; its own keep their ids and priority",
     NULL},
    {"encoding", "NAME", NULL, "data.encoding"},
    {"only", "SCRIPT", "pieces of these characters alone: cjk, latin, cyrillic, greek, arabic, hebrew, thai, devanagari or hangul",
     NULL},
    {"character-coverage", "X", "share of the text's characters that get pieces of their own (0.9995); spm alone", NULL},
    {"max-piece-length", "N", "characters of a piece at most (16)", NULL},
    {"min-count", "N", "a piece must be made so often at least (2)", NULL},
    {"split-digits", NULL, "no piece joins digits with anything", NULL},
    {"normalization", "NAME", "identity (the default) or nmt_nfkc, SentencePiece's own; spm alone", NULL},
    {"special", "TOKEN", "a control token more; may be repeated; not with --model", NULL},
    {"overwrite", NULL, "replace what is there", NULL},
    {"threads", "N", NULL, "threads"},
    END,
};

static const gr_option vocab_extend_options[] = {
    {"model", "PATH", "HF folder or .gguf file of the model", NULL},
    {"vocab", "PATH",
     "tokenizer.json, SentencePiece .model, HF folder or .gguf whose pieces are added, of `graft vocab train` or another program",
     NULL},
    {"out", "PATH", "HF folder or .gguf file to write", NULL},
    {"size", "N", "new pieces at most, those that are used first (all)", NULL},
    {"init", "HOW",
     "new rows: pieces, the mean of the old tokens that a piece was spelt with (the default), or mean, of all tokens", NULL},
    {"pad-to-multiple", "N", "rows of embedding and head are a multiple of N", NULL},
    {"text", "FILE", "held-out text or samples: tokens a line before and after; may be repeated", NULL},
    {"encoding", "NAME", NULL, "data.encoding"},
    {"format", "NAME", "hf or gguf (told from the name of --out)", NULL},
    {"dtype", "TYPE", "as in graft merge (the base's own; bf16 for a quantised base)", NULL},
    {"overwrite", NULL, "replace what is there", NULL},
    {"threads", "N", NULL, "threads"},
    END,
};

static const gr_option help_options[] = {
    {"man", NULL, "the manual page", NULL},
    {"completion", "SHELL", "the completion script of a shell (bash)", NULL},
    {"json", NULL, "help recipe: the JSON Schema of recipes", NULL},
    END,
};

/* clang-format off */
const gr_command gr_commands[] = {
    {"train", "train what a recipe says",
     "RECIPE | RUN [section.key=value ...] [options]", "graft train recipes/quickstart.yaml train.learning_rate=1e-3",
     1, GR_ANY_NUMBER, gr_cmd_train, {train_options, machine_options, json_option}},
    {"validate", "check a recipe without running it",
     "RECIPE [section.key=value ...] [options]", "graft validate recipes/belle/llama-7b-lora-2m.yaml --no-files",
     1, GR_ANY_NUMBER, gr_cmd_validate, {validate_options, machine_options, json_option}},
    {"plan", "parameters, steps, memory, time and disk of a recipe, without running it",
     "RECIPE [section.key=value ...] [options]", "graft plan recipes/belle/llama-7b-lora-2m.yaml",
     1, GR_ANY_NUMBER, gr_cmd_plan, {plan_options, json_option}},
    {"generate", "complete one prompt, or many in batches", "[RUN] (--prompt TEXT | --prompts FILE) [options]",
     "graft generate --model model.gguf --adapter runs/quickstart --prompt \"What is 12 + 30?\"",
     0, 1, gr_cmd_generate, {generate_options, model_options, text_options, sampling}},
    {"chat", "talk to a model",
     "[RUN] [options]", "graft chat runs/quickstart",
     0, 1, gr_cmd_chat, {model_options, text_options, sampling}},
    {"eval", "loss and exact match on a data set",
     "[RUN] --data FILE [options]", "graft eval runs/quickstart --data test.jsonl --metrics loss,exact_match",
     0, 1, gr_cmd_eval, {eval_options, data_options, model_options, text_options}},
    {"merge", "merge adapters into a model's weights; without an adapter: convert",
     "[RUN] --out PATH [options]", "graft merge runs/quickstart --out merged.gguf --dtype q4_k_m",
     0, 1, gr_cmd_merge, {merge_options, model_options, json_option}},
    {"export", "write an adapter for other programs",
     "[RUN] --out PATH [options]", "graft export runs/quickstart --out lora.gguf",
     0, 1, gr_cmd_export, {export_options, model_options, json_option}},
    {"init", "a model of random weights from a config.json, to pre-train",
     "--config FILE --out PATH [options]", "graft init --config config.json --tokenizer model.gguf --out base",
     0, 0, gr_cmd_init, {init_options, json_option}},
    {"inspect", "say what a file or folder is and what is in it",
     "PATH [options]", "graft inspect runs/quickstart/adapter",
     1, 1, gr_cmd_inspect, {json_option}},
    {"tokenize", "lines of text to lists of ids, and back",
     "--model PATH [FILE] [options]", "echo 'Hello world' | graft tokenize --model model.gguf --plain",
     0, 1, gr_cmd_tokenize, {tokenize_options}},
    {"data preview", "show samples as the model will see them, with what is learned marked",
     "[RECIPE [section.key=value ...]] [options]", "graft data preview recipes/quickstart.yaml --n 2",
     0, GR_ANY_NUMBER, gr_cmd_data_preview, {preview_options, data_options}},
    {"data make", "make a small task: school-math word problems",
     "school-math [options]", "graft data make school-math --n 2000 --seed 1 --steps 1-2 --out train.jsonl",
     1, 1, gr_cmd_data_make, {make_options}},
    {"vocab train", "learn a vocabulary from text, or further pieces for a model's",
     "--text FILE ... --size N --out PATH [options]",
     "graft vocab train --model base --text zh.txt more.jsonl --only cjk --size 10000 --out zh/tokenizer.json",
     0, GR_ANY_NUMBER, gr_cmd_vocab_train, {vocab_train_options, json_option}},
    {"vocab extend", "a model with the pieces of another vocabulary after its own",
     "--model PATH --vocab PATH --out PATH [options]",
     "graft vocab extend --model base --vocab zh/tokenizer.json --out base-zh --text held-out.jsonl",
     0, 1, gr_cmd_vocab_extend, {vocab_extend_options, json_option}},
    {"doctor", "what graft finds on this machine",
     "[options]", "graft doctor",
     0, 0, gr_cmd_doctor, {json_option}},
    {"help", "explain a command or a topic",
     "[TOPIC | COMMAND] [options]", "graft help recipe",
     0, 2, gr_cmd_help, {help_options}},
    {"version", "the version, the commit it was built from, and the CPU level in use",
     "[options]", "graft version",
     0, 0, gr_cmd_version, {json_option}},
};
/* clang-format on */

int gr_n_commands(void) { return GR_LEN(gr_commands); }
