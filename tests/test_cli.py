"""The command line as a user has it: every command in a process of its own, how it ends, and the lines that make composes."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import optuna
import pandas as pd
import pytest
from harness import nursery

from criteria_hpo import cli
from criteria_hpo.config.load import load_config
from criteria_hpo.config.parameters import config_from_parameters
from criteria_hpo.core.formatting import format_value
from criteria_hpo.inputs.corpora import load_corpus
from criteria_hpo.model.encoders import load_tokenizer
from criteria_hpo.model.families import tiny_encoder
from criteria_hpo.serving.predictor import Predictor
from criteria_hpo.storage.ledger import Ledger

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["preset=smoke", "model=tiny", "data.max_groups=12", "data.n_folds=2", "training.num_epochs=2"]
STUDY = [*SMALL, "n_trials=2", "hpo.study_name=small", "hpo.metric=average_precision"]  # f1 would be 0 throughout


def start(words: list[str], folder: Path) -> subprocess.Popen:
    """The command in a process that can be interrupted, even where the tests themselves run in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "criteria_hpo.cli", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CRITERIA_HPO_STUDIES": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(words: list[str], folder: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    process = start(words, folder)
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def forked(words: list[str], folder: Path) -> tuple[int, str, str]:
    """As `run`, in a process that is forked from one that has imported everything: that saves the imports of each command."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it, before anything is imported
    env = os.environ | {"CRITERIA_HPO_STUDIES": str(folder)}
    written = [folder / f"forked.{name}" for name in ("out", "err")]
    process = nursery().Process(target=command, args=(words, folder, dict(env), written))
    process.start()
    process.join(900)
    out, err = (path.read_text(encoding="utf-8") for path in written)
    for path in written:
        path.unlink()
    return process.exitcode, out, err


def command(words: list[str], folder: Path, env: dict[str, str], written: list[Path]) -> None:
    """The command in this process, with files as stdout and stderr."""
    for number, path in enumerate(written, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.exit(cli.main(words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the studies of these tests stand."""
    return tmp_path_factory.mktemp("with a space")


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, str]:
    """What the commands printed on one study: stopped after its first fold, taken up by a worker, ended, looked at."""
    process, log = start(["command=hpo", *STUDY], folder), folder / "small" / "study.log"
    deadline = time.monotonic() + 600
    while not (log.is_file() and "Trial 0 fold 1" in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    shown = {"stopped": err, "before": forked(["command=status", "hpo.study_name=small"], folder)[1]}
    for name in ("worker", "hpo", "evaluate", "status", "report"):
        code, shown[name], err = forked([f"command={name}", *STUDY], folder)
        assert code == 0, err
    return shown


def test_stopped_it_says_so_in_one_line_and_keeps_what_is_finished(said: dict[str, str]) -> None:
    assert (
        said["stopped"].splitlines()[-1] == "criteria_hpo: stopped; finished folds are kept, run the same command again to resume"
    )
    assert (
        "Traceback" not in said["stopped"] and "1 interrupted trial will go on when the study does, 0 of 2 done" in said["before"]
    )


def test_worker_goes_on_and_nothing_is_trained_twice(said: dict[str, str], folder: Path) -> None:
    log = (folder / "small" / "study.log").read_text()
    assert "Resuming trial 0" in log and log.count("Trial 0 fold 1") == 1
    assert "This worker has ended. Study: 2 of 2 done" in said["worker"]
    assert [s.outcome for s in Ledger(f"sqlite:///{folder}/small/study.db", "small").slots()].count(None) == 0


def test_hpo_and_report_tell_the_same(said: dict[str, str], folder: Path) -> None:
    assert "2 finished trials" in said["hpo"] and "Best setting" in said["hpo"] and f"Results: {folder}/small" in said["hpo"]
    assert said["report"].startswith(said["hpo"].partition("\n\nThe test posts")[0])
    assert "not opened yet. No result is stored; run command=evaluate" in said["hpo"]
    assert said["evaluate"].partition("\n\nTables")[0] in said["report"] and "TF-IDF with shared words" in said["report"]
    assert "The test posts were opened once, for " in said["report"]
    assert (folder / "small" / "manifest.json").is_file()
    assert said["status"].startswith("2 of 2 done, best ")


def test_the_test_posts_are_opened_once_and_shown_again_without_the_data(said: dict[str, str], folder: Path) -> None:
    shutil.rmtree(folder / "small" / "model")  # it is written again, from the refits that are there
    code, again, err = forked(["command=evaluate", *STUDY], folder)
    assert code == 0 and again == said["evaluate"] and "opened again" not in err, err
    gone = ["command=report", "hpo.study_name=small", "data=pairs", "data.path=gone.csv"]
    assert forked(gone, folder)[1] == said["report"]
    looks = json.loads((folder / "small" / "manifest.json").read_text())["test_looks"]
    assert len(looks) == 1 and f"for trial {looks[0]['trial']}." in again
    assert len(list((folder / "small" / "refits").glob("*/seed1/model.safetensors"))) in (1, 2)  # of the winner, and the default


def test_the_model_answers_as_its_refit_did(said: dict[str, str], folder: Path) -> None:
    """The model that evaluate names gives the test posts the probabilities that were scored."""
    model = folder / "small" / "model"
    assert f"command=predict model={shlex.quote(str(model))} input=" in said["evaluate"]
    stored = json.loads((folder / "small" / "evaluation.json").read_text())
    known = pd.DataFrame(stored["pairs"]).assign(scored=stored["models"]["winner"]["probs"][0])
    posts = load_corpus("demo")[["post_id", "post"]].drop_duplicates()
    found = Predictor(model, "cpu").predict(posts[posts.post_id.isin(known.post_id)])
    both = known.merge(found, on=["post_id", "criterion_id"])
    assert len(both) == len(known) and (both.probability - both.scored).abs().max() < 1e-6


def test_evaluate_writes_what_a_paper_needs_without_a_text_of_a_post(said: dict[str, str], folder: Path) -> None:
    paper = folder / "small" / "paper"
    assert f"For a paper: {paper} (" in said["evaluate"]
    for path in (
        "methods.tex",
        "checklist.md",
        "preview.tex",
        "tables/four_scores.tex",
        "tables/data.csv",
        "figures/reliability.pdf",
    ):
        assert (paper / path).is_file(), path
    whole = "\n".join(path.read_text() for path in paper.rglob("*") if path.suffix in {".md", ".tex", ".csv", ".svg"})
    sentences = [part.strip() for post in load_corpus("demo").post.unique() for part in post.split(".")]
    assert not [part for part in sentences if len(part) > 20 and part in whole]
    assert "Each of 2 trials was scored by its mean " in whole


def test_the_best_setting_can_be_pasted(said: dict[str, str], folder: Path) -> None:
    (line,) = [line for line in said["report"].splitlines() if line.startswith("hpo.default_setting.")]
    code, out, err = forked(["command=train", *STUDY, *shlex.split(line)], folder)
    assert code == 0, err
    best = json.loads((folder / "small" / "manifest.json").read_text())["best"]["params"]
    trained = json.loads((folder / "small" / "train.json").read_text())["key"]["hpo"]["default_setting"]
    assert {name: trained[name] for name in best} == best and "learning_rate" in best
    assert f"Setting: learning_rate={format_value(best['learning_rate'])}, batch_size={best['batch_size']}" in out


def test_report_draws_the_plots_of_the_stored_study(said: dict[str, str], folder: Path) -> None:
    drawn = {path.name for path in (folder / "small" / "plots").iterdir()}
    assert {"history.png", "history.html", "timeline.png", "plotly.min.js"} <= drawn
    assert str(folder / "small" / "plots") in said["report"]


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Path:
    """The demo's pairs in a user's file: without groups, under a name that shells and make dislike."""
    path = folder / "my $x (1).csv"
    load_corpus("demo").drop(columns=["group_id", "evidence"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def trained(folder: Path, pairs: Path) -> tuple[str, str]:
    """stdout and stderr of one setting, trained on the user's file."""
    own = ["data=pairs", f"data.path={pairs}", "hpo.default_setting.learning_rate=1e-3", "hpo.study_name=one"]
    code, out, err = forked(["command=train", *SMALL, *own], folder)
    assert code == 0, err
    return out, err


def test_train_prints_and_keeps_the_folds(trained: tuple[str, str], folder: Path) -> None:
    out, err = trained
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()}
    assert rows["score"] == ["precision", "recall", "f1", "average_precision", "mcc", "epochs", "best_epoch", "seconds"]
    assert {"1", "2", "mean", "std"} <= rows.keys() and "fold 2/2" in err and "100%" in err
    kept = json.loads((folder / "one" / "train.json").read_text())
    assert [fold["fold"] for fold in kept["folds"]] == [1, 2] and f"{kept['mean']:.4f}" == rows["mean"][0]
    assert kept["key"]["hpo"]["default_setting"]["learning_rate"] == 1e-3
    assert not (folder / "one" / "study.db").exists(), "one setting is no study"


def test_remarks_on_the_data_stand_in_the_log(trained: tuple[str, str], folder: Path) -> None:
    remark = "no column group_id, so each post is its own group"
    assert remark in trained[1] and remark in (folder / "one" / "study.log").read_text()


def test_check_data(folder: Path, pairs: Path) -> None:
    code, out, err = forked(["command=check_data", *SMALL, "data=pairs", f"data.path={pairs}"], folder)
    assert code == 0 and "no column group_id" in err
    assert {"total", "cut_tokens", "inner_groups"} <= set(out.split())
    assert len(re.findall(r"^sha256 of the (?:data|split|folds): [0-9a-f]{64}$", out, re.MULTILINE)) == 3
    assert not (folder / "study").exists(), "only looked at"


def test_probe(folder: Path) -> None:
    code, out, _ = forked(["command=probe", *SMALL], folder)
    assert code == 0 and re.search(r"Physical batch sizes: training \d+, evaluation \d+ \(", out)
    assert "Memory of training" in out if "GPU 0" in out else "the CPU (no GPU found)" in out and "not probed" in out


def test_no_post_text_in_anything_printed_or_kept(said: dict[str, str], trained: tuple[str, str], folder: Path) -> None:
    posts = load_corpus("demo").post.unique()
    sentences = {s.strip() for post in posts for s in re.split(r"(?<=[.!?])\s", post) if len(s) > 30}
    kept = [path.read_bytes().decode(errors="ignore") for path in folder.glob("*/*") if path.is_file()]
    assert len(sentences) > 300 and len(kept) >= 5
    assert not [s for s in sentences for text in [*said.values(), *trained, *kept] if s in text]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["command=chek_data"], "did you mean 'check_data'"),
        (["command=status", "hpo.study_name=smal"], "hpo.study_name=smal: no study database"),
        (["command=report", "hpo.study_name=nowhere"], "hpo.study_name=nowhere: no study database"),
        (["command=check_data", "data=pairs", "data.path=absent.csv"], "absent.csv"),
        (["overrides=seed='1"], "close the quote"),
    ],
)
def test_mistake_is_one_line(words: list[str], line: str, folder: Path) -> None:
    code, out, err = run(words, folder)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("criteria_hpo: ") and line in err


