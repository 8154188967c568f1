"""Each searched parameter is read back where it acts, and changing it alone changes training."""

import numpy as np
import pytest
import torch

from criteria_hpo import trainer
from criteria_hpo.config import HParams, load_config
from criteria_hpo.encoders import read_dropout
from criteria_hpo.optim import warmup_steps
from criteria_hpo.prepare import load_data, make_setup
from criteria_hpo.search_space import parse_space

BASE = HParams(learning_rate=5e-4, batch_size=16, focal_gamma=2.0)
CHANGED = {"learning_rate": 6e-4, "batch_size": 32, "weight_decay": 0.1, "warmup_ratio": 0.2, "classifier_dropout": 0.3,
           "hidden_dropout": 0.2, "attention_dropout": 0.2, "focal_gamma": 3.0}


@pytest.fixture(scope="module")
def setup():
    cfg = load_config(["preset=smoke", "model=tiny", "data.max_groups=20"])
    return make_setup(cfg, load_data(cfg), largest_batch=32)


@pytest.fixture(scope="module")
def base(setup):
    return trainer.run_single_fold(setup, BASE, setup.folds[0], seed=1)


def test_the_table_covers_every_searched_parameter():
    space = {d.name for d in parse_space(load_config([]).hpo.search_space)}
    assert space - {"aug_enable", "aug_prob", "aug_method"} == set(CHANGED)


@pytest.mark.parametrize("name", CHANGED)
def test_acts_alone(setup, base, name, monkeypatch):
    seen = {}
    make_optimizer, linear_schedule, step = trainer.make_optimizer, trainer.linear_schedule, trainer.accumulation_step

    def optimizer(*args):
        seen["optimizer"] = make_optimizer(*args)
        seen["groups"] = [{k: g[k] for k in ("lr", "weight_decay")} for g in seen["optimizer"].param_groups]
        return seen["optimizer"]

    def schedule(opt, total, ratio):
        seen["total"], seen["warm"] = total, warmup_steps(total, ratio)
        made = linear_schedule(opt, total, ratio)
        seen["first_rate"] = opt.param_groups[0]["lr"]
        return made

    def counted(*args):
        seen["steps"] = seen.get("steps", 0) + 1
        return step(*args)

    monkeypatch.setattr(trainer, "make_optimizer", optimizer)
    monkeypatch.setattr(trainer, "linear_schedule", schedule)
    monkeypatch.setattr(trainer, "accumulation_step", counted)
    setting = BASE.model_copy(update={name: CHANGED[name]})
    changed = trainer.run_single_fold(setup, setting, setup.folds[0], seed=1)

    rows = len(setup.folds[0].train)
    assert seen["groups"][0] == {"lr": setting.learning_rate, "weight_decay": setting.weight_decay}
    assert seen["groups"][1]["weight_decay"] == 0
    assert seen["steps"] == seen["total"] == -(-rows // setting.batch_size)
    assert seen["warm"] == int(np.ceil(seen["total"] * setting.warmup_ratio))
    assert seen["first_rate"] == pytest.approx(setting.learning_rate / (seen["warm"] + 1))
    rates = read_dropout(setup.classifier.model)
    assert rates == {role: getattr(setting, f"{role}_dropout") for role in ("classifier", "hidden", "attention")}
    one = torch.ones(1)
    ratio = setup.classifier.loss(one, one) / torch.nn.functional.binary_cross_entropy_with_logits(one, one)
    assert ratio.item() == pytest.approx((1 - torch.sigmoid(one).item()) ** setting.focal_gamma, rel=1e-5)

    assert not np.array_equal(changed.probs, base.probs), f"{name} changed nothing"


def test_nothing_changes_by_itself(setup, base):
    assert np.array_equal(trainer.run_single_fold(setup, BASE, setup.folds[0], seed=1).probs, base.probs)
