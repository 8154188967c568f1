"""A recording that is killed and resumed has the same numbers; the recorded table is complete, small, and holds only numbers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from criteria_hpo.config.hparams import HParams
from criteria_hpo.config.load import load_config
from criteria_hpo.core.errors import StudyError
from criteria_hpo.pruner_lab import record
from criteria_hpo.pruner_lab.candidates import DEFAULT, RACING, Candidate, all_candidates
from criteria_hpo.pruner_lab.compare import choose, compare, in_parts, verdict, with_intervals
from criteria_hpo.pruner_lab.draws import random_draw
from criteria_hpo.pruner_lab.fold_logits import FoldLogits, noise_table
from criteria_hpo.pruner_lab.fold_table import load_table, read_epochs
from criteria_hpo.pruner_lab.fold_table import signal as signal_of
from criteria_hpo.pruner_lab.replay import lay_out
from criteria_hpo.pruning.racing import group_influence

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "studies" / "gallery" / "replay_table"
WORDS = [
    "preset=smoke",
    "model=tiny",
    "n_trials=3",
    "overrides=threads=1 data.max_groups=20 data.n_folds=2 model.keep_layers=[0] hpo.metric=average_precision",
]


def lines(folder: Path) -> int:
    file = folder / "folds.csv"
    return file.read_text().count("\n") if file.exists() else 0


@pytest.mark.skipif(os.name != "posix", reason="kills by SIGKILL")
def test_a_killed_recording_resumes_with_the_same_numbers(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "criteria_hpo.pruner_lab.record", "--out", str(killed), *WORDS],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    while lines(killed) < 4:
        assert process.poll() is None, "the recording ended before it was killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = read_epochs(killed / "folds.csv")
    assert 3 <= len(kept) < 12
    assert record.main(["--out", str(killed), *WORDS]) == record.main(["--out", str(whole), *WORDS]) == 0
    resumed, straight = (read_epochs(folder / "folds.csv") for folder in (killed, whole))
    assert len(straight) == 3 * 2 * 2 and [row[:6] for row in resumed] == [row[:6] for row in straight]
    assert [row for row in resumed if row in kept] == kept, "a finished fold was trained again"


def test_the_recorded_table_is_large_enough_and_settings_differ_by_more_than_luck() -> None:
    table = load_table(RECORDED)
    settings, repeats, folds, epochs = table.shape
    assert settings >= 150 and repeats >= 2 and folds == 5 and epochs >= 3
    for found in (signal_of(table.first(30)), signal_of(table)):  # the pilot, and all of it
        assert found["between"] > found["error"] and found["correlation"] > 0.5
        assert found["between"] < found["fold"], "one fold is noisier than the settings are different, as the notebooks state"


def test_the_recorded_table_is_small_and_holds_numbers_only() -> None:
    assert all(file.stat().st_size < 1_000_000 for file in RECORDED.iterdir())
    table = load_table(RECORDED)
    assert len(table.settings) == len(table.score) == len({HParams(**setting) for setting in table.settings})
    about = json.loads((RECORDED / "about.json").read_text())
    assert about["identity"]["data"]["name"] == "privacy_qa" and about["metric"] == "average_precision"
    gammas = {setting["focal_gamma"] for setting in table.settings}
    assert gammas == {0.0, 1.0, 2.0, 3.0}


def test_the_logits_of_the_recorded_table_give_its_scores() -> None:
    table, logits = load_table(RECORDED), FoldLogits(RECORDED, 2)
    assert np.isfinite(logits.read(0)).all() and np.isfinite(logits.read(1)).all()
    for setting, repeat, fold in ((0, 0, 0), (77, 1, 4), (149, 1, 2)):
        rows = logits.pairs[:, 2 + repeat] == fold + 1
        values, (labels, groups) = logits.read(repeat)[setting, -1, rows], logits.pairs[rows, :2].T
        score, influence = group_influence("average_precision", labels, values, groups)
        # two bytes a logit: two of the pairs may change places
        assert abs(score - table.score[setting, repeat, fold, -1]) < 0.01 and abs(influence.sum()) < 1e-9
    noise = noise_table(table, logits)["best third"]
    assert noise["paired"] < 0.5 * noise["unpaired"] and noise["paired"] < noise["observed"] < 1.3 * noise["paired"]


def test_a_table_with_one_repeat_is_rejected_in_one_line() -> None:
    table = load_table(RECORDED, repeats=1)
    for judge in (signal_of, lambda t: lay_out(t, [random_draw(t, np.arange(9), 0, np.random.default_rng(0))])):
        with pytest.raises(StudyError, match="--repeats 2"):
            judge(table)


# The rendered notebook, and the numbers that other files quote from it.

GALLERY, TEMPLATE = ROOT / "studies" / "gallery" / "pruner_replay.ipynb", ROOT / "studies" / "pruner_replay.ipynb"


def cells(path: Path) -> list[tuple[str, str]]:
    """Kind and text of all cells except papermill's injected parameters."""
    found = json.loads(path.read_text())["cells"]
    return [(c["cell_type"], "".join(c["source"])) for c in found if "injected-parameters" not in c["metadata"].get("tags", [])]


