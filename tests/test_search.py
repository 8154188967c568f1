"""What a search must withstand: changed spaces, joining workers, odd folders, read-only mounts, other orders of asking."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import optuna
import pytest
from harness import Invented, invented_setup

from criteria_hpo.cli import main
from criteria_hpo.config.load import load_config
from criteria_hpo.config.paths import storage_url
from criteria_hpo.execution import trial as objective_room
from criteria_hpo.execution.trial import Objective, slot_sampler
from criteria_hpo.pruning.pruner import FoldPruner
from criteria_hpo.results.report import best_table, study_summary
from criteria_hpo.search.search_space import parse_space, sample
from criteria_hpo.storage.database import open_storage
from criteria_hpo.storage.ledger import Ledger
from criteria_hpo.storage.ledger_tables import LedgerReader

SMALL = ["preset=smoke", "model=tiny", "data.max_groups=12", "data.n_folds=2"]
AUGMENT = ["augmentation.enable=true", "hpo.search_space.aug_enable.choices=[true,false]"]
ODD = '50%25 of? #1 it\'s "Grüße" {x} a@b:c&d'


@pytest.fixture(autouse=True)
def no_bar(monkeypatch):
    monkeypatch.setenv("CRITERIA_HPO_PROGRESS", "0")


def said(capfd, *words):
    """The exit code of a command, and what it printed."""
    code = main(list(words))
    out, err = capfd.readouterr()
    return code, out, err


@pytest.mark.parametrize("order", ["the other way round", "killed before it was bound"])
def test_the_defaults_are_slot_0_whoever_asks_first(tmp_path, monkeypatch, order):
    cfg = load_config([*SMALL, f"studies_dir={tmp_path}", "hpo.study_name=order"])
    url = storage_url(cfg)
    ledger = Ledger(url, "order")
    study = optuna.create_study(storage=open_storage(url), study_name="order", direction="maximize")
    monkeypatch.setattr(objective_room, "cross_validate", Invented(0.0, None, LedgerReader(url, "order")))
    space, pruner = parse_space(cfg.hpo.search_space), FoldPruner(cfg.hpo.pruner, cfg.steps_per_trial, cfg.seed)
    objective = Objective(cfg, study, ledger, invented_setup(cfg), space, pruner)
    first, second = ledger.claim(2), ledger.claim(2)
    if order == "killed before it was bound":
        with patch.object(Ledger, "bind", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            objective(first)
    for lease in (second, first):
        objective(lease)
    number = 1 + (order == "killed before it was bound")
    default = study.trials[number]
    assert (default.user_attrs["slot"] == 0 and study.trials[0].params != default.params) or number == 2
    assert best_table(study)["default"].replace("", None).dropna().to_dict() == default.params
    assert default.params["learning_rate"] == cfg.hpo.default_setting.learning_rate
    assert f"rial {number} (the defaults)" in study_summary(study)


def test_choices_that_changed_are_refused_at_once_and_the_old_study_goes_on(tmp_path, capfd):
    words = ["command=hpo", *SMALL, "hpo.pruner.type=none", f"studies_dir={tmp_path}", "hpo.study_name=choices"]
    assert said(capfd, *words, "n_trials=1")[0] == 0
    changed = ["n_trials=2", "hpo.search_space.batch_size.choices=[8,16,32]"]
    for more in ([], ["hpo.allow_changed=[hpo.search_space.batch_size.choices]"], ["hpo.allow_changed=true"]):
        code, _, err = said(capfd, *words, *changed, *more)
        assert code == 2 and "choices [16, 32], not choices [8, 16, 32]" in err and "allow_changed" not in err
        assert err.count("\n") == 1
    code, _, err = said(capfd, *words, "hpo.metric=average_precision", "hpo.allow_changed=true")
    assert code == 2 and "hpo.metric: f1 -> average_precision" in err and "allow_changed" not in err
    code, out, _ = said(capfd, *words, "n_trials=2")
    assert code == 0 and "2 finished trials: 2 complete" in out


def test_a_worker_keeps_to_the_number_of_its_study(tmp_path, capfd):
    words = [*SMALL, f"studies_dir={tmp_path}", "hpo.study_name=number"]
    assert said(capfd, "command=hpo", *words, "n_trials=2")[0] == 0
    code, out, err = said(capfd, "command=worker", *words, "n_trials=5")
    assert code == 0 and "2 of 2 done" in out and "n_trials=5 is ignored: study 'number' has 2" in err
    manifest = tmp_path / "number" / "manifest.json"
    assert json.loads(manifest.read_text())["config"]["n_trials"] == 2
    assert said(capfd, "command=hpo", *words, "n_trials=3")[0] == 0
    written = json.loads(manifest.read_text())
    assert written["config"]["n_trials"] == sum(written["trials"].values()) == 3


def test_a_study_in_any_folder_and_on_a_read_only_mount(tmp_path, capfd):
    """The folder's name has all that a URL gives a meaning; then the folder is mounted read-only, where `unshare` may do that."""
    studies = tmp_path / ODD
    words = [*SMALL, f"studies_dir={studies}", "hpo.study_name=odd", "n_trials=1"]
    assert said(capfd, "command=hpo", *words)[0] == 0
    assert (studies / "odd" / "study.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [ODD] and {p.name for p in studies.iterdir()} == {"odd"}
    assert "1 of 1 done" in said(capfd, "command=status", *words)[1]

    before = {path: path.read_bytes() for path in studies.rglob("*") if path.is_file()}
    for command, expected in (("status", "1 of 1 done"), ("report", "Plots were not drawn")):
        done = read_only(studies, f"command={command}", *words)
        assert done.returncode == 0 and expected in done.stdout and not done.stderr, done.stderr
    assert before == {path: path.read_bytes() for path in studies.rglob("*") if path.is_file()}


def read_only(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Runs a command where a folder is mounted read-only, for this command alone."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0"'
    within = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c"]
    options = {"capture_output": True, "text": True, "check": False, "env": os.environ | {"PYTHONWARNINGS": "ignore"}}
    if subprocess.run([*within, mount, str(folder)], **options).returncode:
        pytest.skip("no read-only mounts here")
    return subprocess.run(
        [*within, f'{mount} && exec "$@"', str(folder), sys.executable, "-m", "criteria_hpo.cli", *words], **options
    )


def aug_prob_of_slots(tops, crash, *words):
    """By slot, aug_prob or None: searched up to `tops[0]` in the first twenty of sixty slots, up to `tops[1]` in the others."""
    cfgs = [load_config([*AUGMENT, f"hpo.search_space.aug_prob.high={top}", *words]) for top in tops]
    spaces = [parse_space(cfg.hpo.search_space) for cfg in cfgs]
    study, drawn = optuna.create_study(directions=["maximize", "minimize"][: 1 + bool(words)]), {}
    for slot in sorted([*range(60), *crash]):
        late = slot >= 20
        study.sampler = slot_sampler(cfgs[late], slot, spaces[late])
        trial = study.ask()
        setting = sample(trial, spaces[late], cfgs[late].first_setting)
        if slot in crash and slot not in drawn:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            x = setting.aug_prob if setting.aug_enable else None
            score = 0.5 if x is None else 0.9 - abs(x - 0.3)
            study.tell(trial, [score, 1 - score][: len(study.directions)])
        drawn[slot] = setting.aug_prob if setting.aug_enable else None
    return drawn


@pytest.mark.parametrize("words", [(), ("objective.second=seconds", "hpo.pruner.type=none")])
def test_a_range_that_changes_within_a_study_is_searched_and_a_crash_changes_no_slot(words):
    """The best value, 0.3, lies beyond the first range, or beyond the second."""
    for tops in ((0.15, 0.5), (0.5, 0.15)):
        drawn = aug_prob_of_slots(tops, (), *words)
        late = [x for slot, x in drawn.items() if slot >= 20 and x is not None]
        print(f"up to {tops[0]}, then {tops[1]}: {len(late)} augment, {sum(x > 0.15 for x in late)} beyond 0.15")
        assert max(late) <= tops[1] and len(late) > 15
        assert tops[1] < 0.5 or sum(x > 0.15 for x in late) > 0.6 * len(late)
        assert aug_prob_of_slots(tops, (3, 20, 41), *words) == drawn
