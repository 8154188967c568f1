"""A study without training, through the real loop: what sampling and storage cost, and that only seed and slot count."""

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch

from criteria_hpo.config.load import load_config
from criteria_hpo.config.paths import storage_url
from criteria_hpo.data.folds import Fold
from criteria_hpo.execution import trial as objective
from criteria_hpo.execution.identity import open_ledger, open_study
from criteria_hpo.execution.study import run_trials
from criteria_hpo.model.families import tiny_encoder
from criteria_hpo.results.costs import costs_by_reason
from criteria_hpo.storage.ledger import Ledger
from criteria_hpo.training import cross_validation as trainer
from criteria_hpo.training.epoch import TrainingSetup
from criteria_hpo.training.fold import FoldResult

pytestmark = pytest.mark.slow

BEST_PROB = {"synonym": 0.15, "contextual": 0.45}
ROWS = np.arange(2)


def score_of(hparams, seed):
    """A smooth function of the setting, its best probability depending on the method, and noise from the fold's seed."""
    score = 0.7 - 0.05 * (math.log10(hparams.learning_rate) + 4.8) ** 2 - 0.3 * (hparams.hidden_dropout - 0.1) ** 2
    score += 0.01 * math.log2(hparams.batch_size / 16) - 0.2 * (hparams.classifier_dropout - 0.3) ** 2
    if hparams.aug_enable:
        score += 0.15 - 0.5 * abs(hparams.aug_prob - BEST_PROB[hparams.aug_method])
    return score + float(np.random.default_rng(seed).normal(0, 0.01))


def synthetic_fold(setup, hparams, fold, seed, *_):
    """What a fold gives, without training it."""
    score, sizes = score_of(hparams, seed), (setup.physical_batch_size, setup.eval_batch_size)
    return FoldResult(fold.number, score, {"f1": score}, 3, 2, 0.0, 16, sizes, seed, [], ROWS, ROWS / 2)


class Cut(KeyboardInterrupt):
    """A process that ends."""


@dataclass
class Clock:
    """Process seconds at the end of every slot, and of them those of the sampler."""

    ends: list[float] = field(default_factory=list)
    sampled: list[float] = field(default_factory=list)
    sampling: float = 0.0

    def at(self, n, last=50):
        """Milliseconds a trial over the last trials up to the n-th: the sampler's, and everything else's."""
        whole, sampler = (1000 * (series[n - 1] - series[n - 1 - last]) / last for series in (self.ends, self.sampled))
        return sampler, whole - sampler


class TimedSampler(optuna.samplers.BaseSampler):
    """A sampler whose calls are timed."""

    def __init__(self, sampler, clock):
        self.sampler, self.clock = sampler, clock

    def timed(self, name, *args):
        start = time.process_time()
        answer = getattr(self.sampler, name)(*args)
        self.clock.sampling += time.process_time() - start
        return answer

    def infer_relative_search_space(self, *args):
        return self.timed("infer_relative_search_space", *args)

    def sample_relative(self, *args):
        return self.timed("sample_relative", *args)

    def sample_independent(self, *args):
        return self.timed("sample_independent", *args)


