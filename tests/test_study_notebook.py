"""The study notebook by papermill: what it leaves, that a second run only redraws, and that it holds no post text."""

import json
import os
import re

import pytest

from criteria_hpo import notebooks
from criteria_hpo.corpora import load_corpus
from criteria_hpo.ledger import Ledger
from criteria_hpo.plots import PLOTS

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("with a space")
    arguments = [
        "--study",
        "smoke",
        "--template",
        os.path.join(ROOT, "studies", "hpo.ipynb"),
        f"overrides=studies_dir='{folder}' data.max_groups=20",
    ]
    assert notebooks.main(arguments) == 0
    (folder / "arguments.json").write_text(json.dumps(arguments))
    return folder


def test_leaves_notebook_plots_manifest_and_database(studies):
    study = studies / "smoke"
    assert {"hpo.ipynb", "plots", "manifest.json", "study.db"} <= {p.name for p in study.iterdir()}
    plots = {p.name for p in (study / "plots").iterdir()}
    assert "plotly.min.js" in plots
    assert {p for p in plots if p.endswith(".html")} <= {f"{name}.html" for name in [*PLOTS, "data"]}
    assert {"data.html", "data.png", "history.html", "history.png", "intermediate_values.png", "edf.png", "timeline.png"} <= plots
    manifest = json.loads((study / "manifest.json").read_text())
    assert sum(manifest["trials"].values()) == 2 and manifest["best"]["params"]
    assert {"git_commit", "config_hash", "hashes", "seed", "threads", "packages", "hardware", "start", "end"} <= set(manifest)


def test_shows_the_table_on_locked_posts(studies):
    text = (studies / "smoke" / "hpo.ipynb").read_text()
    assert "average precision" in text and "TF-IDF" in text and "MCC" in text
    assert "Every model has the threshold" in text and "called positive" in text and "minus always positive" in text
    counts = json.loads((studies / "smoke" / "manifest.json").read_text())["counts"]
    shown = "{pairs:,} pairs, {positives:,} positive, {groups:,} groups".format(**counts["test"])
    assert text.count(shown) >= 2 and counts["dev"]["pairs"] > counts["test"]["pairs"] > 0  # in table and sentence
    assert f"too few groups for a verdict: {counts['test']['groups']}" in text


def test_second_run_adds_no_trial(studies):
    ledger = Ledger(f"sqlite:///{studies}/smoke/study.db", "smoke")
    before = (len(ledger.slots()), len(ledger.folds()))
    assert notebooks.main(json.loads((studies / "arguments.json").read_text())) == 0
    assert (len(ledger.slots()), len(ledger.folds())) == before == (2, before[1])


def test_a_changed_study_is_one_line(studies, capfd):
    arguments = json.loads((studies / "arguments.json").read_text())
    assert notebooks.main([*arguments, "seed=7"]) == 2
    assert "seed: 42 -> 7" in capfd.readouterr().err


def test_no_post_text_anywhere(studies):
    sentences = {s.strip() for post in load_corpus("demo").post.unique() for s in re.split(r"(?<=[.!?])\s", post) if len(s) > 30}
    assert len(sentences) > 300
    for path in (studies / "smoke").rglob("*"):
        if path.is_file():
            content = path.read_bytes().decode("utf-8", errors="ignore")
            assert not [s for s in sentences if s in content], path.name
