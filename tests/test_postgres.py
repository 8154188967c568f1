"""A study on a PostgreSQL server that workers share: killed workers, a server that goes away, and what a trial costs."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import optuna
import psutil
import pytest
import sqlalchemy as sa
from filled import COMMON, cost_of_a_trial
from harness import (
    Board,
    Diary,
    Server,
    invented_study,
    kill,
    logits_by_fold,
    scores_by_fold,
    started,
    trials_by_slot,
    wait_for,
)
from scipy.special import logit

from criteria_hpo.config.load import load_config
from criteria_hpo.config.paths import storage_url
from criteria_hpo.core.errors import StudyError
from criteria_hpo.results.stored import stored_study
from criteria_hpo.storage import engine
from criteria_hpo.storage import leases as rules
from criteria_hpo.storage.database import exclusive, open_storage, stored_tables
from criteria_hpo.storage.engine import make_engine
from criteria_hpo.storage.ledger import Ledger


@pytest.fixture(scope="module")
def server():
    one = Server(tempfile.mkdtemp(prefix="criteria-pg-"))  # pytest's folders go when others run beside it
    yield one
    one.server.cleanup()
    Path(one.setting.partition("file:")[2]).unlink()


def shared_study(server, folder, name, n_trials, seconds, n_workers, n_kills, restarts, seed=1):
    """Runs a study by workers of whom one is killed now and then, while the server is taken away `restarts` times."""
    rng, words = random.Random(seed), [*COMMON, server.setting, f"hpo.study_name={name}", f"studies_dir={folder}"]
    words.append(f"n_trials={n_trials}")
    ledger, crew, deaths, downs = Ledger(server.url, name), {}, Counter(), []
    kills_at = sorted(rng.uniform(0.05, 0.9) * n_trials for _ in range(n_kills))
    downs_at = [n_trials * (i + 1) / (restarts + 1) for i in range(restarts)]

    def away():
        server.stop(["fast", "immediate"][len(downs) % 2])
        began = time.monotonic()
        time.sleep(rng.uniform(1, 3))
        server.start()
        downs.append(time.monotonic() - began)

    stack = []
    try:
        while (done := ledger.finished()[0]) != n_trials or any(p.is_alive() for p, _, _ in crew.values()):
            for number in range(n_workers):
                process = crew.get(number, (None,))[0]
                if process is None or (not process.is_alive() and done < n_trials):
                    assert process is None or process.exitcode in (0, -9), "a worker ended with an error"
                    board = Board(folder / f"board-{name}-{number}")
                    context = started(invented_study, words, seconds, board.path, folder / f"diary-{name}")
                    crew[number] = (context.__enter__(), board, context)
                    stack.append(context)
            if kills_at and done >= kills_at[0]:
                alive = [number for number, (p, _, _) in crew.items() if p.is_alive()]
                if alive:
                    kills_at.pop(0)
                    process, board, _ = crew[rng.choice(alive)]
                    kill(process)
                    deaths[board.phase] += 1
            if downs_at and done >= downs_at[0]:
                downs_at.pop(0)
                away()
            time.sleep(0.05)
    finally:
        for context in stack:
            context.__exit__(None, None, None)
    return ledger, deaths, downs


@pytest.mark.parametrize(
    ("n_trials", "seconds", "n_workers", "n_kills", "restarts"),
    [
        pytest.param(12, 0.03, 2, 4, 1, id="two workers"),
        pytest.param(200, 0.1, 4, 60, 2, id="four workers", marks=pytest.mark.slow),
    ],
)
def test_workers_killed_and_a_server_that_goes_away(server, tmp_path, tell, n_trials, seconds, n_workers, n_kills, restarts):
    name = f"shared{n_trials}"
    ledger, deaths, downs = shared_study(server, tmp_path, name, n_trials, seconds, n_workers, n_kills, restarts)
    rows, diary = trials_by_slot(server.url, name), Diary(tmp_path / f"diary-{name}")
    states = Counter(t.state.name for t in optuna.load_study(study_name=name, storage=open_storage(server.url)).trials)
    per_slot = Counter(row[0] for row in rows)
    tell(
        "PostgreSQL",
        f"{n_workers} workers, {n_trials} trials, {deaths.total()} SIGKILLs "
        f"({', '.join(f'{phase} {n}' for phase, n in sorted(deaths.items()))}), "
        f"server away {len(downs)} times ({', '.join(f'{s:.1f} s' for s in downs)})",
        f"{dict(states)}; {ledger.count_folds()} folds committed, {diary.count('train')} begun, "
        f"{diary.count('again')} begun after their commit",
    )
    assert len(rows) == n_trials and set(per_slot.values()) == {1} and states["RUNNING"] == 0
    assert ledger.finished()[0] == n_trials and deaths.total() == n_kills and len(downs) == restarts
    assert sum(len(row[3]) for row in rows) == ledger.count_folds() and diary.count("again") == 0
    assert all(row[4] == pytest.approx(sum(row[3]) / len(row[3])) for row in rows)
    predicted = {fold: [pytest.approx(logit(score), abs=1e-6)] for fold, score in scores_by_fold(ledger).items()}
    assert logits_by_fold(ledger) == predicted


def parallel_study(server, folder, name, n_trials, seconds, n_workers):
    """The seconds from the first fold of a study to the end of its last."""
    words = [*COMMON, server.setting, f"hpo.study_name={name}", f"studies_dir={folder}", f"n_trials={n_trials}"]
    words += ["hpo.pruner.type=none", "hpo.pruner.patience.folds=null"]
    ledger, diary, crew = Ledger(server.url, name), Diary(folder / f"diary-{name}"), []
    try:
        for _ in range(n_workers):
            context = started(invented_study, words, seconds / 5, None, diary.path)
            crew.append((context, context.__enter__()))
        assert wait_for(lambda: diary.count("train") >= 1)
        began = time.monotonic()
        assert wait_for(lambda: ledger.finished()[0] == n_trials, seconds=600, every=0.02)
        return time.monotonic() - began
    finally:
        for context, process in crew:
            process.join(10)
            context.__exit__(None, None, None)


def share_of_a_core():
    """How much of a core this process gets at the moment, 0..1, beside whatever else the machine does."""
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < 0.5:
        pass
    return (time.process_time() - cpu) / (time.perf_counter() - wall)


@pytest.mark.parametrize(
    ("n_trials", "seconds", "at_least"),
    [pytest.param(16, 2.0, None, id="two seconds"), pytest.param(64, 5.0, 0.9, id="five seconds", marks=pytest.mark.slow)],
)
def test_eight_workers_do_not_wait_for_each_other(server, tmp_path, tell, n_trials, seconds, at_least):
    """Over the four seconds of the small study the workers' start counts: a fifth is asked, of what a busy machine gives."""
    share = share_of_a_core()
    took = parallel_study(server, tmp_path, f"eight{n_trials}", n_trials, seconds, 8)
    efficiency = n_trials * seconds / 8 / took
    at_least = at_least or 0.2 * min(share, share_of_a_core())
    tell("efficiency", f"8 workers, {n_trials} trials of {seconds:g} s", f"{took:.1f} s, efficiency {efficiency:.3f}")
    assert efficiency >= at_least


