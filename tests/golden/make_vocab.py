#!/usr/bin/env python3
"""Small Chinese vocabularies of other programs, and what their pieces make of the golden tokenizers.

    make_vocab.py --bin BUILD --out tests/golden/vocab

bpe.json: byte-level BPE of HF tokenizers; sp.model: SentencePiece BPE; unigram.model: SentencePiece unigram, whose pieces no merges
make. cases.json: each golden tokenizer extended by each of them with `graft vocab extend` (on the weights of
golden/tiny), texts and their ids: those of HF tokenizers for the tokenizer.json written, of SentencePiece for the
tokenizer.model.
"""
import io
import json
import os
import shutil
import tempfile

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import reference as R
import texts

HERE = os.path.dirname(os.path.abspath(__file__))
BASES = ["gpt2", "smollm2", "llama3", "qwen2", "sp-bpe", "sp-gemma"]
VOCABS = ["bpe.json", "sp.model", "unigram.model"]
LINES = texts.SENTENCES["zh"]
CASES = LINES + texts.SENTENCES["en"][:6] + [
    "没有人问为什么。The mill turned 12 times.", " 空格 在前", "水车\n\n水车  水车", "你好<|im_end|>世界</s>", "۱۲ é naïve 🙂"
]


def make_bpe(path):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=600, special_tokens=["<pad>", "</s>"],
                                                     initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.save(path)


def make_sentencepiece(path, kind, size):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_writer=model, vocab_size=size, model_type=kind,
                                             byte_fallback=True, normalization_rule_name="identity", minloglevel=2,
                                             hard_vocab_limit=False)
    with open(path, "wb") as f:
        f.write(model.getvalue())


def extend(args, base, vocab, folder):
    """-> the report, the extended folder"""
    model, out = os.path.join(folder, "model"), os.path.join(folder, "extended")
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(os.path.join(HERE, "tokenizers", base), model)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(os.path.join(HERE, "tiny", name), model)
    report = R.run([
        R.program(args.bin, "graft"), "vocab", "extend", "--model", model, "--vocab", vocab, "--out", out,
        "--overwrite", "--json"
    ])
    return json.loads(report), out


def main():
    p = R.parser(__doc__, model=False)
    p.add_argument("--out", required=True)
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    make_bpe(os.path.join(args.out, "bpe.json"))
    make_sentencepiece(os.path.join(args.out, "sp.model"), "bpe", 600)
    make_sentencepiece(os.path.join(args.out, "unigram.model"), "unigram", 500)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for base in BASES:
            for vocab in VOCABS:
                report, out = extend(args, base, os.path.join(args.out, vocab), folder)
                hf = Tokenizer.from_file(os.path.join(out, "tokenizer.json"))
                row = {"base": base, "vocab": vocab, "new": report["new"],
                       "unreachable": report["fates"]["not reachable by merges"],
                       "ids": [hf.encode(s, add_special_tokens=False).ids for s in CASES]}
                if os.path.exists(os.path.join(out, "tokenizer.model")):
                    sp = sentencepiece.SentencePieceProcessor(model_file=os.path.join(out, "tokenizer.model"))
                    row["sentencepiece"] = [sp.encode(s) for s in LINES]
                print(base, vocab, report["new"], report["fates"])
                rows.append(row)
    with open(os.path.join(args.out, "cases.json"), "w", encoding="utf-8") as f:
        json.dump({"texts": CASES, "rows": rows}, f, ensure_ascii=False)


if __name__ == "__main__":
    main()