@pytest.mark.parametrize("command", ["train", "worker", "probe", "check_data", "hpo"])
def test_every_command_refuses_a_wrong_setting(command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = "data.path=x.csv" if command == "check_data" else "hpo.search_space.learning_rate.low=1"
    assert cli.main([f"command={command}", *SMALL, wrong, f"studies_dir={tmp_path}"]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1) and wrong.partition("=")[0].removesuffix(".low") in err
    assert not list(tmp_path.iterdir())


def test_help(folder: Path) -> None:
    code, out, err = run(["command=report", "--help"], folder)
    assert (code, err) == (0, "") and out == run(["--help"], folder)[1]
    assert all(re.search(rf"^  {name} +\w", out, re.MULTILINE) for name in cli.COMMANDS)
    choices = {f"{path.parent.name}={path.stem}" for path in (ROOT / "criteria_hpo" / "configs").glob("*/*.yaml")}
    assert {c for c in choices if c.partition("=")[0] in cli.GROUPS} <= set(out.split())
    examples = [line for line in out.splitlines() if line.startswith("  criteria-hpo command=")]
    assert len(examples) >= 5
    for line in examples:
        words = [word.replace("ID_OR_FOLDER", "some/id") for word in shlex.split(line)[1:]]
        assert cli.load_config(words).command in cli.COMMANDS


def test_console_script() -> None:
    (script,) = entry_points(group="console_scripts", name="criteria-hpo")
    assert script.load() is cli.main


# make


def make(*words: str, **env: str) -> subprocess.CompletedProcess:
    """`make` with these words, nothing else of ours in its environment."""
    return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | env)


