"""What the comparisons share: models and tokenizers by transformers, adapters and training by PEFT and torch,
batches, and graft's tools.

Also a command: write the dequantised GGUF as an HF folder, or an adapter whose B is not zero as a PEFT
folder.

    reference.py hf --model M.gguf --out FOLDER
    reference.py adapter --model M --out FOLDER [--rank 8 --alpha 16 --seed 1]

Everywhere --model (or GRAFT_MODEL) is a .gguf file or an HF folder, and --bin (or GRAFT_BIN) the folder
with graft and graft_dump.
"""
import argparse
import json
import os
import subprocess
import sys
import time

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

# ---------------------------------------------------------------- command line


def parser(doc, model=True, binary=True):
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if model:
        p.add_argument("--model", default=os.environ.get("GRAFT_MODEL"),
                       help="a .gguf file or an HF folder (default: $GRAFT_MODEL)")
    if binary:
        p.add_argument("--bin", default=os.environ.get("GRAFT_BIN"),
                       help="folder with graft and graft_dump (default: $GRAFT_BIN, else the PATH)")
    if model and binary:
        p.add_argument("--template", default="auto",
                       help="of chats, where the model has none: a name of graft's (gemma ...)")
    p.add_argument("--threads", type=int, default=2)
    return p


def program(folder, name):
    return os.path.join(folder, name) if folder else name


def run(command, **options):
    """Run, show what is run, stop with its messages if it fails; -> its standard output."""
    print("+", " ".join(str(c) for c in command), flush=True)
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, **options)
    if done.returncode:
        sys.exit(f"{command[0]} ended with status {done.returncode}")
    return done.stdout


class Checks:
    """Named checks against bounds; finish() prints the totals and exits non-zero if one failed."""

    def __init__(self):
        self.failed = self.passed = 0

    def check(self, name, value, bound):
        ok = value <= bound
        print(f"{'ok  ' if ok else 'FAIL'} {name}: {value:.3g} (bound {bound:.3g})", flush=True)
        self.count(ok)

    def require(self, name, ok, detail=""):
        print(f"{'ok  ' if ok else 'FAIL'} {name}{': ' + detail if detail else ''}", flush=True)
        self.count(ok)

    def count(self, ok):
        self.passed += bool(ok)
        self.failed += not ok

    def finish(self):
        print(f"{self.passed} passed, {self.failed} failed")
        sys.exit(1 if self.failed else 0)


# ---------------------------------------------------------------- models and tokenizers


def is_gguf(path):
    return path.endswith(".gguf")


def source(path):
    """The arguments of from_pretrained for a .gguf file or an HF folder."""
    return ((os.path.dirname(path) or ".", ),
            {"gguf_file": os.path.basename(path)}) if is_gguf(path) else ((path, ), {})


def load_tokenizer(path):
    """transformers' tokenizer; a GGUF of SmolLM2 gets back the digit splitting that transformers drops."""
    args, options = source(path)
    tok = AutoTokenizer.from_pretrained(*args, **options)
    if is_gguf(path):
        from gguf import GGUFReader
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
        pre = GGUFReader(path).fields.get("tokenizer.ggml.pre")
        if pre is not None and pre.contents() == "smollm":
            tok.backend_tokenizer.pre_tokenizer = Sequence(
                [Digits(individual_digits=True),
                 ByteLevel(add_prefix_space=False)])
    return tok


def use_template(tok, name):
    """Give tok graft's template of that name; auto: its own. -> tok"""
    if name != "auto":
        folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "core", "text",
                              "templates")
        with open(os.path.join(folder, name + ".jinja"), encoding="utf-8") as f:
            tok.chat_template = f.read()
    return tok


def turn_end(tok):
    """The id that ends an answer under tok's template: the first after it."""
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    text = tok.apply_chat_template(chat, tokenize=False)
    return tok.encode(text[text.rindex("Yes") + 3:], add_special_tokens=False)[0]


