"""`command=compare` on stored studies with invented scores: what it shows, what it cannot show, and what it leaves alone."""

import contextlib
import json
import math
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from criteria_hpo import cli
from criteria_hpo.comparing.compare import compare
from criteria_hpo.comparing.examples import store_confirmation, store_examples, store_search
from criteria_hpo.comparing.sources import Source, seed_groups
from criteria_hpo.config.load import load_config
from criteria_hpo.config.paths import storage_url
from criteria_hpo.storage.ledger import Ledger
from criteria_hpo.storage.predictions import PREDICTIONS


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two confirmed studies, and three seeds of a third."""
    folder = tmp_path_factory.mktemp("studies")
    store_examples(load_config([f"studies_dir={folder}"]))
    for seed in (1, 2, 3):
        cfg = load_config([f"studies_dir={folder}", f"hpo.study_name=seed{seed}", f"seed={seed}", "training.num_epochs=4"])
        store_search(cfg, [0.5, 0.4, 0.5 + 0.1 * seed, math.nan])
    return folder


def words(folder: Path, names: str, *more: str) -> list[str]:
    return ["command=compare", f"studies_dir={folder}", f"studies={names}", *more]


def rows_of(database: Path) -> list[str]:
    """All that a database holds; its bytes may change when a connection closes and SQLite moves rows out of the log beside it."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        return list(db.iterdump())


