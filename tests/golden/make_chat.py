#!/usr/bin/env python3
"""Render conversations with the Jinja sources in chat/ through transformers' apply_chat_template ->
chat_cases.json.

smollm2.jinja is the text inside SmolLM2-135M-Instruct's GGUF; chatml, llama-2, llama-3, qwen2 and qwen2.5
are the models' published templates without their tool-calling parts; alpaca and belle have none published
and are written here from their text forms.

    make_chat.py [--out tests/golden/chat_cases.json]
"""
import argparse
import glob
import json
import os

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
BOS_EOS = {
    "smollm2": ("<|im_start|>", "<|im_end|>"), "chatml": ("<|im_start|>", "<|im_end|>"), "qwen2":
    (None, "<|im_end|>"), "qwen2.5": (None, "<|im_end|>"), "llama-2": ("<s>", "</s>"), "llama-3":
    ("<|begin_of_text|>", "<|eot_id|>"), "alpaca": ("<s>", "</s>"), "belle": ("<s>", "</s>")
}


def turn(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    [turn("user", "What is the capital of France?")],
    [turn("system", "You answer in one word."),
     turn("user", "What is the capital of France?")],
    [turn("user", "你好，请介绍一下北京。"), turn("assistant", "北京是中国的首都。\n它有三千多年的历史。")],
    [turn("user", "1 + 1 = ?"), turn("assistant", "2"),
     turn("user", "And 2 + 2?")],
    [
        turn("system", "  Be brief.\n"),
        turn("user", " leading and trailing \n"),
        turn("assistant", "\n kept? "),
        turn("user", "Yes 😀\n\nno"),
        turn("assistant", "Fine.")
    ],
    [
        turn("user", "Say <|im_start|> or [INST] or </s> or <|eot_id|>."),
        turn("assistant", "<|im_end|> is text here. {{ content }} {% if %}")
    ],
    [turn("system", ""), turn("user", "An empty system text."),
     turn("assistant", "")],
]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=os.path.join(HERE, "chat_cases.json"))
    args = parser.parse_args()
    cases = []
    for path in sorted(glob.glob(os.path.join(HERE, "chat", "*.jinja"))):
        name = os.path.basename(path)[:-len(".jinja")]
        bos, eos = BOS_EOS[name]
        with open(path, encoding="utf-8") as f:
            source = f.read()
        tok = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token=bos, eos_token=eos,
                                      chat_template=source)
        for messages in CONVERSATIONS:
            for prompt in ([True, False] if messages[-1]["role"] == "user" else [False]):
                text = tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
                cases.append({
                    "template": name, "jinja": f"chat/{name}.jinja", "bos_token": bos, "eos_token": eos,
                    "messages": messages, "add_generation_prompt": prompt, "text": text
                })
    with open(args.out, "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases) + "\n]\n")
    print(len(cases), "cases in", args.out)


if __name__ == "__main__":
    main()
