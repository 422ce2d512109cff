#!/usr/bin/env python3
"""Train one tokenizer of each kind that graft reads and save each as an HF folder.

Without --data the tiny ones of tests/golden/tokenizers are made from the built-in corpus, each with
cases.json (texts, their ids and decodings by HF tokenizers). With --data FILE... larger ones are trained on
those files, for compare_tokenizer.py.

    make_tokenizers.py --out tests/golden/tokenizers
    make_tokenizers.py --out /tmp/tokenizers --data alpaca_zh.json gsm8k.jsonl --vocab 8000
"""
import argparse
import io
import json
import os
import random

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as spm_pb2
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import texts

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_then_bytes(digits):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT % digits), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    ])


SMOLLM2_SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>",
    "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>",
    "<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>"
]
# kind -> (pre-tokenizer, normalizer, ignore_merges, special tokens first, special tokens last,
#          other added tokens, (BOS, EOS), add BOS)
BYTE_LEVEL = {
    "gpt2": (GPT2, None, False, [], ["<|endoftext|>"], [], ("<|endoftext|>", "<|endoftext|>"), False),
    "smollm2": (pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True),
         GPT2]), None, False, SMOLLM2_SPECIALS, [], [], ("<|im_start|>", "<|im_end|>"), False),
    "llama3": (split_then_bytes("{1,3}"), None, True, [], [
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
    ], [], ("<|begin_of_text|>", "<|eot_id|>"), True),
    "qwen2": (split_then_bytes(""), normalizers.NFC(), False, [], [
        "<|endoftext|>", "<|im_start|>", "<|im_end|>"
    ], ["<tool_call>", "</tool_call>"], (None, "<|im_end|>"), False),
}
# A small NFKC-like rule set for the tiny unigram model: the full nmt_nfkc table is 240 KB. (from, to)
TINY_RULES = ([(chr(c), chr(c - 0xFEE0)) for c in range(0xFF01, 0xFF5F)] +
              [(c, " ") for c in "\t\n\r\u00a0\u3000\u2003\u2009\u202f\u2028\u2029\u0085"] +
              [(c, "") for c in "\u200b\ufeff\x01\x7f\u00ad"] + [("ﬁ", "fi"), ("½", "1\u20442"), ("²", "2"),
                                                                 ("①", "1"), ("②", "2"), ("③", "3"),
                                                                 ("\u212b", "Å"), ("A\u030a", "Å"),
                                                                 ("i\u0308", "ï"), ("…", "..."), ("ｶﾞ", "ガ"),
                                                                 ("ｶ", "カ"), ("ﾀ", "タ"), ("ﾅ", "ナ"),
                                                                 ("™", "TM")])


def read_corpus(paths):
    """The strings of JSON / JSONL / text files, all fields of every record."""
    for path in paths:
        with open(path, encoding="utf-8", errors="replace", newline="\n") as f:
            if path.endswith(".json"):
                records = json.load(f)
            elif path.endswith(".jsonl"):
                records = (json.loads(line) for line in f if line.strip())
            else:
                records = (line.rstrip("\n") for line in f)
            yield from (s for record in records for s in strings_of(record))


def strings_of(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for v in value.values() if isinstance(value, dict) else value:
            yield from strings_of(v)


def train_byte_level(kind, corpus, vocab):
    pre, normalizer, ignore_merges, first, last, others, names, add_bos = BYTE_LEVEL[kind]
    tok = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tok.pre_tokenizer, tok.decoder = pre, decoders.ByteLevel()
    if normalizer:
        tok.normalizer = normalizer
    tok.train_from_iterator(
        corpus,
        trainers.BpeTrainer(vocab_size=vocab - len(last) - len(others), special_tokens=first,
                            show_progress=False, initial_alphabet=sorted(
                                pre_tokenizers.ByteLevel.alphabet())))
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in last])
    tok.add_tokens([AddedToken(s, normalized=False, special=False) for s in others])
    if add_bos:
        tok.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{names[0]} $A", pair=f"{names[0]} $A {names[0]}:1 $B:1",
                                          special_tokens=[(names[0], tok.token_to_id(names[0]))])
        ])
    else:
        tok.post_processor = processors.ByteLevel(trim_offsets=False)
    return tok, {"bos_token": names[0], "eos_token": names[1], "add_bos_token": add_bos}