def load_model(path, dtype=torch.float32):
    args, options = source(path)
    model = AutoModelForCausalLM.from_pretrained(*args, dtype=dtype, attn_implementation="eager", **options)
    if is_gguf(path):  # a plain model: forget that it was quantised
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        state = model.state_dict()
        model = type(model)._from_config(config, dtype=dtype, attn_implementation="eager")
        model.load_state_dict(state)
        model.tie_weights()
    return model.eval()


def save_hf(model, tok, folder):
    model.save_pretrained(folder)
    if tok is not None:
        tok.save_pretrained(folder)


def make_adapter(model, folder, rank=8, alpha=16, seed=1, targets="all-linear", b_std=0.02):
    """A PEFT adapter of the usual form but with B normal(0, b_std): every gradient is alive. -> the model"""
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(seed)
    peft = get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if "lora_B" in name:
                p.normal_(0, b_std)
    peft.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder,
                        "adapter_config.json")  # the same bytes every time, and no path of this machine
    with open(path) as f:
        config = json.load(f)
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = os.path.basename(config["base_model_name_or_path"])
    with open(path, "w") as f:
        json.dump(config, f, indent=2, sort_keys=True)
    return peft


def load_adapter(model, folder, trainable=True):
    from peft import PeftModel
    return PeftModel.from_pretrained(model, folder, is_trainable=trainable)


def plain_name(name):
    """PEFT's parameter name without its prefix and adapter name; HF names stay."""
    return name.removeprefix("base_model.model.").replace(".default.", ".")


# ---------------------------------------------------------------- batches, loss, gradients


def text_batch(tok, strings, max_tokens=200):
    """Plain texts as sequences; the first third of each but the first is no target: the mask matters."""
    sequences = []
    for n, s in enumerate(strings):
        ids = tok.encode(s, add_special_tokens=False)[:max_tokens]
        if len(ids) >= 2:
            first = 1 if n == 0 else max(1, len(ids) // 3)
            sequences.append({"tokens": ids, "targets": [int(i >= first) for i in range(len(ids))]})
    return sequences


def chat_sample(tok, prompt, completion):
    """One user turn and its answer under the model's own template: answer and end of turn are targets."""
    head = tok.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                   add_generation_prompt=True)
    head = tok.encode(head, add_special_tokens=False)
    answer = tok.encode(completion, add_special_tokens=False) + [turn_end(tok)]
    return {"tokens": head + answer, "targets": [0] * len(head) + [1] * len(answer)}


def read_pairs(path, limit=None):
    """(prompt, completion) of a json or jsonl of prompt/completion, question/answer or alpaca records."""
    pairs = []
    with open(path, encoding="utf-8") as f:
        records = json.load(f) if path.endswith(".json") else (json.loads(line) for line in f if line.strip())
        for r in records:
            if "prompt" in r:
                pairs.append((r["prompt"], r["completion"]))
            elif "question" in r:
                pairs.append((r["question"], r.get("answer", r.get("std_answer"))))
            else:
                pairs.append((r["instruction"] + ("\n" + r["input"] if r.get("input") else ""), r["output"]))
            if limit and len(pairs) == limit:
                break
    return pairs


def write_jsonl(path, records):
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in records)


def sequence_loss(model, sequence, n_targets):
    """-> sum of nll over the targets / n_targets (cross-entropy of logits.double()), the logits [n,V]"""
    ids = torch.tensor([sequence["tokens"]])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    keep = torch.tensor(sequence["targets"][1:], dtype=torch.bool)
    nll = torch.nn.functional.cross_entropy(logits[:-1][keep].double(), ids[0, 1:][keep], reduction="sum")
    return nll / n_targets, logits


def count_targets(sequences):
    return sum(sum(s["targets"]) for s in sequences)


