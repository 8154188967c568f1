"""A study that is exported and restored goes on as if it had never moved, and its archive holds no text and no machine."""

import json
import re
import socket
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from criteria_hpo import cli
from criteria_hpo.archive.parts import unpacked_rows
from criteria_hpo.archive.restore import read_archive
from criteria_hpo.archive.write import read_about
from criteria_hpo.config.load import load_config
from criteria_hpo.data.study_data import load_data

SMALL = ["preset=smoke", "model=tiny", "threads=1", "data.max_groups=24", "data.n_folds=2", "hpo.pruner.type=none"]
SMALL += ["hpo.pruner.patience.folds=null"]


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0


def settings_and_scores(folder: Path) -> list[tuple[dict[str, object], float]]:
    rows = [row for part in sorted(folder.glob("trials-*")) for row in unpacked_rows(part.read_bytes())]
    return [({name: value for name, (value, _) in row["params"].items()}, row["value"]) for row in rows]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study `first` of four trials, exported after two and after four, and `second`, restored after two and resumed."""
    root = tmp_path_factory.mktemp("studies")
    here = [*SMALL, f"studies_dir={root}"]
    run("command=hpo", "n_trials=2", "hpo.study_name=first", *here)
    run("command=export", "hpo.study_name=first", f"output={root / 'two'}", *here)
    run("command=restore", f"input={root / 'two'}", "hpo.study_name=second", *here)
    for name in ("first", "second"):
        run("command=hpo", "n_trials=4", f"hpo.study_name={name}", *here)
        run("command=export", f"hpo.study_name={name}", *here)
    return root


def test_a_restored_study_goes_on_as_the_first(studies: Path) -> None:
    first, second = (settings_and_scores(studies / name / "export") for name in ("first", "second"))
    assert len(first) == 4 and first == second
    assert first[:2] == settings_and_scores(studies / "two") != first[2:]
    predictions = [(studies / name / "export" / "predictions-0000.npz").read_bytes() for name in ("first", "second")]
    assert predictions[0] == predictions[1]


def test_the_first_trials_are_a_study_of_their_own(studies: Path) -> None:
    """Two of four trials, restored, are what the study was when it had two, and it is complete."""
    run(
        "command=restore",
        f"input={studies / 'first' / 'export'}",
        "restore.trials=2",
        "hpo.study_name=few",
        f"studies_dir={studies}",
    )
    run("command=export", "hpo.study_name=few", f"studies_dir={studies}")
    assert settings_and_scores(studies / "few" / "export") == settings_and_scores(studies / "two")
    about = read_about(studies / "few" / "export")["attributes"]
    assert about["n_trials"] == 2 and about["identity"] == read_about(studies / "two")["attributes"]["identity"]


def test_an_archive_is_a_table_of_folds(studies: Path) -> None:
    table = pd.read_json(studies / "first" / "export" / "trials-0000.jsonl.xz", lines=True)
    folds = table.slots.map(lambda slots: [score for slot in slots for _, score, *_ in slot["folds"]])
    assert table.number.tolist() == [0, 1, 2, 3] and folds.map(len).tolist() == [2, 2, 2, 2]
    assert (folds.map(lambda scores: sum(scores) / 2) - table.value).abs().max() < 1e-12


def test_an_archive_names_neither_posts_nor_the_machine(studies: Path) -> None:
    folder = studies / "first" / "export"
    text = json.dumps(read_about(folder)) + json.dumps(unpacked_rows((folder / "trials-0000.jsonl.xz").read_bytes()))
    assert socket.gethostname() not in re.findall(r"[\w.-]+", text) and str(studies) not in text and "/home/" not in text
    posts = load_data(load_config([*SMALL, f"studies_dir={studies}"])).dev.post.unique()
    assert len(posts) > 10 and not [post for post in posts if post[:30] in text]


def test_errors_are_one_line(studies: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = f"studies_dir={studies}"
    for words, problem in {
        ("command=restore", f"input={studies}", "hpo.study_name=x"): "holds no archive of a study (no study.json)",
        (
            "command=restore",
            f"input={studies / 'two'}",
            "hpo.study_name=first",
        ): "hpo.study_name=first: this study exists already",
        ("command=export", "hpo.study_name=firts"): "no study database at",
        ("command=export", "hpo.study_name=second", f"output={studies / 'two'}"): "holds the archive of another study ('first')",
    }.items():
        assert cli.main([*words, root]) == 2
        said = capfd.readouterr().err
        assert problem in said and said.count("\n") == 1, said


def test_the_archive_of_the_gallery_is_whole(tmp_path: Path) -> None:
    """Git ignores tables and archives, so a part could be left out of a commit without a word; small enough for a repository."""
    folder = Path(__file__).resolve().parent.parent / "studies" / "gallery" / "archive"
    _, rows, predictions = read_archive(folder, "headline")
    tracked = subprocess.run(["git", "ls-files", folder], cwd=folder, capture_output=True, text=True, check=True).stdout.split()
    assert {Path(name).name for name in tracked} == {path.name for path in folder.iterdir()}
    assert max(path.stat().st_size for path in folder.iterdir()) < 1e6 and len(rows) >= 230 and predictions
    ended = [row for row in rows if row.get("state") in ("COMPLETE", "PRUNED")]
    table = pd.read_csv(folder / "folds.csv")
    assert len(table) == len(ended) and ((table.state == "PRUNED") == table.reason.notna()).all()
    assert table.report_1.notna().all() and table.score_1.notna()[table.folds > 0].all()
