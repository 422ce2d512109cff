#!/usr/bin/env python3
"""A model trained with a template or system text of its own answers as the run did, wherever it is merged to.

    compare_carried.py --model SmolLM2.gguf --data alpaca.json [--count 20] [--steps 12]

Trains LoRA with `template: alpaca` and with `data.system`, merges each run to a folder and a GGUF (fp32), and asks the same
questions of the run, of both files in graft, of the folder in transformers (its own apply_chat_template and eos) and of the GGUF in
llama-cpp-python (its own chat handler, F32 KV cache). Texts must be equal; a difference where the reference's two best logits lie
closer than --tie is counted.
"""
import json
import os
import tempfile

import torch

import reference as R
import texts
from compare_text import PROMPTS, compare

SYSTEM = "You are a pirate. Answer in one sentence."


def graft_answers(args, source, prompts, folder):
    path = os.path.join(folder, "prompts.jsonl")
    R.write_jsonl(path, [{"prompt": p} for p in prompts])
    out = R.run([R.program(args.bin, "graft"), "generate", *source, "--prompts", path, "--max-tokens", args.max_tokens,
                 "--dtype", "fp32", "--compute", "exact", "--threads", args.threads])
    return [json.loads(line)["completion"] for line in out.decode().splitlines()]


def llama_answers(args, path, prompts):
    import llama_cpp
    llm = llama_cpp.Llama(path, n_ctx=1024, n_threads=args.threads, type_k=0, type_v=0, verbose=False)
    answers = []
    for p in prompts:
        llm.reset()
        out = llm.create_chat_completion([{"role": "user", "content": p}], temperature=0, max_tokens=args.max_tokens)
        answers.append(out["choices"][0]["message"]["content"])
    return answers


def main():
    p = R.parser(__doc__)
    p.add_argument("--data", required=True)
    p.add_argument("--count", type=int, default=20)
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--max-tokens", type=int, default=48)
    p.add_argument("--tie", type=float, default=0.01)
    args = p.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_num_threads(args.threads)
    prompts = (PROMPTS + texts.SENTENCES["en"])[:args.count]
    checks = R.Checks()
    graft = R.program(args.bin, "graft")
    for name, keys in (("alpaca", ["data.template=alpaca"]), ("system", [f"data.system={SYSTEM}"])):
        with tempfile.TemporaryDirectory() as folder:
            run, merged, gguf = (os.path.join(folder, x) for x in ("run", "merged", "merged.gguf"))
            recipe = os.path.join(folder, "r.yaml")
            with open(recipe, "w") as f:
                f.write("data: {cache: none, max_length: 256}\n")
            R.run([graft, "train", recipe, f"model.base={args.model}", f"data.train={args.data}", f"output_dir={run}",
                   "model.dtype=fp32", f"train.max_steps={args.steps}", "train.batch_size=8", "train.learning_rate=5e-4",
                   f"threads={args.threads}", *keys])
            for out in (merged, gguf):
                R.run([graft, "merge", run, "--out", out, "--dtype", "fp32"])
            tok, model = AutoTokenizer.from_pretrained(merged), AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
            stop = model.generation_config.eos_token_id
            stop = set(stop if isinstance(stop, list) else [stop])
            references = [R.greedy(model, tok.encode(tok.apply_chat_template([{"role": "user", "content": q}], tokenize=False,
                                                                             add_generation_prompt=True),
                                                     add_special_tokens=False), args.max_tokens, stop) for q in prompts]
            for what, source in (("the run", [run]), ("its merged folder", ["--model", merged]),
                                 ("its merged GGUF", ["--model", gguf])):
                compare(checks, f"{name}: {what} as transformers with the folder", tok, prompts, references,
                        graft_answers(args, source, prompts, folder), args.tie)
            compare(checks, f"{name}: llama.cpp as transformers", tok, prompts, references, llama_answers(args, gguf, prompts),
                    args.tie)
    checks.finish()


if __name__ == "__main__":
    main()