def test_the_command_names_the_winner_and_writes_all_forms(studies: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    databases = {path: rows_of(path) for path in studies.rglob("study.db")}
    assert cli.main(words(studies, "[plain,augmented]", f"output={tmp_path}")) == 0
    out = capfd.readouterr().out
    assert "the winner of augmented is better than that of plain" in out and "augmentation.enable" in out
    scores = pd.read_csv(tmp_path / "scores.csv").set_index(["study", "score"]).estimate
    assert scores["plain", "search"] == pytest.approx(0.70) and scores["augmented", "test"] == pytest.approx(0.69)
    assert "\\toprule" in (tmp_path / "paired.tex").read_text() and "| augmented |" in (tmp_path / "overview.md").read_text()
    curves = pd.read_csv(tmp_path / "curves.csv").groupby("study").last()
    assert curves.best.to_dict() == pytest.approx({"plain": 0.70, "augmented": 0.75})
    assert curves.hours["plain"] == pytest.approx(30 * 5 / 60)
    page = (tmp_path / "curves.html").read_text()
    assert '"showSendToCloud": false' in page and "http" not in page.split("<body>")[1].replace("https://plot.ly", "")
    assert databases == {path: rows_of(path) for path in databases}, "a comparison changed a study"


def test_seeds_of_one_study_are_one_group(studies: Path, tmp_path: Path) -> None:
    found = compare(load_config(words(studies, "[seed1,seed2,seed3]", f"output={tmp_path}")))
    last = found.tables["seeds"].iloc[-1]
    assert (last["studies"], last["seeds"], last["trials"]) == ("seed1, seed2, seed3", 3, 4)
    assert [last["mean"], last["sd"], last["low"], last["high"]] == pytest.approx([0.7, 0.1, 0.6, 0.8])
    assert found.tables["overview"]["saved folds"].tolist() == pytest.approx([3 / 20] * 3)


def test_seeds_with_other_data_are_no_repetitions(tmp_path: Path) -> None:
    for seed in (1, 2):
        cfg = load_config([f"studies_dir={tmp_path}", f"hpo.study_name=seed{seed}", f"seed={seed}", "data.max_groups=20"])
        study = store_search(cfg, [0.5, 0.6])
        hashes = {"data": f"part {seed}", "split": f"part {seed}", "folds": f"part {seed}"}
        study.set_user_attr("identity", study.user_attrs["identity"] | {"hashes": hashes})
    found = compare(load_config(words(tmp_path, "[seed1,seed2]")))
    line = next(line for line in found.sentences if "seed1, seed2 are seeds of one study with different data" in line)
    assert "data.max_groups draws a part for each seed" in line and "seeds" not in found.tables


def test_several_comparisons_share_their_risk(tmp_path: Path) -> None:
    """Intervals and p are adjusted alike: an interval excludes 0 exactly where the adjusted p is below 0.05."""
    rng = np.random.default_rng(3)
    for number, ahead in enumerate((0.0, 0.012, 0.05)):
        cfg = load_config([f"studies_dir={tmp_path}", f"hpo.study_name=s{number}", f"training.num_epochs={number + 5}"])
        store_search(cfg, [0.5, 0.6])
        store_confirmation(cfg, 0.6 + ahead + rng.normal(0, 0.008, (5, 5)), (0.6, 0.5, 0.7))
    three, two = (compare(load_config(words(tmp_path, names))) for names in ("[s0,s1,s2]", "[s0,s1]"))
    table, alone = three.tables["paired"], two.tables["paired"].iloc[0]
    assert table["p adjusted"].to_numpy() == pytest.approx(np.minimum(3 * table.p, 1)) and alone.p == alone["p adjusted"]
    assert ((table.low > 0) | (table.high < 0)).tolist() == (table["p adjusted"] < 0.05).tolist() == [False, True, True]
    assert alone.low > table.low[0] and alone.high < table.high[0] and alone.difference == pytest.approx(table.difference[0])
    assert "adjusted for 3 comparisons like p" in three.sentences[0] and "adjusted" not in two.sentences[0]


def test_cuts_are_paired_by_what_they_scored(tmp_path: Path) -> None:
    for name, epochs in (("one", 5), ("two", 6)):
        cfg = load_config([f"studies_dir={tmp_path}", f"hpo.study_name={name}", f"training.num_epochs={epochs}"])
        store_search(cfg, [0.5, 0.6])
        store_confirmation(cfg, np.random.default_rng(epochs).normal(0.6, 0.02, (5, 5)), (0.6, 0.5, 0.7))
    ledger = Ledger(storage_url(cfg), "two-confirm")
    with ledger.engine.begin() as db:  # two of its five cuts come from other code
        db.execute(PREDICTIONS.update().where(PREDICTIONS.c.slot.in_([0, 3]), PREDICTIONS.c.fold == 2).values(pairs="others"))
    found = compare(load_config(words(tmp_path, "[one,two]")))
    assert found.tables["paired"].cuts.tolist() == [3] and "; 3 cuts, the same in both)" in found.sentences[0]
    with ledger.engine.begin() as db:
        db.execute(PREDICTIONS.delete())
    found = compare(load_config(words(tmp_path, "[one,two]")))
    assert (
        "paired" not in found.tables and "two: no cut of its confirmed winner is complete, with predictions" in found.sentences[0]
    )


def test_winners_of_the_same_quality_are_not_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name, epochs in (("one", 5), ("two", 6)):
        cfg = load_config([f"studies_dir={tmp_path}", f"hpo.study_name={name}", f"training.num_epochs={epochs}"])
        store_search(cfg, [0.5, 0.6])
        store_confirmation(cfg, 0.6 + rng.normal(0, 0.02, (5, 5)), (0.6, 0.5, 0.7))
    found = compare(load_config(words(tmp_path, "[one,two]")))
    assert "the winners cannot be told apart" in found.sentences[0]


def test_other_data_are_named(studies: Path, tmp_path: Path) -> None:
    cfg = load_config([f"studies_dir={tmp_path}", "hpo.study_name=elsewhere"])
    study = store_search(cfg, [0.5, 0.6])
    study.set_user_attr("identity", json.loads(json.dumps(study.user_attrs["identity"]).replace('"example"', '"other"')))
    found = compare(load_config(words(studies, f"[plain,{tmp_path}/elsewhere]", f"output={tmp_path}/out")))
    text = "\n".join(found.sentences)
    assert "different data (hashes.data)" in text and "cannot be paired" in text and "paired" not in found.tables


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("plain", "compare.studies=plain: name two or more studies"),
        ("null", "name two or more studies"),
        ("[plain,augmentet]", "hpo.study_name=augmentet: no study database"),
    ],
)
def test_mistakes_are_one_line(studies: Path, capfd: pytest.CaptureFixture, names: str, message: str) -> None:
    assert cli.main(words(studies, names)) == 2
    out, err = capfd.readouterr()
    (line,) = err.strip().splitlines()
    assert out == "" and message in line and not (studies / "augmentet").exists()


def test_the_same_file_is_the_same_data_wherever_the_test_is_cut() -> None:
    """Locked labels change `hashes.data`, so seeds of one file are recognised by the hash of the file."""

    def source(seed: int, file: str, max_groups: int | None = None) -> Source:
        identity = {"seed": seed, "data": {"name": "pairs", "max_groups": max_groups}, "hashes": {"data": f"cut by {seed}"}}
        counts = {"dev": {"pairs": 500 + seed}, "test": {"pairs": 156 - seed}}
        attrs = {"identity": identity, "n_trials": 20, "counts": counts, "files": {"data.path": file}}
        return Source(f"s{seed}", None, SimpleNamespace(user_attrs=attrs), None)

    assert [len(group) for group in seed_groups([source(1, "a"), source(2, "a"), source(3, "b")])] == [2, 1]
    assert [len(group) for group in seed_groups([source(1, "a", 80), source(2, "a", 80)])] == [1, 1]
