#!/usr/bin/env python3
"""Ids of `graft tokenize` against HF tokenizers, both ways, on real and on nasty lines: 0 differences wanted.

    make_tokenizers.py --out /tmp/tok --data DATA/*.json DATA/*.jsonl
    compare_tokenizer.py --model SmolLM2.gguf --tokenizers /tmp/tok/* [--gemma gemma.gguf] --data DATA/*

Lines: every line of every string in the data files (at least 20,000 are wanted), nasty lines with control
tokens, odd white space, emoji and unassigned code points, and damaged UTF-8, which is read as Python's
errors="replace" does. --gemma takes a GGUF with a SentencePiece BPE tokenizer; its reference is what
transformers reads from the file. A folder with tokenizer.model is also tried without its tokenizer.json;
there only the lines on which HF tokenizers and SentencePiece agree are compared.
"""
import json
import os
import random
import shutil
import tempfile

from tokenizers import Tokenizer

import make_tokenizers
import reference as R
import texts


def real_lines(paths, limit):
    lines = [line for s in make_tokenizers.read_corpus(paths) for line in s.split("\n") if line]
    lines = list(dict.fromkeys(lines))
    random.Random(5).shuffle(lines)
    return lines[:limit] if limit else lines


def tokenize(binary, model, payload, *options):
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as f:
        f.write(payload)
        f.flush()
        out = R.run([R.program(binary, "graft"), "tokenize", "--model", model, *options, f.name])
    return [json.loads(line) for line in out.decode("utf-8", "replace").split("\n") if line]


def compare(checks, name, wanted, got, shown):
    """Lists must be equal item by item; the first few differences are printed."""
    bad = [i for i, (a, b) in enumerate(zip(wanted, got)) if a != b]
    for i in bad[:5]:
        print(f"    {shown[i]!r:.200}\n      wanted {wanted[i]!r:.300}\n      got    {got[i]!r:.300}")
    checks.require(name, not bad and len(wanted) == len(got),
                   f"{len(wanted)} lines, {len(got)} answers, {len(bad)} differ")


def compare_model(checks, args, label, model, tok, lines):
    encode = lambda rows: [e.ids for e in tok.encode_batch(rows, add_special_tokens=False)]
    ids = encode(lines)
    payload = "".join(json.dumps({"text": s}, ensure_ascii=False) + "\n" for s in lines).encode()
    compare(checks, f"{label}: ids", ids, tokenize(args.bin, model, payload), lines)
    damaged = texts.damaged_bytes(args.damaged)
    payload = b"".join(b + b"\n" for b in damaged)
    compare(checks, f"{label}: ids of damaged UTF-8", encode([b.decode("utf-8", "replace") for b in damaged]),
            tokenize(args.bin, model, payload, "--plain"), damaged)
    rng = random.Random(9)
    sequences = ids[::10] + [[rng.randrange(tok.get_vocab_size()) for _ in range(rng.randint(1, 20))]
                             for _ in range(500)]
    sequences = [s for s in sequences if s]
    decoded = tokenize(args.bin, model, "".join(json.dumps(s) + "\n" for s in sequences).encode(), "--decode")
    decoded = [d["text"] if isinstance(d, dict) else d for d in decoded]
    compare(checks, f"{label}: decoding", [tok.decode(s, skip_special_tokens=False) for s in sequences],
            decoded, sequences)


def compare_sentencepiece_file(checks, args, label, folder, tok, lines):
    """The folder with tokenizer.model alone."""
    import sentencepiece
    spm = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, "tokenizer.model"))
    lines = [s for s in lines if "\0" not in s]
    hf = [e.ids for e in tok.encode_batch(lines, add_special_tokens=False)]
    agreed = [(s, ids) for s, ids in zip(lines, hf) if spm.encode(s) == ids]
    with tempfile.TemporaryDirectory() as bare:
        for name in ("tokenizer.model", "tokenizer_config.json"):
            shutil.copy(os.path.join(folder, name), bare)
        payload = "".join(json.dumps({"text": s}, ensure_ascii=False) + "\n" for s, _ in agreed).encode()
        compare(
            checks,
            f"{label}: ids by tokenizer.model "
            f"({len(lines) - len(agreed)} lines left out: HF and SentencePiece differ)",
            [ids for _, ids in agreed], tokenize(args.bin, bare, payload), [s for s, _ in agreed])


def main():
    p = R.parser(__doc__)
    p.add_argument("--tokenizers", nargs="*", default=[], help="HF folders with tokenizer.json")
    p.add_argument("--gemma", help="a GGUF with a SentencePiece BPE tokenizer")
    p.add_argument("--data", nargs="+", required=True, help="json, jsonl or text files")
    p.add_argument("--limit", type=int, default=0, help="real lines (0 = all)")
    p.add_argument("--nasty", type=int, default=6000)
    p.add_argument("--damaged", type=int, default=2000)
    args = p.parse_args()
    lines = real_lines(args.data, args.limit)
    print(len(lines), "real lines,", args.nasty, "nasty,", args.damaged, "damaged")
    lines += texts.nasty_lines(args.nasty)
    checks = R.Checks()
    if args.model:
        compare_model(checks, args, os.path.basename(args.model), args.model,
                      R.load_tokenizer(args.model).backend_tokenizer, lines)
    for folder in args.tokenizers:
        label, tok = os.path.basename(folder.rstrip("/")), Tokenizer.from_file(
            os.path.join(folder, "tokenizer.json"))
        compare_model(checks, args, label, folder, tok, lines)
        if os.path.exists(os.path.join(folder, "tokenizer.model")):
            compare_sentencepiece_file(checks, args, label, folder, tok, lines)
    if args.gemma:
        # transformers makes pieces of U+2581 of the runs of spaces in such a file: see README.md
        lines = [s for s in lines if "\u2581" not in s and " " * 32 not in s]
        print(len(lines), "lines without U+2581 and long runs of spaces")
        compare_model(checks, args, os.path.basename(args.gemma), args.gemma,
                      R.load_tokenizer(args.gemma).backend_tokenizer, lines)
    checks.finish()


if __name__ == "__main__":
    main()
