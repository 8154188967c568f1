"""What holds of every pruner, whatever its rule; what the sampler sees; what a mode counts and refuses."""

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
from harness import invented_result, invented_setup

from criteria_hpo.config.hparams import HParams
from criteria_hpo.config.load import load_config
from criteria_hpo.config.paths import storage_url
from criteria_hpo.config.schema import Config, PatienceConfig, PrunerConfig
from criteria_hpo.core.errors import ConfigError
from criteria_hpo.data.folds import Fold
from criteria_hpo.data.study_data import load_data
from criteria_hpo.execution import study as study_room
from criteria_hpo.execution import trial as objective_room
from criteria_hpo.execution.identity import open_ledger, open_study
from criteria_hpo.pruner_lab.simulation import Population, simulate_study
from criteria_hpo.pruning import pruner as pruning_room
from criteria_hpo.pruning.pruner import FoldPruner, decide
from criteria_hpo.pruning.racing import DEFAULT_PRIOR, group_influence
from criteria_hpo.pruning.rules import Curve, brackets, fold_curve, hyperband_prunes
from criteria_hpo.storage.database import open_storage
from criteria_hpo.storage.ledger import Ledger
from criteria_hpo.training.epoch import TrainingSetup
from criteria_hpo.training.fold import Observer

OFF = PatienceConfig(folds=None)
PRUNERS = {
    "hyperband": {"patience": OFF},
    "hyperband and patience": {"type": "hyperband"},
    "forgiving": {"patience": OFF},
    "wilcoxon": {"p_threshold": 0.3, "patience": OFF},
    "median": {"patience": OFF},
    "racing": {"p_threshold": 0.04, "patience": OFF},
    "patience incumbent": {"type": "patience"},
    "patience top": {"type": "patience", "patience": PatienceConfig(reference="top")},
    "patience trial": {"type": "patience", "patience": PatienceConfig(reference="trial")},
    "none": {},
}
REASON = re.compile(
    r"(Hyperband|forgiving|Wilcoxon|median|racing) at fold [1-4]|patience at fold [34] \([34] folds without improvement\)"
)
SEED = 42
optuna.logging.set_verbosity(optuna.logging.WARNING)


def pruner(name: str, **more: object) -> PrunerConfig:
    return PrunerConfig(**({"type": name, "max_resource": 5} | PRUNERS[name] | more))


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    rng = np.random.default_rng(1)
    return Population(between=0.04).scores(*Population(between=0.04).settings(150, rng), rng)


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_keeps_the_house_rules(name: str, scores: np.ndarray) -> None:
    played = simulate_study(pruner(name), SEED, scores)
    reasons = [reason for _, reason in played]
    assert not any(reasons[:30]), "the start-up is pruned"
    assert all(curve.finished == (reason is None) for curve, reason in played)
    assert all(len(curve.scores) < 5 for curve, reason in played if reason), "pruned after the last fold"
    assert all(REASON.fullmatch(reason) for reason in reasons if reason), set(reasons)
    assert any(reasons) == (name != "none")
    if name not in ("patience trial", "none"):
        kept = [scores[curve.slot].mean() for curve, reason in played[30:] if reason is None]
        assert np.mean(kept) > scores[30:].mean(), "no better than a lottery"


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_is_a_function_of_what_it_is_given(name: str, scores: np.ndarray) -> None:
    config = pruner(name)
    played = [curve for curve, _ in simulate_study(config, SEED, scores)]
    trial, shuffled = fold_curve(200, [0.1 + 0.01 * k for k in range(4)][::-1], False), [*played]
    np.random.default_rng(0).shuffle(shuffled)
    answers = {decide(config, SEED, trial, others) for others in (played, played, shuffled)}
    assert len(answers) == 1 and (answers == {None}) == (name == "none")


@pytest.mark.parametrize("name", PRUNERS)
def test_no_pruner_stops_the_first_the_best_or_who_has_said_nothing(name: str, scores: np.ndarray) -> None:
    config = pruner(name, startup_trials=0)
    others = [fold_curve(slot, row.tolist(), True) for slot, row in enumerate(scores)]
    rising = [0.95 + 0.001 * fold for fold in range(5)]
    assert decide(config, SEED, Curve(200, (), {}, False), others) is None
    for n in range(1, 6):
        assert decide(config, SEED, fold_curve(200, rising[:n], False), []) is None
        assert decide(config, SEED, fold_curve(200, rising[:n], False), others) is None
        running = [fold_curve(slot, [0.99] * n, False) for slot in range(30)]
        if not name.startswith("hyperband"):
            assert decide(config, SEED, fold_curve(200, rising[:n], False), running) is None, "a running trial is no incumbent"


@pytest.mark.parametrize("name", PRUNERS)
def test_a_score_that_is_no_number_breaks_nothing(name: str, scores: np.ndarray) -> None:
    others = [fold_curve(slot, row.tolist(), True) for slot, row in enumerate(scores[:40])]
    for broken in ([math.nan], [0.6, math.nan], [math.nan, 0.6, 0.6]):
        answer = decide(pruner(name), SEED, fold_curve(200, broken, False), others)
        assert answer is None or REASON.fullmatch(answer)


