#!/usr/bin/env python3
"""Make a small random model as an HF folder, with the golden answers that C tests compare with.

    make_tiny.py --out tests/golden/tiny                       # LLaMA, tied, GQA
    make_tiny.py --out tests/golden/tiny-qwen2 --variant qwen2  # biases, untied, odd head size
    make_tiny.py --out tests/golden/tiny-gemma3 --variant gemma3 --no-training   # likewise the other architectures
    make_tiny.py --out /tmp/m --variant llama3-rope --model-only

golden.json: `batch` (sequences of tokens and targets), `loss` and `base_loss` (with and without the
adapter), `logit_rows` (rows of the flat batch), `train` and `train_full` (batches of samples, losses before
each AdamW update, gradient norms), `full_grads` (stride and norm of each gradient without adapter),
`generate` (greedy ids from prompt ids with the adapter, and their text).
golden.safetensors: "logits" and "base_logits" [logit_rows,V], "grad.NAME" for every adapter tensor,
"full.NAME" the gradient of a weight of the bare model at flat indices 0, stride, 2 stride ... (at most 64).
train.jsonl: the training samples as prompt and completion; tokens in golden.json are theirs under the
model's chat template.
"""
import json
import os

import torch
from safetensors.torch import save_file
from transformers import (AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma3TextConfig, LlamaConfig,
                          MistralConfig, Phi3Config, Qwen2Config, Qwen3Config)

import reference as R
import texts

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA = dict(hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=2048, rms_norm_eps=1e-5, tie_word_embeddings=True)
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor":
    4.0, "original_max_position_embeddings": 64
}
SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-6)
THETA = {"rope_parameters": {**ROPE, "rope_theta": 5e4}}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA = dict(SMALL, head_dim=16, sliding_window=7, query_pre_attn_scalar=12, layer_types=ALTERNATING)
GEMMA3_ROPE = {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
               "sliding_attention": ROPE}
