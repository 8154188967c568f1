"""A study in MLflow: each trial once, with its folds and files and without texts, and no server can stop a search."""

import os
import socket
import sqlite3
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import optuna
import pytest

from criteria_hpo import cli
from criteria_hpo.config.load import load_config
from criteria_hpo.config.paths import storage_url
from criteria_hpo.core.errors import StudyError
from criteria_hpo.data.study_data import load_data
from criteria_hpo.live.mlflow_beside import send_beside
from criteria_hpo.live.mlflow_runs import EXPERIMENT, client_of, fold_scores, send_study
from criteria_hpo.results.stored import stored_study
from criteria_hpo.search.objectives import make_study
from criteria_hpo.search.optuna_access import trial_id
from criteria_hpo.storage.database import open_storage
from criteria_hpo.storage.ledger import Ledger

pytest.importorskip("mlflow", reason="needs the extra mlflow")
pytest.importorskip("cryptography", reason="needs the extra mlflow")


@pytest.fixture
def small(tmp_path):
    """A study of two ended trials, and the URL of its database."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=open_storage(url), study_name="small", direction="maximize")
    Ledger(url, "small").engine.dispose()
    for value in (0.5, 0.6):
        study.add_trial(optuna.trial.create_trial(value=value, params={}, distributions={}))
    return study, url


def sent(uri: str) -> tuple[list, list, Path]:
    """The runs of studies and those of trials, by number, and the folder of the first study's files."""
    with client_of(uri) as client:
        runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id], max_results=1000)
        studies = [run for run in runs if "criteria_hpo.study" in run.data.tags]
        trials = [run for run in runs if "criteria_hpo.trial" in run.data.tags]
        folds = {run.info.run_id: client.get_metric_history(run.info.run_id, "fold_score") for run in trials}
    for run in trials:
        run.folds = {metric.step: metric.value for metric in folds[run.info.run_id]}
        assert len(run.folds) == len(folds[run.info.run_id]), "a fold was sent twice"
    trials.sort(key=lambda run: int(run.data.tags["criteria_hpo.trial"]))
    return studies, trials, Path(unquote(urlsplit(studies[0].info.artifact_uri).path))


def texts_in(path: Path, texts: list[str]) -> list[str]:
    content = path.read_bytes()
    return [text for text in texts if text.encode() in content]


@pytest.mark.slow
def test_a_resumed_search_is_one_run_with_each_trial_once(tmp_path, monkeypatch, capsys, tell):
    """With a folder `mlruns` in the working directory, which MLflow would choose and then refuse."""
    (tmp_path / "mlruns").mkdir()
    monkeypatch.chdir(tmp_path)
    studies = tmp_path / "studies"
    words = [
        "preset=smoke",
        "model=tiny",
        "data.max_groups=20",
        f"studies_dir={studies}",
        "hpo.study_name=mine",
        "tracking.mlflow=true",
    ]
    began = time.monotonic()
    for n_trials in (2, 4):
        assert cli.main([*words, "command=hpo", f"n_trials={n_trials}"]) == 0
    took = time.monotonic() - began
    cfg = load_config(words)
    study, uri = stored_study(cfg), f"sqlite:///{studies / 'mlflow.db'}"
    parents, children, files = sent(uri)
    stored = fold_scores(storage_url(cfg), "mine")
    assert len(parents) == 1 and len(children) == len(study.trials) >= 4
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    for run, trial in zip(children, study.trials):
        assert run.folds == stored[trial_id(trial)] and run.folds
        assert run.data.params == {name: str(value) for name, value in trial.params.items()}
        assert run.data.metrics.get("score") == trial.value and run.data.tags["criteria_hpo.state"] == trial.state.name.lower()
    assert parents[0].data.metrics["best_score"] == study.best_value and parents[0].info.status == "FINISHED"
    assert (files / "report.html").is_file() and list((files / "plots").glob("*.html"))
    texts = [text for text in load_data(cfg).dev.post.unique() if len(text) > 20]
    assert len(texts) > 5 and not any(
        texts_in(path, texts) for path in (*files.rglob("*.*"), studies / "mlflow.db") if path.is_file()
    )
    assert not list((tmp_path / "mlruns").iterdir())

    capsys.readouterr()
    assert cli.main([*words, "command=mlflow"]) == 0
    assert f"0 of {len(study.trials)} trials sent to {uri}" in capsys.readouterr().out
    assert [len(found) for found in sent(uri)[:2]] == [1, len(study.trials)]
    tell("MLflow", "a search that is resumed once, sent three times", f"{len(children)} trials once each, {took:.0f} s in all")


