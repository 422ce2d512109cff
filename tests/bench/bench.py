#!/usr/bin/env python3
"""graft beside its peers on the machine at hand: the same model, batches and adapters in one run, in alternating order.

    bench.py --model SmolLM2.gguf --bin build/gcc --data gsm8k_train.jsonl [--text LINES ...] [--only lora decode ...] [--quick]
             [--contenders graft "PEFT bf16" ...] [--set KEY=VALUE ...] [--out R.json]

--bin: the folder with graft and tests/bench_kernels, tests/bench_tokenizer. Rows (all, unless --only names some):
  lora       LoRA rank 8 all-linear, 2 packs of 512 a step, every token trained: PEFT + PyTorch (eager, compiled, bf16)
  full       every weight, AdamW, the same packs: PyTorch (eager, compiled)
  sft        question and answer with the chat template, loss on the answer, 8 samples a step: TRL as its users run it; samples/s
  gemm       products of 1,024 rows with the matrices of SmolLM2-135M: PyTorch's (float32: MKL, bf16: oneDNN); GFLOP/s
  decode     greedy, one prompt, weights of the model's file and Q8_0: llama.cpp
  prefill    a prompt of 1,024 tokens, the same files: llama.cpp
  tokenizer  one thread, lines of --text: HF tokenizers; MB/s
  start      from the start of the process to the end of the first step (token cache present): PEFT; seconds
  growth     graft alone: late steps against early ones, one thread against all, sequences of 256 to 4,096 tokens
--contenders keeps some of a row's alone; --set adds to graft's recipes.
Medians over --rounds. Tokens are real ones (no padding); peak RSS is that of each process. The first steps of a run are not
counted. Limits (peak of float32 FMAs, reading from memory) are measured in every round. Prints a table and decides nothing.
"""
import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))

PACK, PACKS, WARM_UP = 512, 2, 1
LORA_GFLOP = 0.615  # a token of SmolLM2-135M at 512 positions, adapters included
POSITION_GFLOP = 7 * 576 * 30 / 1e9  # of that for each position: 2 products forward and 5 backward, half of them masked
GEMM_ROWS, GEMM_SHAPES = 1024, ((576, 576), (192, 576), (1536, 576), (576, 1536))
median = statistics.median


# ---------------------------------------------------------------- peers: each runs in a process of its own and prints one JSON line


def peer_training(args, full, dtype, compiled):
    import torch

    import reference as R
    torch.set_num_threads(args.threads)
    model = R.load_model(args.model, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    if not full:
        from peft import LoraConfig, get_peft_model
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-5 if full else 2e-4)
    tok, run = R.load_tokenizer(args.model), torch.compile(model) if compiled else model
    texts = [json.loads(line)["text"] for line in open(args.packs, encoding="utf-8")]
    seconds = []
    for step in range(args.steps + WARM_UP):
        ids = torch.tensor([tok(texts[(step * PACKS + i) % len(texts)])["input_ids"][:PACK] for i in range(PACKS)])
        started = time.perf_counter()
        loss = run(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        if step == 0:
            first = time.time() - args.started
    return {"rate": PACK * PACKS / median(seconds[WARM_UP:]), "first": first, "loss": loss.item()}


def peer_trl(args):
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    import reference as R
    torch.set_num_threads(args.threads)
    pairs = R.read_pairs(args.data, 8 * (args.steps + WARM_UP))
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
                              for q, a in pairs])
    times = []

    class Clock(TrainerCallback):

        def on_step_end(self, *_, **__):
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(output_dir=folder, per_device_train_batch_size=8, max_steps=args.steps + WARM_UP, learning_rate=2e-4,
                           report_to=[], completion_only_loss=True, gradient_checkpointing=False, save_strategy="no",
                           disable_tqdm=True, use_cpu=True, bf16=False, dataloader_pin_memory=False, max_length=1024)
        SFTTrainer(model=R.load_model(args.model), args=config, train_dataset=data, processing_class=R.load_tokenizer(args.model),
                   peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
                   callbacks=[Clock()]).train()
    return {"rate": 8 * args.steps / (times[-1] - times[WARM_UP - 1])}