def train_sentencepiece(corpus, vocab, model_type, **options):
    model = io.BytesIO()
    options = {"byte_fallback": True, "character_coverage": 0.9995, "max_sentence_length": 8192, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(p for s in corpus for p in s.splitlines()), model_writer=model, vocab_size=vocab,
        model_type=model_type, num_threads=2, minloglevel=2, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        shuffle_input_sentence=False, hard_vocab_limit=False, **options)
    return model.getvalue()


def merges_of(pieces):
    """The merges that a SentencePiece BPE vocabulary implies, in the order of transformers' converter."""
    rank = {p: i for i, (p, _, _) in enumerate(pieces)}
    merges = []
    for piece, score, _ in pieces:
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))
                 if piece[:i] in rank and piece[i:] in rank]
        merges += [(score, pair) for pair in sorted(pairs, key=lambda p: (rank[p[0]], rank[p[1]]))]
    return [
        pair for _, pair in sorted(merges, key=lambda m: (m[0], len(m[1][0]), len(m[1][1])), reverse=True)
    ]


def convert_sentencepiece(blob, dummy_prefix):
    """A SentencePiece model as HF tokenizer: LLaMA's form for BPE (Gemma's without dummy prefix), T5's for
    unigram."""
    proto = spm_pb2.ModelProto()
    proto.ParseFromString(blob)
    pieces = [(p.piece, p.score, p.type) for p in proto.pieces]
    if proto.trainer_spec.model_type == spm_pb2.TrainerSpec.UNIGRAM:
        tok = Tokenizer(
            models.Unigram([(p, s) for p, s, _ in pieces], proto.trainer_spec.unk_id,
                           byte_fallback=proto.trainer_spec.byte_fallback))
        steps = [normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)]
        tok.normalizer = normalizers.Sequence(
            steps + [normalizers.Strip(left=False, right=True),
                     normalizers.Replace(Regex(" {2,}"), "▁")])
        tok.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
        steps = [decoders.ByteFallback()] if proto.trainer_spec.byte_fallback else []
        tok.decoder = decoders.Sequence(steps +
                                        [decoders.Metaspace(replacement="▁", prepend_scheme="always")])
    else:
        vocab = {p: i for i, (p, _, _) in enumerate(pieces)}
        tok = Tokenizer(
            models.BPE(vocab, merges_of(pieces), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        tok.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(),
             decoders.Fuse()] + ([decoders.Strip(content=" ", left=1)] if dummy_prefix else []))
        if dummy_prefix:
            tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            tok.normalizer = normalizers.Replace(" ", "▁")
            tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tok.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in ("<unk>", "<s>", "</s>")])
    # User-defined pieces are found before normalisation, as added tokens are.
    users = [p for p, _, t in pieces if t == spm_pb2.ModelProto.SentencePiece.USER_DEFINED]
    tok.add_tokens([AddedToken(s, normalized=False, special=False) for s in users])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1",
                                                       special_tokens=[("<s>", 1)])
    return tok, {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token":
        False
    }


def make(kind, corpus, vocab, tiny, rules):
    """-> tokenizers.Tokenizer, its tokenizer_config fields, the tokenizer.model bytes or None"""
    if kind in BYTE_LEVEL:
        return *train_byte_level(kind, corpus, vocab), None
    if kind == "sp-unigram":
        options = {"normalization_rule_tsv": rules} if tiny else {"normalization_rule_name": "nmt_nfkc"}
        blob = train_sentencepiece(corpus, vocab, "unigram", **options)
    else:
        blob = train_sentencepiece(
            corpus, vocab, "bpe", normalization_rule_name="identity", remove_extra_whitespaces=False,
            split_digits=True, allow_whitespace_only_pieces=True, add_dummy_prefix=kind == "sp-bpe",
            **({"user_defined_symbols": ["<start_of_turn>", "<end_of_turn>", "\n"]}
               if kind == "sp-gemma" else {}))
    return *convert_sentencepiece(blob, kind == "sp-bpe"), blob


