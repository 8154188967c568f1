"""Empty the outputs and execution counts of nbs/*.ipynb and studies/*.ipynb.

`nbdev_clean --clear_all` would do it too, but also deletes the `parameters` tag that papermill needs.
"""

import sys
from pathlib import Path

from execnb.nbio import read_nb, write_nb

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Clean every notebook that has something to clean."""
    for path in [*sorted(ROOT.glob("nbs/*.ipynb")), *sorted(ROOT.glob("studies/*.ipynb"))]:
        nb = read_nb(path)
        cells = [cell for cell in nb.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]
        for cell in cells:
            cell.outputs, cell.execution_count = [], None
        if cells:
            write_nb(nb, path)
            print(f"{path.relative_to(ROOT)}: {len(cells)} cells emptied")
    return 0


if __name__ == "__main__":
    sys.exit(main())