def backward(model, sequences, z_loss=0.0):
    """Each sequence alone, gradients summed into .grad; z_loss: of z_loss * logsumexp^2 besides. -> loss without it, list of
    logits"""
    total, logits, n = 0.0, [], count_targets(sequences)
    for s in sequences:
        loss, out = sequence_loss(model, s, n)
        keep = torch.tensor(s["targets"][1:], dtype=torch.bool)
        (loss + z_loss * out[:-1][keep].double().logsumexp(-1).square().sum() / n if z_loss else loss).backward()
        total += loss.item()
        logits.append(out.detach())
    return total, logits


def gradients(model):
    return {plain_name(name): p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def mean_nll(model, sequences):
    with torch.no_grad():
        n = count_targets(sequences)
        return sum(sequence_loss(model, s, n)[0].item() for s in sequences)


def decayed(name):
    """What transformers' Trainer decays: neither biases nor norms."""
    return not (name.endswith("bias") or "norm" in name)


def train(model, batches, lr, max_grad_norm=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
          progress=False, z_loss=0.0):
    """torch AdamW; lr: one for all steps, or a list; max_grad_norm 0: no clipping. -> losses before each
    update, gradient norms before clipping"""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    optimizer = torch.optim.AdamW([{"params": [p for name, p in named if decayed(name)]},
                                   {"params": [p for name, p in named if not decayed(name)], "weight_decay": 0.0}],
                                  lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay)
    losses, norms = [], []
    for step, batch in enumerate(batches):
        start = time.time()
        for group in optimizer.param_groups:
            group["lr"] = lr[step] if isinstance(lr, list) else lr
        optimizer.zero_grad(set_to_none=True)
        losses.append(backward(model, batch, z_loss)[0])
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf")).item())
        optimizer.step()
        if progress:
            print(
                f"reference step {step + 1}/{len(batches)} loss {losses[-1]:.6f} {time.time() - start:.1f} s",
                file=sys.stderr, flush=True)
    return losses, norms


def greedy(model, ids, max_tokens, stop):
    """-> the new ids (a stop id is not among them), the gap between the two best logits at each step"""
    out, gaps, cache, feed = [], [], None, torch.tensor([ids])
    with torch.no_grad():
        while len(out) < max_tokens:
            result = model(input_ids=feed, past_key_values=cache, use_cache=True)
            cache = result.past_key_values
            best = result.logits[0, -1].float().topk(2)
            gaps.append((best.values[0] - best.values[1]).item())
            if best.indices[0].item() in stop:
                break
            out.append(best.indices[0].item())
            feed = torch.tensor([[out[-1]]])
    return out, gaps


def stop_ids(model, tok):
    ids = model.generation_config.eos_token_id
    ids = set(ids if isinstance(ids, list) else [ids] if ids is not None else []) | {tok.eos_token_id}
    return ids | ({turn_end(tok)} if tok.chat_template else set())


def relative(a, b):
    """norm of the difference over the norm of the reference b"""
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def dump(binary, model, sequences, folder, adapter=None, method="lora", dtype="fp32", threads=2):
    """graft_dump of a batch -> its tensors by name"""
    batch, out = os.path.join(folder, "batch.json"), os.path.join(folder, "dump.safetensors")
    with open(batch, "w") as f:
        json.dump({"sequences": sequences}, f)
    run([
        program(binary, "graft_dump"), "--model", model, *(["--adapter", adapter] if adapter else []),
        "--batch", batch, "--out", out, "--method", method, "--dtype", dtype, "--threads", threads
    ])
    return load_file(out)


def main():
    p = parser(__doc__, binary=False)
    p.add_argument("what", choices=["hf", "adapter"])
    p.add_argument("--out", required=True)
    p.add_argument("--rank", type=int, default=8)
    p.add_argument("--alpha", type=int, default=16)
    p.add_argument("--seed", type=int, default=1)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model)
    if args.what == "hf":
        save_hf(model, load_tokenizer(args.model), args.out)
    else:
        make_adapter(model, args.out, args.rank, args.alpha, args.seed)
    print("wrote", args.out)


if __name__ == "__main__":
    main()
