#!/usr/bin/env python3
"""Logits, loss and every gradient of graft_dump against PyTorch + transformers + PEFT on the same batch.

    compare_grads.py --model SmolLM2.gguf                          # LoRA, adapter with B non-zero made here
    compare_grads.py --model M --adapter PEFT_FOLDER --text F.txt  # one sequence a line
    # small random models of every variant of make_tiny.py
    compare_grads.py --method full --variants

The batch is a flat one of several sequences for graft; the reference runs each sequence alone and takes the
cross-entropy of logits.double(). Bounds: logits 1e-5 of their range, LoRA gradients 1e-4 (norm of the
difference over norm, each tensor), full gradients likewise. --noise compares the reference with itself in
one packed order instead (what rounding alone does).
"""
import os
import tempfile

import torch

import make_tiny
import reference as R
import texts


def batch_of(tok, path, max_tokens):
    if path:
        with open(path, encoding="utf-8", errors="replace") as f:
            strings = [line.rstrip("\n") for line in f if line.strip()]
    else:
        strings = (["\n".join(texts.SENTENCES["en"][:4]), texts.SENTENCES["zh"][1]] +
                   texts.SENTENCES["code"][:3] +
                   [" ".join(texts.SENTENCES["zh"][3:8]), texts.SENTENCES["en"][6], "Hi"])
    batch = R.text_batch(tok, strings, max_tokens)
    return batch + ([R.chat_sample(tok, *make_tiny.QUESTIONS[1])] if tok.chat_template else [])


def compare(checks, label, args, model_path, adapter, method, folder):
    """One model: reference and graft_dump on the same batch."""
    tok = R.use_template(R.load_tokenizer(model_path), args.template)
    batch = batch_of(tok, args.text, args.max_tokens)
    model = R.load_model(model_path)
    if method == "lora":
        if adapter is None:
            adapter = os.path.join(folder, "adapter")
            R.make_adapter(model, adapter, args.rank, args.alpha, args.seed)
            model = R.load_model(model_path)
        model = R.load_adapter(model, adapter)
    loss, logits = R.backward(model, batch)
    want, logits = R.gradients(model), torch.cat(logits)
    print(
        f"{label}: {len(batch)} sequences, {len(logits)} tokens, {R.count_targets(batch)} targets, "
        f"loss {loss:.6f}"
    )
    if args.noise:
        model.zero_grad()
        torch.set_num_threads(1)
        again, other = R.backward(model, batch[::-1])
        other.reverse()
        got = {"logits": torch.cat(other), "loss": torch.tensor([again])
               } | {"grad." + k: g
                    for k, g in R.gradients(model).items()}
    else:
        got = R.dump(args.bin, model_path, batch, folder, adapter, method, args.dtype, args.threads)
    span = (logits.max() - logits.min()).item()
    checks.check(f"{label}: logits, of their range {span:.1f}",
                 (got["logits"] - logits).abs().max().item() / span, args.logits_bound)
    checks.check(f"{label}: loss", abs(got["loss"].item() - loss), 1e-5 if args.dtype == "fp32" else 0.05)
    names = {n for n in got if n.startswith("grad.")}
    checks.require(
        f"{label}: the same trainable tensors", names == {"grad." + n
                                                          for n in want},
        f"missing {sorted({'grad.' + n for n in want} - names)[:3]}, "
        f"extra {sorted(names - {'grad.' + n for n in want})[:3]}"
    )
    errors = {
        n: R.relative(got["grad." + n].reshape(g.shape), g)
        for n, g in want.items() if "grad." + n in got
    }
    for n, e in errors.items():
        if args.verbose or e > args.grad_bound:
            print(f"    {e:.2e} |g| {want[n].norm():.2e} {n}")
    worst = max(errors, key=errors.get)
    checks.check(f"{label}: {len(errors)} gradients, worst {worst}", errors[worst], args.grad_bound)


def main():
    p = R.parser(__doc__)
    p.add_argument("--method", choices=["lora", "full"], default="lora")
    p.add_argument("--adapter", help="a PEFT folder; default: one made by seed with B non-zero")
    p.add_argument("--rank", type=int, default=8)
    p.add_argument("--alpha", type=int, default=16)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--text", help="a text file, one sequence a line; default: built-in sentences")
    p.add_argument("--max-tokens", type=int, default=200, help="of one sequence")
    p.add_argument("--variants", nargs="*", choices=list(make_tiny.VARIANTS),
                   help="instead of --model: small random models (none named: all)")
    p.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    p.add_argument("--logits-bound", type=float, default=1e-5)
    p.add_argument("--grad-bound", type=float, default=1e-4)
    p.add_argument(
        "--noise", action="store_true",
        help="the reference against itself, sequences in reverse order on one thread; no graft_dump")
    p.add_argument("--verbose", action="store_true", help="print every tensor's error")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    checks = R.Checks()
    with tempfile.TemporaryDirectory() as folder:
        if args.variants is None:
            compare(checks, f"{os.path.basename(args.model.rstrip('/'))} {args.method}", args, args.model,
                    args.adapter, args.method, folder)
        for variant in args.variants or (make_tiny.VARIANTS if args.variants == [] else []):
            path = os.path.join(folder, variant)
            make_tiny.save_model(path, variant,
                                 old_config=len(variant) % 2 == 0)  # both forms of config.json get tried
            compare(checks, f"{variant} {args.method}", args, path, None, args.method, folder)
    checks.finish()


if __name__ == "__main__":
    main()
