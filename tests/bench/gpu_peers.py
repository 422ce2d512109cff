#!/usr/bin/env python3
"""What others reach on a card: PEFT, PyTorch and transformers on the shapes of LLaMA-7B and SmolLM2-135M, with random weights.

    gpu_peers.py [ROW ...] [--lengths FILE] [--steps N] [--small] [--warm]

Rows (all, unless some are named), in order of importance:
  lora7b             LoRA rank 8 on six linears, 16 x 256 tokens: bf16 adapters, decoder layers compiled
  lora7b_users       the same as PEFT is used: a base in bf16, adapters in fp32, nothing compiled
  real7b             the lengths of --lengths, 16 samples a step, padded to the longest: bf16 adapters, layers compiled (dynamic)
  smol1k, smol16k    LoRA rank 8, all-linear, SmolLM2-135M, 2 x 512 and 32 x 512 tokens: bf16 adapters, layers compiled
  full7b             every weight, 16 x 256, weights and states in bf16, fused AdamW, layers compiled
  generate7b         greedy, one sequence, bf16, transformers' generate
  real7b_eager       real7b, nothing compiled

One JSON line a row: row, value (real tokens a second), ms (of a step), peak_gb, or error. Times are those of whole steps:
zero_grad, forward, backward, clipping, AdamW; the median of --steps after as many as it takes to compile. Needs torch,
transformers, peft. --small: sizes of no interest, on a CPU too, to see that it runs. --warm: two layers, one step each, so that
what is compiled lies in the compiler's cache.
"""
import argparse
import gc
import json
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

SIX = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
               vocab_size=32000, tie_word_embeddings=False),
    "smol": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                 vocab_size=49152, tie_word_embeddings=True),
    "small": dict(hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  vocab_size=320, tie_word_embeddings=False),
}


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def make_model(shape, layers=None):
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=4096, rms_norm_eps=1e-5)
    if layers:
        config.num_hidden_layers = layers
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device=DEVICE)
    for name, p in model.named_parameters():
        with torch.no_grad():
            p.fill_(1) if p.dim() == 1 else p.normal_(0, 0.02)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(DEVICE)  # its buffers are computed, not read
    model.tie_weights()
    return model


def compile_layers(model, dynamic):
    layers = (model.get_base_model() if hasattr(model, "get_base_model") else model).model.layers
    for layer in layers:
        layer.compile(dynamic=dynamic)


def batches_of(lengths, batch, vocab):
    """Batches of random ids, padded to the longest: ids, labels, mask (None where none is padded), real tokens."""
    generator = torch.Generator().manual_seed(1)
    for at in range(0, len(lengths) - batch + 1, batch):
        some = lengths[at:at + batch]
        ids = torch.randint(3, vocab, (batch, max(some)), generator=generator)
        mask = torch.arange(max(some))[None, :] < torch.tensor(some)[:, None]
        labels = torch.where(mask, ids, -100)
        padded = not bool(mask.all())
        yield ids.to(DEVICE), labels.to(DEVICE), mask.long().to(DEVICE) if padded else None, sum(some)


def train(args, shape, lengths, batch, full=False, compiled=False, dynamic=None, adapters=torch.bfloat16, targets=SIX):
    shape = "small" if args.small else shape
    model = make_model(shape, 2 if args.warm else None)
    model.config.use_cache = False
    if not full:
        from peft import LoraConfig, get_peft_model
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"),
                               autocast_adapter_dtype=adapters == torch.float32)
    if compiled:
        compile_layers(model, dynamic)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-5 if full else 2e-4, fused=DEVICE == "cuda")
    warm_up, counted = (1, 0) if args.warm else (3, args.steps)
    if dynamic and not args.warm:
        warm_up = 4  # one length, then another, then any
    seconds, tokens, model = [], [], model.train()
    for ids, labels, mask, real in batches_of(lengths * (1 + (warm_up + counted) * batch // len(lengths)), batch,
                                              SHAPES[shape]["vocab_size"]):
        if len(seconds) == warm_up + counted:
            break
        synchronize()
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        synchronize()
        seconds.append(time.perf_counter() - started)
        tokens.append(real)
    if args.warm:
        return {"value": None}
    rates = [t / s for t, s in zip(tokens[warm_up:], seconds[warm_up:])]
    value = statistics.median(rates) if len(set(tokens)) == 1 else sum(tokens[warm_up:]) / sum(seconds[warm_up:])
    return {"value": value, "ms": 1000 * statistics.median(seconds[warm_up:])}


def generate(args):
    shape, few, many = ("small", 2, 6) if args.small else ("7b", 8, 72)
    model = make_model(shape, 2 if args.warm else None).eval()
    ids = torch.randint(3, SHAPES[shape]["vocab_size"], (1, 16)).to(DEVICE)
    took = {}
    for n in (few, few, many):
        synchronize()
        started = time.perf_counter()
        with torch.no_grad():
            model.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=n, max_new_tokens=n, do_sample=False,
                           pad_token_id=0, eos_token_id=None)
        synchronize()
        took[n] = time.perf_counter() - started
    return {"value": (many - few) / (took[many] - took[few])}


def rows(args):
    real = [int(x) for x in open(args.lengths).read().split()] if args.lengths else [40, 250, 170, 90] * 16
    if args.small:
        real = [2 + x % 24 for x in real]
    b = 4 if args.small else 16
    packs = [8 if args.small else 256] * b
    return {
        "lora7b": lambda: train(args, "7b", packs, b, compiled=True),
        "lora7b_users": lambda: train(args, "7b", packs, b, adapters=torch.float32),
        "real7b": lambda: train(args, "7b", real, b, compiled=True, dynamic=True),
        "smol1k": lambda: train(args, "smol", [packs[0] if args.small else 512] * 2, 2, compiled=True, targets="all-linear"),
        "smol16k": lambda: train(args, "smol", [packs[0] if args.small else 512] * 32, 32, compiled=True, targets="all-linear"),
        "full7b": lambda: train(args, "7b", packs, b, full=True, compiled=True),
        "generate7b": lambda: generate(args),
        "real7b_eager": lambda: train(args, "7b", real, b),
    }


def main():
    global DEVICE
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("rows", nargs="*", metavar="ROW")
    p.add_argument("--lengths", help="a file of numbers: tokens of samples")
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--small", action="store_true")
    p.add_argument("--warm", action="store_true")
    args = p.parse_args()
    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    if DEVICE == "cpu" and not args.small:
        p.error("no card (torch.cuda.is_available() is false)")
    known = rows(args)
    unknown = [r for r in args.rows if r not in known]
    if unknown:
        p.error(f"unknown rows: {' '.join(unknown)}")
    torch.manual_seed(1)
    for row in args.rows or known:
        torch._dynamo.reset()
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            result = known[row]()
        except Exception as e:  # one row's failure is no other's
            result = {"error": f"{type(e).__name__}: {str(e).splitlines()[0][:200] if str(e) else ''}"}
        gc.collect()
        if DEVICE == "cuda":
            result["peak_gb"] = torch.cuda.max_memory_reserved() / 1e9
            torch.cuda.empty_cache()
        print(json.dumps({"row": row, **result}), flush=True)


main()
