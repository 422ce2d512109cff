#!/usr/bin/env python3
"""Make the golden answers of training runs on tiny and tiny-qwen2 with torch's AdamW, torch's clipping and
transformers' learning rates.

    make_training.py --out tests/golden/training

training.json: `schedules` (`settings`: recipe overrides, `total`: steps, `shape`: the rate of each step over
the peak) and `runs` (`name`, `model`, `settings`, `learning_rates`, `losses` before each update, `grad_norms`
before clipping, `updates`: stride and norm of each parameter's change over the run).
training.safetensors: "RUN/PARAMETER", the change at flat indices 0, stride, 2 stride ... (at most 24).

A rate is transformers' for the step with one difference: transformers runs step s of a warmup of w at
(s-1)/w, the first at 0; graft at s/w. After the warmup they are the same. A LoRA run starts from the model's
adapter/, batches are samples i*B .. i*B+B-1 of train.jsonl.
"""
import json
import math
import os

import torch
from safetensors.torch import save_file
from transformers import get_scheduler
from transformers.optimization import get_polynomial_decay_schedule_with_warmup

import make_tiny
import reference as R

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS, BATCH = 10, 4  # two epochs of the 20 samples
ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0}
SCHEDULE = {"lr_scheduler": "cosine", "min_lr_ratio": 0.0, "wsd_decay_ratio": 0.1, "warmup_steps": 0, "warmup_ratio": 0.0}
SCHEDULES = [
    (12, {"lr_scheduler": "cosine"}),
    (13, {"lr_scheduler": "cosine", "warmup_steps": 4, "min_lr_ratio": 0.1}),
    (7, {"lr_scheduler": "cosine", "warmup_ratio": 0.3}),
    (12, {"lr_scheduler": "linear"}),
    (13, {"lr_scheduler": "linear", "warmup_ratio": 0.25, "min_lr_ratio": 0.2}),
    (9, {"lr_scheduler": "constant"}),
    (9, {"lr_scheduler": "constant", "warmup_steps": 3, "min_lr_ratio": 0.5}),
    (11, {"lr_scheduler": "wsd"}),
    (14, {"lr_scheduler": "wsd", "wsd_decay_ratio": 0.45, "warmup_steps": 3, "min_lr_ratio": 0.1}),
    (5, {"lr_scheduler": "wsd", "wsd_decay_ratio": 1.0}),
    (6, {"lr_scheduler": "linear", "warmup_steps": 6}),
]
RUNS = [
    ("lora", "tiny", "lora", {"learning_rate": 1e-3, "lr_scheduler": "constant"}),
    ("lora-clipped", "tiny", "lora", {
        "learning_rate": 3e-3, "lr_scheduler": "cosine", "warmup_steps": 3, "min_lr_ratio": 0.1,
        "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-4, "weight_decay": 0.5, "max_grad_norm": 0.3
    }),
    ("lora-unclipped", "tiny-qwen2", "lora", {
        "learning_rate": 1e-3, "lr_scheduler": "linear", "warmup_ratio": 0.2, "min_lr_ratio": 0.05,
        "adam_beta2": 0.99, "max_grad_norm": 0.0
    }),
    ("full", "tiny", "full", {
        "learning_rate": 1e-3, "lr_scheduler": "wsd", "wsd_decay_ratio": 0.5, "warmup_steps": 2,
        "adam_epsilon": 1e-6, "max_grad_norm": 2.0
    }),
    ("full-decayed", "tiny-qwen2", "full", {
        "learning_rate": 2e-3, "lr_scheduler": "cosine", "adam_beta1": 0.85, "adam_beta2": 0.98,
        "adam_epsilon": 1e-5, "weight_decay": 1.0, "max_grad_norm": 0.5
    }),
    ("pretrain", "tiny", "full", {
        "objective": "pretrain", "data.max_length": 40, "learning_rate": 1e-3, "lr_scheduler": "wsd", "warmup_steps": 2
    }),
    ("pretrain-documents", "tiny", "full", {
        "objective": "pretrain", "data.max_length": 40, "data.attention": "document", "learning_rate": 1e-3,
        "lr_scheduler": "cosine", "min_lr_ratio": 0.1
    }),
    ("pretrain-z-loss", "tiny-qwen2", "full", {
        "objective": "pretrain", "data.max_length": 64, "z_loss": 0.02, "learning_rate": 1e-3, "adam_epsilon": 1e-5,
        "lr_scheduler": "constant"
    }),
]


