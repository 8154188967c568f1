"""Workers on a Ray cluster and as submitit's jobs: machines and jobs die, and a study has its trials, none of them twice."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from harness import Diary, Server, trials_by_slot, wait_for

from criteria_hpo.config.load import load_config
from criteria_hpo.config.overrides import STORAGE_VARIABLE
from criteria_hpo.core.errors import logger
from criteria_hpo.execution.worker import is_done
from criteria_hpo.launching.launch import run_placed
from criteria_hpo.launching.on_slurm import OnSlurm, make_executor, requests
from criteria_hpo.launching.resources import worker_task
from criteria_hpo.storage.ledger import Ledger

TOY = """
import json, os, sys
sys.path.insert(0, {tests!r})
from criteria_hpo.execution.worker_pool import receive_task
from pathlib import Path
given = json.loads(receive_task())
from harness import invented_study
try:
    folder = Path(given["folder"])
    invented_study(given["words"], given["seconds"], folder / f"board-{{os.getpid()}}", folder / "diary")
except KeyboardInterrupt:
    sys.exit(130)
"""
COMMON = ["preset=smoke", "model=tiny", "hpo.pruner.type=none", "hpo.pruner.patience.folds=null", "command=launch", "workers=2"]


@pytest.fixture(scope="module")
def server():
    one = Server(tempfile.mkdtemp(prefix="criteria-pg-"))
    yield one
    one.server.cleanup()
    Path(one.setting.partition("file:")[2]).unlink()


class ToyStudy:
    """A study without training on a server, its tasks, and what its workers wrote down."""

    def __init__(self, server, folder, launcher, n_trials, seconds):
        self.words = [*COMMON, server.setting, f"hpo.study_name=on_{launcher}", f"studies_dir={folder}", f"n_trials={n_trials}"]
        self.cfg = load_config([*self.words, f"launch.launcher={launcher}", "cpus=1"])
        self.url, self.name, self.folder, self.seconds = server.url, f"on_{launcher}", folder, seconds
        self.ledger, self.diary = Ledger(server.url, self.name), Diary(folder / "diary")

    def task(self, number):
        task = vars(worker_task(self.cfg, number))
        line = json.dumps({"words": self.words, "seconds": self.seconds, "folder": str(self.folder)})
        command = (sys.executable, "-c", TOY.format(tests=str(Path(__file__).parent)))
        return type(worker_task(self.cfg, number))(**task | {"line": line, "command": command})

    def run(self, placement):
        """Runs the study by the workers of a placement; the warnings."""
        done = partial(is_done, self.ledger, self.cfg.n_trials)
        run_placed(lambda cfg: placement, SimpleNamespace(cfg=self.cfg, ledger=self.ledger, is_done=done))

    def owners(self):
        """The processes that train at the moment."""
        return {slot.pid for slot in self.ledger.slots(unfinished=True) if slot.pid}

    def check(self, tell, table, killed):
        """Exactly n_trials, every fold committed once, and no fold begun after its commit."""
        rows = trials_by_slot(self.url, self.name)
        begun, again, commits = (self.diary.count(what) for what in ("train", "again", "commit"))
        folds = self.ledger.count_folds()
        tell(table, killed, f"{len(rows)} trials, {folds} folds committed, {begun} begun, {again} begun after their commit")
        assert len(rows) == self.cfg.n_trials and set(Counter(row[0] for row in rows).values()) == {1}
        assert folds == 5 * self.cfg.n_trials and again == 0 and commits <= folds
        return begun - folds


@contextmanager
def meanwhile(act: Callable[[], None]):
    """Runs `act` in a thread while the body runs; its error is raised after the body."""
    errors = []

    def guarded():
        try:
            act()
        except BaseException as err:  # noqa: BLE001 (an assertion too)
            errors.append(err)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def kill_tree(root: psutil.Process, with_root: bool = True) -> set[int]:
    """SIGKILL for a process and all its descendants, as if the power had gone; their numbers."""
    family = [*root.children(recursive=True), *([root] if with_root else [])]
    for process in family:
        process.kill()
    return {process.pid for process in family}


# submitit


class Remembered(OnSlurm):
    """Remembers the jobs that it submitted."""

    def __init__(self, *given):
        super().__init__(*given)
        self.jobs = []

    def start(self, number):
        self.jobs.append(super().start(number))
        return self.jobs[-1]


def in_job(job) -> tuple[psutil.Process, psutil.Process] | None:
    """The process that submitit runs in a local job, and its worker, or None before there are both."""
    try:
        inside = psutil.Process(int(job.job_id)).children()
        workers = inside[0].children() if inside else []
    except psutil.NoSuchProcess:
        return None
    return (inside[0], workers[0]) if workers else None


def test_submitit_job_killed_and_job_preempted(server, tmp_path, tell, monkeypatch):
    """A killed job is submitted again; a preempted one commits its fold, and goes on as the same job."""
    pytest.importorskip("submitit", reason="needs the extra slurm")
    study = ToyStudy(server, tmp_path, "slurm", n_trials=10, seconds=0.3)
    executor = make_executor(tmp_path / "jobs", requests(study.cfg.launch, 1, "toy"), cluster="local")
    placement, dead, warned = Remembered(executor, study.task, 5.0), {}, []
    monkeypatch.setattr(logger, "warning", lambda text, *given: warned.append(text % given))

    def kill_and_preempt():
        assert wait_for(lambda: len(study.owners()) == 2 and study.ledger.count_folds() >= 4, every=0.05)
        killed, preempted = (in_job(job) for job in placement.jobs[:2])
        dead.update({process.pid: "killed" for process in killed} | {preempted[1].pid: "preempted"})
        kill_tree(killed[0])
        for process in preempted:  # Slurm signals all processes of a job
            process.send_signal(signal.SIGUSR2)

    with meanwhile(kill_and_preempt):
        study.run(placement)
    log = (tmp_path / "jobs" / f"{placement.jobs[1].job_id}_0_log.err").read_text()
    lost = study.check(tell, "submitit", "two local jobs: the first killed by SIGKILL, the second preempted by SIGUSR2")
    tell("submitit", f"{len(placement.jobs)} submissions", "; ".join(warned))
    assert list(dead.values()) == ["killed", "killed", "preempted"]
    assert lost <= 1, "only the killed worker leaves a fold unfinished"
    assert len(placement.jobs) == 3 and "was lost (job" in warned[0] and "started again in 1 s" in warned[0]
    assert "Caught signal SIGUSR2" in log and log.count("Starting with") + log.count("Loading pickle") != 1
    assert len({slot.pid for slot in study.ledger.slots()} | set(dead)) >= 4


# Ray


SMALL = {"object_store_memory": 80_000_000, "include_dashboard": False}


def add_node(cluster, **given):
    """Adds a node; Ray gives its processes thirty seconds to start, which a busy machine does not keep."""
    mine = psutil.Process()
    for attempt in range(4):
        others = {process.pid for process in mine.children()}
        try:
            return cluster.add_node(**given, **SMALL)
        except Exception as err:
            for process in mine.children():
                if process.pid not in others:
                    kill_tree(process)
            if attempt == 3 or "timed out during startup" not in str(err):
                raise
    return None


@pytest.fixture(scope="module")
def cluster():
    """A head with two CPUs, as processes of this machine."""
    pytest.importorskip("ray", reason="needs the extra ray")
    import ray
    from ray.cluster_utils import Cluster

    one = Cluster()
    add_node(one, num_cpus=2)
    yield one
    ray.shutdown()
    one.shutdown()


def test_ray_node_killed(server, cluster, tmp_path, tell, monkeypatch):
    """A node dies with all its processes while trials run: its worker goes on on another node, and nothing is done twice."""
    from criteria_hpo.launching.on_ray import OnRay, connected
    from criteria_hpo.launching.on_ray import requests as ray_requests

    node = add_node(cluster, num_cpus=1)
    study, warned, dead = ToyStudy(server, tmp_path, "ray", n_trials=20, seconds=0.3), [], set()
    monkeypatch.setattr(logger, "warning", lambda text, *given: warned.append(text % given))

    def kill_node():
        assert wait_for(lambda: len(study.owners()) == 2 and study.ledger.count_folds() >= 4, every=0.05)
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        dead.update(kill_tree(raylet) & study.owners())
        cluster.remove_node(node, allow_graceful=False)

    before = signal.getsignal(signal.SIGTERM)
    with connected(cluster.address) as ray, meanwhile(kill_node):
        assert signal.getsignal(signal.SIGTERM) is before
        study.run(OnRay(ray, study.task, ray_requests(study.cfg.launch, 1)))
    lost = study.check(tell, "Ray", "a cluster of two nodes, one of which is killed with its processes")
    tell("Ray", "after the death of the node", "; ".join(warned))
    assert len(dead) == 1 and lost <= 1
    assert (warned and "Worker" in warned[0] and "was lost (NodeDied" in warned[0]) or "WorkerCrashed" in warned[0]
    assert len({slot.pid for slot in study.ledger.slots()} - dead) >= 2, "the worker was started again"


REAL = ["preset=smoke", "model=tiny", "data.max_groups=12", "data.n_folds=2", "n_trials=3", "workers=2", "cpus=1"]


@pytest.mark.slow
def test_real_study_on_ray_by_the_command_line(server, cluster, tmp_path, tell):
    """The whole command: results are printed, and the password of the database is in no file of Ray or of the study."""
    url = server.url.replace("postgres:", "postgres:geheim", 1)
    assert "geheim@" in url
    words = [
        *REAL,
        "command=launch",
        "launcher=ray",
        f"address={cluster.address}",
        "hpo.study_name=real",
        f"studies_dir={tmp_path}",
    ]
    env = os.environ | {STORAGE_VARIABLE: url}
    command = [sys.executable, "-m", "criteria_hpo.cli", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
    tell("Ray", "the same command on the complete study", again.stderr.strip().split("\n")[-1])
    assert "is complete: no worker was started" in again.stderr and "Results: " in again.stdout
    assert len(trials_by_slot(server.url, "real")) == 3
    files = [
        path for root in (tmp_path, Path(cluster.head_node.get_session_dir_path())) for path in root.rglob("*") if path.is_file()
    ]
    assert len(files) > 20 and not [path for path in files if b"geheim" in path.read_bytes()]
