#!/usr/bin/env python3
"""Every file that graft writes opens elsewhere: PEFT, transformers, llama.cpp, h5py and TensorBoard's reader.

    compare_exports.py --model SmolLM2.gguf [--run RUN_FOLDER] [--keep FOLDER]

Without --run a run of a few steps is trained first, from an adapter with B non-zero. Needs llama-cpp-
python, h5py, tensorboard.
"""
import argparse
import glob
import json
import os
import tempfile

import numpy as np
import torch

import compare_grads
import compare_text
import compare_train
import make_tiny
import reference as R
import texts

PROMPTS = compare_text.PROMPTS[:8]
F32 = 0  # ggml's number of the type, for the KV cache


def train_run(args, folder):
    """A run of four steps with checkpoints, evaluation and logs."""
    adapter, data, recipe, run = (os.path.join(folder, n)
                                  for n in ("start", "train.jsonl", "recipe.yaml", "run"))
    R.make_adapter(R.load_model(args.model), adapter)
    R.write_jsonl(data, [{"prompt": q, "completion": a} for q, a in make_tiny.QUESTIONS])
    options = argparse.Namespace(dtype="fp32", method="lora", rank=8, alpha=16, max_length=512, batch_size=2,
                                 lr=1e-3, threads=args.threads, template=args.template)
    compare_train.write_recipe(recipe, args.model, data, run, options, adapter, steps=4, evaluation=data)
    R.run([R.program(args.bin, "graft"), "train", recipe, "save.every=2"])
    return run


def flat_logits(model, batch):
    with torch.no_grad():
        return torch.cat([R.sequence_loss(model, s, 1)[1] for s in batch])


def check_adapter(checks, args, adapter, folder, batch):
    """The run's adapter and its PEFT export, read by PEFT, against graft's logits. -> PEFT's model"""
    graft = R.dump(args.bin, args.model, batch, folder, adapter)["logits"]
    exported = os.path.join(folder, "peft")
    R.run(
        [R.program(args.bin, "graft"), "export", "--adapter", adapter, "--format", "peft", "--out", exported])
    for name, path in (("the run's adapter", adapter), ("the PEFT export", exported)):
        model = R.load_adapter(R.load_model(args.model), path, trainable=False)
        logits = flat_logits(model, batch)
        checks.check(f"PEFT loads {name}: logits, of their range",
                     ((logits - graft).abs().max() / (logits.max() - logits.min())).item(), 1e-5)
    return model, logits


def check_merged_folder(checks, args, adapter, folder, batch, logits, tok):
    out = os.path.join(folder, "merged-hf")
    R.run([
        R.program(args.bin, "graft"), "merge", "--model", args.model, "--adapter", adapter, "--out", out,
        "--format", "hf", "--dtype", "fp32"
    ])
    merged = flat_logits(R.load_model(out), batch)
    checks.check("transformers loads the merged folder: logits, of their range",
                 ((merged - logits).abs().max() / (logits.max() - logits.min())).item(), 1e-5)
    other, lines = R.load_tokenizer(out), texts.nasty_lines(2000)
    differ = sum(
        other.encode(s, add_special_tokens=False) != tok.encode(s, add_special_tokens=False) for s in lines)
    checks.require("its tokenizer gives the same ids", differ == 0, f"{differ} of {len(lines)} lines differ")
    message = [{"role": "user", "content": "Hi"}]
    checks.require(
        "its chat template renders the same",
        other.apply_chat_template(message, tokenize=False) == tok.apply_chat_template(
            message, tokenize=False))
    checks.require("its end token is the same", other.eos_token_id == tok.eos_token_id,
                   f"{other.eos_token_id}")


def open_llama(path, **options):
    from llama_cpp import Llama
    return Llama(path, n_ctx=1024, n_threads=2, type_k=F32, type_v=F32, verbose=False, **options)


