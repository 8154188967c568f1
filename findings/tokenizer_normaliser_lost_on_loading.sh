#!/usr/bin/env bash
# A tokenizer with a normaliser of its own, saved and loaded, gives other tokens than before and than its own tokenizer.json.
#
# Packages: transformers 5.23.0, tokenizers 0.23.3.
# Expected: `save_pretrained` writes the whole tokenizer to tokenizer.json, and `from_pretrained` reads it: the tokens are the same.
# Seen: the file is whole, and `Tokenizer.from_file` obeys it. But where the class has an `__init__` of its own (BERT, RoBERTa, XLM-R,
#   DeBERTa-v2 ...) transformers takes the vocabulary from it and builds normaliser and pre-tokeniser anew, from the class and
#   tokenizer_config.json, without a word. A folder that names no class gets that of its model_type, and the same.
# Why it matters here: a step for posts (links or names replaced, case kept) acts while its author trains and not where the folder is
#   loaded. The product opens encoders with AutoTokenizer, in training as in prediction, so that its scores agree with each other; a
#   service that reads tokenizer.json by itself, beside an ONNX graph, sees other tokens. It compares both on three sentences when it
#   loads a tokenizer, and logs a line that names the file and the class that keeps it (nbs/model/30_encoders.ipynb, reads_otherwise).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
cat > "$folder/tokens.py" <<'PY'
import json
import sys
from pathlib import Path

import transformers
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer, DebertaV2Tokenizer, RobertaTokenizer, XLMRobertaTokenizer

LETTERS = [*"ifelowhtpxrgnkI:/.", "\u2581", "\u0120"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "i", "feel", "low", "link", "http", ":", "/", "x", ".", "org"]
TEXT = "I feel low http://x.org"


def pieces(*special: str) -> list[tuple[str, float]]:
    return [(token, 0.0) for token in special] + [(token, -2.0) for token in LETTERS]


made = {
    "bert": BertTokenizer({token: i for i, token in enumerate(WORDS)}),
    "roberta": RobertaTokenizer({t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *LETTERS])}, []),
    "xlm-roberta": XLMRobertaTokenizer(pieces("<s>", "<pad>", "</s>", "<unk>", "<mask>")),
    "deberta-v2": DebertaV2Tokenizer(pieces("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")),
}
for name, tokenizer in made.items():
    backend, place = tokenizer.backend_tokenizer, Path(sys.argv[1]) / name
    links = normalizers.Replace(Regex(r"https?://\S+"), "link")
    backend.normalizer = normalizers.Sequence([backend.normalizer, links] if backend.normalizer else [links])
    if name == "bert":
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save_pretrained(place)
    before, loaded = tokenizer(TEXT).input_ids, AutoTokenizer.from_pretrained(place)
    of_file, after = Tokenizer.from_file(str(place / "tokenizer.json")).encode(TEXT).ids, loaded(TEXT).input_ids
    print(f"transformers {transformers.__version__}, {name}: {len(before)} tokens, loaded {len(after)}, by file {len(of_file)}")
    if name == "bert":
        print(" ".join(tokenizer.convert_ids_to_tokens(before)), "->", " ".join(loaded.convert_ids_to_tokens(after)))
        assert "BertPreTokenizer" in str(loaded.backend_tokenizer.pre_tokenizer), "changed: the pre-tokeniser is kept"
    assert "https?" in (place / "tokenizer.json").read_text() and type(loaded) is type(tokenizer)
    assert before == of_file != after, f"changed: {name} keeps its normaliser"
    about = json.loads((place / "tokenizer_config.json").read_text())
    (place / "config.json").write_text(json.dumps({"model_type": name}))
    for named, tokens in ((None, after), ("TokenizersBackend", before)):
        (place / "tokenizer_config.json").write_text(json.dumps(about | {"tokenizer_class": named}))
        assert AutoTokenizer.from_pretrained(place)(TEXT).input_ids == tokens, f"changed: {name} with the class {named}"
print("without tokenizer_class the same; with TokenizersBackend as tokenizer_class the tokens are those of the file")
PY
"$folder/venv/bin/python" "$folder/tokens.py" "$folder"
echo "as described"
