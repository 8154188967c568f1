"""Write README.md from nbs/index.ipynb, without quarto; with --check, fail if the two differ.

Code cells become fenced code without outputs, cells with `#| hide` are left out, and links relative to `nbs/`
(`../studies/...`) become links relative to the repository's root. A relative link to a missing file is an error.
"""

import argparse
import difflib
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
HEADER = "<!-- Written from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->\n\n"
DIRECTIVE = re.compile(r"^#\s*\|.*\n?", re.MULTILINE)
HIDDEN = re.compile(r"^#\s*\|\s*hide\s*$", re.MULTILINE)
LINK = re.compile(r"""(\]\(|(?:src|href)=["'])(?![a-z]+:|#)([^)"'\s]+)""")


def readme_text(notebook: Path, root: Path = ROOT) -> str:
    """The text of the README; links are relative to `root`."""
    nb = nbformat.read(notebook, as_version=4)
    nb.cells = [cell for cell in nb.cells if not HIDDEN.search(cell.source)]
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.source, cell.outputs = DIRECTIVE.sub("", cell.source).strip(), []
    nb.cells = [cell for cell in nb.cells if cell.source.strip() and cell.cell_type != "raw"]
    markdown, _ = MarkdownExporter().from_notebook_node(nb)

    def from_root(match: re.Match) -> str:
        target, _, anchor = match[2].partition("#")
        path = (notebook.parent / target).resolve()
        if not path.exists():
            raise FileNotFoundError(f"{notebook.name} links to {match[2]}: file not found")
        return match[1] + path.relative_to(root.resolve()).as_posix() + (f"#{anchor}" if anchor else "")

    markdown = re.sub(r"\n{3,}", "\n\n", LINK.sub(from_root, markdown))
    return HEADER + markdown.strip() + "\n"


def main() -> int:
    """Write or check README.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notebook", type=Path, default=ROOT / "nbs" / "index.ipynb")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if README.md is out of date")
    args = parser.parse_args()
    try:
        text = readme_text(args.notebook)
    except FileNotFoundError as error:
        sys.exit(f"README: {error}")
    old = args.readme.read_text(encoding="utf-8") if args.readme.exists() else ""
    if text == old:
        print(f"{args.readme.name} agrees with {args.notebook.name}")
        return 0
    if args.check:
        sys.stdout.writelines(
            difflib.unified_diff(
                old.splitlines(keepends=True), text.splitlines(keepends=True), args.readme.name, args.notebook.name
            )
        )
        sys.exit(f"{args.readme.name} differs from {args.notebook.name}: run `make readme` and commit both")
    args.readme.write_text(text, encoding="utf-8")
    print(f"{args.readme.name} written from {args.notebook.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