VARIANTS = {
    "llama": (LlamaConfig, {"rope_parameters": ROPE}),
    "qwen2": (Qwen2Config,
              dict(rope_parameters={**ROPE, "rope_theta":
                                    1e6}, hidden_size=48, num_attention_heads=3, num_key_value_heads=1,
                   intermediate_size=80, head_dim=24, tie_word_embeddings=False, rms_norm_eps=1e-6)),
    # every window is shorter than the sequences
    "qwen3": (Qwen3Config, dict(SMALL, head_dim=16, rms_norm_eps=1e-5, **THETA)),
    "mistral": (MistralConfig, dict(SMALL, sliding_window=9, **THETA)),
    "gemma2": (Gemma2Config, dict(GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=4.0, **THETA)),
    "gemma3": (Gemma3TextConfig, dict(GEMMA, rope_parameters=GEMMA3_ROPE)),
    "phi3": (Phi3Config, dict(SMALL, sliding_window=9, pad_token_id=0, tie_word_embeddings=False, **THETA)),
    "qwen2-window": (Qwen2Config, dict(SMALL, sliding_window=6, use_sliding_window=True, max_window_layers=1,
                                       layer_types=["full_attention"] + ["sliding_attention"] * 2, **THETA)),
    "qwen3-bias": (Qwen3Config, dict(SMALL, head_dim=16, attention_bias=True, **THETA)),
    "gemma3-capped": (Gemma3TextConfig, dict(GEMMA, final_logit_softcapping=3.0, tie_word_embeddings=False,
                                             rope_parameters={"full_attention": {**ROPE, "rope_theta": 1e6},
                                                              "sliding_attention": ROPE})),
    "untied": (LlamaConfig, {"rope_parameters": ROPE, "tie_word_embeddings": False}),
    "mha": (LlamaConfig, {"rope_parameters": ROPE, "num_key_value_heads": 4}),
    "head-dim": (LlamaConfig, {"rope_parameters": ROPE, "head_dim": 22}),
    "llama3-rope": (LlamaConfig, {"rope_parameters": LLAMA3_ROPE}),
    "linear-rope":
    (LlamaConfig, {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "bias": (LlamaConfig, {"rope_parameters": ROPE, "attention_bias": True, "mlp_bias": True}),
}
QUESTIONS = [("What is 3 + 4?", "3 + 4 = 7\n#### 7"),
             ("Tom has 12 pens and buys 5 more. How many pens has he now?", "12 + 5 = 17\n#### 17"),
             ("小明有12个苹果，给了弟弟5个，还剩几个？", "12 - 5 = 7\n#### 7"), ("Name a colour.", "Blue."), ("1 + 1 = ?", "2"),
             ("Write a line of C.", "int main(void) { return 0; }"), ("法国的首都是哪里？", "法国的首都是巴黎。"),
             ("Say hello.", "Hello! 😀")]


def make_model(variant, vocab, tok, seed=11, divisor=False):
    """A random model with activations of ordinary size: weights of variance 1/fan-in, norms near 1. divisor:
    scores are divided by the root of the head size, as llama.cpp does whatever query_pre_attn_scalar says."""
    cls, changes = VARIANTS[variant]
    if divisor and "query_pre_attn_scalar" in changes:
        changes = {**changes, "query_pre_attn_scalar": changes["head_dim"]}
    config = cls(
        **{
            **LLAMA, "vocab_size": vocab, "bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id,
            **changes
        })
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.1)
            elif p.dim() == 1:
                p.normal_(0 if "Gemma" in cls.__name__ else 1, 0.1)  # Gemma's norms multiply by 1 + w
            else:
                p.normal_(0, (0.5 if "embed" in name else 1.0) / p.shape[1]**0.5)
    return model


def write_old_config(folder):
    """config.json as transformers 4 writes it: rope_theta, rope_scaling, torch_dtype."""
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        config = json.load(f)
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype", "float32")
    with open(path, "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)
        f.write("\n")


def save_model(folder, variant, old_config, seed=11, divisor=False):
    """The HF folder: model, tiny SmolLM2-style tokenizer, chat template."""
    os.makedirs(folder, exist_ok=True)
    tok = AutoTokenizer.from_pretrained(os.path.join(HERE, "tokenizers", "smollm2"))
    with open(os.path.join(HERE, "chat", "smollm2.jinja"), encoding="utf-8") as f:
        tok.chat_template = f.read()
    model = make_model(variant, len(tok), tok, seed, divisor)
    R.save_hf(model, tok, folder)
    if old_config:
        write_old_config(folder)


def fresh(folder):
    return R.load_model(folder)


def batches_of(samples, batch_size, steps):
    """Batch i of file order, starting again at the end: samples i*B .. i*B+B-1."""
    n = len(samples)
    return [[samples[(step * batch_size + i) % n] for i in range(batch_size)] for step in range(steps)]


def make_golden(folder, training=True, steps=10, batch_size=4, lr=1e-3):
    tok = R.load_tokenizer(folder)
    pairs = QUESTIONS + [(f"Continue: {line[:20]}", line[20:]) for line in texts.ENGLISH.splitlines()]
    if training:
        R.write_jsonl(os.path.join(folder, "train.jsonl"), [{"prompt": p, "completion": c} for p, c in pairs])
    samples = [R.chat_sample(tok, p, c) for p, c in pairs]
    batch = R.text_batch(
        tok, [texts.SENTENCES["en"][0], texts.SENTENCES["zh"][1], texts.SENTENCES["code"][1], "A"],
        60) + [samples[1]]
    starts = [sum(len(s["tokens"]) for s in batch[:n]) for n in range(len(batch) + 1)]
    rows = sorted({
        r
        for n in range(len(batch))
        for r in (starts[n], (starts[n] + starts[n + 1]) // 2, starts[n + 1] - 1)
    })

    model = fresh(folder)
    base_loss, logits = R.backward(model, batch)
    tensors = {"base_logits": torch.cat(logits)[rows]}
    full = {}
    for name, g in R.gradients(model).items():
        stride = max(1, -(-g.numel() // 64))
        full[name] = {"stride": stride, "norm": g.double().norm().item()}
        tensors["full." + name] = g.flatten()[::stride].clone()

    R.make_adapter(fresh(folder), os.path.join(folder, "adapter"), rank=4, alpha=8, b_std=0.05)
    peft = R.load_adapter(fresh(folder), os.path.join(folder, "adapter"))
    loss, logits = R.backward(peft, batch)
    tensors["logits"] = torch.cat(logits)[rows]
    tensors |= {"grad." + name: g for name, g in R.gradients(peft).items()}

    generate = []
    for prompt, _ in QUESTIONS[:4]:
        text = tok.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                       add_generation_prompt=True)
        ids = tok.encode(text, add_special_tokens=False)
        out, gaps = R.greedy(peft, ids, 16, R.stop_ids(peft, tok))
        generate.append({
            "prompt": prompt, "prompt_ids": ids, "ids": out, "smallest_gap": min(gaps), "text": tok.decode(
                out, skip_special_tokens=True)
        })

    golden = {
        "batch": {"sequences": batch}, "loss": loss, "base_loss": base_loss, "logit_rows": rows, "full_grads":
        full, "generate": generate
    }
    if training:
        batches = batches_of(samples, batch_size, steps)
        peft.zero_grad()
        losses, norms = R.train(peft, batches, lr)
        full_losses, full_norms = R.train(fresh(folder), batches, lr)
        settings = {"batch_size": batch_size, "learning_rate": lr, "max_grad_norm": 1.0}
        golden["train"] = {**settings, "losses": losses, "grad_norms": norms, "samples": samples}
        golden["train_full"] = {**settings, "losses": full_losses, "grad_norms": full_norms}
        print("training", losses, "full", full_losses)
    with open(os.path.join(folder, "golden.json"), "w", encoding="utf-8") as f:
        f.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}"
                                   for k, v in golden.items()) + "\n}\n")
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(folder, "golden.safetensors"))
    print("loss", loss, "bare", base_loss, "gaps", [g["smallest_gap"] for g in generate])


def main():
    p = R.parser(__doc__, model=False, binary=False)
    p.add_argument("--out", required=True)
    p.add_argument("--variant", choices=list(VARIANTS), default="llama")
    p.add_argument("--old-config", action="store_true", help="config.json with the names of transformers 4")
    p.add_argument("--model-only", action="store_true", help="no golden answers")
    p.add_argument("--no-training", action="store_true", help="golden answers without runs of training")
    p.add_argument("--seed", type=int, default=11)
    args = p.parse_args()
    torch.set_num_threads(1)
    save_model(args.out, args.variant, args.old_config, args.seed)
    if not args.model_only:
        make_golden(args.out, not args.no_training)


if __name__ == "__main__":
    main()