def peer_llama(args, what):
    from llama_cpp import Llama
    m = Llama(args.model, n_ctx=2048, n_batch=1024, n_ubatch=512, n_threads=args.threads, n_threads_batch=args.threads,
              verbose=False, flash_attn=what != "prefill plain")
    prompt = m.tokenize(prompt_text(1024).encode())[:1024]
    if what != "decode":
        m.eval(prompt[:64])
        m.reset()
        started = time.perf_counter()
        m.eval(prompt)
        return {"rate": len(prompt) / (time.perf_counter() - started)}
    stamps = []
    for _ in m.generate(prompt[:16], temp=0.0, top_k=1):
        stamps.append(time.perf_counter())
        if len(stamps) == args.tokens + 8:
            break
    return {"rate": args.tokens / (stamps[-1] - stamps[7])}


def peer_gemm(args, dtype):
    """y = x W^T, dx = dy W, dW = dy^T x -> GFLOP/s by product; the best of many, as bench_kernels"""
    import torch
    torch.set_num_threads(int(args.threads))
    kind, rates = getattr(torch, dtype), {}
    for n, k in GEMM_SHAPES:
        w, x, dy = (torch.randn(*size).to(kind) for size in ((n, k), (GEMM_ROWS, k), (GEMM_ROWS, n)))
        for what, run in {"fwd": lambda: x @ w.T, "bwd": lambda: dy @ w, "dw": lambda: dy.T @ x}.items():
            best, until = 1e9, time.perf_counter() + 0.5
            while time.perf_counter() < until:
                started = time.perf_counter()
                run()
                best = min(best, time.perf_counter() - started)
            rates[f"{what} {n}x{k}"] = 2e-9 * GEMM_ROWS * n * k / best
    return {"rate": rates["fwd 576x576"], "rates": rates}


def peer_tokenizer(args):
    import reference as R
    tok = R.load_tokenizer(args.model).backend_tokenizer
    lines = open(args.text_file, encoding="utf-8").read().splitlines(keepends=True)
    started = time.perf_counter()
    n = sum(len(tok.encode(line, add_special_tokens=False).ids) for line in lines)
    return {"rate": os.path.getsize(args.text_file) / (time.perf_counter() - started) / 1e6, "tokens": n}


PEERS = {
    "PEFT fp32": lambda a: peer_training(a, False, "fp32", False),
    "PEFT fp32 compiled": lambda a: peer_training(a, False, "fp32", True),
    "PEFT bf16": lambda a: peer_training(a, False, "bf16", False),
    "PEFT bf16 compiled": lambda a: peer_training(a, False, "bf16", True),
    "torch fp32": lambda a: peer_training(a, True, "fp32", False),
    "torch fp32 compiled": lambda a: peer_training(a, True, "fp32", True),
    "TRL": peer_trl,
    "llama.cpp decode": lambda a: peer_llama(a, "decode"),
    "llama.cpp": lambda a: peer_llama(a, "prefill plain"),
    "llama.cpp, flash": lambda a: peer_llama(a, "prefill flash"),
    "PyTorch float32": lambda a: peer_gemm(a, "float32"),
    "PyTorch bfloat16": lambda a: peer_gemm(a, "bfloat16"),
    "HF tokenizers": peer_tokenizer,
}


def run_peer(args):
    result = PEERS[args.peer](args)
    result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))


def child(command, environment=None):
    """-> standard output, peak RSS, seconds of a command; stops with its messages if it fails"""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as messages:
        started = time.time()
        p = subprocess.Popen([str(c) for c in command], stdout=out, stderr=messages, env=environment)
        _, status, usage = os.wait4(p.pid, 0)
        seconds = time.time() - started
        out.seek(0)
        messages.seek(0)
        if status:
            raise RuntimeError(" ".join(map(str, command)) + "\n" + messages.read()[-1500:])
        return out.read(), usage.ru_maxrss * 1024, seconds


