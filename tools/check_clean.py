"""Fail unless the notebooks are clean and the exported modules agree with them.

Runs nbdev_clean (on nbs/ and on every template studies/*.ipynb, by name) and nbdev_export, and fails if this changes a
file: uncommitted edits are allowed, edits that are not exported are not. With CI=true in a git checkout, `git status`
must be empty as well. Notebooks have no outputs (except in studies/gallery/), every template has exactly one cell
tagged `parameters`, and nbdev must not skip a notebook.
"""

import hashlib
import os
import sys
from pathlib import Path

from nbfiles import GALLERY, ROOT, git, name_of, read, skip_reason, templates, tracked

WATCHED = ("*.*", "nbs/**/*", "criteria_hpo/**/*", "studies/*.ipynb")


def fingerprints() -> dict[str, str]:
    """Hashes of all files that cleaning and exporting can change, by path relative to the root."""
    files = {path for pattern in WATCHED for path in ROOT.glob(pattern) if path.is_file()}
    return {
        path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if "__pycache__" not in path.parts and ".ipynb_checkpoints" not in path.parts
    }


def clean_and_export() -> None:
    """Do what `nbdev_clean` and `nbdev_export` do on the command line."""
    from nbdev.clean import nbdev_clean
    from nbdev.doclinks import nbdev_export

    nbdev_clean()
    for template in templates():
        nbdev_clean(str(template))
    nbdev_export()


def problems_of(path: Path) -> list[str]:
    """The problems of one notebook, as lines."""
    try:
        notebook = read(path)
    except (ValueError, KeyError) as error:
        return [f"{name_of(path)}: not a notebook ({type(error).__name__}: {error})"]
    found = []
    with_outputs = [str(number) for number, cell in enumerate(notebook.cells, 1) if cell.outputs]
    if with_outputs and GALLERY not in path.parents:
        found.append(f"outputs in cell {', '.join(with_outputs)}: run `make clean-outputs`")
    if path in templates() and (tagged := sum("parameters" in cell.tags for cell in notebook.cells)) != 1:
        found.append(f"{tagged} cells are tagged `parameters`; a template needs exactly one")
    if skipped := skip_reason(notebook):
        found.append(skipped)
    return [f"{name_of(path)}: {problem}" for problem in found]


def main() -> int:
    """Run all checks and return 1 if one fails."""
    os.chdir(ROOT)
    notebooks = tracked()
    problems = [problem for path in notebooks for problem in problems_of(path)]
    if not any("not a notebook" in problem for problem in problems):
        before = fingerprints()
        clean_and_export()
        after = fingerprints()
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        problems += [f"{name}: changed by cleaning and exporting; commit the changed file" for name in changed]
    if os.environ.get("CI") == "true" and (status := git("status", "--porcelain")):
        problems.append(f"git status is not empty:\n{status.rstrip()}")
    modules = list(ROOT.glob("criteria_hpo/**/*.py"))
    print("\n".join(problems) or f"clean: {len(notebooks)} notebooks, {len(modules)} modules")
    return min(1, len(problems))


if __name__ == "__main__":
    sys.exit(main())
