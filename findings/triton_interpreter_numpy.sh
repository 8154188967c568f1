#!/usr/bin/env bash
# Triton's interpreter cannot run a loop whose bound was loaded, with a new NumPy.
#
# Packages: triton 3.6.0 with numpy 2.4.6 and torch 2.13.0 (any build; nothing runs on a GPU).
# Expected: TRITON_INTERPRET=1 runs any kernel on a CPU, to test it without a GPU; the documentation names it for that.
# Seen: `range(0, length)` with `length = tl.load(...)` raises "TypeError: only 0-dimensional arrays can be converted to Python
#   scalars", because the interpreter calls int() on an array of one element, which NumPy refuses now. A bound that is an argument works.
# Why it matters here: kernels for packed texts load the length of each text, so that their CPU test needs an older NumPy.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" -q install triton==3.6.0  # by itself: a build of torch for CUDA may ask for another one
cat > "$folder/loop.py" <<'PY'
import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError


@triton.jit
def count(length_at, out, given):
    length, found = tl.load(length_at), 0
    for _ in range(0, given):
        found += 1
    for _ in range(0, length):
        found += 1
    tl.store(out, found)


length, out = torch.tensor([5], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
try:
    count[(1,)](length, out, 3)
except InterpreterError as err:
    print("triton", triton.__version__, "numpy", np.__version__, err)
    assert "only 0-dimensional arrays" in str(err), "changed: another error"
else:
    raise SystemExit(f"changed: the loop ran, {int(out)} rounds")
PY
TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/loop.py"
echo "as described"