def peer(args, name, **options):
    keep = {"model": args.model, "data": args.data, "packs": args.packs, "steps": args.steps, "tokens": args.tokens,
            "threads": args.threads, "text_file": args.text_file, **options}
    command = [sys.executable, os.path.abspath(__file__), "--peer", name, "--started", str(time.time())]
    for key, value in keep.items():
        if value is not None:
            command += ["--" + key.replace("_", "-"), value]
    threads = {"OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    return json.loads(child(command, {**os.environ, **threads})[0].splitlines()[-1])


# ---------------------------------------------------------------- graft


def prompt_text(tokens):
    return "Write a long story about a dog and a cat. " * (tokens // 8)


def graft_train(args, recipe, **overrides):
    """A run of a recipe (a dict) -> its metrics' rows of steps, peak RSS, seconds"""
    path, folder = os.path.join(args.folder, "recipe.yaml"), os.path.join(args.folder, "run")
    with open(path, "w", encoding="utf-8") as f:
        json.dump({**recipe, "output_dir": folder, "log": {"every": 1}, "save": {"every": 0}}, f)
    options = [f"{key}={value}" for key, value in overrides.items()] + args.set
    _, peak, seconds = child([args.graft, "train", path, "--overwrite", *options])
    with open(os.path.join(folder, "metrics.jsonl"), encoding="utf-8") as f:
        rows = [r for r in map(json.loads, f) if "loss" in r]
    return rows, peak, seconds


def packs_recipe(args, **train):
    return {"model": {"base": args.model, "dtype": "auto"}, "adapter": {"rank": 8, "alpha": 16},
            "data": {"train": args.packs, "template": "none", "loss_on": "all", "max_length": PACK, "truncation": "right",
                     "shuffle": False, "cache": os.path.join(args.folder, "cache")},
            "train": {"max_steps": args.steps + WARM_UP, "batch_size": PACKS, "lr_scheduler": "constant", **train},
            "threads": args.threads}


def graft_packs(args, compute="exact", full=False, dtype="auto"):
    recipe = packs_recipe(args, **({"learning_rate": 1e-5} if full else {}))
    if full:
        recipe["adapter"] = {"method": "full"}
    rows, peak, seconds = graft_train(args, recipe, **{"model.compute": compute, "model.dtype": dtype})
    return {"rate": median(r["tokens_per_second"] for r in rows[WARM_UP:]), "peak": peak, "loss": rows[-1]["loss"],
            "first": seconds}


def graft_sft(args, compute, dtype="auto"):
    recipe = {"model": {"base": args.model}, "adapter": {"rank": 8, "alpha": 16}, "threads": args.threads,
              "data": {"train": args.data, "max_length": 1024, "truncation": "right", "shuffle": False,
                       "cache": os.path.join(args.folder, "cache")},
              "train": {"max_steps": args.steps + WARM_UP, "batch_size": 8, "lr_scheduler": "constant"}}
    rows, peak, _ = graft_train(args, recipe, **{"model.compute": compute, "model.dtype": dtype})
    seconds = sum((b["num_tokens"] - a["num_tokens"]) / b["tokens_per_second"] for a, b in zip(rows[WARM_UP - 1:], rows[WARM_UP:]))
    return {"rate": 8 * args.steps / seconds, "peak": peak}


def graft_generate(args, model, prompt, tokens, compute, times=1):
    """`times` completions of `tokens` tokens, one after the other -> peak RSS, seconds"""
    path = os.path.join(args.folder, "prompt.jsonl")
    with open(path, "w", encoding="utf-8") as f:
        f.write((json.dumps({"prompt": prompt}) + "\n") * times)
    out, peak, seconds = child([args.graft, "generate", "--model", model, "--prompts", path, "--template", "none",
                                "--max-tokens", tokens,
                                "--ignore-eos", "--batch", 1, "--compute", compute, "--threads", args.threads])
    if any(json.loads(line)["tokens"] != tokens for line in out.splitlines()):
        raise RuntimeError(f"graft generated other than {tokens} tokens")
    return peak, seconds


def graft_decode(args, model, compute):
    """Two lengths: what they share (opening, the prompt) drops out."""
    few, many = 8, 8 + args.tokens
    _, short = graft_generate(args, model, prompt_text(16), few, compute)
    peak, long = graft_generate(args, model, prompt_text(16), many, compute)
    return {"rate": args.tokens / (long - short), "peak": peak}


def graft_prefill(args, model, compute):
    """One prompt and five: as llama.cpp, which has read one before the clock runs."""
    prompt = prompt_text(1024)
    _, once = graft_generate(args, model, prompt, 1, compute)
    peak, five = graft_generate(args, model, prompt, 1, compute, times=5)
    return {"rate": 4 * count_tokens(args, prompt) / (five - once), "peak": peak}


def count_tokens(args, text):
    path = os.path.join(args.folder, "count.txt")
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    return int(child([args.bench_tokenizer, args.model, path])[0].split()[2])


# ---------------------------------------------------------------- rows


def measure_limits(args):
    """-> a line that tells them, float32 FMAs in GFLOP/s, reading from memory in GB/s"""
    line = child([os.path.join(args.bin, "tests", "bench_kernels"), args.threads, "limits"])[0].strip()
    return (line, *(float(x) for x in re.search(r"FMA peak ([\d.]+) GFLOP/s, memory ([\d.]+) GB/s", line).groups()))


def table(args, row, unit, contenders, limit=None, better=max):
    """Rounds in alternating order; prints a line for each, relative to the first of graft. limit(): what the machine allows,
    measured in every round, as neighbours take their share of memory and clocks"""
    runs = {name: [] for name in contenders if not args.contenders or name in args.contenders}
    limits = []
    for r in range(args.rounds):
        limits += [limit()] if limit else []
        for name in list(runs) if r % 2 == 0 else reversed(list(runs)):
            try:
                runs[name].append(contenders[name]())
            except RuntimeError as e:
                print(f"{row} {name}: failed: {str(e).splitlines()[-1]}", file=sys.stderr)
    results = {name: {"rate": median(r["rate"] for r in rs), "peak": max(r.get("peak", 0) for r in rs), "runs": rs}
               for name, rs in runs.items() if rs}
    limit = median(limits) if limits else None
    ours = next((r["rate"] for name, r in results.items() if name.startswith("graft")), None)
    print(f"\n{row:34} {unit:>12} {'graft is':>9} {'of limit':>9} {'peak RSS':>10}")
    for name, r in results.items():
        ratio = "" if not ours or r["rate"] == ours else f"{ours / r['rate'] if better is max else r['rate'] / ours:8.2f}x"
        share = f"{100 * r['rate'] / limit:7.0f} %" if limit else ""
        print(f"  {name:32} {r['rate']:12.2f} {ratio:>9} {share:>9} {r['peak'] / 2**30:8.2f} G", flush=True)
    args.results[row] = {"unit": unit, "limit": limit, "results": results}


def files_to_generate(args):
    """The model's own file and a Q8_0 of it: name, path, bytes read for a token"""
    q8 = os.path.join(args.folder, "q8_0.gguf")
    if not os.path.exists(q8):
        child([args.graft, "merge", "--model", args.model, "--dtype", "q8_0", "--out", q8])
    return [(os.path.basename(args.model).split(".")[-2] if args.model.endswith(".gguf") else "model", args.model), ("Q8_0", q8)]


def row_lora(args):
    contenders = {"graft": lambda: graft_packs(args), "graft fp32": lambda: graft_packs(args, dtype="fp32"),
                  "graft int8": lambda: graft_packs(args, "int8"),
                  "graft fp32 int8": lambda: graft_packs(args, "int8", dtype="fp32")}
    contenders.update({name: lambda name=name: peer(args, name)
                       for name in ("PEFT fp32", "PEFT fp32 compiled", "PEFT bf16", "PEFT bf16 compiled")})
    known = "SmolLM2-135M" in args.model
    table(args, "LoRA, packs of 512", "tokens/s", contenders, (lambda: measure_limits(args)[1] / LORA_GFLOP) if known else None)


def row_full(args):
    contenders = {"graft": lambda: graft_packs(args, full=True), "graft fp32": lambda: graft_packs(args, full=True, dtype="fp32")}
    contenders.update({name: lambda name=name: peer(args, name) for name in ("torch fp32", "torch fp32 compiled")})
    table(args, "every weight, packs of 512", "tokens/s", contenders)


def row_sft(args):
    table(args, "GSM8K, batches of 8", "samples/s", {
        "graft": lambda: graft_sft(args, "exact"), "graft fp32": lambda: graft_sft(args, "exact", "fp32"),
        "graft int8": lambda: graft_sft(args, "int8"), "TRL": lambda: peer(args, "TRL")})


def row_gemm(args):
    """Each product in a line of its own: graft's of bench_kernels beside PyTorch's."""
    rates = {name: [] for name in ("float32", "bfloat16", "PyTorch float32", "PyTorch bfloat16")}
    for _ in range(args.rounds):
        for name in ("PyTorch float32", "PyTorch bfloat16"):
            rates[name].append(peer(args, name)["rates"])
        out = child([os.path.join(args.bin, "tests", "bench_kernels"), args.threads, f"n={GEMM_ROWS} "])[0]
        for name, compute in (("float32", "f32"), ("bfloat16", "bf16")):
            found = re.findall(rf"linear (\w+) +n={GEMM_ROWS} (\d+x\d+) f32 in {compute} r=0 .*? ([\d.]+) GFLOP/s", out)
            rates[name].append({f"{what} {shape}": float(rate) for what, shape, rate in found})
    print(f"\n{'products of 1,024 rows, GFLOP/s':34} {'f32':>9} {'PyTorch':>9} {'graft is':>9}   {'bf16':>9} {'PyTorch':>9} "
          f"{'graft is':>9}")
    results = {}
    for key in rates["PyTorch float32"][0]:
        f32, torch32, bf16, torch16 = (median([r[key] for r in rates[name] if key in r] or [0]) for name in
                                       ("float32", "PyTorch float32", "bfloat16", "PyTorch bfloat16"))
        print(f"  {key:32} {f32:9.0f} {torch32:9.0f} {f32 / torch32:8.2f}x   {bf16:9.0f} {torch16:9.0f} {bf16 / torch16:8.2f}x",
              flush=True)
        results[key] = {"float32": f32, "PyTorch float32": torch32, "bfloat16": bf16, "PyTorch bfloat16": torch16}
    args.results["gemm"] = results


def row_decode(args):
    for name, path in files_to_generate(args):
        table(args, f"decode, {name}", "tokens/s", {"graft": lambda: graft_decode(args, path, "auto"),
                                                     "llama.cpp": lambda: peer(args, "llama.cpp decode", model=path)},
              lambda: measure_limits(args)[2] * 1e9 / os.path.getsize(path))


def row_prefill(args):
    for name, path in files_to_generate(args):
        contenders = {f"graft {c}": lambda c=c: graft_prefill(args, path, c) for c in ("auto", "exact")}
        contenders.update({n: lambda n=n: peer(args, n, model=path) for n in ("llama.cpp", "llama.cpp, flash")})
        table(args, f"prefill 1,024, {name}", "tokens/s", contenders)


def row_tokenizer(args):
    table(args, "tokenizer, one thread", "MB/s", {
        "graft": lambda: {"rate": float(child([args.bench_tokenizer, args.model, args.text_file])[0].split()[0])},
        "HF tokenizers": lambda: peer(args, "HF tokenizers")})


def row_start(args):
    recipe = packs_recipe(args, max_steps=1)
    graft_train(args, recipe)  # fills the token cache

    def graft():
        rows, _, seconds = graft_train(args, recipe)
        print(f"  one step takes {PACK * PACKS / rows[0]['tokens_per_second']:.2f} s of graft's", file=sys.stderr)
        return {"rate": seconds}

    def peft():
        return {"rate": peer(args, "PEFT fp32", steps=1)["first"]}

    table(args, "start to end of first step", "s", {"graft": graft, "PEFT fp32": peft}, better=min)


def row_growth(args):
    small = packs_recipe(args, max_steps=args.growth_steps, batch_size=1)
    small["data"]["max_length"] = 32
    rows, peak, _ = graft_train(args, small, **{"model.compute": "int8"})  # what a step of few tokens takes least time with
    rates = [r["tokens_per_second"] for r in rows]
    tenth = max(len(rates) // 10, 1)
    print(f"\ngrowth: {len(rows)} steps of 32 tokens, int8: {median(rates[9:9 + tenth]):.0f} tokens/s from step 10, "
          f"{median(rates[-tenth:]):.0f} at the end, "
          f"peak RSS {peak / 2**20:.0f} MiB", flush=True)
    recipe = packs_recipe(args)
    by_threads = {n: median(r["tokens_per_second"] for r in graft_train(args, {**recipe, "threads": n})[0][WARM_UP:])
                  for n in (1, args.threads)}
    print(f"growth: 1 thread {by_threads[1]:.0f}, {args.threads} threads {by_threads[args.threads]:.0f} tokens/s: "
          f"{by_threads[args.threads] / by_threads[1]:.2f}x", flush=True)
    words = open(args.data, encoding="utf-8").read()
    lengths = {}
    for length in (256, 1024, 4096):
        path = os.path.join(args.folder, f"long{length}.jsonl")
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(json.dumps({"text": words[i * 5 * length:(i + 1) * 5 * length]}) + "\n" for i in range(2 * 4096 // length))
        recipe = packs_recipe(args, max_steps=2, batch_size=4096 // length)
        recipe["data"].update(train=path, max_length=length)
        lengths[length] = graft_train(args, recipe)[0][-1]["tokens_per_second"]
        gflop = LORA_GFLOP + POSITION_GFLOP * (length - PACK)
        print(f"growth: sequences of {length}: {lengths[length]:.0f} tokens/s of {gflop:.3f} GFLOP, {lengths[length] * gflop:.0f} "
              f"GFLOP/s", flush=True)
    args.results["growth"] = {"steps": rates, "peak": peak, "threads": by_threads, "lengths": lengths}


ROWS = {"lora": row_lora, "full": row_full, "sft": row_sft, "gemm": row_gemm, "decode": row_decode, "prefill": row_prefill,
        "tokenizer": row_tokenizer, "start": row_start, "growth": row_growth}


def write_inputs(args):
    """Texts that both sides cut to exactly PACK tokens, and lines to tokenise."""
    records = [json.loads(line) for line in open(args.data, encoding="utf-8")]
    words = " ".join(" ".join(str(v) for v in r.values()) for r in records)
    size = 5 * PACK  # characters: more than PACK tokens
    args.packs, args.text_file = os.path.join(args.folder, "packs.jsonl"), os.path.join(args.folder, "lines.txt")
    with open(args.packs, "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"text": words[i * size:(i + 1) * size]}) + "\n" for i in range((args.steps + WARM_UP) * PACKS))
    with open(args.text_file, "w", encoding="utf-8") as f:
        for path in args.text or [args.data]:
            f.write(open(path, encoding="utf-8").read(2_000_000).rstrip("\n") + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=os.environ.get("GRAFT_MODEL"))
    p.add_argument("--bin", default=os.environ.get("GRAFT_BIN", "build/gcc"))
    p.add_argument("--data", help="a jsonl of questions and answers (GSM8K)")
    p.add_argument("--text", nargs="+", help="files whose lines the tokenizers read")
    p.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    p.add_argument("--contenders", nargs="+", help="those of a row that run")
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more for graft's recipes")
    p.add_argument("--steps", type=int, default=6, help="counted steps of a training run")
    p.add_argument("--tokens", type=int, default=256, help="generated tokens")
    p.add_argument("--growth-steps", type=int, default=5000)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--quick", action="store_true", help="one round of few steps: does it run?")
    p.add_argument("--out", help="the results as JSON")
    for hidden in ("--peer", "--packs", "--text-file"):
        p.add_argument(hidden, help=argparse.SUPPRESS)
    p.add_argument("--started", type=float, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.peer:
        return run_peer(args)
    if not args.model or not args.data:
        p.error("--model and --data are needed")
    if args.quick:
        args.steps, args.tokens, args.rounds, args.growth_steps = 2, 32, 1, 50
    args.model, args.data = os.path.abspath(args.model), os.path.abspath(args.data)
    args.graft, args.bench_tokenizer = os.path.join(args.bin, "graft"), os.path.join(args.bin, "tests", "bench_tokenizer")
    args.results = {}
    machine = measure_limits(args)[0]
    print(machine)
    with tempfile.TemporaryDirectory() as args.folder:
        write_inputs(args)
        for row in args.only:
            ROWS[row](args)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as f:
            json.dump({"limits": machine, "rows": args.results}, f, indent=1)


main()
