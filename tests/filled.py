"""A study of as many finished trials as are asked for, and what a trial after them costs, by part."""

import datetime
import json
import random
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from unittest import mock

import optuna
import sqlalchemy as sa
from harness import invented_study
from optuna.distributions import distribution_to_json

from criteria_hpo.config.load import load_config
from criteria_hpo.pruning.pruner import FoldPruner
from criteria_hpo.search import optuna_access
from criteria_hpo.search.optuna_access import optuna_tables
from criteria_hpo.search.optuna_samplers import ColumnTpeSampler
from criteria_hpo.search.search_space import parse_space
from criteria_hpo.storage.database import open_storage
from criteria_hpo.storage.engine import make_engine
from criteria_hpo.storage.ledger import Ledger
from criteria_hpo.storage.ledger_tables import FOLDS, SLOTS

COMMON = ["preset=smoke", "model=tiny", "hpo.pruner.startup_trials=5", "hpo.sampler.n_startup_trials=5"]


def add_at_once(study, url, trials):
    """What `study.add_trials` writes, by one statement a table: it takes 25 ms of the processor a trial otherwise."""
    of, at, finite = optuna_tables().tables, datetime.datetime(2026, 1, 1), "FINITE"
    with make_engine(url).begin() as db:
        number = db.scalar(sa.select(of["studies"].c.study_id).where(of["studies"].c.study_name == study.study_name))
        times = {"datetime_start": at, "datetime_complete": at}
        heads = [{"study_id": number, "number": k, "state": t.state, **times} for k, t in enumerate(trials)]
        db.execute(of["trials"].insert(), heads)
        ids = list(db.scalars(sa.select(of["trials"].c.trial_id).where(of["trials"].c.study_id == number).order_by("number")))
        rows = {name: [] for name in ("trial_params", "trial_values", "trial_user_attributes", "trial_intermediate_values")}
        for key, t in zip(ids, trials, strict=True):
            for name, d in t.distributions.items():
                stored = {"param_value": d.to_internal_repr(t.params[name]), "distribution_json": distribution_to_json(d)}
                rows["trial_params"].append({"trial_id": key, "param_name": name, **stored})
            rows["trial_values"].append({"trial_id": key, "objective": 0, "value": t.value, "value_type": finite})
            for name, value in t.user_attrs.items():
                rows["trial_user_attributes"].append({"trial_id": key, "key": name, "value_json": json.dumps(value)})
            for step, value in t.intermediate_values.items():
                report = {"step": step, "intermediate_value": value, "intermediate_value_type": finite}
                rows["trial_intermediate_values"].append({"trial_id": key, **report})
        for name, many in rows.items():
            db.execute(of[name].insert(), many)


def filled_study(url, name, n_trials, seed=0):
    """A study of finished trials, and the ledger's slots and folds of them, written at once."""
    study = optuna.create_study(storage=open_storage(url), study_name=name, direction="maximize")
    space = {d.name: d.distribution for d in parse_space(load_config(COMMON).hpo.search_space) if not d.condition}
    sampler, rng = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)), random.Random(seed)
    trials = []
    for number in range(n_trials):
        score, folds = rng.random(), range(1, 6)
        trials.append(
            optuna.trial.create_trial(
                params=sampler.ask(space).params,
                distributions=space,
                value=score,
                intermediate_values=dict.fromkeys(folds, score),
                user_attrs={"slot": number, "fold_scores": [score] * 5},
            )
        )
    add_at_once(study, url, trials)
    slots = [
        {"slot": t.number, "trial_id": t._trial_id, "attempts": 1, "pace": 0.1, "outcome": "COMPLETE", "value": t.value}
        for t in study.get_trials(deepcopy=False)
    ]
    details = json.dumps({"metrics": {}, "epochs": 1, "best_epoch": 1, "seconds": 0.0, "physical_batch_size": 16, "seed": 0})
    folds = [
        {"slot": slot["slot"], "fold": fold, "score": slot["value"], "details": details, "decision": ""}
        for slot in slots
        for fold in range(1, 6)
    ]
    with Ledger(url, name).engine.begin() as db:
        for table, rows in ((SLOTS, slots), (FOLDS, folds)):
            db.execute(table.insert(), [{"study": name, **row} for row in rows])


@dataclass
class Costs:
    """CPU milliseconds of a trial without training, and of them those of each part; statements and rows read of a trial."""

    whole: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    statements: float = 0.0
    read: float = 0.0

    def line(self) -> str:
        parts = ", ".join(f"{name} {ms:.0f}" for name, ms in self.parts.items())
        return f"{self.whole:.0f} CPU ms ({parts}); {self.statements:.0f} statements, {self.read:.1f} trials read"


@dataclass
class Meter:
    """Counts what this process does while it runs trials; a part's time does not include the time of a part inside it."""

    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("TPE", "reading trials", "pruner"), 0.0))
    inside: list[str] = field(default_factory=list)
    since: float = 0.0
    statements: int = 0
    read: int = 0
    ends: list[tuple] = field(default_factory=list)

    def clock(self) -> None:
        now = time.process_time()
        if self.inside:
            self.parts[self.inside[-1]] += now - self.since
        self.since = now

    def timed(self, name, call):
        def measured(*args, **kwargs):
            self.clock()
            self.inside.append(name)
            try:
                answer = call(*args, **kwargs)
            finally:
                self.clock()
                self.inside.pop()
            if name == "reading trials":
                self.read += len(answer)
            return answer

        return measured

    def note(self) -> None:
        self.ends.append((time.process_time(), dict(self.parts), self.statements, self.read))


def metered_study(words: list[str]) -> Costs:
    """The study's trials but the first two, in which this process reads all trials."""
    meter, finish = Meter(), Ledger.finish

    def count(*_):
        meter.statements += 1

    def finish_and_note(ledger, *args):
        finish(ledger, *args)
        meter.note()

    with ExitStack() as stack:
        for owner, name, part in (
            (ColumnTpeSampler, "infer_relative_search_space", "TPE"),
            (ColumnTpeSampler, "sample_relative", "TPE"),
            (ColumnTpeSampler, "sample_independent", "TPE"),
            (FoldPruner, "reason", "pruner"),
            (optuna_access, "read_trials", "reading trials"),
        ):
            stack.enter_context(mock.patch.object(owner, name, meter.timed(part, getattr(owner, name))))
        stack.enter_context(mock.patch.object(Ledger, "finish", finish_and_note))
        sa.event.listen(sa.Engine, "before_cursor_execute", count)
        stack.callback(sa.event.remove, sa.Engine, "before_cursor_execute", count)
        invented_study(words, 0.0)
    (began, before, said, had), (ended, after, asked, have), n = meter.ends[1], meter.ends[-1], len(meter.ends) - 2
    parts = {name: 1000 * (after[name] - before[name]) / n for name in after}
    whole = 1000 * (ended - began) / n
    return Costs(whole, parts | {"the rest": whole - sum(parts.values())}, (asked - said) / n, (have - had) / n)


def cost_of_a_trial(url, setting, name, n_before, folder, n_trials=10) -> Costs:
    """What a trial without training costs after `n_before` others."""
    filled_study(url, name, n_before)
    return metered_study([*COMMON, setting, f"hpo.study_name={name}", f"studies_dir={folder}", f"n_trials={n_before + n_trials}"])
