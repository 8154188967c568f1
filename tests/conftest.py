"""What every test shares."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PACKAGED = ["setup.py", "settings.ini", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "constraints.txt"]
# The files that take longest, in order: begun first, so that no worker is left alone with one at the end.
LONGEST = ("cli", "configs", "checkpoint", "study_notebook", "wheel", "augment", "core", "faults", "postgres", "lab", "kills")
TOLD = pytest.StashKey[dict[str, list[tuple[str, str]]]]()

# Under `make test` every make that a test starts would take itself for a part of that one, say so, and obey its flags.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of `LONGEST` first; the order within a file stays."""
    rank = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an sdist, so that MANIFEST.in is on trial as well."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGED:
        if (root / name).exists():
            shutil.copy(root / name, source)
    shutil.copytree(root / "criteria_hpo", source / "criteria_hpo", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source / "dist"), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next((source / "dist").glob("*.whl"))


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str, str, str], None]:
    """`tell(table, given, line)` adds a row to a table that is printed at the end of the run."""

    def add(table: str, given: str, line: str) -> None:
        request.config.stash.setdefault(TOLD, {}).setdefault(table, []).append((given, line))

    return add


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of several hands its tables over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["told"] = session.config.stash.get(TOLD, {})


@pytest.fixture(scope="module", autouse=True)
def own_surroundings() -> Iterator[None]:
    """Each file starts with the environment, the threads and the verbosity of the first: which files share a process varies."""
    import optuna
    import torch

    environment, threads, verbosity = dict(os.environ), torch.get_num_threads(), optuna.logging.get_verbosity()
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def one_thread() -> None:
    """One thread of PyTorch: the matrices are too small for more, and a sum then has the same order in each process."""
    import torch

    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The tables of a process that is done."""
    for table, rows in getattr(node, "workeroutput", {}).get("told", {}).items():
        node.config.stash.setdefault(TOLD, {}).setdefault(table, []).extend(rows)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what users are told for what they gave."""
    for table, rows in config.stash.get(TOLD, {}).items():
        terminalreporter.section(f"{table} ({len(rows)})")
        for given, line in rows:
            terminalreporter.write_line(given)
            terminalreporter.write_line(f"    {line}")