KINDS = list(BYTE_LEVEL) + ["sp-bpe", "sp-gemma", "sp-unigram"]


def save_folder(folder, tok, config, blob):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(json.loads(tok.to_str()), f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")
    config = {
        **config, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "model_max_length": 2048, "added_tokens_decoder": {
            str(i): {
                "content": t.content, "lstrip": t.lstrip, "normalized": t.normalized, "rstrip": t.rstrip,
                "single_word": t.single_word, "special": t.special
            }
            for i, t in sorted(tok.get_added_tokens_decoder().items())
        }
    }
    with open(os.path.join(folder, "tokenizer_config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f, ensure_ascii=False, indent=1, sort_keys=True)
        f.write("\n")
    if blob:
        with open(os.path.join(folder, "tokenizer.model"), "wb") as f:
            f.write(blob)


def write_cases(path, kind, tok, seed=7, nasty=84):
    """Texts with their ids (special tokens in them parsed, none added); decodings of ids, random ones too."""
    rng = random.Random(seed)
    lines = texts.CORPUS.splitlines()[::2] + texts.SENTENCES["code"][:4]
    every = texts.nasty_lines(4000, seed=3)
    lines += every[:1] + rng.sample(every[1:900], nasty // 2) + rng.sample(every[900:], nasty // 2)
    cases = [{"text": s, "ids": tok.encode(s, add_special_tokens=False).ids} for s in dict.fromkeys(lines)]
    damaged = [{
        "bytes": list(b), "ids": tok.encode(b.decode("utf-8", "replace"), add_special_tokens=False).ids
    } for b in texts.damaged_bytes(28)]
    sequences = [c["ids"] for c in cases[::4]
                 ] + [[rng.randrange(tok.get_vocab_size()) for _ in range(rng.randint(1, 12))]
                      for _ in range(24)]
    decode = [{
        "ids": ids, "text": tok.decode(ids, skip_special_tokens=False), "text_skip_special": tok.decode(
            ids, skip_special_tokens=True)
    } for ids in sequences]
    groups = {"cases": cases, "damaged": damaged, "decode": decode}
    with open(path, "w", encoding="utf-8") as f:  # one case a line: a diff shows which changed
        f.write('{"kind":%s' % json.dumps(kind))
        for name, rows in groups.items():
            f.write(',\n"%s":[\n' % name +
                    ",\n".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in rows) + "]")
        f.write("}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder; one HF folder a kind is written into it")
    parser.add_argument("--data", nargs="*", default=[],
                        help="files to train on (json, jsonl, text); default: the built-in corpus")
    parser.add_argument("--vocab", type=int, default=None,
                        help="vocabulary size (default 640, 8000 with --data)")
    parser.add_argument("--kind", nargs="*", choices=KINDS, default=KINDS)
    args = parser.parse_args()
    corpus = list(read_corpus(args.data)) if args.data else texts.CORPUS.splitlines(keepends=True)
    vocab = args.vocab or (8000 if args.data else 640)
    os.makedirs(args.out, exist_ok=True)
    rules = os.path.join(args.out, ".rules.tsv")
    with open(rules, "w", encoding="utf-8") as f:
        for source, target in TINY_RULES:
            f.write(" ".join("%04X" % ord(c) for c in source) + "\t" + " ".join("%04X" % ord(c)
                                                                                for c in target) + "\n")
    for kind in args.kind:
        tok, config, blob = make(kind, corpus, vocab, not args.data, rules)
        folder = os.path.join(args.out, kind)
        save_folder(folder, tok, config, blob)
        tok = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        if not args.data:
            write_cases(os.path.join(folder, "cases.json"), kind, tok)
        sizes = {f: os.path.getsize(os.path.join(folder, f)) for f in sorted(os.listdir(folder))}
        print(kind, tok.get_vocab_size(), "tokens", sizes)
    os.remove(rules)


if __name__ == "__main__":
    main()
