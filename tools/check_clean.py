"""Fail unless the notebooks are clean and the exported modules are theirs.

Runs nbdev_clean (on nbs/ and on every template studies/*.ipynb, by name) and nbdev_export, and fails if that changed a
file: uncommitted edits are no error, an edit that was not exported is. With CI=true in a git checkout, `git status`
must be empty as well. Notebooks carry no outputs (studies/gallery/ excepted), and every template has exactly one cell
tagged `parameters`.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WATCHED = ("*.*", "nbs/**/*", "criteria_hpo/**/*", "studies/*.ipynb")
GALLERY = ROOT / "studies" / "gallery"


def fingerprints() -> dict[str, str]:
    """Hash of every file that cleaning and exporting could touch, by its path from the root."""
    files = {path for pattern in WATCHED for path in ROOT.glob(pattern) if path.is_file()}
    return {
        path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files if "__pycache__" not in path.parts and ".ipynb_checkpoints" not in path.parts
    }


def clean_and_export() -> None:
    """What `nbdev_clean` and `nbdev_export` do on the command line."""
    from nbdev.clean import nbdev_clean
    from nbdev.doclinks import nbdev_export

    nbdev_clean()
    for template in templates():
        nbdev_clean(str(template))
    nbdev_export()


def templates() -> list[Path]:
    """The parameterised notebooks of studies/; the folders below it hold executed ones."""
    return sorted(ROOT.glob("studies/*.ipynb"))


def git(*args: str) -> str | None:
    """Output of a git command, or None outside a checkout."""
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def tracked_notebooks() -> list[Path]:
    """Notebooks in git; outside a checkout those of nbs/ and the templates."""
    listed = git("ls-files", "-z", "*.ipynb") or ""
    here = {*ROOT.glob("nbs/**/*.ipynb"), *templates(), *(ROOT / name for name in listed.split("\0") if name)}
    return sorted(path for path in here if path.is_file() and ".ipynb_checkpoints" not in path.parts)


def problems_of(path: Path) -> list[str]:
    """What is wrong with one notebook."""
    name = path.relative_to(ROOT).as_posix()
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError) as error:
        return [f"{name}: not a notebook ({type(error).__name__}: {error})"]
    found = []
    if GALLERY not in path.parents and (full := [i for i, cell in enumerate(cells, 1) if cell.get("outputs")]):
        found.append(f"{name}: outputs in cell {', '.join(map(str, full))}: run `make clean-outputs`")
    if path in templates():
        tagged = sum("parameters" in cell["metadata"].get("tags", []) for cell in cells)
        if tagged != 1:
            found.append(f"{name}: {tagged} cells are tagged `parameters`; a template needs exactly one")
    return found


def main() -> int:
    """Run every check; 1 if one fails."""
    os.chdir(ROOT)
    notebooks = tracked_notebooks()
    problems = [problem for path in notebooks for problem in problems_of(path)]
    if not any("not a notebook" in problem for problem in problems):
        before = fingerprints()
        clean_and_export()
        after = fingerprints()
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        problems += [f"{name}: cleaning and exporting changed it; commit it as it is now" for name in changed]
    if os.environ.get("CI") == "true" and (status := git("status", "--porcelain")):
        problems.append(f"git status is not empty on CI:\n{status.rstrip()}")
    modules = list(ROOT.glob("criteria_hpo/*.py"))
    print("\n".join(problems) or f"clean: {len(notebooks)} notebooks, {len(modules)} modules")
    return min(1, len(problems))


if __name__ == "__main__":
    sys.exit(main())
