#!/usr/bin/env bash
# One scoring in between, and a layer in 4 bits passes no gradient any more (bitsandbytes on a CPU).
#
# Packages: bitsandbytes 0.50.2, torch 2.13.0 (a CPU build). Only on a CPU with AVX512-BF16; on any other the script says so.
# Expected: `eval()` and `no_grad` change nothing that outlasts them: training, scoring and training again gives the same gradients.
# Seen: the first scoring of a Linear4bit without bias rearranges its weights for a faster product, and it keeps them so. That product
#   has no derivative. In the next training step the layers above still learn, those below get None. PyTorch warns once; the loss just
#   falls more slowly. `compute_dtype=torch.float32` is not obeyed either: the product is computed in bfloat16.
# Why it matters here: each epoch ends with a scoring, so that from the second epoch on QLoRA on a CPU would train the last layers
#   only. The product switches the rearrangement off (adapters/30_quantised) and tests gradients after a scoring.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 bitsandbytes==0.50.2 numpy==2.4.6
cat > "$folder/score.py" <<'PY'
import bitsandbytes as bnb
import torch
from torch import nn

torch.manual_seed(0)
frozen = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4").requires_grad_(False).to("cpu")
if not frozen.support_avx512bf16_for_cpu:
    print("not shown: this CPU has no AVX512-BF16, and bitsandbytes does not rearrange weights here")
    raise SystemExit(3)
below, head, x = nn.Linear(64, 64), nn.Linear(64, 1), torch.randn(8, 64)
model = nn.Sequential(below, nn.Tanh(), frozen, nn.Tanh(), head)


def gradients():
    model.train().zero_grad()
    logits = model(x)
    logits.sum().backward()
    return logits.detach(), below.weight.grad, head.weight.grad


before, *first = gradients()
with torch.no_grad():
    scored = model.eval()(x)
_, *second = gradients()
print(f"bitsandbytes {bnb.__version__}: gradient below the frozen layer {first[0].norm():.2f}, after one scoring {second[0]};")
print(f"the head's is still there ({second[1].norm():.2f}); logits off by {(scored - before).abs().max():.4f} in scoring")
assert first[0].norm() > 0 and second[0] is None and second[1].norm() > 0, "changed: gradients pass after a scoring"
PY
"$folder/venv/bin/python" "$folder/score.py" || { [ $? -eq 3 ] && exit 0; exit 1; }
echo "as described"
