#!/usr/bin/env python3
"""Greedy text of `graft generate` against transformers on many prompts.

    compare_text.py --model SmolLM2.gguf [--adapter PEFT_FOLDER] [--data F.jsonl] [--max-tokens 64]

A prompt is one user turn under the model's chat template. Texts must be equal, except where the reference's
two best logits at the first difference lie closer than --tie (0.01); such differences are counted.
"""
import json
import os
import tempfile

import torch

import reference as R
import texts

PROMPTS = [
    "What is the capital of France?", "Write a haiku about rain.", "List three prime numbers.",
    "Explain gravity to a child.", "What is 17 + 25?", "Translate 'good morning' into Spanish.",
    "Name the largest ocean.", "Give me a recipe for pancakes.", "Who wrote Hamlet?",
    "What is photosynthesis?", "Write a Python function that adds two numbers.", "Why is the sky blue?",
    "Tell me a short story about a fox.", "What is the boiling point of water?", "How do I learn to swim?",
    "你好，你是谁？", "Summarise the plot of a film about time travel.", "Give two synonyms of 'fast'.",
    "What day comes after Monday?", "Write an email asking for a day off.", "What is a linked list?",
    "How many legs has a spider?", "Say something kind."
]


def first_difference(tok, ids, text):
    """The steps of the reference (ids) that can have decided the first difference with text: the one after
    which its decoding is no prefix of text, and those before it that left a character unfinished."""
    steps = []
    for k in range(len(ids)):
        so_far = tok.decode(ids[:k + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        unfinished = so_far.endswith("\ufffd")
        steps.append(k)
        if not text.startswith(so_far.rstrip("\ufffd")):
            return steps
        if not unfinished:
            steps = []
    return steps + [len(ids)]


def compare(checks, name, tok, prompts, references, completions, tie):
    """references: (ids, gaps) a prompt. -> counts and checks equal texts up to near ties"""
    equal = ties = 0
    for prompt, (ids, gaps), got in zip(prompts, references, completions):
        want = tok.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if got == want:
            equal += 1
            continue
        gap = min((gaps[k] for k in first_difference(tok, ids, got) if k < len(gaps)), default=float("inf"))
        ties += gap < tie
        print(
            f"    {'near tie' if gap < tie else 'DIFFERENT'} (gap {gap:.4f}) {prompt!r:.60}\n"
            f"      reference {want!r:.200}\n      graft     {got!r:.200}"
        )
    checks.require(
        name, equal + ties == len(prompts) == len(completions),
        f"{equal} of {len(prompts)} equal, {ties} differ at near ties, {len(prompts) - equal - ties} differ")


def prompt_ids(tok, prompt):
    text = tok.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                                   add_generation_prompt=True)
    return tok.encode(text, add_special_tokens=False)


def generate(args, model, prompts, folder, *options):
    path = os.path.join(folder, "prompts.jsonl")
    R.write_jsonl(path, [{"prompt": prompt} for prompt in prompts])
    out = R.run([
        R.program(args.bin, "graft"), "generate", "--model", model, "--prompts", path, "--max-tokens",
        args.max_tokens, "--dtype", "fp32", "--compute", "exact", "--threads", args.threads, "--template", args.template, *options
    ])
    return [json.loads(line)["completion"] for line in out.decode().splitlines()]


def main():
    p = R.parser(__doc__)
    p.add_argument("--adapter")
    p.add_argument("--data", help="prompts from this jsonl; default: built-in ones")
    p.add_argument("--count", type=int, default=50)
    p.add_argument("--max-tokens", type=int, default=64)
    p.add_argument("--tie", type=float, default=0.01)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    tok, model = R.use_template(R.load_tokenizer(args.model), args.template), R.load_model(args.model)
    if args.adapter:
        model = R.load_adapter(model, args.adapter, trainable=False)
    pool = [
        q for q, _ in R.read_pairs(args.data, args.count)
    ] if args.data else PROMPTS + texts.SENTENCES["en"] + texts.SENTENCES["zh"] + texts.SENTENCES["code"]
    prompts = list(dict.fromkeys(pool))[:args.count]
    stop = R.stop_ids(model, tok)
    references = [R.greedy(model, prompt_ids(tok, prompt), args.max_tokens, stop) for prompt in prompts]
    print(
        f"{len(prompts)} prompts, smallest gap {min(min(g) for _, g in references):.2g}, "
        f"{sum(gap < args.tie for _, g in references for gap in g)} "
        f"of {sum(len(g) for _, g in references)} steps are near ties"
    )
    checks = R.Checks()
    with tempfile.TemporaryDirectory() as folder:
        completions = generate(args, args.model, prompts, folder,
                               *(["--adapter", args.adapter] if args.adapter else []))
    compare(checks, "greedy text", tok, prompts, references, completions, args.tie)
    checks.finish()


if __name__ == "__main__":
    main()
