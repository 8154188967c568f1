"""Run notebooks as tests, one process each, and report how many cells were executed.

    python tools/run_notebooks.py                        # nbs/*.ipynb and the templates studies/*.ipynb
    python tools/run_notebooks.py nbs/data/30_folds.ipynb     # only these
    python tools/run_notebooks.py --flags slow           # the notebooks with `#| slow` cells, those cells included

Each notebook goes through `nbdev_test --path NB` (so `tst_flags` and `#| eval: false` mean what nbdev means by them) in
a process of its own with a time limit, and with one thread for any `--jobs`, so that its numbers do not depend on how many
run at once. nbdev reports "Success" for some notebooks that it skips; they count as failures here.

On Linux the process is a fork of this one, which has imported the large libraries but nothing of criteria_hpo, and has run
nothing: that saves the seconds of their imports. A notebook that looks at `sys.modules`, or runs with more threads or on a
GPU, gets a new interpreter.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from nbfiles import ROOT, name_of, read, skip_reason, sources, templates

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MEMORY_PER_NOTEBOOK_GIB = 3
HEARTBEAT_SECONDS = 30
LIBRARIES = (
    "execnb.shell",
    "nbdev.test",
    "pandas",
    "scipy.stats",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "sklearn.feature_extraction.text",
    "torch",
    "optuna",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "pydantic.main",
    "hydra",
    "plotly.subplots",
    "matplotlib.pyplot",
    "sqlalchemy.orm",
    "alembic.command",
    "tenacity",
    "nltk",
)


def import_libraries(flags: str, threads: int) -> bool:
    """Import what most notebooks use, where a fork may have it, and return whether it was imported."""
    if sys.platform != "linux" or threads != 1 or "cuda" in flags.split():  # CUDA and thread pools do not survive a fork
        return False
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the forks share these objects' memory
    return True


def run_child(path: Path, flags: str, report: Path) -> None:
    """Run one notebook in this process and write {"cells": executed, "error": text} to `report`."""
    from execnb.shell import CaptureShell
    from nbdev.test import nbdev_test

    outcome = {"cells": 0, "error": skip_reason(read(path))}
    original = CaptureShell.cell

    def counted(shell, cell, *args, **kwargs):
        if cell.cell_type == "code" and cell.source.strip():
            outcome["cells"] += 1
        return original(shell, cell, *args, **kwargs)

    CaptureShell.cell = counted
    try:
        if not outcome["error"]:
            nbdev_test(path=str(path), flags=flags, n_workers=0)
            if not outcome["cells"]:
                outcome["error"] = "no code cell was executed; a notebook under test needs at least one"
    finally:
        report.write_text(json.dumps(outcome), encoding="utf-8")
    sys.exit(1 if outcome["error"] else 0)


def has_flag(path: Path, flags: str) -> bool:
    """Whether a code cell of the notebook has one of the flags as an nbdev directive."""
    return any(cell.directives & set(flags.split()) for cell in read(path).cells)


@dataclass
class Run:
    """A notebook being executed by a child process."""

    path: Path
    pid: int
    report: Path
    output: Path
    started: float
    status: int | None = None
    cpu: float = 0.0

    @property
    def name(self) -> str:
        """The path relative to the root of the repository."""
        return name_of(self.path)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def has_ended(self, wait: bool = False) -> bool:
        """Whether the child process has ended; then `status` is its exit status (negative after a signal), `cpu` its seconds."""
        if self.status is None:
            pid, status, used = os.wait4(self.pid, 0 if wait else os.WNOHANG)
            if pid:
                self.status, self.cpu = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        return self.status is not None

    def kill(self) -> None:
        """Kill the child process and all processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)  # it may have no group of its own yet
            self.has_ended(wait=True)


def start(path: Path, folder: Path) -> Run | None:
    """Fork this process for one notebook, with files in `folder`; None in the child."""
    report, output = folder / "report.json", folder / "output.txt"
    sys.stdout.flush()
    if pid := os.fork():
        return Run(path, pid, report, output, time.monotonic())
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(ROOT)
    sink, nothing = os.open(output, os.O_WRONLY | os.O_CREAT), os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, sink), (2, sink)):
        os.dup2(source, target)
    return None


def run_here(path: Path, flags: str, folder: Path, imported: bool) -> None:
    """Run one notebook in this forked process, or in a new interpreter in its place; does not return."""
    if imported and "sys.modules" not in path.read_text(encoding="utf-8"):
        run_child(path, flags, folder / "report.json")
    script, report = str(Path(__file__).resolve()), str(folder / "report.json")
    os.execv(sys.executable, [sys.executable, script, "--child", report, "--flags", flags, str(path)])


