"""Which notebooks there are, and what a cell of one says: shared by the other tools."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT / "studies" / "gallery"
DIRECTIVE = re.compile(r"^#\s*\|\s*(.+?)\s*$", re.MULTILINE)


def sources() -> list[Path]:
    """The notebooks that the package is written in, index.ipynb among them."""
    return sorted(ROOT.glob("nbs/**/*.ipynb"))


def templates() -> list[Path]:
    """The parameterised notebooks of studies/, by name: the folders below it hold executed ones."""
    return sorted(ROOT.glob("studies/*.ipynb"))


def tracked() -> list[Path]:
    """Notebooks in git; outside a checkout the sources and the templates."""
    listed = git("ls-files", "-z", "*.ipynb") or ""
    here = {*sources(), *templates(), *(ROOT / name for name in listed.split("\0") if name)}
    return sorted(path for path in here if path.is_file())


def git(*args: str) -> str | None:
    """Output of a git command, or None outside a checkout."""
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def name_of(path: Path) -> str:
    """The path as a user would type it."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


@dataclass(frozen=True)
class Cell:
    """One cell: its kind (code, markdown or raw), its text, and what nbdev and papermill read from it."""

    kind: str
    source: str
    outputs: int
    tags: tuple[str, ...]

    @property
    def directives(self) -> set[str]:
        """nbdev's directives, e.g. {"export"} or {"eval: false"}."""
        return set(DIRECTIVE.findall(self.source)) if self.kind == "code" else set()

    @property
    def exported(self) -> bool:
        """Whether the cell becomes part of the module."""
        return any(directive.split()[0] in ("export", "exporti", "exports") for directive in self.directives)

    @property
    def lines(self) -> int:
        """Lines of code: neither blank nor a directive."""
        return sum(bool(line.strip()) for line in DIRECTIVE.sub("", self.source).splitlines())


@dataclass(frozen=True)
class Notebook:
    """A notebook as far as the tools look at it."""

    path: Path
    cells: tuple[Cell, ...]
    language: str | None

    @property
    def code(self) -> list[Cell]:
        """The code cells that say something, without the one that names the module."""
        kept = (cell for cell in self.cells if cell.kind == "code" and cell.source.strip())
        return [cell for cell in kept if not any(d.startswith("default_exp") for d in cell.directives)]


def read(path: Path) -> Notebook:
    """The notebook at `path`; ValueError or KeyError when it is none."""
    content = json.loads(path.read_text(encoding="utf-8"))
    cells = (
        Cell(
            cell["cell_type"],
            "".join(cell["source"]),
            len(cell.get("outputs", [])),
            tuple(cell["metadata"].get("tags", [])),
        )
        for cell in content["cells"]
    )
    return Notebook(path, tuple(cells), content["metadata"].get("kernelspec", {}).get("language"))


def refusal(notebook: Notebook) -> str:
    """Why nbdev would run nothing of this notebook while calling it a success, or ''."""
    if notebook.language != "python":
        return f'metadata.kernelspec.language is {notebook.language!r}: write "python", in lower case'
    head = "\n".join(cell.source for cell in notebook.cells[:2] if cell.kind in ("raw", "markdown"))
    if re.search(r"^(- )?skip_exec:\s*(?!(false|0|no)\b)\S", head, re.MULTILINE | re.IGNORECASE):
        return "its front matter has skip_exec: remove it"
    return ""