class Loop:
    """Studies in a folder, run by the real loop with synthetic folds; may be cut at a fold, or before a trial has its slot."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.patch = folder, monkeypatch
        monkeypatch.setattr(trainer, "run_single_fold", synthetic_fold)

    def run(self, name, n_trials, *words, cut_at_fold=None, cut_before_bind=None):
        """Works until `n_trials` are finished; after a cut, like a process that was started again."""
        standard = ["hpo.storage=null", f"hpo.study_name={name}", f"studies_dir={self.folder}", f"n_trials={n_trials}"]
        cfg = load_config([*standard, *words])
        folds = tuple(Fold(number, ROWS, ROWS, ROWS) for number in range(1, 6))
        encoder, device = SimpleNamespace(model=tiny_encoder("bert")), torch.device("cpu")
        setup = TrainingSetup(encoder, None, folds, cfg.training, "f1", 16, 32, device)
        with self.patch.context() as patch:
            self._cut(patch, cut_at_fold, cut_before_bind)
            for _ in range(3):
                ledger = open_ledger(cfg)
                study = open_study(cfg, SimpleNamespace(hashes={}), ledger)
                try:
                    run_trials(cfg, study, ledger, setup)
                    return study
                except Cut:
                    continue
        raise AssertionError("cut more often than asked for")

    def _cut(self, patch, at_fold, before_bind):
        trained, bind = Counter(), Ledger.bind

        def fold(setup, hparams, which, seed, *rest):
            trained["folds"] += 1
            if trained["folds"] == at_fold:
                raise Cut
            return synthetic_fold(setup, hparams, which, seed, *rest)

        def bind_or_cut(ledger, lease, trial_id):
            trained[lease.slot] += 1
            if lease.slot == before_bind and trained[lease.slot] == 1:
                raise Cut
            bind(ledger, lease, trial_id)

        patch.setattr(trainer, "run_single_fold", fold)
        patch.setattr(Ledger, "bind", bind_or_cut)

    def timed(self, name, n_trials, *words):
        """The study, and the times of its slots."""
        clock, sampler_of, finish = Clock(), objective.slot_sampler, Ledger.finish

        def finish_and_note(ledger, *args):
            finish(ledger, *args)
            clock.ends.append(time.process_time())
            clock.sampled.append(clock.sampling)

        with self.patch.context() as patch:
            patch.setattr(objective, "slot_sampler", lambda *args: TimedSampler(sampler_of(*args), clock))
            patch.setattr(Ledger, "finish", finish_and_note)
            return self.run(name, n_trials, *words), clock


@pytest.fixture
def loop(tmp_path, monkeypatch):
    return Loop(tmp_path, monkeypatch)


def results(study, n=None):
    """What a study found, trial by trial, without those that a crash lost."""
    kept = [t for t in study.get_trials(deepcopy=False) if t.state.name != "FAIL"][:n]
    return [(t.params, t.intermediate_values, t.state.name, t.value, t.user_attrs.get("prune_reason")) for t in kept]


def test_only_seed_and_slot_count(loop, tell):
    """Cut in the middle of a trial and before a trial had its slot, a study is what it would have been."""
    whole, clock = loop.timed("whole", 100)
    cut = loop.run("cut", 100, cut_at_fold=90, cut_before_bind=61)
    states = Counter(t.state.name for t in whole.trials)
    sampler, rest = clock.at(100)
    tell("trials without training", "trial 100", f"sampler {sampler:.0f} ms, storage and pruner {rest:.0f} ms of the processor")
    assert states["COMPLETE"] + states["PRUNED"] == 100 and states["PRUNED"] > 20
    assert all(t.state.name == "COMPLETE" for t in whole.trials[:30])
    assert [t.state.name for t in cut.trials].count("FAIL") == 1
    assert results(cut) == results(whole)
    assert results(loop.run("other", 3, "seed=7"))[1:] != results(whole, 3)[1:]


@pytest.mark.parametrize("kind", ["gp", "cmaes", "qmc", "random"])
def test_every_sampler_in_the_loop(loop, kind):
    """Another sampler, with conditional parameters, is cut in the same way."""
    words = [f"hpo.sampler.type={kind}", "hpo.sampler.n_startup_trials=8", "hpo.search_space.aug_enable.choices=[true,false]"]
    words.append("hpo.pruner.startup_trials=12")
    whole = loop.run("whole", 18, *words)
    assert results(loop.run("cut", 18, *words, cut_at_fold=61, cut_before_bind=15)) == results(whole)
    assert len({str(t.params) for t in whole.trials}) >= 15


def test_conditional_parameters(loop):
    """Without augmentation its parameters do not exist; where they do, TPE finds that the best one hangs on the other."""
    study = loop.run("aug", 80, "hpo.search_space.aug_enable.choices=[true,false]", "hpo.pruner.type=none")
    hanging = [{"aug_prob", "aug_method"} & t.params.keys() for t in study.trials]
    assert all(len(names) == (2 if t.params["aug_enable"] else 0) for names, t in zip(hanging, study.trials))
    off = [abs(t.params["aug_prob"] - BEST_PROB[t.params["aug_method"]]) for t in study.trials if t.params["aug_enable"]]
    print(f"distance from the best probability: first ten {np.mean(off[:10]):.3f}, last twenty {np.mean(off[-20:]):.3f}")
    assert len(off) > 40 and np.mean(off[-20:]) < 0.6 * np.mean(off[:10])


@pytest.mark.slow
def test_two_thousand_trials(loop, tell):
    """In all under ten minutes on a quiet machine of two cores, and the same again."""
    start = time.perf_counter()
    study, clock = loop.timed("whole", 2000)
    minutes = (time.perf_counter() - start) / 60
    for n in (100, 1000, 2000):
        sampler, rest = clock.at(n)
        tell(
            "trials without training",
            f"trial {n:,}",
            f"sampler {sampler:.0f} ms, storage and pruner {rest:.0f} ms of the processor",
        )
    worked = (clock.ends[-1] - clock.ends[0]) / 60
    tell("trials without training", "2,000 trials", f"{minutes:.1f} minutes, {worked:.1f} of them of the processor")
    ledger = Ledger(storage_url(load_config([f"studies_dir={loop.folder}", "hpo.study_name=whole"])), "whole")
    print(costs_by_reason(study, ledger, 5).to_string())
    assert len(results(study)) == 2000 and results(loop.run("again", 200)) == results(study, 200)
    assert minutes < 10
