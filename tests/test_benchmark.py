"""The harness of the benchmark: fair turns, ratios within a round, failures of one line, verdicts on known numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from criteria_hpo.benchmark.report import TARGETS, benchmark_table, quality_table, ratio_points, save_runs, targets_table
from criteria_hpo.benchmark.runs import (
    BUILD_BEFORE,
    CROSS_ENCODER,
    ORIGINAL,
    OURS,
    ROWS,
    TRAINER,
    WITHOUT,
    alternate,
    contenders,
    extract_build,
    ratios,
    start_contender,
)
from criteria_hpo.benchmark.work import WORKS, Order
from criteria_hpo.core.errors import StudyError

NAMES = ["a", "b", "c"]


def result(seconds: float, scores: list[list[float]] | None = None, **more: Any) -> dict[str, Any]:
    """What a run of `seconds` seconds returns, half of them in the forward pass."""
    counts = {"tokens": {"real": 80, "padded": 100, "squares": 640}, "flops": 5e8, "folds": 1, "scores": scores or [[0.5, 0.6]]}
    return {
        "seconds": seconds,
        "cpu": seconds,
        "memory": 2**20,
        "imported": 2**19,
        "parts": {"forward": seconds / 2},
        **counts,
        **more,
    }


@pytest.mark.parametrize("rounds", [1, 2, 3, 7])
def test_every_contender_has_every_place_equally_often(rounds: int) -> None:
    turns: list[str] = []
    found = alternate(dict.fromkeys(NAMES, rounds), lambda name: turns.append(name) or result(1.0))
    by_round = [turns[k : k + 3] for k in range(0, len(turns), 3)]
    assert all(sorted(round_) == NAMES for round_ in by_round) and [len(runs) for runs in found.values()] == [rounds] * 3
    places = [sum(round_[0] == name for round_ in by_round) for name in NAMES]
    assert max(places) - min(places) <= 1


def test_a_contender_that_fails_gives_one_line_and_is_not_run_again() -> None:
    turns: list[str] = []
    broken = {"error": "ModelError: b is missing"}
    found = alternate(dict.fromkeys(NAMES, 3), lambda name: turns.append(name) or (broken if name == "b" else result(1.0)))
    assert turns.count("b") == 1 and turns.count("a") == turns.count("c") == 3
    table = benchmark_table({OURS.name: found["a"], "b": found["b"]}, 1e9)
    assert table.loc["b", "note"] == "ModelError: b is missing" and np.isnan(table.loc["b", "seconds"])
    assert (
        table.loc[OURS.name, "note"] == "" and quality_table({OURS.name: found["a"], "b": found["b"]}).verdict["b"] == "not run"
    )


def test_ratios_are_formed_within_a_round() -> None:
    runs = {"a": [result(s) for s in (1.0, 10.0, 2.0)], "b": [result(s) for s in (2.0, 15.0, 5.0)]}
    found = ratios(runs, "b", "a")
    assert found.tolist() == [2.0, 1.5, 2.5] and ratios(runs, "a", "b").tolist() == [0.5, 1 / 1.5, 0.4]
    table = benchmark_table({OURS.name: runs["a"], "b": runs["b"]}, 1e9)
    assert tuple(table.loc["b", ["ratio", "low", "high"]]) == (2.0, 1.5, 2.5) and table.loc["b", "seconds"] == 5.0
    assert table.loc["b", "padding"] == pytest.approx(0.2) and table.loc["b", "outside"] == 0.5
    assert table.loc["b", "utilisation"] == pytest.approx(0.1) and table.loc["b", "tokens_per_s"] == 16


def test_a_contender_that_learns_less_is_seen() -> None:
    rng = np.random.default_rng(0)
    ours = [rng.normal(0.6, 0.02, 5).tolist() for _ in range(3)]
    runs = {OURS.name: [result(1, ours)]}
    for gap in (0.0, -0.05, 0.05):
        runs[f"{gap:+}"] = [result(1, [[score + gap + rng.normal(0, 0.005) for score in row] for row in ours])]
    assert quality_table(runs).verdict.tolist() == ["within noise", "within noise", "worse", "better"]


def test_targets_are_compared_with_the_right_row() -> None:
    rows = {OURS.name: [result(100.0)], BUILD_BEFORE.name: [result(190.0)], ORIGINAL.name: [result(790.0)]}
    table = targets_table({"tiny": benchmark_table(rows, 1e9), "demo": benchmark_table(rows, 1e9)})
    found = {(row.work, row.against): row.verdict for row in table.itertuples()}
    assert found[("tiny", BUILD_BEFORE.name)] == "reached" and found[("tiny", ORIGINAL.name)] == "not reached"
    assert found[("demo", BUILD_BEFORE.name)] == "not reached" and found[("demo", OURS.name)] == "reached"
    points = ratio_points({"tiny": benchmark_table(rows, 1e9)})
    assert [(p.ratio, p.target) for p in points] == [(1.9, 1.8), (7.9, 8.0)]


def test_every_target_has_a_row_in_its_work() -> None:
    names = {work: {row.name for row in rows} for work, rows in ROWS.items()} | {"demo": {OURS.name, BUILD_BEFORE.name}}
    assert {target.contender for target in TARGETS} <= {
        OURS.name,
        TRAINER.name,
        CROSS_ENCODER.name,
        ORIGINAL.name,
        BUILD_BEFORE.name,
    }
    assert all(target.contender in names[target.work] for target in TARGETS)
    for works in WORKS.values():
        for work in works.values():
            rows = contenders(work, "full")
            assert len({row.name for row in rows}) == len(rows) and {row.name for row in WITHOUT} <= {row.name for row in rows}


def test_the_build_before_is_left_out_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="lacks the commit"):
        extract_build(tmp_path, root=tmp_path)
    order = Order("ours", "", [], 1, 128, "cpu", "fp32", 1)
    assert start_contender(BUILD_BEFORE, order, None, "it is not compared") == {"error": "it is not compared"}


def test_runs_are_kept_as_numbers(tmp_path: Path) -> None:
    runs = {"tiny": {OURS.name: [result(1.0)]}}
    kept = json.loads(save_runs(runs, {"peak": 1e9}, tmp_path / "new").read_text())
    assert kept == {"machine": {"peak": 1e9}, "runs": runs}
