"""The tools that check notebooks find the problems that they are meant to find."""

import sys
from pathlib import Path

import nbformat
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import nbfiles
import style_budgets

GOOD = ["# A title\n\nWhy it is so.", "#| export\ndef double(x: int) -> int:\n    return 2 * x", "assert double(2) == 4"]
LONG = "#| export\ndef long(x: int) -> None:\n" + "    x += 1\n" * 50


def notebook(folder: Path, *sources: str, language: str = "python") -> nbfiles.Notebook:
    """A notebook of these cells; a text that begins with a title becomes a markdown cell."""
    new = nbformat.v4
    cells = [new.new_markdown_cell(s) if s.startswith("# ") else new.new_code_cell(s) for s in sources]
    kernel = {"name": "python3", "display_name": "python3", "language": language}
    nbformat.write(new.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "00_it.ipynb")
    return nbfiles.read(folder / "00_it.ipynb")


def failed(*notebooks: nbfiles.Notebook) -> dict[str, list[str]]:
    """The hard budgets that these notebooks exceed, with the offenders."""
    measured = [style_budgets.Measured(found) for found in notebooks]
    budgets = [*style_budgets.cell_budgets(measured), *style_budgets.documentation_budgets(measured)]
    budgets += style_budgets.coverage_budgets(measured, list(notebooks))
    return {budget.what: budget.offenders for budget in budgets if budget.hard and not budget.kept}


def test_a_good_notebook_meets_every_budget(tmp_path: Path) -> None:
    assert failed(notebook(tmp_path, *GOOD)) == {}


@pytest.mark.parametrize(
    ("sources", "what", "offender"),
    [
        ([*GOOD, LONG], "longest function, lines", "00_it.long 51"),
        ([*GOOD, LONG], "export cells, 90th percentile of lines", "00_it.long 51"),
        ([GOOD[0], GOOD[1] + "\na = 1" * 299, GOOD[2]], "longest module, lines", "00_it 301"),
        ([GOOD[0], "#|export\ndef f(a, *, b: int, **c): pass", GOOD[2]], "exported functions", "00_it.f(a, c)"),
        ([GOOD[0], GOOD[1], "double(2)"], "assertions per 100 exported lines", "00_it 0.0"),
        (GOOD[1:], "prose cells, %", "00_it 0.0"),
    ],
)
def test_an_exceeded_budget_names_the_offender(tmp_path: Path, sources: list[str], what: str, offender: str) -> None:
    found = {key: names for key, names in failed(notebook(tmp_path, *sources)).items() if key.startswith(what)}
    assert [offender] == [name for names in found.values() for name in names]


def test_every_offender_is_counted_and_a_cell_without_a_name_has_a_number(tmp_path: Path) -> None:
    plain = "#| export\n" + "\n".join(f"a{row} = {row}" for row in range(12))
    module = style_budgets.Measured(notebook(tmp_path, *GOOD, *[plain] * 6))
    median = next(style_budgets.cell_budgets([module]))
    assert median.offenders == [f"00_it code cell {number} 12" for number in range(3, 9)]
    assert str(median).startswith("over export cells, median") and str(median).endswith("00_it code cell 7 12; and 1 more")


def test_definitions_that_no_cell_runs_are_named(tmp_path: Path) -> None:
    module = style_budgets.Measured(
        notebook(tmp_path, *GOOD, GOOD[1].replace("double", "treble"), GOOD[1].replace("double", "half"))
    )
    assert module.definitions == [("double", True), ("treble", False), ("half", False)]


@pytest.mark.parametrize(
    ("head", "language", "why"),
    [
        ("# T\n\n- skip_exec: true", "python", "skip_exec"),
        ("# T\n\n- skip_exec: false", "python", ""),
        ("# T", "Python", "language"),
        ("# T", "python", ""),
    ],
)
def test_notebooks_that_nbdev_would_skip(tmp_path: Path, head: str, language: str, why: str) -> None:
    reason = nbfiles.skip_reason(notebook(tmp_path, head, "1 + 1", language=language))
    assert (why in reason) and bool(reason) == bool(why)


def test_templates_are_those_in_studies_itself() -> None:
    names = [nbfiles.name_of(path) for path in nbfiles.templates()]
    assert "studies/hpo.ipynb" in names and all(name.count("/") == 1 for name in names)