class Progress:
    """Shows what is running: one line that is overwritten on a terminal, else a line every `HEARTBEAT_SECONDS`."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.live, self.last = total, 0, sys.stdout.isatty(), time.monotonic()

    def show(self, runs: list[Run]) -> None:
        """Show what is running."""
        if not self.live and time.monotonic() - self.last < HEARTBEAT_SECONDS:
            return
        self.last = time.monotonic()
        now = ", ".join(f"{run.path.stem} {run.seconds:.0f} s" for run in runs)
        text = f"  {self.done}/{self.total} done, running: {now}"
        print(f"\r\033[K{text[:118]}" if self.live else text, end="" if self.live else "\n", flush=True)

    def line(self, text: str) -> None:
        """Print a permanent line."""
        print(f"\r\033[K{text}" if self.live else text, flush=True)
        self.last = time.monotonic()


def verdict(run: Run, limit: float) -> tuple[int, str]:
    """(cells executed, the error or '') of a run that has ended or exceeded its time limit."""
    if not run.has_ended():
        run.kill()
        return 0, f"stopped after the time limit of {limit:.0f} s"
    run.kill()
    if not run.report.exists():
        return 0, f"the process ended early (exit status {run.status})"
    outcome = json.loads(run.report.read_text(encoding="utf-8"))
    if run.status == 0:
        return outcome["cells"], ""
    return outcome["cells"], outcome["error"] or f"failed in the {outcome['cells']}. executed cell"


def run_all(paths: list[Path], flags: str, jobs: int, imported: bool, limit: float, scratch: Path) -> int:
    """Run every notebook, at most `jobs` at a time, and return the number of failures."""
    waiting, running, failures, cells = list(paths), [], [], 0
    progress, began = Progress(len(paths)), time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                path, folder = waiting.pop(0), scratch / str(len(waiting))
                folder.mkdir()
                if (run := start(path, folder)) is None:
                    running.clear()  # the others belong to the parent
                    run_here(path, flags, folder, imported)
                running.append(run)
            time.sleep(0.2)
            for run in [r for r in running if r.has_ended() or r.seconds > limit]:
                running.remove(run)
                ran, error = verdict(run, limit)
                cells, progress.done = cells + ran, progress.done + 1
                progress.line(
                    f"{'FAIL' if error else 'ok':4} {run.name:40} {run.seconds:6.1f} s, {run.cpu:5.1f} s of CPU {ran:4} cells"
                    + (f"  {error}" if error else "")
                )
                if error:
                    failures.append(run.name)
                    if output := run.output.read_text(encoding="utf-8", errors="replace").rstrip():
                        progress.line(output)
            if running:
                progress.show(running)
    finally:
        for run in running:
            run.kill()
    progress.line(
        f"{len(paths) - len(failures)} of {len(paths)} notebooks passed, {cells} code cells executed, "
        f"{time.monotonic() - began:.0f} s, {sum(os.times()[:4]):.0f} s of CPU"
        + (f"; failed: {', '.join(failures)}" if failures else "")
    )
    return len(failures)


def default_jobs() -> int:
    """The number of notebooks to run at once: two, if cores and memory allow it."""
    import psutil

    fitting = psutil.virtual_memory().available / 2**30 // MEMORY_PER_NOTEBOOK_GIB
    return max(1, min(2, os.cpu_count() or 1, int(fitting)))


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: nbs/*.ipynb and studies/*.ipynb")
    parser.add_argument("--flags", default="", help="also run the cells with these flags (slow, cuda)")
    parser.add_argument("--jobs", type=int, default=0, help="notebooks at a time (default: 2 if cores and memory allow it)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each notebook (default 1)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one notebook (default 600)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run_child(args.notebooks[0], args.flags, args.child)
    paths = [path.resolve() for path in args.notebooks]
    if not paths:
        paths = [*templates(), *sources()]  # the templates take longest
        if args.flags:
            paths = [path for path in paths if has_flag(path, args.flags)]
            print(f"{len(paths)} notebooks have cells flagged {args.flags}")
            if not paths:
                return 0
    if missing := [str(path) for path in paths if not path.is_file()]:
        sys.exit(f"file not found: {', '.join(missing)}")
    if not paths:
        sys.exit("no notebook found in nbs/ and studies/")
    os.environ.update({name: str(args.threads) for name in THREAD_VARIABLES}, TOKENIZERS_PARALLELISM="false")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.path.insert(1, str(ROOT))
    imported = len(paths) > 1 and import_libraries(args.flags, args.threads)
    scratch, parent = Path(tempfile.mkdtemp()), os.getpid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the running notebooks are killed as well
    try:
        return min(1, run_all(paths, args.flags, args.jobs or default_jobs(), imported, args.timeout, scratch))
    finally:
        if os.getpid() == parent:
            shutil.rmtree(scratch)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
