#!/usr/bin/env bash
# Triton lays the threads of a gather along the FIRST dimension of its tile.
#
# Package: triton 3.6.0, compiled for an H100 (sm_90); no GPU is needed.
# Expected: a tile of addresses row * C + index[row, column], whose neighbouring columns lie side by side in memory, is read
#   with neighbouring threads on neighbouring columns, as for any tile with the last dimension contiguous.
# Seen: where the index itself was loaded, Triton cannot know the contiguity, treats both dimensions alike and takes
#   order = [0, 1]: the 32 threads of a warp read 32 rows, so one load touches 32 cache lines instead of two.
# Why it matters here: the position terms of DeBERTa's attention are such a gather. The tile has to be built transposed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install triton==3.6.0 numpy==2.3.5
cat > "$folder/gather.py" <<'PY'
import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def take(values, index, out, C: tl.constexpr, N: tl.constexpr):
    row, column = tl.arange(0, N), tl.arange(0, N)
    place = tl.load(index + row[:, None] - column[None, :] + N)
    found = tl.load(values + row[:, None] * C + place)
    tl.store(out + tl.arange(0, N), tl.sum(found, 1))


signature = {"values": "*fp32", "index": "*i32", "out": "*fp32", "C": "constexpr", "N": "constexpr"}
source = ASTSource(take, signature=signature, constexprs={(3,): 512, (4,): 64})
ir = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttgir"]
loads = re.findall(r"tt\.load .*tensor<64x64x!tt\.ptr<f32>, (#blocked\d*)>", ir)
layout = re.search(rf"{loads[0]} = #ttg\.blocked<(.*)>", ir).group(1)
print("triton", triton.__version__, "the gather of 64 x 64 values has", layout)
assert "threadsPerWarp = [32, 1]" in layout and "order = [0, 1]" in layout, "changed: the layout of a gather is another one"
PY
"$folder/venv/bin/python" "$folder/gather.py"
echo "as described"
