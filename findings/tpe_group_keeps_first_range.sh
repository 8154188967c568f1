#!/usr/bin/env bash
# TPE with group=True never leaves the range of a study's first trials: a range that is widened later is not searched.
#
# Package: optuna 5.0.0.
# Expected: Optuna admits another range of a parameter within a study, so that after an optimum at the edge one widens it and goes on.
#   TPE itself names the option for that: "`multivariate=True,group=False` does not support dynamic search space (but
#   `multivariate=True,group=True` works)". It may follow the old trials for a while; then it tries the new part.
# Seen: the groups keep the distribution of the first trial that had the parameter. TPE samples in it, the value lies within the new range too,
#   and is taken: none of 400 trials outside the old range, no warning, and a sampler made anew reads the same first trial.
#   After narrowing, each value that falls outside is drawn again without the other parameters. Without `group` TPE draws a parameter whose
#   range has changed alone, over the new range, and finds the optimum.
# Why it matters here: `group` is what conditional parameters need, so the product's default sampler has it, and `hpo.allow_changed` admits
#   a wider range of a study. The product puts the ranges that its settings declare now in the place of those of the first trials
#   (nbs/search/35_optuna_samplers.ipynb, DeclaredRanges), for one objective and for two.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install optuna==5.0.0 numpy==2.4.6
cat > "$folder/wider.py" <<'PY'
import warnings

import optuna
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
warnings.simplefilter("error", UserWarning)
NEW = {
    "TPE": lambda seed: TPESampler(seed=seed),
    "TPE, group": lambda seed: TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
    "NSGA-II": lambda seed: NSGAIISampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}


def search(name: str, seed: int) -> optuna.Study:
    "20 trials with x up to 0.3, then 80 with x up to 1 by a sampler that is made anew; the best x is 0.8."
    study = optuna.create_study()
    for top, trials in ((0.3, 20), (1.0, 80)):
        study.sampler = NEW[name](seed)
        for _ in range(trials):
            trial = study.ask()
            x, y = trial.suggest_float("x", 0, top), trial.suggest_float("y", 0, 1)
            study.tell(trial, (x - 0.8) ** 2 + (y - 0.5) ** 2)
    return study


for name in NEW:
    studies = [search(name, seed) for seed in range(5)]
    beyond = sum(trial.params["x"] > 0.3 for study in studies for trial in study.trials[20:])
    worst = max(study.best_value for study in studies)
    print(f"optuna {optuna.__version__}, {name}: {beyond} of 400 trials beyond the old range, best value at most {worst:.4f}")
    assert all(trial.distributions["x"].high == 1 for study in studies for trial in study.trials[20:])
    if name == "TPE, group":
        assert beyond == 0 and worst > 0.25, "changed: the new range is searched"
    else:
        assert beyond > 200 and worst < 0.05, f"changed: {name} does not search the new range"
PY
"$folder/venv/bin/python" "$folder/wider.py"
echo "as described"
