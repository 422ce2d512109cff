#!/usr/bin/env python3
"""LoRA training speed and memory: graft against PEFT + PyTorch, same model, batches and adapters, in one run, alternating.

    compare_peft.py --model SmolLM2.gguf --bin build/gcc [--data TEXTS.jsonl] [--steps 8] [--rounds 2] [--modes fp32 bf16]

Batches are 2 packs of 512 tokens a step, every token trained, rank 8 on all linears (peers.md). tokens/s is the median over the steps after
the first two; peak RSS is the process's. Prints a table and the ratios; decides nothing.
"""
import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))

PACK, PACKS = 512, 2


def peft_run(args):
    """Runs in a child process: its peak memory is PEFT's alone."""
    import torch
    from peft import LoraConfig, get_peft_model

    import reference as R
    torch.set_num_threads(args.threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.peft]
    model = R.load_model(args.model, dtype)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=2e-4)
    tok = R.load_tokenizer(args.model)
    seconds, losses = [], []
    texts = [json.loads(line)["text"] for line in open(args.data, encoding="utf-8")]
    for step in range(args.steps):
        ids = torch.tensor([tok(texts[(step * PACKS + i) % len(texts)])["input_ids"][:PACK] for i in range(PACKS)])
        started = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tok_s": PACK * PACKS / statistics.median(seconds[2:]), "peak": peak, "loss": losses}))


def child(command):
    """-> standard output and peak RSS of a command."""
    with tempfile.TemporaryFile("w+") as out:
        p = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(p.pid, 0)
        out.seek(0)
        if status:
            sys.exit("failed: " + " ".join(command))
        return out.read(), usage.ru_maxrss * 1024


def graft_run(args, folder):
    run = os.path.join(folder, "run")
    _, peak = child([os.path.join(args.bin, "graft"), "train", args.recipe, "--overwrite", f"output_dir={run}"])
    rows = [json.loads(line) for line in open(os.path.join(run, "metrics.jsonl"), encoding="utf-8")]
    rows = [r for r in rows if "loss" in r]
    return {"tok_s": statistics.median(r["tokens_per_second"] for r in rows[2:]), "peak": peak, "loss": [r["loss"] for r in rows]}


def write_inputs(args, folder):
    """Texts that are cut to exactly PACK tokens by both sides, and graft's recipe."""
    records = [json.loads(line) for line in open(args.data, encoding="utf-8")]
    words = " ".join(" ".join(str(v) for v in r.values()) for r in records)
    size = 4 * PACK  # characters: more than PACK tokens
    texts = [words[i * size:(i + 1) * size] for i in range(args.steps * PACKS)]
    args.data = os.path.join(folder, "texts.jsonl")
    with open(args.data, "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"text": t}) + "\n" for t in texts)
    args.recipe = os.path.join(folder, "recipe.yaml")
    with open(args.recipe, "w", encoding="utf-8") as f:
        json.dump({"model": {"base": os.path.abspath(args.model), "dtype": "fp32"}, "adapter": {"rank": 8, "alpha": 16},
                   "data": {"train": args.data, "template": "none", "loss_on": "all", "max_length": PACK, "truncation": "right",
                            "shuffle": False, "cache": "none"},
                   "train": {"max_steps": args.steps, "batch_size": PACKS, "lr_scheduler": "constant"},
                   "threads": args.threads, "log": {"every": 1}, "save": {"every": 0}}, f)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=os.environ.get("GRAFT_MODEL"), required="GRAFT_MODEL" not in os.environ)
    p.add_argument("--bin", default=os.environ.get("GRAFT_BIN", "build/gcc"))
    p.add_argument("--data", required=True, help="a jsonl; its values are joined and cut into packs")
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--modes", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    p.add_argument("--peft", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.peft:
        return peft_run(args)
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(args, folder)
        results = {}
        for _ in range(args.rounds):
            results.setdefault("graft fp32", []).append(graft_run(args, folder))
            for mode in args.modes:
                command = [sys.executable, os.path.abspath(__file__), "--peft", mode, "--model", args.model, "--data", args.data,
                           "--steps", str(args.steps), "--threads", str(args.threads)]
                results.setdefault("PEFT " + mode, []).append(json.loads(child(command)[0].splitlines()[-1]))
    ours = results["graft fp32"]
    speed = statistics.median(r["tok_s"] for r in ours)
    peak = max(r["peak"] for r in ours)
    print(f"{'':12} {'tokens/s':>9} {'peak RSS':>10} {'graft is':>9} {'memory':>7} {'last loss':>10}")
    for name, runs in results.items():
        t, m = statistics.median(r["tok_s"] for r in runs), max(r["peak"] for r in runs)
        print(f"{name:12} {t:9.0f} {m / 2**30:8.2f} G {speed / t:8.2f}x {peak / m:6.2f}x {runs[-1]['loss'][-1]:10.4f}")


main()
