"""The table of REPRODUCE.md: every command exists, every file named exists, and the quick claims hold."""

import ast
import itertools
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import nbfiles

ROOT = nbfiles.ROOT
KINDS = ("quick", "test", "slow", "hand")
EXPECTED = re.compile(r"(?:^|, )([^±≤≥]+?) (?:(-?\d[\d.]*) ± (\d[\d.]*)|([≤≥]) (\d[\d.]*))(?=, |$)")
TARGETS = re.search(r"^TARGETS\s*:= ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@dataclass(frozen=True)
class Claim:
    """A row of the table."""

    claim: str
    places: tuple[str, ...]
    kind: str
    command: str
    time: str
    expected: str

    @property
    def values(self) -> dict[str, tuple[float, float]]:
        """The lowest and the highest value of each quantity that the claim allows."""
        found = {}
        for name, value, tolerance, sign, limit in EXPECTED.findall(self.expected):
            half = float(tolerance or 0)
            ends = (float(value) - half, float(value) + half) if value else (-np.inf, float(limit))
            found[name] = ends if sign != "≥" else (float(limit), np.inf)
        return found


def read_claims(text: str) -> list[Claim]:
    """The rows of the table in the text of REPRODUCE.md."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| claim ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert all(len(row) == 6 for row in rows), [row for row in rows if len(row) != 6]
    return [Claim(row[0], tuple(row[1].split(", ")), row[2], row[3].strip("`"), row[4], row[5]) for row in rows]


CLAIMS = read_claims((ROOT / "REPRODUCE.md").read_text(encoding="utf-8"))


def is_slow(node: ast.FunctionDef, module: ast.Module) -> bool:
    """Whether a test, one of its parameters, or its whole file is marked slow."""
    marks = [*node.decorator_list, *(n.value for n in module.body if isinstance(n, ast.Assign) and "pytestmark" in ast.dump(n))]
    return any("attr='slow'" in ast.dump(mark) for mark in marks)


def problem(command: str) -> str | None:
    """What is wrong with a command of the table; None if it can be run."""
    words = shlex.split(command)
    if missing := [
        name
        for name in (word.rpartition("=")[2] for word in words)
        if re.search(r"\.(py|ipynb|yaml)$", name) and name[0] != "/" and not (ROOT / name).is_file()
    ]:
        return f"no file {missing[0]}"
    if words[0] == "make":
        return None if words[1] in TARGETS[1].replace("\\", " ").split() else f"make has no target {words[1]}"
    if words[0] == "pytest":
        module, name = ast.parse((ROOT / words[1]).read_text(encoding="utf-8")), words[words.index("-k") + 1]
        tests = [n for n in module.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_") and name in n.name]
        if not tests:
            return f"-k {name} finds no test in {words[1]}"
        return (
            None
            if ("slow" in words) == any(is_slow(test, module) for test in tests)
            else "slow, and its test is not, or the reverse"
        )
    if words[:2] == ["python", "tools/run_notebooks.py"]:
        flags = {flag for cell in nbfiles.read(ROOT / words[2]).cells for flag in cell.directives}
        return None if ("--flags" not in words) or "slow" in flags else f"{words[2]} has no slow cell"
    return None if words[:3] == ["python", "-m", "papermill"] else f"{words[0]} is another command than make, pytest and python"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.claim[:40])
def test_every_row_can_be_run(claim: Claim) -> None:
    assert problem(claim.command) is None
    assert claim.kind in KINDS and all((ROOT / place).is_file() for place in claim.places)
    assert re.fullmatch(r"\d+ (s|min|h)", claim.time)
    left = EXPECTED.sub("", claim.expected)
    assert claim.values and not left, f"not read: {left}"
    slow = "-m slow" in claim.command or "--flags slow" in claim.command
    assert slow == (claim.kind == "slow") and ("test_reproduce.py" in claim.command) == (claim.kind == "quick")


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("make demos", "no target demos"),
        ("make --version", "no target --version"),
        ("pytest tests/test_nothing.py -k it", "no file tests/test_nothing.py"),
        ("pytest tests/test_scale.py -k three_thousand -m slow", "finds no test"),
        ("pytest tests/test_scale.py -k two_thousand", "slow, and its test is not"),
        ("python tools/run_notebooks.py nbs/data/30_folds.ipynb --flags slow", "has no slow cell"),
        ("python -m nothing", "another command"),
    ],
)
def test_a_wrong_command_is_seen(command: str, wrong: str) -> None:
    assert wrong in problem(command)


def test_values_are_read_with_their_tolerance() -> None:
    claim = Claim("", (), "", "", "", "after 2,000 29 ± 30, test -0.5 ± 0.25, a loss ≤ 0.1, AUROC ≥ 0.9")
    expected = {"after 2,000": (-1.0, 59.0), "test": (-0.75, -0.25), "a loss": (-np.inf, 0.1), "AUROC": (0.9, np.inf)}
    assert claim.values == expected


def check(name: str, measured: dict[str, float]) -> None:
    """Compare measured values with the row of the table whose command runs the test of this name."""
    (row,) = [claim for claim in CLAIMS if claim.command.endswith(f"-k {name}")]
    assert measured.keys() == row.values.keys()
    for quantity, value in measured.items():
        low, high = row.values[quantity]
        assert low - 1e-9 <= value <= high + 1e-9, f"{quantity}: {value:.5g} is outside {low:.5g} to {high:.5g}"


def test_patience_by_chance() -> None:
    from criteria_hpo.pruner_lab.simulation import is_stopped

    orders = list(itertools.permutations((0.1, 0.2, 0.3, 0.4, 0.5)))
    check("patience_by_chance", {"share": float(np.mean([is_stopped(scores, None, 3, range(1, 6)) for scores in orders]))})


def test_signal_and_noise() -> None:
    from criteria_hpo.pruner_lab.fold_table import load_table, signal

    check("signal_and_noise", dict(signal(load_table(ROOT / "studies" / "gallery" / "replay_table"))))


def test_the_headline() -> None:
    from criteria_hpo.archive.restore import read_archive
    from criteria_hpo.archive.rows import Distributions, trial_of
    from criteria_hpo.results.wall_time import seconds_passed

    table = pd.read_csv(ROOT / "studies" / "gallery" / "archive" / "folds.csv")
    complete = table[table.state == "COMPLETE"].set_index("trial").value
    found = {"trials": len(table), "complete": len(complete), "folds": table.folds.sum(), "hours": table.seconds.sum() / 3600}
    within = table.reason.str.contains("report", na=False).sum()
    about, rows, _ = read_archive(ROOT / "studies" / "gallery" / "archive", "headline")
    known = Distributions(about["distributions"])
    trials = [trial_of(row, known) for row in rows]
    found |= {"hours on the clock": seconds_passed(trials) / 3600, "those of the first 500": seconds_passed(trials[:500]) / 3600}
    check("the_headline", found | {"pruned within a fold": within, "best": complete.max(), "default": complete[0]})


def test_four_scores_of_the_headline() -> None:
    folder = ROOT / "studies" / "gallery" / "headline" / "evaluation"
    four = pd.read_csv(folder / "four_scores.csv").set_index(["model", "score"]).estimate
    gain = pd.read_csv(folder / "differences.csv").query("model == 'default setting' and metric == 'average_precision'")
    named = {"best in the search": ("best of the search", "search"), "best corrected": ("best of the search", "corrected")}
    named |= {f"winner {kind}": ("winner", kind) for kind in ("confirmed", "test")}
    named |= {f"default {kind}": ("default setting", kind) for kind in ("confirmed", "test")}
    found = {name: four[key] for name, key in named.items()}
    check("four_scores_of_the_headline", found | {"gain": gain.difference.item(), "gain at most": gain.high.item()})


def test_first_500_trials() -> None:
    folder = ROOT / "studies" / "gallery" / "first500"
    scores = pd.read_csv(folder / "scores.csv").set_index(["study", "score"]).estimate["headline_first500"]
    paired = pd.read_csv(folder / "paired.csv").iloc[0]
    found = {"best in the search": scores["search"], "winner confirmed": scores["confirmed"], "winner test": scores["test"]}
    check("first_500_trials", found | {"difference": paired.difference, "p": paired.p})


def test_pruning_saved_and_lost() -> None:
    from criteria_hpo.pruner_lab.candidates import DEFAULT, RACING
    from criteria_hpo.pruner_lab.compare import compare, with_intervals
    from criteria_hpo.pruner_lab.fold_table import load_table

    table = load_table(ROOT / "studies" / "gallery" / "replay_table")
    found = with_intervals(compare(table, {c.name: c for c in (DEFAULT, RACING)}, 30, 16, 0))
    measured = {"saved by racing": found.folds_saved[RACING.name], "lost by racing": found.lost[RACING.name]}
    check("pruning_saved_and_lost", measured | {"saved by default": found.folds_saved[DEFAULT.name]})
