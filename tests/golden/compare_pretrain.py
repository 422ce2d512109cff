#!/usr/bin/env python3
"""Pre-training from random weights: `graft train` with objective pretrain on a mix against PyTorch, from the same
weights (graft init) on the same blocks (read with h5py from graft's token store, drawn here by the shares).

    compare_pretrain.py --config recipes/ct-llm/ct-llm-10m/config.json --tokenizer T --data zh.jsonl en.jsonl code.jsonl
    # and tokens per second against torch.compile in the same run
    compare_pretrain.py ... --steps 20 --speed

Documents are attended across, or --attention document. Bound: 1e-3 on each step's loss. At the default rate rounding does not
grow (4 blocks of 64 tokens: 6e-5 after 200 steps); at 1e-3 with so few tokens a step the loss itself jumps, and any two programs
part.
"""
import glob
import json
import math
import os
import sys
import tempfile
import time

import h5py
import torch

import make_training
import reference as R


def blocks_of(cache, length):
    """The whole blocks of each source: lists of (ids, where a document begins)."""
    folder, = glob.glob(os.path.join(cache, "*.tokens"))
    sources = {}
    for path in sorted(glob.glob(os.path.join(folder, "shard-*.h5"))):
        with h5py.File(path) as f:
            ids, target, offset, source = (f[n][:] for n in ("ids", "target", "offset", "source"))
        for i, s in enumerate(source):
            part = slice(offset[i], offset[i + 1])
            if offset[i + 1] - offset[i] == length:
                sources.setdefault(int(s), []).append((torch.tensor(ids[part]).long(), target[part] == 2))
    return [sources[s] for s in sorted(sources)]


def draws(counts, shares, n):
    """The first n draws of a mix in file order: the k-th of a source with share p at time (k - 1/2) / p."""
    total, given, order = sum(shares), [0] * len(counts), []
    while len(order) < n:
        times = [(g + 0.5) / (s / total) for g, s in zip(given, shares)]
        s = times.index(min(times))
        order.append((s, given[s] % counts[s]))
        given[s] += 1
    return order


def sequences(block, apart):
    ids, begins = block
    starts = [0] + [i for i in range(1, len(ids)) if apart and begins[i]] + [len(ids)]
    return [ids[a:b] for a, b in zip(starts, starts[1:])]


def step_loss(model, batch, apart):
    """Sum of nll over the number of targets, and the targets."""
    if not apart:
        ids = torch.stack([b[0] for b in batch])
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        return torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    parts = [p for b in batch for p in sequences(b, True) if len(p) > 1]
    n = sum(len(p) - 1 for p in parts)
    loss = 0
    for p in parts:
        logits = model(input_ids=p[None], use_cache=False).logits[0, :-1].float()
        loss = loss + torch.nn.functional.cross_entropy(logits, p[1:], reduction="sum") / n
    return loss


def optimizer_of(model, args):
    named = list(model.named_parameters())
    return torch.optim.AdamW([{"params": [p for n, p in named if R.decayed(n)]},
                              {"params": [p for n, p in named if not R.decayed(n)], "weight_decay": 0.0}],
                             lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=args.weight_decay)


def torch_steps(model, steps, rates, args, compiled=None):
    optimizer, losses = optimizer_of(model, args), []
    run, ends = model if compiled is None else compiled, []
    for step, batch in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.zero_grad(set_to_none=True)
        loss = step_loss(run, batch, args.attention == "document")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        ends.append(time.time())
        if (step + 1) % 20 == 0:
            print(f"PyTorch step {step + 1}/{len(steps)} loss {losses[-1]:.4f}", file=sys.stderr, flush=True)
    return losses, ends


