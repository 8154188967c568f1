"""From start to the first optimiser step: what the command line imports, and how often it loads the model and the data.

Seconds depend on the machine; these numbers do not. On an idle machine the first step comes after the imports of PyTorch and
transformers and about two seconds of work."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Runs the command line until the first optimiser step, then prints what was imported and how often things were loaded.
UNTIL_THE_FIRST_STEP = """
import json, os, sys, time
from collections import Counter
import transformers
import criteria_hpo.data.study_data as study_data
import criteria_hpo.training.epoch as epoch
import criteria_hpo.training.setup as setup
from criteria_hpo.cli import main

calls = Counter()

def count(owner, name):
    real = getattr(owner, name)
    def call(*args, **kwargs):
        calls[name if isinstance(owner, type(sys)) else owner.__name__] += 1
        return real(*args, **kwargs)
    setattr(owner, name, call)

count(transformers.AutoTokenizer, "from_pretrained")
count(transformers.AutoModelForSequenceClassification, "from_pretrained")
count(study_data, "load_corpus")
count(study_data, "pairs_hash")
count(setup, "tokenise")
real_step = epoch.accumulation_step

def first_step(*args, **kwargs):
    real_step(*args, **kwargs)
    roots = sorted({name.split(".")[0] for name in sys.modules})
    print(json.dumps({"calls": calls, "roots": roots, "cpu": time.process_time()}), flush=True)
    os._exit(0)

epoch.accumulation_step = first_step
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> dict:
    "The state of the process at its first optimiser step."
    words = ["command=hpo", "preset=smoke", "model=tiny", f"studies_dir={tmp_path_factory.mktemp('studies')}"]
    command = [sys.executable, "-c", UNTIL_THE_FIRST_STEP, *words, "hpo.study_name=begun"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CRITERIA_HPO_PROGRESS": "0"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_that_draws_or_rewords_is_imported_before_the_first_step(begun):
    needed_later = {"plotly", "matplotlib", "nbformat", "jsonschema", "rfc3987_syntax", "papermill", "nlpaug", "nltk", "IPython"}
    assert not needed_later & set(begun["roots"])
    assert {"torch", "transformers", "optuna"} <= set(begun["roots"])


def test_how_often_model_and_data_are_loaded(begun):
    calls = begun["calls"]
    assert calls == {
        "AutoTokenizer": 1,  # the checks before anything is written and the training share it
        "AutoModelForSequenceClassification": 1,
        "load_corpus": 1,
        "pairs_hash": 2,  # of all pairs, and of the test split
        "tokenise": 1,
    }


def test_the_first_step_costs_seconds(begun):
    assert begun["cpu"] < 60, "seconds of CPU time, several times those of a slow machine"


def test_the_launcher_of_notebooks_does_not_compile_a_grammar_of_addresses():
    code = "import sys, criteria_hpo.notebooks; print({'rfc3987_syntax', 'torch', 'transformers', 'plotly'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def launched(words: list[str], until: str, log: Path) -> float:
    "Wall seconds from the start of a command until its log contains `until`; the command is then stopped."
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (log.exists() and until in log.read_text(encoding="utf-8")):
            assert process.poll() is None and time.perf_counter() - start < 300
            time.sleep(0.02)
        return time.perf_counter() - start
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_time_to_the_first_step(tmp_path, capsys):
    "Prints the seconds from the start of each way to start a study until its first trial begins to train."
    folder, template = f"studies_dir='{tmp_path}'", str(Path(__file__).parent.parent / "studies" / "hpo.ipynb")
    routes = {
        "command line": ["criteria_hpo.cli", "command=hpo", "preset=smoke", "model=tiny", f"studies_dir={tmp_path}"],
        "papermill": ["criteria_hpo.notebooks", "--template", template, f"overrides={folder}"],
    }
    for name, words in routes.items():
        study = name.replace(" ", "_")
        words = [*words, "--study", study] if name == "papermill" else [*words, f"hpo.study_name={study}"]
        seconds = launched(words, "Trial 0: LR", tmp_path / study / "study.log")
        with capsys.disabled():
            print(f"\nfirst step by the {name} after {seconds:.1f} s")
        assert seconds < 120, "several times that of a slow machine"
