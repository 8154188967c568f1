"""The search never has the labels of the test posts: whatever stands there, it finds the same."""

from pathlib import Path

import numpy as np
import pytest

from criteria_hpo.config.load import load_config
from criteria_hpo.config.schema import Config
from criteria_hpo.core.errors import DataError, StudyError
from criteria_hpo.data.study_data import UNKNOWN, check_files, load_data, load_test
from criteria_hpo.execution.study import StudyRun, run_hpo
from criteria_hpo.inputs.corpora import load_corpus
from criteria_hpo.storage.predictions import out_of_fold


def release(path: Path, answers: list[str] | None = None) -> str:
    """Write 80 tweets as a release with a test part; `answers`: labels of its test rows, in turn."""
    pairs = load_corpus("tweets")
    groups = sorted(pairs.group_id.unique())[:80]
    pairs = pairs[pairs.group_id.isin(groups)].drop(columns="evidence")
    part = np.where(pairs.group_id.isin(groups[::5]), "test", "dev")
    labels = pairs.label.astype(str)
    if answers:
        labels = labels.mask(part == "test", [answers[row % len(answers)] for row in range(len(pairs))])
    pairs.assign(label=labels, split=part).to_csv(path, index=False)
    return str(path)


def config(path: str, folder: Path) -> Config:
    """The smoke preset on this table."""
    words = ["preset=smoke", "model=tiny", "data=pairs", f"data.path={path}", "data.max_groups=null", f"studies_dir={folder}"]
    return load_config(words)


def found_by(run: StudyRun) -> tuple[object, ...]:
    """All that a search has found, to the last bit: settings, scores and predictions."""
    trials = [(trial.params, trial.value, trial.user_attrs["fold_scores"]) for trial in run.study.get_trials()]
    predictions = out_of_fold(run.ledger, run.data.valid_rows)
    assert predictions is not None and len(trials) == run.cfg.n_trials
    return trials, predictions.logits.tobytes(), run.study.user_attrs["identity"]


@pytest.fixture(scope="module")
def true_search(tmp_path_factory: pytest.TempPathFactory) -> StudyRun:
    """The search on the table as it is."""
    folder = tmp_path_factory.mktemp("real")
    return run_hpo(config(release(folder / "real.csv"), folder))


@pytest.mark.parametrize("answers", [["garbage", "", "#N/A", "7"], ["1"]], ids=["garbage", "all positive"])
def test_other_labels_of_the_test_posts_change_nothing(tmp_path: Path, true_search: StudyRun, answers: list[str]) -> None:
    """Two searches on tables that differ only there are equal to the bit; no label is in memory."""
    run = run_hpo(config(release(tmp_path / "other.csv", answers), tmp_path / "other"))
    for each in (true_search, run):
        assert set(each.data.test.label) == {UNKNOWN} and not each.data.test.evidence.map(len).any()
    assert found_by(true_search) == found_by(run)
    changed = config(release(tmp_path / "other.csv"), tmp_path / "other")
    with pytest.raises(StudyError, match=r"other\.csv: the file has changed since study 'study' was begun"):
        check_files(changed.data, run.study.user_attrs["files"], "study")


def test_bad_labels_are_named_where_labels_are_read(tmp_path: Path) -> None:
    """The search does not look at the test part; `load_test`, which checks and evaluation call, names the row."""
    cfg = config(release(tmp_path / "bad.csv", ["garbage"]), tmp_path)
    data = load_data(cfg)
    with pytest.raises(DataError, match=r"bad.csv, row \d+: label is text"):
        load_test(cfg, data)
    one_label = config(release(tmp_path / "one.csv", ["1"]), tmp_path)
    with pytest.raises(DataError, match="the test split has no negative pair"):
        load_test(one_label, load_data(one_label))
