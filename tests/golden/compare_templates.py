#!/usr/bin/env python3
"""Renderings of chat templates by graft against jinja2 as transformers runs it: equal byte for byte, or refused by both.

    compare_templates.py [--bin build/gcc/tests] FILE.jinja ...

Conversations: plain, several turns, with a system text, an empty one, spaces, tools with calls and results, reasoning, null
content; with and without the generation prompt.
"""
import argparse
import json
import os
import subprocess

from make_jinja import environment

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of <a city> & \"its\" sky", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}}}]
ASK, ANSWER = {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A river."}
CALL = {"id": "c12345678", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}
CONVERSATIONS = {
    "plain": ([ASK, ANSWER], None), "question": ([ASK], None),
    "turns": ([ASK, ANSWER, {"role": "user", "content": "And?"}, ANSWER], None),
    "system": ([{"role": "system", "content": "Be brief."}, ASK, ANSWER], None),
    "empty system": ([{"role": "system", "content": ""}, ASK], None),
    "spaces": ([{"role": "user", "content": "  a \n"}, {"role": "assistant", "content": "\n b  "}], None),
    "two users": ([ASK, ASK], None),
    "tools": ([ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]},
               {"role": "tool", "name": "weather", "content": "{\"sky\": \"blue\"}", "tool_call_id": "c12345678"}, ANSWER], TOOLS),
    "tools offered": ([ASK], TOOLS), "null content": ([ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}], TOOLS),
    "reasoning": ([ASK, {"role": "assistant", "reasoning_content": "Hm.", "content": "A river."}, ASK], None),
    "thinking": ([ASK, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nA river."}, ASK, ANSWER], None),
}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", default="build/gcc/tests")
    p.add_argument("templates", nargs="+")
    args = p.parse_args()
    tasks, wanted = [], []
    for path in args.templates:
        with open(path, encoding="utf-8", newline="") as f:
            source = f.read()
        for name, (messages, tools) in CONVERSATIONS.items():
            for prompt in (False, True):
                variables = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt,
                             "bos_token": "<s>", "eos_token": "</s>"}
                try:
                    text = environment().from_string(source).render(**json.loads(json.dumps(variables)))
                except Exception:
                    text = None
                tasks.append(json.dumps({"template": source, "variables": variables}))
                wanted.append((f"{os.path.basename(path)}, {name}{', prompt' if prompt else ''}", text))
    out = subprocess.run([os.path.join(args.bin, "render_template")], input="\n".join(tasks) + "\n", capture_output=True, text=True,
                         check=True)
    lines = [json.loads(line) for line in out.stdout.split("\n") if line]
    failed = 0
    for (name, text), got in zip(wanted, lines, strict=True):
        if got.get("text") != text:
            failed += 1
            print(f"not ok {name}\n    jinja2 {text!r:.200}\n    graft  {got!r:.200}")
    print(f"{len(lines) - failed} passed, {failed} failed ({sum(text is None for _, text in wanted)} refused by both)")
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