def transformers_scheduler(optimizer, s, warmup, total):
    if s["lr_scheduler"] == "cosine":
        return get_scheduler("cosine_with_min_lr", optimizer, warmup, total,
                             scheduler_specific_kwargs={"min_lr_rate": s["min_lr_ratio"]})
    if s["lr_scheduler"] == "linear" and s["min_lr_ratio"]:
        return get_polynomial_decay_schedule_with_warmup(optimizer, warmup, total, lr_end=s["min_lr_ratio"], power=1.0)
    if s["lr_scheduler"] == "linear":
        return get_scheduler("linear", optimizer, warmup, total)
    if s["lr_scheduler"] == "constant":
        return get_scheduler("constant_with_warmup", optimizer, warmup)
    decay = math.ceil(s["wsd_decay_ratio"] * total)
    return get_scheduler(
        "warmup_stable_decay", optimizer, warmup, total, scheduler_specific_kwargs={
            "num_decay_steps": decay, "decay_type": "linear", "min_lr_ratio": s["min_lr_ratio"]
        })


def shape_of(settings, total):
    """The rate of each of the steps over the peak rate."""
    s = {**SCHEDULE, **settings}
    warmup = s["warmup_steps"] or math.ceil(s["warmup_ratio"] * total)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = transformers_scheduler(optimizer, s, warmup, total)
    shape = []
    for step in range(1, total + 1):
        shape.append(step / warmup if step <= warmup else scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return shape


def key(name):
    return name if "." in name else "train." + name


def pretrain_batches(tok, pairs, settings):
    """Blocks of max_length of the documents (whole chats) joined, BATCH a step; apart, each part of a document is a sequence."""
    length, apart = settings["data.max_length"], settings.get("data.attention") == "document"
    chats = [tok.apply_chat_template([{"role": "user", "content": q}, {"role": "assistant", "content": a}], tokenize=False)
             for q, a in pairs]
    stream = [(t, i == 0) for chat in chats for i, t in enumerate(tok.encode(chat, add_special_tokens=False))]
    blocks = [stream[i:i + length] for i in range(0, len(stream), length)]
    if len(blocks[-1]) < 2:
        blocks.pop()
    parts = []
    for block in blocks:
        starts = [0] + [i for i, (_, begins) in enumerate(block) if apart and begins and i > 0] + [len(block)]
        parts.append([{"tokens": [t for t, _ in block[a:b]], "targets": [0] + [1] * (b - a - 1)}
                      for a, b in zip(starts, starts[1:])])
    epoch = [sum(parts[i:i + BATCH], []) for i in range(0, len(parts), BATCH)]
    return [epoch[i % len(epoch)] for i in range(STEPS)]


def make_run(name, model_name, method, settings, tensors):
    folder = os.path.join(HERE, model_name)
    tok = R.load_tokenizer(folder)
    pairs = R.read_pairs(os.path.join(folder, "train.jsonl"))
    samples = [R.chat_sample(tok, *pair) for pair in pairs]
    model = R.load_model(folder)
    if method == "lora":
        model = R.load_adapter(model, os.path.join(folder, "adapter"))
    before = {R.plain_name(n): p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    s = {**ADAM, **settings}
    rates = [s["learning_rate"] * x for x in shape_of(settings, STEPS)]
    pretrain = s.get("objective") == "pretrain"
    batches = pretrain_batches(tok, pairs, s) if pretrain else make_tiny.batches_of(samples, BATCH, STEPS)
    losses, norms = R.train(model, batches, rates, s["max_grad_norm"],
                            (s["adam_beta1"], s["adam_beta2"]), s["adam_epsilon"], s["weight_decay"], z_loss=s.get("z_loss", 0.0))
    updates = {}
    for n, p in model.named_parameters():
        if p.requires_grad:
            n = R.plain_name(n)
            change = p.detach().double() - before[n].double()
            stride = max(1, -(-change.numel() // 24))
            updates[n] = {"stride": stride, "norm": change.norm().item()}
            tensors[f"{name}/{n}"] = change.flatten()[::stride].float().clone()
    return {
        "name": name, "model": model_name, "settings": {"adapter.method": method, **{key(k): v for k, v in settings.items()}},
        "learning_rates": rates, "losses": losses, "grad_norms": norms, "updates": updates
    }


def main():
    p = R.parser(__doc__, model=False, binary=False)
    p.add_argument("--out", required=True)
    args = p.parse_args()
    torch.set_num_threads(1)
    os.makedirs(args.out, exist_ok=True)
    tensors = {}
    schedules = [{"settings": {f"train.{k}": v for k, v in settings.items()}, "total": total, "shape": shape_of(settings, total)}
                 for total, settings in SCHEDULES]
    runs = [make_run(*run, tensors) for run in RUNS]
    with open(os.path.join(args.out, "training.json"), "w", encoding="utf-8") as f:
        for part, items in (("schedules", schedules), ("runs", runs)):
            f.write(("{" if part == "schedules" else ",\n") + json.dumps(part) + ": [\n" + ",\n".join(json.dumps(i) for i in items)
                    + "]")
        f.write("}\n")
    save_file(tensors, os.path.join(args.out, "training.safetensors"))
    for run in runs:
        print(run["name"], "losses", run["losses"], "norms", run["grad_norms"])


if __name__ == "__main__":
    main()
