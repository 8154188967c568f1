"""The ten scores equal scikit-learn's, thresholds never split ties, and a searched threshold is honest."""

import itertools
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as skm
from sklearn.calibration import calibration_curve

from criteria_hpo.config.hparams import HParams
from criteria_hpo.config.load import config_hash, load_config
from criteria_hpo.config.other_commands import EvaluateConfig
from criteria_hpo.confirmation.evaluate import evaluate
from criteria_hpo.data.study_data import load_data
from criteria_hpo.evaluation.metrics import METRIC_TABLE, bin_numbers, scored, scores, weighted_scores
from criteria_hpo.evaluation.thresholds import Thresholds, choose_thresholds
from criteria_hpo.execution.identity import study_identity
from criteria_hpo.execution.study import run_hpo
from criteria_hpo.results.corrected import scored_trials
from criteria_hpo.results.looks import looks_of
from criteria_hpo.training.cross_validation import run_single_fold
from criteria_hpo.training.metrics import best_threshold, candidate_thresholds, choose_threshold, f1, score_of
from criteria_hpo.training.setup import make_setup

CLOSE = {"rtol": 0, "atol": 1e-12, "equal_nan": True}


def calibration_error(y: np.ndarray, p: np.ndarray, w: np.ndarray) -> float:
    """From scikit-learn's curve where no pair has a weight; it has none, so else from the definition."""
    if (w == 1).all():
        share, mean = calibration_curve(y, p, n_bins=10)
        filled = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], p), minlength=10)
        return float(np.abs(share - mean) @ filled[filled > 0] / len(y))
    return float(sum(abs(w[b] @ (y - p)[b]) for b in (bin_numbers(p) == k for k in range(10))) / w.sum())


def expected(y: np.ndarray, p: np.ndarray, at: float | np.ndarray, c: np.ndarray, w: np.ndarray) -> dict[str, float]:
    """The scores of scikit-learn; NaN where the labels, not the prediction, leave a score undefined."""
    decided = (p >= at).astype(int)
    positive, negative = w @ y > 0, w @ (1 - y) > 0
    named = {"labels": [0, 1], "sample_weight": w}
    given = {"sample_weight": w, "zero_division": 0.0}
    each = [skm.f1_score(y[c == k], decided[c == k], **given | {"sample_weight": w[c == k]}) for k in np.unique(c[(w * y) > 0])]
    both = positive and negative
    return {
        "f1": skm.f1_score(y, decided, **given) if positive else np.nan,
        "macro_f1": float(np.mean(each)) if each else np.nan,
        "precision": skm.precision_score(y, decided, **given) if positive or w @ decided > 0 else np.nan,
        "recall": skm.recall_score(y, decided, **given) if positive else np.nan,
        "average_precision": skm.average_precision_score(y, p, sample_weight=w) if positive else np.nan,
        "roc_auc": skm.roc_auc_score(y, p, sample_weight=w) if both else np.nan,
        "mcc": skm.matthews_corrcoef(y, decided, sample_weight=w) if both else np.nan,
        "brier": skm.brier_score_loss(y, p, sample_weight=w, labels=[0, 1]),
        "log_loss": skm.log_loss(y, p, **named),
        "calibration_error": calibration_error(y, p, w),
    }


LABELS = {"mixed": 0.3, "all positive": 1.0, "all negative": 0.0, "rare": 0.03}
SCORES = {"spread": 1000, "tied": 4, "constant": 1, "certain": 2}
WEIGHTS = ("equal", "random", "some zero")


@pytest.mark.parametrize(("labels", "spread", "weighting"), list(itertools.product(LABELS, SCORES, WEIGHTS)))
def test_scores_equal_those_of_scikit_learn(labels: str, spread: str, weighting: str) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 7, 300):
        y = (rng.random(n) < LABELS[labels]).astype(int)
        p = rng.integers(0, SCORES[spread] + 1, n) / SCORES[spread] if spread != "constant" else np.full(n, 0.3)
        p = p.round() if spread == "certain" else p
        c = rng.integers(0, 4, n)
        w = {"equal": np.ones(n), "random": rng.random(n) + 0.1, "some zero": rng.integers(0, 2, n).astype(float)}[weighting]
        w[0] = 1.0
        for at in (0.4, np.where(c == 0, 0.2, 0.7)):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = scores(y, p, at, c, weights=w).loc[("overall", "all")]
                warnings.simplefilter("ignore")  # those of scikit-learn
                theirs = expected(y, p, at, c, w)
            assert list(theirs) == list(METRIC_TABLE)
            for metric, value in theirs.items():
                assert np.isclose(found[metric], value, **CLOSE), (metric, n, found[metric], value)


