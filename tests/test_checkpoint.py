"""A fold that is killed and resumed within ends with the bits of one that never was, and leaves no file."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import optuna
import pytest
import torch

from criteria_hpo.augmentation import make_variants as augment
from criteria_hpo.augmentation.wording import WORD
from criteria_hpo.config.hparams import HParams
from criteria_hpo.config.load import load_config
from criteria_hpo.config.schema import CheckpointConfig
from criteria_hpo.data.study_data import load_data
from criteria_hpo.training.checkpoint import Checkpoints
from criteria_hpo.training.cross_validation import run_single_fold
from criteria_hpo.training.fold import Observer
from criteria_hpo.training.setup import make_setup

SETTING = HParams(learning_rate=5e-4, batch_size=16, hidden_dropout=0.2)
AUGMENTING = SETTING.model_copy(update={"aug_enable": True, "aug_prob": 0.5, "aug_method": "synonym"})
OFTEN = CheckpointConfig(after_minutes=0, every_minutes=1e-9)
EPOCHS = 4


class Killed(Exception):
    """Nobody catches it but the test."""


def walnuts(sentences):
    """A rewriter that changes every word of every sentence."""
    return [["walnut"] * len(WORD.findall(sentence)) for sentence in sentences]


@pytest.fixture(scope="module")
def setup():
    """Twelve posts with reworded positives; early stopping after two epochs that bring nothing."""
    words = ["preset=smoke", "model=tiny", "data.max_groups=12", "model.max_length=48", "augmentation=nlpaug"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "make_rewriter", lambda *args: partial(walnuts))
        patch.setattr(augment, "append_variants", lambda *args: None)
        cfg = load_config([*words, "augmentation.variants=2", "hpo.search_space.aug_method.choices=[synonym]"])
        made = make_setup(cfg, load_data(cfg), largest_batch=16)
    training = made.training.model_copy(update={"num_epochs": EPOCHS, "early_stopping_patience": 2})
    return dataclasses.replace(made, training=training)


@pytest.fixture(scope="module")
def uninterrupted(setup):
    return {hparams.aug_enable: run_single_fold(setup, hparams, setup.folds[0], seed=3) for hparams in (SETTING, AUGMENTING)}


class Steps(Observer):
    """Counts the steps of the process, and raises at number `kill_at` (None: never)."""

    def __init__(self, kill_at=None):
        self.kill_at, self.count = kill_at, 0

    def step(self, fold, share):
        self.count += 1
        if self.count == self.kill_at:
            raise Killed


def steps_of_an_epoch(setup):
    return math.ceil(len(setup.folds[0].train) / 16)


def same(one, other):
    return (
        np.array_equal(one.probs, other.probs)
        and (one.losses, one.score, one.metrics) == (other.losses, other.score, other.metrics)
        and (one.epochs, one.best_epoch, one.fits, one.seed) == (other.epochs, other.best_epoch, other.fits, other.seed)
    )


@pytest.mark.parametrize("hparams", [SETTING, AUGMENTING], ids=["own posts", "reworded posts"])
@pytest.mark.parametrize("kills", [[2], ["epoch"], ["epoch", 2, 3]], ids=["first steps", "end of an epoch", "three times"])
def test_a_fold_goes_on_within(setup, uninterrupted, tmp_path, hparams, kills):
    """Dropout on, early stopping on; killed once or several times, and resumed by what finds nothing but the file."""
    files, steps, done = Checkpoints(tmp_path, "slot-0", {}, OFTEN), steps_of_an_epoch(setup), 0
    for kill in kills:
        kill = steps + 1 if kill == "epoch" else kill
        with pytest.raises(Killed):
            run_single_fold(setup, hparams, setup.folds[0], 3, Steps(kill), file=files.of(1))
        done += kill - 1
        torch.manual_seed(99)
    left = Steps()
    resumed = run_single_fold(setup, hparams, setup.folds[0], 3, left, file=files.of(1))
    assert left.count == resumed.epochs * steps - done and same(resumed, uninterrupted[hparams.aug_enable])
    assert resumed.seconds > resumed.evaluating > 0


def test_early_stopping_remembers_the_best_epoch(setup, tmp_path):
    """The best weights are those of an epoch before the kill: watched values fall after it."""
    watched = iter([0.9, 0.1, 0.1, 0.9, 0.1, 0.1])
    files, steps = Checkpoints(tmp_path, "slot-0", {}, OFTEN), steps_of_an_epoch(setup)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("criteria_hpo.training.fold.watch", lambda setup, rows: next(watched))
        whole = run_single_fold(setup, SETTING, setup.folds[0], 3)
        with pytest.raises(Killed):
            run_single_fold(setup, SETTING, setup.folds[0], 3, Steps(steps + 2), file=files.of(1))
        resumed = run_single_fold(setup, SETTING, setup.folds[0], 3, file=files.of(1))
    assert (whole.best_epoch, whole.epochs) == (1, 3) and same(resumed, whole)


def test_another_fold_setting_or_size_begins_anew(setup, uninterrupted, tmp_path):
    files = Checkpoints(tmp_path, "slot-0", {}, OFTEN)
    for change in ({"seed": 4}, {"hparams": AUGMENTING}, {"setup": dataclasses.replace(setup, physical_batch_size=5)}):
        args = {"setup": setup, "hparams": SETTING, "fold": setup.folds[0], "seed": 3} | change
        with pytest.raises(Killed):
            run_single_fold(**args, observer=Steps(4), file=files.of(1))
        left = Steps()
        fresh = run_single_fold(setup, SETTING, setup.folds[0], 3, left, file=files.of(1))
        assert left.count == fresh.epochs * steps_of_an_epoch(setup) and same(fresh, uninterrupted[False])


def test_a_broken_file_costs_the_fold_and_no_more(setup, uninterrupted, tmp_path, caplog):
    files = Checkpoints(tmp_path, "slot-0", {}, OFTEN)
    with pytest.raises(Killed):
        run_single_fold(setup, SETTING, setup.folds[0], 3, Steps(4), file=files.of(1))
    path = files.of(1).path
    path.write_bytes(path.read_bytes()[:-100])
    assert same(run_single_fold(setup, SETTING, setup.folds[0], 3, file=files.of(1)), uninterrupted[False])
    assert [r for r in caplog.records if "cannot be read" in r.getMessage()]


WORDS = [
    "preset=smoke",
    "model=tiny",
    "data.max_groups=12",
    "model.max_length=48",
    "data.n_folds=2",
    "training.num_epochs=2",
    "hpo.pruner.type=none",
    "hpo.search_space.batch_size.choices=[16]",
    "hpo.study_name=kept",
    "n_trials=2",
]
SCRIPT = """
import json, os, signal, sys
from criteria_hpo.model.classifier import BERTClassifier
from criteria_hpo.config.load import load_config
from criteria_hpo.execution.study import run_hpo

