"""The conformance of LoRA models: in every family of the table, and in a fold of a study. Skipped without the extra `lora`."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from criteria_hpo.adapters.files import save_adapter
from criteria_hpo.adapters.lora import attach_adapter
from criteria_hpo.adapters.targets import TARGETS, head_modules, target_pattern
from criteria_hpo.config.hparams import HParams
from criteria_hpo.config.load import load_config
from criteria_hpo.config.model_settings import AdapterConfig
from criteria_hpo.config.schema import CheckpointConfig
from criteria_hpo.data.study_data import load_data
from criteria_hpo.execution.study import run_hpo
from criteria_hpo.model.classifier import BERTClassifier
from criteria_hpo.model.dropout import set_dropout
from criteria_hpo.model.encoders import load_encoder
from criteria_hpo.model.families import tiny_encoder
from criteria_hpo.training.checkpoint import Checkpoints
from criteria_hpo.training.conformance import ALL_OFF, relative_difference, sample_batch, step_gradient, train_steps
from criteria_hpo.training.cross_validation import run_single_fold
from criteria_hpo.training.fold import Observer
from criteria_hpo.training.setup import make_setup

pytest.importorskip("peft", reason="needs the extra lora")

LORA = AdapterConfig(type="lora", r=8, dropout=0.1)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A bare encoder of random weights for each family, on which a head is fresh."""
    place = tmp_path_factory.mktemp("bases")
    for family in TARGETS:
        tiny_encoder(family).base_model.save_pretrained(place / family)
    return place


def adapted(folder, seed=1, config=LORA):
    classifier = BERTClassifier(str(folder))
    classifier.reset(seed)
    set_dropout(classifier.model, ALL_OFF)
    attach_adapter(classifier, config, seed)
    return classifier


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)


@pytest.mark.parametrize("family", TARGETS)
def test_only_adapter_and_head_train(folders, family):
    classifier = adapted(folders / family)
    model, head = classifier.model, tuple(f"{name}." for name in head_modules(classifier.model))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_steps(classifier, 2)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    trainable = {name for name, param in model.named_parameters() if param.requires_grad}
    assert all(".lora_" in name or name.startswith(head) for name in trainable) and moved <= trainable
    assert {name for name in trainable if name.startswith(head)} == {n for n in before if n.startswith(head) and "decay" not in n}
    assert sum(".lora_B." in name for name in moved) >= 4 and any(name.startswith(head) for name in moved)


@pytest.mark.parametrize("family", TARGETS)
def test_accumulation_and_reset_are_exact(folders, family):
    classifier, batch = adapted(folders / family, config=LORA.model_copy(update={"dropout": 0.0})), None
    batch, plain = sample_batch(classifier.model, rows=7), BERTClassifier(str(folders / family))
    plain.reset(1)
    train_steps(classifier, 1)  # so that neither matrix of a pair is zero
    set_dropout(classifier.model, ALL_OFF)
    start = classifier.snapshot()
    whole = step_gradient(classifier, batch, 7)
    for physical in (1, 3):
        classifier.load(start)
        assert relative_difference(whole, step_gradient(classifier, batch, physical)) < 1e-5
    assert whole.keys() == start.keys()
    classifier.reset(1)
    assert classifier.adapter is None and classifier.snapshot().keys() == plain.snapshot().keys()
    assert all(torch.equal(value, plain.model.state_dict()[name]) for name, value in classifier.model.state_dict().items())
    assert all(param.requires_grad for param in classifier.parameters())


@pytest.mark.parametrize("family", TARGETS)
def test_a_compact_vocabulary_changes_no_number(folders, family, tmp_path):
    whole, kept = BERTClassifier(str(folders / family)), np.arange(0, 100, 3)
    small = copy.deepcopy(whole)
    if small.compact(kept):
        pytest.skip("this family is trained with all rows")
    seen = []
    for classifier in (whole, small):
        classifier.reset(1)
        attach_adapter(classifier, LORA, 1)
        seen.append(train_steps(classifier, 2))
    assert seen[0] == seen[1] and small.snapshot().keys() == whole.snapshot().keys()
    small.save_pretrained(tmp_path)
    saved, fresh = load_encoder(str(tmp_path))
    batch = sample_batch(saved)
    assert not fresh and torch.allclose(logits(saved, batch), logits(whole.model, batch), atol=1e-5)


LOAD = """
import json, sys, torch
from criteria_hpo.adapters.files import load_adapter
from criteria_hpo.model.classifier import BERTClassifier
from criteria_hpo.model.dropout import set_dropout
place, found = sys.argv[1], {}
torch.set_num_threads(1)
for family, (ids, mask) in json.load(open(place + "/batches.json")).items():
    classifier = BERTClassifier(f"{place}/{family}")
    classifier.reset(77)
    load_adapter(classifier, f"{place}/{family}-adapter")
    with torch.no_grad():
        found[family] = classifier.eval()(torch.tensor(ids), torch.tensor(mask)).tolist()
print(json.dumps(found))
"""