@pytest.mark.parametrize("n_before", [100, *(pytest.param(n, marks=pytest.mark.slow) for n in (2_000, 10_000))])
def test_cost_of_a_trial(server, tmp_path, tell, n_before):
    """Optuna's tables and the ledger's hold as many trials as were before."""
    cost = cost_of_a_trial(server.url, server.setting, f"cost{n_before}", n_before, tmp_path)
    tell("cost of a trial", f"PostgreSQL, {n_before:,} trials before", cost.line())
    assert cost.whole < 400 and cost.parts["pruner"] < 10


@pytest.mark.slow
def test_a_real_study_by_two_workers_and_no_password_anywhere(server, tmp_path, tell):
    """`workers=2` on PostgreSQL, from a file with a password in the URL: the study ends, and the password is nowhere."""
    password = "pa55-w0rd-of-the-test"
    server.psql(f"create role ann login superuser password '{password}';")
    url = re.sub(r"//[^@]*@", f"//ann:{password}@", server.url)
    (tmp_path / "storage.url").write_text(url + "\n")
    words = ["preset=smoke", "model=tiny", "data.max_groups=15", "hpo.study_name=real", "n_trials=2", "workers=2"]
    words += [f"hpo.storage=file:{tmp_path / 'storage.url'}", f"studies_dir={tmp_path}"]
    command = [sys.executable, "-m", "criteria_hpo.cli"]
    env = {**os.environ, "CRITERIA_HPO_PROGRESS": "0"}
    done = subprocess.run([*command, *words], capture_output=True, text=True, env=env, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    status = subprocess.run([*command, "command=status", *words], capture_output=True, text=True, env=env, check=False)
    assert "2 of 2 done" in status.stdout, status.stderr
    refused = subprocess.run([*command, *words[:-2], f"hpo.storage={url}"], capture_output=True, text=True, env=env, check=False)
    assert refused.returncode == 2 and "CRITERIA_HPO_STORAGE" in refused.stderr
    wrong = {**env, "CRITERIA_HPO_STORAGE": url.replace("/postgres?", "/no_such_database?")}
    missing = subprocess.run(
        [*command, *words[:-2], f"studies_dir={tmp_path}"], capture_output=True, text=True, env=wrong, check=False
    )
    assert missing.returncode == 2 and "does not exist" in missing.stderr
    tell(
        "password",
        "a URL with a password, from a file",
        json.loads((tmp_path / "real" / "manifest.json").read_text())["config"]["hpo"]["storage"],
    )
    tell("password", "a database that is not there", missing.stderr.strip())
    said = [done.stdout, done.stderr, status.stdout, refused.stderr, missing.stderr]
    said += [p.read_text(errors="ignore") for p in (tmp_path / "real").rglob("*") if p.is_file()]
    assert len(said) > 7 and not [text for text in said if password in text]


def made_database(server, name, options=""):
    """The URL of a new database on the server."""
    server.psql(f"create database {name} {options};")
    return server.url.replace("/postgres?", f"/{name}?")


def test_a_server_of_unknown_encoding(server, tmp_path, tell):
    """SQL_ASCII is what a server gets that was made under the locale C: a study runs there, with a name beyond ASCII."""
    url = made_database(server, "ascii", "encoding 'SQL_ASCII' template template0 lc_collate 'C' lc_ctype 'C'")
    (tmp_path / "ascii.url").write_text(url)
    name = "Grüße " + "é" * 95
    words = [
        *COMMON,
        f"hpo.storage=file:{tmp_path / 'ascii.url'}",
        f"hpo.study_name={name}",
        f"studies_dir={tmp_path}",
        "n_trials=2",
    ]
    with pytest.raises(StudyError, match="no study database"):
        stored_study(load_config(words))
    assert invented_study(words, 0.0) == 2 and optuna.get_all_study_names(open_storage(url)) == [name]
    assert [row[0] for row in trials_by_slot(url, name)] == [0, 1]
    tell("PostgreSQL", "a database in SQL_ASCII", "2 of 2 trials, the study's name unharmed")


def test_tables_of_others_are_refused_in_one_line(server, tell):
    url = made_database(server, "older")
    open_storage(url)
    with make_engine(url).begin() as db:
        db.execute(sa.text("update alembic_version set version_num = 'v3.0.0.c'"))
    foreign = made_database(server, "foreign_tables")
    with make_engine(foreign).begin() as db:
        db.execute(sa.text("create table studies (id int); create table criteria_hpo_slots (study text)"))
    for what, act, words in (
        ("an older Optuna's tables", lambda: open_storage(url), "of an older version"),
        ("a stranger's tables", lambda: open_storage(foreign), "the table studies in that database lacks study_id"),
        ("other tables of ours", lambda: Ledger(foreign, "s"), "the table criteria_hpo_slots in that database lacks attempts"),
    ):
        with pytest.raises(StudyError, match=words) as refused:
            act()
        tell("PostgreSQL", what, str(refused.value))
    assert stored_tables(foreign) == {"studies", "criteria_hpo_slots"}


@pytest.mark.parametrize("seconds", [3.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_waits_for_a_server_that_is_away(server, tmp_path, tell, seconds):
    """A worker that meets no server waits for it, and goes on when it is back."""
    name = f"away{seconds:.0f}"
    words = [*COMMON, server.setting, f"hpo.study_name={name}", f"studies_dir={tmp_path}", "n_trials=3"]
    ledger, diary = Ledger(server.url, name), Diary(tmp_path / "diary")
    with started(invented_study, words, 0.3, None, diary.path) as process:
        assert wait_for(lambda: ledger.count_folds() >= 2)
        began = time.monotonic()
        server.stop("immediate")
        back = threading.Timer(seconds, server.start)
        back.start()
        process.join(seconds + 120)
        back.join()
    took, folds = time.monotonic() - began, ledger.count_folds()
    tell(
        "PostgreSQL",
        f"server away for {seconds:.0f} s under one worker",
        f"exit {process.exitcode}, {took:.0f} s to the end; {folds} folds committed, {diary.count('train')} begun",
    )
    assert process.exitcode == 0 and len(trials_by_slot(storage_url(load_config(words)), name)) == 3
    assert took > seconds and diary.count("train") == folds


def hurried_study(words, diary, frozen_in=None):
    """An invented study under short limits, whose process stops itself once: as it claims slot 1, or commits fold 2."""
    engine.SERVER_LIMITS.update(idle_in_transaction_session_timeout="'20s'", lock_timeout="'2s'")
    rules.LEASE_FLOOR, left = 5.0, [frozen_in]
    pace, commit = rules.recent_pace, Ledger._commit_fold

    def freeze(where):
        if left[0] == where:
            left[0] = None
            os.kill(os.getpid(), signal.SIGSTOP)

    def freeze_in_claim(db, study, slot):
        freeze("claim" if slot == 1 else "")
        return pace(db, study, slot)

    def freeze_in_commit(self, lease, fold, *rest):
        fenced = Ledger._fenced

        def stops(self, lease):
            with fenced(self, lease) as db:
                freeze("commit" if fold == 2 else "")
                yield db

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Ledger, "_fenced", contextlib.contextmanager(stops))
            commit(self, lease, fold, *rest)

    rules.recent_pace, Ledger._commit_fold = freeze_in_claim, freeze_in_commit
    invented_study(words, 0.2, diary_path=diary)


@pytest.mark.slow
@pytest.mark.parametrize("frozen_in", ["commit", "claim"])
def test_frozen_in_a_transaction(server, tmp_path, tell, frozen_in):
    """A worker that stops within a transaction holds up nobody, or for as long as the server lets it; woken, it goes on."""
    name = f"frozen-{frozen_in}"
    words = [*COMMON, server.setting, f"hpo.study_name={name}", f"studies_dir={tmp_path}", "n_trials=4"]
    words += ["hpo.pruner.type=none", "hpo.pruner.patience.folds=null"]
    ledger, diary = Ledger(server.url, name), Diary(tmp_path / "diary")
    idle = sa.text("select count(*) from pg_stat_activity where state = 'idle in transaction'")
    with started(hurried_study, words, diary.path, frozen_in) as first:
        assert wait_for(lambda: psutil.Process(first.pid).status() == psutil.STATUS_STOPPED)
        began = time.monotonic()
        with started(hurried_study, words, diary.path) as second:
            assert wait_for(lambda: ledger.finished()[0] >= 2)
            took = time.monotonic() - began
            with ledger.engine.connect() as db:
                held = db.scalar(idle)
            assert wait_for(lambda: ledger.finished()[0] == 4)
            os.kill(first.pid, signal.SIGCONT)
            first.join(60)
            second.join(60)
            assert (first.exitcode, second.exitcode) == (0, 0)
    rows = trials_by_slot(server.url, name)
    tell(
        "PostgreSQL",
        f"a worker frozen in a transaction ({frozen_in})",
        f"another had two trials after {took:.0f} s, {held} transactions open; {ledger.count_folds()} folds, {len(rows)} trials",
    )
    assert took < 100 and (held or frozen_in == "claim"), "the others did not wait for the server to end it"
    assert len(rows) == 4 and ledger.count_folds() == 20 and diary.count("again") == 0


def test_a_server_that_restarts_at_the_start(server):
    """What only one worker may do at a time waits for the server, both for the connection and for the lock."""
    engine = make_engine(server.url)
    with exclusive(engine, "restarts"):
        pass
    server.stop("immediate")
    back = threading.Timer(3.0, server.start)
    back.start()
    with exclusive(engine, "restarts"), exclusive(engine, "another study"), engine.connect() as db:
        locks = db.scalar(sa.text("select count(*) from pg_locks where locktype = 'advisory'"))
    back.join()
    assert locks == 2


def test_status_makes_nothing(server, tmp_path):
    server.psql("create database nothing;")
    url = server.url.replace("/postgres?", "/nothing?")
    file = tmp_path / "nothing.url"
    file.write_text(url)
    cfg = load_config([f"hpo.storage=file:{file}", "hpo.study_name=nobody", f"studies_dir={tmp_path}"])
    with pytest.raises(StudyError, match="no study database"):
        stored_study(cfg)
    assert stored_tables(url) == set()
    Ledger(url, "nobody")
    open_storage(url)
    with pytest.raises(StudyError, match="study not found"):
        stored_study(cfg)


@pytest.mark.slow
def test_no_password_by_papermill(server, tmp_path, tell):
    """The URL from the environment is in no parameters cell, output or manifest, nor in the traceback of a failure."""
    password = "n0te-b00k/and@more"
    server.psql(f"create role bob login superuser password '{password}';")
    url = re.sub(r"//[^@]*@", "//bob:n0te-b00k%2Fand%40more@", server.url)
    template = Path(__file__).resolve().parent.parent / "studies" / "hpo.ipynb"
    command = [sys.executable, "-m", "criteria_hpo.notebooks", "--template", str(template), "--study"]
    env = {**os.environ, "CRITERIA_HPO_PROGRESS": "0", "CRITERIA_HPO_STUDIES": str(tmp_path), "CRITERIA_HPO_STORAGE": url}
    small = "overrides=data.max_groups=15 debug=true"
    said = []
    for study, more in (
        ("fine", {}),
        ("gone", {"CRITERIA_HPO_STORAGE": url.replace("/postgres?", "/no_such_database?")}),
        ("refused", {}),
    ):
        words = [*command, study, "overrides=hpo.storage=${oc.env:CRITERIA_HPO_STORAGE}" if study == "refused" else small]
        done = subprocess.run(words, capture_output=True, text=True, env=env | more, timeout=500, check=False)
        said += [done.stdout, done.stderr]
        tell("password", f"papermill, {study}: exit {done.returncode}", (done.stderr.strip().splitlines() or [""])[-1][:150])
        assert (done.returncode == 0) == (study == "fine"), done.stderr
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    kinds = {p.suffix for p in files}
    said += [p.read_text(errors="ignore") for p in files]
    assert {".ipynb", ".json", ".log", ".html"} <= kinds
    assert not [text for text in said for piece in ("n0te-b00k", "and%40more", "and@more") if piece in text]