words, kill, rows, plain = json.loads(sys.argv[1]), int(sys.argv[2]), [], BERTClassifier.forward

def counted(self, input_ids, *args, **kwargs):
    rows.extend([1] * self.training)
    if self.training and len(rows) == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, input_ids, *args, **kwargs)

BERTClassifier.forward = counted
run_hpo(load_config(words))
print(len(rows))
"""


def run_study(folder, kill, *more):
    """(exit status, forward passes in training) of a process that kills itself at a forward pass in training (0: never)."""
    words = json.dumps([*WORDS, f"studies_dir='{folder}'", *more])
    env = os.environ | {"CRITERIA_HPO_PROGRESS": "0"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, words, str(kill)], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, int(done.stdout or 0)


def results(folder):
    study = optuna.load_study(study_name="kept", storage=f"sqlite:///{folder}/kept/study.db")
    return [(t.state.name, t.params, t.user_attrs["fold_scores"], t.value) for t in study.trials]


@pytest.mark.skipif(os.name != "posix", reason="kills by SIGKILL")
def test_a_killed_study_loses_one_step(tmp_path, tell):
    """Killed in the second fold of the first trial; the next process trains what was left, and no file stays."""
    often = "training.checkpoint.after_minutes=0", "training.checkpoint.every_minutes=1e-9"
    _, whole = run_study(tmp_path / "whole", 0)
    kill = whole // 4 + 3
    assert run_study(tmp_path / "killed", kill, *often)[0] == -signal.SIGKILL
    kept = list((tmp_path / "killed" / "kept" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["slot-0-fold-2.pt"]
    ended, left = run_study(tmp_path / "killed", 0)
    assert ended == 0
    tell("within", "one kill", f"{whole} steps uninterrupted, killed in step {kill}, {left} steps left")
    assert left == whole - (kill - 1) and results(tmp_path / "killed") == results(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "kept" / "checkpoints").iterdir())