def llama_greedy(llama, tok, prompts, max_tokens, stop):
    """llama.cpp's greedy text; the ids of the prompts are its own tokenizer's."""
    completions = []
    for prompt in prompts:
        text = tok.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                       add_generation_prompt=True)
        ids, out = llama.tokenize(text.encode(), add_bos=False, special=True), []
        llama.reset()
        for token in llama.generate(ids, temp=0.0, repeat_penalty=1.0):
            if token in stop or len(out) == max_tokens:
                break
            out.append(token)
        completions.append(tok.decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return completions


def llama_nll(llama, ids):
    """Sum of nll of every token after the first."""
    llama.reset()
    llama.eval(ids)
    logits = torch.from_numpy(np.array(llama.scores[:len(ids)])).double()
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum").item()


def graft_nll(args, model, path, folder):
    """-> number of targets, their nll, over the file's samples"""
    out = os.path.join(folder, "nll.jsonl")
    R.run([
        R.program(args.bin, "graft"), "eval", "--model", model, "--data", path, "--template", "none",
        "--loss-on", "all", "--dtype", "fp32", "--threads", args.threads, "--out", out, "--overwrite"
    ])
    with open(out, encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    return sum(r["tokens"] for r in rows), sum(r["nll"] for r in rows)


def check_gguf(checks, args, adapter, folder, tok, peft):
    """Merged GGUF in four types, the GGUF LoRA on a converted base."""
    graft = R.program(args.bin, "graft")
    stop = R.stop_ids(peft, tok)
    references = [R.greedy(peft, compare_text.prompt_ids(tok, p), args.max_tokens, stop) for p in PROMPTS]
    own = compare_text.generate(args, args.model, PROMPTS, folder, "--adapter", adapter)
    compare_text.compare(checks, "graft generate against PEFT", tok, PROMPTS, references, own, args.tie)
    text, path = "\n".join(texts.SENTENCES["en"]), os.path.join(folder, "text.jsonl")
    R.write_jsonl(path, [{"text": text}])
    ids = tok.encode(text, add_special_tokens=False)
    ids = ([tok.bos_token_id] if getattr(tok, "add_bos_token", False) else []) + ids + [tok.eos_token_id]
    for dtype in ("fp32", "fp16", "bf16", "q8_0"):
        out = os.path.join(folder, f"merged-{dtype}.gguf")
        R.run([
            graft, "merge", "--model", args.model, "--adapter", adapter, "--out", out, "--format", "gguf",
            "--dtype", dtype
        ])
        llama = open_llama(out, logits_all=True)
        if dtype == "fp32":
            compare_text.compare(checks, "llama.cpp's text of the merged F32 GGUF", tok, PROMPTS, references,
                                 llama_greedy(llama, tok, PROMPTS, args.max_tokens, stop), args.tie)
            checks.require(
                "llama.cpp tokenises it alike",
                llama.tokenize(text.encode(), add_bos=False) == ids[:-1]
                or llama.tokenize(text.encode(), add_bos=True) == ids[:-1])
        tokens, nll = graft_nll(args, out, path, folder)
        checks.require(f"{dtype}: targets counted alike", tokens == len(ids) - 1,
                       f"{tokens} and {len(ids) - 1}")
        checks.check(f"{dtype}: graft's nll {nll:.3f} against llama.cpp's, relative",
                     abs(nll / llama_nll(llama, ids) - 1), 1e-4 if dtype == "fp32" else 0.02)
        llama.close()
    base, lora = os.path.join(folder, "base.gguf"), os.path.join(folder, "lora.gguf")
    R.run([graft, "merge", "--model", args.model, "--out", base, "--format", "gguf", "--dtype", "fp32"])
    R.run([graft, "export", "--adapter", adapter, "--model", args.model, "--format", "gguf", "--out", lora])
    llama = open_llama(base, lora_path=lora)
    compare_text.compare(checks, "llama.cpp's text of base + GGUF LoRA", tok, PROMPTS, references,
                         llama_greedy(llama, tok, PROMPTS, args.max_tokens, stop), args.tie)


def check_h5(checks, run):
    import h5py
    paths = sorted(glob.glob(os.path.join(run, "checkpoint-*", "state.h5")))
    checks.require("checkpoints written", bool(paths), f"{len(paths)}")
    for path in paths[-1:]:
        names, bad = [], []

        def visit(name, item):
            if isinstance(item, h5py.Dataset):
                names.append(f"{name} {item.shape} {item.dtype}")
                value = item[()]
                if getattr(value, "dtype",
                           None) is not None and value.dtype.kind == "f" and not np.isfinite(value).all():
                    bad.append(name)

        with h5py.File(path, "r") as f:
            f.visititems(visit)
            print("    attributes", dict(f.attrs), "\n    datasets", len(names), names[:6])
        checks.require("h5py reads the checkpoint",
                       bool(names) and not bad, f"{len(names)} data sets, not finite: {bad[:3]}")


def check_events(checks, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    paths = glob.glob(os.path.join(run, "events.out.tfevents.*"))
    checks.require("event file written", bool(paths))
    events = EventAccumulator(run)
    events.Reload()
    tags = events.Tags()["scalars"]
    metrics = compare_train.read_metrics(run)
    for tag, key in (("train/loss", "loss"), ("train/learning_rate", "learning_rate"),
                     ("train/grad_norm", "grad_norm"), ("eval/loss", "eval_loss")):
        want = {m["step"]: m[key] for m in metrics if key in m}
        got = {e.step: e.value for e in events.Scalars(tag)} if tag in tags else {}
        same = set(want) == set(got) and all(
            abs(got[s] - want[s]) <= 1e-5 * max(1e-3, abs(want[s])) for s in want)
        checks.require(f"TensorBoard reads {tag} as in metrics.jsonl",
                       bool(want) and same, f"{len(got)} values")


def main():
    p = R.parser(__doc__)
    p.add_argument("--run", help="a LoRA run's folder; default: trained here")
    p.add_argument("--keep", help="folder for the files written; default: a temporary one")
    p.add_argument("--max-tokens", type=int, default=32)
    p.add_argument("--tie", type=float, default=0.01)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    checks = R.Checks()
    with tempfile.TemporaryDirectory() as folder:
        folder = args.keep or folder
        os.makedirs(folder, exist_ok=True)
        run = args.run or train_run(args, folder)
        adapter = os.path.join(run, "adapter")
        tok = R.use_template(R.load_tokenizer(args.model), args.template)
        batch = compare_grads.batch_of(tok, None, 120)
        peft, logits = check_adapter(checks, args, adapter, folder, batch)
        check_merged_folder(checks, args, adapter, folder, batch, logits, tok)
        check_gguf(checks, args, adapter, folder, tok, peft)
        check_h5(checks, run)
        check_events(checks, run)
    checks.finish()


if __name__ == "__main__":
    main()
