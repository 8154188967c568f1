"""Every committed configuration, Make target and command line that we promise composes; every mistake in one is one line."""

import itertools
import json
import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import optuna
import pytest
import yaml

from criteria_hpo import cli, notebooks
from criteria_hpo.comparing import sources
from criteria_hpo.config.hparams import MODEL_OPTIONS, OPTIONS, HParams
from criteria_hpo.config.load import load_config
from criteria_hpo.config.schema import Config
from criteria_hpo.core.errors import ConfigError
from criteria_hpo.search.search_space import (
    check_augmentation,
    default_params,
    fixed_params,
    hparams_of,
    largest_batch_size,
    parse_space,
    sample,
)

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "criteria_hpo" / "configs"
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def choices(group: str) -> list[str]:
    """The files of a group."""
    return sorted(path.stem for path in CONFIGS.glob(f"{group}/*.yaml"))


def check(cfg: Config) -> Config:
    """A configuration that can be searched: a space that reads, and defaults that it offers."""
    space = parse_space(cfg.hpo.search_space)
    assert {"learning_rate", "batch_size"} <= default_params(space, cfg.first_setting).keys() <= {d.name for d in space}
    assert largest_batch_size(space, cfg.hpo.default_setting) >= 1
    check_augmentation(cfg, space)
    return cfg


# What is committed.


def test_every_group_is_looked_at() -> None:
    assert {path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "__pycache__"} == {
        "augmentation",
        "data",
        "hpo",
        "model",
        "preset",
        "training",
    }
    assert {"deberta_nli", "bge_reranker", "minilm", "hub", "tiny"} <= set(choices("model"))
    assert {"optuna", "pc_ce"} <= set(choices("hpo"))


@pytest.mark.parametrize("model", choices("model"))
def test_every_model_with_every_data_and_preset(model: str) -> None:
    for data, preset in itertools.product(choices("data"), choices("preset")):
        cfg = check(load_config([f"model={model}", f"data={data}", f"preset={preset}"]))
        assert cfg.data.name == data and cfg.model.model_name and cfg.model.head_init == "fresh"


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g in ("hpo", "training", "augmentation") for c in choices(g)])
def test_every_other_choice_with_every_preset(group: str, choice: str) -> None:
    for preset in choices("preset"):
        check(load_config([f"{group}={choice}", f"preset={preset}"]))


