"""Four processes on one study in one SQLite file, of which one is killed: each trial once, each fold once, the count exact."""

from collections import Counter
from contextlib import ExitStack

import numpy as np
import sqlalchemy as sa
from harness import (
    Board,
    Diary,
    invented_study,
    kill,
    logits_by_fold,
    scores_by_fold,
    started,
    trials_by_slot,
    wait_for,
)

from criteria_hpo.config.load import load_config
from criteria_hpo.config.paths import storage_url
from criteria_hpo.storage.ledger import Ledger
from criteria_hpo.storage.predictions import out_of_fold


def test_four_processes_on_one_file(tmp_path, tell):
    words = ["preset=smoke", "model=tiny", "hpo.study_name=four", "hpo.sampler.n_startup_trials=5", f"studies_dir={tmp_path}"]
    words += ["n_trials=24", "hpo.pruner.type=none", "hpo.pruner.patience.folds=null"]
    url, diary = storage_url(load_config(words)), Diary(tmp_path / "diary")
    ledger, boards = Ledger(url, "four"), [Board(tmp_path / f"board-{n}") for n in range(4)]
    with ExitStack() as stack:
        crew = [stack.enter_context(started(invented_study, words, 0.1, board.path, diary.path)) for board in boards]
        assert wait_for(lambda: boards[0].commits >= 2 and boards[0].phase == "training")
        kill(crew[0])
        for process in crew[1:]:
            process.join(300)
        assert [process.exitcode for process in crew] == [-9, 0, 0, 0]
    rows, owners = trials_by_slot(url, "four"), Counter(slot.pid for slot in ledger.slots())
    tell(
        "SQLite",
        f"4 processes, one killed: trials by process {sorted(owners.values(), reverse=True)}",
        f"{len(rows)} trials of 24, {ledger.count_folds()} folds committed, {diary.count('train')} begun",
    )
    assert [row[0] for row in rows] == list(range(24)) and {slot.outcome for slot in ledger.slots()} == {"COMPLETE"}
    assert all(len(row[3]) == 5 for row in rows) and ledger.count_folds() == 120 and ledger.finished()[0] == 24
    assert diary.count("again") == 0 and 120 <= diary.count("train") <= 121
    assert len(owners) >= 2 and set(logits_by_fold(ledger)) == set(scores_by_fold(ledger))


def test_a_study_of_a_version_without_predictions(tmp_path):
    """It is read without them, and the folds that it still trains have theirs."""

    def run(n_trials):
        with started(invented_study, [*words, f"n_trials={n_trials}"], 0.0) as process:
            process.join(300)
            assert process.exitcode == 0

    words = ["preset=smoke", "model=tiny", "hpo.study_name=old", f"studies_dir={tmp_path}", "hpo.pruner.type=none"]
    url = storage_url(load_config(words))
    run(1)
    ledger = Ledger(url, "old")
    with ledger.engine.begin() as db:
        db.execute(sa.text("drop table criteria_hpo_predictions"))
    old = logits_by_fold(ledger), out_of_fold(ledger, {"some": np.arange(3)}), ledger.finished()[0]
    assert old == ({}, None, 1)
    run(2)
    assert set(logits_by_fold(ledger)) == {(1, fold) for fold in range(1, 6)} and len(scores_by_fold(ledger)) == 10