def test_the_rendered_notebook_is_the_template_at_the_parameters_that_it_names() -> None:
    assert cells(GALLERY) == cells(TEMPLATE), "render it again: the command is in its first cell"
    named = dict(re.findall(r"-p (\w+) (\d+)", cells(TEMPLATE)[0][1]))
    (injected,) = (c for c in json.loads(GALLERY.read_text())["cells"] if "injected-parameters" in c["metadata"].get("tags", []))
    assert dict(re.findall(r"^(\w+) = (\d+)$", "".join(injected["source"]), re.MULTILINE)) == named
    assert GALLERY.stat().st_size < 1_000_000


def rendered_verdict() -> str:
    """The sentence of the rendered notebook that says which pruner to use."""
    outputs = [o for c in json.loads(GALLERY.read_text())["cells"] for o in c.get("outputs", [])]
    (text,) = ["".join(o["data"]["text/markdown"]) for o in outputs if "text/markdown" in o.get("data", {})]
    return text


def test_racing_is_what_the_rendered_replay_found_and_claims_no_more() -> None:
    hpo, found = load_config(["hpo=racing"]).hpo, rendered_verdict()
    assert Candidate(hpo.pruner, hpo.mode) == RACING and f"**{RACING.name}**" in found
    assert hpo.search_space["focal_gamma"]["choices"] == [0.0, 1.0, 2.0, 3.0]
    quoted = " ".join(
        line[2:] for line in (ROOT / "criteria_hpo/configs/hpo/racing.yaml").read_text().splitlines() if line[:1] == "#"
    )
    own, away = (
        re.search(pattern, found)[0] for pattern in (r"\d+% of the folds saved[^:]*?kept in \d+%", r"reported on .*?kept in \d+%")
    )
    for figure in (
        *re.findall(r"\d+% of the folds saved", own + away),
        *re.findall(r"lost in [\d.]+% of the studies", own + away),
    ):
        assert figure in quoted, f"racing.yaml does not quote the measured value: {figure}"
    assert ("None reaches the goal" in quoted) == found.startswith("None does")


def test_the_verdict_does_not_hang_on_the_seed() -> None:
    table = load_table(RECORDED)
    near = {name: c for name, c in all_candidates().items() if name in (RACING.name, DEFAULT.name, "patience 1 top", "forgiving")}
    for seed in (0, 1, 2):
        results = compare(table, near, n_splits=20, orders=16, seed=seed)
        assert choose(results) == RACING.name and verdict(results).startswith("None does")
        assert (in_parts(results, RACING.name, 2).folds_saved > 0.57).all()
        lost = with_intervals(results).lost
        assert lost[RACING.name] < 0.04 and lost[RACING.name] < 0.5 * lost[DEFAULT.name]


def test_an_interval_is_that_of_a_single_study_however_many_orders_there_are() -> None:
    table, one = load_table(RECORDED), {DEFAULT.name: DEFAULT}
    few, many = (with_intervals(compare(table, one, n_splits=200, orders=orders)).loc[DEFAULT.name] for orders in (2, 16))
    assert isinstance(few, pd.Series) and abs((many.regret_high - many.regret_low) / (few.regret_high - few.regret_low) - 1) < 0.4
    assert many.expected_high - many.expected_low < 0.7 * (few.expected_high - few.expected_low)
