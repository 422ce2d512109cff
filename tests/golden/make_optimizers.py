"""optimizers.json: a matrix after five updates by torch.optim.AdamW, transformers' Adafactor, and AdamW with moments in 8 bits as
bitsandbytes keeps them (its dynamic map and blocks of 256, written out here in numpy). Values and gradients are sines, so that they
need not be stored.   python tests/golden/make_optimizers.py"""
import json, pathlib
import numpy as np, torch
from transformers.optimization import Adafactor

ROWS, COLS, STEPS, LR, DECAY = 24, 256, 5, 1e-2, 0.1
i = np.arange(ROWS * COLS, dtype=np.float64)
start = np.float32(0.5 * np.sin(0.7 * i)).reshape(ROWS, COLS)
grads = [np.float32(np.cos(1.3 * i + t) * 10.0 ** (-3 + np.sin(0.01 * i))).reshape(ROWS, COLS) for t in range(1, STEPS + 1)]

def torch_run(make):
    w = torch.nn.Parameter(torch.tensor(start.copy()))
    o = make([w])
    for g in grads:
        w.grad = torch.tensor(g)
        o.step()
    return w.detach().numpy()

def dynamic_map(signed):  # bitsandbytes.functional.create_dynamic_map, 7 exponent bits of 8
    data = []
    for e in range(7):
        items = 2 ** e + 1 if signed else 2 ** (e + 1) + 1
        bounds = np.linspace(0.1, 1, items)
        means = (bounds[:-1] + bounds[1:]) / 2 * 10.0 ** (e - 6)
        data += list(means) + (list(-means) if signed else [])
    return np.float32(sorted(data + [0, 1.0]))

def quantised(x, table):
    blocks = x.reshape(-1, 256)
    scale = np.abs(blocks).max(1, keepdims=True)
    norm = np.float32(blocks / np.where(scale == 0, 1, scale))
    code = np.abs(norm[..., None] - table).argmin(-1)
    return np.float32(table[code] * scale).reshape(x.shape)

def adamw_8bit():
    w, m, v = np.float64(start), np.zeros((ROWS, COLS)), np.zeros((ROWS, COLS))
    for t, g in enumerate(np.float64(grads), 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w * (1 - LR * DECAY) - LR / (1 - 0.9 ** t) * m / (np.sqrt(v / (1 - 0.999 ** t)) + 1e-8)
        m, v = np.float64(quantised(np.float32(m), dynamic_map(True))), np.float64(quantised(np.float32(v), dynamic_map(False)))
    return w

results = {
    "adamw": torch_run(lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=DECAY)),
    "adafactor": torch_run(
        lambda p: Adafactor(p, lr=LR, weight_decay=DECAY, relative_step=False, scale_parameter=False, beta1=None)),
    "adamw_8bit": adamw_8bit(),
}
keep = slice(0, None, 7)  # every seventh value
out = {"rows": ROWS, "cols": COLS, "steps": STEPS, "stride": 7}
out.update({k: [float(f"{x:.8g}") for x in r.reshape(-1)[keep]] for k, r in results.items()})
pathlib.Path(__file__).with_name("optimizers.json").write_text(json.dumps(out) + "\n")