def test_a_sending_that_was_killed_goes_on(small, tmp_path, monkeypatch):
    """Killed after a trial's numbers and before its end: it is sent again, and each number is there once."""
    study, url = small
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    from mlflow.tracking import MlflowClient

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", killed)
        with pytest.raises(Killed):
            send_study(study, url, uri, str(tmp_path / "files"), [])
    assert sent(uri)[1][0].info.status == "RUNNING"
    assert send_study(study, url, uri, None, []).changed == 2
    with sqlite3.connect(tmp_path / "mlflow.db") as db:
        rows = db.execute("select value from metrics where key = 'score' order by value").fetchall()
    assert np.allclose(rows, [[0.5], [0.6]]) and [run.info.status for run in sent(uri)[1]] == ["FINISHED", "FINISHED"]


def test_two_objectives_and_their_front(tmp_path):
    """Quality against seconds: `trial.value` and `study.best_trial` raise in such a study."""
    url, uri = f"sqlite:///{tmp_path / 'study.db'}", f"sqlite:///{tmp_path / 'mlflow.db'}"
    study = make_study(open_storage(url), "both", "f1", "seconds")
    Ledger(url, "both").engine.dispose()
    for values in ([0.5, 1.0], [0.6, 2.0], [0.4, 3.0]):
        study.add_trial(optuna.trial.create_trial(values=values, params={}, distributions={}))
    assert send_study(study, url, uri, str(tmp_path / "files"), []).changed == 3
    (parent,), children, _ = sent(uri)
    assert [run.data.metrics["seconds_per_1000_pairs"] for run in children] == [1.0, 2.0, 3.0]
    assert parent.data.metrics["best_score"] == 0.6 and parent.data.tags["criteria_hpo.best_trial"] == "1"
    assert parent.data.tags["criteria_hpo.pareto_front"] == "1 0"


def test_a_server_that_is_away_is_one_line_and_soon(small, monkeypatch, tell):
    """One that refuses, and one that takes the connection and never answers."""
    study, url = small
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, port in (("refuses", 9), ("is silent", silent.getsockname()[1])):
            began = time.monotonic()
            with pytest.raises(StudyError, match=f"tracking.uri=http://127.0.0.1:{port}: MLflow does not answer") as raised:
                send_study(study, url, f"http://127.0.0.1:{port}", None, [])
            took = time.monotonic() - began
            tell("MLflow", f"a server that {name}", str(raised.value))
            assert took < 30 and "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_search_ends_although_its_server_is_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("criteria_hpo.live.mlflow_beside.send_beside.__defaults__", (4.0,))
    words = ["preset=smoke", "model=tiny", "data.max_groups=20", f"studies_dir={tmp_path}", "n_trials=2", "tracking.mlflow=true"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"tracking.uri=http://127.0.0.1:{silent.getsockname()[1]}"
        assert cli.main([*words, uri]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("command=mlflow sends the rest") == 2 and "Report: " in captured.out
    assert len(stored_study(load_config(words)).trials) == 2


def test_a_password_is_not_shown(small):
    study, url = small
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with pytest.raises(StudyError) as raised:
        send_study(study, url, "http://ann:secret@127.0.0.1:9", None, [])
    assert "secret" not in str(raised.value) and "ann:***@" in str(raised.value)


def test_the_process_says_why(small, tmp_path):
    words = [f"studies_dir={tmp_path}", "hpo.study_name=small", f"hpo.storage={small[1]}"]
    assert "MLflow does not answer" in send_beside(load_config([*words, "tracking.uri=http://127.0.0.1:9"]), 60)
    assert send_beside(load_config(words), 60) == "" and len(sent(f"sqlite:///{tmp_path / 'mlflow.db'}")[1]) == 2
