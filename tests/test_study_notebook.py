"""The study notebook by papermill: what it leaves, that a second run only redraws, and that it holds no post text."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from criteria_hpo import notebooks
from criteria_hpo.inputs.corpora import load_corpus
from criteria_hpo.plotting.plot_data import PLOTS
from criteria_hpo.storage.ledger import Ledger

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("with a space")
    arguments = [
        "--study",
        "smoke",
        "--template",
        os.path.join(ROOT, "studies", "hpo.ipynb"),
        f"overrides=studies_dir='{folder}' data.max_groups=20",
    ]
    assert notebooks.main(arguments) == 0
    (folder / "arguments.json").write_text(json.dumps(arguments))
    return folder


def test_leaves_notebook_plots_manifest_and_database(studies):
    study = studies / "smoke"
    assert {"hpo.ipynb", "plots", "manifest.json", "study.db"} <= {p.name for p in study.iterdir()}
    plots = {p.name for p in (study / "plots").iterdir()}
    assert "plotly.min.js" in plots
    assert {p for p in plots if p.endswith(".html")} <= {f"{name}.html" for name in [*PLOTS, "data"]}
    assert {"data.html", "data.png", "history.html", "history.png", "intermediate_values.png", "edf.png", "timeline.png"} <= plots
    manifest = json.loads((study / "manifest.json").read_text())
    assert sum(manifest["trials"].values()) == 2 and manifest["best"]["params"]
    assert {"git_commit", "config_hash", "hashes", "seed", "threads", "packages", "hardware", "start", "end"} <= set(manifest)


def test_the_test_posts_stay_locked(studies):
    text = (studies / "smoke" / "hpo.ipynb").read_text()
    assert "The test posts were not opened yet. No result is stored; run command=evaluate" in text
    counts = json.loads((studies / "smoke" / "manifest.json").read_text())["counts"]
    assert counts["dev"]["pairs"] > counts["test"]["pairs"] > 0 and "positives" not in counts["test"]


def test_a_study_is_evaluated_by_a_notebook(studies, capfd):
    """The same words with another template: confirmed, refitted and scored, with a picture; a missing study is one line."""
    arguments = [word.replace("hpo.ipynb", "evaluate.ipynb") for word in json.loads((studies / "arguments.json").read_text())]
    assert notebooks.main(arguments) == 0, capfd.readouterr().err
    *_, score, verdict, done = capfd.readouterr().err.splitlines()
    assert score.startswith("Test: F1 of the winner ") and verdict.startswith("On F1") and done.startswith("Done: ")
    folder = studies / "smoke"
    text = (folder / "evaluate.ipynb").read_text()
    assert "only the test score is unbiased" in text and "TF-IDF with shared words" in text and "image/png" in text
    assert "command=predict model=" in text and (folder / "model" / "decision.json").is_file()
    assert {"overall.csv", "posts.csv"} <= {path.name for path in (folder / "evaluation").iterdir()}
    assert len(json.loads((folder / "manifest.json").read_text())["test_looks"]) == 1
    other = ["nothing" if word == "smoke" else word for word in arguments]
    assert notebooks.main(other) == 2
    assert "no study database" in capfd.readouterr().err


def test_second_run_adds_no_trial_and_needs_no_settings(studies, monkeypatch, capfd):
    ledger = Ledger(f"sqlite:///{studies}/smoke/study.db", "smoke")
    before = (len(ledger.slots()), len(ledger.folds()))
    words = json.loads((studies / "arguments.json").read_text())
    monkeypatch.setenv("CRITERIA_HPO_STUDIES", str(studies))
    defaults = os.path.join(ROOT, "studies", "params", "full.yaml")
    assert notebooks.main([*words[:-1], "--defaults", defaults]) == 0
    said = capfd.readouterr().err
    assert f"smoke goes on as in {studies / 'smoke' / 'hpo.ipynb'}: preset=smoke model=tiny n_trials=2 overrides=" in said
    assert (len(ledger.slots()), len(ledger.folds())) == before == (2, before[1])


def test_a_changed_study_is_one_line_and_nothing_is_written(studies, capfd):
    arguments = json.loads((studies / "arguments.json").read_text())
    before = {path: path.stat().st_mtime_ns for path in (studies / "smoke").rglob("*") if "study.db" not in path.name}
    load_corpus("demo").drop(columns="evidence").head(400).to_csv(studies / "other.csv", index=False)
    other = ["data=pairs", f"data_path={studies / 'other.csv'}"]
    for words, reason in ((["seed=7"], "seed: 42 -> 7"), (other, "holds trials on other data (data.name: demo -> pairs")):
        assert notebooks.main([*arguments, *words]) == 2
        err = capfd.readouterr().err
        assert reason in err and err.count("\n") == 1 and "hashes" not in err and len(err) < 400, err
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_no_post_text_anywhere(studies):
    sentences = {s.strip() for post in load_corpus("demo").post.unique() for s in re.split(r"(?<=[.!?])\s", post) if len(s) > 30}
    assert len(sentences) > 300
    for path in (studies / "smoke").rglob("*"):
        if path.is_file():
            content = path.read_bytes().decode("utf-8", errors="ignore")
            assert not [s for s in sentences if s in content], path.name


def until(holds, seconds, process):
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def status(folder):
    words = ["command=status", "hpo.study_name=killed", f"studies_dir={folder}"]
    done = subprocess.run(
        [sys.executable, "-m", "criteria_hpo.cli", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_a_killed_kernel_is_explained_and_the_notebook_says_where(tmp_path):
    study, words = tmp_path / "killed", ["n_trials=9", f"overrides=studies_dir='{tmp_path}' data.max_groups=20"]
    command = [sys.executable, "-m", "criteria_hpo.notebooks", "--study", "killed", *words]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until((study / "study.db").exists, 120, launcher)
    assert status(tmp_path).startswith(("starting, ", "trial "))  # a quick machine may have begun the first trial
    log = study / "study.log"
    until(lambda: log.exists() and "Trial 0 fold 1" in log.read_text(), 200, launcher)
    (kernel,) = [child for child in psutil.Process(launcher.pid).children() if "waiting_kernel" in " ".join(child.cmdline())]
    kernel.send_signal(signal.SIGKILL)
    _, err = launcher.communicate(timeout=100)
    last = err.splitlines()[-1]
    assert launcher.returncode == 1 and "Traceback" not in err and "\r" not in err
    assert last.startswith(f"criteria_hpo: {study}/hpo.ipynb: the kernel died (SIGKILL; out of memory?) at cell ")
    assert ", `run = run_hpo(cfg, corpus)`: finished folds are kept; run the same command again to resume; " in last
    cells = nbformat.read(study / "hpo.ipynb", as_version=4).cells
    states = {cell.source.partition("\n")[0]: cell.metadata.get("papermill", {}).get("status") for cell in cells}
    assert states["corpus = load_data(cfg)"] == "completed" and states["readable(best_table(run.study))"] == "pending"
    assert states["run = run_hpo(cfg, corpus)"] == "interrupted"
    (note,) = [number for number, cell in enumerate(cells) if cell.source.startswith("**Interrupted in the next cell")]
    assert cells[note + 1].source.startswith("run = run_hpo") and "out of memory?" in cells[note].source


def test_a_path_counts_from_the_checkout_where_the_notebook_is_opened(tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "settings.ini").touch()
    shutil.copy(os.path.join(ROOT, "studies", "hpo.ipynb"), tmp_path / "studies")
    load_corpus("demo").drop(columns="evidence").to_csv(tmp_path / "my.csv", index=False)
    notebook = nbformat.read(tmp_path / "studies" / "hpo.ipynb", as_version=4)
    sources = [cell.source for cell in notebook.cells]
    end = next(number for number, source in enumerate(sources) if "load_data(cfg)" in source)
    notebook.cells = [*notebook.cells[:end], nbformat.v4.new_code_cell("print(len(load_data(cfg).dev) > 0, study_dir(cfg))")]
    given = "data, data_path, model = 'pairs', 'my.csv', 'roberta-base'"
    at = next(number for number, source in enumerate(sources) if source.startswith("study = "))
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(given))
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path / "studies")}}).execute()
    assert notebook.cells[-1].outputs[0].text == f"True {tmp_path.resolve()}/studies/smoke\n"
