"""What goes wrong around a study: a full disk, a folder that cannot be written, errors in a trial, a clock that jumps."""

import json
import math
import os
import subprocess
import time
from pathlib import Path

import nbformat
import optuna
import psutil
import pytest
import torch
from harness import Board, Diary, Invented, invented_setup, invented_study, started, wait_for

from criteria_hpo import notebooks
from criteria_hpo.config.load import load_config
from criteria_hpo.config.paths import storage_url, study_dir
from criteria_hpo.core.errors import ConfigError, StudyError
from criteria_hpo.execution import study as study_room
from criteria_hpo.execution import trial as objective_room
from criteria_hpo.execution.worker import finished_trials
from criteria_hpo.model import memory as vram
from criteria_hpo.model.classifier import BERTClassifier
from criteria_hpo.plotting import plots
from criteria_hpo.storage.database import open_storage
from criteria_hpo.storage.ledger import Ledger
from criteria_hpo.training import cross_validation as trainer
from criteria_hpo.training.epoch import fold_seed
from criteria_hpo.training.fold import Observer

COMMON = ["preset=smoke", "model=tiny", "data.max_groups=15", "hpo.pruner.type=none", "hpo.pruner.patience.folds=null"]


@pytest.fixture
def disk(tmp_path):
    """A file system of 24 MB in `tmp_path`, which can be filled, emptied and made read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if os.geteuid() == 0 else None
    if done is None or done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here ({done.stderr.strip() if done else 'not root'})")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place):
    """Leaves no byte free."""
    with (place / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(65536)):
                pass
        except OSError:
            pass


@pytest.fixture
def untrained(monkeypatch):
    """Studies without a model: a fold takes no time."""
    monkeypatch.setenv("CRITERIA_HPO_PROGRESS", "0")
    monkeypatch.setattr(objective_room, "cross_validate", Invented(0.0))
    monkeypatch.setattr(study_room, "searchable", lambda space, model: space)
    monkeypatch.setattr(study_room.StudyRun, "setup", lambda run, request: invented_setup(run.cfg))


def configured(folder, name, *words):
    return load_config([*COMMON, f"studies_dir={folder}", f"hpo.study_name={name}", *words])


def test_disk_full_while_results_are_written(disk, tmp_path, untrained, tell, caplog):
    """Database on one disk, results on another that is full: each result that cannot be written says so, the study is whole."""
    cfg = configured(disk, "full", "n_trials=2", f"hpo.storage=sqlite:///{tmp_path}/study.db")
    assert study_room.run_hpo(cfg).study.best_value > 0
    manifest = study_dir(cfg) / "manifest.json"
    old, more = manifest.read_text(), configured(disk, "full", "n_trials=3", f"hpo.storage=sqlite:///{tmp_path}/study.db")
    fill(disk)

    run = study_room.run_hpo(more)
    tell("disk full", "manifest.json", caplog.messages[-1])
    assert "manifest.json was not written" in caplog.messages[-1] and manifest.read_text() == old
    with pytest.raises(StudyError, match="cannot write plots") as plot:
        plots.save_plots(run.study, study_dir(cfg) / "plots")
    tell("disk full", "plots", str(plot.value))
    template = tmp_path / "t.ipynb"
    cell = nbformat.v4.new_code_cell("#p\nx = 1", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), template)
    with pytest.raises(StudyError, match="free some space") as notebook:
        notebooks.execute(template, study_dir(cfg) / "t.ipynb", {"x": "y" * 1000})
    tell("disk full", "notebook", str(notebook.value))

    (disk / "ballast").unlink()
    assert len(study_room.run_hpo(more).study.trials) == 3
    assert json.loads(manifest.read_text())["trials"] == {"COMPLETE": 3}
    assert len(plots.save_plots(run.study, study_dir(cfg) / "plots")) > 3


@pytest.mark.slow
def test_disk_full_under_the_database(disk, untrained, tell):
    cfg = configured(disk, "full", "n_trials=500")
    commit, ledger = Ledger.commit_fold, Ledger(storage_url(cfg), "full")

    def commit_and_fill(self, lease, fold, *rest):
        if (lease.slot, fold) == (3, 2):
            fill(disk)
        commit(self, lease, fold, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Ledger, "commit_fold", commit_and_fill)
        with pytest.raises(StudyError) as full:
            study_room.run_hpo(cfg)
    tell("disk full", "database", str(full.value))
    assert "free some space" in str(full.value)
    (disk / "ballast").unlink()
    kept = ledger.count_folds()
    done = study_room.run_hpo(cfg.model_copy(update={"n_trials": 5}))
    assert kept >= 16 and [t.state.name for t in done.study.trials].count("COMPLETE") == 5 and ledger.count_folds() == 25


def test_folder_that_cannot_be_written(disk, untrained, tell):
    cfg = configured(disk, "sealed", "n_trials=1")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StudyError) as sealed:
        study_room.run_hpo(cfg)
    tell("read-only", "study folder", str(sealed.value))
    assert "set studies_dir to another folder" in str(sealed.value)
    elsewhere = configured(disk.parent, "sealed", "n_trials=1", f"hpo.storage=sqlite:///{disk}/x/study.db")
    with pytest.raises(StudyError, match="name another folder") as database:
        study_room.run_hpo(elsewhere)
    tell("read-only", "database's folder", str(database.value))


def failing(monkeypatch, error, slot=1, times=99):
    """Trials of one slot raise `error` at their third fold, the first `times` times."""
    left, good = [times], Invented(0.0)

    class Failing(Observer):
        def __init__(self, trial, observer):
            self.trial, self.step, self.commit = trial, observer.step, observer.fold

        def fold(self, result):
            if self.trial == slot and result.fold == 3 and left[0]:
                left[0] -= 1
                raise error
            return self.commit(result)

    def cross_validate(setup, hparams, study_seed, trial, observer, *rest):
        good(setup, hparams, study_seed, trial, Failing(trial, observer), *rest)

    monkeypatch.setattr(objective_room, "cross_validate", cross_validate)


@pytest.mark.parametrize(
    ("error", "times", "outcome"),
    [
        (MemoryError("nothing left"), 99, "FAIL"),
        (RuntimeError("a stray error"), 2, "COMPLETE"),
    ],
    ids=["out of memory", "twice"],
)
def test_errors_in_a_trial(tmp_path, untrained, monkeypatch, tell, error, times, outcome):
    failing(monkeypatch, error, times=times)
    cfg = configured(tmp_path, "errors", "n_trials=4")
    run = study_room.run_hpo(cfg)
    slots = Ledger(storage_url(cfg), "errors").slots()
    attributes = next(t for t in run.study.trials if t.user_attrs["slot"] == 1).user_attrs
    reason = slots[1].reason or attributes.get("prune_reason") or "two attempts failed, the third went through"
    tell("errors in a trial", f"{error!r}, {min(times, 3)} times in one fold", f"{outcome}: {reason}")
    assert slots[1].outcome == outcome and finished_trials(run.study) == 4
    assert len(slots) == 4 + (outcome == "FAIL") and len(Ledger(storage_url(cfg), "errors").folds(1)) == (5 if times == 2 else 2)
    log = (study_dir(cfg) / "study.log").read_text()
    assert "attempt 1 of 3" in log and "stray" not in log and "nothing left" not in log


def broken(monkeypatch, breaks):
    """Has every forward pass of training begin with `breaks(classifier, batch's token ids, the fold's seed)`."""
    forward, run_single_fold, now = BERTClassifier.forward, trainer.run_single_fold, []

    def noted(setup, hparams, fold, seed, *rest):
        now[:] = [seed]
        return run_single_fold(setup, hparams, fold, seed, *rest)

    def breaking(self, input_ids, **batch):
        if torch.is_grad_enabled():
            breaks(self, input_ids, now[0])
        return forward(self, input_ids, **batch)

    monkeypatch.setattr(trainer, "run_single_fold", noted)
    monkeypatch.setattr(BERTClassifier, "forward", breaking)


REAL = ["data.n_folds=2", "model.max_length=64", "n_trials=3"]


def test_weights_that_are_no_numbers_any_more(tmp_path, monkeypatch, tell):
    """In the second fold of a real trial: it is pruned with its reason, and the next begins from the pretrained weights."""
    cfg = configured(tmp_path, "nan", *REAL)

    @torch.no_grad()
    def breaks(classifier, input_ids, seed):
        if seed == fold_seed(cfg.seed, 1, 2):
            next(classifier.parameters()).fill_(math.nan)

    broken(monkeypatch, breaks)
    study, ledger = study_room.run_hpo(cfg).study, Ledger(storage_url(cfg), "nan")
    line = next(line for line in (study_dir(cfg) / "study.log").read_text().splitlines() if "diverged" in line)
    tell("errors in training", "a weight is no number from the second fold of trial 1 on", line.partition("Trial")[2])
    assert [slot.outcome for slot in ledger.slots()] == ["COMPLETE", "PRUNED", "COMPLETE"] and len(ledger.folds()) == 5
    assert "loss nan" in line and "for the second time" in line
    assert study.trials[1].user_attrs["prune_reason"] == "diverged" and all(math.isfinite(row.score) for row in ledger.folds())


def test_memory_that_runs_out_in_a_training_step(tmp_path, monkeypatch, tell):
    """A micro-batch that does not fit is halved until it does, for the whole study; where none fits, a line says so."""
    fits = [0]

    def breaks(classifier, input_ids, seed):
        if len(input_ids) > fits[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    broken(monkeypatch, breaks)
    cfg = configured(tmp_path, "memory", *REAL)
    with pytest.raises(ConfigError, match="even at a batch of 1 in training") as none_fits:
        study_room.run_hpo(cfg)
    fits[0] = 4
    study, ledger = study_room.run_hpo(cfg).study, Ledger(storage_url(cfg), "memory")
    tell("errors in training", "no batch fits into memory", str(none_fits.value))
    tell("errors in training", "four samples do", f"physical batch size {study.user_attrs['physical_batch_size']} from then on")
    assert study.user_attrs["physical_batch_size"] == 4 and [slot.outcome for slot in ledger.slots()] == ["COMPLETE"] * 3
    assert "restarting with 4" in (study_dir(cfg) / "study.log").read_text() and len(ledger.folds()) == 6


class InventedCard(vram.Card):
    name = "invented"

    def __init__(self):
        super().__init__("cpu")

    def free_and_total(self):
        return 10, 10


def test_corrupt_files(tmp_path, untrained, tell):
    """A cache is made anew; a database is no cache, and is named."""
    probes = []

    def probe():
        probes.append(1)
        return 16

    for content in (None, b"{", b"\x00\xff", b'{"question": 1}', b"[]", b""):
        for file in tmp_path.glob("batch_size-*.json"):
            file.write_bytes(content)
        assert vram.cached_batch_size({"x": 1}, tmp_path, InventedCard().free_and_total(), probe) == 16
    assert (
        len(probes) == 6
        and vram.cached_batch_size({"x": 1}, tmp_path, InventedCard().free_and_total(), probe) == 16
        and len(probes) == 6
    )
    tell("corrupt", "cache of batch sizes, in five ways", "probed and written anew each time")

    cfg = configured(tmp_path, "corrupt", "n_trials=2")
    study_room.run_hpo(cfg)
    database = Path(storage_url(cfg).removeprefix("sqlite:///"))
    optuna.load_study(study_name="corrupt", storage=open_storage(storage_url(cfg)))
    for file in database.parent.glob("study.db-*"):
        file.unlink()
    database.write_bytes(b"no database " * 5000)
    with pytest.raises(StudyError) as corrupt:
        study_room.run_hpo(cfg)
    tell("corrupt", "study.db", str(corrupt.value))
    assert "hpo.storage" in str(corrupt.value)


def jumping_study(words, board, diary, jump):
    """An invented study on a machine whose clock is set by `jump` seconds after its second fold."""
    real, boot, page = time.time, psutil._pslinux.boot_time, Board(board)

    def moved():
        return jump if page.commits >= 2 else 0

    time.time = lambda: real() + moved()
    psutil._pslinux.boot_time = lambda: boot() + moved()
    invented_study(words, 0.1, board, diary)


@pytest.mark.skipif(not hasattr(psutil, "_pslinux"), reason="moves the clock as Linux shows it")
@pytest.mark.parametrize("jump", [86_400.0, pytest.param(-86_400.0, marks=pytest.mark.slow)])
def test_a_clock_that_jumps(tmp_path, tell, jump):
    """One worker's clock is set a day forward or back in the middle of its work: nobody takes anything from anybody."""
    words = [*COMMON, "n_trials=6", f"studies_dir={tmp_path}", "hpo.study_name=clock"]
    diary = Diary(tmp_path / "diary")
    boards = [Board(tmp_path / f"board-{n}") for n in (1, 2)]
    with (
        started(jumping_study, words, boards[0].path, diary.path, jump) as first,
        started(jumping_study, words, boards[1].path, diary.path, 0.0) as second,
    ):
        assert wait_for(lambda: not first.is_alive() and not second.is_alive())
        assert (first.exitcode, second.exitcode) == (0, 0)
    ledger = Ledger(storage_url(load_config(words)), "clock")
    begun, attempts = diary.count("train"), {s.attempts for s in ledger.slots()}
    tell(
        "clock", f"set by {jump / 3600:+.0f} hours under one of two workers", f"{begun} folds begun, {ledger.count_folds()} kept"
    )
    assert ledger.finished()[0] == 6 and begun == ledger.count_folds() == 30 and attempts == {1}
    assert min(board.commits for board in boards) >= 5
