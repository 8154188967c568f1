"""Find the notebooks of the repository and read their cells; shared by the other tools."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT / "studies" / "gallery"
DIRECTIVE = re.compile(r"^#\s*\|\s*(.+?)\s*$", re.MULTILINE)


def sources() -> list[Path]:
    """The notebooks below nbs/, including index.ipynb."""
    return sorted(ROOT.glob("nbs/**/*.ipynb"))


def templates() -> list[Path]:
    """The parameterised notebooks studies/*.ipynb; the folders below studies/ contain executed copies."""
    return sorted(ROOT.glob("studies/*.ipynb"))


def tracked() -> list[Path]:
    """The notebooks in git, the sources and the templates; outside a checkout only the last two."""
    listed = git("ls-files", "-z", "*.ipynb") or ""
    paths = {*sources(), *templates(), *(ROOT / name for name in listed.split("\0") if name)}
    return sorted(path for path in paths if path.is_file())


def git(*args: str) -> str | None:
    """The output of a git command, or None if it fails, as outside a checkout."""
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def name_of(path: Path) -> str:
    """The path relative to the root of the repository, if it is inside."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


@dataclass(frozen=True)
class Cell:
    """One cell: its kind (code, markdown or raw), its text, its number of outputs, and its tags."""

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
        """Whether nbdev exports the cell to the module."""
        return any(directive.split()[0] in ("export", "exporti", "exports") for directive in self.directives)

    @property
    def lines(self) -> int:
        """The number of lines that are neither blank nor a directive."""
        return sum(bool(line.strip()) for line in DIRECTIVE.sub("", self.source).splitlines())


@dataclass(frozen=True)
class Notebook:
    """A notebook: its path, its cells and the language of its kernel."""

    path: Path
    cells: tuple[Cell, ...]
    language: str | None

    @property
    def code(self) -> list[Cell]:
        """The code cells that are not empty, without the one that names the module."""
        code = (cell for cell in self.cells if cell.kind == "code" and cell.source.strip())
        return [cell for cell in code if not any(d.startswith("default_exp") for d in cell.directives)]


def read(path: Path) -> Notebook:
    """The notebook at `path`. Raises ValueError or KeyError if the file is not a notebook."""
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


def skip_reason(notebook: Notebook) -> str:
    """Why nbdev would skip this notebook and still report success, or ''."""
    if notebook.language != "python":
        return f'metadata.kernelspec.language is {notebook.language!r}: write "python", in lower case'
    head = "\n".join(cell.source for cell in notebook.cells[:2] if cell.kind in ("raw", "markdown"))
    if re.search(r"^(- )?skip_exec:\s*(?!(false|0|no)\b)\S", head, re.MULTILINE | re.IGNORECASE):
        return "its front matter has skip_exec: remove it"
    return ""
