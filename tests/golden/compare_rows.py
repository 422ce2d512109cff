#!/usr/bin/env python3
"""Trained rows of tokens against PEFT: losses and gradient norms of 12 steps on the tiny models, and the adapters that graft wrote
of them, read by PEFT: logits and gradients.

    compare_rows.py --bin build      # graft; graft_dump in build/tests
"""
import json
import os
import tempfile

import torch
from peft import LoraConfig, TrainableTokensConfig, get_peft_model

import make_tiny
import reference as R

HERE = os.path.dirname(os.path.abspath(__file__))
TAIL, LIST = list(range(600, 640)), [2, 7, 30, 104]
ALONE, BOTH = dict(task_type="CAUSAL_LM"), ["embed_tokens", "lm_head"]
LORA = dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
RECIPE = """model: {{base: {base}, dtype: fp32}}
adapter: {adapter}
data: {{train: {base}/train.jsonl, cache: none, shuffle: false}}
train: {{max_steps: {steps}, batch_size: 4, learning_rate: {lr}, lr_scheduler: constant, weight_decay: 0.1}}
log: {{every: 1}}
output_dir: {out}
"""
CASES = [  # model, what PEFT trains, what the recipe says
    ("tiny", TrainableTokensConfig(token_indices=TAIL, **ALONE), {"method": "embeddings", "rows": TAIL}),
    ("tiny", TrainableTokensConfig(token_indices=LIST, **ALONE), {"method": "embeddings", "rows": LIST}),
    ("tiny", TrainableTokensConfig(token_indices=list(range(640)), **ALONE), {"method": "embeddings", "rows": "all"}),
    ("tiny-qwen2", TrainableTokensConfig(token_indices=LIST, target_modules=BOTH, **ALONE),
     {"method": "embeddings", "rows": LIST}),
    ("tiny-qwen2", TrainableTokensConfig(token_indices=TAIL, **ALONE),
     {"method": "embeddings", "rows": TAIL, "head_rows": False}),
    ("tiny", LoraConfig(trainable_token_indices=LIST, **LORA), {"trainable_tokens": LIST}),
    ("tiny-qwen2", LoraConfig(trainable_token_indices={"embed_tokens": TAIL, "lm_head": TAIL}, **LORA),
     {"trainable_tokens": TAIL}),
]


def compare(checks, args, base, config, adapter, folder, steps=12):
    path, lora = os.path.join(HERE, base), isinstance(config, LoraConfig)
    label, lr = f"{base} {'lora, ' if lora else ''}{str(list(adapter.items()))[:60]}", 1e-3 if lora else 1e-2
    with open(os.path.join(path, "golden.json"), encoding="utf-8") as f:
        golden = json.load(f)
    torch.manual_seed(0)
    model = get_peft_model(R.load_model(path), config)
    if lora:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(0, 0.05)
        model.save_pretrained(os.path.join(folder, "init"))
        adapter = {**adapter, "rank": 4, "alpha": 8, "target_modules": LORA["target_modules"],
                   "init_from": os.path.join(folder, "init")}
    losses, norms = R.train(model, make_tiny.batches_of(golden["train"]["samples"], 4, steps), lr, weight_decay=0.1)
    out, recipe = os.path.join(folder, "run"), os.path.join(folder, "r.yaml")
    with open(recipe, "w") as f:
        f.write(RECIPE.format(base=path, adapter=json.dumps(adapter), steps=steps, lr=lr, out=out))
    R.run([R.program(args.bin, "graft"), "train", recipe, "--overwrite"])
    with open(os.path.join(out, "metrics.jsonl")) as f:
        rows = [json.loads(line) for line in f]
    checks.check(f"{label}: {len(rows)} losses", max(abs(a["loss"] - b) for a, b in zip(rows, losses)), 1e-5)
    checks.check(f"{label}: gradient norms", max(abs(a["grad_norm"] / b - 1) for a, b in zip(rows, norms)), 1e-4)
    model, batch = R.load_adapter(R.load_model(path), os.path.join(out, "adapter")), golden["batch"]["sequences"]
    _, logits = R.backward(model, batch)
    logits = torch.cat(logits)
    tools = os.path.join(args.bin, "tests") if args.bin else None
    got = R.dump(tools, path, batch, folder, os.path.join(out, "adapter"), threads=args.threads)
    span = (logits.max() - logits.min()).item()
    checks.check(f"{label}: logits in PEFT", (got["logits"] - logits).abs().max().item() / span, 1e-5)
    errors = [R.relative(got["grad." + n.removesuffix(".default")], g) for n, g in R.gradients(model).items()]
    checks.check(f"{label}: {len(errors)} gradients in PEFT", max(errors), 1e-4)


def main():
    p = R.parser(__doc__, model=False)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    checks = R.Checks()
    with tempfile.TemporaryDirectory() as folder:
        for base, config, adapter in CASES:
            compare(checks, args, base, config, adapter, folder)
    checks.finish()


if __name__ == "__main__":
    main()
