#!/usr/bin/env python3
"""Losses of optimizer steps: `graft train` against PEFT (or the bare model) with torch's AdamW, the same
adapter and batches.

    # 50 steps, each loss within 1e-4
    compare_train.py --model SmolLM2.gguf --data gsm8k_train.jsonl
    # final eval loss within 1 %
    compare_train.py --model SmolLM2.gguf --data gsm8k_train.jsonl --dtype bf16
    compare_train.py --model tests/golden/tiny --method full

Both start from one PEFT adapter with B non-zero (with B = 0 the first steps of Adam divide rounding by
rounding). Constant rate, no weight decay, clipping at 1. The reference tokenises by itself: the rendered
chat up to the assistant's header is masked, the completion and its end-of-turn token are the targets. Batch
i is samples i*B .. i*B+B-1 in file order.
"""
import json
import os
import tempfile

import torch

import make_tiny
import reference as R


def write_recipe(path, model, data, out, args, adapter=None, steps=50, evaluation=None):
    """A recipe in YAML (JSON is YAML)."""
    recipe = {
        "model": {"base": os.path.abspath(model), "dtype":
                  args.dtype}, "adapter": {"method": "full"} if args.method == "full" else {
                      "method": "lora", "rank": args.rank, "alpha": args.alpha, "dropout": 0.0,
                      "target_modules": "all-linear", "init_from": adapter
                  }, "data":
        {"train": data, "eval": evaluation, "shuffle": False, "max_length": args.max_length + 16,
         "template": args.template}, "train": {
            "max_steps": steps, "batch_size": args.batch_size, "learning_rate": args.lr, "lr_scheduler":
            "constant", "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": 42
        }, "output_dir": out, "log": {"every": 1}, "threads": args.threads
    }
    with open(path, "w", encoding="utf-8") as f:
        json.dump(recipe, f, indent=1)
        f.write("\n")


def read_metrics(run):
    with open(os.path.join(run, "metrics.jsonl"), encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def main():
    p = R.parser(__doc__)
    p.add_argument(
        "--data",
        help="jsonl of prompt/completion, question/answer or instruction/output; default: built-in samples")
    p.add_argument("--method", choices=["lora", "full"], default="lora")
    p.add_argument("--adapter", help="a PEFT folder of --rank and --alpha; default: one made by seed")
    p.add_argument("--rank", type=int, default=8)
    p.add_argument("--alpha", type=int, default=16)
    p.add_argument("--steps", type=int, default=50)
    p.add_argument("--batch-size", type=int, default=2)
    p.add_argument("--max-length", type=int, default=1024)
    p.add_argument("--lr", type=float, default=2e-4)
    p.add_argument("--eval-samples", type=int, default=40)
    p.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    p.add_argument("--loss-bound", type=float, default=1e-4, help="on each step's loss (fp32)")
    p.add_argument("--eval-bound", type=float, default=0.01, help="on the final eval loss, relative")
    p.add_argument("--reference",
                   help="JSON file to keep the reference's losses in, or to take them from if it exists")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    need = args.steps * args.batch_size
    tok = R.use_template(R.load_tokenizer(args.model), args.template)
    pairs = R.read_pairs(
        args.data) if args.data else make_tiny.QUESTIONS * (need // len(make_tiny.QUESTIONS) + 5)
    samples = [(pair, sample) for pair in pairs[:need + args.eval_samples * 4]
               for sample in [R.chat_sample(tok, *pair)] if len(sample["tokens"]) <= args.max_length
               ]  # nothing is truncated, also not what a template writes after the end of a turn
    training, held_out = samples[:need], samples[need:need + args.eval_samples]
    assert held_out, "too few samples of this length: --max-length, --eval-samples"
    checks = R.Checks()
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, part in (("train", training), ("eval", held_out)):
            files[name] = os.path.join(folder, name + ".jsonl")
            R.write_jsonl(files[name], [{"prompt": pair[0], "completion": pair[1]} for pair, _ in part])
        adapter = args.adapter
        if args.method == "lora" and adapter is None:
            adapter = os.path.join(folder, "adapter")
            R.make_adapter(R.load_model(args.model), adapter, args.rank, args.alpha)
        if args.reference and os.path.exists(args.reference):
            with open(args.reference) as f:
                want = json.load(f)
        else:
            model = R.load_model(args.model)
            model = R.load_adapter(model, adapter) if adapter else model
            batches = make_tiny.batches_of([s for _, s in training], args.batch_size, args.steps)
            losses, norms = R.train(model, batches, args.lr, progress=True)
            want = {
                "losses": losses, "grad_norms": norms, "eval": R.mean_nll(model, [s for _, s in held_out]),
                "targets": [R.count_targets(b) for b in batches]
            }
            if args.reference:
                with open(args.reference, "w") as f:
                    json.dump(want, f)
        recipe, run = os.path.join(folder, "recipe.yaml"), os.path.join(folder, "run")
        write_recipe(recipe, args.model, files["train"], run, args, adapter, args.steps, files["eval"])
        R.run([R.program(args.bin, "graft"), "train", recipe])
        metrics = read_metrics(run)
    steps = [m for m in metrics if "loss" in m]
    checks.require("steps logged", len(steps) == args.steps, f"{len(steps)} of {args.steps}")
    worst = max(abs(m["loss"] - w) for m, w in zip(steps, want["losses"]))
    print("first and last losses:",
          [(m["loss"], w)
           for m, w in list(zip(steps, want["losses"]))[:2] + list(zip(steps, want["losses"]))[-2:]])
    if args.dtype == "fp32":
        checks.check("largest difference of a step's loss", worst, args.loss_bound)
        checks.check("largest relative difference of a gradient norm",
                     max(abs(m["grad_norm"] / w - 1) for m, w in zip(steps, want["grad_norms"])), 1e-3)
    else:
        print(f"largest difference of a step's loss {worst:.3g}")
    final = [m["eval_loss"] for m in metrics if "eval_loss" in m]
    checks.require("evaluated at the end", bool(final))
    if final:
        checks.check(f"final eval loss {final[-1]:.5f}, reference {want['eval']:.5f}, relative difference",
                     abs(final[-1] / want["eval"] - 1), args.eval_bound if args.dtype != "fp32" else 1e-4)
    checks.finish()


if __name__ == "__main__":
    main()
