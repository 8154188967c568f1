"""A study of two objectives, quality and seconds of prediction: its front, what it refuses, and all that reads it afterwards."""

import json
from html import unescape
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from criteria_hpo import cli
from criteria_hpo.config.load import load_config
from criteria_hpo.config.paths import storage_url
from criteria_hpo.config.schema import Config, SamplerConfig
from criteria_hpo.core.errors import ConfigError
from criteria_hpo.results.stored import stored_study
from criteria_hpo.search.objectives import SECONDS, front, has_second, one_objective, whole_study
from criteria_hpo.search.samplers import make_sampler
from criteria_hpo.search.search_space import suggest
from criteria_hpo.storage.ledger import Ledger

DEPTH = ["hpo.search_space.layers={type: categorical, choices: [1, 2]}", "+hpo.default_setting.layers=2"]
TWO = ["objective.second=seconds", "hpo.pruner.type=none", *DEPTH]
SMALL = [
    "preset=smoke",
    "model=tiny",
    "data.max_groups=24",
    "data.n_folds=2",
    "model.max_length=48",
    "hpo.sampler.n_startup_trials=4",
]
SMALL += [
    "hpo.metric=average_precision",
    "seed=8",
]  # f1 would be 0, and the first four trials of this seed have one and two layers
EVALUATE = ["evaluate.top=2", "evaluate.seeds=1", "evaluate.refits=1", "evaluate.choose=fastest"]


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study `front` of three trials that is resumed to six."""
    root = tmp_path_factory.mktemp("studies")
    for n in (3, 6):
        run(f"n_trials={n}", "hpo.study_name=front", f"studies_dir={root}", *SMALL, *TWO)
    return root


def config_of(place: Path, name: str = "front") -> Config:
    return load_config([f"hpo.study_name={name}", f"studies_dir={place}", *SMALL, *TWO, *EVALUATE])


@pytest.fixture(scope="module")
def study(place: Path) -> optuna.Study:
    return stored_study(config_of(place))


def test_it_is_a_study_of_two_directions_with_exactly_its_trials(place: Path, study: optuna.Study) -> None:
    whole, ledger = whole_study(study), Ledger(storage_url(config_of(place)), "front")
    assert [d.name for d in whole.directions] == ["MAXIMIZE", "MINIMIZE"] and whole.metric_names == ["average_precision", SECONDS]
    assert [t.state for t in whole.trials] == [TrialState.COMPLETE] * 6 and ledger.finished()[0] == 6 == len(ledger.slots())
    for trial in whole.trials:
        rows = ledger.folds(trial.user_attrs["slot"])
        seconds = [row.details["predict_seconds"] for row in rows]
        assert trial.values == [np.mean([row.score for row in rows]), np.median(seconds)] and min(seconds) > 0
    assert whole.trials[0].params["layers"] == 2 and {t.params["layers"] for t in whole.trials} == {1, 2}


def unbeaten(study: optuna.Study) -> list[int]:
    """The trials that no other beats, by comparing each with each."""
    trials = whole_study(study).trials
    points = [(t.values[0], t.values[1]) for t in trials]
    beaten = [any(s >= score and c <= cost and (s, c) != (score, cost) for s, c in points) for score, cost in points]
    return [trial.number for trial, lost in zip(trials, beaten) if not lost]


def test_one_layer_predicts_faster_than_two(study: optuna.Study) -> None:
    seconds = {n: [t.values[1] for t in whole_study(study).trials if t.params["layers"] == n] for n in (1, 2)}
    assert np.median(seconds[1]) < np.median(seconds[2])


def test_the_front_is_the_one_of_a_search_by_brute_force(study: optuna.Study) -> None:
    found, points = front(study), [t.values for t in whole_study(study).trials]
    assert sorted(t.number for t in found) == unbeaten(study)
    scores = [t.values[0] for t in found]
    assert scores == sorted(scores, reverse=True) and scores[0] == max(score for score, _ in points) == study.best_value
    assert one_objective(study, 1).best_value == min(seconds for _, seconds in points) == found[-1].values[1]


def test_status_report_and_page_show_the_front(place: Path, study: optuna.Study, capsys: pytest.CaptureFixture[str]) -> None:
    n = len(front(study))
    for command, words in (("status", "Pareto front: "), ("report", "Pareto front, the settings that no other beats")):
        run(f"command={command}", "hpo.study_name=front", f"studies_dir={place}", *SMALL)
        assert words in capsys.readouterr().out
    page = unescape((place / "front" / "report.html").read_text(encoding="utf-8"))
    plots = place / "front" / "plots"
    alt = (plots / "pareto.txt").read_text(encoding="utf-8").strip()
    assert alt.startswith(f"Of 6 complete trials {n} lie") and SECONDS in alt and page.count(alt) >= 1
    assert "<h3>Quality against speed</h3>" in page and "<h3>The Pareto front</h3>" in page and "best score" in page
    assert (plots / "pareto.png").stat().st_size > 5_000 and (plots / "intermediate_values.png").is_file()
    assert json.loads((place / "front" / "manifest.json").read_text())["best"]["trial"] == study.best_trial.number


@pytest.mark.slow
def test_the_confirmation_takes_the_front_first_and_has_one_objective(place: Path, study: optuna.Study) -> None:
    run("command=evaluate", "n_trials=6", "hpo.study_name=front", f"studies_dir={place}", *SMALL, *TWO, *EVALUATE)
    confirmed = optuna.load_study(study_name="front-confirm", storage=storage_url(config_of(place)))
    assert len(confirmed.directions) == 1 and not has_second(confirmed)
    numbers = [candidate["trial"] for candidate in confirmed.user_attrs["settings"]]
    first = [trial.number for trial in front(study)][:2]
    assert numbers[: len(first)] == first
    layers = json.loads((place / "front" / "model" / "config.json").read_text())["num_hidden_layers"]
    assert layers in {trial.params["layers"] for trial in whole_study(study).trials}
    table = (place / "front" / "evaluation" / "confirmed.csv").read_text()
    assert SECONDS in table.splitlines()[0]


def test_a_restored_study_has_the_same_values_and_goes_on(place: Path, study: optuna.Study) -> None:
    here = [f"studies_dir={place}", *SMALL, *TWO]
    run("command=export", "hpo.study_name=front", *here)
    run("command=restore", f"input={place / 'front' / 'export'}", "hpo.study_name=again", *here)
    again = whole_study(stored_study(config_of(place, "again")))
    whole = whole_study(study)
    assert again.directions == whole.directions and again.metric_names == whole.metric_names
    assert [(t.values, t.params) for t in again.trials] == [(t.values, t.params) for t in whole.trials]
    assert [t.number for t in front(again)] == [t.number for t in front(whole)]
    assert SECONDS in (place / "front" / "export" / "folds.csv").read_text().splitlines()[0]
    run("n_trials=7", "hpo.study_name=again", *here)
    assert len(again.trials) == 7


@pytest.mark.slow
def test_two_workers_share_it(place: Path) -> None:
    """The ledger counts slots, not values: exactly the trials that were asked for, each with both."""
    run("n_trials=8", "workers=2", "hpo.study_name=shared", f"studies_dir={place}", *SMALL, *TWO)
    cfg = config_of(place, "shared")
    whole, slots = whole_study(stored_study(cfg)), Ledger(storage_url(cfg), "shared").slots()
    assert len(whole.trials) == len(slots) == 8 and {len(trial.values) for trial in whole.trials} == {2}
    assert len({trial.user_attrs["slot"] for trial in whole.trials}) == 8 and front(stored_study(cfg))


def test_objectives_cannot_change_within_a_study(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["n_trials=8", "hpo.study_name=front", f"studies_dir={place}", *SMALL, "hpo.pruner.type=none", *DEPTH]
    assert cli.main(words) != 0
    assert "objective.second: seconds -> None" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["hyperband", "forgiving", "wilcoxon", "median", "racing", "patience"])
def test_every_pruner_is_refused_with_optunas_reason(kind: str) -> None:
    with pytest.raises(
        ConfigError, match=r"Optuna has no Trial\.report and no Trial\.should_prune.*hpo\.pruner\.type=none"
    ) as err:
        load_config(["objective.second=seconds", f"hpo.pruner.type={kind}"])
    assert "\n" not in str(err.value)
    study = optuna.create_study(directions=["maximize", "minimize"])
    for call in (lambda trial: trial.report(0.5, 1), lambda trial: trial.should_prune()):
        with pytest.raises(NotImplementedError, match="not supported for multi-objective"):
            call(study.ask())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hpo=racing"], "hpo.pruner.type=racing, patience included"),
        (["hpo.pruner.type=none", "hpo.sampler.type=cmaes"], "cmaes, which has one objective; use tpe"),
        (["hpo.pruner.type=none", "hpo.mode=single_split"], "needs hpo.mode=kfold"),
        (["hpo.pruner.type=none", "objective.second=size"], "objective.second"),
    ],
)
def test_what_needs_one_score_is_refused_in_one_line(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as err:
        load_config(["objective.second=seconds", *words])
    assert "\n" not in str(err.value)


RANGES = {
    "hidden_dropout": optuna.distributions.FloatDistribution(0.0, 0.3),
    "layers": optuna.distributions.CategoricalDistribution([1, 2, 3]),
}


def two_objectives(kind: str, n: int, crash: tuple[int, ...] = ()) -> list[dict[str, object]]:
    """The settings of n slots of a study without training; a slot in `crash` fails once and is sampled again."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    for slot in range(n):
        for crashed in [True] * (slot in crash) + [False]:
            config = SamplerConfig(type=kind, n_startup_trials=4)  # type: ignore[arg-type]
            study.sampler = make_sampler(config, 42, slot, RANGES, {"layers": 3} if slot == 0 else {}, two=True)
            trial = study.ask()
            drawn = {name: suggest(trial, name, distribution) for name, distribution in RANGES.items()}
            if drawn["layers"] == 1:
                trial.suggest_float("aug_prob", 0.1, 0.5)
            values = [0.5 + 0.1 * drawn["layers"] - abs(drawn["hidden_dropout"] - 0.1), 3.0 * drawn["layers"]]
            ended = (None, TrialState.FAIL) if crashed else (None, TrialState.PRUNED) if slot == 5 else (values, None)
            study.tell(trial, *ended)
    return [t.params for t in study.trials if t.state != TrialState.FAIL]


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "gp", "qmc", "random"])
def test_a_sampler_serves_two_objectives_and_a_crash_changes_no_slot(kind: str, recwarn: pytest.WarningsRecorder) -> None:
    n = 8 if kind == "gp" else 12  # GP takes a second a trial
    drawn = two_objectives(kind, n)
    assert drawn[0]["layers"] == 3 and len({str(params) for params in drawn}) > 0.6 * n
    assert two_objectives(kind, n, crash=(0, 6, n - 1)) == drawn
    assert not [w for w in recwarn if issubclass(w.category, optuna.exceptions.ExperimentalWarning)]


def test_cma_es_has_one_objective() -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.CmaEsSampler(n_startup_trials=0))
    with pytest.raises(ValueError, match="multi-objective"):
        study.ask(RANGES)


def test_a_front_has_no_trial_that_is_beaten() -> None:
    rng, study = np.random.default_rng(0), optuna.create_study(directions=["maximize", "minimize"])
    sizes = rng.random(80)
    points = zip(np.round(sizes + 0.1 * rng.normal(size=80), 2), np.round(9 * sizes**2, 1))
    study.add_trials([create_trial(values=[float(score), float(seconds)]) for score, seconds in points])
    wanted = unbeaten(study)
    assert sorted(t.number for t in front(study)) == wanted and len(wanted) > 2