@pytest.mark.parametrize("name", PRUNERS)
def test_the_same_decisions_through_optuna(name: str, scores: np.ndarray) -> None:
    config, table = pruner(name, startup_trials=10, max_resource=None), scores[:60]
    study = optuna.create_study(direction="maximize", pruner=FoldPruner(config, 5, SEED))
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)  # numbers and slots part here
    for slot, row in enumerate(table.tolist()):
        trial = study.ask()
        trial.set_user_attr("slot", slot)
        for fold in range(1, 6):
            trial.set_user_attr("fold_scores", row[:fold])
            trial.report(float(np.mean(row[:fold])), fold)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, float(np.mean(row)))
    folds = [len(curve.scores) for curve, _ in simulate_study(pruner(name, startup_trials=10), SEED, table)]
    assert [len(trial.intermediate_values) for trial in study.trials[1:]] == folds


def test_a_trial_competes_at_each_rung_that_it_jumped_over() -> None:
    config = PrunerConfig(max_resource=100, startup_trials=0, patience=OFF)
    plan = brackets(1, 100, 4)
    slots = [slot for slot in range(200) if plan.of(SEED, slot) == 0]
    others = [Curve(slot, (), {1: 0.1, 4: 0.8, 16: 0.9}, False) for slot in slots[:3]]
    for last, value, stopped in ((3, 0.2, False), (4, 0.7, True), (16, 0.85, True), (20, 0.85, True), (20, 0.9, False)):
        assert hyperband_prunes(config, SEED, Curve(slots[3], (), {1: 0.2, last: value}, False), others) is stopped
    assert not hyperband_prunes(config, SEED, Curve(slots[3], (), {16: 0.9, 20: 0.1}, False), others), "no rung between 16 and 20"


def test_one_that_ended_early_counts_at_the_steps_it_left_out() -> None:
    ended = Curve(0, (0.6,), {1: 0.3, 2: 0.6, 20: 0.6}, True)
    assert [ended.at(step) for step in (1, 2, 4, 16, 20)] == [0.3, 0.6, 0.6, 0.6, 0.6] and ended.at(21) is None
    config = PrunerConfig(type="median", max_resource=20, startup_trials=0)
    assert decide(config, SEED, Curve(1, (), {4: 0.5}, False), [ended]) == "median at report 4 of fold 1"