def median_speed(run, rows=None):
    if rows is None:
        with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as f:
            rows = [m for m in map(json.loads, f) if "loss" in m]
    speeds = sorted(m["tokens_per_second"] for m in rows[len(rows) // 2:])
    return speeds[len(speeds) // 2]


def compare_speed(graft, recipe, base, run, got, steps, rates, args):
    """Tokens per second in the second half of the steps, float32 and bfloat16, one after the other."""
    from transformers import AutoModelForCausalLM
    speed = {"graft fp32": median_speed(run, got)}
    R.run([graft, "train", recipe, "model.dtype=bf16", f"output_dir={run}-bf16"])
    speed["graft bf16"] = median_speed(run + "-bf16")
    for dtype in ("fp32", "bf16"):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="sdpa").train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
            _, ends = torch_steps(model, steps, rates, args, torch.compile(model))
        times = sorted(b - a for a, b in zip(ends[len(ends) // 2:], ends[len(ends) // 2 + 1:]))
        speed["PyTorch compiled " + dtype] = args.batch_size * args.length / times[len(times) // 2]
    print("tokens/s:", ", ".join(f"{k} {v:.0f}" for k, v in speed.items()))
    for dtype in ("fp32", "bf16"):
        print(f"{dtype}: {speed['graft ' + dtype] / speed['PyTorch compiled ' + dtype]:.2f}x")


def main():
    p = R.parser(__doc__, model=False)
    p.add_argument("--config", required=True)
    p.add_argument("--tokenizer", required=True)
    p.add_argument("--data", nargs="+", required=True)
    p.add_argument("--shares", nargs="+", type=float, default=[840.48, 314.88, 99.3])
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--length", type=int, default=128)
    p.add_argument("--lr", type=float, default=1e-4)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--attention", choices=["across", "document"], default="across")
    p.add_argument("--speed", action="store_true", help="also torch.compile")
    p.add_argument("--loss-bound", type=float, default=1e-3)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    checks, graft = R.Checks(), R.program(args.bin, "graft")
    settings = {"lr_scheduler": "wsd", "warmup_steps": max(1, args.steps // 10), "wsd_decay_ratio": 0.2, "min_lr_ratio": 0.1}
    rates = [args.lr * x for x in make_training.shape_of(settings, args.steps)]
    with tempfile.TemporaryDirectory() as folder:
        base, cache, run = (os.path.join(folder, n) for n in ("base", "cache", "run"))
        R.run([graft, "init", "--config", args.config, "--tokenizer", args.tokenizer, "--out", base])
        recipe = {
            "model": {"base": base, "dtype": "fp32"}, "adapter": {"method": "full"},
            "data": {"train": [{"path": os.path.abspath(d), "share": s} for d, s in zip(args.data, args.shares)],
                     "max_length": args.length, "shuffle": False, "cache": cache, "attention": args.attention},
            "train": {"objective": "pretrain", "max_steps": args.steps, "batch_size": args.batch_size, "learning_rate": args.lr,
                      "adam_beta2": 0.95, "weight_decay": args.weight_decay, **settings},
            "save": {"every": 0}, "log": {"every": 1, "tensorboard": False, "plot": False}, "threads": args.threads,
            "output_dir": run
        }
        path = os.path.join(folder, "recipe.yaml")
        with open(path, "w", encoding="utf-8") as f:
            json.dump(recipe, f)
        R.run([graft, "train", path])
        with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as f:
            got = [m for m in map(json.loads, f) if "loss" in m]
        sources = blocks_of(cache, args.length)
        order = draws([len(s) for s in sources], args.shares, args.steps * args.batch_size)
        epoch = min(len(s) / (p / sum(args.shares)) for s, p in zip(sources, args.shares))
        checks.require("the steps are within one epoch of the mix", len(order) <= math.floor(epoch), f"{len(order)} of {epoch:.0f}")
        blocks = [sources[s][i] for s, i in order]
        steps = [blocks[i:i + args.batch_size] for i in range(0, len(blocks), args.batch_size)]
        losses, _ = torch_steps(R.load_model(base).train(), steps, rates, args)
        print("first and last losses:", [(m["loss"], w) for m, w in list(zip(got, losses))[:2] + list(zip(got, losses))[-2:]])
        checks.require("steps logged", len(got) == args.steps)
        gaps = [abs(m["loss"] - w) for m, w in zip(got, losses)]
        print("largest difference by tenths of the run:", [f"{max(gaps[i:i + max(1, len(gaps) // 10)]):.1e}"
                                                           for i in range(0, len(gaps), max(1, len(gaps) // 10))])
        checks.check("largest difference of a step's loss", max(gaps), args.loss_bound)
        if args.speed:
            compare_speed(graft, path, base, run, got, steps, rates, args)
    checks.finish()


if __name__ == "__main__":
    main()
