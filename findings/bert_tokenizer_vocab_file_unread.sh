#!/usr/bin/env bash
# BertTokenizer(vocab_file="vocab.txt") opens no file and makes every word [UNK] (transformers 5).
#
# Package: transformers 5.23.0.
# Expected: the argument by which each version up to 4 took a vocabulary still takes it, or raises a TypeError. The class's own text says of
#   `vocab`: "If not provided, vocabulary is loaded from `vocab_file`."
# Seen: only `vocab` is read. `vocab_file` ends in **kwargs, as does any misspelt name, also with a path that does not exist. The
#   tokenizer has its five special tokens and reads every text as a row of [UNK]; no warning, and it is saved and loaded like that.
#   RobertaTokenizer(vocab_file=..., merges_file=...) drops the words altogether: <s></s>. `from_pretrained` reads the same file.
# Why it matters here: to an encoder prepared by an older script all posts of a length are the same. The product refuses a folder whose
#   tokenizer has nothing but special tokens (model/30_encoders).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install transformers==5.23.0 tokenizers==0.23.3 numpy==2.4.6
cat > "$folder/words.py" <<'PY'
import json
import sys
import warnings
from pathlib import Path

import transformers
from transformers import BertTokenizer, RobertaTokenizer

warnings.simplefilter("error")
place = Path(sys.argv[1])
(place / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "i", "feel", "low"]))
letters = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "l", "o", "w"]
(place / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(letters)}))
(place / "merges.txt").write_text("#version: 0.2\n")

by_old_name = BertTokenizer(vocab_file=str(place / "vocab.txt"))
nowhere = BertTokenizer(vocab_file="/no/such/file")
by_name = BertTokenizer(vocab=str(place / "vocab.txt"))
by_folder = BertTokenizer.from_pretrained(str(place))
bpe = RobertaTokenizer(vocab_file=str(place / "vocab.json"), merges_file=str(place / "merges.txt"))
for what, tokenizer in {"vocab_file=": by_old_name, "vocab=": by_name, "RoBERTa, vocab_file=": bpe}.items():
    read = tokenizer.convert_ids_to_tokens(tokenizer("i feel low").input_ids)
    print(f"transformers {transformers.__version__}, {what}: {len(tokenizer)} tokens, 'i feel low' is", " ".join(read))
assert len(by_old_name) == len(nowhere) == 5, "changed: vocab_file is read or refused"
by_old_name.save_pretrained(place / "saved")
saved = BertTokenizer.from_pretrained(place / "saved")
assert by_old_name.tokenize("I feel low") == saved.tokenize("I feel low") == ["[UNK]"] * 3
assert "loaded from `vocab_file`" in BertTokenizer.__doc__, "changed: the documentation"
assert by_name.tokenize("I feel low") == by_folder.tokenize("I feel low") == ["i", "feel", "low"]
assert bpe("low").input_ids == bpe("").input_ids, "changed: RoBERTa's files are read"
PY
"$folder/venv/bin/python" "$folder/words.py" "$folder"
echo "as described"
