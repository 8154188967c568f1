"""Empty the outputs and execution counts of nbs/*.ipynb and studies/*.ipynb.

`nbdev_clean --clear_all` also empties them, but it deletes the `parameters` tag that papermill needs.
"""

import sys

from execnb.nbio import read_nb, write_nb

from nbfiles import name_of, sources, templates


def main() -> int:
    """Clean every notebook that has outputs or execution counts."""
    for path in [*sources(), *templates()]:
        nb = read_nb(path)
        cells = [cell for cell in nb.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]
        for cell in cells:
            cell.outputs, cell.execution_count = [], None
        if cells:
            write_nb(nb, path)
            print(f"{name_of(path)}: {len(cells)} cells emptied")
    return 0


if __name__ == "__main__":
    sys.exit(main())