class Watching(optuna.samplers.RandomSampler):
    """A sampler that writes down how many finished trials it is shown."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.shown: list[int] = []

    def sample_relative(self, study, trial, search_space):
        self.shown.append(len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))))
        return super().sample_relative(study, trial, search_space)


def shown_to_the_sampler(pruner: optuna.pruners.BasePruner) -> list[int]:
    study = optuna.create_study(direction="maximize", sampler=Watching(), pruner=pruner, study_name=str(SEED))
    for _ in range(30):
        trial = study.ask()
        trial.report(trial.suggest_float("x", 0, 1), 1)
        trial.should_prune()
        study.tell(trial, trial.params["x"])
    return study.sampler.shown


def test_the_sampler_sees_every_trial() -> None:
    config = PrunerConfig(startup_trials=0)
    assert shown_to_the_sampler(FoldPruner(config, 5, SEED)) == list(range(30))
    hidden = shown_to_the_sampler(optuna.pruners.HyperbandPruner(min_resource=1, max_resource=5, reduction_factor=4))
    assert hidden != list(range(30)) and max(hidden) < 25, "Optuna no longer hides other brackets: see 41_pruning"


def test_no_study_of_ours_hides_trials(tmp_path) -> None:
    cfg = load_config(["preset=smoke", "model=tiny", f"studies_dir={tmp_path}", "hpo.study_name=seen"])
    assert not isinstance(open_study(cfg, load_data(cfg), open_ledger(cfg)).pruner, optuna.pruners.HyperbandPruner)


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ([], (5, 1, 5)),
        (["data.n_folds=4"], (4, 1, 4)),
        (["hpo.pruner.max_resource=3"], (5, 1, 5)),
        (["hpo.mode=single_split", "training.num_epochs=20", "hpo.report_interval=3"], (1, 7, 7)),
        (["hpo.mode=multi_fidelity", "training.num_epochs=20", "hpo.report_interval=5"], (5, 4, 20)),
    ],
)
def test_a_mode_decides_what_is_counted(words: list[str], steps: tuple[int, int, int]) -> None:
    cfg = load_config(words)
    assert (cfg.folds_per_trial, cfg.steps_per_fold, cfg.steps_per_trial) == steps
    most = FoldPruner(cfg.hpo.pruner, cfg.steps_per_trial, SEED).config.max_resource
    assert most == (3 if "hpo.pruner.max_resource=3" in words else steps[2])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["hpo.pruner.max_resource=6"], "hpo.pruner.max_resource=6 cannot be reached: a trial has 5 steps (hpo.mode=kfold,"),
        (
            ["hpo.mode=single_split", "hpo.pruner.max_resource=21", "training.num_epochs=100", "hpo.report_interval=5"],
            "a trial has 20 steps (hpo.mode=single_split, data.n_folds=5, training.num_epochs=100, hpo.report_interval=5)",
        ),
        (["hpo.pruner.min_resource=4", "hpo.pruner.max_resource=3"], "hpo.pruner.min_resource=4 is above max_resource"),
        (["hpo.mode=multi_fidelity", "training.num_epochs=3", "hpo.report_interval=4"], "no epoch is reported"),
        (["hpo.mode=single_split", "hpo.pruner.type=forgiving"], "hpo.pruner.type=forgiving compares whole folds"),
        (["hpo.mode=multi_fidelity", "hpo.pruner.type=wilcoxon"], "use hyperband, median, racing or none, or hpo.mode=kfold"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(words)
    assert line in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("folds", "share"), [(5, 0.2), (10, 0.1)])
def test_a_single_split_is_fold_1_of_n_folds(folds: int, share: float) -> None:
    cfg = load_config(["preset=smoke", "hpo.mode=single_split", f"data.n_folds={folds}", "data.max_groups=null"])
    data = load_data(cfg)
    (fold,) = data.folds[: cfg.folds_per_trial]
    assert abs(len(fold.valid) / len(data.dev) - share) < 0.05


class PostsStudy:
    """Stands in for `cross_validate`: predictions whose quality depends on the setting, their noise on the number of posts."""

    def __init__(self, n_posts: int) -> None:
        rng, n = np.random.default_rng(1), 5 * n_posts * 6
        posts = np.repeat(np.arange(5 * n_posts), 6)
        self.pairs = pd.DataFrame({"post_id": posts, "group_id": posts, "criterion_id": "c", "label": rng.random(n) < 0.3})
        self.common = rng.normal(0, 1, n) + 1.5 * self.pairs.label.to_numpy()
        self.rows = [np.flatnonzero(posts // n_posts == k) for k in range(5)]

    def setup(self, cfg: Config) -> TrainingSetup:
        folds = tuple(Fold(k, rows, rows, rows) for k, rows in enumerate(self.rows, start=1))
        return replace(invented_setup(cfg), folds=folds, tokens=SimpleNamespace(labels=self.pairs.label.to_numpy().astype(int)))

    def __call__(
        self, setup: TrainingSetup, hparams: HParams, seed: int, slot: int, observer: Observer, start: int, *rest: object
    ) -> None:
        rng, posts, labels = np.random.default_rng(slot), self.pairs.post_id.to_numpy(), setup.tokens.labels
        blur = (0.5 + 3 * hparams.hidden_dropout) * rng.normal(0, 1, len(posts)) + rng.normal(0, 0.3, posts.max() + 1)[posts]
        logits = self.common + blur
        for fold in setup.folds[start - 1 :]:
            at = fold.valid
            score, _ = group_influence(setup.metric, labels[at], logits[at], posts[at])
            result = invented_result(fold.number, score, slot, 0.0)
            if not observer.fold(replace(result, rows=at, probs=1 / (1 + np.exp(-logits[at])))):
                return


@pytest.mark.parametrize(("n_posts", "noise"), [(6, (0.05, 0.2)), (200, (0.004, 0.03))], ids=["noisy folds", "quiet folds"])
def test_a_race_takes_its_noise_from_the_stored_predictions(tmp_path, monkeypatch, n_posts, noise):
    work, trained, priors = PostsStudy(n_posts), [], []
    monkeypatch.setattr(study_room, "searchable", lambda space, model: space)
    monkeypatch.setattr(objective_room, "cross_validate", work)
    monkeypatch.setattr(pruning_room, "decide", lambda *args: priors.append(args[4].noise) or decide(*args))
    words = ["hpo=racing", "hpo.mode=kfold", "hpo.metric=average_precision", "hpo.sampler.type=random"]
    for name, pairs in (("assumed", None), ("measured", work.pairs)):
        more = [f"hpo.study_name={name}", f"studies_dir={tmp_path}", "hpo.pruner.startup_trials=3", "n_trials=14"]
        cfg = load_config(["preset=smoke", "model=tiny", *words, *more])
        ledger = Ledger(storage_url(cfg), name)
        study = optuna.create_study(storage=open_storage(storage_url(cfg)), study_name=name, direction="maximize")
        study_room.run_trials(cfg, study, ledger, work.setup(cfg), pairs=pairs)
        trained.append(sum(len(folds) for folds in ledger.folds_by_slot().values()))
        assert (set(priors) == {DEFAULT_PRIOR.noise}) == (pairs is None)
    print(f"noise {priors[-1]:.4f}, folds trained with {DEFAULT_PRIOR.noise}: {trained[0]}, with the measured one: {trained[1]}")
    assert noise[0] < priors[-1] < noise[1] and (trained[1] < trained[0]) == (priors[-1] < DEFAULT_PRIOR.noise)