def composed(*words: str, **env: str) -> str:
    """The last line that make would run."""
    done = make("-n", *words, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", "").splitlines()[-1]


TARGETS = re.findall(r"^([a-z][\w-]*):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("target", TARGETS)
def test_make_target_can_be_shown(target: str) -> None:
    done = make("-n", target, *["STUDY=x"] * (target in ("hpo", "hpo_status")))
    assert done.returncode == 0 and done.stdout.strip() and "\nmake: " not in done.stderr


DEBERTA = {
    "hpo_deberta_base_aug": "command=hpo n_trials=2000 model=deberta_nli model.model_name=microsoft/deberta-v3-base "
    "experiment_name=deberta_v3_base_aug hpo.study_name=pc_ce_debv3_base_aug augmentation.enable=true "
    "hpo.search_space.aug_enable.choices=[true] training.num_epochs=100 training.early_stopping_patience=20",
    "hpo_deberta_base_noaug": "command=hpo n_trials=2000 model=deberta_nli model.model_name=microsoft/deberta-v3-base "
    "experiment_name=deberta_v3_base_noaug hpo.study_name=pc_ce_debv3_base_noaug augmentation.enable=false "
    "hpo.search_space.aug_enable.choices=[false] training.num_epochs=100 training.early_stopping_patience=20",
    "hpo_deberta_nli_aug": "command=hpo n_trials=2000 model=deberta_nli "
    "experiment_name=deberta_v3_nli_aug hpo.study_name=pc_ce_debv3_nli_aug augmentation.enable=true "
    "hpo.search_space.aug_enable.choices=[true] training.num_epochs=100 training.early_stopping_patience=20",
    "hpo_deberta_nli_noaug": "command=hpo n_trials=2000 model=deberta_nli "
    "experiment_name=deberta_v3_nli_noaug hpo.study_name=pc_ce_debv3_nli_noaug augmentation.enable=false "
    "hpo.search_space.aug_enable.choices=[false] training.num_epochs=100 training.early_stopping_patience=20",
}


@pytest.mark.parametrize("target", DEBERTA)
def test_make_composes_the_promised_line_word_for_word(target: str) -> None:
    assert composed(target, "N_TRIALS=2000").endswith(f"python -m criteria_hpo.cli {DEBERTA[target]}")
    assert composed(target) == composed(target, "N_TRIALS=2000")
    assert " n_trials=7 " in composed(target, "N_TRIALS=7")
    cfg = cli.load_config(shlex.split(DEBERTA[target]))
    assert cfg.hpo.search_space["aug_enable"]["choices"] == [cfg.augmentation.enable] == [target.endswith("_aug")]


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a DeBERTa-v3 of random weights and two layers: the plain encoder, and one with three NLI labels."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), load_tokenizer(load_config(["model=tiny"]).model.model_name, 512)
    v3 = {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_buckets": 16, "max_position_embeddings": 512}
    labels = {"id2label": dict(enumerate(("entailment", "neutral", "contradiction")))}
    for name, heads in (("base", {}), ("nli", {"num_labels": 3} | labels)):
        model = tiny_encoder("deberta-v2", **v3 | heads, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in ("base", "nli")}


SMOKE = ["preset=smoke", "data.max_groups=12", "data.n_folds=2", "training.num_epochs=1", "model.max_length=64", "n_trials=2"]
PROMISED = {
    "base": DEBERTA["hpo_deberta_base_noaug"],
    "nli": DEBERTA["hpo_deberta_nli_noaug"],
    "smoke": "command=hpo n_trials=10 hpo=optuna model=deberta_nli model.model_name=microsoft/deberta-v3-base "
    "experiment_name=smoke_test hpo.study_name=smoke_test training.num_epochs=2 training.early_stopping_patience=1",
    "one": "command=hpo n_trials=1 hpo.search_space.learning_rate.low=1e-6 hpo.search_space.learning_rate.high=1e-6 "
    "hpo.search_space.classifier_dropout.low=0.5 hpo.search_space.classifier_dropout.high=0.5 "
    "hpo.search_space.focal_gamma.choices=[3.0]",
}


@pytest.mark.parametrize("line", PROMISED)
def test_a_promised_line_runs_on_a_model_in_a_folder(
    line: str,
    miniatures: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CRITERIA_HPO_STUDIES", str(tmp_path))
    monkeypatch.setenv("CRITERIA_HPO_PROGRESS", "0")
    words = [*shlex.split(PROMISED[line]), *SMOKE]
    if line == "one":  # its space is as narrow as promised, where the preset would widen it again
        words = [*SMOKE, *shlex.split(PROMISED[line])]
    model = miniatures["nli" if line == "nli" else "base"]
    assert cli.main([*words, "model.keep_layers=null", f"model.model_name={model}"]) == 0
    said, cfg = capfd.readouterr(), load_config(words)
    (database,) = tmp_path.glob("*/study.db")
    study = optuna.load_study(study_name=cfg.hpo.study_name, storage=f"sqlite:///{database}")
    done = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    assert len(done) == cfg.n_trials == (1 if line == "one" else 2) and all(0 <= trial.value <= 1 for trial in done)
    assert study.user_attrs["identity"]["model"]["model_name"] == str(model)
    loaded = int(line == "nli")  # once: the refit that the test posts are scored with takes the search's model
    assert said.err.count("its head has 3 labels and is replaced by a new head with one logit") == loaded, said.err
    if line == "one":
        assert {name: done[0].params[name] for name in ("learning_rate", "classifier_dropout", "focal_gamma")} == {
            "learning_rate": 1e-6,
            "classifier_dropout": 0.5,
            "focal_gamma": 3.0,
        }
        assert "slot 0 differs from it: learning_rate=" in said.err
        assert any(change.startswith("learning_rate=") for change in study.user_attrs["default_changes"])


@pytest.mark.parametrize("command", ["train", "probe"])
def test_a_replaced_nli_head_is_told_on_the_terminal(
    command: str, miniatures: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [f"command={command}", "model=deberta_nli", f"model.model_name={miniatures['nli']}", f"studies_dir={tmp_path}"]
    assert cli.main([*words, *SMOKE]) == 0
    assert capfd.readouterr().err.count("its head has 3 labels and is replaced by a new head with one logit") == 1


def test_the_bare_name_shows_the_help_and_starts_nothing(tmp_path: Path) -> None:
    code, out, err = run([], tmp_path)
    assert code == 2 and "usage: criteria-hpo command=COMMAND" in out and err == "" and not list(tmp_path.iterdir())


NASTY = ["/a b/it's $x $(HOME) (1)", "`ls`", 'say "no"', "$$", "a\\b", "x;y&z|w>v<u*?[0]{1}~#!%"]


@pytest.mark.parametrize("value", NASTY)
def test_make_passes_values_on_as_they_were_typed(value: str, tmp_path: Path) -> None:
    line = composed("hpo_deberta_base_noaug", f"MODEL_NAME={value}", f"OVERRIDES=seed=1 data.path={shlex.quote(value)}")
    shell = f"set -f; printf '%s\\n' {line.partition('criteria_hpo.cli ')[2]}"
    words = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout.splitlines()
    assert f"model.model_name={value}" in words
    assert cli.split_words(words)[-2:] == ["seed=1", f"data.path={value}"]
    (tmp_path / "show.mk").write_text('show:\n\t@printf %s "$$DATA_PATH"\n')
    shown = make("--no-print-directory", "-f", "Makefile", "-f", str(tmp_path / "show.mk"), "show", f"DATA_PATH={value}")
    assert shown.stdout == value, shown.stderr


def test_make_takes_nothing_from_the_environment() -> None:
    plain = composed("hpo_deberta_base_noaug")
    assert composed("hpo_deberta_base_noaug", MODEL_NAME="other", N_TRIALS="3", OVERRIDES="seed=1") == plain


@pytest.mark.parametrize(("aug", "study"), [("", "demo"), ("0", "demo"), ("1", "demo_aug"), ("yes", None)])
def test_make_demo_augments_on_demand(aug: str, study: str | None) -> None:
    shell = composed("demo", f"AUG={aug}", "PY=echo")
    env = os.environ | {"AUG": aug}
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False, env=env)
    assert composed("demo", AUG="1") == composed("demo"), "the environment decides nothing"
    if study is None:
        assert done.returncode == 2 and done.stderr.startswith("AUG=yes is not supported: set AUG=1")
    else:
        search = f"-m criteria_hpo.notebooks --study {study} --params studies/params/{study}.yaml"
        assert done.stdout == f"{search}\n{search} --template studies/evaluate.ipynb\n"
        assert (ROOT / "studies" / "params" / f"{study}.yaml").exists()
        more = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True, env=env | {"N_TRIALS": "20"})
        assert more.stdout == done.stdout.replace(".yaml", ".yaml n_trials=20")


def test_make_result_searches_and_evaluates() -> None:
    """The two notebooks get the same arguments, and a failed search is not evaluated."""
    env = os.environ | {"STUDY": "my own", "PARAMS": "studies/params/privacy.yaml", "DATA_PATH": "a b.csv"}
    shell = composed("result", "STUDY=x", "PY=echo")
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False, env=env)
    search = "-m criteria_hpo.notebooks --study my own --params studies/params/privacy.yaml data_path=a b.csv"
    assert done.stdout == f"{search}\n{search} --template studies/evaluate.ipynb\n"
    failed = subprocess.run(["sh", "-c", composed("result", "STUDY=x", "PY=false")], check=False, env=env)
    assert failed.returncode == 1


def test_make_compare_takes_names_and_settings() -> None:
    shell = composed("compare", "STUDIES=x", "PY=echo")
    env = os.environ | {"STUDIES": "first a/second", "OVERRIDES": "output='my folder'"}
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False, env=env)
    assert done.stdout == "-m criteria_hpo.notebooks --studies first a/second overrides=output='my folder'\n"
    missing = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False, env=env | {"STUDIES": ""})
    assert (missing.returncode, missing.stdout, missing.stderr.count("\n")) == (2, "", 1)
    assert 'make compare STUDIES="first second"' in missing.stderr


