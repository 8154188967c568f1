"""`command=compare` on stored studies with invented scores: what it shows, what it cannot show, and what it leaves alone."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from criteria_hpo import cli
from criteria_hpo.comparing.compare import compare
from criteria_hpo.comparing.examples import store_confirmation, store_examples, store_search
from criteria_hpo.config.load import load_config


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


def test_the_command_names_the_winner_and_writes_all_forms(studies: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    databases = {path: path.read_bytes() for path in studies.rglob("study.db")}
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
    assert databases == {path: path.read_bytes() for path in databases}, "a comparison changed a study"


def test_seeds_of_one_study_are_one_group(studies: Path, tmp_path: Path) -> None:
    found = compare(load_config(words(studies, "[seed1,seed2,seed3]", f"output={tmp_path}")))
    last = found.tables["seeds"].iloc[-1]
    assert (last["studies"], last["seeds"], last["trials"]) == ("seed1, seed2, seed3", 3, 4)
    assert [last["mean"], last["sd"], last["low"], last["high"]] == pytest.approx([0.7, 0.1, 0.6, 0.8])
    assert found.tables["overview"]["saved folds"].tolist() == pytest.approx([3 / 20] * 3)


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