def test_parts_are_the_scores_of_their_pairs() -> None:
    rng = np.random.default_rng(1)
    y, p = rng.random(200) < 0.2, rng.integers(0, 30, 200) / 30
    criteria, posts = rng.choice(["A.1", "A.2", "B"], 200), rng.integers(0, 25, 200)
    table = scores(y, p, 0.4, criteria, posts)
    for level, names in (("criterion", criteria), ("post", posts)):
        for name in np.unique(names):
            inside, row = names == name, table.loc[(level, str(name))]
            alone = scores(y[inside], p[inside], 0.4).loc[("overall", "all")]
            assert row["pairs"] == inside.sum() and np.isnan(row["macro_f1"])
            others = [metric for metric in METRIC_TABLE if metric != "macro_f1"]
            assert np.allclose(row[others].astype(float), alone[others].astype(float), **CLOSE)


def test_an_empty_criterion_and_a_zero_weight_do_not_count() -> None:
    y, p, c = np.array([1, 0, 0, 0]), np.array([0.9, 0.2, 0.8, 0.1]), np.array([0, 0, 1, 1])
    assert weighted_scores(scored(y, p, 0.5, c), "macro_f1", np.arange(4), np.array([[1.0, 1, 1, 1], [0, 1, 1, 1]]))[0] == 1.0
    assert np.isnan(weighted_scores(scored(y, p, 0.5, c), "macro_f1", np.arange(4), np.array([[0.0, 1, 1, 1]]))[0])


@pytest.mark.parametrize("metric", ["f1", "macro_f1", "mcc"])
def test_a_threshold_never_separates_equal_scores(metric: str) -> None:
    rng = np.random.default_rng(2)
    for n_values in (1, 2, 5, 40):
        p = rng.integers(0, n_values, 200) / n_values
        y, c = np.sort(rng.random(200) < 0.4)[::-1], rng.integers(0, 3, 200)
        at = best_threshold(y, p, metric, c)
        assert not np.isin(at, p[p > 0]) and all(len({bool(x >= at) for x in p[p == value]}) == 1 for value in np.unique(p))
        best = max(score_of(metric, y, p, value, c) for value in np.unique(p))
        assert np.isclose(score_of(metric, y, p, at, c), best)


def test_constant_scores_have_one_answer() -> None:
    y, groups, criteria = np.arange(300) < 100, np.arange(300) // 3, np.arange(300) % 3
    for noise in (0.0, 1e-9):
        p = 0.3 + noise * np.random.default_rng(0).random(300)
        for kind in ("global", "criterion", "auto"):
            decided = p >= choose_thresholds(y, p, groups, criteria, kind=kind).of(criteria)
            assert decided.all()
        assert f1(y, p, best_threshold(y, p)) == pytest.approx(0.5)  # 2 * 100 / (300 + 100), not 1.0


def test_neighbouring_floats_have_a_threshold_between_them() -> None:
    low = np.float64(0.1)
    pair = np.array([low, np.nextafter(low, 1), np.nextafter(np.nextafter(low, 1), 1), 0.9])
    assert [(pair >= t).sum() for t in candidate_thresholds(pair)] == [1, 2, 3, 4]


def test_thresholds_survive_json() -> None:
    given = Thresholds(0.1 + 0.2, {"A.1": 1 / 3}, "mcc", {"pairs": 9, "positives": 3, "groups": 2})
    assert Thresholds.from_json(given.to_json()) == given and json.loads(given.to_json())["by_criterion"] == {"A.1": 1 / 3}


# The objective of a search.

SMALL = ["preset=smoke", "model=tiny", "data.max_groups=20", "training.early_stopping.min_positives=0"]
SETTING = HParams(learning_rate=5e-4, batch_size=16)


@pytest.fixture(scope="module")
def setup():
    cfg = load_config([*SMALL, "objective.threshold=inner"])
    made = make_setup(cfg, load_data(cfg), largest_batch=16)
    large = replace(made.folds[0], inner=made.folds[0].train, train=made.folds[0].train)  # enough pairs to choose a threshold
    return replace(made, folds=(large,))


