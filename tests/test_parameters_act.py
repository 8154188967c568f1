"""Each searched parameter is read back where it acts, and changing it alone changes training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from criteria_hpo.augmentation.draw_variants import VariantTokens, concatenate
from criteria_hpo.config.hparams import HParams
from criteria_hpo.config.load import load_config
from criteria_hpo.data.study_data import load_data
from criteria_hpo.data.tokens import TokenisedPairs
from criteria_hpo.model.dropout import read_dropout
from criteria_hpo.search.search_space import parse_space
from criteria_hpo.training import cross_validation as trainer
from criteria_hpo.training import epoch
from criteria_hpo.training import fold as fold_module
from criteria_hpo.training.optim import warmup_steps
from criteria_hpo.training.setup import make_setup

BASE = HParams(learning_rate=5e-4, batch_size=16, focal_gamma=2.0)
CHANGED = {
    "learning_rate": 6e-4,
    "batch_size": 32,
    "weight_decay": 0.1,
    "warmup_ratio": 0.2,
    "classifier_dropout": 0.3,
    "hidden_dropout": 0.2,
    "attention_dropout": 0.2,
    "focal_gamma": 3.0,
}


@pytest.fixture(scope="module")
def setup():
    cfg = load_config(["preset=smoke", "model=tiny", "data.max_groups=20"])
    return make_setup(cfg, load_data(cfg), largest_batch=32)


@pytest.fixture(scope="module")
def base(setup):
    return trainer.run_single_fold(setup, BASE, setup.folds[0], seed=1)


AUGMENTED = BASE.model_copy(update={"aug_enable": True, "aug_prob": 0.3, "aug_method": "synonym"})
AUG_CHANGED = {"aug_enable": False, "aug_prob": 0.6, "aug_method": "contextual"}


def test_the_table_covers_every_searched_parameter():
    space = {d.name for d in parse_space(load_config([]).hpo.search_space)}
    assert space == {*CHANGED, *AUG_CHANGED}


@pytest.mark.parametrize("name", CHANGED)
def test_acts_alone(setup, base, name, monkeypatch):
    seen = {}
    make_optimizer, make_schedule, step = fold_module.make_optimizer, fold_module.make_schedule, epoch.accumulation_step

    def optimizer(*args):
        seen["optimizer"] = make_optimizer(*args)
        seen["groups"] = [{k: g[k] for k in ("lr", "weight_decay")} for g in seen["optimizer"].param_groups]
        return seen["optimizer"]

    def schedule(name, opt, total, ratio):
        seen["total"], seen["warm"] = total, warmup_steps(total, ratio)
        made = make_schedule(name, opt, total, ratio)
        seen["first_rate"] = opt.param_groups[0]["lr"]
        return made

    def counted(*args):
        seen["steps"] = seen.get("steps", 0) + 1
        return step(*args)

    monkeypatch.setattr(fold_module, "make_optimizer", optimizer)
    monkeypatch.setattr(fold_module, "make_schedule", schedule)
    monkeypatch.setattr(epoch, "accumulation_step", counted)
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


@pytest.fixture(scope="module")
def with_variants(setup):
    """The setup with invented variants of its positives: their own tokens, one of them another, by each method."""
    positives = np.flatnonzero(setup.tokens.labels == 1)
    first = np.full(len(setup.tokens), -1)
    first[positives] = len(setup.tokens) + np.arange(len(positives))

    def variants(place):
        own = setup.tokens
        starts = own.offsets[positives]
        lengths = own.lengths[positives]
        tokens = np.concatenate([own.input_ids[start : start + length] for start, length in zip(starts, lengths)])
        tokens[np.concatenate([[0], np.cumsum(lengths)[:-1]]) + place] = 2_000
        types = (
            None
            if own.token_type_ids is None
            else np.concatenate([own.token_type_ids[start : start + length] for start, length in zip(starts, lengths)])
        )
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        made = TokenisedPairs(tokens, types, offsets, own.labels[positives], own.pad_token_id, own.cut[positives])
        return VariantTokens(concatenate(own, made), first, 1)

    return replace(setup, variants={"synonym": variants(1), "contextual": variants(2)})


@pytest.mark.parametrize("name", AUG_CHANGED)
def test_augmentation_acts_alone(with_variants, base, name, monkeypatch):
    seen = []
    make = fold_module.training_source
    monkeypatch.setattr(fold_module, "training_source", lambda *args: seen.append(make(*args)) or seen[-1])
    fold = with_variants.folds[0]
    before = trainer.run_single_fold(with_variants, AUGMENTED, fold, seed=1)
    changed = trainer.run_single_fold(with_variants, AUGMENTED.model_copy(update={name: AUG_CHANGED[name]}), fold, seed=1)
    assert not np.array_equal(changed.probs, before.probs), f"{name} changed nothing"
    replaced = [int((source.rows(fold.train, 1, 1) != fold.train).sum()) for source in seen]
    if name == "aug_enable":
        assert replaced[0] > replaced[1] == 0 and np.array_equal(changed.probs, base.probs)
    elif name == "aug_prob":
        assert seen[1].aug_prob == 0.6 and replaced[1] > replaced[0] > 0
    else:
        assert seen[1].tokens is with_variants.variants["contextual"].tokens and replaced[1] == replaced[0]
