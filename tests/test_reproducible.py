"""The same study gives the same numbers to the last bit: in another process, and killed and started again."""

import os
import signal
import subprocess
import sys
import time

import optuna
import pytest

from criteria_hpo.storage.ledger import Ledger

SETTINGS = [
    "command=hpo",
    "preset=smoke",
    "model=tiny",
    "data.max_groups=20",
    "n_trials=5",
    "hpo.study_name=same",
    "hpo.pruner.startup_trials=4",
    "hpo.sampler.n_startup_trials=2",
]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills by SIGKILL")


def start(folder):
    env = {**os.environ, "CRITERIA_HPO_PROGRESS": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "criteria_hpo.cli", *SETTINGS, f"studies_dir={folder}"],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err


def results(folder):
    study = optuna.load_study(study_name="same", storage=f"sqlite:///{folder}/same/study.db")
    return [(t.state.name, t.params, t.user_attrs["fold_scores"], t.value) for t in study.trials if t.state.name != "FAIL"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder))
    return results(folder)


def test_two_processes_agree_to_the_bit(whole, tmp_path):
    finish(start(tmp_path))
    assert len(whole) == 5 and results(tmp_path) == whole


@pytest.mark.slow
def test_killed_after_three_trials_and_a_fold(whole, tmp_path):
    process = start(tmp_path)
    ledger = Ledger(f"sqlite:///{tmp_path}/same/study.db", "same")
    until = time.time() + 600
    while time.time() < until and process.poll() is None:
        slots = ledger.slots()
        if sum(s.outcome is not None for s in slots) == 3 and len(ledger.folds(3)) >= 1:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folds = len(ledger.folds(3))
    assert process.returncode == -signal.SIGKILL and 1 <= folds < 5
    finish(start(tmp_path))
    print(f"killed in trial 3 after fold {folds}")
    assert ledger.slots()[3].outcome is not None and len(ledger.folds(3)) >= folds
    assert results(tmp_path) == whole
