"""Writes dtypes.h: random blocks of every quantised type and their values by the gguf package (ggml's formulas), and
F16, BF16 and the quantised types that graft makes made from floats; the K types by ggml itself, NF4 by the few lines below.
Needs numpy, gguf and llama_cpp (for its libggml-base.so). Run: python3 make_dtypes.py > dtypes.h"""
import ctypes
import glob
import importlib.util
import os

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

# Quantisers: 512 weights of several sizes, among them a block of zeros, one without negatives and one of a single value.
weights = (rng.normal(0, 1, (16, 32)) * 10.0 ** rng.uniform(-1.5, 0.5, (16, 1))).astype(np.float32)
weights[3], weights[5], weights[6] = 0, np.abs(weights[5]), 0.25
weights = weights.ravel()
table("weight_values", "uint32_t", bits(weights), 4)
for name in ("Q4_0", "Q5_0", "Q5_1", "Q8_0"):
    table(f"weight_{name.lower()}_bytes", "uint8_t", quants.quantize(weights.reshape(1, -1), T[name]).ravel(), 1)
package = importlib.util.find_spec("llama_cpp").submodule_search_locations[0]
ggml = ctypes.CDLL(glob.glob(os.path.join(package, "lib", "libggml-base.so"))[0])
pointer = ctypes.c_void_p
for name, function in (("Q4_K", "quantize_row_q4_K_ref"), ("Q5_K", "quantize_row_q5_K_ref"), ("Q6_K", "quantize_row_q6_K_ref")):
    made = np.zeros(len(weights) // 256 * gguf.GGML_QUANT_SIZES[T[name]][1], np.uint8)
    getattr(ggml, function)(weights.ctypes.data_as(pointer), made.ctypes.data_as(pointer), ctypes.c_int64(len(weights)))
    table(f"weight_{name.lower()}_bytes", "uint8_t", made, 1)

NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
                -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
                0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0])  # the paper's appendix E, bitsandbytes
blocks = weights.astype(np.float64).reshape(-1, 64)
halves = np.abs(blocks).max(1)[:, None].astype(np.float16)
scales = halves.astype(np.float64)
codes = np.abs(blocks[:, :, None] / np.where(scales > 0, scales, np.inf)[:, :, None] - NF4).argmin(2)
nf4 = np.concatenate([halves.view(np.uint8), (codes[:, :32] | codes[:, 32:] << 4).astype(np.uint8)], axis=1)
table("weight_nf4_bytes", "uint8_t", nf4.ravel(), 1)
table("nf4_values", "uint32_t", bits(NF4.astype(np.float32)[codes] * scales.astype(np.float32)), 4)
