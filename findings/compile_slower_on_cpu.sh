#!/usr/bin/env bash
# torch.compile makes the training of a small BERT slower on a CPU.
#
# Packages: torch 2.13.0 (a CPU build is enough; needs g++), transformers 5.23.0.
# Expected: Inductor fuses the element-wise operations, which are most of the time of a small encoder, so a step gets faster; the
#   first step is slow.
# Seen: with dynamic shapes (batches differ in length), one thread, eager attention and dropout 0.1, a step of two layers of 128
#   takes 1.1 to 1.4 times as long compiled as eager, after half a minute of compiling.
# Why it matters here: `training.gpu.compiled` has no counterpart for CPUs; a measurement would never choose it.
set -euo pipefail
command -v g++ >/dev/null || { echo "needs g++, which Inductor calls; install it first" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 transformers==5.23.0 numpy==2.3.5
cat > "$folder/step.py" <<'PY'
import time

import torch
from transformers import BertConfig, BertForSequenceClassification

torch.set_num_threads(1)
torch.manual_seed(0)
shape = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512, num_labels=1)
model = BertForSequenceClassification(BertConfig(**shape, vocab_size=3000, attn_implementation="eager")).train()
batches = [torch.randint(5, 3000, (16, int(length))) for length in torch.randint(60, 128, (12,))]


def seconds(rounds: int = 5) -> float:
    found = []
    for _ in range(rounds + 1):
        start = time.process_time()
        for ids in batches:
            model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
        found.append(time.process_time() - start)
    return min(found[1:])


eager = seconds()
model.compile(dynamic=True)
compiled = seconds()
print(f"torch {torch.__version__}: compiled / eager = {compiled / eager:.2f} ({1000 * eager / 12:.0f} ms a step eager)")
assert compiled > 1.03 * eager, "changed: compiled is not slower"
PY
"$folder/venv/bin/python" "$folder/step.py"
echo "as described"
