"""What a trial costs besides its training does not grow with the trials before it, and stored studies keep their numbers."""

from functools import partial

import optuna
import pytest
from filled import COMMON, cost_of_a_trial, filled_study
from harness import invented_study, trials_by_slot

from criteria_hpo.search import samplers


def test_a_trial_reads_as_much_after_many_trials_as_after_few(tmp_path, tell):
    """Statements of a trial, and trials that it reads from the database: counts, since times depend on the machine."""
    costs = {}
    for n_before in (40, 400):
        url = f"sqlite:///{tmp_path}/{n_before}.db"
        costs[n_before] = cost_of_a_trial(url, f"hpo.storage={url}", "cost", n_before, tmp_path, n_trials=8)
        tell("cost of a trial", f"SQLite, {n_before:,} trials before", costs[n_before].line())
    few, many = costs.values()
    assert many.read <= few.read + 2 < 30 and many.statements < 1.3 * few.statements


@pytest.mark.slow
@pytest.mark.parametrize("n_before", [100, 2_000, 10_000])
def test_cost_of_a_trial(tmp_path, tell, n_before):
    """In CPU milliseconds, by part: under 100 on an idle machine; other processes on the same cores make it up to twice that."""
    url = f"sqlite:///{tmp_path}/study.db"
    cost = cost_of_a_trial(url, f"hpo.storage={url}", "cost", n_before, tmp_path)
    tell("cost of a trial", f"SQLite, {n_before:,} trials before", cost.line())
    assert cost.whole < 200 and cost.parts["pruner"] < 10


def test_a_stored_study_goes_on_to_the_numbers_of_optunas_own_tpe(tmp_path, monkeypatch):
    """Sixty finished trials and twelve more, once by Optuna's class and once by the columns, in a process each has to itself."""
    rows = []
    for make in (optuna.samplers.TPESampler, samplers.ColumnTpeSampler):
        url = f"sqlite:///{tmp_path}/{make.__name__}.db"
        filled_study(url, "kept", 60)
        if make is optuna.samplers.TPESampler:
            grouped = partial(make, multivariate=True, group=True, constant_liar=True)
            monkeypatch.setattr(samplers, "ColumnTpeSampler", lambda ranges, grouped=grouped, **options: grouped(**options))
        for n_trials in (66, 72):  # the second run resumes the study
            invented_study(
                [*COMMON, f"hpo.storage={url}", "hpo.study_name=kept", f"studies_dir={tmp_path}", f"n_trials={n_trials}"], 0.0
            )
        rows.append(trials_by_slot(url, "kept"))
        monkeypatch.undo()
    assert rows[0] == rows[1] and len(rows[0]) == 72
