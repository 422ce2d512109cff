"""Writes dtypes.h: random blocks of every quantised type and their values by the gguf package (ggml's formulas), and
Q8_0, F16 and BF16 made from floats. Needs numpy and gguf. Run: python3 make_dtypes.py > dtypes.h"""
import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

rng = np.random.default_rng(3)
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def words(array, bytes_each):
    text = [f"0x{int(x):0{2 * bytes_each}x}" for x in array]
    per_line = 16 if bytes_each == 1 else 8
    return ",\n    ".join(", ".join(text[i : i + per_line]) for i in range(0, len(text), per_line))


def table(name, kind, array, bytes_each):
    print(f"static const {kind} {name}[] = {{\n    {words(array, bytes_each)}}};\n")


def bits(floats):
    return np.ascontiguousarray(floats, dtype=np.float32).view(np.uint32).ravel()


print("/* dtypes.h - made by make_dtypes.py from the gguf package " + "(ggml's formulas): do not edit. */\n#include <stdint.h>\n")
for name, offsets in HALVES.items():
    block, size = gguf.GGML_QUANT_SIZES[T[name]]
    blocks = 1 if block == 256 else 2
    data = rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    for offset in offsets:
        half = rng.normal(0, 0.05, (blocks, 1)).astype(np.float16)
        data[:, offset : offset + 2] = half.view(np.uint8)
    values = quants.dequantize(data.reshape(1, -1), T[name])
    table(f"{name.lower()}_bytes", "uint8_t", data.ravel(), 1)
    table(f"{name.lower()}_values", "uint32_t", bits(values), 4)

floats = rng.normal(0, 3, 64).astype(np.float32)
floats[:16] = [0, -0.0, 65504, 65519.9, 65520, -1e9, 6e-8, 3e-8, 2.9802322e-8, 1e-4, -6.1e-5, np.inf, -np.inf, 1.00048828125,
               1.00146484375, 5.9604645e-8]
table("float_values", "uint32_t", bits(floats), 4)
with np.errstate(over="ignore"):
    table("f16_bytes", "uint8_t", floats.astype(np.float16).view(np.uint8), 1)
table("bf16_bytes", "uint8_t", quants.quantize(floats.reshape(1, -1), T.BF16).view(np.uint8).ravel(), 1)
plain = rng.normal(0, 3, 64).astype(np.float32)
table("plain_values", "uint32_t", bits(plain), 4)
table("plain_q8_0_bytes", "uint8_t", quants.quantize(plain.reshape(1, -1), T.Q8_0).ravel(), 1)
