#!/usr/bin/env python3
"""Adapters with trained rows of tokens as PEFT writes them, and what they make of the tiny models.

    make_rows.py --out tests/golden/rows     # reads tiny/ and tiny-qwen2/ beside it

A folder a case: adapter_config.json, adapter_model.safetensors. rows.json: of each case its `model`, its `loss` on the
`batch` of that model's golden.json, and `tokens`. rows.safetensors: "CASE.logits" of the first 4 `logit_rows` there,
"CASE.grad.NAME" of every trained tensor, rows in the order of the adapter's list.
"""
import json
import os

import torch
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from safetensors.torch import save_file

import reference as R

HERE = os.path.dirname(os.path.abspath(__file__))
RANGE = list(range(600, 640))  # the last tokens of the tiny vocabulary
LIST = [104, 2, 7, 8, 63, 300]  # some are in the batch, some are not; in no order
OTHERS = [5, 104, 9]
LORA = dict(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
ROWS = dict(task_type="CAUSAL_LM")
CASES = {
    "alone-tied": ("tiny", TrainableTokensConfig(token_indices=LIST, **ROWS)),
    "alone-tied-range": ("tiny", TrainableTokensConfig(token_indices=RANGE, **ROWS)),
    "alone-both": ("tiny-qwen2",
                   TrainableTokensConfig(token_indices=LIST, target_modules=["embed_tokens", "lm_head"], **ROWS)),
    "alone-embedding": ("tiny-qwen2", TrainableTokensConfig(token_indices=LIST, **ROWS)),
    "lora-tied": ("tiny", LoraConfig(trainable_token_indices=LIST, **LORA)),
    "lora-range": ("tiny-qwen2",
                   LoraConfig(trainable_token_indices={"embed_tokens": RANGE, "lm_head": RANGE}, **LORA)),
    "lora-apart": ("tiny-qwen2",
                   LoraConfig(trainable_token_indices={"embed_tokens": LIST, "lm_head": OTHERS}, **LORA)),
    "lora-head": ("tiny-qwen2", LoraConfig(trainable_token_indices={"lm_head": OTHERS}, **LORA)),
}


def tidy(folder, base):
    """The same bytes every time, and no path of this machine."""
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json")
    with open(path) as f:
        config = json.load(f)
    if isinstance(config["target_modules"], list):
        config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = base
    with open(path, "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)


def main():
    p = R.parser(__doc__, model=False, binary=False)
    p.add_argument("--out", required=True)
    args = p.parse_args()
    torch.set_num_threads(1)
    facts, tensors = {}, {}
    for name, (base, config) in CASES.items():
        with open(os.path.join(HERE, base, "golden.json"), encoding="utf-8") as f:
            golden = json.load(f)
        torch.manual_seed(3)
        model = get_peft_model(R.load_model(os.path.join(HERE, base)), config)
        with torch.no_grad():
            for key, value in model.named_parameters():
                if value.requires_grad and "lora_A" not in key:
                    value.add_(torch.randn_like(value) * 0.1)
        folder = os.path.join(args.out, name)
        model.save_pretrained(folder)
        tidy(folder, base)
        loss, logits = R.backward(model, golden["batch"]["sequences"])
        facts[name] = {"model": base, "loss": loss}
        tensors[f"{name}.logits"] = torch.cat(logits)[golden["logit_rows"][:4]]
        for key, value in R.gradients(model).items():
            tensors[f"{name}.grad.{key.removesuffix('.default')}"] = value
        print(name, "loss", loss, sorted(k for k in tensors if k.startswith(name) and "lora" not in k))
    with open(os.path.join(args.out, "rows.json"), "w") as f:
        json.dump(facts, f, indent=1)
        f.write("\n")
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(args.out, "rows.safetensors"))


if __name__ == "__main__":
    main()
