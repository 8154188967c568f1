#!/usr/bin/env bash
# A LoRA adapter of a BERT classifier, saved and loaded over the same checkpoint, gives other logits (peft).
#
# Packages: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (a CPU build).
# Expected: `task_type=SEQ_CLS` "adds the classifier head to the trained and saved modules": an adapter with it, loaded over the same
#   bare encoder, reproduces the logits of the process that trained it.
# Seen: only `classifier` is trained and saved. The pooler between encoder and classifier is missing in a bare checkpoint as well, is drawn
#   anew by each process, and is neither trained nor saved: logits of another process differ by more than their own spread.
# Why it matters here: the loss shows only where the adapter is loaded. The product names all parts of a head, family by family
#   (adapters/10_targets), and tests adapters in another process under another seed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
cat > "$folder/pooler.py" <<'PY'
import sys

import peft
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, logging

logging.set_verbosity_error()
place = sys.argv[1]
shape = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=100)
BertModel(BertConfig(**shape), add_pooling_layer=False).save_pretrained(f"{place}/encoder")
ids = torch.randint(5, 99, (32, 12), generator=torch.Generator().manual_seed(0))


def base(seed):
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(f"{place}/encoder", num_labels=1)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits.squeeze(-1)


off = {}
for name, more in {"classifier": {}, "pooler too": {"modules_to_save": ["bert.pooler", "classifier"]}}.items():
    model = get_peft_model(base(1), LoraConfig(task_type=TaskType.SEQ_CLS, r=8, target_modules=["query", "value"], **more)).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(20):
        torch.nn.functional.binary_cross_entropy_with_logits(model(input_ids=ids).logits[:, 0], (ids[:, 1] > 50).float()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(f"{place}/adapter")
    again = PeftModel.from_pretrained(base(2), f"{place}/adapter")
    off[name] = float((logits(again) - logits(model)).abs().max() / logits(model).std())
print(f"peft {peft.__version__}, logits of another process off, in units of their spread:", {n: f"{v:.3g}" for n, v in off.items()})
assert off["classifier"] > 0.5 and off["pooler too"] == 0, "changed: the pooler is trained and saved"
PY
"$folder/venv/bin/python" "$folder/pooler.py" "$folder"
echo "as described"
