"""A study that is killed anywhere ends as one that was not: the same trials, the same scores, no fold paid for twice."""

import os
import random
import signal
import time
from collections import Counter

import pytest
from harness import (
    PHASES,
    Board,
    Diary,
    fingerprint,
    invented_study,
    kill,
    logits_by_fold,
    real_study,
    scores_by_fold,
    started,
    trials_by_slot,
    wait_for,
)

from criteria_hpo.config.load import load_config
from criteria_hpo.config.paths import storage_url
from criteria_hpo.storage import leases as rules
from criteria_hpo.storage.ledger import Ledger

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills by SIGKILL")
COMMON = [
    "preset=smoke",
    "model=tiny",
    "data.max_groups=15",
    "hpo.study_name=killed",
    "hpo.pruner.startup_trials=3",
    "hpo.sampler.n_startup_trials=4",
]


def one_life(words, folder, board, target, rng, spared):
    """Starts the study and kills it in the phase `target` after `spared` folds; the phase it died in, None if it ended."""
    board.phase, board.commits = "start", 0
    with started(real_study, words, board.path, folder / "diary") as process:
        if target == "start":
            time.sleep(rng.uniform(0.0, 0.3))
        else:
            wait_for(lambda: (board.commits >= spared and board.phase == target) or not process.is_alive())
            time.sleep(rng.expovariate(200))
        if not process.is_alive():
            assert process.exitcode == 0
            return None
        kill(process)
        return board.phase


def killed_study(folder, words, n_trials, per_phase, n_kills, seed=1):
    """Kills a study again and again, most often where it was killed least, and lets it finish; the deaths by phase."""
    rng, deaths, target = random.Random(seed), Counter(), "start"
    words = [*words, f"studies_dir={folder}"]
    cfg, board = load_config(words), Board(folder / "board")
    ledger = Ledger(storage_url(cfg), "killed")
    while True:
        under_way = ledger.slots(unfinished=True)
        third = bool(under_way) and under_way[0].attempts >= rules.MAX_ATTEMPTS - 1
        done = ledger.finished()[0] == n_trials
        missing = max(n_kills - deaths.total(), 1)
        left = ["plotting"] if done else [p for p in PHASES[:-1] if deaths[p] < per_phase] or PHASES[:-1]
        if done and deaths["plotting"] >= per_phase and deaths.total() >= n_kills:
            break
        target = rng.choice(left)
        folds_left = 0.6 * cfg.data.n_folds * (n_trials - ledger.finished()[0])
        spared = max(int(rng.uniform(0, 2 * folds_left / missing)), int(third and target != "start"))
        died = one_life(words, folder, board, target, rng, 0 if done else spared)
        deaths.update([died] if died else [])
        assert died or ledger.finished()[0] == n_trials, "a run that ended by itself left the study unfinished"
    with started(real_study, words, board.path, folder / "diary") as process:
        process.join()
        assert process.exitcode == 0
    return deaths, ledger, cfg


SHORT = ["data.n_folds=2", "data.max_groups=12", "model.max_length=64"]  # a fold is a blink


@pytest.mark.parametrize(
    ("more", "n_trials", "per_phase", "n_kills"),
    [pytest.param(SHORT, 8, 1, 10, id="ten"), pytest.param([], 40, 5, 100, id="a hundred", marks=pytest.mark.slow)],
)
def test_killed_in_every_phase(tmp_path, tell, more, n_trials, per_phase, n_kills):
    words = [*COMMON, *more, f"n_trials={n_trials}"]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    folder.mkdir()
    in_peace = [*words, f"studies_dir={whole}"]
    with started(real_study, in_peace, Board(whole / "board").path, whole / "diary") as process:
        deaths, ledger, cfg = killed_study(folder, words, n_trials, per_phase, n_kills)
        process.join()
        assert process.exitcode == 0
    expected = trials_by_slot(storage_url(load_config(in_peace)), "killed")
    diary, rows = Diary(folder / "diary"), trials_by_slot(storage_url(cfg), "killed")
    committed, begun = len(ledger.folds()), diary.count("train")
    tell("kills", f"{deaths.total()} SIGKILLs over {n_trials} trials", ", ".join(f"{p} {deaths[p]}" for p in PHASES))
    tell(
        "kills",
        f"{committed} folds committed, {diary.count('commit')} seen from outside, {begun} begun",
        f"{diary.count('again')} trained after their commit; trials {fingerprint(rows)}, uninterrupted {fingerprint(expected)}",
    )
    assert len(rows) == n_trials and rows == expected
    kept, whole_logits = logits_by_fold(ledger), logits_by_fold(Ledger(storage_url(load_config(in_peace)), "killed"))
    assert kept == whole_logits and set(kept) == set(scores_by_fold(ledger)) and len(kept) == committed
    assert deaths.total() >= n_kills and min(deaths[p] for p in PHASES) >= per_phase
    assert diary.count("again") == 0
    assert committed - deaths["committing"] - deaths["reporting"] <= diary.count("commit") <= committed <= begun
    assert begun - committed <= deaths.total()
    assert [s.outcome for s in ledger.slots()].count("FAIL") == 0