REJECTED = {
    "hpo STUDY=x N_TRIAL=3": "make hpo does not accept N_TRIAL (did you mean N_TRIALS?); it accepts STUDY DATA",
    "hpo STUDY=x n_trials=3": "make hpo does not accept n_trials (did you mean N_TRIALS?)",
    "hpo STUDY=x DATAPATH=x.csv": "(did you mean DATA_PATH?)",
    "hpo STUDY=x SEED=3": "does not accept SEED; it accepts STUDY DATA DATA_PATH MODEL N_TRIALS PRESET OVERRIDES PARAMS, and",
    "hpo STUDY=x seed=3": 'and other settings as OVERRIDES="setting=value"',
    "hpo STUDY=x MODEL_NAME=some/id": "(did you mean MODEL?)",
    "hpo_deberta_nli_aug MODEL=some/id": "(did you mean MODEL_NAME?); it accepts N_TRIALS MODEL_NAME OVERRIDES, and",
    "hpo_status STUDYS=x": "make hpo_status does not accept STUDYS (did you mean STUDY?); it accepts STUDY.",
    "compare STUDIE=x": "make compare does not accept STUDIE (did you mean STUDIES?); it accepts STUDIES OVERRIDES, and",
    "compare STUDIES=x N_TRIALS=3": "make compare does not accept N_TRIALS",
    "demo N_TRIAL=3": "make demo does not accept N_TRIAL (did you mean N_TRIALS?); it accepts AUG N_TRIALS.",
    "lab AUG=1": "make lab does not accept AUG; it accepts ROOT IP PORT.",
    "test STUDY=x": "make test does not accept STUDY; it accepts only PYTHON and TORCH_INDEX.",
    "N_TRIALS=3": "make help does not accept N_TRIALS",
    "hpo STUDY=x it's=3": "make hpo does not accept it's; it accepts",
}


