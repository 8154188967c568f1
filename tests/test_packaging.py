"""The built wheel carries everything the installed package reads, and every requirement is pinned."""

import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import requires
from pathlib import Path

import pytest

COPIED = ["setup.py", "settings.ini", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "constraints.txt"]


def data_files(root: Path) -> set[str]:
    """Every file below the package, by its path in the wheel."""
    files = (path for path in root.glob("criteria_hpo/**/*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix() for path in files}


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from an sdist, so that MANIFEST.in is on trial as well."""
    source = tmp_path_factory.mktemp("source")
    for name in COPIED:
        if (root / name).exists():
            shutil.copy(root / name, source)
    shutil.copytree(root / "criteria_hpo", source / "criteria_hpo", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source / "dist"), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next((source / "dist").glob("*.whl")))


def test_wheel_has_every_file_of_the_package(root: Path, wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if name.startswith("criteria_hpo/")}
    assert inside == data_files(root)


def test_wheel_has_script_and_licence(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    entry_points = next(name for name in names if name.endswith("/entry_points.txt"))
    assert "criteria-hpo = criteria_hpo.cli:main" in wheel.read(entry_points).decode()
    assert any(name.endswith("LICENSE") for name in names)


def normalised(requirement: str) -> str:
    """The project's name in a requirement, as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_constraints_pin_every_requirement_and_theirs(root: Path) -> None:
    text = (root / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "a line is no plain pin"
    pins = {normalised(line) for line in lines}
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(root / "settings.ini", encoding="utf-8")
    direct = (config["DEFAULT"]["requirements"] + " " + config["DEFAULT"]["dev_requirements"]).split()
    needed = {normalised(requirement) for requirement in direct}
    for name in sorted(needed - {"torch"}):  # torch's own list is that of its CPU or its CUDA build
        needed |= {normalised(line) for line in requires(name) or [] if ";" not in line}
    assert needed <= pins, f"not pinned: {sorted(needed - pins)}"