INVENTED = ["preset=smoke", "model=tiny", "hpo.study_name=frozen", "hpo.pruner.type=none", "hpo.pruner.patience.folds=null"]


def frozen_study(words, seconds, diary, floor):
    rules.LEASE_FLOOR = floor
    invented_study(words, seconds, diary_path=diary)


def test_frozen_past_its_lease(tmp_path, tell):
    """A worker that was woken after another took its trial over can write nothing of it, and goes on with other trials."""
    words = [*INVENTED, f"studies_dir={tmp_path}", "n_trials=3"]
    ledger = Ledger(storage_url(load_config(words)), "frozen")
    diary = Diary(tmp_path / "diary")
    common = (frozen_study, words, 0.5, diary.path, 2.0)
    with started(*common) as first:
        assert wait_for(lambda: diary.count("train") == 3)
        os.kill(first.pid, signal.SIGSTOP)
        held = ledger.slots()[0]
        with started(*common) as second:
            assert wait_for(lambda: ledger.slots()[0].token != held.token)
            assert wait_for(lambda: ledger.count_folds(0) >= 3)
            os.kill(first.pid, signal.SIGCONT)
            first.join(60)
            second.join(60)
            assert (first.exitcode, second.exitcode) == (0, 0)
    rows = trials_by_slot(storage_url(load_config(words)), "frozen")
    owners = {s.slot: s.pid for s in ledger.slots()}
    tell("frozen", "stopped in fold 3 of slot 0, taken over, woken", f"{len(ledger.folds())} folds, no error")
    assert len(rows) == 3 and len(ledger.folds()) == 15 and owners[0] == second.pid
    assert diary.count("train") == 16  # the frozen one's fold was paid for twice, and written once


@pytest.mark.slow
def test_asked_to_stop(tmp_path, tell):
    """SIGTERM: the running fold is finished and committed, nothing else is begun, and the attempt does not count."""
    words = [*INVENTED, f"studies_dir={tmp_path}", "n_trials=2"]
    ledger = Ledger(storage_url(load_config(words)), "frozen")
    board = Board(tmp_path / "board")
    with started(invented_study, words, 1.0, board.path, tmp_path / "diary") as process:
        assert wait_for(lambda: board.commits == 1 and board.phase == "training")
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
    begun = Diary(tmp_path / "diary").count("train")
    slot = ledger.slots()[0]
    tell("asked to stop", f"SIGTERM in fold 2: {ledger.count_folds(0)} committed", f"{begun} begun; attempts {slot.attempts}")
    assert ledger.count_folds(0) == 2 and begun == 3 and slot.attempts == 0 and slot.outcome is None
    assert invented_study(words, 0.0) == 2 and len(ledger.slots()) == 2


def dies_in_fold_two(words, diary):
    renew = Ledger.renew

    def fatal(self, lease, fold, share):
        if (lease.slot, fold) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)
        renew(self, lease, fold, share)

    Ledger.renew = fatal
    invented_study(words, 0.0, diary_path=diary)


@pytest.mark.slow
def test_a_trial_that_kills_its_worker_is_given_up(tmp_path, tell):
    """Three attempts at one fold, then FAIL with a reason; another trial takes its place."""
    words = [*INVENTED, f"studies_dir={tmp_path}", "n_trials=3"]
    ledger = Ledger(storage_url(load_config(words)), "frozen")
    codes = []
    while not codes or codes[-1] != 0:
        assert len(codes) < 6
        with started(dies_in_fold_two, words, tmp_path / "diary") as process:
            process.join()
            codes.append(process.exitcode)
    outcomes = [s.outcome for s in ledger.slots()]
    tell("given up", f"a trial that kills its worker in fold 2: exit codes {codes}", f"{outcomes}: {ledger.slots()[1].reason}")
    assert codes == [-9, -9, -9, 0] and outcomes == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "without an error message" in ledger.slots()[1].reason and len(ledger.folds(1)) == 1