@pytest.mark.parametrize("metric", ["f1", "macro_f1", "mcc"])
def test_the_threshold_of_a_fold_comes_from_its_inner_split(setup, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setup, fold = replace(setup, metric=metric), setup.folds[0]
    seen = []

    def spy(labels, probs, *args):
        seen.append((labels, choose_threshold(labels, probs, *args)))
        return seen[-1][1]

    monkeypatch.setattr("criteria_hpo.training.epoch.choose_threshold", spy)
    result = run_single_fold(setup, SETTING, fold, seed=1)
    inner = setup.tokens.labels[fold.inner]
    assert seen and all(np.array_equal(labels, inner) for labels, _ in seen), "labels outside the inner split were used"
    assert result.threshold == seen[-1][1] != 0.5
    labels, criteria = setup.tokens.labels[fold.valid], setup.criteria[fold.valid]
    assert result.score == score_of(metric, labels, result.probs, result.threshold, criteria) == result.metrics[metric]
    at_half = run_single_fold(replace(setup, threshold="fixed"), SETTING, fold, seed=1)
    assert at_half.threshold == 0.5 and at_half.score == score_of(metric, labels, at_half.probs, 0.5, criteria)
    assert np.array_equal(at_half.probs, result.probs) and at_half.score != result.score


def test_the_threshold_is_part_of_the_identity_only_where_it_acts() -> None:
    usual, inner = load_config(SMALL), load_config([*SMALL, "objective.threshold=inner"])
    assert config_hash(usual) != config_hash(inner)
    data = load_data(usual)
    assert "objective" not in study_identity(usual, data) and study_identity(inner, data)["objective"] == {"threshold": "inner"}


def test_the_correction_decides_at_the_thresholds_of_the_search(tmp_path: Path) -> None:
    """The stored logits less the threshold give the score that the search stored; at 0.5 they do not."""
    words = ["preset=smoke", "model=tiny", "n_trials=1", "data.n_folds=2", "data.max_groups=null", f"studies_dir='{tmp_path}'"]
    words += ["objective.threshold=inner", "training.early_stopping.fraction=0.5", "hpo.study_name=inner"]
    run = run_hpo(load_config(words))
    at = [row.details["threshold"] for row in run.ledger.folds()]
    assert len(at) == 2 and 0.5 not in at
    labels = run.data.dev.label.to_numpy()
    for own in (True, False):
        table = scored_trials(run.study, run.ledger, run.data, own)
        again = [[f1(labels[f.valid], (row[f.valid] >= 0).astype(float)) for f in run.data.folds] for row in table.logits]
        right = np.isclose(again, table.scores, atol=0.005)  # a stored logit is rounded
        assert right.all() if own else not right.any()


# What a change of a setting of the evaluation changes: the predictions and decisions that are scored, or nothing.

CHANGES = {
    "seeds": (2, True),  # other thresholds and epochs
    "refits": (2, True),
    "top": (2, False),  # a confirmation keeps the settings that it began with
    "choose": ("fastest", False),  # of one setting
    "ensemble": (True, False),  # which weights are written, not how they are scored
    "suffix": ("again", False),  # the same settings, cuts and seeds
}


@pytest.mark.slow
def test_every_setting_of_the_evaluation_changes_the_result_only_where_it_acts(tmp_path: Path) -> None:
    """Every change that matters is a new result and a new look; the change back finds the weights of before."""
    assert set(CHANGES) == set(EvaluateConfig.model_fields)
    words = ["preset=smoke", "model=tiny", "n_trials=1", "data.n_folds=2", f"studies_dir='{tmp_path}'", "hpo.study_name=s"]
    cfg = load_config([*words, "evaluate={top: 1, seeds: 1, refits: 1}"])
    run = run_hpo(cfg)
    stored = tmp_path / "s" / "evaluation.json"

    def scored_by(changes: dict) -> tuple[dict, int, str]:
        result = evaluate(cfg.model_copy(update={"evaluate": cfg.evaluate.model_copy(update=changes)}))
        return json.loads(stored.read_text()), len(looks_of(run.study)), result.text()

    first, looks, text = scored_by({})
    assert looks == 1
    for name in ("top", "choose", "ensemble", "suffix"):
        value, acts = CHANGES[name]
        found, looks, _ = scored_by({name: value})
        assert not acts and (found, looks) == (first, 1), name
    weights = next((tmp_path / "s" / "refits").glob("*/seed1/model.safetensors"))
    written = weights.stat().st_mtime_ns
    assert scored_by({"refits": 2})[1] == 2 and scored_by({})[:2] == (first, 2)
    assert weights.stat().st_mtime_ns == written
    more, looks, other = scored_by({"seeds": 2})
    assert looks == 3 and more["key"] != first["key"] and other != text
    assert more["models"]["winner"]["calibration"] != first["models"]["winner"]["calibration"] or (
        more["models"]["winner"]["thresholds"] != first["models"]["winner"]["thresholds"]
    )
    assert scored_by({"seeds": 1})[:2] == (more, 3)  # seeds that are trained are used
