#!/usr/bin/env python3
"""What graft writes of small random models of each architecture, opened by transformers and llama.cpp.

    compare_archs.py [--variants qwen3 gemma3 ...]

Each is merged with an adapter whose B is not zero: the HF folder in transformers gives PEFT's logits, also beyond
the sliding window; so does the GGUF in llama.cpp where its graph has the window, elsewhere for as many tokens as
the window has (graft warns of that). Needs llama-cpp-python.
"""
import argparse
import os
import tempfile

import numpy as np
import torch

import compare_exports
import compare_grads
import make_tiny
import reference as R

VARIANTS = ["qwen3", "mistral", "gemma2", "gemma3", "phi3", "qwen2-window"]
SLIDES = ["gemma2", "gemma3"]  # in llama.cpp's graph; its GELU is a table of fp16


def llama_logits(path, sequences):
    llama = compare_exports.open_llama(path, logits_all=True)
    out = []
    for s in sequences:
        llama.reset()
        llama.eval(s["tokens"])
        out.append(torch.from_numpy(np.array(llama.scores[:len(s["tokens"])])))
    llama.close()
    return torch.cat(out)


def difference(got, want):
    return ((got - want).abs().max() / (want.max() - want.min())).item()


def compare(checks, args, variant, folder):
    # not by the variant's name: llama.cpp wants other tokens of a model with "phi3" in its name
    base = os.path.join(folder, f"model-{VARIANTS.index(variant)}")
    model, adapter, hf, gguf = (base + n for n in ("", "-adapter", "-hf", ".gguf"))
    make_tiny.save_model(model, variant, old_config=False, divisor=True)
    tok = R.load_tokenizer(model)
    R.make_adapter(R.load_model(model), adapter, rank=4, alpha=8, b_std=0.05)
    peft = R.load_adapter(R.load_model(model), adapter, trainable=False)
    batch = compare_grads.batch_of(tok, None, 120)
    want = compare_exports.flat_logits(peft, batch)
    for out in (hf, gguf):
        R.run([
            R.program(args.bin, "graft"), "merge", "--model", model, "--adapter", adapter, "--out", out,
            "--dtype", "fp32"
        ])
    again = base + "-again"  # all that config.json says comes from the GGUF
    R.run([R.program(args.bin, "graft"), "merge", "--model", gguf, "--out", again, "--dtype", "fp32"])
    for path, what in ((hf, "the merged folder"), (again, "the folder made of its GGUF")):
        checks.check(f"{variant}: transformers loads {what}: logits, of their range",
                     difference(compare_exports.flat_logits(R.load_model(path), batch), want), 1e-5)
    window = getattr(peft.config, "sliding_window", None)
    if window and variant not in SLIDES:
        batch = [{k: v[:window] for k, v in s.items()} for s in batch]
        want = compare_exports.flat_logits(peft, batch)
    checks.check(f"{variant}: llama.cpp loads the GGUF, {max(len(s['tokens']) for s in batch)} tokens: logits, of their range",
                 difference(llama_logits(gguf, batch), want), 1e-3 if variant in SLIDES else 1e-4)


def main():
    p = R.parser(__doc__, model=False)
    p.add_argument("--variants", nargs="*", default=VARIANTS)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    checks = R.Checks()
    with tempfile.TemporaryDirectory() as folder:
        for variant in args.variants:
            compare(checks, argparse.Namespace(template="auto", **vars(args)), variant, folder)
    checks.finish()


if __name__ == "__main__":
    main()
