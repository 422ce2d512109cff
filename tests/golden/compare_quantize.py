"""Quantised GGUF files of graft merge beside those of llama.cpp's quantiser: the type and the bytes of every tensor.
python3 compare_quantize.py GRAFT MODEL-F32.gguf   (needs numpy, gguf and llama_cpp; ends with 1 where something differs)"""
import ctypes
import os
import subprocess
import sys
import tempfile

import llama_cpp
import numpy as np
from gguf import GGUFReader

graft, model = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
failed = False
with tempfile.TemporaryDirectory() as folder:
    theirs, ours = os.path.join(folder, "theirs.gguf"), os.path.join(folder, "ours.gguf")
    for name, file_type in (("q4_k_m", 15), ("q5_k_m", 17), ("q6_k", 18), ("q8_0", 7)):
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = file_type
        if llama_cpp.llama_model_quantize(model.encode(), theirs.encode(), ctypes.byref(parameters)) != 0:
            sys.exit(f"llama.cpp cannot quantise {model}")
        subprocess.run([graft, "merge", "--model", model, "--out", ours, "--dtype", name, "--overwrite"], check=True,
                       capture_output=True)
        a, b = GGUFReader(theirs), GGUFReader(ours)
        found = {t.name: t for t in b.tensors}
        types = [t.name for t in a.tensors if t.name not in found or t.tensor_type != found[t.name].tensor_type]
        other = [t.name for t in a.tensors if t.name not in types and not np.array_equal(t.data, found[t.name].data)]
        same_type = b.fields["general.file_type"].parts[-1][0] == file_type
        print(f"{name}: {len(a.tensors)} tensors, {len(types)} of another type, {len(other)} with other bytes")
        failed |= bool(types or other or len(a.tensors) != len(b.tensors) or not same_type)
sys.exit(failed)
