#!/usr/bin/env python3
"""A vocabulary extended by `graft vocab extend`: ids and logits with transformers, llama.cpp and SentencePiece.

    compare_vocab.py --model SmolLM2.gguf --vocab zh.json [sp.model ...] --data F... [--lines 5000]

The base is a GGUF, or a folder (--folder makes one of a GGUF first, so that tokenizer.json is extended and not
made anew). Each vocabulary extends it into a folder and a GGUF, both in float32. Lines: every line of every string of the data
files, and nasty ones. Wanted: the same ids from graft, transformers (the folder) and llama.cpp (the GGUF); ids as
before where a line has none of the new ones; logits of old tokens as the base's, and of all tokens the same in both programs.
"""
import json
import os
import tempfile

import numpy as np
import torch

import compare_exports
import compare_tokenizer
import make_tokenizers
import reference as R
import texts


def graft(args, *command):
    return R.run([R.program(args.bin, "graft"), *command])


def tokenize(args, model, lines):
    payload = "".join(json.dumps({"text": s}, ensure_ascii=False) + "\n" for s in lines).encode("utf-8", "surrogatepass")
    return compare_tokenizer.tokenize(args.bin, model, payload)


def differing(a, b, lines):
    bad = [(s, x, y) for s, x, y in zip(lines, a, b) if x != y]
    detail = f"{len(bad)} of {len(lines)} lines differ"
    return len(bad), detail + (f", such as {bad[0]!r}" if bad else "")


def same_unless_new(base, extended, first_new, lines):
    old = [(s, x, y) for s, x, y in zip(lines, base, extended) if max(y, default=0) < first_new]
    return sum(x != y for _, x, y in old), len(old)


def check_logits(checks, base, folder, llama, batch, first_new):
    """batch: lists of ids of the extended tokenizer; those of old ids alone go through the base, too."""
    model = R.load_model(folder)
    differ = spread = against_base = n_old = 0
    for ids in batch:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        llama.reset()
        llama.eval(ids)
        other = torch.from_numpy(np.array(llama.scores[:len(ids)]))
        spread = max(spread, (logits.max() - logits.min()).item())
        differ = max(differ, (logits - other).abs().max().item())
        if max(ids) < first_new:
            n_old += 1
            with torch.no_grad():
                before = base(torch.tensor([ids])).logits[0]
            against_base = max(against_base, (logits[:, :first_new] - before[:, :first_new]).abs().max().item())
    checks.check("logits, transformers and llama.cpp, of their range", differ / spread, 1e-4)
    checks.check(f"logits of old tokens after {n_old} old lines, of their range", against_base / spread if n_old else np.inf, 1e-5)


def check_rows(checks, base, folder, tok, extended, first_new):
    """New rows are the means of the rows that the base spells the pieces with."""
    model, worst, n = R.load_model(folder), 0, 0
    for before, after in ((base.get_input_embeddings(), model.get_input_embeddings()),
                          (base.get_output_embeddings(), model.get_output_embeddings())):
        before, after = before.weight.data, after.weight.data
        scale = before.std().item()
        for i in range(first_new, len(extended), 97):
            text = extended.decode([i], clean_up_tokenization_spaces=False)
            if "\ufffd" in text or text != text.strip():
                continue
            ids = tok.encode(text, add_special_tokens=False)
            if tok.decode(ids, clean_up_tokenization_spaces=False) != text or tok.decode(ids[:1]) in ("", " "):
                continue
            n += 1
            worst = max(worst, (before[ids].mean(0) - after[i]).abs().max().item() / scale)
    checks.check(f"{n} new rows are the means of the old ones", worst if n else np.inf, 1e-5)


def check_vocab(checks, args, base_path, vocab, lines, folder):
    hf, gguf = os.path.join(folder, "extended"), os.path.join(folder, "extended.gguf")
    common = ["vocab", "extend", "--model", base_path, "--vocab", vocab, "--dtype", "fp32", "--overwrite", "--json"]
    report = json.loads(graft(args, *common, "--out", hf, *args.options))
    graft(args, *common, "--out", gguf, *args.options)
    first_new = report["first_new"]
    print(f"{vocab}: {report['new']} new, {report['fates']}")
    tok, base_tok = R.load_tokenizer(hf), R.load_tokenizer(base_path)
    checks.require("transformers' tokenizer has as many tokens", len(tok) == first_new + report["new"], f"{len(tok)}")
    before, ids, ids_gguf = (tokenize(args, p, lines) for p in (base_path, hf, gguf))
    bad, n = same_unless_new(before, ids, first_new, lines)
    checks.require("lines without a new piece keep their ids", bad == 0 and n > 0, f"{bad} of {n} differ")
    print(f"  tokens a line {np.mean([len(x) for x in before]):.1f} -> {np.mean([len(x) for x in ids]):.1f}")
    for name, other in (("graft with the GGUF", ids_gguf),
                        ("transformers", [tok.encode(s, add_special_tokens=False) for s in lines])):
        bad, detail = differing(ids, other, lines)
        checks.require(f"ids of {name}", bad == 0, detail)
    if os.path.exists(os.path.join(hf, "tokenizer.model")):
        import sentencepiece
        sp = sentencepiece.SentencePieceProcessor(model_file=os.path.join(hf, "tokenizer.model"))
        bad, detail = differing(ids, [sp.encode(s) for s in lines], lines)
        checks.require("ids of SentencePiece", bad <= args.sp_differ, detail)
    llama = compare_exports.open_llama(gguf, logits_all=True)
    bad, detail = differing(ids, [llama.tokenize(s.encode(), add_bos=False, special=True) for s in lines], lines)
    checks.require("ids of llama.cpp", bad == 0, detail)
    base = R.load_model(base_path)
    batch = [x[:64] for x in ids[:12] if x] + [x[:64] for x in ids if x and max(x) < first_new][:12]
    check_logits(checks, base, hf, llama, batch, first_new)
    check_rows(checks, base, hf, base_tok, tok, first_new)


def main():
    p = R.parser(__doc__)
    p.add_argument("--vocab", nargs="+", required=True)
    p.add_argument("--data", nargs="+", required=True)
    p.add_argument("--lines", type=int, default=5000)
    p.add_argument("--folder", action="store_true", help="extend a folder made of the GGUF")
    p.add_argument("--sp-differ", type=int, default=0, help="lines on which SentencePiece and HF tokenizers differ in the base")
    p.add_argument("--options", nargs="*", default=[])
    args = p.parse_args()
    checks = R.Checks()
    lines = compare_tokenizer.real_lines(args.data, args.lines) + texts.SENTENCES["en"]
    with tempfile.TemporaryDirectory() as folder:
        base = args.model
        if args.folder:
            base = os.path.join(folder, "base")
            graft(args, "merge", "--model", args.model, "--out", base, "--dtype", "fp32")
        for vocab in args.vocab:
            check_vocab(checks, args, base, vocab, lines, folder)
    checks.finish()


if __name__ == "__main__":
    main()