def test_an_adapter_gives_equal_logits_in_another_process(folders, tell):
    """Loaded over the same bare encoder under another seed: a part of the head that is not saved would be drawn anew."""
    batches, expected = {}, {}
    for family in TARGETS:
        classifier = adapted(folders / family)
        train_steps(classifier, 2)
        save_adapter(classifier, folders / f"{family}-adapter", family)
        batch = sample_batch(classifier.model)
        batches[family] = batch["input_ids"].tolist(), batch["attention_mask"].tolist()
        expected[family] = classifier.eval()(batch["input_ids"], batch["attention_mask"]).tolist()
    (folders / "batches.json").write_text(json.dumps(batches))
    ran = subprocess.run([sys.executable, "-c", LOAD, str(folders)], capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout.strip().splitlines()[-1])
    tell("adapters in another process", "families", f"{sum(found[f] == expected[f] for f in TARGETS)} of {len(TARGETS)} equal")
    assert found == expected


# In a study.

SETTING = HParams(learning_rate=5e-4, batch_size=16, adapter="lora", lora_r=8, lora_alpha=32)


@pytest.fixture(scope="module")
def setup():
    cfg = load_config(["preset=smoke", "model=tiny", "data.max_groups=20", "model.adapter.dropout=0.2"])
    return make_setup(cfg, load_data(cfg), largest_batch=32)


def fold(setup, setting, **more):
    return run_single_fold(setup, setting, setup.folds[0], 1, **more)


def test_trials_with_and_without_an_adapter_follow_each_other(setup):
    without = SETTING.model_copy(update={"adapter": "none"})
    before, first = fold(setup, without), fold(setup, SETTING)
    names = {name for name in setup.classifier.weights() if ".lora_" not in name}
    assert names == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
    assert setup.classifier.vocabulary is not None
    for name, value in {"lora_r": 16, "lora_alpha": 8, "lora_dropout": 0.0, "pooling": "attention", "layer_decay": 0.5}.items():
        assert not np.array_equal(first.probs, fold(setup, SETTING.model_copy(update={name: value})).probs), name
    assert np.array_equal(first.probs, fold(setup, SETTING).probs)
    again = fold(setup, without)
    assert np.array_equal(before.probs, again.probs) and not np.array_equal(before.probs, first.probs)


def test_a_frozen_layer_keeps_its_adapter_frozen(setup):
    fold(setup, SETTING.model_copy(update={"freeze_layers": 1}))
    trained = {name for name in setup.classifier.weights() if ".lora_" in name}
    assert trained and all(".layer.1." in name for name in trained)


class Killed(Exception):
    """Raised by the test alone."""


class KillAt(Observer):
    def __init__(self, last):
        self.last = last

    def step(self, fold, share):
        self.last -= 1
        if not self.last:
            raise Killed


def test_a_fold_with_an_adapter_resumes_from_its_checkpoint(setup, tmp_path):
    files = Checkpoints(tmp_path, "slot-0", {}, CheckpointConfig(after_minutes=0, every_minutes=1e-9))
    whole = fold(setup, SETTING)
    with pytest.raises(Killed):
        fold(setup, SETTING, observer=KillAt(3), file=files.of(1))
    assert np.array_equal(whole.probs, fold(setup, SETTING, file=files.of(1)).probs)


def test_four_bits_train_between_scorings(setup):
    """Two epochs, each with a scoring: the gradients of the second one still reach the first layer."""
    pytest.importorskip("bitsandbytes", reason="needs the extra lora")
    longer = replace(setup, training=setup.training.model_copy(update={"num_epochs": 2}))
    small = SETTING.model_copy(update={"adapter": "qlora", "lora_dropout": 0.0})
    result = fold(longer, small)
    assert len(result.losses) == 2 and not np.array_equal(result.probs, fold(longer, SETTING).probs)
    assert np.array_equal(result.probs, fold(longer, small).probs)
    model = setup.classifier.model.train()
    batch = sample_batch(model)
    batch["input_ids"][:] = setup.tokens.pad_token_id
    batch["input_ids"][:, 0] = int(setup.tokens.input_ids[0])
    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.sum().backward()
    first = [p.grad for n, p in model.named_parameters() if ".layer.0." in n and ".lora_B." in n]
    assert len(first) == 6 and all(grad is not None and grad.abs().max() > 0 for grad in first)


@pytest.mark.slow
def test_a_search_over_adapters(tmp_path):
    words = [
        "preset=smoke",
        "model=tiny",
        "data.max_groups=12",
        "n_trials=3",
        f"studies_dir='{tmp_path}'",
        "hpo.pruner.type=none",
    ]
    space = "hpo.search_space."
    words += [f"{space}adapter={{type: categorical, choices: [none, lora]}}", "hpo.sampler.type=random", "data.n_folds=2"]
    words += [f"{space}lora_r={{type: categorical, choices: [8, 16], condition: {{adapter: lora}}}}"]
    study = run_hpo(load_config(words)).study
    assert study.trials[0].params["adapter"] == "none" and len(study.trials) == 3
    assert all(("lora_r" in trial.params) == (trial.params["adapter"] == "lora") for trial in study.trials)
    assert "adapter" not in study.user_attrs["identity"]["model"]


def test_the_pattern_never_names_the_head():
    for family in TARGETS:
        assert not any(name in target_pattern(tiny_encoder(family)) for name in ("pooler", "classifier")), family