@pytest.mark.parametrize("params", sorted(ROOT.glob("studies/params/*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_notebook_parameters(params: Path) -> None:
    check(notebook_config(["--study", "x", "--params", str(params)]))


def test_pc_ce_is_optuna_under_another_name() -> None:
    ours, theirs = load_config(["hpo=pc_ce"]).hpo, load_config(["hpo=optuna"]).hpo
    assert ours.study_name == "pc_ce" and ours == theirs.model_copy(update={"study_name": "pc_ce"})
    written = yaml.safe_load((CONFIGS / "hpo" / "pc_ce.yaml").read_text())
    assert written == {"defaults": ["optuna", "_self_"], "study_name": "pc_ce"}, "what is not written cannot drift"


# What is promised to work word for word.

DEBERTA = "command=hpo n_trials=2000 model=deberta_nli model.model_name=microsoft/deberta-v3-base"
LINES = {
    f"{DEBERTA} experiment_name=deberta_v3_base_aug hpo.study_name=pc_ce_debv3_base_aug augmentation.enable=true "
    "hpo.search_space.aug_enable.choices=[true] training.num_epochs=100 training.early_stopping_patience=20": {
        "n_trials": 2000,
        "experiment_name": "deberta_v3_base_aug",
        "hpo.study_name": "pc_ce_debv3_base_aug",
        "model.model_name": "microsoft/deberta-v3-base",
        "model.max_length": 512,
        "augmentation.enable": True,
        "hpo.search_space.aug_enable.choices": [True],
        "training.num_epochs": 100,
        "training.early_stopping_patience": 20,
    },
    "command=hpo n_trials=10 hpo=optuna model=deberta_nli model.model_name=microsoft/deberta-v3-base experiment_name=smoke_test "
    "hpo.study_name=smoke_test training.num_epochs=2 training.early_stopping_patience=1": {
        "n_trials": 10,
        "experiment_name": "smoke_test",
        "hpo.study_name": "smoke_test",
        "training.num_epochs": 2,
        "training.early_stopping_patience": 1,
    },
    "command=hpo n_trials=1 hpo.search_space.learning_rate.low=1e-6 hpo.search_space.learning_rate.high=1e-6 "
    "hpo.search_space.classifier_dropout.low=0.5 hpo.search_space.classifier_dropout.high=0.5 "
    "hpo.search_space.focal_gamma.choices=[3.0]": {
        "n_trials": 1,
        "hpo.search_space.learning_rate": {"type": "loguniform", "low": 1e-6, "high": 1e-6},
        "hpo.search_space.classifier_dropout": {"type": "uniform", "low": 0.5, "high": 0.5},
        "hpo.search_space.focal_gamma.choices": [3.0],
    },
}


def at(cfg: Config, dotted: str) -> object:
    """The setting of that name, as plain values."""
    here: object = cfg.model_dump()
    for part in dotted.split("."):
        here = here[part]  # type: ignore[index]
    return here


@pytest.mark.parametrize("line", LINES)
def test_command_line_word_for_word(line: str) -> None:
    cfg = check(load_config(shlex.split(line)))
    assert {name: at(cfg, name) for name in LINES[line]} == LINES[line]


def draws(words: list[str], n: int = 30) -> tuple[list[HParams], list[dict]]:
    """The settings of the first `n` trials of a study that nobody trains, and what Optuna has of them."""
    cfg, study = load_config(words), optuna.create_study(direction="maximize")
    space, settings = parse_space(cfg.hpo.search_space), []
    for slot in range(n):
        tpe = optuna.samplers.TPESampler(seed=slot, multivariate=True, group=True, constant_liar=True)
        study.sampler = optuna.samplers.PartialFixedSampler(fixed_params(slot, space, cfg), tpe)
        settings.append(sample(trial := study.ask(), space, cfg.hpo.default_setting))
        study.tell(trial, settings[-1].hidden_dropout)
    kept = [trial.params for trial in study.trials]
    assert [hparams_of(params, cfg.hpo.default_setting) for params in kept] == settings
    return settings, kept


def test_an_interval_of_one_value_draws_it() -> None:
    settings, kept = draws(shlex.split(list(LINES)[-1]), n=15)
    assert {(h.learning_rate, h.classifier_dropout, h.focal_gamma) for h in settings} == {(1e-6, 0.5, 3.0)}
    assert all({"learning_rate", "classifier_dropout", "focal_gamma"} <= params.keys() for params in kept)
    assert len({h.hidden_dropout for h in settings}) == 15


def test_with_augmentation_it_composes_and_draws() -> None:
    settings, _ = draws(shlex.split(next(iter(LINES))), n=20)
    assert all(h.aug_enable and 0.1 <= h.aug_prob <= 0.5 for h in settings)
    assert {h.aug_method for h in settings} == {"synonym", "contextual"}


def test_without_augmentation_it_has_no_parameters() -> None:
    _, kept = draws(["hpo.search_space.aug_enable.choices=[true,false]"], n=40)
    assert {params["aug_enable"] for params in kept} == {True, False}
    assert all(("aug_prob" in params, "aug_method" in params) == (params["aug_enable"],) * 2 for params in kept)


# Training options, each as a dimension.

DIMENSIONS = {
    "scheduler": "{type: categorical, choices: [linear, cosine, polynomial]}",
    "label_smoothing": "{type: uniform, low: 0.0, high: 0.1}",
    "max_grad_norm": "{type: loguniform, low: 0.5, high: 5.0}",
    "freeze_layers": "{type: int, low: 0, high: 4, step: 2}",
    "gradient_checkpointing": "{type: categorical, choices: [true, false]}",
    "layer_decay": "{type: uniform, low: 0.7, high: 1.0}",
}


MODEL_DIMENSIONS = {
    "pooling": "{type: categorical, choices: [cls, mean]}",
    "adapter": "{type: categorical, choices: [none, lora]}",
    "lora_r": "{type: categorical, choices: [8, 16, 64]}",
    "lora_alpha": "{type: categorical, choices: [8, 32]}",
    "lora_dropout": "{type: uniform, low: 0.0, high: 0.2}",
    "layers": "{type: categorical, choices: [1, 2]}",
    "chunks": "{type: categorical, choices: [none, max, logsumexp]}",
    "chunk_stride": "{type: int, low: 0, high: 32, step: 8}",
}
NEEDED = {"chunk_stride": ["model.chunks.pool=max"]}  # what an option acts on


def test_every_option_is_tried() -> None:
    assert set(DIMENSIONS) == set(OPTIONS) and set(MODEL_DIMENSIONS) == set(MODEL_OPTIONS)


@pytest.mark.parametrize("name", MODEL_DIMENSIONS)
def test_a_model_option_is_searched_by_adding_it(name: str) -> None:
    settings, kept = draws([f"hpo.search_space.{name}={MODEL_DIMENSIONS[name]}", *NEEDED.get(name, [])], n=12)
    acting = [getattr(h, name) for h in settings]
    assert acting == [params[name] for params in kept] and len(set(acting)) > 1


@pytest.mark.parametrize("name", DIMENSIONS)
def test_a_training_option_is_searched_by_adding_it(name: str) -> None:
    words = [f"hpo.search_space.{name}={DIMENSIONS[name]}"]
    settings, kept = draws(words, n=12)
    training = load_config(words).training
    acting = [getattr(training.for_setting(h), name) for h in settings]
    assert acting == [params[name] for params in kept] and len(set(acting)) > 1
    assert acting[0] == default_params(parse_space(load_config(words).hpo.search_space), load_config(words).first_setting)[name]
    assert all(h.options().keys() == {name} for h in settings)


@pytest.mark.parametrize(("name", "value"), [("scheduler", "cosine"), ("learning_rate", 1e-5), ("freeze_layers", 2)])
def test_a_fixed_dimension_is_in_every_trial(name: str, value: object) -> None:
    settings, kept = draws([f"hpo.search_space.{name}={{type: fixed, value: {value}}}"], n=5)
    assert {getattr(h, name) for h in settings} == {params[name] for params in kept} == {value}


def test_a_condition_takes_the_place_of_the_one_that_stood_there() -> None:
    for prefix in ("", "+", "++"):
        space = load_config([f"{prefix}{SPACE}.aug_prob.condition={{aug_method: synonym}}"]).hpo.search_space
        assert space["aug_prob"]["condition"] == {"aug_method": "synonym"} and parse_space(space)
    given = load_config([f"{SPACE}.hidden_dropout.condition=aug_enable==true"]).hpo.search_space["hidden_dropout"]
    assert given["condition"] == "aug_enable==true"


def test_the_text_of_a_condition_on_the_command_line() -> None:
    words = ["hpo.search_space.aug_prob.condition=aug_enable==true", 'hpo.search_space.aug_method.condition="aug_enable==true"']
    assert parse_space(load_config(words).hpo.search_space) == parse_space(load_config([]).hpo.search_space)


# Values that a shell or Hydra would read otherwise.

AS_TEXT = {
    "hpo.study_name": ["2025", "2025_01_31", "007", "1e5", "true", "a b"],
    "hpo.warm_start": ["2025_01", "old study", "my old (1).yaml", "a=b, c.yaml", "it's.yaml", "[x] y.yaml", "x~y.yaml"],
    "experiment_name": ["2025_01", "a=b", "~x", "(1)"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in AS_TEXT.items() for value in values])
def test_text_stays_text(name: str, value: str) -> None:
    assert at(load_config([f"{name}={value}"]), name) == value


def test_a_place_may_begin_at_home() -> None:
    assert load_config(["hpo.warm_start=~/old.yaml"]).hpo.warm_start == str(Path.home() / "old.yaml")


# The original's keys.


@pytest.mark.parametrize(
    ("word", "name", "value", "said"),
    [
        ("hpo.pruner.bootstrap_count=12", "hpo.pruner.startup_trials", 12, "never pruned"),
        ("hpo.bootstrap_count=12", "hpo.pruner.startup_trials", 12, "never pruned"),
        ("hpo.pruner.patience_for_pruning=4", "hpo.pruner.patience.folds", 4, "number of consecutive folds"),
        ("training.patience_for_pruning=4", "hpo.pruner.patience.folds", 4, "number of consecutive folds"),
        ("+hpo.patience_for_pruning=null", "hpo.pruner.patience.folds", None, "number of consecutive folds"),
    ],
)
def test_an_old_key_is_read_and_explained(
    word: str, name: str, value: object, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "criteria_hpo"):
        assert at(check(load_config([word])), name) == value
    (record,) = caplog.records
    assert f"is read as {name}={value}" in record.getMessage() and said in record.getMessage()


def test_an_old_key_is_explained_to_who_has_set_up_no_logging() -> None:
    code = "from criteria_hpo.config.load import load_config; load_config(['hpo.pruner.bootstrap_count=30'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("hpo.pruner.bootstrap_count=30 is read as hpo.pruner.startup_trials=30")


@pytest.mark.parametrize("word", ["hydra.run.dir=x", "+hydra.job.chdir=true", "~hydra.run"])
def test_settings_of_hydra_itself_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"^hydra\.|^~hydra\.") as refused:
        load_config([word])
    assert "studies_dir sets the results folder" in str(refused.value) and "\n" not in str(refused.value)


def test_an_old_key_beside_the_new_one() -> None:
    same = load_config(["hpo.pruner.startup_trials=30", "hpo.pruner.bootstrap_count=30"])
    assert same.hpo.pruner.startup_trials == 30
    with pytest.raises(ConfigError, match=r"startup_trials=10 and hpo.pruner.bootstrap_count=30 are the same setting"):
        load_config(["hpo.pruner.startup_trials=10", "hpo.pruner.bootstrap_count=30"])


# Make targets.

OURS = re.compile(r"-m criteria_hpo\.|\bcriteria-hpo\b")
GIVEN = {"STUDY": "x y", "STUDIES": "first second", "N_TRIALS": "3"}


def made(*words: str) -> str:
    """What `make` prints, which does nothing."""
    return subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


VARIABLES, _, RULES = made("-pRr", "help").partition("# Files")
TAKES = dict(re.findall(r"^TAKES\.([\w-]+) :?= ?(.*)$", VARIABLES, re.MULTILINE))
TARGETS = sorted(re.findall(r"\n\n([a-z][\w-]*):", RULES))


def commands(target: str, tmp_path: Path) -> Iterator[list[str]]:
    """What the target would run of ours: [module, word, ...], from the recipe as `make -n` shows it."""
    stub = tmp_path / "python"
    stub.write_text(f'#!{sys.executable}\nimport json, sys\nprint("RAN", json.dumps(sys.argv[1:]))\n')
    stub.chmod(0o755)
    words = [f"{name}={value}" for name, value in GIVEN.items() if name in TAKES.get(target, "").split()]
    shown = made(f"PY={stub}", target, *words).replace("\\\n", " ")
    given = {"PARAMS": "studies/params/full.yaml", "PATH": "/usr/bin:/bin", **GIVEN}
    for line in shown.splitlines():
        if OURS.search(line):
            ran = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True, env=given)
            said = re.findall(r"^RAN (.*)$", ran.stdout, re.MULTILINE)
            assert len(said) == len(OURS.findall(line)), "a command of ours that this test did not see"
            yield from (json.loads(words)[1:] for words in said)


def notebook_config(words: list[str]) -> Config:
    """The configuration with which the launcher would run the notebook of a study, or the one that compares studies."""
    made, real = [], notebooks.config_from_parameters
    template = "compare.ipynb" if "--studies" in words else "hpo.ipynb"
    words = ["--template", str(ROOT / "studies" / template), *words]
    with (
        mock.patch.object(notebooks, "config_from_parameters", lambda **given: made.append(real(**given)) or made[0]),
        mock.patch.object(notebooks, "load_data", side_effect=KeyboardInterrupt),
        mock.patch.object(sources, "source_config", side_effect=lambda cfg, _: made.append(cfg) or notebooks.load_data(cfg)),
    ):
        assert notebooks.main(words) == 130
    return made[0]


def test_make_targets_are_seen() -> None:
    originals = {f"hpo_deberta_{kind}_{aug}" for kind in ("base", "nli") for aug in ("aug", "noaug")}
    assert originals | {"demo", "hpo", "hpo_status", "test"} <= set(TARGETS)
    assert {"STUDY", "N_TRIALS"} <= set(TAKES["hpo"].split()) and TAKES["hpo_status"] == "STUDY" and TAKES["test"] == ""


def test_the_original_target_is_the_promised_line(tmp_path: Path) -> None:
    ((_, *words),) = commands("hpo_deberta_base_aug", tmp_path)
    assert load_config(words) == load_config([*shlex.split(next(iter(LINES))), "n_trials=3"])


@pytest.mark.parametrize("target", TARGETS)
def test_make_target_composes(target: str, tmp_path: Path, tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ran = list(commands(target, tmp_path))
    for module, *words in ran:
        tell("what Make targets run", target, shlex.join([module, *words]))
        cfg = check({"criteria_hpo.cli": load_config, "criteria_hpo.notebooks": notebook_config}[module](words))
        assert cfg.command in cli.COMMANDS
        assert cfg.hpo.study_name == GIVEN["STUDY"] or GIVEN["STUDY"] not in words
        assert cfg.compare.names == GIVEN["STUDIES"].split() or target != "compare"


# Mistakes.

SPACE = "hpo.search_space"
MISTAKES: dict[str, tuple[str, ...]] = {
    # names
    "hpo.search_spaces.learning_rate.low=1": ("unknown setting", "did you mean"),
    f"{SPACE}.learning_rte.low=1e-6": (f"unknown setting {SPACE}.learning_rte", "did you mean"),
    f"{SPACE}.learning_rate.lo=1e-6": (f"unknown setting {SPACE}.learning_rate.lo", "did you mean"),
    f"{SPACE}.learning_rte={{type: uniform, low: 0.1, high: 0.2}}": (f"{SPACE}.learning_rte", "did you mean 'learning_rate'"),
    "hpo.pruner.bootstrap_counts=3": ("unknown setting hpo.pruner.bootstrap_counts",),
    "data.bootstrap_count=3": ("unknown setting data.bootstrap_count",),
    "hpo=optunna": ("hpo=optunna", "did you mean 'optuna'"),
    "model=deberta_nil": ("model=deberta_nil", "did you mean 'deberta_nli'"),
    "augmentation.enabled=true": ("unknown setting augmentation.enabled", "did you mean 'augmentation.enable'"),
    "augmentation.enable=maybe": ("augmentation.enable=maybe", "true or false"),
    # types
    f"{SPACE}.learning_rate.type=lognormal": (f"{SPACE}.learning_rate.type=lognormal", "unknown type", "loguniform"),
    f"{SPACE}.learning_rate.type=[uniform]": (f"{SPACE}.learning_rate.type=['uniform']", "unknown type", "loguniform"),
    f"{SPACE}.learning_rate.type={{a: 1}}": (f"{SPACE}.learning_rate.type={{'a': 1}}", "unknown type"),
    f"{SPACE}.learning_rate={{low: 1e-6, high: 1e-5}}": (f"{SPACE}.learning_rate has no type", "loguniform"),
    f"{SPACE}.batch_size={{type: fixed, low: 16}}": ("a fixed takes value", "fix low, value"),
    f"{SPACE}.batch_size={{type: uniform, low: 16, high: 32}}": ("batch_size is a whole number", "make it int or categorical"),
    f"{SPACE}.scheduler={{type: int, low: 1, high: 3}}": ("scheduler is text", "make it categorical"),
    # ends and choices
    f"{SPACE}.hidden_dropout.low=0.4": (f"{SPACE}.hidden_dropout", "low=0.4 is above high=0.3"),
    f"{SPACE}.hidden_dropout.high=1.5": (f"{SPACE}.hidden_dropout.high", "hidden_dropout=1.5", "at least 0 and below 1"),
    f"{SPACE}.learning_rate.low=0": (f"{SPACE}.learning_rate", "above 0"),
    f"{SPACE}.learning_rate.low=-1": (f"{SPACE}.learning_rate", "above 0"),
    f"{SPACE}.batch_size.choices=[]": (f"{SPACE}.batch_size.choices", "at least one choice"),
    f"{SPACE}.batch_size.choices=16": (f"{SPACE}.batch_size.choices", "a list"),
    f"{SPACE}.batch_size.choices=[16,16]": ("16 is listed twice",),
    f"{SPACE}.batch_size.choices=[16,many]": ("batch_size=many", "a whole number"),
    f"{SPACE}.focal_gamma.choices=[null]": ("null is not a value of focal_gamma",),
    f"{SPACE}.batch_size={{type: int, low: 16, high: 100, step: 16}}": ("set high to 96",),
    f"{SPACE}.batch_size={{type: int, low: 16, high: 32, step: 0}}": ("a step of at least 1",),
    f"{SPACE}.aug_method={{type: fixed, value: backtranslation}}": ("aug_method=backtranslation", "synonym or contextual"),
    # conditions
    f"{SPACE}.aug_prob.condition=aug_enabel==true": ("unknown parameter aug_enabel", "did you mean 'aug_enable'"),
    f"{SPACE}.aug_prob.condition=aug_enable=true": (f"{SPACE}.aug_prob.condition", '"parent==value"'),
    f"{SPACE}.aug_prob.condition=__import__('os').abort()==1": (f"{SPACE}.aug_prob.condition", '"parent==value"'),
    f"{SPACE}.aug_prob.condition=aug_enable==perhaps": ("aug_enable=perhaps", "true or false"),
    f"{SPACE}.aug_prob.condition=aug_method==translated": ("aug_method=translated", "synonym or contextual"),
    f"{SPACE}.aug_prob.condition=batch_size==48": (f"{SPACE}.batch_size does not offer it",),
    f"{SPACE}.aug_prob.condition=learning_rate==1e-5": ("drawn from an interval",),
    f"{SPACE}.aug_prob.condition=aug_prob==0.1": ("drawn from an interval",),
    f"+{SPACE}.aug_enable.condition=aug_method==synonym": ("aug_enable -> aug_method -> aug_enable form a cycle",),
    f"~{SPACE}.aug_enable": ("unknown parameter aug_enable",),
    f"{SPACE}.learning_rte.condition={{aug_enable: true}}": (f"{SPACE}.learning_rte", "did you mean 'learning_rate'"),
    # pruner
    "overrides=hpo.pruner.type=patience hpo.pruner.patience.folds=null": ("hpo.pruner.type=patience", "hpo.pruner.type=none"),
    "overrides=hpo.pruner.type=patience hpo.pruner.patience.folds=9": ("patience.folds=9 never stops a trial", "data.n_folds=5"),
    "overrides=hpo.pruner.type=patience data.n_folds=3": ("patience.folds=3 never stops a trial", "data.n_folds=3"),
    # warm start
    "hpo.warm_start=nowhere": ("hpo.warm_start=nowhere", "no such study"),
    "hpo.warm_start=nowhere.yaml": ("hpo.warm_start=nowhere.yaml", "no such file (looked in"),
    "hpo.warm_start_trials=0": ("hpo.warm_start_trials=0", "at least 1"),
}


@pytest.mark.parametrize("given", MISTAKES)
def test_mistake_is_one_line(given: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], tell: Callable[..., None]) -> None:
    code = cli.main(["preset=smoke", "model=tiny", "data.max_groups=20", f"studies_dir={tmp_path}", given])
    out, err = capfd.readouterr()
    (line,) = err.strip().splitlines()
    tell("wrong configurations", given, line.removeprefix("criteria_hpo: ").replace(str(tmp_path), "{tmp}"))
    assert code == 2 and out == "" and line.startswith("criteria_hpo: ")
    assert not re.search("Traceback|hydra|omegaconf|pydantic|optuna\\.", line, re.IGNORECASE)
    for part in MISTAKES[given]:
        assert part in line