@pytest.mark.parametrize("words", REJECTED)
def test_make_rejects_variables_that_it_would_ignore(words: str) -> None:
    done = make(*words.split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and REJECTED[words] in done.stderr


def test_make_takes_no_offence_at_the_environment() -> None:
    assert make("-n", "hpo", "STUDY=x", N_TRIAL="3", AUG="1").returncode == 0
    assert make("-n", "hpo", "STUDY=x", "PYTHON=python3", "TORCH_INDEX=https://x").returncode == 0


def lab(*words: str, root: bool, folder: Path) -> subprocess.CompletedProcess:
    """What make lab would do as root, or as another user: the words that JupyterLab would get."""
    (folder / "id").write_text(f"#!/bin/sh\necho {0 if root else 1000}\n")
    (folder / "id").chmod(0o755)
    shell = composed("lab", *words, "PY=echo")
    given = dict(word.split("=") for word in words)
    env = {"PATH": f"{folder}:{os.environ['PATH']}"} | given
    return subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False, env=env)


def test_make_lab_starts_as_root_when_asked_to(tmp_path: Path) -> None:
    plain = "-m jupyterlab --ServerApp.root_dir=. studies/hpo.ipynb\n"
    assert lab(root=False, folder=tmp_path).stdout == plain
    refused = lab(root=True, folder=tmp_path)
    assert refused.returncode == 2 and "make lab ROOT=1" in refused.stderr and refused.stderr.count("\n") == 1
    asked = lab("ROOT=1", "IP=0.0.0.0", "PORT=9999", root=True, folder=tmp_path)
    assert asked.stdout == plain.replace(" studies", " --allow-root --no-browser --ip=0.0.0.0 --port=9999 studies")
    assert lab("ROOT=yes", root=True, folder=tmp_path).returncode == 2


