#!/usr/bin/env python3
"""A GGUF of random weights in the shape of LLaMA-7B, to measure the speed and memory of training at that size.

    make_shaped.py --tokenizer SmolLM2.gguf --out shaped.gguf [--layers 32] [--type Q4_0] [--texts packs.jsonl]

4096 hidden, 11008 feed-forward, 32 heads, 32000 tokens: 3.8 GB in Q4_0 with 32 layers, written block by block (little memory).
Codes are random, the scales such that weights have a deviation of 0.02, so that activations stay finite. The tokenizer is the
byte-level BPE of --tokenizer cut to the model's vocabulary. --texts writes a few lines {"text"} of 1000 words: with
train.objective: pretrain, data.template: none and data.max_length: 512 they become packs of 512 tokens. Needs numpy and gguf.
"""
import argparse
import json

import gguf
import numpy as np

HIDDEN, FFN, HEADS, VOCAB = 4096, 11008, 32, 32000
STD = 0.02
# type -> (bytes of a block of 32, bytes of its scale, or scale and minimum: -7.5 scales)
TYPES = {"Q4_0": (18, 2), "Q4_1": (20, 4)}
CODE_DEVIATION = (16 * 16 - 1) ** 0.5 / 12**0.5
CHUNK = 1 << 15  # blocks written at once


def random_blocks(rng, name, n):
    """n blocks of 32 weights as bytes."""
    size, scales = TYPES[name]
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    d = np.full((n, 1), STD / CODE_DEVIATION, np.float16)
    parts = [d] if name == "Q4_0" else [d, (-7.5 * d).astype(np.float16)]
    blocks[:, :scales] = np.concatenate(parts, axis=1).view(np.uint8)
    return blocks.tobytes()


def tensors(layers, quantised):
    """(name, rows or None, columns, type) in the order of the file."""
    vector, kind = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType[quantised]
    yield "token_embd.weight", VOCAB, HIDDEN, kind
    for i in range(layers):
        p = f"blk.{i}."
        yield p + "attn_norm.weight", None, HIDDEN, vector
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield p + part + ".weight", HIDDEN, HIDDEN, kind
        yield p + "ffn_norm.weight", None, HIDDEN, vector
        yield p + "ffn_gate.weight", FFN, HIDDEN, kind
        yield p + "ffn_up.weight", FFN, HIDDEN, kind
        yield p + "ffn_down.weight", HIDDEN, FFN, kind
    yield "output_norm.weight", None, HIDDEN, vector
    yield "output.weight", VOCAB, HIDDEN, kind


def add_tokenizer(w, path):
    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    tokens = get("tokens")[:VOCAB]
    known = set(tokens)
    w.add_tokenizer_model(get("model"))
    w.add_tokenizer_pre(get("pre"))
    w.add_token_list(tokens)
    w.add_token_types(get("token_type")[:VOCAB])
    w.add_token_merges([m for m in get("merges") if m.replace(" ", "") in known])
    w.add_bos_token_id(get("bos_token_id"))
    w.add_eos_token_id(get("eos_token_id"))
    w.add_unk_token_id(get("unknown_token_id"))
    w.add_add_bos_token(False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="a GGUF whose tokenizer is taken")
    parser.add_argument("--out", required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--type", default="Q4_0", choices=sorted(TYPES))
    parser.add_argument("--texts", help="also write this file of texts to train on")
    parser.add_argument("--n-texts", type=int, default=4)
    args = parser.parse_args()
    w = gguf.GGUFWriter(args.out, "llama")
    w.add_name(f"random LLaMA shape, {args.layers} layers")
    w.add_context_length(2048)
    w.add_embedding_length(HIDDEN)
    w.add_block_count(args.layers)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(HEADS)
    w.add_rope_dimension_count(HIDDEN // HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(VOCAB)
    add_tokenizer(w, args.tokenizer)
    size = TYPES[args.type][0]
    listed = list(tensors(args.layers, args.type))
    for name, rows, cols, kind in listed:
        n_bytes = cols * 4 if rows is None else rows * cols // 32 * size
        shape = (cols,) if rows is None else (rows, cols // 32 * size)  # of a quantised tensor: in bytes
        w.add_tensor_info(name, shape, np.dtype(np.float32 if rows is None else np.uint8), n_bytes, raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_ti_data_to_file()
    rng = np.random.default_rng(1)
    out = w.fout[0]
    pad = lambda: out.write(bytes(-out.tell() % w.data_alignment))
    pad()
    for name, rows, cols, _ in listed:
        if rows is None:
            out.write(np.ones(cols, np.float32).tobytes())
        else:
            left = rows * cols // 32
            while left:
                n = min(left, CHUNK)
                out.write(random_blocks(rng, args.type, n))
                left -= n
        pad()
    w.close()
    if args.texts:
        with open(args.texts, "w", encoding="utf-8") as f:
            words = ["the", "a", "house", "river", "counts", "seven", "apples", "and", "of", "walks"]
            for _ in range(args.n_texts):
                f.write(json.dumps({"text": " ".join(rng.choice(words, 1000))}) + "\n")


main()
