#!/usr/bin/env bash
# A tuple as a parameter of a notebook arrives as a string, and papermill's record in the same notebook shows a list.
#
# Packages: papermill 2.7.0, nbformat 5.11.1, ipykernel 7.4.0.
# Expected: what has no Python literal of its own is refused, as NumPy's numbers are (TypeError). A tuple has one, `(0, 1, 2)`; at
#   worst it becomes a list, as in JSON.
# Seen: `seeds=(0, 1, 2)` is injected as `seeds = "(0, 1, 2)"`, alone, in lists and as a value of a dictionary. Nothing warns. Text can be iterated and
#   has a length, so that the notebook may run to its end: a loop over three seeds runs nine times, once for each letter, and
#   `1 in ...`, the one operation that would raise, need not occur. metadata.papermill.parameters of the output says [0, 1, 2].
# Why it matters here: a study is a notebook with parameters, and a list of seeds or learning rates held as a constant in Python is a tuple. To see what
#   ran, read the injected cell, not the record. The product's launcher passes texts of settings and plain values.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install papermill==2.7.0 nbformat==5.11.1 ipykernel==7.4.0
cat > "$folder/seeds.py" <<'PY'
import sys
import warnings
from importlib.metadata import version

import nbformat
import papermill

place = sys.argv[1]
about = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python"}, "language_info": {"name": "python"}}
given = nbformat.v4.new_code_cell("seeds = [0]\nspace = {}", metadata={"tags": ["parameters"]})
work = nbformat.v4.new_code_cell("runs = [f'run of seed {seed}' for seed in seeds]\nprint(len(runs), repr(seeds), space)")
nbformat.write(nbformat.v4.new_notebook(cells=[given, work], metadata=about), f"{place}/study.ipynb")
warnings.simplefilter("error", papermill.exceptions.PapermillWarning)


def run(**parameters: object) -> tuple[str, dict]:
    "What the notebook printed, and papermill's record of its parameters in the output."
    papermill.execute_notebook(f"{place}/study.ipynb", f"{place}/done.ipynb", parameters, progress_bar=False)
    done = nbformat.read(f"{place}/done.ipynb", 4)
    return done.cells[-1].outputs[0].text.strip(), done.metadata.papermill.parameters


as_list, as_tuple = (run(seeds=kind([0, 1, 2]), space={"dropout": kind([0.1, 0.3])}) for kind in (list, tuple))
print(f"papermill {version('papermill')}, a list: {as_list[0]}; a tuple: {as_tuple[0]}; recorded: {as_tuple[1]}")
assert as_list[0] == "3 [0, 1, 2] {'dropout': [0.1, 0.3]}"
assert as_tuple[0] == "9 '(0, 1, 2)' {'dropout': '(0.1, 0.3)'}", "changed: a tuple is no text"
assert as_tuple[1] == as_list[1] == {"seeds": [0, 1, 2], "space": {"dropout": [0.1, 0.3]}}, "changed: the record shows it"
PY
"$folder/venv/bin/python" "$folder/seeds.py" "$folder"
echo "as described"