MODELS = {
    "roberta-base": "roberta-base",
    "microsoft/deberta-v3-base": "microsoft/deberta-v3-base",
    "/m/my bert (1)": "/m/my bert (1)",
}


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_named_in_the_same_way_at_every_door(model: str) -> None:
    assert load_config([f"model={model}"]).model.model_name == MODELS[model]
    assert config_from_parameters("s", "smoke", "demo", "", model, 1, 1, "").model.model_name == MODELS[model]
    shell = composed("hpo", "STUDY=x", "PY=printf '%s\\n'", f"MODEL={model}")
    env = os.environ | {"STUDY": "x", "MODEL": model, "PARAMS": "p"}
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True, env=env)
    assert f"model={model}" in done.stdout.splitlines()


@pytest.mark.parametrize("word", ["model=minlm", "model=deberta-nli", "model=zebra", "hpo.sampler=random", "data=my.csv"])
def test_a_word_that_is_no_choice_names_the_way(word: str, capfd: pytest.CaptureFixture[str]) -> None:
    way = {"hpo.sampler=random": "write hpo.sampler.type=random", "data=my.csv": "data=pairs data.path=my.csv"}
    assert cli.main(["command=check_data", word]) == 2
    assert way.get(word, f"model=hub model.model_name={word.removeprefix('model=')}") in capfd.readouterr().err


def test_a_hub_out_of_reach_is_one_line_soon(tmp_path: Path) -> None:
    env = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "criteria_hpo.cli", "command=probe", "model=roberta-base"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env, timeout=100)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (
        "model.model_name=roberta-base: the hub http://127.0.0.1:9 cannot be reached" in done.stderr and "HF_HOME" in done.stderr
    )


# git


def test_data_of_a_user_never_lands_in_git_by_accident() -> None:
    own = ["my.csv", "My Data.CSV", "pairs.jsonl.gz", "posts.tsv", "notes/x.parquet", "criteria.json", "data/anything", "x.xlsx"]
    own += ["models/m/config.json", "studies/mine/hpo.ipynb", "studies/my.csv", "export.zip", "m/model.safetensors"]
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "rev-parse"], capture_output=True, check=False).returncode:
        pytest.skip("not in a checkout")
    ignored = subprocess.run([*git, "check-ignore", "--no-index", *own], capture_output=True, text=True, check=True).stdout
    assert ignored.splitlines() == own
    shipped = subprocess.run([*git, "ls-files", "-ci", "--exclude-standard"], capture_output=True, text=True, check=True).stdout
    assert shipped == "", "what the repository ships is not ignored"
